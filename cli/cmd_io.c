/* SPDX-License-Identifier: MIT */
/* shardcow io: qemu-io's commands on an image. */
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/io_facts.h"
#include "cli/io_parse.h"
#include "cli/io_read.h"
#include "cli/io_request.h"
#include "cli/io_session.h"
#include "cli/io_write.h"
#include "cli/open_args.h"
#include "cli/units.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct argument specs[] = {
    {'c', "cmd", "COMMAND", "run COMMAND; may be repeated. Without it commands come from standard input"},
    OPEN_ARGUMENT_FORMAT,
    {'r', "read-only", NULL, "open the image read-only"},
    {'n', "nocache", NULL, "direct I/O: short for -t none"},
    {'d', "discard", "MODE", "unmap (default), or ignore: discards do nothing"},
    {'m', "misalign", NULL, "use buffers that are not aligned for direct I/O"},
    OPEN_ARGUMENT_SHARE,
    OPEN_ARGUMENT_CACHE('t'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "io",
    .synopsis = "[OPTION]... [-c COMMAND]... [FILE]",
    .text =
        "Runs commands in qemu-io's syntax on an image, which is opened for reading and writing. \"help\"\n"
        "lists them. The exit code is 1 when a command failed, among them a read whose data does not\n"
        "match its pattern.\n",
    .specs = specs,
    .examples = "  shardcow io -r -c 'read -P 0xaa 0 64k' disk.qcow2\n"
                "  shardcow io -c 'write -P 0xaa 0 64k' -c flush -c map disk.qcow2\n"
                "  echo 'aio_read 0 1M' | shardcow io disk.qcow2\n",
};

/* ---- commands that ask nothing of the image ---- */

static int run_aio_flush(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    io_request_poll(session, true);
    return IO_DONE;
}

static int run_sleep(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command, (void)argc;
    uint64_t ms;
    if (units_parse_number(argv[1], &ms) < 0 || ms > 86400000) {
        printf("%s is not a valid number\n", argv[1]);
        return IO_FAILED;
    }
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000},
              NULL);
    return IO_DONE;
}

static int run_quit(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command, (void)argc, (void)argv;
    return IO_QUIT;
}

static int run_help(struct io_session *session, const struct io_command *command, int argc, char **argv);

/* ---- the table, by name ---- */

#define HELP_COMMON                                                                                          \
    " -C, -- report statistics in a machine parsable format\n"                                               \
    " -q, -- quiet mode, do not show I/O statistics\n"                                                       \
    " -r, -- accepted for compatibility\n"
#define HELP_READ_COMMON                                                                                     \
    HELP_COMMON " -P, -- use a pattern to verify read data\n"                                                \
                " -v, -- dump buffer to standard output\n"
#define HELP_WRITE_COMMON                                                                                    \
    HELP_COMMON " -P, -- use this pattern instead of 0xcd\n"                                                 \
                " -f, -- the data is durable when the command is done\n"
#define HELP_ZERO                                                                                            \
    " -z, -- make the range read as zeros\n"                                                                 \
    " -u, -- with -z, free what is allocated\n"

static const char help_read[] =
    " reads a range of bytes from the given offset\n"
    "\n"
    " Example:\n"
    " 'read -v 512 1k' - dumps 1 kilobyte read from 512 bytes into the disk\n"
    "\n" HELP_READ_COMMON " -l, -- length of the part that is verified (only with -P)\n"
    " -s, -- start of that part within the data read (only with -P)\n"
    " -p, -- accepted for compatibility\n"
    " -b, -- VM state is not read: refused\n";

static const char help_readv[] =
    " reads a range of bytes from the given offset into one buffer per length\n"
    "\n"
    " Example:\n"
    " 'readv -v 512 1k 1k' - dumps 2 kilobytes read from 512 bytes into the disk\n"
    "\n" HELP_READ_COMMON;

static const char help_aio_read[] =
    " starts to read a range of bytes and goes on to the next command\n"
    "\n"
    " What the read found is printed when it is done: before a later command, or at aio_flush or the end.\n"
    " The command succeeds once the read is under way, whatever the read finds.\n"
    "\n" HELP_READ_COMMON " -i, -- say that an invalid request was made, and do nothing\n";

static const char help_write[] =
    " writes a range of bytes at the given offset\n"
    "\n"
    " Example:\n"
    " 'write -P 1 512 1k' - writes 1 kilobyte of ones at 512 bytes into the disk\n"
    "\n" HELP_WRITE_COMMON HELP_ZERO " -c, -- write compressed clusters\n"
    " -n, -- with -z, allow any length\n"
    " -p, -- accepted for compatibility\n"
    " -s, -- write what this file contains, again and again\n"
    " -b, -- VM state is not written: refused\n";

static const char help_writev[] = " writes a range of bytes at the given offset from one buffer per length\n"
                                  "\n"
                                  " Example:\n"
                                  " 'writev 512 1k 1k' - writes 2 kilobytes at 512 bytes into the disk\n"
                                  "\n" HELP_WRITE_COMMON;

static const char help_aio_write[] =
    " starts to write a range of bytes and goes on to the next command\n"
    "\n"
    " The report is printed when the write is done: before a later command, or at aio_flush or the end.\n"
    " The command succeeds once the write is under way, whatever becomes of it.\n"
    "\n" HELP_WRITE_COMMON HELP_ZERO " -i, -- say that an invalid request was made, and do nothing\n";

static const char help_discard[] = " gives the space of a range's whole clusters back\n"
                                   "\n"
                                   " -C, -- report statistics in a machine parsable format\n"
                                   " -q, -- quiet mode, do not show I/O statistics\n";

static const char help_truncate[] = " sets the disk's size; when it shrinks, what lies beyond is lost\n"
                                    "\n"
                                    " -m, -- preallocation of what is added: off\n";

static const char help_open[] = " opens an image for the other commands\n"
                                "\n"
                                " Example:\n"
                                " 'open -r -o driver=raw disk.raw' - opens a raw file read-only\n"
                                "\n"
                                " -r, -- read-only\n"
                                " -n, -- direct I/O, short for -t none\n"
                                " -U, -- take no lock; only with -r\n"
                                " -t, -- the cache mode\n"
                                " -d, -- unmap, or ignore: discards do nothing\n"
                                " -o, -- driver=qcow2 or driver=raw\n"
                                " -k, -i, -- accepted for compatibility\n"
                                " -s, -C, -- refused\n";

static const char help_reopen[] = " closes the image and opens it again\n"
                                  "\n"
                                  " -r, -- read-only\n"
                                  " -w, -- for reading and writing\n"
                                  " -c, -- with this cache mode\n"
                                  " -o, -- refused\n";

enum { READS = IO_NEEDS_FILE, WRITES = IO_NEEDS_FILE | IO_NEEDS_WRITING };

static const struct io_command commands[] = {
    {"aio_flush", NULL, run_aio_flush, READS, 0, 0, NULL, "completes all outstanding aio requests", NULL},
    {"aio_read", NULL, io_aio_read, READS, 2, -1, "[-Ciqrv] [-P pattern] off len [len..]",
     "asynchronously reads a number of bytes", help_aio_read},
    {"aio_write", NULL, io_aio_write, WRITES, 2, -1, "[-Cfiqruz] [-P pattern] off len [len..]",
     "asynchronously writes a number of bytes", help_aio_write},
    {"alloc", NULL, io_alloc, READS, 1, 2, "offset [count]", "checks if offset is allocated in the file",
     NULL},
    {"close", "c", io_close, READS, 0, 0, NULL, "close the current open file", NULL},
    {"discard", "d", io_discard, WRITES, 2, -1, "[-Cq] off len",
     "discards a number of bytes at a specified offset", help_discard},
    {"flush", "f", io_flush, READS, 0, 0, NULL, "flush all in-core file state to disk", NULL},
    {"help", "?", run_help, 0, 0, 1, "[command]", "help for one or all commands", NULL},
    {"info", "i", io_info, READS, 0, 0, NULL, "prints information about the current file", NULL},
    {"length", "l", io_length, READS, 0, 0, NULL, "gets the length of the current file", NULL},
    {"map", NULL, io_map, READS, 0, 0, "", "prints the allocated areas of a file", NULL},
    {"open", "o", io_open, 0, 1, -1, "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
     "open the file specified by path", help_open},
    {"quit", "q", run_quit, 0, 0, -1, NULL, "exit the program", NULL},
    {"read", "r", io_read, READS, 2, -1, "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
     "reads a number of bytes at a specified offset", help_read},
    {"readv", NULL, io_readv, READS, 2, -1, "[-Cqrv] [-P pattern] off len [len..]",
     "reads a number of bytes at a specified offset", help_readv},
    {"reopen", NULL, io_reopen, READS, 0, -1, "[(-r|-w)] [-c cache] [-o options]",
     "reopens an image with new options", help_reopen},
    {"sleep", NULL, run_sleep, 0, 1, 1, "milliseconds", "waits for the given time", NULL},
    {"truncate", "t", io_truncate, WRITES, 1, 3, "[-m prealloc_mode] off",
     "truncates the current file at the given offset", help_truncate},
    {"write", "w", io_write, WRITES, 2, -1, "[-bcCfnqruz] [-P pattern | -s source_file] off len",
     "writes a number of bytes at a specified offset", help_write},
    {"writev", NULL, io_writev, WRITES, 2, -1, "[-Cfqr] [-P pattern] off len [len..]",
     "writes a number of bytes at a specified offset", help_writev},
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static const struct io_command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0 ||
            (commands[i].alias && strcmp(name, commands[i].alias) == 0))
            return &commands[i];
    }
    return NULL;
}

static int run_help(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command;
    if (argc < 2) {
        for (size_t i = 0; i < COMMAND_COUNT; i++)
            io_print_usage(&commands[i]);
        printf("\nUse 'help commandname' for extended help.\n");
        return IO_DONE;
    }
    const struct io_command *const topic = find_command(argv[1]);
    if (!topic) {
        char name[256];
        printf("command %s not found\n", command_quote(name, sizeof(name), argv[1]));
        return IO_FAILED;
    }
    io_print_usage(topic);
    if (topic->help)
        printf("\n%s\n", topic->help);
    return IO_DONE;
}

/* ---- command lines ---- */

static int run_words(struct io_session *session, int argc, char **argv)
{
    const struct io_command *const c = find_command(argv[0]);
    char name[256];
    if (!c) {
        fflush(stdout);
        fprintf(stderr, "command \"%s\" not found\n", command_quote(name, sizeof(name), argv[0]));
        return IO_FAILED;
    }
    if (c->needs & IO_NEEDS_FILE && !session->image) {
        fflush(stdout);
        fprintf(stderr, "no file open, try 'help open'\n");
        return IO_FAILED;
    }
    const int count = argc - 1;
    if (count >= c->operands_min && (c->operands_max < 0 || count <= c->operands_max)) {
        if (!(c->needs & IO_NEEDS_WRITING) || io_session_writes(session))
            return c->run(session, c, argc, argv);
        command_error(session->path, "%s: the image is open read-only", c->name);
        return IO_FAILED;
    }

    fflush(stdout);
    fprintf(stderr, "bad argument count %d to %s, expected ", count, argv[0]);
    if (c->operands_max < 0)
        fprintf(stderr, "at least %d arguments\n", c->operands_min);
    else if (c->operands_min == c->operands_max)
        fprintf(stderr, "%d arguments\n", c->operands_min);
    else
        fprintf(stderr, "between %d and %d arguments\n", c->operands_min, c->operands_max);
    return IO_FAILED;
}

/* Runs one line, which is cut up. Empty lines and comments do nothing. */
static int run_line(struct io_session *session, char *line)
{
    int argc = 0;
    /* A word needs a byte and a blank. */
    char **const argv = calloc(strlen(line) / 2 + 2, sizeof(*argv));
    if (!argv) {
        command_error(session->path, "out of memory");
        return IO_FAILED;
    }
    char *rest = NULL;
    for (char *word = strtok_r(line, " \t\r\n", &rest); word; word = strtok_r(NULL, " \t\r\n", &rest))
        argv[argc++] = word;
    io_request_poll(session, false);
    const int ret = argc > 0 && argv[0][0] != '#' ? run_words(session, argc, argv) : IO_DONE;
    fflush(stdout);
    free(argv);
    return ret;
}

static bool run_given(struct io_session *session, char **lines, int count)
{
    bool failed = false;
    for (int i = 0; i < count; i++) {
        const int ret = run_line(session, lines[i]);
        failed |= ret == IO_FAILED;
        if (ret == IO_QUIT)
            break;
    }
    return !failed;
}

static bool run_input(struct io_session *session)
{
    const bool prompt = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t line_bytes = 0;
    bool failed = false;
    for (;;) {
        if (prompt) {
            printf("shardcow> ");
            fflush(stdout);
        }
        if (getline(&line, &line_bytes, stdin) < 0)
            break;
        const int ret = run_line(session, line);
        failed |= ret == IO_FAILED;
        if (ret == IO_QUIT)
            break;
    }
    if (ferror(stdin)) {
        command_error("standard input", "%s", strerror(errno));
        failed = true;
    }
    free(line);
    return !failed;
}

static bool run_session(struct io_session *session, const char *path, char **lines, int count)
{
    if (path && io_session_open(session, path) != IO_DONE)
        return false;
    bool ok = count > 0 ? run_given(session, lines, count) : run_input(session);
    if (session->image && io_session_close(session) != IO_DONE)
        ok = false;
    free(session->path);
    return ok;
}

static int take_option(struct io_session *session, struct arguments *args, int key, bool *read_only)
{
    int choice;
    switch (key) {
    case 'n':
        session->open.options.io_mode = SCOW_IO_DIRECT;
        return 0;
    case 'm':
        session->misalign = true;
        return 0;
    case 'r':
        *read_only = true;
        return 0;
    case 'd':
        if (arguments_choice(args, "--discard", "unmap|on|ignore|off", &choice) < 0)
            return -1;
        session->ignore_discard = choice >= 2;
        return 0;
    default:
        return open_args_take(&session->open, args, key, 't') < 0 ? -1 : 0;
    }
}

int command_io(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct io_session session = {0};
    bool read_only = false;
    int count = 0, key;
    char **const lines = calloc((size_t)argc + 1, sizeof(*lines));
    if (!lines) {
        command_error("io", "out of memory");
        return EXIT_FAILED;
    }
    open_args_init(&session.open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        if (key == 'c')
            lines[count++] = (char *)args.value;
        else if (take_option(&session, &args, key, &read_only) < 0)
            break;
    }
    int code = args.exit_code;
    if (key == 0 && args.operand_count > 1)
        code = arguments_error(&args, "expects one file, not %d", args.operand_count);
    else if (key == 0 && !read_only && open_args_write(&session.open, &args) < 0)
        code = args.exit_code;
    else if (key == 0)
        code = run_session(&session, args.operand_count ? args.operands[0] : NULL, lines, count)
                   ? EXIT_OK
                   : EXIT_FAILED;
    free(lines);
    if (code == EXIT_OK && command_finish_output() != 0)
        code = EXIT_FAILED;
    return code;
}
