/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "engine/decompress.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"

TestSuite(decompress, .fini = abort_if_memory_is_lost);

#define PLAIN_BYTES 65536u

static uint8_t plain[PLAIN_BYTES], packed[2 * PLAIN_BYTES], out[PLAIN_BYTES + 64];

static size_t pack(int zstd, size_t from, size_t bytes, uint8_t *to)
{
    size_t n;

    stamp_fill(plain, PLAIN_BYTES, 0, 5);
    if (zstd) {
        n = ZSTD_compress(to, PLAIN_BYTES, plain + from, bytes, 1);
        cr_assert_not(ZSTD_isError(n));
        return n;
    }
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(6);

    n = libdeflate_deflate_compress(c, plain + from, bytes, to, PLAIN_BYTES);
    libdeflate_free_compressor(c);
    cr_assert_gt(n, 0);
    return n;
}

static struct decompressor *create(int zstd)
{
    struct decompressor *d;

    cr_assert_eq(decompressor_create((uint32_t)zstd, &d), 0);
    memset(out, 0xee, sizeof out);
    return d;
}

static void check_whole(int zstd)
{
    struct decompressor *d = create(zstd);
    const size_t n = pack(zstd, 0, PLAIN_BYTES, packed);

    cr_assert_eq(decompress(d, packed, n, out, PLAIN_BYTES), 0);
    cr_assert_eq(memcmp(out, plain, PLAIN_BYTES), 0);
    cr_assert_eq(out[PLAIN_BYTES], 0xee);
    /* The descriptor counts sectors: what lies behind the stream is another one's. */
    memset(packed + n, 0x5a, 1000);
    memset(out, 0, PLAIN_BYTES);
    cr_assert_eq(decompress(d, packed, n + 1000, out, PLAIN_BYTES), 0);
    cr_assert_eq(memcmp(out, plain, PLAIN_BYTES), 0);
    decompressor_destroy(d);
}

Test(decompress, deflate)
{
    check_whole(0);
}

Test(decompress, zstd)
{
    check_whole(1);
}

static void check_truncated(int zstd)
{
    struct decompressor *d = create(zstd);
    const size_t n = pack(zstd, 0, PLAIN_BYTES, packed);

    for (size_t cut = 0; cut < n; cut += cut < 64 || cut > n - 64 ? 1 : 997)
        cr_assert_eq(decompress(d, packed, cut, out, PLAIN_BYTES), -EIO, "%zu of %zu bytes", cut, n);
    cr_assert_eq(out[PLAIN_BYTES], 0xee);
    cr_assert_eq(decompress(d, packed, n, out, PLAIN_BYTES), 0, "a failure leaves nothing behind");
    decompressor_destroy(d);
}

Test(decompress, truncated_deflate)
{
    check_truncated(0);
}

Test(decompress, truncated_zstd)
{
    check_truncated(1);
}

static void check_damaged(int zstd)
{
    struct decompressor *d = create(zstd);
    const size_t n = pack(zstd, 0, PLAIN_BYTES, packed);
    uint8_t *copy = malloc(n); /* of exactly that size: a sanitizer sees reads past it */
    uint64_t seed = 11;
    int refused = 0;

    for (int i = 0; i < 2000; i++) {
        memcpy(copy, packed, n);
        for (uint64_t flips = 1 + random_below(&seed, 4); flips; flips--)
            copy[random_below(&seed, i % 2 ? n : 40)] ^= (uint8_t)(1 + random_below(&seed, 255));
        refused += decompress(d, copy, n, out, PLAIN_BYTES) != 0;
        cr_assert_eq(out[PLAIN_BYTES], 0xee, "never past the cluster");
    }
    cr_assert_gt(refused, 100);
    free(copy);
    decompressor_destroy(d);
}

Test(decompress, damaged_deflate, .timeout = 60)
{
    check_damaged(0);
}

Test(decompress, damaged_zstd, .timeout = 60)
{
    check_damaged(1);
}

static void check_sizes(int zstd)
{
    struct decompressor *d = create(zstd);
    const size_t shorter = pack(zstd, 0, PLAIN_BYTES / 2, packed);

    cr_assert_eq(decompress(d, packed, shorter, out, PLAIN_BYTES), -EIO, "less than a cluster");
    const size_t longer = pack(zstd, 0, PLAIN_BYTES, packed);
    cr_assert_eq(decompress(d, packed, longer, out, PLAIN_BYTES / 2), -EIO, "more than a cluster");
    cr_assert_eq(out[PLAIN_BYTES], 0xee);
    decompressor_destroy(d);
}

Test(decompress, deflate_of_another_size)
{
    check_sizes(0);
}

Test(decompress, zstd_of_another_size)
{
    check_sizes(1);
}

Test(decompress, zstd_of_several_frames)
{
    struct decompressor *d = create(1);
    size_t n = pack(1, 0, 1000, packed);

    n += pack(1, 1000, 30000, packed + n);
    const size_t last = n;
    n += pack(1, 31000, PLAIN_BYTES - 31000, packed + n);
    cr_assert_eq(decompress(d, packed, n, out, PLAIN_BYTES), 0);
    cr_assert_eq(memcmp(out, plain, PLAIN_BYTES), 0);
    cr_assert_eq(decompress(d, packed, last, out, PLAIN_BYTES), -EIO, "a frame is missing");
    cr_assert_eq(decompress(d, packed, n - 1, out, PLAIN_BYTES), -EIO, "the last one is not complete");
    decompressor_destroy(d);
}

Test(decompress, an_empty_zstd_frame_between)
{
    struct decompressor *d = create(1);
    size_t n = pack(1, 0, 1000, packed);

    n += pack(1, 0, 0, packed + n);
    n += pack(1, 1000, PLAIN_BYTES - 1000, packed + n);
    cr_assert_eq(decompress(d, packed, n, out, PLAIN_BYTES), 0);
    cr_assert_eq(memcmp(out, plain, PLAIN_BYTES), 0);
    decompressor_destroy(d);
}

Test(decompress, destroy_takes_null)
{
    decompressor_destroy(NULL);
}
