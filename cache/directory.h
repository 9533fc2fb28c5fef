/* SPDX-License-Identifier: MIT */
/*
 * Slice index → slot: a flat array of cells, 8 bytes per slice, mapped lazily so that only the parts in use
 * take memory (256 KiB per TiB with 64 KiB clusters and 4 KiB slices). No hashing: one load finds a slot.
 */
#ifndef CACHE_DIRECTORY_H
#define CACHE_DIRECTORY_H

#include <stdint.h>

#include "cache/slot.h"

struct directory {
    slot_cell *cells;
    uint64_t count;
};

/* All cells NULL. 0 or -ENOMEM with a message. */
int directory_create(struct directory *d, uint64_t count);
void directory_destroy(struct directory *d);

static inline slot_cell *directory_cell(const struct directory *d, uint64_t slice_index)
{
    invariant(slice_index < d->count);
    return &d->cells[slice_index];
}

#endif
