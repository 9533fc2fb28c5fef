/* SPDX-License-Identifier: MIT */
/* The client without a queue: quiesce, resize and blocking calls, one at a time, while the others go on. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "tests/sim/world.h"
#include "tests/unit/image_builder.h"

void control_plan(struct world *w, uint64_t *rng, uint32_t requests)
{
    const struct run_config *const c = &w->config;
    uint32_t at = 0;

    w->control_count = w->control_next = 0;
    w->completed = 0;
    for (uint32_t i = 0; i < ARRAY_COUNT(w->controls); i++) {
        struct op *const op = &w->controls[i];

        if (c->may_quiesce && random_below(rng, 4) == 0) {
            op->kind = OP_QUIESCE;
        } else if (c->may_resize && random_below(rng, 4) == 0) {
            op->kind = OP_RESIZE;
            op->count = 1 + (uint32_t)random_below(rng, random_below(rng, 2) ? 16 : 512);
        } else {
            continue;
        }
        at += (uint32_t)random_below(rng, requests / 2 + 1);
        w->control_at[w->control_count] = at;
        if (w->control_count != i)
            w->controls[w->control_count] = *op;
        w->control_count++;
    }
}

static uint32_t writes_in_flight(const struct world *w)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < w->client_count; i++)
        n += w->clients[i].writes_in_flight;
    return n;
}

static bool clients_finished(const struct world *w)
{
    for (uint32_t i = 0; i < w->client_count; i++)
        if (w->clients[i].in_flight || w->clients[i].next_op < w->clients[i].last_op)
            return false;
    return true;
}

bool control_ready(const struct world *w)
{
    if (w->sim->depth || w->controlling || w->control_next == w->control_count)
        return false;
    if (w->completed < w->control_at[w->control_next] && !clients_finished(w))
        return false;
    return !w->hold_writes || !writes_in_flight(w);
}

static void quiesce(struct world *w)
{
    const uint64_t begun = oracle_flush_begin(&w->oracle);
    int r;

    sim_trace(w->sim, "quiesce");
    r = scow_quiesce(w->image);
    if (r < 0) {
        if (!faults_explain(w, r))
            world_fail(w, "quiesce: %d, %s", r, scow_error());
        return;
    }
    oracle_flush_end(&w->oracle, begun);
    crash_look_visible(w);
}

static void resize(struct world *w, uint32_t more)
{
    const uint32_t sectors = MIN(w->sectors + more, DISK_SECTORS_MAX);
    int r;

    w->sectors_coming = MAX(w->sectors_coming, sectors);
    sim_trace(w->sim, "resize to %u sectors", sectors);
    r = scow_resize(w->image, (uint64_t)sectors * ORACLE_SECTOR, 0);
    if (r < 0) { /* the disk may have the new size all the same */
        if (!faults_explain(w, r) && !(r == -ENOTSUP && w->config.version == 2))
            world_fail(w, "resize to %u sectors: %d, %s", sectors, r, scow_error());
        return;
    }
    oracle_grow(&w->oracle, sectors);
    w->sectors = sectors;
}

void control_act(struct world *w)
{
    const struct op *const op = &w->controls[w->control_next];

    if (op->kind == OP_QUIESCE && !w->hold_writes) {
        w->hold_writes = true; /* come back when those in flight are done */
        return;
    }
    w->control_next++;
    w->controlling = true;
    w->sim->idle_steps = 0;
    if (op->kind == OP_QUIESCE)
        quiesce(w);
    else
        resize(w, op->count);
    w->sim->idle_steps = 0;
    w->controlling = false;
    w->hold_writes = false;
}
