/* SPDX-License-Identifier: MIT */
/* What the command line of shardcow bench asks for. */
#ifndef CLI_BENCH_OPTIONS_H
#define CLI_BENCH_OPTIONS_H

#include "cli/arguments.h"
#include "cli/bench_run.h"
#include "cli/open_args.h"

#define BENCH_COUNTS_MAX 64

struct bench_options {
    struct open_args open;
    struct bench_plan plan;            /* measure_ns and range_bytes 0: not given */
    uint32_t counts[BENCH_COUNTS_MAX]; /* of queues, in order: one run each */
    uint32_t count_count;
    bool scale;
    uint32_t round_count;
    const char *path;
    const char *raw_path; /* of --compare-raw, or NULL */
    bool raw;
    int output;                        /* enum bench_output */
    uint64_t fresh_bytes;              /* make the files anew for every run; 0: they exist */
    struct scow_create_options create; /* of a fresh image */
    bool prepare;                      /* write everything once before */
};

/* False: *ret_exit_code is how to end. Help was printed, or an error. */
bool bench_options_parse(struct bench_options *options, int argc, char **argv, int *ret_exit_code);

/* The greatest count of queues. */
static inline uint32_t bench_options_queues_max(const struct bench_options *options)
{
    return options->counts[options->count_count - 1];
}

#endif
