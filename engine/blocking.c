/* SPDX-License-Identifier: MIT */
/*
 * The blocking helpers: one internal queue per image, behind a lock, that whoever holds the lock turns
 * itself.
 */
#include "engine/blocking.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "engine/read.h"
#include "format/limits.h"

#define BLOCKING_DEPTH 8u
/* Unaligned reads go through a buffer of this size. */
#define BOUNCE_PART_BYTES (256u << 10)

int blocking_begin(struct scow_image *image, struct scow_queue **ret)
{
    int r = 0;

    if (image->no_io)
        return error_set(-EPERM, "the image was opened with SCOW_OPEN_NO_IO: its data cannot be read");
    pthread_mutex_lock(&image->blocking_lock);
    if (!image->blocking_queue)
        r = queue_create(image, BLOCKING_DEPTH, true, &image->blocking_queue);
    if (r == 0 && image->blocking_queue->broken)
        r = error_set(image->blocking_queue->broken, "the image's backend has failed before");
    if (r < 0) {
        pthread_mutex_unlock(&image->blocking_lock);
        return r;
    }
    *ret = image->blocking_queue;
    epoch_observe(&image->clock, &(*ret)->epoch);
    return 0;
}

void blocking_end(struct scow_image *image)
{
    epoch_offline(&image->blocking_queue->epoch);
    pthread_mutex_unlock(&image->blocking_lock);
}

static int read_aligned(struct scow_queue *q, void *buf, uint64_t bytes, uint64_t off)
{
    struct request *r = queue_take_request(q);
    int ret;

    if (!r)
        return error_set(-EIO, "the image's backend has failed");
    r->kind = REQUEST_READ;
    r->this_layer = false;
    r->buffer = (struct guest_buffer){.buf = buf};
    r->off = off;
    r->bytes = bytes;
    read_walk(q, r);
    ret = queue_run(q, r);
    return ret;
}

/* Whole sectors around [off, off + bytes), part by part. The last sector of the image may be a partial one.
 */
static int read_unaligned(struct scow_queue *q, uint8_t *buf, uint64_t bytes, uint64_t off)
{
    uint8_t *part = malloc(BOUNCE_PART_BYTES);
    int ret = part ? 0 : error_set(-ENOMEM, "out of memory");

    while (ret == 0 && bytes) {
        const uint64_t start = round_down(off, SECTOR_BYTES), skip = off - start;
        const uint64_t n = MIN(bytes, BOUNCE_PART_BYTES - skip);
        const uint64_t whole = round_up(skip + n, SECTOR_BYTES);

        ret = read_aligned(q, part, whole, start);
        if (ret == 0)
            memcpy(buf, part + skip, n);
        buf += n;
        off += n;
        bytes -= n;
    }
    free(part);
    return ret;
}

SCOW_PUBLIC int scow_pread(struct scow_image *image, void *buf, size_t bytes, uint64_t off)
{
    struct scow_queue *q;
    int ret;

    if (!range_within(off, bytes, scow_size(image)))
        return error_set(
            -EINVAL, "read of %zu bytes at offset %" PRIu64 " is not within the image's %" PRIu64 " bytes",
            bytes, off, scow_size(image));
    if (!bytes)
        return 0;
    ret = blocking_begin(image, &q);
    if (ret < 0)
        return ret;
    if ((off | bytes) % SECTOR_BYTES)
        ret = read_unaligned(q, buf, bytes, off);
    else
        ret = read_aligned(q, buf, bytes, off);
    blocking_end(image);
    return ret;
}
