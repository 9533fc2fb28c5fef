/* SPDX-License-Identifier: MIT */
/*
 * A new refcount structure.
 *
 * It takes one run of clusters that nothing refers to and that have no refcount either (so that nothing that
 * was merely lost is overwritten), else the end of the file, else leaked clusters: first the refcount table,
 * then a block for each range of clusters with references, then the new snapshot table if there is one.
 * Nothing names it before the header does, which is one write of 24 bytes in one sector; a crash before
 * leaves the old structure as it was.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "engine/repair_parts.h"
#include "format/header.h"
#include "format/refcount.h"

static uint64_t table_clusters(const struct check *c, uint64_t entries)
{
    return div_round_up(entries * 8, c->cluster_bytes);
}

/* If every cluster of the file needed a refcount. */
static uint64_t room_needed(const struct check *c)
{
    const uint64_t fixed = div_round_up(repair_snapshots_bytes_max(c), c->cluster_bytes);
    uint64_t before, n = fixed;

    do { /* ends: a block covers at least 64 clusters */
        const uint64_t blocks = ((c->clusters + 1 + n) >> c->refblock_shift) + 1;

        before = n;
        n = fixed + blocks + table_clusters(c, blocks);
    } while (n != before);
    return n;
}

int repair_room_reset(struct check *c)
{
    struct repair *const r = c->repair;

    r->free = r->leaked = (struct repair_room){0};
    r->room_clusters = room_needed(c);
    r->block_count = ((c->clusters + 1 + r->room_clusters) >> c->refblock_shift) + 1;
    free(r->block_used);
    r->block_used = calloc(1, r->block_count);
    return r->block_used ? 0 : error_set(-ENOMEM, "out of memory");
}

static void room_add(struct repair_room *room, uint64_t cluster, bool usable, uint64_t wanted)
{
    if (!usable) {
        room->run.count = 0;
        return;
    }
    if (!room->run.count++)
        room->run.first = cluster;
    if (room->run.count == wanted && !room->found.count)
        room->found = room->run;
}

void repair_room_look(struct check *c)
{
    const uint64_t end = MIN(c->counts.first + c->counts.count, c->clusters);
    struct repair *const r = c->repair;

    for (uint64_t i = c->counts.first; i < end && !r->free.found.count; i++) {
        const bool leaked = !check_counts_expected(&c->counts, i);

        room_add(&r->free, i, leaked && check_counts_stored(&c->counts, i) == STORED_ZERO, r->room_clusters);
        room_add(&r->leaked, i, leaked, r->room_clusters);
    }
}

/* References past the end of the file would become valid by extending it, perhaps to the new structure. */
static bool can_extend(const struct check *c)
{
    const uint64_t clusters = check_cluster_end(c) + c->repair->room_clusters;

    return !c->file->block_device &&
           check_cluster(c, atomic_load_explicit(&c->dangling_first, memory_order_relaxed)) >= clusters;
}

static int choose_room(struct check *c, uint64_t *ret_first)
{
    const struct repair *const r = c->repair;

    if (r->free.found.count)
        *ret_first = r->free.found.first;
    else if (can_extend(c))
        *ret_first = check_cluster_end(c);
    else if (r->leaked.found.count)
        *ret_first = r->leaked.found.first;
    else
        return error_set(-ENOSPC, "%s: no room for new refcounts, and the file cannot be extended: %s",
                         file_name(c->file),
                         c->file->block_device ? "it is a device" : "entries refer to clusters past its end");
    return 0;
}

bool repair_room(struct check *c, uint64_t *ret_bytes)
{
    const uint64_t end = atomic_load_explicit(&c->dangling_end, memory_order_relaxed);
    const uint64_t clusters = div_round_up(end, c->cluster_bytes);
    uint64_t first;

    *ret_bytes = 0;
    if (choose_room(c, &first) == 0)
        return true;
    if (!c->file->block_device && clusters <= (uint64_t)c->reftable_count << c->refblock_shift)
        *ret_bytes = clusters << c->cluster_bits;
    return false;
}

/* Where, and which blocks. Blocks for the new clusters themselves are among them. */
static int plan(struct check *c, uint64_t snapshot_clusters, uint64_t *ret_blocks, uint64_t *ret_entries)
{
    struct repair *const r = c->repair;
    uint64_t first = 0, before, n = 1, blocks, entries;
    const int ret = choose_room(c, &first);

    if (ret < 0)
        return ret;
    do {
        const uint64_t last = (first + n - 1) >> c->refblock_shift;

        before = n;
        blocks = entries = 0;
        for (uint64_t i = first >> c->refblock_shift; i <= last; i++)
            r->block_used[i] = 1;
        for (uint64_t i = 0; i < r->block_count; i++)
            if (r->block_used[i]) {
                blocks++;
                entries = i + 1;
            }
        n = table_clusters(c, entries) + blocks + snapshot_clusters;
    } while (n > before);

    if (table_clusters(c, entries) << c->cluster_bits > REFTABLE_BYTES_MAX)
        return error_set(-EFBIG, "a new refcount table would be larger than the limit of %u bytes",
                         REFTABLE_BYTES_MAX);
    r->new_run = (struct cluster_run){first, n};
    r->new_table_clusters = table_clusters(c, entries);
    *ret_blocks = blocks;
    *ret_entries = entries;
    return 0;
}

/* For a structure behind the end of the file. */
static int extend(struct check *c)
{
    const struct cluster_run *const new_run = &c->repair->new_run;
    const uint64_t bytes = (new_run->first + new_run->count) << c->cluster_bits;
    int ret;

    if (new_run->first < c->clusters)
        return 0;
    ret = file_truncate(c->file, bytes);
    if (ret == 0) {
        c->file_bytes = bytes;
        c->clusters = new_run->first + new_run->count;
    }
    return ret;
}

void repair_count_new(struct check_worker *w)
{
    struct check *const c = w->check;
    const struct cluster_run *const new_run = &c->repair->new_run;

    check_region(w, new_run->first << c->cluster_bits, new_run->count << c->cluster_bits, true);
    if (!c->snapshots_incomplete)
        check_region(w, c->header->snapshots_off, c->snapshot_table_bytes, true);
}

static int write_window(struct check *c)
{
    const uint32_t order = c->header->refcount_order;
    const size_t unit_bytes = (size_t)(c->unit_clusters << order >> 3);
    uint8_t *const buf = c->workers[0].buf;
    int ret;

    c->quiet = true;
    ret = check_count(c);
    c->quiet = false;
    for (uint64_t unit = 0; unit < c->unit_count && ret == 0; unit++) {
        const uint64_t first = c->counts.first + unit * c->unit_clusters;
        const uint64_t within = first & ((1ull << c->refblock_shift) - 1);
        const uint64_t block_off = c->repair->new_table[first >> c->refblock_shift];

        if (!block_off)
            continue;
        memset(buf, 0, unit_bytes);
        for (uint32_t i = 0; i < c->unit_clusters; i++)
            refcount_set(buf, order, i, check_counts_expected(&c->counts, first + i));
        ret = repair_write(c, buf, unit_bytes, block_off + (within << order >> 3));
    }
    return ret;
}

/* The table gets its blocks' places, then all is written. entries: what is used of the table. */
static int write_blocks_and_table(struct check *c, uint64_t entries)
{
    struct repair *const r = c->repair;
    const size_t table_bytes = (size_t)r->new_table_clusters << c->cluster_bits;
    uint64_t next = r->new_run.first + r->new_table_clusters;
    int ret;

    r->new_table = calloc(1, table_bytes);
    if (!r->new_table)
        return error_set(-ENOMEM, "out of memory");
    for (uint64_t i = 0; i < entries; i++)
        if (r->block_used[i])
            r->new_table[i] = next++ << c->cluster_bits;
    r->rebuilding = true;
    ret = check_windows(c, entries << c->refblock_shift, write_window);
    r->rebuilding = false;
    for (uint64_t i = 0; i < entries; i++)
        put_be64(&r->new_table[i], r->new_table[i]);
    if (ret == 0)
        ret = repair_write(c, r->new_table, table_bytes, r->new_run.first << c->cluster_bits);
    free(r->new_table);
    r->new_table = NULL;
    return ret;
}

/* Refcount table and snapshot table are neighbours in the header. */
static int switch_header(struct check *c, uint64_t snapshots_off)
{
    struct header *const h = &c->layer->header;
    const struct repair *const r = c->repair;
    uint8_t raw[24];
    int ret = repair_sync(c);

    if (ret < 0)
        return ret;
    put_be64(raw, r->new_run.first << c->cluster_bits);
    put_be32(raw + 8, (uint32_t)r->new_table_clusters);
    put_be32(raw + 12, h->snapshot_count);
    put_be64(raw + 16, snapshots_off);
    ret = repair_write_header(c, raw, sizeof raw, offsetof(struct header_disk, reftable_off));
    if (ret == 0)
        ret = repair_sync(c);
    if (ret < 0)
        return ret;
    h->reftable_off = r->new_run.first << c->cluster_bits;
    h->reftable_clusters = (uint32_t)r->new_table_clusters;
    h->snapshots_off = snapshots_off;
    return 0;
}

int repair_rebuild(struct check *c)
{
    uint64_t blocks = 0, entries = 0, snapshots_off = c->header->snapshots_off, snapshot_bytes = 0;
    uint8_t *snapshots = NULL;
    int ret = 0;

    if (c->snapshots_incomplete)
        ret = repair_snapshots_build(c, &snapshots, &snapshot_bytes);
    if (ret == 0)
        ret = plan(c, snapshot_bytes >> c->cluster_bits, &blocks, &entries);
    if (ret == 0)
        ret = extend(c);
    if (ret == 0)
        ret = write_blocks_and_table(c, entries);
    if (ret == 0 && snapshots) {
        snapshots_off = (c->repair->new_run.first + c->repair->new_table_clusters + blocks)
                        << c->cluster_bits;
        ret = repair_write(c, snapshots, (size_t)snapshot_bytes, snapshots_off);
    }
    free(snapshots);
    return ret < 0 ? ret : switch_header(c, snapshots_off);
}
