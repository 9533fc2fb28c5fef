/* SPDX-License-Identifier: MIT */
#include "engine/publish.h"

#include <endian.h>

#include "base/checked.h"
#include "engine/image.h"
#include "engine/shard.h"

void publish_entry(struct shard *s, struct op *op, uint64_t guest_off, uint64_t entry, uint64_t bitmap)
{
    const struct layer *layer = op->layer;
    const uint64_t index = (guest_off & layer->slice_mask) >> layer->header.cluster_bits;
    struct slot *slot = op->slot;

    /* Whoever sees the entry sees that the image has changed: a flush or FUA after it looks (I7). */
    shard_mutate(s);
    if (!layer->header.extended_l2) {
        atomic_store_explicit(&slot->entries[index], htobe64(entry), memory_order_release);
    } else {
        const uint32_t seq = atomic_load_explicit(&slot->seq, memory_order_relaxed);

        atomic_store_explicit(&slot->seq, seq + 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_release);
        atomic_store_explicit(&slot->entries[2 * index], htobe64(entry), memory_order_release);
        atomic_store_explicit(&slot->entries[2 * index + 1], htobe64(bitmap), memory_order_release);
        atomic_store_explicit(&slot->seq, seq + 2, memory_order_release);
    }
    slice_cache_mark_dirty(&s->cache, slot);
}

void free_entry(struct shard *s, const struct op *op, const struct cluster_view *v)
{
    const uint32_t bits = op->layer->header.cluster_bits;

    if (op->layer->has_data_file)
        return;
    if (v->kind == ENTRY_IS_COMPRESSED) {
        const struct compressed_extent e = entry_compressed(v->entry, bits);
        const uint64_t first = e.off >> bits, last = (e.off + e.bytes - 1) >> bits;

        freed_add(&s->freed, first, last - first + 1);
        atomic_fetch_add_explicit(&s->image->inflate_generation, 1, memory_order_release);
    } else if (v->entry & ENTRY_OFF_MASK) {
        freed_add(&s->freed, v->host_off >> bits, 1);
    }
}

/* Which subclusters of the cluster at cluster_off lie in [from, to). */
static uint32_t subcluster_mask(const struct layer *layer, uint64_t cluster_off, uint64_t from, uint64_t to)
{
    const uint32_t sub_bytes = layer->header.cluster_bytes / SUBCLUSTERS_PER_CLUSTER;
    const uint64_t end = cluster_off + layer->header.cluster_bytes;
    const uint32_t first = (uint32_t)((MAX(from, cluster_off) - cluster_off) / sub_bytes);
    const uint32_t last = (uint32_t)((MIN(to, end) - 1 - cluster_off) / sub_bytes);

    return (uint32_t)((2ull << last) - 1) & ~((1u << first) - 1);
}

static uint64_t new_bitmap(const struct op *op, const struct cluster_view *old, uint64_t cluster_off)
{
    const bool whole = op->moves && (old->kind == ENTRY_NORMAL || old->kind == ENTRY_IS_COMPRESSED);
    const uint32_t mask =
        whole ? UINT32_MAX : subcluster_mask(op->layer, cluster_off, op->pos, op->chunk_end);
    const uint32_t allocated = bitmap_allocated(old->bitmap) | mask;

    return (uint64_t)(bitmap_zero(old->bitmap) & ~mask) << 32 | allocated;
}

void publish_chunk(struct shard *s, struct op *op)
{
    const uint32_t cluster_bytes = op->layer->header.cluster_bytes, bits = op->layer->header.cluster_bits;
    uint64_t off = round_down(op->pos, cluster_bytes);

    for (uint64_t i = 0; off < op->chunk_end; off += cluster_bytes, i++) {
        struct cluster_view old;
        struct map_fault ignored;
        uint64_t host;

        (void)map_cluster(op->layer, op->slot->entries, off, &old, &ignored);
        host = op->moves ? (op->host_first + i) << bits : old.host_off;
        publish_entry(s, op, off, host | ENTRY_COPIED,
                      op->layer->header.extended_l2 ? new_bitmap(op, &old, off) : 0);
        if (op->moves)
            free_entry(s, op, &old);
    }
    /* The one case in which the entry may reach the disk before the data: what was there read as zeros, and
     * so does the cluster until it is written (I2). */
    if (!(op->moves && op->hole && op->fresh))
        s->sync_needed = true;
}
