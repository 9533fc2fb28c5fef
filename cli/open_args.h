/* SPDX-License-Identifier: MIT */
/* The options by which every command says how an image is to be opened. */
#ifndef CLI_OPEN_ARGS_H
#define CLI_OPEN_ARGS_H

#include <stdbool.h>

#include "shardcow.h"
#include "cli/arguments.h"

enum {
    ARG_BACKEND = ARG_OPEN_FIRST,
    ARG_SHARDS,
    ARG_CACHE_BYTES,
    ARG_SLICE_BYTES,
    ARG_IMAGE_OPTS,
};

/* Entries for a table of struct argument. The cache mode's letter differs between commands: 't' or 'T'. */
#define OPEN_ARGUMENT_FORMAT                                                                                 \
    {                                                                                                        \
        'f', "format", "FMT", "format of the image: qcow2 (default) or raw; never guessed"                   \
    }
#define OPEN_ARGUMENT_SHARE                                                                                  \
    {                                                                                                        \
        'U', "force-share", NULL, "take no lock: read an image that a writer has open"                       \
    }
#define OPEN_ARGUMENT_CACHE(letter)                                                                          \
    {                                                                                                        \
        letter, "cache", "MODE", "none or direct, or writeback or buffered; default: direct where possible"  \
    }
/* The same for commands that read everything once: the page cache reads ahead, and qemu-img uses it. */
#define OPEN_ARGUMENT_CACHE_BUFFERED(letter)                                                                 \
    {                                                                                                        \
        letter, "cache", "MODE", "none or direct, or writeback or buffered (default)"                        \
    }
#define OPEN_ARGUMENTS_ENGINE                                                                                \
    {ARG_BACKEND, "backend", "NAME", "auto, io_uring or threads (null: benchmarks only)"},                   \
        {ARG_SHARDS, "shards", "N", "threads for metadata, 1 to 256; default: one per CPU"},                 \
        {ARG_CACHE_BYTES, "cache-bytes", "SIZE", "bound of the metadata cache; default: as needed, 32 MiB"}, \
        {ARG_SLICE_BYTES, "slice-bytes", "SIZE", "unit of that cache: 512 to 64k; default 4k"},              \
    {                                                                                                        \
        ARG_IMAGE_OPTS, "image-opts", NULL, NULL                                                             \
    }

struct open_args {
    struct scow_open_options options;
    bool format_given;
    bool writethrough; /* of the cache mode; in options.flags only once the image is to be written */
};

/* qcow2, locked, direct where possible, no child files (open_child NULL). */
void open_args_init(struct open_args *open);

/* Takes one option. 1: it was one of the above (cache_letter says which letter is the cache mode's);
 * 0: not ours; -1: reported, args->exit_code is set. */
int open_args_take(struct open_args *open, struct arguments *args, int key, int cache_letter);

/* "qcow2" or "raw" into *ret_format; reports and returns -1 otherwise. */
int open_args_format(struct arguments *args, enum scow_format *ret_format);

/* A cache mode, as qemu-img names them, into an I/O mode: none, directsync, direct → direct; writeback,
 * writethrough, unsafe, buffered → buffered; auto → auto. Reports and returns -1 otherwise. */
int open_args_cache(struct arguments *args, const char *option, enum scow_io_mode *ret_mode);

/* Whether a cache mode makes every write durable at once: writethrough and directsync do. */
bool open_args_cache_writethrough(const char *mode);

/* Makes the options a writer's. Reports and returns -1, with args->exit_code set, where they are for readers
 * only. */
int open_args_write(struct open_args *open, struct arguments *args);

/* scow_open() with the error reported and, where there is one, a hint at what to do. 0 or a negative errno.
 */
int open_image(const char *path, const struct scow_open_options *options, struct scow_image **ret_image);

/* scow_close() with the error reported: what was written may be incomplete. NULL is allowed. 0 or a negative
 * errno. */
int close_image(struct scow_image *image, const char *path);

/* The hint for a backing file whose format its image does not record. */
void open_hint_backing_format(const char *image_path, const char *backing_name);

#endif
