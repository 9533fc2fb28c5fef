/* SPDX-License-Identifier: MIT */
/*
 * The rules that keep an image whole, by name, where the code follows them. In the library GUARD() is the
 * constant true. Built with SCOW_NEGATIVE, for the simulator only, each can be switched off at run time, so
 * that a simulator that finds nothing can be told from one that looks for nothing (docs/TESTING.md).
 */
#ifndef BASE_GUARD_H
#define BASE_GUARD_H

#include <stdint.h>

enum guard {
    GUARD_I1,       /* refcounts are durable before clusters are leased */
    GUARD_I2,       /* data and COW fill are durable before an L2 entry names them */
    GUARD_I3,       /* an L2 table is durable before its L1 entry is written */
    GUARD_I4,       /* the removal of a reference is durable before the refcount drops */
    GUARD_I5,       /* a cluster whose punch is pending is not free */
    GUARD_I6,       /* the header follows what it points to */
    GUARD_I7,       /* a flush covers every write acknowledged before it */
    GUARD_COPIED,   /* what is shared is copied, never written in place */
    GUARD_EPOCH,    /* I/O in flight is waited for before reuse or punch */
    GUARD_INFLIGHT, /* requests for one cluster run one after another at its owner */
    GUARD_EVICTION, /* only clean slices are evicted */
    GUARD_ALONE,    /* a write of part of a block excludes every other write to it */
    GUARD_COUNT
};

#ifdef SCOW_NEGATIVE
extern uint32_t guards_off; /* bit per enum guard. Writer: the test, before anything runs */
#define GUARD(name) (!(guards_off & (1u << GUARD_##name)))
#else
#define GUARD(name) 1
#endif

#endif
