/* SPDX-License-Identifier: MIT */
#include "engine/refcount_slices.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "format/entry.h"
#include "format/refcount.h"

static void forget_slice(struct refcounts *rc, uint32_t at)
{
    struct refcount_slice *s = rc->cached[at];

    rc->slices[s->index] = NULL;
    rc->cached[at] = rc->cached[--rc->cached_count];
    free(s->counts);
    free(s);
}

void refcount_slices_forget(struct refcounts *rc, uint64_t first, uint64_t last)
{
    for (uint32_t at = rc->cached_count; at-- > 0;) {
        const uint64_t block = rc->cached[at]->index / rc->slices_per_block;

        if (block < first || block > last)
            continue;
        rc->dirty_count -= refcount_slice_is_dirty(rc->cached[at]);
        forget_slice(rc, at);
    }
}

/* One slice that is clean and was not looked at lately makes room. When none is clean the cache grows: what
 * is dirty is written soon. */
static void evict_slice(struct refcounts *rc)
{
    for (uint32_t steps = 0; steps < 2 * rc->cached_count; steps++) {
        struct refcount_slice *s;

        rc->hand = rc->hand + 1 < rc->cached_count ? rc->hand + 1 : 0;
        s = rc->cached[rc->hand];
        if (refcount_slice_is_dirty(s) || s->writing || s->unsynced_from != s->unsynced_to)
            continue;
        if (s->referenced) {
            s->referenced = false;
            continue;
        }
        forget_slice(rc, rc->hand);
        return;
    }
}

int refcount_slice_new(struct refcounts *rc, uint64_t index, struct refcount_slice **ret)
{
    struct refcount_slice *s;

    if (rc->cached_count >= rc->cached_max)
        evict_slice(rc);
    if (rc->cached_count >= rc->cached_max && rc->cached_count % 64 == 0) {
        struct refcount_slice **cached =
            realloc(rc->cached, (rc->cached_count + 64) * sizeof(struct refcount_slice *));

        if (!cached)
            return error_set(-ENOMEM, "out of memory");
        rc->cached = cached;
    }
    s = calloc(1, sizeof *s);
    if (s)
        s->counts = aligned_alloc(4096, round_up(rc->slice_bytes, 4096));
    if (!s || !s->counts) {
        free(s);
        return error_set(-ENOMEM, "out of memory");
    }
    memset(s->counts, 0, rc->slice_bytes);
    s->index = index;
    s->referenced = true;
    rc->slices[index] = s;
    rc->cached[rc->cached_count++] = s;
    *ret = s;
    return 0;
}

int refcount_slice_load(struct refcounts *rc, uint64_t index, struct refcount_slice **ret)
{
    const uint64_t block = index / rc->slices_per_block;
    uint64_t off;
    int r;

    *ret = NULL;
    if (block >= rc->table_count)
        return 0;
    if (likely(rc->slices[index])) {
        rc->slices[index]->referenced = true;
        *ret = rc->slices[index];
        return 0;
    }
    off = rc->table[block] & REFTABLE_OFF_MASK;
    if (!off)
        return 0;
    if (off & (rc->layer->header.cluster_bytes - 1))
        return error_set(-EIO,
                         "refcount table: entry %" PRIu64 " names a block at offset 0x%" PRIx64
                         ", which is not a multiple of the cluster size",
                         block, off);
    r = refcount_slice_new(rc, index, ret);
    if (r < 0)
        return r;
    r = file_read(rc->layer->file, (*ret)->counts, rc->slice_bytes,
                  off + index % rc->slices_per_block * rc->slice_bytes);
    if (r < 0) {
        forget_slice(rc, rc->cached_count - 1);
        *ret = NULL;
        return error_prefix(r, "refcount block");
    }
    return 0;
}

void refcount_slice_mark_dirty(struct refcounts *rc, struct refcount_slice *s, uint32_t from, uint32_t to)
{
    if (!refcount_slice_is_dirty(s)) {
        rc->dirty_count++;
        s->dirty_from = from;
        s->dirty_to = to;
        return;
    }
    s->dirty_from = MIN(s->dirty_from, from);
    s->dirty_to = MAX(s->dirty_to, to);
}

void refcount_slice_set(struct refcounts *rc, struct refcount_slice *s, uint32_t i, uint64_t value)
{
    const uint32_t byte = (uint32_t)(((uint64_t)i << rc->order) / 8);

    refcount_set(s->counts, rc->order, i, value);
    refcount_slice_mark_dirty(rc, s, byte, byte + MAX(1u, (1u << rc->order) / 8));
}

/* ---- writing ---- */

bool refcounts_next_write(struct refcounts *rc, uint8_t *buffer, uint64_t *ret_off, uint32_t *ret_bytes,
                          uint64_t *ret_slice)
{
    const uint32_t align = rc->layer->file->io_align;

    for (uint32_t i = 0; rc->dirty_count && i < rc->cached_count; i++) {
        struct refcount_slice *s = rc->cached[i];
        uint32_t from;

        if (!refcount_slice_is_dirty(s) || s->writing)
            continue;
        from = (uint32_t)round_down(s->dirty_from, align);
        *ret_bytes = (uint32_t)round_up(s->dirty_to, align) - from;
        *ret_off = (rc->table[s->index / rc->slices_per_block] & REFTABLE_OFF_MASK) +
                   s->index % rc->slices_per_block * rc->slice_bytes + from;
        *ret_slice = s->index;
        memcpy(buffer, s->counts + from, *ret_bytes);
        if (s->unsynced_from == s->unsynced_to)
            s->unsynced_from = s->dirty_from;
        s->unsynced_from = MIN(s->unsynced_from, s->dirty_from);
        s->unsynced_to = MAX(s->unsynced_to, s->dirty_to);
        s->dirty_from = s->dirty_to = 0;
        s->writing++;
        rc->dirty_count--;
        return true;
    }
    return false;
}

void refcounts_written(struct refcounts *rc, uint64_t slice, bool written, uint64_t off, uint32_t bytes)
{
    struct refcount_slice *s = rc->slices[slice];
    const uint64_t start = (rc->table[slice / rc->slices_per_block] & REFTABLE_OFF_MASK) +
                           slice % rc->slices_per_block * rc->slice_bytes;

    invariant(s && s->writing);
    s->writing--;
    if (!written)
        refcount_slice_mark_dirty(rc, s, (uint32_t)(off - start), (uint32_t)(off - start) + bytes);
}

void refcounts_synced(struct refcounts *rc, bool durable)
{
    for (uint32_t i = 0; i < rc->cached_count; i++) {
        struct refcount_slice *s = rc->cached[i];

        if (!durable && s->unsynced_from != s->unsynced_to)
            refcount_slice_mark_dirty(rc, s, s->unsynced_from, s->unsynced_to);
        s->unsynced_from = s->unsynced_to = 0;
    }
}
