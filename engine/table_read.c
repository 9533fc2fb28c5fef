/* SPDX-License-Identifier: MIT */
/* Raw access to an image's tables and lists, straight from the file: for dump and check. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "engine/image.h"
#include "engine/options.h"
#include "format/bitmap_directory.h"
#include "format/entry.h"
#include "format/refcount.h"
#include "format/snapshot_table.h"

static int not_there(const char *what, uint64_t index)
{
    return error_set(-ERANGE, "the image has no %s number %" PRIu64, what, index);
}

static const struct layer *qcow2_layer(const struct scow_image *image)
{
    const struct layer *layer = image_top(image);

    if (layer->format == SCOW_FORMAT_QCOW2)
        return layer;
    error_set(-ENOTSUP, "a raw image has no metadata");
    return NULL;
}

/* ---- the header's lists ---- */

SCOW_PUBLIC int scow_get_extension(const struct scow_image *image, uint32_t index, struct scow_extension *ret)
{
    const struct layer *layer = qcow2_layer(image);
    struct scow_extension e = {.size = sizeof e};
    struct extension found;
    uint32_t cursor;

    if (!layer)
        return -ENOTSUP;
    cursor = layer->header.extensions.off;
    for (uint32_t i = 0; i <= index; i++)
        if (!extension_next(&layer->header, layer->cluster0, &cursor, &found))
            return not_there("header extension", index);
    e.type = found.type;
    e.data_bytes = found.bytes;
    e.off = found.off;
    e.data = layer->cluster0 + found.data_off;
    result_give(ret, &e, sizeof e);
    return 0;
}

SCOW_PUBLIC int scow_get_feature_name(const struct scow_image *image, uint32_t index,
                                      struct scow_feature_name *ret)
{
    const struct layer *layer = qcow2_layer(image);
    struct scow_feature_name name = {.size = sizeof name};
    struct feature_name found;

    if (!layer)
        return -ENOTSUP;
    if (index >= layer->header.feature_names.bytes / FEATURE_NAME_BYTES)
        return not_there("feature name", index);
    feature_name_decode(&layer->header, layer->cluster0, index, &found);
    name.type = found.type;
    name.bit = found.bit;
    memcpy(name.name, found.name, sizeof name.name);
    result_give(ret, &name, sizeof name);
    return 0;
}

/* ---- tables of entries of differing length ---- */

/* Bytes of the entry at off, without padding, from its head. */
typedef int entry_bytes_fn(const struct layer *layer, uint64_t off, uint64_t *ret_bytes);

/*
 * Where entry number index begins: onwards from the last one asked for, so that reading all of them takes one
 * pass over the table and not one for each.
 */
static int find_entry(struct scow_image *im, const struct layer *layer, struct table_cursor *cursor,
                      uint64_t table_off, uint32_t index, entry_bytes_fn *entry_bytes, uint64_t *ret_off)
{
    struct table_cursor at;

    pthread_mutex_lock(&im->lock);
    at = *cursor;
    pthread_mutex_unlock(&im->lock);
    if (!at.index || at.index > index)
        at = (struct table_cursor){0, table_off};
    for (; at.index < index; at.index++) {
        uint64_t bytes;
        const int r = entry_bytes(layer, at.off, &bytes);

        if (r < 0)
            return r;
        at.off += round_up(bytes, 8);
    }
    pthread_mutex_lock(&im->lock);
    *cursor = at;
    pthread_mutex_unlock(&im->lock);
    *ret_off = at.off;
    return 0;
}

/* Reads the bytes of entry number index, which begins at *ret_off, into *ret_buf, which the caller frees. */
static int read_entry(struct scow_image *im, const struct layer *layer, struct table_cursor *cursor,
                      uint64_t table_off, uint32_t index, entry_bytes_fn *entry_bytes, uint8_t **ret_buf,
                      uint64_t *ret_bytes, uint64_t *ret_off)
{
    uint64_t off, bytes;
    uint8_t *buf;
    int r;

    r = find_entry(im, layer, cursor, table_off, index, entry_bytes, &off);
    if (r == 0)
        r = entry_bytes(layer, off, &bytes);
    if (r < 0)
        return r;
    buf = malloc(bytes);
    if (!buf)
        return error_set(-ENOMEM, "out of memory");
    r = file_read(layer->file, buf, bytes, off);
    if (r < 0) {
        free(buf);
        return r;
    }
    *ret_buf = buf;
    *ret_bytes = bytes;
    *ret_off = off;
    return 0;
}

/* What a decoder said of a whole entry: n bytes, or a negative errno; 0 bytes is an entry that its own table
 * cuts. */
static int entry_verdict(int64_t n, const char *table, uint64_t off)
{
    if (n)
        return n < 0 ? (int)n : 0;
    return error_set(-EINVAL, "%s: the entry at offset 0x%" PRIx64 " is cut", table, off);
}

/* ---- snapshots ---- */

static int snapshot_bytes(const struct layer *layer, uint64_t off, uint64_t *ret_bytes)
{
    uint8_t head[SNAPSHOT_HEAD_BYTES];
    uint64_t bytes;
    int r;

    if (off - layer->header.snapshots_off > SNAPSHOT_TABLE_BYTES_MAX)
        return error_set(-EINVAL, "snapshot table: larger than the limit of %u bytes",
                         SNAPSHOT_TABLE_BYTES_MAX);
    r = file_read(layer->file, head, sizeof head, off);
    if (r < 0)
        return error_prefix(r, "snapshot table");
    bytes = sizeof head + (uint64_t)get_be32(head + 36) + get_be16(head + 12) + get_be16(head + 14);
    if (bytes > sizeof head + SNAPSHOT_EXTRA_BYTES_MAX + 2 * 65536)
        return error_set(-EINVAL, "snapshot table: the entry at offset 0x%" PRIx64 " is too large", off);
    *ret_bytes = bytes;
    return 0;
}

/* *ret points into *ret_buf, which the caller frees, also on failure. */
static int read_snapshot(struct scow_image *im, const struct layer *layer, uint32_t index, uint8_t **ret_buf,
                         struct snapshot_entry *ret)
{
    const struct header *h = &layer->header;
    uint64_t off, bytes;
    const int r = read_entry(im, layer, &im->snapshot_cursor, h->snapshots_off, index, snapshot_bytes,
                             ret_buf, &bytes, &off);

    if (r < 0)
        return r;
    return entry_verdict(snapshot_entry_decode(*ret_buf, bytes, off, h->cluster_bytes, h->virtual_bytes, ret),
                         "snapshot table", off);
}

/* Terminated copies of names live as long as the image, one per distinct string. */
static const char *keep_string(struct scow_image *image, const char *text, uint32_t bytes)
{
    struct kept_string **at, *s;
    uint32_t hash = 0;

    for (uint32_t i = 0; i < bytes; i++)
        hash = hash * 31 + (uint8_t)text[i];
    for (at = &image->strings[hash % KEPT_BUCKETS]; *at; at = &(*at)->next)
        if (strlen((*at)->text) == bytes && !memcmp((*at)->text, text, bytes))
            return (*at)->text;
    s = calloc(1, sizeof *s + bytes + 1);
    if (!s)
        return NULL;
    memcpy(s->text, text, bytes);
    *at = s;
    return s->text;
}

SCOW_PUBLIC int scow_get_snapshot(const struct scow_image *image, uint32_t index, struct scow_snapshot *ret)
{
    struct scow_image *im = (struct scow_image *)image; /* for its strings */
    const struct layer *layer = qcow2_layer(image);
    struct scow_snapshot s = {.size = sizeof s};
    cleanup_free uint8_t *buf = NULL;
    struct snapshot_entry e;
    int r;

    if (!layer)
        return -ENOTSUP;
    if (index >= layer->header.snapshot_count)
        return not_there("snapshot", index);
    r = read_snapshot(im, layer, index, &buf, &e);
    if (r < 0)
        return r;
    pthread_mutex_lock(&im->lock);
    s.id = keep_string(im, e.id, (uint32_t)strnlen(e.id, e.id_bytes));
    s.name = keep_string(im, e.name, (uint32_t)strnlen(e.name, e.name_bytes));
    pthread_mutex_unlock(&im->lock);
    if (!s.id || !s.name)
        return error_set(-ENOMEM, "out of memory");
    s.l1_off = e.l1_off;
    s.l1_count = e.l1_count;
    s.date_s = e.date_s;
    s.date_ns = e.date_ns;
    s.vm_clock_ns = e.vm_clock_ns;
    s.vm_state_bytes = e.vm_state_bytes;
    s.disk_bytes = e.disk_bytes;
    s.icount = e.icount;
    s.extra_bytes = e.extra_bytes;
    result_give(ret, &s, sizeof s);
    return 0;
}

/* ---- bitmaps ---- */

static int bitmap_bytes(const struct layer *layer, uint64_t off, uint64_t *ret_bytes)
{
    const uint64_t end = layer->header.bitmap_directory_off + layer->header.bitmap_directory_bytes;
    const uint64_t left = end - MIN(off, end);
    uint8_t head[BITMAP_HEAD_BYTES] = {0};
    uint64_t bytes;
    int r = left < sizeof head ? 0 : file_read(layer->file, head, sizeof head, off);

    if (r < 0)
        return error_prefix(r, "bitmap directory");
    bytes = sizeof head + (uint64_t)get_be32(head + 20) + get_be16(head + 18);
    if (bytes > left)
        return error_set(
            -EINVAL, "bitmap directory: the entry at offset 0x%" PRIx64 " passes the directory's end", off);
    *ret_bytes = bytes;
    return 0;
}

/* As read_snapshot(). */
static int read_bitmap(struct scow_image *im, const struct layer *layer, uint32_t index, uint8_t **ret_buf,
                       struct bitmap_entry *ret)
{
    const struct header *h = &layer->header;
    uint64_t off, bytes;
    const int r = read_entry(im, layer, &im->bitmap_cursor, h->bitmap_directory_off, index, bitmap_bytes,
                             ret_buf, &bytes, &off);

    if (r < 0)
        return r;
    return entry_verdict(bitmap_entry_decode(*ret_buf, bytes, off, h->cluster_bytes, ret), "bitmap directory",
                         off);
}

SCOW_PUBLIC int scow_get_bitmap(const struct scow_image *image, uint32_t index, struct scow_bitmap *ret)
{
    struct scow_image *im = (struct scow_image *)image; /* for its strings */
    const struct layer *layer = qcow2_layer(image);
    struct scow_bitmap b = {.size = sizeof b};
    cleanup_free uint8_t *buf = NULL;
    struct bitmap_entry e;
    int r;

    if (!layer)
        return -ENOTSUP;
    if (index >= layer->header.bitmap_count)
        return not_there("bitmap", index);
    r = read_bitmap(im, layer, index, &buf, &e);
    if (r < 0)
        return r;
    pthread_mutex_lock(&im->lock);
    b.name = keep_string(im, e.name, (uint32_t)strnlen(e.name, e.name_bytes));
    pthread_mutex_unlock(&im->lock);
    if (!b.name)
        return error_set(-ENOMEM, "out of memory");
    b.table_off = e.table_off;
    b.table_count = e.table_count;
    b.flags = e.flags;
    b.type = e.type;
    b.granularity_bits = e.granularity_bits;
    b.extra_bytes = e.extra_bytes;
    result_give(ret, &b, sizeof b);
    return 0;
}

/* ---- tables ---- */

/* Place and number of the 8-byte entries of a table. */
static int locate(const struct scow_image *image, const struct layer *layer, enum scow_table which,
                  uint64_t table, uint64_t *ret_off, uint64_t *ret_count)
{
    const struct header *h = &layer->header;
    struct scow_snapshot snapshot = {.size = sizeof snapshot};
    struct scow_bitmap bitmap = {.size = sizeof bitmap};
    int r;

    switch (which) {
    case SCOW_TABLE_L1:
        *ret_off = h->l1_off;
        *ret_count = h->l1_count;
        if (!table)
            return 0;
        r = table > h->snapshot_count ? not_there("snapshot", table - 1)
                                      : scow_get_snapshot(image, (uint32_t)(table - 1), &snapshot);
        *ret_off = snapshot.l1_off;
        *ret_count = snapshot.l1_count;
        return r;
    case SCOW_TABLE_L2:
        *ret_off = table;
        *ret_count = h->cluster_bytes / 8;
        return 0;
    case SCOW_TABLE_REFTABLE:
        *ret_off = h->reftable_off;
        *ret_count = ((uint64_t)h->reftable_clusters << h->cluster_bits) / 8;
        return table ? not_there("refcount table", table) : 0;
    case SCOW_TABLE_REFCOUNTS:
        *ret_off = table;
        *ret_count = refcount_block_count(h->cluster_bits, h->refcount_order);
        return 0;
    case SCOW_TABLE_BITMAP:
        r = table >= h->bitmap_count ? not_there("bitmap", table)
                                     : scow_get_bitmap(image, (uint32_t)table, &bitmap);
        *ret_off = bitmap.table_off;
        *ret_count = bitmap.table_count;
        return r;
    }
    return error_set(-EINVAL, "table read: unknown table kind %d", (int)which);
}

static int read_counts(const struct layer *layer, uint64_t block_off, uint64_t first, uint32_t count,
                       uint64_t *ret)
{
    const struct header *h = &layer->header;
    cleanup_free uint8_t *block = malloc(h->cluster_bytes);
    int r = block ? file_read(layer->file, block, h->cluster_bytes, block_off)
                  : error_set(-ENOMEM, "out of memory");

    for (uint32_t i = 0; r == 0 && i < count; i++)
        ret[i] = refcount_get(block, h->refcount_order, (uint32_t)first + i);
    return r;
}

SCOW_PUBLIC int scow_read_table(struct scow_image *image, enum scow_table which, uint64_t table,
                                uint64_t first, uint32_t count, uint64_t *ret_values)
{
    const struct layer *layer = qcow2_layer(image);
    uint64_t off = 0, entries = 0;
    int r;

    if (!layer)
        return -ENOTSUP;
    r = locate(image, layer, which, table, &off, &entries);
    if (r < 0)
        return r;
    if (which == SCOW_TABLE_L2 && layer->header.extended_l2)
        r = (first & 1) || (count & 1)
                ? error_set(-EINVAL, "table read: extended L2 entries have two values each")
                : 0;
    if (r < 0)
        return r;
    if (!range_within(first, count, entries))
        return error_set(-ERANGE,
                         "table read: entries %" PRIu64 " to %" PRIu64 " pass the table's end at %" PRIu64,
                         first, first + count, entries);
    if ((which == SCOW_TABLE_L2 || which == SCOW_TABLE_REFCOUNTS) && off > HOST_OFF_MAX)
        return error_set(-EINVAL, "table read: offset 0x%" PRIx64 " is out of range", off);
    if (which == SCOW_TABLE_REFCOUNTS)
        return read_counts(layer, off, first, count, ret_values);
    r = file_read(layer->file, ret_values, (size_t)count * 8, off + first * 8);
    for (uint32_t i = 0; r == 0 && i < count; i++)
        ret_values[i] = be64toh(ret_values[i]);
    return r;
}
