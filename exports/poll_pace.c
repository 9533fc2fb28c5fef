/* SPDX-License-Identifier: MIT */
#include "exports/poll_pace.h"

/* So many waits in a row have to end within the limit before polling begins. */
#define SHORT_WAITS 8u
/* So many polled waits tell whether it pays: whether half of the limit was enough on average. */
#define POLLED_WAITS 256u
/* So many waits go by before it is tried again where it has not paid: the first time, four times as many the
 * next, and at most. */
#define PAUSE_WAITS 64u
#define PAUSE_WAITS_MAX 16384u

void poll_pace_init(struct poll_pace *p, uint64_t limit_ns)
{
    *p = (struct poll_pace){.limit_ns = limit_ns, .next_pause = PAUSE_WAITS};
}

bool poll_pace_pays(const struct poll_pace *p)
{
    return p->limit_ns && p->short_waits >= SHORT_WAITS && !p->pause;
}

static void judge(struct poll_pace *p)
{
    if (p->polled_ns / POLLED_WAITS <= p->limit_ns / 2) {
        p->next_pause = PAUSE_WAITS;
    } else {
        p->pause = p->next_pause;
        if (p->next_pause < PAUSE_WAITS_MAX)
            p->next_pause *= 4;
    }
    p->polled_waits = 0;
    p->polled_ns = 0;
}

void poll_pace_add(struct poll_pace *p, uint64_t waited_ns, bool polled)
{
    if (waited_ns > p->limit_ns)
        p->short_waits = 0;
    else if (p->short_waits < SHORT_WAITS)
        p->short_waits++;
    if (p->pause)
        p->pause--;
    if (polled) {
        p->polled_ns += waited_ns;
        if (++p->polled_waits == POLLED_WAITS)
            judge(p);
    }
}
