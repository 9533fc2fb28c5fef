/* SPDX-License-Identifier: MIT */
/* The image and the raw file that are measured: opened, made anew, prepared. */
#ifndef CLI_BENCH_FILES_H
#define CLI_BENCH_FILES_H

#include "cli/bench_options.h"
#include "cli/bench_raw.h"

enum bench_side { BENCH_SIDE_IMAGE, BENCH_SIDE_RAW, BENCH_SIDE_COUNT };

struct bench_files {
    const struct bench_options *options;
    struct scow_image *image; /* NULL: none */
    struct scow_info info;    /* of the image */
    struct bench_raw raw;     /* fd -1: none */
    bool used[BENCH_SIDE_COUNT];
};

/* Opens what the options name; reports errors. To be closed in either case. */
int bench_files_open(struct bench_files *files, const struct bench_options *options);

/* The target of one side's next run: with --fresh new, with --prepare written once, but for what is so
 * already. Reports errors. */
int bench_files_target(struct bench_files *files, enum bench_side side, const struct bench_plan *plan,
                       struct bench_target *ret_target);

/* Bytes of the smallest of the files. */
uint64_t bench_files_bytes(const struct bench_files *files);

/* Reports errors: what was written may not have reached the image. 0 or a negative errno. */
int bench_files_close(struct bench_files *files);

#endif
