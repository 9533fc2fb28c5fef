/* SPDX-License-Identifier: MIT */
/*
 * A request from submission to completion, and the transfers that it is made of.
 *
 *   free ──submit──▶ walking ──all parts started──▶ waiting ──last transfer──▶ ready ──poll──▶ free
 *                     │   ▲
 *             a miss  ▼   │ reply            a failed part stops the walk; what was started is waited for
 *                    at a shard
 *
 * A write walks the same way. Parts whose clusters are mapped and not shared are written by the queue; the
 * others go to their slice's owner, which does all of the part (engine/op.h) while no other part is in
 * flight. What has to be durable when it completes goes to the allocator at the end, unless nothing but data
 * was written.
 *
 * A request belongs to its queue's thread, except while it is a message: then the shard owns the fields of
 * struct lookup, and the rings that carry it order the two sides.
 */
#ifndef ENGINE_REQUEST_H
#define ENGINE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "engine/guest_buffer.h"
#include "engine/map.h"
#include "io/io.h"

struct request;

enum request_kind {
    REQUEST_READ,
    REQUEST_MAP, /* resolve only: for scow_get_extent() */
    REQUEST_WRITE,
    REQUEST_DISCARD,
    REQUEST_ZERO,
    REQUEST_FLUSH,
    REQUEST_QUIESCE,
    REQUEST_GROW, /* off: the new virtual size; bytes: 0 */
};

#define REQUEST_ERROR_BYTES 256

/* In request.flags besides SCOW_REQ_*: a discard of what is about to lie beyond the end. It need not read as
 * zeros. */
#define REQUEST_DROP (1u << 7)

/* A question to a slice's owner and its answer. */
struct lookup {
    struct layer *layer;
    uint64_t guest_off;
    uint64_t bytes; /* at most to the slice's end */
    int32_t status; /* answer: 0, or a negative errno with request.error */
    struct run run; /* answer, when status is 0 */
};

#define TRANSFER_IOV_MAX 16

enum transfer_kind {
    TRANSFER_DIRECT,  /* the file's bytes go to the guest's memory */
    TRANSFER_BOUNCED, /* by way of an aligned buffer */
    TRANSFER_INFLATE, /* waits for a compressed cluster */
};

/* One part of a request that needs I/O. */
struct transfer {
    struct list_node node; /* free list, or the waiters of a cluster being inflated */
    enum transfer_kind kind;
    struct io io;            /* not for TRANSFER_INFLATE */
    struct request *request; /* set for good in request.first */
    uint64_t at;             /* position of the part in the request's buffer */
    uint32_t bytes;          /* of the part */
    uint32_t skip;           /* bytes before the part in the bounce buffer or the inflated cluster */
    void *bounce;
    struct iovec iov[TRANSFER_IOV_MAX];
};

struct request {
    struct list_node node; /* of one of the queue's lists: free, starved, ready, failed */
    struct scow_queue *queue;
    enum request_kind kind;
    bool run_known;  /* lookup.run is the next part to start: the walk was starved */
    bool this_layer; /* REQUEST_MAP: do not descend; false in others */
    bool first_in_use;
    bool owner_waits;      /* the next part is the owner's, once the parts in flight are done */
    bool by_hand;          /* zeros are written, because the file cannot be told */
    bool at_allocator;     /* the answer ends the request */
    bool needs_commit;     /* to be durable, by more than its own I/O */
    uint8_t flags;         /* SCOW_REQ_* */
    uint32_t epoch_bucket; /* EPOCH_NOT_COUNTED while it is at its owner */
    uint32_t pending;      /* transfers in flight, plus one while walking */
    int32_t result;        /* 0, or the first failure */
    void *user_data;
    struct guest_buffer buffer;
    uint64_t off, bytes;
    uint8_t *packed; /* the part at the owner, compressed; the queue's */
    uint32_t packed_bytes;
    uint64_t generation; /* image.inflate_generation from before the lookup */
    uint64_t walked;     /* bytes whose transfers were started */
    struct lookup lookup;
    char *error; /* REQUEST_ERROR_BYTES; "" unless the request failed and there is something to say */
    struct transfer first; /* so that a request of one part needs nothing from the pool */
};

#endif
