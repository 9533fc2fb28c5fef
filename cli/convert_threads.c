/* SPDX-License-Identifier: MIT */
#include "cli/convert_threads.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/chunks.h"
#include "cli/command.h"
#include "cli/first_error.h"
#include "cli/sectors.h"
#include "cli/zeros.h"

/* Small enough that what was read is still in the CPU cache when it is written. */
#define CHUNK_BYTES (512u << 10)
/* Zeros are looked for in units of this: a filesystem block, below which a hole saves nothing. */
#define GRAIN_BYTES 4096

struct convert {
    struct scow_image *image;
    struct output *output;
    uint64_t base_off;
    const struct convert_options *options;
    struct progress *progress;
    struct chunks chunks;
    bool skip_zeros; /* what is not written reads as zeros */
    struct first_error error;
};

struct slot {
    struct chunk chunk;
    char *buf;
    bool busy;
};

struct worker {
    struct convert *convert;
    pthread_t thread;
    struct scow_queue *queue;
    struct slot *slots;
    uint32_t busy;
};

/* The other threads then run out of chunks. */
static void stop(struct convert *c)
{
    chunks_stop_at(&c->chunks, 0);
}

static int write_failed(struct convert *c, int err, uint64_t off)
{
    first_error_set(&c->error, err, "%s: error while writing at offset %" PRIu64 ": %s", c->output->path, off,
                    strerror(-err));
    return err;
}

/* Runs of zeros that the extents told of. Runs under the chunks' lock: its result, not stop(), ends the work.
 */
static int zero_range(void *ctx, uint64_t off, uint64_t bytes)
{
    struct convert *c = ctx;
    uint64_t failed_off = off;
    const int err = output_zero(c->output, c->base_off + off, bytes, &failed_off);

    return err ? write_failed(c, err, failed_off) : 0;
}

static int put(struct convert *c, const char *buf, uint64_t off, uint64_t bytes, bool zeros)
{
    uint64_t failed_off = c->base_off + off;
    int err = 0;

    if (zeros && c->skip_zeros)
        return 0;
    if (zeros)
        err = output_zero(c->output, c->base_off + off, bytes, &failed_off);
    else
        err = output_write(c->output, buf, bytes, c->base_off + off, &failed_off);
    if (err) {
        write_failed(c, err, failed_off);
        stop(c);
    }
    return err;
}

/* Writes a chunk that was read; zeros shorter than sparse_bytes go out with the data around them. */
static int write_chunk(struct convert *c, const struct slot *slot)
{
    const uint64_t bytes = slot->chunk.bytes;
    uint64_t data_from = 0, at = 0;
    bool zeros = false;
    int err = 0;

    if (!c->options->sparse_bytes)
        return put(c, slot->buf, slot->chunk.off, bytes, false);
    while (at < bytes && !err) {
        const uint64_t end = zeros_run_end(slot->buf, bytes, at, GRAIN_BYTES, &zeros);
        if (zeros && (end - at >= c->options->sparse_bytes || (at == 0 && end == bytes))) {
            if (data_from < at)
                err = put(c, slot->buf + data_from, slot->chunk.off + data_from, at - data_from, false);
            if (!err)
                err = put(c, slot->buf + at, slot->chunk.off + at, end - at, true);
            data_from = end;
        }
        at = end;
    }
    if (!err && data_from < bytes)
        err = put(c, slot->buf + data_from, slot->chunk.off + data_from, bytes - data_from, false);
    return err;
}

static void read_failed(struct worker *w, const struct slot *slot, int err, const char *error)
{
    first_error_set(&w->convert->error, err, "%s: error while reading at offset %" PRIu64 ": %s",
                    w->convert->options->path, slot->chunk.off, error && *error ? error : strerror(-err));
    stop(w->convert);
}

static void start_read(struct worker *w, struct slot *slot)
{
    const uint64_t left = scow_size(w->convert->image) - slot->chunk.off;
    const uint64_t bytes = left < slot->chunk.bytes ? left : slot->chunk.bytes;

    memset(slot->buf + bytes, 0, slot->chunk.bytes - bytes);
    const int err = scow_queue_read(w->queue, slot->chunk.off, slot->buf, bytes, slot, 0);
    if (err) {
        read_failed(w, slot, err, scow_error());
        return;
    }
    slot->busy = true;
    w->busy++;
}

static void fill_slots(struct worker *w)
{
    for (uint32_t i = 0; i < w->convert->options->in_flight; i++) {
        struct slot *slot = &w->slots[i];
        if (slot->busy)
            continue;
        if (chunks_next(&w->convert->chunks, &slot->chunk) != 1)
            return;
        start_read(w, slot);
    }
}

/* One completion at a time, with the next reads started before it is written. */
static int reap(struct worker *w)
{
    struct scow_completion done;
    struct slot *slot;
    const int count = scow_queue_poll(w->queue, &done, 1, 1, SCOW_WAIT_FOREVER);

    if (count < 0)
        return count;
    if (!count)
        return -EIO;
    slot = done.user_data;
    if (done.ret)
        read_failed(w, slot, done.ret, done.error);
    else if (!write_chunk(w->convert, slot))
        progress_add(w->convert->progress, slot->chunk.bytes);
    slot->busy = false;
    w->busy--;
    return 0;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    int err = 0;

    fill_slots(w);
    while (w->busy && !err) {
        err = reap(w);
        if (!err)
            fill_slots(w);
    }
    if (err) {
        stop(w->convert);
        first_error_set(&w->convert->error, err, "%s: %s", w->convert->options->path,
                        *scow_error() ? scow_error() : strerror(-err));
    }
    return NULL;
}

static int worker_init(struct worker *w, struct convert *c)
{
    int err;

    w->convert = c;
    w->slots = calloc(c->options->in_flight, sizeof *w->slots);
    for (uint32_t i = 0; w->slots && i < c->options->in_flight; i++) {
        w->slots[i].buf = aligned_alloc(OUTPUT_ALIGN, CHUNK_BYTES);
        if (!w->slots[i].buf)
            break;
    }
    if (!w->slots || !w->slots[c->options->in_flight - 1].buf) {
        first_error_set(&c->error, -ENOMEM, "out of memory");
        return -ENOMEM;
    }
    err = scow_queue_create(c->image, NULL, &w->queue);
    if (err)
        first_error_set(&c->error, err, "%s: %s", c->options->path, scow_error());
    return err;
}

static void worker_destroy(struct worker *w)
{
    scow_queue_destroy(w->queue);
    for (uint32_t i = 0; w->slots && i < w->convert->options->in_flight; i++)
        free(w->slots[i].buf);
    free(w->slots);
}

static void run_workers(struct convert *c, struct worker *workers)
{
    uint32_t inited = 0, started = 0;

    while (inited < c->options->threads && !worker_init(&workers[inited], c))
        inited++;
    while (inited == c->options->threads && started < inited) {
        const int err = pthread_create(&workers[started].thread, NULL, work, &workers[started]);
        if (err) {
            first_error_set(&c->error, -err, "could not start a thread: %s", strerror(err));
            stop(c);
            break;
        }
        started++;
    }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    for (uint32_t i = 0; i < c->options->threads; i++)
        worker_destroy(&workers[i]);
}

int convert_run(struct scow_image *image, struct output *output, uint64_t base_off,
                const struct convert_options *options, struct progress *progress)
{
    struct worker *workers = calloc(options->threads, sizeof *workers);
    struct convert c = {
        .image = image,
        .output = output,
        .base_off = base_off,
        .options = options,
        .progress = progress,
        .skip_zeros = output->reads_zero,
        .chunks = {.images = {image},
                   .chunk_bytes = CHUNK_BYTES,
                   .end = round_to_sector(scow_size(image)),
                   .progress = progress},
    };

    if (!workers) {
        command_error(options->path, "out of memory");
        return -ENOMEM;
    }
    first_error_init(&c.error);
    if (!output->reads_zero) {
        c.chunks.zero = zero_range;
        c.chunks.zero_ctx = &c;
    }
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
