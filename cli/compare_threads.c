/* SPDX-License-Identifier: MIT */
#include "cli/compare_threads.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/chunks.h"
#include "cli/cpus.h"
#include "cli/sectors.h"

#define CHUNK_BYTES (1u << 20)
#define SLOTS 4 /* chunks in flight per thread */

struct compare {
    struct scow_image *images[2];
    struct chunks chunks;
    struct progress *progress;
    pthread_mutex_t lock; /* of result */
    struct compare_result *result;
};

/* A chunk that is being read from both images. */
struct slot {
    struct chunk chunk;
    char *bufs[2];
    unsigned reads; /* not completed yet */
    bool busy;
    bool failed;
};

struct worker {
    struct compare *compare;
    pthread_t thread;
    struct scow_queue *queues[2];
    struct slot slots[SLOTS];
    unsigned busy;
};

/* The lowest offset wins, whichever thread comes first; nothing beyond it is read any more. */
static void set_result(struct compare *c, enum compare_kind kind, uint64_t off, unsigned image,
                       const char *error)
{
    struct compare_result *r = c->result;

    pthread_mutex_lock(&c->lock);
    if (r->kind == COMPARE_SAME || off < r->off) {
        r->kind = kind;
        r->off = off;
        r->image = image;
        snprintf(r->error, sizeof r->error, "%s", error);
    }
    pthread_mutex_unlock(&c->lock);
    chunks_stop_at(&c->chunks, off);
}

static void finish_slot(struct worker *w, struct slot *slot)
{
    uint64_t same = 0;

    slot->busy = false;
    w->busy--;
    if (slot->failed)
        return;
    progress_add(w->compare->progress, slot->chunk.bytes);
    if (!memcmp(slot->bufs[0], slot->bufs[1], slot->chunk.bytes))
        return;
    while (!memcmp(slot->bufs[0] + same, slot->bufs[1] + same, SECTOR_BYTES))
        same += SECTOR_BYTES;
    set_result(w->compare, COMPARE_MISMATCH, slot->chunk.off + same, 0, "");
}

static void read_failed(struct worker *w, struct slot *slot, unsigned image, int err, const char *error)
{
    slot->failed = true;
    set_result(w->compare, COMPARE_READ_FAILED, slot->chunk.off, image,
               error && *error ? error : strerror(-err));
}

/* Starts the read of one image; what lies beyond its end is zeros. */
static void start_read(struct worker *w, struct slot *slot, unsigned image)
{
    const uint64_t size = scow_size(w->compare->images[image]);
    const uint64_t off = slot->chunk.off;
    uint64_t bytes = 0;

    if (off < size)
        bytes = size - off < slot->chunk.bytes ? size - off : slot->chunk.bytes;
    memset(slot->bufs[image] + bytes, 0, CHUNK_BYTES - bytes);
    if (!bytes)
        return;
    const int err = scow_queue_read(w->queues[image], off, slot->bufs[image], bytes, slot, 0);
    if (err)
        read_failed(w, slot, image, err, scow_error());
    else
        slot->reads++;
}

static void fill_slots(struct worker *w)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &w->slots[i];
        if (slot->busy)
            continue;
        if (chunks_next(&w->compare->chunks, &slot->chunk) != 1)
            return;
        slot->busy = true;
        slot->failed = false;
        slot->reads = 0;
        w->busy++;
        start_read(w, slot, 0);
        start_read(w, slot, 1);
        if (!slot->reads)
            finish_slot(w, slot);
    }
}

/* Waits for one completion of a queue that has requests in flight; the slot is done with its second. */
static int reap(struct worker *w, unsigned image)
{
    struct scow_completion done[SLOTS];
    int count;

    if (!scow_queue_in_flight(w->queues[image]))
        return 0;
    count = scow_queue_poll(w->queues[image], done, 1, SLOTS, SCOW_WAIT_FOREVER);
    for (int i = 0; i < count; i++) {
        struct slot *slot = done[i].user_data;
        if (done[i].ret)
            read_failed(w, slot, image, done[i].ret, done[i].error);
        if (!--slot->reads)
            finish_slot(w, slot);
    }
    return count < 0 ? count : 0;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    int err = 0;

    fill_slots(w);
    while (w->busy && !err) {
        err = reap(w, 0);
        if (!err)
            err = reap(w, 1);
        if (!err)
            fill_slots(w);
    }
    if (err)
        set_result(w->compare, COMPARE_FAILED, 0, 0, *scow_error() ? scow_error() : strerror(-err));
    return NULL;
}

static int worker_init(struct worker *w, struct compare *c)
{
    int err;

    w->compare = c;
    for (unsigned i = 0; i < SLOTS; i++)
        for (unsigned image = 0; image < 2; image++) {
            w->slots[i].bufs[image] = aligned_alloc(CHUNK_ALIGN, CHUNK_BYTES);
            if (!w->slots[i].bufs[image]) {
                set_result(c, COMPARE_FAILED, 0, 0, "out of memory");
                return -ENOMEM;
            }
        }
    for (unsigned image = 0; image < 2; image++) {
        err = scow_queue_create(c->images[image], NULL, &w->queues[image]);
        if (err) {
            set_result(c, COMPARE_FAILED, 0, 0, scow_error());
            return err;
        }
    }
    return 0;
}

static void worker_destroy(struct worker *w)
{
    scow_queue_destroy(w->queues[0]);
    scow_queue_destroy(w->queues[1]);
    for (unsigned i = 0; i < SLOTS; i++) {
        free(w->slots[i].bufs[0]);
        free(w->slots[i].bufs[1]);
    }
}

static void run_workers(struct compare *c, struct worker *workers, uint32_t threads)
{
    uint32_t inited = 0, started = 0;

    while (inited < threads && !worker_init(&workers[inited], c))
        inited++;
    if (inited == threads)
        while (started < threads) {
            const int err = pthread_create(&workers[started].thread, NULL, work, &workers[started]);
            if (err) {
                set_result(c, COMPARE_FAILED, 0, 0, strerror(err));
                break;
            }
            started++;
        }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    for (uint32_t i = 0; i < threads; i++)
        worker_destroy(&workers[i]);
}

void compare_run(struct scow_image *images[2], uint64_t end, uint32_t threads, struct progress *progress,
                 struct compare_result *ret_result)
{
    struct compare c = {
        .images = {images[0], images[1]},
        .chunks = {.images = {images[0], images[1]},
                   .chunk_bytes = CHUNK_BYTES,
                   .end = end,
                   .progress = progress},
        .progress = progress,
        .result = ret_result,
    };
    static struct worker workers[CPUS_MAX];

    *ret_result = (struct compare_result){.kind = COMPARE_SAME};
    memset(workers, 0, sizeof workers);
    pthread_mutex_init(&c.lock, NULL);
    chunks_init(&c.chunks);
    run_workers(&c, workers, threads);
    if (c.chunks.err)
        set_result(&c, COMPARE_MAP_FAILED, c.chunks.next_off, c.chunks.failed_image, c.chunks.error);
    chunks_destroy(&c.chunks);
    pthread_mutex_destroy(&c.lock);
}
