/* SPDX-License-Identifier: MIT */
/* The queue calls of shardcow.h: validation, submission, completions. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/probe.h"
#include "engine/cached_lookup.h"
#include "engine/options.h"
#include "engine/queue.h"
#include "engine/read.h"
#include "engine/write.h"
#include "format/limits.h"

SCOW_PUBLIC int scow_queue_create(struct scow_image *image, const struct scow_queue_options *options,
                                  struct scow_queue **ret_queue)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;
    int r = options ? options_take(&o, sizeof o, options, "queue options") : 0;

    if (r < 0)
        return r;
    if (o.flags || o.reserved[0] || o.reserved[1] || o.reserved[2] || o.reserved[3])
        return error_set(-EINVAL, "queue options: unknown flags 0x%" PRIx32 " or a reserved field is set",
                         o.flags);
    if (o.depth > QUEUE_DEPTH_MAX)
        return error_set(-EINVAL, "queue options: depth %" PRIu32 " is above the limit of %u", o.depth,
                         QUEUE_DEPTH_MAX);
    if (image->no_io || image->options.flags & SCOW_OPEN_REPAIR)
        return error_set(-EPERM, "the image was opened with %s: it has no queues",
                         image->no_io ? "SCOW_OPEN_NO_IO" : "SCOW_OPEN_REPAIR");
    return queue_create(image, o.depth ? o.depth : QUEUE_DEPTH_DEFAULT, false, ret_queue);
}

SCOW_PUBLIC int scow_queue_destroy(struct scow_queue *queue)
{
    return queue ? queue_destroy(queue) : 0;
}

/* ---- submission ---- */

ATTR_COLD static int bad_range(const struct scow_queue *q, uint64_t off, uint64_t bytes, uint32_t flags)
{
    if (flags)
        return error_set(-EINVAL, "request: unknown flags 0x%" PRIx32, flags);
    return error_set(-EINVAL,
                     "request: %" PRIu64 " bytes at offset %" PRIu64
                     " are not whole 512-byte sectors within the image's %" PRIu64 " bytes",
                     bytes, off, scow_size(q->image));
}

static inline bool range_ok(const struct scow_queue *q, uint64_t off, uint64_t bytes)
{
    return range_within(off, bytes, q->image->layers[0]->virtual_bytes) &&
           !((off | bytes) & (SECTOR_BYTES - 1));
}

/* With the completion descriptor on, whoever sleeps on it may not be the one who submits: what completes at
 * once is told at once. */
ATTR_COLD static void start_now(struct scow_queue *q, struct request *r)
{
    if (r->kind > REQUEST_MAP)
        write_walk(q, r);
    else if (r->bytes)
        read_walk(q, r);
    else
        queue_complete(q, r);
    if (q->event_enabled && !list_empty(&q->ready))
        q->loop.backend->ops->wake(q->loop.backend);
}

__attribute__((always_inline)) static inline int submit_read(struct scow_queue *q, uint64_t off,
                                                             struct guest_buffer buffer, uint64_t bytes,
                                                             void *user_data, uint32_t flags)
{
    struct request *r;

    if (unlikely(flags) || unlikely(!range_ok(q, off, bytes)))
        return bad_range(q, off, bytes, flags);
    epoch_observe(&q->image->clock, &q->epoch);
    r = queue_take_request(q);
    if (unlikely(!r))
        return -EAGAIN;
    r->kind = REQUEST_READ;
    r->user_data = user_data;
    r->buffer = buffer;
    r->off = off;
    r->bytes = bytes;
    PROBE4(submit, r, REQUEST_READ, off, bytes);
    if (unlikely(q->event_enabled) || unlikely(!bytes)) {
        start_now(q, r);
    } else {
        cached_lookup_prefetch(image_top(q->image), off);
        list_push(&q->submitted, &r->node);
    }
    return 0;
}

SCOW_PUBLIC int scow_queue_read(struct scow_queue *queue, uint64_t off, void *buf, size_t bytes,
                                void *user_data, uint32_t flags)
{
    return submit_read(queue, off, (struct guest_buffer){.buf = buf}, bytes, user_data, flags);
}

SCOW_PUBLIC int scow_queue_readv(struct scow_queue *queue, uint64_t off, const struct iovec *iov,
                                 int iov_count, void *user_data, uint32_t flags)
{
    if (iov_count < 0 || iov_count > IOV_MAX)
        return error_set(-EINVAL, "request: %d iovecs are not within 0 to %d", iov_count, IOV_MAX);
    return submit_read(queue, off, (struct guest_buffer){.iov = iov, .iov_count = iov_count},
                       guest_buffer_iov_bytes(iov, iov_count), user_data, flags);
}

ATTR_COLD static int not_writable(const struct scow_queue *q)
{
    const int err = atomic_load_explicit(&q->image->write_error, memory_order_acquire);

    if (q->image->writable && err)
        return error_set(-EROFS, "the image refuses writes: its metadata could not be written before (%s)",
                         strerror(-err));
    return error_set(-EROFS, "the image is open read-only");
}

static inline bool may_write(const struct scow_queue *q)
{
    return likely(q->image->writable) &&
           likely(!atomic_load_explicit(&q->image->write_error, memory_order_relaxed));
}

static bool all_zeros(const struct guest_buffer *b, uint64_t bytes)
{
    if (!b->iov_count)
        return is_zero(b->buf, bytes);
    for (int i = 0; i < b->iov_count; i++)
        if (!is_zero(b->iov[i].iov_base, b->iov[i].iov_len))
            return false;
    return true;
}

/* As the detect_zeroes option has it. */
static enum request_kind kind_of_write(const struct scow_queue *q, const struct guest_buffer *b,
                                       uint64_t bytes, uint32_t *flags)
{
    const enum scow_detect_zeroes detect = q->image->options.detect_zeroes;

    if (likely(detect == SCOW_DETECT_ZEROES_OFF) || !bytes || !all_zeros(b, bytes))
        return REQUEST_WRITE;
    *flags &= ~SCOW_REQ_COMPRESSED;
    if (detect == SCOW_DETECT_ZEROES_UNMAP)
        *flags |= SCOW_REQ_MAY_UNMAP;
    return REQUEST_ZERO;
}

static int check_compressed(const struct scow_queue *q, uint64_t off, uint64_t bytes)
{
    const struct layer *layer = image_top(q->image);
    const uint64_t cluster_bytes = layer->format == SCOW_FORMAT_QCOW2 ? layer->header.cluster_bytes : 0;

    if (!cluster_bytes || layer->has_data_file)
        return error_set(-ENOTSUP,
                         "compressed clusters are only possible in a qcow2 image without a data file");
    if (off % cluster_bytes || (bytes % cluster_bytes && off + bytes != scow_size(q->image)))
        return error_set(-EINVAL,
                         "compressed write: %" PRIu64 " bytes at offset %" PRIu64
                         " are not whole clusters of %" PRIu64 " bytes",
                         bytes, off, cluster_bytes);
    return 0;
}

static int submit_write_side(struct scow_queue *q, enum request_kind kind, uint64_t off,
                             struct guest_buffer buffer, uint64_t bytes, void *user_data, uint32_t flags)
{
    struct request *r;

    if (unlikely(!range_ok(q, off, bytes)))
        return bad_range(q, off, bytes, 0);
    if (unlikely(!may_write(q)) && kind != REQUEST_FLUSH)
        return not_writable(q);
    if (unlikely(flags & SCOW_REQ_COMPRESSED) && check_compressed(q, off, bytes) < 0)
        return check_compressed(q, off, bytes);
    epoch_observe(&q->image->clock, &q->epoch);
    r = queue_take_request(q);
    if (unlikely(!r))
        return -EAGAIN;
    r->kind = kind == REQUEST_WRITE ? kind_of_write(q, &buffer, bytes, &flags) : kind;
    if (q->image->options.flags & SCOW_OPEN_WRITETHROUGH && kind != REQUEST_FLUSH)
        flags |= SCOW_REQ_FUA;
    request_reset_write(r, flags);
    r->user_data = user_data;
    r->buffer = buffer;
    r->off = off;
    r->bytes = bytes;
    PROBE4(submit, r, r->kind, off, bytes);
    if (unlikely(q->event_enabled)) {
        start_now(q, r);
    } else {
        if (bytes)
            cached_lookup_prefetch(image_top(q->image), off);
        list_push(&q->submitted_writes, &r->node);
    }
    return 0;
}

#define WRITE_FLAGS (SCOW_REQ_FUA | SCOW_REQ_OUTLIVES)

static int check_flags(uint32_t flags, uint32_t known)
{
    return flags & ~known ? error_set(-EINVAL, "request: unknown flags 0x%" PRIx32, flags & ~known) : 0;
}

SCOW_PUBLIC int scow_queue_write(struct scow_queue *queue, uint64_t off, const void *buf, size_t bytes,
                                 void *user_data, uint32_t flags)
{
    const struct guest_buffer buffer = {.buf = (void *)(uintptr_t)buf}; /* only read from */

    if (unlikely(check_flags(flags, WRITE_FLAGS | SCOW_REQ_COMPRESSED) < 0))
        return -EINVAL;
    return submit_write_side(queue, REQUEST_WRITE, off, buffer, bytes, user_data, flags);
}

SCOW_PUBLIC int scow_queue_writev(struct scow_queue *queue, uint64_t off, const struct iovec *iov,
                                  int iov_count, void *user_data, uint32_t flags)
{
    if (check_flags(flags, WRITE_FLAGS | SCOW_REQ_COMPRESSED) < 0)
        return -EINVAL;
    if (iov_count < 0 || iov_count > IOV_MAX)
        return error_set(-EINVAL, "request: %d iovecs are not within 0 to %d", iov_count, IOV_MAX);
    return submit_write_side(queue, REQUEST_WRITE, off,
                             (struct guest_buffer){.iov = iov, .iov_count = iov_count},
                             guest_buffer_iov_bytes(iov, iov_count), user_data, flags);
}

SCOW_PUBLIC int scow_queue_discard(struct scow_queue *queue, uint64_t off, uint64_t bytes, void *user_data,
                                   uint32_t flags)
{
    if (check_flags(flags, WRITE_FLAGS) < 0)
        return -EINVAL;
    return submit_write_side(queue, REQUEST_DISCARD, off, (struct guest_buffer){0}, bytes, user_data, flags);
}

SCOW_PUBLIC int scow_queue_write_zeroes(struct scow_queue *queue, uint64_t off, uint64_t bytes,
                                        void *user_data, uint32_t flags)
{
    if (check_flags(flags, WRITE_FLAGS | SCOW_REQ_MAY_UNMAP) < 0)
        return -EINVAL;
    return submit_write_side(queue, REQUEST_ZERO, off, (struct guest_buffer){0}, bytes, user_data, flags);
}

SCOW_PUBLIC int scow_queue_flush(struct scow_queue *queue, void *user_data, uint32_t flags)
{
    if (check_flags(flags, 0) < 0)
        return -EINVAL;
    return submit_write_side(queue, REQUEST_FLUSH, 0, (struct guest_buffer){0}, 0, user_data, 0);
}

/* ---- completions ---- */

/* The request's text goes with the completion until the next poll; the request gets another. */
ATTR_COLD static const char *lend_error(struct scow_queue *q, struct request *r)
{
    const char *text = r->error;

    if (!text[0])
        return strerror(-r->result);
    invariant(q->spare_count > 0);
    q->lent_texts[q->lent_count++] = r->error;
    r->error = q->spare_texts[--q->spare_count];
    return text;
}

static void take_errors_back(struct scow_queue *q)
{
    while (unlikely(q->lent_count)) {
        char *text = q->lent_texts[--q->lent_count];

        text[0] = '\0';
        q->spare_texts[q->spare_count++] = text;
    }
}

static int take_ready(struct scow_queue *q, struct scow_completion *completions, int max)
{
    struct list_node *node;
    int n = 0;

    while (n < max && (node = list_pop(&q->ready))) {
        struct request *r = container_of(node, struct request, node);

        completions[n] = (struct scow_completion){.user_data = r->user_data, .ret = r->result};
        if (unlikely(r->result < 0))
            completions[n].error = lend_error(q, r);
        queue_release(q, r);
        n++;
    }
    return n;
}

/* Watched descriptors that became readable. */
ATTR_COLD static int take_fired(struct scow_queue *q, struct scow_completion *completions, int max)
{
    struct list_node *node;
    int n = 0;

    while (n < max && (node = list_pop(&q->loop.backend->fired))) {
        struct watch *w = container_of(node, struct watch, node);

        w->fired = false;
        if (w->ended)
            continue;
        completions[n++] = (struct scow_completion){
            .user_data = w->user_data, .ret = w->result, .error = w->result ? strerror(-w->result) : NULL};
    }
    return n;
}

static int take_all(struct scow_queue *q, struct scow_completion *completions, int max)
{
    int n = take_ready(q, completions, max);

    if (unlikely(!list_empty(&q->loop.backend->fired)))
        n += take_fired(q, completions + n, max - n);
    return n;
}

static bool may_wait(const struct scow_queue *q)
{
    return q->in_flight || q->watching;
}

/* Nanoseconds that are left of a timeout; 0 when it is over. deadline_ns 0: none. */
static int64_t time_left(struct scow_queue *q, uint64_t deadline_ns)
{
    uint64_t now;

    if (!deadline_ns)
        return WAIT_FOREVER;
    now = env_now_ns(q->image->env);
    return now < deadline_ns ? (int64_t)(deadline_ns - now) : 0;
}

SCOW_PUBLIC int scow_queue_poll(struct scow_queue *q, struct scow_completion *completions, int min, int max,
                                int64_t timeout_ns)
{
    uint64_t deadline_ns = 0;
    int n, ret;

    if (min < 0 || max < 0 || min > max)
        return error_set(-EINVAL, "poll: min %d and max %d make no sense", min, max);
    epoch_observe(&q->image->clock, &q->epoch);
    take_errors_back(q);
    if (min > 0 && timeout_ns > 0)
        deadline_ns = env_now_ns(q->image->env) + (uint64_t)timeout_ns;

    n = take_all(q, completions, max);
    ret = queue_turn(q, n < min && may_wait(q) && timeout_ns ? time_left(q, deadline_ns) : 0);
    n += take_all(q, completions + n, max - n);
    while (ret == 0 && n < min && may_wait(q)) {
        const int64_t left = timeout_ns ? time_left(q, deadline_ns) : 0;

        if (left == 0)
            break;
        ret = queue_turn(q, left);
        n += take_all(q, completions + n, max - n);
    }
    epoch_offline(&q->epoch);
    if (unlikely(q->event_enabled))
        queue_arm_event(q);
    return ret < 0 && n == 0 ? ret : n;
}

SCOW_PUBLIC uint32_t scow_queue_in_flight(const struct scow_queue *queue)
{
    return queue->in_flight;
}

SCOW_PUBLIC int scow_queue_completion_fd(const struct scow_queue *queue)
{
    return queue->loop.backend->ops->event_fd(queue->loop.backend);
}

SCOW_PUBLIC int scow_queue_enable_completion_fd(struct scow_queue *q, int enable)
{
    const int ret = q->loop.backend->ops->event_enable(q->loop.backend, enable);

    if (ret < 0)
        return ret;
    q->event_enabled = enable;
    if (enable)
        queue_arm_event(q);
    return 0;
}

/* ---- watched descriptors ---- */

#define WATCHES_MAX 1024u

static struct watch *find_watch(struct scow_queue *q, int fd)
{
    for (uint32_t i = 0; i < q->watch_count; i++)
        if (!q->watches[i]->ended && q->watches[i]->fd == fd)
            return q->watches[i];
    return NULL;
}

/* One that the backend has no use for any more, or a new one. */
static struct watch *free_watch(struct scow_queue *q)
{
    struct watch **all, *w;

    for (uint32_t i = 0; i < q->watch_count; i++)
        if (q->watches[i]->ended && !q->watches[i]->armed && !q->watches[i]->fired)
            return q->watches[i];
    all = realloc(q->watches, (q->watch_count + 1) * sizeof(struct watch *));
    if (!all)
        return NULL;
    q->watches = all;
    w = calloc(1, sizeof *w);
    if (w)
        q->watches[q->watch_count++] = w;
    return w;
}

SCOW_PUBLIC int scow_queue_watch(struct scow_queue *q, int fd, void *user_data)
{
    struct backend *const b = q->loop.backend;
    struct watch *w;
    int r;

    if (!b->ops->watch)
        return error_set(-ENOTSUP, "the %s backend watches no descriptors", b->ops->name);
    if (q->watching == WATCHES_MAX)
        return error_set(-EMFILE, "the queue watches %u descriptors already", WATCHES_MAX);
    if (find_watch(q, fd))
        return error_set(-EEXIST, "the queue watches descriptor %d already", fd);
    w = free_watch(q);
    if (!w)
        return error_set(-ENOMEM, "out of memory");
    *w = (struct watch){.fd = fd, .user_data = user_data};
    r = b->ops->watch(b, w);
    if (r < 0)
        w->ended = true;
    else
        q->watching++;
    return r;
}

SCOW_PUBLIC int scow_queue_unwatch(struct scow_queue *q, int fd)
{
    struct watch *w = find_watch(q, fd);

    if (!w)
        return error_set(-ENOENT, "the queue does not watch descriptor %d", fd);
    q->loop.backend->ops->unwatch(q->loop.backend, w);
    q->watching--;
    return 0;
}

/* ---- registered memory ---- */

SCOW_PUBLIC int scow_queue_add_memory(struct scow_queue *q, void *base, size_t bytes)
{
    struct backend *const b = q->loop.backend;

    if (!b->ops->add_memory)
        return error_set(-ENOTSUP, "the %s backend has no use for registered memory", b->ops->name);
    return b->ops->add_memory(b, base, bytes);
}

SCOW_PUBLIC int scow_queue_remove_memory(struct scow_queue *q, void *base, size_t bytes)
{
    struct backend *const b = q->loop.backend;

    if (!b->ops->remove_memory)
        return error_set(-ENOENT, "memory that is not registered");
    return b->ops->remove_memory(b, base, bytes);
}

SCOW_PUBLIC int scow_queue_counters(const struct scow_queue *queue, struct scow_counters *ret)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;

    queue_add_counters(queue, &c);
    result_give(ret, &c, sizeof c);
    return 0;
}
