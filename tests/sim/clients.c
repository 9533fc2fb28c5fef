/* SPDX-License-Identifier: MIT */
/* The clients: each submits to its queue and polls it when the scheduler lets it, and the oracle judges. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "engine/queue.h"
#include "tests/sim/world.h"

static bool is_write(const struct op *op)
{
    return op->kind == OP_WRITE || op->kind == OP_DISCARD || op->kind == OP_ZERO;
}

static struct sim_backend *backend_of(const struct client *c)
{
    return container_of(c->queue->loop.backend, struct sim_backend, base);
}

/* ---- ops ---- */

static uint64_t below(uint64_t *rng, uint64_t limit)
{
    uint64_t x = *rng;

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *rng = x;
    return (x * 0x2545f4914f6cdd1du >> 20) % limit;
}

static void draw_range(const struct world *w, uint64_t *rng, struct op *op)
{
    const struct run_config *const c = &w->config;
    const uint32_t per_cluster = (1u << c->cluster_bits) / ORACLE_SECTOR;
    const uint32_t clusters = (w->sectors + per_cluster - 1) / per_cluster;
    const uint32_t count_max = MIN(SLOT_BYTES / ORACLE_SECTOR, MAX(4 * per_cluster, 16u));
    /* Hot clusters are spread over the disk, and so over slices. */
    uint32_t cluster = (uint32_t)(below(rng, c->hot_clusters) * 0x9e3779b1u >> 3) % clusters;

    if (below(rng, 4) == 0)
        cluster = (uint32_t)below(rng, clusters);
    op->sector = cluster * per_cluster;
    switch (below(rng, 4)) {
    case 0: /* whole clusters */
        op->count = per_cluster * (1 + (uint32_t)below(rng, 3));
        break;
    case 1: /* inside one */
        op->sector += (uint32_t)below(rng, per_cluster);
        op->count = 1 + (uint32_t)below(rng, per_cluster);
        break;
    case 2:
        op->sector += (uint32_t)below(rng, per_cluster);
        op->count = 1 + (uint32_t)below(rng, count_max);
        break;
    default:
        op->sector += (uint32_t)below(rng, per_cluster);
        op->count = 1;
    }
    op->sector = MIN(op->sector, w->sectors - 1);
    op->count = MIN(MIN(op->count, count_max), w->sectors - op->sector);
}

static void draw_op(const struct world *w, uint32_t client, uint32_t number, struct op *op)
{
    const struct run_config *const c = &w->config;
    uint64_t rng = (c->seed * 31 + client * 7919u + w->depth * 104729u + 1) * 0x9e3779b97f4a7c15u + number;
    uint64_t kind;

    for (int i = 0; i < 6; i++)
        below(&rng, 2);
    rng *= 0xd1342543de82ef95u;
    rng |= 1;
    for (int i = 0; i < 3; i++)
        below(&rng, 2);
    *op = (struct op){.kind = OP_READ};
    draw_range(w, &rng, op);
    op->skewed = below(&rng, 4) == 0;
    op->pieces = (uint8_t)(below(&rng, 4) ? 1 : 1 + below(&rng, PIECES_MAX));
    kind = below(&rng, 100);
    if (kind < 20)
        return;
    if (kind < 30 && c->may_flush) {
        op->kind = OP_FLUSH;
        return;
    }
    op->flags = below(&rng, 12) == 0 ? SCOW_REQ_FUA : below(&rng, 3) == 0 ? SCOW_REQ_OUTLIVES : 0;
    if (kind < 45 && c->may_discard) {
        op->kind = OP_DISCARD;
    } else if (kind < 60 && c->may_zero) {
        op->kind = OP_ZERO;
        op->flags |= below(&rng, 2) ? SCOW_REQ_MAY_UNMAP : 0;
    } else {
        const uint32_t per_cluster = (1u << c->cluster_bits) / ORACLE_SECTOR;

        op->kind = OP_WRITE;
        op->zeros = below(&rng, 12) == 0;
        if (c->may_compress && below(&rng, 3) == 0) {
            op->sector -= op->sector % per_cluster;
            op->count = (op->count + per_cluster - 1) / per_cluster * per_cluster;
            op->count = MIN(op->count, w->sectors - op->sector);
            if (op->count * ORACLE_SECTOR > SLOT_BYTES)
                op->count = per_cluster;
            op->count = MIN(op->count, w->sectors - op->sector);
            op->flags |= SCOW_REQ_COMPRESSED;
        }
    }
}

static void get_op(const struct world *w, const struct client *c, uint32_t number, struct op *op)
{
    if (w->script)
        *op = w->script[number];
    else
        draw_op(w, c->index, number, op);
}

/* ---- submission ---- */

/*
 * Whole clusters are discarded; the disk's end counts as one. Whole subclusters, version 2 over a backing
 * file and a data file without holes: zeros come where they can.
 */
static void add_discard(struct world *w, struct slot_op *s, uint32_t sector, uint32_t count)
{
    const struct run_config *const c = &w->config;
    const uint32_t unit = (1u << c->cluster_bits) / ORACLE_SECTOR;
    const uint32_t part = c->extended_l2 ? unit / 32 : unit;
    const uint32_t end = sector + count;
    const bool to_the_end = end == w->sectors;
    const uint32_t from = (sector + part - 1) / part * part, to = to_the_end ? end : end / part * part;
    const bool certain = !(c->version == 2 && c->backing) && !(c->data_file_raw && c->no_punch);

    for (uint32_t at = from; at < to;) {
        const uint32_t cluster_end = MIN((at / unit + 1) * unit, to);
        /* A growth meanwhile would make a partial cluster of the last one. */
        const bool whole = at % unit == 0 && (cluster_end % unit == 0 || (to_the_end && !c->may_resize));

        oracle_add(&w->oracle, certain && whole ? s->oracle_op : s->uncertain_op, at, cluster_end - at,
                   VALUE_ZERO);
        at = cluster_end;
    }
}

static void prepare_write(struct world *w, struct slot_op *s)
{
    const struct op *const op = &s->op;
    uint32_t value = VALUE_ZERO;

    s->oracle_op = oracle_begin(&w->oracle);
    if (op->kind == OP_DISCARD) {
        s->uncertain_op = oracle_begin(&w->oracle);
        add_discard(w, s, op->sector, op->count);
        return;
    }
    if (op->kind == OP_WRITE) {
        if (!op->zeros)
            value = w->run->next_value++;
        s->buf = s->memory + (op->skewed ? 8 : 0);
        stamp_write(s->buf, (uint64_t)op->sector * ORACLE_SECTOR, (uint64_t)op->count * ORACLE_SECTOR, value);
    }
    oracle_add(&w->oracle, s->oracle_op, op->sector, op->count, value);
    sim_trace(w->sim, "client %u: op %d sectors %u+%u flags 0x%x value 0x%x", s->client->index, (int)op->kind,
              op->sector, op->count, op->flags, value);
}

/* The buffer in pieces of any size. */
static int split(struct slot_op *s, uint64_t bytes)
{
    const uint64_t each = MAX(bytes / s->op.pieces - 24 * s->op.pieces, 8u);
    int n = 0;

    for (uint64_t at = 0; at < bytes; n++) {
        const uint64_t part = n + 1 == s->op.pieces ? bytes - at : MIN(each, bytes - at);

        s->iov[n] = (struct iovec){s->buf + at, part};
        at += part;
    }
    return n;
}

static int submit_to_queue(struct client *c, struct slot_op *s)
{
    const struct op *const op = &s->op;
    const uint64_t off = (uint64_t)op->sector * ORACLE_SECTOR;
    const uint64_t bytes = (uint64_t)op->count * ORACLE_SECTOR;
    struct world *const w = c->world;

    switch (op->kind) {
    case OP_READ:
        s->ticket = oracle_read_begin(&w->oracle);
        s->buf = s->memory + (op->skewed ? 8 : 0);
        memset(s->buf, 0xee, bytes);
        if (op->pieces > 1)
            return scow_queue_readv(c->queue, off, s->iov, split(s, bytes), s, 0);
        return scow_queue_read(c->queue, off, s->buf, bytes, s, 0);
    case OP_FLUSH:
        s->flush_begun = oracle_flush_begin(&w->oracle);
        sim_trace(w->sim, "client %u: flush", c->index);
        return scow_queue_flush(c->queue, s, 0);
    case OP_WRITE:
        prepare_write(w, s);
        if (op->pieces > 1)
            return scow_queue_writev(c->queue, off, s->iov, split(s, bytes), s, op->flags);
        return scow_queue_write(c->queue, off, s->buf, bytes, s, op->flags);
    case OP_DISCARD:
        prepare_write(w, s);
        return scow_queue_discard(c->queue, off, bytes, s, op->flags);
    default:
        prepare_write(w, s);
        return scow_queue_write_zeroes(c->queue, off, bytes, s, op->flags);
    }
}

static void finish(struct client *c, struct slot_op *s, int ret, const char *error)
{
    struct world *const w = c->world;
    const struct op *const op = &s->op;
    char text[512];

    s->busy = false;
    c->in_flight--;
    w->completed++;
    w->run->stats->requests++;
    w->sim->idle_steps = 0;
    sim_trace(w->sim, "client %u: op %d sectors %u+%u done: %d", c->index, (int)op->kind, op->sector,
              op->count, ret);
    if (ret < 0 && !faults_explain(w, ret))
        world_fail(w, "request %d of sectors %u+%u failed: %d, %s", (int)op->kind, op->sector, op->count, ret,
                   error ? error : "no text");
    if (op->kind == OP_READ) {
        if (ret < 0)
            oracle_read_cancel(&w->oracle, s->ticket);
        else if (!oracle_read_end(&w->oracle, s->ticket, op->sector, op->count, s->buf, text, sizeof text))
            world_fail(w, "client %u read sectors %u+%u: %s", c->index, op->sector, op->count, text);
    } else if (op->kind == OP_FLUSH) {
        if (ret == 0)
            oracle_flush_end(&w->oracle, s->flush_begun);
    } else {
        const bool durable = op->flags & SCOW_REQ_FUA || w->config.open_flags & SCOW_OPEN_WRITETHROUGH;

        c->writes_in_flight--;
        oracle_end(&w->oracle, s->oracle_op, ret == 0, durable, op->flags & SCOW_REQ_OUTLIVES);
        if (op->kind == OP_DISCARD)
            oracle_end(&w->oracle, s->uncertain_op, false, false, false);
    }
}

static bool may_submit(const struct world *w, const struct client *c)
{
    struct op op;

    if (c->next_op >= c->last_op || c->in_flight >= w->config.depth)
        return false;
    if (w->hold_writes) {
        get_op(w, c, c->next_op, &op);
        return !is_write(&op);
    }
    if (w->script) {
        get_op(w, c, c->next_op, &op);
        return !op.alone || !c->in_flight;
    }
    return true;
}

static bool is_skipped(const struct world *w, const struct client *c)
{
    return w->depth == 0 && w->run->options.skip_mask >> (c->next_op * CLIENTS_MAX + c->index) % 64 & 1;
}

static void submit(struct client *c)
{
    struct world *const w = c->world;
    struct slot_op *s = c->slots;
    int ret;

    while (s->busy)
        s++;
    get_op(w, c, c->next_op, &s->op);
    /* A script may count on a growth that failed. */
    if (is_skipped(w, c) || s->op.sector + s->op.count > w->sectors) {
        c->next_op++;
        return;
    }
    c->next_op++;
    s->busy = true;
    c->in_flight++;
    c->writes_in_flight += is_write(&s->op);
    c->needs_poll = true;
    ret = submit_to_queue(c, s);
    if (ret < 0)
        finish(c, s, ret, scow_error());
}

static void poll_queue(struct client *c)
{
    struct scow_completion done[SLOTS_MAX];
    struct sim_backend *const b = backend_of(c);
    int n;

    if (b->event)
        c->needs_poll = true;
    b->event = false;
    n = scow_queue_poll(c->queue, done, 0, SLOTS_MAX, 0);
    if (n < 0)
        world_fail(c->world, "poll: %d, %s", n, scow_error());
    for (int i = 0; i < n; i++)
        finish(c, done[i].user_data, done[i].ret, done[i].error);
    if (n == 0)
        c->needs_poll = false;
}

/* ---- the scheduler's view ---- */

static bool may_poll(const struct client *c)
{
    if (!c->in_flight)
        return false;
    return !c->world->config.events || c->needs_poll || backend_of(c)->event;
}

static uint32_t clients_ready(void *ctx)
{
    const struct world *const w = ctx;
    uint32_t n = control_ready(w);

    for (uint32_t i = 0; i < w->client_count; i++)
        n += may_submit(w, &w->clients[i]) || may_poll(&w->clients[i]);
    return n;
}

static void clients_act(void *ctx, uint32_t n)
{
    struct world *const w = ctx;

    for (uint32_t i = 0; i < w->client_count; i++) {
        struct client *const c = &w->clients[i];
        const bool submits = may_submit(w, c), polls = may_poll(c);

        if (!(submits || polls) || n--)
            continue;
        if (submits && (!polls || sim_random(w->sim, 2)))
            submit(c);
        else
            poll_queue(c);
        return;
    }
    control_act(w);
}

void clients_attach(struct world *w)
{
    w->sim->clients.ready = clients_ready;
    w->sim->clients.act = clients_act;
}

static bool all_done(const struct world *w)
{
    for (uint32_t i = 0; i < w->client_count; i++)
        if (w->clients[i].in_flight || w->clients[i].next_op < w->clients[i].last_op)
            return false;
    return !w->controlling && !control_ready(w);
}

/* False when a fault is in the way. */
static bool create_client(struct world *w, uint32_t index, uint32_t first, uint32_t last)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;
    struct client *const c = &w->clients[index];
    int r;

    o.depth = MAX(w->config.depth, 1u);
    c->world = w;
    c->index = index;
    c->next_op = first;
    c->last_op = last;
    c->in_flight = c->writes_in_flight = 0;
    c->needs_poll = false;
    for (uint32_t i = 0; i < SLOTS_MAX; i++) {
        struct slot_op *const s = &c->slots[i];

        s->client = c;
        s->busy = false;
        if (!s->memory && posix_memalign((void **)&s->memory, 4096, SLOT_BYTES + 4096))
            abort();
    }
    r = scow_queue_create(w->image, &o, &c->queue);
    if (r < 0) {
        if (!faults_explain(w, r))
            world_fail(w, "queue: %d, %s", r, scow_error());
        return false;
    }
    if (w->config.events)
        (void)scow_queue_enable_completion_fd(c->queue, 1);
    return true;
}

void clients_run(struct world *w, uint32_t first, uint32_t last)
{
    w->sim->idle_steps = 0;
    while (w->client_count < w->config.clients && create_client(w, w->client_count, first, last))
        w->client_count++;
    clients_attach(w);
    while (!all_done(w))
        if (!sim_step(w->sim))
            world_fail(w, "nothing can run, but requests are not complete (%u I/Os in flight)",
                       w->sim->flight_count);
    for (uint32_t i = 0; i < w->client_count; i++) {
        const int r = scow_queue_destroy(w->clients[i].queue);

        if (r < 0)
            world_fail(w, "destroying a queue: %d, %s", r, scow_error());
    }
    w->client_count = 0;
    w->sim->clients.ready = NULL;
}
