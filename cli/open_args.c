/* SPDX-License-Identifier: MIT */
#include "cli/open_args.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/command.h"

void open_args_init(struct open_args *open)
{
    *open = (struct open_args){.options = SCOW_OPEN_OPTIONS_INIT};
}

int open_args_format(struct arguments *args, enum scow_format *ret_format)
{
    if (!strcmp(args->value, "qcow2")) {
        *ret_format = SCOW_FORMAT_QCOW2;
    } else if (!strcmp(args->value, "raw")) {
        *ret_format = SCOW_FORMAT_RAW;
    } else {
        arguments_error(args, "format '%s' is not supported: qcow2 and raw are", args->value);
        return -1;
    }
    return 0;
}

int open_args_cache(struct arguments *args, const char *option, enum scow_io_mode *ret_mode)
{
    /* What a flush and a close do is open_args_cache_writethrough()'s matter. */
    static const enum scow_io_mode modes[] = {
        SCOW_IO_AUTO,     SCOW_IO_DIRECT,   SCOW_IO_DIRECT,   SCOW_IO_DIRECT,
        SCOW_IO_BUFFERED, SCOW_IO_BUFFERED, SCOW_IO_BUFFERED, SCOW_IO_BUFFERED,
    };
    int index;

    if (arguments_choice(args, option, "auto|none|direct|directsync|writeback|writethrough|unsafe|buffered",
                         &index))
        return -1;
    *ret_mode = modes[index];
    return 0;
}

bool open_args_cache_writethrough(const char *mode)
{
    return !strcmp(mode, "writethrough") || !strcmp(mode, "directsync");
}

int open_args_write(struct open_args *open, struct arguments *args)
{
    if (open->options.flags & SCOW_OPEN_NO_LOCK) {
        arguments_error(args, "-U (--force-share) is for reading only");
        return -1;
    }
    open->options.flags |= SCOW_OPEN_WRITE;
    if (open->writethrough)
        open->options.flags |= SCOW_OPEN_WRITETHROUGH;
    return 0;
}

static int take_backend(struct open_args *open, struct arguments *args)
{
    static const enum scow_backend backends[] = {SCOW_BACKEND_AUTO, SCOW_BACKEND_IO_URING,
                                                 SCOW_BACKEND_THREADS, SCOW_BACKEND_NULL};
    int index;

    if (arguments_choice(args, "--backend", "auto|io_uring|threads|null", &index))
        return -1;
    open->options.backend = backends[index];
    return 1;
}

static int take_shards(struct open_args *open, struct arguments *args)
{
    uint64_t number;

    if (arguments_number(args, "--shards", 1, 256, &number))
        return -1;
    open->options.shards = (uint32_t)number;
    return 1;
}

static int take_slice_bytes(struct open_args *open, struct arguments *args)
{
    uint64_t bytes;

    if (arguments_size(args, "--slice-bytes", 512, 65536, &bytes))
        return -1;
    if (bytes & (bytes - 1)) {
        arguments_error(args, "--slice-bytes: %s is not a power of two", args->value);
        return -1;
    }
    open->options.slice_bytes = (uint32_t)bytes;
    return 1;
}

int open_args_take(struct open_args *open, struct arguments *args, int key, int cache_letter)
{
    if (key == cache_letter) {
        open->writethrough = open_args_cache_writethrough(args->value);
        return open_args_cache(args, "--cache", &open->options.io_mode) ? -1 : 1;
    }
    switch (key) {
    case 'f':
        open->format_given = true;
        return open_args_format(args, &open->options.format) ? -1 : 1;
    case 'U':
        open->options.flags |= SCOW_OPEN_NO_LOCK;
        return 1;
    case ARG_BACKEND:
        return take_backend(open, args);
    case ARG_SHARDS:
        return take_shards(open, args);
    case ARG_CACHE_BYTES:
        return arguments_size(args, "--cache-bytes", 1, UINT64_MAX, &open->options.cache_bytes) ? -1 : 1;
    case ARG_SLICE_BYTES:
        return take_slice_bytes(open, args);
    case ARG_IMAGE_OPTS:
        arguments_error(args, "--image-opts is not supported; name the image by path and its format by -f");
        return -1;
    default:
        return 0;
    }
}

/* Notes a backing file whose format is not recorded, for the hint, and leaves the decision to the caller's
 * callback. */
struct child_watch {
    scow_open_child_fn *open_child;
    void *ctx;
    bool format_missing;
    char parent[1024], name[1024];
};

static int watch_child(void *ctx, struct scow_child *child)
{
    struct child_watch *watch = ctx;

    if (child->role == SCOW_CHILD_BACKING && child->format == SCOW_FORMAT_NONE) {
        watch->format_missing = true;
        snprintf(watch->parent, sizeof watch->parent, "%s",
                 child->parent_path ? child->parent_path : "IMAGE");
        snprintf(watch->name, sizeof watch->name, "%s", child->name);
    }
    return watch->open_child(watch->ctx, child);
}

static bool has_qcow2_magic(const char *path)
{
    char magic[4] = "";
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return true; /* not what is wrong */
    const bool found =
        read(fd, magic, sizeof magic) == sizeof magic && !memcmp(magic, "QFI\xfb", sizeof magic);
    close(fd);
    return found;
}

void open_hint_backing_format(const char *image_path, const char *backing_name)
{
    command_hint("qemu-img rebase -u -F FORMAT -b '%s' '%s' records the format", backing_name, image_path);
}

/* What the library's message does not say because it knows no command line. */
static void open_hint(const char *path, const struct scow_open_options *options,
                      const struct child_watch *watch, int err)
{
    if (err == -EAGAIN && options->flags & SCOW_OPEN_WRITE)
        command_hint("another program has the image open; stop it first");
    else if (err == -EAGAIN && !(options->flags & SCOW_OPEN_NO_LOCK))
        command_hint("a program has the image open for writing; stop it, or read with -U (--force-share) and "
                     "expect inconsistent data");
    else if (watch->format_missing)
        open_hint_backing_format(watch->parent, watch->name);
    else if (err == -EINVAL && options->format == SCOW_FORMAT_QCOW2 && !has_qcow2_magic(path))
        command_hint("formats are never guessed: if '%s' is a raw image, say so with -f raw", path);
}

/* Once per run: where io_uring is forbidden the thread pool takes over, and people who measure should know.
 */
static void tell_backend(const struct scow_image *image, const struct scow_open_options *options)
{
    struct scow_info info = SCOW_INFO_INIT;
    static bool told;

    if (told || (options->flags & SCOW_OPEN_NO_IO) || scow_get_info(image, &info) || !info.backend_why)
        return;
    told = true;
    fprintf(stderr, "shardcow: note: %s: using the thread pool instead\n", info.backend_why);
}

int open_image(const char *path, const struct scow_open_options *options, struct scow_image **ret_image)
{
    struct child_watch watch = {.open_child = options->open_child, .ctx = options->open_child_ctx};
    struct scow_open_options watched = *options;
    int err;

    if (options->open_child) {
        watched.open_child = watch_child;
        watched.open_child_ctx = &watch;
    }
    err = scow_open(path, &watched, ret_image);
    if (err) {
        command_library_error(NULL, err);
        open_hint(path, options, &watch, err);
    } else {
        tell_backend(*ret_image, options);
    }
    return err;
}

int close_image(struct scow_image *image, const char *path)
{
    const int err = scow_close(image);

    if (err)
        command_library_error(path, err);
    return err;
}
