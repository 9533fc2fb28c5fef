/* SPDX-License-Identifier: MIT */
#include "tests/fuzz/child_image.h"

#include <endian.h>
#include <string.h>

#include "format/entry.h"
#include "format/header.h"

#define CLUSTER 2048u
#define REFTABLE (1 * CLUSTER)
#define REFBLOCK (2 * CLUSTER)
#define L1 (3 * CLUSTER)
#define L2 (4 * CLUSTER)
#define DATA (5 * CLUSTER)
#define STREAM (6 * CLUSTER + 100)

static uint8_t image[CHILD_IMAGE_BYTES];

static void put64(uint32_t off, uint64_t v)
{
    v = htobe64(v);
    memcpy(image + off, &v, sizeof v);
}

/* Raw deflate, one stored block: 12 bytes, then zeros up to the file's end. */
static void put_stream(void)
{
    uint8_t *const p = image + STREAM;

    p[0] = 1;
    p[1] = CLUSTER & 0xff;
    p[2] = CLUSTER >> 8;
    p[3] = (uint8_t)~p[1];
    p[4] = (uint8_t)~p[2];
    memset(p + 5, 'z', 300); /* the file ends within the stream: the rest is zeros */
}

const uint8_t *child_image(void)
{
    struct header_disk h = {
        .magic = htobe32(QCOW2_MAGIC),
        .version = htobe32(3),
        .cluster_bits = htobe32(11),
        .virtual_bytes = htobe64(300000),
        .l1_count = htobe32(1),
        .l1_off = htobe64(L1),
        .reftable_off = htobe64(REFTABLE),
        .reftable_clusters = htobe32(1),
        .refcount_order = htobe32(4),
        .header_bytes = htobe32(sizeof h),
    };

    if (image[0])
        return image;
    memcpy(image, &h, sizeof h);
    put64(REFTABLE, REFBLOCK);
    put64(L1, L2 | ENTRY_COPIED);
    put64(L2, DATA | ENTRY_COPIED);
    put64(L2 + 8, ENTRY_ZERO);
    put64(L2 + 16, DATA | ENTRY_COPIED | ENTRY_ZERO);
    /* cluster_bits 11: the sector count begins at bit 59 */
    put64(L2 + 24, STREAM | 4ull << 59 | ENTRY_COMPRESSED);
    put64(L2 + 40, (DATA + 512) | ENTRY_COPIED); /* not aligned: refused */
    for (uint32_t i = 0; i < CLUSTER; i++)
        image[DATA + i] = (uint8_t)(i * 7 + 1);
    for (uint32_t i = 0; i < 7; i++)
        image[REFBLOCK + 2 * i + 1] = 1;
    put_stream();
    return image;
}
