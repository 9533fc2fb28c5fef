/* SPDX-License-Identifier: MIT */
/*
 * Random reads of an image from several threads, each with a queue of its own, compared byte for byte with a
 * raw file that holds the truth. Uses the public interface only.
 *
 * Sizes run from one sector to 2 MiB, buffers have any address, vectors have odd pieces, some of them empty,
 * some requests end at the end of the image, and the number in flight wanders up to the queue's depth. The
 * bytes around every buffer are checked too. One more thread uses scow_pread() with any offset and length.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
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
    DEPTH = 256,
    PIECES_MAX = 9,
    GAP_MAX = 96,
    FILL = 0xa7,
    FLIGHT_BYTES_MAX = 24 << 20,
};

struct settings {
    const char *image_path, *truth_path;
    struct scow_open_options open;
    uint32_t threads;
    double seconds;
    uint64_t ops_max; /* of each thread; 0: only the time counts */
    uint64_t seed;
};

static struct settings settings = {.open = SCOW_OPEN_OPTIONS_INIT, .threads = 4, .seconds = 0.7};
static struct scow_image *image;
static uint64_t image_bytes;
static const uint8_t *truth;
static int truth_fd;
static uint64_t deadline_ns;
static atomic_bool failed; /* written by any thread, ends all */

struct request {
    uint64_t off;
    size_t bytes;
    uint8_t *memory; /* gap, piece, gap, piece, …, gap */
    size_t memory_bytes;
    struct iovec iov[PIECES_MAX];
    int iov_count;
    bool busy;
};

struct worker {
    pthread_t thread;
    uint32_t index;
    uint64_t random_state;
    struct scow_queue *queue;
    struct request requests[DEPTH];
    uint32_t in_flight, in_flight_target;
    uint64_t flight_bytes;
    uint64_t done, done_bytes;
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

/* Compare one piece with the truth; false after a complaint. */
static bool piece_is_right(const struct worker *w, const uint8_t *got, uint64_t off, size_t bytes)
{
    if (memcmp(got, truth + off, bytes) == 0)
        return true;
    size_t i = 0;
    while (got[i] == truth[off + i])
        i++;
    complain(w, "wrong byte at guest offset %" PRIu64 ": 0x%02x, should be 0x%02x", off + i, got[i],
             truth[off + i]);
    return false;
}

static bool gap_is_intact(const struct worker *w, const struct request *r, const uint8_t *from,
                          const uint8_t *to)
{
    for (const uint8_t *p = from; p < to; p++) {
        if (*p != FILL) {
            complain(w, "a read of %zu bytes at %" PRIu64 " wrote outside its buffers", r->bytes, r->off);
            return false;
        }
    }
    return true;
}

static void check_request(const struct worker *w, const struct request *r)
{
    const uint8_t *at = r->memory;
    uint64_t off = r->off;
    for (int i = 0; i < r->iov_count; i++) {
        const uint8_t *base = r->iov[i].iov_base;
        if (!gap_is_intact(w, r, at, base) || !piece_is_right(w, base, off, r->iov[i].iov_len))
            return;
        at = base + r->iov[i].iov_len;
        off += r->iov[i].iov_len;
    }
    gap_is_intact(w, r, at, r->memory + r->memory_bytes);
}

static size_t choose_bytes(struct worker *w)
{
    static const uint64_t sectors_max[] = {16, 16, 16, 128, 128, 512, 4096};
    uint64_t kind = below(w, 100);
    size_t class = kind < 55 ? kind % 3 : kind < 85 ? 3 + kind % 2 : kind < 97 ? 5 : 6;
    return (size_t)(1 + below(w, sectors_max[class])) * SECTOR;
}

static void choose_range(struct worker *w, uint64_t *ret_off, size_t *ret_bytes)
{
    size_t bytes = choose_bytes(w);
    if (bytes > image_bytes)
        bytes = (size_t)image_bytes;
    uint64_t last = (image_bytes - bytes) / SECTOR;
    uint64_t off = below(w, last + 1) * SECTOR;
    uint64_t kind = below(w, 100);
    if (kind < 10) {
        /* Ends at the end of the image, whatever that is. */
        uint64_t start = last * SECTOR;
        off = start;
        bytes = (size_t)(image_bytes - start);
    } else if (kind < 25) {
        off = w->near_off + below(w, 64) * SECTOR;
    } else if (kind < 60) {
        /* Close to data, or a sparse image would be all holes. */
        off_t data = lseek(truth_fd, (off_t)off, SEEK_DATA);
        uint64_t back = below(w, 32) * SECTOR;
        if (data >= 0)
            off = (uint64_t)data / SECTOR * SECTOR;
        off = off > back ? off - back : off;
    }
    if (off + bytes > image_bytes)
        off = last * SECTOR;
    w->near_off = off;
    *ret_off = off;
    *ret_bytes = bytes;
}

/* Cut the buffer into pieces of any length, with gaps between them so that addresses are odd too. */
static void cut_pieces(struct worker *w, struct request *r)
{
    r->iov_count = below(w, 2) ? 1 : (int)(1 + below(w, PIECES_MAX));
    uint8_t *at = r->memory;
    size_t left = r->bytes;
    for (int i = 0; i < r->iov_count; i++) {
        size_t bytes = left;
        if (i + 1 < r->iov_count)
            bytes = below(w, 8) ? (size_t)below(w, left + 1) : 0;
        at += below(w, 4) ? below(w, GAP_MAX) : 0;
        r->iov[i] = (struct iovec){.iov_base = at, .iov_len = bytes};
        at += bytes;
        left -= bytes;
    }
}

static bool prepare(struct worker *w, struct request *r)
{
    choose_range(w, &r->off, &r->bytes);
    size_t room = r->bytes + (size_t)PIECES_MAX * GAP_MAX + 1;
    r->memory_bytes = (room + 4095) / 4096 * 4096;
    r->memory = aligned_alloc(4096, r->memory_bytes);
    if (!r->memory) {
        complain(w, "out of memory");
        return false;
    }
    memset(r->memory, FILL, r->memory_bytes);
    cut_pieces(w, r);
    return true;
}

static int submit(struct worker *w, struct request *r)
{
    if (r->iov_count == 1)
        return scow_queue_read(w->queue, r->off, r->iov[0].iov_base, r->bytes, r, 0);
    return scow_queue_readv(w->queue, r->off, r->iov, r->iov_count, r, 0);
}

/* A full queue has to say so. */
static void submit_beyond_depth(struct worker *w)
{
    uint8_t sector[SECTOR];
    int ret = scow_queue_read(w->queue, 0, sector, sizeof(sector), NULL, 0);
    if (ret != -EAGAIN)
        complain(w, "a submission beyond the depth returned %d, not -EAGAIN", ret);
}

static void fill_queue(struct worker *w)
{
    for (uint32_t i = 0; i < DEPTH && w->in_flight < w->in_flight_target; i++) {
        struct request *r = &w->requests[i];
        if (r->busy)
            continue;
        if (w->flight_bytes > FLIGHT_BYTES_MAX && w->in_flight)
            return;
        if (!prepare(w, r))
            return;
        int ret = submit(w, r);
        if (ret != 0) {
            complain(w, "submitting %zu bytes at %" PRIu64 ": %s: %s", r->bytes, r->off, strerror(-ret),
                     scow_error());
            free(r->memory);
            return;
        }
        r->busy = true;
        w->in_flight++;
        w->flight_bytes += r->bytes;
    }
    if (w->in_flight == DEPTH)
        submit_beyond_depth(w);
}

static void reap(struct worker *w, const struct scow_completion *c)
{
    struct request *r = c->user_data;
    if (r < w->requests || r >= w->requests + DEPTH || !r->busy) {
        complain(w, "a completion of something that was not submitted");
        return;
    }
    if (c->ret != 0)
        complain(w, "reading %zu bytes at %" PRIu64 ": %s: %s", r->bytes, r->off, strerror(-c->ret),
                 c->error ? c->error : "(no message)");
    else
        check_request(w, r);
    free(r->memory);
    r->busy = false;
    w->in_flight--;
    w->flight_bytes -= r->bytes;
    w->done++;
    w->done_bytes += r->bytes;
}

/* One poll; returns what scow_queue_poll() did. */
static int poll_once(struct worker *w, int min, int64_t timeout_ns)
{
    struct scow_completion completions[64];
    int max = 1 + (int)below(w, 64);
    if (min > max)
        min = max;
    int count = scow_queue_poll(w->queue, completions, min, max, timeout_ns);
    if (count < 0 || count > max) {
        complain(w, "poll returned %d: %s", count, scow_error());
        return -1;
    }
    for (int i = 0; i < count; i++)
        reap(w, &completions[i]);
    if (timeout_ns == SCOW_WAIT_FOREVER && count < min && w->in_flight)
        complain(w, "poll returned %d of at least %d completions while more are in flight", count, min);
    if (scow_queue_in_flight(w->queue) != w->in_flight)
        complain(w, "%" PRIu32 " in flight, the queue says %" PRIu32, w->in_flight,
                 scow_queue_in_flight(w->queue));
    return count;
}

/* The pattern of an event loop: poll until there is nothing, then sleep on the descriptor. */
static void wait_on_descriptor(struct worker *w)
{
    int count;
    bool any = false;
    while ((count = poll_once(w, 0, 0)) > 0)
        any = true;
    if (count < 0 || any || !w->in_flight)
        return;
    struct pollfd p = {.fd = scow_queue_completion_fd(w->queue), .events = POLLIN};
    int ready = poll(&p, 1, 10000);
    if (ready != 1) {
        complain(w, "the completion descriptor stayed silent for 10 s with %" PRIu32 " in flight",
                 w->in_flight);
        return;
    }
    uint64_t ignored;
    if (read(p.fd, &ignored, sizeof(ignored)) != sizeof(ignored) && errno != EAGAIN)
        complain(w, "the completion descriptor: %s", strerror(errno));
}

static void wait_some(struct worker *w)
{
    if (w->index == 1) {
        wait_on_descriptor(w);
    } else if (below(w, 3) == 0) {
        poll_once(w, 0, 0);
    } else {
        int min = 1 + (int)below(w, w->in_flight);
        poll_once(w, below(w, 2) ? 1 : min, below(w, 4) ? SCOW_WAIT_FOREVER : 100000);
    }
}

static void *run_worker(void *arg)
{
    struct worker *w = arg;
    static const uint32_t targets[] = {1, 2, 8, 32, 100, DEPTH, DEPTH};
    int ret = scow_queue_create(image, NULL, &w->queue);
    if (ret) {
        complain(w, "creating a queue: %s: %s", strerror(-ret), scow_error());
        return NULL;
    }
    if (w->index == 1 && (ret = scow_queue_enable_completion_fd(w->queue, 1)) != 0)
        complain(w, "enabling the completion descriptor: %s", strerror(-ret));
    for (uint64_t turn = 0; !finished(w); turn++) {
        if (turn % 64 == 0)
            w->in_flight_target = targets[below(w, sizeof(targets) / sizeof(targets[0]))];
        fill_queue(w);
        if (w->in_flight)
            wait_some(w);
    }
    while (w->in_flight && poll_once(w, 1, SCOW_WAIT_FOREVER) >= 0)
        ;
    struct scow_counters counters = SCOW_COUNTERS_INIT;
    ret = scow_queue_counters(w->queue, &counters);
    if (ret || counters.requests != w->done || counters.bytes != w->done_bytes)
        complain(w, "%" PRIu64 " requests, %" PRIu64 " bytes; the queue counted %" PRIu64 " and %" PRIu64,
                 w->done, w->done_bytes, counters.requests, counters.bytes);
    scow_queue_destroy(w->queue);
    return NULL;
}

static void *run_blocking(void *arg)
{
    struct worker *w = arg;
    enum { BYTES_MAX = 200000 };
    uint8_t *buf = malloc(BYTES_MAX);
    while (buf && image_bytes && !finished(w)) {
        uint64_t off = below(w, image_bytes);
        uint64_t room = image_bytes - off < BYTES_MAX ? image_bytes - off : BYTES_MAX;
        size_t bytes = (size_t)(1 + below(w, below(w, 3) ? (room < 5000 ? room : 5000) : room));
        memset(buf, FILL, bytes);
        int ret = scow_pread(image, buf, bytes, off);
        if (ret)
            complain(w, "scow_pread of %zu bytes at %" PRIu64 ": %s: %s", bytes, off, strerror(-ret),
                     scow_error());
        else
            piece_is_right(w, buf, off, bytes);
        w->done++;
        w->done_bytes += bytes;
        /* It is here for its own correctness, not to take the time of the queues. */
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
    free(buf);
    return NULL;
}

static int map_truth(void)
{
    struct stat st;
    truth_fd = open(settings.truth_path, O_RDONLY | O_CLOEXEC);
    if (truth_fd < 0 || fstat(truth_fd, &st)) {
        fprintf(stderr, "%s: %s\n", settings.truth_path, strerror(errno));
        return 1;
    }
    if ((uint64_t)st.st_size != image_bytes) {
        fprintf(stderr, "%s has %" PRIu64 " bytes, the image %" PRIu64 "\n", settings.truth_path,
                (uint64_t)st.st_size, image_bytes);
        return 1;
    }
    void *map =
        image_bytes ? mmap(NULL, image_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, truth_fd, 0) : NULL;
    if (map == MAP_FAILED) {
        fprintf(stderr, "%s: mmap: %s\n", settings.truth_path, strerror(errno));
        return 1;
    }
    truth = map;
    return 0;
}

static int run_all(void)
{
    /* The last one is the blocking one. */
    uint32_t count = settings.threads + 1;
    struct worker *workers = calloc(count, sizeof(*workers));
    if (!workers)
        return 1;
    deadline_ns = now_ns() + (uint64_t)(settings.seconds * 1e9);
    for (uint32_t i = 0; i < count; i++) {
        struct worker *w = &workers[i];
        w->index = i;
        w->random_state = settings.seed * 1000003 + i;
        if (pthread_create(&w->thread, NULL, i < settings.threads ? run_worker : run_blocking, w)) {
            fprintf(stderr, "cannot start a thread\n");
            exit(1);
        }
    }
    uint64_t done = 0, done_bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        done += workers[i].done;
        done_bytes += workers[i].done_bytes;
    }
    free(workers);
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_counters counters = SCOW_COUNTERS_INIT;
    if (scow_get_info(image, &info) || scow_counters(image, &counters))
        return 1;
    printf("%" PRIu64 " reads, %" PRIu64 " bytes, backend %s, %" PRIu32 " cache slices of %" PRIu32
           " bytes, %" PRIu64 " hits, %" PRIu64 " misses, %" PRIu64 " evictions, alignment %" PRIu32
           ", seed %" PRIu64 "\n",
           done, done_bytes, info.backend, info.cache_slices, info.slice_bytes, counters.hits,
           counters.misses, counters.slice_evictions, info.io_align, settings.seed);
    if (done == 0 && image_bytes) {
        fprintf(stderr, "nothing was read\n");
        return 1;
    }
    return atomic_load(&failed) ? 1 : 0;
}

static int usage(void)
{
    fprintf(stderr,
            "usage: random_reader [--format qcow2|raw] [--backend auto|io_uring|threads] [--buffered]\n"
            "  [--cache-bytes N] [--slice-bytes N] [--shards N] [--threads N] [--seconds S] [--ops N]\n"
            "  [--seed N] IMAGE TRUTH.raw\n");
    return 2;
}

static int set_option(int option, const char *value)
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
    case 't':
        settings.threads = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 's':
        settings.seconds = strtod(value, NULL);
        return 0;
    case 'o':
        settings.ops_max = strtoull(value, NULL, 0);
        return 0;
    case 'r':
        settings.seed = strtoull(value, NULL, 0);
        return 0;
    default:
        return -1;
    }
}

int main(int argc, char **argv)
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
        {"seed", required_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };
    settings.seed = now_ns();
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (set_option(option, optarg))
            return usage();
    if (argc - optind != 2)
        return usage();
    settings.image_path = argv[optind];
    settings.truth_path = argv[optind + 1];
    settings.open.open_child = scow_open_child_any;
    int ret = scow_open(settings.image_path, &settings.open, &image);
    if (ret) {
        fprintf(stderr, "%s: %s: %s\n", settings.image_path, strerror(-ret), scow_error());
        return 1;
    }
    image_bytes = scow_size(image);
    int code = map_truth() || run_all() ? 1 : 0;
    scow_close(image);
    return code;
}
