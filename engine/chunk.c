/* SPDX-License-Identifier: MIT */
#include "engine/chunk.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "engine/allocator.h"
#include "engine/image.h"
#include "engine/shard.h"

static uint32_t io_align(const struct op *op)
{
    return op->layer->data_file->io_align;
}

static uint32_t subcluster_bytes(const struct layer *layer)
{
    return layer->header.extended_l2 ? layer->header.cluster_bytes / SUBCLUSTERS_PER_CLUSTER
                                     : layer->header.cluster_bytes;
}

/* Position in the request's buffer. */
static uint64_t buffer_at(const struct op *op)
{
    return op->pos - op->request->off;
}

/* How much of [pos, end) can be described to one write without a copy; 0: nothing. */
static uint64_t direct_bytes(struct op *op, uint64_t end)
{
    const struct file *file = op->layer->data_file;
    const struct guest_buffer *b = &op->request->buffer;
    const uint32_t bytes = (uint32_t)round_down(MIN(end - op->pos, CHUNK_BYTES_MAX), file->io_align);
    int count;

    if (op->pos & (file->io_align - 1) || !bytes)
        return 0;
    if (op->zeros)
        return MIN(bytes, op->layer->header.cluster_bytes);
    if (!b->iov_count)
        return ((uintptr_t)b->buf + buffer_at(op)) & (file->mem_align - 1) ? 0 : bytes;
    return guest_buffer_slice(b, buffer_at(op), bytes, file->mem_align, file->io_align, op->iov,
                              TRANSFER_IOV_MAX, &count);
}

uint32_t chunk_clusters(const struct op *op)
{
    const uint32_t bits = op->layer->header.cluster_bits;

    return (uint32_t)(((op->chunk_end - 1) >> bits) - (op->pos >> bits) + 1);
}

/* ---- in place ---- */

static void plan_in_place(struct shard *s, struct op *op, uint64_t bytes, uint64_t host_off)
{
    const uint32_t align = io_align(op);
    const uint64_t direct = direct_bytes(op, op->pos + bytes);

    op->in_place = true;
    op->host_off = host_off;
    op->chunk_end = op->pos + direct;
    if (direct)
        return;
    op->assembled = true;
    if (op->pos & (align - 1)) /* no more than this block, so that the rest goes without a copy */
        op->chunk_end = MIN(op->pos + bytes, round_up(op->pos, align));
    else
        op->chunk_end = op->pos + (bytes < align ? bytes : round_down(MIN(bytes, s->buffer_bytes), align));
    op->head.bytes = (uint32_t)(op->pos & (align - 1));
    op->head.source = op->head.bytes ? SOURCE_BLOCK : SOURCE_NONE;
    op->tail.bytes = (uint32_t)(-op->chunk_end & (align - 1));
    op->tail.source = op->tail.bytes ? SOURCE_BLOCK : SOURCE_NONE;
}

/* ---- with a change of the mapping ---- */

static bool backing_covers(const struct op *op, uint64_t off)
{
    return op->layer->backing && off < op->layer->backing->virtual_bytes;
}

/* Holds no data of its own, and neither does anything below. */
static bool is_hole(const struct op *op, const struct cluster_view *v, uint64_t cluster_off)
{
    return v->kind == ENTRY_ZERO_PLAIN || (v->kind == ENTRY_UNALLOCATED && !backing_covers(op, cluster_off));
}

static bool has_own_host(const struct op *op, const struct cluster_view *v)
{
    return op->layer->has_data_file ||
           ((v->kind == ENTRY_NORMAL || v->kind == ENTRY_ZERO_ALLOCATED) && v->copied);
}

/* The content of the unit at off, that the write changes only in part. */
static enum op_source source_at(const struct op *op, const struct cluster_view *v, uint64_t off)
{
    const uint32_t sub =
        (uint32_t)((off & (op->layer->header.cluster_bytes - 1)) / subcluster_bytes(op->layer));

    if (v->kind == ENTRY_ZERO_PLAIN || v->kind == ENTRY_ZERO_ALLOCATED)
        return SOURCE_ZERO;
    if (v->kind == ENTRY_IS_COMPRESSED || (v->kind == ENTRY_NORMAL && op->moves))
        return SOURCE_READ;
    if (op->layer->header.extended_l2 && bitmap_zero(v->bitmap) & (1u << sub))
        return SOURCE_ZERO;
    return backing_covers(op, off) ? SOURCE_READ : SOURCE_ZERO;
}

/* A cluster that moves is copied whole; else what the entry tells apart. */
static uint32_t unit_bytes(const struct op *op, const struct cluster_view *v)
{
    return op->moves && (v->kind == ENTRY_NORMAL || v->kind == ENTRY_IS_COMPRESSED)
               ? op->layer->header.cluster_bytes
               : subcluster_bytes(op->layer);
}

static void settle_edge(const struct op *op, struct op_edge *edge, enum op_source source, uint32_t block_rest)
{
    edge->source = source;
    if (source == SOURCE_ZERO && op->moves && op->fresh)
        edge->bytes = block_rest; /* the rest of the unit reads as zeros already */
    if (!edge->bytes)
        edge->source = SOURCE_NONE;
}

/* The entries at both ends are valid: chunk_plan() has seen them. */
static void settle_edges(struct op *op)
{
    const uint32_t align = io_align(op);
    struct map_fault ignored;
    struct cluster_view v;

    (void)map_cluster(op->layer, op->slot->entries, op->pos, &v, &ignored);
    op->head.bytes = (uint32_t)(op->pos & (unit_bytes(op, &v) - 1));
    settle_edge(op, &op->head, source_at(op, &v, op->pos - op->head.bytes),
                (uint32_t)(op->pos & (align - 1)));
    (void)map_cluster(op->layer, op->slot->entries, op->chunk_end - 1, &v, &ignored);
    op->tail.bytes = (uint32_t)(-op->chunk_end & (unit_bytes(op, &v) - 1));
    settle_edge(op, &op->tail, source_at(op, &v, op->chunk_end - 1),
                (uint32_t)(-op->chunk_end & (align - 1)));
}

/* Without a copy as far as that goes; else one cluster through a buffer. end is where the mapping would let
 * the chunk end. */
static void settle_end(struct op *op, uint64_t end)
{
    const uint32_t cluster_bytes = op->layer->header.cluster_bytes;
    uint64_t direct;

    if (end & (io_align(op) - 1) && round_down(end, cluster_bytes) > op->pos)
        end = round_down(end, cluster_bytes);
    direct = end & (io_align(op) - 1) ? 0 : direct_bytes(op, end);
    op->assembled = !direct;
    op->chunk_end = direct ? op->pos + direct : MIN(end, round_down(op->pos, cluster_bytes) + cluster_bytes);
}

/* The clusters behind the first for as long as they are of the same sort. */
static uint64_t alike_end(struct op *op, uint64_t end)
{
    const uint32_t cluster_bytes = op->layer->header.cluster_bytes;
    uint64_t off = round_down(op->pos, cluster_bytes) + cluster_bytes;
    const uint64_t limit = MIN(end, op->pos + CHUNK_BYTES_MAX);
    struct map_fault ignored;
    struct cluster_view v;

    for (; off < limit; off += cluster_bytes) {
        if (map_cluster(op->layer, op->slot->entries, off, &v, &ignored) != MAP_OK)
            break;
        if (op->moves ? has_own_host(op, &v) : v.kind == ENTRY_NORMAL)
            break;
        op->hole &= is_hole(op, &v, off);
    }
    return MIN(end, off);
}

/* From pos to the end of the subclusters that the entry does not have as data. */
static uint64_t missing_end(const struct op *op, const struct cluster_view *v)
{
    const uint32_t sub_bytes = subcluster_bytes(op->layer);
    const uint64_t cluster_off = round_down(op->pos, op->layer->header.cluster_bytes);
    uint32_t sub = (uint32_t)((op->pos - cluster_off) / sub_bytes);

    while (sub < SUBCLUSTERS_PER_CLUSTER && !(bitmap_allocated(v->bitmap) & (1u << sub)))
        sub++;
    return cluster_off + (uint64_t)sub * sub_bytes;
}

/* The clusters have their place already: zero clusters that keep theirs, subclusters, an external data file.
 */
static void plan_existing(struct op *op, const struct cluster_view *v, uint64_t end)
{
    const uint32_t cluster_bytes = op->layer->header.cluster_bytes;
    const uint64_t cluster_off = round_down(op->pos, cluster_bytes);

    op->host_off = v->host_off + (op->pos - cluster_off);
    if (op->layer->header.extended_l2)
        end = MIN(end, missing_end(op, v));
    else if (op->layer->has_data_file)
        end = alike_end(op, end);
    else
        end = MIN(end, cluster_off + cluster_bytes);
    settle_end(op, end);
    settle_edges(op);
}

bool chunk_plan(struct shard *s, struct op *op, uint64_t end)
{
    const uint64_t cluster_off = round_down(op->pos, op->layer->header.cluster_bytes);
    struct cluster_view v;
    struct map_fault fault;
    uint64_t host_off, n;

    op->in_place = op->moves = op->hole = op->assembled = op->fresh = false;
    op->head = op->tail = (struct op_edge){0};
    n = map_in_place(op->layer, op->slot->entries, op->pos, end - op->pos, &host_off);
    if (n) {
        plan_in_place(s, op, n, host_off);
        return true;
    }
    if (map_cluster(op->layer, op->slot->entries, op->pos, &v, &fault) != MAP_OK) {
        char text[REQUEST_ERROR_BYTES];

        map_fault_text(op->layer, &fault, text, sizeof text);
        allocator_report_corruption(s->image->allocator);
        op_fail(s, op, -EIO, text);
        return false;
    }
    if (has_own_host(op, &v)) {
        plan_existing(op, &v, end);
        return true;
    }
    op->moves = true;
    op->hole = is_hole(op, &v, cluster_off);
    settle_end(op, alike_end(op, end));
    return true;
}

void chunk_fit_clusters(struct shard *s, struct op *op)
{
    const uint32_t cluster_bytes = op->layer->header.cluster_bytes;
    const uint64_t cluster_off = round_down(op->pos, cluster_bytes);

    (void)s;
    op->chunk_end = MIN(op->chunk_end, cluster_off + (uint64_t)op->cluster_count * cluster_bytes);
    op->host_off = op->host_first * cluster_bytes + (op->pos - cluster_off);
    settle_edges(op);
}

/* ---- the write ---- */

uint8_t *chunk_tail(const struct shard *s, const struct op *op)
{
    return op->buffer + (op->assembled ? op->head.bytes + (op->chunk_end - op->pos) : s->buffer_bytes);
}

static void build_assembled(struct shard *s, struct op *op, uint64_t bytes)
{
    uint8_t *data = op->buffer + op->head.bytes;

    if (op->head.source == SOURCE_ZERO)
        memset(op->buffer, 0, op->head.bytes);
    if (op->zeros)
        memset(data, 0, bytes);
    else
        guest_buffer_gather(&op->request->buffer, buffer_at(op), data, bytes);
    if (op->tail.source == SOURCE_ZERO)
        memset(chunk_tail(s, op), 0, op->tail.bytes);
    op->io.buf = op->buffer;
}

static void build_direct(struct shard *s, struct op *op, uint32_t bytes)
{
    const struct file *file = op->layer->data_file;
    const struct guest_buffer *b = &op->request->buffer;
    uint8_t *const zeros = s->image->zeros;
    int n = 0, count = 1;

    if (op->head.bytes)
        op->iov[n++] =
            (struct iovec){op->head.source == SOURCE_ZERO ? zeros : chunk_head(op), op->head.bytes};
    if (op->zeros)
        op->iov[n] = (struct iovec){zeros, bytes};
    else if (!b->iov_count)
        op->iov[n] = (struct iovec){(uint8_t *)b->buf + buffer_at(op), bytes};
    else
        (void)guest_buffer_slice(b, buffer_at(op), bytes, file->mem_align, file->io_align, op->iov + n,
                                 TRANSFER_IOV_MAX, &count);
    n += count;
    if (op->tail.bytes)
        op->iov[n++] =
            (struct iovec){op->tail.source == SOURCE_ZERO ? zeros : chunk_tail(s, op), op->tail.bytes};
    op->io.iov = op->iov;
    op->io.iov_count = n;
}

void chunk_build_write(struct shard *s, struct op *op)
{
    const uint32_t bytes = (uint32_t)(op->chunk_end - op->pos);

    op->io = (struct io){.kind = IO_WRITE,
                         .file = op->layer->data_file,
                         .off = op->host_off - op->head.bytes,
                         .bytes = op->head.bytes + bytes + op->tail.bytes};
    if (op->assembled)
        build_assembled(s, op, bytes);
    else
        build_direct(s, op, bytes);
}
