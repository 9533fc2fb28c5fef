/* SPDX-License-Identifier: MIT */
#include "engine/cached_lookup.h"

#include <errno.h>

#include "base/rcu.h"
#include "format/entry.h"

/* No L2 table: nothing is allocated up to the end of what the table would map. */
static bool no_table(struct lookup *l, const struct map_root *root)
{
    const uint32_t shift = header_l1_shift(&l->layer->header);
    const uint64_t l1_index = l->guest_off >> shift;
    const uint64_t table_rest = (1ull << shift) - (l->guest_off & ((1ull << shift) - 1));

    invariant(l1_index < root->l1_count);
    if (atomic_load_explicit(&root->l1[l1_index], memory_order_acquire) & ENTRY_OFF_MASK)
        return false;
    l->status = 0;
    l->run = (struct run){.kind = RUN_UNALLOCATED, .bytes = MIN(l->bytes, table_rest)};
    return true;
}

bool cached_lookup(struct lookup *l, char *error)
{
    struct layer *layer = l->layer;
    struct map_fault fault;
    bool found = false;

    rcu_enter();
    const struct map_root *root = rcu_dereference(layer->root);
    const slot_cell *cell = directory_cell(&root->directory, map_slice_index(layer, l->guest_off));
    struct slot *slot = atomic_load_explicit(cell, memory_order_acquire);
    uint32_t seq;

    if (unlikely(!slot)) {
        found = no_table(l, root);
    } else if (likely(slot_read_begin(slot, cell, &seq))) {
        const enum map_status status =
            map_slice(layer, slot->entries, l->guest_off, l->bytes, &l->run, &fault);

        if (likely(slot_read_valid(slot, seq))) {
            found = true;
            slot_mark(slot);
            l->status = 0;
            if (unlikely(status != MAP_OK)) {
                l->status = -EIO;
                map_fault_text(layer, &fault, error, REQUEST_ERROR_BYTES);
            }
        }
    }
    rcu_leave();
    return found;
}
