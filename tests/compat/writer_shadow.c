/* SPDX-License-Identifier: MIT */
#include "tests/compat/writer_shadow.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/compat/writer_settings.h"

uint8_t *shadow;
int shadow_fd;

/* What is in flight, of all threads; the last one is the blocking thread's. */
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;
static struct range {
    uint64_t from, to;
    bool reads;
} ranges[WRITER_THREADS_MAX + 1][WRITER_DEPTH];

bool range_take(uint32_t thread, uint32_t slot, uint64_t off, uint64_t bytes, bool reads)
{
    const uint64_t from = off / SHADOW_SECTOR * SHADOW_SECTOR,
                   to = (off + bytes + SHADOW_SECTOR - 1) / SHADOW_SECTOR * SHADOW_SECTOR;
    bool mine = true;

    pthread_mutex_lock(&ranges_lock);
    for (uint32_t t = 0; t <= WRITER_THREADS_MAX && mine; t++)
        for (uint32_t i = 0; i < WRITER_DEPTH && mine; i++)
            mine = ranges[t][i].to <= from || ranges[t][i].from >= to || (reads && ranges[t][i].reads);
    if (mine)
        ranges[thread][slot] = (struct range){from, to, reads};
    pthread_mutex_unlock(&ranges_lock);
    return mine;
}

void range_give(uint32_t thread, uint32_t slot)
{
    pthread_mutex_lock(&ranges_lock);
    ranges[thread][slot] = (struct range){0};
    pthread_mutex_unlock(&ranges_lock);
}

bool shadow_all_zeros(const uint8_t *p, size_t bytes)
{
    return bytes == 0 || (p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0);
}

/* Zero the shadow without making blocks of holes. */
void shadow_zero(uint64_t off, size_t bytes)
{
    while (bytes) {
        const size_t part = bytes < 4096 - off % 4096 ? bytes : 4096 - off % 4096;
        if (!shadow_all_zeros(shadow + off, part))
            memset(shadow + off, 0, part);
        off += part;
        bytes -= part;
    }
}

int shadow_map(const char *path, uint64_t bytes)
{
    struct stat st;
    shadow_fd = open(path, O_RDWR | O_CLOEXEC);
    if (shadow_fd < 0 || fstat(shadow_fd, &st)) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    if ((uint64_t)st.st_size != bytes) {
        fprintf(stderr, "%s has %" PRIu64 " bytes, the image %" PRIu64 "\n", path, (uint64_t)st.st_size,
                bytes);
        return 1;
    }
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, shadow_fd, 0);
    if (map == MAP_FAILED) {
        fprintf(stderr, "%s: mmap: %s\n", path, strerror(errno));
        return 1;
    }
    shadow = map;
    return 0;
}
