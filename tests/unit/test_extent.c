/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(extent, .fini = abort_if_memory_is_lost);

#define MIB (1ull << 20)
#define CLUSTER 65536ull
#define ABSENT 0u
#define HOLE SCOW_EXTENT_ZERO
#define ZERO (SCOW_EXTENT_PRESENT | SCOW_EXTENT_ZERO)
#define DATA (SCOW_EXTENT_PRESENT | SCOW_EXTENT_DATA | SCOW_EXTENT_HOST_OFF)
#define COMPRESSED (SCOW_EXTENT_PRESENT | SCOW_EXTENT_DATA | SCOW_EXTENT_COMPRESSED)

static void build(struct rig *rig, int layer, struct image_builder *b)
{
    char name[32];

    snprintf(name, sizeof name, "layer%d", layer);
    snprintf(rig->paths[layer], sizeof rig->paths[layer], "%s", scratch(name));
    rig->layers[layer] = b;
    rig->count = MAX(rig->count, layer + 1);
    builder_write(b, rig->paths[layer]);
}

static struct scow_extent extent(const struct rig *rig, uint64_t off, uint64_t bytes, uint32_t flags)
{
    struct scow_extent e = {.size = sizeof e};

    cr_assert_eq(scow_get_extent(rig->image, off, bytes, flags, &e), 0, "%s", scow_error());
    cr_assert_eq(e.off, off);
    return e;
}

static void check(const struct rig *rig, uint64_t off, uint64_t bytes, uint32_t flags, uint64_t want_bytes,
                  uint32_t want_flags, uint32_t depth)
{
    const struct scow_extent e = extent(rig, off, bytes, flags);

    cr_assert_eq(e.bytes, want_bytes, "0x%lx: %lu bytes", off, e.bytes);
    cr_assert_eq(e.flags, want_flags, "0x%lx: flags 0x%x", off, e.flags);
    cr_assert_eq(e.depth, depth, "0x%lx: depth %u", off, e.depth);
    cr_assert_eq(e.host_path != NULL, (e.flags & SCOW_EXTENT_HOST_OFF) != 0);
    if (e.flags & SCOW_EXTENT_HOST_OFF)
        cr_assert_str_eq(e.host_path, rig->paths[depth]);
}

Test(extent, one_layer)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = MIB + 4096};
    struct image_builder *b = builder_new(&spec);
    struct rig rig = {0};

    builder_data(b, 0);
    builder_data(b, 1);
    builder_data(b, 3);
    builder_zero(b, 4, false);
    builder_zero(b, 5, false);
    builder_compressed(b, 7);
    builder_compressed(b, 8);
    builder_zero(b, 16, true);
    build(&rig, 0, b);
    rig_open(&rig, NULL);
    cr_assert_neq(builder_get_entry(b, 1), builder_get_entry(b, 0) + CLUSTER, "the L2 table lies between");
    check(&rig, 0, MIB, 0, CLUSTER, DATA, 0);
    check(&rig, CLUSTER + 512, MIB / 4, 0, CLUSTER - 512, DATA, 0);
    cr_assert_eq(extent(&rig, 512, 1024, 0).host_off, (builder_get_entry(b, 0) & ~(1ull << 63)) + 512);
    check(&rig, 1000, 17, 0, 17, DATA, 0);
    check(&rig, 2 * CLUSTER, MIB / 2, 0, CLUSTER, HOLE, 0);
    check(&rig, 2 * CLUSTER, MIB / 2, SCOW_EXTENT_THIS_LAYER, CLUSTER, HOLE, 0);
    check(&rig, 4 * CLUSTER, MIB - 4 * CLUSTER, 0, 2 * CLUSTER, ZERO, 0);
    check(&rig, 7 * CLUSTER, CLUSTER, 0, CLUSTER, COMPRESSED, 0);
    check(&rig, 7 * CLUSTER, 3 * CLUSTER, 0, 2 * CLUSTER, COMPRESSED, 0);
    check(&rig, 9 * CLUSTER, 7 * CLUSTER + 4096, 0, 7 * CLUSTER, HOLE, 0);
    check(&rig, 16 * CLUSTER, 4096, 0, 4096, ZERO | SCOW_EXTENT_HOST_OFF, 0);
    rig_free(&rig);
}

Test(extent, chain)
{
    const struct image_spec top = {IMAGE_SPEC_INIT, .virtual_bytes = MIB, .backing_name = "layer1",
                                   .backing_format = "qcow2"};
    const struct image_spec base = {IMAGE_SPEC_INIT, .virtual_bytes = MIB / 2, .backing_name = "layer2",
                                    .backing_format = "raw"};
    const struct image_spec raw = {.raw = true, .cluster_bits = 16, .virtual_bytes = MIB / 4};
    struct image_builder *b[3] = {builder_new(&top), builder_new(&base), builder_new(&raw)};
    struct rig rig = {0};

    builder_data(b[0], 0);
    builder_zero(b[0], 1, false);
    builder_data(b[1], 2);
    builder_zero(b[1], 5, false);
    builder_raw(b[2]);
    for (int i = 0; i < 3; i++)
        build(&rig, i, b[i]);
    rig_open(&rig, NULL);
    check(&rig, 0, MIB, 0, CLUSTER, DATA, 0);
    check(&rig, CLUSTER, MIB - CLUSTER, 0, CLUSTER, ZERO, 0);
    check(&rig, 2 * CLUSTER, MIB / 2, 0, CLUSTER, DATA, 1);
    check(&rig, 3 * CLUSTER, MIB / 2, 0, CLUSTER, DATA, 2);
    check(&rig, 5 * CLUSTER, MIB / 2, 0, CLUSTER, ZERO, 1);
    const struct scow_extent past = extent(&rig, 4 * CLUSTER, CLUSTER, 0);
    cr_assert_eq(past.flags, HOLE, "past the end of the raw file: flags 0x%x", past.flags);
    const struct scow_extent end = extent(&rig, 12 * CLUSTER, CLUSTER, 0);
    cr_assert_eq(end.flags, HOLE, "past the end of all backing files: flags 0x%x", end.flags);
    check(&rig, 2 * CLUSTER, MIB - 2 * CLUSTER, SCOW_EXTENT_THIS_LAYER, MIB - 2 * CLUSTER, ABSENT, 0);
    check(&rig, CLUSTER, CLUSTER, SCOW_EXTENT_THIS_LAYER, CLUSTER, ZERO, 0);
    rig_free(&rig);
}

/* Every extent of a mixed chain agrees with what is read there, and they cover the image without a gap. */
Test(extent, walk_agrees_with_content)
{
    const struct image_spec specs[] = {
        {IMAGE_SPEC_INIT, .extended_l2 = true, .virtual_bytes = 6 * MIB + 512},
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 4 * MIB},
        {.raw = true, .cluster_bits = 16, .virtual_bytes = 5 * MIB},
    };
    uint8_t *buf = malloc(7 * MIB);
    struct rig rig;
    uint64_t off = 0;
    int steps = 0;

    rig_build(&rig, specs, 3, 12);
    rig_open(&rig, NULL);
    while (off < scow_size(rig.image)) {
        const struct scow_extent e = extent(&rig, off, scow_size(rig.image) - off, 0);

        cr_assert_gt(e.bytes, 0);
        cr_assert_leq(off + e.bytes, scow_size(rig.image));
        cr_assert_eq(scow_pread(rig.image, buf, e.bytes, off), 0);
        if (e.flags & SCOW_EXTENT_ZERO)
            for (uint64_t i = 0; i < e.bytes; i++)
                cr_assert_eq(buf[i], 0, "0x%lx", off + i);
        if (e.flags & SCOW_EXTENT_HOST_OFF && !(e.flags & SCOW_EXTENT_ZERO)) {
            const struct image_builder *b = rig.layers[e.depth];

            cr_assert_str_eq(e.host_path, rig.paths[e.depth]);
            cr_assert_eq(memcmp(b->host.p + e.host_off, buf, e.bytes), 0);
        }
        off += e.bytes;
        steps++;
    }
    cr_assert_gt(steps, 100);
    free(buf);
    rig_free(&rig);
}

Test(extent, arguments)
{
    struct scow_extent e = {.size = sizeof e, .bytes = 77};
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = MIB};
    struct image_builder *b = builder_new(&spec);
    struct rig rig = {0};

    build(&rig, 0, b);
    rig_open(&rig, NULL);
    cr_assert_eq(scow_get_extent(rig.image, 0, 0, 0, &e), -EINVAL);
    cr_assert_eq(scow_get_extent(rig.image, MIB, 1, 0, &e), -EINVAL);
    cr_assert_eq(scow_get_extent(rig.image, 1, MIB, 0, &e), -EINVAL);
    cr_assert_eq(scow_get_extent(rig.image, UINT64_MAX, 2, 0, &e), -EINVAL);
    cr_assert_eq(scow_get_extent(rig.image, 0, 512, 2, &e), -EINVAL);
    cr_assert_eq(e.bytes, 77);
    cr_assert_eq(scow_get_extent(rig.image, MIB - 1, 1, 0, &e), 0);
    cr_assert_eq(e.bytes, 1);
    rig_free(&rig);
}

Test(extent, a_fault_ends_the_run_before_it)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = MIB};
    struct scow_extent e = {.size = sizeof e};
    struct image_builder *b = builder_new(&spec);
    struct rig rig = {0};

    builder_data(b, 5);
    builder_entry(b, 5, builder_get_entry(b, 5) + 512, 0);
    build(&rig, 0, b);
    rig_open(&rig, NULL);
    check(&rig, 0, MIB, 0, 5 * CLUSTER, HOLE, 0);
    cr_assert_eq(scow_get_extent(rig.image, 5 * CLUSTER, CLUSTER, 0, &e), -EIO);
    cr_assert(strstr(scow_error(), "L2 index 5"), "%s", scow_error());
    check(&rig, 6 * CLUSTER, MIB - 6 * CLUSTER, 0, 10 * CLUSTER, HOLE, 0);
    rig_free(&rig);
}

/* Preallocated metadata: clusters that the host has no blocks for read as zeros. */
Test(extent, allocated_clusters_without_blocks)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = 64 * MIB};
    struct image_builder *b = builder_new(&spec);
    struct rig rig = {0};

    for (uint64_t c = 0; c < 1024; c++)
        builder_entry(b, c, builder_allocate(b) | 1ull << 63, 0);
    build(&rig, 0, b);
    /* The same file with holes for the zeros. */
    char command[1400];
    snprintf(command, sizeof command, "cp --sparse=always '%s' '%s.tmp' && mv '%s.tmp' '%s'", rig.paths[0],
             rig.paths[0], rig.paths[0], rig.paths[0]);
    cr_assert_eq(system(command), 0);
    rig_open(&rig, NULL);
    struct scow_extent e = extent(&rig, 10 * CLUSTER, CLUSTER, 0);
    cr_assert(e.flags & SCOW_EXTENT_ZERO, "flags 0x%x", e.flags);
    cr_assert(e.flags & SCOW_EXTENT_PRESENT);
    cr_assert(e.flags & SCOW_EXTENT_HOST_OFF);
    rig_free(&rig);
}
