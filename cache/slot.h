/* SPDX-License-Identifier: MIT */
/*
 * A slot holds one cached L2 slice. Slots live in one array per shard from start to close; their memory is
 * never given to anything else, so a reader that lost a race reads a stranger's entries, notices by the
 * sequence number, and asks again: no reader waits and eviction waits for no reader.
 *
 *   state      seq    home          entered by
 *   empty      even   NULL          start
 *   changing   odd    any           owner, before it writes home or entries
 *   published  even   the cell      owner, when entries are complete; then the cell points to the slot
 *
 * S1 Only the owner shard's loop writes seq, home, entries and the cell.
 * S2 Entries are read and written as single words, relaxed; a reader trusts what it read only if seq was even
 * and the same before and after (slot_read_begin(), slot_read_valid()). S3 A published slot's cell points to
 * it; eviction clears the cell first.
 */
#ifndef CACHE_SLOT_H
#define CACHE_SLOT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/attributes.h"

struct slot;

/* Where a directory says which slot holds a slice: NULL, or a slot. Writer: the owner (release); readers:
 * acquire. */
typedef struct slot *_Atomic slot_cell;

struct slot {
    _Alignas(CACHE_LINE) _Atomic uint32_t seq;
    /* CLOCK's reference mark. Set by any reader, only when it is clear, so that a hot slot's line stays
     * shared; cleared by the owner. Relaxed: a lost mark costs one early eviction. */
    _Atomic uint8_t referenced;
    /* The owner writes part of a block of this slice's clusters: others do not write in place. Set and
     * cleared by the owner; it starts once the I/O epochs say that whoever did not see it is done. */
    _Atomic uint8_t owner_only;
    slot_cell *_Atomic home;
    /* Big-endian as on disk. Behind the head, so that a reader's load of an entry does not wait for its load
     * of the head. */
    _Alignas(CACHE_LINE) _Atomic uint64_t entries[];
};
static_assert(sizeof(struct slot) == CACHE_LINE, "a reader touches one line besides the entry's");

/* Returns the sequence to validate against; odd or a foreign home means that the slot does not hold the
 * cell's slice. */
static inline bool slot_read_begin(const struct slot *slot, const slot_cell *cell, uint32_t *ret_seq)
{
    *ret_seq = atomic_load_explicit(&slot->seq, memory_order_acquire);
    return !(*ret_seq & 1) && atomic_load_explicit(&slot->home, memory_order_relaxed) == cell;
}

/* Whether what was read since slot_read_begin() belongs together. */
static inline bool slot_read_valid(const struct slot *slot, uint32_t seq)
{
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&slot->seq, memory_order_relaxed) == seq;
}

static inline void slot_mark(struct slot *slot)
{
    if (unlikely(!atomic_load_explicit(&slot->referenced, memory_order_relaxed)))
        atomic_store_explicit(&slot->referenced, 1, memory_order_relaxed);
}

#endif
