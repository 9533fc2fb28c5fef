/* SPDX-License-Identifier: MIT */
/* `shardcow map --output=svg`: guest offsets across, host offsets up, one colour per layer. */
#ifndef CLI_MAP_PICTURE_H
#define CLI_MAP_PICTURE_H

#include <stdio.h>

#include "shardcow.h"

/* Draws [start, end) of image. path names it in the title. Reports errors; 0 or a negative errno. */
int map_picture(FILE *out, struct scow_image *image, const char *path, uint64_t start, uint64_t end);

#endif
