/* SPDX-License-Identifier: MIT */
/*
 * The input is one byte of options, then a table: of snapshots, of bitmaps, or of refcounts and compressed
 * entries.
 */
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "format/bitmap_directory.h"
#include "format/entry.h"
#include "format/refcount.h"
#include "format/snapshot_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static volatile uint8_t sink;

static void expect(bool holds)
{
    if (!holds)
        abort();
}

static void touch(const char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        sink ^= (uint8_t)p[i];
}

static void walk_snapshots(const uint8_t *table, size_t bytes, bool strict)
{
    for (size_t at = 0; at < bytes;) {
        struct snapshot_entry e;
        const int64_t n = strict ? snapshot_entry_decode(table + at, bytes - at, at, 65536, 1 << 30, &e)
                                 : snapshot_entry_parse(table + at, bytes - at, at, 1 << 30, &e);

        if (n <= 0)
            return;
        expect(n % 8 == 0 && (uint64_t)n >= SNAPSHOT_HEAD_BYTES);
        touch(e.id, e.id_bytes);
        touch(e.name, e.name_bytes);
        expect(!strict || !(e.l1_off & 65535));
        at += (uint64_t)n;
    }
}

static void walk_bitmaps(const uint8_t *table, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        struct bitmap_entry e;
        const int64_t n = bitmap_entry_decode(table + at, bytes - at, at, 65536, &e);

        if (n <= 0)
            return;
        expect(n % 8 == 0 && (uint64_t)n >= BITMAP_HEAD_BYTES);
        touch(e.name, e.name_bytes);
        at += (uint64_t)n;
    }
}

/* Every width of refcounts over the same 512 bytes, against a reading bit by bit. */
static void walk_refcounts(const uint8_t *table, size_t bytes)
{
    uint8_t *block = calloc(1, 512);

    if (!block)
        return;
    memcpy(block, table, MIN(bytes, 512u));
    for (uint32_t order = 0; order <= 6; order++)
        for (uint32_t i = 0; i < refcount_block_count(9, order); i++) {
            const uint64_t count = refcount_get(block, order, i);

            expect(count <= refcount_max(order));
            for (uint32_t bit = 0; order < 3 && bit < 1u << order; bit++) {
                const uint32_t at = (i << order) + bit;

                expect((count >> bit & 1) == (block[at / 8] >> at % 8 & 1u));
            }
        }
    free(block);
}

static void walk_entries(const uint8_t *table, size_t bytes)
{
    for (size_t at = 0; at + 8 <= bytes; at += 8)
        for (uint32_t bits = CLUSTER_BITS_MIN; bits <= CLUSTER_BITS_MAX; bits++) {
            const struct compressed_extent e = entry_compressed(get_be64(table + at), bits);

            expect(e.bytes >= 1 && e.bytes <= 2u << bits && e.off < 1ull << 61);
            sink ^= (uint8_t)entry_kind(get_be64(table + at), bits & 1, bits & 2);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint8_t *table;

    if (!bytes)
        return 0;
    /* of exactly this size: the sanitizer sees what goes beyond */
    table = malloc(MAX(bytes - 1, 1u));
    if (!table)
        return 0;
    memcpy(table, data + 1, bytes - 1);
    switch (data[0] % 5) {
    case 0:
        walk_snapshots(table, bytes - 1, true);
        break;
    case 1:
        walk_snapshots(table, bytes - 1, false);
        break;
    case 2:
        walk_bitmaps(table, bytes - 1);
        break;
    case 3:
        walk_refcounts(table, bytes - 1);
        break;
    default:
        walk_entries(table, bytes - 1);
    }
    free(table);
    return 0;
}
