/* SPDX-License-Identifier: MIT */
/* shardcow io: qemu-io's commands on an image. */
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/io_read.h"
#include "cli/io_report.h"
#include "cli/open_args.h"
#include "cli/units.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct argument specs[] = {
    {'c', "cmd", "COMMAND", "run COMMAND; may be repeated. Without it commands come from standard input"},
    OPEN_ARGUMENT_FORMAT,
    {'r', "read-only", NULL, "accepted: images are always opened read-only"},
    {'n', "nocache", NULL, "direct I/O: short for -t none"},
    {'m', "misalign", NULL, "use buffers that are not aligned for direct I/O"},
    OPEN_ARGUMENT_SHARE,
    OPEN_ARGUMENT_CACHE('t'),
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "io",
    .synopsis = "[OPTION]... [-c COMMAND]... FILE",
    .text = "Runs commands in qemu-io's syntax on an image. \"help\" lists them. The exit code is 1 when a\n"
            "command failed, among them a read whose data does not match its pattern.\n",
    .specs = specs,
    .examples = "  shardcow io -c 'read -P 0xaa 0 64k' disk.qcow2\n"
                "  shardcow io -c 'read -v 0 512' -c map disk.qcow2\n"
                "  echo 'aio_read 0 1M' | shardcow io disk.qcow2\n",
};

/* ---- commands that do no reads ---- */

static int run_aio_flush(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    io_read_poll(session, true);
    return IO_DONE;
}

/* On an image that is open read-only there is nothing to make durable. */
static int run_flush(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command, (void)argc, (void)argv;
    return IO_DONE;
}

static int run_length(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    char text[IO_SIZE_TEXT_BYTES];
    printf("%s\n", io_size_text(text, (double)session->disk_bytes));
    return IO_DONE;
}

static const char *truth(uint64_t bits)
{
    return bits ? "true" : "false";
}

/* Where saved VM state begins: after the guest range that the L1 table needed at least covers. */
static uint64_t vm_state_off(const struct scow_info *info)
{
    const uint64_t entry_bytes = info->incompatible & SCOW_INCOMPAT_EXTENDED_L2 ? 16 : 8;
    const uint64_t table_covers = (uint64_t)info->cluster_bytes / entry_bytes * info->cluster_bytes;
    return (info->virtual_size + table_covers - 1) / table_covers * table_covers;
}

static int run_info(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    struct scow_info info = SCOW_INFO_INIT;
    char text[IO_SIZE_TEXT_BYTES], name[4096];
    const int err = scow_get_info(session->image, &info);
    if (err < 0) {
        command_library_error(session->path, err);
        return IO_FAILED;
    }
    if (info.format == SCOW_FORMAT_RAW) {
        printf("format name: raw\ncluster size: 0 bytes\nvm state offset: 0 bytes\n");
        return IO_DONE;
    }
    printf("format name: qcow2\n");
    printf("cluster size: %s\n", io_size_text(text, info.cluster_bytes));
    printf("vm state offset: %s\n", io_size_text(text, (double)vm_state_off(&info)));
    printf("Format specific information:\n");
    printf("    compat: %s\n", info.version == 2 ? "0.10" : "1.1");
    printf("    compression type: %s\n", info.compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib");
    if (info.version > 2)
        printf("    lazy refcounts: %s\n", truth(info.compatible & SCOW_COMPAT_LAZY_REFCOUNTS));
    printf("    refcount bits: %u\n", info.refcount_bits);
    if (info.incompatible & SCOW_INCOMPAT_DATA_FILE) {
        if (info.data_file_name)
            printf("    data file: %s\n", command_quote(name, sizeof(name), info.data_file_name));
        printf("    data file raw: %s\n", truth(info.autoclear & SCOW_AUTOCLEAR_DATA_FILE_RAW));
    }
    if (info.version > 2) {
        printf("    corrupt: %s\n", truth(info.incompatible & SCOW_INCOMPAT_CORRUPT));
        printf("    extended l2: %s\n", truth(info.incompatible & SCOW_INCOMPAT_EXTENDED_L2));
    }
    return IO_DONE;
}

/* The run from off on that this image alone has allocated, or has not, whatever lies below it. */
static int allocation_run(struct io_session *session, uint64_t off, uint64_t end, bool *ret_allocated,
                          uint64_t *ret_bytes)
{
    uint64_t bytes = 0;
    bool allocated = false;
    while (off + bytes < end) {
        struct scow_extent extent = {.size = sizeof(extent)};
        const int err =
            scow_get_extent(session->image, off + bytes, end - off - bytes, SCOW_EXTENT_THIS_LAYER, &extent);
        if (err < 0 || extent.bytes == 0) {
            command_library_error(session->path, err < 0 ? err : -EIO);
            return IO_FAILED;
        }
        const bool present = extent.flags & SCOW_EXTENT_PRESENT;
        if (bytes > 0 && present != allocated)
            break;
        allocated = present;
        bytes += extent.bytes;
    }
    *ret_allocated = allocated;
    *ret_bytes = bytes;
    return IO_DONE;
}

static int run_map(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command, (void)argc, (void)argv;
    char size[IO_SIZE_TEXT_BYTES], place[IO_SIZE_TEXT_BYTES];
    for (uint64_t off = 0, bytes; off < session->disk_bytes; off += bytes) {
        bool allocated;
        if (allocation_run(session, off, session->disk_bytes, &allocated, &bytes) != IO_DONE)
            return IO_FAILED;
        printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n",
               io_size_text(size, (double)bytes), bytes, allocated ? "    allocated" : "not allocated",
               io_size_text(place, (double)off), off);
    }
    return IO_DONE;
}

static int run_alloc(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)command;
    char place[IO_SIZE_TEXT_BYTES];
    uint64_t first, count = 512, allocated_bytes = 0;
    if (!io_parse_size(argv[1], &first) || (argc > 2 && !io_parse_size(argv[2], &count)))
        return IO_FAILED;
    const uint64_t left = first < session->disk_bytes ? session->disk_bytes - first : 0;
    count = count < left ? count : left;
    for (uint64_t off = first, bytes; off < first + count; off += bytes) {
        bool allocated;
        if (allocation_run(session, off, first + count, &allocated, &bytes) != IO_DONE)
            return IO_FAILED;
        allocated_bytes += allocated ? bytes : 0;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", allocated_bytes, count,
           io_size_text(place, (double)first));
    return IO_DONE;
}

static int run_sleep(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command, (void)argc;
    uint64_t ms;
    if (units_parse_number(argv[1], &ms) < 0 || ms > 86400000) {
        printf("%s is not a valid number\n", argv[1]);
        return IO_FAILED;
    }
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000},
              NULL);
    return IO_DONE;
}

static int run_quit(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command, (void)argc, (void)argv;
    return IO_QUIT;
}

static int run_read_only(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)argc, (void)argv;
    command_error(session->path, "%s: the image is open read-only: this version does not write",
                  command->name);
    return IO_FAILED;
}

static int run_help(struct io_session *session, const struct io_command *command, int argc, char **argv);

/* ---- the table, by name ---- */

#define HELP_READ_COMMON                                                                                     \
    " -C, -- report statistics in a machine parsable format\n"                                               \
    " -P, -- use a pattern to verify read data\n"                                                            \
    " -q, -- quiet mode, do not show I/O statistics\n"                                                       \
    " -r, -- accepted for compatibility\n"                                                                   \
    " -v, -- dump buffer to standard output\n"

static const char help_read[] =
    " reads a range of bytes from the given offset\n"
    "\n"
    " Example:\n"
    " 'read -v 512 1k' - dumps 1 kilobyte read from 512 bytes into the disk\n"
    "\n" HELP_READ_COMMON " -l, -- length of the part that is verified (only with -P)\n"
    " -s, -- start of that part within the data read (only with -P)\n"
    " -p, -- accepted for compatibility\n"
    " -b, -- VM state is not read: refused\n";

static const char help_readv[] =
    " reads a range of bytes from the given offset into one buffer per length\n"
    "\n"
    " Example:\n"
    " 'readv -v 512 1k 1k' - dumps 2 kilobytes read from 512 bytes into the disk\n"
    "\n" HELP_READ_COMMON;

static const char help_aio_read[] =
    " starts to read a range of bytes and goes on to the next command\n"
    "\n"
    " What the read found is printed when it is done: before a later command, or at aio_flush or the end.\n"
    " The command succeeds once the read is under way, whatever the read finds.\n"
    "\n" HELP_READ_COMMON " -i, -- invalid requests are not simulated: refused\n";

static const struct io_command commands[] = {
    {"aio_flush", NULL, run_aio_flush, 0, 0, NULL, "completes all outstanding aio requests", NULL},
    {"aio_read", NULL, io_aio_read, 2, -1, "[-Ciqrv] [-P pattern] off len [len..]",
     "asynchronously reads a number of bytes", help_aio_read},
    {"aio_write", NULL, run_read_only, 0, -1, "...", "refused: the image is open read-only", NULL},
    {"alloc", NULL, run_alloc, 1, 2, "offset [count]", "checks if offset is allocated in the file", NULL},
    {"discard", "d", run_read_only, 0, -1, "...", "refused: the image is open read-only", NULL},
    {"flush", "f", run_flush, 0, 0, NULL, "flush all in-core file state to disk", NULL},
    {"help", "?", run_help, 0, 1, "[command]", "help for one or all commands", NULL},
    {"info", "i", run_info, 0, 0, NULL, "prints information about the current file", NULL},
    {"length", "l", run_length, 0, 0, NULL, "gets the length of the current file", NULL},
    {"map", NULL, run_map, 0, 0, "", "prints the allocated areas of a file", NULL},
    {"quit", "q", run_quit, 0, -1, NULL, "exit the program", NULL},
    {"read", "r", io_read, 2, -1, "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
     "reads a number of bytes at a specified offset", help_read},
    {"readv", NULL, io_readv, 2, -1, "[-Cqrv] [-P pattern] off len [len..]",
     "reads a number of bytes at a specified offset", help_readv},
    {"sleep", NULL, run_sleep, 1, 1, "milliseconds", "waits for the given time", NULL},
    {"truncate", "t", run_read_only, 0, -1, "...", "refused: the image is open read-only", NULL},
    {"write", "w", run_read_only, 0, -1, "...", "refused: the image is open read-only", NULL},
    {"writev", NULL, run_read_only, 0, -1, "...", "refused: the image is open read-only", NULL},
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static const struct io_command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0 ||
            (commands[i].alias && strcmp(name, commands[i].alias) == 0))
            return &commands[i];
    }
    return NULL;
}

static int run_help(struct io_session *session, const struct io_command *command, int argc, char **argv)
{
    (void)session, (void)command;
    if (argc < 2) {
        for (size_t i = 0; i < COMMAND_COUNT; i++)
            io_print_usage(&commands[i]);
        printf("\nUse 'help commandname' for extended help.\n");
        return IO_DONE;
    }
    const struct io_command *const topic = find_command(argv[1]);
    if (!topic) {
        char name[256];
        printf("command %s not found\n", command_quote(name, sizeof(name), argv[1]));
        return IO_FAILED;
    }
    io_print_usage(topic);
    if (topic->help)
        printf("\n%s\n", topic->help);
    return IO_DONE;
}

/* ---- command lines ---- */

static int run_words(struct io_session *session, int argc, char **argv)
{
    const struct io_command *const c = find_command(argv[0]);
    char name[256];
    if (!c) {
        fflush(stdout);
        fprintf(stderr, "command \"%s\" not found\n", command_quote(name, sizeof(name), argv[0]));
        return IO_FAILED;
    }
    const int count = argc - 1;
    if (count >= c->operands_min && (c->operands_max < 0 || count <= c->operands_max))
        return c->run(session, c, argc, argv);

    fflush(stdout);
    fprintf(stderr, "bad argument count %d to %s, expected ", count, argv[0]);
    if (c->operands_max < 0)
        fprintf(stderr, "at least %d arguments\n", c->operands_min);
    else if (c->operands_min == c->operands_max)
        fprintf(stderr, "%d arguments\n", c->operands_min);
    else
        fprintf(stderr, "between %d and %d arguments\n", c->operands_min, c->operands_max);
    return IO_FAILED;
}

/* Runs one line, which is cut up. Empty lines and comments do nothing. */
static int run_line(struct io_session *session, char *line)
{
    int argc = 0;
    /* A word needs a byte and a blank. */
    char **const argv = calloc(strlen(line) / 2 + 2, sizeof(*argv));
    if (!argv) {
        command_error(session->path, "out of memory");
        return IO_FAILED;
    }
    char *rest = NULL;
    for (char *word = strtok_r(line, " \t\r\n", &rest); word; word = strtok_r(NULL, " \t\r\n", &rest))
        argv[argc++] = word;
    io_read_poll(session, false);
    const int ret = argc > 0 && argv[0][0] != '#' ? run_words(session, argc, argv) : IO_DONE;
    fflush(stdout);
    free(argv);
    return ret;
}

static bool run_given(struct io_session *session, char **lines, int count)
{
    bool failed = false;
    for (int i = 0; i < count; i++) {
        const int ret = run_line(session, lines[i]);
        failed |= ret == IO_FAILED;
        if (ret == IO_QUIT)
            break;
    }
    return !failed;
}

static bool run_input(struct io_session *session)
{
    const bool prompt = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t line_bytes = 0;
    bool failed = false;
    for (;;) {
        if (prompt) {
            printf("shardcow> ");
            fflush(stdout);
        }
        if (getline(&line, &line_bytes, stdin) < 0)
            break;
        const int ret = run_line(session, line);
        failed |= ret == IO_FAILED;
        if (ret == IO_QUIT)
            break;
    }
    if (ferror(stdin)) {
        command_error("standard input", "%s", strerror(errno));
        failed = true;
    }
    free(line);
    return !failed;
}

static bool run_session(const char *path, const struct open_args *open, bool misalign, char **lines,
                        int count)
{
    struct io_session session = {.path = path, .misalign = misalign};
    struct scow_open_options options = open->options;
    options.open_child = scow_open_child_any;
    if (open_image(path, &options, &session.image) < 0)
        return false;
    session.disk_bytes = scow_size(session.image);
    const bool ok = count > 0 ? run_given(&session, lines, count) : run_input(&session);
    io_read_poll(&session, true);
    scow_queue_destroy(session.queue);
    scow_close(session.image);
    return ok;
}

int command_io(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct open_args open;
    bool misalign = false;
    int count = 0, key;
    char **const lines = calloc((size_t)argc + 1, sizeof(*lines));
    if (!lines) {
        command_error("io", "out of memory");
        return EXIT_FAILED;
    }
    open_args_init(&open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        if (key == 'c')
            lines[count++] = (char *)args.value;
        else if (key == 'n')
            open.options.io_mode = SCOW_IO_DIRECT;
        else if (key == 'm')
            misalign = true;
        else if (key != 'r' && open_args_take(&open, &args, key, 't') < 0)
            break;
    }
    int code = args.exit_code;
    if (key == 0 && args.operand_count != 1)
        code = arguments_error(&args, "expects one file, not %d", args.operand_count);
    else if (key == 0)
        code = run_session(args.operands[0], &open, misalign, lines, count) ? EXIT_OK : EXIT_FAILED;
    free(lines);
    if (code == EXIT_OK && command_finish_output() != 0)
        code = EXIT_FAILED;
    return code;
}
