/* SPDX-License-Identifier: MIT */
/*
 * Does a reader suffer from a neighbour that flushes? One thread reads 4 KiB at random offsets; in every
 * other phase a second thread writes 4 KiB and flushes, in a loop, each write to a 64 KiB of its own that was
 * never written.
 *
 *   read_latency qcow2|raw FILE READ_BYTES DEPTH SECONDS ROUNDS
 *
 * FILE's first READ_BYTES are read and must have data, the rest is written. A raw file goes the same way
 * without metadata: what then is left of the difference is the machine's. Prints one line per round: reads'
 * p99 in ns while the neighbour idles, the same while it writes, its pairs of write and flush per second.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <shardcow.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCK 4096u
#define STEP 65536u
#define DEPTH_MAX 256u
#define SAMPLES_MAX (4u << 20)

struct writer {
    struct scow_image *image;
    uint64_t next_off; /* the main thread's between phases */
    uint64_t pairs;
    atomic_bool stop;
    int err;
};

struct bench {
    struct scow_image *image;
    struct scow_queue *queue;
    struct writer writer;
    uint64_t read_bytes, phase_ns, seed;
    uint32_t depth, sample_count;
    uint32_t *samples;
    uint64_t start_ns[DEPTH_MAX]; /* of the requests in flight */
};

static _Alignas(4096) uint8_t read_blocks[DEPTH_MAX][BLOCK];
static _Alignas(4096) uint8_t write_block[BLOCK];

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* ---- the writer ---- */

static int wait_for(struct scow_queue *q, int submitted)
{
    struct scow_completion done;
    int n;

    if (submitted < 0)
        return submitted;
    n = scow_queue_poll(q, &done, 1, 1, SCOW_WAIT_FOREVER);
    return n == 1 ? done.ret : n < 0 ? n : -EIO;
}

static int write_and_flush(struct writer *w, struct scow_queue *q)
{
    int err;

    if (w->next_off + BLOCK > scow_size(w->image))
        return -ENOSPC;
    err = wait_for(q, scow_queue_write(q, w->next_off, write_block, BLOCK, NULL, 0));
    if (err == 0)
        err = wait_for(q, scow_queue_flush(q, NULL, 0));
    w->next_off += STEP;
    w->pairs++;
    return err;
}

static void *write_until_stopped(void *arg)
{
    struct writer *w = arg;
    struct scow_queue *q = NULL;

    w->err = scow_queue_create(w->image, NULL, &q);
    while (w->err == 0 && !atomic_load_explicit(&w->stop, memory_order_relaxed))
        w->err = write_and_flush(w, q);
    scow_queue_destroy(q);
    return NULL;
}

/* ---- the reader ---- */

static int submit(struct bench *b, uint64_t slot)
{
    const uint64_t off = next_random(&b->seed) % (b->read_bytes / BLOCK) * BLOCK;

    b->start_ns[slot] = now_ns();
    return scow_queue_read(b->queue, off, read_blocks[slot], BLOCK, &b->start_ns[slot], 0);
}

static void take_sample(struct bench *b, uint64_t slot)
{
    const uint64_t ns = now_ns() - b->start_ns[slot];

    if (b->sample_count < SAMPLES_MAX)
        b->samples[b->sample_count++] = (uint32_t)(ns < UINT32_MAX ? ns : UINT32_MAX);
}

/* Keeps depth reads in flight until the time is over. */
static int read_phase(struct bench *b)
{
    struct scow_completion done[DEPTH_MAX];
    const uint64_t end = now_ns() + b->phase_ns;
    int err = 0;

    b->sample_count = 0;
    for (uint64_t slot = 0; slot < b->depth && err == 0; slot++)
        err = submit(b, slot);
    while (err == 0 && scow_queue_in_flight(b->queue)) {
        const int n = scow_queue_poll(b->queue, done, 1, DEPTH_MAX, SCOW_WAIT_FOREVER);

        err = n < 0 ? n : 0;
        for (int i = 0; i < n && err == 0; i++) {
            const uint64_t slot = (uint64_t)((uint64_t *)done[i].user_data - b->start_ns);

            take_sample(b, slot);
            err = done[i].ret;
            if (err == 0 && b->start_ns[slot] < end)
                err = submit(b, slot);
        }
    }
    return err;
}

static int compare(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static uint32_t p99(struct bench *b)
{
    qsort(b->samples, b->sample_count, sizeof *b->samples, compare);
    return b->sample_count ? b->samples[(uint64_t)(b->sample_count - 1) * 99 / 100] : 0;
}

/* ---- phases ---- */

static int busy_phase(struct bench *b, double *ret_rate)
{
    struct writer *w = &b->writer;
    const uint64_t start = now_ns();
    pthread_t thread;
    int err;

    w->pairs = 0;
    atomic_store(&w->stop, false);
    err = -pthread_create(&thread, NULL, write_until_stopped, w);
    if (err < 0)
        return err;
    err = read_phase(b);
    atomic_store(&w->stop, true);
    pthread_join(thread, NULL);
    *ret_rate = (double)w->pairs * 1e9 / (double)(now_ns() - start);
    return err ? err : w->err;
}

static int measure(struct bench *b, uint32_t rounds)
{
    int err = read_phase(b); /* fills the cache; not counted */

    for (uint32_t i = 0; i < rounds && err == 0; i++) {
        uint32_t idle;
        double rate;

        err = read_phase(b);
        idle = p99(b);
        if (err == 0)
            err = busy_phase(b, &rate);
        if (err == 0)
            printf("%" PRIu32 " %" PRIu32 " %.0f\n", idle, p99(b), rate);
    }
    return err;
}

static int open_and_measure(struct bench *b, const char *path, const char *format, uint32_t rounds)
{
    struct scow_open_options options = SCOW_OPEN_OPTIONS_INIT;
    int err, close_err;

    options.flags = SCOW_OPEN_WRITE;
    options.format = strcmp(format, "raw") == 0 ? SCOW_FORMAT_RAW : SCOW_FORMAT_QCOW2;
    err = scow_open(path, &options, &b->image);
    if (err < 0)
        return err;
    b->writer.image = b->image;
    err = scow_queue_create(b->image, NULL, &b->queue);
    if (err == 0)
        err = measure(b, rounds);
    scow_queue_destroy(b->queue);
    close_err = scow_close(b->image);
    return err ? err : close_err;
}

int main(int argc, char **argv)
{
    struct bench *b = calloc(1, sizeof *b);
    int err = -ENOMEM;

    if (argc != 7) {
        fprintf(stderr, "usage: read_latency qcow2|raw FILE READ_BYTES DEPTH SECONDS ROUNDS\n");
        free(b);
        return 2;
    }
    if (b)
        b->samples = calloc(SAMPLES_MAX, sizeof *b->samples);
    if (b && b->samples) {
        b->seed = 1;
        b->read_bytes = b->writer.next_off = strtoull(argv[3], NULL, 0);
        b->depth = (uint32_t)strtoul(argv[4], NULL, 0);
        b->phase_ns = (uint64_t)(strtod(argv[5], NULL) * 1e9);
        err = b->read_bytes < BLOCK || !b->depth || b->depth > DEPTH_MAX
                  ? -EINVAL
                  : open_and_measure(b, argv[2], argv[1], (uint32_t)strtoul(argv[6], NULL, 0));
        free(b->samples);
    }
    if (err < 0)
        fprintf(stderr, "read_latency: %s: %s %s\n", argv[2], strerror(-err),
                err == -ENOSPC ? "(a larger FILE has more to write first)" : scow_error());
    free(b);
    return err < 0;
}
