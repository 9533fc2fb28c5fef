/* SPDX-License-Identifier: MIT */
/*
 * A disk whose every sector says what it is, so that many threads can write to it and each can tell whether
 * what it reads is right.
 *
 * A sector holds the same 64-bit word 64 times: its number, its version, its owner, the run's seed; or zeros.
 * Every sector has one owner among the writers, and only the owner changes it, one request at a time; so
 * several writers share clusters, but never a sector. What happened to a sector is one word per stage:
 *
 *   issued    the last version that was submitted         written by the owner before it submits
 *   acked     the last version whose completion was seen   written by the owner
 *   zeroed    the last version that was zeros             written by the owner before it submits
 *   durable   the last version that a flush covers        raised by everyone
 *
 * Versions count up; an odd one is zeros (write_zeroes, discard). A sector may hold any version from the last
 * one acknowledged before a read was submitted (after a crash: the last durable one) to the last one issued.
 *
 * The words can be kept in a file (the journal), which is then as they were when the process was killed.
 */
#ifndef RACE_STAMPS_H
#define RACE_STAMPS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/attributes.h"

#define STAMP_SECTOR_BYTES 512u
#define STAMP_MAGIC 0x31706d6174737773ull

/* How sectors are shared out. Of three stripes the first is shared: its units go to the owners in turn. The
 * two others belong to one owner each. All in sectors. */
struct stamp_layout {
    uint32_t sector_count; /* that the disk has at most; below 2^24 */
    uint32_t owners;
    uint32_t unit_sectors;
    uint32_t stripe_sectors;  /* a multiple of the granule */
    uint32_t granule_sectors; /* what a discard zeroes is made of these */
    uint32_t seed;            /* its low byte is part of each stamp */
};

/* The journal's beginning; then issued, acked, zeroed and durable, sector_count words of 32 bits each. */
struct stamp_journal {
    uint64_t magic;
    struct stamp_layout layout;
    _Atomic uint32_t running; /* 1: writers are at work */
    _Atomic uint32_t closed;  /* 1: the image was closed, and that succeeded */
    uint32_t reserved[22];
};
static_assert(sizeof(struct stamp_journal) == 128, "tests/crash/kill_test.py reads it");

struct stamps {
    struct stamp_layout layout;
    struct stamp_journal *journal;
    size_t mapped_bytes;
    bool in_file;
    _Atomic uint32_t *issued, *acked, *zeroed, *durable;
    _Atomic uint32_t sectors_now; /* the disk's present size; grows only */
    _Atomic bool stop;
    _Atomic int failures;
};

struct stamp_range {
    uint32_t first;
    uint32_t count;
};

/* A new disk of zeros with its journal at path (replaced), or in memory only when path is NULL. Exits when
 * that fails. */
void stamps_create(struct stamps *s, const struct stamp_layout *layout, const char *path);
/* The disk of an existing journal. What is on it is what was issued last: the caller has made it so. */
void stamps_open(struct stamps *s, const char *path);
void stamps_close(struct stamps *s);

/* Count a failure, print it, stop everybody. */
void stamps_fail(struct stamps *s, const char *format, ...) ATTR_PRINTF(2, 3);

/* xorshift; *state must not be 0. */
uint64_t stamps_random(uint64_t *state, uint64_t limit);

uint32_t stamps_owner(const struct stamps *s, uint32_t sector);
/* A random range that belongs to owner, of at most most sectors; private: outside the shared stripes. False
 * when none was found in a few tries. */
bool stamps_pick(const struct stamps *s, uint32_t owner, uint64_t *seed, uint32_t most, bool private_only,
                 struct stamp_range *ret);
/* Nothing is in flight that changes the range. By its owner. */
bool stamps_idle(const struct stamps *s, struct stamp_range range);

/* A change of the range begins, ends. By its owner. */
void stamps_issue(struct stamps *s, struct stamp_range range, bool zeros);
void stamps_ack(struct stamps *s, struct stamp_range range, bool durable);
/* What the sectors of the range hold as issued last. */
void stamps_fill(const struct stamps *s, struct stamp_range range, void *buf);

/* Before a flush is submitted, all that is acknowledged; when it has completed, that is durable. */
void stamps_snapshot(const struct stamps *s, uint32_t *snapshot);
void stamps_durable(struct stamps *s, const uint32_t *snapshot);

/* Before a read is submitted: the versions that it must not miss. */
void stamps_floor(const struct stamps *s, struct stamp_range range, uint32_t *ret_floor);
/* Whether buf is what may be read. */
bool stamps_check(struct stamps *s, struct stamp_range range, const uint32_t *floor, const void *buf,
                  const char *who);

#endif
