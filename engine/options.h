/* SPDX-License-Identifier: MIT */
/* Structures of the public API that begin with their own size. */
#ifndef ENGINE_OPTIONS_H
#define ENGINE_OPTIONS_H

#include <stddef.h>

/*
 * Copy a caller's option structure over the defaults in dst: as many bytes as both know. -EINVAL with a
 * message that begins with what when its size is impossible or when bytes that this library does not know are
 * not zero.
 */
int options_take(void *dst, size_t dst_bytes, const void *src, const char *what);

/* Give a result to a caller whose structure, ret, may be older or newer: ret keeps its own size field. */
void result_give(void *ret, const void *src, size_t src_bytes);

#endif
