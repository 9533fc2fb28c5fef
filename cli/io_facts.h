/* SPDX-License-Identifier: MIT */
/* The commands of shardcow io that tell about the image: length, info, map and alloc. */
#ifndef CLI_IO_FACTS_H
#define CLI_IO_FACTS_H

#include "cli/io_session.h"

int io_length(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_info(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_map(struct io_session *session, const struct io_command *command, int argc, char **argv);
int io_alloc(struct io_session *session, const struct io_command *command, int argc, char **argv);

#endif
