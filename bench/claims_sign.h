/* bench/claims_sign.h - claims about the sign of the polar factor, the vote, and the synthetic quadratic. MIT. */
#ifndef CLAIMS_SIGN_H
#define CLAIMS_SIGN_H

#include "claims.h"

/* ------------------------------------------------------------------------------------------------
 * theorems about the sign of the polar factor */

/* <G, sgn(polar(G))> on Theorem 1's matrix; negative: the step ascends. */
static double theorem1(double sigma, const SmNewtonSchulz *ns) {
    ProblemData d;
    float memory[128], polar[16], *scratch = floats(problem_scratch(4, 4));
    double inner = 0;
    problem_make(&d, problem_named("linear"), 4, 4, 1, sigma, 1, memory, scratch);
    polar_of(polar, d.a, 4, 4, ns);
    for (size_t i = 0; i < 16; i++) inner += (double)(polar[i] > 0 ? d.a[i] : -d.a[i]);
    free(scratch);
    return inner;
}

static Verdict check_theorem1(Answer *a, const Claim *c) {
    static const double sigmas[] = {2, 12, 13, 100, 1000};
    double worst = 0, value = 0;
    (void)c;
    for (size_t i = 0; i < 5; i++) {
        value = theorem1(sigmas[i], sm_newton_schulz("exact"));
        worst = fmax(worst, fabs(value - (532 - 43 * sigmas[i]) / 103) / sigmas[i]);
    }
    say(a, "%.3f at 1000; from the formula by at most %.1e sigma", value, worst);
    return judge(worst < 1e-5);
}

/* One method on Theorem 1's linear F. */
static Verdict check_descends(Answer *a, const Claim *c) {
    ProblemRun r = run_of("linear", c->method, 1e-3, 0, 400);
    r.config.ns = sm_newton_schulz("exact");
    Watch w = watch_run(a, &r, (Watch){0});
    double slope = (w.last - w.first) / (r.lr * r.steps);
    say(a, "F changes by %+.1f lr per step", slope);
    return judge((slope > 0) == (c->value > 0));
}

static Verdict check_newton_theorem1(Answer *a, const Claim *c) {
    SmNewtonSchulz six = with_steps("jordan5", 6);
    double value = theorem1(1000, sm_newton_schulz("jordan5")),
           small = theorem1(100, sm_newton_schulz("jordan5")), other = theorem1(1000, &six);
    (void)c;
    say(a, "%+.2f, %+.3f, %+.2f", value, small, other);
    return judge(fabs(value - 3470.95) < 0.05 && fabs(small + 36.583) < 0.005 &&
                 fabs(other + 412.311) < 0.05);
}

/* Sign matrices of side n, up to flips of rows and columns, whose polar factor has an entry of the other
 * sign. */
static unsigned mismatches(size_t n) {
    unsigned found = 0, bits = (unsigned)((n - 1) * (n - 1));
    float s[25], o[25], scratch[512];
    for (unsigned code = 0; code < 1u << bits; code++) {
        int differs = 0;
        for (size_t i = 0, k = 0; i < n * n; i++)
            s[i] = i < n || i % n == 0 || (code >> k++ & 1) ? 1.0f : -1.0f;
        sm__polar_exact(o, s, n, n, scratch);
        for (size_t i = 0; i < n * n; i++) differs |= s[i] * o[i] < -1e-5f;
        found += (unsigned)differs;
    }
    return found;
}

static Verdict check_sign_patterns(Answer *a, const Claim *c) {
    unsigned four = mismatches(4), five = mismatches(5);
    (void)c;
    say(a, "4x4: %u of 512 classes (of 5x5, %u of 65536 do)", four, five);
    return judge_general(four == 0);
}

static Verdict check_descent_bound(Answer *a, const Claim *c) {
    float g[400], o[400];
    double tightest = INFINITY, sigma[7];
    int broken = 0, ascents = 0;
    (void)c;
    for (uint64_t trial = 0; trial < 3000; trial++) {
        size_t r = 1 + trial % 7, m = r + sm_hash(trial, 0) % 9, n = r + sm_hash(trial, 1) % 12;
        double kappa = pow(10, 3 * problem_uniform(trial, 2)), l1 = 0, inner = 0;
        for (size_t p = 0; p < r; p++)
            sigma[p] =
                trial & 1 && p ? 1 / kappa : pow(kappa, -(double)p / (r > 1 ? (double)r - 1 : 1));
        kappa = sigma[0] / sigma[r - 1];
        known_matrix(g, o, m, n, r, sigma, trial);
        for (size_t i = 0; i < m * n; i++) {
            l1 += fabs((double)o[i]);
            inner += (double)(o[i] > 0 ? g[i] : -g[i]);
        }
        double root = sqrt((double)(r * m * n)), phi = l1 / root,
               slack = inner / (sigma[0] * root) - (phi - 1 + 1 / kappa);
        tightest = fmin(tightest, slack);
        broken += slack < -1e-5;
        ascents += kappa < 1 / (1 - phi) && inner <= 0;
    }
    say(a, "%d violations, %d ascents under kappa < 1/(1-phi); least slack %.1e", broken, ascents,
        tightest);
    return judge_general(broken == 0 && ascents == 0);
}

/* G_T = |G|_1 / sqrt(mn) and R_T = 2 sum |g| q / sqrt(mn), where q is 1 if the polar factor has the other
 * sign and 0 if not. */
static Verdict check_vacuous(Answer *a, const Claim *c) {
    ProblemData d;
    float memory[128], polar[16], *scratch = floats(problem_scratch(4, 4));
    double wrong = 0, all = 0;
    (void)c;
    problem_make(&d, problem_named("linear"), 4, 4, 1, 1000, 1, memory, scratch);
    polar_of(polar, d.a, 4, 4, sm_newton_schulz("exact"));
    for (size_t i = 0; i < 16; i++) {
        all += fabs((double)d.a[i]) / 4;
        if (polar[i] * d.a[i] < 0) wrong += 2 * fabs((double)d.a[i]) / 4;
    }
    free(scratch);
    say(a, "R - G = %.4f", wrong - all);
    return judge(fabs(wrong - all - 10617.0 / 103) < 1e-3);
}

/* ------------------------------------------------------------------------------------------------
 * scale, decay, gains */

/* The models of a signmuon run at a factor on every gradient are the same bits. */
static Verdict check_scale(Answer *a, const Claim *c) {
    float *one = floats(QUADRATIC), *other = floats(QUADRATIC);
    int same = 0, all = 0;
    (void)c;
    for (const char *const *m = (const char *const[]){"signmuon", "muon", "muonsign", NULL}; *m;
         m++)
        for (int k = -20; k <= 20; k += 40) {
            ProblemRun r = run_of("quadratic", *m, 1e-3, 0.9, 40);
            final_models(a, &r, one);
            r.scale = ldexp(1, k);
            final_models(a, &r, other);
            same += same_bits(one, other, QUADRATIC * sizeof *one);
            all++;
        }
    free(one);
    free(other);
    say(a, "%d of %d runs give the same bits at 2^-20 and 2^20", same, all);
    return judge_general(same == all);
}

/* SignMuon with M <- mu M + G in place of the average, from the same gradients. */
static Verdict check_heavy_ball(Answer *a, const Claim *c) {
    float *ema = floats(QUADRATIC), *ball = floats(QUADRATIC), *g = floats(QUADRATIC),
          *u = floats(QUADRATIC), *v = floats(QUADRATIC);
    double differ = 0;
    (void)c;
    for (uint64_t t = 0; t < 60; t++) {
        gaussian(g, QUADRATIC, sm_key(5, 0, t / 3));
        sm_momentum(u, ema, g, QUADRATIC, 0.9f, 0);
        for (size_t i = 0; i < QUADRATIC; i++) ball[i] = 0.9f * ball[i] + g[i];
        polar_of(u, ema, 100, 100, sm_newton_schulz("jordan5"));
        polar_of(v, ball, 100, 100, sm_newton_schulz("jordan5"));
        for (size_t i = 0; i < QUADRATIC; i++) differ += (u[i] > 0) != (v[i] > 0);
    }
    free(ema), free(ball), free(g), free(u), free(v);
    say(a, "%.4f %% of the signs of 60 steps differ", differ / QUADRATIC / 60 * 100);
    return judge(differ / QUADRATIC / 60 < 1e-3);
}

static Verdict check_decay(Answer *a, const Claim *c) {
    float *x = floats(QUADRATIC), *y = floats(QUADRATIC);
    double longest = 0, shortest = INFINITY, gamma = 0, wd = 0.5;
    (void)c;
    for (int steps = 1; steps <= 12; steps++) {
        ProblemRun r = run_of("quadratic", "signmuon", 1e-2, 0.9, steps);
        double length = 0;
        r.config.decay = 0.2;
        r.config.coupled_decay = 1;
        final_models(a, &r, y);
        for (size_t i = 0; steps > 1 && i < QUADRATIC; i++)
            length += ((double)y[i] - (double)x[i]) * ((double)y[i] - (double)x[i]);
        memcpy(x, y, QUADRATIC * sizeof *x);
        if (steps == 1) continue;
        longest = fmax(longest, sqrt(length) / r.lr);
        shortest = fmin(shortest, sqrt(length) / r.lr);
    }
    ProblemRun r = run_of("linear", "signmuon", 0.05, 0, 2000); /* the gradient never turns */
    r.config.decay = wd;
    r.config.gain = sm_gain("unit-gain");
    final_models(a, &r, x);
    gamma = sqrt(sm_sum_squares(x, 16)) / 2;
    free(x), free(y);
    say(a, "coupled: step length %.4f .. %.4f sqrt(mn) lr; decoupled: gain %.4f of at most %.4f",
        shortest / 100, longest / 100, gamma, 1 / wd);
    return judge_general(longest < 100.01 && shortest > 99.99 && gamma <= 1 / wd * 1.0001);
}

static Verdict check_unit_gain(Answer *a, const Claim *c) {
    static const size_t shape[][2] = {{64, 64},  {64, 27},   {27, 64}, {256, 64},
                                      {64, 256}, {120, 480}, {7, 300}};
    const SmGain *gain = sm_gain("unit-gain");
    double sign = 0, low = INFINITY, high = 0;
    size_t at = 0;
    (void)c;
    for (size_t k = 0; k < sizeof shape / sizeof *shape; k++) {
        size_t m = shape[k][0], n = shape[k][1];
        float *g = floats(m * n);
        gaussian(g, m * n, k);
        polar_of(g, g, m, n, sm_newton_schulz("jordan5"));
        double length = sqrt(sm_sum_squares(g, m * n) / (double)m) * gain->gain(m, n, 0);
        low = fmin(low, length);
        if (length > high) high = length, at = k;
        sign = fmax(sign, fabs(gain->gain(m, n, 1) * sqrt((double)n) - 1));
        free(g);
    }
    say(a, "signs: 1 to %.0e; polar factors %.3f .. %.3f (at %zux%zu)", sign, low, high,
        shape[at][0], shape[at][1]);
    return judge_general(sign < 1e-12 && low >= 0.75 && high <= 1.0 + 1e-3);
}

static Verdict check_spectral(Answer *a, const Claim *c) {
    static const size_t shape[][2] = {{64, 576}, {128, 576}, {128, 1152}, {256, 2304},
                                      {64, 27},  {128, 128}, {256, 256},  {384, 384}};
    double low[2] = {INFINITY, INFINITY}, high[2] = {0, 0};
    (void)c;
    for (size_t k = 0; k < sizeof shape / sizeof *shape; k++) {
        size_t m = shape[k][0], n = shape[k][1];
        int square = m == n;
        float *g = floats(m * n);
        gaussian(g, m * n, k);
        polar_of(g, g, m, n, sm_newton_schulz("jordan5"));
        for (size_t i = 0; i < m * n; i++) g[i] = g[i] > 0 ? 1.0f : -1.0f;
        double ratio = spectral_norm(g, m, n) / (sqrt((double)m) + sqrt((double)n));
        low[square] = fmin(low[square], ratio);
        high[square] = fmax(high[square], ratio);
        free(g);
    }
    say(a, "%.3f .. %.3f on convolutions, %.3f .. %.3f on squares", low[0], high[0], low[1],
        high[1]);
    return judge_general(fmin(low[0], low[1]) > 0.90 && fmax(high[0], high[1]) < 0.96);
}

/* ------------------------------------------------------------------------------------------------
 * the vote */

static Verdict check_identical_workers(Answer *a, const Claim *c) {
    float *one = floats(QUADRATIC), *three = floats(3 * QUADRATIC);
    const SmMethod *m;
    int same = 0, all = 0;
    (void)c;
    for (size_t i = 0; (m = sm_method_row(i)) != NULL; i++) {
        if (m->combine != SM_VOTE) continue;
        ProblemRun r = run_of("quadratic", m->name, 1e-3, 0.9, 30);
        final_models(a, &r, one);
        r.workers = 3;
        final_models(a, &r, three);
        for (size_t j = 0; j < 3; j++, all++)
            same += same_bits(one, three + j * QUADRATIC, QUADRATIC * sizeof *one);
    }
    free(one), free(three);
    say(a, "%d of %d replicas (3 workers, every row that votes) equal one worker", same, all);
    return judge_general(same == all);
}

/* Packed or int8, ranks rotated, two compute threads, processes: the same model everywhere. */
static Verdict check_wire(Answer *a, const Claim *c) {
    enum { N = 5 };
    float *first = floats(N * QUADRATIC), *other = floats(N * QUADRATIC);
    int same = 0;
    (void)c;
    for (int k = 0; k < 5; k++) {
        ProblemRun r = run_of("quadratic", "signmuon", 1e-3, 0.9, 30);
        char error[100];
        r.workers = N;
        noise_parse(&r.noise, "gaussian:0.1", error, sizeof error);
        r.config.int8_wire = k == 1;
        r.rotate = k == 2 ? 2 : 0;
        r.threads = k == 3 ? 2 : 1;
        final_models(a, &r, k ? other : first);
        for (size_t j = 0; j < N; j++)
            same +=
                same_bits(first, (k ? other : first) + j * QUADRATIC, QUADRATIC * sizeof *first);
    }
    free(first), free(other);
    say(a, "%d of %d replicas equal: int8 wire, ranks rotated by 2, 2 compute threads, again", same,
        5 * N);
    return judge_general(same == 5 * N);
}

/* Fraction of right minus fraction of wrong verdicts of `voters` who are right with probability p. */
static double vote_alignment(size_t voters, double p) {
    enum { WORDS = 4096 };
    uint64_t *votes = problem_alloc((voters + 1) * WORDS * sizeof *votes), right = 0;
    const uint64_t *ballots[64];
    for (size_t j = 0; j < voters; j++) {
        ballots[j] = votes + j * WORDS;
        for (size_t i = 0; i < WORDS * 64; i++)
            votes[j * WORDS + i / 64] |= (uint64_t)(problem_uniform(sm_key(voters, j, 0), i) < p)
                                         << i % 64;
    }
    sm_vote(votes + voters * WORDS, NULL, ballots, NULL, voters, WORDS, SM_COIN, 3, 0);
    for (size_t w = 0; w < WORDS; w++)
        right += (uint64_t)__builtin_popcountll(votes[voters * WORDS + w]);
    free(votes);
    return 2 * (double)right / (WORDS * 64.0) - 1;
}

static Verdict check_vote_alignment(Answer *a, const Claim *c) {
    static const struct {
        size_t voters;
        double alignment;
    } table[] = {{1, .3},     {3, .4365},  {5, .5297},  {7, .6003}, {9, .6566},
                 {10, .6566}, {11, .7026}, {15, .7735}, {21, .8456}};
    double worst = 0;
    (void)c;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        double ours = vote_alignment(table[k].voters, 0.65);
        worst = fmax(worst, fabs(ours - table[k].alignment));
        say(a, "%s%.4f", k ? ", " : "", ours);
    }
    return judge(worst < 0.008); /* four standard errors of 262144 votes */
}

/* |g| q / sigma after a vote: q is how often `voters` get the sign of g = 0.3 wrong under noise of
 * standard deviation 1. */
static double vote_noise(const char *kind, size_t voters) {
    enum { WORDS = 4096, SIZE = WORDS * 64 };
    uint64_t *votes = problem_alloc((voters + 1) * WORDS * sizeof *votes), wrong = 0;
    const uint64_t *ballots[64];
    float *g = floats(SIZE);
    Noise noise;
    char error[200];
    if (noise_parse(&noise, kind, error, sizeof error)) return NAN;
    for (size_t j = 0; j < voters; j++) {
        ballots[j] = votes + j * WORDS;
        for (size_t i = 0; i < SIZE; i++) g[i] = 0.3f;
        noise_add(g, SIZE, &noise, sm_key(6, j, 0), 0);
        sm_pack(votes + j * WORDS, g, SIZE, SM_COIN, j);
    }
    sm_vote(votes + voters * WORDS, NULL, ballots, NULL, voters, WORDS, SM_COIN, 3, 0);
    for (size_t w = 0; w < WORDS; w++)
        wrong += 64 - (uint64_t)__builtin_popcountll(votes[voters * WORDS + w]);
    free(g), free(votes);
    return 0.3 * (double)wrong / SIZE;
}

static const size_t noise_voters[] = {1, 3, 5, 9, 15, 31};

/* value: 1 when the error should fall under 1/sqrt(P), -1 when it should grow with P. */
static Verdict check_vote_noise(Answer *a, const Claim *c) {
    double q[6];
    int bounded = 1, grows = 1;
    for (size_t k = 0; k < 6; k++) {
        q[k] = vote_noise(c->method, noise_voters[k]);
        bounded &= q[k] <= 1 / sqrt((double)noise_voters[k]);
        grows &= k == 0 || q[k] >= q[k - 1];
        say(a, "%s%.3f", k ? ", " : "", q[k]);
    }
    if (c->value < 0) return judge(grows && q[5] > q[0]);
    return judge_general(bounded && q[5] < q[0]);
}

static Verdict check_vote_noise_table(Answer *a, const Claim *c) {
    static const double said[] = {.115, .098, .086, .069, .052, .027};
    double worst = 0;
    for (size_t k = 0; k < 6; k++) {
        double q = vote_noise(c->method, noise_voters[k]);
        worst = fmax(worst, fabs(q - said[k]));
        say(a, "%s%.4f", k ? ", " : "", q);
    }
    return judge(worst <= 1.5e-3);
}

/* ------------------------------------------------------------------------------------------------
 * Theorem 4: error feedback on the output of the LMO */

/* The scales mean|D_t - estimate| of the one-bit messages, from the links of ef21muon.h. */
static Verdict check_cycle(Answer *a, const Claim *c) {
    static const double said[] = {0.7, 1.05, 0.655, 0.96, 0.96, 0.96, 0.96, 0.96};
    EfLink link = problem_link("sign");
    ProblemData d = {.problem = problem_named("divergence")};
    float g[4] = {0}, before[4], target[4], x[4] = {0},
          *scratch = floats(ef_scratch(&link, 2, 2) + 16);
    unsigned char message[64];
    double worst = 0;
    (void)c;
    for (uint64_t t = 0; t < 8; t++) {
        memcpy(before, g, sizeof g);
        d.problem->gradient(target, &d, x, 0, t, scratch);
        ef_send(message, g, target, 2, 2, &link, 0, 0, NULL, scratch);
        double scale = fabs((double)g[0] - (double)before[0]);
        worst = fmax(worst, fabs(scale - said[t]));
        if (t < 4) say(a, "%s%.4f", t ? ", " : "", scale);
    }
    free(scratch);
    say(a, "; two by two the same from then on, to %.0e", worst);
    return judge(worst < 1e-6);
}

/* X_22 after T and T + 2 steps; its gradient wants it to rise. */
static Verdict check_divergence(Answer *a, const Claim *c) {
    float x[2][4];
    for (int k = 0; k < 2; k++) {
        ProblemRun r = run_of("divergence", c->method, 1, 0, 400 + 2 * k);
        r.config.ns = sm_newton_schulz("exact");
        final_models(a, &r, x[k]);
    }
    double drift = (double)x[1][3] - (double)x[0][3];
    say(a, "%+.4f per two steps; X_22 = %.2f after 402", drift, (double)x[1][3]);
    return judge(fabs(drift - c->value) < 1e-4);
}

/* ------------------------------------------------------------------------------------------------
 * the synthetic quadratic of intsystems/SignMuon: 100 x 100, one worker, F <= 1e-3 */

enum { DRAWS = 3, LONGEST = 5000 };

/* Iterations to the target on draws 1 .. DRAWS, and their mean; a run that fails counts LONGEST. */
static double iterations(Answer *a, const Claim *c, int *each, double *alignment) {
    double mean = 0;
    *alignment = INFINITY;
    for (int k = 0; k < DRAWS; k++) {
        ProblemRun r = run_of("quadratic", c->method, c->lr, c->mu, LONGEST);
        r.seed = (uint64_t)k + 1;
        Watch w = watch_run(a, &r, (Watch){.target = 1e-3});
        each[k] = w.reached < 0 ? LONGEST : w.reached;
        mean += each[k] / (double)DRAWS;
        *alignment = fmin(*alignment, w.alignment);
    }
    return mean;
}

static Verdict check_iterations(Answer *a, const Claim *c) {
    int each[DRAWS];
    double alignment, mean = iterations(a, c, each, &alignment);
    for (int k = 0; k < DRAWS; k++) say(a, "%s%d", k ? ", " : "", each[k]);
    return judge(fabs(mean / c->value - 1) <= 0.1);
}

static Verdict check_alignment(Answer *a, const Claim *c) {
    int each[DRAWS];
    double alignment;
    iterations(a, c, each, &alignment);
    say(a, "%.3f", alignment);
    return judge(alignment > 0);
}

/* Mean |grad F| over the last fifth of a run at a constant rate; its steps have length 100 lr / scale. */
static double floor_of(Answer *a, const char *method, double lr, double mu, double scale,
                       uint64_t seed) {
    int steps = 800 + (int)(0.8 * scale / lr);
    ProblemRun r = run_of("quadratic", method, lr, mu, steps);
    r.seed = seed;
    return watch_run(a, &r, (Watch){.tail = steps * 4 / 5}).floor;
}

/* Exponent of y ~ x^e, by least squares. */
static double exponent(const double *x, const double *y, size_t n) {
    double sx = 0, sy = 0, xx = 0, xy = 0;
    for (size_t i = 0; i < n; i++) {
        sx += log(x[i]) / (double)n;
        sy += log(y[i]) / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        xx += (log(x[i]) - sx) * (log(x[i]) - sx);
        xy += (log(x[i]) - sx) * (log(y[i]) - sy);
    }
    return xy / xx;
}

static const double floor_rates[] = {3e-4, 1e-3, 3e-3, 1e-2};

static Verdict check_floor(Answer *a, const Claim *c) {
    double rates[4], floors[4];
    for (size_t k = 0; k < 4; k++) {
        rates[k] = c->lr * floor_rates[k];
        floors[k] = floor_of(a, c->method, rates[k], c->mu, c->lr, 1);
    }
    double e = exponent(rates, floors, 4);
    say(a, "%.3f", e);
    return judge(fabs(e - c->value) <= 0.05);
}

static Verdict check_floor_ratio(Answer *a, const Claim *c) {
    double low = INFINITY, high = 0;
    (void)c;
    for (size_t k = 0; k < 4; k++) {
        double ratio = floor_of(a, "signsgd", floor_rates[k], 0, 1, 2) /
                       floor_of(a, "signmuon", floor_rates[k], 0, 1, 2);
        low = fmin(low, ratio);
        high = fmax(high, ratio);
    }
    say(a, "%.2f .. %.2f", low, high);
    return judge(low >= 1.74 - 0.1 && high <= 1.80 + 0.1);
}

/* The largest rate at which F ends, averaged over the last 50 of 400 steps, below where it began. */
static double edge_of(Answer *a, const char *method, double mu, double low, double high) {
    for (int k = 0; k < 14; k++) {
        ProblemRun r = run_of("quadratic", method, sqrt(low * high), mu, 400);
        Watch w = watch_run(a, &r, (Watch){.tail = 350});
        if (isfinite(w.last) && w.tail_loss < w.first)
            low = r.lr;
        else
            high = r.lr;
    }
    return low;
}

static Verdict check_edge(Answer *a, const Claim *c) {
    double edge = edge_of(a, c->method, c->mu, 1e-3, 10), length = c->lr; /* |S|_F */
    say(a, "%.2f", edge * length);
    return judge(fabs(edge * length / c->value - 1) <= 0.1);
}

static Verdict check_sgd_edge(Answer *a, const Claim *c) {
    ProblemData d;
    float *memory = floats(problem_floats(100, 100, 1)),
          *scratch = floats(problem_scratch(100, 100));
    problem_make(&d, problem_named("quadratic"), 100, 100, 1, 0, 1, memory, scratch);
    free(memory), free(scratch);
    double edge = edge_of(a, "sgd", 0, 0.1, 10);
    (void)c;
    say(a, "%.3f = %.3f * 2/L", edge, edge * d.largest / 2);
    return judge(edge * d.largest / 2 > 0.98 && edge * d.largest / 2 < 1.04);
}

/* ------------------------------------------------------------------------------------------------
 * bytes */

static Verdict check_bytes(Answer *a, const Claim *c) {
    enum { N = 4, STEPS = 10 };
    static const char *const method[3] = {"signmuon", "signmuon", "sgd"};
    double sent[3], share = 2.0 * (N - 1) / N * QUADRATIC, width[3] = {0.125, 1, 4};
    int right = 1;
    (void)c;
    for (int k = 0; k < 3; k++) {
        ProblemRun r = run_of("quadratic", method[k], 1e-3, 0, STEPS);
        r.workers = N;
        r.config.int8_wire = k == 1;
        sent[k] = watch_run(a, &r, (Watch){0}).sent / STEPS;
        right &= fabs(sent[k] / (share * width[k]) - 1) < 0.02;
    }
    say(a, "%.0f, %.0f, %.0f bytes per step: %.2fx and %.2fx", sent[0], sent[1], sent[2],
        sent[2] / sent[0], sent[2] / sent[1]);
    return judge(right);
}

/* The federated CNN2: two 5 x 5 convolutions, a hidden layer, and 2146 weights outside of matrices. */
static Verdict check_cnn2(Answer *a, const Claim *c) {
    static const SmTensor tensors[] = {
        {"conv1", 0, 64, 75, 1, SM_HIDDEN, 0, 0},
        {"conv2", 0, 128, 1600, 1, SM_HIDDEN, 0, 0},
        {"fc", 0, 120, 4608, 1, SM_HIDDEN, 0, 0},
        {"rest", 0, 1, 2146, 1, SM_VECTOR, 0, 0},
    };
    SmConfig vote = problem_config(sm_method("signmuon")),
             dense = problem_config(sm_method("muon"));
    double bits[2] = {0, 0}, weights = 0;
    (void)c;
    vote.aux = dense.aux = sm_method("adamw");
    for (size_t i = 0; i < 4; i++) {
        double n = (double)(tensors[i].rows * tensors[i].cols);
        weights += n;
        bits[0] += n * sm_bits_per_weight(&vote, &tensors[i], 11);
        bits[1] += n * sm_bits_per_weight(&dense, &tensors[i], 11);
    }
    say(a, "%.1fx; %.3f bits per weight up", bits[1] / bits[0], bits[0] / weights / 2 * 11 / 10);
    return judge(fabs(bits[1] / bits[0] - 29.4) < 0.1);
}

/* |mean of N polar factors|_F in units of N = 1, at noise as large as the signal; and |polar of mean|. */
static Verdict check_average_of_polars(Answer *a, const Claim *c) {
    enum { N = 11, ROWS = 120, COLS = 4608, SIZE = ROWS * COLS };
    float *signal = floats(SIZE), *g = floats(SIZE), *u = floats(SIZE), *mean = floats(SIZE),
          *average = floats(SIZE);
    const SmNewtonSchulz *ns = sm_newton_schulz("jordan5");
    double one = 0;
    (void)c;
    gaussian(signal, SIZE, 1);
    for (uint64_t j = 0; j < N; j++) {
        gaussian(g, SIZE, sm_key(9, j, 0));
        for (size_t i = 0; i < SIZE; i++) g[i] += signal[i];
        polar_of(u, g, ROWS, COLS, ns);
        for (size_t i = 0; i < SIZE; i++) mean[i] += g[i] / N, average[i] += u[i] / N;
        if (j == 0) one = sqrt(sm_sum_squares(u, SIZE));
    }
    polar_of(u, mean, ROWS, COLS, ns);
    double polars = sqrt(sm_sum_squares(average, SIZE)) / one,
           server = sqrt(sm_sum_squares(u, SIZE)) / one;
    free(signal), free(g), free(u), free(mean), free(average);
    say(a, "%.3f; polar of the mean %.3f", polars, server);
    return judge(fabs(polars - 0.559 / 0.769) < 0.03 && fabs(server - 1) < 0.01);
}
#endif
