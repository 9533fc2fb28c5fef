/* SPDX-License-Identifier: MIT */
/*
 * blkio_client: load for a vhost-user-blk server, by libblkio: no guest, whose driver would be measured too.
 *
 * A thread per virtqueue, each with memory of its own, mapped by the server. What it prints is JSON.
 * perf/vhost.py builds and runs it; flushes are requests like others, in the queue's depth, but not counted
 * as operations.
 */
#include <blkio.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define QUEUES_MAX 16
#define DEPTH_MAX 256
/* Latencies by powers of two of nanoseconds, each in 64 parts: within 1.6 %. */
#define PARTS_BITS 6
#define PARTS (1u << PARTS_BITS)
#define BUCKETS ((65 - PARTS_BITS) * PARTS)

static struct {
    const char *socket;
    uint64_t bs, step, span, count, seed;
    double seconds, warmup;
    uint32_t queues, depth, flush_every;
    int server_pid;
    bool random, write, once;
} opt = {.bs = 4096, .queues = 1, .depth = 32, .seconds = 1, .seed = 1, .random = true};

struct slot {
    uint64_t started;
    uint8_t *buf;
    bool is_flush;
};

struct worker {
    pthread_t thread;
    uint32_t number;
    struct blkioq *queue;
    struct blkio_mem_region memory;
    struct slot slots[DEPTH_MAX];
    struct slot *idle[DEPTH_MAX];
    uint32_t idle_count, since_flush;
    uint64_t random, next, limit; /* next: how many were begun; limit: 0 is none */
    uint64_t ops, flushes, latest;
    uint64_t *histogram, *flush_histogram;
};

static struct worker workers[QUEUES_MAX];
static pthread_barrier_t barrier;
static atomic_bool stop, counting;
static uint64_t position_count; /* of requests, a step apart */

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "blkio_client: %s: %s\n", what, blkio_get_error_msg());
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- latencies ---- */

static uint32_t bucket_of(uint64_t ns)
{
    if (ns < PARTS)
        return (uint32_t)ns;
    const uint32_t log = 63 - (uint32_t)__builtin_clzll(ns);

    return (log - PARTS_BITS + 1) * PARTS + (uint32_t)(ns >> (log - PARTS_BITS)) % PARTS;
}

/* The lower end of a bucket. */
static uint64_t bucket_ns(uint32_t bucket)
{
    const uint32_t octave = bucket / PARTS, part = bucket % PARTS;

    return octave ? (uint64_t)(PARTS + part) << (octave - 1) : part;
}

/* Of the operations, or of the flushes, of all queues. */
static double percentile_us(bool flush, double share)
{
    static uint64_t sums[BUCKETS];
    uint64_t total = 0, sum = 0;

    memset(sums, 0, sizeof sums);
    for (uint32_t i = 0; i < opt.queues; i++)
        for (uint32_t b = 0; b < BUCKETS; b++) {
            const uint64_t n = (flush ? workers[i].flush_histogram : workers[i].histogram)[b];

            sums[b] += n;
            total += n;
        }
    for (uint32_t b = 0; b < BUCKETS && total; b++) {
        sum += sums[b];
        if ((double)sum >= share * (double)total)
            return (double)bucket_ns(b) / 1e3;
    }
    return 0;
}

/* ---- requests ---- */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Where the worker's n-th request goes. Each place once: a walk whose step has no factor in common with their
 * number. In order: each worker through a part of its own. */
static uint64_t position(struct worker *w, uint64_t n)
{
    const uint64_t share = position_count / opt.queues;

    if (opt.random && opt.once)
        return (n * opt.queues + w->number) * 2654435761u % position_count;
    if (opt.random)
        return mix(w->random++) % position_count;
    return w->number * share + n % share;
}

static void submit(struct worker *w)
{
    struct slot *s = w->idle[--w->idle_count];
    uint64_t off;

    s->started = now();
    s->is_flush = opt.flush_every && w->since_flush == opt.flush_every;
    if (s->is_flush) {
        w->since_flush = 0;
        blkioq_flush(w->queue, s, 0);
        return;
    }
    off = position(w, w->next++) * opt.step;
    w->since_flush++;
    if (opt.write) {
        *(uint64_t *)(void *)s->buf = off + 1;
        blkioq_write(w->queue, off, s->buf, opt.bs, s, 0);
    } else {
        blkioq_read(w->queue, off, s->buf, opt.bs, s, 0);
    }
}

/* At least one completion. */
static void reap(struct worker *w)
{
    struct blkio_completion done[DEPTH_MAX];
    const int n = blkioq_do_io(w->queue, done, 1, (int)(opt.depth - w->idle_count), NULL);
    const bool count = atomic_load_explicit(&counting, memory_order_relaxed);
    const uint64_t end = now();

    if (n < 0)
        die("do_io");
    for (int i = 0; i < n; i++) {
        struct slot *s = done[i].user_data;

        if (done[i].ret) {
            fprintf(stderr, "blkio_client: a request failed: %s\n", strerror(-done[i].ret));
            exit(1);
        }
        w->idle[w->idle_count++] = s;
        if (!count)
            continue;
        (s->is_flush ? w->flush_histogram : w->histogram)[bucket_of(end - s->started)]++;
        *(s->is_flush ? &w->flushes : &w->ops) += 1;
    }
    w->latest = end;
}

static void *work(void *arg)
{
    struct worker *w = arg;

    w->random = mix(opt.seed + w->number) & ~0xffffffffull;
    pthread_barrier_wait(&barrier);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        while (w->idle_count && (!w->limit || w->next < w->limit))
            submit(w);
        if (w->idle_count == opt.depth)
            break;
        reap(w);
    }
    /* The last write's flush too, where each has one. */
    if (opt.flush_every == 1 && w->since_flush == 1 && w->idle_count)
        submit(w);
    while (w->idle_count < opt.depth)
        reap(w);
    return NULL;
}

/* ---- beginning and end ---- */

static const char usage[] =
    "blkio_client [OPTIONS] SOCKET\n"
    "  --rw randread|randwrite|read|write   --bs BYTES (4096)   --queues N (1)   --depth N (32), of each queue\n"
    "  --seconds S (1)      or  --count N requests in all; --once: each place once, in random order\n"
    "  --warmup S (0)       not counted\n"
    "  --step BYTES (bs)    between places   --span BYTES (the disk)   of the disk that is used\n"
    "  --flush-every N      a flush behind every N requests of a queue\n"
    "  --server-pid PID     whose CPU time to report   --seed N (1)\n";

static double number(const char *text)
{
    char *end;
    const double n = strtod(text, &end);

    if (!*text || *end || n < 0) {
        fprintf(stderr, "not a number: %s\n", text);
        exit(2);
    }
    return n;
}

static void set_mode(const char *mode)
{
    opt.random = strncmp(mode, "rand", 4) == 0;
    mode += opt.random ? 4 : 0;
    opt.write = strcmp(mode, "write") == 0;
    if (!opt.write && strcmp(mode, "read") != 0) {
        fputs(usage, stderr);
        exit(2);
    }
}

static void parse(int argc, char **argv)
{
    static const struct option longs[] = {
        {"rw", 1, 0, 'r'},          {"bs", 1, 0, 'b'},
        {"queues", 1, 0, 'q'},      {"depth", 1, 0, 'd'},
        {"seconds", 1, 0, 's'},     {"count", 1, 0, 'c'},
        {"once", 0, 0, 'o'},        {"warmup", 1, 0, 'w'},
        {"step", 1, 0, 'S'},        {"span", 1, 0, 'p'},
        {"flush-every", 1, 0, 'f'}, {"server-pid", 1, 0, 'P'},
        {"seed", 1, 0, 'x'},        {0},
    };
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        const double n = optarg && c != 'r' ? number(optarg) : 0;

        if (c == 'r')
            set_mode(optarg);
        else if (c == 'b')
            opt.bs = (uint64_t)n;
        else if (c == 'q')
            opt.queues = (uint32_t)n;
        else if (c == 'd')
            opt.depth = (uint32_t)n;
        else if (c == 's')
            opt.seconds = n;
        else if (c == 'c')
            opt.count = (uint64_t)n;
        else if (c == 'o')
            opt.once = true;
        else if (c == 'w')
            opt.warmup = n;
        else if (c == 'S')
            opt.step = (uint64_t)n;
        else if (c == 'p')
            opt.span = (uint64_t)n;
        else if (c == 'f')
            opt.flush_every = (uint32_t)n;
        else if (c == 'P')
            opt.server_pid = (int)n;
        else if (c == 'x')
            opt.seed = (uint64_t)n;
        else
            optind = argc;
    }
    if (argc - optind != 1 || !opt.queues || opt.queues > QUEUES_MAX || !opt.depth || opt.depth > DEPTH_MAX) {
        fputs(usage, stderr);
        exit(2);
    }
    opt.socket = argv[optind];
    if (!opt.step)
        opt.step = opt.bs;
}

static struct blkio *connect_disk(void)
{
    struct blkio *b;
    uint64_t capacity;

    if (blkio_create("virtio-blk-vhost-user", &b) || blkio_set_str(b, "path", opt.socket) || blkio_connect(b))
        die("connecting");
    if (blkio_set_int(b, "num-queues", (int)opt.queues) || blkio_get_uint64(b, "capacity", &capacity) ||
        blkio_start(b))
        die("starting");
    if (!opt.span || opt.span > capacity)
        opt.span = capacity;
    position_count = opt.span / opt.step;
    if (position_count < opt.queues || opt.bs > opt.step) {
        fprintf(stderr, "blkio_client: %" PRIu64 " bytes are not enough\n", opt.span);
        exit(1);
    }
    if (opt.once && (!opt.count || opt.count > position_count))
        opt.count = position_count;
    return b;
}

static void prepare(struct blkio *b, struct worker *w, uint32_t i)
{
    const size_t page = 4096, slot_bytes = (opt.bs + page - 1) / page * page;

    w->number = i;
    w->queue = blkio_get_queue(b, (int)i);
    w->histogram = calloc(BUCKETS, sizeof *w->histogram);
    w->flush_histogram = calloc(BUCKETS, sizeof *w->flush_histogram);
    if (!w->queue || !w->histogram || !w->flush_histogram ||
        blkio_alloc_mem_region(b, &w->memory, slot_bytes * opt.depth) || blkio_map_mem_region(b, &w->memory))
        die("memory");
    for (size_t at = 0; at < slot_bytes * opt.depth; at += 8)
        *(uint64_t *)(void *)((uint8_t *)w->memory.addr + at) = mix(opt.seed + at);
    for (uint32_t s = 0; s < opt.depth; s++) {
        w->slots[s].buf = (uint8_t *)w->memory.addr + s * slot_bytes;
        w->idle[w->idle_count++] = &w->slots[s];
    }
    if (opt.count)
        w->limit = opt.count / opt.queues + (i < opt.count % opt.queues);
}

/* User and system time of a process, 0 without one. */
static double server_seconds(void)
{
    char path[64], text[1024];
    unsigned long user, system;
    const char *rest;
    FILE *f;

    if (!opt.server_pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", opt.server_pid);
    f = fopen(path, "r");
    if (!f || !fgets(text, sizeof text, f))
        return 0;
    fclose(f);
    /* Behind the name, which may hold anything. */
    rest = strrchr(text, ')');
    if (!rest ||
        sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        return 0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static double own_seconds(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void sleep_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    nanosleep(&t, NULL);
}

static void report(double seconds, double server, double own)
{
    uint64_t ops = 0, flushes = 0;

    for (uint32_t i = 0; i < opt.queues; i++) {
        ops += workers[i].ops;
        flushes += workers[i].flushes;
    }
    const double each = ops ? 1e6 / (double)ops : 0;

    printf("{\"queues\": %u, \"depth\": %u, \"bs\": %" PRIu64 ", \"seed\": %" PRIu64 ", \"ops\": %" PRIu64
           ", \"flushes\": %" PRIu64 ", \"seconds\": %.6f, \"iops\": %.1f, \"bytes-per-second\": %.0f, "
           "\"p50-us\": %.2f, \"p99-us\": %.2f, \"flush-p50-us\": %.2f, \"flush-p99-us\": %.2f, "
           "\"server-cpu-seconds\": %.2f, \"server-cpu-us-per-op\": %.3f, \"client-cpu-us-per-op\": %.3f}\n",
           opt.queues, opt.depth, opt.bs, opt.seed, ops, flushes, seconds, (double)ops / seconds,
           (double)(ops * opt.bs) / seconds, percentile_us(false, 0.5), percentile_us(false, 0.99),
           percentile_us(true, 0.5), percentile_us(true, 0.99), server, server * each, own * each);
}

int main(int argc, char **argv)
{
    uint64_t start, end = 0;
    double server, own;
    struct blkio *b;

    parse(argc, argv);
    b = connect_disk();
    pthread_barrier_init(&barrier, NULL, opt.queues + 1);
    atomic_store(&counting, opt.warmup == 0);
    for (uint32_t i = 0; i < opt.queues; i++) {
        prepare(b, &workers[i], i);
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            die("a thread");
    }
    server = server_seconds();
    pthread_barrier_wait(&barrier);
    if (opt.warmup > 0) {
        sleep_for(opt.warmup);
        server = server_seconds();
        atomic_store(&counting, true);
    }
    own = own_seconds();
    start = now();
    if (!opt.count) {
        sleep_for(opt.seconds);
        atomic_store(&counting, false);
        end = now();
        server = server_seconds() - server;
        own = own_seconds() - own;
        atomic_store(&stop, true);
    }
    for (uint32_t i = 0; i < opt.queues; i++) {
        pthread_join(workers[i].thread, NULL);
        if (opt.count && workers[i].latest > end)
            end = workers[i].latest;
    }
    if (opt.count) {
        server = server_seconds() - server;
        own = own_seconds() - own;
    }
    report((double)(end - start) / 1e9, server, own);
    for (uint32_t i = 0; i < opt.queues; i++) {
        blkio_unmap_mem_region(b, &workers[i].memory);
        blkio_free_mem_region(b, &workers[i].memory);
    }
    blkio_destroy(&b);
    return 0;
}
