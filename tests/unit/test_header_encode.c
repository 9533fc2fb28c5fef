/* SPDX-License-Identifier: MIT */
/* header_encode(): what it writes, header_decode() reads; names up to the last byte that fits. */
#include <criterion/criterion.h>

#include <errno.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/error.h"
#include "format/header.h"
#include "format/header_encode.h"
#include "format/limits.h"

static uint8_t cluster[CLUSTER_BYTES_MAX];

static struct header_description small(uint32_t version, uint32_t cluster_bits)
{
    return (struct header_description){.version = version,
                                       .cluster_bits = cluster_bits,
                                       .virtual_bytes = 1 << 20,
                                       .l1_count = 64,
                                       .l1_off = 3ull << cluster_bits,
                                       .reftable_off = 1ull << cluster_bits,
                                       .reftable_clusters = 1,
                                       .refcount_order = 4};
}

static struct header decode(const struct header_description *d)
{
    struct header h;

    cr_assert_eq(header_decode(cluster, 1u << d->cluster_bits, &h), 0, "%s", error_message());
    return h;
}

/* Encodes and decodes; the fields that both have are equal. */
static struct header round_trip(const struct header_description *d)
{
    struct header h;

    memset(cluster, 0xa5, sizeof cluster); /* nothing of what was there shows */
    cr_assert_eq(header_encode(d, cluster), 0, "%s", error_message());
    h = decode(d);
    cr_assert_eq(h.version, d->version);
    cr_assert_eq(h.header_bytes, d->version == 2 ? 72 : 112);
    cr_assert_eq(h.cluster_bits, d->cluster_bits);
    cr_assert_eq(h.virtual_bytes, d->virtual_bytes);
    cr_assert_eq(h.l1_count, d->l1_count);
    cr_assert_eq(h.l1_off, d->l1_off);
    cr_assert_eq(h.reftable_off, d->reftable_off);
    cr_assert_eq(h.reftable_clusters, d->reftable_clusters);
    cr_assert_eq(h.refcount_order, d->refcount_order);
    cr_assert_eq(h.incompatible, d->incompatible);
    cr_assert_eq(h.compatible, d->compatible);
    cr_assert_eq(h.autoclear, d->autoclear);
    cr_assert_eq(h.compression, d->compression);
    cr_assert_eq(h.crypt_method, 0);
    cr_assert_eq(h.snapshot_count, 0);
    return h;
}

static void expect_span(struct header_span span, const char *want)
{
    cr_assert_eq(span.bytes, want ? strlen(want) : 0);
    cr_assert(!want || !memcmp(cluster + span.off, want, span.bytes));
}

Test(header_encode, every_version_and_cluster_size)
{
    for (uint32_t version = 2; version <= 3; version++)
        for (uint32_t bits = CLUSTER_BITS_MIN; bits <= CLUSTER_BITS_MAX; bits++) {
            struct header_description d = small(version, bits);

            d.l1_count = 4096; /* enough for 1 MiB of 512-byte clusters */
            const struct header h = round_trip(&d);
            expect_span(h.backing_name, NULL);
            expect_span(h.backing_format, NULL);
            expect_span(h.data_file_name, NULL);
            /* as QEMU: only where the table always leaves room for names */
            cr_assert_eq(h.feature_names.bytes > 0, version == 3 && bits > 12, "version %u, %u bits", version,
                         bits);
        }
}

Test(header_encode, features_and_names)
{
    struct header_description d = small(3, 16);

    d.incompatible = INCOMPAT_DATA_FILE | INCOMPAT_COMPRESSION | INCOMPAT_EXTENDED_L2;
    d.compatible = COMPAT_LAZY_REFCOUNTS;
    d.autoclear = AUTOCLEAR_DATA_FILE_RAW;
    d.compression = 1;
    d.refcount_order = 6;
    d.backing_name = "base.qcow2";
    d.backing_format = "qcow2";
    d.data_file_name = "disk.data";
    const struct header h = round_trip(&d);
    expect_span(h.backing_name, "base.qcow2");
    expect_span(h.backing_format, "qcow2");
    expect_span(h.data_file_name, "disk.data");
    cr_assert_eq(h.backing_name.off, h.extensions.off + h.extensions.bytes, "right behind the end marker");
}

/* The order is QEMU's, and every length that is no multiple of 8 is padded. */
Test(header_encode, extensions_in_order)
{
    static const uint32_t want[] = {EXTENSION_BACKING_FORMAT, EXTENSION_DATA_FILE, EXTENSION_FEATURE_NAMES};
    struct header_description d = small(3, 16);
    struct extension e;
    uint32_t cursor, count = 0;

    d.backing_name = "b";
    d.backing_format = "raw";
    d.data_file_name = "123456789";
    const struct header h = round_trip(&d);
    cursor = h.extensions.off;
    while (extension_next(&h, cluster, &cursor, &e)) {
        cr_assert_lt(count, 3);
        cr_assert_eq(e.type, want[count++]);
        for (uint32_t i = e.bytes; i % 8; i++)
            cr_assert_eq(cluster[e.data_off + i], 0);
    }
    cr_assert_eq(count, 3);
    cr_assert_eq(h.extension_count, 3);
}

Test(header_encode, feature_names)
{
    struct header_description d = small(3, 16);
    const struct header h = round_trip(&d);
    const uint32_t count = h.feature_names.bytes / FEATURE_NAME_BYTES;
    uint64_t known[3] = {0};
    bool own = false;

    cr_assert_eq(h.feature_names.bytes % FEATURE_NAME_BYTES, 0);
    for (uint32_t i = 0; i < count; i++) {
        struct feature_name f;

        feature_name_decode(&h, cluster, i, &f);
        cr_assert_lt(f.type, 3);
        cr_assert_neq(f.name[0], 0);
        cr_assert_eq(known[f.type] & 1ull << f.bit, 0, "named twice");
        known[f.type] |= 1ull << f.bit;
        own |=
            f.type == 2 && 1ull << f.bit == AUTOCLEAR_SHARDCOW && !strcmp(f.name, "shardcow: image in use");
    }
    cr_assert_eq(known[0], INCOMPAT_KNOWN);
    cr_assert_eq(known[1], COMPAT_LAZY_REFCOUNTS);
    cr_assert_eq(known[2], AUTOCLEAR_BITMAPS | AUTOCLEAR_DATA_FILE_RAW | AUTOCLEAR_SHARDCOW);
    cr_assert(own);
}

static const char *name_of(size_t bytes)
{
    static char name[2000];

    cr_assert_lt(bytes, sizeof name);
    memset(name, 'n', bytes);
    name[bytes] = '\0';
    return name;
}

static void expect_refused(const struct header_description *d, const char *text)
{
    cr_assert_eq(header_encode(d, cluster), -EINVAL, "%s", text);
    cr_assert(strstr(error_message(), text), "\"%s\" does not contain \"%s\"", error_message(), text);
}

/* 512 bytes: 112 of header, 8 + 8 of the format, 8 of the end marker; 376 are left for the name. */
Test(header_encode, backing_name_that_just_fits)
{
    struct header_description d = small(3, 9);

    d.backing_format = "qcow2";
    d.backing_name = name_of(376);
    const struct header h = round_trip(&d);
    cr_assert_eq(h.backing_name.off + h.backing_name.bytes, 512);
    d.backing_name = name_of(377);
    expect_refused(&d, "the backing file name does not fit");

    d = small(2, 9);
    d.backing_name = name_of(512 - 72 - 8);
    round_trip(&d);
    d.backing_name = name_of(512 - 72 - 8 + 1);
    expect_refused(&d, "the backing file name does not fit");
}

Test(header_encode, extension_that_just_fits)
{
    struct header_description d = small(3, 9);

    d.incompatible = INCOMPAT_DATA_FILE;
    d.data_file_name = name_of(512 - 112 - 8 - 8);
    const struct header h = round_trip(&d);
    cr_assert_eq(h.data_file_name.bytes, 384);
    d.data_file_name = name_of(385);
    expect_refused(&d, "the end of the extensions does not fit");
    d.data_file_name = name_of(393);
    expect_refused(&d, "the data file name does not fit");
}

Test(header_encode, name_limits)
{
    struct header_description d = small(3, 16);

    d.backing_name = name_of(1023);
    round_trip(&d);
    d.backing_name = name_of(1024);
    expect_refused(&d, "the backing file name has to have 1 to 1023 bytes");
    d.backing_name = "";
    expect_refused(&d, "the backing file name has to have");

    d.backing_name = "b";
    d.backing_format = name_of(15);
    round_trip(&d);
    d.backing_format = name_of(16);
    expect_refused(&d, "the backing file format has to have 1 to 15 bytes");

    d = small(3, 16);
    d.incompatible = INCOMPAT_DATA_FILE;
    d.data_file_name = name_of(1023);
    round_trip(&d);
    d.data_file_name = name_of(1024);
    expect_refused(&d, "the data file name has to have 1 to 1023 bytes");
}

/* The longest names fit beside the feature name table in every cluster that has it. */
Test(header_encode, longest_names_with_features)
{
    static char backing[1024], data[1024];
    struct header_description d = small(3, 13);

    memset(backing, 'b', 1023);
    memset(data, 'd', 1023);
    d.backing_name = backing;
    d.backing_format = "fifteen letters";
    d.incompatible = INCOMPAT_DATA_FILE;
    d.data_file_name = data;
    cr_assert_gt(round_trip(&d).feature_names.bytes, 0);
}
