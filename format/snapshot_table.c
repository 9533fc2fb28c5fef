/* SPDX-License-Identifier: MIT */
#include "format/snapshot_table.h"

#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "format/limits.h"

int64_t snapshot_entry_parse(const uint8_t *buf, size_t bytes, uint64_t off, uint64_t virtual_bytes,
                             struct snapshot_entry *ret)
{
    struct snapshot_entry e = {.disk_bytes = virtual_bytes, .icount = UINT64_MAX};
    uint64_t total;

    if (bytes < SNAPSHOT_HEAD_BYTES)
        return 0;
    e.l1_off = get_be64(buf);
    e.l1_count = get_be32(buf + 8);
    e.id_bytes = get_be16(buf + 12);
    e.name_bytes = get_be16(buf + 14);
    e.date_s = get_be32(buf + 16);
    e.date_ns = get_be32(buf + 20);
    e.vm_clock_ns = get_be64(buf + 24);
    e.vm_state_bytes = get_be32(buf + 32);
    e.extra_bytes = get_be32(buf + 36);

    if (e.extra_bytes > SNAPSHOT_EXTRA_BYTES_MAX)
        return error_set(-EINVAL,
                         "snapshot table: the entry at offset 0x%" PRIx64 " has %" PRIu32
                         " bytes of extra data, more than %u",
                         off, e.extra_bytes, SNAPSHOT_EXTRA_BYTES_MAX);
    total = (uint64_t)SNAPSHOT_HEAD_BYTES + e.extra_bytes + e.id_bytes + e.name_bytes;
    if (bytes < total)
        return 0;
    const uint8_t *extra = buf + SNAPSHOT_HEAD_BYTES;
    if (e.extra_bytes >= 8)
        e.vm_state_bytes = get_be64(extra);
    if (e.extra_bytes >= 16)
        e.disk_bytes = get_be64(extra + 8);
    if (e.extra_bytes >= 24)
        e.icount = get_be64(extra + 16);
    e.id = (const char *)extra + e.extra_bytes;
    e.name = e.id + e.id_bytes;
    *ret = e;
    return (int64_t)round_up(total, 8);
}

int64_t snapshot_entry_decode(const uint8_t *buf, size_t bytes, uint64_t off, uint32_t cluster_bytes,
                              uint64_t virtual_bytes, struct snapshot_entry *ret)
{
    struct snapshot_entry e;
    const int64_t n = snapshot_entry_parse(buf, bytes, off, virtual_bytes, &e);

    if (n <= 0)
        return n;
    if (e.l1_count > L1_BYTES_MAX / 8 || (e.l1_off & (cluster_bytes - 1)) ||
        !range_within(e.l1_off, (uint64_t)e.l1_count * 8, HOST_OFF_MAX))
        return error_set(-EINVAL,
                         "snapshot table: the entry at offset 0x%" PRIx64 " has an invalid L1 table (offset "
                         "0x%" PRIx64 ", %" PRIu32 " entries)",
                         off, e.l1_off, e.l1_count);
    *ret = e;
    return n;
}
