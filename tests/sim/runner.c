/* SPDX-License-Identifier: MIT */
/* One run from beginning to end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/rcu.h"
#include "tests/sim/world.h"
#include "tests/unit/image_builder.h"

#define PLAIN_BYTES ((uint64_t)DISK_SECTORS_MAX * ORACLE_SECTOR)
/* Values below are the initial content's. */
#define VALUE_FIRST 0x01000000u

struct runner *runner_new(struct sim_stats *stats)
{
    struct runner *const run = calloc(1, sizeof *run);

    if (!run)
        abort();
    run->stats = stats;
    run->values = calloc(DISK_SECTORS_MAX, sizeof *run->values);
    if (!run->values || posix_memalign((void **)&run->plain, 4096, PLAIN_BYTES))
        abort();
    for (int i = 0; i < WORLDS_MAX; i++)
        run->sims[i] = sim_new();
    rcu_thread_ensure();
    return run;
}

static void begin(struct runner *run, const struct run_config *config)
{
    struct world *const w = &run->worlds[0];

    run->seed = config->seed;
    run->next_value = VALUE_FIRST;
    run->crashes = 0;
    memset(run->seen, 0, sizeof run->seen);
    sim_reset(run->sims[0], config->seed);
    sim_image_build(run->sims[0], config, &run->content);
    world_begin(w, run, 0, config);
    w->crash_rng = config->seed * 0x2545f4914f6cdd1du + 3;
    oracle_reset(&w->oracle, run->content.sectors, run->content.values);
}

static void finish(struct runner *run)
{
    const struct sim *const sim = run->sims[0];
    uint64_t *const slot = &run->schedules[sim->schedule_hash % SEEN_SLOTS];

    run->stats->schedules += *slot != sim->schedule_hash;
    *slot = sim->schedule_hash;
    run->stats->runs++;
    run->stats->turns += sim->steps;
    run->stats->ios += sim->ios;
    run->stats->faults += sim->faults_given;
}

static void set_faults(struct world *w, bool on)
{
    struct sim_faults *const f = &w->sim->faults;
    const struct run_config *const c = &w->config;
    const uint32_t p = c->fault_per_mille;

    memset(f, 0, sizeof *f);
    if (!on)
        return;
    f->harsh_sync = c->harsh_sync;
    f->error[SIM_ALLOCATE] = -ENOSPC;
    if (c->faults == FAULTS_READ || c->faults == FAULTS_MIXED)
        f->per_mille[SIM_READ] = p;
    if (c->faults == FAULTS_WRITE || c->faults == FAULTS_MIXED)
        f->per_mille[SIM_WRITE] = p;
    if (c->faults == FAULTS_SYNC || c->faults == FAULTS_MIXED)
        f->per_mille[SIM_SYNC] = p;
    if (c->faults == FAULTS_MIXED) {
        f->per_mille[SIM_ALLOCATE] = p;
        f->per_mille[SIM_PUNCH] = p;
        f->per_mille[SIM_TRUNCATE] = p;
    }
}

/* The image was not closed as it should be: what was made durable is there, and that is where it begins. */
static void take_what_survived(struct world *w)
{
    struct runner *const run = w->run;
    char text[512];
    uint32_t sectors;

    for (uint32_t i = 0; i < w->sim->disk_count; i++) /* time passes */
        disk_settle(w->sim->disks[i]);
    w->sim->quiet = true;
    (void)world_open(w, false);
    sectors = world_read_all(w, "after faults");
    if (sectors != w->oracle.sectors && !(sectors > w->oracle.sectors && sectors <= w->sectors_coming))
        world_fail(w, "after faults the disk has %u sectors, not %u", sectors, w->oracle.sectors);
    for (uint32_t i = 0; i < sectors; i++) {
        run->values[i] = VALUE_ZERO;
        if (i < w->oracle.sectors &&
            !oracle_survivor(&w->oracle, i, false, run->plain + (size_t)i * ORACLE_SECTOR, &run->values[i],
                             text, sizeof text))
            world_fail(w, "after faults %s", text);
    }
    oracle_reset(&w->oracle, sectors, run->values);
    world_check(w, UINT64_MAX, "after faults", NULL);
    keep_leaks(w);
    (void)world_close(w);
    w->sim->quiet = false;
}

/* Opens, works, closes. */
static void session(struct world *w, uint32_t first, uint32_t last, uint64_t *rng)
{
    const bool faulty = w->config.faults != FAULTS_NONE && w->config.faults != FAULTS_SPACE;
    uint64_t begun;
    int r;

    set_faults(w, faulty && random_below(rng, 3) == 0);
    r = world_open(w, true);
    if (r < 0) {
        set_faults(w, false);
        take_what_survived(w);
        w->sim->faults_given = 0;
        r = world_open(w, true);
        if (r < 0)
            return; /* no space at all */
    }
    set_faults(w, faulty);
    control_plan(w, rng, (last - first) * w->config.clients);
    clients_run(w, first, last);
    if (random_below(rng, 2))
        set_faults(w, false);
    begun = oracle_flush_begin(&w->oracle);
    r = world_close(w);
    set_faults(w, false);
    if (r == 0) {
        oracle_flush_end(&w->oracle, begun);
        world_verify_closed(w, "closed");
    } else {
        take_what_survived(w);
    }
    w->run->stats->faults += w->sim->faults_given;
    w->sim->faults_given = 0;
}

/* A last time without faults: whatever happened, this repairs it. */
static void open_and_close(struct world *w)
{
    const int r = world_open(w, true);
    uint64_t begun;

    if (r < 0)
        return;
    begun = oracle_flush_begin(&w->oracle);
    if (world_close(w) < 0)
        return;
    oracle_flush_end(&w->oracle, begun);
    world_verify_closed(w, "opened and closed");
}

void runner_run(struct runner *run, uint64_t seed)
{
    struct world *const w = &run->worlds[0];
    uint64_t rng = seed * 0x9e3779b97f4a7c15u + 11;
    struct run_config c;

    run_config_draw(seed, &c);
    if (run->options.ops_max)
        c.ops = MIN(c.ops, run->options.ops_max);
    if (run->options.verbose)
        run_config_print(&c);
    run->enumerate = false;
    run->script_name = NULL;
    begin(run, &c);
    for (uint32_t i = 0; i < c.sessions; i++)
        session(w, c.ops * i / c.sessions, c.ops * (i + 1) / c.sessions, &rng);
    open_and_close(w);
    finish(run);
}

static void run_script(struct world *w)
{
    uint32_t requests = 0;

    for (uint32_t i = 0; i < w->script_count; i++) {
        if (w->script[i].kind != OP_QUIESCE && w->script[i].kind != OP_RESIZE)
            continue;
        clients_run(w, requests, i);
        requests = i + 1;
        w->controls[0] = w->script[i];
        w->control_at[0] = 0;
        w->control_count = 1;
        w->control_next = 0;
        clients_run(w, requests, requests);
    }
    clients_run(w, requests, w->script_count);
}

bool runner_script(struct runner *run, const struct run_config *config, const char *name,
                   const struct op *ops, uint32_t count, uint32_t fail_nth)
{
    struct world *const w = &run->worlds[0];
    uint64_t begun;
    bool failed;
    int r;

    run->enumerate = !fail_nth;
    run->script_name = name;
    begin(run, config);
    w->script = ops;
    w->script_count = count;
    w->sim->faults.nth = fail_nth;
    w->sim->faults.nth_classes = UINT32_MAX;
    if (world_open(w, true) < 0) {
        take_what_survived(w);
        (void)world_open(w, true);
    }
    run_script(w);
    begun = oracle_flush_begin(&w->oracle);
    r = world_close(w);
    w->sim->faults.nth = 0;
    if (r == 0) {
        oracle_flush_end(&w->oracle, begun);
        world_verify_closed(w, "closed");
    } else {
        take_what_survived(w);
    }
    failed = w->sim->faults_given;
    w->sim->faults_given = 0;
    open_and_close(w);
    finish(run);
    return failed;
}
