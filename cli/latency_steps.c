/* SPDX-License-Identifier: MIT */
#include "cli/latency_steps.h"

uint64_t latency_steps_quantile(const struct latency_steps *l, double q)
{
    uint64_t total = 0, sum = 0, want;

    for (uint32_t i = 0; i < BLK_LATENCY_STEPS; i++)
        total += l->counts[i];
    if (!total)
        return 0;
    want = (uint64_t)(q * (double)total);
    want += (double)want < q * (double)total; /* up */
    want = want < 1 ? 1 : want > total ? total : want;
    for (uint32_t i = 0; i < BLK_LATENCY_STEPS; i++) {
        sum += l->counts[i];
        if (sum >= want)
            return blk_latency_ns(i);
    }
    return 0;
}
