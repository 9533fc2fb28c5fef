/* SPDX-License-Identifier: MIT */
/* Opening one image of a chain: header, names, L1 table. Control path. */
#ifndef ENGINE_LAYER_OPEN_H
#define ENGINE_LAYER_OPEN_H

#include "engine/layer.h"

/* file is the layer's from then on, also on failure. slice_bytes: what the options ask for. no_io: header
 * only. */
int layer_open(struct file *file, enum scow_format format, uint32_t depth, uint32_t slice_bytes, bool no_io,
               struct layer **ret);

/* Closes its files too. NULL is allowed. */
void layer_close(struct layer *layer);

#endif
