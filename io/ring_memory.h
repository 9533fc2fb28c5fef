/* SPDX-License-Identifier: MIT */
/*
 * Memory that is registered with a ring: the kernel keeps its pages at hand, and an I/O into it need not look
 * them up and give them back. The owner's thread only.
 */
#ifndef IO_RING_MEMORY_H
#define IO_RING_MEMORY_H

#include <liburing.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define RING_MEMORY_RANGES_MAX 64u

/* Operations of Linux 6.15, which older headers lack. */
#define RING_READV_FIXED 60
#define RING_WRITEV_FIXED 61

struct ring_memory {
    bool has_slots; /* the kernel has a table for them */
    bool vectors;   /* the kernel takes iovecs (6.15) */
    uint32_t count;
    struct ring_memory_range {
        uintptr_t base;
        size_t bytes;
        uint32_t slot; /* of its first GiB; the kernel takes no more for one */
    } ranges[RING_MEMORY_RANGES_MAX];
};

/* 0, or a negative errno with a message: -EEXIST overlaps one that is there, -ENOSPC too many, -ENOMEM the
 * process may not pin as much, -ENOTSUP by this kernel. */
int ring_memory_add(struct ring_memory *m, struct io_uring *ring, void *base, size_t bytes);
/* Exactly one that was added; -ENOENT. I/Os that the kernel has keep what they need. */
int ring_memory_remove(struct ring_memory *m, struct io_uring *ring, void *base, size_t bytes);

/* The slot that the whole buffer lies in; -1: none. */
int ring_memory_slot(const struct ring_memory *m, const void *buf, size_t bytes);
/* The same for all of a vector. */
int ring_memory_slot_of_vector(const struct ring_memory *m, const struct iovec *iov, int count);

#endif
