/* SPDX-License-Identifier: MIT */
#include "exports/inflight.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define QUEUE_ALIGN 64u

static size_t queue_bytes(uint32_t size)
{
    const size_t bytes = sizeof(struct inflight_queue) + size * sizeof(struct inflight_desc);

    return (bytes + QUEUE_ALIGN - 1) & ~(size_t)(QUEUE_ALIGN - 1);
}

static int map(struct inflight *f, int fd, uint64_t off)
{
    f->map_bytes = off + f->bytes;
    f->map = mmap(NULL, f->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (f->map == MAP_FAILED) {
        f->map = NULL;
        return -errno;
    }
    f->queues = (uint8_t *)f->map + off;
    f->fd = fd;
    return 0;
}

int inflight_create(struct inflight *f, uint16_t queue_count, uint16_t queue_size)
{
    const int fd = memfd_create("shardcow-inflight", MFD_CLOEXEC);
    int r = fd < 0 ? -errno : 0;

    *f = (struct inflight){.fd = -1,
                           .queue_count = queue_count,
                           .queue_size = queue_size,
                           .bytes = queue_count * queue_bytes(queue_size)};
    if (r == 0 && ftruncate(fd, (off_t)f->bytes) < 0)
        r = -errno;
    if (r == 0)
        r = map(f, fd, 0);
    if (r < 0 && fd >= 0)
        close(fd);
    return r;
}

int inflight_open(struct inflight *f, int fd, uint64_t off, uint64_t bytes, uint16_t queue_count,
                  uint16_t queue_size)
{
    struct stat st;

    *f = (struct inflight){.fd = -1, .queue_count = queue_count, .queue_size = queue_size, .bytes = bytes};
    if (!queue_count || !queue_size || bytes < queue_count * queue_bytes(queue_size) || off + bytes < off ||
        off % sizeof(uint64_t) || fstat(fd, &st) < 0 || (uint64_t)st.st_size < off + bytes)
        return -EINVAL;
    return map(f, fd, off);
}

void inflight_close(struct inflight *f)
{
    if (f->map)
        munmap(f->map, f->map_bytes);
    if (f->fd >= 0)
        close(f->fd);
    *f = (struct inflight){.fd = -1};
}

static struct inflight_queue *first(const struct inflight *f)
{
    return (struct inflight_queue *)f->queues;
}

void inflight_note_cache(struct inflight *f, enum inflight_cache mode)
{
    if (f->map)
        first(f)->desc[0].padding[0] = (uint8_t)mode;
}

enum inflight_cache inflight_cache(const struct inflight *f)
{
    const uint8_t mode = f->map ? first(f)->desc[0].padding[0] : 0;

    return mode == INFLIGHT_WRITEBACK || mode == INFLIGHT_WRITETHROUGH ? (enum inflight_cache)mode
                                                                       : INFLIGHT_CACHE_UNKNOWN;
}

struct inflight_queue *inflight_of(const struct inflight *f, uint32_t index, uint32_t num)
{
    if (!f->map || index >= f->queue_count || num > f->queue_size)
        return NULL;
    return (struct inflight_queue *)(f->queues + index * queue_bytes(f->queue_size));
}

/* The last batch is in the used ring, and the server died before it said so. */
static void finish_batch(struct inflight_queue *q, uint32_t num, uint16_t used_idx)
{
    uint16_t head = q->last_batch_head;

    for (uint16_t left = (uint16_t)(used_idx - q->used_idx); left && left <= num && head < num; left--) {
        q->desc[head].inflight = 0;
        head = __atomic_load_n(&q->desc[head].next, __ATOMIC_RELAXED);
    }
    q->used_idx = used_idx;
}

static int by_counter(const void *a, const void *b, void *queue)
{
    const struct inflight_queue *q = queue;
    const uint64_t x = q->desc[*(const uint16_t *)a].counter, y = q->desc[*(const uint16_t *)b].counter;

    return x < y ? -1 : x > y;
}

uint32_t inflight_recover(struct inflight_queue *q, uint32_t num, uint16_t used_idx, uint16_t *ret_heads,
                          uint64_t *ret_counter)
{
    uint32_t count = 0;

    *ret_counter = 1;
    if (q->version != 1 || q->desc_num != num) { /* nobody has used it */
        q->last_batch_head = 0;
        q->used_idx = used_idx;
        for (uint32_t i = 0; i < num; i++) {
            q->desc[i].inflight = 0;
            q->desc[i].next = 0;
            q->desc[i].counter = 0;
        }
        q->version = 1;
        __atomic_store_n(&q->desc_num, (uint16_t)num, __ATOMIC_RELEASE); /* last: now it is in use */
        return 0;
    }
    if (q->used_idx != used_idx)
        finish_batch(q, num, used_idx);
    for (uint32_t i = 0; i < num; i++) {
        if (q->desc[i].inflight != 1)
            continue;
        ret_heads[count++] = (uint16_t)i;
        if (q->desc[i].counter >= *ret_counter)
            *ret_counter = q->desc[i].counter + 1;
    }
    qsort_r(ret_heads, count, sizeof *ret_heads, by_counter, q);
    return count;
}

void inflight_taken(struct inflight_queue *q, uint16_t head, uint64_t counter)
{
    q->desc[head].counter = counter;
    __atomic_store_n(&q->desc[head].inflight, 1, __ATOMIC_RELEASE);
}

void inflight_answering(struct inflight_queue *q, uint16_t head)
{
    q->desc[head].next = q->last_batch_head;
    __atomic_store_n(&q->last_batch_head, head, __ATOMIC_RELEASE);
}

void inflight_answered(struct inflight_queue *q, uint16_t head, uint16_t used_idx)
{
    __atomic_store_n(&q->desc[head].inflight, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&q->used_idx, used_idx, __ATOMIC_RELEASE);
}
