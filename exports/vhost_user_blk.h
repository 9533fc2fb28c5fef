/* SPDX-License-Identifier: MIT */
/*
 * A disk for a hypervisor over a Unix socket: vhost-user, virtio-blk. One front end at a time; the next is
 * served when it has gone. The caller's thread runs the control path: it polls vhost_user_blk_fd() and calls
 * vhost_user_blk_ready(). Requests run on threads of its own.
 */
#ifndef EXPORTS_VHOST_USER_BLK_H
#define EXPORTS_VHOST_USER_BLK_H

#include <stdbool.h>
#include <stdint.h>

#include "exports/blk_device.h"

#define VHOST_USER_BLK_QUEUES_MAX 64u

struct vhost_user_blk;

struct vhost_user_blk_options {
    int listen_fd;    /* a listening Unix socket, the server's from then on */
    uint32_t queues;  /* virtqueues, 1 to 64 */
    uint32_t threads; /* that serve them; 0: one for each queue, up to the CPUs */
    uint64_t poll_ns; /* busy for so long before sleeping; 0: never */
    bool read_only;
    bool writethrough;  /* the guest cannot choose writeback */
    bool stats;         /* latencies too */
    bool pin_memory;    /* scow_queue_add_memory(): only for guests whose pages nobody takes away */
    const char *serial; /* at most 20 bytes; NULL: none */
    void (*log)(void *ctx, const char *text); /* a line for people; any thread */
    void *log_ctx;
};

/* The image stays the caller's and outlives the server. 0 or a negative errno with *ret_why. */
int vhost_user_blk_create(struct scow_image *image, const struct vhost_user_blk_options *options,
                          struct vhost_user_blk **ret, const char **ret_why);

/* Ends the session, answering what is in flight, and stops the threads. NULL is allowed. */
void vhost_user_blk_destroy(struct vhost_user_blk *s);

/* The descriptor to poll for reading; it changes as front ends come and go. */
int vhost_user_blk_fd(const struct vhost_user_blk *s);
/* It is readable. */
void vhost_user_blk_ready(struct vhost_user_blk *s);

/* The image has got another size. */
void vhost_user_blk_resized(struct vhost_user_blk *s);

/* ---- for statistics; the caller's thread ---- */

bool vhost_user_blk_connected(const struct vhost_user_blk *s);
bool vhost_user_blk_writethrough(const struct vhost_user_blk *s);
uint32_t vhost_user_blk_queue_count(const struct vhost_user_blk *s);
const struct blk_counts *vhost_user_blk_counts(const struct vhost_user_blk *s, uint32_t queue);
bool vhost_user_blk_queue_runs(const struct vhost_user_blk *s, uint32_t queue);
/* The guest has broken it, and nothing is taken from it until it is started anew; or its thread has failed.
 */
bool vhost_user_blk_queue_is_broken(const struct vhost_user_blk *s, uint32_t queue);
/* Threads; virtqueue i is served by thread i modulo their number. */
uint32_t vhost_user_blk_thread_count(const struct vhost_user_blk *s);
/* The engine's queue of the thread that serves a virtqueue: several may share one. */
const struct scow_queue *vhost_user_blk_engine_queue(const struct vhost_user_blk *s, uint32_t queue);

#endif
