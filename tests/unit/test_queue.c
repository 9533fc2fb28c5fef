/* SPDX-License-Identifier: MIT */
/* The rules of submission and completion. What is read is test_read.c's subject. */
#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/attributes.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(queue, .fini = abort_if_memory_is_lost);
TestSuite(poll, .fini = abort_if_memory_is_lost);
TestSuite(queues, .fini = abort_if_memory_is_lost);
TestSuite(counters, .fini = abort_if_memory_is_lost);

#define MIB (1ull << 20)
#define CLUSTER 65536u

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* All clusters but every eighth have data; cluster 3's entry is damaged when asked for. */
static void open_rig(struct rig *rig, uint32_t depth, bool damaged)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = 4 * MIB};

    *rig = (struct rig){.count = 1};
    snprintf(rig->paths[0], sizeof rig->paths[0], "%s", scratch("image"));
    rig->layers[0] = builder_new(&spec);
    for (uint64_t c = 0; c < 64; c++)
        if (c % 8)
            builder_data(rig->layers[0], c);
    if (damaged)
        builder_entry(rig->layers[0], 3, builder_get_entry(rig->layers[0], 3) + 512, 0);
    builder_write(rig->layers[0], rig->paths[0]);
    rig_open(rig, NULL);
    rig_queue(rig, depth);
}

static uint8_t buffer[4 * MIB] __attribute__((aligned(4096)));

Test(queue, options)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;
    struct scow_queue *q = NULL;
    struct rig rig;

    open_rig(&rig, 1, false);
#define REFUSES(field, value)                                                                                \
    o = (struct scow_queue_options)SCOW_QUEUE_OPTIONS_INIT;                                                  \
    o.field = value;                                                                                         \
    cr_assert_eq(scow_queue_create(rig.image, &o, &q), -EINVAL);                                             \
    cr_assert_eq(strncmp(scow_error(), "queue options: ", 15), 0, "%s", scow_error());                       \
    cr_assert_null(q)
    REFUSES(size, 0);
    REFUSES(flags, 1);
    REFUSES(depth, 4097);
    REFUSES(reserved[2], 1);
#undef REFUSES
    o = (struct scow_queue_options)SCOW_QUEUE_OPTIONS_INIT;
    o.depth = 4096;
    cr_assert_eq(scow_queue_create(rig.image, &o, &q), 0, "%s", scow_error());
    scow_queue_destroy(q);
    rig_free(&rig);
}

Test(queue, one_more_than_depth)
{
    struct rig rig;

    open_rig(&rig, 4, false);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(scow_queue_read(rig.queue, 0, buffer, 512, NULL, 0), 0);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 4);
    cr_assert_eq(scow_queue_read(rig.queue, 0, buffer, 512, NULL, 0), -EAGAIN);
    cr_assert_eq(scow_queue_flush(rig.queue, NULL, 0), -EAGAIN);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 4);
    cr_assert(rig_collect(rig.queue, 1));
    cr_assert_eq(scow_queue_read(rig.queue, 0, buffer, 512, NULL, 0), 0, "one has left");
    cr_assert(rig_collect(rig.queue, 4));
    cr_assert_eq(scow_queue_in_flight(rig.queue), 0);
    rig_free(&rig);
}

Test(queue, depth_holds_after_a_failure)
{
    struct scow_completion c;
    struct rig rig;

    open_rig(&rig, 1, true);
    cr_assert_eq(scow_queue_read(rig.queue, 3 * CLUSTER, buffer, 512, NULL, 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, &c, 1, 1, SCOW_WAIT_FOREVER), 1);
    cr_assert_eq(c.ret, -EIO);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 0);
    /* Nothing is in flight, so one more is within the depth. */
    cr_assert_eq(scow_queue_read(rig.queue, 4 * CLUSTER, buffer, 512, NULL, 0), 0);
    cr_assert(rig_collect(rig.queue, 1));
    rig_free(&rig);
}

Test(queue, ranges_and_flags)
{
    const struct {
        uint64_t off;
        size_t bytes;
        uint32_t flags;
        const char *text;
    } bad[] = {
        {1, 512, 0, "512 bytes at offset 1"},
        {0, 100, 0, "100 bytes at offset 0"},
        {4 * MIB, 512, 0, "4194304 bytes"},
        {4 * MIB - 512, 1024, 0, "within the image"},
        {UINT64_MAX - 511, 512, 0, "within the image"},
        {0, SIZE_MAX - 511, 0, "within the image"},
        {512, SIZE_MAX - 511, 0, "within the image"},
        {0, 512, 1, "unknown flags 0x1"},
        {0, 512, 1u << 31, "unknown flags 0x80000000"},
    };
    struct rig rig;

    open_rig(&rig, 4, false);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        cr_assert_eq(scow_queue_read(rig.queue, bad[i].off, buffer, bad[i].bytes, NULL, bad[i].flags),
                     -EINVAL);
        cr_assert(strstr(scow_error(), bad[i].text), "%s", scow_error());
    }
    cr_assert_eq(scow_queue_flush(rig.queue, NULL, 8), -EINVAL);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 0, "nothing was done");
    cr_assert_eq(scow_queue_poll(rig.queue, NULL, 0, 0, 0), 0);
    rig_free(&rig);
}

Test(queue, vectors_that_make_no_sense)
{
    struct iovec iov[] = {{buffer, 512}, {buffer + 512, 100}};
    struct iovec huge[] = {{buffer, SIZE_MAX}, {buffer, SIZE_MAX}};
    struct rig rig;

    open_rig(&rig, 4, false);
    cr_assert_eq(scow_queue_readv(rig.queue, 0, iov, -1, NULL, 0), -EINVAL);
    cr_assert_eq(scow_queue_readv(rig.queue, 0, iov, IOV_MAX + 1, NULL, 0), -EINVAL);
    cr_assert_eq(scow_queue_readv(rig.queue, 0, iov, 2, NULL, 0), -EINVAL, "612 bytes are no whole sectors");
    cr_assert_eq(scow_queue_readv(rig.queue, 0, huge, 2, NULL, 0), -EINVAL);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 0);
    rig_free(&rig);
}

Test(queue, the_write_side_is_refused)
{
    struct iovec iov = {buffer, 512};
    struct rig rig;

    open_rig(&rig, 4, false);
    cr_assert_eq(scow_queue_write(rig.queue, 0, buffer, 512, NULL, 0), -EROFS);
    cr_assert_str_eq(scow_error(), "the image is open read-only");
    cr_assert_eq(scow_queue_writev(rig.queue, 0, &iov, 1, NULL, 0), -EROFS);
    cr_assert_eq(scow_queue_discard(rig.queue, 0, 512, NULL, 0), -EROFS);
    cr_assert_eq(scow_queue_write_zeroes(rig.queue, 0, 512, NULL, 0), -EROFS);
    cr_assert_eq(scow_pwrite(rig.image, buffer, 512, 0), -EROFS);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 0);
    rig_free(&rig);
}

Test(queue, flush_completes)
{
    struct scow_completion c = {0};
    struct rig rig;
    int tag;

    open_rig(&rig, 4, false);
    cr_assert_eq(scow_queue_flush(rig.queue, &tag, 0), 0);
    cr_assert_eq(scow_queue_in_flight(rig.queue), 1);
    cr_assert_eq(scow_queue_poll(rig.queue, &c, 1, 1, 0), 1, "there is nothing to wait for");
    cr_assert_eq(c.user_data, &tag);
    cr_assert_eq(c.ret, 0);
    cr_assert_null(c.error);
    rig_free(&rig);
}

Test(queue, requests_of_no_bytes)
{
    struct scow_completion c[4];
    struct rig rig;

    open_rig(&rig, 4, false);
    cr_assert_eq(scow_queue_read(rig.queue, 0, NULL, 0, &c[0], 0), 0);
    cr_assert_eq(scow_queue_read(rig.queue, 4 * MIB, NULL, 0, &c[1], 0), 0, "at the end of the image");
    cr_assert_eq(scow_queue_readv(rig.queue, 512, NULL, 0, &c[2], 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 3, 4, 0), 3);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(c[i].ret, 0);
        cr_assert_eq(c[i].user_data, &c[i]);
    }
    cr_assert_eq(scow_pread(rig.image, NULL, 0, 4 * MIB), 0);
    rig_free(&rig);
}

/* ---- poll ---- */

Test(poll, arguments)
{
    struct scow_completion c[2];
    struct rig rig;

    open_rig(&rig, 4, false);
    cr_assert_eq(scow_queue_poll(rig.queue, c, -1, 1, 0), -EINVAL);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 0, -1, 0), -EINVAL);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 2, 1, 0), -EINVAL);
    cr_assert(strstr(scow_error(), "min 2 and max 1"), "%s", scow_error());
    rig_free(&rig);
}

Test(poll, nothing_in_flight_does_not_wait, .timeout = 20)
{
    struct scow_completion c[2];
    struct rig rig;

    open_rig(&rig, 4, false);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 1, 2, SCOW_WAIT_FOREVER), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 2, 2, 3600000000000), 0);
    cr_assert_eq(scow_queue_flush(rig.queue, NULL, 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 2, 2, SCOW_WAIT_FOREVER), 1, "all there can be");
    rig_free(&rig);
}

Test(poll, min_and_max)
{
    struct scow_completion c[8];
    struct rig rig;

    open_rig(&rig, 8, false);
    for (int i = 0; i < 8; i++)
        cr_assert_eq(scow_queue_read(rig.queue, (uint64_t)i * CLUSTER, buffer + i * 4096, 4096, &c[i], 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 8, 8, SCOW_WAIT_FOREVER), 8);
    for (int i = 0; i < 6; i++)
        cr_assert_eq(scow_queue_flush(rig.queue, NULL, 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 0, 0, 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 2, 4, SCOW_WAIT_FOREVER), 4, "no more than max");
    cr_assert_eq(scow_queue_in_flight(rig.queue), 2);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 0, 4, 0), 2);
    rig_free(&rig);
}

Test(poll, min_0_never_waits)
{
    struct scow_completion c[4];
    struct rig rig;
    int n = 0;

    open_rig(&rig, 4, false);
    const uint64_t start = now_ns();
    for (int i = 0; i < 4; i++)
        cr_assert_eq(scow_queue_read(rig.queue, (uint64_t)i * CLUSTER, buffer, 512, NULL, 0), 0);
    while (n < 4 && now_ns() - start < 10000000000ull) {
        const int got = scow_queue_poll(rig.queue, c, 0, 4, SCOW_WAIT_FOREVER);

        cr_assert_geq(got, 0);
        n += got;
    }
    cr_assert_eq(n, 4, "polling alone moves requests on");
    rig_free(&rig);
}

/* A FIFO-like file that never completes does not exist for regular files: wait for more than can come at
 * once. */
Test(poll, a_timeout_ends_the_wait, .timeout = 30)
{
    struct scow_completion c[4];
    struct rig rig;

    open_rig(&rig, 4, false);
    for (int i = 0; i < 50; i++) {
        cr_assert_eq(scow_queue_read(rig.queue, 0, buffer, 4 * MIB, NULL, 0), 0);
        const uint64_t start = now_ns();
        const int n = scow_queue_poll(rig.queue, c, 1, 4, 1);

        cr_assert(n == 0 || n == 1);
        cr_assert_lt(now_ns() - start, 5000000000u);
        if (n == 0)
            cr_assert(rig_collect(rig.queue, 1));
    }
    rig_free(&rig);
}

Test(poll, the_error_text_lives_until_the_next_poll)
{
    struct scow_completion c[4];
    struct rig rig;
    char first[300];

    open_rig(&rig, 4, true);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(scow_queue_read(rig.queue, 3 * CLUSTER + 4096u * i, buffer, 4096, NULL, 0), 0);
    cr_assert_eq(scow_queue_poll(rig.queue, c, 3, 3, SCOW_WAIT_FOREVER), 3);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(c[i].ret, -EIO);
        cr_assert(strstr(c[i].error, "L2 entry 0x8"), "%s", c[i].error);
        cr_assert(strstr(c[i].error, "L2 index 3, guest offset 0x30000"), "%s", c[i].error);
    }
    snprintf(first, sizeof first, "%s", c[0].error);
    /* Anything but a poll leaves it alone. */
    cr_assert_eq(scow_queue_read(rig.queue, 0, buffer, 512, NULL, 0), 0);
    cr_assert_eq(scow_queue_read(rig.queue, 1, buffer, 512, NULL, 0), -EINVAL);
    cr_assert_eq(scow_pread(rig.image, buffer, 512, 3 * CLUSTER), -EIO);
    cr_assert_str_eq(c[0].error, first);
    cr_assert(rig_collect(rig.queue, 1));
    rig_free(&rig);
}

Test(poll, a_failed_request_does_not_taint_its_successors)
{
    struct rig rig;

    open_rig(&rig, 1, true);
    for (int i = 0; i < 10; i++) {
        cr_assert_eq(rig_read(rig.queue, 3 * CLUSTER, buffer, 4096), -EIO);
        cr_assert_neq(rig_text()[0], '\0');
        cr_assert_eq(scow_queue_poll(rig.queue, NULL, 0, 0, 0), 0);
        cr_assert_eq(rig_read(rig.queue, 4 * CLUSTER, buffer, 4096), 0);
        cr_assert_str_eq(rig_text(), "");
        cr_assert(rig_matches(&rig, 4 * CLUSTER, 4096, buffer));
    }
    rig_free(&rig);
}

/* ---- queues come and go ---- */

Test(queues, queues_max)
{
    struct scow_open_options o = rig_options();
    struct scow_queue *q[3] = {0};
    struct scow_image *image;
    struct rig rig;

    open_rig(&rig, 1, false);
    o.queues_max = 2;
    cr_assert_eq(scow_open(rig.paths[0], &o, &image), 0);
    cr_assert_eq(scow_pread(image, buffer, 512, 0), 0, "the blocking helpers' queue does not count");
    cr_assert_eq(scow_queue_create(image, NULL, &q[0]), 0);
    cr_assert_eq(scow_queue_create(image, NULL, &q[1]), 0);
    cr_assert_eq(scow_queue_create(image, NULL, &q[2]), -EMFILE);
    cr_assert(strstr(scow_error(), "queues_max"), "%s", scow_error());
    cr_assert_null(q[2]);
    scow_queue_destroy(q[0]);
    cr_assert_eq(scow_queue_create(image, NULL, &q[2]), 0, "a place is free again");
    scow_queue_destroy(q[1]);
    scow_queue_destroy(q[2]);
    scow_close(image);
    rig_free(&rig);
}

Test(queues, nothing_is_leaked)
{
    struct rig rig;

    open_rig(&rig, 1, false);
    cr_assert_eq(rig_read(rig.queue, 0, buffer, 512), 0);
    const int before = open_descriptors();
    for (int i = 0; i < 20; i++) {
        struct scow_queue *q;

        cr_assert_eq(scow_queue_create(rig.image, NULL, &q), 0, "%s", scow_error());
        cr_assert_eq(rig_read(q, 512, buffer, 512), 0);
        scow_queue_destroy(q);
    }
    cr_assert_eq(open_descriptors(), before);
    rig_free(&rig);
}

Test(queues, destroy_with_requests_in_flight, .timeout = 60)
{
    struct rig rig;

    open_rig(&rig, 1, true);
    for (int i = 0; i < 30; i++) {
        struct scow_queue *q;
        struct scow_image *image;
        struct scow_open_options o = rig_options();

        o.backend = i % 2 ? SCOW_BACKEND_THREADS : SCOW_BACKEND_AUTO;
        cr_assert_eq(scow_open(rig.paths[0], &o, &image), 0);
        cr_assert_eq(scow_queue_create(image, NULL, &q), 0);
        for (uint64_t k = 0; k < 64; k++) /* misses, data, holes and a damaged entry */
            cr_assert_eq(scow_queue_read(q, k * CLUSTER, buffer + k * CLUSTER, CLUSTER, NULL, 0), 0);
        if (i % 3)
            cr_assert_geq(scow_queue_poll(q, NULL, 0, 0, 0), 0);
        scow_queue_destroy(q);
        memset(buffer, 0xee, sizeof buffer);
        scow_close(image);
        for (size_t k = 0; k < sizeof buffer; k += 512)
            cr_assert_eq(buffer[k], 0xee, "nobody writes to the memory any more");
    }
    rig_free(&rig);
}

struct elsewhere {
    struct rig *rig;
    struct scow_queue *queue;
    bool leave_in_flight;
    bool good;
    pthread_barrier_t submitted, tried;
};

static void *use_queue(void *arg)
{
    struct elsewhere *e = arg;
    uint8_t *buf = malloc(CLUSTER);

    e->good = true;
    for (uint64_t c = 0; c < 64; c++)
        e->good &= rig_read(e->queue, c * CLUSTER, buf, CLUSTER) == 0 &&
                   rig_matches(e->rig, c * CLUSTER, CLUSTER, buf);
    free(buf);
    if (!e->leave_in_flight)
        return NULL;
    for (uint64_t c = 0; c < 64; c++)
        e->good &= scow_queue_read(e->queue, c * CLUSTER, buffer + c * CLUSTER, CLUSTER, NULL, 0) == 0;
    e->good &= scow_queue_poll(e->queue, NULL, 0, 0, 0) == 0;
    pthread_barrier_wait(&e->submitted);
    pthread_barrier_wait(&e->tried);
    if (e->queue) {
        e->good &= rig_collect(e->queue, 64);
        e->good &= rig_matches(e->rig, 0, 4 * MIB, buffer);
    }
    return NULL;
}

static void check_elsewhere(enum scow_backend backend, bool leave_in_flight)
{
    struct scow_open_options o = rig_options();
    struct elsewhere e = {.leave_in_flight = leave_in_flight};
    struct scow_image *image;
    pthread_t thread;
    struct rig rig;

    open_rig(&rig, 1, false);
    o.backend = backend;
    o.cache_bytes = 1;
    o.slice_bytes = 512;
    cr_assert_eq(scow_open(rig.paths[0], &o, &image), 0);
    e.rig = &rig;
    pthread_barrier_init(&e.submitted, NULL, 2);
    pthread_barrier_init(&e.tried, NULL, 2);
    cr_assert_eq(scow_queue_create(image, NULL, &e.queue), 0);
    cr_assert_eq(pthread_create(&thread, NULL, use_queue, &e), 0);
    if (leave_in_flight) {
        pthread_barrier_wait(&e.submitted);
        const int r = scow_queue_destroy(e.queue);
        if (r == 0) {
            /* Where any thread may wait for them: nobody writes to the memory any more. */
            e.queue = NULL;
            memset(buffer, 0xee, sizeof buffer);
            usleep(20000);
            for (size_t k = 0; k < sizeof buffer; k += 512)
                cr_assert_eq(buffer[k], 0xee);
        } else {
            cr_assert_eq(r, -EBUSY, "%s", scow_error());
            cr_assert_eq(scow_queue_in_flight(e.queue), 64, "nothing was done");
        }
        pthread_barrier_wait(&e.tried);
    }
    pthread_join(thread, NULL);
    cr_assert(e.good);
    /* By the thread that created it, which never used it. */
    cr_assert_eq(scow_queue_destroy(e.queue), 0, "%s", scow_error());
    scow_close(image);
    rig_free(&rig);
}

Test(queues, created_here_used_there, .timeout = 60)
{
    check_elsewhere(SCOW_BACKEND_AUTO, false);
}

Test(queues, created_here_used_there_threads, .timeout = 60)
{
    check_elsewhere(SCOW_BACKEND_THREADS, false);
}

Test(queues, another_thread_may_not_destroy_with_requests_in_flight, .timeout = 60)
{
    for (int i = 0; i < 10; i++)
        check_elsewhere(SCOW_BACKEND_AUTO, true);
}

Test(queues, another_thread_may_not_destroy_with_requests_in_flight_threads, .timeout = 60)
{
    for (int i = 0; i < 10; i++)
        check_elsewhere(SCOW_BACKEND_THREADS, true);
}

/* A thread polls that is not the queue's. */
static void *poll_it(void *arg)
{
    struct scow_completion c;

    return (void *)(intptr_t)scow_queue_poll(arg, &c, 0, 1, 0);
}

Test(queues, one_thread_each, .timeout = 60)
{
    pthread_t thread;
    struct rig rig;
    void *r;

    open_rig(&rig, 4, false);
    cr_assert_eq(rig_read(rig.queue, CLUSTER, buffer, 512), 0);
    cr_assert_eq(pthread_create(&thread, NULL, poll_it, rig.queue), 0);
    pthread_join(thread, &r);
    cr_assert((intptr_t)r == -EBUSY || (intptr_t)r == 0, "%d", (int)(intptr_t)r);
    cr_assert_eq(rig_read(rig.queue, CLUSTER, buffer, 512), 0, "it goes on: %s", rig_text());
    rig_free(&rig);
}

/* ---- counters ---- */

Test(counters, add_up)
{
    struct scow_counters c = SCOW_COUNTERS_INIT, all = SCOW_COUNTERS_INIT;
    struct rig rig;

    open_rig(&rig, 8, false);
    cr_assert_eq(rig_read(rig.queue, CLUSTER, buffer, 4096),
                 0); /* a miss: 4 KiB slices hold all 64 clusters */
    cr_assert_eq(scow_queue_counters(rig.queue, &c), 0);
    cr_assert_eq(c.requests, 1);
    cr_assert_eq(c.bytes, 4096);
    cr_assert_eq(c.misses, 1);
    cr_assert_eq(c.hits, 0);
    cr_assert_eq(c.ios, 1);
    cr_assert_eq(rig_read(rig.queue, 2 * CLUSTER, buffer, 4096), 0);
    cr_assert_eq(rig_read(rig.queue, 0, buffer, 4096), 0); /* a hole */
    cr_assert_eq(scow_queue_counters(rig.queue, &c), 0);
    cr_assert_eq(c.requests, 3);
    cr_assert_eq(c.hits, 2);
    cr_assert_eq(c.misses, 1);
    cr_assert_eq(c.zeros, 1);
    cr_assert_eq(c.ios, 2);
    cr_assert_eq(c.backing, 0);
    cr_assert_eq(c.slice_loads, 0, "the shards', not a queue's");
    cr_assert_eq(scow_counters(rig.image, &all), 0);
    cr_assert_eq(all.requests, 3);
    cr_assert_eq(all.slice_loads, 1);
    cr_assert_eq(all.slice_evictions, 0);
    scow_queue_destroy(rig.queue);
    rig.queue = NULL;
    cr_assert_eq(scow_counters(rig.image, &all), 0);
    cr_assert_eq(all.requests, 3, "past queues count");
    cr_assert_eq(all.bytes, 3 * 4096);
    rig_free(&rig);
}

Test(counters, an_older_structure)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct rig rig;

    open_rig(&rig, 8, false);
    cr_assert_eq(rig_read(rig.queue, CLUSTER, buffer, 4096), 0);
    memset(&c, 0xee, sizeof c);
    c.size = offsetof(struct scow_counters, hits);
    cr_assert_eq(scow_counters(rig.image, &c), 0);
    cr_assert_eq(c.bytes, 4096);
    cr_assert_eq(c.hits, 0xeeeeeeeeeeeeeeeeu);
    rig_free(&rig);
}
