/* SPDX-License-Identifier: MIT */
#include "cache/slice_cache.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/error.h"

size_t slice_cache_slot_bytes(uint32_t slice_bytes)
{
    return sizeof(struct slot) + (size_t)round_up(slice_bytes, CACHE_LINE);
}

int slice_cache_create(struct slice_cache *c, uint32_t slot_count, uint32_t slice_bytes)
{
    const size_t bytes = slot_count * slice_cache_slot_bytes(slice_bytes);
    uint8_t *p;

    invariant(slot_count > 0 && slice_bytes % sizeof(uint64_t) == 0);
    p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return error_set(-ENOMEM, "metadata cache: cannot map %zu bytes: %s", bytes, strerror(errno));
    *c = (struct slice_cache){.memory = p,
                              .slot_bytes = slice_cache_slot_bytes(slice_bytes),
                              .slot_count = slot_count,
                              .slice_bytes = slice_bytes};
    return 0;
}

void slice_cache_destroy(struct slice_cache *c)
{
    if (c->memory)
        munmap(c->memory, c->slot_count * c->slot_bytes);
    *c = (struct slice_cache){0};
}

/* Second chance: a slot marked since the hand last passed is passed once more. At most two rounds. */
static uint32_t choose_victim(struct slice_cache *c)
{
    for (uint32_t steps = 0; steps < 2 * c->slot_count; steps++) {
        const uint32_t index = c->hand;
        struct slot *slot = slice_cache_slot(c, index);

        c->hand = index + 1 == c->slot_count ? 0 : index + 1;
        if (!atomic_load_explicit(&slot->home, memory_order_relaxed) ||
            !atomic_load_explicit(&slot->referenced, memory_order_relaxed))
            return index;
        atomic_store_explicit(&slot->referenced, 0, memory_order_relaxed);
    }
    /* Readers mark faster than the hand turns. */
    return c->hand;
}

struct slot *slice_cache_insert(struct slice_cache *c, slot_cell *cell, const void *entries, uint32_t bytes)
{
    const uint32_t index = choose_victim(c);
    struct slot *slot = slice_cache_slot(c, index);
    const uint32_t seq = atomic_load_explicit(&slot->seq, memory_order_relaxed);
    slot_cell *const old = atomic_load_explicit(&slot->home, memory_order_relaxed);
    const uint8_t *from = entries;

    invariant(bytes <= c->slice_bytes && !(seq & 1));
    if (old) {
        atomic_store_explicit(old, NULL, memory_order_release);
        c->evictions++;
    }
    atomic_store_explicit(&slot->seq, seq + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* seq is odd before any entry changes */
    atomic_store_explicit(&slot->home, cell, memory_order_relaxed);
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
