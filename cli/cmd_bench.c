/* SPDX-License-Identifier: MIT */
/* shardcow bench: how fast an image is read, next to the same loop on a raw file. */
#include "cli/arguments.h"
#include "cli/bench_report.h"
#include "cli/command.h"
#include "cli/open_args.h"
#include "cli/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COUNTS_MAX 64
#define QUEUES_MAX 1024u
#define ROUNDS_DEFAULT 10u
/* Refills the pipe after the other side's round; caches are warm by then. */
#define ROUND_WARMUP_NS 50000000u

enum {
    ARG_RW = ARG_LONG,
    ARG_BS,
    ARG_DEPTH,
    ARG_QUEUES,
    ARG_SECONDS,
    ARG_WARMUP,
    ARG_RANGE,
    ARG_SEED,
    ARG_RAW,
    ARG_SCALE,
    ARG_COMPARE_RAW,
    ARG_ROUNDS,
    ARG_PIN,
};

static const struct argument specs[] = {
    {ARG_RW, "rw", "randread|read", "random or sequential reads; default randread"},
    {ARG_BS, "bs", "SIZE", "bytes per request, a multiple of 512; default 4k"},
    {ARG_DEPTH, "depth", "N", "requests in flight per queue, 1 to 4096; default 64"},
    {ARG_QUEUES, "queues", "N", "queues, each with a thread of its own; default 1"},
    {ARG_SECONDS, "seconds", "S", "time measured; default 5, with --compare-raw 0.5 per side and round"},
    {ARG_WARMUP, "warmup", "S", "time before that, not measured; default 0.5"},
    {ARG_RANGE, "range", "SIZE", "read the first SIZE bytes only; default: the whole disk"},
    {ARG_SEED, "seed", "N", "of the random offsets; default 1"},
    {ARG_RAW, "raw", NULL, "read FILE as it is, without the library: the machine's limit"},
    {ARG_SCALE, "scale", "N,N,...", "one run per count of queues, as a table or a plot"},
    {ARG_COMPARE_RAW, "compare-raw", "RAWFILE", "alternate with raw reads of RAWFILE; print the ratio"},
    {ARG_ROUNDS, "rounds", "N", "rounds of --compare-raw; default 10"},
    {ARG_PIN, "pin", NULL, "pin each queue's thread to a CPU"},
    {ARG_OUTPUT, "output", "human|json|svg", "form of the result; svg plots --scale"},
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_SHARE,
    OPEN_ARGUMENT_CACHE('t'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "bench",
    .synopsis = "[OPTION]... FILE",
    .text =
        "Measures how fast FILE is read: requests per second, CPU time per request, latency, and the paths\n"
        "that requests took. Each queue is a thread that keeps --depth requests in flight.\n",
    .specs = specs,
    .examples = "  shardcow bench --queues 2 --seconds 10 disk.qcow2\n"
                "  shardcow bench --raw disk.img\n"
                "  shardcow bench --compare-raw disk.img disk.qcow2\n"
                "  shardcow bench --scale 1,2,4,8 --pin --output=svg disk.qcow2 > scale.svg\n",
};

struct bench_options {
    struct open_args open;
    struct bench_plan plan; /* measure_ns and range_bytes 0: not given */
    uint32_t counts[COUNTS_MAX];
    uint32_t count_count; /* 0 without --scale */
    uint32_t queue_count;
    uint32_t round_count; /* 0 until settled: not given */
    const char *path;
    const char *raw_path;
    bool raw;
    int output;
};

/* ---- options ---- */

static int take_seconds(struct arguments *args, const char *option, double min, uint64_t *ret_ns)
{
    char *end;
    const double seconds = strtod(args->value, &end);
    if (end == args->value || *end || !(seconds >= min && seconds <= 86400)) {
        arguments_error(args, "%s takes seconds from %g to 86400, not '%s'", option, min, args->value);
        return -1;
    }
    *ret_ns = (uint64_t)(seconds * 1e9);
    return 0;
}

static int compare_counts(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int take_scale(struct arguments *args, struct bench_options *o)
{
    const char *p = args->value;
    o->count_count = 0;
    for (;;) {
        char *end;
        const unsigned long count = strtoul(p, &end, 10);
        if (end == p || *p == '-' || *p == '+' || count < 1 || count > QUEUES_MAX || (*end && *end != ',') ||
            o->count_count == COUNTS_MAX) {
            arguments_error(args,
                            "--scale takes up to %d counts of queues from 1 to %u, as in 1,2,4, not '%s'",
                            COUNTS_MAX, QUEUES_MAX, args->value);
            return -1;
        }
        o->counts[o->count_count++] = (uint32_t)count;
        if (!*end)
            break;
        p = end + 1;
    }
    qsort(o->counts, o->count_count, sizeof(o->counts[0]), compare_counts);
    return 0;
}

static int take_pattern(struct arguments *args, struct bench_options *o)
{
    int choice;
    if (strcmp(args->value, "write") == 0 || strcmp(args->value, "randwrite") == 0) {
        arguments_error(args, "--rw %s: this version only reads", args->value);
        return -1;
    }
    if (arguments_choice(args, "--rw", "randread|read", &choice) < 0)
        return -1;
    o->plan.pattern = choice == 0 ? BENCH_RANDREAD : BENCH_READ;
    return 0;
}

static int take_number(struct arguments *args, const char *option, uint32_t max, uint32_t *ret)
{
    uint64_t number;
    if (arguments_number(args, option, 1, max, &number) < 0)
        return -1;
    *ret = (uint32_t)number;
    return 0;
}

static int take_block(struct arguments *args, struct bench_options *o)
{
    uint64_t bytes;
    if (arguments_size(args, "--bs", 512, 1u << 30, &bytes) < 0)
        return -1;
    if (bytes % 512 != 0) {
        arguments_error(args, "--bs %s is not a multiple of 512", args->value);
        return -1;
    }
    o->plan.block_bytes = (uint32_t)bytes;
    return 0;
}

static int take_option(struct bench_options *o, struct arguments *args, int key)
{
    switch (key) {
    case ARG_RW:
        return take_pattern(args, o);
    case ARG_BS:
        return take_block(args, o);
    case ARG_DEPTH:
        return take_number(args, "--depth", 4096, &o->plan.depth);
    case ARG_QUEUES:
        return take_number(args, "--queues", QUEUES_MAX, &o->queue_count);
    case ARG_SECONDS:
        return take_seconds(args, "--seconds", 0.01, &o->plan.measure_ns);
    case ARG_WARMUP:
        return take_seconds(args, "--warmup", 0, &o->plan.warmup_ns);
    case ARG_RANGE:
        return arguments_size(args, "--range", 512, INT64_MAX, &o->plan.range_bytes);
    case ARG_SEED:
        return arguments_number(args, "--seed", 0, UINT64_MAX, &o->plan.seed);
    case ARG_RAW:
        o->raw = true;
        return 0;
    case ARG_SCALE:
        return take_scale(args, o);
    case ARG_COMPARE_RAW:
        o->raw_path = args->value;
        return 0;
    case ARG_ROUNDS:
        return take_number(args, "--rounds", 10000, &o->round_count);
    case ARG_PIN:
        o->plan.pin = true;
        return 0;
    case ARG_OUTPUT:
        return arguments_choice(args, "--output", "human|json|svg", &o->output);
    default:
        return open_args_take(&o->open, args, key, 't') < 0 ? -1 : 0;
    }
}

static int finish_options(struct bench_options *o, struct arguments *args)
{
    if (args->operand_count != 1)
        return arguments_error(args, "expects one file, not %d", args->operand_count);
    if (o->raw && o->raw_path)
        return arguments_error(args, "--raw and --compare-raw exclude each other");
    if (o->output == BENCH_SVG && o->count_count == 0)
        return arguments_error(args, "--output=svg plots the counts of --scale");
    if (o->round_count && !o->raw_path)
        return arguments_error(args, "--rounds counts the rounds of --compare-raw");
    o->path = args->operands[0];
    if (o->round_count == 0)
        o->round_count = ROUNDS_DEFAULT;
    if (o->plan.measure_ns == 0)
        o->plan.measure_ns = o->raw_path ? 500000000u : 5000000000u;
    return EXIT_OK;
}

/* ---- runs ---- */

/* Alternates the two sides; the order changes every round, so that neither always follows the other. */
static int run_compared(const struct bench_options *o, const struct bench_target *image,
                        const struct bench_target *raw, uint32_t queue_count, struct bench_row *row)
{
    struct bench_plan plan = o->plan;
    struct bench_result *const sums[2] = {&row->result, &row->raw};
    const struct bench_target *const targets[2] = {image, raw};
    row->compared = true;
    row->iops = calloc(o->round_count, sizeof(*row->iops));
    row->raw_iops = calloc(o->round_count, sizeof(*row->raw_iops));
    if (!row->iops || !row->raw_iops) {
        command_error(o->path, "out of memory");
        return -ENOMEM;
    }
    for (int64_t round = o->plan.warmup_ns ? -1 : 0; round < o->round_count; round++) {
        const bool warming = round < 0;
        plan.warmup_ns = warming ? 0 : ROUND_WARMUP_NS;
        plan.measure_ns = warming ? o->plan.warmup_ns : o->plan.measure_ns;
        for (int turn = 0; turn < 2; turn++) {
            const int side = (turn + (int)(round & 1)) % 2;
            struct bench_result r;
            const int err = bench_run(&plan, targets[side], queue_count, &r);
            if (err < 0)
                return err;
            if (!warming)
                (side == 0 ? row->iops : row->raw_iops)[round] = r.iops;
            if (warming) {
                bench_result_destroy(&r);
            } else if (round == 0) {
                *sums[side] = r;
            } else {
                bench_result_add(sums[side], &r);
                bench_result_destroy(&r);
            }
        }
        plan.seed++; /* a new round reads other places */
    }
    row->round_count = o->round_count;
    return 0;
}

static int run_rows(const struct bench_options *o, const struct bench_target *main_target,
                    const struct bench_target *raw_target, struct bench_report *report)
{
    const uint32_t *const counts = o->count_count ? o->counts : &o->queue_count;
    const uint32_t count_count = o->count_count ? o->count_count : 1;
    int err = 0;
    report->rows = calloc(count_count, sizeof(*report->rows));
    if (!report->rows) {
        command_error(o->path, "out of memory");
        return -ENOMEM;
    }
    bench_report_begin(report);
    for (uint32_t i = 0; i < count_count && err == 0; i++) {
        struct bench_row *const row = &report->rows[i];
        if (raw_target)
            err = run_compared(o, main_target, raw_target, counts[i], row);
        else
            err = bench_run(&o->plan, main_target, counts[i], &row->result);
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

/* Settles the range: what was asked for, within each of the files read. */
static int settle_range(struct bench_options *o, uint64_t disk_bytes, const struct bench_raw *raw)
{
    const uint32_t queues = o->count_count ? o->counts[o->count_count - 1] : o->queue_count;
    const uint64_t limit = raw && raw->file_bytes < disk_bytes ? raw->file_bytes : disk_bytes;
    if (o->plan.range_bytes > limit) {
        command_error(o->path, "--range %llu is more than the %llu bytes there are to read",
                      (unsigned long long)o->plan.range_bytes, (unsigned long long)limit);
        return -EINVAL;
    }
    const uint64_t range = o->plan.range_bytes ? o->plan.range_bytes : limit;
    o->plan.range_bytes = range - range % o->plan.block_bytes;
    const uint64_t blocks = o->plan.range_bytes / o->plan.block_bytes;
    if (blocks < (o->plan.pattern == BENCH_READ ? queues : 1)) {
        command_error(o->path, "%llu bytes are too few for %u queue%s of reads of %u bytes",
                      (unsigned long long)range, queues, queues == 1 ? "" : "s", o->plan.block_bytes);
        if (range >= 512)
            command_hint("a smaller --bs or fewer queues fit");
        return -EINVAL;
    }
    return 0;
}

static int bench_image(struct bench_options *o, const struct bench_raw *raw)
{
    struct scow_open_options options = o->open.options;
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_image *image;
    options.open_child = scow_open_child_any;
    options.queues_max = o->count_count ? o->counts[o->count_count - 1] : o->queue_count;
    int err = open_image(o->path, &options, &image);
    if (err < 0)
        return err;
    err = scow_get_info(image, &info);
    if (err < 0)
        command_library_error(o->path, err);
    else
        err = settle_range(o, scow_size(image), raw);
    if (err == 0) {
        const struct bench_target target = {.image = image, .path = o->path};
        const struct bench_target raw_target = {.raw = raw, .path = o->raw_path};
        struct bench_report report = {.output = (enum bench_output)o->output,
                                      .path = o->path,
                                      .raw_path = o->raw_path,
                                      .plan = &o->plan,
                                      .info = &info,
                                      .raw = raw,
                                      .scale = o->count_count > 0};
        err = run_rows(o, &target, raw ? &raw_target : NULL, &report);
    }
    scow_close(image);
    return err;
}

static int bench_raw(struct bench_options *o, const struct bench_raw *raw)
{
    const struct bench_target target = {.raw = raw, .path = o->path};
    struct bench_report report = {.output = (enum bench_output)o->output,
                                  .path = o->path,
                                  .plan = &o->plan,
                                  .raw = raw,
                                  .scale = o->count_count > 0};
    const int err = settle_range(o, raw->file_bytes, NULL);
    return err < 0 ? err : run_rows(o, &target, NULL, &report);
}

int command_bench(int argc, char **argv)
{
    struct bench_options o = {
        .plan = {.block_bytes = 4096, .depth = 64, .seed = 1, .warmup_ns = 500000000u},
        .queue_count = 1,
    };
    struct arguments args = {.usage = &usage};
    struct bench_raw raw = {.fd = -1};
    int key;
    open_args_init(&o.open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        if (take_option(&o, &args, key) < 0)
            return args.exit_code;
    }
    if (key < 0)
        return args.exit_code;
    if (finish_options(&o, &args) != EXIT_OK)
        return args.exit_code;

    const char *const raw_path = o.raw ? o.path : o.raw_path;
    int err = 0;
    if (raw_path)
        err = bench_raw_open(raw_path, o.open.options.io_mode, o.open.options.backend, &raw);
    if (o.raw && raw.threads)
        o.plan.depth = 1; /* what bench_run() makes of it; shown as it is */
    if (err == 0)
        err = o.raw ? bench_raw(&o, &raw) : bench_image(&o, raw_path ? &raw : NULL);
    bench_raw_close(&raw);
    if (err < 0 || command_finish_output() != 0)
        return EXIT_FAILED;
    return EXIT_OK;
}
