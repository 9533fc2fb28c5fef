/* SPDX-License-Identifier: MIT */
/*
 * Writes stamps into an image through several queues until it is killed; kill_test.py does that, and looks at
 * what is left. What a flush has covered is in the journal, a file that is mapped: so it survives.
 *
 *   kill_writer [OPTION]... IMAGE JOURNAL   the journal, made by the caller, says how many queues there are
 *     -s SEED      of what is written
 *     -t MS        stop by itself and close the image after so long; 0: never
 *     -n SHARDS
 *     -l BYTES     of a slice
 *     -c SLOTS     of the cache
 *     -T           the backend of threads
 *     -B           buffered I/O
 *     -W           writethrough
 *     -f           instead: write stamps to half of the disk, and close
 *     -r           instead: open for writing, and close
 */
#include <pthread.h>
#include <shardcow.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/race/stamp_worker.h"

#define QUEUES_MAX 64u
#define SLOT_BYTES_MORE 64u /* what a slot takes besides its slice */

struct settings {
    uint64_t seed;
    uint32_t ms;
    struct scow_open_options open;
    uint32_t slots;
    bool fill, only_open;
};

static struct stamps stamps;
static struct stamp_worker workers[QUEUES_MAX];

static void usage(void)
{
    fputs("usage: kill_writer [-s SEED] [-t MS] [-n SHARDS] [-l BYTES] [-c SLOTS] [-TBWfr] IMAGE JOURNAL\n",
          stderr);
    exit(2);
}

static void parse(struct settings *set, int argc, char **argv)
{
    int c;

    *set = (struct settings){.seed = 1, .open = SCOW_OPEN_OPTIONS_INIT};
    set->open.flags = SCOW_OPEN_WRITE;
    set->open.open_child = scow_open_child_any;
    set->open.commit_interval_ms = 50;
    while ((c = getopt(argc, argv, "s:t:n:l:c:TBWfr")) != -1)
        switch (c) {
        case 's':
            set->seed = strtoull(optarg, NULL, 0) + 1;
            break;
        case 't':
            set->ms = (uint32_t)atoi(optarg);
            break;
        case 'n':
            set->open.shards = (uint32_t)atoi(optarg);
            break;
        case 'l':
            set->open.slice_bytes = (uint32_t)atoi(optarg);
            break;
        case 'c':
            set->slots = (uint32_t)atoi(optarg);
            break;
        case 'T':
            set->open.backend = SCOW_BACKEND_THREADS;
            break;
        case 'B':
            set->open.io_mode = SCOW_IO_BUFFERED;
            break;
        case 'W':
            set->open.flags |= SCOW_OPEN_WRITETHROUGH;
            break;
        case 'f':
            set->fill = true;
            break;
        case 'r':
            set->only_open = true;
            break;
        default:
            usage();
        }
    if (argc - optind != 2)
        usage();
    set->open.cache_bytes = (uint64_t)set->slots * (set->open.slice_bytes + SLOT_BYTES_MORE);
}

/* Half of the stripes, and whatever lies in them. */
static void fill(struct scow_image *image, uint64_t seed)
{
    const uint32_t end = stamps.layout.sector_count, stripe = stamps.layout.stripe_sectors;
    void *buf = malloc((size_t)stripe * STAMP_SECTOR_BYTES);

    for (uint32_t at = 0; at < end; at += stripe) {
        const struct stamp_range range = {at, MIN(stripe, end - at)};

        if (stamps_random(&seed, 2))
            continue;
        stamps_issue(&stamps, range, false);
        stamps_fill(&stamps, range, buf);
        if (scow_pwrite(image, buf, (size_t)range.count * STAMP_SECTOR_BYTES,
                        (uint64_t)at * STAMP_SECTOR_BYTES) < 0)
            stamps_fail(&stamps, "fill: %s", scow_error());
        stamps_ack(&stamps, range, false);
    }
    free(buf);
}

/* Returns when ms have passed or something failed. */
static void write_until_killed(struct scow_image *image, const struct settings *set)
{
    const uint32_t queues = stamps.layout.owners;
    pthread_t threads[QUEUES_MAX];

    for (uint32_t i = 0; i < queues; i++) {
        workers[i] = (struct stamp_worker){.stamps = &stamps,
                                           .image = image,
                                           .owner = i,
                                           .seed = set->seed * 1000 + i,
                                           .sectors_max = stamps.layout.stripe_sectors / 2 + 3,
                                           .writethrough = set->open.flags & SCOW_OPEN_WRITETHROUGH};
        stamp_worker_prepare(&workers[i]);
    }
    atomic_store(&stamps.journal->running, 1);
    for (uint32_t i = 0; i < queues; i++)
        pthread_create(&threads[i], NULL, stamp_worker_run, &workers[i]);
    for (uint32_t past = 0; (!set->ms || past < set->ms) && !atomic_load(&stamps.stop); past++)
        usleep(1000);
    atomic_store(&stamps.stop, true);
    for (uint32_t i = 0; i < queues; i++) {
        pthread_join(threads[i], NULL);
        stamp_worker_free(&workers[i]);
    }
}

int main(int argc, char **argv)
{
    struct settings set;
    struct scow_image *image;

    parse(&set, argc, argv);
    stamps_open(&stamps, argv[optind + 1]);
    if (stamps.layout.owners > QUEUES_MAX)
        usage();
    if (scow_open(argv[optind], &set.open, &image) < 0) {
        fprintf(stderr, "open: %s\n", scow_error());
        return 1;
    }
    if (set.fill)
        fill(image, set.seed);
    else if (!set.only_open)
        write_until_killed(image, &set);
    if (atomic_load(&stamps.failures))
        return 1;
    if (scow_close(image) < 0) {
        fprintf(stderr, "close: %s\n", scow_error());
        return 1;
    }
    atomic_store(&stamps.journal->closed, 1);
    stamps_close(&stamps);
    return 0;
}
