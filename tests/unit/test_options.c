/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "engine/options.h"

struct v1 {
    size_t size;
    uint32_t a, b;
};

struct v2 { /* what a newer header has */
    size_t size;
    uint32_t a, b;
    uint64_t c;
};

Test(options, the_same_size)
{
    const struct v1 given = {sizeof given, 5, 6};
    struct v1 o = {sizeof o, 1, 2};

    cr_assert_eq(options_take(&o, sizeof o, &given, "x"), 0);
    cr_assert_eq(o.a, 5);
    cr_assert_eq(o.b, 6);
    cr_assert_eq(o.size, sizeof o);
}

Test(options, an_older_caller_leaves_defaults)
{
    const struct v1 given = {offsetof(struct v1, b), 5, 6};
    struct v2 o = {sizeof o, 1, 2, 3};

    cr_assert_eq(options_take(&o, sizeof o, &given, "x"), 0);
    cr_assert_eq(o.a, 5);
    cr_assert_eq(o.b, 2, "beyond what the caller knows");
    cr_assert_eq(o.c, 3);
    cr_assert_eq(o.size, sizeof o);
}

Test(options, a_newer_caller_may_not_ask_for_the_unknown)
{
    struct v2 given = {sizeof given, 5, 6, 0};
    struct v1 o = {sizeof o, 1, 2};

    cr_assert_eq(options_take(&o, sizeof o, &given, "open options"), 0);
    cr_assert_eq(o.a, 5);
    given.c = 1ull << 56;
    o.a = 1;
    cr_assert_eq(options_take(&o, sizeof o, &given, "open options"), -EINVAL);
    cr_assert_str_eq(error_message(),
                     "open options: a field that this version does not know is set (byte 23)");
    cr_assert_eq(o.a, 1);
}

Test(options, a_size_that_was_never_set)
{
    const size_t sizes[] = {0, 7, 1u << 20, SIZE_MAX};

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const struct v1 given = {sizes[i], 5, 6};
        struct v1 o = {sizeof o, 1, 2};

        cr_assert_eq(options_take(&o, sizeof o, &given, "queue options"), -EINVAL);
        cr_assert_eq(strncmp(error_message(), "queue options: the structure's size field is ", 45), 0);
    }
}

Test(result, keeps_to_the_callers_size)
{
    const struct v2 full = {sizeof full, 1, 2, 3};
    struct v2 ret = {sizeof(struct v1), 9, 9, 9};

    result_give(&ret, &full, sizeof full);
    cr_assert_eq(ret.size, sizeof(struct v1));
    cr_assert_eq(ret.a, 1);
    cr_assert_eq(ret.b, 2);
    cr_assert_eq(ret.c, 9, "memory that an older caller does not have");
}

Test(result, a_newer_caller_keeps_what_it_set)
{
    const struct v1 full = {sizeof full, 1, 2};
    struct v2 ret = {sizeof ret, 9, 9, 9};

    result_give(&ret, &full, sizeof full);
    cr_assert_eq(ret.b, 2);
    cr_assert_eq(ret.c, 9);
    ret.size = 0;
    ret.a = 9;
    result_give(&ret, &full, sizeof full);
    cr_assert_eq(ret.a, 9);
}
