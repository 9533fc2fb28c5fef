/* SPDX-License-Identifier: MIT */
/*
 * Top to bottom, a read is:
 *
 * - read_walk: take the next part of the request, from the top layer.
 *
 * - resolve: where is it? Cached lookups layer by layer; a miss is a message, and the walk goes on in
 *   read_answered() when the owner's answer comes.
 *
 * - start_part: by the run's kind: zeros at once, a transfer from the file, a transfer that waits for a
 * cluster.
 *
 * - read_io_done: a transfer ends; the last one completes the request.
 *
 * A part that cannot start because a pool is empty leaves its run in the request (run_known) and the request
 * on the starved list: what is resolved is never resolved again, so every answer of a shard moves its request
 * on, however small the cache.
 */
#include "engine/read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/probe.h"
#include "engine/cached_lookup.h"
#include "engine/queue.h"
#include "engine/transfer.h"
#include "engine/write.h"
#include "format/entry.h"

static void fail(struct request *r, int err)
{
    if (!r->result)
        r->result = err;
}

static void part_done(struct scow_queue *q, struct request *r)
{
    if (unlikely(r->kind > REQUEST_MAP)) {
        write_part_done(q, r);
        return;
    }
    invariant(r->pending > 0);
    if (--r->pending == 0)
        queue_complete(q, r);
}

/* ---- one part, by kind; each returns the bytes started, 0 when it has to wait for a pool ---- */

static uint64_t start_zeros(struct scow_queue *q, struct request *r, uint64_t bytes)
{
    guest_buffer_zero(&r->buffer, r->walked, bytes);
    counter_add(&q->counters.zeros, 1);
    return bytes;
}

static uint64_t start_bounced(struct scow_queue *q, struct request *r, struct file *file, uint64_t host_off,
                              uint32_t bytes)
{
    const uint64_t start = round_down(host_off, file->io_align);
    const uint32_t skip = (uint32_t)(host_off - start);
    const uint32_t part = MIN(bytes, BOUNCE_BYTES - skip);
    void *bounce = bounce_take(&q->bounces);
    struct transfer *t = bounce ? transfer_take(q, r) : NULL;

    if (!t) {
        if (bounce)
            bounce_give(&q->bounces, bounce);
        return 0;
    }
    t->kind = TRANSFER_BOUNCED;
    t->at = r->walked;
    t->bytes = part;
    t->skip = skip;
    t->bounce = bounce;
    t->io.buf = bounce;
    t->io.iov_count = 0;
    counter_add(&q->counters.bounces, 1);
    transfer_start(q, t, IO_READ, file, start, (uint32_t)round_up(skip + part, file->io_align));
    return part;
}

static uint64_t start_data(struct scow_queue *q, struct request *r, struct file *file, uint64_t host_off,
                           uint64_t bytes_max)
{
    const uint32_t bytes = (uint32_t)MIN(bytes_max, TRANSFER_BYTES_MAX);
    struct transfer *t;
    uint32_t part;

    if (unlikely(host_off & (file->io_align - 1)) || unlikely(bytes < file->io_align))
        return start_bounced(q, r, file, host_off, bytes);
    t = transfer_take(q, r);
    if (unlikely(!t))
        return 0;
    part = transfer_point_at_guest(r, file, bytes, t);
    if (unlikely(!part)) {
        transfer_give(q, t);
        return start_bounced(q, r, file, host_off, bytes);
    }
    t->kind = TRANSFER_DIRECT;
    t->bytes = part;
    transfer_start(q, t, IO_READ, file, host_off, part);
    return part;
}

static uint64_t start_inflate(struct scow_queue *q, struct request *r, const struct lookup *l)
{
    const uint64_t pos = r->off + r->walked;
    const uint32_t skip = (uint32_t)(pos & (l->layer->header.cluster_bytes - 1));
    struct inflated *cluster =
        inflate_find(&q->inflates, l->layer, l->run.entry, l->layer->depth ? 0 : r->generation);
    struct transfer *t;

    if (!cluster)
        return 0;
    if (cluster->state == INFLATED_VALID) {
        guest_buffer_copy(&r->buffer, r->walked, cluster->plain + skip, l->run.bytes);
        counter_add(&q->counters.inflate_hits, 1);
        return l->run.bytes;
    }
    t = transfer_take(q, r);
    if (!t)
        return 0;
    if (cluster->state == INFLATED_EMPTY) {
        inflate_start(cluster);
        counter_add(&q->counters.ios, 1);
        q->prepared = true;
        backend_prepare(q->loop.backend, &cluster->io);
    } else {
        counter_add(&q->counters.inflate_hits, 1);
    }
    t->kind = TRANSFER_INFLATE;
    t->at = r->walked;
    t->bytes = (uint32_t)l->run.bytes;
    t->skip = skip;
    r->pending++;
    list_push(&cluster->waiters, &t->node);
    return l->run.bytes;
}

/* Start the resolved part at the walk's position. */
static uint64_t start_part(struct scow_queue *q, struct request *r)
{
    const struct lookup *l = &r->lookup;

    if (unlikely(l->layer->depth) && l->run.kind != RUN_UNALLOCATED && l->run.kind != RUN_ZERO)
        counter_add(&q->counters.backing, 1);
    switch (l->run.kind) {
    case RUN_DATA:
        return start_data(q, r, l->layer->data_file, l->run.host_off, l->run.bytes);
    case RUN_COMPRESSED:
        return start_inflate(q, r, l);
    case RUN_UNALLOCATED:
    case RUN_ZERO:
        break;
    }
    return start_zeros(q, r, l->run.bytes);
}

/* ---- the walk ---- */

enum resolved {
    RESOLVED_RUN,   /* request->lookup.run is final: the layer that decides has it */
    RESOLVED_ASKED, /* a shard will answer */
    RESOLVED_FAILED,
};

/* Nothing in this layer: look in the next one down, or settle for zeros. True to look again. */
static bool descend(struct request *r)
{
    struct lookup *l = &r->lookup;
    struct layer *next = l->layer->backing;

    if (!next || r->this_layer || l->guest_off >= next->virtual_bytes)
        return false; /* past the end of a shorter backing file are zeros */
    l->layer = next;
    l->bytes = MIN(l->run.bytes, next->virtual_bytes - l->guest_off);
    return true;
}

static void look_from_top(struct request *r)
{
    r->lookup.layer = image_top(r->queue->image);
    r->lookup.guest_off = r->off + r->walked;
    r->lookup.bytes = r->bytes - r->walked;
}

/* Go down the chain from request->lookup until a layer decides. */
__attribute__((always_inline)) static inline enum resolved resolve(struct scow_queue *q, struct request *r)
{
    struct lookup *l = &r->lookup;

    do {
        if (l->layer->format == SCOW_FORMAT_RAW) {
            l->run =
                (struct run){.kind = RUN_DATA, .has_host = true, .host_off = l->guest_off, .bytes = l->bytes};
            return RESOLVED_RUN;
        }
        if (!cached_lookup(l, r->error)) {
            counter_add(&q->counters.misses, 1);
            PROBE2(miss, q->index, l->guest_off);
            l->bytes = MIN(l->bytes, map_slice_rest(l->layer, l->guest_off));
            queue_ask_shard(q, r);
            return RESOLVED_ASKED;
        }
        counter_add(&q->counters.hits, 1);
        if (unlikely(l->run.kind == RUN_COMPRESSED))
            r->generation = q->generation;
        if (unlikely(l->status < 0)) {
            fail(r, l->status);
            return RESOLVED_FAILED;
        }
    } while (l->run.kind == RUN_UNALLOCATED && descend(r));
    return RESOLVED_RUN;
}

/* Off the shortest path, where a second copy of the code would only be larger. */
__attribute__((noinline)) static enum resolved resolve_further(struct scow_queue *q, struct request *r)
{
    return resolve(q, r);
}

/* Starts request->lookup.run and goes on from the top behind it. */
static void walk_from_run(struct scow_queue *q, struct request *r)
{
    for (;;) {
        if (r->kind == REQUEST_MAP) {
            r->walked = r->bytes; /* the run is the answer */
            break;
        }
        const uint64_t started = start_part(q, r);

        if (unlikely(!started)) {
            r->run_known = true;
            counter_add(&q->counters.starved, 1);
            list_push(&q->starved, &r->node);
            return;
        }
        r->walked += started;
        if (likely(r->walked == r->bytes))
            break;
        if (started < r->lookup.run.bytes) {
            struct run *run = &r->lookup.run; /* the rest of the same run */

            run->bytes -= started;
            run->host_off += started;
            continue;
        }
        look_from_top(r);
        const enum resolved how = resolve_further(q, r);
        if (how == RESOLVED_ASKED)
            return;
        if (how == RESOLVED_FAILED)
            break;
    }
    part_done(q, r); /* the walk's own */
}

static void go_on(struct scow_queue *q, struct request *r, enum resolved how)
{
    switch (how) {
    case RESOLVED_RUN:
        walk_from_run(q, r);
        break;
    case RESOLVED_ASKED:
        break;
    case RESOLVED_FAILED:
        part_done(q, r); /* the walk's own */
        break;
    }
}

void read_walk(struct scow_queue *q, struct request *r)
{
    if (unlikely(r->run_known)) {
        r->run_known = false;
        walk_from_run(q, r);
        return;
    }
    look_from_top(r);
    go_on(q, r, resolve(q, r));
}

void read_answered(struct scow_queue *q, struct request *r)
{
    struct lookup *l = &r->lookup;
    enum resolved how = RESOLVED_RUN;

    if (l->status < 0) {
        fail(r, l->status);
        how = RESOLVED_FAILED;
    } else if (l->run.kind == RUN_UNALLOCATED && descend(r)) {
        how = resolve_further(q, r);
    }
    go_on(q, r, how);
}

/* ---- completions ---- */

static void io_failed(struct request *r, const struct io *io)
{
    fail(r, io->result);
    if (!r->error[0]) {
        if (io->kind == IO_READ)
            (void)file_read_failed(io->file, io->result, io->off, io->bytes);
        else
            (void)file_write_failed(io->file, io->result, io->off, io->bytes);
        snprintf(r->error, REQUEST_ERROR_BYTES, "%s", error_message());
    }
}

static void transfer_done(struct scow_queue *q, struct transfer *t)
{
    struct request *r = t->request;

    if (unlikely(t->io.result < 0)) {
        if (t->io.result == -EOPNOTSUPP && (t->io.kind == IO_PUNCH || t->io.kind == IO_ZERO)) {
            transfer_give(q, t);
            write_unsupported(q, r);
            return;
        }
        io_failed(r, &t->io);
    }
    if (unlikely(t->kind == TRANSFER_BOUNCED)) {
        if (t->io.result == 0 && t->io.kind == IO_READ)
            guest_buffer_copy(&r->buffer, t->at, (uint8_t *)t->bounce + t->skip, t->bytes);
        bounce_give(&q->bounces, t->bounce);
    }
    transfer_give(q, t);
    part_done(q, r);
}

static void inflate_failed(struct request *r, const struct inflated *cluster, int err)
{
    const struct layer *layer = cluster->layer;
    const struct compressed_extent extent = entry_compressed(cluster->entry, layer->header.cluster_bits);

    if (cluster->io.result < 0) {
        io_failed(r, &cluster->io);
        return;
    }
    fail(r, err);
    if (!r->error[0])
        snprintf(r->error, REQUEST_ERROR_BYTES,
                 "%.100s: the compressed cluster at host offset 0x%" PRIx64 " (%" PRIu32 " bytes) is damaged",
                 file_name(layer->file), extent.off, extent.bytes);
}

static void inflate_done(struct scow_queue *q, struct inflated *cluster)
{
    struct list waiters = list_take(&cluster->waiters);
    const int err = inflate_finish(&q->inflates, cluster);
    struct list_node *n;

    counter_add(&q->counters.inflates, 1);
    while ((n = list_pop(&waiters))) {
        struct transfer *t = container_of(n, struct transfer, node);
        struct request *r = t->request;

        if (err)
            inflate_failed(r, cluster, err);
        else
            guest_buffer_copy(&r->buffer, t->at, cluster->plain + t->skip, t->bytes);
        transfer_give(q, t);
        part_done(q, r);
    }
}

/* An I/O is either a transfer's or a cluster's: the latter lie in one array. */
void read_io_done(struct scow_queue *q, struct io *io)
{
    struct inflated *const slots = q->inflates.slots;

    if (unlikely((uintptr_t)io >= (uintptr_t)slots && (uintptr_t)io < (uintptr_t)(slots + INFLATED_MAX)))
        inflate_done(q, container_of(io, struct inflated, io));
    else
        transfer_done(q, container_of(io, struct transfer, io));
}
