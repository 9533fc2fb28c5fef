/* SPDX-License-Identifier: MIT */
#include "cli/map_compressed.h"

#include <errno.h>

#define L1_OFF_MASK 0x00fffffffffffe00ull
#define L2_COMPRESSED (1ull << 62)

int compressed_map_init(struct compressed_map *map, struct scow_image *image)
{
    struct scow_info info = SCOW_INFO_INIT;
    const int err = scow_get_info(image, &info);

    if (err)
        return err;
    if (info.format != SCOW_FORMAT_QCOW2)
        return -ENOTSUP;
    *map = (struct compressed_map){
        .image = image,
        .cluster_bits = (uint32_t)__builtin_ctz(info.cluster_bytes),
        .entry_values = info.incompatible & SCOW_INCOMPAT_EXTENDED_L2 ? 2 : 1,
    };
    return 0;
}

static int read_batch(struct compressed_map *map, uint64_t cluster)
{
    const uint64_t table_entries = (1ull << map->cluster_bits) / 8 / map->entry_values;
    const uint32_t count = table_entries < COMPRESSED_BATCH ? (uint32_t)table_entries : COMPRESSED_BATCH;
    uint64_t l1_entry;
    int err;

    map->count = 0;
    map->first = cluster - cluster % count; /* both are powers of two: a batch lies in one table */
    err = scow_read_table(map->image, SCOW_TABLE_L1, 0, cluster / table_entries, 1, &l1_entry);
    if (err)
        return err;
    if (!(l1_entry & L1_OFF_MASK))
        return -ENOENT;
    err = scow_read_table(map->image, SCOW_TABLE_L2, l1_entry & L1_OFF_MASK, map->first % table_entries,
                          count, map->entries);
    if (!err)
        map->count = count;
    return err;
}

int compressed_map_lookup(struct compressed_map *map, uint64_t guest_off, uint64_t *ret_host_off)
{
    const uint64_t cluster = guest_off >> map->cluster_bits;

    if (cluster < map->first || cluster - map->first >= map->count) {
        const int err = read_batch(map, cluster);
        if (err)
            return err;
    }
    const uint64_t entry = map->entries[(cluster - map->first) * map->entry_values];
    if (!(entry & L2_COMPRESSED))
        return -ENOENT;
    *ret_host_off = entry & ((1ull << (62 - (map->cluster_bits - 8))) - 1);
    return 0;
}
