/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/compare_threads.h"
#include "cli/cpus.h"
#include "cli/open_args.h"
#include "cli/sectors.h"

enum { ARG_THREADS = ARG_LONG };

static const struct argument specs[] = {
    {'f', "format", "FMT", "format of the first image: qcow2 (default) or raw; never guessed"},
    {'F', "second-format", "FMT", "format of the second image; default qcow2"},
    {'s', "strict", NULL, "differences in size and in what is allocated count too"},
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print errors only"},
    OPEN_ARGUMENT_SHARE,
    OPEN_ARGUMENT_CACHE_BUFFERED('T'),
    {ARG_THREADS, "threads", "N", "threads that read; default: one per CPU"},
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "compare",
    .synopsis = "[OPTION]... FIRST SECOND",
    .text =
        "Compare what a guest would read from two images, on all CPUs. If one is longer, the rest of it must\n"
        "read as zeros. Names the lowest offset that differs, in sectors of 512 bytes. Backing files and data\n"
        "files that the images name are opened.\n"
        "\n"
        "Exit codes are qemu-img's: 0 the same, 1 different, 2 bad options or an image cannot be opened,\n"
        "3 extents cannot be read, 4 data cannot be read.\n",
    .specs = specs,
    .examples = "  shardcow compare a.qcow2 b.qcow2\n"
                "  shardcow compare -p -F raw disk.qcow2 disk.raw\n"
                "  shardcow compare -s -q before.qcow2 after.qcow2 && echo same\n",
    .exit_bad_options = EXIT_COMPARE_OPTIONS,
};

struct compare_args {
    struct open_args open;
    enum scow_format second_format;
    bool strict, quiet, with_progress;
    uint32_t threads;
    const char *paths[2];
};

static void say(const struct compare_args *args, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(const struct compare_args *args, const char *fmt, ...)
{
    va_list list;

    if (args->quiet)
        return;
    va_start(list, fmt);
    vprintf(fmt, list);
    va_end(list);
    putchar('\n');
}

/* Lowers *off to the first offset where the images differ in what is allocated. */
static int find_status_mismatch(const struct compare_args *args, struct scow_image *images[2],
                                uint64_t *ret_off)
{
    const uint64_t sizes[2] = {scow_size(images[0]), scow_size(images[1])};
    const uint64_t end = sizes[0] < sizes[1] ? sizes[0] : sizes[1];
    uint64_t off = 0;

    while (off < end) {
        struct scow_extent extents[2];
        for (unsigned i = 0; i < 2; i++) {
            extents[i] = (struct scow_extent){.size = sizeof extents[i]};
            const int err = scow_get_extent(images[i], off, end - off, 0, &extents[i]);
            if (err || !extents[i].bytes) {
                command_library_error(args->paths[i], err ? err : -EIO);
                return EXIT_COMPARE_MAP;
            }
        }
        if (extents[0].flags != extents[1].flags)
            break;
        off += extents[0].bytes < extents[1].bytes ? extents[0].bytes : extents[1].bytes;
    }
    if (off < end)
        *ret_off = off;
    return EXIT_OK;
}

static int report(const struct compare_args *args, const struct compare_result *r, uint64_t status_off,
                  uint64_t common, bool sizes_differ)
{
    if (r->kind == COMPARE_MAP_FAILED) {
        command_error(args->paths[r->image], "where its data is cannot be read: %s", r->error);
        return EXIT_COMPARE_MAP;
    }
    if (r->kind == COMPARE_FAILED) {
        command_error(NULL, "%s", r->error);
        return EXIT_COMPARE_READ;
    }
    if (r->kind == COMPARE_SAME && status_off < common) {
        say(args, "Strict mode: Offset %" PRIu64 " block status mismatch!", status_off);
        return EXIT_COMPARE_DIFFERENT;
    }
    if (sizes_differ && (r->kind == COMPARE_SAME || r->off >= common))
        say(args, "Warning: Image size mismatch!");
    if (r->kind == COMPARE_READ_FAILED) {
        command_error(args->paths[r->image], "error while reading offset %" PRIu64 ": %s", r->off, r->error);
        return EXIT_COMPARE_READ;
    }
    if (r->kind == COMPARE_MISMATCH) {
        say(args, "Content mismatch at offset %" PRIu64 "!", r->off);
        return EXIT_COMPARE_DIFFERENT;
    }
    say(args, "Images are identical.");
    return EXIT_OK;
}

static int compare_images(const struct compare_args *args, struct scow_image *images[2])
{
    const uint64_t sizes[2] = {round_to_sector(scow_size(images[0])), round_to_sector(scow_size(images[1]))};
    const uint64_t common = sizes[0] < sizes[1] ? sizes[0] : sizes[1];
    const uint64_t longer = sizes[0] < sizes[1] ? sizes[1] : sizes[0];
    struct compare_result result;
    struct progress progress;
    uint64_t status_off = common;
    int code;

    if (args->strict && sizes[0] != sizes[1]) {
        say(args, "Strict mode: Image size mismatch!");
        return EXIT_COMPARE_DIFFERENT;
    }
    if (args->strict) {
        code = find_status_mismatch(args, images, &status_off);
        if (code)
            return code;
    }
    const uint64_t end = args->strict ? status_off : longer;
    progress_begin(&progress, args->with_progress && !args->quiet, true, end);
    compare_run(images, end, args->threads, &progress, &result);
    progress_end(&progress, result.kind == COMPARE_SAME);
    return report(args, &result, status_off, common, sizes[0] != sizes[1]);
}

static int run_compare(struct compare_args *args)
{
    struct scow_image *images[2] = {NULL, NULL};
    struct scow_open_options options = args->open.options;
    int code = EXIT_COMPARE_OPTIONS;

    options.open_child = scow_open_child_any;
    options.queues_max = args->threads;
    if (!open_image(args->paths[0], &options, &images[0])) {
        options.format = args->second_format;
        if (!open_image(args->paths[1], &options, &images[1]))
            code = compare_images(args, images);
    }
    scow_close(images[1]);
    scow_close(images[0]);
    if (code <= EXIT_COMPARE_DIFFERENT && command_finish_output())
        code = EXIT_COMPARE_OPTIONS;
    return code;
}

static int take_option(struct compare_args *compare, struct arguments *args, int key)
{
    uint64_t number;

    switch (key) {
    case 'F':
        return open_args_format(args, &compare->second_format);
    case 's':
        compare->strict = true;
        return 0;
    case 'p':
        compare->with_progress = true;
        return 0;
    case 'q':
        compare->quiet = true;
        return 0;
    default:
        if (arguments_number(args, "--threads", 1, CPUS_MAX, &number))
            return -1;
        compare->threads = (uint32_t)number;
        return 0;
    }
}

int command_compare(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct compare_args compare = {.second_format = SCOW_FORMAT_QCOW2, .threads = cpus_online()};
    int key;

    open_args_init(&compare.open);
    compare.open.options.io_mode = SCOW_IO_BUFFERED;
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&compare.open, &args, key, 'T');
        if (taken < 0 || (!taken && take_option(&compare, &args, key)))
            return args.exit_code;
    }
    if (key < 0)
        return args.exit_code;
    if (args.operand_count != 2)
        return arguments_error(&args, "expecting two image file names");
    compare.paths[0] = args.operands[0];
    compare.paths[1] = args.operands[1];
    return run_compare(&compare);
}
