/* SPDX-License-Identifier: MIT */
#include "engine/compress.h"

#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "base/error.h"
#include "shardcow.h"

/* What decoders of qcow2 give raw deflate: 4 KiB of window. A larger one makes clusters that QEMU refuses. */
#define DEFLATE_WINDOW_BITS (-12)
#define DEFLATE_MEMORY_LEVEL 9

struct compressor {
    uint32_t type;
    z_stream zlib;
    ZSTD_CCtx *zstd;
};

int compressor_create(uint32_t type, struct compressor **ret)
{
    struct compressor *c = calloc(1, sizeof *c);
    int ok = 0;

    if (!c)
        return error_set(-ENOMEM, "out of memory");
    c->type = type;
    if (type == SCOW_COMPRESSION_ZSTD) {
        c->zstd = ZSTD_createCCtx();
        ok = c->zstd != NULL;
    } else {
        ok = deflateInit2(&c->zlib, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW_BITS,
                          DEFLATE_MEMORY_LEVEL, Z_DEFAULT_STRATEGY) == Z_OK;
    }
    if (!ok) {
        free(c);
        return error_set(-ENOMEM, "out of memory");
    }
    *ret = c;
    return 0;
}

void compressor_destroy(struct compressor *c)
{
    if (!c)
        return;
    if (c->zstd)
        ZSTD_freeCCtx(c->zstd);
    else
        deflateEnd(&c->zlib);
    free(c);
}

static uint32_t compress_deflate(struct compressor *c, const void *from, uint32_t from_bytes, void *to,
                                 uint32_t to_bytes)
{
    z_stream *z = &c->zlib;

    if (deflateReset(z) != Z_OK)
        return 0;
    z->next_in = (Bytef *)(uintptr_t)from; /* only read */
    z->avail_in = from_bytes;
    z->next_out = to;
    z->avail_out = to_bytes;
    return deflate(z, Z_FINISH) == Z_STREAM_END ? to_bytes - z->avail_out : 0;
}

static uint32_t compress_zstd(struct compressor *c, const void *from, uint32_t from_bytes, void *to,
                              uint32_t to_bytes)
{
    ZSTD_outBuffer out = {.dst = to, .size = to_bytes};
    ZSTD_inBuffer in = {.src = from, .size = from_bytes};

    ZSTD_CCtx_reset(c->zstd, ZSTD_reset_session_only);
    return ZSTD_compressStream2(c->zstd, &out, &in, ZSTD_e_end) == 0 ? (uint32_t)out.pos : 0;
}

uint32_t compress_cluster(struct compressor *c, const void *from, uint32_t from_bytes, void *to,
                          uint32_t to_bytes)
{
    return c->type == SCOW_COMPRESSION_ZSTD ? compress_zstd(c, from, from_bytes, to, to_bytes)
                                            : compress_deflate(c, from, from_bytes, to, to_bytes);
}
