/* SPDX-License-Identifier: MIT */
/* What a server tells about its disk, as JSON; shardcow-stats(1) lists the keys. */
#ifndef CLI_CONTROL_STATS_H
#define CLI_CONTROL_STATS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "exports/vhost_user_blk.h"

/* The disk that is served. */
struct control_disk {
    const char *path;
    struct scow_image *image;
    struct vhost_user_blk *server;
    bool read_only, latencies; /* as the server was made */
    uint64_t start_ns;         /* CLOCK_MONOTONIC */
};

/* The names of kinds of requests, by enum blk_kind. */
extern const char *const control_kind_names[BLK_KINDS];

json_t *control_stats(const struct control_disk *disk);

#endif
