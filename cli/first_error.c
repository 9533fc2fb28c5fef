/* SPDX-License-Identifier: MIT */
#include "cli/first_error.h"

#include <stdarg.h>
#include <stdio.h>

#include "cli/command.h"

void first_error_init(struct first_error *first)
{
    first->err = 0;
    first->text[0] = '\0';
    pthread_mutex_init(&first->lock, NULL);
}

void first_error_destroy(struct first_error *first)
{
    pthread_mutex_destroy(&first->lock);
}

void first_error_set(struct first_error *first, int err, const char *fmt, ...)
{
    va_list args;

    pthread_mutex_lock(&first->lock);
    if (!first->err) {
        first->err = err;
        va_start(args, fmt);
        vsnprintf(first->text, sizeof first->text, fmt, args);
        va_end(args);
    }
    pthread_mutex_unlock(&first->lock);
}

int first_error_report(struct first_error *first)
{
    if (first->err)
        command_error(NULL, "%s", first->text);
    return first->err;
}
