/* SPDX-License-Identifier: MIT */
/* The -o list of create: KEY=VALUE,…, as qemu-img has it. */
#ifndef CLI_CREATE_OPTIONS_H
#define CLI_CREATE_OPTIONS_H

#include <stdbool.h>

#include "shardcow.h"

struct create_options {
    struct scow_create_options image; /* its names live until the process ends */
    enum scow_format format;          /* of the new image; set before any list is taken */
    const char *compat;               /* as given */
    bool size_given, preallocation_given;
};

/* qcow2, all defaults */
void create_options_init(struct create_options *o);

/* Take one list; later values win. 0, or -1 after an error, which was reported. */
int create_options_take(struct create_options *o, const char *list);

/* The same onto *ret, for a qcow2 image; ret is untouched on error. */
int create_options_parse(const char *list, struct scow_create_options *ret);

/* Whether a list asks for help instead. */
bool create_options_ask_help(const char *list);
void create_options_print_help(enum scow_format format);

/* "Formatting 'x', fmt=qcow2 cluster_size=…", as qemu-img prints it. */
void create_options_print(const struct create_options *o, const char *path);

#endif
