/* SPDX-License-Identifier: MIT */
/*
 * Eight queues on four shards and a cache of sixteen slots or fewer: reads, writes of single sectors and of
 * many, zeroes, discards and flushes in the same clusters, each sector stamped and each read compared, while
 * queues come and go with requests in flight, the disk grows, and other threads use the blocking calls and
 * read the counters. Then everybody stops; the image is checked and every sector must be what was written
 * last; and on it goes, on images of several kinds, with both backends. For the sanitizers, and for itself.
 *
 *   race_writes [SECONDS [SEED [NUMBER]]]   SCOW_TEST_SEED is the seed when none is given; NUMBER: of the one
 *                                           kind to run, from 0
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <shardcow.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/race/stamp_worker.h"
#include "tests/unit/scratch.h"

#define KIB (1u << 10)
#define MIB (1u << 20)
#define QUEUES 8u
#define OWNERS (QUEUES + 1u) /* and the blocking thread */
#define SHARDS 4u
#define PHASES 2

struct kind {
    const char *name;
    enum scow_backend backend;
    enum scow_io_mode io_mode;
    uint32_t cluster_bytes, slice_bytes, slots, unit_sectors;
    uint32_t start_bytes, end_bytes;
    bool extended_l2, backing, data_file, data_file_raw;
};

static const struct kind kinds[] = {
    {.name = "clusters of 4 KiB",
     .cluster_bytes = 4 * KIB,
     .slice_bytes = 512,
     .slots = 16,
     .unit_sectors = 1,
     .start_bytes = 8 * MIB,
     .end_bytes = 14 * MIB},
    {.name = "clusters of 4 KiB, threads",
     .backend = SCOW_BACKEND_THREADS,
     .cluster_bytes = 4 * KIB,
     .slice_bytes = 512,
     .slots = 16,
     .unit_sectors = 3,
     .start_bytes = 8 * MIB,
     .end_bytes = 14 * MIB},
    {.name = "extended L2",
     .cluster_bytes = 16 * KIB,
     .slice_bytes = 1024,
     .slots = 16,
     .unit_sectors = 5,
     .start_bytes = 16 * MIB,
     .end_bytes = 24 * MIB,
     .extended_l2 = true},
    {.name = "over a backing file, threads",
     .backend = SCOW_BACKEND_THREADS,
     .cluster_bytes = 4 * KIB,
     .slice_bytes = 4096,
     .slots = 8,
     .unit_sectors = 2,
     .start_bytes = 20 * MIB,
     .end_bytes = 28 * MIB,
     .backing = true},
    {.name = "over a backing file, extended L2",
     .cluster_bytes = 64 * KIB,
     .slice_bytes = 512,
     .slots = 4,
     .unit_sectors = 7,
     .start_bytes = 16 * MIB,
     .end_bytes = 24 * MIB,
     .backing = true,
     .extended_l2 = true},
    {.name = "clusters of 512, buffered",
     .io_mode = SCOW_IO_BUFFERED,
     .cluster_bytes = 512,
     .slice_bytes = 512,
     .slots = 16,
     .unit_sectors = 1,
     .start_bytes = 3 * MIB,
     .end_bytes = 5 * MIB,
     .backing = true},
    {.name = "data file, threads",
     .backend = SCOW_BACKEND_THREADS,
     .cluster_bytes = 4 * KIB,
     .slice_bytes = 2048,
     .slots = 8,
     .unit_sectors = 4,
     .start_bytes = 10 * MIB,
     .end_bytes = 14 * MIB,
     .data_file = true},
    {.name = "raw data file",
     .cluster_bytes = 16 * KIB,
     .slice_bytes = 512,
     .slots = 8,
     .unit_sectors = 9,
     .start_bytes = 16 * MIB,
     .end_bytes = 24 * MIB,
     .data_file = true,
     .data_file_raw = true},
};

static struct stamps stamps;
static struct scow_image *image;
static uint64_t grow_seed;

/* ---- images ---- */

/* A raw file of stamps below the first half of the disk. */
static void make_base(const char *path, uint32_t bytes)
{
    const struct stamp_range all = {0, bytes / STAMP_SECTOR_BYTES};
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    void *buf = malloc(bytes);

    stamps_issue(&stamps, all, false);
    stamps_ack(&stamps, all, false);
    stamps_fill(&stamps, all, buf);
    if (fd < 0 || pwrite(fd, buf, bytes, 0) != (ssize_t)bytes)
        stamps_fail(&stamps, "%s: cannot be written", path);
    close(fd);
    free(buf);
}

static void make_image(const struct kind *k)
{
    struct scow_create_options o = SCOW_CREATE_OPTIONS_INIT;

    o.virtual_size = k->start_bytes;
    o.cluster_bytes = k->cluster_bytes;
    o.extended_l2 = k->extended_l2;
    if (k->backing) {
        make_base(scratch("base.raw"), k->start_bytes / 2);
        o.backing_name = "base.raw";
        o.backing_format = "raw";
    }
    if (k->data_file) {
        (void)scratch("data.raw"); /* so that it goes at the end */
        o.data_file_name = "data.raw";
        o.data_file_raw = k->data_file_raw;
    }
    if (scow_create(scratch("image.qcow2"), &o) < 0)
        stamps_fail(&stamps, "create: %s", scow_error());
}

static int open_image(const struct kind *k, uint32_t flags)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;

    o.flags = flags;
    o.backend = k->backend;
    o.io_mode = k->io_mode;
    o.shards = SHARDS;
    o.slice_bytes = k->slice_bytes;
    o.cache_bytes = k->slots * (k->slice_bytes + 64u);
    o.commit_interval_ms = 100;
    o.preallocation_bytes = 4 * MIB;
    o.open_child = scow_open_child_any;
    if (scow_open(scratch("image.qcow2"), &o, &image) < 0) {
        stamps_fail(&stamps, "open: %s", scow_error());
        return -1;
    }
    return 0;
}

/* ---- everybody else ---- */

static void *growing_thread(void *arg)
{
    const uint64_t step = *(const uint64_t *)arg;
    const uint32_t limit = stamps.layout.sector_count;

    while (!atomic_load(&stamps.stop)) {
        const uint64_t now = atomic_load(&stamps.sectors_now);
        const uint64_t next = now + step / STAMP_SECTOR_BYTES * (1 + stamps_random(&grow_seed, 16));

        usleep((useconds_t)stamps_random(&grow_seed, 100000));
        if (next > limit)
            continue;
        if (scow_resize(image, next * STAMP_SECTOR_BYTES, 0) < 0)
            stamps_fail(&stamps, "resize: %s", scow_error());
        else if (scow_size(image) != next * STAMP_SECTOR_BYTES)
            stamps_fail(&stamps, "resize: the size is %" PRIu64, scow_size(image));
        else
            atomic_store(&stamps.sectors_now, (uint32_t)next);
    }
    return NULL;
}

static void *counting_thread(void *unused)
{
    uint64_t last = 0;

    (void)unused;
    while (!atomic_load(&stamps.stop)) {
        struct scow_counters c = SCOW_COUNTERS_INIT;
        struct scow_info info = SCOW_INFO_INIT;

        if (scow_counters(image, &c) < 0 || scow_get_info(image, &info) < 0)
            stamps_fail(&stamps, "counters: %s", scow_error());
        if (c.requests < last)
            stamps_fail(&stamps, "counters run backwards: %" PRIu64 " after %" PRIu64, c.requests, last);
        last = c.requests;
        usleep(1000);
    }
    return NULL;
}

/* ---- what is left ---- */

static void print_problem(void *ctx, enum scow_problem_kind kind, const char *text)
{
    int *printed = ctx;

    if ((*printed)++ < 10)
        fprintf(stderr, "  check: %s: %s\n", kind == SCOW_PROBLEM_LEAK ? "leak" : "error", text);
}

static void check_image(const char *when)
{
    struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result c = SCOW_CHECK_RESULT_INIT;
    int printed = 0;

    o.problem = print_problem;
    o.ctx = &printed;
    if (scow_check(image, &o, &c) < 0)
        stamps_fail(&stamps, "check %s: %s", when, scow_error());
    else if (c.corruptions || c.leaks || c.check_errors)
        stamps_fail(&stamps, "check %s: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", when,
                    c.corruptions, c.leaks, c.check_errors);
}

static void verify_all(const char *when)
{
    static uint32_t floor[2048];
    static uint8_t buf[sizeof floor / sizeof *floor * STAMP_SECTOR_BYTES];
    const uint32_t now = atomic_load(&stamps.sectors_now);

    for (uint32_t at = 0; at < now && !atomic_load(&stamps.failures); at += ARRAY_COUNT(floor)) {
        const struct stamp_range range = {at, MIN(now - at, (uint32_t)ARRAY_COUNT(floor))};

        stamps_floor(&stamps, range, floor);
        if (scow_pread(image, buf, range.count * (size_t)STAMP_SECTOR_BYTES,
                       (uint64_t)at * STAMP_SECTOR_BYTES))
            stamps_fail(&stamps, "read %s: %s", when, scow_error());
        else
            stamps_check(&stamps, range, floor, buf, when);
    }
}

/* ---- */

static void prepare(struct stamp_worker *workers, uint32_t request_sectors, uint64_t seed)
{
    for (uint32_t i = 0; i < OWNERS; i++) {
        memset(&workers[i], 0, sizeof workers[i]);
        workers[i].stamps = &stamps;
        workers[i].image = image;
        workers[i].owner = i;
        workers[i].seed = seed * 1000 + i + 1;
        workers[i].sectors_max = request_sectors;
        stamp_worker_prepare(&workers[i]);
    }
}

static void run_phase(const struct kind *k, struct stamp_worker *workers, uint32_t ms)
{
    uint64_t step = k->cluster_bytes;
    pthread_t threads[OWNERS + 2];
    uint32_t n = 0;

    atomic_store(&stamps.stop, atomic_load(&stamps.failures) != 0);
    for (; n < QUEUES; n++)
        pthread_create(&threads[n], NULL, stamp_worker_run, &workers[n]);
    pthread_create(&threads[n++], NULL, stamp_worker_run_blocking, &workers[QUEUES]);
    pthread_create(&threads[n++], NULL, growing_thread, &step);
    pthread_create(&threads[n++], NULL, counting_thread, NULL);
    for (uint32_t past = 0; past < ms && !atomic_load(&stamps.stop); past += 10)
        usleep(10000);
    atomic_store(&stamps.stop, true);
    while (n)
        pthread_join(threads[--n], NULL);
}

static void report(const struct kind *k, const struct stamp_worker *workers)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct scow_info info = SCOW_INFO_INIT;
    uint64_t done[TASK_FLUSH + 1] = {0}, queues = 0;

    for (uint32_t i = 0; i < OWNERS; i++) {
        for (int t = 0; t <= TASK_FLUSH; t++)
            done[t] += workers[i].done[t];
        queues += workers[i].queues;
    }
    scow_counters(image, &c);
    scow_get_info(image, &info);
    printf("%s (%s): %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " zeroes, %" PRIu64
           " discards, %" PRIu64 " flushes, %" PRIu64 " queues, %" PRIu64 " in place, %" PRIu64
           " at owners, %" PRIu64 " commits, %" PRIu64 " evictions, %" PRIu64 " clusters, %" PRIu64
           " punched, size %" PRIu64 "\n",
           k->name, info.backend, done[TASK_READ], done[TASK_WRITE], done[TASK_ZERO], done[TASK_DISCARD],
           done[TASK_FLUSH], queues, c.writes_in_place, c.writes_at_shard, c.commits, c.slice_evictions,
           c.clusters_allocated, c.freed_punched, scow_size(image));
    fflush(stdout);
    if (!c.writes_in_place || !c.writes_at_shard || !c.commits || !c.slice_evictions || !done[TASK_DISCARD] ||
        !queues)
        stamps_fail(&stamps, "%s: the run did not reach what it is for", k->name);
}

static int run(const struct kind *k, uint32_t ms, uint64_t seed)
{
    const struct stamp_layout layout = {
        .sector_count = k->end_bytes / STAMP_SECTOR_BYTES,
        .owners = OWNERS,
        .unit_sectors = k->unit_sectors,
        .stripe_sectors = 4 * k->cluster_bytes / STAMP_SECTOR_BYTES,
        .granule_sectors = k->cluster_bytes / (k->extended_l2 ? 32 : 1) / STAMP_SECTOR_BYTES,
        .seed = (uint32_t)seed,
    };
    static struct stamp_worker workers[OWNERS];
    int bad;

    stamps_create(&stamps, &layout, NULL);
    atomic_store(&stamps.sectors_now, k->start_bytes / STAMP_SECTOR_BYTES);
    grow_seed = seed + 99;
    make_image(k);
    if (open_image(k, SCOW_OPEN_WRITE) < 0)
        return 1;
    prepare(workers, 4 * k->cluster_bytes / STAMP_SECTOR_BYTES + 3, seed);
    for (int phase = 0; phase < PHASES && !atomic_load(&stamps.failures); phase++) {
        run_phase(k, workers, ms / PHASES);
        if (atomic_load(&stamps.failures))
            return 1; /* queues may be left: there is no way to close */
        verify_all("when all is quiet");
        if (scow_quiesce(image) < 0)
            stamps_fail(&stamps, "quiesce: %s", scow_error());
        check_image("after scow_quiesce()");
    }
    report(k, workers);
    if (scow_close(image) < 0)
        stamps_fail(&stamps, "close: %s", scow_error());
    if (open_image(k, 0) == 0) {
        verify_all("after closing");
        check_image("after closing");
        scow_close(image);
    }
    for (uint32_t i = 0; i < OWNERS; i++)
        stamp_worker_free(&workers[i]);
    bad = atomic_load(&stamps.failures) != 0;
    if (bad)
        fprintf(stderr, "race_writes: %s: failed\n", k->name);
    stamps_close(&stamps);
    return bad;
}

int main(int argc, char **argv)
{
    const double seconds = argc > 1 ? atof(argv[1]) : 10;
    const char *given = argc > 2 ? argv[2] : getenv("SCOW_TEST_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    const size_t only = argc > 3 ? strtoul(argv[3], NULL, 0) : ARRAY_COUNT(kinds);
    int bad = 0;

    printf("race_writes: seed %" PRIu64 "\n", seed);
    fflush(stdout);
    for (size_t i = 0; i < ARRAY_COUNT(kinds) && !bad; i++) {
        const double share = only < ARRAY_COUNT(kinds) ? seconds : seconds / ARRAY_COUNT(kinds);

        if (only >= ARRAY_COUNT(kinds) || i == only)
            bad = run(&kinds[i], (uint32_t)(share * 1000), seed + i);
    }
    return bad;
}
