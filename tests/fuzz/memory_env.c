/* SPDX-License-Identifier: MIT */
#include "tests/fuzz/memory_env.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/rcu.h"
#include "io/file.h"
#include "io/loop.h"

/* Turns of all loops without any effect, while somebody waits, until that is taken for a hang. */
#define IDLE_TURNS_MAX 1000u
/* Turns for one input altogether. */
#define TURNS_MAX 4000000u

void finding(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fputs("finding: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static struct memory_env *env_of(struct env *env)
{
    return container_of(env, struct memory_env, base);
}

static uint64_t next_random(struct memory_env *env)
{
    env->random = env->random * 6364136223846793005u + 1442695040888963407u;
    return env->random >> 33;
}

/* ---- files ---- */

struct memory_file {
    struct file base;
    struct memory_env *env;
    const struct memory_disk *disk;
};

uint8_t memory_disk_byte(const struct memory_disk *disk, uint64_t off)
{
    return off < disk->bytes ? disk->data[off] : 0;
}

static void copy_out(const struct memory_disk *disk, uint8_t *buf, size_t bytes, uint64_t off)
{
    const size_t there = off < disk->bytes ? MIN(bytes, disk->bytes - (size_t)off) : 0;

    if (there)
        memcpy(buf, disk->data + off, there);
    memset(buf + there, 0, bytes - there);
}

/* What pread(2) would give, for the control path and for the backend. */
static ssize_t memory_pread(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    struct memory_file *m = container_of(f, struct memory_file, base);
    struct memory_env *env = m->env;
    const uint64_t nth = atomic_fetch_add(&env->reads, 1) + 1;
    const uint64_t total = atomic_fetch_add(&env->read_bytes, bytes) + bytes;
    size_t n;

    if (off > INT64_MAX || (off | bytes) % f->io_align || (uintptr_t)buf % f->mem_align)
        finding("read of %zu bytes at 0x%llx into %p breaks the file's alignment or range", bytes,
                (unsigned long long)off, buf);
    if (nth == env->plan.fail_read || (env->plan.budget_bytes && total > env->plan.budget_bytes))
        return -EIO;
    if (off >= f->bytes)
        return 0;
    n = (size_t)MIN((uint64_t)bytes, f->bytes - off);
    copy_out(m->disk, buf, n, off);
    return (ssize_t)n;
}

static int64_t memory_seek(struct file *f, uint64_t off, bool data)
{
    const struct memory_disk *disk = container_of(f, struct memory_file, base)->disk;

    if (off >= f->bytes)
        return -ENXIO;
    if (off < disk->bytes)
        return (int64_t)(data ? off : MIN((uint64_t)disk->bytes, f->bytes));
    return data ? -ENXIO : (int64_t)off;
}

static void memory_close(struct file *f)
{
    struct memory_file *m = container_of(f, struct memory_file, base);

    m->env->files_open--;
    free(f->path);
    free(m);
}

static const struct file_ops file_ops = {.pread = memory_pread, .seek = memory_seek, .close = memory_close};

static int open_disk(struct memory_env *env, uint32_t index, const char *path, struct file **ret)
{
    const struct memory_disk *disk = &env->disks[index];
    struct memory_file *m = calloc(1, sizeof *m);

    if (!m || !(m->base.path = strdup(path)))
        finding("out of memory");
    m->env = env;
    m->disk = disk;
    m->base.ops = &file_ops;
    m->base.fd = -1;
    m->base.direct = disk->io_align > 1;
    m->base.io_align = disk->io_align;
    m->base.mem_align = disk->io_align > 1 ? 512 : 1;
    m->base.bytes = disk->file_bytes;
    m->base.allocated_bytes = env->plan.seed & 1 ? 0 : disk->bytes; /* 0: a file with holes everywhere */
    m->base.ino = index;
    env->files_open++;
    *ret = &m->base;
    return 0;
}

struct file *memory_env_open_image(struct memory_env *env)
{
    struct file *f;

    open_disk(env, 0, "image.qcow2", &f);
    return f;
}

static int env_file_open(struct env *env, const char *path, enum file_mode mode, uint32_t flags,
                         struct file **ret)
{
    (void)mode;
    if (flags)
        finding("a file is opened for writing though its image is not");
    return open_disk(env_of(env), 1, path, ret);
}

static int env_file_open_fd(struct env *env, int fd, const char *name_path, enum file_mode mode,
                            uint32_t flags, struct file **ret)
{
    (void)fd;
    return env_file_open(env, name_path, mode, flags, ret);
}

/* ---- backends ---- */

struct memory_backend {
    struct backend base;
    struct memory_env *env;
    struct list pending;
    uint32_t in_flight, ios_max;
    bool woken;
};

static struct memory_backend *backend_of(struct backend *b)
{
    return container_of(b, struct memory_backend, base);
}

static void backend_prepare_io(struct backend *b, struct io *io)
{
    struct memory_backend *m = backend_of(b);

    if (++m->in_flight > m->ios_max)
        finding("more than %u I/Os in flight", m->ios_max);
    list_push(&m->pending, &io->node);
}

/* Pieces of any aligned size, as a kernel may give them. */
static void perform(struct memory_env *env, struct io *io)
{
    ssize_t n;

    if (io->kind != IO_READ)
        finding("an image that was opened for reading is written");
    do {
        const struct iovec rest = io_rest(io);
        const size_t align = io->file->io_align;
        size_t bytes = rest.iov_len;

        if (bytes > align && next_random(env) % 8 == 0) {
            bytes = round_down(next_random(env) % bytes, align);
            bytes = MAX(bytes, align);
        }
        n = memory_pread(io->file, rest.iov_base, bytes, io->off + io->done);
    } while (!io_advance(io, n));
}

static void complete(struct memory_backend *m, uint32_t count, struct list *done)
{
    struct list_node *n;

    while (count-- && (n = list_pop(&m->pending))) {
        m->in_flight--;
        perform(m->env, container_of(n, struct io, node));
        list_push(done, n);
    }
}

static int backend_turn(struct backend *b, struct list *done)
{
    struct memory_backend *m = backend_of(b);

    if (++m->env->turns > TURNS_MAX)
        finding("more than %u turns: some loop goes on for ever", TURNS_MAX);
    complete(m, next_random(m->env) % 4 ? UINT32_MAX : next_random(m->env) % 2, done);
    return 0;
}

static bool turn_shards(struct memory_env *env)
{
    bool any = false;

    for (uint32_t i = 0; i < env->loop_count; i++) {
        struct loop *loop = env->loops[i];

        any |= loop->ops->turn(loop);
        any |= !list_empty(&backend_of(loop->backend)->pending);
    }
    return any;
}

static int backend_wait(struct backend *b, struct list *done, int64_t timeout_ns)
{
    struct memory_backend *m = backend_of(b);
    uint32_t idle = 0;

    for (;;) {
        complete(m, 1, done);
        if (!list_empty(done) || m->woken || timeout_ns == 0)
            break;
        idle = turn_shards(m->env) ? 0 : idle + 1;
        if (idle > IDLE_TURNS_MAX)
            finding("a queue waits for what nobody will do");
    }
    m->woken = false;
    return 0;
}

static void backend_wake(struct backend *b)
{
    backend_of(b)->woken = true;
}

static int backend_event_fd(const struct backend *b)
{
    (void)b;
    return -1;
}

static int backend_event_enable(struct backend *b, bool enable)
{
    (void)b, (void)enable;
    return 0;
}

static void backend_close(struct backend *b)
{
    struct memory_backend *m = backend_of(b);

    if (m->in_flight)
        finding("a backend is destroyed with %u I/Os in flight", m->in_flight);
    m->env->backends_open--;
    free(m);
}

static const struct backend_ops backend_ops = {
    .name = "memory",
    .prepare = backend_prepare_io,
    .turn = backend_turn,
    .wait = backend_wait,
    .wake = backend_wake,
    .event_fd = backend_event_fd,
    .event_enable = backend_event_enable,
    .destroy = backend_close,
};

static int env_backend_create(struct env *env, enum backend_kind kind, const struct backend_config *config,
                              struct backend **ret)
{
    struct memory_backend *m = calloc(1, sizeof *m);

    (void)kind;
    if (!m)
        finding("out of memory");
    m->base.ops = &backend_ops;
    m->env = env_of(env);
    m->ios_max = config->ios_max;
    m->env->backends_open++;
    *ret = &m->base;
    return 0;
}

/* ---- the environment ---- */

static int env_loop_start(struct env *env, struct loop *loop)
{
    struct memory_env *m = env_of(env);

    if (m->loop_count == MEMORY_LOOPS_MAX)
        finding("more than %u loops", MEMORY_LOOPS_MAX);
    m->loops[m->loop_count++] = loop;
    loop->has_thread = true;
    return 0;
}

static void env_loop_stop(struct env *env, struct loop *loop)
{
    struct memory_env *m = env_of(env);

    for (uint32_t i = 0; i < m->loop_count; i++)
        if (m->loops[i] == loop)
            m->loops[i--] = m->loops[--m->loop_count];
    loop->has_thread = false;
}

static uint64_t env_clock(struct env *env)
{
    return env_of(env)->turns * 1000;
}

static uint64_t env_random(struct env *env)
{
    return next_random(env_of(env));
}

static void env_destroy(struct env *env)
{
    env_of(env)->destroyed++;
}

static const struct env_ops env_ops = {
    .file_open = env_file_open,
    .file_open_fd = env_file_open_fd,
    .backend_create = env_backend_create,
    .loop_start = env_loop_start,
    .loop_stop = env_loop_stop,
    .now_ns = env_clock,
    .random = env_random,
    .destroy = env_destroy,
};

void memory_env_init(struct memory_env *env, const struct memory_disk disks[2],
                     const struct memory_plan *plan)
{
    *env = (struct memory_env){
        .base.ops = &env_ops, .disks = {disks[0], disks[1]}, .plan = *plan, .random = plan->seed};
    rcu_thread_ensure();
}

bool memory_env_failed_a_read(const struct memory_env *env)
{
    return (env->plan.fail_read && env->reads >= env->plan.fail_read) ||
           (env->plan.budget_bytes && env->read_bytes > env->plan.budget_bytes);
}

void memory_env_expect_idle(const struct memory_env *env)
{
    if (env->files_open || env->backends_open || env->loop_count)
        finding("closing left %u files, %u backends and %u loops", (unsigned)env->files_open,
                env->backends_open, env->loop_count);
    if (env->destroyed != 1)
        finding("the environment was destroyed %u times", env->destroyed);
}
