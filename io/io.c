/* SPDX-License-Identifier: MIT */
#include "io/io.h"

#include <errno.h>
#include <string.h>

#include "base/attributes.h"

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

bool io_advance(struct io *io, int64_t n)
{
    if (likely(n == (int64_t)(io->bytes - io->done))) {
        io->result = 0;
        return true;
    }
    if (n < 0) {
        io->result = (int32_t)n;
        return n != -EINTR && n != -EAGAIN;
    }
    io->done += (uint32_t)n;
    if (io->done >= io->bytes) {
        io->result = 0;
        return true;
    }
    /* A direct read ends off alignment only at the end of the file. */
    if (n == 0 || (uint64_t)n % io->file->io_align) {
        zero_rest(io);
        io->result = 0;
        return true;
    }
    return false;
}
