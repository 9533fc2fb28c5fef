/* SPDX-License-Identifier: MIT */
/* The extents of a range of an image, neighbours that are alike merged as `qemu-img map` does. */
#ifndef CLI_MAP_WALK_H
#define CLI_MAP_WALK_H

#include <stdbool.h>

#include "shardcow.h"

/* zero_is_hole drops the difference between holes, zero clusters and preallocated ones before merging, as
 * the human form of qemu-img does. visit is called in order of offsets; nonzero stops and is returned.
 * Reports errors of the image; 0 or a negative errno. */
typedef int map_visit_fn(void *ctx, const struct scow_extent *extent);
int map_walk(struct scow_image *image, uint64_t start, uint64_t end, bool zero_is_hole, map_visit_fn *visit,
             void *ctx);

#endif
