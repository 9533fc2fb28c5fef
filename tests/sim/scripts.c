/* SPDX-License-Identifier: MIT */
#include "tests/sim/scripts.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"

/*
 * A workload in words: a letter and its numbers, in sectors.
 *   w off count   write           W  the same, FUA       x  write zeros as data     c  write compressed
 *   z off count   write_zeroes    Z  with may-unmap      d  discard                 r  read
 *   f             flush           q  quiesce             g count  grow by so many
 * A comma waits for everything before it. Clusters have 2^bits bytes.
 */
struct script {
    const char *name;
    const char *text;
    uint32_t bits, guest_clusters;
    const char *features; /* p populated, b backing, B short backing, r raw backing, s snapshot, e extended
                             L2, D data file, R raw data file, C compressed, v version 2, P no punch, t
                             writethrough, k block device, a align 4096, A no allocate, Z no zero */
    uint32_t order;       /* refcount order */
    uint32_t shards, depth;
};

static const struct script scripts[] = {
    {"alloc", "w 0 1, f", 9, 16, "", 4, 1, 1},
    {"alloc-two-tables", "w 0 1 w 64 1, f", 9, 130, "", 4, 2, 2},
    {"alloc-no-flush", "w 0 2 w 4 2, w 1 2", 9, 16, "", 4, 1, 2},
    {"alloc-partial-cluster", "w 3 2, f, w 5 1, f", 12, 8, "", 4, 1, 1},
    {"alloc-fua", "W 3 2, W 20 1", 12, 8, "", 4, 1, 1},
    {"alloc-writethrough", "w 0 1, w 9 1", 12, 8, "t", 4, 1, 1},
    {"overwrite", "w 0 4, f, w 0 4, f", 9, 16, "p", 4, 1, 1},
    {"overwrite-fua", "w 0 4, f, W 1 2", 9, 16, "", 4, 1, 1},
    {"cow-backing", "w 3 1, f", 12, 8, "b", 4, 1, 1},
    {"cow-short-backing", "w 3 1 w 40 1, f", 12, 8, "B", 4, 1, 2},
    {"cow-raw-backing", "w 3 1, f, w 3 1", 12, 8, "br", 4, 1, 1},
    {"cow-compressed", "w 3 1 w 11 1 w 19 1, f", 12, 16, "pC", 4, 1, 2},
    {"cow-compressed-freed-and-reused", "w 0 8, f, w 8 8 w 16 8, f, w 24 8, f", 12, 16, "pC", 4, 1, 1},
    {"cow-shared", "w 0 1 w 3 1, f", 9, 16, "ps", 4, 1, 2},
    {"cow-shared-tables", "w 0 1 w 64 1, f, w 1 1 w 65 1, f", 9, 130, "ps", 4, 2, 2},
    {"discard", "w 0 4, f, d 0 4, f", 9, 16, "", 4, 1, 1},
    {"discard-populated", "d 0 8, f", 9, 16, "p", 4, 1, 1},
    {"discard-backing", "w 0 4, f, d 0 4, f", 9, 16, "b", 4, 1, 1},
    {"discard-shared", "d 0 8, f", 9, 16, "ps", 4, 1, 1},
    {"discard-compressed", "d 0 64, f, w 64 8, f", 12, 16, "pC", 4, 1, 1},
    {"discard-version-2", "w 0 4, f, d 0 2, f", 9, 16, "v", 4, 1, 1},
    {"reuse-after-discard", "w 0 4, f, d 0 4, f, w 8 4, f", 9, 16, "P", 4, 1, 1},
    {"reuse-after-discard-many", "w 0 16, f, d 0 16, f, w 16 16, f, d 16 16, f, w 0 16, f", 9, 32, "", 4, 1,
     1},
    {"zero", "w 0 4, f, z 1 2, f", 9, 16, "", 4, 1, 1},
    {"zero-unmap", "w 0 4, f, Z 1 2, f, w 1 1, f", 9, 16, "", 4, 1, 1},
    {"zero-partial", "w 0 16, f, z 3 7, f", 12, 8, "b", 4, 1, 1},
    {"zero-backing", "z 0 16, f, w 3 1, f", 12, 8, "b", 4, 1, 1},
    {"zero-shared", "Z 0 4 z 4 4, f", 9, 16, "ps", 4, 1, 2},
    {"write-over-zero-clusters", "w 0 16, f", 9, 16, "p", 4, 1, 1},
    {"refcount-block-growth", "w 0 100, f, w 100 100, f", 9, 300, "", 6, 1, 2},
    {"refcount-table-growth", "w 0 128, f, w 128 128, f, w 256 128, f, w 384 128, f, w 512 128, f", 9, 700,
     "", 6, 1, 2},
    {"one-bit-refcounts", "w 0 4, f, d 0 2, f, w 6 2, f", 9, 16, "p", 0, 1, 1},
    {"grow-in-place", "g 8, w 16 8, f", 9, 16, "", 4, 1, 1},
    {"grow-l1", "w 0 1, g 4200, w 4200 1, f", 9, 16, "", 4, 1, 1},
    {"grow-l1-snapshot", "w 0 1, g 4200, w 4200 1, f", 9, 16, "ps", 4, 1, 1},
    {"grow-over-backing", "g 64, w 40 1, f", 9, 16, "b", 4, 1, 1},
    {"quiesce", "w 0 4, q, w 4 4, q", 9, 16, "", 4, 1, 1},
    {"quiesce-discard", "w 0 8, f, d 0 4, q, w 0 2", 9, 16, "", 4, 1, 1},
    {"extended-l2", "w 3 1 w 9 2, f, w 4 1, f", 14, 4, "e", 4, 1, 2},
    {"extended-l2-backing", "w 3 1, f, d 2 4, f", 14, 4, "eb", 4, 1, 1},
    {"extended-l2-discard", "w 0 32, f, d 0 32, f, w 8 1, f", 14, 4, "e", 4, 1, 1},
    {"extended-l2-shared", "w 3 1, f", 14, 4, "eps", 4, 1, 1},
    {"data-file", "w 0 4, f, d 0 2, f", 9, 16, "D", 4, 1, 1},
    {"data-file-raw", "w 0 4, f, z 1 2, f, d 0 4, f", 9, 16, "R", 4, 1, 1},
    {"compressed-write", "c 0 8, f, c 8 8, f, w 3 1, f", 12, 8, "", 4, 1, 1},
    {"block-device", "w 0 4, f, d 0 2, f, w 8 2, f", 9, 16, "k", 4, 1, 1},
    {"block-device-partial", "w 3 1, f", 12, 8, "k", 4, 1, 1},
    {"aligned-4096", "w 3 1, f, w 4 1, f", 12, 8, "a", 4, 1, 1},
    {"no-allocate", "w 3 1 w 12 1, f", 12, 8, "A", 4, 1, 2},
    {"no-punch", "w 0 4, f, d 0 4, f, w 4 4, f", 9, 16, "P", 4, 1, 1},
    {"concurrent-one-cluster", "w 0 2 w 1 2 w 3 2 w 2 1, f", 12, 8, "b", 4, 2, 4},
    {"write-discard-race", "w 0 4, f, w 0 2 d 0 4 w 2 2, f", 9, 16, "", 4, 2, 4},
};

uint32_t scripts_count(void)
{
    return ARRAY_COUNT(scripts);
}

static bool has(const struct script *s, char feature)
{
    return strchr(s->features, feature);
}

static void configure(const struct script *s, uint64_t seed, struct run_config *c)
{
    memset(c, 0, sizeof *c);
    c->seed = seed;
    c->version = has(s, 'v') ? 2 : 3;
    c->cluster_bits = s->bits;
    c->refcount_order = s->order;
    c->extended_l2 = has(s, 'e');
    c->populated = has(s, 'p');
    c->compressed = has(s, 'C');
    c->snapshot = has(s, 's');
    c->backing = has(s, 'b') || has(s, 'B');
    c->backing_raw = has(s, 'r');
    c->data_file = has(s, 'D') || has(s, 'R');
    c->data_file_raw = has(s, 'R');
    c->virtual_bytes = (uint64_t)s->guest_clusters << s->bits;
    c->backing_bytes = has(s, 'B') ? 35 * 512 : c->virtual_bytes;
    c->io_align = has(s, 'a') ? 4096 : 512;
    c->block_device = has(s, 'k');
    c->no_allocate = has(s, 'A');
    c->no_punch = has(s, 'P');
    c->no_zero = has(s, 'Z');
    c->shards = s->shards;
    c->slice_bytes = c->io_align;
    c->open_flags = has(s, 't') ? SCOW_OPEN_WRITETHROUGH : 0;
    c->commit_interval_ms = 1000;
    c->cache_bytes = 0;
    c->preallocation_bytes = 4u << s->bits;
    c->clients = 1;
    c->depth = s->depth;
    c->sessions = 1;
    c->ops = 1;
    c->hot_clusters = 4;
    c->may_write = c->may_flush = c->may_discard = c->may_zero = true;
    c->crash_per_mille = 5;
    c->latency = 1;
}

static uint32_t number(const char **text)
{
    char *end;
    const unsigned long n = strtoul(*text, &end, 10);

    *text = end;
    return (uint32_t)n;
}

static void parse(const char **text, struct op *op)
{
    const char letter = *(*text)++;

    switch (letter) {
    case 'w':
    case 'W':
    case 'x':
    case 'c':
        op->kind = OP_WRITE;
        break;
    case 'z':
    case 'Z':
        op->kind = OP_ZERO;
        break;
    case 'd':
        op->kind = OP_DISCARD;
        break;
    case 'r':
        op->kind = OP_READ;
        break;
    case 'f':
        op->kind = OP_FLUSH;
        return;
    case 'q':
        op->kind = OP_QUIESCE;
        return;
    case 'g':
        op->kind = OP_RESIZE;
        op->count = number(text);
        return;
    default:
        printf("a script has the letter '%c'\n", letter);
        abort();
    }
    op->flags = letter == 'W' ? SCOW_REQ_FUA : letter == 'Z' ? SCOW_REQ_MAY_UNMAP : 0;
    op->flags |= letter == 'c' ? SCOW_REQ_COMPRESSED : 0;
    op->zeros = letter == 'x';
    op->sector = number(text);
    op->count = number(text);
}

uint32_t scripts_get(uint32_t n, uint64_t seed, const char **ret_name, struct run_config *ret_config,
                     struct op *ret_ops)
{
    const struct script *const s = &scripts[n];
    const char *text = s->text;
    bool alone = false;
    uint32_t count = 0;

    configure(s, seed, ret_config);
    *ret_name = s->name;
    while (*text) {
        if (*text == ',')
            alone = true;
        if (*text == ',' || isspace((unsigned char)*text)) {
            text++;
            continue;
        }
        invariant(count < SCRIPT_OPS_MAX);
        ret_ops[count] = (struct op){.alone = alone};
        parse(&text, &ret_ops[count++]);
        alone = false;
    }
    return count;
}
