/* SPDX-License-Identifier: MIT */
#include "exports/guest_memory.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static bool overlaps(uint64_t a, uint64_t b, uint64_t a_bytes, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

static bool wraps(uint64_t addr, uint64_t bytes)
{
    return addr + bytes < addr;
}

/* Length of a mapping from the file's beginning: huge pages want whole ones. 0: the file is too short. */
static size_t map_length(int fd, uint64_t end)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || (S_ISREG(st.st_mode) && (uint64_t)st.st_size < end))
        return 0;
    if (st.st_blksize > 4096 && !(st.st_blksize & (st.st_blksize - 1)))
        end = (end + (uint64_t)st.st_blksize - 1) & ~((uint64_t)st.st_blksize - 1);
    return end;
}

int guest_memory_add(struct guest_memory *m, uint64_t guest_addr, uint64_t user_addr, uint64_t bytes,
                     uint64_t map_off, int fd, const char **ret_why)
{
    struct guest_region *r = &m->regions[m->count];
    size_t length;

    *ret_why = "there are too many memory regions";
    if (m->count == GUEST_REGIONS_MAX)
        return -ENOSPC;
    *ret_why = "a memory region is empty or wraps around";
    if (!bytes || wraps(guest_addr, bytes) || wraps(user_addr, bytes) || wraps(map_off, bytes))
        return -EINVAL;
    *ret_why = "memory regions overlap";
    for (uint32_t i = 0; i < m->count; i++)
        if (overlaps(guest_addr, m->regions[i].guest_addr, bytes, m->regions[i].bytes) ||
            overlaps(user_addr, m->regions[i].user_addr, bytes, m->regions[i].bytes))
            return -EINVAL;
    *ret_why = "a memory region is longer than its descriptor";
    length = map_length(fd, map_off + bytes);
    if (!length)
        return -EINVAL;
    *ret_why = "a memory region cannot be mapped";
    *r = (struct guest_region){
        .guest_addr = guest_addr, .user_addr = user_addr, .bytes = bytes, .map_bytes = length};
    r->map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (r->map == MAP_FAILED)
        return -errno;
    (void)madvise(r->map, length, MADV_DONTDUMP);
    r->memory = (uint8_t *)r->map + map_off;
    m->count++;
    return 0;
}

int guest_memory_take(struct guest_memory *m, uint64_t guest_addr, uint64_t user_addr, uint64_t bytes,
                      struct guest_region *ret)
{
    for (uint32_t i = 0; i < m->count; i++) {
        const struct guest_region *r = &m->regions[i];

        if (r->guest_addr != guest_addr || r->user_addr != user_addr || r->bytes != bytes)
            continue;
        *ret = *r;
        m->regions[i] = m->regions[--m->count];
        return 0;
    }
    return -ENOENT;
}

bool guest_memory_has(const struct guest_memory *m, const struct guest_region *r)
{
    for (uint32_t i = 0; m && i < m->count; i++)
        if (m->regions[i].memory == r->memory && m->regions[i].bytes == r->bytes)
            return true;
    return false;
}

void guest_region_unmap(struct guest_region *r)
{
    if (r->map)
        munmap(r->map, r->map_bytes);
    *r = (struct guest_region){0};
}

void guest_memory_clear(struct guest_memory *m)
{
    while (m->count)
        guest_region_unmap(&m->regions[--m->count]);
}

void *guest_memory_at(const struct guest_memory *m, uint64_t guest_addr, uint64_t bytes)
{
    for (uint32_t i = 0; i < m->count; i++) {
        const struct guest_region *r = &m->regions[i];
        const uint64_t at = guest_addr - r->guest_addr;

        if (at < r->bytes && bytes <= r->bytes - at)
            return r->memory + at;
    }
    return NULL;
}

void *guest_memory_at_user(const struct guest_memory *m, uint64_t user_addr, uint64_t bytes,
                           uint64_t *ret_guest_addr)
{
    for (uint32_t i = 0; i < m->count; i++) {
        const struct guest_region *r = &m->regions[i];
        const uint64_t at = user_addr - r->user_addr;

        if (at < r->bytes && bytes <= r->bytes - at) {
            *ret_guest_addr = r->guest_addr + at;
            return r->memory + at;
        }
    }
    return NULL;
}

static const struct guest_region *find(const struct guest_memory *m, uint64_t guest_addr)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (guest_addr - m->regions[i].guest_addr < m->regions[i].bytes)
            return &m->regions[i];
    return NULL;
}

uint32_t guest_memory_pieces(const struct guest_memory *m, uint64_t guest_addr, uint32_t bytes,
                             struct iovec *iov, uint32_t max)
{
    uint32_t n = 0;

    if (wraps(guest_addr, bytes))
        return 0;
    while (bytes) {
        const struct guest_region *r = find(m, guest_addr);
        uint64_t at, here;

        if (!r || n == max)
            return 0;
        at = guest_addr - r->guest_addr;
        here = bytes < r->bytes - at ? bytes : r->bytes - at;
        iov[n++] = (struct iovec){r->memory + at, here};
        guest_addr += here;
        bytes -= (uint32_t)here;
    }
    return n;
}
