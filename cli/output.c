/* SPDX-License-Identifier: MIT */
#include "cli/output.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/command.h"

#define ZERO_BYTES (1u << 20)

/* Bytes of the image locks (QEMU block/file-posix.c): 100 + i is held by who uses permission i, 200 + i by
 * who does not let others use it. */
enum { LOCK_USED = 100, LOCK_UNSHARED = 200 };
enum { PERMISSION_READ = 0, PERMISSION_WRITE = 1, PERMISSION_RESIZE = 3 };

static int lock_byte(int fd, int command, short type, int byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(fd, command, &lock))
        return errno == EINVAL || errno == ENOLCK ? 0 : -errno; /* a filesystem without locks */
    return command == F_OFD_GETLK && lock.l_type != F_UNLCK ? -EAGAIN : 0;
}

/* As a writer that resizes and shares neither: the others' locks must leave room for ours. */
static int lock_output(int fd)
{
    static const int used[] = {PERMISSION_READ, PERMISSION_WRITE, PERMISSION_RESIZE};
    static const int unshared[] = {PERMISSION_WRITE, PERMISSION_RESIZE};
    int err = 0;

    for (size_t i = 0; !err && i < sizeof used / sizeof used[0]; i++)
        err = lock_byte(fd, F_OFD_SETLK, F_RDLCK, LOCK_USED + used[i]);
    for (size_t i = 0; !err && i < sizeof unshared / sizeof unshared[0]; i++)
        err = lock_byte(fd, F_OFD_SETLK, F_RDLCK, LOCK_UNSHARED + unshared[i]);
    for (size_t i = 0; !err && i < sizeof used / sizeof used[0]; i++)
        err = lock_byte(fd, F_OFD_GETLK, F_WRLCK, LOCK_UNSHARED + used[i]);
    for (size_t i = 0; !err && i < sizeof unshared / sizeof unshared[0]; i++)
        err = lock_byte(fd, F_OFD_GETLK, F_WRLCK, LOCK_USED + unshared[i]);
    return err;
}

static int report(const struct output *o, const char *what, int err)
{
    command_error(o->path, "%s: %s", what, strerror(-err));
    return err;
}

static int prepare_device(struct output *o)
{
    uint64_t bytes = 0;

    o->block_device = true;
    if (ioctl(o->fd, BLKGETSIZE64, &bytes))
        return report(o, "its size cannot be read", -errno);
    if (bytes < o->size) {
        command_error(o->path, "the device has %llu bytes, the image needs %llu", (unsigned long long)bytes,
                      (unsigned long long)o->size);
        return -ENOSPC;
    }
    return 0;
}

static int reopen(const struct output *o, int flags)
{
    char proc_path[64];

    snprintf(proc_path, sizeof proc_path, "/proc/self/fd/%d", o->fd);
    return open(proc_path, flags | O_CLOEXEC);
}

/* Through a descriptor of its own: when one is closed whose file was truncated to 0, ext4 writes out all that
 * is dirty then. Closed at once, that is nothing. */
static int truncate_old(const struct output *o)
{
    const int fd = reopen(o, O_WRONLY | O_TRUNC);

    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int prepare_file(struct output *o, const struct stat *st, bool create)
{
    if (!S_ISREG(st->st_mode)) {
        command_error(o->path, "it is neither a regular file nor a block device");
        return -EINVAL;
    }
    if (!create && (uint64_t)st->st_size < o->size) {
        command_error(o->path, "it has %lld bytes, the image needs %llu; without -n it is made anew",
                      (long long)st->st_size, (unsigned long long)o->size);
        return -ENOSPC;
    }
    if (!create)
        return 0;
    /* To 0 first: what the file held must not show through the holes. */
    if ((st->st_size && truncate_old(o)) || ftruncate(o->fd, (off_t)o->size))
        return report(o, "could not set its size", -errno);
    o->reads_zero = true;
    return 0;
}

static int prepare(struct output *o, bool create, bool direct, output_refuse_fn *refuse, void *ctx)
{
    struct stat st;
    int err;

    if (fstat(o->fd, &st))
        return report(o, "fstat", -errno);
    err = refuse(ctx, st.st_dev, st.st_ino);
    if (err)
        return err;
    err = lock_output(o->fd);
    if (err == -EAGAIN) {
        command_error(o->path, "a program has it open as a disk image (its locks say so)");
        return err;
    }
    if (err)
        return report(o, "could not lock it", err);
    err = S_ISBLK(st.st_mode) ? prepare_device(o) : prepare_file(o, &st, create);
    if (err || !direct)
        return err;
    o->direct_fd = reopen(o, O_RDWR | O_DIRECT);
    if (o->direct_fd < 0)
        return report(o, "direct I/O (-t none) is not possible there", -errno);
    return 0;
}

int output_open(struct output *o, const char *path, uint64_t size, bool create, bool direct,
                output_refuse_fn *refuse, void *ctx)
{
    int err;

    *o = (struct output){.path = path, .size = size, .direct_fd = -1};
    o->fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0644);
    if (o->fd < 0)
        return report(o, "could not open it for writing", -errno);
    err = prepare(o, create, direct, refuse, ctx);
    if (err) {
        close(o->fd);
        o->fd = -1;
    }
    return err;
}

void output_make_dense(struct output *o)
{
    o->dense = true;
    if (!o->reads_zero || (o->size && fallocate(o->fd, 0, 0, (off_t)o->size)))
        o->reads_zero = false;
}

static int write_all(int fd, const char *buf, uint64_t bytes, uint64_t off, uint64_t *ret_failed_off)
{
    while (bytes) {
        const ssize_t n = pwrite(fd, buf, bytes, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            *ret_failed_off = off;
            return n ? -errno : -EIO;
        }
        buf += n;
        off += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

int output_write(struct output *o, const void *buf, uint64_t bytes, uint64_t off, uint64_t *ret_failed_off)
{
    const uint64_t aligned = bytes / OUTPUT_ALIGN * OUTPUT_ALIGN;
    int err = 0;

    if (o->direct_fd < 0 || off % OUTPUT_ALIGN)
        return write_all(o->fd, buf, bytes, off, ret_failed_off);
    if (aligned)
        err = write_all(o->direct_fd, buf, aligned, off, ret_failed_off);
    if (!err && aligned < bytes)
        err = write_all(o->fd, (const char *)buf + aligned, bytes - aligned, off + aligned, ret_failed_off);
    return err;
}

int output_zero(struct output *o, uint64_t off, uint64_t bytes, uint64_t *ret_failed_off)
{
    static const char zeros[ZERO_BYTES] __attribute__((aligned(OUTPUT_ALIGN)));
    int err = 0;

    if (!o->dense && !fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)bytes))
        return 0;
    while (bytes && !err) {
        const uint64_t part = bytes < sizeof zeros ? bytes : sizeof zeros;
        err = output_write(o, zeros, part, off, ret_failed_off);
        off += part;
        bytes -= part;
    }
    return err;
}

int output_close(struct output *o, bool flush)
{
    int err = 0;

    if (o->fd < 0)
        return 0;
    if (flush && fdatasync(o->fd))
        err = report(o, "could not flush it", -errno);
    if (o->direct_fd >= 0)
        close(o->direct_fd);
    if (close(o->fd) && !err)
        err = report(o, "could not close it", -errno);
    o->fd = -1;
    return err;
}
