/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

#include "engine/guest_buffer.h"
#include "tests/unit/image_builder.h"

static uint8_t memory[16384] __attribute__((aligned(4096)));

Test(guest_buffer, one_buffer)
{
    const struct guest_buffer b = {.buf = memory};
    struct iovec iov[4];
    int n = 9;

    guest_buffer_copy(&b, 10, "abcdef", 6);
    cr_assert_eq(memcmp(memory + 9, "\0abcdef", 8), 0);
    guest_buffer_zero(&b, 11, 3);
    cr_assert_eq(memcmp(memory + 9, "\0a\0\0\0ef", 8), 0);
    cr_assert_eq(guest_buffer_slice(&b, 512, 1024, 512, 512, iov, 4, &n), 1024);
    cr_assert_eq(n, 1);
    cr_assert_eq(iov[0].iov_base, memory + 512);
}

Test(guest_buffer, vectors_are_one_range)
{
    const struct iovec iov[] = {{memory, 3}, {memory + 100, 0}, {memory + 200, 1}, {memory + 300, 50}};
    const struct guest_buffer b = {.iov = iov, .iov_count = 4};

    cr_assert_eq(guest_buffer_iov_bytes(iov, 4), 54);
    guest_buffer_copy(&b, 1, "123456", 6);
    cr_assert_eq(memcmp(memory,
                        "\0"
                        "12",
                        4),
                 0);
    cr_assert_eq(memory[200], '3');
    cr_assert_eq(memcmp(memory + 300, "456", 4), 0);
    guest_buffer_zero(&b, 2, 3);
    cr_assert_eq(memcmp(memory,
                        "\0"
                        "1\0",
                        4),
                 0);
    cr_assert_eq(memory[200], 0);
    cr_assert_eq(memcmp(memory + 300,
                        "\0"
                        "56",
                        4),
                 0);
    guest_buffer_copy(&b, 53, "z", 1);
    cr_assert_eq(memory[349], 'z');
}

Test(guest_buffer, every_split_of_random_vectors)
{
    uint8_t flat[600], back[600];
    struct iovec iov[40];
    uint64_t seed = 3;

    for (int round = 0; round < 200; round++) {
        size_t total = 0, at = 0;
        int n = 0;

        while (total < 500) {
            const size_t len = random_below(&seed, 3) ? random_below(&seed, 60) : 0;

            if (n == 40)
                break;
            iov[n++] = (struct iovec){memory + at, len};
            at += len + random_below(&seed, 5);
            total += len;
        }
        const struct guest_buffer b = {.iov = iov, .iov_count = n};

        memset(memory, 0xee, sizeof memory);
        for (size_t i = 0; i < total; i++)
            flat[i] = (uint8_t)random_next(&seed);
        for (size_t pos = 0; pos < total;) {
            const size_t part = 1 + random_below(&seed, total - pos);

            guest_buffer_copy(&b, pos, flat + pos, part);
            pos += part;
        }
        total = 0;
        for (int i = 0; i < n; i++) {
            memcpy(back + total, iov[i].iov_base, iov[i].iov_len);
            total += iov[i].iov_len;
        }
        cr_assert_eq(memcmp(flat, back, total), 0);
    }
}

Test(guest_buffer, slices_stop_at_the_first_misfit)
{
    const struct iovec iov[] = {
        {memory, 1024}, {memory + 4096, 512}, {memory + 5000, 512}, {memory + 8192, 512}};
    const struct guest_buffer b = {.iov = iov, .iov_count = 4};
    struct iovec out[4];
    int n;

    cr_assert_eq(guest_buffer_slice(&b, 0, 2560, 512, 512, out, 4, &n), 1536);
    cr_assert_eq(n, 2);
    cr_assert_eq(out[1].iov_base, memory + 4096);
    cr_assert_eq(guest_buffer_slice(&b, 512, 1024, 512, 512, out, 4, &n), 1024);
    cr_assert_eq(n, 2);
    cr_assert_eq(out[0].iov_base, memory + 512);
    cr_assert_eq(out[0].iov_len, 512);
    cr_assert_eq(guest_buffer_slice(&b, 1536, 512, 512, 512, out, 4, &n), 0, "a misaligned address");
    cr_assert_eq(n, 0);
    cr_assert_eq(guest_buffer_slice(&b, 1536, 512, 1, 1, out, 4, &n), 512, "buffered files take any");
    cr_assert_eq(guest_buffer_slice(&b, 0, 2560, 1, 1, out, 2, &n), 1536, "no more than there is room for");
    cr_assert_eq(n, 2);
}

Test(guest_buffer, slices_are_cut_to_whole_units)
{
    const struct iovec iov[] = {{memory, 700}, {memory + 1024, 1000}};
    const struct guest_buffer b = {.iov = iov, .iov_count = 2};
    struct iovec out[4];
    int n;

    cr_assert_eq(guest_buffer_slice(&b, 0, 1700, 512, 512, out, 4, &n), 512);
    cr_assert_eq(n, 1);
    cr_assert_eq(out[0].iov_len, 512);
    cr_assert_eq(guest_buffer_slice(&b, 512, 1000, 512, 512, out, 4, &n), 0, "188 bytes are no unit");
}

Test(guest_buffer, lengths_that_overflow)
{
    const struct iovec iov[] = {{memory, SIZE_MAX - 5}, {memory, 6}};

    cr_assert_eq(guest_buffer_iov_bytes(iov, 2), UINT64_MAX);
    cr_assert_eq(guest_buffer_iov_bytes(NULL, 0), 0);
}
