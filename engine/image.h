/* SPDX-License-Identifier: MIT */
/* The handle behind struct scow_image. */
#ifndef ENGINE_IMAGE_H
#define ENGINE_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/epoch.h"
#include "engine/layer.h"
#include "io/env.h"
#include "shardcow.h"

struct allocator;
struct shard;

/* A name from the image that the caller was given: freed with the image. */
struct kept_string {
    struct kept_string *next;
    char text[];
};

#define KEPT_BUCKETS 1024u

/* Where an entry of a table of entries of differing length begins; no index above 0: nowhere yet. */
struct table_cursor {
    uint32_t index;
    uint64_t off;
};

#define QUEUES_DEFAULT 64u
#define QUEUES_MAX 1024u
#define SHARDS_MAX 256u
#define SHARDS_DEFAULT_MAX 16u
#define CHAIN_DEPTH_DEFAULT 64u
#define CHAIN_DEPTH_MAX 256u

struct scow_image {
    struct env *env;                  /* where threads, time, randomness and backends come from */
    struct scow_open_options options; /* with the defaults filled in */
    bool no_io;
    bool writable;

    struct layer *layers[CHAIN_DEPTH_MAX + 1]; /* by depth */
    uint32_t layer_count;
    struct file *files[2 * (CHAIN_DEPTH_MAX + 1)]; /* all open files by file.index, data files included */
    uint32_t file_count;

    /* Set once by the first queue, under lock. */
    struct shard *shards;
    uint32_t shard_count;        /* as it will be, from open on */
    struct allocator *allocator; /* with the shards, when writable and qcow2 */
    uint32_t slots_per_shard;
    uint32_t slice_bytes; /* of a slot: the largest slice of the chain */
    bool running;
    enum backend_kind backend;          /* that queues get */
    enum backend_kind metadata_backend; /* that shards get: never the null one */
    const char *backend_why;            /* NULL, or why the default was not taken */

    struct epoch_clock clock;
    /* Compressed clusters of the top layer that were freed: an inflated copy from before may be of another
     * cluster in the same place. Writers: shards, after the entry has changed (release). Readers: queues,
     * before they look an entry up (acquire), so that what was read by an old entry is never taken for a new
     * one's. */
    _Atomic uint64_t inflate_generation;
    /* Nonzero: writes are refused with it. Set once, by the allocator. */
    _Atomic int32_t write_error;
    uint8_t *zeros; /* a cluster's worth, page-aligned; never written */

    pthread_mutex_t lock; /* queue creation and destruction, thread start */
    /* Writer: queue creation and destruction, under lock. Readers: shards, inside an RCU read-side section.
     */
    struct scow_queue *_Atomic *queues;
    uint32_t queue_places;                              /* the length of queues */
    _Atomic uint32_t queues_end;                        /* one past the highest index ever used; grows only */
    struct kept_string *strings[KEPT_BUCKETS];          /* by hash; under lock */
    struct table_cursor snapshot_cursor, bitmap_cursor; /* the last entry asked for; under lock */
    struct scow_counters past;                          /* of destroyed queues; under lock */

    pthread_mutex_t blocking_lock;     /* serialises the blocking helpers */
    struct scow_queue *blocking_queue; /* created on first use, under blocking_lock */
};

/* Places in image.queues: the blocking helpers' queue, one reader per shard, then the embedder's. */
#define QUEUE_INDEX_BLOCKING 0u

static inline uint32_t image_reader_index(uint32_t shard_index)
{
    return 1 + shard_index;
}

static inline struct layer *image_top(const struct scow_image *image)
{
    return image->layers[0];
}

/* Open within an environment: scow_open() gives the real one, the simulator its own. file is owned on
 * success. */
int image_open(struct env *env, struct file *file, const struct scow_open_options *options,
               struct scow_image **ret_image);

/* Frees what image_open() made; nothing runs any more. */
void image_free(struct scow_image *image);

/* Starts the shards if they do not run yet. */
int image_start(struct scow_image *image);

#endif
