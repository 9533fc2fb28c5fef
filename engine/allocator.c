/* SPDX-License-Identifier: MIT */
/* The allocator's loop: messages in, the machines in turn, messages out. */
#include "engine/allocator.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/rcu.h"
#include "engine/queue.h"
#include "format/header.h"
#include "format/limits.h"

/* How soon to look again whether requests of an old epoch are over: nobody tells. */
#define DRAIN_LOOK_NS 100000u

/* ---- messages ---- */

void allocator_answer_note(struct allocator *a, struct note *note, int status)
{
    note->status = status;
    allocator_send_note(a, note->shard_index, note);
}

void allocator_send_note(struct allocator *a, uint32_t shard_index, struct note *note)
{
    invariant(spsc_push(&a->image->shards[shard_index].link.to_shard, note));
    a->notify_shard[shard_index] = true;
    a->notify_any = true;
}

void allocator_leave_note(struct allocator *a, uint32_t shard_index, struct note *note)
{
    struct shard *s = &a->image->shards[shard_index];

    invariant(spsc_push(&s->link.to_shard, note));
    atomic_thread_fence(memory_order_seq_cst); /* pairs with loop_run() */
    if (atomic_load_explicit(&s->waits_for_slot, memory_order_relaxed)) {
        a->notify_shard[shard_index] = true;
        a->notify_any = true;
    }
}

void allocator_answer_request(struct allocator *a, struct request *r, int status, const char *text)
{
    struct scow_queue *q = r->queue;

    r->lookup.status = status;
    if (status < 0)
        snprintf(r->error, REQUEST_ERROR_BYTES, "%s", text);
    invariant(spsc_push(&q->mail[a->image->shard_count].to_queue, r));
    a->notify_queue[q->index] = true;
    a->notify_any = true;
}

static void notify_all(struct allocator *a)
{
    struct scow_image *image = a->image;

    if (!a->notify_any)
        return;
    a->notify_any = false;
    for (uint32_t i = 0; i < image->shard_count; i++)
        if (a->notify_shard[i]) {
            a->notify_shard[i] = false;
            loop_notify(&image->shards[i].loop);
        }
    for (uint32_t i = 0; i < image->queue_places; i++)
        if (a->notify_queue[i]) {
            struct scow_queue *q = atomic_load_explicit(&image->queues[i], memory_order_acquire);

            a->notify_queue[i] = false;
            if (q)
                loop_notify(q->waker);
        }
}

static void take_note(struct allocator *a, struct note *note)
{
    switch (note->kind) {
    case NOTE_LEASE:
        list_push(&a->counts.wanting, &note->node);
        break;
    case NOTE_TABLE:
        list_push(&a->tables_waiting, &note->node);
        break;
    case NOTE_DRAIN:
        note->epoch = atomic_load_explicit(&a->image->clock.now, memory_order_relaxed);
        list_push(&a->freed.drains, &note->node);
        break;
    case NOTE_ROOM:
        list_push(&a->counts.for_room, &note->node);
        break;
    case NOTE_COPY:
    case NOTE_WRITE:
        commit_answered(a, note);
        break;
    case NOTE_DONE: /* is not answered */
        break;
    case NOTE_RETURN:
        control_answered(a, note);
        break;
    }
}

static bool take_notes(struct allocator *a)
{
    bool any = false;

    for (uint32_t i = 0; i < a->image->shard_count; i++) {
        struct note *note;

        while ((note = spsc_pop(&a->image->shards[i].link.to_allocator))) {
            take_note(a, note);
            any = true;
        }
    }
    return any;
}

static bool take_requests(struct allocator *a)
{
    const uint32_t end = atomic_load_explicit(&a->image->queues_end, memory_order_acquire);
    bool any = false;

    for (uint32_t i = 0; i < end; i++) {
        struct scow_queue *q = atomic_load_explicit(&a->image->queues[i], memory_order_acquire);
        struct request *r;

        while (q && (r = spsc_pop(&q->mail[a->image->shard_count].to_shard))) {
            const bool control = r->kind == REQUEST_QUIESCE || r->kind == REQUEST_GROW;

            list_push(control ? &a->control.waiting : &a->commit.waiting, &r->node);
            any = true;
        }
    }
    return any;
}

void allocator_want_commit(struct allocator *a)
{
    if (!atomic_exchange_explicit(&a->commit.wanted, true, memory_order_acq_rel))
        allocator_notify(a);
}

void allocator_give_up(struct allocator *a, int err)
{
    int32_t none = 0;

    atomic_compare_exchange_strong_explicit(&a->image->write_error, &none, err, memory_order_acq_rel,
                                            memory_order_relaxed);
}

void allocator_report_corruption(struct allocator *a)
{
    allocator_give_up(a, -EIO);
    atomic_store_explicit(&a->corruption, true, memory_order_release);
    allocator_notify(a);
}

void allocator_report_no_space(struct allocator *a)
{
    if (!atomic_exchange_explicit(&a->tight, true, memory_order_acq_rel))
        allocator_notify(a);
}

static bool mark_corrupt(struct allocator *a)
{
    if (likely(!atomic_load_explicit(&a->corruption, memory_order_acquire)))
        return false;
    atomic_store_explicit(&a->corruption, false, memory_order_relaxed);
    if (a->layer->header.version >= 3 && !(a->layer->header.incompatible & INCOMPAT_CORRUPT)) {
        a->layer->header.incompatible |= INCOMPAT_CORRUPT;
        (void)allocator_write_header(a); /* there is nobody to tell */
    }
    return true;
}

/* ---- I/O ---- */

void allocator_start_io(struct allocator *a, struct allocator_io *io,
                        void (*done)(struct allocator *a, struct allocator_io *io))
{
    io->done = done;
    if (unlikely(a->broken)) { /* as if the file had failed */
        io->io.result = a->broken;
        list_push(&a->done, &io->io.node);
        return;
    }
    backend_prepare(a->loop.backend, &io->io);
}

int allocator_write_header(struct allocator *a)
{
    struct layer *layer = a->layer;
    struct header *h = &layer->header;
    struct refcounts *rc = &a->refcounts;
    const uint32_t bytes = MAX(SECTOR_BYTES, layer->file->io_align);
    uint8_t *const b = a->header_block;
    int r;

    pthread_mutex_lock(&a->image->lock);
    h->reftable_off = rc->table_off;
    h->reftable_clusters = rc->table_clusters;
    if (h->version >= 3)
        h->autoclear = a->marked ? h->autoclear | AUTOCLEAR_SHARDCOW : h->autoclear & ~AUTOCLEAR_SHARDCOW;
    put_be64(b + offsetof(struct header_disk, virtual_bytes), h->virtual_bytes);
    put_be32(b + offsetof(struct header_disk, l1_count), h->l1_count);
    put_be64(b + offsetof(struct header_disk, l1_off), h->l1_off);
    put_be64(b + offsetof(struct header_disk, reftable_off), h->reftable_off);
    put_be32(b + offsetof(struct header_disk, reftable_clusters), h->reftable_clusters);
    if (h->version >= 3) {
        put_be64(b + offsetof(struct header_disk, incompatible), h->incompatible);
        put_be64(b + offsetof(struct header_disk, autoclear), h->autoclear);
    }
    pthread_mutex_unlock(&a->image->lock);
    r = file_write(layer->file, b, bytes, 0);
    if (r == 0) {
        r = file_sync(layer->file);
        counter_add(&a->syncs, 1);
    }
    if (r == 0)
        a->header_stale = false;
    return r;
}

int allocator_mark(struct allocator *a)
{
    int r;

    if (a->marked || a->layer->header.version < 3)
        return 0;
    a->marked = true;
    r = allocator_write_header(a);
    if (r < 0)
        a->marked = false;
    return r;
}

/* ---- the turn ---- */

static bool finish_ios(struct allocator *a)
{
    struct list done = list_take(&a->done);
    struct list_node *n;
    bool any = false;

    while ((n = list_pop(&done))) {
        struct allocator_io *io = container_of(container_of(n, struct io, node), struct allocator_io, io);

        io->done(a, io);
        any = true;
    }
    return any;
}

static void set_alarm(struct allocator *a)
{
    const uint64_t interval = a->image->options.commit_interval_ms * 1000000ull;
    const uint64_t now = env_now_ns(a->image->env);

    a->loop.wake_at_ns = 0;
    if (a->closed)
        return;
    if (freed_waits(a))
        a->loop.wake_at_ns = now + DRAIN_LOOK_NS;
    else if (commit_is_dirty(a) || a->refcounts.dirty_count)
        a->loop.wake_at_ns = now + interval;
}

static bool allocator_turn(struct loop *loop)
{
    struct allocator *a = container_of(loop, struct allocator, loop);
    bool any, moved;
    int err;

    err = a->broken ? 0 : loop->backend->ops->turn(loop->backend, &a->done);
    if (unlikely(err < 0)) {
        a->broken = err;
        allocator_give_up(a, err);
    }
    rcu_enter();
    any = finish_ios(a);
    any |= take_notes(a);
    any |= take_requests(a);
    do {
        moved = mark_corrupt(a);
        moved |= counts_step(a);
        moved |= tables_step(a);
        moved |= commit_step(a);
        moved |= freed_step(a);
        moved |= control_step(a);
        any |= moved;
    } while (moved);
    notify_all(a);
    rcu_leave();
    if (!any)
        set_alarm(a);
    return any;
}

static bool allocator_has_mail(struct loop *loop)
{
    struct allocator *a = container_of(loop, struct allocator, loop);
    const uint32_t end = atomic_load_explicit(&a->image->queues_end, memory_order_acquire);
    bool any = !list_empty(&a->done) || atomic_load_explicit(&a->corruption, memory_order_relaxed) ||
               (atomic_load_explicit(&a->commit.wanted, memory_order_relaxed) && commit_idle(a) &&
                !control_holds_commits(a));

    for (uint32_t i = 0; i < a->image->shard_count && !any; i++)
        any = !spsc_empty(&a->image->shards[i].link.to_allocator);
    rcu_enter();
    for (uint32_t i = 0; i < end && !any; i++) {
        struct scow_queue *q = atomic_load_explicit(&a->image->queues[i], memory_order_acquire);

        any = q && !spsc_empty(&q->mail[a->image->shard_count].to_shard);
    }
    rcu_leave();
    return any;
}

static void allocator_sleep(struct loop *loop)
{
    struct allocator *a = container_of(loop, struct allocator, loop);
    int64_t timeout_ns = WAIT_FOREVER;

    if (loop->wake_at_ns) {
        const uint64_t now = env_now_ns(a->image->env);

        timeout_ns = loop->wake_at_ns > now ? (int64_t)(loop->wake_at_ns - now) : 1;
    }
    (void)loop->backend->ops->wait(loop->backend, &a->done, timeout_ns);
}

static const struct loop_ops allocator_loop_ops = {
    .turn = allocator_turn, .has_mail = allocator_has_mail, .sleep = allocator_sleep};

/* ---- creation ---- */

static size_t header_block_bytes(const struct allocator *a)
{
    return round_up(MAX(SECTOR_BYTES, a->layer->file->io_align), 4096);
}

static int create_memory(struct allocator *a)
{
    const struct scow_image *image = a->image;
    const uint32_t cluster_bytes = a->layer->header.cluster_bytes;

    a->notify_queue = calloc(image->queue_places, sizeof *a->notify_queue);
    a->notify_shard = calloc(image->shard_count, sizeof *a->notify_shard);
    a->commit.notes = calloc(image->shard_count, sizeof *a->commit.notes);
    a->commit.ends = calloc(image->shard_count, sizeof *a->commit.ends);
    a->l1_durable = pages_reserve(L1_BYTES_MAX + 4096);
    a->commit.l1_copy = pages_reserve(L1_BYTES_MAX);
    a->header_block = pages_reserve(header_block_bytes(a));
    if (!a->notify_queue || !a->notify_shard || !a->commit.notes || !a->commit.ends || !a->l1_durable ||
        !a->commit.l1_copy || !a->header_block)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < COUNTS_IOS; i++) {
        a->counts.buffers[i] = aligned_alloc(4096, round_up(cluster_bytes, 4096));
        if (!a->counts.buffers[i])
            return error_set(-ENOMEM, "out of memory");
    }
    for (uint32_t i = 0; i < image->shard_count; i++) {
        a->commit.notes[i].shard_index = i;
        a->commit.ends[i].kind = NOTE_DONE;
    }
    return 0;
}

/* Space behind the last cluster in use, that was there before, is somebody's; perhaps its refcounts are
 * wrong. */
static int find_kept_end(struct allocator *a)
{
    uint64_t used_end;
    const int r = refcounts_used_end(&a->refcounts, &used_end);

    if (r == 0 && used_end << a->layer->header.cluster_bits < a->file_end)
        a->kept_end = a->file_end;
    return r;
}

static int read_header_block(struct allocator *a)
{
    const struct map_root *root = atomic_load_explicit(&a->layer->root, memory_order_relaxed);

    for (uint32_t i = 0; i < root->l1_count; i++)
        a->l1_durable[i] = htobe64(atomic_load_explicit(&root->l1[i], memory_order_relaxed));
    return file_read(a->layer->file, a->header_block, MAX(SECTOR_BYTES, a->layer->file->io_align), 0);
}

int allocator_create(struct scow_image *image, struct allocator **ret)
{
    const struct backend_config config = {
        .ios_max = COUNTS_IOS + PUNCHES + TABLES + 8, .files = image->files, .file_count = image->file_count};
    struct allocator *a = calloc(1, sizeof *a);
    int r;

    if (!a)
        return error_set(-ENOMEM, "out of memory");
    a->loop.ops = &allocator_loop_ops;
    a->loop.thread_name = "scow-alloc";
    a->image = image;
    a->layer = image_top(image);
    a->file_end = a->layer->file->bytes;
    a->cannot_allocate = a->layer->file->in_memory;
    a->freed.cannot_punch = image->options.flags & SCOW_OPEN_NO_PUNCH;
    a->marked = a->layer->header.autoclear & AUTOCLEAR_SHARDCOW;
    r = create_memory(a);
    if (r == 0)
        r = refcounts_open(&a->refcounts, a->layer);
    if (r == 0)
        r = find_kept_end(a);
    if (r == 0)
        r = read_header_block(a);
    if (r == 0)
        r = image->env->ops->backend_create(image->env, image->metadata_backend, &config, &a->loop.backend);
    if (r < 0) {
        allocator_destroy(a);
        return r;
    }
    *ret = a;
    return 0;
}

void allocator_destroy(struct allocator *a)
{
    if (!a)
        return;
    backend_destroy(a->loop.backend);
    refcounts_close(&a->refcounts);
    for (uint32_t i = 0; a->commit.notes && i < a->image->shard_count; i++) {
        freed_destroy(&a->commit.notes[i].freed);
        free(a->commit.notes[i].raised.items);
    }
    for (uint32_t i = 0; i < COUNTS_IOS; i++)
        free(a->counts.buffers[i]);
    for (uint32_t i = 0; i < TABLES; i++)
        free(a->tables[i].buffer);
    for (struct list_node *n; (n = list_pop(&a->freed.batches));) {
        struct freed_batch *b = container_of(n, struct freed_batch, node);

        freed_destroy(&b->list);
        free(b);
    }
    freed_destroy(&a->commit.freed);
    freed_destroy(&a->own_freed);
    freed_destroy(&a->control.returned);
    pages_release(a->l1_durable, L1_BYTES_MAX + 4096);
    pages_release(a->commit.l1_copy, L1_BYTES_MAX);
    pages_release(a->header_block, header_block_bytes(a));
    free(a->notify_queue);
    free(a->notify_shard);
    free(a->commit.notes);
    free(a->commit.ends);
    free(a);
}
