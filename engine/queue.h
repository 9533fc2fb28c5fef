/* SPDX-License-Identifier: MIT */
/*
 * A queue: the requests of one submitting thread and everything that only this thread touches. Its loop has
 * no thread of the library's: scow_queue_poll() turns it.
 */
#ifndef ENGINE_QUEUE_H
#define ENGINE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/epoch.h"
#include "base/list.h"
#include "base/probe.h"
#include "base/spsc.h"
#include "engine/bounce.h"
#include "engine/deflated.h"
#include "engine/image.h"
#include "engine/inflate.h"
#include "engine/request.h"
#include "io/loop.h"

#define QUEUE_DEPTH_DEFAULT 256u
#define QUEUE_DEPTH_MAX 4096u
/* Transfers beyond the one in each request: parts of large or fragmented requests. */
#define QUEUE_TRANSFERS 256u

/* The two rings between a queue and a shard, or the allocator. Each has room for all of the queue's requests:
 * a push never fails. */
struct mail {
    struct spsc to_shard; /* struct request */
    struct spsc to_queue;
    bool notify_shard; /* queue: pushed since the shard was last notified */
};

struct queue_counters {
    counter requests, bytes, hits, misses, zeros, backing, inflates, inflate_hits, bounces, ios, starved;
    counter writes_in_place, writes_at_shard, flushes_alone, flushes_joined;
};

struct scow_queue {
    struct loop loop;
    struct loop *waker; /* the loop that turns it: its own, or the shard's whose reader it is */
    struct scow_image *image;
    uint32_t index; /* in image->queues */
    uint32_t depth;
    bool internal; /* the blocking helpers' */

    struct request *requests;
    char *error_texts;  /* two per request: its own, and one to lend with a completion until the next poll */
    char **spare_texts; /* a stack */
    char **lent_texts;  /* another */
    uint32_t spare_count, lent_count;
    struct transfer *transfers;
    struct list free_requests;
    struct list free_transfers;
    /* Not yet walked: their lookups' memory is on its way into this CPU's cache. */
    struct list submitted, submitted_writes;
    struct list starved; /* walks that wait for a transfer, a bounce buffer or a cluster buffer */
    struct list ready;   /* completed, for the next poll */
    uint32_t in_flight;  /* accepted, completion not returned */
    uint32_t at_shards;  /* messages out */
    bool mail_pending;   /* some mail[].notify_shard is set */
    uint64_t generation; /* image.inflate_generation as this turn began */
    bool event_enabled;
    bool prepared;  /* an I/O was prepared since the backend last submitted */
    int32_t broken; /* internal queues: the backend's error once it has failed */

    struct watch **watches; /* that there ever were, at once */
    uint32_t watch_count, watching;

    struct mail *mail; /* by shard, then the allocator's */
    uint32_t mail_count;
    struct bounce_pool bounces;
    struct inflate_pool inflates;
    struct deflated_pool deflated;
    struct epoch_submitter epoch;
    struct queue_counters counters;
};

struct shard;
/* The reader of a shard: a queue on the shard's backend, that the shard's loop turns by queue_step(). Created
 * and destroyed while no shard runs. */
int queue_create_reader(struct scow_image *image, struct shard *shard, uint32_t depth,
                        struct scow_queue **ret);
void queue_destroy_reader(struct scow_queue *queue);

/* What a turn does besides its backend: walks, answers, messages. */
void queue_step(struct scow_queue *queue);
bool queue_has_mail(struct scow_queue *queue);

/* A queue whose loop the caller turns. Internal ones are used by several threads, one at a time, on the
 * thread pool. */
int queue_create(struct scow_image *image, uint32_t depth, bool internal, struct scow_queue **ret);
/* Waits for what is in flight. -EBUSY when that is another thread's business: see scow_queue_destroy(). */
int queue_destroy(struct scow_queue *queue);

/* A free request with its fields reset, or NULL: -EAGAIN. */
static inline struct request *queue_take_request(struct scow_queue *q)
{
    struct list_node *n = list_pop(&q->free_requests);
    struct request *r;

    if (unlikely(!n))
        return NULL;
    r = container_of(n, struct request, node);
    r->pending = 1;
    r->result = 0;
    r->walked = 0;
    q->in_flight++;
    r->epoch_bucket = epoch_enter(&q->epoch);
    return r;
}

/* What only the write side looks at. */
static inline void request_reset_write(struct request *r, uint32_t flags)
{
    r->owner_waits = false;
    r->by_hand = false;
    r->at_allocator = false;
    r->needs_commit = false;
    r->flags = (uint8_t)flags;
    r->packed_bytes = 0;
}

static inline void queue_release(struct scow_queue *q, struct request *r)
{
    q->in_flight--;
    list_push(&q->free_requests, &r->node);
}

/* All parts are done: account for it and make it ready. */
static inline void queue_complete(struct scow_queue *q, struct request *r)
{
    epoch_leave(&q->epoch, r->epoch_bucket);
    counter_add(&q->counters.requests, 1);
    if (likely(r->kind == REQUEST_READ && !r->result))
        counter_add(&q->counters.bytes, r->bytes);
    PROBE2(complete, r, r->result);
    list_push(&q->ready, &r->node);
}

/* One turn. wait_ns 0: without blocking; otherwise block up to so long, or for ever if negative, unless
 * something is ready. 0, or a negative errno when the backend is broken. */
int queue_turn(struct scow_queue *queue, int64_t wait_ns);

/* Ask the owner of request->lookup's slice. */
void queue_ask_shard(struct scow_queue *queue, struct request *request);
/* Send a request to the allocator. */
void queue_ask_allocator(struct scow_queue *queue, struct request *request);

/* The embedder may go to sleep on the completion descriptor: from now on an answer or a completion signals
 * it. */
void queue_arm_event(struct scow_queue *queue);

/* Internal queues: turn until request is ready, release it and return its result, with the thread's message
 * set. Its fields may be read until the next request is taken. */
int queue_run(struct scow_queue *queue, struct request *request);

/* Adds this queue's counts to sum. Any thread. */
void queue_add_counters(const struct scow_queue *queue, struct scow_counters *sum);

#endif
