/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/control_commands.h"
#include "cli/control_socket.h"
#include "cli/control_stats.h"
#include "cli/open_args.h"
#include "cli/serve_socket.h"
#include "exports/sandbox.h"
#include "exports/vhost_user_blk.h"

enum {
    ARG_VHOST = ARG_LONG,
    ARG_SOCKET_FD,
    ARG_QUEUES,
    ARG_THREADS,
    ARG_POLL,
    ARG_SERIAL,
    ARG_DIRECT,
    ARG_BUFFERED,
    ARG_WRITETHROUGH,
    ARG_PID_FILE,
    ARG_NO_STATS,
    ARG_CONTROL,
    ARG_SANDBOX,
    ARG_PIN_MEMORY,
};

/* Longer than an idle processor takes to wake up, shorter than most disks take to read. */
#define POLL_US_DEFAULT 50u

static const struct argument specs[] = {
    {ARG_VHOST, "vhost-user-blk", "SOCKET", "serve a hypervisor that connects to this Unix socket"},
    {ARG_SOCKET_FD, "socket-fd", "N", "the same, on a listening socket that is open already"},
    {ARG_QUEUES, "queues", "N", "virtqueues, 1 to 64; default: one per CPU, at most 8"},
    {ARG_THREADS, "threads", "N", "threads that serve them; default: one per queue, up to the CPUs"},
    {ARG_POLL, "poll-us", "N", "poll for at most so long before sleeping, 0: never; default 50"},
    {'r', "read-only", NULL, "the guest cannot write"},
    {ARG_SERIAL, "serial", "TEXT", "the disk's serial number, at most 20 bytes"},
    {ARG_DIRECT, "direct", NULL, "direct I/O, or fail; default: where possible"},
    {ARG_BUFFERED, "buffered", NULL, "I/O through the page cache"},
    {ARG_WRITETHROUGH, "writethrough", NULL, "every write is durable; the guest cannot turn its cache on"},
    {ARG_PIN_MEMORY, "pin-memory", NULL, "keep the guest's pages; not with a balloon, see the manual"},
    {ARG_PID_FILE, "pid-file", "FILE", "write the process's number there; removed at the end"},
    {ARG_NO_STATS, "no-stats", NULL, "measure no latencies"},
    {ARG_CONTROL, "control", "SOCKET", "answer 'shardcow stats' and 'shardcow resize' on this Unix socket"},
    {ARG_SANDBOX, "sandbox", "on|off", "give up all system calls that serving needs not; default: on"},
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_CACHE('t'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "serve",
    .synopsis = "--vhost-user-blk SOCKET [OPTION]... FILE",
    .text =
        "Serve an image as a disk until SIGTERM or SIGINT. Hypervisors connect one after another; the image\n"
        "stays open, and locked, until the server ends. What the guest was told is durable is durable\n"
        "whatever becomes of the server.\n",
    .specs = specs,
    .examples = "  shardcow serve --vhost-user-blk /run/disk.sock --queues 4 disk.qcow2\n"
                "  qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=4G,share=on \\\n"
                "      -machine memory-backend=mem -chardev socket,id=disk,path=/run/disk.sock \\\n"
                "      -device vhost-user-blk-pci,chardev=disk,num-queues=4\n",
};

struct serve_args {
    struct open_args open;
    const char *path, *socket_path, *control_path, *pid_file, *serial;
    int socket_fd, control_fd;
    uint32_t queues, threads, poll_us;
    bool read_only, writethrough, no_stats, no_sandbox, pin_memory;
};

static void print_log(void *ctx, const char *text)
{
    command_error(ctx, "%s", text);
}

/* ---- serving ---- */

/* Until a signal says stop. control may be NULL. */
static int serve(struct vhost_user_blk *server, struct control *control, int signals)
{
    for (;;) {
        struct pollfd fds[2 + CONTROL_FDS] = {{.fd = signals, .events = POLLIN},
                                              {.fd = vhost_user_blk_fd(server), .events = POLLIN}};

        if (control)
            control_poll(control, fds + 2);
        if (poll(fds, control ? 2 + CONTROL_FDS : 2, control ? control_timeout_ms(control) : -1) < 0 &&
            errno != EINTR) {
            command_error(NULL, "poll: %s", strerror(errno));
            return -errno;
        }
        if (fds[0].revents)
            return 0;
        if (fds[1].revents)
            vhost_user_blk_ready(server);
        if (control)
            control_step(control, fds + 2);
    }
}

/* NULL in *ret: none is asked for. */
static int make_control(const struct serve_args *args, struct control_disk *disk, struct control **ret)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    disk->start_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    *ret = args->control_fd < 0 ? NULL : control_create(args->control_fd, control_command, disk);
    return args->control_fd < 0 || *ret ? 0 : -ENOMEM;
}

static int block_signals(int *ret_fd)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    *ret_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (*ret_fd >= 0)
        return 0;
    command_error(NULL, "signalfd: %s", strerror(errno));
    return -errno;
}

static int write_pid_file(const char *path)
{
    FILE *f = path ? fopen(path, "we") : NULL;
    bool bad;

    if (!path)
        return 0;
    bad = !f || fprintf(f, "%d\n", (int)getpid()) < 0;
    if (f && fclose(f))
        bad = true;
    if (!bad)
        return 0;
    command_error(path, "cannot write the process's number: %s", strerror(errno));
    return -EIO;
}

/* Everything that has to be opened is. */
static int enter_sandbox(const struct serve_args *args)
{
    int r;

    if (args->no_sandbox || !sandbox_is_built_in())
        return 0;
    r = sandbox_enter();
    if (r < 0) {
        command_error(NULL, "the sandbox cannot be entered: %s", strerror(-r));
        command_hint("--sandbox off serves without it");
    }
    return r;
}

static int run_server(struct serve_args *args, struct scow_image *image, int listen_fd)
{
    const struct vhost_user_blk_options o = {.listen_fd = listen_fd,
                                             .queues = args->queues,
                                             .threads = args->threads,
                                             .poll_ns = args->poll_us * 1000ull,
                                             .read_only = args->read_only,
                                             .writethrough = args->writethrough,
                                             .stats = !args->no_stats,
                                             .pin_memory = args->pin_memory,
                                             .serial = args->serial,
                                             .log = print_log,
                                             .log_ctx = (void *)args->path};
    struct control_disk disk = {
        .path = args->path, .image = image, .read_only = args->read_only, .latencies = !args->no_stats};
    struct control *control = NULL;
    const char *why;
    int signals, r = block_signals(&signals);

    if (r == 0) {
        r = vhost_user_blk_create(image, &o, &disk.server, &why);
        if (r < 0)
            command_error(args->path, "%s", why);
    }
    if (r < 0)
        return r;
    r = make_control(args, &disk, &control);
    if (r == 0)
        r = write_pid_file(args->pid_file);
    serve_notify_prepare();
    if (r == 0)
        r = enter_sandbox(args);
    if (r == 0) {
        serve_notify("READY=1");
        r = serve(disk.server, control, signals);
        serve_notify("STOPPING=1");
    }
    control_destroy(control);
    vhost_user_blk_destroy(disk.server);
    if (args->pid_file)
        (void)unlink(args->pid_file);
    close(signals);
    return r;
}

/* Both sockets, or none: 0, or a negative errno. */
static int open_sockets(struct serve_args *args, int *ret_fd)
{
    int fd = args->socket_fd, r;

    if (fd >= 0)
        r = serve_check_fd(fd);
    else
        r = fd = serve_listen(args->socket_path, SERVE_MODE_DEFAULT);
    if (r < 0)
        return r;
    if (args->control_path) {
        args->control_fd = serve_listen(args->control_path, SERVE_MODE_PRIVATE);
        if (args->control_fd < 0) {
            if (args->socket_path)
                (void)unlink(args->socket_path);
            close(fd);
            return args->control_fd;
        }
    }
    *ret_fd = fd;
    return 0;
}

/* The sockets come first: who waits for them may connect while the image is being opened. */
static int serve_image(struct serve_args *args)
{
    struct scow_open_options o = args->open.options;
    struct scow_image *image;
    int fd = -1, close_err, r = open_sockets(args, &fd);

    if (r < 0)
        return r;
    o.open_child = scow_open_child_any;
    o.queues_max = args->queues;
    r = open_image(args->path, &o, &image);
    if (r == 0) {
        r = run_server(args, image, fd);
        close_err = close_image(image, args->path);
        r = r ? r : close_err;
    }
    if (args->socket_path)
        (void)unlink(args->socket_path);
    if (args->control_path)
        (void)unlink(args->control_path);
    return r;
}

/* ---- options ---- */

static int take_number(struct arguments *args, const char *option, uint64_t min, uint64_t max, uint32_t *ret)
{
    uint64_t n;

    if (arguments_number(args, option, min, max, &n))
        return -1;
    *ret = (uint32_t)n;
    return 0;
}

static int take_serial(struct serve_args *serve, struct arguments *args)
{
    if (strlen(args->value) > VIRTIO_BLK_ID_BYTES) {
        arguments_error(args, "--serial: at most %d bytes", VIRTIO_BLK_ID_BYTES);
        return -1;
    }
    serve->serial = args->value;
    return 0;
}

static int take_option(struct serve_args *serve, struct arguments *args, int key)
{
    uint32_t fd;
    int choice;

    switch (key) {
    case ARG_VHOST:
        serve->socket_path = args->value;
        return 0;
    case ARG_SOCKET_FD:
        if (take_number(args, "--socket-fd", 0, INT32_MAX, &fd))
            return -1;
        serve->socket_fd = (int)fd;
        return 0;
    case ARG_QUEUES:
        return take_number(args, "--queues", 1, VHOST_USER_BLK_QUEUES_MAX, &serve->queues);
    case ARG_THREADS:
        return take_number(args, "--threads", 1, VHOST_USER_BLK_QUEUES_MAX, &serve->threads);
    case ARG_POLL:
        return take_number(args, "--poll-us", 0, 1000000, &serve->poll_us);
    case 'r':
        serve->read_only = true;
        return 0;
    case ARG_SERIAL:
        return take_serial(serve, args);
    case ARG_DIRECT:
        serve->open.options.io_mode = SCOW_IO_DIRECT;
        return 0;
    case ARG_BUFFERED:
        serve->open.options.io_mode = SCOW_IO_BUFFERED;
        return 0;
    case ARG_WRITETHROUGH:
        serve->writethrough = true;
        return 0;
    case ARG_PID_FILE:
        serve->pid_file = args->value;
        return 0;
    case ARG_CONTROL:
        serve->control_path = args->value;
        return 0;
    case ARG_SANDBOX:
        if (arguments_choice(args, "--sandbox", "on|off", &choice))
            return -1;
        serve->no_sandbox = choice;
        return 0;
    case ARG_PIN_MEMORY:
        serve->pin_memory = true;
        return 0;
    case ARG_NO_STATS:
        serve->no_stats = true;
        return 0;
    default:
        return open_args_take(&serve->open, args, key, 't') < 0 ? -1 : 0;
    }
}

/* What options leave open. */
static int settle(struct serve_args *serve, struct arguments *args)
{
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    if (!serve->queues)
        serve->queues = cpus < 1 ? 1 : cpus > 8 ? 8 : (uint32_t)cpus;
    if (serve->socket_fd < 0 && !serve->socket_path)
        serve->socket_fd = serve_activated_fd();
    if (serve->socket_fd < 0 && !serve->socket_path) {
        arguments_error(args, "--vhost-user-blk SOCKET says where to serve");
        return -1;
    }
    if (serve->socket_fd >= 0 && serve->socket_path) {
        arguments_error(args, "--vhost-user-blk and --socket-fd exclude each other");
        return -1;
    }
    if (serve->open.options.backend == SCOW_BACKEND_NULL) {
        arguments_error(args, "--backend null is for benchmarks");
        return -1;
    }
    /* A cache mode that is writethrough is a promise to the guest. */
    serve->writethrough |= serve->open.writethrough;
    serve->open.writethrough = false;
    return serve->read_only ? 0 : open_args_write(&serve->open, args);
}

int command_serve(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct serve_args serve_args = {.socket_fd = -1, .control_fd = -1, .poll_us = POLL_US_DEFAULT};
    int key;

    open_args_init(&serve_args.open);
    while ((key = arguments_next(&args, argc, argv)) > 0)
        if (take_option(&serve_args, &args, key))
            return args.exit_code;
    if (key < 0)
        return args.exit_code;
    if (args.operand_count != 1)
        return arguments_error(&args, "expecting an image file name");
    serve_args.path = args.operands[0];
    if (settle(&serve_args, &args))
        return args.exit_code;
    return serve_image(&serve_args) ? EXIT_FAILED : command_finish_output();
}
