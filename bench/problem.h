/* problem.h - small problems with known answers, and runs of the optimizer on them. C11, MIT.

     quadratic    F = 1/2 <X, A X B>; A and B symmetric, eigenvalues U(0,1) in Haar bases. Worker j
                  may see F + h <C_j, X>, where the C_j are Gaussian and sum to zero
     consensus    worker j sees 1/2 (x - a_j)^2, a = 0, 0, 9, 0, 0, 9, ..
     linear       <G, X> with the 4 x 4 matrix of Theorem 1 of intsystems/SignMuon
     divergence   the gradient sequence of its Theorem 4

     ProblemRun run = problem_default("quadratic", "signmuon");
     run.workers = 3, run.observe = print_row;
     if (problem_run(&run, error, sizeof error)) ...

   A problem is a row of problem_row: how its data are drawn, F, and the gradient that a worker sees
   before noise. A run is workers of sm_run, each with its own gradient and noise, that call
   sm_step; worker 0 looks at the mean of their models. One file of a program defines
   PROBLEM_IMPLEMENTATION.

   MEMORY    problem_make and problem_run allocate, and end the program when there is no memory
   THREADS   data are only read once they are made; `observe` is called by worker 0
   ERRORS    problem_run: not 0, and a sentence */
#ifndef PROBLEM_H
#define PROBLEM_H

#include "kernels.h"
#include "../lib/base.h"
#include "../optimizer.h"

/* ------------------------------------------------------------------------------------------------
 * problems */

typedef struct Problem Problem;

/* A problem of one size. */
typedef struct ProblemData {
    const Problem *problem;
    size_t rows, cols;
    int workers;
    double parameter; /* its meaning stands in the row */
    double largest;   /* quadratic: largest eigenvalue of X -> A X B */
    float *a, *b;     /* quadratic: A and B; linear: a is G */
    float *tilt;      /* quadratic: C_j, one matrix per worker */
    float *start;     /* X_0 */
} ProblemData;

struct Problem {
    const char *name;
    size_t rows, cols;                                           /* default shape */
    double parameter;                                            /* default */
    void (*draw)(ProblemData *d, uint64_t seed, float *scratch); /* NULL: X_0 = 0 is all */
    /* Returns F(x); g <- the gradient that worker j sees at a step, or with j = -1 that of F */
    double (*gradient)(float *g, const ProblemData *d, const float *x, int worker, uint64_t step,
                       float *scratch);
};

const Problem *problem_row(size_t i); /* NULL past the end */
const Problem *problem_named(const char *name);

void problem_make(ProblemData *d, const char *name, size_t rows, size_t cols, int workers,
                  double parameter, uint64_t seed);
void problem_free(ProblemData *d);
size_t problem_scratch(size_t rows, size_t cols); /* floats that a gradient needs */

/* ------------------------------------------------------------------------------------------------
 * runs */

/* What worker 0 sees before a step; the alignment is that of the step that follows. */
typedef struct ProblemRow {
    int step;
    double loss, gradient; /* F and |grad F|_F at the mean model; NaN: a message was refused */
    double alignment;      /* <grad F, D> / (|grad F| |D|), D = X_t - X_t+1 of the mean models */
    double consensus;      /* sqrt(sum_j |X_j - mean X|^2) */
    double exact, apart;   /* compressed downlink: F at the server's X, and |X - W| / |X| */
    double sent;           /* bytes so far, mean over the workers */
} ProblemRow;

typedef struct ProblemRun {
    const char *problem, *noise;
    SmConfig config; /* config.lr is the peak step size */
    int falls;       /* the step size is times (1 - t/T) / sqrt(t + 1) */
    long rows, cols, workers, steps, every, seed;
    double parameter;
    double scale;                                         /* factor on every gradient */
    int (*observe)(void *context, const ProblemRow *row); /* not 0 ends the run */
    void *context;
    float *final; /* NULL, or receives every worker's model (threads only) */
} ProblemRun;

/* The defaults of a problem and of a method, less what serves training only: no gain by shape, no
 * Nesterov, no weight decay, clipping only where it belongs to the rule; AdamW's beta2 is 0.999. */
ProblemRun problem_default(const char *problem, const char *method);
int problem_run(const ProblemRun *run, char *error, size_t size);

/* ------------------------------------------------------------------------------------------------
 * random numbers and memory */

/* Zeroed bytes, aligned to 64, to be freed; ends the program when there are none. */
static inline void *problem_alloc(size_t bytes) {
    void *p = base_allocate(bytes + 64);
    if (p) return p;
    fprintf(stderr, "no memory for %zu bytes\n", bytes);
    exit(1);
}

/* Standard normal number `index` of a stream (Box and Muller 1958). */
static inline double problem_normal(uint64_t key, uint64_t index) {
    double u = ((double)(sm_hash(key, 2 * index) >> 11) + 1) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * base_uniform(key, 2 * index + 1));
}

/* sum of x_i y_i, in double */
static inline double problem_dot(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/* q (n x n) <- a Haar-distributed orthogonal matrix: Gram-Schmidt, twice, on Gaussian rows */
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

#endif

/* ------------------------------------------------------------------------------------------------
 * private from here */

#ifdef PROBLEM_IMPLEMENTATION
#undef PROBLEM_IMPLEMENTATION

#include "../lib/comm.h"
#include "noise.h"

/* a (n x n) <- Q^T diag(lambda) Q with Haar Q; returns the largest lambda */
static double problem__spectrum(float *a, size_t n, uint64_t key, float *scratch) {
    float *q = scratch, *p = q + n * n, *rest = p + n * n;
    double largest = 0;
    problem_haar(a, n, key);
    for (size_t i = 0; i < n; i++) {
        double lambda = base_uniform(sm_hash(key, 1), i);
        largest = fmax(largest, lambda);
        for (size_t k = 0; k < n; k++) {
            q[k * n + i] = a[i * n + k];
            p[k * n + i] = (float)lambda * a[i * n + k];
        }
    }
    SIGNMUON_GEMM('t', a, p, q, n, n, n, rest);
    return largest;
}

static void problem__draw_quadratic(ProblemData *d, uint64_t seed, float *scratch) {
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
static double problem__quadratic(float *g, const ProblemData *d, const float *x, int worker,
                                 uint64_t step, float *scratch) {
    size_t m = d->rows, n = d->cols;
    float h = (float)d->parameter, *product = scratch, *rest = product + m * n;
    (void)step;
    SIGNMUON_GEMM('n', product, d->a, x, m, n, m, rest);
    SIGNMUON_GEMM('n', g, product, d->b, m, n, n, rest);
    double loss = 0.5 * problem_dot(x, g, m * n);
    if (worker >= 0 && h != 0)
        for (size_t i = 0; i < m * n; i++) g[i] += h * d->tilt[(size_t)worker * m * n + i];
    return loss;
}

static void problem__draw_consensus(ProblemData *d, uint64_t seed, float *scratch) {
    (void)seed, (void)scratch;
    *d->start = 5;
}

static double problem__consensus(float *g, const ProblemData *d, const float *x, int worker,
                                 uint64_t step, float *scratch) {
    double loss = 0, sum = 0, n = d->workers;
    (void)step, (void)scratch;
    for (int j = 0; j < d->workers; j++) {
        double gap = (double)*x - (j % 3 == 2 ? 9 : 0);
        loss += 0.5 * gap * gap / n;
        sum += gap / n;
        if (j == worker) *g = (float)gap;
    }
    if (worker < 0) *g = (float)sum;
    return loss;
}

/* G = sigma u v^T + O, O orthogonal, O v = u; 309 and 103 are the squared lengths */
static void problem__draw_linear(ProblemData *d, uint64_t seed, float *scratch) {
    static const double o[16] = {101, 20, 2, -2,  -20, 97, 20,   -20,
                                 -2,  20, 2, 101, -2,  20, -101, -2};
    static const double u[4] = {10, -3, 10, 10}, v[4] = {10, 3, -10, 10};
    (void)seed, (void)scratch;
    for (size_t i = 0; i < 16; i++)
        d->a[i] = (float)(d->parameter * u[i / 4] * v[i % 4] / 309 + o[i] / 103);
}

static double problem__linear(float *g, const ProblemData *d, const float *x, int worker,
                              uint64_t step, float *scratch) {
    (void)worker, (void)step, (void)scratch;
    memcpy(g, d->a, 16 * sizeof *g);
    return problem_dot(x, d->a, 16);
}

/* Theorem 4's polar factors D_0, D_1, then two in turn. Each is its own polar factor, so they serve
 * as gradients. The theorem's f is not written down; F is its part in X_22, which runs away. */
static double problem__divergence(float *g, const ProblemData *d, const float *x, int worker,
                                  uint64_t step, float *scratch) {
    static const double target[4][4] = {{-0.8, 0.6, -0.6, -0.8},
                                        {0.6, -0.8, 0, 0},
                                        {0.28, 0.96, 0.96, -0.28},
                                        {0.28, -0.96, -0.96, -0.28}};
    (void)d, (void)worker, (void)scratch;
    for (size_t i = 0; i < 4; i++) g[i] = (float)target[step < 2 ? step : 2 + step % 2][i];
    return -0.28 * (double)x[3];
}

const Problem *problem_row(size_t i) {
    // clang-format off
    static const Problem table[] = {
        {.name = "quadratic", .rows = 100, .cols = 100, .draw = problem__draw_quadratic,
         .gradient = problem__quadratic},
        {.name = "consensus", .rows = 1, .cols = 1, .draw = problem__draw_consensus,
         .gradient = problem__consensus},
        {.name = "linear", .rows = 4, .cols = 4, .parameter = 1000, .draw = problem__draw_linear,
         .gradient = problem__linear},
        {.name = "divergence", .rows = 2, .cols = 2,
         .gradient = problem__divergence},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

const Problem *problem_named(const char *name) {
    size_t i = 0;
    while (problem_row(i) && strcmp(problem_row(i)->name, name) != 0) i++;
    return problem_row(i);
}

size_t problem_scratch(size_t rows, size_t cols) {
    size_t large = rows > cols ? rows : cols;
    return 2 * large * large + SIGNMUON_GEMM_SCRATCH;
}

void problem_make(ProblemData *d, const char *name, size_t rows, size_t cols, int workers,
                  double parameter, uint64_t seed) {
    float *scratch = problem_alloc(problem_scratch(rows, cols) * sizeof *scratch);
    size_t size = rows * cols;
    *d = (ProblemData){.problem = problem_named(name),
                       .rows = rows,
                       .cols = cols,
                       .workers = workers,
                       .parameter = parameter,
                       .a = problem_alloc(rows * rows * sizeof *d->a),
                       .b = problem_alloc(cols * cols * sizeof *d->b),
                       .tilt = problem_alloc((size_t)workers * size * sizeof *d->tilt),
                       .start = problem_alloc(size * sizeof *d->start)};
    if (d->problem->draw) d->problem->draw(d, seed, scratch);
    free(scratch);
}

void problem_free(ProblemData *d) { free(d->a), free(d->b), free(d->tilt), free(d->start); }

/* ---- one worker of a run ---- */

typedef struct ProblemWorker {
    const ProblemRun *run;
    const ProblemData *data;
    Noise noise;
    Comm *comm;
    size_t size;
    float *params, *grads, *scratch;
    float *all, *mean, *slope, *before; /* every worker's model, their mean, grad F there */
    SmOptimizer *optimizer;
    int refused; /* a message of a step was */
} ProblemWorker;

/* mean <- the mean of all models; returns the root of their summed squared distances from it. */
static double problem__mean(ProblemWorker *w) {
    double distance = 0;
    int n = w->comm->size;
    comm_gather(w->comm, w->params, w->size * sizeof(float), w->all, COMM_OTHER);
    for (size_t i = 0; i < w->size; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) sum += (double)w->all[(size_t)j * w->size + i];
        w->mean[i] = (float)(sum / n);
        for (int j = 0; j < n; j++) {
            double gap = (double)w->all[(size_t)j * w->size + i] - (double)w->mean[i];
            distance += gap * gap;
        }
    }
    return sqrt(distance);
}

/* The row of this step, without the alignment. */
static void problem__look(ProblemWorker *w, ProblemRow *row, int step) {
    uint64_t mine[2] = {0, (uint64_t)w->refused}, all[2 * COMM_MAX_WORKERS];
    int refused = 0, n = w->comm->size;
    *row = (ProblemRow){.step = step, .alignment = NAN, .exact = NAN, .apart = NAN};
    for (int k = 0; k < COMM_OTHER; k++) mine[0] += w->comm->sent[k];
    comm_gather(w->comm, mine, sizeof mine, all, COMM_OTHER);
    for (int j = 0; j < n; j++) {
        row->sent += (double)all[2 * j] / n;
        refused |= all[2 * j + 1] != 0;
    }
    float *x = w->before;
    if (sm_server_model(w->optimizer, x, w->params, (uint64_t)step)) { /* compressed downlink */
        double gap = 0;
        row->exact =
            w->data->problem->gradient(w->mean, w->data, x, -1, (uint64_t)step, w->scratch);
        for (size_t i = 0; i < w->size; i++) {
            double d = (double)x[i] - (double)w->params[i];
            gap += d * d;
        }
        row->apart = sqrt(gap / sm_sum_squares(x, w->size));
    }
    row->consensus = problem__mean(w);
    row->loss =
        w->data->problem->gradient(w->slope, w->data, w->mean, -1, (uint64_t)step, w->scratch);
    row->gradient = sqrt(sm_sum_squares(w->slope, w->size));
    if (refused) row->loss = row->gradient = NAN;
    memcpy(w->before, w->mean, w->size * sizeof(float));
}

/* Alignment of the step that was taken; returns 1 when the observer has seen enough. */
static int problem__report(ProblemWorker *w, ProblemRow *row, int moved) {
    double inner = 0, square = 0;
    int stop = 0;
    if (moved) problem__mean(w);
    for (size_t i = 0; i < w->size && moved; i++) {
        double d = (double)w->before[i] - (double)w->mean[i];
        inner += d * (double)w->slope[i];
        square += d * d;
    }
    if (moved) row->alignment = inner / (row->gradient * sqrt(square));
    if (w->comm->rank == 0 && w->run->observe) stop = w->run->observe(w->run->context, row);
    comm_broadcast(w->comm, &stop, sizeof stop, 0, COMM_OTHER);
    return stop;
}

static void problem__steps(ProblemWorker *w) {
    const ProblemRun *r = w->run;
    int self = w->comm->rank;
    ProblemRow row;
    for (int t = 0, stop = 0; t <= r->steps && !stop; t++) {
        int look = t % r->every == 0 || t == r->steps;
        if (look) problem__look(w, &row, t);
        if (t < r->steps) {
            uint64_t key = sm_key((uint64_t)r->seed, 1000 + (uint64_t)self, (uint64_t)t);
            double factor = r->falls ? (1 - t / (double)r->steps) / sqrt(t + 1.0) : 1;
            double lr = r->config.lr * factor;
            w->data->problem->gradient(w->grads, w->data, w->params, self, (uint64_t)t, w->scratch);
            noise_add(w->grads, w->size, &w->noise, key, 0);
            for (size_t i = 0; i < w->size; i++) w->grads[i] *= (float)r->scale;
            w->refused |= sm_step(w->optimizer, w->params, w->grads, (uint64_t)t, lr, lr) != 0;
        }
        if (look) stop = problem__report(w, &row, t < r->steps);
    }
}

static int problem__work(SmComm *comm, void *arg) {
    ProblemWorker w = *(const ProblemWorker *)arg;
    const ProblemData *d = w.data;
    size_t size = w.size, scratch = (problem_scratch(d->rows, d->cols) + 15) / 16 * 16;
    SmTensor tensor = {.name = "X",
                       .rows = d->rows,
                       .cols = d->cols,
                       .blocks = 1,
                       .role = SM_HIDDEN,
                       .decay = w.run->config.weight_decay > 0};
    char error[512];
    w.comm = comm;
    w.scratch = problem_alloc((scratch + (5 + (size_t)comm->size) * size) * sizeof(float));
    w.params = w.scratch + scratch;
    w.grads = w.params + size;
    w.mean = w.grads + size;
    w.slope = w.mean + size;
    w.before = w.slope + size;
    w.all = w.before + size;
    memcpy(w.params, d->start, size * sizeof(float));
    w.optimizer = sm_create(&w.run->config, &tensor, 1, comm, error, sizeof error);
    if (!w.optimizer) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    problem__steps(&w);
    if (w.run->final)
        memcpy(w.run->final + (size_t)comm->rank * size, w.params, size * sizeof(float));
    sm_free(w.optimizer);
    free(w.scratch);
    return 0;
}

int problem_run(const ProblemRun *run, char *error, size_t size) {
    ProblemData data;
    ProblemWorker w = {.run = run, .data = &data, .size = (size_t)(run->rows * run->cols)};
    SmConfig config = run->config;
    int status = noise_parse(&w.noise, run->noise, error, size);
    if (!status) status = sm_resolve(&config, (int)run->workers, error, size);
    if (status) return status;
    problem_make(&data, run->problem, (size_t)run->rows, (size_t)run->cols, (int)run->workers,
                 run->parameter, (uint64_t)run->seed);
    status = sm_run("threads", (int)run->workers, 1, problem__work, &w, error, size);
    problem_free(&data);
    return status;
}

ProblemRun problem_default(const char *problem, const char *method) {
    const Problem *p = problem_named(problem);
    const SmMethod *m = sm_method(method);
    assert(p && m);
    ProblemRun r = {.problem = problem,
                    .noise = "",
                    .config = sm_config(method),
                    .rows = (long)p->rows,
                    .cols = (long)p->cols,
                    .workers = 1,
                    .steps = 500,
                    .every = 1,
                    .seed = 1,
                    .parameter = p->parameter,
                    .scale = 1};
    r.config.lr = 1e-3;
    r.config.gain = "none";
    r.config.nesterov = 0;
    r.config.weight_decay = 0;
    r.config.beta2 = 0.999;
    r.config.clip = m->clip_power > 0 ? m->clip : 0;
    r.config.seed = 1;
    return r;
}
#endif
