/* SPDX-License-Identifier: MIT */
#include "format/header_encode.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "format/header.h"
#include "format/limits.h"

#define EXTENSION_HEAD_BYTES 8u
#define FEATURE_NAMES_CLUSTER_BYTES_MIN 8192u

/* Where the next extension goes. Capacity is checked before each write. */
struct encoder {
    uint8_t *cluster;
    uint32_t off;
    uint32_t room_end;
};

static const struct feature_name features[] = {
    {0, 0, "dirty bit"},
    {0, 1, "corrupt bit"},
    {0, 2, "external data file"},
    {0, 3, "compression type"},
    {0, 4, "extended L2 entries"},
    {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},
    {2, 1, "raw external data"},
    {2, AUTOCLEAR_SHARDCOW_BIT, "shardcow: image in use"},
};

static void put_fields(const struct header_description *d, uint8_t *cluster)
{
    struct header_disk h = {0};

    put_be32(&h.magic, QCOW2_MAGIC);
    put_be32(&h.version, d->version);
    put_be32(&h.cluster_bits, d->cluster_bits);
    put_be64(&h.virtual_bytes, d->virtual_bytes);
    put_be32(&h.l1_count, d->l1_count);
    put_be64(&h.l1_off, d->l1_off);
    put_be64(&h.reftable_off, d->reftable_off);
    put_be32(&h.reftable_clusters, d->reftable_clusters);
    put_be64(&h.incompatible, d->incompatible);
    put_be64(&h.compatible, d->compatible);
    put_be64(&h.autoclear, d->autoclear);
    put_be32(&h.refcount_order, d->refcount_order);
    put_be32(&h.header_bytes, sizeof h);
    h.compression = d->compression;
    memcpy(cluster, &h, d->version >= 3 ? sizeof h : HEADER_V2_BYTES);
}

static int no_room(const struct encoder *e, const char *what)
{
    return error_set(-EINVAL,
                     "header: the %s does not fit into the first cluster (%" PRIu32
                     " bytes): use a shorter name or larger clusters",
                     what, e->room_end);
}

static int add_extension(struct encoder *e, uint32_t type, const char *what, const void *data, uint32_t bytes)
{
    const uint64_t padded = round_up(bytes, 8);

    if (EXTENSION_HEAD_BYTES + padded > e->room_end - e->off)
        return no_room(e, what);
    put_be32(e->cluster + e->off, type);
    put_be32(e->cluster + e->off + 4, bytes);
    if (bytes)
        memcpy(e->cluster + e->off + EXTENSION_HEAD_BYTES, data, bytes);
    e->off += EXTENSION_HEAD_BYTES + (uint32_t)padded;
    return 0;
}

static int add_name(struct encoder *e, uint32_t type, const char *what, const char *name, uint32_t bytes_max)
{
    const size_t bytes = strnlen(name, bytes_max + 1u);

    if (!bytes || bytes > bytes_max)
        return error_set(-EINVAL, "header: the %s has to have 1 to %" PRIu32 " bytes", what, bytes_max);
    return add_extension(e, type, what, name, (uint32_t)bytes);
}

static int add_feature_names(struct encoder *e)
{
    uint8_t table[sizeof features / sizeof features[0]][FEATURE_NAME_BYTES] = {0};

    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        table[i][0] = features[i].type;
        table[i][1] = features[i].bit;
        memcpy(&table[i][2], features[i].name, FEATURE_NAME_BYTES - 2);
    }
    return add_extension(e, EXTENSION_FEATURE_NAMES, "feature name table", table, sizeof table);
}

/* Behind the end marker, without a terminator. */
static int put_backing_name(struct encoder *e, const char *name)
{
    const size_t bytes = strnlen(name, BACKING_NAME_BYTES_MAX + 1u);

    if (!bytes || bytes > BACKING_NAME_BYTES_MAX)
        return error_set(-EINVAL, "header: the backing file name has to have 1 to %u bytes",
                         BACKING_NAME_BYTES_MAX);
    if (bytes > e->room_end - e->off)
        return no_room(e, "backing file name");
    memcpy(e->cluster + e->off, name, bytes);
    put_be64(e->cluster + offsetof(struct header_disk, backing_off), e->off);
    put_be32(e->cluster + offsetof(struct header_disk, backing_bytes), (uint32_t)bytes);
    return 0;
}

int header_encode(const struct header_description *d, uint8_t *cluster)
{
    const uint32_t cluster_bytes = 1u << d->cluster_bits;
    struct encoder e = {.cluster = cluster,
                        .off = d->version >= 3 ? (uint32_t)sizeof(struct header_disk) : HEADER_V2_BYTES,
                        .room_end = cluster_bytes};
    int r = 0;

    memset(cluster, 0, cluster_bytes);
    put_fields(d, cluster);
    if (d->backing_format)
        r = add_name(&e, EXTENSION_BACKING_FORMAT, "backing file format", d->backing_format,
                     BACKING_FORMAT_BYTES_MAX);
    if (r == 0 && d->data_file_name)
        r = add_name(&e, EXTENSION_DATA_FILE, "data file name", d->data_file_name, BACKING_NAME_BYTES_MAX);
    if (r == 0 && d->version >= 3 && cluster_bytes >= FEATURE_NAMES_CLUSTER_BYTES_MIN)
        r = add_feature_names(&e);
    if (r == 0)
        r = add_extension(&e, EXTENSION_END, "end of the extensions", NULL, 0);
    if (r == 0 && d->backing_name)
        r = put_backing_name(&e, d->backing_name);
    return r;
}
