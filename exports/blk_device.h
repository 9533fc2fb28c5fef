/* SPDX-License-Identifier: MIT */
/* What all virtqueues of an exported disk share, and what is counted of each. */
#ifndef EXPORTS_BLK_DEVICE_H
#define EXPORTS_BLK_DEVICE_H

#include <linux/virtio_blk.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"

#define BLK_SECTOR 512u
#define BLK_SEGMENTS_MAX 32u /* of one discard or write_zeroes */
/* Of one such segment: what a 32-bit count of sectors holds, in whole MiB. */
#define BLK_RANGE_SECTORS_MAX (UINT32_MAX & ~2047u)
/* Pieces of a request: with header and status within 128 descriptors, the ring size that front ends use. */
#define BLK_SEG_MAX 126u

struct blk_device {
    struct scow_image *image;
    _Atomic uint64_t capacity; /* sectors; the main thread changes it, workers read it */
    bool read_only;
    bool always_writethrough;  /* the guest cannot turn the cache on */
    _Atomic bool writethrough; /* every write is durable when it is answered; the main thread's */
    _Atomic bool outlived;     /* the guest goes on when this process is killed; the main thread's */
    bool stats;                /* latencies are measured */
    bool pin_memory;           /* the guest's memory is registered with the rings */
    char serial[VIRTIO_BLK_ID_BYTES];
    void (*log)(void *ctx, const char *text); /* any thread */
    void *log_ctx;
};

/* What a write has to have done when it is answered. */
static inline uint32_t blk_write_flags(const struct blk_device *d)
{
    return (atomic_load_explicit(&d->writethrough, memory_order_relaxed) ? SCOW_REQ_FUA : 0) |
           (atomic_load_explicit(&d->outlived, memory_order_relaxed) ? SCOW_REQ_OUTLIVES : 0);
}

enum blk_kind { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_DISCARD, BLK_ZEROES, BLK_OTHER, BLK_KINDS };

/* Latencies in steps of a quarter of a power of two, from 2 µs on; of half a microsecond below. */
#define BLK_LATENCY_STEPS 104u

/* Written by the queue's worker, read by anybody; relaxed. Bytes are those of the disk, of requests without
 * an error. */
struct blk_counts {
    _Atomic uint64_t requests[BLK_KINDS];
    _Atomic uint64_t bytes[BLK_KINDS];
    _Atomic uint64_t errors[BLK_KINDS];
    _Atomic uint64_t latency[BLK_KINDS][BLK_LATENCY_STEPS];
    _Atomic uint64_t kicks, interrupts;
};

static inline void blk_count(_Atomic uint64_t *c, uint64_t n)
{
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline uint32_t blk_latency_step(uint64_t ns)
{
    const uint64_t us4 = ns / 250; /* quarters of a microsecond */
    uint32_t log, step;

    if (us4 < 8)
        return (uint32_t)(us4 / 2); /* below 2 µs: half microseconds */
    log = 63u - (uint32_t)__builtin_clzll(us4);
    step = 4 * (log - 2) + (uint32_t)(us4 >> (log - 2) & 3);
    return step < BLK_LATENCY_STEPS ? step : BLK_LATENCY_STEPS - 1;
}

/* The upper end of a step, which belongs to the next. The last has none. */
static inline uint64_t blk_latency_ns(uint32_t step)
{
    if (step < 4)
        return (step + 1) * 500ull;
    return ((4ull + step % 4 + 1) << (step / 4)) * 250;
}

#endif
