/* SPDX-License-Identifier: MIT */
#include "cache/directory.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"

int directory_create(struct directory *d, uint64_t count)
{
    uint64_t bytes;
    void *p;

    if (!checked_mul(MAX(count, 1u), sizeof *d->cells, &bytes) || bytes > SIZE_MAX / 2)
        return error_set(-ENOMEM, "slice directory: %" PRIu64 " slices do not fit the address space", count);
    p = pages_reserve((size_t)bytes);
    if (!p)
        return error_set(-ENOMEM, "slice directory: cannot map %" PRIu64 " bytes: %s", bytes,
                         strerror(errno));
    d->cells = p;
    d->count = count;
    return 0;
}

void directory_destroy(struct directory *d)
{
    pages_release(d->cells, (size_t)MAX(d->count, 1u) * sizeof *d->cells);
    d->cells = NULL;
}
