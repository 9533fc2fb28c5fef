/* SPDX-License-Identifier: MIT */
#include "engine/queue.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/rcu.h"
#include "engine/allocator.h"
#include "engine/read.h"
#include "engine/shard.h"
#include "engine/write.h"

/* ---- messages ---- */

static void send(struct scow_queue *q, struct request *r, uint32_t to)
{
    struct mail *mail = &q->mail[to];

    invariant(spsc_push(&mail->to_shard, r));
    mail->notify_shard = true;
    q->mail_pending = true;
    q->at_shards++;
}

void queue_ask_shard(struct scow_queue *q, struct request *r)
{
    const uint64_t slice = map_slice_index(r->lookup.layer, r->lookup.guest_off);

    r->generation = q->generation;
    send(q, r, (uint32_t)(slice % q->image->shard_count));
}

void queue_ask_allocator(struct scow_queue *q, struct request *r)
{
    send(q, r, q->image->shard_count);
}

/* One fence and one look at the sleep flag for each shard that was sent to, once per turn. */
static void notify_shards(struct scow_queue *q)
{
    if (likely(!q->mail_pending))
        return;
    q->mail_pending = false;
    for (uint32_t i = 0; i < q->mail_count; i++) {
        if (!q->mail[i].notify_shard)
            continue;
        q->mail[i].notify_shard = false;
        if (i < q->image->shard_count)
            loop_notify(&q->image->shards[i].loop);
        else
            allocator_notify(q->image->allocator);
    }
}

static void take_mail(struct scow_queue *q)
{
    if (likely(!q->at_shards))
        return;
    for (uint32_t i = 0; i < q->mail_count; i++) {
        struct request *r;

        while ((r = spsc_pop(&q->mail[i].to_queue))) {
            q->at_shards--;
            if (likely(r->kind <= REQUEST_MAP))
                read_answered(q, r);
            else
                write_answered(q, r);
        }
    }
}

bool queue_has_mail(struct scow_queue *q)
{
    for (uint32_t i = 0; q->at_shards && i < q->mail_count; i++)
        if (!spsc_empty(&q->mail[i].to_queue))
            return true;
    return false;
}

/* ---- the turn ---- */

static int backend_turn_or_wait(struct scow_queue *q, struct list *done, int64_t wait_ns)
{
    struct backend *b = q->loop.backend;
    int ret;

    if (wait_ns == 0 || !list_empty(&q->ready))
        return b->ops->turn(b, done);
    /* Asleep it holds nobody up: what is in flight stays counted. */
    epoch_offline(&q->epoch);
    atomic_store_explicit(&q->loop.sleeping, true, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with loop_notify() */
    ret = queue_has_mail(q) ? b->ops->turn(b, done) : b->ops->wait(b, done, wait_ns);
    atomic_store_explicit(&q->loop.sleeping, false, memory_order_relaxed);
    epoch_observe(&q->image->clock, &q->epoch);
    return ret;
}

void queue_arm_event(struct scow_queue *q)
{
    atomic_store_explicit(&q->loop.sleeping, true, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with loop_notify() */
    if (!list_empty(&q->ready) || queue_has_mail(q))
        q->loop.backend->ops->wake(q->loop.backend);
}

static void finish_ios(struct scow_queue *q, struct list *done)
{
    struct list_node *n;

    while ((n = list_pop(done)))
        read_io_done(q, container_of(n, struct io, node));
}

/* Walk those submitted since the last turn. */
static void walk_submitted(struct scow_queue *q)
{
    struct list reads = list_take(&q->submitted), writes = list_take(&q->submitted_writes);
    struct list_node *n;

    q->generation = atomic_load_explicit(&q->image->inflate_generation, memory_order_acquire);
    while ((n = list_pop(&reads)))
        read_walk(q, container_of(n, struct request, node));
    while (unlikely(n = list_pop(&writes)))
        write_walk(q, container_of(n, struct request, node));
}

/* Walk those starved of something that may be there now. Who has to wait on goes back to the list, in order.
 */
static void walk_starved(struct scow_queue *q)
{
    struct list all = list_take(&q->starved);
    struct list_node *n;

    while ((n = list_pop(&all))) {
        struct request *r = container_of(n, struct request, node);

        if (r->kind <= REQUEST_MAP)
            read_walk(q, r);
        else
            write_walk(q, r);
    }
}

void queue_step(struct scow_queue *q)
{
    walk_submitted(q);
    take_mail(q);
    if (unlikely(!list_empty(&q->starved)))
        walk_starved(q);
    notify_shards(q);
}

int queue_turn(struct scow_queue *q, int64_t wait_ns)
{
    struct list done = {0};
    int ret;

    walk_submitted(q);
    take_mail(q);
    notify_shards(q);
    do {
        q->prepared = false;
        ret = backend_turn_or_wait(q, &done, wait_ns);
        finish_ios(q, &done);
        take_mail(q);
        if (unlikely(!list_empty(&q->starved)))
            walk_starved(q);
        notify_shards(q);
        wait_ns = 0;
        /* What was prepared just now must be on its way before an embedder goes to sleep. */
    } while (unlikely(q->prepared) && ret == 0);
    return ret;
}

int queue_run(struct scow_queue *q, struct request *r)
{
    int ret = 0;

    while (list_empty(&q->ready) && ret == 0)
        ret = queue_turn(q, WAIT_FOREVER);
    if (ret < 0) {
        q->broken = ret; /* the request stays out: its memory must not be reused */
        return ret;
    }
    invariant(container_of(list_pop(&q->ready), struct request, node) == r);
    ret = r->result;
    if (ret < 0)
        error_set(ret, "%s", r->error[0] ? r->error : strerror(-ret));
    r->error[0] = '\0';
    queue_release(q, r);
    return ret;
}

/* ---- creation ---- */

/* The loop of a queue has no thread: turned through scow_queue_poll(), or by the simulator. */
static bool loop_turn(struct loop *loop)
{
    struct scow_queue *q = container_of(loop, struct scow_queue, loop);
    const uint64_t before = counter_get(&q->counters.requests);

    queue_turn(q, 0);
    return counter_get(&q->counters.requests) != before;
}

static bool loop_has_mail(struct loop *loop)
{
    return queue_has_mail(container_of(loop, struct scow_queue, loop));
}

static void loop_sleep(struct loop *loop)
{
    queue_turn(container_of(loop, struct scow_queue, loop), WAIT_FOREVER);
}

static const struct loop_ops queue_loop_ops = {
    .turn = loop_turn, .has_mail = loop_has_mail, .sleep = loop_sleep};

static int create_pools(struct scow_queue *q)
{
    q->requests = line_alloc(q->depth * sizeof *q->requests);
    q->error_texts = calloc(2 * (size_t)q->depth, REQUEST_ERROR_BYTES);
    q->spare_texts = calloc(q->depth, sizeof *q->spare_texts);
    q->lent_texts = calloc(q->depth, sizeof *q->lent_texts);
    q->transfers = calloc(QUEUE_TRANSFERS, sizeof *q->transfers);
    if (!q->requests || !q->error_texts || !q->spare_texts || !q->lent_texts || !q->transfers)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < q->depth; i++) {
        q->requests[i].queue = q;
        q->requests[i].first.request = &q->requests[i];
        q->requests[i].error = q->error_texts + (size_t)i * REQUEST_ERROR_BYTES;
        q->spare_texts[q->spare_count++] = q->error_texts + (size_t)(q->depth + i) * REQUEST_ERROR_BYTES;
        list_push(&q->free_requests, &q->requests[i].node);
    }
    for (uint32_t i = 0; i < QUEUE_TRANSFERS; i++)
        list_push(&q->free_transfers, &q->transfers[i].node);
    return bounce_pool_create(&q->bounces);
}

static int create_inflate(struct scow_queue *q)
{
    uint32_t cluster_bytes = 0, io_align = 1;

    for (uint32_t i = 0; i < q->image->layer_count; i++) {
        const struct layer *layer = q->image->layers[i];

        if (layer->format != SCOW_FORMAT_QCOW2)
            continue;
        cluster_bytes = MAX(cluster_bytes, layer->header.cluster_bytes);
        io_align = MAX(io_align, layer->file->io_align);
    }
    return cluster_bytes ? inflate_pool_create(&q->inflates, cluster_bytes, io_align) : 0;
}

static int create_mail(struct scow_queue *q)
{
    q->mail_count = q->image->shard_count + 1;
    q->mail = line_alloc(q->mail_count * sizeof *q->mail);
    if (!q->mail)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < q->mail_count; i++)
        if (spsc_init(&q->mail[i].to_shard, q->depth) < 0 || spsc_init(&q->mail[i].to_queue, q->depth) < 0)
            return error_set(-ENOMEM, "out of memory");
    return 0;
}

static int create_backend(struct scow_queue *q)
{
    struct scow_image *image = q->image;
    /* A ring belongs to one thread; the internal queue does not. It reads for real whatever is being
     * benchmarked. */
    const enum backend_kind kind = q->internal ? BACKEND_POOL : image->backend;
    const struct backend_config config = {.ios_max = q->depth + QUEUE_TRANSFERS + INFLATED_MAX,
                                          .files = image->files,
                                          .file_count = image->file_count};

    return image->env->ops->backend_create(image->env, kind, &config, &q->loop.backend);
}

static void publish_at(struct scow_queue *q, uint32_t i)
{
    struct scow_image *image = q->image;

    q->index = i;
    atomic_store_explicit(&image->queues[i], q, memory_order_release);
    if (i >= atomic_load_explicit(&image->queues_end, memory_order_relaxed))
        atomic_store_explicit(&image->queues_end, i + 1, memory_order_release);
}

/* The internal queue has the first place, the embedder's the queues_max ones behind it. */
static int publish(struct scow_queue *q)
{
    struct scow_image *image = q->image;
    uint32_t i = q->internal ? QUEUE_INDEX_BLOCKING : image_reader_index(image->shard_count);

    while (i < image->queue_places && atomic_load_explicit(&image->queues[i], memory_order_relaxed))
        i++;
    if (i >= image->queue_places)
        return error_set(-EMFILE, "this image has %" PRIu32 " queues already (the queues_max option)",
                         image->options.queues_max);
    publish_at(q, i);
    return 0;
}

static void queue_free(struct scow_queue *q)
{
    if (q->waker == &q->loop)
        backend_destroy(q->loop.backend);
    for (uint32_t i = 0; i < q->watch_count; i++)
        free(q->watches[i]);
    free(q->watches);
    inflate_pool_destroy(&q->inflates);
    deflated_pool_destroy(&q->deflated);
    bounce_pool_destroy(&q->bounces);
    for (uint32_t i = 0; q->mail && i < q->mail_count; i++) {
        spsc_free(&q->mail[i].to_shard);
        spsc_free(&q->mail[i].to_queue);
    }
    free(q->mail);
    free(q->transfers);
    free(q->error_texts);
    free(q->spare_texts);
    free(q->lent_texts);
    free(q->requests);
    free(q);
}

/* Everything but a backend and a place. */
static int queue_new(struct scow_image *image, uint32_t depth, bool internal, struct scow_queue **ret)
{
    struct scow_queue *q = line_alloc(sizeof *q);
    int r;

    if (!q)
        return error_set(-ENOMEM, "out of memory");
    q->loop.ops = &queue_loop_ops;
    q->waker = &q->loop;
    q->image = image;
    q->depth = depth;
    q->internal = internal;
    r = create_pools(q);
    if (r == 0)
        r = create_inflate(q);
    if (r == 0)
        r = create_mail(q);
    if (r < 0)
        queue_free(q);
    else
        *ret = q;
    return r;
}

int queue_create_reader(struct scow_image *image, struct shard *shard, uint32_t depth,
                        struct scow_queue **ret)
{
    const int r = queue_new(image, depth, true, ret);

    if (r < 0)
        return r;
    (*ret)->waker = &shard->loop;
    (*ret)->loop.backend = shard->loop.backend;
    publish_at(*ret, image_reader_index(shard->index));
    return 0;
}

void queue_destroy_reader(struct scow_queue *q)
{
    queue_add_counters(q, &q->image->past);
    atomic_store_explicit(&q->image->queues[q->index], NULL, memory_order_release);
    queue_free(q);
}

int queue_create(struct scow_image *image, uint32_t depth, bool internal, struct scow_queue **ret)
{
    struct scow_queue *q = NULL;
    int r;

    pthread_mutex_lock(&image->lock);
    r = image_start(image);
    if (r < 0)
        goto unlock;
    r = queue_new(image, depth, internal, &q);
    if (r == 0)
        r = create_backend(q);
    if (r == 0)
        r = publish(q);
    if (r < 0 && q)
        queue_free(q);
    if (r == 0)
        *ret = q;
unlock:
    pthread_mutex_unlock(&image->lock);
    return r;
}

/* Requests that nobody will poll for are waited for all the same: the kernel writes to their buffers. Nothing
 * is dropped before the backend has said that this thread may use it. */
static int drain(struct scow_queue *q)
{
    while (q->in_flight) {
        epoch_observe(&q->image->clock, &q->epoch);
        const int ret = queue_turn(q, WAIT_FOREVER);
        struct list_node *n;

        if (ret < 0)
            return ret;
        while ((n = list_pop(&q->ready)))
            queue_release(q, container_of(n, struct request, node));
    }
    return 0;
}

int queue_destroy(struct scow_queue *q)
{
    struct scow_image *image = q->image;
    const int ret = drain(q);

    if (ret == -EBUSY)
        return ret;
    rcu_thread_ensure();
    pthread_mutex_lock(&image->lock);
    queue_add_counters(q, &image->past);
    atomic_store_explicit(&image->queues[q->index], NULL, memory_order_release);
    pthread_mutex_unlock(&image->lock);
    rcu_wait(); /* a shard may be looking at its rings, or about to wake it */
    if (ret == 0)
        queue_free(q);
    /* Else its backend has failed with I/O under way: the memory it may still write to is never given back.
     */
    return 0;
}

void queue_add_counters(const struct scow_queue *q, struct scow_counters *sum)
{
    const struct queue_counters *c = &q->counters;

    sum->requests += counter_get(&c->requests);
    sum->bytes += counter_get(&c->bytes);
    sum->hits += counter_get(&c->hits);
    sum->misses += counter_get(&c->misses);
    sum->zeros += counter_get(&c->zeros);
    sum->backing += counter_get(&c->backing);
    sum->inflates += counter_get(&c->inflates);
    sum->inflate_hits += counter_get(&c->inflate_hits);
    sum->bounces += counter_get(&c->bounces);
    sum->ios += counter_get(&c->ios);
    sum->starved += counter_get(&c->starved);
    sum->writes_in_place += counter_get(&c->writes_in_place);
    sum->writes_at_shard += counter_get(&c->writes_at_shard);
    sum->flushes_alone += counter_get(&c->flushes_alone);
    sum->flushes_joined += counter_get(&c->flushes_joined);
}
