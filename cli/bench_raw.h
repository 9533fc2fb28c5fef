/* SPDX-License-Identifier: MIT */
/*
 * Reads of a raw file without the library: what the machine gives a well-tuned program, the limit that an
 * image is compared with.
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
    bool threads;         /* pread() in the queue's own thread: one request at a time, whatever the depth */
    char description[80]; /* "io_uring (single issuer, deferred task work), direct" */
};

/*
 * Opens path read-only; backend AUTO takes io_uring where it is allowed. Reports a failure itself and returns
 * a negative errno. Closed by bench_raw_close().
 */
int bench_raw_open(const char *path, enum scow_io_mode mode, enum scow_backend backend,
                   struct bench_raw *ret_raw);
void bench_raw_close(struct bench_raw *raw);

/* A worker's whole life: sets up its ring, waits for the start, runs the loop. Errors are left in the worker.
 */
void bench_raw_work(struct bench_worker *worker, const struct bench_raw *raw);

#endif
