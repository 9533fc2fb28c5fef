/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/epoch.h"
#include "base/error.h"
#include "base/list.h"
#include "base/spsc.h"

/* ---- checked ---- */

Test(checked, add_and_mul_say_when_they_wrap)
{
    uint64_t v = 7;

    cr_assert(checked_add(UINT64_MAX - 1, 1, &v));
    cr_assert_eq(v, UINT64_MAX);
    cr_assert_not(checked_add(UINT64_MAX, 1, &v));
    cr_assert(checked_mul(1ull << 32, (1ull << 32) - 1, &v));
    cr_assert_eq(v, 0xffffffff00000000u);
    cr_assert_not(checked_mul(1ull << 32, 1ull << 32, &v));
}

Test(checked, range_within_does_not_overflow)
{
    cr_assert(range_within(0, 0, 0));
    cr_assert(range_within(10, 0, 10));
    cr_assert(range_within(0, 10, 10));
    cr_assert_not(range_within(1, 10, 10));
    cr_assert_not(range_within(11, 0, 10));
    cr_assert_not(range_within(UINT64_MAX, 2, UINT64_MAX));
    cr_assert_not(range_within(2, UINT64_MAX, UINT64_MAX));
    cr_assert(range_within(UINT64_MAX, 0, UINT64_MAX));
}

Test(checked, rounding)
{
    cr_assert_eq(round_down(4095, 4096), 0);
    cr_assert_eq(round_down(4096, 4096), 4096);
    cr_assert_eq(round_up(1, 4096), 4096);
    cr_assert_eq(round_up(4096, 4096), 4096);
    cr_assert_eq(round_up(0, 4096), 0);
    cr_assert_eq(div_round_up(0, 5), 0);
    cr_assert_eq(div_round_up(10, 5), 2);
    cr_assert_eq(div_round_up(11, 5), 3);
    cr_assert_eq(div_round_up(UINT64_MAX, 2), 1ull << 63);
    cr_assert(is_power_of_two(1));
    cr_assert(is_power_of_two(1ull << 63));
    cr_assert_not(is_power_of_two(0));
    cr_assert_not(is_power_of_two(6));
}

Test(byteorder, any_address)
{
    const uint8_t bytes[] = {0xff, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08};

    cr_assert_eq(get_be16(bytes + 1), 0x0102);
    cr_assert_eq(get_be32(bytes + 1), 0x01020304u);
    cr_assert_eq(get_be64(bytes + 1), 0x0102030405060708u);
}

/* ---- list ---- */

Test(list, first_in_first_out)
{
    struct list_node nodes[3];
    struct list l = {0}, taken;

    cr_assert(list_empty(&l));
    cr_assert_null(list_pop(&l));
    for (int i = 0; i < 3; i++)
        list_push(&l, &nodes[i]);
    cr_assert_eq(list_pop(&l), &nodes[0]);
    list_push(&l, &nodes[0]);
    taken = list_take(&l);
    cr_assert(list_empty(&l));
    cr_assert_eq(list_pop(&taken), &nodes[1]);
    cr_assert_eq(list_pop(&taken), &nodes[2]);
    cr_assert_eq(list_pop(&taken), &nodes[0]);
    cr_assert_null(list_pop(&taken));
    /* The tail of an emptied list is stale; a push must not follow it. */
    list_push(&l, &nodes[2]);
    cr_assert_eq(list_pop(&l), &nodes[2]);
    cr_assert_null(list_pop(&l));
}

/* ---- spsc ---- */

Test(spsc, bounded)
{
    struct spsc r;
    int things[9];

    cr_assert_eq(spsc_init(&r, 5), 0);
    cr_assert(spsc_empty(&r));
    cr_assert_null(spsc_pop(&r));
    for (int i = 0; i < 8; i++)
        cr_assert(spsc_push(&r, &things[i]), "room for the next power of two");
    cr_assert_not(spsc_push(&r, &things[8]));
    cr_assert_eq(spsc_pop(&r), &things[0]);
    cr_assert(spsc_push(&r, &things[8]));
    for (int i = 1; i < 9; i++)
        cr_assert_eq(spsc_pop(&r), &things[i]);
    cr_assert(spsc_empty(&r));
    spsc_free(&r);
}

Test(spsc, indices_wrap)
{
    struct spsc r;
    int thing;

    cr_assert_eq(spsc_init(&r, 4), 0);
    atomic_store(&r.head, UINT32_MAX - 1);
    atomic_store(&r.tail, UINT32_MAX - 1);
    r.head_seen = UINT32_MAX - 1;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++)
            cr_assert(spsc_push(&r, &thing));
        cr_assert_not(spsc_push(&r, &thing));
        for (int i = 0; i < 4; i++)
            cr_assert_eq(spsc_pop(&r), &thing);
        cr_assert_null(spsc_pop(&r));
    }
    spsc_free(&r);
}

#define MESSAGES 200000u

struct message {
    uint32_t number;
};

static struct message messages[MESSAGES];

static void *send_all(void *arg)
{
    struct spsc *r = arg;

    for (uint32_t i = 0; i < MESSAGES; i++) {
        messages[i].number = i + 1; /* published by the push */
        while (!spsc_push(r, &messages[i]))
            sched_yield();
    }
    return NULL;
}

Test(spsc, two_threads, .timeout = 60)
{
    pthread_t sender;
    struct spsc r;

    cr_assert_eq(spsc_init(&r, 16), 0);
    cr_assert_eq(pthread_create(&sender, NULL, send_all, &r), 0);
    for (uint32_t i = 0; i < MESSAGES;) {
        struct message *m = spsc_pop(&r);

        if (!m) {
            sched_yield();
            continue;
        }
        cr_assert_eq(m, &messages[i]);
        cr_assert_eq(m->number, i + 1, "what the sender wrote before the push is seen after the pop");
        i++;
    }
    pthread_join(sender, NULL);
    cr_assert(spsc_empty(&r));
    spsc_free(&r);
}

/* ---- epochs ---- */

struct epoch_case {
    struct epoch_clock clock;
    struct epoch_submitter s;
};

static void epoch_start(struct epoch_case *c)
{
    memset(c, 0, sizeof *c);
    atomic_store(&c->clock.now, 1);
}

static uint64_t now(struct epoch_case *c)
{
    return atomic_load(&c->clock.now);
}

/* What the allocator does: move on if everybody lets it. */
static bool try_leave(struct epoch_case *c)
{
    if (!epoch_may_leave(&c->s, now(c)))
        return false;
    atomic_store(&c->clock.now, now(c) + 1);
    return true;
}

Test(epoch, an_offline_submitter_holds_nothing)
{
    struct epoch_case c;

    epoch_start(&c);
    for (int i = 0; i < 5; i++)
        cr_assert(try_leave(&c));
    epoch_observe(&c.clock, &c.s);
    cr_assert_eq(atomic_load(&c.s.seen), 6);
}

Test(epoch, the_clock_waits_for_a_submitter_that_has_not_seen_it)
{
    struct epoch_case c;

    epoch_start(&c);
    epoch_observe(&c.clock, &c.s); /* sees 1 */
    cr_assert(try_leave(&c));      /* 1 → 2: it has seen 1 */
    cr_assert_not(try_leave(&c), "2 is not left while somebody may still translate as of 1");
    epoch_observe(&c.clock, &c.s);
    cr_assert(try_leave(&c));
    cr_assert_eq(now(&c), 3);
    epoch_offline(&c.s);
    cr_assert(try_leave(&c));
    cr_assert(try_leave(&c));
}

Test(epoch, the_clock_waits_for_requests_of_the_epoch_before)
{
    struct epoch_case c;
    uint32_t old, young;

    epoch_start(&c);
    epoch_observe(&c.clock, &c.s);
    old = epoch_enter(&c.s); /* translated in 1 */
    cr_assert(try_leave(&c), "requests of the present epoch do not hold the clock");
    cr_assert_eq(now(&c), 2);
    epoch_observe(&c.clock, &c.s);
    cr_assert_not(try_leave(&c), "a request of epoch 1 is in flight");
    young = epoch_enter(&c.s);
    cr_assert_neq(old, young);
    epoch_offline(&c.s);
    cr_assert_not(try_leave(&c), "offline, but its request is in flight all the same");
    epoch_leave(&c.s, old);
    cr_assert(try_leave(&c));
    cr_assert_eq(now(&c), 3);
    cr_assert_not(try_leave(&c), "now the one of epoch 2 holds it");
    epoch_leave(&c.s, young);
    cr_assert(try_leave(&c));
}

Test(epoch, many_requests_leave_in_any_order)
{
    struct epoch_case c;
    uint32_t bucket[6];

    epoch_start(&c);
    epoch_observe(&c.clock, &c.s);
    for (int i = 0; i < 3; i++)
        bucket[i] = epoch_enter(&c.s);
    cr_assert(try_leave(&c));
    epoch_observe(&c.clock, &c.s);
    for (int i = 3; i < 6; i++)
        bucket[i] = epoch_enter(&c.s);
    epoch_leave(&c.s, bucket[4]);
    epoch_leave(&c.s, bucket[0]);
    epoch_leave(&c.s, bucket[2]);
    cr_assert_not(try_leave(&c));
    epoch_leave(&c.s, bucket[1]);
    cr_assert(try_leave(&c));
    epoch_observe(&c.clock, &c.s);
    cr_assert_not(try_leave(&c));
    epoch_leave(&c.s, bucket[5]);
    epoch_leave(&c.s, bucket[3]);
    cr_assert(try_leave(&c));
    cr_assert_eq(atomic_load(&c.s.in_flight[0]), 0);
    cr_assert_eq(atomic_load(&c.s.in_flight[1]), 0);
}

/*
 * The rule itself, against a clock that turns as fast as it may: a request that translated in epoch E is
 * never in flight when the clock says E + 2.
 */
static struct epoch_case shared;
static _Atomic bool stop;

static void *turn_the_clock(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop)) {
        atomic_thread_fence(memory_order_seq_cst);
        try_leave(&shared);
    }
    return NULL;
}

Test(epoch, no_request_outlives_the_next_epoch, .timeout = 60)
{
    pthread_t allocator;

    epoch_start(&shared);
    cr_assert_eq(pthread_create(&allocator, NULL, turn_the_clock, NULL), 0);
    /* On a busy machine the other thread may be slow to come. */
    for (int i = 0; i < 200000 || now(&shared) < 100; i++) {
        uint32_t bucket;
        uint64_t translated;

        epoch_observe(&shared.clock, &shared.s);
        bucket = epoch_enter(&shared.s);
        translated = now(&shared);
        if (i % 3 == 0)
            epoch_offline(&shared.s);
        if (i % 7 == 0)
            sched_yield();
        cr_assert_leq(now(&shared), translated + 1);
        epoch_leave(&shared.s, bucket);
    }
    atomic_store(&stop, true);
    pthread_join(allocator, NULL);
}

/* ---- error ---- */

Test(error, set_prefix_and_thread_local)
{
    cr_assert_str_eq(error_message(), "");
    cr_assert_eq(error_set(-5, "entry %d", 3), -5);
    cr_assert_eq(error_prefix(-5, "table %s", "L1"), -5);
    cr_assert_str_eq(error_message(), "table L1: entry 3");
    /* The message may be an argument of its successor. */
    error_set(-5, "again: %s", error_message());
    cr_assert_str_eq(error_message(), "again: table L1: entry 3");
}

Test(error, long_messages_are_cut)
{
    char text[2 * ERROR_BYTES];

    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    error_set(-1, "%s", text);
    cr_assert_eq(strlen(error_message()), ERROR_BYTES - 1);
    error_prefix(-1, "%s", text);
    cr_assert_eq(strlen(error_message()), ERROR_BYTES - 1);
}

Test(error, quote)
{
    char buf[64], small[8];

    cr_assert_str_eq(error_quote(buf, sizeof buf, "plain name.qcow2", 16), "plain name.qcow2");
    cr_assert_str_eq(error_quote(buf, sizeof buf, "a\033[31m\n\\\x7f\xff", 10),
                     "a\\x1b[31m\\x0a\\x5c\\x7f\\xff", "nothing reaches a terminal raw");
    cr_assert_str_eq(error_quote(buf, sizeof buf, "a\0b", 3), "a\\x00b");
    cr_assert_str_eq(error_quote(small, sizeof small, "abc\n\n", 5), "abc\\x0a", "whole escapes only");
    cr_assert_str_eq(error_quote(small, sizeof small, "abcd\n", 5), "abcd");
    cr_assert_str_eq(error_quote(small, 1, "abc", 3), "");
}
