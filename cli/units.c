/* SPDX-License-Identifier: MIT */
#include "cli/units.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char suffixes[] = "bkmgtpe";

int units_parse_number(const char *text, uint64_t *ret_number)
{
    char *end;
    bool hex = !strncasecmp(text, "0x", 2);

    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    errno = 0;
    const unsigned long long number = strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return -ERANGE;
    if (end == text + (hex ? 1 : 0) || *end)
        return -EINVAL;
    *ret_number = number;
    return 0;
}

/* Whole bytes of a fraction's digits of a unit of 1 << shift. The double is exact enough: a fraction of an
 * exbibyte that matters to the byte is not written with fifteen digits. */
static uint64_t fraction_bytes(const char *dot, const char *end, unsigned shift)
{
    double fraction = 0, scale = 0.1;

    for (const char *p = dot + 1; p < end; p++, scale /= 10)
        fraction += scale * (*p - '0');
    return (uint64_t)(fraction * (double)(1ull << shift) + 0.5);
}

int units_parse_size(const char *text, uint64_t *ret_bytes)
{
    const char *dot = NULL;
    char *end;
    unsigned shift = 0;
    uint64_t bytes;

    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    if (!strncasecmp(text, "0x", 2))
        return units_parse_number(text, ret_bytes);
    errno = 0;
    const unsigned long long whole = strtoull(text, &end, 10);
    if (errno)
        return -ERANGE;
    if (*end == '.') {
        dot = end++;
        while (isdigit((unsigned char)*end))
            end++;
    }
    if (*end) {
        const char *suffix = strchr(suffixes, tolower((unsigned char)*end));
        if (!suffix || end[1])
            return -EINVAL;
        shift = 10 * (unsigned)(suffix - suffixes);
    }
    if (dot && !shift)
        return -EINVAL; /* half a byte */
    if (whole > UINT64_MAX >> shift)
        return -ERANGE;
    if (__builtin_add_overflow((uint64_t)whole << shift, dot ? fraction_bytes(dot, end, shift) : 0, &bytes))
        return -ERANGE;
    *ret_bytes = bytes;
    return 0;
}

char *units_size(char buf[UNITS_TEXT_BYTES], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    int unit = 0;
    int exponent;

    /* 1000 of a unit already reads better as the next one: "0.977 MiB", as qemu-img has it. */
    frexp((double)bytes / (1000.0 / 1024.0), &exponent);
    unit = exponent > 0 ? (exponent - 1) / 10 : 0;
    if (unit > 6)
        unit = 6;
    snprintf(buf, UNITS_TEXT_BYTES, "%0.3g %s", (double)bytes / (double)(1ull << (unit * 10)), units[unit]);
    return buf;
}

char *units_count(char buf[UNITS_TEXT_BYTES], uint64_t count)
{
    char digits[24];
    const int digit_count = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
    size_t n = 0;

    for (int i = 0; i < digit_count; i++) {
        if (i && (digit_count - i) % 3 == 0)
            buf[n++] = ',';
        buf[n++] = digits[i];
    }
    buf[n] = '\0';
    return buf;
}

char *units_latency(char buf[UNITS_TEXT_BYTES], double ns)
{
    if (ns < 1e3)
        snprintf(buf, UNITS_TEXT_BYTES, "%.0f ns", ns);
    else if (ns < 1e6)
        snprintf(buf, UNITS_TEXT_BYTES, "%.*f us", ns < 1e4 ? 2 : ns < 1e5 ? 1 : 0, ns / 1e3);
    else if (ns < 1e9)
        snprintf(buf, UNITS_TEXT_BYTES, "%.*f ms", ns < 1e7 ? 2 : ns < 1e8 ? 1 : 0, ns / 1e6);
    else
        snprintf(buf, UNITS_TEXT_BYTES, "%.2f s", ns / 1e9);
    return buf;
}

char *units_duration(char buf[UNITS_TEXT_BYTES], uint64_t seconds)
{
    if (seconds >= 3600)
        snprintf(buf, UNITS_TEXT_BYTES, "%llu:%02u:%02u", (unsigned long long)(seconds / 3600),
                 (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60));
    else
        snprintf(buf, UNITS_TEXT_BYTES, "%u:%02u", (unsigned)(seconds / 60), (unsigned)(seconds % 60));
    return buf;
}
