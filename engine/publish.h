/* SPDX-License-Identifier: MIT */
/* Changes of L2 entries by their owner: what readers see at once, and the next commit writes. */
#ifndef ENGINE_PUBLISH_H
#define ENGINE_PUBLISH_H

#include "engine/op.h"

/* The chunk's data is written: name it. What it replaces goes to the shard's freed list, which has room. */
void publish_chunk(struct shard *s, struct op *op);

/* Set the entry (and, with extended L2, the bitmap) of the cluster at guest_off. */
void publish_entry(struct shard *s, struct op *op, uint64_t guest_off, uint64_t entry, uint64_t bitmap);

/* The clusters that the entry holds lose its reference. Room for two runs is there. */
void free_entry(struct shard *s, const struct op *op, const struct cluster_view *v);

#endif
