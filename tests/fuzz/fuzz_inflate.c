/* SPDX-License-Identifier: MIT */
/*
 * The input is one byte, whose lowest bit is the compression type and whose upper bits are the cluster size,
 * then a stream. A stream that was inflated must inflate to the same again, whatever was inflated in between.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "engine/decompress.h"
#include "format/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void expect(bool holds)
{
    if (!holds)
        abort();
}

static struct decompressor *decompressor(uint32_t compression)
{
    static struct decompressor *all[2];

    if (!all[compression])
        expect(decompressor_create(compression, &all[compression]) == 0);
    return all[compression];
}

/* A buffer of exactly this size: the sanitizer sees what goes beyond. */
static uint8_t *exactly(size_t bytes, const uint8_t *from, int fill)
{
    uint8_t *p = malloc(bytes);

    expect(p != NULL);
    if (from)
        memcpy(p, from, bytes);
    else
        memset(p, fill, bytes);
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 2)
        return 0;
    const uint32_t compression = data[0] & 1, bits = CLUSTER_BITS_MIN + (data[0] >> 1) % 13;
    const size_t out_bytes = (size_t)1 << bits, in_bytes = MIN(bytes - 1, 2 * out_bytes);
    uint8_t *in = exactly(in_bytes, data + 1, 0);
    uint8_t *a = exactly(out_bytes, NULL, 0x11), *b = exactly(out_bytes, NULL, 0x22);
    struct decompressor *d = decompressor(compression);
    const int first = decompress(d, in, in_bytes, a, out_bytes);

    (void)decompress(d, in, in_bytes / 2, b, out_bytes);
    expect(decompress(d, in, in_bytes, b, out_bytes) == first);
    expect(first < 0 || !memcmp(a, b, out_bytes));
    free(in);
    free(a);
    free(b);
    return 0;
}
