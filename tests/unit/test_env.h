/* SPDX-License-Identifier: MIT */
/*
 * An environment (io/env.h) under the test's control. It counts everything that the library asks for, fails
 * what the plan says, and can leave the loops without threads, so that a test turns every loop by hand in one
 * thread and in any order.
 *
 * Its backend works with the file's own operations, one system call's worth per I/O and turn, at random some
 * of those in flight.
 */
#ifndef UNIT_TEST_ENV_H
#define UNIT_TEST_ENV_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/env.h"

struct test_plan {
    uint64_t seed;
    bool by_hand;      /* loops get no threads: test_env_step() turns them */
    bool short_reads;  /* every pread() gives less than was asked for */
    bool short_writes; /* and every pwrite() */
    /* Which one fails, counted from 1; 0: none. Reads by data, metadata and control path alike. */
    uint32_t fail_read, fail_backend, fail_open, fail_loop;
    uint32_t fail_write, fail_sync, fail_truncate;
    uint32_t fail_space; /* allocate, punch, zero */
    uint32_t fail_turn;  /* and every later turn of the same backend */
    int error;           /* what it fails with; 0: -EIO */

    /* Counted by the environment. */
    _Atomic uint32_t reads, backends, opens, loops, turns;
    _Atomic uint32_t writes, syncs, truncates, spaces;
    /* What exists: 0 when everything is closed. */
    _Atomic int live_envs, live_backends, live_files, live_loops;
};

/* plan outlives the environment. One environment at a time. */
struct env *test_env_create(struct test_plan *plan);

/* The top file of an image in this environment, as scow_open() would open it. 0 or a negative errno. */
int test_env_open(struct env *env, const char *path, enum file_mode mode, uint32_t flags, struct file **ret);

/* By hand: one turn of a random loop of the library's. */
void test_env_step(struct env *env);

/* Nothing that the plan counted exists any more. */
bool test_plan_all_gone(const struct test_plan *plan);

#endif
