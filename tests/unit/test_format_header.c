/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "format/header.h"
#include "format/limits.h"

#define CLUSTER 65536u

static uint8_t cluster[CLUSTER_BYTES_MAX];

static void put(uint32_t off, uint32_t bytes, uint64_t value)
{
    for (uint32_t i = 0; i < bytes; i++)
        cluster[off + i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

/* The smallest image that is right: 1 MiB, everything in its place, no extensions. */
static void make_valid(uint32_t version)
{
    memset(cluster, 0, sizeof cluster);
    put(0, 4, QCOW2_MAGIC);
    put(4, 4, version);
    put(20, 4, 16);
    put(24, 8, 1 << 20);
    put(36, 4, 1);
    put(40, 8, 3 * CLUSTER);
    put(48, 8, CLUSTER);
    put(56, 4, 1);
    if (version >= 3) {
        put(96, 4, 4);
        put(100, 4, 112);
    }
}

/* Puts an extension behind the header's end at off; returns where the next one goes. */
static uint32_t put_extension(uint32_t off, uint32_t type, const void *data, uint32_t bytes)
{
    put(off, 4, type);
    put(off + 4, 4, bytes);
    memcpy(cluster + off + 8, data, bytes);
    return off + 8 + (bytes + 7) / 8 * 8;
}

static void expect_error(int want, const char *text)
{
    struct header h;
    const int ret = header_decode(cluster, CLUSTER, &h);

    cr_assert_eq(ret, want, "%s: got %d, want %d (%s)", text, ret, want, error_message());
    cr_assert(strstr(error_message(), text), "\"%s\" does not contain \"%s\"", error_message(), text);
}

static struct header expect_valid(void)
{
    struct header h;

    cr_assert_eq(header_decode(cluster, CLUSTER, &h), 0, "%s", error_message());
    return h;
}

Test(header, version_2)
{
    make_valid(2);
    /* what version 3 has here is no header field in version 2 */
    put(72, 8, 0);
    put(96, 4, 77);
    const struct header h = expect_valid();

    cr_assert_eq(h.version, 2);
    cr_assert_eq(h.header_bytes, 72);
    cr_assert_eq(h.refcount_order, 4);
    cr_assert_eq(h.incompatible, 0);
    cr_assert_eq(h.cluster_bytes, CLUSTER);
    cr_assert_eq(h.l2_entry_bytes, 8);
    cr_assert_eq(h.l2_entries_bits, 13);
    cr_assert_eq(header_l1_shift(&h), 29);
}

Test(header, version_3)
{
    make_valid(3);
    put(72, 8, INCOMPAT_DIRTY | INCOMPAT_CORRUPT | INCOMPAT_COMPRESSION | INCOMPAT_EXTENDED_L2);
    put(80, 8, COMPAT_LAZY_REFCOUNTS | 1ull << 40);
    put(88, 8, 1ull << 63);
    put(96, 4, 6);
    put(104, 1, 1);
    const struct header h = expect_valid();

    cr_assert_eq(h.refcount_order, 6);
    cr_assert_eq(h.compression, 1);
    cr_assert(h.extended_l2);
    cr_assert_eq(h.l2_entry_bytes, 16);
    cr_assert_eq(h.l2_entries_bits, 12);
    cr_assert_eq(h.compatible, COMPAT_LAZY_REFCOUNTS | 1ull << 40);
    cr_assert_eq(h.autoclear, 1ull << 63);
    cr_assert_eq(h.l1_off, 3 * CLUSTER);
    cr_assert_eq(h.reftable_off, CLUSTER);
}

Test(header, short_version_3_header_has_no_compression_type)
{
    make_valid(3);
    put(100, 4, 104);
    put(104, 4, EXTENSION_END); /* an extension area begins here */
    put(108, 4, 0);
    cr_assert_eq(expect_valid().compression, 0);
}

struct wrong_field {
    uint32_t off, bytes;
    uint64_t value;
    int err;
    const char *text;
};

Test(header, wrong_fields)
{
    static const struct wrong_field all[] = {
        {0, 4, 0x514649fa, -EINVAL, "no magic"},
        {4, 4, 1, -ENOTSUP, "version 1"},
        {4, 4, 4, -ENOTSUP, "version 4"},
        {20, 4, 8, -EINVAL, "cluster_bits at offset 20 is 8"},
        {20, 4, 22, -EINVAL, "cluster_bits at offset 20 is 22"},
        {8, 8, 71, -EINVAL, "backing file name's offset 0x47"},
        {8, 8, CLUSTER + 1, -EINVAL, "backing file name's offset 0x10001"},
        {24, 8, VIRTUAL_BYTES_MAX + 1, -EINVAL, "virtual size"},
        {24, 8, UINT64_MAX, -EINVAL, "virtual size"},
        {24, 8, (1 << 29) + 1, -EINVAL, "too few for the virtual size, which needs 2"},
        {32, 4, 3, -ENOTSUP, "encryption method 3"},
        {36, 4, 0, -EINVAL, "too few"},
        {36, 4, L1_BYTES_MAX / 8 + 1, -EINVAL, "the L1 table has 33554440 bytes"},
        {36, 4, UINT32_MAX, -EINVAL, "the L1 table has"},
        {40, 8, 3 * CLUSTER + 512, -EINVAL, "L1 table's offset 0x30200"},
        {40, 8, 1ull << 56, -EINVAL, "L1 table at offset 0x100000000000000 is out of range"},
        {48, 8, CLUSTER + 1, -EINVAL, "refcount table's offset 0x10001"},
        {48, 8, UINT64_MAX - (CLUSTER - 1), -EINVAL,
         "refcount table at offset 0xffffffffffff0000 is out of range"},
        {88, 8, AUTOCLEAR_DATA_FILE_RAW, -EINVAL, "the data file is said to be raw"},
        {56, 4, REFTABLE_BYTES_MAX / CLUSTER + 1, -EINVAL, "refcount table has"},
        {56, 4, UINT32_MAX, -EINVAL, "refcount table has"},
        {60, 4, SNAPSHOTS_MAX + 1, -EINVAL, "65537 snapshots"},
        {96, 4, 7, -EINVAL, "refcount_order at offset 96 is 7"},
        {100, 4, 103, -EINVAL, "header_length at offset 100 is 103"},
        {100, 4, CLUSTER + 1, -EINVAL, "header_length at offset 100 is 65537"},
        {104, 1, 1, -EINVAL, "compression type 1 at offset 104 contradicts"},
        {104, 1, 2, -ENOTSUP, "compression type 2"},
        {72, 8, INCOMPAT_COMPRESSION, -EINVAL, "compression type 0 at offset 104 contradicts"},
        {72, 8, 1 << 5, -ENOTSUP, "bit 5, which the image does not name"},
        {72, 8, 1ull << 63, -ENOTSUP, "bit 63"},
    };

    for (size_t i = 0; i < ARRAY_COUNT(all); i++) {
        make_valid(3);
        put(all[i].off, all[i].bytes, all[i].value);
        expect_error(all[i].err, all[i].text);
    }
}

Test(header, limits_themselves_are_allowed)
{
    static const struct wrong_field all[] = {
        {36, 4, L1_BYTES_MAX / 8, 0, ""},
        {56, 4, REFTABLE_BYTES_MAX / CLUSTER, 0, ""},
        {24, 8, 1 << 29, 0, ""},
        {24, 8, 0, 0, ""},
        {24, 8, 1234567, 0, ""}, /* no multiple of anything */
        {96, 4, 0, 0, ""},
    };

    for (size_t i = 0; i < ARRAY_COUNT(all); i++) {
        make_valid(3);
        put(all[i].off, all[i].bytes, all[i].value);
        expect_valid();
    }
    make_valid(3);
    put(100, 4, CLUSTER);
    cr_assert_eq(expect_valid().extension_count, 0);
    make_valid(3);
    put(60, 4, SNAPSHOTS_MAX);
    put(64, 8, 7 * CLUSTER);
    cr_assert_eq(expect_valid().snapshot_count, SNAPSHOTS_MAX);
}

Test(header, every_cluster_size)
{
    for (uint32_t bits = CLUSTER_BITS_MIN; bits <= CLUSTER_BITS_MAX; bits++) {
        struct header h;
        uint32_t bytes = 0;

        make_valid(3);
        put(20, 4, bits);
        put(24, 8, 4096);
        put(40, 8, 3ull << bits);
        put(48, 8, 1ull << bits);
        cr_assert_eq(header_probe_cluster(cluster, 72, &bytes), 0);
        cr_assert_eq(bytes, 1u << bits);
        cr_assert_eq(header_decode(cluster, bytes, &h), 0, "%u: %s", bits, error_message());
        cr_assert_eq(h.l2_entries_bits, bits - 3);

        put(72, 8, INCOMPAT_EXTENDED_L2);
        const int ret = header_decode(cluster, bytes, &h);
        cr_assert_eq(ret, bits < CLUSTER_BITS_EXTENDED_MIN ? -EINVAL : 0, "%u: %s", bits, error_message());
        if (ret == 0)
            cr_assert_eq(h.l2_entries_bits, bits - 4);
        else
            cr_assert(strstr(error_message(), "extended L2 entries need"));
    }
}

Test(header, short_files)
{
    struct header h;
    uint32_t bytes;

    make_valid(3);
    for (size_t n = 0; n < HEADER_V2_BYTES; n++) {
        cr_assert_eq(header_probe_cluster(cluster, n, &bytes), -EINVAL);
        cr_assert_eq(header_decode(cluster, n, &h), -EINVAL);
    }
    cr_assert(strstr(error_message(), "too short"));
    cr_assert_eq(header_decode(cluster, CLUSTER - 1, &h), -EINVAL);
    cr_assert(strstr(error_message(), "shorter than its first cluster"));
}

Test(header, backing_name)
{
    make_valid(3);
    memcpy(cluster + 512, "base.img", 8);
    put(8, 8, 512);
    put(16, 4, 8);
    struct header h = expect_valid();
    cr_assert_eq(h.backing_name.off, 512);
    cr_assert_eq(h.backing_name.bytes, 8);

    cluster[515] = 0;
    expect_error(-EINVAL, "contains a zero byte");

    memset(cluster + 512, 'x', 2048);
    put(16, 4, BACKING_NAME_BYTES_MAX);
    expect_valid();
    put(16, 4, BACKING_NAME_BYTES_MAX + 1);
    expect_error(-EINVAL, "is too long (1024 bytes)");

    /* as much as fits behind it in the cluster */
    put(8, 8, CLUSTER - 4);
    memset(cluster + CLUSTER - 4, 'x', 4);
    put(16, 4, 4);
    expect_valid();
    put(16, 4, 5);
    expect_error(-EINVAL, "is too long (5 bytes)");
}

Test(header, extensions)
{
    static const char names[2 * FEATURE_NAME_BYTES] = "\0\0dirty bit\0";
    static const char unknown[] = "whatever";
    struct extension e;
    uint32_t off, cursor;

    make_valid(3);
    off = put_extension(112, EXTENSION_BACKING_FORMAT, "qcow2", 5);
    off = put_extension(off, 0x12345678, unknown, 8);
    off = put_extension(off, EXTENSION_FEATURE_NAMES, names, sizeof names);
    off = put_extension(off, EXTENSION_DATA_FILE, "data.raw", 8);
    off = put_extension(off, 0x9abcdef0, "", 0);
    put(off, 8, 0);
    const struct header h = expect_valid();

    cr_assert_eq(h.extension_count, 5);
    cr_assert_eq(h.extensions.off, 112);
    cr_assert_eq(h.extensions.bytes, off + 8 - 112);
    cr_assert_eq(memcmp(cluster + h.backing_format.off, "qcow2", 5), 0);
    cr_assert_eq(h.backing_format.bytes, 5);
    cr_assert_eq(h.data_file_name.bytes, 8);
    cr_assert_eq(h.feature_names.bytes, sizeof names);

    cursor = h.extensions.off;
    static const uint32_t types[] = {EXTENSION_BACKING_FORMAT, 0x12345678, EXTENSION_FEATURE_NAMES,
                                     EXTENSION_DATA_FILE, 0x9abcdef0};
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        cr_assert(extension_next(&h, cluster, &cursor, &e));
        cr_assert_eq(e.type, types[i]);
        cr_assert_eq(e.data_off, e.off + 8);
        if (e.type == 0x12345678)
            cr_assert(e.bytes == 8 && memcmp(cluster + e.data_off, unknown, 8) == 0);
    }
    cr_assert_not(extension_next(&h, cluster, &cursor, &e));
}

Test(header, extensions_without_an_end_marker)
{
    struct extension e;
    uint32_t cursor, count = 0;

    /* the area ends where the backing name begins */
    make_valid(3);
    put_extension(112, 0x11111111, "abc", 3);
    put(8, 8, 123); /* 112 + 8 + 3: not even the padding fits */
    put(16, 4, 4);
    memcpy(cluster + 123, "base", 4);
    const struct header h = expect_valid();
    cr_assert_eq(h.extension_count, 1);
    for (cursor = h.extensions.off; extension_next(&h, cluster, &cursor, &e); count++)
        cr_assert_eq(e.bytes, 3);
    cr_assert_eq(count, 1);

    put(8, 8, 122);
    expect_error(-EINVAL, "beyond the header area's end at 0x7a");

    /* in version 2 as well, from byte 72 on */
    make_valid(2);
    put_extension(72, EXTENSION_BACKING_FORMAT, "raw", 3);
    cr_assert_eq(expect_valid().backing_format.bytes, 3);
}

Test(header, wrong_extensions)
{
    static const uint8_t zeros[2048];

    make_valid(3);
    put_extension(112, 0x22222222, "", 0);
    put(116, 4, CLUSTER - 119);
    expect_error(-EINVAL, "extension at offset 0x70 (type 0x22222222) has 65417 bytes");
    put(116, 4, UINT32_MAX);
    expect_error(-EINVAL, "extension at offset 0x70");
    put(116, 4, CLUSTER - 120);
    expect_valid();

    make_valid(3);
    put_extension(112, EXTENSION_BACKING_FORMAT, "0123456789abcdef", 16);
    expect_error(-EINVAL, "backing format extension at offset 0x70 is too long (16 bytes)");
    put(116, 4, 15);
    cluster[112 + 8 + 15] = 0;
    expect_valid();

    make_valid(3);
    put_extension(112, EXTENSION_DATA_FILE, "a\0b", 3);
    expect_error(-EINVAL, "data file name");
    memset(cluster + 120, 'n', 2048);
    put(116, 4, BACKING_NAME_BYTES_MAX + 1);
    expect_error(-EINVAL, "data file name");

    make_valid(3);
    put_extension(112, EXTENSION_CRYPTO, zeros, 16);
    expect_error(-EINVAL, "unexpected crypto header extension");
    put(32, 4, 2);
    expect_valid();
    put(116, 4, 15);
    expect_error(-EINVAL, "unexpected crypto header extension");
}

static void make_bitmaps(uint32_t count, uint32_t reserved, uint64_t bytes, uint64_t off)
{
    const uint32_t heads[2] = {htobe32(count), htobe32(reserved)};
    const uint64_t words[2] = {htobe64(bytes), htobe64(off)};
    uint8_t data[24];

    memcpy(data, heads, 8);
    memcpy(data + 8, words, 16);
    make_valid(3);
    put(88, 8, AUTOCLEAR_BITMAPS);
    put_extension(112, EXTENSION_BITMAPS, data, sizeof data);
}

Test(header, bitmaps_extension)
{
    make_bitmaps(2, 0, 64, 5 * CLUSTER);
    struct header h = expect_valid();
    cr_assert(h.has_bitmaps_extension);
    cr_assert_eq(h.bitmap_count, 2);
    cr_assert_eq(h.bitmap_directory_bytes, 64);
    cr_assert_eq(h.bitmap_directory_off, 5 * CLUSTER);

    /* without the autoclear bit its content means nothing, however wrong it is; its size still does */
    make_bitmaps(0, 1, 0, 1);
    put(88, 8, 0);
    h = expect_valid();
    cr_assert_not(h.has_bitmaps_extension);
    cr_assert_eq(h.bitmap_count, 0);
    put(116, 4, 16);
    expect_error(-EINVAL, "has 16 bytes, not 24");

    make_bitmaps(2, 1, 64, 5 * CLUSTER);
    expect_error(-EINVAL, "reserved");
    make_bitmaps(0, 0, 64, 5 * CLUSTER);
    expect_error(-EINVAL, "counts 0 bitmaps");
    make_bitmaps(BITMAPS_MAX, 0, 64, 5 * CLUSTER);
    expect_valid();
    make_bitmaps(BITMAPS_MAX + 1, 0, 64, 5 * CLUSTER);
    expect_error(-EINVAL, "counts 65536 bitmaps");
    make_bitmaps(1, 0, 0, 5 * CLUSTER);
    expect_error(-EINVAL, "empty directory");
    make_bitmaps(1, 0, 64, 5 * CLUSTER + 8);
    expect_error(-EINVAL, "bitmap directory's offset 0x50008");
    make_bitmaps(1, 0, BITMAP_DIRECTORY_BYTES_MAX + 1, 5 * CLUSTER);
    expect_error(-EINVAL, "bitmap directory has");
}

Test(header, unknown_feature_is_named)
{
    static char names[3 * FEATURE_NAME_BYTES];

    /* compatible bit 9 has the same number; the name of incompatible bit 9 tries to drive the terminal */
    names[0] = 1;
    names[1] = 9;
    memcpy(names + 2, "wrong", 5);
    names[FEATURE_NAME_BYTES + 1] = 9;
    memcpy(names + FEATURE_NAME_BYTES + 2, "time\033travel", 11);
    make_valid(3);
    put(72, 8, 1 << 9);
    put_extension(112, EXTENSION_FEATURE_NAMES, names, sizeof names);
    expect_error(-ENOTSUP, "incompatible feature \"time\\x1btravel\" (bit 9) is not supported");
}

Test(header, feature_name_of_full_length_is_terminated)
{
    static char names[FEATURE_NAME_BYTES];
    struct feature_name f;

    memset(names, 'n', sizeof names);
    names[0] = 2;
    names[1] = 63;
    make_valid(3);
    put_extension(112, EXTENSION_FEATURE_NAMES, names, sizeof names);
    const struct header h = expect_valid();
    feature_name_decode(&h, cluster, 0, &f);
    cr_assert_eq(f.type, 2);
    cr_assert_eq(f.bit, 63);
    cr_assert_eq(strlen(f.name), 46);
}

Test(header, wrong_snapshot_table)
{
    make_valid(3);
    put(64, 8, 12345); /* QEMU refuses it without a snapshot, too */
    expect_error(-EINVAL, "snapshot table's offset 0x3039");
    put(60, 4, 1);
    expect_error(-EINVAL, "snapshot table's offset 0x3039");
}

Test(header, failure_leaves_the_output_alone)
{
    struct header h, before;

    memset(&h, 0x5a, sizeof h);
    before = h;
    make_valid(3);
    put(36, 4, 0);
    cr_assert_eq(header_decode(cluster, CLUSTER, &h), -EINVAL);
    cr_assert_eq(memcmp(&h, &before, sizeof h), 0);
}
