/* SPDX-License-Identifier: MIT */
#include "cli/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"

static json_t *json_need(json_t *value)
{
    if (!value) {
        command_error("JSON", "out of memory");
        exit(EXIT_FAILED);
    }
    return value;
}

/* The bytes of the UTF-8 sequence at p, or 0 if it is none. jansson is strict: it refuses overlong forms,
 * surrogates and what lies beyond U+10FFFF. */
static size_t utf8_bytes(const unsigned char *p)
{
    size_t bytes;

    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        bytes = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef)
        bytes = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        bytes = 4;
    else
        return 0;
    for (size_t i = 1; i < bytes; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return bytes;
}

json_t *json_text(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    const unsigned char *p = (const unsigned char *)text;
    size_t n = 0;

    if (!text)
        return json_null();
    json_t *string = json_string(text);
    if (string)
        return string;
    char *valid = malloc(3 * strlen(text) + 1);
    if (!valid)
        return json_need(NULL);
    while (*p) {
        const size_t bytes = utf8_bytes(p);
        memcpy(valid + n, bytes ? (const char *)p : replacement, bytes ? bytes : 3);
        n += bytes ? bytes : 3;
        p += bytes ? bytes : 1;
    }
    string = json_need(json_stringn(valid, n));
    free(valid);
    return string;
}

json_t *json_count(uint64_t count)
{
    char text[24];

    if (count <= INT64_MAX)
        return json_need(json_integer((json_int_t)count));
    snprintf(text, sizeof text, "%" PRIu64, count);
    return json_need(json_string(text));
}

json_t *json_hex(uint64_t value)
{
    char text[24];

    snprintf(text, sizeof text, "0x%" PRIx64, value);
    return json_need(json_string(text));
}

void json_put(json_t *object, const char *key, json_t *value)
{
    json_need(value);
    if (json_object_set_new(object, key, value))
        json_need(NULL);
}

void json_append(json_t *array, json_t *value)
{
    json_need(value);
    if (json_array_append_new(array, value))
        json_need(NULL);
}

void json_print(FILE *out, json_t *value)
{
    json_need(value);
    json_dumpf(value, out, JSON_INDENT(4) | JSON_ENCODE_ANY);
    fputc('\n', out);
    json_decref(value);
}

void json_stream_begin(struct json_stream *stream, FILE *out)
{
    *stream = (struct json_stream){.out = out};
    fputc('[', out);
}

void json_stream_item(struct json_stream *stream, json_t *item)
{
    json_need(item);
    fputs(stream->count++ ? ",\n" : "", stream->out);
    json_dumpf(item, stream->out, JSON_ENCODE_ANY);
    json_decref(item);
}

void json_stream_end(struct json_stream *stream)
{
    fputs("]\n", stream->out);
}
