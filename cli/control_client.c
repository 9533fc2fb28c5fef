/* SPDX-License-Identifier: MIT */
#include "cli/control_client.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli/command.h"

/* A server that changes its disk's size waits for the disk. */
#define PATIENCE_S 120
#define ANSWER_BYTES_MIN 65536u
#define ANSWER_BYTES_MAX (64u << 20)

int control_connect(const char *path)
{
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd, r;

    if (strlen(path) >= sizeof a.sun_path) {
        command_error(path, "the path of a socket has at most %zu bytes", sizeof a.sun_path - 1);
        return -ENAMETOOLONG;
    }
    memcpy(a.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof a) == 0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        return fd;
    }
    r = -errno;
    command_error(path, "cannot connect: %s", strerror(-r));
    if (r == -ECONNREFUSED || r == -ENOENT)
        command_hint("'shardcow serve --control %s' makes such a socket", path);
    if (fd >= 0)
        close(fd);
    return r;
}

static bool send_line(int fd, json_t *request)
{
    char *const text = json_dumps(request, JSON_COMPACT);
    bool good = text;

    json_decref(request);
    for (size_t at = 0, bytes = good ? strlen(text) : 0; good && at < bytes;) {
        const ssize_t n = send(fd, text + at, bytes - at, MSG_NOSIGNAL);

        good = n > 0;
        at += good ? (size_t)n : 0;
    }
    free(text);
    return good && send(fd, "\n", 1, MSG_NOSIGNAL) == 1;
}

/* To be freed; NULL with errno where none comes. */
static char *receive_line(int fd, size_t *ret_bytes)
{
    size_t room = 0, have = 0;
    char *line = NULL;

    for (;;) {
        ssize_t n;

        if (have == room) {
            char *const more =
                room < ANSWER_BYTES_MAX ? realloc(line, room = 2 * room + ANSWER_BYTES_MIN) : NULL;

            if (!more) {
                errno = ENOMEM;
                break;
            }
            line = more;
        }
        n = recv(fd, line + have, room - have, 0);
        if (n <= 0) {
            errno = n ? errno : ECONNRESET;
            break;
        }
        have += (size_t)n;
        if (line[have - 1] == '\n') {
            *ret_bytes = have;
            return line;
        }
    }
    free(line);
    return NULL;
}

json_t *control_ask(int fd, const char *path, json_t *request)
{
    const char *error;
    char *line = NULL;
    size_t bytes;
    json_t *answer;

    if (send_line(fd, request))
        line = receive_line(fd, &bytes);
    if (!line) {
        if (errno == ECONNRESET || errno == EPIPE)
            command_error(path, "the server has gone");
        else
            command_error(path, "no answer: %s", strerror(errno));
        return NULL;
    }
    answer = json_loadb(line, bytes, 0, NULL);
    free(line);
    error = json_string_value(json_object_get(answer, "error"));
    if (json_is_object(answer) && !error)
        return answer;
    command_error(path, "%s", error ? error : "the answer is not a server's");
    json_decref(answer);
    return NULL;
}
