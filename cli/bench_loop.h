/* SPDX-License-Identifier: MIT */
/*
 * The loop that is measured, once for images and once for raw files. It is inlined into both with its three
 * calls resolved, so that the two sides pay exactly the same for offsets, clock and histogram.
 *
 * One clock read per batch of completions stamps the completions of that batch and the requests submitted in
 * answer to them. Latencies therefore run from the hand-over of a request to the return of the call that
 * delivered it, waiting for the rest of its batch included.
 */
#ifndef CLI_BENCH_LOOP_H
#define CLI_BENCH_LOOP_H

#include "cli/bench_order.h"
#include "cli/bench_run.h"
#include "cli/random_xoshiro.h"

#include <errno.h>
#include <stdatomic.h>
#include <time.h>

/* Shared by the threads of one run. Plain fields are written before the threads start or, start_ns, before
 * the gate opens; failed is written by any worker and read by all. */
struct bench_shared {
    const struct bench_plan *plan;
    const struct bench_target *target;
    uint32_t queue_count;
    uint64_t start_ns;
    atomic_bool failed;
    atomic_uint ended_count; /* workers whose loop is over; any of them writes */
};

struct bench_worker {
    struct bench_shared *shared;
    uint32_t index;

    /* What to ask for next. */
    struct random_xoshiro random;
    uint64_t region_block, region_count; /* sequential: this thread's part of the range, in steps */
    uint64_t cursor;
    struct bench_order order; /* random, each offset once */
    uint32_t unflushed;       /* writes since the last flush */

    /* One per request in flight. */
    uint8_t *buffers;
    uint64_t *submit_ns;
    uint8_t *kinds; /* enum bench_kind */
    uint32_t *done;

    struct histogram latency[BENCH_KIND_COUNT];
    uint64_t begin_ns, end_ns, begin_cpu_ns, end_cpu_ns;
    struct scow_counters begin_counters, end_counters;

    int err; /* first failure: negative errno */
    char error[256];
};

struct bench_io {
    /* Hands over a read or write of the plan's block at guest_off with the slot's buffer, or a flush, as the
     * worker's kinds[slot] says. 0 or a negative errno. */
    int (*submit)(void *ctx, uint32_t slot, uint64_t guest_off);
    /* Waits for at least one completion; the slots that are free again, depth at most. Failed requests are
     * free again too and are noted in the worker; a negative errno means that nothing can complete any more.
     */
    int (*wait)(void *ctx, uint32_t *ret_slots);
    /* May be NULL. */
    void (*counters)(void *ctx, struct scow_counters *ret);
};

/* The worker's thread is set up: waits until all are and the run starts. False: the run is off. */
bool bench_worker_ready(struct bench_worker *worker);

/* Notes the worker's first failure and stops the run. Returns err. */
int bench_worker_fail(struct bench_worker *worker, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* CPU time that the calling thread has used. */
uint64_t bench_thread_cpu_ns(void);

static inline uint64_t bench_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint8_t *bench_buffer(const struct bench_worker *w, uint32_t slot)
{
    return w->buffers + (uint64_t)slot * w->shared->plan->block_bytes;
}

/* The next offset of a run that only reads, again and again: all kinds stay BENCH_KIND_READ. */
static inline uint64_t bench_next_read(struct bench_worker *w)
{
    const struct bench_plan *const plan = w->shared->plan;
    uint64_t block;
    if (plan->pattern == BENCH_RANDREAD) {
        block = random_xoshiro_below(&w->random, w->region_count);
    } else {
        block = w->region_block + w->cursor;
        w->cursor = w->cursor + 1 < w->region_count ? w->cursor + 1 : 0;
    }
    return block * plan->step_bytes;
}

/* Settles the slot's next request: its kind in the worker, its offset here. False: there is none left. */
static inline bool bench_next(struct bench_worker *w, uint32_t slot, uint64_t *ret_off)
{
    const struct bench_plan *const plan = w->shared->plan;
    uint64_t block;
    if (plan->flush_every && w->unflushed >= plan->flush_every) {
        w->unflushed = 0;
        w->kinds[slot] = BENCH_KIND_FLUSH;
        *ret_off = 0;
        return true;
    }
    if (plan->once && w->cursor >= w->region_count)
        return false;
    if (!bench_is_random(plan->pattern)) {
        block = w->region_block + w->cursor++;
        if (!plan->once && w->cursor >= w->region_count)
            w->cursor = 0;
    } else if (plan->once) {
        block = bench_order_at(&w->order, w->region_block + w->cursor++ * w->shared->queue_count);
    } else {
        block = random_xoshiro_below(&w->random, w->region_count);
    }
    w->kinds[slot] = BENCH_KIND_READ;
    if (plan->read_percent < 100 && random_xoshiro_below(&w->random, 100) >= plan->read_percent) {
        w->kinds[slot] = BENCH_KIND_WRITE;
        w->unflushed++;
    }
    *ret_off = block * plan->step_bytes;
    return true;
}

static inline void bench_measure_begin(struct bench_worker *w, const struct bench_io *io, void *ctx)
{
    for (int kind = 0; kind < BENCH_KIND_COUNT; kind++)
        histogram_reset(&w->latency[kind]);
    if (io->counters)
        io->counters(ctx, &w->begin_counters);
    w->begin_cpu_ns = bench_thread_cpu_ns();
    w->begin_ns = bench_clock_ns();
}

static inline void bench_measure_end(struct bench_worker *w, const struct bench_io *io, void *ctx)
{
    w->end_ns = bench_clock_ns();
    w->end_cpu_ns = bench_thread_cpu_ns();
    if (io->counters)
        io->counters(ctx, &w->end_counters);
}

static inline __attribute__((always_inline)) bool bench_submit(struct bench_worker *w,
                                                               const struct bench_io *io, void *ctx,
                                                               uint32_t slot, uint64_t now, bool reads)
{
    uint64_t off;
    w->submit_ns[slot] = now;
    if (reads)
        off = bench_next_read(w);
    else if (!bench_next(w, slot, &off))
        return false;
    return io->submit(ctx, slot, off) == 0;
}

/* reads is a constant: a run that only reads does not pay for what the others need. */
static inline __attribute__((always_inline)) void bench_loop_of(struct bench_worker *w,
                                                                const struct bench_io *io, void *ctx,
                                                                const bool reads)
{
    const struct bench_plan *const plan = w->shared->plan;
    const uint64_t warm_ns = w->shared->start_ns + plan->warmup_ns;
    uint64_t now = bench_clock_ns();
    uint64_t limit_ns = warm_ns;
    bool measuring = plan->warmup_ns == 0;
    uint32_t in_flight = 0;

    if (measuring) {
        bench_measure_begin(w, io, ctx);
        now = w->begin_ns;
        limit_ns = now + plan->measure_ns;
    }
    for (uint32_t slot = 0; slot < plan->depth && !w->err; slot++)
        in_flight += bench_submit(w, io, ctx, slot, now, reads);
    while (!w->err && in_flight > 0) {
        const int n = io->wait(ctx, w->done);
        if (n < 0)
            return;
        in_flight -= (uint32_t)n;
        now = bench_clock_ns();
        for (int i = 0; i < n; i++)
            histogram_record(&w->latency[reads ? BENCH_KIND_READ : w->kinds[w->done[i]]],
                             now - w->submit_ns[w->done[i]]);
        if (now >= limit_ns) {
            if (measuring)
                break;
            measuring = true;
            bench_measure_begin(w, io, ctx);
            now = w->begin_ns;
            /* All queues end at once. One that begins very late, because its requests take longer than the
             * run, is given its time all the same: the rest would say nothing. */
            limit_ns = (now - warm_ns < plan->measure_ns / 2 ? warm_ns : now) + plan->measure_ns;
        }
        if (atomic_load_explicit(&w->shared->failed, memory_order_relaxed))
            break;
        for (int i = 0; i < n && !w->err; i++)
            in_flight += bench_submit(w, io, ctx, w->done[i], now, reads);
    }
    if (!measuring && !w->err && in_flight == 0)
        bench_worker_fail(w, -ENODATA, "the offsets were used up before the time to be measured began");
    if (measuring && !w->err)
        bench_measure_end(w, io, ctx);
    while (in_flight > 0) {
        const int n = io->wait(ctx, w->done);
        if (n < 0)
            return;
        in_flight -= (uint32_t)n;
    }
}

/* Returns when the time is over, the offsets are used up or something failed (worker->err), with nothing in
 * flight unless the backend itself failed. */
static inline __attribute__((always_inline)) void bench_loop(struct bench_worker *w,
                                                             const struct bench_io *io, void *ctx)
{
    if (bench_writes(w->shared->plan->pattern))
        bench_loop_of(w, io, ctx, false);
    else
        bench_loop_of(w, io, ctx, true);
}

#endif
