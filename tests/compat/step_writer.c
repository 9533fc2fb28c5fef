/* SPDX-License-Identifier: MIT */
/*
 * Changes an image step by step, one step per line of the standard input, and says after each what came of
 * it. Uses the public interface only. Numbers are bytes.
 *
 *   write OFF BYTES PATTERN   zero OFF BYTES   unmap OFF BYTES   discard OFF BYTES   read OFF BYTES PATTERN
 *   flush   quiesce   resize BYTES
 *   settle    waits until no freed cluster waits for anything
 *   stat      the file's size and allocated bytes, and the image's counters
 *   repeat N  the lines up to "end", so often, without a word unless one fails
 *
 * The answer is "ok", or "error" with the errno's name and the text.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <shardcow.h>

enum { LINE_BYTES = 200, BODY_LINES = 32, PIECE_BYTES = 1 << 20 };

static struct scow_image *image;
static const char *path;
static uint8_t buf[PIECE_BYTES];

static int in_pieces(const char *verb, uint64_t off, uint64_t bytes, int pattern)
{
    int ret = 0;
    for (uint64_t part; bytes && ret == 0; off += part, bytes -= part) {
        part = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        if (strcmp(verb, "write") == 0) {
            memset(buf, pattern, part);
            ret = scow_pwrite(image, buf, part, off);
            continue;
        }
        ret = scow_pread(image, buf, part, off);
        for (uint64_t i = 0; i < part && ret == 0; i++)
            if (buf[i] != (uint8_t)pattern) {
                printf("error CONTENT 0x%02x at %" PRIu64 "\n", buf[i], off + i);
                return 1;
            }
    }
    return ret;
}

static int settle(void)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;
    for (int i = 0; i < 2000; i++) {
        int ret = scow_counters(image, &c);
        if (ret || c.freed_pending == 0)
            return ret;
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    printf("error PENDING %" PRIu64 " clusters\n", c.freed_pending);
    return 1;
}

static int print_stat(void)
{
    struct scow_counters c = SCOW_COUNTERS_INIT;
    struct stat st;
    if (stat(path, &st))
        return -errno;
    int ret = scow_counters(image, &c);
    if (ret)
        return ret;
    printf("stat size=%" PRIu64 " allocated=%" PRIu64 " pending=%" PRIu64 " punched=%" PRIu64
           " skipped=%" PRIu64 " leased=%" PRIu64 " commits=%" PRIu64 "\n",
           (uint64_t)st.st_size, (uint64_t)st.st_blocks * 512, c.freed_pending, c.freed_punched,
           c.freed_skipped, c.leased, c.commits);
    return 1;
}

/* 0 or a negative errno; 1: it has said everything itself. */
static int step(const char *line)
{
    char verb[16] = "";
    uint64_t a = 0, b = 0;
    int pattern = 0;
    sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %i", verb, &a, &b, &pattern);
    if (strcmp(verb, "write") == 0 || strcmp(verb, "read") == 0)
        return in_pieces(verb, a, b, pattern);
    if (strcmp(verb, "zero") == 0 || strcmp(verb, "unmap") == 0)
        return scow_pwrite_zeroes(image, b, a, verb[0] == 'u' ? SCOW_REQ_MAY_UNMAP : 0);
    if (strcmp(verb, "discard") == 0)
        return scow_pdiscard(image, b, a);
    if (strcmp(verb, "flush") == 0)
        return scow_flush(image);
    if (strcmp(verb, "quiesce") == 0)
        return scow_quiesce(image);
    if (strcmp(verb, "resize") == 0)
        return scow_resize(image, a, SCOW_RESIZE_SHRINK);
    if (strcmp(verb, "settle") == 0)
        return settle();
    if (strcmp(verb, "stat") == 0)
        return print_stat();
    return -EINVAL;
}

static void say(int ret)
{
    if (ret == 0)
        printf("ok\n");
    else if (ret < 0)
        printf("error %s %s\n", strerrorname_np(-ret), scow_error());
    fflush(stdout);
}

static void repeat(unsigned long count)
{
    static char body[BODY_LINES][LINE_BYTES];
    int lines = 0, ret = 0;
    while (lines < BODY_LINES && fgets(body[lines], LINE_BYTES, stdin) && strncmp(body[lines], "end", 3) != 0)
        lines++;
    for (unsigned long i = 0; i < count && ret == 0; i++)
        for (int k = 0; k < lines && ret == 0; k++)
            ret = step(body[k]);
    say(ret);
}

static int usage(void)
{
    fprintf(stderr, "usage: step_writer [--no-punch] [--shards N] [--preallocation-bytes N] IMAGE\n");
    return 2;
}

static bool get_options(int argc, char **argv, struct scow_open_options *o)
{
    static const struct option options[] = {
        {"no-punch", no_argument, NULL, 'n'},
        {"shards", required_argument, NULL, 'h'},
        {"preallocation-bytes", required_argument, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'n')
            o->flags |= SCOW_OPEN_NO_PUNCH;
        else if (option == 'h')
            o->shards = (uint32_t)strtoul(optarg, NULL, 0);
        else if (option == 'p')
            o->preallocation_bytes = strtoull(optarg, NULL, 0);
        else
            return false;
    }
    return argc - optind == 1;
}

int main(int argc, char **argv)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    char line[LINE_BYTES];
    o.flags = SCOW_OPEN_WRITE;
    o.open_child = scow_open_child_any;
    if (!get_options(argc, argv, &o))
        return usage();
    path = argv[optind];
    int ret = scow_open(path, &o, &image);
    if (ret) {
        fprintf(stderr, "%s: %s: %s\n", path, strerror(-ret), scow_error());
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        if (strncmp(line, "repeat ", 7) == 0)
            repeat(strtoul(line + 7, NULL, 0));
        else
            say(step(line));
    }
    ret = scow_close(image);
    if (ret)
        fprintf(stderr, "%s: closing: %s: %s\n", path, strerror(-ret), scow_error());
    return ret ? 1 : 0;
}
