/* SPDX-License-Identifier: MIT */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"

/* bytes zeroed bytes that begin on a cache line of their own, for free(); NULL without memory. */
static inline void *line_alloc(size_t bytes)
{
    void *p;

    if (posix_memalign(&p, CACHE_LINE, bytes ? bytes : 1))
        return NULL;
    return memset(p, 0, bytes);
}

#endif
