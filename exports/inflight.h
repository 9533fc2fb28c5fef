/* SPDX-License-Identifier: MIT */
/*
 * What is in flight on each virtqueue, in memory that the front end keeps: a server that was killed and
 * started again learns from it which requests it had taken and not answered. Layout and protocol: vhost-user
 * specification, "Inflight I/O tracking", split virtqueues.
 */
#ifndef EXPORTS_INFLIGHT_H
#define EXPORTS_INFLIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct inflight_desc {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next; /* of the last batch that was answered */
    uint64_t counter;
};

struct inflight_queue {
    uint64_t features;
    uint16_t version; /* 1 once it is in use */
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct inflight_desc desc[];
};

_Static_assert(sizeof(struct inflight_desc) == 16, "vhost-user: DescStateSplit");
_Static_assert(sizeof(struct inflight_queue) == 16, "vhost-user: QueueRegionSplit");

struct inflight {
    int fd; /* -1: none */
    void *map;
    size_t map_bytes;
    uint8_t *queues;
    uint64_t bytes;
    uint16_t queue_count, queue_size;
};

/* New zeroed memory for queue_count queues of queue_size. 0 or a negative errno. */
int inflight_create(struct inflight *f, uint16_t queue_count, uint16_t queue_size);
/* The memory of an earlier server; takes fd over when it returns 0. */
int inflight_open(struct inflight *f, int fd, uint64_t off, uint64_t bytes, uint16_t queue_count,
                  uint16_t queue_size);
void inflight_close(struct inflight *f);

/* The guest's cache mode, noted for the next server in padding that the protocol leaves free. Nothing where
 * there is no memory. */
enum inflight_cache { INFLIGHT_CACHE_UNKNOWN, INFLIGHT_WRITEBACK, INFLIGHT_WRITETHROUGH };
void inflight_note_cache(struct inflight *f, enum inflight_cache mode);
enum inflight_cache inflight_cache(const struct inflight *f);

/* Of one virtqueue with num descriptors; NULL: there is none for it. */
struct inflight_queue *inflight_of(const struct inflight *f, uint32_t index, uint32_t num);

/*
 * The server takes over: what an earlier one left half answered is put right, by the used index that the
 * guest sees. Writes the heads that were in flight, oldest first, to ret_heads (room for num) and returns how
 * many; *ret_counter is what the next request begins with.
 */
uint32_t inflight_recover(struct inflight_queue *q, uint32_t num, uint16_t used_idx, uint16_t *ret_heads,
                          uint64_t *ret_counter);

/* A request was taken from the available ring. */
void inflight_taken(struct inflight_queue *q, uint16_t head, uint64_t counter);
/* It is about to enter the used ring; its used index follows. */
void inflight_answering(struct inflight_queue *q, uint16_t head);
/* The guest sees used_idx. */
void inflight_answered(struct inflight_queue *q, uint16_t head, uint16_t used_idx);

#endif
