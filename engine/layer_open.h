/* SPDX-License-Identifier: MIT */
/* Opening one image of a chain: header, names, L1 table. Control path. */
#ifndef ENGINE_LAYER_OPEN_H
#define ENGINE_LAYER_OPEN_H

#include "engine/layer.h"

struct layer_options {
    uint32_t slice_bytes; /* as the image's options ask for */
    bool no_io;           /* header only */
    bool grows; /* written: slices are whole blocks of the file, and there is room for a larger image */
};

/* file is the layer's from then on, also on failure. */
int layer_open(struct file *file, enum scow_format format, uint32_t depth,
               const struct layer_options *options, struct layer **ret);

/* The file has been changed (by repair): read everything again. On failure the layer can only be closed. */
int layer_reload(struct layer *layer);

/* Closes its files too. NULL is allowed. */
void layer_close(struct layer *layer);

#endif
