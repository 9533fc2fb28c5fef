/* SPDX-License-Identifier: MIT */
/* The refcounts' side of the check: refcount table and blocks. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "engine/check.h"
#include "engine/repair_parts.h"
#include "format/entry.h"
#include "format/header.h"
#include "format/refcount.h"

int check_refcounts_load_table(struct check *c)
{
    const struct header *const h = c->header;
    const size_t bytes = (size_t)h->reftable_clusters << c->cluster_bits;
    int ret;

    free(c->reftable);
    c->refblock_shift = c->cluster_bits + 3 - h->refcount_order;
    c->reftable_count = (uint32_t)(bytes / 8);
    c->reftable = malloc(MAX(bytes, 8));
    if (!c->reftable)
        return error_set(-ENOMEM, "out of memory");
    ret = file_read(c->file, c->reftable, bytes, h->reftable_off);
    if (ret < 0)
        return error_prefix(ret, "refcount table");
    for (uint32_t i = 0; i < c->reftable_count; i++)
        c->reftable[i] = get_be64(&c->reftable[i]);
    return 0;
}

/* Where the refcount block of a cluster is; 0: it has none. -EIO when the table's entry cannot be right. */
static int refblock_off(const struct check *c, uint64_t cluster, uint64_t *ret_off)
{
    const uint64_t index = cluster >> c->refblock_shift;
    const uint64_t off = index < c->reftable_count ? c->reftable[index] & REFTABLE_OFF_MASK : 0;

    if (!check_aligned(c, off) || off > INT64_MAX - c->cluster_bytes)
        return -EIO;
    *ret_off = off;
    return 0;
}

int check_refcounts_lookup(struct check_worker *w, uint64_t cluster, uint64_t *ret_refcount)
{
    struct check *const c = w->check;
    const uint32_t order = c->header->refcount_order;
    const uint32_t per_sector = SECTOR_BYTES * 8 >> order;
    const uint64_t index = cluster & ((1ull << c->refblock_shift) - 1);
    uint64_t off;
    int ret = refblock_off(c, cluster, &off);

    if (ret < 0)
        return ret;
    if (!off) {
        *ret_refcount = 0;
        return 0;
    }
    off += index / per_sector * SECTOR_BYTES;
    if (w->sector_off != off) {
        w->sector_off = UINT64_MAX;
        ret = file_read(c->file, w->sector, SECTOR_BYTES, off);
        if (ret < 0)
            return ret;
        w->sector_off = off;
    }
    *ret_refcount = refcount_get(w->sector, order, (uint32_t)(index % per_sector));
    return 0;
}

/* Claims a unit of this window; false when there are none left. */
static bool take_unit(struct check *c, uint64_t *ret_unit)
{
    if (atomic_load_explicit(&c->stop, memory_order_relaxed))
        return false;
    *ret_unit = atomic_fetch_add_explicit(&c->next_unit, 1, memory_order_relaxed);
    return *ret_unit < c->unit_count;
}

int check_refcounts_read_unit(struct check_worker *w, uint64_t unit, uint64_t *ret_first, uint64_t *ret_off)
{
    struct check *const c = w->check;
    const uint64_t first = c->counts.first + unit * c->unit_clusters;
    const uint64_t within = first & ((1ull << c->refblock_shift) - 1);
    const uint32_t order = c->header->refcount_order;
    uint64_t off;
    int ret;

    *ret_first = first;
    ret = refblock_off(c, first, &off);
    if (ret < 0)
        return ret;
    if (!off)
        return 0;
    *ret_off = off + (within << order >> 3);
    ret = file_read(c->file, w->buf, (size_t)(c->unit_clusters << order >> 3), *ret_off);
    return ret < 0 ? ret : 1;
}

uint32_t check_unit_count(const struct check *c, uint64_t first)
{
    const uint64_t end = check_cluster_end(c);

    return (uint32_t)(first < end ? MIN(end - first, c->unit_clusters) : 0);
}

int check_refcounts_load_phase(struct check_worker *w)
{
    struct check *const c = w->check;
    const uint32_t order = c->header->refcount_order;
    uint64_t unit, first, off;

    while (take_unit(c, &unit)) {
        const int found = check_refcounts_read_unit(w, unit, &first, &off);

        c->unit_state[unit] = found < 0 ? UNIT_UNREADABLE : UNIT_SAME;
        for (uint32_t i = 0; found && i < c->unit_clusters; i++) {
            const uint64_t refcount = found < 0 ? 0 : refcount_get(w->buf, order, i);
            const enum check_stored stored = found < 0       ? STORED_UNKNOWN
                                             : refcount == 1 ? STORED_ONE
                                             : refcount      ? STORED_MORE
                                                             : STORED_ZERO;

            if (stored != STORED_ZERO)
                check_counts_set_stored(&c->counts, first + i, stored);
        }
        const int ret = check_progress(c, 1);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* What could not be read in the first place, when flags were looked at, is not trusted when it can be now. */
static int read_unit_again(struct check_worker *w, uint64_t unit, uint64_t *ret_first)
{
    uint64_t off;
    const int found = check_refcounts_read_unit(w, unit, ret_first, &off);

    return found >= 0 && w->check->unit_state[unit] == UNIT_UNREADABLE ? -EIO : found;
}

void check_refcounts_blocks(struct check_worker *w)
{
    struct check *const c = w->check;
    const bool tell = check_first_pass(c);

    for (uint32_t i = 0; i < c->reftable_count; i++) {
        const uint64_t off = c->reftable[i] & REFTABLE_OFF_MASK;
        const uint64_t cluster = check_cluster(c, off);
        const char *wrong = NULL;
        bool damaged = true;

        if (c->reftable[i] & REFTABLE_RESERVED_MASK)
            wrong = "ERROR refcount table entry %" PRIu32 " has reserved bits set";
        else if (!check_aligned(c, off))
            wrong = "ERROR refcount block %" PRIu32 " is not cluster aligned; refcount table entry corrupted";
        else if (cluster >= check_cluster_end(c)) {
            wrong = "ERROR refcount block %" PRIu32 " is outside image";
            damaged = c->repair && c->repair->all; /* otherwise it has nothing that could be lowered */
        }
        if (wrong && tell)
            check_report(w, SCOW_PROBLEM_CORRUPTION, wrong, i);
        c->damaged |= wrong && damaged;
        if (wrong || !off)
            continue;

        check_region(w, off, c->cluster_bytes, true);
        if (!check_counts_cover(&c->counts, cluster))
            continue;
        const uint64_t refcount = check_counts_expected(&c->counts, cluster);
        if (refcount == 1)
            continue;
        c->damaged = true;
        check_report(w, SCOW_PROBLEM_CORRUPTION, "ERROR refcount block %" PRIu32 " refcount=%" PRIu64, i,
                     refcount);
    }
}

/* One cluster whose counts are there: true when they differ. */
static bool compare_cluster(struct check_worker *w, uint64_t cluster, uint64_t refcount, uint64_t reference)
{
    struct check_tally *const t = &w->tally;

    if (refcount || reference)
        t->last_cluster = MAX(t->last_cluster, cluster);
    t->host_clusters += refcount != 0;
    t->corruptions += refcount < reference;
    t->leaks += refcount > reference;
    t->low += refcount < reference;
    t->low_from_zero += refcount < reference && !refcount;
    t->ones_changed += reference && (refcount == 1) != (reference == 1);
    return refcount != reference;
}

int check_refcounts_compare_phase(struct check_worker *w)
{
    struct check *const c = w->check;
    const uint32_t order = c->header->refcount_order;
    uint64_t unit, first;

    while (take_unit(c, &unit)) {
        const int found = read_unit_again(w, unit, &first);
        const uint32_t n = check_unit_count(c, first);
        const bool used =
            (!found || c->repair) && !check_counts_none_expected(&c->counts, first, c->unit_clusters);
        bool differs = false;

        if (used && c->repair)
            repair_block_used(c->repair, first >> c->refblock_shift);
        w->tally.blocks_missing += found == 0 && used;
        if (found < 0)
            w->tally.errors += n;
        else if (found || used)
            for (uint32_t i = 0; i < n; i++)
                differs |= compare_cluster(w, first + i, found ? refcount_get(w->buf, order, i) : 0,
                                           check_counts_expected(&c->counts, first + i));
        c->unit_state[unit] = found < 0 ? UNIT_UNREADABLE : differs ? UNIT_DIFFERS : UNIT_SAME;

        const int ret = check_progress(c, 1);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void tell_unit(struct check_worker *w, uint64_t unit)
{
    struct check *const c = w->check;
    uint64_t first;
    const int found = read_unit_again(w, unit, &first);

    for (uint64_t i = first; i < first + check_unit_count(c, first); i++) {
        if (found < 0) {
            check_tell(c, SCOW_PROBLEM_ERROR, "Can't get refcount for cluster %" PRIu64 ": %s", i,
                       strerror(-found));
            continue;
        }
        const uint64_t refcount =
            found ? refcount_get(w->buf, c->header->refcount_order, (uint32_t)(i - first)) : 0;
        const uint64_t reference = check_counts_expected(&c->counts, i);

        if (refcount < reference)
            check_tell(c, SCOW_PROBLEM_CORRUPTION,
                       "ERROR cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64, i, refcount,
                       reference);
        else if (refcount > reference)
            check_tell(c, SCOW_PROBLEM_LEAK,
                       "Leaked cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64, i, refcount,
                       reference);
    }
}

/* Threads finish units in any order; a reader wants the clusters in theirs. */
void check_refcounts_tell(struct check_worker *w)
{
    struct check *const c = w->check;

    if (!c->options.problem || c->quiet)
        return;
    for (uint64_t unit = 0; unit < c->unit_count; unit++)
        if (c->unit_state[unit] != UNIT_SAME)
            tell_unit(w, unit);
}
