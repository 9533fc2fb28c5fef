/* SPDX-License-Identifier: MIT */
/*
 * The slots of one shard and the CLOCK hand over them. Belongs to the shard's loop; readers only ever meet
 * the slots.
 */
#ifndef CACHE_SLICE_CACHE_H
#define CACHE_SLICE_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "cache/slot.h"

struct slice_cache {
    uint8_t *memory; /* slot_count slots of slot_bytes each */
    size_t slot_bytes;
    uint32_t slot_count;
    uint32_t slice_bytes; /* room of each slot */
    uint32_t hand;
    uint64_t evictions;
};

/* Bytes that one slot takes of a memory bound. */
size_t slice_cache_slot_bytes(uint32_t slice_bytes);

static inline struct slot *slice_cache_slot(const struct slice_cache *c, uint32_t index)
{
    return (struct slot *)(void *)(c->memory + index * c->slot_bytes);
}

/* At least one slot. The memory is taken from the kernel page by page as slots are first used. 0 or -ENOMEM.
 */
int slice_cache_create(struct slice_cache *c, uint32_t slot_count, uint32_t slice_bytes);
void slice_cache_destroy(struct slice_cache *c);

/*
 * Publish bytes bytes of entries, as on disk, for the slice whose cell is given and empty, evicting another
 * if need be. bytes is a multiple of 8, at most slice_bytes. Returns the slot.
 */
struct slot *slice_cache_insert(struct slice_cache *c, slot_cell *cell, const void *entries, uint32_t bytes);

#endif
