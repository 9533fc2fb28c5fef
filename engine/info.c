/* SPDX-License-Identifier: MIT */
/* What shardcow.h tells about an image. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "engine/image.h"
#include "engine/options.h"
#include "engine/queue.h"
#include "engine/allocator.h"
#include "engine/shard.h"

SCOW_PUBLIC const char *scow_version(void)
{
    return SCOW_VERSION_STRING;
}

SCOW_PUBLIC const char *scow_error(void)
{
    return error_message();
}

SCOW_PUBLIC uint64_t scow_size(const struct scow_image *image)
{
    return image_top(image)->virtual_bytes;
}

static void fill_header(const struct layer *layer, struct scow_info *info)
{
    const struct header *h = &layer->header;

    info->version = h->version;
    info->header_bytes = h->header_bytes;
    info->cluster_bytes = h->cluster_bytes;
    info->subcluster_bytes = h->extended_l2 ? h->cluster_bytes / 32 : h->cluster_bytes;
    info->refcount_bits = 1u << h->refcount_order;
    info->crypt_method = h->crypt_method;
    info->compression = (enum scow_compression)h->compression;
    info->incompatible = h->incompatible;
    info->compatible = h->compatible;
    info->autoclear = h->autoclear;
    info->l1_off = h->l1_off;
    info->l1_count = h->l1_count;
    info->reftable_off = h->reftable_off;
    info->reftable_clusters = h->reftable_clusters;
    info->snapshots_off = h->snapshots_off;
    info->snapshot_count = h->snapshot_count;
    info->bitmap_count = h->bitmap_count;
    info->bitmap_directory_off = h->bitmap_directory_off;
    info->bitmap_directory_bytes = h->bitmap_directory_bytes;
    info->extension_count = h->extension_count;
    info->feature_name_count = h->feature_names.bytes / FEATURE_NAME_BYTES;
    info->backing_name = layer->backing_name;
    info->backing_format = layer->backing_format;
    info->data_file_name = layer->data_file_name;
}

static const char *backend_name(enum backend_kind kind)
{
    return kind == BACKEND_RING ? "io_uring" : kind == BACKEND_POOL ? "threads" : "null";
}

SCOW_PUBLIC int scow_get_info(const struct scow_image *image, struct scow_info *ret)
{
    const struct layer *layer = image_top(image);
    struct scow_info info = SCOW_INFO_INIT;

    info.format = layer->format;
    info.virtual_size = layer->virtual_bytes;
    info.file_bytes = layer->file->bytes;
    info.allocated_bytes = layer->file->allocated_bytes;
    if (layer->format == SCOW_FORMAT_QCOW2) {
        pthread_mutex_t *lock = &((struct scow_image *)image)->lock;

        pthread_mutex_lock(lock); /* the allocator changes what moves */
        fill_header(layer, &info);
        pthread_mutex_unlock(lock);
    }
    info.direct = layer->file->direct;
    info.io_align = layer->file->io_align;
    info.mem_align = layer->file->mem_align;
    info.backend = backend_name(image->backend);
    info.backend_why = image->backend_why;
    info.shards = image->shard_count;
    info.slice_bytes = layer->format == SCOW_FORMAT_QCOW2 ? layer->slice_bytes : 0;
    info.cache_slices = image->slots_per_shard * image->shard_count;
    info.chain_depth = image->layer_count - 1;
    result_give(ret, &info, sizeof info);
    return 0;
}

/* Epochs that the slowest submitter is behind: what keeps freed clusters from being reused. */
static uint64_t queue_epoch_lag(const struct scow_queue *q, uint64_t now)
{
    const uint64_t seen = atomic_load_explicit(&q->epoch.seen, memory_order_relaxed);

    if (seen != EPOCH_OFFLINE && seen < now)
        return now - seen;
    return atomic_load_explicit(&q->epoch.in_flight[(now - 1) & 1], memory_order_relaxed) ? 1 : 0;
}

/* All queues, the shards' readers too. Under lock. */
static void add_epochs(const struct scow_image *im, struct scow_counters *sum)
{
    sum->epoch = atomic_load_explicit(&im->clock.now, memory_order_relaxed);
    for (uint32_t i = 0; i < atomic_load_explicit(&im->queues_end, memory_order_relaxed); i++) {
        const struct scow_queue *q = atomic_load_explicit(&im->queues[i], memory_order_relaxed);

        if (q)
            sum->epoch_lag = MAX(sum->epoch_lag, queue_epoch_lag(q, sum->epoch));
    }
}

SCOW_PUBLIC int scow_counters(const struct scow_image *image, struct scow_counters *ret)
{
    struct scow_image *im = (struct scow_image *)image; /* for the lock only */
    struct scow_counters sum = SCOW_COUNTERS_INIT;

    pthread_mutex_lock(&im->lock);
    sum = im->past;
    sum.size = sizeof sum;
    for (uint32_t i = 0; i < atomic_load_explicit(&im->queues_end, memory_order_relaxed); i++) {
        const struct scow_queue *q = atomic_load_explicit(&im->queues[i], memory_order_relaxed);

        if (q && !(i > QUEUE_INDEX_BLOCKING &&
                   i <= im->shard_count)) /* the shards' readers copy: nobody's requests */
            queue_add_counters(q, &sum);
    }
    for (uint32_t i = 0; im->running && i < im->shard_count; i++) {
        sum.clusters_allocated += counter_get(&im->shards[i].allocated);
        sum.cow_bytes += counter_get(&im->shards[i].cow_bytes);
        sum.slice_writes += counter_get(&im->shards[i].slice_writes);
        sum.slice_loads += counter_get(&im->shards[i].loads_count);
        sum.slice_coalesced += counter_get(&im->shards[i].coalesced);
        sum.slice_evictions += counter_get(&im->shards[i].evictions);
    }
    if (im->running && im->allocator) {
        const struct allocator *a = im->allocator;

        sum.commits = counter_get(&a->commits);
        sum.syncs = counter_get(&a->syncs);
        sum.leases = counter_get(&a->leases);
        sum.leased = counter_get(&a->leased);
        sum.freed_pending = counter_get(&a->pending);
        sum.freed_punched = counter_get(&a->punched);
        sum.freed_skipped = counter_get(&a->skipped);
    }
    add_epochs(im, &sum);
    pthread_mutex_unlock(&im->lock);
    result_give(ret, &sum, sizeof sum);
    return 0;
}

SCOW_PUBLIC int scow_shard_counters(const struct scow_image *image, uint32_t shard,
                                    struct scow_shard_counters *ret)
{
    struct scow_image *im = (struct scow_image *)image; /* for the lock only */
    struct scow_shard_counters c = SCOW_SHARD_COUNTERS_INIT;

    if (shard >= image->shard_count)
        return error_set(-ERANGE, "shard %" PRIu32 ": there are %" PRIu32, shard, image->shard_count);
    pthread_mutex_lock(&im->lock);
    if (im->running) {
        const struct shard *s = &im->shards[shard];

        c.slice_loads = counter_get(&s->loads_count);
        c.slice_coalesced = counter_get(&s->coalesced);
        c.slice_evictions = counter_get(&s->evictions);
        c.writes = counter_get(&s->ops_count);
        c.clusters_allocated = counter_get(&s->allocated);
        c.cow_bytes = counter_get(&s->cow_bytes);
        c.slice_writes = counter_get(&s->slice_writes);
        c.slots = s->cache.slot_count;
        c.slots_resident = counter_get(&s->slots_resident);
        c.slots_dirty = counter_get(&s->slots_dirty);
        c.lease_clusters = counter_get(&s->lease_clusters);
    }
    pthread_mutex_unlock(&im->lock);
    result_give(ret, &c, sizeof c);
    return 0;
}
