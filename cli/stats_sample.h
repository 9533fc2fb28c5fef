/* SPDX-License-Identifier: MIT */
/* A server's answer to "stats", taken apart, and the difference between two of them. */
#ifndef CLI_STATS_SAMPLE_H
#define CLI_STATS_SAMPLE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "cli/latency_steps.h"

struct stats_kind {
    uint64_t requests, bytes, errors;
    struct latency_steps latency;
};

struct stats_queue {
    char state[16];
    uint64_t kicks, interrupts;
    struct stats_kind kinds[BLK_KINDS];
};

/* Of the image: what was counted, then what there is. */
struct stats_image {
    uint64_t hits, misses, loads, evictions;
    uint64_t in_place, at_shard, allocated, cow_bytes;
    uint64_t inflates, flushes_alone, flushes_joined;
    uint64_t commits, slice_writes, syncs;
    uint64_t leases, punched;
    uint64_t slots, resident, dirty, leased, pending, epoch_lag;
};

struct stats_sample {
    json_t *answer;
    uint64_t uptime_ns;
    uint32_t queue_count;
    struct stats_queue *queues;
    struct stats_image image;
};

/* Takes answer's reference. False: out of memory, or no answer of a server's; reported with path. */
bool stats_sample_take(struct stats_sample *s, json_t *answer, const char *path);
void stats_sample_drop(struct stats_sample *s);

/* What was counted since before, which is of the same server; what there is now stays. */
void stats_sample_subtract(struct stats_sample *s, const struct stats_sample *before);

#endif
