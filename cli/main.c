/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "shardcow.h"
#include "cli/command.h"

static const struct command commands[] = {
    {"create", "make a new image", command_create},
    {"info", "facts about an image, its snapshots and its chain", command_info},
    {"map", "where each part of the disk lies, as text, JSON or a picture", command_map},
    {"check", "check an image's metadata", command_check},
    {"dump", "decoded metadata: header, L1, L2, refcounts and the rest", command_dump},
    {"compare", "compare what two images contain", command_compare},
    {"convert", "copy images' content into a qcow2 image, a raw file or a device", command_convert},
    {"resize", "change the size of the disk in an image", command_resize},
    {"serve", "give an image to a hypervisor as a disk", command_serve},
    {"stats", "what such a server has done since its start", command_stats},
    {"io", "single requests in qemu-io's syntax", command_io},
    {"bench", "measure requests per second and latency", command_bench},
};

#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_usage(FILE *out)
{
    fprintf(out, "Usage: shardcow COMMAND [OPTION]... FILE...\n"
                 "Read and write qcow2 disk images, on many threads at once.\n\nCommands:\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-10s%s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nOptions:\n"
                 "  -h, --help     this text\n"
                 "  -V, --version  the version\n"
                 "\n'shardcow help COMMAND' or 'shardcow COMMAND --help' explains a command.\n"
                 "\nExamples:\n"
                 "  shardcow info disk.qcow2\n"
                 "  shardcow check -p disk.qcow2\n"
                 "  shardcow convert -p -O raw disk.qcow2 disk.raw\n");
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (!strcmp(commands[i].name, name))
            return &commands[i];
    command_error(name, "there is no such command");
    command_hint("'shardcow help' lists the commands");
    return NULL;
}

static int run_help(const char *name)
{
    char help[] = "--help";
    char *argv[] = {NULL, help, NULL};
    const struct command *command = find_command(name);

    if (!command)
        return EXIT_FAILED;
    argv[0] = (char *)command->name;
    return command->run(2, argv);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;

    if (!name) {
        print_usage(stderr);
        return EXIT_FAILED;
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        printf("shardcow %s\n", scow_version());
        return command_finish_output();
    }
    if (!strcmp(name, "help") && argc > 2)
        return run_help(argv[2]);
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
        print_usage(stdout);
        return command_finish_output();
    }
    const struct command *command = find_command(name);
    return command ? command->run(argc - 1, argv + 1) : EXIT_FAILED;
}
