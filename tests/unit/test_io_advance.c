/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "io/io.h"

static struct file buffered = {.io_align = 1, .mem_align = 1};
static struct file direct = {.io_align = 512, .mem_align = 512};

static uint8_t memory[4096];

static struct io plain_io(struct file *file, uint32_t bytes)
{
    memset(memory, 0xaa, sizeof memory);
    return (struct io){.file = file, .buf = memory, .bytes = bytes};
}

static bool all(const uint8_t *p, size_t n, uint8_t value)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != value)
            return false;
    return true;
}

Test(io_advance, whole)
{
    struct io io = plain_io(&buffered, 1000);

    io.result = 77;
    cr_assert(io_advance(&io, 1000));
    cr_assert_eq(io.result, 0);
}

Test(io_advance, errors_end_it)
{
    struct io io = plain_io(&buffered, 1000);

    cr_assert(io_advance(&io, -EIO));
    cr_assert_eq(io.result, -EIO);
}

Test(io_advance, interruptions_do_not)
{
    struct io io = plain_io(&buffered, 1000);

    cr_assert_not(io_advance(&io, -EINTR));
    cr_assert_not(io_advance(&io, -EAGAIN));
    cr_assert_eq(io_rest(&io).iov_base, memory);
    cr_assert_eq(io_rest(&io).iov_len, 1000);
    cr_assert(io_advance(&io, 1000));
    cr_assert_eq(io.result, 0);
}

Test(io_advance, a_short_read_goes_on_behind_it)
{
    struct io io = plain_io(&buffered, 1000);

    cr_assert_not(io_advance(&io, 1));
    cr_assert_eq(io_rest(&io).iov_base, memory + 1);
    cr_assert_eq(io_rest(&io).iov_len, 999);
    cr_assert_not(io_advance(&io, 700));
    cr_assert_eq(io_rest(&io).iov_base, memory + 701);
    cr_assert_eq(io_rest(&io).iov_len, 299);
    cr_assert(io_advance(&io, 299));
    cr_assert_eq(io.result, 0);
    cr_assert(all(memory, sizeof memory, 0xaa), "nothing was filled in");
}

Test(io_advance, the_end_of_the_file_gives_zeros)
{
    struct io io = plain_io(&buffered, 1000);

    cr_assert_not(io_advance(&io, 300));
    cr_assert(io_advance(&io, 0));
    cr_assert_eq(io.result, 0);
    cr_assert(all(memory, 300, 0xaa));
    cr_assert(all(memory + 300, 700, 0));
    cr_assert(all(memory + 1000, sizeof memory - 1000, 0xaa), "and not one byte more");
}

Test(io_advance, a_direct_read_off_alignment_is_the_end)
{
    struct io io = plain_io(&direct, 2048);

    cr_assert_not(io_advance(&io, 512), "on alignment: short, to be continued");
    cr_assert(io_advance(&io, 100));
    cr_assert_eq(io.result, 0);
    cr_assert(all(memory, 612, 0xaa));
    cr_assert(all(memory + 612, 2048 - 612, 0));
    cr_assert(all(memory + 2048, sizeof memory - 2048, 0xaa));
}

Test(io_advance, vectors)
{
    struct iovec iov[] = {{memory, 10}, {memory + 1000, 0}, {memory + 100, 20}, {memory + 200, 30}};
    struct io io = plain_io(&buffered, 60);

    io.buf = NULL;
    io.iov = iov;
    io.iov_count = 4;
    cr_assert_eq(io_rest(&io).iov_base, memory);
    cr_assert_eq(io_rest(&io).iov_len, 10);
    cr_assert_not(io_advance(&io, 4));
    cr_assert_eq(io_rest(&io).iov_base, memory + 4, "inside a segment");
    cr_assert_eq(io_rest(&io).iov_len, 6);
    cr_assert_not(io_advance(&io, 6));
    cr_assert_eq(io_rest(&io).iov_base, memory + 100, "an empty segment is passed");
    cr_assert_eq(io_rest(&io).iov_len, 20);
    cr_assert_not(io_advance(&io, 15));
    cr_assert_eq(io_rest(&io).iov_base, memory + 115);
    cr_assert_eq(io_rest(&io).iov_len, 5);
    cr_assert(io_advance(&io, 0));
    cr_assert_eq(io.result, 0);
    cr_assert(all(memory, 10, 0xaa));
    cr_assert(all(memory + 100, 15, 0xaa));
    cr_assert(all(memory + 115, 5, 0));
    cr_assert(all(memory + 200, 30, 0));
    cr_assert(all(memory + 120, 80, 0xaa));
    cr_assert(all(memory + 230, 1000, 0xaa));
}

Test(io_advance, an_empty_file)
{
    struct io io = plain_io(&buffered, 512);

    cr_assert(io_advance(&io, 0));
    cr_assert_eq(io.result, 0);
    cr_assert(all(memory, 512, 0));
}

/* ---- writes ---- */

static struct io plain_write(struct file *file, uint32_t bytes)
{
    struct io io = plain_io(file, bytes);

    io.kind = IO_WRITE;
    return io;
}

Test(io_advance, a_short_write_goes_on_behind_it)
{
    struct io io = plain_write(&buffered, 1000);

    cr_assert_not(io_advance(&io, 1));
    cr_assert_eq(io_rest(&io).iov_base, memory + 1);
    cr_assert_eq(io_rest(&io).iov_len, 999);
    cr_assert_not(io_advance(&io, -EINTR));
    cr_assert_not(io_advance(&io, -EAGAIN));
    cr_assert_eq(io_rest(&io).iov_len, 999);
    cr_assert(io_advance(&io, 999));
    cr_assert_eq(io.result, 0);
    cr_assert(all(memory, sizeof memory, 0xaa), "what is written is not changed");
}

Test(io_advance, a_short_direct_write_goes_on_at_the_last_aligned_position)
{
    struct io io = plain_write(&direct, 2048);

    cr_assert_not(io_advance(&io, 512));
    cr_assert_eq(io_rest(&io).iov_base, memory + 512);
    cr_assert_not(io_advance(&io, 700));
    cr_assert_eq(io_rest(&io).iov_base, memory + 1024, "188 bytes once more");
    cr_assert_eq(io_rest(&io).iov_len, 1024);
    cr_assert(io_advance(&io, 1024));
    cr_assert_eq(io.result, 0);
}

Test(io_advance, a_write_that_moves_nothing_fails)
{
    struct io io = plain_write(&buffered, 1000), d = plain_write(&direct, 2048);

    cr_assert_not(io_advance(&io, 300));
    cr_assert(io_advance(&io, 0));
    cr_assert_eq(io.result, -EIO);
    cr_assert_not(io_advance(&d, 512));
    cr_assert(io_advance(&d, 100), "less than a block each time would never end");
    cr_assert_eq(d.result, -EIO);
    cr_assert(all(memory, sizeof memory, 0xaa), "nothing is filled in as for a read");
}

Test(io_advance, errors_end_a_write)
{
    struct io io = plain_write(&buffered, 1000);

    cr_assert_not(io_advance(&io, 300));
    cr_assert(io_advance(&io, -ENOSPC));
    cr_assert_eq(io.result, -ENOSPC);
}

Test(io_advance, a_write_of_vectors)
{
    struct iovec iov[] = {{memory, 512}, {memory + 1024, 1024}, {memory + 3072, 512}};
    struct io io = plain_write(&direct, 2048);

    io.buf = NULL;
    io.iov = iov;
    io.iov_count = 3;
    cr_assert_not(io_advance(&io, 1100));
    cr_assert_eq(io_rest(&io).iov_base, memory + 1536);
    cr_assert_eq(io_rest(&io).iov_len, 512);
    cr_assert_not(io_advance(&io, 512));
    cr_assert_eq(io_rest(&io).iov_base, memory + 3072);
    cr_assert_eq(io_rest(&io).iov_len, 512);
    cr_assert(io_advance(&io, 512));
    cr_assert_eq(io.result, 0);
}

/* ---- the others ---- */

Test(io_advance, what_moves_nothing_is_complete_at_once)
{
    const enum io_kind kinds[] = {IO_SYNC, IO_ALLOCATE, IO_PUNCH, IO_ZERO};

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct io io = {.kind = kinds[i], .file = &direct, .length = 4096, .bytes = 512, .result = 77};

        cr_assert_not(io_advance(&io, -EINTR));
        cr_assert_not(io_advance(&io, -EAGAIN));
        cr_assert(io_advance(&io, 0));
        cr_assert_eq(io.result, 0);
        cr_assert(io_advance(&io, -EIO));
        cr_assert_eq(io.result, -EIO);
        cr_assert(io_advance(&io, -ENOSPC));
        cr_assert_eq(io.result, -ENOSPC);
    }
}

Test(io_advance, a_file_that_cannot_says_so_in_one_way)
{
    const int answers[] = {-EOPNOTSUPP, -ENOSYS, -EINVAL};

    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        struct io io = {.kind = IO_PUNCH, .file = &buffered, .length = 4096};

        cr_assert(io_advance(&io, answers[i]));
        cr_assert_eq(io.result, -EOPNOTSUPP);
        io.kind = IO_SYNC;
        cr_assert(io_advance(&io, answers[i]));
        cr_assert_eq(io.result, answers[i]);
    }
}
