/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/convert_copy.h"
#include "cli/convert_target.h"
#include "cli/convert_threads.h"
#include "cli/cpus.h"
#include "cli/create_options.h"
#include "cli/open_args.h"
#include "cli/output.h"
#include "cli/sectors.h"

#define SPARSE_BYTES_DEFAULT 4096
#define SPARSE_BYTES_MAX (16ull << 20)
#define IN_FLIGHT_DEFAULT 4
#define IN_FLIGHT_MAX 16
#define LISTS_MAX 32 /* -o options */

enum { ARG_THREADS = ARG_LONG, ARG_TARGET_IS_ZERO };

static const struct argument specs[] = {
    {'f', "format", "FMT", "format of the images: qcow2 (default) or raw; never guessed"},
    {'O', "output-format", "FMT", "format of the output: raw (default) or qcow2"},
    {'o', "options", "KEY=VALUE,...", "of a new qcow2 output, as create has them; 'help' lists them"},
    {'c', "compress", NULL, "write compressed clusters; -o compression_type=zstd chooses how"},
    {'B', "backing", "FILE", "backing file of the output: only what the source has above its own is copied"},
    {'F', "backing-format", "FMT", "format of the output's backing file: qcow2 or raw"},
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print errors only"},
    {'S', "sparse", "SIZE", "zeros from this length on are left out (default 4k); 0: none are"},
    {'n', "no-create", NULL, "write into an output that exists, without making it anew"},
    {ARG_TARGET_IS_ZERO, "target-is-zero", NULL, "with -n: the output reads as zeros already"},
    {'m', "in-flight", "N", "requests of 512 KiB in flight per thread, 1 to 16; default 4"},
    {'W', "out-of-order", NULL, "accepted for qemu-img's sake: writes are never in order"},
    {ARG_THREADS, "threads", "N", "threads that read, compress and write; default: one per CPU"},
    OPEN_ARGUMENT_SHARE,
    {'t', "target-cache", "MODE",
     "of the output: none for direct I/O, writeback to flush at the end, unsafe (default)"},
    OPEN_ARGUMENT_CACHE_BUFFERED('T'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "convert",
    .synopsis = "[-O qcow2|raw] [OPTION]... SOURCE... OUTPUT",
    .text =
        "Copy what a guest would read from an image into a new qcow2 image, a raw file or a block device, on\n"
        "all CPUs. Several sources are put one after the other. An existing file is truncated first; a\n"
        "device, or an output with -n, must be large enough. Backing files and data files that the images\n"
        "name are opened. After an error the output is left as it is then: incomplete.\n",
    .specs = specs,
    .examples = "  shardcow convert -p -O qcow2 -f raw disk.raw disk.qcow2\n"
                "  shardcow convert -O qcow2 -c -o compression_type=zstd disk.qcow2 small.qcow2\n"
                "  shardcow convert -O qcow2 -B base.qcow2 -F qcow2 overlay.qcow2 copy.qcow2\n"
                "  shardcow convert -O raw -t none disk.qcow2 /dev/vg/disk\n",
};

struct source {
    const char *path;
    struct scow_image *image;
    uint64_t bytes;
};

struct file_id {
    uint64_t device, inode;
};

struct convert_args {
    struct open_args open;
    struct convert_options options;
    const char *output_path;
    const char *target_cache;
    enum scow_io_mode target_io_mode;
    enum scow_format format;      /* of the output */
    const char *lists[LISTS_MAX]; /* of -o */
    int list_count;
    struct scow_create_options create; /* what they say */
    const char *backing_name, *backing_format;
    bool compressed, quiet, with_progress, no_create, target_is_zero;

    struct source *sources;
    uint32_t source_count;
    struct file_id *files; /* every file that is read: none of them may be the output */
    size_t file_count;
};

static int remember_file(struct convert_args *args, const char *path)
{
    struct file_id *files;
    struct stat st;

    if (stat(path, &st))
        return 0; /* opening it tells why */
    files = realloc(args->files, (args->file_count + 1) * sizeof *files);
    if (!files)
        return -ENOMEM;
    files[args->file_count++] = (struct file_id){st.st_dev, st.st_ino};
    args->files = files;
    return 0;
}

static int open_child(void *ctx, struct scow_child *child)
{
    const int err = remember_file(ctx, child->path);

    return err ? err : scow_open_child_any(NULL, child);
}

static int refuse_source(void *ctx, uint64_t device, uint64_t inode)
{
    const struct convert_args *args = ctx;

    for (size_t i = 0; i < args->file_count; i++)
        if (args->files[i].device == device && args->files[i].inode == inode) {
            command_error(args->output_path, "it is a source, or a file that a source is based on");
            return -EINVAL;
        }
    return 0;
}

static int open_sources(struct convert_args *args, uint64_t *ret_bytes)
{
    struct scow_open_options options = args->open.options;
    uint64_t total = 0;

    options.open_child = open_child;
    options.open_child_ctx = args;
    options.queues_max = args->options.threads;
    for (uint32_t i = 0; i < args->source_count; i++) {
        struct source *source = &args->sources[i];
        int err = remember_file(args, source->path);
        if (err)
            command_error(source->path, "%s", strerror(-err));
        else
            err = open_image(source->path, &options, &source->image);
        if (err)
            return err;
        source->bytes = round_to_sector(scow_size(source->image));
        if (__builtin_add_overflow(total, source->bytes, &total) || total > INT64_MAX) {
            command_error(source->path, "the sources together are too large");
            return -EFBIG;
        }
    }
    *ret_bytes = total;
    return 0;
}

static int copy_to_raw(struct convert_args *args, struct output *output)
{
    struct progress progress;
    uint64_t base_off = 0;
    int err = 0;

    progress_begin(&progress, args->with_progress && !args->quiet, true, output->size);
    for (uint32_t i = 0; !err && i < args->source_count; i++) {
        args->options.path = args->sources[i].path;
        err = convert_run(args->sources[i].image, output, base_off, &args->options, &progress);
        base_off += args->sources[i].bytes;
    }
    progress_end(&progress, !err);
    return err;
}

static int convert_to_raw(struct convert_args *args, uint64_t bytes)
{
    const bool flush = strcmp(args->target_cache, "unsafe") != 0;
    struct output output;
    int err = output_open(&output, args->output_path, bytes, !args->no_create,
                          args->target_io_mode == SCOW_IO_DIRECT, refuse_source, args);

    if (err)
        return err;
    output.reads_zero = output.reads_zero || args->target_is_zero;
    if (!args->options.sparse_bytes)
        output_make_dense(&output);
    err = copy_to_raw(args, &output);
    if (output_close(&output, flush && !err) && !err)
        err = -EIO;
    if (err)
        command_hint("'%s' is incomplete", args->output_path);
    return err;
}

/* Clusters with parts of two sources can be compressed only when both are read. */
static int copy_all_seams(struct convert_args *args, const struct copy_target *target,
                          struct progress *progress)
{
    struct scow_image **images = calloc(args->source_count, sizeof *images);
    const char **paths = calloc(args->source_count, sizeof *paths);
    int err = -ENOMEM;

    for (uint32_t i = 0; images && paths && i < args->source_count; i++) {
        images[i] = args->sources[i].image;
        paths[i] = args->sources[i].path;
    }
    if (images && paths)
        err = copy_seams(images, paths, args->source_count, target, &args->options, progress);
    else
        command_error(NULL, "out of memory");
    free(images);
    free(paths);
    return err;
}

static int copy_to_qcow2(struct convert_args *args, const struct copy_target *target, uint64_t bytes)
{
    struct progress progress;
    uint64_t base_off = 0;
    int err = 0;

    progress_begin(&progress, args->with_progress && !args->quiet, true, bytes);
    for (uint32_t i = 0; !err && i < args->source_count; i++) {
        args->options.path = args->sources[i].path;
        err = copy_run(args->sources[i].image, target, base_off, i + 1 == args->source_count, &args->options,
                       &progress);
        base_off += args->sources[i].bytes;
    }
    if (!err && target->compressed && args->source_count > 1)
        err = copy_all_seams(args, target, &progress);
    progress_end(&progress, !err);
    return err;
}

static int convert_to_qcow2(struct convert_args *args, uint64_t bytes)
{
    struct convert_target request = {
        .path = args->output_path,
        .bytes = bytes,
        .source_count = args->source_count,
        .create = args->create,
        .backing_name = args->backing_name,
        .backing_format = args->backing_format,
        .no_create = args->no_create,
        .compressed = args->compressed,
        .is_zero = args->target_is_zero,
        .open = args->open.options,
        .refuse = refuse_source,
        .refuse_ctx = args,
    };
    struct copy_target target;
    int err;

    request.open.format = SCOW_FORMAT_QCOW2;
    request.open.io_mode = args->target_io_mode;
    /* One allocates as fast as the data comes, and leaves no gaps at the end of the file. */
    request.open.shards = request.open.shards ? request.open.shards : 1;
    request.open.queues_max = args->options.threads + 1; /* one for the seams */
    request.open.flags = open_args_cache_writethrough(args->target_cache) ? SCOW_OPEN_WRITETHROUGH : 0;
    err = convert_target_open(&request, &target);
    if (err)
        return err;
    err = copy_to_qcow2(args, &target, bytes);
    const int close_err = close_image(target.image, args->output_path);
    err = err ? err : close_err;
    if (err)
        command_hint("'%s' is incomplete", args->output_path);
    return err;
}

static int convert(struct convert_args *args)
{
    uint64_t bytes;
    const int err = open_sources(args, &bytes);

    if (err)
        return err;
    return args->format == SCOW_FORMAT_RAW ? convert_to_raw(args, bytes) : convert_to_qcow2(args, bytes);
}

static int run_convert(struct convert_args *args, char **operands, int operand_count)
{
    int code = EXIT_FAILED;

    args->output_path = operands[operand_count - 1];
    args->source_count = (uint32_t)operand_count - 1;
    args->sources = calloc(args->source_count, sizeof *args->sources);
    if (!args->sources) {
        command_error(NULL, "out of memory");
        return EXIT_FAILED;
    }
    for (uint32_t i = 0; i < args->source_count; i++)
        args->sources[i].path = operands[i];
    if (!convert(args))
        code = command_finish_output();
    for (uint32_t i = 0; i < args->source_count; i++)
        scow_close(args->sources[i].image);
    free(args->sources);
    free(args->files);
    return code;
}

static int take_sparse(struct convert_args *convert, struct arguments *args)
{
    if (arguments_size(args, "-S", 0, SPARSE_BYTES_MAX, &convert->options.sparse_bytes))
        return -1;
    if (convert->options.sparse_bytes % SECTOR_BYTES) {
        arguments_error(args, "-S: '%s' is not a multiple of 512", args->value);
        return -1;
    }
    return 0;
}

static int take_number(struct arguments *args, const char *option, uint64_t max, uint32_t *ret_number)
{
    uint64_t number;

    if (arguments_number(args, option, 1, max, &number))
        return -1;
    *ret_number = (uint32_t)number;
    return 0;
}

/* For later: what they mean depends on -O, which may follow. */
static int take_list(struct convert_args *convert, struct arguments *args)
{
    if (convert->list_count == LISTS_MAX) {
        arguments_error(args, "-o: there are more than %d", LISTS_MAX);
        return -1;
    }
    convert->lists[convert->list_count++] = args->value;
    return 0;
}

static int take_option(struct convert_args *convert, struct arguments *args, int key)
{
    switch (key) {
    case 'O':
        return open_args_format(args, &convert->format);
    case 'o':
        return take_list(convert, args);
    case 'c':
        convert->compressed = true;
        return 0;
    case 'B':
        convert->backing_name = args->value;
        return 0;
    case 'F':
        convert->backing_format = args->value;
        return 0;
    case 'p':
        convert->with_progress = true;
        return 0;
    case 'q':
        convert->quiet = true;
        return 0;
    case 'S':
        return take_sparse(convert, args);
    case 'n':
        convert->no_create = true;
        return 0;
    case 'm':
        return take_number(args, "-m", IN_FLIGHT_MAX, &convert->options.in_flight);
    case 't':
        convert->target_cache = args->value;
        return open_args_cache(args, "-t", &convert->target_io_mode);
    case ARG_TARGET_IS_ZERO:
        convert->target_is_zero = true;
        return 0;
    case ARG_THREADS:
        return take_number(args, "--threads", CPUS_MAX, &convert->options.threads);
    default:
        return 0; /* -W */
    }
}

/* What makes no sense together. */
static int check_options(const struct convert_args *convert, struct arguments *args)
{
    const bool raw = convert->format == SCOW_FORMAT_RAW;

    if (args->operand_count < 2)
        return arguments_error(args, "expecting an image file name and an output file name");
    if (raw && convert->compressed)
        return arguments_error(args, "-c: a raw output holds no compressed data; -O qcow2 does");
    if (raw && (convert->backing_name || convert->list_count))
        return arguments_error(args, "-B and -o are for -O qcow2");
    if (convert->no_create && convert->list_count)
        return arguments_error(args, "-o says how to create an output, and -n not to");
    if (convert->target_is_zero && !convert->no_create)
        return arguments_error(args, "--target-is-zero is for an output that exists: add -n");
    if (convert->target_is_zero && convert->backing_name)
        return arguments_error(args, "--target-is-zero and -B exclude each other");
    if (convert->backing_name && args->operand_count > 2)
        return arguments_error(args, "-B takes one source: several have no common backing file");
    return EXIT_OK;
}

/* Whether -o asks for help, which is given then. */
static bool give_help(const struct convert_args *convert)
{
    for (int i = 0; i < convert->list_count; i++)
        if (create_options_ask_help(convert->lists[i])) {
            create_options_print_help(convert->format);
            return true;
        }
    return false;
}

static int finish_options(struct convert_args *convert, struct arguments *args)
{
    const int code = check_options(convert, args);

    for (int i = 0; code == EXIT_OK && i < convert->list_count; i++)
        if (create_options_parse(convert->lists[i], &convert->create))
            return EXIT_FAILED;
    return code;
}

int command_convert(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct convert_args convert_args = {
        .options = {.threads = cpus_online(),
                    .in_flight = IN_FLIGHT_DEFAULT,
                    .sparse_bytes = SPARSE_BYTES_DEFAULT},
        .target_cache = "unsafe",
        .target_io_mode = SCOW_IO_BUFFERED,
        .format = SCOW_FORMAT_RAW,
        .create = SCOW_CREATE_OPTIONS_INIT,
    };
    int key;

    open_args_init(&convert_args.open);
    convert_args.open.options.io_mode = SCOW_IO_BUFFERED;
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&convert_args.open, &args, key, 'T');
        if (taken < 0 || (!taken && take_option(&convert_args, &args, key)))
            break;
    }
    int code = args.exit_code;
    if (key == 0 && give_help(&convert_args))
        return command_finish_output();
    if (key == 0)
        code = finish_options(&convert_args, &args);
    if (key == 0 && code == EXIT_OK)
        code = run_convert(&convert_args, args.operands, args.operand_count);
    return code;
}
