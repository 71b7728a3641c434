/* problem.c - the optimizer on a problem of problem.h, as CSV: a row is the state before a step.
   MIT.

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

#define ROW(TITLE, KIND, WHERE, VALUE, LEAST, MOST, WORDS, ARGUMENT, TEXT)                         \
    {                                                                                              \
        .group = "Problem", .name = TITLE, .kind = KIND, .field = offsetof(Call, WHERE),           \
        .fallback = VALUE, .least = LEAST, .most = MOST, .choice = WORDS, .argument = ARGUMENT,    \
        .help = TEXT, .keep = FLAG_COMMON                                                          \
    }
// clang-format off
static const Flag flags[] = {
    ROW("problem", FLAG_CHOICE, run.problem, "quadratic", 0, 0, choice_problem, "NAME", "see below"),
    ROW("method", FLAG_CHOICE, run.config.method, "signmuon", 0, 0, choice_method, "NAME", "a row of train_gpt --list methods"),
    ROW("workers", FLAG_WHOLE, run.workers, "1", 1, COMM_MAX_WORKERS, NULL, "N", "threads of this process"),
    ROW("steps", FLAG_WHOLE, run.steps, "500", 1, 1e8, NULL, "N", "optimizer steps"),
    ROW("every", FLAG_WHOLE, run.every, "1", 1, 1e8, NULL, "N", "steps between rows"),
    ROW("lr", FLAG_REAL, run.config.lr, "1e-3", 0, 1e6, NULL, "X", "peak step size"),
    ROW("schedule", FLAG_CHOICE, run.schedule, "constant", 0, 0, problem_schedule, "NAME", "its course over the steps"),
    ROW("momentum", FLAG_REAL, run.config.momentum, "auto", 0, 0.99999, NULL, "X", "mu; auto: the method's"),
    ROW("noise", FLAG_TEXT, run.noise, "", 0, 0, NULL, "NAME", "on every gradient: KIND:SCALE"),
    ROW("parameter", FLAG_REAL, run.parameter, "auto", -1e9, 1e9, NULL, "X", "of the problem, see below"),
    ROW("seed", FLAG_WHOLE, run.seed, "1", 0, 1e15, NULL, "N", "draws problem and noise"),
    ROW("help", FLAG_SWITCH, help, "off", 0, 1, NULL, NULL, "this page"),
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

int main(int argc, char **argv) {
    unsigned char given[FLAGS] = {0};
    char error[512] = "";
    int diverged = 0;
    Call call = {.run = problem_default("quadratic", "signmuon")};
    flags_defaults(flags, FLAGS, &call);
    if (flags_parse(flags, FLAGS, &call, argc, argv, given, error, sizeof error))
        return refuse(error);
    if (call.help) return print_help();
    if (!gemm_default(GEMM_F32))
        return refuse("GEMM_ISA names no instruction call of this machine");
    ProblemRun *r = &call.run, own = problem_default(r->problem, r->config.method);
    r->rows = own.rows;
    r->cols = own.cols;
    r->config.clip = own.config.clip;
    if (isnan(r->parameter)) r->parameter = own.parameter;
    r->observe = print_row;
    r->context = &diverged;
    printf("step,loss,gradient,alignment,consensus,exact,apart,sent,received\n");
    int status = problem_run(r, error, sizeof error);
    if (*error) return refuse(error);
    if (diverged) fprintf(stderr, "problem: the loss is no longer finite; lower --lr\n");
    if (fflush(stdout) || ferror(stdout)) return refuse("cannot write to stdout");
    return diverged ? DIVERGED : status;
}
