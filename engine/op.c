/* SPDX-License-Identifier: MIT */
/* The life of an op up to its data being written; publish.c has what follows. */
#include "engine/op.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "base/probe.h"
#include "engine/allocator.h"
#include "engine/chunk.h"
#include "engine/image.h"
#include "engine/publish.h"
#include "engine/queue.h"
#include "engine/read.h"
#include "engine/shard.h"

/* How long after the last write of part of a block others may write in place again. */
#define ALONE_NS 10000000u

/* ---- beginning and end ---- */

static void op_start(struct shard *s, struct op *op, struct request *r)
{
    struct layer *layer = r->lookup.layer;
    const uint32_t bits = layer->header.cluster_bits;

    *op = (struct op){.request = r,
                      .layer = layer,
                      .pos = r->lookup.guest_off,
                      .end = r->lookup.guest_off + r->lookup.bytes};
    op->first = op->pos >> bits;
    op->last = (op->end - 1) >> bits;
    op->cell = directory_cell(&atomic_load_explicit(&layer->root, memory_order_acquire)->directory,
                              map_slice_index(layer, op->pos));
    list_push(&s->runnable, &op->node);
}

void op_submit(struct shard *s, struct request *r)
{
    struct list_node *n;

    if (unlikely(s->broken)) {
        shard_answer(s, r, s->broken, "the image's backend failed before");
        return;
    }
    counter_add(&s->ops_count, 1);
    PROBE4(op, s->index, r->kind, r->off + r->walked, r->bytes - r->walked);
    n = list_pop(&s->free_ops);
    if (n)
        op_start(s, container_of(n, struct op, node), r);
    else
        list_push(&s->queued_requests, &r->node);
}

static bool overlap(const struct op *a, const struct op *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* Whether an op that came earlier touches one of its clusters. */
static bool must_wait(const struct shard *s, const struct op *op)
{
    const struct op *o = s->lines[slice_cache_index(&s->cache, op->slot)];

    for (; o != op && GUARD(INFLIGHT); o = o->next)
        if (overlap(o, op))
            return true;
    return false;
}

static void leave_line(struct shard *s, struct op *op)
{
    const uint32_t index = slice_cache_index(&s->cache, op->slot);
    struct op **at = &s->lines[index];

    while (*at != op)
        at = &(*at)->next;
    *at = op->next;
    for (struct op *o = op->next; o; o = o->next)
        if (o->step == OP_QUEUED && overlap(o, op) && !must_wait(s, o)) {
            o->step = OP_CHUNK;
            list_push(&s->runnable, &o->node);
        }
    s->cache.states[index].pins--;
    shard_run_all(s, &s->for_slot);
}

void op_release_buffer(struct shard *s, struct op *op)
{
    struct list_node *n;

    if (!op->buffer)
        return;
    s->buffers[s->buffers_free++] = op->buffer;
    op->buffer = NULL;
    n = list_pop(&s->for_buffer);
    if (n)
        list_push(&s->runnable, n);
}

void op_end(struct shard *s, struct op *op)
{
    struct request *r = op->request;
    const int error = op->error;
    struct list_node *n;

    op_release_buffer(s, op);
    shard_unreserve_freed(s, op);
    if (op->slot)
        leave_line(s, op);
    op->request = NULL;
    shard_answer(s, r, error, NULL);
    n = list_pop(&s->queued_requests);
    if (n)
        op_start(s, op, container_of(n, struct request, node));
    else
        list_push(&s->free_ops, &op->node);
}

void op_fail(struct shard *s, struct op *op, int err, const char *text)
{
    op->error = err;
    if (text != op->request->error)
        snprintf(op->request->error, REQUEST_ERROR_BYTES, "%s", text);
    if (op->allocated) { /* never named by anything, but perhaps half written */
        freed_add(&s->freed, op->host_first, op->cluster_count);
        op->allocated = false;
        shard_mutate(s);
    }
    op_end(s, op);
}

void ops_break_down(struct shard *s, int err, const char *text)
{
    struct list *const lists[] = {&s->for_slot,   &s->for_table,  &s->for_load,  &s->for_lease,
                                  &s->for_buffer, &s->for_reader, &s->for_drain, &s->drain_next,
                                  &s->for_room,   &s->runnable,   &s->free_ops};
    struct list_node *n;

    for (uint32_t i = 0; i < SHARD_OPS; i++)
        if (s->ops[i].request) {
            shard_answer(s, s->ops[i].request, err, text);
            s->ops[i].request = NULL;
        }
    s->pack.waiting = s->pack.packed = (struct list){0};
    while ((n = list_pop(&s->queued_requests)))
        shard_answer(s, container_of(n, struct request, node), err, text);
    for (size_t i = 0; i < ARRAY_COUNT(lists); i++)
        *lists[i] = (struct list){0};
    for (uint32_t i = 0; i < SHARD_TABLES; i++)
        s->tables[i].ops = (struct list){0};
}

/* ---- FIND ---- */

static struct table_wait *find_table(struct shard *s, uint64_t l1_index)
{
    struct table_wait *unused = NULL;

    for (uint32_t i = 0; i < SHARD_TABLES; i++) {
        if (s->tables[i].asked && s->tables[i].note.l1_index == l1_index)
            return &s->tables[i];
        if (!s->tables[i].asked)
            unused = &s->tables[i];
    }
    return unused;
}

/* The L2 table has to be made or copied first: the allocator's business. */
static void wait_for_table(struct shard *s, struct op *op, uint64_t l1_index)
{
    struct table_wait *t = find_table(s, l1_index);

    if (!t) { /* all are out: one of them will wake it */
        list_push(&s->for_table, &op->node);
        return;
    }
    list_push(&t->ops, &op->node);
    if (t->asked)
        return;
    t->asked = true;
    t->note.kind = NOTE_TABLE;
    t->note.l1_index = l1_index;
    shard_tell(s, &t->note);
}

/* Nothing is mapped here, so that what reads as zeros need not be said. */
static bool needs_no_table(const struct op *op)
{
    if (op->request->kind == REQUEST_WRITE)
        return false;
    if (op->request->kind == REQUEST_DISCARD &&
        (op->layer->header.version < 3 || op->request->flags & REQUEST_DROP))
        return true;
    return !op->layer->backing || op->pos >= op->layer->backing->virtual_bytes;
}

static void join_line(struct shard *s, struct op *op, struct slot *slot)
{
    const uint32_t index = slice_cache_index(&s->cache, slot);
    struct op **at = &s->lines[index];

    while (*at)
        at = &(*at)->next;
    *at = op;
    op->next = NULL;
    op->slot = slot;
    s->cache.states[index].pins++;
    slot_mark(slot);
    op->step = must_wait(s, op) ? OP_QUEUED : OP_CHUNK;
    if (op->step == OP_CHUNK)
        list_push(&s->runnable, &op->node);
}

static void op_find(struct shard *s, struct op *op)
{
    const struct map_root *root = atomic_load_explicit(&op->layer->root, memory_order_acquire);
    const uint64_t l1_index = op->pos >> header_l1_shift(&op->layer->header);
    const uint64_t l1_entry = atomic_load_explicit(&root->l1[l1_index], memory_order_acquire);
    struct slot *slot = atomic_load_explicit(op->cell, memory_order_relaxed);
    char text[REQUEST_ERROR_BYTES];

    if (!(l1_entry & ENTRY_OFF_MASK) && needs_no_table(op)) {
        op_end(s, op);
    } else if (!(l1_entry & ENTRY_OFF_MASK) || (!(l1_entry & ENTRY_COPIED) && GUARD(COPIED))) {
        wait_for_table(s, op, l1_index);
    } else if (map_check_l1(op->layer, l1_index, l1_entry, text, sizeof text) < 0) {
        allocator_report_corruption(s->image->allocator);
        op_fail(s, op, -EIO, text);
    } else if (slot) {
        join_line(s, op, slot);
    } else if (unlikely(s->broken)) {
        op_fail(s, op, s->broken, "metadata I/O has stopped: its backend failed before");
    } else if (!shard_load_for(s, op, l1_entry & ENTRY_OFF_MASK)) {
        list_push(&s->for_load, &op->node);
    }
}

/* ---- CHUNK ---- */

/* Clusters for the chunk. False: the op waits for a lease. */
static bool take_clusters(struct shard *s, struct op *op, uint32_t count_max)
{
    op->cluster_count = shard_take_clusters(s, count_max, &op->host_first, &op->fresh);
    op->allocated = op->cluster_count;
    if (!op->allocated)
        list_push(&s->for_lease, &op->node);
    return op->allocated;
}

/* What comes next, by the request's kind. False when the op waits or has ended. */
static bool next_chunk(struct shard *s, struct op *op)
{
    uint64_t end = op->end;

    op->zeros = false;
    if (op->request->kind != REQUEST_WRITE) {
        switch (op_zero_step(s, op, &end)) {
        case ZERO_WRITE:
            op->zeros = true;
            break;
        case ZERO_DONE:
            if (op->pos == op->end)
                op_end(s, op);
            else
                list_push(&s->runnable, &op->node);
            return false;
        case ZERO_WAITS:
            return false;
        }
    }
    if (unlikely(pack_takes(s, op))) {
        pack_add(s, op);
        return false;
    }
    return chunk_plan(s, op, end);
}

static void op_chunk(struct shard *s, struct op *op)
{
    op->allocated = false;
    op->cluster_count = 0;
    shard_unreserve_freed(s, op); /* it may have waited here before */
    if (op->pos == op->end) {
        op_end(s, op);
        return;
    }
    if (!next_chunk(s, op))
        return;
    if (!op->in_place && !shard_reserve_freed(s, op, chunk_clusters(op) + 1)) {
        op_fail(s, op, -ENOMEM, "out of memory");
        return;
    }
    if (chunk_needs_clusters(op)) {
        if (!take_clusters(s, op, chunk_clusters(op)))
            return;
        chunk_fit_clusters(s, op);
    }
    op->step = OP_ALONE;
    list_push(&s->runnable, &op->node);
}

/* ---- ALONE ---- */

static bool has_block_edge(const struct op *op)
{
    return op->head.source == SOURCE_BLOCK || op->tail.source == SOURCE_BLOCK;
}

/* Others may write in place again some time after the last op that needed to be alone. */
static void stop_being_alone(struct shard *s, const struct op *op, uint32_t index)
{
    if (likely(!atomic_load_explicit(&op->slot->owner_only, memory_order_relaxed)))
        return;
    if (s->lines[index] == op && !op->next && s->alone[index].ready &&
        env_now_ns(s->image->env) - s->alone[index].last_ns > ALONE_NS) {
        s->alone[index].ready = false;
        atomic_store_explicit(&op->slot->owner_only, 0, memory_order_release);
    }
}

static void op_alone(struct shard *s, struct op *op)
{
    const uint32_t index = slice_cache_index(&s->cache, op->slot);

    if (!has_block_edge(op)) {
        stop_being_alone(s, op, index);
    } else if (!s->alone[index].ready && GUARD(ALONE)) {
        atomic_store_explicit(&op->slot->owner_only, 1, memory_order_release);
        shard_wait_for_drain(s, op);
        return;
    } else if (GUARD(ALONE)) {
        s->alone[index].last_ns = env_now_ns(s->image->env);
    }
    op->step = OP_BUFFER;
    list_push(&s->runnable, &op->node);
}

/* ---- BUFFER, READ ---- */

static void op_buffer(struct shard *s, struct op *op)
{
    if (op->assembled || op->head.source == SOURCE_READ || op->tail.source == SOURCE_READ) {
        if (!op->buffer && !s->buffers_free) {
            list_push(&s->for_buffer, &op->node);
            return;
        }
        if (!op->buffer)
            op->buffer = s->buffers[--s->buffers_free];
    }
    op->step = OP_READ;
    list_push(&s->runnable, &op->node);
}

/* The guest's view of [off, off + bytes), which may pass the end of the image: zeros there. */
static bool start_read(struct shard *s, struct op *op, uint64_t off, uint32_t bytes, uint8_t *to)
{
    const uint64_t size = op->layer->virtual_bytes;
    const uint32_t within = off < size ? (uint32_t)MIN(bytes, size - off) : 0;
    struct request *r;

    memset(to + within, 0, bytes - within);
    if (!within)
        return true;
    epoch_observe(&s->image->clock, &s->reader->epoch);
    r = queue_take_request(s->reader);
    if (!r)
        return false;
    r->kind = REQUEST_READ;
    r->user_data = op;
    r->this_layer = false;
    r->buffer = (struct guest_buffer){.buf = to};
    r->off = off;
    r->bytes = within;
    op->reads++;
    counter_add(&s->cow_bytes, within);
    list_push(&s->reader->submitted, &r->node);
    return true;
}

static bool read_edges(struct shard *s, struct op *op)
{
    if (op->head.source == SOURCE_READ) {
        if (!start_read(s, op, op->pos - op->head.bytes, op->head.bytes, chunk_head(op)))
            return false;
        op->head.source = SOURCE_NONE; /* on its way; bytes stay */
    }
    if (op->tail.source == SOURCE_READ) {
        if (!start_read(s, op, op->chunk_end, op->tail.bytes, chunk_tail(s, op)))
            return false;
        op->tail.source = SOURCE_NONE;
    }
    return true;
}

/* The host's block at an edge, into its place in the assembled buffer. */
static void read_block(struct shard *s, struct op *op, uint64_t host_off, uint64_t at)
{
    struct file *file = op->layer->data_file;

    op->io = (struct io){.kind = IO_READ,
                         .role = ROLE_OP,
                         .file = file,
                         .off = host_off,
                         .bytes = file->io_align,
                         .buf = op->buffer + at};
    op->reads++;
    op->has_io = true;
    backend_prepare(s->loop.backend, &op->io);
}

static bool read_blocks(struct shard *s, struct op *op)
{
    const uint32_t align = op->layer->data_file->io_align;
    const uint64_t start = op->host_off - op->head.bytes;
    const uint64_t total = op->head.bytes + (op->chunk_end - op->pos) + op->tail.bytes;

    if (op->head.source == SOURCE_BLOCK) {
        op->head.source = SOURCE_NONE;
        if (total == align) /* one block has both edges */
            op->tail.source = SOURCE_NONE;
        read_block(s, op, start, 0);
        return true;
    }
    if (op->tail.source == SOURCE_BLOCK) {
        op->tail.source = SOURCE_NONE;
        read_block(s, op, start + total - align, total - align);
        return true;
    }
    return false;
}

static void op_read(struct shard *s, struct op *op)
{
    if (op->reads)
        return; /* the last one to end goes on */
    if (op->error) {
        op_fail(s, op, op->error, op->request->error);
        return;
    }
    if (read_blocks(s, op))
        return;
    if (!read_edges(s, op)) {
        if (!op->reads) /* else one of its own will wake it */
            list_push(&s->for_reader, &op->node);
        return;
    }
    if (op->reads)
        return;
    op->step = OP_DATA;
    list_push(&s->runnable, &op->node);
}

void op_read_done(struct shard *s, struct request *r)
{
    struct op *op = r->user_data;
    struct list_node *n;

    if (unlikely(!op->request)) { /* answered when the backend failed */
        queue_release(s->reader, r);
        return;
    }
    if (r->result < 0 && !op->error) {
        op->error = r->result;
        snprintf(op->request->error, REQUEST_ERROR_BYTES, "copy on write: %.200s",
                 r->error[0] ? r->error : strerror(-r->result));
    }
    r->error[0] = '\0';
    queue_release(s->reader, r);
    n = list_pop(&s->for_reader);
    if (n)
        list_push(&s->runnable, n);
    if (!--op->reads)
        list_push(&s->runnable, &op->node);
}

/* ---- DATA ---- */

static void op_data(struct shard *s, struct op *op)
{
    if (unlikely(s->broken)) {
        op_fail(s, op, s->broken, "the image's backend failed before");
        return;
    }
    chunk_build_write(s, op);
    op->io.role = ROLE_OP;
    op->has_io = true;
    backend_prepare(s->loop.backend, &op->io);
}

static void data_failed(struct shard *s, struct op *op)
{
    const struct io *io = &op->io;

    /* Space that the host has not reserved: what the allocator keeps ahead of the file's end may be all of
     * it. */
    if (io->result == -ENOSPC && s->image->allocator && !op->found_no_space) {
        op->found_no_space = true;
        allocator_report_no_space(s->image->allocator);
        shard_wait_for_room(s, op);
        return;
    }
    (void)file_write_failed(io->file, io->result, io->off, io->bytes);
    op_fail(s, op, io->result, error_message());
}

void op_io_done(struct shard *s, struct io *io)
{
    struct op *op = container_of(io, struct op, io);

    op->has_io = false;
    if (unlikely(!op->request)) /* answered when the backend failed */
        return;
    if (op->step == OP_READ) {
        if (io->result < 0 && !op->error) {
            op->error = io->result;
            (void)file_read_failed(io->file, io->result, io->off, io->bytes);
            snprintf(op->request->error, REQUEST_ERROR_BYTES, "%s", error_message());
        }
        op->reads--;
        list_push(&s->runnable, &op->node);
        return;
    }
    if (op->step == OP_CHUNK) { /* an I/O of op_zero_step() */
        list_push(&s->runnable, &op->node);
        return;
    }
    if (io->result < 0) {
        data_failed(s, op);
        return;
    }
    op->found_no_space = false;
    op_release_buffer(s, op);
    if (!op->in_place)
        publish_chunk(s, op);
    shard_unreserve_freed(s, op);
    op->allocated = false;
    op->pos = op->chunk_end;
    op->step = OP_CHUNK;
    list_push(&s->runnable, &op->node);
}

void op_go(struct shard *s, struct op *op)
{
    switch (op->step) {
    case OP_FIND:
        op_find(s, op);
        break;
    case OP_QUEUED:
        break; /* leave_line() moves it on */
    case OP_CHUNK:
        op_chunk(s, op);
        break;
    case OP_ALONE:
        op_alone(s, op);
        break;
    case OP_BUFFER:
        op_buffer(s, op);
        break;
    case OP_READ:
        op_read(s, op);
        break;
    case OP_DATA:
        op_data(s, op);
        break;
    }
}
