/* SPDX-License-Identifier: MIT */
/* Repair of an image's metadata: what scow_check() with a repair flag does, and opening after a crash. */
#ifndef ENGINE_REPAIR_H
#define ENGINE_REPAIR_H

#include <stdint.h>

#include "shardcow.h"

struct scow_image;

/*
 * For opening an image whose writer did not close it, with SCOW_CHECK_REPAIR_LEAKS: nothing is written when
 * there is anything but leaks (ret->corruptions and ret->check_errors tell), and leaked clusters go back to
 * the host as well, except with SCOW_OPEN_NO_PUNCH.
 */
#define REPAIR_RECOVER (1u << 31)

/*
 * Repair the top layer, a qcow2 image whose file is writable. Nobody else uses the file, and the image has no
 * queues and no threads yet; what it has read of the header and the L1 table is kept up to date. flags:
 * SCOW_CHECK_REPAIR_*, REPAIR_RECOVER; options as for scow_check() (their own flags do not matter), NULL for
 * the defaults. Blocking; everything is durable when it returns 0.
 *
 * ret is what was found, less what was mended; nothing is looked at twice. 0 when the repair ran to its end,
 * whatever it left; -EIO when leaks are not all and only a full repair could go on; or what the file says.
 *
 * A crash at any point leaves nothing worse than it was: refcounts are raised before flags are mended, and
 * lowered last, each durable before the next; new refcount structures take the old ones' place with one
 * sector of the header.
 */
int image_repair(struct scow_image *image, uint32_t flags, const struct scow_check_options *options,
                 struct scow_check_result *ret);

#endif
