/* SPDX-License-Identifier: MIT */
/* Sizes as qemu-img reads and prints them, and counts with digits grouped. */
#ifndef CLI_UNITS_H
#define CLI_UNITS_H

#include <stdint.h>

#define UNITS_TEXT_BYTES 32

/* "64k", "1.5G", "0x10000", "512": binary multiples, suffixes b k m g t p e in either case. -EINVAL when text
 * is no size, -ERANGE beyond 64 bits. */
int units_parse_size(const char *text, uint64_t *ret_bytes);

/* A plain decimal or 0x number. -EINVAL, -ERANGE. */
int units_parse_number(const char *text, uint64_t *ret_number);

/* "300 MiB", three significant digits; fills and returns buf. */
char *units_size(char buf[UNITS_TEXT_BYTES], uint64_t bytes);

/* "12,345,678" */
char *units_count(char buf[UNITS_TEXT_BYTES], uint64_t count);

/* "85 ns", "12.3 us", "1.05 ms" */
char *units_latency(char buf[UNITS_TEXT_BYTES], double ns);

/* "1:02:03" or "4:05" */
char *units_duration(char buf[UNITS_TEXT_BYTES], uint64_t seconds);

#endif
