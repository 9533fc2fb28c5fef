/* SPDX-License-Identifier: MIT */
/* A virtio-blk request (virtio 1.2, "Block Device"): from the guest's descriptors to calls of the engine, and
 * back. */
#ifndef EXPORTS_BLK_REQUEST_H
#define EXPORTS_BLK_REQUEST_H

#include "exports/blk_device.h"
#include "exports/virtqueue.h"

struct blk_queue;

struct blk_request {
    struct blk_queue *queue;
    struct blk_request *next; /* free, or waiting for the engine's queue */
    struct chain chain;
    enum blk_kind kind;
    uint32_t type;
    uint64_t off; /* of a read or write */
    struct iovec *data;
    uint32_t data_count, data_bytes;
    uint8_t *status;
    uint16_t status_piece;
    uint32_t pending; /* calls of the engine that are under way */
    uint32_t segment_count, segment_next;
    bool guests_fault; /* the request could not be */
    int error;         /* the first; a negative errno */
    const char *error_text;
    uint64_t start_ns;
    struct virtio_blk_discard_write_zeroes segments[BLK_SEGMENTS_MAX];
};

enum blk_step {
    BLK_WAITS, /* the engine answers with a completion */
    BLK_FULL,  /* the engine's queue is full: to be submitted again */
    BLK_DONE,  /* status is written: to be pushed */
};

/* Reads the header of a chain that was just popped. False: it has no place for a status, so there is nothing
 * to answer: the guest breaks the rules. */
bool blk_request_begin(struct blk_request *r);

/* Submits what is left of it. */
enum blk_step blk_request_submit(struct blk_request *r, const struct blk_device *dev, struct scow_queue *q);

/* One of its calls has ended. True: it was the last, status is written. */
bool blk_request_completed(struct blk_request *r, int ret, const char *text);

/* Bytes of the guest's memory that the device may have written. */
uint32_t blk_request_written(const struct blk_request *r);

#endif
