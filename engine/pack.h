/* SPDX-License-Identifier: MIT */
/*
 * Where a shard puts compressed clusters: one behind the other, into host clusters of its lease. The cursor
 * holds a reference of its own to each host cluster until it has left it, so that none is freed while more is
 * packed into it; each stream raises the refcount of every host cluster that it touches, before the commit
 * that names it.
 *
 * Streams share blocks of the file, so one write is in flight at a time; it takes all that has come
 * meanwhile.
 */
#ifndef ENGINE_PACK_H
#define ENGINE_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "engine/freed.h"
#include "io/io.h"

struct op;
struct shard;

struct pack {
    uint64_t at, end;      /* host offsets: the next stream goes to at; what is leased in a row ends at end */
    uint64_t written;      /* host offset behind the last stream placed: the buffer has the bytes before it */
    uint32_t packed_count; /* streams in the write under way */
    uint64_t streams_here; /* in the host cluster of at */
    uint64_t streams_max;  /* per host cluster; 0: counts are too narrow to share */
    uint8_t *buffer;       /* the file's bytes from buffer_off on */
    uint64_t buffer_off;
    uint32_t buffer_bytes;
    struct freed_list
        passed; /* host clusters that the cursor has left: freed once what is in them is published */
    bool busy;
    struct io io;
    struct list waiting; /* of op.node: to be packed */
    struct list packed;  /* of op.node: in the write under way */
};

void pack_create(struct shard *s);
void pack_destroy(struct shard *s);

/* Whether op's part is compressed, and its cluster may be. */
bool pack_takes(const struct shard *s, const struct op *op);
void pack_add(struct shard *s, struct op *op);
/* Go on: a lease has come. */
void pack_run(struct shard *s);
/* There are no clusters. */
void pack_fail(struct shard *s, int err);
/* The write is done. */
void pack_io_done(struct shard *s, struct io *io);
/* Leave the cursor's cluster, if nothing is under way; everything packed is durable. What loses the cursor's
 * reference is added to to. False when out of memory. */
bool pack_leave(struct shard *s, struct freed_list *to);

#endif
