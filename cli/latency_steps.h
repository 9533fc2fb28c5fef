/* SPDX-License-Identifier: MIT */
/* Latencies as servers count them: in the steps of exports/blk_device.h. */
#ifndef CLI_LATENCY_STEPS_H
#define CLI_LATENCY_STEPS_H

#include <stdint.h>

#include "exports/blk_device.h"

/* By step. */
struct latency_steps {
    uint64_t counts[BLK_LATENCY_STEPS];
};

/* The end of the step that a fraction q (0 to 1) of what was counted does not exceed: at most 25 % too high,
 * from 2 µs on. 1: the maximum. 0 when nothing was counted. */
uint64_t latency_steps_quantile(const struct latency_steps *l, double q);

#endif
