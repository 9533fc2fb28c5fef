/* SPDX-License-Identifier: MIT */
#include "engine/create.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "engine/create_plan.h"
#include "engine/options.h"
#include "format/limits.h"
#include "io/image_lock.h"

/* Metadata and zeros are written this much at a time; at least a cluster of every size. */
#define CHUNK_BYTES CLUSTER_BYTES_MAX
#define CHUNK_ALIGN 4096u

/* ---- what is written ---- */

/* Give up what the file holds; room for bytes is all that a block device has to offer. */
static int empty_file(struct file *f, uint64_t bytes)
{
    if (!f->block_device)
        return file_truncate(f, 0);
    if (f->bytes < bytes)
        return error_set(-ENOSPC, "%s: the device has %" PRIu64 " bytes, the image needs %" PRIu64,
                         file_name(f), f->bytes, bytes);
    return 0;
}

static int write_metadata(struct file *f, const struct create_plan *plan, uint8_t *chunk)
{
    const uint64_t end = plan->data.first;
    uint64_t cluster = 0;
    int r = 0;

    while (cluster < end && r == 0) {
        const uint64_t count = MIN(end - cluster, (uint64_t)CHUNK_BYTES / plan->cluster_bytes);

        for (uint64_t i = 0; i < count; i++)
            create_plan_fill(plan, cluster + i, chunk + i * plan->cluster_bytes);
        r = file_write(f, chunk, (size_t)(count * plan->cluster_bytes), cluster * plan->cluster_bytes);
        cluster += count;
    }
    return r;
}

static int write_zeros(struct file *f, uint64_t off, uint64_t bytes, uint8_t *chunk)
{
    int r = 0;

    memset(chunk, 0, CHUNK_BYTES);
    while (bytes && r == 0) {
        const uint64_t part = MIN(bytes, (uint64_t)CHUNK_BYTES);

        r = file_write(f, chunk, (size_t)part, off);
        off += part;
        bytes -= part;
    }
    return r;
}

/* Clusters that the tables already map: they read as zeros, and take their space on disk as asked. What
 * cannot be reserved is written, and so is what a device cannot be told to zero. */
static int provide(struct file *f, uint64_t off, uint64_t bytes, enum scow_preallocation mode, uint8_t *chunk)
{
    int r;

    if (f->block_device) {
        r = mode == SCOW_PREALLOCATION_FULL ? -EOPNOTSUPP : f->ops->zero(f, off, bytes);
    } else {
        r = file_truncate(f, off + bytes);
        if (r < 0 || mode == SCOW_PREALLOCATION_OFF || mode == SCOW_PREALLOCATION_METADATA)
            return r;
        r = mode == SCOW_PREALLOCATION_FULL ? -EOPNOTSUPP : f->ops->allocate(f, off, bytes);
    }
    if (r == -EOPNOTSUPP)
        return write_zeros(f, off, bytes, chunk);
    if (r < 0)
        return error_set(r, "%s: reserving %" PRIu64 " bytes at offset 0x%" PRIx64 " failed: %s",
                         file_name(f), bytes, off, strerror(-r));
    return 0;
}

static int make_data_file(struct file *f, const struct create_plan *plan, enum scow_preallocation mode,
                          uint8_t *chunk)
{
    const uint64_t bytes = plan->header.virtual_bytes;
    int r = empty_file(f, bytes);

    /* On a device only what is mapped has to read as zeros. */
    if (r == 0 && bytes && (!f->block_device || plan->guest_clusters))
        r = provide(f, 0, bytes, mode, chunk);
    return r == 0 ? file_sync(f) : r;
}

/* The header last: until then the file is no image. */
static int write_image(struct file *f, struct file *data_file, const struct create_plan *plan,
                       enum scow_preallocation mode, const uint8_t *header, uint8_t *chunk)
{
    int r = empty_file(f, plan->total_clusters * plan->cluster_bytes);

    if (r == 0)
        r = write_metadata(f, plan, chunk);
    if (r == 0 && plan->data.count)
        r = provide(f, plan->data.first * plan->cluster_bytes, plan->data.count * plan->cluster_bytes, mode,
                    chunk);
    if (r == 0 && data_file)
        r = make_data_file(data_file, plan, mode, chunk);
    if (r == 0)
        r = file_sync(f);
    if (r == 0)
        r = file_write(f, header, plan->cluster_bytes, 0);
    return r == 0 ? file_sync(f) : r;
}

int image_create(struct file *file, struct file *data_file, const struct scow_create_options *o)
{
    struct create_plan plan;
    void *header = NULL, *chunk = NULL;
    int r = create_plan_make(o, &plan);

    if (r < 0)
        return r;
    if (posix_memalign(&header, CHUNK_ALIGN, plan.cluster_bytes) ||
        posix_memalign(&chunk, CHUNK_ALIGN, CHUNK_BYTES))
        r = error_set(-ENOMEM, "out of memory");
    if (r == 0)
        r = header_encode(&plan.header, header);
    if (r == 0)
        r = write_image(file, data_file, &plan, o->preallocation, header, chunk);
    free(header);
    free(chunk);
    return r;
}

/* ---- by path ---- */

struct target {
    const char *path;
    struct file *file;
    bool created;
};

/* An exclusive creation first: only so it is known whose file it is if something fails. */
static int target_open(struct target *t)
{
    const int fd = open(t->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

    t->created = fd >= 0;
    if (fd >= 0)
        close(fd);
    return file_open(t->path, FILE_BUFFERED, FILE_WRITE | FILE_CREATE, &t->file);
}

static int target_lock(struct target *t, uint32_t used, uint32_t denied)
{
    const int r = image_lock(t->file, used, denied);

    if (r == -EAGAIN)
        t->created = false; /* somebody has begun to use it: not ours to remove */
    return r;
}

static void target_close(struct target *t, bool keep)
{
    if (t->created && !keep)
        (void)unlink(t->path);
    file_close(t->file);
}

static int open_data_file(struct target *t, const struct file *image, bool keep)
{
    int r = keep ? file_open(t->path, FILE_BUFFERED, 0, &t->file) : target_open(t);

    if (r < 0)
        return error_prefix(r, "data file");
    if (t->file->dev == image->dev && t->file->ino == image->ino &&
        t->file->block_device == image->block_device)
        return error_set(-EINVAL, "%s: the image cannot be its own data file", file_name(image));
    return target_lock(t, keep ? IMAGE_READ : IMAGE_READ | IMAGE_WRITE | IMAGE_RESIZE, IMAGE_RESIZE);
}

static int create_files(struct target *image, struct target *data, const struct scow_create_options *o)
{
    char data_path[4096];
    int r = target_open(image);

    if (r == 0)
        r = target_lock(image, IMAGE_READ | IMAGE_WRITE | IMAGE_RESIZE, IMAGE_WRITE | IMAGE_RESIZE);
    if (r == 0 && o->data_file_name) {
        r = scow_resolve_name(image->path, o->data_file_name, data_path, sizeof data_path);
        data->path = data_path;
        if (r == 0)
            r = open_data_file(data, image->file, o->data_file_keep);
    }
    if (r == 0)
        r = image_create(image->file, o->data_file_keep ? NULL : data->file, o);
    target_close(data, r == 0);
    return r;
}

SCOW_PUBLIC int scow_create(const char *path, const struct scow_create_options *options)
{
    struct scow_create_options o = SCOW_CREATE_OPTIONS_INIT;
    struct target image = {.path = path}, data = {0};
    struct create_plan plan;
    int r;

    if (!path || !path[0])
        return error_set(-EINVAL, "no path given");
    if (!options)
        return error_set(-EINVAL, "create options: none given");
    r = options_take(&o, sizeof o, options, "create options");
    if (r == 0)
        r = create_plan_make(&o, &plan); /* before any file is touched */
    if (r < 0)
        return r;
    r = create_files(&image, &data, &o);
    target_close(&image, r == 0);
    return r;
}
