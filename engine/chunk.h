/* SPDX-License-Identifier: MIT */
/*
 * A chunk: the next stretch of an op that one write can do, and what has to be written around the guest's
 * data so that whole units (blocks in place, subclusters, clusters) hold what the guest sees.
 */
#ifndef ENGINE_CHUNK_H
#define ENGINE_CHUNK_H

#include "engine/op.h"

/* Plan the chunk at op->pos, up to end at most. False when the op has failed. */
bool chunk_plan(struct shard *s, struct op *op, uint64_t end);

static inline bool chunk_needs_clusters(const struct op *op)
{
    return op->moves;
}

/* Guest clusters that the planned chunk touches. */
uint32_t chunk_clusters(const struct op *op);

/* op->cluster_count clusters were had, perhaps fewer than planned: settle place, end and edges. */
void chunk_fit_clusters(struct shard *s, struct op *op);

/* Where the bytes before and behind the data belong in op->buffer. */
static inline uint8_t *chunk_head(const struct op *op)
{
    return op->buffer;
}
uint8_t *chunk_tail(const struct shard *s, const struct op *op);

/* Set up op->io as the chunk's write. */
void chunk_build_write(struct shard *s, struct op *op);

#endif
