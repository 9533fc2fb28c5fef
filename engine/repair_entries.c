/* SPDX-License-Identifier: MIT */
/* Corrections of L1 and L2 entries. */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "engine/repair_parts.h"
#include "format/entry.h"
#include "format/header.h"

static bool overlap(uint64_t off, uint64_t bytes, uint64_t other_off, uint64_t other_bytes)
{
    return bytes && other_bytes && off < other_off + other_bytes && other_off < off + bytes;
}

/*
 * Whether an L2 table (own_table: the active L1 table) lies in the same cluster as a structure of another
 * kind. What a damaged entry names as a table can be anything, and a correction would make it worse. Refcount
 * blocks need no look: a second reference to one makes the repair write new ones before it comes here.
 */
static bool lies_on_other(const struct check *c, uint64_t off, uint64_t bytes, bool own_table)
{
    const struct header *const h = c->header;

    if (overlap(off, bytes, 0, c->cluster_bytes) ||
        overlap(off, bytes, h->reftable_off, (uint64_t)c->reftable_count * 8) ||
        overlap(off, bytes, h->snapshots_off, c->snapshot_table_bytes) ||
        (h->has_bitmaps_extension && overlap(off, bytes, h->bitmap_directory_off, h->bitmap_directory_bytes)))
        return true;
    for (uint32_t i = own_table ? 1 : 0; i < c->table_count; i++)
        if (overlap(off, bytes, c->tables[i].off, (uint64_t)c->tables[i].count * 8))
            return true;
    return false;
}

static bool table_writable(const struct check *c, uint64_t table_off)
{
    return check_aligned(c, table_off) && !lies_on_other(c, table_off, c->cluster_bytes, false);
}

static bool entry_error(struct check_worker *w, const char *what, uint64_t off)
{
    struct repair *const r = w->check->repair;

    check_tell(w->check, SCOW_PROBLEM_ERROR, "ERROR %s at offset 0x%" PRIx64 " cannot be repaired: %s", what,
               off, error_message());
    r->errors++;
    return false;
}

static bool make_zero_locked(struct check_worker *w, uint64_t table_off, uint32_t index, uint64_t entry,
                             uint64_t bitmap)
{
    struct check *const c = w->check;
    const uint32_t bytes = c->header->l2_entry_bytes;
    const uint64_t off = table_off + (uint64_t)index * bytes;
    const uint64_t host_off = entry & ENTRY_OFF_MASK;
    uint8_t now[16] = {0};

    if (!table_writable(c, table_off)) {
        error_set(-EUCLEAN, "its table lies on other metadata");
        return entry_error(w, "L2 entry", off);
    }
    if (file_read(c->file, now, bytes, off) < 0)
        return entry_error(w, "L2 entry", off);
    if (get_be64(now) != entry || get_be64(now + 8) != bitmap)
        return true; /* a table that two L1 tables share: the other's thread was here */
    put_be64(now, c->header->extended_l2 ? 0 : ENTRY_ZERO);
    put_be64(now + 8, (bitmap | bitmap << SUBCLUSTERS_PER_CLUSTER) & 0xffffffff00000000ull);
    if (repair_write(c, now, bytes, off) < 0)
        return entry_error(w, "L2 entry", off);
    c->repair->corruptions_fixed++;
    check_tell(c, SCOW_PROBLEM_CORRUPTION,
               "Repairing offset=%" PRIx64
               ": Preallocated cluster is not properly aligned; L2 entry corrupted.",
               host_off);
    return true;
}

bool repair_make_zero(struct check_worker *w, uint64_t table_off, uint32_t index, uint64_t entry,
                      uint64_t bitmap)
{
    struct repair *const r = w->check->repair;
    bool done;

    pthread_mutex_lock(&r->lock);
    done = make_zero_locked(w, table_off, index, entry, bitmap);
    pthread_mutex_unlock(&r->lock);
    return done;
}

/*
 * The refcount that a cluster has when all is mended, as far as this window knows: no more than "above 1" in
 * some cases. False when another window decides or when it cannot be read.
 */
static bool final_refcount(struct check_worker *w, uint64_t cluster, uint64_t *ret_refcount)
{
    struct check *const c = w->check;
    uint64_t reference;
    bool known;

    if (cluster >= check_cluster_end(c)) /* not compared, so it stays */
        return c->pass == 0 && check_refcounts_lookup(w, cluster, ret_refcount) == 0;

    const enum check_stored stored = check_stored_count(w, cluster, &known);
    if (!known || stored == STORED_UNKNOWN)
        return false;
    reference = check_counts_expected(&c->counts, cluster);
    /* Leaks only: what is too low stays. */
    *ret_refcount = c->repair->all ? reference : MIN(reference, (uint64_t)stored);
    return true;
}

/* Whether a flag is wrong; *ret_entry is what is right. */
static bool flag_wrong(struct check_worker *w, uint64_t entry, bool in_data_file, uint64_t *ret_entry,
                       uint64_t *ret_refcount)
{
    *ret_refcount = 1;
    if (in_data_file ? w->check->pass != 0
                     : !final_refcount(w, check_cluster(w->check, entry & ENTRY_OFF_MASK), ret_refcount))
        return false;
    *ret_entry = *ret_refcount == 1 ? entry | ENTRY_COPIED : entry & ~ENTRY_COPIED;
    return *ret_entry != entry;
}

/* Under the lock. */
static void count_flag(struct check *c, bool mended)
{
    if (mended)
        c->repair->corruptions_fixed++;
    else
        c->repair->flags_left++;
}

static int mend_l1_flag(struct check_worker *w, const struct check_l1 *l1)
{
    struct check *const c = w->check;
    const uint64_t off = c->tables[0].off + (uint64_t)l1->index * 8;
    struct map_root *const root = atomic_load_explicit(&c->layer->root, memory_order_relaxed);
    const bool mend = c->repair->mend_flags && !lies_on_other(c, off, 8, true);
    uint64_t right, refcount;
    uint8_t raw[8];
    int ret = 0;

    if (!flag_wrong(w, l1->entry, false, &right, &refcount))
        return 0;
    pthread_mutex_lock(&c->repair->lock);
    check_tell(c, SCOW_PROBLEM_CORRUPTION,
               "%s OFLAG_COPIED L2 cluster: l1_index=%" PRIu32 " l1_entry=%" PRIx64 " refcount=%" PRIu64,
               mend ? "Repairing" : "ERROR", l1->index, l1->entry, refcount);
    if (mend) {
        put_be64(raw, right);
        ret = repair_write(c, raw, sizeof raw, off);
        if (ret == 0 && root && l1->index < root->l1_count)
            atomic_store_explicit(&root->l1[l1->index], right, memory_order_relaxed);
    }
    count_flag(c, mend);
    pthread_mutex_unlock(&c->repair->lock);
    return ret < 0 ? error_prefix(ret, "L1 table") : 0;
}

/* The entries in w->buf. Returns whether one is wrong; with mend they are told and corrected, and *ret_low
 * and *ret_high enclose the bytes that changed. */
static bool walk_flags(struct check_worker *w, uint32_t bytes, bool under_lock, bool mend, uint32_t *ret_low,
                       uint32_t *ret_high)
{
    struct check *const c = w->check;
    const uint32_t entry_bytes = c->header->l2_entry_bytes;
    bool any = false;

    for (uint32_t at = 0; at < bytes; at += entry_bytes) {
        const uint64_t entry = get_be64(w->buf + at);
        const enum entry_kind kind = entry_kind(entry, c->header->extended_l2, c->data_file);
        uint64_t right, refcount;

        if ((kind != ENTRY_NORMAL && kind != ENTRY_ZERO_ALLOCATED) ||
            !flag_wrong(w, entry, c->data_file, &right, &refcount))
            continue;
        if (!under_lock)
            return true;
        check_tell(c, SCOW_PROBLEM_CORRUPTION,
                   "%s OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64,
                   mend ? "Repairing" : "ERROR", entry, refcount);
        count_flag(c, mend);
        put_be64(w->buf + at, right);
        if (!any)
            *ret_low = at;
        *ret_high = at + entry_bytes;
        any = true;
    }
    return any;
}

/* One slice of an L2 table that has wrong flags: once more, alone, in case two L1 entries name the table. */
static int mend_slice(struct check_worker *w, uint64_t table_off, uint64_t off, uint32_t bytes)
{
    struct check *const c = w->check;
    const bool mend = c->repair->mend_flags && table_writable(c, table_off);
    uint32_t low = 0, high = 0;
    int ret;

    pthread_mutex_lock(&c->repair->lock);
    ret = file_read(c->file, w->buf, bytes, off);
    if (ret == 0 && walk_flags(w, bytes, true, mend, &low, &high) && mend) {
        low = (uint32_t)round_down(low, SECTOR_BYTES);
        high = (uint32_t)round_up(high, SECTOR_BYTES);
        ret = repair_write(c, w->buf + low, high - low, off + low);
    }
    pthread_mutex_unlock(&c->repair->lock);
    return ret;
}

static int mend_table(struct check_worker *w, const struct check_l1 *l1)
{
    struct check *const c = w->check;
    const uint32_t slice_bytes = (uint32_t)MIN(c->cluster_bytes, CHECK_BUFFER_BYTES);
    const uint64_t table_off = l1->entry & ENTRY_OFF_MASK;
    uint64_t refcount;
    uint32_t low, high;
    int ret;

    if (!table_off)
        return 0;
    ret = mend_l1_flag(w, l1);
    if (ret < 0)
        return ret;
    /* As QEMU: nothing is said about the flags in a table whose own refcount cannot be read. Where that is
     * new, it is an error by itself. */
    if (check_refcounts_lookup(w, check_cluster(c, table_off), &refcount) < 0) {
        w->tally.errors = MAX(w->tally.errors, 1);
        return 0;
    }
    for (uint64_t at = 0; at < c->cluster_bytes && ret == 0; at += slice_bytes) {
        ret = file_read(c->file, w->buf, slice_bytes, table_off + at);
        if (ret == 0 && walk_flags(w, slice_bytes, false, false, &low, &high))
            ret = mend_slice(w, table_off, table_off + at, slice_bytes);
    }
    return ret < 0 ? error_prefix(ret, "L2 table at offset 0x%" PRIx64, table_off) : 0;
}

int repair_flags_phase(struct check_worker *w)
{
    struct check *const c = w->check;
    struct check_l1 l1;
    uint64_t passed;
    int n, ret = 0;

    w->sector_off = UINT64_MAX; /* refcounts have been written since */
    while (ret == 0 && !atomic_load_explicit(&c->stop, memory_order_relaxed) &&
           (n = check_feed_take(c, 1, &l1, &passed)) != 0)
        ret = n < 0 ? n : mend_table(w, &l1);
    return ret;
}
