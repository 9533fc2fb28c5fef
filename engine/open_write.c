/* SPDX-License-Identifier: MIT */
#include "engine/open_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "engine/layer_open.h"
#include "engine/refcounts.h"
#include "engine/repair.h"
#include "format/limits.h"

/* Clusters that share a block of the file could not be written by their several owners: then the page cache,
 * which locks, has to stand between. */
static int settle_alignment(struct scow_image *image, struct file *file, uint32_t unit_bytes)
{
    if (file->io_align <= unit_bytes)
        return 0;
    if (image->options.io_mode == SCOW_IO_DIRECT)
        return error_set(
            -EINVAL,
            "%s: direct I/O here needs units of %u bytes, but the image's are %u: it can only be written "
            "through the page cache",
            file_name(file), file->io_align, unit_bytes);
    return file_make_buffered(file);
}

static int settle_files(struct scow_image *image)
{
    struct layer *layer = image_top(image);
    uint32_t unit = SECTOR_BYTES;
    int r;

    if (layer->format == SCOW_FORMAT_QCOW2)
        unit = layer->header.cluster_bytes / (layer->header.extended_l2 ? SUBCLUSTERS_PER_CLUSTER : 1);
    r = settle_alignment(image, layer->file, unit);
    if (r == 0 && layer->data_file != layer->file)
        r = settle_alignment(image, layer->data_file, unit);
    return r;
}

static int write_counts(struct layer *layer, struct refcounts *rc)
{
    uint8_t *const buffer = aligned_alloc(4096, round_up(rc->slice_bytes, 4096));
    uint64_t off, slice;
    uint32_t bytes;
    int r = buffer ? 0 : error_set(-ENOMEM, "out of memory");

    while (r == 0 && refcounts_next_write(rc, buffer, &off, &bytes, &slice)) {
        r = file_write(layer->file, buffer, bytes, off);
        refcounts_written(rc, slice, r == 0, off, bytes);
    }
    free(buffer);
    return r == 0 ? file_sync(layer->file) : r;
}

/*
 * A power cut can keep counts of leased clusters and lose the extension of the file that they lie in. No
 * check looks there, but the next extension would make leaks of them.
 */
static int drop_counts_beyond(struct layer *layer, struct refcounts *rc, uint64_t first, uint64_t end)
{
    int r = 0;

    for (uint64_t c = first; c < end && r == 0; c++) {
        uint64_t count = 0;

        r = refcounts_get(rc, c, &count);
        if (r == 0 && count)
            r = refcounts_change(rc, c, -(int64_t)count);
    }
    return r == 0 && rc->dirty_count ? write_counts(layer, rc) : r;
}

/* What was preallocated and never used goes back to the host. */
static int cut_off(struct layer *layer)
{
    const uint32_t bits = layer->header.cluster_bits;
    const uint64_t file_end = div_round_up(layer->file->bytes, layer->header.cluster_bytes);
    struct refcounts rc;
    uint64_t end = 0;
    int r;

    if (layer->file->block_device)
        return 0;
    r = refcounts_open(&rc, layer);
    if (r == 0)
        r = refcounts_used_end(&rc, &end);
    if (r == 0 && end > file_end)
        r = drop_counts_beyond(layer, &rc, file_end, end);
    if (r == 0)
        r = refcounts_used_end(&rc, &end);
    refcounts_close(&rc);
    if (r < 0 || end << bits >= layer->file->bytes)
        return r;
    r = file_truncate(layer->file, end << bits);
    return r == 0 ? file_sync(layer->file) : r; /* before the mark goes */
}

/* What an earlier writer left behind. */
static int recover(struct scow_image *image)
{
    struct layer *layer = image_top(image);
    const struct scow_check_options options = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result result = SCOW_CHECK_RESULT_INIT;
    const bool dirty = layer->header.incompatible & INCOMPAT_DIRTY;
    int r;

    if (layer->header.incompatible & INCOMPAT_CORRUPT)
        return error_set(-EROFS,
                         "%s: the image is marked as corrupt: it can only be opened read-only, or repaired",
                         file_name(layer->file));
    if (!dirty && !(layer->header.autoclear & AUTOCLEAR_SHARDCOW))
        return 0;
    r = image_repair(image, dirty ? SCOW_CHECK_REPAIR_ALL : SCOW_CHECK_REPAIR_LEAKS | REPAIR_RECOVER,
                     &options, &result);
    if (r == 0 && (result.corruptions || result.check_errors))
        r = error_set(-EROFS,
                      "%s: the image was not closed by its last writer, and %" PRIu64
                      " errors were found that are more than leaked clusters: it has to be repaired first",
                      file_name(layer->file), result.corruptions + result.check_errors);
    if (r < 0)
        return error_prefix(r, "recovery");
    r = layer_reload(layer);
    return r == 0 ? cut_off(layer) : r;
}

/* Bits whose features this writer does not keep up to date. The mark of a crash goes too: its leaks are
 * mended. */
static int clear_autoclear(struct scow_image *image)
{
    struct layer *layer = image_top(image);
    const uint64_t kept = layer->header.autoclear & AUTOCLEAR_DATA_FILE_RAW;
    uint8_t bytes[sizeof(uint64_t)];
    int r;

    if (layer->header.version < 3 || layer->header.autoclear == kept)
        return 0;
    put_be64(bytes, kept);
    r = file_write(layer->file, bytes, sizeof bytes, offsetof(struct header_disk, autoclear));
    if (r == 0)
        r = file_sync(layer->file);
    if (r == 0)
        r = layer_reload(layer);
    return r;
}

static int check_writable(const struct layer *layer)
{
    const struct header *h = &layer->header;

    if (!h->reftable_clusters)
        return error_set(-EINVAL, "%s: header: the image has no refcount table", file_name(layer->file));
    return 0;
}

int open_for_writing(struct scow_image *image)
{
    struct layer *layer = image_top(image);
    int r = settle_files(image);

    image->zeros = pages_reserve(CLUSTER_BYTES_MAX);
    if (!image->zeros || mprotect(image->zeros, CLUSTER_BYTES_MAX, PROT_READ) < 0)
        return error_set(-ENOMEM, "out of memory");
    if (r < 0 || layer->format != SCOW_FORMAT_QCOW2 || image->options.flags & SCOW_OPEN_REPAIR)
        return r;
    r = check_writable(layer);
    if (r == 0)
        r = recover(image);
    if (r == 0)
        r = clear_autoclear(image);
    return r;
}
