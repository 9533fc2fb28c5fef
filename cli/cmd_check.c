/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/json.h"
#include "cli/open_args.h"
#include "cli/progress.h"

enum { ARG_THREADS = ARG_LONG };

static const struct argument specs[] = {
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_SHARE,
    OPEN_ARGUMENT_CACHE('T'),
    {ARG_OUTPUT, "output", "human|json", "form of the result"},
    {'q', "quiet", NULL, "print problems and errors only"},
    {'p', "progress", NULL, "show progress"},
    {ARG_THREADS, "threads", "N", "threads; default: one per CPU, at most 16"},
    {'m', "memory", "SIZE", "bound of the working memory (default 1G); beyond it, more passes"},
    {'r', "repair", "leaks|all", "repair leaked clusters only, or everything that can be"},
    {ARG_IMAGE_OPTS, "image-opts", NULL, NULL},
    {0},
};

static const struct usage usage = {
    .command = "check",
    .synopsis = "[OPTION]... FILE",
    .text =
        "Check that every cluster's refcount equals the references to it, in parallel and without changing\n"
        "the image unless -r says so. Nobody may be writing to it, and for -r nobody may have it open. Opens no\n"
        "file but the image. Raw images have nothing to check.\n"
        "\n"
        "A repair is followed by another check, whose result is shown. It can be interrupted at any time and\n"
        "run again. What data a damaged entry stood for is not known: copy an image that matters first.\n"
        "\n"
        "Exit codes are qemu-img's: 0 good, 1 the check failed, 2 corruptions, 3 leaked clusters only,\n"
        "63 the format has no checks.\n",
    .specs = specs,
    .examples = "  shardcow check -p disk.qcow2\n"
                "  shardcow check --output=json disk.qcow2\n"
                "  shardcow check --threads 8 --memory 256M huge.qcow2\n"
                "  shardcow check -r all disk.qcow2\n",
};

struct check_args {
    struct open_args open;
    struct scow_check_options options;
    bool quiet, with_progress;
    int json;
};

static void report_problem(void *ctx, enum scow_problem_kind kind, const char *text)
{
    char quoted[1024];

    (void)ctx;
    (void)kind;
    fprintf(stderr, "%s\n", command_quote(quoted, sizeof quoted, text));
}

static int report_progress(void *ctx, uint64_t done, uint64_t total)
{
    progress_set(ctx, done, total);
    return 0;
}

/* As with qemu-img, a count of nothing has no key. */
static void put_count(json_t *object, const char *key, uint64_t count)
{
    if (count)
        json_put(object, key, json_count(count));
}

static void print_json(const char *path, const struct scow_check_result *r)
{
    json_t *object = json_object();

    json_put(object, "filename", json_text(path));
    json_put(object, "format", json_text("qcow2"));
    json_put(object, "check-errors", json_count(r->check_errors));
    put_count(object, "image-end-offset", r->image_end_off);
    put_count(object, "corruptions", r->corruptions);
    put_count(object, "leaks", r->leaks);
    put_count(object, "corruptions-fixed", r->corruptions_fixed);
    put_count(object, "leaks-fixed", r->leaks_fixed);
    put_count(object, "total-clusters", r->total_clusters);
    put_count(object, "allocated-clusters", r->allocated_clusters);
    put_count(object, "fragmented-clusters", r->fragmented_clusters);
    put_count(object, "compressed-clusters", r->compressed_clusters);
    json_print(stdout, object);
}

static void print_human(const struct scow_check_result *r)
{
    if (r->leaks_fixed || r->corruptions_fixed)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n"
               "    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               r->leaks_fixed, r->corruptions_fixed);
    if (!r->corruptions && !r->leaks && !r->check_errors)
        printf("No errors were found on the image.\n");
    if (r->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    if (r->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    if (r->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n", r->check_errors);
    if (r->total_clusters && r->allocated_clusters) {
        const double allocated = (double)r->allocated_clusters;
        printf("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n",
               r->allocated_clusters, r->total_clusters, allocated * 100 / (double)r->total_clusters,
               (double)r->fragmented_clusters * 100 / allocated,
               (double)r->compressed_clusters * 100 / allocated);
    }
    if (r->image_end_off)
        printf("Image end offset: %" PRIu64 "\n", r->image_end_off);
}

static int verdict(const char *path, const struct scow_check_result *r)
{
    if (r->check_errors) {
        command_error(path, "check failed: not all of its metadata could be read");
        return EXIT_FAILED;
    }
    if (r->corruptions)
        return EXIT_CHECK_CORRUPTIONS;
    return r->leaks ? EXIT_CHECK_LEAKS : EXIT_OK;
}

static int run_check(const char *path, struct check_args *check)
{
    struct scow_check_result result = SCOW_CHECK_RESULT_INIT;
    struct scow_image *image;
    struct progress progress;
    int err;

    if (open_image(path, &check->open.options, &image))
        return EXIT_FAILED;
    progress_begin(&progress, check->with_progress && !check->quiet, false, 1);
    check->options.problem = report_problem;
    check->options.progress = report_progress;
    check->options.ctx = &progress;
    err = scow_check(image, &check->options, &result);
    progress_end(&progress, !err);
    if (err == -ENOTSUP)
        command_error(path, "this image format does not support checks");
    else if (err)
        command_library_error(path, err);
    if (close_image(image, path) && !err)
        return EXIT_FAILED;
    if (err)
        return err == -ENOTSUP ? EXIT_CHECK_UNSUPPORTED : EXIT_FAILED;
    if (!check->quiet && check->json)
        print_json(path, &result);
    else if (!check->quiet)
        print_human(&result);
    const int code = verdict(path, &result);
    return command_finish_output() ? EXIT_FAILED : code;
}

static int take_repair(struct check_args *check, struct arguments *args)
{
    int choice;

    if (arguments_choice(args, "-r", "leaks|all", &choice))
        return -1;
    check->options.flags = choice ? SCOW_CHECK_REPAIR_LEAKS | SCOW_CHECK_REPAIR_ALL : SCOW_CHECK_REPAIR_LEAKS;
    check->open.options.flags |= SCOW_OPEN_WRITE | SCOW_OPEN_REPAIR;
    return 0;
}

static int take_option(struct check_args *check, struct arguments *args, int key)
{
    uint64_t number;

    switch (key) {
    case ARG_OUTPUT:
        return arguments_choice(args, "--output", "human|json", &check->json);
    case 'q':
        check->quiet = true;
        return 0;
    case 'p':
        check->with_progress = true;
        return 0;
    case ARG_THREADS:
        if (arguments_number(args, "--threads", 1, 256, &number))
            return -1;
        check->options.threads = (uint32_t)number;
        return 0;
    case 'm':
        return arguments_size(args, "--memory", 1, UINT64_MAX, &check->options.memory_bytes);
    default: /* 'r' */
        return take_repair(check, args);
    }
}

int command_check(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct check_args check = {.options = SCOW_CHECK_OPTIONS_INIT};
    int key;

    open_args_init(&check.open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&check.open, &args, key, 'T');
        if (taken < 0 || (!taken && take_option(&check, &args, key)))
            return args.exit_code;
    }
    if (key < 0)
        return args.exit_code;
    if (args.operand_count != 1)
        return arguments_error(&args, "expecting one image file name");
    check.open.options.flags |= SCOW_OPEN_NO_IO;
    return run_check(args.operands[0], &check);
}
