/* SPDX-License-Identifier: MIT */
#include "cli/io_facts.h"
#include "cli/command.h"
#include "cli/io_parse.h"
#include "cli/io_report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

int io_length(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    char text[IO_SIZE_TEXT_BYTES];
    printf("%s\n", io_size_text(text, (double)session->disk_bytes));
    return IO_DONE;
}

static const char *truth(uint64_t bits)
{
    return bits ? "true" : "false";
}

/* Where saved VM state begins: after the guest range that the L1 table needed at least covers. */
static uint64_t vm_state_off(const struct scow_info *info)
{
    const uint64_t entry_bytes = info->incompatible & SCOW_INCOMPAT_EXTENDED_L2 ? 16 : 8;
    const uint64_t table_covers = (uint64_t)info->cluster_bytes / entry_bytes * info->cluster_bytes;
    return (info->virtual_size + table_covers - 1) / table_covers * table_covers;
}

int io_info(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    struct scow_info info = SCOW_INFO_INIT;
    char text[IO_SIZE_TEXT_BYTES], name[4096];
    const int err = scow_get_info(session->image, &info);
    if (err < 0) {
        command_library_error(session->path, err);
        return IO_FAILED;
    }
    if (info.format == SCOW_FORMAT_RAW) {
        printf("format name: raw\ncluster size: 0 bytes\nvm state offset: 0 bytes\n");
        return IO_DONE;
    }
    printf("format name: qcow2\n");
    printf("cluster size: %s\n", io_size_text(text, info.cluster_bytes));
    printf("vm state offset: %s\n", io_size_text(text, (double)vm_state_off(&info)));
    printf("Format specific information:\n");
    printf("    compat: %s\n", info.version == 2 ? "0.10" : "1.1");
    printf("    compression type: %s\n", info.compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib");
    if (info.version > 2)
        printf("    lazy refcounts: %s\n", truth(info.compatible & SCOW_COMPAT_LAZY_REFCOUNTS));
    printf("    refcount bits: %u\n", info.refcount_bits);
    if (info.incompatible & SCOW_INCOMPAT_DATA_FILE) {
        if (info.data_file_name)
            printf("    data file: %s\n", command_quote(name, sizeof(name), info.data_file_name));
        printf("    data file raw: %s\n", truth(info.autoclear & SCOW_AUTOCLEAR_DATA_FILE_RAW));
    }
    if (info.version > 2) {
        printf("    corrupt: %s\n", truth(info.incompatible & SCOW_INCOMPAT_CORRUPT));
        printf("    extended l2: %s\n", truth(info.incompatible & SCOW_INCOMPAT_EXTENDED_L2));
    }
    return IO_DONE;
}

/* The run from off on that this image alone has allocated, or has not, whatever lies below it. */
static int allocation_run(struct io_session *session, uint64_t off, uint64_t end, bool *ret_allocated,
                          uint64_t *ret_bytes)
{
    uint64_t bytes = 0;
    bool allocated = false;
    while (off + bytes < end) {
        struct scow_extent extent = {.size = sizeof(extent)};
        const int err =
            scow_get_extent(session->image, off + bytes, end - off - bytes, SCOW_EXTENT_THIS_LAYER, &extent);
        if (err < 0 || extent.bytes == 0) {
            command_library_error(session->path, err < 0 ? err : -EIO);
            return IO_FAILED;
        }
        const bool present = extent.flags & SCOW_EXTENT_PRESENT;
        if (bytes > 0 && present != allocated)
            break;
        allocated = present;
        bytes += extent.bytes;
    }
    *ret_allocated = allocated;
    *ret_bytes = bytes;
    return IO_DONE;
}

int io_map(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    char size[IO_SIZE_TEXT_BYTES], place[IO_SIZE_TEXT_BYTES];
    for (uint64_t off = 0, bytes; off < session->disk_bytes; off += bytes) {
        bool allocated;
        if (allocation_run(session, off, session->disk_bytes, &allocated, &bytes) != IO_DONE)
            return IO_FAILED;
        printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n",
               io_size_text(size, (double)bytes), bytes, allocated ? "    allocated" : "not allocated",
               io_size_text(place, (double)off), off);
    }
    return IO_DONE;
}

int io_alloc(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command;
    char place[IO_SIZE_TEXT_BYTES];
    uint64_t first, count = 512, allocated_bytes = 0;
    if (!io_parse_size(argv[1], &first) || (argc > 2 && !io_parse_size(argv[2], &count)))
        return IO_FAILED;
    const uint64_t left = first < session->disk_bytes ? session->disk_bytes - first : 0;
    count = count < left ? count : left;
    for (uint64_t off = first, bytes; off < first + count; off += bytes) {
        bool allocated;
        if (allocation_run(session, off, first + count, &allocated, &bytes) != IO_DONE)
            return IO_FAILED;
        allocated_bytes += allocated ? bytes : 0;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", allocated_bytes, count,
           io_size_text(place, (double)first));
    return IO_DONE;
}
