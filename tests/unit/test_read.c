/* SPDX-License-Identifier: MIT */
/* What a guest reads: every kind of cluster, image and buffer, compared byte by byte with what was built. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(read, .fini = abort_if_memory_is_lost);
TestSuite(damage, .fini = abort_if_memory_is_lost);

#define KIB (1ull << 10)
#define MIB (1ull << 20)

struct shape {
    struct image_spec specs[4];
    int count;
    uint32_t slice_bytes;
};

static const struct shape shapes[] = {
    {{{IMAGE_SPEC_INIT, .virtual_bytes = 3 * MIB + 512}}, 1, 0},
    {{{IMAGE_SPEC_INIT, .virtual_bytes = 300 * KIB + 100}}, 1, 512}, /* no whole sector */
    {{{.version = 2, .cluster_bits = 16, .refcount_order = 4, .virtual_bytes = 3 * MIB}}, 1, 0},
    {{{.version = 3, .cluster_bits = 9, .refcount_order = 4, .virtual_bytes = 200 * KIB + 512}}, 1, 0},
    {{{.version = 3, .cluster_bits = 12, .refcount_order = 0, .virtual_bytes = MIB}}, 1, 512},
    {{{.version = 3, .cluster_bits = 21, .refcount_order = 6, .virtual_bytes = 20 * MIB + 4096}}, 1, 65536},
    {{{IMAGE_SPEC_INIT, .zstd = true, .virtual_bytes = 3 * MIB}}, 1, 0},
    {{{IMAGE_SPEC_INIT, .extended_l2 = true, .virtual_bytes = 5 * MIB + 1024}}, 1, 0},
    {{{.version = 3,
       .cluster_bits = 14,
       .refcount_order = 1,
       .extended_l2 = true,
       .zstd = true,
       .virtual_bytes = 3 * MIB}},
     1,
     512},
    {{{IMAGE_SPEC_INIT, .data_file_name = "data", .virtual_bytes = 3 * MIB}}, 1, 0},
    {{{IMAGE_SPEC_INIT, .data_file_name = "data", .extended_l2 = true, .virtual_bytes = 3 * MIB}}, 1, 0},
    /* Chains: backing files shorter and longer than what they back, of other geometries, and raw. */
    {{{IMAGE_SPEC_INIT, .virtual_bytes = 4 * MIB}, {IMAGE_SPEC_INIT, .virtual_bytes = 2 * MIB + 512}}, 2, 0},
    {{{IMAGE_SPEC_INIT, .virtual_bytes = 2 * MIB},
      {.version = 2, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 4 * MIB},
      {.raw = true, .cluster_bits = 16, .virtual_bytes = 1 * MIB + 512}},
     3,
     512},
    {{{IMAGE_SPEC_INIT, .extended_l2 = true, .virtual_bytes = 3 * MIB},
      {IMAGE_SPEC_INIT, .zstd = true, .virtual_bytes = 3 * MIB},
      {.version = 3, .cluster_bits = 9, .refcount_order = 4, .virtual_bytes = 100 * KIB},
      {.raw = true, .cluster_bits = 16, .virtual_bytes = 3 * MIB}},
     4,
     512},
};

/* A parameter goes to another process, where addresses differ: so it is a number. */
#define EACH_SHAPE(name)                                                                                     \
    ParameterizedTestParameters(read, name)                                                                  \
    {                                                                                                        \
        static int numbers[ARRAY_COUNT(shapes)];                                                             \
                                                                                                             \
        for (size_t i = 0; i < ARRAY_COUNT(shapes); i++)                                                     \
            numbers[i] = (int)i;                                                                             \
        return cr_make_param_array(int, numbers, ARRAY_COUNT(shapes));                                       \
    }                                                                                                        \
    static void name##_of(const struct shape *s);                                                            \
    ParameterizedTest(int *number, read, name, .timeout = 120)                                               \
    {                                                                                                        \
        name##_of(&shapes[*number]);                                                                         \
    }                                                                                                        \
    static void name##_of(const struct shape *s)

struct way {
    enum scow_backend backend;
    enum scow_io_mode io_mode;
    uint64_t cache_bytes;
};

static const struct way ways[] = {
    {SCOW_BACKEND_AUTO, SCOW_IO_AUTO, 0},
    {SCOW_BACKEND_AUTO, SCOW_IO_BUFFERED, 1},
    {SCOW_BACKEND_THREADS, SCOW_IO_AUTO, 1},
    {SCOW_BACKEND_THREADS, SCOW_IO_BUFFERED, 0},
};

static struct scow_open_options options_of(const struct way *way, const struct shape *s)
{
    struct scow_open_options o = rig_options();

    o.backend = way->backend;
    o.io_mode = way->io_mode;
    o.cache_bytes = way->cache_bytes;
    o.slice_bytes = s->slice_bytes;
    return o;
}

EACH_SHAPE(everything)
{
    struct rig rig;

    rig_build(&rig, s->specs, s->count, 77);
    for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
        const struct scow_open_options o = options_of(&ways[i], s);

        rig_open(&rig, &o);
        rig_queue(&rig, 8);
        cr_assert(rig_verify_all(&rig, rig.queue, 256 * KIB), "way %zu", i);
        cr_assert(rig_verify_all(&rig, rig.queue, 7 * 512), "way %zu", i);
        scow_queue_destroy(rig.queue);
        scow_close(rig.image);
    }
    rig.queue = NULL;
    rig.image = NULL;
    rig_free(&rig);
}

EACH_SHAPE(scattered)
{
    uint8_t *memory = aligned_alloc(4096, MIB);
    uint64_t seed = 4711;
    struct rig rig;

    rig_build(&rig, s->specs, s->count, 78);
    for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
        const struct scow_open_options o = options_of(&ways[i], s);

        rig_open(&rig, &o);
        rig_queue(&rig, 8);
        const uint64_t size = scow_size(rig.image), sectors = size / 512;
        for (int k = 0; k < 300; k++) {
            const uint64_t off = random_below(&seed, sectors) * 512;
            const uint64_t room = MIN(size - off, k % 10 ? 20 * KIB : 600 * KIB);
            const uint64_t wanted = random_below(&seed, room / 512 + 2) * 512;
            /* Whole sectors, or up to the very end. */
            const uint64_t bytes = wanted <= room ? wanted : off + room == size ? room : room / 512 * 512;
            /* Any address: aligned ones are read into, others by way of a copy. */
            uint8_t *buf = memory + 4096 + (k % 2 ? random_below(&seed, 4096) : 0);

            memset(memory, 0xee, bytes + 12288);
            cr_assert_eq(rig_read(rig.queue, off, buf, bytes), 0, "%s", rig_text());
            cr_assert(rig_matches(&rig, off, bytes, buf));
            cr_assert_eq(buf[-1], 0xee);
            cr_assert_eq(buf[bytes], 0xee);
        }
        scow_queue_destroy(rig.queue);
        scow_close(rig.image);
    }
    free(memory);
    rig.queue = NULL;
    rig.image = NULL;
    rig_free(&rig);
}

/* Vectors of any number, length and address, empty ones among them. */
EACH_SHAPE(vectors)
{
    uint8_t *memory = aligned_alloc(4096, 4 * MIB), *flat = malloc(MIB);
    uint64_t seed = 99;
    struct rig rig;

    rig_build(&rig, s->specs, s->count, 79);
    for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
        const struct scow_open_options o = options_of(&ways[i], s);

        rig_open(&rig, &o);
        rig_queue(&rig, 8);
        const uint64_t sectors = scow_size(rig.image) / 512;
        for (int k = 0; k < 150; k++) {
            const uint64_t from = random_below(&seed, sectors), most = MIN(sectors - from, 400);
            const uint64_t bytes = (1 + random_below(&seed, most)) * 512;
            uint64_t left = bytes, at = 0, done = 0;
            struct iovec iov[200];
            int n = 0;

            while (left) {
                /* Mostly what direct I/O can use, now and then what it cannot. */
                const uint64_t odd = random_below(&seed, 6);
                uint64_t len = odd == 0   ? random_below(&seed, 700)
                               : odd == 1 ? 0
                                          : (1 + random_below(&seed, 8)) * 4096;

                if (n == 199 || len > left)
                    len = left;
                iov[n++] = (struct iovec){memory + at, len};
                left -= len;
                at += (len + 4095) / 4096 * 4096 + (odd == 2 ? 512 : odd == 3 ? 3 : 4096);
            }
            cr_assert_eq(scow_queue_readv(rig.queue, from * 512, iov, n, NULL, 0), 0, "%s", scow_error());
            cr_assert(rig_collect(rig.queue, 1));
            for (int v = 0; v < n; v++) {
                memcpy(flat + done, iov[v].iov_base, iov[v].iov_len);
                done += iov[v].iov_len;
            }
            cr_assert(rig_matches(&rig, from * 512, bytes, flat), "way %zu, %d vectors", i, n);
        }
        scow_queue_destroy(rig.queue);
        scow_close(rig.image);
    }
    free(memory);
    free(flat);
    rig.queue = NULL;
    rig.image = NULL;
    rig_free(&rig);
}

/* Blocking reads take any offset and length. */
EACH_SHAPE(blocking)
{
    uint8_t *buf = malloc(MIB);
    uint64_t seed = 5;
    struct rig rig;

    rig_build(&rig, s->specs, s->count, 80);
    rig_open(&rig, NULL);
    const uint64_t size = scow_size(rig.image);
    for (int k = 0; k < 200; k++) {
        const uint64_t off = k == 0 ? size : random_below(&seed, size);
        const uint64_t most = MIN(size - off, k % 8 ? 5000 : 600 * KIB);
        const uint64_t bytes = random_below(&seed, most + 1);

        memset(buf, 0xee, bytes + 1);
        cr_assert_eq(scow_pread(rig.image, buf, bytes, off), 0, "%s", scow_error());
        cr_assert(rig_matches(&rig, off, bytes, buf));
        cr_assert_eq(buf[bytes], 0xee);
    }
    cr_assert_eq(scow_pread(rig.image, buf, 2, size - 1), -EINVAL);
    cr_assert_eq(scow_pread(rig.image, buf, SIZE_MAX, 1), -EINVAL);
    cr_assert_eq(scow_pread(rig.image, buf, 1, UINT64_MAX), -EINVAL);
    free(buf);
    rig_free(&rig);
}

/* A raw image by itself, its last sector a partial one. */
Test(read, raw)
{
    struct image_spec spec = {.raw = true, .cluster_bits = 16, .virtual_bytes = 300001};
    struct scow_open_options o = rig_options();
    uint8_t *buf = aligned_alloc(4096, 512 * KIB);
    struct rig rig;

    rig_build(&rig, &spec, 1, 1);
    o.format = SCOW_FORMAT_RAW;
    for (int i = 0; i < 2; i++) {
        o.io_mode = i ? SCOW_IO_BUFFERED : SCOW_IO_AUTO;
        rig_open(&rig, &o);
        rig_queue(&rig, 4);
        cr_assert_eq(rig_read(rig.queue, 0, buf, 300032), 0, "%s", rig_text());
        cr_assert(rig_matches(&rig, 0, 300001, buf));
        for (int k = 300001; k < 300032; k++)
            cr_assert_eq(buf[k], 0);
        scow_queue_destroy(rig.queue);
        scow_close(rig.image);
    }
    free(buf);
    rig.queue = NULL;
    rig.image = NULL;
    rig_free(&rig);
}

/* ---- what is wrong with an image shows in the request that meets it ---- */

struct fault {
    uint64_t entry;
    const char *text;
};

static void expect_fault(const struct rig *rig, uint64_t off, const char *text)
{
    uint8_t buf[512] = {0};

    /* Once by way of a shard, once from the cache. */
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(rig_read(rig->queue, off, buf, sizeof buf), -EIO);
        cr_assert_not_null(strstr(rig_text(), text), "\"%s\" lacks \"%s\"", rig_text(), text);
    }
    cr_assert_eq(scow_pread(rig->image, buf, 100, off + 7), -EIO);
    cr_assert_not_null(strstr(scow_error(), text), "\"%s\" lacks \"%s\"", scow_error(), text);
}

Test(damage, entries)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = 2ull << 30};
    struct rig rig = {.count = 1};
    struct image_builder *b = builder_new(&spec);

    rig.layers[0] = b;
    snprintf(rig.paths[0], sizeof rig.paths[0], "%s", scratch("image"));
    for (uint64_t c = 0; c < 8; c++)
        builder_data(b, c);
    builder_compressed(b, 8);
    builder_compressed(b, 9);
    builder_entry(b, 1, 0x8000000000050200, 0);
    builder_entry(b, 2, 0x4000000000000000 | 1ull << 40, 0); /* a stream past the end of the file */
    memset(b->host.p + (builder_get_entry(b, 8) & 0xffffffff), 0xff, 40);
    builder_entry(b, 8192, 0x8000000000050000, 0);
    builder_l1_entry(b, 2, 0x8000000000012345 & ~0x1ffull);
    builder_l1_entry(b, 3, 1ull << 50); /* a table past the end of the file: nothing there */
    builder_write(b, rig.paths[0]);
    rig_open(&rig, NULL);
    rig_queue(&rig, 4);
    expect_fault(&rig, 1 * 65536,
                 "L2 entry 0x8000000000050200 (bitmap 0x0000000000000000, L1 index 0, L2 index 1, "
                 "guest offset 0x10000) has a host offset that is not a multiple of the cluster");
    expect_fault(&rig, 2 * 65536,
                 "the compressed cluster at host offset 0x10000000000 (512 bytes) is damaged");
    expect_fault(&rig, 8 * 65536, "is damaged");
    expect_fault(&rig, 2ull << 29,
                 "L1 entry 2 names an L2 table at offset 0x12200, which is not a multiple of");
    /* Its neighbours are well. */
    uint8_t *buf = malloc(65536);
    const uint64_t good[] = {0, 3, 7, 9, 10};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        cr_assert_eq(rig_read(rig.queue, good[i] * 65536, buf, 65536), 0, "%s", rig_text());
        cr_assert(rig_matches(&rig, good[i] * 65536, 65536, buf));
    }
    cr_assert_eq(rig_read(rig.queue, 3ull << 29, buf, 512), 0, "past the end of the file are zeros: %s",
                 rig_text());
    /* One request over good and bad: it fails as a whole, once. */
    uint8_t *large = malloc(MIB);
    cr_assert_eq(rig_read(rig.queue, 0, large, MIB), -EIO);
    free(large);
    free(buf);
    rig_free(&rig);
}

/* ---- several requests, several queues ---- */

Test(read, everything_at_once, .timeout = 120)
{
    struct scow_open_options o = rig_options();
    const uint64_t piece = 12 * KIB;
    struct rig rig;

    rig_build(&rig, shapes[13].specs, shapes[13].count, 81);
    o.slice_bytes = 512;
    o.cache_bytes = 1;
    rig_open(&rig, &o);
    rig_queue(&rig, 256);
    const uint64_t pieces = scow_size(rig.image) / piece;
    uint8_t *buf = aligned_alloc(4096, pieces * piece);
    for (int round = 0; round < 3; round++) {
        memset(buf, 0xee, pieces * piece);
        for (uint64_t i = 0; i < pieces; i++) {
            const uint64_t k = i * 97 % pieces;

            cr_assert_eq(scow_queue_read(rig.queue, k * piece, buf + k * piece, piece, NULL, 0), 0);
        }
        cr_assert(rig_collect(rig.queue, (uint32_t)pieces));
        cr_assert(rig_matches(&rig, 0, pieces * piece, buf));
    }
    free(buf);
    rig_free(&rig);
}

/* One slot per shard, 256 requests in flight on each of two queues, three layers: every answer moves a
 * request on, so all of them end. */
struct pressed {
    struct rig *rig;
    bool good;
};

static void *press(void *arg)
{
    struct pressed *p = arg;
    struct scow_queue_options qo = SCOW_QUEUE_OPTIONS_INIT;
    const uint64_t size = scow_size(p->rig->image), piece = 4096, pieces = size / piece;
    uint8_t *buf = aligned_alloc(4096, 256 * piece);
    struct scow_queue *q;
    uint64_t seed = (uintptr_t)p;

    qo.depth = 256;
    p->good = scow_queue_create(p->rig->image, &qo, &q) == 0;
    for (int round = 0; p->good && round < 10; round++) {
        uint64_t at[256];

        for (int i = 0; i < 256; i++) {
            at[i] = random_below(&seed, pieces) * piece;
            p->good &= scow_queue_read(q, at[i], buf + (uint64_t)i * piece, piece, NULL, 0) == 0;
        }
        p->good &= rig_collect(q, 256);
        for (int i = 0; i < 256; i++)
            p->good &= rig_matches(p->rig, at[i], piece, buf + (uint64_t)i * piece);
    }
    free(buf);
    scow_queue_destroy(q);
    return NULL;
}

/* The image's sums are the shards'. */
static void check_shards(const struct rig *rig, const struct scow_counters *c)
{
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_shard_counters sum = SCOW_SHARD_COUNTERS_INIT, s = SCOW_SHARD_COUNTERS_INIT;

    cr_assert_eq(scow_get_info(rig->image, &info), 0);
    for (uint32_t i = 0; i < info.shards; i++) {
        cr_assert_eq(scow_shard_counters(rig->image, i, &s), 0);
        cr_assert_leq(s.slots_resident, s.slots);
        cr_assert_eq(s.slots_dirty + s.writes + s.lease_clusters, 0);
        sum.slice_loads += s.slice_loads;
        sum.slice_evictions += s.slice_evictions;
        sum.slots += s.slots;
        sum.slots_resident += s.slots_resident;
    }
    cr_assert_eq(sum.slice_loads, c->slice_loads);
    cr_assert_eq(sum.slice_evictions, c->slice_evictions);
    cr_assert_eq(sum.slots, info.cache_slices);
    cr_assert_gt(sum.slots_resident, 0);
    cr_assert_eq(scow_shard_counters(rig->image, info.shards, &s), -ERANGE);
}

Test(read, far_more_requests_than_slots, .timeout = 120)
{
    const struct image_spec specs[] = {
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 8 * MIB},
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 8 * MIB},
        {.version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 8 * MIB},
    };
    struct scow_open_options o = rig_options();
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct pressed pressed[2];
    pthread_t threads[2];
    struct rig rig;

    rig_build(&rig, specs, 3, 82);
    o.slice_bytes = 512; /* 256 KiB of guest each: 32 slices per layer */
    o.cache_bytes = 1;
    rig_open(&rig, &o);
    for (int i = 0; i < 2; i++) {
        pressed[i] = (struct pressed){.rig = &rig};
        cr_assert_eq(pthread_create(&threads[i], NULL, press, &pressed[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        cr_assert(pressed[i].good);
    }
    cr_assert_eq(scow_counters(rig.image, &c), 0);
    cr_assert_gt(c.slice_evictions, 100, "the cache was too small");
    cr_assert_eq(c.requests, 2 * 10 * 256);
    check_shards(&rig, &c);
    rig_free(&rig);
}

/* ---- compressed clusters are inflated once for a sequential reader ---- */

Test(read, sequential_reads_of_a_compressed_cluster)
{
    const struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = MIB};
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct rig rig = {.count = 1};
    uint8_t buf[4096];

    rig.layers[0] = builder_new(&spec);
    snprintf(rig.paths[0], sizeof rig.paths[0], "%s", scratch("image"));
    builder_compressed(rig.layers[0], 5);
    builder_write(rig.layers[0], rig.paths[0]);
    rig_open(&rig, NULL);
    rig_queue(&rig, 64);
    for (uint64_t off = 0; off < 65536; off += sizeof buf) {
        cr_assert_eq(rig_read(rig.queue, 5 * 65536 + off, buf, sizeof buf), 0);
        cr_assert(rig_matches(&rig, 5 * 65536 + off, sizeof buf, buf));
    }
    cr_assert_eq(scow_queue_counters(rig.queue, &c), 0);
    cr_assert_eq(c.inflates, 1);
    cr_assert_eq(c.inflate_hits, 15);
    rig_free(&rig);
}
