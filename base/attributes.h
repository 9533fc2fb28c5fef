/* SPDX-License-Identifier: MIT */
/* Compiler attributes and the few macros that every file uses. */
#ifndef BASE_ATTRIBUTES_H
#define BASE_ATTRIBUTES_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define ATTR_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define ATTR_COLD __attribute__((cold, noinline))

/* Size that two cores do not share: x86 fetches lines in pairs. */
#define CACHE_LINE 64

/*
 * A condition that the program, not an image, guarantees. Stays on in release builds: a broken invariant must
 * never become a write. Never used on what a disk, an option or a peer contains.
 */
#define invariant(cond)                                                                                      \
    do {                                                                                                     \
        if (unlikely(!(cond)))                                                                               \
            __builtin_trap();                                                                                \
    } while (0)

static inline void free_pointer(void *pp)
{
    free(*(void **)pp);
}
/* The variable is freed when it goes out of scope. */
#define cleanup_free __attribute__((cleanup(free_pointer)))

#endif
