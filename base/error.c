/* SPDX-License-Identifier: MIT */
#include "base/error.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[ERROR_BYTES];

int error_set(int err, const char *fmt, ...)
{
    char text[ERROR_BYTES]; /* the arguments may point into message */
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    memcpy(message, text, sizeof message);
    return err;
}

int error_prefix(int err, const char *fmt, ...)
{
    char prefix[ERROR_BYTES], text[ERROR_BYTES * 2 + 2];
    va_list args;

    va_start(args, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, args);
    va_end(args);
    snprintf(text, sizeof text, "%s: %s", prefix, message);
    text[ERROR_BYTES - 1] = '\0';
    memcpy(message, text, sizeof message);
    return err;
}

const char *error_message(void)
{
    return message;
}

char *error_quote(char *buf, size_t buf_bytes, const void *text, size_t bytes)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *p = text;
    size_t n = 0;

    for (size_t i = 0; i < bytes; i++) {
        bool plain = p[i] >= 0x20 && p[i] < 0x7f && p[i] != '\\';
        if (n + (plain ? 1 : 4) >= buf_bytes)
            break;
        if (plain) {
            buf[n++] = (char)p[i];
        } else {
            buf[n++] = '\\';
            buf[n++] = 'x';
            buf[n++] = hex[p[i] >> 4];
            buf[n++] = hex[p[i] & 15];
        }
    }
    buf[n] = '\0';
    return buf;
}
