/* SPDX-License-Identifier: MIT */
/*
 * L1, L2 and refcount-table entries, host byte order (qcow2 spec, "Cluster mapping" and "Host cluster
 * management").
 */
#ifndef FORMAT_ENTRY_H
#define FORMAT_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/checked.h"
#include "format/limits.h"

#define ENTRY_COPIED (1ull << 63)
#define ENTRY_COMPRESSED (1ull << 62)
#define ENTRY_ZERO (1ull << 0)
#define ENTRY_OFF_MASK 0x00fffffffffffe00ull
#define L1_RESERVED_MASK 0x7f000000000001ffull
#define L2_RESERVED_MASK 0x3f000000000001feull
#define REFTABLE_OFF_MASK 0xfffffffffffffe00ull
#define REFTABLE_RESERVED_MASK 0x1ffull

enum entry_kind {
    ENTRY_UNALLOCATED,
    ENTRY_ZERO_PLAIN,     /* reads as zeros, no host cluster */
    ENTRY_ZERO_ALLOCATED, /* reads as zeros, has a host cluster */
    ENTRY_NORMAL,
    ENTRY_IS_COMPRESSED,
};

/*
 * The kind of an L2 entry. With extended L2 the zero bit has no meaning and ENTRY_NORMAL stands for every
 * entry with a host cluster: the subcluster bitmap says the rest. With an external data file a COPIED entry
 * with offset 0 is data at offset 0.
 */
static inline enum entry_kind entry_kind(uint64_t entry, bool extended_l2, bool data_file)
{
    const bool has_off = (entry & ENTRY_OFF_MASK) || (data_file && (entry & ENTRY_COPIED));

    if (entry & ENTRY_COMPRESSED)
        return ENTRY_IS_COMPRESSED;
    if ((entry & ENTRY_ZERO) && !extended_l2)
        return (entry & ENTRY_OFF_MASK) ? ENTRY_ZERO_ALLOCATED : ENTRY_ZERO_PLAIN;
    return has_off ? ENTRY_NORMAL : ENTRY_UNALLOCATED;
}

/* Where a compressed cluster's stream is: whole 512-byte sectors, the first one from off on. */
struct compressed_extent {
    uint64_t off;
    uint32_t bytes; /* readable from off on; the stream may end earlier */
};

static inline struct compressed_extent entry_compressed(uint64_t entry, uint32_t cluster_bits)
{
    const uint32_t shift = 62 - (cluster_bits - 8);
    const uint64_t off = entry & ((1ull << shift) - 1);
    const uint64_t sectors = ((entry & ~(ENTRY_COPIED | ENTRY_COMPRESSED)) >> shift) + 1;

    return (struct compressed_extent){off, (uint32_t)(sectors * SECTOR_BYTES - off % SECTOR_BYTES)};
}

/* Extended L2: which subclusters are allocated (low half) and which read as zeros (high half). */
static inline uint32_t bitmap_allocated(uint64_t bitmap)
{
    return (uint32_t)bitmap;
}

static inline uint32_t bitmap_zero(uint64_t bitmap)
{
    return (uint32_t)(bitmap >> 32);
}

/* Both bits set for one subcluster, or one allocated without a host cluster, is corruption. */
static inline bool bitmap_valid(uint64_t bitmap, bool has_cluster)
{
    return !(bitmap_allocated(bitmap) & bitmap_zero(bitmap)) && (has_cluster || !bitmap_allocated(bitmap));
}

#endif
