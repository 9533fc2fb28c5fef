/* SPDX-License-Identifier: MIT */
/*
 * The way of clusters that lost a reference, behind the commit that made the loss durable: wait until no
 * request from before can still reach them, give their space back to the host, and only then lower their
 * counts (I4, I5).
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "base/probe.h"
#include "engine/allocator.h"
#include "engine/queue.h"

/* The most that one punch takes. */
#define PUNCH_BYTES_MAX (64ull << 20)
/* Clusters looked at before others get their turn. */
#define STEP_CLUSTERS 4096u

static bool has_drained(const struct allocator *a, uint64_t epoch)
{
    return atomic_load_explicit(&a->image->clock.now, memory_order_relaxed) >= epoch + 2 || !GUARD(EPOCH);
}

static struct freed_batch *head(const struct freed_machine *m)
{
    return m->batches.head ? container_of(m->batches.head, struct freed_batch, node) : NULL;
}

bool freed_waits(const struct allocator *a)
{
    const struct freed_batch *b = head(&a->freed);

    return !list_empty(&a->freed.drains) || (b && !has_drained(a, b->epoch));
}

bool freed_idle(const struct allocator *a)
{
    return list_empty(&a->freed.batches) && !a->freed.punches_busy;
}

static int by_cluster(const void *x, const void *y)
{
    const struct freed_run *const a = x, *const b = y;

    return a->first < b->first ? -1 : a->first > b->first;
}

int freed_give(struct allocator *a, struct freed_list *list)
{
    struct freed_batch *b;

    if (!list->count)
        return 0;
    b = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    b->list = *list;
    *list = (struct freed_list){0};
    b->epoch = atomic_load_explicit(&a->image->clock.now, memory_order_relaxed);
    qsort(b->list.runs, b->list.count, sizeof *b->list.runs, by_cluster);
    for (uint32_t i = 0; i < b->list.count; i++)
        counter_add(&a->pending, b->list.runs[i].count);
    list_push(&a->freed.batches, &b->node);
    return 0;
}

/* ---- the epoch clock ---- */

/* One tick, if every submitter lets it. Inside the turn's RCU section. */
static bool tick(struct allocator *a)
{
    struct scow_image *image = a->image;
    const uint64_t now = atomic_load_explicit(&image->clock.now, memory_order_relaxed);
    const uint32_t end = atomic_load_explicit(&image->queues_end, memory_order_acquire);

    atomic_thread_fence(memory_order_seq_cst);
    for (uint32_t i = 0; i < end; i++) {
        const struct scow_queue *q = atomic_load_explicit(&image->queues[i], memory_order_acquire);

        if (q && !epoch_may_leave(&q->epoch, now))
            return false;
    }
    atomic_store_explicit(&image->clock.now, now + 1, memory_order_release);
    return true;
}

static bool answer_drains(struct allocator *a)
{
    struct list waiting = list_take(&a->freed.drains);
    struct list_node *n;
    bool any = false;

    while ((n = list_pop(&waiting))) {
        struct note *note = container_of(n, struct note, node);

        if (has_drained(a, note->epoch)) {
            allocator_answer_note(a, note, 0);
            any = true;
        } else {
            list_push(&a->freed.drains, n);
        }
    }
    return any;
}

/* ---- punches ---- */

void freed_lower(struct allocator *a, uint64_t cluster)
{
    const bool clean = !a->refcounts.dirty_count;
    uint64_t count;

    if (refcounts_get(&a->refcounts, cluster, &count) < 0) { /* it leaks, and a close has to say so */
        a->counts_lost = true;
        return;
    }
    (void)refcounts_change(&a->refcounts, cluster, -1); /* damaged counts are the check's business */
    if (clean)
        a->counts.since_ns = env_now_ns(a->image->env);
}

static void lower_all(struct allocator *a, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        freed_lower(a, first + i);
    atomic_store_explicit(&a->pending, counter_get(&a->pending) - count, memory_order_relaxed);
}

static void punched(struct allocator *a, struct allocator_io *io)
{
    struct punch *p = container_of(io, struct punch, io);

    if (io->io.result == 0)
        counter_add(&a->punched, p->count);
    else
        counter_add(&a->skipped, p->count);
    if (io->io.result == -EOPNOTSUPP)
        a->freed.cannot_punch = true;
    if (GUARD(I5))
        lower_all(a, p->first, p->count);
    p->busy = false;
    a->freed.punches_busy--;
}

static struct punch *free_punch(struct freed_machine *m)
{
    for (uint32_t i = 0; i < PUNCHES; i++)
        if (!m->punches[i].busy)
            return &m->punches[i];
    return NULL;
}

/* What a punch gives back is whole blocks of the file system; part of one it would clear through the page
 * cache, against the direct writes beside it. */
#define PUNCH_BLOCK_BYTES 4096u

/* Of clusters, the whole blocks. False: there is none. */
static bool whole_blocks(const struct allocator *a, uint64_t first, uint64_t count, uint64_t *ret_off,
                         uint64_t *ret_bytes)
{
    const uint32_t bits = a->layer->header.cluster_bits;
    const uint64_t from = round_up(first << bits, PUNCH_BLOCK_BYTES);
    const uint64_t to = round_down((first + count) << bits, PUNCH_BLOCK_BYTES);

    if (from >= to)
        return false;
    *ret_off = from;
    *ret_bytes = to - from;
    return true;
}

static void start_punch(struct allocator *a, struct punch *p, uint64_t first, uint64_t count, uint64_t off,
                        uint64_t bytes)
{
    p->busy = true;
    p->first = first;
    p->count = count;
    p->io.io = (struct io){.kind = IO_PUNCH, .file = a->layer->file, .off = off, .length = bytes};
    a->freed.punches_busy++;
    PROBE2(punch, first, count);
    if (!GUARD(I5))
        lower_all(a, first, count);
    allocator_start_io(a, &p->io, punched);
}

/* Clusters from first on, up to max, whose last reference this was. */
static uint64_t last_references(struct allocator *a, uint64_t first, uint64_t max)
{
    uint64_t n = 0, count;

    while (n < max && refcounts_get(&a->refcounts, first + n, &count) == 0 && count == 1)
        n++;
    return n;
}

/* Is cluster being punched? Then its count is about to change. */
static bool is_busy(const struct freed_machine *m, uint64_t cluster)
{
    for (uint32_t i = 0; i < PUNCHES; i++)
        if (m->punches[i].busy && cluster >= m->punches[i].first &&
            cluster < m->punches[i].first + m->punches[i].count)
            return true;
    return false;
}

/* Takes a piece off the run. False when no punch is free, or the cluster's last one has to end first. */
static bool take_piece(struct allocator *a, struct freed_run *run)
{
    const uint64_t max = MAX(1u, PUNCH_BYTES_MAX >> a->layer->header.cluster_bits);
    uint64_t n, off, bytes;

    if (is_busy(&a->freed, run->first))
        return false;
    n = last_references(a, run->first, MIN(run->count, max));
    if (!n) {
        lower_all(a, run->first, n = 1);
    } else if (a->freed.cannot_punch || !whole_blocks(a, run->first, n, &off, &bytes)) {
        counter_add(&a->skipped, n);
        lower_all(a, run->first, n);
    } else {
        struct punch *p = free_punch(&a->freed);

        if (!p)
            return false;
        start_punch(a, p, run->first, n, off, bytes);
    }
    run->first += n;
    run->count -= n;
    return true;
}

static bool work_on(struct allocator *a, struct freed_batch *b)
{
    uint32_t pieces = 0;

    while (b->next < b->list.count && pieces < STEP_CLUSTERS) {
        if (!b->list.runs[b->next].count)
            b->next++;
        else if (take_piece(a, &b->list.runs[b->next]))
            pieces++;
        else
            return pieces;
    }
    if (b->next == b->list.count) {
        list_pop(&a->freed.batches);
        freed_destroy(&b->list);
        free(b);
        return true;
    }
    return pieces;
}

bool freed_step(struct allocator *a)
{
    struct freed_batch *b = head(&a->freed);
    bool any = false;

    if (a->closed)
        return false;
    for (int i = 0; i < 2 && freed_waits(a) && tick(a); i++)
        any = true;
    any |= answer_drains(a);
    if (b && has_drained(a, b->epoch))
        any |= work_on(a, b);
    return any;
}
