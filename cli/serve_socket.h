/* SPDX-License-Identifier: MIT */
/* Sockets that a server listens on, and what it tells a service manager. */
#ifndef CLI_SERVE_SOCKET_H
#define CLI_SERVE_SOCKET_H

/* A listening Unix socket at path. What a server that was killed left behind is replaced; a path that
 * somebody answers on, or that is no socket, is not. A descriptor, or a negative errno with the error
 * reported. */
int serve_listen(const char *path, unsigned mode);
#define SERVE_MODE_DEFAULT 0777u /* what the umask leaves of it may connect */
#define SERVE_MODE_PRIVATE 0600u /* its owner alone */

/* The first descriptor that a service manager has handed over (sd_listen_fds(3)); -1: none. */
int serve_activated_fd(void);

/* A listening socket, checked; 0 or a negative errno with the error reported. */
int serve_check_fd(int fd);

/* Connects to the service manager, if there is one, before a sandbox forbids it. */
void serve_notify_prepare(void);
/* sd_notify(3): "READY=1", "STOPPING=1". Nothing without a service manager. */
void serve_notify(const char *state);

#endif
