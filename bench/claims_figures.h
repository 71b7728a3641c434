/* bench/claims_figures.h - the data of the figures in docs/, which bench/claims.gp draws. MIT. */
#ifndef CLAIMS_FIGURES_H
#define CLAIMS_FIGURES_H

#include "claims.h"
#include "claims_graph.h"
#include "claims_lmo.h"
#include "claims_sign.h"

/* A figure is a row: its name, the header of its CSV, who fills it, and its caption. */
typedef struct Figure {
    const char *name, *header;
    void (*write)(Answer *a, FILE *csv);
    const char *caption;
} Figure;

/* ------------------------------------------------------------------------------------------------
 * every method at a tuned rate */

enum { TRIALS = 12, TUNED_STEPS = 300 };

static ProblemRun tuned_run(const SmMethod *m, int trial) {
    char error[100];
    ProblemRun r =
        run_of("quadratic", m->name, 3e-4 * pow(1e4, trial / (TRIALS - 1.0)), 0.5, TUNED_STEPS);
    if (m->estimate == SM_LION) r.config.momentum = 0.9;
    r.rows = 64;
    r.cols = 48;
    r.workers = 5;
    r.parameter = 0.02;
    noise_parse(&r.noise, "gaussian:0.01", error, sizeof error);
    return r;
}

/* The rate with the least F, averaged over the last tenth, and its path. */
static void write_convergence(Answer *a, FILE *csv) {
    const SmMethod *m;
    for (size_t i = 0; (m = sm_method_row(i)) != NULL; i++) {
        double least = INFINITY;
        int best = 0;
        for (int k = 0; k < TRIALS; k++) {
            ProblemRun r = tuned_run(m, k);
            r.every = 5;
            Watch w = watch_run(a, &r, (Watch){.tail = TUNED_STEPS * 9 / 10});
            if (isfinite(w.last) && w.tail_loss < least) least = w.tail_loss, best = k;
        }
        ProblemRun r = tuned_run(m, best);
        r.every = 5;
        watch_run(a, &r, (Watch){.csv = csv, .label = m->name});
    }
}

/* ------------------------------------------------------------------------------------------------
 * floors, votes, graphs */

static const struct {
    const char *method, *name;
    double mu, scale;
} floor_methods[] = {{"signmuon", "SignMuon", 0, 1},
                     {"signum", "SignSGD", 0.5, 1},
                     {"muonsign", "MuonSign", 0.5, 1},
                     {"muon", "Muon", 0.5, 10},
                     {"muonusign", "MuonUSign", 0.5, 10},
                     {"ef21-signmuon", "EF21-SignMuon", 0, 10},
                     {"ef21-muonusign", "EF21-MuonUSign", 0, 10},
                     {"ef21-muonsign", "EF21-MuonSign", 0, 10}};

static void write_floors(Answer *a, FILE *csv) {
    for (size_t i = 0; i < sizeof floor_methods / sizeof *floor_methods; i++)
        for (size_t k = 0; k < sizeof floor_rates / sizeof *floor_rates; k++) {
            double scale = floor_methods[i].scale, lr = floor_rates[k] * scale;
            double floor = floor_of(a, floor_methods[i].method, lr, floor_methods[i].mu, scale, 1);
            fprintf(csv, "%s,%g,%g,%.6g\n", floor_methods[i].name, lr, lr * 100 / scale, floor);
        }
}

static void write_votes(Answer *a, FILE *csv) {
    (void)a;
    for (size_t voters = 1; voters <= 31; voters += 2)
        fprintf(csv, "%zu,%.5f,%.5f,%.5f,%.5f\n", voters, vote_noise("gaussian:1", voters),
                vote_noise("laplace:1", voters), vote_noise("skewed:1", voters),
                1 / sqrt((double)voters));
}

static void write_consensus(Answer *a, FILE *csv) {
    for (const char *const *name = distances; *name; name++)
        for (int nodes = 4; nodes <= 16; nodes *= 2) {
            double bound, rho, lr = 5e-3,
                               distance = consensus_of(a, *name, nodes, lr, &bound, &rho);
            double unit = lr * sqrt(nodes * (double)SIDE);
            fprintf(csv, "%s,%d,%.6f,%.6f,%.6g,%.6g\n", *name, nodes, rho, 1 - rho, distance / unit,
                    bound / unit);
        }
}

/* ------------------------------------------------------------------------------------------------
 * what error feedback is for */

static const char *const feedback_links[] = {"identity", "topk:5%", "rankk:5%", "sign", NULL};

static void write_feedback(Answer *a, FILE *csv) {
    (void)a;
    for (const char *const *text = feedback_links; *text; text++)
        for (int feedback = 1; feedback >= 0; feedback--) feedback_run(csv, *text, feedback, 600);
}

/* A one-bit reply at a constant rate: W and X. */
static void write_downlink(Answer *a, FILE *csv) {
    ProblemRun r = run_of("quadratic", "ef21-muonsign", 4.6e-3, 0, 1000);
    r.every = 5;
    watch_run(a, &r, (Watch){.csv = csv, .label = "ef21-muonsign"});
}

/* ------------------------------------------------------------------------------------------------
 * the table */

#define PATH_HEADER "method,step,loss,gradient,alignment,consensus,exact,apart,sent"

static const Figure figures[] = {
    {"convergence", PATH_HEADER, write_convergence,
     "Every method on a 64 x 48 quadratic with 5 workers that differ (h = 0.02, Gaussian noise "
     "0.01), gossip on a "
     "ring; a constant rate, the best of 12 from 3e-4 to 3 by the mean of F over the last tenth; "
     "momentum 0.5."},
    {"floors", "method,lr,step,floor", write_floors,
     "Where the gradient stays at a constant rate, against the Frobenius norm of a step (claims "
     "S19)."},
    {"votes", "voters,gaussian,laplace,skewed,bound", write_votes,
     "The size of g times the probability that the vote's sign is wrong, g = 0.3 sigma (claims "
     "S15)."},
    {"consensus", "topology,nodes,rho,gap,distance,bound", write_consensus,
     "Largest distance of DeMuon's nodes from their mean, in units of lr sqrt(N min(m,n)), and its "
     "bound "
     "(claim D5)."},
    {"feedback", "link,feedback,step,loss", write_feedback,
     "EF21-Muon with 5 workers that differ (h = 0.1), rate 0.01 falling to 0: compressed "
     "differences against "
     "compressed momenta."},
    {"downlink", PATH_HEADER, write_downlink,
     "EF21-MuonSign, one bit down: the workers' W, the server's X, and how far apart they are "
     "(claim T6)."},
};
enum { FIGURES = sizeof figures / sizeof *figures };

/* Write the data of the figures whose name contains the filter, as docs/claims_NAME.csv. */
static int write_figures(const char *filter) {
    int broken = 0;
    for (size_t i = 0; i < FIGURES; i++) {
        Answer a = {0};
        char path[80];
        if (!strstr(figures[i].name, filter)) continue;
        snprintf(path, sizeof path, "docs/claims_%s.csv", figures[i].name);
        FILE *f = open_file(path);
        fprintf(f, "%s\n", figures[i].header);
        figures[i].write(&a, f);
        close_file(f, path);
        if (a.broken) printf("%s: %s\n", path, a.ours);
        broken |= a.broken;
    }
    return broken;
}

static void write_figure_list(FILE *f) {
    fprintf(f, "\n## Figures\n\nDrawn by `bench/claims.gp` from `docs/claims_*.csv`.\n");
    for (size_t i = 0; i < FIGURES; i++)
        fprintf(f, "\n%s\n\n![%s](claims_%s.svg)\n", figures[i].caption, figures[i].name,
                figures[i].name);
}
#endif
