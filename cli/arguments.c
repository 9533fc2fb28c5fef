/* SPDX-License-Identifier: MIT */
#include "cli/arguments.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/units.h"

#define ARGUMENTS_MAX 48
#define KEY_HELP 'h'

struct parser {
    char shorts[2 + 2 * ARGUMENTS_MAX + 2];
    struct option longs[ARGUMENTS_MAX + 2];
};

/* getopt's two tables from ours. The leading colon makes it return ':' for a missing value, silently. */
static struct parser *parser_create(const struct usage *usage)
{
    struct parser *parser = calloc(1, sizeof *parser);
    size_t shorts = 0, longs = 0;

    if (!parser)
        return NULL;
    parser->shorts[shorts++] = ':';
    for (const struct argument *a = usage->specs; a->key && longs < ARGUMENTS_MAX; a++) {
        if (a->key < ARG_OPEN_FIRST) {
            parser->shorts[shorts++] = (char)a->key;
            if (a->value)
                parser->shorts[shorts++] = ':';
        }
        if (a->name)
            parser->longs[longs++] = (struct option){
                .name = a->name, .has_arg = a->value ? required_argument : no_argument, .val = a->key};
    }
    parser->shorts[shorts++] = KEY_HELP;
    parser->longs[longs] = (struct option){.name = "help", .has_arg = no_argument, .val = KEY_HELP};
    return parser;
}

static int bad_options_code(const struct usage *usage)
{
    return usage->exit_bad_options ? usage->exit_bad_options : EXIT_FAILED;
}

static int arguments_end(struct arguments *args, int ret)
{
    free(args->parser);
    args->parser = NULL;
    return ret;
}

int arguments_error(struct arguments *args, const char *fmt, ...)
{
    char text[512];
    va_list list;

    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    command_error(args->usage->command, "%s", text);
    command_hint("'shardcow %s --help' lists the options", args->usage->command);
    args->exit_code = bad_options_code(args->usage);
    return arguments_end(args, args->exit_code);
}

int arguments_next(struct arguments *args, int argc, char **argv)
{
    struct parser *parser = args->parser;
    const char *word;
    int key;

    if (!parser) {
        parser = parser_create(args->usage);
        if (!parser) {
            arguments_error(args, "out of memory");
            return -1;
        }
        args->parser = parser;
        optind = 0; /* GNU: scan afresh */
        opterr = 0;
    }
    key = getopt_long(argc, argv, parser->shorts, parser->longs, NULL);
    args->value = optarg;
    if (key == -1) {
        args->operands = argv + optind;
        args->operand_count = argc - optind;
        return arguments_end(args, 0);
    }
    if (key == KEY_HELP) {
        usage_print(args->usage);
        args->exit_code = command_finish_output();
        return arguments_end(args, -1);
    }
    if (key != ':' && key != '?')
        return key;
    word = argv[optind - 1];
    if (key == ':')
        arguments_error(args, "option '%s' needs a value", word);
    else if (optopt && optopt < ARG_OPEN_FIRST && strncmp(word, "--", 2) != 0)
        arguments_error(args, "there is no option '-%c'", optopt);
    else
        arguments_error(args, "there is no option '%s', or it takes no value", word);
    return arguments_end(args, -1);
}

int arguments_size(struct arguments *args, const char *option, uint64_t min, uint64_t max,
                   uint64_t *ret_bytes)
{
    char low[UNITS_TEXT_BYTES], high[UNITS_TEXT_BYTES];
    uint64_t bytes;

    if (units_parse_size(args->value, &bytes)) {
        arguments_error(args, "%s: '%s' is no size; write 65536, 64k, 1.5G or 0x10000", option, args->value);
        return -1;
    }
    if (bytes < min || bytes > max) {
        arguments_error(args, "%s: '%s' is not between %s and %s", option, args->value, units_size(low, min),
                        units_size(high, max));
        return -1;
    }
    *ret_bytes = bytes;
    return 0;
}

int arguments_number(struct arguments *args, const char *option, uint64_t min, uint64_t max,
                     uint64_t *ret_number)
{
    uint64_t number;

    if (units_parse_number(args->value, &number) || number < min || number > max) {
        arguments_error(args, "%s: '%s' is no number from %llu to %llu", option, args->value,
                        (unsigned long long)min, (unsigned long long)max);
        return -1;
    }
    *ret_number = number;
    return 0;
}

int arguments_choice(struct arguments *args, const char *option, const char *choices, int *ret_index)
{
    const size_t value_bytes = strlen(args->value);
    const char *p = choices;

    for (int i = 0; *p; i++) {
        const size_t bytes = strcspn(p, "|");
        if (bytes == value_bytes && !memcmp(p, args->value, bytes)) {
            *ret_index = i;
            return 0;
        }
        p += bytes + (p[bytes] == '|');
    }
    arguments_error(args, "%s: '%s' is none of %s", option, args->value, choices);
    return -1;
}

void usage_print(const struct usage *usage)
{
    printf("Usage: shardcow %s %s\n\n%s", usage->command, usage->synopsis, usage->text);
    printf("\nOptions:\n");
    for (const struct argument *a = usage->specs; a->key; a++) {
        char left[64];
        if (!a->help)
            continue;
        const int short_bytes = a->key < ARG_OPEN_FIRST
                                    ? snprintf(left, sizeof left, "  -%c%s", a->key, a->name ? ", " : "")
                                    : snprintf(left, sizeof left, "      ");
        snprintf(left + short_bytes, sizeof left - (size_t)short_bytes, "%s%s%s%s", a->name ? "--" : "",
                 a->name ? a->name : "", a->value ? (a->name ? "=" : " ") : "", a->value ? a->value : "");
        if (strlen(left) > 27)
            printf("%s\n%28s%s\n", left, "", a->help);
        else
            printf("%-28s%s\n", left, a->help);
    }
    printf("%-28s%s\n", "  -h, --help", "this text");
    if (usage->examples)
        printf("\nExamples:\n%s", usage->examples);
}
