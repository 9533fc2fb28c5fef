/* SPDX-License-Identifier: MIT */
/* The thread-local error message behind scow_error(). */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include "base/attributes.h"

#define ERROR_BYTES 512

/* Sets this thread's message and returns err, a negative errno, so that a failing function can say
 * return error_set(-EINVAL, "…"). Messages have no newline and no full stop; names from an image go through
 * error_quote(). */
int error_set(int err, const char *fmt, ...) ATTR_PRINTF(2, 3) ATTR_COLD;

/* Puts a prefix and ": " in front of the message; returns err. */
int error_prefix(int err, const char *fmt, ...) ATTR_PRINTF(2, 3) ATTR_COLD;

/* This thread's message; never NULL. */
const char *error_message(void);

/* Copies up to bytes bytes of text into buf with everything but printable ASCII as \xNN, so that a name from
 * an image cannot drive a terminal. Returns buf, always terminated. */
char *error_quote(char *buf, size_t buf_bytes, const void *text, size_t bytes);

#endif
