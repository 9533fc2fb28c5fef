/* SPDX-License-Identifier: MIT */
#include "engine/shard.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/probe.h"
#include "base/rcu.h"
#include "engine/allocator.h"
#include "engine/queue.h"
#include "engine/read.h"
#include "format/entry.h"

/* A commit begins when one slot in so many is dirty, so that eviction finds clean ones. */
#define DIRTY_FRACTION 4u
/* Also when so many clusters wait to be free again: else what is written and discarded in turn makes the file
 * grow. */
#define FREED_CLUSTERS 128u

/* ---- answers ---- */

/* The request's next owner is its queue. Inside the RCU read-side section of the turn, which keeps the queue
 * there. */
static void answer(struct shard *s, struct request *r)
{
    struct scow_queue *q = r->queue;

    invariant(spsc_push(&q->mail[s->index].to_queue, r));
    s->notify[q->index] = true;
    s->notify_any = true;
}

void shard_answer(struct shard *s, struct request *r, int status, const char *text)
{
    r->lookup.status = status;
    if (text)
        snprintf(r->error, REQUEST_ERROR_BYTES, "%s", text);
    answer(s, r);
}

/* From the entries of a published slot, or of a load that found none: the owner's view needs no validation.
 */
static void answer_from(struct shard *s, struct request *r, const _Atomic uint64_t *entries)
{
    struct lookup *l = &r->lookup;
    struct map_fault fault;

    l->status = 0;
    if (map_slice(l->layer, entries, l->guest_off, l->bytes, &l->run, &fault) != MAP_OK) {
        l->status = -EIO;
        map_fault_text(l->layer, &fault, r->error, REQUEST_ERROR_BYTES);
    }
    answer(s, r);
}

static void notify_queues(struct shard *s)
{
    const uint32_t end = atomic_load_explicit(&s->image->queues_end, memory_order_acquire);

    if (!s->notify_any)
        return;
    s->notify_any = false;
    for (uint32_t i = 0; i < end; i++) {
        struct scow_queue *q;

        if (!s->notify[i])
            continue;
        s->notify[i] = false;
        q = atomic_load_explicit(&s->image->queues[i], memory_order_acquire);
        if (q)
            loop_notify(q->waker);
    }
}

void shard_tell(struct shard *s, struct note *note)
{
    note->shard_index = s->index;
    invariant(spsc_push(&s->link.to_allocator, note));
    s->notify_allocator = true;
}

/* ---- loads ---- */

static struct load *find_load(struct shard *s, const slot_cell *cell)
{
    for (uint32_t i = 0; i < s->loads_end; i++)
        if (s->loads[i].active && s->loads[i].cell == cell)
            return &s->loads[i];
    return NULL;
}

/* Read the slice of cell from its table. NULL when no load is free. */
static struct load *start_load(struct shard *s, struct layer *layer, slot_cell *cell, uint64_t slice_index,
                               uint64_t table_off)
{
    const uint64_t off = table_off + (slice_index % layer->slices_per_table) * layer->slice_bytes;
    struct list_node *n = list_pop(&s->free_loads);
    struct load *load;

    if (!n)
        return NULL;
    load = container_of(n, struct load, node);
    load->active = true;
    load->layer = layer;
    load->cell = cell;
    load->waiters = load->ops = (struct list){0};
    load->io = (struct io){.kind = IO_READ, .role = ROLE_LOAD, .file = layer->file, .buf = load->buffer};
    load->io.off = round_down(off, layer->file->io_align);
    load->skip = (uint32_t)(off - load->io.off);
    load->io.bytes = (uint32_t)round_up(load->skip + layer->slice_bytes, layer->file->io_align);
    if (s->reader) /* the table may lose its last reference meanwhile */
        load->epoch_bucket = epoch_enter(&s->reader->epoch);
    s->loads_end = MAX(s->loads_end, (uint32_t)(load - s->loads) + 1);
    backend_prepare(s->loop.backend, &load->io);
    counter_add(&s->loads_count, 1);
    PROBE2(load, s->index, off);
    return load;
}

/* Answers at once where there is no table; else starts the read. False when no load is free. */
static bool load_or_answer(struct shard *s, struct request *r, const struct map_root *root, slot_cell *cell)
{
    struct layer *layer = r->lookup.layer;
    const uint64_t slice_index = map_slice_index(layer, r->lookup.guest_off);
    const uint64_t l1_index = slice_index / layer->slices_per_table;
    const uint64_t l1_entry = atomic_load_explicit(&root->l1[l1_index], memory_order_acquire);
    struct load *load;

    if (!(l1_entry & ENTRY_OFF_MASK)) {
        const uint64_t rest = map_slice_rest(layer, r->lookup.guest_off);

        r->lookup.status = 0;
        r->lookup.run = (struct run){.kind = RUN_UNALLOCATED, .bytes = MIN(r->lookup.bytes, rest)};
        answer(s, r);
        return true;
    }
    if (map_check_l1(layer, l1_index, l1_entry, r->error, REQUEST_ERROR_BYTES) < 0) {
        r->lookup.status = -EIO;
        answer(s, r);
        return true;
    }
    load = start_load(s, layer, cell, slice_index, l1_entry & ENTRY_OFF_MASK);
    if (load)
        list_push(&load->waiters, &r->node);
    return load;
}

bool shard_load_for(struct shard *s, struct op *op, uint64_t table_off)
{
    struct load *load = find_load(s, op->cell);

    if (load)
        counter_add(&s->coalesced, 1);
    else
        load = start_load(s, op->layer, op->cell, map_slice_index(op->layer, op->pos), table_off);
    if (load)
        list_push(&load->ops, &op->node);
    return load;
}

/* A queue found the slice missing. False when the request has to wait for a free load. */
static bool look_up(struct shard *s, struct request *r)
{
    const struct map_root *root = atomic_load_explicit(&r->lookup.layer->root, memory_order_acquire);
    const uint64_t slice_index = map_slice_index(r->lookup.layer, r->lookup.guest_off);
    slot_cell *cell = directory_cell(&root->directory, slice_index);
    struct slot *slot = atomic_load_explicit(cell, memory_order_relaxed);
    struct load *load;

    if (slot) { /* loaded since the queue looked */
        answer_from(s, r, slot->entries);
        return true;
    }
    if (unlikely(s->broken)) {
        shard_answer(s, r, s->broken, "metadata I/O has stopped: its backend failed before");
        return true;
    }
    load = find_load(s, cell);
    if (load) {
        list_push(&load->waiters, &r->node);
        counter_add(&s->coalesced, 1);
        return true;
    }
    return load_or_answer(s, r, root, cell);
}

static void load_failed(struct shard *s, struct load *load, struct list *waiters, struct list *ops)
{
    char text[REQUEST_ERROR_BYTES];
    struct list_node *n;

    (void)file_read_failed(load->io.file, load->io.result, load->io.off, load->io.bytes);
    snprintf(text, sizeof text, "L2 table: %s", error_message());
    while ((n = list_pop(waiters)))
        shard_answer(s, container_of(n, struct request, node), load->io.result, text);
    while ((n = list_pop(ops)))
        op_fail(s, container_of(n, struct op, node), load->io.result, text);
}

/* Ops need the slice in a slot; while some wait for one, what is only read takes none from them. */
static const struct slot *find_slot_for(struct shard *s, struct load *load, bool for_ops)
{
    struct slot *slot;

    if (!for_ops && !list_empty(&s->for_slot))
        return NULL;
    slot = slice_cache_insert(&s->cache, load->cell, load->buffer + load->skip, load->layer->slice_bytes);
    if (slot && s->alone)
        s->alone[slice_cache_index(&s->cache, slot)].ready = false;
    return slot;
}

static void load_done(struct shard *s, struct load *load)
{
    struct list waiters = list_take(&load->waiters), ops = list_take(&load->ops);
    struct list_node *n;

    if (unlikely(load->io.result < 0)) {
        load_failed(s, load, &waiters, &ops);
    } else {
        const struct slot *slot = find_slot_for(s, load, !list_empty(&ops));
        const _Atomic uint64_t *entries =
            slot ? slot->entries : (const _Atomic uint64_t *)(const void *)(load->buffer + load->skip);

        /* Every waiter is answered before anything else can evict the slot. */
        while ((n = list_pop(&waiters)))
            answer_from(s, container_of(n, struct request, node), entries);
        while ((n = list_pop(&ops))) {
            if (slot)
                op_go(s, container_of(n, struct op, node)); /* pins it */
            else
                shard_wait_for_slot(s, container_of(n, struct op, node));
        }
        atomic_store_explicit(&s->evictions, s->cache.evictions, memory_order_relaxed);
    }
    load->active = false;
    if (s->reader)
        epoch_leave(&s->reader->epoch, load->epoch_bucket);
    list_push(&s->free_loads, &load->node);
    shard_run_all(s, &s->for_load);
}

/* ---- the turn ---- */

static void io_done(struct shard *s, struct io *io)
{
    switch ((enum shard_role)io->role) {
    case ROLE_READER:
        read_io_done(s->reader, io);
        break;
    case ROLE_LOAD:
        load_done(s, container_of(io, struct load, io));
        break;
    case ROLE_OP:
        op_io_done(s, io);
        break;
    case ROLE_COPY:
        shard_copy_done(s, io);
        break;
    case ROLE_PACK:
        pack_io_done(s, io);
        break;
    }
}

static bool finish_ios(struct shard *s)
{
    struct list done = list_take(&s->done);
    struct list_node *n;
    bool any = false;

    while ((n = list_pop(&done))) {
        io_done(s, container_of(n, struct io, node));
        any = true;
    }
    while (any && !list_empty(&s->queued) && !list_empty(&s->free_loads)) {
        n = list_pop(&s->queued);
        if (!look_up(s, container_of(n, struct request, node)))
            list_push(&s->queued, n); /* unreachable while a load is free */
    }
    return any;
}

static void take_request(struct shard *s, struct request *r)
{
    if (r->kind != REQUEST_READ && r->kind != REQUEST_MAP)
        op_submit(s, r);
    else if (!look_up(s, r))
        list_push(&s->queued, &r->node);
}

static bool take_mail(struct shard *s)
{
    const uint32_t end = atomic_load_explicit(&s->image->queues_end, memory_order_acquire);
    bool any = false;

    for (uint32_t i = 0; i < end; i++) {
        struct scow_queue *q = atomic_load_explicit(&s->image->queues[i], memory_order_acquire);
        struct request *r;

        while (q && (r = spsc_pop(&q->mail[s->index].to_shard))) {
            take_request(s, r);
            any = true;
        }
    }
    return any;
}

static bool run_ops(struct shard *s)
{
    struct list_node *n;
    bool any = false;

    while ((n = list_pop(&s->runnable))) {
        op_go(s, container_of(n, struct op, node));
        any = true;
    }
    return any;
}

static bool turn_reader(struct shard *s)
{
    struct list_node *n;
    bool any = false;

    queue_step(s->reader);
    while ((n = list_pop(&s->reader->ready))) {
        op_read_done(s, container_of(n, struct request, node));
        any = true;
    }
    return any;
}

/* The backend is gone: what it has will not come back. Its buffers stay untouched until the image is closed.
 */
ATTR_COLD static void break_down(struct shard *s, int err)
{
    struct list_node *n;

    s->broken = err;
    for (uint32_t i = 0; i < s->loads_end; i++) {
        struct list waiters = list_take(&s->loads[i].waiters), ops = list_take(&s->loads[i].ops);

        while (s->loads[i].active && (n = list_pop(&waiters)))
            shard_answer(s, container_of(n, struct request, node), err, error_message());
        while (s->loads[i].active && (n = list_pop(&ops)))
            op_fail(s, container_of(n, struct op, node), err, error_message());
    }
    while ((n = list_pop(&s->queued)))
        shard_answer(s, container_of(n, struct request, node), err, error_message());
    if (s->ops)
        ops_break_down(s, err, error_message());
    if (s->write_note)
        shard_copies_lost(s, err);
}

static void tell_state(struct shard *s)
{
    const uint64_t leased = s->lease.clusters + (s->has_spare ? s->spare.clusters : 0);

    atomic_store_explicit(&s->slots_resident, s->cache.resident, memory_order_relaxed);
    atomic_store_explicit(&s->slots_dirty, s->cache.dirty_count, memory_order_relaxed);
    atomic_store_explicit(&s->lease_clusters, leased, memory_order_relaxed);
}

static bool shard_turn(struct loop *loop)
{
    struct shard *s = container_of(loop, struct shard, loop);
    bool any;
    int err;

    if (s->reader)
        epoch_observe(&s->image->clock, &s->reader->epoch);
    err = s->broken ? 0 : loop->backend->ops->turn(loop->backend, &s->done);
    rcu_enter(); /* no queue that is met below goes away before the end */
    any = finish_ios(s);
    any |= take_mail(s);
    if (s->reader) {
        any |= shard_take_notes(s);
        any |= run_ops(s);
        any |= turn_reader(s);
        any |= run_ops(s);
    }
    if (unlikely(err < 0))
        break_down(s, err);
    notify_queues(s);
    rcu_leave();
    if (s->reader &&
        (s->cache.dirty_count * DIRTY_FRACTION > s->cache.slot_count || s->freed.clusters > FREED_CLUSTERS))
        allocator_want_commit(s->image->allocator);
    if (s->notify_allocator) {
        s->notify_allocator = false;
        allocator_notify(s->image->allocator);
    }
    atomic_store_explicit(&s->waits_for_slot, !list_empty(&s->for_slot), memory_order_relaxed);
    if (any)
        tell_state(s);
    if (s->reader && !any)
        epoch_offline(&s->reader->epoch);
    return any;
}

static bool shard_has_mail(struct loop *loop)
{
    struct shard *s = container_of(loop, struct shard, loop);
    const uint32_t end = atomic_load_explicit(&s->image->queues_end, memory_order_acquire);
    bool any = !list_empty(&s->done);

    rcu_enter();
    for (uint32_t i = 0; i < end && !any; i++) {
        struct scow_queue *q = atomic_load_explicit(&s->image->queues[i], memory_order_acquire);

        any = q && !spsc_empty(&q->mail[s->index].to_shard);
    }
    rcu_leave();
    return any || (s->reader && (queue_has_mail(s->reader) || !spsc_empty(&s->link.to_shard)));
}

static void shard_sleep(struct loop *loop)
{
    struct shard *s = container_of(loop, struct shard, loop);

    /* An error shows again at the next turn. */
    (void)loop->backend->ops->wait(loop->backend, &s->done, WAIT_FOREVER);
}

static const struct loop_ops shard_loop_ops = {
    .turn = shard_turn, .has_mail = shard_has_mail, .sleep = shard_sleep};

/* ---- creation ---- */

static int create_loads(struct shard *s)
{
    uint32_t align = 1;

    for (uint32_t i = 0; i < s->image->file_count; i++)
        align = MAX(align, s->image->files[i]->io_align);

    const size_t each = round_up(s->image->slice_bytes + 2ull * align, 4096);

    s->loads = calloc(SHARD_LOADS, sizeof *s->loads);
    s->load_memory_bytes = each * SHARD_LOADS;
    s->load_memory = pages_reserve(s->load_memory_bytes);
    if (!s->loads || !s->load_memory)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < SHARD_LOADS; i++) {
        s->loads[i].buffer = s->load_memory + i * each;
        list_push(&s->free_loads, &s->loads[i].node);
    }
    return 0;
}

int shard_init(struct shard *s, struct scow_image *image, uint32_t index)
{
    const struct backend_config config = {.ios_max = SHARD_LOADS + (image->allocator ? SHARD_WRITE_IOS : 0),
                                          .files = image->files,
                                          .file_count = image->file_count};
    int r;

    memset(s, 0, sizeof *s);
    s->loop.ops = &shard_loop_ops;
    s->image = image;
    s->index = index;
    snprintf(s->thread_name, sizeof s->thread_name, "scow-shard-%" PRIu32, index);
    s->loop.thread_name = s->thread_name;
    s->notify = calloc(image->queue_places, sizeof *s->notify);
    if (!s->notify)
        return error_set(-ENOMEM, "out of memory");
    r = slice_cache_create(&s->cache, image->slots_per_shard, image->slice_bytes);
    if (r == 0)
        r = create_loads(s);
    if (r == 0 && image->allocator)
        r = shard_init_writing(s);
    if (r == 0)
        r = image->env->ops->backend_create(image->env, image->metadata_backend, &config, &s->loop.backend);
    return r;
}

void shard_destroy(struct shard *s)
{
    shard_destroy_writing(s);
    backend_destroy(s->loop.backend);
    slice_cache_destroy(&s->cache);
    pages_release(s->load_memory, s->load_memory_bytes);
    free(s->loads);
    free(s->notify);
}
