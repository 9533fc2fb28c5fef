/* SPDX-License-Identifier: MIT */
/*
 * Blocking system calls on threads, for where io_uring is forbidden. One pool serves the backends of an
 * image: a FIFO of I/Os under one lock, which the system calls themselves dwarf.
 *
 * Threads wait on a semaphore, not on a condition variable: in glibc up to 2.40 one with several waiters
 * loses signals now and then (https://sourceware.org/bugzilla/show_bug.cgi?id=25847), and an I/O would lie
 * there for good.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/backend.h"

#define POOL_THREADS_MAX 64u

struct pool {
    pthread_mutex_t lock;
    sem_t work;       /* one for each I/O that was put into the FIFO, and for each thread that is to stop */
    struct list fifo; /* of io.node, under lock */
    uint32_t idle;    /* threads that wait, under lock */
    uint32_t queued;  /* length of the FIFO, under lock */
    uint32_t thread_count;
    uint32_t threads_max;
    pthread_t threads[POOL_THREADS_MAX];
};

struct pool_backend {
    struct backend base;
    struct pool *pool;
    struct list prepared; /* the owner's, until its next turn */
    pthread_mutex_t lock;
    struct list done;   /* of io.node, under lock */
    bool waiting;       /* the owner sleeps on event_fd, under lock */
    bool woken;         /* wake() since the last wait, under lock */
    bool event_enabled; /* under lock */
    int event_fd;
    int watch_fd; /* an epoll that has the watched descriptors; -1: none is. The owner's */
};

static struct pool_backend *backend_of(struct backend *b)
{
    return container_of(b, struct pool_backend, base);
}

static void signal_fd(int fd)
{
    const uint64_t one = 1;

    (void)!write(fd, &one, sizeof one);
}

static int64_t transfer(const struct io *io)
{
    const bool whole = io->done == 0 && io->iov_count;
    struct iovec rest = {0};
    const struct iovec *iov = whole ? io->iov : &rest;
    const int count = whole ? io->iov_count : 1;
    const off_t off = (off_t)(io->off + io->done);
    ssize_t n;

    if (!whole)
        rest = io_rest(io);
    if (io->kind == IO_WRITE)
        n = pwritev2(io->file->fd, iov, count, off, io->flags & IO_DURABLE ? RWF_DSYNC : 0);
    else
        n = preadv(io->file->fd, iov, count, off);
    return n < 0 ? -errno : n;
}

static int64_t run_once(const struct io *io)
{
    struct file *f = io->file;

    switch (io->kind) {
    case IO_SYNC:
        return f->ops->sync(f);
    case IO_ALLOCATE:
        return f->ops->allocate(f, io->off, io->length);
    case IO_PUNCH:
        return f->ops->punch(f, io->off, io->length);
    case IO_ZERO:
        return f->ops->zero(f, io->off, io->length);
    case IO_READ:
    case IO_WRITE:
        break;
    }
    return transfer(io);
}

static void run_io(struct io *io)
{
    while (!io_advance(io, run_once(io)))
        ;
}

static void finish_io(struct pool_backend *p, struct io *io)
{
    bool notify;

    pthread_mutex_lock(&p->lock);
    list_push(&p->done, &io->node);
    notify = p->waiting || p->event_enabled;
    p->waiting = false;
    /* Inside the lock: once it is released the owner may take the completion and destroy the backend. */
    if (notify)
        signal_fd(p->event_fd);
    pthread_mutex_unlock(&p->lock);
}

/* The next I/O; NULL: the thread is to stop, and then the FIFO is empty. */
static struct io *take_io(struct pool *pool)
{
    struct list_node *n;

    pthread_mutex_lock(&pool->lock);
    pool->idle++;
    pthread_mutex_unlock(&pool->lock);
    while (sem_wait(&pool->work) < 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&pool->lock);
    pool->idle--;
    n = list_pop(&pool->fifo);
    if (n)
        pool->queued--;
    pthread_mutex_unlock(&pool->lock);
    return n ? container_of(n, struct io, node) : NULL;
}

static void *pool_thread(void *arg)
{
    struct pool *pool = arg;

    for (;;) {
        struct io *io = take_io(pool);

        if (!io)
            return NULL;
        struct pool_backend *owner = io->owner;

        run_io(io);
        finish_io(owner, io);
    }
}

/* Under pool->lock. A thread that cannot be started is no error while another runs. */
static void add_threads(struct pool *pool)
{
    sigset_t all, old;
    int err = 0;

    /* Signals are the embedder's business. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool->idle < pool->queued && pool->thread_count < pool->threads_max && !err) {
        err = pthread_create(&pool->threads[pool->thread_count], NULL, pool_thread, pool);
        if (err)
            break;
        pool->thread_count++;
        if (pool->thread_count >= pool->queued)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

int pool_create(uint32_t threads_max, struct pool **ret)
{
    struct pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return error_set(-ENOMEM, "out of memory");
    pthread_mutex_init(&pool->lock, NULL);
    sem_init(&pool->work, 0, 0);
    pool->threads_max = MAX(1u, MIN(threads_max, POOL_THREADS_MAX));
    *ret = pool;
    return 0;
}

void pool_destroy(struct pool *pool)
{
    if (!pool)
        return;
    for (uint32_t i = 0; i < pool->thread_count; i++)
        sem_post(&pool->work);
    for (uint32_t i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    sem_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static void pool_prepare(struct backend *b, struct io *io)
{
    struct pool_backend *p = backend_of(b);

    io->owner = p;
    list_push(&p->prepared, &io->node);
}

/* No thread can be had at all: do what is queued on this one, so that nothing is left behind. */
ATTR_COLD static void run_here(struct list *all)
{
    struct list_node *n;

    while ((n = list_pop(all))) {
        struct io *io = container_of(n, struct io, node);

        run_io(io);
        finish_io(io->owner, io);
    }
}

static void hand_over(struct pool_backend *p)
{
    struct pool *pool = p->pool;
    struct list_node *n;
    struct list stranded = {0};
    uint32_t added = 0;

    if (list_empty(&p->prepared))
        return;
    pthread_mutex_lock(&pool->lock);
    while ((n = list_pop(&p->prepared))) {
        list_push(&pool->fifo, n);
        added++;
    }
    pool->queued += added;
    if (pool->idle < pool->queued && pool->thread_count < pool->threads_max)
        add_threads(pool);
    if (!pool->thread_count) {
        stranded = list_take(&pool->fifo);
        pool->queued = 0;
    }
    pthread_mutex_unlock(&pool->lock);
    if (!list_empty(&stranded))
        run_here(&stranded);
    else
        while (added--)
            sem_post(&pool->work);
}

static bool take_done(struct pool_backend *p, struct list *done)
{
    struct list_node *n;
    struct list all = list_take(&p->done);
    bool any = false;

    while ((n = list_pop(&all))) {
        list_push(done, n);
        any = true;
    }
    return any;
}

static void take_fired(struct pool_backend *p)
{
    struct epoll_event events[16];
    int n;

    if (likely(p->watch_fd < 0))
        return;
    do {
        n = epoll_wait(p->watch_fd, events, ARRAY_COUNT(events), 0);
        for (int i = 0; i < n; i++)
            backend_watch_fired(&p->base, events[i].data.ptr);
    } while (n == (int)ARRAY_COUNT(events));
}

static int pool_turn(struct backend *b, struct list *done)
{
    struct pool_backend *p = backend_of(b);

    hand_over(p);
    take_fired(p);
    pthread_mutex_lock(&p->lock);
    take_done(p, done);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* Sleep until event_fd is signalled, or a watched descriptor is readable. */
static void sleep_on(struct pool_backend *p, int64_t timeout_ns)
{
    struct pollfd pfd[] = {{.fd = p->event_fd, .events = POLLIN}, {.fd = p->watch_fd, .events = POLLIN}};
    const struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    uint64_t count;

    (void)ppoll(pfd, ARRAY_COUNT(pfd), timeout_ns < 0 ? NULL : &ts, NULL);
    (void)!read(p->event_fd, &count, sizeof count);
    take_fired(p);
}

static int pool_wait(struct backend *b, struct list *done, int64_t timeout_ns)
{
    struct pool_backend *p = backend_of(b);
    bool ready;

    hand_over(p);
    pthread_mutex_lock(&p->lock);
    ready = take_done(p, done) || p->woken;
    p->woken = false;
    p->waiting = !ready;
    pthread_mutex_unlock(&p->lock);
    if (ready)
        return 0;

    sleep_on(p, timeout_ns);
    pthread_mutex_lock(&p->lock);
    p->waiting = false;
    p->woken = false;
    take_done(p, done);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static void pool_wake(struct backend *b)
{
    struct pool_backend *p = backend_of(b);

    pthread_mutex_lock(&p->lock);
    p->woken = true;
    if (p->waiting || p->event_enabled)
        signal_fd(p->event_fd);
    p->waiting = false;
    pthread_mutex_unlock(&p->lock);
}

static int pool_event_fd(const struct backend *b)
{
    return container_of(b, const struct pool_backend, base)->event_fd;
}

static int pool_event_enable(struct backend *b, bool enable)
{
    struct pool_backend *p = backend_of(b);

    pthread_mutex_lock(&p->lock);
    p->event_enabled = enable;
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static int pool_watch(struct backend *b, struct watch *w)
{
    struct pool_backend *p = backend_of(b);
    struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.ptr = w};

    if (p->watch_fd < 0)
        p->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->watch_fd < 0 || epoll_ctl(p->watch_fd, EPOLL_CTL_ADD, w->fd, &e) < 0) {
        const int err = -errno;

        return error_set(err, "descriptor %d cannot be watched: %s", w->fd, strerror(-err));
    }
    return 0;
}

static void pool_unwatch(struct backend *b, struct watch *w)
{
    (void)epoll_ctl(backend_of(b)->watch_fd, EPOLL_CTL_DEL, w->fd, NULL);
    w->ended = true;
}

static void pool_backend_destroy(struct backend *b)
{
    struct pool_backend *p = backend_of(b);

    /* The thread that finished the last I/O may still be inside the lock. */
    pthread_mutex_lock(&p->lock);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_destroy(&p->lock);
    close(p->event_fd);
    if (p->watch_fd >= 0)
        close(p->watch_fd);
    free(p);
}

static const struct backend_ops pool_ops = {
    .name = "threads",
    .prepare = pool_prepare,
    .turn = pool_turn,
    .wait = pool_wait,
    .wake = pool_wake,
    .event_fd = pool_event_fd,
    .event_enable = pool_event_enable,
    .watch = pool_watch,
    .unwatch = pool_unwatch,
    .destroy = pool_backend_destroy,
};

int pool_backend_create(struct pool *pool, const struct backend_config *config, struct backend **ret)
{
    struct pool_backend *p = calloc(1, sizeof *p);

    (void)config; /* its limits are the submitter's; lists have none */
    if (!p)
        return error_set(-ENOMEM, "out of memory");
    p->base.ops = &pool_ops;
    p->pool = pool;
    p->watch_fd = -1;
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->event_fd < 0) {
        const int err = -errno;

        free(p);
        return error_set(err, "thread pool: cannot create an eventfd: %s", strerror(-err));
    }
    pthread_mutex_init(&p->lock, NULL);
    *ret = &p->base;
    return 0;
}
