/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>

#include "cli/latency_steps.h"
#include "exports/blk_device.h"

Test(latency_steps, ends_grow)
{
    for (uint32_t i = 1; i < BLK_LATENCY_STEPS; i++)
        cr_assert_gt(blk_latency_ns(i), blk_latency_ns(i - 1), "step %u", i);
}

Test(latency_steps, an_end_is_the_first_of_the_next)
{
    cr_assert_eq(blk_latency_step(0), 0);
    for (uint32_t i = 0; i + 1 < BLK_LATENCY_STEPS; i++) {
        cr_assert_eq(blk_latency_step(blk_latency_ns(i) - 1), i, "step %u", i);
        cr_assert_eq(blk_latency_step(blk_latency_ns(i)), i + 1, "step %u", i);
    }
}

/* Half a microsecond up to 2 µs, from there a quarter of what the step begins with at most. */
Test(latency_steps, steps_are_narrow)
{
    cr_assert_eq(blk_latency_ns(0), 500);
    for (uint32_t i = 1; i < BLK_LATENCY_STEPS; i++) {
        const uint64_t from = blk_latency_ns(i - 1), width = blk_latency_ns(i) - from;

        if (from < 2000)
            cr_assert_eq(width, 500, "step %u", i);
        else
            cr_assert_leq(4 * width, from, "step %u", i);
    }
}

Test(latency_steps, values_are_monotone)
{
    uint32_t last = 0;

    for (uint64_t ns = 0; ns < 1ull << 40; ns += ns / 37 + 1) {
        const uint32_t step = blk_latency_step(ns);

        cr_assert_geq(step, last, "%llu ns", (unsigned long long)ns);
        cr_assert_lt(step, BLK_LATENCY_STEPS);
        cr_assert(step == BLK_LATENCY_STEPS - 1 || ns < blk_latency_ns(step));
        last = step;
    }
}

Test(latency_steps, the_last_takes_all_above)
{
    const uint32_t last = BLK_LATENCY_STEPS - 1;

    cr_assert_gt(blk_latency_ns(last), 60ull * 1000000000, "more than a minute");
    cr_assert_eq(blk_latency_step(blk_latency_ns(last)), last);
    cr_assert_eq(blk_latency_step(UINT64_MAX), last);
}

Test(latency_steps, quantiles)
{
    struct latency_steps l = {0};

    cr_assert_eq(latency_steps_quantile(&l, 0.5), 0, "nothing was counted");
    l.counts[blk_latency_step(10000)] = 98;
    l.counts[blk_latency_step(1000000)] = 1;
    l.counts[blk_latency_step(50000000)] = 1;
    cr_assert_eq(latency_steps_quantile(&l, 0), blk_latency_ns(blk_latency_step(10000)));
    cr_assert_eq(latency_steps_quantile(&l, 0.5), blk_latency_ns(blk_latency_step(10000)));
    cr_assert_eq(latency_steps_quantile(&l, 0.98), blk_latency_ns(blk_latency_step(10000)));
    cr_assert_eq(latency_steps_quantile(&l, 0.99), blk_latency_ns(blk_latency_step(1000000)));
    cr_assert_eq(latency_steps_quantile(&l, 0.999), blk_latency_ns(blk_latency_step(50000000)));
    cr_assert_eq(latency_steps_quantile(&l, 1), blk_latency_ns(blk_latency_step(50000000)));
}
