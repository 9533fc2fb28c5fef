/* SPDX-License-Identifier: MIT */
/* What happens next: loops' turns, I/Os, clients, time. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/rcu.h"
#include "tests/sim/sim_env.h"

#define NS_NONE UINT64_MAX
/* Steps without anything for a client: many times what the slowest I/O takes. */
#define IDLE_STEPS_MAX 300000u

enum sim_io_class sim_class_of(enum io_kind kind)
{
    switch (kind) {
    case IO_READ:
        return SIM_READ;
    case IO_WRITE:
        return SIM_WRITE;
    case IO_SYNC:
        return SIM_SYNC;
    case IO_ALLOCATE:
        return SIM_ALLOCATE;
    case IO_PUNCH:
    case IO_ZERO:
        break;
    }
    return SIM_PUNCH;
}

int sim_fault(struct sim *sim, enum sim_io_class class)
{
    struct sim_faults *const f = &sim->faults;
    bool fails = f->per_mille[class] && sim_random(sim, 1000) < f->per_mille[class];

    sim->ios++;
    sim->io_count[class]++;
    if (f->nth && f->nth_classes & 1u << class)
        fails |= --f->nth == 0;
    if (!fails)
        return 0;
    sim->faults_given++;
    sim_trace(sim, "fault: class %d", (int)class);
    return f->error[class] ? f->error[class] : -5; /* EIO */
}

void sim_boundary(struct sim *sim)
{
    const bool reading = urcu_memb_read_ongoing();

    if (!sim->dirtied || sim->quiet)
        return;
    sim->dirtied = false;
    /* Whoever is looked at meanwhile waits for readers, but has none in common with this world. */
    if (reading)
        rcu_leave();
    sim->clients.boundary(sim->clients.ctx);
    if (reading)
        rcu_enter();
}

static void mix(struct sim *sim, uint64_t what)
{
    sim->schedule_hash = (sim->schedule_hash ^ what) * 0x100000001b3u;
}

/* ---- I/Os ---- */

static uint64_t draw_latency(struct sim *sim)
{
    const uint64_t r = sim_random(sim, 100);

    if (sim->latency == 0 || r < 40)
        return sim_random(sim, 2000);
    if (r < 80 || sim->latency == 1)
        return sim_random(sim, 20000);
    if (r < 97 || sim->latency == 2)
        return sim_random(sim, 200000);
    return sim_random(sim, 5000000);
}

static struct iovec *io_vectors(struct io *io, struct iovec *one, int *ret_count)
{
    if (io->iov_count) {
        *ret_count = io->iov_count;
        return (struct iovec *)(uintptr_t)io->iov;
    }
    *one = (struct iovec){io->buf, io->bytes};
    *ret_count = 1;
    return one;
}

static uint64_t flight_bytes(const struct io *io)
{
    return io->kind == IO_READ || io->kind == IO_WRITE ? io->bytes : io->length;
}

static const char *kind_name(const struct io *io)
{
    static const char *const names[] = {"read", "write", "sync", "allocate", "punch", "zero"};

    return names[io->kind];
}

static void check_vectors(struct sim *sim, struct io *io)
{
    struct iovec one;
    uint64_t sum = 0;
    int count;
    const struct iovec *const iov = io_vectors(io, &one, &count);

    for (int i = 0; i < count; i++) {
        sum += iov[i].iov_len;
        if ((uintptr_t)iov[i].iov_base % io->file->mem_align || iov[i].iov_len % io->file->mem_align)
            sim_fail(sim, "%s of 0x%" PRIx64 "+%" PRIu32 ": buffer %d is not aligned", kind_name(io), io->off,
                     io->bytes, i);
    }
    if (sum != io->bytes || !sum || (io->off | io->bytes) % io->file->io_align)
        sim_fail(sim, "%s of 0x%" PRIx64 "+%" PRIu32 " with %" PRIu64 " bytes of buffers", kind_name(io),
                 io->off, io->bytes, sum);
}

/* Changes of one place that are under way at the same time have no order. Clients may ask for that; loops may
 * not do it by themselves, and what is punched belongs to nobody. */
static void check_overlap(struct sim *sim, const struct sim_backend *b, const struct io *io)
{
    const bool punch = io->kind == IO_PUNCH;

    for (uint32_t i = 0; i < sim->flight_count; i++) {
        const struct io *const other = sim->flights[i].io;
        const uint64_t bytes = flight_bytes(other);

        if (other->file != io->file || other->kind == IO_READ || other->kind == IO_SYNC ||
            other->kind == IO_ALLOCATE || io->off >= other->off + bytes ||
            other->off >= io->off + flight_bytes(io))
            continue;
        if (sim_disk_of(io->file) == sim->disks[0] && (punch || other->kind == IO_PUNCH))
            sim_fail(sim, "%s 0x%" PRIx64 "+%" PRIu64 " while %s 0x%" PRIx64 "+%" PRIu64 " is in flight",
                     kind_name(io), io->off, flight_bytes(io), kind_name(other), other->off, bytes);
        if (b->loop && sim->flights[i].backend->loop) {
            sim->suspicious++;
            sim_trace(sim, "suspicious: %s 0x%" PRIx64 "+%" PRIu64 " over another in flight", kind_name(io),
                      io->off, flight_bytes(io));
        }
    }
}

static void check_io(struct sim_backend *b, struct io *io)
{
    struct sim *const sim = b->sim;
    const struct sim_disk *const d = sim_disk_of(io->file);

    if (io->kind == IO_READ || io->kind == IO_WRITE)
        check_vectors(sim, io);
    if (io->kind == IO_READ || io->kind == IO_SYNC)
        return;
    if (!io->file->writable)
        sim_fail(sim, "%s to %s, which is open for reading", kind_name(io), io->file->name);
    if (io->kind == IO_ALLOCATE)
        return;
    if (d == sim->disks[0] && !b->loop && io->off < sim->header_bytes)
        sim_fail(sim, "a queue's %s at 0x%" PRIx64 " is in the header", kind_name(io), io->off);
    check_overlap(sim, b, io);
}

void sim_submit(struct sim_backend *b)
{
    struct sim *const sim = b->sim;
    struct list_node *n;

    while ((n = list_pop(&b->prepared))) {
        struct io *const io = container_of(n, struct io, node);
        struct flight *const f = &sim->flights[sim->flight_count];

        check_io(b, io);
        invariant(sim->flight_count < SIM_FLIGHTS_MAX);
        sim->flight_count++;
        *f = (struct flight){.io = io, .backend = b, .due_ns = sim->now_ns + draw_latency(sim)};
        f->split = flight_bytes(io);
        if ((io->kind == IO_READ || io->kind == IO_WRITE) && f->split >= 2 * SIM_SECTOR &&
            sim_random(sim, 4) == 0)
            f->split = (1 + sim_random(sim, f->split / SIM_SECTOR - 1)) * SIM_SECTOR;
        f->sync_start = sim_disk_of(io->file)->clock;
        b->in_flight++;
        sim_trace(sim, "backend %u submits %s %s 0x%" PRIx64 "+%" PRIu64 "%s", b->number, kind_name(io),
                  io->file->name, io->off, flight_bytes(io), io->flags & IO_DURABLE ? " durable" : "");
        if (io->kind == IO_READ) { /* nobody may look before it is complete */
            struct iovec one;
            int count;
            const struct iovec *const iov = io_vectors(io, &one, &count);

            for (int i = 0; i < count; i++)
                memset(iov[i].iov_base, 0xdb, MIN(iov[i].iov_len, 64));
        }
    }
}

/* Part of an I/O takes effect. 0 or a negative errno. */
static int take_effect(struct sim *sim, const struct flight *f, uint64_t from, uint64_t bytes)
{
    struct io *const io = f->io;
    struct sim_disk *const d = sim_disk_of(io->file);
    struct iovec one;
    int count;
    const struct iovec *const iov = io_vectors(io, &one, &count);

    switch (io->kind) {
    case IO_READ:
        disk_get(d, iov, count, from, io->off + from, bytes);
        return 0;
    case IO_WRITE:
        sim->dirtied = true;
        return disk_put(d, io, iov, count, from, io->off + from, bytes);
    case IO_SYNC:
        return 0;
    default:
        return sim_space(sim, io->file, io, io->kind, io->off, io->length);
    }
}

static void complete(struct sim *sim, uint32_t index, int result)
{
    const struct flight f = sim->flights[index];
    struct sim_disk *const d = sim_disk_of(f.io->file);

    f.io->result = result;
    if (f.io->kind == IO_SYNC) {
        sim->dirtied = true;
        if (result < 0)
            disk_sync_failed(d, f.sync_start, &sim->rng, sim->faults.harsh_sync);
        else
            disk_synced(d, f.sync_start);
    } else if (f.io->kind != IO_READ) {
        disk_complete(d, f.io, result == 0 && f.io->flags & IO_DURABLE);
    }
    sim->flights[index] = sim->flights[--sim->flight_count];
    f.backend->in_flight--;
    f.backend->event |= f.backend->event_enabled;
    list_push(&f.backend->done, &f.io->node);
    mix(sim, f.io->off * 8 + f.io->kind);
    sim_trace(sim, "backend %u completes %s %s 0x%" PRIx64 "+%" PRIu64 ": %d", f.backend->number,
              kind_name(f.io), f.io->file->name, f.io->off, flight_bytes(f.io), result);
}

/* An I/O that fails may have done all, nothing or some of its work. */
static void fail_flight(struct sim *sim, uint32_t index, int err)
{
    struct flight *const f = &sim->flights[index];

    if (f->io->kind == IO_WRITE && f->phase == FLIGHT_NEW && sim_random(sim, 2))
        (void)take_effect(sim, f, 0, f->split);
    complete(sim, index, err);
}

static void step_flight(struct sim *sim, uint32_t index)
{
    struct flight *const f = &sim->flights[index];
    const uint64_t bytes = flight_bytes(f->io);
    int err = 0;

    if (f->phase == FLIGHT_NEW) {
        if (f->io->kind <= IO_SYNC)
            err = sim_fault(sim, sim_class_of(f->io->kind));
        if (err) {
            fail_flight(sim, index, err);
            return;
        }
        err = take_effect(sim, f, 0, f->split);
        f->phase = f->split < bytes ? FLIGHT_HALF : FLIGHT_EFFECTIVE;
    } else if (f->phase == FLIGHT_HALF) {
        err = take_effect(sim, f, f->split, bytes - f->split);
        f->phase = FLIGHT_EFFECTIVE;
    }
    if (err == 0 && (f->phase == FLIGHT_HALF || sim_random(sim, 4) == 0))
        f->due_ns = sim->now_ns + draw_latency(sim);
    else
        complete(sim, index, err);
}

/* ---- loops ---- */

void sim_loop_started(struct sim *sim, struct loop *loop)
{
    invariant(sim->loop_count < SIM_LOOPS_MAX);
    container_of(loop->backend, struct sim_backend, base)->loop = loop;
    sim->loops[sim->loop_count++] =
        (struct sim_loop){.loop = loop, .weight = 1 + (uint32_t)sim_random(sim, 8)};
}

void sim_loop_stopped(struct sim *sim, struct loop *loop)
{
    for (uint32_t i = 0; i < sim->loop_count; i++) {
        if (sim->loops[i].loop != loop)
            continue;
        sim->loop_count--;
        memmove(&sim->loops[i], &sim->loops[i + 1], (sim->loop_count - i) * sizeof sim->loops[0]);
        return;
    }
}

static struct sim_backend *loop_backend(const struct sim_loop *l)
{
    return container_of(l->loop->backend, struct sim_backend, base);
}

static bool loop_ready(const struct sim *sim, const struct sim_loop *l)
{
    const struct sim_backend *const b = loop_backend(l);

    return !l->asleep || b->woken || !list_empty(&b->done) || sim->now_ns >= l->deadline_ns;
}

/* As loop_run() (io/loop.c), except that sleep() returns at once and the loop is left alone until it would
 * have woken. */
static void turn_loop(struct sim *sim, uint32_t index)
{
    struct loop *const loop = sim->loops[index].loop;

    if (sim->loops[index].asleep) {
        sim->loops[index].asleep = false;
        loop_backend(&sim->loops[index])->woken = false;
        atomic_store(&loop->sleeping, false);
    }
    mix(sim, 0x1000 + index);
    if (loop->ops->turn(loop) || sim_random(sim, 2))
        return;
    atomic_store(&loop->sleeping, true);
    if (loop->ops->has_mail(loop)) {
        atomic_store(&loop->sleeping, false);
        return;
    }
    sim->parking = loop;
    loop->ops->sleep(loop);
    sim->parking = NULL;
    for (uint32_t i = 0; i < sim->loop_count; i++)
        if (sim->loops[i].loop == loop && !sim->loops[i].asleep)
            atomic_store(&loop->sleeping, false);
}

static void park(struct sim *sim, int64_t timeout_ns)
{
    for (uint32_t i = 0; i < sim->loop_count; i++) {
        struct sim_loop *const l = &sim->loops[i];

        if (l->loop != sim->parking)
            continue;
        l->asleep = timeout_ns != 0;
        l->deadline_ns = timeout_ns < 0 ? NS_NONE : sim->now_ns + (uint64_t)timeout_ns;
    }
}

static void describe_loops(const struct sim *sim, char *text, size_t room)
{
    size_t n = 0;

    text[0] = 0;
    for (uint32_t i = 0; i < sim->loop_count && n < room; i++)
        n += (size_t)snprintf(text + n, room - n, " %s%s", sim->loops[i].loop->thread_name,
                              sim->loops[i].asleep ? " asleep;" : ";");
}

void sim_wait(struct sim_backend *b, int64_t timeout_ns)
{
    struct sim *const sim = b->sim;
    const uint64_t deadline_ns = timeout_ns < 0 ? NS_NONE : sim->now_ns + (uint64_t)timeout_ns;
    char text[300];

    if (sim->parking && sim->parking->backend == &b->base) {
        park(sim, timeout_ns);
        return;
    }
    sim->depth++;
    while (list_empty(&b->done) && !b->woken && sim->now_ns < deadline_ns) {
        if (sim_step(sim))
            continue;
        describe_loops(sim, text, sizeof text);
        if (deadline_ns == NS_NONE)
            sim_fail(sim, "deadlock: backend %u waits for ever, nothing can run:%s", b->number, text);
        sim->now_ns = deadline_ns;
    }
    sim->depth--;
}

/* ---- the step ---- */

static uint64_t next_event_ns(const struct sim *sim)
{
    uint64_t next = NS_NONE;

    for (uint32_t i = 0; i < sim->flight_count; i++)
        if (sim->flights[i].due_ns > sim->now_ns)
            next = MIN(next, sim->flights[i].due_ns);
    for (uint32_t i = 0; i < sim->loop_count; i++)
        if (sim->loops[i].asleep && sim->loops[i].deadline_ns > sim->now_ns)
            next = MIN(next, sim->loops[i].deadline_ns);
    return next;
}

static bool run_one(struct sim *sim, uint64_t loops_weight, uint32_t due, uint32_t clients)
{
    uint64_t pick = sim_random(sim, loops_weight + due * 2u + clients * 2u);

    if (pick < clients * 2u) {
        mix(sim, 0x2000 + pick);
        sim->clients.act(sim->clients.ctx, (uint32_t)pick / 2);
        return true;
    }
    pick -= clients * 2u;
    if (pick < due * 2u) {
        uint64_t nth = pick / 2;

        for (uint32_t i = 0; i < sim->flight_count; i++)
            if (sim->flights[i].due_ns <= sim->now_ns && nth-- == 0) {
                step_flight(sim, i);
                return true;
            }
    }
    pick -= due * 2u;
    for (uint32_t i = 0; i < sim->loop_count; i++) {
        if (!loop_ready(sim, &sim->loops[i]))
            continue;
        if (pick < sim->loops[i].weight) {
            turn_loop(sim, i);
            return true;
        }
        pick -= sim->loops[i].weight;
    }
    return true;
}

bool sim_step(struct sim *sim)
{
    uint64_t loops_weight = 0;
    uint32_t due = 0, clients;

    sim_boundary(sim);
    sim->steps++;
    sim->now_ns += 100 + sim_random(sim, 1000);
    if (++sim->idle_steps > IDLE_STEPS_MAX) {
        char text[300];

        describe_loops(sim, text, sizeof text);
        sim_fail(sim, "stuck: no request has completed for %u steps; %u I/Os in flight:%s", IDLE_STEPS_MAX,
                 sim->flight_count, text);
    }
    if (sim_random(sim, 512) == 0) { /* now and then timers fire first, and speeds change */
        const uint64_t next = next_event_ns(sim);

        if (next != NS_NONE)
            sim->now_ns = next;
        for (uint32_t i = 0; i < sim->loop_count; i++)
            sim->loops[i].weight = 1 + (uint32_t)sim_random(sim, 8);
    }
    for (uint32_t i = 0; i < sim->loop_count; i++)
        loops_weight += loop_ready(sim, &sim->loops[i]) ? sim->loops[i].weight : 0;
    for (uint32_t i = 0; i < sim->flight_count; i++)
        due += sim->flights[i].due_ns <= sim->now_ns;
    clients = sim->clients.ready ? sim->clients.ready(sim->clients.ctx) : 0;
    if (loops_weight + due + clients)
        return run_one(sim, loops_weight, due, clients);
    if (next_event_ns(sim) == NS_NONE)
        return false;
    sim->now_ns = next_event_ns(sim);
    return true;
}
