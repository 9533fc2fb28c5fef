/* SPDX-License-Identifier: MIT */
/* The raw file that gets everything the image gets, and who works on which of its sectors. */
#ifndef COMPAT_WRITER_SHADOW_H
#define COMPAT_WRITER_SHADOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHADOW_SECTOR 512u
/* Requests in flight of one thread. */
#define WRITER_DEPTH 64

/* The file, mapped. */
extern uint8_t *shadow;
extern int shadow_fd;

/* 0, or 1 after it has said why not: the file has to have bytes bytes. */
int shadow_map(const char *path, uint64_t bytes);

/* Without making blocks of holes. */
void shadow_zero(uint64_t off, size_t bytes);
bool shadow_all_zeros(const uint8_t *p, size_t bytes);

/* The range, widened to sectors, for one thread's request; false when somebody has part of it. Those that
 * only read share. Any thread. */
bool range_take(uint32_t thread, uint32_t slot, uint64_t off, uint64_t bytes, bool reads);
void range_give(uint32_t thread, uint32_t slot);

#endif
