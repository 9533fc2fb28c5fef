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

struct sync_pace {
    _Atomic uint64_t mean_ns;  /* of those measured lately; 0: of none */
    _Atomic uint64_t retry_ns; /* not quick before that time */
};

/* now_ns is of a monotonic clock. A pace nobody has measured counts as quick: so it gets measured. */
bool sync_pace_is_quick(const struct sync_pace *p, uint64_t now_ns);

/* One took took_ns and ended at now_ns. A slow file is not waited for until 500 times as long has passed. */
void sync_pace_add(struct sync_pace *p, uint64_t took_ns, uint64_t now_ns);

#endif
