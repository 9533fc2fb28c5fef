/* SPDX-License-Identifier: MIT */
/*
 * zlib clusters are raw deflate streams. libdeflate inflates them about twice as fast as zlib (perf/inflate
 * measures it) and never reads or writes outside the buffers it is given; it has no window to choose, so a
 * cluster that was made with any window is read.
 */
#include "engine/decompress.h"

#include <errno.h>
#include <libdeflate.h>
#include <stdint.h>
#include <stdlib.h>
#include <zstd.h>

#include "base/error.h"

struct decompressor {
    struct libdeflate_decompressor *deflate;
    ZSTD_DCtx *zstd;
};

int decompressor_create(uint32_t compression, struct decompressor **ret)
{
    struct decompressor *d = calloc(1, sizeof *d);

    if (d && compression == 0)
        d->deflate = libdeflate_alloc_decompressor();
    else if (d)
        d->zstd = ZSTD_createDCtx();
    if (!d || (!d->deflate && !d->zstd)) {
        decompressor_destroy(d);
        return error_set(-ENOMEM, "out of memory");
    }
    *ret = d;
    return 0;
}

void decompressor_destroy(struct decompressor *d)
{
    if (!d)
        return;
    if (d->deflate)
        libdeflate_free_decompressor(d->deflate);
    ZSTD_freeDCtx(d->zstd);
    free(d);
}

static int inflate_deflate(struct decompressor *d, const void *in, size_t in_bytes, void *out,
                           size_t out_bytes)
{
    size_t in_used;

    /* Without a place for the output's length, anything but out_bytes is an error. */
    return libdeflate_deflate_decompress_ex(d->deflate, in, in_bytes, out, out_bytes, &in_used, NULL) ==
                   LIBDEFLATE_SUCCESS
               ? 0
               : -EIO;
}

/*
 * One cluster may be made of several frames; the last one has to be complete (QEMU block/qcow2-threads.c).
 * Whole frames, not a stream: a stream has a window, which takes as much memory as the frame's header asks
 * for, up to 128 MiB.
 */
static int inflate_zstd(struct decompressor *d, const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
    const uint8_t *from = in;
    uint8_t *to = out;

    while (out_bytes) {
        const size_t frame_bytes = ZSTD_findFrameCompressedSize(from, in_bytes);
        size_t n;

        if (ZSTD_isError(frame_bytes))
            return -EIO;
        n = ZSTD_decompressDCtx(d->zstd, to, out_bytes, from, frame_bytes);
        if (ZSTD_isError(n))
            return -EIO;
        from += frame_bytes;
        in_bytes -= frame_bytes;
        to += n;
        out_bytes -= n;
    }
    return 0;
}

int decompress(struct decompressor *d, const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
    return d->deflate ? inflate_deflate(d, in, in_bytes, out, out_bytes)
                      : inflate_zstd(d, in, in_bytes, out, out_bytes);
}
