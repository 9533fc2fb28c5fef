/* SPDX-License-Identifier: MIT */
/*
 * A shard: the loop that owns every L2 slice whose index, modulo the number of shards, is its own. It answers
 * the queues' lookups and loads slices; loads of one slice are coalesced.
 */
#ifndef ENGINE_SHARD_H
#define ENGINE_SHARD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/list.h"
#include "cache/slice_cache.h"
#include "engine/note.h"
#include "engine/op.h"
#include "engine/pack.h"
#include "engine/request.h"
#include "io/loop.h"

/* Slices being read at once. More misses than this wait their turn: their number bounds memory, not
 * correctness. */
#define SHARD_LOADS 64u

/* A slice on its way in. Its bytes arrive here, not in a slot, so that loads never compete with what is
 * cached. */
struct load {
    struct list ops; /* of op.node: the same */
    uint32_t epoch_bucket;
    struct list_node node; /* free list */
    struct io io;
    bool active;
    struct layer *layer;
    slot_cell *cell;
    uint8_t *buffer;
    uint32_t skip;       /* bytes before the slice in the aligned read */
    struct list waiters; /* of request.node: requests that asked for this slice */
};

struct shard {
    struct loop loop;
    struct scow_image *image;
    uint32_t index;
    char thread_name[16];
    struct slice_cache cache;
    struct load *loads;
    uint8_t *load_memory;
    size_t load_memory_bytes;
    uint32_t loads_end; /* one past the highest load in use */
    struct list free_loads;
    struct list queued; /* of request.node: misses that found no free load */
    struct list done;   /* I/Os that completed while sleeping */
    bool *notify;       /* by queue: answered since it was last notified */
    bool notify_any;
    int32_t broken; /* the backend's error once it has failed: answers every miss */
    counter loads_count, coalesced, evictions;

    /* ---- writing; unused when the image is read-only ---- */
    struct scow_queue *reader; /* copy on write reads like a guest; its backend is the loop's */
    struct op *ops;
    struct list free_ops;
    struct list queued_requests; /* of request.node: no op was free */
    struct op **lines;           /* by slot: the ops on its slice in order of arrival */
    struct list for_slot;        /* ops that wait for a slot that may be evicted */
    struct list for_table;       /* ops that found every table_wait in use */
    struct list for_load;        /* ops that found no free load */
    struct list for_lease, for_buffer, for_reader;
    struct list for_drain, drain_next; /* of the drain under way; came too late for it */
    struct list for_room;              /* ops that found no space, the first time */
    struct list runnable;              /* ops that can go on */
    struct alone *alone;               /* by slot */
    struct table_wait *tables;
    struct pack pack;
    uint8_t *buffer_memory;
    uint8_t **buffers; /* free ones, a stack */
    uint32_t buffer_count, buffers_free;
    size_t buffer_bytes; /* half of a buffer: the most on either side of the data */

    struct note_link link;
    /* Whether for_slot has any. Writer: the shard, at the end of each turn. Reader: the allocator, when it
     * has left a note. Relaxed: between it and the ring lies a fence on either side. */
    _Atomic bool waits_for_slot;
    bool notify_allocator;
    struct note lease_note, drain_note, room_note;
    bool lease_asked, drain_asked, room_asked;
    struct lease lease, spare;
    bool has_spare;
    uint64_t lease_target, lease_max; /* clusters to ask for, and the most */

    /* what the next commit takes */
    struct freed_list freed; /* room for freed_reserved more runs than it has */
    uint32_t freed_reserved;
    struct raised_list raised;
    bool sync_needed;
    /* Publications so far. Writer: the shard, before it publishes (release); readers: acquire. */
    counter mutated;
    /* What of that is durable. Writer: the allocator (release); readers: acquire. */
    counter committed;
    /* What of that the file has, durable or not. As committed, which it is never behind. */
    counter written;

    /* the commit under way */
    struct note *write_note;
    struct commit_copy *copies;
    uint32_t copy_count, copies_started, copies_done;
    uint8_t *copy_memory;

    counter allocated, cow_bytes, slice_writes, ops_count;

    /* What it has now, for statistics: told once a turn. Writer: the shard; readers: any thread. */
    counter slots_resident, slots_dirty, lease_clusters;
};

/* What an I/O on the shard's backend is part of: struct io.role. */
enum shard_role { ROLE_READER, ROLE_LOAD, ROLE_OP, ROLE_COPY, ROLE_PACK };

/* Ops that wait for one L2 table. */
struct table_wait {
    struct note note;
    bool asked;
    struct list ops; /* of op.node */
};
#define SHARD_TABLES 16u
#define SHARD_COPY_IOS 32u
/* On the backend besides loads: the reader's transfers and clusters, ops, copies. */
#define SHARD_WRITE_IOS (SHARD_OPS + SHARD_COPY_IOS + 64u + 256u + 64u)

/* The copy of one dirty slice. */
struct commit_copy {
    struct io io;
    uint32_t slot_index;
    uint8_t *bytes;
};

/* Whether the owner alone writes in place in a slot's slice. */
struct alone {
    bool ready; /* since a drain that began after the slot was marked */
    uint64_t last_ns;
};

/* ---- for op.c ---- */

static inline void shard_run_all(struct shard *s, struct list *waiting)
{
    struct list_node *n;

    while ((n = list_pop(waiting)))
        list_push(&s->runnable, n);
}

/* Entries change, or clusters are to be freed: there is something for a commit. */
static inline void shard_mutate(struct shard *s)
{
    atomic_store_explicit(&s->mutated, counter_get(&s->mutated) + 1, memory_order_release);
}

/* Room in the freed list for runs that the op will add; given back by shard_unreserve_freed(). */
static inline bool shard_reserve_freed(struct shard *s, struct op *op, uint32_t runs)
{
    if (!freed_reserve(&s->freed, s->freed_reserved + runs))
        return false;
    s->freed_reserved += runs;
    op->reserved += runs;
    return true;
}

static inline void shard_unreserve_freed(struct shard *s, struct op *op)
{
    s->freed_reserved -= op->reserved;
    op->reserved = 0;
}

/* Until every request of now is over; then alone[] of its slot is ready. */
void shard_wait_for_drain(struct shard *s, struct op *op);

/* Until the allocator has given back what it could; then its write is tried again. */
void shard_wait_for_room(struct shard *s, struct op *op);

/* Answer a request; the shard touches it no more. */
void shard_answer(struct shard *s, struct request *r, int status, const char *text);

/* Have the slice of op->cell loaded; the op waits for that. False: no load is free, nothing was done. */
bool shard_load_for(struct shard *s, struct op *op, uint64_t table_off);

/* Send a note. */
void shard_tell(struct shard *s, struct note *note);

/* ---- shard_commit.c ---- */

bool shard_take_notes(struct shard *s);
void shard_copy_done(struct shard *s, struct io *io);
/* The backend has failed in the middle of writing copies. */
void shard_copies_lost(struct shard *s, int err);
/* Up to count_max contiguous clusters of the lease; 0: none, one has been asked for. */
uint32_t shard_take_clusters(struct shard *s, uint32_t count_max, uint64_t *ret_first, bool *ret_fresh);
/* Until some slot may be evicted. */
void shard_wait_for_slot(struct shard *s, struct op *op);
int shard_init_writing(struct shard *s);
/* Before the shard's thread starts. */
int shard_create_reader(struct shard *s);
void shard_destroy_writing(struct shard *s);

/* Everything but the thread. 0 or a negative errno; shard_destroy() takes half-built ones. */
int shard_init(struct shard *shard, struct scow_image *image, uint32_t index);
void shard_destroy(struct shard *shard);

#endif
