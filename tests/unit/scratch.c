/* SPDX-License-Identifier: MIT */
#include "tests/unit/scratch.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define WITH_LSAN
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define WITH_LSAN
#endif
#ifdef WITH_LSAN
#include <sanitizer/lsan_interface.h>
#endif

#define NAMES_MAX 512

static char folder[256];
static pid_t owner;
static char *paths[NAMES_MAX];
static int path_count;

static void remove_all(void)
{
    if (getpid() != owner) /* a forked child has it only on loan */
        return;
    for (int i = 0; i < path_count; i++)
        unlink(paths[i]);
    rmdir(folder);
}

const char *scratch(const char *name)
{
    const char *base = getenv("TMPDIR");
    char path[600];

    if (!folder[0]) {
        snprintf(folder, sizeof folder, "%s/shardcow-test-XXXXXX", base ? base : "/tmp");
        if (!mkdtemp(folder)) {
            perror(folder);
            abort();
        }
        owner = getpid();
        atexit(remove_all);
    }
    snprintf(path, sizeof path, "%s/%s", folder, name);
    for (int i = 0; i < path_count; i++)
        if (!strcmp(paths[i], path))
            return paths[i];
    if (path_count == NAMES_MAX)
        abort();
    return paths[path_count++] = strdup(path);
}

int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    if (!dir)
        return -1;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

bool memory_is_lost(void)
{
#ifdef WITH_LSAN
    return __lsan_do_recoverable_leak_check();
#else
    return false;
#endif
}

void abort_if_memory_is_lost(void)
{
    if (memory_is_lost())
        abort();
}
