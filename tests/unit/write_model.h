/* SPDX-License-Identifier: MIT */
/* What a guest may find in an image after writes of which some failed: of each sector, the candidates. */
#ifndef UNIT_WRITE_MODEL_H
#define UNIT_WRITE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR 512u
#define IMAGE_BYTES_MAX (1ull << 20)
#define SECTORS_MAX (IMAGE_BYTES_MAX / SECTOR)
#define CANDIDATES 4

/* A sector's content is one byte repeated, or what the file had at first. The candidates are what it may be:
 * exactly one unless something failed. */
#define ORIGINAL 0x100u

struct sector {
    uint16_t may_be[CANDIDATES];
    uint8_t count;
    bool anything; /* too many failed here */
};

struct model {
    struct sector sectors[SECTORS_MAX];
    uint8_t original[IMAGE_BYTES_MAX];
    uint64_t bytes;
};

/* Everything as the file had it at first: that goes to original. */
void model_start(struct model *m, uint64_t bytes);
void model_set(struct model *m, uint64_t off, uint64_t bytes, uint16_t value);
/* A change that failed: it may be there or not. */
void model_may(struct model *m, uint64_t off, uint64_t bytes, uint16_t value);
/* Whether sector s may read as got. */
bool model_allows(const struct model *m, uint64_t s, const uint8_t *got);

#endif
