/* SPDX-License-Identifier: MIT */
#include "exports/virtqueue.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The guest may write while we read: one load, as wide as the field. */
#define FETCH16(p) le16toh(__atomic_load_n((p), __ATOMIC_RELAXED))

int virtqueue_init(struct virtqueue *vq, uint32_t index)
{
    *vq = (struct virtqueue){.index = index, .kick_fd = -1, .call_fd = -1, .err_fd = -1};
    vq->taken = calloc(VIRTQUEUE_SIZE_MAX, 1);
    vq->again = calloc(VIRTQUEUE_SIZE_MAX, sizeof *vq->again);
    return vq->taken && vq->again ? 0 : -ENOMEM;
}

void virtqueue_replace_fd(int *fd, int other)
{
    if (*fd >= 0)
        close(*fd);
    *fd = other;
}

void virtqueue_destroy(struct virtqueue *vq)
{
    free(vq->taken);
    free(vq->again);
    vq->taken = NULL;
    vq->again = NULL;
    virtqueue_replace_fd(&vq->kick_fd, -1);
    virtqueue_replace_fd(&vq->call_fd, -1);
    virtqueue_replace_fd(&vq->err_fd, -1);
}

bool virtqueue_set_rings(struct virtqueue *vq, uint64_t desc, uint64_t avail, uint64_t used)
{
    uint64_t unused, used_guest_addr;
    /* With the event indices behind the rings. */
    void *const d = guest_memory_at_user(vq->memory, desc, 16ull * vq->num, &unused);
    void *const a = guest_memory_at_user(vq->memory, avail, 6 + 2ull * vq->num, &unused);
    void *const u = guest_memory_at_user(vq->memory, used, 6 + 8ull * vq->num, &used_guest_addr);

    if (!vq->num || !d || !a || !u || (uintptr_t)d % 16 || (uintptr_t)a % 2 || (uintptr_t)u % 4)
        return false;
    vq->desc = d;
    vq->avail = a;
    vq->used = u;
    vq->used_guest_addr = used_guest_addr;
    return true;
}

void virtqueue_start(struct virtqueue *vq)
{
    vq->broken = NULL;
    vq->told_valid = false;
    vq->used_idx = vq->told_used = FETCH16(&vq->used->idx);
    vq->again_count = vq->again_next = 0;
    memset(vq->taken, 0, VIRTQUEUE_SIZE_MAX);
    if (!vq->inflight)
        return;
    vq->again_count = inflight_recover(vq->inflight, vq->num, vq->used_idx, vq->again, &vq->inflight_counter);
    /* Whatever the front end remembers: the ring goes on behind all that was taken. */
    vq->next_avail = (uint16_t)(vq->used_idx + vq->again_count);
}

/* ---- taking ---- */

static int fail(struct virtqueue *vq, const char *why)
{
    vq->broken = why;
    return -1;
}

/* A table may begin anywhere. */
static struct vring_desc fetch_desc(const struct vring_desc *table, uint32_t i)
{
    struct vring_desc d;

    memcpy(&d, (const uint8_t *)table + (size_t)i * sizeof d, sizeof d);
    __asm__ volatile("" : : : "memory"); /* what was fetched is not fetched again */
    return (struct vring_desc){
        .addr = le64toh(d.addr), .len = le32toh(d.len), .flags = le16toh(d.flags), .next = le16toh(d.next)};
}

static int add_pieces(struct virtqueue *vq, struct chain *c, const struct vring_desc *d)
{
    const bool in = d->flags & VRING_DESC_F_WRITE;
    const uint32_t have = c->out_count + c->in_count;
    uint64_t addr = d->addr;
    uint32_t n;

    if (!d->len)
        return fail(vq, "a descriptor of length 0");
    if (!in && c->in_count)
        return fail(vq, "a readable descriptor behind a writable one");
    n = guest_memory_pieces(vq->memory, d->addr, d->len, c->pieces + have, CHAIN_PIECES_MAX - have);
    if (!n)
        return fail(vq, have < CHAIN_PIECES_MAX ? "a descriptor outside the guest's memory"
                                                : "a request of too many descriptors");
    if ((uint64_t)(in ? c->in_bytes : c->out_bytes) + d->len > INT32_MAX)
        return fail(vq, "a request of more than 2 GiB");
    for (uint32_t i = have; i < have + n; i++) {
        c->in_addrs[i] = addr;
        addr += c->pieces[i].iov_len;
    }
    if (in) {
        c->in_count = (uint16_t)(c->in_count + n);
        c->in_bytes += d->len;
    } else {
        c->out_count = (uint16_t)(c->out_count + n);
        c->out_bytes += d->len;
    }
    return 0;
}

/* The descriptor names a table of its own; a chain goes there at most once, at its end. */
static int enter_table(struct virtqueue *vq, const struct vring_desc *d, const struct vring_desc **ret_table,
                       uint32_t *ret_count)
{
    if (!vq->indirect)
        return fail(vq, "an indirect descriptor that was not negotiated");
    if (d->flags & VRING_DESC_F_NEXT) /* the write-only flag is to be ignored */
        return fail(vq, "an indirect descriptor with a next one");
    if (!d->len || d->len % sizeof **ret_table)
        return fail(vq, "an indirect table of a bad length");
    *ret_table = guest_memory_at(vq->memory, d->addr, d->len);
    if (!*ret_table)
        return fail(vq, "an indirect table outside the guest's memory");
    *ret_count = (uint32_t)(d->len / sizeof **ret_table);
    return 0;
}

static int walk(struct virtqueue *vq, struct chain *c)
{
    const struct vring_desc *table = vq->desc;
    uint32_t count = vq->num, i = c->head, steps = 0;
    bool entered = false;

    for (;;) {
        struct vring_desc d;

        if (i >= count)
            return fail(vq, "a descriptor index beyond its table");
        if (steps++ >= count)
            return fail(vq, "a descriptor chain that loops");
        d = fetch_desc(table, i);
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (entered)
                return fail(vq, "an indirect descriptor within an indirect table");
            if (enter_table(vq, &d, &table, &count) < 0)
                return -1;
            entered = true;
            i = steps = 0;
            continue;
        }
        if (add_pieces(vq, c, &d) < 0)
            return -1;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 0;
        i = d.next;
    }
}

/* The head that is next. 1, 0: none, -1. */
static int next_head(struct virtqueue *vq, uint16_t *ret)
{
    uint16_t avail;

    if (vq->again_next < vq->again_count) {
        *ret = vq->again[vq->again_next++];
        return 1;
    }
    avail = le16toh(__atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE));
    if (avail == vq->next_avail)
        return 0;
    if ((uint16_t)(avail - vq->next_avail) > vq->num)
        return fail(vq, "the available index runs ahead of the ring");
    *ret = FETCH16(&vq->avail->ring[vq->next_avail & (vq->num - 1)]);
    if (*ret >= vq->num)
        return fail(vq, "the available ring names a descriptor beyond the table");
    if (vq->taken[*ret])
        return fail(vq, "the available ring names a request that is in flight");
    vq->next_avail++;
    return 1;
}

int virtqueue_pop(struct virtqueue *vq, struct chain *c)
{
    uint16_t head;
    bool again;
    int r;

    if (vq->broken)
        return -1;
    again = vq->again_next < vq->again_count;
    r = next_head(vq, &head);
    if (r <= 0)
        return r;
    c->head = head;
    c->out_count = c->in_count = 0;
    c->out_bytes = c->in_bytes = 0;
    if (walk(vq, c) < 0)
        return -1;
    if (vq->inflight && !again)
        inflight_taken(vq->inflight, head, vq->inflight_counter++);
    vq->taken[head] = 1;
    vq->in_flight++;
    return 1;
}

bool virtqueue_has_work(const struct virtqueue *vq)
{
    return !vq->broken && (vq->again_next < vq->again_count ||
                           le16toh(__atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE)) != vq->next_avail);
}

/* ---- giving back ---- */

static void log_used(const struct virtqueue *vq, uint64_t off, uint64_t bytes)
{
    if (vq->log && vq->log_used)
        dirty_log_mark(vq->log, vq->used_guest_addr + off, bytes);
}

void virtqueue_push(struct virtqueue *vq, const struct chain *c, uint32_t written)
{
    struct vring_used_elem *const e = &vq->used->ring[vq->used_idx & (vq->num - 1)];

    if (vq->log)
        for (uint32_t i = c->out_count; i < (uint32_t)c->out_count + c->in_count; i++)
            dirty_log_mark(vq->log, c->in_addrs[i], c->pieces[i].iov_len);
    e->id = htole32(c->head);
    e->len = htole32(written);
    if (vq->inflight)
        inflight_answering(vq->inflight, c->head);
    __atomic_store_n(&vq->used->idx, htole16(++vq->used_idx), __ATOMIC_RELEASE);
    if (vq->inflight)
        inflight_answered(vq->inflight, c->head, vq->used_idx);
    log_used(vq, (uint64_t)((uint8_t *)e - (uint8_t *)vq->used), sizeof *e);
    log_used(vq, offsetof(struct vring_used, idx), sizeof vq->used->idx);
    vq->taken[c->head] = 0;
    vq->in_flight--;
}

/* virtio 1.2, "Used Buffer Notification Suppression". */
static bool is_wanted(struct virtqueue *vq)
{
    const uint16_t old = vq->told_used, now = vq->used_idx;
    const bool valid = vq->told_valid;

    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the used index before what the guest says of it */
    vq->told_used = now;
    vq->told_valid = true;
    if (!vq->event_idx)
        return !(FETCH16(&vq->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    return !valid || vring_need_event(FETCH16(&vq->avail->ring[vq->num]), now, old);
}

bool virtqueue_notify(struct virtqueue *vq)
{
    const uint64_t one = 1;

    return vq->told_used != vq->used_idx && is_wanted(vq) && vq->call_fd >= 0 &&
           write(vq->call_fd, &one, sizeof one) == sizeof one;
}

void virtqueue_want_kicks(struct virtqueue *vq, bool want)
{
    if (vq->event_idx) {
        /* Behind the used ring: the position whose filling is to be told. Not wanting needs nothing said. */
        if (want) {
            uint16_t *const at = (uint16_t *)&vq->used->ring[vq->num];

            __atomic_store_n(at, htole16(vq->next_avail), __ATOMIC_RELAXED);
            log_used(vq, offsetof(struct vring_used, ring) + vq->num * sizeof vq->used->ring[0], sizeof *at);
        }
    } else {
        __atomic_store_n(&vq->used->flags, want ? 0 : htole16(VRING_USED_F_NO_NOTIFY), __ATOMIC_RELAXED);
        log_used(vq, 0, sizeof vq->used->flags);
    }
    if (want)
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* before the available index is looked at again */
}
