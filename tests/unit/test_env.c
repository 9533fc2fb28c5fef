/* SPDX-License-Identifier: MIT */
#include "tests/unit/test_env.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/backend.h"
#include "tests/unit/image_builder.h"

#define LOOPS_MAX 32

struct test_env {
    struct env base;
    struct test_plan *plan;
    struct loop *loops[LOOPS_MAX]; /* by hand */
    int loop_count;
    uint64_t now_ns;
};

struct test_backend {
    struct backend base;
    struct test_env *env;
    uint64_t seed;
    struct list pending;
    bool broken;
    pthread_mutex_t lock; /* of woken */
    pthread_cond_t wakes;
    bool woken;
    _Atomic bool event_enabled;
    int event_fd;
};

/* Files know no environment. */
static struct test_plan *current_plan;
static const struct file_ops *os_file_ops;

/* Whether this is the one that the plan lets fail. */
static bool is_the_one(_Atomic uint32_t *count, uint32_t which)
{
    return atomic_fetch_add(count, 1) + 1 == which;
}

static int plan_error(const struct test_plan *plan)
{
    return plan->error ? plan->error : -EIO;
}

/* ---- files ---- */

static ssize_t plan_pread(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    struct test_plan *plan = current_plan;
    size_t part = bytes;

    if (is_the_one(&plan->reads, plan->fail_read))
        return plan_error(plan);
    if (plan->short_reads && bytes > f->io_align) {
        /* Direct reads end on alignment, buffered ones anywhere. */
        part = (off * 7 + bytes * 13) % bytes / 3 + 1;
        part = MAX(part / f->io_align * f->io_align, f->io_align);
    }
    return os_file_ops->pread(f, buf, part, off);
}

static ssize_t plan_pwrite(struct file *f, const void *buf, size_t bytes, uint64_t off)
{
    struct test_plan *plan = current_plan;
    size_t part = bytes;

    if (is_the_one(&plan->writes, plan->fail_write))
        return plan_error(plan);
    if (plan->short_writes && bytes > f->io_align) {
        part = (off * 7 + bytes * 13) % bytes / 3 + 1;
        part = MAX(part / f->io_align * f->io_align, f->io_align);
    }
    return os_file_ops->pwrite(f, buf, part, off);
}

static int plan_sync(struct file *f)
{
    struct test_plan *plan = current_plan;

    return is_the_one(&plan->syncs, plan->fail_sync) ? plan_error(plan) : os_file_ops->sync(f);
}

static int plan_truncate(struct file *f, uint64_t bytes)
{
    struct test_plan *plan = current_plan;

    return is_the_one(&plan->truncates, plan->fail_truncate) ? plan_error(plan)
                                                             : os_file_ops->truncate(f, bytes);
}

static bool space_fails(struct test_plan *plan)
{
    return is_the_one(&plan->spaces, plan->fail_space);
}

static int plan_allocate(struct file *f, uint64_t off, uint64_t bytes)
{
    return space_fails(current_plan) ? plan_error(current_plan) : os_file_ops->allocate(f, off, bytes);
}

static int plan_punch(struct file *f, uint64_t off, uint64_t bytes)
{
    return space_fails(current_plan) ? plan_error(current_plan) : os_file_ops->punch(f, off, bytes);
}

static int plan_zero(struct file *f, uint64_t off, uint64_t bytes)
{
    return space_fails(current_plan) ? plan_error(current_plan) : os_file_ops->zero(f, off, bytes);
}

static int64_t plan_seek(struct file *f, uint64_t off, bool data)
{
    return os_file_ops->seek(f, off, data);
}

static void plan_close(struct file *f)
{
    atomic_fetch_sub(&current_plan->live_files, 1);
    os_file_ops->close(f);
}

static const struct file_ops plan_file_ops = {
    .pread = plan_pread,
    .pwrite = plan_pwrite,
    .sync = plan_sync,
    .truncate = plan_truncate,
    .allocate = plan_allocate,
    .punch = plan_punch,
    .zero = plan_zero,
    .seek = plan_seek,
    .close = plan_close,
};

static int opened(int r, struct file **ret)
{
    if (r < 0)
        return r;
    os_file_ops = (*ret)->ops;
    (*ret)->ops = &plan_file_ops;
    atomic_fetch_add(&current_plan->live_files, 1);
    return 0;
}

static int env_file_open(struct env *env, const char *path, enum file_mode mode, uint32_t flags,
                         struct file **ret)
{
    struct test_plan *plan = container_of(env, struct test_env, base)->plan;

    if (is_the_one(&plan->opens, plan->fail_open))
        return error_set(plan_error(plan), "cannot open %s: this open fails", path);
    return opened(file_open(path, mode, flags, ret), ret);
}

static int env_file_open_fd(struct env *env, int fd, const char *name_path, enum file_mode mode,
                            uint32_t flags, struct file **ret)
{
    struct test_plan *plan = container_of(env, struct test_env, base)->plan;

    if (is_the_one(&plan->opens, plan->fail_open))
        return error_set(plan_error(plan), "cannot open descriptor %d: this open fails", fd);
    return opened(file_open_fd(fd, name_path, mode, flags, ret), ret);
}

int test_env_open(struct env *env, const char *path, enum file_mode mode, uint32_t flags, struct file **ret)
{
    return env_file_open(env, path, mode, flags, ret);
}

/* ---- the backend ---- */

static void backend_prepare_io(struct backend *b, struct io *io)
{
    list_push(&container_of(b, struct test_backend, base)->pending, &io->node);
}

/* One system call's worth; what it gave. */
static int64_t do_some(const struct io *io)
{
    const struct iovec rest = io_rest(io);
    struct file *f = io->file;

    switch (io->kind) {
    case IO_READ:
        return f->ops->pread(f, rest.iov_base, rest.iov_len, io->off + io->done);
    case IO_WRITE:
        return f->ops->pwrite(f, rest.iov_base, rest.iov_len, io->off + io->done);
    case IO_SYNC:
        return f->ops->sync(f);
    case IO_ALLOCATE:
        return f->ops->allocate(f, io->off, io->length);
    case IO_PUNCH:
        return f->ops->punch(f, io->off, io->length);
    case IO_ZERO:
        return f->ops->zero(f, io->off, io->length);
    }
    return -EINVAL;
}

static int backend_turn(struct backend *base, struct list *done)
{
    struct test_backend *b = container_of(base, struct test_backend, base);
    struct test_plan *plan = b->env->plan;
    struct list all, later = {0};
    struct list_node *n;

    b->broken |= is_the_one(&plan->turns, plan->fail_turn);
    if (b->broken)
        return error_set(plan_error(plan), "this backend is broken");
    all = list_take(&b->pending);
    while ((n = list_pop(&all))) {
        struct io *io = container_of(n, struct io, node);

        if (random_below(&b->seed, 3) && io_advance(io, do_some(io)))
            list_push(done, n);
        else
            list_push(&later, n);
    }
    /* The other way round, so that completions come in no order. */
    while ((n = list_pop(&later))) {
        if (random_below(&b->seed, 2) || list_empty(&b->pending))
            list_push(&b->pending, n);
        else
            list_push(&all, n);
    }
    while ((n = list_pop(&all)))
        list_push(&b->pending, n);
    return 0;
}

static void add_ns(struct timespec *ts, int64_t ns)
{
    ts->tv_sec += ns / 1000000000;
    ts->tv_nsec += ns % 1000000000;
    if (ts->tv_nsec >= 1000000000) {
        ts->tv_sec++;
        ts->tv_nsec -= 1000000000;
    }
}

static int backend_wait(struct backend *base, struct list *done, int64_t timeout_ns)
{
    struct test_backend *b = container_of(base, struct test_backend, base);
    struct timespec until;
    int err = 0;

    if (b->broken || !list_empty(&b->pending))
        return backend_turn(base, done);
    if (b->env->plan->by_hand) {
        test_env_step(&b->env->base); /* whoever is waited for runs in this very thread */
        return 0;
    }
    clock_gettime(CLOCK_REALTIME, &until);
    add_ns(&until, timeout_ns);
    pthread_mutex_lock(&b->lock);
    while (!b->woken && !err)
        err = timeout_ns < 0 ? pthread_cond_wait(&b->wakes, &b->lock)
                             : pthread_cond_timedwait(&b->wakes, &b->lock, &until);
    b->woken = false;
    pthread_mutex_unlock(&b->lock);
    return 0;
}

static void backend_wake(struct backend *base)
{
    struct test_backend *b = container_of(base, struct test_backend, base);
    const uint64_t one = 1;

    pthread_mutex_lock(&b->lock);
    b->woken = true;
    pthread_cond_signal(&b->wakes);
    if (b->event_enabled)
        (void)!write(b->event_fd, &one, sizeof one);
    pthread_mutex_unlock(&b->lock);
}

static int backend_event_fd(const struct backend *b)
{
    return container_of(b, const struct test_backend, base)->event_fd;
}

static int backend_event_enable(struct backend *b, bool enable)
{
    container_of(b, struct test_backend, base)->event_enabled = enable;
    return 0;
}

static void backend_free(struct backend *base)
{
    struct test_backend *b = container_of(base, struct test_backend, base);

    pthread_mutex_lock(&b->lock); /* a waker may still hold it */
    pthread_mutex_unlock(&b->lock);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->wakes);
    close(b->event_fd);
    atomic_fetch_sub(&b->env->plan->live_backends, 1);
    free(b);
}

static const struct backend_ops backend_ops = {
    .name = "test",
    .prepare = backend_prepare_io,
    .turn = backend_turn,
    .wait = backend_wait,
    .wake = backend_wake,
    .event_fd = backend_event_fd,
    .event_enable = backend_event_enable,
    .destroy = backend_free,
};

static int env_backend_create(struct env *env, enum backend_kind kind, const struct backend_config *config,
                              struct backend **ret)
{
    struct test_env *e = container_of(env, struct test_env, base);
    struct test_backend *b;

    (void)kind, (void)config;
    if (is_the_one(&e->plan->backends, e->plan->fail_backend))
        return error_set(plan_error(e->plan), "this backend cannot be created");
    b = calloc(1, sizeof *b);
    if (!b)
        return error_set(-ENOMEM, "out of memory");
    b->base.ops = &backend_ops;
    b->env = e;
    b->seed = e->plan->seed * 31 + atomic_load(&e->plan->backends);
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wakes, NULL);
    b->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_fetch_add(&e->plan->live_backends, 1);
    *ret = &b->base;
    return 0;
}

/* ---- loops ---- */

static int env_loop_start(struct env *env, struct loop *loop)
{
    struct test_env *e = container_of(env, struct test_env, base);
    int r = 0;

    if (is_the_one(&e->plan->loops, e->plan->fail_loop))
        return error_set(plan_error(e->plan), "this thread cannot be started");
    if (e->plan->by_hand) {
        invariant(e->loop_count < LOOPS_MAX);
        e->loops[e->loop_count++] = loop;
    } else {
        r = loop_start_thread(loop);
    }
    if (r == 0)
        atomic_fetch_add(&e->plan->live_loops, 1);
    return r;
}

static void env_loop_stop(struct env *env, struct loop *loop)
{
    struct test_env *e = container_of(env, struct test_env, base);

    atomic_fetch_sub(&e->plan->live_loops, 1);
    if (!e->plan->by_hand) {
        loop_stop_thread(loop);
        return;
    }
    for (int i = 0; i < e->loop_count; i++)
        if (e->loops[i] == loop)
            e->loops[i--] = e->loops[--e->loop_count];
}

void test_env_step(struct env *env)
{
    struct test_env *e = container_of(env, struct test_env, base);

    if (e->loop_count) {
        struct loop *loop = e->loops[random_below(&e->plan->seed, (uint64_t)e->loop_count)];

        loop->ops->turn(loop);
    }
}

/* ---- the rest ---- */

static uint64_t env_clock(struct env *env)
{
    struct test_env *e = container_of(env, struct test_env, base);
    struct timespec ts;

    if (e->plan->by_hand)
        return e->now_ns += 1000;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t env_random(struct env *env)
{
    return random_next(&container_of(env, struct test_env, base)->plan->seed);
}

static void env_destroy(struct env *env)
{
    struct test_env *e = container_of(env, struct test_env, base);

    atomic_fetch_sub(&e->plan->live_envs, 1);
    free(e);
}

static const struct env_ops env_ops = {
    .file_open = env_file_open,
    .file_open_fd = env_file_open_fd,
    .backend_create = env_backend_create,
    .loop_start = env_loop_start,
    .loop_stop = env_loop_stop,
    .now_ns = env_clock,
    .random = env_random,
    .destroy = env_destroy,
};

struct env *test_env_create(struct test_plan *plan)
{
    struct test_env *e = calloc(1, sizeof *e);

    invariant(e);
    e->base.ops = &env_ops;
    e->plan = plan;
    current_plan = plan;
    atomic_fetch_add(&plan->live_envs, 1);
    return &e->base;
}

bool test_plan_all_gone(const struct test_plan *plan)
{
    return plan->live_envs == 0 && plan->live_backends == 0 && plan->live_files == 0 && plan->live_loops == 0;
}
