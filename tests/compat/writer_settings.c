/* SPDX-License-Identifier: MIT */
#include "tests/compat/writer_settings.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct settings settings = {.open = SCOW_OPEN_OPTIONS_INIT, .threads = 4, .phases = 2, .seconds = 0.7};

int settings_usage(void)
{
    fprintf(stderr,
            "usage: random_writer [--format qcow2|raw] [--backend auto|io_uring|threads] [--buffered]\n"
            "  [--cache-bytes N] [--slice-bytes N] [--shards N] [--threads N] [--seconds S] [--ops N]\n"
            "  [--phases N] [--pause-command COMMAND] [--detect-zeroes off|on|unmap] [--writethrough]\n"
            "  [--no-punch] [--full-is-fine] [--seed N] IMAGE SHADOW.raw\n");
    return 2;
}

static enum scow_detect_zeroes detect_zeroes(const char *value)
{
    return strcmp(value, "unmap") == 0 ? SCOW_DETECT_ZEROES_UNMAP
           : strcmp(value, "on") == 0  ? SCOW_DETECT_ZEROES_ON
                                       : SCOW_DETECT_ZEROES_OFF;
}

static int set_open_option(int option, const char *value)
{
    switch (option) {
    case 'f':
        settings.open.format = strcmp(value, "raw") == 0 ? SCOW_FORMAT_RAW : SCOW_FORMAT_QCOW2;
        return 0;
    case 'b':
        settings.open.backend = strcmp(value, "io_uring") == 0  ? SCOW_BACKEND_IO_URING
                                : strcmp(value, "threads") == 0 ? SCOW_BACKEND_THREADS
                                                                : SCOW_BACKEND_AUTO;
        return 0;
    case 'u':
        settings.open.io_mode = SCOW_IO_BUFFERED;
        return 0;
    case 'c':
        settings.open.cache_bytes = strtoull(value, NULL, 0);
        return 0;
    case 'l':
        settings.open.slice_bytes = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 'h':
        settings.open.shards = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 'z':
        settings.open.detect_zeroes = detect_zeroes(value);
        return 0;
    case 'w':
        settings.open.flags |= SCOW_OPEN_WRITETHROUGH;
        return 0;
    case 'n':
        settings.open.flags |= SCOW_OPEN_NO_PUNCH;
        return 0;
    default:
        return -1;
    }
}

static int set_option(int option, const char *value)
{
    switch (option) {
    case 't':
        settings.threads = (uint32_t)strtoul(value, NULL, 0);
        return settings.threads <= WRITER_THREADS_MAX ? 0 : -1;
    case 's':
        settings.seconds = strtod(value, NULL);
        return 0;
    case 'o':
        settings.ops_max = strtoull(value, NULL, 0);
        return 0;
    case 'p':
        settings.phases = (uint32_t)strtoul(value, NULL, 0);
        return 0;
    case 'P':
        settings.pause_command = value;
        return 0;
    case 'F':
        settings.full_is_fine = true;
        return 0;
    case 'r':
        settings.seed = strtoull(value, NULL, 0);
        return 0;
    default:
        return set_open_option(option, value);
    }
}

bool settings_from(int argc, char **argv)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {"backend", required_argument, NULL, 'b'},
        {"buffered", no_argument, NULL, 'u'},
        {"cache-bytes", required_argument, NULL, 'c'},
        {"slice-bytes", required_argument, NULL, 'l'},
        {"shards", required_argument, NULL, 'h'},
        {"threads", required_argument, NULL, 't'},
        {"seconds", required_argument, NULL, 's'},
        {"ops", required_argument, NULL, 'o'},
        {"phases", required_argument, NULL, 'p'},
        {"pause-command", required_argument, NULL, 'P'},
        {"detect-zeroes", required_argument, NULL, 'z'},
        {"writethrough", no_argument, NULL, 'w'},
        {"no-punch", no_argument, NULL, 'n'},
        {"full-is-fine", no_argument, NULL, 'F'},
        {"seed", required_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        if (set_option(option, optarg))
            return false;
    if (argc - optind != 2)
        return false;
    settings.image_path = argv[optind];
    settings.shadow_path = argv[optind + 1];
    settings.open.open_child = scow_open_child_any;
    settings.open.flags |= SCOW_OPEN_WRITE;
    return true;
}
