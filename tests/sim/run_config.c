/* SPDX-License-Identifier: MIT */
#include "tests/sim/run_config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/attributes.h"
#include "shardcow.h"
#include "tests/unit/image_builder.h"

static uint64_t draw(uint64_t *rng, uint64_t from, uint64_t to)
{
    return from + (random_next(rng) >> 16) % (to - from + 1);
}

static bool one_in(uint64_t *rng, uint64_t n)
{
    return draw(rng, 1, n) == 1;
}

static void draw_image(struct run_config *c, uint64_t *rng)
{
    static const uint8_t bits[] = {9, 9, 9, 9, 10, 10, 11, 12, 12, 13, 14, 16};
    const uint64_t bytes_max = 1024u << 10;
    uint64_t clusters;

    c->version = one_in(rng, 6) ? 2 : 3;
    c->cluster_bits = bits[draw(rng, 0, sizeof bits - 1)];
    c->extended_l2 = c->version == 3 && one_in(rng, 5);
    if (c->extended_l2)
        c->cluster_bits = one_in(rng, 4) ? 15 : 14;
    c->refcount_order = c->version == 2 ? 4 : (uint32_t)draw(rng, 0, 6);
    c->zstd = c->version == 3 && one_in(rng, 3);
    c->populated = !one_in(rng, 3);
    c->data_file = c->version == 3 && one_in(rng, 10);
    c->data_file_raw = c->data_file && one_in(rng, 2);
    c->compressed = c->populated && !c->data_file && one_in(rng, 4);
    c->snapshot = !c->data_file && one_in(rng, 5);
    if (c->snapshot && c->refcount_order < 4)
        c->refcount_order = c->compressed ? 4 : MAX(c->refcount_order, 1u);
    c->backing = !c->data_file_raw && one_in(rng, 3);
    c->backing_raw = one_in(rng, 2);

    clusters = draw(rng, 3, c->cluster_bits < 12 ? 300 : c->cluster_bits < 14 ? 128 : 16);
    c->virtual_bytes = MIN(clusters << c->cluster_bits, bytes_max);
    if (one_in(rng, 4)) /* the last cluster is a partial one */
        c->virtual_bytes -= draw(rng, 0, (1u << c->cluster_bits) / 512 - 1) * 512;
    c->backing_bytes = c->virtual_bytes;
    if (one_in(rng, 2))
        c->backing_bytes = draw(rng, 1, c->virtual_bytes / 512) * 512;
    else if (one_in(rng, 2))
        c->backing_bytes += draw(rng, 1, 64) * 512;
}

static void draw_disk(struct run_config *c, uint64_t *rng)
{
    c->io_align = c->cluster_bits >= 12 && one_in(rng, 2) ? 4096 : 512;
    c->block_device = one_in(rng, 10);
    c->no_allocate = one_in(rng, 10);
    c->no_punch = one_in(rng, 10);
    c->no_zero = one_in(rng, 8);
}

static void draw_open(struct run_config *c, uint64_t *rng)
{
    const uint32_t slice_max = c->io_align;

    c->shards = (uint32_t)draw(rng, 1, 4);
    c->slice_bytes = MAX(512u << draw(rng, 0, 3), slice_max);
    c->open_flags =
        (one_in(rng, 8) ? SCOW_OPEN_WRITETHROUGH : 0) | (one_in(rng, 10) ? SCOW_OPEN_NO_PUNCH : 0);
    c->detect_zeroes = one_in(rng, 8) ? (uint32_t)draw(rng, 1, 2) : 0;
    c->commit_interval_ms = one_in(rng, 2) ? 1 : one_in(rng, 2) ? 10 : 1000;
    c->cache_bytes = one_in(rng, 3) ? 0 : c->shards * c->slice_bytes * draw(rng, 1, 5);
    c->preallocation_bytes = one_in(rng, 4) ? 0 : (1u << c->cluster_bits) * draw(rng, 1, 64);
}

static void draw_workload(struct run_config *c, uint64_t *rng)
{
    c->clients = (uint32_t)draw(rng, 1, CLIENTS_MAX);
    c->depth = (uint32_t)draw(rng, 1, 8);
    c->sessions = one_in(rng, 3) ? 2 : 1;
    c->ops = (uint32_t)draw(rng, 8, 120) / c->clients + 2;
    c->events = one_in(rng, 2);
    c->latency = (uint32_t)draw(rng, 0, 3);
    c->hot_clusters = (uint32_t)draw(rng, 1, 12);
    c->may_write = true;
    c->may_flush = !one_in(rng, 10);
    c->may_discard = !one_in(rng, 4);
    c->may_zero = !one_in(rng, 4);
    c->may_resize = one_in(rng, 4);
    c->may_quiesce = one_in(rng, 3);
    c->may_compress = !c->data_file && one_in(rng, 6);
    if (one_in(rng, 5)) {
        c->faults = (enum fault_plan)draw(rng, FAULTS_READ, FAULT_PLANS - 1);
        c->fault_per_mille = (uint32_t)draw(rng, 1, 150);
    }
    if (c->faults == FAULTS_SPACE)
        c->spare_clusters = draw(rng, 1, 80);
    c->crash_per_mille = one_in(rng, 8) ? 200 : (uint32_t)draw(rng, 5, 60);
}

void run_config_draw(uint64_t seed, struct run_config *ret)
{
    uint64_t rng = (seed + 1) * 0x9e3779b97f4a7c15u;

    for (int i = 0; i < 8; i++)
        random_next(&rng);
    memset(ret, 0, sizeof *ret);
    ret->seed = seed;
    draw_image(ret, &rng);
    draw_disk(ret, &rng);
    draw_open(ret, &rng);
    draw_workload(ret, &rng);
}

void run_config_print(const struct run_config *c)
{
    printf("seed %" PRIu64 ": v%u, clusters of %u, refcount bits %u, size %" PRIu64 "%s%s%s%s%s%s%s", c->seed,
           c->version, 1u << c->cluster_bits, 1u << c->refcount_order, c->virtual_bytes,
           c->extended_l2 ? ", extended L2" : "", c->zstd ? ", zstd" : "", c->populated ? ", populated" : "",
           c->compressed ? ", compressed" : "", c->snapshot ? ", snapshot" : "",
           c->data_file ? ", data file" : "", c->data_file_raw ? " raw" : "");
    if (c->backing)
        printf(", %s backing file of %" PRIu64, c->backing_raw ? "raw" : "qcow2", c->backing_bytes);
    printf("\n  disk: align %u%s%s%s%s, %" PRIu64 " spare clusters\n", c->io_align,
           c->block_device ? ", block device" : "", c->no_allocate ? ", no allocate" : "",
           c->no_punch ? ", no punch" : "", c->no_zero ? ", no zero" : "", c->spare_clusters);
    printf("  open: %u shards, slice %u, cache %" PRIu64 ", preallocation %" PRIu64
           ", flags 0x%x, detect zeroes %u, commit every %u ms\n",
           c->shards, c->slice_bytes, c->cache_bytes, c->preallocation_bytes, c->open_flags, c->detect_zeroes,
           c->commit_interval_ms);
    printf("  workload: %u clients, depth %u, %u ops each, %u sessions%s, latency %u, hot %u;%s%s%s%s%s%s\n",
           c->clients, c->depth, c->ops, c->sessions, c->events ? ", event driven" : "", c->latency,
           c->hot_clusters, c->may_flush ? " flush" : "", c->may_discard ? " discard" : "",
           c->may_zero ? " zero" : "", c->may_resize ? " resize" : "", c->may_quiesce ? " quiesce" : "",
           c->may_compress ? " compress" : "");
    printf("  faults: plan %d, %u per mille; crashes at %u per mille of the steps\n", (int)c->faults,
           c->fault_per_mille, c->crash_per_mille);
}
