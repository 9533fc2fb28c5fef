/* SPDX-License-Identifier: MIT */
/* Fast tests of buffers for zeros and for differences. */
#ifndef CLI_ZEROS_H
#define CLI_ZEROS_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* memcmp() of a buffer with itself, 16 bytes on: runs at the speed of libc's vector code. */
static inline bool zeros_all(const void *buf, size_t bytes)
{
    static const char zeros[16];
    const size_t head = bytes < sizeof zeros ? bytes : sizeof zeros;

    if (memcmp(buf, zeros, head) != 0)
        return false;
    return bytes <= head || !memcmp(buf, (const char *)buf + head, bytes - head);
}

/* The end of the run of grains from at on that are all zeros, or all not: *ret_zeros says which. */
static inline size_t zeros_run_end(const char *buf, size_t bytes, size_t at, size_t grain_bytes,
                                   bool *ret_zeros)
{
    for (size_t from = at; at < bytes;) {
        const size_t grain = bytes - at < grain_bytes ? bytes - at : grain_bytes;
        const bool zeros = zeros_all(buf + at, grain);
        if (at == from)
            *ret_zeros = zeros;
        else if (zeros != *ret_zeros)
            break;
        at += grain;
    }
    return at;
}

#endif
