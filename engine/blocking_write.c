/* SPDX-License-Identifier: MIT */
/* The blocking calls that change an image. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "engine/allocator.h"
#include "engine/blocking.h"
#include "engine/queue.h"
#include "engine/write.h"
#include "format/limits.h"

#define PART_BYTES (256u << 10)
/* Zeroing and discarding go in requests of this size. */
#define RANGE_BYTES (1ull << 30)

static int may_write(const struct scow_image *image)
{
    const int err = atomic_load_explicit(&image->write_error, memory_order_acquire);

    if (!image->writable)
        return error_set(-EROFS, "the image is open read-only");
    if (err)
        return error_set(-EROFS, "the image refuses writes: its metadata could not be written before (%s)",
                         strerror(-err));
    return 0;
}

/* One request, from submission to completion. */
static int run(struct scow_queue *q, enum request_kind kind, uint64_t off, const void *buf, uint64_t bytes,
               uint32_t flags)
{
    struct request *r = queue_take_request(q);

    if (!r)
        return error_set(-EIO, "the image's backend has failed");
    r->kind = kind;
    request_reset_write(r, flags);
    r->this_layer = false;
    r->buffer = (struct guest_buffer){.buf = (void *)(uintptr_t)buf};
    r->off = off;
    r->bytes = bytes;
    list_push(kind == REQUEST_READ ? &q->submitted : &q->submitted_writes, &r->node);
    return queue_run(q, r);
}

static int run_alone(struct scow_image *image, enum request_kind kind, uint64_t off, uint32_t flags)
{
    struct scow_queue *q;
    int ret = blocking_begin(image, &q);

    if (ret < 0)
        return ret;
    ret = run(q, kind, off, NULL, 0, flags);
    blocking_end(image);
    return ret;
}

static int run_range(struct scow_queue *q, enum request_kind kind, uint64_t off, uint64_t bytes,
                     uint32_t flags)
{
    int ret = 0;

    while (ret == 0 && bytes) {
        const uint64_t n = MIN(bytes, RANGE_BYTES);

        ret = run(q, kind, off, NULL, n, flags);
        off += n;
        bytes -= n;
    }
    return ret;
}

static int bad_range(const struct scow_image *image, const char *what, uint64_t off, uint64_t bytes)
{
    return error_set(
        -EINVAL, "%s of %" PRIu64 " bytes at offset %" PRIu64 " is not within the image's %" PRIu64 " bytes",
        what, bytes, off, scow_size(image));
}

static uint32_t default_flags(const struct scow_image *image)
{
    return image->options.flags & SCOW_OPEN_WRITETHROUGH ? SCOW_REQ_FUA : 0;
}

/* ---- data ---- */

/* Whole sectors around [off, off + bytes): what is around is read first. */
static int write_unaligned(struct scow_queue *q, const uint8_t *buf, uint64_t bytes, uint64_t off,
                           uint32_t flags)
{
    uint8_t *part = malloc(PART_BYTES);
    int ret = part ? 0 : error_set(-ENOMEM, "out of memory");

    while (ret == 0 && bytes) {
        const uint64_t start = round_down(off, SECTOR_BYTES), skip = off - start;
        const uint64_t n = MIN(bytes, PART_BYTES - skip);
        const uint64_t whole = round_up(skip + n, SECTOR_BYTES);

        if (skip || whole != skip + n)
            ret = run(q, REQUEST_READ, start, part, whole, 0);
        if (ret == 0) {
            memcpy(part + skip, buf, n);
            ret = run(q, REQUEST_WRITE, start, part, whole, flags);
        }
        buf += n;
        off += n;
        bytes -= n;
    }
    free(part);
    return ret;
}

SCOW_PUBLIC int scow_pwrite(struct scow_image *image, const void *buf, size_t bytes, uint64_t off)
{
    struct scow_queue *q;
    int ret = may_write(image);

    if (ret < 0)
        return ret;
    if (!range_within(off, bytes, scow_size(image)))
        return bad_range(image, "write", off, bytes);
    if (!bytes)
        return 0;
    ret = blocking_begin(image, &q);
    if (ret < 0)
        return ret;
    if ((off | bytes) % SECTOR_BYTES)
        ret = write_unaligned(q, buf, bytes, off, default_flags(image));
    else
        ret = run(q, REQUEST_WRITE, off, buf, bytes, default_flags(image));
    blocking_end(image);
    return ret;
}

static int zero_or_discard(struct scow_image *image, enum request_kind kind, uint64_t off, uint64_t bytes,
                           uint32_t flags)
{
    struct scow_queue *q;
    int ret = may_write(image);

    if (ret < 0)
        return ret;
    if (!range_within(off, bytes, scow_size(image)) || (off | bytes) % SECTOR_BYTES)
        return bad_range(image, kind == REQUEST_ZERO ? "write_zeroes" : "discard", off, bytes);
    ret = blocking_begin(image, &q);
    if (ret < 0)
        return ret;
    ret = run_range(q, kind, off, bytes, flags | default_flags(image));
    blocking_end(image);
    return ret;
}

SCOW_PUBLIC int scow_pwrite_zeroes(struct scow_image *image, uint64_t bytes, uint64_t off, uint32_t flags)
{
    if (flags & ~(SCOW_REQ_FUA | SCOW_REQ_MAY_UNMAP))
        return error_set(-EINVAL, "request: unknown flags 0x%" PRIx32, flags);
    return zero_or_discard(image, REQUEST_ZERO, off, bytes, flags);
}

SCOW_PUBLIC int scow_pdiscard(struct scow_image *image, uint64_t bytes, uint64_t off)
{
    return zero_or_discard(image, REQUEST_DISCARD, off, bytes, 0);
}

SCOW_PUBLIC int scow_flush(struct scow_image *image)
{
    return image->writable ? run_alone(image, REQUEST_FLUSH, 0, 0) : 0;
}

static int quiesce(struct scow_image *image, uint32_t flags)
{
    if (!image->writable || !image->running)
        return 0;
    return image->allocator ? run_alone(image, REQUEST_QUIESCE, 0, flags)
                            : run_alone(image, REQUEST_FLUSH, 0, 0);
}

SCOW_PUBLIC int scow_quiesce(struct scow_image *image)
{
    return quiesce(image, 0);
}

int blocking_close(struct scow_image *image)
{
    return quiesce(image, QUIESCE_CLOSE);
}

/* ---- size ---- */

static int resize_raw(struct scow_image *image, uint64_t bytes)
{
    struct layer *layer = image_top(image);
    int ret = file_truncate(layer->file, bytes);

    if (ret == 0)
        ret = file_sync(layer->file);
    if (ret == 0)
        atomic_store_explicit(&layer->virtual_bytes, bytes, memory_order_release);
    return ret;
}

/* What becomes visible must read as zeros: a longer backing file, what an earlier, larger image left in the
 * last cluster. The new size is not published yet. */
static int zero_new_space(struct scow_queue *q, struct layer *layer, uint64_t bytes)
{
    const uint64_t old = layer->virtual_bytes;
    uint64_t end = MIN(bytes, round_up(old, layer->header.cluster_bytes));

    if (layer->backing && layer->backing->virtual_bytes > old)
        end = MAX(end, MIN(bytes, layer->backing->virtual_bytes));
    return end > old ? run_range(q, REQUEST_ZERO, old, end - old, SCOW_REQ_MAY_UNMAP) : 0;
}

static int grow(struct scow_image *image, struct scow_queue *q, uint64_t bytes)
{
    struct layer *layer = image_top(image);
    int ret;

    if (layer->header.version < 3 && layer->backing && layer->backing->virtual_bytes > layer->virtual_bytes)
        return error_set(-ENOTSUP,
                         "a version 2 image cannot grow over a longer backing file: it has no way to say "
                         "that the new space reads as zeros");
    if (layer->header.version < 3 && layer->header.snapshot_count)
        return error_set(-ENOTSUP,
                         "a version 2 image with internal snapshots cannot change its size: its snapshots do "
                         "not record theirs");
    ret = run(q, REQUEST_GROW, bytes, NULL, 0, GROW_L1);
    if (ret == 0 && layer->data_file != layer->file && layer->data_file->bytes < bytes) {
        ret = file_truncate(layer->data_file, bytes);
    }
    if (ret == 0)
        ret = zero_new_space(q, layer, bytes);
    if (ret == 0)
        ret = run(q, REQUEST_FLUSH, 0, NULL, 0, 0);
    return ret == 0 ? run(q, REQUEST_GROW, bytes, NULL, 0, GROW_SIZE) : ret;
}

static int shrink(struct scow_image *image, struct scow_queue *q, uint64_t bytes)
{
    struct layer *layer = image_top(image);
    const uint64_t old = layer->virtual_bytes;
    const uint64_t from = round_up(bytes, layer->header.cluster_bytes);
    int ret = 0;

    if (layer->header.snapshot_count)
        return error_set(-ENOTSUP, "an image with internal snapshots cannot be shrunk");
    if (from < old)
        ret = run_range(q, REQUEST_DISCARD, from, old - from, REQUEST_DROP);
    if (ret == 0)
        ret = run(q, REQUEST_FLUSH, 0, NULL, 0, 0);
    if (ret == 0)
        ret = run(q, REQUEST_GROW, bytes, NULL, 0, GROW_SIZE);
    if (ret == 0 && layer->data_file != layer->file)
        ret = file_truncate(layer->data_file, bytes);
    return ret;
}

static bool has_queues(const struct scow_image *image)
{
    for (uint32_t i = image_reader_index(image->shard_count); i < image->queue_places; i++)
        if (atomic_load_explicit(&image->queues[i], memory_order_acquire))
            return true;
    return false;
}

SCOW_PUBLIC int scow_resize(struct scow_image *image, uint64_t new_bytes, uint32_t flags)
{
    const uint64_t old = scow_size(image);
    struct scow_queue *q;
    int ret = may_write(image);

    if (ret < 0)
        return ret;
    if (flags & ~SCOW_RESIZE_SHRINK || new_bytes % SECTOR_BYTES || new_bytes > VIRTUAL_BYTES_MAX)
        return error_set(-EINVAL, "resize: %" PRIu64 " bytes (flags 0x%" PRIx32 ") is no possible size",
                         new_bytes, flags);
    if (new_bytes < old && !(flags & SCOW_RESIZE_SHRINK))
        return error_set(-EINVAL,
                         "resize: %" PRIu64 " bytes is less than the present %" PRIu64
                         ": shrinking loses data and has to be asked for",
                         new_bytes, old);
    if (new_bytes < old && has_queues(image))
        return error_set(-EBUSY, "resize: an image cannot be shrunk while queues use it");
    if (image_top(image)->format == SCOW_FORMAT_RAW)
        return resize_raw(image, new_bytes);
    ret = blocking_begin(image, &q);
    if (ret < 0)
        return ret;
    if (new_bytes > old)
        ret = grow(image, q, new_bytes);
    else if (new_bytes < old)
        ret = shrink(image, q, new_bytes);
    blocking_end(image);
    return ret;
}
