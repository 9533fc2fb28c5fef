/* SPDX-License-Identifier: MIT */
/*
 * A read that hits allocates nothing and locks nothing: counted by standing in for the C library's functions.
 * The count is of the whole process, so a thread of the library that a hit woke would show as well.
 */
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <shardcow.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/attributes.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"

#define READS 100000
#define BLOCK 4096u
#define DEPTH 64

/* ---- the stand-ins ---- */

static _Atomic bool counting;
static _Atomic uint64_t allocations, locks;

static void count_allocation(void)
{
    if (atomic_load_explicit(&counting, memory_order_relaxed))
        atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
}

static void count_lock(void)
{
    if (atomic_load_explicit(&counting, memory_order_relaxed))
        atomic_fetch_add_explicit(&locks, 1, memory_order_relaxed);
}

/* dlsym() itself allocates: from here until it has answered. Never given back. */
static char early[65536] __attribute__((aligned(64)));
static size_t early_used;
static _Thread_local bool resolving;

static void *early_alloc(size_t bytes)
{
    void *p = early + early_used;

    early_used += (bytes + 63) / 64 * 64;
    return early_used <= sizeof early ? p : NULL;
}

static bool is_early(const void *p)
{
    return (const char *)p >= early && (const char *)p < early + sizeof early;
}

static void *next(const char *name)
{
    void *p;

    resolving = true;
    p = dlsym(RTLD_NEXT, name);
    resolving = false;
    return p;
}

#define REAL(type, name, ...)                                                                                \
    static type (*real)(__VA_ARGS__);                                                                        \
    if (!real)                                                                                               \
    real = (type(*)(__VA_ARGS__))next(#name)

#pragma GCC visibility push(default) /* or the library would go on calling the real ones */

void *malloc(size_t bytes)
{
    if (resolving)
        return early_alloc(bytes);
    REAL(void *, malloc, size_t);
    count_allocation();
    return real(bytes);
}

void *calloc(size_t n, size_t bytes)
{
    if (resolving)
        return early_alloc(n * bytes);
    REAL(void *, calloc, size_t, size_t);
    count_allocation();
    return real(n, bytes);
}

void *realloc(void *p, size_t bytes)
{
    REAL(void *, realloc, void *, size_t);
    count_allocation();
    return real(p, bytes);
}

void free(void *p)
{
    if (!p || is_early(p))
        return;
    REAL(void, free, void *);
    count_allocation();
    real(p);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    REAL(void *, aligned_alloc, size_t, size_t);
    count_allocation();
    return real(align, bytes);
}

int posix_memalign(void **ret, size_t align, size_t bytes)
{
    REAL(int, posix_memalign, void **, size_t, size_t);
    count_allocation();
    return real(ret, align, bytes);
}

void *mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off)
{
    REAL(void *, mmap, void *, size_t, int, int, int, off_t);
    count_allocation();
    return real(at, bytes, prot, flags, fd, off);
}

int munmap(void *at, size_t bytes)
{
    REAL(int, munmap, void *, size_t);
    count_allocation();
    return real(at, bytes);
}

#define STAND_IN_FOR_LOCK(name, type)                                                                        \
    int name(type *lock)                                                                                     \
    {                                                                                                        \
        REAL(int, name, type *);                                                                             \
        count_lock();                                                                                        \
        return real(lock);                                                                                   \
    }

STAND_IN_FOR_LOCK(pthread_mutex_lock, pthread_mutex_t)
STAND_IN_FOR_LOCK(pthread_mutex_trylock, pthread_mutex_t)
STAND_IN_FOR_LOCK(pthread_rwlock_rdlock, pthread_rwlock_t)
STAND_IN_FOR_LOCK(pthread_rwlock_wrlock, pthread_rwlock_t)
STAND_IN_FOR_LOCK(pthread_rwlock_tryrdlock, pthread_rwlock_t)
STAND_IN_FOR_LOCK(pthread_rwlock_trywrlock, pthread_rwlock_t)
STAND_IN_FOR_LOCK(pthread_spin_lock, pthread_spinlock_t)
STAND_IN_FOR_LOCK(pthread_spin_trylock, pthread_spinlock_t)
STAND_IN_FOR_LOCK(pthread_cond_signal, pthread_cond_t)
STAND_IN_FOR_LOCK(pthread_cond_broadcast, pthread_cond_t)

#pragma GCC visibility pop

struct window {
    uint64_t allocations, locks;
};

static void window_open(void)
{
    atomic_store(&allocations, 0);
    atomic_store(&locks, 0);
    atomic_store(&counting, true);
}

static struct window window_close(void)
{
    atomic_store(&counting, false);
    return (struct window){atomic_load(&allocations), atomic_load(&locks)};
}

/* ---- the reads ---- */

#define CLUSTERS 512u
#define CLUSTER 65536u

static uint8_t buffers[DEPTH][BLOCK] __attribute__((aligned(4096)));

static void die(const char *what)
{
    fprintf(stderr, "count_calls: %s: %s\n", what, scow_error());
    exit(1);
}

/* Data, holes and zero clusters in turn. */
static struct image_builder *build(const char *path)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = CLUSTERS * CLUSTER};
    struct image_builder *b = builder_new(&spec);

    for (uint64_t c = 0; c < CLUSTERS; c++) {
        if (c % 4 == 1)
            builder_zero(b, c, c % 8 == 1);
        else if (c % 4 != 3)
            builder_data(b, c);
    }
    builder_write(b, path);
    return b;
}

/* reads reads, DEPTH at a time. Returns those that failed. */
static uint64_t read_blocks(struct scow_queue *q, uint64_t reads, uint64_t *seed)
{
    uint64_t submitted = 0, completed = 0, failed = 0;

    while (completed < reads) {
        struct scow_completion done[DEPTH];
        int n;

        while (submitted < reads && submitted - completed < DEPTH) {
            const uint64_t off = random_below(seed, CLUSTERS * (uint64_t)CLUSTER / BLOCK) * BLOCK;

            if (scow_queue_read(q, off, buffers[submitted % DEPTH], BLOCK, NULL, 0) < 0)
                return reads;
            submitted++;
        }
        n = scow_queue_poll(q, done, 1, DEPTH, SCOW_WAIT_FOREVER);
        if (n <= 0)
            return reads;
        for (int i = 0; i < n; i++)
            failed += done[i].ret != 0;
        completed += (uint64_t)n;
    }
    return failed;
}

/* The pool's threads, which warming used, take a moment to lie down. */
static void wait_until_quiet(void)
{
    struct window w;

    do {
        window_open();
        usleep(30000);
        w = window_close();
    } while (w.allocations || w.locks);
}

static bool check_backend(const char *path, struct image_builder *b, enum scow_backend backend)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_counters before = SCOW_COUNTERS_INIT, after = SCOW_COUNTERS_INIT;
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_image *image;
    struct scow_queue *q;
    struct window hits, others;
    uint64_t seed = 1, failed;
    bool good;

    o.backend = backend;
    if (scow_open(path, &o, &image) < 0 || scow_queue_create(image, NULL, &q) < 0)
        die("open");
    scow_get_info(image, &info);
    for (uint64_t off = 0; off < CLUSTERS * (uint64_t)CLUSTER; off += CLUSTER) {
        uint8_t expected[BLOCK];

        builder_expect(&b, 1, off, BLOCK, expected);
        if (scow_pread(image, buffers[0], BLOCK, off) < 0 || memcmp(expected, buffers[0], BLOCK))
            die("warming");
    }
    if (read_blocks(q, 1000, &seed)) /* the queue's own first times: pages, the ring's thread */
        die("warming the queue");
    scow_queue_counters(q, &before);
    wait_until_quiet();
    window_open();
    failed = read_blocks(q, READS, &seed);
    hits = window_close();
    scow_queue_counters(q, &after);

    window_open();
    failed += scow_pread(image, buffers[0], BLOCK - 1, 1) != 0;
    others = window_close();

    printf("%s: %d reads, %" PRIu64 " hits, %" PRIu64 " misses, %" PRIu64 " of zeros: %" PRIu64
           " allocations, %" PRIu64 " locks; one scow_pread: %" PRIu64 " and %" PRIu64 "\n",
           info.backend, READS, after.hits - before.hits, after.misses - before.misses,
           after.zeros - before.zeros, hits.allocations, hits.locks, others.allocations, others.locks);
    good = !failed && after.hits - before.hits == READS && after.misses == before.misses &&
           after.zeros - before.zeros > READS / 4 && hits.allocations == 0 && hits.locks == 0;
    /* An unaligned blocking read takes a lock and a buffer. */
    if (!others.locks || !others.allocations) {
        fprintf(stderr, "count_calls: a blocking read did neither: nothing is being counted\n");
        good = false;
    }
    scow_queue_destroy(q);
    scow_close(image);
    return good;
}

static bool has_io_uring(const char *path)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_image *image;
    const bool has = (o.backend = SCOW_BACKEND_IO_URING, scow_open(path, &o, &image) == 0);

    if (has)
        scow_close(image);
    return has;
}

int main(void)
{
    const char *path = scratch("image");
    struct image_builder *b = build(path);
    bool good = check_backend(path, b, SCOW_BACKEND_NULL);

    if (has_io_uring(path))
        good &= check_backend(path, b, SCOW_BACKEND_IO_URING);
    else
        printf("io_uring: not available here\n"); /* the thread pool hands over under a lock */
    builder_free(b);
    return !good;
}
