/* SPDX-License-Identifier: MIT */
/* qemu's sector, the unit in which it counts a raw file's size. */
#ifndef CLI_SECTORS_H
#define CLI_SECTORS_H

#include <stdint.h>

#define SECTOR_BYTES 512

static inline uint64_t round_to_sector(uint64_t bytes)
{
    return (bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
}

#endif
