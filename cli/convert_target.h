/* SPDX-License-Identifier: MIT */
/* The qcow2 image that convert writes: created or found, and opened. */
#ifndef CLI_CONVERT_TARGET_H
#define CLI_CONVERT_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"
#include "cli/convert_copy.h"
#include "cli/output.h"

struct convert_target {
    const char *path;
    uint64_t bytes; /* that it is to hold */
    uint32_t source_count;
    struct scow_create_options create;         /* as -o says */
    const char *backing_name, *backing_format; /* of -B and -F, or NULL */
    bool no_create;
    bool compressed;
    bool is_zero; /* an existing one reads as zeros */
    struct scow_open_options open;
    output_refuse_fn *refuse; /* is asked about every file that would be truncated or written */
    void *refuse_ctx;
};

/* Creates the image unless no_create and opens it for writing. Reports errors; 0 or a negative errno. */
int convert_target_open(const struct convert_target *target, struct copy_target *ret_copy);

#endif
