/* SPDX-License-Identifier: MIT */
/*
 * I/O epochs: how long a host cluster that lost its last reference may still be read or written by requests
 * that translated their address before (design, "Two lifetimes, two mechanisms").
 *
 * The clock counts epochs. A submitter publishes the epoch that it has seen once per turn and counts each
 * request into the bucket of that epoch until the request's I/O is done. The clock leaves epoch E for E + 1
 * only when every submitter is offline or has seen E and no request of an epoch before E is in flight. So
 * what was freed in epoch E is out of reach once the clock says E + 2, and a submitter never has requests in
 * more than two epochs: two buckets are enough.
 */
#ifndef BASE_EPOCH_H
#define BASE_EPOCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/attributes.h"

#define EPOCH_OFFLINE 0u
/* No bucket: what holds one says so by this. */
#define EPOCH_NOT_COUNTED 2u

struct epoch_clock {
    _Atomic uint64_t now; /* starts at 1. Writer: the allocator; readers: submitters, acquire */
};

struct epoch_submitter {
    /* Writer: the submitter. Reader: the allocator. EPOCH_OFFLINE, or the last epoch seen. */
    _Atomic uint64_t seen;
    /* Requests in flight by parity of their epoch. Same writer and reader. */
    _Atomic uint32_t in_flight[2];
};

/* Once per turn, before any request of the turn. */
static inline void epoch_observe(struct epoch_clock *clock, struct epoch_submitter *s)
{
    uint64_t now = atomic_load_explicit(&clock->now, memory_order_acquire);

    /* Until the store is visible the allocator may take this submitter for offline and move on: look again
     * after it. */
    while (unlikely(atomic_load_explicit(&s->seen, memory_order_relaxed) != now)) {
        /* Release: with the epoch the allocator sees the counts that came before it. */
        atomic_store_explicit(&s->seen, now, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        now = atomic_load_explicit(&clock->now, memory_order_acquire);
    }
}

/* When the submitter sleeps or returns to its embedder. Requests in flight stay counted. */
static inline void epoch_offline(struct epoch_submitter *s)
{
    atomic_store_explicit(&s->seen, EPOCH_OFFLINE, memory_order_release);
}

/* Before a request translates its first address; returns the bucket to leave. */
static inline uint32_t epoch_enter(struct epoch_submitter *s)
{
    const uint32_t bucket = (uint32_t)(atomic_load_explicit(&s->seen, memory_order_relaxed) & 1);
    _Atomic uint32_t *const n = &s->in_flight[bucket];

    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1, memory_order_relaxed);
    return bucket;
}

/* After its last I/O. */
static inline void epoch_leave(struct epoch_submitter *s, uint32_t bucket)
{
    _Atomic uint32_t *const n = &s->in_flight[bucket];

    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) - 1, memory_order_release);
}

/*
 * Allocator, after a full fence that follows the removal of references: whether s lets the clock leave epoch
 * now. An offline submitter may have requests in flight, but none of them is older than its buckets tell.
 */
static inline bool epoch_may_leave(const struct epoch_submitter *s, uint64_t now)
{
    const uint64_t seen = atomic_load_explicit(&s->seen, memory_order_acquire);

    return (seen == EPOCH_OFFLINE || seen == now) &&
           atomic_load_explicit(&s->in_flight[(now - 1) & 1], memory_order_acquire) == 0;
}

#endif
