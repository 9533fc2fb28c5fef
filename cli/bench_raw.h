/* SPDX-License-Identifier: MIT */
/*
 * Reads and writes of a raw file without the library: what the machine gives a well-tuned program, the limit
 * that an image is compared with.
 */
#ifndef CLI_BENCH_RAW_H
#define CLI_BENCH_RAW_H

#include "shardcow.h"

#include <stdbool.h>
#include <stdint.h>

struct bench_worker;

struct bench_raw {
    int fd;
    uint64_t file_bytes;
    bool direct;
    bool durable; /* each write is durable when it completes, as with writethrough */
    bool threads; /* pread() and pwrite() in the queue's own thread: one request at a time, whatever the depth
                   */
    char description[80]; /* "io_uring (single issuer, deferred task work), direct" */
};

struct bench_raw_options {
    enum scow_io_mode io_mode;
    enum scow_backend backend; /* AUTO takes io_uring where it is allowed */
    bool writes;
    bool durable;
    uint64_t create_bytes; /* make the file anew with so many bytes, and their space; 0: it exists */
};

/* Reports a failure itself and returns a negative errno. Closed by bench_raw_close(). */
int bench_raw_open(const char *path, const struct bench_raw_options *options, struct bench_raw *ret_raw);
void bench_raw_close(struct bench_raw *raw);

/* A worker's whole life: sets up its ring, waits for the start, runs the loop. Errors are left in the worker.
 */
void bench_raw_work(struct bench_worker *worker, const struct bench_raw *raw);

#endif
