/* SPDX-License-Identifier: MIT */
#include "cli/io_parse.h"
#include "cli/command.h"
#include "cli/units.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* qemu-io's bound on one request: what an int counts, in whole sectors. */
#define REQUEST_BYTES_MAX 2147483136u

bool io_parse_size(const char *text, uint64_t *ret_bytes)
{
    int err = units_parse_size(text, ret_bytes);
    uint64_t negative;
    if (text[0] == '-' && units_parse_number(text + 1, &negative) != -EINVAL)
        err = -ERANGE; /* qemu-io says "too large" at both ends */
    if (err == -ERANGE || (err == 0 && *ret_bytes > INT64_MAX)) {
        printf("Parsing error: argument too large -- %s\n", text);
        return false;
    }
    if (err < 0)
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", text);
    return err == 0;
}

void io_print_usage(const struct io_command *command)
{
    if (command->synopsis)
        printf("%s %s -- %s\n", command->name, command->synopsis, command->summary);
    else
        printf("%s -- %s\n", command->name, command->summary);
}

static bool parse_pattern(const char *text, int *ret_pattern)
{
    char *end;
    const long pattern = strtol(text, &end, 0);
    if (end == text || *end || pattern < 0 || pattern > 255) {
        printf("%s is not a valid pattern byte\n", text);
        return false;
    }
    *ret_pattern = (int)pattern;
    return true;
}

/* Options whose letters mean the same to all commands that have them. */
static int parse_common(const struct io_command *command, int letter, struct io_request *r)
{
    switch (letter) {
    case 'C':
        r->machine = true;
        return 1;
    case 'q':
        r->quiet = true;
        return 1;
    case 'P':
        return parse_pattern(optarg, &r->pattern) ? 1 : IO_FAILED;
    case 'b':
        printf("%s: the VM state of a snapshot is not supported\n", command->name);
        return IO_FAILED;
    case 'i': /* qemu-io counts one more invalid request, and that is all */
        printf("injecting invalid %s request\n", r->kind == IO_READ ? "read" : "write");
        return IO_DONE;
    case 'p':
        return 1; /* changes how qemu-io does it, not what it does */
    case 'r':
        r->registered = true; /* as well, but it excludes others */
        return 1;
    default:
        io_print_usage(command);
        return IO_FAILED;
    }
}

static int parse_read(const struct io_command *command, int letter, struct io_request *r)
{
    switch (letter) {
    case 'v':
        r->dump = true;
        return 1;
    case 's':
        r->pattern_part = true;
        return io_parse_size(optarg, &r->pattern_off) ? 1 : IO_FAILED;
    case 'l':
        r->pattern_part = true;
        return io_parse_size(optarg, &r->pattern_bytes) ? 1 : IO_FAILED;
    default:
        return parse_common(command, letter, r);
    }
}

static int parse_write(const struct io_command *command, int letter, struct io_request *r)
{
    switch (letter) {
    case 'c':
        r->compressed = true;
        return 1;
    case 'f':
        r->fua = true;
        return 1;
    case 'n':
        r->no_fallback = true;
        return 1;
    case 's':
        r->source_path = optarg;
        return 1;
    case 'u':
        r->unmap = true;
        return 1;
    case 'z':
        r->zero = true;
        return 1;
    default:
        return parse_common(command, letter, r);
    }
}

int io_parse_options(const struct io_command *command, const char *letters, int argc, char **argv,
                     struct io_request *r)
{
    int letter, ret = 1;
    optind = 0; /* GNU: scan afresh */
    opterr = 1;
    while (ret == 1 && (letter = getopt(argc, argv, letters)) != -1)
        ret = r->kind == IO_READ ? parse_read(command, letter, r) : parse_write(command, letter, r);
    return ret;
}

/* Adds one length to the request. The commands put what is too long differently in qemu-io, too. */
static bool parse_length(const char *text, enum io_lengths lengths, struct io_request *r, size_t *ret_bytes)
{
    uint64_t bytes;
    if (!io_parse_size(text, &bytes))
        return false;
    if (bytes > REQUEST_BYTES_MAX && lengths != IO_LENGTHS_ONE_ANY) {
        if (lengths == IO_LENGTHS_MANY)
            printf("Argument '%s' exceeds maximum size %u\n", text, REQUEST_BYTES_MAX);
        else
            printf("length cannot exceed %u%s, given %s\n", REQUEST_BYTES_MAX,
                   lengths == IO_LENGTHS_ONE ? "" : " without -n", text);
        return false;
    }
    if (r->bytes + bytes > REQUEST_BYTES_MAX && lengths == IO_LENGTHS_MANY) {
        printf("The total number of bytes exceed the maximum size %u\n", REQUEST_BYTES_MAX);
        return false;
    }
    r->bytes += bytes;
    *ret_bytes = (size_t)bytes;
    return true;
}

bool io_parse_range(const struct io_session *session, const struct io_command *command,
                    enum io_lengths lengths, int argc, char **argv, struct io_request *r)
{
    const int count = argc - optind;
    char **const operands = argv + optind;
    if (count < 2 || (lengths != IO_LENGTHS_MANY && count != 2)) {
        io_print_usage(command);
        return false;
    }
    if (!io_parse_size(operands[0], &r->off))
        return false;
    r->iov_count = count - 1;
    r->iov = calloc((size_t)r->iov_count, sizeof(*r->iov));
    if (!r->iov) {
        command_error(session->path, "out of memory");
        return false;
    }
    for (int i = 0; i < r->iov_count; i++) {
        if (!parse_length(operands[1 + i], lengths, r, &r->iov[i].iov_len))
            return false;
    }
    return true;
}
