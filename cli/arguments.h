/* SPDX-License-Identifier: MIT */
/*
 * Command-line options: a table over getopt_long() that also prints --help, so that the two cannot differ.
 *
 *   static const struct argument specs[] = {
 *       {'q', "quiet", NULL, "print errors only"},
 *       {ARG_OUTPUT, "output", "human|json", "form of the result"},
 *       OPEN_ARGUMENTS,
 *       {0},
 *   };
 *   struct arguments args = {.usage = &usage};
 *   int key;
 *   while ((key = arguments_next(&args, argc, argv)) > 0)
 *       switch (key) { … args.value … }
 *   if (key < 0)
 *       return args.exit_code;          (help was printed, or an error)
 *   use args.operands[0 … args.operand_count - 1]
 */
#ifndef CLI_ARGUMENTS_H
#define CLI_ARGUMENTS_H

#include <stdbool.h>
#include <stdint.h>

struct argument {
    int key;           /* the short option's letter, or a number from ARG_LONG up for a long-only option */
    const char *name;  /* long name; NULL for a short-only option */
    const char *value; /* what to call its value in --help; NULL when it takes none */
    const char *help;  /* NULL: accepted but not shown */
};

/* Long-only options: each command numbers its own from ARG_LONG. The first group is shared. */
enum {
    ARG_OPEN_FIRST = 256, /* for open_args.h */
    ARG_OUTPUT = 300,
    ARG_LONG = 400,
};

struct usage {
    const char *command;
    const char *synopsis;         /* what follows "shardcow COMMAND " */
    const char *text;             /* a paragraph, lines ended by \n */
    const struct argument *specs; /* ended by key 0 */
    const char *examples;         /* command lines, each with two spaces in front and \n */
    int exit_bad_options;         /* 0: EXIT_FAILED */
};

struct arguments {
    const struct usage *usage;
    const char *value; /* of the option just returned */
    char **operands;   /* set when arguments_next() returned 0 */
    int operand_count;
    int exit_code; /* set when it returned -1 */

    void *parser; /* private */
};

/* The next option's key; 0 after the last; -1 when the command is to end with exit_code: after --help, or
 * after an option error, which was reported. Operands and options may be mixed. */
int arguments_next(struct arguments *args, int argc, char **argv);

/* Reports "COMMAND: message" with a pointer to --help; sets exit_code and returns it. */
int arguments_error(struct arguments *args, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Parse the option's value; report and return -1 (exit_code is set) when it does not parse or lies outside
 * [min, max]. */
int arguments_size(struct arguments *args, const char *option, uint64_t min, uint64_t max,
                   uint64_t *ret_bytes);
int arguments_number(struct arguments *args, const char *option, uint64_t min, uint64_t max,
                     uint64_t *ret_number);
/* Matches value with one of choices ("human|json"); *ret_index is its place. */
int arguments_choice(struct arguments *args, const char *option, const char *choices, int *ret_index);

void usage_print(const struct usage *usage);

#endif
