/* SPDX-License-Identifier: MIT */
/*
 * The pattern that shardcow.h gives for event loops: submit; poll with min 0 until it returns 0; sleep on the
 * descriptor; read it; repeat. Every step of a request has to signal the descriptor or be done by the poll
 * that returned 0: answers of shards, completions, reads that a starved request starts late.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attributes.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(completion_fd, .fini = abort_if_memory_is_lost);

#define MIB (1ull << 20)
#define SLEEP_MS 10000

struct subject {
    enum scow_backend backend;
    enum scow_io_mode io_mode;
    uint32_t shards;
};

static struct subject subjects[] = {
    {SCOW_BACKEND_AUTO, SCOW_IO_AUTO, 1},
    {SCOW_BACKEND_AUTO, SCOW_IO_BUFFERED, 4},
    {SCOW_BACKEND_THREADS, SCOW_IO_AUTO, 1},
    {SCOW_BACKEND_THREADS, SCOW_IO_BUFFERED, 4},
};

#define EACH_BACKEND(name)                                                                                   \
    ParameterizedTestParameters(completion_fd, name)                                                         \
    {                                                                                                        \
        return cr_make_param_array(struct subject, subjects, ARRAY_COUNT(subjects));                         \
    }                                                                                                        \
    ParameterizedTest(struct subject *s, completion_fd, name, .timeout = 120)

static struct scow_open_options options_of(const struct subject *s)
{
    struct scow_open_options o = rig_options();

    o.backend = s->backend;
    o.io_mode = s->io_mode;
    o.shards = s->shards;
    o.cache_bytes = 1;
    o.slice_bytes = 512;
    return o;
}

/* Asleep, as an event loop is, and late_us late at the next poll: meanwhile everything completes, and one
 * poll finds it all. False when nothing woke it: then the pattern is broken. */
static bool sleep_on(int fd, uint32_t late_us)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t n;

    if (poll(&p, 1, SLEEP_MS) != 1)
        return false;
    usleep(late_us);
    return read(fd, &n, sizeof n) == sizeof n || errno == EAGAIN;
}

/* Poll with min 0 until it returns 0. */
static uint32_t drain(struct scow_queue *q)
{
    struct scow_completion c[16];
    uint32_t total = 0;
    int n;

    while ((n = scow_queue_poll(q, c, 0, 16, 0)) > 0)
        for (int i = 0; i < n; i++, total++)
            cr_assert_eq(c[i].ret, 0, "%s", c[i].error);
    cr_assert_eq(n, 0, "%s", scow_error());
    return total;
}

static void finish(struct scow_queue *q, uint32_t count, uint32_t late_us)
{
    const int fd = scow_queue_completion_fd(q);

    for (;;) {
        const uint32_t n = drain(q);

        cr_assert_leq(n, count);
        count -= n;
        if (!count)
            return;
        cr_assert(sleep_on(fd, late_us), "asleep for good with %" PRIu32 " requests in flight", count);
    }
}

static void open_mixed(struct rig *rig, const struct subject *s)
{
    const struct image_spec specs[] = {
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 8 * MIB},
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 8 * MIB},
    };
    const struct scow_open_options o = options_of(s);

    rig_build(rig, specs, 2, 31);
    rig_open(rig, &o);
    rig_queue(rig, 64);
    cr_assert_eq(scow_queue_enable_completion_fd(rig->queue, 1), 0, "%s", scow_error());
}

/* One request at a time, every one of them a miss. */
EACH_BACKEND(one_by_one)
{
    uint64_t seed = 1;
    struct rig rig;
    uint8_t *buf = aligned_alloc(4096, 16384);

    open_mixed(&rig, s);
    for (int i = 0; i < 1500; i++) {
        const uint64_t off = random_below(&seed, 8 * MIB / 4096 - 3) * 4096;

        cr_assert_eq(scow_queue_read(rig.queue, off, buf, 16384, NULL, 0), 0);
        finish(rig.queue, 1, 0);
        cr_assert(rig_matches(&rig, off, 16384, buf));
    }
    free(buf);
    rig_free(&rig);
}

EACH_BACKEND(many)
{
    uint64_t seed = 2, at[64];
    struct rig rig;
    uint8_t *buf = aligned_alloc(4096, 64 * 8192);

    open_mixed(&rig, s);
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < 64; i++) {
            at[i] = random_below(&seed, 8 * MIB / 512 - 16) * 512;
            cr_assert_eq(scow_queue_read(rig.queue, at[i], buf + i * 8192, 8192, NULL, 0), 0);
        }
        finish(rig.queue, 64, 0);
        for (int i = 0; i < 64; i++)
            cr_assert(rig_matches(&rig, at[i], 8192, buf + i * 8192));
    }
    free(buf);
    rig_free(&rig);
}

/* More parts than a queue has buffers for: some start only when others have ended, and no request is complete
 * then. */
EACH_BACKEND(starved_requests)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = 48 * MIB};
    struct scow_open_options o = options_of(s);
    struct rig rig = {.count = 1};
    uint8_t *buf = malloc(48 * MIB + 4096);
    uint8_t *odd = buf + 3 + (-(uintptr_t)buf & 4095); /* direct I/O has to copy */

    rig.layers[0] = builder_new(&spec);
    snprintf(rig.paths[0], sizeof rig.paths[0], "%s", scratch("image"));
    /* Every other cluster on the host, so that nothing joins; some compressed. */
    for (uint64_t c = 0; c < 768; c++) {
        if (c % 16 == 15) {
            builder_compressed(rig.layers[0], c);
        } else {
            builder_data(rig.layers[0], c);
            builder_allocate(rig.layers[0]);
        }
    }
    builder_write(rig.layers[0], rig.paths[0]);
    rig_open(&rig, &o);
    rig_queue(&rig, 4);
    cr_assert_eq(scow_queue_enable_completion_fd(rig.queue, 1), 0);
    for (int i = 0; i < 2; i++) {
        memset(buf, 0xee, 48 * MIB);
        cr_assert_eq(scow_queue_read(rig.queue, 0, odd, 48 * MIB, NULL, 0), 0);
        finish(rig.queue, 1, 20000);
        cr_assert(rig_matches(&rig, 0, 48 * MIB, odd));
    }
    free(buf);
    rig_free(&rig);
}

/* What needs no I/O: it may be complete at once, or be told later. */
EACH_BACKEND(holes_and_flushes)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = MIB};
    struct scow_open_options o = options_of(s);
    struct rig rig = {.count = 1};
    uint8_t buf[4096];

    rig.layers[0] = builder_new(&spec);
    snprintf(rig.paths[0], sizeof rig.paths[0], "%s", scratch("image"));
    builder_write(rig.layers[0], rig.paths[0]);
    rig_open(&rig, &o);
    rig_queue(&rig, 4);
    cr_assert_eq(scow_queue_enable_completion_fd(rig.queue, 1), 0);
    for (int i = 0; i < 200; i++) {
        if (i % 2)
            cr_assert_eq(scow_queue_read(rig.queue, 0, buf, sizeof buf, NULL, 0), 0);
        else
            cr_assert_eq(scow_queue_flush(rig.queue, NULL, 0), 0);
        finish(rig.queue, 1, 0);
        cr_assert_eq(drain(rig.queue), 0);
    }
    rig_free(&rig);
}

EACH_BACKEND(enabled_with_requests_in_flight_and_disabled_again)
{
    struct rig rig;
    uint8_t *buf = aligned_alloc(4096, 32 * 4096);

    open_mixed(&rig, s);
    for (int round = 0; round < 20; round++) {
        cr_assert_eq(scow_queue_enable_completion_fd(rig.queue, 0), 0);
        for (uint64_t i = 0; i < 32; i++)
            cr_assert_eq(
                scow_queue_read(rig.queue, (i * 64 + (uint64_t)round) * 4096, buf + i * 4096, 4096, NULL, 0),
                0);
        cr_assert_eq(scow_queue_enable_completion_fd(rig.queue, 1), 0);
        finish(rig.queue, 32, 0);
    }
    cr_assert_eq(scow_queue_enable_completion_fd(rig.queue, 0), 0);
    cr_assert_eq(rig_read(rig.queue, 0, buf, 4096), 0, "without it poll waits as ever");
    free(buf);
    rig_free(&rig);
}
