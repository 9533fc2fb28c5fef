/* SPDX-License-Identifier: MIT */
/*
 * A bounded ring of pointers from one thread to another. Lock-free; the only ordering it needs is release on
 * the index that its side writes and acquire on the one that it reads.
 */
#ifndef BASE_SPSC_H
#define BASE_SPSC_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/attributes.h"

struct spsc {
    /* Writer: the sender (release). Reader: the receiver (acquire). */
    _Alignas(CACHE_LINE) _Atomic uint32_t tail;
    uint32_t head_seen; /* the sender's last look at head */
    /* Writer: the receiver (release). Reader: the sender (acquire). */
    _Alignas(CACHE_LINE) _Atomic uint32_t head;
    /* Never written after spsc_init(). */
    _Alignas(CACHE_LINE) void **slots;
    uint32_t mask;
};

/* At least capacity pointers. 0 or -ENOMEM. */
static inline int spsc_init(struct spsc *r, uint32_t capacity)
{
    uint32_t n = 2;

    while (n < capacity)
        n *= 2;
    r->slots = calloc(n, sizeof *r->slots);
    r->mask = n - 1;
    r->head_seen = 0;
    atomic_init(&r->tail, 0);
    atomic_init(&r->head, 0);
    return r->slots ? 0 : -ENOMEM;
}

static inline void spsc_free(struct spsc *r)
{
    free(r->slots);
    r->slots = NULL;
}

/* Sender. False when full: a sender whose pool is no larger than the capacity never sees that. */
static inline bool spsc_push(struct spsc *r, void *p)
{
    const uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);

    if (tail - r->head_seen > r->mask) {
        r->head_seen = atomic_load_explicit(&r->head, memory_order_acquire);
        if (tail - r->head_seen > r->mask)
            return false;
    }
    r->slots[tail & r->mask] = p;
    atomic_store_explicit(&r->tail, tail + 1, memory_order_release);
    return true;
}

/* Receiver. NULL when empty. */
static inline void *spsc_pop(struct spsc *r)
{
    const uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    void *p;

    if (head == atomic_load_explicit(&r->tail, memory_order_acquire))
        return NULL;
    p = r->slots[head & r->mask];
    atomic_store_explicit(&r->head, head + 1, memory_order_release);
    return p;
}

/* Receiver. */
static inline bool spsc_empty(const struct spsc *r)
{
    return atomic_load_explicit(&r->head, memory_order_relaxed) ==
           atomic_load_explicit(&r->tail, memory_order_acquire);
}

#endif
