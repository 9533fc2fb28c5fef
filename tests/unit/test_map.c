/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "engine/map.h"
#include "format/entry.h"

#define CLUSTER 65536ull
#define SUB (CLUSTER / 32)
#define SLICE_BYTES 4096u

static _Atomic uint64_t entries[SLICE_BYTES / 8];
static struct layer layer;

static void make_layer(bool extended, uint32_t version, bool data_file)
{
    memset((void *)entries, 0, sizeof entries);
    layer = (struct layer){
        .format = SCOW_FORMAT_QCOW2, .slice_bytes = SLICE_BYTES, .has_data_file = data_file, .depth = 0};
    layer.header = (struct header){.version = version,
                                   .cluster_bits = 16,
                                   .cluster_bytes = CLUSTER,
                                   .extended_l2 = extended,
                                   .l2_entry_bytes = extended ? 16 : 8,
                                   .l2_entries_bits = extended ? 12 : 13};
    layer.slice_shift = extended ? 16 + 8 : 16 + 9;
    layer.plain_entries = !extended && !data_file;
}

static void set(uint64_t index, uint64_t entry)
{
    entries[index] = htobe64(entry);
}

static void set_extended(uint64_t index, uint64_t entry, uint32_t allocated, uint32_t zero)
{
    entries[2 * index] = htobe64(entry);
    entries[2 * index + 1] = htobe64((uint64_t)zero << 32 | allocated);
}

static struct run map(uint64_t off, uint64_t bytes)
{
    struct map_fault fault;
    struct run run;

    cr_assert_eq(map_slice(&layer, entries, off, bytes, &run, &fault), MAP_OK, "at 0x%lx", off);
    return run;
}

static void check(uint64_t off, uint64_t bytes, enum run_kind kind, uint64_t run_bytes, int64_t host_off)
{
    const struct run run = map(off, bytes);

    cr_assert_eq(run.kind, kind, "kind %d at 0x%lx", run.kind, off);
    cr_assert_eq(run.bytes, run_bytes, "0x%lx bytes at 0x%lx", run.bytes, off);
    cr_assert_eq(run.has_host, host_off >= 0, "at 0x%lx", off);
    if (host_off >= 0)
        cr_assert_eq(run.host_off, (uint64_t)host_off, "host offset 0x%lx at 0x%lx", run.host_off, off);
}

static void check_fault(uint64_t off, enum map_status status, const char *text)
{
    struct map_fault fault;
    struct run run = {.bytes = 77};
    char buf[256];

    cr_assert_eq(map_slice(&layer, entries, off, 512, &run, &fault), status);
    cr_assert_eq(run.bytes, 77, "outputs are written on success only");
    map_fault_text(&layer, &fault, buf, sizeof buf);
    cr_assert_str_eq(buf, text);
}

Test(map, unallocated)
{
    make_layer(false, 3, false);
    check(0, 512, RUN_UNALLOCATED, 512, -1);
    check(100, 3 * CLUSTER, RUN_UNALLOCATED, 3 * CLUSTER, -1);
    check(0, UINT64_MAX / 2, RUN_UNALLOCATED, 512 * CLUSTER, -1);
    check(511 * CLUSTER + 512, 10 * CLUSTER, RUN_UNALLOCATED, CLUSTER - 512, -1);
}

Test(map, data)
{
    make_layer(false, 3, false);
    set(2, 5 * CLUSTER | ENTRY_COPIED);
    check(2 * CLUSTER, CLUSTER, RUN_DATA, CLUSTER, 5 * CLUSTER);
    check(2 * CLUSTER + 1024, 2048, RUN_DATA, 2048, 5 * CLUSTER + 1024);
    check(2 * CLUSTER, 4 * CLUSTER, RUN_DATA, CLUSTER, 5 * CLUSTER);
    check(CLUSTER, 4 * CLUSTER, RUN_UNALLOCATED, CLUSTER, -1);
}

Test(map, neighbours_on_the_host_are_one_run)
{
    make_layer(false, 3, false);
    set(0, 5 * CLUSTER | ENTRY_COPIED);
    set(1, 6 * CLUSTER); /* shared with a snapshot: reads do not care */
    set(2, 7 * CLUSTER | ENTRY_COPIED);
    set(3, 9 * CLUSTER | ENTRY_COPIED);
    check(0, 10 * CLUSTER, RUN_DATA, 3 * CLUSTER, 5 * CLUSTER);
    check(CLUSTER + 512, 10 * CLUSTER, RUN_DATA, 2 * CLUSTER - 512, 6 * CLUSTER + 512);
    check(0, CLUSTER + 512, RUN_DATA, CLUSTER + 512, 5 * CLUSTER);
    check(3 * CLUSTER, 10 * CLUSTER, RUN_DATA, CLUSTER, 9 * CLUSTER);
}

Test(map, zeros)
{
    make_layer(false, 3, false);
    set(0, ENTRY_ZERO);
    set(1, ENTRY_ZERO);
    set(2, 8 * CLUSTER | ENTRY_COPIED | ENTRY_ZERO);
    set(3, 9 * CLUSTER | ENTRY_COPIED | ENTRY_ZERO);
    set(4, 20 * CLUSTER | ENTRY_COPIED | ENTRY_ZERO);
    check(0, 10 * CLUSTER, RUN_ZERO, 2 * CLUSTER, -1);
    check(2 * CLUSTER, 10 * CLUSTER, RUN_ZERO, 2 * CLUSTER, 8 * CLUSTER);
    check(4 * CLUSTER, 10 * CLUSTER, RUN_ZERO, CLUSTER, 20 * CLUSTER);
}

Test(map, compressed_is_one_cluster_whatever_follows)
{
    /* 64 KiB clusters: 54 bits of offset. The zero flag's bit is part of it. */
    const uint64_t entry = ENTRY_COMPRESSED | 3ull << 54 | 0x123401;

    make_layer(false, 3, false);
    set(0, entry);
    set(1, entry + 4096);
    check(512, 3 * CLUSTER, RUN_COMPRESSED, CLUSTER - 512, -1);
    cr_assert_eq(map(0, CLUSTER).entry, entry);
    const struct compressed_extent extent = entry_compressed(entry, 16);
    cr_assert_eq(extent.off, 0x123401);
    cr_assert_eq(extent.bytes, 4 * 512 - 1);
}

Test(map, version_2)
{
    make_layer(false, 2, false);
    set(0, 5 * CLUSTER | ENTRY_COPIED);
    set(3, 5 * CLUSTER | ENTRY_ZERO);
    check(0, CLUSTER, RUN_DATA, CLUSTER, 5 * CLUSTER);
    check_fault(
        3 * CLUSTER, MAP_ZERO_IN_V2,
        "L2 entry 0x0000000000050001 (bitmap 0x0000000000000000, L1 index 0, L2 index 3, guest offset "
        "0x30000) has the zero flag, which version 2 does not know");
}

Test(map, unaligned)
{
    make_layer(false, 3, false);
    set(7, 5 * CLUSTER + 512);
    check_fault(
        7 * CLUSTER + 1024, MAP_UNALIGNED,
        "L2 entry 0x0000000000050200 (bitmap 0x0000000000000000, L1 index 0, L2 index 7, guest offset "
        "0x70000) has a host offset that is not a multiple of the cluster size");
    /* What comes before it is good. */
    check(6 * CLUSTER, 3 * CLUSTER, RUN_UNALLOCATED, CLUSTER, -1);
}

Test(map, fault_far_out_names_its_table)
{
    make_layer(false, 3, false);
    set(1, 5 * CLUSTER + 512);
    check_fault((3ull << 29) + (5ull << 25) + CLUSTER, MAP_UNALIGNED,
                "L2 entry 0x0000000000050200 (bitmap 0x0000000000000000, L1 index 3, L2 index 2561, guest "
                "offset 0x6a010000) has a host offset that is not a multiple of the cluster size");
}

Test(map, data_file)
{
    make_layer(false, 3, true);
    set(0, ENTRY_COPIED); /* data at offset 0 */
    set(1, CLUSTER | ENTRY_COPIED);
    set(3, 3 * CLUSTER | ENTRY_COPIED | ENTRY_ZERO);
    set(4, 7 * CLUSTER | ENTRY_COPIED);
    set(5, ENTRY_COMPRESSED | 0x10000);
    check(0, 3 * CLUSTER, RUN_DATA, 2 * CLUSTER, 0);
    check(2 * CLUSTER, CLUSTER, RUN_UNALLOCATED, CLUSTER, -1);
    check(3 * CLUSTER, CLUSTER, RUN_ZERO, CLUSTER, 3 * CLUSTER);
    check_fault(
        4 * CLUSTER, MAP_DATA_FILE_OFF,
        "L2 entry 0x8000000000070000 (bitmap 0x0000000000000000, L1 index 0, L2 index 4, guest offset "
        "0x40000) does not map its guest offset to itself in the external data file");
    check_fault(
        5 * CLUSTER, MAP_COMPRESSED_DATA_FILE,
        "L2 entry 0x4000000000010000 (bitmap 0x0000000000000000, L1 index 0, L2 index 5, guest offset "
        "0x50000) is compressed although the image has an external data file");
}

/* ---- extended L2 ---- */

Test(extended, whole_clusters)
{
    make_layer(true, 3, false);
    set_extended(0, 5 * CLUSTER | ENTRY_COPIED, UINT32_MAX, 0);
    set_extended(1, 6 * CLUSTER | ENTRY_COPIED, UINT32_MAX, 0);
    set_extended(2, 0, 0, UINT32_MAX);
    check(0, 10 * CLUSTER, RUN_DATA, 2 * CLUSTER, 5 * CLUSTER);
    check(2 * CLUSTER, 10 * CLUSTER, RUN_ZERO, CLUSTER, -1);
    check(3 * CLUSTER, 1000 * CLUSTER, RUN_UNALLOCATED, 253 * CLUSTER, -1);
}

Test(extended, subclusters)
{
    make_layer(true, 3, false);
    /* 0-3 data, 4-7 zero, 8-30 unallocated, 31 data */
    set_extended(0, 5 * CLUSTER | ENTRY_COPIED, 0x8000000f, 0xf0);
    set_extended(1, 6 * CLUSTER | ENTRY_COPIED, 1, 0);
    check(0, CLUSTER, RUN_DATA, 4 * SUB, 5 * CLUSTER);
    check(3 * SUB + 512, CLUSTER, RUN_DATA, SUB - 512, 5 * CLUSTER + 3 * SUB + 512);
    check(5 * SUB, CLUSTER, RUN_ZERO, 3 * SUB, 5 * CLUSTER + 5 * SUB);
    cr_assert_eq(map(8 * SUB, CLUSTER).kind, RUN_UNALLOCATED);
    cr_assert_eq(map(8 * SUB, CLUSTER).bytes, 23 * SUB);
    check(31 * SUB, CLUSTER, RUN_DATA, 2 * SUB, 5 * CLUSTER + 31 * SUB);
}

Test(extended, every_subcluster_of_random_bitmaps)
{
    uint64_t state = 88172645463325252ull;

    make_layer(true, 3, false);
    for (int round = 0; round < 2000; round++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        const uint32_t zero = (uint32_t)state & (uint32_t)(state >> 16),
                       allocated = (uint32_t)(state >> 32) & ~zero;

        set_extended(4, 9 * CLUSTER | ENTRY_COPIED, allocated, zero);
        for (uint32_t i = 0; i < 32;) {
            const struct run run = map(4 * CLUSTER + i * SUB, (32 - i) * SUB);
            const enum run_kind kind = allocated >> i & 1 ? RUN_DATA
                                       : zero >> i & 1    ? RUN_ZERO
                                                          : RUN_UNALLOCATED;
            uint32_t end = i;

            cr_assert_eq(run.kind, kind);
            while (end < 32 && (allocated >> end & 1) == (allocated >> i & 1) &&
                   (zero >> end & 1) == (zero >> i & 1))
                end++;
            cr_assert_eq(run.bytes, (end - i) * SUB, "subcluster %u", i);
            if (kind == RUN_DATA)
                cr_assert_eq(run.host_off, 9 * CLUSTER + i * SUB);
            i = end;
        }
    }
}

Test(extended, bit_0_means_nothing)
{
    make_layer(true, 3, false);
    set_extended(0, 5 * CLUSTER | ENTRY_COPIED | ENTRY_ZERO, UINT32_MAX, 0);
    check(0, CLUSTER, RUN_DATA, CLUSTER, 5 * CLUSTER);
    set_extended(1, ENTRY_ZERO, 0, 0);
    check(CLUSTER, CLUSTER, RUN_UNALLOCATED, CLUSTER, -1);
}

Test(extended, invalid_bitmaps)
{
    make_layer(true, 3, false);
    set_extended(0, 5 * CLUSTER, 3, 2);
    check_fault(
        0, MAP_BITMAP,
        "L2 entry 0x0000000000050000 (bitmap 0x0000000200000003, L1 index 0, L2 index 0, guest offset "
        "0x0) has an invalid subcluster bitmap");
    set_extended(1, 0, 1, 0); /* allocated without a host cluster */
    check_fault(
        CLUSTER, MAP_BITMAP,
        "L2 entry 0x0000000000000000 (bitmap 0x0000000000000001, L1 index 0, L2 index 1, guest offset "
        "0x10000) has an invalid subcluster bitmap");
    set_extended(2, ENTRY_COMPRESSED | 0x50000, 1, 0);
    check_fault(
        2 * CLUSTER, MAP_BITMAP,
        "L2 entry 0x4000000000050000 (bitmap 0x0000000000000001, L1 index 0, L2 index 2, guest offset "
        "0x20000) has an invalid subcluster bitmap");
    set_extended(3, ENTRY_COMPRESSED | 0x50000, 0, 0);
    check(3 * CLUSTER, CLUSTER, RUN_COMPRESSED, CLUSTER, -1);
}

/* ---- L1 ---- */

Test(l1, alignment)
{
    char buf[256] = "";

    make_layer(false, 3, false);
    cr_assert_eq(map_check_l1(&layer, 5, 7 * CLUSTER | ENTRY_COPIED, buf, sizeof buf), 0);
    cr_assert_eq(map_check_l1(&layer, 5, 7 * CLUSTER + 4096, buf, sizeof buf), -EIO);
    cr_assert_str_eq(buf, "L1 entry 5 names an L2 table at offset 0x71000, which is not a multiple of the "
                          "cluster size");
}
