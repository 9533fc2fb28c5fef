/* SPDX-License-Identifier: MIT */
/*
 * A socket on which a server is asked things: a line in, a line out, any number of times, several clients at
 * once. It never waits for a client: it belongs to the caller's poll loop.
 *
 *   struct pollfd fds[CONTROL_FDS];
 *   control_poll(control, fds);
 *   poll(fds, CONTROL_FDS, control_timeout_ms(control));
 *   control_step(control, fds);
 */
#ifndef CLI_CONTROL_SOCKET_H
#define CLI_CONTROL_SOCKET_H

#include <jansson.h>
#include <poll.h>
#include <stddef.h>

#define CONTROL_CLIENTS 8u
#define CONTROL_FDS (CONTROL_CLIENTS + 1)
/* A line with its end. */
#define CONTROL_LINE_BYTES 4096u
/* So long a client may take for the rest of a line, or for reading an answer. */
#define CONTROL_PATIENCE_NS 5000000000ull

struct control;

/* Answers a line, which comes without its end and may contain anything. */
typedef json_t *control_answer_fn(void *ctx, const char *line, size_t bytes);

/* listen_fd is the socket's from then on. NULL: out of memory, reported. */
struct control *control_create(int listen_fd, control_answer_fn *answer, void *ctx);
void control_destroy(struct control *c);

/* What to poll for; places that are not in use have a descriptor of -1. */
void control_poll(const struct control *c, struct pollfd fds[CONTROL_FDS]);
/* -1: for ever. */
int control_timeout_ms(const struct control *c);
void control_step(struct control *c, const struct pollfd fds[CONTROL_FDS]);

/* {"error": …} */
json_t *control_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
