/* SPDX-License-Identifier: MIT */
#include "exports/dirty_log.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

int dirty_log_open(struct dirty_log *log, int fd, uint64_t off, uint64_t bytes)
{
    struct stat st;

    *log = (struct dirty_log){0};
    if (!bytes || off + bytes < off || fstat(fd, &st) < 0 || (uint64_t)st.st_size < off + bytes)
        return -EINVAL;
    log->map_bytes = off + bytes;
    log->map = mmap(NULL, log->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (log->map == MAP_FAILED) {
        log->map = NULL;
        return -errno;
    }
    log->bits = (uint8_t *)log->map + off;
    log->bytes = bytes;
    return 0;
}

void dirty_log_close(struct dirty_log *log)
{
    if (log->map)
        munmap(log->map, log->map_bytes);
    *log = (struct dirty_log){0};
}

void dirty_log_mark(const struct dirty_log *log, uint64_t guest_addr, uint64_t bytes)
{
    if (!bytes || !log->bits)
        return;
    for (uint64_t page = guest_addr / DIRTY_LOG_PAGE; page <= (guest_addr + bytes - 1) / DIRTY_LOG_PAGE;
         page++)
        if (page / 8 < log->bytes)
            (void)__atomic_fetch_or(&log->bits[page / 8], (uint8_t)(1u << page % 8), __ATOMIC_SEQ_CST);
}
