/* SPDX-License-Identifier: MIT */
/*
 * A writer for small SVG pictures. Coordinates are in pixels from the top left; colours are CSS colours. Text
 * is escaped. Errors show in ferror() of the stream.
 */
#ifndef CLI_SVG_H
#define CLI_SVG_H

#include <stdint.h>
#include <stdio.h>

/* Colours that stay apart in greyscale and for colour-blind readers. */
#define SVG_COLOR_INK "#222222"
#define SVG_COLOR_FAINT "#c8c8c8"
#define SVG_COLOR_PANEL "#f4f4f2"
extern const char *const svg_palette[8];

enum svg_anchor { SVG_START, SVG_MIDDLE, SVG_END };

struct svg_point {
    double x, y;
};

struct svg_rect_style {
    const char *fill;   /* NULL: none */
    const char *stroke; /* NULL: none */
    const char *title;  /* shown by viewers when pointed at; NULL: none */
};

struct svg_text_style {
    double size;      /* 0: 12 */
    const char *fill; /* NULL: SVG_COLOR_INK */
    enum svg_anchor anchor;
    double rotate; /* degrees clockwise about the text's origin */
    int bold;
};

/* title is for screen readers and the viewer's window. The background is white. */
void svg_begin(FILE *out, double width, double height, const char *title);
void svg_rect(FILE *out, double x, double y, double width, double height, const struct svg_rect_style *style);
void svg_line(FILE *out, double x1, double y1, double x2, double y2, const char *stroke, double stroke_width);
void svg_polyline(FILE *out, const struct svg_point *points, uint32_t count, const char *stroke,
                  double stroke_width);
void svg_circle(FILE *out, double x, double y, double radius, const char *fill);
/* style may be NULL. */
void svg_text(FILE *out, double x, double y, const struct svg_text_style *style, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
void svg_end(FILE *out);

#endif
