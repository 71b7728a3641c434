/* common.c - see common.h: verdicts, watched runs, matrices. MIT. */
#define PROBLEM_IMPLEMENTATION
#include "common.h"

void say(Answer *a, const char *format, ...) {
    size_t used = strlen(a->ours);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(a->ours + used, sizeof a->ours - used, format, arguments);
    va_end(arguments);
}

Verdict judge(int holds) { return holds ? REPRODUCED : NOT_REPRODUCED; }
Verdict judge_general(int holds) { return holds ? REPRODUCED : REFUTED; }

/* ------------------------------------------------------------------------------------------------
 * runs */

static int watch_row(void *context, const ProblemRow *r) {
    Watch *w = context;
    if (r->step == 0) w->first = r->loss;
    w->last = r->loss;
    w->sent = r->sent;
    if (r->alignment < w->alignment) w->alignment = r->alignment;
    if (r->consensus > w->consensus) w->consensus = r->consensus;
    if (r->step >= w->tail) {
        w->rows_averaged++;
        w->floor += (r->gradient - w->floor) / w->rows_averaged;
        w->tail_loss += (r->loss - w->tail_loss) / w->rows_averaged;
        w->tail_exact += (r->exact - w->tail_exact) / w->rows_averaged;
        w->tail_apart += (r->apart - w->tail_apart) / w->rows_averaged;
    }
    if (w->csv)
        fprintf(w->csv, "%s,%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.0f\n", w->label, r->step, r->loss,
                r->gradient, r->alignment, r->consensus, r->exact, r->apart, r->sent);
    if (w->target > 0 && w->reached < 0 && r->loss <= w->target) w->reached = r->step;
    return w->reached >= 0 || !isfinite(r->loss);
}

Watch watch_run(Answer *a, ProblemRun *r, Watch w) {
    char error[512] = "";
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

ProblemRun run_of(const char *problem, const char *method, double lr, double mu, long steps) {
    ProblemRun r = problem_default(problem, method);
    r.config.lr = lr;
    r.config.momentum = mu;
    r.steps = steps;
    return r;
}

void final_models(Answer *a, ProblemRun *r, float *models) {
    r->final = models;
    watch_run(a, r, (Watch){0});
}

double runs_differ(Answer *a, ProblemRun *x, ProblemRun *y) {
    size_t n = (size_t)(x->workers * x->rows * x->cols);
    float *models = numbers(2 * n), *other = models + n;
    final_models(a, x, models);
    final_models(a, y, other);
    int same = memcmp(models, other, n * sizeof *models) == 0;
    for (size_t i = 0; i < n; i++) models[i] -= other[i];
    double gap = same ? 0 : norm_of(models, n) / norm_of(other, n);
    free(models);
    return gap;
}

/* ------------------------------------------------------------------------------------------------
 * matrices and numbers */

float *numbers(size_t n) { return problem_alloc(n * sizeof(float)); }

void polar_of(float *out, const float *g, size_t m, size_t n, const SmNewtonSchulz *ns) {
    float *scratch = numbers(sm_lmo_scratch(m, n));
    sm_polar(out, g, m, n, ns, scratch);
    free(scratch);
}

double gaussian(float *x, size_t n, uint64_t key) {
    for (size_t i = 0; i < n; i++) x[i] = (float)problem_normal(key, i);
    return norm_of(x, n);
}

double norm_of(const float *x, size_t n) { return sqrt(sm_sum_squares(x, n)); }

void known_matrix(float *g, float *o, size_t m, size_t n, size_t r, const double *sigma,
                  uint64_t key) {
    float *u = numbers(m * m), *v = numbers(n * n);
    problem_haar(u, m, sm_hash(key, 1));
    problem_haar(v, n, sm_hash(key, 2));
    for (size_t i = 0; n > 0 && i < m * n; i++) {
        double sum = 0, polar = 0;
        for (size_t p = 0; p < r; p++) {
            double uv = (double)u[p * m + i / n] * (double)v[p * n + i % n];
            sum += sigma[p] * uv;
            polar += uv;
        }
        g[i] = (float)sum;
        o[i] = (float)polar;
    }
    free(u), free(v);
}

/* By power iterations on X X^T. */
double spectral_norm(const float *x, size_t m, size_t n) {
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
    free(u), free(v);
    return sqrt(norm);
}

SmNewtonSchulz with_steps(const char *name, int steps) {
    SmNewtonSchulz ns = *sm_newton_schulz(name);
    for (int k = ns.steps; k < steps; k++)
        memcpy(ns.coefficient[k], ns.coefficient[ns.steps - 1], sizeof ns.coefficient[k]);
    ns.steps = steps;
    return ns;
}

/* Through 2 x 2 matrices of norm 1; lo is what the polynomials see, after the safety factor. */
void band_of(const SmNewtonSchulz *ns, double lo, double *least, double *largest) {
    enum { POINTS = 4000 };
    *least = INFINITY;
    *largest = 0;
    lo *= ns->safety;
    for (int k = 0; k <= POINTS; k++) {
        double s = lo * pow(1 / lo, k / (double)POINTS);
        float x[4] = {(float)s, 0, 0, (float)sqrt(1 - s * s)};
        polar_of(x, x, 2, 2, ns);
        *least = fmin(*least, (double)x[0]);
        *largest = fmax(*largest, (double)x[0]);
    }
}

double exponent(const double *x, const double *y, size_t n) {
    double sx = 0, sy = 0, xx = 0, xy = 0;
    for (size_t i = 0; i < n; i++) {
        sx += log(x[i]) / (double)n;
        sy += log(y[i]) / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        xx += (log(x[i]) - sx) * (log(x[i]) - sx);
        xy += (log(x[i]) - sx) * (log(y[i]) - sy);
    }
    return xy / xx;
}

int bit_of(const uint64_t *bits, size_t i) { return (int)(bits[i / 64] >> i % 64 & 1); }
