/* SPDX-License-Identifier: MIT */
/*
 * A lease: free host clusters that one loop may put to use without asking. Their refcounts are 1 and durable
 * before the lease is granted, so whatever names them later is never ahead of its refcount (I1).
 */
#ifndef ENGINE_LEASE_H
#define ENGINE_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/attributes.h"
#include "base/checked.h"

#define LEASE_EXTENTS 16u

struct lease_extent {
    uint64_t first; /* host cluster */
    uint32_t count;
    bool fresh; /* never used since the file was extended over them: they read as zeros */
};

struct lease {
    struct lease_extent extents[LEASE_EXTENTS];
    uint32_t extent_count;
    uint32_t current;  /* extents before it are used up */
    uint64_t clusters; /* left */
};

static inline void lease_add(struct lease *l, uint64_t first, uint32_t count, bool fresh)
{
    l->extents[l->extent_count++] = (struct lease_extent){first, count, fresh};
    l->clusters += count;
}

/* Up to count_max contiguous clusters; returns how many, 0 when the lease is empty. */
static inline uint32_t lease_take(struct lease *l, uint32_t count_max, uint64_t *ret_first, bool *ret_fresh)
{
    struct lease_extent *e;
    uint32_t n;

    while (l->current < l->extent_count && !l->extents[l->current].count)
        l->current++;
    if (l->current == l->extent_count)
        return 0;
    e = &l->extents[l->current];
    n = MIN(e->count, count_max);
    *ret_first = e->first;
    *ret_fresh = e->fresh;
    e->first += n;
    e->count -= n;
    l->clusters -= n;
    return n;
}

#endif
