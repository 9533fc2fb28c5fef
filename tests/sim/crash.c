/* SPDX-License-Identifier: MIT */
/*
 * Crashes. At a boundary between two steps the power fails, or the process dies; what the disks then hold
 * becomes another world, in which the image must check, read as the oracle allows, recover and go on.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "tests/sim/world.h"
#include "tests/unit/image_builder.h"

/* Beyond this many effects a sample of the subsets is taken. */
#define ENUMERATE_EFFECTS_MAX 10u
#define ENUMERATE_SAMPLES 96u
/* And as many in which single sectors are lost. */
#define ENUMERATE_TORN 6u
/* The allocator's own leases, and the tables of a growth. */
#define LEAKS_SLACK 64u

enum crash_kind {
    CRASH_KILL,  /* the process: what took effect stays */
    CRASH_NONE,  /* the power: nothing that was volatile stays */
    CRASH_WHOLE, /* each effect whole or not at all */
    CRASH_TORN,  /* sector by sector */
    CRASH_KINDS,
};

struct crash_choice {
    enum crash_kind kind;
    uint32_t keep_of_8; /* effects that stay, of eight */
    bool chosen;        /* by mask instead */
    uint64_t mask;
};

/* ---- the crashed disks ---- */

static bool keeps(const struct crash_choice *c, uint64_t *rng, uint32_t index)
{
    if (c->kind == CRASH_KILL)
        return true;
    if (c->kind == CRASH_NONE)
        return false;
    return c->chosen ? c->mask >> index & 1 : random_below(rng, 8) < c->keep_of_8;
}

static void apply_torn(const struct sim_disk *d, const struct effect *e, uint64_t *rng, struct sparse *out)
{
    for (uint64_t at = 0; at < e->bytes; at += SIM_SECTOR)
        if (random_below(rng, 2))
            disk_effect_apply(d, e, at, MIN(SIM_SECTOR, e->bytes - at), out);
}

/* Writes that have not taken effect yet may have reached the disk all the same. */
static void apply_flights(const struct sim *sim, const struct sim_disk *d, const struct crash_choice *c,
                          uint64_t *rng, uint32_t *index, struct sparse *out)
{
    static uint8_t data[1u << 20];

    for (uint32_t i = 0; i < sim->flight_count; i++) {
        const struct flight *const f = &sim->flights[i];
        const struct io *const io = f->io;
        const uint64_t from = f->phase == FLIGHT_HALF ? f->split : 0;
        const struct iovec one = {io->buf, io->bytes};

        if (io->kind != IO_WRITE || sim_disk_of(io->file) != d || f->phase == FLIGHT_EFFECTIVE)
            continue;
        (*index)++;
        if (io->bytes > sizeof data || io->off + io->bytes > d->config.capacity ||
            (c->kind == CRASH_KILL ? random_below(rng, 2) : !keeps(c, rng, *index - 1)))
            continue;
        iov_gather(io->iov_count ? io->iov : &one, io->iov_count ? io->iov_count : 1, 0, data, io->bytes);
        for (uint64_t at = from; at < io->bytes; at += SIM_SECTOR)
            if (c->kind != CRASH_TORN || random_below(rng, 2))
                sparse_write(out, io->off + at, data + at, MIN(SIM_SECTOR, io->bytes - at));
    }
}

static void crash_disk(const struct sim *sim, const struct sim_disk *d, const struct crash_choice *c,
                       uint64_t *rng, uint32_t *index, struct sim_disk *out)
{
    uint32_t sizes = 0, sizes_kept;

    for (uint32_t i = 0; i < d->log_count; i++)
        sizes += d->log[i].size;
    sizes_kept = c->kind == CRASH_KILL   ? sizes
                 : c->kind == CRASH_NONE ? 0
                 : c->chosen             ? sizes
                                         : (uint32_t)random_below(rng, sizes + 1);
    out->config = d->config;
    out->clock = 0;
    out->log_count = 0;
    out->arena_used = 0;
    out->punched = out->syncs = 0;
    out->now_bytes = d->durable_bytes;
    sparse_copy(&out->now, &d->durable);
    for (uint32_t i = 0; i < d->log_count; i++) {
        const struct effect *const e = &d->log[i];

        if (e->size) {
            if (!sizes_kept)
                continue;
            sizes_kept--;
            out->now_bytes = e->off;
        } else if (!keeps(c, rng, (*index)++)) {
            continue;
        }
        if (c->kind == CRASH_TORN && !e->size && random_below(rng, 2))
            apply_torn(d, e, rng, &out->now);
        else
            disk_effect_apply(d, e, 0, e->bytes, &out->now);
    }
    apply_flights(sim, d, c, rng, index, &out->now);
    if (out->now_bytes < SPARSE_BYTES_MAX)
        sparse_zero(&out->now, out->now_bytes, SPARSE_BYTES_MAX - out->now_bytes);
    sparse_copy(&out->durable, &out->now);
    out->durable_bytes = out->size_max = out->now_bytes;
}

/* How many effects a crash may keep or lose. */
static uint32_t effects_count(const struct sim *sim)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < sim->disk_count; k++)
        for (uint32_t i = 0; i < sim->disks[k]->log_count; i++)
            n += !sim->disks[k]->log[i].size;
    for (uint32_t i = 0; i < sim->flight_count; i++)
        n += sim->flights[i].io->kind == IO_WRITE && sim->flights[i].phase != FLIGHT_EFFECTIVE;
    return n;
}

static void crash_disks(const struct world *w, const struct crash_choice *c, uint64_t *rng, struct sim *out)
{
    uint32_t index = 0;

    sim_reset(out, random_next(rng));
    for (uint32_t i = 0; i < w->sim->disk_count; i++) {
        if (!out->disks[i])
            out->disks[i] = disk_new();
        crash_disk(w->sim, w->sim->disks[i], c, rng, &index, out->disks[i]);
    }
    out->disk_count = w->sim->disk_count;
}

/* ---- looking at one ---- */

/* True when the same image was seen with the same demands on it. */
static bool seen_before(struct world *w, const struct sim *crashed)
{
    uint64_t hash = w->oracle.durable_changes * 0x9e3779b97f4a7c15u + w->depth + 1;
    uint64_t *slot;

    for (uint32_t i = 0; i < crashed->disk_count; i++)
        hash = hash * 0x100000001b3u ^ sparse_hash(&crashed->disks[i]->now) ^ crashed->disks[i]->now_bytes;
    slot = &w->run->seen[hash % SEEN_SLOTS];
    if (*slot == hash)
        return true;
    *slot = hash;
    return false;
}

static void write_disks(struct world *w, const char *folder)
{
    for (uint32_t i = 0; i < w->sim->disk_count; i++) {
        const struct sim_disk *const d = w->sim->disks[i];
        char path[300];
        FILE *f;

        snprintf(path, sizeof path, "%s/%s", folder, d->config.name);
        f = fopen(path, "we");
        if (!f || fwrite(d->now.p, 1, d->now_bytes, f) != d->now_bytes || fclose(f))
            world_fail(w, "cannot write %s", path);
    }
}

/* qemu-img says 0 for a clean image, 3 for leaks, which a crash may leave. */
static void ask_qemu(struct world *w)
{
    char folder[] = "/dev/shm/simulate-XXXXXX", command[512];
    int status;

    if (!w->run->options.qemu_every || w->run->stats->crash_images % w->run->options.qemu_every ||
        w->config.cluster_bits < 9)
        return;
    if (!mkdtemp(folder))
        world_fail(w, "cannot make a folder in /dev/shm");
    write_disks(w, folder);
    snprintf(command, sizeof command, "cd %s && qemu-img check -f qcow2 image >check 2>&1", folder);
    fflush(stdout);
    status = system(command);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3)) {
        snprintf(command, sizeof command, "head -20 %s/check", folder);
        (void)!system(command);
        world_fail(w, "qemu-img check says %d of the crashed image, kept in %s", WEXITSTATUS(status), folder);
    }
    snprintf(command, sizeof command, "rm -r %s", folder);
    (void)!system(command);
    w->run->stats->qemu_checks++;
}

static uint64_t leaks_bound(const struct world *w)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;

    if (!w->image || w->leaks_expected)
        return UINT64_MAX; /* being opened or closed: what an earlier crash left may still be there */
    (void)scow_counters(w->image, &c);
    /* leased counts what was granted since the last quiesce; a pass may be about to grant as much again. */
    /* Or, after a quiesce, a quarter of the image (engine/counts_machine.c). */
    return w->leaks_kept + 2 * c.leased + c.freed_pending + LEAKS_SLACK + 64ull * w->config.shards +
           (w->sim->disks[0]->size_max >> w->config.cluster_bits) / 4;
}

/* What survived must be allowed; it is where the new world begins. */
static void judge_survivors(struct world *child, const struct world *parent, bool killed)
{
    const uint32_t sectors = world_read_all(child, "after a crash");
    struct runner *const run = child->run;
    char text[512];

    if (sectors != parent->oracle.sectors &&
        !(sectors > parent->oracle.sectors && sectors <= parent->sectors_coming))
        world_fail(child, "after a crash the disk has %u sectors, not %u", sectors, parent->oracle.sectors);
    for (uint32_t i = 0; i < sectors; i++) {
        const uint64_t off = (uint64_t)i * ORACLE_SECTOR;

        if (i >= parent->oracle.sectors) {
            run->values[i] = stamp_value(run->plain + off, off);
            if (run->values[i] != VALUE_ZERO)
                world_fail(child, "after a crash new sector %u is not zero", i);
        } else if (!oracle_survivor(&parent->oracle, i, killed, run->plain + off, &run->values[i], text,
                                    sizeof text)) {
            world_fail(child, "after a crash %s", text);
        }
    }
    oracle_reset(&child->oracle, sectors, run->values);
}

static void recover_and_go_on(struct world *child, uint64_t *rng)
{
    struct run_config *const c = &child->config;

    c->clients = 1 + (uint32_t)random_below(rng, 2);
    c->ops = 1 + (uint32_t)random_below(rng, 6);
    c->seed = random_next(rng);
    c->faults = FAULTS_NONE;
    child->sim->quiet = false;
    child->leaks_expected = true;
    if (world_open(child, true) < 0)
        return; /* no space to recover in */
    child->leaks_expected = false;
    if (random_below(rng, 2)) {
        const int r = scow_quiesce(child->image);

        if (r < 0 && !faults_explain(child, r))
            world_fail(child, "quiesce after recovery: %d, %s", r, scow_error());
        if (r == 0)
            world_check(child, child->leaks_kept, "after recovery", NULL);
    }
    clients_run(child, 0, c->ops);
    child->leaks_expected = true;
    if (world_close(child) == 0)
        world_verify_closed(child, "closed after recovery");
}

void keep_leaks(struct world *w)
{
    /* The check counts no leaks past the end of the file, where they may come to light later: no bound. */
    if (w->config.version == 2 || w->run->options.leaks_stay)
        w->leaks_kept = UINT64_MAX / 2;
}

static void look(struct world *w, const struct crash_choice *choice, bool go_on)
{
    struct world *const child = &w->run->worlds[w->depth + 1];
    struct sim *const sim = w->run->sims[w->depth + 1];
    const uint64_t bound = leaks_bound(w);
    uint64_t rng;

    crash_disks(w, choice, &w->crash_rng, sim);
    if (seen_before(w, sim)) {
        w->run->stats->crash_seen++;
        return;
    }
    w->run->stats->crash_images++;
    rng = random_next(&w->crash_rng);
    world_begin(child, w->run, w->depth + 1, &w->config);
    child->crash_rng = random_next(&rng);
    sim->quiet = true;
    sim_trace(w->sim, "---- crash, kind %d, of %u effects", (int)choice->kind, effects_count(w->sim));
    ask_qemu(child);
    (void)world_open(child, false);
    world_check(child, bound, "after a crash", NULL);
    keep_leaks(child);
    judge_survivors(child, w, choice->kind == CRASH_KILL);
    (void)world_close(child);
    world_verify_snapshot(child, "after a crash");
    if (go_on)
        recover_and_go_on(child, &rng);
    w->run->stats->ios += sim->ios;
    w->run->stats->turns += sim->steps;
    sim_trace(w->sim, "---- back from the crash");
}

/* ---- when ---- */

static void enumerate(struct world *w)
{
    const uint32_t n = effects_count(w->sim);
    struct crash_choice c = {.kind = CRASH_TORN, .keep_of_8 = 6};

    for (uint32_t i = 0; n && i < ENUMERATE_TORN; i++)
        look(w, &c, random_below(&w->crash_rng, 8) == 0);
    c.kind = CRASH_WHOLE;
    c.chosen = true;
    if (n <= ENUMERATE_EFFECTS_MAX) {
        for (c.mask = 0; c.mask < 1ull << n; c.mask++)
            look(w, &c, random_below(&w->crash_rng, 8) == 0);
        w->run->stats->enumerated++;
        return;
    }
    for (uint32_t i = 0; i < ENUMERATE_SAMPLES; i++) {
        c.mask = random_next(&w->crash_rng);
        if (i % 4 == 1)
            c.mask |= random_next(&w->crash_rng);
        if (i % 4 == 2)
            c.mask &= random_next(&w->crash_rng);
        look(w, &c, random_below(&w->crash_rng, 8) == 0);
    }
}

void crash_boundary(struct world *w)
{
    static const uint8_t keeps[] = {1, 4, 4, 7};
    struct crash_choice c = {0};

    if (w->depth + 1 >= WORLDS_MAX || w->run->options.no_crashes)
        return;
    if (w->run->enumerate && w->depth == 0) {
        w->run->stats->crash_points++;
        enumerate(w);
        return;
    }
    if (random_below(&w->crash_rng, 1000) >= w->config.crash_per_mille * (w->depth ? 2 : 1) ||
        (w->run->options.crashes_per_run && w->run->crashes >= w->run->options.crashes_per_run))
        return;
    w->run->crashes++;
    w->run->stats->crash_points++;
    c.kind = (enum crash_kind)random_below(&w->crash_rng, CRASH_KINDS);
    c.keep_of_8 = keeps[random_below(&w->crash_rng, sizeof keeps)];
    look(w, &c, true);
}

void crash_look_visible(struct world *w)
{
    const struct crash_choice c = {.kind = CRASH_KILL};
    struct world *const child = &w->run->worlds[w->depth + 1];
    struct sim *const sim = w->run->sims[w->depth + 1];

    if (w->depth + 1 >= WORLDS_MAX)
        return;
    crash_disks(w, &c, &w->crash_rng, sim);
    world_begin(child, w->run, w->depth + 1, &w->config);
    sim->quiet = true;
    (void)world_open(child, false);
    world_check(child, w->leaks_kept, "after quiesce", NULL);
    world_verify(child, w, "after quiesce");
    (void)world_close(child);
}
