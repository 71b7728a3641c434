/* bench/problem.h - small problems whose answers are known, on which the optimizer is put. MIT.

     quadratic    F = 1/2 <X, A X B>; A and B symmetric with eigenvalues U(0,1) in Haar bases;
                  worker j may see F + h <C_j, X>, where the C_j are Gaussian and sum to zero
     consensus    worker j sees 1/2 (x - a_j)^2, a = 0, 0, 9, 0, 0, 9, ..
     linear       <G, X> with the 4 x 4 matrix of Theorem 1 of intsystems/SignMuon
     divergence   the gradient sequence at the core of its Theorem 4

   A problem is a row of problem_row: how its data are made, F, and the gradient that a worker sees
   before noise. Products run on whatever SIGNMUON_GEMM is, so include signmuon.h first.

   MEMORY    the caller brings problem_floats() floats for the data, as many on every worker as
             problem_scratch() says for the rest
   THREADS   data are only read once they are made
*/
#ifndef PROBLEM_H
#define PROBLEM_H

#include "signmuon.h"

typedef struct Problem Problem;

/* A problem of one size. */
typedef struct ProblemData {
    const Problem *problem;
    size_t rows, cols;
    int workers;
    double parameter; /* what it means is said by the row */
    double largest;   /* quadratic: largest eigenvalue of X -> A X B */
    float *a, *b;     /* quadratic: A and B; linear: a is G */
    float *tilt;      /* quadratic: C_j, one matrix per worker */
    float *start;     /* X_0 */
} ProblemData;

struct Problem {
    const char *name;
    size_t rows, cols; /* default shape */
    int any_shape;
    double parameter; /* its default */
    void (*make)(ProblemData *d, uint64_t seed, float *scratch);
    /* F(x); *g <- its gradient as worker j sees it at a step, of the mean over the workers when j is -1 */
    double (*gradient)(float *g, const ProblemData *d, const float *x, int worker, uint64_t step,
                       float *scratch);
    const char *parameter_doc, *doc;
};

/* Standard normal number `index` of a stream (Box and Muller 1958). */
static inline double problem_normal(uint64_t key, uint64_t index) {
    double u = ((double)(sm_hash(key, 2 * index) >> 11) + 1) * 0x1p-53;
    double v = (double)(sm_hash(key, 2 * index + 1) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Uniform number in [0,1). */
static inline double problem_uniform(uint64_t key, uint64_t index) {
    return (double)(sm_hash(key, index) >> 11) * 0x1p-53;
}

/* sum of x_i y_i, in double */
static inline double problem_dot(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/* q (n x n, by rows) <- a Haar-distributed orthogonal matrix: Gram-Schmidt, twice, of a Gaussian
 * one. */
static inline void problem_haar(float *q, size_t n, uint64_t key) {
    for (size_t i = 0; i < n * n; i++) q[i] = (float)problem_normal(key, i);
    for (size_t i = 0; i < n; i++) {
        float *row = q + i * n;
        for (size_t p = 0; p < 2 * i; p++) {
            const float *other = q + p % i * n;
            double dot = problem_dot(row, other, n);
            for (size_t k = 0; k < n; k++) row[k] -= (float)dot * other[k];
        }
        double scale = 1 / sqrt(problem_dot(row, row, n));
        for (size_t k = 0; k < n; k++) row[k] = (float)((double)row[k] * scale);
    }
}

/* ------------------------------------------------------------------------------------------------
 * quadratic */

/* a (n x n) <- Q^T diag(lambda) Q; returns the largest lambda. scratch: 2 n n + what products want */
static inline double problem__spectrum(float *a, size_t n, uint64_t key, float *scratch) {
    float *q = scratch, *p = q + n * n, *rest = p + n * n;
    double largest = 0;
    problem_haar(a, n, key);
    for (size_t i = 0; i < n; i++) {
        double lambda = problem_uniform(sm_hash(key, 1), i);
        largest = fmax(largest, lambda);
        for (size_t k = 0; k < n; k++) {
            q[k * n + i] = a[i * n + k];
            p[k * n + i] = (float)lambda * a[i * n + k];
        }
    }
    SIGNMUON_GEMM('t', a, p, q, n, n, n, rest);
    (void)rest;
    return largest;
}

static inline void problem__make_quadratic(ProblemData *d, uint64_t seed, float *scratch) {
    size_t size = d->rows * d->cols;
    d->largest = problem__spectrum(d->a, d->rows, sm_key(seed, 1, 0), scratch) *
                 problem__spectrum(d->b, d->cols, sm_key(seed, 2, 0), scratch);
    for (size_t i = 0; i < size; i++) {
        double mean = 0;
        d->start[i] = (float)(0.1 * problem_normal(sm_key(seed, 3, 0), i));
        for (int j = 0; j < d->workers; j++)
            mean += problem_normal(sm_key(seed, 4 + (uint64_t)j, 0), i) / d->workers;
        for (int j = 0; j < d->workers; j++)
            d->tilt[(size_t)j * size + i] =
                (float)(problem_normal(sm_key(seed, 4 + (uint64_t)j, 0), i) - mean);
    }
}

/* G = A X B + h C_j */
static inline double problem__quadratic(float *g, const ProblemData *d, const float *x, int worker,
                                        uint64_t step, float *scratch) {
    size_t m = d->rows, n = d->cols;
    float h = (float)d->parameter, *product = scratch, *rest = product + m * n;
    (void)step, (void)rest;
    SIGNMUON_GEMM('n', product, d->a, x, m, n, m, rest);
    SIGNMUON_GEMM('n', g, product, d->b, m, n, n, rest);
    double loss = 0.5 * problem_dot(x, g, m * n);
    if (worker >= 0 && h != 0)
        for (size_t i = 0; i < m * n; i++) g[i] += h * d->tilt[(size_t)worker * m * n + i];
    return loss;
}

/* ------------------------------------------------------------------------------------------------
 * the small ones */

static inline double problem__consensus_target(int worker) { return worker % 3 == 2 ? 9 : 0; }

static inline void problem__make_consensus(ProblemData *d, uint64_t seed, float *scratch) {
    (void)seed, (void)scratch;
    for (size_t i = 0; i < d->rows * d->cols; i++) d->start[i] = 5;
}

static inline double problem__consensus(float *g, const ProblemData *d, const float *x, int worker,
                                        uint64_t step, float *scratch) {
    double loss = 0, sum = 0, n = d->workers;
    (void)step, (void)scratch;
    for (int j = 0; j < d->workers; j++) {
        double gap = (double)*x - problem__consensus_target(j);
        loss += 0.5 * gap * gap / n;
        sum += gap / n;
    }
    *g = worker < 0 ? (float)sum : (float)((double)*x - problem__consensus_target(worker));
    return loss;
}

/* G = sigma u v^T + O, O orthogonal, O v = u; 309 and 103 are the squared lengths */
static inline void problem__make_linear(ProblemData *d, uint64_t seed, float *scratch) {
    static const double o[16] = {101, 20, 2, -2,  -20, 97, 20,   -20,
                                 -2,  20, 2, 101, -2,  20, -101, -2};
    static const double u[4] = {10, -3, 10, 10}, v[4] = {10, 3, -10, 10};
    (void)seed, (void)scratch;
    for (size_t i = 0; i < 16; i++) {
        d->a[i] = (float)(d->parameter * u[i / 4] * v[i % 4] / 309 + o[i] / 103);
        d->start[i] = 0;
    }
}

static inline double problem__linear(float *g, const ProblemData *d, const float *x, int worker,
                                     uint64_t step, float *scratch) {
    (void)worker, (void)step, (void)scratch;
    memcpy(g, d->a, 16 * sizeof *g);
    return problem_dot(x, d->a, 16);
}

/* Theorem 4's polar factors D_0, D_1, then two in turn: each is its own polar factor, so they serve as
 * gradients. The theorem's f, whose gradients they are along the path, is not written down here: F is its part
 * in X_22, the coordinate that runs away, -7/25 X_22. */
static inline void problem__make_divergence(ProblemData *d, uint64_t seed, float *scratch) {
    (void)seed, (void)scratch;
    memset(d->start, 0, 4 * sizeof *d->start);
}

static inline double problem__divergence(float *g, const ProblemData *d, const float *x, int worker,
                                         uint64_t step, float *scratch) {
    static const double target[4][4] = {{-0.8, 0.6, -0.6, -0.8},
                                        {0.6, -0.8, 0, 0},
                                        {0.28, 0.96, 0.96, -0.28},
                                        {0.28, -0.96, -0.96, -0.28}};
    (void)d, (void)worker, (void)scratch;
    for (size_t i = 0; i < 4; i++) g[i] = (float)target[step < 2 ? step : 2 + step % 2][i];
    return -0.28 * (double)x[3];
}

/* ------------------------------------------------------------------------------------------------
 * the table */

/* Rows of --problem. NULL past the end. */
static inline const Problem *problem_row(size_t i) {
    static const Problem table[] = {
        {"quadratic", 100, 100, 1, 0, problem__make_quadratic, problem__quadratic,
         "h, how much the workers differ", "1/2 <X, A X B>, eigenvalues U(0,1) in Haar bases"},
        {"consensus", 1, 1, 0, 0, problem__make_consensus, problem__consensus, "unused",
         "1/2 (x - a_j)^2, a = 0, 0, 9 in turn; mean 3, median 0"},
        {"linear", 4, 4, 0, 1000, problem__make_linear, problem__linear, "sigma",
         "<G, X>, G = sigma u v^T + O of Theorem 1 of intsystems/SignMuon"},
        {"divergence", 2, 2, 0, 0, problem__make_divergence, problem__divergence, "unused",
         "the gradients of Theorem 4; F = -7/25 X_22"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* The row of that name, or NULL. */
static inline const Problem *problem_named(const char *name) {
    const Problem *row;
    for (size_t i = 0; (row = problem_row(i)) != NULL; i++)
        if (sm__equal(row->name, name)) return row;
    return NULL;
}

/* Floats that the data of a problem take, and that making it or a gradient wants as scratch. */
static inline size_t problem_floats(size_t rows, size_t cols, int workers) {
    return rows * rows + cols * cols + ((size_t)workers + 1) * rows * cols + 64;
}
static inline size_t problem_scratch(size_t rows, size_t cols) {
    size_t large = rows > cols ? rows : cols;
    return 2 * large * large + 64 + SIGNMUON_GEMM_SCRATCH;
}

/* Lay a problem out in `memory` and draw it. */
static inline void problem_make(ProblemData *d, const Problem *p, size_t rows, size_t cols,
                                int workers, double parameter, uint64_t seed, float *memory,
                                float *scratch) {
    *d = (ProblemData){.problem = p,
                       .rows = rows,
                       .cols = cols,
                       .workers = workers,
                       .parameter = parameter,
                       .a = memory,
                       .b = memory + rows * rows,
                       .start = memory + rows * rows + cols * cols,
                       .tilt = memory + rows * rows + cols * cols + rows * cols};
    p->make(d, seed, scratch);
}
#endif
