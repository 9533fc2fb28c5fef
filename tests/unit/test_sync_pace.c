/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>

#include "io/sync_pace.h"

#define US 1000u
#define MS (1000u * US)

Test(sync_pace, a_new_file_is_measured)
{
    const struct sync_pace p = {0};

    cr_assert(sync_pace_is_quick(&p, 0));
}

Test(sync_pace, quick_syncs_stay_quick)
{
    struct sync_pace p = {0};
    uint64_t now = 0;

    for (int i = 0; i < 1000; i++) {
        now += MS;
        sync_pace_add(&p, (uint64_t)(20 + i % 7 * 10) * US, now);
        cr_assert(sync_pace_is_quick(&p, now), "after %d", i);
    }
    sync_pace_add(&p, 400 * US, now);
    cr_assert(sync_pace_is_quick(&p, now), "one of many is no reason");
}

Test(sync_pace, a_slow_file_is_left_alone_in_proportion)
{
    struct sync_pace p = {0};
    const uint64_t now = 5 * (uint64_t)MS;

    sync_pace_add(&p, 10 * MS, now);
    cr_assert_not(sync_pace_is_quick(&p, now));
    cr_assert_not(sync_pace_is_quick(&p, now + 4999ull * MS));
    cr_assert(sync_pace_is_quick(&p, now + 5000ull * MS));
}

Test(sync_pace, one_sync_shows_that_a_file_is_quick_again)
{
    struct sync_pace p = {0};

    sync_pace_add(&p, 10 * MS, 0);
    sync_pace_add(&p, 20 * US, 6000ull * MS);
    cr_assert(sync_pace_is_quick(&p, 6000ull * MS));
}

Test(sync_pace, a_file_that_becomes_slow_is_found_out)
{
    struct sync_pace p = {0};
    uint64_t now = 0;
    int waited = 0;

    for (int i = 0; i < 100; i++)
        sync_pace_add(&p, 5 * US, now += MS);
    while (sync_pace_is_quick(&p, now) && waited < 100) {
        waited++;
        sync_pace_add(&p, 300 * US, now += MS);
    }
    cr_assert_leq(waited, 4);
}
