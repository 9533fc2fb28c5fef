/* SPDX-License-Identifier: MIT */
/*
 * A split virtqueue (virtio 1.2, "Split Virtqueues"), the device's side. It belongs to one worker. The rings
 * are the guest's memory: every index and descriptor is fetched once and checked before use; what cannot be
 * makes the queue broken, and nothing more is taken from it.
 */
#ifndef EXPORTS_VIRTQUEUE_H
#define EXPORTS_VIRTQUEUE_H

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "exports/dirty_log.h"
#include "exports/guest_memory.h"
#include "exports/inflight.h"

#define VIRTQUEUE_SIZE_MAX 1024u
/* Pieces of memory in one chain; more is a guest that does not keep to seg_max. */
#define CHAIN_PIECES_MAX 160u

/* A request of the guest's: what the device reads (out) comes before what it writes (in). */
struct chain {
    uint16_t head;
    uint16_t out_count, in_count;
    uint32_t out_bytes, in_bytes;
    uint64_t counter; /* inflight's */
    struct iovec pieces[CHAIN_PIECES_MAX];
    uint64_t in_addrs[CHAIN_PIECES_MAX]; /* where the guest has each piece, for the dirty log */
};

struct virtqueue {
    uint32_t index;
    uint32_t num; /* descriptors; a power of two */
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint64_t used_guest_addr;
    const struct guest_memory *memory;
    const struct dirty_log *log; /* NULL: nothing is logged */
    struct inflight_queue *inflight;
    uint64_t inflight_counter;
    uint16_t next_avail; /* position in the available ring that is taken next */
    uint16_t used_idx;
    uint16_t told_used; /* used_idx when the guest was last interrupted */
    bool told_valid;
    bool event_idx, indirect;
    bool log_used;      /* writes to the used ring are logged */
    const char *broken; /* why; NULL: it is well */
    uint8_t *taken;     /* by head: in flight */
    uint32_t in_flight;
    /* Heads that an earlier server left in flight, to be taken first. */
    uint16_t *again;
    uint32_t again_count, again_next;
    int kick_fd, call_fd, err_fd; /* -1: none */
};

int virtqueue_init(struct virtqueue *vq, uint32_t index);
void virtqueue_destroy(struct virtqueue *vq);

/* Closes the descriptor at *fd, if there is one, and puts another there; -1: none. */
void virtqueue_replace_fd(int *fd, int other);

/* Where the rings are, as addresses of the front end's. False: not memory, or misaligned; nothing changed. */
bool virtqueue_set_rings(struct virtqueue *vq, uint64_t desc, uint64_t avail, uint64_t used);

/* From here on requests are taken, beginning with next_avail; what inflight knows of comes first. */
void virtqueue_start(struct virtqueue *vq);

/* The next request: 1, with *c filled; 0: none; -1: the queue is broken, vq->broken says why. */
int virtqueue_pop(struct virtqueue *vq, struct chain *c);

/* Requests of an earlier server that are still to be popped. */
static inline uint32_t virtqueue_again(const struct virtqueue *vq)
{
    return vq->broken ? 0 : vq->again_count - vq->again_next;
}

/* Whether there may be something to pop. */
bool virtqueue_has_work(const struct virtqueue *vq);

/* Done with it; written bytes of its memory are the device's. The guest sees it, but is not told yet. */
void virtqueue_push(struct virtqueue *vq, const struct chain *c, uint32_t written);

/* Interrupts the guest if it wants to know of what was pushed since the last time. Returns whether it did. */
bool virtqueue_notify(struct virtqueue *vq);

/* Whether the guest is to kick. After enabling look for work again. */
void virtqueue_want_kicks(struct virtqueue *vq, bool want);

#endif
