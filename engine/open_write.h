/* SPDX-License-Identifier: MIT */
/* What opening for writing does beyond opening: recovery, and clearing autoclear bits. */
#ifndef ENGINE_OPEN_WRITE_H
#define ENGINE_OPEN_WRITE_H

#include "engine/image.h"

/* The chain is open. 0 or a negative errno, with a message. */
int open_for_writing(struct scow_image *image);

#endif
