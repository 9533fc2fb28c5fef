/* SPDX-License-Identifier: MIT */
#include "tests/unit/bench.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct subject bench_subjects[4] = {
    {BACKEND_RING, FILE_BUFFERED},
    {BACKEND_RING, FILE_AUTO},
    {BACKEND_POOL, FILE_BUFFERED},
    {BACKEND_POOL, FILE_AUTO},
};

void bench_open(struct bench *b, const struct subject *s, const char *path, uint32_t flags)
{
    if (s->kind == BACKEND_RING && ring_backend_probe() < 0)
        cr_skip("io_uring is not available here");
    cr_assert_eq(file_open(path, s->mode, flags, &b->file), 0, "%s", error_message());
    cr_assert_eq(env_create_os(&b->env), 0);
    const struct backend_config config = {.ios_max = BENCH_IOS_MAX, .files = &b->file, .file_count = 1};
    cr_assert_eq(b->env->ops->backend_create(b->env, s->kind, &config, &b->backend), 0, "%s",
                 error_message());
}

void bench_close(struct bench *b)
{
    backend_destroy(b->backend);
    file_close(b->file);
    b->env->ops->destroy(b->env);
}

uint32_t bench_count(struct list *done)
{
    uint32_t n = 0;

    while (list_pop(done))
        n++;
    return n;
}

void bench_finish(const struct bench *b, uint32_t ios)
{
    while (ios) {
        struct list done = {0};
        uint32_t n;

        cr_assert_eq(b->backend->ops->wait(b->backend, &done, 10000000000ll), 0, "%s", error_message());
        n = bench_count(&done);
        cr_assert_leq(n, ios);
        ios -= n;
    }
}

int bench_run(const struct bench *b, struct io *io)
{
    io->file = b->file;
    io->result = 77;
    backend_prepare(b->backend, io);
    bench_finish(b, 1);
    return io->result;
}

uint8_t *bench_buffer(size_t bytes)
{
    uint8_t *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);

    memset(p, 0xee, bytes);
    return p;
}
