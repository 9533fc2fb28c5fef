/* SPDX-License-Identifier: MIT */
/*
 * Group commit: what the shards changed reaches the disk in the order that I2, I3 and I4 ask for, and every
 * flush that waited when the commit began is answered when it ends (I7).
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "base/probe.h"
#include "engine/allocator.h"

/* Commits that fail in a row before writing is given up. */
#define FAILURES_MAX 8u
/* An L1 write at a time. */
#define L1_WRITE_BYTES (1u << 20)

bool commit_idle(const struct allocator *a)
{
    return a->commit.state == COMMIT_IDLE;
}

bool commit_is_dirty(const struct allocator *a)
{
    return !image_is_committed(a->image);
}

void commit_set_l1(struct allocator *a, uint64_t l1_index, uint64_t entry)
{
    const struct map_root *root = atomic_load_explicit(&a->layer->root, memory_order_relaxed);
    const uint32_t i = (uint32_t)l1_index;

    if (a->l1_dirty_from == a->l1_dirty_to) {
        a->l1_dirty_from = i;
        a->l1_dirty_to = i + 1;
    } else {
        a->l1_dirty_from = MIN(a->l1_dirty_from, i);
        a->l1_dirty_to = MAX(a->l1_dirty_to, i + 1);
    }
    allocator_mutate(a);
    atomic_store_explicit(&root->l1[i], entry, memory_order_release);
}

/* ---- the end ---- */

void commit_sync_failed(struct allocator *a, int err)
{
    a->commit.lost = err;
    allocator_mutate(a);
}

/* A sync that failed with nobody waiting has used up the kernel's only report of lost data: the next flush
 * gets it. */
static int take_lost(struct commit_machine *m, int status)
{
    const int lost = m->lost;

    if (list_empty(&m->joined) || !lost)
        return status;
    m->lost = 0;
    return status < 0 ? status : lost;
}

static void answer_joined(struct allocator *a, int status)
{
    char text[REQUEST_ERROR_BYTES] = "";
    struct list_node *n;

    if (!a->commit.soft)
        status = take_lost(&a->commit, status);
    if (status < 0)
        snprintf(text, sizeof text, "flush: metadata or data could not be made durable: %s",
                 strerror(-status));
    while ((n = list_pop(&a->commit.joined)))
        allocator_answer_request(a, container_of(n, struct request, node), status, text);
}

/* The shards learn how it ended, when they are awake the next time, and need not answer: what has answered
 * the next COPY has taken this from its ring before. */
static void tell_shards(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    m->state = COMMIT_IDLE;
    for (uint32_t i = 0; i < a->image->shard_count; i++)
        if (m->notes[i].took_part) {
            m->ends[i].status = m->status;
            allocator_leave_note(a, i, &m->ends[i]);
        }
}

/* All copies are in the file. */
static void set_written(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    for (uint32_t i = 0; i < a->image->shard_count; i++)
        if (m->notes[i].took_part)
            atomic_store_explicit(&a->image->shards[i].written, m->notes[i].mutated, memory_order_release);
}

/* What was freed, and all that has to be durable, is left for a commit that syncs: for that the shards are as
 * dirty as before. */
static void finish_soft(struct allocator *a)
{
    PROBE2(committed, 0, true);
    set_written(a);
    answer_joined(a, 0);
    tell_shards(a);
}

static void succeed(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    set_written(a);
    for (uint32_t i = 0; i < a->image->shard_count; i++)
        if (m->notes[i].took_part)
            atomic_store_explicit(&a->image->shards[i].committed, m->notes[i].mutated, memory_order_release);
    atomic_store_explicit(&a->committed, m->own_mutated, memory_order_release);
    m->failures = 0;
    counter_add(&a->commits, 1);
    if (GUARD(I4) && m->freed.count)
        (void)freed_give(a, &m->freed); /* without memory it stays for the next commit */
}

static void finish(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    PROBE2(committed, m->status, false);
    if (m->status == 0) {
        succeed(a);
    } else {
        if (m->any_l1) { /* again with the next commit */
            const bool none = a->l1_dirty_from == a->l1_dirty_to;

            a->l1_dirty_from = none ? m->l1_from : MIN(a->l1_dirty_from, m->l1_from);
            a->l1_dirty_to = none ? m->l1_to : MAX(a->l1_dirty_to, m->l1_to);
        }
        m->failed++;
        m->error = m->status;
        if (m->status != -ENOSPC && ++m->failures >= FAILURES_MAX)
            allocator_give_up(a, m->status);
    }
    m->last_ns = env_now_ns(a->image->env);
    answer_joined(a, m->status);
    tell_shards(a);
}

/* ---- I/O ---- */

static void go_on(struct allocator *a);

static void fail(struct commit_machine *m, int err)
{
    if (m->status == 0)
        m->status = err;
}

static void sync_done(struct allocator *a, struct allocator_io *io)
{
    struct commit_machine *m = &a->commit;

    if (io->io.result < 0) {
        fail(m, io->io.result);
        if (list_empty(&m->joined))
            commit_sync_failed(a, io->io.result);
    }
    if (--m->syncs_out == 0)
        go_on(a);
}

static void sync_file(struct allocator *a, struct allocator_io *io, struct file *file)
{
    io->io = (struct io){.kind = IO_SYNC, .file = file};
    a->commit.syncs_out++;
    counter_add(&a->syncs, 1);
    PROBE2(sync, a->commit.state, file->index);
    allocator_start_io(a, io, sync_done);
}

/* What is written so far may be named afterwards: data, new L2 tables, copies that nothing held back. */
static void start_sync1(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    m->state = COMMIT_SYNC1;
    m->syncs_out = 0;
    if (a->layer->data_file != a->layer->file)
        sync_file(a, &m->data_sync_io, a->layer->data_file);
    sync_file(a, &m->sync_io, a->layer->file);
}

/* Metadata only: the image's file has all of it. */
static void start_sync(struct allocator *a, enum commit_state state)
{
    a->commit.state = state;
    a->commit.syncs_out = 0;
    sync_file(a, &a->commit.sync_io, a->layer->file);
}

/* The copies that had to wait. */
static void start_writes(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    m->state = COMMIT_WRITE;
    for (uint32_t i = 0; i < a->image->shard_count; i++)
        if (m->notes[i].any) {
            m->notes[i].kind = NOTE_WRITE;
            m->notes[i].status = 0;
            m->notes_out++;
            allocator_send_note(a, i, &m->notes[i]);
        }
}

/* ---- L1 ---- */

static void l1_written(struct allocator *a, struct allocator_io *io);

static void write_l1(struct allocator *a)
{
    struct commit_machine *m = &a->commit;
    const uint32_t align = MAX((uint32_t)SECTOR_BYTES, a->layer->file->io_align);
    const uint64_t from = round_down((uint64_t)m->l1_next * sizeof(uint64_t), align);
    const uint64_t to = MIN(round_up((uint64_t)m->l1_to * sizeof(uint64_t), align), from + L1_WRITE_BYTES);

    m->l1_next = (uint32_t)(to / sizeof(uint64_t));
    m->l1_io.io = (struct io){.kind = IO_WRITE,
                              .file = a->layer->file,
                              .off = a->layer->header.l1_off + from,
                              .bytes = (uint32_t)(to - from),
                              .buf = (uint8_t *)a->l1_durable + from};
    allocator_start_io(a, &m->l1_io, l1_written);
}

static void l1_written(struct allocator *a, struct allocator_io *io)
{
    struct commit_machine *m = &a->commit;

    if (io->io.result < 0)
        fail(m, io->io.result);
    if (m->status == 0 && m->l1_next < m->l1_to)
        write_l1(a);
    else
        go_on(a);
}

static void start_l1(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    m->state = COMMIT_L1;
    memcpy(a->l1_durable + m->l1_from, m->l1_copy, (m->l1_to - m->l1_from) * sizeof *m->l1_copy);
    m->l1_next = m->l1_from;
    write_l1(a);
}

/* ---- the way through ---- */

/* After COPY and COUNTS. */
static void after_copy(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    if (!GUARD(I3) && m->any_l1 && !m->l1_early) {
        m->l1_early = true;
        start_l1(a);
    } else if (m->soft && !m->any_copy) {
        finish_soft(a);
    } else {
        start_sync1(a);
    }
}

static void after_sync1(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    if (m->any_copy)
        start_writes(a);
    else if (m->any_l1 && !m->l1_early)
        start_l1(a);
    else
        finish(a);
}

/* The present step has ended. */
static void go_on(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    if (m->status < 0) {
        finish(a);
        return;
    }
    switch (m->state) {
    case COMMIT_COPY:
    case COMMIT_COUNTS:
        after_copy(a);
        break;
    case COMMIT_SYNC1:
        after_sync1(a);
        break;
    case COMMIT_WRITE:
        if (m->soft)
            finish_soft(a);
        else
            start_sync(a, COMMIT_SYNC2);
        break;
    case COMMIT_SYNC2:
        if (m->any_l1 && !m->l1_early)
            start_l1(a);
        else
            finish(a);
        break;
    case COMMIT_L1:
        if (m->l1_early)
            start_sync1(a);
        else
            start_sync(a, COMMIT_SYNC3);
        break;
    case COMMIT_SYNC3:
        finish(a);
        break;
    case COMMIT_IDLE:
        break;
    }
}

/* After the shards have copied: they may know L1 entries that were set meanwhile, and what they freed by them
 * is not to be free before L1 says so too (I4). */
static void copy_own(struct allocator *a)
{
    struct commit_machine *m = &a->commit;
    const struct map_root *root = atomic_load_explicit(&a->layer->root, memory_order_relaxed);

    m->own_mutated = counter_get(&a->mutated);
    (void)freed_move(&m->freed, &a->own_freed);
    m->any_l1 = a->l1_dirty_from != a->l1_dirty_to;
    m->soft &= !m->any_l1; /* a table is durable before L1 names it (I3) */
    m->l1_from = a->l1_dirty_from;
    m->l1_to = a->l1_dirty_to;
    for (uint32_t i = m->l1_from; i < m->l1_to; i++)
        m->l1_copy[i - m->l1_from] = htobe64(atomic_load_explicit(&root->l1[i], memory_order_relaxed));
    a->l1_dirty_from = a->l1_dirty_to = 0;
}

/* Whatever becomes of this commit: what is raised once stays so. What cannot be raised fails it, and is kept.
 */
static void raise_counts(struct allocator *a, struct raised_list *list)
{
    struct commit_machine *m = &a->commit;
    uint32_t kept = 0;

    for (uint32_t i = 0; i < list->count; i++) {
        const int r = refcounts_change(&a->refcounts, list->items[i].cluster, (int64_t)list->items[i].by);

        if (r < 0) {
            fail(m, r);
            list->items[kept++] = list->items[i];
        }
        m->raised = true;
    }
    list->count = kept;
}

/* What the shards handed over with their copies. */
static void collect(struct allocator *a)
{
    struct commit_machine *m = &a->commit;

    for (uint32_t i = 0; i < a->image->shard_count; i++) {
        struct note *note = &m->notes[i];

        if (!note->took_part)
            continue;
        if (note->status < 0)
            fail(m, note->status);
        m->any_copy |= note->any;
        (void)freed_move(&m->freed, &note->freed); /* or with the next commit */
        raise_counts(a, &note->raised);
    }
    copy_own(a);
    if (!GUARD(I4))
        (void)freed_give(a, &m->freed);
}

void commit_answered(struct allocator *a, struct note *note)
{
    struct commit_machine *m = &a->commit;

    if (m->state == COMMIT_WRITE && note->status < 0)
        fail(m, note->status);
    if (--m->notes_out)
        return;
    if (m->state == COMMIT_COPY) {
        collect(a);
        if (m->raised && m->status == 0) {
            m->state = COMMIT_COUNTS;
            m->counts_failed = a->counts.failed;
            m->counts_pass = counts_request(a);
            return;
        }
    }
    go_on(a);
}

/* Whether all who wait for it ask for no more than SCOW_REQ_OUTLIVES. */
static bool is_soft(const struct list *joined)
{
    for (const struct list_node *n = joined->head; n; n = n->next) {
        const struct request *r = container_of(n, const struct request, node);

        if (r->kind == REQUEST_FLUSH || r->flags & SCOW_REQ_FUA)
            return false;
    }
    return !list_empty(joined);
}

static void begin(struct allocator *a, bool is_due)
{
    struct commit_machine *m = &a->commit;

    m->joined = list_take(&m->waiting);
    m->soft = !is_due && is_soft(&m->joined);
    PROBE2(commit, is_due, m->soft);
    atomic_store_explicit(&m->wanted, false, memory_order_release);
    m->status = a->broken;
    if (m->status == 0 && commit_is_dirty(a))
        m->status = allocator_mark(a);
    m->state = COMMIT_COPY;
    m->any_l1 = m->any_copy = m->l1_early = false;
    for (uint32_t i = 0; i < a->image->shard_count; i++) {
        const struct shard *s = &a->image->shards[i];

        m->notes[i].took_part = atomic_load_explicit(&s->mutated, memory_order_acquire) !=
                                atomic_load_explicit(&s->committed, memory_order_relaxed);
        m->notes[i].any = false;
        if (!m->notes[i].took_part)
            continue;
        m->notes[i].kind = NOTE_COPY;
        m->notes[i].status = m->status;
        m->notes_out++;
        allocator_send_note(a, i, &m->notes[i]);
    }
    if (!m->notes_out) {
        copy_own(a);
        go_on(a);
    }
}

bool commit_step(struct allocator *a)
{
    struct commit_machine *m = &a->commit;
    const uint64_t interval = a->image->options.commit_interval_ms * 1000000ull;
    const bool wanted = atomic_load_explicit(&m->wanted, memory_order_acquire);
    bool is_due;

    if (m->state == COMMIT_COUNTS && a->counts.passes >= m->counts_pass) {
        m->raised = false;
        go_on(a);
        return true;
    }
    if (m->state == COMMIT_COUNTS && a->counts.failed != m->counts_failed) {
        fail(m, a->counts.error);
        go_on(a);
        return true;
    }
    if (m->state != COMMIT_IDLE || a->closed || control_holds_commits(a))
        return false;
    if (list_empty(&m->waiting) && !wanted && !commit_is_dirty(a))
        return false;
    is_due = wanted || env_now_ns(a->image->env) - m->last_ns >= interval;
    if (list_empty(&m->waiting) && !is_due)
        return false;
    if (list_empty(&m->waiting) && !commit_is_dirty(a)) { /* wanted, but there is nothing to do */
        atomic_store_explicit(&m->wanted, false, memory_order_release);
        return false;
    }
    begin(a, is_due);
    return true;
}
