/* SPDX-License-Identifier: MIT */
/*
 * What a server that has opened everything still needs of the kernel, and nothing else (seccomp). A guest
 * that finds a way to run code here can open no file, start no program and reach no network by system calls.
 */
#ifndef EXPORTS_SANDBOX_H
#define EXPORTS_SANDBOX_H

#include <stdbool.h>

/* Whether this build can. */
bool sandbox_is_built_in(void);

/* From now on, for all threads of the process and those that they start. What is not allowed answers -EPERM.
 * Gives up gaining privileges too. 0 or a negative errno; -ENOTSUP where it is not built in. */
int sandbox_enter(void);

#endif
