/* SPDX-License-Identifier: MIT */
#include "cli/command.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "shardcow.h"

#define TEXT_BYTES 4096

char *command_quote(char *buf, size_t buf_bytes, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;

    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        const bool plain = *p >= 0x20 && *p < 0x7f;
        if (n + (plain ? 1 : 4) >= buf_bytes)
            break;
        if (plain) {
            buf[n++] = (char)*p;
        } else {
            buf[n++] = '\\';
            buf[n++] = 'x';
            buf[n++] = hex[*p >> 4];
            buf[n++] = hex[*p & 15];
        }
    }
    buf[n] = '\0';
    return buf;
}

void command_error(const char *what, const char *fmt, ...)
{
    char text[TEXT_BYTES], quoted[TEXT_BYTES], quoted_what[TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    command_quote(quoted, sizeof quoted, text);
    fflush(stdout); /* what was printed before the error stays before it */
    if (what)
        fprintf(stderr, "shardcow: %s: %s\n", command_quote(quoted_what, sizeof quoted_what, what), quoted);
    else
        fprintf(stderr, "shardcow: %s\n", quoted);
}

void command_hint(const char *fmt, ...)
{
    char text[TEXT_BYTES], quoted[TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fprintf(stderr, "shardcow: hint: %s\n", command_quote(quoted, sizeof quoted, text));
}

void command_library_error(const char *what, int err)
{
    const char *message = scow_error();

    command_error(what, "%s", *message ? message : strerror(-err));
}

int command_finish_output(void)
{
    if (!fflush(stdout) && !ferror(stdout))
        return EXIT_OK;
    command_error("standard output", "%s", strerror(errno));
    return EXIT_FAILED;
}
