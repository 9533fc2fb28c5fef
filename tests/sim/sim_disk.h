/* SPDX-License-Identifier: MIT */
/*
 * A simulated file with a volatile write cache. What was written is seen at once by reads (now); what is
 * certain to survive a power cut is in durable; between the two is the log: everything that took effect
 * since, in order. A sync moves what was complete when it started from the log to durable. A power cut keeps
 * any part of the log, sector by sector.
 *
 * Changes of the file's size are kept in order, as a journalling file system does: a crash keeps the first so
 * many of them.
 */
#ifndef SIM_SIM_DISK_H
#define SIM_SIM_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "tests/sim/sparse.h"

#define SIM_SECTOR 512u
#define DISK_LOG_MAX 1024u

struct effect {
    bool size;             /* the file's size becomes off; bytes: how much that cut off */
    bool lost;             /* a failed sync dropped it: no later sync makes it durable */
    uint64_t off, bytes;   /* what changes */
    uint64_t data;         /* where in the arena; UINT64_MAX: zeros */
    uint64_t completed_at; /* by the disk's clock; 0: its I/O is in flight */
    const void *tag;       /* its I/O while in flight */
};

struct disk_config {
    char name[32]; /* the path that opens it */
    uint32_t io_align;
    bool block_device; /* fixed size */
    bool no_allocate, no_punch, no_zero;
    uint64_t capacity; /* no byte beyond it: -ENOSPC */
};

struct sim_disk {
    struct disk_config config;
    struct sparse now, durable;
    uint64_t now_bytes, durable_bytes; /* file sizes */
    struct effect log[DISK_LOG_MAX];
    uint32_t log_count;
    uint64_t clock; /* counts completions */
    uint8_t *arena; /* data of the log's effects, in their order */
    size_t arena_used, arena_room;
    uint64_t size_max;       /* largest that the file has been */
    uint64_t punched, syncs; /* bytes, calls */
};

struct sim_disk *disk_new(void);
void disk_free(struct sim_disk *d);

/* Holds bytes, durably, and nothing else. */
void disk_reset(struct sim_disk *d, const struct disk_config *config, const void *data, uint64_t bytes);

/* Effects: seen from now on, in the log, in flight until disk_complete(tag). Zeros when iov is NULL. 0, or
 * -ENOSPC when they would pass the capacity: then nothing happened. */
int disk_put(struct sim_disk *d, const void *tag, const struct iovec *iov, int iov_count, uint64_t skip,
             uint64_t off, uint64_t bytes);
int disk_resize(struct sim_disk *d, const void *tag, uint64_t bytes);
void disk_get(const struct sim_disk *d, const struct iovec *iov, int iov_count, uint64_t skip, uint64_t off,
              uint64_t bytes);

/* tag's I/O is complete; durable: what it did survives. */
void disk_complete(struct sim_disk *d, const void *tag, bool durable);

/* A sync covers what completed until start (disk->clock when it began). failed: some of that, chosen by rng;
 * harsh: the rest of it is never made durable by later syncs. */
void disk_synced(struct sim_disk *d, uint64_t start);
void disk_sync_failed(struct sim_disk *d, uint64_t start, uint64_t *rng, bool harsh);

/* Everything that took effect is durable. */
void disk_settle(struct sim_disk *d);

/* For crash images: apply sectors of effect e to out. */
void disk_effect_apply(const struct sim_disk *d, const struct effect *e, uint64_t from, uint64_t bytes,
                       struct sparse *out);

/* Copies between iovecs (skipping bytes of them) and memory. */
void iov_gather(const struct iovec *iov, int iov_count, uint64_t skip, uint8_t *to, uint64_t bytes);
void iov_scatter(const struct iovec *iov, int iov_count, uint64_t skip, const uint8_t *from, uint64_t bytes);

#endif
