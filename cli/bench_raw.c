/* SPDX-License-Identifier: MIT */
#include "cli/bench_raw.h"
#include "cli/bench_loop.h"
#include "cli/command.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* From the best set-up to the one that every kernel has. The first needs Linux 6.1, the second 5.19. The
 * library sets up its rings with the same flags: what is compared is the work on top of the ring. */
static const struct {
    unsigned flags;
    const char *name;
} ladder[] = {
    {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
         IORING_SETUP_SUBMIT_ALL,
     "single issuer, deferred task work"},
    {IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
     "cooperative task work"},
    {0, "plain"},
};
#define LADDER_COUNT (sizeof(ladder) / sizeof(ladder[0]))

static int ring_create(unsigned depth, struct io_uring *ret_ring, const char **ret_name)
{
    int err = -EINVAL;
    for (size_t i = 0; i < LADDER_COUNT && err == -EINVAL; i++) {
        struct io_uring_params params = {.flags = ladder[i].flags};
        err = io_uring_queue_init_params(depth, ret_ring, &params);
        *ret_name = ladder[i].name;
    }
    return err;
}

/* ---- opening ---- */

/* An empty file with its space allocated, so that writes extend nothing. */
static int create_file(const char *path, uint64_t bytes)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -1;
    int err = posix_fallocate(fd, 0, (off_t)bytes);
    if (!err && fsync(fd) < 0)
        err = errno;
    close(fd);
    errno = err;
    return err ? -1 : 0;
}

static int open_file(const char *path, const struct bench_raw_options *o, bool *ret_direct)
{
    const int access = (o->writes ? O_RDWR : O_RDONLY) | O_CLOEXEC;
    if (o->create_bytes && create_file(path, o->create_bytes) < 0)
        return -1;
    if (o->io_mode != SCOW_IO_BUFFERED) {
        const int fd = open(path, access | O_DIRECT);
        *ret_direct = true;
        if (fd >= 0 || o->io_mode == SCOW_IO_DIRECT || errno != EINVAL)
            return fd;
    }
    *ret_direct = false;
    return open(path, access);
}

static int choose_backend(const char *path, enum scow_backend backend, struct bench_raw *raw)
{
    const char *const mode = raw->direct ? "direct" : "buffered";
    if (backend == SCOW_BACKEND_NULL) {
        command_error(path, "the null backend belongs to the library: a raw file has none");
        return -EINVAL;
    }
    if (backend != SCOW_BACKEND_THREADS) {
        struct io_uring ring;
        const char *name;
        const int err = ring_create(1, &ring, &name);
        if (err == 0) {
            io_uring_queue_exit(&ring);
            snprintf(raw->description, sizeof(raw->description), "io_uring (%s), %s", name, mode);
            return 0;
        }
        if (backend == SCOW_BACKEND_IO_URING) {
            command_error(path, "io_uring_setup: %s", strerror(-err));
            command_hint("--backend threads needs no io_uring");
            return err;
        }
    }
    raw->threads = true;
    snprintf(raw->description, sizeof(raw->description),
             "pread and pwrite, one request at a time per thread, %s", mode);
    return 0;
}

int bench_raw_open(const char *path, const struct bench_raw_options *o, struct bench_raw *ret_raw)
{
    struct bench_raw raw = {.durable = o->durable};
    raw.fd = open_file(path, o, &raw.direct);
    if (raw.fd < 0) {
        const int err = -errno;
        command_error(path, "%s", strerror(-err));
        if (err == -EINVAL && o->io_mode == SCOW_IO_DIRECT)
            command_hint("the filesystem has no direct I/O: try -t writeback");
        return err;
    }
    struct stat st;
    const off_t end = lseek(raw.fd, 0, SEEK_END); /* st_size is 0 for a block device */
    if (fstat(raw.fd, &st) < 0 || end < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
        command_error(path, "neither a regular file nor a block device");
        close(raw.fd);
        return -EINVAL;
    }
    raw.file_bytes = (uint64_t)end;
    const int err = choose_backend(path, o->backend, &raw);
    if (err < 0) {
        close(raw.fd);
        return err;
    }
    *ret_raw = raw;
    return 0;
}

void bench_raw_close(struct bench_raw *raw)
{
    if (raw->fd >= 0)
        close(raw->fd);
    raw->fd = -1;
}

/* ---- the loop on io_uring ---- */

struct raw_ring {
    struct bench_worker *worker;
    struct io_uring ring;
    uint32_t block_bytes;
    bool durable;
    uint64_t *offs; /* per slot, for messages */
};

static int ring_submit(void *ctx, uint32_t slot, uint64_t guest_off)
{
    struct raw_ring *const r = ctx;
    /* The ring has at least as many entries as there are slots, and every wait submits what is queued. */
    struct io_uring_sqe *const sqe = io_uring_get_sqe(&r->ring);
    if (!sqe)
        return bench_worker_fail(r->worker, -EBUSY, "the submission ring is full");
    const uint8_t kind = r->worker->kinds[slot];
    if (__builtin_expect(kind == BENCH_KIND_READ, 1)) {
        io_uring_prep_read(sqe, 0, bench_buffer(r->worker, slot), r->block_bytes, guest_off);
    } else if (kind == BENCH_KIND_WRITE) {
        io_uring_prep_write(sqe, 0, bench_buffer(r->worker, slot), r->block_bytes, guest_off);
        sqe->rw_flags = r->durable ? RWF_DSYNC : 0;
    } else {
        io_uring_prep_fsync(sqe, 0, IORING_FSYNC_DATASYNC);
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = slot;
    r->offs[slot] = guest_off;
    return 0;
}

static void request_failed(struct bench_worker *w, uint32_t slot, uint64_t off, int64_t ret)
{
    const char *const kind = w->kinds[slot] == BENCH_KIND_READ ? "read" : "write";
    const int err = ret < 0 ? (int)ret : -EIO;
    if (w->kinds[slot] == BENCH_KIND_FLUSH)
        bench_worker_fail(w, err, "fdatasync: %s", strerror(-err));
    else if (ret < 0)
        bench_worker_fail(w, err, "%s of %u bytes at offset %llu: %s", kind, w->shared->plan->block_bytes,
                          (unsigned long long)off, strerror(-err));
    else
        bench_worker_fail(w, err, "%s of %u bytes at offset %llu was short: %lld bytes", kind,
                          w->shared->plan->block_bytes, (unsigned long long)off, (long long)ret);
}

static inline int64_t result_expected(const struct bench_worker *w, uint32_t slot)
{
    return w->kinds[slot] == BENCH_KIND_FLUSH ? 0 : w->shared->plan->block_bytes;
}

/* Interrupted, or short of something for the moment. */
static bool passing(int err)
{
    return err == -EINTR || err == -EAGAIN || err == -EBUSY || err == -ENOMEM;
}

static uint32_t ring_reap(struct raw_ring *r, uint32_t *ret_slots)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    uint32_t n = 0;
    /* No more than there are slots: each has one request in flight at most. */
    io_uring_for_each_cqe(&r->ring, head, cqe)
    {
        const uint32_t slot = (uint32_t)cqe->user_data;
        ret_slots[n++] = slot;
        if (__builtin_expect(cqe->res != result_expected(r->worker, slot), 0))
            request_failed(r->worker, slot, r->offs[slot], cqe->res);
    }
    io_uring_cq_advance(&r->ring, n);
    return n;
}

static int ring_wait(void *ctx, uint32_t *ret_slots)
{
    struct raw_ring *const r = ctx;
    uint32_t n;
    do {
        const int err = io_uring_submit_and_wait(&r->ring, 1);
        if (__builtin_expect(err < 0, 0) && !passing(err))
            return bench_worker_fail(r->worker, err, "io_uring_enter: %s", strerror(-err));
        n = ring_reap(r, ret_slots);
    } while (n == 0);
    return (int)n;
}

static const struct bench_io ring_io = {.submit = ring_submit, .wait = ring_wait};

static void ring_work(struct bench_worker *w, const struct bench_raw *raw)
{
    const struct bench_plan *const plan = w->shared->plan;
    struct raw_ring r = {.worker = w, .block_bytes = plan->block_bytes, .durable = raw->durable};
    const char *name;
    int err = ring_create(plan->depth, &r.ring, &name);
    if (err < 0) {
        bench_worker_fail(w, err, "io_uring_setup: %s", strerror(-err));
        bench_worker_ready(w);
        return;
    }
    r.offs = calloc(plan->depth, sizeof(*r.offs));
    err = io_uring_register_files(&r.ring, &raw->fd, 1);
    if (err < 0)
        bench_worker_fail(w, err, "io_uring_register_files: %s", strerror(-err));
    else if (!r.offs)
        bench_worker_fail(w, -ENOMEM, "out of memory");
    io_uring_register_ring_fd(&r.ring); /* kernels before 5.18 lack it; only slower */

    if (bench_worker_ready(w))
        bench_loop(w, &ring_io, &r);
    io_uring_queue_exit(&r.ring);
    free(r.offs);
}

/* ---- the loop on pread and pwrite ---- */

struct raw_calls {
    struct bench_worker *worker;
    int fd;
    int write_flags;
    uint64_t off;
};

static int calls_submit(void *ctx, uint32_t slot, uint64_t guest_off)
{
    struct raw_calls *const c = ctx;
    (void)slot; /* the depth is 1 */
    c->off = guest_off;
    return 0;
}

static int calls_wait(void *ctx, uint32_t *ret_slots)
{
    struct raw_calls *const c = ctx;
    const uint8_t kind = c->worker->kinds[0];
    const struct iovec iov = {bench_buffer(c->worker, 0), c->worker->shared->plan->block_bytes};
    ssize_t n;
    if (kind == BENCH_KIND_READ)
        n = preadv(c->fd, &iov, 1, (off_t)c->off);
    else if (kind == BENCH_KIND_WRITE)
        n = pwritev2(c->fd, &iov, 1, (off_t)c->off, c->write_flags);
    else
        n = fdatasync(c->fd);
    if (n != result_expected(c->worker, 0))
        request_failed(c->worker, 0, c->off, n < 0 ? -errno : n);
    ret_slots[0] = 0;
    return 1;
}

static const struct bench_io calls_io = {.submit = calls_submit, .wait = calls_wait};

static void calls_work(struct bench_worker *w, const struct bench_raw *raw)
{
    struct raw_calls c = {.worker = w, .fd = raw->fd, .write_flags = raw->durable ? RWF_DSYNC : 0};
    if (bench_worker_ready(w))
        bench_loop(w, &calls_io, &c);
}

void bench_raw_work(struct bench_worker *worker, const struct bench_raw *raw)
{
    if (raw->threads)
        calls_work(worker, raw);
    else
        ring_work(worker, raw);
}
