/* SPDX-License-Identifier: MIT */
/*
 * io_uring. The set-up ladder goes from what serves one issuing thread best to what every kernel has; kernels
 * without a flag answer -EINVAL and the next rung is tried.
 */
#include <errno.h>
#include <inttypes.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/error.h"
#include "io/backend.h"
#include "io/lone_sync.h"
#include "io/ring_memory.h"

#define SQ_ENTRIES_MAX 1024u
/* In the low bits of user_data, which is an address: 0 for an I/O. */
#define TAG_MASK 3u
#define WAKE_TAG 1u  /* the poll that watches wake_fd; no address */
#define WATCH_TAG 2u /* a watch's poll */
/* A poll that ends without having to (a full completion queue) is started again so often in a row. */
#define WATCH_RESTARTS 16u
#define OTHER_TAG 3u /* nobody's: the removal of a poll */

struct ring_backend {
    struct backend base;
    struct io_uring ring;
    bool bound; /* enabled by the thread that uses it, which is owner */
    pthread_t owner;
    bool defer_taskrun; /* completions are posted only when this thread enters the kernel */
    bool disabled;      /* created with R_DISABLED, not enabled yet */
    bool files_registered;
    bool wake_armed;
    struct ring_memory memory;
    struct list unarmed;  /* watches that found the submission queue full */
    struct list overflow; /* prepared while the submission queue was full */
    uint32_t in_flight;   /* I/Os prepared, and not handed back */
    struct lone_sync sync;
    int wake_fd;  /* eventfd: other threads write it */
    int event_fd; /* eventfd of the embedder */
    _Atomic bool event_enabled;
};

static const unsigned setup_ladder[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    0,
};

static struct ring_backend *ring_of(struct backend *b)
{
    return container_of(b, struct ring_backend, base);
}

int ring_backend_probe(void)
{
    struct io_uring_params p = {0};
    struct io_uring ring;
    const int ret = io_uring_queue_init_params(2, &ring, &p);

    if (ret == 0)
        io_uring_queue_exit(&ring);
    return ret == 0 && !(p.features & IORING_FEAT_EXT_ARG) ? -ENOSYS : ret;
}

/* The thread that is to be the only issuer makes itself known on its first use of the ring. The ring's
 * descriptor is not registered: a registration belongs to a thread, outlives the ring and means another ring
 * in another thread. */
ATTR_COLD static int bind_to_thread(struct ring_backend *r)
{
    if (r->disabled) {
        /* liburing 2.3 declares a function for this but does not export it. */
        if (syscall(__NR_io_uring_register, r->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0) {
            const int err = -errno;

            return error_set(err, "io_uring: cannot enable the ring: %s", strerror(-err));
        }
        r->disabled = false;
    }
    r->owner = pthread_self();
    r->bound = true;
    return 0;
}

/* A submission entry, submitting if the queue is full; NULL when the kernel takes none now. */
static struct io_uring_sqe *take_sqe(struct ring_backend *r)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);

    if (unlikely(!sqe)) {
        if (r->bound)
            (void)io_uring_submit(&r->ring);
        sqe = io_uring_get_sqe(&r->ring);
    }
    return sqe;
}

static void fill_vector(const struct ring_backend *r, struct io_uring_sqe *sqe, int fd, const struct io *io)
{
    const int slot =
        likely(!r->memory.count) ? -1 : ring_memory_slot_of_vector(&r->memory, io->iov, io->iov_count);
    const bool write = io->kind == IO_WRITE;

    if (slot < 0) {
        io_uring_prep_rw(write ? IORING_OP_WRITEV : IORING_OP_READV, sqe, fd, io->iov,
                         (unsigned)io->iov_count, io->off);
    } else {
        io_uring_prep_rw(write ? RING_WRITEV_FIXED : RING_READV_FIXED, sqe, fd, io->iov,
                         (unsigned)io->iov_count, io->off);
        sqe->buf_index = (uint16_t)slot;
    }
}

static void fill_buffer(const struct ring_backend *r, struct io_uring_sqe *sqe, int fd, const struct io *io)
{
    const struct iovec rest = io_rest(io);
    const int slot =
        likely(!r->memory.count) ? -1 : ring_memory_slot(&r->memory, rest.iov_base, rest.iov_len);
    const bool write = io->kind == IO_WRITE;
    const int op = slot < 0 ? (write ? IORING_OP_WRITE : IORING_OP_READ)
                            : (write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED);

    io_uring_prep_rw(op, sqe, fd, rest.iov_base, (unsigned)rest.iov_len, io->off + io->done);
    if (slot >= 0)
        sqe->buf_index = (uint16_t)slot;
}

/* A read or a write. */
static void fill_transfer(const struct ring_backend *r, struct io_uring_sqe *sqe, int fd, const struct io *io)
{
    if (io->done == 0 && io->iov_count > 1)
        fill_vector(r, sqe, fd, io);
    else
        fill_buffer(r, sqe, fd, io);
    if (io->kind == IO_WRITE && (io->flags & IO_DURABLE))
        sqe->rw_flags = RWF_DSYNC;
}

/* The kernel is not asked, but the answer comes with the other completions. */
static bool is_refused(const struct io *io)
{
    return io->kind == IO_ALLOCATE && io->file->block_device;
}

/* IO_ALLOCATE, IO_PUNCH, IO_ZERO */
static void fill_fallocate(struct io_uring_sqe *sqe, int fd, const struct io *io)
{
    if (is_refused(io))
        io_uring_prep_nop(sqe);
    else
        io_uring_prep_fallocate(sqe, fd, io_fallocate_mode(io->kind), (off_t)io->off, (off_t)io->length);
}

static void fill_sqe(const struct ring_backend *r, struct io_uring_sqe *sqe, struct io *io)
{
    const int fd = r->files_registered ? (int)io->file->index : io->file->fd;

    if (likely(io->kind <= IO_WRITE))
        fill_transfer(r, sqe, fd, io);
    else if (io->kind == IO_SYNC)
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else
        fill_fallocate(sqe, fd, io);
    if (r->files_registered)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, io);
}

static void start_io(struct ring_backend *r, struct io *io)
{
    struct io_uring_sqe *sqe = list_empty(&r->overflow) ? take_sqe(r) : NULL;

    if (unlikely(!sqe)) {
        list_push(&r->overflow, &io->node);
        return;
    }
    fill_sqe(r, sqe, io);
}

static void ring_prepare(struct backend *b, struct io *io)
{
    struct ring_backend *r = ring_of(b);

    if (unlikely(io->kind == IO_SYNC) && !r->in_flight)
        r->sync.waiting = io;
    else
        start_io(r, io);
    r->in_flight++;
}

/* True when a lone sync is done. */
static bool make_sync(struct ring_backend *r, struct list *done)
{
    struct io *const io = r->sync.waiting;

    if (likely(!io))
        return false;
    if (!lone_sync_make(&r->sync, io, r->in_flight)) {
        start_io(r, io);
        return false;
    }
    list_push(done, &io->node);
    r->in_flight--;
    return true;
}

static void drain_overflow(struct ring_backend *r)
{
    while (!list_empty(&r->overflow)) {
        struct io_uring_sqe *sqe = take_sqe(r);

        if (!sqe)
            return;
        fill_sqe(r, sqe, container_of(list_pop(&r->overflow), struct io, node));
    }
}

/* Keep a poll on wake_fd in the ring, so that waiting for completions is waiting for messages too. */
static void arm_wake(struct ring_backend *r)
{
    struct io_uring_sqe *sqe;

    if (likely(r->wake_armed))
        return;
    sqe = take_sqe(r);
    if (!sqe)
        return;
    io_uring_prep_poll_multishot(sqe, r->wake_fd, POLLIN);
    io_uring_sqe_set_data64(sqe, WAKE_TAG);
    r->wake_armed = true;
}

static void arm_watch(struct ring_backend *r, struct watch *w)
{
    struct io_uring_sqe *sqe = take_sqe(r);

    w->armed = true;
    if (unlikely(!sqe)) { /* the kernel will have room later */
        list_push(&r->unarmed, &w->unarmed_node);
        return;
    }
    io_uring_prep_poll_multishot(sqe, w->fd, POLLIN);
    io_uring_sqe_set_data64(sqe, (uintptr_t)w | WATCH_TAG);
}

ATTR_COLD static void arm_rest(struct ring_backend *r)
{
    struct list all = list_take(&r->unarmed);
    struct list_node *n;

    while ((n = list_pop(&all))) {
        struct watch *w = container_of(n, struct watch, unarmed_node);

        if (w->ended)
            w->armed = false;
        else
            arm_watch(r, w);
    }
}

static void watch_completed(struct ring_backend *r, struct watch *w, const struct io_uring_cqe *cqe)
{
    const bool more = cqe->flags & IORING_CQE_F_MORE;

    w->restarts = more ? 0 : w->restarts + 1;
    if (cqe->res < 0)
        w->result = cqe->res;
    else if (w->restarts > WATCH_RESTARTS) /* always ready, like a regular file: no event */
        w->result = -EPERM;
    backend_watch_fired(&r->base, w);
    w->armed = more;
    if (!more && !w->ended && !w->result)
        arm_watch(r, w);
}

static void complete_other(struct ring_backend *r, const struct io_uring_cqe *cqe)
{
    uint64_t count;

    switch (cqe->user_data & TAG_MASK) {
    case WAKE_TAG:
        r->wake_armed = cqe->flags & IORING_CQE_F_MORE;
        (void)!read(r->wake_fd, &count, sizeof count);
        break;
    case WATCH_TAG:
        watch_completed(r, (struct watch *)(uintptr_t)(cqe->user_data & ~(uint64_t)TAG_MASK), cqe);
        break;
    default:
        break;
    }
}

static void complete(struct ring_backend *r, const struct io_uring_cqe *cqe, struct list *done)
{
    struct io *io;

    if (unlikely(cqe->user_data & TAG_MASK)) {
        complete_other(r, cqe);
        return;
    }
    io = (struct io *)(uintptr_t)cqe->user_data;
    if (likely(io_advance(io, unlikely(is_refused(io)) ? -EOPNOTSUPP : cqe->res))) {
        if (unlikely(io == r->sync.timed))
            lone_sync_completed(&r->sync);
        list_push(done, &io->node);
        r->in_flight--;
    } else {
        start_io(r, io);
    }
}

static unsigned reap(struct ring_backend *r, struct list *done)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&r->ring, head, cqe)
    {
        n++;
        complete(r, cqe, done);
    }
    io_uring_cq_advance(&r->ring, n);
    return n;
}

/* Interrupted, or short of something for the moment: the next turn tries again. */
static bool passing(int err)
{
    return err == -EINTR || err == -EAGAIN || err == -EBUSY || err == -ETIME || err == -ENOMEM;
}

static int enter_failed(int err)
{
    return error_set(err, "io_uring: cannot submit: %s", strerror(-err));
}

/* The calling thread may use the ring; on its first use it becomes its owner. */
static int claim(struct ring_backend *r)
{
    if (unlikely(!r->bound))
        return bind_to_thread(r);
    if (unlikely(!pthread_equal(r->owner, pthread_self())))
        return error_set(-EBUSY, "the queue belongs to another thread");
    return 0;
}

static void signal_event(struct ring_backend *r)
{
    const uint64_t one = 1;

    if (atomic_load_explicit(&r->event_enabled, memory_order_acquire))
        (void)!write(r->event_fd, &one, sizeof one);
}

static int ring_turn(struct backend *b, struct list *done)
{
    struct ring_backend *r = ring_of(b);
    int ret = claim(r);

    if (unlikely(ret < 0))
        return ret;
    (void)make_sync(r, done);
    drain_overflow(r);
    if (unlikely(!list_empty(&r->unarmed)))
        arm_rest(r);
    if (io_uring_sq_ready(&r->ring)) {
        ret = r->defer_taskrun ? io_uring_submit_and_get_events(&r->ring) : io_uring_submit(&r->ring);
    } else if ((IO_URING_READ_ONCE(*r->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))) {
        ret = io_uring_get_events(&r->ring);
    }
    if (unlikely(ret < 0) && !passing(ret))
        return enter_failed(ret);
    reap(r, done);
    /* Parts of short transfers, or what the kernel did not take: nothing but another turn will move them. */
    if (unlikely(io_uring_sq_ready(&r->ring)) || unlikely(!list_empty(&r->overflow)))
        signal_event(r);
    return 0;
}

static int ring_wait(struct backend *b, struct list *done, int64_t timeout_ns)
{
    struct ring_backend *r = ring_of(b);
    struct io_uring_cqe *cqe;
    int ret = claim(r);

    if (unlikely(ret < 0))
        return ret;
    if (unlikely(make_sync(r, done)))
        return ring_turn(b, done);
    drain_overflow(r);
    arm_wake(r);
    if (unlikely(!list_empty(&r->unarmed)))
        arm_rest(r);
    if (timeout_ns < 0) {
        ret = io_uring_submit_and_wait(&r->ring, 1);
    } else {
        struct __kernel_timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};

        ret = io_uring_submit_and_wait_timeout(&r->ring, &cqe, 1, &ts, NULL);
    }
    if (unlikely(ret < 0) && !passing(ret))
        return enter_failed(ret);
    reap(r, done);
    return 0;
}

static void ring_wake(struct backend *b)
{
    const uint64_t one = 1;
    struct ring_backend *r = ring_of(b);

    (void)!write(r->wake_fd, &one, sizeof one);
    /* An embedder asleep on its descriptor: the poll's completion may need a turn of its own to be posted. */
    signal_event(r);
}

static int ring_event_fd(const struct backend *b)
{
    return container_of(b, const struct ring_backend, base)->event_fd;
}

static int ring_event_enable(struct backend *b, bool enable)
{
    struct ring_backend *r = ring_of(b);
    int ret;

    if (enable == atomic_load_explicit(&r->event_enabled, memory_order_relaxed))
        return 0;
    ret = enable ? io_uring_register_eventfd(&r->ring, r->event_fd) : io_uring_unregister_eventfd(&r->ring);
    if (ret < 0)
        return error_set(ret, "io_uring: cannot register the completion descriptor: %s", strerror(-ret));
    atomic_store_explicit(&r->event_enabled, enable, memory_order_release);
    return 0;
}

static int ring_watch(struct backend *b, struct watch *w)
{
    const int r = claim(ring_of(b));

    if (r == 0)
        arm_watch(ring_of(b), w);
    return r;
}

static void ring_unwatch(struct backend *b, struct watch *w)
{
    struct ring_backend *r = ring_of(b);
    struct io_uring_sqe *sqe = w->armed ? take_sqe(r) : NULL;

    w->ended = true;
    if (!sqe) /* full: it fires on, and nobody is told */
        return;
    io_uring_prep_poll_remove(sqe, (uintptr_t)w | WATCH_TAG);
    io_uring_sqe_set_data64(sqe, OTHER_TAG);
}

static int ring_add_memory(struct backend *b, void *base, size_t bytes)
{
    struct ring_backend *r = ring_of(b);
    const int ret = claim(r);

    return ret < 0 ? ret : ring_memory_add(&r->memory, &r->ring, base, bytes);
}

static int ring_remove_memory(struct backend *b, void *base, size_t bytes)
{
    struct ring_backend *r = ring_of(b);
    int ret = claim(r);

    /* What names a slot has to be with the kernel before the slot is cleared. */
    while (ret == 0 && io_uring_sq_ready(&r->ring)) {
        ret = io_uring_submit(&r->ring);
        ret =
            ret > 0 ? 0 : error_set(-EBUSY, "io_uring: requests cannot be submitted now: %s", strerror(-ret));
    }
    return ret < 0 ? ret : ring_memory_remove(&r->memory, &r->ring, base, bytes);
}

/* The kernel takes this from the owner's thread alone, and ends a ring some time after it is closed. */
static void ring_leave(struct backend *b)
{
    struct ring_backend *r = ring_of(b);

    if (r->files_registered)
        (void)io_uring_unregister_files(&r->ring);
    r->files_registered = false;
}

static void ring_destroy(struct backend *b)
{
    struct ring_backend *r = ring_of(b);

    ring_leave(b);
    io_uring_queue_exit(&r->ring);
    close(r->wake_fd);
    close(r->event_fd);
    free(r);
}

static const struct backend_ops ring_ops = {
    .name = "io_uring",
    .prepare = ring_prepare,
    .turn = ring_turn,
    .wait = ring_wait,
    .wake = ring_wake,
    .event_fd = ring_event_fd,
    .event_enable = ring_event_enable,
    .watch = ring_watch,
    .unwatch = ring_unwatch,
    .add_memory = ring_add_memory,
    .remove_memory = ring_remove_memory,
    .leave = ring_leave,
    .destroy = ring_destroy,
};

static int setup_ring(struct ring_backend *r, const struct backend_config *config)
{
    /* One more than the I/Os, for the wake poll. */
    const uint32_t entries = MIN(config->ios_max + 1, SQ_ENTRIES_MAX);
    int ret = -EINVAL;

    for (size_t i = 0; i < ARRAY_COUNT(setup_ladder) && ret == -EINVAL; i++) {
        struct io_uring_params p = {.flags = setup_ladder[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                    .cq_entries = 2 * (config->ios_max + 1)};

        ret = io_uring_queue_init_params(entries, &r->ring, &p);
        r->defer_taskrun = p.flags & IORING_SETUP_DEFER_TASKRUN;
        r->disabled = p.flags & IORING_SETUP_R_DISABLED;
        if (ret == 0 &&
            !(p.features & IORING_FEAT_EXT_ARG)) { /* before 5.11 a wait with a timeout is a request */
            io_uring_queue_exit(&r->ring);
            ret = -ENOSYS;
        }
    }
    return ret;
}

static void register_files(struct ring_backend *r, const struct backend_config *config)
{
    int *fds = calloc(config->file_count, sizeof *fds);

    if (!fds)
        return; /* it only saves time */
    for (uint32_t i = 0; i < config->file_count; i++)
        fds[i] = config->files[i]->fd;
    r->files_registered = io_uring_register_files(&r->ring, fds, config->file_count) == 0;
    free(fds);
}

int ring_backend_create(const struct backend_config *config, struct backend **ret)
{
    struct ring_backend *r = calloc(1, sizeof *r);
    int err;

    if (!r)
        return error_set(-ENOMEM, "out of memory");
    r->base.ops = &ring_ops;
    r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    err = r->wake_fd < 0 || r->event_fd < 0 ? -errno : setup_ring(r, config);
    if (err < 0) {
        if (r->wake_fd >= 0)
            close(r->wake_fd);
        if (r->event_fd >= 0)
            close(r->event_fd);
        free(r);
        return error_set(err, "io_uring: cannot set up a ring: %s", strerror(-err));
    }
    register_files(r, config);
    *ret = &r->base;
    return 0;
}
