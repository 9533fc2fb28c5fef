/* SPDX-License-Identifier: MIT */
/*
 * The allocator: one loop that owns free clusters, refcounts, L1, the header and the order in which metadata
 * reaches the disk. It runs several small machines side by side, each a step function that moves on when what
 * it waits for has come:
 *
 * - counts (counts_machine.c): leases and all else that changes refcounts. Extend the file → write counts →
 *   sync → table and header, each synced, if they changed → grant. I1, I6.
 *
 * - commit (commit_machine.c): what the shards changed. They copy, and write what names nothing new → sync →
 *   they write the rest → sync → L1 → sync. I2, I3, I7.
 *
 * - tables (table_machine.c): makes and copies L2 tables.
 *
 * - freed (freed_machine.c): commit → drain → punch → lower the count. I4, I5.
 *
 * - control (control_machine.c): quiesce and grow, on request, with the others at rest.
 */
#ifndef ENGINE_ALLOCATOR_H
#define ENGINE_ALLOCATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/list.h"
#include "engine/image.h"
#include "engine/note.h"
#include "engine/refcounts.h"
#include "engine/request.h"
#include "engine/shard.h"
#include "io/loop.h"

/* An I/O of the allocator's; done continues its machine. */
struct allocator;
struct allocator_io {
    struct io io;
    void (*done)(struct allocator *a, struct allocator_io *io);
    uint64_t tag;
};

enum counts_state { COUNTS_IDLE, COUNTS_EXTEND, COUNTS_WRITE, COUNTS_SYNC };

/* Before space is refused: what is freed but not free yet may do. */
enum reclaim_state {
    RECLAIM_NONE,
    RECLAIM_COMMIT, /* a commit makes it durable that it is freed */
    RECLAIM_DRAIN,  /* it goes its way (freed_machine.c) */
    RECLAIM_RETRY,  /* now, or never */
};

#define COUNTS_IOS 8u

struct counts_machine {
    enum counts_state state;
    int32_t status;
    uint32_t in_flight;
    struct allocator_io ios[COUNTS_IOS];
    uint8_t *buffers[COUNTS_IOS]; /* one slice each */
    struct allocator_io step_io;  /* extend, sync */
    uint64_t extend_to;
    bool frugal;          /* space is short: single clusters, nothing ahead */
    struct list wanting;  /* lease notes: asked */
    struct list for_room; /* room notes: asked */
    bool pool_wanted, pool_in_pass;
    struct lease pool_new;
    int32_t pool_status; /* of the last attempt to fill it */
    enum reclaim_state reclaim;
    uint64_t reclaim_commits;  /* RECLAIM_COMMIT: done when so many commits are over */
    uint64_t reclaim_until_ns; /* RECLAIM_DRAIN: no longer, whoever holds it up */
    uint64_t want_contiguous;  /* clusters in one run, for a larger L1; 0: none */
    bool contiguous_in_pass;
    struct lease contiguous; /* the answer */
    int32_t contiguous_status;
    uint64_t wanted_pass;  /* passes are to be made until they are so many, though nobody wants clusters */
    uint64_t passes;       /* completed without an error */
    uint64_t failures;     /* in a row, for want of anything but space */
    uint64_t failed;       /* passes that failed, ever */
    int32_t error;         /* of the last one */
    uint64_t fresh_before; /* refcounts.fresh as the pass began */
    uint64_t since_ns;     /* when counts first became dirty */
};

enum commit_state {
    COMMIT_IDLE,
    COMMIT_COPY,
    COMMIT_COUNTS, /* raised refcounts become durable */
    COMMIT_SYNC1,
    COMMIT_WRITE,
    COMMIT_SYNC2,
    COMMIT_L1,
    COMMIT_SYNC3,
};

struct commit_machine {
    enum commit_state state;
    int32_t status;
    struct note *notes; /* by shard: the phases */
    struct note *ends;  /* by shard: how it ended */
    uint32_t notes_out;
    bool any_copy, any_l1, raised;
    bool l1_early;        /* only where I3 is off */
    bool soft;            /* nobody waits for more than that the file has it */
    struct list waiting;  /* requests: for the next commit */
    struct list joined;   /* requests: in the one under way */
    uint64_t counts_pass; /* COMMIT_COUNTS: done when passes reaches it */
    uint64_t own_mutated; /* of the allocator, as copied */
    struct allocator_io sync_io, data_sync_io, l1_io;
    uint32_t syncs_out;
    uint64_t *l1_copy;       /* what is to be written of L1, big-endian */
    uint32_t l1_from, l1_to; /* entries of it */
    uint32_t l1_next;        /* entry that the next write begins with */
    struct freed_list freed; /* by this commit, and by ones that failed */
    _Atomic bool wanted;     /* any thread: the cache is full of dirty slices */
    uint64_t last_ns;
    uint32_t failures;      /* in a row */
    uint64_t failed;        /* ever */
    uint64_t counts_failed; /* COMMIT_COUNTS: as it began */
    int32_t error;          /* of the last that failed */
    int32_t lost;           /* of a sync that failed with nobody waiting for it */
};

/* Clusters that lost their references in a commit. */
struct freed_batch {
    struct list_node node;
    uint64_t epoch; /* of the commit's end */
    struct freed_list list;
    uint32_t next; /* run to look at */
};

#define PUNCHES 4u

struct punch {
    struct allocator_io io;
    bool busy;
    uint64_t first, count; /* clusters */
};

struct freed_machine {
    struct list batches; /* freed_batch, in order of epoch */
    struct punch punches[PUNCHES];
    uint32_t punches_busy;
    bool cannot_punch;
    struct list drains; /* notes */
};

#define TABLES 16u

/* An L2 table being made or copied. */
struct table_job {
    bool busy;
    uint64_t l1_index;
    uint64_t old_off; /* of the table that is copied; 0: a new one */
    uint64_t new_off;
    uint8_t *buffer;
    struct allocator_io io;
    struct list notes;
};

enum control_state {
    CONTROL_IDLE,
    CONTROL_COMMIT, /* until nothing is dirty and nothing is pending */
    CONTROL_RETURN, /* leases */
    CONTROL_FREED,  /* until what came back is */
    CONTROL_COUNTS, /* until refcounts are durable */
    CONTROL_L1,     /* until there is room for a larger L1 */
};

struct control_machine {
    enum control_state state;
    struct list waiting; /* requests */
    struct request *request;
    uint32_t notes_out;
    int32_t status;
    struct freed_list returned;
    uint64_t counts_failed, commits_failed; /* as the request found them */
    bool in_hand;                           /* some shard has clusters that nothing names yet */
    uint64_t counts_pass;
    uint64_t new_l1_count;
};

struct allocator {
    struct loop loop;
    struct scow_image *image;
    struct layer *layer;
    struct refcounts refcounts;
    struct list done; /* I/Os that completed while sleeping */
    bool *notify_queue, *notify_shard;
    bool notify_any;
    int32_t broken; /* the backend's error once it has failed */

    struct counts_machine counts;
    struct commit_machine commit;
    struct freed_machine freed;
    struct table_job tables[TABLES];
    struct list tables_waiting; /* notes */
    struct control_machine control;

    struct lease pool, pool_next; /* durable: the shards' leases, and L2 tables, come from it */
    uint64_t kept_end;       /* the file is never cut off below: space of unknown use that it had at open */
    uint64_t file_end;       /* the file's size, all below is allocated or a hole */
    _Atomic bool tight;      /* any thread: a write has found no space; nothing is kept ahead any more */
    bool tail_stays;         /* cutting off what is kept ahead has failed */
    bool end_unknown;        /* the file may be longer than file_end */
    bool cannot_allocate;    /* no fallocate: extended by truncation */
    _Atomic bool corruption; /* reported, not yet in the header */
    bool marked;             /* the header says that the image is in use */
    bool closed;             /* no machine begins anything */
    bool header_stale;       /* the disk may have what was taken back */
    bool counts_lost;        /* a refcount could not be read to be lowered: its cluster leaks */
    uint8_t *header_block;   /* the header's first block, for writing */

    /* L1 as it is on disk, big-endian, for as many entries as there may be; and which differ in memory. */
    uint64_t *l1_durable;
    uint32_t l1_dirty_from, l1_dirty_to;

    /* L1 changes and clusters of its own to be freed; as a shard's. */
    counter mutated, committed;
    struct freed_list own_freed;

    counter commits, syncs, leases, leased, punched, skipped, pending;
};

int allocator_create(struct scow_image *image, struct allocator **ret);
/* Its thread has stopped. NULL is allowed. */
void allocator_destroy(struct allocator *a);

/* Any thread. */
static inline void allocator_notify(struct allocator *a)
{
    loop_notify(&a->loop);
}

/* Any thread: dirty slices are in somebody's way. */
void allocator_want_commit(struct allocator *a);

/* Whether everything that was published before is durable, as mapping goes. Any thread. */
static inline bool image_is_committed(const struct scow_image *image)
{
    const struct allocator *a = image->allocator;

    if (!a)
        return true;
    for (uint32_t i = 0; i < image->shard_count; i++) {
        const struct shard *s = &image->shards[i];

        if (atomic_load_explicit(&s->mutated, memory_order_acquire) !=
            atomic_load_explicit(&s->committed, memory_order_acquire))
            return false;
    }
    return atomic_load_explicit(&a->mutated, memory_order_acquire) ==
           atomic_load_explicit(&a->committed, memory_order_acquire);
}

/* ---- between the machines; the allocator's thread ---- */

void allocator_start_io(struct allocator *a, struct allocator_io *io,
                        void (*done)(struct allocator *a, struct allocator_io *io));
void allocator_answer_note(struct allocator *a, struct note *note, int status);
void allocator_send_note(struct allocator *a, uint32_t shard_index, struct note *note);
/* For the next turn, whatever that comes from: the shard is woken only if ops wait for slots, which is all
 * that may hang on it. */
void allocator_leave_note(struct allocator *a, uint32_t shard_index, struct note *note);
void allocator_answer_request(struct allocator *a, struct request *r, int status, const char *text);
static inline void allocator_mutate(struct allocator *a)
{
    atomic_store_explicit(&a->mutated, counter_get(&a->mutated) + 1, memory_order_release);
}
/* Any thread: metadata that cannot be has been met. The header gets the corrupt bit, and writing ends. */
void allocator_report_corruption(struct allocator *a);
/* Any thread: a write found no space where clusters were thought to have theirs. */
void allocator_report_no_space(struct allocator *a);
/* No writes any more. */
void allocator_give_up(struct allocator *a, int err);

/* Each returns whether it did anything. */
bool counts_step(struct allocator *a);
bool commit_step(struct allocator *a);
bool freed_step(struct allocator *a);
bool tables_step(struct allocator *a);
bool control_step(struct allocator *a);

/* Clusters that a pass should take for the pool, and those it has. */
uint64_t pool_size(const struct allocator *a);
uint64_t pool_clusters(const struct allocator *a);
bool pool_is_low(const struct allocator *a);
/* Whether the next pass is to fill it. */
bool pool_wants(const struct allocator *a);
/* These are durable now. */
void pool_fill(struct allocator *a, const struct lease *l);
/* Leases to whoever wants one, while there are clusters. */
bool pool_grant(struct allocator *a);
/* There was nothing to fill it with: whoever wants of it waits for what is freed, or learns of status. */
void pool_refuse(struct allocator *a, int status);
bool pool_step(struct allocator *a);
/* One cluster. False: none is there; one is on its way, or counts.pool_status says why not. */
bool pool_take_one(struct allocator *a, uint64_t *ret_first, bool *ret_fresh);
bool counts_idle(const struct allocator *a);
/* Returns what counts.passes must reach for everything of now to be durable. */
uint64_t counts_request(struct allocator *a);
/* Write the header as the layer and the refcount table have it, and the mark; durable when it returns.
 * Blocking. */
int allocator_write_header(struct allocator *a);
/* See to it that the header says that clusters may leak: before any is leased, or loses a reference.
 * Blocking. */
int allocator_mark(struct allocator *a);

bool commit_idle(const struct allocator *a);
bool commit_is_dirty(const struct allocator *a);
/* A sync of the file has failed that no flush waits for. */
void commit_sync_failed(struct allocator *a, int err);
/* A shard has answered a phase. */
void commit_answered(struct allocator *a, struct note *note);
/* An L1 entry changes, in memory now and on disk with the next commit. */
void commit_set_l1(struct allocator *a, uint64_t l1_index, uint64_t entry);

bool freed_idle(const struct allocator *a);
/* A commit has made their loss durable; takes the list's content. */
int freed_give(struct allocator *a, struct freed_list *list);
/* Whether the epoch clock has to move: then the loop has to look again soon. */
bool freed_waits(const struct allocator *a);
/* A reference that no commit has to make durable is gone. */
void freed_lower(struct allocator *a, uint64_t cluster);

bool tables_idle(const struct allocator *a);
bool control_holds_leases(const struct allocator *a);
bool control_holds_commits(const struct allocator *a);
void control_answered(struct allocator *a, struct note *note);

#define QUIESCE_CLOSE 1u /* request.flags of REQUEST_QUIESCE: nothing begins any more once it has ended */
#define GROW_L1 1u       /* request.flags of REQUEST_GROW: make L1 large enough */
#define GROW_SIZE 2u     /* set the virtual size */

#endif
