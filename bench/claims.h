/* bench/claims.h - what the checks of bench/claims.c share: verdicts, runs, matrices. MIT. */
#ifndef CLAIMS_H
#define CLAIMS_H

#define TESTING
#pragma GCC diagnostic ignored "-Wunused-function"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* gcc 12 loses sight of what is packed */
#endif
#include "problem.c" // NOLINT(bugprone-suspicious-include)

typedef enum Verdict { REPRODUCED, NOT_REPRODUCED, REFUTED, BROKEN } Verdict;

/* What a check found. */
typedef struct Answer {
    char ours[400];
    int broken; /* something could not run */
} Answer;

typedef struct Claim Claim;
struct Claim {
    const char *id, *says, *source, *paper, *tolerance;
    Verdict (*check)(Answer *a, const Claim *c);
    const char *method;   /* of a row that is one of several alike: its method, rate, momentum */
    double lr, mu, value; /* and the paper's figure */
};

__attribute__((format(printf, 2, 3))) static void say(Answer *a, const char *format, ...) {
    size_t used = strlen(a->ours);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(a->ours + used, sizeof a->ours - used,
              format, // NOLINT(clang-analyzer-valist.Uninitialized)
              arguments);
    va_end(arguments);
}

static int same_bits(const void *x, const void *y, size_t bytes) {
    return memcmp(x, y, bytes) == 0;
}

static Verdict judge(int holds) { return holds ? REPRODUCED : NOT_REPRODUCED; }

/* A general statement: one counterexample is enough. */
static Verdict judge_general(int holds) { return holds ? REPRODUCED : REFUTED; }

/* ------------------------------------------------------------------------------------------------
 * runs */

/* What is kept of a run. */
typedef struct Watch {
    double target;                 /* the loss that ends the run, or 0 */
    int tail;                      /* steps from here on are averaged */
    int reached;                   /* the step at which the target was reached, or -1 */
    double first, last, alignment; /* losses; smallest alignment */
    double floor, tail_loss;       /* mean gradient norm and loss of the tail */
    double consensus;              /* largest distance */
    double seen;                   /* rows in the tail */
    double tail_exact, tail_apart; /* means of F(X) and of |X - W| / |X| */
    double sent;                   /* bytes */
    FILE *csv;                     /* or NULL: every row goes there, after this label */
    const char *label;
} Watch;

static int watch_row(void *context, const ProblemRow *r) {
    Watch *w = context;
    if (r->step == 0) w->first = r->loss;
    w->last = r->loss;
    w->sent = r->sent;
    if (r->alignment < w->alignment) w->alignment = r->alignment;
    if (r->consensus > w->consensus) w->consensus = r->consensus;
    if (r->step >= w->tail) {
        w->seen++;
        w->floor += (r->gradient - w->floor) / w->seen;
        w->tail_loss += (r->loss - w->tail_loss) / w->seen;
        w->tail_exact += (r->exact - w->tail_exact) / w->seen;
        w->tail_apart += (r->apart - w->tail_apart) / w->seen;
    }
    if (w->csv)
        fprintf(w->csv, "%s,%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.0f\n", w->label, r->step, r->loss,
                r->gradient, r->alignment, r->consensus, r->exact, r->apart, r->sent);
    if (w->target > 0 && w->reached < 0 && r->loss <= w->target) w->reached = r->step;
    return w->reached >= 0 || !isfinite(r->loss);
}

/* Run it; notes in the answer when it could not. */
static Watch watch_run(Answer *a, ProblemRun *r, Watch w) {
    char error[300] = "";
    w.reached = -1;
    w.alignment = INFINITY;
    r->observe = watch_row;
    r->context = &w;
    if (problem_run(r, error, sizeof error)) {
        a->broken = 1;
        say(a, "%s ", *error ? error : "a worker failed");
    }
    return w;
}

/* A run with a method's momentum and rate said. */
static ProblemRun run_of(const char *problem, const char *method, double lr, double mu, int steps) {
    ProblemRun r = problem_default(problem, method);
    r.lr = lr;
    r.config.momentum = mu;
    r.steps = steps;
    return r;
}

enum { QUADRATIC = 100 * 100, MANY = 16 };

/* Final models of a run; size floats per worker. */
static void final_models(Answer *a, ProblemRun *r, float *models) {
    r->final = models;
    watch_run(a, r, (Watch){0});
}

/* ------------------------------------------------------------------------------------------------
 * files */

static FILE *open_file(const char *path) {
    FILE *f = fopen(path, "w");
    if (f) return f;
    fprintf(stderr, "claims: cannot write %s: %s\n", path, strerror(errno));
    exit(1);
}

static void close_file(FILE *f, const char *path) {
    if (ferror(f) || fclose(f)) {
        fprintf(stderr, "claims: cannot write %s: %s\n", path, strerror(errno));
        exit(1);
    }
    printf("wrote %s\n", path);
}

/* ------------------------------------------------------------------------------------------------
 * matrices */

static float *floats(size_t n) { return problem_alloc(n * sizeof(float)); }

/* out <- polar(g), with scratch of its own */
static void polar_of(float *out, const float *g, size_t m, size_t n, const SmNewtonSchulz *ns) {
    float *scratch = floats(sm_lmo_scratch(m, n));
    sm_polar(out, g, m, n, ns, scratch);
    free(scratch);
}

static double gaussian(float *x, size_t n, uint64_t key) {
    for (size_t i = 0; i < n; i++) x[i] = (float)problem_normal(key, i);
    return sqrt(sm_sum_squares(x, n));
}

/* g (m x n) <- U diag(sigma) V^T of rank r with Haar bases, o <- U V^T */
static void known_matrix(float *g, float *o, size_t m, size_t n, size_t r, const double *sigma,
                         uint64_t key) {
    float *u = floats(m * m), *v = floats(n * n);
    problem_haar(u, m, sm_hash(key, 1));
    problem_haar(v, n, sm_hash(key, 2));
    for (size_t i = 0; i < m * n; i++) {
        double sum = 0, polar = 0;
        for (size_t p = 0; p < r; p++) {
            double uv = (double)u[p * m + i / n] * (double)v[p * n + i % n];
            sum += sigma[p] * uv;
            polar += uv;
        }
        g[i] = (float)sum;
        o[i] = (float)polar;
    }
    free(u);
    free(v);
}

/* largest singular value, by power iterations on X X^T */
static double spectral_norm(const float *x, size_t m, size_t n) {
    double *u = problem_alloc(m * sizeof *u), *v = problem_alloc(n * sizeof *v), norm = 0;
    for (size_t j = 0; j < n; j++) v[j] = problem_normal(7, j);
    for (int k = 0; k < 200; k++) {
        norm = 0;
        for (size_t i = 0; i < m; i++) {
            u[i] = 0;
            for (size_t j = 0; j < n; j++) u[i] += (double)x[i * n + j] * v[j];
        }
        for (size_t j = 0; j < n; j++) v[j] = 0;
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) v[j] += (double)x[i * n + j] * u[i];
        for (size_t j = 0; j < n; j++) norm += v[j] * v[j];
        norm = sqrt(norm);
        for (size_t j = 0; j < n; j++) v[j] /= norm;
    }
    free(u);
    free(v);
    return sqrt(norm);
}

/* A Newton-Schulz row cut or stretched to `steps` steps; past the table's its last triple repeats. */
static SmNewtonSchulz with_steps(const char *name, int steps) {
    SmNewtonSchulz ns = *sm_newton_schulz(name);
    for (int k = ns.steps; k < steps; k++)
        memcpy(ns.coefficient[k], ns.coefficient[ns.steps - 1], sizeof ns.coefficient[k]);
    ns.steps = steps;
    return ns;
}

#endif
