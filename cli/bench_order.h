/* SPDX-License-Identifier: MIT */
/*
 * The numbers below a count in a random order, each once: a Feistel network of four rounds over the next even
 * power of two, walked on until it lands below the count. No memory, and any place is found at once, so that
 * several threads can share one order.
 */
#ifndef CLI_BENCH_ORDER_H
#define CLI_BENCH_ORDER_H

#include <stdint.h>

struct bench_order {
    uint64_t count;
    uint64_t seed;
    uint32_t half_bits; /* 4^half_bits >= count */
};

static inline struct bench_order bench_order_create(uint64_t count, uint64_t seed)
{
    struct bench_order order = {.count = count, .seed = seed, .half_bits = 1};
    while (order.half_bits < 32 && (1ull << (2 * order.half_bits)) < count)
        order.half_bits++;
    return order;
}

/* The number at a place below count. */
static inline uint64_t bench_order_at(const struct bench_order *order, uint64_t place)
{
    const uint64_t mask = (1ull << order->half_bits) - 1;
    uint64_t x = place;
    do {
        uint64_t left = x >> order->half_bits, right = x & mask;
        for (uint64_t round = 1; round <= 4; round++) {
            uint64_t h = (right + order->seed + round) * 0x9e3779b97f4a7c15ull;
            h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9ull;
            const uint64_t next = left ^ ((h >> 32) & mask);
            left = right;
            right = next;
        }
        x = left << order->half_bits | right;
    } while (x >= order->count);
    return x;
}

#endif
