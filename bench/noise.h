/* noise.h - zero-mean noise by hash, for gradients of synthetic problems. C11, MIT.

     gaussian   sqrt(-2 log u) cos(2 pi v)            Box and Muller 1958; variance 1
     laplace    the quantile function at u            variance 1
     skewed     2 with probability 1/5, else -1/2     variance 1, median -1/2: the sign of
                g + scale x is wrong with probability 4/5 while 0 < g < scale / 2, though its mean
                is g. Under such noise signSGD fails (Karimireddy et al. 2019, arXiv 1901.09847)
     student    sqrt(NU (u^(-2/NU) - 1)) cos(2 pi v)  exactly Student's t with NU > 1 degrees of
                freedom (Bailey 1994, Math. Comp. 62). Not standardised: the variance is
                NU / (NU - 2), infinite for NU <= 2; for NU <= 1 there is no mean

   u and v are uniform in (0, 1), from base_hash(key, 2 index) and base_hash(key, 2 index + 1): a
   value is a function of key and index only.

     Noise noise;
     noise_parse(&noise, "student:1.5,0.01", error, sizeof error);
     noise_add(g, n, &noise, key, 0);

   Nothing is allocated; any thread on distinct vectors. Values are drawn in double, rounded once to
   fp32 and added in fp32; log, cos and expm1 are libm's, so another C library may change last bits.
*/
#ifndef NOISE_H
#define NOISE_H

#include "../lib/base.h"

typedef struct NoiseKind {
    const char *name;
    const char *arguments; /* what follows the name and a colon: "SCALE" or "NU,SCALE" */
    double (*draw)(uint64_t key, uint64_t index, double nu); /* zero mean, unit scale */
} NoiseKind;

typedef struct Noise {
    const NoiseKind *row; /* NULL: none */
    double nu;            /* degrees of freedom, 0 where the row has none */
    double scale;
} Noise;

/* ------------------------------------------------------------------------------------------------
 * kinds */

/* Uniform in (0, 1), symmetric about 1/2. */
static inline double noise__uniform(uint64_t key, uint64_t index) {
    return ((double)(base_hash(key, index) >> 11) + 0.5) * 0x1p-53;
}

static inline double noise__gaussian(uint64_t key, uint64_t index, double nu) {
    (void)nu;
    double u = noise__uniform(key, 2 * index), v = noise__uniform(key, 2 * index + 1);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static inline double noise__laplace(uint64_t key, uint64_t index, double nu) {
    (void)nu;
    double u = noise__uniform(key, 2 * index), root_half = 0.70710678118654752;
    return u < 0.5 ? root_half * log(2 * u) : -root_half * log(2 * (1 - u));
}

static inline double noise__skewed(uint64_t key, uint64_t index, double nu) {
    (void)nu;
    return noise__uniform(key, 2 * index) < 0.2 ? 2 : -0.5;
}

/* expm1, because u^(-2/nu) - 1 cancels for large nu, where gaussian is the limit. */
static inline double noise__student(uint64_t key, uint64_t index, double nu) {
    double u = noise__uniform(key, 2 * index), v = noise__uniform(key, 2 * index + 1);
    return sqrt(nu * expm1(-2 * log(u) / nu)) * cos(6.283185307179586 * v);
}

/* The i-th kind of noise, or NULL past the end. */
static inline const NoiseKind *noise_row(size_t i) {
    static const NoiseKind table[] = {
        {.name = "gaussian", .arguments = "SCALE", .draw = noise__gaussian},
        {.name = "laplace", .arguments = "SCALE", .draw = noise__laplace},
        {.name = "skewed", .arguments = "SCALE", .draw = noise__skewed},
        {.name = "student", .arguments = "NU,SCALE", .draw = noise__student},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* ------------------------------------------------------------------------------------------------
 * parsing and adding */

/* A number above `above` and up to 1e9 that ends at `stop`; returns the place after it, or NULL. */
static inline const char *noise__number(const char *s, char stop, double above, double *x) {
    char *end = NULL;
    *x = strspn(s, ".0123456789") ? strtod(s, &end) : 0; /* neither blanks nor signs nor names */
    if (!end || *end != stop || !(*x > above && *x <= 1e9)) return NULL;
    return stop ? end + 1 : end;
}

/* Read a row's name, a colon and its arguments, or "" for none.
 * error    -1 and one sentence, and then n is none */
static inline int noise_parse(Noise *n, const char *text, char *error, size_t size) {
    size_t length = strcspn(text, ":");
    const NoiseKind *row;
    n->row = NULL;
    n->nu = n->scale = 0;
    if (!*text) return 0;
    for (size_t i = 0; (row = noise_row(i)) != NULL; i++)
        if (strlen(row->name) == length && memcmp(row->name, text, length) == 0) break;
    if (!row)
        return base_fail(error, size, -1,
                         "'%.40s' is not noise; there are gaussian:, laplace: and skewed:SCALE and "
                         "student:NU,SCALE",
                         text);
    int two = strchr(row->arguments, ',') != NULL;
    const char *rest = text[length] ? text + length + 1 : "";
    if (two) rest = noise__number(rest, ',', 1, &n->nu);
    if (rest) rest = noise__number(rest, 0, -1, &n->scale);
    if (!rest)
        return base_fail(error, size, -1, "'%.40s' is not %s:%s with SCALE from 0 to 1e9%s", text,
                         row->name, row->arguments, two ? " and NU above 1, up to 1e9" : "");
    n->row = row;
    return 0;
}

/* x (n) += scale * draw(key, first + i). A vector may be added to in pieces: first is the index of
 * its piece's first entry. No noise and scale 0 leave x as it is.
 * cost     3 ns (skewed) to 60 ns (student) per entry */
static inline void noise_add(float *x, size_t n, const Noise *noise, uint64_t key, uint64_t first) {
    if (!noise->row || noise->scale == 0) return;
    for (size_t i = 0; i < n; i++)
        x[i] += (float)(noise->scale * noise->row->draw(key, first + i, noise->nu));
}

#endif
