/* SPDX-License-Identifier: MIT */
/*
 * A thread that serves some virtqueues: it takes requests, submits them on an engine queue of its own, and
 * answers. One wait looks at the engine's completions and at the guest's kicks. Workers share nothing that is
 * written while they serve.
 */
#ifndef EXPORTS_BLK_WORKER_H
#define EXPORTS_BLK_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "exports/blk_queue.h"
#include "exports/poll_pace.h"

struct blk_worker {
    struct blk_queue **queues; /* that it serves */
    uint32_t queue_count;
    struct scow_queue *engine;
    struct blk_device *device;
    struct poll_pace poll_pace;
    pthread_t thread;
    bool has_thread;
    int bell; /* eventfd: somebody calls */

    /* A call of the main thread's. */
    pthread_mutex_t lock;
    pthread_cond_t answered;
    _Atomic bool called;
    void (*call)(void *arg);
    void *call_arg;
    bool stop;           /* the worker's own */
    _Atomic bool failed; /* the worker's; anybody reads it */
};

/* With queues of device's; starts its thread. 0 or a negative errno. */
int blk_worker_start(struct blk_worker *w, struct blk_device *device, struct blk_queue **queues,
                     uint32_t queue_count, uint64_t poll_ns, uint32_t index);
/* NULL-safe; also where starting failed. Nothing is in flight. */
void blk_worker_stop(struct blk_worker *w);

/* Runs call(arg) on the worker's thread, between requests, and waits for it. Only the main thread calls. */
void blk_worker_call(struct blk_worker *w, void (*call)(void *arg), void *arg);

/* For use in a call: answers all that is in flight on all its queues. */
void blk_worker_drain(struct blk_worker *w);

/* For use in a call: look at another descriptor for the queue's kicks, or none (-1); the old one is closed.
 */
int blk_worker_set_kick(struct blk_worker *w, struct blk_queue *q, int fd);

/* For use in a call: the queues' buffers lie in another memory, both still mapped; NULL: in none. */
void blk_worker_change_memory(struct blk_worker *w, const struct guest_memory *from,
                              const struct guest_memory *to);

#endif
