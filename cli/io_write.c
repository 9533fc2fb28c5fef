/* SPDX-License-Identifier: MIT */
#include "cli/io_write.h"
#include "cli/command.h"
#include "cli/io_parse.h"
#include "cli/io_request.h"
#include "cli/sectors.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FILL_DEFAULT 0xcd

/* ---- options that exclude each other ---- */

static bool excluded(const char *text)
{
    printf("%s\n", text);
    return false;
}

static bool write_options_agree(const struct io_request *r)
{
    if (r->fua && r->compressed)
        return excluded("-f and -b or -c cannot be specified at the same time");
    if (r->no_fallback && !r->zero)
        return excluded("-n requires -z to be specified");
    if (r->unmap && !r->zero)
        return excluded("-u requires -z to be specified");
    if (r->zero + (r->pattern >= 0) + (r->source_path != NULL) > 1)
        return excluded("Only one of -z, -P, and -s can be specified at the same time");
    return true;
}

/* As qemu-io does: -P beside -z is let pass here. */
static bool aio_options_agree(const struct io_request *r, int operand_count)
{
    if (r->zero && operand_count != 2)
        return excluded("-z supports only a single length parameter");
    if (r->unmap && !r->zero)
        return excluded("-u requires -z to be specified");
    if (r->zero && r->registered)
        return excluded("cannot combine zero write with registered I/O buffer");
    return true;
}

static bool sectors_whole(const struct io_request *r)
{
    if (r->off % SECTOR_BYTES)
        printf("%" PRIu64 " is not a sector-aligned value for 'offset'\n", r->off);
    else if (r->bytes % SECTOR_BYTES)
        printf("%" PRIu64 " is not a sector-aligned value for 'count'\n", r->bytes);
    return r->off % SECTOR_BYTES == 0 && r->bytes % SECTOR_BYTES == 0;
}

/* ---- what is written ---- */

/* The file again and again, from the buffer's beginning. */
static bool fill_from_file(struct io_request *r)
{
    FILE *const file = fopen(r->source_path, "re");
    const size_t bytes = (size_t)r->bytes;
    size_t filled = 0;
    bool good = false;
    if (file)
        filled = fread(r->data, 1, bytes, file);
    if (!file || ferror(file))
        command_error(r->source_path, "%s", strerror(errno));
    else if (!filled)
        command_error(r->source_path, "file is empty");
    else
        good = true;
    for (size_t at = filled; good && at < bytes; at++)
        r->data[at] = r->data[at - filled];
    if (file)
        fclose(file);
    return good;
}

static bool fill(const struct io_session *session, struct io_request *r)
{
    if (r->zero)
        return true;
    if (!io_request_allocate(session, r, r->pattern >= 0 ? r->pattern : FILL_DEFAULT))
        return false;
    return !r->source_path || fill_from_file(r);
}

/* ---- commands ---- */

int io_write(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = io_request_create(session, IO_WRITE, "write");
    int ret = r ? io_parse_options(command, "bcCfnpP:qrs:uz", argc, argv, r) : IO_FAILED;
    if (ret == 1 && optind != argc - 2) {
        io_print_usage(command);
        ret = IO_FAILED;
    }
    if (ret == 1) {
        const enum io_lengths lengths = r->no_fallback ? IO_LENGTHS_ONE_ANY : IO_LENGTHS_ONE_WITHOUT;
        if (!write_options_agree(r) || !io_parse_range(session, command, lengths, argc, argv, r) ||
            (r->compressed && !sectors_whole(r)))
            ret = IO_FAILED;
        else if (r->zero && r->registered)
            ret = excluded("cannot combine zero write with registered I/O buffer") ? 1 : IO_FAILED;
    }
    if (ret == 1 && fill(session, r))
        return io_request_wait(session, r);
    io_request_free(r);
    return ret == IO_DONE ? IO_DONE : IO_FAILED;
}

int io_writev(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = io_request_create(session, IO_WRITE, "writev");
    int ret = r ? io_parse_options(command, "CfP:qr", argc, argv, r) : IO_FAILED;
    if (ret == 1 && io_parse_range(session, command, IO_LENGTHS_MANY, argc, argv, r) && fill(session, r))
        return io_request_wait(session, r);
    io_request_free(r);
    return ret == IO_DONE ? IO_DONE : IO_FAILED;
}

int io_aio_write(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = io_request_create(session, IO_WRITE, "aio_write");
    int ret = r ? io_parse_options(command, "CfiP:qruz", argc, argv, r) : IO_FAILED;
    if (ret == 1 && argc - optind < 2) {
        io_print_usage(command);
        ret = IO_FAILED;
    }
    if (ret == 1 && aio_options_agree(r, argc - optind) &&
        io_parse_range(session, command, r->zero ? IO_LENGTHS_ONE_ANY : IO_LENGTHS_MANY, argc, argv, r) &&
        fill(session, r))
        return io_request_start_async(session, r);
    io_request_free(r);
    return ret == IO_DONE ? IO_DONE : IO_FAILED;
}

int io_discard(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = io_request_create(session, IO_DISCARD, "discard");
    const int ret = r ? io_parse_options(command, "Cq", argc, argv, r) : IO_FAILED;
    if (ret == 1 && io_parse_range(session, command, IO_LENGTHS_ONE, argc, argv, r))
        return io_request_wait(session, r);
    io_request_free(r);
    return IO_FAILED;
}

int io_flush(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    struct io_request *const r = io_request_create(session, IO_FLUSH, "flush");
    if (!r)
        return IO_FAILED;
    r->quiet = true;
    return io_request_wait(session, r);
}

int io_truncate(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full"};
    uint64_t bytes;
    int letter, mode = 0;
    optind = 0; /* GNU: scan afresh */
    opterr = 1;
    while ((letter = getopt(argc, argv, "m:")) != -1) {
        if (letter != 'm') {
            io_print_usage(command);
            return IO_FAILED;
        }
        for (mode = 0; mode < 4 && strcmp(optarg, modes[mode]); mode++)
            ;
        if (mode) {
            command_error(session->path,
                          mode < 4 ? "truncate: preallocation mode '%s' is not supported"
                                   : "truncate: there is no preallocation mode '%s'",
                          optarg);
            return IO_FAILED;
        }
    }
    if (optind == argc) {
        io_print_usage(command);
        return IO_FAILED;
    }
    if (!io_parse_size(argv[optind], &bytes))
        return IO_FAILED;
    if (bytes % SECTOR_BYTES) {
        command_error(session->path, "truncate: the new size is not a multiple of 512");
        return IO_FAILED;
    }
    io_session_idle(session); /* an image with queues does not shrink */
    const int err = scow_resize(session->image, bytes, SCOW_RESIZE_SHRINK);
    if (err)
        command_library_error(session->path, err);
    session->disk_bytes = scow_size(session->image);
    return err ? IO_FAILED : IO_DONE;
}
