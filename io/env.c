/* SPDX-License-Identifier: MIT */
#include "io/env.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "base/attributes.h"
#include "base/error.h"

/* Enough to keep a disk busy; blocked threads cost little. */
#define POOL_THREADS 32u

struct os_env {
    struct env base;
    struct pool *pool; /* created with the first pool backend; control path only */
};

static struct os_env *os_of(struct env *env)
{
    return container_of(env, struct os_env, base);
}

static int os_file_open(struct env *env, const char *path, enum file_mode mode, uint32_t flags,
                        struct file **ret)
{
    (void)env;
    return file_open(path, mode, flags, ret);
}

static int os_file_open_fd(struct env *env, int fd, const char *name_path, enum file_mode mode,
                           uint32_t flags, struct file **ret)
{
    (void)env;
    return file_open_fd(fd, name_path, mode, flags, ret);
}

static int os_backend_create(struct env *env, enum backend_kind kind, const struct backend_config *config,
                             struct backend **ret)
{
    struct os_env *os = os_of(env);
    int r;

    switch (kind) {
    case BACKEND_RING:
        return ring_backend_create(config, ret);
    case BACKEND_NULL:
        return null_backend_create(ret);
    case BACKEND_POOL:
        break;
    }
    if (!os->pool && (r = pool_create(POOL_THREADS, &os->pool)) < 0)
        return r;
    return pool_backend_create(os->pool, config, ret);
}

static int os_loop_start(struct env *env, struct loop *loop)
{
    (void)env;
    return loop_start_thread(loop);
}

static void os_loop_stop(struct env *env, struct loop *loop)
{
    (void)env;
    loop_stop_thread(loop);
}

static uint64_t os_now_ns(struct env *env)
{
    struct timespec ts;

    (void)env;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t os_random(struct env *env)
{
    uint64_t v = 0;

    if (getrandom(&v, sizeof v, GRND_NONBLOCK) != sizeof v)
        v = os_now_ns(env);
    return v;
}

static void os_destroy(struct env *env)
{
    pool_destroy(os_of(env)->pool);
    free(os_of(env));
}

static const struct env_ops os_ops = {
    .file_open = os_file_open,
    .file_open_fd = os_file_open_fd,
    .backend_create = os_backend_create,
    .loop_start = os_loop_start,
    .loop_stop = os_loop_stop,
    .now_ns = os_now_ns,
    .random = os_random,
    .destroy = os_destroy,
};

int env_create_os(struct env **ret)
{
    struct os_env *os = calloc(1, sizeof *os);

    if (!os)
        return error_set(-ENOMEM, "out of memory");
    os->base.ops = &os_ops;
    *ret = &os->base;
    return 0;
}
