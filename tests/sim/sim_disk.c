/* SPDX-License-Identifier: MIT */
#include "tests/sim/sim_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "tests/unit/image_builder.h"

#define ARENA_COMPACT_BYTES (8u << 20)

struct sim_disk *disk_new(void)
{
    struct sim_disk *d = calloc(1, sizeof *d);

    if (!d)
        abort();
    sparse_init(&d->now);
    sparse_init(&d->durable);
    return d;
}

void disk_free(struct sim_disk *d)
{
    if (!d)
        return;
    sparse_free(&d->now);
    sparse_free(&d->durable);
    free(d->arena);
    free(d);
}

void disk_reset(struct sim_disk *d, const struct disk_config *config, const void *data, uint64_t bytes)
{
    invariant(bytes <= config->capacity && config->capacity <= SPARSE_BYTES_MAX);
    d->config = *config;
    sparse_clear(&d->now);
    sparse_write(&d->now, 0, data, bytes);
    sparse_copy(&d->durable, &d->now);
    d->now_bytes = d->durable_bytes = d->size_max = config->block_device ? config->capacity : bytes;
    d->log_count = 0;
    d->arena_used = 0;
    d->clock = d->punched = d->syncs = 0;
}

/* ---- iovecs ---- */

void iov_gather(const struct iovec *iov, int iov_count, uint64_t skip, uint8_t *to, uint64_t bytes)
{
    for (int i = 0; i < iov_count && bytes; i++) {
        uint64_t n;

        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        n = MIN(iov[i].iov_len - skip, bytes);
        memcpy(to, (const uint8_t *)iov[i].iov_base + skip, n);
        to += n;
        bytes -= n;
        skip = 0;
    }
    invariant(!bytes);
}

void iov_scatter(const struct iovec *iov, int iov_count, uint64_t skip, const uint8_t *from, uint64_t bytes)
{
    for (int i = 0; i < iov_count && bytes; i++) {
        uint64_t n;

        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        n = MIN(iov[i].iov_len - skip, bytes);
        memcpy((uint8_t *)iov[i].iov_base + skip, from, n);
        from += n;
        bytes -= n;
        skip = 0;
    }
    invariant(!bytes);
}

/* ---- the log ---- */

static bool overlap(const struct effect *a, const struct effect *b)
{
    if (a->size && b->size)
        return true; /* in order among themselves */
    return a->off < b->off + b->bytes && b->off < a->off + a->bytes;
}

void disk_effect_apply(const struct sim_disk *d, const struct effect *e, uint64_t from, uint64_t bytes,
                       struct sparse *out)
{
    if (!bytes)
        return;
    if (e->data == UINT64_MAX)
        sparse_zero(out, e->off + from, bytes);
    else
        sparse_write(out, e->off + from, d->arena + e->data + from, bytes);
}

static void compact_arena(struct sim_disk *d)
{
    size_t used = 0;

    for (uint32_t i = 0; i < d->log_count; i++) {
        struct effect *e = &d->log[i];

        if (e->data == UINT64_MAX)
            continue;
        memmove(d->arena + used, d->arena + e->data, e->bytes);
        e->data = used;
        used += e->bytes;
    }
    d->arena_used = used;
}

/* Makes the marked effects durable, and with them older ones that they would otherwise be overtaken by. */
static void settle(struct sim_disk *d, bool *marked)
{
    uint32_t kept = 0;

    for (uint32_t i = d->log_count; i-- > 0;)
        for (uint32_t j = i + 1; !marked[i] && j < d->log_count; j++)
            marked[i] = marked[j] && overlap(&d->log[i], &d->log[j]);
    for (uint32_t i = 0; i < d->log_count; i++) {
        const struct effect *e = &d->log[i];

        if (!marked[i]) {
            d->log[kept++] = *e;
            continue;
        }
        disk_effect_apply(d, e, 0, e->bytes, &d->durable);
        if (e->size)
            d->durable_bytes = e->off;
    }
    d->log_count = kept;
    if (!kept)
        d->arena_used = 0;
    else if (d->arena_used > ARENA_COMPACT_BYTES)
        compact_arena(d);
}

static struct effect *append(struct sim_disk *d, const void *tag, uint64_t off, uint64_t bytes)
{
    struct effect *e;

    if (d->log_count == DISK_LOG_MAX) { /* the cache is full: the older half is written */
        bool marked[DISK_LOG_MAX] = {false};

        memset(marked, 1, DISK_LOG_MAX / 2);
        settle(d, marked);
    }
    e = &d->log[d->log_count++];
    *e = (struct effect){.off = off, .bytes = bytes, .data = UINT64_MAX, .tag = tag};
    return e;
}

static uint64_t arena_take(struct sim_disk *d, uint64_t bytes)
{
    const uint64_t at = d->arena_used;

    if (at + bytes > d->arena_room) {
        d->arena_room = MAX(2 * d->arena_room, at + bytes + (1u << 20));
        d->arena = realloc(d->arena, d->arena_room);
        if (!d->arena)
            abort();
    }
    d->arena_used += bytes;
    return at;
}

/* ---- effects ---- */

int disk_resize(struct sim_disk *d, const void *tag, uint64_t bytes)
{
    struct effect *e;

    if (d->config.block_device)
        return bytes == d->now_bytes ? 0 : -EINVAL;
    if (bytes > SPARSE_BYTES_MAX)
        return -EFBIG;
    e = append(d, tag, bytes, d->now_bytes > bytes ? d->now_bytes - bytes : 0);
    e->size = true;
    sparse_zero(&d->now, bytes, e->bytes);
    d->now_bytes = bytes;
    d->size_max = MAX(d->size_max, bytes);
    return 0;
}

int disk_put(struct sim_disk *d, const void *tag, const struct iovec *iov, int iov_count, uint64_t skip,
             uint64_t off, uint64_t bytes)
{
    struct effect *e;

    if (!bytes)
        return 0;
    if (iov && off + bytes > d->config.capacity) /* holes are free */
        return -ENOSPC;
    if (off + bytes > d->now_bytes && disk_resize(d, tag, off + bytes) < 0)
        return -ENOSPC;
    e = append(d, tag, off, bytes);
    if (iov) {
        const uint64_t at = arena_take(d, bytes);

        e->data = at;
        iov_gather(iov, iov_count, skip, d->arena + at, bytes);
    }
    disk_effect_apply(d, e, 0, bytes, &d->now);
    return 0;
}

void disk_get(const struct sim_disk *d, const struct iovec *iov, int iov_count, uint64_t skip, uint64_t off,
              uint64_t bytes)
{
    static const uint8_t zeros[4096];
    const uint64_t end = MIN(d->now_bytes, SPARSE_BYTES_MAX);
    const uint64_t there = off < end ? MIN(bytes, end - off) : 0;

    if (there)
        iov_scatter(iov, iov_count, skip, d->now.p + off, there);
    for (uint64_t done = there; done < bytes;) {
        const uint64_t n = MIN(bytes - done, sizeof zeros);

        iov_scatter(iov, iov_count, skip + done, zeros, n);
        done += n;
    }
}

void disk_complete(struct sim_disk *d, const void *tag, bool durable)
{
    bool marked[DISK_LOG_MAX] = {false}, any = false;

    d->clock++;
    for (uint32_t i = 0; i < d->log_count; i++) {
        struct effect *e = &d->log[i];

        if (e->completed_at || e->tag != tag)
            continue;
        e->completed_at = d->clock;
        e->tag = NULL;
        marked[i] = any = true;
    }
    if (durable && any)
        settle(d, marked);
}

static bool covered(const struct effect *e, uint64_t start)
{
    return e->completed_at && e->completed_at <= start && !e->lost;
}

void disk_synced(struct sim_disk *d, uint64_t start)
{
    bool marked[DISK_LOG_MAX] = {false};

    d->syncs++;
    for (uint32_t i = 0; i < d->log_count; i++)
        marked[i] = covered(&d->log[i], start);
    settle(d, marked);
}

void disk_sync_failed(struct sim_disk *d, uint64_t start, uint64_t *rng, bool harsh)
{
    bool marked[DISK_LOG_MAX] = {false};

    for (uint32_t i = 0; i < d->log_count; i++) {
        struct effect *e = &d->log[i];

        if (!covered(e, start))
            continue;
        marked[i] = random_below(rng, 2);
        e->lost = harsh && !marked[i];
    }
    settle(d, marked);
}

void disk_settle(struct sim_disk *d)
{
    bool marked[DISK_LOG_MAX];

    memset(marked, 1, sizeof marked);
    settle(d, marked);
}
