/* SPDX-License-Identifier: MIT */
#include "cache/slice_cache.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "base/memory.h"

size_t slice_cache_slot_bytes(uint32_t slice_bytes)
{
    return sizeof(struct slot) + (size_t)round_up(slice_bytes, CACHE_LINE);
}

int slice_cache_create(struct slice_cache *c, uint32_t slot_count, uint32_t slice_bytes)
{
    const size_t bytes = slot_count * slice_cache_slot_bytes(slice_bytes);
    uint8_t *p;

    invariant(slot_count > 0 && slice_bytes % sizeof(uint64_t) == 0);
    p = pages_reserve(bytes);
    if (!p)
        return error_set(-ENOMEM, "metadata cache: cannot map %zu bytes: %s", bytes, strerror(errno));
    *c = (struct slice_cache){.states = calloc(slot_count, sizeof *c->states),
                              .dirty = calloc(slot_count, sizeof *c->dirty),
                              .memory = p,
                              .slot_bytes = slice_cache_slot_bytes(slice_bytes),
                              .slot_count = slot_count,
                              .slice_bytes = slice_bytes};
    if (c->states && c->dirty)
        return 0;
    slice_cache_destroy(c);
    return error_set(-ENOMEM, "out of memory");
}

void slice_cache_destroy(struct slice_cache *c)
{
    pages_release(c->memory, c->slot_count * c->slot_bytes);
    free(c->states);
    free(c->dirty);
    *c = (struct slice_cache){0};
}

static bool may_evict(const struct slot_state *s)
{
    return !s->pins && !((s->dirty || s->committing) && GUARD(EVICTION));
}

/* Second chance: a slot marked since the hand last passed is passed once more. Three rounds at most, the last
 * without regard to marks, because readers may set them faster than the hand turns. -1: none is clean and
 * unpinned. */
static int64_t choose_victim(struct slice_cache *c)
{
    if (c->busy_count == c->slot_count && GUARD(EVICTION))
        return -1;
    for (uint32_t steps = 0; steps < 3 * c->slot_count; steps++) {
        const uint32_t index = c->hand;
        struct slot *slot = slice_cache_slot(c, index);

        c->hand = index + 1 == c->slot_count ? 0 : index + 1;
        if (!may_evict(&c->states[index]))
            continue;
        if (!atomic_load_explicit(&slot->home, memory_order_relaxed) ||
            !atomic_load_explicit(&slot->referenced, memory_order_relaxed) || steps >= 2 * c->slot_count)
            return index;
        atomic_store_explicit(&slot->referenced, 0, memory_order_relaxed);
    }
    return -1;
}

struct slot *slice_cache_insert(struct slice_cache *c, slot_cell *cell, const void *entries, uint32_t bytes)
{
    const int64_t index = choose_victim(c);
    const uint8_t *from = entries;
    struct slot *slot;
    slot_cell *old;
    uint32_t seq;

    if (index < 0)
        return NULL;
    slot = slice_cache_slot(c, (uint32_t)index);
    seq = atomic_load_explicit(&slot->seq, memory_order_relaxed);
    old = atomic_load_explicit(&slot->home, memory_order_relaxed);
    invariant(bytes <= c->slice_bytes && !(seq & 1));
    if (old) {
        atomic_store_explicit(old, NULL, memory_order_release);
        c->evictions++;
    } else {
        c->resident++;
    }
    atomic_store_explicit(&slot->seq, seq + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* seq is odd before any entry changes */
    atomic_store_explicit(&slot->home, cell, memory_order_relaxed);
    atomic_store_explicit(&slot->owner_only, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < bytes / sizeof(uint64_t); i++) {
        uint64_t word;

        memcpy(&word, from + i * sizeof word, sizeof word);
        atomic_store_explicit(&slot->entries[i], word, memory_order_relaxed);
    }
    /* Loaded because somebody waits for it: marked only by readers, so that a scan does not push out what is
     * hot. */
    atomic_store_explicit(&slot->referenced, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->seq, seq + 2, memory_order_release);
    atomic_store_explicit(cell, slot, memory_order_release);
    return slot;
}

void slice_cache_mark_dirty(struct slice_cache *c, struct slot *slot)
{
    const uint32_t index = slice_cache_index(c, slot);
    struct slot_state *s = &c->states[index];

    if (s->dirty)
        return;
    s->dirty = true;
    c->dirty[c->dirty_count++] = index;
    c->busy_count += !s->committing;
}

int64_t slice_cache_take_dirty(struct slice_cache *c)
{
    struct slot_state *s;
    uint32_t index;

    if (!c->dirty_count)
        return -1;
    index = c->dirty[--c->dirty_count];
    s = &c->states[index];
    s->dirty = false;
    s->committing = true;
    return index;
}

void slice_cache_committed(struct slice_cache *c, uint32_t index, bool written)
{
    struct slot_state *s = &c->states[index];

    invariant(s->committing);
    s->committing = false;
    c->busy_count -= !s->dirty;
    if (!written)
        slice_cache_mark_dirty(c, slice_cache_slot(c, index));
}
