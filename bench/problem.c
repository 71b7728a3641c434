/* bench/problem.c - the optimizer on a problem of problem.h, one row of figures per step. MIT.

     bench/problem --problem quadratic --method signmuon --workers 3 --lr 1e-3 --noise gaussian:0.1

   prints CSV. problem_run is the whole of it: workers of comm.h, each with its own gradient and its
   own noise, step through signmuon.c; worker 0 looks at the mean of their models. The optimizer is
   included, not linked, so that everything here multiplies with the same kernels. */
#include "signmuon.c" // NOLINT(bugprone-suspicious-include)
#include "demuon.h"
#include "ef21muon.h"
#include "noise.h"
#include "problem.h"
#include <stdarg.h>

/* How the rate of a step follows from the peak rate: at step t of T. */
typedef struct Schedule {
    const char *name;
    double (*factor)(double t, double total);
    const char *doc;
} Schedule;

static double schedule_constant(double t, double total) { return (void)t, (void)total, 1; }
static double schedule_linear(double t, double total) { return 1 - t / total; }
static double schedule_cosine(double t, double total) {
    return 0.5 + 0.5 * cos(3.14159265358979 * t / total);
}
static double schedule_sqrt(double t, double total) { return (void)total, 1 / sqrt(t + 1); }
static double schedule_both(double t, double total) { return (1 - t / total) / sqrt(t + 1); }

static const Schedule schedules[] = {
    {"constant", schedule_constant, "1"},
    {"linear", schedule_linear, "1 - t/T"},
    {"cosine", schedule_cosine, "half a cosine to 0"},
    {"sqrt", schedule_sqrt, "1/sqrt(t+1)"},
    {"linear-sqrt", schedule_both, "(1 - t/T)/sqrt(t+1)"},
    {NULL, NULL, NULL},
};

/* What worker 0 sees before a step; the alignment is that of the step then taken. */
typedef struct ProblemRow {
    int step;
    double loss, gradient; /* F and |grad F|_F at the mean model */
    double nuclear;        /* |grad F|_*, when asked for */
    double alignment;      /* <grad F, D> / (|grad F| |D|), D = X_t - X_t+1 of the mean models */
    double consensus;      /* root of the sum of |X_j - mean X|^2 */
    double exact, apart;   /* with a compressed reply: F at the server's X, and |X - W| / |X| */
    double sent, received; /* bytes so far, the mean over the workers */
} ProblemRow;

/* One run. Names are rows of the tables. */
typedef struct ProblemRun {
    const Problem *problem;
    size_t rows, cols;
    double parameter;
    SmConfig config;
    const CommBackend *backend;
    int workers, threads, steps, every;
    double lr;
    const Schedule *schedule;
    Noise noise;
    EfLink up, down;      /* error feedback's compressors; row NULL: the method has none */
    const char *topology; /* of gossip */
    int rounds;           /* of gossip, for tracker and parameters */
    uint64_t seed;        /* draws problem and noise */
    int nuclear;          /* fill that column */
    int rotate;           /* worker j takes the noise and the part of worker j + rotate */
    double scale;         /* factor on every gradient */
    int resume;           /* before this step (0: never) all state moves into a new optimizer, */
    const char *lose;     /* except vectors of this kind */
    int (*observe)(void *context, const ProblemRow *row); /* by worker 0; not 0 ends the run */
    void *context;
    float *final; /* NULL, or receives every worker's model */
} ProblemRun;

/* SmConfig from a method's row, less what is for training: no gain by shape, no look-ahead, no decay,
 * clipping only where it is the rule; Adam's second momentum is 0.999. */
static SmConfig problem_config(const SmMethod *m) {
    SmConfig c = sm_config(m, sm_method(sm_gossips(m) ? "dsgd" : "sgd"));
    c.gain = sm_gain("none");
    c.nesterov = 0;
    c.decay = 0;
    c.beta2 = 0.999;
    c.clip = m->clip_power > 0 ? m->clip : 0;
    c.seed = 1;
    return c;
}

/* The one tensor. */
static SmTensor problem_tensor(const ProblemRun *r) {
    return (SmTensor){.name = "X",
                      .rows = r->rows,
                      .cols = r->cols,
                      .blocks = 1,
                      .role = SM_HIDDEN,
                      .decay = r->config.decay > 0};
}

/* ------------------------------------------------------------------------------------------------
 * one run */

enum { PROBLEM_WORKERS = 127 };

/* One worker's memory and what all of them read. */
typedef struct ProblemWorker {
    const ProblemRun *run;
    const ProblemData *data;
    SmTensor tensor;
    Comm *comm;
    size_t size;
    float *params, *grads, *scratch;
    float *all, *mean, *slope, *before; /* worker 0's: every model, their mean, grad F there */
    void *arena;
    SmOptimizer *optimizer;
} ProblemWorker;

static void *problem_alloc(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!p) {
        fprintf(stderr, "problem: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, (bytes + 127) / 64 * 64);
    return p;
}

static SmOptimizer *problem_optimizer(ProblemWorker *w, void **arena) {
    const SmConfig *c = &w->run->config;
    *arena =
        problem_alloc(sm_optimizer_bytes(c, &w->tensor, 1, w->comm->size, w->run->threads).total);
    return sm_optimizer_init(*arena, c, &w->tensor, 1, w->comm);
}

/* Go on in a new optimizer with the old one's state, or all but one kind of it. */
static void problem_resume(ProblemWorker *w) {
    void *arena, *old = w->arena;
    SmState from, to;
    SmOptimizer *o = problem_optimizer(w, &arena);
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &from); i++) {
        int lost = w->run->lose && strcmp(from.kind, w->run->lose) == 0;
        if (sm_optimizer_state(o, i, &to) && !lost)
            memcpy(to.data, from.data, from.rows * from.cols * sizeof(float));
    }
    w->optimizer = o;
    w->arena = arena;
    free(old);
}

/* mean <- the mean of all models; returns their root of summed squared distances from it. */
static double problem_mean(ProblemWorker *w) {
    double distance = 0;
    int n = w->comm->size;
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

/* Payload bytes of all workers so far, by their number. */
static void problem_bytes(ProblemWorker *w, ProblemRow *row) {
    uint64_t mine[2] = {0}, all[2 * PROBLEM_WORKERS];
    for (int k = 0; k < COMM_OTHER; k++) {
        mine[0] += w->comm->sent[k];
        mine[1] += w->comm->received[k];
    }
    comm_gather(w->comm, mine, sizeof mine, all, COMM_OTHER);
    for (int j = 0; j < w->comm->size; j++) {
        row->sent += (double)all[2 * j] / w->comm->size;
        row->received += (double)all[2 * j + 1] / w->comm->size;
    }
}

/* F at the server's exact model, where a compressed reply makes it another than the workers'. */
static void problem_exact(ProblemWorker *w, ProblemRow *row, int step) {
    double gap = 0;
    float *exact = w->before, *slope = w->mean;
    if (!sm_optimizer_exact(w->optimizer, exact, w->params, (uint64_t)step)) return;
    row->exact = w->run->problem->gradient(slope, w->data, exact, -1, (uint64_t)step, w->scratch);
    for (size_t i = 0; i < w->size; i++)
        gap +=
            ((double)exact[i] - (double)w->params[i]) * ((double)exact[i] - (double)w->params[i]);
    row->apart = sqrt(gap / sm_sum_squares(exact, w->size));
}

/* The row of this step, but for the alignment. */
static void problem_look(ProblemWorker *w, ProblemRow *row, int step) {
    const ProblemRun *r = w->run;
    *row = (ProblemRow){.step = step, .nuclear = NAN, .alignment = NAN, .exact = NAN, .apart = NAN};
    problem_bytes(w, row);
    problem_exact(w, row, step);
    comm_gather(w->comm, w->params, w->size * sizeof(float), w->all, COMM_OTHER);
    if (w->comm->rank != 0) return;
    row->consensus = problem_mean(w);
    row->loss = r->problem->gradient(w->slope, w->data, w->mean, -1, (uint64_t)step, w->scratch);
    row->gradient = sqrt(sm_sum_squares(w->slope, w->size));
    memcpy(w->before, w->mean, w->size * sizeof(float));
    if (!r->nuclear) return;
    sm_polar(w->mean, w->slope, r->rows, r->cols, sm_newton_schulz("polar-express8"), w->scratch);
    row->nuclear = problem_dot(w->mean, w->slope, w->size);
}

/* Alignment of the step that has been taken; returns 1 when the observer has seen enough. */
static int problem_report(ProblemWorker *w, ProblemRow *row, int moved) {
    int stop = 0;
    if (moved) comm_gather(w->comm, w->params, w->size * sizeof(float), w->all, COMM_OTHER);
    if (w->comm->rank == 0 && moved) {
        double inner = 0, square = 0;
        problem_mean(w);
        for (size_t i = 0; i < w->size; i++) {
            double d = (double)w->before[i] - (double)w->mean[i];
            inner += d * (double)w->slope[i];
            square += d * d;
        }
        row->alignment = inner / (row->gradient * sqrt(square));
    }
    if (w->comm->rank == 0 && w->run->observe) stop = w->run->observe(w->run->context, row);
    comm_broadcast(w->comm, &stop, sizeof stop, 0, COMM_OTHER);
    return stop;
}

/* g <- what this worker sees: its part of F, scaled, and its noise. */
static void problem_see(ProblemWorker *w, uint64_t step) {
    const ProblemRun *r = w->run;
    int self = (w->comm->rank + r->rotate) % w->comm->size;
    r->problem->gradient(w->grads, w->data, w->params, self, step, w->scratch);
    noise_add(w->grads, w->size, &r->noise, sm_key(r->seed, 1000 + (uint64_t)self, step), 0);
    for (size_t i = 0; i < w->size && r->scale != 1; i++) w->grads[i] *= (float)r->scale;
}

static void problem_steps(ProblemWorker *w) {
    const ProblemRun *r = w->run;
    ProblemRow row;
    for (int t = 0, stop = 0; t <= r->steps && !stop; t++) {
        int look = t % r->every == 0 || t == r->steps;
        if (look) problem_look(w, &row, t);
        if (t < r->steps) {
            double lr = r->lr * r->schedule->factor(t, r->steps);
            if (r->resume && t == r->resume) problem_resume(w);
            problem_see(w, (uint64_t)t);
            sm_optimizer_step(w->optimizer, w->params, w->grads, (uint64_t)t, lr, lr);
        }
        if (look) stop = problem_report(w, &row, t < r->steps);
    }
}

typedef struct ProblemJob {
    const ProblemRun *run;
    const ProblemData *data;
} ProblemJob;

static int problem_work(Comm *comm, void *arg) {
    const ProblemJob *job = arg;
    const ProblemRun *r = job->run;
    size_t size = r->rows * r->cols, scratch = problem_scratch(r->rows, r->cols),
           lmo = sm_lmo_scratch(r->rows, r->cols), every = size * (size_t)comm->size;
    ProblemWorker w = {.run = r, .data = job->data, .comm = comm, .size = size};
    float *memory =
        problem_alloc((5 * size + every + (lmo > scratch ? lmo : scratch) + 16) * sizeof(float));
    w.tensor = problem_tensor(r);
    w.scratch = memory;
    w.params = memory + ((lmo > scratch ? lmo : scratch) + 15) / 16 * 16;
    w.grads = w.params + size;
    w.mean = w.grads + size;
    w.slope = w.mean + size;
    w.before = w.slope + size;
    w.all = w.before + size;
    memcpy(w.params, job->data->start, size * sizeof(float));
    w.optimizer = problem_optimizer(&w, &w.arena);
    problem_steps(&w);
    if (r->final) memcpy(r->final + (size_t)comm->rank * size, w.params, size * sizeof(float));
    free(w.arena);
    free(memory);
    return 0;
}

/* Run it; 0, or not 0 and a sentence. */
static int problem_run(const ProblemRun *run, char *error, size_t size) {
    ProblemRun r = *run;
    ProblemData data;
    DmGraph graph;
    size_t doubles = sm_gossips(r.config.method) ? dm_graph_doubles(r.workers) : 1;
    double *weights = problem_alloc(doubles * sizeof *weights);
    float *memory = problem_alloc(problem_floats(r.rows, r.cols, r.workers) * sizeof(float));
    float *scratch = problem_alloc(problem_scratch(r.rows, r.cols) * sizeof(float));
    int status = 0;
    if (r.up.row) r.config.up = &r.up;
    if (r.down.row) r.config.down = &r.down;
    if (sm_gossips(r.config.method)) {
        status = dm_graph_build(&graph, weights, r.topology, "auto", r.workers, error, size);
        r.config.graph = &graph;
        r.config.rounds[0] = r.config.rounds[1] = r.rounds;
    }
    problem_make(&data, r.problem, r.rows, r.cols, r.workers, r.parameter, r.seed, memory, scratch);
    ProblemJob job = {&r, &data};
    CommOptions options = {.backend = r.backend, .workers = r.workers, .threads = r.threads};
    if (!status) status = comm_run(&options, problem_work, &job, error, size);
    free(weights);
    free(scratch);
    free(memory);
    return status;
}

/* A compressor from its text; a wrong default is the table's fault. */
static EfLink problem_link(const char *text) {
    char error[300];
    EfLink link = {0};
    if (*text && ef_parse(&link, text, error, sizeof error)) {
        fprintf(stderr, "problem: %s\n", error);
        exit(1);
    }
    return link;
}

/* A run with the defaults of a problem and of a method. */
static ProblemRun problem_default(const char *problem, const char *method) {
    const Problem *p = problem_named(problem);
    const SmMethod *m = sm_method(method);
    assert(p && m);
    return (ProblemRun){.problem = p,
                        .rows = p->rows,
                        .cols = p->cols,
                        .parameter = p->parameter,
                        .config = problem_config(m),
                        .backend = comm_backend("threads"),
                        .workers = 1,
                        .threads = 1,
                        .steps = 500,
                        .every = 1,
                        .lr = 1e-3,
                        .schedule = schedules,
                        .up = problem_link(m->up),
                        .down = problem_link(m->down),
                        .topology = "ring",
                        .rounds = 1,
                        .seed = 1,
                        .scale = 1};
}

/* ------------------------------------------------------------------------------------------------
 * the command line */

#ifndef TESTING

__attribute__((format(printf, 1, 2))) __attribute__((noreturn)) static void
refuse(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments); // NOLINT(clang-analyzer-valist.Uninitialized)
    va_end(arguments);
    fprintf(stderr, "problem: %s\n", text);
    exit(2);
}

/* One flag: where its value goes and how it is read; the reader returns what is wrong, or NULL. */
typedef struct Flag {
    const char *name, *value; /* value: NULL for a switch */
    const char *(*read)(void *field, const char *text);
    size_t offset;
    const char *doc;
} Flag;

static const char *read_number(void *field, const char *text) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x) || x < 0) return "a number >= 0 is expected";
    *(double *)field = x;
    return NULL;
}
static const char *read_fraction(void *field, const char *text) {
    const char *wrong = read_number(field, text);
    return wrong || *(double *)field >= 1 ? "a number in [0, 1) is expected" : NULL;
}
static const char *read_long(long *x, const char *text, long low, long high) {
    char *end;
    *x = strtol(text, &end, 10);
    return end == text || *end || *x < low || *x > high ? "an integer in range is expected" : NULL;
}
static const char *read_count(void *field, const char *text) {
    long x;
    const char *wrong = read_long(&x, text, 1, 100000000);
    *(int *)field = (int)x;
    return wrong;
}
static const char *read_workers(void *field, const char *text) {
    long x;
    const char *wrong = read_long(&x, text, 1, 127);
    *(int *)field = (int)x;
    return wrong ? "1 to 127 is expected" : NULL;
}
static const char *read_side(void *field, const char *text) {
    long x;
    const char *wrong = read_long(&x, text, 1, 4096);
    *(size_t *)field = (size_t)x;
    return wrong ? "1 to 4096 is expected" : NULL;
}
static const char *read_seed(void *field, const char *text) {
    long x;
    const char *wrong = read_long(&x, text, 0, 1L << 40);
    *(uint64_t *)field = (uint64_t)x;
    return wrong;
}
static const char *read_switch(void *field, const char *text) {
    (void)text;
    *(int *)field = 1;
    return NULL;
}
static const char *read_noise(void *field, const char *text) {
    static char error[256];
    return noise_parse(field, text, error, sizeof error) ? error : NULL;
}
static const char *read_link(void *field, const char *text) {
    static char error[300];
    return ef_parse(field, text, error, sizeof error) ? error : NULL;
}
static const char *read_text(void *field, const char *text) { /* judged when the graph is built */
    *(const char **)field = text;
    return NULL;
}
static const char *read_gain(void *field, const char *text) {
    *(const SmGain **)field = sm_gain(text);
    return sm_gain(text) ? NULL : "no such gain";
}
static const char *read_ns(void *field, const char *text) {
    *(const SmNewtonSchulz **)field = sm_newton_schulz(text);
    return sm_newton_schulz(text) ? NULL : "no such polynomial";
}
static const char *read_backend(void *field, const char *text) {
    *(const CommBackend **)field = comm_backend(text);
    return comm_backend(text) ? NULL : "no such back end";
}
static const char *read_schedule(void *field, const char *text) {
    const Schedule *s = schedules;
    while (s->name && strcmp(s->name, text) != 0) s++;
    *(const Schedule **)field = s;
    return s->name ? NULL : "constant, linear, cosine, sqrt or linear-sqrt is expected";
}
static const char *read_nothing(void *field, const char *text) { /* read before the others */
    (void)field, (void)text;
    return NULL;
}

#define IN(field) offsetof(ProblemRun, field)
static const Flag flags[] = {
    {"--problem", "NAME", read_nothing, 0, "see below (quadratic)"},
    {"--method", "NAME", read_nothing, 0, "a row of train_gpt --list methods (signmuon)"},
    {"--workers", "N", read_workers, IN(workers), "1 to 127 (1)"},
    {"--threads", "N", read_workers, IN(threads), "compute threads per worker (1)"},
    {"--backend", "NAME", read_backend, IN(backend), "threads or processes (threads)"},
    {"--steps", "N", read_count, IN(steps), "(500)"},
    {"--every", "N", read_count, IN(every), "steps from one row to the next (1)"},
    {"--lr", "X", read_number, IN(lr), "peak rate (1e-3)"},
    {"--schedule", "NAME", read_schedule, IN(schedule),
     "constant, linear, cosine, sqrt, linear-sqrt"},
    {"--momentum", "X", read_fraction, IN(config.momentum), "mu (the method's row)"},
    {"--nesterov", NULL, read_switch, IN(config.nesterov), "Nesterov's look-ahead (off)"},
    {"--decay", "X", read_number, IN(config.decay), "weight decay, decoupled (0)"},
    {"--coupled", NULL, read_switch, IN(config.coupled_decay), "decay enters the gradient"},
    {"--gain", "NAME", read_gain, IN(config.gain), "factor on the step by shape (none)"},
    {"--ns", "NAME", read_ns, IN(config.ns), "how to orthogonalise (jordan5)"},
    {"--int8", NULL, read_switch, IN(config.int8_wire), "votes travel as bytes"},
    {"--up", "C", read_link, IN(up), "EF21: compressor of the workers (the method's row)"},
    {"--down", "C", read_link, IN(down), "EF21: compressor of the server (the method's row)"},
    {"--topology", "NAME", read_text, IN(topology), "of gossip, as train_gpt's (ring)"},
    {"--gossip", "N", read_count, IN(rounds), "rounds of gossip per exchange (1)"},
    {"--noise", "KIND:X", read_noise, IN(noise), "on every worker's gradient (none)"},
    {"--parameter", "X", read_number, IN(parameter), "of the problem, see below"},
    {"--rows", "N", read_side, IN(rows), "of X; quadratic only"},
    {"--cols", "N", read_side, IN(cols), "of X; quadratic only"},
    {"--seed", "N", read_seed, IN(seed), "draws problem and noise (1)"},
    {"--nuclear", NULL, read_switch, IN(nuclear), "fill the column of the gradient's nuclear norm"},
};
enum { FLAGS = sizeof flags / sizeof *flags };

static void help(void) {
    const Problem *p;
    printf("usage: bench/problem [FLAGS]\n"
           "Runs a method on a small problem and prints CSV: a row is the state before a step, "
           "alignment that of the step.\n\n");
    for (size_t i = 0; i < FLAGS; i++)
        printf("  %-12s %-7s %s\n", flags[i].name, flags[i].value ? flags[i].value : "",
               flags[i].doc);
    printf("\nproblems\n");
    for (size_t i = 0; (p = problem_row(i)) != NULL; i++)
        printf("  %-12s %s; --parameter: %s (%g)\n", p->name, p->doc, p->parameter_doc,
               p->parameter);
    exit(0);
}

/* The value of a flag in argv, or `otherwise`. */
static const char *value_of(int argc, char **argv, const char *flag, const char *otherwise) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], flag) == 0) otherwise = argv[i + 1];
    return otherwise;
}

static void read_flags(ProblemRun *r, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        size_t k = 0;
        while (k < FLAGS && strcmp(flags[k].name, argv[i]) != 0) k++;
        if (k == FLAGS) refuse("unknown flag %s: see bench/problem --help", argv[i]);
        if (flags[k].value && i + 1 == argc) refuse("%s wants a value", argv[i]);
        const char *text = flags[k].value ? argv[++i] : "";
        const char *wrong = flags[k].read((char *)r + flags[k].offset, text);
        if (wrong) refuse("%s %s: %s", flags[k].name, text, wrong);
    }
    if (!r->problem->any_shape && (r->rows != r->problem->rows || r->cols != r->problem->cols))
        refuse("the problem %s has a shape of its own: leave out --rows and --cols",
               r->problem->name);
}

static int print_row(void *context, const ProblemRow *r) {
    int *diverged = context;
    const double value[] = {r->loss,  r->gradient, r->nuclear, r->alignment, r->consensus,
                            r->exact, r->apart,    r->sent,    r->received};
    printf("%d", r->step);
    for (size_t k = 0; k < sizeof value / sizeof *value; k++) {
        printf(",");
        if (!isnan(value[k])) printf("%.9g", value[k]);
    }
    printf("\n");
    *diverged = !isfinite(r->loss);
    return *diverged;
}

int main(int argc, char **argv) {
    char error[512] = "";
    int diverged = 0;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0) help();
    const char *problem = value_of(argc, argv, "--problem", "quadratic");
    const char *method = value_of(argc, argv, "--method", "signmuon");
    if (!problem_named(problem)) refuse("no problem %s: see bench/problem --help", problem);
    if (!sm_method(method)) refuse("no method %s: see ./train_gpt --list methods", method);
    ProblemRun r = problem_default(problem, method);
    read_flags(&r, argc, argv);
    r.observe = print_row;
    r.context = &diverged;
    printf("step,loss,gradient,nuclear,alignment,consensus,exact,apart,sent,received\n");
    int status = problem_run(&r, error, sizeof error);
    if (*error) fprintf(stderr, "problem: %s\n", error);
    if (diverged) fprintf(stderr, "problem: the loss is no longer finite: lower --lr\n");
    if (fflush(stdout) || ferror(stdout)) refuse("cannot write: %s", strerror(errno));
    return status || diverged;
}
#endif
