/* SPDX-License-Identifier: MIT */
#include "cli/bench_options.h"
#include "cli/bench_report.h"
#include "cli/command.h"
#include "cli/create_options.h"

#include <stdlib.h>
#include <string.h>

#define QUEUES_MAX 1024u
#define ROUNDS_DEFAULT 10u

enum {
    ARG_RW = ARG_LONG,
    ARG_BS,
    ARG_DEPTH,
    ARG_QUEUES,
    ARG_SECONDS,
    ARG_WARMUP,
    ARG_RANGE,
    ARG_STEP,
    ARG_READ_PERCENT,
    ARG_FLUSH_EVERY,
    ARG_FRESH,
    ARG_PREPARE,
    ARG_SEED,
    ARG_RAW,
    ARG_SCALE,
    ARG_COMPARE_RAW,
    ARG_ROUNDS,
    ARG_PIN,
};

static const struct argument specs[] = {
    {ARG_RW, "rw", BENCH_PATTERN_NAMES, "what is done: random or sequential; default randread"},
    {ARG_READ_PERCENT, "read-percent", "N", "reads among the requests of randrw and rw; default 50"},
    {ARG_BS, "bs", "SIZE", "bytes per request, a multiple of 512; default 4k"},
    {ARG_STEP, "step", "SIZE", "from one offset to the next; default: as --bs"},
    {ARG_DEPTH, "depth", "N", "requests in flight per queue, 1 to 4096; default 64"},
    {ARG_QUEUES, "queues", "N", "queues, each with a thread of its own; default 1"},
    {ARG_FLUSH_EVERY, "flush-every", "N", "each queue flushes after N of its writes; default: never"},
    {ARG_SECONDS, "seconds", "S", "time measured; default 5, with --compare-raw 0.5 per side and round"},
    {ARG_WARMUP, "warmup", "S", "time before that, not measured; default 0.5, with --fresh 0"},
    {ARG_RANGE, "range", "SIZE", "use the first SIZE bytes only; default: the whole disk"},
    {ARG_FRESH, "fresh", "SIZE", "make FILE, and RAWFILE, anew with SIZE for every run; each offset once"},
    {'o', "options", "KEY=VALUE,...", "of a fresh image, as create has them"},
    {ARG_PREPARE, "prepare", NULL, "write the whole range once before the first run"},
    {ARG_SEED, "seed", "N", "of the random offsets; default 1"},
    {ARG_RAW, "raw", NULL, "use FILE as it is, without the library: the machine's limit"},
    {ARG_SCALE, "scale", "N,N,...", "one run per count of queues, as a table or a plot"},
    {ARG_COMPARE_RAW, "compare-raw", "RAWFILE", "alternate with the same on RAWFILE; print the ratio"},
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
        "Measures how fast FILE is read or written: requests per second, CPU time per request, latency, and\n"
        "the paths that requests took. Each queue is a thread that keeps --depth requests in flight.\n"
        "With randwrite, write, randrw and rw the content of FILE, and of RAWFILE, is overwritten.\n",
    .specs = specs,
    .examples =
        "  shardcow bench --queues 2 --seconds 10 disk.qcow2\n"
        "  shardcow bench --raw disk.img\n"
        "  shardcow bench --compare-raw disk.img disk.qcow2\n"
        "  shardcow bench --scale 1,2,4,8 --pin --output=svg disk.qcow2 > scale.svg\n"
        "  shardcow bench --rw randwrite --prepare --fresh 4G scratch.qcow2\n"
        "  shardcow bench --rw randwrite --step 64k --fresh 64G --compare-raw scratch.raw scratch.qcow2\n",
};

/* ---- one option ---- */

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
    o->scale = true;
    for (;;) {
        char *end;
        const unsigned long count = strtoul(p, &end, 10);
        if (end == p || *p == '-' || *p == '+' || count < 1 || count > QUEUES_MAX || (*end && *end != ',') ||
            o->count_count == BENCH_COUNTS_MAX) {
            arguments_error(args,
                            "--scale takes up to %d counts of queues from 1 to %u, as in 1,2,4, not '%s'",
                            BENCH_COUNTS_MAX, QUEUES_MAX, args->value);
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
    if (arguments_choice(args, "--rw", BENCH_PATTERN_NAMES, &choice) < 0)
        return -1;
    o->plan.pattern = (enum bench_pattern)choice;
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

static int take_sectors(struct arguments *args, const char *option, uint64_t max, uint64_t *ret_bytes)
{
    if (arguments_size(args, option, 512, max, ret_bytes) < 0)
        return -1;
    if (*ret_bytes % 512 != 0) {
        arguments_error(args, "%s %s is not a multiple of 512", option, args->value);
        return -1;
    }
    return 0;
}

static int take_block(struct arguments *args, struct bench_options *o)
{
    uint64_t bytes;
    if (take_sectors(args, "--bs", 1u << 30, &bytes) < 0)
        return -1;
    o->plan.block_bytes = (uint32_t)bytes;
    return 0;
}

/* --scale's counts stand for it. */
static int take_queues(struct arguments *args, struct bench_options *o)
{
    uint32_t count;
    if (take_number(args, "--queues", QUEUES_MAX, &count) < 0)
        return -1;
    if (!o->scale)
        o->counts[0] = count;
    return 0;
}

static int take_percent(struct arguments *args, struct bench_options *o)
{
    uint64_t percent;
    if (arguments_number(args, "--read-percent", 0, 100, &percent) < 0)
        return -1;
    o->plan.read_percent = (uint32_t)percent;
    return 0;
}

/* What is given; settle() fills in the rest. */
struct given {
    bool warmup, percent, options;
    uint64_t warmup_ns;
};

static int take_load(struct bench_options *o, struct given *given, struct arguments *args, int key)
{
    switch (key) {
    case ARG_RW:
        return take_pattern(args, o);
    case ARG_READ_PERCENT:
        given->percent = true;
        return take_percent(args, o);
    case ARG_BS:
        return take_block(args, o);
    case ARG_STEP:
        return take_sectors(args, "--step", INT64_MAX / 2, &o->plan.step_bytes);
    case ARG_DEPTH:
        return take_number(args, "--depth", 4096, &o->plan.depth);
    case ARG_QUEUES:
        return take_queues(args, o);
    case ARG_FLUSH_EVERY:
        return take_number(args, "--flush-every", UINT32_MAX, &o->plan.flush_every);
    case ARG_FRESH:
        return take_sectors(args, "--fresh", INT64_MAX / 2, &o->fresh_bytes);
    case ARG_PREPARE:
        o->prepare = true;
        return 0;
    case 'o':
        given->options = true;
        if (create_options_parse(args->value, &o->create) == 0)
            return 0;
        args->exit_code = EXIT_FAILED;
        return -1;
    default:
        return open_args_take(&o->open, args, key, 't') < 0 ? -1 : 0;
    }
}

static int take_option(struct bench_options *o, struct given *given, struct arguments *args, int key)
{
    switch (key) {
    case ARG_SECONDS:
        return take_seconds(args, "--seconds", 0.01, &o->plan.measure_ns);
    case ARG_WARMUP:
        given->warmup = true;
        return take_seconds(args, "--warmup", 0, &given->warmup_ns);
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
        return take_load(o, given, args, key);
    }
}

/* ---- all of them together ---- */

static int check_writing(struct bench_options *o, const struct given *given, struct arguments *args)
{
    const bool writes = bench_writes(o->plan.pattern);
    if (given->percent && !bench_is_mixed(o->plan.pattern))
        return arguments_error(args, "--read-percent is for --rw randrw and rw");
    if (o->plan.flush_every && !writes)
        return arguments_error(args, "--flush-every counts writes, and the pattern has none");
    if ((o->fresh_bytes || o->prepare) && !writes)
        return arguments_error(args, "%s is for patterns that write",
                               o->fresh_bytes ? "--fresh" : "--prepare");
    if (given->options && (!o->fresh_bytes || o->raw))
        return arguments_error(args, "-o is for an image that --fresh makes");
    if (writes && o->open.options.backend == SCOW_BACKEND_NULL)
        return arguments_error(args, "the null backend only reads");
    if (writes && open_args_write(&o->open, args) < 0)
        return args->exit_code;
    return EXIT_OK;
}

static int check(struct bench_options *o, const struct given *given, struct arguments *args)
{
    if (args->operand_count != 1)
        return arguments_error(args, "expects one file, not %d", args->operand_count);
    if (o->raw && o->raw_path)
        return arguments_error(args, "--raw and --compare-raw exclude each other");
    if (o->output == BENCH_SVG && !o->scale)
        return arguments_error(args, "--output=svg plots the counts of --scale");
    if (o->round_count && !o->raw_path)
        return arguments_error(args, "--rounds counts the rounds of --compare-raw");
    if (o->plan.step_bytes && o->plan.step_bytes < o->plan.block_bytes)
        return arguments_error(args, "--step is less than --bs: requests would overlap");
    return check_writing(o, given, args);
}

static void settle(struct bench_options *o, const struct given *given)
{
    struct bench_plan *const plan = &o->plan;
    if (!bench_is_mixed(plan->pattern))
        plan->read_percent = bench_writes(plan->pattern) ? 0 : 100;
    if (!plan->step_bytes)
        plan->step_bytes = plan->block_bytes;
    /* On what is new the first write is the one to be measured. */
    plan->once = o->fresh_bytes && !o->prepare;
    plan->warmup_ns = given->warmup ? given->warmup_ns : plan->once ? 0 : 500000000u;
    if (o->round_count == 0)
        o->round_count = ROUNDS_DEFAULT;
    if (plan->measure_ns == 0)
        plan->measure_ns = o->raw_path ? 500000000u : 5000000000u;
    o->create.virtual_size = o->fresh_bytes;
}

bool bench_options_parse(struct bench_options *o, int argc, char **argv, int *ret_exit_code)
{
    struct arguments args = {.usage = &usage};
    struct given given = {0};
    int key;
    *o = (struct bench_options){
        .plan = {.block_bytes = 4096, .depth = 64, .seed = 1, .read_percent = 50},
        .counts = {1},
        .count_count = 1,
        .create = SCOW_CREATE_OPTIONS_INIT,
    };
    open_args_init(&o->open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        if (take_option(o, &given, &args, key) < 0)
            break;
    }
    *ret_exit_code = args.exit_code;
    if (key != 0)
        return false;
    *ret_exit_code = check(o, &given, &args);
    if (*ret_exit_code != EXIT_OK)
        return false;
    o->path = args.operands[0];
    settle(o, &given);
    return true;
}
