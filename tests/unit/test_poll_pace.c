/* SPDX-License-Identifier: MIT */
/* When a worker polls: poll_pace.h. */
#include <criterion/criterion.h>

#include "exports/poll_pace.h"

#define US 1000ull
#define LIMIT (50 * US)

/* Waits that take asleep_ns, or polled_ns where they begin with polling: how many of count did. */
static unsigned polled_of(struct poll_pace *p, unsigned count, uint64_t asleep_ns, uint64_t polled_ns)
{
    unsigned polled = 0;

    for (unsigned i = 0; i < count; i++) {
        const bool pays = poll_pace_pays(p);

        polled += pays;
        poll_pace_add(p, pays ? polled_ns : asleep_ns, pays);
    }
    return polled;
}

Test(poll_pace, never_without_a_limit)
{
    struct poll_pace p;

    poll_pace_init(&p, 0);
    cr_assert_eq(polled_of(&p, 1000, 0, 0), 0);
}

Test(poll_pace, waits_that_polling_shortens)
{
    struct poll_pace p;

    poll_pace_init(&p, LIMIT);
    cr_assert_eq(polled_of(&p, 10000, 45 * US, 10 * US), 9992, "all but the first eight");
}

Test(poll_pace, long_waits)
{
    struct poll_pace p;

    poll_pace_init(&p, LIMIT);
    cr_assert_eq(polled_of(&p, 10000, 80 * US, 80 * US), 0);
    cr_assert_eq(polled_of(&p, 8, 45 * US, 10 * US), 0, "short ones are needed again, in a row");
    cr_assert_eq(polled_of(&p, 8, 45 * US, 10 * US), 8);
    cr_assert_eq(polled_of(&p, 1, 45 * US, 80 * US), 1);
    cr_assert_eq(polled_of(&p, 8, 45 * US, 10 * US), 0, "one that polling did not end is enough to stop");
}

/* A disk that answers within the limit, but not much sooner for being asked all the time. */
Test(poll_pace, waits_that_polling_does_not_shorten)
{
    struct poll_pace p;
    unsigned early, late;

    poll_pace_init(&p, LIMIT);
    early = polled_of(&p, 2000, 45 * US, 40 * US);
    cr_assert_geq(early, 256, "it is tried");
    cr_assert_leq(early, 1024);
    (void)polled_of(&p, 100000, 45 * US, 40 * US);
    late = polled_of(&p, 100000, 45 * US, 40 * US);
    cr_assert_geq(late, 256, "and again now and then");
    cr_assert_leq(late, 3000, "ever less often");
}

Test(poll_pace, a_disk_that_becomes_fast)
{
    struct poll_pace p;

    poll_pace_init(&p, LIMIT);
    (void)polled_of(&p, 100000, 45 * US, 40 * US);
    (void)polled_of(&p, 20000, 45 * US, 10 * US);
    cr_assert_eq(polled_of(&p, 10000, 45 * US, 10 * US), 10000, "at the latest after the longest pause");
    (void)polled_of(&p, 1000, 45 * US, 40 * US);
    cr_assert_geq(polled_of(&p, 1000, 45 * US, 10 * US), 600, "what it was before is forgotten");
}

/* Processors wake up slowly at first. */
Test(poll_pace, a_bad_beginning)
{
    struct poll_pace p;

    poll_pace_init(&p, LIMIT);
    (void)polled_of(&p, 8 + 256, 45 * US, 40 * US);
    cr_assert_not(poll_pace_pays(&p));
    cr_assert_geq(polled_of(&p, 1000, 45 * US, 10 * US), 900);
}
