/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/create_options.h"
#include "cli/open_args.h"
#include "cli/output.h"
#include "cli/sectors.h"
#include "cli/units.h"

#define PATH_BYTES 4096
#define LISTS_MAX 32

static const struct argument specs[] = {
    {'f', "format", "FMT", "format of the new image: qcow2 (default) or raw"},
    {'o', "options", "KEY=VALUE,...", "options of the format; '-o help' lists them"},
    {'b', "backing", "FILE", "image below: what is not written here is read there"},
    {'F', "backing-format", "FMT", "its format; has to be given with -b"},
    {'u', "backing-unsafe", NULL, "do not open the image below: it may not exist yet; needs SIZE"},
    {'q', "quiet", NULL, "print errors only"},
    {0},
};

static const struct usage usage = {
    .command = "create",
    .synopsis = "[-f FMT] [-o KEY=VALUE,...] [-b FILE -F FMT [-u]] [-q] FILE [SIZE]",
    .text =
        "Create an image of SIZE bytes, or of the size of the image below. An existing file is replaced,\n"
        "unless a program has it open; a block device is used as it is. The name of the image below, and\n"
        "that of a data file, are recorded as given and mean files relative to the new image's folder.\n",
    .specs = specs,
    .examples = "  shardcow create disk.qcow2 20G\n"
                "  shardcow create -b base.qcow2 -F qcow2 overlay.qcow2\n"
                "  shardcow create -o cluster_size=128k,extended_l2=on disk.qcow2 1T\n"
                "  shardcow create -o preallocation=falloc disk.qcow2 20G\n",
};

struct create_args {
    struct create_options options;
    const char *lists[LISTS_MAX]; /* of -o, taken when the format is known */
    int list_count;
    const char *backing_name, *backing_format;
    bool backing_unsafe, quiet;

    const char *path;
};

/* ---- the image below ---- */

/* Whether path is the file that is about to be replaced. */
static bool is_target(const struct create_args *create, const char *path)
{
    struct stat target, other;

    return !stat(create->path, &target) && !stat(path, &other) && target.st_dev == other.st_dev &&
           target.st_ino == other.st_ino;
}

static int refuse_target(const struct create_args *create)
{
    command_error(create->path, "the new image would replace a file that it is based on");
    return -EINVAL;
}

static int open_child(void *ctx, struct scow_child *child)
{
    return is_target(ctx, child->path) ? refuse_target(ctx) : scow_open_child_any(NULL, child);
}

static int backing_options(const struct create_args *create, struct scow_open_options *ret)
{
    const char *format = create->options.image.backing_format;

    *ret = (struct scow_open_options)SCOW_OPEN_OPTIONS_INIT;
    ret->flags = SCOW_OPEN_NO_LOCK;
    ret->open_child = open_child;
    ret->open_child_ctx = (void *)create;
    if (!strcmp(format, "raw")) {
        ret->format = SCOW_FORMAT_RAW;
    } else if (strcmp(format, "qcow2") != 0) {
        command_error(format, "this backing format cannot be opened: qcow2 and raw can");
        command_hint("-u records it without opening the file");
        return -ENOTSUP;
    }
    return 0;
}

/* Opens the whole chain, so that a mistake shows now, and takes its size where none is given. Without locks:
 * an overlay may be made while a program writes to the image below. */
static int look_at_backing(struct create_args *create)
{
    struct scow_open_options options;
    struct scow_image *image;
    char path[PATH_BYTES];
    int err = scow_resolve_name(create->path, create->options.image.backing_name, path, sizeof path);

    if (err) {
        command_library_error(NULL, err);
        return err;
    }
    if (is_target(create, path))
        return refuse_target(create);
    err = backing_options(create, &options);
    if (!err)
        err = open_image(path, &options, &image);
    if (err)
        return err;
    if (!create->options.size_given)
        create->options.image.virtual_size = scow_size(image);
    create->options.size_given = true;
    scow_close(image);
    return 0;
}

/* ---- raw ---- */

static int allow_any(void *ctx, uint64_t device, uint64_t inode)
{
    (void)ctx, (void)device, (void)inode;
    return 0;
}

static int fill_raw(struct output *output, enum scow_preallocation mode)
{
    uint64_t failed_off = 0;
    int err = 0;

    if (mode == SCOW_PREALLOCATION_OFF)
        return 0;
    output_make_dense(output);
    if (mode == SCOW_PREALLOCATION_FULL || !output->reads_zero)
        err = output_zero(output, 0, output->size, &failed_off);
    if (err)
        command_error(output->path, "writing at offset %llu failed: %s", (unsigned long long)failed_off,
                      strerror(-err));
    return err;
}

static int create_raw(const struct create_args *create)
{
    const struct scow_create_options *image = &create->options.image;
    const bool existed = !access(create->path, F_OK);
    struct output output;
    int err;

    if (image->preallocation == SCOW_PREALLOCATION_METADATA) {
        command_error(create->path, "a raw image has no metadata to preallocate: off, falloc or full");
        return -EINVAL;
    }
    err = output_open(&output, create->path, round_to_sector(image->virtual_size), true, false, allow_any,
                      NULL);
    if (!err) {
        err = fill_raw(&output, image->preallocation);
        const int close_err = output_close(&output, true);
        err = err ? err : close_err;
    }
    if (err && err != -EAGAIN && !existed) /* held by a program: not ours to remove */
        unlink(create->path);
    return err;
}

/* ---- the command ---- */

static int run_create(struct create_args *create)
{
    const struct scow_create_options *image = &create->options.image;
    int err = 0;

    if (image->backing_name && !create->backing_unsafe)
        err = look_at_backing(create);
    if (err)
        return EXIT_FAILED;
    if (!create->quiet)
        create_options_print(&create->options, create->path);
    if (create->options.format == SCOW_FORMAT_RAW) {
        err = create_raw(create);
    } else {
        err = scow_create(create->path, image);
        if (err)
            command_library_error(NULL, err);
        if (err == -EAGAIN)
            command_hint("a program has the file open; stop it, or choose another name");
    }
    return err || command_finish_output() ? EXIT_FAILED : EXIT_OK;
}

static int take_option(struct create_args *create, struct arguments *args, int key)
{
    switch (key) {
    case 'f':
        return open_args_format(args, &create->options.format);
    case 'o':
        if (create->list_count == LISTS_MAX) {
            arguments_error(args, "-o is given too often: put the options into one list");
            return -1;
        }
        create->lists[create->list_count++] = args->value;
        return 0;
    case 'b':
        create->backing_name = args->value;
        return 0;
    case 'F':
        create->backing_format = args->value;
        return 0;
    case 'u':
        create->backing_unsafe = true;
        return 0;
    default:
        create->quiet = true;
        return 0;
    }
}

/* -o lists, then what -b and -F say. */
static int take_lists(struct create_args *create, struct arguments *args)
{
    struct scow_create_options *image = &create->options.image;

    for (int i = 0; i < create->list_count; i++)
        if (create_options_take(&create->options, create->lists[i])) {
            args->exit_code = EXIT_FAILED;
            return -1;
        }
    if (create->backing_name)
        image->backing_name = create->backing_name;
    if (create->backing_format)
        image->backing_format = create->backing_format;
    if (create->options.format == SCOW_FORMAT_RAW && (image->backing_name || image->backing_format)) {
        arguments_error(args, "a raw image has no backing file");
        return -1;
    }
    if (image->backing_name && !image->backing_name[0]) {
        arguments_error(args, "-b: an empty name");
        return -1;
    }
    if (image->backing_name && !image->backing_format) {
        arguments_error(args, "-b needs -F: formats are never guessed");
        return -1;
    }
    return 0;
}

static int take_operands(struct create_args *create, struct arguments *args)
{
    struct create_options *o = &create->options;

    if (args->operand_count < 1 || args->operand_count > 2) {
        arguments_error(args, "expecting one image file name, and perhaps a size");
        return -1;
    }
    create->path = args->operands[0];
    if (args->operand_count == 2) {
        if (o->size_given) {
            arguments_error(args, "the size is given twice: as an operand and by -o");
            return -1;
        }
        args->value = args->operands[1];
        if (arguments_size(args, "SIZE", 0, INT64_MAX, &o->image.virtual_size))
            return -1;
        o->size_given = true;
    }
    if (!o->size_given && (!o->image.backing_name || create->backing_unsafe)) {
        arguments_error(args, "a size is needed");
        return -1;
    }
    return 0;
}

int command_create(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct create_args create = {0};
    int key;

    create_options_init(&create.options);
    while ((key = arguments_next(&args, argc, argv)) > 0)
        if (take_option(&create, &args, key))
            return args.exit_code;
    if (key < 0)
        return args.exit_code;
    for (int i = 0; i < create.list_count; i++)
        if (create_options_ask_help(create.lists[i])) {
            create_options_print_help(create.options.format);
            return command_finish_output();
        }
    if (take_lists(&create, &args) || take_operands(&create, &args))
        return args.exit_code;
    return run_create(&create);
}
