/* SPDX-License-Identifier: MIT */
#include "cli/progress.h"

#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/units.h"

#define SHOW_INTERVAL_NS 100000000ull
/* Until then a rate says more about start-up than about the work. */
#define RATE_AFTER_NS 500000000ull
#define BAR_COLUMNS_MIN 10
#define BAR_COLUMNS_MAX 40

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static double percent_done(const struct progress *p, uint64_t done)
{
    return p->total ? 100.0 * (double)done / (double)p->total : 100.0;
}

static void show_plain(struct progress *p, uint64_t done)
{
    const double percent = percent_done(p, done);

    fprintf(p->out, "    (%3.2f/100%%)\r", percent);
    fflush(p->out);
}

static int terminal_columns(FILE *out)
{
    struct winsize size;

    if (ioctl(fileno(out), TIOCGWINSZ, &size) || size.ws_col < 40)
        return 80;
    return size.ws_col;
}

static void show_bar(struct progress *p, uint64_t done, uint64_t at_ns, bool ended)
{
    char rate[UNITS_TEXT_BYTES], left[UNITS_TEXT_BYTES], tail[128] = "";
    const double seconds = (double)(at_ns - p->started_ns) / 1e9;
    const double percent = percent_done(p, done);
    int tail_columns = 0;

    if (seconds > 0 && (ended || at_ns - p->started_ns >= RATE_AFTER_NS) && done) {
        const double per_second = (double)done / seconds;
        const double seconds_left = done < p->total ? (double)(p->total - done) / per_second : 0;
        if (p->bytes)
            tail_columns = snprintf(tail, sizeof tail, "  %s/s", units_size(rate, (uint64_t)per_second));
        snprintf(tail + tail_columns, sizeof tail - (size_t)tail_columns, "  %s %s",
                 units_duration(left, (uint64_t)((ended ? seconds : seconds_left) + 0.5)),
                 ended ? "in all" : "left");
    }
    int columns = terminal_columns(p->out) - 40;
    columns = columns < BAR_COLUMNS_MIN ? BAR_COLUMNS_MIN : columns;
    columns = columns > BAR_COLUMNS_MAX ? BAR_COLUMNS_MAX : columns;
    const int filled = (int)(percent / 100 * columns);
    fprintf(p->out, "\r%6.2f%% [", percent);
    for (int i = 0; i < columns; i++)
        fputc(i < filled ? '#' : '.', p->out);
    fprintf(p->out, "]%s\033[K", tail);
    fflush(p->out);
}

void progress_begin(struct progress *p, bool enabled, bool bytes, uint64_t total)
{
    *p = (struct progress){.enabled = enabled, .bytes = bytes, .out = stdout, .total = total};
    if (!enabled)
        return;
    p->terminal = isatty(fileno(p->out));
    p->started_ns = now_ns();
    if (!p->terminal)
        show_plain(p, 0);
}

static void progress_show(struct progress *p)
{
    const uint64_t at_ns = now_ns();
    uint64_t shown_ns = atomic_load_explicit(&p->shown_ns, memory_order_relaxed);

    if (at_ns - shown_ns < SHOW_INTERVAL_NS)
        return;
    /* Whoever moves the time on prints; the others go back to work. */
    if (!atomic_compare_exchange_strong(&p->shown_ns, &shown_ns, at_ns))
        return;
    const uint64_t done = atomic_load_explicit(&p->done, memory_order_relaxed);
    if (p->terminal)
        show_bar(p, done, at_ns, false);
    else
        show_plain(p, done);
}

void progress_add(struct progress *p, uint64_t count)
{
    if (!p->enabled)
        return;
    atomic_fetch_add_explicit(&p->done, count, memory_order_relaxed);
    progress_show(p);
}

void progress_set(struct progress *p, uint64_t done, uint64_t total)
{
    if (!p->enabled)
        return;
    p->total = total;
    atomic_store_explicit(&p->done, done, memory_order_relaxed);
    progress_show(p);
}

void progress_end(struct progress *p, bool complete)
{
    if (!p->enabled)
        return;
    const uint64_t done = complete ? p->total : atomic_load(&p->done);
    if (p->terminal)
        show_bar(p, done, now_ns(), true);
    else
        show_plain(p, done);
    fputc('\n', p->out);
    fflush(p->out);
    p->enabled = false;
}
