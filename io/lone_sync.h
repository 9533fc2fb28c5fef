/* SPDX-License-Identifier: MIT */
/*
 * An fdatasync that has a ring for itself. The kernel has another thread wait for it; where the file is quick
 * the loop's own thread may as well: the two wake-ups cost more. The owner's thread only.
 */
#ifndef IO_LONE_SYNC_H
#define IO_LONE_SYNC_H

#include <stdbool.h>
#include <stdint.h>

#include "io/io.h"

struct lone_sync {
    struct io *waiting; /* prepared when nothing was in flight, and not started yet */
    struct io *timed;   /* started elsewhere, at since_ns */
    uint64_t since_ns;
};

/* The waiting one, with in_flight I/Os in flight, itself included. True: it is made, and complete. False: it
 * is to be started like others. */
bool lone_sync_make(struct lone_sync *l, struct io *io, uint32_t in_flight);

/* An I/O that was started like others is complete. */
void lone_sync_completed(struct lone_sync *l);

#endif
