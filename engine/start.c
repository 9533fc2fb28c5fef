/* SPDX-License-Identifier: MIT */
/* Starting an image's loops with its first queue, and ending everything. */
#include <stdlib.h>

#include "base/error.h"
#include "engine/allocator.h"
#include "engine/blocking.h"
#include "engine/image.h"
#include "engine/queue.h"
#include "engine/shard.h"

static int start_loop(struct scow_image *image, struct loop *loop)
{
    const int r = image->env->ops->loop_start(image->env, loop);

    loop->started = r == 0;
    return r;
}

static void stop_loop(struct scow_image *image, struct loop *loop)
{
    if (loop->started)
        image->env->ops->loop_stop(image->env, loop);
    loop->started = false;
}

static void stop_all(struct scow_image *image)
{
    if (image->allocator)
        stop_loop(image, &image->allocator->loop);
    for (uint32_t i = 0; image->shards && i < image->shard_count; i++)
        stop_loop(image, &image->shards[i].loop);
    for (uint32_t i = 0; image->shards && i < image->shard_count; i++)
        shard_destroy(&image->shards[i]);
    allocator_destroy(image->allocator);
    free(image->shards);
    image->allocator = NULL;
    image->shards = NULL;
}

static int start_loops(struct scow_image *image)
{
    int r = 0;

    for (uint32_t i = 0; i < image->shard_count && r == 0; i++)
        r = start_loop(image, &image->shards[i].loop);
    if (r == 0 && image->allocator)
        r = start_loop(image, &image->allocator->loop);
    return r;
}

int image_start(struct scow_image *image)
{
    int r = 0;

    if (image->running)
        return 0;
    image->shards = calloc(image->shard_count, sizeof *image->shards);
    if (!image->shards)
        return error_set(-ENOMEM, "out of memory");
    if (image->writable && image_top(image)->format == SCOW_FORMAT_QCOW2)
        r = allocator_create(image, &image->allocator);
    for (uint32_t i = 0; i < image->shard_count && r == 0; i++)
        r = shard_init(&image->shards[i], image, i);
    for (uint32_t i = 0; i < image->shard_count && r == 0; i++)
        r = shard_create_reader(&image->shards[i]);
    if (r == 0)
        r = start_loops(image);
    if (r < 0)
        stop_all(image);
    else
        image->running = true;
    return r;
}

SCOW_PUBLIC int scow_close(struct scow_image *image)
{
    int r = 0;

    if (!image)
        return 0;
    r = blocking_close(image);
    if (image->blocking_queue)
        queue_destroy(image->blocking_queue);
    stop_all(image);
    image_free(image);
    return r;
}
