/* SPDX-License-Identifier: MIT */
/* Writing a new image into open files. */
#ifndef ENGINE_CREATE_H
#define ENGINE_CREATE_H

#include "io/file.h"
#include "shardcow.h"

/*
 * Make file the image that o describes. file is open for writing, and what it held is lost; options that are
 * wrong are refused before that. data_file is the file that o->data_file_name means: emptied and given its
 * size; NULL without one, or when it is to stay as it is. Both are durable when this returns 0; before, the
 * file has no valid header. The caller holds the locks. Blocking.
 *
 * Errors as scow_create(); -ENOSPC for a block device that is too small.
 */
int image_create(struct file *file, struct file *data_file, const struct scow_create_options *o);

#endif
