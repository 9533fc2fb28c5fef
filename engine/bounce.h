/* SPDX-License-Identifier: MIT */
/* Aligned buffers for direct I/O that does not fit the caller's: a fixed number per queue. */
#ifndef ENGINE_BOUNCE_H
#define ENGINE_BOUNCE_H

#include <stddef.h>
#include <stdint.h>

#define BOUNCE_BYTES (128u << 10)
#define BOUNCE_COUNT 32u

struct bounce_pool {
    uint8_t *memory;
    uint32_t free_count;
    uint8_t *free[BOUNCE_COUNT];
};

/* The memory is mapped here and taken from the kernel when first used. 0 or -ENOMEM. */
int bounce_pool_create(struct bounce_pool *p);
void bounce_pool_destroy(struct bounce_pool *p);

/* BOUNCE_BYTES bytes, page-aligned; NULL when all are in use. */
static inline void *bounce_take(struct bounce_pool *p)
{
    return p->free_count ? p->free[--p->free_count] : NULL;
}

static inline void bounce_give(struct bounce_pool *p, void *buffer)
{
    p->free[p->free_count++] = buffer;
}

#endif
