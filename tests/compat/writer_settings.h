/* SPDX-License-Identifier: MIT */
/* What random_writer is asked to do. */
#ifndef COMPAT_WRITER_SETTINGS_H
#define COMPAT_WRITER_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include <shardcow.h>

#define WRITER_THREADS_MAX 16

struct settings {
    const char *image_path, *shadow_path, *pause_command;
    struct scow_open_options open;
    uint32_t threads, phases;
    double seconds;
    uint64_t ops_max; /* of each thread and phase; 0: only the time counts */
    uint64_t seed;
    bool full_is_fine; /* -ENOSPC: what was written then may be there or not */
};

extern struct settings settings;

/* False: the arguments are not understood. The seed is set before, for the case that none is given. */
bool settings_from(int argc, char **argv);
/* Says how it is called; the exit code. */
int settings_usage(void);

#endif
