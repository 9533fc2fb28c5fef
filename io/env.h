/* SPDX-License-Identifier: MIT */
/*
 * Where an image gets backends, threads, time and randomness: from the operating system, or from a simulator
 * that decides each of them. Nothing above this folder asks the operating system itself.
 */
#ifndef IO_ENV_H
#define IO_ENV_H

#include <stdint.h>

#include "io/backend.h"
#include "io/file.h"
#include "io/loop.h"

struct env;

struct env_ops {
    /* For children: as file_open() and file_open_fd(). */
    int (*file_open)(struct env *env, const char *path, enum file_mode mode, uint32_t flags,
                     struct file **ret);
    int (*file_open_fd)(struct env *env, int fd, const char *name_path, enum file_mode mode, uint32_t flags,
                        struct file **ret);
    int (*backend_create)(struct env *env, enum backend_kind kind, const struct backend_config *config,
                          struct backend **ret);
    /* Give the loop a thread, and take it away again. */
    int (*loop_start)(struct env *env, struct loop *loop);
    void (*loop_stop)(struct env *env, struct loop *loop);
    uint64_t (*now_ns)(struct env *env); /* monotonic */
    uint64_t (*random)(struct env *env); /* from the control path only */
    void (*destroy)(struct env *env);
};

struct env {
    const struct env_ops *ops;
};

/* The operating system, for one image. */
int env_create_os(struct env **ret);

static inline uint64_t env_now_ns(struct env *env)
{
    return env->ops->now_ns(env);
}

#endif
