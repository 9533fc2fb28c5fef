/* SPDX-License-Identifier: MIT */
/*
 * What a shard and the allocator tell each other. A note is embedded in its sender and is at the other side
 * until that answers by sending it back; rings have room for all of them, so a push never fails.
 */
#ifndef ENGINE_NOTE_H
#define ENGINE_NOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "base/spsc.h"
#include "engine/freed.h"
#include "engine/lease.h"

/* Compressed clusters share host clusters: references beyond the first. */
struct raised {
    uint64_t cluster;
    uint64_t by;
};

struct raised_list {
    struct raised *items;
    uint32_t count, room;
};

static inline bool raised_reserve(struct raised_list *l, uint32_t more)
{
    const uint32_t room = MAX(l->count + more, 2 * l->room);
    struct raised *items;

    if (l->room - l->count >= more)
        return true;
    items = realloc(l->items, room * sizeof *items);
    if (!items)
        return false;
    l->items = items;
    l->room = room;
    return true;
}

/* Appends all of from and empties it, which keeps its room; false when out of memory: nothing moved. */
static inline bool raised_move(struct raised_list *to, struct raised_list *from)
{
    if (!raised_reserve(to, from->count))
        return false;
    if (from->count)
        memcpy(to->items + to->count, from->items, from->count * sizeof *from->items);
    to->count += from->count;
    from->count = 0;
    return true;
}

enum note_kind {
    NOTE_LEASE, /* shard: wants clusters. Answer: lease, or status */
    NOTE_TABLE, /* shard: wants an L2 table that may be written. Answer: status; L1 has it */
    NOTE_DRAIN, /* shard: wants every request of now to be over. Answer: they are */
    NOTE_ROOM, /* shard: a write found no space. Answer: nothing is kept ahead any more that could be given */
    /* The phases of a commit, from the allocator to each shard. */
    NOTE_COPY,  /* copy the dirty slices, and write them if nothing stands before that; status: the commit has
                   failed already. Answer: status, any, mutated, freed, raised */
    NOTE_WRITE, /* write the copies. Answer: status */
    NOTE_DONE,  /* the commit is durable, or (status) failed: slices are clean, or dirty again. No answer */
    NOTE_RETURN, /* give unused clusters back. Answer: freed; any: others are in hand */
};

struct note {
    struct list_node node;
    enum note_kind kind;
    uint32_t shard_index;
    int32_t status;
    uint64_t l1_index;        /* TABLE */
    uint64_t clusters_wanted; /* LEASE */
    uint64_t epoch;           /* DRAIN: the allocator's: when it began */
    struct lease lease;
    uint64_t mutated; /* COPY: what the copies cover */
    bool any; /* COPY: there are copies yet to be written: after a sync (I2), after raised counts (I1) */
    bool took_part; /* in the commit under way; the allocator's */
    struct freed_list freed;
    struct raised_list raised;
};

/* The rings between one shard and the allocator. */
struct note_link {
    struct spsc to_allocator, to_shard;
};

#endif
