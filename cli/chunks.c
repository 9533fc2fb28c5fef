/* SPDX-License-Identifier: MIT */
#include "cli/chunks.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/sectors.h"

/* An extent is looked for this far, so that a huge one does not make the threads wait for its end. */
#define EXTENT_BYTES_MAX (256ull << 20)

void chunks_init(struct chunks *chunks)
{
    pthread_mutex_init(&chunks->lock, NULL);
    for (unsigned i = 0; i < 2 && chunks->images[i]; i++)
        chunks->sizes[i] = round_to_sector(scow_size(chunks->images[i]));
}

void chunks_destroy(struct chunks *chunks)
{
    pthread_mutex_destroy(&chunks->lock);
}

/* Where the zeros that begin at off end in image i: off itself when it has data there. */
static int zeros_end(struct chunks *c, unsigned i, uint64_t off, uint64_t *ret_end)
{
    struct scow_extent *e = &c->extents[i];
    const uint64_t size = c->images[i] ? scow_size(c->images[i]) : 0;

    if (!c->images[i] || off >= size) {
        *ret_end = UINT64_MAX;
        return 0;
    }
    if (off < e->off || off - e->off >= e->bytes) {
        const uint64_t bytes = size - off < EXTENT_BYTES_MAX ? size - off : EXTENT_BYTES_MAX;
        *e = (struct scow_extent){.size = sizeof *e};
        const int err = scow_get_extent(c->images[i], off, bytes, 0, e);
        if (err || !e->bytes) {
            c->failed_image = i;
            snprintf(c->error, sizeof c->error, "%s", *scow_error() ? scow_error() : strerror(-err));
            *e = (struct scow_extent){.size = sizeof *e};
            return err ? err : -EIO;
        }
    }
    *ret_end = off;
    if (e->flags & SCOW_EXTENT_ZERO)
        *ret_end = e->off + e->bytes >= size ? UINT64_MAX : e->off + e->bytes;
    return 0;
}

/* Moves next_off over what is zeros in all images. */
static int skip_zeros(struct chunks *c)
{
    const uint64_t from = c->next_off;
    int err = 0;

    while (c->next_off < c->end) {
        uint64_t ends[2];
        err = zeros_end(c, 0, c->next_off, &ends[0]);
        if (!err)
            err = zeros_end(c, 1, c->next_off, &ends[1]);
        if (err)
            break;
        uint64_t end = ends[0] < ends[1] ? ends[0] : ends[1];
        end = end < c->end ? end / CHUNK_ALIGN * CHUNK_ALIGN : c->end;
        if (end <= c->next_off)
            break;
        c->next_off = end;
    }
    if (c->next_off > from && !err) {
        if (c->zero)
            err = c->zero(c->zero_ctx, from, c->next_off - from);
        progress_add(c->progress, c->next_off - from);
    }
    return err;
}

int chunks_next(struct chunks *c, struct chunk *ret_chunk)
{
    int ret;

    pthread_mutex_lock(&c->lock);
    if (!c->err)
        c->err = skip_zeros(c);
    ret = c->err;
    if (!ret && c->next_off < c->end) {
        uint64_t end = (c->next_off / c->chunk_bytes + 1) * c->chunk_bytes;
        end = end < c->end ? end : c->end;
        *ret_chunk = (struct chunk){.off = c->next_off, .bytes = end - c->next_off};
        c->next_off = end;
        ret = 1;
    }
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
