/* lmo.c - claims about norms, compressors and error feedback. MIT. */
#include "common.h"
#include "../../ef21muon.h"

/* ------------------------------------------------------------------------------------------------
 * norms and their LMOs */

/* Output bands from 1e-3 and from 1e-2 on; the last row is modded-nanogpt's. */
CHECK(check_bands) {
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
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        SmNewtonSchulz ns = with_steps(table[k].name, table[k].steps);
        double ours[4];
        band_of(&ns, 1e-3, &ours[0], &ours[1]);
        band_of(&ns, 1e-2, &ours[2], &ours[3]);
        for (size_t i = 0; i < 4; i++) worst = fmax(worst, fabs(ours[i] - table[k].band[i]));
        say(a, "%s%.4f .. %.4f", k ? "; " : "", ours[0], ours[1]);
    }
    say(a, "; off the table by %.1e", worst);
    return judge(worst <= 1e-3);
}

/* The dual of a norm, written down apart from its LMO; sigma: g's r singular values. */
static double dual_norm(const char *norm, const float *g, size_t m, size_t n, const double *sigma,
                        size_t r) {
    double rows = (double)m, cols = (double)n, nuclear = 0, l1 = 0, by_rows = 0, by_columns = 0;
    for (size_t p = 0; p < r; p++) nuclear += sigma[p];
    for (size_t i = 0; i < m * n; i++) l1 += fabs((double)g[i]);
    for (size_t i = 0; i < m; i++) by_rows += norm_of(g + i * n, n);
    for (size_t j = 0; j < n; j++) {
        double square = 0;
        for (size_t i = 0; i < m; i++) square += (double)g[i * n + j] * (double)g[i * n + j];
        by_columns += sqrt(square);
    }
    const struct {
        const char *name;
        double dual;
    } table[] = {{"spectral", nuclear},
                 {"rms-rms", sqrt(rows / cols) * nuclear},
                 {"nuclear", sigma[0]},
                 {"sign", l1},
                 {"sign-output", l1 / cols},
                 {"frobenius", norm_of(g, m * n)},
                 {"rms", sqrt(rows * cols) * norm_of(g, m * n)},
                 {"row", by_rows},
                 {"column", by_columns}};
    for (size_t k = 0; k < sizeof table / sizeof *table; k++)
        if (strcmp(norm, table[k].name) == 0) return table[k].dual;
    return 0;
}

CHECK(check_duals) {
    enum { M = 12, N = 20 };
    float g[M * N], o[M * N], first[M * N], *scratch = numbers(sm_lmo_scratch(M, N));
    double sigma[M], worst = 0, moved = 0;
    const SmNewtonSchulz *ns = sm_newton_schulz("polar-express8"); /* exact on this matrix */
    const SmNorm *norm;
    for (size_t p = 0; p < M; p++) sigma[p] = pow(0.7, (double)p);
    known_matrix(g, o, M, N, M, sigma, 11);
    for (size_t k = 0; (norm = sm_norm_row(k)) != NULL; k++) {
        double dual = dual_norm(norm->name, g, M, N, sigma, M);
        if (!(dual > 0)) {
            say(a, "the dual of %s is not written down; ", norm->name);
            a->broken = 1;
            continue;
        }
        norm->lmo(first, g, M, N, ns, NULL, scratch);
        worst = fmax(worst, fabs(problem_dot(g, first, (size_t)M * N) / dual - 1));
        for (int e = -20; e <= 20; e += 8) {
            for (size_t i = 0; i < M * N; i++) o[i] = (float)ldexp((double)g[i], e);
            norm->lmo(o, o, M, N, ns, NULL, scratch);
            for (size_t i = 0; i < M * N; i++) moved = fmax(moved, fabs((double)(o[i] - first[i])));
        }
    }
    free(scratch);
    say(a, "off by at most %.1e; scaling moves an entry by at most %.1e", worst, moved);
    return judge_general(worst < 1e-4 && moved < 1e-6);
}

/* Constant gradients of many condition numbers, so that the boundary is reached. */
CHECK(check_ball) {
    static const char *const method[] = {"scion-constrained", "scion"};
    static const double sigmas[] = {0, 0.3, 1, 3, 10, 30, 100, 1000};
    double most[2] = {0, 0}, least, overshoot, radius = 2;
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

/* ------------------------------------------------------------------------------------------------
 * compressors */

static const char *const compressors[] = {
    "identity", "topk:10%",    "topk:10%+natural", "rankk:20%",   "natural", "natural:stochastic",
    "sign",     "dropout:0.3", "damping:0.5",      "coltopk:25%", NULL};

enum { EF_ROWS = 24, EF_COLS = 40, EF_SIZE = EF_ROWS * EF_COLS, EF_KINDS = 6 };

/* A compressor, with room for what it needs on one shape. */
typedef struct Packet {
    EfLink link;
    size_t rows, cols;
    float *warm, *scratch;
    unsigned char *message;
} Packet;

static Packet packet_open(const char *text, size_t rows, size_t cols) {
    Packet p = {.rows = rows, .cols = cols};
    char error[512] = "";
    if (ef_parse(&p.link, text, error, sizeof error)) {
        fprintf(stderr, "claims: %s\n", error);
        exit(1);
    }
    p.warm = numbers(ef_warm(&p.link, rows, cols));
    p.scratch = numbers(ef_scratch(&p.link, rows, cols));
    p.message = problem_alloc(ef_most_bytes(&p.link, rows, cols) + 64);
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
        double g = problem_normal(3, i), h = base_uniform(4, i);
        double row = problem_normal(5, i / EF_COLS), col = problem_normal(6, i % EF_COLS);
        const double value[EF_KINDS] = {
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

CHECK(check_contraction) {
    int violations = 0, cases = 0;
    double tightest = INFINITY, deviation;
    for (const char *const *text = compressors; *text; text++)
        for (int kind = 0; kind < EF_KINDS; kind++, cases++) {
            Packet p = packet_open(*text, EF_ROWS, EF_COLS);
            float x[EF_SIZE];
            tensor_kind(x, kind);
            double error = compression_error(
                &p, x, p.link.stochastic || p.link.row->dropout ? 400 : 1, &deviation);
            double slack = 1 - ef_contraction(&p.link, EF_ROWS, EF_COLS) - error + 4 * deviation;
            violations += slack < -1e-6;
            tightest = fmin(tightest, slack);
            packet_close(&p);
        }
    say(a, "%d violations in %d cases; least slack %.1e", violations, cases, tightest);
    return judge_general(violations == 0);
}

/* Stochastic natural compression: the mean of C(x), and the variance of one draw. */
CHECK(check_natural) {
    enum { KEYS = 2000 };
    Packet p = packet_open("natural:stochastic", EF_ROWS, EF_COLS);
    float x[EF_SIZE], out[EF_SIZE];
    static double sum[EF_SIZE], square[EF_SIZE];
    double worst = 0, variance = 0;
    tensor_kind(x, 0);
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

/* |C(Y) - Y|^2 = |Y|^2 - |Y|_1^2 / d, and what is kept of a Gaussian. */
CHECK(check_scaled_sign) {
    enum { BIG = 400, ALL = BIG * BIG };
    double worst = 0, deviation;
    for (int kind = 0; kind < EF_KINDS; kind++) {
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
    float *x = numbers(ALL), *out = numbers(ALL);
    gaussian(x, ALL, 9);
    packet_compress(&p, out, x, 0);
    double kept = sm_sum_squares(out, ALL) / sm_sum_squares(x, ALL);
    packet_close(&p);
    free(x), free(out);
    say(a, "off by at most %.1e; keeps %.4f of a Gaussian", worst, kept);
    return judge_general(worst < 1e-6 && fabs(kept - 2 / 3.141592653589793) < 0.005);
}

/* ------------------------------------------------------------------------------------------------
 * error feedback */

/* Steps to a fixed target in which the squared gap shrinks by less than alpha. Compressors that
 * shrink it on average only are left out. Below 1e-10 of the first gap fp32 ends. */
CHECK(check_fixed_target) {
    enum { STEPS = 40 };
    int violations = 0, cases = 0;
    double identity = 0;
    for (const char *const *text = compressors; *text; text++)
        for (int kind = 0; kind < EF_KINDS; kind++) {
            Packet p = packet_open(*text, EF_ROWS, EF_COLS);
            float x[EF_SIZE], g[EF_SIZE] = {0}, d[EF_SIZE];
            tensor_kind(x, kind);
            double gap = sm_sum_squares(x, EF_SIZE), floor = 1e-10 * gap;
            double left = 1 - ef_contraction(&p.link, EF_ROWS, EF_COLS) + 1e-5;
            int steps = p.link.stochastic || p.link.row->dropout ? 0 : STEPS;
            for (uint64_t k = 0; k < (uint64_t)steps; k++) {
                double before = gap;
                ef_send(p.message, g, x, EF_ROWS, EF_COLS, &p.link, k, k, p.warm, p.scratch);
                for (size_t i = 0; i < EF_SIZE; i++) d[i] = g[i] - x[i];
                gap = sm_sum_squares(d, EF_SIZE);
                violations += gap > left * before + floor;
            }
            cases += steps;
            if (p.link.row->replaces && steps) identity += gap;
            packet_close(&p);
        }
    say(a, "%d violations in %d steps; identity leaves %g", violations, cases, identity);
    return judge_general(violations == 0 && identity == 0);
}

/* Three workers over links, with the server's X, W and G: what must stay equal. */
CHECK(check_invariants) {
    enum { WORKERS = 3, STEPS = 60 };
    Packet up[WORKERS], down = packet_open("natural", EF_ROWS, EF_COLS);
    static unsigned char message[WORKERS][8 * EF_SIZE];
    static float g[EF_SIZE], m[EF_SIZE], x[EF_SIZE], w[EF_SIZE], model[EF_SIZE],
        estimate[WORKERS][EF_SIZE];
    double worst = 0, largest = 0;
    int equal = 1;
    for (size_t j = 0; j < WORKERS; j++) up[j] = packet_open("topk:10%+natural", EF_ROWS, EF_COLS);
    size_t bytes = ef_bytes(&up[0].link, EF_ROWS, EF_COLS, 0),
           model_bytes = ef_bytes(&down.link, EF_ROWS, EF_COLS, 0);
    for (uint64_t k = 0; k < STEPS; k++) {
        for (size_t i = 0; i < EF_SIZE; i++) x[i] -= 0.05f * g[i];
        ef_send(down.message, w, x, EF_ROWS, EF_COLS, &down.link, k, 0, down.warm, down.scratch);
        a->broken |= ef_receive(model, down.message, model_bytes, EF_ROWS, EF_COLS, &down.link,
                                down.scratch) != 0;
        equal &= memcmp(model, w, sizeof w) == 0;
        for (size_t j = 0; j < WORKERS; j++) {
            gaussian(m, EF_SIZE, sm_key(2, j, k / 4));
            for (size_t i = 0; i < EF_SIZE; i++) m[i] += model[i];
            ef_send(message[j], estimate[j], m, EF_ROWS, EF_COLS, &up[j].link, k, 0, up[j].warm,
                    up[j].scratch);
        }
        a->broken |= ef_aggregate(g, message, sizeof *message, bytes, WORKERS, EF_ROWS, EF_COLS,
                                  &up[0].link, up[0].scratch) != 0;
        for (size_t i = 0; i < EF_SIZE; i++) {
            double mean = 0;
            for (size_t j = 0; j < WORKERS; j++) mean += (double)estimate[j][i] / WORKERS;
            worst = fmax(worst, fabs((double)g[i] - mean));
            largest = fmax(largest, fabs(mean));
        }
    }
    for (size_t j = 0; j < WORKERS; j++) packet_close(&up[j]);
    packet_close(&down);
    say(a, "G off the mean by at most %.1e of its largest entry; models %s", worst / largest,
        equal ? "equal" : "differ");
    return judge_general(worst < 1e-5 * largest && equal);
}

CHECK(check_identity) {
    int same[2];
    for (int k = 0; k < 2; k++) {
        ProblemRun muon = run_of("quadratic", "muon", 5e-3, 0.9, 60),
                   ef21 = run_of("quadratic", "ef21-muon", 5e-3, 0.9, 60);
        ef21.config.up = ef21.config.down = "identity";
        ef21.config.first_gradient = 0;
        muon.workers = ef21.workers = k ? 4 : 1;
        muon.parameter = ef21.parameter = 0.1;
        same[k] = runs_differ(a, &muon, &ef21) == 0;
    }
    say(a, "1 worker: %s; 4 different ones: %s", same[0] ? "same bits" : "differs",
        same[1] ? "same bits" : "differs");
    return judge_general(same[0] && same[1]);
}

/* The server's X against the workers' W under a one-bit downlink. */
CHECK(check_sign_downlink) {
    ProblemRun r = run_of("quadratic", "ef21-muonsign", c->lr, c->mu, 1000);
    Watch w = watch_run(a, &r, (Watch){.tail = 800});
    say(a, "F(W) = %.1e, F(X) = %.1e; X and W %.0f %% of X apart", w.tail_loss, w.tail_exact,
        100 * w.tail_apart);
    return judge(w.tail_exact > 2 * w.tail_loss);
}

/* Line by line; without feedback every message is C(M_j) itself. */
double feedback_run(FILE *csv, const char *text, int feedback, int steps) {
    enum { WORKERS = 5, M = 64, N = 48, ALL = M * N };
    ProblemData d;
    float *scratch = numbers(problem_scratch(M, N) + sm_lmo_scratch(M, N));
    float *x = numbers(ALL), *g = numbers(ALL), *u = numbers(ALL), *m = numbers(WORKERS * ALL),
          *estimate = numbers(WORKERS * ALL);
    Packet link[WORKERS];
    unsigned char *messages = problem_alloc((size_t)WORKERS * 8 * ALL);
    problem_make(&d, "quadratic", M, N, WORKERS, 0.1, 1);
    memcpy(x, d.start, ALL * sizeof *x);
    for (size_t j = 0; j < WORKERS; j++) link[j] = packet_open(text, M, N);
    size_t bytes = ef_bytes(&link[0].link, M, N, 0);
    double loss = NAN;
    for (int t = 0; t <= steps; t++) {
        loss = d.problem->gradient(u, &d, x, -1, (uint64_t)t, scratch);
        if (csv && t % 5 == 0) fprintf(csv, "%s,%d,%d,%.6g\n", text, feedback, t, loss);
        if (!feedback) {
            memset(estimate, 0, WORKERS * ALL * sizeof *estimate);
            memset(g, 0, ALL * sizeof *g);
        }
        for (size_t j = 0; j < WORKERS; j++) {
            d.problem->gradient(u, &d, x, (int)j, (uint64_t)t, scratch);
            sm_momentum(u, m + j * ALL, u, ALL, 0.8f, 0);
            ef_send(messages + j * 8 * ALL, estimate + j * ALL, u, M, N, &link[j].link,
                    sm_key(1, j, (uint64_t)t), 0, link[j].warm, link[j].scratch);
        }
        ef_aggregate(g, messages, (size_t)8 * ALL, bytes, WORKERS, M, N, &link[0].link,
                     link[0].scratch);
        sm_polar(u, g, M, N, sm_newton_schulz("jordan5"), scratch);
        sm_step_dense(x, u, ALL, 0.01f * (1 - (float)t / (float)steps), 1);
    }
    for (size_t j = 0; j < WORKERS; j++) packet_close(&link[j]);
    problem_free(&d);
    free(scratch), free(x), free(g), free(u), free(m), free(estimate), free(messages);
    return loss;
}

CHECK(check_feedback) {
    double with = feedback_run(NULL, c->method, 1, 600),
           without = feedback_run(NULL, c->method, 0, 600);
    say(a, "F = %.1e with, %.1e without", with, without);
    return judge(c->value > 0 ? with * c->value < without : without < 2 * with);
}

/* Bits of a step's messages in units of fp32, on the tensors of a 124M GPT: the embedding, and 12
 * layers of q, k, v, o, fc, proj. method: "paper" or "bytes", which count is meant */
CHECK(check_cost) {
    static const struct {
        const char *text;
        double cost[2]; /* the paper's, ours; 0: no figure */
    } table[] = {{"identity", {1, 1}},
                 {"natural", {0.5, 0.2812}},
                 {"rankk:20%", {0.2687, 0}},
                 {"rankk:15%", {0.2019, 0}},
                 {"rankk:15%+natural", {0.1010, 0.0568}},
                 {"rankk:10%", {0.1335, 0}},
                 {"rankk:10%+natural", {0.0667, 0.0375}},
                 {"rankk:5%", {0.0667, 0}},
                 {"topk:20%", {0.3625, 0}},
                 {"topk:15%", {0.2719, 0}},
                 {"topk:15%+natural", {0.1969, 0.0734}},
                 {"topk:10%", {0.1812, 0}},
                 {"topk:10%+natural", {0.1312, 0.0594}},
                 {"topk:5%", {0.0906, 0}},
                 {"sign", {0, 0.0313}}};
    static const size_t shape[3][3] = {{50304, 768, 1}, {768, 768, 48}, {3072, 768, 24}};
    int paper = strcmp(c->method, "paper") == 0;
    double worst = 0;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        double expected = table[k].cost[paper ? 0 : 1], bits = 0, weights = 0;
        EfLink link;
        char error[512];
        if (!(expected > 0)) continue;
        a->broken |= ef_parse(&link, table[k].text, error, sizeof error) != 0;
        for (size_t i = 0; i < 3 && !a->broken; i++) {
            size_t m = shape[i][0], n = shape[i][1];
            double count = (double)shape[i][2];
            bits += count * (paper ? ef_paper_bits(&link, m, n) : ef_bits(&link, m, n));
            weights += count * (double)(m * n);
        }
        double cost = bits / weights / 32;
        worst = fmax(worst, fabs(cost - expected));
        say(a, "%s%s %.4f", *a->ours ? ", " : "", table[k].text, cost);
    }
    return judge(worst <= 1.5e-4);
}

/* ------------------------------------------------------------------------------------------------
 * the table */

#define EF "arXiv 2510.00643"
// clang-format off
static const Claim claims[] = {
    CLAIM("U1", "singular values that each Newton-Schulz row makes of [1e-3, 1] and [1e-2, 1]: Jordan 5, 7; Polar Express 5, 6, 8", "arXiv 2505.16932; scalar evaluation", "0.4705 .. 1.2024; 0.6818 .. 1.1344; 0.8462 .. 1.1236; 0.9944 .. 1.0012; 1 .. 1", "1e-3", .check = check_bands),
    CLAIM("U2", "the inner product of G and its LMO is the dual norm, for every norm; the step does not see the scale of G", EF, "equal", "1e-4; 1e-6", .check = check_duals),
    CLAIM("S7", "the scaled sign C(Y) loses exactly 1 - l1^2/(d l2^2) of the squared norm; it keeps 2/pi of a Gaussian", "intsystems/SignMuon, scaled sign", "equal; 0.6366", "1e-6; 0.005", .check = check_scaled_sign),
    CLAIM("U3", "every compressor loses at most 1 - alpha of the squared norm, on Gaussian, sparse, one-hot, constant, geometric and rank-one tensors", EF, "always", "1e-6, or 4 standard errors", .check = check_contraction),
    CLAIM("U3 natural", "stochastic natural compression is unbiased with variance at most 1/8 of the squared norm", "arXiv 1905.10988", "0; 0.125", "5 standard errors", .check = check_natural),
    CLAIM("U4", "EF21 on a fixed target: the squared gap shrinks by 1 - alpha per step; identity closes it at once", EF, "always", "1e-5", .check = check_fixed_target),
    CLAIM("U5", "with identity on both links EF21-Muon is Muon on the mean momentum, for any number of workers", EF, "same bits", "bits", .check = check_identity),
    CLAIM("U6", "the server's estimate is the mean of the workers' estimates at every step, and all hold the same model", EF, "equal", "1e-5; bits", .check = check_invariants),
    CLAIM("U7", "cost per step on a 124M GPT, of fp32, counted with 26-bit indices and 16-bit powers of two", EF ", cost table as recalled", "1, 0.5, 0.2687, 0.2019, 0.1010, 0.1335, 0.0667, 0.0667, 0.3625, 0.2719, 0.1969, 0.1812, 0.1312, 0.0906", "1.5e-4", .check = check_cost, .method = "paper"),
    CLAIM("U7 bytes", "the same with bitmaps and 9-bit powers of two, as really sent", "own arithmetic", "1, 0.2812, 0.0568, 0.0375, 0.0734, 0.0594, 0.0313", "1.5e-4", .check = check_cost, .method = "bytes"),
    CLAIM("U8", "constrained Scion keeps every matrix in its ball, up to what Newton-Schulz overshoots; unconstrained Scion may leave it", "arXiv 2502.07529", "1.13 .. 1.20 radii; more", "the overshoot", .check = check_ball),
    CLAIM("T4 topk", "without error feedback (C(M) itself is sent, by 5 workers that differ) Top 5 % stalls where EF21 goes on", EF ", inference", "stalls", "100 times F", .check = check_feedback, .method = "topk:5%", .value = 100),
    CLAIM("T4 rankk", "Rank 5 % stalls too", EF ", inference", "stalls", "100 times F", .check = check_feedback, .method = "rankk:5%", .value = 100),
    CLAIM("T4 top 20 %", "at Top 20 % the difference vanishes", EF ", inference", "vanishes", "within 2 times F", .check = check_feedback, .method = "topk:20%"),
    CLAIM("T6", "with a one-bit downlink the server's model X leaves the workers' W; here: F(X) at least twice F(W), both averaged over the last fifth of 1000 steps", "intsystems/SignMuon, nanoGPT runs", "loss 5.52 against 3.32", "twice", .check = check_sign_downlink, .lr = 4.6e-3),
};
// clang-format on

const Claim *lmo_claims(size_t *count) { return *count = sizeof claims / sizeof *claims, claims; }
