/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 header, its extensions and the backing name: decoding and validation of the image's first
 * cluster. Pure functions over bytes. Source of every field: qcow2 spec, "Header" and "Header extensions".
 */
#ifndef FORMAT_HEADER_H
#define FORMAT_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/attributes.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* On disk, big-endian. Version 2 ends after snapshots_off. */
struct header_disk {
    uint32_t magic;
    uint32_t version;
    uint64_t backing_off;
    uint32_t backing_bytes;
    uint32_t cluster_bits;
    uint64_t virtual_bytes;
    uint32_t crypt_method;
    uint32_t l1_count;
    uint64_t l1_off;
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_off;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;
    uint32_t header_bytes;
    uint8_t compression;
    uint8_t padding[7];
};
static_assert(sizeof(struct header_disk) == 112, "qcow2 spec: header");
static_assert(offsetof(struct header_disk, reftable_off) == 48, "qcow2 spec: header");
static_assert(offsetof(struct header_disk, incompatible) == 72, "qcow2 spec: header");
static_assert(offsetof(struct header_disk, refcount_order) == 96, "qcow2 spec: header");
static_assert(offsetof(struct header_disk, compression) == 104, "qcow2 spec: header");

#define HEADER_V2_BYTES 72u
#define HEADER_V3_BYTES_MIN 104u

#define INCOMPAT_DIRTY (1ull << 0)
#define INCOMPAT_CORRUPT (1ull << 1)
#define INCOMPAT_DATA_FILE (1ull << 2)
#define INCOMPAT_COMPRESSION (1ull << 3)
#define INCOMPAT_EXTENDED_L2 (1ull << 4)
#define INCOMPAT_KNOWN 0x1full
#define COMPAT_LAZY_REFCOUNTS (1ull << 0)
#define AUTOCLEAR_BITMAPS (1ull << 0)
#define AUTOCLEAR_DATA_FILE_RAW (1ull << 1)
/* Ours: set while shardcow has the image open for writing. Another writer clears it, as it clears every
 * autoclear bit that it does not know. */
#define AUTOCLEAR_SHARDCOW_BIT 40
#define AUTOCLEAR_SHARDCOW (1ull << AUTOCLEAR_SHARDCOW_BIT)

enum extension_type {
    EXTENSION_END = 0,
    EXTENSION_BACKING_FORMAT = 0xe2792aca,
    EXTENSION_FEATURE_NAMES = 0x6803f857,
    EXTENSION_BITMAPS = 0x23852875,
    EXTENSION_CRYPTO = 0x0537be77,
    EXTENSION_DATA_FILE = 0x44415441,
};

/* A part of the first cluster. bytes == 0: absent. */
struct header_span {
    uint32_t off;
    uint32_t bytes;
};

/* The header in host byte order, validated. Names and extensions are spans of the bytes it was decoded from.
 */
struct header {
    uint32_t version;
    uint32_t header_bytes;
    uint32_t cluster_bits;
    uint32_t cluster_bytes;
    uint64_t virtual_bytes;
    uint32_t crypt_method;
    uint32_t l1_count;
    uint64_t l1_off;
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_off;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order;
    uint32_t compression; /* 0 zlib, 1 zstd */

    bool extended_l2;
    uint32_t l2_entry_bytes;  /* 8, or 16 with extended L2 */
    uint32_t l2_entries_bits; /* log2 of the entries of one L2 table */

    struct header_span extensions; /* the whole extension area, the end marker included */
    uint32_t extension_count;
    struct header_span backing_name;
    struct header_span backing_format;
    struct header_span data_file_name;
    struct header_span feature_names;
    bool has_bitmaps_extension;
    uint32_t bitmap_count; /* of the extension; void unless autoclear has AUTOCLEAR_BITMAPS */
    uint64_t bitmap_directory_off;
    uint64_t bitmap_directory_bytes;
};

/*
 * How many bytes from the start of the file header_decode() needs: a whole cluster. head holds the first 72
 * bytes of the file. Returns 0, or -EINVAL with a message when this is no qcow2 image or cluster_bits is out
 * of range.
 */
int header_probe_cluster(const uint8_t *head, size_t head_bytes, uint32_t *ret_cluster_bytes);

/*
 * Decode and validate. buf holds the first cluster (short files: what there is, zero-filled). Returns 0,
 * -EINVAL for what no qcow2 image may contain, -ENOTSUP for an unknown version, an unknown incompatible
 * feature (by name) or compression type; the message names field and offset. Accepts encrypted images: the
 * caller refuses those.
 */
int header_decode(const uint8_t *buf, size_t bytes, struct header *ret);

/* Guest bytes that one L1 entry, and one L2 entry, map. */
static inline uint32_t header_l1_shift(const struct header *h)
{
    return h->cluster_bits + h->l2_entries_bits;
}

struct extension {
    uint32_t type;
    uint32_t bytes;    /* of data, without padding */
    uint32_t off;      /* of the 8-byte head in the file */
    uint32_t data_off; /* of the data in the file */
};

/*
 * Iterate: *cursor starts at h->extensions.off. Returns false at the end. Only for an area that
 * header_decode() accepted.
 */
bool extension_next(const struct header *h, const uint8_t *buf, uint32_t *cursor, struct extension *ret);

/* One 48-byte entry of the feature name table. */
struct feature_name {
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    char name[47];
};
#define FEATURE_NAME_BYTES 48u

/* index < h->feature_names.bytes / FEATURE_NAME_BYTES */
void feature_name_decode(const struct header *h, const uint8_t *buf, uint32_t index,
                         struct feature_name *ret);

#endif
