/* SPDX-License-Identifier: MIT */
#include "engine/layer_open.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "format/entry.h"
#include "format/limits.h"

static int copy_span(const struct layer *layer, struct header_span span, char **ret)
{
    if (!span.bytes)
        return 0;
    *ret = strndup((const char *)layer->cluster0 + span.off, span.bytes);
    return *ret ? 0 : error_set(-ENOMEM, "out of memory");
}

static int read_header(struct layer *layer)
{
    uint8_t head[HEADER_V2_BYTES];
    uint32_t cluster_bytes;
    int r;

    /* A read past the end of the file gives zeros, which are no magic. */
    r = file_read(layer->file, head, sizeof head, 0);
    if (r == 0)
        r = header_probe_cluster(head, sizeof head, &cluster_bytes);
    if (r < 0)
        return r;
    layer->cluster0 = malloc(cluster_bytes);
    if (!layer->cluster0)
        return error_set(-ENOMEM, "out of memory");
    r = file_read(layer->file, layer->cluster0, cluster_bytes, 0);
    if (r == 0)
        r = header_decode(layer->cluster0, cluster_bytes, &layer->header);
    if (r == 0)
        r = copy_span(layer, layer->header.backing_name, &layer->backing_name);
    if (r == 0)
        r = copy_span(layer, layer->header.backing_format, &layer->backing_format);
    if (r == 0)
        r = copy_span(layer, layer->header.data_file_name, &layer->data_file_name);
    return r;
}

static int check_supported(const struct layer *layer, bool no_io)
{
    const struct header *h = &layer->header;

    if (h->crypt_method && !no_io)
        return error_set(-ENOTSUP, "header: the image is encrypted (%s): encrypted images cannot be read",
                         h->crypt_method == 1 ? "AES" : "LUKS");
    if (!h->reftable_clusters && !no_io) /* as QEMU: only the check looks at such an image */
        return error_set(-EINVAL, "header: refcount_table_clusters at offset 56 is 0");
    if ((h->incompatible & INCOMPAT_DATA_FILE) && layer->backing_name &&
        (h->autoclear & AUTOCLEAR_DATA_FILE_RAW))
        return error_set(
            -EINVAL, "header: the image has a raw external data file and a backing file: only one can be");
    return 0;
}

static void set_geometry(struct layer *layer, uint32_t slice_bytes)
{
    const struct header *h = &layer->header;
    uint32_t entries_bits;

    if (layer->grows)
        slice_bytes = MAX(slice_bytes, layer->file->io_align);
    layer->slice_bytes = MIN(slice_bytes, h->cluster_bytes);
    layer->slices_per_table = h->cluster_bytes / layer->slice_bytes;
    entries_bits = (uint32_t)__builtin_ctz(layer->slice_bytes / h->l2_entry_bytes);
    layer->slice_shift = h->cluster_bits + entries_bits;
    layer->slice_mask = (1ull << layer->slice_shift) - 1;
    layer->entry_shift = h->cluster_bits - (uint32_t)__builtin_ctz(h->l2_entry_bytes);
}

static int read_l1(struct layer *layer, struct map_root *root)
{
    const size_t bytes = (size_t)root->l1_count * sizeof *root->l1;
    uint64_t *raw;
    int r;

    if (!bytes && !layer->grows)
        return 0;
    root->l1_room = layer->grows ? L1_BYTES_MAX / sizeof *root->l1 : root->l1_count;
    root->l1 = pages_reserve(root->l1_room * sizeof *root->l1);
    if (!bytes)
        return root->l1 ? 0 : error_set(-ENOMEM, "out of memory");
    raw = malloc(bytes);
    r = root->l1 && raw ? file_read(layer->file, raw, bytes, layer->header.l1_off)
                        : error_set(-ENOMEM, "out of memory");
    if (r < 0)
        error_prefix(r, "L1 table");
    for (uint32_t i = 0; r == 0 && i < root->l1_count; i++)
        atomic_init(&root->l1[i], be64toh(raw[i]));
    free(raw);
    return r;
}

/* Slices that an image may come to have while it is open: all that L1 allows, if that takes no more than this
 * much address space, else a multiple of what it has. */
#define GROW_SLICES (32ull << 20)
#define GROW_FACTOR 16u

static uint64_t slices_room(const struct layer *layer)
{
    const uint64_t now = div_round_up(layer->virtual_bytes, 1ull << layer->slice_shift);
    const uint64_t all = (uint64_t)L1_BYTES_MAX / sizeof(uint64_t) * layer->slices_per_table;

    return layer->grows ? MAX(now, MIN(all, MAX(GROW_SLICES, now * GROW_FACTOR))) : now;
}

static int load_map(struct layer *layer)
{
    struct map_root *root = calloc(1, sizeof *root);
    int r;

    if (!root)
        return error_set(-ENOMEM, "out of memory");
    atomic_init(&layer->root, root);
    root->l1_count = layer->header.l1_count;
    r = read_l1(layer, root);
    return r < 0 ? r : directory_create(&root->directory, slices_room(layer));
}

static int open_qcow2(struct layer *layer, uint32_t slice_bytes, bool no_io)
{
    int r = read_header(layer);

    if (r == 0)
        r = check_supported(layer, no_io);
    if (r < 0)
        return r;
    layer->virtual_bytes = round_down(layer->header.virtual_bytes, SECTOR_BYTES); /* as QEMU */
    layer->has_data_file = layer->header.incompatible & INCOMPAT_DATA_FILE;
    layer->raw_data_file = layer->has_data_file && layer->header.autoclear & AUTOCLEAR_DATA_FILE_RAW;
    layer->plain_entries = !layer->header.extended_l2 && !layer->has_data_file;
    set_geometry(layer, slice_bytes);
    return no_io ? 0 : load_map(layer);
}

int layer_open(struct file *file, enum scow_format format, uint32_t depth,
               const struct layer_options *options, struct layer **ret)
{
    struct layer *layer = calloc(1, sizeof *layer);
    int r = 0;

    if (!layer) {
        file_close(file);
        return error_set(-ENOMEM, "out of memory");
    }
    layer->format = format;
    layer->depth = depth;
    layer->file = file;
    layer->data_file = file;
    layer->grows = options->grows;
    if (format == SCOW_FORMAT_QCOW2)
        r = open_qcow2(layer, options->slice_bytes, options->no_io);
    else /* as QEMU, which counts sectors: what is missing of the last one reads as zeros */
        layer->virtual_bytes = round_up(file->bytes, SECTOR_BYTES);
    if (r < 0) {
        error_prefix(r, "%s", file_name(file));
        layer_close(layer);
        return r;
    }
    *ret = layer;
    return 0;
}

static void unload(struct layer *layer)
{
    struct map_root *root = atomic_load_explicit(&layer->root, memory_order_relaxed);

    if (root) {
        directory_destroy(&root->directory);
        pages_release(root->l1, root->l1_room * sizeof *root->l1);
        free(root);
    }
    atomic_store_explicit(&layer->root, NULL, memory_order_relaxed);
    free(layer->cluster0);
    free(layer->backing_name);
    free(layer->backing_format);
    free(layer->data_file_name);
    layer->cluster0 = NULL;
    layer->backing_name = layer->backing_format = layer->data_file_name = NULL;
}

int layer_reload(struct layer *layer)
{
    const uint32_t slice_bytes = layer->slice_bytes;

    unload(layer);
    return open_qcow2(layer, slice_bytes, false);
}

void layer_close(struct layer *layer)
{
    if (!layer)
        return;
    unload(layer);
    if (layer->data_file != layer->file)
        file_close(layer->data_file);
    file_close(layer->file);
    free(layer);
}
