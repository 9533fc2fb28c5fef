/* SPDX-License-Identifier: MIT */
/* New images, on a file in memory that counts operations, can fail each of them, and can be a block device.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "engine/create.h"
#include "engine/create_plan.h"
#include "format/entry.h"
#include "format/header.h"
#include "format/limits.h"
#include "format/refcount.h"

#define STALE 0x5a
/* Clusters past the end of the file whose refcounts are looked at. */
#define COUNTS_BEHIND 1000

/* ---- a file in memory ---- */

struct memory_file {
    struct file file;
    uint8_t *bytes; /* room of them; file.bytes are the file's */
    uint64_t room;
    uint32_t operation_count, fail_at; /* the operation that fails, from 1; 0: none */
    int fail_with;
    bool cannot_allocate, cannot_zero;
    uint64_t allocated_bytes, written_bytes;
    bool synced;           /* nothing changed since */
    bool header_in_sync;   /* the magic was written to a file that was synced */
    uint32_t header_count; /* how often */
};

static struct memory_file *memory_of(struct file *f)
{
    return (struct memory_file *)f;
}

static int count_operation(struct memory_file *m)
{
    return ++m->operation_count == m->fail_at ? m->fail_with : 0;
}

static void grow(struct memory_file *m, uint64_t bytes)
{
    cr_assert_leq(bytes, m->room, "the test has no room for %llu bytes", (unsigned long long)bytes);
    if (bytes > m->file.bytes) {
        cr_assert(!m->file.block_device, "beyond the end of a device");
        memset(m->bytes + m->file.bytes, 0, bytes - m->file.bytes);
        m->file.bytes = bytes;
    }
}

static ssize_t memory_pread(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    const uint64_t there = off < f->bytes ? f->bytes - off : 0;
    const size_t n = bytes < there ? bytes : (size_t)there;

    memcpy(buf, memory_of(f)->bytes + off, n);
    return (ssize_t)n;
}

static ssize_t memory_pwrite(struct file *f, const void *buf, size_t bytes, uint64_t off)
{
    struct memory_file *m = memory_of(f);
    const int r = count_operation(m);

    if (r < 0)
        return r;
    grow(m, off + bytes);
    if (off == 0 && get_be32(buf) == QCOW2_MAGIC) {
        m->header_in_sync = m->synced;
        m->header_count++;
    }
    memcpy(m->bytes + off, buf, bytes);
    m->written_bytes += bytes;
    m->synced = false;
    return (ssize_t)bytes;
}

static int memory_sync(struct file *f)
{
    const int r = count_operation(memory_of(f));

    memory_of(f)->synced = r == 0;
    return r;
}

static int memory_truncate(struct file *f, uint64_t bytes)
{
    const int r = count_operation(memory_of(f));

    cr_assert(!f->block_device, "a device cannot be truncated");
    if (r < 0)
        return r;
    grow(memory_of(f), bytes);
    f->bytes = bytes;
    memory_of(f)->synced = false;
    return 0;
}

static int memory_allocate(struct file *f, uint64_t off, uint64_t bytes)
{
    struct memory_file *m = memory_of(f);
    const int r = m->cannot_allocate ? -EOPNOTSUPP : count_operation(m);

    if (r < 0)
        return r;
    grow(m, off + bytes);
    m->allocated_bytes += bytes;
    return 0;
}

static int memory_zero(struct file *f, uint64_t off, uint64_t bytes)
{
    struct memory_file *m = memory_of(f);
    const int r = m->cannot_zero ? -EOPNOTSUPP : count_operation(m);

    if (r < 0)
        return r;
    grow(m, off + bytes);
    memset(m->bytes + off, 0, bytes);
    m->synced = false;
    return 0;
}

static const struct file_ops memory_ops = {.pread = memory_pread,
                                           .pwrite = memory_pwrite,
                                           .sync = memory_sync,
                                           .truncate = memory_truncate,
                                           .allocate = memory_allocate,
                                           .zero = memory_zero};

/* Full of bytes that must not show. */
static struct memory_file *memory_new(uint64_t room, bool block_device)
{
    struct memory_file *m = calloc(1, sizeof *m);

    cr_assert(m);
    m->bytes = malloc(room);
    cr_assert(m->bytes);
    memset(m->bytes, STALE, room);
    m->room = room;
    m->file = (struct file){.ops = &memory_ops,
                            .fd = -1,
                            .writable = true,
                            .block_device = block_device,
                            .io_align = 1,
                            .mem_align = 1,
                            .bytes = room,
                            .name = "memory"};
    m->fail_with = -EIO;
    return m;
}

static void memory_free(struct memory_file *m)
{
    free(m->bytes);
    free(m);
}

static bool all_zero(const uint8_t *p, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++)
        if (p[i])
            return false;
    return true;
}

/* ---- a reader that takes nothing for granted ---- */

static struct header header_of(const struct memory_file *m)
{
    struct header h;

    cr_assert_eq(header_decode(m->bytes, m->file.bytes, &h), 0, "%s", error_message());
    return h;
}

static void reference(const struct memory_file *m, uint8_t *refs, const struct header *h, uint64_t off)
{
    cr_assert_eq(off % h->cluster_bytes, 0);
    cr_assert_lt(off, m->file.bytes, "0x%llx is past the end", (unsigned long long)off);
    cr_assert_eq(refs[off >> h->cluster_bits]++, 0, "0x%llx is used twice", (unsigned long long)off);
}

static void reference_run(const struct memory_file *m, uint8_t *refs, const struct header *h, uint64_t off,
                          uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += h->cluster_bytes)
        reference(m, refs, h, off + at);
}

/* Follows L1 and L2; returns how many guest clusters are mapped. */
static uint64_t walk_map(const struct memory_file *m, uint8_t *refs, const struct header *h, uint64_t bitmap)
{
    const bool data_file = h->incompatible & INCOMPAT_DATA_FILE;
    uint64_t mapped = 0;

    for (uint32_t i = 0; i < h->l1_count; i++) {
        const uint64_t l1 = get_be64(m->bytes + h->l1_off + i * 8ull);

        if (!l1)
            continue;
        cr_assert(l1 & ENTRY_COPIED);
        reference(m, refs, h, l1 & ENTRY_OFF_MASK);
        for (uint64_t j = 0; j < 1ull << h->l2_entries_bits; j++) {
            const uint8_t *entry = m->bytes + (l1 & ENTRY_OFF_MASK) + j * h->l2_entry_bytes;
            const uint64_t guest_off = ((uint64_t)i << h->l2_entries_bits | j) << h->cluster_bits;

            if (!get_be64(entry))
                continue;
            cr_assert_eq(get_be64(entry) & ~ENTRY_OFF_MASK, ENTRY_COPIED);
            cr_assert_lt(guest_off, h->virtual_bytes);
            if (data_file)
                cr_assert_eq(get_be64(entry) & ENTRY_OFF_MASK, guest_off);
            else
                reference(m, refs, h, get_be64(entry) & ENTRY_OFF_MASK);
            if (h->extended_l2)
                cr_assert_eq(get_be64(entry + 8), bitmap);
            mapped++;
        }
    }
    return mapped;
}

/* Every cluster that something names has refcount 1, every other one 0. Returns the mapped guest clusters. */
static uint64_t check_image(const struct memory_file *m, uint64_t bitmap)
{
    const struct header h = header_of(m);
    const uint64_t clusters = div_round_up(m->file.bytes, h.cluster_bytes);
    const uint32_t per_block = refcount_block_count(h.cluster_bits, h.refcount_order);
    uint8_t *refs = calloc(clusters, 1);
    uint64_t mapped;

    cr_assert(refs);
    reference(m, refs, &h, 0);
    reference_run(m, refs, &h, h.reftable_off, (uint64_t)h.reftable_clusters << h.cluster_bits);
    if (h.l1_count)
        reference_run(m, refs, &h, h.l1_off, h.l1_count * 8ull);
    mapped = walk_map(m, refs, &h, bitmap);
    for (uint64_t i = 0; i < (uint64_t)h.reftable_clusters << (h.cluster_bits - 3); i++) {
        const uint64_t block = get_be64(m->bytes + h.reftable_off + i * 8);

        if (block)
            reference(m, refs, &h, block);
    }
    for (uint64_t c = 0; c < clusters + COUNTS_BEHIND; c++) {
        const bool in_table = c / per_block < (uint64_t)h.reftable_clusters << (h.cluster_bits - 3);
        const uint64_t block = in_table ? get_be64(m->bytes + h.reftable_off + c / per_block * 8) : 0;
        const uint64_t used = c < clusters ? refs[c] : 0;
        const uint64_t count =
            block ? refcount_get(m->bytes + block, h.refcount_order, (uint32_t)(c % per_block)) : 0;

        cr_assert_eq(count, used, "cluster %llu has refcount %llu, is used %llu times", (unsigned long long)c,
                     (unsigned long long)count, (unsigned long long)used);
    }
    free(refs);
    return mapped;
}

static struct scow_create_options options(uint64_t bytes)
{
    struct scow_create_options o = SCOW_CREATE_OPTIONS_INIT;

    o.virtual_size = bytes;
    return o;
}

static void must_create(struct memory_file *m, struct memory_file *data, const struct scow_create_options *o)
{
    cr_assert_eq(image_create(&m->file, data ? &data->file : NULL, o), 0, "%s", error_message());
    cr_assert(m->synced);
    cr_assert(m->header_in_sync, "the header is the last thing written, onto a durable file");
    cr_assert_eq(m->header_count, 1);
}

/* ---- tests ---- */

Test(create, every_shape)
{
    for (uint32_t bits = 9; bits <= 21; bits++)
        for (uint32_t order = 0; order <= 6; order++)
            for (int mode = SCOW_PREALLOCATION_OFF; mode <= SCOW_PREALLOCATION_METADATA; mode++) {
                /* a partial last cluster; more than one L2 table with the smallest */
                const uint64_t clusters = bits > 16 ? 3 : 100;
                struct scow_create_options o = options(((clusters - 1) << bits) + 512);
                struct memory_file *m = memory_new((clusters + 10) << bits, false);

                o.cluster_bytes = 1u << bits;
                o.refcount_bits = 1u << order;
                o.preallocation = (enum scow_preallocation)mode;
                must_create(m, NULL, &o);
                cr_assert_eq(check_image(m, 0), mode ? clusters : 0);
                cr_assert_eq(header_of(m).virtual_bytes, o.virtual_size);
                memory_free(m);
            }
}

Test(create, sizes_round_up_to_sectors)
{
    static const struct {
        uint64_t given, want;
    } rows[] = {{0, 0}, {1, 512}, {511, 512}, {512, 512}, {513, 1024}, {65537, 66048}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct memory_file *m = memory_new(1 << 20, false);
        const struct scow_create_options o = options(rows[i].given);

        must_create(m, NULL, &o);
        cr_assert_eq(header_of(m).virtual_bytes, rows[i].want);
        cr_assert_eq(check_image(m, 0), 0);
        memory_free(m);
    }
}

/* Many blocks and more than one table cluster, which count themselves. */
Test(create, refcounts_that_count_themselves)
{
    struct scow_create_options o = options(4 << 20);
    struct memory_file *m = memory_new(8 << 20, false);

    o.cluster_bytes = 512;
    o.refcount_bits = 64;
    o.preallocation = SCOW_PREALLOCATION_METADATA;
    must_create(m, NULL, &o);
    cr_assert_gt(header_of(m).reftable_clusters, 2);
    cr_assert_eq(check_image(m, 0), 8192);
    memory_free(m);
}

/* The largest L1 table that there may be, and one entry more. */
Test(create, l1_limit)
{
    struct scow_create_options o = options(128ull << 30);
    struct create_plan plan;

    o.cluster_bytes = 512;
    cr_assert_eq(create_plan_make(&o, &plan), 0, "%s", error_message());
    cr_assert_eq(plan.header.l1_count, L1_BYTES_MAX / 8);
    cr_assert_eq(plan.l1.count, L1_BYTES_MAX / 512);
    o.virtual_size++;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
    cr_assert(strstr(error_message(), "use larger clusters"), "%s", error_message());
    o.virtual_size = UINT64_MAX;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
    o.cluster_bytes = 2 << 20;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
}

Test(create, preallocation_limits)
{
    struct scow_create_options o = options(128ull << 30);
    struct create_plan plan;

    o.preallocation = SCOW_PREALLOCATION_METADATA;
    o.cluster_bytes = 512;
    o.refcount_bits = 64;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
    cr_assert(strstr(error_message(), "refcount table"), "%s", error_message());
    o.refcount_bits = 16;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
    o.refcount_bits = 8;
    cr_assert_eq(create_plan_make(&o, &plan), 0, "%s", error_message());
    o.refcount_bits = 1;
    o.cluster_bytes = 2 << 20;
    o.virtual_size = 1ull << 56;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
    cr_assert(strstr(error_message(), "larger than the format"), "%s", error_message());
    o.data_file_name = "d";
    o.virtual_size = (1ull << 56) + 512;
    cr_assert_eq(create_plan_make(&o, &plan), -EFBIG);
    cr_assert(strstr(error_message(), "data file"), "%s", error_message());
}

Test(create, subclusters)
{
    struct scow_create_options o = options((5 << 20) + 512);
    struct memory_file *m = memory_new(16 << 20, false), *data = memory_new(8 << 20, false);

    o.extended_l2 = 1;
    o.preallocation = SCOW_PREALLOCATION_METADATA;
    o.backing_name = "base";
    o.backing_format = "raw";
    must_create(m, NULL, &o);
    cr_assert_eq(check_image(m, 0), 81, "clusters without subclusters: the backing file shows");

    o.backing_name = o.backing_format = NULL;
    o.data_file_name = "data";
    o.data_file_raw = 1;
    o.preallocation = SCOW_PREALLOCATION_OFF;
    m->header_count = 0;
    must_create(m, data, &o);
    cr_assert_eq(check_image(m, 0xffffffff), 81, "what a raw data file holds is what the guest reads");
    memory_free(m);
    memory_free(data);
}

/* ---- preallocation ---- */

Test(create, preallocated_space)
{
    for (int mode = SCOW_PREALLOCATION_METADATA; mode <= SCOW_PREALLOCATION_FULL; mode++)
        for (int can_allocate = 0; can_allocate <= 1; can_allocate++) {
            struct scow_create_options o = options(5 << 20);
            struct memory_file *m = memory_new(8 << 20, false);
            const bool written =
                mode == SCOW_PREALLOCATION_FULL || (mode == SCOW_PREALLOCATION_FALLOC && !can_allocate);

            o.preallocation = (enum scow_preallocation)mode;
            m->cannot_allocate = !can_allocate;
            must_create(m, NULL, &o);
            cr_assert_eq(check_image(m, 0), 80);
            cr_assert_eq(m->written_bytes >= 5 << 20, written);
            cr_assert_eq(m->allocated_bytes, mode == SCOW_PREALLOCATION_FALLOC && can_allocate ? 5 << 20 : 0);
            cr_assert(all_zero(m->bytes + m->file.bytes - (5 << 20), 5 << 20));
            memory_free(m);
        }
}

Test(create, data_file)
{
    for (int mode = SCOW_PREALLOCATION_OFF; mode <= SCOW_PREALLOCATION_FULL; mode++)
        for (uint32_t raw = 0; raw <= 1; raw++) {
            struct scow_create_options o = options((1 << 20) + 512);
            struct memory_file *m = memory_new(1 << 20, false), *data = memory_new(4 << 20, false);

            o.preallocation = (enum scow_preallocation)mode;
            o.data_file_name = "data";
            o.data_file_raw = raw;
            must_create(m, data, &o);
            cr_assert_eq(check_image(m, 0), mode || raw ? 17 : 0);
            cr_assert_eq(data->file.bytes, (1 << 20) + 512);
            cr_assert(all_zero(data->bytes, data->file.bytes));
            cr_assert(data->synced);
            cr_assert_eq(data->allocated_bytes, mode == SCOW_PREALLOCATION_FALLOC ? (1 << 20) + 512 : 0);
            memory_free(m);
            memory_free(data);
        }
}

/* ---- block devices ---- */

Test(create, block_device)
{
    for (int mode = SCOW_PREALLOCATION_OFF; mode <= SCOW_PREALLOCATION_FULL; mode++)
        for (int can_zero = 0; can_zero <= 1; can_zero++) {
            struct scow_create_options o = options(2 << 20);
            struct memory_file *m = memory_new(4 << 20, true);
            uint64_t end;

            o.preallocation = (enum scow_preallocation)mode;
            m->cannot_zero = !can_zero;
            must_create(m, NULL, &o);
            cr_assert_eq(m->file.bytes, 4 << 20);
            /* what lies behind the image is not its business */
            end = mode ? (5 << 16) + (2 << 20) : 4 << 16;
            cr_assert_neq(m->bytes[end - 1], STALE);
            cr_assert_eq(m->bytes[end], STALE);
            if (mode)
                cr_assert(all_zero(m->bytes + end - (2 << 20), 2 << 20), "the guest reads zeros");
            m->file.bytes = end;
            cr_assert_eq(check_image(m, 0), mode ? 32 : 0);
            memory_free(m);
        }
}

Test(create, block_device_too_small)
{
    struct scow_create_options o = options(2 << 20);
    struct memory_file *m = memory_new((5 << 16) + (2 << 20) - 512, true);

    o.preallocation = SCOW_PREALLOCATION_METADATA;
    cr_assert_eq(image_create(&m->file, NULL, &o), -ENOSPC);
    cr_assert(strstr(error_message(), "the device has"), "%s", error_message());
    cr_assert_eq(m->operation_count, 0);
    memory_free(m);
}

Test(create, block_device_as_data_file)
{
    struct scow_create_options o = options(1 << 20);
    struct memory_file *m = memory_new(1 << 20, false), *data = memory_new((1 << 20) + 512, true);

    o.data_file_name = "data";
    must_create(m, data, &o);
    cr_assert_eq(data->bytes[0], STALE, "nothing is mapped, so nothing is cleared");
    o.data_file_raw = 1;
    m->header_count = 0;
    must_create(m, data, &o);
    cr_assert(all_zero(data->bytes, 1 << 20));
    cr_assert_eq(data->bytes[1 << 20], STALE);
    memory_free(m);
    memory_free(data);
}

/* ---- failures ---- */

/* Fails each operation in turn: the error comes back, and no half of an image has a header. */
static void fail_each(const struct scow_create_options *o, bool block_device)
{
    uint32_t at = 1, header_at = 0;

    for (;; at++) {
        struct memory_file *m = memory_new(8 << 20, block_device);
        int r;

        m->fail_at = at;
        m->fail_with = -ENOSPC;
        r = image_create(&m->file, NULL, o);
        if (m->operation_count < at) {
            cr_assert_eq(r, 0);
            memory_free(m);
            break;
        }
        cr_assert_eq(r, -ENOSPC, "operation %u: %d", at, r);
        cr_assert(strstr(error_message(), "memory"), "%s", error_message());
        if (m->header_count && !header_at)
            header_at = at;
        memory_free(m);
    }
    cr_assert_gt(at, 4);
    cr_assert_eq(header_at, at - 1, "only the sync after it can fail once the header is written");
}

Test(create, each_operation_fails)
{
    struct scow_create_options o = options(3 << 20);

    fail_each(&o, false);
    fail_each(&o, true);
    for (int mode = SCOW_PREALLOCATION_METADATA; mode <= SCOW_PREALLOCATION_FULL; mode++) {
        o.preallocation = (enum scow_preallocation)mode;
        fail_each(&o, false);
        fail_each(&o, true);
    }
}

Test(create, bad_options_touch_nothing)
{
    struct memory_file *m = memory_new(1 << 20, false);
    struct scow_create_options o = options(1 << 20);
    static char name[600];

    memset(name, 'n', sizeof name - 1);
    o.cluster_bytes = 512;
    o.backing_name = name; /* too long for the first cluster: found when the header is encoded */
    cr_assert_eq(image_create(&m->file, NULL, &o), -EINVAL);
    cr_assert_eq(m->operation_count, 0);
    cr_assert_eq(m->file.bytes, 1 << 20);
    memory_free(m);
}

/* ---- options that exclude each other ---- */

#define REFUSE(text, ...)                                                                                    \
    do {                                                                                                     \
        struct scow_create_options o_ = {.size = sizeof o_, .virtual_size = 1 << 20, __VA_ARGS__};           \
        struct create_plan plan_;                                                                            \
        cr_assert_eq(create_plan_make(&o_, &plan_), -EINVAL, "%s", #__VA_ARGS__);                            \
        cr_assert(strstr(error_message(), text), "\"%s\" does not contain \"%s\"", error_message(), text);   \
    } while (0)

Test(create, refused_options)
{
    REFUSE("reserved", .reserved = {0, 0, 0, 1});
    REFUSE("unknown flags", .flags = 1);
    REFUSE("version", .version = 1);
    REFUSE("version", .version = 4);
    REFUSE("cluster size", .cluster_bytes = 256);
    REFUSE("cluster size", .cluster_bytes = 4 << 20);
    REFUSE("cluster size", .cluster_bytes = 65537);
    REFUSE("refcount width", .refcount_bits = 3);
    REFUSE("refcount width", .refcount_bits = 128);
    REFUSE("0 or 1", .extended_l2 = 2);
    REFUSE("0 or 1", .lazy_refcounts = 2);
    REFUSE("compression", .compression = (enum scow_compression)2);
    REFUSE("preallocation", .preallocation = (enum scow_preallocation)4);
    REFUSE("version 2 does not have extended L2", .version = 2, .extended_l2 = 1);
    REFUSE("version 2 does not have lazy", .version = 2, .lazy_refcounts = 1);
    REFUSE("version 2 does not have compression", .version = 2, .compression = SCOW_COMPRESSION_ZSTD);
    REFUSE("version 2 does not have refcounts", .version = 2, .refcount_bits = 8);
    REFUSE("version 2 does not have an external", .version = 2, .data_file_name = "d");
    REFUSE("16 KiB", .cluster_bytes = 8192, .extended_l2 = 1);
    REFUSE("no backing file", .backing_format = "raw");
    REFUSE("without a data file", .data_file_raw = 1);
    REFUSE("without a data file", .data_file_keep = 1);
    REFUSE("exclude each other", .data_file_name = "d", .data_file_raw = 1, .backing_name = "b");
    REFUSE("preallocation with a backing file", .backing_name = "b",
           .preallocation = SCOW_PREALLOCATION_METADATA);
}
