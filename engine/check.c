/* SPDX-License-Identifier: MIT */
#include "engine/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "engine/image.h"
#include "engine/repair_parts.h"
#include "engine/options.h"
#include "engine/repair.h"

#define MEMORY_BYTES_DEFAULT (1ull << 30)
#define THREADS_DEFAULT_MAX 16u
/* The progress callback is called about this often. */
#define PROGRESS_STEPS 1000u
/* QEMU checks no file with more, and neither do we: a sparse file could have any number. */
#define CLUSTERS_MAX ((uint64_t)INT32_MAX)

static void tell(struct check *c, enum scow_problem_kind kind, const char *fmt, va_list args)
    ATTR_PRINTF(3, 0);
static void tell(struct check *c, enum scow_problem_kind kind, const char *fmt, va_list args)
{
    char text[ERROR_BYTES];

    vsnprintf(text, sizeof text, fmt, args);
    pthread_mutex_lock(&c->report_lock);
    c->options.problem(c->options.ctx, kind, text);
    pthread_mutex_unlock(&c->report_lock);
}

void check_tell(struct check *c, enum scow_problem_kind kind, const char *fmt, ...)
{
    va_list args;

    if (!c->options.problem || c->quiet)
        return;
    va_start(args, fmt);
    tell(c, kind, fmt, args);
    va_end(args);
}

void check_report(struct check_worker *w, enum scow_problem_kind kind, const char *fmt, ...)
{
    va_list args;

    if (w->check->quiet)
        return;
    if (kind == SCOW_PROBLEM_CORRUPTION)
        w->tally.corruptions++;
    else if (kind == SCOW_PROBLEM_LEAK)
        w->tally.leaks++;
    else
        w->tally.errors++;
    if (!w->check->options.problem)
        return;
    va_start(args, fmt);
    tell(w->check, kind, fmt, args);
    va_end(args);
}

int check_progress(struct check *c, uint64_t units)
{
    int stop = 0;

    if (!c->options.progress || c->quiet)
        return 0;
    pthread_mutex_lock(&c->report_lock);
    c->done += units;
    if (c->done - c->done_shown > c->total / PROGRESS_STEPS) {
        c->done_shown = c->done;
        stop = c->options.progress(c->options.ctx, MIN(c->done, c->total), c->total);
    }
    pthread_mutex_unlock(&c->report_lock);
    return stop ? error_set(-ECANCELED, "the check was stopped") : 0;
}

static void note_dangling(struct check *c, uint64_t off, uint64_t bytes)
{
    uint64_t first = atomic_load_explicit(&c->dangling_first, memory_order_relaxed);
    uint64_t last = atomic_load_explicit(&c->dangling_end, memory_order_relaxed), end;

    if (!checked_add(off, bytes, &end))
        end = UINT64_MAX;
    while (off < first && !atomic_compare_exchange_weak_explicit(&c->dangling_first, &first, off,
                                                                 memory_order_relaxed, memory_order_relaxed))
        ;
    while (end > last && !atomic_compare_exchange_weak_explicit(&c->dangling_end, &last, end,
                                                                memory_order_relaxed, memory_order_relaxed))
        ;
}

void check_region(struct check_worker *w, uint64_t off, uint64_t bytes, bool metadata)
{
    struct check *const c = w->check;
    uint64_t end;

    if (!bytes)
        return;
    /* The last cluster may be there in part, so a region may pass the end of the file, but by less than a
     * cluster. */
    if (!checked_add(off, bytes, &end) || end >= c->file_bytes + c->cluster_bytes) {
        note_dangling(c, off, bytes);
        if (check_first_pass(c))
            check_report(
                w, SCOW_PROBLEM_CORRUPTION,
                "ERROR: counting reference for region exceeding the end of the file by one cluster or "
                "more: offset 0x%" PRIx64 " size 0x%" PRIx64,
                off, bytes);
        return;
    }
    const uint64_t last = check_cluster(c, end - 1);

    if (unlikely(last >= c->clusters))
        atomic_store_explicit(&c->grown, true, memory_order_relaxed);
    for (uint64_t cluster = check_cluster(c, off); cluster <= last; cluster++) {
        if (!check_counts_cover(&c->counts, cluster))
            continue;
        if (unlikely(!check_counts_add(&c->counts, cluster)))
            check_report(w, SCOW_PROBLEM_CORRUPTION, "ERROR: overflow cluster offset=0x%" PRIx64,
                         cluster << c->cluster_bits);
        if (metadata && check_counts_mark_metadata(&c->counts, cluster))
            w->tally.metadata_clusters++;
    }
}

static void *run_worker(void *arg)
{
    struct check_worker *const w = arg;
    struct check *const c = w->check;
    const int ret = c->phase(w);

    if (ret < 0) {
        atomic_store_explicit(&c->stop, true, memory_order_relaxed);
        pthread_mutex_lock(&c->report_lock);
        if (!c->failed) {
            c->failed = ret;
            snprintf(c->failed_message, sizeof c->failed_message, "%s", error_message());
        }
        pthread_mutex_unlock(&c->report_lock);
    }
    return NULL;
}

/* Where no more threads can be had, those that there are do the work. */
int check_run(struct check *c, int (*phase)(struct check_worker *w))
{
    pthread_t threads[CHECK_THREADS_MAX];
    uint32_t started = 1;

    c->phase = phase;
    atomic_store_explicit(&c->next_unit, 0, memory_order_relaxed);
    while (started < c->options.threads &&
           pthread_create(&threads[started], NULL, run_worker, &c->workers[started]) == 0)
        started++;
    run_worker(&c->workers[0]);
    for (uint32_t i = 1; i < started; i++)
        pthread_join(threads[i], NULL);
    return c->failed ? error_set(c->failed, "%s", c->failed_message) : 0;
}

/* References that do not come from a mapping. */
static int count_structures(struct check *c)
{
    struct check_worker *const w = &c->workers[0];
    const struct header *const h = c->header;

    check_region(w, 0, c->cluster_bytes, true);
    for (uint32_t i = 0; i < c->table_count; i++) {
        const int ret = check_progress(c, 1); /* tables may be many and large: they can be stopped at */

        if (ret < 0)
            return ret;
        check_region(w, c->tables[i].off, (uint64_t)c->tables[i].count * 8, true);
    }
    if (c->repair && c->repair->rebuilding) {
        repair_count_new(w);
    } else {
        check_region(w, h->snapshots_off, c->snapshot_table_bytes, true);
        check_region(w, h->reftable_off, (uint64_t)c->reftable_count * 8, true);
    }
    check_crypto(w);
    return check_bitmaps(w);
}

int check_count(struct check *c)
{
    int ret;

    check_feed_reset(c, c->table_count);
    ret = check_run(c, check_refcounts_load_phase);
    if (ret == 0)
        ret = count_structures(c);
    if (ret == 0)
        ret = check_run(c, check_tables_phase);
    if (ret == 0 && !(c->repair && c->repair->rebuilding))
        check_refcounts_blocks(&c->workers[0]); /* last: it looks at what others counted */
    return ret;
}

int check_compare(struct check *c)
{
    const int ret = check_run(c, check_refcounts_compare_phase);

    if (ret == 0)
        check_refcounts_tell(&c->workers[0]);
    return ret;
}

static int count_and_compare(struct check *c)
{
    const int ret = check_count(c);

    return ret < 0 ? ret : check_compare(c);
}

/* The clusters that one pass can hold, a whole number of units. */
static uint64_t window_clusters(const struct check *c, uint64_t all)
{
    const uint32_t order = c->header->refcount_order;
    const uint64_t fixed = (uint64_t)c->reftable_count * 8 + c->table_count * sizeof *c->tables +
                           c->options.threads * (sizeof *c->workers + CHECK_BUFFER_BYTES);
    const uint64_t left = c->options.memory_bytes > fixed ? c->options.memory_bytes - fixed : 0;
    const uint64_t unit_bytes = check_counts_bytes(c->unit_clusters, order) + 1;
    uint64_t units = MAX(left / unit_bytes, 1);

    units = MAX(units, div_round_up(div_round_up(all, c->unit_clusters), CHECK_PASSES_MAX));
    return MIN(units * c->unit_clusters, round_up(all, c->unit_clusters));
}

int check_windows(struct check *c, uint64_t clusters, int (*visit)(struct check *c))
{
    uint64_t window, entries = 0;
    int ret = 0;

    c->unit_clusters = MIN(1ull << c->refblock_shift, (uint64_t)CHECK_UNIT_CLUSTERS_MAX);
    window = window_clusters(c, clusters);
    free(c->unit_state);
    c->unit_state = malloc(window / c->unit_clusters);
    if (!c->unit_state)
        return error_set(-ENOMEM, "out of memory");
    c->pass_count = (uint32_t)div_round_up(clusters, window);
    for (uint32_t i = 0; i < c->table_count; i++)
        entries += c->tables[i].count;
    c->total = entries * c->pass_count + 2 * div_round_up(clusters, c->unit_clusters);

    for (c->pass = 0; c->pass < c->pass_count && ret == 0; c->pass++) {
        const uint64_t first = c->pass * window;

        check_counts_unmap(&c->counts);
        ret = check_counts_map(&c->counts, first, MIN(window, round_up(clusters - first, c->unit_clusters)),
                               c->header->refcount_order);
        if (ret < 0)
            return ret;
        c->unit_count = c->counts.count / c->unit_clusters;
        ret = visit(c);
    }
    return ret;
}

int check_load(struct check *c)
{
    const int ret = check_refcounts_load_table(c);

    return ret < 0 ? ret : check_snapshots_read(&c->workers[0]);
}

struct check_tally check_sum(const struct check *c)
{
    struct check_tally sum = c->workers[0].tally;

    /* every field but one is a sum */
    for (uint32_t i = 1; i < c->options.threads; i++) {
        const struct check_tally *const t = &c->workers[i].tally;
        const uint64_t last = MAX(sum.last_cluster, t->last_cluster);

        for (size_t k = 0; k < sizeof sum / sizeof(uint64_t); k++)
            ((uint64_t *)&sum)[k] += ((const uint64_t *)t)[k];
        sum.last_cluster = last;
    }
    return sum;
}

struct scow_check_result check_result(const struct check *c, const struct check_tally *tally)
{
    const struct check_tally t = *tally;
    struct scow_check_result r = {
        .corruptions = t.corruptions,
        .leaks = t.leaks,
        .check_errors = t.errors,
        .image_end_off = (t.last_cluster + 1) << c->cluster_bits,
        .total_clusters = div_round_up(round_down(c->header->virtual_bytes, SECTOR_BYTES), c->cluster_bytes),
        .allocated_clusters = t.allocated,
        .compressed_clusters = t.compressed,
        .fragmented_clusters = t.fragmented,
        .passes = c->pass_count,
        .standard_clusters = t.standard,
        .zero_clusters = t.zero_plain,
        .zero_allocated_clusters = t.zero_allocated,
        .compressed_bytes = t.compressed_bytes,
        .l2_tables = t.l2_tables,
        .metadata_bytes = t.metadata_clusters << c->cluster_bits,
        .shared_clusters = t.shared,
        .host_clusters = t.host_clusters,
        .subclusters_allocated = t.subclusters_allocated,
        .subclusters_zero = t.subclusters_zero,
    };

    r.unallocated_clusters =
        r.total_clusters - t.standard - t.zero_plain - t.zero_allocated - t.compressed_guest;
    return r;
}

int check_take_options(const struct scow_check_options *given, struct scow_check_options *ret)
{
    struct scow_check_options o = SCOW_CHECK_OPTIONS_INIT;
    int r;

    if (given) {
        r = options_take(&o, sizeof o, given, "check options");
        if (r < 0)
            return r;
    }
    if (o.flags & ~(SCOW_CHECK_REPAIR_LEAKS | SCOW_CHECK_REPAIR_ALL))
        return error_set(-EINVAL, "check options: unknown flags 0x%" PRIx32, o.flags);
    for (size_t i = 0; i < ARRAY_COUNT(o.reserved); i++)
        if (o.reserved[i])
            return error_set(-EINVAL, "check options: a reserved field is not zero");
    if (o.threads > CHECK_THREADS_MAX)
        return error_set(-EINVAL, "check options: %" PRIu32 " threads, more than %u", o.threads,
                         CHECK_THREADS_MAX);
    if (!o.threads) {
        const long cpus = sysconf(_SC_NPROCESSORS_ONLN);

        o.threads = (uint32_t)MIN(MAX(cpus, 1), (long)THREADS_DEFAULT_MAX);
    }
    if (!o.memory_bytes)
        o.memory_bytes = MEMORY_BYTES_DEFAULT;
    *ret = o;
    return 0;
}

static int create_workers(struct check *c)
{
    c->workers = calloc(c->options.threads, sizeof *c->workers);
    if (!c->workers)
        return error_set(-ENOMEM, "out of memory");
    for (uint32_t i = 0; i < c->options.threads; i++) {
        void *buf;

        if (posix_memalign(&buf, 4096, CHECK_BUFFER_BYTES)) /* aligned: direct reads need no copy */
            return error_set(-ENOMEM, "out of memory");
        c->workers[i].check = c;
        c->workers[i].buf = buf;
        c->workers[i].sector_off = UINT64_MAX;
    }
    return 0;
}

void check_end(struct check *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; c->workers && i < c->options.threads; i++)
        free(c->workers[i].buf);
    free(c->workers);
    free(c->reftable);
    free(c->tables);
    free(c->unit_state);
    check_counts_unmap(&c->counts);
    file_close(c->own_file);
    pthread_mutex_destroy(&c->report_lock);
    pthread_mutex_destroy(&c->feed.lock);
    free(c);
}

/*
 * Metadata is read in small pieces, of which several lie in one page: with direct I/O each would cost a trip
 * to the disk. So the check reads (and repairs) through the page cache whatever the image does, if it can
 * have a descriptor of its own.
 */
static void open_file(struct check *c, struct file *file)
{
    c->file = file;
    if (file->direct && file->fd >= 0 &&
        file_open_fd(file->fd, file->path, FILE_BUFFERED, file->writable ? FILE_WRITE : 0, &c->own_file) == 0)
        c->file = c->own_file;
}

int check_begin(struct scow_image *image, const struct scow_check_options *options, struct check **ret)
{
    struct layer *const layer = image_top(image);
    struct check *c;
    int r;

    if (layer->format != SCOW_FORMAT_QCOW2)
        return error_set(-ENOTSUP, "a raw image has nothing to check");
    c = calloc(1, sizeof *c);
    if (!c)
        return error_set(-ENOMEM, "out of memory");
    open_file(c, layer->file);
    c->layer = layer;
    c->header = &layer->header;
    c->cluster0 = layer->cluster0;
    c->options = *options;
    c->data_file = layer->header.incompatible & INCOMPAT_DATA_FILE;
    c->cluster_bits = layer->header.cluster_bits;
    c->cluster_bytes = layer->header.cluster_bytes;
    c->file_bytes = round_up(c->file->bytes, SECTOR_BYTES);
    c->clusters = div_round_up(c->file_bytes, c->cluster_bytes);
    atomic_init(&c->dangling_first, UINT64_MAX);
    pthread_mutex_init(&c->report_lock, NULL);
    pthread_mutex_init(&c->feed.lock, NULL);
    r = c->clusters <= CLUSTERS_MAX
            ? create_workers(c)
            : error_set(-EFBIG, "the file has %" PRIu64 " clusters, more than the limit of %" PRIu64,
                        c->clusters, CLUSTERS_MAX);
    if (r < 0) {
        check_end(c);
        return r;
    }
    *ret = c;
    return 0;
}

/* Without repair. */
static int check_only(struct scow_image *image, const struct scow_check_options *options,
                      struct scow_check_result *ret)
{
    struct check *c;
    int r = check_begin(image, options, &c);

    if (r < 0)
        return r;
    r = check_load(c);
    if (r == 0)
        r = check_windows(c, c->clusters + 1, count_and_compare); /* one more: see grown */
    if (r == 0) {
        const struct check_tally t = check_sum(c);

        *ret = check_result(c, &t);
    }
    check_end(c);
    return r;
}

/* As qemu-img check -r: what is left is what another check finds, if anything was mended. */
static int check_and_repair(struct scow_image *image, const struct scow_check_options *options,
                            struct scow_check_result *ret)
{
    struct scow_check_result mended = SCOW_CHECK_RESULT_INIT;
    int r;

    if (!(image->options.flags & SCOW_OPEN_REPAIR))
        return error_set(-EROFS, "to be repaired an image is opened for writing and for repair");
    r = image_repair(image, options->flags, options, &mended);
    if (r == 0 && (mended.corruptions_fixed || mended.leaks_fixed)) {
        struct scow_check_result left;

        r = check_only(image, options, &left);
        left.corruptions_fixed = mended.corruptions_fixed;
        left.leaks_fixed = mended.leaks_fixed;
        mended = left;
    }
    if (r == 0)
        *ret = mended;
    return r;
}

SCOW_PUBLIC int scow_check(struct scow_image *image, const struct scow_check_options *options,
                           struct scow_check_result *ret)
{
    struct scow_check_options o;
    struct scow_check_result result;
    int r = check_take_options(options, &o);

    if (r == 0)
        r = o.flags ? check_and_repair(image, &o, &result) : check_only(image, &o, &result);
    if (r == 0)
        result_give(ret, &result, sizeof result);
    return r;
}
