/* SPDX-License-Identifier: MIT */
/*
 * One front end of a vhost-user-blk server: what it has negotiated, the memory it lends, its rings.
 * Everything here runs on the main thread; what workers use is changed by calls that run on them
 * (blk_worker_call()).
 */
#ifndef EXPORTS_VHOST_USER_SESSION_H
#define EXPORTS_VHOST_USER_SESSION_H

#include "exports/blk_worker.h"
#include "exports/vhost_user_socket.h"

struct session {
    struct vu_socket socket;
    struct blk_device *device;
    struct blk_queue *queues;
    uint32_t queue_count;
    struct blk_worker *workers;
    uint32_t worker_count; /* queue i is worker i modulo this's */

    uint64_t features, protocol_features;
    struct virtio_blk_config config; /* little-endian, as the guest reads it */
    struct guest_memory *memory;     /* what the workers use; replaced as a whole */
    struct dirty_log *log;           /* NULL: none yet */
    struct inflight inflight;
    struct vu_vring_addr *addrs; /* by queue, as the front end gave them */
    int backend_fd;              /* for messages to the front end; -1 */
    uint64_t status;
};

/* An error of a message's handler: a negative errno, and why. */
int session_refuse(struct session *s, int err, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A front end has connected; s->socket.fd is its socket. */
void session_begin(struct session *s);
/* It has gone, or has to go: its rings stop, its memory is unmapped. */
void session_end(struct session *s);

/* Its socket is readable. False: the session is over. */
bool session_readable(struct session *s);

/* The guest's disk has another size now: tells the front end if it wants to know. */
void session_tell_size(struct session *s);

/* ---- between the files of the session ---- */

struct blk_worker *session_worker(const struct session *s, uint32_t queue);
uint64_t session_offered_features(const struct session *s);
int session_update_cache_mode(struct session *s);
/* The mode that the guest has chosen with an earlier server, as inflight memory notes it. */
void session_take_cache_mode(struct session *s);

int session_set_memory(struct session *s);
int session_add_region(struct session *s);
int session_remove_region(struct session *s);
int session_set_log(struct session *s);
int session_give_inflight(struct session *s);
int session_set_inflight(struct session *s);
void session_forget_memory(struct session *s);

int session_set_ring_size(struct session *s);
int session_set_ring_addr(struct session *s);
int session_set_ring_base(struct session *s);
int session_get_ring_base(struct session *s);
int session_set_ring_fd(struct session *s);
int session_enable_ring(struct session *s);
/* What the features say of rings that are there. */
void session_update_rings(struct session *s);
/* All rings stop; what was in flight is answered. */
void session_stop_rings(struct session *s);
/* The rings' places in the memory that there is now. On the worker's thread. */
void session_place_ring(struct session *s, struct blk_queue *q);

#endif
