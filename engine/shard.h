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
#include "engine/request.h"
#include "io/loop.h"

/* Slices being read at once. More misses than this wait their turn: their number bounds memory, not
 * correctness. */
#define SHARD_LOADS 64u

/* A slice on its way in. Its bytes arrive here, not in a slot, so that loads never compete with what is
 * cached. */
struct load {
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
};

/* Everything but the thread. 0 or a negative errno; shard_destroy() takes half-built ones. */
int shard_init(struct shard *shard, struct scow_image *image, uint32_t index);
void shard_destroy(struct shard *shard);

#endif
