/* SPDX-License-Identifier: MIT */
#include "cli/histogram.h"

#include <string.h>

void histogram_reset(struct histogram *h)
{
    memset(h, 0, sizeof(*h));
    h->min = UINT64_MAX;
}

void histogram_merge(struct histogram *h, const struct histogram *from)
{
    h->count += from->count;
    h->sum += from->sum;
    h->min = from->min < h->min ? from->min : h->min;
    h->max = from->max > h->max ? from->max : h->max;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKET_COUNT; i++)
        h->buckets[i] += from->buckets[i];
}

uint64_t histogram_bucket_last(uint32_t index)
{
    if (index >= HISTOGRAM_BUCKET_COUNT - 1)
        return UINT64_MAX;
    if (index < 2 * HISTOGRAM_SUB_COUNT)
        return index;
    /* The inverse of histogram_index(): the top bits of a value in this bucket are always 64 to 127. */
    const uint32_t shift = index / HISTOGRAM_SUB_COUNT - 1;
    const uint64_t top = HISTOGRAM_SUB_COUNT + index % HISTOGRAM_SUB_COUNT;
    return ((top + 1) << shift) - 1;
}

uint64_t histogram_quantile(const struct histogram *h, double q)
{
    if (h->count == 0)
        return 0;
    const double wanted = q * (double)h->count;
    uint64_t rank = wanted < 1 ? 1 : (uint64_t)wanted;
    if ((double)rank < wanted)
        rank++;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKET_COUNT; i++) {
        seen += h->buckets[i];
        if (seen >= rank) {
            const uint64_t last = histogram_bucket_last(i);
            return last < h->max ? last : h->max;
        }
    }
    return h->max;
}

double histogram_mean(const struct histogram *h)
{
    return h->count ? (double)h->sum / (double)h->count : 0;
}
