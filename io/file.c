/* SPDX-License-Identifier: MIT */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "io/image_lock.h"
#include "io/io.h"

#define ALIGN_DEFAULT 4096u
/* Beyond this, buffers of the size that the engine has would hold too little. */
#define ALIGN_MAX (64u << 10)
/* Control-path I/O that needs an aligned copy moves this much at a time. */
#define BOUNCE_BYTES (256u << 10)

static ssize_t os_pread(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    const ssize_t n = pread(f->fd, buf, bytes, (off_t)off);

    return n < 0 ? -errno : n;
}

static ssize_t os_pwrite(struct file *f, const void *buf, size_t bytes, uint64_t off)
{
    const ssize_t n = pwrite(f->fd, buf, bytes, (off_t)off);

    return n < 0 ? -errno : n;
}

static int os_sync(struct file *f)
{
    return fdatasync(f->fd) < 0 ? -errno : 0;
}

static int os_truncate(struct file *f, uint64_t bytes)
{
    return ftruncate(f->fd, (off_t)bytes) < 0 ? -errno : 0;
}

static int os_fallocate(struct file *f, enum io_kind kind, uint64_t off, uint64_t bytes)
{
    if (fallocate(f->fd, io_fallocate_mode(kind), (off_t)off, (off_t)bytes) < 0)
        return io_fallocate_result(-errno);
    return 0;
}

static int os_allocate(struct file *f, uint64_t off, uint64_t bytes)
{
    return f->block_device ? -EOPNOTSUPP : os_fallocate(f, IO_ALLOCATE, off, bytes);
}

static int os_punch(struct file *f, uint64_t off, uint64_t bytes)
{
    return os_fallocate(f, IO_PUNCH, off, bytes);
}

static int os_zero(struct file *f, uint64_t off, uint64_t bytes)
{
    return os_fallocate(f, IO_ZERO, off, bytes);
}

static int64_t os_seek(struct file *f, uint64_t off, bool data)
{
    /* Moves the description's position, which nothing here uses. */
    const off_t at = lseek(f->fd, (off_t)off, data ? SEEK_DATA : SEEK_HOLE);

    return at < 0 ? -errno : at;
}

static void os_close(struct file *f)
{
    image_unlock(f);
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f);
}

static const struct file_ops os_ops = {
    .pread = os_pread,
    .pwrite = os_pwrite,
    .sync = os_sync,
    .truncate = os_truncate,
    .allocate = os_allocate,
    .punch = os_punch,
    .zero = os_zero,
    .seek = os_seek,
    .close = os_close,
};

const char *file_name(const struct file *f)
{
    return f->name[0] ? f->name : "(descriptor)";
}

static int open_failed(const struct file *f)
{
    const int err = errno;

    return error_set(-err, "cannot open %s%s: %s", file_name(f), f->writable ? " for writing" : "",
                     strerror(err));
}

static void buffered_alignment(struct file *f)
{
    f->direct = false;
    f->io_align = 1;
    f->mem_align = 1;
}

/* What direct I/O on this file asks for; false when the filesystem says that it has none. */
static bool direct_alignment(struct file *f)
{
    uint32_t io = ALIGN_DEFAULT, mem = ALIGN_DEFAULT;

#ifdef STATX_DIOALIGN
    struct statx sx;

    if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN)) {
        if (!sx.stx_dio_offset_align)
            return false;
        io = sx.stx_dio_offset_align;
        mem = sx.stx_dio_mem_align;
    } else
#endif
        if (f->block_device) {
        int sector;

        if (ioctl(f->fd, BLKSSZGET, &sector) == 0 && sector > 0)
            io = mem = (uint32_t)sector;
    }
    if (!is_power_of_two(io) || io > ALIGN_MAX || !is_power_of_two(mem) || mem > ALIGN_DEFAULT)
        return false;
    f->direct = true;
    /* So that what begins at an aligned position of an aligned buffer is aligned too. */
    f->io_align = MAX(MAX(io, mem), 512u);
    f->mem_align = mem;
    return true;
}

static int fill_identity(struct file *f)
{
    struct statfs fs;
    struct stat st;

    if (fstat(f->fd, &st) < 0)
        return open_failed(f);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return error_set(-EINVAL, "%s is neither a regular file nor a block device", file_name(f));
    }
    f->block_device = S_ISBLK(st.st_mode);
    f->dev = f->block_device ? st.st_rdev : st.st_dev;
    f->ino = f->block_device ? 0 : st.st_ino;
    f->bytes = (uint64_t)st.st_size;
    f->allocated_bytes = (uint64_t)st.st_blocks * 512;
    f->in_memory = fstatfs(f->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
    if (f->block_device) {
        const off_t end = lseek(f->fd, 0, SEEK_END);

        if (end < 0)
            return open_failed(f);
        f->bytes = (uint64_t)end;
    }
    return 0;
}

enum trust { WRONG, UNKNOWN, RIGHT };

/* Whether n bytes that were read to an aligned page are the same in a buffer of the least alignment. */
static enum trust try_mem_align(struct file *f, const uint8_t *page, ssize_t n, uint8_t *buffer, size_t bytes)
{
    uint8_t *const here = buffer + f->mem_align;

    if (f->mem_align >= ALIGN_DEFAULT)
        return RIGHT;
    if (n <= 0 || is_zero(page, (size_t)n))
        return UNKNOWN;
    memset(here, 0, bytes);
    return os_pread(f, here, bytes, 0) == n && !memcmp(here, page, (size_t)n) ? RIGHT : WRONG;
}

/*
 * Some filesystems take O_DIRECT when opening and refuse it when reading. And some systems tell of a smaller
 * alignment of memory than they can do, and then move the wrong bytes without a word: zram does (Linux 6.18),
 * for buffers that are no whole pages. So what can be tried is tried; what cannot is believed only where
 * blocks are smaller than pages.
 */
static bool direct_works(struct file *f)
{
    const size_t bytes = MAX(f->io_align, ALIGN_DEFAULT);
    void *page, *buffer;
    enum trust trust;
    ssize_t n;

    if (posix_memalign(&page, ALIGN_DEFAULT, bytes))
        return false;
    if (posix_memalign(&buffer, ALIGN_DEFAULT, bytes + ALIGN_DEFAULT)) {
        free(page);
        return false;
    }
    n = os_pread(f, page, bytes, 0);
    trust = try_mem_align(f, page, n, buffer, bytes);
    free(buffer);
    free(page);
    if (trust == WRONG || (trust == UNKNOWN && f->io_align >= ALIGN_DEFAULT)) {
        f->mem_align = ALIGN_DEFAULT;
        f->io_align = MAX(f->io_align, ALIGN_DEFAULT);
    }
    return n != -EINVAL;
}

/* f->fd is open, with O_DIRECT when try_direct. */
static int settle(struct file *f, enum file_mode mode, bool try_direct)
{
    int ret = fill_identity(f);

    if (ret < 0)
        return ret;
    /* O_NONBLOCK kept a FIFO from blocking the open; it has no business afterwards. */
    if (try_direct && direct_alignment(f) && direct_works(f)) {
        if (fcntl(f->fd, F_SETFL, O_DIRECT) == 0)
            return 0;
    }
    if (mode == FILE_DIRECT) {
        return error_set(-EINVAL, "%s: the filesystem does not allow direct I/O", file_name(f));
    }
    buffered_alignment(f);
    if (fcntl(f->fd, F_SETFL, 0) < 0)
        return open_failed(f);
    return 0;
}

static int open_flags(const char *path, enum file_mode mode, uint32_t flags, struct file *f)
{
    const int how = (flags & FILE_WRITE ? O_RDWR : O_RDONLY) | (flags & FILE_CREATE ? O_CREAT : 0) |
                    O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    bool direct = mode != FILE_BUFFERED;

    f->fd = open(path, direct ? how | O_DIRECT : how, 0666);
    if (f->fd < 0 && direct && errno == EINVAL && mode == FILE_AUTO) {
        direct = false;
        f->fd = open(path, how, 0666);
    }
    if (f->fd < 0)
        return open_failed(f);
    return settle(f, mode, direct);
}

static int file_new(const char *path, uint32_t flags, struct file **ret)
{
    struct file *f = calloc(1, sizeof *f);

    if (f && path)
        f->path = strdup(path);
    if (!f || (path && !f->path)) {
        free(f);
        return error_set(-ENOMEM, "out of memory");
    }
    if (path)
        error_quote(f->name, sizeof f->name, path, strlen(path));
    f->ops = &os_ops;
    f->fd = -1;
    f->writable = flags & FILE_WRITE;
    *ret = f;
    return 0;
}

int file_open(const char *path, enum file_mode mode, uint32_t flags, struct file **ret)
{
    struct file *f;
    int r = file_new(path, flags, &f);

    if (r < 0)
        return r;
    r = open_flags(path, mode, flags, f);
    if (r < 0) {
        file_close(f);
        return r;
    }
    *ret = f;
    return 0;
}

/* Reopening a descriptor must allow no more than the descriptor does. */
static int check_descriptor(int fd, const struct file *f, int *ret_status)
{
    const int status = fcntl(fd, F_GETFL);

    if (status < 0)
        return open_failed(f);
    if (f->writable && (status & O_ACCMODE) != O_RDWR)
        return error_set(-EBADF, "%s: the descriptor is not open for reading and writing", file_name(f));
    *ret_status = status;
    return 0;
}

/* Use the caller's description, whose status flags are those of fcntl(2), as it is. */
static int share_description(int fd, int status, struct file *f)
{
    int r;

    if (f->writable && (status & O_APPEND))
        return error_set(-EINVAL, "%s: the descriptor appends (O_APPEND)", file_name(f));
    f->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (f->fd < 0)
        return open_failed(f);
    f->shared = true;
    r = fill_identity(f);
    buffered_alignment(f);
    if (r == 0 && (status & O_DIRECT) && !direct_alignment(f))
        r = error_set(-EINVAL, "%s: the descriptor's direct I/O has no known alignment", file_name(f));
    return r;
}

int file_open_fd(int fd, const char *name_path, enum file_mode mode, uint32_t flags, struct file **ret)
{
    char proc[64];
    struct file *f;
    int status = 0, r = file_new(name_path, flags, &f);

    if (r < 0)
        return r;
    r = check_descriptor(fd, f, &status);
    if (r == 0) {
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
        r = open_flags(proc, mode, flags & ~FILE_CREATE, f);
        if (r < 0 && mode != FILE_DIRECT && f->fd < 0) /* no /proc, or it may not be opened again */
            r = share_description(fd, status, f);
    }
    if (r < 0) {
        file_close(f);
        return r;
    }
    *ret = f;
    return 0;
}

int file_make_buffered(struct file *f)
{
    int status;

    if (!f->direct)
        return 0;
    if (f->shared)
        return error_set(-EINVAL, "%s: the descriptor uses direct I/O and cannot be opened again without it",
                         file_name(f));
    if (f->fd >= 0) {
        status = fcntl(f->fd, F_GETFL);
        if (status < 0 || fcntl(f->fd, F_SETFL, status & ~O_DIRECT) < 0)
            return open_failed(f);
    }
    buffered_alignment(f);
    return 0;
}

void file_close(struct file *f)
{
    if (f)
        f->ops->close(f);
}

int file_read_failed(const struct file *f, int err, uint64_t off, uint64_t bytes)
{
    return error_set(err, "%s: reading %" PRIu64 " bytes at offset 0x%" PRIx64 " failed: %s", file_name(f),
                     bytes, off, strerror(-err));
}

int file_write_failed(const struct file *f, int err, uint64_t off, uint64_t bytes)
{
    return error_set(err, "%s: writing %" PRIu64 " bytes at offset 0x%" PRIx64 " failed: %s", file_name(f),
                     bytes, off, strerror(-err));
}

/* [off, off + bytes) aligned for the file, into an aligned buffer. */
static int read_aligned(struct file *f, uint8_t *buf, size_t bytes, uint64_t off)
{
    size_t done = 0;

    while (done < bytes) {
        const ssize_t n = f->ops->pread(f, buf + done, bytes - done, off + done);

        if (n == -EINTR)
            continue;
        if (n < 0)
            return file_read_failed(f, (int)n, off + done, bytes - done);
        done += (size_t)n;
        if (n == 0 || (size_t)n % f->io_align)
            break; /* the end of the file: a short direct read ends nowhere else off alignment */
    }
    memset(buf + done, 0, bytes - done);
    return 0;
}

static int write_aligned(struct file *f, const uint8_t *buf, size_t bytes, uint64_t off)
{
    size_t done = 0;

    while (done < bytes) {
        const ssize_t n = f->ops->pwrite(f, buf + done, bytes - done, off + done);

        if (n == -EINTR)
            continue;
        if (n < (ssize_t)f->io_align)
            return file_write_failed(f, n < 0 ? (int)n : -EIO, off + done, bytes - done);
        done += (size_t)round_down((uint64_t)n, f->io_align); /* where a direct write can go on */
    }
    return 0;
}

static bool is_aligned(const struct file *f, const void *buf, size_t bytes, uint64_t off)
{
    return !((off | bytes) & (f->io_align - 1)) && !((uintptr_t)buf & (f->mem_align - 1));
}

/* An aligned buffer for what is not: whole blocks, enough for bytes at any offset, or BOUNCE_BYTES. */
static int bounce_new(const struct file *f, size_t bytes, void **ret, size_t *ret_bytes)
{
    const uint64_t align = f->io_align;

    *ret_bytes = (size_t)MIN((uint64_t)BOUNCE_BYTES, round_up(bytes, align) + align);
    if (posix_memalign(ret, MAX(f->mem_align, ALIGN_DEFAULT), *ret_bytes))
        return error_set(-ENOMEM, "out of memory");
    return 0;
}

int file_read(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    const uint64_t align = f->io_align;
    uint8_t *out = buf;
    size_t bounce_bytes;
    void *bounce;
    int ret;

    if (off > (uint64_t)INT64_MAX - bytes)
        return file_read_failed(f, -EFBIG, off, bytes);
    if (is_aligned(f, buf, bytes, off))
        return read_aligned(f, buf, bytes, off);
    ret = bounce_new(f, bytes, &bounce, &bounce_bytes);
    if (ret < 0)
        return ret;
    while (bytes && ret == 0) {
        const uint64_t start = round_down(off, align);
        const size_t head = (size_t)(off - start);
        const size_t part = MIN(bytes, bounce_bytes - head);

        ret = read_aligned(f, bounce, (size_t)round_up(head + part, align), start);
        if (ret == 0)
            memcpy(out, (uint8_t *)bounce + head, part);
        out += part;
        off += part;
        bytes -= part;
    }
    free(bounce);
    return ret;
}

/* Bytes [head, end) of the aligned bounce buffer for start are going to be written: read what shares their
 * first and last blocks. */
static int read_edges(struct file *f, uint8_t *bounce, size_t head, size_t end, uint64_t start)
{
    const size_t align = f->io_align;
    const size_t last = (size_t)round_down(end, align);
    int ret = 0;

    if (head)
        ret = read_aligned(f, bounce, align, start);
    if (ret == 0 && last < end && (last || !head))
        ret = read_aligned(f, bounce + last, align, start + last);
    return ret;
}

int file_write(struct file *f, const void *buf, size_t bytes, uint64_t off)
{
    const uint64_t align = f->io_align;
    const uint8_t *in = buf;
    size_t bounce_bytes;
    void *bounce;
    int ret;

    if (off > (uint64_t)INT64_MAX - align || bytes > (uint64_t)INT64_MAX - align - off)
        return file_write_failed(f, -EFBIG, off, bytes);
    if (is_aligned(f, buf, bytes, off))
        return write_aligned(f, buf, bytes, off);
    ret = bounce_new(f, bytes, &bounce, &bounce_bytes);
    if (ret < 0)
        return ret;
    while (bytes && ret == 0) {
        const uint64_t start = round_down(off, align);
        const size_t head = (size_t)(off - start);
        const size_t part = MIN(bytes, bounce_bytes - head);

        ret = read_edges(f, bounce, head, head + part, start);
        if (ret == 0) {
            memcpy((uint8_t *)bounce + head, in, part);
            ret = write_aligned(f, bounce, (size_t)round_up(head + part, align), start);
        }
        in += part;
        off += part;
        bytes -= part;
    }
    free(bounce);
    return ret;
}

int file_sync(struct file *f)
{
    int ret;

    while ((ret = f->ops->sync(f)) == -EINTR)
        ;
    if (ret < 0)
        return error_set(ret, "%s: syncing failed: %s", file_name(f), strerror(-ret));
    return 0;
}

int file_truncate(struct file *f, uint64_t bytes)
{
    int ret = -EFBIG;

    if (f->block_device && bytes > f->bytes)
        return error_set(-EOPNOTSUPP,
                         "%s: a block device of %" PRIu64 " bytes cannot be made %" PRIu64 " bytes long",
                         file_name(f), f->bytes, bytes);
    if (f->block_device)
        return 0;
    if (bytes <= INT64_MAX)
        while ((ret = f->ops->truncate(f, bytes)) == -EINTR)
            ;
    if (ret < 0)
        return error_set(ret, "%s: resizing to %" PRIu64 " bytes failed: %s", file_name(f), bytes,
                         strerror(-ret));
    f->bytes = bytes;
    return 0;
}

void file_extent(struct file *f, uint64_t off, uint64_t limit, bool *ret_data, uint64_t *ret_bytes)
{
    const int64_t data = f->ops->seek(f, off, true);

    if (data == -ENXIO) {
        *ret_data = false;
        *ret_bytes = limit - off;
    } else if (data < 0) {
        *ret_data = true; /* the file does not tell */
        *ret_bytes = limit - off;
    } else if ((uint64_t)data > off) {
        *ret_data = false;
        *ret_bytes = MIN((uint64_t)data, limit) - off;
    } else {
        const int64_t hole = f->ops->seek(f, off, false);

        *ret_data = true;
        *ret_bytes = (hole > (int64_t)off ? MIN((uint64_t)hole, limit) : limit) - off;
    }
}
