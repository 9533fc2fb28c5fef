/* SPDX-License-Identifier: MIT */
#include "cli/stats_table.h"

#include <stdio.h>

#include "cli/command.h"
#include "cli/units.h"

static double per_second(const struct stats_sample *s, uint64_t count)
{
    return s->uptime_ns ? (double)count * 1e9 / (double)s->uptime_ns : 0;
}

/* ---- the disk ---- */

static const char *text_at(const json_t *o, const char *key)
{
    const char *const text = json_string_value(json_object_get(o, key));

    return text ? text : "?";
}

static void print_disk(const struct stats_sample *s, uint64_t uptime_ns)
{
    const json_t *const image = json_object_get(s->answer, "image");
    const json_int_t bytes = json_integer_value(json_object_get(image, "virtual-size"));
    const char *const cache = json_string_value(json_object_get(s->answer, "write-cache"));
    char name[256], format[32], quoted[32], size[UNITS_TEXT_BYTES], time[UNITS_TEXT_BYTES];

    printf("%s: %s, %s", command_quote(name, sizeof name, text_at(image, "filename")),
           command_quote(format, sizeof format, text_at(image, "format")),
           units_size(size, bytes > 0 ? (uint64_t)bytes : 0));
    if (json_is_true(json_object_get(s->answer, "read-only")))
        printf(", read-only");
    if (json_is_true(json_object_get(s->answer, "connected")))
        printf(", connected, %s", command_quote(quoted, sizeof quoted, cache ? cache : "?"));
    else
        printf(", nobody connected");
    printf(", up %s\n", units_duration(time, uptime_ns / 1000000000));
}

/* ---- queues ---- */

static void add_kind(struct stats_kind *sum, const struct stats_kind *k)
{
    sum->requests += k->requests;
    sum->bytes += k->bytes;
    sum->errors += k->errors;
    for (uint32_t i = 0; i < BLK_LATENCY_STEPS; i++)
        sum->latency.counts[i] += k->latency.counts[i];
}

static const char *quantile(char buf[UNITS_TEXT_BYTES], const struct stats_kind *k, double q)
{
    const uint64_t ns = latency_steps_quantile(&k->latency, q);

    return ns ? units_latency(buf, (double)ns) : "-";
}

static void print_kind(const struct stats_sample *s, const struct stats_kind *k)
{
    char p50[UNITS_TEXT_BYTES], p99[UNITS_TEXT_BYTES];

    printf(" %8.0f %6.1f %7s %7s ", per_second(s, k->requests), per_second(s, k->bytes) / 1e6,
           quantile(p50, k, 0.5), quantile(p99, k, 0.99));
}

static void print_row(const struct stats_sample *s, const char *name, const struct stats_queue *q)
{
    struct stats_kind rest = {0};
    char p99[UNITS_TEXT_BYTES];
    uint64_t errors = 0;

    for (uint32_t k = 0; k < BLK_KINDS; k++) {
        errors += q->kinds[k].errors;
        if (k != BLK_READ && k != BLK_WRITE)
            add_kind(&rest, &q->kinds[k]);
    }
    printf("%5s %-8s", name, q->state);
    print_kind(s, &q->kinds[BLK_READ]);
    print_kind(s, &q->kinds[BLK_WRITE]);
    printf(" %7.0f %7s  %7.0f %6llu\n", per_second(s, rest.requests), quantile(p99, &rest, 0.99),
           per_second(s, q->interrupts), (unsigned long long)errors);
}

static void print_queues(const struct stats_sample *s)
{
    struct stats_queue sum = {.state = ""};
    char name[16];

    printf("\n%5s %-8s %8s %6s %7s %7s  %8s %6s %7s %7s  %7s %7s  %7s %6s\n", "queue", "state", "reads/s",
           "MB/s", "p50", "p99", "writes/s", "MB/s", "p50", "p99", "other/s", "p99", "irqs/s", "errors");
    for (uint32_t i = 0; i < s->queue_count; i++) {
        snprintf(name, sizeof name, "%u", i);
        print_row(s, name, &s->queues[i]);
        sum.interrupts += s->queues[i].interrupts;
        for (uint32_t k = 0; k < BLK_KINDS; k++)
            add_kind(&sum.kinds[k], &s->queues[i].kinds[k]);
    }
    if (s->queue_count > 1)
        print_row(s, "all", &sum);
}

/* ---- the image ---- */

static double share(uint64_t part, uint64_t rest)
{
    return part + rest ? (double)part * 100 / (double)(part + rest) : 0;
}

typedef unsigned long long ull;

static void print_image(const struct stats_image *i)
{
    char size[UNITS_TEXT_BYTES];

    printf(
        "\ncache    %.1f %% hits, %llu misses, %llu loads, %llu evictions; %llu of %llu slices, %llu dirty\n",
        share(i->hits, i->misses), (ull)i->misses, (ull)i->loads, (ull)i->evictions, (ull)i->resident,
        (ull)i->slots, (ull)i->dirty);
    printf("writes   %llu in place, %llu at shards; %llu clusters allocated, %s copied; %llu inflated\n",
           (ull)i->in_place, (ull)i->at_shard, (ull)i->allocated, units_size(size, i->cow_bytes),
           (ull)i->inflates);
    printf("commits  %llu, %.1f slices each, %llu syncs; flushes: %llu alone, %llu in commits\n",
           (ull)i->commits, i->commits ? (double)i->slice_writes / (double)i->commits : 0, (ull)i->syncs,
           (ull)i->flushes_alone, (ull)i->flushes_joined);
    printf(
        "space    %llu leases, %llu clusters out; %llu freed are on their way, %llu punched; epoch lag %llu\n",
        (ull)i->leases, (ull)i->leased, (ull)i->pending, (ull)i->punched, (ull)i->epoch_lag);
}

void stats_table_print(const struct stats_sample *s, uint64_t uptime_ns)
{
    print_disk(s, uptime_ns);
    print_queues(s);
    print_image(&s->image);
}
