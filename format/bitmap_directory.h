/* SPDX-License-Identifier: MIT */
/* Entries of the bitmap directory (qcow2 spec, "Bitmaps"). */
#ifndef FORMAT_BITMAP_DIRECTORY_H
#define FORMAT_BITMAP_DIRECTORY_H

#include <stddef.h>
#include <stdint.h>

#define BITMAP_HEAD_BYTES 24u

#define BITMAP_TABLE_OFF_MASK 0x00fffffffffffe00ull
#define BITMAP_TABLE_RESERVED_MASK 0xff000000000001feull
#define BITMAP_TABLE_ALL_ONES 1ull /* with offset 0 */

struct bitmap_entry {
    uint64_t table_off;
    uint32_t table_count;
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    uint32_t extra_bytes;
    const char *name; /* not terminated */
    uint32_t name_bytes;
};

/* As snapshot_entry_decode(). */
int64_t bitmap_entry_decode(const uint8_t *buf, size_t bytes, uint64_t off, uint32_t cluster_bytes,
                            struct bitmap_entry *ret);

#endif
