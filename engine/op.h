/* SPDX-License-Identifier: MIT */
/*
 * An op: one part of a write-side request at the owner of its slice, from arrival to answer. The part lies
 * within one slice; its op works through it chunk by chunk.
 *
 * - FIND: the slice is needed in a slot, its table writable. Waits for a load, for the allocator, for a slot.
 *
 * - QUEUED: pins the slot and stands in the slice's line. Waits for every earlier op that touches one of its
 *   clusters (the in-flight table).
 *
 * - CHUNK: decides what comes next by the entries: in place, or into new clusters. Waits for a lease.
 *
 * - ALONE: writes part of a block in place. Waits until no queue writes in place in this slice.
 *
 * - BUFFER: needs one. Waits for it.
 *
 * - READ: copy on write: reads what surrounds the data, or the edges of a block.
 *
 * - DATA: one write. Then the entries are published and the next chunk begins; after the last the request is
 *   answered.
 *
 * An op waits for slots only while it holds nothing, for a lease or a buffer only while every holder of one
 * can go on without: nobody waits in a circle.
 */
#ifndef ENGINE_OP_H
#define ENGINE_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "cache/slot.h"
#include "engine/request.h"
#include "io/io.h"

struct shard;

/* Ops under way per shard; more wait. */
#define SHARD_OPS 128u
/* The most that one write of a chunk moves. */
#define CHUNK_BYTES_MAX (16u << 20)

enum op_step { OP_FIND, OP_QUEUED, OP_CHUNK, OP_ALONE, OP_BUFFER, OP_READ, OP_DATA };

/* Where the bytes around the data come from. */
enum op_source {
    SOURCE_NONE, /* nothing: what is there reads as zeros already, or is not part of the write */
    SOURCE_ZERO,
    SOURCE_READ,  /* the guest's view of that range */
    SOURCE_BLOCK, /* the host's bytes at that place */
};

struct op_edge {
    enum op_source source;
    uint32_t bytes;
};

struct op {
    struct list_node node; /* of whatever list it waits in */
    struct op *next;       /* in the slice's line */
    struct request *request;
    enum op_step step;
    int32_t error; /* the first */
    struct layer *layer;
    slot_cell *cell;
    struct slot *slot;    /* pinned from QUEUED on */
    uint64_t pos, end;    /* guest range that is left */
    uint64_t first, last; /* guest clusters of the whole part: what is in its line for */
    bool active;          /* past QUEUED */

    /* the chunk */
    uint64_t chunk_end; /* guest offset */
    bool zeros;         /* its data is zeros, not the guest's */
    bool in_place;      /* entries need no change */
    bool moves;         /* goes to new clusters */
    bool hole;          /* what is replaced read as zeros without any data file's help (I2) */
    bool allocated;     /* clusters of the lease: host_first, cluster_count */
    bool fresh;
    bool assembled;    /* goes through buffer as a whole */
    uint64_t host_off; /* of guest offset pos */
    uint64_t host_first;
    uint32_t cluster_count;
    uint32_t unit_bytes;       /* what the entries can tell apart: a subcluster or a cluster */
    struct op_edge head, tail; /* around [pos, chunk_end) */
    uint8_t *buffer;
    bool has_io;         /* io is in flight */
    bool found_no_space; /* once: the write was tried again */
    uint32_t reserved;   /* runs in the shard's freed list */
    uint32_t reads;      /* in flight */
    bool zeroing;        /* the data file's clusters up to zeroed_to are being zeroed */
    uint64_t zeroed_to;
    struct io io;
    struct iovec iov[TRANSFER_IOV_MAX + 2];
};

/* A write-side request has arrived. */
void op_submit(struct shard *s, struct request *r);

/* Go on from where it waited. */
void op_go(struct shard *s, struct op *op);

/* The backend has failed: answers all requests. The ops and what they hold stay as they are for ever. */
void ops_break_down(struct shard *s, int err, const char *text);

/* An I/O of role ROLE_OP is done. */
void op_io_done(struct shard *s, struct io *io);

/* A request of the shard's reader is done. */
void op_read_done(struct shard *s, struct request *r);

/* Answers the request with op->error, and frees the op. */
void op_end(struct shard *s, struct op *op);
void op_fail(struct shard *s, struct op *op, int err, const char *text);
void op_release_buffer(struct shard *s, struct op *op);

/* What op_zero_step() leaves to be done. */
enum zero_step {
    ZERO_WRITE, /* zeros are to be written as a chunk, up to *ret_end */
    ZERO_DONE,  /* this much is said in entries: the op goes on at its position */
    ZERO_WAITS, /* nothing: the op waits, or has ended */
};

/* The next chunk of a discard or a write_zeroes. */
enum zero_step op_zero_step(struct shard *s, struct op *op, uint64_t *ret_end);

#endif
