/* SPDX-License-Identifier: MIT */
#include "cli/io_read.h"
#include "cli/command.h"
#include "cli/io_report.h"
#include "cli/units.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECTOR_BYTES 512u
/* qemu-io's bound on one request: what an int counts, in whole sectors. */
#define REQUEST_BYTES_MAX 2147483136u
#define MISALIGN_BYTES 16u
#define POLL_COUNT 32

struct io_request {
    const char *verb; /* in "VERB failed: …": read or readv */
    uint64_t off;
    uint64_t bytes;
    struct iovec *iov;
    int iov_count;
    void *memory; /* what is freed */
    uint8_t *data;

    bool machine, quiet, dump;
    int pattern;       /* -1: none */
    bool pattern_part; /* -s or -l was given */
    uint64_t pattern_off, pattern_bytes;

    uint64_t start_ns, end_ns;
    bool async;
    bool done;
    int ret;
    char error[256]; /* the library's message when ret < 0 */
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- arguments ---- */

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

/* What getopt finds before the offset. pattern_bytes is UINT64_MAX without -l. */
static bool parse_options(const struct io_command *command, const char *letters, int argc, char **argv,
                          struct io_request *r)
{
    int letter;
    optind = 0; /* GNU: scan afresh */
    opterr = 1;
    r->pattern = -1;
    r->pattern_bytes = UINT64_MAX;
    while ((letter = getopt(argc, argv, letters)) != -1) {
        switch (letter) {
        case 'C':
            r->machine = true;
            break;
        case 'q':
            r->quiet = true;
            break;
        case 'v':
            r->dump = true;
            break;
        case 'P':
            if (!parse_pattern(optarg, &r->pattern))
                return false;
            break;
        case 's':
            r->pattern_part = true;
            if (!io_parse_size(optarg, &r->pattern_off))
                return false;
            break;
        case 'l':
            r->pattern_part = true;
            if (!io_parse_size(optarg, &r->pattern_bytes))
                return false;
            break;
        case 'b':
            printf("%s: reading the VM state of a snapshot is not supported\n", command->name);
            return false;
        case 'i':
            printf("%s: injecting invalid requests is not supported\n", command->name);
            return false;
        case 'p':
        case 'r':
            break; /* change how qemu-io reads, not what it reads */
        default:
            io_print_usage(command);
            return false;
        }
    }
    return true;
}

/* Adds one length to the request. read and readv put what is too long differently in qemu-io, too. */
static bool parse_length(const char *text, bool one_length, struct io_request *r, size_t *ret_bytes)
{
    uint64_t bytes;
    if (!io_parse_size(text, &bytes))
        return false;
    if (bytes > REQUEST_BYTES_MAX) {
        if (one_length)
            printf("length cannot exceed %u, given %s\n", REQUEST_BYTES_MAX, text);
        else
            printf("Argument '%s' exceeds maximum size %u\n", text, REQUEST_BYTES_MAX);
        return false;
    }
    if (r->bytes + bytes > REQUEST_BYTES_MAX) {
        printf("The total number of bytes exceed the maximum size %u\n", REQUEST_BYTES_MAX);
        return false;
    }
    r->bytes += bytes;
    *ret_bytes = (size_t)bytes;
    return true;
}

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

/* off, then one length or more. */
static bool parse_range(const struct io_session *session, bool one_length, char **operands, int count,
                        struct io_request *r)
{
    if (!io_parse_size(operands[0], &r->off))
        return false;
    r->iov_count = count - 1;
    r->iov = calloc((size_t)r->iov_count, sizeof(*r->iov));
    if (!r->iov) {
        command_error(session->path, "out of memory");
        return false;
    }
    for (int i = 0; i < r->iov_count; i++) {
        if (!parse_length(operands[1 + i], one_length, r, &r->iov[i].iov_len))
            return false;
    }
    return true;
}

static bool request_allocate(const struct io_session *session, struct io_request *r)
{
    const size_t shift = session->misalign ? MISALIGN_BYTES : 0;
    const size_t align = 4096;
    r->memory = aligned_alloc(align, ((size_t)r->bytes + shift + align) / align * align);
    if (!r->memory) {
        command_error(session->path, "out of memory for %" PRIu64 " bytes", r->bytes);
        return false;
    }
    r->data = (uint8_t *)r->memory + shift;
    /* Bytes that a read forgets to fill must not pass for the pattern. */
    memset(r->data, r->pattern >= 0 ? ~r->pattern : 0xcd, (size_t)r->bytes);
    uint8_t *p = r->data;
    for (int i = 0; i < r->iov_count; i++) {
        r->iov[i].iov_base = p;
        p += r->iov[i].iov_len;
    }
    return true;
}

static void request_free(struct io_request *r)
{
    if (!r)
        return;
    free(r->iov);
    free(r->memory);
    free(r);
}

static struct io_request *request_parse(struct io_session *session, const struct io_command *command,
                                        const char *letters, bool one_length, int argc, char **argv)
{
    struct io_request *const r = calloc(1, sizeof(*r));
    if (!r) {
        command_error(session->path, "out of memory");
        return NULL;
    }
    if (!parse_options(command, letters, argc, argv, r)) {
        request_free(r);
        return NULL;
    }
    const int operand_count = argc - optind;
    if (operand_count < 2 || (one_length && operand_count != 2)) {
        io_print_usage(command);
        request_free(r);
        return NULL;
    }
    if (!parse_range(session, one_length, argv + optind, operand_count, r) || !settle_pattern(command, r) ||
        !request_allocate(session, r)) {
        request_free(r);
        return NULL;
    }
    return r;
}

/* ---- results ---- */

static bool holds_pattern(const struct io_request *r)
{
    const uint8_t *const p = r->data + r->pattern_off;
    for (uint64_t i = 0; i < r->pattern_bytes; i++) {
        if (p[i] != r->pattern)
            return false;
    }
    return true;
}

/* Prints what a finished request is to print; frees it. */
static int request_finish(const struct io_session *session, struct io_request *r)
{
    int result = IO_DONE;
    if (r->ret < 0) {
        printf("%s failed: %s\n", r->verb, strerror(-r->ret));
        fflush(stdout);
        if (r->error[0])
            command_error(session->path, "%s", r->error);
        request_free(r);
        return IO_FAILED;
    }
    if (r->pattern >= 0 && !holds_pattern(r)) {
        printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n",
               r->off + r->pattern_off, r->pattern_bytes);
        result = IO_FAILED;
    }
    if (!r->quiet) {
        if (r->dump)
            io_report_dump(r->data, r->bytes, r->off);
        io_report_request("read", r->off, r->bytes, r->end_ns - r->start_ns, r->machine);
    }
    request_free(r);
    return result;
}

static void request_done(struct io_request *r, int ret, const char *error)
{
    r->end_ns = clock_ns();
    r->ret = ret;
    r->done = true;
    if (ret < 0 && error)
        snprintf(r->error, sizeof(r->error), "%s", error);
}

/* Takes completions, waiting for one if asked to, and prints the asynchronous ones among them. */
static int take_completions(struct io_session *session, bool wait)
{
    struct scow_completion completions[POLL_COUNT];
    const int n = scow_queue_poll(session->queue, completions, wait ? 1 : 0, POLL_COUNT, SCOW_WAIT_FOREVER);
    if (n < 0) {
        command_library_error(session->path, n);
        return n;
    }
    for (int i = 0; i < n; i++) {
        struct io_request *const r = completions[i].user_data;
        request_done(r, completions[i].ret, completions[i].error);
        if (r->async) {
            session->async_count--;
            request_finish(session, r);
        }
    }
    return n;
}

void io_read_poll(struct io_session *session, bool wait)
{
    while (session->async_count > 0) {
        if (take_completions(session, wait) <= 0)
            return;
    }
}

/* ---- submission ---- */

static bool fits_queue(const struct io_session *session, const struct io_request *r)
{
    return r->off % SECTOR_BYTES == 0 &&
           (r->bytes % SECTOR_BYTES == 0 || r->off + r->bytes == session->disk_bytes);
}

static int submit_to_queue(struct io_session *session, struct io_request *r)
{
    int err = 0;
    if (!session->queue)
        err = scow_queue_create(session->image, NULL, &session->queue);
    while (err == 0) {
        if (r->iov_count == 1)
            err = scow_queue_read(session->queue, r->off, r->data, (size_t)r->bytes, r, 0);
        else
            err = scow_queue_readv(session->queue, r->off, r->iov, r->iov_count, r, 0);
        if (err != -EAGAIN)
            break;
        /* The queue is full of asynchronous reads. */
        const int n = take_completions(session, true);
        err = n < 0 ? n : 0;
    }
    return err;
}

/* Starts the request; what cannot be asked of a queue is done on return. */
static void request_start(struct io_session *session, struct io_request *r)
{
    r->start_ns = clock_ns();
    if (r->off > session->disk_bytes || r->bytes > session->disk_bytes - r->off) {
        char text[160];
        snprintf(text, sizeof(text),
                 "%" PRIu64 " bytes at offset %" PRIu64 " pass the disk's end at %" PRIu64, r->bytes, r->off,
                 session->disk_bytes);
        request_done(r, -EIO, text);
    } else if (r->bytes == 0) {
        request_done(r, 0, NULL);
    } else if (fits_queue(session, r)) {
        const int err = submit_to_queue(session, r);
        if (err < 0)
            request_done(r, err, scow_error());
    } else {
        const int err = scow_pread(session->image, r->data, (size_t)r->bytes, r->off);
        request_done(r, err, err < 0 ? scow_error() : NULL);
    }
}

static int read_and_wait(struct io_session *session, struct io_request *r)
{
    request_start(session, r);
    while (!r->done) {
        const int n = take_completions(session, true);
        if (n == 0)
            command_error(session->path, "the queue is idle but a read is not done");
        if (n <= 0) {
            /* The library still knows the buffer: scow_queue_destroy() waits for it. */
            scow_queue_destroy(session->queue);
            session->queue = NULL;
            session->async_count = 0;
            request_free(r);
            return IO_FAILED;
        }
    }
    return request_finish(session, r);
}

/* ---- commands ---- */

int io_read(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = request_parse(session, command, "bCl:pP:qrs:v", true, argc, argv);
    if (!r)
        return IO_FAILED;
    r->verb = "read";
    return read_and_wait(session, r);
}

int io_readv(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = request_parse(session, command, "CP:qrv", false, argc, argv);
    if (!r)
        return IO_FAILED;
    r->verb = "readv";
    return read_and_wait(session, r);
}

int io_aio_read(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct io_request *const r = request_parse(session, command, "CiP:qrv", false, argc, argv);
    if (!r)
        return IO_FAILED;
    r->verb = "readv"; /* qemu-io's word for it */
    r->async = true;
    request_start(session, r);
    /* As in qemu-io the command has succeeded once the request is under way, whatever becomes of it. */
    if (r->done) {
        request_finish(session, r);
    } else {
        session->async_count++;
        io_read_poll(session, false);
    }
    return IO_DONE;
}
