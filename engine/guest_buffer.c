/* SPDX-License-Identifier: MIT */
#include "engine/guest_buffer.h"

#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"

/* The contiguous memory at position at: its address, and how much there is of it up to bytes. */
static uint8_t *contiguous(const struct guest_buffer *b, uint64_t at, uint64_t bytes, uint64_t *ret_bytes)
{
    if (!b->iov_count) {
        *ret_bytes = bytes;
        return (uint8_t *)b->buf + at;
    }
    for (int i = 0; i < b->iov_count; i++) {
        if (at < b->iov[i].iov_len) {
            *ret_bytes = MIN(bytes, b->iov[i].iov_len - at);
            return (uint8_t *)b->iov[i].iov_base + at;
        }
        at -= b->iov[i].iov_len;
    }
    invariant(false);
    return NULL;
}

void guest_buffer_copy(const struct guest_buffer *b, uint64_t at, const void *from, uint64_t bytes)
{
    while (bytes) {
        uint64_t n;
        uint8_t *const p = contiguous(b, at, bytes, &n);

        memcpy(p, from, n);
        from = (const uint8_t *)from + n;
        at += n;
        bytes -= n;
    }
}

void guest_buffer_gather(const struct guest_buffer *b, uint64_t at, void *to, uint64_t bytes)
{
    while (bytes) {
        uint64_t n;
        const uint8_t *const p = contiguous(b, at, bytes, &n);

        memcpy(to, p, n);
        to = (uint8_t *)to + n;
        at += n;
        bytes -= n;
    }
}

void guest_buffer_zero(const struct guest_buffer *b, uint64_t at, uint64_t bytes)
{
    while (bytes) {
        uint64_t n;
        uint8_t *const p = contiguous(b, at, bytes, &n);

        memset(p, 0, n);
        at += n;
        bytes -= n;
    }
}

uint32_t guest_buffer_slice(const struct guest_buffer *b, uint64_t at, uint32_t bytes, uint32_t mem_align,
                            uint32_t io_align, struct iovec *iov, int iov_max, int *ret_count)
{
    uint32_t covered = 0;
    int count = 0;

    while (covered < bytes && count < iov_max) {
        uint64_t n;
        uint8_t *const p = contiguous(b, at + covered, bytes - covered, &n);
        const uint64_t usable = round_down(n, io_align);

        if (((uintptr_t)p & (mem_align - 1)) || !usable)
            break;
        iov[count++] = (struct iovec){p, usable};
        covered += (uint32_t)usable;
        if (usable < n)
            break;
    }
    *ret_count = count;
    return covered;
}

uint64_t guest_buffer_iov_bytes(const struct iovec *iov, int iov_count)
{
    uint64_t total = 0;

    for (int i = 0; i < iov_count; i++)
        if (!checked_add(total, iov[i].iov_len, &total))
            return UINT64_MAX;
    return total;
}
