/* SPDX-License-Identifier: MIT */
/* What every subcommand shares: the table's entry, exit codes and the way errors are printed. */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include <stddef.h>

struct command {
    const char *name;
    const char *summary;               /* one line, lower case, no full stop */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns an exit code */
};

int command_info(int argc, char **argv);
int command_map(int argc, char **argv);
int command_check(int argc, char **argv);
int command_dump(int argc, char **argv);
int command_compare(int argc, char **argv);
int command_convert(int argc, char **argv);
int command_create(int argc, char **argv);
int command_resize(int argc, char **argv);
int command_serve(int argc, char **argv);
int command_stats(int argc, char **argv);
int command_io(int argc, char **argv);
int command_bench(int argc, char **argv);

/* Exit codes. 2, 3 and 63 mean different things to check and to compare, as with qemu-img. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1, /* bad options, or the work failed */

    EXIT_CHECK_CORRUPTIONS = 2,
    EXIT_CHECK_LEAKS = 3,
    EXIT_CHECK_UNSUPPORTED = 63,

    EXIT_COMPARE_DIFFERENT = 1,
    EXIT_COMPARE_OPTIONS = 2, /* bad options, or an image cannot be opened */
    EXIT_COMPARE_MAP = 3,     /* an image's extents cannot be read */
    EXIT_COMPARE_READ = 4,
};

/* Prints "shardcow: WHAT: MESSAGE" to standard error. what is usually a file name; NULL leaves it out.
 * Bytes that are not printable are quoted. Any thread. */
void command_error(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Prints "shardcow: hint: …" to standard error: what to do next, after command_error(). */
void command_hint(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* command_error() with the message of the library's last failing call on this thread, or strerror(-err)
 * if it left none. */
void command_library_error(const char *what, int err);

/* Whether standard output could take all that was printed; reports it if not. Call before exit code 0. */
int command_finish_output(void);

/* Copies text into buf with every byte that is not printable ASCII as \xNN, cut to fit; returns buf. Names
 * that an image contains could drive a terminal. */
char *command_quote(char *buf, size_t buf_bytes, const char *text);

#endif
