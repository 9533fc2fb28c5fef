/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/control_client.h"
#include "cli/json.h"
#include "cli/stats_table.h"

enum { ARG_INTERVAL = ARG_LONG, ARG_COUNT };

static const struct argument specs[] = {
    {ARG_OUTPUT, "output", "human|json", "form of the result; json: all that the server tells"},
    {ARG_INTERVAL, "interval", "SECONDS", "again and again: what happened since the time before"},
    {ARG_COUNT, "count", "N", "so often; default: once, with --interval until interrupted"},
    {0},
};

static const struct usage usage = {
    .command = "stats",
    .synopsis = "[OPTION]... SOCKET",
    .text = "What the server with the control socket SOCKET has done since its start: requests, bytes,\n"
            "latencies and errors of each queue, and what that meant for the image.\n",
    .specs = specs,
    .examples = "  shardcow stats /run/disk.control\n"
                "  shardcow stats --interval 1 /run/disk.control\n",
};

struct stats_args {
    const char *path;
    bool json;
    uint64_t interval_s, count; /* 0: once; 0: for ever */
};

static json_t *ask(int fd, const char *path)
{
    json_t *const request = json_object();

    json_put(request, "command", json_text("stats"));
    return control_ask(fd, path, request);
}

/* A terminal shows the table in one place. */
static void begin_page(const struct stats_args *args, uint64_t round)
{
    if (args->interval_s && isatty(STDOUT_FILENO))
        printf("\033[H\033[J");
    else if (round)
        printf("\n");
}

/* before: the last answer, replaced by this one; empty the first time. */
static bool show(const struct stats_args *args, json_t *answer, struct stats_sample *before, uint64_t round)
{
    struct stats_sample now, change;

    if (args->json) {
        json_print(stdout, answer);
        return true;
    }
    if (!stats_sample_take(&now, json_incref(answer), args->path) ||
        !stats_sample_take(&change, answer, args->path))
        return false;
    if (before->queues)
        stats_sample_subtract(&change, before);
    begin_page(args, round);
    stats_table_print(&change, now.uptime_ns);
    stats_sample_drop(&change);
    stats_sample_drop(before);
    *before = now;
    return true;
}

static void wait_until(struct timespec *next, uint64_t interval_s)
{
    next->tv_sec += (time_t)interval_s;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL))
        continue;
}

static int show_all(const struct stats_args *args)
{
    const int fd = control_connect(args->path);
    struct stats_sample before = {0};
    struct timespec next;
    bool good = fd >= 0;

    clock_gettime(CLOCK_MONOTONIC, &next);
    for (uint64_t i = 0; good && (!args->count || i < args->count); i++) {
        json_t *answer;

        if (i)
            wait_until(&next, args->interval_s);
        answer = ask(fd, args->path);
        good = answer && show(args, answer, &before, i);
        good = good && (fflush(stdout) == 0 || command_finish_output() == EXIT_OK);
    }
    stats_sample_drop(&before);
    if (fd >= 0)
        close(fd);
    return good ? command_finish_output() : EXIT_FAILED;
}

int command_stats(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct stats_args stats = {0};
    int key, bad = 0, format = 0;

    while (!bad && (key = arguments_next(&args, argc, argv)) > 0)
        switch (key) {
        case ARG_OUTPUT:
            bad = arguments_choice(&args, "--output", "human|json", &format);
            break;
        case ARG_INTERVAL:
            bad = arguments_number(&args, "--interval", 1, 86400, &stats.interval_s);
            break;
        case ARG_COUNT:
            bad = arguments_number(&args, "--count", 1, UINT32_MAX, &stats.count);
            break;
        }
    if (bad || key < 0)
        return args.exit_code;
    if (args.operand_count != 1)
        return arguments_error(&args, "expecting a server's control socket");
    stats.path = args.operands[0];
    stats.json = format == 1;
    if (!stats.interval_s && stats.count)
        stats.interval_s = 1;
    else if (!stats.interval_s)
        stats.count = 1;
    return show_all(&stats);
}
