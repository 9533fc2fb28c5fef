/* SPDX-License-Identifier: MIT */
/* Repair from inside: the order of its writes, failures of each of them, and recovery after a crash. What it
 * mends is compared with QEMU's in tests/compat. */
#include <criterion/criterion.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/byteorder.h"
#include "engine/image.h"
#include "engine/repair.h"
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
#define BYTES_MAX (600 * CLUSTER)

static uint8_t bytes[BYTES_MAX];
static size_t byte_count;

static void put_refcount(uint64_t cluster, uint16_t value)
{
    put_be16(bytes + REFBLOCK + cluster * 2, value);
}

static void put_l2(uint32_t index, uint64_t entry)
{
    put_be64(bytes + L2 + index * 8, entry);
}

static void make_image(void)
{
    memset(bytes, 0, sizeof bytes);
    byte_count = IMAGE_CLUSTERS * CLUSTER;
    put_be32(bytes, QCOW2_MAGIC);
    put_be32(bytes + 4, 3);
    put_be32(bytes + 20, 9);
    put_be64(bytes + 24, 64 * CLUSTER);
    put_be32(bytes + 36, 1);
    put_be64(bytes + 40, L1);
    put_be64(bytes + 48, REFTABLE);
    put_be32(bytes + 56, 1);
    put_be32(bytes + 96, 4);
    put_be32(bytes + 100, 104);
    put_be64(bytes + REFTABLE, REFBLOCK);
    put_be64(bytes + L1, ENTRY_COPIED | L2);
    for (uint32_t i = 0; i < DATA_CLUSTERS; i++) {
        put_l2(i, ENTRY_COPIED | (DATA + i * CLUSTER));
        memset(bytes + DATA + i * CLUSTER, 'a' + (int)i, CLUSTER);
    }
    for (uint32_t i = 0; i < IMAGE_CLUSTERS; i++)
        put_refcount(i, 1);
}

/* A refcount too low, one too high, an entry whose flag follows from either, and two leaks. */
static void damage_in_place(void)
{
    put_be64(bytes + 72, INCOMPAT_DIRTY);
    put_refcount(7, 0);
    put_refcount(8, 2);
    put_l2(3, DATA + 3 * CLUSTER);
    put_l2(5, 0);
    put_l2(6, 0);
}

/* ---- a file that is watched ---- */

static struct {
    struct file_ops ops;
    const struct file_ops *real;
    char log[64]; /* one letter per change: Header, reftable T, Block, L1 1, L2 2, Other; Sync, tRuncate,
                     Punch */
    uint32_t steps, fail_step; /* which of them fails, from 1 */
    _Atomic uint32_t reads;
    uint32_t fail_read; /* the same, of a repair's */
    bool repairs;
} watched;

static int step(char letter)
{
    const size_t n = strlen(watched.log);

    cr_assert_lt(n + 1, sizeof watched.log);
    watched.log[n] = letter;
    return ++watched.steps == watched.fail_step ? -EIO : 0;
}

static ssize_t watched_pread(struct file *f, void *buf, size_t n, uint64_t off)
{
    return watched.repairs && ++watched.reads == watched.fail_read ? -EIO
                                                                   : watched.real->pread(f, buf, n, off);
}

static ssize_t watched_pwrite(struct file *f, const void *buf, size_t n, uint64_t off)
{
    const char letters[] = {'H', 'T', 'B', '1', '2'};
    const int r = step(off / CLUSTER < sizeof letters ? letters[off / CLUSTER] : 'O');

    return r < 0 ? r : watched.real->pwrite(f, buf, n, off);
}

static int watched_sync(struct file *f)
{
    const int r = step('S');

    return r < 0 ? r : watched.real->sync(f);
}

static int watched_truncate(struct file *f, uint64_t n)
{
    const int r = step('R');

    return r < 0 ? r : watched.real->truncate(f, n);
}

static int watched_punch(struct file *f, uint64_t off, uint64_t n)
{
    const int r = step('P');

    return r < 0 ? r : watched.real->punch(f, off, n);
}

static int image_fd = -1;

static struct scow_image *open_image(uint32_t file_flags, uint32_t open_flags)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_image *image = NULL;
    struct file *file;
    struct env *env;

    cr_assert_eq(env_create_os(&env), 0);
    cr_assert_eq(file_open_fd(image_fd, NULL, FILE_BUFFERED, file_flags, &file), 0, "%s", scow_error());
    watched.real = file->ops;
    watched.ops = *file->ops;
    watched.ops.pread = watched_pread;
    watched.ops.pwrite = watched_pwrite;
    watched.ops.sync = watched_sync;
    watched.ops.truncate = watched_truncate;
    watched.ops.punch = watched_punch;
    watched.steps = watched.fail_step = 0;
    memset(watched.log, 0, sizeof watched.log);
    file->ops = &watched.ops;
    o.flags = SCOW_OPEN_NO_LOCK | open_flags;
    cr_assert_eq(image_open(env, file, &o, &image), 0, "%s", scow_error());
    return image;
}

static void to_file(void)
{
    if (image_fd < 0)
        image_fd = memfd_create("image", MFD_CLOEXEC);
    cr_assert_geq(image_fd, 0);
    cr_assert_eq(ftruncate(image_fd, 0), 0);
    cr_assert_eq(pwrite(image_fd, bytes, byte_count, 0), (ssize_t)byte_count);
}

static void from_file(void)
{
    const ssize_t n = pread(image_fd, bytes, sizeof bytes, 0);

    cr_assert_geq(n, 0);
    byte_count = (size_t)n;
}

static struct scow_check_result check(void)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;
    struct scow_image *const image = open_image(0, SCOW_OPEN_NO_IO);

    cr_assert_eq(scow_check(image, NULL, &r), 0, "%s", scow_error());
    scow_close(image);
    return r;
}

/* Of what is in bytes; leaves the result there. */
static int repair(uint32_t flags, uint32_t fail_step, struct scow_check_result *ret)
{
    struct scow_image *image;
    int r;

    to_file();
    image = open_image(FILE_WRITE, SCOW_OPEN_NO_IO);
    watched.fail_step = fail_step;
    watched.reads = 0;
    watched.repairs = true;
    r = image_repair(image, flags, NULL, ret);
    watched.repairs = false;
    scow_close(image);
    from_file();
    return r;
}

static void expect_clean(void)
{
    to_file();
    const struct scow_check_result r = check();

    cr_assert_eq(r.corruptions, 0);
    cr_assert_eq(r.leaks, 0);
    cr_assert_eq(get_be64(bytes + 72), 0);
}

/* ---- tests ---- */

Test(repair, order_in_place)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    make_image();
    damage_in_place();
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_ALL, 0, &r), 0, "%s", scow_error());
    /* raise, flags, lower, each durable; then the dirty bit */
    cr_assert_str_eq(watched.log, "BS2SBSHS");
    cr_assert_eq(r.corruptions_fixed, 2);
    cr_assert_eq(r.leaks_fixed, 3);
    cr_assert_eq(r.corruptions + r.leaks + r.check_errors, 0);
    expect_clean();
}

Test(repair, order_of_new_refcounts)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    make_image();
    put_be64(bytes + REFTABLE, REFBLOCK + 1);
    put_l2(5, 0);
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_ALL, 0, &r), 0, "%s", scow_error());
    /* behind the end of the file: extended, block and table written, then the header names them */
    cr_assert_str_eq(watched.log, "ROOSHS");
    cr_assert_eq(get_be64(bytes + 48), IMAGE_CLUSTERS * CLUSTER);
    expect_clean();
}

Test(repair, new_refcounts_leave_lost_clusters_alone)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    /* Both clusters of the new structure would fit into leaked ones. Free ones come first. */
    make_image();
    for (uint32_t i = 2; i < 6; i++)
        put_l2(i, 0);
    byte_count += 2 * CLUSTER;
    put_be64(bytes + REFTABLE + 8, REFBLOCK); /* twice */
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_ALL, 0, &r), 0, "%s", scow_error());
    cr_assert_eq(get_be64(bytes + 48), IMAGE_CLUSTERS * CLUSTER);
    cr_assert_eq(bytes[DATA + 2 * CLUSTER], 'c');
    expect_clean();
}

static void damage_all(void)
{
    damage_in_place();
    put_be64(bytes + REFTABLE + 8, REFBLOCK);
}

Test(repair, any_step_may_fail)
{
    void (*const damages[])(void) = {damage_in_place, damage_all};
    const uint32_t steps_min[] = {8, 10};

    for (int k = 0; k < 2; k++) {
        uint32_t fail = 1;

        for (;; fail++) {
            struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

            make_image();
            damages[k]();
            if (repair(SCOW_CHECK_REPAIR_ALL, fail, &r) == 0)
                break;
            cr_assert(strstr(scow_error(), "Input/output error"), "%s", scow_error());
            /* what is left can be repaired, and nothing that is in use was lost */
            cr_assert_eq(repair(SCOW_CHECK_REPAIR_ALL, 0, &r), 0, "%s", scow_error());
            expect_clean();
            for (uint32_t i = 0; i < DATA_CLUSTERS; i++)
                cr_assert_eq(bytes[DATA + i * CLUSTER], 'a' + (int)i);
        }
        cr_assert_gt(fail, steps_min[k], "only %u steps", fail - 1);
    }
}

static void leave_leaks(void)
{
    put_l2(5, 0);
    put_refcount(9, 2);
}

/* One that fails, and not the next of the same place: what the repair calls repaired is. */
Test(repair, any_read_may_fail)
{
    void (*const damages[])(void) = {damage_in_place, damage_all, leave_leaks};
    const uint32_t flags[] = {SCOW_CHECK_REPAIR_ALL, SCOW_CHECK_REPAIR_ALL,
                              SCOW_CHECK_REPAIR_LEAKS | REPAIR_RECOVER};

    for (int k = 0; k < 3; k++) {
        uint32_t reads, noticed = 0;

        for (uint32_t fail = 1;; fail++) {
            struct scow_check_result r = SCOW_CHECK_RESULT_INIT;
            int ret;

            make_image();
            damages[k]();
            watched.fail_read = fail;
            ret = repair(flags[k], 0, &r);
            watched.fail_read = 0;
            reads = watched.reads;
            if (ret < 0 || r.corruptions + r.leaks + r.check_errors) {
                noticed++;
                cr_assert_eq(repair(SCOW_CHECK_REPAIR_ALL, 0, &r), 0, "%s", scow_error());
            }
            expect_clean();
            for (uint32_t i = 0; i < DATA_CLUSTERS; i++)
                cr_assert(bytes[DATA + i * CLUSTER] == 'a' + (int)i || (k == 2 && i == 5));
            if (reads < fail)
                break;
        }
        cr_assert_gt(reads, 5);
        cr_assert_gt(noticed, reads / 2, "of %u reads %u were noticed", reads, noticed);
    }
}

Test(repair, recovery_lowers_and_punches)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    make_image();
    put_l2(5, 0);
    put_l2(6, 0);
    put_refcount(9, 2); /* a snapshot that was not finished */
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_LEAKS | REPAIR_RECOVER, 0, &r), 0, "%s", scow_error());
    cr_assert_eq(r.leaks_fixed, 3);
    cr_assert_eq(r.corruptions_fixed, 0);
    cr_assert_str_eq(watched.log, "BSP");
    expect_clean();
    cr_assert_eq(bytes[DATA + 4 * CLUSTER], 'e');
    cr_assert_eq(bytes[DATA + 5 * CLUSTER], 0);
    cr_assert_eq(bytes[DATA + 7 * CLUSTER - 1], 0);
    cr_assert_eq(bytes[DATA + 7 * CLUSTER], 'h');
}

Test(repair, recovery_of_a_clean_image_writes_nothing)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    make_image();
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_LEAKS | REPAIR_RECOVER, 0, &r), 0, "%s", scow_error());
    cr_assert_str_eq(watched.log, "");
}

Test(repair, recovery_keeps_off_corruptions)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    make_image();
    put_l2(5, 0);
    put_refcount(7, 0);
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_LEAKS | REPAIR_RECOVER, 0, &r), 0, "%s", scow_error());
    cr_assert_eq(r.corruptions, 1);
    cr_assert_eq(r.leaks, 1);
    cr_assert_eq(r.leaks_fixed, 0);
    cr_assert_str_eq(watched.log, "");
}

Test(repair, leaks_only_says_when_that_is_not_enough)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;

    make_image();
    put_refcount(7, 0);
    cr_assert_eq(repair(SCOW_CHECK_REPAIR_LEAKS, 0, &r), -EIO);
    cr_assert(strstr(scow_error(), "full repair"), "%s", scow_error());
    cr_assert_str_eq(watched.log, "");
}

Test(repair, keeps_what_is_in_memory_in_step)
{
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;
    struct scow_image *image;
    const struct layer *layer;

    make_image();
    put_be64(bytes + 72, INCOMPAT_DIRTY);
    put_be64(bytes + L1, L2);
    put_be64(bytes + REFTABLE + 8, REFBLOCK);
    to_file();
    image = open_image(FILE_WRITE, 0);
    layer = image_top(image);
    cr_assert_eq(image_repair(image, SCOW_CHECK_REPAIR_ALL, NULL, &r), 0, "%s", scow_error());
    from_file();
    const struct map_root *const root = atomic_load(&layer->root);

    cr_assert_eq(atomic_load(&root->l1[0]), ENTRY_COPIED | L2);
    cr_assert_eq(get_be64(bytes + L1), ENTRY_COPIED | L2);
    cr_assert_eq(layer->header.incompatible, 0);
    cr_assert_eq(layer->header.reftable_off, get_be64(bytes + 48));
    cr_assert_neq(layer->header.reftable_off, REFTABLE);
    cr_assert_eq(memcmp(layer->cluster0, bytes, CLUSTER), 0);
    cr_assert_eq(layer->file->bytes, byte_count);
    scow_close(image);
    expect_clean();
}

Test(repair, asks_for_an_image_that_is_open_for_it)
{
    struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
    struct scow_check_result r = SCOW_CHECK_RESULT_INIT;
    struct scow_image *image;

    make_image();
    to_file();
    image = open_image(0, SCOW_OPEN_NO_IO);
    o.flags = SCOW_CHECK_REPAIR_ALL;
    cr_assert_eq(scow_check(image, &o, &r), -EROFS);
    cr_assert_eq(image_repair(image, SCOW_CHECK_REPAIR_ALL, NULL, &r), -EROFS);
    o.flags = 1u << 9;
    cr_assert_eq(scow_check(image, &o, &r), -EINVAL);
    scow_close(image);
}
