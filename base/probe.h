/* SPDX-License-Identifier: MIT */
/*
 * Places where a tracer can look on (USDT, provider "shardcow"): bpftrace, perf, SystemTap. One that nobody
 * has enabled is a no-op instruction. docs/TRACING.md lists them all.
 */
#ifndef BASE_PROBE_H
#define BASE_PROBE_H

#ifdef SCOW_PROBES
#include <sys/sdt.h>
#define PROBE2(name, a, b) DTRACE_PROBE2(shardcow, name, a, b)
#define PROBE4(name, a, b, c, d) DTRACE_PROBE4(shardcow, name, a, b, c, d)
#else
#define PROBE2(name, a, b) ((void)(a), (void)(b))
#define PROBE4(name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#endif

#endif
