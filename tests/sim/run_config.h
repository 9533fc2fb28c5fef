/* SPDX-License-Identifier: MIT */
/* Everything that a run is made of, drawn from its seed. */
#ifndef SIM_RUN_CONFIG_H
#define SIM_RUN_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/sim/sim_env.h"

#define CLIENTS_MAX 4u

enum fault_plan {
    FAULTS_NONE,
    FAULTS_READ,
    FAULTS_WRITE,
    FAULTS_SYNC,
    FAULTS_SPACE, /* a small disk: -ENOSPC when it is full */
    FAULTS_MIXED,
    FAULT_PLANS,
};

struct run_config {
    uint64_t seed;

    uint32_t version, cluster_bits, refcount_order;
    bool extended_l2, zstd, compressed, snapshot, populated;
    bool backing, backing_raw, data_file, data_file_raw;
    uint64_t virtual_bytes, backing_bytes;

    uint32_t io_align;
    bool block_device, no_allocate, no_punch, no_zero;
    uint64_t spare_clusters; /* that the disk has room for beyond the image; 0: as many as it likes */

    uint32_t shards, slice_bytes, open_flags, detect_zeroes, commit_interval_ms;
    uint64_t cache_bytes, preallocation_bytes;

    uint32_t clients, depth, ops, sessions; /* ops of each client; sessions: opened so often */
    bool events;                            /* clients sleep on their completion descriptor */
    uint32_t latency;
    uint32_t hot_clusters; /* that most requests go to */
    bool may_write, may_flush, may_discard, may_zero, may_resize, may_quiesce, may_compress;
    enum fault_plan faults;
    uint32_t fault_per_mille;
    bool harsh_sync;
    uint32_t crash_per_mille; /* of the boundaries */
};

void run_config_draw(uint64_t seed, struct run_config *ret);
void run_config_print(const struct run_config *c);

#endif
