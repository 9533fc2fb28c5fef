/* SPDX-License-Identifier: MIT */
/* Compressed clusters → plain ones. */
#ifndef ENGINE_DECOMPRESS_H
#define ENGINE_DECOMPRESS_H

#include <stddef.h>
#include <stdint.h>

struct decompressor;

/* compression: as in the header, 0 zlib or 1 zstd. One thread at a time. 0 or -ENOMEM. */
int decompressor_create(uint32_t compression, struct decompressor **ret);
/* NULL is allowed. */
void decompressor_destroy(struct decompressor *d);

/*
 * Inflate exactly out_bytes bytes. The input may have anything behind the stream's end, because a descriptor
 * counts whole sectors. 0, or -EIO when the stream is damaged or too short: then out holds nothing of
 * meaning.
 */
int decompress(struct decompressor *d, const void *in, size_t in_bytes, void *out, size_t out_bytes);

#endif
