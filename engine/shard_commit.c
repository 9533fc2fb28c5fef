/* SPDX-License-Identifier: MIT */
/* A shard's dealings with the allocator: leases, tables, drains, and its part of each commit. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "base/memory.h"
#include "engine/allocator.h"
#include "engine/queue.h"
#include "engine/shard.h"

#define LEASE_MIN 64u
#define LEASE_MAX 1024u
/* Whatever the cluster size, a lease is not more than this. */
#define LEASE_BYTES_MAX (64u << 20)
/* Buffers of a shard, for copy on write and what is not aligned. */
#define BUFFERS_MAX 64u
#define BUFFERS_MIN 2u
#define BUFFERS_BYTES (16u << 20)
#define BUFFER_BYTES_MIN (64u << 10)
#define READER_DEPTH 64u

/* ---- commits ---- */

static uint64_t slice_off(const struct shard *s, const struct slot *slot)
{
    const struct layer *layer = image_top(s->image);
    const struct map_root *root = atomic_load_explicit(&layer->root, memory_order_acquire);
    const uint64_t index =
        (uint64_t)(atomic_load_explicit(&slot->home, memory_order_relaxed) - root->directory.cells);
    const uint64_t l1_entry =
        atomic_load_explicit(&root->l1[index / layer->slices_per_table], memory_order_acquire);

    return (l1_entry & ENTRY_OFF_MASK) + index % layer->slices_per_table * layer->slice_bytes;
}

static int by_off(const void *a, const void *b)
{
    const struct commit_copy *const x = a, *const y = b;

    return x->io.off < y->io.off ? -1 : x->io.off > y->io.off;
}

/* Nobody knows when slots will be clean. */
static void fail_for_slot(struct shard *s, int err)
{
    struct list waiting = list_take(&s->for_slot);
    struct list_node *n;

    while ((n = list_pop(&waiting)))
        op_fail(s, container_of(n, struct op, node), err,
                "the metadata cache is full of changes that could not be written");
}

/* The commit has ended: only now are the slices as good as on disk, or everything is dirty again. */
static void shard_commit_done(struct shard *s, struct note *note)
{
    for (uint32_t i = 0; i < s->copy_count; i++)
        slice_cache_committed(&s->cache, s->copies[i].slot_index, note->status == 0);
    if (note->status < 0)
        s->sync_needed = true; /* the data that the copies would have named may still be in flight */
    s->copy_count = 0;
    if (note->status < 0)
        fail_for_slot(s, note->status);
    shard_run_all(s, &s->for_slot);
}

static void copies_finished(struct shard *s)
{
    struct note *note = s->write_note;

    s->write_note = NULL;
    shard_tell(s, note);
}

static void start_copies(struct shard *s)
{
    while (s->copies_started < s->copy_count && s->copies_started - s->copies_done < SHARD_COPY_IOS &&
           s->write_note->status == 0) {
        backend_prepare(s->loop.backend, &s->copies[s->copies_started++].io);
        counter_add(&s->slice_writes, 1);
    }
    if (s->copies_done == s->copies_started)
        copies_finished(s);
}

static void shard_write_copies(struct shard *s, struct note *note)
{
    s->write_note = note;
    s->copies_started = s->copies_done = 0;
    if (s->broken && note->status == 0)
        note->status = s->broken;
    start_copies(s);
}

static void shard_copy(struct shard *s, struct note *note)
{
    const struct layer *layer = image_top(s->image);
    int64_t index;

    if (note->status == 0)
        note->status = s->broken;
    note->mutated = counter_get(&s->mutated);
    s->copy_count = 0;
    if (note->status == 0 && !raised_move(&note->raised, &s->raised))
        note->status = -ENOMEM; /* I1: not without what the entries need */
    while (note->status == 0 && (index = slice_cache_take_dirty(&s->cache)) >= 0) {
        struct commit_copy *c = &s->copies[s->copy_count];
        const struct slot *slot = slice_cache_slot(&s->cache, (uint32_t)index);

        c->slot_index = (uint32_t)index;
        c->bytes = s->copy_memory + (size_t)s->copy_count * layer->slice_bytes;
        memcpy(c->bytes, (const void *)slot->entries, layer->slice_bytes);
        c->io = (struct io){.kind = IO_WRITE,
                            .role = ROLE_COPY,
                            .file = layer->file,
                            .off = slice_off(s, slot),
                            .bytes = layer->slice_bytes,
                            .buf = c->bytes};
        s->copy_count++;
    }
    qsort(s->copies, s->copy_count, sizeof *s->copies, by_off);
    /* Most allocating writes need nothing before their entries: then one round trip does for both. */
    note->any = s->copy_count && ((s->sync_needed && GUARD(I2)) || note->raised.count);
    if (note->status == 0) {
        s->sync_needed = false;
        (void)freed_move_out(&note->freed, &s->freed); /* or with the next commit, for want of memory */
    }
    if (note->any)
        shard_tell(s, note);
    else
        shard_write_copies(s, note);
}

void shard_copy_done(struct shard *s, struct io *io)
{
    s->copies_done++;
    if (io->result < 0 && s->write_note->status == 0)
        s->write_note->status = io->result;
    start_copies(s);
}

void shard_copies_lost(struct shard *s, int err)
{
    s->write_note->status = err;
    copies_finished(s);
}

/* ---- leases ---- */

static void return_lease(struct shard *s, struct lease *l)
{
    for (; l->current < l->extent_count; l->current++) {
        const struct lease_extent *e = &l->extents[l->current];

        if (e->count)
            freed_add(&s->lease_note.freed, e->first, e->count);
    }
    l->clusters = 0;
}

/* Clusters that are taken and not yet named by an entry. */
static bool has_clusters_in_hand(const struct shard *s)
{
    bool any = s->pack.busy || !list_empty(&s->pack.waiting);

    for (uint32_t i = 0; i < SHARD_OPS && !any; i++)
        any = s->ops[i].request && s->ops[i].allocated;
    return any;
}

static void shard_return_leases(struct shard *s, struct note *note)
{
    note->status = 0;
    note->any = has_clusters_in_hand(s);
    if (!freed_reserve(&s->lease_note.freed, 2 * LEASE_EXTENTS) || !pack_leave(s, &s->lease_note.freed) ||
        !freed_reserve(&s->lease_note.freed, 2 * LEASE_EXTENTS)) {
        note->status = -ENOMEM;
    } else {
        return_lease(s, &s->lease);
        if (s->has_spare)
            return_lease(s, &s->spare);
        s->has_spare = false;
        (void)freed_move(&note->freed, &s->lease_note.freed);
    }
    shard_tell(s, note);
}

static void ask_lease(struct shard *s)
{
    if (s->lease_asked)
        return;
    s->lease_asked = true;
    s->lease_note.kind = NOTE_LEASE;
    s->lease_note.clusters_wanted = s->lease_target;
    shard_tell(s, &s->lease_note);
}

uint32_t shard_take_clusters(struct shard *s, uint32_t count_max, uint64_t *ret_first, bool *ret_fresh)
{
    uint32_t n;

    if (!s->lease.clusters && s->has_spare) {
        s->lease = s->spare;
        s->has_spare = false;
    }
    n = lease_take(&s->lease, count_max, ret_first, ret_fresh);
    counter_add(&s->allocated, n);
    if (!n || (!s->has_spare && s->lease.clusters <= s->lease_target / 2))
        ask_lease(s);
    return n;
}

static void lease_answered(struct shard *s)
{
    struct note *note = &s->lease_note;
    struct list waiting = list_take(&s->for_lease);
    const bool had_to_wait = !list_empty(&waiting);
    struct list_node *n;

    s->lease_asked = false;
    if (note->status < 0) {
        pack_fail(s, note->status);
        while ((n = list_pop(&waiting)))
            op_fail(s, container_of(n, struct op, node), note->status,
                    note->status == -ENOSPC ? "no space is left for new clusters"
                                            : "new clusters could not be allocated");
        return;
    }
    if (!s->lease.clusters) {
        s->lease = note->lease;
    } else {
        s->spare = note->lease;
        s->has_spare = true;
    }
    if (had_to_wait)
        s->lease_target = MIN(2 * s->lease_target, s->lease_max);
    shard_run_all(s, &waiting);
    pack_run(s);
}

/* ---- tables, drains ---- */

static void table_answered(struct shard *s, struct table_wait *t)
{
    struct list ops = list_take(&t->ops);
    struct list_node *n;

    t->asked = false;
    while ((n = list_pop(&ops))) {
        if (t->note.status < 0)
            op_fail(s, container_of(n, struct op, node), t->note.status,
                    t->note.status == -ENOSPC ? "no space is left for an L2 table"
                                              : "the L2 table could not be made");
        else
            list_push(&s->runnable, n);
    }
    shard_run_all(s, &s->for_table);
}

static void ask_drain(struct shard *s)
{
    s->drain_asked = true;
    s->drain_note.kind = NOTE_DRAIN;
    shard_tell(s, &s->drain_note);
}

void shard_wait_for_drain(struct shard *s, struct op *op)
{
    list_push(s->drain_asked ? &s->drain_next : &s->for_drain, &op->node);
    if (!s->drain_asked)
        ask_drain(s);
}

static void drain_answered(struct shard *s)
{
    struct list_node *n;

    s->drain_asked = false;
    while ((n = list_pop(&s->for_drain))) {
        const struct op *op = container_of(n, struct op, node);

        s->alone[slice_cache_index(&s->cache, op->slot)].ready = true;
        list_push(&s->runnable, n);
    }
    s->for_drain = list_take(&s->drain_next);
    if (!list_empty(&s->for_drain))
        ask_drain(s);
}

void shard_wait_for_room(struct shard *s, struct op *op)
{
    list_push(&s->for_room, &op->node);
    if (s->room_asked)
        return;
    s->room_asked = true;
    s->room_note.kind = NOTE_ROOM;
    shard_tell(s, &s->room_note);
}

static void room_answered(struct shard *s)
{
    s->room_asked = false;
    shard_run_all(s, &s->for_room);
}

void shard_wait_for_slot(struct shard *s, struct op *op)
{
    if (atomic_load_explicit(&s->image->write_error, memory_order_relaxed)) {
        op_fail(s, op, -EROFS, "the image refuses writes: its metadata could not be written");
        return;
    }
    list_push(&s->for_slot, &op->node);
    allocator_want_commit(s->image->allocator);
}

bool shard_take_notes(struct shard *s)
{
    struct note *note;
    bool any = false;

    while ((note = spsc_pop(&s->link.to_shard))) {
        any = true;
        switch (note->kind) {
        case NOTE_LEASE:
            lease_answered(s);
            break;
        case NOTE_TABLE:
            table_answered(s, container_of(note, struct table_wait, note));
            break;
        case NOTE_DRAIN:
            drain_answered(s);
            break;
        case NOTE_ROOM:
            room_answered(s);
            break;
        case NOTE_COPY:
            shard_copy(s, note);
            break;
        case NOTE_WRITE:
            shard_write_copies(s, note);
            break;
        case NOTE_DONE:
            shard_commit_done(s, note);
            break;
        case NOTE_RETURN:
            shard_return_leases(s, note);
            break;
        }
    }
    return any;
}

/* ---- creation ---- */

static int create_buffers(struct shard *s, uint32_t cluster_bytes)
{
    s->buffer_bytes = MAX(cluster_bytes, BUFFER_BYTES_MIN);
    s->buffer_count = (uint32_t)MAX(BUFFERS_MIN, MIN(BUFFERS_MAX, BUFFERS_BYTES / (2 * s->buffer_bytes)));
    s->buffer_memory = pages_reserve(s->buffer_count * 2 * s->buffer_bytes);
    s->buffers = calloc(s->buffer_count, sizeof *s->buffers);
    if (!s->buffer_memory || !s->buffers)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < s->buffer_count; i++)
        s->buffers[s->buffers_free++] = s->buffer_memory + (size_t)i * 2 * s->buffer_bytes;
    return 0;
}

int shard_init_writing(struct shard *s)
{
    const uint32_t cluster_bytes = image_top(s->image)->header.cluster_bytes;
    const uint32_t slots = s->cache.slot_count;

    s->ops = calloc(SHARD_OPS, sizeof *s->ops);
    s->lines = calloc(slots, sizeof *s->lines);
    s->alone = calloc(slots, sizeof *s->alone);
    s->tables = calloc(SHARD_TABLES, sizeof *s->tables);
    s->copies = calloc(slots, sizeof *s->copies);
    s->copy_memory = pages_reserve((size_t)slots * s->image->slice_bytes);
    if (!s->ops || !s->lines || !s->alone || !s->tables || !s->copies || !s->copy_memory)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < SHARD_OPS; i++)
        list_push(&s->free_ops, &s->ops[i].node);
    s->lease_max = MAX(1u, MIN(LEASE_MAX, LEASE_BYTES_MAX / cluster_bytes));
    pack_create(s);
    s->lease_target = MIN(LEASE_MIN, s->lease_max);
    /* At once to the allocator: a lease, a drain, room, every table; to the shard: the answers and a phase.
     */
    if (spsc_init(&s->link.to_allocator, SHARD_TABLES + 5) < 0 ||
        spsc_init(&s->link.to_shard, SHARD_TABLES + 5) < 0)
        return error_set(-ENOMEM, "out of memory");
    return create_buffers(s, cluster_bytes);
}

int shard_create_reader(struct shard *s)
{
    return s->ops ? queue_create_reader(s->image, s, READER_DEPTH, &s->reader) : 0;
}

void shard_destroy_writing(struct shard *s)
{
    if (s->reader)
        queue_destroy_reader(s->reader);
    s->reader = NULL;
    pages_release(s->buffer_memory, s->buffer_count * 2 * s->buffer_bytes);
    pages_release(s->copy_memory, (size_t)s->cache.slot_count * s->image->slice_bytes);
    spsc_free(&s->link.to_allocator);
    spsc_free(&s->link.to_shard);
    freed_destroy(&s->freed);
    freed_destroy(&s->lease_note.freed);
    free(s->raised.items);
    pack_destroy(s);
    free(s->buffers);
    free(s->ops);
    free(s->lines);
    free(s->alone);
    free(s->tables);
    free(s->copies);
}
