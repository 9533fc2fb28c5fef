/* SPDX-License-Identifier: MIT */
#include "engine/inflate.h"

#include <errno.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "engine/decompress.h"
#include "format/entry.h"

/* What the plain clusters of one queue may take; at least INFLATED_MIN of them. */
#define PLAIN_BYTES (8u << 20)
#define INFLATED_MIN 4u

int inflate_pool_create(struct inflate_pool *p, uint32_t cluster_bytes, uint32_t io_align)
{
    /* A descriptor can ask for two clusters of sectors; alignment adds one unit at each end. */
    const uint64_t in_bytes = round_up(2ull * cluster_bytes + 2ull * io_align, 4096);
    const uint64_t each = in_bytes + round_up(cluster_bytes, 4096);

    p->count = MAX(INFLATED_MIN, MIN(INFLATED_MAX, PLAIN_BYTES / cluster_bytes));
    p->memory_bytes = each * p->count;
    p->memory = pages_reserve(p->memory_bytes);
    if (!p->memory)
        return error_set(-ENOMEM, "cannot map buffers for compressed clusters: %s", strerror(errno));
    for (uint32_t i = 0; i < p->count; i++) {
        p->slots[i].compressed = p->memory + i * each;
        p->slots[i].plain = p->slots[i].compressed + in_bytes;
    }
    return 0;
}

void inflate_pool_destroy(struct inflate_pool *p)
{
    for (size_t i = 0; i < ARRAY_COUNT(p->decompressors); i++)
        decompressor_destroy(p->decompressors[i]);
    pages_release(p->memory, p->memory_bytes);
    *p = (struct inflate_pool){0};
}

struct inflated *inflate_find(struct inflate_pool *p, struct layer *layer, uint64_t entry,
                              uint64_t generation)
{
    struct inflated *oldest = NULL;

    for (uint32_t i = 0; i < p->count; i++) {
        struct inflated *s = &p->slots[i];

        if (s->state != INFLATED_EMPTY && s->layer == layer && s->entry == entry &&
            s->generation == generation) {
            s->last_use = ++p->uses;
            return s;
        }
        if (s->state != INFLATED_LOADING && (!oldest || s->last_use < oldest->last_use))
            oldest = s;
    }
    if (oldest) {
        oldest->state = INFLATED_EMPTY;
        oldest->layer = layer;
        oldest->entry = entry;
        oldest->generation = generation;
        oldest->last_use = ++p->uses;
    }
    return oldest;
}

void inflate_start(struct inflated *slot)
{
    const struct compressed_extent extent = entry_compressed(slot->entry, slot->layer->header.cluster_bits);
    struct file *file = slot->layer->file;
    const uint64_t start = round_down(extent.off, file->io_align);

    slot->skip = (uint32_t)(extent.off - start);
    slot->io = (struct io){.kind = IO_READ,
                           .file = file,
                           .off = start,
                           .buf = slot->compressed,
                           .bytes = (uint32_t)round_up(slot->skip + extent.bytes, file->io_align)};
    slot->waiters = (struct list){0};
    slot->state = INFLATED_LOADING;
}

int inflate_finish(struct inflate_pool *p, struct inflated *slot)
{
    const struct header *h = &slot->layer->header;
    const struct compressed_extent extent = entry_compressed(slot->entry, h->cluster_bits);
    int ret = slot->io.result;

    if (ret == 0 && !p->decompressors[h->compression])
        ret = decompressor_create(h->compression, &p->decompressors[h->compression]);
    if (ret == 0)
        ret = decompress(p->decompressors[h->compression], slot->compressed + slot->skip, extent.bytes,
                         slot->plain, h->cluster_bytes);
    slot->state = ret == 0 ? INFLATED_VALID : INFLATED_EMPTY;
    return ret;
}
