/* SPDX-License-Identifier: MIT */
#include "cli/control_socket.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "cli/command.h"
#include "cli/json.h"

#define ERROR_BYTES 512

struct client {
    int fd; /* -1: free */
    char line[CONTROL_LINE_BYTES];
    size_t have;  /* bytes of it, and of what follows */
    char *answer; /* NULL: none under way; nothing is read before it is sent */
    size_t answer_bytes, sent;
    bool ended;        /* it sends no more */
    uint64_t since_ns; /* when what it is expected to end began: a line, or reading an answer */
};

struct control {
    int listen_fd;
    control_answer_fn *answer;
    void *ctx;
    struct client clients[CONTROL_CLIENTS];
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

json_t *control_error(const char *format, ...)
{
    json_t *const o = json_object();
    char text[ERROR_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_put(o, "error", json_text(text));
    return o;
}

/* A line with its end, to be freed. NULL: out of memory. */
static char *line_of(json_t *answer)
{
    char *const text = json_dumps(answer, JSON_COMPACT);
    const size_t bytes = text ? strlen(text) : 0;
    char *const line = text ? realloc(text, bytes + 2) : NULL;

    json_decref(answer);
    if (line)
        memcpy(line + bytes, "\n", 2);
    else
        free(text);
    return line;
}

/* ---- a client ---- */

static void drop(struct client *cl)
{
    close(cl->fd);
    free(cl->answer);
    cl->answer = NULL;
    cl->fd = -1;
}

static bool has_line(const struct client *cl)
{
    return memchr(cl->line, '\n', cl->have);
}

static void send_more(struct client *cl)
{
    while (cl->sent < cl->answer_bytes) {
        const ssize_t n = send(cl->fd, cl->answer + cl->sent, cl->answer_bytes - cl->sent, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                drop(cl);
            return;
        }
        cl->sent += (size_t)n;
    }
    free(cl->answer);
    cl->answer = NULL;
    cl->since_ns = now_ns(); /* of the next line, if some of it is here */
}

static void begin_answer(struct client *cl, json_t *answer)
{
    cl->answer = line_of(answer);
    if (!cl->answer) {
        drop(cl);
        return;
    }
    cl->answer_bytes = strlen(cl->answer);
    cl->sent = 0;
    cl->since_ns = now_ns();
    send_more(cl);
}

static void receive(struct client *cl)
{
    const ssize_t n = recv(cl->fd, cl->line + cl->have, sizeof cl->line - cl->have, 0);

    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            drop(cl);
        return;
    }
    if (!cl->have)
        cl->since_ns = now_ns();
    cl->have += (size_t)n;
    cl->ended |= n == 0;
    if (cl->have == sizeof cl->line && !has_line(cl)) {
        cl->have = 0;
        cl->ended = true;
        begin_answer(cl, control_error("a line has at most %u bytes", CONTROL_LINE_BYTES - 1));
    }
}

/* One at a time, so that nobody who has sent many keeps the loop. */
static void answer_line(struct control *c, struct client *cl)
{
    char line[CONTROL_LINE_BYTES];
    const char *const end = memchr(cl->line, '\n', cl->have);
    const size_t bytes = (size_t)(end - cl->line);

    memcpy(line, cl->line, bytes);
    cl->have -= bytes + 1;
    memmove(cl->line, end + 1, cl->have);
    begin_answer(cl, c->answer(c->ctx, line, bytes));
}

/* The line that is there, if nothing stands before it; the end of a client that wants no more. */
static void advance(struct control *c, struct client *cl, uint64_t now)
{
    if (cl->fd >= 0 && !cl->answer && has_line(cl))
        answer_line(c, cl);
    if (cl->fd < 0)
        return;
    if (cl->ended && !cl->answer && !has_line(cl))
        drop(cl);
    else if ((cl->answer || cl->have) && now > cl->since_ns + CONTROL_PATIENCE_NS)
        drop(cl);
}

/* ---- all of them ---- */

struct control *control_create(int listen_fd, control_answer_fn *answer, void *ctx)
{
    struct control *const c = calloc(1, sizeof *c);

    if (!c) {
        command_error(NULL, "out of memory");
        return NULL;
    }
    c->listen_fd = listen_fd;
    c->answer = answer;
    c->ctx = ctx;
    for (uint32_t i = 0; i < CONTROL_CLIENTS; i++)
        c->clients[i].fd = -1;
    return c;
}

void control_destroy(struct control *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; i < CONTROL_CLIENTS; i++)
        if (c->clients[i].fd >= 0)
            drop(&c->clients[i]);
    close(c->listen_fd);
    free(c);
}

void control_poll(const struct control *c, struct pollfd fds[CONTROL_FDS])
{
    fds[0] = (struct pollfd){.fd = c->listen_fd, .events = POLLIN};
    for (uint32_t i = 0; i < CONTROL_CLIENTS; i++) {
        const struct client *const cl = &c->clients[i];

        fds[i + 1] = (struct pollfd){.fd = cl->fd, .events = cl->answer ? POLLOUT : POLLIN};
    }
}

int control_timeout_ms(const struct control *c)
{
    const uint64_t now = now_ns();
    uint64_t until = UINT64_MAX;

    for (uint32_t i = 0; i < CONTROL_CLIENTS; i++) {
        const struct client *const cl = &c->clients[i];

        if (cl->fd < 0 || (!cl->answer && !cl->have))
            continue;
        if (!cl->answer && has_line(cl))
            return 0;
        if (cl->since_ns + CONTROL_PATIENCE_NS < until)
            until = cl->since_ns + CONTROL_PATIENCE_NS;
    }
    if (until == UINT64_MAX)
        return -1;
    return until < now ? 0 : (int)((until - now) / 1000000 + 1);
}

static void take_client(struct control *c)
{
    static const char full[] = "{\"error\": \"too many clients\"}\n";
    const int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return;
    for (uint32_t i = 0; i < CONTROL_CLIENTS; i++) {
        struct client *const cl = &c->clients[i];

        if (cl->fd >= 0)
            continue;
        cl->fd = fd;
        cl->have = 0;
        cl->ended = false;
        return;
    }
    (void)!send(fd, full, sizeof full - 1, MSG_NOSIGNAL);
    close(fd);
}

void control_step(struct control *c, const struct pollfd fds[CONTROL_FDS])
{
    const uint64_t now = now_ns();

    for (uint32_t i = 0; i < CONTROL_CLIENTS; i++) {
        struct client *const cl = &c->clients[i];

        if (cl->fd >= 0 && fds[i + 1].revents) {
            if (cl->answer)
                send_more(cl);
            else
                receive(cl);
        }
        advance(c, cl, now);
    }
    if (fds[0].revents)
        take_client(c);
}
