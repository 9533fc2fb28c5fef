/* SPDX-License-Identifier: MIT */
/* Refcounts of 1 to 64 bits; narrow ones are packed least significant first (qcow2 spec, "Refcount blocks").
 */
#ifndef FORMAT_REFCOUNT_H
#define FORMAT_REFCOUNT_H

#include <stdint.h>

#include "base/byteorder.h"

/* Counts in one block: a cluster has 8 << cluster_bits bits, each count 1 << order of them. */
static inline uint32_t refcount_block_count(uint32_t cluster_bits, uint32_t order)
{
    return 1u << (cluster_bits + 3 - order);
}

static inline uint64_t refcount_max(uint32_t order)
{
    return order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1;
}

static inline uint64_t refcount_get(const uint8_t *block, uint32_t order, uint32_t index)
{
    if (order < 3) {
        const uint32_t per_byte_bits = 3 - order;
        const uint32_t within = index & ((1u << per_byte_bits) - 1);
        return (uint64_t)(block[index >> per_byte_bits] >> (within << order)) & ((1u << (1u << order)) - 1);
    }
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return get_be16(block + (size_t)index * 2);
    case 5:
        return get_be32(block + (size_t)index * 4);
    default:
        return get_be64(block + (size_t)index * 8);
    }
}

/* value is at most refcount_max(order). */
static inline void refcount_set(uint8_t *block, uint32_t order, uint32_t index, uint64_t value)
{
    if (order < 3) {
        const uint32_t per_byte_bits = 3 - order;
        const uint32_t shift = (index & ((1u << per_byte_bits) - 1)) << order;
        const uint32_t mask = ((1u << (1u << order)) - 1) << shift;
        uint8_t *byte = &block[index >> per_byte_bits];

        *byte = (uint8_t)((*byte & ~mask) | ((uint32_t)value << shift));
        return;
    }
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        break;
    case 4:
        put_be16(block + (size_t)index * 2, (uint16_t)value);
        break;
    case 5:
        put_be32(block + (size_t)index * 4, (uint32_t)value);
        break;
    default:
        put_be64(block + (size_t)index * 8, value);
        break;
    }
}

#endif
