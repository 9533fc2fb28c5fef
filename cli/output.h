/* SPDX-License-Identifier: MIT */
/* The raw file or block device that convert writes. Writing is for any thread, the rest for one. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"

/* Buffers, and the offsets and lengths that are written, are aligned to this for direct I/O; only the end of
 * the output may be at any offset. */
#define OUTPUT_ALIGN 4096

struct output {
    const char *path;
    int fd;        /* buffered */
    int direct_fd; /* O_DIRECT, or -1 */
    uint64_t size;
    bool block_device;
    bool reads_zero; /* what is not written reads as zeros: a new file */
    bool dense;      /* zeros are to take space */
};

/*
 * Opens or creates path for size bytes and takes the locks that QEMU takes for a writer. create false
 * requires that it exists and is large enough, and leaves its content. An existing file is truncated first,
 * after the caller's refuse() has seen its device and inode. Reports errors; 0 or a negative errno.
 */
typedef int output_refuse_fn(void *ctx, uint64_t device, uint64_t inode);
int output_open(struct output *output, const char *path, uint64_t size, bool create, bool direct,
                output_refuse_fn *refuse, void *ctx);

/* Give the whole output its space on disk, now where the filesystem can, else by writing zeros too. */
void output_make_dense(struct output *output);

/* All of it, or a negative errno; *ret_failed_off is where writing stopped. */
int output_write(struct output *output, const void *buf, uint64_t bytes, uint64_t off,
                 uint64_t *ret_failed_off);

/* Make a range read as zeros, without space where possible unless dense. The same. */
int output_zero(struct output *output, uint64_t off, uint64_t bytes, uint64_t *ret_failed_off);

/* Flush, if flush is set, and close. Reports errors. */
int output_close(struct output *output, bool flush);

#endif
