/* SPDX-License-Identifier: MIT */
/* The library's counters as JSON: the keys are the structures' names, with dashes. */
#ifndef CLI_JSON_COUNTERS_H
#define CLI_JSON_COUNTERS_H

#include <jansson.h>

#include "shardcow.h"

/* What a queue counts. */
json_t *json_queue_counters(const struct scow_counters *c);

/* And what an image adds to it, as far as it counts work; not what there is at the moment. */
json_t *json_work(const struct scow_counters *c);

/* All of it. */
json_t *json_image_counters(const struct scow_counters *c);

json_t *json_shard_counters(const struct scow_shard_counters *c);

#endif
