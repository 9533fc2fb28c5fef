/* SPDX-License-Identifier: MIT */
#include "tests/sim/sim_image.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "format/entry.h"
#include "tests/sim/oracle.h"
#include "tests/unit/image_builder.h"

#define SALT_TOP 1u
#define SALT_BACKING 2u
/* Of a block device, behind the image: what others left there. */
#define DEVICE_SPARE_BYTES (1024u << 10)

static void populate(struct image_builder *b, bool compressed, uint64_t *rng)
{
    const uint64_t clusters = div_round_up(b->spec.virtual_bytes, b->cluster_bytes);

    for (uint64_t c = 0; c < clusters; c++) {
        const uint64_t kind = random_next(rng) % 20;

        if (kind < 7)
            builder_data(b, c);
        else if (kind < 10 && compressed)
            builder_compressed(b, c);
        else if (kind < 12 && b->spec.version >= 3)
            builder_zero(b, c, false);
        else if (kind < 14 && b->spec.version >= 3)
            builder_zero(b, c, true);
        else if (kind < 16 && b->spec.extended_l2)
            builder_subclusters(b, c, (uint32_t)random_next(rng) & 0xffff,
                                (uint32_t)random_next(rng) & 0xffff0000, true);
    }
}

static uint64_t load(const struct image_builder *b, uint64_t off)
{
    uint64_t v;

    memcpy(&v, b->host.p + off, sizeof v);
    return be64toh(v);
}

/* One more reference to what an L2 entry names; returns the entry without COPIED. */
static uint64_t share_entry(struct image_builder *b, uint64_t entry)
{
    const uint32_t shift = 62 - (b->spec.cluster_bits - 8);

    if (entry & ENTRY_COMPRESSED) {
        const uint64_t off = entry & ((1ull << shift) - 1);
        const uint64_t sectors = entry >> shift & ((1ull << (62 - shift)) - 1);
        const uint64_t last = off / 512 * 512 + (sectors + 1) * 512 - 1;

        for (uint64_t c = off / b->cluster_bytes; c <= last / b->cluster_bytes; c++)
            b->refs[c]++;
        return entry;
    }
    if (entry & ENTRY_OFF_MASK)
        b->refs[(entry & ENTRY_OFF_MASK) / b->cluster_bytes]++;
    return entry & ~ENTRY_COPIED;
}

/* An internal snapshot of the present state: all tables and clusters are shared from now on. */
static void add_snapshot(struct image_builder *b)
{
    const uint64_t l1_clusters = div_round_up(b->l1_count * 8ull, b->cluster_bytes);
    uint64_t l1_copy = 0, table;

    for (uint32_t i = 0; i < b->l1_count; i++) {
        const uint64_t entry = load(b, b->l1_off + i * 8ull);

        if (!(entry & ENTRY_OFF_MASK))
            continue;
        b->refs[(entry & ENTRY_OFF_MASK) / b->cluster_bytes]++;
        builder_l1_entry(b, i, entry & ~ENTRY_COPIED);
        for (uint32_t k = 0; k < b->l2_entries; k++) {
            const uint64_t at = (entry & ENTRY_OFF_MASK) + (uint64_t)k * b->l2_entry_bytes;

            builder_put_be64(b, at, share_entry(b, load(b, at)));
        }
    }
    for (uint64_t i = 0; i < l1_clusters; i++) {
        const uint64_t off = builder_allocate(b);

        l1_copy = i ? l1_copy : off;
    }
    memcpy(b->host.p + l1_copy, b->host.p + b->l1_off, b->l1_count * 8ull);
    table = builder_allocate(b);
    builder_put_be64(b, table, l1_copy);
    builder_put_be32(b, table + 8, b->l1_count);
    builder_put_be32(b, table + 12, 1u << 16 | 1u); /* lengths of ID and name */
    builder_put_be32(b, table + 36, 16);            /* of the extra data: VM state, disk size */
    builder_put_be64(b, table + 48, b->spec.virtual_bytes);
    memcpy(b->host.p + table + 56, "1s", 2);
    builder_put_be32(b, 60, 1);
    builder_put_be64(b, 64, table);
}

static struct image_builder *build_backing(const struct run_config *c, uint64_t *rng)
{
    const struct image_spec spec = {.raw = c->backing_raw,
                                    .version = 3,
                                    .cluster_bits = 9 + (uint32_t)(random_next(rng) % 4),
                                    .refcount_order = 4,
                                    .virtual_bytes = c->backing_bytes,
                                    .salt = SALT_BACKING};
    struct image_builder *const b = builder_new(&spec);

    if (c->backing_raw) {
        builder_raw(b);
    } else {
        populate(b, false, rng);
        builder_write(b, "/dev/null"); /* completes the bytes */
    }
    return b;
}

static struct image_builder *build_top(const struct run_config *c, uint64_t *rng)
{
    const struct image_spec spec = {.version = c->version,
                                    .cluster_bits = c->cluster_bits,
                                    .refcount_order = c->refcount_order,
                                    .extended_l2 = c->extended_l2,
                                    .zstd = c->zstd,
                                    .virtual_bytes = c->virtual_bytes,
                                    .salt = SALT_TOP,
                                    .backing_name = c->backing ? BACKING_DISK : NULL,
                                    .backing_format = !c->backing      ? NULL
                                                      : c->backing_raw ? "raw"
                                                                       : "qcow2",
                                    .data_file_name = c->data_file ? DATA_DISK : NULL};
    struct image_builder *const b = builder_new(&spec);

    if (c->populated)
        populate(b, c->compressed, rng);
    if (c->snapshot)
        add_snapshot(b);
    if (c->data_file_raw)
        builder_put_be64(b, 88, 2); /* autoclear bit 1 */
    builder_write(b, "/dev/null");
    return b;
}

static void fill_content(const struct run_config *c, struct image_builder *const *layers, int count,
                         struct sim_content *ret)
{
    uint8_t *const plain = malloc(c->virtual_bytes);

    if (!plain)
        abort();
    builder_expect(layers, count, 0, c->virtual_bytes, plain);
    ret->sectors = (uint32_t)(c->virtual_bytes / ORACLE_SECTOR);
    if (ret->sectors > ret->room) {
        ret->room = ret->sectors;
        free(ret->values);
        ret->values = malloc(ret->room * sizeof *ret->values);
        if (!ret->values)
            abort();
    }
    for (uint32_t i = 0; i < ret->sectors; i++) {
        ret->values[i] = stamp_value(plain + (size_t)i * ORACLE_SECTOR, (uint64_t)i * ORACLE_SECTOR);
        invariant(ret->values[i] != VALUE_BAD);
    }
    free(plain);
}

static void add_top(struct sim *sim, const struct run_config *c, const struct image_builder *b)
{
    struct disk_config d = {.name = IMAGE_DISK,
                            .io_align = c->io_align,
                            .block_device = c->block_device,
                            .no_allocate = c->no_allocate,
                            .no_punch = c->no_punch,
                            .no_zero = c->no_zero,
                            .capacity = SPARSE_BYTES_MAX};
    uint64_t bytes = round_up(b->host.count, c->io_align);
    uint8_t *device;

    if (c->spare_clusters)
        d.capacity = bytes + (c->spare_clusters << c->cluster_bits);
    else if (c->block_device)
        d.capacity = round_up(bytes + DEVICE_SPARE_BYTES + 4 * c->virtual_bytes, 4096);
    if (!c->block_device) {
        uint8_t *const padded = calloc(1, bytes);

        invariant(padded);
        memcpy(padded, b->host.p, b->host.count);
        sim_add_disk(sim, &d, padded, bytes);
        free(padded);
        return;
    }
    device = malloc(d.capacity);
    invariant(device);
    memset(device, 0xa5, d.capacity);
    memcpy(device, b->host.p, b->host.count);
    sim_add_disk(sim, &d, device, d.capacity);
    free(device);
}

void sim_image_build(struct sim *sim, const struct run_config *c, struct sim_content *ret)
{
    uint64_t rng = c->seed * 0xd1342543de82ef95u + 77;
    struct image_builder *layers[2] = {build_top(c, &rng), c->backing ? build_backing(c, &rng) : NULL};
    struct disk_config d = {.io_align = 512, .capacity = SPARSE_BYTES_MAX};

    fill_content(c, layers, c->backing ? 2 : 1, ret);
    add_top(sim, c, layers[0]);
    if (c->backing) {
        memcpy(d.name, BACKING_DISK, sizeof BACKING_DISK);
        sim_add_disk(sim, &d, layers[1]->host.p, layers[1]->host.count);
    }
    if (c->data_file) {
        memcpy(d.name, DATA_DISK, sizeof DATA_DISK);
        d.io_align = c->io_align;
        d.no_punch = c->no_punch;
        d.no_zero = c->no_zero;
        sim_add_disk(sim, &d, layers[0]->data.p, layers[0]->data.count);
        sim->disks[sim->disk_count - 1]->now_bytes = round_up(c->virtual_bytes, 1u << c->cluster_bits);
        sim->disks[sim->disk_count - 1]->durable_bytes = sim->disks[sim->disk_count - 1]->now_bytes;
    }
    builder_free(layers[0]);
    builder_free(layers[1]);
}
