/* SPDX-License-Identifier: MIT */
/* Compressing one cluster, as the image's compression type asks for. One per queue: not thread-safe. */
#ifndef ENGINE_COMPRESS_H
#define ENGINE_COMPRESS_H

#include <stdint.h>

struct compressor;

/* type: SCOW_COMPRESSION_*. 0, -ENOMEM or -ENOTSUP. */
int compressor_create(uint32_t type, struct compressor **ret);
/* NULL is allowed. */
void compressor_destroy(struct compressor *c);

/* from_bytes bytes into to, at most to_bytes. Returns the length; 0 when they do not fit: write them plain.
 */
uint32_t compress_cluster(struct compressor *c, const void *from, uint32_t from_bytes, void *to,
                          uint32_t to_bytes);

#endif
