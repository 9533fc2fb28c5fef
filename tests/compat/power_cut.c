/* SPDX-License-Identifier: MIT */
/*
 * A library to preload: the power fails at one of a program's writes to one file.
 *
 * POWER_CUT_FILE names the file, POWER_CUT_AFTER how many writes (truncations and punches included) still
 * happen, POWER_CUT_SEED which of those that no fdatasync() has made durable are lost: 0 none, else a random
 * half of them. Then the program ends with exit code 99. Not for several threads that write at once.
 */
/* Both names of each function are defined here; off_t has 64 bits all the same where this runs. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define EXIT_CUT 99
#define IN_FRONT __attribute__((visibility("default")))
#define LOG_MAX 4096

/* What a write that is not durable yet has overwritten. */
static struct {
    off_t off;
    size_t bytes;
    uint8_t *old;
} undo[LOG_MAX];
static size_t undo_count;
static long writes_left = -1; /* -1: not asked yet */
static uint64_t seed;

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static int is_the_file(int fd)
{
    const char *const path = getenv("POWER_CUT_FILE");
    struct stat a, b;

    return path && stat(path, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int lost(void)
{
    if (!seed)
        return 0;
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (int)(seed >> 33 & 1);
}

static void cut(int fd)
{
    ssize_t (*const write_at)(int, const void *, size_t, off_t) =
        (ssize_t(*)(int, const void *, size_t, off_t))real("pwrite");

    while (undo_count--)
        if (lost() && write_at(fd, undo[undo_count].old, undo[undo_count].bytes, undo[undo_count].off) < 0)
            _exit(98);
    _exit(EXIT_CUT);
}

/* Before a write to [off, off + bytes). */
static void step(int fd, off_t off, size_t bytes)
{
    struct stat st;

    if (!is_the_file(fd))
        return;
    if (writes_left < 0) {
        writes_left = atol(getenv("POWER_CUT_AFTER"));
        seed = strtoull(getenv("POWER_CUT_SEED"), NULL, 10) * 0x9e3779b97f4a7c15u;
    }
    if (writes_left-- == 0)
        cut(fd);
    if (fstat(fd, &st) < 0 || undo_count == LOG_MAX)
        _exit(98);
    if (off >= st.st_size)
        return; /* nothing to bring back: a longer file stays longer */
    if ((off_t)bytes > st.st_size - off)
        bytes = (size_t)(st.st_size - off);
    undo[undo_count].off = off;
    undo[undo_count].bytes = bytes;
    undo[undo_count].old = malloc(bytes);
    if (!undo[undo_count].old || pread(fd, undo[undo_count].old, bytes, off) != (ssize_t)bytes)
        _exit(98);
    undo_count++;
}

static void synced(int fd)
{
    if (is_the_file(fd))
        while (undo_count)
            free(undo[--undo_count].old);
}

IN_FRONT ssize_t pwrite(int fd, const void *buf, size_t bytes, off_t off)
{
    step(fd, off, bytes);
    return ((ssize_t(*)(int, const void *, size_t, off_t))real("pwrite"))(fd, buf, bytes, off);
}

IN_FRONT ssize_t pwrite64(int fd, const void *buf, size_t bytes, off64_t off)
{
    return pwrite(fd, buf, bytes, off);
}

IN_FRONT int ftruncate(int fd, off_t bytes)
{
    step(fd, bytes, 0);
    return ((int (*)(int, off_t))real("ftruncate"))(fd, bytes);
}

IN_FRONT int ftruncate64(int fd, off64_t bytes)
{
    return ftruncate(fd, bytes);
}

IN_FRONT int fallocate(int fd, int mode, off_t off, off_t bytes)
{
    step(fd, off, mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? (size_t)bytes : 0);
    return ((int (*)(int, int, off_t, off_t))real("fallocate"))(fd, mode, off, bytes);
}

IN_FRONT int fallocate64(int fd, int mode, off64_t off, off64_t bytes)
{
    return fallocate(fd, mode, off, bytes);
}

IN_FRONT int fdatasync(int fd)
{
    synced(fd);
    return ((int (*)(int))real("fdatasync"))(fd);
}

IN_FRONT int fsync(int fd)
{
    synced(fd);
    return ((int (*)(int))real("fsync"))(fd);
}
