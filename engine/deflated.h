/* SPDX-License-Identifier: MIT */
/*
 * Clusters that a queue has compressed, on their way to the owner that packs them: a few buffers per queue,
 * made with the first compressed write.
 */
#ifndef ENGINE_DEFLATED_H
#define ENGINE_DEFLATED_H

#include "engine/compress.h"
#include "engine/layer.h"
#include "engine/request.h"

#define DEFLATED_MAX 32u

struct deflated_pool {
    struct compressor *compressor;
    uint8_t *memory;
    size_t memory_bytes;
    uint8_t *plain; /* one cluster, gathered */
    uint8_t *free[DEFLATED_MAX];
    uint32_t free_count;
};

void deflated_pool_destroy(struct deflated_pool *p);

/*
 * Compress bytes bytes of the buffer from position at on, as a cluster of the layer (zero-padded). 0 with
 * *ret (of *ret_bytes bytes) set, or NULL when the data does not shrink; -EAGAIN when all buffers are out;
 * -ENOMEM.
 */
int deflate_cluster(struct deflated_pool *p, const struct layer *layer, const struct guest_buffer *b,
                    uint64_t at, uint32_t bytes, uint8_t **ret, uint32_t *ret_bytes);
void deflated_give(struct deflated_pool *p, uint8_t *bytes);

#endif
