/* SPDX-License-Identifier: MIT */
/* scow_queue_watch(): one wait for requests and for descriptors of the embedder's. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/attributes.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(watch, .fini = abort_if_memory_is_lost);

#define MIB (1ull << 20)
#define SECOND 1000000000ll

static enum scow_backend backends[] = {SCOW_BACKEND_AUTO, SCOW_BACKEND_THREADS};

#define EACH_BACKEND(name)                                                                                   \
    ParameterizedTestParameters(watch, name)                                                                 \
    {                                                                                                        \
        return cr_make_param_array(enum scow_backend, backends, ARRAY_COUNT(backends));                      \
    }                                                                                                        \
    ParameterizedTest(enum scow_backend *backend, watch, name, .timeout = 60)

static void open_rig(struct rig *rig, enum scow_backend backend)
{
    const struct image_spec spec = {
        .version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = MIB, .salt = 7};
    struct scow_open_options o = rig_options();

    o.backend = backend;
    rig_build(rig, &spec, 1, 5);
    rig_open(rig, &o);
    rig_queue(rig, 16);
}

static void ring_bell(int fd)
{
    const uint64_t one = 1;

    cr_assert_eq(write(fd, &one, sizeof one), sizeof one);
}

static void *ring_later(void *arg)
{
    usleep(20000);
    ring_bell(*(int *)arg);
    return NULL;
}

/* What the next completion belongs to; NULL: nothing came. */
static void *next(struct rig *rig, int64_t timeout_ns)
{
    struct scow_completion c;
    const int n = scow_queue_poll(rig->queue, &c, 1, 1, timeout_ns);

    cr_assert_geq(n, 0, "%s", scow_error());
    if (n)
        cr_assert_eq(c.ret, 0, "%s", c.error);
    return n ? c.user_data : NULL;
}

/* With nothing in flight the poll waits for the bell, again and again, whether it is read or not. */
EACH_BACKEND(a_bell_ends_the_wait)
{
    int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct rig rig;
    pthread_t thread;

    open_rig(&rig, *backend);
    cr_assert_eq(scow_queue_watch(rig.queue, bell, &bell), 0, "%s", scow_error());
    cr_assert_eq(scow_queue_watch(rig.queue, bell, &bell), -EEXIST);
    for (int i = 0; i < 10; i++) {
        uint64_t count;

        cr_assert_eq(pthread_create(&thread, NULL, ring_later, &bell), 0);
        cr_assert_eq(next(&rig, 10 * SECOND), &bell, "round %d", i);
        pthread_join(thread, NULL);
        if (i % 3 == 0)
            cr_assert_eq(read(bell, &count, sizeof count), sizeof count);
        /* Once too often is allowed, for ever is not. */
        while (next(&rig, 1000000))
            cr_assert_lt(i++, 20);
    }
    cr_assert_eq(scow_queue_unwatch(rig.queue, bell), 0, "%s", scow_error());
    cr_assert_eq(scow_queue_unwatch(rig.queue, bell), -ENOENT);
    ring_bell(bell);
    cr_assert_null(next(&rig, 20000000), "told of what is watched no more");
    rig_free(&rig);
    close(bell);
}

/* A bell that rang before it was watched is told too. */
EACH_BACKEND(a_bell_that_rang_before)
{
    int bell = eventfd(3, EFD_CLOEXEC);
    struct rig rig;

    open_rig(&rig, *backend);
    cr_assert_eq(scow_queue_watch(rig.queue, bell, &bell), 0);
    cr_assert_eq(next(&rig, 10 * SECOND), &bell);
    rig_free(&rig); /* still watched */
    close(bell);
}

/* Descriptors come and go under the same numbers, among requests: none is lost, none is told of twice over.
 */
EACH_BACKEND(among_requests)
{
    uint64_t seed = 11;
    uint8_t *buf = aligned_alloc(4096, 16 * 4096);
    int bells[4] = {-1, -1, -1, -1};
    struct rig rig;

    open_rig(&rig, *backend);
    for (int round = 0; round < 400; round++) {
        const uint32_t reads = (uint32_t)random_below(&seed, 8);
        const uint32_t rung = (uint32_t)random_below(&seed, 4);
        uint32_t completed = 0;
        bool told = false;

        for (uint32_t i = 0; i < 4; i++) {
            if (bells[i] >= 0 && random_below(&seed, 4) == 0) {
                cr_assert_eq(scow_queue_unwatch(rig.queue, bells[i]), 0);
                close(bells[i]);
                bells[i] = -1;
            }
            if (bells[i] < 0) {
                bells[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                cr_assert_eq(scow_queue_watch(rig.queue, bells[i], &bells[i]), 0, "%s", scow_error());
            }
        }
        ring_bell(bells[rung]);
        for (uint32_t i = 0; i < reads; i++)
            cr_assert_eq(
                scow_queue_read(rig.queue, random_below(&seed, 256) * 4096, buf + i * 4096, 4096, buf, 0), 0);
        while (completed < reads || !told) {
            const void *what = next(&rig, 10 * SECOND);

            cr_assert_not_null(what, "round %d: %u of %u reads, %s", round, completed, reads,
                               told ? "told" : "not told");
            completed += what == buf;
            told |= what == &bells[rung];
        }
        cr_assert_eq(completed, reads);
    }
    for (uint32_t i = 0; i < 4; i++)
        close(bells[i]);
    free(buf);
    rig_free(&rig);
}

Test(watch, the_null_backend_cannot, .timeout = 60)
{
    struct rig rig;

    open_rig(&rig, SCOW_BACKEND_NULL);
    cr_assert_eq(scow_queue_watch(rig.queue, 0, NULL), -ENOTSUP);
    rig_free(&rig);
}
