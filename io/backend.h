/* SPDX-License-Identifier: MIT */
/*
 * What a loop does its I/O with. Each loop has a backend of its own; only wake() may be called from other
 * threads.
 *
 *   ring     io_uring
 *   pool     preadv and the like on threads that the backends of an image share
 *   null     completes at once and moves nothing: for benchmarks
 *   tests/sim has its own
 */
#ifndef IO_BACKEND_H
#define IO_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "io/io.h"

enum backend_kind {
    BACKEND_RING,
    BACKEND_POOL,
    BACKEND_NULL,
};

#define WAIT_FOREVER (-1)

struct backend;

/* A descriptor of somebody else's that the owner's wait looks at too: edge-triggered, as with EPOLLET. */
struct watch {
    struct list_node node;         /* in backend.fired while fired */
    struct list_node unarmed_node; /* the backend's */
    uint32_t restarts;             /* the backend's: in a row */
    int fd;
    int32_t result; /* 0, or the negative errno that ended it */
    bool fired;     /* became readable, and nobody was told yet */
    bool armed;     /* the backend's: the system knows it, or (after unwatch) may still speak of it */
    bool ended;     /* unwatch() was called: never fires again; may be watched anew once it is not armed */
    void *user_data;
};

struct backend_ops {
    const char *name;
    /* Take an I/O. Cannot fail: there is room for as many as the backend was created for. */
    void (*prepare)(struct backend *b, struct io *io);
    /* Submit what was prepared and append what is complete to done, without blocking, but for a lone IO_SYNC
     * on a quick file (sync_pace.h). 0; -EBUSY when the backend belongs to another thread; another negative
     * errno when it is broken. */
    int (*turn)(struct backend *b, struct list *done);
    /* The same, but when nothing is complete yet wait for a completion, wake() or timeout_ns. May return
     * early. */
    int (*wait)(struct backend *b, struct list *done, int64_t timeout_ns);
    /* Make the present or the next wait() return, and the completion descriptor readable if it is enabled.
     * Any thread. */
    void (*wake)(struct backend *b);
    /* Readable when there may be completions; only signalled while enabled. */
    int (*event_fd)(const struct backend *b);
    int (*event_enable)(struct backend *b, bool enable);
    /* Owner's thread. Absent where descriptors cannot be watched. The watch stays until destroy(). */
    int (*watch)(struct backend *b, struct watch *w);
    void (*unwatch)(struct backend *b, struct watch *w);
    /* Owner's thread. Absent where nothing is won. Memory that buffers will lie in; see shardcow.h. */
    int (*add_memory)(struct backend *b, void *base, size_t bytes);
    int (*remove_memory)(struct backend *b, void *base, size_t bytes);
    /* Owner's thread, for which it was the last use; nothing but destroy() may follow. No I/O is in flight.
     * The files are let go of: otherwise the system may do that some time after destroy(), which keeps a file
     * system from being unmounted. */
    void (*leave)(struct backend *b);
    /* No I/O is in flight. */
    void (*destroy)(struct backend *b);
};

struct backend {
    const struct backend_ops *ops;
    struct list fired; /* watches; the owner takes them */
};

static inline void backend_watch_fired(struct backend *b, struct watch *w)
{
    if (w->fired || w->ended)
        return;
    w->fired = true;
    list_push(&b->fired, &w->node);
}

struct backend_config {
    uint32_t ios_max;          /* in flight at once */
    struct file *const *files; /* that it will be used with, by file.index */
    uint32_t file_count;
};

static inline void backend_prepare(struct backend *b, struct io *io)
{
    io->done = 0;
    b->ops->prepare(b, io);
}

static inline void backend_leave(struct backend *b)
{
    if (b->ops->leave)
        b->ops->leave(b);
}

static inline void backend_destroy(struct backend *b)
{
    if (b)
        b->ops->destroy(b);
}

int ring_backend_create(const struct backend_config *config, struct backend **ret);
/* Whether this process may use io_uring: 0 or a negative errno. */
int ring_backend_probe(void);

struct pool;
/* Threads for the pool backends of one image; they start as they are needed, at most threads_max. */
int pool_create(uint32_t threads_max, struct pool **ret);
/* All its backends are gone. NULL is allowed. */
void pool_destroy(struct pool *pool);
int pool_backend_create(struct pool *pool, const struct backend_config *config, struct backend **ret);

int null_backend_create(struct backend **ret);

#endif
