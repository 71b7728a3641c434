/* math.c - the mathematics of signmuon.h against the papers' definitions in double. */
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

/* out (m x n) <- the Newton-Schulz iteration of that name in double, by the papers' own numbers:
 * KellerJordan/Muon, and arXiv 2505.16932, algorithm 1 with its safety factor of 1.01. The matrix
 * is not transposed, as the definition does not need it. */
static void newton_schulz(double *out, const float *g, size_t m, size_t n, const char *name) {
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
    int is_jordan = strcmp(name, "jordan5") == 0, steps = strcmp(name, "polar-express8") ? 5 : 8;
    CHECK(is_jordan || strncmp(name, "polar-express", 13) == 0, "%s has no transcription", name);
    double norm = 0, *a = malloc((3 * m * m + m * n) * sizeof *a);
    double *square = a + m * m, *p = square + m * m, *x = p + m * m;
    for (size_t i = 0; i < m * n; i++) norm += (double)g[i] * (double)g[i];
    norm = sqrt(norm) * (is_jordan ? 1 : 1.01);
    for (size_t i = 0; i < m * n; i++) out[i] = (double)g[i] / norm;
    for (int k = 0; k < steps; k++) {
        const double *c = is_jordan ? jordan : express[k];
        double shrink = is_jordan || k == 7 ? 1 : 1.01; /* the last of eight is not made safer */
        memcpy(x, out, m * n * sizeof *x);
        product(a, x, x, m, m, n, 1, n);
        product(square, a, a, m, m, m, m, 1);
        for (size_t i = 0; i < m * m; i++)
            p[i] = c[0] / shrink * (i / m == i % m) + c[1] / pow(shrink, 3) * a[i] +
                   c[2] / pow(shrink, 5) * square[i];
        product(out, p, x, m, n, m, n, 1);
    }
    free(a);
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

/* AdamW is compared with PyTorch below. */
TEST(vector_updates_equal_double_recursions) {
    enum { N = 21 };
    float momentum[2][N] = {{0}}, lion[N] = {0}, w[N], g[N], out[3][N];
    double M[N] = {0}, L[N] = {0}, W[N];
    test_fill_normal(w, N, 1);
    for (size_t i = 0; i < N; i++) W[i] = (double)w[i];
    for (uint64_t t = 1; t <= 30; t++) {
        test_fill_normal(g, N, 10 + t);
        for (int k = 0; k < 3; k++) memcpy(out[k], g, sizeof g); /* out may be g */
        sm_momentum(out[0], momentum[0], out[0], N, 0.95f, 0);
        sm_momentum(out[1], momentum[1], out[1], N, 0.95f, 1);
        sm_lion(out[2], lion, out[2], N, 0.9f, 0.98f);
        sm_step_dense(w, g, N, 0.03f, 0.99f);
        for (size_t i = 0; i < N; i++) {
            double gi = (double)g[i];
            CHECK_NEAR((double)out[2][i], 0.9 * L[i] + 0.1 * gi, 1e-6);
            M[i] = 0.95 * M[i] + 0.05 * gi;
            L[i] = 0.98 * L[i] + 0.02 * gi;
            W[i] = 0.99 * W[i] - 0.03 * gi;
            CHECK_NEAR((double)out[0][i], M[i], 1e-6);
            CHECK_NEAR((double)out[1][i], 0.95 * M[i] + 0.05 * gi, 1e-6);
            CHECK_NEAR((double)momentum[0][i], M[i], 1e-6);
            CHECK_NEAR((double)momentum[1][i], M[i], 1e-6);
            CHECK_NEAR((double)lion[i], L[i], 1e-6);
            CHECK_NEAR((double)w[i], W[i], 2e-6);
        }
    }
}

TEST(reference_product_equals_naive_double) {
    static const size_t shape[][3] = {{1, 1, 1}, {3, 5, 7}, {33, 32, 64}, {31, 65, 129}, {2, 3, 0}};
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
        for (const char *op = "nt"; *op; op++) {
            size_t m = shape[s][0], n = shape[s][1], k = shape[s][2];
            float a[31 * 129 + 2112], b[65 * 129], c[33 * 65], t[65 * 129];
            test_fill_normal(a, m * k, s);
            test_fill_normal(b, n * k, s + 50);
            sm_reference_gemm(*op, c, a, b, m, n, k);
            for (size_t i = 0; i < m; i++)
                for (size_t j = 0; j < n; j++) {
                    double sum = 0;
                    for (size_t p = 0; p < k; p++)
                        sum += (double)a[i * k + p] *
                               (double)(*op == 'n' ? b[p * n + j] : b[j * k + p]);
                    CHECK_NEAR((double)c[i * n + j], sum, 1e-5);
                }
            sm_transpose(t, b, n, k);
            for (size_t i = 0; i < n; i++)
                for (size_t p = 0; p < k; p++) CHECK(t[p * n + i] == b[i * k + p]);
        }
}

/* ------------------------------------------------------------------------------------------------
 * the polar factor */

TEST(jacobi_and_polar_express_equal_known_factor) {
    static const size_t shape[][3] = {{1, 1, 1},  {9, 1, 1},    {6, 10, 6},   {17, 5, 3},
                                      {5, 33, 5}, {40, 23, 23}, {20, 20, 20}, {8, 30, 4}};
    static Known k;
    double sigma[SIDE];
    float exact[SIDE * SIDE], o[SIDE * SIDE];
    for (size_t p = 0; p < SIDE; p++) sigma[p] = 3.0 / (double)(p + 1) + 0.1;
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        known_make(&k, shape[s][0], shape[s][1], shape[s][2], sigma, s);
        svd_polar(exact, k.g, k.m, k.n);
        polar_guarded(o, k.g, k.m, k.n, sm_newton_schulz("polar-express8"));
        for (size_t i = 0; i < k.m * k.n; i++) {
            CHECK_NEAR((double)exact[i], k.polar[i], 2e-6);
            if (k.r == k.m || k.r == k.n) CHECK_NEAR((double)o[i], k.polar[i], 2e-5);
        }
    }
}

/* Bands of the singular values that come out when those that go in are lo .. 1 of the norm, by
 * scalar evaluation of the polynomials. Matrices are wide and tall. 15 singular values of each are
 * on a log grid over lo .. 0.24, and the last one fills the norm up. */
TEST(newton_schulz_fills_known_bands_of_singular_values) {
    static const struct {
        const char *name;
        double lo, min, max;
    } band[] = {{"jordan5", 1e-3, 0.4705, 1.2024},
                {"jordan5", 1e-2, 0.6818, 1.1344},
                {"polar-express5", 1e-3, 0.8462, 1.1236},
                {"polar-express5", 1e-2, 0.8703, 1.1236},
                {"polar-express8", 1e-3, 1, 1}};
    enum { BANDS = sizeof band / sizeof *band, GRID = 15 * 24 };
    static Known k;
    float o[SIDE * SIDE];
    for (size_t row = 0, tested; sm_newton_schulz_row(row); row++) {
        for (size_t b = tested = 0; b < BANDS; b++)
            tested += strcmp(band[b].name, sm_newton_schulz_row(row)->name) == 0;
        CHECK(tested, "%s has no band", sm_newton_schulz_row(row)->name);
    }
    for (size_t b = 0; b < BANDS; b++) {
        const SmNewtonSchulz *ns = sm_newton_schulz(band[b].name);
        double least = 9, most = 0, tolerance = band[b].min < 1 ? 1e-3 : 1e-4;
        double lo = band[b].lo * ns->safety; /* the table's lo is what the polynomial sees */
        for (size_t matrix = 0; matrix < 24; matrix++) {
            double sigma[16], left = 1;
            for (size_t p = 1; p < 16; p++) {
                sigma[p] = lo * pow(0.24 / lo, (double)((p - 1) * 24 + matrix) / (GRID - 1));
                if (matrix % 2) sigma[p] = p > 1 ? lo : 0.24 + 0.46 * (double)matrix / 23;
                left -= sigma[p] * sigma[p];
            }
            sigma[0] = sqrt(left);
            known_make(&k, matrix % 3 ? 18 : 25, matrix % 3 ? 25 : 18, 16, sigma, 40 + matrix);
            polar_guarded(o, k.g, k.m, k.n, ns);
            for (size_t p = 0; p < 16; p++) {
                double s = known_core(&k, o, p, p);
                least = fmin(least, s), most = fmax(most, s);
                CHECK_NEAR(known_core(&k, o, p, (p + 1) % 16), 0, 1e-3);
            }
        }
        CHECK(least >= band[b].min - tolerance && most <= band[b].max + tolerance,
              "%s: %.4f .. %.4f", ns->name, least, most);
        CHECK(least <= band[b].min + 0.005 && most >= band[b].max - 0.005, "%s: %.4f .. %.4f",
              ns->name, least, most); /* the band is not loose either */
    }
}

TEST(polar_equals_double_iteration_on_every_shape) {
    static const size_t shape[][2] = {{1, 1},  {1, 9},  {9, 1},  {2, 3},   {3, 2},
                                      {6, 10}, {17, 5}, {5, 33}, {40, 23}, {20, 20},
                                      {7, 14}, {7, 15}, {40, 7}, {40, 170}};
    for (size_t row = 0; sm_newton_schulz_row(row); row++)
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
            const SmNewtonSchulz *ns = sm_newton_schulz_row(row);
            size_t m = shape[s][0], n = shape[s][1], size = m * n;
            static float g[6800], input[6800], o[6800], t[6800], tall[6800];
            static double x[6800];
            double error = 0, length = 0;
            test_fill_normal(g, size, 5 + s);
            /* rows shrink to 1e-3 of the first: ill-conditioned */
            for (size_t i = 0; i < size && s % 2; i++)
                g[i] *= (float)pow(1e-3, (double)(i / n) / (double)m);
            memcpy(input, g, sizeof g);
            polar_guarded(o, g, m, n, ns);
            CHECK(memcmp(input, g, sizeof g) == 0);
            newton_schulz(x, g, m, n, ns->name);
            for (size_t i = 0; i < size; i++) {
                error += ((double)o[i] - x[i]) * ((double)o[i] - x[i]);
                length += x[i] * x[i];
            }
            CHECK(sqrt(error / length) < 1e-5, "%s %zu x %zu: %g", ns->name, m, n,
                  sqrt(error / length));
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
 * theorems of intsystems/SignMuon */

/* <G, sgn(polar(G))> on the 4 x 4 instance of theorem 1, by `steps` of Jordan's quintic, or exactly
 * when 0; negative: the step ascends */
static double theorem_1(double sigma, int steps) {
    static const double o[16] = {101, 20, 2, -2,  -20, 97, 20,   -20,
                                 -2,  20, 2, 101, -2,  20, -101, -2};
    static const double u[4] = {10, -3, 10, 10}, v[4] = {10, 3, -10, 10};
    SmNewtonSchulz ns = *sm_newton_schulz("jordan5");
    double exact[16], sum = 0;
    float g[16], polar[16];
    uint64_t bits;
    for (size_t i = 0; i < 16; i++) {
        exact[i] = sigma * u[i / 4] * v[i % 4] / 309 + o[i] / 103;
        g[i] = (float)exact[i];
    }
    ns.steps = steps;
    for (size_t k = 5; k < 8; k++)
        memcpy(ns.coefficient[k], ns.coefficient[0], sizeof ns.coefficient[k]);
    if (steps)
        polar_guarded(polar, g, 4, 4, &ns);
    else
        svd_polar(polar, g, 4, 4);
    sm_pack(&bits, polar, 16, SM_COIN, 1);
    for (size_t i = 0; i < 16; i++) sum += bits >> i & 1 ? exact[i] : -exact[i];
    return sum;
}

TEST(signmuon_ascends_on_theorem_1_instance) {
    static const double sigmas[] = {2, 12, 13, 100, 1000};
    for (size_t i = 0; i < 5; i++)
        CHECK_NEAR(theorem_1(sigmas[i], 0), (532 - 43 * sigmas[i]) / 103, 1e-9 * sigmas[i]);
    static const struct {
        double sigma;
        int steps;
        double inner;
    } jordan[] = {{1000, 5, 3470.95}, {1000, 6, -412.311}, {1000, 8, 3470.95},
                  {100, 5, -36.5825}, {100, 6, -36.5825},  {100, 8, -36.5825}};
    for (size_t i = 0; i < sizeof jordan / sizeof *jordan; i++) {
        CHECK_NEAR(theorem_1(jordan[i].sigma, jordan[i].steps), jordan[i].inner, 2e-6);
        int ascends = theorem_1(13, jordan[i].steps) < 0; /* there only five steps ascend */
        CHECK(ascends == (jordan[i].steps == 5), "%d steps", jordan[i].steps);
    }
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
                     {"fro", {pow(m * n, -0.5), pow(m * n, -0.5)}},
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

TEST(every_row_is_found_by_its_name) {
    size_t i = 0, j = 0, k = 0;
    for (const SmNewtonSchulz *row; (row = sm_newton_schulz_row(i)) != NULL; i++)
        CHECK(sm_newton_schulz(row->name) == row && *row->doc);
    for (const SmNorm *row; (row = sm_norm_row(j)) != NULL; j++)
        CHECK(sm_norm(row->name) == row && *row->doc);
    for (const SmGain *row; (row = sm_gain_row(k)) != NULL; k++)
        CHECK(sm_gain(row->name) == row && *row->doc);
    CHECK(i && j && k && !sm_newton_schulz("jordan") && !sm_norm("none") && !sm_gain("auto"));
}
