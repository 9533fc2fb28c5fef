/* SPDX-License-Identifier: MIT */
/* qemu-io's texts, to the letter where scripts look at them. */
#ifndef CLI_IO_REPORT_H
#define CLI_IO_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#define IO_SIZE_TEXT_BYTES 32

/* "64 KiB", "3.500 KiB", "20 bytes": three decimals, or none when they are zeros. Fills and returns buf. */
char *io_size_text(char buf[IO_SIZE_TEXT_BYTES], double bytes);

/* The two lines after a request, or with machine one line of numbers separated by commas. verb is "read". */
void io_report_request(const char *verb, uint64_t off, uint64_t bytes, uint64_t elapsed_ns, bool machine);

/* Hex and letters, 16 bytes a line, each with its offset. */
void io_report_dump(const uint8_t *data, uint64_t bytes, uint64_t off);

#endif
