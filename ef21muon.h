/* ef21muon.h - compressors with exact byte counts, and error feedback (EF21) on both links. C11 or
   C++17, needs signmuon.h beside it and libc, in as many files as you like. MIT.

     server    X   <- X - t LMO(G)            a step along the estimate G of the mean momentum
               W   <- W + C(X - W)            ef_send: C(X - W) is the downlink message
     worker j  W   <- W + C(X - W)            ef_receive: W is the model that all workers have
               M_j <- mu M_j + (1-mu) g_j(W)  sm_momentum: its own gradient, taken at W
               G_j <- G_j + C(M_j - G_j)      ef_send: C(M_j - G_j) is the uplink message
     server    G   <- G + mean C(M_j - G_j)   ef_aggregate: so G = mean G_j at every step

   EF21-Muon (arXiv 2510.00643), mu = 1 - beta. A compressor C must be contractive:
   E|C(x) - x|^2 <= (1 - alpha) |x|^2. What C loses stays in M_j - G_j and is sent later.

   Three workers with different targets; 24 weights are 7 bytes up, instead of 96:

#include <stdio.h>
#include "ef21muon.h"

enum { N = 3, ROWS = 6, COLS = 4, SIZE = ROWS * COLS };
static float w[SIZE], g[SIZE], m[N][SIZE], estimate[N][SIZE], u[SIZE];
static unsigned char sent[N][4 * SIZE];
static _Alignas(64) float scratch[16384]; // ef_scratch asks for less

int main(void) {
    EfLink up;
    char error[400];
    if (ef_parse(&up, "topk:20%+natural", error, sizeof error)) return puts(error), 1;
    size_t bytes = ef_bytes(&up, ROWS, COLS, 0);
    for (uint64_t k = 0; k < 400; k++) {
        for (size_t j = 0; j < N; j++) { // gradient of 1/2 |W - target_j|^2
            for (size_t i = 0; i < SIZE; i++) u[i] = w[i] - 0.1f * (float)((i + j) % 5);
            sm_momentum(u, m[j], u, SIZE, 0.9f, 0);
            ef_send(sent[j], estimate[j], u, ROWS, COLS, &up, sm_key(1, j, k), 0, NULL, scratch);
        }
        if (ef_aggregate(g, sent, sizeof *sent, bytes, N, ROWS, COLS, &up, scratch)) return 1;
        sm_polar(u, g, ROWS, COLS, sm_newton_schulz("jordan5"), scratch);
        for (size_t i = 0; i < SIZE; i++) w[i] -= 0.02f * (1.0f - (float)k / 400) * u[i];
    }
    printf("w[6] = %.2f (mean target 0.20), %zu bytes up\n", (double)w[6], bytes);
    return 0;
}

   MEMORY    The caller brings every buffer. Matrices are row-major without gaps. Scratch is
             aligned to 64 bytes; messages lie at any address. `warm` is a sender's state for one
             link and one matrix: zeroed at first, kept between steps, saved in checkpoints.
   THREADS   Every function may be called from any thread on distinct outputs.
   ERRORS    ef_decode, ef_receive and ef_aggregate answer EF_MALFORMED or EF_NOT_FINITE.

   API
     ef_compressor_row ef_parse          compressors as a table, and their text: "topk:10%+natural"
     ef_bytes ef_most_bytes              bytes of a message, and of the longest
     ef_bits ef_paper_bits               bits by formula, and as the paper counts them
     ef_contraction ef_warm ef_scratch   guaranteed alpha; floats of state and of scratch
     ef_compress ef_decode               a matrix to a message and back
     ef_send ef_receive ef_aggregate     the same with error feedback: they advance an estimate

   NUMERICS
     message   values: fp32, or with +natural one exponent byte each. Then bits, filled up with
               zeros to whole bytes: the signs of natural values; a plane that marks signs, or which
               entries or columns are kept (a list of their indices where that is shorter)
     equality  the sender decodes its own message, so both estimates are equal bit for bit; between
               unlike machines with -ffp-contract=off, and for rankk an equal SIGNMUON_GEMM
     ties      topk and coltopk keep the lower index
     NaN, Inf  not looked for in what is sent: refuse them before (sm_finite) */
#ifndef EF21MUON_H
#define EF21MUON_H

#include <stdio.h>
#include <stdlib.h>
#include "signmuon.h"

#pragma GCC diagnostic push /* C++ warns of what a designated initialiser leaves out */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

enum { EF_MALFORMED = -1, EF_NOT_FINITE = -2 };

/* One link's compressor, from ef_parse. */
typedef struct EfLink {
    const struct EfCompressor *row;
    double value;   /* argument, in (0, 1] */
    int natural;    /* values travel as powers of two */
    int stochastic; /* these are rounded at random, unbiased */
} EfLink;

/* One matrix that is compressed or decoded: sizes, and the buffers of a sender or receiver. */
typedef struct EfTask {
    const EfLink *link;
    size_t rows, cols;
    double alpha;               /* guaranteed contraction with exact values */
    size_t n_values;            /* numbers in the message */
    size_t n_plane;             /* bits that mark signs, kept entries or kept columns */
    size_t kept;                /* how many of these are 1; 0: any number */
    size_t listed, index;       /* does the plane travel as a list of indices, of how many bits? */
    size_t bytes, head, n_bits; /* of the message; of its values; the bits that follow */
    size_t m, n, r;             /* of rankk: the shorter side, the longer one, the rank */
    size_t n_scratch;           /* floats */
    uint64_t key;               /* of random bits */
    float *warm, *values, *scratch;
    uint64_t *plane, *bits;
} EfTask;

typedef enum EfForm { EF__ALL, EF__SIGN, EF__TOP, EF__RANK } EfForm; /* what travels (ef__task) */

typedef struct EfCompressor {
    const char *name, *argument; /* argument: its letter in sentences, or NULL */
    EfForm form;
    int natural;  /* 1: "+natural" may follow; 2: values are powers of two anyway */
    int columns;  /* whole columns are kept */
    int replaces; /* C is exact: the message is the target, not a difference */
    int dropout;  /* sent with probability `value` only */
    const float *(*gather)(const float *x, const EfTask *t); /* fill plane, return the values */
    void (*scatter)(float *out, const EfTask *t);            /* the inverse */
    const char *doc;
} EfCompressor; /* without gather the values are x, without scatter they are out */

static inline size_t ef__min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t ef__pad(size_t n) { return (n + 15) / 16 * 16; } /* to 64 bytes */

/* The bits of |x|, which order like the magnitudes. */
static inline uint32_t ef__magnitude(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x7fffffff;
}

/* Natural compression (Horvath et al. 2019): exponent byte of the power of two that x becomes. The
 * `dither` is added to the mantissa and may carry: half a mantissa rounds to the nearest power, a
 * uniform number is unbiased. */
static inline uint32_t ef__exponent(float x, int stochastic, uint64_t key, size_t i) {
    uint32_t dither = stochastic ? (uint32_t)(sm_hash(key, i) >> 41) : (uint32_t)1 << 22;
    uint32_t u = ef__magnitude(x), exponent = (u + dither) >> 23;
    exponent = exponent > 254 ? 254 : exponent;
    return u < 0x00800000 ? 0 : exponent;
}

/* The power of two with this exponent byte; only the lowest bit of `minus` counts. */
static inline float ef__power(uint32_t exponent, uint64_t minus) {
    uint32_t u = exponent << 23 | (uint32_t)minus << 31;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* ------------------------------------------------------------------------------------------------
 * damping; sign: mean|x| sign(x) (Karimireddy et al. 2019), where the sign of zero is a coin */

static inline const float *ef__gather_damped(const float *x, const EfTask *t) {
    float factor = (float)t->link->value;
    for (size_t i = 0; i < t->n_values; i++) t->values[i] = factor * x[i];
    return t->values;
}

static inline const float *ef__gather_sign(const float *x, const EfTask *t) {
    size_t n = t->n_plane, i = 0;
    double lane[8] = {0}, sum = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++) lane[j] += (double)fabsf(x[i + j]);
    for (; i < n; i++) lane[0] += (double)fabsf(x[i]);
    for (size_t j = 0; j < 8; j++) sum += lane[j];
    t->values[0] = (float)(sum / (double)n);
    sm_pack(t->plane, x, n, SM_COIN, t->key);
    return t->values;
}

static inline void ef__scatter_sign(float *out, const EfTask *t) {
    float mean = t->values[0];
    sm_unpack(out, t->plane, NULL, t->n_plane);
    for (size_t i = 0; i < t->n_plane; i++) out[i] = mean > 0 ? out[i] * mean : 0;
}

/* ------------------------------------------------------------------------------------------------
 * topk and coltopk: the lines of largest 2-norm, where a line is an entry or a column */

enum { EF__BINS = 2048, EF__TABLES = 4 }; /* histograms of ef__pick */
static inline size_t ef__pick_scratch(size_t n) { return EF__TABLES * EF__BINS + 4 * ef__pad(n); }

/* Bits magnitude(x[i]) > cut, of n <= 64 entries. */
static inline uint64_t ef__above(const float *x, size_t n, int32_t cut) {
    float above[64];
    uint64_t bits = 0;
    for (size_t i = 0; i < n; i++) above[i] = (int32_t)ef__magnitude(x[i]) > cut ? 1.0f : 0;
    sm_pack(&bits, above, n, SM_ABSTAIN, 0);
    return bits;
}

/* plane <- 1 for the `keep` longest of n lines, of equal ones the first; x[i * line + p * step] is
 * entry p < length of line i. A radix select by 11, 10 and 10 bits finds the smallest 2-norm that
 * is kept. Neighbours count in different tables: equal exponents would wait for one counter. */
static inline void ef__pick(uint64_t *plane, size_t keep, const float *x, size_t n, size_t line,
                            size_t length, size_t step, float *scratch) {
    double *sum = (double *)(void *)scratch;
    float *norm = scratch + 2 * ef__pad(n), *list = norm + ef__pad(n), *from = norm;
    uint32_t *table = (uint32_t *)(void *)(list + ef__pad(n)), least = 0;
    size_t count = n, place = keep, ones = 0; /* place of the smallest one in the list of count */
    for (size_t p = 0; p < length && length > 1; p++)
        for (size_t i = 0; i < n; i++) {
            double entry = (double)x[i * line + p * step];
            sum[i] = (p > 0 ? sum[i] : 0) + entry * entry;
        }
    for (size_t i = 0; i < n; i++) norm[i] = length > 1 ? (float)sqrt(sum[i]) : fabsf(x[i]);
    for (int shift = 20; shift >= 0; shift -= 10, from = list) {
        uint32_t first = least << 10, bin = EF__BINS - 1;
        size_t i = 0, same = 0;
        memset(table, 0, EF__TABLES * EF__BINS * sizeof *table);
        for (; i + EF__TABLES <= count; i += EF__TABLES)
            for (size_t k = 0; k < EF__TABLES; k++)
                table[k * EF__BINS + (ef__magnitude(from[i + k]) >> shift) - first]++;
        for (; i < count; i++) table[(ef__magnitude(from[i]) >> shift) - first]++;
        for (size_t b = 0; b < EF__BINS; b++)
            for (size_t k = 1; k < EF__TABLES; k++) table[b] += table[k * EF__BINS + b];
        for (; bin > 0 && table[bin] < place; bin--) place -= table[bin];
        least = first + bin;
        int32_t low = (int32_t)(least << shift), high = low + ((1 << shift) - 1);
        for (i = 0; i < count; i += 64) {
            uint64_t in = ef__above(from + i, ef__min(64, count - i), low - 1);
            in &= ~ef__above(from + i, ef__min(64, count - i), high);
            for (; in; in &= in - 1) list[same++] = from[i + (size_t)__builtin_ctzll(in)];
        }
        count = same;
    }
    for (size_t w = 0; w < sm_words(n); w++) {
        plane[w] = ef__above(norm + w * 64, ef__min(64, n - w * 64), (int32_t)least - 1);
        ones += (size_t)__builtin_popcountll(plane[w]);
    }
    for (size_t i = n; i-- > 0 && ones > keep;)
        if (ef__magnitude(norm[i]) == least) plane[i / 64] ^= (uint64_t)1 << i % 64, ones--;
}

static inline const float *ef__gather_top(const float *x, const EfTask *t) {
    size_t n = t->n_plane, all = t->rows * t->cols, k = 0;
    ef__pick(t->plane, t->kept, x, n, 1, all / n, n, t->scratch);
    for (size_t row = 0; row < all; row += n)
        for (size_t w = 0; w < sm_words(n); w++)
            for (uint64_t bits = t->plane[w]; bits; bits &= bits - 1)
                t->values[k++] = x[row + w * 64 + (size_t)__builtin_ctzll(bits)];
    return t->values;
}

static inline void ef__scatter_top(float *out, const EfTask *t) {
    size_t n = t->n_plane, all = t->rows * t->cols, k = 0;
    memset(out, 0, all * sizeof *out);
    for (size_t row = 0; row < all; row += n)
        for (size_t w = 0; w < sm_words(n); w++)
            for (uint64_t bits = t->plane[w]; bits; bits &= bits - 1)
                out[row + w * 64 + (size_t)__builtin_ctzll(bits)] = t->values[k++];
}

/* ------------------------------------------------------------------------------------------------
 * rankk: A ~ P R^T by one step of a power iteration (Vogels et al. 2019), which starts at the last
 * step's R. A is transposed so that m <= n; P (m x r) is orthonormal and R = A^T P. A message holds
 * P^T (r x m), then R^T (r x n). +natural rounds P; both ends make it orthonormal again, and R
 * belongs to that P. Where P R^T keeps less than the share r/m of |A|^2, P selects the r longest
 * rows instead: so alpha is that of the truncated SVD. */

/* x <- x / |x|, or 0 where |x| <= least */
static inline void ef__normalise(float *x, size_t n, double least) {
    double norm = sqrt(sm_sum_squares(x, n));
    sm_scale(x, n, norm > least ? 1 / norm : 0);
}

/* Rows of p (r x m) <- orthonormal ones of the same span, by modified Gram-Schmidt, twice. A row
 * within 1e-5 of the span of those before it becomes zero. */
static inline void ef__orthonormalise(float *p, size_t r, size_t m) {
    for (size_t k = 0; k < r; k++) {
        float *y = p + k * m;
        ef__normalise(y, m, 0);
        for (size_t j = 0; j < 2 * k; j++) { /* y <- y - <x, y> x */
            const float *x = p + j % k * m;
            float lane[16] = {0}, dot = 0;
            size_t i = 0;
            for (; i + 16 <= m; i += 16)
                for (size_t l = 0; l < 16; l++) lane[l] += x[i + l] * y[i + l];
            for (; i < m; i++) dot += x[i] * y[i];
            for (size_t l = 0; l < 16; l++) dot += lane[l];
            for (i = 0; i < m; i++) y[i] -= dot * x[i];
        }
        ef__normalise(y, m, 1e-5);
    }
}

static inline const float *ef__gather_rank(const float *x, const EfTask *t) {
    size_t m = t->m, n = t->n, r = t->r;
    int tall = t->rows > t->cols, stochastic = t->link->stochastic;
    float *p = t->values, *right = p + r * m, *exact = t->scratch, *rest = exact + ef__pad(r * n);
    double energy = sm_sum_squares(x, m * n), caught = 0; /* |A|^2, and what P R^T keeps of it */
    memset(p, 0, t->n_values * sizeof *p);
    for (size_t k = 0; k < r && energy > 0; k++) {
        float *q = t->warm + k * n;
        if (sm_sum_squares(q, n) > 0) continue;
        for (size_t j = 0; j < n; j++) { /* nearly normal: the four quarters of a hash */
            uint64_t h = sm_hash(t->key, k * n + j);
            uint64_t sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
            q[j] = (float)((int)sum - 131070) * 0x1p-15f;
        }
    }
    for (int rows = 0; rows < 2 && caught < energy * t->alpha; rows++) {
        if (!rows) { /* P <- orth(A Q) */
            SIGNMUON_GEMM(tall ? 'n' : 't', p, t->warm, x, r, m, n, rest);
            ef__orthonormalise(p, r, m);
        } else { /* P selects rows of A */
            uint64_t *longest = (uint64_t *)(void *)rest;
            ef__pick(longest, r, x, m, tall ? 1 : n, n, tall ? m : 1,
                     rest + ef__pad(2 * sm_words(m)));
            memset(p, 0, r * m * sizeof *p);
            for (size_t i = 0, k = 0; i < m; i++)
                if (longest[i / 64] >> i % 64 & 1) p[k++ * m + i] = 1;
        }
        for (size_t i = 0; t->link->natural && i < r * m; i++)
            p[i] = copysignf(ef__power(ef__exponent(p[i], stochastic, t->key, i), 0), p[i]);
        memcpy(exact, p, r * m * sizeof *p);
        if (t->link->natural) ef__orthonormalise(exact, r, m);
        SIGNMUON_GEMM(tall ? 't' : 'n', right, exact, x, r, n, m, rest); /* R <- A^T P */
        caught = sm_sum_squares(right, r * n);
    }
    memcpy(t->warm, right, r * n * sizeof *right); /* Q of the next step */
    for (size_t k = 0; k < r; k++) ef__normalise(t->warm + k * n, n, 0);
    return t->values;
}

/* out <- P R^T, or its transpose R P^T where A was transposed */
static inline void ef__scatter_rank(float *out, const EfTask *t) {
    int tall = t->rows > t->cols;
    float *p = t->values, *right = p + t->r * t->m;
    float *left = t->scratch, *rest = left + ef__pad(t->r * t->n);
    if (t->link->natural) ef__orthonormalise(p, t->r, t->m);
    sm_transpose(left, tall ? right : p, t->r, t->rows);
    SIGNMUON_GEMM('n', out, left, tall ? p : right, t->rows, t->cols, t->r, rest);
}

/* ------------------------------------------------------------------------------------------------
 * the table, and its text */

/* Compressors. NULL past the end. */
static inline const EfCompressor *ef_compressor_row(size_t i) {
    // clang-format off
    __extension__ static const EfCompressor table[] = {
        {.name = "identity", .replaces = 1, .doc = "fp32, exact"},
        {.name = "topk", .argument = "F", .form = EF__TOP, .natural = 1,
         .gather = ef__gather_top, .scatter = ef__scatter_top,
         .doc = "the fraction F of entries that is largest in magnitude; +natural rounds them"},
        {.name = "rankk", .argument = "F", .form = EF__RANK, .natural = 1,
         .gather = ef__gather_rank, .scatter = ef__scatter_rank,
         .doc = "rank F min(m,n), by a warm-started power iteration; +natural rounds the factors"},
        {.name = "natural", .natural = 2,
         .doc = "sign and exponent, 9 bits; nearest, or :stochastic, which is unbiased"},
        {.name = "sign", .form = EF__SIGN, .gather = ef__gather_sign, .scatter = ef__scatter_sign,
         .doc = "mean|x| sign(x), one bit each"},
        {.name = "dropout", .argument = "P", .dropout = 1,
         .doc = "the whole matrix in fp32 with probability P, else nothing"},
        {.name = "damping", .argument = "G", .gather = ef__gather_damped,
         .doc = "G x in fp32; saves nothing, for tests"},
        {.name = "coltopk", .argument = "F", .form = EF__TOP, .natural = 1, .columns = 1,
         .gather = ef__gather_top, .scatter = ef__scatter_top,
         .doc = "the fraction F of columns that is largest in 2-norm; +natural rounds them"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* Read "topk:10%+natural" and the like: a row's name, its argument, and how values travel.
 * error    -1 and one sentence that lists what there is; link is as it was */
static inline int ef_parse(EfLink *link, const char *text, char *error, size_t size) {
    const EfCompressor *row;
    char list[400] = "", *after;
    size_t at = 0;
    for (size_t i = 0; (row = ef_compressor_row(i)) != NULL; i++) {
        EfLink l = {row, 1, row->natural == 2, 0};
        const char *rest = text + strlen(row->name), *a = row->argument;
        at += (size_t)snprintf(list + at, sizeof list - at, "%s %s%s%s%s", i ? "," : "", row->name,
                               a ? ":" : "", a ? a : "", row->natural == 1 ? "[+natural]" : "");
        if (strncmp(text, row->name, strlen(row->name))) continue;
        if (a) { /* strtod would also read signs, words and hexadecimal numbers */
            const char *colon = strchr(text, ':');
            if (!colon || colon != rest) continue;
            if (!strspn(colon + 1, "0123456789.") || strpbrk(colon, "xX")) continue;
            l.value = strtod(colon + 1, &after);
            if (*after == '%') l.value /= 100, after++;
            if (!(l.value > 0 && l.value <= 1)) continue;
            rest = after;
        }
        if (row->natural == 1 && !strncmp(rest, "+natural", 8)) l.natural = 1, rest += 8;
        if (l.natural && !strcmp(rest, ":stochastic")) l.stochastic = 1, rest += 11;
        if (!*rest) return *link = l, 0;
    }
    snprintf(error, size,
             "'%.40s' is not a compressor; there are%s; 0 < F, P, G <= 1, as 10%%; "
             ":stochastic may follow natural",
             text, list);
    return -1;
}

/* ------------------------------------------------------------------------------------------------
 * sizes, and messages */

static inline EfTask ef__task(const EfLink *l, size_t rows, size_t cols, float *scratch) {
    const EfForm form = l->row->form;
    const size_t size = rows * cols, small = ef__min(rows, cols);
    const size_t lines = l->row->columns ? cols : form == EF__RANK ? small : size;
    __extension__ EfTask t = {.link = l, .rows = rows, .cols = cols, .n_values = size};
    assert(rows > 0 && cols > 0 && lines > 0);
    size_t kept = ef__min(lines, (size_t)(l->value * (double)lines + 1e-9)); /* 29% of 100 is 29 */
    kept = kept > 0 ? kept : 1;
    t.alpha = l->row->dropout ? l->value : l->value * (2 - l->value);
    if (form != EF__ALL) t.alpha = (double)kept / (double)lines;
    if (form == EF__SIGN) {
        t.n_values = 1;
        t.n_plane = size;
        t.alpha = size > 0 ? 1 / (double)size : 1;
    } else if (form == EF__TOP) {
        t.n_values = kept * (size / lines);
        t.n_plane = lines;
        t.kept = kept;
        t.n_scratch = ef__pick_scratch(lines);
    } else if (form == EF__RANK) {
        t.r = kept;
        t.m = small;
        t.n = rows + cols - small;
        t.n_values = t.r * (t.m + t.n);
        t.n_scratch = ef__pad(t.r * t.n) + ef__pad(2 * sm_words(t.m)) + ef__pick_scratch(t.m) +
                      SIGNMUON_GEMM_SCRATCH;
    }
    t.index = t.n_plane > 1 ? 64 - (size_t)__builtin_clzll(t.n_plane - 1) : 0;
    t.listed = t.kept > 0 && t.kept * t.index < t.n_plane;
    t.n_bits = (l->natural ? t.n_values : 0) + (t.listed ? t.kept * t.index : t.n_plane);
    t.head = t.n_values * (l->natural ? 1 : 4);
    t.bytes = t.head + (t.n_bits + 7) / 8;
    size_t plane = ef__pad(t.n_values), bits = plane + ef__pad(2 * sm_words(t.n_plane));
    size_t rest = bits + ef__pad(2 * sm_words(t.n_bits) + 2);
    t.n_scratch += rest;
    if (!scratch) return t;
    t.values = scratch;
    t.plane = (uint64_t *)(void *)(scratch + plane);
    t.bits = (uint64_t *)(void *)(scratch + bits);
    t.scratch = scratch + rest;
    return t;
}

/* Bytes of the longest message. */
static inline size_t ef_most_bytes(const EfLink *l, size_t rows, size_t cols) {
    return ef__task(l, rows, cols, NULL).bytes;
}

/* Bytes of the message; only dropout's depend on the coin (0 when dropped). */
static inline size_t ef_bytes(const EfLink *l, size_t rows, size_t cols, uint64_t coin) {
    int dropped = l->row->dropout && (double)(sm_hash(coin, 0) >> 11) * 0x1p-53 >= l->value;
    return dropped ? 0 : ef_most_bytes(l, rows, cols);
}

/* Bits of the message before they fill whole bytes; of dropout, the expectation. */
static inline double ef_bits(const EfLink *l, size_t rows, size_t cols) {
    EfTask t = ef__task(l, rows, cols, NULL);
    return (double)(8 * t.head + t.n_bits) * (l->row->dropout ? l->value : 1);
}

/* Bits as EF21-Muon's cost table counts them: 26 for an index, 16 for a natural value, and r
 * singular values beside the factors. */
static inline double ef_paper_bits(const EfLink *l, size_t rows, size_t cols) {
    EfTask t = ef__task(l, rows, cols, NULL);
    double bits = t.kept ? 26 * (double)t.kept : (double)t.n_plane;
    bits += (double)(t.n_values + t.r) * (l->natural ? 16 : 32);
    return bits * (l->row->dropout ? l->value : 1);
}

/* Guaranteed alpha, but for rounding, and natural on subnormals and beyond 1.5 * 2^127. The nearest
 * power of two loses 1/9 of what is kept, a random one 1/8. */
static inline double ef_contraction(const EfLink *l, size_t rows, size_t cols) {
    double alpha = ef__task(l, rows, cols, NULL).alpha;
    return !l->natural ? alpha : l->stochastic ? alpha * 7 / 8 : alpha * 8 / 9;
}

/* Floats of `warm`: rankk's right factor of the last step. */
static inline size_t ef_warm(const EfLink *l, size_t rows, size_t cols) {
    EfTask t = ef__task(l, rows, cols, NULL);
    return t.r * t.n;
}

/* Floats of scratch for each of the functions below. */
static inline size_t ef_scratch(const EfLink *l, size_t rows, size_t cols) {
    return 3 * ef__pad(rows * cols) + ef__task(l, rows, cols, NULL).n_scratch;
}

/* Append the low n bits (0 .. 64) of value, whose others are 0, to bits that were zeroed. */
static inline void ef__put(uint64_t *bits, size_t *at, uint64_t value, size_t n) {
    size_t w = *at / 64, shift = *at % 64;
    bits[w] |= value << shift;
    if (shift + n > 64) bits[w + 1] = value >> (64 - shift);
    *at += n;
}

/* The next n bits (0 .. 64). */
static inline uint64_t ef__get(const uint64_t *bits, size_t *at, size_t n) {
    size_t w = *at / 64, shift = *at % 64;
    uint64_t value = bits[w] >> shift;
    if (shift + n > 64) value |= bits[w + 1] << (64 - shift);
    *at += n;
    return n ? value & ~(uint64_t)0 >> (64 - n) : 0;
}

/* out <- what a message says.
 * error    EF_NOT_FINITE: a value is NaN or infinite. EF_MALFORMED: not a message of this link and
 *          shape (length, index, a bit past the end). out is then as it was, or zero */
static inline int ef_decode(float *out, const void *message, size_t bytes, size_t rows, size_t cols,
                            const EfLink *l, float *scratch) {
    assert(scratch);
    const EfTask t = ef__task(l, rows, cols, scratch);
    const unsigned char *from = (const unsigned char *)message;
    float *v = l->row->scatter ? t.values : out;
    size_t ones = 0, least = 0, last = t.n_bits / 64, at = l->natural ? t.n_values : 0;
    if (bytes == 0 && l->row->dropout) return memset(out, 0, rows * cols * sizeof *out), 0;
    if (bytes != t.bytes) return EF_MALFORMED;
    t.bits[last] = 0;
    memcpy(t.bits, from + t.head, bytes - t.head);
    int bad = t.n_bits % 64 && t.bits[last] >> t.n_bits % 64 ? EF_MALFORMED : 0;
    if (!l->natural) memcpy(v, from, t.head);
    for (size_t i = 0; l->natural && i < t.n_values; i += 64) {
        uint64_t minus = t.bits[i / 64];
        size_t n = ef__min(64, t.n_values - i);
        for (size_t k = 0; k < n; k++) v[i + k] = ef__power(from[i + k], minus >> k);
    }
    if (!sm_finite(v, t.n_values)) bad = EF_NOT_FINITE;
    for (size_t w = 0; w < sm_words(t.n_plane); w++) {
        t.plane[w] = t.listed ? 0 : ef__get(t.bits, &at, ef__min(64, t.n_plane - w * 64));
        ones += (size_t)__builtin_popcountll(t.plane[w]);
    }
    for (; t.listed && ones < t.kept && !bad; ones++) {
        size_t i = (size_t)ef__get(t.bits, &at, t.index);
        if (i < least || i >= t.n_plane) bad = EF_MALFORMED; /* they ascend */
        if (!bad) t.plane[i / 64] |= (uint64_t)1 << i % 64;
        least = i + 1;
    }
    if (!bad && t.kept && ones != t.kept) bad = EF_MALFORMED;
    if (!bad && l->row->scatter) l->row->scatter(out, &t);
    if (!bad && t.r && !sm_finite(out, rows * cols)) bad = EF_NOT_FINITE; /* P R^T overflowed */
    if (bad) memset(out, 0, rows * cols * sizeof *out);
    return bad;
}

/* message <- C(x), ef_bytes long; out, which may be x, <- what its receiver will decode.
 * key      of random bits, this worker's own;  coin  of dropout, the same on all workers
 * cost     O(rows cols); rankk: 6 rows cols r flop and a QR */
static inline void ef_compress(void *message, float *out, const float *x, size_t rows, size_t cols,
                               const EfLink *l, uint64_t key, uint64_t coin, float *warm,
                               float *scratch) {
    EfTask t = ef__task(l, rows, cols, scratch);
    size_t bytes = ef_bytes(l, rows, cols, coin), at = l->natural ? t.n_values : 0;
    unsigned char *to = (unsigned char *)message;
    int stochastic = l->stochastic;
    t.key = key;
    t.warm = warm;
    if (bytes > 0) {
        const float *v = l->row->gather ? l->row->gather(x, &t) : x;
        assert(t.bits);
        memset(t.bits, 0, (t.n_bits / 64 + 1) * sizeof *t.bits);
        if (!l->natural) memcpy(to, v, t.head);
        for (size_t i = 0; l->natural && i < t.n_values; i += 64) {
            size_t n = ef__min(64, t.n_values - i);
            for (size_t k = 0; k < n; k++)
                to[i + k] = (unsigned char)ef__exponent(v[i + k], stochastic, key, i + k);
            sm_pack(&t.bits[i / 64], v + i, n, SM_PLUS, 0);
            t.bits[i / 64] = ~t.bits[i / 64] & ~(uint64_t)0 >> (64 - n);
        }
        for (size_t w = 0; w < sm_words(t.n_plane); w++) {
            if (!t.listed) ef__put(t.bits, &at, t.plane[w], ef__min(64, t.n_plane - w * 64));
            for (uint64_t b = t.plane[w]; t.listed && b; b &= b - 1)
                ef__put(t.bits, &at, w * 64 + (uint64_t)__builtin_ctzll(b), t.index);
        }
        memcpy(to + t.head, t.bits, bytes - t.head);
    }
    ef_decode(out, message, bytes, rows, cols, l, scratch);
}

/* ------------------------------------------------------------------------------------------------
 * error feedback */

/* message <- C(target - estimate); estimate <- estimate + C(target - estimate). Where the sender is
 * the server, `estimate` is the workers' model W and `target` the server's X. An exact link sends
 * the target itself, as adding a difference would round. Other arguments as of ef_compress. */
static inline void ef_send(void *message, float *estimate, const float *target, size_t rows,
                           size_t cols, const EfLink *l, uint64_t key, uint64_t coin, float *warm,
                           float *scratch) {
    const size_t d = rows * cols, n = l->row->replaces ? 0 : d;
    float *residual = n ? scratch : estimate, *rest = scratch + ef__pad(d);
    for (size_t i = 0; i < n; i++) residual[i] = target[i] - estimate[i];
    ef_compress(message, residual, n ? residual : target, rows, cols, l, key, coin, warm, rest);
    for (size_t i = 0; i < n; i++) estimate[i] += residual[i];
}

/* Advance the receiver's copy of an estimate by a message, as its sender did.
 * error    as of ef_decode; estimate is as it was */
static inline int ef_receive(float *estimate, const void *message, size_t bytes, size_t rows,
                             size_t cols, const EfLink *l, float *scratch) {
    size_t d = rows * cols;
    float *residual = scratch;
    int bad = ef_decode(residual, message, bytes, rows, cols, l, scratch + ef__pad(d));
    for (size_t i = 0; i < d && !bad; i++)
        estimate[i] = l->row->replaces ? residual[i] : estimate[i] + residual[i];
    return bad;
}

/* Advance the server's estimate by the mean of the workers' messages, summed in double in rank
 * order: G <- G + mean R_j; an exact link: G <- mean.
 * first    message of rank 0;  stride  bytes from one rank's message to the next;  bytes  of each
 * error    as of ef_decode, of the first rank that has one; aggregate is as it was */
static inline int ef_aggregate(float *aggregate, const void *first, size_t stride, size_t bytes,
                               int workers, size_t rows, size_t cols, const EfLink *l,
                               float *scratch) {
    size_t d = rows * cols;
    double *sum = (double *)(void *)scratch;
    float *residual = scratch + 2 * ef__pad(d), *rest = residual + ef__pad(d);
    for (size_t i = 0; i < d; i++) sum[i] = 0;
    for (int j = 0; j < workers; j++) {
        const void *message = (const char *)first + (size_t)j * stride;
        int bad = ef_decode(residual, message, bytes, rows, cols, l, rest);
        if (bad) return bad;
        for (size_t i = 0; i < d; i++) sum[i] += (double)residual[i];
    }
    for (size_t i = 0; i < d; i++) {
        float mean = (float)(sum[i] / workers);
        aggregate[i] = l->row->replaces ? mean : aggregate[i] + mean;
    }
    return 0;
}

#pragma GCC diagnostic pop
#endif
