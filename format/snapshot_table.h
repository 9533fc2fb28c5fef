/* SPDX-License-Identifier: MIT */
/* Entries of the snapshot table (qcow2 spec, "Snapshots"). */
#ifndef FORMAT_SNAPSHOT_TABLE_H
#define FORMAT_SNAPSHOT_TABLE_H

#include <stddef.h>
#include <stdint.h>

#define SNAPSHOT_HEAD_BYTES 40u
/* Version 3 images have at least this much extra data: VM state size and disk size, 64 bits each. */
#define SNAPSHOT_EXTRA_BYTES_V3 16u

struct snapshot_entry {
    uint64_t l1_off;
    uint32_t l1_count;
    uint32_t date_s, date_ns;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes; /* the image's present size when the entry does not say */
    uint64_t icount;     /* UINT64_MAX when not recorded */
    uint32_t extra_bytes;
    const char *id; /* not terminated */
    uint32_t id_bytes;
    const char *name; /* not terminated */
    uint32_t name_bytes;
};

/*
 * Decode the entry at buf, of which bytes bytes are there; off is its place in the file, for messages.
 * Returns the bytes it occupies with padding; 0 when more than bytes are needed; -EINVAL with a message when
 * it is invalid.
 */
int64_t snapshot_entry_decode(const uint8_t *buf, size_t bytes, uint64_t off, uint32_t cluster_bytes,
                              uint64_t virtual_bytes, struct snapshot_entry *ret);

/* The same without a look at the L1 table, whose offset and size may then be anything: for the check, which
 * goes on. */
int64_t snapshot_entry_parse(const uint8_t *buf, size_t bytes, uint64_t off, uint64_t virtual_bytes,
                             struct snapshot_entry *ret);

#endif
