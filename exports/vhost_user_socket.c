/* SPDX-License-Identifier: MIT */
#include "exports/vhost_user_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Takes over the descriptors of what was received. False: more than there may be. */
static int take_fds(struct vu_socket *s, struct msghdr *h)
{
    int r = h->msg_flags & MSG_CTRUNC ? -EMSGSIZE : 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (s->fd_count < VU_FDS_MAX) {
                s->fds[s->fd_count++] = fd;
            } else {
                close(fd);
                r = -EMSGSIZE;
            }
        }
    }
    return r;
}

/* Up to bytes more of the message. */
static int receive_some(struct vu_socket *s, size_t bytes, const char **ret_why)
{
    union {
        struct cmsghdr align;
        uint8_t space[CMSG_SPACE(VU_FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {(uint8_t *)&s->message.header + s->have, bytes};
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    const ssize_t n = recvmsg(s->fd, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

    if (n < 0) {
        *ret_why = "the socket cannot be read";
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    }
    *ret_why = "too many descriptors came with a message";
    if (take_fds(s, &h) < 0)
        return -EMSGSIZE;
    *ret_why = s->have ? "the front end went in the middle of a message" : "the front end has gone";
    if (n == 0)
        return s->have ? -EPROTO : -EPIPE;
    s->have += (uint32_t)n;
    return (int)n;
}

int vu_socket_receive(struct vu_socket *s, const char **ret_why)
{
    for (;;) {
        const uint32_t header = sizeof s->message.header;
        uint32_t whole = header;
        int r;

        if (s->have >= header) {
            *ret_why = "a message is longer than any there is";
            if (s->message.header.bytes > sizeof s->message.payload)
                return -EMSGSIZE;
            whole += s->message.header.bytes;
        }
        if (s->have == whole && s->have >= header)
            return 1;
        r = receive_some(s, whole - s->have, ret_why);
        if (r <= 0)
            return r;
    }
}

int vu_socket_take_fd(struct vu_socket *s, uint32_t i)
{
    int fd;

    if (i >= s->fd_count)
        return -1;
    fd = s->fds[i];
    s->fds[i] = -1;
    return fd;
}

void vu_socket_next(struct vu_socket *s)
{
    for (uint32_t i = 0; i < s->fd_count; i++)
        if (s->fds[i] >= 0)
            close(s->fds[i]);
    s->fd_count = 0;
    s->have = 0;
}

int vu_send(int fd, uint32_t request, uint32_t flags, const void *payload, uint32_t bytes, int send_fd)
{
    struct vu_header header = {.request = request, .flags = flags | VU_VERSION, .bytes = bytes};
    struct iovec iov[] = {{&header, sizeof header}, {(void *)payload, bytes}};
    union {
        struct cmsghdr align;
        uint8_t space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr h = {.msg_iov = iov, .msg_iovlen = bytes ? 2 : 1};
    ssize_t n;

    if (send_fd >= 0) {
        struct cmsghdr *c;

        h.msg_control = &control;
        h.msg_controllen = sizeof control;
        c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof send_fd);
        memcpy(CMSG_DATA(c), &send_fd, sizeof send_fd);
    }
    n = sendmsg(fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0)
        return -errno;
    return (size_t)n == sizeof header + bytes ? 0 : -EPIPE;
}

void vu_socket_close(struct vu_socket *s)
{
    vu_socket_next(s);
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}
