/* bench/claims_graph.h - claims about gossip, gradient tracking and the vote's majority. MIT. */
#ifndef CLAIMS_GRAPH_H
#define CLAIMS_GRAPH_H

#include "claims.h"
#include "claims_gpt.h"
#include "demuon.h"

enum { GRAPH_MOST = 64 };

/* A graph of the table, in storage that the caller frees. */
static double *graph_open(DmGraph *g, const char *topology, int nodes) {
    double *storage = problem_alloc(dm_graph_doubles(nodes) * sizeof *storage);
    char error[300];
    if (dm_graph_build(g, storage, topology, "auto", nodes, error, sizeof error)) {
        fprintf(stderr, "claims: %s\n", error);
        exit(1);
    }
    return storage;
}

/* out_i = sum_j w_ij in_j for all nodes; n floats each. out is not in. */
static void graph_gossip(float *out, const float *in, const DmGraph *g, uint64_t round, size_t n) {
    for (int i = 0; i < g->nodes; i++) {
        int source[GRAPH_MOST];
        double weight[GRAPH_MOST];
        const float *from[GRAPH_MOST];
        size_t count = dm_sources(g, round, i, source, weight);
        for (size_t k = 0; k < count; k++) from[k] = in + (size_t)source[k] * n;
        dm_mix(out + (size_t)i * n, from, weight, count, n);
    }
}

/* Second largest singular value by the formula of each family. */
static double rho_formula(const char *name, int nodes) {
    double n = nodes, pi = 3.141592653589793, tau = dm__log2(nodes);
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
    float x[2][GRAPH_MOST], mean = 0;
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

static Verdict check_rho(Answer *a, const Claim *c) {
    double worst = 0, mean_off = 0;
    int wrong = 0;
    char error[200];
    (void)c;
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

/* Gossip on every cosine of the circle and on random vectors: what each round leaves. */
static Verdict check_contraction_by_gossip(Answer *a, const Claim *c) {
    enum { N = 16 };
    double worst = 0, beyond = -1;
    (void)c;
    for (size_t k = 0; k < 5; k++) { /* the circulant ones */
        DmGraph g;
        double *storage = graph_open(&g, families[k], N), rho = dm_graph_rho(&g), most = 0;
        for (int v = 1; v < 40; v++) {
            float x[N], y[N];
            double mean = 0;
            for (int i = 0; i < N; i++) {
                x[i] = (float)(v < N ? cos(6.283185307179586 * v * i / N)
                                     : problem_normal((uint64_t)v, (uint64_t)i));
                mean += (double)x[i] / N;
            }
            for (int i = 0; i < N; i++) x[i] -= (float)mean;
            graph_gossip(y, x, &g, 0, 1);
            double left = sqrt(sm_sum_squares(y, N) / sm_sum_squares(x, N));
            most = fmax(most, left);
            if (v >= N) beyond = fmax(beyond, left - rho);
        }
        worst = fmax(worst, fabs(most - rho));
        free(storage);
    }
    say(a, "worst vector off rho by at most %.1e; random ones exceed it by %.2f at most", worst,
        beyond);
    return judge_general(worst < 1e-5 && beyond < 1e-6);
}

/* Move the weight of one edge, both ways, back to the diagonal. */
static void drop_link(double *w, int nodes, int i, int j) {
    size_t n = (size_t)nodes, p = (size_t)i, q = (size_t)j;
    double lost = fmin(w[p * n + q], w[q * n + p]);
    w[p * n + q] -= lost, w[q * n + p] -= lost;
    w[p * n + p] += lost, w[q * n + q] += lost;
}

/* Largest |mean V - mean M| of a tracker on random momenta, in units of the largest |mean M|. */
static double tracker_error(const char *topology, int drop) {
    enum { N = 8, SIZE = 50 };
    static float m[N * SIZE], now[N * SIZE], v[N * SIZE], u[N * SIZE];
    DmGraph g;
    double worst = 0, largest = 0, *storage = graph_open(&g, topology, N);
    memset(m, 0, sizeof m), memset(v, 0, sizeof v);
    for (uint64_t k = 0; k < 200; k++) {
        for (size_t i = 0; i < N * SIZE; i++)
            now[i] = 0.8f * m[i] +
                     0.2f * (float)(problem_normal(1, i) + problem_normal(sm_key(2, k, 0), i));
        dm_track(v, now, m, N * SIZE);
        memcpy(m, now, sizeof m);
        if (drop && k % 5 == 0) { /* another graph for one round */
            double *broken = graph_open(&g, topology, N);
            drop_link(broken, N, (int)(k / 5 % N), (int)((k / 5 + 1) % N));
            g.weight = broken;
            graph_gossip(u, v, &g, k, SIZE);
            g.weight = storage;
            free(broken);
        } else {
            graph_gossip(u, v, &g, k, SIZE);
        }
        memcpy(v, u, sizeof v);
        for (size_t i = 0; i < SIZE; i++) {
            double mean_v = 0, mean_m = 0;
            for (size_t j = 0; j < N; j++)
                mean_v += (double)v[j * SIZE + i] / N, mean_m += (double)m[j * SIZE + i] / N;
            worst = fmax(worst, fabs(mean_v - mean_m));
            largest = fmax(largest, fabs(mean_m));
        }
    }
    free(storage);
    return worst / largest;
}

static Verdict check_tracker(Answer *a, const Claim *c) {
    double worst = 0, dropped = 0;
    (void)c;
    for (const char *const *name = families; *name; name++)
        worst = fmax(worst, tracker_error(*name, 0));
    dropped = fmax(tracker_error("ring", 1), tracker_error("complete", 1));
    say(a, "off by at most %.1e; with links dropped both ways %.1e", worst, dropped);
    return judge_general(worst < 1e-5 && dropped < 1e-5);
}

enum { BALLOT_BITS = 200, BALLOT_WORDS = 4, MOST_VOTERS = 9 };

/* Bit i of a packed vote. */
static int bit_of(const uint64_t *bits, size_t i) { return (int)(bits[i / 64] >> i % 64 & 1); }

/* Votes for + less votes for - among the voters [from, to). */
static int tally(uint64_t ballot[][BALLOT_WORDS], size_t from, size_t to, size_t i) {
    int sum = 0;
    for (size_t j = from; j < to; j++) sum += bit_of(ballot[j], i) ? 1 : -1;
    return sum;
}

/* Votes that the honest majority, all for +, loses to fewer flippers than half. */
static int swayed_words(const uint64_t *const *ballots, uint64_t ballot[][BALLOT_WORDS],
                        size_t voters) {
    int swayed = 0;
    uint64_t vote[BALLOT_WORDS];
    for (size_t flippers = 0; 2 * flippers < voters; flippers++) {
        for (size_t j = 0; j < voters; j++)
            memset(ballot[j], j < flippers ? 0 : 0xff, sizeof ballot[j]);
        sm_vote(vote, NULL, ballots, NULL, voters, BALLOT_WORDS, SM_COIN, 5, 0);
        for (size_t w = 0; w < BALLOT_WORDS; w++) swayed += vote[w] != ~(uint64_t)0;
    }
    return swayed;
}

/* Packed words against a sum per vote; groups of three that vote again; voters who flip. */
static Verdict check_majority(Answer *a, const Claim *c) {
    int differ = 0, swayed = 0, trees = 0;
    (void)c;
    for (size_t voters = 1; voters <= MOST_VOTERS; voters++) {
        uint64_t ballot[MOST_VOTERS][BALLOT_WORDS] = {{0}}, vote[BALLOT_WORDS];
        const uint64_t *ballots[MOST_VOTERS];
        for (size_t j = 0; j < voters; j++) {
            ballots[j] = ballot[j];
            for (size_t i = 0; i < BALLOT_BITS; i++)
                ballot[j][i / 64] |= (sm_hash(voters * 100 + j, i) & 1) << i % 64;
        }
        sm_vote(vote, NULL, ballots, NULL, voters, BALLOT_WORDS, SM_COIN, 5, 0);
        for (size_t i = 0; i < BALLOT_BITS; i++) {
            int sum = tally(ballot, 0, voters, i), tree = 0;
            uint64_t coin = sm_hash(5, i / 64);
            for (size_t j = 0; j < voters; j += 3)
                tree += tally(ballot, j, j + 3 < voters ? j + 3 : voters, i) > 0 ? 1 : -1;
            differ += bit_of(vote, i) != (sum ? sum > 0 : (int)(coin >> i % 64 & 1));
            trees += voters == MOST_VOTERS && (tree > 0) != bit_of(vote, i);
        }
        swayed += swayed_words(ballots, ballot, voters);
    }
    say(a, "%d votes differ; flippers change %d words; a tree of threes errs on %d of %d", differ,
        swayed, trees, BALLOT_BITS);
    return judge_general(differ == 0 && swayed == 0 && trees > 0);
}

/* ------------------------------------------------------------------------------------------------
 * whole runs */

/* On the complete graph DeMuon is Muon on the mean gradient. */
static Verdict check_complete(Answer *a, const Claim *c) {
    enum { N = 8 };
    float *gossips = floats(N * QUADRATIC), *mean = floats(N * QUADRATIC);
    double gap = 0;
    (void)c;
    for (int k = 0; k < 2; k++) {
        char error[100];
        ProblemRun r = run_of("quadratic", k ? "muon" : "demuon", 5e-3, 0.9, 100);
        r.workers = N;
        r.topology = "complete";
        r.parameter = 0.1;
        noise_parse(&r.noise, "gaussian:0.02", error, sizeof error);
        final_models(a, &r, k ? mean : gossips);
    }
    for (size_t i = 0; i < N * QUADRATIC; i++) {
        double d = (double)gossips[i] - (double)mean[i];
        gap += d * d;
    }
    gap = sqrt(gap / sm_sum_squares(mean, N * QUADRATIC));
    free(gossips), free(mean);
    say(a, "models differ by %.1e of their norm after 100 steps", gap);
    return judge_general(gap < 1e-4);
}

enum { SIDE = 40, NODES = 8 };

/* Largest consensus distance of DeMuon on different workers, and what theory allows. */
static double consensus_of(Answer *a, const char *topology, int nodes, double lr, double *bound,
                           double *rho) {
    DmGraph g;
    double *storage = graph_open(&g, topology, nodes), least, overshoot;
    ProblemRun r = run_of("quadratic", "demuon", lr, 0.8, 150);
    r.rows = r.cols = SIDE;
    r.workers = nodes;
    r.topology = topology;
    r.parameter = 0.5;
    *rho = dm_graph_rho(&g);
    free(storage);
    band_of(sm_newton_schulz("jordan5"), 1e-3, &least, &overshoot);
    *bound = lr * *rho / (1 - *rho) * overshoot * sqrt(nodes * (double)SIDE);
    return watch_run(a, &r, (Watch){0}).consensus;
}

static const char *const distances[] = {
    "ring", "ring-lazy", "directed-ring", "exponential", "exponential-lazy", "hypercube",
    "star", NULL};

static Verdict check_consensus(Answer *a, const Claim *c) {
    double bound, rho, least = INFINITY, most = 0, linear, lx[8], ly[8];
    size_t n = 0;
    (void)c;
    for (const char *const *name = distances; *name; name++, n++) {
        double distance = consensus_of(a, *name, NODES, 5e-3, &bound, &rho);
        least = fmin(least, distance / bound);
        most = fmax(most, distance / bound);
        lx[n] = rho / (1 - rho), ly[n] = distance;
    }
    linear = consensus_of(a, "ring", NODES, 1e-2, &bound, &rho) / ly[0];
    say(a, "%.2f .. %.2f of the bound; twice the rate: %.2f times; exponent in rho/(1-rho): %.2f",
        least, most, linear, exponent(lx, ly, n));
    return judge_general(most <= 1 && fabs(linear - 2) < 0.1);
}

/* Where the nodes end on 1/2 (x - a_j)^2, a = 0, 0, 9. */
static Verdict check_median(Answer *a, const Claim *c) {
    float x[2][8];
    double worst = 0;
    for (int k = 0; k < 2; k++) {
        ProblemRun r = run_of("consensus", c->method, 1, 0.8, 20000);
        r.every = r.steps;
        r.workers = k ? 6 : 3;
        r.topology = k ? "ring" : "complete";
        r.config.ns = sm_newton_schulz("exact");
        r.schedule = schedules + 4;
        final_models(a, &r, x[k]);
        for (int j = 0; j < r.workers; j++) worst = fmax(worst, fabs((double)x[k][j] - c->value));
    }
    say(a, "%.3f on the complete graph of 3, %.3f on the ring of 6", (double)x[0][0],
        (double)x[1][0]);
    return judge(worst < 0.02);
}

static Verdict check_gossip_bytes(Answer *a, const Claim *c) {
    static const struct {
        const char *topology;
        int degree;
    } graph[] = {{"ring", 2}, {"exponential", 3}, {"one-peer", 1}, {"complete", NODES - 1}};
    int right = 1;
    (void)c;
    for (size_t k = 0; k < 4; k++)
        for (int tracked = 0; tracked < 2; tracked++) {
            ProblemRun r = run_of("quadratic", tracked ? "demuon" : "dsgd", 1e-3, 0.9, 12);
            r.workers = NODES;
            r.topology = graph[k].topology;
            double sent = watch_run(a, &r, (Watch){0}).sent / 12;
            right &= sent == 4.0 * (1 + tracked) * graph[k].degree * QUADRATIC;
            if (tracked) say(a, "%s%s %.0f", k ? ", " : "", graph[k].topology, sent);
        }
    return judge_general(right);
}

static Verdict check_causality(Answer *a, const Claim *c) {
    int later, earlier;
    double loss = NAN;
    (void)c;
    gpt_causality(&later, &earlier, &loss);
    a->broken |= later < 0;
    say(a,
        "a changed token changes earlier logits at %d and its own at %d of 15 places; fresh loss "
        "%.3f",
        earlier, later, loss);
    return judge_general(earlier == 0 && later == 15 && fabs(loss - log(65)) < 0.05);
}
#endif
