/* SPDX-License-Identifier: MIT */
/*
 * A read that hits writes to nothing that threads share: while the hits run, the cache's slots and entries,
 * the directory, the L1 table and the structures of image, layers, shards and files are read-only pages.
 *
 * For this every allocation gets pages of its own. A forked child shows that the test can fail: it first
 * clears a slot's reference mark, which a hit then has to set.
 */
#include <inttypes.h>
#include <shardcow.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "engine/image.h"
#include "engine/shard.h"
#include "tests/unit/image_builder.h"
#include "tests/unit/scratch.h"

#define PAGE 4096u
#define READS 20000
#define CLUSTERS 1024u
#define CLUSTER 65536u

/* ---- an allocator that never lets two blocks share a page ---- */

struct block {
    size_t bytes; /* of the mapping */
    size_t used;
};

static struct block *block_of(void *p)
{
    return (struct block *)(void *)((uint8_t *)p - PAGE);
}

#pragma GCC visibility push(default) /* other libraries' blocks are freed here */

void *malloc(size_t bytes)
{
    const size_t all = PAGE + round_up(MAX(bytes, 1u), PAGE);
    uint8_t *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    *(struct block *)(void *)p = (struct block){all, bytes};
    return p + PAGE;
}

void free(void *p)
{
    if (p)
        munmap(block_of(p), block_of(p)->bytes);
}

void *calloc(size_t n, size_t bytes)
{
    size_t all;

    return __builtin_mul_overflow(n, bytes, &all) ? NULL : malloc(all);
}

void *realloc(void *old, size_t bytes)
{
    void *p = malloc(bytes);

    if (p && old)
        memcpy(p, old, MIN(block_of(old)->used, bytes));
    if (p)
        free(old);
    return p;
}

void *aligned_alloc(size_t align, size_t bytes)
{
    return align <= PAGE ? malloc(bytes) : NULL;
}

int posix_memalign(void **ret, size_t align, size_t bytes)
{
    void *p = aligned_alloc(align, bytes);

    if (!p)
        return 12;
    *ret = p;
    return 0;
}

#pragma GCC visibility pop

/* ---- what is shared ---- */

static void protect(void *p, size_t bytes, int prot)
{
    if (!p || !bytes)
        return;
    if ((uintptr_t)p % PAGE || mprotect(p, round_up(bytes, PAGE), prot)) {
        perror("mprotect");
        exit(1);
    }
}

static void protect_allocation(void *p, int prot)
{
    if (p)
        protect(p, block_of(p)->used, prot);
}

static void protect_shared(struct scow_image *image, int prot)
{
    for (uint32_t i = 0; i < image->layer_count; i++) {
        struct layer *layer = image->layers[i];
        struct map_root *root = atomic_load(&layer->root);

        protect((void *)root->directory.cells, root->directory.count * sizeof(slot_cell), prot);
        protect((void *)root->l1, root->l1_room * sizeof *root->l1, prot);
        protect_allocation(root, prot);
        protect_allocation(layer->cluster0, prot);
        protect_allocation(layer, prot);
    }
    for (uint32_t i = 0; i < image->shard_count; i++) {
        protect(image->shards[i].cache.memory,
                image->shards[i].cache.slot_count * image->shards[i].cache.slot_bytes, prot);
        protect_allocation(image->shards[i].loads, prot);
    }
    protect_allocation(image->shards, prot);
    for (uint32_t i = 0; i < image->file_count; i++)
        protect_allocation(image->files[i], prot);
    protect_allocation((void *)image->queues, prot);
    protect_allocation(image->env, prot);
    protect_allocation(image, prot);
}

/* The shards write to what is theirs while they are awake. */
static void wait_for_sleep(const struct scow_image *image)
{
    for (uint32_t i = 0; i < image->shard_count; i++)
        while (!atomic_load(&image->shards[i].loop.sleeping))
            usleep(1000);
    usleep(20000);
}

/* ---- the reads ---- */

static uint8_t buffers[64][4096] __attribute__((aligned(4096)));

static int hits(struct scow_queue *q, uint64_t reads)
{
    uint64_t seed = 7;

    for (uint64_t done = 0; done < reads;) {
        struct scow_completion c[64];
        int n;

        for (int i = 0; i < 32; i++)
            if (scow_queue_read(q, random_below(&seed, CLUSTERS * (CLUSTER / 4096)) * 4096, buffers[i], 4096,
                                NULL, 0) < 0)
                return -1;
        for (int left = 32; left; left -= n) {
            n = scow_queue_poll(q, c, 1, 64, SCOW_WAIT_FOREVER);
            if (n <= 0)
                return -1;
            for (int i = 0; i < n; i++)
                if (c[i].ret)
                    return -1;
        }
        done += 32;
    }
    return 0;
}

static struct scow_image *open_warm(const char *path, enum scow_backend backend,
                                    struct scow_queue **ret_queue)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_image *image;

    o.backend = backend;
    o.shards = 2;
    o.slice_bytes = 512;
    o.open_child = scow_open_child_any;
    if (scow_open(path, &o, &image) < 0 || scow_queue_create(image, NULL, ret_queue) < 0) {
        fprintf(stderr, "readonly_pages: %s\n", scow_error());
        exit(1);
    }
    /* Every slice of both layers, twice: the second time as a hit, which marks it. */
    for (uint64_t off = 0; off < 2ull * CLUSTERS * CLUSTER; off += CLUSTER)
        if (scow_pread(image, buffers[0], 512, off % ((uint64_t)CLUSTERS * CLUSTER)) < 0)
            exit(1);
    if (hits(*ret_queue, 20000) < 0)
        exit(1);
    return image;
}

static int check_backend(const char *path, enum scow_backend backend)
{
    struct scow_counters before = SCOW_COUNTERS_INIT, after = SCOW_COUNTERS_INIT;
    struct scow_queue *q;
    struct scow_image *image = open_warm(path, backend, &q);
    int r;

    wait_for_sleep(image);
    scow_queue_counters(q, &before);
    protect_shared(image, PROT_READ);
    r = hits(q, READS); /* a write to a shared page ends the program here */
    protect_shared(image, PROT_READ | PROT_WRITE);
    scow_queue_counters(q, &after);
    printf("backend %d: %" PRIu64 " hits, %" PRIu64 " misses with the shared pages read-only\n", backend,
           after.hits - before.hits, after.misses - before.misses);
    if (after.misses != before.misses || after.hits - before.hits < READS)
        r = -1;
    scow_queue_destroy(q);
    scow_close(image);
    return r;
}

/* Hits in a child, with or without a mark to set: a child that has one has to die of it. 0 when it is so. */
static int check_child(const char *path, bool clear_marks)
{
    struct scow_queue *q;
    struct scow_image *image = open_warm(path, SCOW_BACKEND_NULL, &q);
    int status = 0;
    pid_t child;

    wait_for_sleep(image);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        const struct slice_cache *cache = &image->shards[0].cache;

        setrlimit(RLIMIT_CORE, &no_core);
        for (uint32_t i = 0; clear_marks && i < cache->slot_count; i++)
            atomic_store(&slice_cache_slot(cache, i)->referenced, 0);
        protect_shared(image, PROT_READ);
        _exit(hits(q, READS) < 0 ? 2 : 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return -1;
    printf("in a child %s a mark to set: %s\n", clear_marks ? "with" : "without",
           WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "nothing happened");
    scow_queue_destroy(q);
    scow_close(image);
    if (clear_marks)
        return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV ? 0 : -1;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

/* An overlay: data, zeros, holes that the backing file fills, and some that nothing fills. */
static const char *build(void)
{
    struct image_spec spec = {IMAGE_SPEC_INIT, .virtual_bytes = (uint64_t)CLUSTERS * CLUSTER};
    struct image_builder *base = builder_new(&spec), *top;

    spec.backing_name = "base";
    spec.backing_format = "qcow2";
    top = builder_new(&spec);
    for (uint64_t c = 0; c < CLUSTERS; c++) {
        if (c % 4 == 0)
            builder_data(top, c);
        else if (c % 4 == 1)
            builder_zero(top, c, c % 8 == 1);
        else if (c % 4 == 2)
            builder_data(base, c);
    }
    builder_write(base, scratch("base"));
    builder_write(top, scratch("top"));
    builder_free(base);
    builder_free(top);
    return scratch("top");
}

int main(void)
{
    const char *path = build();
    int bad = check_backend(path, SCOW_BACKEND_NULL) < 0;

    bad |= check_backend(path, SCOW_BACKEND_AUTO) < 0;
    bad |= check_child(path, false) < 0;
    bad |= check_child(path, true) < 0;
    if (bad)
        fprintf(stderr, "readonly_pages: failed\n");
    return bad;
}
