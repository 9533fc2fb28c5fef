/* SPDX-License-Identifier: MIT */
/* An fdatasync that has a ring for itself: who makes it, and what becomes of its result. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "tests/unit/bench.h"
#include "tests/unit/scratch.h"

TestSuite(lone_sync, .fini = abort_if_memory_is_lost);

#define BLOCK 4096u

static uint32_t made_here; /* by this thread */
static int again;          /* so many answer that they are to be tried again */
static int failure;        /* then this, if any */

/* In place of the C library's. */
int fdatasync(int fd)
{
    made_here++;
    if (again > 0) {
        again--;
        errno = again % 2 ? EAGAIN : EINTR;
        return -1;
    }
    if (failure) {
        errno = failure;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static void set_up(struct bench *b)
{
    const struct subject s = {BACKEND_RING, FILE_BUFFERED};
    const int fd = open(scratch("file"), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);

    cr_assert_eq(ftruncate(fd, BLOCK), 0);
    close(fd);
    bench_open(b, &s, scratch("file"), FILE_WRITE);
    made_here = 0;
}

static int run_sync(const struct bench *b)
{
    struct io io = {.kind = IO_SYNC};

    return bench_run(b, &io);
}

Test(lone_sync, a_quick_file_is_waited_for, .timeout = 60)
{
    struct bench b;

    set_up(&b);
    struct sync_pace *const pace = &b.file->sync_pace;
    cr_assert_eq(run_sync(&b), 0);
    cr_assert_eq(made_here, 0, "a file that nobody has measured");
    atomic_store(&pace->mean_ns, 1);
    cr_assert_eq(run_sync(&b), 0);
    cr_assert_eq(made_here, 1);
    atomic_store(&pace->mean_ns, 0);
    cr_assert_eq(run_sync(&b), 0);
    cr_assert_eq(made_here, 1, "a slow file");
    bench_close(&b);
}

Test(lone_sync, one_elsewhere_is_measured, .timeout = 60)
{
    struct bench b;

    set_up(&b);
    struct sync_pace *const pace = &b.file->sync_pace;
    cr_assert_eq(run_sync(&b), 0);
    cr_assert(pace->mean_ns || pace->retry_ns);
    bench_close(&b);
}

Test(lone_sync, not_beside_others, .timeout = 60)
{
    uint8_t *buf = bench_buffer(BLOCK);
    struct bench b;

    set_up(&b);
    atomic_store(&b.file->sync_pace.mean_ns, 1);
    for (int order = 0; order < 2; order++) {
        struct io sync = {.kind = IO_SYNC, .file = b.file, .result = 77};
        struct io read = {.kind = IO_READ, .buf = buf, .bytes = BLOCK, .file = b.file, .result = 77};

        backend_prepare(b.backend, order ? &sync : &read);
        backend_prepare(b.backend, order ? &read : &sync);
        bench_finish(&b, 2);
        cr_assert_eq(sync.result, 0);
        cr_assert_eq(read.result, 0);
    }
    cr_assert_eq(made_here, 0, "the other I/O had to wait");
    bench_close(&b);
    free(buf);
}

Test(lone_sync, its_result, .timeout = 60)
{
    struct bench b;

    set_up(&b);
    atomic_store(&b.file->sync_pace.mean_ns, 1);
    again = 4;
    cr_assert_eq(run_sync(&b), 0);
    cr_assert_eq(made_here, 5, "until it has said what it is");
    atomic_store(&b.file->sync_pace.mean_ns, 1); /* it may have been slow */
    again = 3;
    failure = EIO;
    cr_assert_eq(run_sync(&b), -EIO);
    cr_assert_eq(made_here, 9);
    bench_close(&b);
}
