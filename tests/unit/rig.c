/* SPDX-License-Identifier: MIT */
#include "tests/unit/rig.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"
#include "tests/unit/scratch.h"

#define PATIENCE_NS 20000000000ll

static _Thread_local char text[512];

void rig_build(struct rig *rig, const struct image_spec *specs, int count, uint64_t seed)
{
    static int serial; /* several rigs in one process */

    *rig = (struct rig){.count = count};
    serial++;
    for (int i = 0; i < count; i++) {
        char name[64];

        snprintf(name, sizeof name, "rig%d-layer%d", serial, i);
        snprintf(rig->paths[i], sizeof rig->paths[i], "%s", scratch(name));
    }
    for (int i = 0; i < count; i++) {
        struct image_spec spec = specs[i];

        if (i + 1 < count) {
            spec.backing_name = strrchr(rig->paths[i + 1], '/') + 1;
            spec.backing_format = specs[i + 1].raw ? "raw" : "qcow2";
        }
        spec.salt = (uint32_t)i + 1;
        rig->layers[i] = builder_new(&spec);
        if (spec.raw)
            builder_raw(rig->layers[i]);
        else
            builder_mixed(rig->layers[i], seed + (uint64_t)i);
        builder_write(rig->layers[i], rig->paths[i]);
        if (spec.data_file_name)
            builder_write_data_file(rig->layers[i], scratch(spec.data_file_name));
    }
}

struct scow_open_options rig_options(void)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;

    o.shards = 2;
    o.open_child = scow_open_child_any;
    return o;
}

void rig_open(struct rig *rig, const struct scow_open_options *options)
{
    const struct scow_open_options defaults = rig_options();

    if (scow_open(rig->paths[0], options ? options : &defaults, &rig->image) < 0) {
        fprintf(stderr, "cannot open the rig: %s\n", scow_error());
        abort();
    }
}

void rig_queue(struct rig *rig, uint32_t depth)
{
    struct scow_queue_options o = SCOW_QUEUE_OPTIONS_INIT;

    o.depth = depth;
    if (scow_queue_create(rig->image, &o, &rig->queue) < 0) {
        fprintf(stderr, "cannot create a queue: %s\n", scow_error());
        abort();
    }
}

void rig_free(struct rig *rig)
{
    scow_queue_destroy(rig->queue);
    scow_close(rig->image);
    for (int i = 0; i < rig->count; i++)
        builder_free(rig->layers[i]);
    *rig = (struct rig){0};
}

bool rig_matches(const struct rig *rig, uint64_t off, uint64_t bytes, const void *buf)
{
    uint8_t *expected = malloc(bytes + 1);
    const uint8_t *got = buf;
    bool same;

    builder_expect(rig->layers, rig->count, off, bytes, expected);
    same = !memcmp(expected, got, bytes);
    for (uint64_t i = 0; !same && i < bytes; i++)
        if (expected[i] != got[i]) {
            fprintf(stderr, "guest offset 0x%" PRIx64 ": 0x%02x instead of 0x%02x\n", off + i, got[i],
                    expected[i]);
            break;
        }
    free(expected);
    return same;
}

const char *rig_text(void)
{
    return text;
}

int rig_read(struct scow_queue *queue, uint64_t off, void *buf, uint64_t bytes)
{
    struct scow_completion c;
    int r = scow_queue_read(queue, off, buf, bytes, buf, 0);

    if (r == 0)
        r = scow_queue_poll(queue, &c, 1, 1, PATIENCE_NS);
    if (r < 0) {
        snprintf(text, sizeof text, "%s", scow_error());
        return r;
    }
    if (r != 1) {
        snprintf(text, sizeof text, "no completion");
        return -ETIMEDOUT;
    }
    snprintf(text, sizeof text, "%s", c.error ? c.error : "");
    return c.user_data == buf ? c.ret : -EBADMSG;
}

bool rig_collect(struct scow_queue *queue, uint32_t count)
{
    bool good = true;

    while (count) {
        struct scow_completion done[64];
        const int n = scow_queue_poll(queue, done, 1, (int)MIN(count, ARRAY_COUNT(done)), PATIENCE_NS);

        if (n <= 0) {
            fprintf(stderr, "poll gives %d with %" PRIu32 " to come: %s\n", n, count, scow_error());
            return false;
        }
        for (int i = 0; i < n; i++)
            if (done[i].ret) {
                fprintf(stderr, "a request failed: %s\n", done[i].error);
                good = false;
            }
        count -= (uint32_t)n;
    }
    return good;
}

bool rig_verify_all(const struct rig *rig, struct scow_queue *queue, uint64_t piece_bytes)
{
    const uint64_t size = scow_size(rig->image);
    uint8_t *buf = aligned_alloc(4096, (piece_bytes + 4095) / 4096 * 4096);
    bool same = true;

    for (uint64_t off = 0; same && off < size; off += piece_bytes) {
        const uint64_t bytes = MIN(piece_bytes, size - off);
        int r;

        memset(buf, 0xee, bytes);
        r = rig_read(queue, off, buf, bytes);
        if (r < 0)
            fprintf(stderr, "reading at 0x%" PRIx64 " gives %d: %s\n", off, r, text);
        same = r == 0 && rig_matches(rig, off, bytes, buf);
    }
    free(buf);
    return same;
}
