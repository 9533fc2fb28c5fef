/* SPDX-License-Identifier: MIT */
#include "cli/convert_target.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/command.h"
#include "cli/open_args.h"

static int refuse(const struct convert_target *t, const char *path)
{
    struct stat st;

    return stat(path, &st) ? 0 : t->refuse(t->refuse_ctx, st.st_dev, st.st_ino);
}

/* Whether a new file of that name reads as zeros where nothing was written. */
static bool is_regular(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISREG(st.st_mode);
}

static int check_options(const struct convert_target *t, const struct scow_create_options *o)
{
    if (o->backing_name && !o->backing_format) {
        command_error(t->path, "the format of its backing file is not given");
        command_hint("-F qcow2 or -F raw says it");
        return -EINVAL;
    }
    if (o->backing_name && t->source_count > 1) {
        command_error(t->path, "several sources have no common backing file: leave out backing_file");
        return -EINVAL;
    }
    if (t->compressed && o->preallocation != SCOW_PREALLOCATION_OFF) {
        command_error(t->path, "what is preallocated cannot be written compressed");
        return -EINVAL;
    }
    return 0;
}

/* -B and -F come before what -o says. */
static int settle_options(const struct convert_target *t, struct scow_create_options *o)
{
    *o = t->create;
    o->virtual_size = t->bytes;
    if (t->backing_name)
        o->backing_name = t->backing_name;
    if (t->backing_format)
        o->backing_format = t->backing_format;
    return check_options(t, o);
}

/* Neither the image nor its data file may be one that is read. */
static int check_files(const struct convert_target *t, const struct scow_create_options *o, char *data_path,
                       size_t data_path_bytes)
{
    int err = refuse(t, t->path);

    if (err || !o->data_file_name)
        return err;
    err = scow_resolve_name(t->path, o->data_file_name, data_path, data_path_bytes);
    if (err)
        command_library_error(t->path, err);
    return err ? err : refuse(t, data_path);
}

static int create(const struct convert_target *t, struct copy_target *copy)
{
    struct scow_create_options options;
    char data_path[PATH_MAX];
    int err = settle_options(t, &options);

    if (!err)
        err = check_files(t, &options, data_path, sizeof data_path);
    if (err)
        return err;
    err = scow_create(t->path, &options);
    if (err) {
        command_library_error(t->path, err);
        return err;
    }
    copy->has_backing = options.backing_name;
    copy->reads_zero = !copy->has_backing;
    /* Clusters that are there from the beginning read as whatever a device holds. */
    if (options.data_file_name)
        copy->reads_zero = copy->reads_zero && is_regular(data_path);
    else if (options.preallocation != SCOW_PREALLOCATION_OFF)
        copy->reads_zero = copy->reads_zero && is_regular(t->path);
    return 0;
}

static int check_image(const struct convert_target *t, const struct scow_info *info)
{
    if (info->virtual_size < t->bytes) {
        command_error(t->path, "its disk has %llu bytes, the content needs %llu",
                      (unsigned long long)info->virtual_size, (unsigned long long)t->bytes);
        return -ENOSPC;
    }
    if (t->compressed && info->incompatible & SCOW_INCOMPAT_DATA_FILE) {
        command_error(t->path, "an image with a data file holds no compressed clusters: leave out -c");
        return -ENOTSUP;
    }
    return 0;
}

int convert_target_open(const struct convert_target *t, struct copy_target *ret_copy)
{
    struct copy_target copy = {
        .path = t->path,
        .compressed = t->compressed,
        .has_backing = t->no_create && t->backing_name,
        .reads_zero = t->no_create && t->is_zero,
    };
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_open_options options = t->open;
    int err = t->no_create ? refuse(t, t->path) : create(t, &copy);

    if (err)
        return err;
    options.flags |= SCOW_OPEN_WRITE;
    options.open_child = scow_open_child_any;
    err = open_image(t->path, &options, &copy.image);
    if (err)
        return err;
    err = scow_get_info(copy.image, &info);
    if (err)
        command_library_error(t->path, err);
    else
        err = check_image(t, &info);
    if (err) {
        close_image(copy.image, t->path);
        return err;
    }
    copy.cluster_bytes = info.cluster_bytes;
    *ret_copy = copy;
    return 0;
}
