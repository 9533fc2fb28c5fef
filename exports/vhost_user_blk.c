/* SPDX-License-Identifier: MIT */
#include "exports/vhost_user_blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exports/vhost_user_session.h"

struct vhost_user_blk {
    struct blk_device device;
    struct session session;
    int listen_fd;
    bool connected;
};

/* ---- threads ---- */

static int create_queues(struct vhost_user_blk *s, uint32_t count)
{
    s->session.queues = calloc(count, sizeof *s->session.queues);
    s->session.addrs = calloc(count, sizeof *s->session.addrs);
    if (!s->session.queues || !s->session.addrs)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        s->session.queue_count++;
        if (blk_queue_init(&s->session.queues[i], i, &s->device) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int create_workers(struct vhost_user_blk *s, uint32_t threads, uint64_t poll_ns)
{
    struct session *const n = &s->session;
    int r = 0;

    n->workers = calloc(threads, sizeof *n->workers);
    if (!n->workers)
        return -ENOMEM;
    for (uint32_t w = 0; w < threads && r == 0; w++) {
        struct blk_queue **queues = calloc(n->queue_count / threads + 1, sizeof(struct blk_queue *));
        uint32_t count = 0;

        if (!queues)
            return -ENOMEM;
        for (uint32_t i = w; i < n->queue_count; i += threads)
            queues[count++] = &n->queues[i];
        n->worker_count++;
        r = blk_worker_start(&n->workers[w], &s->device, queues, count, poll_ns, w);
    }
    return r;
}

static uint32_t thread_count(const struct vhost_user_blk_options *o)
{
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const uint32_t most = o->threads ? o->threads : cpus > 0 ? (uint32_t)cpus : 1;

    return o->queues < most ? o->queues : most;
}

int vhost_user_blk_create(struct scow_image *image, const struct vhost_user_blk_options *o,
                          struct vhost_user_blk **ret, const char **ret_why)
{
    struct vhost_user_blk *s = calloc(1, sizeof *s);
    int r;

    *ret_why = "out of memory";
    if (!s)
        return -ENOMEM;
    s->listen_fd = o->listen_fd;
    s->device.image = image;
    s->device.read_only = o->read_only;
    s->device.always_writethrough = o->writethrough;
    s->device.stats = o->stats;
    s->device.pin_memory = o->pin_memory;
    s->device.log = o->log;
    s->device.log_ctx = o->log_ctx;
    atomic_store(&s->device.capacity, scow_size(image) / BLK_SECTOR);
    atomic_store(&s->device.writethrough, true);
    if (o->serial)
        memcpy(s->device.serial, o->serial, strnlen(o->serial, sizeof s->device.serial));
    s->session.device = &s->device;
    s->session.socket.fd = s->session.backend_fd = s->session.inflight.fd = -1;
    r = create_queues(s, o->queues);
    if (r == 0) {
        r = create_workers(s, thread_count(o), o->poll_ns);
        if (r < 0 && r != -ENOMEM)
            *ret_why = scow_error();
    }
    if (r < 0)
        vhost_user_blk_destroy(s);
    else
        *ret = s;
    return r;
}

void vhost_user_blk_destroy(struct vhost_user_blk *s)
{
    if (!s)
        return;
    if (s->connected)
        session_end(&s->session);
    for (uint32_t i = 0; i < s->session.worker_count; i++)
        blk_worker_stop(&s->session.workers[i]);
    for (uint32_t i = 0; i < s->session.queue_count; i++)
        blk_queue_destroy(&s->session.queues[i]);
    close(s->listen_fd);
    free(s->session.workers);
    free(s->session.queues);
    free(s->session.addrs);
    free(s->session.memory);
    free(s);
}

/* ---- front ends ---- */

int vhost_user_blk_fd(const struct vhost_user_blk *s)
{
    return s->connected ? s->session.socket.fd : s->listen_fd;
}

void vhost_user_blk_ready(struct vhost_user_blk *s)
{
    int fd;

    if (s->connected) {
        if (!session_readable(&s->session)) {
            session_end(&s->session);
            s->connected = false;
        }
        return;
    }
    fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    s->session.socket.fd = fd;
    s->connected = true;
    session_begin(&s->session);
}

void vhost_user_blk_resized(struct vhost_user_blk *s)
{
    atomic_store(&s->device.capacity, scow_size(s->device.image) / BLK_SECTOR);
    session_tell_size(&s->session);
}

/* ---- facts ---- */

bool vhost_user_blk_connected(const struct vhost_user_blk *s)
{
    return s->connected;
}

bool vhost_user_blk_writethrough(const struct vhost_user_blk *s)
{
    return atomic_load_explicit(&s->device.writethrough, memory_order_relaxed);
}

uint32_t vhost_user_blk_queue_count(const struct vhost_user_blk *s)
{
    return s->session.queue_count;
}

const struct blk_counts *vhost_user_blk_counts(const struct vhost_user_blk *s, uint32_t queue)
{
    return &s->session.queues[queue].counts;
}

bool vhost_user_blk_queue_runs(const struct vhost_user_blk *s, uint32_t queue)
{
    return blk_queue_runs(&s->session.queues[queue]);
}

bool vhost_user_blk_queue_is_broken(const struct vhost_user_blk *s, uint32_t queue)
{
    const struct blk_queue *const q = &s->session.queues[queue];

    return blk_queue_runs(q) && (q->reported || session_worker(&s->session, queue)->failed);
}

uint32_t vhost_user_blk_thread_count(const struct vhost_user_blk *s)
{
    return s->session.worker_count;
}

const struct scow_queue *vhost_user_blk_engine_queue(const struct vhost_user_blk *s, uint32_t queue)
{
    return session_worker(&s->session, queue)->engine;
}
