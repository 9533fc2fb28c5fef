/* SPDX-License-Identifier: MIT */
/* Discard and write_zeroes: mostly changes of entries. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "engine/allocator.h"
#include "engine/image.h"
#include "engine/op.h"
#include "engine/publish.h"
#include "engine/shard.h"

/* Entries that one step changes before others get their turn. */
#define STEP_CLUSTERS 512u

static bool may_unmap(const struct op *op)
{
    return op->request->kind == REQUEST_DISCARD || op->request->flags & SCOW_REQ_MAY_UNMAP;
}

static bool backing_covers(const struct op *op, uint64_t cluster_off)
{
    return op->layer->backing && cluster_off < op->layer->backing->virtual_bytes &&
           !(op->request->flags & REQUEST_DROP);
}

static bool reads_as_zeros(const struct op *op, const struct cluster_view *v, uint64_t off, uint32_t mask)
{
    const uint64_t cluster_off = round_down(off, op->layer->header.cluster_bytes);

    if (v->kind == ENTRY_ZERO_PLAIN || v->kind == ENTRY_ZERO_ALLOCATED)
        return true;
    if (v->kind == ENTRY_IS_COMPRESSED || (v->kind == ENTRY_NORMAL && !op->layer->header.extended_l2))
        return false;
    if (!(mask & ~bitmap_zero(v->bitmap)))
        return true;
    return !(mask & bitmap_allocated(v->bitmap)) && !backing_covers(op, cluster_off);
}

/* Of the cluster at the op's position: the subclusters that the request covers whole. */
static uint32_t whole_subclusters(const struct op *op, uint64_t cluster_off, uint32_t unit)
{
    const bool to_the_end = op->end >= op->layer->virtual_bytes;
    uint32_t mask = 0;

    for (uint32_t i = 0; i < op->layer->header.cluster_bytes / unit; i++) {
        const uint64_t from = cluster_off + (uint64_t)i * unit;

        if (from >= op->pos && (from + unit <= op->end || to_the_end))
            mask |= 1u << i;
    }
    return mask;
}

/* One whole cluster of an image without extended L2. False: its zeros have to be written. */
static bool zero_plain(struct shard *s, struct op *op, uint64_t off, const struct cluster_view *v)
{
    const bool old_version = op->layer->header.version < 3;
    const bool discard = op->request->kind == REQUEST_DISCARD;
    const bool has_host = v->kind == ENTRY_NORMAL || v->kind == ENTRY_ZERO_ALLOCATED;
    uint64_t entry =
        (op->layer->backing && !(op->request->flags & REQUEST_DROP)) || !discard ? ENTRY_ZERO : 0;

    if (old_version && backing_covers(op, off))
        return discard; /* no way to say zeros: a discard does nothing */
    if (old_version && !may_unmap(op) && v->kind != ENTRY_UNALLOCATED)
        return false;
    if (old_version)
        entry = 0;
    if (reads_as_zeros(op, v, off, 1) && (!may_unmap(op) || !has_host))
        return true;
    if (has_host && !may_unmap(op))
        entry = v->entry | ENTRY_ZERO;
    publish_entry(s, op, off, entry, 0);
    if (may_unmap(op) || v->kind == ENTRY_IS_COMPRESSED)
        free_entry(s, op, v);
    return true;
}

/* Some subclusters of a cluster, or all. */
static bool zero_subclusters(struct shard *s, struct op *op, uint64_t cluster_off,
                             const struct cluster_view *v, uint32_t mask)
{
    const bool whole = mask == UINT32_MAX;

    if (reads_as_zeros(op, v, cluster_off, mask) && !(whole && may_unmap(op) && v->kind == ENTRY_NORMAL))
        return true;
    if (v->kind == ENTRY_IS_COMPRESSED && !whole)
        return op->request->kind == REQUEST_DISCARD; /* has to be unpacked first: not for a discard */
    if (whole && (may_unmap(op) || v->kind == ENTRY_IS_COMPRESSED)) {
        publish_entry(s, op, cluster_off, 0, (uint64_t)UINT32_MAX << 32);
        free_entry(s, op, v);
        return true;
    }
    publish_entry(s, op, cluster_off, v->entry,
                  (uint64_t)(bitmap_zero(v->bitmap) | mask) << 32 | (bitmap_allocated(v->bitmap) & ~mask));
    return true;
}

/* ---- an external data file ---- */

/* The data file is to be a raw image of its own: what it holds is what the guest sees. */
static bool is_raw(const struct op *op)
{
    return op->layer->raw_data_file;
}

static uint64_t whole_clusters_end(const struct op *op)
{
    const uint32_t cluster_bytes = op->layer->header.cluster_bytes;

    if (op->end >= op->layer->virtual_bytes)
        return op->end;
    return round_down(op->end, cluster_bytes);
}

/* The whole clusters at pos, of the data file: its own space is given back, or zeroed, before the entries say
 * so. */
static void start_data_file_zeroing(struct shard *s, struct op *op)
{
    const uint64_t end = whole_clusters_end(op);

    op->io = (struct io){.kind = may_unmap(op) ? IO_PUNCH : IO_ZERO,
                         .role = ROLE_OP,
                         .file = op->layer->data_file,
                         .off = op->pos,
                         .length = end - op->pos};
    op->zeroed_to = end;
    op->zeroing = true;
    op->has_io = true;
    backend_prepare(s->loop.backend, &op->io);
}

/* What became of it. */
static enum zero_step data_file_result(struct shard *s, struct op *op, uint64_t *ret_end)
{
    const bool raw = is_raw(op);

    op->zeroing = false;
    if (op->io.result == 0 || (!raw && op->io.result == -EOPNOTSUPP))
        return ZERO_DONE;
    if (op->io.result == -EOPNOTSUPP && op->request->kind == REQUEST_DISCARD)
        return ZERO_DONE; /* cannot be done: a discard need not be */
    if (op->io.result == -EOPNOTSUPP) {
        *ret_end = op->zeroed_to;
        return ZERO_WRITE;
    }
    char text[REQUEST_ERROR_BYTES];

    snprintf(text, sizeof text, "data file: zeroing at offset 0x%llx failed: %s",
             (unsigned long long)op->io.off, strerror(-op->io.result));
    op_fail(s, op, op->io.result, text);
    return ZERO_WAITS;
}

/* ---- a step ---- */

/* What part of the cluster at pos is not whole: skipped, or its zeros written. */
static enum zero_step partial(struct op *op, const struct cluster_view *v, uint32_t unit, uint64_t *ret_end)
{
    const uint64_t unit_off = round_down(op->pos, unit), end = MIN(op->end, unit_off + unit);
    const uint32_t sub = (uint32_t)((op->pos & (op->layer->header.cluster_bytes - 1)) / unit);

    if (op->request->kind == REQUEST_DISCARD || reads_as_zeros(op, v, op->pos, 1u << sub)) {
        op->pos = end;
        return ZERO_DONE;
    }
    *ret_end = end;
    return ZERO_WRITE;
}

static enum zero_step one_cluster(struct shard *s, struct op *op, uint64_t *ret_end)
{
    const struct layer *layer = op->layer;
    const uint32_t cluster_bytes = layer->header.cluster_bytes;
    const uint32_t unit = layer->header.extended_l2 ? cluster_bytes / SUBCLUSTERS_PER_CLUSTER : cluster_bytes;
    const uint64_t off = round_down(op->pos, cluster_bytes);
    const uint32_t mask = whole_subclusters(op, off, unit);
    struct cluster_view v;
    struct map_fault fault;
    bool done;

    if (map_cluster(layer, op->slot->entries, off, &v, &fault) != MAP_OK) {
        char text[REQUEST_ERROR_BYTES];

        map_fault_text(layer, &fault, text, sizeof text);
        allocator_report_corruption(s->image->allocator);
        op_fail(s, op, -EIO, text);
        return ZERO_WAITS;
    }
    if (!(mask & (1u << ((op->pos - off) / unit))))
        return partial(op, &v, unit, ret_end);
    if (is_raw(op) && v.kind == ENTRY_NORMAL) /* subclusters: op_zero_step() did what is whole */
        done = op->request->kind == REQUEST_DISCARD;
    else
        done =
            layer->header.extended_l2 ? zero_subclusters(s, op, off, &v, mask) : zero_plain(s, op, off, &v);
    if (!done) {
        *ret_end = MIN(op->end, off + cluster_bytes);
        return ZERO_WRITE;
    }
    if (op->end < off + cluster_bytes && op->end < layer->virtual_bytes)
        op->pos = round_down(op->end, unit);
    else
        op->pos = MIN(op->end, off + cluster_bytes);
    return ZERO_DONE;
}

/* The op stands before whole clusters of a data file, whose content has to go first. */
static bool needs_data_file_zeroed(const struct op *op)
{
    return (is_raw(op) || (op->layer->has_data_file && may_unmap(op))) && op->zeroed_to <= op->pos &&
           !(op->pos & (op->layer->header.cluster_bytes - 1)) && op->pos < whole_clusters_end(op);
}

enum zero_step op_zero_step(struct shard *s, struct op *op, uint64_t *ret_end)
{
    uint32_t n = 0;

    if (op->zeroing) {
        const enum zero_step step = data_file_result(s, op, ret_end);

        if (step != ZERO_DONE)
            return step;
        if (is_raw(op))
            op->pos = op->zeroed_to;
    }
    while (op->pos < op->end && n++ < STEP_CLUSTERS) {
        enum zero_step step;

        if (needs_data_file_zeroed(op)) {
            start_data_file_zeroing(s, op);
            return ZERO_WAITS;
        }
        shard_unreserve_freed(s, op);
        if (!shard_reserve_freed(s, op, 2)) {
            op_fail(s, op, -ENOMEM, "out of memory");
            return ZERO_WAITS;
        }
        step = one_cluster(s, op, ret_end);
        if (step != ZERO_DONE)
            return step;
    }
    return ZERO_DONE;
}
