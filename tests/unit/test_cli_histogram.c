/* SPDX-License-Identifier: MIT */
/* Needs cli/histogram.c; include paths from the repository root. */
#include "cli/histogram.h"

#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>

static const double quantiles[] = {0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1};
#define QUANTILE_COUNT (sizeof(quantiles) / sizeof(quantiles[0]))

/* splitmix64: every value of the seed gives a good sequence. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Any magnitude below 2^bits, each as likely as the other. */
static uint64_t next_value(uint64_t *state, unsigned bits)
{
    const unsigned shift = (unsigned)(next_random(state) % bits);
    return (next_random(state) >> (64 - bits)) >> shift;
}

static int compare_values(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The smallest of the values that a fraction q of them does not exceed. */
static uint64_t exact_quantile(const uint64_t *sorted, uint32_t count, double q)
{
    const double rank = ceil(q * count);
    return sorted[rank < 1 ? 0 : (uint32_t)rank - 1];
}

static void record_all(struct histogram *h, const uint64_t *values, uint32_t count)
{
    histogram_reset(h);
    for (uint32_t i = 0; i < count; i++)
        histogram_record(h, values[i]);
}

Test(cli_histogram, small_values_have_buckets_of_their_own)
{
    for (uint64_t v = 0; v < 2 * HISTOGRAM_SUB_COUNT; v++) {
        cr_assert_eq(histogram_index(v), (uint32_t)v);
        cr_assert_eq(histogram_bucket_last((uint32_t)v), v);
    }
    /* From here on two values share one. */
    cr_assert_eq(histogram_index(128), 128);
    cr_assert_eq(histogram_index(129), 128);
    cr_assert_eq(histogram_index(130), 129);
}

/* Bucket after bucket, with neither a gap nor an overlap. */
Test(cli_histogram, buckets_are_contiguous)
{
    uint64_t first = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKET_COUNT - 1; i++) {
        const uint64_t last = histogram_bucket_last(i);
        cr_assert(last >= first, "bucket %u ends at %llu, before it begins", i, (unsigned long long)last);
        cr_assert_eq(histogram_index(first), i);
        cr_assert_eq(histogram_index(first + (last - first) / 2), i);
        cr_assert_eq(histogram_index(last), i);
        cr_assert((last - first) * HISTOGRAM_SUB_COUNT <= first,
                  "bucket %u is more than 1/%u of its values wide", i, HISTOGRAM_SUB_COUNT);
        first = last + 1;
    }
    cr_assert_eq(histogram_index(first), HISTOGRAM_BUCKET_COUNT - 1);
}

Test(cli_histogram, last_bucket_takes_everything_above)
{
    const uint32_t last = HISTOGRAM_BUCKET_COUNT - 1;
    cr_assert_eq(histogram_index(1ull << HISTOGRAM_VALUE_BITS), last);
    cr_assert_eq(histogram_index(UINT64_MAX), last);
    cr_assert_eq(histogram_bucket_last(last), UINT64_MAX);

    struct histogram h;
    const uint64_t values[] = {5, 1ull << 50, (1ull << 60) + 3};
    record_all(&h, values, 3);
    cr_assert_eq(histogram_quantile(&h, 1), (1ull << 60) + 3, "the maximum stays exact");
    cr_assert_eq(histogram_quantile(&h, 0.3), 5);
}

Test(cli_histogram, empty)
{
    struct histogram h;
    histogram_reset(&h);
    for (size_t i = 0; i < QUANTILE_COUNT; i++)
        cr_assert_eq(histogram_quantile(&h, quantiles[i]), 0);
    cr_assert_eq(histogram_mean(&h), 0.0);
    cr_assert_eq(h.count, 0);
    cr_assert_eq(h.min, UINT64_MAX);
}

Test(cli_histogram, one_value)
{
    struct histogram h;
    const uint64_t value = 1234567;
    record_all(&h, &value, 1);
    for (size_t i = 0; i < QUANTILE_COUNT; i++)
        cr_assert_eq(histogram_quantile(&h, quantiles[i]), value);
    cr_assert_eq(histogram_mean(&h), 1234567.0);
    cr_assert_eq(h.min, value);
    cr_assert_eq(h.max, value);
}

Test(cli_histogram, exact_below_128)
{
    struct histogram h;
    uint64_t values[100];
    for (uint32_t i = 0; i < 100; i++)
        values[i] = i + 1;
    record_all(&h, values, 100);
    cr_assert_eq(histogram_quantile(&h, 0.5), 50);
    cr_assert_eq(histogram_quantile(&h, 0.505), 51);
    cr_assert_eq(histogram_quantile(&h, 0.9), 90);
    cr_assert_eq(histogram_quantile(&h, 0.99), 99);
    cr_assert_eq(histogram_quantile(&h, 0), 1);
    cr_assert_eq(histogram_quantile(&h, 1), 100);
    cr_assert_eq(histogram_mean(&h), 50.5);
}

Test(cli_histogram, quantiles_follow_a_sorted_array)
{
    enum { COUNT_MAX = 5000 };
    uint64_t *const values = calloc(COUNT_MAX, sizeof(*values));
    struct histogram h;
    cr_assert(values != NULL);
    for (uint64_t seed = 1; seed <= 200; seed++) {
        uint64_t state = seed;
        const uint32_t count = 1 + (uint32_t)(next_random(&state) % COUNT_MAX);
        const unsigned bits = 8 + (unsigned)(next_random(&state) % (HISTOGRAM_VALUE_BITS - 8));
        for (uint32_t i = 0; i < count; i++)
            values[i] = next_value(&state, bits);
        record_all(&h, values, count);
        qsort(values, count, sizeof(*values), compare_values);
        cr_assert_eq(h.count, count);
        cr_assert_eq(h.min, values[0]);
        cr_assert_eq(h.max, values[count - 1]);
        for (size_t i = 0; i < QUANTILE_COUNT; i++) {
            const uint64_t exact = exact_quantile(values, count, quantiles[i]);
            const uint64_t got = histogram_quantile(&h, quantiles[i]);
            cr_assert(got >= exact && got - exact <= exact / HISTOGRAM_SUB_COUNT,
                      "seed %llu, quantile %g of %u values: %llu, should be %llu or up to 1/%u more",
                      (unsigned long long)seed, quantiles[i], count, (unsigned long long)got,
                      (unsigned long long)exact, HISTOGRAM_SUB_COUNT);
            cr_assert(got <= h.max);
        }
    }
    free(values);
}

/* Merged parts are the histogram of the whole. */
Test(cli_histogram, merge)
{
    struct histogram whole, sum, part, empty;
    uint64_t state = 7;
    histogram_reset(&whole);
    histogram_reset(&sum);
    histogram_reset(&empty);
    for (int i = 0; i < 5; i++) {
        histogram_reset(&part);
        for (int k = 0; k < 1000 * i; k++) { /* the first part is empty */
            const uint64_t value = next_value(&state, 45);
            histogram_record(&part, value);
            histogram_record(&whole, value);
        }
        histogram_merge(&sum, &part);
    }
    histogram_merge(&sum, &empty);
    cr_assert_eq(sum.count, 10000);
    cr_assert_eq(sum.count, whole.count);
    cr_assert_eq(sum.sum, whole.sum);
    cr_assert_eq(sum.min, whole.min);
    cr_assert_eq(sum.max, whole.max);
    for (uint32_t i = 0; i < HISTOGRAM_BUCKET_COUNT; i++)
        cr_assert_eq(sum.buckets[i], whole.buckets[i]);
}
