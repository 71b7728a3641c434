/* signmuon.h - Muon steps that travel as one bit per weight. C11 or C++17, libc and pthreads, MIT.

     M  <- mu M + (1-mu) G          every worker, its own gradient
     S  <- sign(polar(M))           polar factor by Newton-Schulz; S is what travels
     V  <- majority(S_1 .. S_N)     a tie is decided by the rule under NUMERICS
     W  <- (1 - lr wd) W - lr s V   the gain s depends on the matrix shape only

   SignMuon (arXiv 2605.16311). Without polar it is Signum (arXiv 1810.05291), without signs Muon
   (Jordan et al. 2024). Other norms' linear minimisation oracles (LMO) give Scion and Gluon.

   USE  Copy this file, include it in any number of files, link with -lm -pthread. It allocates
   nothing, prints nothing, starts no threads and keeps no state. Its matrix products are loops of
   about 10 GFLOP/s on one core; SIGNMUON_GEMM replaces them. lib/comm.h adds what sm_majority
   lacks: workers that fail, byte counts, gossip and MPI.

   A program: three workers vote, as threads, or with any argument as processes.

#define _DEFAULT_SOURCE // for MAP_ANONYMOUS
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "signmuon.h"

enum { WORKERS = 3, ROWS = 6, COLS = 4, SIZE = ROWS * COLS };
static SmVoters *voters; // the memory through which they vote

static void *worker(void *arg) {
    size_t rank = (size_t)arg;
    float w[SIZE] = {0}, m[SIZE] = {0}, u[SIZE], scratch[4096];
    uint64_t bits[1]; // sm_words(SIZE) words
    for (uint64_t step = 0; step < 200; step++) {
        for (size_t i = 0; i < SIZE; i++) // gradient of 1/2 |w - target|^2, and noise
            u[i] = w[i] - 0.1f * (float)(i % 5) + 0.01f * ((float)((i + rank + step) % 3) - 1);
        sm_momentum(u, m, u, SIZE, 0.9f, 0);                                  // M
        sm_polar(u, u, ROWS, COLS, sm_newton_schulz("jordan5"), scratch);     // polar(M)
        sm_pack(bits, u, SIZE, SM_COIN, sm_key(1, rank + 1, step));           // S
        sm_majority(voters, rank, bits, SM_COIN, sm_key(1, 0, step));         // V
        sm_apply(w, bits, NULL, SIZE, 0.01f * (1 - (float)step / 200), 1);    // W
    }
    if (rank == 0) printf("w[4] = %.2f (target 0.40)\n", (double)w[4]);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t thread[WORKERS];
    int processes = argc > 1 && argv[1] != NULL;
    void *shared = mmap(NULL, sm_voters_bytes(WORKERS, sm_words(SIZE)), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 1;
    voters = sm_voters_init(shared, WORKERS, sm_words(SIZE));
    for (size_t i = 0; i < WORKERS; i++)
        if (!processes) pthread_create(&thread[i], NULL, worker, (void *)i);
        else if (fork() == 0) exit(worker((void *)i) != NULL);
    for (size_t i = 0; i < WORKERS; i++)
        if (!processes) pthread_join(thread[i], NULL);
        else wait(NULL);
    return 0;
}

   MEMORY    The caller brings every buffer: sm_lmo_scratch floats of scratch, aligned to 8 bytes
             (64 is faster), sm_voters_bytes of shared memory. Matrices are row-major and tight,
             rows = fan_out, cols = fan_in.
   THREADS   Any thread may call any function, on outputs of its own. sm_majority waits for all
             workers. sm_voters_init alone can fail; sizes and ranks are asserted.

   API
     sm_momentum sm_lion                   what a worker holds: EMA momentum, Lion's two averages
     sm_newton_schulz sm_polar             table of polynomials; polar factor
     sm_norm, SmNorm.lmo, sm_lmo_scratch   table of norms; the LMO of a norm's unit ball
     sm_words sm_pack sm_present sm_unpack sign bits from floats and back
     sm_vote sm_voters_... sm_majority     majority of sign bits; between threads or processes
     sm_gain sm_apply                      table of step gains; a step along the majority
     sm_step_dense sm_adamw                steps along floats
     sm_hash sm_key                        counter-based random bits
     sm_..._row(i)                         the i-th row of a table, NULL past the end

   COMPILE-TIME KNOBS  (define before including, the same in every file)
     SIGNMUON_GEMM(op, c, a, b, m, n, k, scratch)   c(m,n) = a(m,k) b; 'n': b is (k,n), 't': (n,k);
                                                    'N', 'T': a and b are rounded to bf16 first
     SIGNMUON_SYMMETRIC(op, c, a, b, m, k, scratch) the same, c(m,m) known to be symmetric
     SIGNMUON_GEMM_SCRATCH                          floats that they want after the caller's scratch
     SIGNMUON_API                                   linkage of public functions: static inline

   NUMERICS
     sums      in index order, or in eight interleaved double lanes added in order: no result
               depends on threads or alignment
     sign      -1 or +1; sign(0) is a coin hashed from the caller's key, which holds the rank
     tie       a coin hashed from the caller's key, which holds no rank: all workers must agree
     polar     fp32, or products of bf16 summed in fp32; scaling the input by a power of two changes
               no bit (the norm has no epsilon)
     NaN, Inf  are not looked for: refuse them before they become bits (sm_finite)
*/
#ifndef SIGNMUON_H
#define SIGNMUON_H

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#ifndef SIGNMUON_API
#define SIGNMUON_API static inline
#endif

/* ------------------------------------------------------------------------------------------------
 * types; below, each function is documented where it stands, and sm__ names are private */

/* What a zero entry says, and what a tied vote means. Abstaining costs a second bit per weight. */
typedef enum SmZero { SM_COIN, SM_PLUS, SM_ABSTAIN } SmZero;

/* One way to orthogonalise: X <- (a I + b A + c A^2) X with A = X X^T, once per triple (a,b,c). */
typedef struct SmNewtonSchulz {
    const char *name;
    int steps;
    double safety; /* the input is divided by safety * Frobenius norm */
    double coefficient[8][3];
    const char *doc;
    int bf16; /* 1: operands of products are rounded to bf16 (0 in the table) */
} SmNewtonSchulz;

/* A norm, known by the LMO of its unit ball: out <- argmax <G, O> over |O| <= 1 (note the sign). */
typedef struct SmNorm {
    const char *name;
    /* out      may be g
     * state    state(rows, cols) floats kept from step to step, zero at first; or NULL
     * scratch  sm_lmo_scratch(rows, cols) floats */
    void (*lmo)(float *out, const float *g, size_t rows, size_t cols, const SmNewtonSchulz *ns,
                float *state, float *scratch);
    double (*rms)(double rows, double cols);   /* of the entries of O, at full rank */
    size_t (*state)(size_t rows, size_t cols); /* NULL: keeps none */
    const char *doc;
} SmNorm;

/* Factor on the step of an m x n matrix; `sign` tells a direction of +-1 from one of unit norm. */
typedef struct SmGain {
    const char *name;
    double (*gain)(size_t rows, size_t cols, int sign);
    const char *doc;
} SmGain;

/* Shared memory through which workers vote; see sm_voters_init. */
typedef struct SmVoters SmVoters;

/* ------------------------------------------------------------------------------------------------
 * randomness: a value is a hash of (seed, stream, step, index) */

/* A 64-bit value from a key and a counter (splitmix64's finaliser, Steele et al. 2014). */
SIGNMUON_API uint64_t sm_hash(uint64_t key, uint64_t index) {
    uint64_t x = key + 0x9e3779b97f4a7c15u * (index + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The key of a stream of values. Streams of a worker's own coins hold its rank, those of coins that
 * all workers share do not. */
SIGNMUON_API uint64_t sm_key(uint64_t seed, uint64_t stream, uint64_t step) {
    return sm_hash(sm_hash(sm_hash(0x5349474e4d554f4eu, seed), stream), step);
}

/* ------------------------------------------------------------------------------------------------
 * vectors of n entries */

/* Sum of squares, in eight double lanes added in order. */
SIGNMUON_API double sm_sum_squares(const float *x, size_t n) {
    double lane[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (size_t j = 0; j < 8 && i < n; i++, j++) lane[j] += (double)x[i] * (double)x[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* 1 when all entries are finite: their squares cannot overflow a double. */
SIGNMUON_API int sm_finite(const float *x, size_t n) { return isfinite(sm_sum_squares(x, n)) != 0; }

/* x <- factor x, rounded once */
SIGNMUON_API void sm_scale(float *x, size_t n, double factor) {
    for (size_t i = 0; i < n; i++) x[i] = (float)((double)x[i] * factor);
}

/* m <- mu m + (1-mu) g; out <- m, or with Nesterov's look-ahead mu m + (1-mu) g (Muon's reference
 * code). out may be g; m overlaps neither.
 * The heavy ball m <- mu m + g differs by a factor that polar and sign do not see. */
SIGNMUON_API void sm_momentum(float *out, float *m, const float *g, size_t n, float mu,
                              int nesterov) {
    float nu = 1.0f - mu;
    for (size_t i = 0; i < n; i++) {
        float gi = g[i];
        m[i] = mu * m[i] + nu * gi;
        out[i] = nesterov ? mu * m[i] + nu * gi : m[i];
    }
}

/* Lion (arXiv 2302.06675): out <- beta1 m + (1-beta1) g; m <- beta2 m + (1-beta2) g.
 * out may be g. */
SIGNMUON_API void sm_lion(float *out, float *m, const float *g, size_t n, float beta1,
                          float beta2) {
    for (size_t i = 0; i < n; i++) {
        float gi = g[i];
        out[i] = beta1 * m[i] + (1.0f - beta1) * gi;
        m[i] = beta2 * m[i] + (1.0f - beta2) * gi;
    }
}

/* w <- keep w - step d, with keep = 1 - lr * decay */
SIGNMUON_API void sm_step_dense(float *w, const float *d, size_t n, float step, float keep) {
    for (size_t i = 0; i < n; i++) w[i] = keep * w[i] - step * d[i];
}

/* AdamW (Loshchilov and Hutter 2019) with bias correction; t counts from 1; keep = 1 - lr * decay.
 *   m <- beta1 m + (1-beta1) g      v <- beta2 v + (1-beta2) g^2
 *   w <- keep w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon) */
SIGNMUON_API void sm_adamw(float *w, float *m, float *v, const float *g, size_t n, uint64_t t,
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
 * matrix products */

/* x, or with bf16 the nearest number of 8 significant bits (ties to even) */
static inline float sm__operand(float x, int bf16) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (bf16) u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* c(m,n) = a(m,k) b; op 'n': b is (k,n), 't': b is (n,k); 'N', 'T': a and b are rounded to bf16.
 * Row-major and tight; c overlaps neither. Each entry is one chain of additions in order of k. 32
 * entries of a row are summed together, from a copy of 64 x 32 entries of b. */
SIGNMUON_API void sm_reference_gemm(char op, float *c, const float *a, const float *b, size_t m,
                                    size_t n, size_t k) {
    const int transposed = op == 't' || op == 'T', bf16 = op == 'N' || op == 'T';
    float tile[64][32], sum[32] = {0};
    memset(tile, 0, sizeof tile);
    memset(c, 0, m * n * sizeof *c);
    for (size_t j0 = 0; j0 < n; j0 += 32)
        for (size_t p0 = 0; p0 < k; p0 += 64) {
            size_t wide = n - j0 < 32 ? n - j0 : 32, deep = k - p0 < 64 ? k - p0 : 64;
            for (size_t p = 0; p < deep; p++)
                for (size_t j = 0; j < wide; j++)
                    tile[p][j] = sm__operand(
                        transposed ? b[(j0 + j) * k + p0 + p] : b[(p0 + p) * n + j0 + j], bf16);
            for (size_t i = 0; i < m; i++) {
                memcpy(sum, c + i * n + j0, wide * sizeof *sum);
                for (size_t p = 0; p < deep; p++) {
                    const float x = sm__operand(a[i * k + p0 + p], bf16);
                    for (size_t j = 0; j < 32; j++) sum[j] += x * tile[p][j];
                }
                memcpy(c + i * n + j0, sum, wide * sizeof *sum);
            }
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

/* out (cols x rows) = x (rows x cols) transposed, in 8 x 8 tiles. */
SIGNMUON_API void sm_transpose(float *out, const float *x, size_t rows, size_t cols) {
    for (size_t i0 = 0; i0 < rows; i0 += 8)
        for (size_t j0 = 0; j0 < cols; j0 += 8)
            for (size_t i = i0; i < i0 + 8 && i < rows; i++)
                for (size_t j = j0; j < j0 + 8 && j < cols; j++)
                    out[j * rows + i] = x[i * cols + j];
}

/* ------------------------------------------------------------------------------------------------
 * the polar factor */

// clang-format off
/* Jordan's quintic (Jordan et al. 2024). Singular values end in 0.68 .. 1.13, never any tighter. */
#define SM__JORDAN {3.4445, -4.7750, 2.0315}

/* Polar Express (Amsel et al., arXiv 2505.16932, algorithm 1): a triple for singular values up to
 * 1, its argument divided by 1.01, so that rounding cannot lift one out of reach. The paper's
 * triples take them from 0.001 on; those of three steps are the algorithm's from 0.01 on. */
#define SM__EXPRESS(a, b, c)                                                                       \
    {a / 1.01, b / (1.01 * 1.01 * 1.01), c / (1.01 * 1.01 * 1.01 * 1.01 * 1.01)}
#define SM__EXPRESS_FIRST_FIVE                                                                     \
    SM__EXPRESS(8.28721201814563, -23.595886519098837, 17.300387312530933),                        \
        SM__EXPRESS(4.107059111542203, -2.9478499167379106, 0.5448431082926601),                   \
        SM__EXPRESS(3.9486908534822946, -2.908902115962949, 0.5518191394370137),                   \
        SM__EXPRESS(3.3184196573706015, -2.488488024314874, 0.51004894012372),                     \
        SM__EXPRESS(2.300652019954817, -1.6689039845747493, 0.4188073119525673)

/* The table of polynomials. (Designated initialisers are an extension to C++17.) */
SIGNMUON_API const SmNewtonSchulz *sm_newton_schulz_row(size_t i) {
    __extension__ static const SmNewtonSchulz table[] = {
        {.name = "jordan5", .steps = 5, .safety = 1.0,
         .coefficient = {SM__JORDAN, SM__JORDAN, SM__JORDAN, SM__JORDAN, SM__JORDAN},
         .doc = "Jordan's quintic, 5 steps", .bf16 = 0},
        {.name = "polar-express3", .steps = 3, .safety = 1.01,
         .coefficient = {SM__EXPRESS(8.093368799375614, -23.62043103701045, 17.446152170072118),
                         SM__EXPRESS(3.6365861990132204, -2.7219271591322745, 0.5365463515084697),
                         SM__EXPRESS(2.6612999785687252, -1.9771547996498908, 0.4526165141775926)},
         .doc = "Polar Express for singular values from 0.01 on, 3 steps: 0.73 .. 1.27", .bf16 = 0},
        {.name = "polar-express5", .steps = 5, .safety = 1.01,
         .coefficient = {SM__EXPRESS_FIRST_FIVE},
         .doc = "Polar Express, 5 steps", .bf16 = 0},
        {.name = "polar-express8", .steps = 8, .safety = 1.01,
         .coefficient = {SM__EXPRESS_FIRST_FIVE,
                         SM__EXPRESS(1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                         SM__EXPRESS(1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
                         {1.875, -1.25, 0.375}},
         .doc = "Polar Express, 8 steps: exact to rounding when sigma_min >= 1e-3 of the norm",
         .bf16 = 0},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}
// clang-format on

/* The row of that name, or NULL. */
#define SM__FIND_ROW(Type, function)                                                               \
    SIGNMUON_API const Type *function(const char *name) {                                          \
        size_t i = 0;                                                                              \
        while (function##_row(i) && strcmp(function##_row(i)->name, name)) i++;                    \
        return function##_row(i);                                                                  \
    }
SM__FIND_ROW(SmNewtonSchulz, sm_newton_schulz)

/* Floats of scratch that sm_polar and every LMO need for a rows x cols matrix. */
SIGNMUON_API size_t sm_lmo_scratch(size_t rows, size_t cols) {
    size_t small = rows < cols ? rows : cols;
    return 2 * rows * cols + 4 * small * small + SIGNMUON_GEMM_SCRATCH;
}

/* p (m x m) <- c0 I + c1 A + c2 A A, for a symmetric A; op as SIGNMUON_GEMM has it */
static inline void sm__polynomial(char op, float *p, const float *a, size_t m, const double *c,
                                  float *scratch) {
    (void)scratch;
    SIGNMUON_SYMMETRIC(op, p, a, a, m, m, scratch);
    for (size_t i = 0; i < m * m; i++) p[i] = (float)c[1] * a[i] + (float)c[2] * p[i];
    for (size_t i = 0; i < m; i++) p[i * m + i] += (float)c[0];
}

/* out <- polar(G) = U V^T (rows x cols) of G = U diag(sigma) V^T, approximately:
 *
 *   X <- G / (safety |G|_F)                      m x n; transposed where rows > cols
 *   for each triple c of ns:
 *     A <- X X^T                                 m x m
 *     P <- c0 I + c1 A + c2 A A
 *     X <- P X                                   singular values s <- s (c0 + c1 s^2 + c2 s^4)
 *
 * Steps of a wide matrix (n > 2m) are taken together. After X <- P X the next A is P A P, as P is
 * symmetric, so the polynomials of two or three steps come from m x m products. Their product Q
 * multiplies X once. The first two steps of many lift small singular values before A is formed
 * afresh: rounding of A allows no more.
 *
 * alias    out may be g; scratch is sm_lmo_scratch(rows, cols) floats and overlaps neither
 * cost     3 m^2 n + m^3 flop per step, or about 4 m^3 when n > 2m
 * error    none: zero gives zero */
SIGNMUON_API void sm_polar(float *out, const float *g, size_t rows, size_t cols,
                           const SmNewtonSchulz *ns, float *scratch) {
    const int tall = rows > cols;
    const char nn = ns->bf16 ? 'N' : 'n', nt = ns->bf16 ? 'T' : 't';
    const size_t m = tall ? cols : rows, n = tall ? rows : cols;
    float *x = scratch, *y = x + m * n, *a = y + m * n, *p = a + m * m, *q = p + m * m;
    float *r = q + m * m, *rest = r + m * m;
    double norm = ns->safety * sqrt(sm_sum_squares(g, rows * cols));
    if (!(norm > 0)) {
        memset(out, 0, rows * cols * sizeof *out);
        return;
    }
    if (tall)
        sm_transpose(x, g, rows, cols);
    else
        memcpy(x, g, m * n * sizeof *x);
    sm_scale(x, m * n, 1 / norm);
    for (int k = 0, together; k < ns->steps; k += together) {
        int left = ns->steps - k;
        together = n <= 2 * m ? 1 : left <= 3 ? left : k == 0 ? 2 : 3;
        // clang-format off
        SIGNMUON_SYMMETRIC(nt, a, x, x, m, n, rest);                /* A <- X X^T */
        sm__polynomial(nn, q, a, m, ns->coefficient[k], rest);      /* Q <- c0 I + c1 A + c2 AA */
        for (int j = 1; j < together; j++) {
            float *last = j == 1 ? q : p, *swap = q;
            SIGNMUON_SYMMETRIC(nn, r, last, a, m, m, rest);         /* A <- P A P */
            SIGNMUON_SYMMETRIC(nn, a, r, last, m, m, rest);
            sm__polynomial(nn, p, a, m, ns->coefficient[k + j], rest); /* P, of that A */
            SIGNMUON_SYMMETRIC(nn, r, p, q, m, m, rest);            /* Q <- P Q */
            q = r;
            r = swap;
        }
        SIGNMUON_GEMM(nn, y, q, x, m, n, m, rest);                  /* X <- Q X */
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
 * norms: the LMO of each unit ball, ascending (<G, O> is the dual norm of G), and the root mean
 * square of O's entries. A new norm is a pair of functions, a row of sm_norm_row, and its
 * definition in test/math.c. */

/* The head of an LMO; SmNorm explains its operands. */
#define SM__LMO(name)                                                                              \
    static inline void name(float *out, const float *g, size_t rows, size_t cols,                  \
                            __attribute__((unused)) const SmNewtonSchulz *ns,                      \
                            __attribute__((unused)) float *state,                                  \
                            __attribute__((unused)) float *scratch)

/* out <- x / |x|_2 in n entries; zero gives zero */
static inline void sm__normalise(float *out, const float *x, size_t n) {
    double norm = sqrt(sm_sum_squares(x, n));
    double factor = norm > 0 ? 1 / norm : 0;
    for (size_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * factor);
}

/* spectral norm: O = polar(G) */
SM__LMO(sm__lmo_spectral) { sm_polar(out, g, rows, cols, ns, scratch); }
static inline double sm__rms_spectral(double m, double n) { return 1 / sqrt(m > n ? m : n); }

/* sqrt(n/m) times the spectral norm, the operator norm RMS -> RMS: O = sqrt(m/n) polar(G) */
SM__LMO(sm__lmo_rms_rms) {
    sm_polar(out, g, rows, cols, ns, scratch);
    sm_scale(out, rows * cols, sqrt((double)rows / (double)cols));
}
static inline double sm__rms_rms_rms(double m, double n) {
    return sm__rms_spectral(m, n) * sqrt(m / n);
}

/* largest entry: O = sign(G), zero where G is zero (sm_pack makes a coin of such a zero) */
SM__LMO(sm__lmo_sign) {
    for (size_t i = 0; i < rows * cols; i++) out[i] = (float)((g[i] > 0) - (g[i] < 0));
}
static inline double sm__rms_one(double m, double n) { return (void)m, (void)n, 1; }

/* n times the largest entry: O = sign(G) / n */
SM__LMO(sm__lmo_sign_output) {
    sm__lmo_sign(out, g, rows, cols, ns, state, scratch);
    sm_scale(out, rows * cols, 1 / (double)cols);
}
static inline double sm__rms_output(double m, double n) { return (void)m, 1 / n; }

/* Frobenius norm: O = G / |G|_F */
SM__LMO(sm__lmo_frobenius) { sm__normalise(out, g, rows * cols); }
static inline double sm__rms_unit(double m, double n) { return 1 / sqrt(m * n); }

/* root mean square of all entries: O = G / RMS(G); its entries have sm__rms_one */
SM__LMO(sm__lmo_rms) {
    sm__normalise(out, g, rows * cols);
    sm_scale(out, rows * cols, sqrt((double)rows * (double)cols));
}

/* largest row, the operator norm l2 -> linf: every row divided by its 2-norm */
SM__LMO(sm__lmo_row) {
    for (size_t i = 0; i < rows; i++) sm__normalise(out + i * cols, g + i * cols, cols);
}
static inline double sm__rms_row(double m, double n) { return (void)m, 1 / sqrt(n); }

/* largest column, the operator norm l1 -> l2: every column divided by its 2-norm */
SM__LMO(sm__lmo_column) {
    double *factor = (double *)(void *)scratch;
    for (size_t j = 0; j < cols; j++) factor[j] = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            factor[j] += (double)g[i * cols + j] * (double)g[i * cols + j];
    for (size_t j = 0; j < cols; j++) factor[j] = factor[j] > 0 ? 1 / sqrt(factor[j]) : 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            out[i * cols + j] = (float)((double)g[i * cols + j] * factor[j]);
}
static inline double sm__rms_column(double m, double n) { return (void)n, 1 / sqrt(m); }

/* nuclear norm: O = u v^T of the largest singular value, by power iterations u <- G v, v <- G^T u:
 * 30 from the largest row, or 4 from the v of the step before, which is the state. O's entries have
 * sm__rms_unit. */
SM__LMO(sm__lmo_nuclear) {
    float *u = scratch, *v = u + rows;
    int warm = state && sm_sum_squares(state, cols) > 0;
    size_t start = 0;
    double largest = -1;
    for (size_t i = 0; i < rows; i++) {
        double square = sm_sum_squares(g + i * cols, cols);
        if (square > largest) largest = square, start = i;
    }
    sm__normalise(v, warm ? state : g + start * cols, cols);
    for (int k = 0; k < (warm ? 4 : 30); k++) {
        for (size_t i = 0; i < rows; i++) {
            float sum = 0;
            for (size_t j = 0; j < cols; j++) sum += g[i * cols + j] * v[j];
            u[i] = sum;
        }
        sm__normalise(u, u, rows);
        for (size_t j = 0; j < cols; j++) v[j] = 0;
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++) v[j] += u[i] * g[i * cols + j];
        sm__normalise(v, v, cols);
    }
    if (state) memcpy(state, v, cols * sizeof *v);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) out[i * cols + j] = u[i] * v[j];
}
static inline size_t sm__state_cols(size_t rows, size_t cols) { return (void)rows, cols; }

/* The table of norms. */
SIGNMUON_API const SmNorm *sm_norm_row(size_t i) {
    // clang-format off
    __extension__ static const SmNorm table[] = {
        {.name = "spectral", .lmo = sm__lmo_spectral, .rms = sm__rms_spectral, .state = NULL,
         .doc = "largest singular value; LMO: the polar factor U V^T"},
        {.name = "rms-rms", .lmo = sm__lmo_rms_rms, .rms = sm__rms_rms_rms, .state = NULL,
         .doc = "sqrt(n/m) spectral (Scion's hidden layers); LMO: sqrt(m/n) U V^T"},
        {.name = "sign", .lmo = sm__lmo_sign, .rms = sm__rms_one, .state = NULL,
         .doc = "largest entry (Scion's input layer); LMO: sign(G)"},
        {.name = "sign-output", .lmo = sm__lmo_sign_output, .rms = sm__rms_output, .state = NULL,
         .doc = "n times the largest entry (Scion's output layer); LMO: sign(G) / n"},
        {.name = "frobenius", .lmo = sm__lmo_frobenius, .rms = sm__rms_unit, .state = NULL,
         .doc = "root of the sum of squares; LMO: G / |G|_F"},
        {.name = "rms", .lmo = sm__lmo_rms, .rms = sm__rms_one, .state = NULL,
         .doc = "root of the mean square (Scion's biases); LMO: G / RMS(G)"},
        {.name = "column", .lmo = sm__lmo_column, .rms = sm__rms_column, .state = NULL,
         .doc = "largest column 2-norm; LMO: normalised columns"},
        {.name = "row", .lmo = sm__lmo_row, .rms = sm__rms_row, .state = NULL,
         .doc = "largest row 2-norm; LMO: normalised rows"},
        {.name = "nuclear", .lmo = sm__lmo_nuclear, .rms = sm__rms_unit, .state = sm__state_cols,
         .doc = "sum of singular values; LMO: u v^T of the largest, by power iteration"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

SM__FIND_ROW(SmNorm, sm_norm)

/* ------------------------------------------------------------------------------------------------
 * step gains for an m x n matrix */

static inline double sm__gain_none(size_t m, size_t n, int sign) {
    return (void)m, (void)n, (void)sign, 1;
}
static inline double sm__gain_fro(size_t m, size_t n, int sign) {
    return sign ? 1 / sqrt((double)m * (double)n) : 1 / sqrt((double)(m < n ? m : n));
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

/* The table of step gains. */
SIGNMUON_API const SmGain *sm_gain_row(size_t i) {
    // clang-format off
    __extension__ static const SmGain table[] = {
        {.name = "none", .gain = sm__gain_none, .doc = "1 (SignMuon's algorithm box)"},
        {.name = "fro", .gain = sm__gain_fro,
         .doc = "|step|_F = 1: 1/sqrt(mn) for signs, else 1/sqrt(min(m,n)) (SignMuon's analysis)"},
        {.name = "unit-gain", .gain = sm__gain_unit,
         .doc = "|step|_F/sqrt(m) = 1: 1/sqrt(fan_in) for signs, else sqrt(max(1,m/n))"},
        {.name = "aspect", .gain = sm__gain_aspect, .doc = "sqrt(max(1,m/n)) (Muon)"},
        {.name = "rms", .gain = sm__gain_rms,
         .doc = "entries of RMS 0.2: 0.2 for signs, else 0.2 sqrt(max(m,n)) (Moonlight)"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}
SM__FIND_ROW(SmGain, sm_gain)

/* ------------------------------------------------------------------------------------------------
 * sign bits: 64 weights to a word, bit 1 for + */

/* What differs between CPUs. SM__BYTES: of a vector register. SM__POSITIVE, SM__NONZERO: a bit per
 * float, for SM__FLOATS floats, which says whether it is > 0, or not 0. */
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
SIGNMUON_API size_t sm_words(size_t n) { return (n + 63) / 64; }

/* The bits that replace zeros, or ties, in a word: coins, or ones. */
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

/* bits <- sign(x), n entries into sm_words(n) words; bits past n are 0.
 * zeros  SM_COIN: bit of sm_hash(key, word); SM_ABSTAIN: 0, and what sm_present says is sent too */
SIGNMUON_API void sm_pack(uint64_t *bits, const float *x, size_t n, SmZero zeros, uint64_t key) {
    for (size_t w = 0; w < sm_words(n); w++) {
        size_t left = n - w * 64 < 64 ? n - w * 64 : 64;
        uint64_t nonzero, plus = sm__positive(&nonzero, x + w * 64, left);
        uint64_t zero = ~nonzero & ~(uint64_t)0 >> (64 - left);
        if (zero && zeros != SM_ABSTAIN) plus |= zero & sm__fill(zeros, key, w);
        bits[w] = plus;
    }
}

/* present <- 1 where x is not zero: the second bit of a weight whose sign may abstain. */
SIGNMUON_API void sm_present(uint64_t *present, const float *x, size_t n) {
    for (size_t w = 0; w < sm_words(n); w++)
        sm__positive(&present[w], x + w * 64, n - w * 64 < 64 ? n - w * 64 : 64);
}

/* x (64 entries) <- +step where bits has 1, else -step, and 0 where present has 0. In integers, as
 * gcc makes branches of ?: on floats. */
static inline void sm__expand(float *x, uint64_t bits, uint64_t present, float step) {
    const uint32_t top = (uint32_t)1 << 31;
    uint32_t plus;
    memcpy(&plus, &step, sizeof plus);
    for (size_t half = 0; half < 64; half += 32) {
        uint32_t minus = (uint32_t)(~bits >> half), here = (uint32_t)(present >> half);
        for (size_t i = 0; i < 32; i++) {
            uint32_t f = (plus ^ (minus << (31 - i) & top)) & (0 - (here >> i & 1));
            memcpy(&x[half + i], &f, sizeof f);
        }
    }
}

/* x <- the +-1 that n bits say, 0 where present (may be NULL) has 0. */
SIGNMUON_API void sm_unpack(float *x, const uint64_t *bits, const uint64_t *present, size_t n) {
    for (size_t w = 0; w < sm_words(n); w++) {
        float last[64], *to = n - w * 64 < 64 ? last : x + w * 64;
        sm__expand(to, bits[w], present ? present[w] : ~(uint64_t)0, 1.0f);
        if (to == last) memcpy(x + w * 64, last, (n - w * 64) * sizeof *x);
    }
}

/* w <- keep w - step (+-1 of n bits), and only keep w where decided (may be NULL) has 0. */
SIGNMUON_API void sm_apply(float *w, const uint64_t *bits, const uint64_t *decided, size_t n,
                           float step, float keep) {
    for (size_t k = 0; k < sm_words(n); k++) {
        float s[64];
        size_t left = n - k * 64 < 64 ? n - k * 64 : 64;
        sm__expand(s, bits[k], decided ? decided[k] : ~(uint64_t)0, step);
        for (size_t i = 0; i < left; i++) w[k * 64 + i] = keep * w[k * 64 + i] - s[i];
    }
}

/* ------------------------------------------------------------------------------------------------
 * the majority vote, counted 64 weights and more at a time
 *
 * A weight's counter adds 2 for every +, 1 for an abstention and 0 for -, which is W + (plusses -
 * minuses) for W workers. It starts at 2^top - 1 - W, where 2^top > W. So it ends at 2^top or more,
 * its bit `top` set, where + has the majority, and at 2^top - 1, all lower bits set, where the vote
 * is tied. Counters are bit-sliced: plane p holds bit p of the counters of a register's weights;
 * adders are logical operations on registers. */

/* A register full of words; up to SM__WIDES registers are counted together. 17 planes are used. If
 * the array had 17, gcc 12 would unroll every loop over planes, which is slower. */
typedef uint64_t SmWide __attribute__((vector_size(SM__BYTES)));
enum { SM__LANES = SM__BYTES / 8, SM__WIDES = 8, SM__PLANES = 18 };

/* The arguments of sm_vote. */
typedef struct SmVote {
    uint64_t *vote, *decided;
    const uint64_t *const *signs, *const *presents;
    size_t workers;
    SmZero ties;
    uint64_t key;
    size_t first_word;
} SmVote;

/* Full adder, bit by bit: *sum + *a + b leaves its sum in *sum and its carry in *a. */
static inline void sm__add(SmWide *sum, SmWide *a, const SmWide *b) {
    SmWide differ = *a ^ *b, carry = *a ^ (differ & (*a ^ *sum));
    *sum ^= differ;
    *a = carry;
}

/* counter += bit ^ flip of every worker, in `wides` registers of `lanes` words from word w on. Of
 * eight workers at a time, seven adders make three planes and a carry that ripples above them. */
__attribute__((always_inline)) static inline void
sm__count(SmWide counter[][SM__WIDES], size_t planes, const uint64_t *const *bits, uint64_t flip,
          size_t workers, size_t w, size_t wides, size_t lanes) {
    for (size_t v = 0; v < workers; v += 8)
        for (size_t k = 0; k < wides; k++) {
            SmWide row[8] = {{0}};
            for (size_t j = 0; j < 8; j++)
                if (v + j < workers) {
                    memcpy(&row[j], bits[v + j] + w + k * SM__LANES, lanes * sizeof **bits);
                    row[j] ^= flip;
                }
            for (size_t j = 0; j < 8; j += 2) sm__add(&counter[0][k], &row[j], &row[j + 1]);
            for (size_t j = 0; j < 8; j += 4) sm__add(&counter[1][k], &row[j], &row[j + 2]);
            sm__add(&counter[2][k], &row[0], &row[4]);
            for (size_t p = 3; p < planes; p++) {
                SmWide carry = counter[p][k] & row[0];
                counter[p][k] ^= row[0];
                row[0] = carry;
            }
        }
}

/* Count and decide in `wides` registers of `lanes` words from word w on. */
__attribute__((always_inline)) static inline void sm__decide(const SmVote *v, size_t top, size_t w,
                                                             size_t wides, size_t lanes) {
    const SmWide none = {0};
    const uint64_t start = ((uint64_t)1 << top) - 1 - v->workers;
    SmWide counter[SM__PLANES][SM__WIDES];
    for (size_t p = 0; p <= top; p++)
        for (size_t k = 0; k < wides; k++) counter[p][k] = none - (start >> p & 1);
    sm__count(counter + 1, top, v->signs, 0, v->workers, w, wides, lanes); /* + adds 2 */
    if (v->presents) /* whoever is absent adds 1 */
        sm__count(counter, top + 1, v->presents, ~(uint64_t)0, v->workers, w, wides, lanes);

    for (size_t k = 0; k < wides; k++, w += SM__LANES) {
        SmWide plus = counter[top][k], tied = ~plus, decided, fill;
        for (size_t p = 0; p < top; p++) tied &= counter[p][k];
        if (v->ties != SM_ABSTAIN && (v->presents || v->workers % 2 == 0)) {
            /* the coins of word i are sm_hash(key, i), which is sm_hash(key + i * multiplier, 0) */
            uint64_t key = v->key + 0x9e3779b97f4a7c15u * (v->first_word + w), coin[SM__LANES];
            for (size_t l = 0; l < SM__LANES; l++) coin[l] = sm__fill(v->ties, key, l);
            memcpy(&fill, coin, sizeof fill);
            plus |= tied & fill;
        }
        decided = v->ties == SM_ABSTAIN ? ~tied : ~none;
        memcpy(v->vote + w, &plus, lanes * sizeof *v->vote);
        if (v->decided) memcpy(v->decided + w, &decided, lanes * sizeof *v->decided);
    }
}

/* vote <- the majority of the workers' sign bits, word by word.
 * decided          NULL, or receives 0 where the vote is tied and ties abstain, else 1
 * signs, presents  one pointer per worker, each to `words` words; an abstention's sign bit is 0, as
 *                  sm_pack has it; presents NULL: nobody abstains
 * workers          1 .. 65,535
 * ties             SM_COIN: bit of sm_hash(key, first_word + word). A shard of a vote, which begins
 *                  at first_word of the whole, so has the bits of the whole */
SIGNMUON_API void sm_vote(uint64_t *vote, uint64_t *decided, const uint64_t *const *signs,
                          const uint64_t *const *presents, size_t workers, size_t words,
                          SmZero ties, uint64_t key, size_t first_word) {
    assert(workers >= 1 && workers < 65536);
    const SmVote v = {vote, decided, signs, presents, workers, ties, key, first_word};
    const size_t lanes = SM__LANES, many = lanes * SM__WIDES;
    size_t top = 4, w = 0;
    while (workers >> top) top++;
    if (top == 4) /* up to 15 workers: all counters stay in registers */
        for (; w + lanes <= words; w += lanes) sm__decide(&v, 4, w, 1, SM__LANES);
    for (; w + many <= words; w += many) sm__decide(&v, top, w, SM__WIDES, SM__LANES);
    for (; w < words; w += lanes) sm__decide(&v, top, w, 1, words - w < lanes ? words - w : lanes);
}

/* ------------------------------------------------------------------------------------------------
 * the vote between threads, or processes, of one machine: worker j counts the j-th shard of all
 * workers' sign bits */

enum { SM_MOST_VOTERS = 256 };

/* Head of the shared memory, without pointers, as processes may see it at different addresses. It
 * is followed by `workers` rows of `words` words, the signs of each, and one row, the majority. */
struct SmVoters {
    pthread_mutex_t mutex;
    pthread_cond_t all_here;
    size_t workers, words;
    size_t waiting;  /* workers at the barrier */
    uint64_t passed; /* times that all have passed it */
};

/* Row j of the words behind the head. */
static inline uint64_t *sm__voters_row(SmVoters *v, size_t j) {
    return (uint64_t *)(void *)(v + 1) + j * v->words;
}

/* Bytes of shared memory through which so many workers vote on `words` words of sign bits. */
SIGNMUON_API size_t sm_voters_bytes(size_t workers, size_t words) {
    return sizeof(SmVoters) + (workers + 1) * words * sizeof(uint64_t);
}

/* Make such memory ready, once, before workers join by using its address.
 * memory   sm_voters_bytes(workers, words) bytes of malloc or, for processes, MAP_SHARED of mmap
 * workers  1 .. SM_MOST_VOTERS
 * error    NULL where processes cannot share locks */
SIGNMUON_API SmVoters *sm_voters_init(void *memory, size_t workers, size_t words) {
    SmVoters *v = (SmVoters *)memory;
    pthread_mutexattr_t mutex;
    pthread_condattr_t cond;
    assert(workers >= 1 && workers <= SM_MOST_VOTERS);
    memset(v, 0, sizeof *v);
    v->workers = workers;
    v->words = words;
    if (pthread_mutexattr_init(&mutex) || pthread_condattr_init(&cond)) return NULL;
    int failed = pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED) ||
                 pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED) ||
                 pthread_mutex_init(&v->mutex, &mutex) || pthread_cond_init(&v->all_here, &cond);
    pthread_mutexattr_destroy(&mutex);
    pthread_condattr_destroy(&cond);
    return failed ? NULL : v;
}

/* Wait until all workers are here. */
static inline void sm__barrier(SmVoters *v) {
    pthread_mutex_lock(&v->mutex);
    uint64_t passed = v->passed;
    if (++v->waiting == v->workers) {
        v->waiting = 0;
        v->passed++;
        pthread_cond_broadcast(&v->all_here);
    }
    while (v->passed == passed) pthread_cond_wait(&v->all_here, &v->mutex);
    pthread_mutex_unlock(&v->mutex);
}

/* bits <- the majority of all workers' bits, as sm_vote has it. Every worker calls it, once a vote.
 * ties   SM_COIN or SM_PLUS, the same on all workers, and so is key
 * cost   each worker copies its words in and the majority out, and counts 1/N of them
 * error  none: a worker that has died keeps the others waiting */
SIGNMUON_API void sm_majority(SmVoters *v, size_t rank, uint64_t *bits, SmZero ties, uint64_t key) {
    const uint64_t *signs[SM_MOST_VOTERS];
    uint64_t *majority = sm__voters_row(v, v->workers);
    size_t shard = ((v->words + v->workers - 1) / v->workers + 7) / 8 * 8; /* whole cache lines */
    size_t begin = rank * shard < v->words ? rank * shard : v->words;
    size_t words = v->words - begin < shard ? v->words - begin : shard;
    assert(rank < v->workers && ties != SM_ABSTAIN);
    for (size_t j = 0; j < v->workers; j++) signs[j] = sm__voters_row(v, j) + begin;

    memcpy(sm__voters_row(v, rank), bits, v->words * sizeof *bits);
    sm__barrier(v); /* all signs are in */
    sm_vote(majority + begin, NULL, signs, NULL, v->workers, words, ties, key, begin);
    sm__barrier(v); /* all shards are counted; the next call's first barrier guards the majority */
    memcpy(bits, majority, v->words * sizeof *bits);
}

#ifdef __cplusplus
}
#endif
#endif
