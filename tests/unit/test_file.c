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
#include "tests/unit/small_disk.h"
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

        cr_assert_eq(file_open(path, modes[i], 0, &f), 0, "%s", error_message());
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

        cr_assert_eq(test_env_open(env, path, modes[i], 0, &f), 0);
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

    cr_assert_eq(test_env_open(env, make_file(), FILE_BUFFERED, 0, &f), 0);
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

    cr_assert_eq(file_open(scratch("no such file"), FILE_AUTO, 0, &f), -ENOENT);
    cr_assert(strstr(error_message(), "no such file"), "%s", error_message());
    cr_assert_eq(file_open("/", FILE_AUTO, 0, &f), -EINVAL);
    cr_assert_str_eq(error_message(), "/ is neither a regular file nor a block device");
    cr_assert_eq(file_open("/dev/zero", FILE_BUFFERED, 0, &f), -EINVAL);
    const char *fifo = scratch("fi\nfo");
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_eq(file_open(fifo, FILE_AUTO, 0, &f), -EINVAL, "and does not wait for a writer");
    cr_assert(strstr(error_message(), "fi\\x0afo"), "%s", error_message());
    cr_assert_eq(file_open_fd(-1, NULL, FILE_AUTO, 0, &f), -EBADF, "%s", error_message());
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
    cr_assert_eq(file_open_fd(fd, NULL, FILE_AUTO, 0, &f), 0, "%s", error_message());
    cr_assert_neq(f->fd, fd, "the descriptor is not taken");
    cr_assert_eq(file_read(f, buf, sizeof buf, 1000), 0);
    cr_assert(is_content(buf, 1000, sizeof buf));
    cr_assert_str_eq(file_name(f), "(descriptor)");
    cr_assert_eq(lseek(fd, 0, SEEK_CUR), 123, "its cursor is its own");
    file_close(f);
    cr_assert_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
    cr_assert_eq(file_open_fd(fd, "a/name", FILE_BUFFERED, 0, &f), 0);
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
    cr_assert_eq(file_open_fd(fd, NULL, FILE_AUTO, 0, &f), 0, "%s", error_message());
    cr_assert_eq(file_read(f, buf, sizeof buf, 5), 0);
    cr_assert(is_content(buf, 5, sizeof buf));
    file_close(f);
    close(fd);
}

/* ---- writing ---- */

#define MODEL_BYTES (2u * FILE_BYTES)

/* What the file must hold, written byte by byte. */
struct model {
    uint8_t *content; /* MODEL_BYTES */
    uint64_t bytes;   /* size of the file */
};

static void model_write(struct model *m, const struct file *f, const uint8_t *in, size_t bytes, uint64_t off)
{
    const uint64_t end = off + bytes, last = (end + f->io_align - 1) / f->io_align * f->io_align;

    memcpy(m->content + off, in, bytes);
    /* Direct I/O writes whole blocks, if it has to begin or end within one. */
    if (end > m->bytes)
        m->bytes = end;
    if (last > m->bytes)
        m->bytes = last;
}

static void write_everywhere(struct file *f, const char *path)
{
    struct model m = {.content = calloc(1, MODEL_BYTES), .bytes = FILE_BYTES};
    uint8_t *memory = aligned_alloc(4096, 800 * 1024), *found = malloc(MODEL_BYTES);
    uint64_t seed = 6;
    struct stat st;

    stamp_fill(m.content, FILE_BYTES, 0, SALT);
    for (uint32_t i = 0; i < 200; i++) {
        const uint64_t off = random_below(&seed, i % 3 ? FILE_BYTES + 5000 : 3 * 4096);
        const size_t bytes = random_below(&seed, i % 5 ? 9000 : 600000) + 1;
        const uint8_t *buf = memory + (i % 4 ? random_below(&seed, 4096) : 0);

        stamp_fill(memory, 700 * 1024, 0, 100 + i);
        cr_assert_eq(file_write(f, buf, bytes, off), 0, "%s", error_message());
        model_write(&m, f, buf, bytes, off);
        if (i % 10 == 0) {
            cr_assert_eq(file_read(f, found, MODEL_BYTES, 0), 0);
            cr_assert(!memcmp(found, m.content, MODEL_BYTES), "write %u of %zu bytes at %lu", i, bytes, off);
        }
    }
    cr_assert_eq(file_sync(f), 0);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq((uint64_t)st.st_size, m.bytes);
    cr_assert_eq(file_read(f, found, MODEL_BYTES, 0), 0);
    cr_assert(!memcmp(found, m.content, MODEL_BYTES));
    cr_assert_eq(f->bytes, FILE_BYTES, "that is file_truncate()'s");
    free(m.content), free(memory), free(found);
}

Test(file, writes_at_any_alignment)
{
    const enum file_mode modes[] = {FILE_AUTO, FILE_BUFFERED};

    for (size_t i = 0; i < ARRAY_COUNT(modes); i++) {
        const char *path = make_file();
        struct file *f;

        cr_assert_eq(file_open(path, modes[i], FILE_WRITE, &f), 0, "%s", error_message());
        cr_assert(f->writable);
        write_everywhere(f, path);
        file_close(f);
    }
}

Test(file, short_writes_are_continued)
{
    const enum file_mode modes[] = {FILE_AUTO, FILE_BUFFERED};

    for (size_t i = 0; i < ARRAY_COUNT(modes); i++) {
        struct test_plan plan = {.short_reads = true, .short_writes = true};
        struct env *env = test_env_create(&plan);
        const char *path = make_file();
        struct file *f;

        cr_assert_eq(test_env_open(env, path, modes[i], FILE_WRITE, &f), 0);
        write_everywhere(f, path);
        cr_assert_gt(atomic_load(&plan.writes), 400, "they were short");
        file_close(f);
        env->ops->destroy(env);
        cr_assert(test_plan_all_gone(&plan));
    }
}

/* The blocks between two edges are not read; an edge that fails leaves the file alone. */
Test(file, only_edges_are_read)
{
    struct test_plan plan = {0};
    struct env *env = test_env_create(&plan);
    const char *path = make_file();
    uint8_t *buf = aligned_alloc(4096, 65536), found[1000];
    struct file *f;

    memset(buf, 0x5a, 65536);
    cr_assert_eq(test_env_open(env, path, FILE_AUTO, FILE_WRITE, &f), 0);
    if (!f->direct)
        cr_skip("no direct I/O here");
    cr_assert_eq(file_write(f, buf, 65536, 65536), 0);
    cr_assert_eq(atomic_load(&plan.reads), 0);
    cr_assert_eq(file_write(f, buf + 1, 8192, 65536), 0);
    cr_assert_eq(atomic_load(&plan.reads), 0, "only the buffer is not aligned");
    cr_assert_eq(file_write(f, buf, 32768, 65536 + 100), 0);
    cr_assert_eq(atomic_load(&plan.reads), 2);
    cr_assert_eq(file_write(f, buf, 10, 65536 + 100), 0);
    cr_assert_eq(atomic_load(&plan.reads), 3);
    plan.fail_read = 5;
    cr_assert_eq(file_write(f, buf, 32768, 100), -EIO);
    cr_assert(strstr(error_message(), "reading"), "%s", error_message());
    cr_assert_eq(file_read(f, found, sizeof found, 100), 0);
    cr_assert(is_content(found, 100, sizeof found));
    file_close(f);
    env->ops->destroy(env);
    free(buf);
}

Test(file, what_fails_is_named)
{
    struct test_plan plan = {.fail_write = 2, .fail_sync = 1, .fail_truncate = 1, .error = -ENOSPC};
    struct env *env = test_env_create(&plan);
    uint8_t buf[512] = {0};
    struct file *f;

    cr_assert_eq(test_env_open(env, make_file(), FILE_BUFFERED, FILE_WRITE, &f), 0);
    cr_assert_eq(file_write(f, buf, sizeof buf, 0), 0);
    cr_assert_eq(file_write(f, buf, sizeof buf, 0x1200), -ENOSPC);
    cr_assert(
        strstr(error_message(), "/file: writing 512 bytes at offset 0x1200 failed: No space left on device"),
        "%s", error_message());
    cr_assert_eq(file_sync(f), -ENOSPC);
    cr_assert(strstr(error_message(), "/file: syncing failed: No space left"), "%s", error_message());
    cr_assert_eq(file_truncate(f, 1234), -ENOSPC);
    cr_assert(strstr(error_message(), "/file: resizing to 1234 bytes failed: No space"), "%s",
              error_message());
    cr_assert_eq(f->bytes, FILE_BYTES);
    cr_assert_eq(file_write(f, buf, sizeof buf, INT64_MAX - 100), -EFBIG);
    cr_assert_eq(file_write(f, buf, sizeof buf, UINT64_MAX - 100), -EFBIG);
    cr_assert_eq(file_truncate(f, UINT64_MAX), -EFBIG);
    file_close(f);
    env->ops->destroy(env);
}

Test(file, truncate_changes_the_size)
{
    const char *path = make_file();
    struct file *f;
    struct stat st;
    uint8_t buf[100];

    cr_assert_eq(file_open(path, FILE_AUTO, FILE_WRITE, &f), 0);
    cr_assert_eq(file_truncate(f, 2 * FILE_BYTES), 0);
    cr_assert_eq(f->bytes, 2 * FILE_BYTES);
    cr_assert_eq(file_truncate(f, 1000), 0);
    cr_assert_eq(file_truncate(f, 2000), 0);
    cr_assert_eq(f->bytes, 2000);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_size, 2000);
    cr_assert_eq(file_read(f, buf, 50, 950), 0);
    cr_assert(is_content(buf, 950, 50));
    cr_assert_eq(file_read(f, buf, 100, 1000), 0);
    cr_assert(buf[0] == 0 && !memcmp(buf, buf + 1, 99), "what comes back is zeros");
    file_close(f);
    cr_assert_eq(file_open(path, FILE_AUTO, 0, &f), 0);
    cr_assert_not(f->writable);
    cr_assert_lt(file_truncate(f, 10), 0, "open for reading");
    cr_assert_eq(f->bytes, 2000);
    file_close(f);
}

Test(file, create)
{
    const char *path = scratch("new");
    const mode_t mask = umask(027);
    const enum file_mode modes[] = {FILE_AUTO, FILE_BUFFERED};

    for (size_t i = 0; i < ARRAY_COUNT(modes); i++) {
        uint8_t buf[100] = {1, 2, 3}, found[100];
        struct file *f;
        struct stat st;

        unlink(path);
        cr_assert_eq(file_open(path, modes[i], FILE_WRITE, &f), -ENOENT);
        cr_assert(strstr(error_message(), "cannot open "), "%s", error_message());
        cr_assert(strstr(error_message(), "new for writing: No such file"), "%s", error_message());
        cr_assert_eq(file_open(path, modes[i], FILE_WRITE | FILE_CREATE, &f), 0, "%s", error_message());
        cr_assert_eq(fstat(f->fd, &st), 0);
        cr_assert_eq(st.st_mode & 0777, 0640);
        cr_assert_eq(f->bytes, 0);
        cr_assert_eq(file_write(f, buf, sizeof buf, 0), 0);
        file_close(f);
        cr_assert_eq(file_open(path, modes[i], FILE_WRITE | FILE_CREATE, &f), 0, "%s", error_message());
        cr_assert_geq(f->bytes, 100, "it is not made empty");
        cr_assert_eq(file_read(f, found, sizeof found, 0), 0);
        cr_assert(!memcmp(found, buf, sizeof buf));
        file_close(f);
    }
    umask(mask);
}

Test(file, make_buffered)
{
    const char *path = make_file();
    uint8_t buf[777];
    struct file *f;

    cr_assert_eq(file_open(path, FILE_AUTO, FILE_WRITE, &f), 0);
    if (!f->direct)
        cr_skip("no direct I/O here");
    cr_assert_eq(fcntl(f->fd, F_GETFL) & O_DIRECT, O_DIRECT);
    cr_assert_eq(file_make_buffered(f), 0, "%s", error_message());
    cr_assert_eq(file_make_buffered(f), 0, "twice is once");
    cr_assert_eq(fcntl(f->fd, F_GETFL) & O_DIRECT, 0);
    cr_assert(!f->direct && f->io_align == 1 && f->mem_align == 1);
    memset(buf, 7, sizeof buf);
    cr_assert_eq(f->ops->pwrite(f, buf, sizeof buf, 33), sizeof buf, "the kernel agrees");
    cr_assert_eq(f->ops->pread(f, buf, sizeof buf, 33 + sizeof buf), sizeof buf);
    cr_assert(is_content(buf, 33 + sizeof buf, sizeof buf));
    file_close(f);
}

/* ---- writing to a descriptor ---- */

Test(file, a_descriptor_for_writing)
{
    const char *path = make_file();
    const int fd = open(path, O_RDWR | O_CLOEXEC | O_APPEND);
    uint8_t buf[100] = {1}, found[100];
    struct file *f;

    cr_assert_eq(file_open_fd(fd, path, FILE_AUTO, FILE_WRITE, &f), 0, "%s", error_message());
    cr_assert_not(f->shared);
    cr_assert_eq(file_write(f, buf, sizeof buf, 500), 0, "%s", error_message());
    cr_assert_eq(pread(fd, found, sizeof found, 500), sizeof found);
    cr_assert(!memcmp(buf, found, sizeof buf), "and not at the end: it was opened again");
    file_close(f);
    close(fd);
}

Test(file, a_descriptor_that_does_not_allow_writing)
{
    const int before = open_descriptors();
    const char *path = make_file();
    const int hows[] = {O_RDONLY, O_WRONLY, O_PATH};
    struct file *f = NULL;

    for (size_t i = 0; i < ARRAY_COUNT(hows); i++) {
        const int fd = open(path, hows[i] | O_CLOEXEC);

        cr_assert_eq(file_open_fd(fd, path, FILE_AUTO, FILE_WRITE, &f), -EBADF);
        cr_assert(strstr(error_message(), "/file: the descriptor is not open for reading and writing"), "%s",
                  error_message());
        close(fd);
    }
    cr_assert_null(f);
    cr_assert_eq(open_descriptors(), before);
}

/* From here on this process may not open the file again, only use the descriptors that it has. */
static void lose_permission(const char *path)
{
    cr_assert_eq(chmod(path, 0), 0);
    if (geteuid() == 0)
        cr_assert_eq(seteuid(65534), 0);
    cr_assert_lt(open(path, O_RDWR | O_CLOEXEC), 0);
}

Test(file, a_descriptor_that_cannot_be_opened_again)
{
    const char *path = make_file();
    const int fd = open(path, O_RDWR | O_CLOEXEC), reader = open(path, O_RDONLY | O_CLOEXEC),
              appends = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
    uint8_t buf[100] = {1}, found[100];
    struct file *f;

    lose_permission(path);
    cr_assert_eq(file_open_fd(fd, path, FILE_AUTO, FILE_WRITE, &f), 0, "%s", error_message());
    cr_assert(f->shared);
    cr_assert_eq(file_write(f, buf, sizeof buf, 500), 0, "%s", error_message());
    cr_assert_eq(file_read(f, found, sizeof found, 500), 0);
    cr_assert(!memcmp(buf, found, sizeof buf));
    file_close(f);
    cr_assert_eq(file_open_fd(reader, path, FILE_AUTO, FILE_WRITE, &f), -EBADF, "%s", error_message());
    cr_assert_eq(file_open_fd(appends, path, FILE_AUTO, FILE_WRITE, &f), -EINVAL);
    cr_assert(strstr(error_message(), "the descriptor appends"), "%s", error_message());
    cr_assert_eq(file_open_fd(appends, path, FILE_AUTO, 0, &f), 0, "to read, that does not matter");
    file_close(f);
    close(fd), close(reader), close(appends);
    (void)!seteuid(0);
}

Test(file, the_flags_of_a_shared_descriptor_stay)
{
    const char *path = make_file();
    const int fd = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
    struct file *f;

    if (fd < 0)
        cr_skip("no direct I/O here");
    lose_permission(path);
    cr_assert_eq(file_open_fd(fd, path, FILE_AUTO, FILE_WRITE, &f), 0, "%s", error_message());
    cr_assert(f->shared && f->direct);
    cr_assert_eq(file_make_buffered(f), -EINVAL);
    cr_assert(strstr(error_message(), "cannot be opened again without it"), "%s", error_message());
    cr_assert_eq(fcntl(fd, F_GETFL) & O_DIRECT, O_DIRECT);
    cr_assert(f->direct);
    file_close(f);
    close(fd);
    (void)!seteuid(0);
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
    cr_assert_eq(file_open(path, FILE_BUFFERED, 0, &f), 0);
    return f;
}

static void check_extent(struct file *f, uint64_t off, uint64_t limit, bool data, uint64_t bytes)
{
    uint64_t n = 0;
    bool is_data = !data;

    file_extent(f, off, limit, &is_data, &n);
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

/* What a file claims of memory's alignment holds, also where the system claims too much: zram does. */
Test(file, alignment_of_memory, .timeout = 60)
{
    uint8_t *const page = aligned_alloc(4096, 16384), *const buffer = aligned_alloc(4096, 16384);
    char path[SMALL_DISK_PATH_BYTES];
    const int number = zram_add(1 << 20, path);
    struct file *f;

    if (number < 0)
        cr_skip("there is no zram here: %s", strerror(-number));
    for (int filled = 0; filled < 2; filled++) {
        cr_assert_eq(file_open(path, FILE_AUTO, FILE_WRITE, &f), 0, "%s", error_message());
        for (uint32_t i = 0; i < 8192; i++)
            page[i] = (uint8_t)(i * 7 + i / 256 + 1);
        cr_assert_eq(file_write(f, page, 8192, 0), 0, "%s", error_message());
        memset(buffer, 0xee, 16384);
        cr_assert_eq(f->ops->pread(f, buffer + f->mem_align, 8192, 0), 8192);
        cr_assert(!memcmp(buffer + f->mem_align, page, 8192), "%s, aligned to %u", path, f->mem_align);
        memmove(buffer + f->mem_align, page, 8192);
        cr_assert_eq(f->ops->pwrite(f, buffer + f->mem_align, 8192, 16384), 8192);
        cr_assert_eq(file_read(f, buffer, 8192, 16384), 0);
        cr_assert(!memcmp(buffer, page, 8192), "%s, written from memory aligned to %u", path, f->mem_align);
        file_close(f);
    }
    zram_remove(number);
    free(page), free(buffer);
}
