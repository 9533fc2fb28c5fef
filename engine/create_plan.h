/* SPDX-License-Identifier: MIT */
/*
 * What a new image will look like: its options checked, and the content of each of its metadata clusters.
 * Pure. Host clusters, in this order: header, refcount table, refcount blocks, L1 table, then, preallocated,
 * L2 tables and data clusters. All of them have refcount 1.
 */
#ifndef ENGINE_CREATE_PLAN_H
#define ENGINE_CREATE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "format/header_encode.h"
#include "shardcow.h"

/* Host clusters: the first one's index and how many. */
struct cluster_run {
    uint64_t first, count;
};

struct create_plan {
    struct header_description header; /* its names are those of the options */
    uint32_t cluster_bytes;
    uint32_t l2_entry_bytes; /* 8, or 16 with extended L2 */
    uint64_t guest_clusters; /* that L2 tables map: 0 unless preallocated */
    bool guest_is_host;      /* external data file: clusters are mapped to their own offset there */
    uint64_t subclusters;    /* extended L2: the bitmap of each mapped cluster */

    struct cluster_run reftable, refblocks, l1, l2, data;
    uint64_t total_clusters;
};

/* 0; -EINVAL with a message for options that are wrong or exclude each other; -EFBIG for sizes that the
 * format cannot hold. Opens and allocates nothing. */
int create_plan_make(const struct scow_create_options *o, struct create_plan *ret);

/* The content of a host cluster below plan->data.first, the header's excepted, which is given as zeros. */
void create_plan_fill(const struct create_plan *plan, uint64_t host_cluster, uint8_t *cluster);

#endif
