/* SPDX-License-Identifier: MIT */
#include "cli/map_picture.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "cli/map_compressed.h"
#include "cli/map_walk.h"
#include "cli/svg.h"
#include "cli/units.h"

#define WIDTH 1100
#define HEIGHT 640
#define PLOT_X 92.0
#define PLOT_Y 84.0
#define PLOT_WIDTH 720.0
#define PLOT_HEIGHT 400.0
#define STRIP_Y (PLOT_Y + PLOT_HEIGHT + 18)
#define STRIP_HEIGHT 44.0
#define LEGEND_X (PLOT_X + PLOT_WIDTH + 32)
#define COLUMNS 720 /* of the strip: one per pixel */

/* Dots that fall into a cell that has one already are not drawn, which bounds the file. */
#define CELL 2.0
#define DOT 3.0
#define CELLS_ACROSS 361
#define CELLS_UP 201

#define LAYERS 6 /* deeper ones share the last colour */

enum kind { KIND_LAYER, KIND_COMPRESSED = LAYERS, KIND_ZERO, KIND_HOLE, KIND_COUNT };

struct layer {
    uint64_t bytes;
    uint64_t extents;
    uint64_t jumps; /* extents that do not begin where the one before ended on the host */
    uint64_t next_host_off;
    char name[64];
};

struct picture {
    FILE *out;
    struct scow_image *image;
    uint64_t start, end;
    uint64_t host_end;
    struct layer layers[LAYERS];
    uint64_t bytes[KIND_COUNT];
    double columns[COLUMNS][KIND_COUNT];
    struct compressed_map compressed;
    bool can_place_compressed;
    uint8_t drawn[CELLS_ACROSS][CELLS_UP];
};

static const char *kind_color(unsigned kind)
{
    if (kind == KIND_COMPRESSED)
        return "#8c2d8c";
    if (kind == KIND_ZERO)
        return SVG_COLOR_FAINT;
    if (kind == KIND_HOLE)
        return "white";
    return svg_palette[kind];
}

static unsigned extent_kind(const struct scow_extent *e)
{
    if (e->flags & SCOW_EXTENT_ZERO)
        return e->flags & SCOW_EXTENT_PRESENT ? KIND_ZERO : KIND_HOLE;
    if (!(e->flags & SCOW_EXTENT_DATA))
        return KIND_HOLE;
    if (e->flags & SCOW_EXTENT_COMPRESSED)
        return KIND_COMPRESSED;
    return e->depth < LAYERS ? e->depth : LAYERS - 1;
}

static void count_columns(struct picture *p, const struct scow_extent *e, unsigned kind)
{
    const double per_column = (double)(p->end - p->start) / COLUMNS;
    double from = (double)(e->off - p->start) / per_column;
    const double to = from + (double)e->bytes / per_column;

    while (from < to) {
        const int column = (int)from;
        const double next = column + 1 < to ? column + 1 : to;
        if (column >= COLUMNS || next <= from)
            break;
        p->columns[column][kind] += next - from;
        from = next;
    }
}

static void count_layer(struct picture *p, const struct scow_extent *e, uint64_t host_off)
{
    struct layer *layer = &p->layers[e->depth < LAYERS ? e->depth : LAYERS - 1];
    const char *name = e->host_path ? strrchr(e->host_path, '/') : NULL;

    layer->bytes += e->bytes;
    layer->jumps += layer->extents && layer->next_host_off != host_off;
    layer->extents++;
    layer->next_host_off = host_off + e->bytes;
    if (!*layer->name && e->host_path)
        command_quote(layer->name, sizeof layer->name, name ? name + 1 : e->host_path);
    if (p->host_end < host_off + e->bytes)
        p->host_end = host_off + e->bytes;
}

/* Calls place for each cluster of a compressed extent whose stream can be found. */
static void place_compressed(struct picture *p, const struct scow_extent *e,
                             void (*place)(struct picture *, uint64_t guest_off, uint64_t host_off))
{
    const uint64_t cluster_bytes = 1ull << p->compressed.cluster_bits;
    uint64_t host_off;

    if (!p->can_place_compressed || e->depth)
        return;
    for (uint64_t off = e->off; off < e->off + e->bytes; off = (off / cluster_bytes + 1) * cluster_bytes)
        if (!compressed_map_lookup(&p->compressed, off, &host_off))
            place(p, off, host_off);
}

static void measure_stream(struct picture *p, uint64_t guest_off, uint64_t host_off)
{
    (void)guest_off;
    if (p->host_end < host_off)
        p->host_end = host_off;
}

static int measure_extent(void *ctx, const struct scow_extent *e)
{
    struct picture *p = ctx;
    const unsigned kind = extent_kind(e);

    p->bytes[kind] += e->bytes;
    count_columns(p, e, kind);
    if (kind == KIND_COMPRESSED)
        place_compressed(p, e, measure_stream);
    else if (kind < KIND_COMPRESSED && (e->flags & SCOW_EXTENT_HOST_OFF))
        count_layer(p, e, e->host_off);
    return 0;
}

static double plot_x(const struct picture *p, uint64_t guest_off)
{
    return PLOT_X + (double)(guest_off - p->start) * PLOT_WIDTH / (double)(p->end - p->start);
}

static double plot_y(const struct picture *p, uint64_t host_off)
{
    return PLOT_Y + PLOT_HEIGHT - (double)host_off * PLOT_HEIGHT / (double)p->host_end;
}

static void draw_dot(struct picture *p, uint64_t guest_off, uint64_t host_off, const char *color)
{
    const double x = plot_x(p, guest_off), y = plot_y(p, host_off);
    const int across = (int)((x - PLOT_X) / CELL), up = (int)((y - PLOT_Y) / CELL);

    if (across < 0 || across >= CELLS_ACROSS || up < 0 || up >= CELLS_UP || p->drawn[across][up])
        return;
    p->drawn[across][up] = 1;
    svg_rect(p->out, PLOT_X + across * CELL, PLOT_Y + up * CELL - DOT / 2, DOT, DOT,
             &(struct svg_rect_style){.fill = color});
}

static void draw_stream(struct picture *p, uint64_t guest_off, uint64_t host_off)
{
    draw_dot(p, guest_off, host_off, kind_color(KIND_COMPRESSED));
}

static int draw_extent(void *ctx, const struct scow_extent *e)
{
    struct picture *p = ctx;
    const unsigned kind = extent_kind(e);

    if (kind == KIND_COMPRESSED)
        place_compressed(p, e, draw_stream);
    if (kind >= KIND_COMPRESSED || !(e->flags & SCOW_EXTENT_HOST_OFF))
        return 0;
    const double x = plot_x(p, e->off), y = plot_y(p, e->host_off);
    const double x_end = plot_x(p, e->off + e->bytes), y_end = plot_y(p, e->host_off + e->bytes);
    if (x_end - x < CELL && y - y_end < CELL)
        draw_dot(p, e->off, e->host_off, kind_color(kind));
    else
        svg_line(p->out, x, y, x_end, y_end, kind_color(kind), 2.5);
    return 0;
}

/* A power of two that divides range into at most eight parts. */
static uint64_t tick_step(uint64_t range)
{
    uint64_t step = 512;

    while (range / step > 8)
        step *= 2;
    return step;
}

static void draw_axes(struct picture *p)
{
    const struct svg_text_style left = {.size = 11, .anchor = SVG_END},
                                middle = {.size = 11, .anchor = SVG_MIDDLE};
    const uint64_t guest_step = tick_step(p->end - p->start), host_step = tick_step(p->host_end);
    char text[UNITS_TEXT_BYTES];

    svg_rect(p->out, PLOT_X, PLOT_Y, PLOT_WIDTH, PLOT_HEIGHT,
             &(struct svg_rect_style){.fill = SVG_COLOR_PANEL, .stroke = SVG_COLOR_FAINT});
    for (uint64_t off = 0; off <= p->host_end; off += host_step) {
        const double y = plot_y(p, off);
        svg_line(p->out, PLOT_X - 5, y, PLOT_X + PLOT_WIDTH, y, "#dddddd", 1);
        svg_text(p->out, PLOT_X - 9, y + 4, &left, "%s", units_size(text, off));
    }
    for (uint64_t off = (p->start + guest_step - 1) / guest_step * guest_step; off <= p->end;
         off += guest_step) {
        const double x = plot_x(p, off);
        svg_line(p->out, x, PLOT_Y, x, STRIP_Y + STRIP_HEIGHT + 5, "#dddddd", 1);
        svg_text(p->out, x, STRIP_Y + STRIP_HEIGHT + 19, &middle, "%s", units_size(text, off));
    }
    svg_text(p->out, 22, PLOT_Y + PLOT_HEIGHT / 2,
             &(struct svg_text_style){.size = 13, .anchor = SVG_MIDDLE, .rotate = -90},
             "offset in the host's file");
    svg_text(p->out, PLOT_X + PLOT_WIDTH / 2, STRIP_Y + STRIP_HEIGHT + 42,
             &(struct svg_text_style){.size = 13, .anchor = SVG_MIDDLE}, "offset on the guest's disk");
    svg_text(p->out, PLOT_X - 9, STRIP_Y + STRIP_HEIGHT / 2 + 4, &left, "content");
}

/* One stack of kinds per column; columns that are the same become one rectangle. */
static void draw_strip(struct picture *p)
{
    int column = 0;

    while (column < COLUMNS) {
        int next = column + 1;
        double y = STRIP_Y + STRIP_HEIGHT;
        while (next < COLUMNS && !memcmp(p->columns[column], p->columns[next], sizeof p->columns[column]))
            next++;
        for (unsigned kind = 0; kind < KIND_COUNT; kind++) {
            const double height = p->columns[column][kind] * STRIP_HEIGHT;
            if (height <= 0)
                continue;
            y -= height;
            svg_rect(p->out, PLOT_X + column, y, next - column, height,
                     &(struct svg_rect_style){.fill = kind_color(kind)});
        }
        column = next;
    }
    svg_rect(p->out, PLOT_X, STRIP_Y, PLOT_WIDTH, STRIP_HEIGHT,
             &(struct svg_rect_style){.stroke = "#888888"});
}

static double draw_legend_row(struct picture *p, double y, unsigned kind, const char *label)
{
    char size[UNITS_TEXT_BYTES];

    svg_rect(p->out, LEGEND_X, y - 11, 14, 14,
             &(struct svg_rect_style){.fill = kind_color(kind), .stroke = "#888888"});
    svg_text(p->out, LEGEND_X + 22, y, NULL, "%s", label);
    svg_text(p->out, LEGEND_X + 22, y + 16, &(struct svg_text_style){.size = 11, .fill = "#666666"}, "%s",
             units_size(size, p->bytes[kind]));
    return y + 40;
}

static void draw_legend(struct picture *p)
{
    static const char *const labels[] = {"compressed", "zero clusters", "holes"};
    double y = PLOT_Y + 12;

    for (unsigned i = 0; i < LAYERS; i++) {
        const struct layer *layer = &p->layers[i];
        char label[128], count[UNITS_TEXT_BYTES], mean[UNITS_TEXT_BYTES];
        if (!p->bytes[i])
            continue;
        if (i)
            snprintf(label, sizeof label, "layer %u: %.20s", i, layer->name);
        else
            snprintf(label, sizeof label, "%.28s", *layer->name ? layer->name : "the image");
        y = draw_legend_row(p, y, i, label);
        if (layer->extents)
            svg_text(p->out, LEGEND_X + 22, y - 8, &(struct svg_text_style){.size = 11, .fill = "#666666"},
                     "in %s %s, %s on average", units_count(count, layer->jumps + 1),
                     layer->jumps ? "runs" : "run", units_size(mean, layer->bytes / (layer->jumps + 1)));
        y += 18;
    }
    for (unsigned kind = KIND_COMPRESSED; kind < KIND_COUNT; kind++)
        if (p->bytes[kind])
            y = draw_legend_row(p, y, kind, labels[kind - KIND_COMPRESSED]);
}

static void draw(struct picture *p, const char *path)
{
    char name[256], size[UNITS_TEXT_BYTES], first[UNITS_TEXT_BYTES], title[320];
    const char *base = strrchr(path, '/');

    command_quote(name, sizeof name, base ? base + 1 : path);
    snprintf(title, sizeof title, "Map of %s", name);
    svg_begin(p->out, WIDTH, HEIGHT, title);
    svg_text(p->out, PLOT_X, 36, &(struct svg_text_style){.size = 19, .bold = 1}, "%s", title);
    svg_text(p->out, PLOT_X, 60, &(struct svg_text_style){.size = 13, .fill = "#555555"},
             "%s from offset %s on. A rising line is data in order; dots apart are fragments.",
             units_size(size, p->end - p->start), units_size(first, p->start));
    draw_axes(p);
}

int map_picture(FILE *out, struct scow_image *image, const char *path, uint64_t start, uint64_t end)
{
    struct picture *p = calloc(1, sizeof *p);
    int err;

    if (!p) {
        command_error(path, "out of memory");
        return -ENOMEM;
    }
    if (start >= end) {
        command_error(path, "there is nothing to draw in an empty range");
        free(p);
        return -EINVAL;
    }
    p->out = out;
    p->image = image;
    p->start = start;
    p->end = end;
    p->can_place_compressed = !compressed_map_init(&p->compressed, image);
    err = map_walk(image, start, end, false, measure_extent, p);
    if (!err) {
        p->host_end += !p->host_end;
        draw(p, path);
        err = map_walk(image, start, end, false, draw_extent, p);
    }
    if (!err) {
        draw_strip(p);
        draw_legend(p);
        svg_end(out);
    }
    free(p);
    return err;
}
