/* SPDX-License-Identifier: MIT */
/* One thread with a queue that does everything to its own sectors of a stamped disk, and reads everybody's.
 */
#ifndef RACE_STAMP_WORKER_H
#define RACE_STAMP_WORKER_H

#include <shardcow.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "tests/race/stamps.h"

#define STAMP_TASKS 16u
#define STAMP_VECTORS 4

enum stamp_task_kind { TASK_IDLE, TASK_READ, TASK_WRITE, TASK_ZERO, TASK_DISCARD, TASK_FLUSH };

struct stamp_task {
    enum stamp_task_kind kind;
    struct stamp_range range; /* that changes or is read; of a discard: the whole granules, perhaps none */
    bool durable;             /* FUA */
    uint8_t *memory, *buf;    /* buf lies in memory, aligned or not */
    uint32_t *floor;          /* of a read */
    struct iovec iov[STAMP_VECTORS];
};

struct stamp_worker {
    struct stamps *stamps;
    struct scow_image *image;
    uint32_t owner;
    uint64_t seed;
    uint32_t sectors_max; /* of a request */
    bool writethrough;    /* the image was opened so: what is acknowledged is durable */
    struct stamp_task tasks[STAMP_TASKS];
    uint32_t *snapshot; /* NULL: flushes are not recorded */
    bool flushing;      /* one at a time */
    _Atomic uint64_t done[TASK_FLUSH + 1], queues;
};

/* Memory for a worker whose fields above tasks are set; exits when there is none. */
void stamp_worker_prepare(struct stamp_worker *w);
void stamp_worker_free(struct stamp_worker *w);

/* One queue, from creation to destruction: rounds turns, or fewer when the stamps say stop. leave_in_flight:
 * it is destroyed with requests in flight. */
void stamp_worker_use_queue(struct stamp_worker *w, uint32_t rounds, bool leave_in_flight);

/* Queues until the stamps say stop. For pthread_create(), arg is the worker. */
void *stamp_worker_run(void *arg);

/* A thread that does the same through the blocking calls, one at a time. */
void *stamp_worker_run_blocking(void *arg);

#endif
