/* SPDX-License-Identifier: MIT */
/*
 * What the parts of scow_check() share.
 *
 * The check counts the references to every host cluster (header, L1 and L2 tables of the active disk and of
 * the snapshots, data, snapshot table, refcount table and blocks, encryption header, bitmaps) and compares
 * them with the refcounts in the file. Threads take turns at the L1 tables' entries, each working through one
 * L2 table at a time, and at the refcount blocks. What counts as a corruption, a leak or an error, and how
 * often, follows QEMU's block/qcow2-refcount.c, which is the judge of what this must report.
 *
 * Memory: the bound is memory_bytes of the options. It holds
 *   - the refcount table, at most 8 MiB, the list of snapshots' L1 tables, 16 bytes each, at most 1 MiB, and
 * 264 KiB per thread;
 *   - in what remains, a window of host clusters, see check_counts.h: with 16-bit refcounts 2.4 bytes per
 * cluster, 38 MiB per TiB of file with 64 KiB clusters. A file with more clusters than fit is checked in
 * several passes, each with the next window. So that a tiny bound does not make the work endless, there are
 * at most CHECK_PASSES_MAX passes, and a window has at least the clusters of one refcount block or 32768,
 * whichever is less: below that memory_bytes is exceeded.
 *
 * Threads are plain ones, started for each phase; the caller's takes part. With one thread none is started.
 * Fields of struct check are written between the phases by the caller's thread unless they say otherwise.
 */
#ifndef ENGINE_CHECK_H
#define ENGINE_CHECK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/attributes.h"
#include "base/error.h"
#include "engine/check_counts.h"
#include "engine/layer.h"
#include "format/limits.h"
#include "shardcow.h"

#define CHECK_PASSES_MAX 1024u
#define CHECK_THREADS_MAX 256u
#define CHECK_BUFFER_BYTES (256u << 10)
/* Most host clusters whose refcounts one unit of work reads: at 64 bits each they fill a buffer. */
#define CHECK_UNIT_CLUSTERS_MAX (CHECK_BUFFER_BYTES / 8)
#define CHECK_FEED_ENTRIES 4096u

struct repair;

/* What one thread found; added up at the end. */
struct check_tally {
    uint64_t corruptions, leaks, errors;
    /* For repair. COPIED flags that do not fit the refcounts in the file (among the corruptions, except when
     * repairing); refcounts that are too low, among them those that are 0 and those without a block; wrong
     * refcounts of referenced clusters where mending changes whether the count is 1. */
    uint64_t flags, low, low_from_zero, blocks_missing, ones_changed;
    uint64_t last_cluster; /* the highest one in use */
    uint64_t host_clusters, metadata_clusters;
    /* of the active L1: as QEMU counts them, every entry that the table has */
    uint64_t allocated, compressed, fragmented;
    /* of the active L1, within the virtual size */
    uint64_t standard, zero_plain, zero_allocated, compressed_guest, compressed_bytes, shared;
    uint64_t l2_tables, subclusters_allocated, subclusters_zero;
};

struct check_worker {
    struct check *check;
    uint8_t *buf; /* CHECK_BUFFER_BYTES */
    struct check_tally tally;
    /* The part of a refcount block that was looked into last, for clusters outside the window. */
    uint64_t sector_off; /* UINT64_MAX: none */
    uint8_t sector[SECTOR_BYTES];
};

/* What the comparison found of a unit's refcounts. */
enum check_unit { UNIT_SAME, UNIT_DIFFERS, UNIT_UNREADABLE };

struct check_table {
    uint64_t off;
    uint32_t count;
};

/* One L1 entry that is not 0. */
struct check_l1 {
    uint64_t entry;
    uint32_t index;
    bool active;
};

/* Where the threads are in the L1 tables of this pass. All under lock. */
struct check_feed {
    pthread_mutex_t lock;
    uint32_t table;     /* index in tables */
    uint32_t table_end; /* stop there */
    uint32_t next;      /* entry of that table */
    uint32_t buffer_first, buffer_count;
    uint64_t entries[CHECK_FEED_ENTRIES]; /* [buffer_first, buffer_first + buffer_count) of the table */
};

struct check {
    struct layer *layer;
    struct file *file;
    struct file *own_file; /* a buffered one, or NULL */
    const struct header *header;
    const uint8_t *cluster0;
    struct scow_check_options options; /* with the defaults filled in */
    bool data_file;
    struct repair *repair; /* NULL: this only checks */
    bool quiet;            /* count references again: report nothing, judge nothing */

    uint32_t cluster_bits;
    uint64_t cluster_bytes;
    uint64_t file_bytes; /* up to a whole sector, as QEMU sees a file's length */
    uint64_t clusters;   /* of the file */
    /* A reference reached into the cluster behind the last one, which makes that one part of the file.
     * Written by all threads in the first pass, read after the L1 phase. */
    _Atomic bool grown;
    /* Of the references that lie past that: the lowest place (UINT64_MAX: there are none) and the end. */
    _Atomic uint64_t dangling_first, dangling_end;
    bool damaged; /* the refcount table or its blocks: counts cannot be put right in place */

    uint64_t *reftable; /* host byte order */
    uint32_t reftable_count;
    uint32_t refblock_shift; /* log2 of the counts in one block */

    struct check_table *tables; /* L1: the active one, then the snapshots' */
    uint32_t table_count;
    uint64_t snapshot_table_bytes;
    uint32_t snapshots_incomplete;

    struct check_counts counts;
    uint32_t pass, pass_count;
    uint64_t unit_clusters; /* host clusters in one unit of work; a window is a whole number of units */
    uint64_t unit_count;    /* in this window */
    uint8_t *unit_state;    /* enum check_unit, one byte each, written by the unit's thread */
    _Atomic uint64_t next_unit;
    struct check_feed feed;

    struct check_worker *workers; /* options.threads of them; the first is the caller's */
    int (*phase)(struct check_worker *w);

    /* Under report_lock: the callbacks are called from one thread at a time. */
    pthread_mutex_t report_lock;
    uint64_t done, done_shown, total; /* of the progress; read and written there */
    int failed;                       /* the first error of a phase; with its message */
    char failed_message[ERROR_BYTES];
    _Atomic bool stop; /* a phase failed: take no more work */
};

/* The first pass looks at the entries themselves; later ones only count the references into their window. */
static inline bool check_first_pass(const struct check *c)
{
    return c->pass == 0 && !c->quiet;
}

static inline uint64_t check_cluster(const struct check *c, uint64_t host_off)
{
    return host_off >> c->cluster_bits;
}

static inline bool check_aligned(const struct check *c, uint64_t host_off)
{
    return !(host_off & (c->cluster_bytes - 1));
}

/* Host clusters to compare: those of the file, and one more if it was referred to. */
static inline uint64_t check_cluster_end(const struct check *c)
{
    return c->clusters + (atomic_load_explicit(&c->grown, memory_order_relaxed) ? 1 : 0);
}

/* --- engine/check.c --------------------------------------------------------------------------------------
 */

/* Options as the caller gave them (NULL: the defaults), with the defaults filled in. */
int check_take_options(const struct scow_check_options *given, struct scow_check_options *ret);

/* A check of the image's top layer, a qcow2 image, with its threads' memory. options: all filled in. */
int check_begin(struct scow_image *image, const struct scow_check_options *options, struct check **ret);
/* NULL is allowed. */
void check_end(struct check *c);

/* The refcount table and the snapshot table, in place of what was loaded before. */
int check_load(struct check *c);

/*
 * Cuts the host clusters [0, clusters) into windows that memory_bytes allows, and calls visit for each, with
 * counts that are all 0. The last window stays mapped.
 */
int check_windows(struct check *c, uint64_t clusters, int (*visit)(struct check *c));

/* Of the present window: the refcounts in the file and the references. Then compare the two, and tell. */
int check_count(struct check *c);
int check_compare(struct check *c);

/* Runs a phase on all threads. */
int check_run(struct check *c, int (*phase)(struct check_worker *w));

/* What all threads found, and its form for the caller, fixed counts aside. */
struct check_tally check_sum(const struct check *c);
struct scow_check_result check_result(const struct check *c, const struct check_tally *t);

/* Count a problem and tell the caller about it; nothing when quiet. */
void check_report(struct check_worker *w, enum scow_problem_kind kind, const char *fmt, ...)
    ATTR_PRINTF(3, 4);
/* Tell without counting: for what was counted before. */
void check_tell(struct check *c, enum scow_problem_kind kind, const char *fmt, ...) ATTR_PRINTF(3, 4);

/* units more are done. 0, or -ECANCELED. */
int check_progress(struct check *c, uint64_t units);

/*
 * Count one reference to every cluster of [off, off + bytes). What reaches a cluster or more past the end of
 * the file is a corruption and counts for nothing. metadata: for metadata_bytes.
 */
void check_region(struct check_worker *w, uint64_t off, uint64_t bytes, bool metadata);

/* --- engine/check_tables.c -------------------------------------------------------------------------------
 */

/* Phase: all entries of the L1 tables and of the L2 tables below them. */
int check_tables_phase(struct check_worker *w);

/* Starts anew at the first of tables[0, table_end). */
void check_feed_reset(struct check *c, uint32_t table_end);
/* Takes up to max nonzero L1 entries. Returns how many, 0 at the end; *ret_passed counts the zero ones too.
 */
int check_feed_take(struct check *c, uint32_t max, struct check_l1 *work, uint64_t *ret_passed);

/*
 * What the refcount blocks say about a cluster, as far as this pass can tell: *ret_known is false when
 * another pass has it in its window.
 */
enum check_stored check_stored_count(struct check_worker *w, uint64_t cluster, bool *ret_known);

/* --- engine/check_refcounts.c ----------------------------------------------------------------------------
 */

int check_refcounts_load_table(struct check *c);

/* Phase: read what the refcount blocks say about the window. */
int check_refcounts_load_phase(struct check_worker *w);

/* The refcount blocks' own references, and whether they have others. */
void check_refcounts_blocks(struct check_worker *w);

/* Phase: compare; then tell, in order, what differs. */
int check_refcounts_compare_phase(struct check_worker *w);
void check_refcounts_tell(struct check_worker *w);

/*
 * Reads a unit's refcounts into w->buf; *ret_off is their place in the file. 1 when they are there, 0 when no
 * block covers them, or a negative errno. A unit never spans two blocks.
 */
int check_refcounts_read_unit(struct check_worker *w, uint64_t unit, uint64_t *ret_first, uint64_t *ret_off);

/* Clusters of a unit, from its first on, that are there to compare. */
uint32_t check_unit_count(const struct check *c, uint64_t first);

/* The stored count of any cluster, read from its block. 0 or a negative errno. */
int check_refcounts_lookup(struct check_worker *w, uint64_t cluster, uint64_t *ret_refcount);

/* --- engine/check_extras.c -------------------------------------------------------------------------------
 */

/* Read the snapshot table: adds the snapshots' L1 tables to c->tables. Once, before the first pass. */
int check_snapshots_read(struct check_worker *w);

/* The references of what hangs off the header's extensions. */
void check_crypto(struct check_worker *w);
int check_bitmaps(struct check_worker *w);

#endif
