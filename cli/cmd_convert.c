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
#include "cli/convert_threads.h"
#include "cli/cpus.h"
#include "cli/open_args.h"
#include "cli/output.h"
#include "cli/sectors.h"

#define SPARSE_BYTES_DEFAULT 4096
#define SPARSE_BYTES_MAX (16ull << 20)
#define IN_FLIGHT_DEFAULT 4
#define IN_FLIGHT_MAX 16

enum { ARG_THREADS = ARG_LONG };

static const struct argument specs[] = {
    {'f', "format", "FMT", "format of the images: qcow2 (default) or raw; never guessed"},
    {'O', "output-format", "FMT", "format of the output: raw (default); no other in this version"},
    {'p', "progress", NULL, "show progress"},
    {'q', "quiet", NULL, "print errors only"},
    {'S', "sparse", "SIZE", "zeros from this length on become holes (default 4k); 0: none do"},
    {'n', "no-create", NULL, "write into an output that exists, without truncating it"},
    {'m', "in-flight", "N", "reads of 512 KiB in flight per thread, 1 to 16; default 4"},
    {'W', "out-of-order", NULL, "accepted for qemu-img's sake: writes are never in order"},
    {ARG_THREADS, "threads", "N", "threads that read and write; default: one per CPU"},
    OPEN_ARGUMENT_SHARE,
    {'t', "target-cache", "MODE",
     "of the output: none for direct I/O, writeback to flush at the end, unsafe (default)"},
    OPEN_ARGUMENT_CACHE_BUFFERED('T'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "convert",
    .synopsis = "-O raw [OPTION]... SOURCE... OUTPUT",
    .text =
        "Copy what a guest would read from an image into a raw file or a block device, on all CPUs. Several\n"
        "sources are put one after the other. An existing file is truncated first; a device, or a file with\n"
        "-n, must be large enough. Backing files and data files that the images name are opened. After an\n"
        "error the output is left as it is then: incomplete.\n",
    .specs = specs,
    .examples = "  shardcow convert -p -O raw disk.qcow2 disk.raw\n"
                "  shardcow convert -O raw -t none disk.qcow2 /dev/vg/disk\n"
                "  shardcow convert -S 0 -f raw sparse.raw full.raw\n",
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
    bool quiet, with_progress, no_create;

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
            command_error(source->path, "the sources together are too large for a file");
            return -EFBIG;
        }
    }
    *ret_bytes = total;
    return 0;
}

static int copy_sources(struct convert_args *args, struct output *output)
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

static int convert(struct convert_args *args)
{
    const bool direct = !strcmp(args->target_cache, "none") || !strcmp(args->target_cache, "directsync");
    const bool flush = strcmp(args->target_cache, "unsafe") != 0;
    struct output output;
    uint64_t bytes;
    int err = open_sources(args, &bytes);

    if (!err)
        err = output_open(&output, args->output_path, bytes, !args->no_create, direct, refuse_source, args);
    if (err)
        return err;
    if (!args->options.sparse_bytes)
        output_make_dense(&output);
    err = copy_sources(args, &output);
    if (output_close(&output, flush && !err) && !err)
        err = -EIO;
    if (err)
        command_hint("'%s' is incomplete", args->output_path);
    return err;
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

static int take_option(struct convert_args *convert, struct arguments *args, int key)
{
    enum scow_io_mode ignored;

    switch (key) {
    case 'O':
        if (!strcmp(args->value, "raw"))
            return 0;
        arguments_error(args,
                        "output format '%s' is not available in this version: only raw is; 'qemu-img "
                        "convert' writes others",
                        args->value);
        return -1;
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
        return open_args_cache(args, "-t", &ignored);
    case ARG_THREADS:
        return take_number(args, "--threads", CPUS_MAX, &convert->options.threads);
    default:
        return 0; /* -W */
    }
}

int command_convert(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct convert_args convert_args = {
        .options = {.threads = cpus_online(),
                    .in_flight = IN_FLIGHT_DEFAULT,
                    .sparse_bytes = SPARSE_BYTES_DEFAULT},
        .target_cache = "unsafe",
    };
    int key;

    open_args_init(&convert_args.open);
    convert_args.open.options.io_mode = SCOW_IO_BUFFERED;
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&convert_args.open, &args, key, 'T');
        if (taken < 0 || (!taken && take_option(&convert_args, &args, key)))
            return args.exit_code;
    }
    if (key < 0)
        return args.exit_code;
    if (args.operand_count < 2)
        return arguments_error(&args, "expecting an image file name and an output file name");
    return run_convert(&convert_args, args.operands, args.operand_count);
}
