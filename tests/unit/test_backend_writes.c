/* SPDX-License-Identifier: MIT */
/* What the backends do to a file. Every result is compared with what the file holds and occupies afterwards.
 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "tests/unit/bench.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"
#include "tests/unit/small_disk.h"

TestSuite(backend_writes, .fini = abort_if_memory_is_lost);
#define EACH_BACKEND(name) BENCH_EACH(backend_writes, name)

#define OLD 9u /* salts: what was there, */
#define NEW 4u /* and what is written */
#define KIB 1024u
#define MIB (1024u * KIB)
#define FILE_BYTES (1u * MIB)

static void fill_file(const char *path)
{
    static uint8_t content[FILE_BYTES];
    FILE *f = fopen(path, "we");

    cr_assert(f);
    stamp_fill(content, sizeof content, 0, OLD);
    cr_assert_eq(fwrite(content, 1, sizeof content, f), sizeof content);
    cr_assert_eq(fflush(f), 0);
    cr_assert_eq(fdatasync(fileno(f)), 0); /* or its blocks are not counted yet */
    fclose(f);
}

static void set_up(struct bench *b, const struct subject *s)
{
    const char *path = scratch("file");

    fill_file(path);
    bench_open(b, s, path, FILE_WRITE);
}

static uint8_t *stamped(size_t bytes, uint64_t off)
{
    uint8_t *buf = bench_buffer(bytes);

    stamp_fill(buf, bytes, off, NEW);
    return buf;
}

/* [off, off + bytes) of the file; salt 0: zeros. */
static void expect(const struct bench *b, uint64_t off, size_t bytes, uint32_t salt)
{
    uint8_t *expected = calloc(1, bytes), *found = malloc(bytes);

    if (salt)
        stamp_fill(expected, bytes, off, salt);
    cr_assert_eq(file_read(b->file, found, bytes, off), 0, "%s", error_message());
    cr_assert(!memcmp(expected, found, bytes), "%zu bytes at %lu are not those of %u", bytes, off, salt);
    free(expected), free(found);
}

static struct stat status(const struct bench *b)
{
    struct stat st;

    cr_assert_eq(fdatasync(b->file->fd), 0);
    cr_assert_eq(fstat(b->file->fd, &st), 0);
    return st;
}

static int run_write(const struct bench *b, void *buf, uint64_t off, uint32_t bytes)
{
    struct io io = {.kind = IO_WRITE, .buf = buf, .off = off, .bytes = bytes};

    return bench_run(b, &io);
}

/* bytes is what a read or a write would have: nobody clears it for the others. */
static int run_range(const struct bench *b, enum io_kind kind, uint64_t off, uint64_t length)
{
    struct io io = {.kind = kind, .off = off, .length = length, .bytes = 65536};

    return bench_run(b, &io);
}

EACH_BACKEND(writes)
{
    uint8_t *buf = stamped(64 * KIB, 128 * KIB);
    struct bench b;

    set_up(&b, s);
    cr_assert_eq(run_write(&b, buf, 128 * KIB, 64 * KIB), 0);
    expect(&b, 0, 128 * KIB, OLD);
    expect(&b, 128 * KIB, 64 * KIB, NEW);
    expect(&b, 192 * KIB, FILE_BYTES - 192 * KIB, OLD);
    cr_assert_eq(status(&b).st_size, FILE_BYTES);
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(past_the_end_makes_the_file_longer)
{
    uint8_t *buf = stamped(8 * KIB, FILE_BYTES + 64 * KIB);
    struct bench b;

    set_up(&b, s);
    cr_assert_eq(run_write(&b, buf, FILE_BYTES + 64 * KIB, 8 * KIB), 0);
    cr_assert_eq(status(&b).st_size, FILE_BYTES + 72 * KIB);
    expect(&b, FILE_BYTES, 64 * KIB, 0);
    expect(&b, FILE_BYTES + 64 * KIB, 8 * KIB, NEW);
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(vectors_and_durable)
{
    const uint64_t off = 256 * KIB;
    uint8_t *a = stamped(8 * KIB, off), *c = stamped(4 * KIB, off + 8 * KIB),
            *d = stamped(16 * KIB, off + 12 * KIB);
    const struct iovec iov[] = {{a, 8 * KIB}, {c, 4 * KIB}, {d, 16 * KIB}};
    struct io io = {.kind = IO_WRITE, .iov = iov, .iov_count = 3, .bytes = 28 * KIB, .off = off};
    struct bench b;

    set_up(&b, s);
    cr_assert_eq(bench_run(&b, &io), 0);
    expect(&b, off - 4 * KIB, 4 * KIB, OLD);
    expect(&b, off, 28 * KIB, NEW);
    expect(&b, off + 28 * KIB, 4 * KIB, OLD);

    fill_file(b.file->path);
    io.flags = IO_DURABLE;
    cr_assert_eq(bench_run(&b, &io), 0);
    expect(&b, off, 28 * KIB, NEW);
    io.iov = NULL, io.iov_count = 0, io.buf = a, io.bytes = 8 * KIB, io.off = off;
    fill_file(b.file->path);
    cr_assert_eq(bench_run(&b, &io), 0);
    expect(&b, off, 8 * KIB, NEW);
    expect(&b, off + 8 * KIB, 8 * KIB, OLD);
    bench_close(&b);
    free(a), free(c), free(d);
}

EACH_BACKEND(many_in_flight_with_syncs_between)
{
    static struct io ios[BENCH_IOS_MAX];
    uint8_t *buf = stamped(BENCH_IOS_MAX * 4 * KIB, 0);
    struct bench b;

    set_up(&b, s);
    for (uint32_t i = 0; i < BENCH_IOS_MAX; i++) {
        const uint32_t at = i * 7 % BENCH_IOS_MAX * 4 * KIB;

        ios[i] = (struct io){.kind = i % 50 ? IO_WRITE : IO_SYNC, .file = b.file, .result = 77};
        ios[i].buf = buf + at, ios[i].off = at, ios[i].bytes = 4 * KIB;
        backend_prepare(b.backend, &ios[i]);
    }
    bench_finish(&b, BENCH_IOS_MAX);
    for (uint32_t i = 0; i < BENCH_IOS_MAX; i++) {
        cr_assert_eq(ios[i].result, 0);
        if (ios[i].kind == IO_WRITE)
            expect(&b, ios[i].off, 4 * KIB, NEW);
        else if (ios[i].off < FILE_BYTES)
            expect(&b, ios[i].off, 4 * KIB, OLD);
    }
    bench_close(&b);
    free(buf);
}

/* The kernel writes up to the limit, which is short, and refuses the rest. */
EACH_BACKEND(a_short_write_goes_on_to_its_error)
{
    const struct rlimit limit = {.rlim_cur = 2 * MIB + 12 * KIB, .rlim_max = RLIM_INFINITY};
    uint8_t *a = stamped(8 * KIB, 2 * MIB), *c = stamped(16 * KIB, 2 * MIB + 8 * KIB);
    const struct iovec iov[] = {{a, 8 * KIB}, {c, 16 * KIB}};
    struct io io = {.kind = IO_WRITE, .iov = iov, .iov_count = 2, .bytes = 24 * KIB, .off = 2 * MIB};
    struct bench b;

    set_up(&b, s);
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_assert_eq(bench_run(&b, &io), -EFBIG);
    cr_assert_eq(status(&b).st_size, 2 * MIB + 12 * KIB, "the first part was moved");
    expect(&b, 2 * MIB, 12 * KIB, NEW);
    cr_assert_eq(run_range(&b, IO_ALLOCATE, 3 * MIB, MIB), -EFBIG);
    cr_assert_eq(run_write(&b, a, 0, 8 * KIB), 0, "the backend itself goes on");
    bench_close(&b);
    free(a), free(c);
}

EACH_BACKEND(errors_are_results)
{
    uint8_t *buf = stamped(8 * KIB, 0);
    const struct iovec iov[] = {{buf, 4 * KIB}, {(void *)4096, 4 * KIB}};
    struct io io = {.kind = IO_WRITE, .iov = iov, .iov_count = 2, .bytes = 8 * KIB};
    struct bench b;

    set_up(&b, s);
    cr_assert_eq(bench_run(&b, &io), -EFAULT, "a segment without memory");
    expect(&b, 4 * KIB, 4 * KIB, OLD);
    cr_assert_eq(run_write(&b, buf, 0, 8 * KIB), 0);
    expect(&b, 0, 8 * KIB, NEW);
    bench_close(&b);

    fill_file(scratch("file"));
    bench_open(&b, s, scratch("file"), 0);
    cr_assert_eq(run_write(&b, buf, 0, 8 * KIB), -EBADF, "open for reading only");
    cr_assert_eq(run_range(&b, IO_PUNCH, 0, 8 * KIB), -EBADF);
    expect(&b, 0, 8 * KIB, OLD);
    bench_close(&b);
    free(buf);
}

EACH_BACKEND(a_full_disk)
{
    uint8_t *buf = stamped(2 * MIB, 0);
    char path[SMALL_DISK_PATH_BYTES];
    const int disk = small_tmpfs(1 * MIB, path);
    struct bench b;

    if (disk < 0)
        cr_skip("cannot mount a tmpfs: %s", strerror(-disk));
    bench_open(&b, s, path, FILE_WRITE | FILE_CREATE);
    cr_assert_eq(run_range(&b, IO_ALLOCATE, 0, 2 * MIB), -ENOSPC);
    cr_assert_eq(run_write(&b, buf, 0, 2 * MIB), -ENOSPC);
    cr_assert_eq(status(&b).st_size, 1 * MIB, "it was written as far as there was space");
    expect(&b, 0, 1 * MIB, NEW);
    cr_assert_eq(run_range(&b, IO_PUNCH, 0, 64 * KIB), 0);
    expect(&b, 0, 64 * KIB, 0);
    cr_assert_eq(run_write(&b, buf + 1 * MIB, 1 * MIB, 64 * KIB), 0, "what was punched can be used again");
    expect(&b, 1 * MIB, 64 * KIB, NEW);
    cr_assert_eq(run_write(&b, buf, 0, 4 * KIB), -ENOSPC);
    bench_close(&b);
    close(disk);
    free(buf);
}

EACH_BACKEND(allocate_reserves)
{
    struct bench b;
    int r;

    set_up(&b, s);
    const blkcnt_t before = status(&b).st_blocks;
    r = run_range(&b, IO_ALLOCATE, FILE_BYTES - 64 * KIB, 64 * KIB + 4 * MIB);
    if (r == -EOPNOTSUPP) {
        bench_close(&b);
        cr_skip("this filesystem cannot reserve space");
    }
    cr_assert_eq(r, 0, "%s", strerror(-r));
    cr_assert_eq(status(&b).st_size, FILE_BYTES + 4 * MIB);
    cr_assert_geq(status(&b).st_blocks - before, 4 * MIB / 512);
    expect(&b, 0, FILE_BYTES, OLD);
    expect(&b, FILE_BYTES, 4 * MIB, 0);
    bench_close(&b);
}

EACH_BACKEND(punch_gives_space_back)
{
    struct bench b;
    int r;

    set_up(&b, s);
    const blkcnt_t before = status(&b).st_blocks;
    r = run_range(&b, IO_PUNCH, 256 * KIB, 512 * KIB);
    if (r == -EOPNOTSUPP) {
        bench_close(&b);
        cr_skip("this filesystem cannot punch holes");
    }
    cr_assert_eq(r, 0, "%s", strerror(-r));
    cr_assert_leq(status(&b).st_blocks, before - 512 * KIB / 512);
    expect(&b, 0, 256 * KIB, OLD);
    expect(&b, 256 * KIB, 512 * KIB, 0);
    expect(&b, 768 * KIB, 256 * KIB, OLD);
    cr_assert_eq(run_range(&b, IO_PUNCH, FILE_BYTES - 64 * KIB, 1 * MIB), 0);
    expect(&b, FILE_BYTES - 64 * KIB, 64 * KIB, 0);
    cr_assert_eq(status(&b).st_size, FILE_BYTES);
    bench_close(&b);
}

EACH_BACKEND(zero_keeps_space)
{
    struct bench b;
    int r;

    set_up(&b, s);
    const blkcnt_t before = status(&b).st_blocks;
    r = run_range(&b, IO_ZERO, 256 * KIB, 512 * KIB);
    if (r == -EOPNOTSUPP) {
        bench_close(&b);
        cr_skip("this filesystem cannot zero ranges");
    }
    cr_assert_eq(r, 0, "%s", strerror(-r));
    cr_assert_geq(status(&b).st_blocks, before);
    expect(&b, 0, 256 * KIB, OLD);
    expect(&b, 256 * KIB, 512 * KIB, 0);
    expect(&b, 768 * KIB, 256 * KIB, OLD);
    cr_assert_eq(run_range(&b, IO_ZERO, FILE_BYTES - 64 * KIB, 1 * MIB), 0);
    expect(&b, FILE_BYTES - 64 * KIB, 64 * KIB, 0);
    cr_assert_eq(status(&b).st_size, FILE_BYTES);
    bench_close(&b);
}

/* A file that exists has the same answers through the operations of file_ops. */
EACH_BACKEND(the_operations_of_a_file_say_the_same)
{
    struct bench b;

    set_up(&b, s);
    const struct file_ops *ops = b.file->ops;
    cr_assert_eq(ops->zero(b.file, 0, 64 * KIB), run_range(&b, IO_ZERO, 64 * KIB, 64 * KIB));
    cr_assert_eq(ops->punch(b.file, 128 * KIB, 64 * KIB), run_range(&b, IO_PUNCH, 192 * KIB, 64 * KIB));
    cr_assert_eq(ops->allocate(b.file, 2 * MIB, 64 * KIB), run_range(&b, IO_ALLOCATE, 3 * MIB, 64 * KIB));
    cr_assert_eq(ops->sync(b.file), run_range(&b, IO_SYNC, 0, 0));
    bench_close(&b);
}

EACH_BACKEND(a_block_device)
{
    uint8_t *buf = stamped(64 * KIB, FILE_BYTES - 64 * KIB);
    char path[SMALL_DISK_PATH_BYTES];
    struct bench b;
    int disk, r;

    fill_file(scratch("disk"));
    disk = small_block_device(scratch("disk"), path);
    if (disk < 0)
        cr_skip("cannot set up a loop device: %s", strerror(-disk));
    bench_open(&b, s, path, FILE_WRITE);
    cr_assert(b.file->block_device);
    cr_assert_eq(b.file->bytes, FILE_BYTES);
    expect(&b, 0, FILE_BYTES, OLD);
    cr_assert_eq(run_write(&b, buf, FILE_BYTES - 64 * KIB, 64 * KIB), 0);
    expect(&b, FILE_BYTES - 64 * KIB, 64 * KIB, NEW);
    cr_assert_eq(run_write(&b, buf, FILE_BYTES, 4 * KIB), -ENOSPC);
    cr_assert_eq(run_write(&b, buf, FILE_BYTES - 4 * KIB, 8 * KIB), -ENOSPC, "across the end");
    cr_assert_eq(run_range(&b, IO_SYNC, 0, 0), 0);

    cr_assert_eq(run_range(&b, IO_ALLOCATE, 0, 64 * KIB), -EOPNOTSUPP);
    cr_assert_eq(b.file->ops->allocate(b.file, 0, 64 * KIB), -EOPNOTSUPP);
    expect(&b, 0, 64 * KIB, OLD);
    cr_assert_eq(run_range(&b, IO_ZERO, 64 * KIB, 64 * KIB), 0);
    expect(&b, 64 * KIB, 64 * KIB, 0);
    r = run_range(&b, IO_PUNCH, 256 * KIB, 64 * KIB);
    cr_assert(r == 0 || r == -EOPNOTSUPP, "%s", strerror(-r));
    expect(&b, 256 * KIB, 64 * KIB, r ? OLD : 0);
    expect(&b, 320 * KIB, 64 * KIB, OLD);
    cr_assert_eq(run_range(&b, IO_PUNCH, 2 * FILE_BYTES, 64 * KIB), -EOPNOTSUPP, "nothing is there");
    cr_assert_eq(file_truncate(b.file, 2 * FILE_BYTES), -EOPNOTSUPP);
    cr_assert(strstr(error_message(), "a block device of 1048576 bytes cannot be made 2097152 bytes long"),
              "%s", error_message());
    cr_assert_eq(file_truncate(b.file, FILE_BYTES / 2), 0);
    cr_assert_eq(b.file->bytes, FILE_BYTES);
    bench_close(&b);
    close(disk);
    free(buf);
}

/* An answer that the kernel is not asked for comes like any other. */
EACH_BACKEND(a_refusal_among_others)
{
    static struct io ios[40];
    uint8_t *buf = stamped(40 * 4 * KIB, 0);
    char path[SMALL_DISK_PATH_BYTES];
    struct bench b;
    int disk;

    fill_file(scratch("disk"));
    disk = small_block_device(scratch("disk"), path);
    if (disk < 0)
        cr_skip("cannot set up a loop device: %s", strerror(-disk));
    bench_open(&b, s, path, FILE_WRITE);
    for (uint32_t i = 0; i < 40; i++) {
        ios[i] = (struct io){.kind = i % 3 ? IO_WRITE : IO_ALLOCATE, .file = b.file, .result = 77};
        ios[i].buf = buf + i * 4 * KIB, ios[i].off = i * 4 * KIB;
        ios[i].bytes = i % 3 ? 4 * KIB : 0, ios[i].length = 4 * KIB;
        backend_prepare(b.backend, &ios[i]);
    }
    bench_finish(&b, 40);
    for (uint32_t i = 0; i < 40; i++) {
        cr_assert_eq(ios[i].result, i % 3 ? 0 : -EOPNOTSUPP);
        expect(&b, i * 4 * KIB, 4 * KIB, i % 3 ? NEW : OLD);
    }
    bench_close(&b);
    close(disk);
    free(buf);
}
