/* SPDX-License-Identifier: MIT */
/* One image of a chain as `shardcow info` shows it. */
#ifndef CLI_INFO_NODE_H
#define CLI_INFO_NODE_H

#include <limits.h>
#include <stdbool.h>

#include "shardcow.h"
#include "cli/json.h"

struct info_node {
    struct scow_image *image;
    struct scow_info info;
    struct scow_check_result stats;
    bool has_stats;
    bool block_device;
    uint32_t extent_size_hint; /* of the file, as xfs keeps it; 0: none */
    char path[PATH_MAX];
    char backing_path[PATH_MAX]; /* "" without a backing file */
};

/* Opens path metadata-only and fills node. Reports errors; 0 or a negative errno. */
int info_node_open(struct info_node *node, const char *path, const struct scow_open_options *options);
/* Counts what --stats shows. Reports errors; 0 or a negative errno. */
int info_node_count(struct info_node *node);
void info_node_close(struct info_node *node);

/* The object that `qemu-img info --output=json` prints, plus "stats" when they were counted. */
json_t *info_node_json(const struct info_node *node);
void info_node_print(const struct info_node *node);

/* stats as JSON and as text; both belong to the two above. */
json_t *info_stats_json(const struct info_node *node);
void info_stats_print(const struct info_node *node);

#endif
