/* SPDX-License-Identifier: MIT */
#include "cli/convert_copy.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/chunks.h"
#include "cli/command.h"
#include "cli/cpus.h"
#include "cli/first_error.h"
#include "cli/sectors.h"
#include "cli/zeros.h"

#define CHUNK_BYTES (512u << 10)
/* Zeros are looked for in units of this. */
#define GRAIN_BYTES 4096
#define BUFFER_ALIGN 4096
/* A chunk may become many writes; beyond this they wait for each other. */
#define WRITES_MAX 512
#define POLL_COUNT 32

struct copy {
    struct scow_image *source;
    const struct copy_target *target;
    uint64_t base_off, target_bytes;
    const struct convert_options *options;
    struct progress *progress;
    uint64_t chunk_bytes;
    struct chunks chunks;
    struct first_error error;
};

struct slot {
    struct chunk chunk;
    char *buf;
    bool busy;
    uint32_t writes; /* in flight, and one more while they are being submitted */
};

struct worker {
    struct copy *copy;
    pthread_t thread;
    struct scow_queue *source, *target;
    struct slot *slots;
    uint32_t reads, writes; /* in flight */
};

/* ---- errors ---- */

static const char *reason(const char *error, int err)
{
    return error && *error ? error : strerror(-err);
}

/* The other threads then run out of chunks. */
static void stop(struct worker *w)
{
    chunks_stop_at(&w->copy->chunks, 0);
}

static void read_failed(struct worker *w, const struct slot *slot, int err, const char *error)
{
    first_error_set(&w->copy->error, err, "%s: error while reading at offset %" PRIu64 ": %s",
                    w->copy->options->path, slot->chunk.off, reason(error, err));
    stop(w);
}

static void write_failed(struct worker *w, const struct slot *slot, int err, const char *error)
{
    first_error_set(&w->copy->error, err, "%s: error while writing at offset %" PRIu64 ": %s",
                    w->copy->target->path, w->copy->base_off + slot->chunk.off, reason(error, err));
    stop(w);
}

/* ---- writing ---- */

/* One write less; with the last the slot is free. */
static void drop_write(struct worker *w, struct slot *slot)
{
    if (--slot->writes)
        return;
    slot->busy = false;
    progress_add(w->copy->progress, slot->chunk.bytes);
}

static int reap_writes(struct worker *w, int min)
{
    struct scow_completion done[POLL_COUNT];
    const int count = scow_queue_poll(w->target, done, min, POLL_COUNT, SCOW_WAIT_FOREVER);

    for (int i = 0; i < count; i++) {
        struct slot *slot = done[i].user_data;
        if (done[i].ret)
            write_failed(w, slot, done[i].ret, done[i].error);
        w->writes--;
        drop_write(w, slot);
    }
    return count;
}

static int submit_write(struct worker *w, struct slot *slot, uint64_t at, uint64_t bytes, bool zeros)
{
    const struct copy *c = w->copy;
    const uint64_t off = c->base_off + slot->chunk.off + at;
    /* The disk's last cluster may be short, no other: a larger disk's gets its part of it plain. */
    const bool compressed =
        c->target->compressed && (bytes % c->target->cluster_bytes == 0 || off + bytes == c->target_bytes);

    if (zeros)
        return scow_queue_write_zeroes(w->target, off, bytes, slot, SCOW_REQ_MAY_UNMAP);
    return scow_queue_write(w->target, off, slot->buf + at, bytes, slot,
                            compressed ? SCOW_REQ_COMPRESSED : 0);
}

static int put(struct worker *w, struct slot *slot, uint64_t at, uint64_t bytes, bool zeros)
{
    int err;

    if (zeros && w->copy->target->reads_zero)
        return 0;
    while ((err = submit_write(w, slot, at, bytes, zeros)) == -EAGAIN) {
        const int count = reap_writes(w, 1);
        if (count <= 0) {
            err = count ? count : -EIO;
            break;
        }
    }
    if (err) {
        write_failed(w, slot, err, scow_error());
        return err;
    }
    slot->writes++;
    w->writes++;
    return 0;
}

/* Whole clusters: each is compressed for itself. */
static int put_compressed(struct worker *w, struct slot *slot)
{
    const uint64_t bytes = slot->chunk.bytes, cluster = w->copy->target->cluster_bytes;
    int err = 0;

    for (uint64_t at = 0, part; at < bytes && !err; at += part) {
        part = bytes - at < cluster ? bytes - at : cluster;
        const bool zeros = w->copy->options->sparse_bytes && zeros_all(slot->buf + at, part);
        err = put(w, slot, at, part, zeros);
    }
    return err;
}

/* Runs of data and of zeros; zeros shorter than sparse_bytes go out with the data around them. */
static int put_plain(struct worker *w, struct slot *slot)
{
    const uint64_t bytes = slot->chunk.bytes;
    uint64_t data_from = 0, at = 0;
    bool zeros = false;
    int err = 0;

    while (at < bytes && !err && w->copy->options->sparse_bytes) {
        const uint64_t end = zeros_run_end(slot->buf, bytes, at, GRAIN_BYTES, &zeros);
        if (zeros && (end - at >= w->copy->options->sparse_bytes || (at == 0 && end == bytes))) {
            if (data_from < at)
                err = put(w, slot, data_from, at - data_from, false);
            if (!err)
                err = put(w, slot, at, end - at, true);
            data_from = end;
        }
        at = end;
    }
    if (!err && data_from < bytes)
        err = put(w, slot, data_from, bytes - data_from, false);
    return err;
}

/* Its own write keeps the slot busy until the last of them is submitted. */
static void write_slot(struct worker *w, struct slot *slot)
{
    slot->writes = 1;
    if (slot->chunk.zeros)
        put(w, slot, 0, slot->chunk.bytes, true);
    else if (w->copy->target->compressed)
        put_compressed(w, slot);
    else
        put_plain(w, slot);
    drop_write(w, slot);
}

/* ---- reading ---- */

static void start_read(struct worker *w, struct slot *slot)
{
    const int err = scow_queue_read(w->source, slot->chunk.off, slot->buf, slot->chunk.bytes, slot, 0);

    if (err) {
        read_failed(w, slot, err, scow_error());
        return;
    }
    slot->busy = true;
    w->reads++;
}

static void fill_slots(struct worker *w)
{
    for (uint32_t i = 0; i < w->copy->options->in_flight; i++) {
        struct slot *slot = &w->slots[i];
        while (!slot->busy) {
            if (chunks_next(&w->copy->chunks, &slot->chunk) != 1)
                return;
            if (!slot->chunk.zeros) {
                start_read(w, slot);
                break;
            }
            slot->busy = true;
            write_slot(w, slot);
        }
    }
}

static int reap_reads(struct worker *w, int min)
{
    struct scow_completion done[POLL_COUNT];
    const int count = scow_queue_poll(w->source, done, min, POLL_COUNT, SCOW_WAIT_FOREVER);

    for (int i = 0; i < count; i++) {
        struct slot *slot = done[i].user_data;
        w->reads--;
        if (done[i].ret) {
            read_failed(w, slot, done[i].ret, done[i].error);
            slot->busy = false;
        } else {
            write_slot(w, slot);
        }
    }
    return count;
}

/* ---- a thread ---- */

/* Until one of the two queues may have something; both have requests in flight. */
static void wait_both(struct worker *w)
{
    struct pollfd fds[2] = {{.fd = scow_queue_completion_fd(w->source), .events = POLLIN},
                            {.fd = scow_queue_completion_fd(w->target), .events = POLLIN}};
    uint64_t ignored;

    poll(fds, 2, -1);
    for (int i = 0; i < 2; i++)
        if (fds[i].revents && read(fds[i].fd, &ignored, sizeof ignored) < 0)
            continue; /* nothing to take after all: the queues are polled again anyway */
}

/* Moves both queues on; a negative errno when one cannot go on. */
static int turn(struct worker *w)
{
    int reads = 0, writes = 0;

    if (w->writes)
        writes = reap_writes(w, w->reads ? 0 : 1);
    if (writes >= 0 && w->reads)
        reads = reap_reads(w, w->writes || writes ? 0 : 1);
    if (writes < 0 || reads < 0)
        return writes < 0 ? writes : reads;
    if (!reads && !writes && w->reads && w->writes)
        wait_both(w);
    return 0;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    int err = 0;

    fill_slots(w);
    while ((w->reads || w->writes) && !err) {
        err = turn(w);
        if (!err)
            fill_slots(w);
    }
    if (err) {
        stop(w);
        first_error_set(&w->copy->error, err, "%s: %s", w->copy->target->path, reason(scow_error(), err));
    }
    return NULL;
}

static int worker_queues(struct worker *w)
{
    struct scow_queue_options options = SCOW_QUEUE_OPTIONS_INIT;
    int err = scow_queue_create(w->copy->source, NULL, &w->source);

    options.depth = WRITES_MAX;
    if (!err)
        err = scow_queue_create(w->copy->target->image, &options, &w->target);
    if (!err)
        err = scow_queue_enable_completion_fd(w->source, 1);
    if (!err)
        err = scow_queue_enable_completion_fd(w->target, 1);
    if (err)
        first_error_set(&w->copy->error, err, "%s: %s", w->copy->target->path, reason(scow_error(), err));
    return err;
}

static int worker_init(struct worker *w, struct copy *c)
{
    const uint32_t count = c->options->in_flight;

    w->copy = c;
    w->slots = calloc(count, sizeof *w->slots);
    for (uint32_t i = 0; w->slots && i < count; i++) {
        w->slots[i].buf = aligned_alloc(BUFFER_ALIGN, c->chunk_bytes);
        if (!w->slots[i].buf)
            break;
    }
    if (!w->slots || !w->slots[count - 1].buf) {
        first_error_set(&c->error, -ENOMEM, "out of memory");
        return -ENOMEM;
    }
    return worker_queues(w);
}

static void worker_destroy(struct worker *w)
{
    scow_queue_destroy(w->source);
    scow_queue_destroy(w->target);
    for (uint32_t i = 0; w->slots && i < w->copy->options->in_flight; i++)
        free(w->slots[i].buf);
    free(w->slots);
}

static void run_workers(struct copy *c, struct worker *workers)
{
    uint32_t inited = 0, started = 0;

    while (inited < c->options->threads && !worker_init(&workers[inited], c))
        inited++;
    while (inited == c->options->threads && started < inited) {
        const int err = pthread_create(&workers[started].thread, NULL, work, &workers[started]);
        if (err) {
            first_error_set(&c->error, -err, "could not start a thread: %s", strerror(err));
            chunks_stop_at(&c->chunks, 0);
            break;
        }
        started++;
    }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    for (uint32_t i = 0; i < c->options->threads; i++)
        if (workers[i].copy)
            worker_destroy(&workers[i]);
}

/* ---- a source ---- */

static bool source_has_backing(struct scow_image *source)
{
    struct scow_info info = SCOW_INFO_INIT;

    return !scow_get_info(source, &info) && info.format == SCOW_FORMAT_QCOW2 && info.backing_name;
}

/* Which part of the source is copied, and in what units. */
static void plan_chunks(struct copy *c, bool last)
{
    const struct copy_target *t = c->target;
    const uint64_t size = round_to_sector(scow_size(c->source));
    struct chunks *chunks = &c->chunks;

    c->chunk_bytes = CHUNK_BYTES;
    *chunks = (struct chunks){
        .images = {c->source},
        .end = size,
        .base_off = c->base_off,
        .give_zeros = !t->reads_zero,
        .keep_zeros = !c->options->sparse_bytes,
        .split = true,
        .own_layer = t->has_backing && source_has_backing(c->source),
        .progress = c->progress,
    };
    if (t->compressed) {
        const uint64_t cluster = t->cluster_bytes;
        const uint64_t first = (c->base_off + cluster - 1) / cluster * cluster - c->base_off;
        const uint64_t rest = last ? 0 : (c->base_off + size) % cluster;
        chunks->align = cluster;
        chunks->end = size > rest ? size - rest : 0;
        chunks->first = first < chunks->end ? first : chunks->end;
        if (c->chunk_bytes < cluster)
            c->chunk_bytes = cluster;
    }
    chunks->chunk_bytes = c->chunk_bytes;
}

int copy_run(struct scow_image *source, const struct copy_target *target, uint64_t base_off, bool last,
             const struct convert_options *options, struct progress *progress)
{
    struct worker *workers = calloc(options->threads, sizeof *workers);
    struct copy c = {
        .source = source,
        .target = target,
        .base_off = base_off,
        .target_bytes = scow_size(target->image),
        .options = options,
        .progress = progress,
    };

    if (!workers) {
        command_error(options->path, "out of memory");
        return -ENOMEM;
    }
    first_error_init(&c.error);
    plan_chunks(&c, last);
    chunks_init(&c.chunks);
    run_workers(&c, workers);
    if (c.chunks.err)
        first_error_set(&c.error, c.chunks.err, "%s: where its data is cannot be read: %s", options->path,
                        c.chunks.error);
    const int err = first_error_report(&c.error);
    chunks_destroy(&c.chunks);
    first_error_destroy(&c.error);
    free(workers);
    return err;
}

/* ---- clusters in two sources ---- */

/* Reads [off, off + bytes) of the sources' row. */
static int read_row(struct scow_image *const *sources, const char *const *paths, uint32_t count, uint64_t off,
                    uint64_t bytes, char *buf)
{
    uint64_t base_off = 0;

    for (uint32_t i = 0; i < count; i++) {
        const uint64_t size = scow_size(sources[i]), end = base_off + size;
        const uint64_t from = off > base_off ? off : base_off, to = off + bytes < end ? off + bytes : end;
        if (from < to) {
            const int err = scow_pread(sources[i], buf + (from - off), to - from, from - base_off);
            if (err) {
                command_library_error(paths[i], err);
                return err;
            }
        }
        base_off += round_to_sector(size);
    }
    return 0;
}

static int write_seam(struct scow_queue *queue, const struct copy_target *target, uint64_t off,
                      const char *buf, uint64_t bytes)
{
    const bool whole = bytes == target->cluster_bytes || off + bytes == scow_size(target->image);
    struct scow_completion done;
    int err = scow_queue_write(queue, off, buf, bytes, NULL, whole ? SCOW_REQ_COMPRESSED : 0);

    if (!err) {
        const int count = scow_queue_poll(queue, &done, 1, 1, SCOW_WAIT_FOREVER);
        err = count == 1 ? done.ret : count < 0 ? count : -EIO;
        if (count == 1 && err) {
            command_error(target->path, "error while writing at offset %" PRIu64 ": %s", off,
                          reason(done.error, err));
            return err;
        }
    }
    if (err)
        command_library_error(target->path, err);
    return err;
}

int copy_seams(struct scow_image *const *sources, const char *const *paths, uint32_t count,
               const struct copy_target *target, const struct convert_options *options,
               struct progress *progress)
{
    const uint64_t cluster = target->cluster_bytes;
    uint64_t total = 0, edge = 0, next = 0;
    struct scow_queue *queue = NULL;
    char *buf = aligned_alloc(BUFFER_ALIGN, cluster < BUFFER_ALIGN ? BUFFER_ALIGN : cluster);
    int err = buf ? scow_queue_create(target->image, NULL, &queue) : -ENOMEM;

    if (err)
        command_library_error(target->path, err);
    for (uint32_t i = 0; i < count; i++)
        total += round_to_sector(scow_size(sources[i]));
    for (uint32_t i = 0; i + 1 < count && !err; i++) {
        edge += round_to_sector(scow_size(sources[i]));
        const uint64_t off = edge / cluster * cluster;
        if (edge == off || off < next)
            continue;
        const uint64_t bytes = total - off < cluster ? total - off : cluster;
        next = off + bytes;
        err = read_row(sources, paths, count, off, bytes, buf);
        if (!err && !(options->sparse_bytes && target->reads_zero && zeros_all(buf, bytes)))
            err = write_seam(queue, target, off, buf, bytes);
        progress_add(progress, bytes);
    }
    scow_queue_destroy(queue);
    free(buf);
    return err;
}
