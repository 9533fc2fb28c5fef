/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shardcow.h"
#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/dump.h"
#include "cli/open_args.h"
#include "cli/units.h"

enum { ARG_L1_INDEX = ARG_LONG, ARG_SNAPSHOT, ARG_RANGE };

static const struct argument specs[] = {
    OPEN_ARGUMENT_FORMAT,
    OPEN_ARGUMENT_SHARE,
    {ARG_OUTPUT, "output", "human|json", "form of the result"},
    {ARG_L1_INDEX, "l1-index", "N", "with l2: only the table of this L1 entry"},
    {ARG_SNAPSHOT, "snapshot", "N", "with l1 and l2: of the N-th snapshot, from 1; default: the active disk"},
    {ARG_RANGE, "range", "A-B", "only entries A to B of each table; of refcounts: host clusters A to B"},
    {ARG_IMAGE_OPTS, "image-opts", NULL, NULL},
    {0},
};

static const struct usage usage = {
    .command = "dump",
    .synopsis = "[OPTION]... [SECTION] FILE",
    .text =
        "Show an image's metadata, decoded and as it is on disk. SECTION is one of\n"
        "  header       the header's fields (the default)\n"
        "  extensions   header extensions\n"
        "  features     the feature name table\n"
        "  l1           the L1 table\n"
        "  l2           the L2 tables: type, host offset and COPIED of each cluster\n"
        "  reftable     the refcount table\n"
        "  refcounts    the refcounts, equal neighbours in one line\n"
        "  snapshots    the snapshot table\n"
        "  bitmaps      the bitmap directory and the bitmaps' tables\n"
        "  all          all of them\n"
        "Empty entries are left out; neighbours that continue each other share a line. JSON has one item per\n"
        "entry. Opens no file but the image.\n",
    .specs = specs,
    .examples = "  shardcow dump disk.qcow2\n"
                "  shardcow dump l2 --l1-index 0 --range 0-63 disk.qcow2\n"
                "  shardcow dump l1 --snapshot 1 disk.qcow2\n"
                "  shardcow dump all --output=json disk.qcow2\n",
};

static const struct section {
    const char *name;
    void (*print)(struct dump *dump);
} sections[] = {
    {"header", dump_header},
    {"extensions", dump_extensions},
    {"features", dump_features},
    {"l1", dump_l1},
    {"l2", dump_l2},
    {"reftable", dump_reftable},
    {"refcounts", dump_refcounts},
    {"snapshots", dump_snapshots},
    {"bitmaps", dump_bitmaps},
};

#define SECTION_COUNT (sizeof sections / sizeof sections[0])

uint32_t dump_l1_count(const struct dump *dump)
{
    struct scow_snapshot snapshot = {.size = sizeof snapshot};

    if (!dump->snapshot)
        return dump->info.l1_count;
    return scow_get_snapshot(dump->image, dump->snapshot - 1, &snapshot) ? 0 : snapshot.l1_count;
}

uint32_t dump_l2_values(const struct dump *dump)
{
    return dump->info.incompatible & SCOW_INCOMPAT_EXTENDED_L2 ? 2 : 1;
}

uint64_t dump_l2_count(const struct dump *dump)
{
    return dump->info.cluster_bytes / 8 / dump_l2_values(dump);
}

void dump_walk(struct dump *dump, enum scow_table which, uint64_t table, uint64_t count, uint32_t values_each,
               const char *what, dump_visit_fn *visit, void *ctx)
{
    uint64_t values[DUMP_BATCH * 2];
    const uint64_t end = dump->last < count ? dump->last + 1 : count;

    for (uint64_t first = dump->first; first < end; first += DUMP_BATCH) {
        const uint32_t batch = end - first < DUMP_BATCH ? (uint32_t)(end - first) : DUMP_BATCH;
        const int err = scow_read_table(dump->image, which, table, first, batch, values);
        if (err) {
            command_error(dump->path, "%s: entries from %" PRIu64 " on: %s", what, first,
                          *scow_error() ? scow_error() : strerror(-err));
            dump->failed = true;
            return;
        }
        for (uint32_t i = 0; i < batch; i++)
            if (!visit(ctx, first + i, values + (size_t)i * values_each))
                return;
    }
}

static void print_section(struct dump *dump, const struct section *section)
{
    if (!dump->json) {
        printf("%s:\n", section->name);
        section->print(dump);
        return;
    }
    printf("\"%s\": ", section->name);
    if (section->print == dump_header) {
        json_print(stdout, dump_header_json(dump));
        return;
    }
    json_stream_begin(&dump->items, stdout);
    section->print(dump);
    json_stream_end(&dump->items);
}

static int print_sections(struct dump *dump, const char *wanted)
{
    bool found = false;

    for (size_t i = 0; i < SECTION_COUNT; i++) {
        if (strcmp(wanted, "all") != 0 && strcmp(wanted, sections[i].name) != 0)
            continue;
        if (dump->json)
            fputs(found ? "," : "{", stdout);
        else if (found)
            putchar('\n');
        print_section(dump, &sections[i]);
        found = true;
    }
    if (dump->json)
        puts("}");
    if (dump->failed)
        return EXIT_FAILED;
    return command_finish_output();
}

static bool is_section(const char *name)
{
    bool found = !strcmp(name, "all");

    for (size_t i = 0; i < SECTION_COUNT; i++)
        found |= !strcmp(name, sections[i].name);
    return found;
}

/* "A-B", "A-" or "A". */
static int parse_range(struct dump *dump, struct arguments *args)
{
    char text[64];
    char *dash;

    snprintf(text, sizeof text, "%s", args->value);
    dash = strchr(text, '-');
    if (dash)
        *dash++ = '\0';
    if (units_parse_number(text, &dump->first))
        goto bad;
    if (!dash)
        dump->last = dump->first;
    else if (!*dash)
        dump->last = UINT64_MAX - 1;
    else if (units_parse_number(dash, &dump->last) || dump->last < dump->first || dump->last == UINT64_MAX)
        goto bad;
    return 0;
bad:
    arguments_error(args, "--range: '%s' is not of the form 0-63", args->value);
    return -1;
}

static int take_option(struct dump *dump, struct arguments *args, int key, int *json)
{
    uint64_t number;

    switch (key) {
    case ARG_OUTPUT:
        return arguments_choice(args, "--output", "human|json", json);
    case ARG_L1_INDEX:
        return arguments_number(args, "--l1-index", 0, UINT32_MAX, &dump->l1_index);
    case ARG_SNAPSHOT:
        if (arguments_number(args, "--snapshot", 1, UINT32_MAX, &number))
            return -1;
        dump->snapshot = (uint32_t)number;
        return 0;
    default:
        return parse_range(dump, args);
    }
}

static int run_dump(struct dump *dump, const struct scow_open_options *options, const char *section)
{
    int code = EXIT_FAILED, err;

    if (open_image(dump->path, options, &dump->image))
        return EXIT_FAILED;
    err = scow_get_info(dump->image, &dump->info);
    if (err)
        command_library_error(dump->path, err);
    else if (dump->info.format != SCOW_FORMAT_QCOW2)
        command_error(dump->path, "a raw image has no metadata to show");
    else if (dump->snapshot > dump->info.snapshot_count)
        command_error(dump->path, "there is no snapshot %" PRIu32 ": it has %" PRIu32, dump->snapshot,
                      dump->info.snapshot_count);
    else
        code = print_sections(dump, section);
    scow_close(dump->image);
    return code;
}

int command_dump(int argc, char **argv)
{
    struct arguments args = {.usage = &usage};
    struct dump dump = {.info = SCOW_INFO_INIT, .l1_index = UINT64_MAX, .last = UINT64_MAX - 1};
    struct open_args open;
    int json = 0, key;

    open_args_init(&open);
    while ((key = arguments_next(&args, argc, argv)) > 0) {
        const int taken = open_args_take(&open, &args, key, 0);
        if (taken < 0 || (!taken && take_option(&dump, &args, key, &json)))
            return args.exit_code;
    }
    if (key < 0)
        return args.exit_code;
    if (args.operand_count < 1 || args.operand_count > 2)
        return arguments_error(&args, "expecting one image file name, a section before it or none");
    const char *const section = args.operand_count == 2 ? args.operands[0] : "header";
    if (!is_section(section))
        return arguments_error(&args, "there is no section '%s'", section);
    dump.path = args.operands[args.operand_count - 1];
    dump.json = json;
    open.options.flags |= SCOW_OPEN_NO_IO;
    return run_dump(&dump, &open.options, section);
}
