/* SPDX-License-Identifier: MIT */
#include "exports/blk_worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* Requests in flight on the engine's queue; more wait. */
#define ENGINE_DEPTH 1024u
/* Completions before others get their turn. */
#define REAP_BATCH 64
/* Requests of one virtqueue before the ring is entered and others get their turn. On storage that answers at
 * once the guest gets the first answers while the rest is worked on, and has new requests when that is done.
 */
#define SERVE_BATCH 16u
/* A virtqueue without a descriptor for kicks is looked at so often. */
#define NO_KICK_NS 50000

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* ---- calls of the main thread ---- */

void blk_worker_call(struct blk_worker *w, void (*call)(void *arg), void *arg)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&w->lock);
    w->call = call;
    w->call_arg = arg;
    atomic_store_explicit(&w->called, true, memory_order_release);
    (void)!write(w->bell, &one, sizeof one);
    while (atomic_load_explicit(&w->called, memory_order_relaxed))
        pthread_cond_wait(&w->answered, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

static void answer_call(struct blk_worker *w)
{
    uint64_t count;

    if (!atomic_load_explicit(&w->called, memory_order_acquire))
        return;
    (void)!read(w->bell, &count, sizeof count);
    pthread_mutex_lock(&w->lock);
    w->call(w->call_arg);
    atomic_store_explicit(&w->called, false, memory_order_relaxed);
    pthread_cond_signal(&w->answered);
    pthread_mutex_unlock(&w->lock);
}

/* ---- serving ---- */

/* The engine's queue has failed: nothing moves on it any more. What it has may still write to memory. */
static void fail(struct blk_worker *w, const char *why)
{
    char text[256];

    if (w->failed)
        return;
    w->failed = true;
    snprintf(text, sizeof text, "the disk answers no more: %.200s", why);
    w->device->log(w->device->log_ctx, text);
}

static void kicked(struct blk_worker *w, struct blk_queue *q, int ret)
{
    blk_count(&q->counts.kicks, 1);
    if (ret < 0) /* no event: the ring is looked at now and then */
        (void)blk_worker_set_kick(w, q, -1);
}

/* Completions of the engine's, at least min of them or kicks or the bell. Returns whether anything came. */
static bool poll_engine(struct blk_worker *w, int min, int64_t timeout_ns)
{
    struct scow_completion c[REAP_BATCH];
    const int n = scow_queue_poll(w->engine, c, min, REAP_BATCH, timeout_ns);
    const uint64_t now = n > 0 && w->device->stats ? now_ns() : 0;

    if (n < 0)
        fail(w, scow_error());
    for (int i = 0; i < n; i++) {
        if (!c[i].user_data) { /* the bell: answer_call() looks for itself */
            if (c[i].ret < 0)
                fail(w, c[i].error);
            continue;
        }
        if (((uintptr_t)c[i].user_data & 1) == 0)
            blk_queue_completed(c[i].user_data, &c[i], now);
        else
            kicked(w, (struct blk_queue *)((uintptr_t)c[i].user_data - 1), c[i].ret);
    }
    return n > 0;
}

static void notify_guest(struct blk_worker *w)
{
    for (uint32_t i = 0; i < w->queue_count; i++)
        if (w->queues[i]->has_rings)
            blk_queue_notify(w->queues[i]);
}

static bool serve_queues(struct blk_worker *w)
{
    const uint64_t now = w->device->stats ? now_ns() : 0;
    bool any = false;

    for (uint32_t i = 0; i < w->queue_count; i++) {
        struct blk_queue *const q = w->queues[i];

        if (q->stalled)
            blk_queue_retry(q, now);
        if (blk_queue_runs(q))
            any |= blk_queue_serve(q, SERVE_BATCH, now);
    }
    return any;
}

static void want_kicks(struct blk_worker *w, bool want)
{
    for (uint32_t i = 0; i < w->queue_count; i++)
        if (blk_queue_runs(w->queues[i]))
            virtqueue_want_kicks(&w->queues[i]->ring, want);
}

static bool has_work(const struct blk_worker *w)
{
    for (uint32_t i = 0; i < w->queue_count; i++)
        if (blk_queue_can_serve(w->queues[i]) && virtqueue_has_work(&w->queues[i]->ring))
            return true;
    return atomic_load_explicit(&w->called, memory_order_acquire);
}

static int64_t sleep_ns(const struct blk_worker *w)
{
    for (uint32_t i = 0; i < w->queue_count; i++) {
        const struct blk_queue *const q = w->queues[i];

        if (q->stalled || (blk_queue_runs(q) && q->ring.kick_fd < 0 && !q->ring.broken))
            return NO_KICK_NS;
    }
    return SCOW_WAIT_FOREVER;
}

/* Sleep until something happens. The guest is asked to kick first, and looked at once more behind that. */
static void sleep_on(struct blk_worker *w)
{
    want_kicks(w, true);
    if (!has_work(w))
        (void)poll_engine(w, 1, sleep_ns(w));
    want_kicks(w, false);
}

/* Busy until then: true when something came. */
static bool spin(struct blk_worker *w, uint64_t end)
{
    do {
        if (has_work(w) || poll_engine(w, 0, 0))
            return true;
    } while (now_ns() < end);
    return false;
}

static void rest(struct blk_worker *w)
{
    const bool polled = poll_pace_pays(&w->poll_pace);
    const uint64_t start = w->poll_pace.limit_ns ? now_ns() : 0;

    if (!polled || !spin(w, start + w->poll_pace.limit_ns))
        sleep_on(w);
    if (w->poll_pace.limit_ns)
        poll_pace_add(&w->poll_pace, now_ns() - start, polled);
}

/* All that a failed worker still does. */
static void wait_for_call(struct blk_worker *w)
{
    struct pollfd p = {.fd = w->bell, .events = POLLIN};

    (void)poll(&p, 1, -1);
    answer_call(w);
}

static void *worker_main(void *arg)
{
    struct blk_worker *const w = arg;

    if (scow_queue_watch(w->engine, w->bell, NULL) < 0)
        fail(w, scow_error());
    while (!w->stop) {
        bool any;

        if (w->failed) {
            wait_for_call(w);
            continue;
        }
        any = serve_queues(w);
        answer_call(w);
        if (w->stop)
            break;
        notify_guest(w);
        /* Resting submits what was served: one system call for that and for the wait. */
        if (any && has_work(w))
            (void)poll_engine(w, 0, 0);
        else
            rest(w);
        notify_guest(w);
    }
    (void)scow_queue_destroy(w->engine);
    w->engine = NULL;
    return NULL;
}

/* ---- in calls ---- */

void blk_worker_drain(struct blk_worker *w)
{
    bool busy;

    do {
        busy = false;
        for (uint32_t i = 0; i < w->queue_count; i++) {
            if (w->queues[i]->stalled)
                blk_queue_retry(w->queues[i], now_ns());
            busy |= w->queues[i]->ring.in_flight;
        }
        if (busy)
            (void)poll_engine(w, scow_queue_in_flight(w->engine) ? 1 : 0, NO_KICK_NS);
    } while (busy && !w->failed);
    notify_guest(w);
}

int blk_worker_set_kick(struct blk_worker *w, struct blk_queue *q, int fd)
{
    int r = 0;

    if (q->ring.kick_fd >= 0) {
        (void)scow_queue_unwatch(w->engine, q->ring.kick_fd);
        close(q->ring.kick_fd);
    }
    q->ring.kick_fd = -1;
    if (fd >= 0)
        r = scow_queue_watch(w->engine, fd, (void *)((uintptr_t)q + 1));
    if (fd >= 0 && r < 0)
        close(fd);
    else
        q->ring.kick_fd = fd;
    return r;
}

static void pin(struct blk_worker *w, const struct guest_region *r)
{
    char text[256];

    if (scow_queue_add_memory(w->engine, r->memory, r->bytes) == 0)
        return;
    snprintf(text, sizeof text, "serving goes on with memory that is not pinned: %.180s", scow_error());
    w->device->log(w->device->log_ctx, text);
}

void blk_worker_change_memory(struct blk_worker *w, const struct guest_memory *from,
                              const struct guest_memory *to)
{
    if (!w->device->pin_memory)
        return;
    for (uint32_t i = 0; from && i < from->count; i++)
        if (!guest_memory_has(to, &from->regions[i]))
            (void)scow_queue_remove_memory(w->engine, from->regions[i].memory, from->regions[i].bytes);
    for (uint32_t i = 0; to && i < to->count; i++)
        if (!guest_memory_has(from, &to->regions[i]))
            pin(w, &to->regions[i]);
}

/* ---- start and stop ---- */

static int start_thread(struct blk_worker *w, uint32_t index)
{
    sigset_t all, old;
    char name[16];
    int err;

    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err)
        return -err;
    w->has_thread = true;
    snprintf(name, sizeof name, "blk-%u", index);
    pthread_setname_np(w->thread, name);
    return 0;
}

int blk_worker_start(struct blk_worker *w, struct blk_device *device, struct blk_queue **queues,
                     uint32_t queue_count, uint64_t poll_ns, uint32_t index)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;
    int r;

    *w = (struct blk_worker){.queues = queues,
                             .queue_count = queue_count,
                             .device = device,
                             .bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    poll_pace_init(&w->poll_pace, poll_ns);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->answered, NULL);
    if (w->bell < 0)
        return -errno;
    o.depth = ENGINE_DEPTH;
    r = scow_queue_create(device->image, &o, &w->engine);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < queue_count; i++)
        queues[i]->engine = w->engine;
    return start_thread(w, index);
}

static void stop_worker(void *arg)
{
    struct blk_worker *const w = arg;

    w->stop = true;
}

void blk_worker_stop(struct blk_worker *w)
{
    if (!w->queues) /* never started */
        return;
    if (w->has_thread) {
        blk_worker_call(w, stop_worker, w);
        pthread_join(w->thread, NULL);
    }
    (void)scow_queue_destroy(w->engine); /* the thread's, if it never ran */
    if (w->bell >= 0)
        close(w->bell);
    pthread_cond_destroy(&w->answered);
    pthread_mutex_destroy(&w->lock);
    free(w->queues);
    *w = (struct blk_worker){.bell = -1};
}
