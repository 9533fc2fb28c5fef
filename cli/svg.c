/* SPDX-License-Identifier: MIT */
#include "cli/svg.h"

#include <stdarg.h>
#include <stdlib.h>

/* Okabe and Ito's set, without its yellow, which white paper swallows. */
const char *const svg_palette[8] = {
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#222222",
};

static void svg_escape(FILE *out, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '&')
            fputs("&amp;", out);
        else if (*p == '<')
            fputs("&lt;", out);
        else if (*p == '>')
            fputs("&gt;", out);
        else if (*p == '"')
            fputs("&quot;", out);
        else if (*p < 0x20 || *p == 0x7f)
            fputc('?', out);
        else
            fputc(*p, out);
    }
}

void svg_begin(FILE *out, double width, double height, const char *title)
{
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" viewBox=\"0 0 %g %g\" "
            "font-family=\"'DejaVu Sans', 'Helvetica Neue', Arial, sans-serif\">\n<title>",
            width, height, width, height);
    svg_escape(out, title);
    fprintf(out, "</title>\n<rect width=\"%g\" height=\"%g\" fill=\"white\"/>\n", width, height);
}

void svg_rect(FILE *out, double x, double y, double width, double height, const struct svg_rect_style *style)
{
    fprintf(out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"", x, y, width,
            height, style->fill ? style->fill : "none");
    if (style->stroke)
        fprintf(out, " stroke=\"%s\"", style->stroke);
    if (!style->title) {
        fputs("/>\n", out);
        return;
    }
    fputs("><title>", out);
    svg_escape(out, style->title);
    fputs("</title></rect>\n", out);
}

void svg_line(FILE *out, double x1, double y1, double x2, double y2, const char *stroke, double stroke_width)
{
    fprintf(out,
            "<line x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\" stroke=\"%s\" stroke-width=\"%g\"/>\n", x1,
            y1, x2, y2, stroke, stroke_width);
}

void svg_polyline(FILE *out, const struct svg_point *points, uint32_t count, const char *stroke,
                  double stroke_width)
{
    fprintf(out,
            "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%g\" stroke-linejoin=\"round\" points=\"",
            stroke, stroke_width);
    for (uint32_t i = 0; i < count; i++)
        fprintf(out, "%s%.2f,%.2f", i ? " " : "", points[i].x, points[i].y);
    fputs("\"/>\n", out);
}

void svg_circle(FILE *out, double x, double y, double radius, const char *fill)
{
    fprintf(out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%g\" fill=\"%s\"/>\n", x, y, radius, fill);
}

void svg_text(FILE *out, double x, double y, const struct svg_text_style *style, const char *fmt, ...)
{
    static const struct svg_text_style plain = {0};
    static const char *const anchors[] = {"start", "middle", "end"};
    char *text = NULL;
    va_list args;
    int bytes;

    if (!style)
        style = &plain;
    va_start(args, fmt);
    bytes = vasprintf(&text, fmt, args);
    va_end(args);
    if (bytes < 0)
        return;
    fprintf(out, "<text x=\"%.2f\" y=\"%.2f\" font-size=\"%g\" fill=\"%s\" text-anchor=\"%s\"", x, y,
            style->size > 0 ? style->size : 12, style->fill ? style->fill : SVG_COLOR_INK,
            anchors[style->anchor]);
    if (style->bold)
        fputs(" font-weight=\"bold\"", out);
    if (style->rotate != 0)
        fprintf(out, " transform=\"rotate(%g %.2f %.2f)\"", style->rotate, x, y);
    fputc('>', out);
    svg_escape(out, text);
    fputs("</text>\n", out);
    free(text);
}

void svg_end(FILE *out)
{
    fputs("</svg>\n", out);
}
