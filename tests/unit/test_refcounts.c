/* SPDX-License-Identifier: MIT */
/*
 * Refcounts against a model that is an array: random takes, changes and writes, for every width and for
 * clusters so small that blocks and tables run out all the time; then everything is read back from the file.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/error.h"
#include "engine/image.h"
#include "engine/freed.h"
#include "engine/refcounts.h"
#include "format/header.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"

TestSuite(refcounts, .fini = abort_if_memory_is_lost);

#define CLUSTERS_MAX (1u << 20)
struct model {
    struct scow_image *image;
    struct layer *layer;
    struct refcounts rc;
    uint32_t bits; /* of a cluster */
    uint64_t *counts;
    uint64_t end; /* clusters beyond it have 0 */
    uint64_t seed;
    uint8_t *buffer;
    uint64_t tables_moved, dropped;
};

static const char *path(void)
{
    return scratch("refcounts");
}

static void open_image(struct model *m)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;

    o.flags = SCOW_OPEN_WRITE | SCOW_OPEN_NO_LOCK | SCOW_OPEN_REPAIR;
    o.io_mode = SCOW_IO_BUFFERED;
    cr_assert_eq(scow_open(path(), &o, &m->image), 0, "%s", scow_error());
    m->layer = image_top(m->image);
    cr_assert_eq(refcounts_open(&m->rc, m->layer), 0, "%s", error_message());
}

static void close_image(struct model *m)
{
    refcounts_close(&m->rc);
    scow_close(m->image);
}

static uint64_t get(struct model *m, uint64_t cluster)
{
    uint64_t count = 0;

    cr_assert_eq(refcounts_get(&m->rc, cluster, &count), 0, "%s", error_message());
    return count;
}

static void start(struct model *m, uint32_t bits, uint32_t order, uint64_t seed)
{
    const struct image_spec spec = {
        .version = 3, .cluster_bits = bits, .refcount_order = order, .virtual_bytes = 64 << 10, .salt = 1};
    struct image_builder *b = builder_new(&spec);

    builder_write(b, path());
    builder_free(b);
    *m = (struct model){.bits = bits, .seed = seed};
    m->counts = calloc(CLUSTERS_MAX, sizeof *m->counts);
    m->buffer = aligned_alloc(4096, 65536);
    open_image(m);
    for (uint64_t c = 0; c < 4096; c++) {
        m->counts[c] = get(m, c);
        if (m->counts[c])
            m->end = c + 1;
    }
}

/* A cluster that a take gave away or made part of the metadata: it was free. */
static void take_one(struct model *m, uint64_t cluster, const char *what)
{
    cr_assert_lt(cluster, CLUSTERS_MAX);
    cr_assert_eq(m->counts[cluster], 0, "%s %" PRIu64 " was in use", what, cluster);
    m->counts[cluster] = 1;
    m->end = MAX(m->end, cluster + 1);
}

/* Blocks and a table that this take has made. */
static void take_metadata(struct model *m, const uint64_t *table, uint64_t table_count, uint64_t table_off)
{
    for (uint64_t i = 0; i < m->rc.table_count; i++)
        if (m->rc.table[i] && (i >= table_count || !table[i]))
            take_one(m, m->rc.table[i] >> m->bits, "the block's cluster");
    if (m->rc.table_off != table_off)
        for (uint64_t i = 0; i < m->rc.table_clusters; i++)
            take_one(m, (m->rc.table_off >> m->bits) + i, "the table's cluster");
}

static int take(struct model *m, uint64_t wanted, bool contiguous)
{
    const uint64_t table_count = m->rc.table_count, table_off = m->rc.table_off;
    uint64_t *const table = malloc(table_count * sizeof *table);
    struct lease lease = {0};
    uint64_t taken = 0;
    int r;

    memcpy(table, m->rc.table, table_count * sizeof *table);
    r = refcounts_take(&m->rc, wanted, contiguous, &lease);
    take_metadata(m, table, table_count, table_off);
    for (uint32_t i = 0; i < lease.extent_count; i++) {
        for (uint32_t k = 0; k < lease.extents[i].count; k++)
            take_one(m, lease.extents[i].first + k, "a leased cluster");
        taken += lease.extents[i].count;
    }
    cr_assert_eq(taken, lease.clusters);
    cr_assert_leq(taken, wanted);
    if (r == 0)
        cr_assert_gt(taken, 0);
    if (r == 0 && contiguous)
        cr_assert(taken == wanted && lease.extent_count == 1);
    if (r < 0)
        cr_assert(taken == 0 && r == -EAGAIN && m->rc.table_moved, "%d: %s", r, error_message());
    free(table);
    return r;
}

static bool is_metadata(const struct model *m, uint64_t cluster)
{
    const uint64_t table = m->rc.table_off >> m->bits;

    for (uint64_t i = 0; i < m->rc.table_count; i++)
        if (m->rc.table[i] >> m->bits == cluster)
            return true;
    return cluster >= table && cluster < table + m->rc.table_clusters;
}

static void change(struct model *m)
{
    const uint64_t c = random_below(&m->seed, m->end + 3), before = get(m, c);
    const int64_t by = (int64_t)random_below(&m->seed, 5) - 2;
    const bool low = by < 0 && before<(uint64_t)-by, high = by> 0 && m->rc.max - before < (uint64_t)by;
    int r;

    cr_assert_eq(before, m->counts[c], "cluster %" PRIu64, c);
    /* What describes the counts themselves stays. */
    if (is_metadata(m, c))
        return;
    r = refcounts_change(&m->rc, c, by);
    if (low)
        cr_assert_eq(r, -EIO);
    else if (high)
        cr_assert(r == -ERANGE || r == -EIO);
    else if (r == 0)
        m->counts[c] += (uint64_t)by;
    else /* nothing counts it yet */
        cr_assert(r == -EIO && before == 0, "%d: %s", r, error_message());
    cr_assert_eq(get(m, c), m->counts[c]);
}

static uint64_t model_end(const struct model *m)
{
    uint64_t end = m->end;

    while (end && !m->counts[end - 1])
        end--;
    return end;
}

/* What comes back from leases leaves blocks that count only themselves; those at the end go. */
static void drop_last(struct model *m)
{
    const uint64_t per_block = (uint64_t)m->rc.slice_counts * m->rc.slices_per_block;
    const uint64_t from = random_below(&m->seed, m->end + 1), kept = random_below(&m->seed, from + 1);
    uint64_t end;

    for (uint64_t c = m->end; c-- > from;)
        if (m->counts[c] && !is_metadata(m, c)) {
            cr_assert_eq(refcounts_change(&m->rc, c, -(int64_t)m->counts[c]), 0, "%s", error_message());
            m->counts[c] = 0;
        }
    while (!m->rc.table_moved && (end = model_end(m)) > kept) {
        const uint64_t block = (end - 1) / per_block;
        uint64_t others = 0;

        for (uint64_t c = block * per_block; c < end - 1; c++)
            others += m->counts[c];
        if (m->rc.table[block] >> m->bits != end - 1 || others || m->counts[end - 1] != 1)
            break;
        m->counts[end - 1] = 0;
        m->dropped++;
    }
    cr_assert_eq(refcounts_drop_last(&m->rc, kept), 0, "%s", error_message());
    for (uint64_t block = 0; block < m->rc.table_count; block++)
        cr_assert(!m->rc.table[block] || m->counts[m->rc.table[block] >> m->bits] == 1,
                  "block %" PRIu64 " was dropped", block);
}

/* As the allocator does it: counts, table, header. Some writes fail and come again. */
static void write_all(struct model *m)
{
    struct refcounts *rc = &m->rc;
    uint64_t off, slice;
    uint32_t bytes;

    while (refcounts_next_write(rc, m->buffer, &off, &bytes, &slice)) {
        const bool works = random_below(&m->seed, 8);

        if (works)
            cr_assert_eq(file_write(m->layer->file, m->buffer, bytes, off), 0);
        refcounts_written(rc, slice, works, off, bytes);
    }
    refcounts_synced(rc, true);
    if (rc->table_dirty_from != rc->table_dirty_to) {
        for (uint64_t i = rc->table_dirty_from; i < rc->table_dirty_to; i++) {
            uint8_t entry[8];

            put_be64(entry, rc->table[i]);
            cr_assert_eq(file_write(m->layer->file, entry, sizeof entry, rc->table_off + i * sizeof entry),
                         0);
        }
        rc->table_dirty_from = rc->table_dirty_to = 0;
    }
    if (rc->table_moved) {
        uint8_t place[12];

        put_be64(place, rc->table_off);
        put_be32(place + 8, rc->table_clusters);
        cr_assert_eq(
            file_write(m->layer->file, place, sizeof place, offsetof(struct header_disk, reftable_off)), 0);
        rc->table_moved = false;
        m->tables_moved++;
        for (uint32_t i = 0; i < rc->old_table_clusters; i++) {
            const uint64_t c = (rc->old_table_off >> m->bits) + i;

            cr_assert_eq(refcounts_change(rc, c, -1), 0, "%s", error_message());
            m->counts[c]--;
        }
    }
}

static void compare_all(struct model *m)
{
    uint64_t used_end = 0, end;

    for (uint64_t c = 0; c < m->end + 100; c++) {
        cr_assert_eq(get(m, c), m->counts[c], "cluster %" PRIu64 " has %" PRIu64 ", should have %" PRIu64, c,
                     get(m, c), m->counts[c]);
        if (m->counts[c])
            used_end = c + 1;
    }
    cr_assert_eq(refcounts_used_end(&m->rc, &end), 0);
    cr_assert_eq(end, used_end);
    cr_assert_leq(m->rc.cursor, used_end);
    for (uint64_t c = 0; c < m->rc.cursor; c++)
        cr_assert_neq(m->counts[c], 0, "cluster %" PRIu64 " is free and before the cursor", c);
}

static void run(uint32_t bits, uint32_t order, uint64_t seed, int ops, bool small_cache)
{
    struct model m;

    fprintf(stderr, "clusters of %u bytes, counts of %u bits, seed %" PRIu64 "\n", 1u << bits, 1u << order,
            seed);
    start(&m, bits, order, seed);
    if (small_cache)
        m.rc.cached_max = 4;
    for (int i = 0; i < ops; i++) {
        const uint64_t dice = random_below(&m.seed, 100);

        if (dice < 15)
            (void)take(&m, 1 + random_below(&m.seed, random_below(&m.seed, 4) ? 20 : 300), false);
        else if (dice < 18)
            (void)take(&m, 1 + random_below(&m.seed, 40), true);
        else if (dice < 89)
            change(&m);
        else if (dice < 90)
            drop_last(&m);
        else if (dice < 99)
            write_all(&m);
        else
            compare_all(&m);
    }
    do
        write_all(&m);
    while (m.rc.dirty_count);
    compare_all(&m);
    close_image(&m);
    open_image(&m);
    compare_all(&m);
    close_image(&m);
    if (bits == 9 && order == 6)
        cr_assert_gt(m.tables_moved, 0, "the table never grew");
    if (bits == 9 && order > 3)
        cr_assert_gt(m.dropped, 0, "no block was dropped");
    free(m.counts);
    free(m.buffer);
}

Test(refcounts, every_width_in_small_clusters, .timeout = 200)
{
    for (uint32_t order = 0; order <= 6; order++)
        run(9, order, 100 + order, 4000, order % 2);
}

Test(refcounts, every_width_in_larger_clusters, .timeout = 200)
{
    for (uint32_t order = 0; order <= 6; order++)
        run(12 + order % 3, order, 200 + order, 1500, order % 2);
}

Test(refcounts, clusters_past_the_end_of_the_file_are_fresh_once, .timeout = 60)
{
    struct lease l = {0}, again = {0};
    struct model m;
    uint64_t first;

    start(&m, 12, 4, 1);
    first = m.rc.fresh;
    cr_assert_eq(refcounts_take(&m.rc, first + 20, false, &l), 0);
    for (uint32_t i = 0; i < l.extent_count; i++)
        cr_assert_eq(l.extents[i].fresh, l.extents[i].first >= first);
    for (uint32_t i = 0; i < l.extent_count; i++)
        for (uint32_t k = 0; k < l.extents[i].count; k++)
            cr_assert_eq(refcounts_change(&m.rc, l.extents[i].first + k, -1), 0);
    cr_assert_eq(refcounts_take(&m.rc, 10, false, &again), 0);
    for (uint32_t i = 0; i < again.extent_count; i++)
        cr_assert_not(again.extents[i].fresh, "what was used before is not known to read as zeros");
    close_image(&m);
    free(m.counts);
    free(m.buffer);
}

Test(refcounts, the_limit_is_the_end, .timeout = 60)
{
    struct lease l = {0};
    struct model m;
    uint64_t total = 0;
    int r = 0;

    start(&m, 9, 4, 1);
    m.rc.limit = 700; /* as a block device has one */
    while (r == 0 || r == -EAGAIN) {
        l = (struct lease){0};
        r = refcounts_take(&m.rc, 50, false, &l);
        total += l.clusters;
        for (uint32_t i = 0; i < l.extent_count; i++)
            cr_assert_leq(l.extents[i].first + l.extents[i].count, 700);
        if (r == -EAGAIN)
            write_all(&m);
    }
    cr_assert_eq(r, -ENOSPC, "%d: %s", r, error_message());
    cr_assert_gt(total, 600);
    for (uint64_t c = 0; c < 700; c++)
        cr_assert_neq(get(&m, c), 0);
    close_image(&m);
    free(m.counts);
    free(m.buffer);
}

/* ---- lease.h ---- */

Test(refcounts, a_lease_gives_each_cluster_once)
{
    struct lease l = {0};
    uint64_t first;
    uint32_t n, total = 0;
    bool fresh;

    cr_assert_eq(lease_take(&l, 5, &first, &fresh), 0);
    lease_add(&l, 10, 4, false);
    lease_add(&l, 20, 1, true);
    lease_add(&l, 30, 3, true);
    cr_assert_eq(l.clusters, 8);
    cr_assert_eq(lease_take(&l, 3, &first, &fresh), 3);
    cr_assert(first == 10 && !fresh);
    cr_assert_eq(lease_take(&l, 3, &first, &fresh), 1, "runs are not joined");
    cr_assert(first == 13 && !fresh);
    while ((n = lease_take(&l, 100, &first, &fresh))) {
        cr_assert(fresh);
        total += n;
    }
    cr_assert_eq(total, 4);
    cr_assert_eq(l.clusters, 0);
}

/* ---- freed.h ---- */

static uint64_t sum(const struct freed_list *l)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < l->count; i++)
        n += l->runs[i].count;
    return n;
}

Test(refcounts, freed_lists_join_neighbours_and_lose_nothing)
{
    struct freed_list a = {0}, b = {0};

    cr_assert(freed_reserve(&a, 3));
    freed_add(&a, 5, 2);
    freed_add(&a, 7, 1);
    cr_assert_eq(a.count, 1, "neighbours are one run");
    freed_add(&a, 100, 1);
    freed_add(&a, 50, 1);
    cr_assert_eq(a.count, 3);
    cr_assert(freed_move(&b, &a)); /* into an empty one */
    cr_assert(a.count == 0 && sum(&b) == 5);
    cr_assert(freed_reserve(&a, 40));
    for (uint64_t i = 0; i < 40; i++)
        freed_add(&a, 1000 + 2 * i, 1);
    cr_assert(freed_move(&b, &a)); /* behind what is there */
    cr_assert(a.count == 0 && sum(&b) == 45);
    cr_assert(freed_reserve(&a, 7));
    freed_add(&a, 1, 1);
    const uint32_t room = a.room;
    cr_assert(freed_move_out(&b, &a));
    cr_assert(a.count == 0 && a.room == room && sum(&b) == 46, "reservations stay good");
    freed_destroy(&a);
    freed_destroy(&b);
    cr_assert(b.count == 0 && !b.runs);
}
