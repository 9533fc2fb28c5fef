/* SPDX-License-Identifier: MIT */
#include "engine/create_plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/attributes.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "format/entry.h"
#include "format/header.h"
#include "format/limits.h"
#include "format/refcount.h"

#define VERSION_DEFAULT 3u
#define CLUSTER_BYTES_DEFAULT 65536u
#define REFCOUNT_BITS_DEFAULT 16u
#define TABLE_ENTRY_BYTES 8u /* of L1 and refcount table */
#define SUBCLUSTERS_ALL_ALLOCATED 0xffffffffull

/* ---- options ---- */

static int check_values(const struct scow_create_options *o)
{
    for (size_t i = 0; i < ARRAY_COUNT(o->reserved); i++)
        if (o->reserved[i])
            return error_set(-EINVAL, "create options: a reserved field is set");
    if (o->flags)
        return error_set(-EINVAL, "create options: unknown flags 0x%" PRIx32, o->flags);
    if (o->version && o->version != 2 && o->version != 3)
        return error_set(-EINVAL, "create options: version is %" PRIu32 ", not 2 or 3", o->version);
    if (o->cluster_bytes &&
        (!is_power_of_two(o->cluster_bytes) || o->cluster_bytes < 1u << CLUSTER_BITS_MIN ||
         o->cluster_bytes > CLUSTER_BYTES_MAX))
        return error_set(-EINVAL,
                         "create options: the cluster size is %" PRIu32
                         ", not a power of two from 512 bytes to 2 MiB",
                         o->cluster_bytes);
    if (o->refcount_bits && (!is_power_of_two(o->refcount_bits) || o->refcount_bits > 64))
        return error_set(-EINVAL,
                         "create options: the refcount width is %" PRIu32
                         " bits, not a power of two from 1 to 64",
                         o->refcount_bits);
    if (o->extended_l2 > 1 || o->lazy_refcounts > 1 || o->data_file_raw > 1 || o->data_file_keep > 1)
        return error_set(-EINVAL, "create options: extended_l2, lazy_refcounts, data_file_raw and "
                                  "data_file_keep are 0 or 1");
    if (o->compression != SCOW_COMPRESSION_ZLIB && o->compression != SCOW_COMPRESSION_ZSTD)
        return error_set(-EINVAL, "create options: compression type %d is unknown", (int)o->compression);
    if ((int)o->preallocation < SCOW_PREALLOCATION_OFF || o->preallocation > SCOW_PREALLOCATION_FULL)
        return error_set(-EINVAL, "create options: preallocation mode %d is unknown", (int)o->preallocation);
    return 0;
}

static int check_version(const struct scow_create_options *o)
{
    const struct {
        bool used;
        const char *what;
    } features[] = {
        {o->extended_l2, "extended L2 entries"},
        {o->lazy_refcounts, "lazy refcounts"},
        {o->compression != SCOW_COMPRESSION_ZLIB, "compression type zstd"},
        {o->refcount_bits && o->refcount_bits != REFCOUNT_BITS_DEFAULT, "refcounts of other than 16 bits"},
        {o->data_file_name, "an external data file"},
    };

    if (o->version != 2)
        return 0;
    for (size_t i = 0; i < ARRAY_COUNT(features); i++)
        if (features[i].used)
            return error_set(-EINVAL, "create options: version 2 does not have %s: use version 3",
                             features[i].what);
    return 0;
}

static int check_combinations(const struct scow_create_options *o)
{
    if (o->extended_l2 && o->cluster_bytes && o->cluster_bytes < 1u << CLUSTER_BITS_EXTENDED_MIN)
        return error_set(-EINVAL,
                         "create options: extended L2 entries need clusters of at least 16 KiB, not %" PRIu32
                         " bytes",
                         o->cluster_bytes);
    if (o->backing_format && !o->backing_name)
        return error_set(-EINVAL, "create options: a backing format, but no backing file");
    if (o->data_file_raw && !o->data_file_name)
        return error_set(-EINVAL, "create options: data_file_raw without a data file");
    if (o->data_file_keep && !o->data_file_name)
        return error_set(-EINVAL, "create options: data_file_keep without a data file");
    if (o->data_file_raw && o->backing_name)
        return error_set(-EINVAL, "create options: a raw data file and a backing file exclude each other");
    /* With extended L2 preallocated clusters have no allocated subclusters: the backing file shows. */
    if (o->backing_name && o->preallocation != SCOW_PREALLOCATION_OFF && !o->extended_l2)
        return error_set(-EINVAL, "create options: preallocation with a backing file needs extended L2 "
                                  "entries: it would hide the backing file");
    return 0;
}

/* ---- layout ---- */

static void describe(const struct scow_create_options *o, struct create_plan *p)
{
    struct header_description *h = &p->header;

    p->cluster_bytes = o->cluster_bytes ? o->cluster_bytes : CLUSTER_BYTES_DEFAULT;
    p->l2_entry_bytes = o->extended_l2 ? 16 : 8;
    p->guest_is_host = o->data_file_name;
    h->version = o->version ? o->version : VERSION_DEFAULT;
    h->cluster_bits = (uint32_t)__builtin_ctz(p->cluster_bytes);
    h->refcount_order = (uint32_t)__builtin_ctz(o->refcount_bits ? o->refcount_bits : REFCOUNT_BITS_DEFAULT);
    h->compression = (uint8_t)o->compression;
    h->incompatible = (o->data_file_name ? INCOMPAT_DATA_FILE : 0) |
                      (o->compression ? INCOMPAT_COMPRESSION : 0) |
                      (o->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0);
    h->compatible = o->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0;
    h->autoclear = o->data_file_raw ? AUTOCLEAR_DATA_FILE_RAW : 0;
    h->backing_name = o->backing_name;
    h->backing_format = o->backing_format;
    h->data_file_name = o->data_file_name;
}

/* Guest clusters and the L1 table, from the virtual size. */
static int size_map(const struct scow_create_options *o, struct create_plan *p, uint64_t *ret_l2_tables)
{
    const uint64_t l2_count = p->cluster_bytes / p->l2_entry_bytes;
    uint64_t clusters, tables;

    if (o->virtual_size > VIRTUAL_BYTES_MAX)
        return error_set(-EFBIG, "create options: the virtual size of %" PRIu64 " bytes is too large",
                         o->virtual_size);
    p->header.virtual_bytes = round_up(o->virtual_size, SECTOR_BYTES);
    clusters = div_round_up(p->header.virtual_bytes, p->cluster_bytes);
    tables = div_round_up(clusters, l2_count);
    if (tables > L1_BYTES_MAX / TABLE_ENTRY_BYTES)
        return error_set(-EFBIG,
                         "create options: a virtual size of %" PRIu64
                         " bytes needs an L1 table above the limit of 32 MiB: use larger clusters than "
                         "%" PRIu32 " bytes",
                         o->virtual_size, p->cluster_bytes);
    p->header.l1_count = (uint32_t)tables;
    /* A data file is a raw image only if the tables say so: each cluster is mapped to its place. */
    if (o->preallocation == SCOW_PREALLOCATION_OFF && !o->data_file_raw)
        return 0;
    if (p->guest_is_host && p->header.virtual_bytes > HOST_OFF_MAX)
        return error_set(-EFBIG, "create options: offsets in a data file of %" PRIu64 " bytes are too large",
                         o->virtual_size);
    p->guest_clusters = clusters;
    p->subclusters = o->data_file_raw ? SUBCLUSTERS_ALL_ALLOCATED : 0;
    *ret_l2_tables = tables;
    return 0;
}

/* Refcount blocks and table count themselves: more of them until nothing is left uncounted. Terminates: both
 * only grow, and a block counts far more than the one cluster that it adds. */
static int size_refcounts(struct create_plan *p, uint64_t other_clusters)
{
    const uint64_t per_block = refcount_block_count(p->header.cluster_bits, p->header.refcount_order);
    const uint64_t per_table_cluster = p->cluster_bytes / TABLE_ENTRY_BYTES;
    uint64_t blocks = 0, table = 0, total;

    do {
        total = other_clusters + blocks + table;
        blocks = div_round_up(total, per_block);
        table = div_round_up(blocks, per_table_cluster);
    } while (total != other_clusters + blocks + table);
    if (total > HOST_OFF_MAX / p->cluster_bytes)
        return error_set(-EFBIG, "create options: preallocated, the file would be larger than the format "
                                 "allows");
    if (table * p->cluster_bytes > REFTABLE_BYTES_MAX)
        return error_set(-EFBIG,
                         "create options: preallocated, the image needs a refcount table above the limit of "
                         "8 MiB: use larger clusters than %" PRIu32 " bytes or narrower refcounts",
                         p->cluster_bytes);
    p->refblocks.count = blocks;
    p->reftable.count = table;
    p->total_clusters = total;
    return 0;
}

static void place(struct create_plan *p)
{
    struct cluster_run *const runs[] = {&p->reftable, &p->refblocks, &p->l1, &p->l2, &p->data};
    uint64_t next = 1; /* behind the header */

    for (size_t i = 0; i < ARRAY_COUNT(runs); i++) {
        runs[i]->first = next;
        next += runs[i]->count;
    }
    invariant(next == p->total_clusters);
    p->header.reftable_off = p->reftable.first * p->cluster_bytes;
    p->header.reftable_clusters = (uint32_t)p->reftable.count;
    p->header.l1_off = p->l1.count ? p->l1.first * p->cluster_bytes : 0;
}

int create_plan_make(const struct scow_create_options *o, struct create_plan *ret)
{
    struct create_plan p = {0};
    int r;

    if ((r = check_values(o)) < 0 || (r = check_version(o)) < 0 || (r = check_combinations(o)) < 0)
        return r;
    describe(o, &p);
    r = size_map(o, &p, &p.l2.count);
    if (r < 0)
        return r;
    p.l1.count = div_round_up((uint64_t)p.header.l1_count * TABLE_ENTRY_BYTES, p.cluster_bytes);
    p.data.count = p.guest_is_host ? 0 : p.guest_clusters;
    r = size_refcounts(&p, 1 + p.l1.count + p.l2.count + p.data.count);
    if (r < 0)
        return r;
    place(&p);
    *ret = p;
    return 0;
}

/* ---- content ---- */

/* The part of a table, spread over run, that cluster index of it holds: entries name the clusters of target,
 * in order. */
static void fill_table(const struct create_plan *p, const struct cluster_run *target, uint64_t index,
                       uint64_t flags, uint8_t *cluster)
{
    const uint64_t per_cluster = p->cluster_bytes / TABLE_ENTRY_BYTES;
    const uint64_t first = index * per_cluster;

    for (uint64_t i = 0; i < per_cluster && first + i < target->count; i++)
        put_be64(cluster + i * TABLE_ENTRY_BYTES, (target->first + first + i) * p->cluster_bytes | flags);
}

static void fill_refblock(const struct create_plan *p, uint64_t index, uint8_t *cluster)
{
    const uint32_t per_block = refcount_block_count(p->header.cluster_bits, p->header.refcount_order);
    const uint64_t first = index * per_block;

    for (uint32_t i = 0; i < per_block && first + i < p->total_clusters; i++)
        refcount_set(cluster, p->header.refcount_order, i, 1);
}

static void fill_l2(const struct create_plan *p, uint64_t index, uint8_t *cluster)
{
    const uint64_t per_table = p->cluster_bytes / p->l2_entry_bytes;
    const uint64_t first = index * per_table;
    const uint64_t first_host = p->guest_is_host ? 0 : p->data.first;

    for (uint64_t i = 0; i < per_table && first + i < p->guest_clusters; i++) {
        uint8_t *entry = cluster + i * p->l2_entry_bytes;

        put_be64(entry, (first_host + first + i) * p->cluster_bytes | ENTRY_COPIED);
        if (p->header.incompatible & INCOMPAT_EXTENDED_L2)
            put_be64(entry + 8, p->subclusters);
    }
}

static bool run_has(const struct cluster_run *run, uint64_t cluster)
{
    return cluster >= run->first && cluster - run->first < run->count;
}

void create_plan_fill(const struct create_plan *p, uint64_t host_cluster, uint8_t *cluster)
{
    memset(cluster, 0, p->cluster_bytes);
    if (run_has(&p->reftable, host_cluster))
        fill_table(p, &p->refblocks, host_cluster - p->reftable.first, 0, cluster);
    else if (run_has(&p->refblocks, host_cluster))
        fill_refblock(p, host_cluster - p->refblocks.first, cluster);
    else if (run_has(&p->l1, host_cluster))
        fill_table(p, &p->l2, host_cluster - p->l1.first, ENTRY_COPIED, cluster);
    else if (run_has(&p->l2, host_cluster))
        fill_l2(p, host_cluster - p->l2.first, cluster);
}
