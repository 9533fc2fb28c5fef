/* SPDX-License-Identifier: MIT */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "io/image_lock.h"

#define ALIGN_DEFAULT 4096u
/* Beyond this, buffers of the size that the engine has would hold too little. */
#define ALIGN_MAX (64u << 10)
/* Control-path reads that need an aligned copy move this much at a time. */
#define BOUNCE_BYTES (256u << 10)

static ssize_t os_pread(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    const ssize_t n = pread(f->fd, buf, bytes, (off_t)off);

    return n < 0 ? -errno : n;
}

static int64_t os_seek(struct file *f, uint64_t off, bool data)
{
    /* Moves the description's position, which no read here uses. */
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

static const struct file_ops os_ops = {.pread = os_pread, .seek = os_seek, .close = os_close};

const char *file_name(const struct file *f)
{
    return f->name[0] ? f->name : "(descriptor)";
}

static int open_failed(const struct file *f)
{
    const int err = errno;

    return error_set(-err, "cannot open %s: %s", file_name(f), strerror(err));
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
    f->io_align = MAX(io, 512u);
    f->mem_align = mem;
    return true;
}

static int fill_identity(struct file *f)
{
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
    if (f->block_device) {
        const off_t end = lseek(f->fd, 0, SEEK_END);

        if (end < 0)
            return open_failed(f);
        f->bytes = (uint64_t)end;
    }
    return 0;
}

/* Some filesystems take O_DIRECT when opening and refuse it when reading. */
static bool direct_works(struct file *f)
{
    void *page;
    ssize_t n;

    if (posix_memalign(&page, MAX(f->mem_align, ALIGN_DEFAULT), MAX(f->io_align, ALIGN_DEFAULT)))
        return false;
    n = os_pread(f, page, MAX(f->io_align, ALIGN_DEFAULT), 0);
    free(page);
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

static int open_flags(const char *path, enum file_mode mode, struct file *f)
{
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    bool direct = mode != FILE_BUFFERED;

    f->fd = open(path, direct ? flags | O_DIRECT : flags);
    if (f->fd < 0 && direct && errno == EINVAL && mode == FILE_AUTO) {
        direct = false;
        f->fd = open(path, flags);
    }
    if (f->fd < 0)
        return open_failed(f);
    return settle(f, mode, direct);
}

static int file_new(const char *path, struct file **ret)
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
    *ret = f;
    return 0;
}

int file_open(const char *path, enum file_mode mode, struct file **ret)
{
    struct file *f;
    int r = file_new(path, &f);

    if (r < 0)
        return r;
    r = open_flags(path, mode, f);
    if (r < 0) {
        file_close(f);
        return r;
    }
    *ret = f;
    return 0;
}

int file_open_fd(int fd, const char *name_path, enum file_mode mode, struct file **ret)
{
    char proc[64];
    struct file *f;
    int r = file_new(name_path, &f);

    if (r < 0)
        return r;
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    r = open_flags(proc, mode, f);
    if (r < 0 && mode != FILE_DIRECT && f->fd < 0) {
        /* No /proc, or a file that may not be opened again: share the caller's description as it is. */
        f->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (f->fd < 0) {
            r = open_failed(f);
        } else {
            const int flags = fcntl(fd, F_GETFL);

            r = fill_identity(f);
            buffered_alignment(f);
            if (r == 0 && flags >= 0 && (flags & O_DIRECT) && !direct_alignment(f))
                r = error_set(-EINVAL, "%s: the descriptor's direct I/O has no known alignment",
                              file_name(f));
        }
    }
    if (r < 0) {
        file_close(f);
        return r;
    }
    *ret = f;
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

int file_read(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    const uint64_t align = f->io_align;
    uint8_t *out = buf;
    void *bounce;
    int ret = 0;

    if (off > (uint64_t)INT64_MAX - bytes)
        return file_read_failed(f, -EFBIG, off, bytes);
    if (!((off | bytes) & (align - 1)) && !((uintptr_t)buf & (f->mem_align - 1)))
        return read_aligned(f, buf, bytes, off);

    const size_t bounce_bytes = (size_t)MIN((uint64_t)BOUNCE_BYTES + align, round_up(bytes, align) + align);
    if (posix_memalign(&bounce, MAX(f->mem_align, ALIGN_DEFAULT), bounce_bytes))
        return error_set(-ENOMEM, "out of memory");
    while (bytes && ret == 0) {
        const uint64_t start = round_down(off, align);
        const size_t head = (size_t)(off - start);
        const size_t part = MIN(bytes, bounce_bytes - (size_t)align - head);

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

int file_extent(struct file *f, uint64_t off, uint64_t limit, bool *ret_data, uint64_t *ret_bytes)
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
    return 0;
}
