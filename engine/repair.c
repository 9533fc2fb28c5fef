/* SPDX-License-Identifier: MIT */
#include "engine/repair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "engine/image.h"
#include "engine/repair_parts.h"
#include "format/entry.h"
#include "format/header.h"

int repair_write(struct check *c, const void *buf, size_t bytes, uint64_t off)
{
    const int ret = file_write(c->file, buf, bytes, off);

    if (ret == 0)
        c->repair->unsynced++;
    return ret;
}

int repair_sync(struct check *c)
{
    const int ret = c->repair->unsynced ? file_sync(c->file) : 0;

    if (ret == 0)
        c->repair->unsynced = 0;
    return ret;
}

int repair_write_header(struct check *c, const void *buf, uint32_t bytes, uint32_t off)
{
    const int ret = repair_write(c, buf, bytes, off);

    invariant(off + bytes <= SECTOR_BYTES);
    if (ret < 0)
        return error_prefix(ret, "header");
    memcpy(c->layer->cluster0 + off, buf, bytes);
    return 0;
}

/* ---- diagnosis ---- */

static int extend_file(struct check *c, uint64_t bytes)
{
    const int ret = file_truncate(c->file, bytes);

    if (ret < 0)
        return ret;
    c->repair->unsynced++;
    c->file_bytes = bytes;
    c->clusters = check_cluster(c, bytes);
    return 0;
}

/*
 * A file that was cut off may lack refcount blocks: it is extended to where they are, and they hold zeros. No
 * farther than what refcounts could describe.
 */
static int extend_for_blocks(struct check *c)
{
    const uint64_t clusters_max = (uint64_t)c->reftable_count << c->refblock_shift;

    for (uint32_t i = 0; i < c->reftable_count; i++) {
        const uint64_t off = c->reftable[i] & REFTABLE_OFF_MASK;

        if ((c->reftable[i] & REFTABLE_RESERVED_MASK) || !check_aligned(c, off) ||
            check_cluster(c, off) < c->clusters || check_cluster(c, off) >= clusters_max ||
            c->file->block_device)
            continue; /* nothing to do, or the block counts as damaged */
        check_tell(c, SCOW_PROBLEM_CORRUPTION, "Repairing refcount block %" PRIu32 " is outside image", i);
        const int ret = extend_file(c, off + c->cluster_bytes);
        if (ret < 0)
            return ret;
        c->repair->corruptions_fixed++;
    }
    return 0;
}

static int diagnose_window(struct check *c)
{
    int ret = check_count(c);

    if (ret == 0)
        ret = check_compare(c);
    if (ret == 0 && c->repair->all)
        repair_room_look(c);
    return ret;
}

static void reset_tallies(struct check *c)
{
    for (uint32_t i = 0; i < c->options.threads; i++) {
        c->workers[i].tally = (struct check_tally){0};
        c->workers[i].sector_off = UINT64_MAX;
    }
}

static int diagnose(struct check *c, struct check_tally *ret_tally)
{
    int ret;

    reset_tallies(c);
    c->damaged = false;
    atomic_store_explicit(&c->grown, false, memory_order_relaxed);
    atomic_store_explicit(&c->dangling_first, UINT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&c->dangling_end, 0, memory_order_relaxed);
    ret = check_load(c);
    if (ret == 0 && c->repair->all) {
        ret = extend_for_blocks(c);
        if (ret == 0)
            ret = repair_room_reset(c);
    }
    if (ret == 0)
        ret = check_windows(c, c->clusters + 1, diagnose_window);
    *ret_tally = check_sum(c);
    return ret;
}

/* ---- mending ---- */

static int mend_window(struct check *c)
{
    struct repair *const r = c->repair;
    int ret = 0;

    if (r->all)
        ret = repair_raise(c);
    if (ret == 0)
        ret = repair_sync(c);
    if (ret == 0 && r->look_at_flags) {
        check_feed_reset(c, 1);
        ret = check_run(c, repair_flags_phase);
    }
    if (ret == 0)
        ret = repair_sync(c);
    if (ret == 0)
        ret = repair_lower(c);
    if (ret == 0)
        ret = repair_sync(c);
    if (ret == 0 && r->punch)
        repair_punch(c);
    return ret;
}

static int count_and_mend_window(struct check *c)
{
    int ret;

    c->quiet = true;
    ret = check_count(c);
    if (ret == 0)
        ret = check_compare(c);
    c->quiet = false;
    return ret < 0 ? ret : mend_window(c);
}

static int mend(struct check *c, struct check_tally *t)
{
    struct repair *const r = c->repair;
    int ret;

    r->look_at_flags = t->flags || t->ones_changed;
    r->mend_flags = r->all || (!t->corruptions && !t->errors);
    if (!t->leaks && !(r->all && t->low) && !r->look_at_flags)
        return 0;
    reset_tallies(c);
    if (c->pass_count == 1) {
        c->pass = 0;
        ret = mend_window(c);
    } else {
        ret = check_windows(c, c->clusters + 1, count_and_mend_window);
    }
    if (ret < 0)
        return ret;
    t->errors = MAX(t->errors, check_sum(c).errors); /* refcounts that could be read before */
    r->leaks_fixed += t->leaks;
    t->leaks = 0;
    if (r->all) {
        r->corruptions_fixed += t->low;
        t->corruptions -= t->low;
    }
    t->corruptions += r->flags_left;
    return 0;
}

/* The same problems need not be told twice. */
static int diagnose_again(struct check *c, struct check_tally *t)
{
    scow_problem_fn *const problem = c->options.problem;
    int ret;

    c->options.problem = NULL;
    c->options.progress = NULL;
    ret = diagnose(c, t);
    c->options.problem = problem;
    return ret;
}

static int rebuild(struct check *c, struct check_tally *t)
{
    const struct check_tally before = *t;
    uint64_t bytes;
    int ret = 0;

    check_tell(c, SCOW_PROBLEM_CORRUPTION, "Rebuilding refcount structure");
    /* What lies past the end of the file reads as zeros, with or without the file being that long. */
    if (!repair_room(c, &bytes) && bytes) {
        ret = extend_file(c, bytes);
        if (ret == 0)
            ret = diagnose_again(c, t);
    }
    if (ret == 0)
        ret = repair_rebuild(c);
    if (ret == 0)
        ret = diagnose_again(c, t);
    if (ret < 0)
        return ret;
    if (c->damaged || t->blocks_missing)
        return error_set(-EIO, "the new refcounts are damaged again: entries overlap them");
    if (before.corruptions > t->corruptions)
        c->repair->corruptions_fixed += before.corruptions - t->corruptions;
    if (before.leaks > t->leaks)
        c->repair->leaks_fixed += before.leaks - t->leaks;
    return 0;
}

static int clear_bits(struct check *c)
{
    struct header *const h = &c->layer->header;
    const uint64_t incompatible = h->incompatible & ~(INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    uint8_t raw[8];
    int ret;

    if (incompatible == h->incompatible)
        return 0;
    put_be64(raw, incompatible);
    ret = repair_write_header(c, raw, sizeof raw, offsetof(struct header_disk, incompatible));
    if (ret == 0)
        ret = repair_sync(c);
    if (ret == 0)
        h->incompatible = incompatible;
    return ret;
}

static int run(struct check *c, struct check_tally *t)
{
    struct repair *const r = c->repair;
    int ret = diagnose(c, t);

    if (ret < 0)
        return ret;
    if (r->recover && (t->corruptions || t->errors))
        return 0;
    if (!r->all && (c->damaged || t->low_from_zero))
        return error_set(-EIO, "%s: not only leaks: the refcounts need a full repair", file_name(c->file));
    if (r->all && (c->damaged || t->blocks_missing || c->snapshots_incomplete))
        ret = rebuild(c, t);
    if (ret == 0)
        ret = mend(c, t);
    t->errors += r->errors;
    if (ret == 0)
        ret = repair_sync(c);
    if (ret == 0 && !t->errors && !t->corruptions)
        ret = clear_bits(c);
    return ret;
}

int image_repair(struct scow_image *image, uint32_t flags, const struct scow_check_options *options,
                 struct scow_check_result *ret)
{
    struct layer *const layer = image_top(image);
    struct repair repair = {
        .all = flags & SCOW_CHECK_REPAIR_ALL,
        .recover = flags & REPAIR_RECOVER,
        .punch = (flags & REPAIR_RECOVER) && !(image->options.flags & SCOW_OPEN_NO_PUNCH),
    };
    struct scow_check_options o;
    struct check_tally t = {0};
    struct check *c;
    int r = check_take_options(options, &o);

    if (r == 0 && !layer->file->writable)
        r = error_set(-EROFS, "%s: not open for writing", file_name(layer->file));
    if (r == 0)
        r = check_begin(image, &o, &c);
    if (r < 0)
        return r;
    pthread_mutex_init(&repair.lock, NULL);
    c->repair = &repair;
    r = run(c, &t);
    if (r == 0) {
        *ret = check_result(c, &t);
        ret->size = sizeof *ret;
        ret->corruptions_fixed = repair.corruptions_fixed;
        ret->leaks_fixed = repair.leaks_fixed;
    }
    layer->file->bytes = c->file->bytes; /* the check may have extended it through its own descriptor */
    free(repair.block_used);
    check_end(c);
    pthread_mutex_destroy(&repair.lock);
    return r;
}
