/* SPDX-License-Identifier: MIT */
/* The input is the first cluster of a qcow2 file: header, extensions, names. */
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "base/error.h"
#include "format/header.h"
#include "format/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static volatile uint8_t sink;

static void touch(const uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        sink ^= p[i];
}

static void expect(bool holds)
{
    if (!holds)
        abort();
}

/* Whatever header_decode() lets through has to lie within the cluster, and the areas must agree. */
static void use_header(const struct header *h, const uint8_t *cluster)
{
    const struct header_span spans[] = {h->extensions, h->backing_name, h->backing_format, h->data_file_name,
                                        h->feature_names};
    uint32_t cursor = h->extensions.off, count = 0;
    struct feature_name name;
    struct extension e;

    for (size_t i = 0; i < ARRAY_COUNT(spans); i++) {
        expect(spans[i].off <= h->cluster_bytes && spans[i].bytes <= h->cluster_bytes - spans[i].off);
        touch(cluster + spans[i].off, spans[i].bytes);
    }
    for (; extension_next(h, cluster, &cursor, &e); count++) {
        expect(e.data_off <= h->cluster_bytes && e.bytes <= h->cluster_bytes - e.data_off);
        touch(cluster + e.data_off, e.bytes);
    }
    expect(count == h->extension_count);
    for (uint32_t i = 0; i < h->feature_names.bytes / FEATURE_NAME_BYTES; i++) {
        feature_name_decode(h, cluster, i, &name);
        expect(memchr(name.name, 0, sizeof name.name) != NULL);
    }
    expect(h->refcount_order <= REFCOUNT_ORDER_MAX && h->compression <= 1);
    expect((uint64_t)h->l1_count * 8 <= L1_BYTES_MAX && h->virtual_bytes <= VIRTUAL_BYTES_MAX);
    expect(h->virtual_bytes <= (uint64_t)h->l1_count << header_l1_shift(h));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct header h;
    uint32_t cluster_bytes;
    uint8_t *cluster;
    int ret;

    ret = header_probe_cluster(data, bytes, &cluster_bytes);
    if (ret < 0) {
        expect(error_message()[0]);
        return 0;
    }
    cluster = calloc(1, cluster_bytes);
    if (!cluster)
        return 0;
    memcpy(cluster, data, MIN(bytes, (size_t)cluster_bytes));
    ret = header_decode(cluster, cluster_bytes, &h);
    if (ret == 0)
        use_header(&h, cluster);
    else
        expect(error_message()[0]);
    free(cluster);
    return 0;
}
