/* SPDX-License-Identifier: MIT */
#include "cli/io_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

char *io_size_text(char buf[IO_SIZE_TEXT_BYTES], double bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    char number[IO_SIZE_TEXT_BYTES - 8];
    while (bytes >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        bytes /= 1024;
        unit++;
    }
    snprintf(number, sizeof(number), "%.3f", bytes);
    char *const zeros = strstr(number, ".000");
    if (zeros)
        *zeros = '\0';
    snprintf(buf, IO_SIZE_TEXT_BYTES, "%s %s", number, units[unit]);
    return buf;
}

/* "00.02 sec", and "0:01:02.03" from a minute up or when fixed. */
static void time_text(char *buf, size_t buf_bytes, uint64_t ns, bool fixed)
{
    const uint64_t seconds = ns / 1000000000u;
    const unsigned hundredths = (unsigned)(ns % 1000000000u / 10000000u);
    if (fixed || seconds >= 60)
        snprintf(buf, buf_bytes, "%" PRIu64 ":%02u:%02u.%02u", seconds / 3600, (unsigned)(seconds / 60 % 60),
                 (unsigned)(seconds % 60), hundredths);
    else
        snprintf(buf, buf_bytes, "%02u.%02u sec", (unsigned)seconds, hundredths);
}

void io_report_request(const char *verb, uint64_t off, uint64_t bytes, uint64_t elapsed_ns, bool machine)
{
    const double seconds = (double)(elapsed_ns ? elapsed_ns : 1) / 1e9;
    char elapsed[40], size[IO_SIZE_TEXT_BYTES], rate[IO_SIZE_TEXT_BYTES];
    time_text(elapsed, sizeof(elapsed), elapsed_ns, machine);
    if (machine) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", bytes, elapsed, (double)bytes / seconds, 1 / seconds);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb, bytes, bytes, off);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", io_size_text(size, (double)bytes), elapsed,
           io_size_text(rate, (double)bytes / seconds), 1 / seconds);
}

static bool is_letter_or_digit(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

void io_report_dump(const uint8_t *data, uint64_t bytes, uint64_t off)
{
    for (uint64_t line = 0; line < bytes; line += 16) {
        const uint64_t end = bytes - line < 16 ? bytes : line + 16;
        printf("%08" PRIx64 ":  ", off + line);
        for (uint64_t i = line; i < end; i++)
            printf("%02x ", data[i]);
        printf(" ");
        for (uint64_t i = line; i < end; i++)
            putchar(is_letter_or_digit(data[i]) ? data[i] : '.');
        printf("\n");
    }
}
