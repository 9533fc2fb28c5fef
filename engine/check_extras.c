/* SPDX-License-Identifier: MIT */
/* The check of what is neither mapping nor refcounts: snapshot table, bitmaps, encryption header. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "engine/check.h"
#include "engine/repair_parts.h"
#include "format/bitmap_directory.h"
#include "format/header.h"
#include "format/snapshot_table.h"

/* A table of entries of differing length, read through a window that holds any one of them. */
struct entry_reader {
    struct check_worker *w;
    uint64_t off; /* in the file, of the window's first byte */
    uint64_t end;
    uint32_t bytes; /* in the window */
};

#define SNAPSHOT_ENTRY_BYTES_MAX (SNAPSHOT_HEAD_BYTES + SNAPSHOT_EXTRA_BYTES_MAX + 2 * UINT16_MAX)
static_assert(SNAPSHOT_ENTRY_BYTES_MAX <= CHECK_BUFFER_BYTES, "an entry fits");
static_assert(BITMAP_HEAD_BYTES + UINT16_MAX <= CHECK_BUFFER_BYTES, "an entry fits");

static int reader_fill(struct entry_reader *r, uint64_t off)
{
    r->off = off;
    r->bytes = (uint32_t)MIN(CHECK_BUFFER_BYTES, r->end - off);
    return file_read(r->w->check->file, r->w->buf, r->bytes, off);
}

static void take_snapshot(struct check_worker *w, uint32_t index, const struct snapshot_entry *e)
{
    struct check *const c = w->check;
    char id[80], name[160];
    const bool aligned = check_aligned(c, e->l1_off);

    if (c->header->version >= 3 && e->extra_bytes < SNAPSHOT_EXTRA_BYTES_V3) {
        c->snapshots_incomplete++;
        check_report(w, SCOW_PROBLEM_CORRUPTION,
                     c->repair && c->repair->all ? "Repairing snapshot table entry %" PRIu32 " is incomplete"
                                                 : "ERROR snapshot table entry %" PRIu32 " is incomplete",
                     index);
    }
    if (aligned && e->l1_count <= L1_BYTES_MAX / 8) {
        c->tables[c->table_count++] = (struct check_table){e->l1_off, e->l1_count};
        return;
    }
    error_quote(id, sizeof id, e->id, e->id_bytes);
    error_quote(name, sizeof name, e->name, e->name_bytes);
    if (!aligned)
        check_report(w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR snapshot %s (%s) l1_offset=0x%" PRIx64
                     ": L1 table is not cluster aligned; snapshot table entry corrupted",
                     id, name, e->l1_off);
    else
        check_report(w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR snapshot %s (%s) l1_size=0x%" PRIx32
                     ": L1 table is too large; snapshot table entry corrupted",
                     id, name, e->l1_count);
}

/* One entry at off; *ret_bytes without padding. */
static int read_snapshot(struct entry_reader *r, uint64_t off, struct snapshot_entry *ret,
                         uint32_t *ret_bytes)
{
    const struct check *const c = r->w->check;
    int64_t n = 0;
    int err;

    for (int attempt = 0; attempt < 2 && n == 0; attempt++) {
        if (attempt || off >= r->off + r->bytes) {
            err = reader_fill(r, off);
            if (err < 0)
                return error_prefix(err, "snapshot table");
        }
        n = snapshot_entry_parse(r->w->buf + (off - r->off), r->bytes - (size_t)(off - r->off), off,
                                 c->header->virtual_bytes, ret);
    }
    if (n < 0)
        return (int)n;
    if (n == 0) /* end is far enough away for every table that is not too large */
        return error_set(-EFBIG, "snapshot table: too large at offset 0x%" PRIx64, off);
    *ret_bytes = SNAPSHOT_HEAD_BYTES + ret->extra_bytes + ret->id_bytes + ret->name_bytes;
    return 0;
}

int check_snapshots_read(struct check_worker *w)
{
    struct check *const c = w->check;
    const struct header *const h = c->header;
    struct entry_reader r = {
        .w = w,
        .off = h->snapshots_off,
        .end = h->snapshots_off + SNAPSHOT_TABLE_BYTES_MAX + SNAPSHOT_ENTRY_BYTES_MAX,
    };
    uint64_t off = h->snapshots_off;

    free(c->tables);
    c->table_count = c->snapshots_incomplete = 0;
    c->snapshot_table_bytes = 0;
    c->tables = calloc(h->snapshot_count + 1, sizeof *c->tables);
    if (!c->tables)
        return error_set(-ENOMEM, "out of memory");
    c->tables[c->table_count++] = (struct check_table){h->l1_off, h->l1_count};

    if (c->data_file && h->snapshot_count)
        check_report(w, SCOW_PROBLEM_CORRUPTION, "ERROR %" PRIu32 " snapshots in image with data file",
                     h->snapshot_count);
    for (uint32_t i = 0; i < h->snapshot_count; i++) {
        struct snapshot_entry e;
        uint32_t bytes = 0;
        const int ret = read_snapshot(&r, off, &e, &bytes);

        if (ret < 0)
            return ret;
        take_snapshot(w, i, &e);
        c->snapshot_table_bytes = off + bytes - h->snapshots_off;
        if (c->snapshot_table_bytes > SNAPSHOT_TABLE_BYTES_MAX)
            return error_set(-EFBIG, "snapshot table: more than the limit of %u bytes",
                             SNAPSHOT_TABLE_BYTES_MAX);
        off += round_up(bytes, 8);
    }
    return 0;
}

void check_crypto(struct check_worker *w)
{
    const struct check *const c = w->check;
    uint32_t cursor = c->header->extensions.off;
    struct extension e;

    while (extension_next(c->header, c->cluster0, &cursor, &e))
        if (e.type == EXTENSION_CRYPTO && e.bytes == 16)
            check_region(w, get_be64(c->cluster0 + e.data_off), get_be64(c->cluster0 + e.data_off + 8), true);
}

/* Clusters that a bitmap of this granularity needs for the whole disk. */
static uint64_t bitmap_clusters_needed(const struct check *c, uint32_t granularity_bits)
{
    const uint64_t disk_bytes = round_down(c->header->virtual_bytes, SECTOR_BYTES);
    const uint64_t words = div_round_up(div_round_up(disk_bytes, 1ull << granularity_bits), 64);

    return div_round_up(words * 8, c->cluster_bytes);
}

/* What QEMU accepts of an entry (block/qcow2-bitmap.c, check_dir_entry() and load_bitmap_data()). */
static bool bitmap_acceptable(const struct check *c, const struct bitmap_entry *e)
{
    const bool in_use = e->flags & SCOW_BITMAP_IN_USE;

    if (!e->table_count || e->extra_bytes || e->type != 1 ||
        (e->flags & ~(SCOW_BITMAP_IN_USE | SCOW_BITMAP_AUTO)) || e->granularity_bits < 9 ||
        e->granularity_bits > 31 || (uint64_t)e->table_count << c->cluster_bits > BITMAP_DATA_BYTES_MAX)
        return false;
    /* one that is in use may be of another size: the disk may have been resized since */
    return in_use || e->table_count == bitmap_clusters_needed(c, e->granularity_bits);
}

static bool bitmap_table_entry_valid(const struct check *c, uint64_t entry)
{
    const uint64_t off = entry & BITMAP_TABLE_OFF_MASK;

    return !(entry & BITMAP_TABLE_RESERVED_MASK) &&
           (!off || (!(entry & BITMAP_TABLE_ALL_ONES) && check_aligned(c, off)));
}

static int bitmap_wrong(struct check_worker *w, uint64_t off)
{
    if (check_first_pass(w->check))
        check_report(w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR bitmap directory or table at offset 0x%" PRIx64 " is invalid", off);
    return error_set(-EINVAL, "bitmap directory or table at offset 0x%" PRIx64 " is invalid", off);
}

static int check_bitmap_table(struct check_worker *w, const struct bitmap_entry *e)
{
    struct check *const c = w->check;
    uint64_t part[SECTOR_BYTES];

    check_region(w, e->table_off, (uint64_t)e->table_count * 8, true);
    for (uint32_t i = 0; i < e->table_count; i += (uint32_t)ARRAY_COUNT(part)) {
        const uint32_t n = MIN((uint32_t)ARRAY_COUNT(part), e->table_count - i);
        int ret = check_progress(c, 1);

        if (ret < 0)
            return ret;
        ret = file_read(c->file, part, (size_t)n * 8, e->table_off + i * 8ull);
        if (ret < 0)
            return error_prefix(ret, "bitmap table");
        for (uint32_t k = 0; k < n; k++) {
            const uint64_t entry = get_be64(&part[k]);

            if (!bitmap_table_entry_valid(c, entry))
                return bitmap_wrong(w, e->table_off + (i + k) * 8ull);
            if (entry & BITMAP_TABLE_OFF_MASK)
                check_region(w, entry & BITMAP_TABLE_OFF_MASK, c->cluster_bytes, true);
        }
    }
    return 0;
}

int check_bitmaps(struct check_worker *w)
{
    struct check *const c = w->check;
    const struct header *const h = c->header;
    const uint64_t end = h->bitmap_directory_off + h->bitmap_directory_bytes;
    struct entry_reader r = {.w = w, .end = end};
    uint64_t off = h->bitmap_directory_off;
    uint32_t count = 0;

    if (!h->has_bitmaps_extension)
        return 0;
    check_region(w, off, h->bitmap_directory_bytes, true);
    for (; off < end; count++) {
        struct bitmap_entry e;
        int64_t n = 0;
        int ret;

        for (int attempt = 0; attempt < 2 && n == 0; attempt++) {
            if (attempt || off >= r.off + r.bytes) {
                ret = reader_fill(&r, off);
                if (ret < 0)
                    return error_prefix(ret, "bitmap directory");
            }
            n = bitmap_entry_decode(w->buf + (off - r.off), r.bytes - (size_t)(off - r.off), off,
                                    (uint32_t)c->cluster_bytes, &e);
        }
        if (n <= 0 || (uint64_t)n > end - off || count == h->bitmap_count || !bitmap_acceptable(c, &e))
            return bitmap_wrong(w, off);
        ret = check_bitmap_table(w, &e);
        if (ret < 0)
            return ret;
        off += (uint64_t)n;
    }
    return count == h->bitmap_count ? 0 : bitmap_wrong(w, h->bitmap_directory_off);
}
