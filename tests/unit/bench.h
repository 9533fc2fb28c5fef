/* SPDX-License-Identifier: MIT */
/* A backend with one file, for tests that every backend has to pass in every mode of opening a file. */
#ifndef UNIT_BENCH_H
#define UNIT_BENCH_H

#include <stdint.h>

#include "io/env.h"

#define BENCH_IOS_MAX 300u

struct subject {
    enum backend_kind kind;
    enum file_mode mode;
};

extern struct subject bench_subjects[4];

/* The body of a test that is given a struct subject *s. */
#define BENCH_EACH(suite, name)                                                                              \
    ParameterizedTestParameters(suite, name)                                                                 \
    {                                                                                                        \
        return cr_make_param_array(struct subject, bench_subjects, ARRAY_COUNT(bench_subjects));             \
    }                                                                                                        \
    ParameterizedTest(struct subject *s, suite, name, .timeout = 60)

struct bench {
    struct env *env;
    struct file *file;
    struct backend *backend;
};

/* Skips the test where the backend is not available. flags as for file_open(). */
void bench_open(struct bench *b, const struct subject *s, const char *path, uint32_t flags);
void bench_close(struct bench *b);

/* Wait for so many completions; whoever prepared the I/Os has their results. */
void bench_finish(const struct bench *b, uint32_t ios);

/* Prepare one I/O and wait for it; its result. */
int bench_run(const struct bench *b, struct io *io);

/* The number of nodes, taken from the list. */
uint32_t bench_count(struct list *done);

/* An aligned buffer full of 0xee, for free(). */
uint8_t *bench_buffer(size_t bytes);

#endif
