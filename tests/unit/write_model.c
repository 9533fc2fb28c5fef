/* SPDX-License-Identifier: MIT */
#include "tests/unit/write_model.h"

#include <string.h>

void model_start(struct model *m, uint64_t bytes)
{
    memset(m, 0, sizeof *m);
    m->bytes = bytes;
    for (uint64_t i = 0; i < SECTORS_MAX; i++)
        m->sectors[i] = (struct sector){.may_be = {ORIGINAL}, .count = 1};
}

void model_set(struct model *m, uint64_t off, uint64_t bytes, uint16_t value)
{
    for (uint64_t s = off / SECTOR; s < (off + bytes) / SECTOR; s++)
        m->sectors[s] = (struct sector){.may_be = {value}, .count = 1};
}

void model_may(struct model *m, uint64_t off, uint64_t bytes, uint16_t value)
{
    for (uint64_t s = off / SECTOR; s < (off + bytes) / SECTOR; s++) {
        struct sector *sector = &m->sectors[s];

        if (sector->count < CANDIDATES)
            sector->may_be[sector->count++] = value;
        else
            sector->anything = true;
    }
}

static bool is_filled(const uint8_t *p, uint8_t value)
{
    for (uint32_t i = 0; i < SECTOR; i++)
        if (p[i] != value)
            return false;
    return true;
}

static bool sector_is(const struct model *m, uint64_t s, const uint8_t *got, uint16_t value)
{
    return value == ORIGINAL ? !memcmp(got, m->original + s * SECTOR, SECTOR)
                             : is_filled(got, (uint8_t)value);
}

bool model_allows(const struct model *m, uint64_t s, const uint8_t *got)
{
    const struct sector *sector = &m->sectors[s];

    for (uint32_t i = 0; i < sector->count; i++)
        if (sector_is(m, s, got, sector->may_be[i]))
            return true;
    return sector->anything;
}
