/* SPDX-License-Identifier: MIT */
/* Bounds on what an image may ask for: those of QEMU (block/qcow2.h), so that both open the same images. */
#ifndef FORMAT_LIMITS_H
#define FORMAT_LIMITS_H

#define CLUSTER_BITS_MIN 9u
#define CLUSTER_BITS_MAX 21u
#define CLUSTER_BITS_EXTENDED_MIN 14u
#define CLUSTER_BYTES_MAX (1u << CLUSTER_BITS_MAX)
#define SUBCLUSTERS_PER_CLUSTER 32u

#define L1_BYTES_MAX (32u << 20)
#define REFTABLE_BYTES_MAX (8u << 20)
#define REFCOUNT_ORDER_MAX 6u
#define BACKING_NAME_BYTES_MAX 1023u
#define BACKING_FORMAT_BYTES_MAX 15u
#define SNAPSHOTS_MAX 65536u
#define SNAPSHOT_TABLE_BYTES_MAX (64u << 20)
#define SNAPSHOT_EXTRA_BYTES_MAX 1024u
#define BITMAPS_MAX 65535u
#define BITMAP_DIRECTORY_BYTES_MAX (1024u * BITMAPS_MAX)
#define BITMAP_TABLE_BYTES_MAX (64u << 20)
#define BITMAP_NAME_BYTES_MAX 1023u
#define BITMAP_DATA_BYTES_MAX (512u << 20) /* clusters of one bitmap */

/* Host offsets have 56 bits (qcow2 spec, "L2 table entries"). */
#define HOST_OFF_MAX ((1ull << 56) - 1)
/* A virtual size above this could not be addressed with a signed 64-bit file offset. */
#define VIRTUAL_BYTES_MAX ((1ull << 63) - CLUSTER_BYTES_MAX)

#define SECTOR_BYTES 512u

#endif
