/* SPDX-License-Identifier: MIT */
#include "format/header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "format/limits.h"

#define EXTENSION_HEAD_BYTES 8u

int header_probe_cluster(const uint8_t *head, size_t head_bytes, uint32_t *ret_cluster_bytes)
{
    if (head_bytes < HEADER_V2_BYTES)
        return error_set(-EINVAL, "header: the file is too short for a qcow2 header (%zu bytes)", head_bytes);
    if (get_be32(head) != QCOW2_MAGIC)
        return error_set(-EINVAL, "header: not a qcow2 image: no magic at offset 0");

    const uint32_t version = get_be32(head + offsetof(struct header_disk, version));
    if (version != 2 && version != 3)
        return error_set(-ENOTSUP,
                         "header: qcow2 version %" PRIu32 " at offset 4 is not supported (2 and 3 are)",
                         version);

    const uint32_t bits = get_be32(head + offsetof(struct header_disk, cluster_bits));
    if (bits < CLUSTER_BITS_MIN || bits > CLUSTER_BITS_MAX)
        return error_set(-EINVAL, "header: cluster_bits at offset 20 is %" PRIu32 ", not within %u to %u",
                         bits, CLUSTER_BITS_MIN, CLUSTER_BITS_MAX);
    *ret_cluster_bytes = 1u << bits;
    return 0;
}

static void header_decode_fields(const uint8_t *buf, struct header *h)
{
    struct header_disk d;

    memcpy(&d, buf, HEADER_V2_BYTES);
    h->version = get_be32(&d.version);
    h->cluster_bits = get_be32(&d.cluster_bits);
    h->cluster_bytes = 1u << h->cluster_bits;
    h->virtual_bytes = get_be64(&d.virtual_bytes);
    h->crypt_method = get_be32(&d.crypt_method);
    h->l1_count = get_be32(&d.l1_count);
    h->l1_off = get_be64(&d.l1_off);
    h->reftable_off = get_be64(&d.reftable_off);
    h->reftable_clusters = get_be32(&d.reftable_clusters);
    h->snapshot_count = get_be32(&d.snapshot_count);
    h->snapshots_off = get_be64(&d.snapshots_off);
    h->header_bytes = HEADER_V2_BYTES;
    h->refcount_order = 4;

    if (h->version >= 3) {
        memcpy(&d, buf, sizeof d);
        h->incompatible = get_be64(&d.incompatible);
        h->compatible = get_be64(&d.compatible);
        h->autoclear = get_be64(&d.autoclear);
        h->refcount_order = get_be32(&d.refcount_order);
        h->header_bytes = get_be32(&d.header_bytes);
        if (h->header_bytes > offsetof(struct header_disk, compression))
            h->compression = d.compression;
    }
    h->extended_l2 = h->incompatible & INCOMPAT_EXTENDED_L2;
    h->l2_entry_bytes = h->extended_l2 ? 16 : 8;
    h->l2_entries_bits = h->cluster_bits - (h->extended_l2 ? 4 : 3);
}

/* A table named by the header: cluster-aligned, within 56-bit host offsets. */
static int check_table(const struct header *h, const char *what, uint64_t off, uint64_t bytes,
                       uint64_t bytes_max)
{
    if (bytes > bytes_max)
        return error_set(-EINVAL, "header: the %s has %" PRIu64 " bytes, more than the limit of %" PRIu64,
                         what, bytes, bytes_max);
    if (off & (h->cluster_bytes - 1))
        return error_set(-EINVAL,
                         "header: the %s's offset 0x%" PRIx64 " is not a multiple of the cluster size", what,
                         off);
    if (!range_within(off, bytes, HOST_OFF_MAX))
        return error_set(-EINVAL, "header: the %s at offset 0x%" PRIx64 " is out of range", what, off);
    return 0;
}

/* The name of an incompatible feature from the image's own table; unknown ones by number. */
static void unknown_feature_name(const struct header *h, const uint8_t *buf, unsigned bit, char *ret,
                                 size_t ret_bytes)
{
    for (uint32_t i = 0; i < h->feature_names.bytes / FEATURE_NAME_BYTES; i++) {
        struct feature_name f;
        char quoted[200];

        feature_name_decode(h, buf, i, &f);
        if (f.type == 0 && f.bit == bit && f.name[0]) {
            snprintf(ret, ret_bytes, "\"%s\" (bit %u)",
                     error_quote(quoted, sizeof quoted, f.name, strlen(f.name)), bit);
            return;
        }
    }
    snprintf(ret, ret_bytes, "bit %u, which the image does not name", bit);
}

static int check_features(const struct header *h, const uint8_t *buf)
{
    const uint64_t unknown = h->incompatible & ~INCOMPAT_KNOWN;

    if (unknown) {
        char name[256];

        unknown_feature_name(h, buf, (unsigned)__builtin_ctzll(unknown), name, sizeof name);
        return error_set(-ENOTSUP, "header: incompatible feature %s is not supported", name);
    }
    if (h->compression > 1)
        return error_set(-ENOTSUP, "header: compression type %" PRIu32 " at offset 104 is not supported",
                         h->compression);
    if (!(h->incompatible & INCOMPAT_COMPRESSION) != !h->compression)
        return error_set(-EINVAL,
                         "header: compression type %" PRIu32 " at offset 104 contradicts the incompatible "
                         "feature bit 3",
                         h->compression);
    if ((h->autoclear & AUTOCLEAR_DATA_FILE_RAW) && !(h->incompatible & INCOMPAT_DATA_FILE))
        return error_set(
            -EINVAL, "header: the data file is said to be raw (autoclear feature bit 1), but there is none");
    if (h->extended_l2 && h->cluster_bits < CLUSTER_BITS_EXTENDED_MIN)
        return error_set(-EINVAL,
                         "header: extended L2 entries need clusters of at least 16 KiB, these have "
                         "%" PRIu32 " bytes",
                         h->cluster_bytes);
    if (h->crypt_method > 2)
        return error_set(-ENOTSUP, "header: encryption method %" PRIu32 " at offset 32 is not supported",
                         h->crypt_method);
    return 0;
}

/* The offset that reads of the header area are bounded by: the backing name, or the end of the first cluster.
 */
static int check_layout(const struct header *h, const uint8_t *buf, struct header_span *ret_name)
{
    const uint64_t name_off = get_be64(buf + offsetof(struct header_disk, backing_off));
    const uint32_t name_bytes = get_be32(buf + offsetof(struct header_disk, backing_bytes));

    if (h->version >= 3 && (h->header_bytes < HEADER_V3_BYTES_MIN || h->header_bytes > h->cluster_bytes))
        return error_set(-EINVAL,
                         "header: header_length at offset 100 is %" PRIu32 ", not within %u to %" PRIu32,
                         h->header_bytes, HEADER_V3_BYTES_MIN, h->cluster_bytes);
    if (h->refcount_order > REFCOUNT_ORDER_MAX)
        return error_set(-EINVAL, "header: refcount_order at offset 96 is %" PRIu32 ", more than %u",
                         h->refcount_order, REFCOUNT_ORDER_MAX);
    if (!name_off) {
        *ret_name = (struct header_span){0};
        return 0;
    }
    if (name_off < h->header_bytes || name_off > h->cluster_bytes)
        return error_set(-EINVAL,
                         "header: the backing file name's offset 0x%" PRIx64 " is not in the first cluster "
                         "behind the header",
                         name_off);
    if (name_bytes > MIN(BACKING_NAME_BYTES_MAX, h->cluster_bytes - (uint32_t)name_off))
        return error_set(
            -EINVAL, "header: the backing file name at offset 0x%" PRIx64 " is too long (%" PRIu32 " bytes)",
            name_off, name_bytes);
    if (memchr(buf + name_off, 0, name_bytes))
        return error_set(
            -EINVAL, "header: the backing file name at offset 0x%" PRIx64 " contains a zero byte", name_off);
    *ret_name = (struct header_span){(uint32_t)name_off, name_bytes};
    return 0;
}

static int check_bitmaps_extension(struct header *h, const uint8_t *data, const struct extension *e)
{
    if (e->bytes != 24)
        return error_set(
            -EINVAL, "header: the bitmaps extension at offset 0x%" PRIx32 " has %" PRIu32 " bytes, not 24",
            e->off, e->bytes);
    if (!(h->autoclear & AUTOCLEAR_BITMAPS))
        return 0; /* void: a writer that does not know bitmaps has been here */
    h->has_bitmaps_extension = true;
    h->bitmap_count = get_be32(data);
    h->bitmap_directory_bytes = get_be64(data + 8);
    h->bitmap_directory_off = get_be64(data + 16);
    if (get_be32(data + 4))
        return error_set(-EINVAL,
                         "header: the bitmaps extension at offset 0x%" PRIx32 " has a nonzero reserved field",
                         e->off);
    if (h->bitmap_count == 0 || h->bitmap_count > BITMAPS_MAX)
        return error_set(-EINVAL,
                         "header: the bitmaps extension at offset 0x%" PRIx32 " counts %" PRIu32
                         " bitmaps, not 1 to %u",
                         e->off, h->bitmap_count, BITMAPS_MAX);
    if (!h->bitmap_directory_bytes || !h->bitmap_directory_off)
        return error_set(
            -EINVAL, "header: the bitmaps extension at offset 0x%" PRIx32 " has an empty directory", e->off);
    return check_table(h, "bitmap directory", h->bitmap_directory_off, h->bitmap_directory_bytes,
                       BITMAP_DIRECTORY_BYTES_MAX);
}

static int check_extension(struct header *h, const uint8_t *buf, const struct extension *e)
{
    const struct header_span span = {e->data_off, e->bytes};

    switch (e->type) {
    case EXTENSION_BACKING_FORMAT:
        if (e->bytes > BACKING_FORMAT_BYTES_MAX)
            return error_set(-EINVAL,
                             "header: the backing format extension at offset 0x%" PRIx32
                             " is too long (%" PRIu32 " bytes)",
                             e->off, e->bytes);
        h->backing_format = span;
        return 0;
    case EXTENSION_DATA_FILE:
        if (e->bytes > BACKING_NAME_BYTES_MAX || memchr(buf + e->data_off, 0, e->bytes))
            return error_set(-EINVAL,
                             "header: the data file name at offset 0x%" PRIx32 " is too long or contains "
                             "a zero byte",
                             e->data_off);
        h->data_file_name = span;
        return 0;
    case EXTENSION_FEATURE_NAMES:
        h->feature_names = span;
        return 0;
    case EXTENSION_BITMAPS:
        return check_bitmaps_extension(h, buf + e->data_off, e);
    case EXTENSION_CRYPTO:
        if (h->crypt_method != 2 || e->bytes != 16)
            return error_set(-EINVAL, "header: unexpected crypto header extension at offset 0x%" PRIx32,
                             e->off);
        return 0;
    default:
        return 0; /* unknown ones are kept, not understood */
    }
}

static int decode_extensions(struct header *h, const uint8_t *buf)
{
    const uint32_t end = h->backing_name.off ? h->backing_name.off : h->cluster_bytes;
    uint32_t off = h->header_bytes;

    h->extensions.off = off;
    while (off + EXTENSION_HEAD_BYTES <= end) {
        struct extension e = {.type = get_be32(buf + off),
                              .bytes = get_be32(buf + off + 4),
                              .off = off,
                              .data_off = off + EXTENSION_HEAD_BYTES};
        int ret;

        if (e.bytes > end - e.data_off)
            return error_set(-EINVAL,
                             "header: the extension at offset 0x%" PRIx32 " (type 0x%08" PRIx32
                             ") has %" PRIu32 " bytes, beyond the header area's end at 0x%" PRIx32,
                             off, e.type, e.bytes, end);
        if (e.type == EXTENSION_END) {
            off = e.data_off;
            break;
        }
        ret = check_extension(h, buf, &e);
        if (ret < 0)
            return ret;
        h->extension_count++;
        off = (uint32_t)MIN(e.data_off + round_up(e.bytes, 8), end);
    }
    h->extensions.bytes = off - h->extensions.off;
    return 0;
}

bool extension_next(const struct header *h, const uint8_t *buf, uint32_t *cursor, struct extension *ret)
{
    const uint32_t end = h->extensions.off + h->extensions.bytes;
    const uint32_t off = *cursor;

    if (off + EXTENSION_HEAD_BYTES > end)
        return false;
    *ret = (struct extension){.type = get_be32(buf + off),
                              .bytes = get_be32(buf + off + 4),
                              .off = off,
                              .data_off = off + EXTENSION_HEAD_BYTES};
    if (ret->type == EXTENSION_END)
        return false;
    *cursor = (uint32_t)(ret->data_off + round_up(ret->bytes, 8));
    return true;
}

void feature_name_decode(const struct header *h, const uint8_t *buf, uint32_t index, struct feature_name *ret)
{
    const uint8_t *p = buf + h->feature_names.off + (size_t)index * FEATURE_NAME_BYTES;

    ret->type = p[0];
    ret->bit = p[1];
    memcpy(ret->name, p + 2, sizeof ret->name - 1);
    ret->name[sizeof ret->name - 1] = '\0';
}

static int check_tables(const struct header *h)
{
    const uint64_t l1_needed = div_round_up(h->virtual_bytes, 1ull << header_l1_shift(h));
    int ret;

    if (h->virtual_bytes > VIRTUAL_BYTES_MAX)
        return error_set(-EINVAL, "header: the virtual size at offset 24 (%" PRIu64 ") is too large",
                         h->virtual_bytes);
    ret = check_table(h, "L1 table", h->l1_off, (uint64_t)h->l1_count * 8, L1_BYTES_MAX);
    if (ret < 0)
        return ret;
    if (h->l1_count < l1_needed)
        return error_set(-EINVAL,
                         "header: the L1 table has %" PRIu32 " entries at offset 36, too few for the virtual "
                         "size, which needs %" PRIu64,
                         h->l1_count, l1_needed);
    ret = check_table(h, "refcount table", h->reftable_off, (uint64_t)h->reftable_clusters << h->cluster_bits,
                      REFTABLE_BYTES_MAX);
    if (ret < 0)
        return ret;
    if (h->snapshot_count > SNAPSHOTS_MAX)
        return error_set(-EINVAL, "header: %" PRIu32 " snapshots at offset 60, more than the limit of %u",
                         h->snapshot_count, SNAPSHOTS_MAX);
    /* 40 bytes are the least that an entry has */
    return check_table(h, "snapshot table", h->snapshots_off, h->snapshot_count * 40ull,
                       SNAPSHOT_TABLE_BYTES_MAX);
}

int header_decode(const uint8_t *buf, size_t bytes, struct header *ret)
{
    struct header h = {0};
    uint32_t cluster_bytes;
    int r;

    r = header_probe_cluster(buf, bytes, &cluster_bytes);
    if (r < 0)
        return r;
    if (bytes < cluster_bytes)
        return error_set(-EINVAL, "header: the file is shorter than its first cluster");
    header_decode_fields(buf, &h);

    r = check_layout(&h, buf, &h.backing_name);
    if (r < 0)
        return r;
    r = decode_extensions(&h, buf);
    if (r < 0)
        return r;
    r = check_features(&h, buf);
    if (r < 0)
        return r;
    r = check_tables(&h);
    if (r < 0)
        return r;
    *ret = h;
    return 0;
}
