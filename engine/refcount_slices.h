/* SPDX-License-Identifier: MIT */
/* The refcounts' cache: slices of blocks, found by index, with what of them is dirty. For refcounts.c alone.
 */
#ifndef ENGINE_REFCOUNT_SLICES_H
#define ENGINE_REFCOUNT_SLICES_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/refcounts.h"

static inline bool refcount_slice_is_dirty(const struct refcount_slice *s)
{
    return s->dirty_from != s->dirty_to;
}

/* A slice of a block that is not on disk yet: zeros, clean. -ENOMEM. */
int refcount_slice_new(struct refcounts *rc, uint64_t index, struct refcount_slice **ret);

/* *ret NULL: the slice's block does not exist, all its counts are 0. Blocking. */
int refcount_slice_load(struct refcounts *rc, uint64_t index, struct refcount_slice **ret);

/* Bytes of it are to be written. */
void refcount_slice_mark_dirty(struct refcounts *rc, struct refcount_slice *s, uint32_t from, uint32_t to);

/* Count i of it. */
void refcount_slice_set(struct refcounts *rc, struct refcount_slice *s, uint32_t i, uint64_t value);

/* The slices of blocks from first to last go, with what is dirty in them. None is being written. */
void refcount_slices_forget(struct refcounts *rc, uint64_t first, uint64_t last);

#endif
