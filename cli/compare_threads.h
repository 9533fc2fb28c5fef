/* SPDX-License-Identifier: MIT */
/* Reads two images on several threads and finds the lowest offset where they differ. */
#ifndef CLI_COMPARE_THREADS_H
#define CLI_COMPARE_THREADS_H

#include <stdint.h>

#include "shardcow.h"
#include "cli/progress.h"

enum compare_kind {
    COMPARE_SAME,
    COMPARE_MISMATCH,
    COMPARE_READ_FAILED, /* image, off, error */
    COMPARE_MAP_FAILED,  /* image, error */
    COMPARE_FAILED,      /* error: no memory, no queue or no thread */
};

struct compare_result {
    enum compare_kind kind;
    uint64_t off;
    unsigned image;
    char error[512];
};

/* Compares [0, end); beyond an image's size it reads as zeros. */
void compare_run(struct scow_image *images[2], uint64_t end, uint32_t threads, struct progress *progress,
                 struct compare_result *ret_result);

#endif
