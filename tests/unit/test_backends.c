/* SPDX-License-Identifier: MIT */
/* One suite for the backends that read: whatever one does, the other does too. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/env.h"
#include "tests/unit/bench.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"

TestSuite(backend, .fini = abort_if_memory_is_lost);
TestSuite(pool, .fini = abort_if_memory_is_lost);
TestSuite(null, .fini = abort_if_memory_is_lost);

#define FILE_BYTES 1000000u /* no multiple of anything */
#define SALT 9u
#define MANY BENCH_IOS_MAX

#define EACH_BACKEND(name) BENCH_EACH(backend, name)

static void set_up(struct bench *b, const struct subject *s)
{
    static uint8_t content[FILE_BYTES];
    const char *path = scratch("file");
    FILE *f = fopen(path, "we");

    stamp_fill(content, sizeof content, 0, SALT);
    cr_assert_eq(fwrite(content, 1, sizeof content, f), sizeof content);
    fclose(f);
    bench_open(b, s, path, 0);
}

static void read_io(const struct bench *b, struct io *io, void *buf, uint64_t off, uint32_t bytes)
{
    *io = (struct io){.kind = IO_READ, .file = b->file, .buf = buf, .off = off, .bytes = bytes, .result = 77};
    backend_prepare(b->backend, io);
}

static bool is_content(const uint8_t *buf, uint64_t off, uint32_t bytes)
{
    static uint8_t expected[FILE_BYTES];

    stamp_fill(expected, bytes, off, SALT);
    for (uint64_t i = 0; i < bytes; i++)
        if (off + i >= FILE_BYTES)
            expected[i] = 0;
    return !memcmp(buf, expected, bytes);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

EACH_BACKEND(reads)
{
    uint8_t *buf = bench_buffer(65536);
    struct bench b;
    struct io io;

    set_up(&b, s);
    read_io(&b, &io, buf, 8 * 4096, 65536);
    bench_finish(&b, 1);
    cr_assert_eq(io.result, 0);
    cr_assert(is_content(buf, 8 * 4096, 65536));
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(past_the_end_are_zeros)
{
    const uint64_t offs[] = {FILE_BYTES / 4096 * 4096, FILE_BYTES / 4096 * 4096 + 4096, 1u << 30};
    uint8_t *buf = bench_buffer(16384);
    struct bench b;
    struct io io;

    set_up(&b, s);
    for (size_t i = 0; i < ARRAY_COUNT(offs); i++) {
        memset(buf, 0xee, 16384);
        read_io(&b, &io, buf, offs[i], 8192);
        bench_finish(&b, 1);
        cr_assert_eq(io.result, 0);
        cr_assert(is_content(buf, offs[i], 8192), "offset %lu", offs[i]);
        cr_assert_eq(buf[8192], 0xee, "nothing is written past the request");
    }
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(vectors)
{
    uint8_t *a = bench_buffer(8192), *c = bench_buffer(4096), *d = bench_buffer(16384);
    struct iovec iov[] = {{a, 8192}, {c, 4096}, {d, 16384}};
    struct bench b;
    struct io io = {.kind = IO_READ, .iov = iov, .iov_count = 3, .bytes = 28672};

    set_up(&b, s);
    io.file = b.file;
    for (int i = 0; i < 2; i++) {
        io.off = i ? FILE_BYTES / 4096 * 4096 - 8192 : 4096; /* the second one passes the end in c */
        backend_prepare(b.backend, &io);
        bench_finish(&b, 1);
        cr_assert_eq(io.result, 0);
        cr_assert(is_content(a, io.off, 8192));
        cr_assert(is_content(c, io.off + 8192, 4096));
        cr_assert(is_content(d, io.off + 12288, 16384));
    }
    bench_close(&b);
    free(a), free(c), free(d);
}

EACH_BACKEND(errors_are_results)
{
    uint8_t *buf = bench_buffer(4096);
    struct bench b;
    struct io io;

    set_up(&b, s);
    read_io(&b, &io, (void *)4096, 0, 4096); /* no memory there */
    bench_finish(&b, 1);
    cr_assert_eq(io.result, -EFAULT);
    read_io(&b, &io, buf, 0, 4096);
    bench_finish(&b, 1);
    cr_assert_eq(io.result, 0, "the backend itself goes on");
    cr_assert(is_content(buf, 0, 4096));
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(many_in_flight)
{
    static struct io ios[MANY];
    uint8_t *buf = bench_buffer(MANY * 4096);
    struct bench b;

    set_up(&b, s);
    for (int round = 0; round < 3; round++) {
        memset(buf, 0xee, MANY * 4096);
        for (uint32_t i = 0; i < MANY; i++)
            read_io(&b, &ios[i], buf + i * 4096, i * 7919 % 250 * 4096, 4096);
        bench_finish(&b, MANY);
        for (uint32_t i = 0; i < MANY; i++) {
            cr_assert_eq(ios[i].result, 0);
            cr_assert(is_content(buf + i * 4096, i * 7919 % 250 * 4096, 4096));
        }
    }
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(turn_does_not_wait)
{
    struct list done = {0};
    struct bench b;

    set_up(&b, s);
    const uint64_t start = now_ns();
    for (int i = 0; i < 10; i++)
        cr_assert_eq(b.backend->ops->turn(b.backend, &done), 0);
    cr_assert(list_empty(&done));
    cr_assert_lt(now_ns() - start, 5000000000u);
    bench_close(&b);
}

EACH_BACKEND(wait_ends_at_its_timeout)
{
    struct list done = {0};
    struct bench b;

    set_up(&b, s);
    const uint64_t start = now_ns();
    cr_assert_eq(b.backend->ops->wait(b.backend, &done, 30000000), 0);
    cr_assert_geq(now_ns() - start, 29000000u);
    cr_assert(list_empty(&done));
    bench_close(&b);
}

static void *wake_soon(void *arg)
{
    struct bench *b = arg;

    usleep(30000);
    b->backend->ops->wake(b->backend);
    return NULL;
}

EACH_BACKEND(wake_from_another_thread)
{
    struct list done = {0};
    pthread_t waker;
    struct bench b;

    set_up(&b, s);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(pthread_create(&waker, NULL, wake_soon, &b), 0);
        cr_assert_eq(b.backend->ops->wait(b.backend, &done, WAIT_FOREVER), 0);
        cr_assert(list_empty(&done));
        pthread_join(waker, NULL);
    }
    bench_close(&b);
}

EACH_BACKEND(a_wake_before_the_wait_counts)
{
    struct list done = {0};
    struct bench b;

    set_up(&b, s);
    /* Bind the backend to this thread first, as any use does. */
    cr_assert_eq(b.backend->ops->turn(b.backend, &done), 0);
    b.backend->ops->wake(b.backend);
    cr_assert_eq(b.backend->ops->wait(b.backend, &done, WAIT_FOREVER), 0);
    bench_close(&b);
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, timeout_ms) == 1;
}

EACH_BACKEND(completion_descriptor)
{
    uint8_t *buf = bench_buffer(4096);
    struct list done = {0};
    struct bench b;
    struct io io;
    uint64_t n;

    set_up(&b, s);
    const int fd = b.backend->ops->event_fd(b.backend);
    cr_assert_geq(fd, 0);
    read_io(&b, &io, buf, 0, 4096);
    bench_finish(&b, 1);
    (void)!read(fd, &n, sizeof n);
    cr_assert_not(readable(fd, 0), "silent until it is enabled");

    cr_assert_eq(b.backend->ops->event_enable(b.backend, true), 0, "%s", error_message());
    cr_assert_eq(b.backend->ops->event_enable(b.backend, true), 0, "twice is once");
    for (int i = 0; i < 20; i++) {
        (void)!read(fd, &n, sizeof n);
        read_io(&b, &io, buf, 0, 4096);
        cr_assert_eq(b.backend->ops->turn(b.backend, &done), 0);
        while (list_empty(&done)) {
            cr_assert(readable(fd, 10000), "a completion makes it readable");
            (void)!read(fd, &n, sizeof n);
            cr_assert_eq(b.backend->ops->turn(b.backend, &done), 0);
        }
        cr_assert_eq(bench_count(&done), 1);
    }
    (void)!read(fd, &n, sizeof n);
    b.backend->ops->wake(b.backend);
    cr_assert(readable(fd, 10000), "so does a wake-up");
    cr_assert_eq(b.backend->ops->event_enable(b.backend, false), 0);
    bench_close(&b);
    free(buf);
}

static void *turn_elsewhere(void *arg)
{
    struct bench *b = arg;
    struct list done = {0};

    return (void *)(intptr_t)b->backend->ops->turn(b->backend, &done);
}

/* A ring has one thread; any other is told so, and breaks nothing. */
EACH_BACKEND(another_thread)
{
    uint8_t *buf = bench_buffer(4096);
    struct list done = {0};
    pthread_t other;
    struct bench b;
    struct io io;
    void *r;

    set_up(&b, s);
    cr_assert_eq(b.backend->ops->turn(b.backend, &done), 0);
    cr_assert_eq(pthread_create(&other, NULL, turn_elsewhere, &b), 0);
    pthread_join(other, &r);
    cr_assert_eq((intptr_t)r, s->kind == BACKEND_RING ? -EBUSY : 0);
    read_io(&b, &io, buf, 0, 4096);
    bench_finish(&b, 1);
    cr_assert(is_content(buf, 0, 4096));
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(no_descriptor_is_leaked)
{
    const int before = open_descriptors();
    struct bench b;

    for (int i = 0; i < 3; i++) {
        set_up(&b, s);
        bench_close(&b);
    }
    cr_assert_eq(open_descriptors(), before);
}

/* The pool's threads serve all backends of an image; each backend gets its own I/Os back. */
Test(pool, backends_share_its_threads, .timeout = 60)
{
    static struct io ios[2][MANY];
    uint8_t *buf = bench_buffer(2 * MANY * 4096);
    struct subject s = {BACKEND_POOL, FILE_BUFFERED};
    struct backend *other;
    struct bench b, b2;

    set_up(&b, &s);
    const struct backend_config config = {.ios_max = MANY, .files = &b.file, .file_count = 1};
    cr_assert_eq(b.env->ops->backend_create(b.env, BACKEND_POOL, &config, &other), 0);
    b2 = b;
    b2.backend = other;
    for (uint32_t i = 0; i < MANY; i++) {
        read_io(&b, &ios[0][i], buf + i * 4096, i % 200 * 4096, 4096);
        read_io(&b2, &ios[1][i], buf + (MANY + i) * 4096, i % 99 * 4096, 4096);
    }
    bench_finish(&b2, MANY);
    bench_finish(&b, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        cr_assert(is_content(buf + i * 4096, i % 200 * 4096, 4096));
        cr_assert(is_content(buf + (MANY + i) * 4096, i % 99 * 4096, 4096));
    }
    backend_destroy(other);
    bench_close(&b);
    free(buf);
}

Test(null, completes_everything_and_moves_nothing)
{
    uint8_t *buf = bench_buffer(4096);
    struct list done = {0};
    struct backend *null;
    struct io io = {.kind = IO_READ, .buf = buf, .bytes = 4096};

    cr_assert_eq(null_backend_create(&null), 0);
    backend_prepare(null, &io);
    cr_assert_eq(null->ops->wait(null, &done, WAIT_FOREVER), 0);
    cr_assert_eq(bench_count(&done), 1);
    cr_assert_eq(io.result, 0);
    cr_assert_eq(buf[0], 0xee);
    null->ops->wake(null);
    cr_assert_eq(null->ops->wait(null, &done, WAIT_FOREVER), 0);
    backend_destroy(null);
    backend_destroy(NULL);
    free(buf);
}
