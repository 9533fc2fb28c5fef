/* SPDX-License-Identifier: MIT */
/* The human form of `shardcow info`. */
#include "cli/info_node.h"

#include <inttypes.h>
#include <stdarg.h>
#include <time.h>

#include "cli/command.h"
#include "cli/sectors.h"
#include "cli/units.h"

#define LABEL_COLUMNS 22
#define QUOTED_BYTES (4 * 1024 + 1)

static void print_fact(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void print_fact(const char *label, const char *fmt, ...)
{
    va_list args;

    printf("%s:%*s", label, LABEL_COLUMNS - 1 - (int)__builtin_strlen(label), "");
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
}

static void print_name(const char *label, const char *name)
{
    char quoted[QUOTED_BYTES];

    print_fact(label, "\"%s\"", command_quote(quoted, sizeof quoted, name));
}

static void print_snapshots(const struct info_node *node)
{
    printf("\nsnapshots:\n  %-6s %-20s %9s  %-19s %14s %10s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK",
           "ICOUNT");
    for (uint32_t i = 0; i < node->info.snapshot_count; i++) {
        struct scow_snapshot snapshot = {.size = sizeof snapshot};
        char id[64], name[QUOTED_BYTES], size[UNITS_TEXT_BYTES], date[32] = "?", clock[40], icount[24] = "-";
        struct tm tm;
        if (scow_get_snapshot(node->image, i, &snapshot))
            break;
        const time_t at = (time_t)snapshot.date_s;
        const uint64_t ms = snapshot.vm_clock_ns / 1000000;
        if (localtime_r(&at, &tm))
            strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
        snprintf(clock, sizeof clock, "%04" PRIu64 ":%02u:%02u.%03u", ms / 3600000,
                 (unsigned)(ms / 60000 % 60), (unsigned)(ms / 1000 % 60), (unsigned)(ms % 1000));
        if (snapshot.icount != UINT64_MAX)
            snprintf(icount, sizeof icount, "%" PRIu64, snapshot.icount);
        printf("  %-6s %-20s %9s  %-19s %14s %10s\n", command_quote(id, sizeof id, snapshot.id),
               command_quote(name, sizeof name, snapshot.name), units_size(size, snapshot.vm_state_bytes),
               date, clock, icount);
    }
}

static void print_bitmaps(const struct info_node *node)
{
    printf("\nbitmaps:\n  %-12s %-16s %s\n", "GRANULARITY", "FLAGS", "NAME");
    for (uint32_t i = 0; i < node->info.bitmap_count; i++) {
        struct scow_bitmap bitmap = {.size = sizeof bitmap};
        char name[QUOTED_BYTES], granularity[UNITS_TEXT_BYTES];
        if (scow_get_bitmap(node->image, i, &bitmap))
            break;
        const bool in_use = bitmap.flags & SCOW_BITMAP_IN_USE, automatic = bitmap.flags & SCOW_BITMAP_AUTO;
        printf("  %-12s %-16s \"%s\"\n", units_size(granularity, 1ull << bitmap.granularity_bits),
               in_use && automatic ? "in-use, auto"
               : in_use            ? "in-use"
               : automatic         ? "auto"
                                   : "-",
               command_quote(name, sizeof name, bitmap.name));
    }
}

static void print_backing(const struct info_node *node)
{
    char quoted[64];

    print_name("backing file", node->info.backing_name);
    if (__builtin_strcmp(node->info.backing_name, node->backing_path) != 0)
        print_name("  actual path", node->backing_path);
    print_fact("backing file format", "%s",
               node->info.backing_format ? command_quote(quoted, sizeof quoted, node->info.backing_format)
                                         : "not recorded (qemu-img rebase -u -F FORMAT records it)");
}

static void print_qcow2(const struct info_node *node)
{
    const struct scow_info *info = &node->info;
    char size[UNITS_TEXT_BYTES];

    print_fact("cluster size", "%s (%" PRIu32 " bytes)", units_size(size, info->cluster_bytes),
               info->cluster_bytes);
    if (info->backing_name)
        print_backing(node);
    if (info->incompatible & SCOW_INCOMPAT_DATA_FILE) {
        print_name("data file", info->data_file_name ? info->data_file_name : "");
        print_fact("data file raw", "%s", info->autoclear & SCOW_AUTOCLEAR_DATA_FILE_RAW ? "yes" : "no");
    }
    print_fact("compatible with", "%s", info->version == 2 ? "0.10 (version 2)" : "1.1 (version 3)");
    print_fact("compression type", "%s", info->compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib");
    print_fact("refcount bits", "%" PRIu32, info->refcount_bits);
    if (info->incompatible & SCOW_INCOMPAT_EXTENDED_L2)
        print_fact("extended L2", "yes, subclusters of %s", units_size(size, info->subcluster_bytes));
    if (info->compatible & SCOW_COMPAT_LAZY_REFCOUNTS)
        print_fact("lazy refcounts", "yes");
    if (info->crypt_method)
        print_fact("encrypted", "yes, %s", info->crypt_method == 1 ? "AES" : "LUKS");
    if (info->incompatible & SCOW_INCOMPAT_DIRTY)
        print_fact("cleanly shut down", "no");
    if (info->incompatible & SCOW_INCOMPAT_CORRUPT)
        print_fact("corrupt", "yes (marked by a program that found it so)");
    if (info->snapshot_count)
        print_snapshots(node);
    if (info->bitmap_count)
        print_bitmaps(node);
}

void info_node_print(const struct info_node *node)
{
    const struct scow_info *info = &node->info;
    const uint64_t virtual_size = round_to_sector(info->virtual_size);
    char size[UNITS_TEXT_BYTES], allocated[UNITS_TEXT_BYTES];

    print_name("image", node->path);
    print_fact("file format", "%s", info->format == SCOW_FORMAT_QCOW2 ? "qcow2" : "raw");
    print_fact("virtual size", "%s (%" PRIu64 " bytes)", units_size(size, virtual_size), virtual_size);
    print_fact("disk size", "%s", units_size(allocated, info->allocated_bytes));
    print_fact("file length", "%s (%" PRIu64 " bytes)", units_size(size, info->file_bytes), info->file_bytes);
    if (info->format == SCOW_FORMAT_QCOW2)
        print_qcow2(node);
    if (node->has_stats)
        info_stats_print(node);
}
