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
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <shardcow.h>

enum {
    SECTOR = 512,
    DEPTH = 64,
    THREADS_MAX = 16,
    PIECES_MAX = 6,
    GAP_MAX = 96,
    FLIGHT_BYTES_MAX = 16 << 20,
    BLOCKING_BYTES_MAX = 100000,
};

enum kind { WRITE, ZEROES, DISCARD, READ, FLUSH };

struct settings {
    const char *image_path, *shadow_path, *pause_command;
    struct scow_open_options open;
    uint32_t threads, phases;
    double seconds;
    uint64_t ops_max; /* of each thread and phase; 0: only the time counts */
    uint64_t seed;
    bool full_is_fine; /* -ENOSPC: what was written then may be there or not */
};

static struct settings settings = {.open = SCOW_OPEN_OPTIONS_INIT, .threads = 4, .phases = 2, .seconds = 0.7};
static struct scow_image *image;
static struct scow_info info = SCOW_INFO_INIT;
static uint64_t image_bytes;
static uint8_t *shadow;
static int shadow_fd;
static uint64_t deadline_ns;
static atomic_bool failed; /* written by any thread, ends all */

struct request {
    enum kind kind;
    bool busy, verifies; /* a discard: its range is being read */
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
    struct request requests[DEPTH];
    uint32_t in_flight, in_flight_target;
    uint64_t flight_bytes;
    uint64_t done, done_bytes, full;
    uint64_t near_off; /* where the last request was */
};

/* What is in flight, of all threads; the last one is the blocking thread's. */
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;
static struct range {
    uint64_t from, to;
    bool reads;
} ranges[THREADS_MAX + 1][DEPTH];

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

/* ---- who has which sectors ---- */

/* The range is widened to sectors. */
static bool take_range(uint32_t thread, uint32_t slot, uint64_t off, uint64_t bytes, bool reads)
{
    const uint64_t from = off / SECTOR * SECTOR, to = (off + bytes + SECTOR - 1) / SECTOR * SECTOR;
    bool mine = true;

    pthread_mutex_lock(&ranges_lock);
    for (uint32_t t = 0; t <= THREADS_MAX && mine; t++)
        for (uint32_t i = 0; i < DEPTH && mine; i++)
            mine = ranges[t][i].to <= from || ranges[t][i].from >= to || (reads && ranges[t][i].reads);
    if (mine)
        ranges[thread][slot] = (struct range){from, to, reads};
    pthread_mutex_unlock(&ranges_lock);
    return mine;
}

static void give_range(uint32_t thread, uint32_t slot)
{
    pthread_mutex_lock(&ranges_lock);
    ranges[thread][slot] = (struct range){0};
    pthread_mutex_unlock(&ranges_lock);
}

/* ---- what should be there ---- */

static bool all_zeros(const uint8_t *p, size_t bytes)
{
    return bytes == 0 || (p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0);
}

/* Zero the shadow without making blocks of holes. */
static void shadow_zero(uint64_t off, size_t bytes)
{
    while (bytes) {
        const size_t part = bytes < 4096 - off % 4096 ? bytes : 4096 - off % 4096;
        if (!all_zeros(shadow + off, part))
            memset(shadow + off, 0, part);
        off += part;
        bytes -= part;
    }
}

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
    const uint64_t unit_bytes = info.format == SCOW_FORMAT_RAW ? SECTOR : info.subcluster_bytes;
    for (uint64_t off = r->off; off < r->off + r->bytes;) {
        uint64_t end = (off / unit_bytes + 1) * unit_bytes;
        if (end > r->off + r->bytes)
            end = r->off + r->bytes;
        const uint8_t *got = r->memory + (off - r->off);
        const enum expected e =
            info.format == SCOW_FORMAT_RAW ? EITHER : expected_after_discard(r, off, unit_bytes);
        if (e == ZERO || (e == EITHER && all_zeros(got, end - off)))
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
    return (size_t)(1 + below(w, sectors_max[class])) * SECTOR;
}

/* Where is decided by the shadow: close to data, or a sparse image would be all holes. */
static void choose_range(struct worker *w, struct request *r)
{
    size_t bytes = choose_bytes(w);
    if (bytes > image_bytes)
        bytes = (size_t)image_bytes;
    const uint64_t last = (image_bytes - bytes) / SECTOR * SECTOR;
    const uint64_t kind = below(w, 100);
    uint64_t off = below(w, last / SECTOR + 1) * SECTOR;
    if (kind < 3) {
        off = last;
    } else if (kind < 30) {
        off = w->near_off + below(w, 64) * SECTOR;
    } else if (kind < 50) {
        off = off / 4096 * 4096;
        bytes = bytes < 4096 ? bytes : bytes / 4096 * 4096;
    } else if (kind < 80 || image_bytes > (uint64_t)1 << 32) {
        const off_t data = lseek(shadow_fd, (off_t)off, SEEK_DATA);
        const uint64_t back = below(w, 300) * SECTOR;
        if (data >= 0)
            off = (uint64_t)data / SECTOR * SECTOR;
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
    r->verifies = false;
    r->memory = NULL;
    r->flags = r->kind != READ && r->kind != FLUSH && below(w, 24) == 0 ? SCOW_REQ_FUA : 0;
    r->off = r->bytes = 0;
    if (r->kind == FLUSH)
        return true;
    if (r->kind == ZEROES && below(w, 2))
        r->flags |= SCOW_REQ_MAY_UNMAP;
    choose_range(w, r);
    const uint32_t slot = (uint32_t)(r - w->requests);
    if (r->bytes == 0 || !take_range(w->index, slot, r->off, r->bytes, r->kind == READ))
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
    give_range(w->index, (uint32_t)(r - w->requests));
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
    for (uint32_t i = 0; i < DEPTH && w->in_flight < w->in_flight_target; i++) {
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
    r->verifies = true;
    r->flags = 0;
    r->iov_count = 0;
    const int ret = scow_pread(image, r->memory, r->bytes, r->off);
    if (ret)
        complain(w, "reading back: %s: %s", strerror(-ret), scow_error());
    else
        memcpy(shadow + r->off, r->memory, r->bytes);
}

static void reap(struct worker *w, const struct scow_completion *c)
{
    struct request *r = c->user_data;
    if (r < w->requests || r >= w->requests + DEPTH || !r->busy) {
        complain(w, "a completion of something that was not submitted");
        return;
    }
    w->in_flight--;
    w->flight_bytes -= r->bytes;
    w->done++;
    w->done_bytes += r->bytes;
    if (c->ret == -ENOSPC && settings.full_is_fine && (r->kind == WRITE || r->kind == ZEROES)) {
        adopt(w, r);
        release(w, r);
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
    static const uint32_t targets[] = {1, 2, 8, 32, DEPTH, DEPTH};
    struct scow_queue_options options = SCOW_QUEUE_OPTIONS_INIT;
    options.depth = DEPTH;
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
    ret = scow_queue_destroy(w->queue);
    if (ret)
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
    if (!take_range(THREADS_MAX, 0, off, bytes, dice < 4))
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
    give_range(THREADS_MAX, 0);
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
    if (!settings.pause_command)
        return true;
    ret = system(settings.pause_command);
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

static int map_shadow(void)
{
    struct stat st;
    shadow_fd = open(settings.shadow_path, O_RDWR | O_CLOEXEC);
    if (shadow_fd < 0 || fstat(shadow_fd, &st)) {
        fprintf(stderr, "%s: %s\n", settings.shadow_path, strerror(errno));
        return 1;
    }
    if ((uint64_t)st.st_size != image_bytes) {
        fprintf(stderr, "%s has %" PRIu64 " bytes, the image %" PRIu64 "\n", settings.shadow_path,
                (uint64_t)st.st_size, image_bytes);
        return 1;
    }
    void *map = mmap(NULL, image_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, shadow_fd, 0);
    if (map == MAP_FAILED) {
        fprintf(stderr, "%s: mmap: %s\n", settings.shadow_path, strerror(errno));
        return 1;
    }
    shadow = map;
    return 0;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: random_writer [--format qcow2|raw] [--backend auto|io_uring|threads] [--buffered]\n"
            "  [--cache-bytes N] [--slice-bytes N] [--shards N] [--threads N] [--seconds S] [--ops N]\n"
            "  [--phases N] [--pause-command COMMAND] [--detect-zeroes off|on|unmap] [--writethrough]\n"
            "  [--no-punch] [--full-is-fine] [--seed N] IMAGE SHADOW.raw\n");
    return 2;
}

static enum scow_detect_zeroes detect_zeroes(const char *value)
{
    return strcmp(value, "unmap") == 0 ? SCOW_DETECT_ZEROES_UNMAP
           : strcmp(value, "on") == 0  ? SCOW_DETECT_ZEROES_ON
                                       : SCOW_DETECT_ZEROES_OFF;
}

static int set_open_option(int option, const char *value)
{
    switch (option) {
    case 'f':
        settings.open.format = strcmp(value, "raw") == 0 ? SCOW_FORMAT_RAW : SCOW_FORMAT_QCOW2;
        return 0;
    case 'b':
        settings.open.backend = strcmp(value, "io_uring") == 0  ? SCOW_BACKEND_IO_URING
                                : strcmp(value, "threads") == 0 ? SCOW_BACKEND_THREADS
                                                                : SCOW_BACKEND_AUTO;
        return 0;
    case 'u':
        settings.open.io_mode = SCOW_IO_BUFFERED;
        return 0;
    case 'c':
        settings.open.cache_bytes = strtoull(value, NULL, 0);
        return 0;
    case 'l':
        settings.open.slice_bytes = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 'h':
        settings.open.shards = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 'z':
        settings.open.detect_zeroes = detect_zeroes(value);
        return 0;
    case 'w':
        settings.open.flags |= SCOW_OPEN_WRITETHROUGH;
        return 0;
    case 'n':
        settings.open.flags |= SCOW_OPEN_NO_PUNCH;
        return 0;
    default:
        return -1;
    }
}

static int set_option(int option, const char *value)
{
    switch (option) {
    case 't':
        settings.threads = (uint32_t)strtoul(value, NULL, 0);
        return settings.threads <= THREADS_MAX ? 0 : -1;
    case 's':
        settings.seconds = strtod(value, NULL);
        return 0;
    case 'o':
        settings.ops_max = strtoull(value, NULL, 0);
        return 0;
    case 'p':
        settings.phases = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 'P':
        settings.pause_command = value;
        return 0;
    case 'F':
        settings.full_is_fine = true;
        return 0;
    case 'r':
        settings.seed = strtoull(value, NULL, 0);
        return 0;
    default:
        return set_open_option(option, value);
    }
}

static bool get_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {"backend", required_argument, NULL, 'b'},
        {"buffered", no_argument, NULL, 'u'},
        {"cache-bytes", required_argument, NULL, 'c'},
        {"slice-bytes", required_argument, NULL, 'l'},
        {"shards", required_argument, NULL, 'h'},
        {"threads", required_argument, NULL, 't'},
        {"seconds", required_argument, NULL, 's'},
        {"ops", required_argument, NULL, 'o'},
        {"phases", required_argument, NULL, 'p'},
        {"pause-command", required_argument, NULL, 'P'},
        {"detect-zeroes", required_argument, NULL, 'z'},
        {"writethrough", no_argument, NULL, 'w'},
        {"no-punch", no_argument, NULL, 'n'},
        {"full-is-fine", no_argument, NULL, 'F'},
        {"seed", required_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };
    settings.seed = now_ns();
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (set_option(option, optarg))
            return false;
    if (argc - optind != 2)
        return false;
    settings.image_path = argv[optind];
    settings.shadow_path = argv[optind + 1];
    settings.open.open_child = scow_open_child_any;
    settings.open.flags |= SCOW_OPEN_WRITE;
    return true;
}

int main(int argc, char **argv)
{
    if (!get_options(argc, argv))
        return usage();
    int ret = scow_open(settings.image_path, &settings.open, &image);
    if (ret) {
        fprintf(stderr, "%s: %s: %s\n", settings.image_path, strerror(-ret), scow_error());
        return 1;
    }
    image_bytes = scow_size(image);
    bool good = scow_get_info(image, &info) == 0 && map_shadow() == 0 && run_all();
    ret = scow_close(image);
    if (ret) {
        fprintf(stderr, "%s: closing: %s: %s\n", settings.image_path, strerror(-ret), scow_error());
        good = false;
    }
    return good ? 0 : 1;
}
