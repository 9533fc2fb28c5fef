/* SPDX-License-Identifier: MIT */
#include "tests/sim/sparse.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/attributes.h"

void sparse_init(struct sparse *s)
{
    memset(s, 0, sizeof *s);
    s->p = mmap(NULL, SPARSE_BYTES_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    if (s->p == MAP_FAILED)
        abort();
}

void sparse_free(struct sparse *s)
{
    if (s->p)
        munmap(s->p, SPARSE_BYTES_MAX);
    s->p = NULL;
}

static bool is_touched(const struct sparse *s, uint64_t chunk)
{
    return s->touched[chunk / 64] >> chunk % 64 & 1;
}

static void touch(struct sparse *s, uint64_t off, uint64_t bytes)
{
    for (uint64_t c = off / SPARSE_CHUNK_BYTES; c <= (off + bytes - 1) / SPARSE_CHUNK_BYTES; c++) {
        s->touched[c / 64] |= 1ull << c % 64;
        s->top = MAX(s->top, c + 1);
    }
}

void sparse_clear(struct sparse *s)
{
    for (uint64_t c = 0; c < s->top; c++)
        if (is_touched(s, c))
            memset(s->p + c * SPARSE_CHUNK_BYTES, 0, SPARSE_CHUNK_BYTES);
    memset(s->touched, 0, sizeof s->touched);
    s->top = 0;
}

void sparse_write(struct sparse *s, uint64_t off, const void *from, uint64_t bytes)
{
    if (!bytes)
        return;
    invariant(off <= SPARSE_BYTES_MAX && bytes <= SPARSE_BYTES_MAX - off);
    touch(s, off, bytes);
    memcpy(s->p + off, from, bytes);
}

void sparse_zero(struct sparse *s, uint64_t off, uint64_t bytes)
{
    invariant(off <= SPARSE_BYTES_MAX && bytes <= SPARSE_BYTES_MAX - off);
    while (bytes && off / SPARSE_CHUNK_BYTES < s->top) {
        const uint64_t c = off / SPARSE_CHUNK_BYTES;
        const uint64_t n = MIN(bytes, SPARSE_CHUNK_BYTES - off % SPARSE_CHUNK_BYTES);

        if (is_touched(s, c))
            memset(s->p + off, 0, n);
        off += n;
        bytes -= n;
    }
}

void sparse_copy(struct sparse *to, const struct sparse *from)
{
    for (uint64_t c = 0; c < MAX(to->top, from->top); c++) {
        const uint64_t off = c * SPARSE_CHUNK_BYTES;

        if (is_touched(from, c))
            memcpy(to->p + off, from->p + off, SPARSE_CHUNK_BYTES);
        else if (is_touched(to, c))
            memset(to->p + off, 0, SPARSE_CHUNK_BYTES);
    }
    memcpy(to->touched, from->touched, sizeof to->touched);
    to->top = from->top;
}

uint64_t sparse_hash(const struct sparse *s)
{
    uint64_t hash = 0;

    for (uint64_t c = 0; c < s->top; c++) {
        const uint64_t *const words = (const uint64_t *)(s->p + c * SPARSE_CHUNK_BYTES);
        uint64_t sum = 0;

        if (!is_touched(s, c))
            continue;
        for (uint64_t i = 0; i < SPARSE_CHUNK_BYTES / 8; i++)
            sum = (sum << 7 | sum >> 57) + words[i] * 0x9e3779b97f4a7c15u;
        if (sum)
            hash ^= (sum + c) * 0xff51afd7ed558ccdu;
    }
    return hash;
}
