/* bench/roofline.h - a roofline plot as SVG: flop per byte against GFLOP/s, logarithmic. MIT.

   A card of its own colour, so that it reads on any page; dots carry numbers, each in the nearest
   place where it covers nothing, and the list below says what they are. */
#ifndef ROOFLINE_H
#define ROOFLINE_H
#include <math.h>
#include <stdio.h>

enum { ROOF_DOTS = 80, ROOF_SLOPES = 3, ROOF_CEILINGS = 2 };
enum { ROOF__CARD = 1200, ROOF__LEFT = 60, ROOF__TOP = 50, ROOF__WIDE = 1110, ROOF__HIGH = 560 };

typedef struct RoofDot {
    char name[96];
    const char *colour;
    double intensity, rate;        /* flop per byte; GFLOP/s */
    double x, y, label_x, label_y; /* set by roofline_write */
} RoofDot;

typedef struct Roofline {
    const char *title, *slope_name[ROOF_SLOPES], *ceiling_name[ROOF_CEILINGS];
    double slope[ROOF_SLOPES];     /* GB/s, falling */
    double ceiling[ROOF_CEILINGS]; /* GFLOP/s, rising; the slopes end at the first */
    RoofDot dot[ROOF_DOTS];
    size_t dots;
    double lowest, highest; /* powers of ten of GFLOP/s, set by roofline_write */
} Roofline;

#define ROOF__FROM (-1.3) /* powers of ten of flop per byte */
#define ROOF__TO 3.2

static inline double roof__x(double intensity) {
    return ROOF__LEFT + ROOF__WIDE * (log10(intensity) - ROOF__FROM) / (ROOF__TO - ROOF__FROM);
}
static inline double roof__y(const Roofline *p, double rate) {
    return ROOF__TOP + ROOF__HIGH * (p->highest - log10(rate)) / (p->highest - p->lowest);
}

/* Is a label at (x, y) clear of the frame, of all dots, and of the first `labels` labels? */
static inline int roof__free(const Roofline *p, size_t labels, double x, double y) {
    if (x < ROOF__LEFT + 10 || x > ROOF__LEFT + ROOF__WIDE - 10) return 0;
    if (y < ROOF__TOP + 8 || y > ROOF__TOP + ROOF__HIGH - 8) return 0;
    for (const RoofDot *d = p->dot; d < p->dot + p->dots; d++)
        if (fabs(x - d->x) < 12 && fabs(y - d->y) < 10) return 0;
    for (const RoofDot *d = p->dot; d < p->dot + labels; d++)
        if (fabs(x - d->label_x) < 17 && fabs(y - d->label_y) < 13) return 0;
    return 1;
}

static inline void roof__place(Roofline *p) {
    p->lowest = 1;
    p->highest = log10(p->ceiling[ROOF_CEILINGS - 1]) + 0.1;
    for (size_t i = 0; i < p->dots; i++) {
        p->lowest = fmin(p->lowest, log10(p->dot[i].rate));
        p->highest = fmax(p->highest, log10(p->dot[i].rate));
    }
    p->lowest = floor(p->lowest);
    for (RoofDot *d = p->dot; d < p->dot + p->dots; d++)
        d->x = roof__x(d->intensity), d->y = roof__y(p, d->rate);
    for (size_t i = 0; i < p->dots; i++)
        for (int try = 0, placed = 0; try < 640 && !placed; try++) {
            double away = 12 + 5 * floor(try / 16.0), angle = try % 16 * 0.392699081698724;
            RoofDot *d = &p->dot[i];
            d->label_x = d->x + away * cos(angle);
            d->label_y = d->y - away * sin(angle);
            placed = roof__free(p, i, d->label_x, d->label_y);
        }
}

static inline void roof__line(FILE *f, double x1, double y1, double x2, double y2,
                              const char *style) {
    fprintf(f, "<path d='M%.1f %.1fL%.1f %.1f' %s/>\n", x1, y1, x2, y2, style);
}

static inline void roof__grid(FILE *f, const Roofline *p) {
    const char *style = "stroke='#ddd'";
    double right = ROOF__LEFT + ROOF__WIDE, bottom = ROOF__TOP + ROOF__HIGH;
    for (int e = (int)ceil(ROOF__FROM); e <= ROOF__TO; e++) {
        double x = roof__x(pow(10, e));
        roof__line(f, x, ROOF__TOP, x, bottom, style);
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='middle'>%g</text>\n", x, bottom + 18,
                pow(10, e));
    }
    for (int e = (int)p->lowest; e <= p->highest; e++) {
        double y = roof__y(p, pow(10, e));
        roof__line(f, ROOF__LEFT, y, right, y, style);
        fprintf(f, "<text x='%d' y='%.1f' text-anchor='end'>%g</text>\n", ROOF__LEFT - 6, y + 4,
                pow(10, e));
    }
    fprintf(f, "<text x='%d' y='%.1f' text-anchor='middle'>flop per byte</text>\n",
            ROOF__LEFT + ROOF__WIDE / 2, bottom + 38);
    fprintf(f, "<text x='%d' y='%d'>GFLOP/s</text>\n", ROOF__LEFT + 6, ROOF__TOP + 14);
}

/* Bandwidth slopes as far as the first ceiling: GFLOP/s = GB/s * flop per byte. */
static inline void roof__limits(FILE *f, const Roofline *p) {
    double right = ROOF__LEFT + ROOF__WIDE, least = pow(10, ROOF__FROM);
    double steep = ROOF__HIGH / (p->highest - p->lowest) / ROOF__WIDE * (ROOF__TO - ROOF__FROM);
    for (int i = 0; i < ROOF_CEILINGS; i++) {
        double y = roof__y(p, p->ceiling[i]);
        roof__line(f, roof__x(p->ceiling[i] / p->slope[0]), y, right, y,
                   i ? "stroke='#777' stroke-width='1.5' stroke-dasharray='6 4'"
                     : "stroke='#333' stroke-width='2'");
        fprintf(f, "<text x='%.1f' y='%.1f' text-anchor='end'>%s: %.0f GFLOP/s</text>\n", right - 6,
                y - 6, p->ceiling_name[i], p->ceiling[i]);
    }
    for (int i = 0; i < ROOF_SLOPES; i++) {
        double rate = p->slope[i], from = fmax(least, pow(10, p->lowest) / rate);
        double x = roof__x(from * 1.05), y = roof__y(p, from * 1.05 * rate);
        roof__line(f, roof__x(from), roof__y(p, from * rate), roof__x(p->ceiling[0] / rate),
                   roof__y(p, p->ceiling[0]), "stroke='#333' stroke-width='1.5'");
        fprintf(f,
                "<text transform='translate(%.1f %.1f) rotate(%.2f) translate(0 %d)'>%s: %.0f GB/s"
                "</text>\n",
                x, y, -atan(steep) * 57.2957795, i == ROOF_SLOPES - 1 ? 15 : -5, p->slope_name[i],
                rate);
    }
}

static inline void roofline_write(FILE *f, Roofline *p) {
    size_t column = (p->dots + 2) / 3;
    double bottom = ROOF__TOP + ROOF__HIGH, height = bottom + 80 + 17 * (double)column;
    roof__place(p);
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %.0f' "
            "font-family='sans-serif' font-size='12' fill='#222'>\n<rect width='%d' height='%.0f' "
            "rx='8' fill='#fcfcfa' stroke='#999'/>\n<text x='%d' y='28' font-size='15'>%s</text>\n",
            ROOF__CARD, height, ROOF__CARD, height, ROOF__LEFT, p->title);
    roof__grid(f, p);
    roof__limits(f, p);
    for (const RoofDot *d = p->dot; d < p->dot + p->dots; d++) {
        if (hypot(d->label_x - d->x, d->label_y - d->y) > 13)
            roof__line(f, d->x, d->y, d->label_x, d->label_y, "stroke='#777' stroke-width='.6'");
        fprintf(f, "<circle cx='%.1f' cy='%.1f' r='3.5' fill='%s' fill-opacity='.75'/>\n", d->x,
                d->y, d->colour);
    }
    for (size_t i = 0; i < p->dots; i++) {
        const RoofDot *d = &p->dot[i];
        fprintf(f,
                "<text x='%.1f' y='%.1f' text-anchor='middle' font-size='11' font-weight='bold' "
                "fill='%s' stroke='#fcfcfa' stroke-width='3' paint-order='stroke'>%zu</text>\n"
                "<text x='%zu' y='%.0f' fill='%s'>%zu  %s</text>\n",
                d->label_x, d->label_y + 4, d->colour, i + 1, ROOF__LEFT + i / column * 380,
                bottom + 70 + 17 * (double)(i % column), d->colour, i + 1, d->name);
    }
    fprintf(f, "</svg>\n");
}
#endif
