/* SPDX-License-Identifier: MIT */
/* Where compressed clusters are in the image file: extents do not say, their L2 entries do. */
#ifndef CLI_MAP_COMPRESSED_H
#define CLI_MAP_COMPRESSED_H

#include <stdint.h>

#include "shardcow.h"

#define COMPRESSED_BATCH 512

struct compressed_map {
    struct scow_image *image;
    uint32_t cluster_bits;
    uint32_t entry_values; /* 2 with extended L2 */
    uint64_t first;        /* guest cluster of entries[0] */
    uint32_t count;        /* 0: nothing read yet */
    uint64_t entries[COMPRESSED_BATCH * 2];
};

/* 0, or -ENOTSUP for an image that is not qcow2. */
int compressed_map_init(struct compressed_map *map, struct scow_image *image);

/* The offset of the stream of the cluster at guest_off; -ENOENT if that is not compressed. */
int compressed_map_lookup(struct compressed_map *map, uint64_t guest_off, uint64_t *ret_host_off);

#endif
