/* SPDX-License-Identifier: MIT */
#include "exports/blk_queue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Requests that fail could fill a log: one line in so long. */
#define REPORT_NS 1000000000ull

int blk_queue_init(struct blk_queue *q, uint32_t index, struct blk_device *device)
{
    memset(q, 0, sizeof *q);
    q->device = device;
    q->stalled_end = &q->stalled;
    return virtqueue_init(&q->ring, index);
}

void blk_queue_destroy(struct blk_queue *q)
{
    virtqueue_destroy(&q->ring);
    free(q->requests);
    q->requests = NULL;
}

int blk_queue_set_size(struct blk_queue *q, uint32_t num)
{
    if (num > q->request_count) {
        struct blk_request *requests = calloc(num, sizeof *requests);

        if (!requests)
            return -ENOMEM;
        free(q->requests);
        q->requests = requests;
        q->request_count = num;
        q->free = NULL;
        for (uint32_t i = num; i-- > 0;) {
            requests[i].queue = q;
            requests[i].next = q->free;
            q->free = &requests[i];
        }
    }
    q->ring.num = num;
    return 0;
}

/* ---- the end of a request ---- */

static void report(struct blk_queue *q, const struct blk_request *r)
{
    char text[300], more[48] = "";
    struct timespec now;
    uint64_t now_ns;

    if (r->guests_fault) /* its own business */
        return;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    now_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    if (q->report_ns && now_ns - q->report_ns < REPORT_NS) {
        q->unreported++;
        return;
    }
    if (q->unreported)
        snprintf(more, sizeof more, " (%u more before)", q->unreported);
    snprintf(text, sizeof text, "queue %u: %.200s%s", q->ring.index,
             r->error_text ? r->error_text : strerror(-r->error), more);
    q->device->log(q->device->log_ctx, text);
    q->report_ns = now_ns;
    q->unreported = 0;
}

/* Of the disk, by a request that has succeeded. */
static uint64_t disk_bytes(const struct blk_request *r)
{
    uint64_t sectors = 0;

    if (r->kind == BLK_READ || r->kind == BLK_WRITE)
        return r->data_bytes;
    for (uint32_t i = 0; i < r->segment_count; i++)
        sectors += r->segments[i].num_sectors;
    return sectors * BLK_SECTOR;
}

static void push(struct blk_queue *q, struct blk_request *r, uint64_t now_ns)
{
    virtqueue_push(&q->ring, &r->chain, blk_request_written(r));
    blk_count(&q->counts.requests[r->kind], 1);
    if (r->error) {
        blk_count(&q->counts.errors[r->kind], 1);
        report(q, r);
    } else {
        blk_count(&q->counts.bytes[r->kind], disk_bytes(r));
    }
    if (q->device->stats && r->start_ns) /* not what was taken while the ring was being stopped */
        blk_count(&q->counts.latency[r->kind][blk_latency_step(now_ns - r->start_ns)], 1);
    r->next = q->free;
    q->free = r;
}

void blk_queue_completed(struct blk_request *r, const struct scow_completion *c, uint64_t now_ns)
{
    if (blk_request_completed(r, c->ret, c->error))
        push(r->queue, r, now_ns);
}

/* ---- the beginning ---- */

static void stall(struct blk_queue *q, struct blk_request *r)
{
    r->next = NULL;
    *q->stalled_end = r;
    q->stalled_end = &r->next;
}

static void submit(struct blk_queue *q, struct blk_request *r, uint64_t now_ns)
{
    switch (blk_request_submit(r, q->device, q->engine)) {
    case BLK_WAITS:
        break;
    case BLK_FULL:
        stall(q, r);
        break;
    case BLK_DONE:
        push(q, r, now_ns);
        break;
    }
}

void blk_queue_retry(struct blk_queue *q, uint64_t now_ns)
{
    struct blk_request *r = q->stalled;

    q->stalled = NULL;
    q->stalled_end = &q->stalled;
    while (r) {
        struct blk_request *const next = r->next;

        submit(q, r, now_ns);
        r = next;
    }
}

/* Nothing is taken from it any more, until the front end starts it anew. */
static void report_broken(struct blk_queue *q)
{
    const uint64_t one = 1;
    char text[256];

    if (q->reported)
        return;
    q->reported = true;
    snprintf(text, sizeof text, "queue %u is broken by the guest: %s", q->ring.index, q->ring.broken);
    q->device->log(q->device->log_ctx, text);
    if (q->ring.err_fd >= 0)
        (void)!write(q->ring.err_fd, &one, sizeof one);
}

bool blk_queue_serve(struct blk_queue *q, uint32_t max, uint64_t now_ns)
{
    uint32_t n = 0;

    while (n < max && !q->stalled && q->free) {
        struct blk_request *const r = q->free;
        const int got = virtqueue_pop(&q->ring, &r->chain);

        if (got <= 0)
            break;
        q->free = r->next;
        r->start_ns = now_ns;
        n++;
        if (!blk_request_begin(r)) {
            q->ring.broken = "a request without a place for its status";
            virtqueue_push(&q->ring, &r->chain, 0);
            r->next = q->free;
            q->free = r;
            break;
        }
        submit(q, r, now_ns);
    }
    if (q->ring.broken)
        report_broken(q);
    return n;
}
