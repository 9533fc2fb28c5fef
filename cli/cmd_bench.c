/* SPDX-License-Identifier: MIT */
/* shardcow bench: how fast an image is read and written, next to the same loop on a raw file. */
#include "cli/bench_files.h"
#include "cli/bench_options.h"
#include "cli/bench_report.h"
#include "cli/command.h"

#include <errno.h>
#include <stdlib.h>

/* Refills the pipe after the other side's round; caches are warm by then. */
#define ROUND_WARMUP_NS 50000000u

/* One run on one side. Its figures are added to sum, or are its first. */
static int run_side(struct bench_files *files, const struct bench_plan *plan, enum bench_side side,
                    uint32_t queue_count, bool first, struct bench_result *sum, double *ret_iops)
{
    struct bench_target target;
    struct bench_result r;
    int err = bench_files_target(files, side, plan, &target);
    if (err == 0)
        err = bench_run(plan, &target, queue_count, &r);
    if (err < 0)
        return err;
    *ret_iops = r.iops;
    if (first) {
        *sum = r;
    } else {
        bench_result_add(sum, &r);
        bench_result_destroy(&r);
    }
    return 0;
}

/* Both sides, so that their caches are warm. */
static int warm_up(struct bench_files *files, uint32_t queue_count)
{
    struct bench_plan plan = files->options->plan;
    struct bench_result ignored;
    double iops;
    int err = 0;
    plan.measure_ns = plan.warmup_ns;
    plan.warmup_ns = 0;
    for (int side = 0; side < BENCH_SIDE_COUNT && err == 0; side++) {
        err = run_side(files, &plan, (enum bench_side)side, queue_count, true, &ignored, &iops);
        if (err == 0)
            bench_result_destroy(&ignored);
    }
    return err;
}

/* Alternates the two sides; the order changes every round, so that neither always follows the other. */
static int run_compared(struct bench_files *files, uint32_t queue_count, struct bench_row *row)
{
    const struct bench_options *const o = files->options;
    struct bench_plan plan = o->plan;
    struct bench_result *const sums[BENCH_SIDE_COUNT] = {&row->result, &row->raw};
    row->compared = true;
    row->iops = calloc(o->round_count, sizeof(*row->iops));
    row->raw_iops = calloc(o->round_count, sizeof(*row->raw_iops));
    if (!row->iops || !row->raw_iops) {
        command_error(o->path, "out of memory");
        return -ENOMEM;
    }
    int err = plan.warmup_ns ? warm_up(files, queue_count) : 0;
    plan.warmup_ns = plan.once ? 0 : ROUND_WARMUP_NS;
    for (uint32_t round = 0; round < o->round_count && err == 0; round++) {
        plan.seed++; /* a new round uses other places */
        for (uint32_t turn = 0; turn < BENCH_SIDE_COUNT && err == 0; turn++) {
            const enum bench_side side = (turn + round) % BENCH_SIDE_COUNT;
            err = run_side(files, &plan, side, queue_count, round == 0, sums[side],
                           side == BENCH_SIDE_IMAGE ? &row->iops[round] : &row->raw_iops[round]);
        }
    }
    row->round_count = err ? 0 : o->round_count;
    return err;
}

static int run_row(struct bench_files *files, uint32_t queue_count, struct bench_row *row)
{
    const struct bench_options *const o = files->options;
    double iops;
    if (o->raw_path)
        return run_compared(files, queue_count, row);
    return run_side(files, &o->plan, o->raw ? BENCH_SIDE_RAW : BENCH_SIDE_IMAGE, queue_count, true,
                    &row->result, &iops);
}

static int run_rows(struct bench_files *files, struct bench_report *report)
{
    const struct bench_options *const o = files->options;
    int err = 0;
    report->rows = calloc(o->count_count, sizeof(*report->rows));
    if (!report->rows) {
        command_error(o->path, "out of memory");
        return -ENOMEM;
    }
    bench_report_begin(report);
    for (uint32_t i = 0; i < o->count_count && err == 0; i++) {
        struct bench_row *const row = &report->rows[i];
        err = run_row(files, o->counts[i], row);
        report->row_count++;
        if (err == 0)
            bench_report_row(report, row);
    }
    if (err == 0)
        bench_report_end(report);
    for (uint32_t i = 0; i < report->row_count; i++)
        bench_row_destroy(&report->rows[i]);
    free(report->rows);
    return err;
}

/* Settles the range: what was asked for, within each of the files. */
static int settle_range(struct bench_options *o, uint64_t limit)
{
    struct bench_plan *const plan = &o->plan;
    const uint32_t queues = bench_options_queues_max(o);
    if (plan->range_bytes > limit) {
        command_error(o->path, "--range %llu is more than the %llu bytes there are",
                      (unsigned long long)plan->range_bytes, (unsigned long long)limit);
        return -EINVAL;
    }
    const uint64_t range = plan->range_bytes ? plan->range_bytes : limit;
    plan->range_bytes = range - range % plan->block_bytes;
    if (bench_step_count(plan) < (bench_is_random(plan->pattern) && !plan->once ? 1 : queues)) {
        command_error(o->path, "%llu bytes are too few for %u queue%s of requests of %u bytes",
                      (unsigned long long)range, queues, queues == 1 ? "" : "s", plan->block_bytes);
        if (range >= 512)
            command_hint("a smaller --bs or --step, or fewer queues fit");
        return -EINVAL;
    }
    return 0;
}

int command_bench(int argc, char **argv)
{
    struct bench_options options;
    struct bench_files files;
    int code;
    if (!bench_options_parse(&options, argc, argv, &code))
        return code;
    int err = bench_files_open(&files, &options);
    if (err == 0)
        err = settle_range(&options, bench_files_bytes(&files));
    if (err == 0 && options.raw && files.raw.threads)
        options.plan.depth = 1; /* what bench_run() makes of it; shown as it is */
    if (err == 0) {
        struct bench_report report = {.output = (enum bench_output)options.output,
                                      .path = options.path,
                                      .raw_path = options.raw_path,
                                      .plan = &options.plan,
                                      .fresh_bytes = options.fresh_bytes,
                                      .info = options.raw ? NULL : &files.info,
                                      .raw = files.raw.fd >= 0 ? &files.raw : NULL,
                                      .scale = options.scale};
        err = run_rows(&files, &report);
    }
    const int close_err = bench_files_close(&files);
    if (err < 0 || close_err < 0 || command_finish_output() != 0)
        return EXIT_FAILED;
    return EXIT_OK;
}
