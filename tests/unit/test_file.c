/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/file.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"
#include "tests/unit/test_env.h"

TestSuite(file, .fini = abort_if_memory_is_lost);
TestSuite(file_extent, .fini = abort_if_memory_is_lost);

#define FILE_BYTES 700001u
#define SALT 3u

static const char *make_file(void)
{
    static uint8_t content[FILE_BYTES];
    const char *path = scratch("file");
    FILE *f = fopen(path, "we");

    stamp_fill(content, sizeof content, 0, SALT);
    cr_assert_eq(fwrite(content, 1, sizeof content, f), sizeof content);
    fclose(f);
    return path;
}

static bool is_content(const uint8_t *buf, uint64_t off, size_t bytes)
{
    static uint8_t expected[2 * FILE_BYTES], *all;
    const size_t there = off < FILE_BYTES ? MIN(bytes, FILE_BYTES - off) : 0;

    if (!all) {
        all = malloc(FILE_BYTES);
        stamp_fill(all, FILE_BYTES, 0, SALT);
    }
    memset(expected, 0, bytes);
    if (there)
        memcpy(expected, all + off, there);
    return !memcmp(expected, buf, bytes);
}

static void read_everywhere(struct file *f)
{
    uint8_t *memory = aligned_alloc(4096, 800 * 1024);
    uint64_t seed = 5;

    for (int i = 0; i < 300; i++) {
        const uint64_t off = random_below(&seed, i % 3 ? FILE_BYTES + 5000 : 3 * 4096);
        const size_t bytes = random_below(&seed, i % 5 ? 9000 : 600000) + 1;
        uint8_t *buf = memory + (i % 4 ? random_below(&seed, 4096) : 0);

        memset(memory, 0xee, 700 * 1024);
        cr_assert_eq(file_read(f, buf, bytes, off), 0, "%s", error_message());
        cr_assert(is_content(buf, off, bytes), "%zu bytes at %lu", bytes, off);
        cr_assert_eq(buf[bytes], 0xee, "nothing is written past the request");
        if (buf > memory)
            cr_assert_eq(buf[-1], 0xee, "nor before it");
    }
    free(memory);
}

Test(file, reads_at_any_alignment)
{
    const enum file_mode modes[] = {FILE_AUTO, FILE_BUFFERED};
    const char *path = make_file();

    for (size_t i = 0; i < ARRAY_COUNT(modes); i++) {
        struct file *f;

        cr_assert_eq(file_open(path, modes[i], &f), 0, "%s", error_message());
        cr_assert_eq(f->bytes, FILE_BYTES);
        cr_assert_eq(f->direct, f->io_align > 1);
        read_everywhere(f);
        file_close(f);
    }
}

Test(file, short_system_calls_are_continued)
{
    const enum file_mode modes[] = {FILE_AUTO, FILE_BUFFERED};
    const char *path = make_file();

    for (size_t i = 0; i < ARRAY_COUNT(modes); i++) {
        struct test_plan plan = {.short_reads = true};
        struct env *env = test_env_create(&plan);
        struct file *f;

        cr_assert_eq(test_env_open(env, path, modes[i], &f), 0);
        read_everywhere(f);
        cr_assert_gt(atomic_load(&plan.reads), 600, "they were short");
        file_close(f);
        env->ops->destroy(env);
        cr_assert(test_plan_all_gone(&plan));
    }
}

Test(file, an_error_names_file_and_offset)
{
    struct test_plan plan = {.fail_read = 2};
    struct env *env = test_env_create(&plan);
    struct file *f;
    uint8_t buf[512];

    cr_assert_eq(test_env_open(env, make_file(), FILE_BUFFERED, &f), 0);
    cr_assert_eq(file_read(f, buf, sizeof buf, 0), 0);
    cr_assert_eq(file_read(f, buf, sizeof buf, 0x1200), -EIO);
    cr_assert(strstr(error_message(), "/file: reading 512 bytes at offset 0x1200 failed: Input/output error"),
              "%s", error_message());
    cr_assert_eq(file_read(f, buf, sizeof buf, INT64_MAX - 100), -EFBIG);
    cr_assert_eq(file_read(f, buf, sizeof buf, UINT64_MAX - 100), -EFBIG);
    file_close(f);
    env->ops->destroy(env);
}

Test(file, what_cannot_be_opened)
{
    const int before = open_descriptors();
    struct file *f = NULL;

    cr_assert_eq(file_open(scratch("no such file"), FILE_AUTO, &f), -ENOENT);
    cr_assert(strstr(error_message(), "no such file"), "%s", error_message());
    cr_assert_eq(file_open("/", FILE_AUTO, &f), -EINVAL);
    cr_assert_str_eq(error_message(), "/ is neither a regular file nor a block device");
    cr_assert_eq(file_open("/dev/zero", FILE_BUFFERED, &f), -EINVAL);
    const char *fifo = scratch("fi\nfo");
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_eq(file_open(fifo, FILE_AUTO, &f), -EINVAL, "and does not wait for a writer");
    cr_assert(strstr(error_message(), "fi\\x0afo"), "%s", error_message());
    cr_assert_eq(file_open_fd(-1, NULL, FILE_AUTO, &f), -EBADF, "%s", error_message());
    cr_assert_null(f, "outputs are written on success only");
    cr_assert_eq(open_descriptors(), before);
    file_close(NULL);
}

Test(file, from_a_descriptor)
{
    const int before = open_descriptors();
    const int fd = open(make_file(), O_RDONLY | O_CLOEXEC);
    struct file *f;
    uint8_t buf[100];

    cr_assert_eq(lseek(fd, 123, SEEK_SET), 123);
    cr_assert_eq(file_open_fd(fd, NULL, FILE_AUTO, &f), 0, "%s", error_message());
    cr_assert_neq(f->fd, fd, "the descriptor is not taken");
    cr_assert_eq(file_read(f, buf, sizeof buf, 1000), 0);
    cr_assert(is_content(buf, 1000, sizeof buf));
    cr_assert_str_eq(file_name(f), "(descriptor)");
    cr_assert_eq(lseek(fd, 0, SEEK_CUR), 123, "its cursor is its own");
    file_close(f);
    cr_assert_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
    cr_assert_eq(file_open_fd(fd, "a/name", FILE_BUFFERED, &f), 0);
    cr_assert_str_eq(file_name(f), "a/name");
    file_close(f);
    close(fd);
    cr_assert_eq(open_descriptors(), before);
}

Test(file, an_unlinked_file_by_descriptor)
{
    const char *path = make_file();
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct file *f;
    uint8_t buf[100];

    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(file_open_fd(fd, NULL, FILE_AUTO, &f), 0, "%s", error_message());
    cr_assert_eq(file_read(f, buf, sizeof buf, 5), 0);
    cr_assert(is_content(buf, 5, sizeof buf));
    file_close(f);
    close(fd);
}

/* ---- extents ---- */

#define STEP (256u << 10)

/* data, hole, data, hole to the end */
static struct file *sparse_file(void)
{
    const char *path = scratch("sparse");
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    uint8_t *data = malloc(STEP);
    struct file *f;

    memset(data, 1, STEP);
    cr_assert_eq(pwrite(fd, data, STEP, 0), STEP);
    cr_assert_eq(pwrite(fd, data, STEP, 2 * STEP), STEP);
    cr_assert_eq(ftruncate(fd, 4 * STEP), 0);
    if (lseek(fd, 0, SEEK_HOLE) != STEP)
        cr_skip("this filesystem does not tell holes");
    free(data);
    close(fd);
    cr_assert_eq(file_open(path, FILE_BUFFERED, &f), 0);
    return f;
}

static void check_extent(struct file *f, uint64_t off, uint64_t limit, bool data, uint64_t bytes)
{
    uint64_t n = 0;
    bool is_data = !data;

    cr_assert_eq(file_extent(f, off, limit, &is_data, &n), 0);
    cr_assert_eq(is_data, data, "at %lu", off);
    cr_assert_eq(n, bytes, "at %lu: %lu", off, n);
}

Test(file_extent, runs)
{
    struct file *f = sparse_file();

    check_extent(f, 0, 4 * STEP, true, STEP);
    check_extent(f, 100, 4 * STEP, true, STEP - 100);
    check_extent(f, 0, 1000, true, 1000);
    check_extent(f, STEP, 4 * STEP, false, STEP);
    check_extent(f, STEP + 5, STEP + 10, false, 5);
    check_extent(f, 2 * STEP, 4 * STEP, true, STEP);
    check_extent(f, 3 * STEP, 4 * STEP, false, STEP);
    check_extent(f, 3 * STEP + 1, 4 * STEP, false, STEP - 1);
    check_extent(f, 4 * STEP, 5 * STEP, false, STEP);
    file_close(f);
}

static int64_t does_not_tell(struct file *f, uint64_t off, bool data)
{
    (void)f, (void)off, (void)data;
    return -EINVAL;
}

Test(file_extent, a_file_that_does_not_tell_is_data)
{
    const struct file_ops ops = {.seek = does_not_tell};
    struct file f = {.ops = &ops};

    check_extent(&f, 10, 1000, true, 990);
}
