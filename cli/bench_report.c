/* SPDX-License-Identifier: MIT */
#include "cli/bench_report.h"
#include "cli/command.h"
#include "cli/json.h"
#include "cli/json_counters.h"
#include "cli/units.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- figures ---- */

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile_of_sorted(const double *values, uint32_t count, double q)
{
    const double place = q * (count - 1);
    const uint32_t below = (uint32_t)place;
    if (below + 1 >= count)
        return values[count - 1];
    return values[below] + (values[below + 1] - values[below]) * (place - below);
}

struct bench_spread bench_spread_of(double *values, uint32_t count)
{
    qsort(values, count, sizeof(*values), compare_doubles);
    return (struct bench_spread){
        .min = values[0],
        .q1 = quantile_of_sorted(values, count, 0.25),
        .median = quantile_of_sorted(values, count, 0.5),
        .q3 = quantile_of_sorted(values, count, 0.75),
        .max = values[count - 1],
    };
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

struct bench_spread bench_row_ratio(const struct bench_row *row)
{
    struct bench_spread spread = {0};
    double *const ratios = calloc(row->round_count, sizeof(*ratios));
    if (ratios && row->round_count > 0) {
        for (uint32_t i = 0; i < row->round_count; i++)
            ratios[i] = ratio(row->iops[i], row->raw_iops[i]);
        spread = bench_spread_of(ratios, row->round_count);
    }
    free(ratios);
    return spread;
}

double bench_row_speedup(const struct bench_report *report, const struct bench_row *row)
{
    const struct bench_result *const first = &report->rows[0].result;
    return ratio(row->result.iops * first->queue_count, first->iops);
}

void bench_row_destroy(struct bench_row *row)
{
    bench_result_destroy(&row->result);
    bench_result_destroy(&row->raw);
    free(row->iops);
    free(row->raw_iops);
}

/* ---- for people ---- */

static const char *pattern_name(enum bench_pattern pattern)
{
    static const char *const names[] = {
        [BENCH_RANDREAD] = "randread", [BENCH_READ] = "read",     [BENCH_RANDWRITE] = "randwrite",
        [BENCH_WRITE] = "write",       [BENCH_RANDRW] = "randrw", [BENCH_RW] = "rw",
    };
    return names[pattern];
}

/* Of reads and writes together. */
static void request_latency(const struct bench_result *r, struct histogram *ret)
{
    *ret = r->latency[BENCH_KIND_READ];
    histogram_merge(ret, &r->latency[BENCH_KIND_WRITE]);
}

static void print_latency(const char *title, const struct histogram *h)
{
    static const struct {
        const char *name;
        double q;
    } points[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}};
    char text[UNITS_TEXT_BYTES];
    printf("  %-12smean %s", title, units_latency(text, histogram_mean(h)));
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
        printf(", %s %s", points[i].name, units_latency(text, (double)histogram_quantile(h, points[i].q)));
    printf(", max %s\n", units_latency(text, (double)h->max));
}

static void print_counters(const struct scow_counters *c)
{
    const struct {
        const char *name;
        uint64_t count;
    } paths[] = {
        {"zeros", c->zeros},
        {"backing", c->backing},
        {"inflates", c->inflates},
        {"inflate hits", c->inflate_hits},
        {"bounces", c->bounces},
        {"starved", c->starved},
        {"slice loads", c->slice_loads},
        {"coalesced", c->slice_coalesced},
        {"evictions", c->slice_evictions},
        {"writes in place", c->writes_in_place},
        {"writes at shards", c->writes_at_shard},
        {"clusters allocated", c->clusters_allocated},
        {"bytes copied", c->cow_bytes},
        {"leases", c->leases},
        {"flushes alone", c->flushes_alone},
        {"flushes joined", c->flushes_joined},
        {"commits", c->commits},
        {"syncs", c->syncs},
        {"slice writes", c->slice_writes},
    };
    char a[UNITS_TEXT_BYTES], b[UNITS_TEXT_BYTES];
    printf("  paths       hits %s, misses %s", units_count(a, c->hits), units_count(b, c->misses));
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        if (paths[i].count > 0)
            printf(", %s %s", paths[i].name, units_count(a, paths[i].count));
    }
    printf("\n");
}

static double per_op(uint64_t ns, uint64_t ops)
{
    return ratio((double)ns, (double)ops);
}

static void print_latencies(const struct bench_result *r)
{
    const struct histogram *const h = r->latency;
    char count[UNITS_TEXT_BYTES], title[48];
    if (h[BENCH_KIND_READ].count && h[BENCH_KIND_WRITE].count) {
        print_latency("reads", &h[BENCH_KIND_READ]);
        print_latency("writes", &h[BENCH_KIND_WRITE]);
    } else {
        print_latency("latency", &h[h[BENCH_KIND_READ].count ? BENCH_KIND_READ : BENCH_KIND_WRITE]);
    }
    if (h[BENCH_KIND_FLUSH].count) {
        snprintf(title, sizeof(title), "%s flushes, ", units_count(count, h[BENCH_KIND_FLUSH].count));
        print_latency(title, &h[BENCH_KIND_FLUSH]);
    }
}

static void print_result(const char *title, const struct bench_result *r, bool counters)
{
    char iops[UNITS_TEXT_BYTES], rate[UNITS_TEXT_BYTES], ops[UNITS_TEXT_BYTES];
    printf("%s\n", title);
    printf("  IOPS        %s (%s/s): %s requests in %.2f s\n", units_count(iops, (uint64_t)(r->iops + 0.5)),
           units_size(rate, (uint64_t)ratio((double)r->bytes * r->iops, (double)r->ops)),
           units_count(ops, r->ops), r->seconds);
    printf("  CPU per op  %.0f ns in the queues' threads, %.0f ns in the whole process\n",
           per_op(r->queue_cpu_ns, r->ops), per_op(r->process_cpu_ns, r->ops));
    print_latencies(r);
    if (counters)
        print_counters(&r->counters);
}

static void print_ratio(const struct bench_row *row)
{
    const struct bench_spread s = bench_row_ratio(row);
    char image[UNITS_TEXT_BYTES], raw[UNITS_TEXT_BYTES];
    printf("\n  round   image IOPS     raw IOPS   ratio\n");
    for (uint32_t i = 0; i < row->round_count; i++)
        printf("  %5u %12s %12s   %.4f\n", i + 1, units_count(image, (uint64_t)row->iops[i]),
               units_count(raw, (uint64_t)row->raw_iops[i]), ratio(row->iops[i], row->raw_iops[i]));
    printf("\nratio to raw  median %.4f, quartiles %.4f to %.4f, range %.4f to %.4f\n", s.median, s.q1, s.q3,
           s.min, s.max);
}

static void print_table_row(const struct bench_report *report, const struct bench_row *row)
{
    const struct bench_result *const r = &row->result;
    char iops[UNITS_TEXT_BYTES], each[UNITS_TEXT_BYTES], raw[UNITS_TEXT_BYTES], p99[UNITS_TEXT_BYTES];
    struct histogram latency;
    request_latency(r, &latency);
    printf("%6u %12s %9.2f %12s %10.0f %10.0f %10s", r->queue_count,
           units_count(iops, (uint64_t)(r->iops + 0.5)), bench_row_speedup(report, row),
           units_count(each, (uint64_t)(r->iops / r->queue_count + 0.5)), per_op(r->queue_cpu_ns, r->ops),
           per_op(r->process_cpu_ns, r->ops), units_latency(p99, (double)histogram_quantile(&latency, 0.99)));
    if (row->compared) {
        const struct bench_spread s = bench_row_ratio(row);
        printf(" %12s   %.4f  %.4f-%.4f  %.4f-%.4f", units_count(raw, (uint64_t)(row->raw.iops + 0.5)),
               s.median, s.q1, s.q3, s.min, s.max);
    }
    printf("\n");
}

/* What distinguishes a run that writes. */
static void print_writing(const struct bench_report *report)
{
    const struct bench_plan *const plan = report->plan;
    char size[UNITS_TEXT_BYTES];
    if (bench_is_mixed(plan->pattern))
        printf(", %u %% reads", plan->read_percent);
    if (plan->step_bytes != plan->block_bytes)
        printf(", one every %s", units_size(size, plan->step_bytes));
    if (plan->flush_every)
        printf(", a flush every %u writes", plan->flush_every);
    if (plan->once)
        printf(", on new files of %s", units_size(size, report->fresh_bytes));
}

static void print_heading(const struct bench_report *report)
{
    const struct bench_plan *const plan = report->plan;
    char name[4096], block[UNITS_TEXT_BYTES], range[UNITS_TEXT_BYTES];
    printf("%s: %s, %s blocks over %s, depth %u", command_quote(name, sizeof(name), report->path),
           pattern_name(plan->pattern), units_size(block, plan->block_bytes),
           units_size(range, plan->range_bytes), plan->depth);
    print_writing(report);
    if (report->info)
        printf("; %s, %s, %u shard%s\n", report->info->backend, report->info->direct ? "direct" : "buffered",
               report->info->shards, report->info->shards == 1 ? "" : "s");
    else
        printf("; raw: %s\n", report->raw->description);
    if (report->raw_path)
        printf("compared with %s; raw: %s\n", command_quote(name, sizeof(name), report->raw_path),
               report->raw->description);
    if (!report->scale)
        return;
    printf("\n%6s %12s %9s %12s %10s %10s %10s", "queues", "IOPS", "speed-up", "IOPS/queue", "CPU ns/op",
           "process", "p99");
    if (report->raw_path)
        printf(" %12s   %6s  %-13s  %s", "raw IOPS", "ratio", "quartiles", "range");
    printf("\n");
}

/* ---- for programs ---- */

static json_t *json_latency(const struct histogram *h)
{
    json_t *const o = json_object();
    json_put(o, "min", json_count(h->count ? h->min : 0));
    json_put(o, "mean", json_real(histogram_mean(h)));
    json_put(o, "p50", json_count(histogram_quantile(h, 0.5)));
    json_put(o, "p90", json_count(histogram_quantile(h, 0.9)));
    json_put(o, "p99", json_count(histogram_quantile(h, 0.99)));
    json_put(o, "p99.9", json_count(histogram_quantile(h, 0.999)));
    json_put(o, "max", json_count(h->max));
    return o;
}

/* One kind of request beside the others. */
static void json_put_kind(json_t *o, const char *name, const struct histogram *h)
{
    if (!h->count)
        return;
    json_t *const kind = json_object();
    json_put(kind, "count", json_count(h->count));
    json_put(kind, "latency-ns", json_latency(h));
    json_put(o, name, kind);
}

static json_t *json_result(const struct bench_result *r)
{
    struct histogram latency;
    request_latency(r, &latency);
    json_t *const o = json_object();
    json_t *const cpu = json_object();
    json_t *const each = json_array();
    json_put(o, "queues", json_count(r->queue_count));
    json_put(o, "seconds", json_real(r->seconds));
    json_put(o, "ops", json_count(r->ops));
    json_put(o, "bytes", json_count(r->bytes));
    json_put(o, "iops", json_real(r->iops));
    json_put(o, "bytes-per-second", json_real(ratio((double)r->bytes * r->iops, (double)r->ops)));
    for (uint32_t i = 0; i < r->queue_count; i++)
        json_append(each, json_real(r->queue_iops[i]));
    json_put(o, "queue-iops", each);
    json_put(cpu, "queues", json_real(per_op(r->queue_cpu_ns, r->ops)));
    json_put(cpu, "process", json_real(per_op(r->process_cpu_ns, r->ops)));
    json_put(o, "cpu-ns-per-op", cpu);
    json_put(o, "latency-ns", json_latency(&latency));
    json_put_kind(o, "reads", &r->latency[BENCH_KIND_READ]);
    json_put_kind(o, "writes", &r->latency[BENCH_KIND_WRITE]);
    json_put_kind(o, "flushes", &r->latency[BENCH_KIND_FLUSH]);
    return o;
}

static json_t *json_row(const struct bench_report *report, const struct bench_row *row)
{
    json_t *const o = json_result(&row->result);
    if (report->info)
        json_put(o, "counters", json_work(&row->result.counters));
    if (report->scale)
        json_put(o, "speedup", json_real(bench_row_speedup(report, row)));
    if (!row->compared)
        return o;

    const struct bench_spread s = bench_row_ratio(row);
    json_t *const spread = json_object();
    json_t *const rounds = json_array();
    json_put(spread, "median", json_real(s.median));
    json_put(spread, "min", json_real(s.min));
    json_put(spread, "q1", json_real(s.q1));
    json_put(spread, "q3", json_real(s.q3));
    json_put(spread, "max", json_real(s.max));
    json_put(o, "ratio", spread);
    for (uint32_t i = 0; i < row->round_count; i++) {
        json_t *const round = json_object();
        json_put(round, "iops", json_real(row->iops[i]));
        json_put(round, "raw-iops", json_real(row->raw_iops[i]));
        json_put(round, "ratio", json_real(ratio(row->iops[i], row->raw_iops[i])));
        json_append(rounds, round);
    }
    json_put(o, "rounds", rounds);
    json_put(o, "raw", json_result(&row->raw));
    return o;
}

static void print_json(const struct bench_report *report)
{
    const struct bench_plan *const plan = report->plan;
    json_t *const o = json_object();
    json_put(o, "filename", json_text(report->path));
    json_put(o, "side", json_text(report->info ? "image" : "raw"));
    json_put(o, "rw", json_text(pattern_name(plan->pattern)));
    json_put(o, "block-size", json_count(plan->block_bytes));
    json_put(o, "depth", json_count(plan->depth));
    json_put(o, "step", json_count(plan->step_bytes));
    json_put(o, "range", json_count(plan->range_bytes));
    json_put(o, "read-percent", json_count(plan->read_percent));
    json_put(o, "flush-every", json_count(plan->flush_every));
    json_put(o, "fresh", json_boolean(plan->once));
    json_put(o, "seed", json_count(plan->seed));
    json_put(o, "pin", json_boolean(plan->pin));
    json_put(o, "warmup-seconds", json_real((double)plan->warmup_ns / 1e9));
    if (report->info) {
        json_put(o, "backend", json_text(report->info->backend));
        json_put(o, "direct", json_boolean(report->info->direct));
        json_put(o, "shards", json_count(report->info->shards));
        json_put(o, "cache-slices", json_count(report->info->cache_slices));
        json_put(o, "slice-bytes", json_count(report->info->slice_bytes));
    }
    if (report->raw_path)
        json_put(o, "raw-filename", json_text(report->raw_path));
    if (report->raw)
        json_put(o, "raw-io", json_text(report->raw->description));
    json_t *const runs = json_array();
    for (uint32_t i = 0; i < report->row_count; i++)
        json_append(runs, json_row(report, &report->rows[i]));
    json_put(o, "runs", runs);
    json_print(stdout, o);
}

/* ---- in order ---- */

void bench_report_begin(const struct bench_report *report)
{
    if (report->output == BENCH_HUMAN) {
        print_heading(report);
        fflush(stdout);
    }
}

void bench_report_row(const struct bench_report *report, const struct bench_row *row)
{
    if (report->output != BENCH_HUMAN)
        return;
    if (report->scale) {
        print_table_row(report, row);
    } else {
        char title[64];
        snprintf(title, sizeof(title), "\n%s, %u queue%s", report->info ? "image" : "raw",
                 row->result.queue_count, row->result.queue_count == 1 ? "" : "s");
        print_result(title, &row->result, report->info);
        if (row->compared) {
            print_result("\nraw", &row->raw, false);
            print_ratio(row);
        }
    }
    fflush(stdout);
}

void bench_report_end(const struct bench_report *report)
{
    if (report->output == BENCH_JSON)
        print_json(report);
    else if (report->output == BENCH_SVG)
        bench_plot(report);
}
