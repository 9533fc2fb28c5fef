/* SPDX-License-Identifier: MIT */
/* The commands of shardcow io that change an image, and flush. */
#ifndef CLI_IO_WRITE_H
#define CLI_IO_WRITE_H

#include "cli/io_session.h"

int io_write(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_writev(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_aio_write(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_discard(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_flush(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_truncate(struct io_session *session, const struct io_command *command, int argc, char **argv);

#endif
