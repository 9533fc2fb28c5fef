/* SPDX-License-Identifier: MIT */
/*
 * Reads of 4 KiB that hit, on the null backend: what is left is the engine's own code, submit to completion.
 * Prints nanoseconds of CPU time per read and thread; perf/hit_path.py counts its instructions.
 *
 *   hit_path IMAGE READS THREADS
 *
 * IMAGE is qcow2 with every cluster allocated. Each thread has a queue of its own and keeps 64 reads in
 * flight.
 */
#include <inttypes.h>
#include <pthread.h>
#include <shardcow.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define DEPTH 64
#define BLOCK 4096u
#define THREADS_MAX 64

struct worker {
    _Alignas(128) struct scow_image *image; /* a worker writes its seed with every read */
    uint64_t reads;
    uint64_t seed;
    double ns_per_read;
    int failed;
};

static uint8_t buffer[BLOCK] __attribute__((aligned(4096)));

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static double thread_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static int submit(struct worker *w, struct scow_queue *q, uint64_t blocks)
{
    const uint64_t off = next_random(&w->seed) % blocks * BLOCK;

    return scow_queue_read(q, off, buffer, BLOCK, NULL, 0);
}

/* Every slice once, so that the reads that are measured hit. */
static int warm(struct worker *w)
{
    for (uint64_t off = 0; off + BLOCK <= scow_size(w->image); off += 1u << 20)
        if (scow_pread(w->image, buffer, BLOCK, off) < 0)
            return -1;
    return 0;
}

static void *run(void *arg)
{
    struct worker *w = arg;
    const uint64_t blocks = scow_size(w->image) / BLOCK;
    struct scow_completion done[DEPTH];
    struct scow_queue *q;
    uint64_t submitted = 0, completed = 0;

    if (scow_queue_create(w->image, NULL, &q) < 0) {
        w->failed = 1;
        return NULL;
    }
    const double start = thread_ns();
    while (completed < w->reads && !w->failed) {
        while (submitted < w->reads && submitted - completed < DEPTH && submit(w, q, blocks) == 0)
            submitted++;
        const int n = scow_queue_poll(q, done, 1, DEPTH, SCOW_WAIT_FOREVER);
        for (int i = 0; i < n; i++)
            w->failed |= done[i].ret != 0;
        w->failed |= n < 0;
        completed += n > 0 ? (uint64_t)n : 0;
    }
    w->ns_per_read = (thread_ns() - start) / (double)(w->reads ? w->reads : 1);
    scow_queue_destroy(q);
    return NULL;
}

int main(int argc, char **argv)
{
    struct scow_open_options options = SCOW_OPEN_OPTIONS_INIT;
    static struct worker workers[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    struct scow_image *image;
    double sum = 0;
    int count, failed = 0;

    if (argc != 4 || (count = atoi(argv[3])) < 1 || count > THREADS_MAX) {
        fprintf(stderr, "usage: hit_path IMAGE READS THREADS\n");
        return 2;
    }
    options.backend = SCOW_BACKEND_NULL;
    if (scow_open(argv[1], &options, &image) < 0) {
        fprintf(stderr, "hit_path: %s\n", scow_error());
        return 1;
    }
    for (int i = 0; i < count; i++)
        workers[i] =
            (struct worker){.image = image, .reads = strtoull(argv[2], NULL, 0), .seed = (uint64_t)i + 1};
    failed = warm(&workers[0]) < 0;
    for (int i = 0; i < count; i++)
        failed |= pthread_create(&threads[i], NULL, run, &workers[i]) != 0;
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        failed |= workers[i].failed;
        sum += workers[i].ns_per_read;
    }
    struct scow_counters c = SCOW_COUNTERS_INIT;
    scow_counters(image, &c);
    scow_close(image);
    printf("%d %.1f %" PRIu64 " %" PRIu64 "\n", count, sum / count, c.hits, c.misses);
    return failed;
}
