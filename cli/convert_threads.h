/* SPDX-License-Identifier: MIT */
/* Copies an image's content into an output on several threads, leaving zeros out. */
#ifndef CLI_CONVERT_THREADS_H
#define CLI_CONVERT_THREADS_H

#include <stdint.h>

#include "shardcow.h"
#include "cli/output.h"
#include "cli/progress.h"

struct convert_options {
    uint32_t threads;
    uint32_t in_flight;    /* chunks per thread */
    uint64_t sparse_bytes; /* runs of zeros from this length on are not written; 0: all is written */
    const char *path;      /* the image's, for messages */
};

/* base_off is where the image begins in the output. Reports errors, naming file and offset; 0 or a negative
 * errno. */
int convert_run(struct scow_image *image, struct output *output, uint64_t base_off,
                const struct convert_options *options, struct progress *progress);

#endif
