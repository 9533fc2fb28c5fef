/* SPDX-License-Identifier: MIT */
/*
 * A host file: how it was opened, what alignment its I/O needs, and blocking I/O for the control path. The
 * data path goes through a backend (io/backend.h).
 *
 * A file is opened and closed by the control path of one image; every thread may read its fields in between.
 */
#ifndef IO_FILE_H
#define IO_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "io/sync_pace.h"

struct file;

/* What the operating system, or the simulator, does for a file. */
struct file_ops {
    /* At most bytes bytes, aligned as the file needs: what pread(2) returns, errors as negative errno. */
    ssize_t (*pread)(struct file *f, void *buf, size_t bytes, uint64_t off);
    /* At least one byte of an aligned range, as pwrite(2); the others return 0 or a negative errno. */
    ssize_t (*pwrite)(struct file *f, const void *buf, size_t bytes, uint64_t off);
    int (*sync)(struct file *f); /* fdatasync(2) */
    int (*truncate)(struct file *f, uint64_t bytes);
    int (*allocate)(struct file *f, uint64_t off, uint64_t bytes); /* as IO_ALLOCATE */
    int (*punch)(struct file *f, uint64_t off, uint64_t bytes);    /* as IO_PUNCH */
    int (*zero)(struct file *f, uint64_t off, uint64_t bytes);     /* as IO_ZERO */
    /* As lseek(2) with SEEK_DATA (data true) or SEEK_HOLE; -ENXIO past the last data. */
    int64_t (*seek)(struct file *f, uint64_t off, bool data);
    void (*close)(struct file *f);
};

struct file {
    const struct file_ops *ops;
    int fd;         /* -1 when the simulator owns the file */
    uint32_t index; /* of the file in its image: the slot it is registered in */
    bool writable;  /* opened with FILE_WRITE */
    bool direct;    /* O_DIRECT */
    bool shared;    /* the description is the caller's: its flags stay as they are */
    bool block_device;
    bool in_memory;     /* tmpfs: reserved space is cleared memory, and wins nothing */
    bool own_lock_fd;   /* lock_fd is open for the locks alone */
    int lock_fd;        /* that image_lock()'s locks go with, while locked */
    bool locked;        /* image_lock() holds locks on it */
    uint32_t io_align;  /* of offsets and lengths, at least mem_align; 1 when buffered */
    uint32_t mem_align; /* of buffers; 1 when buffered */
    uint64_t bytes;     /* size when it was opened, or as file_truncate() left it */
    uint64_t allocated_bytes;
    struct sync_pace sync_pace;
    dev_t dev; /* identity, to recognise a chain that contains itself */
    ino_t ino;
    char *path;     /* NULL when opened from a descriptor without a name */
    char name[256]; /* for messages: the path, quoted, perhaps cut */
};

enum file_mode {
    FILE_AUTO, /* direct where it works */
    FILE_DIRECT,
    FILE_BUFFERED,
};

/* flags of file_open() */
#define FILE_WRITE (1u << 0)  /* for reading and writing */
#define FILE_CREATE (1u << 1) /* create it if it does not exist (mode 0666 & ~umask); only by path */

/*
 * Open by path, or by descriptor, which is reopened or duplicated, never taken. With FILE_WRITE the
 * descriptor has to be open for reading and writing itself. An open with FILE_CREATE that fails may leave an
 * empty file.
 */
int file_open(const char *path, enum file_mode mode, uint32_t flags, struct file **ret);
int file_open_fd(int fd, const char *name_path, enum file_mode mode, uint32_t flags, struct file **ret);

/* Give up direct I/O on an open file, for images whose clusters are smaller than its alignment. 0 or a
 * negative errno, with a message. */
int file_make_buffered(struct file *f);

/* NULL is allowed. */
void file_close(struct file *f);

/*
 * Read at any offset and length into any buffer; what lies past the end of the file reads as zeros. Blocking.
 * 0 or a negative errno, with a message.
 */
int file_read(struct file *f, void *buf, size_t bytes, uint64_t off);

/*
 * Write at any offset and length from any buffer. Unaligned edges are read, changed and written back: nobody
 * else may write to those blocks meanwhile. A write past the end makes the file longer: by just as much when
 * buffered; with direct I/O up to the end of the last block, zeros behind the data, and it stays so. Does not
 * change f->bytes. Blocking. 0 or a negative errno, with a message.
 */
int file_write(struct file *f, const void *buf, size_t bytes, uint64_t off);

/* The operations of file_ops with retries and a message. Blocking. A block device keeps its size: it is
 * refused one that it does not have with -EOPNOTSUPP, and nothing happens to make it smaller. */
int file_sync(struct file *f);
int file_truncate(struct file *f, uint64_t bytes);

/*
 * Whether the file has data at off, and how far that holds: the run of data or of hole that begins at off, at
 * most up to limit. A file that does not tell is data.
 */
void file_extent(struct file *f, uint64_t off, uint64_t limit, bool *ret_data, uint64_t *ret_bytes);

/* The path for messages: quoted, because it may come from an image. */
const char *file_name(const struct file *f);

/* The lowest-level error for a failed read or write of this file; returns err. */
int file_read_failed(const struct file *f, int err, uint64_t off, uint64_t bytes);
int file_write_failed(const struct file *f, int err, uint64_t off, uint64_t bytes);

#endif
