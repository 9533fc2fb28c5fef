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

#endif
