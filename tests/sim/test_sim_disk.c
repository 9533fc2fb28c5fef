/* SPDX-License-Identifier: MIT */
/* The simulated disk keeps its promises, and no more than them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_disk.h"

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #cond);                                                \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

static uint8_t data[4][4096];

static void put(struct sim_disk *d, const void *tag, int which, uint64_t off)
{
    const struct iovec iov = {data[which], sizeof data[which]};

    CHECK(disk_put(d, tag, &iov, 1, 0, off, sizeof data[which]) == 0);
}

static int first_byte(const struct sparse *s, uint64_t off)
{
    return s->p[off];
}

static void test_sync_covers_what_was_complete(struct sim_disk *d)
{
    int a = 0, b = 0;
    uint64_t start;

    put(d, &a, 1, 0);
    put(d, &b, 2, 4096);
    CHECK(first_byte(&d->now, 0) == 1 && first_byte(&d->durable, 0) == 0);
    disk_complete(d, &a, false);
    start = d->clock;
    disk_complete(d, &b, false); /* too late */
    disk_synced(d, start);
    CHECK(first_byte(&d->durable, 0) == 1 && first_byte(&d->durable, 4096) == 0);
    disk_synced(d, d->clock);
    CHECK(first_byte(&d->durable, 4096) == 2 && d->log_count == 0);
}

static void test_older_never_comes_back(struct sim_disk *d)
{
    int a = 0, b = 0;

    put(d, &a, 1, 8192);
    put(d, &b, 2, 8192);
    disk_complete(d, &b, true); /* durable by itself */
    CHECK(first_byte(&d->durable, 8192) == 2);
    disk_complete(d, &a, false);
    disk_synced(d, d->clock);
    CHECK(first_byte(&d->durable, 8192) == 2);
}

static void test_sizes(struct sim_disk *d)
{
    int a = 0;
    const uint64_t before = d->durable_bytes;

    put(d, &a, 3, 65536);
    CHECK(d->now_bytes == 65536 + 4096 && d->durable_bytes == before);
    disk_complete(d, &a, false);
    CHECK(disk_resize(d, &a, 65536) == 0);
    CHECK(first_byte(&d->now, 65536) == 0);
    disk_complete(d, &a, false);
    disk_synced(d, d->clock);
    CHECK(d->durable_bytes == 65536 && first_byte(&d->durable, 65536) == 0);
    CHECK(disk_resize(d, &a, SPARSE_BYTES_MAX + 1) < 0);
}

static void test_failed_sync(struct sim_disk *d)
{
    uint64_t rng = 7;
    int tags[16] = {0}, there = 0;

    for (int i = 0; i < 16; i++) {
        put(d, &tags[i], 1, (uint64_t)i * 4096);
        disk_complete(d, &tags[i], false);
    }
    disk_sync_failed(d, d->clock, &rng, true);
    disk_synced(d, d->clock);
    for (int i = 0; i < 16; i++)
        there += first_byte(&d->durable, (uint64_t)i * 4096) == 1;
    CHECK(there > 0 && there < 16); /* what it lost no later sync brings back */
}

int main(void)
{
    static const struct disk_config config = {.name = "disk", .io_align = 512, .capacity = 1 << 20};
    static void (*const tests[])(struct sim_disk *) = {
        test_sync_covers_what_was_complete, test_older_never_comes_back, test_sizes, test_failed_sync};
    struct sim_disk *const d = disk_new();

    for (int i = 0; i < 4; i++)
        memset(data[i], i, sizeof data[i]);
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        disk_reset(d, &config, NULL, 0);
        tests[i](d);
    }
    disk_free(d);
    return 0;
}
