/* SPDX-License-Identifier: MIT */
/*
 * L2 tables: new ones, and copies of those that something else refers to too. Shards that need one ask and
 * wait; two that need the same get the same.
 *
 * The slices of a table have several owners, but a shared table needs no freeze: every change of its slices
 * waits for the copy, so no owner has any in hand, and loads find the same entries in the old table and in
 * the new.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "engine/allocator.h"

static uint64_t l1_entry(const struct allocator *a, uint64_t l1_index)
{
    const struct map_root *root = atomic_load_explicit(&a->layer->root, memory_order_relaxed);

    return atomic_load_explicit(&root->l1[l1_index], memory_order_relaxed);
}

static void end_job(struct allocator *a, struct table_job *job, int status)
{
    struct list_node *n;

    if (status < 0) { /* named by nothing: what is written to it does not matter */
        freed_lower(a, job->new_off >> a->layer->header.cluster_bits);
    } else {
        if (job->old_off && freed_reserve(&a->own_freed, 1))
            freed_add(&a->own_freed, job->old_off >> a->layer->header.cluster_bits, 1);
        commit_set_l1(a, job->l1_index, job->new_off | ENTRY_COPIED);
    }
    while ((n = list_pop(&job->notes)))
        allocator_answer_note(a, container_of(n, struct note, node), status);
    job->busy = false;
}

static void table_written(struct allocator *a, struct allocator_io *io)
{
    if (io->io.result == -ENOSPC)
        allocator_report_no_space(a);
    end_job(a, container_of(io, struct table_job, io), io->io.result);
}

static void start_write(struct allocator *a, struct table_job *job)
{
    job->io.io = (struct io){.kind = IO_WRITE,
                             .file = a->layer->file,
                             .off = job->new_off,
                             .bytes = a->layer->header.cluster_bytes,
                             .buf = job->buffer};
    allocator_start_io(a, &job->io, table_written);
}

static void old_table_read(struct allocator *a, struct allocator_io *io)
{
    struct table_job *job = container_of(io, struct table_job, io);

    if (io->io.result < 0)
        end_job(a, job, io->io.result);
    else
        start_write(a, job);
}

static void start_job(struct allocator *a, struct table_job *job, bool fresh)
{
    if (job->old_off) {
        job->io.io = (struct io){.kind = IO_READ,
                                 .file = a->layer->file,
                                 .off = job->old_off,
                                 .bytes = a->layer->header.cluster_bytes,
                                 .buf = job->buffer};
        allocator_start_io(a, &job->io, old_table_read);
    } else if (fresh && !a->cannot_allocate) { /* reads as zeros already, in space that is reserved */
        end_job(a, job, 0);
    } else {
        memset(job->buffer, 0, a->layer->header.cluster_bytes);
        start_write(a, job);
    }
}

static struct table_job *find_job(struct allocator *a, uint64_t l1_index)
{
    struct table_job *unused = NULL;

    for (uint32_t i = 0; i < TABLES; i++) {
        if (a->tables[i].busy && a->tables[i].l1_index == l1_index)
            return &a->tables[i];
        if (!a->tables[i].busy)
            unused = &a->tables[i];
    }
    return unused;
}

static bool is_unaligned(const struct allocator *a, uint64_t off)
{
    return off & (a->layer->header.cluster_bytes - 1);
}

/* True when the note is on its way to an answer; false: it waits for a job or for clusters. */
static bool take_note(struct allocator *a, struct note *note)
{
    const uint64_t entry = l1_entry(a, note->l1_index), old_off = entry & ENTRY_OFF_MASK;
    struct table_job *job = find_job(a, note->l1_index);
    uint64_t first;
    bool fresh;

    if (job && job->busy) {
        list_push(&job->notes, &note->node);
        return true;
    }
    if (old_off && entry & ENTRY_COPIED) {
        allocator_answer_note(a, note, 0);
        return true;
    }
    if (is_unaligned(a, old_off)) {
        allocator_answer_note(a, note, -EIO);
        return true;
    }
    if (!job)
        return false;
    if (!job->buffer)
        job->buffer = aligned_alloc(4096, round_up(a->layer->header.cluster_bytes, 4096));
    if (!job->buffer || !freed_reserve(&a->own_freed, 1)) {
        allocator_answer_note(a, note, -ENOMEM);
        return true;
    }
    if (!pool_take_one(a, &first, &fresh)) {
        if (a->counts.pool_status == 0 || a->counts.pool_status == -EAGAIN)
            return false;
        allocator_answer_note(a, note, a->counts.pool_status);
        return true;
    }
    job->busy = true;
    job->l1_index = note->l1_index;
    job->old_off = old_off;
    job->new_off = first << a->layer->header.cluster_bits;
    list_push(&job->notes, &note->node);
    start_job(a, job, fresh);
    return true;
}

bool tables_idle(const struct allocator *a)
{
    for (uint32_t i = 0; i < TABLES; i++)
        if (a->tables[i].busy)
            return false;
    return true;
}

bool tables_step(struct allocator *a)
{
    struct list waiting;
    struct list_node *n;
    bool any = false;

    if (control_holds_leases(a))
        return false;
    waiting = list_take(&a->tables_waiting);

    while ((n = list_pop(&waiting))) {
        if (take_note(a, container_of(n, struct note, node)))
            any = true;
        else
            list_push(&a->tables_waiting, n);
    }
    if (list_empty(&a->tables_waiting))
        a->counts.pool_status = 0; /* the next that needs one asks anew */
    return any;
}
