/* SPDX-License-Identifier: MIT */
/*
 * Image locks as QEMU takes them (QEMU block/file-posix.c): shared open-file-description locks on single
 * bytes. Byte 100 + i: somebody uses permission i; byte 200 + i: somebody forbids others to use it.
 */
#ifndef IO_IMAGE_LOCK_H
#define IO_IMAGE_LOCK_H

#include <stdint.h>

#include "io/file.h"

#define IMAGE_READ (1u << 0)
#define IMAGE_WRITE (1u << 1)
#define IMAGE_WRITE_UNCHANGED (1u << 2)
#define IMAGE_RESIZE (1u << 3)

/*
 * Take the locks for the permissions in used, forbidding those in denied to others. They go with the file. 0,
 * or -EAGAIN with a message that names the conflict and, where /proc tells, the process; then nothing is
 * locked.
 */
int image_lock(struct file *f, uint32_t used, uint32_t denied);

/* Give them back, at once: a ring that the file was registered with keeps the description, and so its locks,
 * for a while after the descriptor is closed. */
void image_unlock(struct file *f);

#endif
