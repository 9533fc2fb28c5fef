/* SPDX-License-Identifier: MIT */
#include "io/image_lock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/error.h"

#define USED_BYTE 100
#define DENIED_BYTE 200
#define PERMISSIONS 4

static const char *const permission_names[PERMISSIONS] = {"consistent read", "write", "write unchanged",
                                                          "resize"};

static int lock_byte(const struct file *f, int byte, short type)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(f->lock_fd, F_OFD_SETLK, &fl) < 0 ? -errno : 0;
}

/* Whether another description holds the byte. */
static int byte_is_held(const struct file *f, int byte)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    if (fcntl(f->lock_fd, F_OFD_GETLK, &fl) < 0)
        return -errno;
    return fl.l_type != F_UNLCK;
}

static void unlock_all(const struct file *f)
{
    struct flock fl = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = USED_BYTE, .l_len = 104};

    (void)fcntl(f->lock_fd, F_OFD_SETLK, &fl);
}

/* Whether the file /proc/PID/fdinfo/FD tells of a lock on this inode that covers byte. */
static bool fdinfo_holds(const char *fdinfo_path, const struct file *f, int byte)
{
    FILE *info = fopen(fdinfo_path, "re");
    char line[256];
    bool found = false;

    if (!info)
        return false;
    while (!found && fgets(line, sizeof line, info)) {
        unsigned maj, min;
        unsigned long ino;
        long start, end;

        found = sscanf(line, "lock:\t%*d: OFDLCK %*s %*s %*d %x:%x:%lu %ld %ld", &maj, &min, &ino, &start,
                       &end) == 5 &&
                ino == f->ino && maj == major(f->dev) && min == minor(f->dev) && start <= byte && byte <= end;
    }
    fclose(info);
    return found;
}

static bool process_holds(const char *pid, const struct file *f, int byte)
{
    char path[600];
    struct dirent *e;
    DIR *dir;
    bool found = false;

    snprintf(path, sizeof path, "/proc/%s/fdinfo", pid);
    dir = opendir(path);
    if (!dir)
        return false;
    while (!found && (e = readdir(dir))) {
        snprintf(path, sizeof path, "/proc/%s/fdinfo/%s", pid, e->d_name);
        found = isdigit((unsigned char)e->d_name[0]) && fdinfo_holds(path, f, byte);
    }
    closedir(dir);
    return found;
}

/* " by process 12 (qemu-io)" for the first other process that holds the byte, or "". */
static void holder(const struct file *f, int byte, char *ret, size_t ret_bytes)
{
    char self[32], comm_path[300], comm[64] = "", quoted[128];
    struct dirent *e;
    DIR *proc = opendir("/proc");

    ret[0] = '\0';
    if (!proc)
        return;
    snprintf(self, sizeof self, "%d", (int)getpid());
    while ((e = readdir(proc))) {
        if (!isdigit((unsigned char)e->d_name[0]) || !strcmp(e->d_name, self) ||
            !process_holds(e->d_name, f, byte))
            continue;
        snprintf(comm_path, sizeof comm_path, "/proc/%s/comm", e->d_name);
        FILE *c = fopen(comm_path, "re");
        if (c) {
            if (fgets(comm, sizeof comm, c))
                comm[strcspn(comm, "\n")] = '\0';
            fclose(c);
        }
        snprintf(ret, ret_bytes, ", held by process %s (%s)", e->d_name,
                 error_quote(quoted, sizeof quoted, comm, strlen(comm)));
        break;
    }
    closedir(proc);
}

static int conflict(const struct file *f, int permission, int byte)
{
    char who[512];

    holder(f, byte, who, sizeof who);
    unlock_all(f);
    return error_set(-EAGAIN, "%s: failed to get \"%s\" lock: another process is using the image%s",
                     file_name(f), permission_names[permission], who);
}

static int lock_failed(const struct file *f, int err, int byte)
{

    unlock_all(f);
    return error_set(err, "%s: failed to lock byte %d: %s", file_name(f), byte, strerror(-err));
}

/* The locks go with an open file description of their own: rings keep those of registered files for a while
 * after their process was killed, and a successor would find the image locked. Where the file cannot be
 * opened again they go with the file's. */
static void open_lock_fd(struct file *f)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", f->fd);
    f->lock_fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    f->own_lock_fd = f->lock_fd >= 0;
    if (!f->own_lock_fd)
        f->lock_fd = f->fd;
}

static void close_lock_fd(struct file *f)
{
    if (f->own_lock_fd)
        close(f->lock_fd);
    f->own_lock_fd = false;
    f->lock_fd = -1;
}

static int take_locks(struct file *f, uint32_t used, uint32_t denied)
{
    int ret;

    for (int i = 0; i < PERMISSIONS; i++) {
        if ((used & (1u << i)) && (ret = lock_byte(f, USED_BYTE + i, F_RDLCK)) < 0)
            return lock_failed(f, ret, USED_BYTE + i);
        if ((denied & (1u << i)) && (ret = lock_byte(f, DENIED_BYTE + i, F_RDLCK)) < 0)
            return lock_failed(f, ret, DENIED_BYTE + i);
    }
    for (int i = 0; i < PERMISSIONS; i++) {
        if (used & (1u << i)) {
            ret = byte_is_held(f, DENIED_BYTE + i);
            if (ret)
                return ret < 0 ? lock_failed(f, ret, DENIED_BYTE + i) : conflict(f, i, DENIED_BYTE + i);
        }
        if (denied & (1u << i)) {
            ret = byte_is_held(f, USED_BYTE + i);
            if (ret)
                return ret < 0 ? lock_failed(f, ret, USED_BYTE + i) : conflict(f, i, USED_BYTE + i);
        }
    }
    return 0;
}

int image_lock(struct file *f, uint32_t used, uint32_t denied)
{
    int ret;

    if (f->fd < 0)
        return 0;
    open_lock_fd(f);
    ret = take_locks(f, used, denied);
    f->locked = ret == 0;
    if (ret < 0)
        close_lock_fd(f);
    return ret;
}

void image_unlock(struct file *f)
{
    if (!f->locked)
        return;
    unlock_all(f);
    close_lock_fd(f);
    f->locked = false;
}
