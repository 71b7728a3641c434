/* roofline.h - a roofline plot as SVG: flop per byte against GFLOP/s, logarithmic. MIT.

   Dots carry numbers; the list below the plot names them. */
#ifndef ROOFLINE_H
#define ROOFLINE_H

#include <math.h>
#include <stdio.h>

enum { ROOF_DOTS = 80, ROOF_SLOPES = 3, ROOF_CEILINGS = 2 };
enum { ROOF__CARD = 1200, ROOF__LEFT = 60, ROOF__TOP = 50, ROOF__WIDE = 1110, ROOF__HIGH = 560 };
#define ROOF__FROM (-1.3) /* powers of ten of flop per byte */
#define ROOF__TO 3.2

typedef struct Roofline {
    const char *title, *slope_name[ROOF_SLOPES], *ceiling_name[ROOF_CEILINGS];
    double slope[ROOF_SLOPES];     /* GB/s, falling */
    double ceiling[ROOF_CEILINGS]; /* GFLOP/s, rising; the slopes end at the first */
    struct {
        char name[96];
        double intensity, rate; /* flop per byte; GFLOP/s */
    } dot[ROOF_DOTS];
    size_t dots;
    double lowest, highest; /* powers of ten of GFLOP/s, set by roofline_write */
} Roofline;

static inline double roof__x(double intensity) {
    return ROOF__LEFT + ROOF__WIDE * (log10(intensity) - ROOF__FROM) / (ROOF__TO - ROOF__FROM);
}
static inline double roof__y(const Roofline *p, double rate) {
    return ROOF__TOP + ROOF__HIGH * (p->highest - log10(rate)) / (p->highest - p->lowest);
}
static inline void roof__line(FILE *f, double x1, double y1, double x2, double y2,
                              const char *style) {
    fprintf(f, "<path d='M%.1f %.1fL%.1f %.1f' %s/>\n", x1, y1, x2, y2, style);
}
static inline void roof__text(FILE *f, double x, double y, const char *anchor, const char *text) {
    fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='%s'>%s</text>\n", x, y, anchor, text);
}

static inline void roof__grid(FILE *f, const Roofline *p) {
    const char *style = "stroke='#ddd'";
    double right = ROOF__LEFT + ROOF__WIDE, bottom = ROOF__TOP + ROOF__HIGH;
    char text[32];
    for (int e = (int)ceil(ROOF__FROM); e <= ROOF__TO; e++) {
        double x = roof__x(pow(10, e));
        roof__line(f, x, ROOF__TOP, x, bottom, style);
        snprintf(text, sizeof text, "%g", pow(10, e));
        roof__text(f, x, bottom + 18, "middle", text);
    }
    for (int e = (int)p->lowest; e <= p->highest; e++) {
        double y = roof__y(p, pow(10, e));
        roof__line(f, ROOF__LEFT, y, right, y, style);
        snprintf(text, sizeof text, "%g", pow(10, e));
        roof__text(f, ROOF__LEFT - 6, y + 4, "end", text);
    }
    roof__text(f, ROOF__LEFT + ROOF__WIDE / 2, bottom + 38, "middle", "flop per byte");
    roof__text(f, ROOF__LEFT + 6, ROOF__TOP + 14, "start", "GFLOP/s");
}

/* Bandwidth slopes as far as the first ceiling: GFLOP/s = GB/s * flop per byte. */
static inline void roof__limits(FILE *f, const Roofline *p) {
    double right = ROOF__LEFT + ROOF__WIDE, least = pow(10, ROOF__FROM);
    char text[128];
    for (int i = 0; i < ROOF_CEILINGS; i++) {
        double y = roof__y(p, p->ceiling[i]);
        roof__line(f, roof__x(p->ceiling[i] / p->slope[0]), y, right, y,
                   i ? "stroke='#777' stroke-dasharray='6 4'" : "stroke='#333' stroke-width='2'");
        snprintf(text, sizeof text, "%s: %.0f GFLOP/s", p->ceiling_name[i], p->ceiling[i]);
        roof__text(f, right - 6, y - 6, "end", text);
    }
    for (int i = 0; i < ROOF_SLOPES; i++) {
        double rate = p->slope[i], from = fmax(least, pow(10, p->lowest) / rate);
        roof__line(f, roof__x(from), roof__y(p, from * rate), roof__x(p->ceiling[0] / rate),
                   roof__y(p, p->ceiling[0]), "stroke='#333' stroke-width='1.5'");
        snprintf(text, sizeof text, "%s: %.0f GB/s", p->slope_name[i], rate);
        roof__text(f, roof__x(from) + 10, roof__y(p, from * rate) + 16 * i - 40, "start", text);
    }
}

static inline void roofline_write(FILE *f, Roofline *p) {
    size_t column = (p->dots + 2) / 3;
    double bottom = ROOF__TOP + ROOF__HIGH, height = bottom + 80 + 17 * (double)column;
    p->lowest = 1;
    p->highest = log10(p->ceiling[ROOF_CEILINGS - 1]) + 0.1;
    for (size_t i = 0; i < p->dots; i++) {
        p->lowest = fmin(p->lowest, log10(p->dot[i].rate));
        p->highest = fmax(p->highest, log10(p->dot[i].rate));
    }
    p->lowest = floor(p->lowest);
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %.0f' "
            "font-family='sans-serif' font-size='12' fill='#222'>\n<rect width='%d' height='%.0f' "
            "rx='8' fill='#fcfcfa' stroke='#999'/>\n<text x='%d' y='28' font-size='15'>%s</text>\n",
            ROOF__CARD, height, ROOF__CARD, height, ROOF__LEFT, p->title);
    roof__grid(f, p);
    roof__limits(f, p);
    for (size_t i = 0; i < p->dots; i++) {
        double x = roof__x(p->dot[i].intensity), y = roof__y(p, p->dot[i].rate);
        fprintf(f,
                "<circle cx='%.1f' cy='%.1f' r='3.5' fill='#1461b3' fill-opacity='.75'/>\n"
                "<text x='%.1f' y='%.1f' font-size='11' font-weight='bold'>%zu</text>\n"
                "<text x='%zu' y='%.0f'>%zu  %s</text>\n",
                x, y, x + 5, y - (i % 2 ? 5 : -12), i + 1, ROOF__LEFT + i / column * 380,
                bottom + 70 + 17 * (double)(i % column), i + 1, p->dot[i].name);
    }
    fprintf(f, "</svg>\n");
}
#endif
