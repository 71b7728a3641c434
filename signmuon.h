/* signmuon.h - Muon steps that travel as one bit per weight. C11 or C++17, libc only, MIT.

     M  <- mu M + (1-mu) G          every worker, its own gradient
     S  <- sign(polar(M))           polar factor by Newton-Schulz; S is what travels
     V  <- majority(S_1 .. S_N)     a tie is decided by the rule under NUMERICS
     W  <- (1 - lr wd) W - lr s V   the gain s depends on the matrix shape only

   SignMuon (arXiv 2605.16311) and its relatives: Muon, Signum, signSGD with majority vote (arXiv
   1810.05291), Lion, MuonUSign = polar(sign(M)), MuonSign = sign(polar(sign(M))), and the sign of
   any other norm's linear minimisation oracle (LMO).

   This file is the mathematics of one worker. It includes nothing of this project, allocates
   nothing, prints nothing, owns no threads and keeps no state: copy it and include it, in as many
   files as you like. The distributed optimizer declared at the end lives in signmuon.c.

   Three workers that vote through shared memory, with this header alone:

#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include "signmuon.h"

enum { N = 3, ROWS = 6, COLS = 4, SIZE = ROWS * COLS };
static uint64_t ballot[N][1], vote[1];              // one bit per weight; 24 bits fit one word
static pthread_barrier_t barrier;

static void *worker(void *arg) {
    size_t rank = (size_t)arg;
    float w[SIZE] = {0}, m[SIZE] = {0}, u[SIZE], g[SIZE], scratch[4096];
    for (uint64_t step = 0; step < 200; step++) {
        for (size_t i = 0; i < SIZE; i++)           // gradient of 1/2 |w - target|^2, and noise
            g[i] = w[i] - 0.1f * (float)(i % 5) + 0.01f * ((float)((i * 7 + rank * 3 + step) % 3) - 1);
        sm_momentum(u, m, g, SIZE, 0.9f, 0);        // M <- mu M + (1-mu) G
        sm_polar(u, u, ROWS, COLS, sm_newton_schulz("jordan5"), scratch);
        sm_pack(ballot[rank], u, SIZE, SM_COIN, sm_key(1, rank + 1, step));
        pthread_barrier_wait(&barrier);
        const uint64_t *ballots[N] = {ballot[0], ballot[1], ballot[2]};
        if (rank == 0) sm_vote(vote, NULL, ballots, NULL, N, 1, SM_COIN, sm_key(1, 0, step), 0);
        pthread_barrier_wait(&barrier);
        sm_apply(w, vote, NULL, SIZE, 0.01f * (1.0f - (float)step / 200), 1.0f);
    }
    if (rank == 0) printf("w[4] = %.2f (target 0.40)\n", (double)w[4]);
    return NULL;
}

int main(void) {
    pthread_t t[N];
    pthread_barrier_init(&barrier, NULL, N);
    for (size_t i = 0; i < N; i++) pthread_create(&t[i], NULL, worker, (void *)i);
    for (size_t i = 0; i < N; i++) pthread_join(t[i], NULL);
    return 0;
}

   MEMORY    The caller brings every buffer, scratch included (sizes: sm_..._scratch, in floats;
             align scratch to 8 bytes for --ns exact, better to 64). Matrices are row-major and
             tight: rows = fan_out, cols = fan_in.
   THREADS   Every function may be called from any thread on distinct outputs.

   API
     sm_hash sm_key                     counter-based randomness
     sm_momentum                        EMA momentum, optional Nesterov look-ahead
     sm_newton_schulz sm_polar          orthogonalisation: polynomial table, polar factor
     sm_norm, SmNorm.lmo                norms and their unit-ball LMOs
     sm_pack sm_unpack sm_vote sm_apply sign bits: make, expand, count, use
     sm_count sm_vote_counts            the same vote, counted machine by machine
     sm_gain sm_method sm_norm_name     step gains and methods, as tables
     sm_adamw sm_step_dense             dense updates

   COMPILE-TIME KNOBS (define before including, the same in every file)
     SIGNMUON_GEMM(op, c, a, b, m, n, k, scratch)   c(m,n) = a(m,k) b; 'n': b is (k,n), 't': (n,k)
     SIGNMUON_SYMMETRIC(op, c, a, b, m, k, scratch) the same, c(m,m) known to be symmetric
     SIGNMUON_GEMM_SCRATCH                          floats that it wants after the caller's scratch

   NUMERICS
     sums      in index order, or in eight interleaved double lanes added in order: no result
               depends on threads or alignment
     sign      the alphabet is {-1,+1}; sign(0) is a coin hashed from the caller's key (put the
               rank in)
     tie       a coin hashed from the caller's key (leave the rank out: all replicas must agree)
     polar     fp32; the input is never modified; zero in, zero out; exactly invariant to scaling
               by powers of two (the norm is not padded by an epsilon)
     NaN, Inf  not looked for here: refuse them before they become bits (sm_finite)
*/
#ifndef SIGNMUON_H
#define SIGNMUON_H

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------
 * declarations */

/* What a zero entry says, and what a tied vote means. Abstaining costs a second bit per weight. */
typedef enum SmZero { SM_COIN, SM_PLUS, SM_ABSTAIN } SmZero;

/* One way to orthogonalise: X <- (a I + b A + c A^2) X with A = X X^T, once per triple (a,b,c). */
typedef struct SmNewtonSchulz {
    const char *name;
    int steps;     /* 0: exact, by a one-sided Jacobi SVD in double */
    double safety; /* the input is divided by safety * Frobenius norm */
    double coefficient[8][3];
    const char *doc;
} SmNewtonSchulz;

/* A norm is known by the LMO of its unit ball, here argmax <G, O> over |O| <= 1 (note the sign).
 * out      may be g
 * warm     `cols` floats kept from step to step and zero at first, or NULL; only a norm with
 *          `warms` set looks at them
 * scratch  sm_lmo_scratch(rows, cols) floats */
typedef struct SmNorm {
    const char *name;
    void (*lmo)(float *out, const float *g, size_t rows, size_t cols, const SmNewtonSchulz *ns,
                float *warm, float *scratch);
    int warms;
    double (*rms)(double rows, double cols); /* of the entries of O, at full rank */
    const char *doc;
} SmNorm;

/* Factor on the step of an m x n matrix; `sign` tells a direction of +-1 from one of unit norm. */
typedef struct SmGain {
    const char *name;
    double (*gain)(size_t rows, size_t cols, int sign);
    const char *doc;
} SmGain;

/* What a worker holds. SM_GLUON: momentum of weight 1 - (k+1)^-1/2 at step k (arXiv 2505.13416). */
typedef enum SmEstimate { SM_GRADIENT, SM_MOMENTUM, SM_LION, SM_GLUON } SmEstimate;

/* What travels, and how it is merged: fp32, by the mean; a bit per weight, by majority vote; a
 * compressed residual, by error feedback (EF21); fp32 to neighbours, by a mixing matrix, the
 * parameters only or a gradient tracker first. */
typedef enum SmCombine { SM_MEAN, SM_VOTE, SM_FEEDBACK, SM_GOSSIP, SM_TRACKING } SmCombine;
typedef enum SmReply { SM_DENSE, SM_SIGN } SmReply; /* fp32, or one bit per weight */

/* How a direction moves the weights. SM_FRANK_WOLFE: W <- (1-lr) W - lr D stays in the ball of its
 * radius; SM_UNIT: a step of length lr over all tensors together. */
typedef enum SmUpdate { SM_STEP, SM_ADAMW, SM_FRANK_WOLFE, SM_UNIT } SmUpdate;

/* A method is a row of stages: how a direction is made, and how it travels, chosen apart. */
typedef struct SmMethod {
    const char *name;
    SmEstimate estimate;
    const char *worker_map; /* norm whose LMO a worker applies before sending, or "none" */
    SmCombine combine;
    const char *server_map; /* norm whose LMO is applied to the merged message, or "none" */
    SmReply reply;          /* how the result of a vote or a mean travels back */
    SmUpdate update;
    const char *gain;     /* default step gain */
    double lr;            /* default peak rate, for nanoGPT's CPU recipe */
    const char *schedule; /* default course of the rate */
    const char *aux;      /* default rule of the tensors that are not hidden matrices */
    double momentum;      /* default mu; Lion: beta2 */
    int nesterov;
    int first_gradient;    /* M starts as the first gradient, not as zero */
    double decay;          /* default decoupled weight decay */
    int warmup;            /* default steps over which the rate rises (at most half of all steps) */
    double clip;           /* default longest gradient of a worker; 0 does not clip */
    double clip_power;     /* step k clips at clip * (k+1)^clip_power */
    const char *up, *down; /* default compressors of error feedback's links */
    const char *doc;
} SmMethod;

/* What a tensor is to the model. Hidden matrices take the method, all others the auxiliary rule. */
typedef enum SmRole { SM_VECTOR, SM_HIDDEN, SM_INPUT, SM_OUTPUT, SM_ROLES } SmRole;

/* Radii of the balls that the LMOs of a tensor's role work in: factors on the rate. */
typedef struct SmRadii {
    const char *name;
    double radius[SM_ROLES];
    const char *doc;
} SmRadii;

/* Are two names the same? (strcmp, which gcc 12 warns about wrongly when it unrolls a table's
 * search) */
static inline int sm__equal(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

/* ------------------------------------------------------------------------------------------------
 * randomness: a value is a hash of (seed, stream, step, index) */

/* A 64-bit value from a key and a counter (splitmix64's finaliser, Steele et al. 2014). */
static inline uint64_t sm_hash(uint64_t key, uint64_t index) {
    uint64_t x = key + 0x9e3779b97f4a7c15u * (index + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The key of a stream of values. Coins of a worker take stream = tensor and rank, shared coins
 * no rank. */
static inline uint64_t sm_key(uint64_t seed, uint64_t stream, uint64_t step) {
    return sm_hash(sm_hash(sm_hash(0x5349474e4d554f4eu, seed), stream), step);
}

/* ------------------------------------------------------------------------------------------------
 * vectors */

/* Sum of squares, in eight double lanes added in order; n elements, reads once. */
static inline double sm_sum_squares(const float *x, size_t n) {
    double lane[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (size_t j = 0; j < 8 && i < n; i++, j++) lane[j] += (double)x[i] * (double)x[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* 1 when all n entries are finite. (A finite fp32 vector has a finite sum of squares in double.) */
static inline int sm_finite(const float *x, size_t n) {
    return isfinite(sm_sum_squares(x, n)) != 0;
}

/* m <- mu m + (1-mu) g; out <- m, or with Nesterov's look-ahead mu m + (1-mu) g.
 * out may be g; m overlaps neither. This is the EMA form: the heavy ball differs by a factor that
 * polar and sign do not see. (Muon's reference code) */
static inline void sm_momentum(float *out, float *m, const float *g, size_t n, float mu,
                               int nesterov) {
    float nu = 1.0f - mu;
    for (size_t i = 0; i < n; i++) {
        float gi = g[i];
        m[i] = mu * m[i] + nu * gi;
        out[i] = nesterov ? mu * m[i] + nu * gi : m[i];
    }
}

/* Lion (Chen et al. 2023): out <- beta1 m + (1-beta1) g; m <- beta2 m + (1-beta2) g. out may be
 * g. */
static inline void sm_lion(float *out, float *m, const float *g, size_t n, float beta1,
                           float beta2) {
    for (size_t i = 0; i < n; i++) {
        float gi = g[i];
        out[i] = beta1 * m[i] + (1.0f - beta1) * gi;
        m[i] = beta2 * m[i] + (1.0f - beta2) * gi;
    }
}

/* w <- keep w - step d. keep = 1 - lr * decay. */
static inline void sm_step_dense(float *w, const float *d, size_t n, float step, float keep) {
    for (size_t i = 0; i < n; i++) w[i] = keep * w[i] - step * d[i];
}

/* AdamW (Loshchilov and Hutter 2019) with bias correction; t counts from 1; keep = 1 - lr *
 * decay. */
static inline void sm_adamw(float *w, float *m, float *v, const float *g, size_t n, uint64_t t,
                            double lr, double beta1, double beta2, double epsilon, float keep) {
    double correct1 = 1 - pow(beta1, (double)t), correct2 = 1 - pow(beta2, (double)t);
    float b1 = (float)beta1, b2 = (float)beta2, n1 = (float)(1 - beta1), n2 = (float)(1 - beta2);
    float step = (float)(lr / correct1), root = (float)(1 / sqrt(correct2)), e = (float)epsilon;
    for (size_t i = 0; i < n; i++) {
        m[i] = b1 * m[i] + n1 * g[i];
        v[i] = b2 * v[i] + n2 * g[i] * g[i];
        w[i] = keep * w[i] - step * m[i] / (sqrtf(v[i]) * root + e);
    }
}

/* ------------------------------------------------------------------------------------------------
 * products: a reference, used unless the includer brings a better one */

/* c(m,n) = a(m,k) b; op 'n': b is (k,n), 't': b is (n,k). Row-major and tight; each entry is one
 * chain in k order. The oracle of gemm.h. */
static inline void sm_reference_gemm(char op, float *c, const float *a, const float *b, size_t m,
                                     size_t n, size_t k) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = 0;
            for (size_t p = 0; p < k; p++)
                sum += a[i * k + p] * (op == 't' ? b[j * k + p] : b[p * n + j]);
            c[i * n + j] = sum;
        }
}
#ifndef SIGNMUON_GEMM
#define SIGNMUON_GEMM(op, c, a, b, m, n, k, scratch)                                               \
    ((void)(scratch), sm_reference_gemm(op, c, a, b, m, n, k))
#define SIGNMUON_GEMM_SCRATCH 0
#endif
#ifndef SIGNMUON_SYMMETRIC
#define SIGNMUON_SYMMETRIC(op, c, a, b, m, k, scratch) SIGNMUON_GEMM(op, c, a, b, m, m, k, scratch)
#endif

/* ------------------------------------------------------------------------------------------------
 * the polar factor */

#define SM__EXPRESS(a, b, c)                                                                       \
    { a / 1.01, b / (1.01 * 1.01 * 1.01), c / (1.01 * 1.01 * 1.01 * 1.01 * 1.01) }

/* Rows of --ns. jordan: K. Jordan's quintic, five times; its singular values end in 0.68 .. 1.13 and
 * never get tighter. polar-express: Amsel et al. (arXiv 2505.16932), algorithm 1. */
static inline const SmNewtonSchulz *sm_newton_schulz_row(size_t i) {
    static const SmNewtonSchulz table[] = {
        {"jordan5",
         5,
         1.0,
         {{3.4445, -4.7750, 2.0315},
          {3.4445, -4.7750, 2.0315},
          {3.4445, -4.7750, 2.0315},
          {3.4445, -4.7750, 2.0315},
          {3.4445, -4.7750, 2.0315}},
         "Jordan's quintic, 5 steps"},
        {"polar-express5",
         5,
         1.01,
         {SM__EXPRESS(8.28721201814563, -23.595886519098837, 17.300387312530933),
          SM__EXPRESS(4.107059111542203, -2.9478499167379106, 0.5448431082926601),
          SM__EXPRESS(3.9486908534822946, -2.908902115962949, 0.5518191394370137),
          SM__EXPRESS(3.3184196573706015, -2.488488024314874, 0.51004894012372),
          SM__EXPRESS(2.300652019954817, -1.6689039845747493, 0.4188073119525673)},
         "Polar Express, 5 steps"},
        {"polar-express8",
         8,
         1.01,
         {SM__EXPRESS(8.28721201814563, -23.595886519098837, 17.300387312530933),
          SM__EXPRESS(4.107059111542203, -2.9478499167379106, 0.5448431082926601),
          SM__EXPRESS(3.9486908534822946, -2.908902115962949, 0.5518191394370137),
          SM__EXPRESS(3.3184196573706015, -2.488488024314874, 0.51004894012372),
          SM__EXPRESS(2.300652019954817, -1.6689039845747493, 0.4188073119525673),
          SM__EXPRESS(1.891301407787398, -1.2679958271945868, 0.37680408948524835),
          SM__EXPRESS(1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
          {1.875, -1.25, 0.375}},
         "Polar Express, 8 steps: exact to rounding when sigma_min >= 1e-3 of the norm"},
        {"exact",
         0,
         1.0,
         {{0, 0, 0}},
         "rank-truncated SVD (one-sided Jacobi, double); slow, for tests"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* The row of that name, or NULL. */
static inline const SmNewtonSchulz *sm_newton_schulz(const char *name) {
    const SmNewtonSchulz *row;
    for (size_t i = 0; (row = sm_newton_schulz_row(i)) != NULL; i++)
        if (sm__equal(row->name, name)) return row;
    return NULL;
}

/* Floats of scratch that sm_polar and every LMO need for a rows x cols matrix. */
static inline size_t sm_lmo_scratch(size_t rows, size_t cols) {
    size_t small = rows < cols ? rows : cols;
    return 2 * rows * cols + 4 * small * small + 64 + SIGNMUON_GEMM_SCRATCH;
}

/* out (cols x rows) = x (rows x cols) transposed, in 8 x 8 tiles. */
static inline void sm_transpose(float *out, const float *x, size_t rows, size_t cols) {
    for (size_t i0 = 0; i0 < rows; i0 += 8)
        for (size_t j0 = 0; j0 < cols; j0 += 8)
            for (size_t i = i0; i < i0 + 8 && i < rows; i++)
                for (size_t j = j0; j < j0 + 8 && j < cols; j++)
                    out[j * rows + i] = x[i * cols + j];
}

/* X (m x n, m <= n, double) <- its polar factor, by rotating pairs of rows until all are orthogonal.
 * u is m x m scratch. Singular values below 1e-6 of the largest, the rounding of fp32 input, count
 * as zero. */
static inline void sm__jacobi(double *x, double *u, size_t m, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < m * m; i++) u[i] = i % (m + 1) == 0;
    for (int sweep = 0, moved = 1; moved && sweep < 60; sweep++) {
        moved = 0;
        for (size_t p = 0; p + 1 < m; p++)
            for (size_t q = p + 1; q < m; q++) {
                double a = 0, b = 0, c = 0;
                for (size_t k = 0; k < n; k++) {
                    a += x[p * n + k] * x[p * n + k];
                    b += x[q * n + k] * x[q * n + k];
                    c += x[p * n + k] * x[q * n + k];
                }
                if (fabs(c) <= 1e-15 * sqrt(a * b)) continue;
                double zeta = (b - a) / (2 * c), sign = zeta < 0 ? -1 : 1;
                double t = sign / (fabs(zeta) + sqrt(1 + zeta * zeta));
                double cs = 1 / sqrt(1 + t * t), sn = cs * t;
                for (size_t k = 0; k < n + m; k++) {
                    double *row_p = k < n ? &x[p * n + k] : &u[p * m + k - n];
                    double *row_q = k < n ? &x[q * n + k] : &u[q * m + k - n];
                    double xp = *row_p, xq = *row_q;
                    *row_p = cs * xp - sn * xq;
                    *row_q = sn * xp + cs * xq;
                }
                moved = 1;
            }
    }
    for (int pass = 0; pass < 2; pass++) /* rows of x are now sigma_i v_i^T, rows of u are u_i^T */
        for (size_t i = 0; i < m; i++) {
            double norm = 0;
            for (size_t k = 0; k < n; k++) norm += x[i * n + k] * x[i * n + k];
            norm = sqrt(norm);
            if (pass == 0)
                largest = norm > largest ? norm : largest;
            else
                for (size_t k = 0; k < n; k++) x[i * n + k] *= norm > 1e-6 * largest ? 1 / norm : 0;
        }
}

/* out <- U V^T by SVD; the oracle of sm_polar and the row "exact". */
static inline void sm__polar_exact(float *out, const float *g, size_t rows, size_t cols,
                                   float *scratch) {
    int tall = rows > cols;
    size_t m = tall ? cols : rows, n = tall ? rows : cols;
    double *x = (double *)(void *)scratch, *u = x + m * n;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            x[i * n + j] = (double)(tall ? g[j * cols + i] : g[i * cols + j]);
    sm__jacobi(x, u, m, n);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t k = 0; k < m; k++) sum += u[k * m + i] * x[k * n + j];
            out[tall ? j * cols + i : i * cols + j] = (float)sum;
        }
}

/* p (m x m) <- c0 I + c1 a + c2 a a, for a symmetric */
static inline void sm__polynomial(float *p, const float *a, size_t m, const double *c,
                                  float *scratch) {
    (void)scratch;
    SIGNMUON_SYMMETRIC('n', p, a, a, m, m, scratch);
    for (size_t i = 0; i < m * m; i++) p[i] = (float)c[1] * a[i] + (float)c[2] * p[i];
    for (size_t i = 0; i < m; i++) p[i * m + i] += (float)c[0];
}

/* out <- polar(g) = U V^T (rows x cols), approximately, by the polynomials of ns.
 * alias    out may be g; scratch is sm_lmo_scratch(rows, cols) floats and overlaps neither
 * cost     m = min(rows, cols), n = max: a step of a nearly square matrix takes 3 m^2 n + m^3 flop,
 *          of a wide one (n > 2m) about 4 m^3, and X is touched four to six times in all
 * error    none: zero gives zero
 * source   Jordan et al. 2024. X <- P(A) X with A = X X^T; as every P is a polynomial in A, steps
 *          may be gathered, Q <- P Q and A <- P A P, and X multiplied once. Rounding in A limits
 *          how many: the first two steps lift small singular values before A is formed afresh. */
static inline void sm_polar(float *out, const float *g, size_t rows, size_t cols,
                            const SmNewtonSchulz *ns, float *scratch) {
    int tall = rows > cols;
    size_t m = tall ? cols : rows, n = tall ? rows : cols;
    double norm = ns->safety * sqrt(sm_sum_squares(g, rows * cols));
    if (!(norm > 0)) {
        memset(out, 0, rows * cols * sizeof *out);
        return;
    }
    if (ns->steps == 0) {
        sm__polar_exact(out, g, rows, cols, scratch);
        return;
    }
    float *x = scratch, *y = x + m * n, *a = y + m * n, *p = a + m * m, *q = p + m * m,
          *r = q + m * m, *rest = r + m * m;
    if (tall)
        sm_transpose(x, g, rows, cols);
    else
        memcpy(x, g, m * n * sizeof *x);
    for (size_t i = 0; i < m * n; i++) x[i] = (float)((double)x[i] * (1 / norm));
    for (int k = 0, gather; k < ns->steps; k += gather) {
        // clang-format off
        gather = n <= 2 * m ? 1 : k == 0 ? 2 : ns->steps - k < 3 ? ns->steps - k : 3;
        SIGNMUON_SYMMETRIC('t', a, x, x, m, n, rest);              /* A = X X^T                  */
        sm__polynomial(q, a, m, ns->coefficient[k], rest);         /* Q = c0 I + c1 A + c2 A A   */
        for (int j = 1; j < gather; j++) {
            float *last = j == 1 ? q : p, *swap = q;
            SIGNMUON_SYMMETRIC('n', r, last, a, m, m, rest);       /* A = P A P                  */
            SIGNMUON_SYMMETRIC('n', a, r, last, m, m, rest);
            sm__polynomial(p, a, m, ns->coefficient[k + j], rest); /* P = c0 I + c1 A + c2 A A   */
            SIGNMUON_SYMMETRIC('n', r, p, q, m, m, rest);          /* Q = P Q                    */
            q = r;
            r = swap;
        }
        SIGNMUON_GEMM('n', y, q, x, m, n, m, rest);                /* X = Q X                    */
        // clang-format on
        float *swap = x;
        x = y;
        y = swap;
    }
    if (tall)
        sm_transpose(out, x, m, n);
    else
        memcpy(out, x, m * n * sizeof *x);
}

/* ------------------------------------------------------------------------------------------------
 * norms and their linear minimisation oracles: ascending, over the unit ball, <G, O> = dual norm */

/* spectral norm: O = polar(G) */
static inline void sm__lmo_spectral(float *out, const float *g, size_t rows, size_t cols,
                                    const SmNewtonSchulz *ns, float *warm, float *scratch) {
    (void)warm;
    sm_polar(out, g, rows, cols, ns, scratch);
}

static inline void sm__scale(float *x, size_t n, double factor) {
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)x[i] * factor);
}

/* sqrt(n/m) times the spectral norm, RMS -> RMS: O = sqrt(m/n) polar(G) (Scion, Gluon) */
static inline void sm__lmo_rms_rms(float *out, const float *g, size_t rows, size_t cols,
                                   const SmNewtonSchulz *ns, float *warm, float *scratch) {
    (void)warm;
    sm_polar(out, g, rows, cols, ns, scratch);
    sm__scale(out, rows * cols, sqrt((double)rows / (double)cols));
}

/* max-entry norm: O = sign(G), zero where G is zero (packing turns such a zero into a coin) */
static inline void sm__lmo_sign(float *out, const float *g, size_t rows, size_t cols,
                                const SmNewtonSchulz *ns, float *warm, float *scratch) {
    (void)ns, (void)warm, (void)scratch;
    for (size_t i = 0; i < rows * cols; i++) out[i] = (float)((g[i] > 0) - (g[i] < 0));
}

/* n times the max-entry norm: O = sign(G) / n (Scion's output layer) */
static inline void sm__lmo_sign_output(float *out, const float *g, size_t rows, size_t cols,
                                       const SmNewtonSchulz *ns, float *warm, float *scratch) {
    sm__lmo_sign(out, g, rows, cols, ns, warm, scratch);
    sm__scale(out, rows * cols, 1 / (double)cols);
}

/* Frobenius norm: O = G / |G|_F */
static inline void sm__lmo_frobenius(float *out, const float *g, size_t rows, size_t cols,
                                     const SmNewtonSchulz *ns, float *warm, float *scratch) {
    (void)ns, (void)warm, (void)scratch;
    double norm = sqrt(sm_sum_squares(g, rows * cols));
    double scale = norm > 0 ? 1 / norm : 0;
    for (size_t i = 0; i < rows * cols; i++) out[i] = (float)((double)g[i] * scale);
}

/* RMS of all entries: O = G / RMS(G) (Scion's biases) */
static inline void sm__lmo_rms(float *out, const float *g, size_t rows, size_t cols,
                               const SmNewtonSchulz *ns, float *warm, float *scratch) {
    sm__lmo_frobenius(out, g, rows, cols, ns, warm, scratch);
    sm__scale(out, rows * cols, sqrt((double)rows * (double)cols));
}

/* l2 -> linf operator norm (largest row): every row divided by its 2-norm */
static inline void sm__lmo_row(float *out, const float *g, size_t rows, size_t cols,
                               const SmNewtonSchulz *ns, float *warm, float *scratch) {
    for (size_t i = 0; i < rows; i++)
        sm__lmo_frobenius(out + i * cols, g + i * cols, 1, cols, ns, warm, scratch);
}

/* l1 -> l2 operator norm (largest column): every column divided by its 2-norm */
static inline void sm__lmo_column(float *out, const float *g, size_t rows, size_t cols,
                                  const SmNewtonSchulz *ns, float *warm, float *scratch) {
    (void)ns, (void)warm;
    double *sum = (double *)(void *)scratch;
    for (size_t j = 0; j < cols; j++) sum[j] = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            sum[j] += (double)g[i * cols + j] * (double)g[i * cols + j];
    for (size_t j = 0; j < cols; j++) sum[j] = sum[j] > 0 ? 1 / sqrt(sum[j]) : 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            out[i * cols + j] = (float)((double)g[i * cols + j] * sum[j]);
}

/* nuclear norm: O = u v^T of the largest singular value, by power iterations: 30 from the largest
 * row, or 4 from the v of the step before */
static inline void sm__lmo_nuclear(float *out, const float *g, size_t rows, size_t cols,
                                   const SmNewtonSchulz *ns, float *warm, float *scratch) {
    float *u = scratch, *v = u + rows;
    int warmed = warm && sm_sum_squares(warm, cols) > 0;
    size_t start = 0;
    double largest = -1;
    for (size_t i = 0; i < rows; i++) {
        double s = sm_sum_squares(g + i * cols, cols);
        if (s > largest) largest = s, start = i;
    }
    sm__lmo_frobenius(v, warmed ? warm : g + start * cols, 1, cols, ns, NULL, NULL);
    for (int k = 0; k < (warmed ? 4 : 30); k++) {
        for (size_t i = 0; i < rows; i++) {
            float sum = 0;
            for (size_t j = 0; j < cols; j++) sum += g[i * cols + j] * v[j];
            u[i] = sum;
        }
        sm__lmo_frobenius(u, u, 1, rows, ns, NULL, NULL);
        for (size_t j = 0; j < cols; j++) v[j] = 0;
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++) v[j] += u[i] * g[i * cols + j];
        sm__lmo_frobenius(v, v, 1, cols, ns, NULL, NULL);
    }
    if (warm) memcpy(warm, v, cols * sizeof *v);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) out[i * cols + j] = u[i] * v[j];
    (void)scratch;
}

/* root mean square of an LMO's entries */
static inline double sm__rms_spectral(double m, double n) { return 1 / sqrt(m > n ? m : n); }
static inline double sm__rms_rms_rms(double m, double n) {
    return sm__rms_spectral(m, n) * sqrt(m / n);
}
static inline double sm__rms_one(double m, double n) { return (void)m, (void)n, 1; }
static inline double sm__rms_row(double m, double n) { return (void)m, 1 / sqrt(n); }
static inline double sm__rms_column(double m, double n) { return (void)n, 1 / sqrt(m); }
static inline double sm__rms_output(double m, double n) { return (void)m, 1 / n; }
static inline double sm__rms_unit(double m, double n) { return 1 / sqrt(m * n); }

/* Rows of --norm. NULL past the end. */
static inline const SmNorm *sm_norm_row(size_t i) {
    static const SmNorm table[] = {
        {"spectral", sm__lmo_spectral, 0, sm__rms_spectral,
         "largest singular value; LMO: the polar factor U V^T"},
        {"rms-rms", sm__lmo_rms_rms, 0, sm__rms_rms_rms,
         "sqrt(n/m) spectral (Scion's hidden layers); LMO: sqrt(m/n) U V^T"},
        {"sign", sm__lmo_sign, 0, sm__rms_one, "largest entry (Scion's input layer); LMO: sign(G)"},
        {"sign-output", sm__lmo_sign_output, 0, sm__rms_output,
         "n times the largest entry (Scion's output layer); LMO: sign(G) / n"},
        {"frobenius", sm__lmo_frobenius, 0, sm__rms_unit,
         "root of the sum of squares; LMO: G / |G|_F"},
        {"rms", sm__lmo_rms, 0, sm__rms_one,
         "root of the mean square (Scion's biases); LMO: G / RMS(G)"},
        {"column", sm__lmo_column, 0, sm__rms_column,
         "largest column 2-norm; LMO: normalised columns"},
        {"row", sm__lmo_row, 0, sm__rms_row, "largest row 2-norm; LMO: normalised rows"},
        {"nuclear", sm__lmo_nuclear, 1, sm__rms_unit,
         "sum of singular values; LMO: u v^T of the largest, by power iteration"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* The row of that name; NULL for "none" and for unknown names. */
static inline const SmNorm *sm_norm(const char *name) {
    const SmNorm *row;
    for (size_t i = 0; (row = sm_norm_row(i)) != NULL; i++)
        if (sm__equal(row->name, name)) return row;
    return NULL;
}

/* ------------------------------------------------------------------------------------------------
 * sign bits */

/* What differs between CPUs: bytes of a register, and one bit per float, for as many floats as an
 * instruction takes, that says which are > 0 and which are not 0. */
#if defined(__AVX512F__)
enum { SM__BYTES = 64, SM__FLOATS = 16 };
#define SM__POSITIVE(x) _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_setzero_ps(), _CMP_GT_OQ)
#define SM__NONZERO(x) _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_setzero_ps(), _CMP_NEQ_UQ)
#elif defined(__AVX2__)
enum { SM__BYTES = 32, SM__FLOATS = 8 };
#define SM__COMPARE(x, op) _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_setzero_ps(), op)
#define SM__POSITIVE(x) _mm256_movemask_ps(SM__COMPARE(x, _CMP_GT_OQ))
#define SM__NONZERO(x) _mm256_movemask_ps(SM__COMPARE(x, _CMP_NEQ_UQ))
#elif defined(__SSE2__)
enum { SM__BYTES = 16, SM__FLOATS = 4 };
#define SM__POSITIVE(x) _mm_movemask_ps(_mm_cmpgt_ps(_mm_loadu_ps(x), _mm_setzero_ps()))
#define SM__NONZERO(x) _mm_movemask_ps(_mm_cmpneq_ps(_mm_loadu_ps(x), _mm_setzero_ps()))
#else
enum { SM__BYTES = 16, SM__FLOATS = 1 };
#define SM__POSITIVE(x) (*(x) > 0)
#define SM__NONZERO(x) (*(x) != 0)
#endif

/* 64-bit words that n sign bits take. */
static inline size_t sm_words(size_t n) { return (n + 63) / 64; }

/* What stands in for a zero in word i: coins, or ones. */
static inline uint64_t sm__fill(SmZero rule, uint64_t key, size_t word) {
    return rule == SM_COIN ? sm_hash(key, word) : ~(uint64_t)0;
}

/* Bits x[i] > 0, and in *nonzero the bits x[i] != 0, of n <= 64 entries; bits past n are 0. */
static inline uint64_t sm__positive(uint64_t *nonzero, const float *x, size_t n) {
    float padded[64];
    if (n < 64) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, x, n * sizeof *x);
        x = padded;
    }
    uint64_t plus = 0, any = 0;
    for (size_t i = 0; i < 64; i += SM__FLOATS) {
        plus |= (uint64_t)SM__POSITIVE(x + i) << i;
        any |= (uint64_t)SM__NONZERO(x + i) << i;
    }
    *nonzero = any;
    return plus;
}

/* bits <- sign(x), bit 1 for +, n entries into sm_words(n) words; bits past n are 0.
 * A zero follows the rule; with SM_ABSTAIN its bit is 0, and sm_present says who abstained. */
static inline void sm_pack(uint64_t *bits, const float *x, size_t n, SmZero zeros, uint64_t key) {
    for (size_t w = 0; w < sm_words(n); w++) {
        size_t left = n - w * 64 < 64 ? n - w * 64 : 64;
        uint64_t nonzero, plus = sm__positive(&nonzero, x + w * 64, left);
        uint64_t zero = ~nonzero & ~(uint64_t)0 >> (64 - left);
        if (zero && zeros != SM_ABSTAIN) plus |= zero & sm__fill(zeros, key, w);
        bits[w] = plus;
    }
}

/* present <- 1 where x is not zero: the second plane of a message that may abstain. */
static inline void sm_present(uint64_t *present, const float *x, size_t n) {
    for (size_t w = 0; w < sm_words(n); w++)
        sm__positive(&present[w], x + w * 64, n - w * 64 < 64 ? n - w * 64 : 64);
}

/* x (64 entries) <- step with the sign that a bit says, 0 where `here` says 0. Integers, as gcc
 * makes branches of ?: on floats. */
static inline void sm__expand(float *x, uint64_t bits, uint64_t here, float step) {
    const uint32_t top = (uint32_t)1 << 31;
    uint32_t plus;
    memcpy(&plus, &step, sizeof plus);
    for (size_t half = 0; half < 64; half += 32) {
        uint32_t minus = (uint32_t)(~bits >> half), h = (uint32_t)(here >> half);
        for (size_t i = 0; i < 32; i++) {
            uint32_t f = (plus ^ (minus << (31 - i) & top)) & (0 - (h >> i & 1));
            memcpy(&x[half + i], &f, sizeof f);
        }
    }
}

/* x <- the +-1 that bits say, 0 where present (may be NULL) says 0. */
static inline void sm_unpack(float *x, const uint64_t *bits, const uint64_t *present, size_t n) {
    for (size_t w = 0; w < sm_words(n); w++) {
        float last[64], *to = n - w * 64 < 64 ? last : x + w * 64;
        sm__expand(to, bits[w], present ? present[w] : ~(uint64_t)0, 1.0f);
        if (to == last) memcpy(x + w * 64, last, (n - w * 64) * sizeof *x);
    }
}

/* Words that are counted together: a register full of them, and `SM__WIDES` registers at a time. */
typedef uint64_t SmWide __attribute__((vector_size(SM__BYTES)));
enum { SM__LANES = SM__BYTES / 8, SM__WIDES = 8, SM__PLANES = 18 };

/* What sm_vote was asked. */
typedef struct SmPoll {
    uint64_t *vote, *decided;
    const uint64_t *const *ballots, *const *presents;
    size_t voters;
    SmZero ties;
    uint64_t key;
    size_t first_word;
} SmPoll;

/* *sum + *a + b, bit by bit: the sum stays in *sum, its carry replaces *a. */
static inline void sm__add(SmWide *sum, SmWide *a, const SmWide *b) {
    SmWide differ = *a ^ *b, carry = *a ^ (differ & (*a ^ *sum));
    *sum ^= differ;
    *a = carry;
}

/* count += bit ^ flip of every voter, in bit-sliced counters: plane p holds bit p of the counts.
 * Eight voters at a time: adders make of their bits three planes and one carry, which ripples on.
 * `wides` registers from word w on, of `lanes` words each. */
__attribute__((always_inline)) static inline void
sm__count(SmWide count[][SM__WIDES], size_t planes, const uint64_t *const *bits, uint64_t flip,
          size_t voters, size_t w, size_t wides, size_t lanes) {
    for (size_t v = 0; v < voters; v += 8)
        for (size_t k = 0; k < wides; k++) {
            SmWide row[8] = {{0}};
            for (size_t j = 0; j < 8; j++)
                if (v + j < voters) {
                    memcpy(&row[j], bits[v + j] + w + k * SM__LANES, lanes * sizeof **bits);
                    row[j] ^= flip;
                }
            for (size_t j = 0; j < 8; j += 2) sm__add(&count[0][k], &row[j], &row[j + 1]);
            for (size_t j = 0; j < 8; j += 4) sm__add(&count[1][k], &row[j], &row[j + 2]);
            sm__add(&count[2][k], &row[0], &row[4]);
            for (size_t p = 3; p < planes; p++) {
                SmWide both = count[p][k] & row[0];
                count[p][k] ^= row[0];
                row[0] = both;
            }
        }
}

/* Where the count of a poll starts, so that more than half of the votes reaches plane `top`: a vote
 * for + counts 2, an abstention 1, and the count ends below 2^(top+1), even if absent voters said +
 * (and count 3). */
static inline void sm__start(SmWide count[][SM__WIDES], size_t voters, size_t top, size_t wides) {
    const SmWide zero = {0};
    uint64_t start = ((uint64_t)1 << top) - 1 - voters;
    for (size_t p = 0; p <= top; p++)
        for (size_t k = 0; k < wides; k++) count[p][k] = zero - (start >> p & 1);
}

/* The verdicts of such a count on `wides` registers of words from w on. */
__attribute__((always_inline)) static inline void sm__verdict(SmWide count[][SM__WIDES],
                                                              const SmPoll *poll, size_t top,
                                                              size_t w, size_t wides,
                                                              size_t lanes) {
    SmWide none = {0};
    size_t bytes = lanes * sizeof(uint64_t);
    for (size_t k = 0; k < wides; k++, w += SM__LANES) {
        SmWide more = count[top][k], same = ~more, fill;
        for (size_t p = 0; p < top; p++) same &= count[p][k];
        if (poll->ties != SM_ABSTAIN && (poll->presents || poll->voters % 2 == 0)) {
            /* sm_hash(key, i + l) is sm_hash(key + i * its multiplier, l): a product less a word */
            uint64_t key = poll->key + 0x9e3779b97f4a7c15u * (poll->first_word + w);
            uint64_t coin[SM__LANES];
            for (size_t l = 0; l < SM__LANES; l++) coin[l] = sm__fill(poll->ties, key, l);
            memcpy(&fill, coin, sizeof fill);
            more |= same & fill;
        }
        same = poll->ties == SM_ABSTAIN ? ~same : ~none;
        memcpy(poll->vote + w, &more, bytes);
        if (poll->decided) memcpy(poll->decided + w, &same, bytes);
    }
}

__attribute__((always_inline)) static inline void sm__decide(const SmPoll *poll, size_t top,
                                                             size_t w, size_t wides, size_t lanes) {
    SmWide count[SM__PLANES][SM__WIDES];
    sm__start(count, poll->voters, top, wides);
    sm__count(count + 1, top, poll->ballots, 0, poll->voters, w, wides, lanes);
    if (poll->presents)
        sm__count(count, top + 1, poll->presents, ~(uint64_t)0, poll->voters, w, wides, lanes);
    sm__verdict(count, poll, top, w, wides, lanes);
}

/* vote <- the majority of the voters' bits, word by word.
 * ballots, presents: one pointer per voter, each to `words` words; presents NULL: nobody abstains
 * decided  NULL, or receives 0 where the vote is tied and ties abstain
 * ties     SM_COIN: bit of sm_hash(key, first_word + word), the same whoever counts this shard
 * voters   1 .. 65,535 */
static inline void sm_vote(uint64_t *vote, uint64_t *decided, const uint64_t *const *ballots,
                           const uint64_t *const *presents, size_t voters, size_t words,
                           SmZero ties, uint64_t key, size_t first_word) {
    assert(voters >= 1 && voters < 65536);
    const SmPoll poll = {vote, decided, ballots, presents, voters, ties, key, first_word};
    size_t top = 4, w = 0, wide = SM__LANES, block = wide * SM__WIDES;
    while ((presents ? 2 * voters : voters) >> top) top++;
    if (top == 4) /* few voters: all counters stay in registers */
        for (; w + wide <= words; w += wide) sm__decide(&poll, 4, w, 1, SM__LANES);
    for (; w + block <= words; w += block) sm__decide(&poll, top, w, SM__WIDES, SM__LANES);
    for (; w < words; w += wide) sm__decide(&poll, top, w, 1, words - w < wide ? words - w : wide);
}

/* Planes that a count of so many voters takes: ceil(log2(voters + 1)). */
static inline size_t sm_planes(size_t voters) {
    size_t planes = 0;
    while (voters >> planes) planes++;
    return planes;
}

/* counts <- how many of the voters' bits are 1, or are 0 with `zeros`: plane p, the words from
 * counts + p * stride on, holds bit p of each count.
 * voters   1 .. 65,535, in sm_planes(voters) planes */
static inline void sm_count(uint64_t *counts, size_t stride, const uint64_t *const *bits, int zeros,
                            size_t voters, size_t words) {
    const SmWide zero = {0};
    size_t planes = sm_planes(voters), most = planes < 3 ? 3 : planes, block = SM__LANES;
    assert(voters >= 1 && voters < 65536);
    for (size_t w = 0; w < words; w += block) {
        SmWide count[SM__PLANES][SM__WIDES];
        size_t lanes = words - w < block ? words - w : block;
        for (size_t p = 0; p < most; p++) count[p][0] = zero;
        sm__count(count, most, bits, zeros ? ~(uint64_t)0 : 0, voters, w, 1, lanes);
        for (size_t p = 0; p < planes; p++)
            memcpy(counts + p * stride + w, &count[p][0], lanes * sizeof *counts);
    }
}

/* count += the counts of one machine, their bit 0 in plane `low`. */
static inline void sm__add_counts(SmWide count[][SM__WIDES], size_t low, size_t top,
                                  const uint64_t *counts, size_t stride, size_t planes,
                                  size_t lanes) {
    for (size_t p = 0; p < planes; p++) {
        SmWide carry = {0};
        memcpy(&carry, counts + p * stride, lanes * sizeof *counts);
        for (size_t q = low + p; q <= top; q++) {
            SmWide both = count[q][0] & carry;
            count[q][0] ^= carry;
            carry = both;
        }
    }
}

/* sm_vote from counts: majority is not associative, so what is counted machine by machine travels
 * as counts, and whoever adds them up decides; the verdicts are those of sm_vote on all ballots.
 * plus, absent  one pointer per machine: sm_count of its ballots, and of the zeros of its
 *               presents; absent NULL: nobody abstains
 * locals        voters of each machine; machines * locals <= 65,535 */
static inline void sm_vote_counts(uint64_t *vote, uint64_t *decided, const uint64_t *const *plus,
                                  const uint64_t *const *absent, size_t stride, size_t machines,
                                  size_t locals, size_t words, SmZero ties, uint64_t key,
                                  size_t first_word) {
    size_t voters = machines * locals, planes = sm_planes(locals), top = 4, block = SM__LANES;
    const SmPoll poll = {vote, decided, plus, absent, voters, ties, key, first_word};
    assert(voters >= 1 && voters < 65536);
    while ((absent ? 2 * voters : voters) >> top) top++;
    for (size_t w = 0; w < words; w += block) {
        SmWide count[SM__PLANES][SM__WIDES];
        size_t lanes = words - w < block ? words - w : block;
        sm__start(count, voters, top, 1);
        for (size_t m = 0; m < machines; m++) {
            sm__add_counts(count, 1, top, plus[m] + w, stride, planes, lanes);
            if (absent) sm__add_counts(count, 0, top, absent[m] + w, stride, planes, lanes);
        }
        sm__verdict(count, &poll, top, w, 1, lanes);
    }
}

/* w <- keep w - step * (+-1 of bits), and only keep w where decided (may be NULL) is 0. */
static inline void sm_apply(float *w, const uint64_t *bits, const uint64_t *decided, size_t n,
                            float step, float keep) {
    for (size_t k = 0; k < sm_words(n); k++) {
        float s[64];
        size_t left = n - k * 64 < 64 ? n - k * 64 : 64;
        sm__expand(s, bits[k], decided ? decided[k] : ~(uint64_t)0, step);
        for (size_t i = 0; i < left; i++) w[k * 64 + i] = keep * w[k * 64 + i] - s[i];
    }
}

/* How often a voter is against the majority of the others: against[j] of entries[j], over all entries
 * of `words` words in which the others have a majority. Its own vote must not help it: with noise
 * alone, one of seven is with the majority that it is part of on 66 % of all entries.
 * vote     what sm_vote said without abstentions; ties as they may be
 * counted  bits that are entries, the same for all; NULL: all
 * voters   1 .. 1024
 * Where all N votes sum to 1 or -1 (N odd), the others of who won are tied. Where they sum to 0 (N
 * even), everybody is against the others. Adding two voters, or one, who always say the same finds
 * these entries. */
static inline void sm_count_dissent(uint64_t *against, uint64_t *entries, const uint64_t *vote,
                                    const uint64_t *const *ballots, size_t voters, size_t words,
                                    const uint64_t *counted) {
    enum { CHUNK = 64, MOST = 1024 };
    uint64_t same[2][CHUNK], won[2][CHUNK];
    const uint64_t *all[MOST + 2];
    size_t more = voters % 2 ? 2 : 1;
    assert(voters <= MOST);
    memset(same[0], 0, sizeof same[0]);
    memset(same[1], 255, sizeof same[1]);
    for (size_t j = 0; j < voters; j++) against[j] = entries[j] = 0;
    for (size_t w = 0; w < words; w += CHUNK) {
        size_t n = words - w < CHUNK ? words - w : (size_t)CHUNK;
        for (size_t j = 0; j < voters; j++) all[j] = ballots[j] + w;
        for (size_t k = 0; k < 2; k++) {
            for (size_t j = 0; j < more; j++) all[voters + j] = same[k];
            sm_vote(won[k], NULL, all, NULL, voters + more, n, SM_PLUS, 0, 0);
        }
        for (size_t j = 0; j < voters; j++)
            for (size_t i = 0; i < n; i++) {
                uint64_t close = won[1][i] & ~won[0][i], differ = all[j][i] ^ vote[w + i];
                uint64_t tied = voters % 2 ? close & ~differ : 0, mask = ~(uint64_t)0;
                if (counted) mask = counted[w + i];
                if (voters % 2 == 0) differ |= close;
                against[j] += (uint64_t)__builtin_popcountll(differ & mask);
                entries[j] += (uint64_t)__builtin_popcountll(~tied & mask);
            }
    }
}

/* Steps in a row in which a worker has been against the majority of the others beyond chance, after
 * one more step: on more than half of the entries by four standard deviations of fair coins. Suppose
 * that at each step, whatever came before, this happens to an honest worker with probability 1/2 at
 * most. Then it happens on K steps in a row somewhere in T steps with probability T 2^-K at most:
 * 2e-9 for T = 2000 and K = 40. */
static inline uint32_t sm_dissent(uint32_t steps, uint64_t against, uint64_t entries) {
    double n = (double)entries;
    return (double)against - n / 2 > 2 * sqrt(n) ? steps + 1 : 0;
}

/* ------------------------------------------------------------------------------------------------
 * step gains */

static inline double sm__gain_none(size_t m, size_t n, int sign) {
    return (void)m, (void)n, (void)sign, 1;
}
static inline double sm__gain_fro(size_t m, size_t n, int sign) {
    return (void)sign, 1 / sqrt((double)m * (double)n);
}
static inline double sm__gain_aspect(size_t m, size_t n, int sign) {
    return (void)sign, m > n ? sqrt((double)m / (double)n) : 1;
}
static inline double sm__gain_unit(size_t m, size_t n, int sign) {
    return sign ? 1 / sqrt((double)n) : sm__gain_aspect(m, n, sign);
}
static inline double sm__gain_rms(size_t m, size_t n, int sign) {
    return sign ? 0.2 : 0.2 * sqrt((double)(m > n ? m : n));
}

/* Rows of --gain. NULL past the end. */
static inline const SmGain *sm_gain_row(size_t i) {
    static const SmGain table[] = {
        {"none", sm__gain_none, "1 (SignMuon's algorithm box)"},
        {"fro", sm__gain_fro, "1/sqrt(mn) (SignMuon's analysis)"},
        {"unit-gain", sm__gain_unit,
         "|step|_F/sqrt(m) = 1: 1/sqrt(fan_in) for signs, else sqrt(max(1,m/n))"},
        {"aspect", sm__gain_aspect, "sqrt(max(1,m/n)) (Muon)"},
        {"rms", sm__gain_rms,
         "entries of RMS 0.2: 0.2 for signs, else 0.2 sqrt(max(m,n)) (Moonlight)"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* The row of that name, or NULL. */
static inline const SmGain *sm_gain(const char *name) {
    const SmGain *row;
    for (size_t i = 0; (row = sm_gain_row(i)) != NULL; i++)
        if (sm__equal(row->name, name)) return row;
    return NULL;
}

/* The norm that Scion gives a tensor that is not a hidden matrix. */
static inline const char *sm_scion_norm(SmRole role) {
    return role == SM_VECTOR ? "rms" : role == SM_INPUT ? "sign" : "sign-output";
}

/* Rows of --radii. NULL past the end. */
static inline const SmRadii *sm_radii_row(size_t i) {
    static const SmRadii table[] = {
        /* vectors, hidden matrices, input, output */
        {"unit", {1, 1, 1, 1}, "1 everywhere"},
        {"char",
         {1, 3, 1, 10},
         "Scion's shallow nanoGPT on characters: hidden 3, input 1, output 10"},
        {"gpt2", {1, 50, 50, 3000}, "Scion's nanoGPT of 124M: hidden 50, output 3000"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* ------------------------------------------------------------------------------------------------
 * methods */

/* Rows of --method. NULL past the end. */
static inline const SmMethod *sm_method_row(size_t i) {
    // clang-format off
    static const SmMethod table[] = {
        /* name, estimate, worker map, combine, server map, reply, update, gain, lr, schedule, aux,
               mu, nesterov, first gradient, decay, warmup, clip, clip power, up, down, doc */
        {"sgd", SM_MOMENTUM, "none", SM_MEAN, "none", SM_DENSE, SM_STEP, "none", 3.0, "linear", "same",
         0.9, 0, 0, 0, 100, 1, 0, "", "", "mean of the gradients, with momentum"},
        {"adamw", SM_GRADIENT, "none", SM_MEAN, "none", SM_DENSE, SM_ADAMW, "none", 4e-3, "linear", "same",
         0, 0, 0, 0.1, 100, 0, 0, "", "", "mean of the gradients, AdamW"},
        {"signsgd", SM_GRADIENT, "none", SM_VOTE, "none", SM_SIGN, SM_STEP, "none", 1e-3, "linear", "same",
         0, 0, 0, 0, 100, 0, 0, "", "", "vote of sign(G)"},
        {"signum", SM_MOMENTUM, "none", SM_VOTE, "none", SM_SIGN, SM_STEP, "none", 5e-4, "linear", "same",
         0.95, 1, 0, 0, 0, 0, 0, "", "", "vote of sign(M)"},
        {"lion", SM_LION, "none", SM_VOTE, "none", SM_SIGN, SM_STEP, "none", 6e-4, "linear", "same",
         0.99, 0, 0, 0.1, 0, 0, 0, "", "", "vote of Lion's sign(beta1 M + (1-beta1) G)"},
        {"muon", SM_MOMENTUM, "none", SM_MEAN, "spectral", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 1, 0, 0, 0, 0, 0, "", "", "polar(mean M)"},
        {"muon-avgpolar", SM_MOMENTUM, "spectral", SM_MEAN, "none", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 1, 0, 0, 0, 0, 0, "", "", "mean of polar(M)"},
        {"scion", SM_MOMENTUM, "none", SM_MEAN, "rms-rms", SM_DENSE, SM_STEP, "none", 5e-3, "linear", "lmo",
         0.9, 0, 0, 0, 0, 0, 0, "", "", "LMO(mean M) of every tensor in the norm of its role"},
        {"scion-constrained", SM_MOMENTUM, "none", SM_MEAN, "rms-rms", SM_DENSE, SM_FRANK_WOLFE, "none", 5e-3, "linear", "lmo",
         0.9, 0, 0, 0, 0, 0, 0, "", "", "the same inside balls: W <- (1-lr) W - lr LMO(mean M)"},
        {"gluon", SM_GLUON, "none", SM_MEAN, "rms-rms", SM_DENSE, SM_STEP, "none", 0.1, "gluon", "lmo",
         0, 0, 0, 0, 0, 0, 0, "", "", "LMO(mean M), momentum 1-(k+1)^-1/2, step (k+1)^-3/4"},
        {"signmuon", SM_MOMENTUM, "spectral", SM_VOTE, "none", SM_SIGN, SM_STEP, "none", 1e-3, "linear", "adamw",
         0.95, 1, 0, 0, 0, 0, 0, "", "", "vote of sign(polar(M))"},
        {"muonusign", SM_MOMENTUM, "none", SM_VOTE, "spectral", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 1, 0, 0, 0, 0, 0, "", "", "polar(vote of sign(M))"},
        {"muonsign", SM_MOMENTUM, "none", SM_VOTE, "spectral", SM_SIGN, SM_STEP, "none", 1e-3, "linear", "adamw",
         0.95, 1, 0, 0, 0, 0, 0, "", "", "sign(polar(vote of sign(M)))"},
        {"ef21-muon", SM_MOMENTUM, "none", SM_FEEDBACK, "spectral", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 0, 1, 0, 0, 0, 0, "topk:0.15+natural", "identity", "polar(G), G += mean C(M - G_j)"},
        {"ef21-signmuon", SM_MOMENTUM, "spectral", SM_FEEDBACK, "none", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 0, 1, 0, 0, 0, 0, "sign", "identity", "G, G += mean C(polar(M) - G_j)"},
        {"ef21-muonusign", SM_MOMENTUM, "none", SM_FEEDBACK, "spectral", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 0, 1, 0, 0, 0, 0, "sign", "identity", "polar(G), G += mean C(M - G_j)"},
        {"ef21-muonsign", SM_MOMENTUM, "none", SM_FEEDBACK, "spectral", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 0, 1, 0, 0, 0, 0, "sign", "sign", "polar(G), and W += C(X - W)"},
        {"demuon", SM_MOMENTUM, "spectral", SM_TRACKING, "none", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 0, 0, 0, 0, 0, 0, "", "", "gossip of X - lr polar(V), V tracks mean M"},
        {"demuon-notrack", SM_MOMENTUM, "spectral", SM_GOSSIP, "none", SM_DENSE, SM_STEP, "rms", 5e-3, "linear", "adamw",
         0.95, 0, 0, 0, 0, 0, 0, "", "", "gossip of X - lr polar(M)"},
        {"dsgd", SM_GRADIENT, "none", SM_GOSSIP, "none", SM_DENSE, SM_STEP, "none", 0.5, "linear", "same",
         0, 0, 0, 0, 100, 0, 0, "", "", "gossip of X - lr G"},
        {"dsgd-clip", SM_GRADIENT, "none", SM_GOSSIP, "none", SM_DENSE, SM_STEP, "none", 1, "linear", "same",
         0, 0, 0, 0, 100, 0.1, 0.4, "", "", "the same, G clipped at 0.1 (k+1)^0.4"},
        {"gt-dsgd", SM_GRADIENT, "none", SM_TRACKING, "none", SM_DENSE, SM_STEP, "none", 0.3, "linear", "same",
         0, 0, 0, 0, 100, 0, 0, "", "", "gossip of X - lr V, V tracks mean G"},
        {"gt-nsgdm", SM_MOMENTUM, "none", SM_TRACKING, "none", SM_DENSE, SM_UNIT, "none", 0.2, "linear", "same",
         0.8, 0, 0, 0, 0, 0, 0, "", "", "gossip of X - lr V/|V|, V tracks mean M"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* Do the workers of a method go on from models of their own, with no server? */
static inline int sm_gossips(const SmMethod *m) {
    return m->combine == SM_GOSSIP || m->combine == SM_TRACKING;
}

/* The row of that name, or NULL. */
static inline const SmMethod *sm_method(const char *name) {
    const SmMethod *row;
    for (size_t i = 0; (row = sm_method_row(i)) != NULL; i++)
        if (sm__equal(row->name, name)) return row;
    return NULL;
}

/* ------------------------------------------------------------------------------------------------
 * the distributed optimizer (signmuon.c, libsignmuon): this mathematics over comm.h's workers */

struct Comm;
struct EfLink;
struct DmGraph;

/* One parameter tensor: `blocks` matrices of rows x cols stacked by rows (a fused qkv has three); a vector
 * is one row. Its entries are params[offset ..]. The columns after cols choose its treatment. */
typedef struct SmTensor {
    const char *name;
    size_t offset, rows, cols, blocks;
    SmRole role;
    int decay;  /* weight decay applies */
    int sparse; /* an embedding: rows that no worker has touched stay put */
} SmTensor;

/* How a worker lies: what it sends in place of its direction u (n entries). NULL where u stays as it
 * is.
 * last  n entries kept from step to step, where `remembers` is set; at first u itself
 * key   of this block, worker and step */
typedef struct SmAttack {
    const char *name, *argument; /* what follows the name and a colon, or NULL */
    void (*lie)(float *u, float *last, size_t n, double scale, uint64_t key);
    int remembers;
    int garbles; /* sets every bit of a packed message that is not a value */
    int reports; /* says NaN of its gradient where no message can carry one */
    const char *doc;
} SmAttack;

/* Rows of --attack. NULL past the end. */
const SmAttack *sm_attack_row(size_t i);

typedef struct SmConfig {
    const SmMethod *method, *aux;
    const char *worker_map, *server_map; /* norms of the hidden matrices' LMOs, or "none" */
    const char *local_map; /* applied by every worker to the vote it received, or "none" */
    const char *role_norm[SM_ROLES]; /* aux == method: norms that the others take where the hidden
                                        matrices have a map, or "none" */
    double radius[SM_ROLES];
    SmReply reply;
    const SmGain *gain;
    const SmNewtonSchulz *ns;
    double momentum, beta1, beta2, epsilon, decay, clip, clip_power;
    int nesterov, first_gradient, coupled_decay, int8_wire;
    SmZero zeros, ties;
    const struct EfLink *up, *down; /* compressors of error feedback (ef21muon.h) */
    const struct DmGraph *graph;    /* who gossips with whom (demuon.h) */
    int rounds[2];                  /* of gossip per step: of the tracker, of the parameters */
    int machines; /* that votes are counted on before counts travel; 0 or 1: ballots travel */
    uint64_t seed;
    int adversaries; /* the last so many workers lie, all tensors, by `attack` */
    const SmAttack *attack;
    double attack_scale;
    int expel; /* steps in a row of dissent that put a worker out; 0: nobody counts */
} SmConfig;

/* The configuration that a method's row says: its maps and defaults, radii 1, one round of gossip,
 * jordan5, AdamW's usual constants; Scion's norms by role where the row's aux is "lmo". */
SmConfig sm_config(const SmMethod *method, const SmMethod *aux);

typedef struct SmOptimizer SmOptimizer;

/* One array of optimizer state, for checkpoints: over a tensor, or over one block of it. */
typedef struct SmState {
    const char *kind; /* "momentum", "adamw.m", "tracker", ... */
    size_t tensor;    /* its index in the tensor table */
    int block;        /* which block of it, or -1 */
    size_t rows, cols;
    float *data;
    int replicated; /* the same on every worker */
} SmState;

/* What an optimizer's arena holds. */
typedef struct SmBytes {
    size_t state;    /* momenta and AdamW's moments, and the table of blocks */
    size_t messages; /* what is sent and received, and directions */
    size_t scratch;  /* of the LMOs, for all threads */
    size_t total;
} SmBytes;

/* Bytes of arena, aligned to 64, that sm_optimizer_init wants. */
SmBytes sm_optimizer_bytes(const SmConfig *config, const SmTensor *tensors, size_t count,
                           int workers, int threads);

/* An optimizer inside arena (zeroed by the caller), which must outlive it, as must tensors and
 * comm. */
SmOptimizer *sm_optimizer_init(void *arena, const SmConfig *config, const SmTensor *tensors,
                               size_t count, struct Comm *comm);

/* One step on every worker together: grads are this worker's own; params move equally on all.
 * step     counts from 0 and keys the coins;  lr, aux_lr  this step's rates */
void sm_optimizer_step(SmOptimizer *o, float *params, const float *grads, uint64_t step, double lr,
                       double aux_lr);

/* The i-th array of state that this worker holds; 0 past the end. */
int sm_optimizer_state(const SmOptimizer *o, size_t i, SmState *state);

/* Error feedback with a compressed reply, after so many steps: out <- the server's exact model X
 * where it keeps one, params elsewhere; on every worker together. Returns 0, out untouched, when X is
 * params. */
int sm_optimizer_exact(SmOptimizer *o, float *out, const float *params, uint64_t steps);

/* When the workers are not those that made the state, together: what has to hold between them is made to
 * hold again. EF21: G <- mean of their G_j, X <- params; tracking: V <- the last M_j, so that the
 * mean of V is the mean of M (momenta are a worker's own and stay). */
void sm_optimizer_regroup(SmOptimizer *o, const float *params);

/* What was wrong with a message. */
typedef enum SmFault { SM_SOUND, SM_NAN, SM_MALFORMED } SmFault;

/* A message that this worker refused in the last step. What a step makes of it is refused too: the
 * run cannot go on. Of all workers' complaints the one about the earliest exchange is right: who
 * sends NaN in a later one may have been given it. */
typedef struct SmComplaint {
    int32_t fault; /* SmFault */
    int32_t exchange, sender, tensor;
} SmComplaint;
SmComplaint sm_optimizer_complaint(const SmOptimizer *o);

/* Steps in a row, up to the last one, in which worker `rank` has been against the majority of the
 * others beyond chance (sm_dissent, over the hidden matrices), and the most so far; 0 unless
 * SmConfig.expel is set. The same on every worker. */
uint32_t sm_optimizer_dissent(const SmOptimizer *o, int rank, uint32_t *most);

/* Fraction of this worker's hidden-matrix signs that the last vote confirmed; NaN without a
 * vote. */
double sm_optimizer_agreement(const SmOptimizer *o);

/* Factor on the rate that a tensor really gets, and the RMS of an entry of its step at rate 1 (NaN
 * where that depends on the gradient). */
double sm_tensor_gain(const SmConfig *config, const SmTensor *tensor);
double sm_tensor_rms(const SmConfig *config, const SmTensor *tensor);

/* Bits per weight and step that a worker sends, on average over workers, by formula; the part of it
 * that goes up (to the owners of shards); and with `paper` set that part as arXiv 2510.00643 counts:
 * 26-bit indices, 16-bit Natural. */
double sm_bits_per_weight(const SmConfig *config, const SmTensor *tensor, int workers);
double sm_uplink_bits(const SmConfig *config, const SmTensor *tensor, int workers, int paper);

#ifdef __cplusplus
}
#endif
#endif
