/* figures.c - the data of the figures of docs/CLAIMS.md, which claims.gp draws. MIT. */
#include "common.h"

/* The learning rate with the least F, averaged over the last tenth, and its path, of every method. */
static void write_convergence(Answer *a, FILE *csv) {
    enum { TRIALS = 12, STEPS = 300 };
    const SmMethod *m;
    for (size_t i = 0; (m = sm_method_row(i)) != NULL; i++) {
        double least = INFINITY, best = 0;
        double mu = m->estimate == SM_LION ? 0.9 : m->estimate == SM_GLUON ? NAN : 0.5;
        for (int k = 0; k <= TRIALS; k++) { /* the last is the best again */
            double lr = k < TRIALS ? 3e-4 * pow(1e4, k / (TRIALS - 1.0)) : best;
            ProblemRun r = run_of("quadratic", m->name, lr, mu, STEPS);
            r.rows = 64;
            r.cols = 48;
            r.workers = 5;
            r.parameter = 0.02;
            r.noise = "gaussian:0.01";
            r.every = 5;
            Watch w = {.tail = STEPS * 9 / 10, .csv = k < TRIALS ? NULL : csv, .label = m->name};
            w = watch_run(a, &r, w);
            if (isfinite(w.last) && w.tail_loss < least) least = w.tail_loss, best = lr;
        }
    }
}

static void write_floors(Answer *a, FILE *csv) {
    static const struct {
        const char *method, *name;
        double mu, scale;
    } row[] = {{"signmuon", "SignMuon", 0, 1},
               {"signum", "SignSGD", 0.5, 1},
               {"muonsign", "MuonSign", 0.5, 1},
               {"muon", "Muon", 0.5, 10},
               {"muonusign", "MuonUSign", 0.5, 10},
               {"ef21-signmuon", "EF21-SignMuon", 0, 10},
               {"ef21-muonusign", "EF21-MuonUSign", 0, 10},
               {"ef21-muonsign", "EF21-MuonSign", 0, 10}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        for (size_t k = 0; k < sizeof floor_rates / sizeof *floor_rates; k++) {
            double lr = floor_rates[k] * row[i].scale;
            fprintf(csv, "%s,%g,%g,%.6g\n", row[i].name, lr, lr * 100 / row[i].scale,
                    floor_of(a, row[i].method, lr, row[i].mu, row[i].scale, 1));
        }
}

static void write_votes(Answer *a, FILE *csv) {
    (void)a;
    for (size_t workers = 1; workers <= 31; workers += 2)
        fprintf(csv, "%zu,%.5f,%.5f,%.5f,%.5f\n", workers, vote_error("gaussian:1", workers),
                vote_error("laplace:1", workers), vote_error("skewed:1", workers),
                1 / sqrt((double)workers));
}

static void write_consensus(Answer *a, FILE *csv) {
    for (const char *const *name = distance_graphs; *name; name++)
        for (int nodes = 4; nodes <= 16; nodes *= 2) {
            double bound, rho, lr = 5e-3, unit = lr * sqrt(nodes * (double)CONSENSUS_SIDE);
            double distance = consensus_of(a, *name, nodes, lr, &bound, &rho);
            fprintf(csv, "%s,%d,%.6f,%.6f,%.6g,%.6g\n", *name, nodes, rho, 1 - rho, distance / unit,
                    bound / unit);
        }
}

static void write_feedback(Answer *a, FILE *csv) {
    static const char *const links[] = {"identity", "topk:5%", "rankk:5%", "sign"};
    (void)a;
    for (size_t k = 0; k < 4; k++)
        for (int feedback = 1; feedback >= 0; feedback--)
            feedback_run(csv, links[k], feedback, 600);
}

static void write_downlink(Answer *a, FILE *csv) {
    ProblemRun r = run_of("quadratic", "ef21-muonsign", 4.6e-3, 0, 1000);
    r.every = 5;
    watch_run(a, &r, (Watch){.csv = csv, .label = "ef21-muonsign"});
}

#define PATH "method,step,loss,gradient,alignment,consensus,exact,apart,sent"
// clang-format off
static const struct {
    const char *name, *header;
    void (*write)(Answer *a, FILE *csv);
    const char *caption;
} figures[] = {
    {"convergence", PATH, write_convergence, "Every method on a 64 x 48 quadratic with 5 workers that differ (h = 0.02, Gaussian noise 0.01), gossip on a ring; a constant rate, the best of 12 from 3e-4 to 3 by the mean of F over the last tenth; momentum 0.5."},
    {"floors", "method,lr,step,floor", write_floors, "Where the gradient stays at a constant rate, against the Frobenius norm of a step (claims S19)."},
    {"votes", "workers,gaussian,laplace,skewed,bound", write_votes, "The size of g times the probability that the vote's sign is wrong, g = 0.3 sigma (claims S15)."},
    {"consensus", "topology,nodes,rho,gap,distance,bound", write_consensus, "Largest distance of DeMuon's nodes from their mean, in units of lr sqrt(N min(m,n)), and its bound (claim D5)."},
    {"feedback", "link,feedback,step,loss", write_feedback, "EF21-Muon with 5 workers that differ (h = 0.1), rate 0.01 falling to 0: compressed residuals against compressed momenta."},
    {"downlink", PATH, write_downlink, "EF21-MuonSign, a one-bit downlink: the workers' W, the server's X, and how far apart they are (claim T6)."},
};
// clang-format on

int write_figures(const char *filter) {
    int broken = 0;
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        Answer a = {.broken = 0};
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

void write_figure_list(FILE *f) {
    fprintf(f, "\n## Figures\n\nDrawn by `bench/claims/claims.gp` from `docs/claims_*.csv`.\n");
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        fprintf(f, "\n%s\n\n![%s](claims_%s.svg)\n", figures[i].caption, figures[i].name,
                figures[i].name);
}
