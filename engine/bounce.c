/* SPDX-License-Identifier: MIT */
#include "engine/bounce.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"

int bounce_pool_create(struct bounce_pool *p)
{
    p->memory = pages_reserve((size_t)BOUNCE_COUNT * BOUNCE_BYTES);
    if (!p->memory)
        return error_set(-ENOMEM, "cannot map bounce buffers: %s", strerror(errno));
    for (p->free_count = 0; p->free_count < BOUNCE_COUNT; p->free_count++)
        p->free[p->free_count] = p->memory + (size_t)p->free_count * BOUNCE_BYTES;
    return 0;
}

void bounce_pool_destroy(struct bounce_pool *p)
{
    pages_release(p->memory, (size_t)BOUNCE_COUNT * BOUNCE_BYTES);
    p->memory = NULL;
}
