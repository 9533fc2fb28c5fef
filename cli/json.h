/* SPDX-License-Identifier: MIT */
/* JSON output over jansson: strings from anywhere, and arrays that are printed item by item. */
#ifndef CLI_JSON_H
#define CLI_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* A string of any bytes: what is not UTF-8 becomes U+FFFD. NULL gives JSON null. */
json_t *json_text(const char *text);

/* A count or offset; values beyond 2^63 - 1 become their decimal text. */
json_t *json_count(uint64_t count);

/* "0x…": for values whose bits matter. */
json_t *json_hex(uint64_t value);

/* Sets a key and takes value's reference. Out of memory ends the program with a message: a command that
 * cannot hold one small object has no better answer. */
void json_put(json_t *object, const char *key, json_t *value);
void json_append(json_t *array, json_t *value);

/* Prints value with a newline after it, indented by four spaces, and drops its reference. */
void json_print(FILE *out, json_t *value);

/* An array of any length, one item per line. Each item's reference is taken. */
struct json_stream {
    FILE *out;
    uint64_t count;
};
void json_stream_begin(struct json_stream *stream, FILE *out);
void json_stream_item(struct json_stream *stream, json_t *item);
void json_stream_end(struct json_stream *stream);

#endif
