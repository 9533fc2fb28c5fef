/* SPDX-License-Identifier: MIT */
/* Slots that are dirty, on their way to the disk or pinned: the cache against a model of its states. */
#include <criterion/criterion.h>
#include <endian.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cache/directory.h"
#include "cache/slice_cache.h"
#include "tests/unit/image_builder.h"

#define SLOTS 6u
#define SLICES 40u
#define SLICE_BYTES 512u

struct expected {
    bool cached, dirty, committing;
    uint32_t pins;
};

static struct slice_cache cache;
static struct directory directory;
static struct expected model[SLICES];

static struct slot *slot_of(uint64_t slice)
{
    return atomic_load(directory_cell(&directory, slice));
}

static uint64_t slice_of(uint32_t index)
{
    const struct slot *slot = slice_cache_slot(&cache, index);

    return (uint64_t)(atomic_load(&slot->home) - directory.cells);
}

static uint32_t count(bool (*is)(const struct expected *e))
{
    uint32_t n = 0;

    for (uint64_t i = 0; i < SLICES; i++)
        n += is(&model[i]);
    return n;
}

static bool is_dirty(const struct expected *e)
{
    return e->dirty;
}

static bool is_busy(const struct expected *e)
{
    return e->dirty || e->committing;
}

static bool stays(const struct expected *e)
{
    return e->cached && (e->dirty || e->committing || e->pins);
}

static void check(void)
{
    cr_assert_eq(cache.dirty_count, count(is_dirty));
    cr_assert_eq(cache.busy_count, count(is_busy));
    for (uint64_t i = 0; i < SLICES; i++) {
        struct slot *slot = slot_of(i);

        cr_assert_eq(slot != NULL, model[i].cached, "slice %" PRIu64, i);
        if (!slot)
            continue;
        cr_assert_eq(slice_cache_state(&cache, slot)->dirty, model[i].dirty);
        cr_assert_eq(slice_cache_state(&cache, slot)->committing, model[i].committing);
        cr_assert_eq(be64toh(atomic_load(&slot->entries[7])), i, "a slice has another one's entries");
    }
}

static void insert(uint64_t slice)
{
    const uint32_t fixed = count(stays);
    uint64_t words[SLICE_BYTES / 8];
    struct slot *slot;
    uint32_t lost = 0;

    for (uint32_t i = 0; i < SLICE_BYTES / 8; i++)
        words[i] = htobe64(slice);
    slot = slice_cache_insert(&cache, directory_cell(&directory, slice), words, sizeof words);
    cr_assert_eq(slot == NULL, fixed == SLOTS, "%" PRIu32 " of %u slots have to stay", fixed, SLOTS);
    for (uint64_t i = 0; i < SLICES; i++)
        if (model[i].cached && !slot_of(i)) {
            cr_assert_not(stays(&model[i]), "slice %" PRIu64 " was evicted", i);
            model[i].cached = false;
            lost++;
        }
    cr_assert_leq(lost, 1);
    model[slice].cached = slot != NULL;
}

static void take(void)
{
    const int64_t index = slice_cache_take_dirty(&cache);

    cr_assert_eq(index < 0, count(is_dirty) == 0);
    if (index < 0)
        return;
    struct expected *e = &model[slice_of((uint32_t)index)];

    cr_assert(e->dirty);
    e->dirty = false;
    e->committing = true;
}

/* All that is on its way arrives, or not. */
static void arrive(bool written)
{
    for (uint64_t i = 0; i < SLICES; i++)
        if (model[i].committing) {
            slice_cache_committed(&cache, slice_cache_index(&cache, slot_of(i)), written);
            model[i].committing = false;
            model[i].dirty |= !written;
        }
}

Test(dirty_slices, any_order)
{
    uint64_t seed = 7;

    cr_assert_eq(slice_cache_create(&cache, SLOTS, SLICE_BYTES), 0);
    cr_assert_eq(directory_create(&directory, SLICES), 0);
    for (int step = 0; step < 40000; step++) {
        const uint64_t slice = random_below(&seed, SLICES);
        struct expected *e = &model[slice];

        switch (random_below(&seed, 8)) {
        case 0:
        case 1:
        case 2:
            if (!e->cached)
                insert(slice);
            break;
        case 3:
            if (e->cached) { /* again and again: once in the list */
                slice_cache_mark_dirty(&cache, slot_of(slice));
                e->dirty = true;
            }
            break;
        case 4:
            /* A slice is copied again only when its last copy has arrived. */
            if (!count(is_busy) || random_below(&seed, 2))
                arrive(random_below(&seed, 3));
            take();
            break;
        case 5:
            arrive(random_below(&seed, 3));
            break;
        case 6:
            if (e->cached && e->pins < 2) {
                slice_cache_state(&cache, slot_of(slice))->pins++;
                e->pins++;
            }
            break;
        default:
            for (uint64_t i = 0; i < SLICES; i++)
                if (model[i].pins && random_below(&seed, 2)) {
                    slice_cache_state(&cache, slot_of(i))->pins--;
                    model[i].pins--;
                }
        }
        check();
    }
    cr_assert_gt(cache.evictions, 1000);
    slice_cache_destroy(&cache);
    directory_destroy(&directory);
}
