/* SPDX-License-Identifier: MIT */
/*
 * One I/O on a host file, from backend_prepare() until the backend hands it back. It is embedded in whatever
 * started it; nothing is allocated for it.
 */
#ifndef IO_IO_H
#define IO_IO_H

#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"
#include "io/file.h"

enum io_kind {
    IO_READ,
};

struct io {
    struct list_node node; /* the backend's while it has the I/O, then in the list of completions */
    enum io_kind kind;
    uint32_t bytes;
    uint64_t off;
    struct file *file;
    void *buf;               /* when iov_count is 0 */
    const struct iovec *iov; /* stays valid until completion; covers exactly bytes */
    int32_t iov_count;
    int32_t result; /* out: 0 or a negative errno */
    uint32_t done;  /* the backend's: bytes moved so far */
    void *owner;    /* the backend's */
};

/* The part that is still to be done of an I/O that has moved some bytes: one buffer. */
struct iovec io_rest(const struct io *io);

/*
 * Account for what one system call said: n bytes or a negative errno. True when the I/O is complete, with
 * io->result set; false when it has to be submitted again for io_rest(). Reads past the end of the file give
 * zeros.
 */
bool io_advance(struct io *io, int64_t n);

#endif
