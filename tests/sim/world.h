/* SPDX-License-Identifier: MIT */
/*
 * One image in one simulation, with its clients and what they may read. A crash makes another world from this
 * one's disks, which is looked at while this one waits; so worlds stand in a stack.
 */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"
#include "tests/sim/oracle.h"
#include "tests/sim/run_config.h"
#include "tests/sim/sim_env.h"
#include "tests/sim/sim_image.h"

#define WORLDS_MAX 3
#define SLOTS_MAX 8u
#define PIECES_MAX 4u
#define SLOT_BYTES (64u << 10)

enum op_kind {
    OP_READ,
    OP_WRITE,
    OP_FLUSH,
    OP_DISCARD,
    OP_ZERO,
    /* of the control client */
    OP_QUIESCE,
    OP_RESIZE,
};

struct op {
    enum op_kind kind;
    uint32_t sector, count;
    uint32_t flags; /* SCOW_REQ_* */
    bool zeros;     /* OP_WRITE: data of zeros */
    bool skewed;    /* from an unaligned buffer */
    uint8_t pieces; /* more than 1: so many buffers */
    bool alone;     /* wait for everything before it */
};

struct client;

struct slot_op {
    struct client *client;
    bool busy;
    struct op op;
    uint32_t oracle_op, uncertain_op, ticket;
    uint64_t flush_begun;
    uint8_t *memory, *buf;
    struct iovec iov[PIECES_MAX];
};

struct client {
    struct world *world;
    struct scow_queue *queue;
    uint32_t index;
    uint32_t next_op, last_op; /* of the session */
    uint32_t in_flight, writes_in_flight;
    bool needs_poll;
    struct slot_op slots[SLOTS_MAX];
};

struct runner;

struct world {
    struct runner *run;
    uint32_t depth;
    struct run_config config;
    struct sim *sim;
    struct oracle oracle;
    struct scow_image *image;
    struct client clients[CLIENTS_MAX];
    uint32_t client_count;
    uint32_t sectors; /* of the disk now */
    uint32_t
        sectors_coming; /* the most that it was asked to have: a growth that failed may show after a crash */
    uint32_t completed; /* requests */
    bool hold_writes;   /* until those in flight are done and the control client was there */
    bool controlling;
    struct op controls[4];
    uint32_t control_at[4]; /* when this many requests have completed */
    uint32_t control_count, control_next;
    const struct op *script; /* instead of random ops */
    uint32_t script_count;
    uint64_t crash_rng;
    bool leaks_expected; /* while an image that was not closed is being opened or closed */
    uint64_t leaks_kept; /* version 2 has no mark of a crash: what leaked then stays until a repair */
};

struct sim_stats {
    uint64_t runs, crash_points, crash_images, crash_seen, turns, ios, requests, schedules, enumerated;
    uint64_t leaks_max, qemu_checks, faults;
};

struct simulate_options {
    uint32_t crashes_per_run; /* at most; 0: no bound */
    bool no_crashes;
    bool verbose;
    uint32_t ops_max;    /* of each client; 0: as drawn */
    uint64_t skip_mask;  /* ops that are left out, by their number modulo 64 */
    bool leaks_stay;     /* recovery is not asked to reclaim anything */
    uint64_t qemu_every; /* crash images: run qemu-img check on one in so many */
};

#define SEEN_SLOTS (1u << 16)

struct runner {
    struct simulate_options options;
    struct sim_stats *stats;
    uint64_t seed;
    const char *script_name;
    uint32_t next_value;
    uint32_t crashes;
    bool enumerate;
    struct world worlds[WORLDS_MAX];
    struct sim *sims[WORLDS_MAX];
    struct sim_content content;     /* what the images had at first */
    uint32_t *values;               /* scratch */
    uint8_t *plain;                 /* scratch: a whole disk */
    uint64_t seen[SEEN_SLOTS];      /* hashes of crash images that were looked at in this run */
    uint64_t schedules[SEEN_SLOTS]; /* hashes of schedules, of all runs; an old one may be forgotten */
};

#define DISK_SECTORS_MAX 8192u

struct runner *runner_new(struct sim_stats *stats);
/* One run with a seed. Returns when all is well; else prints and exits. */
void runner_run(struct runner *run, uint64_t seed);
/*
 * A run from a script. fail_nth: this one (from 1) of its I/Os fails, of whatever kind; 0: none. Crashes are
 * enumerated unless something fails. Returns whether something did.
 */
bool runner_script(struct runner *run, const struct run_config *config, const char *name,
                   const struct op *ops, uint32_t count, uint32_t fail_nth);

/* --- world.c --- */
void world_begin(struct world *w, struct runner *run, uint32_t depth, const struct run_config *config);
/* 0 or a negative errno when faults explain it; else fails. */
int world_open(struct world *w, bool write);
int world_close(struct world *w);
/* Checks the image on a handle that is open for reading or quiesced. */
void world_check(struct world *w, uint64_t leaks_max, const char *when, struct scow_check_result *ret);
/* Reads everything into run->plain; returns how many sectors. */
uint32_t world_read_all(struct world *w, const char *when);
/* Reads everything and compares it with the oracle of judge, as a reader. */
void world_verify(struct world *w, struct world *judge, const char *when);
/* The snapshot's content is what it was. The image is not open. */
void world_verify_snapshot(struct world *w, const char *when);
/* A clean image: closed, no leaks, no slack, content as it should be. */
void world_verify_closed(struct world *w, const char *when);
void world_fail(struct world *w, const char *fmt, ...) ATTR_PRINTF(2, 3) __attribute__((noreturn));

/* --- clients.c --- */
void clients_attach(struct world *w);
/* Opens count queues and lets the clients do ops from first on, each up to last. */
void clients_run(struct world *w, uint32_t first, uint32_t last);

/* --- control.c --- */
void control_plan(struct world *w, uint64_t *rng, uint32_t requests);
bool control_ready(const struct world *w);
void control_act(struct world *w);

/* --- crash.c --- */
void crash_boundary(struct world *w);
/* As another process would find the image now. */
void crash_look_visible(struct world *w);
/* What leaked before and cannot be reclaimed by opening. */
void keep_leaks(struct world *w);
bool faults_explain(const struct world *w, int ret);

#endif
