/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>

#include "io/sync_pace.h"

#define US 1000ull
#define MS (1000 * US)

static void quick_file(struct sync_pace *p)
{
    *p = (struct sync_pace){0};
    sync_pace_add(p, 60 * US, 0, false);
    cr_assert(sync_pace_is_quick(p));
}

Test(sync_pace, a_new_file_is_not_waited_for)
{
    struct sync_pace p = {0};

    cr_assert_not(sync_pace_is_quick(&p));
    sync_pace_add(&p, 10 * MS, 0, false);
    cr_assert_not(sync_pace_is_quick(&p));
}

Test(sync_pace, wake_ups_are_allowed_for)
{
    struct sync_pace p = {0};

    sync_pace_add(&p, 150 * US, 0, false);
    cr_assert(sync_pace_is_quick(&p));
    sync_pace_add(&p, 90 * US, 0, true);
    cr_assert(sync_pace_is_quick(&p), "what it took elsewhere is not what it takes here");
}

Test(sync_pace, quick_syncs_stay_quick)
{
    struct sync_pace p;

    quick_file(&p);
    for (unsigned i = 0; i < 1000; i++) {
        sync_pace_add(&p, (20 + i % 7 * 10) * US, i * MS, true);
        cr_assert(sync_pace_is_quick(&p), "after %u", i);
    }
    sync_pace_add(&p, 400 * US, 1000 * MS, true);
    cr_assert(sync_pace_is_quick(&p), "one of many is no reason");
    for (unsigned i = 0; i < 1000; i++)
        sync_pace_add(&p, 0, i * MS, true);
    cr_assert(sync_pace_is_quick(&p), "no time at all");
}

Test(sync_pace, a_slow_file_is_left_alone_in_proportion)
{
    struct sync_pace p;

    quick_file(&p);
    for (unsigned i = 0; i < 100; i++)
        sync_pace_add(&p, 5 * US, 0, true);
    sync_pace_add(&p, 10 * MS, 5 * MS, true);
    cr_assert_not(sync_pace_is_quick(&p), "one that is out of all proportion is enough");
    sync_pace_add(&p, 20 * US, 640 * MS, false);
    cr_assert_not(sync_pace_is_quick(&p), "64 times as long have not passed");
    sync_pace_add(&p, 20 * US, 646 * MS, false);
    cr_assert(sync_pace_is_quick(&p));
}

Test(sync_pace, a_file_that_becomes_slow_is_found_out)
{
    struct sync_pace p;
    unsigned waited = 0;

    quick_file(&p);
    while (sync_pace_is_quick(&p) && waited < 100) {
        waited++;
        sync_pace_add(&p, 300 * US, waited * MS, true);
    }
    cr_assert_leq(waited, 4);
}
