/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <endian.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "cache/directory.h"
#include "cache/slice_cache.h"

#define SLICE_BYTES 512u
#define WORDS (SLICE_BYTES / 8)

/* Every word of a slice's entries tells the slice and how often it was loaded. */
static void fill(uint64_t words[WORDS], uint64_t slice, uint64_t version)
{
    for (uint32_t i = 0; i < WORDS; i++)
        words[i] = htobe64(slice << 32 | version << 16 | i);
}

static struct slot *insert(struct slice_cache *c, struct directory *d, uint64_t slice)
{
    uint64_t words[WORDS];

    fill(words, slice, 0);
    return slice_cache_insert(c, directory_cell(d, slice), words, sizeof words);
}

static struct slot *cached(const struct directory *d, uint64_t slice)
{
    return atomic_load(directory_cell(d, slice));
}

/* As a reader does it. */
static bool reads(const struct directory *d, uint64_t slice, uint32_t word, uint64_t *ret)
{
    slot_cell *cell = directory_cell(d, slice);
    struct slot *slot = atomic_load_explicit(cell, memory_order_acquire);
    uint32_t seq;

    if (!slot || !slot_read_begin(slot, cell, &seq))
        return false;
    *ret = be64toh(atomic_load_explicit(&slot->entries[word], memory_order_relaxed));
    if (!slot_read_valid(slot, seq))
        return false;
    slot_mark(slot);
    return true;
}

struct world {
    struct slice_cache cache;
    struct directory directory;
};

static void make(struct world *w, uint32_t slots, uint64_t slices)
{
    memset(w, 0, sizeof *w);
    cr_assert_eq(slice_cache_create(&w->cache, slots, SLICE_BYTES), 0);
    cr_assert_eq(directory_create(&w->directory, slices), 0);
}

static void drop(struct world *w)
{
    slice_cache_destroy(&w->cache);
    directory_destroy(&w->directory);
}

Test(slot, insert_publishes)
{
    struct world w;
    uint64_t word;

    make(&w, 4, 100);
    cr_assert_null(cached(&w.directory, 42));
    struct slot *slot = insert(&w.cache, &w.directory, 42);
    cr_assert_eq(cached(&w.directory, 42), slot);
    cr_assert_eq(atomic_load(&slot->seq) % 2, 0);
    cr_assert_eq(atomic_load(&slot->home), directory_cell(&w.directory, 42));
    for (uint32_t i = 0; i < WORDS; i++) {
        cr_assert(reads(&w.directory, 42, i, &word));
        cr_assert_eq(word, 42ull << 32 | i);
    }
    drop(&w);
}

Test(slot, a_reader_of_a_replaced_slot_notices)
{
    struct world w;
    uint32_t seq;

    make(&w, 1, 100);
    slot_cell *cell = directory_cell(&w.directory, 1);
    struct slot *slot = insert(&w.cache, &w.directory, 1);
    cr_assert(slot_read_begin(slot, cell, &seq));
    cr_assert(slot_read_valid(slot, seq));
    insert(&w.cache, &w.directory, 2); /* takes the only slot while the read is under way */
    cr_assert_not(slot_read_valid(slot, seq));
    cr_assert_not(slot_read_begin(slot, cell, &seq), "it is somebody else's now");
    cr_assert_null(cached(&w.directory, 1));
    drop(&w);
}

Test(slot, a_reader_meets_a_change)
{
    struct world w;
    uint32_t seq;

    make(&w, 1, 100);
    slot_cell *cell = directory_cell(&w.directory, 1);
    struct slot *slot = insert(&w.cache, &w.directory, 1);
    atomic_fetch_add(&slot->seq, 1); /* the owner is at it */
    cr_assert_not(slot_read_begin(slot, cell, &seq));
    atomic_fetch_add(&slot->seq, 1);
    cr_assert(slot_read_begin(slot, cell, &seq));
    drop(&w);
}

Test(slot, mark_writes_only_when_clear)
{
    struct slot slot = {0};

    slot_mark(&slot);
    cr_assert_eq(atomic_load(&slot.referenced), 1);
    atomic_store(&slot.referenced, 3); /* a value that a write would replace */
    slot_mark(&slot);
    cr_assert_eq(atomic_load(&slot.referenced), 3);
}

Test(slice_cache, never_more_than_its_slots)
{
    struct world w;
    uint64_t there = 0;

    make(&w, 8, 1000);
    for (uint64_t i = 0; i < 1000; i++)
        insert(&w.cache, &w.directory, i);
    for (uint64_t i = 0; i < 1000; i++)
        there += cached(&w.directory, i) != NULL;
    cr_assert_eq(there, 8, "the bound is hard");
    cr_assert_eq(w.cache.evictions, 992);
    cr_assert_eq(w.cache.slot_count * w.cache.slot_bytes, 8 * slice_cache_slot_bytes(SLICE_BYTES));
    drop(&w);
}

Test(slice_cache, eviction_clears_the_old_cell_and_no_other)
{
    struct world w;

    make(&w, 2, 100);
    struct slot *one = insert(&w.cache, &w.directory, 1);
    struct slot *two = insert(&w.cache, &w.directory, 2);
    cr_assert_neq(one, two);
    cr_assert_eq(w.cache.evictions, 0, "empty slots first");
    struct slot *three = insert(&w.cache, &w.directory, 3);
    cr_assert_eq(three, one, "the hand's order");
    cr_assert_null(cached(&w.directory, 1));
    cr_assert_eq(cached(&w.directory, 2), two);
    cr_assert_eq(cached(&w.directory, 3), three);
    cr_assert_eq(w.cache.evictions, 1);
    drop(&w);
}

Test(slice_cache, a_marked_slot_has_a_second_chance)
{
    struct world w;
    uint64_t word;

    make(&w, 3, 100);
    for (uint64_t i = 0; i < 3; i++)
        insert(&w.cache, &w.directory, i);
    cr_assert(reads(&w.directory, 0, 0, &word));
    insert(&w.cache, &w.directory, 3);
    cr_assert_not_null(cached(&w.directory, 0), "read since it was loaded");
    cr_assert_null(cached(&w.directory, 1));
    insert(&w.cache, &w.directory, 4);
    cr_assert_null(cached(&w.directory, 2));
    insert(&w.cache, &w.directory, 5);
    cr_assert_null(cached(&w.directory, 0), "the mark was good for one pass");
    drop(&w);
}

Test(slice_cache, all_marked_ends_all_the_same)
{
    struct world w;
    uint64_t word;

    make(&w, 3, 100);
    for (uint64_t i = 0; i < 3; i++) {
        insert(&w.cache, &w.directory, i);
        cr_assert(reads(&w.directory, i, 0, &word));
    }
    insert(&w.cache, &w.directory, 3);
    cr_assert_not_null(cached(&w.directory, 3));
    cr_assert_eq(w.cache.evictions, 1);
    drop(&w);
}

Test(slice_cache, a_slice_that_is_loaded_but_never_read_goes_first)
{
    struct world w;
    uint64_t word;

    make(&w, 4, 100);
    for (uint64_t i = 0; i < 4; i++)
        insert(&w.cache, &w.directory, i);
    for (uint64_t i = 10; i < 60; i++) { /* a scan */
        for (uint64_t hot = 0; hot < 3; hot++)
            cr_assert(reads(&w.directory, hot, 0, &word), "slice %d is hot", (int)hot);
        insert(&w.cache, &w.directory, i);
    }
    drop(&w);
}

Test(slice_cache, smaller_slices_than_the_room)
{
    struct world w;
    uint64_t words[WORDS], word;

    make(&w, 1, 10);
    fill(words, 5, 0);
    slice_cache_insert(&w.cache, directory_cell(&w.directory, 5), words, 64);
    cr_assert(reads(&w.directory, 5, 7, &word));
    cr_assert_eq(word, 5ull << 32 | 7);
    drop(&w);
}

Test(directory, lazily_mapped)
{
    struct directory d = {0};

    /* 1 PiB of guest with 64 KiB clusters and 4 KiB slices: 256 MiB of cells, of which nothing is touched. */
    cr_assert_eq(directory_create(&d, 1ull << 25), 0);
    cr_assert_null(atomic_load(directory_cell(&d, 0)));
    cr_assert_null(atomic_load(directory_cell(&d, (1ull << 25) - 1)));
    directory_destroy(&d);
    directory_destroy(&d);
    cr_assert_eq(directory_create(&d, 0), 0, "an empty disk");
    directory_destroy(&d);
    cr_assert_lt(directory_create(&d, UINT64_MAX / 4), 0);
    cr_assert_lt(directory_create(&d, 1ull << 60), 0);
}

/* ---- readers against the owner ---- */

static struct world racing;
static _Atomic bool stop;

static void *read_on(void *arg)
{
    uint64_t valid = 0, state = (uintptr_t)arg;

    while (!atomic_load(&stop)) {
        const uint64_t slice = (state = state * 6364136223846793005u + 1442695040888963407u) >> 60;
        slot_cell *cell = directory_cell(&racing.directory, slice);
        struct slot *slot = atomic_load_explicit(cell, memory_order_acquire);
        uint64_t first, last;
        uint32_t seq;

        if (!slot || !slot_read_begin(slot, cell, &seq))
            continue;
        first = be64toh(atomic_load_explicit(&slot->entries[0], memory_order_relaxed));
        last = be64toh(atomic_load_explicit(&slot->entries[WORDS - 1], memory_order_relaxed));
        if (!slot_read_valid(slot, seq))
            continue;
        slot_mark(slot);
        valid++;
        /* One load's words, and of the right slice. */
        if (first >> 32 != slice || last != first + WORDS - 1)
            return NULL;
    }
    return (void *)(uintptr_t)(valid + 1);
}

Test(slot, readers_never_trust_a_mixture, .timeout = 60)
{
    pthread_t readers[2];
    uint64_t words[WORDS];

    make(&racing, 3, 16);
    for (uintptr_t i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&readers[i], NULL, read_on, (void *)(i + 1)), 0);
    for (uint64_t i = 0; i < 100000; i++) {
        const uint64_t slice = i * 7 % 16;

        if (cached(&racing.directory, slice))
            continue;
        fill(words, slice, i & 0xffff);
        slice_cache_insert(&racing.cache, directory_cell(&racing.directory, slice), words, sizeof words);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) {
        void *valid;

        pthread_join(readers[i], &valid);
        cr_assert_not_null(valid, "a reader trusted a mixture");
    }
    drop(&racing);
}
