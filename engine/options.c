/* SPDX-License-Identifier: MIT */
#include "engine/options.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/attributes.h"
#include "base/error.h"

/* No structure of this API will reach this: a larger size field was never initialised. */
#define STRUCT_BYTES_MAX 65536u

int options_take(void *dst, size_t dst_bytes, const void *src, const char *what)
{
    size_t bytes;

    memcpy(&bytes, src, sizeof bytes);
    if (bytes < sizeof bytes || bytes > STRUCT_BYTES_MAX)
        return error_set(-EINVAL, "%s: the structure's size field is %zu: use its _INIT macro", what, bytes);
    for (size_t i = dst_bytes; i < bytes; i++)
        if (((const uint8_t *)src)[i])
            return error_set(-EINVAL, "%s: a field that this version does not know is set (byte %zu)", what,
                             i);
    memcpy((uint8_t *)dst + sizeof bytes, (const uint8_t *)src + sizeof bytes,
           MIN(bytes, dst_bytes) - sizeof bytes);
    return 0;
}

void result_give(void *ret, const void *src, size_t src_bytes)
{
    size_t bytes;

    memcpy(&bytes, ret, sizeof bytes);
    if (bytes > sizeof bytes)
        memcpy((uint8_t *)ret + sizeof bytes, (const uint8_t *)src + sizeof bytes,
               MIN(bytes, src_bytes) - sizeof bytes);
}
