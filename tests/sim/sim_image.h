/* SPDX-License-Identifier: MIT */
/* The disks that a run starts with. */
#ifndef SIM_SIM_IMAGE_H
#define SIM_SIM_IMAGE_H

#include "tests/sim/run_config.h"

#define IMAGE_DISK "image"
#define BACKING_DISK "backing"
#define DATA_DISK "data"

/* What the guest finds, by sector; as many as it has sectors. */
struct sim_content {
    uint32_t sectors;
    uint32_t *values;
    uint32_t room;
};

/* Adds the disks to sim. */
void sim_image_build(struct sim *sim, const struct run_config *c, struct sim_content *ret);

#endif
