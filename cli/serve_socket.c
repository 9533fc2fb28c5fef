/* SPDX-License-Identifier: MIT */
#include "cli/serve_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli/command.h"

#define NEW_SUFFIX ".new"
/* The protocol's first descriptor, by sd_listen_fds(3). */
#define ACTIVATED_FD 3

static int address(const char *path, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof ret->sun_path - strlen(NEW_SUFFIX)) {
        command_error(path, "the path of a socket has at most %zu bytes",
                      sizeof ret->sun_path - strlen(NEW_SUFFIX) - 1);
        return -ENAMETOOLONG;
    }
    memcpy(ret->sun_path, path, strlen(path));
    return 0;
}

/* Whether the path is free, or a socket that nobody listens on any more. */
static int check_path(const char *path, const struct sockaddr_un *a)
{
    struct stat st;
    int fd, r = 0;

    if (lstat(path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode)) {
        command_error(path, "it exists and is no socket");
        return -EEXIST;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && (connect(fd, (const struct sockaddr *)a, sizeof *a) == 0 || errno != ECONNREFUSED)) {
        command_error(path, "another server listens there");
        r = -EADDRINUSE;
    }
    if (fd >= 0)
        close(fd);
    return r;
}

/* Under its path once it listens: who sees it can connect. */
int serve_listen(const char *path, unsigned mode)
{
    struct sockaddr_un a;
    int fd, r = address(path, &a);

    if (r == 0)
        r = check_path(path, &a);
    if (r < 0)
        return r;
    memcpy(a.sun_path + strlen(path), NEW_SUFFIX, sizeof NEW_SUFFIX);
    (void)unlink(a.sun_path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The path gets the mode that the socket has at that moment, less the umask. */
    if (fd < 0 || fchmod(fd, mode) < 0 || bind(fd, (const struct sockaddr *)&a, sizeof a) < 0 ||
        listen(fd, 8) < 0 || rename(a.sun_path, path) < 0) {
        r = -errno;
        (void)unlink(a.sun_path);
        command_error(path, "cannot listen: %s", strerror(-r));
        if (fd >= 0)
            close(fd);
        return r;
    }
    return fd;
}

int serve_activated_fd(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");

    if (!pid || !count || strtol(pid, NULL, 10) != getpid() || strtol(count, NULL, 10) < 1)
        return -1;
    return ACTIVATED_FD;
}

int serve_check_fd(int fd)
{
    int listens = 0, domain = 0;
    socklen_t bytes = sizeof listens;

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) < 0 || domain != AF_UNIX ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &bytes) < 0 || !listens ||
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        command_error(NULL, "descriptor %d is no listening Unix socket", fd);
        return -ENOTSOCK;
    }
    return 0;
}

static int notify_fd = -1;

void serve_notify_prepare(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof a.sun_path)
        return;
    memcpy(a.sun_path, path, strlen(path));
    if (path[0] == '@') /* the abstract namespace */
        a.sun_path[0] = '\0';
    notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (notify_fd >= 0 && connect(notify_fd, (const struct sockaddr *)&a,
                                  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path))) == 0)
        return;
    if (notify_fd >= 0)
        close(notify_fd);
    notify_fd = -1;
}

void serve_notify(const char *state)
{
    if (notify_fd >= 0)
        (void)!send(notify_fd, state, strlen(state), MSG_NOSIGNAL);
}
