/* SPDX-License-Identifier: MIT */
/*
 * Host clusters that lost a reference: freed → committed → drained → punched → refcount lowered, and only
 * then free (I4, I5). A list of them travels with the commit that makes the loss durable.
 */
#ifndef ENGINE_FREED_H
#define ENGINE_FREED_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"

struct freed_run {
    uint64_t first; /* host cluster */
    uint64_t count;
};

struct freed_list {
    struct freed_run *runs;
    uint32_t count, room;
    uint64_t clusters; /* of all runs */
};

/* Room for more runs, so that freed_add() cannot fail. False when out of memory. */
static inline bool freed_reserve(struct freed_list *l, uint32_t more)
{
    const uint32_t room = MAX(l->count + more, 2 * l->room);
    struct freed_run *runs;

    if (l->room - l->count >= more)
        return true;
    runs = realloc(l->runs, room * sizeof *runs);
    if (!runs)
        return false;
    l->runs = runs;
    l->room = room;
    return true;
}

static inline void freed_add(struct freed_list *l, uint64_t first, uint64_t count)
{
    l->clusters += count;
    if (l->count && l->runs[l->count - 1].first + l->runs[l->count - 1].count == first)
        l->runs[l->count - 1].count += count;
    else
        l->runs[l->count++] = (struct freed_run){first, count};
}

/* Appends all of from and empties it; false when out of memory: nothing moved. */
static inline bool freed_move(struct freed_list *to, struct freed_list *from)
{
    if (!to->count) {
        const struct freed_list old = *to;

        *to = *from;
        *from = old;
        from->count = 0;
        from->clusters = 0;
        return true;
    }
    if (!freed_reserve(to, from->count))
        return false;
    if (from->count)
        memcpy(to->runs + to->count, from->runs, from->count * sizeof *from->runs);
    to->count += from->count;
    to->clusters += from->clusters;
    from->count = 0;
    from->clusters = 0;
    return true;
}

/* The same, but from keeps its room: reservations in it stay good. */
static inline bool freed_move_out(struct freed_list *to, struct freed_list *from)
{
    if (!freed_reserve(to, from->count))
        return false;
    if (from->count)
        memcpy(to->runs + to->count, from->runs, from->count * sizeof *from->runs);
    to->count += from->count;
    to->clusters += from->clusters;
    from->count = 0;
    from->clusters = 0;
    return true;
}

static inline void freed_destroy(struct freed_list *l)
{
    free(l->runs);
    *l = (struct freed_list){0};
}

#endif
