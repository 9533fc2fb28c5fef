/* SPDX-License-Identifier: MIT */
/* A virtqueue with its requests, as its worker serves it. Only the worker touches it once it runs. */
#ifndef EXPORTS_BLK_QUEUE_H
#define EXPORTS_BLK_QUEUE_H

#include "exports/blk_request.h"

struct blk_queue {
    struct virtqueue ring;
    struct blk_device *device;
    struct scow_queue *engine; /* the worker's */
    struct blk_request *requests, *free;
    uint32_t request_count;
    struct blk_request *stalled, **stalled_end; /* the engine's queue was full: in order */
    bool has_rings, started, enabled;           /* as the front end says */
    _Atomic bool reported;                      /* that it is broken; any thread reads it */
    uint64_t report_ns;                         /* when a failed request was last told of */
    uint32_t unreported;                        /* since then */
    struct blk_counts counts;
};

int blk_queue_init(struct blk_queue *q, uint32_t index, struct blk_device *device);
void blk_queue_destroy(struct blk_queue *q);

/* Requests for so many descriptors. 0 or -ENOMEM. Nothing is in flight. */
int blk_queue_set_size(struct blk_queue *q, uint32_t num);

static inline bool blk_queue_runs(const struct blk_queue *q)
{
    return q->started && q->enabled && q->has_rings;
}

/* Whether it could take a request if there is one: engine and requests have room. */
static inline bool blk_queue_can_serve(const struct blk_queue *q)
{
    return blk_queue_runs(q) && !q->stalled && q->free;
}

/* Takes at most max requests and submits them. True when there was any. */
bool blk_queue_serve(struct blk_queue *q, uint32_t max, uint64_t now_ns);

/* Interrupts the guest, where it wants that. */
static inline void blk_queue_notify(struct blk_queue *q)
{
    if (virtqueue_notify(&q->ring))
        blk_count(&q->counts.interrupts, 1);
}

/* Again what found the engine's queue full. */
void blk_queue_retry(struct blk_queue *q, uint64_t now_ns);

/* A call of the engine for r has ended. */
void blk_queue_completed(struct blk_request *r, const struct scow_completion *c, uint64_t now_ns);

#endif
