/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "format/bitmap_directory.h"
#include "format/limits.h"
#include "format/snapshot_table.h"

#define CLUSTER 65536u
#define VIRTUAL (5ull << 30)

static uint8_t buf[256 << 10];

static void put(uint32_t off, uint32_t bytes, uint64_t value)
{
    for (uint32_t i = 0; i < bytes; i++)
        buf[off + i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

static void make_snapshot(uint32_t extra_bytes)
{
    memset(buf, 0xee, sizeof buf);
    put(0, 8, 7 * CLUSTER);
    put(8, 4, 3);
    put(12, 2, 1);
    put(14, 2, 4);
    put(16, 4, 1000);
    put(20, 4, 2000);
    put(24, 8, 3000);
    put(32, 4, 4000);
    put(36, 4, extra_bytes);
    put(40, 8, 5ull << 33);
    put(48, 8, 6ull << 33);
    put(56, 8, 7000);
    memcpy(buf + 40 + extra_bytes, "1name", 5);
}

static int64_t decode_snapshot(size_t bytes, struct snapshot_entry *ret)
{
    return snapshot_entry_decode(buf, bytes, 0x40000, CLUSTER, VIRTUAL, ret);
}

Test(snapshot, extra_data_of_every_size)
{
    for (uint32_t extra = 0; extra <= SNAPSHOT_EXTRA_BYTES_MAX; extra++) {
        struct snapshot_entry e;

        make_snapshot(extra);
        cr_assert_eq(decode_snapshot(sizeof buf, &e), (40 + extra + 5 + 7) / 8 * 8, "%u: %s", extra,
                     error_message());
        cr_assert_eq(e.l1_off, 7 * CLUSTER);
        cr_assert_eq(e.l1_count, 3);
        cr_assert(e.date_s == 1000 && e.date_ns == 2000 && e.vm_clock_ns == 3000);
        cr_assert_eq(e.vm_state_bytes, extra >= 8 ? 5ull << 33 : 4000);
        cr_assert_eq(e.disk_bytes, extra >= 16 ? 6ull << 33 : VIRTUAL);
        cr_assert_eq(e.icount, extra >= 24 ? 7000 : UINT64_MAX);
        cr_assert_eq(e.extra_bytes, extra);
        cr_assert(e.id_bytes == 1 && memcmp(e.id, "1", 1) == 0);
        cr_assert(e.name_bytes == 4 && memcmp(e.name, "name", 4) == 0);
    }
}

Test(snapshot, truncated_entry_asks_for_more)
{
    struct snapshot_entry e;

    make_snapshot(16);
    for (size_t n = 0; n < 40 + 16 + 5; n++)
        cr_assert_eq(decode_snapshot(n, &e), 0, "%zu bytes", n);
    cr_assert_eq(decode_snapshot(40 + 16 + 5, &e), 64);

    put(12, 2, UINT16_MAX);
    put(14, 2, UINT16_MAX);
    cr_assert_eq(decode_snapshot(40 + 16 + 2 * UINT16_MAX - 1, &e), 0);
    cr_assert_eq(decode_snapshot(40 + 16 + 2 * UINT16_MAX, &e), (40 + 16 + 2 * UINT16_MAX + 7) / 8 * 8);
    cr_assert_eq(e.name_bytes, UINT16_MAX);
}

Test(snapshot, too_much_extra_data)
{
    struct snapshot_entry e;

    make_snapshot(16);
    put(36, 4, SNAPSHOT_EXTRA_BYTES_MAX + 1);
    cr_assert_eq(decode_snapshot(sizeof buf, &e), -EINVAL);
    cr_assert(strstr(error_message(), "0x40000 has 1025 bytes of extra data"), "%s", error_message());
    put(36, 4, UINT32_MAX);
    cr_assert_eq(decode_snapshot(SNAPSHOT_HEAD_BYTES, &e), -EINVAL);
}

Test(snapshot, wrong_l1_table)
{
    static const struct {
        uint64_t off;
        uint32_t count;
    } wrong[] = {
        {7 * CLUSTER + 512, 3},
        {7 * CLUSTER, L1_BYTES_MAX / 8 + 1},
        {1ull << 56, 3},
        {UINT64_MAX - (CLUSTER - 1), UINT32_MAX},
    };
    struct snapshot_entry e;

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        make_snapshot(16);
        put(0, 8, wrong[i].off);
        put(8, 4, wrong[i].count);
        cr_assert_eq(decode_snapshot(sizeof buf, &e), -EINVAL);
        cr_assert(strstr(error_message(), "invalid L1 table"));
        /* the check wants to see it all the same */
        cr_assert_eq(snapshot_entry_parse(buf, sizeof buf, 0, VIRTUAL, &e), 64);
        cr_assert(e.l1_off == wrong[i].off && e.l1_count == wrong[i].count);
    }
    make_snapshot(16);
    put(8, 4, L1_BYTES_MAX / 8);
    cr_assert_eq(decode_snapshot(sizeof buf, &e), 64);
}

static void make_bitmap(uint32_t extra_bytes, uint32_t name_bytes)
{
    memset(buf, 0, sizeof buf);
    put(0, 8, 9 * CLUSTER);
    put(8, 4, 2);
    put(12, 4, 5);
    put(16, 1, 1);
    put(17, 1, 16);
    put(18, 2, name_bytes);
    put(20, 4, extra_bytes);
    memset(buf + 24 + extra_bytes, 'n', name_bytes);
}

static int64_t decode_bitmap(size_t bytes, struct bitmap_entry *ret)
{
    return bitmap_entry_decode(buf, bytes, 0x50000, CLUSTER, ret);
}

Test(bitmap, fields)
{
    struct bitmap_entry e;

    make_bitmap(3, 6);
    cr_assert_eq(decode_bitmap(sizeof buf, &e), 40);
    cr_assert_eq(e.table_off, 9 * CLUSTER);
    cr_assert_eq(e.table_count, 2);
    cr_assert_eq(e.flags, 5);
    cr_assert_eq(e.type, 1);
    cr_assert_eq(e.granularity_bits, 16);
    cr_assert_eq(e.extra_bytes, 3);
    cr_assert(e.name_bytes == 6 && memcmp(e.name, "nnnnnn", 6) == 0);
}

Test(bitmap, truncated_entry_asks_for_more)
{
    struct bitmap_entry e;

    make_bitmap(8, 1023);
    for (size_t n = 0; n < 24 + 8 + 1023; n++)
        cr_assert_eq(decode_bitmap(n, &e), 0, "%zu bytes", n);
    cr_assert_eq(decode_bitmap(24 + 8 + 1023, &e), 1056);
    put(20, 4, UINT32_MAX);
    cr_assert_eq(decode_bitmap(sizeof buf, &e), 0);
}

Test(bitmap, wrong_name)
{
    struct bitmap_entry e;

    make_bitmap(0, 0);
    cr_assert_eq(decode_bitmap(sizeof buf, &e), -EINVAL);
    cr_assert(strstr(error_message(), "0x50000 has a name of 0 bytes"));
    make_bitmap(0, 1024);
    cr_assert_eq(decode_bitmap(sizeof buf, &e), -EINVAL);
    cr_assert(strstr(error_message(), "name of 1024 bytes"));
}

Test(bitmap, wrong_table)
{
    static const struct {
        uint64_t off;
        uint32_t count;
    } wrong[] = {
        {0, 1},
        {9 * CLUSTER + 8, 1},
        {9 * CLUSTER, BITMAP_TABLE_BYTES_MAX / 8 + 1},
        {1ull << 56, 1},
        {UINT64_MAX - (CLUSTER - 1), 8192},
    };
    struct bitmap_entry e;

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        make_bitmap(0, 1);
        put(0, 8, wrong[i].off);
        put(8, 4, wrong[i].count);
        cr_assert_eq(decode_bitmap(sizeof buf, &e), -EINVAL, "case %zu", i);
        cr_assert(strstr(error_message(), "invalid table"));
    }
}
