/* SPDX-License-Identifier: MIT */
/*
 * The refcounts of an image that is open for writing: a cache of slices of its refcount blocks, its refcount
 * table, and the search for free clusters. Belongs to the allocator. What is free is what has refcount 0
 * here: there is no second list to disagree with.
 *
 * Slices are read by blocking reads on the allocator's thread: nobody waits for it meanwhile but those who
 * want clusters. They are written by refcounts_next_write(), driven by the allocator.
 */
#ifndef ENGINE_REFCOUNTS_H
#define ENGINE_REFCOUNTS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/layer.h"
#include "engine/lease.h"

struct refcount_slice {
    uint64_t index;                /* of the slice: block × slices per block + number within the block */
    uint8_t *counts;               /* as on disk */
    uint32_t dirty_from, dirty_to; /* bytes changed since last written; from == to: none */
    uint32_t unsynced_from, unsynced_to; /* bytes written since the last sync */
    uint32_t writing;                    /* writes in flight */
    bool referenced;
};

#define REFCOUNTS_MADE 16u

struct refcounts {
    struct layer *layer;
    uint32_t order;            /* log2 of the bits of a count */
    uint32_t slice_bytes;      /* at most a cluster */
    uint32_t slice_counts;     /* clusters that one slice counts */
    uint32_t slices_per_block; /* and blocks per table entry: one */
    uint64_t max;              /* of a count */

    /* The table, host byte order; room for as many entries as it may ever have. */
    uint64_t *table;
    uint64_t table_count;
    uint64_t table_off;
    uint32_t table_clusters;
    uint64_t table_dirty_from, table_dirty_to; /* entries; from == to: none */
    bool table_moved;                          /* the header does not name this table yet */
    uint64_t old_table_off;                    /* that table_moved leaves to be freed */
    uint32_t old_table_clusters;

    struct refcount_slice **slices; /* by index, room for every one there may be */
    uint64_t slices_room;
    struct refcount_slice **cached; /* a bounded number */
    uint32_t cached_count, cached_max, hand;
    uint32_t dirty_count; /* slices with something dirty */

    /* Blocks made since the allocator last reset the count, as far as there is room. */
    uint64_t made[REFCOUNTS_MADE];
    uint32_t made_count;

    uint64_t cursor; /* every cluster below it is in use */
    uint64_t fresh;  /* clusters from it on were never used and lie past what was the end of the file */
    uint64_t limit;  /* clusters from it on cannot be: the end of a block device, or of the format */
};

int refcounts_open(struct refcounts *rc, struct layer *layer);
void refcounts_close(struct refcounts *rc);

/* 0, or a negative errno with a message. A cluster that no block counts has 0. */
int refcounts_get(struct refcounts *rc, uint64_t cluster, uint64_t *ret);

/* -ERANGE when the count would pass its width, -EIO below zero or without a block: then nothing
 * changed. */
int refcounts_change(struct refcounts *rc, uint64_t cluster, int64_t by);

/*
 * Find up to clusters_wanted free clusters, in at most LEASE_EXTENTS runs (contiguous: one run or nothing),
 * and set their counts to 1, making blocks and a larger table as needed. Adds to *ret; fewer than wanted are
 * no error, none are -ENOSPC, or -EAGAIN when a moved table has to be written first. Nothing is durable yet.
 */
int refcounts_take(struct refcounts *rc, uint64_t clusters_wanted, bool contiguous, struct lease *ret);

/* The first cluster from which on none is in use. Looks at counts from the end backwards, blocking. */
int refcounts_used_end(struct refcounts *rc, uint64_t *ret);

/*
 * The blocks that count nothing but themselves, last in the file and not before kept_end, in clusters, go
 * from the table, which is to be written; the file may then be cut before them. Nothing of them is being
 * written. Blocking.
 */
int refcounts_drop_last(struct refcounts *rc, uint64_t kept_end);

/*
 * The next piece of dirty counts: copied to buffer (of slice_bytes, aligned), with its place in the file, and
 * clean from now on. False when nothing is dirty. refcounts_written() says what became of it.
 */
bool refcounts_next_write(struct refcounts *rc, uint8_t *buffer, uint64_t *ret_off, uint32_t *ret_bytes,
                          uint64_t *ret_slice);
void refcounts_written(struct refcounts *rc, uint64_t slice, bool written, uint64_t off, uint32_t bytes);

/* What was written since the last time is durable, or may not be: then it is dirty again. */
void refcounts_synced(struct refcounts *rc, bool durable);

/* There is no space for the blocks that were made: forget those that count only themselves, and let clusters
 * from fresh on be fresh again as far as no block is there. Nothing of them is being written. */
void refcounts_unmake(struct refcounts *rc, uint64_t fresh);

#endif
