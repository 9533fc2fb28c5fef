/* SPDX-License-Identifier: MIT */
/* Translation on the submitting thread, from what is cached: no lock, no message, no shared line written. */
#ifndef ENGINE_CACHED_LOOKUP_H
#define ENGINE_CACHED_LOOKUP_H

#include <stdbool.h>

#include "engine/request.h"

/*
 * Answer lookup from the directory or, where the L1 table has no L2 table, from that. False: the slice is not
 * cached (or is just being replaced), ask its owner. error is for lookup->status < 0. Takes the RCU read lock
 * itself.
 */
bool cached_lookup(struct lookup *lookup, char *error);

#endif
