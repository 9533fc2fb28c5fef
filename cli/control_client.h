/* SPDX-License-Identifier: MIT */
/* The other end of a server's control socket. */
#ifndef CLI_CONTROL_CLIENT_H
#define CLI_CONTROL_CLIENT_H

#include <jansson.h>

/* A descriptor, or a negative errno with the error reported. */
int control_connect(const char *path);

/* Sends a request, whose reference it takes, and waits for the answer. NULL where there is none, or where it
 * is an error: reported. path is for messages. */
json_t *control_ask(int fd, const char *path, json_t *request);

#endif
