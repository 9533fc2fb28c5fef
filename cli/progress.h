/* SPDX-License-Identifier: MIT */
/*
 * Progress of long work: on a terminal a bar with rate and time left, elsewhere qemu-img's "(12.34/100%)"
 * lines. progress_add() may be called from any thread; the others from one.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
    bool enabled;
    bool terminal;
    bool bytes; /* the unit is bytes: show a rate */
    FILE *out;
    uint64_t total;
    _Atomic uint64_t done;
    uint64_t started_ns;
    _Atomic uint64_t shown_ns; /* when the last line was printed */
    double shown_percent;
};

/* enabled false makes everything below do nothing. out is standard output, as with qemu-img. */
void progress_begin(struct progress *progress, bool enabled, bool bytes, uint64_t total);
/* Adds to what is done; prints at most ten times a second, from one caller at a time. */
void progress_add(struct progress *progress, uint64_t count);
void progress_set(struct progress *progress, uint64_t done, uint64_t total);
/* Leaves the last line in its final state with a newline. */
void progress_end(struct progress *progress, bool complete);

#endif
