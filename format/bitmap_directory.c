/* SPDX-License-Identifier: MIT */
#include "format/bitmap_directory.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "format/limits.h"

int64_t bitmap_entry_decode(const uint8_t *buf, size_t bytes, uint64_t off, uint32_t cluster_bytes,
                            struct bitmap_entry *ret)
{
    struct bitmap_entry e = {0};
    uint64_t total;

    if (bytes < BITMAP_HEAD_BYTES)
        return 0;
    e.table_off = get_be64(buf);
    e.table_count = get_be32(buf + 8);
    e.flags = get_be32(buf + 12);
    e.type = buf[16];
    e.granularity_bits = buf[17];
    e.name_bytes = get_be16(buf + 18);
    e.extra_bytes = get_be32(buf + 20);

    if (!e.name_bytes || e.name_bytes > BITMAP_NAME_BYTES_MAX)
        return error_set(-EINVAL,
                         "bitmap directory: the entry at offset 0x%" PRIx64 " has a name of %" PRIu32
                         " bytes, not 1 to %u",
                         off, e.name_bytes, BITMAP_NAME_BYTES_MAX);
    if (!e.table_off || (e.table_off & (cluster_bytes - 1)) || e.table_count > BITMAP_TABLE_BYTES_MAX / 8 ||
        !range_within(e.table_off, (uint64_t)e.table_count * 8, HOST_OFF_MAX))
        return error_set(-EINVAL,
                         "bitmap directory: the entry at offset 0x%" PRIx64 " has an invalid table (offset "
                         "0x%" PRIx64 ", %" PRIu32 " entries)",
                         off, e.table_off, e.table_count);
    total = (uint64_t)BITMAP_HEAD_BYTES + e.extra_bytes + e.name_bytes;
    if (bytes < total)
        return 0;
    e.name = (const char *)buf + BITMAP_HEAD_BYTES + e.extra_bytes;
    *ret = e;
    return (int64_t)round_up(total, 8);
}
