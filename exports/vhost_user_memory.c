/* SPDX-License-Identifier: MIT */
/* The session's messages about memory: the guest's, the dirty log, what is in flight. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "exports/vhost_user_session.h"

struct change {
    struct session *session;
    struct blk_worker *worker;
    struct guest_memory *memory;
    struct dirty_log *log;
    bool drain;
};

/* ---- the guest's memory ---- */

static void change_memory(void *arg)
{
    const struct change *c = arg;

    if (c->drain)
        blk_worker_drain(c->worker);
    blk_worker_change_memory(c->worker, c->session->memory, c->memory);
    for (uint32_t i = 0; i < c->worker->queue_count; i++) {
        c->worker->queues[i]->ring.memory = c->memory;
        session_place_ring(c->session, c->worker->queues[i]);
    }
}

/* All workers use the new table; the old one's struct is freed, its mappings are the caller's business. */
static void use_memory(struct session *s, struct guest_memory *memory, bool drain)
{
    for (uint32_t i = 0; i < s->worker_count; i++) {
        struct change c = {.session = s, .worker = &s->workers[i], .memory = memory, .drain = drain};

        blk_worker_call(&s->workers[i], change_memory, &c);
    }
    free(s->memory);
    s->memory = memory;
}

static int add_region(struct session *s, struct guest_memory *m, const struct vu_region *r, int fd)
{
    const char *why;
    const int err =
        fd < 0 ? -EBADF : guest_memory_add(m, r->guest_addr, r->user_addr, r->bytes, r->map_off, fd, &why);

    return err < 0 ? session_refuse(s, err, "%s", fd < 0 ? "a memory region comes without descriptor" : why)
                   : 0;
}

int session_set_memory(struct session *s)
{
    const struct vu_message *m = &s->socket.message;
    const uint32_t count = m->payload.memory.count;
    struct guest_memory *memory, old;
    int r = 0;

    if (count > VU_FDS_MAX || m->header.bytes < 8 + count * sizeof(struct vu_region) ||
        s->socket.fd_count != count)
        return session_refuse(s, -EINVAL, "a memory table of %u regions with %u descriptors", count,
                              s->socket.fd_count);
    memory = calloc(1, sizeof *memory);
    if (!memory)
        return session_refuse(s, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < count && r == 0; i++)
        r = add_region(s, memory, &m->payload.memory.regions[i], s->socket.fds[i]);
    if (r < 0) {
        guest_memory_clear(memory);
        free(memory);
        return r;
    }
    old = s->memory ? *s->memory : (struct guest_memory){0};
    use_memory(s, memory, true);
    guest_memory_clear(&old);
    return 0;
}

static struct guest_memory *copy_memory(const struct session *s)
{
    struct guest_memory *m = calloc(1, sizeof *m);

    if (m && s->memory)
        *m = *s->memory;
    return m;
}

int session_add_region(struct session *s)
{
    struct guest_memory *m;
    int r;

    if (s->socket.message.header.bytes < sizeof s->socket.message.payload.slot || s->socket.fd_count != 1)
        return session_refuse(s, -EINVAL, "a memory slot without descriptor, or a short message");
    m = copy_memory(s);
    if (!m)
        return session_refuse(s, -ENOMEM, "out of memory");
    r = add_region(s, m, &s->socket.message.payload.slot.region, s->socket.fds[0]);
    if (r < 0)
        free(m);
    else
        use_memory(s, m, false);
    return r;
}

int session_remove_region(struct session *s)
{
    const struct vu_region *r = &s->socket.message.payload.slot.region;
    struct guest_region gone;
    struct guest_memory *m;

    if (s->socket.message.header.bytes < sizeof s->socket.message.payload.slot)
        return session_refuse(s, -EINVAL, "a short message");
    m = copy_memory(s);
    if (!m)
        return session_refuse(s, -ENOMEM, "out of memory");
    if (guest_memory_take(m, r->guest_addr, r->user_addr, r->bytes, &gone) < 0) {
        free(m);
        return session_refuse(s, -ENOENT, "a memory slot to be removed that is not there");
    }
    use_memory(s, m, true);
    guest_region_unmap(&gone);
    return 0;
}

/* ---- the dirty log ---- */

int session_set_log(struct session *s)
{
    const struct vu_message *m = &s->socket.message;
    struct dirty_log *log, *old = s->log;
    int r;

    if (m->header.bytes < sizeof m->payload.log || s->socket.fd_count != 1)
        return session_refuse(s, -EINVAL, "a dirty log without descriptor, or a short message");
    log = calloc(1, sizeof *log);
    if (!log)
        return session_refuse(s, -ENOMEM, "out of memory");
    r = dirty_log_open(log, s->socket.fds[0], m->payload.log.off, m->payload.log.bytes);
    if (r < 0) {
        free(log);
        return session_refuse(s, r, "a dirty log that cannot be mapped");
    }
    s->log = log;
    session_update_rings(s);
    if (old)
        dirty_log_close(old);
    free(old);
    return 0;
}

/* ---- what is in flight ---- */

/* By the protocol; some front ends send the structure with its padding. */
#define INFLIGHT_BYTES offsetof(struct vu_inflight, padding)

int session_give_inflight(struct session *s)
{
    const struct vu_inflight *asked = &s->socket.message.payload.inflight;
    struct vu_inflight answer = {0};
    struct inflight made;
    int r;

    if (s->socket.message.header.bytes < INFLIGHT_BYTES || !asked->queue_count ||
        asked->queue_count > s->queue_count || !asked->queue_size || asked->queue_size > VIRTQUEUE_SIZE_MAX)
        return session_refuse(s, -EINVAL, "memory for what is in flight on %u queues of %u",
                              asked->queue_count, asked->queue_size);
    r = inflight_create(&made, asked->queue_count, asked->queue_size);
    if (r < 0)
        return session_refuse(s, r, "no memory for what is in flight");
    answer.map_bytes = made.bytes;
    answer.queue_count = made.queue_count;
    answer.queue_size = made.queue_size;
    r = vu_send(s->socket.fd, VU_GET_INFLIGHT_FD, VU_REPLY, &answer,
                s->socket.message.header.bytes < sizeof answer ? INFLIGHT_BYTES : sizeof answer, made.fd);
    inflight_close(&made); /* it comes back with SET_INFLIGHT_FD */
    return r;
}

int session_set_inflight(struct session *s)
{
    const struct vu_inflight *given = &s->socket.message.payload.inflight;
    struct inflight f;
    int r;

    for (uint32_t i = 0; i < s->queue_count; i++)
        if (s->queues[i].started)
            return session_refuse(s, -EBUSY, "memory for what is in flight while rings run");
    if (s->socket.message.header.bytes < INFLIGHT_BYTES || s->socket.fd_count != 1 ||
        given->queue_count > s->queue_count || given->queue_size > VIRTQUEUE_SIZE_MAX)
        return session_refuse(s, -EINVAL, "memory for what is in flight that fits no queues");
    r = inflight_open(&f, s->socket.fds[0], given->map_off, given->map_bytes, given->queue_count,
                      given->queue_size);
    if (r < 0)
        return session_refuse(s, r, "memory for what is in flight that cannot be mapped");
    s->socket.fds[0] = -1; /* f has it */
    inflight_close(&s->inflight);
    s->inflight = f;
    session_take_cache_mode(s);
    /* The guest will go on over a kill of this server, and not know that it has to write again. */
    atomic_store_explicit(&s->device->outlived, true, memory_order_relaxed);
    return 0;
}

/* The rings have stopped. */
void session_forget_memory(struct session *s)
{
    struct guest_memory old = s->memory ? *s->memory : (struct guest_memory){0};
    struct dirty_log *log = s->log;

    use_memory(s, NULL, true);
    guest_memory_clear(&old);
    s->log = NULL;
    session_update_rings(s);
    if (log)
        dirty_log_close(log);
    free(log);
    inflight_close(&s->inflight);
    atomic_store_explicit(&s->device->outlived, false, memory_order_relaxed);
}
