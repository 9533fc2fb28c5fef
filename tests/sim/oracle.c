/* SPDX-License-Identifier: MIT */
#include "tests/sim/oracle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attributes.h"

#define WORDS (ORACLE_SECTOR / 8)
#define IN_FLIGHT UINT64_MAX

static void *grown(void *p, size_t count, size_t each)
{
    p = realloc(p, count * each);
    if (!p)
        abort();
    return p;
}

/* ---- stamps ---- */

void stamp_write(uint8_t *data, uint64_t guest_off, uint64_t bytes, uint32_t value)
{
    if (value == VALUE_ZERO) {
        memset(data, 0, bytes);
        return;
    }
    for (uint64_t i = 0; i < bytes; i += 8) {
        const uint64_t word = (uint64_t)value << 32 | (uint32_t)(guest_off + i);

        memcpy(data + i, &word, 8);
    }
}

uint32_t stamp_value(const uint8_t *data, uint64_t guest_off)
{
    uint64_t words[WORDS], wrong = 0;
    uint32_t value;

    memcpy(words, data, sizeof words);
    value = (uint32_t)(words[0] >> 32);
    if (value == VALUE_ZERO) {
        for (uint32_t i = 0; i < WORDS; i++)
            wrong |= words[i];
    } else {
        for (uint32_t i = 0; i < WORDS; i++)
            wrong |= words[i] ^ ((uint64_t)value << 32 | (uint32_t)(guest_off + i * 8));
    }
    return wrong ? VALUE_BAD : value;
}

static void describe(const uint8_t *data, char *text, size_t room)
{
    uint64_t first, last;
    bool alike = true;

    memcpy(&first, data, 8);
    memcpy(&last, data + ORACLE_SECTOR - 8, 8);
    for (uint32_t i = 1; i < WORDS; i++) {
        uint64_t w;

        memcpy(&w, data + (size_t)i * 8, 8);
        alike &= w == first + i * 8u || w == first;
    }
    snprintf(text, room, "%svalue 0x%" PRIx64 " of guest offset 0x%" PRIx64 ", last word %016" PRIx64,
             alike ? "" : "a mixture, first ", first >> 32, first & UINT32_MAX, last);
}

/* ---- the lists ---- */

void oracle_grow(struct oracle *o, uint32_t sectors)
{
    if (sectors > o->sectors_room) {
        o->heads = grown(o->heads, sectors, sizeof *o->heads);
        o->sectors_room = sectors;
    }
    while (o->sectors < sectors) {
        o->heads[o->sectors] = 0;
        oracle_add(o, 0, o->sectors, 1, VALUE_ZERO);
    }
}

void oracle_reset(struct oracle *o, uint32_t sectors, const uint32_t *values)
{
    if (!o->ops) {
        o->op_room = 1024;
        o->ops = grown(NULL, o->op_room, sizeof *o->ops);
        o->entry_room = 4096;
        o->entries = grown(NULL, o->entry_room, sizeof *o->entries);
    }
    o->time = 1;
    o->entry_count = 1; /* index 0 ends a list */
    o->free_entry = 0;
    o->op_count = 1;
    o->first_undurable = 1;
    o->durable_changes = 0;
    o->ops[0] = (struct oracle_op){.strong = true, .durable = true};
    memset(o->reads, 0, sizeof o->reads);
    o->sectors = 0;
    oracle_grow(o, sectors);
    for (uint32_t i = 0; values && i < sectors; i++)
        o->entries[o->heads[i]].value = values[i];
}

void oracle_free(struct oracle *o)
{
    free(o->heads);
    free(o->entries);
    free(o->ops);
    memset(o, 0, sizeof *o);
}

static uint64_t oldest_read(const struct oracle *o)
{
    uint64_t oldest = UINT64_MAX;

    for (uint32_t i = 0; i < ORACLE_READS_MAX; i++)
        if (o->reads[i])
            oldest = MIN(oldest, o->reads[i]);
    return oldest;
}

enum hidden_from { READER, KILLED, SURVIVOR };

static bool stays(const struct oracle_op *op, enum hidden_from whom)
{
    return whom == READER || op->durable || (whom == KILLED && op->outlives);
}

/* Entries acknowledged before this time are hidden, from a reader that began at read_begun, or from survivors
 * of a process's end or of a power cut. */
static uint64_t horizon(const struct oracle *o, uint32_t sector, uint64_t read_begun, enum hidden_from whom)
{
    uint64_t h = 0;

    for (uint32_t i = o->heads[sector]; i; i = o->entries[i].next) {
        const struct oracle_op *const op = &o->ops[o->entries[i].op];

        if (op->strong && op->acked <= read_begun && stays(op, whom))
            h = MAX(h, op->submitted);
    }
    return h;
}

/* Drop what neither a reader nor a survivor can see any more. */
static void prune(struct oracle *o, uint32_t sector, uint64_t oldest)
{
    const uint64_t h = horizon(o, sector, oldest, SURVIVOR);
    uint32_t *link = &o->heads[sector];

    while (*link) {
        const uint32_t i = *link;

        if (o->ops[o->entries[i].op].acked >= h) {
            link = &o->entries[i].next;
            continue;
        }
        *link = o->entries[i].next;
        o->entries[i].next = o->free_entry;
        o->free_entry = i;
    }
}

static void push(struct oracle *o, uint32_t sector, uint32_t op, uint32_t value)
{
    uint32_t i = o->free_entry;

    if (i) {
        o->free_entry = o->entries[i].next;
    } else {
        if (o->entry_count == o->entry_room) {
            o->entry_room *= 2;
            o->entries = grown(o->entries, o->entry_room, sizeof *o->entries);
        }
        i = o->entry_count++;
    }
    o->entries[i] = (struct oracle_entry){.next = o->heads[sector], .op = op, .value = value};
    o->heads[sector] = i;
}

/* ---- writes ---- */

uint32_t oracle_begin(struct oracle *o)
{
    if (o->op_count == o->op_room) {
        o->op_room *= 2;
        o->ops = grown(o->ops, o->op_room, sizeof *o->ops);
    }
    o->ops[o->op_count] = (struct oracle_op){.submitted = ++o->time, .acked = IN_FLIGHT};
    return o->op_count++;
}

void oracle_add(struct oracle *o, uint32_t op, uint32_t sector, uint32_t count, uint32_t value)
{
    const uint64_t oldest = oldest_read(o);

    invariant(sector + count <= o->sectors_room);
    for (uint32_t s = sector; s < sector + count; s++) {
        if (s >= o->sectors)
            o->sectors = s + 1; /* oracle_grow() has made the room */
        else
            prune(o, s, oldest);
        push(o, s, op, value);
    }
}

void oracle_end(struct oracle *o, uint32_t op, bool strong, bool durable, bool outlives)
{
    o->ops[op].acked = ++o->time;
    o->ops[op].strong = strong;
    o->ops[op].durable = strong && durable;
    o->ops[op].outlives = strong && outlives;
    o->durable_changes += o->ops[op].durable;
}

uint64_t oracle_flush_begin(struct oracle *o)
{
    return ++o->time;
}

void oracle_flush_end(struct oracle *o, uint64_t begun)
{
    bool all = true;

    o->durable_changes++;
    for (uint32_t i = o->first_undurable; i < o->op_count; i++) {
        struct oracle_op *const op = &o->ops[i];

        if (op->acked <= begun)
            op->durable = true;
        all &= op->durable;
        if (all)
            o->first_undurable = i + 1;
    }
}

/* ---- reads ---- */

uint32_t oracle_read_begin(struct oracle *o)
{
    uint32_t i = 0;

    while (o->reads[i])
        i++;
    invariant(i < ORACLE_READS_MAX);
    o->reads[i] = ++o->time;
    return i;
}

void oracle_read_cancel(struct oracle *o, uint32_t ticket)
{
    o->reads[ticket] = 0;
}

static bool allowed(const struct oracle *o, uint32_t sector, uint32_t value, uint64_t h)
{
    for (uint32_t i = o->heads[sector]; i; i = o->entries[i].next)
        if (o->entries[i].value == value && o->ops[o->entries[i].op].acked >= h)
            return true;
    return false;
}

static void complain(const struct oracle *o, uint32_t sector, const uint8_t *data, uint64_t h, char *text,
                     size_t room)
{
    char found[128];
    int n;

    describe(data, found, sizeof found);
    n = snprintf(text, room, "guest offset 0x%x has %s; allowed:", sector * ORACLE_SECTOR, found);
    for (uint32_t i = o->heads[sector]; i && n > 0 && (size_t)n < room; i = o->entries[i].next) {
        const struct oracle_op *const op = &o->ops[o->entries[i].op];

        n += snprintf(text + n, room - (size_t)n, " %s0x%x%s%s",
                      op->acked >= h ? "" : "hidden:", o->entries[i].value,
                      op->acked == IN_FLIGHT ? "(in flight)" : "", op->durable ? "(durable)" : "");
    }
}

/* A read that saw one of several finished writes says which of them was the last. */
static void settle(struct oracle *o, uint32_t sector, uint32_t value, uint64_t begun, uint64_t h,
                   uint32_t *settler)
{
    uint32_t candidates = 0;

    for (uint32_t i = o->heads[sector]; i; i = o->entries[i].next) {
        const uint64_t acked = o->ops[o->entries[i].op].acked;

        if (acked == IN_FLIGHT || acked > begun)
            return;
        candidates += acked >= h;
    }
    if (candidates < 2)
        return;
    if (!*settler) {
        *settler = oracle_begin(o);
        oracle_end(o, *settler, true, false, false);
    }
    push(o, sector, *settler, value);
}

bool oracle_read_end(struct oracle *o, uint32_t ticket, uint32_t sector, uint32_t count, const uint8_t *data,
                     char *text, size_t room)
{
    const uint64_t begun = o->reads[ticket];
    uint32_t settler = 0;

    o->reads[ticket] = 0;
    for (uint32_t s = sector; s < sector + count; s++, data += ORACLE_SECTOR) {
        const uint32_t value = stamp_value(data, (uint64_t)s * ORACLE_SECTOR);
        const uint64_t h = horizon(o, s, begun, READER);

        if (value == VALUE_BAD || !allowed(o, s, value, h)) {
            complain(o, s, data, h, text, room);
            return false;
        }
        settle(o, s, value, begun, h, &settler);
    }
    return true;
}

bool oracle_survivor(const struct oracle *o, uint32_t sector, bool killed, const uint8_t *data,
                     uint32_t *ret_value, char *text, size_t room)
{
    const uint32_t value = stamp_value(data, (uint64_t)sector * ORACLE_SECTOR);
    const uint64_t h = horizon(o, sector, UINT64_MAX - 1, killed ? KILLED : SURVIVOR);

    *ret_value = value;
    if (value != VALUE_BAD && allowed(o, sector, value, h))
        return true;
    complain(o, sector, data, h, text, room);
    return false;
}
