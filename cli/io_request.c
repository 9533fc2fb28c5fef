/* SPDX-License-Identifier: MIT */
#include "cli/io_request.h"
#include "cli/command.h"
#include "cli/io_report.h"
#include "cli/sectors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MISALIGN_BYTES 16u
#define POLL_COUNT 32

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- memory ---- */

struct io_request *io_request_create(const struct io_session *session, enum io_kind kind, const char *verb)
{
    struct io_request *const r = calloc(1, sizeof(*r));
    if (!r) {
        command_error(session->path, "out of memory");
        return NULL;
    }
    r->kind = kind;
    r->verb = verb;
    r->pattern = -1;
    r->pattern_bytes = UINT64_MAX;
    return r;
}

void io_request_free(struct io_request *r)
{
    if (!r)
        return;
    free(r->iov);
    free(r->memory);
    free(r);
}

bool io_request_allocate(const struct io_session *session, struct io_request *r, int fill)
{
    const size_t shift = session->misalign ? MISALIGN_BYTES : 0;
    const size_t align = 4096;
    r->memory = aligned_alloc(align, ((size_t)r->bytes + shift + align) / align * align);
    if (!r->memory) {
        command_error(session->path, "out of memory for %" PRIu64 " bytes", r->bytes);
        return false;
    }
    r->data = (uint8_t *)r->memory + shift;
    memset(r->data, fill, (size_t)r->bytes);
    uint8_t *p = r->data;
    for (int i = 0; i < r->iov_count; i++) {
        r->iov[i].iov_base = p;
        p += r->iov[i].iov_len;
    }
    return true;
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

static const char *report_word(enum io_kind kind)
{
    return kind == IO_READ ? "read" : kind == IO_WRITE ? "wrote" : "discard";
}

/* Prints what a finished request is to print; frees it. */
static int request_finish(const struct io_session *session, struct io_request *r)
{
    int result = IO_DONE;
    if (r->ret < 0) {
        if (r->kind != IO_FLUSH)
            printf("%s failed: %s\n", r->verb, strerror(-r->ret));
        fflush(stdout);
        if (r->error[0] || r->kind == IO_FLUSH)
            command_error(session->path, "%s", r->error[0] ? r->error : strerror(-r->ret));
        io_request_free(r);
        return IO_FAILED;
    }
    if (r->kind == IO_READ && r->pattern >= 0 && !holds_pattern(r)) {
        printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n",
               r->off + r->pattern_off, r->pattern_bytes);
        result = IO_FAILED;
    }
    if (!r->quiet) {
        if (r->dump)
            io_report_dump(r->data, r->bytes, r->off);
        io_report_request(report_word(r->kind), r->off, r->bytes, r->end_ns - r->start_ns, r->machine);
    }
    io_request_free(r);
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

void io_request_poll(struct io_session *session, bool wait)
{
    while (session->async_count > 0) {
        if (take_completions(session, wait) <= 0)
            return;
    }
}

/* ---- on the queue ---- */

static bool fits_queue(const struct io_session *session, const struct io_request *r)
{
    return r->off % SECTOR_BYTES == 0 &&
           (r->bytes % SECTOR_BYTES == 0 || r->off + r->bytes == session->disk_bytes);
}

static uint32_t request_flags(const struct io_session *session, const struct io_request *r)
{
    return (r->fua ? SCOW_REQ_FUA : 0) | (r->compressed ? SCOW_REQ_COMPRESSED : 0) |
           (r->unmap && !session->ignore_discard ? SCOW_REQ_MAY_UNMAP : 0);
}

static int submit(struct io_session *session, struct io_request *r)
{
    const uint32_t flags = request_flags(session, r);
    struct scow_queue *const queue = session->queue;
    switch (r->kind) {
    case IO_READ:
        return r->iov_count == 1 ? scow_queue_read(queue, r->off, r->data, (size_t)r->bytes, r, 0)
                                 : scow_queue_readv(queue, r->off, r->iov, r->iov_count, r, 0);
    case IO_WRITE:
        if (r->zero)
            return scow_queue_write_zeroes(queue, r->off, r->bytes, r, flags);
        return r->iov_count == 1 ? scow_queue_write(queue, r->off, r->data, (size_t)r->bytes, r, flags)
                                 : scow_queue_writev(queue, r->off, r->iov, r->iov_count, r, flags);
    case IO_DISCARD:
        return scow_queue_discard(queue, r->off, r->bytes, r, 0);
    case IO_FLUSH:
        return scow_queue_flush(queue, r, 0);
    }
    return -EINVAL;
}

static int submit_to_queue(struct io_session *session, struct io_request *r)
{
    int err = 0;
    if (!session->queue)
        err = scow_queue_create(session->image, NULL, &session->queue);
    while (err == 0) {
        err = submit(session, r);
        if (err != -EAGAIN)
            break;
        /* The queue is full of asynchronous requests. */
        const int n = take_completions(session, true);
        err = n < 0 ? n : 0;
    }
    return err;
}

/* ---- ranges that are not of whole sectors ---- */

static int zero_unaligned(const struct io_session *session, const struct io_request *r)
{
    static const uint8_t zeros[SECTOR_BYTES];
    const uint64_t end = r->off + r->bytes;
    const uint64_t first = round_to_sector(r->off) < end ? round_to_sector(r->off) : end;
    const uint64_t last =
        end / SECTOR_BYTES * SECTOR_BYTES > first ? end / SECTOR_BYTES * SECTOR_BYTES : first;
    int err = 0;
    if (r->off < first)
        err = scow_pwrite(session->image, zeros, (size_t)(first - r->off), r->off);
    if (!err && first < last)
        err = scow_pwrite_zeroes(session->image, last - first, first, request_flags(session, r));
    if (!err && last < end)
        err = scow_pwrite(session->image, zeros, (size_t)(end - last), last);
    return err;
}

/* By the blocking calls. They may have to wait until other requests are done, and only this thread can move
 * those on: they come first. */
static int run_unaligned(struct io_session *session, struct io_request *r)
{
    int err;
    io_request_poll(session, true);
    if (r->kind == IO_READ)
        return scow_pread(session->image, r->data, (size_t)r->bytes, r->off);
    err =
        r->zero ? zero_unaligned(session, r) : scow_pwrite(session->image, r->data, (size_t)r->bytes, r->off);
    if (!err && r->fua)
        err = scow_flush(session->image);
    return err;
}

/* A discard is of whole sectors: what is left of it, in off and bytes. */
static void narrow_discard(uint64_t *off, uint64_t *bytes)
{
    const uint64_t end = (*off + *bytes) / SECTOR_BYTES * SECTOR_BYTES;
    const uint64_t first = round_to_sector(*off);
    *bytes = first < end ? end - first : 0;
    *off = first;
}

static int start_discard(struct io_session *session, struct io_request *r)
{
    const uint64_t off = r->off, bytes = r->bytes;
    int err = 0;
    narrow_discard(&r->off, &r->bytes);
    if (r->bytes == 0 || session->ignore_discard)
        request_done(r, 0, NULL);
    else
        err = submit_to_queue(session, r);
    r->off = off; /* for the report */
    r->bytes = bytes;
    return err;
}

/* Starts the request; what cannot be asked of a queue is done on return. */
static void request_start(struct io_session *session, struct io_request *r)
{
    int err = 0;
    r->start_ns = clock_ns();
    if (r->off > session->disk_bytes || r->bytes > session->disk_bytes - r->off) {
        char text[160];
        snprintf(text, sizeof(text),
                 "%" PRIu64 " bytes at offset %" PRIu64 " pass the disk's end at %" PRIu64, r->bytes, r->off,
                 session->disk_bytes);
        request_done(r, -EIO, text);
    } else if (r->kind == IO_FLUSH) {
        err = submit_to_queue(session, r);
    } else if (r->bytes == 0) {
        request_done(r, 0, NULL);
    } else if (r->kind == IO_DISCARD) {
        err = start_discard(session, r);
    } else if (fits_queue(session, r)) {
        err = submit_to_queue(session, r);
    } else {
        const int ret = run_unaligned(session, r);
        request_done(r, ret, ret < 0 ? scow_error() : NULL);
    }
    if (err < 0)
        request_done(r, err, scow_error());
}

int io_request_wait(struct io_session *session, struct io_request *r)
{
    request_start(session, r);
    while (!r->done) {
        const int n = take_completions(session, true);
        if (n == 0)
            command_error(session->path, "the queue is idle but a request is not done");
        if (n <= 0) {
            /* The library still knows the buffer: scow_queue_destroy() waits for it. */
            scow_queue_destroy(session->queue);
            session->queue = NULL;
            session->async_count = 0;
            io_request_free(r);
            return IO_FAILED;
        }
    }
    return request_finish(session, r);
}

int io_request_start_async(struct io_session *session, struct io_request *r)
{
    r->async = true;
    request_start(session, r);
    if (r->done) {
        request_finish(session, r);
    } else {
        session->async_count++;
        io_request_poll(session, false);
    }
    return IO_DONE;
}
