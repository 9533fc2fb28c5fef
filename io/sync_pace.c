/* SPDX-License-Identifier: MIT */
#include "io/sync_pace.h"

/* Times a slow sync's duration, until another is waited for: 0.2 % of the time at worst. */
#define RETRY_FACTOR 500u
/* The newest counts for an eighth. */
#define MEAN_SHIFT 3

bool sync_pace_is_quick(const struct sync_pace *p, uint64_t now_ns)
{
    return now_ns >= atomic_load_explicit(&p->retry_ns, memory_order_relaxed);
}

void sync_pace_add(struct sync_pace *p, uint64_t took_ns, uint64_t now_ns)
{
    uint64_t mean = atomic_load_explicit(&p->mean_ns, memory_order_relaxed);

    mean = mean ? mean - (mean >> MEAN_SHIFT) + (took_ns >> MEAN_SHIFT) : took_ns;
    if (mean > SYNC_QUICK_NS) {
        atomic_store_explicit(&p->retry_ns, now_ns + mean * RETRY_FACTOR, memory_order_relaxed);
        mean = 0; /* the next one decides */
    }
    atomic_store_explicit(&p->mean_ns, mean, memory_order_relaxed);
}
