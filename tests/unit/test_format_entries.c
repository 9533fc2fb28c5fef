/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>

#include <string.h>

#include "format/entry.h"
#include "format/refcount.h"

Test(entry, kinds)
{
    static const struct {
        uint64_t entry;
        bool extended, data_file;
        enum entry_kind kind;
    } all[] = {
        {0, false, false, ENTRY_UNALLOCATED},
        {0, true, true, ENTRY_UNALLOCATED},
        {0x10000, false, false, ENTRY_NORMAL},
        {ENTRY_COPIED | 0x10000, false, false, ENTRY_NORMAL},
        {ENTRY_COPIED | 0x10000, true, false, ENTRY_NORMAL},
        {ENTRY_ZERO, false, false, ENTRY_ZERO_PLAIN},
        {ENTRY_ZERO | 0x10000, false, false, ENTRY_ZERO_ALLOCATED},
        {ENTRY_ZERO | 0x10000 | ENTRY_COPIED, false, false, ENTRY_ZERO_ALLOCATED},
        {ENTRY_ZERO | ENTRY_COPIED, false, false, ENTRY_ZERO_PLAIN},
        /* the zero bit has no meaning with extended L2 entries */
        {ENTRY_ZERO, true, false, ENTRY_UNALLOCATED},
        {ENTRY_ZERO | 0x10000, true, false, ENTRY_NORMAL},
        /* offset 0 is a place in a data file, and COPIED says that it is meant */
        {ENTRY_COPIED, false, false, ENTRY_UNALLOCATED},
        {ENTRY_COPIED, false, true, ENTRY_NORMAL},
        {ENTRY_COPIED, true, true, ENTRY_NORMAL},
        /* but a zero entry without an offset has no cluster, whatever COPIED says */
        {ENTRY_COPIED | ENTRY_ZERO, false, true, ENTRY_ZERO_PLAIN},
        /* compressed: all other bits belong to the descriptor */
        {ENTRY_COMPRESSED, false, false, ENTRY_IS_COMPRESSED},
        {ENTRY_COMPRESSED | ENTRY_ZERO, false, false, ENTRY_IS_COMPRESSED},
        {UINT64_MAX, true, true, ENTRY_IS_COMPRESSED},
        /* reserved bits and bits below the offset are not an offset */
        {1ull << 61 | 0x1fe, false, false, ENTRY_UNALLOCATED},
    };

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cr_assert_eq(entry_kind(all[i].entry, all[i].extended, all[i].data_file), all[i].kind, "case %zu", i);
}

static uint64_t descriptor(uint32_t cluster_bits, uint64_t off, uint64_t sectors)
{
    return ENTRY_COMPRESSED | off | (sectors - 1) << (62 - (cluster_bits - 8));
}

static uint64_t last_cluster(struct compressed_extent e, uint32_t cluster_bits)
{
    return (e.off + e.bytes - 1) >> cluster_bits;
}

Test(entry, compressed_extents)
{
    for (uint32_t bits = CLUSTER_BITS_MIN; bits <= CLUSTER_BITS_MAX; bits++) {
        const uint64_t cluster = 1ull << bits;
        const uint64_t sectors_max = 1ull << (bits - 8);
        const uint64_t off_max = (1ull << (62 - (bits - 8))) - 1;
        struct compressed_extent e;

        e = entry_compressed(descriptor(bits, 0, 1), bits);
        cr_assert(e.off == 0 && e.bytes == 512);
        e = entry_compressed(descriptor(bits, 5 * cluster + 17, 1), bits);
        cr_assert(e.off == 5 * cluster + 17 && e.bytes == 512 - 17);
        e = entry_compressed(descriptor(bits, 5 * cluster + 511, 1), bits);
        cr_assert(e.bytes == 1);
        e = entry_compressed(descriptor(bits, 5 * cluster, sectors_max), bits);
        cr_assert(e.bytes == 2 * cluster);
        e = entry_compressed(descriptor(bits, off_max, sectors_max), bits);
        cr_assert(e.off == off_max && e.bytes == 2 * cluster - 511);

        /* ends exactly on a cluster boundary: touches nothing of the next cluster */
        e = entry_compressed(descriptor(bits, 6 * cluster - 512, 1), bits);
        cr_assert_eq(last_cluster(e, bits), 5);
        e = entry_compressed(descriptor(bits, 6 * cluster - 1, 1), bits);
        cr_assert_eq(last_cluster(e, bits), 5);
        e = entry_compressed(descriptor(bits, 6 * cluster - 512, 2), bits);
        cr_assert_eq(last_cluster(e, bits), 6);
        /* and COPIED, which has no business here, changes nothing */
        e = entry_compressed(ENTRY_COPIED | descriptor(bits, 6 * cluster - 512, 2), bits);
        cr_assert(e.off == 6 * cluster - 512 && e.bytes == 1024);
    }
}

Test(entry, subcluster_bitmaps)
{
    cr_assert(bitmap_valid(0, false));
    cr_assert(bitmap_valid(0xffffffff00000000, false));
    cr_assert(bitmap_valid(0x00000000ffffffff, true));
    cr_assert(bitmap_valid(0xfffffffe00000001, true));
    cr_assert_not(bitmap_valid(1, false));
    cr_assert_not(bitmap_valid(0x0000000100000001, true));
    cr_assert_not(bitmap_valid(0x8000000080000000, true));
    cr_assert_eq(bitmap_allocated(0x1234567800000009), 9);
    cr_assert_eq(bitmap_zero(0x1234567800000009), 0x12345678);
}

/* Straight from the specification: entries of 2^order bits; narrow ones fill a byte from its low end. */
static void put_refcount(uint8_t *block, uint32_t order, uint32_t index, uint64_t value)
{
    const uint32_t bits = 1u << order;

    if (bits >= 8) {
        for (uint32_t i = 0; i < bits / 8; i++)
            block[index * (bits / 8) + i] = (uint8_t)(value >> 8 * (bits / 8 - 1 - i));
        return;
    }
    for (uint32_t i = 0; i < bits; i++) {
        const uint32_t bit = index * bits + i;

        block[bit / 8] = (uint8_t)(block[bit / 8] & ~(1u << bit % 8));
        block[bit / 8] = (uint8_t)(block[bit / 8] | (value >> i & 1) << bit % 8);
    }
}

Test(refcount, every_order)
{
    static uint8_t block[512];
    uint64_t values[4096];
    uint64_t seed = 88172645463325252u;

    for (uint32_t order = 0; order <= REFCOUNT_ORDER_MAX; order++) {
        const uint32_t count = refcount_block_count(9, order);

        cr_assert_eq(count, 512 * 8 >> order);
        cr_assert_eq(refcount_block_count(21, order), 2097152 * 8 >> order);
        for (uint32_t i = 0; i < count; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            values[i] = seed & refcount_max(order);
            put_refcount(block, order, i, values[i]);
        }
        for (uint32_t i = 0; i < count; i++)
            cr_assert_eq(refcount_get(block, order, i), values[i], "order %u index %u", order, i);
    }
}

Test(refcount, maxima)
{
    static const uint64_t max[] = {1, 3, 15, 255, 65535, UINT32_MAX, UINT64_MAX};
    static uint8_t block[512];

    memset(block, 0xff, sizeof block);
    for (uint32_t order = 0; order <= REFCOUNT_ORDER_MAX; order++) {
        cr_assert_eq(refcount_max(order), max[order]);
        cr_assert_eq(refcount_get(block, order, 0), max[order]);
        cr_assert_eq(refcount_get(block, order, refcount_block_count(9, order) - 1), max[order]);
    }
}
