/* SPDX-License-Identifier: MIT */
/*
 * xoshiro256** seeded through splitmix64 (Blackman and Vigna, "Scrambled linear pseudorandom number
 * generators"): about a nanosecond per number, so that it does not show in a benchmark of a million requests
 * per second. The same seed and stream give the same numbers everywhere. Not for secrets.
 */
#ifndef CLI_RANDOM_XOSHIRO_H
#define CLI_RANDOM_XOSHIRO_H

#include <stdint.h>

struct random_xoshiro {
    uint64_t state[4];
};

/* Streams of one seed are independent: give each thread its own. */
static inline void random_xoshiro_seed(struct random_xoshiro *r, uint64_t seed, uint64_t stream)
{
    /* Streams start 2^40 splitmix steps apart, so that no two share a state word. */
    uint64_t x = seed + stream * (0x9e3779b97f4a7c15ull << 40);
    for (int i = 0; i < 4; i++) {
        x += 0x9e3779b97f4a7c15ull;
        uint64_t z = x;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        r->state[i] = z ^ (z >> 31);
    }
}

static inline uint64_t random_xoshiro_rotate(uint64_t x, int bits)
{
    return (x << bits) | (x >> (64 - bits));
}

static inline uint64_t random_xoshiro_next(struct random_xoshiro *r)
{
    uint64_t *const s = r->state;
    const uint64_t result = random_xoshiro_rotate(s[1] * 5, 7) * 9;
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = random_xoshiro_rotate(s[3], 45);
    return result;
}

/* A number in [0, limit); limit > 0. The high half of a product instead of a remainder: no division, and a
 * bias below limit / 2^64. */
static inline uint64_t random_xoshiro_below(struct random_xoshiro *r, uint64_t limit)
{
    return (uint64_t)(((unsigned __int128)random_xoshiro_next(r) * limit) >> 64);
}

#endif
