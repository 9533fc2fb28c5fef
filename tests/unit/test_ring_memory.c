/* SPDX-License-Identifier: MIT */
/* Memory that is registered with a ring: what is read and written is the same, and its pages are kept. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/ring_memory.h"
#include "tests/unit/bench.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(ring_memory, .fini = abort_if_memory_is_lost);

#define KIB 1024u
#define BLOCK (4 * KIB)
#define FILE_BYTES (1024 * KIB)
#define MEMORY_BYTES (512 * KIB)

struct guest {
    struct bench b;
    int fd; /* of the memory */
    uint8_t *memory;
};

static void open_guest(struct guest *g)
{
    static uint8_t content[FILE_BYTES];
    const struct subject s = {BACKEND_RING, FILE_AUTO};
    const int fd = open(scratch("file"), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);

    stamp_fill(content, sizeof content, 0, 3);
    cr_assert_eq(write(fd, content, sizeof content), sizeof content);
    close(fd);
    bench_open(&g->b, &s, scratch("file"), FILE_WRITE);
    g->fd = memfd_create("guest", MFD_CLOEXEC);
    cr_assert_eq(ftruncate(g->fd, MEMORY_BYTES), 0);
    g->memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
    cr_assert_neq(g->memory, MAP_FAILED);
}

static void close_guest(struct guest *g)
{
    bench_close(&g->b);
    munmap(g->memory, MEMORY_BYTES);
    close(g->fd);
}

static int add(const struct guest *g, uint32_t off, size_t bytes)
{
    return g->b.backend->ops->add_memory(g->b.backend, g->memory + off, bytes);
}

static int take(const struct guest *g, uint32_t off, size_t bytes)
{
    return g->b.backend->ops->remove_memory(g->b.backend, g->memory + off, bytes);
}

/* Or the test is skipped. */
static void must_add(const struct guest *g, uint32_t off, size_t bytes)
{
    const int r = add(g, off, bytes);

    if (r == -ENOMEM || r == -ENOTSUP)
        cr_skip("%s", error_message());
    cr_assert_eq(r, 0, "%s", error_message());
}

static void expect(const uint8_t *buf, uint64_t off, size_t bytes, uint32_t salt)
{
    uint8_t *want = malloc(bytes);

    stamp_fill(want, bytes, off, salt);
    cr_assert(!memcmp(buf, want, bytes), "%zu bytes of byte %lu", bytes, off);
    free(want);
}

static uint32_t block_below(uint64_t *seed, uint32_t bytes)
{
    return (uint32_t)random_below(seed, bytes / BLOCK) * BLOCK;
}

/* Buffers and vectors inside, outside and across what is registered, while that comes and goes. */
Test(ring_memory, content, .timeout = 60)
{
    uint64_t seed = 5;
    struct guest g;
    bool has = false;

    open_guest(&g);
    must_add(&g, 0, 64 * KIB);
    for (int round = 0; round < 600; round++) {
        const uint64_t off = block_below(&seed, FILE_BYTES - 64 * KIB);
        struct iovec iov[3];
        struct io io = {.kind = random_below(&seed, 2) ? IO_READ : IO_WRITE, .off = off};
        const uint32_t salt = io.kind == IO_WRITE ? 3 + (uint32_t)random_below(&seed, 2) : 3;

        if (random_below(&seed, 8) == 0) {
            cr_assert_eq(has ? take(&g, 128 * KIB, 256 * KIB) : add(&g, 128 * KIB, 256 * KIB), 0, "%s",
                         error_message());
            has = !has;
        }
        io.iov_count = (int)random_below(&seed, 4);
        for (int i = 0; i < MAX(io.iov_count, 1); i++) {
            iov[i].iov_len = BLOCK + block_below(&seed, 16 * KIB);
            iov[i].iov_base = g.memory + i * 128 * KIB + block_below(&seed, 96 * KIB);
            if (io.kind == IO_WRITE)
                stamp_fill(iov[i].iov_base, iov[i].iov_len, off + io.bytes, salt);
            io.bytes += (uint32_t)iov[i].iov_len;
        }
        io.iov = iov;
        io.buf = iov[0].iov_base;
        if (io.kind == IO_READ) { /* what is there: a write of this round would do as well */
            uint8_t *want = malloc(io.bytes);
            uint32_t done = 0;

            cr_assert_eq(file_read(g.b.file, want, io.bytes, off), 0);
            cr_assert_eq(bench_run(&g.b, &io), 0);
            for (int i = 0; i < MAX(io.iov_count, 1); done += (uint32_t)iov[i++].iov_len)
                cr_assert(!memcmp(iov[i].iov_base, want + done, iov[i].iov_len), "round %d, part %d", round,
                          i);
            free(want);
        } else {
            uint8_t *found = malloc(io.bytes);

            cr_assert_eq(bench_run(&g.b, &io), 0);
            cr_assert_eq(file_read(g.b.file, found, io.bytes, off), 0);
            expect(found, off, io.bytes, salt);
            free(found);
        }
    }
    close_guest(&g);
}

/* Those that were prepared name it still. */
Test(ring_memory, removed_before_it_is_submitted, .timeout = 60)
{
    struct guest g;

    open_guest(&g);
    must_add(&g, 0, MEMORY_BYTES);
    for (int i = 0; i < 20; i++) {
        struct io io = {
            .kind = IO_READ, .buf = g.memory + 2 * BLOCK, .bytes = BLOCK, .file = g.b.file, .off = BLOCK};

        backend_prepare(g.b.backend, &io);
        cr_assert_eq(take(&g, 0, MEMORY_BYTES), 0);
        bench_finish(&g.b, 1);
        cr_assert_eq(io.result, 0, "%s", strerror(-io.result));
        expect(g.memory + 2 * BLOCK, BLOCK, BLOCK, 3);
        cr_assert_eq(add(&g, 0, MEMORY_BYTES), 0, "%s", error_message());
    }
    close_guest(&g);
}

/* What scow_queue_add_memory() warns of, which shows that it is used: a read goes to the page that was there.
 */
static void read_behind_a_hole(int iov_count, bool registered)
{
    struct guest g;
    bool changed;

    open_guest(&g);
    must_add(&g, 0, MEMORY_BYTES);
    if (!registered)
        cr_assert_eq(take(&g, 0, MEMORY_BYTES), 0);
    cr_assert_eq(fallocate(g.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, MEMORY_BYTES), 0);
    struct iovec iov[2] = {{g.memory, BLOCK}, {g.memory + 8 * BLOCK, BLOCK}};
    struct io io = {.kind = IO_READ,
                    .bytes = (uint32_t)MAX(iov_count, 1) * BLOCK,
                    .iov = iov,
                    .buf = g.memory,
                    .iov_count = iov_count};
    cr_assert_eq(bench_run(&g.b, &io), 0);
    changed = g.memory[0] || memcmp(g.memory, g.memory + 1, BLOCK - 1) != 0;
    cr_assert_eq(changed, !registered);
    close_guest(&g);
}

Test(ring_memory, pages_are_kept, .timeout = 60)
{
    read_behind_a_hole(0, true);
    read_behind_a_hole(1, true);
    read_behind_a_hole(0, false);
}

Test(ring_memory, pages_are_kept_for_vectors, .timeout = 60)
{
    struct io_uring ring;
    struct io_uring_probe *probe;
    bool vectors;

    if (io_uring_queue_init(2, &ring, 0) < 0)
        cr_skip("io_uring is not available here");
    probe = io_uring_get_probe_ring(&ring);
    vectors = io_uring_opcode_supported(probe, RING_READV_FIXED);
    io_uring_free_probe(probe);
    io_uring_queue_exit(&ring);
    if (!vectors)
        cr_skip("this kernel has no vectors of registered memory");
    read_behind_a_hole(2, true);
    read_behind_a_hole(2, false);
}

Test(ring_memory, what_is_refused, .timeout = 60)
{
    struct guest g;

    open_guest(&g);
    must_add(&g, 64 * KIB, 64 * KIB);
    cr_assert_eq(add(&g, 0, 65 * KIB), -EEXIST);
    cr_assert_eq(add(&g, 127 * KIB, KIB), -EEXIST);
    cr_assert_eq(add(&g, 128 * KIB, 0), -EINVAL);
    cr_assert_eq(add(&g, 128 * KIB, SIZE_MAX - KIB), -EINVAL);
    cr_assert_eq(take(&g, 0, 64 * KIB), -ENOENT);
    cr_assert_eq(take(&g, 64 * KIB, 32 * KIB), -ENOENT);
    cr_assert_eq(take(&g, 64 * KIB, 64 * KIB), 0);
    cr_assert_eq(take(&g, 64 * KIB, 64 * KIB), -ENOENT);
    for (uint32_t i = 0; i < RING_MEMORY_RANGES_MAX; i++)
        cr_assert_eq(add(&g, i * BLOCK, BLOCK), 0, "%s", error_message());
    cr_assert_eq(add(&g, 256 * KIB, BLOCK), -ENOSPC);
    cr_assert_eq(take(&g, 20 * BLOCK, BLOCK), 0);
    cr_assert_eq(add(&g, 256 * KIB, BLOCK), 0, "%s", error_message());
    munmap(g.memory + 300 * KIB, BLOCK);
    cr_assert_eq(take(&g, 256 * KIB, BLOCK), 0);
    cr_assert_eq(add(&g, 296 * KIB, 8 * KIB), -EFAULT, "a hole in it");
    close_guest(&g);
}

/* Ranges longer than one slot takes, and buffers across their seams. Nothing is pinned: only the arithmetic.
 */
Test(ring_memory, slots)
{
    const uintptr_t base = 1ull << 40;
    const size_t gib = 1ull << 30;
    const struct ring_memory m = {
        .count = 2, .vectors = true, .ranges = {{base, 3 * gib + BLOCK, 7}, {base + 8 * gib, gib, 2}}};
    struct iovec iov[2] = {{(void *)(base + gib), BLOCK}, {(void *)(base + 2 * gib - BLOCK), BLOCK}};

    cr_assert_eq(ring_memory_slot(&m, (void *)base, BLOCK), 7);
    cr_assert_eq(ring_memory_slot(&m, (void *)(base + gib - BLOCK), BLOCK), 7);
    cr_assert_eq(ring_memory_slot(&m, (void *)(base + gib), BLOCK), 8);
    cr_assert_eq(ring_memory_slot(&m, (void *)(base + gib - 512), BLOCK), -1, "across a seam");
    cr_assert_eq(ring_memory_slot(&m, (void *)(base + 3 * gib), BLOCK), 10);
    cr_assert_eq(ring_memory_slot(&m, (void *)(base + 3 * gib), BLOCK + 1), -1, "beyond the end");
    cr_assert_eq(ring_memory_slot(&m, (void *)(base - 1), 1), -1);
    cr_assert_eq(ring_memory_slot(&m, (void *)(base + 8 * gib), gib), 2);
    cr_assert_eq(ring_memory_slot_of_vector(&m, iov, 2), 8);
    iov[1].iov_base = (void *)base;
    cr_assert_eq(ring_memory_slot_of_vector(&m, iov, 2), -1, "two slots");
}

Test(ring_memory, other_backends, .timeout = 60)
{
    const struct image_spec spec = {
        .version = 3, .cluster_bits = 12, .refcount_order = 4, .virtual_bytes = 1 << 20, .salt = 7};
    struct scow_open_options o = rig_options();
    struct rig rig;
    char memory[64];

    o.backend = SCOW_BACKEND_THREADS;
    rig_build(&rig, &spec, 1, 5);
    rig_open(&rig, &o);
    rig_queue(&rig, 4);
    cr_assert_eq(scow_queue_add_memory(rig.queue, memory, sizeof memory), -ENOTSUP);
    cr_assert_eq(scow_queue_remove_memory(rig.queue, memory, sizeof memory), -ENOENT);
    rig_free(&rig);
}
