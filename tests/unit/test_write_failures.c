/* SPDX-License-Identifier: MIT */
/*
 * Whatever fails while an image is written to, one thing at a time and for every one of them: requests end,
 * with 0 or an error that says what failed; later ones succeed again; the image closes; a check finds leaks
 * at worst; and every sector has what was acknowledged last, or what a request that failed would have put
 * there.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/rcu.h"
#include "engine/image.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"
#include "tests/unit/test_env.h"
#include "tests/unit/write_model.h"

TestSuite(write_failures, .fini = abort_if_memory_is_lost);

#define KIB (1ull << 10)
#define REQUEST_BYTES_MAX (256 * KIB)
/* More than any of the scenarios takes by far. */
#define TURNS_MAX 400000u

static struct model model, at_flush;

/* ---- a run ---- */

struct trial {
    struct test_plan plan;
    struct env *env;
    struct scow_image *image;
    struct scow_queue *queue;
    uint8_t *buf;
    const char *what; /* the scenario, and what fails */
    uint32_t n;
    bool failed; /* anything */
    bool closed_well;
    char text[512];      /* of the first failure */
    uint32_t *all_later; /* what fails goes on failing: the plan's number */
    const _Atomic uint32_t *counted;
};

#define WHERE(run) "%s, number %" PRIu32 ": "
#define HERE(run) (run)->what, (run)->n

static void note(struct trial *r, int err, const char *text)
{
    cr_assert_not_null(text, WHERE(r) "error %d without words", HERE(r), err);
    cr_assert_neq(text[0], '\0', WHERE(r) "error %d without words", HERE(r), err);
    if (!r->failed)
        snprintf(r->text, sizeof r->text, "%s", text);
    r->failed = true;
}

/* A device that has broken stays broken. */
static void fail_again(struct trial *r)
{
    if (r->all_later && *r->counted >= *r->all_later)
        *r->all_later = *r->counted + 1;
}

/* One request, moved on until it ends. */
static int finish(struct trial *r, int submitted)
{
    struct scow_completion c;

    cr_assert_eq(submitted, 0, WHERE(r) "submitting: %d %s", HERE(r), submitted, scow_error());
    for (uint32_t turn = 0; turn < TURNS_MAX; turn++) {
        fail_again(r);

        const int n = scow_queue_poll(r->queue, &c, 0, 1, 0);

        cr_assert_geq(n, 0, WHERE(r) "poll: %d %s", HERE(r), n, scow_error());
        if (n) {
            if (c.ret < 0)
                note(r, c.ret, c.error);
            return c.ret;
        }
        test_env_step(r->env);
    }
    cr_assert_fail(WHERE(r) "a request is stuck; the first failure was \"%s\"", HERE(r), r->text);
    return -ETIMEDOUT;
}

/* A submission that is refused: the image has given up. */
static bool refused(struct trial *r, int submitted)
{
    if (submitted != -EROFS || !(r->failed || r->all_later))
        return false;
    note(r, submitted, scow_error());
    return true;
}

static void change(struct trial *r, int submitted, uint64_t off, uint64_t bytes, uint16_t value)
{
    if (refused(r, submitted))
        return;
    if (finish(r, submitted) == 0)
        model_set(&model, off, bytes, value);
    else
        model_may(&model, off, bytes, value);
}

static void put(struct trial *r, uint64_t off, uint64_t bytes, uint8_t value, uint32_t flags)
{
    memset(r->buf, value, bytes);
    change(r, scow_queue_write(r->queue, off, r->buf, bytes, NULL, flags), off, bytes, value);
}

static void zero(struct trial *r, uint64_t off, uint64_t bytes, uint32_t flags)
{
    change(r, scow_queue_write_zeroes(r->queue, off, bytes, NULL, flags), off, bytes, 0);
}

/* Of whole clusters. */
static void discard(struct trial *r, uint64_t off, uint64_t bytes)
{
    change(r, scow_queue_discard(r->queue, off, bytes, NULL, 0), off, bytes, 0);
}

static void flush(struct trial *r)
{
    const int submitted = scow_queue_flush(r->queue, NULL, 0);

    if (!refused(r, submitted) && finish(r, submitted) == 0)
        at_flush = model;
}

static void verify(struct trial *r)
{
    for (uint64_t off = 0; off < model.bytes; off += REQUEST_BYTES_MAX) {
        const uint64_t bytes = MIN(REQUEST_BYTES_MAX, model.bytes - off);

        if (finish(r, scow_queue_read(r->queue, off, r->buf, bytes, NULL, 0)) < 0)
            continue;
        for (uint64_t at = 0; at < bytes; at += SECTOR)
            cr_assert(model_allows(&model, (off + at) / SECTOR, r->buf + at),
                      WHERE(r) "guest offset 0x%" PRIx64 " has 0x%02x…; the first failure was \"%s\"",
                      HERE(r), off + at, r->buf[at], r->text);
    }
}

static void quiesce(struct trial *r)
{
    const int err = scow_quiesce(r->image);

    if (err < 0)
        note(r, err, scow_error());
    else
        at_flush = model;
}

static void resize(struct trial *r, uint64_t bytes)
{
    const int err = scow_resize(r->image, bytes, 0);

    if (err < 0)
        note(r, err, scow_error());
    model.bytes = scow_size(r->image);
}

/* ---- scenarios ---- */

struct scenario {
    const char *name;
    struct image_spec spec;
    bool overlay;  /* over a raw file */
    bool snapshot; /* L1 and all of its tables without COPIED, everything referenced twice */
    uint32_t shards;
    void (*play)(struct trial *r);
};

static void play_allocating(struct trial *r)
{
    put(r, 0, 4 * KIB, 1, 0);
    put(r, 100 * KIB, 512, 2, 0);
    put(r, 33 * KIB + 512, 70 * KIB, 3, 0);
    flush(r);
    put(r, 0, 4 * KIB, 4, 0); /* in place */
    put(r, 200 * KIB, 64 * KIB, 5, SCOW_REQ_FUA);
    flush(r);
}

static void play_copying(struct trial *r)
{
    for (uint64_t i = 0; i < 12; i++)
        put(r, i * 24 * KIB + 512, 1024, (uint8_t)(10 + i), 0);
    flush(r);
    put(r, 3 * KIB, 90 * KIB, 30, SCOW_REQ_FUA);
}

static void play_discarding(struct trial *r)
{
    put(r, 0, 128 * KIB, 1, 0);
    flush(r);
    discard(r, 0, 64 * KIB);
    flush(r);
    zero(r, 64 * KIB, 16 * KIB, 0);
    zero(r, 80 * KIB + 512, 40 * KIB, SCOW_REQ_MAY_UNMAP);
    flush(r);
    put(r, 16 * KIB, 64 * KIB, 2, 0);
    flush(r);
    quiesce(r);
    put(r, 0, 64 * KIB, 3, 0);
}

static void play_growing(struct trial *r)
{
    put(r, 0, 8 * KIB, 1, 0);
    resize(r, IMAGE_BYTES_MAX);
    put(r, scow_size(r->image) - 8 * KIB, 8 * KIB, 2, 0);
    flush(r);
}

/* 512-byte clusters with wide refcounts: a block counts 64 clusters, the table fills soon. */
static void play_filling(struct trial *r)
{
    for (uint64_t i = 0; i < 6; i++) {
        put(r, i * 40 * KIB, 40 * KIB, (uint8_t)(1 + i), 0);
        flush(r);
    }
    discard(r, 40 * KIB, 80 * KIB);
    flush(r);
    put(r, 0, 100 * KIB, 9, 0);
}

static const struct scenario scenarios[] = {
    {"allocating writes",
     {.version = 3, .cluster_bits = 14, .refcount_order = 4, .virtual_bytes = 512 * KIB},
     .shards = 2,
     .play = play_allocating},
    {"copy on write from a backing file",
     {.version = 3, .cluster_bits = 13, .refcount_order = 4, .virtual_bytes = 300 * KIB},
     .overlay = true,
     .shards = 2,
     .play = play_copying},
    {"copy on write of subclusters",
     {.version = 3, .cluster_bits = 15, .refcount_order = 4, .extended_l2 = true, .virtual_bytes = 300 * KIB},
     .overlay = true,
     .shards = 1,
     .play = play_copying},
    {"copy on write of a snapshot",
     {.version = 3, .cluster_bits = 13, .refcount_order = 4, .virtual_bytes = 300 * KIB},
     .snapshot = true,
     .shards = 2,
     .play = play_copying},
    {"discard and zeroes",
     {.version = 3, .cluster_bits = 14, .refcount_order = 3, .virtual_bytes = 256 * KIB},
     .shards = 2,
     .play = play_discarding},
    {"discard and zeroes in version 2",
     {.version = 2, .cluster_bits = 13, .refcount_order = 4, .virtual_bytes = 256 * KIB},
     .shards = 1,
     .play = play_discarding},
    {"growing",
     {.version = 3, .cluster_bits = 9, .refcount_order = 4, .virtual_bytes = 64 * KIB},
     .shards = 2,
     .play = play_growing},
    {"new refcount blocks and a larger table",
     {.version = 3, .cluster_bits = 9, .refcount_order = 6, .virtual_bytes = 256 * KIB},
     .shards = 1,
     .play = play_filling},
};

/* ---- images ---- */

static char image_path[300], template_path[300], backing_path[300];

static void copy_file(const char *from, const char *to)
{
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    uint8_t buf[65536];
    size_t n;

    cr_assert(in && out);
    while ((n = fread(buf, 1, sizeof buf, in)) > 0)
        cr_assert_eq(fwrite(buf, 1, n, out), n);
    cr_assert_eq(fclose(out), 0);
    fclose(in);
}

/* Every cluster is referenced twice, as if by a snapshot: COPIED is clear everywhere. The second reference is
 * a leak to a check that sees no snapshot table. */
static void share_all(struct image_builder *b)
{
    const uint64_t clusters = div_round_up(b->spec.virtual_bytes, b->cluster_bytes);

    for (uint64_t c = 0; c < clusters; c++) {
        const uint64_t entry = builder_get_entry(b, c);

        if (entry & 1ull << 63) {
            builder_entry(b, c, entry & ~(1ull << 63), 0);
            b->refs[(entry & 0x00fffffffffffe00ull) / b->cluster_bytes]++;
        }
    }
}

static void build(const struct scenario *s)
{
    const struct image_spec raw = {.raw = true, .cluster_bits = 16, .virtual_bytes = 260 * KIB, .salt = 2};
    struct image_spec spec = s->spec;
    struct image_builder *layers[2] = {0};

    snprintf(image_path, sizeof image_path, "%s", scratch("image"));
    snprintf(template_path, sizeof template_path, "%s", scratch("template"));
    snprintf(backing_path, sizeof backing_path, "%s", scratch("backing"));
    spec.salt = 1;
    if (s->overlay) {
        spec.backing_name = "backing";
        spec.backing_format = "raw";
        layers[1] = builder_new(&raw);
        builder_raw(layers[1]);
        builder_write(layers[1], backing_path);
    }
    layers[0] = builder_new(&spec);
    if (s->play == play_copying)
        builder_mixed(layers[0], 5);
    if (s->snapshot)
        share_all(layers[0]);
    model_start(&model, spec.virtual_bytes);
    builder_expect(layers, s->overlay ? 2 : 1, 0, spec.virtual_bytes, model.original);
    builder_write(layers[0], template_path);
    builder_free(layers[0]);
    builder_free(layers[1]);
}

/* ---- playing one with a failure ---- */

static struct model fresh_model;

static int open_image(struct trial *r, uint32_t shards)
{
    struct scow_open_options o = rig_options();
    struct file *file;
    int err;

    rcu_thread_ensure(); /* this thread is all of the library's */
    r->plan.by_hand = true;
    r->env = test_env_create(&r->plan);
    o.flags = SCOW_OPEN_WRITE | SCOW_OPEN_NO_LOCK;
    o.backend = SCOW_BACKEND_THREADS; /* the test's own, whatever is asked for */
    o.io_mode = SCOW_IO_BUFFERED;
    o.slice_bytes = 512;
    o.shards = shards;
    o.cache_bytes = 1;
    o.queues_max = 2;
    o.chain_depth_max = 4;
    err = test_env_open(r->env, image_path, FILE_BUFFERED, FILE_WRITE, &file);
    if (err < 0)
        r->env->ops->destroy(r->env);
    else
        err = image_open(r->env, file, &o, &r->image);
    if (err < 0)
        note(r, err, scow_error());
    return err;
}

static void close_image(struct trial *r)
{
    int err;

    if (r->queue)
        cr_assert_eq(scow_queue_destroy(r->queue), 0, WHERE(r) "%s", HERE(r), scow_error());
    r->queue = NULL;
    err = scow_close(r->image);
    if (err < 0)
        note(r, err, scow_error());
    r->closed_well = err == 0;
    cr_assert(test_plan_all_gone(&r->plan),
              WHERE(r) "left behind: %d environments, %d backends, %d files, %d loops", HERE(r),
              r->plan.live_envs, r->plan.live_backends, r->plan.live_files, r->plan.live_loops);
}

static void count_problem(void *ctx, enum scow_problem_kind kind, const char *text)
{
    char(*first)[256] = ctx;

    if (kind != SCOW_PROBLEM_LEAK && !(*first)[0])
        snprintf(*first, sizeof *first, "%s", text);
}

/* By the operating system's own environment: what is on the disk. */
static uint64_t check_file(struct trial *r, bool leaks_are_fine)
{
    struct scow_open_options o = rig_options();
    struct scow_check_options co = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result found = SCOW_CHECK_RESULT_INIT;
    struct scow_image *image;
    char first[256] = "";

    o.flags = SCOW_OPEN_NO_IO;
    cr_assert_eq(scow_open(image_path, &o, &image), 0, WHERE(r) "%s", HERE(r), scow_error());
    co.problem = count_problem;
    co.ctx = &first;
    cr_assert_eq(scow_check(image, &co, &found), 0, WHERE(r) "%s", HERE(r), scow_error());
    cr_assert_eq(found.corruptions + found.check_errors, 0,
                 WHERE(r) "the check finds \"%s\"; the first failure was \"%s\"", HERE(r), first, r->text);
    if (!leaks_are_fine)
        cr_assert_eq(found.leaks, 0, WHERE(r) "%" PRIu64 " leaks; the first failure was \"%s\"", HERE(r),
                     found.leaks, r->text);
    scow_close(image);
    return found.leaks;
}

/* What a guest reads from the file as it was left; when it was not left well, of what was flushed and not
 * touched since. */
static void verify_file(struct trial *r)
{
    struct scow_open_options o = rig_options();
    struct scow_image *image;
    uint64_t bytes;

    o.io_mode = SCOW_IO_BUFFERED;
    cr_assert_eq(scow_open(image_path, &o, &image), 0, WHERE(r) "%s", HERE(r), scow_error());
    bytes = MIN(scow_size(image), model.bytes);
    for (uint64_t off = 0; off < bytes; off += SECTOR) {
        cr_assert_eq(scow_pread(image, r->buf, SECTOR, off), 0, WHERE(r) "%s", HERE(r), scow_error());
        if (!r->closed_well &&
            memcmp(&at_flush.sectors[off / SECTOR], &model.sectors[off / SECTOR], sizeof(struct sector)) != 0)
            continue;
        cr_assert(model_allows(&model, off / SECTOR, r->buf),
                  WHERE(r) "in the file guest offset 0x%" PRIx64 " has 0x%02x…; the first failure was \"%s\"",
                  HERE(r), off, r->buf[0], r->text);
    }
    scow_close(image);
}

/* After what failed, everything works again. */
static void go_on(struct trial *r)
{
    for (int i = 0; i < 3; i++) {
        put(r, 0, 8 * KIB, 0x77, 0);
        flush(r);
    }
    verify(r);
}

static void play(const struct scenario *s, struct trial *r)
{
    const uint64_t before = open_descriptors() > 0 ? (uint64_t)open_descriptors() : 0;

    copy_file(template_path, image_path);
    model = fresh_model;
    at_flush = model;
    r->buf = aligned_alloc(4096, REQUEST_BYTES_MAX);
    if (open_image(r, s->shards) == 0) {
        const int err = scow_queue_create(r->image, NULL, &r->queue);

        if (err == 0) {
            s->play(r);
            go_on(r);
        } else {
            note(r, err, scow_error());
        }
        close_image(r);
    }
    check_file(r, r->failed || s->snapshot);
    verify_file(r);
    free(r->buf);
    cr_assert_eq((uint64_t)open_descriptors(), before, WHERE(r) "descriptors are leaked", HERE(r));
}

/* ---- every one of a kind ---- */

enum kind {
    NOTHING,
    READ,
    WRITE,
    ALL_WRITES,
    SYNC,
    ALL_SYNCS,
    TRUNCATE,
    SPACE,
    SPACE_FULL,
    BACKEND,
    LOOP,
    KINDS
};

static const char *const kind_names[KINDS] = {
    [NOTHING] = "nothing",
    [READ] = "reads",
    [WRITE] = "writes",
    [ALL_WRITES] = "all later writes",
    [SYNC] = "syncs",
    [ALL_SYNCS] = "all later syncs",
    [TRUNCATE] = "truncates",
    [SPACE] = "allocations and punches",
    [SPACE_FULL] = "allocations and punches without space",
    [BACKEND] = "new backends",
    [LOOP] = "new threads",
};

static uint32_t *knob(struct test_plan *plan, enum kind kind)
{
    uint32_t *const knobs[KINDS] = {
        [NOTHING] = NULL,
        [READ] = &plan->fail_read,
        [WRITE] = &plan->fail_write,
        [ALL_WRITES] = &plan->fail_write,
        [SYNC] = &plan->fail_sync,
        [ALL_SYNCS] = &plan->fail_sync,
        [TRUNCATE] = &plan->fail_truncate,
        [SPACE] = &plan->fail_space,
        [SPACE_FULL] = &plan->fail_space,
        [BACKEND] = &plan->fail_backend,
        [LOOP] = &plan->fail_loop,
    };

    return knobs[kind];
}

static uint32_t seen(const struct test_plan *plan, enum kind kind)
{
    const uint32_t counts[KINDS] = {
        [NOTHING] = 0,
        [READ] = plan->reads,
        [WRITE] = plan->writes,
        [ALL_WRITES] = plan->writes,
        [SYNC] = plan->syncs,
        [ALL_SYNCS] = plan->syncs,
        [TRUNCATE] = plan->truncates,
        [SPACE] = plan->spaces,
        [SPACE_FULL] = plan->spaces,
        [BACKEND] = plan->backends,
        [LOOP] = plan->loops,
    };

    return counts[kind];
}

static struct trial trial;
static struct test_plan baseline; /* what a run without failures does */

static void every_one(const struct scenario *s, enum kind kind)
{
    char what[128];
    uint32_t total = 1, failed = 0;

    if (kind != NOTHING)
        total = seen(&baseline, kind);

    snprintf(what, sizeof what, "%s, %s", s->name, kind_names[kind]);
    for (uint32_t n = 1; n <= total; n++) {
        trial = (struct trial){
            .plan = {.seed = n, .error = kind == SPACE_FULL ? -ENOSPC : 0}, .what = what, .n = n};
        if (knob(&trial.plan, kind))
            *knob(&trial.plan, kind) = n;
        if (kind == ALL_WRITES || kind == ALL_SYNCS) {
            trial.all_later = knob(&trial.plan, kind);
            trial.counted = kind == ALL_WRITES ? &trial.plan.writes : &trial.plan.syncs;
        }
        play(s, &trial);
        if (kind == NOTHING)
            baseline = trial.plan;
        failed += trial.failed;
        if (kind == NOTHING)
            cr_assert_not(trial.failed, "%s: %s", what, trial.text);
    }
    fprintf(stderr, "%s: %" PRIu32 " of %" PRIu32 " were noticed\n", what, failed, total);
}

static void all_kinds(const struct scenario *s)
{
    build(s);
    fresh_model = model;
    for (enum kind kind = NOTHING; kind < KINDS; kind++)
        every_one(s, kind);
}

#define SCENARIO(name, index)                                                                                \
    Test(write_failures, name, .timeout = 230)                                                               \
    {                                                                                                        \
        all_kinds(&scenarios[index]);                                                                        \
    }

SCENARIO(allocating, 0)
SCENARIO(backing, 1)
SCENARIO(subclusters, 2)
SCENARIO(snapshots, 3)
SCENARIO(discarding, 4)
SCENARIO(discarding_version_2, 5)
SCENARIO(growing, 6)
SCENARIO(refcount_growth, 7)
