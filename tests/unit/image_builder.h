/* SPDX-License-Identifier: MIT */
/*
 * Makes qcow2 images entry by entry, and remembers what a guest must read from them. Content is stamped:
 * every 8-byte word tells its guest offset and the layer that it belongs to, so a byte from the wrong place
 * is recognised.
 *
 * Failures of the builder itself (memory, files) abort: they are no result of a test.
 */
#ifndef UNIT_IMAGE_BUILDER_H
#define UNIT_IMAGE_BUILDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image_spec {
    bool raw; /* no qcow2 at all: the guest's bytes are the file */
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t refcount_order;
    bool extended_l2;
    bool zstd;
    uint64_t virtual_bytes;
    uint32_t salt; /* of this layer's stamps */
    const char *backing_name, *backing_format, *data_file_name;
    bool data_file; /* implied by data_file_name */
    uint32_t crypt_method;
};

#define IMAGE_SPEC_INIT .version = 3, .cluster_bits = 16, .refcount_order = 4, .salt = 1

struct bytes {
    uint8_t *p;
    size_t count, room;
};

struct image_builder {
    struct image_spec spec;
    uint32_t cluster_bytes;
    uint32_t l2_entry_bytes, l2_entries;
    uint32_t l1_count;
    uint64_t l1_off;
    uint64_t stream_off, stream_end; /* where the next compressed stream goes */
    struct bytes host;               /* the image file */
    struct bytes data;               /* the external data file */
    uint32_t *refs;                  /* by host cluster */
    size_t refs_room;
    uint8_t *plain;   /* what a guest reads of this layer */
    uint8_t *present; /* by sector: this layer decides */
};

struct image_builder *builder_new(const struct image_spec *spec);
void builder_free(struct image_builder *b);

/* One cluster of each kind. cluster: guest cluster index. Each is used once per cluster. */
void builder_data(struct image_builder *b, uint64_t cluster);
void builder_zero(struct image_builder *b, uint64_t cluster, bool allocated);
void builder_compressed(struct image_builder *b, uint64_t cluster);
/* Extended L2: the subclusters of allocated have data, those of zero are zeros; with a host cluster if
 * allocated is not 0 or with_host. */
void builder_subclusters(struct image_builder *b, uint64_t cluster, uint32_t allocated, uint32_t zero,
                         bool with_host);
/* A random kind for every cluster, everything that the spec allows. */
void builder_mixed(struct image_builder *b, uint64_t seed);
/* Raw: all of it. */
void builder_raw(struct image_builder *b);

/* As they are, valid or not; the model does not change. */
void builder_entry(struct image_builder *b, uint64_t cluster, uint64_t entry, uint64_t bitmap);
void builder_l1_entry(struct image_builder *b, uint64_t l1_index, uint64_t entry);

/* The entry of a cluster, its place in the file, and that of its L2 table, which is made if there is none. */
uint64_t builder_get_entry(struct image_builder *b, uint64_t cluster);
uint64_t builder_entry_off(struct image_builder *b, uint64_t cluster);

/* A host cluster with nothing in it. */
uint64_t builder_allocate(struct image_builder *b);
void builder_put_be64(struct image_builder *b, uint64_t off, uint64_t value);
void builder_put_be32(struct image_builder *b, uint64_t off, uint32_t value);

/* Refcounts, then the file; and the data file, if there is one. Last of all. */
void builder_write(struct image_builder *b, const char *path);
void builder_write_data_file(const struct image_builder *b, const char *path);

/* What a guest reads through a chain, layers[0] on top. */
void builder_expect(struct image_builder *const *layers, int count, uint64_t off, uint64_t bytes,
                    uint8_t *out);

void stamp_fill(void *buf, uint64_t bytes, uint64_t guest_off, uint32_t salt);

/* xorshift64*: the tests' only source of randomness. */
uint64_t random_next(uint64_t *state);
uint64_t random_below(uint64_t *state, uint64_t limit);

#endif
