/* SPDX-License-Identifier: MIT */
/* One request of shardcow io, from its command's words to its report. */
#ifndef CLI_IO_REQUEST_H
#define CLI_IO_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cli/io_session.h"

enum io_kind { IO_READ, IO_WRITE, IO_DISCARD, IO_FLUSH };

struct io_request {
    enum io_kind kind;
    const char *verb; /* in "VERB failed: …" */
    uint64_t off;
    uint64_t bytes;
    struct iovec *iov;
    int iov_count;
    void *memory;  /* what is freed */
    uint8_t *data; /* NULL where nothing is moved */

    bool machine, quiet, registered;
    int pattern; /* -1: not given */
    /* reading */
    bool dump;
    bool pattern_part; /* -s or -l was given */
    uint64_t pattern_off, pattern_bytes;
    /* writing */
    bool compressed, fua, no_fallback, unmap, zero;
    const char *source_path; /* of a file that fills the buffer, or NULL */

    uint64_t start_ns, end_ns;
    bool async;
    bool done;
    int ret;
    char error[256]; /* the library's message when ret < 0 */
};

/* NULL, reported, when there is no memory. verb is not copied. */
struct io_request *io_request_create(const struct io_session *session, enum io_kind kind, const char *verb);
void io_request_free(struct io_request *request);

/* A buffer for the request's bytes, filled with a byte and divided among its iov. */
bool io_request_allocate(const struct io_session *session, struct io_request *request, int fill);

/* Starts the request, waits for it, prints its report and frees it. IO_DONE or IO_FAILED. */
int io_request_wait(struct io_session *session, struct io_request *request);

/* Starts the request; its report is printed when it is done. IO_DONE whatever becomes of it, as in qemu-io.
 */
int io_request_start_async(struct io_session *session, struct io_request *request);

/* Prints the asynchronous requests that are done; with wait set, waits until all are. */
void io_request_poll(struct io_session *session, bool wait);

#endif
