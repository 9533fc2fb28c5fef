/* SPDX-License-Identifier: MIT */
/* The check on small images built here byte by byte. tests/compat compares it with QEMU's on real ones. */
#include <criterion/criterion.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/attributes.h"
#include "format/entry.h"
#include "format/header.h"
#include "shardcow.h"

/* 512-byte clusters: header, refcount table, refcount block, L1, L2, then data. */
#define CLUSTER 512u
#define REFTABLE (1 * CLUSTER)
#define REFBLOCK (2 * CLUSTER)
#define L1 (3 * CLUSTER)
#define L2 (4 * CLUSTER)
#define DATA (5 * CLUSTER)
#define DATA_CLUSTERS 10u
#define IMAGE_CLUSTERS (5 + DATA_CLUSTERS)
#define GUEST_CLUSTERS 128u /* two L2 tables' worth, of which there is one */

static uint8_t image[64 * CLUSTER];
static size_t image_bytes;

static void put(uint64_t off, uint32_t bytes, uint64_t value)
{
    for (uint32_t i = 0; i < bytes; i++)
        image[off + i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

static void put_refcount(uint64_t cluster, uint16_t value)
{
    put(REFBLOCK + cluster * 2, 2, value);
}

static void put_l2(uint32_t index, uint64_t entry)
{
    put(L2 + index * 8, 8, entry);
}

static void make_image(void)
{
    memset(image, 0, sizeof image);
    image_bytes = IMAGE_CLUSTERS * CLUSTER;
    put(0, 4, QCOW2_MAGIC);
    put(4, 4, 3);
    put(20, 4, 9);
    put(24, 8, GUEST_CLUSTERS * CLUSTER);
    put(36, 4, 2);
    put(40, 8, L1);
    put(48, 8, REFTABLE);
    put(56, 4, 1);
    put(96, 4, 4);
    put(100, 4, 104);
    put(REFTABLE, 8, REFBLOCK);
    put(L1, 8, ENTRY_COPIED | L2);
    for (uint32_t i = 0; i < DATA_CLUSTERS; i++)
        put_l2(i, ENTRY_COPIED | (DATA + i * CLUSTER));
    for (uint32_t i = 0; i < IMAGE_CLUSTERS; i++)
        put_refcount(i, 1);
}

#define TEXTS_MAX 32u

struct told {
    uint32_t count;
    char text[TEXTS_MAX][200];
    enum scow_problem_kind kind[TEXTS_MAX];
};

static void take_problem(void *ctx, enum scow_problem_kind kind, const char *text)
{
    struct told *const told = ctx;

    cr_assert_lt(told->count, TEXTS_MAX);
    told->kind[told->count] = kind;
    snprintf(told->text[told->count++], sizeof told->text[0], "%s", text);
}

static struct scow_image *open_image(enum scow_format format)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_image *handle = NULL;
    const int fd = memfd_create("image", MFD_CLOEXEC);

    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, image, image_bytes), (ssize_t)image_bytes);
    o.flags = SCOW_OPEN_NO_IO | SCOW_OPEN_NO_LOCK;
    o.format = format;
    cr_assert_eq(scow_open_fd(fd, NULL, &o, &handle), 0, "%s", scow_error());
    close(fd);
    return handle;
}

/* One thread at first; then with threads and in several passes, which must find the same. */
static struct scow_check_result check(struct told *told)
{
    struct scow_image *const handle = open_image(SCOW_FORMAT_QCOW2);
    struct scow_check_result first = SCOW_CHECK_RESULT_INIT;
    struct told again;

    for (uint32_t variant = 0; variant < 4; variant++) {
        struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
        struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

        memset(&again, 0, sizeof again);
        o.threads = variant & 1 ? 4 : 1;
        o.memory_bytes = variant & 2 ? 1 : 0;
        o.problem = take_problem;
        o.ctx = variant ? &again : told;
        cr_assert_eq(scow_check(handle, &o, variant ? &r : &first), 0, "%s", scow_error());
        if (!variant) {
            cr_assert_eq(first.corruptions + first.leaks + first.check_errors, told->count);
            continue;
        }
        cr_assert_eq(again.count, told->count);
        r.passes = first.passes;
        cr_assert_eq(memcmp(&r, &first, sizeof r), 0, "variant %u differs", variant);
    }
    scow_close(handle);
    return first;
}

static void expect_only(const struct told *told, enum scow_problem_kind kind, const char *text)
{
    cr_assert_eq(told->count, 1, "%u problems, the first \"%s\"", told->count, told->text[0]);
    cr_assert_eq(told->kind[0], kind);
    cr_assert_str_eq(told->text[0], text);
}

Test(check, clean)
{
    struct told told = {0};

    make_image();
    put_l2(10, ENTRY_ZERO);
    const struct scow_check_result r = check(&told);

    cr_assert_eq(told.count, 0, "%s", told.text[0]);
    cr_assert_eq(r.image_end_off, IMAGE_CLUSTERS * CLUSTER);
    cr_assert_eq(r.total_clusters, GUEST_CLUSTERS);
    cr_assert_eq(r.allocated_clusters, DATA_CLUSTERS);
    cr_assert_eq(r.standard_clusters, DATA_CLUSTERS);
    cr_assert_eq(r.zero_clusters, 1);
    cr_assert_eq(r.unallocated_clusters, GUEST_CLUSTERS - DATA_CLUSTERS - 1);
    cr_assert_eq(r.fragmented_clusters, 0);
    cr_assert_eq(r.l2_tables, 1);
    cr_assert_eq(r.metadata_bytes, 5 * CLUSTER);
    cr_assert_eq(r.host_clusters, IMAGE_CLUSTERS);
    cr_assert_eq(r.passes, 1);
}

Test(check, several_passes)
{
    struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;
    struct scow_image *handle;

    /* one refcount block has 256 counts: a hole behind the image makes several */
    make_image();
    put_l2(3, 0);
    handle = open_image(SCOW_FORMAT_QCOW2);
    scow_close(handle);
    const int fd = memfd_create("image", MFD_CLOEXEC);
    cr_assert_eq(write(fd, image, image_bytes), (ssize_t)image_bytes);
    cr_assert_eq(ftruncate(fd, 1000 * CLUSTER), 0);
    struct scow_open_options open_options = SCOW_OPEN_OPTIONS_INIT;
    open_options.flags = SCOW_OPEN_NO_IO | SCOW_OPEN_NO_LOCK;
    cr_assert_eq(scow_open_fd(fd, NULL, &open_options, &handle), 0, "%s", scow_error());
    close(fd);
    o.memory_bytes = 1;
    cr_assert_eq(scow_check(handle, &o, &r), 0);
    cr_assert_eq(r.passes, 4);
    cr_assert_eq(r.leaks, 1);
    cr_assert_eq(r.corruptions, 0);
    scow_close(handle);
}

Test(check, leak_and_missing_refcount_in_order)
{
    struct told told = {0};

    make_image();
    put_refcount(7, 3);
    put_refcount(9, 0);
    put_l2(1, 0);
    const struct scow_check_result r = check(&told);

    /* the flags of what has refcount 3 or 0 are wrong too */
    cr_assert_eq(r.leaks, 2);
    cr_assert_eq(r.corruptions, 3);
    cr_assert_eq(r.shared_clusters, 1);
    cr_assert_str_eq(told.text[2], "Leaked cluster 6 refcount=1 reference=0");
    cr_assert_str_eq(told.text[3], "Leaked cluster 7 refcount=3 reference=1");
    cr_assert_str_eq(told.text[4], "ERROR cluster 9 refcount=0 reference=1");
    cr_assert_str_eq(told.text[0], "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000000e00 refcount=3");
    cr_assert_str_eq(told.text[1], "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000001200 refcount=0");
}

Test(check, copied_flag)
{
    struct told told = {0};

    make_image();
    put_l2(0, DATA);
    check(&told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION, "ERROR OFLAG_COPIED data cluster: l2_entry=a00 refcount=1");

    told = (struct told){0};
    make_image();
    put(L1, 8, L2);
    check(&told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION,
                "ERROR OFLAG_COPIED L2 cluster: l1_index=0 l1_entry=800 refcount=1");
}

Test(check, reserved_bits)
{
    struct told told = {0};

    make_image();
    put_l2(0, ENTRY_COPIED | DATA | 1ull << 56);
    check(&told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION,
                "ERROR found l2 entry with reserved bits set: 8100000000000a00");

    told = (struct told){0};
    make_image();
    put(L1, 8, ENTRY_COPIED | L2 | 1);
    check(&told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION,
                "ERROR found L1 entry with reserved bits set: 8000000000000801");

    /* such an entry's block still says what it says, but nothing counts as a reference to the block */
    told = (struct told){0};
    make_image();
    put(REFTABLE, 8, REFBLOCK | 2);
    const struct scow_check_result r = check(&told);
    cr_assert(r.corruptions == 1 && r.leaks == 1);
    cr_assert_str_eq(told.text[0], "ERROR refcount table entry 0 has reserved bits set");
    cr_assert_str_eq(told.text[1], "Leaked cluster 2 refcount=1 reference=0");
}

Test(check, beyond_the_end)
{
    struct told told = {0};

    make_image();
    put_l2(20, ENTRY_COPIED | (IMAGE_CLUSTERS * CLUSTER));
    const struct scow_check_result r = check(&told);
    cr_assert_eq(r.corruptions, 2);
    cr_assert(strstr(told.text[0], "exceeding the end of the file"), "%s", told.text[0]);
    cr_assert(strstr(told.text[1], "OFLAG_COPIED data cluster"), "%s", told.text[1]);
    cr_assert_eq(r.image_end_off, IMAGE_CLUSTERS * CLUSTER);
    cr_assert_eq(r.fragmented_clusters, 0, "a guest hole is not fragmentation");

    /* far away, where no refcount block is, nor ever could be */
    told = (struct told){0};
    make_image();
    put_l2(20, ENTRY_COPIED | ENTRY_OFF_MASK);
    cr_assert_eq(check(&told).corruptions, 2);
}

/* The clean image with one more entry: a compressed cluster. */
static struct scow_check_result check_compressed(uint64_t off, uint64_t sectors, struct told *told)
{
    memset(told, 0, sizeof *told);
    make_image();
    put_l2(30, ENTRY_COMPRESSED | off | (sectors - 1) << 61);
    return check(told);
}

Test(check, compressed_extent_at_a_cluster_boundary)
{
    const uint64_t end = IMAGE_CLUSTERS * CLUSTER;
    struct told told;
    struct scow_check_result r;

    /* shares the last cluster, ends with it: one more reference to that one only */
    r = check_compressed(end - CLUSTER, 1, &told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION, "ERROR cluster 14 refcount=1 reference=2");
    cr_assert_eq(r.compressed_clusters, 1);
    cr_assert_eq(r.compressed_bytes, 512);
    cr_assert_eq(r.image_end_off, end);
    r = check_compressed(end - 1, 1, &told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION, "ERROR cluster 14 refcount=1 reference=2");
    cr_assert_eq(r.compressed_bytes, 1);

    /* one sector more, with clusters of one sector, is a whole cluster that the file does not have */
    check_compressed(end - 1, 2, &told);
    cr_assert_eq(told.count, 1);
    cr_assert(strstr(told.text[0], "exceeding the end of the file"), "%s", told.text[0]);

    /* never COPIED */
    make_image();
    put_l2(30, ENTRY_COMPRESSED | ENTRY_COPIED | (end - CLUSTER));
    memset(&told, 0, sizeof told);
    r = check(&told);
    cr_assert_eq(r.corruptions, 2);
    cr_assert_str_eq(told.text[0],
                     "ERROR: coffset=0x1c00: copied flag must never be set for compressed clusters");
}

/* Clusters of 1 KiB: header, refcount table, refcount block, L1, L2, and one with a compressed stream. */
static void make_wide_image(void)
{
    memset(image, 0, sizeof image);
    image_bytes = 6 * 1024;
    put(0, 4, QCOW2_MAGIC);
    put(4, 4, 3);
    put(20, 4, 10);
    put(24, 8, 1 << 16);
    put(36, 4, 1);
    put(40, 8, 3 * 1024);
    put(48, 8, 1024);
    put(56, 4, 1);
    put(96, 4, 4);
    put(100, 4, 104);
    put(1024, 8, 2 * 1024);
    put(3 * 1024, 8, ENTRY_COPIED | 4 * 1024);
    for (uint32_t i = 0; i < 6; i++)
        put(2 * 1024 + i * 2, 2, 1);
}

Test(check, compressed_extent_that_passes_the_end)
{
    struct told told = {0};
    struct scow_check_result r;

    make_wide_image();
    put(4 * 1024, 8, ENTRY_COMPRESSED | (6 * 1024 - 512));
    check(&told);
    cr_assert_eq(told.count, 0, "%s", told.text[0]);

    /* Half a cluster beyond the end is no more than a last cluster that is there in part, and it counts. */
    put(4 * 1024, 8, ENTRY_COMPRESSED | (6 * 1024 - 512) | 1ull << 60);
    r = check(&told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION, "ERROR cluster 6 refcount=0 reference=1");
    cr_assert_eq(r.image_end_off, 7 * 1024);
    put(2 * 1024 + 6 * 2, 2, 1);
    told = (struct told){0};
    check(&told);
    cr_assert_eq(told.count, 0, "%s", told.text[0]);

    put(4 * 1024, 8, ENTRY_COMPRESSED | (6 * 1024 - 512) | 2ull << 60);
    check(&told);
    cr_assert(strstr(told.text[0], "exceeding the end of the file"), "%s", told.text[0]);
}

Test(check, one_bit_refcounts_overflow)
{
    struct told told = {0};

    make_image();
    put(96, 4, 0);
    memset(image + REFBLOCK, 0, CLUSTER);
    image[REFBLOCK] = 0xff;
    image[REFBLOCK + 1] = 0x7f;
    put_l2(11, ENTRY_COPIED | DATA);
    put_l2(12, ENTRY_COPIED | DATA);
    const struct scow_check_result r = check(&told);

    cr_assert_eq(r.corruptions, 2);
    cr_assert_eq(r.leaks, 0);
    cr_assert_str_eq(told.text[0], "ERROR: overflow cluster offset=0xa00");
    cr_assert_eq(r.fragmented_clusters, 2);
}

Test(check, unaligned_refcount_block_is_an_error_per_cluster)
{
    struct told told = {0};

    make_wide_image();
    put(24, 8, 0);
    put(36, 4, 0);
    put(1024, 8, 2 * 1024 + 512);
    const struct scow_check_result r = check(&told);

    cr_assert_eq(r.check_errors, 6);
    cr_assert_eq(r.corruptions, 1);
    cr_assert(strstr(told.text[0], "refcount block 0 is not cluster aligned"));
    cr_assert_str_eq(told.text[6], "Can't get refcount for cluster 5: Input/output error");
    cr_assert_eq(told.kind[6], SCOW_PROBLEM_ERROR);
}

Test(check, no_refcount_block)
{
    struct told told = {0};

    make_image();
    put(REFTABLE, 8, 0);
    const struct scow_check_result r = check(&told);

    /* ten data clusters and the L2 table with COPIED; all but the block without a refcount */
    cr_assert_eq(r.corruptions, DATA_CLUSTERS + 1 + IMAGE_CLUSTERS - 1);
    cr_assert_eq(r.leaks, 0);
    cr_assert_eq(r.host_clusters, 0);
}

Test(check, l1_entry_that_names_the_header)
{
    struct told told = {0};

    make_image();
    put(L1 + 8, 8, ENTRY_COPIED);
    /* the header's fields are no L2 entries: what they are taken for must not matter beyond the counts */
    cr_assert_gt(check(&told).corruptions, 0);
}

Test(check, snapshot_table)
{
    struct told told = {0};
    struct scow_check_result r;

    make_image();
    put(60, 4, 1);
    put(64, 8, 14 * CLUSTER);
    put_l2(9, 0); /* cluster 14 is the snapshot table now, cluster 13 its L1 table */
    put_l2(8, 0);
    memset(image + 13 * CLUSTER, 0, 2 * CLUSTER);
    put(13 * CLUSTER, 8, L2);
    put(14 * CLUSTER, 8, 13 * CLUSTER);
    put(14 * CLUSTER + 8, 4, 1);
    put(14 * CLUSTER + 36, 4, 16);
    for (uint32_t i = 4; i < 13; i++)
        put_refcount(i, 2);
    put(L1, 8, L2);
    for (uint32_t i = 0; i < 8; i++)
        put_l2(i, DATA + i * CLUSTER);
    r = check(&told);
    cr_assert_eq(told.count, 0, "%s", told.text[0]);
    cr_assert_eq(r.shared_clusters, 8);
    cr_assert_eq(r.allocated_clusters, 8);
    cr_assert_eq(r.metadata_bytes, 7 * CLUSTER);

    put(14 * CLUSTER + 36, 4, 8);
    check(&told);
    expect_only(&told, SCOW_PROBLEM_CORRUPTION, "ERROR snapshot table entry 0 is incomplete");

    told = (struct told){0};
    put(14 * CLUSTER + 36, 4, 16);
    put(14 * CLUSTER, 8, 13 * CLUSTER + 8);
    r = check(&told);
    cr_assert(strstr(told.text[0], "L1 table is not cluster aligned"), "%s", told.text[0]);
    cr_assert_eq(r.leaks, 10);

    /* a table that cannot be read ends the check */
    struct scow_image *handle;
    put(14 * CLUSTER + 36, 4, 1025);
    handle = open_image(SCOW_FORMAT_QCOW2);
    cr_assert_lt(scow_check(handle, NULL, &r), 0);
    cr_assert(strstr(scow_error(), "snapshot table"), "%s", scow_error());
    scow_close(handle);
}

static int stop_at_once(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    cr_assert_leq(done, total);
    return 1;
}

Test(check, arguments)
{
    struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;
    struct scow_image *handle;

    make_image();
    handle = open_image(SCOW_FORMAT_QCOW2);
    cr_assert_eq(scow_check(handle, NULL, &r), 0);

    o.flags = 1u << 5;
    cr_assert_eq(scow_check(handle, &o, &r), -EINVAL);
    cr_assert(strstr(scow_error(), "flags 0x20"));
    o = (struct scow_check_options)SCOW_CHECK_OPTIONS_INIT;
    o.reserved[3] = 1;
    cr_assert_eq(scow_check(handle, &o, &r), -EINVAL);
    o = (struct scow_check_options)SCOW_CHECK_OPTIONS_INIT;
    o.threads = 257;
    cr_assert_eq(scow_check(handle, &o, &r), -EINVAL);
    o = (struct scow_check_options)SCOW_CHECK_OPTIONS_INIT;
    o.size = 0;
    cr_assert_eq(scow_check(handle, &o, &r), -EINVAL);

    o = (struct scow_check_options)SCOW_CHECK_OPTIONS_INIT;
    o.progress = stop_at_once;
    cr_assert_eq(scow_check(handle, &o, &r), -ECANCELED);
    cr_assert_str_eq(scow_error(), "the check was stopped");
    scow_close(handle);

    handle = open_image(SCOW_FORMAT_RAW);
    cr_assert_eq(scow_check(handle, NULL, &r), -ENOTSUP);
    scow_close(handle);
}

Test(check, older_caller)
{
    struct scow_check_result r, untouched;
    struct scow_image *handle;

    make_image();
    memset(&untouched, 0x5a, sizeof untouched);
    r = untouched;
    r.size = offsetof(struct scow_check_result, passes);
    handle = open_image(SCOW_FORMAT_QCOW2);
    cr_assert_eq(scow_check(handle, NULL, &r), 0);
    cr_assert_eq(r.total_clusters, GUEST_CLUSTERS);
    cr_assert_eq(memcmp(&r.passes, &untouched.passes, sizeof r - offsetof(struct scow_check_result, passes)),
                 0);
    scow_close(handle);
}
