/* SPDX-License-Identifier: MIT */
/* Files, backends and the rest of the environment; sim_sched.c decides what happens when. */
#include "tests/sim/sim_env.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct sim_file {
    struct file base;
    struct sim *sim;
    struct sim_disk *disk;
};

struct sim_env {
    struct env base;
    struct sim *sim;
};

static struct sim_file *file_of(const struct file *f)
{
    return container_of(f, struct sim_file, base);
}

struct sim_disk *sim_disk_of(const struct file *f)
{
    return file_of(f)->disk;
}

/* ---- blocking operations: each is a step of its own, before which the power may fail ---- */

static ssize_t blocking_pread(struct file *f, void *buf, size_t bytes, uint64_t off)
{
    struct sim_file *const sf = file_of(f);
    const struct iovec iov = {buf, bytes};
    const int err = sim_fault(sf->sim, SIM_READ);

    if ((off | bytes) % f->io_align || (uintptr_t)buf % f->mem_align)
        sim_fail(sf->sim, "blocking read of %zu bytes at 0x%llx is not aligned", bytes,
                 (unsigned long long)off);
    if (err)
        return err;
    if (off >= sf->disk->now_bytes)
        return 0;
    disk_get(sf->disk, &iov, 1, 0, off, bytes);
    return (ssize_t)MIN(bytes, sf->disk->now_bytes - off);
}

static ssize_t blocking_pwrite(struct file *f, const void *buf, size_t bytes, uint64_t off)
{
    struct sim_file *const sf = file_of(f);
    const struct iovec iov = {(void *)(uintptr_t)buf, bytes};
    int err;

    if ((off | bytes) % f->io_align || (uintptr_t)buf % f->mem_align)
        sim_fail(sf->sim, "blocking write of %zu bytes at 0x%llx is not aligned", bytes,
                 (unsigned long long)off);
    if (!f->writable)
        sim_fail(sf->sim, "blocking write to %s, which is open for reading", f->name);
    sim_boundary(sf->sim);
    sim_trace(sf->sim, "blocking write %s 0x%llx+%zu", f->name, (unsigned long long)off, bytes);
    err = sim_fault(sf->sim, SIM_WRITE);
    if (err)
        return err;
    sf->sim->dirtied = true;
    err = disk_put(sf->disk, &iov, &iov, 1, 0, off, bytes);
    disk_complete(sf->disk, &iov, false);
    return err ? err : (ssize_t)bytes;
}

static int blocking_sync(struct file *f)
{
    struct sim_file *const sf = file_of(f);
    struct sim *const sim = sf->sim;
    int err;

    sim_boundary(sim);
    sim_trace(sim, "blocking sync %s", f->name);
    err = sim_fault(sim, SIM_SYNC);
    sim->dirtied = true;
    if (err)
        disk_sync_failed(sf->disk, sf->disk->clock, &sim->rng, sim->faults.harsh_sync);
    else
        disk_synced(sf->disk, sf->disk->clock);
    return err;
}

static int blocking_truncate(struct file *f, uint64_t bytes)
{
    struct sim_file *const sf = file_of(f);
    int err;

    sim_boundary(sf->sim);
    sim_trace(sf->sim, "truncate %s to 0x%llx", f->name, (unsigned long long)bytes);
    err = sim_fault(sf->sim, SIM_TRUNCATE);
    if (err)
        return err;
    sf->sim->dirtied = true;
    err = disk_resize(sf->disk, &bytes, bytes);
    disk_complete(sf->disk, &bytes, false);
    return err;
}

static int unsupported(const struct disk_config *c, enum io_kind kind)
{
    const bool no = kind == IO_ALLOCATE ? c->no_allocate : kind == IO_PUNCH ? c->no_punch : c->no_zero;

    return no ? -EOPNOTSUPP : 0;
}

/* What fails leaves a longer file, as on ext4. */
static int allocate(struct sim_disk *d, const void *tag, uint64_t off, uint64_t bytes)
{
    const uint64_t end = MIN(off + bytes, MAX(off, d->config.capacity));
    const int err = end > d->now_bytes ? disk_resize(d, tag, end) : 0;

    return err ? err : end < off + bytes ? -ENOSPC : 0;
}

/* IO_ALLOCATE, IO_PUNCH and IO_ZERO; FALLOC_FL_KEEP_SIZE for the last two is the file system's business: they
 * are only asked for what lies within the file. */
int sim_space(struct sim *sim, struct file *f, const void *tag, enum io_kind kind, uint64_t off,
              uint64_t bytes)
{
    struct sim_disk *const d = sim_disk_of(f);
    int err = unsupported(&d->config, kind);

    if (err)
        return err;
    err = sim_fault(sim, sim_class_of(kind));
    if (err && kind == IO_ALLOCATE)
        (void)allocate(d, tag, off, bytes / 2);
    if (err)
        return err;
    sim->dirtied = true;
    if (kind == IO_ALLOCATE)
        return allocate(d, tag, off, bytes);
    if (off >= d->now_bytes)
        return 0;
    bytes = MIN(bytes, d->now_bytes - off);
    d->punched += kind == IO_PUNCH ? bytes : 0;
    return disk_put(d, tag, NULL, 0, 0, off, bytes);
}

static int blocking_space(struct file *f, enum io_kind kind, uint64_t off, uint64_t bytes)
{
    struct sim_file *const sf = file_of(f);
    int err;

    sim_boundary(sf->sim);
    sim_trace(sf->sim, "blocking space %d %s 0x%llx+0x%llx", (int)kind, f->name, (unsigned long long)off,
              (unsigned long long)bytes);
    err = sim_space(sf->sim, f, &bytes, kind, off, bytes);
    disk_complete(sf->disk, &bytes, false);
    return err;
}

static int blocking_allocate(struct file *f, uint64_t off, uint64_t bytes)
{
    return blocking_space(f, IO_ALLOCATE, off, bytes);
}

static int blocking_punch(struct file *f, uint64_t off, uint64_t bytes)
{
    return blocking_space(f, IO_PUNCH, off, bytes);
}

static int blocking_zero(struct file *f, uint64_t off, uint64_t bytes)
{
    return blocking_space(f, IO_ZERO, off, bytes);
}

static int64_t blocking_seek(struct file *f, uint64_t off, bool data)
{
    (void)f, (void)off, (void)data;
    return -EOPNOTSUPP;
}

static void close_file(struct file *f)
{
    free(f->path);
    free(file_of(f));
}

static const struct file_ops sim_file_ops = {
    .pread = blocking_pread,
    .pwrite = blocking_pwrite,
    .sync = blocking_sync,
    .truncate = blocking_truncate,
    .allocate = blocking_allocate,
    .punch = blocking_punch,
    .zero = blocking_zero,
    .seek = blocking_seek,
    .close = close_file,
};

struct sim_disk *sim_find_disk(struct sim *sim, const char *name)
{
    for (uint32_t i = 0; i < sim->disk_count; i++)
        if (!strcmp(sim->disks[i]->config.name, name))
            return sim->disks[i];
    return NULL;
}

int sim_file_open(struct sim *sim, const char *name, uint32_t flags, struct file **ret)
{
    struct sim_disk *const d = sim_find_disk(sim, name);
    struct sim_file *f;

    if (!d)
        return error_set(-ENOENT, "there is no disk %s", name);
    f = calloc(1, sizeof *f);
    if (!f)
        abort();
    f->sim = sim;
    f->disk = d;
    f->base.ops = &sim_file_ops;
    f->base.fd = -1;
    f->base.writable = flags & FILE_WRITE;
    f->base.direct = true;
    f->base.block_device = d->config.block_device;
    f->base.io_align = d->config.io_align;
    f->base.mem_align = d->config.io_align;
    f->base.bytes = d->now_bytes;
    f->base.allocated_bytes = d->now_bytes;
    f->base.path = strdup(name);
    snprintf(f->base.name, sizeof f->base.name, "%s", name);
    *ret = &f->base;
    return 0;
}

/* ---- the backend ---- */

static struct sim_backend *backend_of(struct backend *b)
{
    return container_of(b, struct sim_backend, base);
}

static void backend_prepare_io(struct backend *b, struct io *io)
{
    list_push(&backend_of(b)->prepared, &io->node);
}

static void give_done(struct sim_backend *b, struct list *done)
{
    struct list_node *n;

    while ((n = list_pop(&b->done)))
        list_push(done, n);
    b->woken = false;
}

static int backend_turn(struct backend *base, struct list *done)
{
    struct sim_backend *const b = backend_of(base);
    const bool woken = b->woken;

    sim_submit(b);
    give_done(b, done);
    b->woken = woken;
    return 0;
}

static int backend_wait(struct backend *base, struct list *done, int64_t timeout_ns)
{
    struct sim_backend *const b = backend_of(base);

    sim_submit(b);
    sim_wait(b, timeout_ns);
    give_done(b, done);
    return 0;
}

static void backend_wake(struct backend *base)
{
    struct sim_backend *const b = backend_of(base);

    b->woken = true;
    b->event |= b->event_enabled;
}

static int backend_event_fd(const struct backend *b)
{
    (void)b;
    return -1;
}

static int backend_event_enable(struct backend *b, bool enable)
{
    backend_of(b)->event_enabled = enable;
    return 0;
}

static void backend_release(struct backend *base)
{
    struct sim_backend *const b = backend_of(base);

    if (b->in_flight || !list_empty(&b->prepared))
        sim_fail(b->sim, "a backend is destroyed with %u I/Os in flight", b->in_flight);
    b->in_use = false;
}

static const struct backend_ops sim_backend_ops = {
    .name = "simulator",
    .prepare = backend_prepare_io,
    .turn = backend_turn,
    .wait = backend_wait,
    .wake = backend_wake,
    .event_fd = backend_event_fd,
    .event_enable = backend_event_enable,
    .destroy = backend_release,
};

static struct sim *sim_of(struct env *env)
{
    return container_of(env, struct sim_env, base)->sim;
}

static int env_backend_create(struct env *env, enum backend_kind kind, const struct backend_config *config,
                              struct backend **ret)
{
    struct sim *const sim = sim_of(env);
    uint32_t i = 0;

    (void)kind, (void)config;
    while (i < SIM_BACKENDS_MAX && sim->backends[i].in_use)
        i++;
    if (i == SIM_BACKENDS_MAX)
        abort();
    sim->backends_end = MAX(sim->backends_end, i + 1);
    sim->backends[i] =
        (struct sim_backend){.base.ops = &sim_backend_ops, .sim = sim, .number = i, .in_use = true};
    *ret = &sim->backends[i].base;
    return 0;
}

/* ---- the environment ---- */

static int env_file_open(struct env *env, const char *path, enum file_mode mode, uint32_t flags,
                         struct file **ret)
{
    (void)mode;
    return sim_file_open(sim_of(env), path, flags, ret);
}

static int env_file_open_fd(struct env *env, int fd, const char *name_path, enum file_mode mode,
                            uint32_t flags, struct file **ret)
{
    (void)env, (void)fd, (void)name_path, (void)mode, (void)flags, (void)ret;
    return error_set(-EBADF, "the simulator has no descriptors");
}

static int env_loop_start(struct env *env, struct loop *loop)
{
    sim_loop_started(sim_of(env), loop);
    return 0;
}

static void env_loop_stop(struct env *env, struct loop *loop)
{
    sim_loop_stopped(sim_of(env), loop);
}

static uint64_t env_clock(struct env *env)
{
    return sim_of(env)->now_ns;
}

static uint64_t env_random(struct env *env)
{
    return sim_random(sim_of(env), UINT64_MAX);
}

static void env_free(struct env *env)
{
    free(container_of(env, struct sim_env, base));
}

static const struct env_ops sim_env_ops = {
    .file_open = env_file_open,
    .file_open_fd = env_file_open_fd,
    .backend_create = env_backend_create,
    .loop_start = env_loop_start,
    .loop_stop = env_loop_stop,
    .now_ns = env_clock,
    .random = env_random,
    .destroy = env_free,
};

struct env *sim_env_create(struct sim *sim)
{
    struct sim_env *const e = calloc(1, sizeof *e);

    if (!e)
        abort();
    e->base.ops = &sim_env_ops;
    e->sim = sim;
    return &e->base;
}

/* ---- the simulation as a whole ---- */

struct sim *sim_new(void)
{
    struct sim *const sim = calloc(1, sizeof *sim);

    if (!sim)
        abort();
    sim->flights = calloc(SIM_FLIGHTS_MAX, sizeof *sim->flights);
    if (!sim->flights)
        abort();
    return sim;
}

void sim_free(struct sim *sim)
{
    if (!sim)
        return;
    for (uint32_t i = 0; i < SIM_DISKS_MAX; i++)
        disk_free(sim->disks[i]);
    free(sim->flights);
    free(sim);
}

void sim_reset(struct sim *sim, uint64_t seed)
{
    const struct sim old = *sim;

    memset(sim, 0, sizeof *sim);
    memcpy(sim->disks, old.disks, sizeof sim->disks);
    sim->flights = old.flights;
    sim->rng = seed * 0x9e3779b97f4a7c15u | 1;
    sim->now_ns = 1000000000;
    for (int i = 0; i < 8; i++)
        (void)sim_random(sim, 2);
}

struct sim_disk *sim_add_disk(struct sim *sim, const struct disk_config *config, const void *data,
                              uint64_t bytes)
{
    struct sim_disk **const d = &sim->disks[sim->disk_count++];

    invariant(sim->disk_count <= SIM_DISKS_MAX);
    if (!*d)
        *d = disk_new();
    disk_reset(*d, config, data, bytes);
    return *d;
}

void sim_fail(struct sim *sim, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sim->clients.fail(sim->clients.ctx, text);
    abort();
}

void sim_trace(struct sim *sim, const char *fmt, ...)
{
    va_list ap;

    if (likely(!sim->trace))
        return;
    printf("%9llu %12llu ", (unsigned long long)sim->steps, (unsigned long long)sim->now_ns);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}
