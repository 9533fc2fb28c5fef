/* SPDX-License-Identifier: MIT */
/* The tables of `shardcow dump`: L1, L2, refcount table and refcounts, read batch by batch. */
#include "cli/dump.h"

#include <inttypes.h>
#include <stdio.h>

#include "cli/command.h"

#define COPIED (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)
#define ZERO UINT64_C(1)
#define OFF_MASK UINT64_C(0x00fffffffffffe00)
#define L1_RESERVED UINT64_C(0x7f000000000001ff)
#define L2_RESERVED UINT64_C(0x3f000000000001fe)
#define REFTABLE_OFF_MASK (~UINT64_C(0x1ff))

enum kind { UNALLOCATED, STANDARD, ZERO_PLAIN, ZERO_ALLOCATED, COMPRESSED_KIND };

static const char *const kind_names[] = {"unallocated", "standard", "zero", "zero-allocated", "compressed"};

struct decoded {
    enum kind kind;
    bool copied;
    uint64_t host_off;
    uint64_t sectors; /* compressed */
    uint64_t reserved;
    uint32_t allocated, zero; /* extended L2: subclusters */
};

/* Neighbours that continue each other, printed as one line. */
struct run {
    struct dump *dump;
    uint64_t l1_index;
    uint64_t first;
    uint64_t count; /* 0: none yet */
    struct decoded entry;
};

static struct decoded decode(const struct dump *dump, const uint64_t *values)
{
    const uint64_t v = values[0];
    const uint32_t bits = (uint32_t)__builtin_ctz(dump->info.cluster_bytes);
    const bool extended = dump_l2_values(dump) == 2;
    const bool data_file = dump->info.incompatible & SCOW_INCOMPAT_DATA_FILE;
    struct decoded d = {.copied = v & COPIED};

    if (extended) {
        d.allocated = (uint32_t)values[1];
        d.zero = (uint32_t)(values[1] >> 32);
    }
    if (v & COMPRESSED) {
        const uint32_t shift = 62 - (bits - 8);
        d.kind = COMPRESSED_KIND;
        d.host_off = v & ((1ull << shift) - 1);
        d.sectors = ((v & ~(COPIED | COMPRESSED)) >> shift) + 1;
        return d;
    }
    d.host_off = v & OFF_MASK;
    d.reserved = v & (extended ? L2_RESERVED | ZERO : L2_RESERVED);
    const bool has_off = d.host_off || (data_file && d.copied);
    if ((v & ZERO) && !extended)
        d.kind = has_off ? ZERO_ALLOCATED : ZERO_PLAIN;
    else
        d.kind = has_off ? STANDARD : UNALLOCATED;
    return d;
}

static bool continues(const struct run *run, uint64_t l1_index, uint64_t index, const struct decoded *d)
{
    const struct decoded *e = &run->entry;
    const bool has_off = d->kind == STANDARD || d->kind == ZERO_ALLOCATED;

    if (!run->count || run->l1_index != l1_index || run->first + run->count != index)
        return false;
    if (d->kind != e->kind || d->kind == COMPRESSED_KIND || d->copied != e->copied || d->reserved ||
        e->reserved || d->allocated != e->allocated || d->zero != e->zero)
        return false;
    return !has_off || e->host_off + run->count * run->dump->info.cluster_bytes == d->host_off;
}

static void print_run(struct run *run)
{
    const struct decoded *e = &run->entry;
    const uint64_t guest_off =
        (run->l1_index * dump_l2_count(run->dump) + run->first) * run->dump->info.cluster_bytes;

    if (!run->count)
        return;
    if (run->count > 1)
        printf("  [%" PRIu64 "..%" PRIu64 "]", run->first, run->first + run->count - 1);
    else
        printf("  [%" PRIu64 "]", run->first);
    printf(" guest %#" PRIx64 " %s", guest_off, kind_names[e->kind]);
    if (e->kind == COMPRESSED_KIND)
        printf(" host %#" PRIx64 ", %" PRIu64 " sectors", e->host_off, e->sectors);
    else if (e->kind == STANDARD || e->kind == ZERO_ALLOCATED)
        printf(" host %#" PRIx64, e->host_off);
    if (dump_l2_values(run->dump) == 2 && e->kind != COMPRESSED_KIND)
        printf(", subclusters allocated 0x%08" PRIx32 " zero 0x%08" PRIx32, e->allocated, e->zero);
    if (e->copied)
        printf(", COPIED");
    if (e->reserved)
        printf(", reserved bits %#" PRIx64, e->reserved);
    putchar('\n');
    run->count = 0;
}

static void l2_item(struct dump *dump, uint64_t l1_index, uint64_t index, const uint64_t *values,
                    const struct decoded *d)
{
    json_t *item = json_object();

    json_put(item, "l1-index", json_count(l1_index));
    json_put(item, "index", json_count(index));
    json_put(item, "guest-offset",
             json_count((l1_index * dump_l2_count(dump) + index) * dump->info.cluster_bytes));
    json_put(item, "type", json_text(kind_names[d->kind]));
    if (d->kind != ZERO_PLAIN && d->kind != UNALLOCATED)
        json_put(item, "offset", json_count(d->host_off));
    if (d->kind == COMPRESSED_KIND)
        json_put(item, "sectors", json_count(d->sectors));
    if (dump_l2_values(dump) == 2) {
        json_put(item, "subclusters-allocated", json_hex(d->allocated));
        json_put(item, "subclusters-zero", json_hex(d->zero));
    }
    json_put(item, "copied", json_boolean(d->copied));
    json_put(item, "raw", json_hex(values[0]));
    json_stream_item(&dump->items, item);
}

static bool visit_l2(void *ctx, uint64_t index, const uint64_t *values)
{
    struct run *run = ctx;
    struct dump *dump = run->dump;

    if (!values[0] && (dump_l2_values(dump) == 1 || !values[1]))
        return true;
    const struct decoded d = decode(dump, values);
    if (dump->json) {
        l2_item(dump, run->l1_index, index, values, &d);
        return true;
    }
    if (continues(run, run->l1_index, index, &d)) {
        run->count++;
        return true;
    }
    print_run(run);
    run->first = index;
    run->count = 1;
    run->entry = d;
    return true;
}

static void dump_l2_table(struct dump *dump, uint64_t l1_index, uint64_t l1_entry)
{
    struct run run = {.dump = dump, .l1_index = l1_index};
    char what[64];

    if (!(l1_entry & OFF_MASK))
        return;
    if (!dump->json)
        printf("  L2 table of L1 entry %" PRIu64 ", at %#" PRIx64 "\n", l1_index, l1_entry & OFF_MASK);
    snprintf(what, sizeof what, "L2 table at %#" PRIx64, l1_entry & OFF_MASK);
    dump_walk(dump, SCOW_TABLE_L2, l1_entry & OFF_MASK, dump_l2_count(dump), dump_l2_values(dump), what,
              visit_l2, &run);
    print_run(&run);
}

void dump_l2(struct dump *dump)
{
    const uint64_t count = dump_l1_count(dump);
    uint64_t l1_index = dump->l1_index == UINT64_MAX ? 0 : dump->l1_index;
    const uint64_t end = dump->l1_index == UINT64_MAX || dump->l1_index >= count ? count : dump->l1_index + 1;
    uint64_t entries[DUMP_BATCH];

    if (l1_index >= count && dump->l1_index != UINT64_MAX) {
        command_error(dump->path, "there is no L1 entry %" PRIu64 ": the table has %" PRIu64, l1_index,
                      count);
        dump->failed = true;
    }
    while (l1_index < end) {
        const uint32_t batch = end - l1_index < DUMP_BATCH ? (uint32_t)(end - l1_index) : DUMP_BATCH;
        const int err = scow_read_table(dump->image, SCOW_TABLE_L1, dump->snapshot, l1_index, batch, entries);
        if (err) {
            command_library_error(dump->path, err);
            dump->failed = true;
            return;
        }
        for (uint32_t i = 0; i < batch; i++)
            dump_l2_table(dump, l1_index + i, entries[i]);
        l1_index += batch;
    }
}

static bool visit_l1(void *ctx, uint64_t index, const uint64_t *value)
{
    struct dump *dump = ctx;
    const uint64_t guest_off = index * dump_l2_count(dump) * dump->info.cluster_bytes;

    if (!*value)
        return true;
    if (!dump->json) {
        printf("  [%" PRIu64 "] guest %#" PRIx64 " L2 table %#" PRIx64 "%s", index, guest_off,
               *value & OFF_MASK, *value & COPIED ? ", COPIED" : "");
        if (*value & L1_RESERVED)
            printf(", reserved bits %#" PRIx64, *value & L1_RESERVED);
        putchar('\n');
        return true;
    }
    json_t *item = json_object();
    json_put(item, "index", json_count(index));
    json_put(item, "guest-offset", json_count(guest_off));
    json_put(item, "offset", json_count(*value & OFF_MASK));
    json_put(item, "copied", json_boolean(*value & COPIED));
    json_put(item, "raw", json_hex(*value));
    json_stream_item(&dump->items, item);
    return true;
}

void dump_l1(struct dump *dump)
{
    dump_walk(dump, SCOW_TABLE_L1, dump->snapshot, dump_l1_count(dump), 1, "L1 table", visit_l1, dump);
}

static uint64_t refcounts_per_block(const struct dump *dump)
{
    return (uint64_t)dump->info.cluster_bytes * 8 / dump->info.refcount_bits;
}

static uint64_t reftable_count(const struct dump *dump)
{
    return (uint64_t)dump->info.reftable_clusters * dump->info.cluster_bytes / 8;
}

static bool visit_reftable(void *ctx, uint64_t index, const uint64_t *value)
{
    struct dump *dump = ctx;
    const uint64_t covers = index * refcounts_per_block(dump) * dump->info.cluster_bytes;

    if (!*value)
        return true;
    if (!dump->json) {
        printf("  [%" PRIu64 "] host offsets from %#" PRIx64 " on: block %#" PRIx64, index, covers,
               *value & REFTABLE_OFF_MASK);
        if (*value & ~REFTABLE_OFF_MASK)
            printf(", reserved bits %#" PRIx64, *value & ~REFTABLE_OFF_MASK);
        putchar('\n');
        return true;
    }
    json_t *item = json_object();
    json_put(item, "index", json_count(index));
    json_put(item, "covers-from", json_count(covers));
    json_put(item, "offset", json_count(*value & REFTABLE_OFF_MASK));
    json_put(item, "raw", json_hex(*value));
    json_stream_item(&dump->items, item);
    return true;
}

void dump_reftable(struct dump *dump)
{
    dump_walk(dump, SCOW_TABLE_REFTABLE, 0, reftable_count(dump), 1, "refcount table", visit_reftable, dump);
}

/* Host clusters that follow each other and have the same refcount. */
struct refcount_run {
    struct dump *dump;
    uint64_t first_cluster;
    uint64_t count;
    uint64_t refcount;
};

static void print_refcounts(struct refcount_run *run)
{
    const uint64_t host_off = run->first_cluster * run->dump->info.cluster_bytes;

    if (!run->count || !run->refcount)
        return;
    if (!run->dump->json) {
        printf("  host %#" PRIx64 ": clusters %" PRIu64 "..%" PRIu64 " refcount %" PRIu64 "\n", host_off,
               run->first_cluster, run->first_cluster + run->count - 1, run->refcount);
        return;
    }
    json_t *item = json_object();
    json_put(item, "offset", json_count(host_off));
    json_put(item, "cluster", json_count(run->first_cluster));
    json_put(item, "count", json_count(run->count));
    json_put(item, "refcount", json_count(run->refcount));
    json_stream_item(&run->dump->items, item);
}

static void add_refcount(struct refcount_run *run, uint64_t cluster, uint64_t refcount)
{
    if (run->count && run->refcount == refcount && run->first_cluster + run->count == cluster) {
        run->count++;
        return;
    }
    print_refcounts(run);
    run->first_cluster = cluster;
    run->count = 1;
    run->refcount = refcount;
}

static void visit_block(struct refcount_run *run, uint64_t block_index, uint64_t block_off)
{
    struct dump *dump = run->dump;
    const uint64_t per_block = refcounts_per_block(dump), base = block_index * per_block;
    uint64_t counts[DUMP_BATCH];

    for (uint64_t i = 0; i < per_block; i += DUMP_BATCH) {
        const uint32_t batch = per_block - i < DUMP_BATCH ? (uint32_t)(per_block - i) : DUMP_BATCH;
        if (base + i + batch <= dump->first || base + i > dump->last)
            continue;
        const int err = scow_read_table(dump->image, SCOW_TABLE_REFCOUNTS, block_off, i, batch, counts);
        if (err) {
            command_error(dump->path, "refcount block at %#" PRIx64 ": %s", block_off, scow_error());
            dump->failed = true;
            return;
        }
        for (uint32_t n = 0; n < batch; n++)
            if (base + i + n >= dump->first && base + i + n <= dump->last)
                add_refcount(run, base + i + n, counts[n]);
    }
}

static bool visit_reftable_block(void *ctx, uint64_t index, const uint64_t *value)
{
    if (*value & REFTABLE_OFF_MASK)
        visit_block(ctx, index, *value & REFTABLE_OFF_MASK);
    return true;
}

void dump_refcounts(struct dump *dump)
{
    struct refcount_run run = {.dump = dump};
    struct dump tables = *dump;

    /* The range is of host clusters here: the blocks pick theirs. */
    tables.first = dump->first / refcounts_per_block(dump);
    tables.last = dump->last / refcounts_per_block(dump);
    dump_walk(&tables, SCOW_TABLE_REFTABLE, 0, reftable_count(dump), 1, "refcount table",
              visit_reftable_block, &run);
    print_refcounts(&run);
    dump->failed |= tables.failed;
}
