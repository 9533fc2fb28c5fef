/* SPDX-License-Identifier: MIT */
#include "engine/cached_lookup.h"

#include <errno.h>

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

bool cached_lookup_any(struct lookup *l, const struct map_root *root, const slot_cell *cell,
                       struct slot *slot, char *error)
{
    struct map_fault fault;
    enum map_status status;
    uint32_t seq;

    if (!slot)
        return no_table(l, root);
    if (!slot_read_begin(slot, cell, &seq))
        return false;
    status = map_slice(l->layer, slot->entries, l->guest_off, l->bytes, &l->run, &fault);
    if (!slot_read_valid(slot, seq))
        return false;
    slot_mark(slot);
    l->status = 0;
    if (unlikely(status != MAP_OK)) {
        l->status = -EIO;
        map_fault_text(l->layer, &fault, error, REQUEST_ERROR_BYTES);
    }
    return true;
}
