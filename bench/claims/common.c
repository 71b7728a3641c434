/* common.c - see common.h: verdicts, watched runs, matrices. MIT. */
#define PROBLEM_IMPLEMENTATION
#include "common.h"
#include "../../lib/comm.h"
#include "../noise.h"
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

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
 * runs of one worker, scored on X */

/* What is seen at X before step t, where F(X) and grad F(X) are these; F(W) = worker. */
static void solo_look(Solo *s, int t, double loss, double worker, const float *slope, size_t n) {
    const long fourth = s->run.steps / 4;
    double norm = norm_of(slope, n), l1 = 0, quarter = (double)fourth;
    int from_end = (int)s->run.steps - t;
    for (size_t i = 0; i < n; i++) l1 += fabs((double)slope[i]);
    if (t == 0) s->first = loss;
    s->least = fmin(s->least, loss);
    s->gradient = fmin(s->gradient, norm);
    s->l1 += l1 / sqrt((double)n) / (double)s->run.steps;
    if (from_end <= 50) s->tail += worker / 50;
    if (from_end <= quarter)
        s->floor += norm / quarter;
    else if (from_end <= 2 * quarter)
        s->before += norm / quarter;
    if (!s->reached && loss <= s->target) s->reached = t + 1;
    if (!s->reached_by_w && worker <= s->target) s->reached_by_w = t + 1;
    s->diverged = !(loss <= 1e12);
}

static int solo_work(SmComm *comm, void *arg) {
    Solo *s = arg;
    const ProblemRun *r = &s->run;
    size_t m = (size_t)r->rows, n = (size_t)r->cols, size = m * n;
    SmTensor tensor = {.name = "X", .rows = m, .cols = n, .blocks = 1, .role = SM_HIDDEN};
    ProblemData d, first;
    Noise noise;
    char error[512];
    problem_make(&d, r->problem, m, n, 1, r->parameter, (uint64_t)r->seed);
    problem_make(&first, r->problem, m, n, 1, r->parameter, 1);
    float *w = first.start, *x = numbers(size), *after = numbers(size), *g = numbers(size),
          *slope = numbers(size), *scratch = numbers(problem_scratch(m, n));
    SmOptimizer *o = sm_create(&r->config, &tensor, 1, comm, error, sizeof error);
    int failed = noise_parse(&noise, r->noise, error, sizeof error) || !o;
    s->least = s->gradient = s->alignment = INFINITY;
    memcpy(x, w, size * sizeof *x);
    for (int t = 0; t < r->steps && !failed; t++) {
        double worker = d.problem->gradient(g, &d, w, -1, 0, scratch), loss = worker, inner = 0;
        int apart = sm_server_model(o, x, w, (uint64_t)t);
        if (apart) loss = d.problem->gradient(slope, &d, x, -1, 0, scratch);
        if (!apart) memcpy(slope, g, size * sizeof *g);
        solo_look(s, t, loss, worker, slope, size);
        if (s->diverged || (s->target > 0 && s->reached && s->reached_by_w)) break;
        noise_add(g, size, &noise, sm_key((uint64_t)r->seed, 1000, (uint64_t)t), 0);
        failed = sm_step(o, w, g, (uint64_t)t, r->config.lr, r->config.lr);
        if (!sm_server_model(o, after, w, (uint64_t)t + 1)) memcpy(after, w, size * sizeof *w);
        for (size_t i = 0; i < size; i++) x[i] -= after[i];
        inner = problem_dot(x, slope, size) / (norm_of(x, size) * norm_of(slope, size));
        s->alignment = fmin(s->alignment, inner);
        s->ascents += inner < 0;
        s->steps++;
        memcpy(x, after, size * sizeof *x);
    }
    sm_free(o);
    problem_free(&d), problem_free(&first);
    free(x), free(after), free(g), free(slope), free(scratch);
    return failed;
}

/* Processes, as one sm_run at a time is allowed in each. */
void solo_runs(Answer *a, Solo *s, size_t count) {
    struct Shared {
        _Atomic size_t next, done;
        Solo solo[];
    } * shared;
    size_t bytes = sizeof *shared + count * sizeof *s;
    int cores = comm_cores();
    shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(shared != MAP_FAILED);
    memcpy(shared->solo, s, count * sizeof *s);
    fflush(NULL);
    for (int k = 0; k < cores; k++) {
        if (fork()) continue;
        for (size_t i; (i = shared->next++) < count;) {
            Solo *mine = &shared->solo[i];
            char error[512];
            shared->done += sm_resolve(&mine->run.config, 1, error, sizeof error) == 0 &&
                            sm_run("threads", 1, 1, solo_work, mine, error, sizeof error) == 0;
        }
        _exit(0);
    }
    while (wait(NULL) > 0) continue;
    if (shared->done != count) a->broken = 1, say(a, "a run failed; ");
    memcpy(s, shared->solo, count * sizeof *s);
    munmap(shared, bytes);
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
