/* bench/claims_lmo.h - claims about norms, compressors, error feedback and Dion. MIT. */
#ifndef CLAIMS_LMO_H
#define CLAIMS_LMO_H

#include "claims.h"
#include "ef21muon.h"

/* ------------------------------------------------------------------------------------------------
 * the LMO family */

/* Singular values that the polynomials make of [lo, 1], through 2 x 2 matrices of norm 1; lo is what the
 * polynomial sees, behind the safety factor. */
static void band_of(const SmNewtonSchulz *ns, double lo, double *min, double *max) {
    enum { POINTS = 4000 };
    float *scratch = floats(sm_lmo_scratch(2, 2));
    *min = INFINITY;
    *max = 0;
    lo *= ns->safety;
    for (int k = 0; k <= POINTS; k++) {
        double s = lo * pow(1 / lo, k / (double)POINTS);
        float x[4] = {(float)s, 0, 0, (float)sqrt(1 - s * s)};
        sm_polar(x, x, 2, 2, ns, scratch);
        *min = fmin(*min, (double)x[0]);
        *max = fmax(*max, (double)x[0]);
    }
    free(scratch);
}

/* Rows of the table of output bands, from 1e-3 and from 1e-2 on; the last is modded-nanogpt's. */
static Verdict check_bands(Answer *a, const Claim *c) {
    static const struct {
        const char *name;
        int steps;
        double band[4];
    } table[] = {{"jordan5", 5, {0.4705, 1.2024, 0.6818, 1.1344}},
                 {"jordan5", 7, {0.6818, 1.1344, 0.6818, 1.1344}},
                 {"polar-express5", 5, {0.8462, 1.1236, 0.8703, 1.1236}},
                 {"polar-express8", 6, {0.9944, 1.0012, 0.9974, 1.0012}},
                 {"polar-express8", 8, {1, 1, 1, 1}}};
    double worst = 0;
    (void)c;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        SmNewtonSchulz ns = with_steps(table[k].name, table[k].steps);
        double ours[4];
        ns.steps = table[k].steps;
        band_of(&ns, 1e-3, &ours[0], &ours[1]);
        band_of(&ns, 1e-2, &ours[2], &ours[3]);
        for (size_t i = 0; i < 4; i++) worst = fmax(worst, fabs(ours[i] - table[k].band[i]));
        say(a, "%s%.4f .. %.4f", k ? "; " : "", ours[0], ours[1]);
    }
    say(a, "; off the table by %.1e", worst);
    return judge(worst <= 1e-3);
}

/* The norm dual to a row of sm_norm, written down apart from its LMO; singular values are given. */
static double dual_norm(const char *norm, const float *g, size_t m, size_t n, const double *sigma,
                        size_t r) {
    double sum = 0, rows = (double)m, cols = (double)n;
    if (strcmp(norm, "rms-rms") == 0)
        return sqrt(rows / cols) * dual_norm("spectral", g, m, n, sigma, r);
    if (strcmp(norm, "sign-output") == 0) return dual_norm("sign", g, m, n, sigma, r) / cols;
    if (strcmp(norm, "rms") == 0) return sqrt(rows * cols * sm_sum_squares(g, m * n));
    if (strcmp(norm, "frobenius") == 0) return sqrt(sm_sum_squares(g, m * n));
    if (strcmp(norm, "nuclear") == 0) return sigma[0];
    for (size_t p = 0; p < r && strcmp(norm, "spectral") == 0; p++) sum += sigma[p];
    for (size_t i = 0; i < m * n && strcmp(norm, "sign") == 0; i++) sum += fabs((double)g[i]);
    for (size_t i = 0; i < m && strcmp(norm, "row") == 0; i++)
        sum += sqrt(sm_sum_squares(g + i * n, n));
    for (size_t j = 0; j < n && strcmp(norm, "column") == 0; j++) {
        double square = 0;
        for (size_t i = 0; i < m; i++) square += (double)g[i * n + j] * (double)g[i * n + j];
        sum += sqrt(square);
    }
    return sum;
}

static Verdict check_duals(Answer *a, const Claim *c) {
    enum { M = 12, N = 20 };
    float g[M * N], o[M * N], *scratch = floats(sm_lmo_scratch(M, N));
    double sigma[M], worst = 0, moved = 0;
    const SmNorm *norm;
    (void)c;
    for (size_t p = 0; p < M; p++) sigma[p] = pow(0.7, (double)p);
    known_matrix(g, o, M, N, M, sigma, 11);
    for (size_t k = 0; (norm = sm_norm_row(k)) != NULL; k++) {
        double dual = dual_norm(norm->name, g, M, N, sigma, M);
        float first[M * N];
        if (!(dual > 0)) {
            say(a, "nobody wrote down the dual of %s; ", norm->name);
            a->broken = 1;
            continue;
        }
        norm->lmo(first, g, M, N, sm_newton_schulz("exact"), NULL, scratch);
        worst = fmax(worst, fabs(problem_dot(g, first, (size_t)M * N) / dual - 1));
        for (int e = -20; e <= 20; e += 8) {
            for (size_t i = 0; i < M * N; i++) o[i] = (float)ldexp((double)g[i], e);
            norm->lmo(o, o, M, N, sm_newton_schulz("exact"), NULL, scratch);
            for (size_t i = 0; i < M * N; i++) moved = fmax(moved, fabs((double)(o[i] - first[i])));
        }
    }
    free(scratch);
    say(a, "off by at most %.1e; scaling moves an entry by at most %.1e", worst, moved);
    return judge_general(worst < 1e-4 && moved < 1e-6);
}

/* Do a whole run and one that goes on in a new optimizer, having lost a kind of state or not, end in
 * the same bits? */
static int resumes(Answer *a, const char *method, const char *lose) {
    enum { N = 3 };
    float *models[2];
    ProblemRun r = run_of("quadratic", method, 1e-3, 0.9, 20);
    char error[100];
    r.workers = N;
    r.lose = lose;
    noise_parse(&r.noise, "gaussian:0.1", error, sizeof error);
    for (int k = 0; k < 2; k++) {
        models[k] = floats(N * QUADRATIC);
        r.resume = k * 9;
        final_models(a, &r, models[k]);
    }
    int same = same_bits(models[0], models[1], N * QUADRATIC * sizeof *models[0]);
    free(models[0]), free(models[1]);
    return same;
}

static Verdict check_resume(Answer *a, const Claim *c) {
    const SmMethod *m;
    int same = 0, all = 0;
    int lost = resumes(a, c->method, "momentum");
    for (; (m = sm_method_row((size_t)all)) != NULL; all++) same += resumes(a, m->name, NULL);
    say(a, "%d of %d methods; without momentum %s", same, all,
        lost ? "the same path" : "another path");
    return judge_general(same == all && !lost);
}

static Verdict check_resume_one(Answer *a, const Claim *c) {
    int whole = resumes(a, c->method, NULL), lost = resumes(a, c->method, "tracker");
    say(a, "%s; without tracker %s", whole ? "same bits" : "differs",
        lost ? "the same path" : "another path");
    return judge_general(whole && !lost);
}

/* ---- Dion, rank r: M += G; P = orth(M Q); R = M^T P; M -= (1-mu) P R^T; Q = R by columns ---- */

enum { DION_M = 24, DION_N = 16, DION_R = 4, DION_RANKS = 4 };

/* columns of p (m x r) <- orthonormal, by Gram-Schmidt, twice */
static void orthonormalise(double *p, size_t m, size_t r) {
    for (size_t j = 0; j < r; j++) {
        double square = 0;
        for (size_t k = 0; k < 2 * j; k++) {
            double dot = 0;
            for (size_t i = 0; i < m; i++) dot += p[i * r + j] * p[i * r + k % j];
            for (size_t i = 0; i < m; i++) p[i * r + j] -= dot * p[i * r + k % j];
        }
        for (size_t i = 0; i < m; i++) square += p[i * r + j] * p[i * r + j];
        for (size_t i = 0; i < m; i++) p[i * r + j] /= sqrt(square);
    }
}

/* One step of `ranks` ranks whose momenta are m[j]; only M Q and M^T P are averaged over ranks. */
static void dion_step(double *w, double (*m)[DION_M * DION_N], double *q,
                      const double (*g)[DION_M * DION_N], int ranks, double lr, double mu) {
    double p[DION_M * DION_R] = {0}, r[DION_N * DION_R] = {0};
    for (int j = 0; j < ranks; j++)
        for (size_t i = 0; i < DION_M * DION_N; i++) {
            m[j][i] += g[j][i];
            for (size_t k = 0; k < DION_R; k++)
                p[i / DION_N * DION_R + k] += m[j][i] * q[i % DION_N * DION_R + k] / ranks;
        }
    orthonormalise(p, DION_M, DION_R);
    for (int j = 0; j < ranks; j++)
        for (size_t i = 0; i < DION_M * DION_N; i++)
            for (size_t k = 0; k < DION_R; k++)
                r[i % DION_N * DION_R + k] += m[j][i] * p[i / DION_N * DION_R + k] / ranks;
    for (size_t i = 0; i < DION_M * DION_N; i++)
        for (size_t k = 0; k < DION_R; k++)
            for (int j = 0; j < ranks; j++)
                m[j][i] -= (1 - mu) * p[i / DION_N * DION_R + k] * r[i % DION_N * DION_R + k];
    for (size_t k = 0; k < DION_R; k++) {
        double square = 0;
        for (size_t i = 0; i < DION_N; i++) square += r[i * DION_R + k] * r[i * DION_R + k];
        for (size_t i = 0; i < DION_N; i++)
            q[i * DION_R + k] = r[i * DION_R + k] / (sqrt(square) + 1e-8);
    }
    for (size_t i = 0; i < DION_M * DION_N; i++)
        for (size_t k = 0; k < DION_R; k++)
            w[i] -= lr * p[i / DION_N * DION_R + k] * q[i % DION_N * DION_R + k];
}

static Verdict check_dion(Answer *a, const Claim *c) {
    static double m[DION_RANKS][DION_M * DION_N], alone[1][DION_M * DION_N];
    static double g[DION_RANKS][DION_M * DION_N], mean[1][DION_M * DION_N];
    double w[2][DION_M * DION_N] = {{0}}, q[2][DION_N * DION_R], worst = 0, apart = 0;
    (void)c;
    memset(m, 0, sizeof m);
    memset(alone, 0, sizeof alone);
    for (size_t i = 0; i < DION_N * DION_R; i++) q[0][i] = q[1][i] = problem_normal(1, i);
    for (uint64_t t = 0; t < 60; t++) {
        memset(mean, 0, sizeof mean);
        for (size_t j = 0; j < DION_RANKS; j++)
            for (size_t i = 0; i < DION_M * DION_N; i++) {
                g[j][i] = problem_normal(2, i) + problem_normal(sm_key(3, j, t), i);
                mean[0][i] += g[j][i] / DION_RANKS;
            }
        dion_step(w[0], m, q[0], (const double(*)[DION_M * DION_N]) g, DION_RANKS, 0.01, 0.95);
        dion_step(w[1], alone, q[1], (const double(*)[DION_M * DION_N]) mean, 1, 0.01, 0.95);
    }
    for (size_t i = 0; i < DION_M * DION_N; i++) {
        worst = fmax(worst, fabs(w[0][i] - w[1][i]));
        apart = fmax(apart, fabs(m[0][i] - m[1][i]));
    }
    say(a, "weights differ by %.1e after 60 steps of 4 ranks; momenta by %.1f", worst, apart);
    return judge_general(worst < 1e-6 && apart > 1);
}

/* ------------------------------------------------------------------------------------------------
 * compressors and error feedback */

static const char *const compressors[] = {"identity",    "topk:10%",    "topk:10%+natural",
                                          "rankk:20%",   "natural",     "natural:stochastic",
                                          "sign",        "dropout:0.3", "damping:0.5",
                                          "coltopk:25%", "svdtopk:20%", NULL};

enum { EF_ROWS = 24, EF_COLS = 40, EF_SIZE = EF_ROWS * EF_COLS };

/* A compressor, with room for what it needs on one shape. */
typedef struct Packet {
    EfLink link;
    size_t rows, cols;
    float *warm, *scratch;
    unsigned char *message;
} Packet;

static Packet packet_open(const char *text, size_t rows, size_t cols) {
    Packet p = {.rows = rows, .cols = cols};
    char error[300] = "";
    if (ef_parse(&p.link, text, error, sizeof error)) {
        fprintf(stderr, "claims: %s\n", error);
        exit(1);
    }
    p.warm = floats(ef_warm(&p.link, rows, cols) + 1);
    p.scratch = floats(ef_scratch(&p.link, rows, cols) + 16);
    p.message = problem_alloc(8 * rows * cols + 64);
    return p;
}

static void packet_close(Packet *p) { free(p->warm), free(p->scratch), free(p->message); }

static void packet_compress(Packet *p, float *out, const float *x, uint64_t key) {
    ef_compress(p->message, out, x, p->rows, p->cols, &p->link, sm_key(1, 1, key),
                sm_key(1, 0, key), p->warm, p->scratch);
}

/* x <- Gaussian, sparse, one-hot, constant, of geometric magnitudes, of rank one */
static void tensor_kind(float *x, int kind) {
    for (size_t i = 0; i < EF_SIZE; i++) {
        double g = problem_normal(3, i), h = problem_uniform(4, i);
        double row = problem_normal(5, i / EF_COLS), col = problem_normal(6, i % EF_COLS);
        const double value[] = {
            g, h < 0.05 ? g : 0, i == 77, 0.3, pow(0.97, (double)i) * (g > 0 ? 1 : -1), row * col};
        x[i] = (float)value[kind];
    }
}

/* Mean of |C(x) - x|^2 / |x|^2 over as many keys, and its standard error. */
static double compression_error(Packet *p, const float *x, int keys, double *standard_error) {
    float out[EF_SIZE];
    double sum = 0, square = 0, norm = sm_sum_squares(x, EF_SIZE);
    for (int k = 0; k < keys; k++) {
        packet_compress(p, out, x, (uint64_t)k);
        for (size_t i = 0; i < EF_SIZE; i++) out[i] -= x[i];
        double e = sm_sum_squares(out, EF_SIZE) / norm;
        sum += e;
        square += e * e;
    }
    double mean = sum / keys;
    *standard_error = keys > 1 ? sqrt(fmax(0, square / keys - mean * mean) / keys) : 0;
    return mean;
}

static Verdict check_contraction(Answer *a, const Claim *c) {
    int violations = 0, cases = 0;
    double tightest = INFINITY;
    (void)c;
    for (const char *const *text = compressors; *text; text++)
        for (int kind = 0; kind < 6; kind++, cases++) {
            Packet p = packet_open(*text, EF_ROWS, EF_COLS);
            float x[EF_SIZE];
            double deviation;
            int random = p.link.stochastic || p.link.row->coin;
            tensor_kind(x, kind);
            double error = compression_error(&p, x, random ? 400 : 1, &deviation);
            double slack = 1 - ef_contraction(&p.link, EF_ROWS, EF_COLS) - error + 4 * deviation;
            violations += slack < -1e-6;
            tightest = fmin(tightest, slack);
            packet_close(&p);
        }
    say(a, "%d violations in %d cases; least slack %.1e", violations, cases, tightest);
    return judge_general(violations == 0);
}

/* Stochastic natural compression: the mean of C(x) and the variance of one draw. */
static Verdict check_natural(Answer *a, const Claim *c) {
    enum { KEYS = 2000 };
    Packet p = packet_open("natural:stochastic", EF_ROWS, EF_COLS);
    float x[EF_SIZE], out[EF_SIZE];
    static double sum[EF_SIZE], square[EF_SIZE];
    double worst = 0, variance = 0;
    (void)c;
    tensor_kind(x, 0);
    memset(sum, 0, sizeof sum), memset(square, 0, sizeof square);
    for (uint64_t k = 0; k < KEYS; k++) {
        packet_compress(&p, out, x, k);
        for (size_t i = 0; i < EF_SIZE; i++) {
            double gap = (double)out[i] - (double)x[i];
            sum[i] += gap / KEYS;
            square[i] += gap * gap / KEYS;
        }
    }
    for (size_t i = 0; i < EF_SIZE; i++) {
        worst = fmax(worst, fabs(sum[i]) / sqrt((square[i] + 1e-30) / KEYS));
        variance += square[i];
    }
    packet_close(&p);
    say(a, "bias at most %.1f standard errors of %d entries; variance %.4f of norm squared", worst,
        EF_SIZE, variance / sm_sum_squares(x, EF_SIZE));
    return judge_general(worst < 5 && variance <= sm_sum_squares(x, EF_SIZE) / 8);
}

/* |C(Y) - Y|^2 = |Y|^2 - |Y|_1^2 / d of the scaled sign, and how much it keeps of a Gaussian. */
static Verdict check_scaled_sign(Answer *a, const Claim *c) {
    enum { BIG = 400 };
    double worst = 0, deviation, kept;
    (void)c;
    for (int kind = 0; kind < 6; kind++) {
        Packet p = packet_open("sign", EF_ROWS, EF_COLS);
        float x[EF_SIZE];
        double l1 = 0;
        tensor_kind(x, kind);
        for (size_t i = 0; i < EF_SIZE; i++) l1 += fabs((double)x[i]);
        double formula = 1 - l1 * l1 / EF_SIZE / sm_sum_squares(x, EF_SIZE);
        worst = fmax(worst, fabs(compression_error(&p, x, 1, &deviation) - formula));
        packet_close(&p);
    }
    Packet p = packet_open("sign", BIG, BIG);
    float *x = floats((size_t)BIG * BIG), *out = floats((size_t)BIG * BIG);
    gaussian(x, (size_t)BIG * BIG, 9);
    packet_compress(&p, out, x, 0);
    kept = sm_sum_squares(out, (size_t)BIG * BIG) / sm_sum_squares(x, (size_t)BIG * BIG);
    packet_close(&p);
    free(x), free(out);
    say(a, "off by at most %.1e; keeps %.4f of a Gaussian", worst, kept);
    return judge_general(worst < 1e-6 && fabs(kept - 2 / 3.141592653589793) < 0.005);
}

/* EF21 on a fixed target: steps in which the squared gap shrinks by less than alpha; *gap is the last.
 * The floor is where fp32 ends. */
static int slow_steps(const char *text, int kind, int steps, double *gap) {
    Packet p = packet_open(text, EF_ROWS, EF_COLS);
    float x[EF_SIZE], g[EF_SIZE] = {0}, d[EF_SIZE];
    double alpha = ef_contraction(&p.link, EF_ROWS, EF_COLS);
    int slow = 0;
    tensor_kind(x, kind);
    *gap = sm_sum_squares(x, EF_SIZE);
    double floor = 1e-10 * *gap;
    for (uint64_t k = 0; k < (uint64_t)steps; k++) {
        double before = *gap;
        ef_send(p.message, g, x, EF_ROWS, EF_COLS, &p.link, k, k, p.warm, p.scratch);
        for (size_t i = 0; i < EF_SIZE; i++) d[i] = g[i] - x[i];
        *gap = sm_sum_squares(d, EF_SIZE);
        slow += *gap > (1 - alpha + 1e-5) * before + floor;
    }
    packet_close(&p);
    return slow;
}

static Verdict check_fixed_target(Answer *a, const Claim *c) {
    enum { STEPS = 40 };
    int violations = 0, cases = 0;
    double identity = 0, gap;
    (void)c;
    for (const char *const *text = compressors; *text; text++) {
        EfLink link = problem_link(*text);
        if (link.stochastic || link.row->coin) continue; /* these shrink it on average only */
        for (int kind = 0; kind < 6; kind++, cases += STEPS) {
            violations += slow_steps(*text, kind, STEPS, &gap);
            if (link.row->replaces) identity += gap;
        }
    }
    say(a, "%d violations in %d steps; identity leaves %g", violations, cases, identity);
    return judge_general(violations == 0 && identity == 0);
}

/* Three workers over links, with the servers' X, W and G: what must stay equal. */
static Verdict check_invariants(Answer *a, const Claim *c) {
    enum { N = 3, STEPS = 60 };
    Packet up[N], down = packet_open("natural", EF_ROWS, EF_COLS);
    static unsigned char message[N][8 * EF_SIZE];
    static float g[EF_SIZE], m[EF_SIZE], x[EF_SIZE], w[EF_SIZE], model[EF_SIZE],
        estimate[N][EF_SIZE];
    double worst = 0, largest = 0;
    int equal = 1, failed = 0;
    (void)c;
    for (size_t j = 0; j < N; j++) up[j] = packet_open("topk:10%+natural", EF_ROWS, EF_COLS);
    size_t bytes = ef_bytes(&up[0].link, EF_ROWS, EF_COLS, 0),
           model_bytes = ef_bytes(&down.link, EF_ROWS, EF_COLS, 0);
    for (uint64_t k = 0; k < STEPS; k++) {
        for (size_t i = 0; i < EF_SIZE; i++) x[i] -= 0.05f * g[i];
        ef_send(down.message, w, x, EF_ROWS, EF_COLS, &down.link, k, 0, down.warm, down.scratch);
        failed |= ef_receive(model, down.message, model_bytes, EF_ROWS, EF_COLS, &down.link,
                             down.scratch);
        equal &= same_bits(model, w, sizeof w);
        for (size_t j = 0; j < N; j++) {
            gaussian(m, EF_SIZE, sm_key(2, j, k / 4));
            for (size_t i = 0; i < EF_SIZE; i++) m[i] += model[i];
            ef_send(message[j], estimate[j], m, EF_ROWS, EF_COLS, &up[j].link, k, 0, up[j].warm,
                    up[j].scratch);
        }
        failed |= ef_aggregate(g, message, sizeof *message, bytes, N, EF_ROWS, EF_COLS, &up[0].link,
                               up[0].scratch);
        for (size_t i = 0; i < EF_SIZE; i++) {
            double mean = 0;
            for (size_t j = 0; j < N; j++) mean += (double)estimate[j][i] / N;
            worst = fmax(worst, fabs((double)g[i] - mean));
            largest = fmax(largest, fabs(mean));
        }
    }
    for (size_t j = 0; j < N; j++) packet_close(&up[j]);
    packet_close(&down);
    a->broken |= failed;
    say(a, "G off the mean by at most %.1e of its largest entry; models %s", worst / largest,
        equal ? "equal" : "differ");
    return judge_general(worst < 1e-5 * largest && equal);
}

/* With identity on both links EF21-Muon is Muon. */
static Verdict check_identity(Answer *a, const Claim *c) {
    enum { N = 4 };
    float *ef = floats(N * QUADRATIC), *muon = floats(N * QUADRATIC);
    int same[2];
    (void)c;
    for (int k = 0; k < 2; k++) {
        ProblemRun r[2] = {run_of("quadratic", "ef21-muon", 5e-3, 0.9, 60),
                           run_of("quadratic", "muon", 5e-3, 0.9, 60)};
        r[0].up = r[0].down = problem_link("identity");
        for (int j = 0; j < 2; j++) {
            r[j].workers = k ? N : 1;
            r[j].parameter = 0.1;
            r[j].config.first_gradient = 0;
            final_models(a, &r[j], j ? muon : ef);
        }
        same[k] = same_bits(ef, muon, (k ? (size_t)N : 1) * QUADRATIC * sizeof *ef);
    }
    free(ef), free(muon);
    say(a, "1 worker: %s; 4 different ones: %s", same[0] ? "same bits" : "differs",
        same[1] ? "same bits" : "differs");
    return judge_general(same[0] && same[1]);
}

/* The exact model X against the model W that workers have, after a one-bit reply: the last fifth. */
static Verdict check_sign_downlink(Answer *a, const Claim *c) {
    ProblemRun r = run_of("quadratic", "ef21-muonsign", c->lr, c->mu, 1000);
    Watch w = watch_run(a, &r, (Watch){.tail = 800});
    say(a, "F(W) = %.1e, F(X) = %.1e; X and W %.0f %% of X apart", w.tail_loss, w.tail_exact,
        100 * w.tail_apart);
    return judge(w.tail_exact > 2 * w.tail_loss);
}

/* Constrained Scion stays within the radius times what Newton-Schulz overshoots; Scion need not. The
 * gradients are constant, of many condition numbers, so that the boundary is reached. */
static Verdict check_ball(Answer *a, const Claim *c) {
    static const char *const method[] = {"scion-constrained", "scion"};
    static const double sigmas[] = {0, 0.3, 1, 3, 10, 30, 100, 1000};
    double most[2] = {0, 0}, least, overshoot, radius = 2;
    (void)c;
    band_of(sm_newton_schulz("jordan5"), 1e-3, &least, &overshoot);
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < sizeof sigmas / sizeof *sigmas; i++)
            for (int steps = 1; steps <= 512; steps *= 8) {
                float x[16];
                ProblemRun r = run_of("linear", method[k], 0.05, 0.5, steps);
                r.config.radius[SM_HIDDEN] = radius;
                r.parameter = sigmas[i];
                final_models(a, &r, x);
                most[k] = fmax(most[k], spectral_norm(x, 4, 4) / radius);
            }
    say(a, "constrained %.3f radii (overshoot %.3f), unconstrained %.1f", most[0], overshoot,
        most[1]);
    return judge_general(most[0] <= overshoot * 1.0001 && most[0] > 0.9 && most[1] > overshoot);
}

/* EF21-Muon on workers that differ, line by line; without feedback every message is C(M_j) itself.
 * Returns the last F. */
static double feedback_run(FILE *csv, const char *text, int feedback, int steps) {
    enum { N = 5, M = 64, K = 48, SIZE = M * K };
    ProblemData d;
    float *memory = floats(problem_floats(M, K, N)),
          *scratch = floats(problem_scratch(M, K) + sm_lmo_scratch(M, K));
    float *x = floats(SIZE), *g = floats(SIZE), *u = floats(SIZE), *m = floats(N * SIZE),
          *estimate = floats(N * SIZE);
    Packet link[N];
    unsigned char *messages = problem_alloc((size_t)N * 8 * SIZE);
    problem_make(&d, problem_named("quadratic"), M, K, N, 0.1, 1, memory, scratch);
    memcpy(x, d.start, SIZE * sizeof *x);
    for (size_t j = 0; j < N; j++) link[j] = packet_open(text, M, K);
    size_t bytes = ef_bytes(&link[0].link, M, K, 0);
    double loss = NAN;
    for (int t = 0; t <= steps; t++) {
        loss = d.problem->gradient(u, &d, x, -1, (uint64_t)t, scratch);
        if (csv && t % 5 == 0) fprintf(csv, "%s,%d,%d,%.6g\n", text, feedback, t, loss);
        if (!feedback)
            memset(estimate, 0, N * SIZE * sizeof *estimate), memset(g, 0, SIZE * sizeof *g);
        for (size_t j = 0; j < N; j++) {
            d.problem->gradient(u, &d, x, (int)j, (uint64_t)t, scratch);
            sm_momentum(u, m + j * SIZE, u, SIZE, 0.8f, 0);
            ef_send(messages + j * 8 * SIZE, estimate + j * SIZE, u, M, K, &link[j].link,
                    sm_key(1, j, (uint64_t)t), 0, link[j].warm, link[j].scratch);
        }
        ef_aggregate(g, messages, (size_t)8 * SIZE, bytes, N, M, K, &link[0].link, link[0].scratch);
        sm_polar(u, g, M, K, sm_newton_schulz("jordan5"), scratch);
        sm_step_dense(x, u, SIZE, 0.01f * (1 - (float)t / (float)steps), 1);
    }
    for (size_t j = 0; j < N; j++) packet_close(&link[j]);
    free(memory), free(scratch), free(x), free(g), free(u), free(m), free(estimate), free(messages);
    return loss;
}

static Verdict check_feedback(Answer *a, const Claim *c) {
    double with = feedback_run(NULL, c->method, 1, 600),
           without = feedback_run(NULL, c->method, 0, 600);
    say(a, "F = %.1e with, %.1e without", with, without);
    return judge(c->value > 0 ? with * c->value < without : without < 2 * with);
}

/* ---- bytes on the tensors of a 124M GPT: embedding, 12 x (q, k, v, o, fc, proj) ---- */

static const size_t gpt_shape[3][3] = {{50304, 768, 1}, {768, 768, 48}, {3072, 768, 24}};

/* Bits of a step's messages in units of fp32, by the paper's count or by ours. */
static double model_cost(const char *text, int paper) {
    EfLink link;
    char error[200];
    double bits = 0, weights = 0;
    if (ef_parse(&link, text, error, sizeof error)) return NAN;
    for (size_t k = 0; k < 3; k++) {
        size_t m = gpt_shape[k][0], n = gpt_shape[k][1];
        double count = (double)gpt_shape[k][2];
        bits += count * (paper ? ef_paper_bits(&link, m, n) : ef_bits(&link, m, n));
        weights += count * (double)(m * n);
    }
    return bits / weights / 32;
}

static Verdict check_cost(Answer *a, const Claim *c) {
    static const struct {
        const char *text;
        double paper, ours; /* 0: no figure */
    } table[] = {{"identity", 1, 1},
                 {"natural", 0.5, 0.2812},
                 {"rankk:20%", 0.2687, 0},
                 {"rankk:15%", 0.2019, 0},
                 {"rankk:15%+natural", 0.1010, 0.0568},
                 {"rankk:10%", 0.1335, 0},
                 {"rankk:10%+natural", 0.0667, 0.0375},
                 {"rankk:5%", 0.0667, 0},
                 {"topk:20%", 0.3625, 0},
                 {"topk:15%", 0.2719, 0},
                 {"topk:15%+natural", 0.1969, 0.0734},
                 {"topk:10%", 0.1812, 0},
                 {"topk:10%+natural", 0.1312, 0.0594},
                 {"topk:5%", 0.0906, 0},
                 {"sign", 0, 0.0313}};
    int paper = strcmp(c->method, "paper") == 0;
    double worst = 0;
    size_t entries = 0;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        double said = paper ? table[k].paper : table[k].ours,
               cost = model_cost(table[k].text, paper);
        if (!(said > 0)) continue;
        worst = fmax(worst, fabs(cost - said));
        say(a, "%s%s %.4f", entries++ ? ", " : "", table[k].text, cost);
    }
    return judge(worst <= 1.5e-4);
}
#endif
