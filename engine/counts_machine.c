/* SPDX-License-Identifier: MIT */
/*
 * Passes that make refcounts durable. What wants clusters when a pass begins is given them in memory; it has
 * them when the pass has ended: file extended, counts written and synced, table and header after them (I1,
 * I6).
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "engine/allocator.h"

#define AHEAD_BYTES_MAX (128ull << 20)
#define AHEAD_BYTES_MIN (1ull << 20)
/* Passes that fail in a row before writing is given up. */
#define FAILURES_MAX 8u

bool counts_idle(const struct allocator *a)
{
    return a->counts.state == COUNTS_IDLE;
}

uint64_t counts_request(struct allocator *a)
{
    a->counts.wanted_pass = a->counts.passes + (counts_idle(a) ? 1 : 2);
    return a->counts.wanted_pass;
}

/* ---- the end of a pass ---- */

static void undo_lease(struct allocator *a, struct lease *l)
{
    for (; l->current < l->extent_count; l->current++)
        for (uint32_t i = 0; i < l->extents[l->current].count; i++)
            (void)refcounts_change(&a->refcounts, l->extents[l->current].first + i, -1);
    *l = (struct lease){0};
}

/* Everybody in the pass has what it wanted, or learns that there is nothing. */
static void settle_pass(struct allocator *a, int status)
{
    struct counts_machine *m = &a->counts;

    if (m->pool_in_pass) {
        m->pool_in_pass = false;
        m->pool_status = 0;
        if (status == 0)
            pool_fill(a, &m->pool_new);
        else
            undo_lease(a, &m->pool_new);
    }
    (void)pool_grant(a);
    if (status < 0)
        pool_refuse(a, status);
    if (m->contiguous_in_pass) {
        m->contiguous_in_pass = false;
        m->contiguous_status = status;
        m->want_contiguous = 0;
        if (status < 0)
            undo_lease(a, &m->contiguous);
    }
}

static void end_pass(struct allocator *a, int status)
{
    struct counts_machine *m = &a->counts;

    m->state = COUNTS_IDLE;
    settle_pass(a, status);
    refcounts_synced(&a->refcounts, status == 0);
    if (status < 0) {
        m->failed++;
        m->error = status;
        m->wanted_pass = m->passes; /* whoever waits sees that it failed */
    }
    if (status == 0) {
        m->passes++;
        m->failures = 0;
        m->frugal = false;
    } else if (status != -ENOSPC && ++m->failures >= FAILURES_MAX) {
        allocator_give_up(a, status);
    }
    m->since_ns = env_now_ns(a->image->env);
}

/* ---- table and header ---- */

static int write_table(struct allocator *a)
{
    struct refcounts *rc = &a->refcounts;
    const uint32_t align = MAX((uint32_t)sizeof(uint64_t), a->layer->file->io_align);
    const uint64_t from = round_down(rc->table_dirty_from * sizeof(uint64_t), align);
    const uint64_t to = round_up(rc->table_dirty_to * sizeof(uint64_t), align);
    uint64_t *const raw = aligned_alloc(4096, round_up(to - from, 4096));
    int r;

    if (!raw)
        return error_set(-ENOMEM, "out of memory");
    for (uint64_t i = 0; i < (to - from) / sizeof *raw; i++)
        raw[i] = htobe64(rc->table[from / sizeof *raw + i]);
    r = file_write(a->layer->file, raw, to - from, rc->table_off + from);
    free(raw);
    if (r == 0) {
        r = file_sync(a->layer->file);
        counter_add(&a->syncs, 1);
    }
    if (r == 0)
        rc->table_dirty_from = rc->table_dirty_to = 0;
    return r;
}

/* The counts are durable: now the table that names new blocks, then the header that names a new table. Rare,
 * and done by blocking calls. */
static int write_table_and_header(struct allocator *a)
{
    struct refcounts *rc = &a->refcounts;
    int r = 0;

    if (rc->table_moved && !GUARD(I6))
        r = allocator_write_header(a);
    if (r == 0 && rc->table_dirty_from != rc->table_dirty_to)
        r = write_table(a);
    if (r < 0 || !rc->table_moved)
        return r;
    r = allocator_write_header(a);
    if (r < 0)
        return r;
    rc->table_moved = false;
    for (uint32_t i = 0; i < rc->old_table_clusters; i++)
        (void)refcounts_change(rc, (rc->old_table_off >> a->layer->header.cluster_bits) + i, -1);
    return 0;
}

/* ---- write, sync ---- */

static void synced(struct allocator *a, struct allocator_io *io)
{
    int r = io->io.result;

    if (r == 0)
        r = write_table_and_header(a);
    if (r < 0)
        commit_sync_failed(a, r);
    end_pass(a, r);
}

static void start_sync(struct allocator *a)
{
    struct counts_machine *m = &a->counts;

    m->state = COUNTS_SYNC;
    m->step_io.io = (struct io){.kind = IO_SYNC, .file = a->layer->file};
    counter_add(&a->syncs, 1);
    allocator_start_io(a, &m->step_io, synced);
}

static void start_writes(struct allocator *a);

static void count_written(struct allocator *a, struct allocator_io *io)
{
    struct counts_machine *m = &a->counts;

    refcounts_written(&a->refcounts, io->tag, io->io.result == 0, io->io.off, io->io.bytes);
    if (io->io.result < 0 && m->status == 0)
        m->status = io->io.result;
    io->io.buf = NULL;
    m->in_flight--;
    start_writes(a);
}

static void start_writes(struct allocator *a)
{
    struct counts_machine *m = &a->counts;

    for (uint32_t i = 0; i < COUNTS_IOS && m->status == 0; i++) {
        struct allocator_io *io = &m->ios[i];
        uint64_t off;
        uint32_t bytes;

        if (io->io.buf)
            continue;
        if (!refcounts_next_write(&a->refcounts, m->buffers[i], &off, &bytes, &io->tag))
            break;
        io->io = (struct io){
            .kind = IO_WRITE, .file = a->layer->file, .off = off, .bytes = bytes, .buf = m->buffers[i]};
        m->in_flight++;
        allocator_start_io(a, io, count_written);
    }
    if (m->in_flight)
        return;
    if (m->status < 0) {
        end_pass(a, m->status);
        /* What was made may be half written: not fresh any more, but no burden on later passes either. */
        refcounts_unmake(&a->refcounts, a->refcounts.fresh);
    } else {
        start_sync(a);
    }
}

/* ---- extend ---- */

/* How far ahead of its use the file is extended. */
static uint64_t ahead_bytes(const struct allocator *a)
{
    const uint64_t wanted = a->image->options.preallocation_bytes;

    if (a->counts.frugal || atomic_load_explicit(&a->tight, memory_order_relaxed))
        return 0;
    return wanted ? wanted : MAX(AHEAD_BYTES_MIN, MIN(AHEAD_BYTES_MAX, a->file_end / 2));
}

static uint64_t needed_end(const struct allocator *a)
{
    if (a->layer->file->block_device)
        return a->file_end;
    return a->refcounts.fresh << a->layer->header.cluster_bits;
}

/* Space is short: a smaller step ahead, then single clusters, then the truth. */
static void no_space(struct allocator *a)
{
    struct counts_machine *m = &a->counts;

    atomic_store_explicit(&a->tight, true, memory_order_relaxed);

    if (m->frugal) {
        settle_pass(a, -ENOSPC);
        refcounts_unmake(&a->refcounts, m->fresh_before);
        if (needed_end(a) > a->file_end) {
            end_pass(a, -ENOSPC);
        } else { /* what only lowers counts, or raises them in place, needs no space */
            m->state = COUNTS_WRITE;
            start_writes(a);
        }
        return;
    }
    m->frugal = true;
    m->state = COUNTS_IDLE;
    const bool pool = m->pool_in_pass;

    if (pool)
        undo_lease(a, &m->pool_new);
    m->pool_in_pass = false;
    if (m->contiguous_in_pass)
        undo_lease(a, &m->contiguous);
    m->pool_wanted |= pool;
    m->contiguous_in_pass = false;
    m->wanted_pass = MAX(m->wanted_pass, m->passes + 1);
    refcounts_unmake(&a->refcounts, m->fresh_before);
}

/* File systems leave what they had allocated when there was no more. Others may need it. */
static void undo_extension(struct allocator *a)
{
    a->end_unknown = file_truncate(a->layer->file, a->file_end) < 0;
}

static void extended(struct allocator *a, struct allocator_io *io)
{
    struct counts_machine *m = &a->counts;
    int r = io->io.result;

    if (r == -EOPNOTSUPP) {
        a->cannot_allocate = true;
        r = file_truncate(a->layer->file, m->extend_to);
    } else if (r < 0) {
        undo_extension(a);
    }
    if (r == -ENOSPC || r == -EDQUOT || r == -EFBIG) {
        no_space(a);
        return;
    }
    if (r < 0) {
        end_pass(a, r);
        return;
    }
    a->file_end = m->extend_to;
    m->state = COUNTS_WRITE;
    start_writes(a);
}

static void start_extend(struct allocator *a)
{
    struct counts_machine *m = &a->counts;
    const uint64_t needed = needed_end(a);

    if (needed <= a->file_end) {
        m->state = COUNTS_WRITE;
        start_writes(a);
        return;
    }
    m->state = COUNTS_EXTEND;
    m->extend_to = needed + ahead_bytes(a);
    m->step_io.io = (struct io){.kind = IO_ALLOCATE,
                                .file = a->layer->file,
                                .off = a->file_end,
                                .length = m->extend_to - a->file_end};
    if (a->cannot_allocate) {
        m->step_io.io.result = -EOPNOTSUPP;
        extended(a, &m->step_io);
        return;
    }
    allocator_start_io(a, &m->step_io, extended);
}

/* ---- the beginning of a pass ---- */

static bool passing(int r)
{
    return r == -EAGAIN;
}

static bool touches(const struct lease *l, uint64_t first, uint64_t count)
{
    for (uint32_t i = 0; i < l->extent_count; i++)
        if (l->extents[i].first < first + count && first < l->extents[i].first + l->extents[i].count)
            return true;
    return false;
}

/* What is free by its refcount may be in use all the same, in a damaged image. Metadata is never given away.
 */
static bool touches_metadata(const struct allocator *a, const struct lease *l)
{
    const struct header *h = &a->layer->header;
    const struct map_root *root = atomic_load_explicit(&a->layer->root, memory_order_relaxed);
    const struct refcounts *rc = &a->refcounts;
    const uint32_t bits = h->cluster_bits;

    if (touches(l, 0, 1) || touches(l, rc->table_off >> bits, rc->table_clusters) ||
        touches(l, h->l1_off >> bits, div_round_up(h->l1_count * sizeof(uint64_t), h->cluster_bytes)) ||
        (h->snapshot_count && touches(l, h->snapshots_off >> bits, 1)))
        return true;
    for (uint32_t i = 0; i < root->l1_count; i++) {
        const uint64_t off = atomic_load_explicit(&root->l1[i], memory_order_relaxed) & ENTRY_OFF_MASK;

        if (off && touches(l, off >> bits, 1))
            return true;
    }
    for (uint64_t i = 0; i < rc->table_count; i++)
        if (rc->table[i] & REFTABLE_OFF_MASK && touches(l, (rc->table[i] & REFTABLE_OFF_MASK) >> bits, 1))
            return true;
    return false;
}

/* Adds to ret what is free. */
static int take(struct allocator *a, uint64_t clusters, bool contiguous, struct lease *ret)
{
    int r;

    *ret = (struct lease){0};
    r = refcounts_take(&a->refcounts, clusters, contiguous, ret);
    if (r == 0 && unlikely(touches_metadata(a, ret))) {
        allocator_report_corruption(a);
        r = error_set(-EIO, "the refcounts say that metadata is free: the image is damaged");
    }
    return r;
}

static void take_for_pool(struct allocator *a)
{
    struct counts_machine *m = &a->counts;
    int r;

    m->pool_wanted = false;
    r = take(a, pool_size(a), false, &m->pool_new);
    if (r == 0 && !GUARD(I1))
        pool_fill(a, &m->pool_new);
    else if (r == 0)
        m->pool_in_pass = true;
    else if (passing(r) || pool_clusters(a))
        m->pool_status = r;
    else
        pool_refuse(a, r);
}

static void take_contiguous(struct allocator *a)
{
    struct counts_machine *m = &a->counts;

    if (m->want_contiguous) {
        m->contiguous_status = take(a, m->want_contiguous, true, &m->contiguous);
        m->contiguous_in_pass = m->contiguous_status == 0;
        if (m->contiguous_status < 0 && !passing(m->contiguous_status))
            m->want_contiguous = 0;
    }
}

static bool pass_is_due(const struct allocator *a)
{
    const struct counts_machine *m = &a->counts;
    const uint64_t interval = a->image->options.commit_interval_ms * 1000000ull;

    if (m->passes < m->wanted_pass || m->want_contiguous || pool_wants(a))
        return true;
    return a->refcounts.dirty_count && env_now_ns(a->image->env) - m->since_ns >= interval;
}

/* Space is short, and some is kept ahead: it goes back. */
static bool give_tail_back(struct allocator *a)
{
    const uint64_t end = needed_end(a);

    if (likely(!atomic_load_explicit(&a->tight, memory_order_relaxed)) || end >= a->file_end ||
        end < a->kept_end || a->cannot_allocate || a->tail_stays)
        return false;
    if (file_truncate(a->layer->file, end) == 0)
        a->file_end = end;
    else
        a->tail_stays = true; /* not to be tried again before the end */
    return true;
}

static bool answer_room(struct allocator *a)
{
    struct list_node *n;
    bool any = false;

    while ((n = list_pop(&a->counts.for_room))) {
        allocator_answer_note(a, container_of(n, struct note, node), 0);
        any = true;
    }
    return any;
}

bool counts_step(struct allocator *a)
{
    struct counts_machine *m = &a->counts;
    bool any;

    if (a->closed)
        return false;
    any = pool_grant(a);
    m->pool_wanted = pool_is_low(a) && !m->pool_in_pass && (m->pool_wanted || any);
    any |= pool_step(a);
    if (m->state == COUNTS_IDLE && give_tail_back(a))
        return true;
    if (m->state == COUNTS_IDLE)
        any |= answer_room(a);
    if (m->state != COUNTS_IDLE || !pass_is_due(a))
        return any;
    m->status = 0;
    m->fresh_before = a->refcounts.fresh;
    a->refcounts.made_count = 0;
    if (!control_holds_leases(a))
        m->status = allocator_mark(a);
    if (m->status < 0) {
        pool_refuse(a, m->status);
        end_pass(a, m->status);
        return true;
    }
    if (pool_wants(a))
        take_for_pool(a);
    take_contiguous(a);
    start_extend(a);
    return true;
}
