/* SPDX-License-Identifier: MIT */
/*
 * What a guest may read, sector by sector, from what it has asked for.
 *
 * Content is stamped: each 8-byte word has its guest offset in the lower half and a value in the upper one;
 * value 0 is a sector of zeros. Every write has a value of its own, so a sector tells which write it is from,
 * and a sector that moved, or was put together from two, is recognised.
 *
 * A write counts from its submission to its completion. A later write hides it from a reader when it was
 * submitted after the completion of the hidden one and completed before the read began; it hides it from the
 * survivors of a crash when moreover it was made durable: by a flush submitted after its completion that
 * succeeded, or by being FUA; where only the process died, by SCOW_REQ_OUTLIVES. A write that failed hides
 * nothing and may be seen.
 */
#ifndef SIM_ORACLE_H
#define SIM_ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ORACLE_SECTOR 512u
#define ORACLE_READS_MAX 64u
#define VALUE_ZERO 0u
#define VALUE_BAD UINT32_MAX

struct oracle_op {
    uint64_t submitted, acked; /* UINT64_MAX while in flight */
    bool strong;               /* it hides others: it succeeded */
    bool durable;
    bool outlives; /* the process */
};

struct oracle_entry {
    uint32_t next; /* 0: none */
    uint32_t op;
    uint32_t value;
};

struct oracle {
    uint32_t sectors; /* that entries exist for */
    uint64_t time;
    uint32_t *heads; /* by sector, newest first */
    uint32_t sectors_room;
    struct oracle_entry *entries;
    uint32_t entry_count, entry_room, free_entry;
    struct oracle_op *ops;
    uint32_t op_count, op_room, first_undurable;
    uint64_t durable_changes;         /* grows when something becomes durable */
    uint64_t reads[ORACLE_READS_MAX]; /* when reads in flight began; 0: free */
};

/* Sectors hold values, durably. Reuses the memory of an oracle that is all zeros or was used before. */
void oracle_reset(struct oracle *o, uint32_t sectors, const uint32_t *values);
/* The disk became larger: zeros. */
void oracle_grow(struct oracle *o, uint32_t sectors);
void oracle_free(struct oracle *o);

/* A write of value begins; returns its op. Sectors of several ranges may be added to one op. */
uint32_t oracle_begin(struct oracle *o);
void oracle_add(struct oracle *o, uint32_t op, uint32_t sector, uint32_t count, uint32_t value);
/* durable: FUA. strong: it succeeded and is certain to have taken effect. */
void oracle_end(struct oracle *o, uint32_t op, bool strong, bool durable, bool outlives);

uint64_t oracle_flush_begin(struct oracle *o);
void oracle_flush_end(struct oracle *o, uint64_t begun);

/* Returns a ticket. */
uint32_t oracle_read_begin(struct oracle *o);
/* Compares what was read and gives the ticket back. False: text says what is wrong. */
bool oracle_read_end(struct oracle *o, uint32_t ticket, uint32_t sector, uint32_t count, const uint8_t *data,
                     char *text, size_t text_room);
void oracle_read_cancel(struct oracle *o, uint32_t ticket);

/* Whether a sector that survived a crash may have this content; killed: only the process has died. */
bool oracle_survivor(const struct oracle *o, uint32_t sector, bool killed, const uint8_t *data,
                     uint32_t *ret_value, char *text, size_t text_room);

uint32_t stamp_value(const uint8_t *sector_data, uint64_t guest_off);
void stamp_write(uint8_t *data, uint64_t guest_off, uint64_t bytes, uint32_t value);

#endif
