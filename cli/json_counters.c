/* SPDX-License-Identifier: MIT */
#include "cli/json_counters.h"

#include "cli/json.h"

json_t *json_queue_counters(const struct scow_counters *c)
{
    json_t *const o = json_object();

    json_put(o, "requests", json_count(c->requests));
    json_put(o, "bytes", json_count(c->bytes));
    json_put(o, "hits", json_count(c->hits));
    json_put(o, "misses", json_count(c->misses));
    json_put(o, "zeros", json_count(c->zeros));
    json_put(o, "backing", json_count(c->backing));
    json_put(o, "inflates", json_count(c->inflates));
    json_put(o, "inflate-hits", json_count(c->inflate_hits));
    json_put(o, "bounces", json_count(c->bounces));
    json_put(o, "ios", json_count(c->ios));
    json_put(o, "starved", json_count(c->starved));
    json_put(o, "writes-in-place", json_count(c->writes_in_place));
    json_put(o, "writes-at-shard", json_count(c->writes_at_shard));
    json_put(o, "flushes-alone", json_count(c->flushes_alone));
    json_put(o, "flushes-joined", json_count(c->flushes_joined));
    return o;
}

json_t *json_work(const struct scow_counters *c)
{
    json_t *const o = json_queue_counters(c);

    json_put(o, "slice-loads", json_count(c->slice_loads));
    json_put(o, "slice-coalesced", json_count(c->slice_coalesced));
    json_put(o, "slice-evictions", json_count(c->slice_evictions));
    json_put(o, "clusters-allocated", json_count(c->clusters_allocated));
    json_put(o, "cow-bytes", json_count(c->cow_bytes));
    json_put(o, "commits", json_count(c->commits));
    json_put(o, "syncs", json_count(c->syncs));
    json_put(o, "slice-writes", json_count(c->slice_writes));
    json_put(o, "leases", json_count(c->leases));
    return o;
}

json_t *json_image_counters(const struct scow_counters *c)
{
    json_t *const o = json_work(c);

    json_put(o, "leased", json_count(c->leased));
    json_put(o, "freed-pending", json_count(c->freed_pending));
    json_put(o, "freed-punched", json_count(c->freed_punched));
    json_put(o, "freed-skipped", json_count(c->freed_skipped));
    json_put(o, "epoch", json_count(c->epoch));
    json_put(o, "epoch-lag", json_count(c->epoch_lag));
    return o;
}

json_t *json_shard_counters(const struct scow_shard_counters *c)
{
    json_t *const o = json_object();

    json_put(o, "slice-loads", json_count(c->slice_loads));
    json_put(o, "slice-coalesced", json_count(c->slice_coalesced));
    json_put(o, "slice-evictions", json_count(c->slice_evictions));
    json_put(o, "writes", json_count(c->writes));
    json_put(o, "clusters-allocated", json_count(c->clusters_allocated));
    json_put(o, "cow-bytes", json_count(c->cow_bytes));
    json_put(o, "slice-writes", json_count(c->slice_writes));
    json_put(o, "slots", json_count(c->slots));
    json_put(o, "slots-resident", json_count(c->slots_resident));
    json_put(o, "slots-dirty", json_count(c->slots_dirty));
    json_put(o, "lease-clusters", json_count(c->lease_clusters));
    return o;
}
