/* SPDX-License-Identifier: MIT */
/* Completes every I/O at its next turn and moves nothing: what is left is the engine. For benchmarks. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/backend.h"

struct null_backend {
    struct backend base;
    struct list done; /* the owner's */
    int event_fd;     /* any thread writes it */
};

static struct null_backend *null_of(struct backend *b)
{
    return container_of(b, struct null_backend, base);
}

static void null_prepare(struct backend *b, struct io *io)
{
    io->result = 0;
    list_push(&null_of(b)->done, &io->node);
}

static int null_turn(struct backend *b, struct list *done)
{
    struct list all = list_take(&null_of(b)->done);
    struct list_node *n;

    while ((n = list_pop(&all)))
        list_push(done, n);
    return 0;
}

static int null_wait(struct backend *b, struct list *done, int64_t timeout_ns)
{
    struct null_backend *n = null_of(b);
    struct pollfd pfd = {.fd = n->event_fd, .events = POLLIN};
    const struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    uint64_t count;

    null_turn(b, done);
    if (!list_empty(done))
        return 0;
    (void)ppoll(&pfd, 1, timeout_ns < 0 ? NULL : &ts, NULL);
    (void)!read(n->event_fd, &count, sizeof count);
    return 0;
}

static void null_wake(struct backend *b)
{
    const uint64_t one = 1;

    (void)!write(null_of(b)->event_fd, &one, sizeof one);
}

static int null_event_fd(const struct backend *b)
{
    return container_of(b, const struct null_backend, base)->event_fd;
}

static int null_event_enable(struct backend *b, bool enable)
{
    if (enable)
        null_wake(b); /* nothing tells when a turn would complete something: it always may */
    return 0;
}

static void null_destroy(struct backend *b)
{
    close(null_of(b)->event_fd);
    free(null_of(b));
}

static const struct backend_ops null_ops = {
    .name = "null",
    .prepare = null_prepare,
    .turn = null_turn,
    .wait = null_wait,
    .wake = null_wake,
    .event_fd = null_event_fd,
    .event_enable = null_event_enable,
    .destroy = null_destroy,
};

int null_backend_create(struct backend **ret)
{
    struct null_backend *n = calloc(1, sizeof *n);

    if (!n)
        return error_set(-ENOMEM, "out of memory");
    n->base.ops = &null_ops;
    n->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (n->event_fd < 0) {
        const int err = -errno;

        free(n);
        return error_set(err, "cannot create an eventfd: %s", strerror(-err));
    }
    *ret = &n->base;
    return 0;
}
