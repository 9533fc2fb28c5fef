/* SPDX-License-Identifier: MIT */
/* What every image names: the same small file, a qcow2 image with one cluster of each kind. */
#ifndef FUZZ_CHILD_IMAGE_H
#define FUZZ_CHILD_IMAGE_H

#include <stdint.h>

#define CHILD_IMAGE_BYTES 14000u /* not a multiple of anything */

const uint8_t *child_image(void);

#endif
