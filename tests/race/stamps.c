/* SPDX-License-Identifier: MIT */
#include "tests/race/stamps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORDS (STAMP_SECTOR_BYTES / sizeof(uint64_t))
#define ZEROS 1u   /* in a version */
#define VERSION 2u /* one more */

/* ---- the journal ---- */

static void die(const char *what, const char *path)
{
    fprintf(stderr, "%s: %s: %s\n", path ? path : "journal", what, strerror(errno));
    exit(1);
}

static void point_at_arrays(struct stamps *s)
{
    _Atomic uint32_t *at = (_Atomic uint32_t *)(s->journal + 1);

    s->layout = s->journal->layout;
    s->issued = at;
    s->acked = at + s->layout.sector_count;
    s->zeroed = at + 2 * (size_t)s->layout.sector_count;
    s->durable = at + 3 * (size_t)s->layout.sector_count;
    atomic_store(&s->sectors_now, s->layout.sector_count);
}

static void map_journal(struct stamps *s, const char *path, int fd, size_t bytes)
{
    s->journal =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    if (s->journal == MAP_FAILED)
        die("mmap", path);
    s->mapped_bytes = bytes;
    s->in_file = fd >= 0;
    if (fd >= 0)
        close(fd);
}

void stamps_create(struct stamps *s, const struct stamp_layout *layout, const char *path)
{
    const size_t bytes = sizeof *s->journal + 4 * sizeof(uint32_t) * layout->sector_count;
    int fd = -1;

    memset(s, 0, sizeof *s);
    if (path) {
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
            die("create", path);
    }
    map_journal(s, path, fd, bytes);
    s->journal->magic = STAMP_MAGIC;
    s->journal->layout = *layout;
    point_at_arrays(s);
}

void stamps_open(struct stamps *s, const char *path)
{
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;

    memset(s, 0, sizeof *s);
    if (fd < 0 || fstat(fd, &st) < 0)
        die("open", path);
    map_journal(s, path, fd, (size_t)st.st_size);
    if (s->mapped_bytes < sizeof *s->journal || s->journal->magic != STAMP_MAGIC) {
        fprintf(stderr, "%s: not a journal\n", path);
        exit(1);
    }
    point_at_arrays(s);
    for (uint32_t i = 0; i < s->layout.sector_count; i++)
        atomic_store_explicit(&s->acked[i], atomic_load_explicit(&s->issued[i], memory_order_relaxed),
                              memory_order_relaxed);
}

void stamps_close(struct stamps *s)
{
    if (s->journal)
        munmap(s->journal, s->mapped_bytes);
    s->journal = NULL;
}

void stamps_fail(struct stamps *s, const char *format, ...)
{
    va_list args;

    atomic_store(&s->stop, true);
    if (atomic_fetch_add(&s->failures, 1) > 10)
        return;
    flockfile(stderr);
    fputs("FAILED: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    funlockfile(stderr);
}

/* ---- who owns what ---- */

uint64_t stamps_random(uint64_t *state, uint64_t limit)
{
    uint64_t x = *state;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    return (x >> 11) % limit;
}

static bool is_shared(const struct stamps *s, uint32_t sector)
{
    return sector / s->layout.stripe_sectors % 3 == 0;
}

uint32_t stamps_owner(const struct stamps *s, uint32_t sector)
{
    const uint32_t stripe = sector / s->layout.stripe_sectors;

    if (is_shared(s, sector))
        return sector / s->layout.unit_sectors % s->layout.owners;
    return (stripe / 3 * 2 + stripe % 3 - 1) % s->layout.owners;
}

/* A sector of owner's near a random one. */
static bool pick_sector(const struct stamps *s, uint32_t owner, uint64_t *seed, bool private_only,
                        uint32_t *ret_sector)
{
    const uint32_t now = atomic_load(&s->sectors_now), hot = MIN(now, 3 * s->layout.stripe_sectors);

    for (int tries = 0; tries < 64; tries++) {
        uint32_t sector = (uint32_t)stamps_random(seed, stamps_random(seed, 3) || private_only ? now : hot);

        if (is_shared(s, sector)) {
            const uint32_t unit = sector / s->layout.unit_sectors, owners = s->layout.owners;

            sector = (unit + (owner + owners - unit % owners) % owners) * s->layout.unit_sectors +
                     (uint32_t)stamps_random(seed, s->layout.unit_sectors);
        }
        if (sector >= now || stamps_owner(s, sector) != owner || (private_only && is_shared(s, sector)))
            continue;
        *ret_sector = sector;
        return true;
    }
    return false;
}

bool stamps_pick(const struct stamps *s, uint32_t owner, uint64_t *seed, uint32_t most, bool private_only,
                 struct stamp_range *ret)
{
    const uint32_t now = atomic_load(&s->sectors_now);
    const uint32_t count = 1 + (uint32_t)stamps_random(seed, most);
    uint32_t sector, n = 1;

    if (!pick_sector(s, owner, seed, private_only, &sector))
        return false;
    while (n < count && sector + n < now && is_shared(s, sector + n) == is_shared(s, sector) &&
           stamps_owner(s, sector + n) == owner)
        n++;
    *ret = (struct stamp_range){sector, n};
    return true;
}

bool stamps_idle(const struct stamps *s, struct stamp_range range)
{
    for (uint32_t i = range.first; i < range.first + range.count; i++)
        if (atomic_load_explicit(&s->issued[i], memory_order_relaxed) !=
            atomic_load_explicit(&s->acked[i], memory_order_relaxed))
            return false;
    return true;
}

/* ---- what becomes of a sector ---- */

void stamps_issue(struct stamps *s, struct stamp_range range, bool zeros)
{
    for (uint32_t i = range.first; i < range.first + range.count; i++) {
        const uint32_t last = atomic_load_explicit(&s->issued[i], memory_order_relaxed);
        const uint32_t next = ((last & ~ZEROS) + VERSION) | (zeros ? ZEROS : 0);

        if (zeros)
            atomic_store_explicit(&s->zeroed[i], next, memory_order_release);
        atomic_store_explicit(&s->issued[i], next, memory_order_release);
    }
}

static void raise_durable(struct stamps *s, uint32_t sector, uint32_t version)
{
    uint32_t old = atomic_load_explicit(&s->durable[sector], memory_order_relaxed);

    while (old < version && !atomic_compare_exchange_weak(&s->durable[sector], &old, version))
        ;
}

void stamps_ack(struct stamps *s, struct stamp_range range, bool durable)
{
    for (uint32_t i = range.first; i < range.first + range.count; i++) {
        const uint32_t version = atomic_load_explicit(&s->issued[i], memory_order_relaxed);

        atomic_store_explicit(&s->acked[i], version, memory_order_release);
        if (durable && s->in_file)
            raise_durable(s, i, version);
    }
}

static uint64_t stamp(const struct stamps *s, uint32_t sector, uint32_t version)
{
    if (!version || version & ZEROS)
        return 0;
    return (uint64_t)sector | (uint64_t)version << 24 | (uint64_t)(stamps_owner(s, sector) & 0xff) << 48 |
           (uint64_t)(s->layout.seed & 0xff) << 56;
}

void stamps_fill(const struct stamps *s, struct stamp_range range, void *buf)
{
    uint64_t *at = buf;

    for (uint32_t i = range.first; i < range.first + range.count; i++) {
        const uint64_t word = stamp(s, i, atomic_load_explicit(&s->issued[i], memory_order_relaxed));

        for (size_t k = 0; k < WORDS; k++)
            *at++ = word;
    }
}

void stamps_snapshot(const struct stamps *s, uint32_t *snapshot)
{
    for (uint32_t i = 0; i < s->layout.sector_count; i++)
        snapshot[i] = atomic_load_explicit(&s->acked[i], memory_order_acquire);
}

void stamps_durable(struct stamps *s, const uint32_t *snapshot)
{
    for (uint32_t i = 0; i < s->layout.sector_count; i++)
        raise_durable(s, i, snapshot[i]);
}

/* ---- what may be read ---- */

void stamps_floor(const struct stamps *s, struct stamp_range range, uint32_t *ret_floor)
{
    for (uint32_t i = 0; i < range.count; i++)
        ret_floor[i] = atomic_load_explicit(&s->acked[range.first + i], memory_order_acquire);
}

static const char *word_problem(const struct stamps *s, uint32_t sector, uint32_t floor, uint32_t issued,
                                uint64_t word)
{
    const uint32_t version = (uint32_t)(word >> 24) & 0xffffff;

    if (!word) {
        const uint32_t zeroed = atomic_load_explicit(&s->zeroed[sector], memory_order_acquire);

        return !floor || zeroed >= floor ? NULL : "zeros instead of data";
    }
    if (word != stamp(s, sector, version))
        return "a foreign stamp";
    if (version < floor)
        return "an old version";
    return version > issued ? "a version that was never written" : NULL;
}

/* A sector that is being written may be read half old, half new: each word is looked at by itself. */
static bool check_sector(struct stamps *s, uint32_t sector, uint32_t floor, const uint64_t *words,
                         const char *who)
{
    const uint32_t issued = atomic_load_explicit(&s->issued[sector], memory_order_acquire);

    for (size_t k = 0; k < WORDS; k++) {
        const char *problem = word_problem(s, sector, floor, issued, words[k]);

        if (!problem && issued == floor && words[k] != words[0])
            problem = "half of a sector";
        if (!problem)
            continue;
        stamps_fail(s,
                    "%s: sector %" PRIu32 " (guest offset 0x%" PRIx64 ", owner %" PRIu32
                    ") word %zu: %s: 0x%016" PRIx64 " (sector %" PRIu64 ", version 0x%" PRIx64
                    ", owner %" PRIu64 "); expected versions 0x%" PRIx32 " to 0x%" PRIx32
                    ", zeroed 0x%" PRIx32,
                    who, sector, (uint64_t)sector * STAMP_SECTOR_BYTES, stamps_owner(s, sector), k, problem,
                    words[k], words[k] & 0xffffff, words[k] >> 24 & 0xffffff, words[k] >> 48 & 0xff, floor,
                    issued, atomic_load(&s->zeroed[sector]));
        return false;
    }
    return true;
}

bool stamps_check(struct stamps *s, struct stamp_range range, const uint32_t *floor, const void *buf,
                  const char *who)
{
    bool good = true;

    for (uint32_t i = 0; i < range.count && good; i++)
        good = check_sector(s, range.first + i, floor[i], (const uint64_t *)buf + i * WORDS, who);
    return good;
}
