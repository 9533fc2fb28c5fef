/* SPDX-License-Identifier: MIT */
/*
 * The input is a guest's memory: rings, descriptors, requests. What the server takes from it is given to an
 * engine that only touches what it is given and answers at once, or later, or not at once for want of room.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "exports/blk_queue.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#define NUM_LOG_MAX 5
#define REGION_BYTES 2048u
#define USER_ADDR 0x10000u
#define CAPACITY 1000u
#define LATER_MAX 64u

static volatile uint8_t sink;
static struct blk_request *later[LATER_MAX];
static uint32_t later_count;
static uint64_t choices;

static uint32_t choose(uint32_t n)
{
    choices = choices * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(choices >> 33) % n;
}

/* ---- the engine ---- */

const char *scow_error(void)
{
    return "no";
}

static int accept_call(void *r)
{
    switch (choose(4)) {
    case 0:
        return -EAGAIN;
    case 1:
        return -EINVAL;
    default:
        if (later_count == LATER_MAX)
            return -EAGAIN;
        later[later_count++] = r;
        return 0;
    }
}

static void expect(bool holds)
{
    if (!holds)
        abort();
}

static int touch(uint64_t off, const struct iovec *iov, int count, void *r, bool write)
{
    uint64_t total = 0;

    for (int i = 0; i < count; i++) {
        uint8_t *const p = iov[i].iov_base;

        expect(iov[i].iov_len);
        if (write)
            memset(p, 0x5a, iov[i].iov_len);
        else
            sink ^= p[0] ^ p[iov[i].iov_len - 1];
        total += iov[i].iov_len;
    }
    expect(total && total % 512 == 0 && off % 512 == 0 && off + total <= CAPACITY * 512ull);
    return accept_call(r);
}

int scow_queue_readv(struct scow_queue *q, uint64_t off, const struct iovec *iov, int count, void *r,
                     uint32_t flags)
{
    (void)q, (void)flags;
    return touch(off, iov, count, r, true);
}

int scow_queue_writev(struct scow_queue *q, uint64_t off, const struct iovec *iov, int count, void *r,
                      uint32_t flags)
{
    (void)q, (void)flags;
    return touch(off, iov, count, r, false);
}

static int range(uint64_t off, uint64_t bytes, void *r)
{
    expect(bytes && off + bytes <= CAPACITY * 512ull);
    return accept_call(r);
}

int scow_queue_discard(struct scow_queue *q, uint64_t off, uint64_t bytes, void *r, uint32_t flags)
{
    (void)q, (void)flags;
    return range(off, bytes, r);
}

int scow_queue_write_zeroes(struct scow_queue *q, uint64_t off, uint64_t bytes, void *r, uint32_t flags)
{
    (void)q, (void)flags;
    return range(off, bytes, r);
}

int scow_queue_flush(struct scow_queue *q, void *r, uint32_t flags)
{
    (void)q, (void)flags;
    return accept_call(r);
}

/* ---- the guest ---- */

static void be_silent(void *ctx, const char *text)
{
    (void)ctx;
    sink ^= (uint8_t)text[0];
}

static void answer_some(void)
{
    while (later_count && choose(3)) {
        const uint32_t i = choose(later_count);
        const struct scow_completion c = {.ret = choose(5) ? 0 : -EIO};
        struct blk_request *const r = later[i];

        later[i] = later[--later_count];
        blk_queue_completed(r, &c, 1);
    }
}

/* Two regions with a seam between them; beyond each the sanitizer watches. */
static void lend(struct guest_memory *m, const uint8_t *data, size_t bytes)
{
    memset(m, 0, sizeof *m);
    for (uint32_t i = 0; i < 2; i++) {
        struct guest_region *const r = &m->regions[m->count++];

        r->guest_addr = i * REGION_BYTES;
        r->user_addr = USER_ADDR + i * REGION_BYTES;
        r->bytes = REGION_BYTES;
        r->memory = aligned_alloc(16, REGION_BYTES);
        memset(r->memory, 0, REGION_BYTES);
        for (uint32_t k = 0; bytes && k < REGION_BYTES; k++)
            r->memory[k] = data[(i * REGION_BYTES + k) % bytes];
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct blk_device device = {.log = be_silent, .stats = true};
    static struct blk_queue queue;
    struct guest_memory memory;
    uint32_t num;

    if (bytes < 8)
        return 0;
    num = 1u << data[0] % (NUM_LOG_MAX + 1);
    memcpy(&choices, data, 8);
    later_count = 0;
    atomic_store(&device.capacity, CAPACITY);
    device.read_only = data[1] & 1;
    lend(&memory, data + 8, bytes - 8);
    if (blk_queue_init(&queue, 0, &device) < 0 || blk_queue_set_size(&queue, num) < 0)
        abort();
    queue.ring.memory = &memory;
    queue.ring.event_idx = data[1] & 2;
    queue.ring.indirect = data[1] & 4;
    queue.ring.next_avail = (uint16_t)(data[2] | data[3] << 8);
    /* Descriptors, then the available ring, then the used one. */
    queue.has_rings = virtqueue_set_rings(&queue.ring, USER_ADDR, USER_ADDR + 16 * num,
                                          USER_ADDR + 16 * num + ((6 + 2 * num + 3) & ~3u));
    expect(queue.has_rings);
    virtqueue_start(&queue.ring);
    queue.started = queue.enabled = true;
    for (int turn = 0; turn < 40 && !queue.ring.broken; turn++) {
        blk_queue_retry(&queue, 0);
        (void)blk_queue_serve(&queue, 8, 0);
        answer_some();
        virtqueue_notify(&queue.ring);
        virtqueue_want_kicks(&queue.ring, turn & 1);
    }
    expect(queue.ring.in_flight <= num);
    blk_queue_destroy(&queue);
    for (uint32_t i = 0; i < memory.count; i++)
        free(memory.regions[i].memory);
    return 0;
}
