/* SPDX-License-Identifier: MIT */
/* Arithmetic on values from disk or from callers: each returns false instead of wrapping. */
#ifndef BASE_CHECKED_H
#define BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
    return !__builtin_add_overflow(a, b, ret_sum);
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret_product)
{
    return !__builtin_mul_overflow(a, b, ret_product);
}

/* Whether [off, off + bytes) lies within [0, limit). */
static inline bool range_within(uint64_t off, uint64_t bytes, uint64_t limit)
{
    return bytes <= limit && off <= limit - bytes;
}

static inline uint64_t round_down(uint64_t v, uint64_t power_of_two)
{
    return v & ~(power_of_two - 1);
}

/* The caller knows that v is below 2^63. */
static inline uint64_t round_up(uint64_t v, uint64_t power_of_two)
{
    return (v + power_of_two - 1) & ~(power_of_two - 1);
}

static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

static inline bool is_power_of_two(uint64_t v)
{
    return v && !(v & (v - 1));
}

#endif
