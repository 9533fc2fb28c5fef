/* SPDX-License-Identifier: MIT */
/* Opening an image with everything below it, and closing it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "engine/image.h"
#include "engine/layer_open.h"
#include "engine/open_write.h"
#include "engine/options.h"
#include "engine/queue.h"
#include "engine/shard.h"
#include "io/image_lock.h"

#define SLICE_BYTES_DEFAULT 4096u
#define SLICE_BYTES_MIN 512u
#define SLICE_BYTES_MAX (64u << 10)
#define CACHE_BYTES_DEFAULT (32ull << 20)
/* Per shard, by default, even where a small image has fewer slices: it may grow. */
#define SLOTS_MIN 8u
#define COMMIT_INTERVAL_MS_DEFAULT 1000u
#define OPEN_FLAGS_KNOWN                                                                                     \
    (SCOW_OPEN_WRITE | SCOW_OPEN_NO_LOCK | SCOW_OPEN_NO_IO | SCOW_OPEN_BACKING_BUFFERED |                    \
     SCOW_OPEN_WRITETHROUGH | SCOW_OPEN_REPAIR | SCOW_OPEN_NO_PUNCH)

/* ---- options ---- */

static int check_option(const char *name, uint64_t value, uint64_t max)
{
    return value <= max ? 0
                        : error_set(-EINVAL, "open options: %s is %" PRIu64 ", above the limit of %" PRIu64,
                                    name, value, max);
}

static int check_options(const struct scow_open_options *o)
{
    int r;

    for (size_t i = 0; i < ARRAY_COUNT(o->reserved); i++)
        if (o->reserved[i])
            return error_set(-EINVAL, "open options: a reserved field is set");
    if (o->flags & ~OPEN_FLAGS_KNOWN)
        return error_set(-EINVAL, "open options: unknown flags 0x%" PRIx32, o->flags & ~OPEN_FLAGS_KNOWN);
    if (o->flags & SCOW_OPEN_WRITE && o->flags & SCOW_OPEN_NO_IO && !(o->flags & SCOW_OPEN_REPAIR))
        return error_set(-EINVAL, "open options: SCOW_OPEN_WRITE and SCOW_OPEN_NO_IO exclude each other");
    if (o->flags & SCOW_OPEN_REPAIR && !(o->flags & SCOW_OPEN_WRITE))
        return error_set(-EINVAL, "open options: SCOW_OPEN_REPAIR needs SCOW_OPEN_WRITE");
    if (o->format != SCOW_FORMAT_QCOW2 && o->format != SCOW_FORMAT_RAW)
        return error_set(-EINVAL, "open options: format %d is unknown: formats are named, never guessed",
                         (int)o->format);
    if (o->slice_bytes && (!is_power_of_two(o->slice_bytes) || o->slice_bytes < SLICE_BYTES_MIN))
        return error_set(-EINVAL,
                         "open options: slice_bytes %" PRIu32 " is not a power of two of at least %u",
                         o->slice_bytes, SLICE_BYTES_MIN);
    if ((r = check_option("backend", o->backend, SCOW_BACKEND_NULL)) < 0 ||
        (r = check_option("detect_zeroes", o->detect_zeroes, SCOW_DETECT_ZEROES_UNMAP)) < 0 ||
        (r = check_option("io_mode", o->io_mode, SCOW_IO_BUFFERED)) < 0 ||
        (r = check_option("slice_bytes", o->slice_bytes, SLICE_BYTES_MAX)) < 0 ||
        (r = check_option("shards", o->shards, SHARDS_MAX)) < 0 ||
        (r = check_option("queues_max", o->queues_max, QUEUES_MAX)) < 0 ||
        (r = check_option("chain_depth_max", o->chain_depth_max, CHAIN_DEPTH_MAX)) < 0)
        return r;
    return 0;
}

static void fill_defaults(struct scow_open_options *o)
{
    if (!o->slice_bytes)
        o->slice_bytes = SLICE_BYTES_DEFAULT;
    if (!o->queues_max)
        o->queues_max = QUEUES_DEFAULT;
    if (!o->commit_interval_ms)
        o->commit_interval_ms = COMMIT_INTERVAL_MS_DEFAULT;
    if (!o->chain_depth_max)
        o->chain_depth_max = CHAIN_DEPTH_DEFAULT;
    if (!o->shards) {
        const long cpus = sysconf(_SC_NPROCESSORS_ONLN);

        o->shards = (uint32_t)MAX(1, MIN(cpus, (long)SHARDS_DEFAULT_MAX));
    }
}

static int choose_backend(struct scow_image *image)
{
    const enum scow_backend wanted = image->options.backend;
    int r;

    image->metadata_backend = BACKEND_POOL;
    if (wanted != SCOW_BACKEND_THREADS) {
        r = ring_backend_probe();
        if (r == 0) {
            image->metadata_backend = BACKEND_RING;
        } else if (wanted == SCOW_BACKEND_IO_URING) {
            return error_set(r, "io_uring is not available: io_uring_setup: %s", strerror(-r));
        } else {
            image->backend_why =
                r == -ENOSYS  ? "the kernel has no io_uring"
                : r == -EPERM ? "io_uring_setup is forbidden (seccomp profile or kernel.io_uring_disabled)"
                              : "io_uring_setup failed";
        }
    }
    image->backend = wanted == SCOW_BACKEND_NULL ? BACKEND_NULL : image->metadata_backend;
    return 0;
}

/* ---- files ---- */

static enum file_mode file_mode_of(const struct scow_image *image, bool backing)
{
    if (backing && (image->options.flags & SCOW_OPEN_BACKING_BUFFERED))
        return FILE_BUFFERED;
    return image->options.io_mode == SCOW_IO_DIRECT     ? FILE_DIRECT
           : image->options.io_mode == SCOW_IO_BUFFERED ? FILE_BUFFERED
                                                        : FILE_AUTO;
}

static void add_file(struct scow_image *image, struct file *file)
{
    invariant(image->file_count < ARRAY_COUNT(image->files));
    file->index = image->file_count;
    image->files[image->file_count++] = file;
}

/* The locks of a reader. A format with metadata forbids others to write and resize; so does being somebody's
 * backing file; a data file may not change its size; a raw image on its own forbids nothing (QEMU block.c,
 * default permissions). A writer uses what it needs besides. */
static int lock_file(const struct scow_image *image, struct file *file, enum scow_format format,
                     uint32_t depth, bool data_file)
{
    const bool writes = image->writable && (depth == 0 || (depth == 1 && data_file));
    uint32_t used = IMAGE_READ, denied = IMAGE_WRITE | IMAGE_RESIZE;

    if (image->options.flags & SCOW_OPEN_NO_LOCK)
        return 0;
    if (data_file)
        denied = IMAGE_RESIZE;
    else if (format == SCOW_FORMAT_RAW && depth == 0)
        denied = 0;
    if (writes)
        used |= format == SCOW_FORMAT_RAW && !data_file ? IMAGE_WRITE : IMAGE_WRITE | IMAGE_RESIZE;
    return image_lock(file, used, denied);
}

static int check_cycle(const struct scow_image *image, const struct file *file)
{
    for (uint32_t i = 0; i < image->file_count; i++) {
        const struct file *f = image->files[i];

        if (f->dev == file->dev && f->ino == file->ino && f->block_device == file->block_device && f->fd >= 0)
            return error_set(-ELOOP, "%s is in the chain already: it cannot be its own backing or data file",
                             file_name(file));
    }
    return 0;
}

static enum scow_format format_by_name(const char *name)
{
    if (name && !strcmp(name, "qcow2"))
        return SCOW_FORMAT_QCOW2;
    if (name && !strcmp(name, "raw"))
        return SCOW_FORMAT_RAW;
    return SCOW_FORMAT_NONE;
}

static const char *role_name(enum scow_child_role role)
{
    return role == SCOW_CHILD_BACKING ? "backing file" : "data file";
}

/* Ask the embedder; returns what to open in child. */
static int ask_for_child(const struct scow_image *image, struct scow_child *child)
{
    char quoted[256];
    int r = -EPERM;

    error_quote(quoted, sizeof quoted, child->name, strlen(child->name));
    if (image->options.open_child)
        r = image->options.open_child(image->options.open_child_ctx, child);
    if (r < 0) {
        if (child->fd >= 0)
            close(child->fd);
        return error_set(r, "%s \"%s\": opening it was not allowed", role_name(child->role), quoted);
    }
    if (child->format != SCOW_FORMAT_QCOW2 && child->format != SCOW_FORMAT_RAW) {
        if (child->fd >= 0)
            close(child->fd);
        return error_set(
            -EINVAL, "%s \"%s\": the image does not say that it is qcow2 or raw, and formats are not guessed",
            role_name(child->role), quoted);
    }
    return 0;
}

static int open_child(struct scow_image *image, struct layer *parent, enum scow_child_role role,
                      const char *name, enum scow_format format, struct file **ret_file,
                      enum scow_format *ret_format)
{
    char path[4096];
    const char *parent_path = parent->file->path;
    struct scow_child child = {.size = sizeof child,
                               .role = role,
                               .depth = parent->depth + 1,
                               .name = name,
                               .path = path,
                               .parent_path = parent_path,
                               .fd = -1,
                               .format = format};
    /* Only the image itself, and its own data file, are ever written. */
    const uint32_t flags =
        image->writable && role == SCOW_CHILD_DATA_FILE && parent->depth == 0 ? FILE_WRITE : 0;
    struct file *file = NULL;
    int r = scow_resolve_name(parent_path, name, path, sizeof path);

    if (r == 0)
        r = ask_for_child(image, &child);
    if (r < 0)
        return r;
    if (child.fd >= 0) {
        r = image->env->ops->file_open_fd(image->env, child.fd, path,
                                          file_mode_of(image, role == SCOW_CHILD_BACKING), flags, &file);
        close(child.fd);
    } else {
        r = image->env->ops->file_open(image->env, path, file_mode_of(image, role == SCOW_CHILD_BACKING),
                                       flags, &file);
    }
    if (r == 0)
        r = check_cycle(image, file);
    if (r == 0)
        r = lock_file(image, file, child.format, child.depth, role == SCOW_CHILD_DATA_FILE);
    if (r < 0) {
        file_close(file);
        return error_prefix(r, "%s", role_name(role));
    }
    *ret_file = file;
    *ret_format = child.format;
    return 0;
}

static int open_data_file(struct scow_image *image, struct layer *layer)
{
    enum scow_format format;
    struct file *file;
    int r;

    if (!layer->has_data_file)
        return 0;
    if (!layer->data_file_name)
        return error_set(-EINVAL, "%s: header: the image has an external data file but does not name it",
                         file_name(layer->file));
    r = open_child(image, layer, SCOW_CHILD_DATA_FILE, layer->data_file_name, SCOW_FORMAT_RAW, &file,
                   &format);
    if (r < 0)
        return r;
    if (format != SCOW_FORMAT_RAW) {
        file_close(file);
        return error_set(-EINVAL, "data file: only the raw format is possible");
    }
    layer->data_file = file;
    add_file(image, file);
    return 0;
}

static int add_layer(struct scow_image *image, struct file *file, enum scow_format format)
{
    const uint32_t depth = image->layer_count;
    struct layer *layer;
    const struct layer_options options = {.slice_bytes = image->options.slice_bytes,
                                          .no_io = image->no_io,
                                          .grows = image->writable && depth == 0};
    int r = layer_open(file, format, depth, &options, &layer);

    if (r < 0)
        return r;
    image->layers[image->layer_count++] = layer;
    add_file(image, file);
    if (depth)
        image->layers[depth - 1]->backing = layer;
    return image->no_io ? 0 : open_data_file(image, layer);
}

static int open_chain(struct scow_image *image)
{
    for (;;) {
        struct layer *last = image->layers[image->layer_count - 1];
        enum scow_format format;
        struct file *file;
        int r;

        if (!last->backing_name)
            return 0;
        if (image->layer_count > image->options.chain_depth_max)
            return error_set(-ELOOP, "%s: the chain of backing files is longer than %" PRIu32,
                             file_name(last->file), image->options.chain_depth_max);
        r = open_child(image, last, SCOW_CHILD_BACKING, last->backing_name,
                       format_by_name(last->backing_format), &file, &format);
        if (r == 0)
            r = add_layer(image, file, format);
        if (r < 0)
            return r;
    }
}

/* ---- the image ---- */

/* How many slots the bound allows, and no more than the chain has slices in use for. */
static void size_cache(struct scow_image *image)
{
    uint64_t table_bytes = 0, budget = image->options.cache_bytes, slots;

    image->slice_bytes = SLICE_BYTES_MIN;
    for (uint32_t i = 0; i < image->layer_count; i++) {
        const struct layer *layer = image->layers[i];

        if (layer->format != SCOW_FORMAT_QCOW2)
            continue;
        image->slice_bytes = MAX(image->slice_bytes, layer->slice_bytes);
        table_bytes += div_round_up(layer->virtual_bytes, 1ull << layer->slice_shift) * layer->slice_bytes;
    }
    if (!budget)
        budget = CACHE_BYTES_DEFAULT;
    slots = budget / slice_cache_slot_bytes(image->slice_bytes);
    if (!image->options.cache_bytes)
        slots =
            MIN(slots, MAX(SLOTS_MIN * image->options.shards, div_round_up(table_bytes, SLICE_BYTES_MIN)));
    image->shard_count = image->options.shards;
    image->slots_per_shard = (uint32_t)MAX(1u, MIN(slots / image->shard_count, UINT32_MAX / 2));
}

void image_free(struct scow_image *image)
{
    for (uint32_t i = 0; i < image->layer_count; i++)
        layer_close(image->layers[i]);
    free((void *)image->queues);
    for (uint32_t i = 0; i < KEPT_BUCKETS; i++)
        while (image->strings[i]) {
            struct kept_string *next = image->strings[i]->next;

            free(image->strings[i]);
            image->strings[i] = next;
        }
    pthread_mutex_destroy(&image->lock);
    pthread_mutex_destroy(&image->blocking_lock);
    pages_release(image->zeros, CLUSTER_BYTES_MAX);
    image->env->ops->destroy(image->env);
    free(image);
}

int image_open(struct env *env, struct file *file, const struct scow_open_options *options,
               struct scow_image **ret_image)
{
    struct scow_image *image = calloc(1, sizeof *image);
    int r;

    if (!image) {
        file_close(file);
        env->ops->destroy(env);
        return error_set(-ENOMEM, "out of memory");
    }
    image->env = env;
    image->options = *options;
    image->no_io = options->flags & SCOW_OPEN_NO_IO;
    image->writable = options->flags & SCOW_OPEN_WRITE;
    atomic_init(&image->clock.now, 1);
    pthread_mutex_init(&image->lock, NULL);
    pthread_mutex_init(&image->blocking_lock, NULL);
    fill_defaults(&image->options);

    image->queue_places = 1 + image->options.shards + image->options.queues_max;
    image->queues = calloc(image->queue_places, sizeof *image->queues);
    r = image->queues ? choose_backend(image) : error_set(-ENOMEM, "out of memory");
    if (r == 0)
        r = lock_file(image, file, image->options.format, 0, false);
    if (r < 0)
        file_close(file);
    else
        r = add_layer(image, file, image->options.format);
    if (r == 0 && !image->no_io)
        r = open_chain(image);
    if (r == 0 && image->writable)
        r = open_for_writing(image);
    if (r < 0) {
        image_free(image);
        return r;
    }
    size_cache(image);
    *ret_image = image;
    return 0;
}

static int take_open_options(const struct scow_open_options *given, struct scow_open_options *ret)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    int r = given ? options_take(&o, sizeof o, given, "open options") : 0;

    if (r == 0)
        r = check_options(&o);
    *ret = o;
    return r;
}

static int open_with(const char *path, int fd, const struct scow_open_options *options,
                     struct scow_image **ret_image)
{
    struct scow_open_options o;
    struct scow_image probe = {0};
    struct file *file;
    struct env *env;
    uint32_t flags;
    int r = take_open_options(options, &o);

    if (r < 0)
        return r;
    r = env_create_os(&env);
    if (r < 0)
        return r;
    probe.options = o;
    flags = o.flags & SCOW_OPEN_WRITE ? FILE_WRITE : 0;
    r = fd < 0 ? file_open(path, file_mode_of(&probe, false), flags, &file)
               : file_open_fd(fd, path, file_mode_of(&probe, false), flags, &file);
    if (r < 0) {
        env->ops->destroy(env);
        return r;
    }
    return image_open(env, file, &o, ret_image);
}

SCOW_PUBLIC int scow_open(const char *path, const struct scow_open_options *options,
                          struct scow_image **ret_image)
{
    if (!path || !path[0])
        return error_set(-EINVAL, "no path given");
    return open_with(path, -1, options, ret_image);
}

SCOW_PUBLIC int scow_open_fd(int fd, const char *name_path, const struct scow_open_options *options,
                             struct scow_image **ret_image)
{
    if (fd < 0)
        return error_set(-EBADF, "no descriptor given");
    return open_with(name_path, fd, options, ret_image);
}

SCOW_PUBLIC int scow_open_child_any(void *ctx, struct scow_child *child)
{
    (void)ctx, (void)child;
    return 0;
}

SCOW_PUBLIC int scow_resolve_name(const char *image_path, const char *name, char *buf, size_t buf_bytes)
{
    const char *slash = image_path ? strrchr(image_path, '/') : NULL;
    const int folder_bytes = slash && name[0] != '/' ? (int)(slash + 1 - image_path) : 0;
    const int n = snprintf(buf, buf_bytes, "%.*s%s", folder_bytes, image_path ? image_path : "", name);

    char quoted[128];

    if (n >= 0 && (size_t)n < buf_bytes)
        return 0;
    return error_set(-ENAMETOOLONG, "the path of \"%s\" is too long",
                     error_quote(quoted, sizeof quoted, name, strlen(name)));
}
