/* SPDX-License-Identifier: MIT */
/*
 * Whatever fails, one thing at a time and for every one of them: an operation ends with its result or with an
 * error that says what failed, never with wrong data, and leaves nothing open and nobody waiting.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/error.h"
#include "engine/image.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"
#include "tests/unit/test_env.h"

#define KIB (1ull << 10)
#define READS 24
#define READ_BYTES 12288u

static struct rig rig;

/* A queue whose backend broke keeps the memory that I/O may still write to, for good. */
static bool keeps_memory;

static void tear_down(void)
{
    rig_free(&rig);
    cr_assert(keeps_memory || !memory_is_lost());
}

static void build(void)
{
    const struct image_spec specs[] = {
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 512 * KIB},
        {.version = 3,
         .cluster_bits = 14,
         .refcount_order = 4,
         .extended_l2 = true,
         .zstd = true,
         .virtual_bytes = 400 * KIB},
        {.raw = true, .cluster_bits = 16, .virtual_bytes = 300 * KIB + 512},
    };

    rig_build(&rig, specs, 3, 5);
}

/* What one run gave. */
struct outcome {
    bool open_failed, failed; /* anything */
    char text[512];           /* of the first failure */
};

static void note(struct outcome *o, const char *text)
{
    if (!o->failed)
        snprintf(o->text, sizeof o->text, "%s", text);
    o->failed = true;
}

static void check_error(const struct test_plan *plan, int err, const char *text)
{
    cr_assert_eq(err, plan->error ? plan->error : -EIO, "%d: %s", err, text);
    cr_assert_not_null(text);
    cr_assert_neq(text[0], '\0', "an error without words");
}

static void use_queue(const struct test_plan *plan, struct scow_image *image, struct outcome *o)
{
    static uint8_t buf[READS][READ_BYTES];
    struct scow_completion done[READS];
    struct scow_queue *q;
    uint64_t seed = 3, at[READS];
    int left = READS, r = scow_queue_create(image, NULL, &q);

    if (r < 0) {
        check_error(plan, r, scow_error());
        note(o, scow_error());
        return;
    }
    for (int i = 0; i < READS; i++) {
        at[i] = random_below(&seed, (512 * KIB - READ_BYTES) / 512) * 512;
        cr_assert_eq(scow_queue_read(q, at[i], buf[i], READ_BYTES, &at[i], 0), 0);
    }
    while (left) {
        const int n = scow_queue_poll(q, done, 1, READS, 20000000000);

        if (n < 0) { /* the backend itself: what is in flight stays there */
            check_error(plan, n, scow_error());
            note(o, scow_error());
            break;
        }
        cr_assert_gt(n, 0, "nothing came in 20 s");
        for (int i = 0; i < n; i++) {
            const ptrdiff_t k = (uint64_t *)done[i].user_data - at;

            if (done[i].ret) {
                check_error(plan, done[i].ret, done[i].error);
                note(o, done[i].error);
            } else {
                cr_assert_null(done[i].error);
                cr_assert(rig_matches(&rig, at[k], READ_BYTES, buf[k]), "a request that failed said 0");
            }
        }
        left -= n;
    }
    (void)scow_queue_destroy(q);
}

static void use_blocking(const struct test_plan *plan, struct scow_image *image, struct outcome *o)
{
    struct scow_extent e = {.size = sizeof e};
    uint8_t buf[1000];

    for (uint64_t off = 100; off < 512 * KIB - 1000; off += 60000) {
        int r = scow_pread(image, buf, sizeof buf, off);

        if (r == 0)
            cr_assert(rig_matches(&rig, off, sizeof buf, buf));
        else
            check_error(plan, r, scow_error());
        if (r < 0)
            note(o, scow_error());
        r = scow_get_extent(image, off, 30000, 0, &e);
        if (r < 0) {
            check_error(plan, r, scow_error());
            note(o, scow_error());
        }
    }
}

static struct outcome run(struct test_plan *plan, enum file_mode mode)
{
    struct scow_open_options options = rig_options();
    struct env *env = test_env_create(plan);
    struct outcome o = {0};
    struct scow_image *image;
    struct file *file;
    int r;

    options.backend = SCOW_BACKEND_THREADS; /* the test's own, whatever is asked for */
    options.io_mode = mode == FILE_BUFFERED ? SCOW_IO_BUFFERED : SCOW_IO_AUTO;
    options.slice_bytes = 512;
    options.cache_bytes = 1;
    options.queues_max = 2;
    options.chain_depth_max = 4;
    r = test_env_open(env, rig.paths[0], mode, 0, &file);
    if (r < 0)
        env->ops->destroy(env);
    else
        r = image_open(env, file, &options, &image);
    if (r < 0) {
        check_error(plan, r, scow_error());
        note(&o, scow_error());
        o.open_failed = true;
    } else {
        use_queue(plan, image, &o);
        use_blocking(plan, image, &o);
        scow_close(image);
    }
    keeps_memory |= plan->fail_turn;
    if (plan->fail_turn)
        plan->live_backends = 0;
    cr_assert(test_plan_all_gone(plan), "left behind: %d environments, %d backends, %d files, %d loops",
              plan->live_envs, plan->live_backends, plan->live_files, plan->live_loops);
    return o;
}

Test(failures, none, .timeout = 60)
{
    struct test_plan plan = {.seed = 1};

    build();
    cr_assert_not(run(&plan, FILE_AUTO).failed);
    cr_assert_gt(plan.reads, 50);
    tear_down();
}

Test(failures, short_reads, .timeout = 120)
{
    build();
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct test_plan plan = {.seed = seed, .short_reads = true};
        const struct outcome o = run(&plan, seed % 2 ? FILE_AUTO : FILE_BUFFERED);

        cr_assert_not(o.failed, "%s", o.text);
    }
    tear_down();
}

Test(failures, interrupted_reads, .timeout = 120)
{
    struct test_plan reference = {.seed = 1};

    build();
    (void)run(&reference, FILE_BUFFERED);
    for (uint32_t n = 1; n <= reference.reads; n += 7) {
        struct test_plan plan = {.seed = 1, .fail_read = n, .error = -EINTR};
        const struct outcome o = run(&plan, FILE_BUFFERED);

        cr_assert_not(o.failed, "read %u: %s", n, o.text);
    }
    tear_down();
}

/* Read n of the run, for all n. */
static void fail_every_read(enum file_mode mode, bool short_reads)
{
    int failed = 0;
    uint32_t n = 1;

    build();
    for (;; n++) {
        struct test_plan plan = {.seed = 1, .fail_read = n, .short_reads = short_reads};
        const int before = open_descriptors();
        const struct outcome o = run(&plan, mode);

        cr_assert_eq(open_descriptors(), before, "descriptors are leaked when read %u fails", n);
        if (plan.reads < n)
            break;
        failed += o.failed;
        if (o.failed)
            cr_assert(strstr(o.text, "reading ") && strstr(o.text, " at offset 0x") &&
                          strstr(o.text, "failed: Input/output error"),
                      "read %u: \"%s\" does not say what could not be read", n, o.text);
        if (short_reads)
            n += n / 8;
    }
    cr_assert_gt(n, 50);
    /* All but the few that only decide whether holes are worth asking for. */
    cr_assert_gt(failed, (int)(short_reads ? 10 : n * 3 / 4));
    tear_down();
}

Test(failures, every_read, .timeout = 200)
{
    fail_every_read(FILE_AUTO, false);
}

Test(failures, every_read_buffered, .timeout = 200)
{
    fail_every_read(FILE_BUFFERED, false);
}

Test(failures, every_read_while_all_are_short, .timeout = 200)
{
    fail_every_read(FILE_BUFFERED, true);
}

Test(failures, every_backend_open_and_thread, .timeout = 100)
{
    build();
    for (int kind = 0; kind < 3; kind++) {
        uint32_t n = 1, seen;

        do {
            struct test_plan plan = {.seed = 1, .error = kind == 1 ? -EACCES : -ENOMEM};
            struct outcome o;

            plan.fail_backend = kind == 0 ? n : 0;
            plan.fail_open = kind == 1 ? n : 0;
            plan.fail_loop = kind == 2 ? n : 0;
            o = run(&plan, FILE_AUTO);
            seen = kind == 0 ? plan.backends : kind == 1 ? plan.opens : plan.loops;
            cr_assert_eq(o.failed, n <= seen, "kind %d, number %u: %s", kind, n, o.text);
        } while (n++ <= seen);
        cr_assert_gt(n, 3, "kind %d", kind);
    }
    tear_down();
}

/* After a failed start the next one may succeed. */
Test(failures, threads_that_could_not_be_started_may_be_started_later, .timeout = 60)
{
    struct scow_open_options options = rig_options();
    struct test_plan plan = {.seed = 1, .fail_loop = 2};
    struct scow_image *image;
    struct scow_queue *q;
    struct file *file;
    struct env *env;
    uint8_t buf[512];

    build();
    env = test_env_create(&plan);
    options.backend = SCOW_BACKEND_THREADS;
    options.queues_max = 2;
    options.chain_depth_max = 4;
    cr_assert_eq(test_env_open(env, rig.paths[0], FILE_AUTO, 0, &file), 0);
    cr_assert_eq(image_open(env, file, &options, &image), 0);
    cr_assert_eq(scow_queue_create(image, NULL, &q), -EIO);
    cr_assert_eq(scow_queue_create(image, NULL, &q), 0, "%s", scow_error());
    cr_assert_eq(rig_read(q, 0, buf, sizeof buf), 0);
    cr_assert(rig_matches(&rig, 0, sizeof buf, buf));
    scow_queue_destroy(q);
    scow_close(image);
    cr_assert(test_plan_all_gone(&plan));
    tear_down();
}

/* A backend that breaks for good: what is in flight cannot be finished, everything else ends and closes. */
Test(failures, broken_backends, .timeout = 200)
{
    struct test_plan reference = {.seed = 1};
    int failed = 0;

    build();
    (void)run(&reference, FILE_AUTO);
    cr_assert_gt(reference.turns, 20);
    for (uint32_t n = 1; n <= 150; n++) {
        struct test_plan plan = {.seed = n, .fail_turn = n};
        const struct outcome o = run(&plan, FILE_AUTO);

        failed += o.failed;
    }
    cr_assert_gt(failed, 50);
    tear_down();
}
