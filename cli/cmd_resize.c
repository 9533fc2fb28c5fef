/* SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/control_client.h"
#include "cli/json.h"
#include "cli/open_args.h"
#include "cli/sectors.h"
#include "cli/units.h"

enum { ARG_SHRINK = ARG_LONG, ARG_PREALLOCATION, ARG_CONTROL };

static const struct argument specs[] = {
    {ARG_SHRINK, "shrink", NULL, "allow a size below the present one: what lies beyond is lost"},
    {ARG_PREALLOCATION, "preallocation", "MODE", "of the space that is added: off, the only one"},
    {ARG_CONTROL, "control", "SOCKET", "instead of FILE: the disk of the server with this control socket"},
    {'q', "quiet", NULL, "print errors only"},
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_CACHE('t'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "resize",
    .synopsis = "[OPTION]... FILE|--control SOCKET [+|-]SIZE",
    .text =
        "Change the size of the disk in an image: to SIZE, or by SIZE with a sign in front. Space that is\n"
        "added reads as zeros. The partitions and filesystems on the disk are the guest's to adapt.\n",
    .specs = specs,
    .examples = "  shardcow resize disk.qcow2 +10G\n"
                "  shardcow resize --shrink disk.qcow2 8G\n"
                "  shardcow resize --control /run/disk.control +10G\n",
};

struct resize_args {
    struct open_args open;
    const char *path; /* of the image, or of the control socket */
    bool control;
    char sign; /* '+', '-' or 0: the size itself */
    uint64_t bytes;
    bool shrink, quiet;
};

/* Where the size stands among the words: last. 0 if there is none, as in "resize --help". */
static int find_size(int argc, char **argv)
{
    const char *word = argc > 2 ? argv[argc - 1] : "";

    if (*word == '+' || *word == '-')
        word++;
    return isdigit((unsigned char)*word) ? argc - 1 : 0;
}

static int take_size(struct resize_args *resize, struct arguments *args, const char *word)
{
    if (*word == '+' || *word == '-')
        resize->sign = *word++;
    args->value = word;
    return arguments_size(args, "SIZE", 0, INT64_MAX, &resize->bytes);
}

/* The size that the disk is to have. */
static int new_size(const struct resize_args *resize, uint64_t old_bytes, uint64_t *ret_bytes)
{
    uint64_t bytes = resize->bytes;
    bool over = false;

    if (resize->sign == '+')
        over = __builtin_add_overflow(old_bytes, resize->bytes, &bytes) || bytes > INT64_MAX;
    else if (resize->sign == '-')
        bytes = old_bytes > resize->bytes ? old_bytes - resize->bytes : 0;
    if (over) {
        command_error(resize->path, "the new size is too large");
        return -EFBIG;
    }
    if (!bytes) {
        command_error(resize->path, "the new size must be positive; the disk has %llu bytes",
                      (unsigned long long)old_bytes);
        return -EINVAL;
    }
    if (bytes % SECTOR_BYTES) {
        command_error(resize->path, "the new size, %llu bytes, is not a multiple of 512",
                      (unsigned long long)bytes);
        return -EINVAL;
    }
    if (bytes < old_bytes && !resize->shrink) {
        command_error(resize->path, "the disk has %llu bytes, %llu would cut it off",
                      (unsigned long long)old_bytes, (unsigned long long)bytes);
        command_hint("--shrink does so: all data beyond the new end is lost");
        return -EINVAL;
    }
    *ret_bytes = bytes;
    return 0;
}

static int resize_image(struct resize_args *resize)
{
    struct scow_open_options options = resize->open.options;
    struct scow_image *image;
    uint64_t bytes;
    int err;

    options.open_child = scow_open_child_any;
    err = open_image(resize->path, &options, &image);
    if (err == -EAGAIN)
        command_hint(
            "if 'shardcow serve --control SOCKET' is that program: shardcow resize --control SOCKET");
    if (err)
        return err;
    err = new_size(resize, scow_size(image), &bytes);
    if (!err) {
        err = scow_resize(image, bytes, resize->shrink ? SCOW_RESIZE_SHRINK : 0);
        if (err)
            command_library_error(resize->path, err);
    }
    const int close_err = close_image(image, resize->path);
    if (err || close_err)
        return err ? err : close_err;
    if (!resize->quiet)
        printf("Image resized.\n");
    return 0;
}

/* The size that a server's disk has. */
static int served_size(const struct resize_args *resize, int fd, uint64_t *ret_bytes)
{
    json_t *const request = json_object();
    const json_t *size;
    json_t *answer;
    int err = 0;

    json_put(request, "command", json_text("stats"));
    answer = control_ask(fd, resize->path, request);
    if (!answer)
        return -EIO;
    size = json_object_get(json_object_get(answer, "image"), "virtual-size");
    if (!json_is_integer(size)) {
        command_error(resize->path, "the answer is not a server's");
        err = -EIO;
    }
    *ret_bytes = (uint64_t)json_integer_value(size);
    json_decref(answer);
    return err;
}

static int resize_served(const struct resize_args *resize)
{
    const int fd = control_connect(resize->path);
    json_t *request, *answer;
    uint64_t bytes;
    int err;

    if (fd < 0)
        return fd;
    err = served_size(resize, fd, &bytes);
    if (!err)
        err = new_size(resize, bytes, &bytes);
    if (!err) {
        request = json_object();
        json_put(request, "command", json_text("resize"));
        json_put(request, "size", json_count(bytes));
        answer = control_ask(fd, resize->path, request);
        err = answer ? 0 : -EIO;
        json_decref(answer);
    }
    close(fd);
    if (!err && !resize->quiet)
        printf("Disk resized.\n");
    return err;
}

static int take_option(struct resize_args *resize, struct arguments *args, int key)
{
    int mode;

    switch (key) {
    case ARG_SHRINK:
        resize->shrink = true;
        return 0;
    case ARG_PREALLOCATION:
        if (arguments_choice(args, "--preallocation", "off|metadata|falloc|full", &mode))
            return -1;
        if (!mode)
            return 0;
        arguments_error(args, "--preallocation: only off is possible when an image grows");
        return -1;
    case ARG_CONTROL:
        resize->path = args->value;
        resize->control = true;
        return 0;
    case 'q':
        resize->quiet = true;
        return 0;
    default:
        return open_args_take(&resize->open, args, key, 't') < 0 ? -1 : 0;
    }
}

int command_resize(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct resize_args resize = {0};
    /* Apart from the options: a size may begin like one. */
    const int size_index = find_size(argc, argv);
    int key;

    open_args_init(&resize.open);
    while ((key = arguments_next(&args, size_index ? size_index : argc, argv)) > 0)
        if (take_option(&resize, &args, key))
            return args.exit_code;
    if (key < 0)
        return args.exit_code;
    if (args.operand_count != !resize.control || !size_index)
        return arguments_error(&args, resize.control ? "expecting a size"
                                                     : "expecting an image file name and a size");
    if (take_size(&resize, &args, argv[size_index]) || open_args_write(&resize.open, &args))
        return args.exit_code;
    if (resize.control)
        return resize_served(&resize) ? EXIT_FAILED : command_finish_output();
    resize.path = args.operands[0];
    return resize_image(&resize) ? EXIT_FAILED : command_finish_output();
}
