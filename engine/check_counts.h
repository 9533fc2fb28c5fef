/* SPDX-License-Identifier: MIT */
/*
 * What the check knows of each host cluster in a window of them: how often it was referenced (expected), what
 * the refcount blocks say (stored, in two bits: that is all that the COPIED flags need), and whether it holds
 * metadata.
 *
 * Memory: 1, 2, 4 or 8 bytes for the expected count (as wide as the image's refcounts, at least a byte) plus
 * 3/8 byte, mapped lazily, so that clusters that nothing refers to cost next to nothing.
 *
 * Threads: expected counts and metadata marks are atomic; a stored count is written by the one thread that
 * reads its refcount block, before any thread asks for it.
 */
#ifndef ENGINE_CHECK_COUNTS_H
#define ENGINE_CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum check_stored {
    STORED_ZERO, /* also: no refcount block covers the cluster */
    STORED_ONE,
    STORED_MORE,
    STORED_UNKNOWN, /* its refcount block cannot be read */
};

struct check_counts {
    uint64_t first;       /* host cluster; a multiple of 64 */
    uint64_t count;       /* a multiple of 64 */
    uint64_t max;         /* what the image's refcounts can hold */
    uint32_t width_shift; /* log2 of the bytes of one expected count */
    uint8_t *expected;
    uint8_t *stored;   /* four clusters a byte */
    uint8_t *metadata; /* eight clusters a byte */
    size_t mapped_bytes;
};

/* Bytes that a window of count clusters takes; count is a multiple of 64. */
uint64_t check_counts_bytes(uint64_t count, uint32_t refcount_order);

/* All counts 0. 0 or -ENOMEM with a message. */
int check_counts_map(struct check_counts *c, uint64_t first, uint64_t count, uint32_t refcount_order);
void check_counts_unmap(struct check_counts *c);

static inline bool check_counts_cover(const struct check_counts *c, uint64_t cluster)
{
    return cluster - c->first < c->count; /* wraps for what lies before the window */
}

/* The functions below take clusters that the window covers. */

/* One more reference; false when the count is at its maximum already. */
bool check_counts_add(struct check_counts *c, uint64_t cluster);

uint64_t check_counts_expected(const struct check_counts *c, uint64_t cluster);

/* Whether no cluster of [cluster, cluster + n) is referenced; n is a multiple of 8. */
bool check_counts_none_expected(const struct check_counts *c, uint64_t cluster, uint64_t n);

/* true when the cluster was not marked yet. */
bool check_counts_mark_metadata(struct check_counts *c, uint64_t cluster);

static inline enum check_stored check_counts_stored(const struct check_counts *c, uint64_t cluster)
{
    const uint64_t i = cluster - c->first;

    return (enum check_stored)(c->stored[i / 4] >> (i % 4 * 2) & 3);
}

/* At most once per cluster and window. */
static inline void check_counts_set_stored(struct check_counts *c, uint64_t cluster, enum check_stored stored)
{
    const uint64_t i = cluster - c->first;

    c->stored[i / 4] = (uint8_t)(c->stored[i / 4] | (unsigned)stored << (i % 4 * 2));
}

#endif
