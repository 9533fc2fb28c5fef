/* SPDX-License-Identifier: MIT */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/attributes.h"

/* bytes zeroed bytes that begin on a cache line of their own, for free(); NULL without memory. */
static inline void *line_alloc(size_t bytes)
{
    void *p;

    if (posix_memalign(&p, CACHE_LINE, bytes ? bytes : 1))
        return NULL;
    return memset(p, 0, bytes);
}

/* bytes zeroed bytes that take memory only where they are written, for pages_release(); NULL with errno set.
 */
static inline void *pages_reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

/* NULL is nothing to release. */
static inline void pages_release(void *p, size_t bytes)
{
    if (p)
        munmap(p, bytes);
}

static inline bool is_zero(const void *p, size_t bytes)
{
    const uint8_t *const b = p;

    /* Equal to itself one byte on, and the first is zero. */
    return !bytes || (!b[0] && !memcmp(b, b + 1, bytes - 1));
}

#endif
