/* SPDX-License-Identifier: MIT */
#include "engine/map.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/attributes.h"
#include "base/guard.h"
#include "format/entry.h"

static uint64_t load_entry(const _Atomic uint64_t *entries, uint64_t index)
{
    return be64toh(atomic_load_explicit(&entries[index], memory_order_relaxed));
}

static enum map_status fault(struct map_fault *ret, enum map_status status, uint64_t guest_off,
                             uint64_t entry, uint64_t bitmap)
{
    *ret = (struct map_fault){.status = status, .guest_off = guest_off, .entry = entry, .bitmap = bitmap};
    return status;
}

/* The part of the run that one cluster (or, with extended L2, some subclusters of it) gives, from off on. */
struct piece {
    enum run_kind kind;
    bool has_host;
    uint64_t bytes;
    uint64_t host_off;
    uint64_t entry;
};

static enum map_status check_cluster(const struct layer *layer, uint64_t cluster_off, uint64_t entry,
                                     enum entry_kind kind, struct map_fault *ret_fault)
{
    if (kind == ENTRY_IS_COMPRESSED)
        return layer->has_data_file ? fault(ret_fault, MAP_COMPRESSED_DATA_FILE, cluster_off, entry, 0)
                                    : MAP_OK;
    if ((kind == ENTRY_ZERO_PLAIN || kind == ENTRY_ZERO_ALLOCATED) && layer->header.version < 3)
        return fault(ret_fault, MAP_ZERO_IN_V2, cluster_off, entry, 0);
    if (kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOCATED) {
        const uint64_t host = entry & ENTRY_OFF_MASK;

        if (host & (layer->header.cluster_bytes - 1))
            return fault(ret_fault, MAP_UNALIGNED, cluster_off, entry, 0);
        if (layer->has_data_file && host != cluster_off)
            return fault(ret_fault, MAP_DATA_FILE_OFF, cluster_off, entry, 0);
    }
    return MAP_OK;
}

/* A cluster of an image without extended L2. */
static enum map_status plain_piece(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t off,
                                   struct piece *ret, struct map_fault *ret_fault)
{
    const uint32_t bits = layer->header.cluster_bits;
    const uint64_t mask = layer->header.cluster_bytes - 1;
    const uint64_t index = (off >> bits) & ((1ull << (layer->slice_shift - bits)) - 1);
    const uint64_t entry = load_entry(entries, index);
    const enum entry_kind kind = entry_kind(entry, false, layer->has_data_file);
    const enum map_status status = check_cluster(layer, off & ~mask, entry, kind, ret_fault);
    static const enum run_kind kinds[] = {
        [ENTRY_UNALLOCATED] = RUN_UNALLOCATED,  [ENTRY_ZERO_PLAIN] = RUN_ZERO,
        [ENTRY_ZERO_ALLOCATED] = RUN_ZERO,      [ENTRY_NORMAL] = RUN_DATA,
        [ENTRY_IS_COMPRESSED] = RUN_COMPRESSED,
    };

    if (unlikely(status != MAP_OK))
        return status;
    ret->kind = kinds[kind];
    ret->has_host = kind == ENTRY_NORMAL || kind == ENTRY_ZERO_ALLOCATED;
    ret->host_off = (entry & ENTRY_OFF_MASK) + (off & mask);
    ret->bytes = layer->header.cluster_bytes - (off & mask);
    ret->entry = entry;
    return MAP_OK;
}

static enum run_kind subcluster_kind(uint64_t bitmap, uint32_t index)
{
    if (bitmap_allocated(bitmap) & (1u << index))
        return RUN_DATA;
    return bitmap_zero(bitmap) & (1u << index) ? RUN_ZERO : RUN_UNALLOCATED;
}

/* The alike subclusters from off to the end of its cluster at most. */
static enum map_status extended_piece(const struct layer *layer, const _Atomic uint64_t *entries,
                                      uint64_t off, struct piece *ret, struct map_fault *ret_fault)
{
    const uint32_t bits = layer->header.cluster_bits;
    const uint64_t mask = layer->header.cluster_bytes - 1;
    const uint64_t index = (off >> bits) & ((1ull << (layer->slice_shift - bits)) - 1);
    const uint64_t entry = load_entry(entries, 2 * index), bitmap = load_entry(entries, 2 * index + 1);
    const enum entry_kind kind = entry_kind(entry, true, layer->has_data_file);
    const enum map_status status = check_cluster(layer, off & ~mask, entry, kind, ret_fault);
    const uint32_t sub_shift = bits - 5;
    uint32_t sub = (uint32_t)((off & mask) >> sub_shift);

    if (status != MAP_OK)
        return status;
    ret->entry = entry;
    ret->has_host = kind == ENTRY_NORMAL;
    ret->host_off = (entry & ENTRY_OFF_MASK) + (off & mask);
    if (kind == ENTRY_IS_COMPRESSED) {
        if (bitmap)
            return fault(ret_fault, MAP_BITMAP, off & ~mask, entry, bitmap);
        ret->kind = RUN_COMPRESSED;
        ret->bytes = layer->header.cluster_bytes - (off & mask);
        return MAP_OK;
    }
    if (!bitmap_valid(bitmap, kind == ENTRY_NORMAL))
        return fault(ret_fault, MAP_BITMAP, off & ~mask, entry, bitmap);
    ret->kind = subcluster_kind(bitmap, sub);
    while (++sub < SUBCLUSTERS_PER_CLUSTER && subcluster_kind(bitmap, sub) == ret->kind)
        ;
    ret->bytes = ((uint64_t)sub << sub_shift) - (off & mask);
    return MAP_OK;
}

static bool continues(const struct run *run, const struct piece *piece)
{
    return piece->kind == run->kind && piece->kind != RUN_COMPRESSED && piece->has_host == run->has_host &&
           (!run->has_host || piece->host_off == run->host_off + run->bytes);
}

enum map_status map_slice(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t guest_off,
                          uint64_t bytes_max, struct run *ret_run, struct map_fault *ret_fault)
{
    const uint64_t limit = MIN(bytes_max, map_slice_rest(layer, guest_off));
    struct run run = {0};

    do {
        struct piece piece;
        const enum map_status status =
            layer->header.extended_l2
                ? extended_piece(layer, entries, guest_off + run.bytes, &piece, ret_fault)
                : plain_piece(layer, entries, guest_off + run.bytes, &piece, ret_fault);

        if (unlikely(status != MAP_OK)) {
            if (run.bytes)
                break; /* what comes before the fault is good */
            return status;
        }
        if (!run.bytes)
            run = (struct run){piece.kind, piece.has_host, piece.bytes, piece.host_off, piece.entry};
        else if (continues(&run, &piece))
            run.bytes += piece.bytes;
        else
            break;
    } while (run.bytes < limit);

    run.bytes = MIN(run.bytes, limit);
    *ret_run = run;
    return MAP_OK;
}

enum map_status map_cluster(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t off,
                            struct cluster_view *ret, struct map_fault *ret_fault)
{
    const bool extended = layer->header.extended_l2;
    const uint32_t bits = layer->header.cluster_bits;
    const uint64_t cluster_off = round_down(off, layer->header.cluster_bytes);
    const uint64_t index = ((off & layer->slice_mask) >> bits) << extended;
    struct cluster_view v = {.entry = load_entry(entries, index)};
    enum map_status status;

    v.bitmap = extended ? load_entry(entries, index + 1) : 0;
    v.kind = entry_kind(v.entry, extended, layer->has_data_file);
    v.copied = v.entry & ENTRY_COPIED || !GUARD(COPIED);
    v.host_off = layer->has_data_file ? cluster_off : v.entry & ENTRY_OFF_MASK;
    status = check_cluster(layer, cluster_off, v.entry, v.kind, ret_fault);
    if (status != MAP_OK)
        return status;
    if (extended &&
        (v.kind == ENTRY_IS_COMPRESSED ? v.bitmap != 0 : !bitmap_valid(v.bitmap, v.kind == ENTRY_NORMAL)))
        return fault(ret_fault, MAP_BITMAP, cluster_off, v.entry, v.bitmap);
    *ret = v;
    return MAP_OK;
}

/* Of one cluster, from off to the end of what is alike. */
static uint64_t in_place_piece(const struct layer *layer, const struct cluster_view *v, uint64_t off)
{
    const uint32_t cluster_bytes = layer->header.cluster_bytes;
    const uint64_t within = off & (cluster_bytes - 1);
    const uint32_t sub_shift = layer->header.cluster_bits - 5;
    uint32_t sub = (uint32_t)(within >> sub_shift);

    if (v->kind != ENTRY_NORMAL || !v->copied)
        return 0;
    if (!layer->header.extended_l2)
        return cluster_bytes - within;
    while (sub < SUBCLUSTERS_PER_CLUSTER && bitmap_allocated(v->bitmap) & (1u << sub))
        sub++;
    return (uint64_t)sub << sub_shift > within ? ((uint64_t)sub << sub_shift) - within : 0;
}

uint64_t map_in_place(const struct layer *layer, const _Atomic uint64_t *entries, uint64_t off,
                      uint64_t bytes_max, uint64_t *ret_host_off)
{
    const uint64_t limit = MIN(bytes_max, map_slice_rest(layer, off)), mask = layer->header.cluster_bytes - 1;
    struct map_fault ignored;
    struct cluster_view v;
    uint64_t n = 0;

    while (n < limit) {
        uint64_t piece;

        if (map_cluster(layer, entries, off + n, &v, &ignored) != MAP_OK)
            break; /* the owner will say what is wrong */
        piece = in_place_piece(layer, &v, off + n);
        if (!n)
            *ret_host_off = v.host_off + (off & mask);
        else if (v.host_off + ((off + n) & mask) != *ret_host_off + n)
            break;
        if (!piece)
            break;
        n += piece;
        if ((off + n) & mask)
            break; /* the cluster goes on otherwise */
    }
    return MIN(n, limit);
}

void map_fault_text(const struct layer *layer, const struct map_fault *f, char *buf, size_t buf_bytes)
{
    const uint64_t l2_index =
        (f->guest_off >> layer->header.cluster_bits) & ((1ull << layer->header.l2_entries_bits) - 1);
    const uint64_t l1_index = f->guest_off >> header_l1_shift(&layer->header);
    const char *what = "is invalid";

    switch (f->status) {
    case MAP_OK:
        break;
    case MAP_UNALIGNED:
        what = "has a host offset that is not a multiple of the cluster size";
        break;
    case MAP_ZERO_IN_V2:
        what = "has the zero flag, which version 2 does not know";
        break;
    case MAP_BITMAP:
        what = "has an invalid subcluster bitmap";
        break;
    case MAP_COMPRESSED_DATA_FILE:
        what = "is compressed although the image has an external data file";
        break;
    case MAP_DATA_FILE_OFF:
        what = "does not map its guest offset to itself in the external data file";
        break;
    }
    snprintf(buf, buf_bytes,
             "L2 entry 0x%016" PRIx64 " (bitmap 0x%016" PRIx64 ", L1 index %" PRIu64 ", L2 index %" PRIu64
             ", guest offset 0x%" PRIx64 ") %s",
             f->entry, f->bitmap, l1_index, l2_index, f->guest_off, what);
}

int map_check_l1(const struct layer *layer, uint64_t l1_index, uint64_t l1_entry, char *buf, size_t buf_bytes)
{
    const uint64_t off = l1_entry & ENTRY_OFF_MASK;

    if (likely(!(off & (layer->header.cluster_bytes - 1))))
        return 0;
    snprintf(buf, buf_bytes,
             "L1 entry %" PRIu64 " names an L2 table at offset 0x%" PRIx64
             ", which is not a multiple of the cluster size",
             l1_index, off);
    return -EIO;
}
