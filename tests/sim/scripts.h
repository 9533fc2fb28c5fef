/* SPDX-License-Identifier: MIT */
/* Small workloads whose crashes are enumerated: every subset of unsynced effects at every step. */
#ifndef SIM_SCRIPTS_H
#define SIM_SCRIPTS_H

#include "tests/sim/world.h"

#define SCRIPT_OPS_MAX 64

/* How many there are. */
uint32_t scripts_count(void);
/* Number n: its name, config and ops; returns how many ops. */
uint32_t scripts_get(uint32_t n, uint64_t seed, const char **ret_name, struct run_config *ret_config,
                     struct op *ret_ops);

#endif
