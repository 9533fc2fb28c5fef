/* SPDX-License-Identifier: MIT */
/* One measurement: a number of threads, each with a queue of its own, keep requests in flight for a while. */
#ifndef CLI_BENCH_RUN_H
#define CLI_BENCH_RUN_H

#include "shardcow.h"
#include "cli/bench_raw.h"
#include "cli/histogram.h"

#include <stdbool.h>
#include <stdint.h>

enum bench_pattern {
    BENCH_RANDREAD,
    BENCH_READ,
    BENCH_RANDWRITE,
    BENCH_WRITE,
    BENCH_RANDRW,
    BENCH_RW,
};
#define BENCH_PATTERN_NAMES "randread|read|randwrite|write|randrw|rw"

static inline bool bench_is_random(enum bench_pattern pattern)
{
    return pattern == BENCH_RANDREAD || pattern == BENCH_RANDWRITE || pattern == BENCH_RANDRW;
}

static inline bool bench_writes(enum bench_pattern pattern)
{
    return pattern != BENCH_RANDREAD && pattern != BENCH_READ;
}

static inline bool bench_is_mixed(enum bench_pattern pattern)
{
    return pattern == BENCH_RANDRW || pattern == BENCH_RW;
}

enum bench_kind { BENCH_KIND_READ, BENCH_KIND_WRITE, BENCH_KIND_FLUSH, BENCH_KIND_COUNT };

/* What every thread does. Alike for an image and for a raw file. */
struct bench_plan {
    enum bench_pattern pattern;
    uint32_t block_bytes;
    uint32_t depth;        /* requests that each queue keeps in flight */
    uint64_t range_bytes;  /* offsets lie in [0, range_bytes), at multiples of step_bytes */
    uint64_t step_bytes;   /* at least block_bytes */
    uint32_t read_percent; /* of mixed patterns; 100 or 0 for the others */
    uint32_t flush_every;  /* a queue flushes after so many of its writes; 0: never */
    bool once;             /* each offset once: the run ends with the last of them, if not before */
    uint64_t seed;
    uint64_t warmup_ns; /* not measured */
    uint64_t measure_ns;
    bool pin; /* queue i runs on the i-th CPU that the process may use, modulo their number */
};

/* Offsets that the plan has. */
static inline uint64_t bench_step_count(const struct bench_plan *plan)
{
    return plan->range_bytes < plan->block_bytes
               ? 0
               : (plan->range_bytes - plan->block_bytes) / plan->step_bytes + 1;
}

/* What is read or written: an image, or a raw file without the library. */
struct bench_target {
    struct scow_image *image; /* NULL: raw */
    const struct bench_raw *raw;
    const char *path; /* for messages */
};

struct bench_result {
    uint32_t queue_count;
    uint64_t ops; /* reads and writes completed within the measured time, all queues */
    uint64_t bytes;
    double seconds;          /* measured, from the first queue's begin to the last one's end */
    double iops;             /* all queues together */
    uint64_t queue_cpu_ns;   /* user and system time of the threads that own the queues */
    uint64_t process_cpu_ns; /* of the whole process: shards, pool and kernel workers too */
    struct histogram latency[BENCH_KIND_COUNT]; /* ns */
    struct scow_counters counters;              /* of the measured time; zeros for a raw file */
    double *queue_iops;                         /* one per queue; bench_result_destroy() frees it */
};

/* Runs plan on queue_count threads. Reports a failure itself and returns a negative errno; ret_result is to
 * be destroyed after success only. */
int bench_run(const struct bench_plan *plan, const struct bench_target *target, uint32_t queue_count,
              struct bench_result *ret_result);

/* Adds a further run of the same plan; rates become means weighted by time. */
void bench_result_add(struct bench_result *sum, const struct bench_result *more);

void bench_result_destroy(struct bench_result *result);

#endif
