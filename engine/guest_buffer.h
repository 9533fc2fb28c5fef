/* SPDX-License-Identifier: MIT */
/* A request's memory: one buffer or an iovec array of the caller's, seen as one range of bytes. */
#ifndef ENGINE_GUEST_BUFFER_H
#define ENGINE_GUEST_BUFFER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct guest_buffer {
    void *buf;               /* when iov_count is 0 */
    const struct iovec *iov; /* the caller's, valid until the request's completion */
    int32_t iov_count;
};

/* Copy bytes bytes to position at, or fill them with zeros. The range is within the buffer. */
void guest_buffer_copy(const struct guest_buffer *b, uint64_t at, const void *from, uint64_t bytes);
void guest_buffer_gather(const struct guest_buffer *b, uint64_t at, void *to,
                         uint64_t bytes); /* the other way */
void guest_buffer_zero(const struct guest_buffer *b, uint64_t at, uint64_t bytes);

/*
 * The segments of [at, at + bytes) as an array of at most iov_max, for as much of the range as they cover and
 * as every segment is aligned: addresses to mem_align, lengths to io_align (the last one is cut). Returns the
 * bytes covered, 0 if not even the first segment will do.
 */
uint32_t guest_buffer_slice(const struct guest_buffer *b, uint64_t at, uint32_t bytes, uint32_t mem_align,
                            uint32_t io_align, struct iovec *iov, int iov_max, int *ret_count);

/* Sum of the lengths, or UINT64_MAX when it is beyond any request. */
uint64_t guest_buffer_iov_bytes(const struct iovec *iov, int iov_count);

#endif
