/* SPDX-License-Identifier: MIT */
#include "cli/chunks.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/sectors.h"

/* An extent is looked for this far, so that a huge one does not make the threads wait for its end. */
#define EXTENT_BYTES_MAX (256ull << 20)
/* Fewer zeros than this are read with the data around them. */
#define SPLIT_BYTES (64u << 10)

void chunks_init(struct chunks *chunks)
{
    pthread_mutex_init(&chunks->lock, NULL);
    for (unsigned i = 0; i < 2 && chunks->images[i]; i++)
        chunks->sizes[i] = round_to_sector(scow_size(chunks->images[i]));
    chunks->align = chunks->align ? chunks->align : CHUNK_ALIGN;
    chunks->next_off = chunks->first;
}

void chunks_destroy(struct chunks *chunks)
{
    pthread_mutex_destroy(&chunks->lock);
}

enum kind { KIND_DATA, KIND_ZEROS, KIND_ABSENT };

static enum kind kind_of(const struct chunks *c, const struct scow_extent *e)
{
    if (c->own_layer && !(e->flags & SCOW_EXTENT_PRESENT))
        return KIND_ABSENT;
    return e->flags & SCOW_EXTENT_ZERO && !c->keep_zeros ? KIND_ZEROS : KIND_DATA;
}

/* What lies at off in image i, and up to where: UINT64_MAX when it goes on to the image's end, where zeros
 * begin. */
static int look(struct chunks *c, unsigned i, uint64_t off, enum kind *ret_kind, uint64_t *ret_end)
{
    struct scow_extent *e = &c->extents[i];
    const uint64_t size = c->images[i] ? scow_size(c->images[i]) : 0;

    if (!c->images[i] || off >= size) {
        *ret_kind = KIND_ZEROS;
        *ret_end = UINT64_MAX;
        return 0;
    }
    if (off < e->off || off - e->off >= e->bytes) {
        const uint64_t bytes = size - off < EXTENT_BYTES_MAX ? size - off : EXTENT_BYTES_MAX;
        *e = (struct scow_extent){.size = sizeof *e};
        const int err =
            scow_get_extent(c->images[i], off, bytes, c->own_layer ? SCOW_EXTENT_THIS_LAYER : 0, e);
        if (err || !e->bytes) {
            c->failed_image = i;
            snprintf(c->error, sizeof c->error, "%s", *scow_error() ? scow_error() : strerror(-err));
            *e = (struct scow_extent){.size = sizeof *e};
            return err ? err : -EIO;
        }
    }
    *ret_kind = kind_of(c, e);
    *ret_end = e->off + e->bytes >= size ? UINT64_MAX : e->off + e->bytes;
    return 0;
}

/* The same for all images together: zeros only where all have them. */
static int look_all(struct chunks *c, uint64_t off, enum kind *ret_kind, uint64_t *ret_end)
{
    enum kind kinds[2];
    uint64_t ends[2];
    int err = look(c, 0, off, &kinds[0], &ends[0]);

    if (!err)
        err = look(c, 1, off, &kinds[1], &ends[1]);
    *ret_kind = kinds[1] == KIND_DATA ? KIND_DATA : kinds[0];
    *ret_end = ends[0] < ends[1] ? ends[0] : ends[1];
    return err;
}

static uint64_t align_down(const struct chunks *c, uint64_t off)
{
    const uint64_t multiple = (off + c->base_off) / c->align * c->align;

    return multiple > c->base_off ? multiple - c->base_off : 0;
}

/* Moves next_off over a run that is not data. */
static int pass_run(struct chunks *c, enum kind *ret_kind)
{
    const uint64_t from = c->next_off;
    enum kind kind;
    uint64_t end;
    int err = 0;

    while (c->next_off < c->end) {
        err = look_all(c, c->next_off, &kind, &end);
        if (err || kind == KIND_DATA || (c->next_off > from && kind != *ret_kind))
            break;
        end = end < c->end ? align_down(c, end) : c->end;
        if (end <= c->next_off)
            break;
        *ret_kind = kind;
        c->next_off = end;
    }
    return err;
}

/* Where a chunk of data from next_off on ends: before the first unit that is left out. */
static int data_end(struct chunks *c, uint64_t *ret_end)
{
    const uint64_t multiple = ((c->next_off + c->base_off) / c->chunk_bytes + 1) * c->chunk_bytes;
    uint64_t at = c->next_off, end = multiple - c->base_off;
    enum kind kind;

    end = end < c->end ? end : c->end;
    while ((c->own_layer || c->split) && at < end) {
        uint64_t run_end;
        const int err = look_all(c, at, &kind, &run_end);
        if (err)
            return err;
        const uint64_t first = align_down(c, at + c->align - 1);
        const uint64_t run_bytes = first < run_end ? run_end - first : 0;
        const bool ends =
            kind == KIND_ABSENT ? run_bytes > 0 : kind == KIND_ZEROS && run_bytes >= SPLIT_BYTES;
        if (ends && first > c->next_off && first < end) {
            end = first;
            break;
        }
        at = run_end;
    }
    *ret_end = end;
    return 0;
}

/* The same under the lock. */
static int next(struct chunks *c, struct chunk *ret_chunk)
{
    uint64_t from, end;

    for (;;) {
        enum kind kind = KIND_DATA;
        from = c->next_off;
        int err = pass_run(c, &kind);
        if (err)
            return err;
        const uint64_t bytes = c->next_off - from;
        if (!bytes)
            break;
        if (kind == KIND_ZEROS && c->give_zeros) {
            *ret_chunk = (struct chunk){.off = from, .bytes = bytes, .zeros = true};
            return 1;
        }
        if (kind == KIND_ZEROS && c->zero)
            err = c->zero(c->zero_ctx, from, bytes);
        if (err)
            return err;
        progress_add(c->progress, bytes);
    }
    if (from >= c->end)
        return 0;
    const int err = data_end(c, &end);
    if (err)
        return err;
    *ret_chunk = (struct chunk){.off = from, .bytes = end - from};
    c->next_off = end;
    return 1;
}

int chunks_next(struct chunks *c, struct chunk *ret_chunk)
{
    int ret;

    pthread_mutex_lock(&c->lock);
    ret = c->err ? c->err : next(c, ret_chunk);
    if (ret < 0)
        c->err = ret;
    pthread_mutex_unlock(&c->lock);
    return ret;
}

void chunks_stop_at(struct chunks *c, uint64_t off)
{
    pthread_mutex_lock(&c->lock);
    if (off < c->end)
        c->end = off;
    pthread_mutex_unlock(&c->lock);
}
