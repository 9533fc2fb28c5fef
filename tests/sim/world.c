/* SPDX-License-Identifier: MIT */
#include "tests/sim/world.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "engine/image.h"
#include "engine/queue.h"

void world_fail(struct world *w, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fflush(stdout);
    printf("\nFAILED: seed %" PRIu64 "%s%s, step %" PRIu64 ", crash depth %u: %s\n", w->run->seed,
           w->run->script_name ? " script " : "", w->run->script_name ? w->run->script_name : "",
           w->sim->steps, w->depth, text);
    run_config_print(&w->config);
    fflush(stdout);
    _Exit(3);
}

static void sim_failed(void *ctx, const char *text)
{
    world_fail(ctx, "%s", text);
}

static void boundary(void *ctx)
{
    crash_boundary(ctx);
}

/* The disks are there; everything else begins. */
void world_begin(struct world *w, struct runner *run, uint32_t depth, const struct run_config *config)
{
    struct sim *const sim = run->sims[depth];

    w->run = run;
    w->depth = depth;
    w->config = *config;
    w->sim = sim;
    w->image = NULL;
    w->client_count = 0;
    w->sectors = w->sectors_coming = 0;
    w->completed = 0;
    w->hold_writes = w->controlling = false;
    w->control_count = w->control_next = 0;
    w->script = NULL;
    w->leaks_expected = false;
    w->leaks_kept = 0;
    sim->latency = config->latency;
    sim->header_bytes = 1u << config->cluster_bits;
    sim->trace = run->options.verbose;
    sim->clients = (struct sim_clients){.ctx = w, .boundary = boundary, .fail = sim_failed};
}

/* An error that the run has asked for. */
bool faults_explain(const struct world *w, int ret)
{
    if (w->sim->faults_given)
        return true;
    return ret == -ENOSPC && (w->config.spare_clusters || w->config.block_device);
}

static struct scow_open_options options_of(const struct world *w, bool write)
{
    const struct run_config *const c = &w->config;
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;

    o.flags = SCOW_OPEN_NO_LOCK | (write ? SCOW_OPEN_WRITE | c->open_flags : 0);
    o.backend = SCOW_BACKEND_THREADS; /* asks no kernel what it can */
    o.shards = c->shards;
    o.queues_max = 8;
    o.cache_bytes = c->cache_bytes;
    o.slice_bytes = c->slice_bytes;
    o.open_child = scow_open_child_any;
    if (write) {
        o.detect_zeroes = (enum scow_detect_zeroes)c->detect_zeroes;
        o.commit_interval_ms = c->commit_interval_ms;
        o.preallocation_bytes = c->preallocation_bytes;
    }
    return o;
}

int world_open(struct world *w, bool write)
{
    const struct scow_open_options o = options_of(w, write);
    struct file *file;
    int r = sim_file_open(w->sim, IMAGE_DISK, write ? FILE_WRITE : 0, &file);

    invariant(r == 0);
    w->sim->idle_steps = 0;
    r = image_open(sim_env_create(w->sim), file, &o, &w->image);
    if (r < 0) {
        w->image = NULL;
        if (!faults_explain(w, r))
            world_fail(w, "open for %s: %d, %s", write ? "writing" : "reading", r, scow_error());
        return r;
    }
    w->sectors = (uint32_t)(scow_size(w->image) / ORACLE_SECTOR);
    return 0;
}

int world_close(struct world *w)
{
    struct scow_image *const image = w->image;
    int r;

    w->sim->idle_steps = 0;
    w->image = NULL;
    r = scow_close(image);
    if (r < 0 && !faults_explain(w, r))
        world_fail(w, "close: %d, %s", r, scow_error());
    if (w->sim->flight_count || w->sim->loop_count)
        world_fail(w, "after close: %u I/Os in flight, %u loops", w->sim->flight_count, w->sim->loop_count);
    return r;
}

/* ---- looking ---- */

static void print_problem(void *ctx, enum scow_problem_kind kind, const char *text)
{
    static const char *const kinds[] = {"", "corruption", "leak", "error"};
    const uint32_t *const shown = ctx;

    (void)shown;
    printf("  check: %s: %s\n", kinds[kind], text);
}

void world_check(struct world *w, uint64_t leaks_max, const char *when, struct scow_check_result *ret)
{
    struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result result = SCOW_CHECK_RESULT_INIT;
    int r;

    o.threads = 1;
    r = scow_check(w->image, &o, &result);
    if (r < 0)
        world_fail(w, "%s: check: %d, %s", when, r, scow_error());
    if (result.corruptions || result.check_errors || result.leaks > leaks_max) {
        o.problem = print_problem;
        (void)scow_check(w->image, &o, &result);
        world_fail(w,
                   "%s: %" PRIu64 " corruptions, %" PRIu64 " errors, %" PRIu64 " leaks of at most %" PRIu64,
                   when, result.corruptions, result.check_errors, result.leaks, leaks_max);
    }
    w->run->stats->leaks_max = MAX(w->run->stats->leaks_max, result.leaks);
    if (ret)
        *ret = result;
}

uint32_t world_read_all(struct world *w, const char *when)
{
    const uint64_t bytes = scow_size(w->image);
    const uint32_t sectors = (uint32_t)(bytes / ORACLE_SECTOR);
    int r;

    if (sectors > DISK_SECTORS_MAX)
        world_fail(w, "%s: the disk has %" PRIu64 " bytes", when, bytes);
    w->sim->idle_steps = 0;
    r = scow_pread(w->image, w->run->plain, bytes, 0);
    if (r < 0)
        world_fail(w, "%s: reading all: %d, %s", when, r, scow_error());
    return sectors;
}

void world_verify(struct world *w, struct world *judge, const char *when)
{
    const uint32_t ticket = oracle_read_begin(&judge->oracle);
    char text[512];
    uint32_t sectors;

    sectors = world_read_all(w, when);
    if (sectors != judge->oracle.sectors)
        world_fail(w, "%s: the disk has %u sectors, not %u", when, sectors, judge->oracle.sectors);
    if (!oracle_read_end(&judge->oracle, ticket, 0, sectors, w->run->plain, text, sizeof text))
        world_fail(w, "%s: %s", when, text);
}

/* Reads through the snapshot's L1 table, put in the place of the active one. */
void world_verify_snapshot(struct world *w, const char *when)
{
    struct sim_disk *const d = w->sim->disks[0];
    const struct sim_content *const was = &w->run->content;
    uint8_t saved[48], *const header = d->now.p;
    uint64_t entry;
    uint32_t sectors;

    if (!w->config.snapshot)
        return;
    memcpy(saved, header + 24, sizeof saved);
    if (get_be32(header + 60) != 1)
        world_fail(w, "%s: the image has %u snapshots", when, get_be32(header + 60));
    entry = get_be64(header + 64);
    memcpy(header + 36, d->now.p + entry + 8, 4); /* L1 entries */
    memcpy(header + 40, d->now.p + entry, 8);     /* L1 offset */
    put_be64(header + 24, (uint64_t)was->sectors * ORACLE_SECTOR);
    if (world_open(w, false) < 0)
        world_fail(w, "%s: the snapshot cannot be opened", when);
    sectors = world_read_all(w, when);
    for (uint32_t i = 0; i < MIN(sectors, was->sectors); i++) {
        const uint64_t off = (uint64_t)i * ORACLE_SECTOR;

        if (stamp_value(w->run->plain + off, off) != was->values[i])
            world_fail(w, "%s: the snapshot's sector %u changed: 0x%x instead of 0x%x", when, i,
                       stamp_value(w->run->plain + off, off), was->values[i]);
    }
    (void)world_close(w);
    memcpy(header + 24, saved, sizeof saved);
}

void world_verify_closed(struct world *w, const char *when)
{
    const struct sim_disk *const d = w->sim->disks[0];
    struct scow_check_result result;

    w->sim->quiet = true;
    (void)world_open(w, false);
    world_check(w, w->leaks_kept, when, &result);
    if (!d->config.block_device && !w->leaks_kept && d->now_bytes > result.image_end_off)
        world_fail(w, "%s: the file has %" PRIu64 " bytes, its last cluster ends at %" PRIu64, when,
                   d->now_bytes, result.image_end_off);
    world_verify(w, w, when);
    (void)world_close(w);
    world_verify_snapshot(w, when);
    w->sim->quiet = false;
}
