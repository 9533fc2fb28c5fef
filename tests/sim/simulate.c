/* SPDX-License-Identifier: MIT */
/* The simulator's command: see usage(). */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/guard.h"
#include "tests/sim/scripts.h"

#define JOBS_MAX 64

#ifdef SCOW_NEGATIVE
uint32_t guards_off;
static const char *const guard_names[] = {"I1", "I2",     "I3",    "I4",       "I5",       "I6",
                                          "I7", "COPIED", "EPOCH", "INFLIGHT", "EVICTION", "ALONE"};
static_assert(ARRAY_COUNT(guard_names) == GUARD_COUNT, "a name for each");
#endif

/* What a worker tells its parent. */
struct report {
    struct sim_stats stats;
    uint64_t seed; /* at work on */
    bool script;
};

struct settings {
    struct simulate_options options;
    uint64_t seed, runs, seconds, shrink;
    bool seed_given, enumerate, fail_each, quiet;
    uint32_t fail_nth;
    const char *only; /* script */
    int jobs;
    int trace_fd; /* where a verbose run prints; -1: the terminal */
};

static uint64_t now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec;
}

static void usage(void)
{
    puts("simulate [options]: runs the engine in a simulated world, from seeds\n"
         "  --seed N             the first seed; drawn and printed if not given\n"
         "  --runs N             runs with seeds from there on (default 1 with --seed, else 1000)\n"
         "  --seconds S          go on for so long instead\n"
         "  --jobs N             processes (default 1)\n"
         "  --crashes-per-run K  at most\n"
         "  --no-crashes\n"
         "  --enumerate [NAME]   all crashes of small workloads instead of random ones\n"
         "  --fail-each [NAME]   the small workloads, once for each of their I/Os, which fails\n"
         "  --fail-nth N         with --enumerate: only the N-th\n"
         "  --qemu-every N       also ask qemu-img check about one crashed image in N\n"
         "  --ops N              at most so many requests of each client\n"
         "  --shrink SEED        find a shorter run that fails\n"
         "  --leaks-stay         opening need not reclaim what a crash leaked\n"
         "  --without GUARD      with one rule of base/guard.h switched off (test build only)\n"
         "  --verbose            print every step\n"
         "  --quiet              print failures and the sums only");
}

/* ---- workers ---- */

static void stopped_by_signal(int sig)
{
    static const char text[] = "\nFAILED: the engine stopped on an invariant or crashed\n";

    (void)!write(STDOUT_FILENO, text, sizeof text - 1);
    signal(sig, SIG_DFL);
    raise(sig);
}

static void prepare_worker(void)
{
    signal(SIGILL, stopped_by_signal);
    signal(SIGTRAP, stopped_by_signal);
    signal(SIGSEGV, stopped_by_signal);
    signal(SIGBUS, stopped_by_signal);
    signal(SIGABRT, stopped_by_signal);
    /* Images come and go by the thousand. */
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
}

static void work_seeds(const struct settings *s, int job, struct report *report)
{
    struct runner *const run = runner_new(&report->stats);
    const uint64_t until = now_s() + s->seconds;

    run->options = s->options;
    for (uint64_t i = (uint64_t)job; s->seconds ? now_s() < until : i < s->runs; i += (uint64_t)s->jobs) {
        report->seed = s->seed + i;
        runner_run(run, report->seed);
    }
}

/* The script once for each of its I/Os, which fails. */
static void fail_each(struct runner *run, const struct run_config *config, const char *name,
                      const struct op *ops, uint32_t count)
{
    for (uint32_t n = 1; runner_script(run, config, name, ops, count, n); n++)
        ;
}

static void work_scripts(const struct settings *s, int job, struct report *report)
{
    struct runner *const run = runner_new(&report->stats);
    struct op ops[SCRIPT_OPS_MAX];
    struct run_config config;
    const char *name;

    run->options = s->options;
    for (uint64_t r = 0; r < MAX(s->runs, 1u); r++)
        for (uint32_t i = (uint32_t)job; i < scripts_count(); i += (uint32_t)s->jobs) {
            const uint32_t count = scripts_get(i, s->seed + r, &name, &config, ops);
            const uint64_t images = report->stats.crash_images, points = report->stats.crash_points;

            if (s->only && strcmp(s->only, name))
                continue;
            report->seed = s->seed + r;
            report->script = true;
            if (s->fail_each)
                fail_each(run, &config, name, ops, count);
            else
                (void)runner_script(run, &config, name, ops, count, s->fail_nth);
            if (!s->quiet)
                printf("%-32s seed %" PRIu64 ": %" PRIu64 " crash points, %" PRIu64 " images\n", name,
                       report->seed, report->stats.crash_points - points,
                       report->stats.crash_images - images);
        }
}

static pid_t start_worker(const struct settings *s, int job, struct report *report)
{
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid)
        return pid;
    if (s->trace_fd >= 0)
        dup2(s->trace_fd, STDOUT_FILENO);
    prepare_worker();
    if (s->enumerate)
        work_scripts(s, job, report);
    else
        work_seeds(s, job, report);
    fflush(stdout);
    _Exit(0);
}

static struct report *shared_reports(void)
{
    struct report *const r =
        mmap(NULL, JOBS_MAX * sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (r == MAP_FAILED)
        abort();
    return r;
}

/* One run by itself in a process of its own; whether it fails. */
static bool fails(const struct settings *s, uint64_t seed, int trace_fd)
{
    struct report *const report = shared_reports();
    struct settings one = *s;
    int status = 0;

    one.seed = seed;
    one.runs = 1;
    one.seconds = 0;
    one.jobs = 1;
    one.trace_fd = trace_fd;
    waitpid(start_worker(&one, 0, report), &status, 0);
    munmap(report, JOBS_MAX * sizeof *report);
    return status != 0;
}

static void write_trace(const struct settings *s, uint64_t seed)
{
    struct settings traced = *s;
    char path[64];
    FILE *f;

    snprintf(path, sizeof path, "simulate-%" PRIu64 ".trace", seed);
    f = fopen(path, "we");
    if (!f)
        return;
    traced.options.verbose = true;
    traced.options.qemu_every = 0;
    (void)fails(&traced, seed, fileno(f));
    fclose(f);
    printf("replay: simulate --seed %" PRIu64 "%s%s%s\ntrace: %s\n", seed,
           s->enumerate ? " --enumerate " : "", s->enumerate && s->only ? s->only : "",
           s->options.ops_max ? " (and --ops)" : "", path);
}

/* ---- shrinking ---- */

static int shrink(struct settings *s)
{
    FILE *const nowhere = fopen("/dev/null", "we");
    uint32_t ops = 1;

    if (!nowhere || !fails(s, s->shrink, fileno(nowhere))) {
        printf("seed %" PRIu64 " does not fail\n", s->shrink);
        return 1;
    }
    while (ops < 200) { /* the shortest prefix; a failure may come and go with the length */
        s->options.ops_max = ops;
        if (fails(s, s->shrink, fileno(nowhere)))
            break;
        ops++;
    }
    for (uint32_t i = 0; i < 64; i++) { /* then leave out what is not needed */
        s->options.skip_mask |= 1ull << i;
        if (!fails(s, s->shrink, fileno(nowhere)))
            s->options.skip_mask &= ~(1ull << i);
    }
    fclose(nowhere);
    printf("seed %" PRIu64 " fails with --ops %" PRIu32 " --skip 0x%" PRIx64 "\n", s->shrink,
           s->options.ops_max, s->options.skip_mask);
    write_trace(s, s->shrink);
    return 0;
}

/* ---- the command ---- */

static void print_sums(const struct report *reports, int jobs, uint64_t seconds)
{
    struct sim_stats sum = {0};

    for (int i = 0; i < jobs; i++) {
        const struct sim_stats *const t = &reports[i].stats;

        sum.runs += t->runs;
        sum.crash_points += t->crash_points;
        sum.crash_images += t->crash_images;
        sum.crash_seen += t->crash_seen;
        sum.turns += t->turns;
        sum.schedules += t->schedules;
        sum.ios += t->ios;
        sum.requests += t->requests;
        sum.enumerated += t->enumerated;
        sum.qemu_checks += t->qemu_checks;
        sum.faults += t->faults;
        sum.leaks_max = MAX(sum.leaks_max, t->leaks_max);
    }
    printf("%" PRIu64 " runs, %" PRIu64 " different interleavings, %" PRIu64 " requests, %" PRIu64
           " scheduled steps, %" PRIu64 " I/Os, %" PRIu64 " faults, %" PRIu64 " crash points, %" PRIu64
           " different crash images checked (%" PRIu64 " repeats; %" PRIu64
           " points with every subset), %" PRIu64 " of them by qemu-img, at most %" PRIu64
           " leaked clusters, %" PRIu64 " s\n",
           sum.runs, sum.schedules, sum.requests, sum.turns, sum.ios, sum.faults, sum.crash_points,
           sum.crash_images, sum.crash_seen, sum.enumerated, sum.qemu_checks, sum.leaks_max, seconds);
}

static int run_all(const struct settings *s)
{
    struct report *const reports = shared_reports();
    const uint64_t start = now_s();
    pid_t pids[JOBS_MAX];
    int failed = 0;

    for (int i = 0; i < s->jobs; i++)
        pids[i] = start_worker(s, i, &reports[i]);
    for (int i = 0; i < s->jobs; i++) {
        int status = 0;

        waitpid(pids[i], &status, 0);
        if (status == 0)
            continue;
        failed++;
        if (WIFSIGNALED(status))
            printf("seed %" PRIu64 ": signal %d\n", reports[i].seed, WTERMSIG(status));
        if (!s->options.verbose)
            write_trace(s, reports[i].seed);
    }
    print_sums(reports, s->jobs, now_s() - start);
    return failed ? 1 : 0;
}

static int without(const char *name)
{
#ifdef SCOW_NEGATIVE
    for (uint32_t i = 0; i < GUARD_COUNT; i++)
        if (!strcmp(name, guard_names[i])) {
            guards_off |= 1u << i;
            return 0;
        }
    printf("there is no guard %s\n", name);
    return 2;
#else
    printf("--without %s: this build has its guards in place; the negative build can do without\n", name);
    return 77;
#endif
}

enum {
    OPT_SEED = 256,
    OPT_RUNS,
    OPT_SECONDS,
    OPT_JOBS,
    OPT_CRASHES,
    OPT_NO_CRASHES,
    OPT_ENUMERATE,
    OPT_QEMU
};
enum {
    OPT_OPS = 300,
    OPT_SKIP,
    OPT_SHRINK,
    OPT_WITHOUT,
    OPT_VERBOSE,
    OPT_QUIET,
    OPT_HELP,
    OPT_GUARDS,
    OPT_FAIL_EACH,
    OPT_FAIL_NTH,
    OPT_LEAKS,
};

static const struct option long_options[] = {
    {"seed", required_argument, NULL, OPT_SEED},
    {"runs", required_argument, NULL, OPT_RUNS},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"jobs", required_argument, NULL, OPT_JOBS},
    {"crashes-per-run", required_argument, NULL, OPT_CRASHES},
    {"no-crashes", no_argument, NULL, OPT_NO_CRASHES},
    {"enumerate", optional_argument, NULL, OPT_ENUMERATE},
    {"fail-each", optional_argument, NULL, OPT_FAIL_EACH},
    {"fail-nth", required_argument, NULL, OPT_FAIL_NTH},
    {"leaks-stay", no_argument, NULL, OPT_LEAKS},
    {"qemu-every", required_argument, NULL, OPT_QEMU},
    {"ops", required_argument, NULL, OPT_OPS},
    {"skip", required_argument, NULL, OPT_SKIP},
    {"shrink", required_argument, NULL, OPT_SHRINK},
    {"without", required_argument, NULL, OPT_WITHOUT},
    {"guards", no_argument, NULL, OPT_GUARDS},
    {"verbose", no_argument, NULL, OPT_VERBOSE},
    {"quiet", no_argument, NULL, OPT_QUIET},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

static int print_guards(void)
{
#ifdef SCOW_NEGATIVE
    for (uint32_t i = 0; i < GUARD_COUNT; i++)
        puts(guard_names[i]);
#endif
    return 0;
}

/* -1: go on; else the command's status. */
static int take_option(struct settings *s, int option)
{
    const uint64_t n = optarg ? strtoull(optarg, NULL, 0) : 0;

    switch (option) {
    case OPT_SEED:
        s->seed = n;
        s->seed_given = true;
        return -1;
    case OPT_RUNS:
        s->runs = n;
        return -1;
    case OPT_SECONDS:
        s->seconds = n;
        return -1;
    case OPT_JOBS:
        s->jobs = (int)MIN(MAX(n, 1u), (uint64_t)JOBS_MAX);
        return -1;
    case OPT_CRASHES:
        s->options.crashes_per_run = (uint32_t)n;
        return -1;
    case OPT_NO_CRASHES:
        s->options.no_crashes = true;
        return -1;
    case OPT_ENUMERATE:
        s->enumerate = true;
        s->only = optarg;
        return -1;
    case OPT_FAIL_EACH:
        s->enumerate = s->fail_each = true;
        s->only = optarg;
        return -1;
    case OPT_FAIL_NTH:
        s->fail_nth = (uint32_t)n;
        return -1;
    case OPT_LEAKS:
        s->options.leaks_stay = true;
        return -1;
    case OPT_QEMU:
        s->options.qemu_every = n;
        return -1;
    case OPT_OPS:
        s->options.ops_max = (uint32_t)n;
        return -1;
    case OPT_SKIP:
        s->options.skip_mask = n;
        return -1;
    case OPT_SHRINK:
        s->shrink = n;
        return -1;
    case OPT_VERBOSE:
        s->options.verbose = true;
        return -1;
    case OPT_QUIET:
        s->quiet = true;
        return -1;
    case OPT_WITHOUT: {
        const int r = without(optarg);

        return r ? r : -1;
    }
    case OPT_GUARDS:
        return print_guards();
    case OPT_HELP:
        usage();
        return 0;
    default:
        usage();
        return 2;
    }
}

int main(int argc, char **argv)
{
    struct settings s = {.jobs = 1, .shrink = UINT64_MAX, .trace_fd = -1};
    int option, r;

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        r = take_option(&s, option);
        if (r >= 0)
            return r;
    }
    if (optind < argc && s.enumerate)
        s.only = argv[optind];
    if (s.shrink != UINT64_MAX)
        return shrink(&s);
    if (!s.seed_given && getrandom(&s.seed, sizeof s.seed, 0) == sizeof s.seed)
        s.seed >>= 24;
    if (!s.runs)
        s.runs = s.seed_given || s.enumerate ? 1 : 1000;
    if (!s.enumerate)
        printf("seeds from %" PRIu64 "\n", s.seed);
    return run_all(&s);
}
