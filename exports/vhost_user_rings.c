/* SPDX-License-Identifier: MIT */
/* The session's messages about rings. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "exports/vhost_user_session.h"

/* What is done to a ring, on its worker's thread. */
struct ring_call {
    struct session *session;
    struct blk_worker *worker;
    struct blk_queue *queue;
    int fd;
    bool flag;
    int ret;
};

static int call_worker(struct session *s, uint32_t index, void (*fn)(void *arg), int fd, bool flag)
{
    struct ring_call c = {
        .session = s, .worker = session_worker(s, index), .queue = &s->queues[index], .fd = fd, .flag = flag};

    blk_worker_call(c.worker, fn, &c);
    return c.ret;
}

static void stop_ring(void *arg);

static int ring_index(struct session *s, uint32_t index)
{
    if (index >= s->queue_count)
        return session_refuse(s, -EINVAL, "ring %u, but the disk has %u queues", index, s->queue_count);
    return 0;
}

/* A front end that sets a ring up anew may have done no more than disable it. */
static int stop_disabled(struct session *s, uint32_t index)
{
    if (s->queues[index].started && s->queues[index].enabled)
        return session_refuse(s, -EBUSY, "ring %u is running", index);
    if (s->queues[index].started)
        call_worker(s, index, stop_ring, -1, false);
    return 0;
}

/* Messages of a struct vu_vring_state. */
static int check_state(struct session *s, bool idle)
{
    const struct vu_message *m = &s->socket.message;
    int r;

    if (m->header.bytes != sizeof m->payload.state)
        return session_refuse(s, -EINVAL, "a message of a wrong length about a ring");
    r = ring_index(s, m->payload.state.index);
    if (r == 0 && idle)
        r = stop_disabled(s, m->payload.state.index);
    return r;
}

static void set_size(void *arg)
{
    struct ring_call *c = arg;

    c->queue->has_rings = false;
    c->ret = blk_queue_set_size(c->queue, c->session->socket.message.payload.state.num);
}

static void set_base(void *arg)
{
    struct ring_call *c = arg;

    c->queue->ring.next_avail = (uint16_t)c->session->socket.message.payload.state.num;
}

int session_set_ring_size(struct session *s)
{
    const struct vu_vring_state *v = &s->socket.message.payload.state;
    int r = check_state(s, true);

    if (r < 0)
        return r;
    if (!v->num || v->num > VIRTQUEUE_SIZE_MAX || (v->num & (v->num - 1)))
        return session_refuse(s, -EINVAL, "ring %u of %u descriptors: a power of two up to %u is possible",
                              v->index, v->num, VIRTQUEUE_SIZE_MAX);
    r = call_worker(s, v->index, set_size, -1, false);
    return r < 0 ? session_refuse(s, r, "out of memory") : 0;
}

int session_set_ring_base(struct session *s)
{
    const struct vu_vring_state *v = &s->socket.message.payload.state;
    const int r = check_state(s, true);

    if (r < 0)
        return r;
    if (v->num > UINT16_MAX)
        return session_refuse(s, -EINVAL, "ring %u: %u is no position of a ring", v->index, v->num);
    return call_worker(s, v->index, set_base, -1, false);
}

/* ---- where they are ---- */

void session_place_ring(struct session *s, struct blk_queue *q)
{
    const struct vu_vring_addr *a = &s->addrs[q->ring.index];

    q->has_rings = q->ring.memory && virtqueue_set_rings(&q->ring, a->desc, a->avail, a->used);
    q->ring.log_used = a->flags & VU_VRING_F_LOG;
    if (q->ring.log_used)
        q->ring.used_guest_addr = a->log;
}

static void place(void *arg)
{
    struct ring_call *c = arg;

    session_place_ring(c->session, c->queue);
}

int session_set_ring_addr(struct session *s)
{
    const struct vu_message *m = &s->socket.message;
    const uint32_t index = m->payload.addr.index;
    int r;

    if (m->header.bytes != sizeof m->payload.addr)
        return session_refuse(s, -EINVAL, "a message of a wrong length about a ring");
    r = ring_index(s, index);
    if (r < 0)
        return r;
    s->addrs[index] = m->payload.addr;
    call_worker(s, index, place, -1, false);
    if (!s->queues[index].has_rings && (s->memory || s->queues[index].started))
        return session_refuse(s, -EFAULT, "ring %u does not lie in the guest's memory, or is misaligned",
                              index);
    return 0;
}

/* ---- start and stop ---- */

static void start_ring(void *arg)
{
    struct ring_call *c = arg;
    struct blk_queue *q = c->queue;

    if (!q->started) {
        session_place_ring(c->session, q);
        if (!q->has_rings) {
            c->ret = -EFAULT;
            if (c->fd >= 0)
                close(c->fd);
            return;
        }
        q->ring.inflight = inflight_of(&c->session->inflight, q->ring.index, q->ring.num);
        q->reported = false;
        virtqueue_start(&q->ring);
        q->started = true;
        /* Front ends that know no message for it mean their rings to run. */
        q->enabled |= !(c->session->features & VU_FEATURE_PROTOCOL_FEATURES);
    }
    c->ret = blk_worker_set_kick(c->worker, q, c->fd);
    if (c->ret < 0)
        q->started = false;
}

static void stop_ring(void *arg)
{
    struct ring_call *c = arg;

    c->queue->enabled &= !c->flag;
    blk_worker_drain(c->worker);
    /* What an earlier server had taken lies before the ring's position. (Its memory tells the next one too,
     * so nothing is lost where the front end has just gone.) */
    while (!c->flag && c->queue->started && c->queue->has_rings && virtqueue_again(&c->queue->ring) &&
           !c->worker->failed) {
        (void)blk_queue_serve(c->queue, virtqueue_again(&c->queue->ring), 0);
        blk_worker_drain(c->worker);
    }
    (void)blk_worker_set_kick(c->worker, c->queue, -1);
    c->queue->started = false;
    c->queue->ring.inflight = NULL;
}

static void enable_ring(void *arg)
{
    struct ring_call *c = arg;

    c->queue->enabled = c->flag;
    if (!c->flag)
        blk_worker_drain(c->worker);
}

int session_get_ring_base(struct session *s)
{
    struct vu_vring_state answer = s->socket.message.payload.state;
    const int r = check_state(s, false);

    if (r < 0)
        return r;
    call_worker(s, answer.index, stop_ring, -1, false);
    answer.num = s->queues[answer.index].ring.next_avail;
    return vu_send(s->socket.fd, VU_GET_VRING_BASE, VU_REPLY, &answer, sizeof answer, -1);
}

int session_enable_ring(struct session *s)
{
    const struct vu_vring_state *v = &s->socket.message.payload.state;
    const int r = check_state(s, false);

    if (r == 0)
        call_worker(s, v->index, enable_ring, -1, v->num == 1);
    return r;
}

void session_stop_rings(struct session *s)
{
    for (uint32_t i = 0; i < s->queue_count; i++)
        call_worker(s, i, stop_ring, -1, true);
}

/* ---- descriptors ---- */

static void set_call(void *arg)
{
    struct ring_call *c = arg;

    virtqueue_replace_fd(&c->queue->ring.call_fd, c->fd);
    c->queue->ring.told_valid = false;
    if (c->queue->has_rings && c->queue->started) {
        c->queue->ring.told_used--; /* what was answered before it came may have gone unheard */
        blk_queue_notify(c->queue);
    }
}

static void set_err(void *arg)
{
    struct ring_call *c = arg;

    virtqueue_replace_fd(&c->queue->ring.err_fd, c->fd);
}

static int start(struct session *s, uint32_t index, int fd)
{
    int r;

    if (!s->queues[index].ring.num || !s->memory) {
        if (fd >= 0)
            close(fd);
        return session_refuse(s, -EINVAL, "ring %u is kicked before it has memory and a size", index);
    }
    r = call_worker(s, index, start_ring, fd, false);
    if (r < 0)
        return session_refuse(s, r, "ring %u does not lie in the guest's memory, or its kick is no event",
                              index);
    return 0;
}

int session_set_ring_fd(struct session *s)
{
    const struct vu_message *m = &s->socket.message;
    const uint32_t index = m->payload.u64 & VU_VRING_INDEX_MASK;
    const bool none = m->payload.u64 & VU_VRING_NO_FD;
    int fd, r;

    if (m->header.bytes != sizeof m->payload.u64 ||
        m->payload.u64 & ~(uint64_t)(VU_VRING_INDEX_MASK | VU_VRING_NO_FD) || s->socket.fd_count != !none)
        return session_refuse(s, -EINVAL, "a ring's descriptor is missing, or one too many");
    r = ring_index(s, index);
    if (r < 0)
        return r;
    fd = vu_socket_take_fd(&s->socket, 0);
    if (fd >= 0 && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) { /* a worker never waits in it */
        close(fd);
        return session_refuse(s, -EINVAL, "a ring's descriptor is of no use");
    }
    if (m->header.request == VU_SET_VRING_KICK)
        return start(s, index, fd);
    call_worker(s, index, m->header.request == VU_SET_VRING_CALL ? set_call : set_err, fd, false);
    return 0;
}

/* ---- what features say ---- */

static void update(void *arg)
{
    struct ring_call *c = arg;
    const struct session *s = c->session;

    c->queue->ring.event_idx = s->features & (1ull << VIRTIO_RING_F_EVENT_IDX);
    c->queue->ring.indirect = s->features & (1ull << VIRTIO_RING_F_INDIRECT_DESC);
    c->queue->ring.log = s->features & VU_FEATURE_LOG_ALL ? s->log : NULL;
}

void session_update_rings(struct session *s)
{
    for (uint32_t i = 0; i < s->queue_count; i++)
        call_worker(s, i, update, -1, false);
}
