/* SPDX-License-Identifier: MIT */
/* What a benchmark found, for people, for programs and as a picture. */
#ifndef CLI_BENCH_REPORT_H
#define CLI_BENCH_REPORT_H

#include "cli/bench_run.h"

enum bench_output { BENCH_HUMAN = 0, BENCH_JSON = 1, BENCH_SVG = 2 };

/* One count of queues. With compared set, result and raw are each side's sum over the rounds, and the arrays
 * hold round_count figures, round by round. */
struct bench_row {
    struct bench_result result; /* the image's; with --raw the raw file's */
    bool compared;
    struct bench_result raw;
    uint32_t round_count;
    double *iops, *raw_iops;
};

struct bench_report {
    enum bench_output output;
    const char *path;
    const char *raw_path; /* of --compare-raw, or NULL */
    const struct bench_plan *plan;
    uint64_t fresh_bytes;         /* the files are made anew for every run; 0: they are not */
    const struct scow_info *info; /* NULL: path is a raw file, read without the library */
    const struct bench_raw *raw;  /* how the raw file is read; NULL without one */
    bool scale;                   /* a table or a plot over the counts of queues */
    struct bench_row *rows;       /* row_count of them are filled */
    uint32_t row_count;
};

struct bench_spread {
    double min, q1, median, q3, max;
};

/* Quartiles interpolate linearly between the neighbouring values. count is at least 1. Sorts values. */
struct bench_spread bench_spread_of(double *values, uint32_t count);

/* The spread of a compared row's ratios: image over raw, each taken within one round. */
struct bench_spread bench_row_ratio(const struct bench_row *row);

/* Rate of a row over the rate of one queue, the latter from the first row. */
double bench_row_speedup(const struct bench_report *report, const struct bench_row *row);

void bench_row_destroy(struct bench_row *row);

/* Called in this order on standard output; row() after each row was added, so that people see it at once. */
void bench_report_begin(const struct bench_report *report);
void bench_report_row(const struct bench_report *report, const struct bench_row *row);
void bench_report_end(const struct bench_report *report);

/* In bench_plot.c: IOPS over queues as an SVG picture. */
void bench_plot(const struct bench_report *report);

#endif
