/* SPDX-License-Identifier: MIT */
#include "cli/create_options.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/units.h"

#define CLUSTER_BYTES_MAX (2u << 20)
#define QUOTED_BYTES 4096
#define PREALLOCATION_CHOICES "off|metadata|falloc|full"

enum key {
    KEY_BACKING_FILE,
    KEY_BACKING_FMT,
    KEY_CLUSTER_SIZE,
    KEY_COMPAT,
    KEY_COMPRESSION_TYPE,
    KEY_DATA_FILE,
    KEY_DATA_FILE_RAW,
    KEY_EXTENDED_L2,
    KEY_LAZY_REFCOUNTS,
    KEY_PREALLOCATION,
    KEY_REFCOUNT_BITS,
    KEY_SIZE,
};

static const struct option_key {
    const char *name;
    enum key key;
    bool raw; /* raw files have it too */
    const char *help;
} keys[] = {
    {"backing_file", KEY_BACKING_FILE, false, "NAME: the file below, as -b"},
    {"backing_fmt", KEY_BACKING_FMT, false, "qcow2 or raw: its format, as -F"},
    {"cluster_size", KEY_CLUSTER_SIZE, false, "SIZE: 512 to 2M, a power of two; default 64k"},
    {"compat", KEY_COMPAT, false, "v3 or 1.1 (default), or v2 or 0.10"},
    {"compression_type", KEY_COMPRESSION_TYPE, false, "zlib (default) or zstd"},
    {"data_file", KEY_DATA_FILE, false, "NAME: a file of its own for the guest's data, beside the image"},
    {"data_file_raw", KEY_DATA_FILE_RAW, false, "on or off: that file stays a valid raw image"},
    {"extended_l2", KEY_EXTENDED_L2, false, "on or off: 32 subclusters per cluster; clusters from 16k"},
    {"lazy_refcounts", KEY_LAZY_REFCOUNTS, false, "on or off: allow QEMU to postpone refcount updates"},
    {"preallocation", KEY_PREALLOCATION, true, "off (default), metadata (not raw), falloc or full"},
    {"refcount_bits", KEY_REFCOUNT_BITS, false, "1, 2, 4, 8, 16 (default), 32 or 64"},
    {"size", KEY_SIZE, true, "SIZE: of the virtual disk, instead of the operand"},
};

#define KEY_COUNT (sizeof keys / sizeof keys[0])

/* Copies of the lists, split in place: names point into them. */
static struct kept_list {
    struct kept_list *next;
    char text[];
} * kept_lists;

/* For messages: the keys are create's wherever the list is given. */
static const struct usage usage = {.command = "create"};

void create_options_init(struct create_options *o)
{
    *o = (struct create_options){.image = SCOW_CREATE_OPTIONS_INIT, .format = SCOW_FORMAT_QCOW2};
}

bool create_options_ask_help(const char *list)
{
    return !strcmp(list, "help") || !strcmp(list, "list") || !strcmp(list, "?");
}

void create_options_print_help(enum scow_format format)
{
    printf("Options of a %s image:\n", format == SCOW_FORMAT_RAW ? "raw" : "qcow2");
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (format != SCOW_FORMAT_RAW || keys[i].raw)
            printf("  %-18s%s\n", keys[i].name, keys[i].help);
}

/* ---- values ---- */

static int take_flag(struct arguments *args, const char *name, uint32_t *ret_flag)
{
    int index;

    if (arguments_choice(args, name, "on|off|yes|no|true|false|y|n", &index))
        return -1;
    *ret_flag = index % 2 == 0;
    return 0;
}

static int take_compat(struct create_options *o, struct arguments *args, const char *name)
{
    int index;

    if (arguments_choice(args, name, "0.10|v2|1.1|v3", &index))
        return -1;
    o->compat = args->value;
    o->image.version = index < 2 ? 2 : 3;
    return 0;
}

static int take_cluster_size(struct create_options *o, struct arguments *args, const char *name)
{
    uint64_t bytes;

    if (arguments_size(args, name, 512, CLUSTER_BYTES_MAX, &bytes))
        return -1;
    if (bytes & (bytes - 1)) {
        arguments_error(args, "%s: '%s' is not a power of two", name, args->value);
        return -1;
    }
    o->image.cluster_bytes = (uint32_t)bytes;
    return 0;
}

static int take_refcount_bits(struct create_options *o, struct arguments *args, const char *name)
{
    uint64_t bits;

    if (arguments_number(args, name, 1, 64, &bits))
        return -1;
    if (bits & (bits - 1)) {
        arguments_error(args, "%s: '%s' is not a power of two", name, args->value);
        return -1;
    }
    o->image.refcount_bits = (uint32_t)bits;
    return 0;
}

static int take_size(struct create_options *o, struct arguments *args, const char *name)
{
    o->size_given = true;
    return arguments_size(args, name, 0, INT64_MAX, &o->image.virtual_size);
}

static int take_preallocation(struct create_options *o, struct arguments *args, const char *name)
{
    int index;

    if (arguments_choice(args, name, PREALLOCATION_CHOICES, &index))
        return -1;
    o->preallocation_given = true;
    o->image.preallocation = (enum scow_preallocation)index;
    return 0;
}

static int take_compression_type(struct create_options *o, struct arguments *args, const char *name)
{
    int index;

    if (arguments_choice(args, name, "zlib|zstd", &index))
        return -1;
    o->image.compression = (enum scow_compression)index;
    return 0;
}

static int take_name(struct arguments *args, const char *name, const char **ret_value)
{
    if (!args->value[0]) {
        arguments_error(args, "%s: an empty name", name);
        return -1;
    }
    *ret_value = args->value;
    return 0;
}

/* args->value is the value. */
static int take_key(struct create_options *o, struct arguments *args, const struct option_key *key)
{
    char name[64];

    snprintf(name, sizeof name, "-o %s", key->name);
    switch (key->key) {
    case KEY_BACKING_FILE:
        return take_name(args, name, &o->image.backing_name);
    case KEY_BACKING_FMT:
        return take_name(args, name, &o->image.backing_format);
    case KEY_CLUSTER_SIZE:
        return take_cluster_size(o, args, name);
    case KEY_COMPAT:
        return take_compat(o, args, name);
    case KEY_COMPRESSION_TYPE:
        return take_compression_type(o, args, name);
    case KEY_DATA_FILE:
        return take_name(args, name, &o->image.data_file_name);
    case KEY_DATA_FILE_RAW:
        return take_flag(args, name, &o->image.data_file_raw);
    case KEY_EXTENDED_L2:
        return take_flag(args, name, &o->image.extended_l2);
    case KEY_LAZY_REFCOUNTS:
        return take_flag(args, name, &o->image.lazy_refcounts);
    case KEY_PREALLOCATION:
        return take_preallocation(o, args, name);
    case KEY_REFCOUNT_BITS:
        return take_refcount_bits(o, args, name);
    default:
        return take_size(o, args, name);
    }
}

/* ---- the list ---- */

/* Ends the first item of *rest at its comma, makes one comma of two, and moves *rest behind it (NULL at the
 * end). */
static char *next_item(char **rest)
{
    char *item = *rest, *out = item;

    for (char *p = item;; p++) {
        if (*p == ',' && p[1] == ',') {
            p++;
        } else if (!*p || *p == ',') {
            *rest = *p ? p + 1 : NULL;
            *out = '\0';
            return item;
        }
        *out++ = *p;
    }
}

static int take_item(struct create_options *o, struct arguments *args, char *item)
{
    char *value = strchr(item, '=');

    if (!value) {
        arguments_error(args, "-o: '%s' is not KEY=VALUE; 'shardcow create -o help' lists the keys", item);
        return -1;
    }
    *value++ = '\0';
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (!strcmp(keys[i].name, item) && (keys[i].raw || o->format != SCOW_FORMAT_RAW)) {
            args->value = value;
            return take_key(o, args, &keys[i]);
        }
    if (!strncmp(item, "encrypt", 7))
        arguments_error(args, "-o: encryption is not supported");
    else
        arguments_error(args, "-o: a %s image has no option '%s'; 'shardcow create -o help' lists them",
                        o->format == SCOW_FORMAT_RAW ? "raw" : "qcow2", item);
    return -1;
}

static char *keep(const char *list)
{
    const size_t bytes = strlen(list) + 1;
    struct kept_list *kept = malloc(sizeof *kept + bytes);

    if (!kept)
        return NULL;
    memcpy(kept->text, list, bytes);
    kept->next = kept_lists;
    kept_lists = kept;
    return kept->text;
}

int create_options_take(struct create_options *o, const char *list)
{
    struct arguments args = {.usage = &usage};
    char *rest = keep(list);

    if (!rest) {
        arguments_error(&args, "out of memory");
        return -1;
    }
    while (rest) {
        char *item = next_item(&rest);
        if (*item && take_item(o, &args, item))
            return -1;
    }
    return 0;
}

int create_options_parse(const char *list, struct scow_create_options *ret)
{
    struct create_options o;

    create_options_init(&o);
    o.image = *ret;
    if (create_options_take(&o, list))
        return -1;
    *ret = o.image;
    return 0;
}

/* ---- the line that tells what is made ---- */

static const char *on_off(uint32_t flag)
{
    return flag ? "on" : "off";
}

/* As it would have to be written in a list: with each comma doubled. */
static void print_name(const char *key, const char *name)
{
    char quoted[QUOTED_BYTES];

    if (!name)
        return;
    printf(" %s=", key);
    for (const char *p = command_quote(quoted, sizeof quoted, name); *p; p++)
        printf(*p == ',' ? ",," : "%c", *p);
}

static void print_preallocation(const struct create_options *o)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full"};

    if (o->preallocation_given)
        printf(" preallocation=%s", modes[o->image.preallocation]);
}

void create_options_print(const struct create_options *o, const char *path)
{
    const struct scow_create_options *image = &o->image;
    char quoted[QUOTED_BYTES];

    printf("Formatting '%s', fmt=%s", command_quote(quoted, sizeof quoted, path),
           o->format == SCOW_FORMAT_RAW ? "raw" : "qcow2");
    if (o->format == SCOW_FORMAT_RAW) {
        printf(" size=%" PRIu64, image->virtual_size);
        print_preallocation(o);
        printf("\n");
        return;
    }
    printf(" cluster_size=%" PRIu32 " extended_l2=%s", image->cluster_bytes ? image->cluster_bytes : 65536,
           on_off(image->extended_l2));
    print_preallocation(o);
    printf(" compression_type=%s size=%" PRIu64,
           image->compression == SCOW_COMPRESSION_ZSTD ? "zstd" : "zlib", image->virtual_size);
    if (o->compat)
        printf(" compat=%s", o->compat);
    print_name("backing_file", image->backing_name);
    print_name("backing_fmt", image->backing_format);
    print_name("data_file", image->data_file_name);
    if (image->data_file_raw)
        printf(" data_file_raw=on");
    printf(" lazy_refcounts=%s refcount_bits=%" PRIu32 "\n", on_off(image->lazy_refcounts),
           image->refcount_bits ? image->refcount_bits : 16);
}
