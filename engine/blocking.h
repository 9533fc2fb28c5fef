/* SPDX-License-Identifier: MIT */
/* The internal queue of the blocking helpers. */
#ifndef ENGINE_BLOCKING_H
#define ENGINE_BLOCKING_H

#include "engine/queue.h"

/* Lock, and create the queue the first time. 0, or a negative errno with nothing locked. */
int blocking_begin(struct scow_image *image, struct scow_queue **ret);
void blocking_end(struct scow_image *image);

/* scow_quiesce(), and nothing begins any more afterwards. */
int blocking_close(struct scow_image *image);

#endif
