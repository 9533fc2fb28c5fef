/* SPDX-License-Identifier: MIT */
/* Where data is: the answers to scow_get_extent() come from the same walk that reads take. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "engine/blocking.h"
#include "engine/options.h"
#include "engine/read.h"
#include "format/entry.h"
#include "format/refcount.h"

/* Resolve [off, off + bytes): the first run, and the layer that decides. */
static int resolve_run(struct scow_queue *q, uint64_t off, uint64_t bytes, bool this_layer,
                       struct lookup *ret)
{
    struct request *r = queue_take_request(q);
    int err;

    if (!r)
        return error_set(-EIO, "the image's backend has failed");
    r->kind = REQUEST_MAP;
    r->this_layer = this_layer;
    r->off = off;
    r->bytes = bytes;
    read_walk(q, r);
    err = queue_run(q, r);
    *ret = r->lookup;
    return err;
}

/* Clusters with a refcount, among those of one block, up to limit. */
static int count_block(struct layer *layer, uint64_t block_off, uint8_t *block, uint64_t limit,
                       uint64_t *count)
{
    const struct header *h = &layer->header;
    const uint32_t per_block = refcount_block_count(h->cluster_bits, h->refcount_order);
    int r;

    r = file_read(layer->file, block, h->cluster_bytes, block_off);
    for (uint32_t i = 0; r == 0 && i < per_block && *count < limit; i++)
        *count += refcount_get(block, h->refcount_order, i) != 0;
    return r;
}

/*
 * Whether the file has clearly fewer blocks than its refcounts say clusters: then allocated clusters may be
 * holes of the host, as preallocated metadata leaves them, and holes are worth asking for (QEMU
 * qcow2-refcount.c, qcow2_detect_metadata_preallocation(), has the threshold). Refcounts that cannot be read
 * say nothing of the kind: the mapping does not need them.
 */
static void detect_sparse(struct layer *layer)
{
    const struct header *h = &layer->header;
    const uint64_t real = layer->file->allocated_bytes >> h->cluster_bits;
    const uint64_t threshold = MAX(real * 10 / 9, real + 2);
    const uint64_t blocks = ((uint64_t)h->reftable_clusters << h->cluster_bits) / 8;
    const uint64_t used = div_round_up(div_round_up(layer->file->bytes, h->cluster_bytes),
                                       refcount_block_count(h->cluster_bits, h->refcount_order));
    uint8_t *block = malloc(h->cluster_bytes);
    uint64_t count = 0;
    int r = block ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < MIN(blocks, used) && count < threshold && r == 0; i++) {
        uint8_t raw[8];

        r = file_read(layer->file, raw, sizeof raw, h->reftable_off + i * sizeof raw);
        if (r == 0 && (get_be64(raw) & REFTABLE_OFF_MASK))
            r = count_block(layer, get_be64(raw) & REFTABLE_OFF_MASK, block, threshold, &count);
    }
    free(block);
    layer->sparse_known = true;
    layer->sparse = count >= threshold;
}

/* Say where the run's bytes are in the file, and whether the file has a hole there. */
static void describe_host(struct layer *layer, const struct run *run, struct scow_extent *e)
{
    const bool raw = layer->format == SCOW_FORMAT_RAW;
    struct file *file = layer->data_file;
    uint64_t bytes;
    bool data;

    e->flags |= SCOW_EXTENT_HOST_OFF;
    e->host_off = run->host_off;
    e->host_path = file->path;
    if (run->kind != RUN_DATA)
        return;
    if (!raw && !layer->sparse_known)
        detect_sparse(layer);
    if (!raw && !layer->sparse)
        return;
    if (run->host_off >= file->bytes) { /* reads as zeros */
        e->flags |= SCOW_EXTENT_ZERO;
    } else {
        file_extent(file, run->host_off, run->host_off + e->bytes, &data, &bytes);
        e->bytes = bytes;
        if (!data)
            e->flags |= SCOW_EXTENT_ZERO;
    }
    if (raw && (e->flags & SCOW_EXTENT_ZERO))
        e->flags &= ~SCOW_EXTENT_DATA;
}

static void describe(const struct lookup *l, bool this_layer, struct scow_extent *e)
{
    e->bytes = l->run.bytes;
    e->depth = l->layer->depth;
    e->flags = 0;
    switch (l->run.kind) {
    case RUN_UNALLOCATED:
        e->flags = this_layer && l->layer->backing ? 0 : SCOW_EXTENT_ZERO;
        break;
    case RUN_ZERO:
        e->flags = SCOW_EXTENT_PRESENT | SCOW_EXTENT_ZERO;
        break;
    case RUN_COMPRESSED:
        e->flags = SCOW_EXTENT_PRESENT | SCOW_EXTENT_DATA | SCOW_EXTENT_COMPRESSED;
        break;
    case RUN_DATA:
        e->flags = SCOW_EXTENT_PRESENT | SCOW_EXTENT_DATA;
        break;
    }
    if (l->run.has_host)
        describe_host(l->layer, &l->run, e);
}

static bool extends(const struct scow_extent *e, const struct scow_extent *next)
{
    return next->flags == e->flags && next->depth == e->depth && next->host_path == e->host_path &&
           (!(e->flags & SCOW_EXTENT_HOST_OFF) || next->host_off == e->host_off + e->bytes);
}

static int find_extent(struct scow_queue *q, uint64_t off, uint64_t bytes, bool this_layer,
                       struct scow_extent *e)
{
    struct lookup l;
    int r = resolve_run(q, off, bytes, this_layer, &l);

    if (r < 0)
        return r;
    describe(&l, this_layer, e);
    while (e->bytes < bytes) {
        struct scow_extent next = {.size = sizeof next, .off = off + e->bytes};

        r = resolve_run(q, next.off, bytes - e->bytes, this_layer, &l);
        if (r < 0)
            break; /* what comes before is good; the next call tells */
        describe(&l, this_layer, &next);
        if (!extends(e, &next))
            break;
        e->bytes += next.bytes;
    }
    return 0;
}

SCOW_PUBLIC int scow_get_extent(struct scow_image *image, uint64_t off, uint64_t bytes, uint32_t flags,
                                struct scow_extent *ret)
{
    struct scow_extent e = {.size = sizeof e, .off = off};
    struct scow_queue *q;
    int r;

    if (flags & ~SCOW_EXTENT_THIS_LAYER)
        return error_set(-EINVAL, "extent: unknown flags 0x%" PRIx32, flags);
    if (!bytes || !range_within(off, bytes, scow_size(image)))
        return error_set(-EINVAL,
                         "extent: %" PRIu64 " bytes at offset %" PRIu64 " are not within the image's %" PRIu64
                         " bytes",
                         bytes, off, scow_size(image));
    r = blocking_begin(image, &q);
    if (r < 0)
        return r;
    r = find_extent(q, off, bytes, flags & SCOW_EXTENT_THIS_LAYER, &e);
    blocking_end(image);
    if (r == 0)
        result_give(ret, &e, sizeof e);
    return r;
}
