/* SPDX-License-Identifier: MIT */
/*
 * Whether a thread that waits for something should be busy for a while before it sleeps. That pays where it
 * makes waits much shorter than the while: processors that do not go to sleep answer at once. Where waits
 * stay as long as they were, they are the disk's own, and being busy is lost. Both are found out by trying.
 *
 * One thread's.
 */
#ifndef EXPORTS_POLL_PACE_H
#define EXPORTS_POLL_PACE_H

#include <stdbool.h>
#include <stdint.h>

struct poll_pace {
    uint64_t limit_ns;     /* busy for so long at most; 0: never */
    uint32_t short_waits;  /* in a row, that ended within the limit */
    uint32_t polled_waits; /* not judged yet */
    uint64_t polled_ns;    /* in these */
    uint32_t pause;        /* waits to go by before it is tried again */
    uint32_t next_pause;
};

void poll_pace_init(struct poll_pace *p, uint64_t limit_ns);

/* Whether the next wait should begin with polling. */
bool poll_pace_pays(const struct poll_pace *p);

/* One has ended after waited_ns. polled: it began with polling. */
void poll_pace_add(struct poll_pace *p, uint64_t waited_ns, bool polled);

#endif
