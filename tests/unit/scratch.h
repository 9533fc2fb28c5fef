/* SPDX-License-Identifier: MIT */
/* A folder for one test process, removed when it ends; and what such a process must not leave behind. */
#ifndef UNIT_SCRATCH_H
#define UNIT_SCRATCH_H

#include <stdbool.h>

/* The path of name in the folder; made once per name, valid until the process ends. */
const char *scratch(const char *name);

/* Open descriptors of this process: to see that none is leaked. */
int open_descriptors(void);

/* Under AddressSanitizer: whether memory is lost at this point. Criterion's processes end without that check.
 */
bool memory_is_lost(void);
/* The same as a suite's .fini, where an assertion would not count. */
void abort_if_memory_is_lost(void);

#endif
