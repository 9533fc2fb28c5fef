/* SPDX-License-Identifier: MIT */
#include "cli/control_stats.h"

#include <time.h>
#include <unistd.h>

#include "cli/json.h"
#include "cli/json_counters.h"
#include "cli/latency_steps.h"

const char *const control_kind_names[BLK_KINDS] = {
    [BLK_READ] = "read",       [BLK_WRITE] = "write",         [BLK_FLUSH] = "flush",
    [BLK_DISCARD] = "discard", [BLK_ZEROES] = "write-zeroes", [BLK_OTHER] = "other",
};

static uint64_t get(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

/* ---- virtqueues ---- */

/* Steps that counted something: [the step's end in ns, how many]. */
static json_t *histogram(const struct latency_steps *l)
{
    json_t *const steps = json_array();

    for (uint32_t i = 0; i < BLK_LATENCY_STEPS; i++) {
        json_t *pair;

        if (!l->counts[i])
            continue;
        pair = json_array();
        json_append(pair, json_count(blk_latency_ns(i)));
        json_append(pair, json_count(l->counts[i]));
        json_append(steps, pair);
    }
    return steps;
}

static json_t *latency(const struct blk_counts *c, enum blk_kind kind)
{
    json_t *const o = json_object();
    struct latency_steps l;

    for (uint32_t i = 0; i < BLK_LATENCY_STEPS; i++)
        l.counts[i] = get(&c->latency[kind][i]);
    json_put(o, "p50", json_count(latency_steps_quantile(&l, 0.5)));
    json_put(o, "p99", json_count(latency_steps_quantile(&l, 0.99)));
    json_put(o, "p99.9", json_count(latency_steps_quantile(&l, 0.999)));
    json_put(o, "max", json_count(latency_steps_quantile(&l, 1)));
    json_put(o, "histogram", histogram(&l));
    return o;
}

static json_t *kind_of_requests(const struct control_disk *disk, const struct blk_counts *c,
                                enum blk_kind kind)
{
    json_t *const o = json_object();

    json_put(o, "requests", json_count(get(&c->requests[kind])));
    json_put(o, "bytes", json_count(get(&c->bytes[kind])));
    json_put(o, "errors", json_count(get(&c->errors[kind])));
    json_put(o, "latency-ns", disk->latencies ? latency(c, kind) : json_null());
    return o;
}

static const char *queue_state(const struct control_disk *disk, uint32_t queue)
{
    if (vhost_user_blk_queue_is_broken(disk->server, queue))
        return "broken";
    return vhost_user_blk_queue_runs(disk->server, queue) ? "running" : "stopped";
}

static json_t *virtqueues(const struct control_disk *disk)
{
    json_t *const queues = json_array();

    for (uint32_t i = 0; i < vhost_user_blk_queue_count(disk->server); i++) {
        const struct blk_counts *const c = vhost_user_blk_counts(disk->server, i);
        json_t *const o = json_object();

        json_put(o, "state", json_text(queue_state(disk, i)));
        json_put(o, "worker", json_count(i % vhost_user_blk_thread_count(disk->server)));
        json_put(o, "kicks", json_count(get(&c->kicks)));
        json_put(o, "interrupts", json_count(get(&c->interrupts)));
        for (uint32_t k = 0; k < BLK_KINDS; k++)
            json_put(o, control_kind_names[k], kind_of_requests(disk, c, (enum blk_kind)k));
        json_append(queues, o);
    }
    return queues;
}

/* ---- the engine ---- */

/* Each is an engine queue; worker i is the one that serves virtqueue i. */
static json_t *workers(const struct control_disk *disk)
{
    json_t *const array = json_array();

    for (uint32_t i = 0; i < vhost_user_blk_thread_count(disk->server); i++) {
        struct scow_counters c = SCOW_COUNTERS_INIT;

        (void)scow_queue_counters(vhost_user_blk_engine_queue(disk->server, i), &c);
        json_append(array, json_queue_counters(&c));
    }
    return array;
}

static json_t *shards(const struct control_disk *disk, uint32_t count)
{
    json_t *const array = json_array();

    for (uint32_t i = 0; i < count; i++) {
        struct scow_shard_counters c = SCOW_SHARD_COUNTERS_INIT;

        if (scow_shard_counters(disk->image, i, &c) == 0)
            json_append(array, json_shard_counters(&c));
    }
    return array;
}

static json_t *image_facts(const struct control_disk *disk, const struct scow_info *info)
{
    json_t *const o = json_object();

    json_put(o, "filename", json_text(disk->path));
    json_put(o, "format", json_text(info->format == SCOW_FORMAT_RAW ? "raw" : "qcow2"));
    json_put(o, "virtual-size", json_count(scow_size(disk->image)));
    json_put(o, "cluster-size", json_count(info->cluster_bytes));
    json_put(o, "slice-bytes", json_count(info->slice_bytes));
    json_put(o, "backend", json_text(info->backend));
    json_put(o, "direct", json_boolean(info->direct));
    return o;
}

/* The guest's choice. */
static json_t *write_cache(const struct control_disk *disk)
{
    if (!vhost_user_blk_connected(disk->server))
        return json_null();
    return json_text(vhost_user_blk_writethrough(disk->server) ? "writethrough" : "writeback");
}

json_t *control_stats(const struct control_disk *disk)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct scow_info info = SCOW_INFO_INIT;
    json_t *const o = json_object();
    struct timespec now;

    (void)scow_get_info(disk->image, &info);
    (void)scow_counters(disk->image, &c);
    clock_gettime(CLOCK_MONOTONIC, &now);
    json_put(o, "version", json_text(scow_version()));
    json_put(o, "pid", json_count((uint64_t)getpid()));
    json_put(o, "uptime-ns",
             json_count((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec - disk->start_ns));
    json_put(o, "image", image_facts(disk, &info));
    json_put(o, "connected", json_boolean(vhost_user_blk_connected(disk->server)));
    json_put(o, "read-only", json_boolean(disk->read_only));
    json_put(o, "write-cache", write_cache(disk));
    json_put(o, "queues", virtqueues(disk));
    json_put(o, "workers", workers(disk));
    json_put(o, "shards", shards(disk, info.shards));
    json_put(o, "counters", json_image_counters(&c));
    return o;
}
