/* SPDX-License-Identifier: MIT */
/*
 * One image file of a backing chain: its decoded header, its L1 table and the directory of its cached L2
 * slices.
 *
 * Built and torn down by the control path (engine/open.c); in between every thread reads it.
 */
#ifndef ENGINE_LAYER_H
#define ENGINE_LAYER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/directory.h"
#include "format/header.h"
#include "io/file.h"
#include "shardcow.h"

/*
 * What maps guest offsets. An image that is open for writing has address space for all that it may grow to,
 * so that growing moves nothing.
 */
struct map_root {
    /* Writer: the allocator, when the image grows: there is room (l1_room) and entries are there before the
     * count says so (release); readers: acquire. */
    _Atomic uint32_t l1_count;
    uint32_t l1_room;
    /* Host byte order. Writer: the allocator; readers: everyone, relaxed: an entry is one word and names a
     * table whose content is checked when it is read. */
    _Atomic uint64_t *l1;
    struct directory directory; /* guest offset >> slice_shift → slot */
};

struct layer {
    enum scow_format format;
    uint32_t depth; /* 0: the image that was opened */
    struct file *file;
    struct file *data_file; /* where guest clusters are: file, unless the image names a data file */
    bool raw_data_file;     /* and that is to be a raw image of its own */
    bool has_data_file;     /* it does (also with SCOW_OPEN_NO_IO, where data_file stays file) */
    struct layer *backing;  /* NULL at the end of the chain */

    /* qcow2 only */
    struct header header;
    uint8_t *cluster0; /* the first cluster's bytes: spans in header point into it */
    char *backing_name, *backing_format, *data_file_name; /* terminated copies; NULL: none */

    bool grows; /* open for writing: has room for more */
    bool sparse_known,
        sparse; /* allocated clusters may be holes of the host; for extents, under blocking_lock */
    _Atomic uint64_t
        virtual_bytes;         /* Writer: the allocator, when the image grows, behind l1_count (release) */
    uint32_t slice_shift;      /* log2 of the guest bytes that one slice maps */
    uint64_t slice_mask;       /* of the offset within that */
    uint32_t entry_shift;      /* log2 of the guest bytes per byte of a slice */
    uint32_t slice_bytes;      /* of one slice on disk */
    uint32_t slices_per_table; /* of one L2 table */
    bool plain_entries; /* neither extended L2 nor an external data file: see cached_lookup_standard() */
    struct map_root *_Atomic root; /* NULL for raw and with SCOW_OPEN_NO_IO */
};

#endif
