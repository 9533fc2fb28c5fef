/* SPDX-License-Identifier: MIT */
/* The mapping's side of the check: L1 and L2 entries. */
#include <errno.h>
#include <inttypes.h>

#include "base/byteorder.h"
#include "engine/check.h"
#include "engine/repair_parts.h"
#include "format/entry.h"
#include "format/header.h"

/* L2 tables that a thread takes at a time: many small ones, one large one. */
#define BATCH_MAX 16u
#define BATCH_TABLE_BYTES (64u << 10)

/* One L2 table on its way. */
struct l2_scan {
    struct check_worker *w;
    uint64_t off; /* of the table */
    bool active;
    bool copied;         /* compare the COPIED flags */
    uint64_t guest;      /* guest cluster of the table's first entry */
    uint64_t guest_end;  /* guest clusters of the disk */
    uint64_t follow_off; /* where the next host cluster would be contiguous; 0: none yet */
};

static int feed_fill(struct check *c, struct check_feed *feed, const struct check_table *table)
{
    const uint32_t count = MIN(CHECK_FEED_ENTRIES, table->count - feed->next);
    int ret;

    ret = file_read(c->file, feed->entries, (size_t)count * 8, table->off + (uint64_t)feed->next * 8);
    if (ret < 0)
        return error_prefix(ret, "L1 table at offset 0x%" PRIx64, table->off);
    feed->buffer_first = feed->next;
    feed->buffer_count = count;
    return 0;
}

void check_feed_reset(struct check *c, uint32_t table_end)
{
    c->feed.table = c->feed.next = c->feed.buffer_first = c->feed.buffer_count = 0;
    c->feed.table_end = table_end;
}

int check_feed_take(struct check *c, uint32_t max, struct check_l1 *work, uint64_t *ret_passed)
{
    struct check_feed *const feed = &c->feed;
    uint32_t n = 0;
    int ret = 0;

    *ret_passed = 0;
    pthread_mutex_lock(&feed->lock);
    while (n < max && feed->table < feed->table_end) {
        const struct check_table *const table = &c->tables[feed->table];

        if (feed->next == table->count) {
            feed->table++;
            feed->next = feed->buffer_first = feed->buffer_count = 0;
            continue;
        }
        if (feed->next == feed->buffer_first + feed->buffer_count) {
            ret = feed_fill(c, feed, table);
            if (ret < 0)
                break;
        }
        const uint64_t entry = get_be64(&feed->entries[feed->next - feed->buffer_first]);
        if (entry)
            work[n++] = (struct check_l1){entry, feed->next, feed->table == 0};
        feed->next++;
        ++*ret_passed;
    }
    pthread_mutex_unlock(&feed->lock);
    return ret < 0 ? ret : (int)n;
}

enum check_stored check_stored_count(struct check_worker *w, uint64_t cluster, bool *ret_known)
{
    struct check *const c = w->check;
    uint64_t refcount;

    *ret_known = cluster > c->clusters ? c->pass == 0 : check_counts_cover(&c->counts, cluster);
    if (!*ret_known)
        return STORED_ZERO;
    if (cluster <= c->clusters)
        return check_counts_stored(&c->counts, cluster);
    /* past the end of the file, but some refcount block may speak of it */
    if (check_refcounts_lookup(w, cluster, &refcount) < 0)
        return STORED_UNKNOWN;
    return refcount == 0 ? STORED_ZERO : refcount == 1 ? STORED_ONE : STORED_MORE;
}

/* The exact count, for a message. */
static uint64_t refcount_to_tell(struct check_worker *w, uint64_t cluster, enum check_stored stored)
{
    uint64_t refcount = stored;

    if (stored == STORED_MORE && check_refcounts_lookup(w, cluster, &refcount) < 0)
        refcount = 2;
    return refcount;
}

/* A repair mends flags after refcounts, and judges them then. */
static bool judge_copied(struct check_worker *w, enum check_stored stored, uint64_t entry)
{
    if ((stored == STORED_ONE) == ((entry & ENTRY_COPIED) != 0))
        return true;
    w->tally.flags++;
    return w->check->repair != NULL;
}

static void check_copied(struct l2_scan *s, uint64_t entry)
{
    struct check *const c = s->w->check;
    const uint64_t cluster = check_cluster(c, entry & ENTRY_OFF_MASK);
    enum check_stored stored = STORED_ONE; /* of every cluster in a data file */
    bool known = check_first_pass(c);

    if (!c->data_file)
        stored = check_stored_count(s->w, cluster, &known);
    if (!known || stored == STORED_UNKNOWN)
        return;
    if (stored == STORED_MORE)
        s->w->tally.shared++;
    if (!judge_copied(s->w, stored, entry))
        check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64, entry,
                     refcount_to_tell(s->w, cluster, stored));
}

static void verify_compressed(struct l2_scan *s, uint32_t index, uint64_t entry, uint64_t bitmap)
{
    const struct compressed_extent extent = entry_compressed(entry, s->w->check->cluster_bits);
    const uint64_t shown = entry & ~ENTRY_COPIED;
    struct check_tally *const t = &s->w->tally;

    if (entry & ENTRY_COPIED)
        check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR: coffset=0x%" PRIx64 ": copied flag must never be set for compressed clusters",
                     extent.off);
    if (s->w->check->data_file) {
        check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR compressed cluster %" PRIu32 " with data file, entry=0x%" PRIx64, index, shown);
        return;
    }
    if (bitmap) {
        check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR compressed cluster %" PRIu32
                     " with non-zero subcluster allocation bitmap, entry=0x%" PRIx64,
                     index, shown);
        return;
    }
    if (!s->active)
        return;
    t->allocated++;
    t->compressed++;
    t->fragmented++; /* by nature: streams share sectors */
    t->compressed_bytes += extent.bytes;
}

/* Returns false when the entry is mended: it has no host cluster any more. */
static bool verify_alignment(struct l2_scan *s, uint32_t index, uint64_t entry, uint64_t bitmap)
{
    struct check *const c = s->w->check;
    const bool data = c->header->extended_l2 ? bitmap_allocated(bitmap) != 0 : !(entry & ENTRY_ZERO);
    const uint64_t off = entry & ENTRY_OFF_MASK;

    if (check_aligned(c, off))
        return true;
    if (!data && c->repair && c->repair->all && repair_make_zero(s->w, s->off, index, entry, bitmap))
        return false;
    check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                 data ? "ERROR offset=%" PRIx64 ": Data cluster is not properly aligned; L2 entry corrupted."
                      : "ERROR offset=%" PRIx64
                        ": Preallocated cluster is not properly aligned; L2 entry corrupted.",
                 off);
    return true;
}

static bool verify_host_cluster(struct l2_scan *s, uint32_t index, uint64_t entry, uint64_t bitmap)
{
    struct check *const c = s->w->check;
    const uint64_t off = entry & ENTRY_OFF_MASK;

    if (bitmap_allocated(bitmap) & bitmap_zero(bitmap))
        check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR offset=%" PRIx64 ": Allocated cluster has corrupted subcluster allocation bitmap",
                     off);
    if (!verify_alignment(s, index, entry, bitmap))
        return false;
    if (!s->active)
        return true;
    s->w->tally.allocated++;
    if (s->follow_off && off != s->follow_off)
        s->w->tally.fragmented++;
    s->follow_off = off + c->cluster_bytes;
    return true;
}

static void count_kind(struct check_tally *t, enum entry_kind kind, uint64_t bitmap)
{
    switch (kind) {
    case ENTRY_UNALLOCATED:
        break;
    case ENTRY_ZERO_PLAIN:
        t->zero_plain++;
        break;
    case ENTRY_ZERO_ALLOCATED:
        t->zero_allocated++;
        break;
    case ENTRY_NORMAL:
        t->standard++;
        break;
    case ENTRY_IS_COMPRESSED:
        t->compressed_guest++;
        return; /* a bitmap is a corruption here */
    }
    t->subclusters_allocated += (unsigned)__builtin_popcount(bitmap_allocated(bitmap));
    t->subclusters_zero += (unsigned)__builtin_popcount(bitmap_zero(bitmap));
}

/* Is the entry itself as it should be? Returns false when it was mended and refers to nothing any more. */
static bool verify_entry(struct l2_scan *s, uint32_t index, uint64_t entry, uint64_t bitmap,
                         enum entry_kind kind)
{
    if (s->active && s->guest + index < s->guest_end)
        count_kind(&s->w->tally, kind, bitmap);
    if (kind == ENTRY_IS_COMPRESSED) {
        verify_compressed(s, index, entry, bitmap);
        return true;
    }
    if (entry & L2_RESERVED_MASK)
        check_report(s->w, SCOW_PROBLEM_CORRUPTION, "ERROR found l2 entry with reserved bits set: %" PRIx64,
                     entry);
    if (kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOCATED)
        return verify_host_cluster(s, index, entry, bitmap);
    if (kind == ENTRY_UNALLOCATED && bitmap_allocated(bitmap))
        check_report(s->w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR: Unallocated cluster has non-zero subcluster allocation map");
    return true;
}

static void scan_entry(struct l2_scan *s, uint32_t index, uint64_t entry, uint64_t bitmap)
{
    struct check *const c = s->w->check;
    const enum entry_kind kind = entry_kind(entry, c->header->extended_l2, c->data_file);

    if (check_first_pass(c) && !verify_entry(s, index, entry, bitmap, kind))
        return;
    if (kind == ENTRY_IS_COMPRESSED && !c->data_file && !bitmap) {
        const struct compressed_extent extent = entry_compressed(entry, c->cluster_bits);

        check_region(s->w, extent.off, extent.bytes, false);
    } else if (kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOCATED) {
        if (!c->data_file)
            check_region(s->w, entry & ENTRY_OFF_MASK, c->cluster_bytes, false);
        if (s->copied)
            check_copied(s, entry);
    }
}

static int scan_l2_table(struct l2_scan *s)
{
    struct check *const c = s->w->check;
    const uint32_t entry_bytes = c->header->l2_entry_bytes;
    const uint32_t slice_bytes = (uint32_t)MIN(c->cluster_bytes, CHECK_BUFFER_BYTES);
    uint32_t index = 0;

    for (uint64_t at = 0; at < c->cluster_bytes; at += slice_bytes) {
        const uint8_t *p = s->w->buf;
        const uint8_t *const end = p + slice_bytes;
        const int ret = file_read(c->file, s->w->buf, slice_bytes, s->off + at);

        if (ret < 0)
            return error_prefix(ret, "L2 table at offset 0x%" PRIx64, s->off);
        for (; p < end; p += entry_bytes, index++) {
            const uint64_t entry = get_be64(p);
            const uint64_t bitmap = entry_bytes == 16 ? get_be64(p + 8) : 0;

            if (entry | bitmap)
                scan_entry(s, index, entry, bitmap);
        }
    }
    return 0;
}

/* The COPIED flag of an active L1 entry. Returns whether those of its L2 table are to be checked too. */
static bool check_l1_copied(struct check_worker *w, const struct check_l1 *l1)
{
    struct check *const c = w->check;
    const uint64_t cluster = check_cluster(c, l1->entry & ENTRY_OFF_MASK);
    enum check_stored stored;
    uint64_t refcount;
    bool known;

    stored = check_stored_count(w, cluster, &known);
    /* Another pass judges the flag, but whether the count can be read decides about the table in every pass.
     */
    if (!known)
        return check_refcounts_lookup(w, cluster, &refcount) == 0;
    if (stored == STORED_UNKNOWN)
        return false;
    if (!judge_copied(w, stored, l1->entry))
        check_report(w, SCOW_PROBLEM_CORRUPTION,
                     "ERROR OFLAG_COPIED L2 cluster: l1_index=%" PRIu32 " l1_entry=%" PRIx64
                     " refcount=%" PRIu64,
                     l1->index, l1->entry, refcount_to_tell(w, cluster, stored));
    return true;
}

static int scan_l1_entry(struct check_worker *w, const struct check_l1 *l1)
{
    struct check *const c = w->check;
    const uint64_t l2_off = l1->entry & ENTRY_OFF_MASK;
    struct l2_scan scan = {
        .w = w,
        .off = l2_off,
        .active = l1->active,
        .guest = (uint64_t)l1->index << c->header->l2_entries_bits,
        .guest_end = div_round_up(round_down(c->header->virtual_bytes, SECTOR_BYTES), c->cluster_bytes),
    };

    if (check_first_pass(c)) {
        if (l1->entry & L1_RESERVED_MASK)
            check_report(w, SCOW_PROBLEM_CORRUPTION, "ERROR found L1 entry with reserved bits set: %" PRIx64,
                         l1->entry);
        if (!check_aligned(c, l2_off))
            check_report(w, SCOW_PROBLEM_CORRUPTION,
                         "ERROR l2_offset=%" PRIx64 ": Table is not cluster aligned; L1 entry corrupted",
                         l2_off);
        w->tally.l2_tables += l1->active && l2_off;
    }
    check_region(w, l2_off, c->cluster_bytes, true);
    /* Snapshots' flags mean nothing; QEMU leaves an entry without an offset out too. */
    scan.copied = !c->quiet && l1->active && l2_off && check_l1_copied(w, l1);
    return scan_l2_table(&scan);
}

int check_tables_phase(struct check_worker *w)
{
    struct check *const c = w->check;
    const uint32_t batch = (uint32_t)MIN(BATCH_MAX, MAX(BATCH_TABLE_BYTES / c->cluster_bytes, 1));
    struct check_l1 work[BATCH_MAX];
    uint64_t passed;
    int n, ret = 0;

    while (!atomic_load_explicit(&c->stop, memory_order_relaxed) &&
           (n = check_feed_take(c, batch, work, &passed)) != 0) {
        if (n < 0)
            return n;
        for (int i = 0; i < n && ret == 0; i++)
            ret = scan_l1_entry(w, &work[i]);
        if (ret == 0)
            ret = check_progress(c, passed);
        if (ret < 0)
            return ret;
    }
    return 0;
}
