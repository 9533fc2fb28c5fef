/* SPDX-License-Identifier: MIT */
#include "exports/vhost_user_session.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BIT(n) (1ull << (n))
#define PROTOCOL_FEATURES                                                                                    \
    (VU_F_MQ | VU_F_LOG_SHMFD | VU_F_REPLY_ACK | VU_F_BACKEND_REQ | VU_F_CONFIG | VU_F_INFLIGHT_SHMFD |      \
     VU_F_RESET_DEVICE | VU_F_CONFIGURE_MEM_SLOTS | VU_F_STATUS)

int session_refuse(struct session *s, int err, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    s->device->log(s->device->log_ctx, text);
    return err;
}

struct blk_worker *session_worker(const struct session *s, uint32_t queue)
{
    return &s->workers[queue % s->worker_count];
}

/* ---- features ---- */

uint64_t session_offered_features(const struct session *s)
{
    uint64_t f = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC) |
                 BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
                 BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_MQ) |
                 VU_FEATURE_LOG_ALL | VU_FEATURE_PROTOCOL_FEATURES;

    if (s->device->read_only)
        return f | BIT(VIRTIO_BLK_F_RO);
    return f | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES);
}

static void drain(void *arg)
{
    blk_worker_drain(arg);
}

/* Who cannot flush has to find every write durable (virtio 1.2, "Block Device": writeback needs
 * VIRTIO_BLK_F_FLUSH); who can set the mode has set it. */
int session_update_cache_mode(struct session *s)
{
    const bool writeback = s->features & BIT(VIRTIO_BLK_F_FLUSH) &&
                           (!(s->features & BIT(VIRTIO_BLK_F_CONFIG_WCE)) || s->config.wce);
    const bool writethrough = !writeback || s->device->always_writethrough;

    inflight_note_cache(&s->inflight, s->config.wce ? INFLIGHT_WRITEBACK : INFLIGHT_WRITETHROUGH);
    if (writethrough == atomic_load_explicit(&s->device->writethrough, memory_order_relaxed))
        return 0;
    atomic_store_explicit(&s->device->writethrough, writethrough, memory_order_relaxed);
    if (!writethrough || s->device->read_only)
        return 0;
    /* From now on nobody may flush: what is cached so far, or still on its way there, becomes durable now. */
    for (uint32_t i = 0; i < s->worker_count; i++)
        blk_worker_call(&s->workers[i], drain, &s->workers[i]);
    if (scow_flush(s->device->image) < 0)
        return session_refuse(s, -EIO, "the change to writethrough: %s", scow_error());
    return 0;
}

/* Front ends that connect again do not say it again. */
void session_take_cache_mode(struct session *s)
{
    const enum inflight_cache noted = inflight_cache(&s->inflight);

    if (noted != INFLIGHT_CACHE_UNKNOWN)
        s->config.wce = noted == INFLIGHT_WRITEBACK && !s->device->always_writethrough;
    (void)session_update_cache_mode(s);
}

static int set_features(struct session *s)
{
    const uint64_t f = s->socket.message.payload.u64;

    if (s->socket.message.header.bytes != sizeof f)
        return session_refuse(s, -EINVAL, "features of a wrong length");
    if (f & ~session_offered_features(s))
        return session_refuse(s, -EINVAL, "features 0x%llx were not offered",
                              (unsigned long long)(f & ~session_offered_features(s)));
    s->features = f;
    if (f & BIT(VIRTIO_BLK_F_CONFIG_WCE) && !(f & BIT(VIRTIO_BLK_F_FLUSH)))
        s->config.wce = 0;
    session_update_rings(s);
    return session_update_cache_mode(s);
}

static int set_protocol_features(struct session *s)
{
    const uint64_t f = s->socket.message.payload.u64;

    if (s->socket.message.header.bytes != sizeof f || f & ~PROTOCOL_FEATURES)
        return session_refuse(s, -EINVAL, "protocol features that were not offered");
    s->protocol_features = f;
    return 0;
}

/* ---- config space ---- */

static uint32_t log2_of(uint32_t n)
{
    return 31u - (uint32_t)__builtin_clz(n);
}

static void fill_config(struct session *s)
{
    struct scow_info info = SCOW_INFO_INIT;
    struct virtio_blk_config *const c = &s->config;
    uint32_t unit, block;

    memset(c, 0, sizeof *c);
    (void)scow_get_info(s->device->image, &info);
    unit = info.cluster_bytes ? info.cluster_bytes : 65536;
    block = info.io_align > 4096 ? info.io_align : 4096;
    c->capacity = htole64(atomic_load(&s->device->capacity));
    c->seg_max = htole32(BLK_SEG_MAX);
    c->blk_size = htole32(BLK_SECTOR);
    c->physical_block_exp = (uint8_t)log2_of(block / BLK_SECTOR);
    c->min_io_size = htole16((uint16_t)(block / BLK_SECTOR));
    c->opt_io_size = htole32(unit / BLK_SECTOR);
    c->wce = !s->device->always_writethrough;
    c->num_queues = htole16((uint16_t)s->queue_count);
    c->max_discard_sectors = htole32(BLK_RANGE_SECTORS_MAX);
    c->max_discard_seg = htole32(BLK_SEGMENTS_MAX);
    c->discard_sector_alignment =
        htole32((info.subcluster_bytes ? info.subcluster_bytes : BLK_SECTOR) / BLK_SECTOR);
    c->max_write_zeroes_sectors = htole32(BLK_RANGE_SECTORS_MAX);
    c->max_write_zeroes_seg = htole32(BLK_SEGMENTS_MAX);
    c->write_zeroes_may_unmap = 1;
}

#define CONFIG_HEAD offsetof(struct vu_config, data)

static int get_config(struct session *s)
{
    struct vu_config c = s->socket.message.payload.config;
    const uint32_t own = sizeof s->config;

    if (s->socket.message.header.bytes < CONFIG_HEAD || c.bytes > VU_CONFIG_BYTES_MAX ||
        c.off > VU_CONFIG_BYTES_MAX || c.off + c.bytes > VU_CONFIG_BYTES_MAX) {
        (void)session_refuse(s, -EINVAL, "a part of the config space that does not exist is asked for");
        return vu_send(s->socket.fd, VU_GET_CONFIG, VU_REPLY, NULL, 0, -1); /* an error, by the protocol */
    }
    memset(c.data, 0, sizeof c.data);
    if (c.off < own)
        memcpy(c.data, (const uint8_t *)&s->config + c.off, own - c.off < c.bytes ? own - c.off : c.bytes);
    return vu_send(s->socket.fd, VU_GET_CONFIG, VU_REPLY, &c, (uint32_t)CONFIG_HEAD + c.bytes, -1);
}

static int set_config(struct session *s)
{
    const struct vu_config *c = &s->socket.message.payload.config;

    if (s->socket.message.header.bytes != CONFIG_HEAD + 1 || c->bytes != 1 ||
        c->off != offsetof(struct virtio_blk_config, wce))
        return session_refuse(s, -EINVAL, "only the cache mode can be written in the config space");
    if (c->data[0] > 1)
        return session_refuse(s, -EINVAL, "the cache mode cannot be set to %u", c->data[0]);
    s->config.wce = c->data[0] && !s->device->always_writethrough;
    return session_update_cache_mode(s);
}

void session_tell_size(struct session *s)
{
    s->config.capacity = htole64(atomic_load(&s->device->capacity));
    if (s->backend_fd >= 0)
        (void)vu_send(s->backend_fd, VU_BACKEND_CONFIG_CHANGE, 0, NULL, 0, -1);
}

static int set_backend_fd(struct session *s)
{
    if (s->socket.fd_count != 1)
        return session_refuse(s, -EINVAL, "a back-end channel without its descriptor");
    if (s->backend_fd >= 0)
        close(s->backend_fd);
    s->backend_fd = vu_socket_take_fd(&s->socket, 0);
    return 0;
}

/* ---- messages ---- */

static int reply_u64(struct session *s, uint64_t n)
{
    return vu_send(s->socket.fd, s->socket.message.header.request, VU_REPLY, &n, sizeof n, -1);
}

static int reset_device(struct session *s)
{
    session_stop_rings(s);
    s->status = 0;
    return 0;
}

static int set_status(struct session *s)
{
    if (s->socket.message.header.bytes != sizeof s->status)
        return session_refuse(s, -EINVAL, "a status of a wrong length");
    s->status = s->socket.message.payload.u64;
    return 0;
}

static int nothing(struct session *s)
{
    (void)s;
    return 0;
}

/* Those that answer by themselves. */
static int ask(struct session *s)
{
    switch (s->socket.message.header.request) {
    case VU_GET_FEATURES:
        return reply_u64(s, session_offered_features(s));
    case VU_GET_PROTOCOL_FEATURES:
        return reply_u64(s, PROTOCOL_FEATURES);
    case VU_GET_QUEUE_NUM:
        return reply_u64(s, s->queue_count);
    case VU_GET_MAX_MEM_SLOTS:
        return reply_u64(s, GUEST_REGIONS_MAX);
    case VU_GET_STATUS:
        return reply_u64(s, s->status);
    case VU_GET_VRING_BASE:
        return session_get_ring_base(s);
    case VU_GET_CONFIG:
        return get_config(s);
    case VU_GET_INFLIGHT_FD:
        return session_give_inflight(s);
    default:
        return -ENOSYS;
    }
}

static int (*handler_of(uint32_t request))(struct session *s)
{
    switch (request) {
    case VU_SET_FEATURES:
        return set_features;
    case VU_SET_OWNER:
    case VU_RESET_OWNER:
        return nothing;
    case VU_SET_MEM_TABLE:
        return session_set_memory;
    case VU_SET_LOG_BASE:
        return session_set_log;
    case VU_SET_LOG_FD:
        return nothing; /* front ends look at the log when they want to */
    case VU_SET_VRING_NUM:
        return session_set_ring_size;
    case VU_SET_VRING_ADDR:
        return session_set_ring_addr;
    case VU_SET_VRING_BASE:
        return session_set_ring_base;
    case VU_SET_VRING_KICK:
    case VU_SET_VRING_CALL:
    case VU_SET_VRING_ERR:
        return session_set_ring_fd;
    case VU_SET_PROTOCOL_FEATURES:
        return set_protocol_features;
    case VU_SET_VRING_ENABLE:
        return session_enable_ring;
    case VU_SET_BACKEND_REQ_FD:
        return set_backend_fd;
    case VU_SET_CONFIG:
        return set_config;
    case VU_SET_INFLIGHT_FD:
        return session_set_inflight;
    case VU_RESET_DEVICE:
        return reset_device;
    case VU_ADD_MEM_REG:
        return session_add_region;
    case VU_REM_MEM_REG:
        return session_remove_region;
    case VU_SET_STATUS:
        return set_status;
    default:
        return NULL;
    }
}

/* False: this front end has to go. */
static bool dispatch(struct session *s)
{
    const struct vu_header *h = &s->socket.message.header;
    int (*const handler)(struct session * s) = handler_of(h->request);
    bool answers;
    int r;

    if ((h->flags & VU_VERSION_MASK) != VU_VERSION || h->flags & VU_REPLY) {
        (void)session_refuse(s, -EPROTO, "a message with flags 0x%x: version 1 is spoken here", h->flags);
        return false;
    }
    r = handler ? handler(s) : ask(s);
    /* By the features that there are now: the message may have been the one that set them. */
    answers = h->flags & VU_NEED_REPLY && s->protocol_features & VU_F_REPLY_ACK;
    if (r == -ENOSYS && !handler)
        (void)session_refuse(s, r, "unknown message %u", h->request);
    if (!handler)
        return r >= 0;
    if (answers)
        return reply_u64(s, r < 0) >= 0;
    if (h->request == VU_SET_LOG_BASE && r >= 0 && s->protocol_features & VU_F_LOG_SHMFD)
        return vu_send(s->socket.fd, VU_SET_LOG_BASE, VU_REPLY, NULL, 0, -1) >= 0;
    /* Nobody would learn that it has failed. */
    return r >= 0;
}

/* One message at most: signals and others get their turn. */
bool session_readable(struct session *s)
{
    const char *why;
    const int r = vu_socket_receive(&s->socket, &why);
    bool goes_on;

    if (r == 0)
        return true;
    if (r < 0) {
        if (r != -EPIPE)
            (void)session_refuse(s, r, "%s", why);
        return false;
    }
    goes_on = dispatch(s);
    vu_socket_next(&s->socket);
    if (!goes_on)
        (void)session_refuse(s, -EPROTO, "the front end is disconnected");
    return goes_on;
}

/* ---- begin, end ---- */

static void reset(struct session *s)
{
    s->features = s->protocol_features = 0;
    s->status = 0;
    if (s->backend_fd >= 0)
        close(s->backend_fd);
    s->backend_fd = -1;
    memset(s->addrs, 0, s->queue_count * sizeof *s->addrs);
    fill_config(s);
}

void session_begin(struct session *s)
{
    reset(s);
    (void)session_update_cache_mode(s);
}

static void close_fds(void *arg)
{
    struct blk_queue *const q = arg;

    virtqueue_replace_fd(&q->ring.call_fd, -1);
    virtqueue_replace_fd(&q->ring.err_fd, -1);
    q->enabled = q->has_rings = false;
    q->ring.num = 0;
    q->ring.next_avail = 0;
}

void session_end(struct session *s)
{
    session_stop_rings(s);
    session_forget_memory(s);
    vu_socket_close(&s->socket); /* that says: nothing of yours is touched any more */
    for (uint32_t i = 0; i < s->queue_count; i++)
        blk_worker_call(session_worker(s, i), close_fds, &s->queues[i]);
    reset(s);
    session_update_rings(s);
}
