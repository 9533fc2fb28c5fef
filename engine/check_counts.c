/* SPDX-License-Identifier: MIT */
#include "engine/check_counts.h"

#include <errno.h>
#include <string.h>

#include "base/attributes.h"
#include "base/error.h"
#include "base/memory.h"
#include "format/refcount.h"

static uint32_t width_shift(uint32_t refcount_order)
{
    return refcount_order > 3 ? refcount_order - 3 : 0;
}

uint64_t check_counts_bytes(uint64_t count, uint32_t refcount_order)
{
    return (count << width_shift(refcount_order)) + count / 4 + count / 8;
}

int check_counts_map(struct check_counts *c, uint64_t first, uint64_t count, uint32_t refcount_order)
{
    const uint64_t bytes = check_counts_bytes(count, refcount_order);
    /* Not malloc: the kernel's zero pages stand for clusters that nothing refers to. */
    void *p = pages_reserve(bytes);

    if (!p)
        return error_set(-ENOMEM, "out of memory");
    *c = (struct check_counts){
        .first = first,
        .count = count,
        .max = refcount_max(refcount_order),
        .width_shift = width_shift(refcount_order),
        .expected = p,
        .mapped_bytes = bytes,
    };
    c->stored = c->expected + (count << c->width_shift);
    c->metadata = c->stored + count / 4;
    return 0;
}

void check_counts_unmap(struct check_counts *c)
{
    pages_release(c->expected, c->mapped_bytes);
    *c = (struct check_counts){0};
}

/* Never wraps: a count that reached max stays there. */
#define ADD_UP_TO(type, p, max)                                                                              \
    do {                                                                                                     \
        type *const at = (type *)(p);                                                                        \
        type old = __atomic_load_n(at, __ATOMIC_RELAXED);                                                    \
        do {                                                                                                 \
            if (unlikely(old == (type)(max)))                                                                \
                return false;                                                                                \
        } while (!__atomic_compare_exchange_n(at, &old, (type)(old + 1), true, __ATOMIC_RELAXED,             \
                                              __ATOMIC_RELAXED));                                            \
        return true;                                                                                         \
    } while (0)

bool check_counts_add(struct check_counts *c, uint64_t cluster)
{
    void *const p = c->expected + ((cluster - c->first) << c->width_shift);

    switch (c->width_shift) {
    case 0:
        ADD_UP_TO(uint8_t, p, c->max);
    case 1:
        ADD_UP_TO(uint16_t, p, c->max);
    case 2:
        ADD_UP_TO(uint32_t, p, c->max);
    default:
        ADD_UP_TO(uint64_t, p, c->max);
    }
}

uint64_t check_counts_expected(const struct check_counts *c, uint64_t cluster)
{
    const void *const p = c->expected + ((cluster - c->first) << c->width_shift);

    switch (c->width_shift) {
    case 0:
        return *(const uint8_t *)p;
    case 1:
        return *(const uint16_t *)p;
    case 2:
        return *(const uint32_t *)p;
    default:
        return *(const uint64_t *)p;
    }
}

bool check_counts_none_expected(const struct check_counts *c, uint64_t cluster, uint64_t n)
{
    const uint8_t *p = c->expected + ((cluster - c->first) << c->width_shift);
    const uint8_t *const end = p + (n << c->width_shift);
    uint64_t any = 0;

    for (; p < end; p += sizeof any) {
        uint64_t v;
        memcpy(&v, p, sizeof v);
        any |= v;
    }
    return !any;
}

bool check_counts_mark_metadata(struct check_counts *c, uint64_t cluster)
{
    const uint64_t i = cluster - c->first;
    const uint8_t bit = (uint8_t)(1u << i % 8);

    return !(__atomic_fetch_or(&c->metadata[i / 8], bit, __ATOMIC_RELAXED) & bit);
}
