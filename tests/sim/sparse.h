/* SPDX-License-Identifier: MIT */
/*
 * Bytes addressed from 0 to a bound, all zero at first, cheap to clear, copy and compare while few chunks of
 * them were ever written.
 */
#ifndef SIM_SPARSE_H
#define SIM_SPARSE_H

#include <stdbool.h>
#include <stdint.h>

#define SPARSE_BYTES_MAX (64ull << 20)
#define SPARSE_CHUNK_BYTES (16ull << 10)
#define SPARSE_CHUNKS (SPARSE_BYTES_MAX / SPARSE_CHUNK_BYTES)

struct sparse {
    uint8_t *p;
    uint64_t touched[SPARSE_CHUNKS / 64]; /* a bit per chunk that may hold something else than zeros */
    uint64_t top;                         /* chunks from it on were never touched */
};

void sparse_init(struct sparse *s);
void sparse_free(struct sparse *s);
void sparse_clear(struct sparse *s);

/* Ranges are within SPARSE_BYTES_MAX. */
void sparse_write(struct sparse *s, uint64_t off, const void *from, uint64_t bytes);
void sparse_zero(struct sparse *s, uint64_t off, uint64_t bytes);
void sparse_copy(struct sparse *to, const struct sparse *from);

/* Of the content; equal content has equal hashes whatever was touched. */
uint64_t sparse_hash(const struct sparse *s);

#endif
