/* SPDX-License-Identifier: MIT */
#include "cli/map_walk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "cli/command.h"

static bool same_path(const char *a, const char *b)
{
    if (!a || !b)
        return a == b;
    return a == b || !strcmp(a, b);
}

static bool mergeable(const struct scow_extent *a, const struct scow_extent *b)
{
    if (!a->bytes || a->flags != b->flags || a->depth != b->depth || !same_path(a->host_path, b->host_path))
        return false;
    return !(a->flags & SCOW_EXTENT_HOST_OFF) || a->host_off + a->bytes == b->host_off;
}

static void make_hole(struct scow_extent *extent)
{
    if ((extent->flags & SCOW_EXTENT_DATA) && !(extent->flags & SCOW_EXTENT_ZERO))
        return;
    extent->flags = SCOW_EXTENT_ZERO;
    extent->depth = 0;
    extent->host_off = 0;
    extent->host_path = NULL;
}

int map_walk(struct scow_image *image, uint64_t start, uint64_t end, bool zero_is_hole, map_visit_fn *visit,
             void *ctx)
{
    struct scow_extent current = {.size = sizeof current}, next;
    int ret;

    for (uint64_t off = start; off < end; off += next.bytes) {
        next = (struct scow_extent){.size = sizeof next};
        ret = scow_get_extent(image, off, end - off, 0, &next);
        if (!ret && !next.bytes)
            ret = -EIO;
        if (ret) {
            command_error(NULL, "could not tell where the data at offset %" PRIu64 " is: %s", off,
                          *scow_error() ? scow_error() : strerror(-ret));
            return ret;
        }
        if (zero_is_hole)
            make_hole(&next);
        if (mergeable(&current, &next)) {
            current.bytes += next.bytes;
            continue;
        }
        ret = current.bytes ? visit(ctx, &current) : 0;
        if (ret)
            return ret;
        current = next;
    }
    return current.bytes ? visit(ctx, &current) : 0;
}
