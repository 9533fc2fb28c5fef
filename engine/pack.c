/* SPDX-License-Identifier: MIT */
#include "engine/pack.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "engine/image.h"
#include "engine/publish.h"
#include "engine/shard.h"
#include "format/refcount.h"

#define BUFFER_BYTES_MIN (1u << 20)
/* Host clusters taken at a time, so that plain writes in between do not break the row. */
#define ROW_CLUSTERS 16u

static uint32_t cluster_bytes(const struct shard *s)
{
    return image_top(s->image)->header.cluster_bytes;
}

static uint32_t io_align(const struct shard *s)
{
    return image_top(s->image)->file->io_align;
}

void pack_create(struct shard *s)
{
    struct pack *p = &s->pack;
    const uint64_t count_max = refcount_max(image_top(s->image)->header.refcount_order);

    p->streams_max = count_max - 1; /* one is the cursor's */
    p->buffer_bytes = MAX(BUFFER_BYTES_MIN, 4 * cluster_bytes(s));
}

void pack_destroy(struct shard *s)
{
    free(s->pack.buffer);
    freed_destroy(&s->pack.passed);
}

bool pack_takes(const struct shard *s, const struct op *op)
{
    struct cluster_view v;
    struct map_fault ignored;

    if (!op->request->packed_bytes || !s->pack.streams_max ||
        map_cluster(op->layer, op->slot->entries, op->pos, &v, &ignored) != MAP_OK)
        return false;
    return v.kind == ENTRY_UNALLOCATED || v.kind == ENTRY_ZERO_PLAIN || v.kind == ENTRY_IS_COMPRESSED;
}

void pack_add(struct shard *s, struct op *op)
{
    list_push(&s->pack.waiting, &op->node);
    pack_run(s);
}

/* ---- where streams go ---- */

/* The host clusters from that of at on lose the cursor's reference. */
static void leave_row(struct shard *s)
{
    const uint32_t bits = image_top(s->image)->header.cluster_bits;
    struct pack *p = &s->pack;

    if (p->at != p->end)
        freed_add(&p->passed, p->at >> bits, (p->end >> bits) - (p->at >> bits));
    p->at = p->end = 0;
    p->streams_here = 0;
}

/* What is in the clusters that the cursor has left is published, and so are its references: the cursor's go.
 */
static bool free_passed(struct shard *s)
{
    if (!s->pack.passed.count)
        return true;
    if (!freed_reserve(&s->freed, s->freed_reserved + s->pack.passed.count))
        return false; /* with the next write, or when the leases are returned */
    for (uint32_t i = 0; i < s->pack.passed.count; i++)
        freed_add(&s->freed, s->pack.passed.runs[i].first, s->pack.passed.runs[i].count);
    s->pack.passed.count = 0;
    s->pack.passed.clusters = 0;
    shard_mutate(s);
    return true;
}

bool pack_leave(struct shard *s, struct freed_list *to)
{
    struct pack *p = &s->pack;

    if (p->busy || !list_empty(&p->waiting))
        return true; /* in use: not the moment */
    if (!freed_reserve(&p->passed, 1))
        return false;
    leave_row(s);
    return freed_move_out(to, &p->passed);
}

/* Room for bytes in a row at p->at, wherever that is then. 1, or -EAGAIN: a lease has to come. */
static int make_room(struct shard *s, uint32_t bytes)
{
    struct pack *p = &s->pack;
    const uint32_t bits = image_top(s->image)->header.cluster_bits;

    if (p->at != p->end && p->streams_here >= p->streams_max) { /* no more in this one */
        freed_add(&p->passed, p->at >> bits, 1);
        p->at = round_up(p->at + 1, cluster_bytes(s));
        p->streams_here = 0;
    }
    while (p->end - p->at < bytes) {
        uint64_t first;
        bool fresh;
        const uint32_t n = shard_take_clusters(s, ROW_CLUSTERS, &first, &fresh);

        if (!n)
            return -EAGAIN;
        if (first << bits != p->end) {
            leave_row(s); /* what is left of it is lost */
            p->at = p->end = first << bits;
        }
        p->end += (uint64_t)n << bits;
    }
    return 1;
}

static void raise_counts(struct shard *s, uint64_t off, uint32_t bytes)
{
    const uint32_t bits = image_top(s->image)->header.cluster_bits;

    for (uint64_t c = off >> bits; c <= (off + bytes - 1) >> bits; c++)
        s->raised.items[s->raised.count++] = (struct raised){c, 1};
}

/* ---- the write ---- */

/* Copy one stream into the buffer. 1; 0: it does not belong to this write; a negative errno. */
static int place(struct shard *s, struct op *op)
{
    struct pack *p = &s->pack;
    const uint32_t bytes = op->request->packed_bytes, bits = image_top(s->image)->header.cluster_bits;
    const bool first = list_empty(&p->packed);
    const uint64_t old_at = p->at;
    int r;

    if (!first && p->at - p->buffer_off + bytes + cluster_bytes(s) > p->buffer_bytes)
        return 0;
    shard_unreserve_freed(s, op); /* it may have been here before */
    if (!shard_reserve_freed(s, op, 1) || !raised_reserve(&s->raised, 2 * (p->packed_count + 1)) ||
        !freed_reserve(&p->passed, 8))
        return -ENOMEM;
    r = make_room(s, bytes);
    if (r <= 0)
        return r;
    if (!first && p->at != old_at)
        return 0; /* a new place: with the next write */
    if (first) {
        const uint64_t from = round_down(p->at, io_align(s));

        /* What the last write left in the block that this one begins with. */
        if (p->written == p->at && p->at != from)
            memmove(p->buffer, p->buffer + (from - p->buffer_off), p->at - from);
        else
            memset(p->buffer, 0, p->at - from);
        p->buffer_off = from;
    }
    memcpy(p->buffer + (p->at - p->buffer_off), op->request->packed, bytes);
    op->host_off = p->at;
    if ((p->at + bytes) >> bits != p->at >> bits) {
        freed_add(&p->passed, p->at >> bits, 1); /* a stream is shorter than a cluster */
        p->streams_here = (p->at + bytes) & (cluster_bytes(s) - 1) ? 1 : 0;
    } else {
        p->streams_here++;
    }
    p->at += bytes;
    p->written = p->at;
    p->packed_count++;
    return 1;
}

static void fail_one(struct shard *s, struct list_node *n, int err)
{
    op_fail(s, container_of(n, struct op, node), err,
            err == -ENOSPC ? "no space is left for new clusters"
                           : "a compressed cluster could not be stored");
}

void pack_fail(struct shard *s, int err)
{
    struct list waiting = list_take(&s->pack.waiting);
    struct list_node *n;

    while ((n = list_pop(&waiting)))
        fail_one(s, n, err);
}

static void start_write(struct shard *s)
{
    struct pack *p = &s->pack;
    const uint64_t end = round_up(p->written, io_align(s));

    memset(p->buffer + (p->written - p->buffer_off), 0, end - p->written);
    p->busy = true;
    p->io = (struct io){.kind = IO_WRITE,
                        .role = ROLE_PACK,
                        .file = image_top(s->image)->file,
                        .off = p->buffer_off,
                        .bytes = (uint32_t)(end - p->buffer_off),
                        .buf = p->buffer};
    backend_prepare(s->loop.backend, &p->io);
}

void pack_run(struct shard *s)
{
    struct pack *p = &s->pack;
    struct list_node *n;

    if (p->busy || list_empty(&p->waiting))
        return;
    if (!p->buffer)
        p->buffer = aligned_alloc(4096, p->buffer_bytes);
    while ((n = p->waiting.head)) {
        struct op *op = container_of(n, struct op, node);
        const int r = p->buffer ? place(s, op) : -ENOMEM;

        if (r == 0 || r == -EAGAIN)
            break;
        list_pop(&p->waiting);
        if (r < 0)
            fail_one(s, n, r);
        else
            list_push(&p->packed, n);
    }
    if (!list_empty(&p->packed))
        start_write(s);
}

/* ---- afterwards ---- */

static uint64_t descriptor(const struct shard *s, uint64_t off, uint32_t bytes)
{
    const uint32_t shift = 62 - (image_top(s->image)->header.cluster_bits - 8);
    const uint64_t sectors = (off + bytes - 1) / SECTOR_BYTES - off / SECTOR_BYTES;

    return ENTRY_COMPRESSED | sectors << shift | off;
}

static void publish(struct shard *s, struct op *op)
{
    struct cluster_view old;
    struct map_fault ignored;

    (void)map_cluster(op->layer, op->slot->entries, op->pos, &old, &ignored);
    raise_counts(s, op->host_off, op->request->packed_bytes);
    publish_entry(s, op, op->pos, descriptor(s, op->host_off, op->request->packed_bytes), 0);
    free_entry(s, op, &old);
    s->sync_needed = true;
    op->pos = op->end;
    list_push(&s->runnable, &op->node);
}

void pack_io_done(struct shard *s, struct io *io)
{
    struct pack *p = &s->pack;
    struct list done = list_take(&p->packed);
    struct list_node *n;

    p->busy = false;
    p->packed_count = 0;
    if (io->result < 0)
        (void)file_write_failed(io->file, io->result, io->off, io->bytes);
    while ((n = list_pop(&done))) {
        struct op *op = container_of(n, struct op, node);

        if (io->result < 0)
            op_fail(s, op, io->result, error_message());
        else
            publish(s, op);
    }
    (void)free_passed(s);
    pack_run(s);
}
