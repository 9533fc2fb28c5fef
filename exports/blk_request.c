/* SPDX-License-Identifier: MIT */
#include "exports/blk_request.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

/* ---- the guest's side ---- */

/* Copies bytes from the front of what is readable and takes them away from it. */
static bool take_front(struct blk_request *r, void *to, size_t bytes)
{
    uint8_t *at = to;

    while (bytes) {
        struct iovec *const v = r->data;
        size_t n;

        if (!r->data_count)
            return false;
        n = v->iov_len < bytes ? v->iov_len : bytes;
        memcpy(at, v->iov_base, n);
        at += n;
        bytes -= n;
        v->iov_base = (uint8_t *)v->iov_base + n;
        v->iov_len -= n;
        r->data_bytes -= (uint32_t)n;
        if (!v->iov_len) {
            r->data++;
            r->data_count--;
        }
    }
    return true;
}

static enum blk_kind kind_of(uint32_t type)
{
    switch (type) {
    case VIRTIO_BLK_T_IN:
        return BLK_READ;
    case VIRTIO_BLK_T_OUT:
        return BLK_WRITE;
    case VIRTIO_BLK_T_FLUSH:
        return BLK_FLUSH;
    case VIRTIO_BLK_T_DISCARD:
        return BLK_DISCARD;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return BLK_ZEROES;
    default:
        return BLK_OTHER;
    }
}

bool blk_request_begin(struct blk_request *r)
{
    struct chain *const c = &r->chain;
    struct virtio_blk_outhdr header;
    struct iovec *last;

    if (!c->in_count)
        return false;
    r->pending = r->segment_count = r->segment_next = 0;
    r->error = 0;
    r->error_text = NULL;
    r->guests_fault = false;
    /* The status is the last byte that is writable, wherever that lies. */
    r->status_piece = (uint16_t)(c->out_count + c->in_count - 1);
    last = &c->pieces[r->status_piece];
    r->status = (uint8_t *)last->iov_base + --last->iov_len;
    r->data = c->pieces;
    r->data_count = c->out_count;
    r->data_bytes = c->out_bytes;
    if (!take_front(r, &header, sizeof header)) {
        r->kind = BLK_OTHER;
        r->type = UINT32_MAX;
        r->guests_fault = true;
        r->error = -EINVAL;
        r->error_text = "a request without a whole header";
        return true;
    }
    r->type = le32toh(header.type);
    r->kind = kind_of(r->type);
    r->off = le64toh(header.sector);
    if (r->kind == BLK_READ || r->type == VIRTIO_BLK_T_GET_ID) {
        r->data = c->pieces + c->out_count;
        r->data_count = c->in_count - (last->iov_len == 0);
        r->data_bytes = c->in_bytes - 1;
    }
    return true;
}

uint32_t blk_request_written(const struct blk_request *r)
{
    return r->kind == BLK_READ || r->type == VIRTIO_BLK_T_GET_ID ? r->chain.in_bytes : 1;
}

/* ---- answers ---- */

static enum blk_step finish(struct blk_request *r)
{
    uint8_t status = VIRTIO_BLK_S_OK;

    if (r->error == -EOPNOTSUPP)
        status = VIRTIO_BLK_S_UNSUPP;
    else if (r->error < 0)
        status = VIRTIO_BLK_S_IOERR;
    *(volatile uint8_t *)r->status = status;
    r->chain.pieces[r->status_piece].iov_len++; /* whole again, for the dirty log */
    return BLK_DONE;
}

static enum blk_step refuse(struct blk_request *r, int error, const char *text)
{
    r->guests_fault = true;
    r->error = error;
    r->error_text = text;
    return finish(r);
}

bool blk_request_completed(struct blk_request *r, int ret, const char *text)
{
    if (ret < 0 && !r->error) {
        r->error = ret;
        r->error_text = r->pending > 1 ? NULL : text; /* it is good until the next poll */
    }
    r->pending--;
    if (r->pending || r->segment_next < r->segment_count) /* the rest is still to be submitted */
        return false;
    (void)finish(r);
    return true;
}

/* ---- the engine's side ---- */

static enum blk_step submitted(struct blk_request *r, int ret)
{
    if (ret == -EAGAIN)
        return BLK_FULL;
    if (ret < 0) {
        r->error = ret;
        r->error_text = scow_error();
        return finish(r);
    }
    r->pending++;
    return BLK_WAITS;
}

static enum blk_step transfer(struct blk_request *r, const struct blk_device *dev, struct scow_queue *q)
{
    const uint64_t capacity = atomic_load_explicit(&dev->capacity, memory_order_relaxed);

    if (r->data_bytes % BLK_SECTOR)
        return refuse(r, -EINVAL, "a transfer of a part of a sector");
    if (r->off > capacity || r->data_bytes / BLK_SECTOR > capacity - r->off)
        return refuse(r, -EINVAL, "a transfer beyond the end of the disk");
    if (!r->data_bytes)
        return finish(r);
    if (r->kind == BLK_READ)
        return submitted(r, scow_queue_readv(q, r->off * BLK_SECTOR, r->data, (int)r->data_count, r, 0));
    return submitted(
        r, scow_queue_writev(q, r->off * BLK_SECTOR, r->data, (int)r->data_count, r, blk_write_flags(dev)));
}

static const char *bad_segment(const struct blk_request *r, const struct blk_device *dev, uint32_t i)
{
    const uint64_t capacity = atomic_load_explicit(&dev->capacity, memory_order_relaxed);
    const struct virtio_blk_discard_write_zeroes *const s = &r->segments[i];

    if (s->num_sectors > BLK_RANGE_SECTORS_MAX)
        return "a discard or write_zeroes of more sectors than max_discard_sectors";
    if (s->sector > capacity || s->num_sectors > capacity - s->sector)
        return "a discard or write_zeroes beyond the end of the disk";
    return NULL;
}

/* All of them are looked at before the first is carried out. */
static enum blk_step fetch_segments(struct blk_request *r, const struct blk_device *dev)
{
    const uint32_t count = (uint32_t)(r->data_bytes / sizeof r->segments[0]);

    if (!count || count > BLK_SEGMENTS_MAX || r->data_bytes % sizeof r->segments[0])
        return refuse(r, -EINVAL, "a discard or write_zeroes of a bad length");
    (void)take_front(r, r->segments, count * sizeof r->segments[0]);
    for (uint32_t i = 0; i < count; i++) {
        struct virtio_blk_discard_write_zeroes *const s = &r->segments[i];
        const uint32_t known = r->kind == BLK_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
        const char *bad;

        s->sector = le64toh(s->sector);
        s->num_sectors = le32toh(s->num_sectors);
        s->flags = le32toh(s->flags);
        if (s->flags & ~known)
            return refuse(r, -EOPNOTSUPP, "a discard or write_zeroes with unknown flags");
        bad = bad_segment(r, dev, i);
        if (bad)
            return refuse(r, -EINVAL, bad);
    }
    r->segment_count = count;
    return BLK_WAITS;
}

static int submit_segment(struct blk_request *r, const struct blk_device *dev, struct scow_queue *q)
{
    const struct virtio_blk_discard_write_zeroes *const s = &r->segments[r->segment_next];
    const uint64_t off = s->sector * BLK_SECTOR, bytes = (uint64_t)s->num_sectors * BLK_SECTOR;
    uint32_t flags = blk_write_flags(dev);

    if (r->kind == BLK_DISCARD)
        return scow_queue_discard(q, off, bytes, r, flags);
    flags |= s->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ? SCOW_REQ_MAY_UNMAP : 0;
    return scow_queue_write_zeroes(q, off, bytes, r, flags);
}

static enum blk_step submit_ranges(struct blk_request *r, const struct blk_device *dev, struct scow_queue *q)
{
    if (!r->segment_count && fetch_segments(r, dev) == BLK_DONE)
        return BLK_DONE;
    while (r->segment_next < r->segment_count) {
        const bool nothing = !r->segments[r->segment_next].num_sectors;
        const int ret = r->error || nothing ? 0 : submit_segment(r, dev, q);

        if (ret == -EAGAIN)
            return BLK_FULL;
        if (ret < 0) {
            r->error = ret;
            r->error_text = r->pending ? NULL : scow_error();
        }
        if (r->error) { /* of this one, or of one before: the rest is left out */
            r->segment_count = r->segment_next;
            break;
        }
        r->pending += !nothing;
        r->segment_next++;
    }
    return r->pending ? BLK_WAITS : finish(r);
}

static enum blk_step give_id(struct blk_request *r, const struct blk_device *dev)
{
    uint32_t done = 0;

    for (uint32_t i = 0; i < r->data_count && done < sizeof dev->serial; i++) {
        const size_t left = sizeof dev->serial - done;
        const size_t n = r->data[i].iov_len < left ? r->data[i].iov_len : left;

        memcpy(r->data[i].iov_base, dev->serial + done, n);
        done += (uint32_t)n;
    }
    return finish(r);
}

enum blk_step blk_request_submit(struct blk_request *r, const struct blk_device *dev, struct scow_queue *q)
{
    switch (r->kind) {
    case BLK_WRITE:
    case BLK_DISCARD:
    case BLK_ZEROES:
        if (dev->read_only)
            return refuse(r, -EROFS, "a write to a read-only disk");
        return r->kind == BLK_WRITE ? transfer(r, dev, q) : submit_ranges(r, dev, q);
    case BLK_READ:
        return transfer(r, dev, q);
    case BLK_FLUSH:
        return submitted(r, scow_queue_flush(q, r, 0));
    case BLK_OTHER:
    case BLK_KINDS:
        break;
    }
    if (r->error)
        return finish(r);
    if (r->type == VIRTIO_BLK_T_GET_ID)
        return give_id(r, dev);
    return refuse(r, -EOPNOTSUPP, "a request of unknown type");
}
