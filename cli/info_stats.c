/* SPDX-License-Identifier: MIT */
/* `shardcow info --stats`: what the clusters of the active disk state are and how they lie. */
#include "cli/info_node.h"

#include <inttypes.h>

#include "cli/units.h"

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

/* Guest bytes per stored byte of the compressed clusters; 0 without any. */
static double compression_ratio(const struct info_node *node)
{
    const struct scow_check_result *s = &node->stats;

    if (!s->compressed_bytes)
        return 0;
    return (double)s->compressed_clusters * node->info.cluster_bytes / (double)s->compressed_bytes;
}

json_t *info_stats_json(const struct info_node *node)
{
    const struct scow_check_result *s = &node->stats;
    json_t *stats = json_object(), *clusters = json_object();

    json_put(clusters, "total", json_count(s->total_clusters));
    json_put(clusters, "standard", json_count(s->standard_clusters));
    json_put(clusters, "compressed", json_count(s->compressed_clusters));
    json_put(clusters, "zero", json_count(s->zero_clusters));
    json_put(clusters, "zero-allocated", json_count(s->zero_allocated_clusters));
    json_put(clusters, "unallocated", json_count(s->unallocated_clusters));
    json_put(clusters, "fragmented", json_count(s->fragmented_clusters));
    json_put(clusters, "shared", json_count(s->shared_clusters));
    json_put(stats, "clusters", clusters);
    json_put(stats, "l2-tables", json_count(s->l2_tables));
    json_put(stats, "host-clusters", json_count(s->host_clusters));
    json_put(stats, "metadata-bytes", json_count(s->metadata_bytes));
    json_put(stats, "metadata-percent",
             json_real(percent(s->metadata_bytes, s->host_clusters * node->info.cluster_bytes)));
    json_put(stats, "fragmented-percent", json_real(percent(s->fragmented_clusters, s->allocated_clusters)));
    json_put(stats, "compressed-bytes", json_count(s->compressed_bytes));
    json_put(stats, "compression-ratio", json_real(compression_ratio(node)));
    if (node->info.incompatible & SCOW_INCOMPAT_EXTENDED_L2) {
        json_t *subclusters = json_object();
        json_put(subclusters, "bytes", json_count(node->info.subcluster_bytes));
        json_put(subclusters, "allocated", json_count(s->subclusters_allocated));
        json_put(subclusters, "zero", json_count(s->subclusters_zero));
        json_put(stats, "subclusters", subclusters);
    }
    json_put(stats, "leaks", json_count(s->leaks));
    json_put(stats, "corruptions", json_count(s->corruptions));
    json_put(stats, "image-end-offset", json_count(s->image_end_off));
    return stats;
}

static void print_kind(const char *kind, uint64_t clusters, const struct info_node *node)
{
    char count[UNITS_TEXT_BYTES], size[UNITS_TEXT_BYTES];

    if (!clusters)
        return;
    printf("  %-16s %15s %6.2f%%  %10s\n", kind, units_count(count, clusters),
           percent(clusters, node->stats.total_clusters),
           units_size(size, clusters * (uint64_t)node->info.cluster_bytes));
}

void info_stats_print(const struct info_node *node)
{
    const struct scow_check_result *s = &node->stats;
    char a[UNITS_TEXT_BYTES], b[UNITS_TEXT_BYTES];

    printf("\nguest clusters:\n");
    print_kind("standard", s->standard_clusters, node);
    print_kind("compressed", s->compressed_clusters, node);
    print_kind("zero", s->zero_clusters, node);
    print_kind("zero, allocated", s->zero_allocated_clusters, node);
    print_kind("unallocated", s->unallocated_clusters, node);
    print_kind("total", s->total_clusters, node);
    if (node->info.incompatible & SCOW_INCOMPAT_EXTENDED_L2)
        printf("subclusters:          %s allocated, %s zero\n", units_count(a, s->subclusters_allocated),
               units_count(b, s->subclusters_zero));
    printf("host clusters:        %s in use (%s)\n", units_count(a, s->host_clusters),
           units_size(b, s->host_clusters * (uint64_t)node->info.cluster_bytes));
    printf("metadata:             %s, %.2f%% of the clusters in use; %s L2 tables\n",
           units_size(a, s->metadata_bytes),
           percent(s->metadata_bytes, s->host_clusters * (uint64_t)node->info.cluster_bytes),
           units_count(b, s->l2_tables));
    printf("fragmentation:        %.2f%% of the allocated clusters do not follow the one before\n",
           percent(s->fragmented_clusters, s->allocated_clusters));
    if (s->compressed_clusters)
        printf("compression:          %s stored in %s, ratio %.2f\n",
               units_size(a, s->compressed_clusters * (uint64_t)node->info.cluster_bytes),
               units_size(b, s->compressed_bytes), compression_ratio(node));
    if (s->shared_clusters)
        printf("shared:               %s clusters with a refcount above 1\n",
               units_count(a, s->shared_clusters));
    if (s->corruptions || s->leaks || s->check_errors)
        printf("problems:             %s corruptions, %s leaks ('shardcow check' tells which)\n",
               units_count(a, s->corruptions + s->check_errors), units_count(b, s->leaks));
}
