/* SPDX-License-Identifier: MIT */
/* A server's statistics for people. */
#ifndef CLI_STATS_TABLE_H
#define CLI_STATS_TABLE_H

#include "cli/stats_sample.h"

/* s: what happened in s->uptime_ns. uptime_ns: since when the server runs. */
void stats_table_print(const struct stats_sample *s, uint64_t uptime_ns);

#endif
