/* SPDX-License-Identifier: MIT */
/*
 * The slots of one shard and the CLOCK hand over them. Belongs to the shard's loop; readers only ever meet
 * the slots.
 */
#ifndef CACHE_SLICE_CACHE_H
#define CACHE_SLICE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/slot.h"

/* What the owner knows of a slot. Only one that is clean, and that nothing pins, is evicted. */
struct slot_state {
    uint32_t pins;   /* requests at work on the slice */
    bool dirty;      /* entries changed since they were last copied for a commit; in the dirty list */
    bool committing; /* a copy of it is on its way to the disk */
};

struct slice_cache {
    struct slot_state *states; /* by slot index */
    uint32_t *dirty;           /* indices of dirty slots, in the order in which they became so */
    uint32_t dirty_count;
    uint32_t busy_count; /* slots that are dirty or committing */
    uint8_t *memory;     /* slot_count slots of slot_bytes each */
    size_t slot_bytes;
    uint32_t slot_count;
    uint32_t slice_bytes; /* room of each slot */
    uint32_t hand;
    uint32_t resident; /* slots that hold a slice */
    uint64_t evictions;
};

/* Bytes that one slot takes of a memory bound. */
size_t slice_cache_slot_bytes(uint32_t slice_bytes);

static inline uint32_t slice_cache_index(const struct slice_cache *c, const struct slot *slot)
{
    return (uint32_t)((size_t)((const uint8_t *)slot - c->memory) / c->slot_bytes);
}

static inline struct slot_state *slice_cache_state(const struct slice_cache *c, const struct slot *slot)
{
    return &c->states[slice_cache_index(c, slot)];
}

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
 * if need be. bytes is a multiple of 8, at most slice_bytes. Returns the slot; NULL when none may be evicted.
 */
struct slot *slice_cache_insert(struct slice_cache *c, slot_cell *cell, const void *entries, uint32_t bytes);

/* The owner changed entries of the slot. */
void slice_cache_mark_dirty(struct slice_cache *c, struct slot *slot);

/* The next dirty slot is copied for a commit; its state becomes committing. -1: none is dirty. */
int64_t slice_cache_take_dirty(struct slice_cache *c);

/* Its copy was written, or not: then it is dirty again. */
void slice_cache_committed(struct slice_cache *c, uint32_t index, bool written);

#endif
