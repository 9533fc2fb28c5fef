/* SPDX-License-Identifier: MIT */
/*
 * Splits one or two images into chunks for threads to read, in order of offsets, and leaves out what is known
 * to read as zeros in all of them, or hands it out as chunks of its own.
 */
#ifndef CLI_CHUNKS_H
#define CLI_CHUNKS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"
#include "cli/progress.h"

/* Chunks begin at multiples of this unless align says more. */
#define CHUNK_ALIGN 4096

struct chunk {
    uint64_t off;
    uint64_t bytes;
    bool zeros; /* known to read as zeros; any length */
};

typedef int chunk_zero_fn(void *ctx, uint64_t off, uint64_t bytes);

struct chunks {
    struct scow_image *images[2]; /* the second may be NULL */
    uint64_t sizes[2];
    uint64_t chunk_bytes;      /* power of two */
    uint64_t align;            /* power of two, at most chunk_bytes; 0: CHUNK_ALIGN */
    uint64_t base_off;         /* chunks begin and end where off + base_off is a multiple of align */
    uint64_t first;            /* where to begin */
    bool give_zeros;           /* zeros are chunks of their own instead of being left out */
    bool keep_zeros;           /* zeros are like data */
    bool split;                /* a chunk ends where a long run of zeros begins: it is not read */
    bool own_layer;            /* leave out what the image leaves to its backing file */
    uint64_t end;              /* may be lowered while threads run: nothing from there on is handed out */
    struct progress *progress; /* told of what is left out */
    chunk_zero_fn *zero;       /* called for what is left out, one at a time; NULL: not needed */
    void *zero_ctx;

    pthread_mutex_t lock; /* of all below, and of end */
    struct scow_extent extents[2];
    uint64_t next_off;
    int err;               /* sticky */
    unsigned failed_image; /* whose extents could not be read, with err */
    char error[512];
};

/* Sets lock, sizes and next_off; the fields above lock are the caller's. Sizes are rounded up to 512, as qemu
 * does. */
void chunks_init(struct chunks *chunks);
void chunks_destroy(struct chunks *chunks);

/* The next chunk: 1; 0 at the end; a negative errno when extents could not be read or zero() failed. */
int chunks_next(struct chunks *chunks, struct chunk *ret_chunk);

/* Hand out nothing from off on. */
void chunks_stop_at(struct chunks *chunks, uint64_t off);

#endif
