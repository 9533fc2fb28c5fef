/* SPDX-License-Identifier: MIT */
/*
 * How long fdatasync takes on a file, to tell whether waiting for it costs more than having somebody else
 * wait: on memory, and on disks whose cache survives a power cut, it ends sooner than another thread wakes
 * up.
 *
 * Any thread; what several of them measure at once may be lost.
 */
#ifndef IO_SYNC_PACE_H
#define IO_SYNC_PACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Up to here, on average, a file's syncs are quick: what two wake-ups of idle processors take at most. */
#define SYNC_QUICK_NS 100000u
/* The same for those that somebody else waits for, wake-ups included. */
#define SYNC_QUICK_ELSEWHERE_NS (2 * SYNC_QUICK_NS)

struct sync_pace {
    _Atomic uint64_t mean_ns;  /* of those waited for lately; 0: the file is not known to be quick */
    _Atomic uint64_t retry_ns; /* not quick before that time */
};

bool sync_pace_is_quick(const struct sync_pace *p);

/* One took took_ns and ended at now_ns, of a monotonic clock. here: the caller's thread waited for it. A file
 * that turns out slow is not quick until 64 times as long has passed, and one elsewhere was quick. */
void sync_pace_add(struct sync_pace *p, uint64_t took_ns, uint64_t now_ns, bool here);

#endif
