/* SPDX-License-Identifier: MIT */
/*
 * The bitmap of guest pages that a migration has to send again (vhost-user: VHOST_F_LOG_ALL). It is the front
 * end's memory; several workers and the front end itself set and clear its bits.
 */
#ifndef EXPORTS_DIRTY_LOG_H
#define EXPORTS_DIRTY_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIRTY_LOG_PAGE 4096u

struct dirty_log {
    uint8_t *bits;
    uint64_t bytes;
    void *map;
    size_t map_bytes;
};

/* Maps bytes at off of fd. 0 or a negative errno. */
int dirty_log_open(struct dirty_log *log, int fd, uint64_t off, uint64_t bytes);
void dirty_log_close(struct dirty_log *log);

/* Guest memory was written. What lies beyond the log's end is left out. */
void dirty_log_mark(const struct dirty_log *log, uint64_t guest_addr, uint64_t bytes);

#endif
