/* SPDX-License-Identifier: MIT */
/*
 * The input is a qcow2 file. Everything the library tells about it is asked for, it is mapped, read and
 * checked; each call has to return, with what its contract says, and the answers have to agree with each
 * other:
 *
 *   - an extent is not empty, lies in what was asked for, and is what a read gives: zeros, or the file's
 *     bytes;
 *   - a large read, the same range sector by sector and the same range by way of a queue give the same bytes;
 *   - a check finds the same in one pass and in several, with one thread and with two.
 *
 * The last two bytes of the input choose among options (plan_of()), so that an input says all by itself.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/rcu.h"
#include "engine/image.h"
#include "shardcow.h"
#include "tests/fuzz/child_image.h"
#include "tests/fuzz/memory_env.h"

#define BUFFER_BYTES (256u << 10)
#define LIST_MAX 400u
#define READ_BUDGET_BYTES (40u << 20)
#define SPARSE_TAIL_BYTES (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* What an input is done with. */
struct plan {
    uint32_t io_align;
    uint32_t slice_bytes;
    uint32_t shards;
    uint64_t cache_bytes;
    enum scow_format child_format;
    bool sparse_tail;
    uint64_t fail_read;
};

/* The last two bytes, lowest bits first: alignment, slice, shards, cache, child; sparse tail, failing read.
 */
static struct plan plan_of(const uint8_t *data, size_t bytes)
{
    static const uint32_t aligns[] = {1, 512, 4096, 1}, slices[] = {512, 4096, 1024, 65536};
    const unsigned a = bytes >= 2 ? data[bytes - 1] : 0, b = bytes >= 2 ? data[bytes - 2] : 0;

    return (struct plan){
        .io_align = aligns[a & 3],
        .slice_bytes = slices[a >> 2 & 3],
        .shards = 1 + (a >> 4 & 1),
        .cache_bytes = a & 0x20 ? 1 : 0, /* one slice per shard */
        .child_format = a & 0x40 ? SCOW_FORMAT_QCOW2 : SCOW_FORMAT_RAW,
        .sparse_tail = b & 1,
        .fail_read = b & 2 ? 1u + (b >> 2) : 0,
    };
}

/* One opened image and the environment under it. */
struct subject {
    struct memory_env env;
    struct scow_image *image;
    uint8_t *buffer, *other;
};

/* A call that failed has to say why. */
static int expect_message(int ret)
{
    if (ret > 0 || ret < -4095)
        finding("a call returned %d", ret);
    if (ret < 0 && !scow_error()[0])
        finding("a call failed with %d and no message", ret);
    return ret;
}

/* Answers may differ only when reads of the file were made to fail. */
static bool steady(const struct subject *s)
{
    return !memory_env_failed_a_read(&s->env);
}

/* ---- lists and tables ---- */

static void list_header(struct subject *s)
{
    struct scow_extension e = {.size = sizeof e};
    struct scow_feature_name f = {.size = sizeof f};
    volatile uint8_t sink = 0;

    for (uint32_t i = 0; i < LIST_MAX && expect_message(scow_get_extension(s->image, i, &e)) == 0; i++)
        for (uint32_t k = 0; k < e.data_bytes; k++)
            sink ^= ((const uint8_t *)e.data)[k];
    for (uint32_t i = 0; i < LIST_MAX && expect_message(scow_get_feature_name(s->image, i, &f)) == 0; i++)
        if (!memchr(f.name, 0, sizeof f.name))
            finding("a feature name has no end");
    (void)sink;
}

/* The whole list is one pass over the table: few reads for each entry, not a walk to each. */
static void list_tables(struct subject *s)
{
    struct scow_snapshot n = {.size = sizeof n};
    struct scow_bitmap b = {.size = sizeof b};
    uint32_t listed = 1;
    uint64_t before = s->env.reads;

    for (uint32_t i = 0; i < LIST_MAX && expect_message(scow_get_snapshot(s->image, i, &n)) == 0;
         i++, listed++)
        if (strlen(n.id) > 65535 || strlen(n.name) > 65535)
            finding("a snapshot's name is too long");
    for (uint32_t i = 0; i < LIST_MAX && expect_message(scow_get_bitmap(s->image, i, &b)) == 0; i++, listed++)
        if (strlen(b.name) > 1023)
            finding("a bitmap's name is too long");
    if (s->env.reads - before > 10u * listed + 10u)
        finding("a list of %u entries took %llu reads", listed, (unsigned long long)(s->env.reads - before));
}

/* Reads the first entries of a table into values, fewer when it has fewer. Returns how many. */
static uint32_t read_some(struct subject *s, enum scow_table which, uint64_t table, uint64_t *values,
                          uint32_t count)
{
    int ret = -ERANGE;

    for (; count && ret == -ERANGE; count /= ret == -ERANGE ? 2 : 1)
        ret = expect_message(scow_read_table(s->image, which, table, 0, count, values));
    if (expect_message(scow_read_table(s->image, which, table, UINT64_MAX - 1, 2, values)) == 0)
        finding("table %d has entries at the end of the world", (int)which);
    return ret == 0 ? count : 0;
}

static void read_tables(struct subject *s, const struct scow_info *info)
{
    uint64_t values[512], entries[64];
    uint32_t n = read_some(s, SCOW_TABLE_L1, 0, values, ARRAY_COUNT(values)), tables = 0;

    for (uint32_t i = 0; i < n && tables < 8; i++)
        if (values[i] & 0x00fffffffffffe00u) {
            read_some(s, SCOW_TABLE_L2, values[i] & 0x00fffffffffffe00u, entries, ARRAY_COUNT(entries));
            tables++;
        }
    for (uint32_t i = 1; i <= MIN(info->snapshot_count, 8u); i++)
        read_some(s, SCOW_TABLE_L1, i, values, ARRAY_COUNT(values));
    for (uint32_t i = 0; i < MIN(info->bitmap_count, 8u); i++)
        read_some(s, SCOW_TABLE_BITMAP, i, values, ARRAY_COUNT(values));
    n = read_some(s, SCOW_TABLE_REFTABLE, 0, values, ARRAY_COUNT(values));
    for (uint32_t i = 0, blocks = 0; i < n && blocks < 4; i++)
        if (values[i]) {
            read_some(s, SCOW_TABLE_REFCOUNTS, values[i], entries, ARRAY_COUNT(entries));
            blocks++;
        }
}

/* ---- reads ---- */

static int expect_pread(struct subject *s, uint8_t *buf, uint64_t bytes, uint64_t off)
{
    /* exactly as large as the read: the sanitizer sees what goes beyond */
    uint8_t *exact = malloc(bytes + 1);
    const int ret = expect_message(scow_pread(s->image, exact, bytes, off));

    if (ret == 0)
        memcpy(buf, exact, bytes);
    free(exact);
    return ret;
}

static void expect_same_by_sectors(struct subject *s, uint64_t off, uint64_t bytes)
{
    int whole, parts = 0;

    memset(s->buffer, 0xa5, bytes);
    memset(s->other, 0x5a, bytes);
    whole = expect_pread(s, s->buffer, bytes, off);
    for (uint64_t at = 0; at < bytes; at += 512) {
        const int ret = expect_pread(s, s->other + at, MIN(bytes - at, 512u), off + at);

        parts = parts ? parts : ret;
    }
    if (!steady(s))
        return;
    if (!whole != !parts)
        finding("%llu bytes at %llu: the whole read says %d, its parts %d", (unsigned long long)bytes,
                (unsigned long long)off, whole, parts);
    if (!whole && memcmp(s->buffer, s->other, bytes))
        finding("%llu bytes at %llu: the whole read and its parts differ", (unsigned long long)bytes,
                (unsigned long long)off);
}

struct place {
    uint64_t off, bytes;
};

/* A dozen places of the disk. */
static uint32_t choose_places(uint64_t size, uint64_t cluster, struct place places[16])
{
    const uint64_t middle = size / 2;
    const struct place wanted[] = {
        {0, 512},
        {0, BUFFER_BYTES},
        {1, 1},
        {511, 2},
        {cluster - 512, 1024},
        {cluster + 7, 3 * cluster},
        {middle, 4096},
        {round_down(middle, 512) - 512, 20000},
        {middle + 1, 511},
        {size - 1, 1},
        {size - 512, 512},
        {size - MIN(size, 65536 + 100), 65536 + 100},
    };
    uint32_t n = 0;

    for (size_t i = 0; i < ARRAY_COUNT(wanted); i++) {
        if (wanted[i].off >= size)
            continue;
        places[n] = wanted[i];
        places[n].bytes = MIN(MIN(wanted[i].bytes, size - wanted[i].off), BUFFER_BYTES);
        n++;
    }
    return n;
}

static void read_places(struct subject *s, uint64_t cluster)
{
    struct place places[16];
    const uint64_t size = scow_size(s->image);
    const uint32_t n = choose_places(size, cluster, places);

    for (uint32_t i = 0; i < n; i++)
        if (places[i].bytes <= 8192)
            expect_same_by_sectors(s, places[i].off, places[i].bytes);
        else
            expect_pread(s, s->buffer, places[i].bytes, places[i].off);
    if (expect_message(scow_pread(s->image, s->buffer, 1, size)) == 0)
        finding("a read past the end succeeded");
}

/* ---- queues ---- */

#define FLIGHT 6u
#define FLIGHT_BYTES 32768u

struct flight {
    struct place place; /* whole sectors */
    uint8_t *memory;
    struct iovec iov[3];
    int ret;
};

/* The same ranges at once, to scattered and to unaligned memory. */
static void submit_flight(struct scow_queue *q, struct flight *f, uint32_t i)
{
    const uint64_t first = round_down(f->place.bytes / 3, 512);
    int ret;

    if (posix_memalign((void **)&f->memory, 4096, f->place.bytes + 1))
        finding("out of memory");
    f->iov[0] = (struct iovec){f->memory + (i & 1), 0};
    f->iov[1] = (struct iovec){f->memory + (i & 1), first};
    f->iov[2] = (struct iovec){f->memory + (i & 1) + first, f->place.bytes - first};
    ret = i < 3 ? scow_queue_readv(q, f->place.off, f->iov, 3, f, 0)
                : scow_queue_read(q, f->place.off, f->memory + (i & 1), f->place.bytes, f, 0);
    if (ret < 0)
        finding("submission %u said %d: %s", i, ret, scow_error());
}

static void await_flights(struct scow_queue *q, uint32_t count)
{
    struct scow_completion done[FLIGHT];

    for (uint32_t seen = 0; seen < count;) {
        const int n = scow_queue_poll(q, done, 1, FLIGHT, SCOW_WAIT_FOREVER);

        if (n <= 0)
            finding("poll with %u in flight said %d", scow_queue_in_flight(q), n);
        for (int i = 0; i < n; i++) {
            if (done[i].ret > 0 || !done[i].error != !done[i].ret || (done[i].ret && !done[i].error[0]))
                finding("a completion says %d and \"%s\"", done[i].ret, done[i].error ? done[i].error : "");
            ((struct flight *)done[i].user_data)->ret = done[i].ret;
        }
        seen += (uint32_t)n;
    }
}

static void read_with_queue(struct subject *s, uint64_t cluster)
{
    struct flight flights[FLIGHT] = {0};
    struct place places[16];
    const uint64_t size = scow_size(s->image);
    const uint32_t n = choose_places(size, cluster, places);
    struct scow_queue_options options = SCOW_QUEUE_OPTIONS_INIT;
    struct scow_queue *q;
    uint32_t count = 0;

    options.depth = FLIGHT;
    if (expect_message(scow_queue_create(s->image, &options, &q)) < 0)
        return;
    for (uint32_t i = 0; i < n && count < FLIGHT; i++) {
        const uint64_t off = round_down(places[i].off, 512);

        flights[count].place = (struct place){off, MIN(size - off, FLIGHT_BYTES)};
        submit_flight(q, &flights[count], count);
        count++;
    }
    await_flights(q, count);
    if (scow_queue_destroy(q) < 0)
        finding("the queue cannot be destroyed: %s", scow_error());
    for (uint32_t i = 0; i < count; i++) {
        const struct place *p = &flights[i].place;
        const int ret = expect_pread(s, s->buffer, p->bytes, p->off);

        if (steady(s) &&
            (!ret != !flights[i].ret || (!ret && memcmp(s->buffer, flights[i].memory + (i & 1), p->bytes))))
            finding("queue and scow_pread() differ (%d and %d): %llu bytes at %llu", flights[i].ret, ret,
                    (unsigned long long)p->bytes, (unsigned long long)p->off);
        free(flights[i].memory);
    }
}

/* ---- extents ---- */

static const struct memory_disk *disk_of(const struct subject *s, const struct scow_extent *e)
{
    return &s->env.disks[e->host_path != image_top(s->image)->file->path];
}

/* What a read gives has to be what the extent says. */
static void expect_extent_bytes(struct subject *s, const struct scow_extent *e)
{
    const uint64_t bytes = MIN(e->bytes, 1024u);
    const bool data = !(e->flags & SCOW_EXTENT_ZERO) && (e->flags & SCOW_EXTENT_HOST_OFF);
    const struct memory_disk *disk = disk_of(s, e);
    const int ret = expect_pread(s, s->buffer, bytes, e->off);

    if (!steady(s) || (!data && !(e->flags & SCOW_EXTENT_ZERO)))
        return; /* compressed */
    if (ret < 0)
        finding("offset %llu is mapped but cannot be read: %s", (unsigned long long)e->off, scow_error());
    for (uint64_t i = 0; i < bytes; i++) {
        const uint8_t expected = data ? memory_disk_byte(disk, e->host_off + i) : 0;

        if (s->buffer[i] != expected)
            finding("offset %llu (extent flags 0x%x, depth %u): read 0x%02x, expected 0x%02x",
                    (unsigned long long)(e->off + i), e->flags, e->depth, s->buffer[i], expected);
    }
}

static void walk_extents(struct subject *s, uint64_t off, uint64_t end, uint32_t flags, uint32_t max)
{
    for (uint32_t i = 0; i < max && off < end; i++) {
        struct scow_extent e = {.size = sizeof e};
        const int ret = expect_message(scow_get_extent(s->image, off, end - off, flags, &e));

        if (ret < 0 && !flags && expect_pread(s, s->buffer, 1, off) == 0 && steady(s))
            finding("offset %llu can be read but not mapped", (unsigned long long)off);
        if (ret < 0)
            return;
        if (!e.bytes || e.bytes > end - off || e.off != off)
            finding("the extent at %llu has %llu bytes", (unsigned long long)off,
                    (unsigned long long)e.bytes);
        if (!flags)
            expect_extent_bytes(s, &e);
        off += e.bytes;
    }
}

static void map_places(struct subject *s, uint64_t cluster)
{
    const uint64_t size = scow_size(s->image), span = MIN(size, cluster * 1024);
    const uint64_t middle = round_down(size / 2, 512);

    walk_extents(s, 0, span, 0, 40);
    walk_extents(s, 0, span, SCOW_EXTENT_THIS_LAYER, 10);
    walk_extents(s, middle, MIN(size, middle + span), 0, 8);
    walk_extents(s, size - span, size, 0, 8);
    if (expect_message(scow_get_extent(s->image, size, 1, 0, &(struct scow_extent){.size = 8})) == 0)
        finding("there is an extent past the end");
}

/* ---- check ---- */

struct told {
    uint64_t counts[4];
    uint32_t calls;
};

static void tell(void *ctx, enum scow_problem_kind kind, const char *text)
{
    struct told *t = ctx;

    if (kind < SCOW_PROBLEM_CORRUPTION || kind > SCOW_PROBLEM_ERROR || !text[0])
        finding("check tells of kind %d: \"%s\"", (int)kind, text);
    t->counts[kind]++;
}

static int limit_progress(void *ctx, uint64_t done, uint64_t total)
{
    struct told *t = ctx;

    (void)done, (void)total;
    return ++t->calls > 4000;
}

static int run_check(struct subject *s, uint64_t memory_bytes, uint32_t threads,
                     struct scow_check_result *ret_result)
{
    struct scow_check_options options = SCOW_CHECK_OPTIONS_INIT;
    struct told told = {0};
    int ret;

    options.memory_bytes = memory_bytes;
    options.threads = threads;
    options.problem = tell;
    options.progress = limit_progress;
    options.ctx = &told;
    ret = expect_message(scow_check(s->image, &options, ret_result));
    if (ret == 0 && steady(s) &&
        (told.counts[SCOW_PROBLEM_CORRUPTION] != ret_result->corruptions ||
         told.counts[SCOW_PROBLEM_LEAK] != ret_result->leaks ||
         told.counts[SCOW_PROBLEM_ERROR] != ret_result->check_errors))
        finding("check tells of %llu/%llu/%llu problems and counts %llu/%llu/%llu",
                (unsigned long long)told.counts[1], (unsigned long long)told.counts[2],
                (unsigned long long)told.counts[3], (unsigned long long)ret_result->corruptions,
                (unsigned long long)ret_result->leaks, (unsigned long long)ret_result->check_errors);
    return ret;
}

static void expect_same_result(const struct scow_check_result *a, const struct scow_check_result *b)
{
    const uint64_t *x = (const uint64_t *)(const void *)a, *y = (const uint64_t *)(const void *)b;

    for (size_t i = 0; i < sizeof *a / sizeof *x; i++)
        if (x[i] != y[i] && i != offsetof(struct scow_check_result, passes) / sizeof *x)
            finding("check: field %zu is %llu in %u passes, %llu in %u", i, (unsigned long long)x[i],
                    a->passes, (unsigned long long)y[i], b->passes);
}

/* In as many passes as can be and in one. Each pass goes through the refcount table: not with a large one. */
static void check_image(struct subject *s, const struct scow_info *info)
{
    struct scow_check_result small = SCOW_CHECK_RESULT_INIT, large = SCOW_CHECK_RESULT_INIT;
    const uint64_t reftable_bytes = (uint64_t)info->reftable_clusters * info->cluster_bytes;
    const bool two_threads = s->env.plan.seed & 2;
    const int ret = run_check(s, reftable_bytes > 65536 ? 32u << 20 : 1, two_threads ? 2 : 1, &small);
    const int again = run_check(s, 64u << 20, 1, &large);

    if (!steady(s) || ret == -ECANCELED || again == -ECANCELED)
        return;
    if (!ret != !again)
        finding("check says %d with little memory and %d with much", ret, again);
    if (ret == 0)
        expect_same_result(&small, &large);
}

/* ---- one input ---- */

static int allow_child(void *ctx, struct scow_child *child)
{
    const struct plan *plan = ctx;

    if (!child->name[0] || child->depth > 4)
        finding("a child at depth %u has the name \"%s\"", child->depth, child->name);
    child->format = child->role == SCOW_CHILD_BACKING ? plan->child_format : SCOW_FORMAT_RAW;
    return 0;
}

static bool open_subject(struct subject *s, const uint8_t *data, size_t bytes, const struct plan *plan,
                         uint32_t flags, bool allow)
{
    struct scow_open_options options = SCOW_OPEN_OPTIONS_INIT;
    const struct memory_disk image = {data, bytes, bytes + (plan->sparse_tail ? SPARSE_TAIL_BYTES : 0),
                                      plan->io_align};
    const struct memory_disk child = {child_image(), CHILD_IMAGE_BYTES, CHILD_IMAGE_BYTES, plan->io_align};
    const struct memory_plan reads = {.fail_read = plan->fail_read,
                                      .budget_bytes = READ_BUDGET_BYTES,
                                      .seed = bytes ? data[bytes - 1] * 257u + bytes : 0};
    int ret;

    options.flags = flags;
    options.backend = SCOW_BACKEND_THREADS; /* what the environment makes of it */
    options.shards = plan->shards;
    options.queues_max = 2;
    options.slice_bytes = plan->slice_bytes;
    options.cache_bytes = plan->cache_bytes;
    options.chain_depth_max = 3;
    options.open_child = allow ? allow_child : NULL;
    options.open_child_ctx = (void *)plan;
    memory_env_init(&s->env, (struct memory_disk[]){image, child}, &reads);
    s->image = NULL;
    ret = expect_message(image_open(&s->env.base, memory_env_open_image(&s->env), &options, &s->image));
    if (ret < 0)
        memory_env_expect_idle(&s->env);
    return ret == 0;
}

static void close_subject(struct subject *s)
{
    scow_close(s->image);
    memory_env_expect_idle(&s->env);
}

/* Metadata alone. Returns whether there is any sense in going on. */
static bool inspect(struct subject *s, const uint8_t *data, size_t bytes, const struct plan *plan)
{
    struct scow_info info = SCOW_INFO_INIT;

    if (!open_subject(s, data, bytes, plan, SCOW_OPEN_NO_IO, false))
        return steady(s) == false;
    expect_message(scow_get_info(s->image, &info));
    list_header(s);
    list_tables(s);
    read_tables(s, &info);
    check_image(s, &info);
    if (scow_pread(s->image, s->buffer, 1, 0) == 0 && scow_size(s->image))
        finding("a read worked without I/O");
    close_subject(s);
    return true;
}

static void use(struct subject *s, const uint8_t *data, size_t bytes, const struct plan *plan, bool allow)
{
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_counters counters = SCOW_COUNTERS_INIT;

    if (!open_subject(s, data, bytes, plan, 0, allow))
        return;
    expect_message(scow_get_info(s->image, &info));
    map_places(s, info.cluster_bytes);
    read_places(s, info.cluster_bytes);
    read_with_queue(s, info.cluster_bytes);
    expect_message(scow_counters(s->image, &counters));
    close_subject(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static uint8_t buffer[BUFFER_BYTES + 1], other[BUFFER_BYTES + 1];
    static struct subject subject;
    const struct plan plan = plan_of(data, bytes);

    subject.buffer = buffer;
    subject.other = other;
    if (!inspect(&subject, data, bytes, &plan))
        return 0;
    use(&subject, data, bytes, &plan, false);
    use(&subject, data, bytes, &plan, true);
    return 0;
}
