/* SPDX-License-Identifier: MIT */
#ifndef CLI_CPUS_H
#define CLI_CPUS_H

#include <sched.h>
#include <stdint.h>

/* Threads that a command starts at most. */
#define CPUS_MAX 64

/* The CPUs that this process may run on, at most CPUS_MAX. */
static inline uint32_t cpus_online(void)
{
    cpu_set_t set;
    int count = 1;

    if (!sched_getaffinity(0, sizeof set, &set))
        count = CPU_COUNT(&set);
    if (count < 1)
        return 1;
    return count < CPUS_MAX ? (uint32_t)count : CPUS_MAX;
}

#endif
