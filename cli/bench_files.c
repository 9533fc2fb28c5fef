/* SPDX-License-Identifier: MIT */
#include "cli/bench_files.h"
#include "cli/command.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const char *raw_path(const struct bench_options *o)
{
    return o->raw ? o->path : o->raw_path;
}

static int open_raw(struct bench_files *f)
{
    const struct bench_options *const o = f->options;
    const struct bench_raw_options options = {
        .io_mode = o->open.options.io_mode,
        .backend = o->open.options.backend,
        .writes = bench_writes(o->plan.pattern),
        .durable = bench_writes(o->plan.pattern) && o->open.writethrough,
        .create_bytes = o->fresh_bytes,
    };
    return bench_raw_open(raw_path(o), &options, &f->raw);
}

static int open_bench_image(struct bench_files *f)
{
    const struct bench_options *const o = f->options;
    struct scow_open_options options = o->open.options;
    int err = o->fresh_bytes ? scow_create(o->path, &o->create) : 0;
    if (err < 0) {
        command_library_error(o->path, err);
        return err;
    }
    options.open_child = scow_open_child_any;
    options.queues_max = bench_options_queues_max(o);
    err = open_image(o->path, &options, &f->image);
    if (err < 0)
        return err;
    err = scow_get_info(f->image, &f->info);
    if (err < 0)
        command_library_error(o->path, err);
    return err;
}

/* What --fresh makes must not replace what somebody keeps. */
static int refuse_existing(const struct bench_options *o, const char *path)
{
    if (!path || !o->fresh_bytes || access(path, F_OK) < 0)
        return 0;
    command_error(path, "it exists, and --fresh would replace it");
    command_hint("remove it, or name a file that does not exist");
    return -EEXIST;
}

int bench_files_open(struct bench_files *f, const struct bench_options *o)
{
    *f = (struct bench_files){.options = o, .info = SCOW_INFO_INIT, .raw = {.fd = -1}};
    int err = refuse_existing(o, o->path);
    if (!err && o->raw_path)
        err = refuse_existing(o, o->raw_path);
    if (!err && raw_path(o))
        err = open_raw(f);
    if (!err && !o->raw)
        err = open_bench_image(f);
    return err;
}

uint64_t bench_files_bytes(const struct bench_files *f)
{
    const uint64_t disk_bytes = f->image ? scow_size(f->image) : UINT64_MAX;
    return f->raw.fd >= 0 && f->raw.file_bytes < disk_bytes ? f->raw.file_bytes : disk_bytes;
}

static int close_side_image(struct bench_files *f)
{
    struct scow_image *const image = f->image;
    f->image = NULL;
    return close_image(image, f->options->path);
}

static int renew(struct bench_files *f, enum bench_side side)
{
    if (side == BENCH_SIDE_RAW) {
        bench_raw_close(&f->raw);
        return open_raw(f);
    }
    const int err = close_side_image(f);
    return err ? err : open_bench_image(f);
}

/* The greatest power of two up to 1 MiB in which the range divides. */
static uint32_t prepare_block(uint64_t range_bytes)
{
    uint32_t block = 1u << 20;
    while (range_bytes % block)
        block /= 2;
    return block;
}

/* One queue writes all of the range, in order, and makes it durable. */
static int prepare(const struct bench_files *f, const struct bench_target *target,
                   const struct bench_plan *plan)
{
    struct bench_plan once = {
        .pattern = BENCH_WRITE,
        .block_bytes = prepare_block(plan->range_bytes),
        .depth = 8,
        .range_bytes = plan->range_bytes,
        .seed = plan->seed,
        .measure_ns = UINT64_MAX / 4,
        .once = true,
    };
    struct bench_result ignored;
    once.step_bytes = once.block_bytes;
    int err = bench_run(&once, target, 1, &ignored);
    if (err < 0)
        return err;
    bench_result_destroy(&ignored);
    if (target->image)
        err = scow_flush(target->image);
    else if (fdatasync(f->raw.fd) < 0)
        err = -errno;
    if (err < 0 && target->image)
        command_library_error(target->path, err);
    else if (err < 0)
        command_error(target->path, "fdatasync: %s", strerror(-err));
    return err;
}

int bench_files_target(struct bench_files *f, enum bench_side side, const struct bench_plan *plan,
                       struct bench_target *ret_target)
{
    const struct bench_options *const o = f->options;
    /* What was prepared is the same after every run. */
    if (o->fresh_bytes && !o->prepare && f->used[side]) {
        const int err = renew(f, side);
        if (err < 0)
            return err;
    }
    *ret_target = side == BENCH_SIDE_RAW ? (struct bench_target){.raw = &f->raw, .path = raw_path(o)}
                                         : (struct bench_target){.image = f->image, .path = o->path};
    const bool first = !f->used[side];
    f->used[side] = true;
    return first && o->prepare ? prepare(f, ret_target, plan) : 0;
}

int bench_files_close(struct bench_files *f)
{
    bench_raw_close(&f->raw);
    return close_side_image(f);
}
