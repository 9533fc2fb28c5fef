/* SPDX-License-Identifier: MIT */
/* Copies an image's content into a qcow2 image on several threads, each with a queue on either. */
#ifndef CLI_CONVERT_COPY_H
#define CLI_CONVERT_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"
#include "cli/convert_threads.h"
#include "cli/progress.h"

struct copy_target {
    struct scow_image *image;
    const char *path; /* for messages */
    uint64_t cluster_bytes;
    bool compressed;
    bool reads_zero; /* what is not written reads as zeros */
    bool has_backing;
};

/*
 * Copies source index of count to base_off in the target. With a backing file below the target only what the
 * source itself has is copied, if the source has a backing file as well. Compressed clusters that lie in two
 * sources are left for copy_seams(). Reports errors; 0 or a negative errno.
 */
int copy_run(struct scow_image *source, const struct copy_target *target, uint64_t base_off, bool last,
             const struct convert_options *options, struct progress *progress);

/* The compressed clusters in which one source ends and the next begins. */
int copy_seams(struct scow_image *const *sources, const char *const *paths, uint32_t count,
               const struct copy_target *target, const struct convert_options *options,
               struct progress *progress);

#endif
