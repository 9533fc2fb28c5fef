/* SPDX-License-Identifier: MIT */
/* The commands of a server's control socket. */
#ifndef CLI_CONTROL_COMMANDS_H
#define CLI_CONTROL_COMMANDS_H

#include <jansson.h>
#include <stddef.h>

/* A control_answer_fn; disk is a struct control_disk. An object with the key "error" where something is
 * wrong. */
json_t *control_command(void *disk, const char *line, size_t bytes);

#endif
