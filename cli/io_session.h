/* SPDX-License-Identifier: MIT */
/* What shardcow io works on: one image at a time, in one thread, and the commands that do the work. */
#ifndef CLI_IO_SESSION_H
#define CLI_IO_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "shardcow.h"
#include "cli/open_args.h"

struct io_session {
    struct scow_image *image; /* NULL: none is open */
    char *path;
    struct open_args open; /* how the image is open, or how the next one is opened by default */
    uint64_t disk_bytes;
    bool misalign;            /* buffers 16 bytes off any alignment, as qemu-io -m makes them */
    bool ignore_discard;      /* discards do nothing, as with qemu-io -d ignore */
    struct scow_queue *queue; /* NULL until a request needs it */
    uint32_t async_count;     /* requests of aio_read and aio_write that are in flight */
};

/* What a command returns. */
enum { IO_DONE = 0, IO_QUIT = 1, IO_FAILED = -1 };

/* What a command needs. */
enum {
    IO_NEEDS_FILE = 1 << 0,
    IO_NEEDS_WRITING = 1 << 1,
};

struct io_command {
    const char *name;
    const char *alias; /* or NULL */
    int (*run)(struct io_session *session, const struct io_command *command, int argc, char **argv);
    int needs; /* IO_NEEDS_* */
    int operands_min;
    int operands_max;     /* options included; -1: any number */
    const char *synopsis; /* NULL: there is none */
    const char *summary;
    const char *help; /* lines; NULL: there is no more to say */
};

static inline bool io_session_writes(const struct io_session *session)
{
    return session->open.options.flags & SCOW_OPEN_WRITE;
}

/* Opens path as session->open says; reports errors. IO_DONE or IO_FAILED. */
int io_session_open(struct io_session *session, const char *path);

/* Waits for what is in flight and closes the image, if one is open; reports errors, among them data that
 * could not be written. IO_DONE or IO_FAILED. */
int io_session_close(struct io_session *session);

/* Waits for what is in flight and gives the queue back; the next request makes another. */
void io_session_idle(struct io_session *session);

int io_open(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_close(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_reopen(struct io_session *session, const struct io_command *command, int argc, char **argv);

#endif
