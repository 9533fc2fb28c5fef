/* SPDX-License-Identifier: MIT */
/* The reading commands of shardcow io: read, readv and aio_read. */
#ifndef CLI_IO_READ_H
#define CLI_IO_READ_H

#include "cli/io_session.h"

int io_read(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_readv(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_aio_read(struct io_session *session, const struct io_command *command, int argc, char **argv);

#endif
