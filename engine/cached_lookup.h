/* SPDX-License-Identifier: MIT */
/* Translation on the submitting thread, from what is cached: no lock, no message, no shared line written. */
#ifndef ENGINE_CACHED_LOOKUP_H
#define ENGINE_CACHED_LOOKUP_H

#include <endian.h>
#include <stdbool.h>

#include "engine/request.h"
#include "format/entry.h"

/*
 * What cached_lookup() does when its first guess does not hold. Same contract.
 */
bool cached_lookup_any(struct lookup *lookup, const struct map_root *root, const slot_cell *cell,
                       struct slot *slot, char *error);

/*
 * The commonest case, on its own because everything else in a hit is short: a standard cluster that holds the
 * whole part. False: try cached_lookup_any().
 */
static inline bool cached_lookup_standard(struct lookup *l, const slot_cell *cell, struct slot *slot)
{
    const struct layer *layer = l->layer;
    const uint32_t bits = layer->header.cluster_bits;
    const uint64_t mask = layer->header.cluster_bytes - 1, within = l->guest_off & mask;
    const uint64_t index = (l->guest_off & layer->slice_mask) >> bits;
    uint64_t entry;
    uint32_t seq;

    if (unlikely(!layer->plain_entries) || within + l->bytes > mask + 1 ||
        unlikely(!slot_read_begin(slot, cell, &seq)))
        return false;
    entry = be64toh(atomic_load_explicit(&slot->entries[index], memory_order_relaxed));
    if (unlikely(!slot_read_valid(slot, seq)))
        return false;
    /* Allocated, aligned, neither compressed nor zero. */
    if (unlikely(entry & (ENTRY_COMPRESSED | ENTRY_ZERO)) || unlikely(!(entry & ENTRY_OFF_MASK)) ||
        unlikely(entry & ENTRY_OFF_MASK & mask))
        return false;
    slot_mark(slot);
    l->status = 0;
    l->run.kind = RUN_DATA;
    l->run.has_host = true;
    l->run.bytes = l->bytes;
    l->run.host_off = (entry & ENTRY_OFF_MASK) + within;
    return true;
}

/*
 * Ask for the memory that a lookup at guest_off will read first. What requests ask for between two turns
 * travels at the same time.
 */
static inline void cached_lookup_prefetch(const struct layer *layer, uint64_t guest_off)
{
    const struct map_root *root = atomic_load_explicit(&layer->root, memory_order_acquire);
    const struct slot *slot;

    if (unlikely(!root)) /* raw */
        return;
    slot = atomic_load_explicit(directory_cell(&root->directory, map_slice_index(layer, guest_off)),
                                memory_order_relaxed);
    if (likely(slot)) {
        __builtin_prefetch(slot);
        __builtin_prefetch((const char *)slot->entries +
                           ((guest_off & layer->slice_mask) >> layer->entry_shift));
    }
}

/*
 * Answer lookup from the directory or, where the L1 table has no L2 table, from that. False: the slice is not
 * cached (or is just being replaced), ask its owner. error is for lookup->status < 0. The request is counted
 * in its epoch: that keeps the map root it meets.
 */
static inline bool cached_lookup(struct lookup *l, char *error)
{
    const struct map_root *root = atomic_load_explicit(&l->layer->root, memory_order_acquire);
    const slot_cell *cell = directory_cell(&root->directory, map_slice_index(l->layer, l->guest_off));
    struct slot *slot = atomic_load_explicit(cell, memory_order_acquire);

    if (likely(slot) && likely(cached_lookup_standard(l, cell, slot)))
        return true;
    return cached_lookup_any(l, root, cell, slot, error);
}

#endif
