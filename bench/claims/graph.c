/* graph.c - claims about the majority, and gossip. MIT. */
#include "common.h"
#include "../../demuon.h"

/* ------------------------------------------------------------------------------------------------
 * the majority */

/* Packed words against a sum per weight; groups of three that vote again; and an honest majority,
 * all for +, against a minority that flips its signs. */
CHECK(check_majority) {
    enum { BITS = 200, WORDS = 4, MOST = 9 };
    int differ = 0, lost = 0, trees = 0;
    for (size_t workers = 1; workers <= MOST; workers++) {
        uint64_t signs[MOST][WORDS] = {{0}}, vote[WORDS];
        const uint64_t *pointers[MOST];
        for (size_t j = 0; j < workers; j++) {
            pointers[j] = signs[j];
            for (size_t i = 0; i < BITS; i++)
                signs[j][i / 64] |= (sm_hash(workers * 100 + j, i) & 1) << i % 64;
        }
        sm_vote(vote, NULL, pointers, NULL, workers, WORDS, SM_COIN, 5, 0);
        for (size_t i = 0; i < BITS; i++) {
            int sum = 0, group = 0, tree = 0, coin = (int)(sm_hash(5, i / 64) >> i % 64 & 1);
            for (size_t j = 0; j < workers; j++) {
                int sign = bit_of(signs[j], i) ? 1 : -1;
                sum += sign;
                group = j % 3 ? group + sign : sign;
                if (j % 3 == 2) tree += group > 0 ? 1 : -1;
            }
            differ += bit_of(vote, i) != (sum ? sum > 0 : coin);
            trees += workers == MOST && (tree > 0) != bit_of(vote, i);
        }
        for (size_t flipping = 0; 2 * flipping < workers; flipping++) {
            for (size_t j = 0; j < workers; j++)
                memset(signs[j], j < flipping ? 0 : 0xff, sizeof signs[j]);
            sm_vote(vote, NULL, pointers, NULL, workers, WORDS, SM_COIN, 5, 0);
            for (size_t w = 0; w < WORDS; w++) lost += vote[w] != ~(uint64_t)0;
        }
    }
    say(a, "%d votes differ; flipped minorities change %d words; a tree of threes errs on %d of %d",
        differ, lost, trees, BITS);
    return judge_general(differ == 0 && lost == 0 && trees > 0);
}

/* ------------------------------------------------------------------------------------------------
 * whole runs */

enum { NODES = 8 };

/* On the complete graph DeMuon is Muon on the mean gradient. */
CHECK(check_complete) {
    ProblemRun demuon = run_of("quadratic", "demuon", 5e-3, 0.9, 100),
               muon = run_of("quadratic", "muon", 5e-3, 0.9, 100);
    demuon.config.topology = "complete";
    demuon.workers = muon.workers = NODES;
    demuon.parameter = muon.parameter = 0.1;
    demuon.noise = muon.noise = "gaussian:0.02";
    double gap = runs_differ(a, &demuon, &muon);
    say(a, "models differ by %.1e of their norm after 100 steps", gap);
    return judge_general(gap < 1e-4);
}

double consensus_of(Answer *a, const char *topology, int nodes, double lr, double *bound,
                    double *rho) {
    DmGraph g = {.nodes = 0};
    double *storage = problem_alloc(dm_graph_doubles(nodes) * sizeof *storage), least, overshoot;
    char error[512];
    ProblemRun r = run_of("quadratic", "demuon", lr, 0.8, 150);
    r.rows = r.cols = CONSENSUS_SIDE;
    r.workers = nodes;
    r.config.topology = topology;
    r.parameter = 0.5;
    a->broken |= dm_graph_build(&g, storage, topology, nodes, error, sizeof error) != 0;
    *rho = a->broken ? NAN : dm_graph_rho(&g);
    free(storage);
    band_of(sm_newton_schulz("jordan5"), 1e-3, &least, &overshoot);
    *bound = lr * *rho / (1 - *rho) * overshoot * sqrt(nodes * (double)CONSENSUS_SIDE);
    return watch_run(a, &r, (Watch){0}).consensus;
}

const char *const distance_graphs[] = {
    "ring", "ring-lazy", "directed-ring", "exponential", "exponential-lazy", "hypercube",
    "star", NULL};

CHECK(check_consensus) {
    double bound, rho, least = INFINITY, most = 0, x[8], y[8];
    size_t n = 0;
    for (const char *const *name = distance_graphs; *name; name++, n++) {
        double distance = consensus_of(a, *name, NODES, 5e-3, &bound, &rho);
        least = fmin(least, distance / bound);
        most = fmax(most, distance / bound);
        x[n] = rho / (1 - rho), y[n] = distance;
    }
    double twice = consensus_of(a, "ring", NODES, 1e-2, &bound, &rho) / y[0];
    say(a, "%.2f .. %.2f of the bound; twice the rate: %.2f times; exponent in rho/(1-rho): %.2f",
        least, most, twice, exponent(x, y, n));
    return judge_general(most <= 1 && fabs(twice - 2) < 0.1);
}

/* Where the nodes end on 1/2 (x - a_j)^2, a = 0, 0, 9. */
CHECK(check_median) {
    float x[2][8];
    double worst = 0;
    for (int k = 0; k < 2; k++) {
        ProblemRun r = run_of("consensus", c->method, 1, 0.8, 20000);
        r.every = r.steps;
        r.workers = k ? 6 : 3;
        r.config.topology = k ? "ring" : "complete";
        r.config.ns = "polar-express8"; /* of one number: its sign */
        r.falls = 1;
        final_models(a, &r, x[k]);
        for (int j = 0; j < r.workers; j++) worst = fmax(worst, fabs((double)x[k][j] - c->value));
    }
    say(a, "%.3f on the complete graph of 3, %.3f on the ring of 6", (double)x[0][0],
        (double)x[1][0]);
    return judge(worst < 0.02);
}

/* ------------------------------------------------------------------------------------------------
 * the table */

#define DE "arXiv 2510.01377"
#define LOCAL "arXiv 2604.23980, abstract"
// clang-format off
static const Claim claims[] = {
    CLAIM("D4", "on the complete graph of 8 DeMuon is Muon on the mean gradient", DE, "equal", "1e-4", .check = check_complete),
    CLAIM("D5", "consensus distance at most lr rho/(1-rho) s sqrt(N min(m,n)), on seven graphs of 8; proportional to the rate", "own inference", "at most 1; 2", "0; 0.1", .check = check_consensus),
    CLAIM("D6 demuon", "on 1/2 (x - a)^2, a = 0, 0, 9, DeMuon finds the mean", LOCAL, "3", "0.02", .check = check_median, .method = "demuon", .value = 3),
    CLAIM("D6 demuon-notrack", "without its tracker it finds the median: gossip and local Muon are not enough", LOCAL, "0", "0.02", .check = check_median, .method = "demuon-notrack", .value = 0),
    CLAIM("D7", "the packed vote of 1 .. 9 workers is the majority; fewer than half cannot change a unanimous vote; a majority of majorities is not the majority", "arXiv 1810.05291", "always; differs", "bits", .check = check_majority),
};
// clang-format on

const Claim *graph_claims(size_t *count) { return *count = sizeof claims / sizeof *claims, claims; }
