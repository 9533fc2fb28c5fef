/* SPDX-License-Identifier: MIT */
#include "io/sync_pace.h"

/* Times a slow sync's duration, until the file may be quick again. */
#define RETRY_FACTOR 64u
/* One that takes so many times what is quick is enough. */
#define OUTLIER 8u
/* The newest counts for an eighth. */
#define MEAN_SHIFT 3

bool sync_pace_is_quick(const struct sync_pace *p)
{
    return atomic_load_explicit(&p->mean_ns, memory_order_relaxed) != 0;
}

static void slow(struct sync_pace *p, uint64_t took_ns, uint64_t now_ns)
{
    atomic_store_explicit(&p->retry_ns, now_ns + took_ns * RETRY_FACTOR, memory_order_relaxed);
    atomic_store_explicit(&p->mean_ns, 0, memory_order_relaxed);
}

void sync_pace_add(struct sync_pace *p, uint64_t took_ns, uint64_t now_ns, bool here)
{
    uint64_t mean = atomic_load_explicit(&p->mean_ns, memory_order_relaxed);

    if (!here) {
        if (took_ns > SYNC_QUICK_ELSEWHERE_NS)
            slow(p, took_ns, now_ns);
        else if (!mean && now_ns >= atomic_load_explicit(&p->retry_ns, memory_order_relaxed))
            atomic_store_explicit(&p->mean_ns, SYNC_QUICK_NS / 2,
                                  memory_order_relaxed); /* what is not known yet */
        return;
    }
    mean = mean - (mean >> MEAN_SHIFT) + (took_ns >> MEAN_SHIFT);
    if (mean > SYNC_QUICK_NS || took_ns > OUTLIER * SYNC_QUICK_NS)
        slow(p, mean > took_ns ? mean : took_ns, now_ns);
    else
        atomic_store_explicit(&p->mean_ns, mean ? mean : 1, memory_order_relaxed);
}
