/* SPDX-License-Identifier: MIT */
/* What the sections of `shardcow dump` share. */
#ifndef CLI_DUMP_H
#define CLI_DUMP_H

#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"
#include "cli/json.h"

/* Values per scow_read_table(): tables are never held whole. */
#define DUMP_BATCH 512

struct dump {
    struct scow_image *image;
    struct scow_info info;
    const char *path;
    bool json;
    struct json_stream items; /* the section's array, with json */
    uint32_t snapshot;        /* whose L1 table: 0 the active one, n the n-th snapshot's */
    uint64_t l1_index;        /* UINT64_MAX: all */
    uint64_t first, last;     /* entries of each table to show, both included */
    bool failed;              /* something could not be read; it was reported */
};

/* A section prints itself, as lines or as items of the array that is open. */
void dump_header(struct dump *dump);
void dump_extensions(struct dump *dump);
void dump_features(struct dump *dump);
void dump_l1(struct dump *dump);
void dump_l2(struct dump *dump);
void dump_reftable(struct dump *dump);
void dump_refcounts(struct dump *dump);
void dump_snapshots(struct dump *dump);
void dump_bitmaps(struct dump *dump);

/* The header is one object, not an array. */
json_t *dump_header_json(const struct dump *dump);

/*
 * Reads entries [dump->first, dump->last] of a table of count entries, values_each values per entry, in
 * batches, and calls visit for each entry until it returns false. Reports what cannot be read, naming the
 * table as what.
 */
typedef bool dump_visit_fn(void *ctx, uint64_t index, const uint64_t *values);
void dump_walk(struct dump *dump, enum scow_table which, uint64_t table, uint64_t count, uint32_t values_each,
               const char *what, dump_visit_fn *visit, void *ctx);

/* Entries of the L1 table that was chosen, and L2 entries per table. */
uint32_t dump_l1_count(const struct dump *dump);
uint32_t dump_l2_values(const struct dump *dump); /* 1, or 2 with extended L2 */
uint64_t dump_l2_count(const struct dump *dump);

#endif
