/* SPDX-License-Identifier: MIT */
#include "tests/unit/image_builder.h"

#include <endian.h>
#include <libdeflate.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/checked.h"
#include "format/entry.h"
#include "format/header.h"
#include "format/limits.h"
#include "format/refcount.h"

static void must(bool ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    abort();
}

uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state ? *state : 0x9e3779b97f4a7c15u;

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

uint64_t random_below(uint64_t *state, uint64_t limit)
{
    return random_next(state) % limit;
}

void stamp_fill(void *buf, uint64_t bytes, uint64_t guest_off, uint32_t salt)
{
    for (uint64_t i = 0; i < bytes; i += 8) {
        const uint64_t word = (guest_off + i) ^ ((uint64_t)salt << 48) ^ 0x5cull << 40;

        memcpy((uint8_t *)buf + i, &word, MIN(8u, bytes - i));
    }
}

/* ---- host space ---- */

static void grow(struct bytes *b, size_t count)
{
    if (count > b->room) {
        const size_t room = MAX(count, b->room * 2);

        b->p = realloc(b->p, room);
        must(b->p, "realloc");
        memset(b->p + b->room, 0, room - b->room);
        b->room = room;
    }
    b->count = MAX(b->count, count);
}

static uint64_t allocate(struct image_builder *b, uint64_t clusters, uint32_t refcount)
{
    const uint64_t off = b->host.count, first = off / b->cluster_bytes;

    grow(&b->host, off + clusters * b->cluster_bytes);
    if (first + clusters > b->refs_room) {
        b->refs_room = 2 * (first + clusters);
        b->refs = realloc(b->refs, b->refs_room * sizeof *b->refs);
        must(b->refs, "realloc");
    }
    for (uint64_t i = 0; i < clusters; i++)
        b->refs[first + i] = refcount;
    return off;
}

uint64_t builder_allocate(struct image_builder *b)
{
    return allocate(b, 1, 1);
}

void builder_put_be64(struct image_builder *b, uint64_t off, uint64_t value)
{
    const uint64_t v = htobe64(value);

    memcpy(b->host.p + off, &v, sizeof v);
}

void builder_put_be32(struct image_builder *b, uint64_t off, uint32_t value)
{
    const uint32_t v = htobe32(value);

    memcpy(b->host.p + off, &v, sizeof v);
}

static uint64_t load_be64(const struct image_builder *b, uint64_t off)
{
    uint64_t v;

    memcpy(&v, b->host.p + off, sizeof v);
    return be64toh(v);
}

/* ---- the model of the guest's view ---- */

static void decide(struct image_builder *b, uint64_t off, uint64_t bytes)
{
    memset(b->present + off / SECTOR_BYTES, 1, bytes / SECTOR_BYTES);
}

void builder_expect(struct image_builder *const *layers, int count, uint64_t off, uint64_t bytes,
                    uint8_t *out)
{
    for (uint64_t at = 0; at < bytes;) {
        const uint64_t pos = off + at, n = MIN(SECTOR_BYTES - pos % SECTOR_BYTES, bytes - at);
        int i = 0;

        while (i < count && pos < layers[i]->spec.virtual_bytes && !layers[i]->present[pos / SECTOR_BYTES])
            i++;
        if (i < count && pos < layers[i]->spec.virtual_bytes)
            memcpy(out + at, layers[i]->plain + pos, n);
        else
            memset(out + at, 0, n);
        at += n;
    }
}

/* ---- entries ---- */

static uint64_t l2_table(struct image_builder *b, uint64_t l1_index)
{
    uint64_t entry = load_be64(b, b->l1_off + l1_index * 8);

    if (!(entry & ENTRY_OFF_MASK)) {
        entry = builder_allocate(b) | ENTRY_COPIED;
        builder_l1_entry(b, l1_index, entry);
    }
    return entry & ENTRY_OFF_MASK;
}

void builder_l1_entry(struct image_builder *b, uint64_t l1_index, uint64_t entry)
{
    builder_put_be64(b, b->l1_off + l1_index * 8, entry);
}

uint64_t builder_entry_off(struct image_builder *b, uint64_t cluster)
{
    return l2_table(b, cluster / b->l2_entries) + cluster % b->l2_entries * b->l2_entry_bytes;
}

uint64_t builder_get_entry(struct image_builder *b, uint64_t cluster)
{
    return load_be64(b, builder_entry_off(b, cluster));
}

void builder_entry(struct image_builder *b, uint64_t cluster, uint64_t entry, uint64_t bitmap)
{
    const uint64_t off = builder_entry_off(b, cluster);

    builder_put_be64(b, off, entry);
    if (b->spec.extended_l2)
        builder_put_be64(b, off + 8, bitmap);
}

/* A host cluster for guest data: entry bits, and where its bytes are. */
static uint64_t data_cluster(struct image_builder *b, uint64_t cluster, uint8_t **ret_bytes)
{
    if (b->spec.data_file) {
        grow(&b->data, (cluster + 1) * b->cluster_bytes);
        *ret_bytes = b->data.p + cluster * b->cluster_bytes;
        return cluster * b->cluster_bytes | ENTRY_COPIED;
    }
    const uint64_t off = builder_allocate(b);

    *ret_bytes = b->host.p + off;
    return off | ENTRY_COPIED;
}

void builder_data(struct image_builder *b, uint64_t cluster)
{
    const uint64_t off = cluster * b->cluster_bytes;
    uint8_t *bytes;
    uint64_t entry;

    if (b->spec.extended_l2) {
        builder_subclusters(b, cluster, UINT32_MAX, 0, true);
        return;
    }
    entry = data_cluster(b, cluster, &bytes);
    stamp_fill(bytes, b->cluster_bytes, off, b->spec.salt);
    memcpy(b->plain + off, bytes, b->cluster_bytes);
    decide(b, off, b->cluster_bytes);
    builder_entry(b, cluster, entry, 0);
}

void builder_zero(struct image_builder *b, uint64_t cluster, bool allocated)
{
    uint64_t entry = 0;
    uint8_t *bytes;

    if (b->spec.extended_l2) {
        builder_subclusters(b, cluster, 0, UINT32_MAX, allocated);
        return;
    }
    if (allocated) {
        entry = data_cluster(b, cluster, &bytes);
        memset(bytes, 0xdb, b->cluster_bytes); /* never seen by a guest */
    }
    builder_entry(b, cluster, entry | ENTRY_ZERO, 0);
    decide(b, cluster * b->cluster_bytes, b->cluster_bytes);
}

void builder_subclusters(struct image_builder *b, uint64_t cluster, uint32_t allocated, uint32_t zero,
                         bool with_host)
{
    const uint32_t sub_bytes = b->cluster_bytes / SUBCLUSTERS_PER_CLUSTER;
    uint64_t entry = 0;
    uint8_t *bytes = NULL;

    if (allocated || with_host) {
        entry = data_cluster(b, cluster, &bytes);
        memset(bytes, 0xdb, b->cluster_bytes);
    }
    for (uint32_t i = 0; i < SUBCLUSTERS_PER_CLUSTER; i++) {
        const uint64_t off = cluster * b->cluster_bytes + i * sub_bytes;

        if (allocated & 1u << i) {
            stamp_fill(bytes + i * sub_bytes, sub_bytes, off, b->spec.salt);
            stamp_fill(b->plain + off, sub_bytes, off, b->spec.salt);
        }
        if ((allocated | zero) & 1u << i)
            decide(b, off, sub_bytes);
    }
    builder_entry(b, cluster, entry, (uint64_t)zero << 32 | allocated);
}

/* ---- compressed clusters ---- */

static size_t compress_cluster(const struct image_builder *b, const uint8_t *plain, uint8_t *out)
{
    size_t n;

    if (b->spec.zstd) {
        n = ZSTD_compress(out, b->cluster_bytes - 1, plain, b->cluster_bytes, 3);
        must(!ZSTD_isError(n), "ZSTD_compress");
        return n;
    }
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(6);

    must(c, "libdeflate_alloc_compressor");
    n = libdeflate_deflate_compress(c, plain, b->cluster_bytes, out, b->cluster_bytes - 1);
    libdeflate_free_compressor(c);
    must(n > 0, "libdeflate_deflate_compress");
    return n;
}

/* Room for a stream: behind the one before it, whatever the alignment, while refcounts and contiguity allow.
 */
static uint64_t stream_room(struct image_builder *b, size_t bytes)
{
    const uint64_t max_refs = refcount_max(b->spec.refcount_order);
    const bool full = b->stream_off >= b->stream_end || b->refs[b->stream_off / b->cluster_bytes] >= max_refs;

    if (full)
        b->stream_off = b->stream_end = 0;
    while (b->stream_off + bytes > b->stream_end) {
        const uint64_t off = allocate(b, 1, 0);

        if (off != b->stream_end || !b->stream_end)
            b->stream_off = off;
        b->stream_end = off + b->cluster_bytes;
    }
    b->stream_off += bytes;
    return b->stream_off - bytes;
}

void builder_compressed(struct image_builder *b, uint64_t cluster)
{
    const uint32_t shift = 62 - (b->spec.cluster_bits - 8);
    uint8_t *out = malloc(b->cluster_bytes);
    uint8_t *plain = b->plain + cluster * b->cluster_bytes;
    uint64_t off, sectors;
    size_t n;

    must(out, "malloc");
    stamp_fill(plain, b->cluster_bytes, cluster * b->cluster_bytes, b->spec.salt);
    n = compress_cluster(b, plain, out);
    off = stream_room(b, n);
    memcpy(b->host.p + off, out, n);
    free(out);
    sectors = (off + n - 1) / SECTOR_BYTES - off / SECTOR_BYTES;
    for (uint64_t c = off / b->cluster_bytes; c <= (off + n - 1) / b->cluster_bytes; c++)
        b->refs[c]++;
    builder_entry(b, cluster, off | sectors << shift | ENTRY_COMPRESSED, 0);
    decide(b, cluster * b->cluster_bytes, b->cluster_bytes);
}

/* ---- whole images ---- */

static uint64_t guest_clusters(const struct image_builder *b)
{
    return div_round_up(b->spec.virtual_bytes, b->cluster_bytes);
}

static void mixed_extended(struct image_builder *b, uint64_t cluster, uint64_t *seed)
{
    const uint32_t zero = (uint32_t)(random_next(seed) & random_next(seed));
    const uint32_t allocated = (uint32_t)random_next(seed) & ~zero;

    builder_subclusters(b, cluster, random_below(seed, 3) ? allocated : 0, zero, random_below(seed, 2));
}

void builder_mixed(struct image_builder *b, uint64_t seed)
{
    const bool may_compress = !b->spec.data_file;

    for (uint64_t c = 0; c < guest_clusters(b); c++) {
        /* Runs of one kind, so that translation has something to join. */
        const uint64_t kind = random_below(&seed, 8);
        const uint64_t run = 1 + random_below(&seed, 3), end = MIN(c + run, guest_clusters(b));

        for (; c < end; c++) {
            if (kind < 3)
                builder_data(b, c);
            else if (kind == 3 && may_compress)
                builder_compressed(b, c);
            else if (kind == 4 && b->spec.extended_l2)
                mixed_extended(b, c, &seed);
            else if (kind == 5 && b->spec.version >= 3)
                builder_zero(b, c, false);
            else if (kind == 6 && b->spec.version >= 3)
                builder_zero(b, c, true);
        }
        c--;
    }
}

void builder_raw(struct image_builder *b)
{
    stamp_fill(b->plain, b->spec.virtual_bytes, 0, b->spec.salt);
    decide(b, 0, round_up(b->spec.virtual_bytes, SECTOR_BYTES));
    grow(&b->host, b->spec.virtual_bytes);
    memcpy(b->host.p, b->plain, b->spec.virtual_bytes);
}

static uint64_t put_extension(struct image_builder *b, uint64_t at, uint32_t type, const char *text)
{
    const uint32_t n = (uint32_t)strlen(text);

    builder_put_be32(b, at, type);
    builder_put_be32(b, at + 4, n);
    memcpy(b->host.p + at + 8, text, n);
    return at + 8 + round_up(n, 8);
}

static void put_header(struct image_builder *b)
{
    const struct image_spec *s = &b->spec;
    uint64_t at = s->version < 3 ? HEADER_V2_BYTES : sizeof(struct header_disk);

    builder_put_be32(b, 0, QCOW2_MAGIC);
    builder_put_be32(b, 4, s->version);
    builder_put_be32(b, 20, s->cluster_bits);
    builder_put_be64(b, 24, s->virtual_bytes);
    builder_put_be32(b, 32, s->crypt_method);
    builder_put_be32(b, 36, b->l1_count);
    builder_put_be64(b, 40, b->l1_off);
    if (s->version >= 3) {
        builder_put_be64(b, 72,
                         (s->data_file ? INCOMPAT_DATA_FILE : 0) | (s->zstd ? INCOMPAT_COMPRESSION : 0) |
                             (s->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0));
        builder_put_be32(b, 96, s->refcount_order);
        builder_put_be32(b, 100, (uint32_t)at);
        b->host.p[104] = s->zstd;
    }
    if (s->backing_format)
        at = put_extension(b, at, EXTENSION_BACKING_FORMAT, s->backing_format);
    if (s->data_file_name)
        at = put_extension(b, at, EXTENSION_DATA_FILE, s->data_file_name);
    at += 8; /* the end marker */
    if (s->backing_name) {
        builder_put_be64(b, 8, at);
        builder_put_be32(b, 16, (uint32_t)strlen(s->backing_name));
        memcpy(b->host.p + at, s->backing_name, strlen(s->backing_name));
    }
}

struct image_builder *builder_new(const struct image_spec *spec)
{
    struct image_builder *b = calloc(1, sizeof *b);
    uint64_t room;

    must(b, "calloc");
    b->spec = *spec;
    b->spec.data_file |= spec->data_file_name != NULL;
    b->cluster_bytes = 1u << spec->cluster_bits;
    b->l2_entry_bytes = spec->extended_l2 ? 16 : 8;
    b->l2_entries = b->cluster_bytes / b->l2_entry_bytes;
    room = round_up(spec->virtual_bytes, b->cluster_bytes) + b->cluster_bytes;
    b->plain = calloc(1, room);
    b->present = calloc(1, room / SECTOR_BYTES);
    must(b->plain && b->present, "calloc");
    if (spec->raw)
        return b;
    b->l1_count = (uint32_t)div_round_up(guest_clusters(b), b->l2_entries);
    allocate(b, 1, 1);
    b->l1_off = allocate(b, MAX(1u, div_round_up(b->l1_count * 8ull, b->cluster_bytes)), 1);
    put_header(b);
    return b;
}

void builder_free(struct image_builder *b)
{
    if (!b)
        return;
    free(b->host.p);
    free(b->data.p);
    free(b->refs);
    free(b->plain);
    free(b->present);
    free(b);
}

/* ---- refcounts and files ---- */

static void put_refcount(uint8_t *block, uint32_t order, uint64_t index, uint32_t value)
{
    if (order < 3)
        block[index >> (3 - order)] |= (uint8_t)(value << ((index & ((1u << (3 - order)) - 1)) << order));
    else
        for (uint32_t i = 0; i < 4 && i < 1u << (order - 3); i++)
            block[((index + 1) << (order - 3)) - 1 - i] = (uint8_t)(value >> 8 * i);
}

static void put_refcounts(struct image_builder *b)
{
    const uint64_t per_block = refcount_block_count(b->spec.cluster_bits, b->spec.refcount_order);
    const uint64_t used = b->host.count / b->cluster_bytes;
    uint64_t blocks = 1, table_clusters, total, blocks_off, table_off;

    do {
        blocks++;
        table_clusters = div_round_up(blocks * 8, b->cluster_bytes);
        total = used + blocks + table_clusters;
    } while (blocks * per_block < total);
    blocks_off = allocate(b, blocks, 1);
    table_off = allocate(b, table_clusters, 1);
    for (uint64_t i = 0; i < blocks; i++)
        builder_put_be64(b, table_off + i * 8, blocks_off + i * b->cluster_bytes);
    /* Blocks are adjacent, so a cluster's index runs through all of them. */
    for (uint64_t i = 0; i < total; i++)
        put_refcount(b->host.p + blocks_off + i / per_block * b->cluster_bytes, b->spec.refcount_order,
                     i % per_block, b->refs[i]);
    builder_put_be64(b, 48, table_off);
    builder_put_be32(b, 56, (uint32_t)table_clusters);
}

static void write_file(const char *path, const struct bytes *bytes)
{
    FILE *f = fopen(path, "we");

    must(f, path);
    must(fwrite(bytes->p, 1, bytes->count, f) == bytes->count, path);
    must(fclose(f) == 0, path);
}

void builder_write(struct image_builder *b, const char *path)
{
    if (!b->spec.raw)
        put_refcounts(b);
    write_file(path, &b->host);
}

void builder_write_data_file(const struct image_builder *b, const char *path)
{
    write_file(path, &b->data);
}
