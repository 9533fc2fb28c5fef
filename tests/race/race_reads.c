/* SPDX-License-Identifier: MIT */
/*
 * Eight queues on four shards and a cache of sixteen slots, over a chain with every kind of cluster: random
 * reads, each compared byte by byte, while queues come and go with requests in flight, and other threads use
 * the blocking helpers and read the counters. For ThreadSanitizer and AddressSanitizer, and for itself.
 *
 *   race_reads [SECONDS [SEED]]      SCOW_TEST_SEED is the seed when none is given
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <shardcow.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/attributes.h"
#include "tests/unit/rig.h"

#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define QUEUES 8
#define SHARDS 4
#define SLOTS 16u
#define SLICE_BYTES 512u
#define DEPTH 32u
#define READ_BYTES_MAX (160 * KIB)

static const struct image_spec chain[] = {
    {.version = 3, .cluster_bits = 14, .refcount_order = 4, .extended_l2 = true, .virtual_bytes = 8 * MIB},
    {.version = 3, .cluster_bits = 12, .refcount_order = 4, .zstd = true, .virtual_bytes = 6 * MIB + 512},
    {.version = 2, .cluster_bits = 9, .refcount_order = 4, .virtual_bytes = 2 * MIB},
    {.raw = true, .cluster_bits = 16, .virtual_bytes = 7 * MIB},
};

static struct rig rig;
static uint8_t *expected; /* the whole guest; written before the threads start */
static uint64_t guest_bytes;
static _Atomic bool stop;
static _Atomic int failures;
static _Atomic uint64_t reads_done, queues_done;

static void fail(const char *what, const char *why)
{
    atomic_fetch_add(&failures, 1);
    atomic_store(&stop, true);
    fprintf(stderr, "race_reads: %s: %s\n", what, why ? why : "");
}

static void compare(const char *who, uint64_t off, uint64_t bytes, const uint8_t *got)
{
    if (!memcmp(got, expected + off, bytes))
        return;
    for (uint64_t i = 0; i < bytes; i++)
        if (got[i] != expected[off + i]) {
            fprintf(stderr, "guest offset 0x%" PRIx64 " of a read of %" PRIu64 " bytes at 0x%" PRIx64 "\n",
                    off + i, bytes, off);
            break;
        }
    fail(who, "wrong data");
}

/* ---- queues ---- */

struct slot_of_work {
    uint64_t off, bytes;
    uint8_t *buf;
    struct iovec iov[5];
    bool in_flight;
};

struct worker {
    uint64_t seed;
    struct slot_of_work work[DEPTH];
};

/* Where in the buffer: aligned, so that direct I/O fits, or not. */
static uint64_t random_skew(uint64_t *seed)
{
    return random_below(seed, 3) ? 0 : random_below(seed, 4096);
}

static int submit_vectors(struct scow_queue *q, struct worker *w, struct slot_of_work *s)
{
    uint64_t at = 0;
    int n = 0;

    while (n < 4 && at < s->bytes) {
        const uint64_t most = s->bytes - at;
        uint64_t len =
            random_below(&w->seed, 4) ? (1 + random_below(&w->seed, 8)) * 4096 : random_below(&w->seed, 900);

        len = MIN(len, most);
        s->iov[n++] = (struct iovec){s->buf + at, len};
        at += len;
    }
    s->iov[n++] = (struct iovec){s->buf + at, s->bytes - at};
    return scow_queue_readv(q, s->off, s->iov, n, s, 0);
}

static void submit_one(struct scow_queue *q, struct worker *w, struct slot_of_work *s, uint8_t *memory)
{
    const uint64_t most = random_below(&w->seed, 16) ? 24 * KIB : READ_BYTES_MAX;
    int r;

    s->off = random_below(&w->seed, guest_bytes / 512) * 512;
    s->bytes = (1 + random_below(&w->seed, most / 512)) * 512;
    s->bytes = MIN(s->bytes, guest_bytes - s->off);
    s->buf = memory + random_skew(&w->seed);
    memset(s->buf, 0xee, s->bytes);
    r = random_below(&w->seed, 3) ? scow_queue_read(q, s->off, s->buf, s->bytes, s, 0)
                                  : submit_vectors(q, w, s);
    if (r < 0)
        fail("submit", scow_error());
    s->in_flight = r == 0;
}

static int sleep_on(struct scow_queue *q)
{
    struct pollfd p = {.fd = scow_queue_completion_fd(q), .events = POLLIN};
    uint64_t n;

    if (poll(&p, 1, 30000) != 1) {
        fail("completion descriptor", "not signalled in 30 s");
        return -1;
    }
    (void)!read(p.fd, &n, sizeof n);
    return 0;
}

/* Returns completions taken. */
static int reap(struct scow_queue *q, struct worker *w, bool by_descriptor)
{
    struct scow_completion done[DEPTH];
    const int min = by_descriptor || random_below(&w->seed, 2) ? 0 : 1;
    const int n = scow_queue_poll(q, done, min, (int)(1 + random_below(&w->seed, DEPTH)), 30000000000);

    if (n < 0)
        fail("poll", scow_error());
    if (n == 0 && min && scow_queue_in_flight(q))
        fail("poll", "no completion in 30 s");
    for (int i = 0; i < n; i++) {
        struct slot_of_work *s = done[i].user_data;

        if (done[i].ret)
            fail("a request", done[i].error);
        else
            compare("a queue", s->off, s->bytes, s->buf);
        s->in_flight = false;
    }
    atomic_fetch_add(&reads_done, (uint64_t)MAX(n, 0));
    return n;
}

/* One queue from creation to destruction. */
static void use_queue(struct worker *w, uint8_t *memory, bool leave_in_flight)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;
    const bool by_descriptor = random_below(&w->seed, 3) == 0;
    struct scow_queue *q;

    o.depth = DEPTH;
    if (scow_queue_create(rig.image, &o, &q) < 0) {
        fail("queue", scow_error());
        return;
    }
    if (by_descriptor && scow_queue_enable_completion_fd(q, 1) < 0)
        fail("queue", scow_error());
    for (int round = 0; round < 60 && !atomic_load(&stop); round++) {
        for (uint32_t i = 0; i < DEPTH; i++)
            if (!w->work[i].in_flight && random_below(&w->seed, 4))
                submit_one(q, w, &w->work[i], memory + i * (READ_BYTES_MAX + 4096));
        while (reap(q, w, by_descriptor) > 0)
            if (random_below(&w->seed, 2) && !by_descriptor)
                break;
        if (by_descriptor && scow_queue_in_flight(q) && sleep_on(q) < 0)
            break;
    }
    while (!leave_in_flight && !atomic_load(&failures) && scow_queue_in_flight(q))
        if (reap(q, w, false) == 0)
            usleep(10);
    if (scow_queue_destroy(q) < 0)
        fail("destroy", scow_error());
    for (uint32_t i = 0; i < DEPTH; i++)
        w->work[i].in_flight = false;
    atomic_fetch_add(&queues_done, 1);
}

static void *queue_thread(void *arg)
{
    struct worker *w = arg;
    uint8_t *memory = aligned_alloc(4096, DEPTH * (READ_BYTES_MAX + 4096) + 8192);

    while (!atomic_load(&stop))
        use_queue(w, memory, random_below(&w->seed, 2));
    free(memory);
    return NULL;
}

/* ---- everybody else ---- */

static void *blocking_thread(void *arg)
{
    uint64_t seed = (uintptr_t)arg;
    uint8_t *buf = malloc(64 * KIB);

    while (!atomic_load(&stop)) {
        const uint64_t off = random_below(&seed, guest_bytes), room = MIN(guest_bytes - off, 64 * KIB);
        const uint64_t bytes = 1 + random_below(&seed, room);
        struct scow_extent e = {.size = sizeof e};

        if (scow_pread(rig.image, buf, bytes, off) < 0)
            fail("scow_pread", scow_error());
        else
            compare("scow_pread", off, bytes, buf);
        if (scow_get_extent(rig.image, off, guest_bytes - off, 0, &e) < 0)
            fail("scow_get_extent", scow_error());
        for (uint64_t i = 0; (e.flags & SCOW_EXTENT_ZERO) && i < MIN(e.bytes, 4096u); i++)
            if (expected[off + i])
                fail("scow_get_extent", "says zeros where there is data");
    }
    free(buf);
    return NULL;
}

static void *counting_thread(void *unused)
{
    uint64_t last = 0;

    (void)unused;
    while (!atomic_load(&stop)) {
        struct scow_counters c = SCOW_COUNTERS_INIT;
        struct scow_info info = SCOW_INFO_INIT;

        if (scow_counters(rig.image, &c) < 0 || scow_get_info(rig.image, &info) < 0)
            fail("counters", scow_error());
        if (c.requests < last)
            fail("counters", "run backwards");
        last = c.requests;
        usleep(1000);
    }
    return NULL;
}

/* ---- */

static int run(enum scow_backend backend, int seconds, uint64_t seed)
{
    struct scow_open_options o = rig_options();
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct scow_info info = SCOW_INFO_INIT;
    static struct worker workers[QUEUES];
    pthread_t threads[QUEUES + 3];
    int n = 0;

    o.backend = backend;
    o.shards = SHARDS;
    o.slice_bytes = SLICE_BYTES;
    o.cache_bytes = SLOTS * (SLICE_BYTES + 64u);
    rig_open(&rig, &o);
    scow_get_info(rig.image, &info);
    atomic_store(&stop, false);
    atomic_store(&reads_done, 0);
    atomic_store(&queues_done, 0);
    for (uint64_t i = 0; i < QUEUES; i++) {
        memset(&workers[i], 0, sizeof workers[i]);
        workers[i].seed = seed * 1000 + i + 1;
        pthread_create(&threads[n++], NULL, queue_thread, &workers[i]);
    }
    pthread_create(&threads[n++], NULL, blocking_thread, (void *)(uintptr_t)(seed + 77));
    pthread_create(&threads[n++], NULL, blocking_thread, (void *)(uintptr_t)(seed + 78));
    pthread_create(&threads[n++], NULL, counting_thread, NULL);
    for (int ms = 0; ms < seconds * 1000 && !atomic_load(&stop); ms += 20)
        usleep(20000);
    atomic_store(&stop, true);
    while (n)
        pthread_join(threads[--n], NULL);
    scow_counters(rig.image, &c);
    scow_close(rig.image);
    rig.image = NULL;
    printf("%s: %" PRIu32 " slots, %" PRIu64 " reads, %" PRIu64 " queues, %" PRIu64 " misses, %" PRIu64
           " evictions, %" PRIu64 " coalesced, %" PRIu64 " inflated, %" PRIu64 " starved\n",
           info.backend, info.cache_slices, atomic_load(&reads_done), atomic_load(&queues_done), c.misses,
           c.slice_evictions, c.slice_coalesced, c.inflates, c.starved);
    if (!atomic_load(&failures) && (!c.slice_evictions || !c.slice_coalesced || !c.inflates || !c.backing))
        fail("the run", "it did not reach what it is for");
    return atomic_load(&failures) != 0;
}

int main(int argc, char **argv)
{
    const int seconds = argc > 1 ? atoi(argv[1]) : 6;
    const char *given = argc > 2 ? argv[2] : getenv("SCOW_TEST_SEED");
    const uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    int bad;

    printf("race_reads: seed %" PRIu64 "\n", seed);
    fflush(stdout);
    rig_build(&rig, chain, 4, seed);
    guest_bytes = chain[0].virtual_bytes;
    expected = malloc(guest_bytes);
    builder_expect(rig.layers, rig.count, 0, guest_bytes, expected);
    bad = run(SCOW_BACKEND_AUTO, (seconds + 1) / 2, seed);
    bad = bad || run(SCOW_BACKEND_THREADS, (seconds + 1) / 2, seed);
    rig_free(&rig);
    free(expected);
    return bad;
}
