/* SPDX-License-Identifier: MIT */
#include "engine/deflated.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"

static int create(struct deflated_pool *p, const struct layer *layer)
{
    const uint32_t cluster_bytes = layer->header.cluster_bytes;
    int r = compressor_create(layer->header.compression, &p->compressor);

    if (r < 0)
        return r;
    p->memory_bytes = (size_t)cluster_bytes * (DEFLATED_MAX + 1);
    p->memory = pages_reserve(p->memory_bytes);
    if (!p->memory) {
        compressor_destroy(p->compressor);
        p->compressor = NULL;
        return error_set(-ENOMEM, "out of memory");
    }
    p->plain = p->memory;
    for (uint32_t i = 0; i < DEFLATED_MAX; i++)
        p->free[p->free_count++] = p->memory + (size_t)(i + 1) * cluster_bytes;
    return 0;
}

void deflated_pool_destroy(struct deflated_pool *p)
{
    compressor_destroy(p->compressor);
    pages_release(p->memory, p->memory_bytes);
}

int deflate_cluster(struct deflated_pool *p, const struct layer *layer, const struct guest_buffer *b,
                    uint64_t at, uint32_t bytes, uint8_t **ret, uint32_t *ret_bytes)
{
    const uint32_t cluster_bytes = layer->header.cluster_bytes;
    uint8_t *to;
    int r = p->compressor ? 0 : create(p, layer);

    if (r < 0)
        return r;
    if (!p->free_count)
        return -EAGAIN;
    guest_buffer_gather(b, at, p->plain, bytes);
    memset(p->plain + bytes, 0, cluster_bytes - bytes);
    to = p->free[p->free_count - 1];
    *ret_bytes = compress_cluster(p->compressor, p->plain, cluster_bytes, to, cluster_bytes - 1);
    *ret = *ret_bytes ? to : NULL;
    p->free_count -= *ret != NULL;
    return 0;
}

void deflated_give(struct deflated_pool *p, uint8_t *bytes)
{
    p->free[p->free_count++] = bytes;
}
