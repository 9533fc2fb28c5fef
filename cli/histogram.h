/* SPDX-License-Identifier: MIT */
/*
 * A histogram of latencies in fixed memory: buckets are exact below 64 and 1/64 of their value wide above it,
 * so a quantile is at most 1.6 % too high. The layout is HdrHistogram's; Debian 12 has no package of its C
 * library, and this much of it is a page of code.
 *
 * A histogram belongs to one thread at a time.
 */
#ifndef CLI_HISTOGRAM_H
#define CLI_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 6
#define HISTOGRAM_SUB_COUNT (1u << HISTOGRAM_SUB_BITS)
/* Values from 2^40 up (18 minutes in nanoseconds) share the last bucket; max stays exact. */
#define HISTOGRAM_VALUE_BITS 40
#define HISTOGRAM_BUCKET_COUNT ((HISTOGRAM_VALUE_BITS - HISTOGRAM_SUB_BITS + 1) * HISTOGRAM_SUB_COUNT)

struct histogram {
    uint64_t count;
    uint64_t sum;
    uint64_t min; /* UINT64_MAX while count is 0 */
    uint64_t max;
    uint64_t buckets[HISTOGRAM_BUCKET_COUNT];
};

/* Empties it; needed before first use. */
void histogram_reset(struct histogram *h);

/* Adds all of from to h. */
void histogram_merge(struct histogram *h, const struct histogram *from);

/* The value that a fraction q (0 to 1) of the recorded values does not exceed, rounded up to the end of its
 * bucket but never beyond max. 0 when nothing was recorded. */
uint64_t histogram_quantile(const struct histogram *h, double q);

/* 0 when nothing was recorded. */
double histogram_mean(const struct histogram *h);

/* The bucket that holds value, and the greatest value that a bucket holds. */
static inline uint32_t histogram_index(uint64_t value)
{
    if (value < HISTOGRAM_SUB_COUNT)
        return (uint32_t)value;
    if (value >> HISTOGRAM_VALUE_BITS)
        return HISTOGRAM_BUCKET_COUNT - 1;
    const uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return shift * HISTOGRAM_SUB_COUNT + (uint32_t)(value >> shift);
}

uint64_t histogram_bucket_last(uint32_t index);

static inline void histogram_record(struct histogram *h, uint64_t value)
{
    h->count++;
    h->sum += value;
    h->min = value < h->min ? value : h->min;
    h->max = value > h->max ? value : h->max;
    h->buckets[histogram_index(value)]++;
}

#endif
