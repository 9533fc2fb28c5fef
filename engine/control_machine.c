/* SPDX-License-Identifier: MIT */
/* What is done on request with the other machines at rest: leaving the file complete, and growing. */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/guard.h"
#include "engine/allocator.h"

bool control_holds_leases(const struct allocator *a)
{
    return a->control.state == CONTROL_RETURN || a->control.state == CONTROL_FREED ||
           a->control.state == CONTROL_COUNTS;
}

bool control_holds_commits(const struct allocator *a)
{
    return control_holds_leases(a) || a->control.state == CONTROL_L1;
}

static void end(struct allocator *a, int status, const char *text)
{
    struct control_machine *m = &a->control;
    struct request *r = m->request;

    a->closed |= r->kind == REQUEST_QUIESCE && r->flags & QUIESCE_CLOSE;
    m->request = NULL;
    m->state = CONTROL_IDLE;
    allocator_answer_request(a, r, status, text);
}

/* ---- quiesce ---- */

static void lower_list(struct allocator *a, struct freed_list *list)
{
    for (uint32_t i = 0; i < list->count; i++)
        for (uint64_t k = 0; k < list->runs[i].count; k++)
            freed_lower(a, list->runs[i].first + k);
    list->count = 0;
    list->clusters = 0;
}

static void return_clusters(struct allocator *a, struct lease *l, struct freed_list *returned)
{
    uint64_t first;
    uint32_t n;
    bool fresh;

    while ((n = lease_take(l, UINT32_MAX, &first, &fresh))) {
        if (freed_reserve(returned, 1))
            freed_add(returned, first, n);
        else
            for (uint32_t i = 0; i < n; i++)
                freed_lower(a, first + i);
    }
    *l = (struct lease){0};
}

/* All that came back loses its count, by the way that gives its space back to the host. */
static void free_returned(struct allocator *a, struct freed_list *returned)
{
    return_clusters(a, &a->pool, returned);
    return_clusters(a, &a->pool_next, returned);
    if (freed_give(a, returned) < 0)
        lower_list(a, returned);
}

static void start_return(struct allocator *a)
{
    struct control_machine *m = &a->control;

    m->state = CONTROL_RETURN;
    m->status = 0;
    m->in_hand = false;
    m->notes_out = a->image->shard_count;
    for (uint32_t i = 0; i < a->image->shard_count; i++) {
        a->commit.notes[i].kind = NOTE_RETURN;
        allocator_send_note(a, i, &a->commit.notes[i]);
    }
}

void control_answered(struct allocator *a, struct note *note)
{
    struct control_machine *m = &a->control;

    if (note->status < 0 && m->status == 0)
        m->status = note->status;
    m->in_hand |= note->any;
    if (!freed_move(&m->returned, &note->freed))
        lower_list(a, &note->freed);
    if (--m->notes_out)
        return;
    free_returned(a, &m->returned);
    m->state = CONTROL_FREED;
}

/* Clusters were taken ahead and came back, so blocks may be left that count only themselves. What goes wrong
 * here leaves a longer file, or goes wrong again at the end. */
static void drop_blocks(struct allocator *a)
{
    if (atomic_load_explicit(&a->leased, memory_order_relaxed))
        (void)refcounts_drop_last(&a->refcounts, div_round_up(a->kept_end, a->layer->header.cluster_bytes));
}

/* The file ends with its last cluster in use, and no longer than it was, if that was more; the header says
 * that nobody has leases out. */
static void finish_quiesce(struct allocator *a)
{
    struct control_machine *m = &a->control;
    const uint32_t bits = a->layer->header.cluster_bits;
    uint64_t used_end = 0, end_bytes;
    int r = m->status;

    if (r == 0 && a->layer->data_file != a->layer->file) /* the pass before has synced the image itself */
        r = file_sync(a->layer->data_file);
    if (r == 0 && !a->layer->file->block_device) {
        r = refcounts_used_end(&a->refcounts, &used_end);
        end_bytes = MAX(used_end << bits, a->kept_end); /* kept_end need not be a multiple of clusters */
        if (r == 0 && (end_bytes < a->file_end || a->end_unknown)) {
            r = file_truncate(a->layer->file, end_bytes);
            if (r == 0) /* without the mark nobody would look for what a crash brings back */
                r = file_sync(a->layer->file);
            if (r == 0) {
                a->file_end = end_bytes;
                a->end_unknown = false;
                a->refcounts.fresh = div_round_up(end_bytes, a->layer->header.cluster_bytes);
            }
        }
    }
    if (r == 0 && a->counts_lost) /* the mark stays: the next to open it for writing takes them back */
        r = error_set(-EIO, "refcounts could not be read: some clusters stay allocated until the image is "
                            "opened for writing again");
    /* Against the rule there are writes in flight: their clusters could leak, so the mark stays. */
    if (r == 0 && ((a->marked && !m->in_hand) || a->header_stale)) {
        a->marked &= m->in_hand;
        r = allocator_write_header(a);
    }
    if (r == 0)
        atomic_store_explicit(&a->leased, 0, memory_order_relaxed);
    end(a, r, error_message());
}

/* No I/O of the allocator's is in flight: the loop may end. */
static bool is_at_rest(const struct allocator *a)
{
    return a->broken || (counts_idle(a) && commit_idle(a) && !a->freed.punches_busy && tables_idle(a));
}

/* What has gone wrong since the request began: 0, or a negative errno. */
static int failure(const struct allocator *a, const char **ret_text)
{
    const struct control_machine *m = &a->control;
    const int given_up = atomic_load_explicit(&a->image->write_error, memory_order_relaxed);

    *ret_text = "the image's metadata could not be written";
    if (given_up)
        return given_up;
    if (m->state == CONTROL_COUNTS && a->counts.failed != m->counts_failed) {
        *ret_text = "refcounts could not be written";
        return a->counts.error;
    }
    *ret_text = "a commit of metadata failed";
    return a->commit.failed != m->commits_failed ? a->commit.error : 0;
}

static bool quiesce_step(struct allocator *a)
{
    struct control_machine *m = &a->control;

    if (m->state == CONTROL_RETURN)
        return false;
    const char *text;
    const int failed = failure(a, &text);

    if (failed) {
        if (!is_at_rest(a))
            return false;
        end(a, failed, text);
        return true;
    }
    if (m->state == CONTROL_FREED) {
        if (!freed_idle(a) || !counts_idle(a))
            return false;
        drop_blocks(a);
        m->state = CONTROL_COUNTS;
        m->counts_failed = a->counts.failed;
        m->counts_pass = counts_request(a);
        return true;
    }
    if (m->state == CONTROL_COUNTS) {
        if (a->counts.passes < m->counts_pass)
            return false;
        finish_quiesce(a);
        return true;
    }
    if (commit_is_dirty(a) || a->own_freed.count) {
        if (commit_idle(a) && !atomic_load_explicit(&a->commit.wanted, memory_order_relaxed)) {
            if (!commit_is_dirty(a))
                allocator_mutate(a);
            atomic_store_explicit(&a->commit.wanted, true, memory_order_relaxed);
            return true;
        }
        return false;
    }
    if (!is_at_rest(a) || !freed_idle(a) || a->commit.freed.count)
        return false;
    start_return(a);
    return true;
}

/* ---- grow ---- */

static int write_new_l1(struct allocator *a, uint64_t new_off, uint64_t clusters)
{
    struct header *h = &a->layer->header;
    const uint64_t bytes = clusters << h->cluster_bits;
    uint8_t *copy = aligned_alloc(4096, round_up(bytes, 4096));
    int r;

    if (!copy)
        return error_set(-ENOMEM, "out of memory");
    memset(copy, 0, bytes);
    memcpy(copy, a->l1_durable, (size_t)h->l1_count * sizeof(uint64_t));
    r = file_write(a->layer->file, copy, bytes, new_off);
    free(copy);
    if (r == 0)
        r = file_sync(a->layer->file);
    return r;
}

/* scow_get_info() reads them on any thread. */
static void name_l1(struct allocator *a, uint64_t off, uint32_t count)
{
    pthread_mutex_lock(&a->image->lock);
    a->layer->header.l1_off = off;
    a->layer->header.l1_count = count;
    pthread_mutex_unlock(&a->image->lock);
}

static int set_l1(struct allocator *a, uint64_t off, uint64_t count)
{
    const uint64_t old_off = a->layer->header.l1_off;
    const uint32_t old_count = a->layer->header.l1_count;
    int r;

    name_l1(a, off, (uint32_t)count);
    r = allocator_write_header(a);
    if (r < 0) {
        name_l1(a, old_off, old_count);
        /* The disk may name the new table: commits would write to one that nobody reads. */
        if (allocator_write_header(a) < 0)
            allocator_give_up(a, r);
    }
    return r;
}

/* There is room for it: the new table, then the header, then everybody. */
static void move_l1(struct allocator *a)
{
    struct control_machine *m = &a->control;
    struct layer *layer = a->layer;
    struct map_root *root = atomic_load_explicit(&layer->root, memory_order_relaxed);
    const uint32_t bits = layer->header.cluster_bits;
    const uint64_t old_first = layer->header.l1_off >> bits;
    const uint64_t old_clusters =
        div_round_up((uint64_t)layer->header.l1_count * sizeof(uint64_t), layer->header.cluster_bytes);
    const uint64_t clusters = div_round_up(m->new_l1_count * sizeof(uint64_t), layer->header.cluster_bytes);
    const uint64_t first = a->counts.contiguous.extents[0].first;
    int r = 0;

    if (!freed_reserve(&a->own_freed, 1))
        r = error_set(-ENOMEM, "out of memory");
    if (r == 0 && !GUARD(I6))
        r = set_l1(a, first << bits, m->new_l1_count);
    if (r == 0)
        r = write_new_l1(a, first << bits, clusters);
    if (r == 0 && GUARD(I6))
        r = set_l1(a, first << bits, m->new_l1_count);
    if (r < 0) {
        char text[REQUEST_ERROR_BYTES];

        snprintf(text, sizeof text, "%s", error_message());
        /* Once writing is given up the disk may name the new table: it stays taken. */
        for (uint64_t i = 0;
             i < clusters && !atomic_load_explicit(&a->image->write_error, memory_order_relaxed); i++)
            freed_lower(a, first + i);
        end(a, r, text);
        return;
    }
    if (old_clusters)
        freed_add(&a->own_freed, old_first, old_clusters);
    allocator_mutate(a);
    atomic_store_explicit(&root->l1_count, (uint32_t)m->new_l1_count, memory_order_release);
    end(a, 0, "");
}

static void start_l1(struct allocator *a)
{
    struct control_machine *m = &a->control;
    const struct layer *layer = a->layer;
    const struct map_root *root = atomic_load_explicit(&layer->root, memory_order_relaxed);
    const uint64_t per_entry = 1ull << header_l1_shift(&layer->header);

    m->new_l1_count = div_round_up(m->request->off, per_entry);
    if (m->new_l1_count <= root->l1_count) {
        end(a, 0, "");
    } else if (m->new_l1_count > root->l1_room ||
               m->request->off >> layer->slice_shift >= root->directory.count) {
        end(a, -EFBIG,
            "the image cannot grow that far while it is open, or at all: the L1 table has its limit");
    } else {
        m->state = CONTROL_L1;
        a->counts.want_contiguous =
            div_round_up(m->new_l1_count * sizeof(uint64_t), layer->header.cluster_bytes);
    }
}

static void name_size(struct allocator *a, uint64_t bytes)
{
    pthread_mutex_lock(&a->image->lock);
    a->layer->header.virtual_bytes = bytes;
    pthread_mutex_unlock(&a->image->lock);
}

static void set_size(struct allocator *a)
{
    struct layer *layer = a->layer;
    const uint64_t old = layer->header.virtual_bytes;
    int r;

    name_size(a, a->control.request->off);
    r = allocator_write_header(a);
    if (r < 0) {
        name_size(a, old);
        a->header_stale = true;
        (void)allocator_write_header(a); /* the disk may have the new size */
    } else {
        atomic_store_explicit(&layer->virtual_bytes, a->control.request->off, memory_order_release);
    }
    end(a, r, error_message());
}

static bool grow_step(struct allocator *a)
{
    if (a->counts.want_contiguous || !commit_idle(a))
        return false;
    if (a->counts.contiguous_status < 0)
        end(a, a->counts.contiguous_status, "no space for a larger L1 table");
    else
        move_l1(a);
    return true;
}

bool control_step(struct allocator *a)
{
    struct control_machine *m = &a->control;
    struct list_node *n;

    if (m->state == CONTROL_L1)
        return grow_step(a);
    if (m->state != CONTROL_IDLE)
        return quiesce_step(a);
    n = list_pop(&m->waiting);
    if (!n)
        return false;
    m->request = container_of(n, struct request, node);
    m->commits_failed = a->commit.failed;
    if (m->request->kind == REQUEST_QUIESCE)
        m->state = CONTROL_COMMIT;
    else if (m->request->flags & GROW_SIZE)
        set_size(a);
    else
        start_l1(a);
    return true;
}
