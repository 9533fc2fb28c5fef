/* SPDX-License-Identifier: MIT */
/* Numbers, options and ranges as qemu-io reads them, and its words for those that it does not accept. */
#ifndef CLI_IO_PARSE_H
#define CLI_IO_PARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/io_request.h"
#include "cli/io_session.h"

/* A size or offset as qemu-io reads it, at most 2^63 - 1; reports and returns false if text is none. */
bool io_parse_size(const char *text, uint64_t *ret_bytes);

/* Prints "NAME SYNOPSIS -- SUMMARY", qemu-io's word for word where it has the command. */
void io_print_usage(const struct io_command *command);

/*
 * Takes the options, getopt's letters, into the request; optind is the first operand's index then. 1: go on;
 * IO_DONE or IO_FAILED: the command has ended.
 */
int io_parse_options(const struct io_command *command, const char *letters, int argc, char **argv,
                     struct io_request *request);

/* How many lengths a command takes, and how it puts one that is too long. */
enum io_lengths {
    IO_LENGTHS_MANY,
    IO_LENGTHS_ONE,         /* "length cannot exceed N" */
    IO_LENGTHS_ONE_WITHOUT, /* "length cannot exceed N without -n" */
    IO_LENGTHS_ONE_ANY,     /* of any size */
};

/* off, then one length or more, from argv[optind] on. Reports and returns false if they are none. */
bool io_parse_range(const struct io_session *session, const struct io_command *command,
                    enum io_lengths lengths, int argc, char **argv, struct io_request *request);

#endif
