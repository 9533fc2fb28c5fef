/* SPDX-License-Identifier: MIT */
/* Parts of requests that are I/O: how a queue takes, describes and starts one. */
#ifndef ENGINE_TRANSFER_H
#define ENGINE_TRANSFER_H

#include "base/checked.h"
#include "engine/queue.h"
#include "engine/request.h"

/* The most that one I/O asks for, so that lengths fit the system calls' results. */
#define TRANSFER_BYTES_MAX (1u << 30)

static inline struct transfer *transfer_take(struct scow_queue *q, struct request *r)
{
    struct list_node *n;

    if (likely(!r->first_in_use)) {
        r->first_in_use = true;
        return &r->first;
    }
    n = list_pop(&q->free_transfers);
    if (!n)
        return NULL;
    container_of(n, struct transfer, node)->request = r;
    return container_of(n, struct transfer, node);
}

static inline void transfer_give(struct scow_queue *q, struct transfer *t)
{
    if (likely(t == &t->request->first))
        t->request->first_in_use = false;
    else
        list_push(&q->free_transfers, &t->node);
}

static inline void transfer_start(struct scow_queue *q, struct transfer *t, enum io_kind kind,
                                  struct file *file, uint64_t off, uint32_t bytes)
{
    t->io.kind = kind;
    t->io.file = file;
    t->io.off = off;
    t->io.bytes = bytes;
    t->request->pending++;
    counter_add(&q->counters.ios, 1);
    q->prepared = true;
    backend_prepare(q->loop.backend, &t->io);
}

/* Describe the guest's memory at the walk's position to the I/O, without a copy; returns the bytes that fit,
 * 0 when its alignment does not suit the file. */
static inline uint32_t transfer_point_at_guest(const struct request *r, const struct file *file,
                                               uint32_t bytes, struct transfer *t)
{
    const uint32_t aligned = (uint32_t)round_down(bytes, file->io_align);

    if (likely(!r->buffer.iov_count)) {
        uint8_t *p = (uint8_t *)r->buffer.buf + r->walked;

        t->io.buf = p;
        t->io.iov_count = 0;
        return (uintptr_t)p & (file->mem_align - 1) ? 0 : aligned;
    }
    t->io.iov = t->iov;
    return guest_buffer_slice(&r->buffer, r->walked, aligned, file->mem_align, file->io_align, t->iov,
                              TRANSFER_IOV_MAX, &t->io.iov_count);
}

#endif
