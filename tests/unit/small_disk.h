/* SPDX-License-Identifier: MIT */
/* Places to write to that have an end. They need privileges that a test may not have: then it skips. */
#ifndef UNIT_SMALL_DISK_H
#define UNIT_SMALL_DISK_H

#include <stdint.h>

#define SMALL_DISK_PATH_BYTES 64

/* An empty tmpfs of bytes bytes that only this process sees, and the path of a file in it that does not exist
 * yet. Returns a descriptor, which keeps it, or a negative errno. */
int small_tmpfs(uint64_t bytes, char ret_path[SMALL_DISK_PATH_BYTES]);

/* A block device over the file at path. Returns a descriptor, which keeps it, or a negative errno. */
int small_block_device(const char *path, char ret_path[SMALL_DISK_PATH_BYTES]);

/* A new zram device, 4 KiB blocks in memory: its number, for zram_remove(), or a negative errno. */
int zram_add(uint64_t bytes, char ret_path[SMALL_DISK_PATH_BYTES]);
void zram_remove(int number);

#endif
