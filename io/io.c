/* SPDX-License-Identifier: MIT */
#include "io/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"

struct iovec io_rest(const struct io *io)
{
    size_t skip = io->done;

    if (!io->iov_count)
        return (struct iovec){(char *)io->buf + skip, io->bytes - skip};
    for (int i = 0; i < io->iov_count; i++) {
        if (skip < io->iov[i].iov_len)
            return (struct iovec){(char *)io->iov[i].iov_base + skip, io->iov[i].iov_len - skip};
        skip -= io->iov[i].iov_len;
    }
    return (struct iovec){0};
}

static void zero_rest(struct io *io)
{
    while (io->done < io->bytes) {
        const struct iovec rest = io_rest(io);

        invariant(rest.iov_len > 0);
        memset(rest.iov_base, 0, rest.iov_len);
        io->done += (uint32_t)rest.iov_len;
    }
}

int io_fallocate_mode(enum io_kind kind)
{
    switch (kind) {
    case IO_PUNCH:
        return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    case IO_ZERO:
        return FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    default:
        return 0;
    }
}

int io_fallocate_result(int err)
{
    /* Ranges are never invalid here: what is, is the mode for this file. */
    return err == -EINVAL || err == -ENOSYS ? -EOPNOTSUPP : err;
}

static bool finish(struct io *io, int result)
{
    io->result = result;
    return true;
}

static bool advance_write(struct io *io, uint32_t n)
{
    /* A short direct write may end anywhere, but the next one may not begin there. */
    const uint32_t done = (uint32_t)round_down(io->done + n, io->file->io_align);

    if (io->done + n >= io->bytes)
        return finish(io, 0);
    if (done <= io->done)
        return finish(io, -EIO); /* or it would never end */
    io->done = done;
    return false;
}

bool io_advance(struct io *io, int64_t n)
{
    if (likely(n == (int64_t)(io->bytes - io->done)))
        return finish(io, 0);
    if (n == -EINTR || n == -EAGAIN)
        return false;
    if (io->kind > IO_WRITE)
        return finish(io, io->kind == IO_SYNC ? (int)n : io_fallocate_result((int)n));
    if (n < 0)
        return finish(io, (int)n);
    if (io->kind == IO_WRITE)
        return advance_write(io, (uint32_t)n);
    io->done += (uint32_t)n;
    if (io->done >= io->bytes)
        return finish(io, 0);
    /* A direct read ends off alignment only at the end of the file. */
    if (n == 0 || (uint64_t)n % io->file->io_align) {
        zero_rest(io);
        return finish(io, 0);
    }
    return false;
}
