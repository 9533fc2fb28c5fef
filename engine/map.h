/* SPDX-License-Identifier: MIT */
/*
 * From L2 entries to runs: pure translation. The owner of a slice calls it on its own entries; a reader calls
 * it on entries that may change under it and trusts the result only if the slot's sequence held still.
 */
#ifndef ENGINE_MAP_H
#define ENGINE_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/layer.h"
#include "format/entry.h"

enum run_kind {
    RUN_UNALLOCATED, /* this layer has nothing: the backing file decides, or zeros */
    RUN_ZERO,
    RUN_DATA,
    RUN_COMPRESSED, /* never more than one cluster */
};

/* A stretch of guest space that is alike and, where it has a host offset, contiguous on the host. */
struct run {
    enum run_kind kind;
    bool has_host; /* host_off is valid: RUN_DATA, preallocated RUN_ZERO, an unallocated subcluster of a
                      cluster */
    uint64_t bytes;
    uint64_t host_off;
    uint64_t entry; /* RUN_COMPRESSED: the L2 entry */
};

/* What is wrong with an L2 entry. */
enum map_status {
    MAP_OK,
    MAP_UNALIGNED,            /* host offset not a multiple of the cluster size */
    MAP_ZERO_IN_V2,           /* zero flag in a version 2 image */
    MAP_BITMAP,               /* invalid subcluster bitmap */
    MAP_COMPRESSED_DATA_FILE, /* compressed cluster with an external data file */
    MAP_DATA_FILE_OFF,        /* host offset differs from the guest offset with an external data file */
};

struct map_fault {
    enum map_status status;
    uint64_t guest_off; /* of the cluster */
    uint64_t entry, bitmap;
};

/*
 * Translate guest_off: the longest run from there within bytes_max and the slice. entries are the slice's,
 * big-endian. On anything but MAP_OK only *ret_fault is set.
 */
enum map_status map_slice(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t guest_off,
                          uint64_t bytes_max, struct run *ret_run, struct map_fault *ret_fault);

/* One cluster's entry, validated. */
struct cluster_view {
    enum entry_kind kind;
    bool copied;
    uint64_t entry, bitmap;
    uint64_t host_off; /* of the cluster; with a data file its guest offset */
};

/* The entry of the cluster that guest_off lies in. On anything but MAP_OK only *ret_fault is set. */
enum map_status map_cluster(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t guest_off,
                            struct cluster_view *ret, struct map_fault *ret_fault);

/*
 * How many bytes from guest_off on, within bytes_max and the slice, may be written where they are: data (not
 * zeros, not compressed) in clusters that nothing else refers to, contiguous from *ret_host_off on. 0: none.
 */
uint64_t map_in_place(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t guest_off,
                      uint64_t bytes_max, uint64_t *ret_host_off);

/* Describe a fault into buf, naming table and offset. */
void map_fault_text(const struct layer *layer, const struct map_fault *fault, char *buf, size_t buf_bytes);

/* Whether the offset of an L2 table in an L1 entry can be used: aligned. 0 or -EIO with text in buf. */
int map_check_l1(const struct layer *layer, uint64_t l1_index, uint64_t l1_entry, char *buf,
                 size_t buf_bytes);

static inline uint64_t map_slice_index(const struct layer *layer, uint64_t guest_off)
{
    return guest_off >> layer->slice_shift;
}

/* Guest bytes from guest_off to the end of its slice. */
static inline uint64_t map_slice_rest(const struct layer *layer, uint64_t guest_off)
{
    const uint64_t slice = 1ull << layer->slice_shift;

    return slice - (guest_off & (slice - 1));
}

#endif
