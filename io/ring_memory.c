/* SPDX-License-Identifier: MIT */
#include "io/ring_memory.h"

#include <errno.h>
#include <string.h>

#include "base/attributes.h"
#include "base/error.h"

/* 4 TiB; the table costs 8 bytes for each. */
#define SLOTS 4096u
#define SLOT_BYTES ((size_t)1 << 30)

static uint32_t slots_of(size_t bytes)
{
    return (uint32_t)((bytes + SLOT_BYTES - 1) / SLOT_BYTES);
}

/* The first of so many slots in a row that no range has; SLOTS: none. */
static uint32_t free_slots(const struct ring_memory *m, uint32_t wanted)
{
    uint32_t first = 0;

    for (uint32_t i = 0; i < m->count; i++) {
        const struct ring_memory_range *const r = &m->ranges[i];

        if (r->slot < first + wanted && first < r->slot + slots_of(r->bytes)) {
            first = r->slot + slots_of(r->bytes);
            i = UINT32_MAX; /* once more: it may be in the way of another */
        }
    }
    return first + wanted <= SLOTS ? first : SLOTS;
}

/* iov_len 0: nothing is registered there any more. */
static int set_slots(struct io_uring *ring, const struct ring_memory_range *r, bool clear)
{
    const uint32_t count = slots_of(r->bytes);

    for (uint32_t i = 0; i < count; i++) {
        const size_t off = i * SLOT_BYTES;
        struct iovec iov = {(void *)(r->base + off), MIN(r->bytes - off, SLOT_BYTES)};
        __u64 tag = 0;
        int err;

        if (clear)
            iov = (struct iovec){0};
        err = io_uring_register_buffers_update_tag(ring, r->slot + i, &iov, &tag, 1);
        if (err < 0 && !clear) {
            const struct ring_memory_range done = {.slot = r->slot, .bytes = off};

            (void)set_slots(ring, &done, true);
            return err;
        }
    }
    return 0;
}

/* The table is made when it is first needed. */
static int make_slots(struct ring_memory *m, struct io_uring *ring)
{
    struct io_uring_probe *probe;
    int err;

    if (m->has_slots)
        return 0;
    err = io_uring_register_buffers_sparse(ring, SLOTS);
    if (err < 0)
        return err == -EINVAL ? -ENOTSUP : err;
    m->has_slots = true;
    probe = io_uring_get_probe_ring(ring);
    m->vectors = probe && io_uring_opcode_supported(probe, RING_READV_FIXED);
    io_uring_free_probe(probe);
    return 0;
}

int ring_memory_add(struct ring_memory *m, struct io_uring *ring, void *base, size_t bytes)
{
    struct ring_memory_range *const r = &m->ranges[m->count];
    const uintptr_t at = (uintptr_t)base;
    int err;

    if (!bytes || at + bytes < at)
        return error_set(-EINVAL, "memory to be registered is empty or wraps around");
    for (uint32_t i = 0; i < m->count; i++)
        if (at < m->ranges[i].base + m->ranges[i].bytes && m->ranges[i].base < at + bytes)
            return error_set(-EEXIST, "memory that is registered already");
    err = make_slots(m, ring);
    if (err < 0)
        return error_set(err, "io_uring: no table for registered memory: %s", strerror(-err));
    if (m->count == RING_MEMORY_RANGES_MAX || bytes > SLOTS * SLOT_BYTES)
        return error_set(-ENOSPC, "too much memory to be registered");
    *r = (struct ring_memory_range){.base = at, .bytes = bytes, .slot = free_slots(m, slots_of(bytes))};
    if (r->slot == SLOTS)
        return error_set(-ENOSPC, "too much memory to be registered");
    err = set_slots(ring, r, false);
    if (err < 0)
        return error_set(err, "io_uring: %zu bytes of memory cannot be registered: %s%s", bytes,
                         strerror(-err),
                         err == -ENOMEM   ? " (the limit is RLIMIT_MEMLOCK)"
                         : err == -EFAULT ? " (it has to be mapped, writable, and of no file on a disk)"
                                          : "");
    m->count++;
    return 0;
}

int ring_memory_remove(struct ring_memory *m, struct io_uring *ring, void *base, size_t bytes)
{
    for (uint32_t i = 0; i < m->count; i++) {
        if (m->ranges[i].base != (uintptr_t)base || m->ranges[i].bytes != bytes)
            continue;
        (void)set_slots(ring, &m->ranges[i], true);
        m->ranges[i] = m->ranges[--m->count];
        return 0;
    }
    return error_set(-ENOENT, "memory that is not registered");
}

int ring_memory_slot(const struct ring_memory *m, const void *buf, size_t bytes)
{
    for (uint32_t i = 0; i < m->count; i++) {
        const struct ring_memory_range *const r = &m->ranges[i];
        const size_t at = (uintptr_t)buf - r->base;

        if (at < r->bytes && bytes <= r->bytes - at && (at + bytes - 1) / SLOT_BYTES == at / SLOT_BYTES)
            return (int)(r->slot + at / SLOT_BYTES);
    }
    return -1;
}

int ring_memory_slot_of_vector(const struct ring_memory *m, const struct iovec *iov, int count)
{
    const int slot = ring_memory_slot(m, iov[0].iov_base, iov[0].iov_len);

    if (slot < 0 || !m->vectors)
        return -1;
    for (int i = 1; i < count; i++)
        if (ring_memory_slot(m, iov[i].iov_base, iov[i].iov_len) != slot)
            return -1;
    return slot;
}
