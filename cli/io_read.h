/* SPDX-License-Identifier: MIT */
/* The reading commands of shardcow io: read, readv, aio_read and aio_flush. */
#ifndef CLI_IO_READ_H
#define CLI_IO_READ_H

#include "shardcow.h"

#include <stdbool.h>
#include <stdint.h>

/* One image on which commands work, in one thread. */
struct io_session {
    struct scow_image *image;
    const char *path;
    uint64_t disk_bytes;
    bool misalign;            /* buffers 16 bytes off any alignment, as qemu-io -m makes them */
    struct scow_queue *queue; /* NULL until a request needs it */
    uint32_t async_count;     /* requests of aio_read that are in flight */
};

/* What a command returns. */
enum { IO_DONE = 0, IO_QUIT = 1, IO_FAILED = -1 };

struct io_command {
    const char *name;
    const char *alias; /* or NULL */
    int (*run)(struct io_session *session, const struct io_command *command, int argc, char **argv);
    int operands_min;
    int operands_max;     /* options included; -1: any number */
    const char *synopsis; /* NULL: there is none */
    const char *summary;
    const char *help; /* lines; NULL: there is no more to say */
};

int io_read(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_readv(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_aio_read(struct io_session *session, const struct io_command *command, int argc, char **argv);

/* Prints the asynchronous reads that are done; with wait set, waits until all are. */
void io_read_poll(struct io_session *session, bool wait);

/* A size or offset as qemu-io reads it, at most 2^63 - 1; reports and returns false if text is none. */
bool io_parse_size(const char *text, uint64_t *ret_bytes);

/* Prints "NAME SYNOPSIS -- SUMMARY", qemu-io's word for word where it has the command. */
void io_print_usage(const struct io_command *command);

#endif
