/* SPDX-License-Identifier: MIT */
/*
 * What the parts of a repair share.
 *
 * A repair is a check (engine/check.h) that remembers more, the diagnosis, and then one more walk over the
 * same windows that writes. With one window, which is the rule, the walk uses the counts of the diagnosis;
 * with several it counts each window's references again. Where the refcount blocks or their table are
 * damaged, overlap something or are missing, a new refcount structure is written first and the diagnosis made
 * again.
 *
 * What is mended, and what only told, is what qemu-img check -r mends (QEMU block/qcow2-refcount.c).
 */
#ifndef ENGINE_REPAIR_PARTS_H
#define ENGINE_REPAIR_PARTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/check.h"

struct cluster_run {
    uint64_t first, count;
};

struct repair {
    bool all;     /* SCOW_CHECK_REPAIR_ALL */
    bool recover; /* REPAIR_RECOVER */
    bool punch;   /* clusters that become free */

    /* Of the present diagnosis. One byte per refcount block that clusters could need: some cluster of it is
     * referenced. Written by the threads that compare, relaxed. */
    uint8_t *block_used;
    uint64_t block_count;
    struct repair_room {
        struct cluster_run run;   /* that ends where the last window ended */
        struct cluster_run found; /* the first one that is long enough; count 0: none */
    } free, leaked;               /* clusters without references and refcount; without references */
    uint64_t room_clusters;       /* what a new refcount structure takes at most */

    /* The new refcount structure, while rebuilding: table, blocks, snapshot table in a row. */
    bool rebuilding;
    struct cluster_run new_run;
    uint64_t new_table_clusters;
    uint64_t *new_table; /* host byte order; 0: no block */

    /* While mending. */
    bool look_at_flags;
    bool mend_flags; /* else they are only told */

    /* One thread at a time changes entries: under lock, as are the counts below. */
    pthread_mutex_t lock;
    uint64_t unsynced; /* writes */
    uint64_t flags_left, errors;
    uint64_t corruptions_fixed, leaks_fixed;
};

static inline void repair_block_used(struct repair *r, uint64_t block)
{
    if (block < r->block_count)
        __atomic_store_n(&r->block_used[block], 1, __ATOMIC_RELAXED);
}

/* --- engine/repair.c -------------------------------------------------------------------------------------
 */

/* Write metadata; make all that was written durable. */
int repair_write(struct check *c, const void *buf, size_t bytes, uint64_t off);
int repair_sync(struct check *c);

/* Write bytes of the header, none of them beyond its first sector, and keep the decoded bytes in step. */
int repair_write_header(struct check *c, const void *buf, uint32_t bytes, uint32_t off);

/* --- engine/repair_entries.c -----------------------------------------------------------------------------
 */

/*
 * Make an L2 entry, given as it was read, one that reads as zeros and has no host cluster. True when that is
 * what it is now. Any thread of the check.
 */
bool repair_make_zero(struct check_worker *w, uint64_t table_off, uint32_t index, uint64_t entry,
                      uint64_t bitmap);

/* Phase: COPIED flags of the active tables, as far as this window's counts decide about them. */
int repair_flags_phase(struct check_worker *w);

/* --- engine/repair_refcounts.c ---------------------------------------------------------------------------
 */

/* This window's refcounts that are too low, or too high. */
int repair_raise(struct check *c);
int repair_lower(struct check *c);

/* Give the clusters of this window back to the host that have become free. */
void repair_punch(struct check *c);

/* --- engine/repair_rebuild.c -----------------------------------------------------------------------------
 */

/* Before the diagnosis, and for each of its windows: look for room. */
int repair_room_reset(struct check *c);
void repair_room_look(struct check *c);

/* Whether there is room for a new refcount structure. If not, references past the end of the file are in the
 * way: *ret_bytes is how long the file would have to be to contain them; 0: it cannot. */
bool repair_room(struct check *c, uint64_t *ret_bytes);

/* A new refcount structure from the references, and a new snapshot table if entries are incomplete. */
int repair_rebuild(struct check *c);

/* While rebuilding: the references of what the new header will name. */
void repair_count_new(struct check_worker *w);

/* --- engine/repair_snapshots.c ---------------------------------------------------------------------------
 */

/* Upper bound of what repair_snapshots_build() gives; 0 when all entries are complete. */
uint64_t repair_snapshots_bytes_max(const struct check *c);

/* The snapshot table with complete entries, padded with zeros to whole clusters. */
int repair_snapshots_build(struct check *c, uint8_t **ret_table, uint64_t *ret_bytes);

#endif
