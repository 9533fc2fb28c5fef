/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/info_node.h"
#include "cli/json.h"
#include "cli/open_args.h"

/* The library's own limit for chains. */
#define CHAIN_DEPTH_MAX 256

enum { ARG_BACKING_CHAIN = ARG_LONG, ARG_STATS };

static const struct argument specs[] = {
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_SHARE,
    {ARG_OUTPUT, "output", "human|json", "form of the result"},
    {ARG_BACKING_CHAIN, "backing-chain", NULL, "the backing files too, each opened by its name"},
    {ARG_STATS, "stats", NULL, "count clusters by kind, metadata share, fragmentation"},
    {ARG_IMAGE_OPTS, "image-opts", NULL, NULL},
    {0},
};

static const struct usage usage = {
    .command = "info",
    .synopsis = "[OPTION]... FILE",
    .text = "Show an image's size, format, features, snapshots and bitmaps. Opens no other file unless\n"
            "--backing-chain is given. JSON has qemu-img's keys; --stats adds its own under \"stats\".\n",
    .specs = specs,
    .examples = "  shardcow info disk.qcow2\n"
                "  shardcow info --backing-chain --output=json overlay.qcow2\n"
                "  shardcow info --stats disk.qcow2\n"
                "  shardcow info -f raw disk.img\n",
};

struct chain {
    struct info_node *nodes;
    uint32_t count;
};

static void chain_close(struct chain *chain)
{
    for (uint32_t i = 0; i < chain->count; i++)
        info_node_close(&chain->nodes[i]);
    free(chain->nodes);
}

static int chain_open_next(struct chain *chain, const char *path, const struct scow_open_options *options)
{
    struct info_node *nodes = realloc(chain->nodes, (chain->count + 1) * sizeof *nodes);
    int err;

    if (!nodes) {
        command_error(path, "out of memory");
        return -ENOMEM;
    }
    chain->nodes = nodes;
    err = info_node_open(&nodes[chain->count], path, options);
    if (!err)
        chain->count++;
    return err;
}

/* The format that the last image records for its backing file. */
static int backing_format(const struct info_node *node, enum scow_format *ret_format)
{
    const char *const name = node->info.backing_format;

    if (!name) {
        command_error(node->path, "it does not record the format of its backing file \"%s\"",
                      node->info.backing_name);
        open_hint_backing_format(node->path, node->info.backing_name);
        return -EINVAL;
    }
    if (!strcmp(name, "qcow2")) {
        *ret_format = SCOW_FORMAT_QCOW2;
    } else if (!strcmp(name, "raw")) {
        *ret_format = SCOW_FORMAT_RAW;
    } else {
        command_error(node->path, "its backing file \"%s\" has format \"%s\"; qcow2 and raw are supported",
                      node->info.backing_name, name);
        return -ENOTSUP;
    }
    return 0;
}

static int refuse_loop(const struct chain *chain, const char *path)
{
    struct stat next, seen;

    if (chain->count >= CHAIN_DEPTH_MAX) {
        command_error(path, "the chain of backing files is longer than %d", CHAIN_DEPTH_MAX);
        return -ELOOP;
    }
    if (stat(path, &next))
        return 0; /* opening it tells why */
    for (uint32_t i = 0; i < chain->count; i++)
        if (!stat(chain->nodes[i].path, &seen) && seen.st_dev == next.st_dev && seen.st_ino == next.st_ino) {
            command_error(path, "backing file creates an infinite loop");
            return -ELOOP;
        }
    return 0;
}

static int chain_open(struct chain *chain, const char *path, struct scow_open_options options,
                      bool with_backing)
{
    int err = chain_open_next(chain, path, &options);

    while (!err && with_backing && chain->nodes[chain->count - 1].info.backing_name) {
        const struct info_node *node = &chain->nodes[chain->count - 1];
        char next[PATH_MAX];
        memcpy(next, node->backing_path, strlen(node->backing_path) + 1);
        err = backing_format(node, &options.format);
        if (!err)
            err = refuse_loop(chain, next);
        if (!err)
            err = chain_open_next(chain, next, &options);
    }
    return err;
}

static void chain_print(const struct chain *chain, bool json, bool with_backing)
{
    json_t *list;

    if (json && !with_backing) {
        json_print(stdout, info_node_json(&chain->nodes[0]));
        return;
    }
    if (json) {
        list = json_array();
        for (uint32_t i = 0; i < chain->count; i++)
            json_append(list, info_node_json(&chain->nodes[i]));
        json_print(stdout, list);
        return;
    }
    for (uint32_t i = 0; i < chain->count; i++) {
        if (i)
            putchar('\n');
        info_node_print(&chain->nodes[i]);
    }
}

int command_info(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct open_args open;
    struct chain chain = {0};
    bool with_backing = false, with_stats = false;
    int json = 0, key, err;

    open_args_init(&open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&open, &args, key, 0);
        if (taken < 0)
            return args.exit_code;
        if (taken)
            continue;
        if (key == ARG_OUTPUT && arguments_choice(&args, "--output", "human|json", &json))
            return args.exit_code;
        with_backing |= key == ARG_BACKING_CHAIN;
        with_stats |= key == ARG_STATS;
    }
    if (key < 0)
        return args.exit_code;
    if (args.operand_count != 1)
        return arguments_error(&args, "expecting one image file name");
    open.options.flags |= SCOW_OPEN_NO_IO;
    err = chain_open(&chain, args.operands[0], open.options, with_backing);
    for (uint32_t i = 0; !err && with_stats && i < chain.count; i++)
        err = info_node_count(&chain.nodes[i]);
    if (!err)
        chain_print(&chain, json, with_backing);
    chain_close(&chain);
    return err ? EXIT_FAILED : command_finish_output();
}
