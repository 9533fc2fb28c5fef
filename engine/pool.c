/* SPDX-License-Identifier: MIT */
/*
 * The pool: clusters whose refcounts are durable, that leases and L2 tables are given from; and what happens
 * when there is nothing to fill it with.
 */
#include <errno.h>

#include "base/checked.h"
#include "base/probe.h"
#include "engine/allocator.h"

/* Durable ahead of its use: so many clusters, this part of the image, no more than so many bytes. */
#define POOL_MIN 64u
#define POOL_MAX 2048u
#define POOL_FRACTION 4u
#define POOL_BYTES_MAX (128u << 20)
/* A lease is at most this part of the pool, but may have so many clusters: what is not used of leases stays
 * as holes. */
#define LEASE_FRACTION 16u
#define LEASE_FLOOR 16u
/* Freed clusters are waited for so long: somebody who reaps no completions may hold them up. */
#define RECLAIM_NS 1000000000ull

/* ---- giving ---- */

/* A lease out of the pool; at most count_max clusters. */
static void carve(struct allocator *a, uint64_t count_max, struct lease *ret)
{
    *ret = (struct lease){0};
    while (ret->clusters < count_max && ret->extent_count < LEASE_EXTENTS) {
        uint64_t first;
        bool fresh;
        const uint32_t n = lease_take(&a->pool, (uint32_t)(count_max - ret->clusters), &first, &fresh);

        if (!n)
            break;
        lease_add(ret, first, n, fresh);
    }
}

uint64_t pool_clusters(const struct allocator *a)
{
    return a->pool.clusters + a->pool_next.clusters;
}

static void swap_pools(struct allocator *a)
{
    if (a->pool.clusters || !a->pool_next.clusters)
        return;
    a->pool = a->pool_next;
    a->pool_next = (struct lease){0};
}

bool pool_take_one(struct allocator *a, uint64_t *ret_first, bool *ret_fresh)
{
    swap_pools(a);
    if (lease_take(&a->pool, 1, ret_first, ret_fresh))
        return true;
    a->counts.pool_wanted |= !a->counts.pool_in_pass;
    return false;
}

/* Whoever wants a lease has one at once, while there is something durable to give. */
bool pool_grant(struct allocator *a)
{
    struct counts_machine *m = &a->counts;
    bool any = false;

    while (!list_empty(&m->wanting) && pool_clusters(a) && !control_holds_leases(a)) {
        struct note *note = container_of(m->wanting.head, struct note, node);

        swap_pools(a);
        list_pop(&m->wanting);
        carve(a, MIN(note->clusters_wanted, MAX(LEASE_FLOOR, a->pool.clusters / LEASE_FRACTION)),
              &note->lease);
        counter_add(&a->leases, 1);
        PROBE2(lease, note->shard_index, note->lease.clusters);
        allocator_answer_note(a, note, 0);
        any = true;
    }
    return any;
}

void pool_fill(struct allocator *a, const struct lease *l)
{
    a->counts.reclaim = RECLAIM_NONE;
    *(a->pool.clusters ? &a->pool_next : &a->pool) = *l;
    counter_add(&a->leased, l->clusters);
}

static void refuse_all(struct allocator *a, int status)
{
    struct list_node *n;

    while ((n = list_pop(&a->counts.wanting)))
        allocator_answer_note(a, container_of(n, struct note, node), status);
}

/* ---- filling ---- */

/* How much is made durable ahead at a time. What is left of it by the end is the end of the file. */
uint64_t pool_size(const struct allocator *a)
{
    const uint64_t max = MAX(1u, POOL_BYTES_MAX >> a->layer->header.cluster_bits);

    if (a->counts.frugal)
        return a->image->shard_count;
    return MIN(MIN(max, POOL_MAX), MAX(POOL_MIN, a->refcounts.cursor / POOL_FRACTION));
}

bool pool_is_low(const struct allocator *a)
{
    return !a->pool_next.clusters && a->pool.clusters < MAX(1u, pool_size(a) / 2);
}

/* ---- space that comes back ---- */

static bool reclaims(const struct allocator *a)
{
    return a->counts.reclaim == RECLAIM_COMMIT || a->counts.reclaim == RECLAIM_DRAIN;
}

bool pool_wants(const struct allocator *a)
{
    return (a->counts.pool_wanted || !list_empty(&a->counts.wanting)) && !control_holds_leases(a) &&
           !reclaims(a);
}

static uint64_t commits_over(const struct allocator *a)
{
    return counter_get(&a->commits) + a->commit.failed;
}

static bool is_committed(const struct allocator *a)
{
    return commit_idle(a) && !commit_is_dirty(a) && !a->own_freed.count && !a->commit.freed.count;
}

/* The pool cannot be filled. True: whoever wants of it waits for what is on its way back. */
static bool reclaim(struct allocator *a, int status)
{
    struct counts_machine *m = &a->counts;

    if (status != -ENOSPC || control_holds_commits(a))
        return false;
    if (m->reclaim == RECLAIM_NONE && !(is_committed(a) && freed_idle(a))) {
        m->reclaim = RECLAIM_COMMIT;
        m->reclaim_commits = commits_over(a) + (commit_idle(a) ? 1 : 2); /* the next that begins */
    }
    return reclaims(a);
}

bool pool_step(struct allocator *a)
{
    struct counts_machine *m = &a->counts;

    if (m->reclaim == RECLAIM_COMMIT && (is_committed(a) || commits_over(a) >= m->reclaim_commits)) {
        m->reclaim = RECLAIM_DRAIN;
        m->reclaim_until_ns = env_now_ns(a->image->env) + RECLAIM_NS;
        return true;
    }
    if (m->reclaim == RECLAIM_COMMIT && commit_idle(a) && !control_holds_commits(a) &&
        !atomic_load_explicit(&a->commit.wanted, memory_order_relaxed)) {
        if (!commit_is_dirty(a)) /* or the commit would not take what is freed along */
            allocator_mutate(a);
        atomic_store_explicit(&a->commit.wanted, true, memory_order_relaxed);
        return true;
    }
    if (m->reclaim == RECLAIM_DRAIN && (freed_idle(a) || env_now_ns(a->image->env) >= m->reclaim_until_ns)) {
        m->reclaim = RECLAIM_RETRY;
        return true;
    }
    return false;
}

/* Nothing is left to fill the pool with. */
void pool_refuse(struct allocator *a, int status)
{
    if (reclaim(a, status))
        return;
    a->counts.reclaim = RECLAIM_NONE;
    a->counts.pool_status = status;
    refuse_all(a, status);
}
