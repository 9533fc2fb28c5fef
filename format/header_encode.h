/* SPDX-License-Identifier: MIT */
/*
 * A new image's first cluster: header, extensions and backing name, from a description. The reverse of
 * header_decode().
 */
#ifndef FORMAT_HEADER_ENCODE_H
#define FORMAT_HEADER_ENCODE_H

#include <stdint.h>

/* Fields as in struct header. Names are terminated; NULL: none. */
struct header_description {
    uint32_t version; /* 2 or 3; version 2 has no field from incompatible to compression */
    uint32_t cluster_bits;
    uint64_t virtual_bytes;
    uint32_t l1_count;
    uint64_t l1_off;
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;
    uint8_t compression; /* 0 zlib, 1 zstd */
    const char *backing_name;
    const char *backing_format;
    const char *data_file_name;
};

/*
 * Fills cluster, which has 1 << cluster_bits bytes. The feature name table, with shardcow's own autoclear bit
 * in it, is written where QEMU writes it: in version 3 with clusters above 4 KiB, so that a long backing name
 * set later still fits. 0, or -EINVAL with a message when a name is empty or longer than the format or the
 * cluster allows.
 */
int header_encode(const struct header_description *d, uint8_t *cluster);

#endif
