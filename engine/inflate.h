/* SPDX-License-Identifier: MIT */
/*
 * Compressed clusters, inflated on the queue's own thread into a few buffers per queue. A buffer keeps its
 * cluster until it is needed for another, so that a sequential reader inflates each cluster once; requests
 * for a cluster that is being read wait for it.
 */
#ifndef ENGINE_INFLATE_H
#define ENGINE_INFLATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "engine/layer.h"
#include "io/io.h"

struct decompressor;
struct request;
struct transfer;

#define INFLATED_MAX 64u

enum inflated_state {
    INFLATED_EMPTY,
    INFLATED_LOADING, /* the I/O is out; waiters wait */
    INFLATED_VALID,
};

/* One buffer. Key: layer and L2 entry, which names the compressed extent. */
struct inflated {
    enum inflated_state state;
    struct io io;
    struct layer *layer;
    uint64_t entry;
    uint64_t generation; /* of the image's compressed clusters, when it was looked up */
    uint64_t last_use;
    uint32_t skip;       /* bytes before the extent in the aligned read */
    struct list waiters; /* of transfer.node */
    uint8_t *compressed;
    uint8_t *plain;
};

struct inflate_pool {
    struct decompressor *decompressors[2]; /* by compression type, created on first use */
    uint8_t *memory;
    uint64_t memory_bytes;
    uint32_t count;
    uint64_t uses;
    struct inflated slots[INFLATED_MAX];
};

/* cluster_bytes: the largest of the chain; io_align likewise. Memory is mapped here, taken when first used.
 */
int inflate_pool_create(struct inflate_pool *p, uint32_t cluster_bytes, uint32_t io_align);
void inflate_pool_destroy(struct inflate_pool *p);

/*
 * The buffer that holds or loads the cluster; else one to load it into, in state INFLATED_EMPTY with the key
 * set; NULL when all are loading.
 */
struct inflated *inflate_find(struct inflate_pool *p, struct layer *layer, uint64_t entry,
                              uint64_t generation);

/* Set up slot->io to read the compressed extent, and the state. */
void inflate_start(struct inflated *slot);

/* slot->io is done: inflate. 0, -EIO or -ENOMEM; slot is valid or empty afterwards. */
int inflate_finish(struct inflate_pool *p, struct inflated *slot);

#endif
