/* SPDX-License-Identifier: MIT */
#include "cli/info_node.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/open_args.h"
#include "cli/sectors.h"

/* What stat and xfs know of the file; none of it matters enough to fail. */
static void look_at_file(struct info_node *node)
{
    struct fsxattr attributes;
    struct stat st;
    const int fd = open(node->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return;
    if (!fstat(fd, &st))
        node->block_device = S_ISBLK(st.st_mode);
    if (!ioctl(fd, FS_IOC_FSGETXATTR, &attributes))
        node->extent_size_hint = attributes.fsx_extsize;
    close(fd);
}

int info_node_open(struct info_node *node, const char *path, const struct scow_open_options *options)
{
    int err;

    *node = (struct info_node){.info = SCOW_INFO_INIT, .stats = SCOW_CHECK_RESULT_INIT};
    if (strlen(path) >= sizeof node->path) {
        command_error(path, "%s", strerror(ENAMETOOLONG));
        return -ENAMETOOLONG;
    }
    memcpy(node->path, path, strlen(path) + 1);
    err = open_image(path, options, &node->image);
    if (err)
        return err;
    err = scow_get_info(node->image, &node->info);
    if (!err && node->info.backing_name)
        err = scow_resolve_name(path, node->info.backing_name, node->backing_path, sizeof node->backing_path);
    if (err) {
        command_library_error(path, err);
        info_node_close(node);
        return err;
    }
    look_at_file(node);
    return 0;
}

int info_node_count(struct info_node *node)
{
    struct scow_check_options options = SCOW_CHECK_OPTIONS_INIT;
    int err;

    if (node->info.format != SCOW_FORMAT_QCOW2)
        return 0;
    err = scow_check(node->image, &options, &node->stats);
    if (err) {
        command_library_error(node->path, err);
        return err;
    }
    node->has_stats = true;
    return 0;
}

void info_node_close(struct info_node *node)
{
    scow_close(node->image);
    node->image = NULL;
}

/* The file below the format, as qemu shows its protocol node. */
static json_t *file_json(const struct info_node *node)
{
    const char *const protocol = node->block_device ? "host_device" : "file";
    json_t *file = json_object(), *specific = json_object(), *data = json_object();

    if (node->extent_size_hint)
        json_put(data, "extent-size-hint", json_count(node->extent_size_hint));
    json_put(specific, "type", json_text("file"));
    json_put(specific, "data", data);
    json_put(file, "children", json_array());
    json_put(file, "virtual-size", json_count(round_to_sector(node->info.file_bytes)));
    json_put(file, "filename", json_text(node->path));
    json_put(file, "format", json_text(protocol));
    json_put(file, "actual-size", json_count(node->info.allocated_bytes));
    json_put(file, "format-specific", specific);
    json_put(file, "dirty-flag", json_false());
    return file;
}

static json_t *bitmaps_json(const struct info_node *node)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < node->info.bitmap_count; i++) {
        struct scow_bitmap bitmap = {.size = sizeof bitmap};
        json_t *item, *flags;
        if (scow_get_bitmap(node->image, i, &bitmap))
            break;
        item = json_object();
        flags = json_array();
        if (bitmap.flags & SCOW_BITMAP_IN_USE)
            json_append(flags, json_text("in-use"));
        if (bitmap.flags & SCOW_BITMAP_AUTO)
            json_append(flags, json_text("auto"));
        json_put(item, "flags", flags);
        json_put(item, "name", json_text(bitmap.name));
        json_put(item, "granularity", json_count(1ull << bitmap.granularity_bits));
        json_append(list, item);
    }
    return list;
}

static json_t *specific_json(const struct info_node *node)
{
    const struct scow_info *info = &node->info;
    json_t *specific = json_object(), *data = json_object();

    json_put(specific, "type", json_text("qcow2"));
    json_put(data, "compat", json_text(info->version == 2 ? "0.10" : "1.1"));
    json_put(data, "compression-type",
             json_text(info->compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib"));
    json_put(data, "refcount-bits", json_count(info->refcount_bits));
    if (info->version >= 3) {
        json_put(data, "lazy-refcounts", json_boolean(info->compatible & SCOW_COMPAT_LAZY_REFCOUNTS));
        json_put(data, "corrupt", json_boolean(info->incompatible & SCOW_INCOMPAT_CORRUPT));
        json_put(data, "extended-l2", json_boolean(info->incompatible & SCOW_INCOMPAT_EXTENDED_L2));
        if (info->bitmap_count)
            json_put(data, "bitmaps", bitmaps_json(node));
        if (info->data_file_name)
            json_put(data, "data-file", json_text(info->data_file_name));
        if (info->incompatible & SCOW_INCOMPAT_DATA_FILE)
            json_put(data, "data-file-raw", json_boolean(info->autoclear & SCOW_AUTOCLEAR_DATA_FILE_RAW));
    }
    if (info->crypt_method) {
        json_t *encrypt = json_object();
        json_put(encrypt, "format", json_text(info->crypt_method == 1 ? "aes" : "luks"));
        json_put(data, "encrypt", encrypt);
    }
    json_put(specific, "data", data);
    return specific;
}

static json_t *snapshots_json(const struct info_node *node)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < node->info.snapshot_count; i++) {
        struct scow_snapshot snapshot = {.size = sizeof snapshot};
        json_t *item;
        if (scow_get_snapshot(node->image, i, &snapshot))
            break;
        item = json_object();
        if (snapshot.icount != UINT64_MAX)
            json_put(item, "icount", json_count(snapshot.icount));
        json_put(item, "vm-clock-sec", json_count(snapshot.vm_clock_ns / 1000000000));
        json_put(item, "vm-clock-nsec", json_count(snapshot.vm_clock_ns % 1000000000));
        json_put(item, "name", json_text(snapshot.name));
        json_put(item, "date-sec", json_count(snapshot.date_s));
        json_put(item, "date-nsec", json_count(snapshot.date_ns));
        json_put(item, "id", json_text(snapshot.id));
        json_put(item, "vm-state-size", json_count(snapshot.vm_state_bytes));
        json_append(list, item);
    }
    return list;
}

static void put_qcow2(json_t *object, const struct info_node *node)
{
    const struct scow_info *info = &node->info;

    json_put(object, "cluster-size", json_count(info->cluster_bytes));
    json_put(object, "format-specific", specific_json(node));
    if (info->crypt_method)
        json_put(object, "encrypted", json_true());
    if (info->backing_name) {
        json_put(object, "backing-filename", json_text(info->backing_name));
        json_put(object, "full-backing-filename", json_text(node->backing_path));
        if (info->backing_format)
            json_put(object, "backing-filename-format", json_text(info->backing_format));
    }
    /* qemu has no snapshots on images with a data file. */
    if (info->snapshot_count && !(info->incompatible & SCOW_INCOMPAT_DATA_FILE))
        json_put(object, "snapshots", snapshots_json(node));
    if (node->has_stats)
        json_put(object, "stats", info_stats_json(node));
}

json_t *info_node_json(const struct info_node *node)
{
    const struct scow_info *info = &node->info;
    json_t *object = json_object(), *children = json_array(), *child = json_object();
    const bool qcow2 = info->format == SCOW_FORMAT_QCOW2;

    json_put(child, "name", json_text("file"));
    json_put(child, "info", file_json(node));
    json_append(children, child);
    json_put(object, "children", children);
    json_put(object, "virtual-size", json_count(round_to_sector(info->virtual_size)));
    json_put(object, "filename", json_text(node->path));
    json_put(object, "format", json_text(qcow2 ? "qcow2" : "raw"));
    json_put(object, "actual-size", json_count(info->allocated_bytes));
    json_put(object, "dirty-flag", json_boolean(info->incompatible & SCOW_INCOMPAT_DIRTY));
    if (qcow2)
        put_qcow2(object, node);
    return object;
}
