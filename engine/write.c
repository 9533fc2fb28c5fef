/* SPDX-License-Identifier: MIT */
/*
 * Top to bottom, a write is:
 *
 * - write_walk: take the next part of the request.
 *
 * - start_in_place: its cluster is mapped, its own, and the mapping is cached: one I/O, here. Else
 *
 * - ask_owner: the owner of the slice does the part (op.c), while nothing of the request is in flight here.
 *
 * - write_answered: the walk goes on behind it.
 *
 * - finish: durable, if that was asked: with the next commit, unless the I/O itself was.
 *
 * A part that is at its owner is not counted in an I/O epoch: the owner may have to wait for one to drain.
 */
#include "engine/write.h"

#include <errno.h>
#include <stdio.h>

#include "base/guard.h"
#include "engine/allocator.h"
#include "engine/cached_lookup.h"
#include "engine/queue.h"
#include "engine/shard.h"
#include "engine/transfer.h"

/* ---- at the owner, at the allocator ---- */

static void leave_epoch(struct scow_queue *q, struct request *r)
{
    epoch_leave(&q->epoch, r->epoch_bucket);
    r->epoch_bucket = EPOCH_NOT_COUNTED;
}

static void ask_owner(struct scow_queue *q, struct request *r)
{
    struct lookup *l = &r->lookup;

    l->layer = image_top(q->image);
    l->guest_off = r->off + r->walked;
    l->bytes = MIN(r->bytes - r->walked, map_slice_rest(l->layer, l->guest_off));
    if (r->flags & SCOW_REQ_COMPRESSED)
        l->bytes = MIN(l->bytes, l->layer->header.cluster_bytes);
    if (r->flags & (SCOW_REQ_FUA | SCOW_REQ_OUTLIVES))
        r->needs_commit = true;
    leave_epoch(q, r);
    counter_add(&q->counters.writes_at_shard, 1);
    queue_ask_shard(q, r);
}

static void ask_allocator(struct scow_queue *q, struct request *r)
{
    leave_epoch(q, r);
    r->at_allocator = true;
    counter_add(&q->counters.flushes_joined, 1);
    queue_ask_allocator(q, r);
}

void write_answered(struct scow_queue *q, struct request *r)
{
    r->epoch_bucket = epoch_enter(&q->epoch);
    if (unlikely(r->packed_bytes)) {
        deflated_give(&q->deflated, r->packed);
        r->packed_bytes = 0;
    }
    if (unlikely(r->lookup.status < 0) && !r->result)
        r->result = r->lookup.status;
    if (r->at_allocator) {
        r->at_allocator = false;
        queue_complete(q, r);
        return;
    }
    r->walked += r->lookup.bytes;
    write_walk(q, r);
}

/* ---- in place ---- */

/* How much of the request's rest may be written where it is, from *ret_host_off on. */
static uint64_t in_place(struct scow_queue *q, struct request *r, uint64_t *ret_host_off)
{
    const struct layer *layer = image_top(q->image);
    const uint64_t off = r->off + r->walked;
    const struct map_root *root;
    const slot_cell *cell;
    struct slot *slot;
    uint32_t seq;
    uint64_t n;

    if (layer->format == SCOW_FORMAT_RAW) {
        *ret_host_off = off;
        return r->bytes - r->walked;
    }
    root = atomic_load_explicit(&layer->root, memory_order_acquire);
    cell = directory_cell(&root->directory, map_slice_index(layer, off));
    slot = atomic_load_explicit(cell, memory_order_acquire);
    if (!slot || !slot_read_begin(slot, cell, &seq) ||
        (atomic_load_explicit(&slot->owner_only, memory_order_relaxed) && GUARD(ALONE)))
        return 0;
    n = map_in_place(layer, slot->entries, off, r->bytes - r->walked, ret_host_off);
    if (!slot_read_valid(slot, seq))
        return 0;
    slot_mark(slot);
    return n;
}

/* Whether the file has all that the owner of the slice at off has published. After the entry was read. */
static bool mapping_is_written(const struct scow_queue *q, uint64_t off)
{
    const struct scow_image *image = q->image;
    const struct shard *s;

    if (!image->allocator)
        return true;
    s = &image->shards[map_slice_index(image_top(image), off) % image->shard_count];
    return atomic_load_explicit(&s->mutated, memory_order_acquire) ==
           atomic_load_explicit(&s->written, memory_order_acquire);
}

/* Durable by itself only if everything that maps it is. */
static uint8_t durability(const struct scow_queue *q, struct request *r)
{
    if (likely(!(r->flags & (SCOW_REQ_FUA | SCOW_REQ_OUTLIVES))))
        return 0;
    if (!(r->flags & SCOW_REQ_FUA)) { /* what maps it may be in memory only */
        r->needs_commit |= !mapping_is_written(q, r->off + r->walked);
        return 0;
    }
    if (!r->needs_commit && image_is_committed(q->image))
        return IO_DURABLE;
    r->needs_commit = true;
    return 0;
}

enum started { STARTED, STARVED, NOT_HERE };

static enum started start_bounced(struct scow_queue *q, struct request *r, struct file *file,
                                  uint64_t host_off, uint32_t bytes)
{
    void *bounce = bounce_take(&q->bounces);
    struct transfer *t = bounce ? transfer_take(q, r) : NULL;

    if (!t) {
        if (bounce)
            bounce_give(&q->bounces, bounce);
        return STARVED;
    }
    bytes = MIN(bytes, BOUNCE_BYTES);
    guest_buffer_gather(&r->buffer, r->walked, bounce, bytes);
    t->kind = TRANSFER_BOUNCED;
    t->bounce = bounce;
    t->io.buf = bounce;
    t->io.iov_count = 0;
    t->io.flags = durability(q, r);
    counter_add(&q->counters.bounces, 1);
    r->walked += bytes;
    transfer_start(q, t, IO_WRITE, file, host_off, bytes);
    return STARTED;
}

static enum started start_in_place(struct scow_queue *q, struct request *r)
{
    struct file *file = image_top(q->image)->data_file;
    uint64_t host_off;
    uint32_t bytes, part;
    struct transfer *t;

    bytes = (uint32_t)round_down(MIN(in_place(q, r, &host_off), TRANSFER_BYTES_MAX), file->io_align);
    if (!bytes || (r->off + r->walked) & (file->io_align - 1))
        return NOT_HERE;
    t = transfer_take(q, r);
    if (!t)
        return STARVED;
    part = transfer_point_at_guest(r, file, bytes, t);
    if (unlikely(!part)) {
        transfer_give(q, t);
        return start_bounced(q, r, file, host_off, bytes);
    }
    t->kind = TRANSFER_DIRECT;
    t->io.flags = durability(q, r);
    counter_add(&q->counters.writes_in_place, 1);
    r->walked += part;
    transfer_start(q, t, IO_WRITE, file, host_off, part);
    return STARTED;
}

/* ---- compressed ---- */

/* The cluster at the walk's position, compressed, on its way to its owner. What does not shrink goes plain.
 */
static enum started start_compressed(struct scow_queue *q, struct request *r)
{
    const struct layer *layer = image_top(q->image);
    const uint32_t bytes = (uint32_t)MIN(r->bytes - r->walked, layer->header.cluster_bytes);
    int err;

    if (r->pending > 1)
        return NOT_HERE; /* first what is in flight */
    err = deflate_cluster(&q->deflated, layer, &r->buffer, r->walked, bytes, &r->packed, &r->packed_bytes);
    if (err == -EAGAIN) { /* they may all be with ops that wait for an epoch to end */
        leave_epoch(q, r);
        return STARVED;
    }
    if (err < 0)
        r->result = err;
    return NOT_HERE;
}

/* ---- what needs no owner ---- */

/* One I/O without data: the sync of a flush, or what a discard is in a raw file. */
static void start_plain(struct scow_queue *q, struct request *r, enum io_kind kind)
{
    struct transfer *t = transfer_take(q, r); /* a request's first: always there */

    t->kind = TRANSFER_DIRECT;
    t->io.iov_count = 0;
    t->io.flags = 0;
    t->io.length = r->bytes;
    r->walked = r->bytes;
    transfer_start(q, t, kind, image_top(q->image)->data_file, r->off, 0);
}

static void flush(struct scow_queue *q, struct request *r)
{
    if (!q->image->writable) {
        write_part_done(q, r);
    } else if (image_is_committed(q->image) || !GUARD(I7)) {
        counter_add(&q->counters.flushes_alone, 1);
        start_plain(q, r, IO_SYNC);
        write_part_done(q, r);
    } else {
        r->needs_commit = true;
        write_part_done(q, r);
    }
}

static bool is_raw(const struct scow_queue *q)
{
    return image_top(q->image)->format == SCOW_FORMAT_RAW;
}

static void raw_discard(struct scow_queue *q, struct request *r)
{
    const bool unmap = r->kind == REQUEST_DISCARD || r->flags & SCOW_REQ_MAY_UNMAP;

    if (r->flags & SCOW_REQ_FUA)
        r->needs_commit = true;
    if (r->bytes)
        start_plain(q, r, unmap ? IO_PUNCH : IO_ZERO);
    write_part_done(q, r);
}

/* Zeros for the raw file, written. */
static enum started start_raw_zeros(struct scow_queue *q, struct request *r)
{
    struct file *file = image_top(q->image)->data_file;
    const uint32_t bytes = (uint32_t)MIN(r->bytes - r->walked, CLUSTER_BYTES_MAX);
    struct transfer *t;

    if ((r->off | bytes) & (file->io_align - 1))
        return NOT_HERE;
    t = transfer_take(q, r);
    if (!t)
        return STARVED;
    t->kind = TRANSFER_DIRECT;
    t->io.buf = q->image->zeros;
    t->io.iov_count = 0;
    t->io.flags = 0;
    r->walked += bytes;
    transfer_start(q, t, IO_WRITE, file, r->off + r->walked - bytes, bytes);
    return STARTED;
}

void write_unsupported(struct scow_queue *q, struct request *r)
{
    if (r->kind == REQUEST_ZERO) {
        r->by_hand = true;
        r->walked = 0;
        write_walk(q, r);
    } else { /* a discard need not be */
        write_part_done(q, r);
    }
}

/* Every part is done. */
static void finish(struct scow_queue *q, struct request *r)
{
    if (!r->needs_commit || r->result) {
        if (r->kind == REQUEST_WRITE && !r->result)
            counter_add(&q->counters.bytes, r->bytes);
        queue_complete(q, r);
        return;
    }
    r->needs_commit = false;
    if (q->image->allocator) {
        ask_allocator(q, r);
    } else { /* a raw image */
        r->pending = 1;
        start_plain(q, r, IO_SYNC);
        write_part_done(q, r);
    }
}

/* ---- the walk ---- */

void write_part_done(struct scow_queue *q, struct request *r)
{
    invariant(r->pending > 0);
    if (--r->pending == 0)
        finish(q, r);
    else if (r->pending == 1 && r->owner_waits)
        write_walk(q, r);
}

static void walk_parts(struct scow_queue *q, struct request *r)
{
    r->owner_waits = false;
    if (unlikely(r->epoch_bucket == EPOCH_NOT_COUNTED)) /* it was starved */
        r->epoch_bucket = epoch_enter(&q->epoch);
    while (r->walked < r->bytes && !r->result) {
        const enum started how = r->by_hand                       ? start_raw_zeros(q, r)
                                 : r->kind != REQUEST_WRITE       ? NOT_HERE
                                 : r->flags & SCOW_REQ_COMPRESSED ? start_compressed(q, r)
                                                                  : start_in_place(q, r);

        if (how == STARTED || r->result)
            continue;
        if (how == STARVED) {
            counter_add(&q->counters.starved, 1);
            list_push(&q->starved, &r->node);
            return;
        }
        if (is_raw(q)) { /* not in place: below what the file can do */
            r->result = -EINVAL;
            snprintf(r->error, REQUEST_ERROR_BYTES,
                     "a raw file opened with direct I/O takes whole blocks of %u bytes",
                     image_top(q->image)->file->io_align);
            continue;
        }
        if (r->pending > 1)
            r->owner_waits = true;
        else
            ask_owner(q, r);
        return;
    }
    write_part_done(q, r); /* the walk's own */
}

void write_walk(struct scow_queue *q, struct request *r)
{
    switch (r->kind) {
    case REQUEST_FLUSH:
        flush(q, r);
        break;
    case REQUEST_QUIESCE:
    case REQUEST_GROW:
        ask_allocator(q, r);
        break;
    case REQUEST_DISCARD:
    case REQUEST_ZERO:
        if (is_raw(q) && !r->by_hand) {
            raw_discard(q, r);
            break;
        }
        walk_parts(q, r);
        break;
    default:
        walk_parts(q, r);
        break;
    }
}
