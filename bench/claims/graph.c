/* graph.c - claims about gossip, gradient tracking, the majority, and the causal mask. MIT. */
#include "common.h"
#include "../../demuon.h"
#include "gpt.h"

enum { MOST_NODES = 64 };

/* A graph of the table, in storage that the caller frees. */
static double *graph_open(DmGraph *g, const char *topology, int nodes) {
    double *storage = problem_alloc(dm_graph_doubles(nodes) * sizeof *storage);
    char error[512];
    if (dm_graph_build(g, storage, topology, nodes, error, sizeof error)) {
        fprintf(stderr, "claims: %s\n", error);
        exit(1);
    }
    return storage;
}

/* out_i = sum_j w_ij in_j for all nodes; n floats each. out is not in. */
static void graph_gossip(float *out, const float *in, const DmGraph *g, uint64_t round, size_t n) {
    for (int i = 0; i < g->nodes; i++) {
        int source[MOST_NODES];
        double weight[MOST_NODES];
        const float *from[MOST_NODES] = {NULL};
        size_t count = dm_sources(g, round, i, source, weight);
        for (size_t k = 0; k < count; k++) from[k] = in + (size_t)source[k] * n;
        dm_mix(out + (size_t)i * n, from, weight, count, n);
    }
}

/* Second largest singular value by the formula of each family. */
static double rho_formula(const char *name, int nodes) {
    double n = nodes, pi = 3.141592653589793, tau = log2(n);
    if (strcmp(name, "ring") == 0)
        return fmax(1.0 / 3 + 2.0 / 3 * cos(2 * pi / n), nodes % 2 ? 0 : 1.0 / 3);
    if (strcmp(name, "ring-lazy") == 0) return 0.5 + 0.5 * cos(2 * pi / n);
    if (strcmp(name, "directed-ring") == 0) return cos(pi / n);
    if (strcmp(name, "exponential-lazy") == 0) return tau / (tau + 2);
    if (strcmp(name, "star") == 0) return 1 - 1 / n;
    if (strcmp(name, "exponential") == 0 || strcmp(name, "hypercube") == 0)
        return 1 - 2 / (tau + 1);
    return 0; /* complete; one-peer over a period */
}

static const char *const families[] = {
    "ring",      "ring-lazy", "directed-ring", "exponential", "exponential-lazy",
    "hypercube", "star",      "complete",      "one-peer",    NULL};

/* How far a period of gossip leaves any node from the mean, relative to that. */
static double off_the_mean(const DmGraph *g) {
    float x[2][MOST_NODES] = {{0}}, mean = 0;
    double off = 0;
    for (int i = 0; i < g->nodes; i++) {
        x[0][i] = (float)(i * i % 7);
        mean += x[0][i] / (float)g->nodes;
    }
    for (int r = 0; r < g->period; r++) graph_gossip(x[(r + 1) % 2], x[r % 2], g, (uint64_t)r, 1);
    for (int i = 0; i < g->nodes; i++)
        off = fmax(off, fabs((double)(x[g->period % 2][i] - mean)) / (double)mean);
    return off;
}

CHECK(check_rho) {
    double worst = 0, mean_off = 0;
    int wrong = 0;
    char error[512];
    for (const char *const *name = families; *name; name++)
        for (int nodes = 4; nodes <= 32; nodes *= 2) {
            DmGraph g;
            double *storage = graph_open(&g, *name, nodes);
            worst = fmax(worst, fabs(dm_graph_rho(&g) - rho_formula(*name, nodes)));
            wrong += dm_graph_check(&g, error, sizeof error) != 0;
            if (strcmp(*name, "one-peer") == 0) mean_off = fmax(mean_off, off_the_mean(&g));
            free(storage);
        }
    say(a, "rho off by at most %.1e; %d not doubly stochastic; one-peer off the mean by %.1e",
        worst, wrong, mean_off);
    return judge_general(worst <= 1e-6 && wrong == 0 && mean_off <= 1e-6);
}

/* Move the weight of an edge, both ways, to the diagonal. */
static void drop_link(const DmGraph *g, int i, int j) {
    const int row[4] = {i, j, i, j}, column[4] = {j, i, i, j};
    double *weight[4] = {NULL};
    for (int k = 0; k < 4; k++)
        for (int at = g->first[row[k]]; at < g->first[row[k] + 1]; at++)
            if (g->source[at] == column[k]) weight[k] = &g->weight[at];
    if (!weight[0] || !weight[1]) return;
    double lost = fmin(*weight[0], *weight[1]);
    for (int k = 0; k < 4; k++) *weight[k] += k < 2 ? -lost : lost;
}

/* Largest |mean V - mean M| of a tracker on random momenta, in units of the largest |mean M|. With
 * `drop`, every fifth round misses a link. */
static double tracker_error(const char *topology, int drop) {
    enum { NODES = 8, N = 50, ALL = NODES * N };
    float m[ALL] = {0}, now[ALL], v[ALL] = {0}, u[ALL];
    DmGraph g, broken;
    double worst = 0, largest = 0, *storage = graph_open(&g, topology, NODES);
    for (uint64_t k = 0; k < 200; k++) {
        double *other = graph_open(&broken, topology, NODES);
        if (drop && k % 5 == 0)
            drop_link(&broken, (int)(k / 5 % NODES), (int)((k / 5 + 1) % NODES));
        for (size_t i = 0; i < ALL; i++)
            now[i] = 0.8f * m[i] +
                     0.2f * (float)(problem_normal(1, i) + problem_normal(sm_key(2, k, 0), i));
        dm_track(v, now, m, ALL);
        memcpy(m, now, sizeof m);
        graph_gossip(u, v, drop ? &broken : &g, k, N);
        memcpy(v, u, sizeof v);
        free(other);
        for (size_t i = 0; i < N; i++) {
            double mean_v = 0, mean_m = 0;
            for (size_t j = 0; j < NODES; j++)
                mean_v += (double)v[j * N + i] / NODES, mean_m += (double)m[j * N + i] / NODES;
            worst = fmax(worst, fabs(mean_v - mean_m));
            largest = fmax(largest, fabs(mean_m));
        }
    }
    free(storage);
    return worst / largest;
}

CHECK(check_tracker) {
    double worst = 0, dropped = 0;
    for (const char *const *name = families; *name; name++)
        worst = fmax(worst, tracker_error(*name, 0));
    dropped = fmax(tracker_error("ring", 1), tracker_error("complete", 1));
    say(a, "off by at most %.1e; with links dropped both ways %.1e", worst, dropped);
    return judge_general(worst < 1e-5 && dropped < 1e-5);
}

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
    float *models[2] = {floats(NODES * SIZE), floats(NODES * SIZE)};
    double length = 0;
    for (int k = 0; k < 2; k++) {
        ProblemRun r = run_of("quadratic", k ? "muon" : "demuon", 5e-3, 0.9, 100);
        r.workers = NODES;
        if (k == 0) r.config.topology = "complete";
        r.parameter = 0.1;
        r.noise = "gaussian:0.02";
        final_models(a, &r, models[k]);
    }
    length = norm_of(models[1], NODES * SIZE);
    for (size_t i = 0; i < NODES * SIZE; i++) models[0][i] -= models[1][i];
    double gap = norm_of(models[0], NODES * SIZE) / length;
    free(models[0]), free(models[1]);
    say(a, "models differ by %.1e of their norm after 100 steps", gap);
    return judge_general(gap < 1e-4);
}

double consensus_of(Answer *a, const char *topology, int nodes, double lr, double *bound,
                    double *rho) {
    DmGraph g;
    double *storage = graph_open(&g, topology, nodes), least, overshoot;
    ProblemRun r = run_of("quadratic", "demuon", lr, 0.8, 150);
    r.rows = r.cols = CONSENSUS_SIDE;
    r.workers = nodes;
    r.config.topology = topology;
    r.parameter = 0.5;
    *rho = dm_graph_rho(&g);
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
        r.schedule = "linear-sqrt";
        final_models(a, &r, x[k]);
        for (int j = 0; j < r.workers; j++) worst = fmax(worst, fabs((double)x[k][j] - c->value));
    }
    say(a, "%.3f on the complete graph of 3, %.3f on the ring of 6", (double)x[0][0],
        (double)x[1][0]);
    return judge(worst < 0.02);
}

CHECK(check_causality) {
    int earlier = 0, own = 0;
    double fresh = NAN;
    a->broken |= gpt_causality(&earlier, &own, &fresh) != 0;
    say(a,
        "a changed token changes earlier losses at %d and its own at %d of 15 places; fresh loss "
        "%.3f",
        earlier, own, fresh);
    return judge_general(earlier == 0 && own == 15 && fabs(fresh - log(65)) < 0.05);
}

/* ------------------------------------------------------------------------------------------------
 * the table */

#define DE "arXiv 2510.01377"
#define LOCAL "arXiv 2604.23980, abstract"
// clang-format off
static const Claim claims[] = {
    CLAIM("D1", "spectral gaps of nine families of graphs at 4, 8, 16, 32 nodes; one-peer's rounds give the mean", DE "; Ying et al. 2021", "formulas", "1e-6", .check = check_rho),
    CLAIM("D3", "the mean tracker is the mean momentum at every step, on every graph, with links dropped too", DE, "equal", "1e-5", .check = check_tracker),
    CLAIM("D4", "on the complete graph of 8 DeMuon is Muon on the mean gradient", DE, "equal", "1e-4", .check = check_complete),
    CLAIM("D5", "consensus distance at most lr rho/(1-rho) s sqrt(N min(m,n)), on seven graphs of 8; proportional to the rate", "own inference", "at most 1; 2", "0; 0.1", .check = check_consensus),
    CLAIM("D6 demuon", "on 1/2 (x - a)^2, a = 0, 0, 9, DeMuon finds the mean", LOCAL, "3", "0.02", .check = check_median, .method = "demuon", .value = 3),
    CLAIM("D6 demuon-notrack", "without its tracker it finds the median: gossip and local Muon are not enough", LOCAL, "0", "0.02", .check = check_median, .method = "demuon-notrack", .value = 0),
    CLAIM("D7", "the packed vote of 1 .. 9 workers is the majority; fewer than half cannot change a unanimous vote; a majority of majorities is not the majority", "arXiv 1810.05291", "always; differs", "bits", .check = check_majority),
    CLAIM("D8", "changing a token leaves the losses before it the same bits (the published DeMuon code fails this); a fresh model of 65 tokens loses ln 65", "DeMuon code; causality", "0; 4.174", "bits; 0.05", .check = check_causality),
};
// clang-format on

const Claim *graph_claims(size_t *count) { return *count = sizeof claims / sizeof *claims, claims; }
