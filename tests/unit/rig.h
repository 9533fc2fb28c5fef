/* SPDX-License-Identifier: MIT */
/* What most tests start from: a chain of images with known content, open, and reads that are compared with
 * it. */
#ifndef UNIT_RIG_H
#define UNIT_RIG_H

#include <shardcow.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/unit/image_builder.h"

#define RIG_LAYERS_MAX 8

struct rig {
    struct image_builder *layers[RIG_LAYERS_MAX];
    int count;
    char paths[RIG_LAYERS_MAX][300];
    struct scow_image *image; /* rig_open() */
    struct scow_queue *queue; /* rig_queue() */
};

/*
 * Builds count layers, specs[0] on top, each naming the next as its backing file, all clusters of random
 * kinds. Backing names are relative. With data_file_name set, the data file is written as well.
 */
void rig_build(struct rig *rig, const struct image_spec *specs, int count, uint64_t seed);

/* Small defaults: two shards, every child allowed. */
struct scow_open_options rig_options(void);

/* The first layer, with rig_options() when options is NULL. Aborts when that fails. */
void rig_open(struct rig *rig, const struct scow_open_options *options);
void rig_queue(struct rig *rig, uint32_t depth);

/* Everything. */
void rig_free(struct rig *rig);

/* Whether buf is what a guest reads at off; says where it is not. */
bool rig_matches(const struct rig *rig, uint64_t off, uint64_t bytes, const void *buf);

/* One read, waited for. 0, or the completion's error with its text in the thread's buffer rig_text(). */
int rig_read(struct scow_queue *queue, uint64_t off, void *buf, uint64_t bytes);
const char *rig_text(void);

/* Poll until count completions came, each of which must be 0. False when one was not, or after 20 s. */
bool rig_collect(struct scow_queue *queue, uint32_t count);

/* Every sector of the image through this queue, in pieces of piece_bytes. */
bool rig_verify_all(const struct rig *rig, struct scow_queue *queue, uint64_t piece_bytes);

#endif
