/* SPDX-License-Identifier: MIT */
#include "tests/race/stamp_worker.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SKEW_MAX 4096u
#define PATIENCE_MS 60000
#define ROUNDS 50u

static uint64_t below(struct stamp_worker *w, uint64_t limit)
{
    return stamps_random(&w->seed, limit);
}

static void *take_memory(size_t bytes)
{
    void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);

    if (!p) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return p;
}

void stamp_worker_prepare(struct stamp_worker *w)
{
    for (uint32_t i = 0; i < STAMP_TASKS; i++) {
        w->tasks[i].memory = take_memory((size_t)w->sectors_max * STAMP_SECTOR_BYTES + SKEW_MAX);
        w->tasks[i].floor = take_memory(w->sectors_max * sizeof(uint32_t));
    }
    if (w->stamps->in_file)
        w->snapshot = take_memory(w->stamps->layout.sector_count * sizeof(uint32_t));
}

void stamp_worker_free(struct stamp_worker *w)
{
    for (uint32_t i = 0; i < STAMP_TASKS; i++) {
        free(w->tasks[i].memory);
        free(w->tasks[i].floor);
    }
    free(w->snapshot);
}

/* ---- what to do next ---- */

/* The granules that lie wholly in range; the disk's last one, which may be cut off, when range goes to the
 * end. */
static struct stamp_range whole_granules(const struct stamps *s, struct stamp_range range)
{
    const uint32_t granule = s->layout.granule_sectors;
    const uint32_t first = (range.first + granule - 1) / granule * granule;
    uint32_t end = range.first + range.count;

    if (end != atomic_load(&s->sectors_now))
        end = end / granule * granule;
    return (struct stamp_range){first, end > first ? end - first : 0};
}

static bool pick_read(struct stamp_worker *w, struct stamp_task *t)
{
    const uint32_t now = atomic_load(&w->stamps->sectors_now);

    if (below(w, 2)) /* where it writes itself */
        return stamps_pick(w->stamps, w->owner, &w->seed, w->sectors_max, false, &t->range);
    t->range.first = (uint32_t)below(w, below(w, 2) ? now : MIN(now, w->stamps->layout.stripe_sectors));
    t->range.count = 1 + (uint32_t)below(w, MIN(w->sectors_max, now - t->range.first));
    return true;
}

static bool pick_change(struct stamp_worker *w, struct stamp_task *t)
{
    const bool discard = t->kind == TASK_DISCARD;
    const uint32_t most = t->kind == TASK_WRITE && below(w, 4) == 0 ? 1 : w->sectors_max;

    return stamps_pick(w->stamps, w->owner, &w->seed, most, discard, &t->range) &&
           stamps_idle(w->stamps, discard ? whole_granules(w->stamps, t->range) : t->range);
}

static bool pick_task(struct stamp_worker *w, struct stamp_task *t)
{
    static const enum stamp_task_kind kinds[32] = {
        [0 ... 7] = TASK_READ,      [8 ... 24] = TASK_WRITE, [25 ... 27] = TASK_ZERO,
        [28 ... 30] = TASK_DISCARD, [31] = TASK_FLUSH,
    };

    t->kind = kinds[below(w, 32)];
    t->durable = below(w, 24) == 0;
    if (t->kind == TASK_FLUSH)
        return !w->flushing;
    if (t->kind == TASK_READ)
        return pick_read(w, t);
    return pick_change(w, t);
}

/* ---- a request ---- */

static int submit_vectors(struct scow_queue *q, struct stamp_worker *w, struct stamp_task *t)
{
    uint64_t off = (uint64_t)t->range.first * STAMP_SECTOR_BYTES;
    size_t rest = (size_t)t->range.count * STAMP_SECTOR_BYTES;
    uint8_t *at = t->buf;
    int n = 0;

    while (n < STAMP_VECTORS - 1 && rest > 1) {
        size_t len = below(w, 2) ? 4096 * (1 + below(w, 4)) : 1 + below(w, 2000);

        len = MIN(len, rest - 1);
        t->iov[n++] = (struct iovec){at, len};
        at += len;
        rest -= len;
    }
    t->iov[n++] = (struct iovec){at, rest};
    if (t->kind == TASK_READ)
        return scow_queue_readv(q, off, t->iov, n, t, 0);
    return scow_queue_writev(q, off, t->iov, n, t, t->durable ? SCOW_REQ_FUA : 0);
}

/* What has to be on record before the request is. A discard's range shrinks to what it changes. */
static void record_start(struct stamp_worker *w, struct stamp_task *t)
{
    switch (t->kind) {
    case TASK_READ:
        stamps_floor(w->stamps, t->range, t->floor);
        break;
    case TASK_WRITE:
        stamps_issue(w->stamps, t->range, false);
        stamps_fill(w->stamps, t->range, t->buf);
        break;
    case TASK_FLUSH:
        w->flushing = true;
        if (w->snapshot)
            stamps_snapshot(w->stamps, w->snapshot);
        break;
    case TASK_DISCARD:
        t->range = whole_granules(w->stamps, t->range);
        stamps_issue(w->stamps, t->range, true);
        break;
    default:
        stamps_issue(w->stamps, t->range, true);
    }
}

static void submit(struct scow_queue *q, struct stamp_worker *w, struct stamp_task *t)
{
    const uint64_t off = (uint64_t)t->range.first * STAMP_SECTOR_BYTES;
    const uint64_t bytes = (uint64_t)t->range.count * STAMP_SECTOR_BYTES;
    const uint32_t fua = t->durable ? SCOW_REQ_FUA : 0;
    int r;

    t->buf = t->memory + (below(w, 3) ? 0 : below(w, SKEW_MAX / 8) * 8);
    record_start(w, t);
    switch (t->kind) {
    case TASK_FLUSH:
        r = scow_queue_flush(q, t, 0);
        break;
    case TASK_DISCARD:
        r = scow_queue_discard(q, off, bytes, t, fua);
        break;
    case TASK_ZERO:
        r = scow_queue_write_zeroes(q, off, bytes, t, fua | (below(w, 2) ? SCOW_REQ_MAY_UNMAP : 0));
        break;
    default:
        if (below(w, 4) == 0)
            r = submit_vectors(q, w, t);
        else if (t->kind == TASK_READ)
            r = scow_queue_read(q, off, t->buf, bytes, t, 0);
        else
            r = scow_queue_write(q, off, t->buf, bytes, t, fua);
    }
    if (r < 0)
        stamps_fail(w->stamps, "submit: %d %s", r, scow_error());
}

/* A request ended well. checked: its data is there to look at. */
static void record_end(struct stamp_worker *w, struct stamp_task *t, bool checked)
{
    char who[32];

    switch (t->kind) {
    case TASK_READ:
        snprintf(who, sizeof who, "a read by %u", w->owner);
        if (checked)
            stamps_check(w->stamps, t->range, t->floor, t->buf, who);
        break;
    case TASK_FLUSH:
        if (w->snapshot && checked)
            stamps_durable(w->stamps, w->snapshot);
        w->flushing = false;
        break;
    default:
        stamps_ack(w->stamps, t->range, (t->durable || w->writethrough) && checked);
    }
    atomic_fetch_add_explicit(&w->done[t->kind], 1, memory_order_relaxed);
    t->kind = TASK_IDLE;
}

/* ---- a queue ---- */

static bool sleep_on(struct stamp_worker *w, struct scow_queue *q)
{
    struct pollfd p = {.fd = scow_queue_completion_fd(q), .events = POLLIN};
    uint64_t n;

    if (poll(&p, 1, PATIENCE_MS) != 1) {
        stamps_fail(w->stamps, "completion descriptor: not signalled in %d s", PATIENCE_MS / 1000);
        return false;
    }
    (void)!read(p.fd, &n, sizeof n);
    return true;
}

static const char *const kind_names[] = {"idle", "read", "write", "write_zeroes", "discard", "flush"};

static void complain_of_silence(struct stamp_worker *w)
{
    for (uint32_t i = 0; i < STAMP_TASKS; i++)
        if (w->tasks[i].kind != TASK_IDLE)
            fprintf(stderr, "  in flight: %s of sectors %u+%u%s\n", kind_names[w->tasks[i].kind],
                    w->tasks[i].range.first, w->tasks[i].range.count, w->tasks[i].durable ? ", FUA" : "");
    stamps_fail(w->stamps, "queue %u: no completion in %d s", w->owner, PATIENCE_MS / 1000);
}

/* Returns the number of completions. */
static int reap(struct stamp_worker *w, struct scow_queue *q, int min)
{
    struct scow_completion done[STAMP_TASKS];
    const int n = scow_queue_poll(q, done, min, (int)(1 + below(w, STAMP_TASKS)), PATIENCE_MS * 1000000ll);

    if (n < 0)
        stamps_fail(w->stamps, "poll: %d %s", n, scow_error());
    if (n == 0 && min && scow_queue_in_flight(q))
        complain_of_silence(w);
    for (int i = 0; i < n; i++) {
        struct stamp_task *t = done[i].user_data;

        if (done[i].ret)
            stamps_fail(w->stamps, "a %s of sectors %u+%u: %d %s", kind_names[t->kind], t->range.first,
                        t->range.count, done[i].ret, done[i].error);
        record_end(w, t, !done[i].ret);
    }
    return n;
}

static bool turn(struct stamp_worker *w, struct scow_queue *q, bool by_descriptor)
{
    for (uint32_t i = 0; i < STAMP_TASKS; i++) {
        struct stamp_task *t = &w->tasks[i];

        if (t->kind != TASK_IDLE || below(w, 4) == 0)
            continue;
        if (pick_task(w, t))
            submit(q, w, t);
        else
            t->kind = TASK_IDLE;
    }
    if (!by_descriptor)
        return reap(w, q, (int)below(w, 2)) >= 0;
    while (reap(w, q, 0) > 0)
        ;
    return !scow_queue_in_flight(q) || sleep_on(w, q);
}

void stamp_worker_use_queue(struct stamp_worker *w, uint32_t rounds, bool leave_in_flight)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;
    const bool by_descriptor = below(w, 4) == 0;
    struct scow_queue *q;

    o.depth = STAMP_TASKS;
    if (scow_queue_create(w->image, &o, &q) < 0 ||
        (by_descriptor && scow_queue_enable_completion_fd(q, 1) < 0)) {
        stamps_fail(w->stamps, "a queue: %s", scow_error());
        return;
    }
    while (rounds-- && !atomic_load(&w->stamps->stop) && turn(w, q, by_descriptor))
        ;
    while (!leave_in_flight && scow_queue_in_flight(q) && !atomic_load(&w->stamps->failures))
        reap(w, q, 1);
    if (atomic_load(&w->stamps->failures))
        return; /* it may never end; the process does */
    if (scow_queue_destroy(q) < 0)
        stamps_fail(w->stamps, "destroying a queue: %s", scow_error());
    for (uint32_t i = 0; i < STAMP_TASKS; i++)
        if (w->tasks[i].kind != TASK_IDLE)
            record_end(w, &w->tasks[i], false);
    atomic_fetch_add_explicit(&w->queues, 1, memory_order_relaxed);
}

void *stamp_worker_run(void *arg)
{
    struct stamp_worker *w = arg;

    while (!atomic_load(&w->stamps->stop))
        stamp_worker_use_queue(w, ROUNDS + (uint32_t)below(w, 4 * ROUNDS), below(w, 2));
    return NULL;
}

/* ---- without a queue ---- */

static int block_on(struct stamp_worker *w, struct stamp_task *t, uint64_t off, uint64_t bytes)
{
    switch (t->kind) {
    case TASK_READ:
        return scow_pread(w->image, t->buf, bytes, off);
    case TASK_WRITE:
        return scow_pwrite(w->image, t->buf, bytes, off);
    case TASK_ZERO:
        return scow_pwrite_zeroes(w->image, bytes, off, below(w, 2) ? SCOW_REQ_MAY_UNMAP : 0);
    case TASK_DISCARD:
        return scow_pdiscard(w->image, bytes, off);
    default:
        return scow_flush(w->image);
    }
}

void *stamp_worker_run_blocking(void *arg)
{
    struct stamp_worker *w = arg;
    struct stamp_task *t = &w->tasks[0];

    while (!atomic_load(&w->stamps->stop)) {
        uint64_t off, bytes;
        int r;

        if (!pick_task(w, t))
            continue;
        t->durable = false;
        off = (uint64_t)t->range.first * STAMP_SECTOR_BYTES;
        bytes = (uint64_t)t->range.count * STAMP_SECTOR_BYTES;
        t->buf = t->memory + (below(w, 3) ? 0 : below(w, SKEW_MAX / 8) * 8);
        record_start(w, t);
        r = block_on(w, t, off, bytes);
        if (r < 0)
            stamps_fail(w->stamps, "a blocking %s: %d %s", kind_names[t->kind], r, scow_error());
        record_end(w, t, r == 0);
    }
    t->kind = TASK_IDLE;
    return NULL;
}
