/* math.c - the mathematics of signmuon.h against the papers' definitions in double. */
#include "../lib/gemm.h"
#include "../lib/safetensors.h"
#include "../signmuon.h"
#include "svd.h"
#include "test.h"

/* ------------------------------------------------------------------------------------------------
 * oracles */

enum { SIDE = 40, CANARY = 4096 };

/* q (n x k) <- k random orthonormal columns: Gram-Schmidt, twice */
static void orthonormal(double *q, size_t n, size_t k, uint64_t key) {
    for (size_t i = 0; i < n * k; i++) q[i] = test_normal(key, i);
    for (size_t j = 0; j < k; j++) {
        for (size_t again = 0; again < 2; again++)
            for (size_t p = 0; p < j; p++) {
                double dot = 0;
                for (size_t i = 0; i < n; i++) dot += q[i * k + j] * q[i * k + p];
                for (size_t i = 0; i < n; i++) q[i * k + j] -= dot * q[i * k + p];
            }
        double norm = 0;
        for (size_t i = 0; i < n; i++) norm += q[i * k + j] * q[i * k + j];
        for (size_t i = 0; i < n; i++) q[i * k + j] /= sqrt(norm);
    }
}

/* A matrix whose SVD is known: G = U diag(sigma) V^T of rank r, U is m x r, V is n x r. */
typedef struct Known {
    size_t m, n, r;
    double u[SIDE * SIDE], v[SIDE * SIDE], sigma[SIDE];
    double exact[SIDE * SIDE], polar[SIDE * SIDE]; /* G and U V^T */
    float g[SIDE * SIDE];
} Known;

static void known_make(Known *k, size_t m, size_t n, size_t r, const double *sigma, uint64_t key) {
    k->m = m, k->n = n, k->r = r;
    orthonormal(k->u, m, r, 2 * key + 1);
    orthonormal(k->v, n, r, 2 * key + 2);
    memcpy(k->sigma, sigma, r * sizeof *sigma);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double g = 0, polar = 0;
            for (size_t p = 0; p < r; p++) {
                g += k->u[i * r + p] * sigma[p] * k->v[j * r + p];
                polar += k->u[i * r + p] * k->v[j * r + p];
            }
            k->exact[i * n + j] = g;
            k->polar[i * n + j] = polar;
            k->g[i * n + j] = (float)g;
        }
}

/* entry (p,q) of U^T O V: its diagonal holds O's singular values when O has G's singular vectors */
static double known_core(const Known *k, const float *o, size_t p, size_t q) {
    double sum = 0;
    for (size_t i = 0; i < k->m; i++)
        for (size_t j = 0; j < k->n; j++)
            sum += k->u[i * k->r + p] * (double)o[i * k->n + j] * k->v[j * k->r + q];
    return sum;
}

static double inner(const double *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * (double)y[i];
    return sum;
}

/* sm_polar in a scratch of exactly the promised size, with a canary behind it */
static void polar_guarded(float *out, const float *g, size_t m, size_t n,
                          const SmNewtonSchulz *ns) {
    size_t size = sm_lmo_scratch(m, n);
    float *scratch = malloc((size + CANARY) * sizeof *scratch);
    for (size_t i = 0; i < size + CANARY; i++) scratch[i] = 12345;
    sm_polar(out, g, m, n, ns, scratch);
    for (size_t i = size; i < size + CANARY; i++) CHECK(scratch[i] == 12345);
    free(scratch);
}

/* c (m x n) <- a (m x k) b, with b(p,j) at b[p * down + j * right] */
static void product(double *c, const double *a, const double *b, size_t m, size_t n, size_t k,
                    size_t down, size_t right) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            c[i * n + j] = 0;
            for (size_t p = 0; p < k; p++) c[i * n + j] += a[i * k + p] * b[p * down + j * right];
        }
}

/* the operand of a product: as it is, or rounded to bf16 */
static void operand(double *x, size_t n, int bf16) {
    for (size_t i = 0; i < n && bf16; i++) x[i] = (double)gemm_from_bf16(gemm_to_bf16((float)x[i]));
}

/* out (m x n) <- the Newton-Schulz iteration of that name in double, by the papers' own numbers:
 * KellerJordan/Muon, and arXiv 2505.16932, algorithm 1 with its safety factor of 1.01. The matrix
 * is not transposed, as the definition does not need it. */
static void newton_schulz(double *out, const float *g, size_t m, size_t n, const char *name,
                          int bf16) {
    static const double jordan[3] = {3.4445, -4.7750, 2.0315};
    // clang-format off
    static const double express[8][3] = {
        {8.28721201814563, -23.595886519098837, 17.300387312530933},
        {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
        {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
        {3.3184196573706015, -2.488488024314874, 0.51004894012372},
        {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
        {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
        {1.8750014808534479, -1.2500016453999487, 0.3750001645474248},
        {1.875, -1.25, 0.375}};
    // clang-format on
    static const double express3[3][3] = {
        {8.093368799375614, -23.62043103701045, 17.446152170072118},
        {3.6365861990132204, -2.7219271591322745, 0.5365463515084697},
        {2.6612999785687252, -1.9771547996498908, 0.4526165141775926}};
    int is_jordan = strcmp(name, "jordan5") == 0, steps = name[strlen(name) - 1] - '0';
    CHECK(is_jordan || strncmp(name, "polar-express", 13) == 0, "%s has no transcription", name);
    double norm = 0, *a = malloc((3 * m * m + m * n) * sizeof *a);
    double *square = a + m * m, *p = square + m * m, *x = p + m * m;
    for (size_t i = 0; i < m * n; i++) norm += (double)g[i] * (double)g[i];
    norm = sqrt(norm) * (is_jordan ? 1 : 1.01);
    for (size_t i = 0; i < m * n; i++) out[i] = (double)g[i] / norm;
    for (int k = 0; k < steps; k++) {
        const double *c = is_jordan ? jordan : steps == 3 ? express3[k] : express[k];
        double shrink = is_jordan || k == 7 ? 1 : 1.01; /* the last of eight is not made safer */
        memcpy(x, out, m * n * sizeof *x);
        operand(x, m * n, bf16);
        product(a, x, x, m, m, n, 1, n);
        memcpy(p, a, m * m * sizeof *p);
        operand(p, m * m, bf16);
        product(square, p, p, m, m, m, m, 1);
        for (size_t i = 0; i < m * m; i++)
            p[i] = c[0] / shrink * (i / m == i % m) + c[1] / pow(shrink, 3) * a[i] +
                   c[2] / pow(shrink, 5) * square[i];
        operand(p, m * m, bf16);
        product(out, p, x, m, n, m, n, 1);
    }
    free(a);
}

/* |x - y| / |y| */
static double distance(const float *x, const double *y, size_t n) {
    double error = 0, length = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        length += y[i] * y[i];
    }
    return sqrt(error / length);
}

/* ------------------------------------------------------------------------------------------------
 * vectors */

TEST(hash_equals_published_splitmix64_outputs) {
    static const uint64_t from_seed_0[] = {0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4,
                                           0x06c45d188009454f};
    for (size_t i = 0; i < 3; i++) CHECK(sm_hash(0, i) == from_seed_0[i]);
    CHECK(sm_key(1, 2, 3) != sm_key(1, 3, 2) && sm_key(1, 2, 3) != sm_key(2, 1, 3));
}

TEST(nonfinite_entry_is_seen_anywhere) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float x[77];
    test_fill_normal(x, 77, 3);
    x[3] = 3e38f, x[4] = -3e38f, x[5] = 0;
    CHECK(sm_finite(x, 77) && sm_finite(x, 0));
    for (size_t i = 0; i < 77; i++) {
        float was = x[i];
        x[i] = bad[i % 3];
        CHECK(!sm_finite(x, 77) && sm_finite(x, i) && sm_finite(x + i + 1, 76 - i));
        x[i] = was;
    }
}

/* ------------------------------------------------------------------------------------------------
 * the polar factor */

/* Eight steps of Polar Express arrive at the factor of the SVD, too. */
TEST(polar_equals_double_iteration_on_every_shape) {
    static const size_t shape[][2] = {{1, 1},  {1, 9},  {9, 1},  {2, 3},   {3, 2},
                                      {6, 10}, {17, 5}, {5, 33}, {40, 23}, {20, 20},
                                      {7, 14}, {7, 15}, {40, 7}, {40, 170}};
    for (size_t row = 0; sm_newton_schulz_row(row); row++)
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
            const SmNewtonSchulz *ns = sm_newton_schulz_row(row);
            size_t m = shape[s][0], n = shape[s][1], size = m * n;
            static float g[6800], input[6800], o[6800], t[6800], tall[6800], exact[6800];
            static double x[6800];
            test_fill_normal(g, size, 5 + s);
            /* rows shrink to 1e-3 of the first: ill-conditioned */
            for (size_t i = 0; i < size && s % 2; i++)
                g[i] *= (float)pow(1e-3, (double)(i / n) / (double)m);
            memcpy(input, g, sizeof g);
            polar_guarded(o, g, m, n, ns);
            CHECK(memcmp(input, g, sizeof g) == 0);
            newton_schulz(x, g, m, n, ns->name, 0);
            CHECK(distance(o, x, size) < 1e-5, "%s %zu x %zu: %g", ns->name, m, n,
                  distance(o, x, size));
            int converges = strcmp(ns->name, "polar-express8") == 0 && s % 2 == 0;
            if (converges) svd_polar(exact, g, m, n);
            for (size_t i = 0; i < size && converges; i++)
                CHECK_NEAR((double)o[i], (double)exact[i], 2e-5);
            sm_transpose(t, g, m, n);
            polar_guarded(t, t, n, m, ns); /* out may be g */
            sm_transpose(tall, t, n, m);
            CHECK(m == n || memcmp(tall, o, size * sizeof *o) == 0);
            for (int power = -40; power <= 40; power += 10) {
                for (size_t i = 0; i < size; i++) t[i] = ldexpf(g[i], power);
                polar_guarded(t, t, m, n, ns);
                if (s % 2 == 0) CHECK(memcmp(t, o, size * sizeof *o) == 0, "2^%d", power);
            }
        }
}

/* Chebyshev: of all odd quintics, the one nearest to 1 on [l, u] errs equally far at four points, in
 * turn below and above. Each step then has [l, u] <- [p(l), 2 - p(l)] (arXiv 2505.16932, theorem
 * 3.1). The row's safety factor of 1.01 is taken out again. */
TEST(polar_express3_is_nearest_to_one_from_a_hundredth_on) {
    enum { POINTS = 400000 };
    const SmNewtonSchulz *ns = sm_newton_schulz("polar-express3");
    double l = 0.01, u = 1;
    for (int k = 0; k < ns->steps; k++) {
        double extreme[8] = {0}, e = 0, most = 0;
        int turns = 0;
        for (int i = 0; i <= POINTS; i++) { /* the largest error of each sign, in order */
            double x = l + (u - l) * pow(i / (double)POINTS, 3), y = 1.01 * x;
            const double *c = ns->coefficient[k];
            e = y * (c[0] + y * y * (c[1] + y * y * c[2])) - 1;
            if (turns == 0 || (e > 0) != (extreme[turns - 1] > 0)) turns += turns < 8;
            if (fabs(e) > fabs(extreme[turns - 1])) extreme[turns - 1] = e;
            most = fmax(most, fabs(e));
        }
        CHECK(turns == 4, "step %d: %d", k, turns);
        for (int i = 0; i < 4; i++) CHECK_NEAR(fabs(extreme[i]), most, 1e-5);
        u = 1 + most;
        l = 1 - most;
    }
    CHECK_NEAR(l, 0.7306, 1e-4);
}

/* A sum in fp32 may round to the other neighbour in bf16, so the iterations part a little: by far
 * less than bf16 parts from fp32. */
TEST(polar_rounds_its_operands_to_bf16_when_asked) {
    for (size_t row = 0; sm_newton_schulz_row(row); row++)
        for (size_t m = 12; m <= 40; m += 14) {
            SmNewtonSchulz ns = *sm_newton_schulz_row(row);
            size_t n = m + m / 2, size = m * n, wide = 5 * m;
            static float g[8000], o[8000];
            static double x[8000];
            test_fill_normal(g, 8000, m + row);
            ns.bf16 = 1;
            polar_guarded(o, g, m, n, &ns);
            newton_schulz(x, g, m, n, ns.name, 0);
            double from_fp32 = distance(o, x, size);
            newton_schulz(x, g, m, n, ns.name, 1);
            CHECK(distance(o, x, size) < 0.8 * from_fp32 && from_fp32 > 1e-3 && from_fp32 < 0.05,
                  "%s %zu: %g, %g from fp32", ns.name, m, distance(o, x, size), from_fp32);
            /* steps taken together are as near */
            polar_guarded(o, g, m, wide, &ns);
            newton_schulz(x, g, m, wide, ns.name, 0);
            CHECK(distance(o, x, m * wide) < 0.05, "%s %zu x %zu: %g", ns.name, m, wide,
                  distance(o, x, m * wide));
        }
}

/* test/fixture.safetensors, written by test/make_fixture.py */
TEST(polar_and_adamw_equal_pytorch) {
    static const size_t shape[3][2] = {{24, 16}, {16, 24}, {20, 20}};
    static float g[600], exact[600], jordan[600], o[600];
    StFile file;
    char error[256] = "", name[64];
    int bad = st_open(&file, "test/fixture.safetensors", error, sizeof error);
    CHECK(!bad, "%s", error);
    if (bad) return;
    for (int i = 0; i < 3; i++) {
        const char *const names[] = {"polar", "polar", "ns_jordan"};
        const char *const ends[] = {"in", "out", "out"};
        float *const to[] = {g, exact, jordan};
        size_t m = shape[i][0], n = shape[i][1];
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "%s.%d.%s", names[k], i, ends[k]);
            CHECK(!st_read_f32(&file, name, to[k], m * n, error, sizeof error), "%s", error);
        }
        polar_guarded(o, g, m, n, sm_newton_schulz("jordan5"));
        for (size_t j = 0; j < m * n; j++) CHECK_NEAR((double)o[j], (double)jordan[j], 2e-5);
        svd_polar(o, g, m, n);
        for (size_t j = 0; j < m * n; j++) CHECK_NEAR((double)o[j], (double)exact[j], 2e-5);
    }
    float p[40], m[40] = {0}, v[40] = {0};
    CHECK(!st_read_f32(&file, "adamw.p0", p, 40, error, sizeof error));
    CHECK(!st_read_f32(&file, "adamw.g", g, 200, error, sizeof error));
    CHECK(!st_read_f32(&file, "adamw.p", exact, 200, error, sizeof error));
    for (uint64_t t = 0; t < 5; t++) {
        sm_adamw(p, m, v, g + t * 40, 40, t + 1, 1e-3, 0.9, 0.99, 1e-8, (float)(1 - 1e-3 * 0.1));
        for (size_t i = 0; i < 40; i++) CHECK_NEAR((double)p[i], (double)exact[t * 40 + i], 1e-6);
    }
    st_close(&file);
}

/* ------------------------------------------------------------------------------------------------
 * norms and gains, by the definitions in arXiv 2502.07529 (Scion), 2505.13416 (Gluon) and the
 * papers named in the rows */

/* A norm's |O|, whose singular values are those of its core, and its max <G, O> over |O| <= 1. */
static void norm_and_dual(double *norm, double *dual, const char *name, const Known *k,
                          const float *o) {
    const double m = (double)k->m, n = (double)k->n;
    double rows[2][SIDE] = {{0}}, columns[2][SIDE] = {{0}}; /* of O, of G: sums of squares */
    double square[2] = {0}, row = 0, column = 0, entry = 0, singular = 0;
    double absolute = 0, dual_row = 0, dual_column = 0, nuclear = 0;
    for (size_t i = 0; i < k->m * k->n; i++) {
        const double x[2] = {(double)o[i], k->exact[i]};
        for (size_t of = 0; of < 2; of++) {
            square[of] += x[of] * x[of];
            rows[of][i / k->n] += x[of] * x[of];
            columns[of][i % k->n] += x[of] * x[of];
        }
        entry = fmax(entry, fabs(x[0]));
        absolute += fabs(x[1]);
    }
    for (size_t i = 0; i < SIDE; i++) {
        row = fmax(row, sqrt(rows[0][i]));
        column = fmax(column, sqrt(columns[0][i]));
        dual_row += sqrt(rows[1][i]);
        dual_column += sqrt(columns[1][i]);
    }
    for (size_t p = 0; p < k->r; p++) {
        singular = fmax(singular, known_core(k, o, p, p));
        nuclear += k->sigma[p];
    }
    const struct {
        const char *name;
        double norm, dual;
    } table[] = {
        {"spectral", singular, nuclear},
        {"rms-rms", sqrt(n / m) * singular, sqrt(m / n) * nuclear},
        {"sign", entry, absolute},
        {"sign-output", n * entry, absolute / n},
        {"frobenius", sqrt(square[0]), sqrt(square[1])},
        {"rms", sqrt(square[0] / (m * n)), sqrt(square[1] * m * n)},
        {"column", column, dual_column},
        {"row", row, dual_row},
        {"nuclear", sqrt(square[0]), k->sigma[0]}, /* O has rank one */
    };
    size_t i = 0;
    while (i < sizeof table / sizeof *table && strcmp(table[i].name, name)) i++;
    CHECK(i < sizeof table / sizeof *table, "the norm %s has no definition here", name);
    *norm = table[i % (sizeof table / sizeof *table)].norm;
    *dual = table[i % (sizeof table / sizeof *table)].dual;
}

TEST(every_lmo_has_unit_norm_and_reaches_dual_norm) {
    static const size_t shape[][2] = {{6, 10}, {14, 6}, {1, 9}, {33, 20}, {5, 36}};
    static Known k;
    const SmNewtonSchulz *ns = sm_newton_schulz("polar-express8");
    for (size_t row = 0; sm_norm_row(row); row++)
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
            const SmNorm *norm = sm_norm_row(row);
            size_t m = shape[s][0], n = shape[s][1], r = m < n ? m : n, size = m * n;
            double sigma[SIDE];
            float o[SIDE * SIDE], scaled[SIDE * SIDE], input[SIDE * SIDE];
            float *scratch = malloc(sm_lmo_scratch(m, n) * sizeof *scratch);
            for (size_t p = 0; p < r; p++) sigma[p] = p ? 1.5 / (double)p : 4;
            known_make(&k, m, n, r, sigma, 300 + s);
            memcpy(input, k.g, sizeof input);
            norm->lmo(o, k.g, m, n, ns, NULL, scratch);
            CHECK(memcmp(input, k.g, size * sizeof *input) == 0);
            double unit, dual;
            norm_and_dual(&unit, &dual, norm->name, &k, o);
            CHECK(fabs(unit - 1) <= 1e-5, "%s: |O| = %.8g", norm->name, unit);
            double reached = inner(k.exact, o, size);
            CHECK(fabs(reached - dual) <= 2e-5 * dual, "%s: %.8g of %.8g", norm->name, reached,
                  dual);
            double rms = sqrt(sm_sum_squares(o, size) / (double)size);
            double said = norm->rms((double)m, (double)n);
            CHECK(fabs(said / rms - 1) <= 1e-5, "%s: RMS %.8g, said %.8g", norm->name, rms, said);
            const float scales[] = {0, 1e-6f, 1, 1e6f}; /* zero gives zero */
            for (size_t f = 0; f < 4; f++) {
                for (size_t i = 0; i < size; i++) scaled[i] = k.g[i] * scales[f];
                norm->lmo(scaled, scaled, m, n, ns, NULL, scratch); /* out may be g */
                for (size_t i = 0; i < size; i++)
                    CHECK_NEAR((double)scaled[i], f ? (double)o[i] : 0, f ? 5e-6 : 0);
            }
            free(scratch);
        }
}

/* Power iterations from the state of the step before: repeated steps arrive at the largest pair;
 * one step from near the second pair stays there, as it has 4 iterations and not 30. */
TEST(nuclear_lmo_starts_from_its_state) {
    static Known k;
    const double sigma[6] = {3, 2.6, 1, 0.5, 0.2, 0.1};
    const SmNorm *norm = sm_norm("nuclear");
    float o[60], state[10] = {0}, second[10], scratch[4096];
    CHECK(norm->state(6, 10) == 10);
    known_make(&k, 6, 10, 6, sigma, 77);
    for (int step = 0; step < 40; step++) norm->lmo(o, k.g, 6, 10, NULL, state, scratch);
    for (size_t i = 0; i < 60; i++)
        CHECK_NEAR((double)o[i], k.u[i / 10 * 6] * k.v[i % 10 * 6], 1e-5);
    for (size_t i = 0; i < 10; i++) {
        CHECK_NEAR(fabs((double)state[i]), fabs(k.v[i * 6]), 1e-5);
        second[i] = (float)(k.v[i * 6 + 1] + 0.01 * k.v[i * 6]);
    }
    norm->lmo(o, k.g, 6, 10, NULL, second, scratch);
    CHECK_NEAR(inner(k.exact, o, 60), 2.6, 1e-3);
    for (size_t row = 0; sm_norm_row(row); row++)
        CHECK(!sm_norm_row(row)->state || sm_norm_row(row) == norm);
}

/* intsystems/SignMuon app:lrscale (|gain s|_F / sqrt(m) = 1); arXiv 2502.16982 (RMS 0.2) */
TEST(every_gain_equals_its_formula) {
    static const size_t shape[][2] = {{6, 10},    {14, 6}, {1, 7},     {9, 1},
                                      {384, 128}, {5, 12}, {512, 128}, {128, 512}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        double m = (double)shape[s][0], n = (double)shape[s][1], aspect = sqrt(fmax(1, m / n));
        const struct {
            const char *name;
            double gain[2]; /* of unit norm; of signs */
        } table[] = {{"none", {1, 1}},
                     {"fro", {pow(fmin(m, n), -0.5), pow(m * n, -0.5)}},
                     {"unit-gain", {aspect, pow(n, -0.5)}},
                     {"aspect", {aspect, aspect}},
                     {"rms", {0.2 * sqrt(fmax(m, n)), 0.2}}};
        for (size_t row = 0; sm_gain_row(row); row++) {
            const SmGain *gain = sm_gain_row(row);
            CHECK(row < 5 && !strcmp(gain->name, table[row].name), "%s: no formula", gain->name);
            for (int sign = 0; sign < 2; sign++)
                CHECK_NEAR(gain->gain(shape[s][0], shape[s][1], sign), table[row].gain[sign],
                           1e-12);
        }
    }
}
