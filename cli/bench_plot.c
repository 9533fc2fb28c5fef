/* SPDX-License-Identifier: MIT */
/* IOPS over the number of queues: what was measured, the raw file's, and the straight line of one queue's
 * rate. */
#include "cli/bench_report.h"
#include "cli/command.h"
#include "cli/svg.h"
#include "cli/units.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PLOT_WIDTH 720.0
#define PLOT_HEIGHT 440.0
#define PLOT_LEFT 98.0
#define PLOT_RIGHT 150.0 /* room for the lines' names */
#define PLOT_TOP 64.0
#define PLOT_BOTTOM 56.0
#define LABEL_GAP 15.0

struct plot_scale {
    double queues_max;
    double iops_max, iops_step;
};

struct plot_label {
    double y;
    const char *text, *color;
};

static double x_of(const struct plot_scale *s, double queues)
{
    return PLOT_LEFT + queues / s->queues_max * (PLOT_WIDTH - PLOT_LEFT - PLOT_RIGHT);
}

static double y_of(const struct plot_scale *s, double iops)
{
    return PLOT_HEIGHT - PLOT_BOTTOM - iops / s->iops_max * (PLOT_HEIGHT - PLOT_TOP - PLOT_BOTTOM);
}

/* The smallest of 1, 2, 2.5, 5 times a power of ten that cuts max into at most six steps. */
static double round_step(double max)
{
    static const double nice[] = {1, 2, 2.5, 5, 10};
    const double rough = max / 6;
    const double power = pow(10, floor(log10(rough)));
    for (size_t i = 0; i < sizeof(nice) / sizeof(nice[0]); i++) {
        if (nice[i] * power >= rough)
            return nice[i] * power;
    }
    return 10 * power;
}

static double one_queue_iops(const struct bench_report *report)
{
    const struct bench_result *const first = &report->rows[0].result;
    return first->iops / first->queue_count;
}

/* The ideal line may run out at the top; measured points never do. */
static struct plot_scale make_scale(const struct bench_report *report)
{
    struct plot_scale s = {.queues_max = 1};
    double top = 1;
    for (uint32_t i = 0; i < report->row_count; i++) {
        const struct bench_row *const row = &report->rows[i];
        s.queues_max = fmax(s.queues_max, row->result.queue_count);
        top = fmax(top, row->result.iops);
        if (row->compared)
            top = fmax(top, row->raw.iops);
    }
    const double ideal = one_queue_iops(report) * s.queues_max;
    top = fmax(top, fmin(ideal, top * 1.5)) * 1.05;
    s.iops_step = round_step(top);
    s.iops_max = ceil(top / s.iops_step) * s.iops_step;
    return s;
}

static void draw_axes(const struct bench_report *report, const struct plot_scale *s)
{
    const struct svg_text_style right = {.anchor = SVG_END}, middle = {.anchor = SVG_MIDDLE};
    const struct svg_text_style turned = {.anchor = SVG_MIDDLE, .rotate = -90};
    char text[UNITS_TEXT_BYTES];
    for (double v = 0; v <= s->iops_max * 1.0001; v += s->iops_step) {
        svg_line(stdout, PLOT_LEFT, y_of(s, v), PLOT_WIDTH - PLOT_RIGHT, y_of(s, v), SVG_COLOR_FAINT,
                 v > 0 ? 0.6 : 1.2);
        svg_text(stdout, PLOT_LEFT - 8, y_of(s, v) + 4, &right, "%s", units_count(text, (uint64_t)(v + 0.5)));
    }
    double last_x = -100;
    for (uint32_t i = 0; i < report->row_count; i++) {
        const uint32_t count = report->rows[i].result.queue_count;
        const double x = x_of(s, count);
        svg_line(stdout, x, y_of(s, 0), x, y_of(s, 0) + 5, SVG_COLOR_INK, 1);
        if (x - last_x > 20) {
            svg_text(stdout, x, y_of(s, 0) + 19, &middle, "%u", count);
            last_x = x;
        }
    }
    svg_text(stdout, (x_of(s, 0) + x_of(s, s->queues_max)) / 2, PLOT_HEIGHT - 14, &middle,
             "queues, one thread each");
    svg_text(stdout, 16, (PLOT_TOP + PLOT_HEIGHT - PLOT_BOTTOM) / 2, &turned, "IOPS");
}

static void draw_line(const struct bench_report *report, const struct plot_scale *s, bool raw,
                      const char *color)
{
    struct svg_point *const points = calloc(report->row_count, sizeof(*points));
    if (!points)
        return;
    for (uint32_t i = 0; i < report->row_count; i++) {
        const struct bench_row *const row = &report->rows[i];
        points[i].x = x_of(s, row->result.queue_count);
        points[i].y = y_of(s, raw ? row->raw.iops : row->result.iops);
    }
    svg_polyline(stdout, points, report->row_count, color, 2);
    for (uint32_t i = 0; i < report->row_count; i++)
        svg_circle(stdout, points[i].x, points[i].y, 3.5, color);
    free(points);
}

static int compare_labels(const void *a, const void *b)
{
    const double x = ((const struct plot_label *)a)->y, y = ((const struct plot_label *)b)->y;
    return (x > y) - (x < y);
}

/* Names at the lines' right ends, pushed apart where the lines meet. */
static void draw_labels(struct plot_label *labels, uint32_t count)
{
    qsort(labels, count, sizeof(*labels), compare_labels);
    for (uint32_t i = 1; i < count; i++)
        labels[i].y = fmax(labels[i].y, labels[i - 1].y + LABEL_GAP);
    for (uint32_t i = 0; i < count; i++) {
        const struct svg_text_style style = {.fill = labels[i].color, .bold = 1};
        svg_text(stdout, PLOT_WIDTH - PLOT_RIGHT + 10, labels[i].y + 4, &style, "%s", labels[i].text);
    }
}

void bench_plot(const struct bench_report *report)
{
    const struct plot_scale s = make_scale(report);
    const struct svg_text_style heading = {.size = 15, .bold = 1};
    const struct svg_text_style small = {.size = 11};
    const struct bench_plan *const plan = report->plan;
    const struct bench_row *const last = &report->rows[report->row_count - 1];
    const double one = one_queue_iops(report);
    const double ideal_end = fmin(s.queues_max, s.iops_max / one);
    const char *const ideal = "one queue × n";
    const char *const kind = report->info ? "image" : "raw file";
    struct plot_label labels[3];
    uint32_t label_count = 0;
    char name[4096], block[UNITS_TEXT_BYTES];

    svg_begin(stdout, PLOT_WIDTH, PLOT_HEIGHT, "IOPS over queues");
    svg_text(stdout, PLOT_LEFT, 26, &heading, "%s", command_quote(name, sizeof(name), report->path));
    svg_text(stdout, PLOT_LEFT, 44, &small, "%s of %s, depth %u per queue; %s",
             plan->pattern == BENCH_RANDREAD ? "random reads" : "sequential reads",
             units_size(block, plan->block_bytes), plan->depth,
             report->info ? report->info->backend : report->raw->description);
    draw_axes(report, &s);

    svg_line(stdout, x_of(&s, 0), y_of(&s, 0), x_of(&s, ideal_end), y_of(&s, one * ideal_end), svg_palette[6],
             1.2);
    if (ideal_end < s.queues_max) {
        /* It leaves the picture early: named where it does. */
        const struct svg_text_style faint = {.fill = svg_palette[6], .bold = 1};
        svg_text(stdout, x_of(&s, ideal_end) + 8, y_of(&s, one * ideal_end) + 16, &faint, "%s", ideal);
    } else {
        labels[label_count++] = (struct plot_label){y_of(&s, one * ideal_end), ideal, svg_palette[6]};
    }
    if (last->compared) {
        draw_line(report, &s, true, svg_palette[1]);
        labels[label_count++] = (struct plot_label){y_of(&s, last->raw.iops), "raw file", svg_palette[1]};
    }
    draw_line(report, &s, false, svg_palette[0]);
    labels[label_count++] = (struct plot_label){y_of(&s, last->result.iops), kind, svg_palette[0]};
    draw_labels(labels, label_count);
    svg_end(stdout);
}
