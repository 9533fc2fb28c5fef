/* SPDX-License-Identifier: MIT */
/* Putting refcounts right in place, in the window at hand. */
#include <inttypes.h>

#include "base/checked.h"
#include "engine/repair_parts.h"
#include "format/header.h"
#include "format/refcount.h"

/* Corrects the counts of a unit in w->buf. Returns how many; the first and the last of them. */
static uint32_t correct_unit(struct check_worker *w, uint64_t first, bool raise, uint32_t *ret_low,
                             uint32_t *ret_high)
{
    struct check *const c = w->check;
    const uint32_t order = c->header->refcount_order;
    const uint32_t n = check_unit_count(c, first);
    uint32_t corrected = 0;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t refcount = refcount_get(w->buf, order, i);
        const uint64_t reference = check_counts_expected(&c->counts, first + i);

        if (raise ? refcount >= reference : refcount <= reference)
            continue;
        check_tell(c, raise ? SCOW_PROBLEM_CORRUPTION : SCOW_PROBLEM_LEAK,
                   "Repairing cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64, first + i,
                   refcount, reference);
        refcount_set(w->buf, order, i, reference);
        if (!corrected++)
            *ret_low = i;
        *ret_high = i;
    }
    return corrected;
}

/* Only the sectors that change are written, each of them whole. */
static int mend(struct check *c, bool raise)
{
    struct check_worker *const w = &c->workers[0];
    const uint32_t order = c->header->refcount_order;

    for (uint64_t unit = 0; unit < c->unit_count; unit++) {
        uint32_t low = 0, high = 0;
        uint64_t first, off;
        int ret;

        /* What could not be read then, or has no block, was told and stays. What cannot be read only now was
         * counted as something that is put right. */
        if (c->unit_state[unit] != UNIT_DIFFERS)
            continue;
        ret = check_refcounts_read_unit(w, unit, &first, &off);
        if (ret < 0)
            return error_prefix(ret, "refcount block");
        if (!ret || !correct_unit(w, first, raise, &low, &high))
            continue;
        const uint64_t from = round_down((uint64_t)low << order >> 3, SECTOR_BYTES);
        const uint64_t to = round_up(((uint64_t)high << order >> 3) + 1, SECTOR_BYTES);

        ret = repair_write(c, w->buf + from, (size_t)(to - from), off + from);
        if (ret < 0)
            return error_prefix(ret, "refcount block");
    }
    return 0;
}

int repair_raise(struct check *c)
{
    return mend(c, true);
}

int repair_lower(struct check *c)
{
    return mend(c, false);
}

/* Best effort: what cannot be punched stays allocated on the host until it is used again. */
void repair_punch(struct check *c)
{
    const uint64_t end = MIN(c->counts.first + c->counts.count, c->file->bytes >> c->cluster_bits);
    struct file *const file = c->file;
    struct cluster_run run = {0};

    for (uint64_t i = c->counts.first; i <= end; i++) {
        const enum check_stored stored = i < end ? check_counts_stored(&c->counts, i) : STORED_ZERO;

        if (i < end && (stored == STORED_ONE || stored == STORED_MORE) &&
            !check_counts_expected(&c->counts, i)) {
            if (!run.count++)
                run.first = i;
            continue;
        }
        if (run.count &&
            file->ops->punch(file, run.first << c->cluster_bits, run.count << c->cluster_bits) < 0)
            return;
        run.count = 0;
    }
}
