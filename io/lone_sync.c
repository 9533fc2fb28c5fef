/* SPDX-License-Identifier: MIT */
#include "io/lone_sync.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

bool lone_sync_make(struct lone_sync *l, struct io *io, uint32_t in_flight)
{
    struct sync_pace *const pace = &io->file->sync_pace;
    uint64_t end;

    l->waiting = NULL;
    if (in_flight > 1)
        return false;
    l->since_ns = now_ns();
    if (!sync_pace_is_quick(pace)) {
        l->timed = io;
        return false;
    }
    while (!io_advance(io, fdatasync(io->file->fd) < 0 ? -errno : 0))
        ;
    end = now_ns();
    sync_pace_add(pace, end - l->since_ns, end, true);
    return true;
}

void lone_sync_completed(struct lone_sync *l)
{
    const uint64_t end = now_ns();

    sync_pace_add(&l->timed->file->sync_pace, end - l->since_ns, end, false);
    l->timed = NULL;
}
