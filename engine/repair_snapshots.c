/* SPDX-License-Identifier: MIT */
/* Snapshot table entries of version 3 images that lack the sizes of VM state and disk (as version 2 allows).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "engine/repair_parts.h"
#include "format/snapshot_table.h"

/* What this library and QEMU write: VM state size, disk size, instruction count. */
#define EXTRA_BYTES 24u
#define EXTRA_BYTES_OFF 36u /* of the field in the entry's head */

uint64_t repair_snapshots_bytes_max(const struct check *c)
{
    if (!c->snapshots_incomplete)
        return 0;
    return round_up(c->snapshot_table_bytes, 8) + c->header->snapshot_count * (uint64_t)(EXTRA_BYTES + 8);
}

/* One entry of the old table, completed; returns its bytes with padding. */
static uint64_t complete(const struct snapshot_entry *e, const uint8_t *from, uint8_t *to)
{
    const uint32_t names_bytes = e->id_bytes + e->name_bytes;
    uint8_t *const extra = to + SNAPSHOT_HEAD_BYTES;

    memcpy(to, from, SNAPSHOT_HEAD_BYTES);
    put_be32(to + EXTRA_BYTES_OFF, EXTRA_BYTES);
    put_be64(extra, e->vm_state_bytes);
    put_be64(extra + 8, e->disk_bytes);
    put_be64(extra + 16, e->icount);
    memcpy(extra + EXTRA_BYTES, from + SNAPSHOT_HEAD_BYTES + e->extra_bytes, names_bytes);
    return round_up(SNAPSHOT_HEAD_BYTES + EXTRA_BYTES + names_bytes, 8);
}

static int convert(const struct check *c, const uint8_t *old, uint64_t old_bytes, uint8_t *table,
                   uint64_t *ret_bytes)
{
    uint64_t from = 0, to = 0;

    for (uint32_t i = 0; i < c->header->snapshot_count; i++) {
        struct snapshot_entry e;
        const int64_t n =
            snapshot_entry_parse(old + from, (size_t)(old_bytes - from), c->header->snapshots_off + from,
                                 round_down(c->header->virtual_bytes, SECTOR_BYTES), &e);

        if (n <= 0)
            return n < 0 ? (int)n : error_set(-EIO, "the snapshot table changes while it is repaired");
        if (e.extra_bytes < SNAPSHOT_EXTRA_BYTES_V3) {
            to += complete(&e, old + from, table + to);
        } else {
            memcpy(table + to, old + from, (size_t)MIN((uint64_t)n, old_bytes - from));
            to += (uint64_t)n;
        }
        from = MIN(from + (uint64_t)n, old_bytes);
    }
    *ret_bytes = round_up(to, c->cluster_bytes);
    return 0;
}

int repair_snapshots_build(struct check *c, uint8_t **ret_table, uint64_t *ret_bytes)
{
    const uint64_t old_bytes = c->snapshot_table_bytes;
    uint8_t *const old = malloc(old_bytes + 1);
    uint8_t *const table = calloc(1, round_up(repair_snapshots_bytes_max(c), c->cluster_bytes));
    int ret = -ENOMEM;

    if (!old || !table)
        error_set(ret, "out of memory");
    else
        ret = file_read(c->file, old, old_bytes, c->header->snapshots_off);
    if (ret == 0)
        ret = convert(c, old, old_bytes, table, ret_bytes);
    free(old);
    if (ret < 0)
        free(table);
    else
        *ret_table = table;
    return ret;
}
