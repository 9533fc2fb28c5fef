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
    IO_WRITE,    /* off and bytes are multiples of the file's io_align */
    IO_SYNC,     /* fdatasync: everything of this file that completed before is durable */
    IO_ALLOCATE, /* [off, off + length): space is reserved; what lies past the end of the file becomes zeros
                  */
    IO_PUNCH,    /* [off, off + length) reads as zeros and its space goes back to the host */
    IO_ZERO,     /* [off, off + length) reads as zeros, its space stays */
    /* The last three: -EOPNOTSUPP where the file cannot. On a block device they never change its size. */
};

/* struct io.flags */
#define IO_DURABLE (1u << 0) /* IO_WRITE: durable when it completes (RWF_DSYNC) */

struct io {
    struct list_node node; /* the backend's while it has the I/O, then in the list of completions */
    enum io_kind kind;
    uint8_t flags;  /* IO_* */
    uint8_t role;   /* the loop's: what the I/O is embedded in */
    uint32_t bytes; /* IO_READ, IO_WRITE */
    uint64_t off;
    uint64_t length; /* IO_ALLOCATE, IO_PUNCH, IO_ZERO: not 0 */
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
 * io->result set; false when it has to be submitted again: IO_READ and IO_WRITE for io_rest(), the others as
 * they were. Reads past the end of the file give zeros; a write that moves nothing has failed with -EIO.
 */
bool io_advance(struct io *io, int64_t n);

/* The mode of fallocate(2) for IO_ALLOCATE, IO_PUNCH and IO_ZERO. */
int io_fallocate_mode(enum io_kind kind);

/* What fallocate(2) said (0 or a negative errno), with -EOPNOTSUPP for all that means that the file cannot.
 */
int io_fallocate_result(int err);

#endif
