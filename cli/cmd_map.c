/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/map_picture.h"
#include "cli/map_walk.h"
#include "cli/open_args.h"

static const struct argument specs[] = {
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_SHARE,
    {ARG_OUTPUT, "output", "human|json|svg", "form of the result"},
    {'s', "start-offset", "SIZE", "first byte of the disk to show; default 0"},
    {'l', "max-length", "SIZE", "bytes to show; default: to the end"},
    OPEN_ARGUMENTS_ENGINE,
    {0},
};

static const struct usage usage = {
    .command = "map",
    .synopsis = "[OPTION]... FILE",
    .text =
        "Show which layer of an image's chain holds each part of the disk, and where. JSON is\n"
        "'qemu-img map --output=json'; the table lists what has data; svg is a picture of it: guest offsets\n"
        "across, host offsets up, so that what is contiguous makes a line and what is fragmented a cloud.\n"
        "Backing files and data files that the image names are opened.\n",
    .specs = specs,
    .examples = "  shardcow map disk.qcow2\n"
                "  shardcow map --output=json -s 1G -l 64M disk.qcow2\n"
                "  shardcow map --output=svg disk.qcow2 > disk.svg\n",
};

enum map_form { MAP_HUMAN, MAP_JSON, MAP_SVG };

struct map_args {
    struct open_args open;
    uint64_t start, bytes_max;
    int form;
};

static int print_row(void *ctx, const struct scow_extent *e)
{
    char quoted[4 * 1024 + 1];

    (void)ctx;
    if (!(e->flags & SCOW_EXTENT_DATA) || (e->flags & SCOW_EXTENT_ZERO))
        return 0;
    printf("%#-16" PRIx64 "%#-16" PRIx64, e->off, e->bytes);
    if (e->flags & SCOW_EXTENT_HOST_OFF)
        printf("%#-16" PRIx64, e->host_off);
    else
        printf("%-16s", e->flags & SCOW_EXTENT_COMPRESSED ? "compressed" : "unknown");
    printf("%s\n", e->host_path ? command_quote(quoted, sizeof quoted, e->host_path) : "");
    return 0;
}

static const char *truth(uint32_t flags, uint32_t bit)
{
    return flags & bit ? "true" : "false";
}

static int print_item(void *ctx, const struct scow_extent *e)
{
    uint64_t *const count = ctx;

    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %" PRIu32
           ", \"present\": %s, \"zero\": %s, \"data\": %s, \"compressed\": %s",
           (*count)++ ? ",\n" : "", e->off, e->bytes, e->depth, truth(e->flags, SCOW_EXTENT_PRESENT),
           truth(e->flags, SCOW_EXTENT_ZERO), truth(e->flags, SCOW_EXTENT_DATA),
           truth(e->flags, SCOW_EXTENT_COMPRESSED));
    if (e->flags & SCOW_EXTENT_HOST_OFF)
        printf(", \"offset\": %" PRIu64, e->host_off);
    putchar('}');
    return 0;
}

static int print_map(struct scow_image *image, const char *path, const struct map_args *map, uint64_t end)
{
    uint64_t count = 0;
    int err;

    if (map->form == MAP_SVG)
        return map_picture(stdout, image, path, map->start, end);
    if (map->form == MAP_HUMAN) {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
        return map_walk(image, map->start, end, true, print_row, NULL);
    }
    putchar('[');
    err = map_walk(image, map->start, end, false, print_item, &count);
    if (!err)
        puts("]");
    return err;
}

static int run_map(const char *path, const struct map_args *map)
{
    struct scow_image *image;
    uint64_t end;
    int err;

    if (open_image(path, &map->open.options, &image))
        return EXIT_FAILED;
    end = scow_size(image);
    if (map->start < end && map->bytes_max < end - map->start)
        end = map->start + map->bytes_max;
    err = print_map(image, path, map, end);
    scow_close(image);
    return err ? EXIT_FAILED : command_finish_output();
}

static int take_option(struct map_args *map, struct arguments *args, int key)
{
    switch (key) {
    case ARG_OUTPUT:
        return arguments_choice(args, "--output", "human|json|svg", &map->form);
    case 's':
        return arguments_size(args, "--start-offset", 0, INT64_MAX, &map->start);
    default:
        return arguments_size(args, "--max-length", 0, INT64_MAX, &map->bytes_max);
    }
}

int command_map(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct map_args map = {.bytes_max = UINT64_MAX};
    int key;

    open_args_init(&map.open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&map.open, &args, key, 0);
        if (taken < 0 || (!taken && take_option(&map, &args, key)))
            return args.exit_code;
    }
    if (key < 0)
        return args.exit_code;
    if (args.operand_count != 1)
        return arguments_error(&args, "expecting one image file name");
    map.open.options.open_child = scow_open_child_any;
    return run_map(args.operands[0], &map);
}
