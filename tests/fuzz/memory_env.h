/* SPDX-License-Identifier: MIT */
/*
 * An environment without an operating system: two files in memory, no threads, no time. A wait turns the
 * shards by hand, so an image opens and reads within one thread and the same input always takes the same
 * steps. What would wait for ever aborts instead.
 */
#ifndef FUZZ_MEMORY_ENV_H
#define FUZZ_MEMORY_ENV_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "io/env.h"

#define MEMORY_LOOPS_MAX 8u

struct memory_disk {
    const uint8_t *data;
    size_t bytes;        /* of data */
    uint64_t file_bytes; /* of the file: what is behind data is zeros */
    uint32_t io_align;   /* 1, or that of a direct file */
};

/* What the disks give; a plan with all fields 0 never fails. */
struct memory_plan {
    uint64_t fail_read;    /* number of the read (from 1) that fails with -EIO; 0: none */
    uint64_t budget_bytes; /* all reads together; beyond it they fail with -EIO. 0: no bound */
    uint64_t seed;         /* of the order of completions */
};

struct memory_env {
    struct env base;
    struct memory_disk disks[2]; /* the image; what it names, whatever the name */
    struct memory_plan plan;
    uint64_t random;
    struct loop *loops[MEMORY_LOOPS_MAX];
    uint32_t loop_count;
    uint64_t turns;
    _Atomic uint64_t reads, read_bytes; /* by check's threads too */
    _Atomic uint32_t files_open;
    uint32_t backends_open;
    uint32_t destroyed;
};

void memory_env_init(struct memory_env *env, const struct memory_disk disks[2],
                     const struct memory_plan *plan);

/* The image's own file. */
struct file *memory_env_open_image(struct memory_env *env);

/* Whether some read was made to fail. */
bool memory_env_failed_a_read(const struct memory_env *env);

/* The byte at off of a disk's file, zero past its end. */
uint8_t memory_disk_byte(const struct memory_disk *disk, uint64_t off);

/* After the image was closed: everything was given back, the environment itself too, exactly once. */
void memory_env_expect_idle(const struct memory_env *env);

/* Ends the process with a message: a finding. */
_Noreturn void finding(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
