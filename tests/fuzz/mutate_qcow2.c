/* SPDX-License-Identifier: MIT */
/*
 * A mutator that knows where a qcow2 file has its numbers: it picks a structure (header, extension, L1, L2 or
 * refcount table, refcount block, snapshot, bitmap), one big-endian field of it, and a value that means
 * something there. Half of the time libFuzzer's own mutations run instead.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/attributes.h"
#include "base/byteorder.h"
#include "format/entry.h"
#include "format/header.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t bytes, size_t bytes_max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t bytes_max, unsigned seed);

struct mutation {
    uint8_t *data;
    size_t bytes;
    uint64_t random;
    uint32_t cluster_bits;
};

struct field {
    uint64_t off;
    uint32_t width; /* bytes */
};

static uint64_t roll(struct mutation *m, uint64_t below)
{
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (m->random >> 24) % below;
}

static uint64_t get(const struct mutation *m, uint64_t off, uint32_t width)
{
    uint64_t v = 0;

    for (uint32_t i = 0; i < width; i++)
        v = v << 8 | (off + i < m->bytes ? m->data[off + i] : 0);
    return v;
}

static void put(struct mutation *m, struct field f, uint64_t v)
{
    for (uint32_t i = 0; i < f.width; i++, v >>= 8) {
        const uint64_t at = f.off + f.width - 1 - i;

        if (at < m->bytes)
            m->data[at] = (uint8_t)v;
    }
}

/* ---- which field ---- */

static struct field header_field(struct mutation *m)
{
    static const struct field fields[] = {
        {4, 4},  {8, 8},  {16, 4}, {20, 4}, {24, 8}, {32, 4}, {36, 4},  {40, 8},  {48, 8}, {56, 4},
        {60, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1}, {0, 4},
    };

    return fields[roll(m, ARRAY_COUNT(fields))];
}

/* Type, length or some word of an extension's data. */
static struct field extension_field(struct mutation *m)
{
    uint64_t off = get(m, 4, 4) >= 3 ? get(m, 100, 4) : 72;

    for (uint64_t skip = roll(m, 6); skip && off + 8 < m->bytes && get(m, off, 4); skip--)
        off += 8 + ((get(m, off + 4, 4) + 7) & ~7ull);
    return (struct field){off + 4 * roll(m, 8), 4};
}

static struct field entry_of(struct mutation *m, uint64_t table_off, uint64_t count)
{
    return (struct field){table_off + 8 * roll(m, MAX(MIN(count, roll(m, 8) ? 8u : 4096u), 1u)), 8};
}

static struct field l2_field(struct mutation *m)
{
    const struct field l1 = entry_of(m, get(m, 40, 8), get(m, 36, 4));

    return entry_of(m, get(m, l1.off, 8) & ENTRY_OFF_MASK, (1ull << m->cluster_bits) / 8);
}

static struct field refcount_field(struct mutation *m)
{
    static const uint32_t widths[] = {1, 2, 4, 8};
    const struct field block = entry_of(m, get(m, 48, 8), 4);
    const uint32_t width = widths[roll(m, ARRAY_COUNT(widths))];

    return (struct field){(get(m, block.off, 8) & REFTABLE_OFF_MASK) + width * roll(m, 64), width};
}

static struct field snapshot_field(struct mutation *m)
{
    static const struct field fields[] = {{0, 8},  {8, 4},  {12, 2}, {14, 2}, {16, 4}, {24, 8},
                                          {32, 4}, {36, 4}, {40, 8}, {48, 8}, {56, 8}};
    struct field f = fields[roll(m, ARRAY_COUNT(fields))];
    uint64_t off = get(m, 64, 8);

    for (uint64_t skip = roll(m, 3); skip; skip--)
        off += (40 + get(m, off + 36, 4) + get(m, off + 12, 2) + get(m, off + 14, 2) + 7) & ~7ull;
    f.off += off;
    return f;
}

/* An entry of the directory that the bitmaps extension names, or of that entry's table. */
static struct field bitmap_field(struct mutation *m)
{
    static const struct field fields[] = {{0, 8}, {8, 4}, {12, 4}, {16, 1}, {17, 1}, {18, 2}, {20, 4}};
    struct field f = fields[roll(m, ARRAY_COUNT(fields))];
    uint64_t off = get(m, 100, 4), directory;

    while (off + 32 < m->bytes && get(m, off, 4) && get(m, off, 4) != EXTENSION_BITMAPS)
        off += 8 + ((get(m, off + 4, 4) + 7) & ~7ull);
    directory = get(m, off + 24, 8);
    if (roll(m, 3) == 0)
        return entry_of(m, get(m, directory, 8), 8);
    f.off += directory;
    return f;
}

static struct field choose_field(struct mutation *m)
{
    switch (roll(m, 10)) {
    case 0:
    case 1:
        return header_field(m);
    case 2:
        return extension_field(m);
    case 3:
        return entry_of(m, get(m, 40, 8), get(m, 36, 4));
    case 4:
    case 5:
        return l2_field(m);
    case 6:
        return entry_of(m, get(m, 48, 8), 8);
    case 7:
        return refcount_field(m);
    case 8:
        return snapshot_field(m);
    default:
        return bitmap_field(m);
    }
}

/* ---- which value ---- */

static uint64_t choose_value(struct mutation *m, struct field f)
{
    const uint64_t old = get(m, f.off, f.width), cluster = 1ull << m->cluster_bits;
    const uint64_t clusters = m->bytes / cluster + 2;

    switch (roll(m, 12)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX;
    case 2:
        return 1ull << roll(m, 64);
    case 3:
        return (1ull << roll(m, 64)) - 1;
    case 4: /* some cluster of the file */
        return roll(m, clusters) * cluster | (old & (ENTRY_COPIED | ENTRY_COMPRESSED));
    case 5:
        return roll(m, clusters) * cluster | ENTRY_COPIED;
    case 6:
        return old ^ (1ull << roll(m, 64));
    case 7: /* kinds of entries */
        return old ^ (roll(m, 2) ? ENTRY_ZERO : roll(m, 2) ? ENTRY_COMPRESSED : ENTRY_COPIED);
    case 8: /* a compressed extent somewhere in the file */
        return ENTRY_COMPRESSED | roll(m, 4) << (70 - m->cluster_bits) | roll(m, m->bytes + 1);
    case 9: /* a neighbour */
        return get(m, f.off + f.width, f.width);
    case 10:
        return old + roll(m, 17) - 8;
    default:
        return roll(m, 300);
    }
}

/* Swap, repeat or zero a whole cluster. */
static void change_cluster(struct mutation *m)
{
    const uint64_t cluster = 1ull << m->cluster_bits, count = m->bytes / cluster;

    if (count < 2)
        return;
    const uint64_t from = roll(m, count) * cluster, to = roll(m, count) * cluster;

    if (roll(m, 4))
        memmove(m->data + to, m->data + from, cluster);
    else
        memset(m->data + to, 0, cluster);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t bytes_max, unsigned seed)
{
    struct mutation m = {.data = data, .bytes = bytes, .random = seed * 2654435761u + 1u};

    if (bytes < HEADER_V2_BYTES || roll(&m, 2))
        return LLVMFuzzerMutate(data, bytes, bytes_max);
    m.cluster_bits = (uint32_t)get(&m, 20, 4);
    if (m.cluster_bits < CLUSTER_BITS_MIN || m.cluster_bits > CLUSTER_BITS_MAX)
        m.cluster_bits = 12;
    for (uint64_t n = 1 + roll(&m, 3); n; n--) {
        const struct field f = choose_field(&m);

        put(&m, f, choose_value(&m, f));
    }
    if (roll(&m, 32) == 0)
        change_cluster(&m);
    if (roll(&m, 16) == 0) /* the options, see fuzz_open.c */
        data[bytes - 1 - roll(&m, 2)] = (uint8_t)roll(&m, 256);
    return bytes;
}
