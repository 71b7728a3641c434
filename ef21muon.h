/* ef21muon.h - compressors with exact byte counts, and error feedback (EF21) on both links. C11 or
   C++17, libc and signmuon.h only, MIT.

     server    X   <- X - t LMO(G)            a step along the estimate G of the mean momentum
               W   <- W + C(X - W)            ef_send: C(X - W) is the downlink message
     worker j  W   <- W + C(X - W)            ef_receive: W is the model that all workers have
               M_j <- mu M_j + (1-mu) g_j(W)  sm_momentum: its own gradient, taken at W
               G_j <- G_j + C(M_j - G_j)      ef_send: C(M_j - G_j) is the uplink message
     server    G   <- G + mean C(M_j - G_j)   ef_aggregate: so G = mean G_j at every step

   EF21-Muon (arXiv 2510.00643), mu = 1 - beta. A compressor C must be contractive:
   E|C(x) - x|^2 <= (1 - alpha) |x|^2. What C loses stays in M_j - G_j and is sent later.
   Copy this file beside signmuon.h and include it in as many files as you like.

   Three workers with different targets; 24 weights are 7 bytes up, instead of 96:

#include <stdio.h>
#include "ef21muon.h"

enum { N = 3, ROWS = 6, COLS = 4, SIZE = ROWS * COLS };
static float w[SIZE], g[SIZE], m[N][SIZE], estimate[N][SIZE], u[SIZE];
static unsigned char residual[N][4 * SIZE];
static _Alignas(64) float scratch[16384];

int main(void) {
    EfLink up;
    char error[200] = "";
    if (ef_parse(&up, "topk:20%+natural", error, sizeof error)) return puts(error), 1;
    size_t bytes = ef_bytes(&up, ROWS, COLS, 0);
    if (ef_scratch(&up, ROWS, COLS) > 16384) return 1;
    for (uint64_t k = 0; k < 400; k++) {
        for (size_t j = 0; j < N; j++) {        // gradient of 1/2 |W - target_j|^2
            for (size_t i = 0; i < SIZE; i++) u[i] = w[i] - 0.1f * (float)((i + j) % 5);
            sm_momentum(u, m[j], u, SIZE, 0.9f, 0);
            ef_send(residual[j], estimate[j], u, ROWS, COLS, &up, sm_key(1, j + 1, k), 0, NULL,
                    scratch);
        }
        if (ef_aggregate(g, residual, sizeof *residual, bytes, N, ROWS, COLS, &up, scratch))
            return 1;
        sm_polar(u, g, ROWS, COLS, sm_newton_schulz("jordan5"), scratch);
        for (size_t i = 0; i < SIZE; i++) w[i] -= 0.02f * (1.0f - (float)k / 400) * u[i];
    }
    printf("w[6] = %.2f (mean target 0.20), %zu bytes up\n", (double)w[6], bytes);
    return 0;
}

   MEMORY    The caller brings every buffer. Matrices are row-major without gaps. Scratch is aligned
             to 64 bytes; messages lie at any address. `warm` is a sender's state for one link and
             one matrix: zeroed at first, kept between steps, saved in checkpoints.
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
     message   values, then bits, filled up with zeros to whole bytes. Values are fp32, or with
               +natural one exponent byte each and then their sign bits. The bits that follow mark
               signs, or the entries or columns that are kept: as a bitmap or as a list of indices,
               whichever is shorter for this shape. Byte order is little-endian
     equality  the sender decodes its own message with the receiver's code, so both estimates are
               equal bit for bit. Different machines need -ffp-contract=off, and for rankk a
               SIGNMUON_GEMM that rounds the same on both
     ties      topk and coltopk keep the lower index
     aggregate in double, in rank order
     NaN, Inf  not looked for in what is sent: refuse them before (sm_finite)
*/
#ifndef EF21MUON_H
#define EF21MUON_H

#include <stdio.h>
#include <stdlib.h>

#include "signmuon.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------
 * declarations */

enum { EF_MALFORMED = -1, EF_NOT_FINITE = -2 };

/* Sizes for one matrix and one compressor. */
typedef struct EfSizes {
    size_t values;  /* numbers in the message */
    size_t plane;   /* bits that mark signs, kept entries or kept columns */
    size_t kept;    /* how many of these are 1; 0: any number */
    size_t rank;    /* of a factored matrix, else 0 */
    size_t warm;    /* floats of a sender's state */
    size_t scratch; /* floats that gather and scatter need */
    double alpha;   /* guaranteed contraction with exact values */
} EfSizes;

typedef struct EfCompressor EfCompressor;

/* One link's compressor, from ef_parse. */
typedef struct EfLink {
    const EfCompressor *row;
    double value;   /* argument, in (0, 1] */
    int natural;    /* values travel as powers of two */
    int stochastic; /* these are rounded at random, unbiased */
} EfLink;

/* One matrix that is compressed or decoded. */
typedef struct EfTask {
    const EfLink *link;
    EfSizes size;
    size_t rows, cols;
    uint64_t key;    /* of random bits */
    float *warm;     /* NULL in a receiver */
    float *values;   /* size.values of them */
    uint64_t *plane; /* size.plane bits */
    float *scratch;  /* size.scratch floats */
} EfTask;

/* natural: 1 where "+natural" may follow, 2 where values are powers of two by definition. */
struct EfCompressor {
    const char *name, *argument; /* argument: its letter in sentences, or NULL */
    int natural;
    int replaces; /* C is exact: the message is the target, and replaces the estimate */
    int dropout;  /* sent with probability `value` only */
    EfSizes (*sizes)(const EfLink *l, size_t rows, size_t cols);
    /* fill t->plane and return the values: t->values, or x itself */
    const float *(*gather)(const float *x, const EfTask *t);
    void (*scatter)(float *out, const EfTask *t); /* the inverse; NULL: out is the values */
    const char *doc;
};

static inline size_t ef__min(size_t a, size_t b) { return a < b ? a : b; }

/* n rounded up to a whole vector of 16 floats */
static inline size_t ef__pad(size_t n) { return (n + 15) / 16 * 16; }

static inline uint32_t ef__float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* ------------------------------------------------------------------------------------------------
 * identity, natural, dropout, damping: all entries travel */

static inline EfSizes ef__sizes_all(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = {rows * cols, 0, 0, 0, 0, 0, l->row->dropout ? l->value : 1};
    return s;
}

static inline const float *ef__gather_all(const float *x, const EfTask *t) { return (void)t, x; }

static inline EfSizes ef__sizes_damped(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = {rows * cols, 0, 0, 0, 0, 0, l->value * (2 - l->value)};
    return s;
}

static inline const float *ef__gather_damped(const float *x, const EfTask *t) {
    float factor = (float)t->link->value;
    for (size_t i = 0; i < t->size.values; i++) t->values[i] = factor * x[i];
    return t->values;
}

/* ------------------------------------------------------------------------------------------------
 * sign: mean|x| sign(x) (Karimireddy et al. 2019); the sign of an exact zero is a coin */

static inline EfSizes ef__sizes_sign(const EfLink *l, size_t rows, size_t cols) {
    size_t n = rows * cols;
    EfSizes s = {1, n, 0, 0, 0, 0, 1 / (double)n};
    return (void)l, s;
}

static inline const float *ef__gather_sign(const float *x, const EfTask *t) {
    size_t n = t->size.plane, i = 0;
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
    size_t n = t->size.plane;
    float mean = t->values[0];
    sm_unpack(out, t->plane, NULL, n);
    for (size_t i = 0; i < n; i++) out[i] = mean > 0 ? out[i] * mean : 0;
}

/* ------------------------------------------------------------------------------------------------
 * topk and coltopk: the lines of largest 2-norm, where a line is an entry or a column */

enum { EF__BINS = 2048, EF__TABLES = 4 }; /* histograms of ef__cut */
static inline size_t ef__cut_scratch(size_t n) { return EF__TABLES * EF__BINS + ef__pad(n); }

/* How many of n a fraction keeps, at least 1. (1e-9 makes 29% of 100 be 29.) */
static inline size_t ef__share(const EfLink *l, size_t n) {
    size_t share = ef__min(n, (size_t)(l->value * (double)n + 1e-9));
    return share > 0 ? share : 1;
}

static inline EfSizes ef__sizes_top(const EfLink *l, size_t rows, size_t cols) {
    size_t n = rows * cols, kept = ef__share(l, n);
    EfSizes s = {kept, n, kept, 0, 0, ef__cut_scratch(n), (double)kept / (double)n};
    return s;
}

static inline EfSizes ef__sizes_columns(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = ef__sizes_top(l, 1, cols);
    s.values = s.kept * rows;
    s.scratch += 3 * ef__pad(cols);
    return s;
}

/* The bits of the *keep-th largest magnitude of n (1 .. n); *keep becomes its place among equals.
 * Magnitudes order like the integers of their bits: a radix select by 11, 10 and 10 bits.
 * Neighbours count in different tables, as equal exponents in a row would wait for one counter. */
static inline uint32_t ef__cut(const float *x, size_t n, size_t *keep, float *scratch) {
    uint32_t *table = (uint32_t *)(void *)scratch, *list = table + EF__TABLES * EF__BINS;
    uint32_t prefix = 0;
    for (size_t i = 0; i < n; i++) list[i] = ef__float_bits(x[i]) & 0x7fffffff;
    for (int shift = 20; shift >= 0; shift -= 10) {
        uint32_t bin = EF__BINS - 1;
        size_t same = 0;
        memset(table, 0, EF__TABLES * EF__BINS * sizeof *table);
        for (size_t i = 0; i < n; i++)
            table[i % EF__TABLES * EF__BINS + ((list[i] >> shift) - (prefix << 10))]++;
        for (size_t b = 0; b < EF__BINS; b++)
            for (size_t k = 1; k < EF__TABLES; k++) table[b] += table[k * EF__BINS + b];
        for (; bin > 0 && table[bin] < *keep; bin--) *keep -= table[bin];
        prefix = prefix << 10 | bin;
        for (size_t i = 0; i < n; i++) {
            list[same] = list[i];
            same += list[i] >> shift == prefix;
        }
        n = same;
    }
    return prefix;
}

/* Bits |x[i]| >= least, compared as integers, of n <= 64 entries. */
static inline uint64_t ef__at_least(const float *x, size_t n, uint32_t least) {
    float above[64];
    uint64_t bits = 0;
    for (size_t i = 0; i < n; i++)
        above[i] = (float)((int32_t)(ef__float_bits(x[i]) & 0x7fffffff) - (int32_t)least + 1);
    sm_pack(&bits, above, n, SM_ABSTAIN, 0);
    return bits;
}

/* plane <- 1 for the `keep` entries of largest magnitude, of equal ones the first. */
static inline void ef__pick(uint64_t *plane, const float *x, size_t n, size_t keep,
                            float *scratch) {
    uint32_t cut = ef__cut(x, n, &keep, scratch);
    for (size_t w = 0; w < sm_words(n); w++) {
        size_t left = ef__min(64, n - w * 64);
        plane[w] = ef__at_least(x + w * 64, left, cut + 1);
        uint64_t equal = keep ? ef__at_least(x + w * 64, left, cut) & ~plane[w] : 0;
        for (; equal && keep; equal &= equal - 1, keep--) plane[w] |= equal & (~equal + 1);
    }
}

/* norm <- 2-norms of n lines of `length` entries; entry p of line i is x[i * line + p * step].
 * sum is n doubles of scratch. */
static inline void ef__norms(float *norm, const float *x, size_t n, size_t line, size_t length,
                             size_t step, double *sum) {
    for (size_t i = 0; i < n; i++) sum[i] = 0;
    for (size_t p = 0; p < length; p++)
        for (size_t i = 0; i < n; i++) {
            double entry = (double)x[i * line + p * step];
            sum[i] += entry * entry;
        }
    for (size_t i = 0; i < n; i++) norm[i] = (float)sqrt(sum[i]);
}

static inline const float *ef__gather_top(const float *x, const EfTask *t) {
    size_t n = t->size.plane, all = t->rows * t->cols, k = 0;
    const float *weight = x;
    float *rest = t->scratch;
    if (n < all) { /* columns */
        float *norm = rest + ef__cut_scratch(n);
        ef__norms(norm, x, n, 1, t->rows, n, (double *)(void *)(norm + ef__pad(n)));
        weight = norm;
    }
    ef__pick(t->plane, weight, n, t->size.kept, rest);
    for (size_t row = 0; row < all; row += n)
        for (size_t w = 0; w < sm_words(n); w++)
            for (uint64_t bits = t->plane[w]; bits; bits &= bits - 1)
                t->values[k++] = x[row + w * 64 + (size_t)__builtin_ctzll(bits)];
    return t->values;
}

static inline void ef__scatter_top(float *out, const EfTask *t) {
    size_t n = t->size.plane, all = t->rows * t->cols, k = 0;
    memset(out, 0, all * sizeof *out);
    for (size_t row = 0; row < all; row += n)
        for (size_t w = 0; w < sm_words(n); w++)
            for (uint64_t bits = t->plane[w]; bits; bits &= bits - 1)
                out[row + w * 64 + (size_t)__builtin_ctzll(bits)] = t->values[k++];
}

/* ------------------------------------------------------------------------------------------------
 * natural compression (Horvath et al. 2019): a value becomes its sign and an 8-bit exponent */

/* Exponent byte of the power of two that x becomes. The `dither` is added to the mantissa and may
 * carry: half of a mantissa rounds to the nearest power, a uniform number is unbiased. */
static inline uint32_t ef__exponent(float x, int stochastic, uint64_t key, size_t i) {
    uint32_t dither = stochastic ? (uint32_t)(sm_hash(key, i) >> 41) : (uint32_t)1 << 22;
    uint32_t u = ef__float_bits(x) & 0x7fffffff, exponent = (u + dither) >> 23;
    exponent = exponent > 254 ? 254 : exponent;
    return u < 0x00800000 ? 0 : exponent;
}

/* x <- what its receiver will see; rounding that again changes nothing. */
static inline void ef__round(float *x, size_t n, const EfTask *t) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u = ef__exponent(x[i], t->link->stochastic, t->key, i) << 23;
        u |= ef__float_bits(x[i]) & (uint32_t)1 << 31;
        memcpy(&x[i], &u, sizeof u);
    }
}

/* ------------------------------------------------------------------------------------------------
 * rankk: A ~ P R^T by one step of a power iteration (Vogels et al. 2019), which starts at the last
 * step's R. A is transposed so that m <= n; P (m x r) is orthonormal and R = A^T P. A message holds
 * P^T (r x m), then R^T (r x n). +natural rounds P; both ends make it orthonormal again, and R
 * belongs to that P. Where P R^T keeps less than the share r/m of |A|^2, P selects the r longest
 * rows instead: so alpha is that of the truncated SVD. */

/* r n floats; 3 m of norms and a plane of m bits; histograms; what products need */
static inline EfSizes ef__sizes_rank(const EfLink *l, size_t rows, size_t cols) {
    size_t m = ef__min(rows, cols), n = rows + cols - m, r = ef__share(l, m);
    size_t scratch = ef__pad(r * n) + 3 * ef__pad(m) + ef__pad(2 * sm_words(m)) +
                     ef__cut_scratch(m) + SIGNMUON_GEMM_SCRATCH;
    EfSizes s = {r * (m + n), 0, 0, r, r * n, scratch, (double)r / (double)m};
    return s;
}

typedef float EfLanes __attribute__((vector_size(64)));

/* y <- y - <x, y> x, in 16 lanes whatever the width of the CPU's vectors */
static inline void ef__project(float *y, const float *x, size_t n) {
    EfLanes sum = {0}, a, b;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        memcpy(&a, x + i, sizeof a);
        memcpy(&b, y + i, sizeof b);
        sum += a * b;
    }
    float dot = 0;
    for (; i < n; i++) dot += x[i] * y[i];
    for (size_t l = 0; l < 16; l++) dot += sum[l];
    for (i = 0; i < n; i++) y[i] -= dot * x[i];
}

/* x <- x / |x|, or 0 where |x| <= least */
static inline void ef__normalise(float *x, size_t n, double least) {
    double norm = sqrt(sm_sum_squares(x, n)), scale = norm > least ? 1 / norm : 0;
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)x[i] * scale);
}

/* Rows of p (r x m) <- orthonormal ones of the same span, by modified Gram-Schmidt, twice. A row
 * within 1e-5 of the span of those before it becomes zero. */
static inline void ef__orthonormalise(float *p, size_t r, size_t m) {
    for (size_t k = 0; k < r; k++) {
        ef__normalise(p + k * m, m, 0);
        for (int pass = 0; pass < 2; pass++)
            for (size_t j = 0; j < k; j++) ef__project(p + k * m, p + j * m, m);
        ef__normalise(p + k * m, m, 1e-5);
    }
}

/* Columns of Q (r x n, transposed) that are zero <- nearly Gaussian ones: the sum of the four
 * quarters of a hash. */
static inline void ef__start(float *q, size_t r, size_t n, uint64_t key) {
    for (size_t k = 0; k < r; k++) {
        if (sm_sum_squares(q + k * n, n) > 0) continue;
        for (size_t j = k * n; j < (k + 1) * n; j++) {
            uint64_t h = sm_hash(key, j);
            uint64_t sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
            q[j] = (float)((int)sum - 131070) * 0x1p-15f;
        }
    }
}

/* R <- A^T P for the P that arrives; returns |R|^2, which is the part of |A|^2 that P R^T keeps. */
static inline double ef__right_factor(float *right, float *p, const float *x, const EfTask *t,
                                      float *exact, float *rest) {
    size_t m = ef__min(t->rows, t->cols), n = t->rows + t->cols - m, r = t->size.rank;
    const float *arrived = p;
    if (t->link->natural) {
        ef__round(p, r * m, t);
        memcpy(exact, p, r * m * sizeof *p);
        ef__orthonormalise(exact, r, m);
        arrived = exact;
    }
    SIGNMUON_GEMM(t->rows > t->cols ? 't' : 'n', right, arrived, x, r, n, m, rest);
    return sm_sum_squares(right, r * n);
}

static inline const float *ef__gather_rank(const float *x, const EfTask *t) {
    size_t m = ef__min(t->rows, t->cols), n = t->rows + t->cols - m, r = t->size.rank;
    int tall = t->rows > t->cols;
    float *p = t->values, *right = p + r * m, *exact = t->scratch, *rest = exact + ef__pad(r * n);
    double energy = sm_sum_squares(x, m * n);
    memset(p, 0, t->size.values * sizeof *p);
    if (energy > 0) {
        ef__start(t->warm, r, n, t->key);
        SIGNMUON_GEMM(tall ? 'n' : 't', p, t->warm, x, r, m, n, rest); /* P <- orth(A Q) */
        ef__orthonormalise(p, r, m);
        if (ef__right_factor(right, p, x, t, exact, rest) < energy * t->size.alpha) {
            double *sum = (double *)(void *)(rest + ef__pad(m));
            float *after = rest + 3 * ef__pad(m);
            uint64_t *longest = (uint64_t *)(void *)after;
            ef__norms(rest, x, m, tall ? 1 : n, n, tall ? m : 1, sum);
            ef__pick(longest, rest, m, r, after + ef__pad(2 * sm_words(m)));
            memset(p, 0, r * m * sizeof *p);
            for (size_t i = 0, k = 0; i < m; i++)
                if (longest[i / 64] >> i % 64 & 1) p[k++ * m + i] = 1;
            ef__right_factor(right, p, x, t, exact, rest);
        }
    }
    memcpy(t->warm, right, r * n * sizeof *right); /* Q of the next step */
    for (size_t k = 0; k < r; k++) ef__normalise(t->warm + k * n, n, 0);
    return t->values;
}

/* out <- P R^T, or its transpose R P^T where A was transposed */
static inline void ef__scatter_rank(float *out, const EfTask *t) {
    size_t m = ef__min(t->rows, t->cols), n = t->rows + t->cols - m, r = t->size.rank;
    int tall = t->rows > t->cols;
    float *p = t->values, *right = p + r * m, *left = t->scratch, *rest = left + ef__pad(r * n);
    if (t->link->natural) ef__orthonormalise(p, r, m);
    sm_transpose(left, tall ? right : p, r, t->rows);
    SIGNMUON_GEMM('n', out, left, tall ? p : right, t->rows, t->cols, r, rest);
}

/* ------------------------------------------------------------------------------------------------
 * the table, and its text */

/* Compressors. NULL past the end. */
static inline const EfCompressor *ef_compressor_row(size_t i) {
    // clang-format off
    static const EfCompressor table[] = {
        /* name, argument, natural, replaces, dropout, sizes, gather, scatter, doc */
        {"identity", NULL, 0, 1, 0, ef__sizes_all, ef__gather_all, NULL,
         "fp32, exact"},
        {"topk", "F", 1, 0, 0, ef__sizes_top, ef__gather_top, ef__scatter_top,
         "the fraction F of entries that is largest in magnitude; +natural rounds them"},
        {"rankk", "F", 1, 0, 0, ef__sizes_rank, ef__gather_rank, ef__scatter_rank,
         "rank F min(m,n), by a warm-started power iteration; +natural rounds the factors"},
        {"natural", NULL, 2, 0, 0, ef__sizes_all, ef__gather_all, NULL,
         "sign and exponent, 9 bits; nearest, or :stochastic, which is unbiased"},
        {"sign", NULL, 0, 0, 0, ef__sizes_sign, ef__gather_sign, ef__scatter_sign,
         "mean|x| sign(x), one bit each"},
        {"dropout", "P", 0, 0, 1, ef__sizes_all, ef__gather_all, NULL,
         "the whole matrix in fp32 with probability P, else nothing"},
        {"damping", "G", 0, 0, 0, ef__sizes_damped, ef__gather_damped, NULL,
         "G x in fp32; saves nothing, for tests"},
        {"coltopk", "F", 1, 0, 0, ef__sizes_columns, ef__gather_top, ef__scatter_top,
         "the fraction F of columns that is largest in 2-norm; +natural rounds them"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* The argument after a name, ":0.1" or ":10%", into l->value; returns what follows it, or NULL. */
static inline const char *ef__argument(EfLink *l, const char *text) {
    char *end;
    if (*text != ':' || !strspn(text + 1, "0123456789.") || strpbrk(text, "xX")) return NULL;
    l->value = strtod(text + 1, &end);
    if (*end == '%') l->value /= 100, end++;
    return l->value > 0 && l->value <= 1 ? end : NULL;
}

/* Read "topk:10%+natural" and the like: a row's name, its argument, and how values travel.
 * error    -1 and one sentence that lists what there is; link is as it was */
static inline int ef_parse(EfLink *link, const char *text, char *error, size_t size) {
    size_t length = strcspn(text, ":+");
    const EfCompressor *row;
    for (size_t i = 0; (row = ef_compressor_row(i)) != NULL; i++)
        if (strlen(row->name) == length && !memcmp(row->name, text, length)) break;
    EfLink l = {row, 0, row && row->natural == 2, 0};
    const char *rest = row ? text + length : NULL;
    if (rest && row->argument) rest = ef__argument(&l, rest);
    if (rest && row->natural == 1 && !strncmp(rest, "+natural", 8)) l.natural = 1, rest += 8;
    if (rest && l.natural && !strcmp(rest, ":stochastic")) l.stochastic = 1, rest += 11;
    if (rest && !*rest) {
        *link = l;
        return 0;
    }
    int at = snprintf(error, size, "'%.40s' is not a compressor; there are", text);
    for (size_t i = 0; (row = ef_compressor_row(i)) != NULL && (size_t)at < size; i++)
        at += snprintf(error + at, size - (size_t)at, "%s %s%s%s%s", i ? "," : "", row->name,
                       row->argument ? ":" : "", row->argument ? row->argument : "",
                       row->natural == 1 ? "[+natural]" : "");
    if ((size_t)at < size)
        snprintf(error + at, size - (size_t)at,
                 "; 0 < F, P, G <= 1, as 10%%; :stochastic may follow natural");
    return -1;
}

/* ------------------------------------------------------------------------------------------------
 * sizes */

/* ceil(log2 n): bits of an index below n */
static inline unsigned ef__index_bits(size_t n) {
    return n > 1 ? 64 - (unsigned)__builtin_clzll(n - 1) : 0;
}

/* Bits of the plane in a message: as a list of indices where that is shorter. */
static inline size_t ef__plane_bits(const EfSizes *s) {
    return s->kept ? ef__min(s->plane, s->kept * ef__index_bits(s->plane)) : s->plane;
}

static inline size_t ef__message_bits(const EfLink *l, const EfSizes *s) {
    return s->values * (l->natural ? 9 : 32) + ef__plane_bits(s);
}

/* Does dropout's coin let the message through? */
static inline int ef__sent(const EfLink *l, uint64_t coin) {
    return !l->row->dropout || (double)(sm_hash(coin, 0) >> 11) * 0x1p-53 < l->value;
}

/* Bytes of the longest message. */
static inline size_t ef_most_bytes(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = l->row->sizes(l, rows, cols);
    return (ef__message_bits(l, &s) + 7) / 8;
}

/* Bytes of the message; only dropout's depend on the coin (0 when dropped). */
static inline size_t ef_bytes(const EfLink *l, size_t rows, size_t cols, uint64_t coin) {
    return ef__sent(l, coin) ? ef_most_bytes(l, rows, cols) : 0;
}

/* Bits of the message before they fill whole bytes; of dropout, the expectation. */
static inline double ef_bits(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = l->row->sizes(l, rows, cols);
    return (double)ef__message_bits(l, &s) * (l->row->dropout ? l->value : 1);
}

/* Bits as EF21-Muon's cost table counts them: 26 for an index, 16 for a natural value, and r
 * singular values beside the factors. */
static inline double ef_paper_bits(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = l->row->sizes(l, rows, cols);
    double bits = (double)(s.values + s.rank) * (l->natural ? 16 : 32);
    bits += s.kept ? 26 * (double)s.kept : (double)s.plane;
    return bits * (l->row->dropout ? l->value : 1);
}

/* Guaranteed alpha: E|C(x) - x|_F^2 <= (1 - alpha) |x|_F^2, up to rounding, and but for natural on
 * subnormals and beyond 1.5 * 2^127. Rounding to the nearest power of two loses 1/9 of what is
 * kept, at random 1/8. */
static inline double ef_contraction(const EfLink *l, size_t rows, size_t cols) {
    double alpha = l->row->sizes(l, rows, cols).alpha;
    return !l->natural ? alpha : l->stochastic ? alpha * 7 / 8 : alpha * 8 / 9;
}

/* Floats of state that a sender keeps between steps, zeroed at first: rankk's right factor. */
static inline size_t ef_warm(const EfLink *l, size_t rows, size_t cols) {
    return l->row->sizes(l, rows, cols).warm;
}

/* Floats of scratch, aligned to 64 bytes, for each of the functions below. */
static inline size_t ef_scratch(const EfLink *l, size_t rows, size_t cols) {
    EfSizes s = l->row->sizes(l, rows, cols);
    return 3 * ef__pad(rows * cols) + ef__pad(s.values) + ef__pad(2 * sm_words(s.plane)) +
           s.scratch;
}

static inline EfTask ef__task(const EfLink *l, size_t rows, size_t cols, uint64_t key, float *warm,
                              float *scratch) {
    EfTask t = {l, l->row->sizes(l, rows, cols), rows, cols, key, warm, scratch, NULL, NULL};
    float *plane = scratch + ef__pad(t.size.values);
    t.plane = (uint64_t *)(void *)plane;
    t.scratch = plane + ef__pad(2 * sm_words(t.size.plane));
    return t;
}

/* ------------------------------------------------------------------------------------------------
 * messages */

/* Append the low n bits (0 .. 64) of value, whose others are 0; *at counts bits. */
static inline void ef__put(unsigned char *bits, size_t *at, uint64_t value, unsigned n) {
    if (n == 64 && *at % 8 == 0) memcpy(bits + *at / 8, &value, 8), *at += n, n = 0;
    for (unsigned done = 0, take; done < n; done += take, *at += take) {
        take = (unsigned)ef__min(n - done, 8 - *at % 8);
        if (*at % 8 == 0) bits[*at / 8] = 0;
        bits[*at / 8] |= (unsigned char)(value >> done << *at % 8);
    }
}

/* The next n bits (0 .. 64), which must be there. */
static inline uint64_t ef__get(const unsigned char *bits, size_t *at, unsigned n) {
    uint64_t value = 0;
    if (n == 64 && *at % 8 == 0) return memcpy(&value, bits + *at / 8, 8), *at += n, value;
    for (unsigned done = 0, take; done < n; done += take, *at += take) {
        take = (unsigned)ef__min(n - done, 8 - *at % 8);
        value |= ((uint64_t)bits[*at / 8] >> *at % 8 & (((uint64_t)1 << take) - 1)) << done;
    }
    return value;
}

static inline void ef__encode(unsigned char *message, const float *x, const EfTask *t) {
    const float *v = t->link->row->gather(x, t);
    size_t count = t->size.values, n = t->size.plane, at = count * (t->link->natural ? 8 : 32);
    int stochastic = t->link->stochastic, listed = ef__plane_bits(&t->size) < n;
    uint64_t key = t->key, minus = 0;
    if (!t->link->natural) memcpy(message, v, count * sizeof *v);
    for (size_t i = 0; t->link->natural && i < count; i += 64) {
        size_t left = ef__min(64, count - i);
        float negative[64];
        for (size_t k = i; k < i + left; k++) {
            message[k] = (unsigned char)ef__exponent(v[k], stochastic, key, k);
            negative[k - i] = -v[k];
        }
        sm_pack(&minus, negative, left, SM_ABSTAIN, 0); /* the sign bit of -0 is that of 0 */
        ef__put(message, &at, minus, (unsigned)left);
    }
    for (size_t w = 0; w < sm_words(n); w++) {
        if (!listed) ef__put(message, &at, t->plane[w], (unsigned)ef__min(64, n - w * 64));
        for (uint64_t b = t->plane[w]; listed && b; b &= b - 1)
            ef__put(message, &at, w * 64 + (uint64_t)__builtin_ctzll(b), ef__index_bits(n));
    }
}

/* v <- the values of a message; *at: bits read */
static inline void ef__get_values(float *v, const unsigned char *message, size_t *at,
                                  const EfTask *t) {
    size_t count = t->size.values;
    *at = count * (t->link->natural ? 8 : 32);
    if (!t->link->natural) memcpy(v, message, count * sizeof *v);
    for (size_t i = 0; t->link->natural && i < count; i += 64) {
        size_t n = ef__min(64, count - i);
        uint64_t minus = ef__get(message, at, (unsigned)n);
        for (size_t k = 0; k < n; k++) {
            uint32_t u = (uint32_t)message[i + k] << 23 | (uint32_t)(minus >> k) << 31;
            memcpy(&v[i + k], &u, sizeof u);
        }
    }
}

/* t->plane <- as sent; -1 when an index is not below size.plane or not above the one before, or
 * when the number of ones is wrong. */
static inline int ef__get_plane(const unsigned char *message, size_t *at, const EfTask *t) {
    size_t n = t->size.plane, kept = t->size.kept, ones = 0, least = 0;
    int listed = ef__plane_bits(&t->size) < n;
    for (size_t w = 0; w < sm_words(n); w++) {
        t->plane[w] = listed ? 0 : ef__get(message, at, (unsigned)ef__min(64, n - w * 64));
        ones += (size_t)__builtin_popcountll(t->plane[w]);
    }
    if (!listed) return kept && ones != kept ? -1 : 0;
    for (size_t k = 0; k < kept; k++) {
        size_t i = (size_t)ef__get(message, at, ef__index_bits(n));
        if (i >= n || i < least) return -1;
        t->plane[i / 64] |= (uint64_t)1 << i % 64;
        least = i + 1;
    }
    return 0;
}

/* out <- what a message says.
 * error    EF_NOT_FINITE: a value is NaN or infinite. EF_MALFORMED: not a message of this link and
 *          shape (length, index, a bit behind the end). out is then as it was, or zero */
static inline int ef_decode(float *out, const void *message, size_t bytes, size_t rows, size_t cols,
                            const EfLink *l, float *scratch) {
    EfTask t = ef__task(l, rows, cols, 0, NULL, scratch);
    const unsigned char *from = (const unsigned char *)message;
    size_t d = rows * cols, bits = ef__message_bits(l, &t.size), at;
    float *v = l->row->scatter ? t.values : out;
    if (bytes == 0 && l->row->dropout) return memset(out, 0, d * sizeof *out), 0;
    if (bytes != (bits + 7) / 8) return EF_MALFORMED;
    ef__get_values(v, from, &at, &t);
    int bad = sm_finite(v, t.size.values) ? 0 : EF_NOT_FINITE;
    if (!bad && (ef__get_plane(from, &at, &t) || (bits % 8 && from[bytes - 1] >> bits % 8)))
        bad = EF_MALFORMED;
    if (!bad && l->row->scatter) {
        l->row->scatter(out, &t);
        if (!sm_finite(out, d)) bad = EF_NOT_FINITE; /* a product overflowed */
    }
    if (bad) memset(out, 0, d * sizeof *out);
    return bad;
}

/* message <- C(x), ef_bytes long; out <- what its receiver will decode.
 * key      of random bits, this worker's own;  coin  of dropout, the same on all workers
 * warm     ef_warm floats, or NULL when that is 0
 * alias    out may be x
 * cost     O(rows cols); rankk: 6 rows cols r flop and a QR */
static inline void ef_compress(void *message, float *out, const float *x, size_t rows, size_t cols,
                               const EfLink *l, uint64_t key, uint64_t coin, float *warm,
                               float *scratch) {
    EfTask t = ef__task(l, rows, cols, key, warm, scratch);
    if (ef__sent(l, coin)) ef__encode((unsigned char *)message, x, &t);
    ef_decode(out, message, ef_bytes(l, rows, cols, coin), rows, cols, l, scratch);
}

/* ------------------------------------------------------------------------------------------------
 * error feedback */

/* Compress a residual and advance the sender's estimate by it: message <- C(target - estimate),
 * estimate <- estimate + C(target - estimate). Where the sender is the server, `estimate` is the
 * workers' model W and `target` the server's X. An exact link sends the target itself, as adding a
 * difference would round: estimate <- target. Arguments as of ef_compress. */
static inline void ef_send(void *message, float *estimate, const float *target, size_t rows,
                           size_t cols, const EfLink *l, uint64_t key, uint64_t coin, float *warm,
                           float *scratch) {
    size_t d = rows * cols;
    float *residual = scratch, *rest = scratch + ef__pad(d);
    if (l->row->replaces) {
        ef_compress(message, estimate, target, rows, cols, l, key, coin, warm, rest);
        return;
    }
    for (size_t i = 0; i < d; i++) residual[i] = target[i] - estimate[i];
    ef_compress(message, residual, residual, rows, cols, l, key, coin, warm, rest);
    for (size_t i = 0; i < d; i++) estimate[i] += residual[i];
}

/* Advance the receiver's copy of an estimate by a message, as its sender did.
 * error    as of ef_decode; estimate is as it was */
static inline int ef_receive(float *estimate, const void *message, size_t bytes, size_t rows,
                             size_t cols, const EfLink *l, float *scratch) {
    size_t d = rows * cols;
    float *residual = scratch, *rest = scratch + ef__pad(d);
    int bad = ef_decode(residual, message, bytes, rows, cols, l, rest);
    if (bad) return bad;
    for (size_t i = 0; i < d; i++)
        estimate[i] = l->row->replaces ? residual[i] : estimate[i] + residual[i];
    return 0;
}

/* Advance the server's estimate by the mean of the workers' messages: G <- G + mean R_j, summed in
 * rank order in double; an exact link: G <- mean.
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
        const unsigned char *message = (const unsigned char *)first + (size_t)j * stride;
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

#ifdef __cplusplus
}
#endif
#endif
