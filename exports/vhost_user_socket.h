/* SPDX-License-Identifier: MIT */
/* Messages and descriptors over a front end's socket, which never blocks. */
#ifndef EXPORTS_VHOST_USER_SOCKET_H
#define EXPORTS_VHOST_USER_SOCKET_H

#include "exports/vhost_user_proto.h"

struct vu_socket {
    int fd;        /* -1: closed */
    uint32_t have; /* bytes of message that are there */
    struct vu_message message;
    int fds[VU_FDS_MAX]; /* that came with it; whoever takes one sets -1 */
    uint32_t fd_count;
};

/* 1: socket->message and its fds are whole; 0: not yet; or a negative errno with *ret_why: -EPIPE when the
 * other side has gone. */
int vu_socket_receive(struct vu_socket *s, const char **ret_why);

/* The message has been dealt with: descriptors that nobody took are closed. */
void vu_socket_next(struct vu_socket *s);

/* A descriptor of the message, now the caller's; -1: there is no such. */
int vu_socket_take_fd(struct vu_socket *s, uint32_t i);

/* A message of bytes payload, with fd if that is not negative. 0 or a negative errno: then the other side
 * does not read. */
int vu_send(int fd, uint32_t request, uint32_t flags, const void *payload, uint32_t bytes, int send_fd);

void vu_socket_close(struct vu_socket *s);

#endif
