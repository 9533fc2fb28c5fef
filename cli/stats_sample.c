/* SPDX-License-Identifier: MIT */
#include "cli/stats_sample.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/command.h"
#include "cli/control_stats.h"

static uint64_t count_at(const json_t *o, const char *key)
{
    const json_int_t n = json_integer_value(json_object_get(o, key));

    return n > 0 ? (uint64_t)n : 0;
}

/* ---- queues ---- */

static void take_kind(struct stats_kind *k, const json_t *o)
{
    const json_t *const steps = json_object_get(json_object_get(o, "latency-ns"), "histogram");

    k->requests = count_at(o, "requests");
    k->bytes = count_at(o, "bytes");
    k->errors = count_at(o, "errors");
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t *const pair = json_array_get(steps, i);
        const json_int_t end = json_integer_value(json_array_get(pair, 0));
        const json_int_t count = json_integer_value(json_array_get(pair, 1));

        if (end > 0 && count > 0) /* a step's end is the next one's first */
            k->latency.counts[blk_latency_step((uint64_t)end - 1)] += (uint64_t)count;
    }
}

static void take_queue(struct stats_queue *q, const json_t *o)
{
    const char *const state = json_string_value(json_object_get(o, "state"));
    char quoted[sizeof q->state];

    snprintf(q->state, sizeof q->state, "%s", command_quote(quoted, sizeof quoted, state ? state : "?"));
    q->kicks = count_at(o, "kicks");
    q->interrupts = count_at(o, "interrupts");
    for (uint32_t k = 0; k < BLK_KINDS; k++)
        take_kind(&q->kinds[k], json_object_get(o, control_kind_names[k]));
}

/* ---- the image ---- */

/* A field of struct stats_image and its key; state: not counted, but how it is. */
static const struct {
    const char *key;
    size_t off;
    bool state;
} image_fields[] = {
    {"hits", offsetof(struct stats_image, hits), false},
    {"misses", offsetof(struct stats_image, misses), false},
    {"slice-loads", offsetof(struct stats_image, loads), false},
    {"slice-evictions", offsetof(struct stats_image, evictions), false},
    {"writes-in-place", offsetof(struct stats_image, in_place), false},
    {"writes-at-shard", offsetof(struct stats_image, at_shard), false},
    {"clusters-allocated", offsetof(struct stats_image, allocated), false},
    {"cow-bytes", offsetof(struct stats_image, cow_bytes), false},
    {"inflates", offsetof(struct stats_image, inflates), false},
    {"flushes-alone", offsetof(struct stats_image, flushes_alone), false},
    {"flushes-joined", offsetof(struct stats_image, flushes_joined), false},
    {"commits", offsetof(struct stats_image, commits), false},
    {"slice-writes", offsetof(struct stats_image, slice_writes), false},
    {"syncs", offsetof(struct stats_image, syncs), false},
    {"leases", offsetof(struct stats_image, leases), false},
    {"freed-punched", offsetof(struct stats_image, punched), false},
    {"leased", offsetof(struct stats_image, leased), true},
    {"freed-pending", offsetof(struct stats_image, pending), true},
    {"epoch-lag", offsetof(struct stats_image, epoch_lag), true},
};

#define IMAGE_FIELDS (sizeof image_fields / sizeof image_fields[0])

static uint64_t *image_field(struct stats_image *i, size_t off)
{
    return (uint64_t *)(void *)((char *)i + off);
}

static void take_image(struct stats_image *image, const json_t *answer)
{
    const json_t *const counters = json_object_get(answer, "counters");
    const json_t *const shards = json_object_get(answer, "shards");

    for (size_t i = 0; i < IMAGE_FIELDS; i++)
        *image_field(image, image_fields[i].off) = count_at(counters, image_fields[i].key);
    for (size_t i = 0; i < json_array_size(shards); i++) {
        const json_t *const shard = json_array_get(shards, i);

        image->slots += count_at(shard, "slots");
        image->resident += count_at(shard, "slots-resident");
        image->dirty += count_at(shard, "slots-dirty");
    }
}

/* ---- the whole ---- */

bool stats_sample_take(struct stats_sample *s, json_t *answer, const char *path)
{
    const json_t *const queues = json_object_get(answer, "queues");

    *s = (struct stats_sample){.answer = answer,
                               .uptime_ns = count_at(answer, "uptime-ns"),
                               .queue_count = (uint32_t)json_array_size(queues)};
    if (s->queue_count)
        s->queues = calloc(s->queue_count, sizeof *s->queues);
    if (!s->queues) {
        command_error(path, s->queue_count ? "out of memory" : "the answer is not a server's");
        stats_sample_drop(s);
        return false;
    }
    for (uint32_t i = 0; i < s->queue_count; i++)
        take_queue(&s->queues[i], json_array_get(queues, i));
    take_image(&s->image, answer);
    return true;
}

void stats_sample_drop(struct stats_sample *s)
{
    json_decref(s->answer);
    free(s->queues);
    *s = (struct stats_sample){0};
}

static void subtract_kind(struct stats_kind *k, const struct stats_kind *before)
{
    k->requests -= before->requests;
    k->bytes -= before->bytes;
    k->errors -= before->errors;
    for (uint32_t i = 0; i < BLK_LATENCY_STEPS; i++)
        k->latency.counts[i] -= before->latency.counts[i];
}

void stats_sample_subtract(struct stats_sample *s, const struct stats_sample *before)
{
    struct stats_image old = before->image;

    s->uptime_ns -= before->uptime_ns;
    for (uint32_t i = 0; i < s->queue_count && i < before->queue_count; i++) {
        s->queues[i].kicks -= before->queues[i].kicks;
        s->queues[i].interrupts -= before->queues[i].interrupts;
        for (uint32_t k = 0; k < BLK_KINDS; k++)
            subtract_kind(&s->queues[i].kinds[k], &before->queues[i].kinds[k]);
    }
    for (size_t i = 0; i < IMAGE_FIELDS; i++)
        if (!image_fields[i].state)
            *image_field(&s->image, image_fields[i].off) -= *image_field(&old, image_fields[i].off);
}
