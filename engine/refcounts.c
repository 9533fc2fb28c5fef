/* SPDX-License-Identifier: MIT */
#include "engine/refcounts.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "engine/refcount_slices.h"
#include "format/entry.h"
#include "format/limits.h"
#include "format/refcount.h"

#define SLICE_BYTES_MAX (64u << 10)
/* 16 MiB of counts: 512 GiB of an image with the default geometry. More when more are dirty. */
#define CACHED_BYTES (16u << 20)
#define TABLE_ENTRIES_MAX (REFTABLE_BYTES_MAX / sizeof(uint64_t))

/* ---- counts ---- */

static uint64_t counts_per_block(const struct refcounts *rc)
{
    return (uint64_t)rc->slice_counts * rc->slices_per_block;
}

int refcounts_get(struct refcounts *rc, uint64_t cluster, uint64_t *ret)
{
    struct refcount_slice *s;
    const int r = refcount_slice_load(rc, cluster / rc->slice_counts, &s);

    if (r == 0)
        *ret = s ? refcount_get(s->counts, rc->order, (uint32_t)(cluster % rc->slice_counts)) : 0;
    return r;
}

int refcounts_change(struct refcounts *rc, uint64_t cluster, int64_t by)
{
    const uint32_t i = (uint32_t)(cluster % rc->slice_counts);
    struct refcount_slice *s;
    uint64_t value;
    int r = refcount_slice_load(rc, cluster / rc->slice_counts, &s);

    if (r < 0)
        return r;
    if (!s)
        return error_set(-EIO, "host cluster %" PRIu64 " has no refcount block", cluster);
    value = refcount_get(s->counts, rc->order, i);
    if (by < 0 && value < (uint64_t)-by)
        return error_set(
            -EIO, "the refcount of host cluster %" PRIu64 " is %" PRIu64 ": it cannot drop by %" PRId64,
            cluster, value, -by);
    if (by > 0 && rc->max - value < (uint64_t)by)
        return error_set(-ERANGE, "the refcount of host cluster %" PRIu64 " would pass its width", cluster);
    value += (uint64_t)by;
    refcount_slice_set(rc, s, i, value);
    if (!value)
        rc->cursor = MIN(rc->cursor, cluster);
    return 0;
}

/* ---- new blocks, a larger table ---- */

/* Entry block of the table. */
static void name_block(struct refcounts *rc, uint64_t block, uint64_t off)
{
    const bool clean = rc->table_dirty_from == rc->table_dirty_to;

    rc->table[block] = off;
    rc->table_dirty_from = clean ? block : MIN(rc->table_dirty_from, block);
    rc->table_dirty_to = clean ? block + 1 : MAX(rc->table_dirty_to, block + 1);
}

/* A block that did not exist: all of it is to be written. */
static int create_block(struct refcounts *rc, uint64_t block, uint64_t cluster)
{
    const uint64_t first = block * rc->slices_per_block;
    struct refcount_slice *s;
    uint32_t i = 0;
    int r = 0;

    for (; i < rc->slices_per_block && r == 0; i++) {
        r = refcount_slice_new(rc, first + i, &s);
        if (r == 0)
            refcount_slice_mark_dirty(rc, s, 0, rc->slice_bytes);
    }
    if (r < 0) { /* the slices that were made */
        refcount_slices_forget(rc, block, block);
        return r;
    }
    name_block(rc, block, cluster << rc->layer->header.cluster_bits);
    if (cluster >= rc->fresh)
        rc->fresh = cluster + 1;
    if (rc->made_count < REFCOUNTS_MADE)
        rc->made[rc->made_count++] = block;
    return 0;
}

static int no_space(const struct refcounts *rc)
{
    return error_set(-ENOSPC, "%s: no free cluster is left", file_name(rc->layer->file));
}

/*
 * The table ends before block: a larger one, with the blocks that count the new clusters, in the range that
 * begins with block, of which no cluster can be in use. First the blocks, then the table.
 */
static int grow_table(struct refcounts *rc, uint64_t block)
{
    const uint64_t per_block = counts_per_block(rc), cluster_bytes = rc->layer->header.cluster_bytes;
    const uint64_t first = block * per_block;
    uint64_t entries = MAX(block + 1, rc->table_count + rc->table_count / 2), clusters, blocks;
    int r = 0;

    if (rc->table_moved)
        return error_set(-EAGAIN, "the refcount table is being moved");
    do { /* more blocks may need more table */
        clusters = div_round_up(entries * sizeof(uint64_t), cluster_bytes);
        blocks = div_round_up(clusters, per_block - 1);
        while (blocks * per_block < blocks + clusters)
            blocks++;
        entries = MAX(entries, block + blocks);
    } while (entries * sizeof(uint64_t) > clusters * cluster_bytes);
    entries = clusters * cluster_bytes / sizeof(uint64_t);
    if (entries > TABLE_ENTRIES_MAX)
        return error_set(-ENOSPC, "the refcount table cannot grow beyond %u bytes", REFTABLE_BYTES_MAX);
    if (first + blocks + clusters > rc->limit)
        return no_space(rc);

    const uint64_t old_count = rc->table_count;

    rc->table_count = entries;
    for (uint64_t i = 0; i < blocks && r == 0; i++)
        r = create_block(rc, block + i, first + i);
    if (r < 0) {
        /* Blocks that were made lie beyond the table again: nobody looks at them. */
        for (uint64_t i = 0; i < blocks; i++)
            rc->table[block + i] = 0;
        refcount_slices_forget(rc, old_count, UINT64_MAX);
        rc->table_count = old_count;
        return r;
    }
    for (uint64_t c = first; c < first + blocks + clusters; c++)
        refcount_slice_set(rc, rc->slices[c / rc->slice_counts], (uint32_t)(c % rc->slice_counts), 1);
    rc->table_moved = true;
    rc->old_table_off = rc->table_off;
    rc->old_table_clusters = rc->table_clusters;
    rc->table_off = (first + blocks) << rc->layer->header.cluster_bits;
    rc->table_clusters = (uint32_t)clusters;
    rc->table_dirty_from = 0;
    rc->table_dirty_to = entries;
    rc->fresh = MAX(rc->fresh, first + blocks + clusters);
    return 0;
}

/* A block for a range that has none; it counts itself, in the range's first cluster. */
static int ensure_block(struct refcounts *rc, uint64_t block)
{
    const uint64_t first = block * counts_per_block(rc);
    int r;

    if (!block)
        return error_set(-EIO, "refcount table: entry 0 names no block: the header has no refcount");
    if (block >= rc->table_count)
        return grow_table(rc, block);
    if (first >= rc->limit)
        return no_space(rc);
    r = create_block(rc, block, first);
    if (r == 0)
        refcount_slice_set(rc, rc->slices[first / rc->slice_counts], 0, 1);
    return r;
}

/* ---- taking clusters ---- */

/* The slice that counts cluster, made if need be. */
static int slice_for(struct refcounts *rc, uint64_t cluster, struct refcount_slice **ret)
{
    const uint64_t index = cluster / rc->slice_counts;
    int r = refcount_slice_load(rc, index, ret);

    if (r == 0 && !*ret) {
        r = ensure_block(rc, index / rc->slices_per_block);
        if (r == 0)
            r = refcount_slice_load(rc, index, ret);
    }
    return r;
}

/* The next free cluster at or behind *cluster, below the limit. */
static int find_free(struct refcounts *rc, uint64_t *cluster)
{
    uint64_t c = *cluster;

    while (c < rc->limit) {
        const uint64_t end = MIN(rc->limit, round_down(c, rc->slice_counts) + rc->slice_counts);
        struct refcount_slice *s;
        const int r = slice_for(rc, c, &s);

        if (r < 0)
            return r;
        for (; c < end; c++)
            if (!refcount_get(s->counts, rc->order, (uint32_t)(c % rc->slice_counts))) {
                *cluster = c;
                return 0;
            }
    }
    return no_space(rc);
}

/* How many clusters from cluster on are free, up to max, without making blocks beyond the first slice's. */
static int free_run(struct refcounts *rc, uint64_t cluster, uint64_t max, uint64_t *ret)
{
    uint64_t n = 0;

    for (; n < max && cluster + n < rc->limit; n++) {
        const uint64_t c = cluster + n;
        struct refcount_slice *s;
        const int r = slice_for(rc, c, &s);

        if (r < 0 && n)
            break;
        if (r < 0)
            return r;
        if (refcount_get(s->counts, rc->order, (uint32_t)(c % rc->slice_counts)))
            break;
    }
    *ret = n;
    return 0;
}

static void take_run(struct refcounts *rc, uint64_t first, uint64_t count, struct lease *ret)
{
    const bool fresh = first >= rc->fresh;

    for (uint64_t c = first; c < first + count; c++)
        refcount_slice_set(rc, rc->slices[c / rc->slice_counts], (uint32_t)(c % rc->slice_counts), 1);
    rc->fresh = MAX(rc->fresh, first + count);
    lease_add(ret, first, (uint32_t)count, fresh);
}

static int take_contiguous(struct refcounts *rc, uint64_t wanted, struct lease *ret)
{
    uint64_t at = rc->cursor, n = 0;

    for (;;) {
        int r = find_free(rc, &at);

        if (r == 0)
            r = free_run(rc, at, wanted, &n);
        if (r < 0)
            return r;
        if (n == wanted)
            break;
        at += n + 1;
    }
    for (uint64_t c = at; c < at + n;
         c += rc->slice_counts) { /* all slices in memory again, against eviction */
        struct refcount_slice *s;
        const int r = refcount_slice_load(rc, c / rc->slice_counts, &s);

        if (r < 0)
            return r;
    }
    take_run(rc, at, n, ret);
    return 0;
}

int refcounts_take(struct refcounts *rc, uint64_t wanted, bool contiguous, struct lease *ret)
{
    uint64_t taken = 0;
    int r = 0;

    if (contiguous)
        return take_contiguous(rc, wanted, ret);
    while (taken < wanted && ret->extent_count < LEASE_EXTENTS) {
        uint64_t at = rc->cursor, n;

        r = find_free(rc, &at);
        if (r < 0)
            break;
        rc->cursor = at;
        /* Within a slice, and on one side of what is fresh. */
        n = MIN(wanted - taken, rc->slice_counts - at % rc->slice_counts);
        if (at < rc->fresh)
            n = MIN(n, rc->fresh - at);
        r = free_run(rc, at, n, &n);
        if (r < 0)
            break;
        take_run(rc, at, n, ret);
        rc->cursor = at + n;
        taken += n;
    }
    return taken ? 0 : r;
}

int refcounts_used_end(struct refcounts *rc, uint64_t *ret)
{
    for (uint64_t index = rc->table_count * rc->slices_per_block; index-- > 0;) {
        struct refcount_slice *s;
        const int r = refcount_slice_load(rc, index, &s);

        if (r < 0)
            return r;
        for (uint32_t i = s ? rc->slice_counts : 0; i-- > 0;)
            if (refcount_get(s->counts, rc->order, i)) {
                *ret = index * rc->slice_counts + i + 1;
                return 0;
            }
    }
    *ret = 0;
    return 0;
}

static bool counts_only_itself(const struct refcounts *rc, uint64_t block)
{
    uint64_t sum = 0;

    for (uint32_t k = 0; k < rc->slices_per_block; k++) {
        const struct refcount_slice *s = rc->slices[block * rc->slices_per_block + k];

        if (!s)
            return false;
        for (uint32_t i = 0; i < rc->slice_counts; i++)
            sum += refcount_get(s->counts, rc->order, i);
    }
    return sum == 1;
}

/* All of it in memory. */
static int load_block(struct refcounts *rc, uint64_t block)
{
    for (uint32_t k = 0; k < rc->slices_per_block; k++) {
        struct refcount_slice *s;
        const int r = refcount_slice_load(rc, block * rc->slices_per_block + k, &s);

        if (r < 0)
            return r;
    }
    return 0;
}

int refcounts_drop_last(struct refcounts *rc, uint64_t kept_end)
{
    for (;;) {
        uint64_t end, block;
        int r = rc->table_moved ? 0 : refcounts_used_end(rc, &end);

        if (r < 0 || rc->table_moved || end <= kept_end)
            return r;
        block = (end - 1) / counts_per_block(rc);
        if (!block || (rc->table[block] & REFTABLE_OFF_MASK) != (end - 1) << rc->layer->header.cluster_bits)
            return 0;
        r = load_block(rc, block);
        if (r < 0 || !counts_only_itself(rc, block))
            return r;
        refcount_slices_forget(rc, block, block);
        name_block(rc, block, 0);
        rc->cursor = MIN(rc->cursor, end - 1);
    }
}

void refcounts_unmake(struct refcounts *rc, uint64_t fresh)
{
    const uint64_t per_block = counts_per_block(rc);

    for (uint32_t m = rc->made_count; m-- > 0;) {
        const uint64_t block = rc->made[m];

        if (rc->table_moved || !counts_only_itself(rc, block)) {
            fresh = MAX(fresh, block * per_block + 1);
            continue;
        }
        rc->table[block] = 0;
        refcount_slices_forget(rc, block, block);
        rc->cursor = MIN(rc->cursor, block * per_block);
    }
    rc->made_count = 0;
    if (rc->table_moved)
        fresh = MAX(fresh, (rc->table_off >> rc->layer->header.cluster_bits) + rc->table_clusters);
    rc->fresh = MIN(rc->fresh, fresh);
}

/* ---- opening ---- */

static int read_table(struct refcounts *rc)
{
    const size_t bytes = rc->table_count * sizeof(uint64_t);
    const int r = file_read(rc->layer->file, rc->table, bytes, rc->table_off);

    if (r < 0)
        return error_prefix(r, "refcount table");
    for (uint64_t i = 0; i < rc->table_count; i++)
        rc->table[i] = be64toh(rc->table[i]);
    return 0;
}

int refcounts_open(struct refcounts *rc, struct layer *layer)
{
    const struct header *h = &layer->header;
    const uint32_t cluster_bytes = h->cluster_bytes;

    *rc = (struct refcounts){.layer = layer, .order = h->refcount_order};
    rc->slice_bytes = MIN(cluster_bytes, SLICE_BYTES_MAX);
    rc->slice_counts = (uint32_t)(((uint64_t)rc->slice_bytes * 8) >> rc->order);
    rc->slices_per_block = cluster_bytes / rc->slice_bytes;
    rc->max = refcount_max(rc->order);
    rc->table_off = h->reftable_off;
    rc->table_clusters = h->reftable_clusters;
    rc->table_count = (uint64_t)h->reftable_clusters * cluster_bytes / sizeof(uint64_t);
    if (rc->table_count > TABLE_ENTRIES_MAX)
        return error_set(-EINVAL, "header: the refcount table is larger than %u bytes", REFTABLE_BYTES_MAX);
    rc->fresh = div_round_up(layer->file->bytes, cluster_bytes);
    rc->limit =
        layer->file->block_device ? layer->file->bytes / cluster_bytes : (HOST_OFF_MAX + 1) / cluster_bytes;
    if (layer->file->block_device)
        rc->fresh = UINT64_MAX; /* nothing says that a device holds zeros */
    rc->cached_max = MAX(16u, CACHED_BYTES / rc->slice_bytes);
    rc->cached = calloc(round_up(rc->cached_max, 64), sizeof(struct refcount_slice *));
    rc->table = pages_reserve(TABLE_ENTRIES_MAX * sizeof(uint64_t));
    rc->slices_room = TABLE_ENTRIES_MAX * rc->slices_per_block;
    rc->slices = pages_reserve(rc->slices_room * sizeof(struct refcount_slice *));
    if (!rc->cached || !rc->table || !rc->slices)
        return error_set(-ENOMEM, "out of memory");
    return read_table(rc);
}

void refcounts_close(struct refcounts *rc)
{
    refcount_slices_forget(rc, 0, UINT64_MAX);
    free(rc->cached);
    pages_release(rc->table, TABLE_ENTRIES_MAX * sizeof(uint64_t));
    pages_release(rc->slices, rc->slices_room * sizeof(struct refcount_slice *));
    *rc = (struct refcounts){0};
}
