/* SPDX-License-Identifier: MIT */
/*
 * An environment (io/env.h) in which one OS thread runs everything: loops are turned, I/Os take effect and
 * complete, time passes and clients act when the seeded scheduler says so. Nothing else is a source of order:
 * the same seed gives the same run.
 *
 * A wait inside the engine (control path) runs the scheduler until its backend has something. A loop that
 * sleeps is not turned before it is woken, an I/O of its own completes or the time it gave has passed; so a
 * lost wake-up shows as a run in which nothing can happen any more.
 */
#ifndef SIM_SIM_ENV_H
#define SIM_SIM_ENV_H

#include <stdbool.h>
#include <stdint.h>

#include "base/attributes.h"
#include "io/env.h"
#include "tests/sim/sim_disk.h"

#define SIM_LOOPS_MAX 12
#define SIM_BACKENDS_MAX 24
#define SIM_FLIGHTS_MAX 8192
#define SIM_DISKS_MAX 4

struct sim;

struct sim_backend {
    struct backend base;
    struct sim *sim;
    uint32_t number;
    bool in_use;
    struct loop *loop; /* that sleeps in it; NULL: a queue's */
    struct list prepared, done;
    uint32_t in_flight;
    bool woken;         /* wake() since the last wait */
    bool event_enabled; /* as the completion descriptor's */
    bool event;         /* it is readable */
};

struct sim_loop {
    struct loop *loop;
    bool asleep;
    uint64_t deadline_ns; /* while asleep; UINT64_MAX: none */
    uint32_t weight;
};

enum flight_phase { FLIGHT_NEW, FLIGHT_HALF, FLIGHT_EFFECTIVE };

/* An I/O that was submitted. */
struct flight {
    struct io *io;
    struct sim_backend *backend;
    uint64_t due_ns;
    uint64_t number;
    enum flight_phase phase;
    uint64_t split;      /* bytes of the part that takes effect first, or all */
    uint64_t sync_start; /* IO_SYNC */
};

enum sim_io_class { SIM_READ, SIM_WRITE, SIM_SYNC, SIM_ALLOCATE, SIM_PUNCH, SIM_TRUNCATE, SIM_CLASSES };

struct sim_faults {
    uint32_t per_mille[SIM_CLASSES]; /* of the I/Os of each class fail, */
    int error[SIM_CLASSES];          /* with this negative errno; 0: -EIO */
    uint32_t nth;                    /* and this one (from 1; 0: none) of all I/Os counted from now */
    uint32_t nth_classes;            /* of classes in this mask */
    bool harsh_sync;                 /* see disk_sync_failed() */
};

struct sim_clients {
    void *ctx;
    /* How many clients could do something now; then let one, number n of those, do it. */
    uint32_t (*ready)(void *ctx);
    void (*act)(void *ctx, uint32_t n);
    /* Between two steps, whenever the image on disk may have changed. */
    void (*boundary)(void *ctx);
    /* What the run fails with. Does not return. */
    void (*fail)(void *ctx, const char *text);
};

struct sim {
    uint64_t rng; /* of the schedule */
    uint64_t now_ns;
    uint64_t steps, ios;
    uint64_t idle_steps; /* since a client last got something; clients set it to 0 */
    uint64_t schedule_hash;
    uint64_t io_count[SIM_CLASSES];
    struct sim_disk *disks[SIM_DISKS_MAX];
    uint32_t disk_count;
    struct sim_backend backends[SIM_BACKENDS_MAX];
    uint32_t backends_end;
    struct sim_loop loops[SIM_LOOPS_MAX];
    uint32_t loop_count;
    struct loop *parking;   /* whose sleep() is running */
    struct flight *flights; /* SIM_FLIGHTS_MAX */
    uint32_t flight_count;
    struct sim_faults faults;
    uint64_t faults_given;
    struct sim_clients clients;
    uint32_t latency;      /* 0: I/Os complete fast, 3: very unevenly */
    uint32_t depth;        /* of waits inside waits */
    bool dirtied;          /* a disk changed since the last boundary */
    bool quiet;            /* no boundaries: nothing is to be learnt from crashes here */
    uint64_t header_bytes; /* of the first disk: queues must not write below */
    uint64_t suspicious;   /* overlapping writes in flight, both by loops */
    bool trace;
};

struct sim *sim_new(void);
void sim_free(struct sim *sim);
/* Forgets everything but the disks' memory. */
void sim_reset(struct sim *sim, uint64_t seed);
/* Add a disk with this content; returns it. */
struct sim_disk *sim_add_disk(struct sim *sim, const struct disk_config *config, const void *data,
                              uint64_t bytes);
struct sim_disk *sim_find_disk(struct sim *sim, const char *name);

/* For one image_open(), which takes both. */
struct env *sim_env_create(struct sim *sim);
int sim_file_open(struct sim *sim, const char *name, uint32_t flags, struct file **ret);

/* One step of the schedule. False when nothing can run. */
bool sim_step(struct sim *sim);
/* Whatever fails the run. */
void sim_fail(struct sim *sim, const char *fmt, ...) ATTR_PRINTF(2, 3) __attribute__((noreturn));
void sim_trace(struct sim *sim, const char *fmt, ...) ATTR_PRINTF(2, 3);

/* Called by the environment's halves. */
int sim_fault(struct sim *sim, enum sim_io_class class);
void sim_boundary(struct sim *sim);
int sim_space(struct sim *sim, struct file *f, const void *tag, enum io_kind kind, uint64_t off,
              uint64_t bytes);
enum sim_io_class sim_class_of(enum io_kind kind);
struct sim_disk *sim_disk_of(const struct file *file);
void sim_submit(struct sim_backend *b);
void sim_wait(struct sim_backend *b, int64_t timeout_ns);
void sim_loop_started(struct sim *sim, struct loop *loop);
void sim_loop_stopped(struct sim *sim, struct loop *loop);

static inline uint64_t sim_random(struct sim *sim, uint64_t below)
{
    uint64_t x = sim->rng;

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    sim->rng = x;
    return (x * 0x2545f4914f6cdd1du >> 16) % below;
}

#endif
