/* SPDX-License-Identifier: MIT */
/*
 * Random writes, zeroes, discards, flushes and reads of an image from several threads, each with a queue of
 * its own, applied to a raw file as well, its shadow, and compared with it all the time. Uses the public
 * interface only.
 *
 * Requests in flight never share a sector, unless both read: nothing orders them. They do share blocks,
 * clusters and tables. One more thread uses the blocking calls with any offset and length.
 *
 * Between two phases the queues are destroyed, the image is left complete (scow_quiesce) and, if asked for, a
 * command looks at the file.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <shardcow.h>

#include "tests/compat/writer_settings.h"
#include "tests/compat/writer_shadow.h"

enum {
    PIECES_MAX = 6,
    GAP_MAX = 96,
    FLIGHT_BYTES_MAX = 16 << 20,
    BLOCKING_BYTES_MAX = 100000,
};

enum kind { WRITE, ZEROES, DISCARD, READ, FLUSH };

static struct scow_image *image;
static struct scow_info info = SCOW_INFO_INIT;
static uint64_t image_bytes;
static uint64_t deadline_ns;
static atomic_bool failed; /* written by any thread, ends all */

struct request {
    enum kind kind;
    bool busy, verifies, adopts; /* its range is being read: after a discard, to be taken over */
    uint32_t flags;
    uint64_t off;
    size_t bytes;
    uint8_t *memory;
    struct iovec iov[PIECES_MAX];
    int iov_count;
};

struct worker {
    pthread_t thread;
    uint32_t index;
    uint64_t random_state;
    struct scow_queue *queue;
    struct request requests[WRITER_DEPTH];
    uint32_t in_flight, in_flight_target;
    uint64_t flight_bytes;
    uint64_t done, done_bytes, full;
    uint64_t near_off; /* where the last request was */
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* 0 to limit - 1 */
static uint64_t below(struct worker *w, uint64_t limit)
{
    return next_random(&w->random_state) % limit;
}

__attribute__((format(printf, 2, 3))) static void complain(const struct worker *w, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "%s: thread %" PRIu32 ": %s (seed %" PRIu64 ")\n", settings.image_path, w->index, text,
            settings.seed);
    atomic_store(&failed, true);
}

static bool finished(const struct worker *w)
{
    return atomic_load(&failed) || now_ns() >= deadline_ns ||
           (settings.ops_max && w->done >= settings.ops_max);
}

/* ---- what should be there ---- */

static bool is_right(const struct worker *w, const uint8_t *got, uint64_t off, size_t bytes, const char *what)
{
    if (memcmp(got, shadow + off, bytes) == 0)
        return true;
    size_t i = 0;
    while (got[i] == shadow[off + i])
        i++;
    complain(
        w, "%s of %zu bytes at %" PRIu64 ": wrong byte at guest offset %" PRIu64 ": 0x%02x, should be 0x%02x",
        what, bytes, off, off + i, got[i], shadow[off + i]);
    return false;
}

/* How the unit of a discard at off has to read: it covers all of it, none or it depends. */
enum expected { ZERO, SAME, EITHER };

static enum expected expected_after_discard(const struct request *r, uint64_t off, uint64_t unit_bytes)
{
    const uint64_t end = r->off + r->bytes;
    const uint64_t cluster = off / info.cluster_bytes * info.cluster_bytes;
    const bool covers =
        off / unit_bytes * unit_bytes >= r->off && off / unit_bytes * unit_bytes + unit_bytes <= end;
    if (covers && info.version == 2 && info.backing_name)
        return EITHER;
    if (covers && cluster >= r->off && cluster + info.cluster_bytes <= end)
        return ZERO;
    /* A part of a cluster that is compressed as a whole; the last cluster of an image that ends within it. */
    if (covers || (end == image_bytes && off / unit_bytes * unit_bytes >= r->off))
        return EITHER;
    return SAME;
}

/* A discard's range was read: take over what is allowed. */
static void check_discard(struct worker *w, const struct request *r)
{
    const uint64_t unit_bytes = info.format == SCOW_FORMAT_RAW ? SHADOW_SECTOR : info.subcluster_bytes;
    for (uint64_t off = r->off; off < r->off + r->bytes;) {
        uint64_t end = (off / unit_bytes + 1) * unit_bytes;
        if (end > r->off + r->bytes)
            end = r->off + r->bytes;
        const uint8_t *got = r->memory + (off - r->off);
        const enum expected e =
            info.format == SCOW_FORMAT_RAW ? EITHER : expected_after_discard(r, off, unit_bytes);
        if (e == ZERO || (e == EITHER && shadow_all_zeros(got, end - off)))
            shadow_zero(off, end - off);
        if (!is_right(w, got, off, end - off, "after a discard, a unit"))
            return;
        off = end;
    }
}

/* ---- requests ---- */

static size_t choose_bytes(struct worker *w)
{
    static const uint64_t sectors_max[] = {1, 8, 16, 16, 128, 128, 512, 2048};
    const uint64_t kind = below(w, 100);
    const size_t class = kind < 55 ? kind % 4 : kind < 85 ? 4 + kind % 2 : kind < 97 ? 6 : 7;
    return (size_t)(1 + below(w, sectors_max[class])) * SHADOW_SECTOR;
}

/* Where is decided by the shadow: close to data, or a sparse image would be all holes. */
static void choose_range(struct worker *w, struct request *r)
{
    size_t bytes = choose_bytes(w);
    if (bytes > image_bytes)
        bytes = (size_t)image_bytes;
    const uint64_t last = (image_bytes - bytes) / SHADOW_SECTOR * SHADOW_SECTOR;
    const uint64_t kind = below(w, 100);
    uint64_t off = below(w, last / SHADOW_SECTOR + 1) * SHADOW_SECTOR;
    if (kind < 3) {
        off = last;
    } else if (kind < 30) {
        off = w->near_off + below(w, 64) * SHADOW_SECTOR;
    } else if (kind < 50) {
        off = off / 4096 * 4096;
        bytes = bytes < 4096 ? bytes : bytes / 4096 * 4096;
    } else if (kind < 80 || image_bytes > (uint64_t)1 << 32) {
        const off_t data = lseek(shadow_fd, (off_t)off, SEEK_DATA);
        const uint64_t back = below(w, 300) * SHADOW_SECTOR;
        if (data >= 0)
            off = (uint64_t)data / SHADOW_SECTOR * SHADOW_SECTOR;
        off = off > back ? off - back : off;
    }
    if (r->kind != WRITE && r->kind != READ && below(w, 2)) { /* whole clusters */
        const uint64_t cluster = info.cluster_bytes ? info.cluster_bytes : 65536;
        off = off / cluster * cluster;
        bytes = (size_t)((1 + below(w, cluster < 65536 ? 64 : 6)) * cluster);
    }
    if (off > last)
        off = last;
    if (bytes > image_bytes - off)
        bytes = (size_t)(image_bytes - off);
    w->near_off = off;
    r->off = off;
    r->bytes = bytes;
}

/* Cut the buffer into pieces of any length, with gaps between them so that addresses are odd too. */
static void cut_pieces(struct worker *w, struct request *r)
{
    const bool aligned = below(w, 2);
    r->iov_count = below(w, 2) ? 1 : (int)(1 + below(w, PIECES_MAX));
    uint8_t *at = r->memory;
    size_t left = r->bytes;
    for (int i = 0; i < r->iov_count; i++) {
        size_t bytes = left;
        if (i + 1 < r->iov_count)
            bytes = below(w, 8) ? (size_t)below(w, left + 1) : 0;
        if (aligned)
            bytes = i + 1 < r->iov_count ? bytes / 4096 * 4096 : bytes;
        else
            at += below(w, 4) ? below(w, GAP_MAX) : 0;
        r->iov[i] = (struct iovec){.iov_base = at, .iov_len = bytes};
        at += bytes;
        left -= bytes;
    }
}

static void fill_pieces(struct worker *w, const struct request *r)
{
    const bool zeros = below(w, 12) == 0;
    for (int i = 0; i < r->iov_count; i++) {
        uint8_t *p = r->iov[i].iov_base;
        const uint64_t stamp = next_random(&w->random_state);
        for (size_t k = 0; k < r->iov[i].iov_len; k++)
            p[k] = zeros ? 0 : (uint8_t)((stamp >> (k % 8 * 8)) + k / 512);
    }
}

static bool prepare(struct worker *w, struct request *r)
{
    const uint64_t dice = below(w, 100);
    r->kind = dice < 52 ? WRITE : dice < 64 ? ZEROES : dice < 74 ? DISCARD : dice < 96 ? READ : FLUSH;
    r->verifies = r->adopts = false;
    r->memory = NULL;
    r->flags = r->kind != READ && r->kind != FLUSH && below(w, 24) == 0 ? SCOW_REQ_FUA : 0;
    r->off = r->bytes = 0;
    if (r->kind == FLUSH)
        return true;
    if (r->kind == ZEROES && below(w, 2))
        r->flags |= SCOW_REQ_MAY_UNMAP;
    choose_range(w, r);
    const uint32_t slot = (uint32_t)(r - w->requests);
    if (r->bytes == 0 || !range_take(w->index, slot, r->off, r->bytes, r->kind == READ))
        return false;
    if (r->kind == ZEROES)
        return true;
    const size_t room = r->bytes + (size_t)PIECES_MAX * GAP_MAX;
    r->memory = aligned_alloc(4096, (room + 4095) / 4096 * 4096);
    if (!r->memory) {
        complain(w, "out of memory");
        return false;
    }
    cut_pieces(w, r);
    if (r->kind == WRITE)
        fill_pieces(w, r);
    return true;
}

static int submit(struct worker *w, struct request *r)
{
    switch (r->kind) {
    case WRITE:
        if (r->iov_count == 1)
            return scow_queue_write(w->queue, r->off, r->iov[0].iov_base, r->bytes, r, r->flags);
        return scow_queue_writev(w->queue, r->off, r->iov, r->iov_count, r, r->flags);
    case ZEROES:
        return scow_queue_write_zeroes(w->queue, r->off, r->bytes, r, r->flags);
    case DISCARD:
        if (r->verifies)
            return scow_queue_read(w->queue, r->off, r->memory, r->bytes, r, 0);
        return scow_queue_discard(w->queue, r->off, r->bytes, r, r->flags);
    case READ:
        if (r->iov_count == 1)
            return scow_queue_read(w->queue, r->off, r->iov[0].iov_base, r->bytes, r, 0);
        return scow_queue_readv(w->queue, r->off, r->iov, r->iov_count, r, 0);
    case FLUSH:
        return scow_queue_flush(w->queue, r, 0);
    }
    return -EINVAL;
}

static void release(struct worker *w, struct request *r)
{
    free(r->memory);
    r->memory = NULL;
    r->busy = false;
    range_give(w->index, (uint32_t)(r - w->requests));
}

static bool start(struct worker *w, struct request *r)
{
    static const char *const names[] = {"write", "write_zeroes", "discard", "read", "flush"};
    const int ret = submit(w, r);
    if (ret != 0) {
        complain(w, "submitting a %s of %zu bytes at %" PRIu64 ": %s: %s", names[r->kind], r->bytes, r->off,
                 strerror(-ret), scow_error());
        release(w, r);
        return false;
    }
    r->busy = true;
    w->in_flight++;
    w->flight_bytes += r->bytes;
    return true;
}

static void fill_queue(struct worker *w)
{
    for (uint32_t i = 0; i < WRITER_DEPTH && w->in_flight < w->in_flight_target; i++) {
        struct request *r = &w->requests[i];
        if (r->busy)
            continue;
        if (w->flight_bytes > FLIGHT_BYTES_MAX && w->in_flight)
            return;
        if (prepare(w, r) && !start(w, r))
            return;
    }
}

/* What a request that ended well means for the shadow. True when it has to be released. */
static bool apply(struct worker *w, struct request *r)
{
    uint64_t off = r->off;
    switch (r->kind) {
    case WRITE:
    case READ:
        for (int i = 0; i < r->iov_count; i++) {
            if (r->kind == WRITE)
                memcpy(shadow + off, r->iov[i].iov_base, r->iov[i].iov_len);
            else if (!is_right(w, r->iov[i].iov_base, off, r->iov[i].iov_len, "a read"))
                break;
            off += r->iov[i].iov_len;
        }
        return true;
    case ZEROES:
        shadow_zero(r->off, r->bytes);
        return true;
    case DISCARD:
        if (r->verifies) {
            if (r->adopts)
                memcpy(shadow + r->off, r->memory, r->bytes);
            else
                check_discard(w, r);
            return true;
        }
        r->verifies = true;
        start(w, r);
        return false;
    case FLUSH:
        break;
    }
    return true;
}

/* No space: any part of the range may have changed, and what did is what counts from now on. */
static void adopt(struct worker *w, struct request *r)
{
    if (!r->memory)
        r->memory = aligned_alloc(4096, (r->bytes + 4095) / 4096 * 4096);
    w->full++;
    r->kind = DISCARD;
    r->verifies = r->adopts = true;
    start(w, r);
}

static void reap(struct worker *w, const struct scow_completion *c)
{
    struct request *r = c->user_data;
    if (r < w->requests || r >= w->requests + WRITER_DEPTH || !r->busy) {
        complain(w, "a completion of something that was not submitted");
        return;
    }
    w->in_flight--;
    w->flight_bytes -= r->bytes;
    w->done++;
    w->done_bytes += r->bytes;
    if (c->ret == -ENOSPC && settings.full_is_fine && (r->kind == WRITE || r->kind == ZEROES)) {
        adopt(w, r);
        return;
    }
    if (c->ret != 0)
        complain(w, "request of kind %d, %zu bytes at %" PRIu64 ": %s: %s", (int)r->kind, r->bytes, r->off,
                 strerror(-c->ret), c->error ? c->error : "(no message)");
    if (c->ret != 0 || apply(w, r))
        release(w, r);
}

/* One poll; returns what scow_queue_poll() did. */
static int poll_once(struct worker *w, int min, int64_t timeout_ns)
{
    struct scow_completion completions[64];
    int max = 1 + (int)below(w, 64);
    if (min > max)
        min = max;
    const int count = scow_queue_poll(w->queue, completions, min, max, timeout_ns);
    if (count < 0 || count > max) {
        complain(w, "poll returned %d: %s", count, scow_error());
        return -1;
    }
    for (int i = 0; i < count; i++)
        reap(w, &completions[i]);
    return count;
}

static void drain(struct worker *w)
{
    const uint64_t end = now_ns() + 60000000000u;
    while (w->in_flight) {
        if (poll_once(w, 1, 1000000000) < 0)
            return;
        if (w->in_flight && now_ns() > end) {
            complain(w, "%" PRIu32 " requests are stuck", w->in_flight);
            _exit(3); /* nothing can be destroyed any more */
        }
    }
}

static void *run_worker(void *arg)
{
    struct worker *w = arg;
    static const uint32_t targets[] = {1, 2, 8, 32, WRITER_DEPTH, WRITER_DEPTH};
    struct scow_queue_options options = SCOW_QUEUE_OPTIONS_INIT;
    options.depth = WRITER_DEPTH;
    int ret = scow_queue_create(image, &options, &w->queue);
    if (ret) {
        complain(w, "creating a queue: %s: %s", strerror(-ret), scow_error());
        return NULL;
    }
    for (uint64_t turn = 0; !finished(w); turn++) {
        if (turn % 64 == 0)
            w->in_flight_target = targets[below(w, sizeof(targets) / sizeof(targets[0]))];
        fill_queue(w);
        if (w->in_flight && poll_once(w, below(w, 3) ? 1 : 0, 5000000000) < 0)
            break;
    }
    drain(w);
    if ((ret = scow_queue_destroy(w->queue)) != 0)
        complain(w, "destroying a queue: %s", strerror(-ret));
    return NULL;
}

/* One call of the blocking kind, at any byte. */
static void blocking_call(struct worker *w, uint8_t *buf)
{
    uint64_t off = below(w, image_bytes);
    if (image_bytes > (uint64_t)1 << 32)
        off %= 64 << 20;
    const uint64_t room = image_bytes - off < BLOCKING_BYTES_MAX ? image_bytes - off : BLOCKING_BYTES_MAX;
    const size_t bytes = (size_t)(1 + below(w, below(w, 3) ? (room < 5000 ? room : 5000) : room));
    const uint64_t dice = below(w, 10);
    if (dice == 9) {
        const int ret = scow_flush(image);
        if (ret)
            complain(w, "scow_flush: %s: %s", strerror(-ret), scow_error());
        return;
    }
    if (!range_take(WRITER_THREADS_MAX, 0, off, bytes, dice < 4))
        return;
    int ret;
    if (dice < 4) {
        ret = scow_pread(image, buf, bytes, off);
        if (ret == 0)
            is_right(w, buf, off, bytes, "scow_pread");
    } else {
        for (size_t i = 0; i < bytes; i++)
            buf[i] = (uint8_t)(dice + i / 7);
        ret = scow_pwrite(image, buf, bytes, off);
        if (ret == 0)
            memcpy(shadow + off, buf, bytes);
    }
    if (ret == -ENOSPC && settings.full_is_fine) {
        ret = scow_pread(image, buf, bytes, off);
        if (ret == 0)
            memcpy(shadow + off, buf, bytes);
    }
    if (ret)
        complain(w, "a blocking call for %zu bytes at %" PRIu64 ": %s: %s", bytes, off, strerror(-ret),
                 scow_error());
    w->done++;
    w->done_bytes += bytes;
    range_give(WRITER_THREADS_MAX, 0);
}

static void *run_blocking(void *arg)
{
    struct worker *w = arg;
    uint8_t *buf = malloc(BLOCKING_BYTES_MAX);
    while (buf && image_bytes && !finished(w)) {
        blocking_call(w, buf);
        /* It is here for its own correctness, not to take the time of the queues. */
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    free(buf);
    return NULL;
}

/* ---- phases ---- */

static uint64_t done, done_bytes, full;

static void run_phase(uint32_t phase)
{
    /* The last one is the blocking one. */
    const uint32_t count = settings.threads + 1;
    struct worker *workers = calloc(count, sizeof(*workers));
    if (!workers)
        abort();
    deadline_ns = now_ns() + (uint64_t)(settings.seconds * 1e9);
    for (uint32_t i = 0; i < count; i++) {
        struct worker *w = &workers[i];
        w->index = i;
        w->random_state = settings.seed * 1000003 + phase * 1009 + i;
        if (pthread_create(&w->thread, NULL, i < settings.threads ? run_worker : run_blocking, w)) {
            fprintf(stderr, "cannot start a thread\n");
            exit(1);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        done += workers[i].done;
        done_bytes += workers[i].done_bytes;
        full += workers[i].full;
    }
    free(workers);
}

static bool pause_here(void)
{
    int ret = scow_quiesce(image);
    if (ret) {
        fprintf(stderr, "%s: scow_quiesce: %s: %s\n", settings.image_path, strerror(-ret), scow_error());
        return false;
    }
    ret = settings.pause_command ? system(settings.pause_command) : 0;
    if (ret)
        fprintf(stderr, "after scow_quiesce(), with seed %" PRIu64 ": %s: %d\n", settings.seed,
                settings.pause_command, ret);
    return ret == 0;
}

static bool run_all(void)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;
    bool good = true;
    for (uint32_t phase = 0; good && phase < settings.phases; phase++) {
        run_phase(phase);
        good = !atomic_load(&failed) && (phase + 1 == settings.phases || pause_here());
    }
    if (scow_counters(image, &c))
        return false;
    printf("%" PRIu64 " requests, %" PRIu64 " bytes, %" PRIu64
           " without space, backend %s, alignment %" PRIu32 ", %" PRIu64 " in place, %" PRIu64
           " at a shard, %" PRIu64 " commits, %" PRIu64 " syncs, %" PRIu64 " clusters allocated, %" PRIu64
           " bytes copied, %" PRIu64 " evictions, %" PRIu64 " punched, %" PRIu64 " not punched, seed %" PRIu64
           "\n",
           done, done_bytes, full, info.backend, info.io_align, c.writes_in_place, c.writes_at_shard,
           c.commits, c.syncs, c.clusters_allocated, c.cow_bytes, c.slice_evictions, c.freed_punched,
           c.freed_skipped, settings.seed);
    if (done == 0 && image_bytes) {
        fprintf(stderr, "nothing was done\n");
        return false;
    }
    return good;
}

int main(int argc, char **argv)
{
    settings.seed = now_ns();
    if (!settings_from(argc, argv))
        return settings_usage();
    int ret = scow_open(settings.image_path, &settings.open, &image);
    if (ret) {
        fprintf(stderr, "%s: %s: %s\n", settings.image_path, strerror(-ret), scow_error());
        return 1;
    }
    image_bytes = scow_size(image);
    bool good =
        scow_get_info(image, &info) == 0 && shadow_map(settings.shadow_path, image_bytes) == 0 && run_all();
    ret = scow_close(image);
    if (ret) {
        fprintf(stderr, "%s: closing: %s: %s\n", settings.image_path, strerror(-ret), scow_error());
        good = false;
    }
    return good ? 0 : 1;
}
