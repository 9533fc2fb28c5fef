/* SPDX-License-Identifier: MIT */
/* What the write path asks of a slice, against an answer found sector by sector. */
#include <criterion/criterion.h>
#include <endian.h>
#include <inttypes.h>
#include <stdint.h>
#include <string.h>

#include "base/checked.h"
#include "engine/map.h"
#include "tests/unit/image_builder.h"

#define CLUSTER_BITS 14u
#define CLUSTER (1ull << CLUSTER_BITS)
#define SUB (CLUSTER / 32)
#define SLICE_BYTES 512u
#define SECTOR 512u

static _Atomic uint64_t entries[SLICE_BYTES / 8];
static struct layer layer;
static uint64_t seed;

static uint64_t clusters(void)
{
    return SLICE_BYTES / layer.header.l2_entry_bytes;
}

static void make_layer(bool extended, bool data_file)
{
    memset((void *)entries, 0, sizeof entries);
    layer =
        (struct layer){.format = SCOW_FORMAT_QCOW2, .slice_bytes = SLICE_BYTES, .has_data_file = data_file};
    layer.header = (struct header){.version = 3,
                                   .cluster_bits = CLUSTER_BITS,
                                   .cluster_bytes = CLUSTER,
                                   .extended_l2 = extended,
                                   .l2_entry_bytes = extended ? 16 : 8,
                                   .l2_entries_bits = extended ? 10 : 11};
    layer.slice_shift = CLUSTER_BITS + (extended ? 5 : 6);
    layer.slice_mask = (1ull << layer.slice_shift) - 1;
    layer.plain_entries = !extended && !data_file;
}

/* A random entry; neighbours are often contiguous on the host. */
static void put_random(uint64_t i)
{
    const bool extended = layer.header.extended_l2;
    const uint64_t place = layer.has_data_file      ? i
                           : random_below(&seed, 4) ? 100 + i
                                                    : 300 + random_below(&seed, 20);
    uint64_t entry = place * CLUSTER, allocated = 0, zero = 0;

    switch (random_below(&seed, 8)) {
    case 0:
        entry = 0;
        break;
    case 1: /* shared; with a data file no entry is */
        entry |= layer.has_data_file ? ENTRY_COPIED : 0;
        break;
    case 2:
        entry = layer.has_data_file ? 0 : ENTRY_COMPRESSED | 12345;
        break;
    case 3:
        entry |= extended ? ENTRY_COPIED : ENTRY_COPIED | ENTRY_ZERO;
        break;
    default:
        entry |= ENTRY_COPIED;
    }
    if (extended && !(entry & ENTRY_COMPRESSED)) {
        const bool has_host = entry != 0;

        allocated = has_host ? random_below(&seed, 3) ? UINT32_MAX : (uint32_t)random_next(&seed) : 0;
        zero = (uint32_t)random_next(&seed) & (uint32_t)random_next(&seed) & (uint32_t)~allocated;
    }
    entries[extended ? 2 * i : i] = htobe64(entry);
    if (extended)
        entries[2 * i + 1] = htobe64(zero << 32 | allocated);
}

/* Of one sector: whether it may be written where it is, and where that is. */
static bool in_place(uint64_t off, uint64_t *ret_host)
{
    const bool extended = layer.header.extended_l2;
    const uint64_t i = off / CLUSTER, entry = be64toh(entries[extended ? 2 * i : i]);
    const uint64_t bitmap = extended ? be64toh(entries[2 * i + 1]) : UINT32_MAX;

    *ret_host = (layer.has_data_file ? off / CLUSTER * CLUSTER : entry & ENTRY_OFF_MASK) + off % CLUSTER;
    return entry & ENTRY_COPIED && !(entry & ENTRY_COMPRESSED) && (extended || !(entry & ENTRY_ZERO)) &&
           bitmap & 1u << (off % CLUSTER / SUB);
}

static uint64_t expected(uint64_t off, uint64_t bytes_max, uint64_t *ret_host)
{
    const uint64_t end = MIN(off + bytes_max, clusters() * CLUSTER);
    uint64_t at = off, host;

    if (!in_place(off, ret_host))
        return 0;
    while (at < end && in_place(at, &host) && host == *ret_host + (at - off))
        at += SECTOR;
    return MIN(at, end) - off;
}

static void compare(bool extended, bool data_file)
{
    for (int round = 0; round < 300; round++) {
        make_layer(extended, data_file);
        for (uint64_t i = 0; i < clusters(); i++)
            put_random(i);
        for (int k = 0; k < 60; k++) {
            const uint64_t off = random_below(&seed, clusters() * CLUSTER / SECTOR) * SECTOR;
            const uint64_t bytes_max = (1 + random_below(&seed, random_below(&seed, 2) ? 4 : 5000)) * SECTOR;
            uint64_t host = 1, expected_host = 2;
            const uint64_t n = map_in_place(&layer, entries, off, bytes_max, &host);

            cr_assert_eq(n, expected(off, bytes_max, &expected_host),
                         "%" PRIu64 " bytes at 0x%" PRIx64 " of at most %" PRIu64, n, off, bytes_max);
            if (n)
                cr_assert_eq(host, expected_host);
        }
    }
}

Test(map_write, plain_entries)
{
    seed = 1;
    compare(false, false);
}

Test(map_write, subclusters)
{
    seed = 2;
    compare(true, false);
}

Test(map_write, data_file)
{
    seed = 3;
    compare(false, true);
    compare(true, true);
}

static void check(uint64_t entry, enum entry_kind kind, bool copied, uint64_t host_off)
{
    struct map_fault fault;
    struct cluster_view v;

    entries[3] = htobe64(entry);
    cr_assert_eq(map_cluster(&layer, entries, 3 * CLUSTER + 700, &v, &fault), MAP_OK);
    cr_assert_eq(v.kind, kind);
    cr_assert_eq(v.copied, copied);
    cr_assert_eq(v.entry, entry);
    if (kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOCATED)
        cr_assert_eq(v.host_off, host_off);
}

Test(map_write, one_cluster)
{
    make_layer(false, false);
    check(0, ENTRY_UNALLOCATED, false, 0);
    check(9 * CLUSTER, ENTRY_NORMAL, false, 9 * CLUSTER);
    check(9 * CLUSTER | ENTRY_COPIED, ENTRY_NORMAL, true, 9 * CLUSTER);
    check(9 * CLUSTER | ENTRY_COPIED | ENTRY_ZERO, ENTRY_ZERO_ALLOCATED, true, 9 * CLUSTER);
    check(ENTRY_ZERO, ENTRY_ZERO_PLAIN, false, 0);
    check(ENTRY_COMPRESSED | 77777, ENTRY_IS_COMPRESSED, false, 0);
}

static void check_fault(uint64_t off, enum map_status status)
{
    struct map_fault fault;
    struct cluster_view v = {.entry = 77};
    uint64_t host;

    cr_assert_eq(map_cluster(&layer, entries, off, &v, &fault), status);
    cr_assert_eq(v.entry, 77, "untouched on a fault");
    cr_assert_eq(fault.guest_off, off / CLUSTER * CLUSTER);
    cr_assert_eq(map_in_place(&layer, entries, off, SECTOR, &host), 0, "nothing is written by a bad entry");
}

Test(map_write, faults)
{
    make_layer(false, false);
    entries[2] = htobe64((9 * CLUSTER + 512) | ENTRY_COPIED);
    check_fault(2 * CLUSTER + 512, MAP_UNALIGNED);
    layer.header.version = 2;
    entries[4] = htobe64(9 * CLUSTER | ENTRY_ZERO | ENTRY_COPIED);
    check_fault(4 * CLUSTER, MAP_ZERO_IN_V2);

    make_layer(true, false);
    entries[2 * 5] = htobe64(9 * CLUSTER | ENTRY_COPIED);
    entries[2 * 5 + 1] = htobe64(3ull << 32 | 1); /* data and zeros at once */
    check_fault(5 * CLUSTER, MAP_BITMAP);
    entries[2 * 6 + 1] = htobe64(1); /* data without a host cluster */
    check_fault(6 * CLUSTER + CLUSTER - SECTOR, MAP_BITMAP);

    make_layer(false, true);
    entries[7] = htobe64(8 * CLUSTER | ENTRY_COPIED);
    check_fault(7 * CLUSTER, MAP_DATA_FILE_OFF);
    entries[8] = htobe64(ENTRY_COMPRESSED | 999);
    check_fault(8 * CLUSTER, MAP_COMPRESSED_DATA_FILE);
}
