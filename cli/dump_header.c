/* SPDX-License-Identifier: MIT */
/* The parts of `shardcow dump` that the library has decoded: header, extensions, features, snapshots,
 * bitmaps. */
#include "cli/dump.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "cli/units.h"

#define QUOTED_BYTES (4 * 1024 + 1)
#define HEX_BYTES_SHOWN 32

static const char *const feature_classes[] = {"incompatible", "compatible", "autoclear"};

static void print_field(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void print_field(const char *label, const char *fmt, ...)
{
    va_list args;

    printf("  %-24s", label);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
}

static const char *extension_name(uint32_t type)
{
    switch (type) {
    case 0xe2792aca:
        return "backing file format";
    case 0x6803f857:
        return "feature name table";
    case 0x23852875:
        return "bitmaps";
    case 0x0537be77:
        return "full disk encryption header";
    case 0x44415441:
        return "external data file name";
    default:
        return "unknown";
    }
}

static const char *crypt_name(uint32_t method)
{
    return method == 0 ? "none" : method == 1 ? "AES" : method == 2 ? "LUKS" : "unknown";
}

/* The image's own name of a bit, else the specification's. */
static const char *bit_name(const struct dump *dump, unsigned class, unsigned bit, char *buf,
                            size_t buf_bytes)
{
    static const char *const known[3][5] = {
        {"dirty", "corrupt", "external data file", "compression type", "extended L2 entries"},
        {"lazy refcounts"},
        {"bitmaps", "raw external data"},
    };
    struct scow_feature_name feature = {.size = sizeof feature};

    for (uint32_t i = 0; !scow_get_feature_name(dump->image, i, &feature); i++)
        if (feature.type == class && feature.bit == bit)
            return command_quote(buf, buf_bytes, feature.name);
    return bit < 5 && known[class][bit] ? known[class][bit] : "unknown";
}

static void print_features(const struct dump *dump, unsigned class, uint64_t bits)
{
    char name[256];

    printf("  %-24s%#" PRIx64, feature_classes[class], bits);
    for (unsigned bit = 0; bit < 64; bit++)
        if (bits >> bit & 1)
            printf(", %s", bit_name(dump, class, bit, name, sizeof name));
    putchar('\n');
}

void dump_header(struct dump *dump)
{
    const struct scow_info *i = &dump->info;
    char text[QUOTED_BYTES], size[UNITS_TEXT_BYTES];

    print_field("version", "%" PRIu32, i->version);
    print_field("header length", "%" PRIu32 " bytes", i->header_bytes);
    print_field("virtual size", "%" PRIu64 " bytes (%s)", i->virtual_size, units_size(size, i->virtual_size));
    print_field("cluster size", "%" PRIu32 " bytes (%s)", i->cluster_bytes,
                units_size(size, i->cluster_bytes));
    print_field("encryption", "%s (%" PRIu32 ")", crypt_name(i->crypt_method), i->crypt_method);
    print_field("compression type", "%s", i->compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib");
    print_field("L1 table", "%#" PRIx64 ", %" PRIu32 " entries", i->l1_off, i->l1_count);
    print_field("refcount table", "%#" PRIx64 ", %" PRIu32 " clusters", i->reftable_off,
                i->reftable_clusters);
    print_field("refcount width", "%" PRIu32 " bits", i->refcount_bits);
    print_field("snapshot table", "%#" PRIx64 ", %" PRIu32 " snapshots", i->snapshots_off, i->snapshot_count);
    if (i->bitmap_count)
        print_field("bitmap directory", "%#" PRIx64 ", %" PRIu64 " bytes, %" PRIu32 " bitmaps",
                    i->bitmap_directory_off, i->bitmap_directory_bytes, i->bitmap_count);
    if (i->backing_name)
        print_field("backing file", "\"%s\"", command_quote(text, sizeof text, i->backing_name));
    if (i->backing_format)
        print_field("backing file format", "\"%s\"", command_quote(text, sizeof text, i->backing_format));
    if (i->data_file_name)
        print_field("data file", "\"%s\"", command_quote(text, sizeof text, i->data_file_name));
    print_features(dump, 0, i->incompatible);
    print_features(dump, 1, i->compatible);
    print_features(dump, 2, i->autoclear);
    print_field("file length", "%" PRIu64 " bytes", i->file_bytes);
}

static json_t *features_json(const struct dump *dump, unsigned class, uint64_t bits)
{
    json_t *object = json_object(), *names = json_array();
    char name[256];

    for (unsigned bit = 0; bit < 64; bit++)
        if (bits >> bit & 1)
            json_append(names, json_text(bit_name(dump, class, bit, name, sizeof name)));
    json_put(object, "bits", json_hex(bits));
    json_put(object, "names", names);
    return object;
}

json_t *dump_header_json(const struct dump *dump)
{
    const struct scow_info *i = &dump->info;
    json_t *object = json_object();

    json_put(object, "version", json_count(i->version));
    json_put(object, "header-length", json_count(i->header_bytes));
    json_put(object, "virtual-size", json_count(i->virtual_size));
    json_put(object, "cluster-size", json_count(i->cluster_bytes));
    json_put(object, "crypt-method", json_count(i->crypt_method));
    json_put(object, "compression-type",
             json_text(i->compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib"));
    json_put(object, "l1-table-offset", json_count(i->l1_off));
    json_put(object, "l1-size", json_count(i->l1_count));
    json_put(object, "refcount-table-offset", json_count(i->reftable_off));
    json_put(object, "refcount-table-clusters", json_count(i->reftable_clusters));
    json_put(object, "refcount-bits", json_count(i->refcount_bits));
    json_put(object, "snapshots-offset", json_count(i->snapshots_off));
    json_put(object, "nb-snapshots", json_count(i->snapshot_count));
    json_put(object, "bitmap-directory-offset", json_count(i->bitmap_directory_off));
    json_put(object, "bitmap-directory-size", json_count(i->bitmap_directory_bytes));
    json_put(object, "nb-bitmaps", json_count(i->bitmap_count));
    json_put(object, "backing-filename", json_text(i->backing_name));
    json_put(object, "backing-filename-format", json_text(i->backing_format));
    json_put(object, "data-file", json_text(i->data_file_name));
    json_put(object, "incompatible-features", features_json(dump, 0, i->incompatible));
    json_put(object, "compatible-features", features_json(dump, 1, i->compatible));
    json_put(object, "autoclear-features", features_json(dump, 2, i->autoclear));
    json_put(object, "file-length", json_count(i->file_bytes));
    return object;
}

static void hex_text(char *buf, const void *data, uint32_t bytes)
{
    const uint8_t *p = data;

    *buf = '\0';
    for (uint32_t i = 0; i < bytes; i++)
        snprintf(buf + (size_t)i * 2, 3, "%02x", p[i]);
}

void dump_extensions(struct dump *dump)
{
    for (uint32_t i = 0; i < dump->info.extension_count; i++) {
        struct scow_extension e = {.size = sizeof e};
        char hex[2 * HEX_BYTES_SHOWN + 1];
        if (scow_get_extension(dump->image, i, &e))
            break;
        const uint32_t shown = e.data_bytes < HEX_BYTES_SHOWN ? e.data_bytes : HEX_BYTES_SHOWN;
        hex_text(hex, e.data, shown);
        if (!dump->json) {
            printf("  %#" PRIx64 ": type 0x%08" PRIx32 " (%s), %" PRIu32 " bytes: %s%s\n", e.off, e.type,
                   extension_name(e.type), e.data_bytes, hex, shown < e.data_bytes ? "…" : "");
            continue;
        }
        json_t *item = json_object();
        json_put(item, "offset", json_count(e.off));
        json_put(item, "type", json_hex(e.type));
        json_put(item, "name", json_text(extension_name(e.type)));
        json_put(item, "length", json_count(e.data_bytes));
        json_put(item, "data-begin", json_text(hex));
        json_stream_item(&dump->items, item);
    }
}

void dump_features(struct dump *dump)
{
    for (uint32_t i = 0; i < dump->info.feature_name_count; i++) {
        struct scow_feature_name f = {.size = sizeof f};
        char quoted[256];
        if (scow_get_feature_name(dump->image, i, &f))
            break;
        const char *const class = f.type < 3 ? feature_classes[f.type] : "unknown";
        if (!dump->json) {
            printf("  %-14s bit %2u  %s\n", class, f.bit, command_quote(quoted, sizeof quoted, f.name));
            continue;
        }
        json_t *item = json_object();
        json_put(item, "type", json_text(class));
        json_put(item, "bit", json_count(f.bit));
        json_put(item, "name", json_text(f.name));
        json_stream_item(&dump->items, item);
    }
}

void dump_snapshots(struct dump *dump)
{
    for (uint32_t i = 0; i < dump->info.snapshot_count; i++) {
        struct scow_snapshot s = {.size = sizeof s};
        char id[256], name[QUOTED_BYTES];
        if (scow_get_snapshot(dump->image, i, &s))
            break;
        if (!dump->json) {
            printf("  %" PRIu32 ": id \"%s\", name \"%s\"\n"
                   "     L1 table %#" PRIx64 ", %" PRIu32 " entries; disk %" PRIu64
                   " bytes; VM state %" PRIu64 " bytes\n"
                   "     date %" PRIu32 ".%09" PRIu32 ", VM clock %" PRIu64 " ns, %" PRIu32
                   " bytes of extra data\n",
                   i + 1, command_quote(id, sizeof id, s.id), command_quote(name, sizeof name, s.name),
                   s.l1_off, s.l1_count, s.disk_bytes, s.vm_state_bytes, s.date_s, s.date_ns, s.vm_clock_ns,
                   s.extra_bytes);
            continue;
        }
        json_t *item = json_object();
        json_put(item, "id", json_text(s.id));
        json_put(item, "name", json_text(s.name));
        json_put(item, "l1-table-offset", json_count(s.l1_off));
        json_put(item, "l1-size", json_count(s.l1_count));
        json_put(item, "date-sec", json_count(s.date_s));
        json_put(item, "date-nsec", json_count(s.date_ns));
        json_put(item, "vm-clock-nsec", json_count(s.vm_clock_ns));
        json_put(item, "vm-state-size", json_count(s.vm_state_bytes));
        json_put(item, "disk-size", json_count(s.disk_bytes));
        json_put(item, "icount", s.icount == UINT64_MAX ? json_null() : json_count(s.icount));
        json_put(item, "extra-data-size", json_count(s.extra_bytes));
        json_stream_item(&dump->items, item);
    }
}

struct bitmap_count {
    uint64_t zeros, ones, data;
};

/* A bitmap table's entry without an offset says in bit 0 what all of its cluster's bits are. */
static bool count_bitmap_entry(void *ctx, uint64_t index, const uint64_t *value)
{
    struct bitmap_count *count = ctx;

    (void)index;
    if (*value & 0x00fffffffffffe00ull)
        count->data++;
    else if (*value & 1)
        count->ones++;
    else
        count->zeros++;
    return true;
}

void dump_bitmaps(struct dump *dump)
{
    struct dump whole = *dump;

    whole.first = 0;
    whole.last = UINT64_MAX - 1;
    for (uint32_t i = 0; i < dump->info.bitmap_count; i++) {
        struct scow_bitmap b = {.size = sizeof b};
        struct bitmap_count count = {0};
        char name[QUOTED_BYTES];
        if (scow_get_bitmap(dump->image, i, &b))
            break;
        whole.failed = false;
        dump_walk(&whole, SCOW_TABLE_BITMAP, i, b.table_count, 1, "bitmap table", count_bitmap_entry, &count);
        dump->failed |= whole.failed;
        if (!dump->json) {
            printf("  %" PRIu32 ": name \"%s\", type %u, granularity %" PRIu64 " bytes, flags %#" PRIx32
                   "%s%s%s\n"
                   "     table %#" PRIx64 ", %" PRIu32 " entries: %" PRIu64 " with data, %" PRIu64
                   " all ones, %" PRIu64 " all zeros\n",
                   i, command_quote(name, sizeof name, b.name), b.type, (uint64_t)1 << b.granularity_bits,
                   b.flags, b.flags & SCOW_BITMAP_IN_USE ? ", in use" : "",
                   b.flags & SCOW_BITMAP_AUTO ? ", auto" : "",
                   b.flags & SCOW_BITMAP_EXTRA_DATA_COMPATIBLE ? ", extra data compatible" : "", b.table_off,
                   b.table_count, count.data, count.ones, count.zeros);
            continue;
        }
        json_t *item = json_object();
        json_put(item, "name", json_text(b.name));
        json_put(item, "type", json_count(b.type));
        json_put(item, "granularity", json_count((uint64_t)1 << b.granularity_bits));
        json_put(item, "flags", json_hex(b.flags));
        json_put(item, "table-offset", json_count(b.table_off));
        json_put(item, "table-size", json_count(b.table_count));
        json_put(item, "data-entries", json_count(count.data));
        json_put(item, "ones-entries", json_count(count.ones));
        json_put(item, "zeros-entries", json_count(count.zeros));
        json_put(item, "extra-data-size", json_count(b.extra_bytes));
        json_stream_item(&dump->items, item);
    }
}
