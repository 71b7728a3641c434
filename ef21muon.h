/* ef21muon.h - compressors with exact byte counts, and error feedback (EF21) on both links. C11 or
   C++17, libc and signmuon.h only, MIT.

     S1  X   <- X - t LMO(G)            server: a step on the estimate G of the mean momentum
     S2  S   <- C(X - W)                server: the shift of the model, compressed; S travels down
     S3  W   <- W + S                   server and every worker: the model that workers have
     W2  M_j <- mu M_j + (1-mu) g_j(W)  worker j: its gradient, taken at W
     W3  R_j <- C_j(M_j - G_j)          worker j: what its estimate lacks, compressed; travels up
     W4  G_j <- G_j + R_j               worker j
     S4  G   <- G + mean R_j            server: so that G = mean G_j always

   EF21-Muon (arXiv 2510.00643), with mu = 1 - beta. S1 and W2 are signmuon.h's; here are the
   compressors C and the lines S2 to S4, W3 and W4. C is contractive: E|C(x) - x|^2 <= (1 - alpha)
   |x|^2, which is all that error feedback needs. Copy this file beside signmuon.h and include it,
   in as many files as you like.

   Three workers with different targets; 24 weights are 7 bytes up and 27 down, instead of 96:

#include <stdio.h>
#include "ef21muon.h"

enum { N = 3, ROWS = 6, COLS = 4, SIZE = ROWS * COLS };
static float x[SIZE], w[SIZE], g[SIZE], model[SIZE], m[N][SIZE], estimate[N][SIZE], u[SIZE];
static unsigned char shift[4 * SIZE], message[N][4 * SIZE];
static _Alignas(64) float scratch[16384];

int main(void) {
    EfLink up, down;
    char error[200] = "";
    if (ef_parse(&up, "topk:20%+natural", error, sizeof error) ||
        ef_parse(&down, "natural", error, sizeof error) || ef_scratch(&up, ROWS, COLS) > 16384)
        return puts(error), 1;
    size_t sent = ef_bytes(&up, ROWS, COLS, 0), received = ef_bytes(&down, ROWS, COLS, 0);
    for (uint64_t k = 0; k < 400; k++) {
        sm_polar(u, g, ROWS, COLS, sm_newton_schulz("jordan5"), scratch);
        for (size_t i = 0; i < SIZE; i++) x[i] -= 0.02f * (1.0f - (float)k / 400) * u[i];
        ef_send(shift, w, x, ROWS, COLS, &down, sm_key(1, 0, k), 0, NULL, scratch);
        if (ef_receive(model, shift, received, ROWS, COLS, &down, scratch)) return 1;
        for (size_t j = 0; j < N; j++) {        // gradient of 1/2 |W - target_j|^2
            for (size_t i = 0; i < SIZE; i++) u[i] = model[i] - 0.1f * (float)((i + j) % 5);
            sm_momentum(u, m[j], u, SIZE, 0.9f, 0);
            ef_send(message[j], estimate[j], u, ROWS, COLS, &up, sm_key(1, j + 1, k), 0, NULL,
                    scratch);
        }
        if (ef_aggregate(g, message, sizeof *message, sent, N, ROWS, COLS, &up, scratch)) return 1;
    }
    printf("w[6] = %.2f (mean target 0.20), %zu bytes up\n", (double)w[6], sent);
    return 0;
}

   MEMORY    The caller brings every buffer. Matrices are row-major and tight; scratch is aligned to
             64 bytes; messages lie at any address. `warm` is state of the sender, zeroed at first,
             one per link and tensor, and belongs in checkpoints.
   THREADS   Every function may be called from any thread on distinct outputs.

   API
     ef_compressor_row ef_parse          compressors as a table, and their text: "topk:10%+natural"
     ef_bytes ef_most_bytes              size of a message, and of the longest that a link can send
     ef_bits ef_paper_bits               the same by formula, and by the paper's count
     ef_contraction                      guaranteed alpha
     ef_warm ef_scratch                  floats of state and of scratch
     ef_compress ef_decode               a tensor to a message and back
     ef_send ef_receive ef_aggregate     the same with error feedback

   NUMERICS
     wire      values, then a plane of bits, rounded up to whole bytes once: values as fp32, or with
               +natural as exponent bytes and then sign bits; the plane says which entries or
               columns are kept (index list or bitmap, whichever is shorter for this shape). The
               bits that fill up the last byte are 0. Byte order: little-endian.
     identity  sender and receiver both decode the message, with the same code: what they add to
               their estimates is equal bit for bit. Machines that differ want -ffp-contract=off,
               and for rankk and svdtopk a SIGNMUON_GEMM that rounds the same on both
     topk      ties go to the lower index
     natural   powers of two; zero and subnormals become 0, beyond 2^127 is 2^127
     rankk     A is turned so that m <= n. P is orthonormal (m x r) and R = A^T P. Where that keeps
               less than the share r/m of |A|^2, as it may when the warm start looks the wrong way,
               P becomes unit vectors of the r longest rows: so alpha is that of the truncated SVD.
               +natural rounds P, makes it orthonormal again at both ends, and R belongs to that P:
               rounding R is then all that is lost
     aggregate in double, in order of rank
     NaN, Inf  not looked for in what is sent: refuse them before (sm_finite)
*/
#ifndef EF21MUON_H
#define EF21MUON_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "signmuon.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------
 * declarations */

typedef struct EfLink EfLink;

/* A matrix and how it is compressed: what the functions of a row are told. */
typedef struct EfTask {
    const EfLink *link;
    size_t rows, cols;
    uint64_t key;
    float *warm;     /* NULL in a receiver */
    float *v;        /* values of the message */
    uint64_t *plane; /* bits of the message */
    float *scratch;  /* as many floats as the row's `scratch` says */
} EfTask;

typedef size_t EfSize(const EfLink *l, size_t rows, size_t cols);
typedef double EfNumber(const EfLink *l, size_t rows, size_t cols);

/* A compressor is a row: how many values and bits its message has, what it picks, how it puts that
 * back. */
typedef struct EfCompressor {
    const char *name;      /* as typed before ':' */
    const char *argument;  /* "F", "P", "G", or NULL */
    const char *takes;     /* what it takes, for a sentence */
    double most;           /* largest value of the argument, which is above 0 */
    int natural;           /* 1: "+natural" may follow; 2: is natural by itself */
    int replaces;          /* the message is the target itself, and replaces the estimate */
    int coin;              /* sent with probability `value` only */
    EfSize *values;        /* of the message */
    EfSize *plane;         /* its bits */
    EfSize *picked;        /* how many of them are 1; NULL: any number */
    EfNumber *contraction; /* with exact values */
    EfNumber *paper;       /* bits; NULL: the real ones */
    EfSize *warm, *scratch;
    const float *(*gather)(const float *x, const EfTask *t); /* plane; returns v, or x when equal */
    void (*scatter)(float *out, const EfTask *t);            /* NULL: out is v */
    const char *doc;
} EfCompressor;

/* One link's compressor: a parsed --up or --down. */
struct EfLink {
    const EfCompressor *row;
    double value;            /* of the argument */
    int natural, stochastic; /* values travel as powers of two; rounded at random */
};

/* ------------------------------------------------------------------------------------------------
 * sizes by formula, of which the rows of the table choose */

static inline size_t ef__min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t ef__max(size_t a, size_t b) { return a > b ? a : b; }

/* n rounded up to a whole vector of 16 floats */
static inline size_t ef__pad(size_t n) { return (n + 15) / 16 * 16; }

/* The share of n that a fraction keeps, at least 1. (The 1e-9 makes 29% of 100 be 29.) */
static inline size_t ef__share(const EfLink *l, size_t n) {
    return ef__max(1, ef__min(n, (size_t)(l->value * (double)n + 1e-9)));
}

enum { EF__BINS = 2048, EF__TABLES = 4 }; /* of the histograms of ef__cut */
static inline size_t ef__cut_scratch(size_t n) { return ef__pad(n) + EF__TABLES * EF__BINS; }

// clang-format off
#define EF__RULE(type, name, formula)                                                              \
    static inline type name(const EfLink *l, size_t rows, size_t cols) {                           \
        return (void)l, (void)rows, (void)cols, formula;                                           \
    }

EF__RULE(size_t, ef__none, 0)
EF__RULE(size_t, ef__one, 1)
EF__RULE(size_t, ef__cols, cols)
EF__RULE(size_t, ef__all, rows * cols)
EF__RULE(size_t, ef__picked, ef__share(l, l->row->plane(l, rows, cols)))
EF__RULE(size_t, ef__picked_values,
         ef__picked(l, rows, cols) * (rows * cols / l->row->plane(l, rows, cols)))
EF__RULE(size_t, ef__rank, ef__share(l, ef__min(rows, cols)))
EF__RULE(size_t, ef__rank_values, ef__rank(l, rows, cols) * (rows + cols))
EF__RULE(size_t, ef__rank_warm, ef__rank(l, rows, cols) * ef__max(rows, cols))

EF__RULE(double, ef__exact, 1)
EF__RULE(double, ef__probability, l->value)
EF__RULE(double, ef__damped, l->value * (2 - l->value))
EF__RULE(double, ef__one_of_all, 1 / ((double)rows * (double)cols))
EF__RULE(double, ef__picked_share,
         (double)ef__picked(l, rows, cols) / (double)l->row->plane(l, rows, cols))
EF__RULE(double, ef__rank_share, (double)ef__rank(l, rows, cols) / (double)ef__min(rows, cols))

EF__RULE(double, ef__paper_natural, 16 * (double)rows * (double)cols)
EF__RULE(double, ef__paper_top,
         (double)ef__picked(l, rows, cols) * (l->natural ? 16 + 26 : 32 + 26))
EF__RULE(double, ef__paper_rank,
         (double)ef__rank(l, rows, cols) * (double)(rows + cols + 1) * (l->natural ? 16 : 32))

EF__RULE(size_t, ef__top_scratch, ef__cut_scratch(rows * cols))
EF__RULE(size_t, ef__column_scratch, 3 * ef__pad(cols) + ef__cut_scratch(cols))
/* a factor; lengths, their sums and the choice among m of them; and what products want */
EF__RULE(size_t, ef__rank_scratch,
         ef__pad(ef__rank_warm(l, rows, cols)) + 4 * ef__pad(ef__min(rows, cols)) + 16 +
             ef__cut_scratch(ef__min(rows, cols)) + SIGNMUON_GEMM_SCRATCH)
/* and A and U in double */
EF__RULE(size_t, ef__svd_scratch,
         ef__pad(ef__rank_scratch(l, rows, cols)) +
             2 * (rows * cols + ef__min(rows, cols) * ef__min(rows, cols)))
// clang-format on

/* Floats of warm-start state that a sender keeps between steps, zeroed at first. */
static inline size_t ef_warm(const EfLink *l, size_t rows, size_t cols) {
    return l->row->warm(l, rows, cols);
}

/* ------------------------------------------------------------------------------------------------
 * bits in a row */

typedef struct EfWriter {
    unsigned char *at;
    uint64_t held;
    unsigned count; /* bits held, below 64 */
} EfWriter;

/* Append the low n bits (0 .. 64) of value, whose others are 0. */
static inline void ef__put(EfWriter *w, uint64_t value, unsigned n) {
    w->held |= value << w->count;
    if (w->count + n < 64) {
        w->count += n;
        return;
    }
    memcpy(w->at, &w->held, 8);
    w->at += 8;
    w->held = w->count ? value >> (64 - w->count) : 0;
    w->count = w->count + n - 64;
}

static inline void ef__flush(EfWriter *w) { memcpy(w->at, &w->held, (w->count + 7) / 8); }

typedef struct EfReader {
    const unsigned char *from;
    size_t bytes, at; /* at: bits read */
} EfReader;

/* The next n bits (0 .. 64), which must be there. */
static inline uint64_t ef__get(EfReader *r, unsigned n) {
    size_t byte = r->at / 8, shift = r->at % 8, left = r->bytes - byte;
    uint64_t word = 0;
    if (left >= 8)
        memcpy(&word, r->from + byte, 8);
    else
        memcpy(&word, r->from + byte, left);
    word >>= shift;
    if (n + shift > 64) word |= (uint64_t)r->from[byte + 8] << (64 - shift);
    r->at += n;
    return n < 64 ? word & (((uint64_t)1 << n) - 1) : word;
}

/* ceil(log2 n): bits of an index below n */
static inline unsigned ef__index_bits(size_t n) {
    return n > 1 ? 64 - (unsigned)__builtin_clzll(n - 1) : 0;
}

/* ------------------------------------------------------------------------------------------------
 * natural compression (Horvath et al. 2019): a value becomes sign and 8-bit exponent */

static inline uint32_t ef__float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* Biased exponent of a power of two next to x: the mantissa plus `dither` carries into it, or not.
 * 2^22 makes that the nearest power, a uniform number below 2^23 an unbiased one. */
static inline uint32_t ef__exponent(float x, uint32_t dither) {
    uint32_t u = ef__float_bits(x) & 0x7fffffff, e = (u + dither) >> 23;
    e = e > 254 ? 254 : e;
    return u < 0x00800000 ? 0 : e;
}

static inline uint32_t ef__dither(int stochastic, uint64_t key, size_t i) {
    return stochastic ? (uint32_t)(sm_hash(key, i) >> 41) : 1 << 22;
}

static inline void ef__exponents(unsigned char *e, const float *x, size_t n, const EfTask *t) {
    int stochastic = t->link->stochastic;
    uint64_t key = t->key;
    for (size_t i = 0; i < n; i++)
        e[i] = (unsigned char)ef__exponent(x[i], ef__dither(stochastic, key, i));
}

/* x <- what its receiver will see; rounding twice changes nothing more. */
static inline void ef__round(float *x, size_t n, const EfTask *t) {
    for (size_t i = 0; i < n; i++) {
        uint32_t dither = ef__dither(t->link->stochastic, t->key, i);
        uint32_t u = ef__exponent(x[i], dither) << 23 | (ef__float_bits(x[i]) & (1u << 31));
        memcpy(&x[i], &u, sizeof u);
    }
}

/* 64 values (n of them meant) from exponents and sign bits; returns the largest exponent. */
static inline uint32_t ef__powers(float *x, const unsigned char *e, uint64_t minus, size_t n) {
    uint32_t largest = 0, u[64];
    unsigned char full[64] = {0};
    memcpy(full, e, n);
    for (size_t half = 0; half < 64; half += 32) {
        uint32_t m = (uint32_t)(minus >> half);
        for (size_t i = 0; i < 32; i++) {
            uint32_t f = full[half + i];
            largest = f > largest ? f : largest;
            u[half + i] = f << 23 | (m << (31 - i) & (1u << 31));
        }
    }
    memcpy(x, u, n * sizeof *x);
    return largest;
}

/* ------------------------------------------------------------------------------------------------
 * the entries of largest magnitude, in O(n) */

/* Bits |x[i]| > cut, as integers, and in *equal those that equal it, of n <= 64 entries. */
static inline uint64_t ef__above(uint64_t *equal, const float *x, size_t n, int32_t cut) {
    float more[64];
    uint64_t differ, above;
    for (size_t i = 0; i < n; i++)
        more[i] = (float)((int32_t)(ef__float_bits(x[i]) & 0x7fffffff) - cut);
    above = sm__positive(&differ, more, n);
    *equal = ~differ & ~(uint64_t)0 >> (64 - n);
    return above;
}

/* The bin that holds the *keep-th largest; *keep becomes its place within the bin. */
static inline uint32_t ef__bin(const uint32_t *histogram, uint32_t bins, size_t *keep) {
    uint32_t bin = bins - 1;
    for (; bin > 0 && histogram[bin] < *keep; bin--) *keep -= histogram[bin];
    return bin;
}

/* list <- magnitudes of the entries in one bin of 2^20; returns how many. */
static inline size_t ef__list(uint32_t *list, const float *x, size_t n, uint32_t bin) {
    size_t count = 0;
    int32_t low = (int32_t)(bin << 20) - 1, high = (int32_t)((bin << 20) + 0xfffff);
    for (size_t w = 0; w < n; w += 64) {
        size_t left = ef__min(64, n - w);
        uint64_t equal;
        uint64_t in = ef__above(&equal, x + w, left, low);
        in &= ~ef__above(&equal, x + w, left, high);
        for (; in; in &= in - 1)
            list[count++] = ef__float_bits(x[w + (size_t)__builtin_ctzll(in)]) & 0x7fffffff;
    }
    return count;
}

/* The bits of the *keep-th largest magnitude of n (1 .. n); *keep becomes its place among equals.
 * Three histograms of 11, 10 and 10 bits, the last two of one bin of the one before. Four tables,
 * as equal exponents in a row would queue for one counter. */
static inline int32_t ef__cut(const float *x, size_t n, size_t *keep, float *scratch) {
    uint32_t *histogram = (uint32_t *)(void *)scratch, *list = histogram + EF__TABLES * EF__BINS;
    memset(histogram, 0, EF__TABLES * EF__BINS * sizeof *histogram);
    for (size_t i = 0; i < n; i++)
        histogram[i % EF__TABLES * EF__BINS + (ef__float_bits(x[i]) << 1 >> 21)]++;
    for (size_t b = 0; b < EF__BINS; b++)
        for (size_t k = 1; k < EF__TABLES; k++) histogram[b] += histogram[k * EF__BINS + b];
    uint32_t bits = ef__bin(histogram, EF__BINS, keep) << 20;
    size_t count = ef__list(list, x, n, bits >> 20);
    for (unsigned shift = 10;; shift -= 10) {
        memset(histogram, 0, 1024 * sizeof *histogram);
        for (size_t i = 0; i < count; i++) histogram[list[i] >> shift & 1023]++;
        uint32_t bin = ef__bin(histogram, 1024, keep);
        bits |= bin << shift;
        if (shift == 0) return (int32_t)bits;
        size_t same = 0;
        for (size_t i = 0; i < count; i++)
            if ((list[i] >> shift & 1023) == bin) list[same++] = list[i];
        count = same;
    }
}

/* plane <- 1 for the `keep` entries of largest magnitude, of equal ones the first. */
static inline void ef__pick(uint64_t *plane, const float *x, size_t n, size_t keep,
                            float *scratch) {
    int32_t cut = ef__cut(x, n, &keep, scratch);
    for (size_t w = 0; w < sm_words(n); w++) {
        uint64_t equal, take = 0;
        plane[w] = ef__above(&equal, x + w * 64, ef__min(64, n - w * 64), cut);
        for (; equal && keep; equal &= equal - 1, keep--) take |= equal & (~equal + 1);
        plane[w] |= take;
    }
}

/* ------------------------------------------------------------------------------------------------
 * QR, in vectors of 16 floats: no result depends on the width of the CPU's */

typedef float EfLanes __attribute__((vector_size(64)));

/* y <- y - <x, y> x */
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

/* ------------------------------------------------------------------------------------------------
 * identity, natural, dropout, damping, sign */

static inline const float *ef__gather_all(const float *x, const EfTask *t) { return (void)t, x; }

static inline const float *ef__gather_damped(const float *x, const EfTask *t) {
    float scale = (float)t->link->value;
    for (size_t i = 0; i < t->rows * t->cols; i++) t->v[i] = scale * x[i];
    return t->v;
}

/* plane <- signs, an exact zero's by a coin; v[0] <- mean|x| (Karimireddy et al. 2019) */
static inline const float *ef__gather_sign(const float *x, const EfTask *t) {
    size_t n = t->rows * t->cols, i = 0;
    double lane[8] = {0}, sum = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++) lane[j] += (double)fabsf(x[i + j]);
    for (; i < n; i++) lane[0] += (double)fabsf(x[i]);
    for (size_t j = 0; j < 8; j++) sum += lane[j];
    t->v[0] = (float)(sum / (double)n);
    sm_pack(t->plane, x, n, SM_COIN, t->key);
    return t->v;
}

static inline void ef__scatter_sign(float *out, const EfTask *t) {
    size_t n = t->rows * t->cols;
    uint64_t here = t->v[0] > 0 ? ~(uint64_t)0 : 0;
    float last[64];
    for (size_t w = 0; w < sm_words(n); w++) {
        size_t left = n - w * 64;
        sm__expand(left < 64 ? last : out + w * 64, t->plane[w], here, t->v[0]);
        if (left < 64) memcpy(out + w * 64, last, left * sizeof *out);
    }
}

/* ------------------------------------------------------------------------------------------------
 * topk and coltopk: the columns of largest 2-norm, which for topk are those of a single row */

/* norm <- 2-norms of n lines of x, in fp32; element p of line i at x[i * row + p * col]; sum is n
 * doubles */
static inline void ef__norms(float *norm, const float *x, size_t row, size_t col, size_t n,
                             size_t length, double *sum) {
    for (size_t i = 0; i < n; i++) sum[i] = 0;
    for (size_t p = 0; p < length; p++)
        for (size_t i = 0; i < n; i++)
            sum[i] += (double)x[i * row + p * col] * (double)x[i * row + p * col];
    for (size_t i = 0; i < n; i++) norm[i] = (float)sqrt(sum[i]);
}

static inline const float *ef__gather_top(const float *x, const EfTask *t) {
    const EfCompressor *row = t->link->row;
    size_t n = row->plane(t->link, t->rows, t->cols), size = t->rows * t->cols, k = 0;
    const float *weight = x;
    float *rest = t->scratch;
    if (size > n) {
        float *norm = rest + 2 * ef__pad(n);
        ef__norms(norm, x, 1, n, n, t->rows, (double *)(void *)rest);
        weight = norm;
        rest = norm + ef__pad(n);
    }
    ef__pick(t->plane, weight, n, row->picked(t->link, t->rows, t->cols), rest);
    for (size_t at = 0; at < size; at += n)
        for (size_t w = 0; w < sm_words(n); w++)
            for (uint64_t bits = t->plane[w]; bits; bits &= bits - 1)
                t->v[k++] = x[at + w * 64 + (size_t)__builtin_ctzll(bits)];
    return t->v;
}

static inline void ef__scatter_top(float *out, const EfTask *t) {
    size_t n = t->link->row->plane(t->link, t->rows, t->cols), size = t->rows * t->cols, k = 0;
    memset(out, 0, size * sizeof *out);
    for (size_t at = 0; at < size; at += n)
        for (size_t w = 0; w < sm_words(n); w++)
            for (uint64_t bits = t->plane[w]; bits; bits &= bits - 1)
                out[at + w * 64 + (size_t)__builtin_ctzll(bits)] = t->v[k++];
}

/* ------------------------------------------------------------------------------------------------
 * rankk and svdtopk: A ~ P R^T with A turned so that m <= n; here and on the wire as P^T (r x m)
 * and R^T (r x n) */

typedef struct EfFactors {
    const float *x; /* A(i, j) is x[i * row + j * col] */
    size_t m, n, r, row, col;
    int turned;
    float *p, *q; /* r x m, r x n, in v */
    float *factor, *rest;
} EfFactors;

static inline EfFactors ef__factors(const float *x, const EfTask *t) {
    size_t m = ef__min(t->rows, t->cols), n = ef__max(t->rows, t->cols);
    size_t r = ef__rank(t->link, t->rows, t->cols);
    int turned = t->rows > t->cols;
    float *p = t->v, *q = p + r * m, *factor = t->scratch, *rest = factor + ef__pad(r * n);
    EfFactors f = {x, m, n, r, turned ? 1 : n, turned ? m : 1, turned, p, q, factor, rest};
    return f;
}

/* P = orth(A Q), Q the R of the last step; a column without one starts nearly Gaussian, as the sum
 * of the four quarters of a hash. */
static inline void ef__power_step(EfFactors *f, const EfTask *t) {
    for (size_t k = 0; k < f->r; k++) {
        float *q = t->warm + k * f->n;
        if (sm_sum_squares(q, f->n) > 0) continue;
        for (size_t j = 0; j < f->n; j++) {
            uint64_t h = sm_hash(t->key, k * f->n + j);
            uint64_t sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
            q[j] = (float)((int)sum - 131070) * 0x1p-15f;
        }
    }
    SIGNMUON_GEMM(f->turned ? 'n' : 't', f->p, t->warm, f->x, f->r, f->m, f->n, f->rest);
    ef__orthonormalise(f->p, f->r, f->m);
}

/* P = the r rows of U (m x m), or of the unit matrix, that weigh most: weights are m floats at
 * f->rest. */
static inline void ef__heaviest(EfFactors *f, const double *u) {
    float *more = f->rest + 3 * ef__pad(f->m), *p = f->p;
    uint64_t *plane = (uint64_t *)(void *)more;
    ef__pick(plane, f->rest, f->m, f->r, more + ef__pad(2 * sm_words(f->m)));
    for (size_t i = 0; i < f->m; i++) {
        if (!(plane[i / 64] >> i % 64 & 1)) continue;
        for (size_t j = 0; j < f->m; j++) *p++ = u ? (float)u[i * f->m + j] : (float)(i == j);
    }
}

/* P = the r left singular vectors of largest singular value, by Jacobi in double */
static inline void ef__left_vectors(EfFactors *f, const EfTask *t) {
    size_t m = f->m, n = f->n;
    double *a =
        (double *)(void *)(t->scratch + ef__pad(ef__rank_scratch(t->link, t->rows, t->cols)));
    double *u = a + m * n;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) a[i * n + j] = (double)f->x[i * f->row + j * f->col];
    sm__jacobi(a, u, m, n);
    for (size_t i = 0; i < m; i++) { /* singular values: |A^T u_i| */
        double sum = 0;
        for (size_t j = 0; j < n; j++) {
            double dot = 0;
            for (size_t l = 0; l < m; l++)
                dot += u[i * m + l] * (double)f->x[l * f->row + j * f->col];
            sum += dot * dot;
        }
        f->rest[i] = (float)sqrt(sum);
    }
    ef__heaviest(f, u);
}

/* R = A^T P for the P that arrives; returns |R|^2, which is what P R^T keeps of |A|^2. */
static inline double ef__right_factor(EfFactors *f, const EfTask *t) {
    const float *p = f->p;
    if (t->link->natural) {
        ef__round(f->p, f->r * f->m, t);
        memcpy(f->factor, f->p, f->r * f->m * sizeof *f->p);
        ef__orthonormalise(f->factor, f->r, f->m);
        p = f->factor;
    }
    SIGNMUON_GEMM(f->turned ? 't' : 'n', f->q, p, f->x, f->r, f->n, f->m, f->rest);
    return sm_sum_squares(f->q, f->r * f->n);
}

/* A row that keeps state iterates, another takes the exact factors. */
static inline const float *ef__gather_rank(const float *x, const EfTask *t) {
    EfFactors f = ef__factors(x, t);
    double energy = sm_sum_squares(x, f.m * f.n);
    int iterates = ef_warm(t->link, t->rows, t->cols) > 0;
    memset(f.p, 0, f.r * (f.m + f.n) * sizeof *f.p);
    if (energy > 0) {
        (iterates ? ef__power_step : ef__left_vectors)(&f, t);
        if (ef__right_factor(&f, t) < energy * (double)f.r / (double)f.m) {
            ef__norms(f.rest, x, f.row, f.col, f.m, f.n, (double *)(void *)(f.rest + ef__pad(f.m)));
            ef__heaviest(&f, NULL);
            ef__right_factor(&f, t);
        }
    }
    if (!iterates) return t->v;
    memcpy(t->warm, f.q, f.r * f.n * sizeof *f.q);
    for (size_t k = 0; k < f.r; k++) ef__normalise(t->warm + k * f.n, f.n, 0);
    return t->v;
}

/* out <- P R^T, or R P^T of a matrix that was turned */
static inline void ef__scatter_rank(float *out, const EfTask *t) {
    EfFactors f = ef__factors(NULL, t);
    if (t->link->natural) ef__orthonormalise(f.p, f.r, f.m);
    sm_transpose(f.factor, f.turned ? f.q : f.p, f.r, t->rows);
    SIGNMUON_GEMM('n', out, f.factor, f.turned ? f.p : f.q, t->rows, t->cols, f.r, f.rest);
}

/* ------------------------------------------------------------------------------------------------
 * the table */

#define EF__FRACTION "a fraction 0 < F <= 1, as 0.1 or 10%"

/* Rows of --list compressors. NULL past the end. */
static inline const EfCompressor *ef_compressor_row(size_t i) {
    // clang-format off
    static const EfCompressor table[] = {
        /* name, argument, takes, most, natural, replaces, coin,
               values, plane, picked, contraction, paper, warm, scratch, gather, scatter, doc */
        {"identity", NULL, "no argument", 0, 0, 1, 0,
         ef__all, ef__none, NULL, ef__exact, NULL, ef__none, ef__none, ef__gather_all, NULL,
         "fp32, exact"},
        {"topk", "F", EF__FRACTION, 1, 1, 0, 0,
         ef__picked_values, ef__all, ef__picked, ef__picked_share, ef__paper_top, ef__none,
         ef__top_scratch, ef__gather_top, ef__scatter_top,
         "the share F of entries that is largest in magnitude; +natural rounds them"},
        {"rankk", "F", EF__FRACTION, 1, 1, 0, 0,
         ef__rank_values, ef__none, NULL, ef__rank_share, ef__paper_rank, ef__rank_warm,
         ef__rank_scratch, ef__gather_rank, ef__scatter_rank,
         "rank F min(m,n), by a warm-started power iteration; +natural rounds the factors"},
        {"natural", NULL, "nothing, or :stochastic", 0, 2, 0, 0,
         ef__all, ef__none, NULL, ef__exact, ef__paper_natural, ef__none, ef__none, ef__gather_all,
         NULL, "sign and exponent, 9 bits; nearest, or :stochastic, which is unbiased"},
        {"sign", NULL, "no argument", 0, 0, 0, 0,
         ef__one, ef__all, NULL, ef__one_of_all, NULL, ef__none, ef__none, ef__gather_sign,
         ef__scatter_sign, "mean|x| sign(x), one bit each"},
        {"dropout", "P", "a probability 0 < P <= 1", 1, 0, 0, 1,
         ef__all, ef__none, NULL, ef__probability, NULL, ef__none, ef__none, ef__gather_all, NULL,
         "the whole tensor in fp32 with probability P, else nothing"},
        {"damping", "G", "a factor 0 < G < 2", 0x1.fffffffffffffp+0, 0, 0, 0,
         ef__all, ef__none, NULL, ef__damped, NULL, ef__none, ef__none, ef__gather_damped, NULL,
         "G x in fp32; saves nothing, for tests"},
        {"coltopk", "F", EF__FRACTION, 1, 1, 0, 0,
         ef__picked_values, ef__cols, ef__picked, ef__picked_share, NULL, ef__none,
         ef__column_scratch, ef__gather_top, ef__scatter_top,
         "the share F of columns that is largest in 2-norm; +natural rounds them"},
        {"svdtopk", "F", EF__FRACTION, 1, 1, 0, 0,
         ef__rank_values, ef__none, NULL, ef__rank_share, ef__paper_rank, ef__none, ef__svd_scratch,
         ef__gather_rank, ef__scatter_rank,
         "rank F min(m,n) by an exact SVD; slow, for tests; +natural rounds the factors"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* error (size bytes, which hold a string) <- with so much of this behind it as fits */
__attribute__((format(printf, 3, 4))) static inline void ef__say(char *error, size_t size,
                                                                 const char *format, ...) {
    size_t used = size ? strlen(error) : 0;
    va_list list;
    va_start(list, format);
    vsnprintf(error + used, size - used, format, list);
    va_end(list);
}

/* The argument of a link from ":0.1" or ":10%"; returns what follows it, or NULL. */
static inline const char *ef__argument(EfLink *l, const char *text) {
    char *end = NULL;
    if (*text != ':') return NULL;
    text++;
    if (!((*text >= '0' && *text <= '9') || *text == '.')) return NULL;
    if (text[strcspn(text, "xX")]) return NULL; /* strtod would take hexadecimal */
    l->value = strtod(text, &end);
    if (*end == '%') l->value /= 100, end++;
    return l->value > 0 && l->value <= l->row->most ? end : NULL;
}

/* "topk:10%+natural" and the like: a row's name, its argument, and how values travel.
 * error    -1, and in error (size bytes) one sentence that says what is wrong and what is taken */
static inline int ef_parse(EfLink *link, const char *text, char *error, size_t size) {
    size_t length = strcspn(text, ":+");
    const EfCompressor *row;
    const char *rest = text + length;
    for (size_t i = 0; (row = ef_compressor_row(i)) != NULL; i++)
        if (strlen(row->name) == length && !memcmp(row->name, text, length)) break;
    EfLink l = {row, 0, row && row->natural == 2, 0};
    if (row && row->argument) rest = ef__argument(&l, rest);
    if (row && rest && row->natural == 1 && !strncmp(rest, "+natural", 8)) l.natural = 1, rest += 8;
    if (rest && l.natural && sm__equal(rest, ":stochastic")) l.stochastic = 1, rest += 11;
    if (row && rest && !*rest) {
        *link = l;
        return 0;
    }
    if (size) *error = 0;
    if (row)
        ef__say(error, size, "'%s': %s takes %s%s", text, row->name, row->takes,
                row->natural == 1 ? ", then nothing or +natural[:stochastic]" : "");
    else
        ef__say(error, size, "'%s' is not a compressor; there are", text);
    for (size_t i = 0; !l.row && (row = ef_compressor_row(i)) != NULL; i++)
        ef__say(error, size, "%s %s%s%s", i ? "," : "", row->name, row->argument ? ":" : "",
                row->argument ? row->argument : "");
    return -1;
}

/* ------------------------------------------------------------------------------------------------
 * sizes */

/* Bits of the plane as it travels: as a list of indices where that is shorter. */
static inline size_t ef__plane_bits(const EfLink *l, size_t rows, size_t cols) {
    size_t n = l->row->plane(l, rows, cols);
    return l->row->picked ? ef__min(n, l->row->picked(l, rows, cols) * ef__index_bits(n)) : n;
}

static inline size_t ef__message_bits(const EfLink *l, size_t rows, size_t cols) {
    return l->row->values(l, rows, cols) * (l->natural ? 9 : 32) + ef__plane_bits(l, rows, cols);
}

/* Is there a message at all? */
static inline int ef__sent(const EfLink *l, uint64_t coin) {
    return !l->row->coin || (double)(sm_hash(coin, 0) >> 11) * 0x1p-53 < l->value;
}

/* Bytes of the longest message. */
static inline size_t ef_most_bytes(const EfLink *l, size_t rows, size_t cols) {
    return (ef__message_bits(l, rows, cols) + 7) / 8;
}

/* Bytes of the message; depends on coin for dropout only (0 when dropped). */
static inline size_t ef_bytes(const EfLink *l, size_t rows, size_t cols, uint64_t coin) {
    return ef__sent(l, coin) ? ef_most_bytes(l, rows, cols) : 0;
}

/* Bits before they are rounded up to bytes; the expectation for dropout. */
static inline double ef_bits(const EfLink *l, size_t rows, size_t cols) {
    return (double)ef__message_bits(l, rows, cols) * (l->row->coin ? l->value : 1);
}

/* Bits as EF21-Muon's cost table counts them: 26 for an index, 16 for a natural value, r singular
 * values beside the factors. */
static inline double ef_paper_bits(const EfLink *l, size_t rows, size_t cols) {
    return l->row->paper ? l->row->paper(l, rows, cols) : ef_bits(l, rows, cols);
}

/* Guaranteed alpha: E|C(x) - x|_F^2 <= (1 - alpha) |x|_F^2, but for rounding, and for what natural
 * does to subnormals and beyond 1.5 * 2^127. Rounding to the nearest power of two loses 1/9 of what
 * is kept, at random 1/8. */
static inline double ef_contraction(const EfLink *l, size_t rows, size_t cols) {
    double kept = l->row->contraction(l, rows, cols);
    return !l->natural ? kept : l->stochastic ? kept * 7 / 8 : kept * 8 / 9;
}

static inline size_t ef__plane_scratch(const EfLink *l, size_t rows, size_t cols) {
    return ef__pad(2 * sm_words(l->row->plane(l, rows, cols)));
}

/* Floats of scratch, aligned to 64 bytes, for each of the functions below. */
static inline size_t ef_scratch(const EfLink *l, size_t rows, size_t cols) {
    return 3 * ef__pad(rows * cols) + ef__pad(l->row->values(l, rows, cols)) +
           ef__plane_scratch(l, rows, cols) + l->row->scratch(l, rows, cols);
}

/* ------------------------------------------------------------------------------------------------
 * messages */

static inline EfTask ef__task(const EfLink *l, size_t rows, size_t cols, uint64_t key, float *warm,
                              float *scratch) {
    float *plane = scratch + ef__pad(l->row->values(l, rows, cols));
    EfTask t = {l, rows, cols, key, warm, scratch, (uint64_t *)(void *)plane, plane};
    t.scratch += ef__plane_scratch(l, rows, cols);
    return t;
}

static inline void ef__put_plane(EfWriter *to, const EfTask *t) {
    size_t n = t->link->row->plane(t->link, t->rows, t->cols);
    int listed = ef__plane_bits(t->link, t->rows, t->cols) < n;
    for (size_t w = 0; w < sm_words(n); w++) {
        if (!listed) ef__put(to, t->plane[w], (unsigned)ef__min(64, n - w * 64));
        for (uint64_t b = t->plane[w]; listed && b; b &= b - 1)
            ef__put(to, w * 64 + (uint64_t)__builtin_ctzll(b), ef__index_bits(n));
    }
}

/* plane <- as sent; -1 when an index is not below n or not above the one before, or when the bits
 * are not as many as they should be. */
static inline int ef__get_plane(EfReader *from, const EfTask *t) {
    const EfLink *l = t->link;
    size_t n = l->row->plane(l, t->rows, t->cols), set = 0, least = 0;
    size_t picked = l->row->picked ? l->row->picked(l, t->rows, t->cols) : 0;
    if (ef__plane_bits(l, t->rows, t->cols) < n) {
        memset(t->plane, 0, sm_words(n) * sizeof *t->plane);
        for (size_t k = 0; k < picked; k++) {
            size_t i = (size_t)ef__get(from, ef__index_bits(n));
            if (i >= n || i < least) return -1;
            t->plane[i / 64] |= (uint64_t)1 << i % 64;
            least = i + 1;
        }
        return 0;
    }
    for (size_t w = 0; w < sm_words(n); w++) {
        t->plane[w] = ef__get(from, (unsigned)ef__min(64, n - w * 64));
        set += (size_t)__builtin_popcountll(t->plane[w]);
    }
    return l->row->picked && set != picked ? -1 : 0;
}

/* v <- the count values of a message, which are followed by `from`; -1 when one is not finite. */
static inline int ef__get_values(float *v, EfReader *from, const unsigned char *message,
                                 size_t count, const EfLink *l) {
    uint32_t largest = 0;
    if (!l->natural) {
        memcpy(v, message, count * sizeof *v);
        from->at = 32 * count;
        return sm_finite(v, count) ? 0 : -1;
    }
    from->at = 8 * count;
    for (size_t i = 0; i < count; i += 64) {
        size_t n = ef__min(64, count - i);
        uint32_t e = ef__powers(v + i, message + i, ef__get(from, (unsigned)n), n);
        largest = e > largest ? e : largest;
    }
    return largest < 255 ? 0 : -1;
}

static inline void ef__encode(unsigned char *message, const float *x, const EfTask *t) {
    int natural = t->link->natural;
    size_t count = t->link->row->values(t->link, t->rows, t->cols);
    const float *v = t->link->row->gather(x, t);
    EfWriter to = {message + count * (natural ? 1 : 4), 0, 0};
    if (natural)
        ef__exponents(message, v, count, t);
    else
        memcpy(message, v, count * sizeof *v);
    for (size_t i = 0; natural && i < count; i += 64) {
        size_t n = ef__min(64, count - i);
        uint64_t nonzero, plus = sm__positive(&nonzero, v + i, n);
        ef__put(&to, nonzero & ~plus, (unsigned)n);
    }
    ef__put_plane(&to, t);
    ef__flush(&to);
}

/* out <- what a message says.
 * error    -1: not a message of this link and shape (length, index, a value that is not finite, a
 *          bit behind the end); out is as it was, or zero */
static inline int ef_decode(float *out, const void *message, size_t bytes, size_t rows, size_t cols,
                            const EfLink *l, float *scratch) {
    EfTask t = ef__task(l, rows, cols, 0, NULL, scratch);
    size_t d = rows * cols, bits = ef__message_bits(l, rows, cols);
    const unsigned char *from = (const unsigned char *)message;
    EfReader reader = {from, bytes, 0};
    float *v = l->row->scatter ? t.v : out;
    if (bytes != (bits + 7) / 8 && !(l->row->coin && bytes == 0)) return -1;
    if (bytes == 0) {
        memset(out, 0, d * sizeof *out);
        return 0;
    }
    int bad = bits % 8 && from[bytes - 1] >> bits % 8;
    bad = bad || ef__get_values(v, &reader, from, l->row->values(l, rows, cols), l) ||
          ef__get_plane(&reader, &t);
    if (!bad && l->row->scatter) {
        l->row->scatter(out, &t);
        bad = !sm_finite(out, d);
    }
    if (bad) memset(out, 0, d * sizeof *out);
    return bad ? -1 : 0;
}

/* message <- C(x), ef_bytes long; out <- what its receiver will decode.
 * key      of random bits, this worker's own;  coin  of dropout, the same on all workers
 * warm     ef_warm floats, or NULL when that is 0
 * alias    out may be x; cost  O(rows cols), rankk: 6 rows cols r flop and a QR */
static inline void ef_compress(void *message, float *out, const float *x, size_t rows, size_t cols,
                               const EfLink *l, uint64_t key, uint64_t coin, float *warm,
                               float *scratch) {
    EfTask t = ef__task(l, rows, cols, key, warm, scratch);
    if (ef__sent(l, coin)) ef__encode((unsigned char *)message, x, &t);
    ef_decode(out, message, ef_bytes(l, rows, cols, coin), rows, cols, l, scratch);
}

/* R = C(target - estimate); estimate += R. Identity sends the target itself, as adding a difference
 * would round: estimate = target. (S2, S3; W3, W4) */
static inline void ef_send(void *message, float *estimate, const float *target, size_t rows,
                           size_t cols, const EfLink *l, uint64_t key, uint64_t coin, float *warm,
                           float *scratch) {
    size_t d = rows * cols;
    float *r = scratch, *rest = scratch + ef__pad(d);
    if (l->row->replaces) {
        ef_compress(message, estimate, target, rows, cols, l, key, coin, warm, rest);
        return;
    }
    for (size_t i = 0; i < d; i++) r[i] = target[i] - estimate[i];
    ef_compress(message, r, r, rows, cols, l, key, coin, warm, rest);
    for (size_t i = 0; i < d; i++) estimate[i] += r[i];
}

/* estimate += R as decoded; identity: estimate = message. (S3 of a worker)
 * error    -1 as ef_decode; estimate is as it was */
static inline int ef_receive(float *estimate, const void *message, size_t bytes, size_t rows,
                             size_t cols, const EfLink *l, float *scratch) {
    size_t d = rows * cols;
    float *r = scratch, *rest = scratch + ef__pad(d);
    if (ef_decode(r, message, bytes, rows, cols, l, rest)) return -1;
    for (size_t i = 0; i < d; i++) estimate[i] = l->row->replaces ? r[i] : estimate[i] + r[i];
    return 0;
}

/* aggregate += mean of the R_j, summed in rank order in double; identity: aggregate = mean.
 * first    message of rank 0;  stride  bytes from one rank's message to the next;  bytes  of each
 * error    -1 as ef_decode, for any rank; aggregate is as it was   (S4) */
static inline int ef_aggregate(float *aggregate, const void *first, size_t stride, size_t bytes,
                               int workers, size_t rows, size_t cols, const EfLink *l,
                               float *scratch) {
    size_t d = rows * cols;
    double *sum = (double *)(void *)scratch;
    float *r = scratch + 2 * ef__pad(d), *rest = r + ef__pad(d);
    for (size_t i = 0; i < d; i++) sum[i] = 0;
    for (int j = 0; j < workers; j++) {
        const unsigned char *message = (const unsigned char *)first + (size_t)j * stride;
        if (ef_decode(r, message, bytes, rows, cols, l, rest)) return -1;
        for (size_t i = 0; i < d; i++) sum[i] += (double)r[i];
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
