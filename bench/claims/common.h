/* common.h - what the files of bench/claims share: claims and verdicts, watched runs, matrices. MIT. */
#ifndef CLAIMS_COMMON_H
#define CLAIMS_COMMON_H

#include <stdarg.h>
#include "../problem.h"

/* ------------------------------------------------------------------------------------------------
 * claims */

typedef enum Verdict { REPRODUCED, NOT_REPRODUCED, REFUTED, BROKEN } Verdict;

typedef struct Answer {
    char ours[400];
    int broken; /* something could not run */
} Answer;

typedef struct Claim Claim;
struct Claim {
    const char *id, *says, *source, *paper, *tolerance;
    Verdict (*check)(Answer *a, const Claim *c);
    /* arguments of a check that rows share: method, compressor or noise; step size, momentum, and
     * the paper's figure */
    const char *method;
    double lr, mu, value;
};

#define CLAIM(ID, SAYS, SOURCE, PAPER, TOLERANCE, ...)                                             \
    {                                                                                              \
        .id = ID, .says = SAYS, .source = SOURCE, .paper = PAPER, .tolerance = TOLERANCE,          \
        __VA_ARGS__                                                                                \
    }

/* CHECK(name) { .. } defines a check; few of them look at their claim. */
#define CHECK(name) static Verdict name(Answer *a, __attribute__((unused)) const Claim *c)

/* The claims of a file; *count <- how many. */
const Claim *sign_claims(size_t *count);  /* sign of the polar factor, vote, quadratic: sign.c */
const Claim *lmo_claims(size_t *count);   /* norms, compressors, error feedback: lmo.c */
const Claim *graph_claims(size_t *count); /* gossip, majority: graph.c */
const Claim *gpt_claims(size_t *count);   /* of the model: gpt.c */
const Claim *train_claims(size_t *count); /* of trained models: train.c */

/* Append to what the check found. */
__attribute__((format(printf, 2, 3))) void say(Answer *a, const char *format, ...);

Verdict judge(int holds);
Verdict judge_general(int holds); /* of a general statement: one counterexample refutes it */

/* ------------------------------------------------------------------------------------------------
 * runs */

/* What is kept of a run; the first group is the caller's. */
typedef struct Watch {
    double target; /* the loss that ends the run, or 0 */
    int tail;      /* steps from here on are averaged */
    FILE *csv;     /* NULL, or receives every row after this label */
    const char *label;

    int reached;                           /* step at which the target was reached, or -1 */
    double first, last, alignment;         /* losses; smallest alignment */
    double tail_loss;                      /* mean of F over the tail */
    double tail_exact, tail_apart;         /* means of F(X) and of |X - W| / |X| */
    double consensus, sent, rows_averaged; /* largest distance; bytes */
} Watch;

/* Run it; a run that cannot start breaks the answer. */
Watch watch_run(Answer *a, ProblemRun *r, Watch w);
ProblemRun run_of(const char *problem, const char *method, double lr, double mu, long steps);
void final_models(Answer *a, ProblemRun *r, float *models); /* of all workers, side by side */
/* |X - Y| / |Y| of the final models of all workers of two runs; 0: the same bits */
double runs_differ(Answer *a, ProblemRun *x, ProblemRun *y);

enum { SIDE = 100, SIZE = SIDE * SIDE }; /* of the default quadratic */

/* A run of one worker on the quadratic as intsystems/SignMuon scores it: X_0 is the same on every
 * draw, and X is the server's exact model where the downlink is compressed, W the worker's. The
 * first group is the caller's. */
typedef struct Solo {
    ProblemRun run;
    double target; /* the loss that ends the run once X and W have it, or 0 */

    int reached, reached_by_w; /* iterations to the target, the first is 1; 0: never */
    double first, least, tail; /* F(X) at the start, the least; mean F(W) of the last 50 steps */
    double gradient, l1;       /* least |grad F(X)|; mean of |grad F(X)|_1 / sqrt(mn) */
    double floor, before;      /* means of |grad F(X)| over the last quarter, the quarter before */
    double alignment;          /* of grad F(X) and the step of X, the smallest */
    int ascents, steps, diverged;
} Solo;

/* Run them on all cores; a run that cannot start breaks the answer. */
void solo_runs(Answer *a, Solo *s, size_t count);

/* ------------------------------------------------------------------------------------------------
 * matrices and numbers */

float *numbers(size_t n); /* zeroed, to be freed */
void polar_of(float *out, const float *g, size_t m, size_t n, const SmNewtonSchulz *ns);
double gaussian(float *x, size_t n, uint64_t key); /* fills x; returns its length */
double norm_of(const float *x, size_t n);          /* Euclidean */
/* g (m x n) <- U diag(sigma) V^T of rank r with Haar bases, o <- U V^T */
void known_matrix(float *g, float *o, size_t m, size_t n, size_t r, const double *sigma,
                  uint64_t key);
double spectral_norm(const float *x, size_t m, size_t n);
/* A row of Newton-Schulz with so many steps; past the table's its last triple repeats. */
SmNewtonSchulz with_steps(const char *name, int steps);
/* Least and largest singular value that the polynomials make of [lo, 1]. */
void band_of(const SmNewtonSchulz *ns, double lo, double *least, double *largest);
double exponent(const double *x, const double *y, size_t n); /* e of y ~ x^e, by least squares */
int bit_of(const uint64_t *bits, size_t i);

/* ------------------------------------------------------------------------------------------------
 * figures: what a check computes for one value, a figure computes for many */

double vote_error(const char *noise, size_t workers); /* |g| Pr(wrong sign) / sigma: sign.c */
/* Last F of EF21-Muon on 5 workers that differ, its path into csv or NULL: lmo.c */
double feedback_run(FILE *csv, const char *compressor, int feedback, int steps);
/* Largest consensus distance of DeMuon, and what theory allows: graph.c */
double consensus_of(Answer *a, const char *topology, int nodes, double lr, double *bound,
                    double *rho);

void print_floors(FILE *f); /* the table of the floors that the claims S19 found: sign.c */

extern const char *const distance_graphs[]; /* graph.c, NULL at the end */
enum { CONSENSUS_SIDE = 40 };

#endif
