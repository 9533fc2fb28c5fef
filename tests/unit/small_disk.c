/* SPDX-License-Identifier: MIT */
#include "tests/unit/small_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/loop.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

/* Others take devices too, between the question which one is free and taking it. */
#define ATTEMPTS 100

int small_tmpfs(uint64_t bytes, char ret_path[SMALL_DISK_PATH_BYTES])
{
    const int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    char size[32];
    int fd = -1, err;

    if (fs < 0)
        return -errno;
    snprintf(size, sizeof size, "%" PRIu64, bytes);
    if (fsconfig(fs, FSCONFIG_SET_STRING, "size", size, 0) == 0 &&
        fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        fd = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    err = errno;
    close(fs);
    if (fd < 0)
        return -err;
    snprintf(ret_path, SMALL_DISK_PATH_BYTES, "/proc/self/fd/%d/file", fd);
    return fd;
}

static int take_free_device(int control, int backing, char ret_path[SMALL_DISK_PATH_BYTES])
{
    const struct loop_config config = {.fd = (uint32_t)backing, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
    const int number = ioctl(control, LOOP_CTL_GET_FREE);
    int fd, err;

    if (number < 0)
        return -errno;
    snprintf(ret_path, SMALL_DISK_PATH_BYTES, "/dev/loop%d", number);
    fd = open(ret_path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, LOOP_CONFIGURE, &config) == 0)
        return fd;
    err = errno;
    close(fd);
    return -err;
}

int small_block_device(const char *path, char ret_path[SMALL_DISK_PATH_BYTES])
{
    const int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    const int backing = control < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    int fd = -errno;

    if (backing >= 0) {
        fd = -EBUSY;
        for (int i = 0; i < ATTEMPTS && fd == -EBUSY; i++)
            fd = take_free_device(control, backing, ret_path);
        close(backing);
    }
    if (control >= 0)
        close(control);
    return fd;
}

static int write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    bool bad;

    if (!f)
        return -errno;
    bad = fputs(text, f) < 0;
    return fclose(f) || bad ? -EIO : 0;
}

int zram_add(uint64_t bytes, char ret_path[SMALL_DISK_PATH_BYTES])
{
    FILE *f = fopen("/sys/class/zram-control/hot_add", "re");
    char attribute[SMALL_DISK_PATH_BYTES], size[32];
    int number = -1, r;

    if (!f)
        return -errno;
    if (fscanf(f, "%d", &number) != 1)
        number = -1;
    fclose(f);
    if (number < 0)
        return -ENODEV;
    snprintf(ret_path, SMALL_DISK_PATH_BYTES, "/dev/zram%d", number);
    snprintf(attribute, sizeof attribute, "/sys/block/zram%d/disksize", number);
    snprintf(size, sizeof size, "%" PRIu64, bytes);
    r = write_text(attribute, size);
    if (r == 0 && access(ret_path, R_OK | W_OK) < 0)
        r = -errno;
    if (r < 0)
        zram_remove(number);
    return r < 0 ? r : number;
}

void zram_remove(int number)
{
    char path[SMALL_DISK_PATH_BYTES], text[16];

    snprintf(path, sizeof path, "/sys/block/zram%d/reset", number);
    (void)write_text(path, "1");
    snprintf(text, sizeof text, "%d", number);
    (void)write_text("/sys/class/zram-control/hot_remove", text);
}
