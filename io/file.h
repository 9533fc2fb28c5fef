/* SPDX-License-Identifier: MIT */
/*
 * A host file: how it was opened, what alignment its I/O needs, and blocking reads for the control path. The
 * data path goes through a backend (io/backend.h).
 *
 * A file is opened and closed by the control path of one image; every thread may read its fields in between.
 */
#ifndef IO_FILE_H
#define IO_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct file;

/* What the operating system, or the simulator, does for a file. */
struct file_ops {
    /* At most bytes bytes, aligned as the file needs: what pread(2) returns, errors as negative errno. */
    ssize_t (*pread)(struct file *f, void *buf, size_t bytes, uint64_t off);
    /* As lseek(2) with SEEK_DATA (data true) or SEEK_HOLE; -ENXIO past the last data. */
    int64_t (*seek)(struct file *f, uint64_t off, bool data);
    void (*close)(struct file *f);
};

struct file {
    const struct file_ops *ops;
    int fd;         /* -1 when the simulator owns the file */
    uint32_t index; /* of the file in its image: the slot it is registered in */
    bool direct;    /* O_DIRECT */
    bool block_device;
    bool locked;        /* image_lock() holds locks on it */
    uint32_t io_align;  /* of offsets and lengths; 1 when buffered */
    uint32_t mem_align; /* of buffers; 1 when buffered */
    uint64_t bytes;     /* size when it was opened */
    uint64_t allocated_bytes;
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

/* Open for reading, by path, or by fd when path_is_name: the descriptor is reopened or duplicated, never
 * taken. */
int file_open(const char *path, enum file_mode mode, struct file **ret);
int file_open_fd(int fd, const char *name_path, enum file_mode mode, struct file **ret);

/* NULL is allowed. */
void file_close(struct file *f);

/*
 * Read at any offset and length into any buffer; what lies past the end of the file reads as zeros. Blocking.
 * 0 or a negative errno, with a message.
 */
int file_read(struct file *f, void *buf, size_t bytes, uint64_t off);

/*
 * Whether the file has data at off, and how far that holds: the run of data or of hole that begins at off, at
 * most up to limit. A file that does not tell is data.
 */
int file_extent(struct file *f, uint64_t off, uint64_t limit, bool *ret_data, uint64_t *ret_bytes);

/* The path for messages: quoted, because it may come from an image. */
const char *file_name(const struct file *f);

/* The lowest-level error for a failed read of this file; returns err. */
int file_read_failed(const struct file *f, int err, uint64_t off, uint64_t bytes);

#endif
