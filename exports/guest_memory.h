/* SPDX-License-Identifier: MIT */
/*
 * A guest's memory as a vhost-user front end lends it: regions of descriptors, mapped. What lies in it may
 * change at any time: whoever reads it fetches once and checks what was fetched.
 */
#ifndef EXPORTS_GUEST_MEMORY_H
#define EXPORTS_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Also what VHOST_USER_GET_MAX_MEM_SLOTS answers. */
#define GUEST_REGIONS_MAX 64u

struct guest_region {
    uint64_t guest_addr; /* as descriptors have it */
    uint64_t user_addr;  /* as the front end's own pointers have it: ring addresses */
    uint64_t bytes;
    uint8_t *memory; /* of guest_addr here */
    void *map;
    size_t map_bytes;
};

struct guest_memory {
    struct guest_region regions[GUEST_REGIONS_MAX];
    uint32_t count;
};

/* Maps bytes at map_off of fd; the descriptor stays the caller's. 0, or a negative errno with *ret_why: a
 * range that wraps or overlaps, a file that is shorter, a full table. */
int guest_memory_add(struct guest_memory *m, uint64_t guest_addr, uint64_t user_addr, uint64_t bytes,
                     uint64_t map_off, int fd, const char **ret_why);

/* The region of exactly this range; -ENOENT. It is taken out of the table into *ret, still mapped. */
int guest_memory_take(struct guest_memory *m, uint64_t guest_addr, uint64_t user_addr, uint64_t bytes,
                      struct guest_region *ret);

void guest_region_unmap(struct guest_region *r);

/* Whether m has this very mapping. NULL has none. */
bool guest_memory_has(const struct guest_memory *m, const struct guest_region *r);

/* Unmaps everything. */
void guest_memory_clear(struct guest_memory *m);

/* bytes at guest_addr, if they lie in one region; else NULL. */
void *guest_memory_at(const struct guest_memory *m, uint64_t guest_addr, uint64_t bytes);

/* The same for an address of the front end's; *ret_guest_addr is where the guest has it. */
void *guest_memory_at_user(const struct guest_memory *m, uint64_t user_addr, uint64_t bytes,
                           uint64_t *ret_guest_addr);

/* [guest_addr, guest_addr + bytes) as at most max pieces. Returns how many; 0: some of it is no memory, or it
 * takes more. */
uint32_t guest_memory_pieces(const struct guest_memory *m, uint64_t guest_addr, uint32_t bytes,
                             struct iovec *iov, uint32_t max);

#endif
