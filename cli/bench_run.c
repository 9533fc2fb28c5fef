/* SPDX-License-Identifier: MIT */
#include "cli/bench_run.h"
#include "cli/bench_loop.h"
#include "cli/command.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

/* ---- the start: all threads set up first, then run at once ---- */

enum gate_state { GATE_SHUT, GATE_OPEN, GATE_CANCELLED };

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t ready_count;
    enum gate_state state;
} gate = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

bool bench_worker_ready(struct bench_worker *worker)
{
    (void)worker;
    pthread_mutex_lock(&gate.mutex);
    gate.ready_count++;
    pthread_cond_broadcast(&gate.changed);
    while (gate.state == GATE_SHUT)
        pthread_cond_wait(&gate.changed, &gate.mutex);
    const bool go = gate.state == GATE_OPEN;
    pthread_mutex_unlock(&gate.mutex);
    return go;
}

static void gate_reset(void)
{
    gate.ready_count = 0;
    gate.state = GATE_SHUT;
}

/* Waits until count threads are ready and lets them go, or not when one of them or cancel says so. */
static bool gate_release(struct bench_shared *shared, uint32_t count, bool cancel)
{
    pthread_mutex_lock(&gate.mutex);
    while (gate.ready_count < count)
        pthread_cond_wait(&gate.changed, &gate.mutex);
    shared->start_ns = bench_clock_ns();
    const bool go = !cancel && !atomic_load(&shared->failed);
    gate.state = go ? GATE_OPEN : GATE_CANCELLED;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.mutex);
    return go;
}

/* ---- what a worker uses ---- */

int bench_worker_fail(struct bench_worker *worker, int err, const char *fmt, ...)
{
    if (!worker->err) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(worker->error, sizeof(worker->error), fmt, args);
        va_end(args);
        worker->err = err;
        atomic_store(&worker->shared->failed, true);
    }
    return err;
}

static uint64_t timeval_ns(const struct timeval *t)
{
    return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_usec * 1000u;
}

static uint64_t cpu_ns(int who)
{
    struct rusage usage = {0};
    getrusage(who, &usage);
    return timeval_ns(&usage.ru_utime) + timeval_ns(&usage.ru_stime);
}

uint64_t bench_thread_cpu_ns(void)
{
    return cpu_ns(RUSAGE_THREAD);
}

static size_t buffers_bytes(const struct bench_plan *plan)
{
    return (size_t)plan->depth * plan->block_bytes;
}

static int worker_init(struct bench_worker *w, struct bench_shared *shared, uint32_t index)
{
    const struct bench_plan *const plan = shared->plan;
    const uint64_t step_count = bench_step_count(plan);
    *w = (struct bench_worker){.shared = shared, .index = index, .region_count = step_count};
    for (int kind = 0; kind < BENCH_KIND_COUNT; kind++)
        histogram_reset(&w->latency[kind]);
    w->begin_counters = w->end_counters = (struct scow_counters)SCOW_COUNTERS_INIT;
    random_xoshiro_seed(&w->random, plan->seed, index);
    if (!bench_is_random(plan->pattern)) {
        w->region_count = step_count / shared->queue_count;
        w->region_block = w->region_count * index;
    } else if (plan->once) {
        /* The queues take turns in one order. */
        w->order = bench_order_create(step_count, plan->seed);
        w->region_count = (step_count - index + shared->queue_count - 1) / shared->queue_count;
        w->region_block = index;
    }
    w->submit_ns = calloc(plan->depth, sizeof(*w->submit_ns));
    w->kinds = calloc(plan->depth, sizeof(*w->kinds));
    w->done = calloc(plan->depth, sizeof(*w->done));
    /* Touched now, so that no page fault falls into the measured time. */
    void *const buffers = mmap(NULL, buffers_bytes(plan), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    w->buffers = buffers == MAP_FAILED ? NULL : buffers;
    if (!w->submit_ns || !w->kinds || !w->done || !w->buffers)
        return -ENOMEM;
    /* What is written is neither zeros nor the same everywhere. */
    for (size_t i = 0; bench_writes(plan->pattern) && i < buffers_bytes(plan); i += sizeof(uint64_t)) {
        const uint64_t word = random_xoshiro_next(&w->random);
        memcpy(w->buffers + i, &word, sizeof(word));
    }
    return 0;
}

static void worker_destroy(struct bench_worker *w)
{
    if (w->buffers)
        munmap(w->buffers, buffers_bytes(w->shared->plan));
    free(w->submit_ns);
    free(w->kinds);
    free(w->done);
}

/* Onto the index-th of the CPUs that the process may use. */
static void worker_pin(struct bench_worker *w)
{
    cpu_set_t allowed;
    const int count = sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
    int place = count ? (int)(w->index % (uint32_t)count) : 0;
    for (int cpu = 0; count && cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || place-- > 0)
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (pthread_setaffinity_np(pthread_self(), sizeof(one), &one) != 0)
            bench_worker_fail(w, -EINVAL, "cannot pin a thread to CPU %d", cpu);
        return;
    }
    bench_worker_fail(w, -EINVAL, "cannot tell which CPUs may be used for --pin");
}

/* ---- the loop on an image ---- */

struct image_io {
    struct bench_worker *worker;
    struct scow_queue *queue;
    uint32_t block_bytes;
    struct scow_completion *completions; /* depth of them */
};

static int image_submit(void *ctx, uint32_t slot, uint64_t guest_off)
{
    struct image_io *const io = ctx;
    void *const buf = bench_buffer(io->worker, slot), *const user_data = (void *)(uintptr_t)slot;
    const uint8_t kind = io->worker->kinds[slot];
    int err;
    if (__builtin_expect(kind == BENCH_KIND_READ, 1))
        err = scow_queue_read(io->queue, guest_off, buf, io->block_bytes, user_data, 0);
    else if (kind == BENCH_KIND_WRITE)
        err = scow_queue_write(io->queue, guest_off, buf, io->block_bytes, user_data, 0);
    else
        err = scow_queue_flush(io->queue, user_data, 0);
    if (__builtin_expect(err < 0, 0))
        return bench_worker_fail(io->worker, err, "%s", scow_error());
    return 0;
}

static int image_wait(void *ctx, uint32_t *ret_slots)
{
    struct image_io *const io = ctx;
    const int depth = (int)io->worker->shared->plan->depth;
    const int n = scow_queue_poll(io->queue, io->completions, 1, depth, SCOW_WAIT_FOREVER);
    if (__builtin_expect(n <= 0, 0))
        return n < 0 ? bench_worker_fail(io->worker, n, "%s", scow_error())
                     : bench_worker_fail(io->worker, -EIO, "the queue returned without a completion");
    for (int i = 0; i < n; i++) {
        const struct scow_completion *const c = &io->completions[i];
        if (__builtin_expect(c->ret < 0, 0))
            bench_worker_fail(io->worker, c->ret, "%s", c->error ? c->error : strerror(-c->ret));
        ret_slots[i] = (uint32_t)(uintptr_t)c->user_data;
    }
    return n;
}

static void image_counters(void *ctx, struct scow_counters *ret)
{
    scow_queue_counters(((struct image_io *)ctx)->queue, ret);
}

static const struct bench_io image_io_calls = {
    .submit = image_submit, .wait = image_wait, .counters = image_counters};

static void image_work(struct bench_worker *w, struct scow_image *image)
{
    const struct bench_plan *const plan = w->shared->plan;
    struct image_io io = {.worker = w, .block_bytes = plan->block_bytes};
    struct scow_queue_options options = SCOW_QUEUE_OPTIONS_INIT;
    options.depth = plan->depth;
    const int err = scow_queue_create(image, &options, &io.queue);
    if (err < 0)
        bench_worker_fail(w, err, "%s", scow_error());
    io.completions = calloc(plan->depth, sizeof(*io.completions));
    if (!io.completions)
        bench_worker_fail(w, -ENOMEM, "out of memory");
    if (bench_worker_ready(w))
        bench_loop(w, &image_io_calls, &io);
    scow_queue_destroy(io.queue);
    free(io.completions);
}

/* ---- a run ---- */

static void *worker_main(void *arg)
{
    struct bench_worker *const w = arg;
    if (w->shared->plan->pin)
        worker_pin(w);
    if (w->shared->target->image)
        image_work(w, w->shared->target->image);
    else
        bench_raw_work(w, w->shared->target->raw);
    atomic_fetch_add(&w->shared->ended_count, 1);
    return NULL;
}

/* Until the clock says ns, or the run has failed or come to its end. */
static void sleep_until(const struct bench_shared *shared, uint64_t ns)
{
    const uint64_t step_ns = 20000000; /* how late a failure may be seen */
    while (!atomic_load(&shared->failed) && atomic_load(&shared->ended_count) < shared->queue_count) {
        const uint64_t now = bench_clock_ns();
        if (now >= ns)
            return;
        const uint64_t left_ns = ns - now < step_ns ? ns - now : step_ns;
        nanosleep(&(struct timespec){.tv_nsec = (long)left_ns}, NULL);
    }
}

/* Adds what happened between before and after. */
static void counters_add(struct scow_counters *sum, const struct scow_counters *before,
                         const struct scow_counters *after)
{
    sum->requests += after->requests - before->requests;
    sum->bytes += after->bytes - before->bytes;
    sum->hits += after->hits - before->hits;
    sum->misses += after->misses - before->misses;
    sum->zeros += after->zeros - before->zeros;
    sum->backing += after->backing - before->backing;
    sum->inflates += after->inflates - before->inflates;
    sum->inflate_hits += after->inflate_hits - before->inflate_hits;
    sum->bounces += after->bounces - before->bounces;
    sum->ios += after->ios - before->ios;
    sum->starved += after->starved - before->starved;
    sum->slice_loads += after->slice_loads - before->slice_loads;
    sum->slice_coalesced += after->slice_coalesced - before->slice_coalesced;
    sum->slice_evictions += after->slice_evictions - before->slice_evictions;
    sum->writes_in_place += after->writes_in_place - before->writes_in_place;
    sum->writes_at_shard += after->writes_at_shard - before->writes_at_shard;
    sum->flushes_alone += after->flushes_alone - before->flushes_alone;
    sum->flushes_joined += after->flushes_joined - before->flushes_joined;
    sum->clusters_allocated += after->clusters_allocated - before->clusters_allocated;
    sum->cow_bytes += after->cow_bytes - before->cow_bytes;
    sum->commits += after->commits - before->commits;
    sum->syncs += after->syncs - before->syncs;
    sum->slice_writes += after->slice_writes - before->slice_writes;
    sum->leases += after->leases - before->leases;
}

/* Reads and writes that ended in the measured time. */
static uint64_t worker_ops(const struct bench_worker *w)
{
    return w->latency[BENCH_KIND_READ].count + w->latency[BENCH_KIND_WRITE].count;
}

/* One window for all queues: with more threads than CPUs a thread may begin late, and its rate in what is
 * left for it is not a rate that it shares the machine at. */
static void collect(struct bench_result *r, const struct bench_worker *workers, uint32_t block_bytes)
{
    uint64_t begin_ns = UINT64_MAX, end_ns = 0;
    for (uint32_t i = 0; i < r->queue_count; i++) {
        const struct bench_worker *const w = &workers[i];
        begin_ns = w->begin_ns < begin_ns ? w->begin_ns : begin_ns;
        end_ns = w->end_ns > end_ns ? w->end_ns : end_ns;
        r->ops += worker_ops(w);
        r->queue_cpu_ns += w->end_cpu_ns - w->begin_cpu_ns;
        for (int kind = 0; kind < BENCH_KIND_COUNT; kind++)
            histogram_merge(&r->latency[kind], &w->latency[kind]);
        counters_add(&r->counters, &w->begin_counters, &w->end_counters);
    }
    r->seconds = (double)(end_ns - begin_ns) / 1e9;
    for (uint32_t i = 0; i < r->queue_count; i++)
        r->queue_iops[i] = (double)worker_ops(&workers[i]) / r->seconds;
    r->iops = (double)r->ops / r->seconds;
    r->bytes = r->ops * block_bytes;
}

/* Watches over the run from outside: what the whole process and the shards did in the measured time. */
static void watch(const struct bench_shared *shared, struct bench_result *r)
{
    struct scow_image *const image = shared->target->image;
    struct scow_counters before = SCOW_COUNTERS_INIT, after = SCOW_COUNTERS_INIT;
    const uint64_t warm_ns = shared->start_ns + shared->plan->warmup_ns;
    sleep_until(shared, warm_ns);
    if (image)
        scow_counters(image, &before);
    const uint64_t begin_cpu_ns = cpu_ns(RUSAGE_SELF);
    sleep_until(shared, warm_ns + shared->plan->measure_ns);
    r->process_cpu_ns = cpu_ns(RUSAGE_SELF) - begin_cpu_ns;
    if (image)
        scow_counters(image, &after);
    /* The queues' own counts are added by collect(), from each queue's exact window. */
    r->counters.slice_loads = after.slice_loads - before.slice_loads;
    r->counters.slice_coalesced = after.slice_coalesced - before.slice_coalesced;
    r->counters.slice_evictions = after.slice_evictions - before.slice_evictions;
    r->counters.clusters_allocated = after.clusters_allocated - before.clusters_allocated;
    r->counters.cow_bytes = after.cow_bytes - before.cow_bytes;
    r->counters.commits = after.commits - before.commits;
    r->counters.syncs = after.syncs - before.syncs;
    r->counters.slice_writes = after.slice_writes - before.slice_writes;
    r->counters.leases = after.leases - before.leases;
}

/* 0, or the first error that stopped the run. */
static int run_threads(struct bench_shared *shared, struct bench_worker *workers, pthread_t *threads,
                       struct bench_result *r)
{
    uint32_t started = 0;
    int err = 0;
    gate_reset();
    while (started < shared->queue_count && err == 0) {
        err = -pthread_create(&threads[started], NULL, worker_main, &workers[started]);
        if (err == 0)
            started++;
    }
    if (gate_release(shared, started, err < 0))
        watch(shared, r);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    if (err < 0)
        command_error(shared->target->path, "cannot start thread %u: %s", started, strerror(-err));
    for (uint32_t i = 0; i < started && err == 0; i++) {
        if (workers[i].err) {
            err = workers[i].err;
            command_error(shared->target->path, "%s", workers[i].error);
        }
    }
    return err;
}

int bench_run(const struct bench_plan *plan, const struct bench_target *target, uint32_t queue_count,
              struct bench_result *ret_result)
{
    struct bench_plan effective = *plan;
    if (!target->image && target->raw->threads)
        effective.depth = 1;
    struct bench_shared shared = {.plan = &effective, .target = target, .queue_count = queue_count};
    struct bench_worker *const workers = calloc(queue_count, sizeof(*workers));
    pthread_t *const threads = calloc(queue_count, sizeof(*threads));
    struct bench_result r = {.queue_count = queue_count, .counters = SCOW_COUNTERS_INIT};
    r.queue_iops = calloc(queue_count, sizeof(*r.queue_iops));
    for (int kind = 0; kind < BENCH_KIND_COUNT; kind++)
        histogram_reset(&r.latency[kind]);

    uint32_t initialised = 0;
    int err = workers && threads && r.queue_iops ? 0 : -ENOMEM;
    while (err == 0 && initialised < queue_count) {
        err = worker_init(&workers[initialised], &shared, initialised);
        initialised++;
    }
    if (err < 0)
        command_error(target->path, "out of memory for %u queues of %u buffers", queue_count,
                      effective.depth);
    else
        err = run_threads(&shared, workers, threads, &r);
    if (err == 0) {
        collect(&r, workers, effective.block_bytes);
        *ret_result = r;
    } else {
        bench_result_destroy(&r);
    }
    while (initialised > 0)
        worker_destroy(&workers[--initialised]);
    free(workers);
    free(threads);
    return err;
}

void bench_result_add(struct bench_result *sum, const struct bench_result *more)
{
    const double share = more->seconds / (sum->seconds + more->seconds);
    for (uint32_t i = 0; i < sum->queue_count && i < more->queue_count; i++)
        sum->queue_iops[i] += (more->queue_iops[i] - sum->queue_iops[i]) * share;
    sum->iops += (more->iops - sum->iops) * share;
    sum->seconds += more->seconds;
    sum->ops += more->ops;
    sum->bytes += more->bytes;
    sum->queue_cpu_ns += more->queue_cpu_ns;
    sum->process_cpu_ns += more->process_cpu_ns;
    for (int kind = 0; kind < BENCH_KIND_COUNT; kind++)
        histogram_merge(&sum->latency[kind], &more->latency[kind]);

    const struct scow_counters none = SCOW_COUNTERS_INIT;
    counters_add(&sum->counters, &none, &more->counters);
}

void bench_result_destroy(struct bench_result *result)
{
    free(result->queue_iops);
    result->queue_iops = NULL;
}
