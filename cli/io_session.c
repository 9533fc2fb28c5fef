/* SPDX-License-Identifier: MIT */
#include "cli/io_session.h"
#include "cli/command.h"
#include "cli/io_parse.h"
#include "cli/io_request.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one image ---- */

int io_session_open(struct io_session *session, const char *path)
{
    struct scow_open_options options = session->open.options;
    char *const copy = strdup(path); /* path may be session->path */
    struct scow_image *image;
    if (!copy) {
        command_error(path, "out of memory");
        return IO_FAILED;
    }
    options.open_child = scow_open_child_any;
    if (open_image(copy, &options, &image) < 0) {
        free(copy);
        return IO_FAILED;
    }
    free(session->path);
    session->path = copy;
    session->image = image;
    session->disk_bytes = scow_size(image);
    return IO_DONE;
}

void io_session_idle(struct io_session *session)
{
    io_request_poll(session, true);
    scow_queue_destroy(session->queue);
    session->queue = NULL;
    session->async_count = 0;
}

int io_session_close(struct io_session *session)
{
    struct scow_image *const image = session->image;
    io_session_idle(session);
    session->image = NULL;
    return close_image(image, session->path) < 0 ? IO_FAILED : IO_DONE;
}

/* ---- options ---- */

static void set_writing(struct open_args *open, bool writing)
{
    open->options.flags &= ~(SCOW_OPEN_WRITE | SCOW_OPEN_WRITETHROUGH);
    if (writing)
        open->options.flags |= SCOW_OPEN_WRITE | (open->writethrough ? SCOW_OPEN_WRITETHROUGH : 0);
}

static bool set_cache(struct open_args *open, const char *mode)
{
    static const char *const direct[] = {"none", "off", "directsync", "direct"};
    static const char *const buffered[] = {"writeback", "writethrough", "unsafe", "buffered"};
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(mode, direct[i]) && strcmp(mode, buffered[i]))
            continue;
        open->options.io_mode = strcmp(mode, direct[i]) ? SCOW_IO_BUFFERED : SCOW_IO_DIRECT;
        open->writethrough = open_args_cache_writethrough(mode);
        return true;
    }
    command_error(NULL, "Invalid cache option: %s", mode);
    return false;
}

static bool set_discard(bool *ret_ignore, const char *mode)
{
    *ret_ignore = !strcmp(mode, "ignore") || !strcmp(mode, "off");
    if (*ret_ignore || !strcmp(mode, "unmap") || !strcmp(mode, "on"))
        return true;
    command_error(NULL, "Invalid discard option: %s", mode);
    return false;
}

/* Of qemu's driver options the one that names the format. */
static bool set_driver(struct open_args *open, const char *option)
{
    if (!strcmp(option, "driver=qcow2")) {
        open->options.format = SCOW_FORMAT_QCOW2;
    } else if (!strcmp(option, "driver=raw")) {
        open->options.format = SCOW_FORMAT_RAW;
    } else {
        command_error(NULL, "option '%s' is not supported: driver=qcow2 and driver=raw are", option);
        return false;
    }
    return true;
}

struct open_words {
    struct open_args open;
    bool ignore_discard, read_only;
};

/* One option of open. False, reported: the command fails. */
static bool take_open_option(const struct io_command *command, int letter, struct open_words *words)
{
    switch (letter) {
    case 'r':
        words->read_only = true;
        return true;
    case 'n':
        return set_cache(&words->open, "none");
    case 't':
        return set_cache(&words->open, optarg);
    case 'd':
        return set_discard(&words->ignore_discard, optarg);
    case 'o':
        return set_driver(&words->open, optarg);
    case 'U':
        words->open.options.flags |= SCOW_OPEN_NO_LOCK;
        return true;
    case 'k':
    case 'i':
        return true; /* how qemu-io does its I/O: --backend says it here */
    case 's':
    case 'C':
        command_error(NULL, "open -%c is not supported", letter);
        return false;
    default:
        io_print_usage(command);
        return false;
    }
}

/* ---- commands ---- */

int io_open(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    struct open_words words = {.open = session->open};
    int letter;
    words.open.options.flags &= ~SCOW_OPEN_NO_LOCK;
    optind = 0; /* GNU: scan afresh */
    opterr = 1;
    while ((letter = getopt(argc, argv, "rsCnkUt:d:o:i:")) != -1) {
        if (!take_open_option(command, letter, &words))
            return IO_FAILED;
    }
    if (optind != argc - 1) {
        io_print_usage(command);
        return IO_FAILED;
    }
    if (session->image) {
        command_error(NULL, "file open already, try 'help close'");
        return IO_FAILED;
    }
    if (words.open.options.flags & SCOW_OPEN_NO_LOCK && !words.read_only) {
        command_error(argv[optind], "-U is for reading only: add -r");
        return IO_FAILED;
    }
    set_writing(&words.open, !words.read_only);
    session->open = words.open;
    session->ignore_discard = words.ignore_discard;
    return io_session_open(session, argv[optind]);
}

int io_close(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    return io_session_close(session);
}

static bool take_reopen_options(const struct io_command *command, int argc, char **argv,
                                struct open_args *open)
{
    bool writing = open->options.flags & SCOW_OPEN_WRITE, given = false;
    int letter;
    optind = 0; /* GNU: scan afresh */
    opterr = 1;
    while ((letter = getopt(argc, argv, "c:o:rw")) != -1) {
        if (letter == 'c') {
            if (!set_cache(open, optarg))
                return false;
        } else if (letter == 'o') {
            command_error(NULL, "reopen -o is not supported");
            return false;
        } else if (letter != 'r' && letter != 'w') {
            io_print_usage(command);
            return false;
        } else if (given) {
            command_error(NULL, "Only one -r/-w option may be given");
            return false;
        } else {
            given = true;
            writing = letter == 'w';
        }
    }
    if (optind != argc) {
        io_print_usage(command);
        return false;
    }
    set_writing(open, writing);
    return true;
}

int io_reopen(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    const struct open_args old = session->open;
    struct open_args open = old;
    if (!take_reopen_options(command, argc, argv, &open))
        return IO_FAILED;
    int ret = io_session_close(session);
    session->open = open;
    if (io_session_open(session, session->path) == IO_DONE)
        return ret;
    session->open = old;
    io_session_open(session, session->path);
    return IO_FAILED;
}
