/* SPDX-License-Identifier: MIT */
#include "cli/io_read.h"
#include "cli/io_parse.h"
#include "cli/io_request.h"

#include <stdio.h>

/* Which of the bytes read are to be the pattern. */
static bool settle_pattern(const struct io_command *command, struct io_request *r)
{
    if (r->pattern < 0) {
        if (r->pattern_part)
            io_print_usage(command);
        return !r->pattern_part;
    }
    if (r->pattern_bytes == UINT64_MAX && r->pattern_off <= r->bytes)
        r->pattern_bytes = r->bytes - r->pattern_off;
    if (r->pattern_off > r->bytes || r->pattern_bytes > r->bytes - r->pattern_off) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    return true;
}

typedef int start_fn(struct io_session *session, struct io_request *request);

static int run(struct io_session *session, const struct io_command *command, struct io_request *r,
               const char *letters, enum io_lengths lengths, int argc, char **argv, start_fn *start)
{
    int ret = r ? io_parse_options(command, letters, argc, argv, r) : IO_FAILED;
    if (ret == 1 &&
        (!io_parse_range(session, command, lengths, argc, argv, r) || !settle_pattern(command, r)))
        ret = IO_FAILED;
    /* Bytes that a read forgets to fill must not pass for the pattern. */
    if (ret == 1 && !io_request_allocate(session, r, r->pattern >= 0 ? ~r->pattern : 0xcd))
        ret = IO_FAILED;
    if (ret == 1)
        return start(session, r);
    io_request_free(r);
    return ret;
}

int io_read(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = io_request_create(session, IO_READ, "read");
    return run(session, command, r, "bCl:pP:qrs:v", IO_LENGTHS_ONE, argc, argv, io_request_wait);
}

int io_readv(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = io_request_create(session, IO_READ, "readv");
    return run(session, command, r, "CP:qrv", IO_LENGTHS_MANY, argc, argv, io_request_wait);
}

int io_aio_read(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    /* "readv" is qemu-io's word for it. */
    struct io_request *const r = io_request_create(session, IO_READ, "readv");
    return run(session, command, r, "CiP:qrv", IO_LENGTHS_MANY, argc, argv, io_request_start_async);
}
