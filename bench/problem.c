/* problem.c - the optimizer on a problem of problem.h, as CSV: a row is the state before a step. MIT.

     bench/problem --problem quadratic --method signmuon --workers 3 --lr 1e-3 --noise gaussian:0.1
*/
#define PROBLEM_IMPLEMENTATION
#include "problem.h"
#include "../lib/flags.h"

enum { WRONG_CALL = 2, DIVERGED = 3 };

typedef struct Call {
    ProblemRun run;
    int help;
} Call;

static const char *choice_problem(size_t i) { return problem_row(i) ? problem_row(i)->name : NULL; }
static const char *choice_method(size_t i) {
    return sm_method_row(i) ? sm_method_row(i)->name : NULL;
}
static const char *choice_backend(size_t i) {
    return comm_backend_row(i) ? comm_backend_row(i)->name : NULL;
}

#define ROW(title, of, where, value, low, high, words, text)                                       \
    {                                                                                              \
        .group = "Problem", .name = title, .kind = of, .field = offsetof(Call, where),             \
        .fallback = value, .least = low, .most = high, .choice = words,                            \
        .argument = of == FLAG_WHOLE  ? "N"                                                        \
                    : of == FLAG_REAL ? "X"                                                        \
                                      : "NAME",                                                    \
        .help = text, .keep = FLAG_COMMON                                                          \
    }
// clang-format off
static const Flag flags[] = {
    ROW("problem", FLAG_CHOICE, run.problem, "quadratic", 0, 0, choice_problem, "see below"),
    ROW("method", FLAG_CHOICE, run.config.method, "signmuon", 0, 0, choice_method, "a row of train_gpt --list methods"),
    ROW("workers", FLAG_WHOLE, run.workers, "1", 1, COMM_MAX_WORKERS, NULL, "how many"),
    ROW("threads", FLAG_WHOLE, run.threads, "1", 1, 256, NULL, "compute threads per worker"),
    ROW("backend", FLAG_CHOICE, run.backend, "threads", 0, 0, choice_backend, "what a worker is"),
    ROW("steps", FLAG_WHOLE, run.steps, "500", 1, 1e8, NULL, "optimizer steps"),
    ROW("every", FLAG_WHOLE, run.every, "1", 1, 1e8, NULL, "steps from one row to the next"),
    ROW("lr", FLAG_REAL, run.config.lr, "1e-3", 0, 1e6, NULL, "peak step size"),
    ROW("schedule", FLAG_CHOICE, run.schedule, "constant", 0, 0, problem_schedule, "its course over the steps"),
    ROW("momentum", FLAG_REAL, run.config.momentum, "auto", 0, 0.99999, NULL, "mu; auto: the method's"),
    ROW("weight-decay", FLAG_REAL, run.config.weight_decay, "0", 0, 1e3, NULL, "decoupled"),
    ROW("ns", FLAG_TEXT, run.config.ns, "jordan5", 0, 0, NULL, "Newton-Schulz polynomials"),
    ROW("up", FLAG_TEXT, run.config.up, "auto", 0, 0, NULL, "EF21: compressor of the workers"),
    ROW("down", FLAG_TEXT, run.config.down, "auto", 0, 0, NULL, "EF21: compressor of the server"),
    ROW("topology", FLAG_TEXT, run.config.topology, "auto", 0, 0, NULL, "gossip: who talks to whom"),
    ROW("noise", FLAG_TEXT, run.noise, "", 0, 0, NULL, "on every gradient: KIND:SCALE"),
    ROW("parameter", FLAG_REAL, run.parameter, "auto", -1e9, 1e9, NULL, "of the problem, see below"),
    ROW("rows", FLAG_WHOLE, run.rows, "auto", 1, 4096, NULL, "of X; quadratic only"),
    ROW("cols", FLAG_WHOLE, run.cols, "auto", 1, 4096, NULL, "of X; quadratic only"),
    ROW("seed", FLAG_WHOLE, run.seed, "1", 0, 1e15, NULL, "draws problem and noise"),
    ROW("help", FLAG_SWITCH, help, "off", 0, 1, NULL, "this page"),
};
// clang-format on
enum { FLAGS = sizeof flags / sizeof *flags };

static int print_help(void) {
    const Problem *p;
    printf("bench/problem: a method on a small problem, as CSV on stdout\n\n");
    flags_help(stdout, flags, FLAGS, NULL, 80);
    printf("\nProblems\n");
    for (size_t i = 0; (p = problem_row(i)) != NULL; i++)
        printf("  %-12s %s; --parameter: %s (%g)\n", p->name, p->doc, p->parameter_doc,
               p->parameter);
    return 0;
}

static int refuse(const char *sentence) {
    fprintf(stderr, "problem: %s\n", sentence);
    return WRONG_CALL;
}

static int print_row(void *context, const ProblemRow *r) {
    const double value[] = {r->loss,  r->gradient, r->alignment, r->consensus,
                            r->exact, r->apart,    r->sent,      r->received};
    printf("%d", r->step);
    for (size_t k = 0; k < sizeof value / sizeof *value; k++) {
        printf(",");
        if (!isnan(value[k])) printf("%.9g", value[k]);
    }
    printf("\n");
    return *(int *)context = !isfinite(r->loss);
}

/* "auto" means: as problem_default has it. */
static void keep_default(const char **text, const char *otherwise) {
    if (*text && strcmp(*text, "auto") == 0) *text = otherwise;
}

int main(int argc, char **argv) {
    unsigned char given[FLAGS] = {0};
    char error[512] = "";
    int diverged = 0;
    Call call = {.run = problem_default("quadratic", "signmuon")};
    ProblemRun *r = &call.run;
    flags_defaults(flags, FLAGS, &call);
    if (flags_parse(flags, FLAGS, &call, argc, argv, given, error, sizeof error))
        return refuse(error);
    if (call.help) return print_help();
    if (!gemm_default(GEMM_F32)) return refuse("GEMM_ISA names no instruction set of this machine");
    ProblemRun own = problem_default(r->problem, r->config.method);
    keep_default(&r->config.up, NULL);
    keep_default(&r->config.down, NULL);
    keep_default(&r->config.topology, NULL);
    r->config.clip = own.config.clip;
    if (isnan(r->parameter)) r->parameter = own.parameter;
    if (!problem_named(r->problem)->any_shape && (r->rows > 0 || r->cols > 0))
        return refuse("--rows and --cols are for the quadratic");
    if (r->rows < 0) r->rows = own.rows;
    if (r->cols < 0) r->cols = own.cols;
    r->observe = print_row;
    r->context = &diverged;
    printf("step,loss,gradient,alignment,consensus,exact,apart,sent,received\n");
    int status = problem_run(r, error, sizeof error);
    if (*error) return refuse(error);
    if (diverged) fprintf(stderr, "problem: the loss is no longer finite; lower --lr\n");
    if (fflush(stdout) || ferror(stdout)) return refuse("cannot write to stdout");
    return diverged ? DIVERGED : status;
}
