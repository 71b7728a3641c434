/* noise.c - bench/noise.h against the laws of its rows; lib/attack.h. */
#include "../bench/noise.h"

#include "../lib/attack.h"
#include "test.h"

static char error[300];

/* second to fourth central moment, and P(x > t), of each law; 0: not checked */
static const struct {
    const char *text;
    double variance, third, fourth, t, above;
} laws[] = {
    {"gaussian:1", 1, 0, 3, 1.959964, 0.025},
    {"laplace:1", 1, 0, 6, 1.628173, 0.05},    /* -log(2 * 0.05) / sqrt(2) */
    {"skewed:1", 1, 1.5, 3.25, 1.999, 0.2},    /* 0.2 * 8 - 0.8 / 8; 0.2 * 16 + 0.8 / 16 */
    {"student:1.5,1", 0, 0, 0, 10, 0.0118297}, /* by numerical integration of the density */
    {"student:3,1", 3, 0, 0, 5.840909, 0.005}, /* quantiles: tables of Student's t */
    {"student:10,1", 1.25, 0, 6.25, 2.763769, 0.01},
    {"student:1e9,1", 1, 0, 3, 1.644854, 0.05}, /* nearly normal */
};

TEST(noise_has_the_moments_of_its_law) {
    enum { LAWS = sizeof laws / sizeof *laws, DRAWS = 200000 };
    double root = sqrt(DRAWS);
    for (size_t i = 0; noise_row(i); i++) {
        size_t k = 0, length = strlen(noise_row(i)->name);
        while (k < LAWS && strncmp(laws[k].text, noise_row(i)->name, length) != 0) k++;
        CHECK(k < LAWS, "(no law for %s)", noise_row(i)->name);
    }
    for (size_t k = 0; k < LAWS; k++) {
        double sum[5] = {0}, above = 0;
        Noise n;
        CHECK(noise_parse(&n, laws[k].text, error, sizeof error) == 0, "(%s)", error);
        for (uint64_t i = 0; i < DRAWS && n.row; i++) {
            double x = n.row->draw(k, i, n.nu);
            for (int p = 1; p < 5; p++) sum[p] += pow(x, p) / DRAWS;
            above += x > laws[k].t ? 1.0 / DRAWS : 0;
        }
        CHECK_NEAR(above, laws[k].above, 4.5 * sqrt(laws[k].above) / root);
        if (laws[k].variance == 0) continue;
        CHECK_NEAR(sum[1], 0, 4.5 * sqrt(laws[k].variance) / root);
        CHECK_NEAR(sum[2], laws[k].variance, laws[k].fourth > 0 ? 0.03 : 0.15);
        if (laws[k].fourth == 0) continue;
        CHECK_NEAR(sum[3], laws[k].third, 0.2);
        CHECK_NEAR(sum[4], laws[k].fourth, 0.12);
    }
}

TEST(noise_in_pieces_equals_noise_at_once) {
    static const char *const bad[] = {"normal:1",     "gaussian",    "gaussian:",   "gaussian:-1",
                                      "gaussian:nan", "laplace:1x",  "student:1.5", "student:1,0.1",
                                      "student:1.5,", "skewed: 0.5", ":1"};
    float whole[100] = {0}, pieces[100] = {0};
    Noise n;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(noise_parse(&n, bad[i], error, sizeof error) == -1 && !n.row, "(%s)", bad[i]);
        CHECK(strstr(error, bad[i]) && strlen(error) > 40);
    }
    CHECK(noise_parse(&n, "student:1.5,0.01", error, sizeof error) == 0);
    CHECK(n.nu == 1.5 && n.scale == 0.01);
    noise_add(whole, 100, &n, 7, 1000);
    noise_add(pieces, 37, &n, 7, 1000);
    noise_add(pieces + 37, 63, &n, 7, 1037);
    CHECK(memcmp(whole, pieces, sizeof whole) == 0);
    CHECK(whole[3] == (float)(0.01 * n.row->draw(7, 1003, 1.5)));
    CHECK(noise_parse(&n, "", error, sizeof error) == 0 && !n.row);
    noise_add(pieces, 100, &n, 7, 0);
    CHECK(memcmp(whole, pieces, sizeof whole) == 0);
}

/* ------------------------------------------------------------------------------------------------
 * attacks */

TEST(attacks_send_what_their_rows_say) {
    enum { SIZE = 1000 };
    static const char *const bad[] = {"",          "flop",     "flip:",   "flip:1",
                                      "scale",     "scale:",   "scale:x", "scale:nan",
                                      "scale:2e9", "scale:1x", "nan:"};
    static const char *const texts[] = {"flip", "random", "zero", "nan", "scale:-2.5"};
    float u[SIZE], v[SIZE], again[SIZE];
    Attack a = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(attack_parse(&a, bad[i], error, sizeof error) == -1, "(%s)", bad[i]);
        CHECK(strstr(error, bad[i]) && strlen(error) > 30);
    }
    test_fill_normal(u, SIZE, 9);
    for (size_t i = 0; attack_row(i); i++) {
        size_t name = strlen(attack_row(i)->name);
        double honest = 0, sent = 0, mean = 0;
        CHECK(attack_row(i)->doc && !strncmp(texts[i], attack_row(i)->name, name));
        CHECK(attack_parse(&a, texts[i], error, sizeof error) == 0, "(%s)", error);
        memcpy(v, u, sizeof u), memcpy(again, u, sizeof u);
        attack_apply(&a, v, SIZE, 5);
        attack_apply(&a, again, SIZE, i == 1 ? 6 : 5);
        CHECK((memcmp(v, again, sizeof v) != 0) == (i == 1)); /* the key is of random only */
        for (size_t k = 0; k < SIZE; k++) {
            CHECK(i != 0 || v[k] == -u[k]);
            CHECK(i != 2 || (v[k] == 0 && !signbit(v[k])));
            CHECK(i != 3 || isnan(v[k]));
            CHECK(i != 4 || v[k] == -2.5f * u[k]);
            honest += pow((double)u[k], 2), sent += pow((double)v[k], 2),
                mean += (double)v[k] / SIZE;
        }
        if (i != 1) continue;
        CHECK_NEAR(sent / honest, 1, 1e-5);
        CHECK_NEAR(mean, 0, 4 / sqrt(SIZE));
        CHECK(v[0] != u[0] && v[1] != u[1]);
    }
}
