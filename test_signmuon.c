/* test_signmuon.c - every test of the project in one binary.

     ./test_signmuon [FILTER]      runs the tests whose name contains FILTER

   A test's name is the sentence it proves. Each layer has an oracle of its own: products against
   the naive loop, gradients against central differences in double and against PyTorch's numbers,
   polar factors against a Jacobi SVD, votes against a byte per sign, method rows against a double
   precision transcription of their equations. No test measures time, downloads, or needs Python.
   The last line is `N passed, N failed`; the exit status is 1 when one failed.  MIT licence. */
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------
 * a test framework in forty lines */

typedef struct TestCase {
    const char *name;
    void (*run)(void);
} TestCase;
static TestCase test_cases[512];
static int test_count, test_failures_here;

#define TEST(name)                                                                                 \
    static void test_##name(void);                                                                 \
    __attribute__((constructor)) static void test_register_##name(void) {                          \
        test_cases[test_count++] = (TestCase){#name, test_##name};                                 \
    }                                                                                              \
    static void test_##name(void)

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        if (test_failures_here++ < 5) {                                                            \
            printf("    %s:%d: ", __FILE__, __LINE__);                                             \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) FAIL("%s", #condition);                                                  \
    } while (0)
#define CHECK_EQ(a, b)                                                                             \
    do {                                                                                           \
        long long check_a = (long long)(a), check_b = (long long)(b);                              \
        if (check_a != check_b) FAIL("%s is %lld, %s is %lld", #a, check_a, #b, check_b);          \
    } while (0)
#define CHECK_NEAR(a, b, tolerance)                                                                \
    do {                                                                                           \
        double near_a = (a), near_b = (b);                                                         \
        if (!(fabs(near_a - near_b) <= (tolerance)))                                               \
            FAIL("%s is %.9g, expected %.9g within %.3g", #a, near_a, near_b,                      \
                 (double)(tolerance));                                                             \
    } while (0)

/* a counter-based generator of its own, so that no test leans on the code it tests */
static uint64_t test_hash(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static double test_uniform(uint64_t *state) {
    return (double)(test_hash((*state)++) >> 11) * 0x1p-53;
}
static double test_normal(uint64_t *state) {
    double u = test_uniform(state), v = test_uniform(state);
    return sqrt(-2 * log(u + 0x1p-60)) * cos(6.283185307179586 * v);
}
static void test_fill(float *x, size_t n, uint64_t seed) {
    uint64_t s = seed << 32;
    for (size_t i = 0; i < n; i++) x[i] = (float)test_normal(&s);
}
/* ------------------------------------------------------------------------------------------------
 * gemm.h: every product against the naive loop */

#include "gemm.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

typedef void GemmProduct(const Gemm *, float *, size_t, const float *, size_t, const float *,
                         size_t, size_t, size_t, size_t, int, float *, int, int);

static const struct GemmKind {
    const char *name;
    GemmProduct *product;
    int a_transposed, b_transposed;
} gemm_kinds[] = {{"nn", gemm_nn, 0, 0}, {"nt", gemm_nt, 0, 1}, {"tn", gemm_tn, 1, 0}};
static const char *const gemm_isas[] = {"avx512", "avx2", "neon", "portable"};
enum { GEMM_ISAS = sizeof gemm_isas / sizeof *gemm_isas };

/* operands and results of one product, each in a block of exactly its size, so that a sanitizer
 * sees a step over the edge; `pad` columns beyond the tight leading dimensions */
typedef struct GemmCase {
    const struct GemmKind *kind;
    size_t m, n, k, lda, ldb, ldc;
    float *a, *b, *c, *start, *expect, *scratch;
} GemmCase;

static float *gemm_block(size_t n) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (!x) abort();
    return x;
}

static GemmCase gemm_case(const struct GemmKind *kind, size_t m, size_t n, size_t k, size_t pad,
                          uint64_t seed) {
    GemmCase t = {.kind = kind, .m = m, .n = n, .k = k};
    size_t a_rows = kind->a_transposed ? k : m, b_rows = kind->b_transposed ? n : k;
    t.lda = (kind->a_transposed ? m : k) + pad;
    t.ldb = (kind->b_transposed ? k : n) + pad * 2;
    t.ldc = n + pad * 3;
    t.a = gemm_block(a_rows * t.lda);
    t.b = gemm_block(b_rows * t.ldb);
    t.c = gemm_block(m * t.ldc);
    t.start = gemm_block(m * t.ldc);
    t.expect = gemm_block(m * t.ldc);
    t.scratch = gemm_block(gemm_scratch());
    test_fill(t.a, a_rows * t.lda, seed);
    test_fill(t.b, b_rows * t.ldb, seed + 1);
    test_fill(t.start, m * t.ldc, seed + 2);
    memcpy(t.c, t.start, m * t.ldc * sizeof *t.c);
    memcpy(t.expect, t.start, m * t.ldc * sizeof *t.c);
    return t;
}

static void gemm_case_free(GemmCase *t) {
    float *blocks[] = {t->a, t->b, t->c, t->start, t->expect, t->scratch};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

static void gemm_run_naive(GemmCase *t, int accumulate) {
    size_t a_row = t->kind->a_transposed ? 1 : t->lda, a_col = t->kind->a_transposed ? t->lda : 1;
    size_t b_row = t->kind->b_transposed ? 1 : t->ldb, b_col = t->kind->b_transposed ? t->ldb : 1;
    gemm_naive(t->expect, t->ldc, t->a, a_row, a_col, t->b, b_row, b_col, t->m, t->n, t->k,
               accumulate);
}

/* c = start, then the product in nth slices, the last one first; scratch begins as NaN */
static void gemm_run(const Gemm *g, GemmCase *t, int accumulate, int nth) {
    memcpy(t->c, t->start, t->m * t->ldc * sizeof *t->c);
    for (int ith = nth - 1; ith >= 0; ith--) {
        memset(t->scratch, 0xff, gemm_scratch() * sizeof(float));
        t->kind->product(g, t->c, t->ldc, t->a, t->lda, t->b, t->ldb, t->m, t->n, t->k, accumulate,
                         t->scratch, ith, nth);
    }
}

static void gemm_compare(const Gemm *g, const GemmCase *t, int accumulate) {
    /* each of k roundings is at most 2^-24 of a partial sum, whose size is about sqrt(k) */
    double tolerance = 0x1p-24 * 8 * (1 + sqrt((double)t->k)) * (1 + sqrt((double)t->k));
    for (size_t i = 0; i < t->m; i++) {
        for (size_t j = 0; j < t->ldc; j++) {
            double got = t->c[i * t->ldc + j], expect = t->expect[i * t->ldc + j];
            if (fabs(got - expect) <= (j < t->n ? tolerance : 0)) continue;
            FAIL("%s %s m %zu n %zu k %zu ldc %zu accumulate %d: C(%zu,%zu) is %.9g, expected %.9g",
                 g->name, t->kind->name, t->m, t->n, t->k, t->ldc, accumulate, i, j, got, expect);
            return;
        }
    }
}

/* a wide and tall A is packed when its rows lie far apart, a small one never; a short B is not */
TEST(every_isa_agrees_with_the_naive_product_on_ragged_shapes_packed_or_not) {
    static const size_t shapes[][3] = {
        {0, 5, 7},     {5, 0, 7},     {5, 7, 0},     {1, 1, 1},      {1, 33, 19},  {33, 1, 19},
        {2, 3, 5},     {3, 7, 4},     {4, 8, 16},    {5, 9, 17},     {5, 15, 3},   {6, 16, 33},
        {7, 17, 15},   {7, 31, 9},    {8, 32, 24},   {9, 33, 1},     {13, 47, 18}, {63, 65, 31},
        {67, 129, 37}, {70, 40, 383}, {12, 20, 385}, {131, 37, 769}, {9, 545, 40}, {200, 515, 29}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (size_t kind = 0; kind < 3; kind++) {
            for (int option = 0; option < 4; option++) {
                int accumulate = option & 1;
                size_t pad = option & 2 ? 1 + i % 5 : 0;
                GemmCase t = gemm_case(&gemm_kinds[kind], shapes[i][0], shapes[i][1], shapes[i][2],
                                       pad, 100 + i);
                gemm_run_naive(&t, accumulate);
                for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
                    const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
                    if (!g) continue;
                    gemm_run(g, &t, accumulate, 1);
                    gemm_compare(g, &t, accumulate);
                }
                gemm_case_free(&t);
            }
        }
    }
    static const size_t packed[][4] = {
        {70, 131, 400, 290}, {150, 140, 400, 0}, {70, 300, 40, 0}, {37, 36, 400, 290}};
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++) {
        for (size_t kind = 0; kind < 3; kind++) {
            const size_t *s = packed[i];
            GemmCase t = gemm_case(&gemm_kinds[kind], s[0], s[1], s[2], s[3], 300 + i);
            gemm_run_naive(&t, 0);
            for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
                const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
                if (!g) continue;
                gemm_run(g, &t, 0, 1);
                gemm_compare(g, &t, 0);
            }
            gemm_case_free(&t);
        }
    }
}

TEST(product_bits_do_not_depend_on_the_number_of_slices) {
    static const size_t shapes[][3] = {{67, 70, 400}, {1, 130, 50}, {150, 9, 33}, {23, 300, 391}};
    static const int slices[] = {1, 2, 3, 5, 7, 64};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (size_t kind = 0; kind < 3; kind++) {
            const size_t *s = shapes[i];
            GemmCase t = gemm_case(&gemm_kinds[kind], s[0], s[1], s[2], 2, 500 + i);
            size_t bytes = t.m * t.ldc * sizeof *t.c;
            for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
                const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
                if (!g) continue;
                gemm_run(g, &t, 1, 1);
                memcpy(t.expect, t.c, bytes);
                for (size_t j = 0; j < sizeof slices / sizeof *slices; j++) {
                    gemm_run(g, &t, 1, slices[j]);
                    if (memcmp(t.c, t.expect, bytes))
                        FAIL("%s %s shape %zu: %d slices give other bits than one", g->name,
                             t.kind->name, i, slices[j]);
                }
            }
            gemm_case_free(&t);
        }
    }
}

/* C(m,n) of the same values through all three products, tight and padded */
TEST(nn_nt_and_tn_give_the_same_bits) {
    enum { M = 77, N = 141, K = 401 };
    for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
        const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
        if (!g) continue;
        GemmCase first = gemm_case(&gemm_kinds[0], M, N, K, 0, 700);
        gemm_run(g, &first, 0, 1);
        for (size_t kind = 0; kind < 3; kind++) {
            for (size_t pad = 0; pad < 8; pad += 7) {
                GemmCase t = gemm_case(&gemm_kinds[kind], M, N, K, pad, 710);
                int ta = t.kind->a_transposed, tb = t.kind->b_transposed, same = 1;
                for (size_t i = 0; i < M; i++)
                    for (size_t p = 0; p < K; p++)
                        t.a[ta ? p * t.lda + i : i * t.lda + p] = first.a[i * first.lda + p];
                for (size_t p = 0; p < K; p++)
                    for (size_t j = 0; j < N; j++)
                        t.b[tb ? j * t.ldb + p : p * t.ldb + j] = first.b[p * first.ldb + j];
                gemm_run(g, &t, 0, 1);
                for (size_t i = 0; i < M; i++)
                    same &= !memcmp(t.c + i * t.ldc, first.c + i * first.ldc, N * sizeof *t.c);
                if (!same) FAIL("%s %s padded by %zu differs from nn", g->name, t.kind->name, pad);
                gemm_case_free(&t);
            }
        }
        gemm_case_free(&first);
    }
}

/* so that a token decoded alone has the bits of the same token in a batch */
TEST(a_row_of_a_product_has_the_bits_of_that_row_alone) {
    for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
        const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
        if (!g) continue;
        GemmCase t = gemm_case(&gemm_kinds[1], 75, 83, 417, 1, 800);
        float row[83];
        gemm_run(g, &t, 0, 1);
        for (size_t i = 0; i < t.m; i += 37) {
            gemm_nt(g, row, t.n, t.a + i * t.lda, t.lda, t.b, t.ldb, 1, t.n, t.k, 0, t.scratch, 0,
                    1);
            CHECK(!memcmp(row, t.c + i * t.ldc, sizeof row));
        }
        gemm_case_free(&t);
    }
}

TEST(an_empty_inner_dimension_gives_zeros_or_leaves_c_alone) {
    for (size_t kind = 0; kind < 3; kind++) {
        GemmCase t = gemm_case(&gemm_kinds[kind], 19, 45, 0, 1, 900);
        const Gemm *g = gemm_select(NULL, GEMM_F32);
        gemm_run(g, &t, 1, 3);
        CHECK(!memcmp(t.c, t.start, t.m * t.ldc * sizeof *t.c));
        gemm_run(g, &t, 0, 3);
        for (size_t i = 0; i < t.m; i++)
            for (size_t j = 0; j < t.ldc; j++)
                CHECK(t.c[i * t.ldc + j] == (j < t.n ? 0 : t.start[i * t.ldc + j]));
        gemm_case_free(&t);
    }
}

TEST(a_symmetric_product_has_the_bits_of_the_full_one_and_touches_nothing_else) {
    for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
        const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
        for (size_t m = 1; g && m < 300; m += 1 + m / 3) {
            size_t k = 1 + test_hash(m) % 500, lda = k + 3, ldc = m + 5;
            float *a = malloc(m * lda * 4), *c = malloc(m * ldc * 4), *full = malloc(m * ldc * 4);
            float *scratch = malloc(gemm_scratch() * 4);
            test_fill(a, m * lda, m);
            for (size_t i = 0; i < m * ldc; i++) c[i] = full[i] = 42;
            gemm_nt(g, full, ldc, a, lda, a, lda, m, m, k, 0, scratch, 0, 1);
            gemm_symmetric(g, c, ldc, gemm_f32(a, lda, 1), gemm_f32(a, lda, 1), m, k, scratch);
            if (memcmp(c, full, m * ldc * 4) != 0) FAIL("%s, m %zu, k %zu", gemm_isas[isa], m, k);
            free(a), free(c), free(full), free(scratch);
        }
    }
}

/* The row for bf16, or NULL where the CPU has not got it, whatever it says: tried in a child. */
static const Gemm *gemm_bf16_row(const char *isa) {
    const Gemm *g = gemm_select(isa, GEMM_BF16);
    if (!g || g->word != GEMM_PAIRS) return g;
    pid_t pid = fork();
    if (pid == 0) {
        float word[64] = {0}, tile[GEMM_MR_MAX * GEMM_NR_MAX];
        signal(SIGILL, SIG_DFL);
        g->kernel(1, word, 1, 1, word, 1, tile, g->nr, 0);
        _exit(0);
    }
    int status = 1;
    waitpid(pid, &status, 0);
    return status == 0 ? g : NULL;
}

TEST(rounding_to_bf16_is_to_nearest_even_and_keeps_nan_and_infinity) {
    uint64_t seed = 31;
    for (int i = 0; i < 20000; i++) {
        uint32_t bits = (uint32_t)test_hash(seed++), low, up;
        if (i % 4 == 0) bits = (bits & 0xffff0000) | 0x8000; /* ties */
        float x, r, below, above;
        memcpy(&x, &bits, 4);
        if (!isfinite(x) || fabsf(x) > 3e38f) continue;
        low = bits & 0xffff0000, up = low + 0x10000;
        memcpy(&below, &low, 4), memcpy(&above, &up, 4);
        r = gemm_from_bf16(gemm_to_bf16(x));
        double down = fabs((double)x - (double)below), rise = fabs((double)above - (double)x);
        int even = (low >> 16 & 1) == 0;
        if (memcmp(&r, down < rise || (down == rise && even) ? &below : &above, 4))
            FAIL("%a became %a", (double)x, (double)r);
    }
    CHECK(isnan(gemm_from_bf16(gemm_to_bf16(NAN))));
    CHECK(gemm_from_bf16(gemm_to_bf16(-INFINITY)) == -INFINITY);
}

/* odd k, several blocks of k, operands in fp32 and in bf16 memory */
TEST(bf16_products_round_their_operands_and_have_the_same_bits_on_every_isa) {
    static const size_t shapes[][3] = {
        {1, 1, 1}, {7, 33, 5}, {67, 70, 130}, {9, 40, 769}, {131, 37, 385}};
    static const char *const isas[] = {"portable", "avx512bf16", "avx512", "avx2", "neon"};
    for (size_t i = 0; i < 5 * 3; i++) {
        const size_t *s = shapes[i / 3];
        GemmCase t = gemm_case(&gemm_kinds[i % 3], s[0], s[1], s[2], 2, 950 + i);
        size_t na = (t.kind->a_transposed ? t.k : t.m) * t.lda,
               nb = (t.kind->b_transposed ? t.n : t.k) * t.ldb, bytes = t.m * t.ldc * sizeof *t.c;
        uint16_t *ha = malloc(na * 2), *hb = malloc(nb * 2);
        float *a = malloc(na * 4), *b = malloc(nb * 4), *first = malloc(bytes);
        memcpy(a, t.a, na * 4), memcpy(b, t.b, nb * 4);
        for (size_t j = 0; j < na; j++) t.a[j] = gemm_from_bf16(ha[j] = gemm_to_bf16(a[j]));
        for (size_t j = 0; j < nb; j++) t.b[j] = gemm_from_bf16(hb[j] = gemm_to_bf16(b[j]));
        gemm_run_naive(&t, 0);
        memcpy(t.a, a, na * 4), memcpy(t.b, b, nb * 4);
        for (size_t isa = 0; isa < 5; isa++) {
            const Gemm *g = gemm_bf16_row(isas[isa]);
            if (!g) continue;
            gemm_run(g, &t, 0, 1);
            gemm_compare(g, &t, 0);
            if (isa == 0) memcpy(first, t.c, bytes);
            if (memcmp(first, t.c, bytes)) FAIL("%s %s shape %zu", isas[isa], t.kind->name, i);
            int ta = t.kind->a_transposed, tb = t.kind->b_transposed;
            gemm_multiply(g, t.c, t.ldc, gemm_bf16(ha, ta ? 1 : t.lda, ta ? t.lda : 1),
                          gemm_bf16(hb, tb ? t.ldb : 1, tb ? 1 : t.ldb), t.m, t.n, t.k, 0,
                          t.scratch, 0, 1);
            if (memcmp(first, t.c, bytes))
                FAIL("%s %s stored, shape %zu", isas[isa], t.kind->name, i);
        }
        free(ha), free(hb), free(a), free(b), free(first);
        gemm_case_free(&t);
    }
}

/* B packed at once by three threads, A and B packed in slices of the depth, used by three threads */
TEST(packed_operands_give_the_bits_of_plain_ones) {
    static const size_t shapes[][3] = {{5, 9, 17}, {67, 70, 130}, {64, 96, 769}, {131, 37, 385}};
    for (size_t i = 0; i < 4 * 2 * GEMM_ISAS; i++) {
        const size_t *s = shapes[i % 4], m = s[0], n = s[1], k = s[2];
        const Gemm *g = gemm_select(gemm_isas[i / 8], i / 4 % 2 ? GEMM_BF16 : GEMM_F32);
        if (!g) continue;
        GemmCase t = gemm_case(&gemm_kinds[2], m, n, k, 3, 1000 + i);
        float *pa = gemm_block(gemm_packed_floats(g, GEMM_A, m, k)),
              *pb = gemm_block(gemm_packed_floats(g, GEMM_B, n, k)),
              *pd = gemm_block(gemm_packed_floats(g, GEMM_B, n, k));
        gemm_run(g, &t, 0, 1);
        memcpy(t.expect, t.c, m * t.ldc * 4);
        for (int ith = 0; ith < 3; ith++) gemm_pack(g, pb, gemm_f32(t.b, 1, t.ldb), n, k, ith, 3);
        for (size_t from = 0; from < k; from += 64) {
            size_t part = k - from < 64 ? k - from : 64;
            gemm_pack_depth(g, GEMM_A, pa, k, gemm_f32(t.a + from * t.lda, 1, t.lda), m, from,
                            part);
            gemm_pack_depth(g, GEMM_B, pd, k, gemm_f32(t.b + from * t.ldb, 1, t.ldb), n, from,
                            part);
        }
        CHECK(!memcmp(pb, pd, gemm_packed_floats(g, GEMM_B, n, k) * 4));
        for (int packed_a = 0; packed_a < 2; packed_a++) {
            memcpy(t.c, t.start, m * t.ldc * 4);
            for (int ith = 0; ith < 3; ith++)
                gemm_multiply(g, t.c, t.ldc,
                              packed_a ? gemm_packed(pa, k) : gemm_f32(t.a, 1, t.lda),
                              gemm_packed(pb, k), m, n, k, 0, t.scratch, ith, 3);
            if (memcmp(t.c, t.expect, m * t.ldc * 4))
                FAIL("%s, word %d, shape %zu, A packed %d", g->name, (int)g->word, i % 4, packed_a);
        }
        /* the first columns and depths of a longer packed B */
        size_t half = k / 2 / 2 * 2 + 2;
        gemm_multiply(g, t.c, t.ldc, gemm_f32(t.a, 1, t.lda), gemm_packed(pb, k), m, n / 2 + 1,
                      half, 0, t.scratch, 0, 1);
        gemm_tn(g, t.expect, t.ldc, t.a, t.lda, t.b, t.ldb, m, n / 2 + 1, half, 0, t.scratch, 0, 1);
        if (memcmp(t.c, t.expect, m * t.ldc * 4)) FAIL("%s: a part of a packed B", g->name);
        free(pa), free(pb), free(pd);
        gemm_case_free(&t);
    }
}

TEST(the_environment_chooses_the_isa_and_an_unknown_one_is_refused) {
    CHECK(!gemm_select("avx1024", GEMM_F32));
    CHECK(!gemm_select("AVX2", GEMM_F32));
    CHECK(!gemm_select("avx", GEMM_F32));
    CHECK(gemm_select("portable", GEMM_F32) &&
          !strcmp(gemm_select("portable", GEMM_F32)->name, "portable"));
    CHECK(gemm_select(NULL, GEMM_F32) && gemm_select(NULL, GEMM_F32) == gemm_select("", GEMM_F32));
    for (size_t isa = 0; isa < GEMM_ISAS; isa++) {
        const Gemm *g = gemm_select(gemm_isas[isa], GEMM_F32);
        CHECK(!g || !strcmp(g->name, gemm_isas[isa]));
        CHECK(!g || (g->supported() && g->mr <= GEMM_MR_MAX && g->nr <= GEMM_NR_MAX));
    }
    const char *old = getenv("GEMM_ISA");
    char *saved = old ? strdup(old) : NULL;
    setenv("GEMM_ISA", "portable", 1);
    CHECK(gemm_default(GEMM_F32) == gemm_select("portable", GEMM_F32));
    setenv("GEMM_ISA", "sse9", 1);
    CHECK(!gemm_default(GEMM_F32));
    unsetenv("GEMM_ISA");
    CHECK(gemm_default(GEMM_F32) == gemm_select(NULL, GEMM_F32));
    if (saved) setenv("GEMM_ISA", saved, 1);
    free(saved);
}
/* ------------------------------------------------------------------------------------------------
 * dataloader.h and the offline corpus */
#include <sys/stat.h>
#include <unistd.h>
#include "dataloader.h"
#define PLAY_NO_MAIN
#include "data/play.c"

static char data_test_folder[4096], data_test_paths[8][4200];

static void data_test_begin(void) {
    const char *base = getenv("TMPDIR");
    snprintf(data_test_folder, sizeof data_test_folder, "%.3000s/dataXXXXXX",
             base && *base ? base : "/tmp");
    if (!mkdtemp(data_test_folder)) FAIL("no temporary folder %s", data_test_folder);
}

/* a path in the temporary folder; up to eight are valid at a time */
static const char *data_test_path(const char *name) {
    static int next;
    char *path = data_test_paths[next++ % 8];
    snprintf(path, sizeof data_test_paths[0], "%s/%s", data_test_folder, name);
    return path;
}

static void data_test_end(void) {
    glob_t found = {0};
    if (!glob(data_test_path("*"), 0, NULL, &found))
        for (size_t i = 0; i < found.gl_pathc; i++) remove(found.gl_pathv[i]);
    globfree(&found);
    CHECK_EQ(rmdir(data_test_folder), 0);
}

static const char *data_test_write(const char *name, const void *bytes, size_t n) {
    const char *path = data_test_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n) FAIL("cannot write %s", path);
    if (f) fclose(f);
    return path;
}

/* a GPT-2 token file whose token i is first + i modulo 50257 */
static const char *data_test_shard(const char *name, uint32_t magic, uint32_t version,
                                   uint32_t count, uint32_t held, uint32_t first) {
    size_t n = 1024 + 2 * (size_t)held;
    unsigned char *bytes = calloc(n, 1);
    const uint32_t header[3] = {magic, version, count};
    for (unsigned i = 0; bytes && i < 12; i++)
        bytes[i] = (unsigned char)(header[i / 4] >> 8 * (i % 4));
    for (uint32_t i = 0; bytes && i < held; i++) {
        uint32_t token = (first + i) % 50257;
        bytes[1024 + 2 * i] = (unsigned char)token;
        bytes[1025 + 2 * i] = (unsigned char)(token >> 8);
    }
    const char *path = data_test_write(name, bytes, n);
    free(bytes);
    return path;
}

/* a token file of n tokens 0, 1, 2, .. so that a token tells its position */
static int data_test_counting(DataSet *d, uint32_t n) {
    char error[512] = "";
    int code = data_open(d, data_test_shard("count.bin", 20240520, 1, n, n, 0), "auto", error,
                         sizeof error);
    if (code) FAIL("%s", error);
    return code;
}

/* opening must fail with a sentence that names the path and holds the words */
static void data_test_refused(const char *path, const char *vocab, const char *words) {
    char error[512] = "";
    DataSet d;
    if (data_open(&d, path, vocab, error, sizeof error) >= 0) {
        FAIL("%s was not refused", path);
        data_close(&d);
    } else if (!strstr(error, path) || !strstr(error, words) || strchr(error, '\n'))
        FAIL("the refusal of %s reads '%s', not '%s'", path, error, words);
}

TEST(data_split_is_nanogpts_ninety_and_ten_percent_by_position) {
    data_test_begin();
    static char text[1115394];
    char error[512];
    DataSet d;
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i % 7);
    memcpy(text + 1003854, "#", 1);
    CHECK_EQ(
        data_open(&d, data_test_write("t.txt", text, sizeof text), "auto", error, sizeof error), 0);
    CHECK_EQ(d.train_tokens, 1003854);
    CHECK_EQ(d.val_tokens, 111540);
    CHECK_EQ(d.vocab.size, 8);
    int32_t in[5], target[5];
    CHECK_EQ(data_val_window(&d, 5, 0, in, target), 5);
    CHECK_EQ(in[0], 0); /* '#' sorts first and opens the validation split */
    data_close(&d);
    const size_t lengths[] = {1, 2, 9, 10, 11, 19, 99, 101};
    const uint64_t train[] = {0, 1, 8, 9, 9, 17, 89, 90};
    for (size_t i = 0; i < 8; i++) {
        CHECK_EQ(data_open(&d, data_test_write("s", text, lengths[i]), "auto", error, sizeof error),
                 0);
        CHECK_EQ(d.train_tokens, train[i]);
        CHECK_EQ(d.train_tokens + d.val_tokens, lengths[i]);
        data_close(&d);
    }
    data_test_end();
}

TEST(data_shards_of_workers_are_disjoint_and_cover_the_training_split) {
    data_test_begin();
    const uint32_t sizes[] = {11380, 34567, 700, 50257};
    const size_t workers[] = {1, 2, 3, 7}, contexts[] = {8, 33, 300};
    for (size_t s = 0; s < 4; s++) {
        DataSet d;
        if (data_test_counting(&d, sizes[s])) continue;
        for (size_t c = 0; c < 12; c++) {
            size_t N = workers[c % 4], T = contexts[c / 4];
            unsigned char *seen = calloc(d.train_tokens, 1);
            uint64_t total = 0, shortest = UINT64_MAX;
            for (size_t rank = 0; seen && rank < N; rank++) {
                uint64_t length = data_shard_length(&d, rank, N, T);
                total += length;
                if (length < shortest) shortest = length;
                for (uint64_t at = 0; at < length; at++) {
                    int32_t token = -1;
                    CHECK_EQ(data__read_shard(&d, rank, N, T, at, 1, &token), 0);
                    if (token >= 0 && (uint64_t)token < d.train_tokens)
                        seen[token]++;
                    else
                        FAIL("token %d is not of the training split", token);
                    if (N == 1) CHECK_EQ(token, at);
                }
            }
            CHECK_EQ(total, d.train_tokens);
            for (uint64_t i = 0; seen && i < d.train_tokens; i++)
                if (seen[i] != 1)
                    FAIL("token %d is seen %d times, %d workers", (int)i, seen[i], (int)N);
            char error[512];
            CHECK((data_check_context(&d, T, N, error, sizeof error) == 0) == (shortest > T));
            free(seen);
        }
        data_close(&d);
    }
    data_test_end();
}

TEST(data_order_is_a_permutation_of_windows_that_differs_by_epoch_worker_and_seed) {
    data_test_begin();
    DataSet d;
    const size_t T = 12, N = 3;
    int32_t in[12], target[12];
    if (data_test_counting(&d, 20011)) return;
    uint64_t windows = data_train_windows(&d, 1, N, T);
    CHECK_EQ(windows, (data_shard_length(&d, 1, N, T) - T) / T);
    int32_t *order[5];
    for (int variant = 0; variant < 5; variant++) {
        /* epoch 0; epoch 5; worker 2; seed 8; epoch 0 again, backwards */
        uint64_t seed = variant == 3 ? 8 : 7, epoch = variant == 1 ? 5 : 0;
        size_t rank = variant == 2 ? 2 : 1;
        order[variant] = calloc(windows + 100, sizeof(int32_t));
        unsigned char *seen = calloc(20011, 1);
        uint64_t windows_here = data_train_windows(&d, rank, N, T);
        for (uint64_t i = 0; i < windows_here; i++) {
            uint64_t k = variant == 4 ? windows_here - 1 - i : i;
            CHECK_EQ(data_train_window(&d, seed, rank, N, T, epoch * windows_here + k, in, target),
                     0);
            for (size_t t = 0; t < T; t++) {
                if (seen[in[t]]++) FAIL("token %d twice in an epoch", in[t]);
                if (t + 1 < T) CHECK_EQ(target[t], in[t + 1]);
                CHECK((uint64_t)in[t] / 1024 % N == rank && (uint64_t)in[t] < d.train_tokens);
                int jump = target[t] - in[t]; /* 1, or to the worker's next block */
                CHECK(jump == 1 || (jump == 1 + 1024 * (int)(N - 1) && in[t] % 1024 == 1023));
            }
            /* the window's place in the shard, whatever the offset and the worker's blocks */
            int32_t at = in[0] / (1024 * (int32_t)N) * 1024 + in[0] % 1024;
            if (k < windows) order[variant][k] = at / (int32_t)T;
        }
        free(seen);
    }
    CHECK(memcmp(order[0], order[4], windows * sizeof(int32_t)) == 0);
    for (int variant = 1; variant < 4; variant++) {
        uint64_t same = 0;
        for (uint64_t i = 0; i < windows; i++) same += order[variant][i] == order[0][i];
        CHECK(same < windows / 20);
    }
    uint64_t rising = 0; /* a shuffled order rises about half the time */
    for (uint64_t i = 1; i < windows; i++) rising += order[0][i] > order[0][i - 1];
    CHECK(rising > windows * 2 / 5 && rising < windows * 3 / 5);
    for (int variant = 0; variant < 5; variant++) free(order[variant]);
    data_close(&d);
    data_test_end();
    unsigned char seen[600];
    for (uint64_t n = 1; n <= 600; n++) {
        memset(seen, 0, sizeof seen);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t j = data__permute(data__hash(3, n, 1), n, i);
            CHECK(j < n);
            if (j < n) CHECK_EQ(seen[j]++, 0);
        }
    }
    CHECK(data__permute(1, (uint64_t)1 << 40, 12345) < (uint64_t)1 << 40);
    CHECK(data__permute(1, UINT64_MAX, 12345) < UINT64_MAX);
}

TEST(data_shortest_possible_shard_has_one_window_inside_it) {
    data_test_begin();
    DataSet d;
    int32_t in[9], target[9];
    char error[512];
    for (uint32_t n = 10; n < 24; n++) {
        if (data_test_counting(&d, n)) return;
        if (data_check_context(&d, 9, 1, error, sizeof error))
            CHECK(d.train_tokens < 10);
        else
            for (uint64_t k = 0; k < 30; k++) {
                CHECK_EQ(data_train_window(&d, 1, 0, 1, 9, k, in, target), 0);
                CHECK(in[0] >= 0 && target[8] == in[0] + 9 && (uint64_t)target[8] < d.train_tokens);
            }
        data_close(&d);
    }
    data_test_end();
}

TEST(data_validation_counts_every_prediction_once_shifted_by_one) {
    data_test_begin();
    DataSet d;
    char error[512];
    int32_t in[1000], target[1000];
    for (int separate = 0; separate < 2; separate++) {
        if (data_test_counting(&d, 10000)) return;
        int64_t first = 9000;
        if (separate) {
            const char *path = data_test_shard("val.bin", 20240520, 1, 1000, 1000, 400);
            CHECK_EQ(data_open_val(&d, path, error, sizeof error), 0);
            CHECK_EQ(d.train_tokens, 10000);
            first = 400;
        }
        CHECK_EQ(d.val_tokens, 1000);
        const size_t contexts[] = {1, 7, 64, 998, 999, 1000, 333};
        for (size_t c = 0; c < 7; c++) {
            size_t T = contexts[c];
            int64_t next = first, total = 0;
            for (uint64_t w = 0; w < data_val_windows(&d, T); w++) {
                int64_t real = data_val_window(&d, T, w, in, target);
                CHECK(real >= 1 && real <= (int64_t)T);
                for (size_t t = 0; t < T; t++)
                    if ((int64_t)t < real) {
                        CHECK_EQ(in[t], next);
                        CHECK_EQ(target[t], next + 1);
                        next++;
                    } else
                        CHECK_EQ(target[t], -1);
                total += real;
            }
            CHECK_EQ(total, 999);
        }
        data_close(&d);
    }
    data_test_end();
}

TEST(data_text_becomes_characters_in_order_of_code_point) {
    data_test_begin();
    DataSet d;
    char error[512], out[DATA_DECODED], back[64];
    const char *text = "z\xc3\xa9\x61\xe2\x82\xac\xf0\x9f\x99\x82"
                       "a\n";
    CHECK_EQ(
        data_open(&d, data_test_write("u.txt", text, strlen(text)), "auto", error, sizeof error),
        0);
    CHECK(d.vocab.kind == DATA_CHARS && d.text.copy);
    CHECK_EQ(d.vocab.size, 6);
    CHECK_EQ(d.text.tokens, 7);
    const int32_t expect[7] = {2, 3, 1, 4, 5, 1, 0};
    int32_t got[7];
    CHECK_EQ(data__read(&d.text, &d.vocab, 0, 7, got), 0);
    size_t n = 0;
    for (int i = 0; i < 7; i++) {
        CHECK_EQ(got[i], expect[i]);
        size_t m = data_decode(&d.vocab, (unsigned)got[i], out);
        memcpy(back + n, out, m);
        n += m;
    }
    CHECK(n == strlen(text) && !memcmp(back, text, n));
    CHECK_EQ(data_decode(&d.vocab, 6, out), 0);
    uint16_t tokens[16];
    CHECK_EQ(data_encode(&d.vocab, text, tokens, 16), 7);
    for (int i = 0; i < 7; i++) CHECK_EQ(tokens[i], expect[i]);
    CHECK_EQ(data_encode(&d.vocab, text, tokens, 2), 7);
    CHECK_EQ(data_encode(&d.vocab, "", tokens, 16), 0);
    CHECK_EQ(data_encode(&d.vocab, "a\xc3\xa9q", tokens, 16), -4); /* q is at offset 3 */
    CHECK_EQ(data_encode(&d.vocab, "a\xff", tokens, 16), -2);
    CHECK_EQ(data_encode(&d.vocab, "a\xe2\x82", tokens, 16), -2);
    data_close(&d);
    CHECK_EQ(data_open(&d, data_test_path("u.txt"), "bytes", error, sizeof error), 0);
    CHECK_EQ(d.text.tokens, strlen(text));
    data_close(&d);
    data_test_end();
}

TEST(data_of_all_byte_values_is_read_as_bytes_or_refused_as_characters) {
    data_test_begin();
    DataSet d;
    char error[512], out[DATA_DECODED], all[1024];
    int32_t got[1024];
    for (int i = 0; i < 1024; i++) all[i] = (char)(unsigned char)(255 - i % 256);
    const char *path = data_test_write("all", all, sizeof all);
    CHECK_EQ(data_open(&d, path, "auto", error, sizeof error), 0);
    CHECK(d.vocab.kind == DATA_BYTES && d.vocab.size == 256 && !d.text.copy);
    CHECK_EQ(data__read(&d.text, &d.vocab, 0, 1024, got), 0);
    for (int i = 0; i < 1024; i++) {
        CHECK_EQ(got[i], 255 - i % 256);
        CHECK_EQ(data_decode(&d.vocab, (unsigned)got[i], out), 1);
        CHECK_EQ(out[0], all[i]);
    }
    data_close(&d);
    data_test_refused(path, "chars", "not UTF-8 at byte 0;");
    data_test_refused(data_test_write("late", "abc\n\xc3(", 6), "chars", "not UTF-8 at byte 4;");
    const char *const invalid[] = {"a\x80",
                                   "a\xc0\x80",
                                   "a\xc1\xbf",
                                   "a\xe0\x80\x80",
                                   "a\xed\xa0\x80",
                                   "a\xf4\x90\x80\x80",
                                   "a\xf0\x80\x80\x80",
                                   "a\xf8\x88\x80\x80\x80",
                                   "a\xe2\x82",
                                   "a\xfe",
                                   "a\xc3"};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        path = data_test_write("bad", invalid[i], strlen(invalid[i]));
        data_test_refused(path, "chars", "not UTF-8 at byte 1;");
        CHECK_EQ(data_open(&d, path, "auto", error, sizeof error), 0);
        CHECK(d.vocab.kind == DATA_BYTES);
        data_close(&d);
    }
    CHECK_EQ(data_open(&d, data_test_write("nul", "a\0b\0", 4), "auto", error, sizeof error), 0);
    CHECK(d.vocab.kind == DATA_CHARS && d.vocab.size == 3 && d.vocab.code[0] == 0);
    data_close(&d);
    data_test_end();
}

TEST(data_of_more_than_65535_distinct_characters_is_refused) {
    data_test_begin();
    char *text = malloc(70000 * 4);
    for (uint32_t i = 0; text && i < 70000; i++) {
        uint32_t c = 0x20000 + i;
        const unsigned char four[4] = {
            (unsigned char)(0xf0 | c >> 18), (unsigned char)(0x80 | (c >> 12 & 63)),
            (unsigned char)(0x80 | (c >> 6 & 63)), (unsigned char)(0x80 | (c & 63))};
        memcpy(text + 4 * i, four, 4);
    }
    DataSet d;
    char error[512];
    data_test_refused(data_test_write("wide", text, 65536 * 4), "auto",
                      "65536 distinct characters, at most 65535");
    CHECK_EQ(data_open(&d, data_test_write("full", text, 65535 * 4), "auto", error, sizeof error),
             0);
    int32_t last = 0;
    CHECK_EQ(data__read(&d.text, &d.vocab, 65534, 1, &last), 0);
    CHECK_EQ(last, 65534);
    data_close(&d);
    free(text);
    data_test_end();
}

TEST(data_token_files_join_in_order_of_name_and_windows_cross_their_borders) {
    data_test_begin();
    DataSet d;
    char error[512], out[DATA_DECODED];
    /* written out of order; 10 sorts before 9, as strings do */
    data_test_shard("x_9.bin", 20240520, 1, 23, 23, 1003);
    data_test_shard("x_00.bin", 20240520, 1, 1000, 1000, 0);
    data_test_shard("x_10.bin", 20240520, 1, 3, 3, 1000);
    CHECK_EQ(data_open(&d, data_test_path("x_*.bin"), "auto", error, sizeof error), 0);
    CHECK_EQ(d.text.files, 3);
    CHECK_EQ(d.text.tokens, 1026);
    CHECK_EQ(d.vocab.size, 50257);
    int32_t got[40];
    for (uint64_t at = 0; at + 40 <= 1026; at++) {
        CHECK_EQ(data__read(&d.text, &d.vocab, at, 40, got), 0);
        for (int i = 0; i < 40; i++) CHECK_EQ(got[i], at + (uint64_t)i);
    }
    uint16_t token;
    CHECK_EQ(data_encode(&d.vocab, "hello", &token, 1), -1);
    CHECK(data_decode(&d.vocab, 50256, out) == 7 && !memcmp(out, "[50256]", 7));
    CHECK_EQ(data_decode(&d.vocab, 50257, out), 0);
    data_close(&d);
    data_test_refused(data_test_path("y_*.bin"), "auto", "no file matches");
    data_test_write("x_text", "hello", 5);
    data_test_refused(data_test_path("x_text"), "gpt2:50257",
                      "text file cannot have the vocabulary 'gpt2:50257'");
    data_test_refused(data_test_path("x_9.bin"), "chars",
                      "token file cannot have the vocabulary 'chars'");
    CHECK(data_open(&d, data_test_path("x_*"), "auto", error, sizeof error) < 0);
    CHECK(strstr(error, "x_text") && strstr(error, "do not mix"));
    const unsigned char big[4] = {0xff, 0xff, 0, 0};
    FILE *f = fopen(data_test_shard("big", 20240520, 1, 40, 40, 0), "r+b");
    if (f) {
        fseek(f, 1024 + 2 * 7, SEEK_SET);
        fwrite(big, 1, 2, f);
        fclose(f);
    }
    CHECK_EQ(data_open(&d, data_test_path("big"), "auto", error, sizeof error), 0);
    CHECK_EQ(d.vocab.size, 65536);
    data_close(&d);
    CHECK_EQ(data_open(&d, data_test_path("big"), "gpt2:50257", error, sizeof error), 0);
    CHECK_EQ(data__read(&d.text, &d.vocab, 0, 7, got), 0);
    CHECK_EQ(data__read(&d.text, &d.vocab, 7, 1, got), DATA_CHANGED);
    data_close(&d);
    data_test_end();
}

TEST(data_that_cannot_be_used_is_refused_with_a_sentence_naming_it) {
    data_test_begin();
    data_test_refused(data_test_path("missing.txt"), "auto", "No such file");
    data_test_refused(data_test_folder, "auto", "is a directory");
    data_test_refused("/dev/null", "auto", "not a regular file");
    data_test_refused(data_test_write("empty.txt", "", 0), "auto", "file is empty; give a text");
    data_test_refused(data_test_write("empty.bin", "", 0), "auto", "file is empty");
    data_test_refused(data_test_write("t.txt", "hello", 5), "words", "'words' is no vocabulary");
    data_test_refused(data_test_path("t.txt"), "chars:61-", "is no vocabulary");
    data_test_refused(data_test_path("t.txt"), "chars:61-6b", "character U+6C at byte 2 is not in");
    data_test_refused(data_test_path("t.txt"), "bytes:61-6b", "byte value 6C at byte 2 is not in");
    data_test_refused(data_test_shard("magic.bin", 0, 1, 9, 9, 0), "auto",
                      "not a token file (magic 0, expected 20240520)");
    data_test_refused(data_test_write("short.bin", "ab", 2), "auto", "not a token file");
    data_test_refused(data_test_shard("version.bin", 20240520, 7, 9, 9, 0), "auto",
                      "version 7, expected 1");
    data_test_refused(data_test_shard("cut.bin", 20240520, 1, 100, 37, 0), "auto",
                      "header promises 100 tokens, the file holds 37: it is truncated");
    data_test_refused(data_test_shard("long.bin", 20240520, 1, 37, 100, 0), "auto",
                      "something was added");
    data_test_refused(data_test_shard("none.bin", 20240520, 1, 0, 0, 0), "auto",
                      "promises 0 tokens");
    data_test_refused(data_test_shard("minus.bin", 20240520, 1, UINT32_MAX, 3, 0), "auto",
                      "truncated");
    const char *path = data_test_shard("header.bin", 20240520, 1, 9, 9, 0);
    CHECK_EQ(truncate(path, 500), 0);
    data_test_refused(path, "auto", "truncated");
    if (geteuid()) { /* root may read everything */
        path = data_test_write("locked.txt", "hello", 5);
        chmod(path, 0);
        data_test_refused(path, "auto", "Permission denied");
    }
    DataSet d;
    char error[512];
    CHECK_EQ(data_open(&d, data_test_write("one.txt", "x", 1), "auto", error, sizeof error), 0);
    CHECK(data_check_context(&d, 1, 1, error, sizeof error) < 0);
    CHECK(strstr(
        error,
        "one.txt: too short: 0 tokens to train 1 worker, each needs at least context + 1 = 2"));
    data_close(&d);
    CHECK_EQ(
        data_open(&d, data_test_write("ten.txt", "abcdefghij", 10), "auto", error, sizeof error),
        0);
    CHECK(data_check_context(&d, 8, 1, error, sizeof error) < 0 &&
          strstr(error, "1 tokens to validate on"));
    CHECK(data_check_context(&d, 4, 2, error, sizeof error) < 0 && strstr(error, "2 workers"));
    CHECK(data_check_context(&d, 0, 1, error, sizeof error) < 0);
    CHECK(data_open_val(&d, data_test_write("other.txt", "abcxyz", 6), error, sizeof error) < 0);
    CHECK(strstr(error, "other.txt: character U+78 at byte 3"));
    CHECK(data_open_val(&d, data_test_path("long.bin"), error, sizeof error) < 0);
    CHECK(data_open_val(&d, data_test_shard("v.bin", 20240520, 1, 9, 9, 0), error, sizeof error) <
          0);
    CHECK(strstr(error, "v.bin: is a token file") && d.val_tokens == 1 && d.train_tokens == 9);
    CHECK_EQ(data_open_val(&d, data_test_write("good.txt", "abcba", 5), error, sizeof error), 0);
    CHECK(d.val_tokens == 5 && d.train_tokens == 10);
    CHECK_EQ(data_check_context(&d, 8, 1, error, sizeof error), 0);
    data_close(&d);
    data_test_end();
}

TEST(data_file_that_shrinks_or_is_edited_while_open_gives_a_code_and_no_crash) {
    data_test_begin();
    DataSet d;
    char error[512], text[20000];
    int32_t in[64], target[64];
    memset(text, 'a', sizeof text);
    const char *path = data_test_write("s.txt", text, sizeof text);
    CHECK_EQ(data_open(&d, path, "auto", error, sizeof error), 0);
    CHECK_EQ(data_train_window(&d, 1, 0, 1, 64, 0, in, target), 0);
    FILE *f = fopen(path, "r+b");
    memset(text, 'b', sizeof text);
    if (f) {
        fwrite(text, 1, sizeof text, f);
        fclose(f);
    }
    CHECK_EQ(data_train_window(&d, 1, 0, 1, 64, 0, in, target), DATA_CHANGED);
    CHECK_EQ(truncate(path, 10), 0);
    CHECK_EQ(data_train_window(&d, 1, 0, 1, 64, 0, in, target), DATA_CHANGED);
    CHECK_EQ(data_val_window(&d, 64, 0, in, target), DATA_CHANGED);
    CHECK(strstr(data_strerror(DATA_CHANGED), "shrank"));
    for (int code = -8; code < 3; code++) CHECK(*data_strerror(code));
    data_close(&d);
    data_test_end();
}

TEST(data_beyond_two_gigabytes_is_read_at_the_right_place) {
    if (sizeof(size_t) < 8) return;
    data_test_begin();
    const uint32_t count = 1250000000; /* 2.5 GB each, sparse */
    for (int k = 0; k < 2; k++) {
        const char *path = data_test_shard(k ? "h1.bin" : "h0.bin", 20240520, 1, count, 0, 0);
        CHECK_EQ(truncate(path, 1024 + 2 * (off_t)count), 0);
        FILE *f = fopen(path, "r+b");
        const unsigned char mark[2] = {0x39, (unsigned char)(0x30 + k)};
        if (!f) continue;
        fseeko(f, 1024 + 2 * (off_t)(count - 5), SEEK_SET);
        fwrite(mark, 1, 2, f);
        fclose(f);
    }
    DataSet d;
    char error[512];
    int32_t got[3];
    CHECK_EQ(data_open(&d, data_test_path("h?.bin"), "auto", error, sizeof error), 0);
    CHECK_EQ(d.text.tokens, 2500000000);
    CHECK_EQ(d.train_tokens, 2250000000);
    CHECK_EQ(data__read(&d.text, &d.vocab, count - 6, 3, got),
             0); /* beyond byte 2^31 of its file */
    CHECK(got[0] == 0 && got[1] == 0x3039 && got[2] == 0);
    CHECK_EQ(data__read(&d.text, &d.vocab, 2 * (uint64_t)count - 6, 3, got),
             0); /* beyond token 2^31 */
    CHECK(got[0] == 0 && got[1] == 0x3139 && got[2] == 0);
    int32_t in[8], target[8];
    CHECK_EQ(data_val_window(&d, 8, data_val_windows(&d, 8) - 1, in, target), 7);
    CHECK(in[3] == 0x3139 && target[2] == 0x3139);
    CHECK_EQ(data_train_window(&d, 1, 6, 7, 8, 30000000000, in, target), 0);
    data_close(&d);
    data_test_end();
}

TEST(data_vocabulary_survives_export_and_import) {
    data_test_begin();
    const char *const texts[] = {"hello\n", "\n !ABC", "z\xc3\xa9z\xe2\x82\xac\xf0\x9f\x99\x82",
                                 "\xff\x01\xfe"};
    const char *const expect[] = {"chars:a,65,68,6c,6f", "chars:a,20-21,41-43",
                                  "chars:7a,e9,20ac,1f642", "bytes:1,fe-ff"};
    for (int i = 0; i < 4; i++) {
        DataSet d, again;
        DataVocab v;
        char error[512], text[64], twice[64];
        const char *path = data_test_write("v.txt", texts[i], strlen(texts[i]));
        CHECK_EQ(data_open(&d, path, "auto", error, sizeof error), 0);
        size_t n = data_vocab_export(&d.vocab, text, sizeof text);
        CHECK(n == strlen(expect[i]) && !strcmp(text, expect[i]));
        for (size_t small = 0; small <= n; small++) { /* like snprintf */
            memset(twice, 'X', sizeof twice);
            CHECK_EQ(data_vocab_export(&d.vocab, twice, small), n);
            if (small) CHECK(strlen(twice) == small - 1 && !memcmp(twice, text, small - 1));
            CHECK(twice[small] == 'X');
        }
        CHECK_EQ(data_vocab_import(&v, text, n), 0);
        CHECK(v.kind == d.vocab.kind && v.size == d.vocab.size);
        CHECK(v.size == d.vocab.size && !memcmp(v.code, d.vocab.code, v.size * sizeof *v.code));
        CHECK(!memcmp(v.id, d.vocab.id, 0x110000 * sizeof *v.id));
        CHECK_EQ(data_open(&again, path, text, error, sizeof error),
                 0); /* as the vocabulary in use */
        data_close(&again);
        data_vocab_free(&v);
        data_close(&d);
    }
    DataVocab v;
    char text[32];
    CHECK_EQ(data_vocab_import(&v, "gpt2:50257", 10), 0);
    CHECK(data_vocab_export(&v, text, sizeof text) == 10 && !strcmp(text, "gpt2:50257"));
    data_vocab_free(&v);
    data_test_end();
}

TEST(data_malformed_vocabularies_are_refused) {
    const char *const bad[] = {"",
                               ":",
                               "chars",
                               "chars:",
                               "char:61",
                               "chars:61,",
                               "chars:,61",
                               "chars:61-",
                               "chars:-61",
                               "chars:62-61",
                               "chars:61,61",
                               "chars:62,61",
                               "chars:61-63,62",
                               "chars:110000",
                               "chars:0-10ffff",
                               "chars:d800",
                               "chars:d7ff-d801",
                               "bytes:100",
                               "bytes:ff-100",
                               "chars:61 ",
                               "chars:6A",
                               "chars:00000061",
                               "chars:ffffffffffffffff",
                               "gpt2:",
                               "gpt2:0",
                               "gpt2:65537",
                               "gpt2:9999999999",
                               "gpt2:12x",
                               "gpt3:5",
                               "chars:0-ffff",
                               "chars:0-d7ff,e000-11000"};
    DataVocab v;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *exact =
            malloc(strlen(bad[i]) + 1); /* no NUL behind, so that a sanitizer sees overreads */
        memcpy(exact, bad[i], strlen(bad[i]));
        exact = realloc(exact, strlen(bad[i]) ? strlen(bad[i]) : 1);
        if (data_vocab_import(&v, exact, strlen(bad[i])) >= 0) {
            FAIL("'%s' was accepted", bad[i]);
            data_vocab_free(&v);
        }
        free(exact);
    }
    uint64_t state = 99;
    const char letters[] = "chars:bytes:gpt2:0123456789abcdef,,,---";
    for (int i = 0; i < 3000; i++) {
        char text[40] = "bytes:";
        size_t n = 6 + (size_t)(test_uniform(&state) * 12);
        for (size_t k = 6; k < n; k++)
            text[k] = letters[(size_t)(test_uniform(&state) * (sizeof letters - 1))];
        if (data_vocab_import(&v, text, n)) continue;
        char again[64]; /* whatever is accepted means something: it exports and imports the same */
        DataVocab w;
        size_t m = data_vocab_export(&v, again, sizeof again);
        CHECK_EQ(data_vocab_import(&w, again, m), 0);
        CHECK(v.size == w.size && v.size > 0 && !memcmp(v.code, w.code, v.size * sizeof *v.code));
        data_vocab_free(&v);
        data_vocab_free(&w);
    }
}

TEST(data_floor_is_the_number_beside_the_text_or_zero) {
    data_test_begin();
    const char *const good = "0.5351925\n", *const bad[] = {"",      "\n",    "-1\n",  "0\n",
                                                            "nan\n", "inf\n", "1 2\n", "x"};
    const char *path = data_test_write("t.txt", "hello", 5);
    CHECK(data_floor(path) == 0);
    data_test_write("t.txt.entropy", good, strlen(good));
    CHECK_NEAR(data_floor(path), 0.5351925, 1e-12);
    DataSet d;
    char error[512];
    CHECK_EQ(data_open(&d, path, "auto", error, sizeof error), 0);
    CHECK_NEAR(d.floor, 0.5351925, 1e-12);
    data_close(&d);
    for (size_t i = 0; i < 8; i++) {
        data_test_write("t.txt.entropy", bad[i], strlen(bad[i]));
        CHECK(data_floor(path) == 0);
    }
    data_test_end();
}

/* ------------------------------------------------------------------------------------------------
 * dataloader.h: how the training split is cut into shards */

/* token p of window k as the header's first screen defines it for iid shards, step by step: the
 * splitmix64 chain, the Feistel walk, the offset, the dealing of blocks. The data is counting, so a
 * token is its position. */
static uint64_t data_test_hash3(uint64_t seed, uint64_t a, uint64_t b) {
    return test_hash(test_hash(test_hash(seed) ^ a) ^ b);
}

static uint64_t data_test_walk(uint64_t key, uint64_t n, uint64_t i) {
    unsigned bits = 2;
    while (bits < 64 && n > (uint64_t)1 << bits) bits += 2;
    uint64_t low = ((uint64_t)1 << bits / 2) - 1;
    do {
        uint64_t l = i >> bits / 2, r = i & low;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t f = data_test_hash3(key, round, r) & low, swap = r;
            r = l ^ f;
            l = swap;
        }
        i = l << bits / 2 | r;
    } while (i >= n);
    return i;
}

static uint64_t data_test_iid(uint64_t train, uint64_t seed, size_t rank, size_t N, size_t T,
                              uint64_t k, uint64_t p) {
    uint64_t block = T > 256 ? 4 * T : 1024, length = 0;
    if (train / N < block) block = train / N;
    for (uint64_t at = 0; at < train; at += block)
        if (at / block % N == rank) length += train - at < block ? train - at : block;
    uint64_t windows = length < 2 * T ? 1 : length / T - 1, epoch = k / windows;
    uint64_t room = length - windows * T < T ? length - windows * T : T;
    uint64_t start = data_test_hash3(seed, epoch, UINT64_MAX) % room;
    start += T * data_test_walk(data_test_hash3(seed, epoch, rank), windows, k % windows) + p;
    return (start / block * N + rank) * block + start % block;
}

static int data_test_shards(DataSet *d, const char *text, size_t N, size_t T, uint64_t seed) {
    char error[512] = "";
    int code = data_set_shards(d, text, N, T, seed, error, sizeof error);
    if (!code) code = data_check_context(d, T, N, error, sizeof error);
    if (code) FAIL("%s, %d workers: %s", text, (int)N, error);
    return code;
}

TEST(data_iid_shards_are_blocks_dealt_in_turn_and_windows_walk_them_as_ever) {
    data_test_begin();
    static const struct {
        uint32_t tokens;
        size_t N, T;
    } shape[] = {{20011, 1, 12}, {20011, 3, 12}, {50257, 7, 300}, {700, 5, 33}, {34567, 2, 1000}};
    static int32_t in[1000], target[1000];
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        DataSet d;
        size_t N = shape[s].N, T = shape[s].T;
        if (data_test_counting(&d, shape[s].tokens)) continue;
        for (uint64_t i = 0; i < 60 * N; i++) {
            if (i == 30 * N) data_test_shards(&d, "iid", N, T, 3); /* the same, said aloud */
            uint64_t seed = 5 + i / 30, k = i % 3 ? i / N : i * 1000003;
            CHECK_EQ(data_train_window(&d, seed, i % N, N, T, k, in, target), 0);
            for (uint64_t p = 0; p < T; p++) {
                CHECK_EQ(in[p], data_test_iid(d.train_tokens, seed, i % N, N, T, k, p));
                CHECK_EQ(target[p], data_test_iid(d.train_tokens, seed, i % N, N, T, k, p + 1));
            }
        }
        data_close(&d);
    }
    data_test_end();
}

/* the whole shard of a worker, read in pieces of 1, 2, .. 50 tokens; the caller frees it */
static int32_t *data_test_read(const DataSet *d, size_t rank, size_t N, size_t T) {
    uint64_t length = data_shard_length(d, rank, N, T), at = 0;
    int32_t *token = calloc(length + 1, sizeof *token);
    for (uint64_t n = 1; token && at < length; at += n, n = n % 50 + 1) {
        if (n > length - at) n = length - at;
        CHECK_EQ(data__read_shard(d, rank, N, T, at, n, token + at), 0);
    }
    return token;
}

/* owner[i] is the worker that holds token i of the training split, -1 for none, -2 for several */
static void data_test_owners(const DataSet *d, size_t N, size_t T, int *owner) {
    for (uint64_t i = 0; i < d->train_tokens; i++) owner[i] = -1;
    for (size_t rank = 0; rank < N; rank++) {
        int32_t *token = data_test_read(d, rank, N, T);
        for (uint64_t i = 0; i < data_shard_length(d, rank, N, T); i++)
            owner[token[i]] = owner[token[i]] == -1 ? (int)rank : -2;
        free(token);
    }
}

/* every way to cut the text that must leave nothing out and give nothing twice */
static const char *const data_test_cuts[] = {"iid",           "contiguous",  "dirichlet:1e-6",
                                             "dirichlet:0.1", "dirichlet:1", "dirichlet:1e6"};
enum { DATA_TEST_CUTS = sizeof data_test_cuts / sizeof *data_test_cuts };

TEST(data_shards_of_every_kind_but_file_are_disjoint_and_cover_the_training_split) {
    data_test_begin();
    const uint32_t sizes[] = {50257, 20011, 3000};
    const size_t workers[] = {1, 2, 3, 7}, contexts[] = {8, 33};
    static int owner[50257];
    for (size_t i = 0; data_shards_row(i); i++) {
        const char *name = data_shards_row(i)->name;
        int tested = strcmp(name, "file") == 0;
        for (size_t c = 0; c < DATA_TEST_CUTS; c++)
            tested |= strncmp(data_test_cuts[c], name, strlen(name)) == 0;
        if (!tested) FAIL("no test of shards %s", name);
    }
    for (size_t s = 0; s < 3 * 8 * DATA_TEST_CUTS; s++) {
        const char *cut = data_test_cuts[s % DATA_TEST_CUTS];
        size_t N = workers[s / DATA_TEST_CUTS % 4], T = contexts[s / DATA_TEST_CUTS / 4 % 2];
        DataSet d;
        if (data_test_counting(&d, sizes[s / DATA_TEST_CUTS / 8])) continue;
        if (!data_test_shards(&d, cut, N, T, s)) {
            uint64_t total = 0;
            for (size_t rank = 0; rank < N; rank++) {
                total += data_shard_length(&d, rank, N, T);
                CHECK(data_shard_length(&d, rank, N, T) > T);
            }
            CHECK_EQ(total, d.train_tokens);
            data_test_owners(&d, N, T, owner);
            for (uint64_t i = 0; i < d.train_tokens; i++)
                if (owner[i] < 0) FAIL("%s: token %d: %d", cut, (int)i, owner[i]);
        }
        data_close(&d);
    }
    data_test_end();
}

TEST(data_windows_of_every_kind_tile_the_shard_once_per_epoch_in_another_order) {
    data_test_begin();
    static int32_t in[40], target[40];
    static uint64_t place[50257];
    for (size_t c = 0; c < 2 * DATA_TEST_CUTS; c++) {
        DataSet d;
        const size_t N = 3, T = c % 2 ? 40 : 7, rank = c % N;
        if (data_test_counting(&d, 20011)) return;
        if (data_test_shards(&d, data_test_cuts[c / 2], N, T, 4)) break;
        int32_t *token = data_test_read(&d, rank, N, T);
        uint64_t length = data_shard_length(&d, rank, N, T), rising = 0, before = 0;
        uint64_t windows = data_train_windows(&d, rank, N, T);
        unsigned char *seen = calloc(length, 1);
        CHECK_EQ(windows, length < 2 * T ? 1 : length / T - 1);
        for (uint64_t i = 0; i < length; i++) place[token[i]] = i;
        for (uint64_t k = 0; k < windows; k++) {
            CHECK_EQ(data_train_window(&d, 9, rank, N, T, 2 * windows + k, in, target), 0);
            uint64_t at = place[in[0]];
            for (uint64_t t = 0; t < T && at + t + 1 < length; t++) {
                CHECK_EQ(in[t], token[at + t]);
                CHECK_EQ(target[t], token[at + t + 1]);
                CHECK_EQ(seen[at + t]++, 0);
            }
            CHECK(at + T < length);
            rising += k && at > before;
            before = at;
        }
        CHECK(windows < 20 || (rising > windows / 3 && rising < windows * 2 / 3));
        free(seen);
        free(token);
        data_close(&d);
    }
    data_test_end();
}

TEST(data_contiguous_shards_are_equal_stretches_in_the_order_of_the_workers) {
    data_test_begin();
    const size_t workers[] = {1, 2, 3, 7, 64};
    for (size_t w = 0; w < 5; w++) {
        DataSet d;
        size_t N = workers[w], T = 5;
        uint64_t next = 0;
        if (data_test_counting(&d, 30011)) return;
        if (data_test_shards(&d, "contiguous", N, T, 0)) break;
        for (size_t rank = 0; rank < N; rank++) {
            int32_t *token = data_test_read(&d, rank, N, T);
            uint64_t length = data_shard_length(&d, rank, N, T);
            CHECK(length == d.train_tokens / N || length == d.train_tokens / N + 1);
            for (uint64_t i = 0; i < length; i++) CHECK_EQ(token[i], next + i);
            next += length;
            free(token);
        }
        CHECK_EQ(next, d.train_tokens);
        data_close(&d);
    }
    data_test_end();
}

/* What Dirichlet(A) shares of 40 segments among 4 workers look like over 25 seeds: the mean of the
 * largest share, the variance of a share, and how often each worker has a segment's first token. */
typedef struct DataShares {
    double most, variance, opens[4];
} DataShares;

static DataShares data_test_shares(const DataSet *open, double a) {
    enum { N = 4, C = 40, SEEDS = 25 };
    static int owner[50257];
    char text[40];
    DataSet d = *open;
    DataShares sum = {0};
    snprintf(text, sizeof text, "dirichlet:%g", a);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        if (data_test_shards(&d, text, N, 8, seed)) break;
        data_test_owners(&d, N, 8, owner);
        for (uint64_t c = 0, i = 0; c < C; c++) {
            uint64_t begin = i, held[N] = {0}, most = 0;
            sum.opens[owner[i]] += 1.0 / (C * SEEDS);
            for (; i < (c + 1) * d.train_tokens / C; i++) held[owner[i]]++;
            for (size_t j = 0; j < N; j++) {
                double share = (double)held[j] / (double)(i - begin);
                if (held[j] > most) most = held[j];
                sum.variance += (share - 0.25) * (share - 0.25) / (N * C * SEEDS);
            }
            sum.most += (double)most / (double)(i - begin) / (C * SEEDS);
        }
    }
    data__free_shards(&d.shards);
    return sum;
}

TEST(data_dirichlet_shares_have_the_variance_of_their_law_from_one_owner_to_equal_parts) {
    data_test_begin();
    DataSet d;
    if (data_test_counting(&d, 48000)) return; /* 40 segments of 1080 tokens */
    const double a[] = {1e-6, 0.01, 0.1, 0.3, 1, 5, 1000, 1e6};
    for (size_t i = 0; i < sizeof a / sizeof *a; i++) {
        DataShares s = data_test_shares(&d, a[i]);
        double law = 0.25 * 0.75 / (4 * a[i] + 1); /* (1/N) (1 - 1/N) / (N A + 1) */
        CHECK_NEAR(s.variance, law, 0.08 * law + 1e-6);
        if (a[i] < 0.02) CHECK(s.most > 0.97);
        if (a[i] == 1) CHECK_NEAR(s.most, (1 + 0.5 + 1.0 / 3 + 0.25) / 4, 0.02); /* H_4 / 4 */
        if (a[i] > 900) CHECK(s.most < 0.28);
        for (size_t j = 0; j < 4; j++) CHECK_NEAR(s.opens[j], 0.25, 0.06);
    }
    data_close(&d);
    data_test_end();
}

TEST(data_gamma_draws_have_the_mean_variance_and_tails_of_their_law) {
    const double a[] = {0.05, 0.3, 1, 2, 5, 300};
    for (uint64_t k = 0; k < sizeof a / sizeof *a; k++) {
        enum { DRAWS = 300000 };
        double mean = 0, square = 0, above = 0, at = k == 2 ? 1.5 : 3;
        for (uint64_t i = 0; i < DRAWS; i++) {
            double g = exp(data__log_gamma(a[k], data_test_hash3(3, k, i)));
            mean += g / DRAWS;
            square += (g - a[k]) * (g - a[k]) / DRAWS;
            above += g > at;
        }
        CHECK_NEAR(mean, a[k], 4.5 * sqrt(a[k] / DRAWS));
        /* the fourth central moment is 3 a^2 + 6 a */
        CHECK_NEAR(square, a[k], 4.5 * sqrt((2 * a[k] * a[k] + 6 * a[k]) / DRAWS));
        double law = k == 2 ? exp(-at) : k == 3 ? (1 + at) * exp(-at) : above / DRAWS;
        CHECK_NEAR(above / DRAWS, law, 4.5 * sqrt(law / DRAWS));
    }
}

/* how many tokens two ways to cut give to the same of N workers, as a share */
static double data_test_common(const DataSet *d, size_t N, const char *const text[2],
                               const size_t T[2], const uint64_t seed[2]) {
    static int owner[2][50257];
    uint64_t same = 0;
    for (int i = 0; i < 2; i++) {
        DataSet one = *d;
        if (data_test_shards(&one, text[i], N, T[i], seed[i])) return -1;
        data_test_owners(&one, N, T[i], owner[i]);
        data__free_shards(&one.shards);
    }
    for (uint64_t i = 0; i < d->train_tokens; i++) same += owner[0][i] == owner[1][i];
    return (double)same / (double)d->train_tokens;
}

TEST(data_dirichlet_shards_depend_on_the_seed_and_are_drawn_again_only_when_one_is_short) {
    data_test_begin();
    DataSet d, one;
    int again = 0;
    char error[512];
    const char *const text[2] = {"dirichlet:1", "dirichlet:1"};
    if (data_test_counting(&d, 48000)) return;
    for (uint64_t seed = 0; seed < 40; seed++) {
        const size_t equal[2] = {8, 8}, longer[2] = {8, 8800};
        const uint64_t kept[2] = {seed, seed}, other[2] = {seed, seed + 1};
        CHECK(data_test_common(&d, 4, text, equal, kept) == 1);
        CHECK(data_test_common(&d, 4, text, equal, other) < 0.5);
        one = d;
        if (data_test_shards(&one, *text, 4, 8, seed)) break;
        int enough = !data_check_context(&one, 8800, 4, error, sizeof error);
        CHECK((data_test_common(&d, 4, text, longer, kept) == 1) == enough);
        again += !enough;
        data__free_shards(&one.shards);
    }
    CHECK(again > 0 && again < 40);
    CHECK(data_set_shards(&d, "dirichlet:0.01", 4, 10700, 1, error, sizeof error) ==
          DATA_TOO_SMALL);
    CHECK(strstr(error, "count.bin: each of 100 draws of dirichlet:0.01 leaves a worker less than "
                        "context + 1 = 10701 tokens"));
    data_close(&d);
    data_test_end();
}

/* cutting must fail with one sentence that holds the words and leave the shards as they were */
static void data_test_shards_refused(DataSet *d, const char *text, size_t N, size_t T,
                                     const char *words) {
    char error[512] = "";
    DataShards before = d->shards;
    if (data_set_shards(d, text, N, T, 1, error, sizeof error) >= 0)
        FAIL("shards %s were not refused", text);
    else if (!strstr(error, words) || strchr(error, '\n'))
        FAIL("the refusal of shards %s reads '%s', not '%s'", text, error, words);
    CHECK(!memcmp(&before, &d->shards, sizeof before));
}

TEST(data_shards_of_a_file_are_its_ranges_in_their_order) {
    data_test_begin();
    static const char lines[] = "# three workers\n"
                                "2 100 130 # the first of two\r\n"
                                "\t0  0 9\n"
                                "\n"
                                "2 20 21\n"
                                "1 8 700\n"
                                "2 110 140\n"
                                "0 899 900";
    static const int32_t ranges[][3] = {{2, 100, 130}, {0, 0, 9},     {2, 20, 21},
                                        {1, 8, 700},   {2, 110, 140}, {0, 899, 900}};
    char text[5000], error[512];
    DataSet d;
    int32_t in[10], target[10];
    if (data_test_counting(&d, 1000)) return;
    snprintf(text, sizeof text, "file:%s", data_test_write("s.txt", lines, sizeof lines - 1));
    if (data_test_shards(&d, text, 3, 9, 0)) return;
    for (size_t rank = 0; rank < 3; rank++) {
        int32_t *token = data_test_read(&d, rank, 3, 9);
        uint64_t at = 0;
        for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
            for (int32_t p = ranges[i][1]; ranges[i][0] == (int)rank && p < ranges[i][2]; p++)
                CHECK_EQ(token[at++], p);
        CHECK_EQ(at, data_shard_length(&d, rank, 3, 9));
        free(token);
    }
    CHECK_EQ(data_train_windows(&d, 0, 3, 9), 1); /* across the border of its two ranges */
    CHECK_EQ(data_train_window(&d, 1, 0, 3, 9, 5, in, target), 0);
    CHECK(in[0] == 0 && in[8] == 8 && target[7] == 8 && target[8] == 899);
    CHECK_EQ(data_check_context(&d, 10, 3, error, sizeof error), DATA_TOO_SMALL);
    CHECK(
        strstr(error, "worker 0 has 10 tokens to train on, each needs at least context + 1 = 11"));
    data_test_shards_refused(&d, text, 3, 10,
                             "s.txt: line 8 is the last and worker 0 has 10 tokens");
    data_test_shards_refused(&d, text, 4, 9, "s.txt: line 8 is the last and worker 3 has 0 tokens");
    data_test_shards_refused(&d, text, 2, 9, "s.txt: line 2 names worker 2, but the 2 workers");
    CHECK_EQ(data_shard_length(&d, 2, 3, 9), 61); /* still the first file's */
    CHECK_EQ(data_set_shards(&d, "iid", 2, 9, 0, error, sizeof error), 0);
    CHECK_EQ(data_shard_length(&d, 1, 2, 9), 450);
    data_close(&d);
    data_test_end();
}

TEST(data_shards_that_cannot_be_are_refused_with_a_sentence) {
    data_test_begin();
    static const char *const unknown[] = {
        "",          "IID",  "iid:",  "iid:3",  "ii",         "iidx", "contiguous:1",
        "dirichlet", "file", "file:", "blocks", "dirichlet:", ":"};
    static const char *const numbers[] = {"0",    "-1",  "nan",   "inf", "x",   "1x",  " 1",   "1 ",
                                          "9e-7", "2e6", "1e999", "+1",  "1,5", "1e-", "-0.5", "."};
    static const struct {
        const char *line, *words;
    } bad[] = {{"0 0", "line 3 is not `worker first last`"},
               {"0 0 50 7", "line 3 is not"},
               {"0 0 5x", "line 3 is not"},
               {"0 -1 50", "line 3 is not"},
               {"-1 0 50", "line 3 is not"},
               {"0,0,50", "line 3 is not"},
               {"0 0 99999999999999999999", "line 3 is not"},
               {"0 +1 50", "line 3 is not"},
               {"zero", "line 3 is not"},
               {"0 0.5 50", "line 3 is not"},
               {"3 0 50", "line 3 names worker 3, but the 3 workers count from 0"},
               {"0 50 50", "line 3 is empty: first 50 is not below last 50"},
               {"0 51 50", "line 3 is empty: first 51 is not below last 50"},
               {"0 0 901", "line 3 ends at 901, beyond the 900 tokens of the training split"},
               {"2 0 8", "line 3 is the last and worker 2 has 8 tokens, but each needs at least "
                         "context + 1 = 9"},
               {"# 2 0 50", "line 3 is the last and worker 2 has 0 tokens"}};
    DataSet d;
    char text[5000];
    if (data_test_counting(&d, 1000)) return;
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        data_test_shards_refused(&d, unknown[i], 3, 8, "none of iid, contiguous, dirichlet:A and");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(text, sizeof text, "dirichlet:%s", numbers[i]);
        data_test_shards_refused(&d, text, 3, 8, "is no number from 1e-6 to 1e6");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char lines[200], words[5000];
        int n = snprintf(lines, sizeof lines, "0 0 900\n1 0 900\n%s\n", bad[i].line);
        const char *path = data_test_write("bad.txt", lines, (size_t)n);
        snprintf(text, sizeof text, "file:%s", path);
        snprintf(words, sizeof words, "%s: %s", path, bad[i].words);
        data_test_shards_refused(&d, text, 3, 8, words);
    }
    snprintf(text, sizeof text, "file:%s", data_test_write("nul", "0 0 900\0\n", 9));
    data_test_shards_refused(&d, text, 1, 8, "nul: line 1 is not");
    snprintf(text, sizeof text, "file:%s", data_test_write("none", "", 0));
    data_test_shards_refused(&d, text, 1, 8, "none: line 0 is the last");
    snprintf(text, sizeof text, "file:%s", data_test_path("missing"));
    data_test_shards_refused(&d, text, 1, 8, "missing: No such file");
    snprintf(text, sizeof text, "file:%s", data_test_folder);
    data_test_shards_refused(&d, text, 1, 8, "Is a directory");
    data_test_shards_refused(&d, "contiguous", 101, 8, "900 tokens to train 101 workers");
    data_test_shards_refused(&d, "dirichlet:1", 3, 300, "each needs at least context + 1 = 301");
    data_test_shards_refused(&d, "contiguous", 0, 8, "context and workers must be at least 1");
    data_test_shards_refused(&d, "iid", 3, 0, "context and workers must be at least 1");
    data_close(&d);
    data_test_end();
}

/* -- the corpus: an LL(1) parser of its own, which shares the compiled tables and no code */

/* the word, with its blank, or the single character at s */
static size_t play_test_token(const char *s, const char *end) {
    const char *p = s;
    if (p < end && *p == ' ') p++;
    if (p == end) return 0;
    int letter = (*p | 32) >= 'a' && (*p | 32) <= 'z';
    if (!letter) return p == s ? 1 : 0; /* a blank before punctuation is no token */
    while (p < end && (*p | 32) >= 'a' && (*p | 32) <= 'z') p++;
    return (size_t)(p - s);
}

/* can the alternative, in this voice, begin with the token? how many ways */
static int play_test_begins(const PlayGrammar *g, const PlayAlternative *a, const char *token,
                            size_t n, int depth) {
    const PlayPart *part = g->part + a->first;
    if (depth > 50) return 99; /* left recursion */
    if (part->symbol < 0) return part->length == n && !memcmp(part->text, token, n);
    int ways = 0;
    for (int i = 0; i < g->count[part->symbol]; i++)
        ways +=
            play_test_begins(g, &g->alternative[g->first[part->symbol] + i], token, n, depth + 1);
    return ways;
}

static const char *play_test_parse(const PlayGrammar *g, int symbol, int voice, const char *s,
                                   const char *end, double *nats) {
    size_t n = s ? play_test_token(s, end) : 0;
    if (!n) return NULL;
    const PlayAlternative *chosen = NULL;
    double total = 0;
    for (int i = 0; i < g->count[symbol]; i++) {
        const PlayAlternative *a = &g->alternative[g->first[symbol] + i];
        total += a->weight[voice];
        if (play_test_begins(g, a, s, n, 0)) chosen = a;
    }
    if (!chosen || !chosen->weight[voice]) return NULL;
    *nats -= log(chosen->weight[voice] / total);
    for (int i = 0; s && i < chosen->count; i++) {
        const PlayPart *part = &g->part[chosen->first + i];
        if (part->symbol >= 0)
            s = play_test_parse(g, part->symbol, voice, s, end, nats);
        else if (play_test_token(s, end) == part->length && !memcmp(s, part->text, part->length))
            s += part->length;
        else
            s = NULL;
    }
    return s;
}

static PlayGrammar play_test_grammar;

TEST(play_alternatives_begin_with_words_of_their_own_so_the_text_tells_its_derivation) {
    const PlayGrammar *g = &play_test_grammar;
    play_init(&play_test_grammar);
    for (int p = 0; p < g->parts; p++) { /* the terminals are the only possible first words */
        if (g->part[p].symbol >= 0) continue;
        const char *word = g->part[p].text;
        size_t n = g->part[p].length;
        CHECK_EQ(play_test_token(word, word + n), n); /* every terminal is one token of the text */
        for (int symbol = 0; symbol < PLAY_SYMBOLS; symbol++) {
            int ways = 0;
            for (int i = 0; i < g->count[symbol]; i++)
                ways += play_test_begins(g, &g->alternative[g->first[symbol] + i], word, n, 0);
            if (ways > 1)
                FAIL("%d ways to begin <%s> with '%.*s'", ways, play_rules[symbol].name, (int)n,
                     word);
        }
    }
    for (int a = 0; a < g->alternatives; a++)
        CHECK(g->alternative[a].count > 0); /* none is empty */
    for (int i = 0; i < PLAY_TURNS; i++)
        for (int j = 0; j < PLAY_TURNS; j++)
            if (i != j)
                CHECK(strncmp(play_turns[i].head, play_turns[j].head, strlen(play_turns[i].head)) !=
                      0);
}

TEST(play_text_parsed_again_has_the_probability_the_generator_claims) {
    const PlayGrammar *g = &play_test_grammar;
    PlayText t;
    play_init(&play_test_grammar);
    play_write(g, &t, 300000, 17);
    const char *s = t.bytes, *end = t.bytes + t.length;
    double nats = 0;
    for (int before = -1, now; s && s < end; before = now) {
        for (now = 0; now < PLAY_TURNS; now++) {
            size_t n = strlen(play_turns[now].head);
            if ((size_t)(end - s) > n && !memcmp(s, play_turns[now].head, n)) break;
        }
        if (now == PLAY_TURNS) break;
        double total = 0;
        for (int j = 0; before >= 0 && j < PLAY_TURNS; j++) total += play_turns[before].next[j];
        if (before >= 0) nats -= log(play_turns[before].next[now] / total);
        s += strlen(play_turns[now].head);
        s = play_test_parse(g, play_symbol(play_turns[now].symbol, strlen(play_turns[now].symbol)),
                            play_turns[now].voice, s, end, &nats);
    }
    CHECK(s == end);
    CHECK_NEAR(nats, t.nats, 1e-6 * nats);
    free(t.bytes);
}

TEST(play_exact_entropy_agrees_with_the_text_within_four_standard_errors) {
    const PlayGrammar *g = &play_test_grammar;
    enum { TEXTS = 24 };
    double rate[TEXTS], mean = 0, variance = 0;
    play_init(&play_test_grammar);
    for (int k = 0; k < TEXTS; k++) {
        PlayText t;
        play_write(g, &t, 1000000, (uint64_t)k + 100);
        rate[k] = t.nats / (double)t.length;
        mean += rate[k] / TEXTS;
        free(t.bytes);
    }
    for (int k = 0; k < TEXTS; k++) variance += (rate[k] - mean) * (rate[k] - mean) / (TEXTS - 1);
    CHECK_NEAR(mean, g->entropy, 4 * sqrt(variance / TEXTS));
    CHECK(sqrt(variance / TEXTS) < 1e-3 * mean); /* sharp enough to notice a wrong weight */
    CHECK(g->entropy > 0.5 && g->entropy < 1);
    for (int symbol = 0; symbol < PLAY_SYMBOLS;
         symbol++) /* the equations hold, not only the sweep */
        for (int v = 0; v < PLAY_VOICES; v++)
            CHECK(play_sweep(&play_test_grammar, symbol, v) < 1e-14);
}

TEST(play_same_seed_gives_the_same_text_and_another_seed_another) {
    PlayText a, b, c;
    unsigned char seen[256] = {0};
    int distinct = 0;
    play_init(&play_test_grammar);
    play_write(&play_test_grammar, &a, 200000, 1);
    play_write(&play_test_grammar, &b, 200000, 1);
    play_write(&play_test_grammar, &c, 200000, 2);
    CHECK(a.length == b.length && !memcmp(a.bytes, b.bytes, a.length) && a.nats == b.nats);
    CHECK(memcmp(a.bytes, c.bytes, 100000) != 0);
    uint64_t hash = 0; /* and on every machine: the tables hold integers only */
    for (size_t i = 0; i < a.length; i++) {
        hash = test_hash(hash ^ (unsigned char)a.bytes[i]);
        distinct += !seen[(unsigned char)a.bytes[i]];
        seen[(unsigned char)a.bytes[i]] = 1;
    }
    CHECK(distinct >= 40 && distinct <= 65);
    if (hash != 0x271f4d551b12add4u) FAIL("the text of seed 1 has hash 0x%016" PRIx64, hash);
    for (size_t i = 0; i < a.length; i++)
        CHECK(a.bytes[i] == '\n' || (a.bytes[i] >= ' ' && a.bytes[i] < 127));
    free(a.bytes);
    free(b.bytes);
    free(c.bytes);
}
/* ------------------------------------------------------------------------------------------------
 * safetensors.h */
#include "safetensors.h"
#include <signal.h>
#include <sys/resource.h>

static char st_test_dir[64], st_test_error[256];

/* a path in a directory of its own, which st_test_end removes */
static const char *st_test_path(const char *name) {
    static char path[2][128];
    static int turn;
    if (!*st_test_dir) {
        snprintf(st_test_dir, sizeof st_test_dir, "/tmp/test_safetensors_XXXXXX");
        if (!mkdtemp(st_test_dir)) FAIL("cannot make %s", st_test_dir);
    }
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", st_test_dir, name);
    return path[turn];
}

static void st_test_end(void) {
    const char *names[] = {"x.safetensors", "x.safetensors.tmp", "y.safetensors"};
    for (size_t i = 0; i < 3; i++) unlink(st_test_path(names[i]));
    CHECK(!rmdir(st_test_dir)); /* nothing else was left behind */
    *st_test_dir = 0;
}

static void st_test_put(const char *path, const void *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, n, file) != n || fclose(file)) FAIL("cannot write %s", path);
}

static unsigned char *st_test_get(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    unsigned char *bytes = calloc(1, 1 << 16);
    *n = file && bytes ? fread(bytes, 1, 1 << 16, file) : 0;
    if (file) fclose(file);
    return bytes;
}

/* the file must not open, and the sentence must name the path and hold `reason` */
static int st_test_refused(const char *path, const char *reason) {
    StFile f;
    *st_test_error = 0;
    if (!st_open(&f, path, st_test_error, sizeof st_test_error)) {
        st_close(&f);
        return 0;
    }
    return !f.map && !f.entries && strstr(st_test_error, path) == st_test_error &&
           strstr(st_test_error, reason) != NULL;
}

static const float st_test_weight[6] = {1, -2, 3.5f, 0, 1e-30f, -0.0f};
static const uint64_t st_test_seed[1] = {0xfedcba9876543210u};
static const StTensor st_test_tensors[] = {
    {"layer.weight", "F32", {3, 2}, 2, st_test_weight},
    {"empty", "U32", {4, 0}, 2, NULL},
    {"seed", "U64", {0}, 0, st_test_seed},
    {"text", "U8", {5}, 1, "hello"},
};
static const StPair st_test_meta[] = {{"step", "12"}, {"heads", "3"}};

static int st_test_write(const char *path) {
    return st_write(path, st_test_tensors, 4, st_test_meta, 2, st_test_error, sizeof st_test_error);
}

TEST(tensors_and_metadata_survive_a_round_trip) {
    const char *path = st_test_path("x.safetensors");
    StFile f;
    float weight[6] = {0};
    uint64_t seed = 0;
    CHECK_EQ(st_test_write(path), 0);
    if (st_open(&f, path, st_test_error, sizeof st_test_error)) FAIL("%s", st_test_error);
    CHECK_EQ(f.n, 4);
    CHECK_EQ(f.verified, 1);
    CHECK_EQ((f.data - f.map) % 64, 0);
    CHECK_EQ(st_read_f32(&f, "layer.weight", weight, 6, st_test_error, 256), 0);
    CHECK(!memcmp(weight, st_test_weight, sizeof weight));
    CHECK_EQ(st_read(&f, "seed", "U64", &seed, 1, st_test_error, 256), 0);
    CHECK(seed == st_test_seed[0]);
    const StEntry *e = st_find(&f, "layer.weight");
    CHECK(e && e->rank == 2 && e->shape[0] == 3 && e->shape[1] == 2 && e->begin == 0);
    e = st_find(&f, "text");
    CHECK(e && !strcmp(e->dtype, "U8") && !memcmp(st_data(&f, e), "hello", 5));
    e = st_find(&f, "empty");
    CHECK(e && e->count == 0 && e->begin == e->end);
    CHECK(!st_find(&f, "layer.weigh") && !st_find(&f, ""));
    CHECK(st_meta(&f, "step") && !strcmp(st_meta(&f, "step"), "12"));
    CHECK(!st_meta(&f, "stop"));
    st_close(&f);
    st_close(&f);
    CHECK_EQ(st_write(path, NULL, 0, NULL, 0, st_test_error, 256), 0); /* nothing at all */
    CHECK_EQ(st_open(&f, path, st_test_error, 256), 0);
    CHECK(f.n == 0 && f.verified && !st_find(&f, "x"));
    st_close(&f);
    st_test_end();
}

TEST(a_tensor_of_another_name_dtype_or_size_is_not_read) {
    const char *path = st_test_path("x.safetensors");
    StFile f;
    float out[7] = {7, 7, 7, 7, 7, 7, 7};
    CHECK_EQ(st_test_write(path), 0);
    CHECK_EQ(st_open(&f, path, st_test_error, 256), 0);
    CHECK(st_read_f32(&f, "weight", out, 6, st_test_error, 256) < 0);
    CHECK(strstr(st_test_error, "there is no tensor 'weight'"));
    CHECK(st_read_f32(&f, "seed", out, 1, st_test_error, 256) < 0);
    CHECK(strstr(st_test_error, "'seed' is U64, expected F32"));
    CHECK(st_read_f32(&f, "layer.weight", out, 7, st_test_error, 256) < 0);
    CHECK(strstr(st_test_error, "has 6 elements, expected 7"));
    CHECK(strstr(st_test_error, path) == st_test_error);
    for (int i = 0; i < 7; i++) CHECK_EQ(out[i], 7);
    st_close(&f);
    st_test_end();
}

TEST(equal_tensors_make_equal_files) {
    const char *x = st_test_path("x.safetensors"), *y = st_test_path("y.safetensors");
    size_t n, m;
    CHECK(!st_test_write(x) && !st_test_write(y) && !st_test_write(x));
    unsigned char *a = st_test_get(x, &n), *b = st_test_get(y, &m);
    CHECK(n > 64 && n == m && !memcmp(a, b, n));
    free(a);
    free(b);
    st_test_end();
}

TEST(every_flipped_bit_every_truncation_and_every_extra_byte_is_noticed) {
    const char *path = st_test_path("x.safetensors");
    size_t n;
    CHECK_EQ(st_test_write(path), 0);
    unsigned char *bytes = st_test_get(path, &n);
    int fd = open(path, O_WRONLY);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        unsigned char damaged = bytes[bit / 8] ^ (unsigned char)(1 << bit % 8);
        CHECK_EQ(pwrite(fd, &damaged, 1, (off_t)(bit / 8)), 1);
        if (!st_test_refused(path, ": ")) FAIL("bit %zu of byte %zu", bit % 8, bit / 8);
        CHECK_EQ(pwrite(fd, bytes + bit / 8, 1, (off_t)(bit / 8)), 1);
    }
    close(fd);
    CHECK(!st_test_refused(path, "")); /* all bits are back */
    bytes[n - 1] ^= 32;
    st_test_put(path, bytes, n);
    CHECK(st_test_refused(path, ": checksum does not match: the file is damaged"));
    free(bytes);
    st_test_end();
    path = st_test_path("x.safetensors");
    CHECK_EQ(st_test_write(path), 0);
    bytes = st_test_get(path, &n);
    for (size_t length = n; length-- > 0;) {
        CHECK(!truncate(path, (off_t)length));
        if (!st_test_refused(path, ": ")) FAIL("cut to %zu of %zu bytes", length, n);
    }
    for (size_t extra = 1; extra <= 65; extra++) {
        st_test_put(path, bytes, n + extra); /* zeros follow */
        if (!st_test_refused(path, ": the tensors take")) FAIL("%zu bytes too many", extra);
    }
    free(bytes);
    st_test_end();
}

#define ST_TEST_A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

static const struct StTestHeader {
    const char *json;
    size_t data;
    const char *reason; /* NULL: a good header */
} st_test_headers[] = {
    {"{" ST_TEST_A "}", 8, NULL},
    {"{" ST_TEST_A "}   ", 8, NULL},
    {"{ \"__metadata__\" : { } ,\n\t" ST_TEST_A "\r}", 8, NULL},
    {"{}", 0, NULL},
    {"{\"s\":{\"data_offsets\":[0,2],\"dtype\":\"BF16\",\"shape\":[]}}", 2, NULL},
    {"{\"b\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[8,16]}," ST_TEST_A "}", 16, NULL},
    {"", 0, "there is no header"},
    {" {}", 0, "there is no header"},
    {"[]", 0, "there is no header"},
    {"{", 0, "expected '\"'"},
    {"{" ST_TEST_A, 8, "expected ','"},
    {"{" ST_TEST_A ",}", 8, "expected '\"'"},
    {"{" ST_TEST_A "}}", 8, "something follows"},
    {"{" ST_TEST_A "}\n", 8, "something follows"},
    {"{" ST_TEST_A "} x", 8, "something follows"},
    {"{" ST_TEST_A "," ST_TEST_A "}", 8, "tensor 'a' overlaps"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1, "two tensors are named"},
    {"{" ST_TEST_A "}", 9, "the tensors take 8 bytes, the file has 9"},
    {"{" ST_TEST_A "}", 7, "the tensors take 8 bytes, the file has 7"},
    {"{" ST_TEST_A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
     "overlaps"},
    {"{" ST_TEST_A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9,13]}}", 13,
     "a hole"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}", 9, "a hole"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "needs 12 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "needs 8 bytes"},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "'a' needs dtype, shape and two"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "'a' needs dtype, shape and two"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "'a' needs dtype, shape and two"},
    {"{\"a\":{}}", 8, "'a' needs dtype, shape and two"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "and two data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8, "too many numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,2],\"data_offsets\":[0,8]}}", 8,
     "too many numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8, "'a' has twice the key 'dtype'"},
    {"{\"a\":{\"dtype\":\"F32\",\"color\":\"red\"}}", 8, "'a' has the unknown key 'color'"},
    {"{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
    {"{\"a\":{\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "expected '\"'"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "a shape that overflows"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
     "a shape that overflows"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,0]}}", 0,
     "a number is too large"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[18446744073709551608,"
     "18446744073709551615]}}",
     8, "needs 8 bytes"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[18446744073709551607,"
     "18446744073709551615]}}",
     8, "a hole"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "an unsigned integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "expected ','"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2e0],\"data_offsets\":[0,8]}}", 8, "expected ','"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[02],\"data_offsets\":[0,8]}}", 8, "an unsigned integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,],\"data_offsets\":[0,8]}}", 8, "an unsigned integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[", 8, "an unsigned integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[[2]],\"data_offsets\":[0,8]}}", 8,
     "an unsigned integer"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":null}}", 8, "expected '['"},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 8, "expected '{'"},
    {"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{", 8, "the unknown key 'a'"},
    {"{\"a\"}", 0, "expected ':'"},
    {"{\"a", 0, "a string does not end"},
    {"{\"a\\", 0, "unknown escape"},
    {"{\"a\\x\":{}}", 0, "unknown escape"},
    {"{\"\\u12", 0, "four hexadecimal digits"},
    {"{\"\\u12g4\":{}}", 0, "four hexadecimal digits"},
    {"{\"\\u0000\":{}}", 0, "NUL in a string"},
    {"{\"\\ud83d\":{}}", 0, "half a surrogate pair"},
    {"{\"\\ud83d", 0, "half a surrogate pair"},
    {"{\"\\ud83d\\u", 0, "half a surrogate pair"},
    {"{\"\\ud83d\\udE", 0, "four hexadecimal digits"},
    {"{\"\\ud83d\\u0041\":{}}", 0, "half a surrogate pair"},
    {"{\"\\ude00\":{}}", 0, "half a surrogate pair"},
    {"{\"a\nb\":{}}", 0, "a control character"},
    {"{\"\xff\":{}}", 0, "not UTF-8"},
    {"{\"\xc0\xaf\":{}}", 0, "not UTF-8"},
    {"{\"\xe2\x82\":{}}", 0, "not UTF-8"},
    {"{\"\xed\xa0\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xf0\x80\x80\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xf4\x90\x80\x80\":{}}", 0, "not UTF-8"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "expected '\"'"},
    {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "the metadata has 'k' twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "two __metadata__"},
    {"{\"__metadata__\":{\"checksum\":\"0123456789abcdef\"}}", 0, "of an unknown kind"},
    {"{\"__metadata__\":{\"checksum_kind\":\"st64\"}}", 0, "of an unknown kind"},
    {"{\"__metadata__\":{\"checksum\":\"\",\"checksum_kind\":\"st64\"}}", 0, "does not match"},
    {"{\"__metadata__\":{\"checksum\":\"0123456789abcdef\",\"checksum_kind\":\"st64\"}}", 0,
     "does not match"},
};

static void st_test_craft(const char *path, uint64_t length, const char *json, size_t n,
                          size_t data) {
    unsigned char *bytes = calloc(1, 8 + n + data);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, json, n);
    st_test_put(path, bytes, 8 + n + data);
    free(bytes);
}

TEST(every_malformed_header_and_length_is_refused_with_a_sentence) {
    const char *path = st_test_path("x.safetensors");
    for (size_t i = 0; i < sizeof st_test_headers / sizeof *st_test_headers; i++) {
        const struct StTestHeader *h = &st_test_headers[i];
        st_test_craft(path, strlen(h->json), h->json, strlen(h->json), h->data);
        if (st_test_refused(path, h->reason ? h->reason : "") != (h->reason != NULL))
            FAIL("row %zu, %s, says: %s", i, h->json, st_test_error);
    }
    st_test_end();
    path = st_test_path("x.safetensors");
    const char *good = "{" ST_TEST_A "}";
    const uint64_t lengths[] = {65,         1000,       1ull << 31,    1ull << 32,
                                1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        st_test_craft(path, lengths[i], good, strlen(good), 8);
        CHECK(st_test_refused(path, "does not fit"));
    }
    for (size_t n = 0; n < 8; n++) {
        st_test_put(path, "\0\0\0\0\0\0\0", n);
        CHECK(st_test_refused(path, "too short"));
    }
    st_test_craft(path, ST_HEADER_MAX + 1, good, strlen(good), 8);
    CHECK(!truncate(path, 8 + ST_HEADER_MAX + 1)); /* sparse */
    CHECK(st_test_refused(path, "is too long"));
    unlink(path);
    CHECK(st_test_refused(path, "No such file"));
    CHECK(st_test_refused(st_test_dir, "not a regular file"));
    CHECK(st_test_refused("/dev/null", "not a regular file"));
    st_test_end();
}

TEST(random_damage_to_an_unchecked_header_is_refused_or_harmless) {
    const char *path = st_test_path("x.safetensors");
    const char *json = "{\"__metadata__\":{\"k\\u00e9y\":\"v\\n\"}," ST_TEST_A
                       ",\"b\":{\"dtype\":\"U8\",\"shape\":[3,1],\"data_offsets\":[8,11]}}";
    size_t n = strlen(json);
    char damaged[256];
    uint64_t seed = 20;
    for (int round = 0; round < 500; round++) {
        memcpy(damaged, json, n);
        for (int k = 0; k < 1 + round % 3; k++) {
            size_t at = (size_t)(test_uniform(&seed) * (double)n);
            char c = (char)(test_uniform(&seed) * 256 - 128);
            damaged[at] = round & 1 ? c : json[(size_t)(test_uniform(&seed) * (double)n)];
        }
        st_test_craft(path, n, damaged, n, 11);
        StFile f;
        *st_test_error = 0;
        if (st_open(&f, path, st_test_error, sizeof st_test_error)) {
            CHECK(strlen(st_test_error) > strlen(path) + 2);
            continue;
        }
        for (size_t i = 0; i < f.n; i++) CHECK(f.entries[i].end <= 11);
        st_close(&f);
    }
    st_test_end();
}

TEST(a_foreign_file_without_a_checksum_is_read_but_not_called_verified) {
    const char *path = st_test_path("x.safetensors");
    const char *json = "{\"__metadata__\":{\"format\":\"pt\"},\"\\u0061\\/\\ud83d\\ude00\":"
                       "{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}";
    StFile f;
    st_test_craft(path, strlen(json), json, strlen(json), 3);
    CHECK_EQ(st_open(&f, path, st_test_error, 256), 0);
    CHECK_EQ(f.verified, 0);
    CHECK(st_find(&f, "a/\xf0\x9f\x98\x80"));
    CHECK(st_meta(&f, "format") && !strcmp(st_meta(&f, "format"), "pt"));
    st_close(&f);
    st_test_end();
}

TEST(escaped_names_and_metadata_survive_a_round_trip) {
    const char *path = st_test_path("x.safetensors");
    const char *odd =
        "\"quoted\\\" \t\n\r\b\f\x01\x1f / \x7f gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80 {}[]:,";
    StTensor t[] = {{odd, "U8", {2}, 1, "xy"}, {"", "U8", {1}, 1, "z"}};
    StPair meta[] = {{odd, odd}, {"", ""}, {"a", "\\u0041"}};
    StFile f;
    CHECK_EQ(st_write(path, t, 2, meta, 3, st_test_error, 256), 0);
    if (st_open(&f, path, st_test_error, 256)) FAIL("%s", st_test_error);
    CHECK(f.verified && st_find(&f, odd) && st_find(&f, ""));
    CHECK(st_meta(&f, odd) && !strcmp(st_meta(&f, odd), odd));
    CHECK(st_meta(&f, "") && !*st_meta(&f, ""));
    CHECK(st_meta(&f, "a") && !strcmp(st_meta(&f, "a"), "\\u0041"));
    st_close(&f);
    st_test_end();
}

/* st_write must fail with this reason, and leave the old file and nothing else */
static void st_test_write_fails(const char *path, const StTensor *t, size_t n, const StPair *meta,
                                size_t n_meta, const char *reason, rlim_t file_size) {
    char temporary[256];
    size_t before, after;
    struct rlimit old, limit;
    unsigned char *a = st_test_get(path, &before);
    CHECK(!getrlimit(RLIMIT_FSIZE, &old));
    limit = old;
    if (file_size < limit.rlim_cur) limit.rlim_cur = file_size;
    *st_test_error = 0;
    setrlimit(RLIMIT_FSIZE, &limit);
    int result = st_write(path, t, n, meta, n_meta, st_test_error, sizeof st_test_error);
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK_EQ(result, -1);
    if (strstr(st_test_error, path) != st_test_error || !strstr(st_test_error, reason))
        FAIL("says '%s' and not '%s'", st_test_error, reason);
    unsigned char *b = st_test_get(path, &after);
    CHECK(before == after && !memcmp(a, b, before));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    CHECK(access(temporary, F_OK));
    free(a);
    free(b);
}

TEST(a_file_that_could_not_be_read_back_is_not_written) {
    const char *path = st_test_path("x.safetensors");
    StTensor twice[] = {{"a", "U8", {2}, 1, "xy"}, {"a", "U8", {1}, 1, "z"}};
    StTensor meta_name = {"__metadata__", "U8", {2}, 1, "xy"}, float31 = {"a", "F31", {1}, 1, "xy"};
    StTensor huge = {"a", "F32", {SIZE_MAX / 2, 3}, 2, "xy"}, latin1 = {"\xe9", "U8", {1}, 1, "x"};
    StPair own = {"checksum", "1"}, bad = {"path", "caf\xe9"};
    CHECK_EQ(st_test_write(path), 0);
    st_test_write_fails(path, twice, 2, NULL, 0, "two tensors are named 'a'", RLIM_INFINITY);
    st_test_write_fails(path, &meta_name, 1, NULL, 0, "two __metadata__", RLIM_INFINITY);
    st_test_write_fails(path, &float31, 1, NULL, 0, "unknown dtype", RLIM_INFINITY);
    st_test_write_fails(path, &huge, 1, NULL, 0, "overflows", RLIM_INFINITY);
    st_test_write_fails(path, &latin1, 1, NULL, 0, "not UTF-8", RLIM_INFINITY);
    st_test_write_fails(path, NULL, 0, &own, 1, "the metadata has 'checksum' twice", RLIM_INFINITY);
    st_test_write_fails(path, NULL, 0, &bad, 1, "not UTF-8", RLIM_INFINITY);
    st_test_end();
}

TEST(a_failed_write_leaves_the_old_file_and_no_temporary_one) {
    const char *path = st_test_path("x.safetensors"), *sub = st_test_path("sub.safetensors");
    st_test_write_fails("/nonexistent/x.safetensors", st_test_tensors, 4, NULL, 0, "its directory",
                        RLIM_INFINITY);
    CHECK(!mkdir(sub, 0755)); /* a directory cannot be replaced by a file */
    st_test_write_fails(sub, st_test_tensors, 4, NULL, 0, "cannot rename", RLIM_INFINITY);
    CHECK(!rmdir(sub));

    CHECK_EQ(st_test_write(path), 0);
    uid_t user = geteuid(); /* root may write anywhere, so be somebody else for a moment */
    if (!chmod(st_test_dir, 0555) && (user || !seteuid(65534))) {
        st_test_write_fails(path, st_test_tensors, 2, NULL, 0, "Permission denied", RLIM_INFINITY);
        if (!user) CHECK(!seteuid(0));
    }
    CHECK(!chmod(st_test_dir, 0755));

    size_t size;
    free(st_test_get(path, &size));
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (size_t limit = 0; limit < size; limit += 83) /* a short write, then EFBIG */
        st_test_write_fails(path, st_test_tensors, 4, st_test_meta, 2, "File too large", limit);
    signal(SIGXFSZ, handler);

    char temporary[256]; /* what an interrupted run left is in nobody's way */
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    st_test_put(temporary, "half a file", 11);
    CHECK_EQ(st_test_write(path), 0);
    CHECK(access(temporary, F_OK));
    CHECK(!st_test_refused(path, ""));
    st_test_end();
}

TEST(the_checksum_does_not_depend_on_how_the_bytes_are_cut) {
    unsigned char bytes[300];
    char whole[17], parts[17];
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(test_uniform(&seed) * 256);
    for (size_t n = 0; n < sizeof bytes; n++) {
        StHash a = st__hash_start(), b = st__hash_start();
        st__hash_add(&a, bytes, n);
        for (size_t i = 0, step; i < n; i += step) {
            step = 1 + (size_t)(test_uniform(&seed) * 70);
            if (step > n - i) step = n - i;
            st__hash_add(&b, bytes + i, step);
        }
        st__hash_digits(&a, whole);
        st__hash_digits(&b, parts);
        if (strcmp(whole, parts)) FAIL("%zu bytes: %s and %s", n, whole, parts);
    }
}

/* ------------------------------------------------------------------------------------------------
 * the model: PyTorch's numbers, a double precision transcription with central differences, itself */
#define TESTING
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "train_gpt.c"
#pragma GCC diagnostic pop

/* A model with its team, ready to run. */
static void model_open(Gpt *g, GptShape shape, size_t B, int threads) {
    Team *team = calloc(1, sizeof *team);
    gpt_layout(g, &shape);
    g->params = floats(g->parameters);
    g->grads = floats(g->parameters);
    if (!team || team_start(team, threads, 0)) abort();
    gpt_allocate(g, B, 1, team);
    gpt_init(g);
}

static void model_close(Gpt *g) {
    team_stop(g->team);
    free(g->team);
    gpt_free(g);
}

/* GPT-2 in double, written as the formulas read: one token's residual stream at a time, every layer over
 * the whole sequence. w(kind, layer) are doubles; returns the sum of the losses, logits when wanted. */
typedef struct Plain {
    const Gpt *g;
    const double *w;
} Plain;

static const double *plain(const Plain *p, int kind, int l) {
    size_t i = p->g->place[(size_t)l * TENSOR_KINDS + (size_t)kind];
    return i == SIZE_MAX ? NULL : p->w + p->g->tensor[i].offset;
}
static void plain_norm(double *out, const double *x, const double *w, const double *b, size_t C) {
    double mean = 0, variance = 0;
    for (size_t c = 0; c < C; c++) mean += x[c] / (double)C;
    for (size_t c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / (double)C;
    for (size_t c = 0; c < C; c++)
        out[c] = (x[c] - mean) / sqrt(variance + 1e-5) * w[c] + (b ? b[c] : 0);
}
static void plain_linear(double *out, const double *x, const double *w, const double *b, size_t n,
                         size_t k) {
    for (size_t i = 0; i < n; i++) {
        out[i] = b ? b[i] : 0;
        for (size_t j = 0; j < k; j++) out[i] += w[i * k + j] * x[j];
    }
}
static double plain_loss(const Plain *p, const int32_t *in, const int32_t *target, size_t T,
                         double *logits) {
    size_t C = (size_t)p->g->s.width, V = (size_t)p->g->s.vocab, NH = (size_t)p->g->s.heads,
           HS = C / NH;
    double *x = calloc(T * C, 8), *qkv = calloc(T * 3 * C, 8), *h = calloc(4 * C + C + C, 8),
           *n = h + 4 * C, *y = n + C, loss = 0;
    double *score = calloc(T, 8), *out = calloc(V, 8);
    for (size_t t = 0; t < T; t++)
        for (size_t c = 0; c < C; c++)
            x[t * C + c] = plain(p, WTE, 0)[(size_t)in[t] * C + c] + plain(p, WPE, 0)[t * C + c];
    for (int l = 0; l < p->g->s.layers; l++) {
        for (size_t t = 0; t < T; t++) {
            plain_norm(n, x + t * C, plain(p, LN1W, l), plain(p, LN1B, l), C);
            plain_linear(qkv + t * 3 * C, n, plain(p, QKVW, l), plain(p, QKVB, l), 3 * C, C);
        }
        for (size_t t = 0; t < T; t++) {
            for (size_t k = 0; k < NH; k++) {
                double sum = 0;
                for (size_t s = 0; s <= t; s++) {
                    score[s] = 0;
                    for (size_t c = k * HS; c < (k + 1) * HS; c++)
                        score[s] += qkv[t * 3 * C + c] * qkv[s * 3 * C + C + c];
                    sum += score[s] = exp(score[s] / sqrt((double)HS));
                }
                for (size_t c = k * HS; c < (k + 1) * HS; c++) {
                    y[c] = 0;
                    for (size_t s = 0; s <= t; s++)
                        y[c] += score[s] / sum * qkv[s * 3 * C + 2 * C + c];
                }
            }
            plain_linear(n, y, plain(p, ATTW, l), plain(p, ATTB, l), C, C);
            for (size_t c = 0; c < C; c++) x[t * C + c] += n[c];
            plain_norm(n, x + t * C, plain(p, LN2W, l), plain(p, LN2B, l), C);
            plain_linear(h, n, plain(p, FCW, l), plain(p, FCB, l), 4 * C, C);
            for (size_t c = 0; c < 4 * C; c++)
                h[c] *= 0.5 * (1 + tanh(sqrt(2 / 3.14159265358979323846) *
                                        (h[c] + 0.044715 * h[c] * h[c] * h[c])));
            plain_linear(y, h, plain(p, OUTW, l), plain(p, OUTB, l), C, 4 * C);
            for (size_t c = 0; c < C; c++) x[t * C + c] += y[c];
        }
    }
    for (size_t t = 0; t < T; t++) {
        double sum = 0;
        plain_norm(n, x + t * C, plain(p, LNFW, 0), plain(p, LNFB, 0), C);
        plain_linear(out, n, plain(p, p->g->s.untied ? HEAD : WTE, 0), NULL, V, C);
        for (size_t v = 0; v < V; v++) sum += exp(out[v]);
        if (target[t] >= 0) loss += log(sum) - out[target[t]];
        if (logits) memcpy(logits + t * V, out, V * 8);
    }
    free(x), free(qkv), free(h), free(score), free(out);
    return loss;
}

static double plain_mean_loss(const Plain *p, const int32_t *in, const int32_t *target, size_t B,
                              size_t T) {
    double sum = 0, real = 0;
    for (size_t b = 0; b < B; b++) sum += plain_loss(p, in + b * T, target + b * T, T, NULL);
    for (size_t i = 0; i < B * T; i++) real += target[i] >= 0;
    return sum / real;
}

static void random_tokens(int32_t *tokens, size_t n, int vocab, uint64_t seed) {
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(test_hash(seed * 1000003 + i) % (uint64_t)vocab);
}

/* Relative distance |a - b| / |b| of two vectors. */
static double distance(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / (norm + 1e-300));
}

TEST(logits_loss_and_every_gradient_agree_with_pytorch) {
    char error[512], key[128];
    StFile f;
    if (st_open(&f, "test/fixture.safetensors", error, sizeof error)) {
        FAIL("%s", error);
        return;
    }
    for (int model = 0; model < 2; model++) {
        const char *keys[] = {"layers", "heads", "width",  "context",
                              "vocab",  "bias",  "untied", "batch"};
        int n[8];
        for (int i = 0; i < 8; i++) {
            snprintf(key, sizeof key, "%c.%s", 'a' + model, keys[i]);
            n[i] = atoi(st_meta(&f, key) ? st_meta(&f, key) : "0");
        }
        Gpt g;
        model_open(&g, (GptShape){n[0], n[1], n[2], n[3], n[4], n[5], n[6], 0, 1, 0}, (size_t)n[7],
                   1);
        size_t BT = (size_t)(n[7] * n[3]), V = (size_t)n[4], real = 0;
        int32_t *in = calloc(BT, 4), *target = calloc(BT, 4);
        float *logits = floats(BT * V), *want = floats(g.parameters);
        double loss = 0;
        snprintf(key, sizeof key, "%c.inputs", 'a' + model);
        CHECK_EQ(st_read(&f, key, "I32", in, BT, error, sizeof error), 0);
        snprintf(key, sizeof key, "%c.targets", 'a' + model);
        CHECK_EQ(st_read(&f, key, "I32", target, BT, error, sizeof error), 0);
        snprintf(key, sizeof key, "%c.loss", 'a' + model);
        CHECK_EQ(st_read(&f, key, "F64", &loss, 1, error, sizeof error), 0);
        snprintf(key, sizeof key, "%c.logits", 'a' + model);
        CHECK_EQ(st_read_f32(&f, key, logits, BT * V, error, sizeof error), 0);
        for (size_t i = 0; i < g.tensors; i++) {
            snprintf(key, sizeof key, "%c.%s", 'a' + model, g.tensor[i].name);
            CHECK_EQ(st_read_f32(&f, key, g.params + g.tensor[i].offset, tensor_size(&g.tensor[i]),
                                 error, sizeof error),
                     0);
            snprintf(key, sizeof key, "%c.grad.%s", 'a' + model, g.tensor[i].name);
            CHECK_EQ(st_read_f32(&f, key, want + g.tensor[i].offset, tensor_size(&g.tensor[i]),
                                 error, sizeof error),
                     0);
        }
        for (size_t i = 0; i < BT; i++) real += target[i] >= 0;
        float *made = floats(BT * V);
        Pass p = {.B = (size_t)n[7], .T = (size_t)n[3], .in = in, .logits = made};
        gpt_pass(&g, p);
        CHECK_NEAR(distance(made, logits, BT * V), 0, 1e-6);
        free(made);
        p.logits = NULL;
        p.target = target;
        p.train = 1;
        CHECK_NEAR(gpt_pass(&g, p) / (double)real, loss, 1e-6);
        for (size_t i = 0; i < g.tensors; i++) {
            double d = distance(g.grads + g.tensor[i].offset, want + g.tensor[i].offset,
                                tensor_size(&g.tensor[i]));
            if (!(d <= 1e-5))
                FAIL("model %c, gradient of %s: relative error %g", 'a' + model, g.tensor[i].name,
                     d);
        }
        free(in), free(target), free(logits), free(want);
        model_close(&g);
    }
    st_close(&f);
}

/* Gradients of a few entries of every tensor against central differences of the double
 * transcription. */
static void check_central_differences(GptShape shape, size_t B, size_t T) {
    Gpt g;
    model_open(&g, shape, B, 2);
    double *w = calloc(g.parameters, sizeof *w);
    int32_t *in = calloc(B * T, 4), *target = calloc(B * T, 4);
    random_tokens(in, B * T, shape.vocab, 5);
    random_tokens(target, B * T, shape.vocab, 6);
    target[3] = target[B * T - 1] = -1;
    float *noise = floats(g.parameters);
    test_fill(noise, g.parameters, 7);
    for (size_t i = 0; i < g.parameters; i++) g.params[i] += 0.1f * noise[i];
    for (size_t i = 0; i < g.parameters; i++) w[i] = (double)g.params[i];
    Pass pass = {.B = B, .T = T, .in = in, .target = target, .train = 1};
    double loss = gpt_pass(&g, pass) / (double)(B * T - 2);
    Plain p = {&g, w};
    CHECK_NEAR(loss, plain_mean_loss(&p, in, target, B, T), 1e-5);
    for (size_t i = 0; i < g.tensors; i++) {
        size_t n = tensor_size(&g.tensor[i]);
        double scale = sqrt(sm_sum_squares(g.grads + g.tensor[i].offset, n) / (double)n);
        CHECK(scale > 0);
        for (int k = 0; k < 3; k++) {
            size_t at = g.tensor[i].offset + test_hash(i * 7 + (size_t)k) % n;
            double keep = w[at], e = 1e-5;
            w[at] = keep + e;
            double up = plain_mean_loss(&p, in, target, B, T);
            w[at] = keep - e;
            double down = plain_mean_loss(&p, in, target, B, T);
            w[at] = keep;
            double want = (up - down) / (2 * e), have = (double)g.grads[at];
            if (!(fabs(have - want) <= 1e-5 * fabs(want) + 2e-5 * scale))
                FAIL("%s, entry %zu: gradient %g, central difference %g (scale %g)",
                     g.tensor[i].name, at, have, want, scale);
        }
    }
    free(w), free(in), free(target), free(noise);
    model_close(&g);
}

/* Each product rounds its operands to 8 bits of mantissa: a few 2^-9 relative to the tensor. */
TEST(gradients_in_bf16_are_near_those_in_fp32_and_do_not_depend_on_threads) {
    enum { B = 3, T = 70, V = 37 };
    int32_t in[B * T], target[B * T];
    float *grads[3];
    random_tokens(in, B * T, V, 5);
    random_tokens(target, B * T, V, 6);
    for (int k = 0; k < 3; k++) { /* fp32; bf16 on one thread, on three */
        Gpt g;
        model_open(&g, (GptShape){2, 3, 48, T, V, 1, 0, 0.1, 9, k > 0}, B, k == 2 ? 3 : 1);
        CHECK_NEAR(
            gpt_pass(
                &g, (Pass){.B = B, .T = T, .in = in, .target = target, .d = {0.1, 5}, .train = 1}) /
                (B * T),
            log(V), 0.1);
        grads[k] = floats(g.parameters);
        memcpy(grads[k], g.grads, g.parameters * sizeof(float));
        for (size_t i = 0; k == 1 && i < g.tensors; i++) {
            size_t at = g.tensor[i].offset, n = tensor_size(&g.tensor[i]);
            double d = distance(grads[1] + at, grads[0] + at, n);
            if (!(d > 1e-5 && d < 0.03)) FAIL("%s: relative distance %g", g.tensor[i].name, d);
        }
        if (k == 2) CHECK(!memcmp(grads[1], grads[2], g.parameters * sizeof(float)));
        model_close(&g);
    }
    for (int k = 0; k < 3; k++) free(grads[k]);
}

TEST(memory_of_activations_is_linear_in_the_context_and_bf16_halves_what_is_stored) {
    size_t bytes[2][3], stored[2];
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (int k = 0; k < 3; k++) {
            Gpt g;
            gpt_layout(&g, &(GptShape){4, 4, 128, 2048 << k, 65, 0, 0, 0, 1, bf16});
            bytes[bf16][k] = gpt_bytes(&g, 1, 1, 2);
            stored[bf16] = g.activations;
            gpt_free(&g);
        }
        double first = (double)(bytes[bf16][1] - bytes[bf16][0]),
               second = (double)(bytes[bf16][2] - bytes[bf16][1]);
        CHECK_NEAR(second / first, 2, 0.01);
    }
    CHECK((double)stored[1] < 0.65 * (double)stored[0]); /* the residual stream stays fp32 */
}

TEST(gradients_agree_with_central_differences_in_double) {
    check_central_differences((GptShape){2, 3, 24, 9, 17, 0, 0, 0, 1, 0}, 2, 9);
    check_central_differences((GptShape){1, 2, 16, 7, 11, 1, 1, 0, 2, 0}, 3, 7);
    check_central_differences((GptShape){2, 1, 12, 20, 13, 1, 0, 0, 3, 0}, 2,
                              11); /* shorter than the context */
    check_central_differences((GptShape){1, 2, 12, 150, 7, 0, 0, 0, 4, 0}, 1, 150);
}

TEST(dropout_masks_are_the_same_in_both_directions_and_keep_the_mean) {
    Gpt g;
    enum { B = 2, T = 70 };
    int32_t in[B * T], target[B * T];
    model_open(&g, (GptShape){2, 2, 16, T, 11, 1, 1, 0.3, 9, 0}, B, 2);
    random_tokens(in, B * T, 11, 1);
    random_tokens(target, B * T, 11, 2);
    float *direction = floats(g.parameters), *keep = floats(g.parameters);
    test_fill(direction, g.parameters, 3);
    for (size_t i = 0; i < g.parameters; i++) g.params[i] += 0.1f * direction[i];
    memcpy(keep, g.params, g.parameters * sizeof(float));
    Pass p = {.B = B, .T = T, .in = in, .target = target, .d = {0.3, 77}, .train = 1};
    gpt_pass(&g, p);
    for (size_t i = 0; i < g.tensors;
         i++) { /* along the gradient of each tensor, so that nothing cancels */
        size_t n = tensor_size(&g.tensor[i]);
        float *w = g.params + g.tensor[i].offset, *dw = g.grads + g.tensor[i].offset;
        double norm = sqrt(sm_sum_squares(dw, n)), loss[2];
        memcpy(direction, dw, n * sizeof(float));
        for (int side = 0; side < 2; side++) {
            for (size_t j = 0; j < n; j++)
                w[j] += (side ? -1 : 1) * (float)(4e-3 / norm) * direction[j];
            p.train = 0;
            loss[side] = gpt_pass(&g, p) / (B * T);
            memcpy(w, keep + g.tensor[i].offset, n * sizeof(float));
        }
        double slope = (loss[0] - loss[1]) / 8e-3;
        if (fabs(slope - norm) > 0.01 * norm + 2e-4)
            FAIL("%s: slope %g along a gradient of norm %g", g.tensor[i].name, slope, norm);
    }
    float ones[10000];
    double sum = 0, zeros = 0;
    for (size_t i = 0; i < 10000; i++) ones[i] = 1;
    drop(ones, 10000, &p.d, drop_key(&p.d, 1, DROP_MLP), 0);
    for (size_t i = 0; i < 10000; i++) sum += (double)ones[i], zeros += ones[i] == 0;
    CHECK_NEAR(zeros / 10000, 0.3, 0.02);
    CHECK_NEAR(sum / 10000, 1, 0.03);
    free(direction), free(keep);
    model_close(&g);
}

TEST(gradient_bits_do_not_depend_on_the_number_of_compute_threads) {
    enum { B = 3, T = 70 };
    int32_t in[B * T], target[B * T];
    random_tokens(in, B * T, 37, 1);
    random_tokens(target, B * T, 37, 2);
    float *first = NULL;
    for (int threads = 1; threads <= 5; threads += threads == 3 ? 2 : 1) {
        Gpt g;
        model_open(&g, (GptShape){2, 3, 48, T, 37, 1, 0, 0.1, 9, 0}, B, threads);
        gpt_pass(&g, (Pass){.B = B, .T = T, .in = in, .target = target, .d = {0.1, 5}, .train = 1});
        if (!first) {
            first = floats(g.parameters);
            memcpy(first, g.grads, g.parameters * sizeof(float));
        }
        CHECK(memcmp(first, g.grads, g.parameters * sizeof(float)) == 0);
        model_close(&g);
    }
    free(first);
}

TEST(a_loss_does_not_depend_on_the_other_sequences_of_its_batch) {
    enum { B = 5, T = 24 };
    int32_t in[B * T], target[B * T];
    float alone[T];
    Gpt g;
    random_tokens(in, B * T, 21, 1);
    random_tokens(target, B * T, 21, 2);
    model_open(&g, (GptShape){2, 2, 32, T, 21, 0, 0, 0, 9, 0}, B, 1);
    gpt_pass(&g, (Pass){.B = 1, .T = T, .in = in + 3 * T, .target = target + 3 * T});
    memcpy(alone, g.losses, sizeof alone);
    gpt_pass(&g, (Pass){.B = B, .T = T, .in = in, .target = target});
    CHECK(memcmp(alone, g.losses + 3 * T, sizeof alone) == 0);
    model_close(&g);
}

TEST(cached_sampling_gives_the_logits_of_the_whole_forward_pass) {
    enum { T = 70, V = 19 };
    int32_t in[T];
    float logits[V];
    for (int bias = 0; bias < 2; bias++) {
        Gpt g;
        model_open(&g, (GptShape){2, 2, 24, T, V, bias, bias, 0, 3, 0}, 1, 1);
        gpt_begin_sample(&g);
        for (size_t i = 0; i < g.parameters; i++) g.params[i] *= 5;
        random_tokens(in, T, V, 4);
        float *all = floats(T * V);
        gpt_pass(&g, (Pass){.B = 1, .T = T, .in = in, .logits = all});
        for (size_t t = 0; t < T; t++) {
            gpt_next(&g, in[t], t, logits);
            if (distance(logits, all + t * V, V) > 1e-5)
                FAIL("position %zu differs by %g", t, distance(logits, all + t * V, V));
        }
        free(all);
        model_close(&g);
    }
}

TEST(samples_follow_temperature_and_top_k) {
    float logits[4] = {0, 1, 2, -1}, sorted[4];
    double count[4] = {0}, sum = 0;
    CHECK_EQ(sample_token(logits, sorted, 4, 0, 0, 0.9), 2);
    CHECK_EQ(sample_token(logits, sorted, 4, 1, 1, 0.0001), 2);
    for (int i = 0; i < 10000; i++)
        count[sample_token(logits, sorted, 4, 0.5, 0, (i + 0.5) / 10000)]++;
    for (int v = 0; v < 4; v++) sum += exp((double)logits[v] / 0.5);
    for (int v = 0; v < 4; v++)
        CHECK_NEAR(count[v] / 10000, exp((double)logits[v] / 0.5) / sum, 1e-3);
    memset(count, 0, sizeof count);
    for (int i = 0; i < 1000; i++) count[sample_token(logits, sorted, 4, 1, 2, (i + 0.5) / 1000)]++;
    CHECK_EQ(count[0] + count[3], 0);
    CHECK_NEAR(count[1] / 1000, 1 / (1 + exp(1.0)), 2e-3);
}

TEST(the_fast_exponential_and_gelu_are_accurate) {
    for (double x = -86; x < 88; x += 0.00917) {
        double relative = (double)fast_exp((float)x) / exp((double)(float)x) - 1;
        if (fabs(relative) > 3e-7) FAIL("exp(%g): relative error %g", x, relative);
    }
    for (double x = -12; x < 12; x += 0.00131) {
        double y = (double)(float)x, u = sqrt(2 / acos(-1.0)) * (y + 0.044715 * y * y * y);
        float in = (float)x, out;
        gelu_row(&out, &in, 1);
        CHECK_NEAR((double)out, 0.5 * y * (1 + tanh(u)), 1e-6);
    }
    CHECK(fast_exp(-1000) == 0 && fast_exp(0) == 1 && isnan(fast_exp(NAN)));
}

TEST(initial_parameters_are_those_of_nanogpt_in_distribution) {
    Gpt g;
    model_open(&g, (GptShape){4, 4, 128, 64, 65, 0, 0, 0, 1337, 0}, 1, 1);
    CHECK_EQ(g.parameters, 804096); /* nanoGPT's CPU recipe, positions included */
    for (size_t i = 0; i < g.tensors; i++) {
        const SmTensor *t = &g.tensor[i];
        double rms =
            sqrt(sm_sum_squares(g.params + t->offset, tensor_size(t)) / (double)tensor_size(t));
        double want = strstr(t->name, "ln_")      ? 1
                      : strstr(t->name, "c_proj") ? 0.02 / sqrt(8)
                                                  : 0.02;
        CHECK_NEAR(rms / want, 1, 0.03);
    }
    model_close(&g);
}

static int worker_with_a_replica(Comm *c, void *arg) {
    float params[4] = {1, 2, 3, 4};
    Worker w = {.c = c, .step = 7, .g = {.params = params, .parameters = 4}};
    if (c->rank == *(int *)arg) params[2] = 5;
    check_replicas(&w);
    return 0;
}

TEST(a_replica_that_differs_ends_the_run_and_is_named) {
    CommOptions o = {.backend = comm_backend("processes"), .workers = 3, .threads = 1};
    for (int odd = -1; odd < 3; odd++) { /* -1: none differs */
        char error[256] = "", said[1024] = "", want[64];
        FILE *f = tmpfile();
        int keep = dup(2);
        if (!f || keep < 0) abort();
        fflush(stderr);
        dup2(fileno(f), 2);
        int status = comm_run(&o, worker_with_a_replica, &odd, error, sizeof error);
        dup2(keep, 2);
        close(keep);
        rewind(f);
        size_t n = fread(said, 1, sizeof said - 1, f);
        fclose(f);
        snprintf(want, sizeof want, "parameters of worker %d differ", odd);
        CHECK_EQ(status, odd >= 0);
        if (odd < 0 ? n > 0 : !strstr(said, want)) FAIL("worker %d: it says '%s'", odd, said);
    }
}

TEST(a_direction_of_signs_has_the_gain_of_signs_whichever_map_made_it) {
    const SmTensor wide = {.name = "w", .rows = 6, .cols = 50, .blocks = 1, .role = SM_HIDDEN};
    const struct {
        const char *flag, *value;
        double gain;
    } row[] = {{"--norm", "auto", 0.2 * sqrt(50)}, /* polar: 0.2 sqrt(max(m, n)) */
               {"--norm", "sign", 0.2},            /* sign(mean M) */
               {"--server-map", "sign", 0.2},
               {"--server-map", "row", 0.2 * sqrt(50)}};
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        Options o;
        int given[FLAG_COUNT];
        char *argv[] = {(char *)"", (char *)"--method=muon", (char *)(uintptr_t)row[i].flag,
                        (char *)(uintptr_t)row[i].value};
        parse_flags(&o, 4, argv, given);
        EfLink up, down;
        DmGraph graph;
        SmConfig c = resolve_method(&o, &up, &down, &graph);
        CHECK_NEAR(sm_tensor_gain(&c, &wide), row[i].gain, 1e-12);
    }
}

TEST(schedules_start_and_end_where_they_should) {
    Options o = {
        .schedule = "cosine", .steps = 2000, .warmup = 100, .final_lr = 0.1, .cooldown = 0.2};
    CHECK_NEAR(schedule(&o, 0), 1.0 / 101, 1e-12);
    CHECK_NEAR(schedule(&o, 100), 1, 1e-12);
    CHECK_NEAR(schedule(&o, 1050), 0.55, 1e-12);
    CHECK_NEAR(schedule(&o, 2000), 0.1, 1e-12);
    o = (Options){.schedule = "linear", .steps = 200};
    CHECK_NEAR(schedule(&o, 0), 1, 1e-12);
    CHECK_NEAR(schedule(&o, 199), 0.005, 1e-12);
    o = (Options){.schedule = "wsd", .steps = 100, .cooldown = 0.2};
    CHECK_NEAR(schedule(&o, 80), 1, 1e-12);
    CHECK_NEAR(schedule(&o, 90), 0.5, 1e-12);
}

/* The options of a command line of words between blanks. */
static Options flag_test(const char *line) {
    static char words[256];
    char *argv[24] = {(char *)"train_gpt"};
    int given[FLAG_COUNT], argc = 1;
    Options o;
    memset(&o, 0, sizeof o);
    snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    parse_flags(&o, argc, argv, given);
    return o;
}

TEST(names_have_dashes_or_underscores_and_values_stand_behind_a_blank_or_an_equals_sign) {
    Options a = flag_test("--steps 3 --polar-after-vote --weight-decay 0.1 --bias on --untied off "
                          "--seed 12e2"),
            b = flag_test("--steps=3 --polar_after_vote=on --weight_decay=1e-1 --bias --seed "
                          "+1200 --seed=1200");
    CHECK(a.steps == 3 && a.polar_after_vote && a.bias && !a.untied && a.seed == 1200);
    CHECK_NEAR(a.weight_decay, 0.1, 0);
    CHECK(memcmp(&a, &b, sizeof a) == 0);
}

TEST(a_flag_reads_back_what_it_prints) {
    Options o;
    int given[FLAG_COUNT];
    char text[64], error[1024];
    char *argv[] = {(char *)"train_gpt",           (char *)"--lr",     (char *)"0.0003",
                    (char *)"--weight_decay=1e-1", (char *)"--untied", NULL};
    parse_flags(&o, 5, argv, given);
    CHECK_NEAR(o.lr, 3e-4, 0);
    CHECK_NEAR(o.weight_decay, 0.1, 0);
    CHECK(o.untied && !o.bias);
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        Options copy = o;
        char before[64];
        snprintf(before, sizeof before, "%s", flag_text(&o, &flags[i], text, sizeof text));
        CHECK_EQ(flag_parse(&copy, &flags[i],
                            flags[i].kind == FLAG_TEXT || !*before ? flags[i].fallback : before,
                            error, sizeof error),
                 0);
        if (flags[i].kind != FLAG_TEXT &&
            strcmp(before, flag_text(&copy, &flags[i], text, sizeof text)) != 0)
            FAIL("--%s prints '%s' and reads '%s'", flags[i].name, before, text);
    }
}
/* ------------------------------------------------------------------------------------------------
 * signmuon.h and signmuon.c: every method row against its equations in double, every bit counted */

#include "comm.h"
#include "safetensors.h"
#include "signmuon.h"

/* ---- matrices with known singular values ---- */

/* q (n x k) <- k random orthonormal columns: Gram-Schmidt, twice, in double */
static void sm_orthonormal(double *q, size_t n, size_t k, uint64_t seed) {
    uint64_t state = seed << 24;
    for (size_t i = 0; i < n * k; i++) q[i] = test_normal(&state);
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

/* G = U diag(sigma) V^T of rank r, and its polar factor U V^T */
typedef struct SmKnown {
    size_t m, n, r;
    double u[40 * 40], v[40 * 40], sigma[40], polar[40 * 40], exact[40 * 40];
    float g[40 * 40];
} SmKnown;

static void sm_known(SmKnown *k, size_t m, size_t n, size_t r, const double *sigma, uint64_t seed) {
    k->m = m, k->n = n, k->r = r;
    sm_orthonormal(k->u, m, r, 2 * seed + 1);
    sm_orthonormal(k->v, n, r, 2 * seed + 2);
    memcpy(k->sigma, sigma, r * sizeof *sigma);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double polar = 0, g = 0;
            for (size_t p = 0; p < r; p++) {
                polar += k->u[i * r + p] * k->v[j * r + p];
                g += k->u[i * r + p] * sigma[p] * k->v[j * r + p];
            }
            k->polar[i * n + j] = polar;
            k->exact[i * n + j] = g;
            k->g[i * n + j] = (float)g;
        }
}

/* entry (p,q) of U^T O V: the diagonal holds O's singular values when O shares G's vectors */
static double sm_known_core(const SmKnown *k, const float *o, size_t p, size_t q) {
    double sum = 0;
    for (size_t i = 0; i < k->m; i++)
        for (size_t j = 0; j < k->n; j++)
            sum += k->u[i * k->r + p] * (double)o[i * k->n + j] * k->v[j * k->r + q];
    return sum;
}

enum { SM_CANARY = 8192 };

/* sm_polar inside a scratch of exactly the promised size; a canary stands behind it, so that a
 * tall matrix that is not transposed first, and needs more, is noticed */
static void sm_polar_guarded(float *out, const float *g, size_t m, size_t n,
                             const SmNewtonSchulz *ns) {
    size_t size = sm_lmo_scratch(m, n);
    float *scratch = malloc((size + SM_CANARY) * sizeof *scratch);
    for (size_t i = 0; i < size + SM_CANARY; i++) scratch[i] = 12345.0f;
    sm_polar(out, g, m, n, ns, scratch);
    for (size_t i = size; i < size + SM_CANARY; i++) CHECK(scratch[i] == 12345.0f);
    free(scratch);
}

/* ---- the double precision transcription: arXiv 2605.16311, intsystems/SignMuon,
 * KellerJordan/Muon ---- */

enum { SM_REF_WORKERS = 3, SM_REF_SIZE = 640, SM_REF_STEPS = 20 };

/* y (m x n) <- a (m x m) x */
static void sm_ref_product(double *y, const double *a, const double *x, size_t m, size_t n) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            y[i * n + j] = 0;
            for (size_t p = 0; p < m; p++) y[i * n + j] += a[i * m + p] * x[p * n + j];
        }
}

/* X <- (a + b A + c A^2) X, A = X X^T, on the normalised matrix; no transposition, since none is
 * needed */
static void sm_ref_newton_schulz(double *x, size_t m, size_t n, const char *name) {
    static const double jordan[3] = {3.4445, -4.7750, 2.0315};
    static const double express[8][3] = {
        {8.28721201814563, -23.595886519098837, 17.300387312530933},
        {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
        {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
        {3.3184196573706015, -2.488488024314874, 0.51004894012372},
        {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
        {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
        {1.8750014808534479, -1.2500016453999487, 0.3750001645474248},
        {1.875, -1.25, 0.375}};
    int is_jordan = strcmp(name, "jordan5") == 0,
        steps = strcmp(name, "polar-express8") == 0 ? 8 : 5;
    double norm = 0, a[40 * 40], once[40 * 40], twice[40 * 40];
    for (size_t i = 0; i < m * n; i++) norm += x[i] * x[i];
    norm = sqrt(norm) * (is_jordan ? 1 : 1.01);
    for (size_t i = 0; i < m * n; i++) x[i] /= norm;
    for (int k = 0; k < steps; k++) {
        double s = is_jordan || k == 7 ? 1 : 1.01;
        const double *c = is_jordan ? jordan : express[k];
        for (size_t i = 0; i < m * m; i++) {
            a[i] = 0;
            for (size_t p = 0; p < n; p++) a[i] += x[i / m * n + p] * x[i % m * n + p];
        }
        sm_ref_product(once, a, x, m, n);
        sm_ref_product(twice, a, once, m, n);
        for (size_t i = 0; i < m * n; i++)
            x[i] = c[0] / s * x[i] + c[1] / (s * s * s) * once[i] +
                   c[2] / (s * s * s * s * s) * twice[i];
    }
}

/* X <- (X X^T)^(-1/2) X on the range of X: eigenvectors of the Gram matrix by cyclic Jacobi
 * rotations */
static void sm_ref_exact(double *x, size_t m, size_t n) {
    double a[40 * 40], q[40 * 40], p[40 * 40], y[40 * 40], largest = 0;
    for (size_t i = 0; i < m * m; i++) {
        a[i] = 0;
        q[i] = i % (m + 1) == 0;
        for (size_t k = 0; k < n; k++) a[i] += x[i / m * n + k] * x[i % m * n + k];
    }
    for (int sweep = 0; sweep < 14; sweep++)
        for (size_t i = 0; i + 1 < m; i++)
            for (size_t j = i + 1; j < m; j++) {
                if (a[i * m + j] * a[i * m + j] <= 1e-36 * a[i * m + i] * a[j * m + j]) continue;
                double angle = 0.5 * atan2(2 * a[i * m + j], a[i * m + i] - a[j * m + j]);
                double c = cos(angle), s = sin(angle);
                for (size_t k = 0; k < m; k++) {
                    double ki = a[k * m + i], kj = a[k * m + j], qi = q[k * m + i],
                           qj = q[k * m + j];
                    a[k * m + i] = c * ki + s * kj;
                    a[k * m + j] = c * kj - s * ki;
                    q[k * m + i] = c * qi + s * qj;
                    q[k * m + j] = c * qj - s * qi;
                }
                for (size_t k = 0; k < m; k++) {
                    double ik = a[i * m + k], jk = a[j * m + k];
                    a[i * m + k] = c * ik + s * jk;
                    a[j * m + k] = c * jk - s * ik;
                }
            }
    for (size_t i = 0; i < m; i++) largest = fmax(largest, a[i * m + i]);
    for (size_t i = 0; i < m * m; i++) {
        p[i] = 0;
        for (size_t k = 0; k < m; k++)
            if (a[k * m + k] > 1e-13 * largest)
                p[i] += q[i / m * m + k] * q[i % m * m + k] / sqrt(a[k * m + k]);
    }
    sm_ref_product(y, p, x, m, n);
    memcpy(x, y, m * n * sizeof *x);
}

static void sm_ref_polar(double *x, size_t m, size_t n, const SmNewtonSchulz *ns) {
    if (strcmp(ns->name, "exact") == 0)
        sm_ref_exact(x, m, n);
    else
        sm_ref_newton_schulz(x, m, n, ns->name);
}

typedef struct SmRef {
    const SmConfig *config;
    int workers;
    double
        margin; /* how near to zero a number came whose sign was taken, relative to its matrix's RMS */
    int step;
    double w[SM_REF_SIZE], m[SM_REF_WORKERS][SM_REF_SIZE], v[SM_REF_SIZE];
    double g[SM_REF_WORKERS][SM_REF_SIZE], server_g[SM_REF_SIZE], x[SM_REF_SIZE]; /* EF21 */
    double node[SM_REF_WORKERS][SM_REF_SIZE], tracker[SM_REF_WORKERS][SM_REF_SIZE],
        last[SM_REF_WORKERS][SM_REF_SIZE], second[SM_REF_WORKERS][SM_REF_SIZE]; /* gossip */
    size_t at, block; /* where the matrix in hand lies, and which of all it is */
    double said[SM_REF_WORKERS][SM_REF_SIZE]; /* by who replays, the step before */
} SmRef;

/* x (n) <- what worker j says in its place */
static void sm_ref_lie(SmRef *r, double *x, int j, size_t n) {
    if (j < r->workers - r->config->adversaries) return;
    const char *attack = r->config->attack->name;
    double square = 0, normal[SM_REF_SIZE], length = 0;
    uint64_t key =
        sm_key(r->config->seed, (uint64_t)2 << 48 | (uint64_t)r->block << 16 | (uint64_t)(j + 1),
               (uint64_t)r->step);
    for (size_t i = 0; i < n; i++) {
        double u = ((double)(sm_hash(key, 2 * i) >> 11) + 0.5) / 9007199254740992.0,
               v = ((double)(sm_hash(key, 2 * i + 1) >> 11) + 0.5) / 9007199254740992.0;
        normal[i] = sqrt(-2 * log(u)) * cos(2 * acos(-1) * v);
        length += normal[i] * normal[i], square += x[i] * x[i];
    }
    for (size_t i = 0; i < n; i++) {
        double truth = x[i], *said = &r->said[j][r->at + i];
        if (strcmp(attack, "flip") == 0) x[i] = -truth;
        if (strcmp(attack, "zero") == 0) x[i] = 0;
        if (strcmp(attack, "scale") == 0) x[i] = r->config->attack_scale * truth;
        if (strcmp(attack, "random") == 0) x[i] = normal[i] * sqrt(square / length);
        if (strcmp(attack, "replay") == 0 && r->step > 0) x[i] = *said;
        *said = truth;
    }
}

static void sm_ref_sign(SmRef *r, double *u, size_t n) {
    double rms = 0;
    for (size_t i = 0; i < n; i++) rms += u[i] * u[i];
    rms = sqrt(rms / (double)n);
    for (size_t i = 0; i < n; i++) {
        int plus = u[i] == 0 && r->config->zeros == SM_PLUS;
        if (!plus) r->margin = fmin(r->margin, fabs(u[i]) / rms);
        u[i] = u[i] > 0 || plus ? 1 : -1;
    }
}

/* u_j <- momentum, with or without Nesterov's look-ahead */
static void sm_ref_momentum(SmRef *r, double u[][SM_REF_SIZE], size_t at, size_t n) {
    double mu = r->config->momentum;
    if (strcmp(r->config->method->name, "gluon") == 0) mu = 1 - pow(r->step + 1, -0.5);
    if (r->config->first_gradient && r->step == 0) mu = 0;
    for (int j = 0; j < r->workers; j++)
        for (size_t i = 0; i < n; i++) {
            double g = u[j][i], *m = &r->m[j][at + i];
            *m = mu * *m + (1 - mu) * g;
            u[j][i] = r->config->nesterov ? (1 - mu) * g + mu * *m : *m;
        }
}

/* d <- sum of the workers' vectors */
static void sm_ref_sum(const SmRef *r, double *d, double u[][SM_REF_SIZE], size_t n) {
    for (size_t i = 0; i < n; i++) {
        d[i] = 0;
        for (int j = 0; j < r->workers; j++) d[i] += u[j][i];
    }
}
static void sm_ref_mean(SmRef *r, double *d, double u[][SM_REF_SIZE], size_t n) {
    for (int j = 0; j < r->workers; j++) sm_ref_lie(r, u[j], j, n);
    sm_ref_sum(r, d, u, n);
    for (size_t i = 0; i < n; i++) d[i] /= r->workers;
}
/* odd worker counts only: no ties */
static void sm_ref_vote(SmRef *r, double *d, double u[][SM_REF_SIZE], size_t n) {
    for (int j = 0; j < r->workers; j++) sm_ref_lie(r, u[j], j, n), sm_ref_sign(r, u[j], n);
    sm_ref_sum(r, d, u, n);
    for (size_t i = 0; i < n; i++) d[i] = d[i] > 0 ? 1 : -1;
}

/* x <- its image under Scion's norm of a role */
static void sm_ref_role(SmRef *r, double *x, size_t m, size_t n, SmRole role) {
    double square = 0;
    for (size_t i = 0; i < m * n; i++) square += x[i] * x[i];
    if (role == SM_HIDDEN) sm_ref_polar(x, m, n, r->config->ns);
    for (size_t i = 0; i < m * n; i++) {
        if (role == SM_HIDDEN) x[i] *= sqrt((double)m / (double)n);
        if (role == SM_VECTOR) x[i] /= sqrt(square / (double)(m * n));
        if (role != SM_OUTPUT || x[i] == 0) continue;
        r->margin = fmin(r->margin, fabs(x[i]) / sqrt(square / (double)(m * n)));
        x[i] = (x[i] > 0 ? 1 : -1) / (double)n;
    }
}

/* x <- C(x) of one block, by the definitions of arXiv 2510.00643 */
static int sm_ref_descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}
static void sm_ref_compress(SmRef *r, double *x, size_t n, const char *link) {
    double sorted[SM_REF_SIZE], mean = 0, rms = 0, share, doubt = 1;
    if (strcmp(r->config->method->name, "ef21-signmuon") == 0) doubt = 10; /* of polar factors */
    for (size_t i = 0; i < n; i++) {
        sorted[i] = fabs(x[i]);
        mean += fabs(x[i]) / (double)n, rms += x[i] * x[i] / (double)n;
    }
    if (strcmp(link, "identity") == 0 || rms == 0) return;
    if (strcmp(link, "sign") == 0)
        for (size_t i = 0; i < n; i++) {
            r->margin = fmin(r->margin, fabs(x[i]) / sqrt(rms) / doubt);
            x[i] = x[i] > 0 ? mean : -mean;
        }
    if (sscanf(link, "topk:%lf", &share) == 1) {
        size_t k = (size_t)(share * (double)n) > 1 ? (size_t)(share * (double)n) : 1;
        qsort(sorted, n, sizeof *sorted, sm_ref_descending);
        if (k < n && sorted[k - 1] > 0)
            r->margin = fmin(r->margin, (sorted[k - 1] - sorted[k]) / sqrt(rms));
        for (size_t i = 0; i < n; i++) x[i] = fabs(x[i]) >= sorted[k - 1] ? x[i] : 0;
    }
    for (size_t i = 0; i < n && strstr(link, "natural"); i++) {
        int e;
        double f = 2 * fabs(frexp(x[i], &e)); /* 1 <= f < 2 */
        if (x[i] == 0) continue;
        r->margin = fmin(r->margin, fabs(f - 1.5) * fabs(x[i]) / f / sqrt(rms));
        x[i] = copysign(ldexp(1, e - 1 + (f >= 1.5)), x[i]);
    }
}

/* d <- what the server makes of R_j = C(D_j - G_j), where D_j stands in u_j */
static void sm_ref_feedback(SmRef *r, double *d, double u[][SM_REF_SIZE], size_t at, size_t n,
                            const char *up) {
    for (size_t i = 0; i < n; i++) d[i] = 0;
    for (int j = 0; j < r->workers; j++) {
        sm_ref_lie(r, u[j], j, n);
        for (size_t i = 0; i < n; i++) u[j][i] -= r->g[j][at + i];
        sm_ref_compress(r, u[j], n, up);
        for (size_t i = 0; i < n; i++) r->g[j][at + i] += u[j][i], d[i] += u[j][i] / r->workers;
    }
    for (size_t i = 0; i < n; i++) d[i] = r->server_g[at + i] += d[i];
}

/* d <- the direction that a method makes of the workers' gradients u_j of one m x n matrix at `at`.
 * Returns 1 when its entries are +-1, 0 when they are not, -1 for a method that nobody wrote down here. */
static int sm_ref_direction(SmRef *r, const char *method, double *d, double u[][SM_REF_SIZE],
                            size_t at, size_t m, size_t n, SmRole role) {
    const SmNewtonSchulz *ns = r->config->ns;
    size_t size = m * n;
    if (strcmp(method, "adamw") == 0) return sm_ref_mean(r, d, u, size), 0;
    if (strcmp(method, "signsgd") == 0) return sm_ref_vote(r, d, u, size), 1;
    if (strcmp(method, "lion") == 0) {
        for (int j = 0; j < r->workers; j++)
            for (size_t i = 0; i < size; i++) {
                double g = u[j][i], old = r->m[j][at + i], b1 = r->config->beta1,
                       b2 = r->config->momentum;
                u[j][i] = b1 * old + (1 - b1) * g;
                r->m[j][at + i] = b2 * old + (1 - b2) * g;
            }
        return sm_ref_vote(r, d, u, size), 1;
    }
    sm_ref_momentum(r, u, at, size);
    if (strcmp(method, "sgd") == 0) return sm_ref_mean(r, d, u, size), 0;
    if (strcmp(method, "signum") == 0) return sm_ref_vote(r, d, u, size), 1;
    if (strcmp(method, "scion") == 0 || strcmp(method, "scion-constrained") == 0 ||
        strcmp(method, "gluon") == 0)
        return sm_ref_mean(r, d, u, size), sm_ref_role(r, d, m, n, role), 0;
    if (strncmp(method, "ef21-", 5) == 0) {
        int after = strcmp(method, "ef21-signmuon") == 0,
            one_bit = strcmp(method, "ef21-muonusign") == 0 || strcmp(method, "ef21-muonsign") == 0;
        if (!after && !one_bit && strcmp(method, "ef21-muon") != 0) return -1;
        for (int j = 0; j < r->workers && after; j++) sm_ref_polar(u[j], m, n, ns);
        sm_ref_feedback(r, d, u, at, size, after || one_bit ? "sign" : "topk:0.15+natural");
        if (!after) sm_ref_polar(d, m, n, ns);
        return 0;
    }
    if (strcmp(method, "muon") == 0)
        return sm_ref_mean(r, d, u, size), sm_ref_polar(d, m, n, ns), 0;
    if (strcmp(method, "muonusign") == 0)
        return sm_ref_vote(r, d, u, size), sm_ref_polar(d, m, n, ns), 0;
    if (strcmp(method, "muonsign") == 0)
        return sm_ref_vote(r, d, u, size), sm_ref_polar(d, m, n, ns), sm_ref_sign(r, d, size), 1;
    int after = strcmp(method, "signmuon") == 0;
    if (!after && strcmp(method, "muon-avgpolar") != 0) return -1;
    for (int j = 0; j < r->workers; j++) sm_ref_polar(u[j], m, n, ns);
    if (after)
        sm_ref_vote(r, d, u, size);
    else
        sm_ref_mean(r, d, u, size);
    return after;
}

/* intsystems/SignMuon lr_scaling; torch.optim.Muon's adjust_lr_fn */
static double sm_ref_gain(const char *name, double m, double n, int sign) {
    double aspect = sqrt(fmax(1, m / n));
    if (strcmp(name, "none") == 0) return 1;
    if (strcmp(name, "fro") == 0) return 1 / sqrt(m * n);
    if (strcmp(name, "unit-gain") == 0) return sign ? 1 / sqrt(n) : aspect;
    if (strcmp(name, "aspect") == 0) return aspect;
    if (strcmp(name, "rms") == 0) return 0.2 * (sign ? 1 : sqrt(fmax(m, n)));
    FAIL("nobody wrote down the formula of the gain %s", name);
    return 0;
}

/* ---- a small model, whose tensors lie apart so that a write into the gaps would show ---- */

enum {
    SM_WTE,
    SM_QKV,
    SM_NORM,
    SM_TALL,
    SM_WIDE,
    SM_BIAS,
    SM_TENSORS,
    SM_SIZE = 620,
    SM_MAX_WORKERS = 8
};
static const SmTensor sm_tensors[SM_TENSORS] = {
    /* name, offset, rows, cols, blocks, role, decay, sparse */
    {"wte", 5, 70, 3, 1, SM_OUTPUT, 1, 1},    {"qkv", 220, 6, 10, 3, SM_HIDDEN, 1, 0},
    {"norm", 404, 1, 10, 1, SM_VECTOR, 0, 0}, {"tall", 420, 14, 6, 1, SM_HIDDEN, 1, 0},
    {"wide", 510, 5, 12, 1, SM_HIDDEN, 1, 0}, {"bias", 580, 1, 7, 1, SM_VECTOR, 0, 0}};

typedef struct SmCase {
    SmConfig config;
    const char *backend;
    int workers, threads, steps;
    double lr, aux_lr;
    uint64_t seed;
    const SmTensor *tensors;
    size_t count;
    void (*gradient)(float *g, const struct SmCase *c, int worker, int step);
    void (*inspect)(const struct SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                    int step);    /* by all workers after each step, or NULL */
    void *context;                /* of inspect */
    const float (*path)[SM_SIZE]; /* what the parameters should be after each step, at each node if
                                     the method gossips; or NULL */
    float tolerance;
} SmCase;

/* what the workers leave behind, in memory that processes share */
typedef struct SmResult {
    float params[SM_MAX_WORKERS][SM_SIZE];
    double agreement[SM_MAX_WORKERS];
    uint64_t sent[SM_MAX_WORKERS][COMM_KINDS], received[SM_MAX_WORKERS][COMM_KINDS];
    int wrong_step;
    size_t wrong_at;
    float wrong_is, wrong_expected;
} SmResult;

static double sm_noise(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uint64_t state = test_hash(test_hash(a << 40 | b << 20 | c) + d);
    return 3.4 * test_uniform(&state) - 1.7;
}

/* Signal and noise, different for every worker and step. Row r of the embedding is first seen at a step of
 * its own, by all workers; some are never seen. */
static void sm_gradient(float *g, const SmCase *c, int worker, int step) {
    for (size_t i = 0; i < SM_SIZE; i++)
        g[i] = (float)(sm_noise(c->seed, 99, 0, i) +
                       sm_noise(c->seed, (uint64_t)worker, 1 + (uint64_t)step, i));
    for (size_t row = 0; row < sm_tensors[SM_WTE].rows; row++)
        if (test_hash(row) % 25 > (uint64_t)step)
            for (size_t k = 0; k < 3; k++) g[sm_tensors[SM_WTE].offset + row * 3 + k] = 0;
}
/* the same for every worker */
static void sm_gradient_shared(float *g, const SmCase *c, int worker, int step) {
    (void)worker;
    sm_gradient(g, c, 0, step);
}

/* every row of the embedding seen from the start */
static void sm_gradient_dense(float *g, const SmCase *c, int worker, int step) {
    for (size_t i = 0; i < SM_SIZE; i++)
        g[i] = (float)(sm_noise(c->seed, 99, 0, i) +
                       sm_noise(c->seed, (uint64_t)worker, 1 + (uint64_t)step, i));
}

static void sm_start(float *params, uint64_t seed) {
    test_fill(params, SM_SIZE, 1000 + seed);
    for (size_t i = 0; i < SM_SIZE; i++) params[i] *= 0.5f;
}

/* Links and graphs outlive their configurations. Half from itself, half from the node before: an
 * asymmetric graph, so that a transposed matrix shows. */
static const EfLink *sm_link(const char *text) {
    static EfLink links[64];
    static char texts[64][32];
    char error[256];
    for (size_t i = 0; i < 64; i++) {
        if (strcmp(texts[i], text) == 0) return &links[i];
        if (*texts[i]) continue;
        snprintf(texts[i], sizeof texts[i], "%s", text);
        if (ef_parse(&links[i], text, error, sizeof error)) FAIL("%s: %s", text, error);
        return &links[i];
    }
    return NULL;
}
static const DmGraph *sm_graph(int nodes) {
    static DmGraph graphs[16];
    static double weights[16][16 * 16];
    char error[256];
    if (!graphs[nodes].weight && dm_graph_build(&graphs[nodes], weights[nodes], "directed-ring",
                                                "auto", nodes, error, sizeof error))
        FAIL("%d nodes: %s", nodes, error);
    return &graphs[nodes];
}

/* What `aux` becomes beside methods that have no server to vote. */
static const SmMethod *sm_aux(const SmMethod *m, const char *aux) {
    return sm_gossips(m) && sm_method(aux)->combine == SM_VOTE ? m : sm_method(aux);
}

static SmConfig sm_test_config(const char *method, const char *aux) {
    const SmMethod *m = sm_method(method);
    SmConfig c = sm_config(m, sm_aux(m, aux));
    c.gain = sm_gain("none");
    c.momentum = 0.9, c.beta1 = 0.85, c.beta2 = 0.97, c.decay = 0.3;
    c.nesterov = 0, c.seed = 7;
    if (m->combine == SM_FEEDBACK) c.up = sm_link(m->up), c.down = sm_link(m->down);
    return c;
}
static SmCase sm_case(const char *method, const char *aux, int workers) {
    return (SmCase){.config = sm_test_config(method, aux),
                    .backend = "threads",
                    .workers = workers,
                    .threads = 1,
                    .steps = 6,
                    .lr = 0.02,
                    .aux_lr = 0.03,
                    .seed = 3,
                    .tensors = sm_tensors,
                    .count = SM_TENSORS,
                    .gradient = sm_gradient};
}

typedef struct SmRun {
    const SmCase *c;
    SmResult *result;
} SmRun;

static int sm_case_worker(Comm *comm, void *arg) {
    const SmCase *c = ((SmRun *)arg)->c;
    SmResult *result = ((SmRun *)arg)->result;
    size_t bytes =
        sm_optimizer_bytes(&c->config, c->tensors, c->count, c->workers, c->threads).total;
    void *arena = aligned_alloc(64, bytes);
    float grads[SM_SIZE], *params = result->params[comm->rank];
    if (!arena) return 1;
    memset(arena, 0, bytes);
    SmOptimizer *o = sm_optimizer_init(arena, &c->config, c->tensors, c->count, comm);
    sm_start(params, c->seed);
    for (int step = 0; step < c->steps; step++) {
        c->gradient(grads, c, comm->rank, step);
        sm_optimizer_step(o, params, grads, (uint64_t)step, c->lr, c->aux_lr);
        if (c->inspect) c->inspect(c, o, comm, params, step);
        int nodes = sm_gossips(c->config.method) ? c->workers : 1;
        if (!c->path || comm->rank >= nodes) continue;
        const float *expected = c->path[step * nodes + comm->rank];
        for (size_t i = 0; i < SM_SIZE; i++)
            if (!(fabsf(params[i] - expected[i]) <= c->tolerance) && result->wrong_step < 0) {
                result->wrong_step = step, result->wrong_at = i;
                result->wrong_is = params[i], result->wrong_expected = expected[i];
            }
    }
    memcpy(result->sent[comm->rank], comm->sent, sizeof comm->sent);
    memcpy(result->received[comm->rank], comm->received, sizeof comm->received);
    result->agreement[comm->rank] = sm_optimizer_agreement(o);
    free(arena);
    return 0;
}

/* Run a case and check that all replicas are the same bits, where there are replicas. */
static void sm_case_run(const SmCase *c, SmResult *out) {
    char error[256] = "";
    SmResult *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        FAIL("no shared memory");
        return;
    }
    shared->wrong_step = -1;
    SmCase own = *c;
    if (sm_gossips(c->config.method) && !c->config.graph) own.config.graph = sm_graph(c->workers);
    SmRun run = {&own, shared};
    CommOptions options = {.backend = comm_backend(c->backend),
                           .workers = c->workers,
                           .threads = c->threads,
                           .machines = c->config.machines};
    CHECK_EQ(comm_run(&options, sm_case_worker, &run, error, sizeof error), 0);
    if (*error) FAIL("%s", error);
    *out = *shared;
    munmap(shared, sizeof *shared);
    for (int j = 1; j < c->workers && !sm_gossips(c->config.method); j++)
        if (memcmp(out->params[0], out->params[j], sizeof out->params[0]) != 0)
            FAIL("%s, aux %s: replica %d of %d is another model", c->config.method->name,
                 c->config.aux->name, j, c->workers);
}

static int sm_same(const SmResult *a, const SmResult *b) {
    return memcmp(a->params[0], b->params[0], sizeof a->params[0]) == 0;
}

/* ---- one step in double, and the test that compares ---- */

/* what clipping leaves of worker j's gradient */
static double sm_ref_shrink(const SmRef *r, const SmCase *c, const float *g) {
    const char *name = r->config->method->name;
    double square = 0, clip = strcmp(name, "sgd") == 0         ? 1
                              : strcmp(name, "dsgd-clip") == 0 ? 0.1 * pow(r->step + 1, 0.4)
                                                               : INFINITY;
    if (isinf(clip)) return 1;
    for (size_t k = 0; k < c->count; k++)
        for (size_t i = 0; i < c->tensors[k].rows * c->tensors[k].cols * c->tensors[k].blocks; i++)
            square += pow((double)g[c->tensors[k].offset + i], 2);
    return fmin(1, clip / sqrt(square));
}

/* w <- AdamW's step along d, moments m and v */
static void sm_ref_adamw(const SmRef *r, double *w, double *m, double *v, double d, double lr) {
    const SmConfig *o = r->config;
    *m = o->beta1 * *m + (1 - o->beta1) * d;
    *v = o->beta2 * *v + (1 - o->beta2) * d * d;
    *w -= lr * *m / (1 - pow(o->beta1, r->step + 1)) /
          (sqrt(*v / (1 - pow(o->beta2, r->step + 1))) + o->epsilon);
}

static void sm_ref_step(SmRef *r, const SmCase *c, float g[][SM_SIZE]) {
    static double u[SM_REF_WORKERS][SM_REF_SIZE], d[SM_REF_SIZE];
    const SmConfig *o = r->config;
    r->block = 0;
    for (size_t k = 0; k < c->count; k++) {
        const SmTensor *t = &c->tensors[k];
        int hidden = t->role == SM_HIDDEN;
        const SmMethod *row = hidden ? o->method : o->aux;
        const char *method = row->name;
        double lr = hidden ? c->lr : c->aux_lr, decay = t->decay ? o->decay : 0;
        size_t n = t->rows * t->cols;
        int by_row = t->sparse && row->combine == SM_VOTE;
        for (size_t at = t->offset; at < t->offset + n * t->blocks; at += by_row ? t->cols : n) {
            size_t rows = by_row ? 1 : t->rows, size = rows * t->cols, touched = 0;
            for (int j = 0; j < r->workers; j++) {
                double left = sm_ref_shrink(r, c, g[j]);
                for (size_t i = 0; i < size; i++) {
                    u[j][i] =
                        (double)g[j][at + i] * left + (o->coupled_decay ? decay * r->w[at + i] : 0);
                    touched += u[j][i] != 0 || r->m[j][at + i] != 0;
                }
            }
            if (by_row && !touched) continue; /* nobody has seen this row */
            r->at = at;
            int sign = sm_ref_direction(r, method, d, u, at, rows, t->cols, t->role);
            r->block++;
            if (sign < 0) FAIL("nobody wrote down the equations of the method %s", method);
            double gain = o->radius[t->role];
            if (hidden) gain *= sm_ref_gain(o->gain->name, (double)rows, (double)t->cols, sign);
            double shrink = strcmp(method, "scion-constrained") == 0 ? 1
                            : o->coupled_decay                       ? 0
                                                                     : decay;
            for (size_t i = 0; i < size; i++) {
                double *w = strncmp(method, "ef21-", 5) == 0 ? &r->x[at + i] : &r->w[at + i];
                *w -= lr * shrink * *w;
                if (strcmp(method, "adamw") == 0)
                    sm_ref_adamw(r, w, &r->m[0][at + i], &r->v[at + i], d[i], lr);
                else
                    *w -= lr * gain * d[i];
            }
            if (strncmp(method, "ef21-", 5) != 0) continue;
            int sign_down = strcmp(method, "ef21-muonsign") == 0;
            for (size_t i = 0; i < size; i++) d[i] = r->x[at + i] - r->w[at + i];
            sm_ref_compress(r, d, size, sign_down ? "sign" : "identity");
            for (size_t i = 0; i < size; i++) r->w[at + i] += d[i];
        }
    }
}

/* x_i <- half of x_i and half of x_{i-1} */
static void sm_ref_mix(const SmRef *r, double x[][SM_REF_SIZE], size_t at, size_t n) {
    for (size_t i = at; i < at + n; i++) {
        double old[SM_REF_WORKERS];
        for (int j = 0; j < r->workers; j++) old[j] = x[j][i];
        for (int j = 0; j < r->workers; j++)
            x[j][i] = 0.5 * old[j] + 0.5 * old[(j + r->workers - 1) % r->workers];
    }
}

/* What node j tracks: the gradient, or momentum; 0 for a method that nobody wrote down here. */
static int sm_ref_track(SmRef *r, const char *method, double u[][SM_REF_SIZE], size_t at,
                        size_t n) {
    int tracks = strcmp(method, "demuon") == 0 || strcmp(method, "gt-nsgdm") == 0 ||
                 strcmp(method, "gt-dsgd") == 0,
        plain = strcmp(method, "dsgd") == 0 || strcmp(method, "dsgd-clip") == 0;
    if (!tracks && !plain && strcmp(method, "demuon-notrack") != 0) return 0;
    if (!plain && strcmp(method, "gt-dsgd") != 0) sm_ref_momentum(r, u, at, n);
    for (int j = 0; j < r->workers; j++)
        for (size_t i = 0; i < n; i++) {
            double *v = &r->tracker[j][at + i], *last = &r->last[j][at + i];
            *v = tracks ? *v + u[j][i] - *last : u[j][i];
            *last = u[j][i];
        }
    for (int j = 0; j < r->workers && tracks; j++) sm_ref_lie(r, r->tracker[j] + at, j, n);
    if (tracks) sm_ref_mix(r, r->tracker, at, n);
    return 1;
}

static void sm_ref_gossip_step(SmRef *r, const SmCase *c, float g[][SM_SIZE]) {
    static double u[SM_REF_WORKERS][SM_REF_SIZE];
    const SmConfig *o = r->config;
    double square[SM_REF_WORKERS] = {0};
    for (int pass = 0; pass < 2; pass++) { /* track everything, then step: one method needs |V| */
        r->block = 0;
        for (size_t k = 0; k < c->count; k++) {
            const SmTensor *t = &c->tensors[k];
            int hidden = t->role == SM_HIDDEN;
            const char *method = hidden ? o->method->name : o->aux->name;
            double lr = hidden ? c->lr : c->aux_lr, decay = t->decay ? o->decay : 0;
            size_t n = t->rows * t->cols;
            for (size_t at = t->offset; at < t->offset + n * t->blocks; at += n, r->block++) {
                r->at = at;
                for (int j = 0; j < r->workers; j++) {
                    double left = sm_ref_shrink(r, c, g[j]);
                    for (size_t i = 0; i < n; i++)
                        u[j][i] = (double)g[j][at + i] * left +
                                  (o->coupled_decay && !t->sparse ? decay * r->node[j][at + i] : 0);
                }
                if (pass == 0) {
                    if (strcmp(method, "adamw") == 0) continue;
                    if (!sm_ref_track(r, method, u, at, n))
                        FAIL("nobody wrote down the equations of the method %s", method);
                    for (int j = 0; j < r->workers; j++)
                        for (size_t i = 0; i < n; i++) square[j] += pow(r->tracker[j][at + i], 2);
                    continue;
                }
                double gain =
                    hidden ? sm_ref_gain(o->gain->name, (double)t->rows, (double)t->cols, 0) : 1;
                for (int j = 0; j < r->workers; j++) {
                    double d[SM_REF_SIZE], *v = r->tracker[j] + at;
                    for (size_t i = 0; i < n; i++)
                        d[i] = strcmp(method, "gt-nsgdm") == 0 ? v[i] / sqrt(square[j]) : v[i];
                    if (strncmp(method, "demuon", 6) == 0 && hidden)
                        sm_ref_polar(d, t->rows, t->cols, o->ns);
                    for (size_t i = 0; i < n; i++) {
                        double *w = &r->node[j][at + i];
                        if (!o->coupled_decay) *w -= lr * decay * *w;
                        if (strcmp(method, "adamw") == 0)
                            sm_ref_adamw(r, w, &r->m[j][at + i], &r->second[j][at + i], u[j][i],
                                         lr);
                        else
                            *w -= lr * gain * d[i];
                    }
                }
                const SmMethod *row = hidden ? o->method : o->aux;
                for (int j = 0; j < r->workers && row->combine != SM_TRACKING; j++)
                    sm_ref_lie(r, r->node[j] + at, j, n);
                sm_ref_mix(r, r->node, at, n);
                if (strcmp(method, "adamw") != 0) continue;
                sm_ref_mix(r, r->m, at, n);
                sm_ref_mix(r, r->second, at, n);
            }
        }
    }
}

/* The path of the parameters in double; returns how near a sign came to being undecided. */
static double sm_ref_path(const SmCase *c, float path[][SM_SIZE]) {
    static SmRef r;
    static float start[SM_SIZE], g[SM_REF_WORKERS][SM_SIZE];
    int gossip = sm_gossips(c->config.method), nodes = gossip ? c->workers : 1;
    memset(&r, 0, sizeof r);
    r.config = &c->config, r.workers = c->workers, r.margin = INFINITY;
    sm_start(start, c->seed);
    for (size_t i = 0; i < SM_SIZE; i++) {
        r.w[i] = r.x[i] = (double)start[i];
        for (int j = 0; j < c->workers; j++) r.node[j][i] = (double)start[i];
    }
    for (r.step = 0; r.step < c->steps && r.margin > 2e-5; r.step++) {
        for (int j = 0; j < c->workers; j++) c->gradient(g[j], c, j, r.step);
        if (gossip)
            sm_ref_gossip_step(&r, c, g);
        else
            sm_ref_step(&r, c, g);
        for (int j = 0; j < nodes; j++)
            for (size_t i = 0; i < SM_SIZE; i++)
                path[r.step * nodes + j][i] = (float)(gossip ? r.node[j][i] : r.w[i]);
    }
    return r.margin;
}

/* A sign of a number that is nearly zero is nobody's fault; so data are drawn, in double, until no sign
 * in the whole run is in doubt. Then fp32 has to agree everywhere, at every step. */
TEST(every_method_row_follows_its_equations_in_double_for_twenty_steps) {
    static float path[SM_REF_STEPS * SM_REF_WORKERS][SM_SIZE];
    static SmResult result;
    size_t gains = 0;
    while (sm_gain_row(gains)) gains++;
    for (size_t row = 0; sm_method_row(row); row++)
        for (int workers = 1; workers <= 3; workers += 2)
            for (size_t k = 0; k < 8; k++) {
                static const char *const ns[] = {"jordan5", "polar-express5", "exact",
                                                 "polar-express8"};
                const SmMethod *m = sm_method_row(row);
                int lmo = strcmp(m->aux, "lmo") == 0;
                SmCase c = sm_case(m->name, !(k & 4) ? "adamw" : lmo ? m->name : "signum", workers);
                if (lmo && k & 4)
                    memcpy(c.config.radius, (double[]){0.7, 1.3, 1, 2.1}, 4 * sizeof(double));
                c.steps = SM_REF_STEPS;
                c.config.nesterov = k & 1, c.config.coupled_decay = k >> 1 & 1;
                c.config.gain = sm_gain_row((k + row) % gains);
                c.config.ns = sm_newton_schulz(ns[(k + row / 2) % 4]);
                c.tolerance = 5e-6f;
                c.path = (const float(*)[SM_SIZE])path;
                SmTensor tensors[SM_TENSORS];
                memcpy(tensors, sm_tensors, sizeof tensors);
                tensors[SM_WTE].decay =
                    !c.config.coupled_decay; /* coupled decay touches every row */
                c.tensors = tensors;
                for (c.seed = 1; c.seed < 200 && !(sm_ref_path(&c, path) > 2e-5); c.seed++)
                    continue;
                CHECK(c.seed < 200);
                sm_case_run(&c, &result);
                if (result.wrong_step >= 0)
                    FAIL("%s, aux %s, %d workers, nesterov %d, coupled decay %d, gain %s, ns %s, "
                         "seed %d: parameter %d "
                         "after step %d is %.7g, expected %.7g",
                         c.config.method->name, c.config.aux->name, workers, c.config.nesterov,
                         c.config.coupled_decay, c.config.gain->name, c.config.ns->name,
                         (int)c.seed, (int)result.wrong_at, result.wrong_step,
                         (double)result.wrong_is, (double)result.wrong_expected);
            }
}

/* ---- lies ---- */

static const SmAttack *sm_attack(const char *name) {
    for (size_t i = 0; sm_attack_row(i); i++)
        if (strcmp(sm_attack_row(i)->name, name) == 0) return sm_attack_row(i);
    FAIL("there is no attack %s", name);
    return NULL;
}

TEST(every_lie_follows_its_definition_in_double_wherever_it_is_told) {
    static const char *const attacks[] = {"flip", "random", "zero", "replay", "scale"};
    static float path[SM_REF_STEPS * SM_REF_WORKERS][SM_SIZE];
    static SmResult result;
    for (size_t row = 0; sm_method_row(row); row++)
        for (size_t k = 0; k < 5; k++) {
            const SmMethod *m = sm_method_row(row);
            const char *other = strcmp(m->aux, "lmo") == 0 ? m->name : "signum";
            SmCase c = sm_case(m->name, (row + k) % 2 ? "adamw" : other, 3);
            SmTensor tensors[SM_TENSORS];
            memcpy(tensors, sm_tensors, sizeof tensors);
            tensors[SM_WTE].sparse = 0; /* the transcription takes a sparse one by rows */
            c.tensors = tensors;
            c.steps = 8, c.tolerance = 5e-6f, c.path = (const float(*)[SM_SIZE])path;
            c.gradient = sm_gradient_dense;
            c.config.adversaries = 1 + (row % 3 == 0);
            c.config.attack = sm_attack(attacks[k]), c.config.attack_scale = -0.6;
            c.config.zeros = SM_PLUS;
            for (c.seed = 1; c.seed < 200 && !(sm_ref_path(&c, path) > 2e-5); c.seed++) continue;
            CHECK(c.seed < 200);
            sm_case_run(&c, &result);
            if (result.wrong_step >= 0)
                FAIL("%s, aux %s, %s, seed %d: parameter %d after step %d is %.7g, expected %.7g",
                     m->name, c.config.aux->name, attacks[k], (int)c.seed, (int)result.wrong_at,
                     result.wrong_step, (double)result.wrong_is, (double)result.wrong_expected);
        }
}

TEST(fewer_flippers_than_half_never_change_a_unanimous_vote_and_more_always_do) {
    static const char *const methods[] = {"signsgd",  "signum",    "lion",
                                          "signmuon", "muonusign", "muonsign"};
    static SmResult honest, attacked;
    for (uint64_t voters = 1; voters <= 33; voters++)
        for (uint64_t liars = 0; liars <= voters; liars++) {
            uint64_t truth[5], lie[5], vote[5];
            const uint64_t *ballots[33];
            for (uint64_t w = 0; w < 5; w++)
                truth[w] = test_hash(voters << 8 | w), lie[w] = ~truth[w];
            for (uint64_t j = 0; j < voters; j++) ballots[j] = j < voters - liars ? truth : lie;
            sm_vote(vote, NULL, ballots, NULL, voters, 5, SM_COIN, voters, 0);
            for (int w = 0; w < 5 && 2 * liars != voters; w++)
                if (vote[w] != (2 * liars < voters ? truth[w] : lie[w]))
                    FAIL("%d of %d voters flip", (int)liars, (int)voters);
        }
    for (size_t k = 0; k < sizeof methods / sizeof *methods; k++)
        for (int workers = 2; workers <= 5; workers++)
            for (int liars = 0; liars < workers; liars++) {
                SmCase c = sm_case(methods[k], "signum", workers);
                c.gradient = sm_gradient_shared;
                sm_case_run(&c, &honest);
                c.config.adversaries = liars, c.config.attack = sm_attack("flip");
                sm_case_run(&c, &attacked);
                if (sm_same(&honest, &attacked) != (2 * liars < workers))
                    FAIL("%s: %d of %d workers flip", methods[k], liars, workers);
            }
}

/* Nobody complains before a liar has lied, the earliest complaint names the first liar, and what was
 * refused moves nothing to a number that is none. */
static void sm_inspect_complaints(const SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                                  int step) {
    SmComplaint mine = sm_optimizer_complaint(o), all[SM_MAX_WORKERS], first = {0, 0, 0, 0};
    const SmFault expected = *(const SmFault *)c->context;
    comm_gather(comm, &mine, sizeof mine, all, COMM_OTHER);
    for (int j = c->workers - 1; j >= 0; j--)
        if (all[j].fault != SM_SOUND &&
            (first.fault == SM_SOUND || all[j].exchange < first.exchange ||
             (all[j].exchange == first.exchange && all[j].sender <= first.sender)))
            first = all[j];
    if (step > 0) return;
    if (first.fault != (int)expected)
        FAIL("%s, aux %s, %s: fault %d, not %d", c->config.method->name, c->config.aux->name,
             c->config.attack->name, first.fault, (int)expected);
    if (expected != SM_SOUND && first.sender != c->workers - c->config.adversaries)
        FAIL("%s, aux %s, %s: worker %d is accused", c->config.method->name, c->config.aux->name,
             c->config.attack->name, first.sender);
    if (!sm_finite(params, SM_SIZE))
        FAIL("%s: NaN in the parameters of worker %d", c->config.method->name, comm->rank);
}

TEST(who_sends_nan_or_a_malformed_message_is_named_whichever_way_it_travels) {
    static SmResult result;
    for (size_t row = 0; sm_method_row(row); row++)
        for (int k = 0; k < 24; k++) {
            const SmMethod *m = sm_method_row(row);
            const char *attack = k % 3 == 0 ? "nan" : k % 3 == 1 ? "garble" : "scale";
            SmCase c = sm_case(m->name, k / 3 % 2 ? "signum" : "adamw", 5);
            int packed = m->combine == SM_VOTE || c.config.aux->combine == SM_VOTE ||
                         (m->combine == SM_FEEDBACK && !sm__equal(m->up, "identity"));
            int dense = m->combine != SM_VOTE || c.config.aux->combine != SM_VOTE;
            SmFault expected = SM_SOUND;
            if (k % 3 == 0 && dense) expected = SM_NAN;
            if (k % 3 == 1 && packed) expected = SM_MALFORMED;
            if (k % 3 == 0 && m->combine == SM_FEEDBACK && c.config.aux->combine == SM_VOTE &&
                strstr(m->up, "natural"))
                expected = SM_SOUND; /* a power of two is all it can say */
            if (k / 6 % 2) c.config.int8_wire = 1;
            c.steps = 1, c.threads = 1 + k / 12, c.config.adversaries = 1 + k / 6 % 2;
            c.config.attack = sm_attack(attack), c.config.attack_scale = 3;
            c.config.zeros = c.config.ties = k / 12 ? SM_ABSTAIN : SM_COIN;
            c.inspect = sm_inspect_complaints, c.context = &expected;
            sm_case_run(&c, &result);
        }
}

/* ---- Newton-Schulz ---- */

/* Singular values of 1e-3 (or 1e-2) .. 1 of the norm, on a fine grid, fifteen small ones and the one that
 * fills the norm up at a time, through matrices that are wide, tall and fp32. Bands: exact scalar evaluation of the polynomials */
TEST(newton_schulz_brings_singular_values_into_the_bands_of_the_table) {
    static const struct {
        const char *name;
        double lo, min, max;
    } band[] = {{"jordan5", 1e-3, 0.4705, 1.2024},        {"jordan5", 1e-2, 0.6818, 1.1344},
                {"polar-express5", 1e-3, 0.8462, 1.1236}, {"polar-express5", 1e-2, 0.8703, 1.1236},
                {"polar-express8", 1e-3, 1.0, 1.0},       {"exact", 1e-3, 1.0, 1.0}};
    static SmKnown k;
    float o[40 * 40];
    for (size_t row = 0; sm_newton_schulz_row(row); row++) {
        size_t known = 0;
        for (size_t b = 0; b < sizeof band / sizeof *band; b++)
            known += strcmp(band[b].name, sm_newton_schulz_row(row)->name) == 0;
        if (!known) FAIL("no band is known for %s", sm_newton_schulz_row(row)->name);
    }
    for (size_t b = 0; b < sizeof band / sizeof *band; b++) {
        double least = 9, most = 0;
        const SmNewtonSchulz *ns = sm_newton_schulz(band[b].name);
        double lo = band[b].lo * ns->safety; /* the table's lo is what the polynomial sees */
        for (size_t matrix = 0; matrix < 24; matrix++) {
            double sigma[16], left = 1;
            for (size_t p = 1; p < 16;
                 p++) { /* log grid over lo .. 0.24; every p sweeps it with the matrices */
                sigma[p] = lo * pow(0.24 / lo, (double)((p - 1) * 24 + matrix) / (15 * 24 - 1));
                left -= sigma[p] * sigma[p];
            }
            sigma[0] = sqrt(left);
            if (matrix % 2) { /* and over 0.24 .. 0.7, where two values fill the norm */
                double big = 0.24 + 0.46 * (double)matrix / 23;
                for (size_t p = 2; p < 16; p++) sigma[p] = lo;
                sigma[1] = big;
                sigma[0] = sqrt(1 - big * big - 14 * lo * lo);
            }
            sm_known(&k, matrix % 3 ? 18 : 25, matrix % 3 ? 25 : 18, 16, sigma, 40 + matrix);
            sm_polar_guarded(o, k.g, k.m, k.n, ns);
            for (size_t p = 0; p < 16; p++) {
                double s = sm_known_core(&k, o, p, p);
                least = fmin(least, s), most = fmax(most, s);
                CHECK_NEAR(sm_known_core(&k, o, p, (p + 1) % 16), 0, 1e-3);
            }
        }
        double tolerance = band[b].min == 1 ? 1e-4 : 1e-3;
        if (!(least >= band[b].min - tolerance && most <= band[b].max + tolerance))
            FAIL("%s from %g: %.4f .. %.4f, expected within %.4f .. %.4f", band[b].name, band[b].lo,
                 least, most, band[b].min, band[b].max);
        if (!(least <= band[b].min + 0.005 &&
              most >= band[b].max - 0.005)) /* the band is not loose either */
            FAIL("%s from %g: %.4f .. %.4f does not fill %.4f .. %.4f", band[b].name, band[b].lo,
                 least, most, band[b].min, band[b].max);
    }
}

TEST(newton_schulz_equals_its_transcription_and_the_known_polar_factor_on_every_shape) {
    static const size_t shape[][2] = {{1, 1},  {1, 9},  {9, 1},  {2, 3},   {3, 2},
                                      {6, 10}, {17, 5}, {5, 33}, {40, 23}, {20, 20}};
    static SmKnown k;
    for (size_t row = 0; sm_newton_schulz_row(row); row++)
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
            const SmNewtonSchulz *ns = sm_newton_schulz_row(row);
            size_t m = shape[s][0], n = shape[s][1], r = m < n ? m : n;
            double sigma[40], x[40 * 40];
            float o[40 * 40], input[40 * 40];
            for (size_t p = 0; p < r; p++) sigma[p] = 3.0 / (double)(p + 1) + 0.3;
            sm_known(&k, m, n, r, sigma, 7 + s);
            memcpy(x, k.exact, sizeof x);
            memcpy(input, k.g, sizeof input);
            sm_polar_guarded(o, k.g, m, n, ns);
            CHECK(memcmp(input, k.g, m * n * sizeof *input) == 0);
            sm_ref_polar(x, m, n, ns);
            for (size_t i = 0; i < m * n; i++) {
                CHECK_NEAR(o[i], x[i], 2e-5);
                if (ns->steps == 0 || ns->steps == 8) CHECK_NEAR(o[i], k.polar[i], 2e-5);
            }
        }
}

TEST(the_polar_factor_of_zero_is_zero_of_the_transpose_the_transpose_and_scale_is_invisible) {
    static const size_t shape[][2] = {{6, 10}, {1, 7}, {16, 24}, {3, 40}};
    for (size_t row = 0; sm_newton_schulz_row(row); row++)
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
            const SmNewtonSchulz *ns = sm_newton_schulz_row(row);
            size_t m = shape[s][0], n = shape[s][1];
            float g[960], t[960], wide[960], tall[960], scaled[960];
            test_fill(g, m * n, 5 + s);
            for (size_t i = 0; i < m * n; i++) t[i % n * m + i / n] = g[i];
            sm_polar_guarded(wide, g, m, n, ns);
            sm_polar_guarded(tall, t, n, m, ns);
            for (size_t i = 0; i < m * n; i++) CHECK(wide[i] == tall[i % n * m + i / n]);
            for (int power = -40; power <= 40; power += 10) {
                for (size_t i = 0; i < m * n; i++) scaled[i] = ldexpf(g[i], power);
                sm_polar_guarded(scaled, scaled, m, n, ns); /* out may be g */
                CHECK(memcmp(scaled, wide, m * n * sizeof *wide) == 0);
            }
            memset(g, 0, sizeof g);
            sm_polar_guarded(wide, g, m, n, ns);
            for (size_t i = 0; i < m * n; i++) CHECK(wide[i] == 0);
        }
    CHECK(sm_newton_schulz("jordan") == NULL);
}

/* test/fixture.safetensors, written by test/make_fixture.py */
TEST(polar_factors_and_adamw_equal_pytorchs_numbers) {
    static const size_t shape[3][2] = {{24, 16}, {16, 24}, {20, 20}};
    static const char *const kind[] = {"polar", "ns_jordan"}, *const ns[] = {"exact", "jordan5"};
    StFile file;
    char error[256], name[64];
    if (st_open(&file, "test/fixture.safetensors", error, sizeof error)) {
        FAIL("%s", error);
        return;
    }
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 2; k++) {
            size_t m = shape[i][0], n = shape[i][1];
            float g[600], expect[600], o[600];
            snprintf(name, sizeof name, "polar.%d.in", i);
            CHECK(!st_read_f32(&file, name, g, m * n, error, sizeof error));
            snprintf(name, sizeof name, "%s.%d.out", kind[k], i);
            CHECK(!st_read_f32(&file, name, expect, m * n, error, sizeof error));
            sm_polar_guarded(o, g, m, n, sm_newton_schulz(ns[k]));
            for (size_t j = 0; j < m * n; j++) CHECK_NEAR(o[j], expect[j], 2e-5);
        }
    float p[40], g[5 * 40], expect[5 * 40], m[40] = {0}, v[40] = {0};
    CHECK(!st_read_f32(&file, "adamw.p0", p, 40, error, sizeof error));
    CHECK(!st_read_f32(&file, "adamw.g", g, 200, error, sizeof error));
    CHECK(!st_read_f32(&file, "adamw.p", expect, 200, error, sizeof error));
    for (uint64_t t = 0; t < 5; t++) {
        sm_adamw(p, m, v, g + t * 40, 40, t + 1, 1e-3, 0.9, 0.99, 1e-8, (float)(1 - 1e-3 * 0.1));
        for (size_t i = 0; i < 40; i++) CHECK_NEAR(p[i], expect[t * 40 + i], 1e-6);
    }
    st_close(&file);
}

/* ---- theorems ---- */

/* <G, sgn(polar(G))> on the 4 x 4 instance of Theorem 1 of intsystems/SignMuon; negative: the
 * step ascends */
static double sm_theorem1(double sigma, const SmNewtonSchulz *ns) {
    static const double o[16] = {101, 20, 2, -2,  -20, 97, 20,   -20,
                                 -2,  20, 2, 101, -2,  20, -101, -2};
    static const double u[4] = {10, -3, 10, 10}, v[4] = {10, 3, -10, 10};
    double exact[16], inner = 0;
    float g[16], polar[16];
    uint64_t bits;
    for (size_t i = 0; i < 16; i++) {
        exact[i] = sigma * u[i / 4] * v[i % 4] / 309 + o[i] / 103;
        g[i] = (float)exact[i];
    }
    sm_polar_guarded(polar, g, 4, 4, ns);
    sm_pack(&bits, polar, 16, SM_COIN, 1);
    for (size_t i = 0; i < 16; i++) inner += bits >> i & 1 ? exact[i] : -exact[i];
    return inner;
}

TEST(signmuon_ascends_on_the_instance_of_theorem_1_and_newton_schulz_decides_by_its_steps) {
    static const double sigmas[] = {2, 12, 13, 100, 1000};
    for (size_t i = 0; i < 5; i++)
        CHECK_NEAR(sm_theorem1(sigmas[i], sm_newton_schulz("exact")), (532 - 43 * sigmas[i]) / 103,
                   1e-9 * sigmas[i]);
    CHECK(sm_theorem1(12, sm_newton_schulz("exact")) > 0 &&
          sm_theorem1(13, sm_newton_schulz("exact")) < 0);
    static const struct {
        double sigma;
        int steps;
        double inner;
    } jordan[] = {{1000, 5, 3470.95}, {1000, 6, -412.311}, {1000, 8, 3470.95},
                  {100, 5, -36.583},  {100, 6, -36.583},   {100, 8, -36.583}};
    for (size_t i = 0; i < sizeof jordan / sizeof *jordan; i++) {
        SmNewtonSchulz ns = *sm_newton_schulz("jordan5");
        ns.steps = jordan[i].steps;
        for (size_t k = 5; k < 8; k++)
            memcpy(ns.coefficient[k], ns.coefficient[0], sizeof ns.coefficient[k]);
        CHECK_NEAR(sm_theorem1(jordan[i].sigma, &ns), jordan[i].inner, 0.005);
        CHECK((sm_theorem1(13, &ns) < 0) == (ns.steps == 5)); /* sigma 13: only five steps ascend */
        CHECK(sm_theorem1(300, &ns) < 0 || ns.steps != 5);
        CHECK(sm_theorem1(300, &ns) > 0 || ns.steps == 5);
    }
    static const double o[16] = {101, 20, 2, -2,  -20, 97, 20,   -20,
                                 -2,  20, 2, 101, -2,  20, -101, -2};
    for (size_t i = 0; i < 16; i++) { /* the instance is what it claims to be: O is orthogonal */
        double dot = 0;
        for (size_t k = 0; k < 4; k++) dot += o[i / 4 * 4 + k] * o[i % 4 * 4 + k];
        CHECK_NEAR(dot, i / 4 == i % 4 ? 103 * 103 : 0, 1e-9);
    }
}

/* <G, sgn(O)> >= sigma_1 sqrt(r d) (phi - 1 + 1/kappa), phi = |O|_1 / sqrt(r d) */
TEST(the_descent_bound_of_the_sign_of_the_polar_factor_holds_for_every_rank) {
    static SmKnown k;
    double tightest = 1;
    for (uint64_t trial = 0; trial < 280; trial++) {
        size_t r = 1 + trial % 7, m = r + test_hash(trial) % 9 * (trial & 1),
               n = r + 1 + test_hash(trial + 1000) % 12;
        double sigma[7], l1 = 0, inner = 0,
                         kappa = pow(10, 3 * (double)(test_hash(trial + 2000) % 100) / 99);
        for (size_t p = 0; p < r; p++)
            sigma[p] =
                trial & 2 && p ? 1 / kappa : pow(kappa, -(double)p / (r > 1 ? (double)r - 1 : 1));
        kappa = sigma[0] / sigma[r - 1];
        sm_known(&k, m, n, r, sigma, trial);
        float o[40 * 40], s[40 * 40];
        uint64_t bits[25];
        for (size_t i = 0; i < m * n; i++)
            o[i] = (float)k.polar[i]; /* rounded to fp32, G has full rank */
        if (r == m) sm_polar_guarded(o, k.g, m, n, sm_newton_schulz("exact"));
        sm_pack(bits, o, m * n, SM_PLUS, 0);
        sm_unpack(s, bits, NULL, m * n);
        for (size_t i = 0; i < m * n; i++) {
            l1 += fabs(k.polar[i]);
            inner += k.exact[i] * (double)s[i];
        }
        double root = sqrt((double)(r * m * n)),
               bound = sigma[0] * root * (l1 / root - 1 + 1 / kappa);
        if (!(inner >= bound - 1e-4 * root))
            FAIL("trial %d: %d x %d of rank %d, kappa %.3g: %.6g < %.6g", (int)trial, (int)m,
                 (int)n, (int)r, kappa, inner, bound);
        tightest = fmin(tightest, (inner - bound) / root);
    }
    CHECK(tightest < 1e-6); /* rank one meets it with equality */
}

/* ---- the vote ---- */

/* A byte per sign: votes[v * n + i] is +1, -1 or, for one who abstains, 0. Sets *decided. */
static int sm_model_vote(const signed char *votes, size_t voters, size_t n, size_t i, SmZero ties,
                         uint64_t key, size_t first_word, int *decided) {
    int sum = 0;
    for (size_t v = 0; v < voters; v++) sum += votes[v * n + i];
    *decided = sum != 0 || ties != SM_ABSTAIN;
    if (sum != 0) return sum > 0;
    if (ties == SM_COIN)
        return (int)(test_hash(key + 0x9e3779b97f4a7c15u * (first_word + i / 64)) >> i % 64 & 1);
    return ties == SM_PLUS;
}

TEST(a_tiny_singular_value_grows_by_the_product_of_the_slopes_and_the_safety_factor) {
    /* a / 1.01 of every triple but the last, and the input divided by 1.01 (arXiv 2505.16932) */
    double slope = 8.28721201814563 * 4.107059111542203 * 3.9486908534822946 * 3.3184196573706015 *
                   2.300652019954817 * 1.891301407787398 * 1.8750014808534479 * 1.875 /
                   pow(1.01, 8);
    float g[6] = {1, 0, 0, 0, 1e-6f, 0}, out[6], scratch[256];
    sm_polar(out, g, 2, 3, sm_newton_schulz("polar-express8"), scratch);
    CHECK_NEAR((double)out[4] / (1e-6 * slope), 1, 1e-3);
    CHECK_NEAR((double)out[0], 1, 1e-5);
}

TEST(gathered_newton_schulz_steps_of_wide_matrices_follow_the_plain_iteration_in_double) {
    enum { M = 40, N = 170 };
    float *g = malloc(M * N * 4), *out = malloc(M * N * 4), *tall = malloc(M * N * 4);
    float *scratch = malloc(sm_lmo_scratch(M, N) * 4);
    double *x = malloc(M * N * 8), *y = malloc(M * N * 8), *a = malloc(M * M * 8),
           *p = malloc(M * M * 8);
    for (int row = 0; row < 3;
         row++) /* rows of g shrink to 1e-3 of the first: an ill-conditioned matrix */
        for (uint64_t seed = 1; seed < 4; seed++) {
            const SmNewtonSchulz *ns = sm_newton_schulz_row((size_t)row);
            double norm = 0, error = 0, size = 0;
            test_fill(g, M * N, seed);
            for (size_t i = 0; i < M * N; i++) g[i] *= (float)pow(1e-3, (double)(i / N) / (M - 1));
            for (size_t i = 0; i < M * N; i++) norm += (double)g[i] * (double)g[i];
            for (size_t i = 0; i < M * N; i++) x[i] = (double)g[i] / (sqrt(norm) * ns->safety);
            for (int k = 0; k < ns->steps; k++) {
                const double *c = ns->coefficient[k];
                for (size_t i = 0; i < M; i++)
                    for (size_t j = 0; j < M; j++) {
                        a[i * M + j] = 0;
                        for (size_t n = 0; n < N; n++) a[i * M + j] += x[i * N + n] * x[j * N + n];
                    }
                for (size_t i = 0; i < M; i++)
                    for (size_t j = 0; j < M; j++) {
                        double square = 0;
                        for (size_t n = 0; n < M; n++) square += a[i * M + n] * a[n * M + j];
                        p[i * M + j] = c[0] * (i == j) + c[1] * a[i * M + j] + c[2] * square;
                    }
                for (size_t i = 0; i < M; i++)
                    for (size_t n = 0; n < N; n++) {
                        y[i * N + n] = 0;
                        for (size_t j = 0; j < M; j++) y[i * N + n] += p[i * M + j] * x[j * N + n];
                    }
                memcpy(x, y, M * N * 8);
            }
            sm_polar(out, g, M, N, ns, scratch);
            for (size_t i = 0; i < M * N; i++) {
                error += ((double)out[i] - x[i]) * ((double)out[i] - x[i]);
                size += x[i] * x[i];
            }
            if (!(sqrt(error / size) < 1e-5))
                FAIL("%s: relative error %g", ns->name, sqrt(error / size));
            for (size_t i = 0; i < M; i++)
                for (size_t n = 0; n < N; n++) tall[n * M + i] = g[i * N + n];
            sm_polar(tall, tall, N, M, ns, scratch);
            for (size_t i = 0; i < M; i++)
                for (size_t n = 0; n < N; n++) CHECK(tall[n * M + i] == out[i * N + n]);
        }
    free(g), free(out), free(tall), free(scratch), free(x), free(y), free(a), free(p);
}

TEST(the_packed_vote_equals_a_byte_per_sign_for_any_number_of_voters_words_and_every_rule) {
    enum { WORDS = 19, MOST = 300 };
    static signed char votes[MOST * WORDS * 64];
    static uint64_t bits[MOST][WORDS], present[MOST][WORDS];
    const uint64_t *ballots[MOST], *presents[MOST];
    for (size_t v = 0; v < MOST; v++) ballots[v] = bits[v], presents[v] = present[v];
    for (size_t round = 0; round < 74; round++) {
        static const size_t many[] = {127, 128, 200, 255};
        size_t voters = round < 70 ? round + 1 : many[round - 70],
               words = 1 + test_hash(round) % WORDS, n = words * 64;
        for (int abstain = 0; abstain < 2; abstain++) {
            int tied = 0;
            for (size_t v = 0; v < voters; v++)
                for (size_t w = 0; w < words; w++) {
                    uint64_t random = test_hash(round << 32 | v << 16 | w),
                             zero = abstain ? test_hash(~random) & test_hash(random + 1) : 0;
                    if (v % 2 && w % 2)
                        random = ~bits[v - 1][w],
                        zero = abstain ? ~present[v - 1][w] : 0;                 /* many ties */
                    if (w == 0) random = round & 1 ? ~(uint64_t)0 : 0, zero = 0; /* unanimous */
                    bits[v][w] = random & ~zero, present[v][w] = ~zero;
                    for (size_t i = 0; i < 64; i++)
                        votes[v * n + w * 64 + i] = (signed char)(zero >> i & 1     ? 0
                                                                  : random >> i & 1 ? 1
                                                                                    : -1);
                }
            for (int ties = SM_COIN; ties <= SM_ABSTAIN; ties++) {
                uint64_t vote[WORDS + 1], decided[WORDS + 1], key = test_hash(round + 77);
                size_t first = round % 3 * 11;
                vote[words] = decided[words] = 42;
                sm_vote(vote, decided, ballots, abstain ? presents : NULL, voters, words,
                        (SmZero)ties, key, first);
                CHECK(vote[words] == 42 && decided[words] == 42);
                for (size_t i = 0; i < n; i++) {
                    int clear, expect = sm_model_vote(votes, voters, n, i, (SmZero)ties, key, first,
                                                      &clear);
                    tied += !clear;
                    if ((int)(vote[i / 64] >> i % 64 & 1) != expect ||
                        (int)(decided[i / 64] >> i % 64 & 1) != clear) {
                        FAIL("%d voters, %d words, abstain %d, ties %d, bit %d", (int)voters,
                             (int)words, abstain, ties, (int)i);
                        break;
                    }
                }
            }
            if (words > 1 && (voters % 2 == 0 || abstain)) CHECK(tied > 0);
        }
    }
}

TEST(counts_of_machines_added_up_give_the_vote_on_all_ballots) {
    enum { LOCALS = 9, MACHINES = 5, WORDS = 37, MOST = LOCALS * MACHINES, PLANES = 4 };
    static uint64_t bits[MOST][WORDS], present[MOST][WORDS];
    static uint64_t plus[MACHINES][PLANES * WORDS + 1], absent[MACHINES][PLANES * WORDS + 1];
    const uint64_t *ballots[MOST], *presents[MOST], *p[MACHINES], *a[MACHINES];
    for (size_t v = 0; v < MOST; v++) ballots[v] = bits[v], presents[v] = present[v];
    for (size_t locals = 1; locals <= LOCALS; locals++)
        for (size_t machines = 1; machines <= MACHINES; machines++)
            for (uint64_t rule = 0; rule < 6; rule++) {
                size_t voters = locals * machines, planes = sm_planes(locals),
                       words = 1 + test_hash(voters << 8 | rule) % WORDS;
                uint64_t vote[2][WORDS + 1], decided[2][WORDS + 1];
                int abstain = rule & 1, ties = (int)rule / 2, differ = 0;
                for (size_t v = 0; v < voters; v++)
                    for (size_t w = 0; w < words; w++) {
                        uint64_t random = test_hash(voters << 40 | rule << 32 | v << 16 | w);
                        if (v % 2 && w % 2) random = ~bits[v - 1][w]; /* many ties */
                        if (w == 2) random = 0 - (rule & 1);          /* unanimous */
                        bits[v][w] = random;
                        present[v][w] = w == 2 ? 0 - (rule >> 1 & 1) : test_hash(random + w);
                    }
                for (size_t m = 0; m < machines; m++) {
                    plus[m][planes * words] = absent[m][planes * words] = 42;
                    sm_count(plus[m], words, ballots + m * locals, 0, locals, words);
                    sm_count(absent[m], words, presents + m * locals, 1, locals, words);
                    CHECK(plus[m][planes * words] == 42 && absent[m][planes * words] == 42);
                    p[m] = plus[m], a[m] = absent[m];
                    for (size_t i = 0; i < words * 64; i++) {
                        size_t count = 0, sliced = 0;
                        for (size_t v = m * locals; v < (m + 1) * locals; v++)
                            count += bits[v][i / 64] >> i % 64 & 1;
                        for (size_t q = 0; q < planes; q++)
                            sliced |= (plus[m][q * words + i / 64] >> i % 64 & 1) << q;
                        CHECK(count == sliced);
                    }
                }
                vote[1][words] = decided[1][words] = 42;
                sm_vote(vote[0], decided[0], ballots, abstain ? presents : NULL, voters, words,
                        (SmZero)ties, 5, 7);
                sm_vote_counts(vote[1], decided[1], p, abstain ? a : NULL, words, machines, locals,
                               words, (SmZero)ties, 5, 7);
                for (size_t w = 0; w < words; w++)
                    differ |= vote[0][w] != vote[1][w] || decided[0][w] != decided[1][w];
                if (differ || vote[1][words] != 42 || decided[1][words] != 42)
                    FAIL("%d machines of %d, %d words, rule %d", (int)machines, (int)locals,
                         (int)words, (int)rule);
            }
    CHECK_EQ(sm_planes(1), 1);
    CHECK_EQ(sm_planes(3), 2);
    CHECK_EQ(sm_planes(4), 3);
}

TEST(a_majority_of_majorities_is_not_the_majority_and_counts_are) {
    /* + + -, + + -, - - -: two machines of three say +, five voters of nine say - */
    uint64_t bits[9] = {1, 1, 0, 1, 1, 0, 0, 0, 0}, verdict[3], tree, flat, counted, counts[3][2];
    const uint64_t *ballots[9], *verdicts[3], *plus[3];
    for (size_t v = 0; v < 9; v++) ballots[v] = &bits[v];
    for (size_t m = 0; m < 3; m++) {
        sm_vote(&verdict[m], NULL, ballots + 3 * m, NULL, 3, 1, SM_COIN, 1, 0);
        sm_count(counts[m], 1, ballots + 3 * m, 0, 3, 1);
        verdicts[m] = &verdict[m], plus[m] = counts[m];
    }
    sm_vote(&tree, NULL, verdicts, NULL, 3, 1, SM_COIN, 1, 0);
    sm_vote(&flat, NULL, ballots, NULL, 9, 1, SM_COIN, 1, 0);
    sm_vote_counts(&counted, NULL, plus, NULL, 1, 3, 3, 1, SM_COIN, 1, 0);
    CHECK_EQ(tree, 1);
    CHECK_EQ(flat, 0);
    CHECK_EQ(counted, 0);
}

TEST(the_vote_does_not_depend_on_where_a_shard_begins) {
    enum { WORDS = 37, VOTERS = 4 };
    uint64_t bits[VOTERS][WORDS], present[VOTERS][WORDS], whole[WORDS], sure[WORDS], part[WORDS],
        part_sure[WORDS];
    for (size_t v = 0; v < VOTERS; v++)
        for (size_t w = 0; w < WORDS; w++) {
            bits[v][w] = test_hash(v << 8 | w);
            present[v][w] = test_hash(v << 20 | w);
            bits[v][w] &= present[v][w];
        }
    for (int rule = 0; rule < 6; rule++) {
        const uint64_t *b[VOTERS] = {bits[0], bits[1], bits[2], bits[3]},
                       *p[VOTERS] = {present[0], present[1], present[2], present[3]};
        sm_vote(whole, sure, b, rule & 1 ? p : NULL, VOTERS, WORDS, (SmZero)(rule / 2), 9, 0);
        for (size_t cut = 1; cut < WORDS; cut++)
            for (size_t side = 0; side < 2; side++) {
                size_t first = side ? cut : 0, n = side ? WORDS - cut : cut;
                for (size_t v = 0; v < VOTERS; v++)
                    b[v] = bits[v] + first, p[v] = present[v] + first;
                sm_vote(part + first, part_sure + first, b, rule & 1 ? p : NULL, VOTERS, n,
                        (SmZero)(rule / 2), 9, first);
                if (side)
                    CHECK(memcmp(part, whole, sizeof whole) == 0 &&
                          memcmp(part_sure, sure, sizeof sure) == 0);
            }
    }
}

/* Pr(k of n) */
static double sm_binomial(int n, int k, double p) {
    return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) +
               (n - k) * log(1 - p));
}

/* A = Pr(right) - Pr(wrong) when each voter is right with probability 0.65 */
TEST(votes_align_as_the_binomial_says_and_ten_voters_align_like_nine) {
    static const struct {
        int voters;
        double alignment;
    } table[] = {{1, .300},   {3, .4365},  {5, .5297},  {7, .6003}, {9, .6566},
                 {10, .6566}, {11, .7026}, {15, .7735}, {21, .8456}};
    enum { WORDS = 1000 };
    static uint64_t bits[21][WORDS], vote[WORDS], decided[WORDS];
    const uint64_t *ballots[21];
    double nine = 0;
    for (size_t v = 0; v < 21; v++) {
        ballots[v] = bits[v];
        for (size_t i = 0; i < WORDS * 64; i++)
            bits[v][i / 64] |= (uint64_t)(test_hash(v << 40 | i) < (uint64_t)(0.65 * 0x1p64))
                               << i % 64;
    }
    for (size_t row = 0; row < sizeof table / sizeof *table; row++) {
        int n = table[row].voters;
        double right = 0, tie = n % 2 ? 0 : sm_binomial(n, n / 2, 0.65), count = 0, ties = 0,
               N = WORDS * 64;
        for (int k = n / 2 + 1; k <= n; k++) right += sm_binomial(n, k, 0.65);
        double alignment = right - (1 - right - tie);
        CHECK_NEAR(alignment, table[row].alignment, 6e-5);
        if (n == 9) nine = alignment;
        if (n == 10) CHECK_NEAR(alignment, nine, 1e-12);
        if (n == 10) CHECK_NEAR(tie, 0.1536, 5e-5);
        sm_vote(vote, NULL, ballots, NULL, (size_t)n, WORDS, SM_COIN, 4, 0);
        for (size_t w = 0; w < WORDS; w++) count += __builtin_popcountll(vote[w]);
        double chance = right + tie / 2;
        CHECK_NEAR(count / N, chance, 4 * sqrt(chance * (1 - chance) / N));
        sm_vote(vote, decided, ballots, NULL, (size_t)n, WORDS, SM_ABSTAIN, 4, 0);
        for (size_t w = 0; w < WORDS; w++) ties += 64 - __builtin_popcountll(decided[w]);
        CHECK_NEAR(ties / N, tie, 4 * sqrt(tie * (1 - tie) / N));
    }
}

/* ---- dissent ---- */

TEST(dissent_is_counted_against_the_others_bit_by_bit) {
    enum { WORDS = 131, MOST = 9 };
    static uint64_t bits[MOST][WORDS], vote[WORDS], counted[WORDS];
    const uint64_t *ballots[MOST];
    for (size_t w = 0; w < WORDS; w++) counted[w] = test_hash(w) | test_hash(w + 1);
    for (size_t v = 0; v < MOST; v++) {
        ballots[v] = bits[v];
        for (size_t w = 0; w < WORDS; w++) bits[v][w] = test_hash(v << 20 | (w + 99));
    }
    for (size_t voters = 1; voters <= MOST; voters++)
        for (size_t words = 0; words <= WORDS; words += words < 66 ? 1 : 13) {
            uint64_t against[MOST], entries[MOST];
            int all = words % 2 == 0;
            sm_vote(vote, NULL, ballots, NULL, voters, words, SM_COIN, 5, 0);
            sm_count_dissent(against, entries, vote, ballots, voters, words, all ? NULL : counted);
            for (size_t j = 0; j < voters; j++) {
                uint64_t expect = 0, total = 0;
                for (size_t i = 0; i < words * 64; i++) {
                    int others = 0, mine = bits[j][i / 64] >> i % 64 & 1 ? 1 : -1;
                    for (size_t v = 0; v < voters; v++)
                        if (v != j) others += bits[v][i / 64] >> i % 64 & 1 ? 1 : -1;
                    if (others == 0 || (!all && !(counted[i / 64] >> i % 64 & 1))) continue;
                    total++;
                    expect += others * mine < 0;
                }
                if (against[j] != expect || entries[j] != total)
                    FAIL("%d voters, %d words, voter %d: %d of %d, not %d of %d", (int)voters,
                         (int)words, (int)j, (int)against[j], (int)entries[j], (int)expect,
                         (int)total);
            }
        }
}

/* Coins, and a stream that is always against. K steps of coins in a row somewhere in T steps have the
 * probability that the recursion over "none so far" says; T 2^-K bounds it. */
TEST(a_dissenter_is_out_at_step_k_and_a_fair_coin_with_a_chance_below_t_over_two_to_the_k) {
    enum { STREAMS = 4000, T = 400 };
    uint32_t steps = 0;
    CHECK_EQ(sm_dissent(7, 50, 100), 0);
    CHECK_EQ(sm_dissent(7, 70, 100), 0); /* half and four deviations of 5: not beyond */
    CHECK_EQ(sm_dissent(7, 71, 100), 8);
    CHECK_EQ(sm_dissent(7, 0, 0), 0);
    CHECK_EQ(sm_dissent(0, 502000, 1000000), 0);
    CHECK_EQ(sm_dissent(0, 502001, 1000000), 1);
    for (uint32_t k = 1; k <= 40; k++) CHECK_EQ(steps = sm_dissent(steps, 900, 1000), k);
    CHECK_EQ(sm_dissent(steps, 400, 1000), 0);
    for (uint32_t K = 6; K <= 14; K += 2) {
        double none[T + 1], p = exp2(-(double)K);
        int out = 0;
        for (int t = 0; t <= T; t++) {
            none[t] = t < (int)K ? 1 : none[t - 1];
            if (t == (int)K) none[t] -= p;
            if (t > (int)K) none[t] -= p / 2 * none[t - (int)K - 1];
        }
        for (uint64_t stream = 0; stream < STREAMS; stream++) {
            uint32_t row = 0, most = 0;
            for (uint64_t t = 0; t < T; t++) {
                int against = test_hash(stream << 20 | t) >> 40 & 1;
                row = sm_dissent(row, against ? 900 : 100, 1000);
                most = row > most ? row : most;
            }
            out += most >= K;
        }
        double chance = 1 - none[T], deviation = sqrt(chance * (1 - chance) / STREAMS);
        CHECK_NEAR((double)out / STREAMS, chance, 4 * deviation);
        CHECK(chance <= T * p);
    }
}

/* ---- zeros, ties and coins ---- */

TEST(a_zero_tosses_a_fair_coin_that_depends_on_rank_and_step_and_comes_out_the_same_again) {
    enum { N = 64 * 800 + 13, WORDS = 801 };
    static float x[N];
    static uint64_t bits[4][WORDS], here[WORDS];
    const uint64_t key[4] = {sm_key(1, 1, 5), sm_key(1, 2, 5), sm_key(1, 1, 6), sm_key(2, 1, 5)};
    for (size_t i = 1; i < N; i += 3) x[i] = i & 1 ? 1.0f : -1.0f;
    for (size_t i = 2; i < N; i += 6) x[i] = -0.0f;
    for (int k = 0; k < 4; k++) {
        double plus = 0, zeros = 0, as_first = 0;
        sm_pack(bits[k], x, N, SM_COIN, key[k]);
        for (size_t i = 0; i < N; i++) {
            int bit = bits[k][i / 64] >> i % 64 & 1;
            if (x[i] != 0)
                CHECK_EQ(bit, x[i] > 0);
            else
                zeros++, plus += bit, as_first += bit == (int)(bits[0][i / 64] >> i % 64 & 1);
        }
        CHECK_NEAR(plus / zeros, 0.5, 2 / sqrt(zeros)); /* four standard errors */
        if (k) CHECK_NEAR(as_first / zeros, 0.5, 2 / sqrt(zeros));
    }
    sm_pack(bits[1], x, N, SM_COIN, key[0]);
    CHECK(memcmp(bits[0], bits[1], sizeof bits[0]) == 0);
    sm_pack(bits[0], x, N, SM_PLUS, key[0]);
    sm_pack(bits[1], x, N, SM_ABSTAIN, key[0]);
    sm_present(here, x, N);
    for (size_t i = 0; i < N; i++) {
        CHECK_EQ(bits[0][i / 64] >> i % 64 & 1, x[i] >= 0);
        CHECK_EQ(bits[1][i / 64] >> i % 64 & 1, x[i] > 0);
        CHECK_EQ(here[i / 64] >> i % 64 & 1, x[i] != 0);
    }
}

TEST(what_is_not_finite_is_seen_before_it_becomes_a_bit) {
    float x[77];
    test_fill(x, 77, 3);
    x[3] = 3e38f, x[4] = -3e38f, x[5] = 0;
    CHECK(sm_finite(x, 77) && sm_finite(x, 0));
    for (size_t i = 0; i < 77; i++) {
        static const float bad[] = {NAN, INFINITY, -INFINITY};
        float was = x[i];
        x[i] = bad[i % 3];
        CHECK(!sm_finite(x, 77));
        CHECK(sm_finite(x, i) && sm_finite(x + i + 1, 76 - i));
        x[i] = was;
    }
}

/* two workers, or two pairs, that want the opposite of each other; nobody wants a zero */
static void sm_gradient_opposed(float *g, const SmCase *c, int worker, int step) {
    sm_gradient(g, c, 0, step + 100);
    for (size_t i = 0; i < SM_SIZE; i++) g[i] = worker % 2 ? -g[i] : g[i];
}
static void sm_gradient_opposed_swapped(float *g, const SmCase *c, int worker, int step) {
    sm_gradient_opposed(g, c, worker + 1, step);
}

TEST(a_tied_vote_follows_the_hash_and_not_the_rank) {
    uint64_t yes = test_hash(8), no = ~yes, vote;
    const uint64_t *ballots[2] = {&yes, &no}, *swapped[2] = {&no, &yes};
    sm_vote(&vote, NULL, ballots, NULL, 2, 1, SM_COIN, 5, 3);
    CHECK(vote == test_hash(5 + 3 * 0x9e3779b97f4a7c15u));
    sm_vote(&vote, NULL, swapped, NULL, 2, 1, SM_COIN, 5, 3);
    CHECK(vote == test_hash(5 + 3 * 0x9e3779b97f4a7c15u));

    static SmResult first, other;
    static float start[SM_SIZE];
    SmCase c = sm_case("signum", "signum", 2);
    c.gradient = sm_gradient_opposed, c.steps = 1, c.config.decay = 0;
    sm_start(start, c.seed);
    sm_case_run(&c, &first);
    size_t up = 0, all = 0;
    for (size_t k = 0; k < SM_TENSORS; k++)
        for (size_t i = 0; i < sm_tensors[k].rows * sm_tensors[k].cols * sm_tensors[k].blocks;
             i++, all++) {
            float moved =
                first.params[0][sm_tensors[k].offset + i] - start[sm_tensors[k].offset + i];
            CHECK_NEAR(fabsf(moved), sm_tensors[k].role == SM_HIDDEN ? c.lr : c.aux_lr, 1e-6);
            up += moved > 0;
        }
    CHECK_NEAR((double)up / (double)all, 0.5, 2 / sqrt((double)all));
    c.steps = 4;
    sm_case_run(&c, &first);
    for (int variant = 0; variant < 3;
         variant++) { /* the same coins whoever is who, however counted */
        SmCase d = c;
        if (variant == 0) d.gradient = sm_gradient_opposed_swapped;
        if (variant == 1) d.workers = 4;          /* other shards, other owners */
        if (variant == 2) d.config.int8_wire = 1; /* every worker tosses for itself */
        sm_case_run(&d, &other);
        CHECK(sm_same(&first, &other));
    }
    c.config.seed++;
    sm_case_run(&c, &other);
    CHECK(!sm_same(&first, &other));
}

TEST(ties_that_say_plus_move_everything_one_way_and_ties_that_abstain_move_nothing) {
    static SmResult r;
    static float start[SM_SIZE];
    for (int wire = 0; wire < 2; wire++)
        for (int rule = SM_PLUS; rule <= SM_ABSTAIN; rule++)
            for (int after = 0; after < 2; after++) {
                SmCase c = sm_case(after ? "signmuon" : "signsgd", "signum", 2);
                c.gradient = sm_gradient_opposed, c.steps = 1, c.config.ties = (SmZero)rule,
                c.config.int8_wire = wire;
                sm_start(start, c.seed);
                sm_case_run(&c, &r);
                for (size_t k = 0; k < SM_TENSORS; k++)
                    for (size_t i = 0;
                         i < sm_tensors[k].rows * sm_tensors[k].cols * sm_tensors[k].blocks; i++) {
                        size_t at = sm_tensors[k].offset + i;
                        double lr = sm_tensors[k].role == SM_HIDDEN ? c.lr : c.aux_lr,
                               keep = sm_tensors[k].decay ? 1 - lr * c.config.decay : 1;
                        CHECK_NEAR(r.params[0][at],
                                   keep * (double)start[at] - (rule == SM_PLUS ? lr : 0), 2e-7);
                    }
            }
}

static void sm_gradient_zero(float *g, const SmCase *c, int worker, int step) {
    (void)c, (void)worker, (void)step;
    memset(g, 0, SM_SIZE * sizeof *g);
}
/* worker 0 wants something, the others nothing at all */
static void sm_gradient_lone(float *g, const SmCase *c, int worker, int step) {
    if (worker == 0)
        sm_gradient(g, c, 0, step + 100);
    else
        sm_gradient_zero(g, c, worker, step);
}

TEST(zero_gradients_toss_coins_of_every_workers_own_unless_they_say_plus_or_abstain) {
    static SmResult r;
    static float start[SM_SIZE];
    sm_start(start, 3);
    SmCase c = sm_case("signmuon", "adamw", 2);
    c.gradient = sm_gradient_zero, c.steps = 1;
    sm_case_run(
        &c,
        &r); /* coins of two: half agree and are confirmed, half tie and are confirmed half the time */
    CHECK_NEAR(r.agreement[0], 0.75, 4 * sqrt(0.1875 / 324));
    CHECK_NEAR(r.agreement[0] + r.agreement[1], 1.5, 4 * sqrt(0.25 / 324));
    c.workers = 1;
    sm_case_run(&c, &r);
    CHECK(r.agreement[0] == 1);

    for (int wire = 0; wire < 2; wire++)
        for (int rule = SM_PLUS; rule <= SM_ABSTAIN; rule++) {
            float g[SM_SIZE];
            SmCase d = sm_case("signsgd", "signsgd", 3);
            d.gradient = sm_gradient_lone, d.steps = 1, d.config.zeros = (SmZero)rule,
            d.config.int8_wire = wire;
            d.config.decay = 0;
            sm_gradient_lone(g, &d, 0, 0);
            sm_case_run(&d, &r);
            for (size_t k = 0; k < SM_TENSORS; k++)
                for (size_t i = 0;
                     i < sm_tensors[k].rows * sm_tensors[k].cols * sm_tensors[k].blocks; i++) {
                    size_t at = sm_tensors[k].offset + i;
                    if (g[at] == 0) continue;
                    double lr = sm_tensors[k].role == SM_HIDDEN ? d.lr : d.aux_lr,
                           vote = rule == SM_PLUS || g[at] > 0 ? 1 : -1;
                    CHECK_NEAR(r.params[0][at], (double)start[at] - lr * vote, 2e-7);
                }
        }
}

/* ---- norms ---- */

TEST(every_norms_lmo_has_unit_norm_and_reaches_the_dual_norm_at_every_scale) {
    static const size_t shape[][2] = {{6, 10}, {14, 6}, {1, 9}, {33, 20}};
    static SmKnown k;
    for (size_t row = 0; sm_norm_row(row); row++)
        for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
            const SmNorm *norm = sm_norm_row(row);
            size_t m = shape[s][0], n = shape[s][1], r = m < n ? m : n;
            double sigma[40], dual = 0, inner = 0, unit = 0, column[40] = {0}, side[40] = {0},
                              nuclear = 0;
            float o[1600], scaled[1600], input[1600],
                *scratch = malloc(sm_lmo_scratch(m, n) * sizeof *scratch);
            for (size_t p = 0; p < r; p++) sigma[p] = p ? 1.5 / (double)p : 4, nuclear += sigma[p];
            sm_known(&k, m, n, r, sigma, 300 + s);
            memcpy(input, k.g, sizeof input);
            norm->lmo(o, k.g, m, n, sm_newton_schulz("exact"), NULL, scratch);
            CHECK(memcmp(input, k.g, m * n * sizeof *input) == 0);
            for (size_t i = 0; i < m * n; i++) inner += k.exact[i] * (double)o[i];
            double mn = (double)m * (double)n, square = 0;
            for (size_t i = 0; i < m * n; i++) square += (double)o[i] * (double)o[i];
            if (strcmp(norm->name, "spectral") == 0 || strcmp(norm->name, "rms-rms") == 0) {
                double factor = norm->name[0] == 's' ? 1 : sqrt((double)m / (double)n);
                dual = nuclear * factor;
                for (size_t p = 0; p < r; p++)
                    for (size_t q = 0; q < r; q++)
                        CHECK_NEAR(sm_known_core(&k, o, p, q) / factor, p == q, 1e-5);
                unit = 1;
            } else if (strncmp(norm->name, "sign", 4) == 0) {
                double factor = norm->name[4] ? 1 / (double)n : 1;
                for (size_t i = 0; i < m * n; i++)
                    dual += factor * fabs(k.exact[i]),
                        unit = fmax(unit, fabs((double)o[i]) / factor);
            } else if (strcmp(norm->name, "frobenius") == 0 || strcmp(norm->name, "rms") == 0) {
                double factor = norm->name[0] == 'f' ? 1 : sqrt(mn);
                for (size_t p = 0; p < r; p++) dual += sigma[p] * sigma[p];
                dual = sqrt(dual) * factor, unit = sqrt(square) / factor;
            } else if (strcmp(norm->name, "column") == 0 || strcmp(norm->name, "row") == 0) {
                size_t by_column = norm->name[0] == 'c', lines = by_column ? n : m;
                for (size_t i = 0; i < m * n; i++) {
                    side[by_column ? i % n : i / n] += k.exact[i] * k.exact[i];
                    column[by_column ? i % n : i / n] += (double)o[i] * (double)o[i];
                }
                for (size_t i = 0; i < lines; i++) {
                    dual += sqrt(side[i]), unit = fmax(unit, sqrt(column[i]));
                    CHECK_NEAR(column[i], 1, 1e-5);
                }
            } else if (strcmp(norm->name, "nuclear") == 0) {
                dual = sigma[0];
                for (size_t i = 0; i < m * n; i++) /* one singular value, which is 1 */
                    CHECK_NEAR(o[i], k.u[i / n * r] * k.v[i % n * r], 1e-5);
                unit = 1;
            } else {
                FAIL("nobody wrote down the norm %s", norm->name);
            }
            if (!(fabs(inner - dual) <= 2e-5 * dual))
                FAIL("%s: <G, O> = %.8g, dual norm %.8g", norm->name, inner, dual);
            if (!(fabs(unit - 1) <= 1e-5)) FAIL("%s: |O| = %.8g", norm->name, unit);
            if (!(fabs(norm->rms((double)m, (double)n) / sqrt(square / mn) - 1) <= 1e-5))
                FAIL("%s: entries of RMS %.8g, said %.8g", norm->name, sqrt(square / mn),
                     norm->rms((double)m, (double)n));
            for (int power = -6; power <= 6; power += 2) {
                for (size_t i = 0; i < m * n; i++) scaled[i] = k.g[i] * (float)pow(10, power);
                norm->lmo(scaled, scaled, m, n, sm_newton_schulz("exact"), NULL,
                          scratch); /* out may be g */
                for (size_t i = 0; i < m * n; i++) CHECK_NEAR(scaled[i], o[i], 2e-6);
            }
            memset(scaled, 0, sizeof scaled);
            norm->lmo(scaled, scaled, m, n, sm_newton_schulz("jordan5"), NULL, scratch);
            for (size_t i = 0; i < m * n; i++) CHECK(scaled[i] == 0);
            free(scratch);
        }
    CHECK(sm_norm("none") == NULL);
}

/* A matrix that turns slowly: 4 iterations from where the last step ended keep up with it, 4 from
 * zero do not exist. */
TEST(the_nuclear_norms_lmo_starts_where_it_ended_the_step_before) {
    static SmKnown k;
    const double sigma[6] = {3, 2.6, 1, 0.5, 0.2, 0.1};
    const SmNorm *norm = sm_norm("nuclear");
    float o[60], warm[10] = {0}, cold[10] = {0}, scratch[4096];
    sm_known(&k, 6, 10, 6, sigma, 77);
    for (int step = 0; step < 40; step++)
        norm->lmo(o, k.g, 6, 10, sm_newton_schulz("jordan5"), warm, scratch);
    for (size_t i = 0; i < 60; i++) CHECK_NEAR(o[i], k.u[i / 10 * 6] * k.v[i % 10 * 6], 1e-5);
    for (size_t i = 0; i < 10; i++) CHECK_NEAR(fabs((double)warm[i]), fabs(k.v[i * 6]), 1e-5);
    for (size_t i = 0; i < 10; i++) cold[i] = (float)k.v[i * 6 + 1]; /* the second pair */
    norm->lmo(o, k.g, 6, 10, sm_newton_schulz("jordan5"), cold, scratch);
    double inner = 0;
    for (size_t i = 0; i < 60; i++) inner += k.exact[i] * (double)o[i];
    CHECK_NEAR(inner, 2.6, 1e-3); /* too few to leave it: these are 4 iterations, not 30 */
}

/* ---- bits ---- */

TEST(bits_unpack_to_the_signs_that_were_packed_and_bits_past_the_end_are_zero) {
    static const size_t sizes[] = {1, 2, 63, 64, 65, 127, 128, 129, 200, 640, 641};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s], words = (n + 63) / 64;
        float *x = malloc(n * sizeof *x), *back = malloc(n * sizeof *back);
        uint64_t *bits = malloc(words * 8),
                 *present = malloc(words * 8); /* exact sizes, for the sanitizer */
        CHECK_EQ(sm_words(n), words);
        for (int rule = SM_COIN; rule <= SM_ABSTAIN; rule++) {
            test_fill(x, n, s + 1);
            for (size_t i = rule == SM_ABSTAIN ? 0 : n; i < n; i += 5) x[i] = 0;
            memset(bits, 0xff, words * 8), memset(present, 0xff, words * 8);
            sm_pack(bits, x, n, (SmZero)rule, 3);
            sm_present(present, x, n);
            sm_unpack(back, bits, rule == SM_ABSTAIN ? present : NULL, n);
            for (size_t i = 0; i < n; i++) CHECK(back[i] == (float)((x[i] > 0) - (x[i] < 0)));
            memset(x, 0, n * sizeof *x);
            if (rule != SM_ABSTAIN) sm_pack(bits, x, n, (SmZero)rule, 3);
            if (n % 64) CHECK_EQ(bits[words - 1] >> n % 64, 0);
            if (n % 64) CHECK_EQ(present[words - 1] >> n % 64, 0);
        }
        free(x), free(back), free(bits), free(present);
    }
    CHECK_EQ(sm_words(0), 0);
}

TEST(applying_bits_equals_a_naive_loop_with_decay_and_with_undecided_votes) {
    static const size_t sizes[] = {1, 63, 64, 65, 190, 257};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int with = 0; with < 2; with++) {
            size_t n = sizes[s], words = (n + 63) / 64;
            float *w = malloc(n * sizeof *w), *start = malloc(n * sizeof *start);
            uint64_t *bits = malloc(words * 8), *decided = malloc(words * 8);
            for (size_t i = 0; i < words; i++)
                bits[i] = test_hash(i + s), decided[i] = test_hash(~i - s);
            test_fill(start, n, s + 9);
            memcpy(w, start, n * sizeof *w);
            sm_apply(w, bits, with ? decided : NULL, n, 0.37f, 0.83f);
            for (size_t i = 0; i < n; i++) {
                int plus = bits[i / 64] >> i % 64 & 1,
                    here = !with || (decided[i / 64] >> i % 64 & 1);
                CHECK_NEAR(w[i], 0.83 * (double)start[i] - (here ? 0.37 : 0) * (plus ? 1 : -1),
                           4e-7);
                CHECK(here || w[i] == 0.83f * start[i]);
            }
            free(w), free(start), free(bits), free(decided);
        }
}

/* ---- gains and decay ---- */

TEST(every_gain_equals_its_formula_and_unit_gain_moves_a_unit_on_every_shape) {
    static const size_t shape[][2] = {{6, 10},    {14, 6}, {1, 7},     {9, 1},
                                      {384, 128}, {5, 12}, {512, 128}, {128, 512}};
    static SmKnown k;
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        size_t m = shape[s][0], n = shape[s][1], r = m < n ? m : n;
        for (size_t row = 0; sm_gain_row(row); row++)
            for (int sign = 0; sign < 2; sign++)
                CHECK_NEAR(sm_gain_row(row)->gain(m, n, sign),
                           sm_ref_gain(sm_gain_row(row)->name, (double)m, (double)n, sign), 1e-12);
        double unit = sm_gain("unit-gain")->gain(m, n, 1);
        CHECK_NEAR(unit * sqrt((double)(m * n)) / sqrt((double)m), 1,
                   1e-15); /* |gain * s|_F / sqrt(m) */
        CHECK_NEAR(sm_gain("fro")->gain(m, n, 1) * sqrt((double)(m * n)), 1, 1e-15);
        if (m > 40 || n > 40) continue;
        double sigma[40], polar = 0;
        for (size_t p = 0; p < r; p++) sigma[p] = 1 + (double)p;
        sm_known(&k, m, n, r, sigma, s);
        for (size_t i = 0; i < m * n; i++) polar += k.polar[i] * k.polar[i];
        double gain = sm_gain("unit-gain")->gain(m, n, 0) *
                      sqrt(polar / (double)m); /* min(m,n) <= m: 1 when it can be */
        CHECK_NEAR(gain, 1, 1e-9);
        CHECK_NEAR(sm_gain("rms")->gain(m, n, 0) * sqrt(polar / (double)(m * n)), 0.2, 1e-9);
    }
    CHECK(sm_gain("auto") == NULL);
    SmConfig c = sm_test_config("signmuon", "adamw"), dense = sm_test_config("muon", "adamw");
    c.gain = dense.gain = sm_gain("unit-gain");
    CHECK_NEAR(sm_tensor_gain(&c, &sm_tensors[SM_QKV]), 1 / sqrt(10),
               1e-12); /* a block's shape, not the stack's */
    CHECK_NEAR(sm_tensor_gain(&dense, &sm_tensors[SM_TALL]), sqrt(14.0 / 6), 1e-12);
    CHECK_NEAR(sm_tensor_gain(&c, &sm_tensors[SM_BIAS]), 1, 0);
}

static double sm_gamma(const float *x, size_t m, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < m * n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)m);
}
static void sm_gradient_constant(float *g, const SmCase *c, int worker, int step) {
    (void)worker, (void)step;
    sm_gradient(g, c, 0, 500);
}

/* decay and gain of intsystems/SignMuon, app:lrscale */
TEST(decoupled_decay_bounds_the_gain_of_a_layer_and_coupled_decay_cannot_change_a_steps_length) {
    static SmResult r;
    static float start[SM_SIZE];
    for (int gradient = 0; gradient < 2; gradient++) {
        SmCase c = sm_case("signmuon", "adamw", 1);
        c.gradient = gradient ? sm_gradient : sm_gradient_constant;
        c.steps = 150, c.lr = 0.1, c.config.decay = 0.5, c.config.gain = sm_gain("unit-gain");
        sm_start(start, c.seed);
        sm_case_run(&c, &r);
        for (size_t k = SM_QKV; k <= SM_WIDE; k++)
            for (size_t b = 0; b < sm_tensors[k].blocks && sm_tensors[k].role == SM_HIDDEN; b++) {
                const SmTensor *t = &sm_tensors[k];
                size_t at = t->offset + b * t->rows * t->cols;
                double before = sm_gamma(start + at, t->rows, t->cols),
                       after = sm_gamma(r.params[0] + at, t->rows, t->cols);
                CHECK(after <= fmax(before, 1 / 0.5) * (1 + 1e-5));
                if (!gradient)
                    CHECK_NEAR(after, 2, 0.01); /* a constant sign walks up to the bound */
            }
    }
    SmCase c = sm_case("signmuon", "adamw", 1);
    c.steps = 1, c.config.coupled_decay = 1, c.config.decay = 0.2;
    sm_start(start, c.seed);
    sm_case_run(&c, &r);
    for (size_t k = SM_QKV; k <= SM_WIDE; k++)
        for (size_t i = 0; sm_tensors[k].role == SM_HIDDEN &&
                           i < sm_tensors[k].rows * sm_tensors[k].cols * sm_tensors[k].blocks;
             i++) {
            size_t at = sm_tensors[k].offset + i;
            CHECK_NEAR(fabsf(r.params[0][at] - start[at]), c.lr, 2e-7);
        }
}

/* ---- many workers, threads, processes and wires: the same bits ---- */

TEST(workers_with_identical_gradients_equal_one_worker_bit_for_bit) {
    static SmResult one, many;
    for (size_t row = 0; sm_method_row(row); row++)
        for (int aux = 0; aux < 2; aux++) {
            SmCase c = sm_case(sm_method_row(row)->name, aux ? "signum" : "adamw", 1);
            c.gradient = sm_gradient_shared, c.config.nesterov = 1;
            sm_case_run(&c, &one);
            for (c.workers = 2; c.workers <= 5; c.workers++) {
                sm_case_run(&c, &many);
                if (!sm_same(&one, &many))
                    FAIL("%s: %d workers differ from one", c.config.method->name, c.workers);
            }
        }
}

TEST(back_end_compute_threads_and_wire_change_no_bit_whatever_zeros_and_ties_mean) {
    static SmResult base, other;
    for (size_t row = 0; sm_method_row(row); row++)
        for (int rule = 0; rule < 6; rule++) {
            SmCase c =
                sm_case(sm_method_row(row)->name, rule & 1 ? "signum" : "adamw", rule & 1 ? 4 : 3);
            c.steps = 4;
            c.config.zeros = (SmZero)(rule % 3), c.config.ties = (SmZero)(rule / 2);
            if (rule & 2) c.gradient = sm_gradient_lone; /* exact zeros, and ties of four */
            if (rule & 1 && rule > 3) c.gradient = sm_gradient_opposed;
            sm_case_run(&c, &base);
            for (int variant = 0; variant < 4; variant++) {
                SmCase d = c;
                if (variant == 0) d.backend = "processes";
                if (variant == 1) d.threads = 2;
                if (variant == 2) d.threads = 3, d.backend = "processes";
                if (variant == 3) d.config.int8_wire = 1;
                if (variant == 0 && rule != (int)row % 2) continue; /* forks are slow */
                if (variant == 2 && rule != 5) continue;
                sm_case_run(&d, &other);
                if (memcmp(base.params, other.params, sizeof base.params) != 0 ||
                    memcmp(base.agreement, other.agreement, sizeof base.agreement) != 0)
                    FAIL("%s: variant %d, rules %d", c.config.method->name, variant, rule);
            }
        }
}

TEST(votes_counted_machine_by_machine_are_the_flat_votes_bit_for_bit_and_send_fewer_bytes) {
    static SmResult base, other;
    static const int spread[][2] = {{2, 2}, {2, 3}, {3, 2}, {2, 4}, {1, 4}, {4, 1}}; /* machines */
    for (size_t row = 0; sm_method_row(row); row++)
        for (int rule = 0; rule < 9; rule++) {
            int machines = spread[(row + (size_t)rule) % 6][0],
                locals = spread[(row + (size_t)rule) % 6][1];
            SmCase c =
                sm_case(sm_method_row(row)->name, rule & 1 ? "signum" : "adamw", machines * locals);
            if (c.config.method->combine != SM_VOTE && c.config.aux->combine != SM_VOTE) continue;
            c.steps = 3;
            c.config.zeros = (SmZero)(rule % 3), c.config.ties = (SmZero)(rule / 3);
            if (rule & 2) c.gradient = sm_gradient_lone;
            if (rule & 4) c.gradient = sm_gradient_opposed;
            sm_case_run(&c, &base);
            for (int variant = 0; variant < 3; variant++) {
                SmCase d = c;
                d.config.machines = machines;
                d.threads = variant == 1 ? 2 : 1;
                d.config.int8_wire = variant == 2;
                sm_case_run(&d, &other);
                if (memcmp(base.params, other.params, sizeof base.params) != 0 ||
                    memcmp(base.agreement, other.agreement, sizeof base.agreement) != 0)
                    FAIL("%s: %d machines of %d, variant %d, rules %d", c.config.method->name,
                         machines, locals, variant, rule);
                if (locals == 1 && variant < 2)
                    CHECK(memcmp(base.sent, other.sent, sizeof base.sent) == 0);
                if (locals > 2 && machines > 1 && variant < 2) {
                    CommKind kind =
                        c.config.method->combine == SM_VOTE ? COMM_MATRICES : COMM_AUXILIARY;
                    CHECK(other.sent[0][kind] < base.sent[0][kind]);
                }
            }
        }
}

TEST(a_polar_step_after_the_vote_needs_no_bytes_and_is_the_polar_factor_of_the_vote) {
    static SmResult plain, after;
    static float start[SM_SIZE];
    SmCase c = sm_case("signmuon", "adamw", 3);
    c.steps = 1, c.config.decay = 0, c.config.gain = sm_gain("aspect");
    sm_start(start, c.seed);
    SmCase d = c;
    c.config.gain = sm_gain("none");
    sm_case_run(&c, &plain);
    d.config.local_map = "spectral";
    sm_case_run(&d, &after);
    CHECK(memcmp(plain.sent, after.sent, sizeof plain.sent) == 0);
    CHECK_NEAR(sm_tensor_gain(&d.config, &sm_tensors[SM_TALL]), sqrt(14.0 / 6), 1e-12);
    for (size_t k = 0; k < SM_TENSORS; k++)
        for (size_t b = 0; b < sm_tensors[k].blocks && sm_tensors[k].role == SM_HIDDEN; b++) {
            const SmTensor *t = &sm_tensors[k];
            size_t n = t->rows * t->cols, at = t->offset + b * n;
            double x[SM_REF_SIZE],
                gain = sm_ref_gain("aspect", (double)t->rows, (double)t->cols, 0);
            for (size_t i = 0; i < n; i++) x[i] = plain.params[0][at + i] < start[at + i] ? 1 : -1;
            sm_ref_polar(x, t->rows, t->cols, d.config.ns);
            for (size_t i = 0; i < n; i++)
                CHECK_NEAR(after.params[0][at + i], (double)start[at + i] - c.lr * gain * x[i],
                           3e-7);
        }
}

/* ---- the embedding ---- */

static void sm_gradient_rows(float *g, const SmCase *c, int worker, int step) {
    sm_gradient(g, c, worker, step + 100); /* every row seen */
    for (size_t i = 0; i < 70 * 3; i++)
        if (i / 3 % 7 != 2 || worker != 1 || step == 0)
            g[5 + i] = 0; /* rows 2, 9, ...: worker 1 alone, from step 1 */
}

TEST(an_embedding_row_that_no_worker_has_touched_stays_put_and_one_that_a_worker_touched_moves) {
    static SmResult r;
    static float start[SM_SIZE];
    for (int variant = 0; variant < 12; variant++) {
        SmCase c = sm_case("signmuon", variant & 1 ? "signsgd" : "signum", variant & 2 ? 4 : 3);
        c.gradient = sm_gradient_rows, c.config.int8_wire = variant >> 2 & 1,
        c.threads = variant < 8 ? 1 : 2;
        for (c.steps = 1; c.steps <= 2; c.steps++) {
            sm_start(start, c.seed);
            sm_case_run(&c, &r);
            for (size_t i = 0; i < 70 * 3; i++) {
                float is = r.params[0][5 + i], was = start[5 + i];
                if (i / 3 % 7 != 2 || c.steps == 1)
                    CHECK(is == was);
                else
                    CHECK_NEAR(fabs((double)is - (1 - c.aux_lr * c.config.decay) * (double)was),
                               c.aux_lr, 3e-7);
            }
        }
    }
}

TEST(nothing_outside_the_tensors_is_written) {
    static SmResult r;
    static float start[SM_SIZE];
    for (size_t row = 0; sm_method_row(row); row++) {
        SmCase c = sm_case(sm_method_row(row)->name, row & 1 ? "signum" : "adamw", 2);
        sm_start(start, c.seed);
        sm_case_run(&c, &r);
        size_t at = 0;
        for (size_t k = 0; k <= SM_TENSORS; k++) {
            size_t next = k < SM_TENSORS ? sm_tensors[k].offset : SM_SIZE;
            for (; at < next; at++) CHECK(r.params[0][at] == start[at]);
            if (k < SM_TENSORS)
                at = next + sm_tensors[k].rows * sm_tensors[k].cols * sm_tensors[k].blocks;
        }
    }
}

/* ---- bytes ---- */

/* Bytes of a compressed message of d entries, by the formulas of arXiv 2510.00643's notes. */
static uint64_t sm_link_bytes(const char *link, uint64_t d) {
    uint64_t k = (uint64_t)(0.15 * (double)d), index = 0;
    while ((uint64_t)1 << index < d) index++;
    if (k < 1) k = 1;
    if (strcmp(link, "identity") == 0) return 4 * d;
    if (strcmp(link, "sign") == 0) return (d + 32 + 7) / 8;
    CHECK(strcmp(link, "topk:0.15+natural") == 0);
    return (9 * k + (k * index < d ? k * index : d) + 7) / 8;
}

/* Bytes that all workers together send in a step for one group of the tensors above, by formula: words
 * of 64 bits, each block beginning a new one, and one bit per embedding row. */
static uint64_t sm_all_send(const SmCase *c, int hidden) {
    static const uint64_t block[2][5] = {{210, 10, 7, 0, 0}, {60, 60, 60, 84, 60}};
    const SmMethod *m = hidden ? c->config.method : c->config.aux;
    uint64_t elements = hidden ? 3 * 60 + 84 + 60 : 210 + 10 + 7, n = (uint64_t)c->workers;
    uint64_t words = hidden ? 3 + 2 + 1 : 4 + 1 + 1 + 2, compressed = 0;
    int wire = c->config.int8_wire, server = strcmp(m->server_map, "none") != 0;
    if (sm_gossips(c->config.method)) /* everybody to one neighbour */
        return n > 1 ? n * 4 * elements *
                           (m->update == SM_ADAMW       ? 3
                            : m->combine == SM_TRACKING ? 2
                                                        : 1)
                     : 0;
    for (int i = 0; i < 5 && m->combine == SM_FEEDBACK && block[hidden][i]; i++)
        compressed +=
            sm_link_bytes(m->up, block[hidden][i]) + sm_link_bytes(m->down, block[hidden][i]);
    if (m->combine == SM_FEEDBACK) return (n - 1) * compressed;
    if (m->combine == SM_MEAN) return (n - 1) * 2 * 4 * elements;
    uint64_t reply = server && m->reply == SM_DENSE ? 4 * elements : 8 * words;
    if (!wire) return (n - 1) * (8 * words + reply);
    return (n - 1) * (64 * words + (server ? reply : 64 * words)); /* or the sums come back */
}

/* With a server map the shards are whole blocks, so only the sum over workers is known. */
TEST(every_worker_sends_the_bytes_of_the_formula) {
    static SmResult r;
    for (size_t row = 0; sm_method_row(row); row++)
        for (int aux = 0; aux < 2; aux++)
            for (int wire = 0; wire < 2; wire++)
                for (int workers = 1; workers <= 5; workers++) {
                    SmCase c = sm_case(sm_method_row(row)->name, aux ? "signum" : "adamw", workers);
                    c.steps = 3, c.config.int8_wire = wire;
                    sm_case_run(&c, &r);
                    for (int hidden = 0; hidden < 2; hidden++) {
                        const SmMethod *m = hidden ? c.config.method : c.config.aux;
                        uint64_t n = (uint64_t)workers, sum = 0, received = 0;
                        uint64_t all = m->combine == SM_MEAN ? (hidden ? 324 : 227)
                                       : hidden              ? 6
                                                             : 8,
                                 unit = m->combine == SM_MEAN ? 4
                                        : wire                ? 64
                                                              : 8;
                        int kind = hidden ? COMM_MATRICES : COMM_AUXILIARY,
                            even = strcmp(m->server_map, "none") == 0 && m->combine <= SM_VOTE &&
                                   !sm_gossips(c.config.method);
                        for (uint64_t j = 0; j < n; j++) {
                            uint64_t mine = all * (j + 1) / n - all * j / n;
                            if (even)
                                CHECK_EQ(r.sent[j][kind], 3 * unit * (all - mine + (n - 1) * mine));
                            sum += r.sent[j][kind], received += r.received[j][kind];
                        }
                        if (sum != 3 * sm_all_send(&c, hidden))
                            FAIL("%s, wire %d, %d workers: %d bytes, expected %d", m->name, wire,
                                 workers, (int)sum, (int)(3 * sm_all_send(&c, hidden)));
                        CHECK_EQ(received, sum);
                    }
                    for (int j = 0; j < workers; j++)
                        CHECK_EQ(r.sent[j][COMM_CONTROL] + r.sent[j][COMM_OTHER], 0);
                }
}

/* on tensors without padding and without an embedding, so that bits per weight is all there is */
static void sm_gradient_plain(float *g, const SmCase *c, int worker, int step) {
    for (size_t i = 0; i < SM_SIZE; i++)
        g[i] = (float)sm_noise(c->seed, (uint64_t)worker, (uint64_t)step, i);
}
TEST(bits_per_weight_are_what_the_counters_count_for_every_method_and_rule) {
    static const SmTensor plain[] = {{"a", 0, 8, 16, 2, SM_HIDDEN, 1, 0},
                                     {"b", 256, 32, 4, 1, SM_HIDDEN, 1, 0},
                                     {"c", 384, 1, 128, 1, SM_VECTOR, 0, 0}};
    static SmResult r;
    for (size_t row = 0; sm_method_row(row); row++)
        for (int aux = 0; aux < 3; aux++)
            for (int rule = 0; rule < 8; rule++) {
                static const char *const rules[] = {"adamw", "signum", NULL};
                SmCase c = sm_case(sm_method_row(row)->name,
                                   rules[aux] ? rules[aux] : sm_method_row(row)->name, 4);
                c.tensors = plain, c.count = 3, c.steps = 1, c.gradient = sm_gradient_plain;
                c.config.int8_wire = rule & 1, c.config.zeros = rule & 2 ? SM_ABSTAIN : SM_COIN,
                c.config.ties = rule & 4 ? SM_ABSTAIN : SM_COIN;
                c.config.graph = sm_graph(4);
                sm_case_run(&c, &r);
                for (int hidden = 0; hidden < 2; hidden++) {
                    double bits = 0, weights = hidden ? 384 : 128;
                    for (int j = 0; j < 4; j++)
                        bits += 8 * (double)r.sent[j][hidden ? COMM_MATRICES : COMM_AUXILIARY] / 4 /
                                weights;
                    double said = sm_bits_per_weight(&c.config, hidden ? &plain[0] : &plain[2], 4);
                    if (!(fabs(said - bits) < 1e-9))
                        FAIL("%s%s, aux %s, int8 %d, zeros %s, ties %s: %g bits per weight said, "
                             "%g sent",
                             c.config.method->name, hidden ? "" : " (other tensors)",
                             c.config.aux->name, rule & 1, rule & 2 ? "abstain" : "coin",
                             rule & 4 ? "abstain" : "coin", said, bits);
                }
            }
}

/* ---- error feedback, gossip and balls: what holds after every step ---- */

/* all[j] <- worker j's state of one kind, each array where its tensor lies and zeros elsewhere */
static void sm_gather_state(float all[][SM_SIZE], const SmCase *c, const SmOptimizer *o, Comm *comm,
                            const char *kind) {
    float mine[SM_SIZE] = {0};
    SmState s;
    for (size_t i = 0; sm_optimizer_state(o, i, &s); i++) {
        const SmTensor *t = &c->tensors[s.tensor];
        size_t at = t->offset + (s.block > 0 ? (size_t)s.block * t->rows * t->cols : 0);
        if (strcmp(s.kind, kind) == 0) memcpy(mine + at, s.data, s.rows * s.cols * sizeof *mine);
    }
    comm_gather(comm, mine, sizeof mine, all, COMM_OTHER);
}

static const SmTensor sm_matrices[] = {{"qkv", 220, 6, 10, 3, SM_HIDDEN, 1, 0},
                                       {"tall", 420, 14, 6, 1, SM_HIDDEN, 1, 0},
                                       {"wide", 510, 5, 12, 1, SM_HIDDEN, 1, 0}};

/* A case on the hidden matrices alone, where `aux` says nothing. */
static SmCase sm_case_of_matrices(const char *method, int workers) {
    SmCase c = sm_case(method, "adamw", workers);
    c.tensors = sm_matrices, c.count = 3;
    return c;
}

/* The row is the plain method's except for how it combines. Its estimates are then what fp32 carries. */
TEST(error_feedback_with_identity_links_has_the_bits_of_muon_scion_and_gluon) {
    static const char *const names[] = {"muon", "scion", "scion-constrained", "gluon"};
    static const int workers[] = {1, 2, 3, 5};
    static SmResult plain, feedback;
    for (size_t k = 0; k < 4; k++)
        for (size_t j = 0; j < 4; j++)
            for (int nesterov = 0; nesterov < 2; nesterov++) {
                SmCase c = sm_case(names[k], k ? names[k] : "adamw", workers[j]);
                c.config.nesterov = nesterov;
                memcpy(c.config.radius, (double[]){0.7, 1.3, 1, 2.1}, 4 * sizeof(double));
                SmMethod row = *sm_method("ef21-muon");
                row.estimate = c.config.method->estimate, row.update = c.config.method->update;
                SmCase d = c;
                d.config.method = &row;
                if (k) d.config.aux = &row;
                d.config.up = d.config.down = sm_link("identity");
                sm_case_run(&c, &plain);
                sm_case_run(&d, &feedback);
                if (!sm_same(&plain, &feedback))
                    FAIL("%s, %d workers, nesterov %d", names[k], workers[j], nesterov);
                d.config.first_gradient = 1; /* may not go unseen, or nothing above is shown */
                sm_case_run(&d, &feedback);
                if (k < 3) CHECK(!sm_same(&plain, &feedback));
            }
}

/* context: NULL, or where the exact model goes */
static void sm_inspect_feedback(const SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                                int step) {
    float estimate[SM_MAX_WORKERS][SM_SIZE], aggregate[SM_MAX_WORKERS][SM_SIZE],
        model[SM_MAX_WORKERS][SM_SIZE], all[SM_MAX_WORKERS][SM_SIZE], exact[SM_SIZE] = {0};
    int compressed = strcmp(c->config.down->row->name, "identity") != 0, parted = 0;
    sm_gather_state(estimate, c, o, comm, "estimate");
    sm_gather_state(aggregate, c, o, comm, "ef21.aggregate");
    sm_gather_state(model, c, o, comm, "ef21.model");
    int told = sm_optimizer_exact(o, exact, params, (uint64_t)step + 1);
    comm_gather(comm, exact, sizeof exact, all, COMM_OTHER);
    if (comm->rank) return;
    CHECK_EQ(told, compressed);
    for (size_t i = 0; i < SM_SIZE; i++) {
        double mean = 0, sum = 0, largest = 0, x = 0;
        int owners = 0, servers = 0;
        for (int j = 0; j < c->workers; j++) {
            mean += (double)estimate[j][i] / c->workers;
            largest = fmax(largest, fabs((double)estimate[j][i]));
            sum += (double)aggregate[j][i], owners += aggregate[j][i] != 0;
            x += (double)model[j][i], servers += model[j][i] != 0;
            CHECK(all[j][i] == exact[i]);
        }
        CHECK_NEAR(sum, mean, 2e-6 * largest);
        CHECK(owners <= 1 && servers <= compressed);
        if (servers) CHECK((double)exact[i] == x);
        parted += compressed && exact[i] != 0 && exact[i] != params[i];
    }
    CHECK(compressed ? parted > 200 : parted == 0);
    if (c->context) memcpy(c->context, exact, sizeof exact);
}

TEST(the_servers_estimate_is_the_mean_of_the_workers_and_its_exact_model_is_what_they_would_have) {
    static const char *const down[] = {"identity", "sign", "topk:0.3"};
    static SmResult r, whole;
    static float exact[SM_SIZE];
    for (size_t row = 0; sm_method_row(row); row++)
        for (size_t k = 0; k < 9 && sm_method_row(row)->combine == SM_FEEDBACK; k++) {
            const char *name = sm_method_row(row)->name;
            SmCase c = sm_case(name, k % 2 ? name : "adamw", 1 + (int)(k / 3) * 2);
            c.config.down = sm_link(down[k % 3]), c.inspect = sm_inspect_feedback;
            sm_case_run(&c, &r); /* which sees to it that all replicas are one */
            c.steps = 1, c.context = exact;
            sm_case_run(&c, &r);
            c.config.down = sm_link("identity"), c.inspect = NULL;
            sm_case_run(&c, &whole);
            for (size_t t = 0; t < SM_TENSORS && k % 3; t++) /* X has not heard of S yet */
                CHECK(memcmp(exact + sm_tensors[t].offset, whole.params[0] + sm_tensors[t].offset,
                             sm_tensors[t].blocks * sm_tensors[t].rows * sm_tensors[t].cols *
                                 sizeof *exact) == 0);
        }
}

static const DmGraph *sm_topology(DmGraph *graph, const char *text, int nodes) {
    static double weights[1024];
    char error[256];
    if (dm_graph_doubles(nodes) > sizeof weights / sizeof *weights ||
        dm_graph_build(graph, weights, text, "auto", nodes, error, sizeof error))
        FAIL("%s of %d nodes", text, nodes);
    return graph;
}

static void sm_inspect_tracking(const SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                                int step) {
    float v[SM_MAX_WORKERS][SM_SIZE], m[SM_MAX_WORKERS][SM_SIZE];
    int gradient = c->config.method->estimate == SM_GRADIENT;
    double worst = 0, square = 0, apart = 0;
    (void)params;
    sm_gather_state(v, c, o, comm, "tracker");
    sm_gather_state(m, c, o, comm, gradient ? "estimate" : "momentum");
    for (size_t i = 0; i < SM_SIZE; i++) {
        double sum = 0, mean = 0;
        for (int j = 0; j < c->workers; j++) {
            sum += (double)v[j][i] / c->workers, mean += (double)m[j][i] / c->workers;
            apart = fmax(apart, fabs((double)v[j][i] - (double)v[0][i]));
        }
        worst = fmax(worst, fabs(sum - mean)), square += mean * mean;
    }
    if (comm->rank) return;
    double rms = sqrt(square / 324);
    if (!(worst <= 1e-5 * rms))
        FAIL("%s, step %d: the mean tracker is %g off a mean momentum of RMS %g",
             c->config.method->name, step, worst, rms);
    CHECK(c->context ? apart == 0 : apart > 0.01 * rms);
}

TEST(the_mean_of_the_trackers_is_the_mean_of_the_momenta_after_every_step_on_every_graph) {
    static const char *const topologies[] = {"ring",     "exponential",   "complete",
                                             "one-peer", "directed-ring", "star"};
    static const int rounds[][2] = {{1, 1}, {3, 2}};
    static SmResult r;
    DmGraph graph;
    for (size_t row = 0; sm_method_row(row); row++)
        for (size_t k = 0; k < 12 && sm_method_row(row)->combine == SM_TRACKING; k++) {
            SmCase c = sm_case_of_matrices(sm_method_row(row)->name, 4);
            c.steps = 12, c.config.graph = sm_topology(&graph, topologies[k / 2], 4);
            memcpy(c.config.rounds, rounds[k % 2], sizeof c.config.rounds);
            c.inspect = sm_inspect_tracking;
            int mean = strcmp(topologies[k / 2], "complete") == 0 ||
                       (strcmp(topologies[k / 2], "one-peer") == 0 && rounds[k % 2][0] > 1);
            c.context = mean ? &graph : NULL; /* all trackers are then the mean itself */
            sm_case_run(&c, &r);
        }
}

/* Spoils every worker's estimate, as when another group had made it, and looks at what regrouping makes
 * of the rest. */
static void sm_inspect_regroup(const SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                               int step) {
    float estimate[SM_MAX_WORKERS][SM_SIZE], built[SM_MAX_WORKERS][SM_SIZE],
        model[SM_MAX_WORKERS][SM_SIZE];
    int tracks = c->config.method->combine == SM_TRACKING, owners = 0, servers = 0;
    SmState s;
    if (step + 1 < c->steps) return;
    for (size_t i = 0; sm_optimizer_state(o, i, &s); i++)
        for (size_t k = 0; k < s.rows * s.cols && strcmp(s.kind, "estimate") == 0; k++)
            s.data[k] = s.data[k] * (float)(comm->rank + 2) + 1e-3f;
    sm_optimizer_regroup(o, params);
    sm_gather_state(estimate, c, o, comm, "estimate");
    sm_gather_state(built, c, o, comm, tracks ? "tracker" : "ef21.aggregate");
    sm_gather_state(model, c, o, comm, "ef21.model");
    for (size_t i = 0; i < SM_SIZE && comm->rank == 0; i++) {
        double mean = 0, sum = 0;
        for (int j = 0; j < c->workers; j++) {
            mean += (double)estimate[j][i] / c->workers;
            sum += (double)built[j][i] / (tracks ? c->workers : 1);
            owners += built[j][i] != 0;
            servers += model[j][i] != 0;
            if (model[j][i] != 0) CHECK(model[j][i] == params[i]);
            if (tracks) CHECK(built[j][i] == estimate[j][i]);
        }
        CHECK_NEAR(sum, mean, 1e-6 * (1 + fabs(mean)));
    }
    if (comm->rank == 0) CHECK(owners > 200 && (tracks || servers > 200));
}

TEST(
    another_group_finds_estimates_that_are_means_models_that_are_one_and_trackers_that_are_momenta) {
    static SmResult r;
    for (size_t row = 0; sm_method_row(row); row++) {
        const SmMethod *m = sm_method_row(row);
        if (m->combine != SM_TRACKING && m->combine != SM_FEEDBACK) continue;
        SmCase c = m->combine == SM_TRACKING ? sm_case_of_matrices(m->name, 4)
                                             : sm_case(m->name, m->name, 3);
        if (m->combine == SM_FEEDBACK) c.config.down = sm_link("topk:0.3");
        c.steps = 3, c.inspect = sm_inspect_regroup;
        sm_case_run(&c, &r);
    }
}

/* what four workers' gradients are on average */
static void sm_gradient_mean(float *g, const SmCase *c, int worker, int step) {
    double sum[SM_SIZE] = {0};
    (void)worker;
    for (int j = 0; j < 4; j++) {
        sm_gradient(g, c, j, step);
        for (size_t i = 0; i < SM_SIZE; i++) sum[i] += (double)g[i] / 4;
    }
    for (size_t i = 0; i < SM_SIZE; i++) g[i] = (float)sum[i];
}

TEST(demuon_is_muon_on_the_mean_gradient_on_the_complete_graph_and_with_one_node) {
    static SmResult gossip, muon, alone;
    DmGraph graph;
    SmCase c = sm_case_of_matrices("demuon", 4), d = sm_case_of_matrices("muon", 1);
    c.steps = d.steps = 20, c.config.graph = sm_topology(&graph, "complete", 4);
    d.gradient = sm_gradient_mean;
    sm_case_run(&c, &gossip);
    sm_case_run(&d, &muon);
    for (int j = 1; j < 4; j++)
        CHECK(memcmp(gossip.params[0], gossip.params[j], sizeof gossip.params[0]) == 0);
    for (size_t i = 0; i < SM_SIZE; i++) CHECK_NEAR(gossip.params[0][i], muon.params[0][i], 5e-6);
    c = sm_case_of_matrices("demuon", 1);
    c.steps = 20, c.gradient = sm_gradient_mean;
    sm_case_run(&c, &alone);
    CHECK(sm_same(&alone, &muon));
}

/* The first two nodes against the last two: on a lazy ring of four the direction that shrinks least. */
static void sm_gradient_halves(float *g, const SmCase *c, int worker, int step) {
    (void)step;
    sm_gradient(g, c, 0, 500);
    for (size_t i = 0; i < SM_SIZE && worker > 1; i++) g[i] = -g[i];
}

/* context: the largest distance of the nodes from their mean, relative to its bound */
static void sm_inspect_consensus(const SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                                 int step) {
    float all[SM_MAX_WORKERS][SM_SIZE];
    double square = 0, rho = dm_graph_rho(c->config.graph), *largest = c->context;
    double s = strcmp(c->config.ns->name, "exact") == 0 ? 1 + 1e-5 : 1.21, n = c->workers;
    (void)o;
    comm_gather(comm, params, sizeof all[0], all, COMM_OTHER);
    if (comm->rank) return;
    for (size_t i = 0; i < SM_SIZE; i++) {
        double mean = 0;
        for (int j = 0; j < c->workers; j++) mean += (double)all[j][i] / n;
        for (int j = 0; j < c->workers; j++) square += pow((double)all[j][i] - mean, 2);
    }
    double bound = c->lr * rho / (1 - rho) * s * sqrt(n * (3 * 6 + 6 + 5)); /* least sides */
    *largest = fmax(*largest, sqrt(square) / bound);
    if (!(sqrt(square) <= bound))
        FAIL("%s, step %d: %g from the mean, which the bound puts at %g", c->config.method->name,
             step, sqrt(square), bound);
}

/* |X - mean X|_F <= lr rho / (1 - rho) s sqrt(N sum min(m, n)), as the step has norm s at most and the
 * deviation shrinks by rho. Opposed gradients reach it. */
TEST(nodes_stay_as_near_their_mean_as_the_spectral_gap_says_and_opposed_gradients_go_that_far) {
    static const char *const topologies[] = {"ring", "exponential", "directed-ring", "star"};
    static SmResult r;
    DmGraph graph;
    double largest = 0;
    for (int k = 0; k < 8; k++) {
        SmCase c = sm_case_of_matrices(k % 2 ? "demuon" : "demuon-notrack", 5);
        c.steps = 15, c.config.decay = 0, c.inspect = sm_inspect_consensus, c.context = &largest;
        c.config.graph = sm_topology(&graph, topologies[k / 2], 5);
        largest = 0;
        sm_case_run(&c, &r);
        CHECK(largest > 0.02);
    }
    SmCase c = sm_case_of_matrices("demuon-notrack", 4);
    c.steps = 15, c.config.decay = 0, c.inspect = sm_inspect_consensus, c.context = &largest;
    c.config.graph = sm_topology(&graph, "ring-lazy", 4), c.config.ns = sm_newton_schulz("exact");
    c.gradient = sm_gradient_halves;
    largest = 0;
    sm_case_run(&c, &r);
    CHECK_NEAR(largest, 1, 1e-3);
}

typedef struct SmScalars {
    const SmConfig *config;
    int steps;
    float x[6];
} SmScalars;

/* (x - a_i)^2 / 2 at every node, a = 0, 0, 9, ... */
static int sm_scalar_worker(Comm *comm, void *arg) {
    static const SmTensor tensor = {"x", 0, 1, 1, 1, SM_HIDDEN, 0, 0};
    SmScalars *s = arg;
    size_t bytes = sm_optimizer_bytes(s->config, &tensor, 1, comm->size, 1).total;
    void *arena = aligned_alloc(64, bytes);
    float *x = &s->x[comm->rank], g;
    if (!arena) return 1;
    memset(arena, 0, bytes);
    SmOptimizer *o = sm_optimizer_init(arena, s->config, &tensor, 1, comm);
    for (int k = 0; k < s->steps; k++) {
        double rate = (1 - (double)k / s->steps) / sqrt(k + 1.0);
        g = *x - (comm->rank % 3 == 2 ? 9 : 0);
        sm_optimizer_step(o, x, &g, (uint64_t)k, rate, rate);
    }
    free(arena);
    return 0;
}

TEST(without_a_tracker_nodes_end_at_the_median_of_their_minima_and_with_it_at_the_mean) {
    static const char *const methods[] = {"demuon", "demuon-notrack"};
    char error[256];
    DmGraph graph;
    for (int k = 0; k < 4; k++) {
        SmConfig config = sm_config(sm_method(methods[k % 2]), sm_method("adamw"));
        SmScalars s = {.config = &config, .steps = 800};
        CommOptions options = {
            .backend = comm_backend("threads"), .workers = k < 2 ? 3 : 6, .threads = 1};
        config.graph = sm_topology(&graph, k < 2 ? "complete" : "ring", options.workers);
        config.ns = sm_newton_schulz("exact"), config.gain = sm_gain("none");
        config.momentum = 0.8;
        CHECK_EQ(comm_run(&options, sm_scalar_worker, &s, error, sizeof error), 0);
        for (int j = 0; j < options.workers; j++) CHECK_NEAR(s.x[j], k % 2 ? 0 : 3, 0.02);
    }
}

/* largest singular value, by power iteration in double */
static double sm_spectral_norm(const float *x, size_t m, size_t n) {
    double v[16], u[16], length = 0;
    for (size_t j = 0; j < n; j++) v[j] = 1 + 0.1 * (double)j;
    for (int k = 0; k < 60; k++) {
        for (size_t i = 0; i < m; i++) u[i] = 0;
        for (size_t i = 0; i < m * n; i++) u[i / n] += (double)x[i] * v[i % n];
        for (size_t j = 0; j < n; j++) v[j] = 0;
        for (size_t i = 0; i < m * n; i++) v[i % n] += (double)x[i] * u[i / n];
        length = 0;
        for (size_t j = 0; j < n; j++) length += v[j] * v[j];
        for (size_t j = 0; j < n; j++) v[j] /= sqrt(length);
    }
    return sqrt(sqrt(length));
}

/* Norm of a block in the norm that Scion gives its role. */
static double sm_role_norm(const float *x, size_t m, size_t n, SmRole role) {
    double most = 0;
    for (size_t i = 0; i < m * n; i++)
        if (fabs((double)x[i]) > most) most = fabs((double)x[i]);
    if (role == SM_HIDDEN) return sqrt((double)n / (double)m) * sm_spectral_norm(x, m, n);
    if (role == SM_VECTOR) return sqrt(sm_sum_squares(x, n) / (double)n);
    return role == SM_OUTPUT ? (double)n * most : most;
}

/* context: by role, the largest norm so far relative to its radius */
static void sm_inspect_balls(const SmCase *c, SmOptimizer *o, Comm *comm, const float *params,
                             int step) {
    double *worst = c->context;
    (void)o, (void)step;
    for (size_t k = 0; k < c->count && comm->rank == 0; k++)
        for (size_t b = 0; b < c->tensors[k].blocks; b++) {
            const SmTensor *t = &c->tensors[k];
            const float *x = params + t->offset + b * t->rows * t->cols;
            double norm = sm_role_norm(x, t->rows, t->cols, t->role) / c->config.radius[t->role];
            worst[t->role] = fmax(worst[t->role], norm);
        }
}

/* What starts inside its ball stays there, at most the Newton-Schulz overshoot of 1.21 outside. */
TEST(constrained_scion_keeps_every_tensor_in_the_ball_of_its_role_and_unconstrained_leaves) {
    static SmResult r;
    for (int k = 0; k < 8; k++) {
        double worst[SM_ROLES] = {0};
        const char *name = k & 1 ? "scion" : "scion-constrained";
        SmTensor tensors[SM_TENSORS];
        SmCase c = sm_case(name, name, 2);
        memcpy(tensors, sm_tensors, sizeof tensors);
        if (k & 2) tensors[SM_WTE].role = SM_INPUT;
        memcpy(c.config.radius, (double[]){3, 7, 4, 15}, 4 * sizeof(double));
        c.gradient = k & 4 ? sm_gradient : sm_gradient_constant;
        c.steps = 200, c.lr = c.aux_lr = 0.05, c.config.decay = 0;
        c.tensors = tensors, c.inspect = sm_inspect_balls, c.context = worst;
        sm_case_run(&c, &r);
        for (int role = 0; role < SM_ROLES; role++) {
            if (role == (k & 2 ? SM_OUTPUT : SM_INPUT)) continue;
            if (k & 1)
                CHECK(worst[role] > 2);
            else
                CHECK(worst[role] <= (role == SM_HIDDEN ? 1.21 : 1 + 1e-5) && worst[role] > 0.6);
        }
    }
}

static void sm_gradient_scaled(float *g, const SmCase *c, int worker, int step) {
    sm_gradient(g, c, worker, step);
    for (size_t i = 0; i < SM_SIZE; i++) g[i] *= 0x1p-12f;
}

TEST(
    gradients_4096_times_smaller_change_no_bit_of_a_method_whose_steps_have_a_length_of_their_own) {
    static const char *const others[] = {"sgd", "adamw", "dsgd", "dsgd-clip", "gt-dsgd"};
    static const char *const links[] = {"sign", "topk:0.2", "rankk:0.3+natural", "coltopk:0.3"};
    static SmResult plain, scaled;
    for (size_t row = 0; sm_method_row(row); row++) {
        const SmMethod *m = sm_method_row(row);
        int follows = 0;
        for (size_t k = 0; k < 5; k++) follows |= strcmp(m->name, others[k]) == 0;
        for (size_t k = 0; k < (m->combine == SM_FEEDBACK ? 5u : 1u); k++) {
            SmCase c = sm_case_of_matrices(m->name, 3);
            if (k) c.config.up = sm_link(links[k - 1]);
            sm_case_run(&c, &plain);
            c.gradient = sm_gradient_scaled;
            sm_case_run(&c, &scaled);
            if (memcmp(plain.params, scaled.params, sizeof plain.params) == 0 && follows)
                FAIL("%s does not see how long a gradient is", m->name);
            if (memcmp(plain.params, scaled.params, sizeof plain.params) != 0 && !follows)
                FAIL("%s, link %d, sees how long a gradient is", m->name, (int)k);
        }
    }
}

/* ---- comm.h ---- */

enum { COMM_TEST_LONG = 2 * COMM_OUTBOX + 101 };
typedef struct CommTest {
    size_t unit;
    int failures;
} CommTest; /* in memory shared by the workers */

static unsigned char comm_test_byte(int from, size_t i) {
    return (unsigned char)((((size_t)from + 1) * 40503 + i) * 2654435761u >> 13);
}

static int comm_test_worker(Comm *c, void *arg) {
    CommTest *t = arg;
    size_t cuts[6] = {0}, n = (size_t)c->size, rank = (size_t)c->rank, bad = 0;
    for (size_t j = 0; j < n; j++)
        cuts[j + 1] = cuts[j] + t->unit * (j * 7 % 5) / 5 + j % 2; /* uneven; the first is empty */
    cuts[n] += t->unit;
    size_t total = cuts[n], mine = cuts[rank + 1] - cuts[rank];
    unsigned char *message = malloc(total + 1), *inbox = malloc(n * mine + 1),
                  *all = malloc(n * (t->unit + 1) + 1);
    uint64_t sent = 0, received = 0;
    if (!message || !inbox || !all) return 1;
    for (size_t i = 0; i < total; i++) message[i] = comm_test_byte(c->rank, i);
    inbox[n * mine] = message[total] = 42;
    comm_alltoall(c, message, cuts, inbox, COMM_MATRICES);
    for (size_t i = 0; i < n * mine; i++)
        bad += inbox[i] != comm_test_byte((int)(i / mine), cuts[rank] + i % mine);
    sent += total - mine, received += (n - 1) * mine;
    bad += c->sent[COMM_MATRICES] != sent || c->received[COMM_MATRICES] != received;

    for (size_t i = 0; i < total; i++)
        message[i] = i >= cuts[rank] && i < cuts[rank + 1] ? message[i] : 0;
    comm_allgather(c, message, cuts, COMM_MATRICES);
    for (size_t j = 0; j < n; j++)
        for (size_t i = cuts[j]; i < cuts[j + 1]; i++)
            bad += message[i] != comm_test_byte((int)j, i);
    sent += (n - 1) * mine, received += total - mine;
    bad += c->sent[COMM_MATRICES] != sent || c->received[COMM_MATRICES] != received ||
           c->messages[COMM_MATRICES] != 2 * (n - 1);
    bad += inbox[n * mine] != 42 || message[total] != 42;

    for (size_t bytes = 1; bytes <= t->unit + 1; bytes += t->unit) {
        unsigned char *own = malloc(bytes);
        if (!own) return 1;
        for (size_t i = 0; i < bytes; i++) own[i] = comm_test_byte(c->rank + 50, i);
        all[n * bytes] = 42;
        comm_gather(c, own, bytes, all, COMM_CONTROL);
        for (size_t i = 0; i < n * bytes; i++)
            bad += all[i] != comm_test_byte((int)(i / bytes) + 50, i % bytes);
        bad += all[n * bytes] != 42;
        for (int root = 0; root < c->size; root++) {
            for (size_t i = 0; i < bytes; i++)
                own[i] = c->rank == root ? comm_test_byte(root + 90, i) : 0;
            comm_broadcast(c, own, bytes, root, COMM_OTHER);
            for (size_t i = 0; i < bytes; i++) bad += own[i] != comm_test_byte(root + 90, i);
        }
        bad += c->sent[COMM_AUXILIARY] != 0;
        free(own);
    }
    bad += c->sent[COMM_CONTROL] != (n - 1) * (t->unit + 2) ||
           c->sent[COMM_OTHER] != (n - 1) * (t->unit + 2);
    if (bad) __atomic_fetch_add(&t->failures, 1, __ATOMIC_SEQ_CST);
    free(message), free(inbox), free(all);
    return 0;
}

TEST(collectives_deliver_every_byte_of_uneven_and_very_long_messages_on_every_back_end) {
    CommTest *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t row = 0; comm_backend_row(row); row++)
        for (int workers = 1; workers <= 5; workers++) {
            size_t units[] = {1, 10, 1000, COMM_OUTBOX / 3 + 1, COMM_TEST_LONG};
            for (size_t u = 0; u < 5; u++) {
                char error[256] = "";
                if (u > 2 && workers != (u == 3 ? 5 : 3)) continue;
                CommOptions o = {
                    .backend = comm_backend_row(row), .workers = workers, .threads = 1};
                t->unit = units[u];
                CHECK_EQ(comm_run(&o, comm_test_worker, t, error, sizeof error), 0);
                if (t->failures || *error)
                    FAIL("%s, %d workers, %d bytes: %d failed %s", o.backend->name, workers,
                         (int)units[u], t->failures, error);
                t->failures = 0;
            }
        }
    munmap(t, sizeof *t);
}

static int comm_test_exit(Comm *c, void *arg) {
    if (arg && c->rank == 1) raise(SIGKILL);
    comm_barrier(c);
    if (c->rank == 0) return 5;
    nanosleep(&(struct timespec){0, 20000000}, NULL); /* the others come last, or try to */
    return 6;
}
TEST(a_run_returns_worker_0s_status_and_a_killed_process_is_named) {
    for (size_t row = 0; comm_backend_row(row); row++) {
        char error[256] = "";
        CommOptions o = {.backend = comm_backend_row(row), .workers = 3, .threads = 2};
        CHECK_EQ(comm_run(&o, comm_test_exit, NULL, error, sizeof error), 5);
    }
    char error[256] = "";
    CommOptions o = {.backend = comm_backend("processes"), .workers = 3, .threads = 1};
    CHECK_EQ(comm_run(&o, comm_test_exit, error, error, sizeof error), COMM_DIED);
    CHECK(strstr(error, "worker 1") && strstr(error, "signal 9"));
    CHECK(comm_backend("carrier pigeons") == NULL);
}

enum { LOSS_ROUNDS = 300 };

/* Rounds that a group of shrinking size counts together; shared with the workers. */
typedef struct CommLoss {
    int victims, how;             /* ranks 1 .. victims are lost: by signal `how`, or leave */
    uint64_t sum[8][LOSS_ROUNDS]; /* by id: what all said in a round */
    int size[8], rank[8], mismatch;
} CommLoss;

/* One round: everybody says its id and the round it is in. Worker v is lost in round 40 v, either
 * while it computes or inside an exchange. */
static void comm_loss_round(Comm *c, CommLoss *l, int round) {
    uint64_t mine = (uint64_t)round << 8 | (uint64_t)c->id, all[8];
    if (c->id >= 1 && c->id <= l->victims && round == 40 * c->id) {
        if (c->id % 2 == 0) comm_barrier(c); /* half of an exchange */
        if (l->how)
            raise(l->how);
        else
            comm_leave(c);
        return;
    }
    if (round == 80 && c->size > 4) { /* one comes after the loss of worker 2 is known */
        comm_barrier(c);
        if (c->id == 3) nanosleep(&(struct timespec){0, 100000000}, NULL);
        comm_barrier(c);
        return;
    }
    comm_gather(c, &mine, sizeof mine, all, COMM_CONTROL);
    l->sum[c->id][round] = 0;
    for (int j = 0; j < c->size; j++) {
        if (all[j] >> 8 != (uint64_t)round || (int)(all[j] & 255) != c->member[j]) l->mismatch = 1;
        l->sum[c->id][round] += all[j];
    }
}

static int comm_loss_worker(Comm *c, void *arg) {
    CommLoss *l = arg;
    jmp_buf lost;
    volatile int round = 0; /* the round that this worker has to take next */
    if (setjmp(lost)) comm_regroup(c);
    comm_can_recover(c, &lost);
    for (; round < LOSS_ROUNDS; round++) {
        comm_loss_round(c, l, round);
        if (atomic_load(&c->shared->state[c->id]) == COMM_LEFT) return 0;
    }
    l->size[c->id] = c->size;
    l->rank[c->id] = c->rank;
    return 7;
}

TEST(survivors_of_every_loss_are_in_the_same_round_and_agree_on_who_is_left) {
    CommLoss *l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    static const int how[] = {0, SIGKILL, SIGSTOP, SIGUSR2};
    for (int k = 0; k < 5; k++) {
        char error[256] = "";
        memset(l, 0, sizeof *l);
        l->how = k < 4 ? how[k] : 0;
        l->victims = l->how == SIGSTOP ? 1 : 3;
        CommOptions o = {.backend = comm_backend(k == 4 ? "threads" : "processes"),
                         .workers = 6,
                         .threads = 1,
                         .least = 2,
                         .timeout = l->how == SIGSTOP ? 0.5 : 0};
        CHECK_EQ(comm_run(&o, comm_loss_worker, l, error, sizeof error), 7);
        CHECK_EQ(l->mismatch, 0);
        for (int id = 0, rank = 0; id < 6; id++) {
            if (id >= 1 && id <= l->victims) continue;
            CHECK_EQ(l->size[id], 6 - l->victims);
            CHECK_EQ(l->rank[id], rank++);
            CHECK(memcmp(l->sum[id], l->sum[0], sizeof l->sum[0]) == 0);
        }
    }
    char error[256] = ""; /* too few would be left */
    *l = (CommLoss){.victims = 3, .how = SIGKILL};
    CommOptions o = {.backend = comm_backend("processes"), .workers = 4, .threads = 1, .least = 2};
    CHECK_EQ(comm_run(&o, comm_loss_worker, l, error, sizeof error), COMM_DIED);
    CHECK(strstr(error, "worker 3") && strstr(error, "too few"));
    munmap(l, sizeof *l);
}

/* ---- demuon.h and the exchange with neighbours ---- */

#include "demuon.h"

enum { DM_TEST_NODES = 33 };
static double dm_test_storage[10 * DM_TEST_NODES * DM_TEST_NODES];
static char dm_test_error[400];

/* The matrices end where the storage ends, so that a sanitizer sees a step over the edge. */
static int dm_test_build(DmGraph *g, const char *text, const char *weights, int nodes) {
    size_t all = sizeof dm_test_storage / sizeof *dm_test_storage, n = dm_graph_doubles(nodes);
    *dm_test_error = 0;
    return dm_graph_build(g, dm_test_storage + (n < all ? all - n : 0), text, weights, nodes,
                          dm_test_error, sizeof dm_test_error);
}

/* A refusal must be one sentence that holds each of the words, which '|' divides. */
static void dm_test_refused(const char *text, const char *weights, int nodes, const char *words) {
    DmGraph g;
    char list[200], *rest = list, *word;
    if (dm_test_build(&g, text, weights, nodes) != -1)
        FAIL("%s, %s, %d workers was accepted", text, weights, nodes);
    snprintf(list, sizeof list, "%s", words);
    while ((word = strsep(&rest, "|")) != NULL)
        if (!strstr(dm_test_error, word)) FAIL("no '%s' in: %s", word, dm_test_error);
    CHECK(!strchr(dm_test_error, '\n') && strlen(dm_test_error) < sizeof dm_test_error - 1);
}

/* ---- the rows, transcribed from their definitions ---- */

typedef struct DmTestRow {
    const char *name;
    int hops[7]; /* of a circulant graph: node i sends to i + hop, until a 0; or none, see edge */
    int (*edge)(int n, int i, int j);
    double weight[2]; /* of an edge: 1 / (weight[0] * degree + weight[1]) */
    int directed, powers_only;
    double rho[4], rounds[4]; /* N = 4, 8, 16, 32 (for one-peer of a whole period) */
} DmTestRow;

static int dm_test_cube(int n, int i, int j) {
    int bits = 0;
    for (int b = 1; b < n; b *= 2) bits += (i & b) != (j & b);
    return bits == 1;
}
static int dm_test_star(int n, int i, int j) { return n > 0 && i != j && (i == 0) != (j == 0); }
static int dm_test_complete(int n, int i, int j) { return n > 0 && i != j; }
static int dm_test_near(int n, int i, int j) { return (i + 1) % n == j || (j + 1) % n == i; }
static int dm_test_torus(int n, int i, int j) {
    int a = (int)sqrt((double)n), b;
    while (n % a) a--;
    b = n / a;
    if (i == j) return 0;
    return (i / b == j / b && dm_test_near(b, i % b, j % b)) ||
           (i % b == j % b && dm_test_near(a, i / b, j / b));
}

static const DmTestRow dm_test_rows[] = {
    {"ring",
     {1, -1},
     NULL,
     {1, 1},
     0,
     0,
     {0.333333, 0.804738, 0.949253, 0.987190},
     {7, 32, 133, 536}},
    {"ring-lazy",
     {1, -1},
     NULL,
     {2, 0},
     0,
     0,
     {0.5, 0.853553, 0.961940, 0.990393},
     {10, 44, 179, 716}},
    {"directed-ring",
     {1},
     NULL,
     {1, 1},
     1,
     0,
     {0.707107, 0.923880, 0.980785, 0.995185},
     {20, 88, 357, 1432}},
    {"exponential",
     {1, 2, 4, 8, 16, 32},
     NULL,
     {1, 1},
     1,
     0,
     {0.333333, 0.5, 0.6, 0.666667},
     {7, 10, 14, 18}},
    {"exponential-lazy",
     {1, 2, 4, 8, 16, 32},
     NULL,
     {1, 2},
     1,
     0,
     {0.5, 0.6, 0.666667, 0.714286},
     {10, 14, 18, 21}},
    {"one-peer", {1, 2, 4, 8, 16, 32}, NULL, {1, 1}, 1, 1, {0, 0, 0, 0}, {2, 3, 4, 5}},
    {"hypercube", {0}, dm_test_cube, {1, 1}, 0, 1, {0.333333, 0.5, 0.6, 0.666667}, {7, 10, 14, 18}},
    {"torus", {0}, dm_test_torus, {1, 1}, 0, 0, {0.333333, 0.5, 0.6, 0.882843}, {7, 10, 14, 56}},
    {"star", {0}, dm_test_star, {1, 1}, 0, 0, {0.75, 0.875, 0.9375, 0.96875}, {25, 52, 108, 218}},
    {"complete", {0}, dm_test_complete, {1, 1}, 0, 0, {0, 0, 0, 0}, {1, 1, 1, 1}},
    {"file", {0}, NULL, {1, 1}, 1, 0, {0, 0, 0, 0}, {0, 0, 0, 0}},
};
enum { DM_TEST_ROWS = sizeof dm_test_rows / sizeof *dm_test_rows };

static int dm_test_tau(int n) { return n > 1 ? (int)ceil(log2((double)n) - 1e-9) : 0; }

static int dm_test_possible(const DmTestRow *row, int n) {
    int divisors = 0;
    for (int d = 2; d < n; d++) divisors += n % d == 0;
    if (row->powers_only) return 1 << dm_test_tau(n) == n;
    return strcmp(row->name, "torus") != 0 || n <= 3 || divisors > 0;
}

/* w (n x n) <- one round of a row, uniform weights or those of the larger degree; senders first */
static void dm_test_expect(double *w, const DmTestRow *row, int n, int round, int uniform) {
    int degree[DM_TEST_NODES] = {0}, one_peer = strcmp(row->name, "one-peer") == 0;
    memset(w, 0, (size_t)(n * n) * sizeof *w);
    for (int from = 0; from < n; from++) {
        for (int k = 0; row->hops[k]; k++)
            if (abs(row->hops[k]) < n && (!one_peer || k == round))
                w[((from + row->hops[k] + n) % n) * n + from] = 1;
        for (int to = 0; row->edge && to < n; to++)
            if (row->edge(n, to, from)) w[to * n + from] = 1;
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) degree[i] += w[i * n + j] != 0;
    for (int i = 0; i < n; i++) {
        double kept = 1;
        for (int j = 0; j < n; j++) {
            if (w[i * n + j] == 0) continue;
            int d = degree[j] > degree[i] && !uniform ? degree[j] : degree[i];
            w[i * n + j] = 1 / (row->weight[0] * d + row->weight[1]);
            kept -= w[i * n + j];
        }
        w[i * n + i] = kept;
    }
}

/* Eigenvalues d and eigenvectors (columns of v) of the symmetric c (n x n): cyclic Jacobi. */
static void dm_test_jacobi(double *d, double *v, double *c, int n) {
    for (int i = 0; i < n * n; i++) v[i] = i % (n + 1) == 0;
    for (int sweep = 0; sweep < 12; sweep++)
        for (int pair = 0; pair < n * n; pair++) {
            int p = pair / n, q = pair % n;
            if (q <= p || fabs(c[p * n + q]) < 1e-300) continue;
            double angle = 0.5 * atan2(2 * c[p * n + q], c[q * n + q] - c[p * n + p]);
            double s = sin(angle), t = cos(angle);
            for (int turn = 0; turn < 3; turn++) /* columns of c, rows of c, columns of v */
                for (int k = 0; k < n; k++) {
                    double *m = turn == 2 ? v : c;
                    double *x = turn == 1 ? m + p * n + k : m + k * n + p;
                    double *y = turn == 1 ? m + q * n + k : m + k * n + q, old = *x;
                    *x = t * old - s * *y;
                    *y = s * old + t * *y;
                }
        }
    for (int i = 0; i < n; i++) d[i] = c[i * n + i];
}

/* Largest singular value of (product of a period) - J to the power 1 / period, and the direction
 * that it belongs to. */
static double dm_test_rho(const DmGraph *g, double *direction) {
    static double b[DM_TEST_NODES * DM_TEST_NODES], c[DM_TEST_NODES * DM_TEST_NODES],
        v[DM_TEST_NODES * DM_TEST_NODES];
    double d[DM_TEST_NODES];
    int n = g->nodes, top = 0;
    for (int i = 0; i < n * n; i++) b[i] = i % (n + 1) == 0;
    for (int p = 0; p < g->period; p++) {
        const double *w = g->weight + p * n * n;
        memset(c, 0, sizeof c);
        for (int i = 0; i < n * n * n; i++) {
            int row = i / n / n, k = i / n % n, col = i % n;
            c[row * n + col] += w[row * n + k] * b[k * n + col];
        }
        memcpy(b, c, sizeof c);
    }
    memset(c, 0, sizeof c);
    for (int i = 0; i < n * n; i++) b[i] -= 1.0 / n;
    for (int i = 0; i < n * n * n; i++) {
        int row = i / n / n, k = i / n % n, col = i % n;
        c[row * n + col] += b[k * n + row] * b[k * n + col];
    }
    dm_test_jacobi(d, v, c, n);
    for (int i = 1; i < n; i++) top = d[i] > d[top] ? i : top;
    for (int i = 0; direction && i < n; i++) direction[i] = v[i * n + top];
    return d[top] < 1e-24 ? 0 : pow(d[top], 0.5 / g->period);
}

static void dm_test_same_as(const DmGraph *g, const DmTestRow *row, int uniform) {
    static double expect[DM_TEST_NODES * DM_TEST_NODES];
    int n = g->nodes, source[DM_TEST_NODES];
    double weight[DM_TEST_NODES];
    for (int p = 0; p < 2 * g->period; p++) {
        uint64_t round = (uint64_t)p + (uint64_t)g->period * 1000000000000u;
        dm_test_expect(expect, row, n, p % g->period, uniform);
        for (int i = 0; i < n; i++) {
            size_t count = dm_sources(g, round, i, source, weight), seen = 0, out = 0, in = 0;
            for (int j = 0; j < n; j++) {
                out += j != i && expect[j * n + i] > 1e-9;
                in += j != i && expect[i * n + j] > 1e-9;
                if (expect[i * n + j] < 1e-9) continue;
                if (seen >= count || source[seen] != j ||
                    fabs(weight[seen] - expect[i * n + j]) > 1e-14) {
                    FAIL("%s of %d, round %d: node %d and %d", row->name, n, p, i, j);
                    return;
                }
                seen++;
            }
            CHECK_EQ(seen, count);
            CHECK_EQ(dm_degree(g, round, i, 1), out);
            CHECK_EQ(dm_degree(g, round, i, 0), in);
        }
    }
}

static void dm_test_sums(const DmGraph *g, double tolerance) {
    int n = g->nodes;
    for (int p = 0; p < g->period; p++)
        for (int i = 0; i < n; i++) {
            double row = 0, column = 0;
            for (int j = 0; j < n; j++) {
                row += g->weight[(p * n + i) * n + j];
                column += g->weight[(p * n + j) * n + i];
                CHECK(g->weight[(p * n + i) * n + j] >= 0);
            }
            CHECK_NEAR(row, 1, tolerance);
            CHECK_NEAR(column, 1, tolerance);
        }
}

TEST(every_topology_has_the_weights_of_its_definition_for_1_to_33_nodes_or_is_refused) {
    static const char *const kinds[] = {"auto", "metropolis", "uniform"};
    const DmTopology *row;
    for (size_t r = 0; (row = dm_topology_row(r)) != NULL; r++) {
        const DmTestRow *t = r < DM_TEST_ROWS ? &dm_test_rows[r] : NULL;
        if (!t || strcmp(t->name, row->name) != 0)
            FAIL("the tests do not know the topology %s", row->name);
        if (!t || strcmp(row->name, "file") == 0) continue;
        CHECK(strlen(row->doc) > 10 && row->weights == (t->directed ? DM_UNIFORM : DM_METROPOLIS));
        for (int n = 1; n <= DM_TEST_NODES; n++)
            for (int k = 0; k < 3; k++) {
                DmGraph g;
                int irregular = strcmp(row->name, "star") == 0 && n > 2;
                int allowed =
                    dm_test_possible(t, n) && !(k == 1 && t->directed) && !(k == 2 && irregular);
                if (!allowed) {
                    dm_test_refused(row->name, kinds[k], n, row->name);
                    continue;
                }
                if (dm_test_build(&g, row->name, kinds[k], n)) {
                    FAIL("%s of %d: %s", row->name, n, dm_test_error);
                    continue;
                }
                CHECK_EQ(g.nodes, n);
                CHECK_EQ(g.period, strcmp(t->name, "one-peer") || n < 3 ? 1 : dm_test_tau(n));
                CHECK((size_t)(g.period * n * n) <= dm_graph_doubles(n));
                CHECK_EQ(dm_graph_check(&g, dm_test_error, sizeof dm_test_error), 0);
                dm_test_same_as(&g, t, t->directed || k == 2);
                dm_test_sums(&g, 1e-14);
                CHECK_NEAR(dm_graph_rho(&g), dm_test_rho(&g, NULL), 1e-9);
                if (n == 1) CHECK(g.weight[0] == 1 && g.period == 1);
                if (n == 2 && strcmp(t->name, "exponential-lazy") != 0)
                    for (int i = 0; i < 4; i++) CHECK_NEAR(g.weight[i], 0.5, 0);
            }
    }
    dm_test_refused("star", "uniform", 5, "column 0|sums to 2.2|auto");
    dm_test_refused("torus", "auto", 7, "torus|prime|7");
    dm_test_refused("one-peer", "auto", 12, "one-peer|power of two|12");
    dm_test_refused("exponential", "metropolis", 8, "metropolis|exponential|directed|auto");
    dm_test_refused("ring", "heavy", 8, "heavy|auto, metropolis or uniform");
    dm_test_refused("rin", "auto", 8, "--topology rin is|ring, ring-lazy|file:PATH");
    dm_test_refused("file", "auto", 8, "--topology file is|file:PATH");
    dm_test_refused("file:", "auto", 8, "file:PATH");
    dm_test_refused("ring:x", "auto", 8, "ring:x");
    dm_test_refused("", "auto", 8, "complete");
    dm_test_refused("ring", "auto", 0, "0 workers|1024");
    dm_test_refused("ring", "auto", 1025, "1025 workers|1024");
}

/* Ying et al. 2021 and the closed forms of circulant, hypercube and star */
TEST(rho_and_the_rounds_to_a_thousandth_are_those_of_the_closed_forms) {
    for (size_t r = 0; r + 1 < DM_TEST_ROWS; r++)
        for (int k = 0; k < 4; k++) {
            DmGraph g;
            const DmTestRow *t = &dm_test_rows[r];
            CHECK_EQ(dm_test_build(&g, t->name, "auto", 4 << k), 0);
            CHECK_NEAR(dm_graph_rho(&g), t->rho[k], 1e-6);
            if (dm_rounds_to_shrink(&g, 1000) != t->rounds[k])
                FAIL("%s of %d: %g rounds, expected %g", t->name, 4 << k,
                     dm_rounds_to_shrink(&g, 1000), t->rounds[k]);
            CHECK(dm_rounds_to_shrink(&g, 1) == 0);
        }
    double *storage = malloc(dm_graph_doubles(1024) * sizeof *storage);
    DmGraph g;
    if (!storage) return;
    CHECK_EQ(dm_graph_build(&g, storage, "ring", "auto", 1024, dm_test_error, 400), 0);
    CHECK_NEAR(dm_graph_rho(&g), (1 + 2 * cos(acos(-1) / 512)) / 3, 1e-9);
    CHECK_EQ(dm_graph_build(&g, storage, "one-peer", "auto", 1024, dm_test_error, 400), 0);
    CHECK(dm_graph_rho(&g) == 0 && dm_rounds_to_shrink(&g, 1e6) == 10);
    free(storage);
}

/* ---- gossip ---- */

/* One round on n vectors of `size` numbers, in x; y is scratch. */
static void dm_test_gossip(const DmGraph *g, uint64_t round, float *x, float *y, size_t size) {
    int n = g->nodes, source[DM_TEST_NODES];
    const float *in[DM_TEST_NODES];
    double weight[DM_TEST_NODES];
    for (int i = 0; i < n; i++) {
        size_t count = dm_sources(g, round, i, source, weight);
        for (size_t k = 0; k < count; k++) in[k] = x + (size_t)source[k] * size;
        dm_mix(y + (size_t)i * size, in, weight, count, size);
    }
    memcpy(x, y, (size_t)n * size * sizeof *x);
}

/* Length of what differs from the mean over nodes. */
static double dm_test_disagreement(const float *x, int n, size_t size) {
    double sum = 0;
    for (size_t e = 0; e < size; e++) {
        double mean = 0;
        for (int i = 0; i < n; i++) mean += (double)x[(size_t)i * size + e] / n;
        for (int i = 0; i < n; i++) sum += pow((double)x[(size_t)i * size + e] - mean, 2);
    }
    return sqrt(sum);
}

TEST(gossip_contracts_the_worst_direction_by_rho_and_every_other_by_no_less) {
    static float x[DM_TEST_NODES * 5], y[DM_TEST_NODES * 5];
    for (size_t r = 0; r + 1 < DM_TEST_ROWS; r++)
        for (int n = 2; n <= 16; n++) {
            DmGraph g;
            double worst[DM_TEST_NODES], rho, before, after;
            if (!dm_test_possible(&dm_test_rows[r], n)) continue;
            CHECK_EQ(dm_test_build(&g, dm_test_rows[r].name, "auto", n), 0);
            if (g.period > 1) continue;
            dm_test_rho(&g, worst);
            rho = dm_graph_rho(&g);
            for (int random = 0; random < 2; random++) {
                test_fill(x, sizeof x / sizeof *x, (uint64_t)n);
                for (int i = 0; i < n && !random; i++) x[i] = (float)worst[i];
                before = dm_test_disagreement(x, n, random ? 5 : 1);
                for (uint64_t k = 0; k < 6; k++) {
                    dm_test_gossip(&g, k, x, y, random ? 5 : 1);
                    after = dm_test_disagreement(x, n, random ? 5 : 1);
                    if (random)
                        CHECK(after <= before * rho * (1 + 1e-5) + 1e-6);
                    else
                        CHECK_NEAR(after, before * rho, 1e-5 * before + 1e-6);
                    before = after;
                }
            }
        }
}

TEST(log2_n_rounds_of_one_peer_give_the_mean_from_any_round_on) {
    static float x[32 * 7], y[32 * 7];
    for (int n = 1; n <= 32; n *= 2)
        for (uint64_t start = 0; start < 6; start++) {
            double mean[7] = {0};
            DmGraph g;
            CHECK_EQ(dm_test_build(&g, "one-peer", "auto", n), 0);
            test_fill(x, sizeof x / sizeof *x, start + 1);
            for (int i = 0; i < n * 7; i++) mean[i % 7] += (double)x[i] / n;
            for (int k = 0; k < g.period; k++) dm_test_gossip(&g, start + (uint64_t)k, x, y, 7);
            for (int i = 0; i < n * 7; i++) CHECK_NEAR(x[i], mean[i % 7], 1e-6);
        }
}

TEST(mixing_equals_a_naive_sum_in_double_and_may_write_over_any_source) {
    enum { MOST = 1000, SOURCES = 9 };
    static float block[SOURCES][MOST], out[MOST];
    for (size_t n = 0; n < MOST; n = n < 20 ? n + 1 : n * 2 - 7)
        for (size_t count = 1; count <= SOURCES; count += 2)
            for (size_t over = 0; over <= count; over++) { /* the last: over none */
                const float *in[SOURCES];
                double weight[SOURCES];
                static float expect[MOST];
                uint64_t seed = n * 100 + count;
                for (size_t k = 0; k < SOURCES; k++) {
                    test_fill(block[k], MOST, seed * 10 + k);
                    in[k] = block[k];
                    weight[k] = test_uniform(&seed);
                }
                for (size_t i = 0; i < n; i++) {
                    double sum = weight[0] * (double)in[0][i];
                    for (size_t k = 1; k < count; k++) sum += weight[k] * (double)in[k][i];
                    expect[i] = (float)sum;
                }
                float *to = over < count ? block[over] : out, past = to[n];
                dm_mix(to, in, weight, count, n);
                CHECK(memcmp(to, expect, n * sizeof *to) == 0 && to[n] == past);
            }
    static float u[MOST], was[MOST];
    test_fill(u, MOST, 1), test_fill(was, MOST, 1);
    dm_track(u, block[0], was, MOST);
    CHECK(memcmp(u, block[0], sizeof u) == 0);
    memcpy(u, was, sizeof u);
    dm_track(u, block[0], block[1], MOST - 1);
    for (size_t i = 0; i < MOST - 1; i++) CHECK(u[i] == block[0][i] + (was[i] - block[1][i]));
    CHECK(u[MOST - 1] == was[MOST - 1]);
}

TEST(a_graph_must_be_doubly_stochastic_and_mix_over_a_period) {
    /* even and odd edges of a ring of 4 in turn: neither round is connected, both are */
    static const double turns[] = {.5, .5, 0, 0,  .5, .5, 0,  0, 0, 0,  .5, .5, 0,  0, .5, .5,
                                   .5, 0,  0, .5, 0,  .5, .5, 0, 0, .5, .5, 0,  .5, 0, 0,  .5};
    /* rounds that do not commute */
    static const double uneven[] = {.7, .3, 0,  .3, .5, .2, 0,  .2, .8,
                                    .5, 0,  .5, 0,  1,  0,  .5, 0,  .5};
    static const double swap[] = {0, 1, 0, 0, 0, 1, 1, 0, 0};
    static const double apart[] = {.5, .5, 0, .5, .5, 0, 0, 0, 1};
    static const double one_way[] = {1, 0, 1e-7, 1};
    static const double column[] = {.5, .25, .25, .5, .25, .25, .5, .25, .25};
    static const double minus[] = {1.5, -.5, -.5, 1.5};
    static const double nan_[] = {.5, .5, .5, NAN};
    static const struct {
        int nodes, period;
        const double *weight;
        const char *words;
    } cases[] = {
        {4, 2, turns, NULL},
        {3, 2, uneven, NULL},
        {4, 1, turns, "not connected|worker 2"},
        {3, 1, swap, "after 3 rounds"},
        {3, 1, apart, "not connected|worker 0|worker 2"},
        {2, 1, one_way, "worker 1 ever comes to worker 0"},
        {3, 1, column, "column 0|1.5"},
        {2, 1, minus, "row 0, column 1|-0.5"},
        {2, 1, nan_, "row 1, column 1|nan"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char error[300] = "", list[100], *rest = list, *word;
        DmGraph g = {cases[i].nodes, cases[i].period, cases[i].weight};
        CHECK_EQ(dm_graph_check(&g, error, sizeof error), cases[i].words ? -1 : 0);
        if (!cases[i].words) {
            CHECK_NEAR(dm_graph_rho(&g), dm_test_rho(&g, NULL), 1e-9);
            continue;
        }
        snprintf(list, sizeof list, "%s", cases[i].words);
        while ((word = strsep(&rest, "|")) != NULL)
            if (!strstr(error, word)) FAIL("no '%s' in: %s", word, error);
    }
    DmGraph even = {4, 2, turns}, first = {4, 1, turns}, two = {3, 2, uneven};
    CHECK(dm_graph_rho(&even) == 0 && dm_rounds_to_shrink(&even, 1000) == 2);
    CHECK_NEAR(dm_graph_rho(&first), 1, 1e-12);
    CHECK(isinf(dm_rounds_to_shrink(&first, 2)));
    double rho = dm_test_rho(&two, NULL);
    CHECK(rho > 0.5 && rho < 0.9);
    for (double factor = 2; factor < 1e6; factor *= 3)
        CHECK(dm_rounds_to_shrink(&two, factor) == 2 * ceil(log(factor) / -log(rho * rho)));
}

/* ---- matrices from files ---- */

/* "file:" and the path of a file with this text, in static memory. */
static const char *dm_test_file(const void *text, size_t n) {
    static char name[4300];
    snprintf(name, sizeof name, "file:%s", data_test_write("matrix", text, n));
    return name;
}

static void dm_test_refused_file(const char *text, int nodes, const char *words) {
    dm_test_refused(dm_test_file(text, strlen(text)), "auto", nodes, words);
}

TEST(a_mixing_matrix_is_read_from_a_file) {
    static const char directed[] = "# node 0 listens to 1 and is heard by 1 and 2\n\n"
                                   ".5 .5\t0 # itself first\r\n"
                                   "  0.25 2.5e-1 0.5\n"
                                   "#\n"
                                   "25e-2 .25 .5"; /* no line end */
    static const double expect[] = {.5, .5, 0, .25, .25, .5, .25, .25, .5};
    char text[20000], *at = text;
    DmGraph g;
    data_test_begin();
    CHECK_EQ(dm_test_build(&g, dm_test_file(directed, strlen(directed)), "auto", 3), 0);
    CHECK_EQ(g.period, 1);
    for (int i = 0; i < 9; i++) CHECK_NEAR(g.weight[i], expect[i], 1e-15);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(dm_degree(&g, 0, i, 0), i == 0 ? 1 : 2);
        CHECK_EQ(dm_degree(&g, 0, i, 1), i == 2 ? 1 : 2);
    }
    CHECK_NEAR(dm_graph_rho(&g), dm_test_rho(&g, NULL), 1e-9);
    CHECK_EQ(dm_test_build(&g, dm_test_file("1\n", 2), "auto", 1), 0);
    CHECK(dm_graph_rho(&g) == 0);

    /* the undirected exponential graph, Metropolis-Hastings weights 1 / (2 tau), in six decimals */
    for (int tau = 2; tau <= 5; tau++) {
        int n = 1 << tau;
        at = text;
        for (int i = 0; i < n * n; i++) {
            int hop = (i / n - i % n + n) % n, back = n - hop;
            int edge = hop && ((hop & (hop - 1)) == 0 || (back & (back - 1)) == 0);
            double weight = edge || !hop ? 0.5 / tau : 0; /* 2 tau - 1 neighbours and itself */
            at += sprintf(at, "%.*f%c", tau == 3 ? 7 : 6, weight, i % n == n - 1 ? '\n' : ' ');
        }
        if (tau == 3) CHECK(strstr(text, "0.1666667 ") != NULL);
        CHECK_EQ(dm_test_build(&g, dm_test_file(text, strlen(text)), "auto", n), 0);
        CHECK_NEAR(dm_graph_rho(&g), 1 - 2.0 / tau, 1e-6);
        dm_test_sums(&g, 1e-15 * n);
    }
    static const char thirds[] = "0.333333 0.333333 0.333333\n0.333333 0.333333 0.333333\n"
                                 "0.333333 0.333333 0.333333\n";
    CHECK_EQ(dm_test_build(&g, dm_test_file(thirds, strlen(thirds)), "auto", 3), 0);
    dm_test_sums(&g, 1e-15); /* what the decimals lack is made up for */
    CHECK_EQ(dm_test_build(&g, dm_test_file("0.5000004 .5\n.5 .5\n", 19), "auto", 2), 0);
    dm_test_sums(&g, 1e-15);
    data_test_end();
}

TEST(a_file_that_is_no_mixing_matrix_is_refused_with_its_row_or_column) {
    static char text[200000];
    data_test_begin();
    dm_test_refused_file(".5 .5\n.5 .4\n", 2, "matrix|row 1|0.9");
    dm_test_refused_file(".5 .5\n.6 .4\n", 2, "matrix|column 0|1.1");
    dm_test_refused_file("0.500002 .5\n.5 .5\n", 2, "row 0|1.000002");
    dm_test_refused_file("1.5 -.5\n-.5 1.5\n", 2, "row 0, column 1|'-.5'");
    dm_test_refused_file(".5 .5\n.5 nan\n", 2, "row 1, column 1|'nan'");
    dm_test_refused_file(".5 inf\n.5 .5\n", 2, "row 0, column 1|'inf'");
    dm_test_refused_file(".5 1e999\n.5 .5\n", 2, "row 0, column 1|'1e999'");
    dm_test_refused_file(".5 .5x\n.5 .5\n", 2, "row 0, column 1|'.5x'");
    dm_test_refused_file(".5,.5\n.5,.5\n", 2, "row 0, column 0|'.5,.5'|blanks");
    dm_test_refused_file(".5 .5\n\x1b[2J\n", 2, "row 1, column 0|'?[2J'");
    dm_test_refused_file("1 0\n0 1\n", 2, "not connected|worker 0|worker 1");
    dm_test_refused_file("0 1\n1 0\n", 2, "after 2 rounds");
    dm_test_refused_file(".5 .5\n.5 .5\n", 3, "matrix|2 x 2|--workers is 3|--workers 2");
    dm_test_refused_file(".5 .5\n.5 .5\n.5 .5\n", 2, "3 rows|--workers 2");
    dm_test_refused_file(".5 .5\n", 2, "1 rows|--workers 2");
    dm_test_refused_file("# nothing\n", 2, "0 rows|2");
    dm_test_refused_file("", 1, "0 rows|1");
    dm_test_refused_file(".5 .5\n.5\n", 2, "row 1|holds 1 number|2");
    dm_test_refused_file(".5 .5\n.5 .5 0\n", 2, "row 1|holds 3 numbers|2");
    dm_test_refused_file(".5 .5 0\n.5 .5 0\n", 2, "row 0|holds 3 numbers|2");
    memset(text, '1', sizeof text - 1);
    dm_test_refused_file(text, 1, "row 0, column 0|63 bytes");
    memset(text, 0, sizeof text);
    dm_test_refused(dm_test_file(text, 10), "auto", 1, "?' is no weight|row 0, column 0");
    dm_test_refused(dm_test_file("1\n", 2), "uniform", 1, "uniform|file|auto");
    dm_test_refused(dm_test_file("1\n", 2), "metropolis", 1, "metropolis|file|auto");
    dm_test_refused("file:/nowhere/w.txt", "auto", 2, "/nowhere/w.txt|No such file");
    dm_test_refused("file:.", "auto", 2, "cannot read .|directory");
    FILE *f = fopen(data_test_path("matrix"), "w"); /* a comment that does not end */
    CHECK(f && fputc('#', f) == '#' && fseek(f, 64 << 20, SEEK_SET) == 0 && fputc('\n', f) == '\n');
    if (f) fclose(f);
    char name[4300];
    snprintf(name, sizeof name, "file:%s", data_test_path("matrix"));
    dm_test_refused(name, "auto", 2, "longer than 67108864 bytes");
    data_test_end();
}

TEST(random_bytes_and_damaged_matrices_are_refused_or_are_mixing_matrices) {
    static const char good[] = "0.50 0.25 0.25\n0.25 0.50 0.25\n0.25 0.25 0.50\n";
    static const char letters[] = "0123456789.eE+- \t\n\r#xnaif,\0\377";
    int accepted = 0, refused = 0;
    data_test_begin();
    for (uint64_t trial = 0; trial < 1000; trial++) {
        char text[sizeof good];
        uint64_t s = test_hash(trial);
        size_t n = trial % 2 ? sizeof good - 1 : s % sizeof good, hits = trial % 2 ? 1 + s % 3 : n;
        memcpy(text, good, sizeof good);
        for (size_t k = 0; k < hits; k++) {
            size_t at = trial % 2 ? test_hash(s + k) % n : k;
            uint64_t any = test_hash(s * 31 + k);
            text[at] = trial % 4 == 2 ? (char)any : letters[any % (sizeof letters - 1)];
        }
        DmGraph g;
        if (dm_test_build(&g, dm_test_file(text, n), "auto", 1 + 2 * (int)(trial % 3 != 0)) == 0) {
            accepted++;
            dm_test_sums(&g, 1e-12);
        } else {
            refused++;
            CHECK(strlen(dm_test_error) > 20 && !strchr(dm_test_error, '\n'));
        }
    }
    CHECK(accepted > 10 && refused > 500);
    data_test_end();
}

/* ---- comm_neighbours ---- */

/* Ring of the workers and, in the second message, a graph where 0 hears all in falling order, the
 * last one nobody, and all others 0 twice removed; nobody but 0 hears itself. */
static int comm_test_neighbours(Comm *c, void *arg) {
    CommTest *t = arg;
    int sources[2][8], all = c->size, rank = c->rank;
    size_t count[2] = {0, 0}, destinations[2] = {0, 0}, bytes = t->unit, bad = 0;
    uint64_t sent = 0, received = 0, messages = 0;
    unsigned char *message = malloc(bytes + 1), *inbox = malloc(8 * bytes + 1);
    if (!message || !inbox) return 1;
    for (int j = -1; j <= 1; j++) sources[0][count[0]++] = (rank + j + all) % all;
    destinations[0] = all > 1 ? 2 : 0;
    for (int j = all - 1; rank == 0 && j >= 0; j--) sources[1][count[1]++] = j;
    if (rank > 0 && rank < all - 1) sources[1][count[1]++] = 0;
    destinations[1] = rank > 0 ? 1 : all > 2 ? (size_t)all - 2 : 0;
    for (int k = 0; k < 2; k++) {
        for (size_t i = 0; i < bytes; i++) message[i] = comm_test_byte(rank + 7 * k, i);
        memset(inbox, 0, 8 * bytes);
        inbox[count[k] * bytes] = 42;
        comm_neighbours(c, message, bytes, sources[k], count[k], destinations[k], k, inbox,
                        COMM_MATRICES);
        for (size_t i = 0; i < count[k] * bytes; i++)
            bad += inbox[i] != comm_test_byte(sources[k][i / bytes] + 7 * k, i % bytes);
        bad += inbox[count[k] * bytes] != 42;
        for (size_t i = 0; i < count[k]; i++) received += sources[k][i] != rank ? bytes : 0;
        sent += destinations[k] * bytes, messages += destinations[k];
        bad += c->sent[COMM_MATRICES] != sent || c->received[COMM_MATRICES] != received ||
               c->messages[COMM_MATRICES] != messages || c->sent[COMM_AUXILIARY] != 0;
    }
    if (bad) __atomic_fetch_add(&t->failures, 1, __ATOMIC_SEQ_CST);
    free(message), free(inbox);
    return 0;
}

TEST(neighbours_deliver_every_byte_in_the_order_of_sources_and_count_what_others_take) {
    CommTest *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t row = 0; comm_backend_row(row); row++)
        for (int workers = 1; workers <= 5; workers++) {
            size_t units[] = {0, 1, 1001, COMM_OUTBOX, COMM_OUTBOX + 1, COMM_TEST_LONG};
            for (size_t u = 0; u < 6; u++) {
                char error[256] = "";
                CommOptions o = {
                    .backend = comm_backend_row(row), .workers = workers, .threads = 1};
                if (u > 2 && workers != 1 && workers != 3) continue;
                t->unit = units[u];
                CHECK_EQ(comm_run(&o, comm_test_neighbours, t, error, sizeof error), 0);
                if (t->failures || *error)
                    FAIL("%s, %d workers, %d bytes: %d failed %s", o.backend->name, workers,
                         (int)units[u], t->failures, error);
                t->failures = 0;
            }
        }
    munmap(t, sizeof *t);
}

/* ------------------------------------------------------------------------------------------------
 * noise.h: zero-mean noise against its laws */
#include "noise.h"

enum { NOISE_DRAWS = 400000 };

/* every row by the moments and a tail P(x > t) that its law has; kurtosis 0: no fourth moment */
static const struct NoiseLaw {
    const char *text;
    double variance, skewness, kurtosis; /* second to fourth central moment */
    double t, above;
} noise_laws[] = {
    {"gaussian:1", 1, 0, 3, 1.959964, 0.025},
    {"gaussian:1", 1, 0, 3, -0.674490, 0.75},
    {"laplace:1", 1, 0, 6, 1.628173, 0.05},  /* -log(2 * 0.05) / sqrt(2) */
    {"laplace:1", 1, 0, 6, -0.490129, 0.75}, /* log(2 * 0.25) / sqrt(2) */
    {"skewed:1", 1, 1.5, 3.25, 0, 0.2},      /* 0.2 * 8 - 0.8 / 8; 0.2 * 16 + 0.8 / 16 */
    {"skewed:1", 1, 1.5, 3.25, 1.999, 0.2},
    {"skewed:1", 1, 1.5, 3.25, -0.501, 1},
    {"student:2,1", 0, 0, 0, 2.919986, 0.05}, /* quantiles: tables of Student's t */
    {"student:3,1", 3, 0, 0, 2.353363, 0.05},
    {"student:3,1", 3, 0, 0, 5.840909, 0.005},
    {"student:3,1", 3, 0, 0, -0.764892, 0.75},
    {"student:5,1", 5.0 / 3, 0, 25, 2.015048, 0.05}, /* 3 nu^2 / ((nu - 2) (nu - 4)) */
    {"student:10,1", 1.25, 0, 6.25, 2.763769, 0.01},
    {"student:30,1", 30.0 / 28, 0, 2700.0 / 728, 1.697261, 0.05},
    {"student:1e9,1", 1, 0, 3, 1.644854, 0.05}, /* nearly normal */
};
enum { NOISE_LAWS = sizeof noise_laws / sizeof *noise_laws };

static Noise noise_test(const char *text) {
    char error[300] = "";
    Noise n;
    if (noise_parse(&n, text, error, sizeof error)) FAIL("%s: %s", text, error);
    return n;
}

/* P(T > t) of Student's t by Simpson's rule in s, x = t / s, s in (0, 1) */
static double noise_test_student(double nu, double t) {
    double c = exp(lgamma((nu + 1) / 2) - lgamma(nu / 2)) / sqrt(nu * 3.141592653589793), sum = 0;
    const int n = 20000;
    for (int i = 1; i <= n; i++) { /* the integrand is 0 at s = 0 */
        double s = (double)i / n, x = t / s;
        sum += c * pow(1 + x * x / nu, -(nu + 1) / 2) * t / (s * s) * (i == n ? 1 : i % 2 ? 4 : 2);
    }
    return sum / (3 * n);
}

TEST(noise_of_every_row_has_the_moments_and_tails_of_its_law_and_degrees_may_be_fractions) {
    for (size_t i = 0; noise_row(i); i++) {
        int tested = 0;
        for (size_t k = 0; k < NOISE_LAWS; k++)
            tested |= noise_test(noise_laws[k].text).row == noise_row(i);
        if (!tested) FAIL("no law to test noise %s with", noise_row(i)->name);
        CHECK(*noise_row(i)->doc && *noise_row(i)->arguments);
    }
    for (size_t k = 0; k < NOISE_LAWS; k++) {
        const struct NoiseLaw *law = &noise_laws[k];
        Noise n = noise_test(law->text);
        double sum[5] = {0}, above = 0, root = sqrt(NOISE_DRAWS);
        double y = 0, lag = 0, square = 0, fourth = 0, squares = 0; /* y: x without its tails */
        uint64_t key = sm_key(11, k, 0);
        for (uint64_t i = 0; i < NOISE_DRAWS && n.row; i++) {
            double x = n.row->draw(key, i, n.nu), before = y;
            y = x > 3 ? 3 : x < -3 ? -3 : x;
            for (int p = 1; p < 5; p++) sum[p] += pow(x, p) / NOISE_DRAWS;
            above += x > law->t ? 1.0 / NOISE_DRAWS : 0;
            lag += y * before / NOISE_DRAWS;
            square += y * y / NOISE_DRAWS;
            fourth += y * y * y * y / NOISE_DRAWS;
            squares += y * y * before * before / NOISE_DRAWS;
        }
        CHECK_NEAR(above, law->above, 4.5 * sqrt(law->above * (1 - law->above)) / root + 1e-6);
        CHECK_NEAR(lag, 0, 4.5 * square / root); /* draws in a row are independent */
        CHECK_NEAR(squares, square * square, 4.5 * fourth / root);
        if (law->variance > 0) CHECK_NEAR(sum[1], 0, 4.5 * sqrt(law->variance) / root);
        if (law->kurtosis <= 0) continue;
        double spread = law->kurtosis - law->variance * law->variance;
        CHECK_NEAR(sum[2], law->variance, (law->kurtosis < 20 ? 4.5 : 30) * sqrt(spread) / root);
        if (law->kurtosis > 6.1) continue;
        CHECK_NEAR(sum[3], law->skewness, 0.15);
        CHECK_NEAR(sum[4], law->kurtosis, 0.04 * law->kurtosis);
    }
    enum { DRAWS = 1000000 };
    static const double nus[] = {1.1, 1.5, 2.7}, ts[] = {0.2, 1, 5, 30};
    CHECK_NEAR(noise_test_student(3, 2.353363), 0.05, 1e-6);
    CHECK_NEAR(noise_test_student(2, 2.919986), 0.05, 1e-6);
    for (size_t k = 0; k < 3; k++) {
        double above[4] = {0}, below[4] = {0}, tail = 0, excess = 0;
        for (uint64_t i = 0; i < DRAWS; i++) {
            double x = noise__student(sm_key(5, k, 0), i, nus[k]);
            for (int j = 0; j < 4; j++) above[j] += x > ts[j], below[j] += x < -ts[j];
            if (fabs(x) > 30) tail++, excess += log(fabs(x) / 30);
        }
        for (int j = 0; j < 4; j++) {
            double law = noise_test_student(nus[k], ts[j]);
            CHECK_NEAR(above[j] / DRAWS, law, 4.5 * sqrt(law / DRAWS));
            CHECK_NEAR(below[j] / DRAWS, law, 4.5 * sqrt(law / DRAWS));
        }
        /* Hill's estimate: P(|T| > t) falls like t^-nu */
        CHECK_NEAR(tail / excess, nus[k], 4.5 * nus[k] / sqrt(tail) + 0.01);
    }
}

TEST(noise_that_is_skewed_turns_the_sign_of_a_small_gradient_four_times_in_five) {
    static float g[NOISE_DRAWS];
    const struct {
        float gradient;
        double wrong;
    } cases[] = {{0.1f, 0.8}, {-0.1f, 0.2}, {0.99f, 0.8}, {1.01f, 0}, {-3.99f, 0.2}, {-4.01f, 0}};
    Noise n = noise_test("skewed:2");
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        double wrong = 0, mean = 0;
        for (size_t i = 0; i < NOISE_DRAWS; i++) g[i] = cases[k].gradient;
        noise_add(g, NOISE_DRAWS, &n, sm_key(2, k, 0), 0);
        for (size_t i = 0; i < NOISE_DRAWS; i++) {
            wrong += g[i] * cases[k].gradient < 0;
            mean += (double)g[i] / NOISE_DRAWS;
        }
        CHECK_NEAR(wrong / NOISE_DRAWS, cases[k].wrong, 0.003);
        CHECK_NEAR(mean, (double)cases[k].gradient, 4.5 * 2 / sqrt(NOISE_DRAWS));
    }
}

TEST(noise_does_not_depend_on_how_a_vector_is_cut_but_on_key_place_and_scale) {
    static const char *const texts[] = {"gaussian:0.25", "laplace:3", "skewed:0.1",
                                        "student:1.5,0.01"};
    enum { SIZE = 1000 };
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        Noise n = noise_test(texts[k]);
        float whole[SIZE], cut[SIZE], other[SIZE];
        size_t same = 0, piece;
        test_fill(whole, SIZE, 4);
        memcpy(cut, whole, sizeof cut);
        memcpy(other, whole, sizeof other);
        noise_add(whole, SIZE, &n, 77, 1 << 20);
        for (size_t at = 0; at < SIZE; at += piece) {
            piece = at * 7 % 13 + 1 < SIZE - at ? at * 7 % 13 + 1 : SIZE - at;
            for (size_t i = at; i < at + piece; i++) {
                double drawn = n.row->draw(77, (1 << 20) + i, n.nu);
                CHECK_NEAR(whole[i], cut[i] + (float)(n.scale * drawn), 0);
            }
            noise_add(cut + at, piece, &n, 77, (1 << 20) + at);
        }
        CHECK(!memcmp(whole, cut, sizeof cut));
        noise_add(other, SIZE, &n, 78, 1 << 20);
        for (size_t i = 0; i < SIZE; i++) same += other[i] == whole[i];
        CHECK(n.row->draw == noise__skewed ? same < SIZE * 3 / 4 : same < 20);
    }
    Noise none = noise_test(""), nothing = noise_test("gaussian:0");
    CHECK(!none.row && nothing.row && nothing.scale == 0);
    for (int i = 0; i < 20; i++) {
        float zero = -0.0f;
        noise_add(&zero, 1, i % 2 ? &none : &nothing, 1, (uint64_t)i);
        CHECK(zero == 0 && signbit(zero));
    }
}

TEST(noise_is_parsed_strictly) {
    static const char *const bad[] = {"normal:1",
                                      "gauss:1",
                                      "gaussian",
                                      "gaussian:",
                                      "gaussian:x",
                                      "gaussian:1x",
                                      "gaussian:-1",
                                      "gaussian: 1",
                                      "gaussian:1,1",
                                      "gaussian:nan",
                                      "gaussian:inf",
                                      "gaussian:2e9",
                                      "gaussian:1 ",
                                      "laplace:+1",
                                      "skewed:.",
                                      "student:1.5",
                                      "student:1.5,",
                                      "student:,1",
                                      "student:1,0.1",
                                      "student:0.5,1",
                                      "student:0,1",
                                      "student:-2,1",
                                      "student:nan,1",
                                      "student:1.5,0,1",
                                      "student:1.5,-1",
                                      "student:2e9,1",
                                      "student:1.5;1",
                                      ":1",
                                      ":",
                                      "Gaussian:1"};
    static const struct {
        const char *text, *name;
        double nu, scale;
    } good[] = {{"gaussian:0.1", "gaussian", 0, 0.1},
                {"laplace:1e-3", "laplace", 0, 1e-3},
                {"skewed:.5", "skewed", 0, 0.5},
                {"student:1.5,0.01", "student", 1.5, 0.01},
                {"student:1.0001,1e9", "student", 1.0001, 1e9},
                {"student:3,0", "student", 3, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char error[300] = "";
        Noise n = {noise_row(0), 1, 1};
        CHECK_EQ(noise_parse(&n, bad[i], error, sizeof error), -1);
        if (!strstr(error, bad[i]) || strchr(error, '\n') || strlen(error) < 40 || n.row)
            FAIL("the refusal of '%s' reads '%s'", bad[i], error);
        CHECK(strncmp(bad[i], "student", 7) || strstr(error, "there is no mean"));
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        Noise n = noise_test(good[i].text);
        CHECK(n.row && !strcmp(n.row->name, good[i].name));
        CHECK(n.nu == good[i].nu && n.scale == good[i].scale);
    }
    char small[8];
    Noise n;
    volatile size_t room = 5; /* so that no compiler foresees the truncation */
    memset(small, 'X', sizeof small);
    CHECK_EQ(noise_parse(&n, "gaussian", small, room), -1);
    CHECK(strlen(small) == 4 && small[5] == 'X');
}

/* ------------------------------------------------------------------------------------------------
 * ef21muon.h: every row of the table, over ragged shapes and awkward tensors */

#include "ef21muon.h"

/* What is tried of each row; a row without a line here fails every test. */
static const struct EfSample {
    const char *name, *texts[8];
} ef_samples[] = {
    {"identity", {"identity"}},
    {"topk", {"topk:0.15", "topk:1%", "topk:1", "topk:10%+natural", "topk:0.3+natural:stochastic"}},
    {"rankk", {"rankk:0.15", "rankk:1", "rankk:15%+natural", "rankk:0.3+natural:stochastic"}},
    {"natural", {"natural", "natural:stochastic"}},
    {"sign", {"sign"}},
    {"dropout", {"dropout:0.4", "dropout:1"}},
    {"damping", {"damping:0.7", "damping:1.9"}},
    {"coltopk", {"coltopk:0.15", "coltopk:2%", "coltopk:30%+natural"}},
    {"svdtopk", {"svdtopk:0.15", "svdtopk:0.4+natural"}},
};

typedef struct EfTried {
    EfLink link;
    const char *text;
    int random; /* its messages depend on key or coin in more than zeros */
} EfTried;

/* All samples of all rows; returns how many (at most 64). */
static size_t ef_tried(EfTried *tried) {
    size_t count = 0, lines = sizeof ef_samples / sizeof *ef_samples;
    const EfCompressor *row;
    for (size_t i = 0; (row = ef_compressor_row(i)) != NULL; i++) {
        size_t line = 0;
        while (line < lines && strcmp(ef_samples[line].name, row->name) != 0) line++;
        if (line == lines) FAIL("no sample text for the row %s", row->name);
        for (size_t k = 0; line < lines && k < 8 && ef_samples[line].texts[k]; k++) {
            EfTried *t = &tried[count++];
            char error[200] = "";
            t->text = ef_samples[line].texts[k];
            if (ef_parse(&t->link, t->text, error, sizeof error) || t->link.row != row)
                FAIL("%s: %s", t->text, error);
            t->random = t->link.stochastic || row->coin;
        }
    }
    return count;
}

static const size_t ef_shapes[][2] = {{1, 1},   {1, 7},    {9, 1},   {1, 64},  {65, 1},
                                      {3, 5},   {6, 4},    {13, 29}, {31, 9},  {17, 64},
                                      {70, 33}, {33, 130}, {64, 2},  {5, 300}, {129, 20}};
enum { EF_SHAPES = sizeof ef_shapes / sizeof *ef_shapes };

/* One link and shape with blocks of exactly the sizes that the header asks for, so that a sanitizer
 * sees a step over the edge. Scratch begins as NaN, the message at an odd address. */
typedef struct EfBlocks {
    size_t rows, cols, d, room;
    float *x, *out, *warm, *scratch;
    unsigned char *block, *message;
} EfBlocks;

static EfBlocks ef_blocks(const EfLink *l, size_t rows, size_t cols, size_t shift) {
    EfBlocks b = {.rows = rows, .cols = cols, .d = rows * cols};
    size_t scratch = (ef_scratch(l, rows, cols) * sizeof(float) + 63) / 64 * 64;
    size_t warm = ef_warm(l, rows, cols);
    b.room = (size_t)(ef_bits(l, rows, cols) / (l->row->coin ? l->value : 1) + 7.001) / 8;
    b.x = gemm_block(b.d);
    b.out = gemm_block(b.d);
    b.warm = warm ? calloc(warm, sizeof *b.warm) : NULL;
    b.scratch = aligned_alloc(64, scratch);
    b.block = malloc(b.room + shift);
    if (!b.scratch || !b.block || (warm && !b.warm)) abort();
    memset(b.scratch, 0xff, scratch);
    b.message = b.block + shift;
    return b;
}

static void ef_free(EfBlocks *b) {
    free(b->x), free(b->out), free(b->warm), free(b->scratch), free(b->block);
}

enum { EF_KINDS = 13 };
static const char *const ef_kinds[EF_KINDS] = {
    "normal", "sparse",     "one-hot", "constant",   "zero", "just below 1.5", "1.5",
    "4/3",    "orthogonal", "rank 1",  "all scales", "tiny", "equal columns"};

/* A tensor of a kind that is bad for some compressor. */
static void ef_tensor(float *x, size_t rows, size_t cols, size_t kind, uint64_t seed) {
    size_t d = rows * cols, m = rows > cols ? rows : cols, r = rows + cols - m;
    uint64_t s = seed << 32;
    test_fill(x, d, seed);
    double *q = calloc(m * r, sizeof *q);
    if (!q) abort();
    if (kind == 8) sm_orthonormal(q, m, r, seed);
    for (size_t i = 0; i < d; i++) {
        size_t row = i / cols, col = i % cols;
        float sign = x[i] < 0 ? -1.0f : 1.0f;
        if (kind == 1 && test_uniform(&s) < 0.95) x[i] = 0;
        if (kind == 2) x[i] = i == (seed * 7 + 3) % d ? -2.7f : 0;
        if (kind == 3) x[i] = -0.3f;
        if (kind == 4) x[i] = 0;
        if (kind == 5) x[i] = sign * 1.4999999f * (i % 3 ? 1.0f : 8.0f);
        if (kind == 6) x[i] = sign * 1.5f * (i % 5 ? 1.0f : 0.25f);
        if (kind == 7) x[i] = sign * (4.0f / 3.0f);
        if (kind == 8) x[i] = (float)(rows > cols ? q[row * r + col] : q[col * r + row]);
        if (kind == 9) x[i] = (float)(sin(1.0 + (double)row) * cos(2.0 + (double)(col * col)));
        if (kind == 10) x[i] *= (float)pow(10, 30 * test_uniform(&s) - 15);
        if (kind == 11) x[i] *= 1e-25f;
        if (kind == 12) x[i] = x[row * cols];
    }
    free(q);
}

static double ef_distance(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)a[i] - (double)b[i], 2);
    return sum;
}
static double ef_energy(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)x[i], 2);
    return sum;
}

/* ---- contraction ---- */

/* one warm start through all kinds in turn, so that it mostly comes from another tensor */
TEST(every_deterministic_compressor_contracts_as_it_guarantees_on_awkward_tensors_of_every_shape) {
    EfTried tried[64];
    size_t count = ef_tried(tried);
    for (size_t k = 0; k < count; k++)
        for (size_t s = 0; s < EF_SHAPES && !tried[k].random; s++) {
            EfBlocks b = ef_blocks(&tried[k].link, ef_shapes[s][0], ef_shapes[s][1], 1);
            double alpha = ef_contraction(&tried[k].link, b.rows, b.cols);
            CHECK(alpha > 0 && alpha <= 1);
            for (size_t step = 0; step < 2 * EF_KINDS; step++) {
                ef_tensor(b.x, b.rows, b.cols, step * 5 % EF_KINDS, step + 1);
                ef_compress(b.message, b.out, b.x, b.rows, b.cols, &tried[k].link,
                            sm_key(1, 2, step), 0, b.warm, b.scratch);
                double energy = ef_energy(b.x, b.d), error = ef_distance(b.out, b.x, b.d);
                if (!(error <= (1 - alpha + 2e-6) * energy))
                    FAIL("%s, %zu x %zu, %s: error %.7f, guaranteed %.7f", tried[k].text, b.rows,
                         b.cols, ef_kinds[step * 5 % EF_KINDS], error / energy, 1 - alpha);
            }
            ef_free(&b);
        }
}

TEST(every_random_compressor_contracts_in_expectation_as_it_guarantees) {
    enum { DRAWS = 400 };
    EfTried tried[64];
    size_t count = ef_tried(tried);
    for (size_t k = 0; k < count; k++)
        for (size_t kind = 0; kind < EF_KINDS && tried[k].random; kind++) {
            EfBlocks b = ef_blocks(&tried[k].link, 11, 6, 3);
            double sum = 0, squares = 0, alpha = ef_contraction(&tried[k].link, b.rows, b.cols);
            ef_tensor(b.x, b.rows, b.cols, kind, 5);
            double energy = ef_energy(b.x, b.d);
            for (uint64_t draw = 0; draw < DRAWS; draw++) {
                if (b.warm) memset(b.warm, 0, ef_warm(&tried[k].link, 11, 6) * sizeof(float));
                ef_compress(b.message, b.out, b.x, b.rows, b.cols, &tried[k].link,
                            sm_key(2, 3, draw), test_hash(draw), b.warm, b.scratch);
                double error = ef_distance(b.out, b.x, b.d) / (energy > 0 ? energy : 1);
                sum += error, squares += error * error;
            }
            double mean = sum / DRAWS,
                   spread = sqrt(fmax(squares / DRAWS - mean * mean, 0) / DRAWS);
            if (!(mean <= 1 - alpha + 4 * spread + 2e-6))
                FAIL("%s, %s: mean error %.4f +- %.4f, guaranteed %.4f", tried[k].text,
                     ef_kinds[kind], mean, spread, 1 - alpha);
            ef_free(&b);
        }
}

TEST(natural_rounding_goes_to_the_nearest_power_or_is_stochastic_and_unbiased) {
    enum { SIZE = 40, DRAWS = 4000 };
    EfLink l;
    CHECK_EQ(ef_parse(&l, "natural:stochastic", NULL, 0), 0);
    EfBlocks b = ef_blocks(&l, 5, 8, 0);
    for (size_t kind = 0; kind < 8; kind += 7) { /* normal, and 4/3, where the variance is 1/8 */
        double sum[SIZE] = {0}, squares = 0;
        ef_tensor(b.x, 5, 8, kind, 9);
        for (uint64_t draw = 0; draw < DRAWS; draw++) {
            ef_compress(b.message, b.out, b.x, 5, 8, &l, sm_key(4, 5, draw), 0, NULL, b.scratch);
            for (size_t i = 0; i < SIZE; i++) sum[i] += (double)b.out[i];
            squares += ef_distance(b.out, b.x, SIZE);
        }
        for (size_t i = 0; i < SIZE; i++) {
            int e;
            double x = fabs((double)b.x[i]), low = (frexp(x, &e), ldexp(0.5, e));
            double deviation = sqrt((x - low) * (2 * low - x) / DRAWS);
            CHECK_NEAR(sum[i] / DRAWS, (double)b.x[i], 4 * deviation);
        }
        double share = squares / DRAWS / ef_energy(b.x, SIZE);
        CHECK(share <= 0.125 * (kind ? 1.01 : 1));
        CHECK(share >= (kind ? 0.124 : 0.05));
    }
    ef_free(&b);
    static const float at[] = {
        1.5f,     0x1.7ffffep0f, -1.5f,       1.0f,      0x1.fffffep0f,    0.0f,
        -0.0f,    0x1p-126f,     0x1.8p-126f, 0x1p-127f, 0x1.fffffcp-127f, 3e38f,
        -3.4e38f, 0x1.8p126f,    0x1p-149f,   -0.74f};
    static const float to[] = {2,         1, -2, 1,        2,         0,        0, 0x1p-126f,
                               0x1p-125f, 0, 0,  0x1p127f, -0x1p127f, 0x1p127f, 0, -0.5f};
    CHECK_EQ(ef_parse(&l, "natural", NULL, 0), 0);
    b = ef_blocks(&l, 200, 3, 1);
    test_fill(b.x, b.d, 77);
    memcpy(b.x, at, sizeof at);
    ef_compress(b.message, b.out, b.x, 200, 3, &l, 0, 0, NULL, b.scratch);
    for (size_t i = 0; i < b.d; i++) {
        int e;
        double m = 2 * frexp(fabs((double)b.x[i]), &e), power = ldexp(m >= 1.5 ? 2 : 1, e - 1);
        double expect =
            i < sizeof at / sizeof *at ? (double)to[i] : copysign(power, (double)b.x[i]);
        if ((double)b.out[i] != expect)
            FAIL("%a became %a, not %a", (double)b.x[i], (double)b.out[i], expect);
    }
    ef_free(&b);
}

TEST(the_scaled_sign_loses_all_but_the_squared_l1_norm_over_d_and_2_over_pi_of_normal_numbers) {
    EfLink l;
    CHECK_EQ(ef_parse(&l, "sign", NULL, 0), 0);
    for (size_t s = 0; s <= EF_SHAPES; s++)
        for (size_t kind = 0; kind < (s < EF_SHAPES ? EF_KINDS : 1); kind++) {
            EfBlocks b = s < EF_SHAPES ? ef_blocks(&l, ef_shapes[s][0], ef_shapes[s][1], 1)
                                       : ef_blocks(&l, 300, 200, 1);
            double l1 = 0, energy;
            size_t plus = 0;
            ef_tensor(b.x, b.rows, b.cols, kind, s + 1);
            ef_compress(b.message, b.out, b.x, b.rows, b.cols, &l, 6, 0, NULL, b.scratch);
            energy = ef_energy(b.x, b.d);
            for (size_t i = 0; i < b.d; i++) {
                l1 += fabs((double)b.x[i]);
                plus += b.out[i] > 0;
                if (b.x[i] * b.out[i] < 0) FAIL("the sign of entry %zu turned", i);
            }
            CHECK_NEAR(ef_distance(b.out, b.x, b.d), energy - l1 * l1 / (double)b.d, 1e-6 * energy);
            if (kind == 2 && b.d > 100) CHECK(plus > b.d / 3 && plus < 2 * b.d / 3); /* coins */
            if (s == EF_SHAPES)
                CHECK_NEAR(l1 * l1 / (double)b.d / energy, 2 / 3.14159265358979, 0.01);
            ef_free(&b);
        }
}

/* ---- what is kept ---- */

static const float *ef_sorted;
static int ef_by_magnitude(const void *a, const void *b) {
    size_t i = *(const size_t *)a, j = *(const size_t *)b;
    float x = fabsf(ef_sorted[i]), y = fabsf(ef_sorted[j]);
    return x != y ? (x < y) - (x > y) : (i > j) - (i < j);
}

TEST(topk_keeps_what_a_sort_by_magnitude_and_then_index_puts_first) {
    static const size_t sizes[] = {1, 2, 63, 64, 65, 130, 1000, 4099};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t kind = 0; kind < 5; kind++)
            for (size_t part = 0; part < 6; part++) {
                size_t n = sizes[s], keep = 1 + (n - 1) * part / 5;
                char text[60];
                EfLink l;
                snprintf(text, sizeof text, "topk:%.17g", (double)keep / (double)n);
                CHECK_EQ(ef_parse(&l, text, NULL, 0), 0);
                EfBlocks b = ef_blocks(&l, 1, n, part);
                size_t *order = malloc(n * sizeof *order);
                if (!order) abort();
                test_fill(b.x, n, 40 + s);
                for (size_t i = 0; i < n; i++) {
                    order[i] = i;
                    if (kind == 1) b.x[i] = roundf(b.x[i] * 2) / 2; /* ties and zeros */
                    if (kind == 2) b.x[i] = b.x[i] < 0 ? -7 : 7;
                    if (kind == 3) b.x[i] *= 1e-40f;                           /* subnormal */
                    if (kind == 4) b.x[i] = 1 + roundf(b.x[i] * 4) * 0x1p-23f; /* last bits */
                }
                ef_sorted = b.x;
                qsort(order, n, sizeof *order, ef_by_magnitude);
                ef_compress(b.message, b.out, b.x, 1, n, &l, 0, 0, NULL, b.scratch);
                int wrong = 0;
                for (size_t i = 0; i < n; i++)
                    wrong += b.out[order[i]] != (i < keep ? b.x[order[i]] : 0);
                if (wrong) FAIL("n %zu, keep %zu, kind %zu: %d differ", n, keep, kind, wrong);
                free(order);
                ef_free(&b);
            }
}

TEST(coltopk_keeps_the_longest_columns_and_of_equal_ones_the_first) {
    enum { HIGH = 9, WIDE = 70 };
    for (size_t keep = 1; keep <= WIDE; keep += 3)
        for (int equal = 0; equal < 2; equal++) {
            char text[60];
            EfLink l;
            float norm[WIDE];
            size_t order[WIDE];
            snprintf(text, sizeof text, "coltopk:%.17g", (double)keep / WIDE);
            CHECK_EQ(ef_parse(&l, text, NULL, 0), 0);
            EfBlocks b = ef_blocks(&l, HIGH, WIDE, 1);
            test_fill(b.x, b.d, keep);
            for (size_t i = 0; i < b.d; i++) /* three different columns, or all different */
                if (equal) b.x[i] = (float)(1 + i % WIDE % 3) * (float)(i / WIDE);
            for (size_t j = 0; j < WIDE; j++) {
                double sum = 0;
                for (size_t i = 0; i < HIGH; i++) sum += pow((double)b.x[i * WIDE + j], 2);
                norm[j] = (float)sqrt(sum);
                order[j] = j;
            }
            ef_sorted = norm;
            qsort(order, WIDE, sizeof *order, ef_by_magnitude);
            ef_compress(b.message, b.out, b.x, HIGH, WIDE, &l, 0, 0, NULL, b.scratch);
            for (size_t k = 0; k < b.d; k++) {
                size_t at = k / WIDE * WIDE + order[k % WIDE];
                if (b.out[at] != (k % WIDE < keep ? b.x[at] : 0)) FAIL("keep %zu, %zu", keep, at);
            }
            ef_free(&b);
        }
}

/* Error of a low-rank row after `steps` steps on one matrix, as a share of what must be lost. */
static double ef_rank_error(const char *text, const SmKnown *k, size_t m, size_t n, int steps,
                            double discarded) {
    EfLink l;
    CHECK_EQ(ef_parse(&l, text, NULL, 0), 0);
    EfBlocks b = ef_blocks(&l, m, n, 1);
    memcpy(b.x, k->g, b.d * sizeof *b.x);
    for (int step = 0; step < steps; step++)
        ef_compress(b.message, b.out, b.x, m, n, &l, sm_key(7, 8, 0), 0, b.warm, b.scratch);
    double error = ef_distance(b.out, b.x, b.d);
    ef_free(&b);
    return error / discarded;
}

TEST(the_exact_svd_discards_the_smallest_singular_values_and_the_power_iteration_finds_the_same) {
    static const size_t shapes[][2] = {{12, 40}, {40, 12}};
    static SmKnown k;
    double sigma[12], discarded = 0;
    for (size_t i = 0; i < 12; i++) {
        sigma[i] = 4 * pow(0.7, (double)i);
        if (i >= 3) discarded += sigma[i] * sigma[i];
    }
    for (size_t s = 0; s < 2; s++) {
        size_t m = shapes[s][0], n = shapes[s][1];
        sm_known(&k, m, n, 12, sigma, 31);
        CHECK_NEAR(ef_rank_error("svdtopk:25%", &k, m, n, 1, discarded), 1, 1e-4);
        CHECK(ef_rank_error("rankk:25%", &k, m, n, 1, discarded) > 1.001); /* not after one step */
        CHECK_NEAR(ef_rank_error("rankk:25%", &k, m, n, 30, discarded), 1, 1e-3);
        CHECK(ef_rank_error("rankk:100%", &k, m, n, 1, discarded) < 1e-9);
        sm_known(&k, m, n, 3, sigma, 32); /* of rank 3: nearly Gaussian columns find all of it */
        CHECK(ef_rank_error("rankk:25%", &k, m, n, 1, discarded) < 1e-6);
    }
}

/* ---- error feedback ---- */

TEST(the_gap_to_a_fixed_target_shrinks_by_alpha_at_every_step_of_every_deterministic_compressor) {
    static const size_t kinds[] = {0, 8, 3, 12}; /* normal, orthogonal, constant, equal columns */
    EfTried tried[64];
    size_t count = ef_tried(tried);
    for (size_t k = 0; k < count; k++)
        for (size_t c = 0; c < 8 && !tried[k].random; c++) {
            size_t rows = c & 1 ? 26 : 14, cols = c & 1 ? 11 : 37;
            EfBlocks b = ef_blocks(&tried[k].link, rows, cols, 1);
            double alpha = ef_contraction(&tried[k].link, rows, cols);
            ef_tensor(b.x, rows, cols, kinds[c / 2], 3 + c);
            memset(b.out, 0, b.d * sizeof *b.out);
            double energy = ef_energy(b.x, b.d), gap = energy;
            for (uint64_t step = 0; step < 40; step++) {
                ef_send(b.message, b.out, b.x, rows, cols, &tried[k].link, sm_key(3, c, step), 0,
                        b.warm, b.scratch);
                double next = ef_distance(b.out, b.x, b.d);
                double rounding = 2e-6 * gap + 2e-7 * sqrt(gap * energy) + 1e-12 * energy;
                if (!(next <= (1 - alpha) * gap + rounding))
                    FAIL("%s, %s, step %d: from %.3g to %.3g, alpha %.3g", tried[k].text,
                         ef_kinds[kinds[c / 2]], (int)step, gap, next, alpha);
                gap = next;
                if (tried[k].link.row->replaces) CHECK(gap == 0);
            }
            ef_free(&b);
        }
}

enum { EF_WORKERS = 5 };

/* Steps of a group of workers whose targets wander; checks what the server has after each. */
static void ef_group(const EfTried *t, size_t rows, size_t cols, int workers) {
    EfBlocks b = ef_blocks(&t->link, rows, cols, 0), w[EF_WORKERS];
    size_t stride = b.room + 3;
    unsigned char *messages = malloc(stride * EF_WORKERS);
    float *g = calloc(b.d, sizeof *g), *expect = calloc(b.d, sizeof *expect),
          *copy = calloc(b.d, sizeof *copy);
    if (!messages || !g || !expect || !copy) abort();
    for (int j = 0; j < workers; j++) {
        w[j] = ef_blocks(&t->link, rows, cols, 1);
        memset(w[j].out, 0, b.d * sizeof *b.out);
        test_fill(w[j].x, b.d, 60 + (uint64_t)j);
    }
    for (uint64_t step = 0; step < 25; step++) {
        uint64_t coin = test_hash(step);
        size_t bytes = ef_bytes(&t->link, rows, cols, coin);
        double *sum = calloc(b.d, sizeof *sum), drift = 0, scale = 0;
        if (!sum) abort();
        for (int j = 0; j < workers; j++) {
            unsigned char *message = messages + (size_t)j * stride;
            test_fill(b.x, b.d, 1000 + step * EF_WORKERS + (uint64_t)j);
            for (size_t i = 0; i < b.d; i++) w[j].x[i] += 0.1f * b.x[i];
            ef_send(message, w[j].out, w[j].x, rows, cols, &t->link, sm_key(1, (uint64_t)j, step),
                    coin, w[j].warm, w[j].scratch);
            if (j == 0) { /* a receiver follows its sender */
                CHECK_EQ(ef_receive(copy, message, bytes, rows, cols, &t->link, b.scratch), 0);
                CHECK(!memcmp(copy, w[0].out, b.d * sizeof *copy));
            }
            CHECK_EQ(ef_decode(b.out, message, bytes, rows, cols, &t->link, b.scratch), 0);
            for (size_t i = 0; i < b.d; i++) sum[i] += (double)b.out[i];
        }
        for (size_t i = 0; i < b.d; i++) {
            float mean = (float)(sum[i] / workers);
            expect[i] = t->link.row->replaces ? mean : expect[i] + mean;
        }
        CHECK_EQ(ef_aggregate(g, messages, stride, bytes, workers, rows, cols, &t->link, b.scratch),
                 0);
        if (memcmp(g, expect, b.d * sizeof *g) != 0)
            FAIL("%s, %d workers, step %d: not the mean in rank order", t->text, workers,
                 (int)step);
        if (workers == 1) CHECK(!memcmp(g, w[0].out, b.d * sizeof *g));
        for (size_t i = 0; i < b.d; i++) {
            double mean = 0;
            for (int j = 0; j < workers; j++) mean += (double)w[j].out[i] / workers;
            drift += pow(mean - (double)g[i], 2), scale += mean * mean;
        }
        if (!(drift <= 1e-11 * scale)) FAIL("%s: G is off mean G_j by %g", t->text, drift / scale);
        free(sum);
    }
    for (int j = 0; j < workers; j++) ef_free(&w[j]);
    ef_free(&b);
    free(messages), free(g), free(expect), free(copy);
}

/* (1e30 - 1e30) + 1 is 1 in this order only */
TEST(the_aggregate_is_the_mean_in_rank_order_and_stays_the_mean_of_the_workers_estimates) {
    EfTried tried[64];
    size_t count = ef_tried(tried);
    for (size_t k = 0; k < count; k++)
        for (int workers = 1; workers <= EF_WORKERS; workers += 2)
            ef_group(&tried[k], k % 2 ? 19 : 7, k % 2 ? 6 : 23, workers);
    static const float messages[3][2] = {{1e30f, 1}, {-1e30f, 2}, {1, 4}};
    float g[2] = {7, 7};
    EfLink l;
    CHECK_EQ(ef_parse(&l, "damping:1", NULL, 0), 0);
    EfBlocks b = ef_blocks(&l, 1, 2, 0);
    CHECK_EQ(ef_aggregate(g, messages, sizeof *messages, 8, 3, 1, 2, &l, b.scratch), 0);
    CHECK(g[0] == 7 + 1 / 3.0f && g[1] == 7 + 7 / 3.0f);
    ef_free(&b);
}

/* ---- messages ---- */

/* The bits of a message, written down a second time. */
static double ef_ref_bits(const EfTried *t, size_t rows, size_t cols) {
    double m = (double)rows, n = (double)cols, d = m * n, f = t->link.value;
    double word = t->link.natural ? 9 : 32, small = m < n ? m : n;
    const char *name = t->link.row->name;
    double top = floor(f * d + 1e-9), column = floor(f * n + 1e-9), rank = floor(f * small + 1e-9);
    top = top < 1 ? 1 : top, column = column < 1 ? 1 : column, rank = rank < 1 ? 1 : rank;
    if (!strcmp(name, "identity") || !strcmp(name, "damping")) return 32 * d;
    if (!strcmp(name, "natural")) return 9 * d;
    if (!strcmp(name, "sign")) return 32 + d;
    if (!strcmp(name, "dropout")) return f * 32 * d;
    if (!strcmp(name, "topk")) return word * top + fmin(d, top * ceil(log2(d)));
    if (!strcmp(name, "coltopk")) return word * column * m + fmin(n, column * ceil(log2(n)));
    if (!strcmp(name, "rankk") || !strcmp(name, "svdtopk")) return word * rank * (m + n);
    FAIL("nobody has written down the bits of %s", name);
    return 0;
}

TEST(a_message_has_the_bits_of_the_formula_and_decodes_to_what_the_sender_was_told) {
    EfTried tried[64];
    size_t count = ef_tried(tried);
    for (size_t k = 0; k < count; k++)
        for (size_t s = 0; s < EF_SHAPES; s++) {
            const EfLink *l = &tried[k].link;
            EfBlocks b = ef_blocks(l, ef_shapes[s][0], ef_shapes[s][1], s % 8);
            double bits = ef_bits(l, b.rows, b.cols);
            uint64_t coin = 0;
            CHECK_NEAR(bits, ef_ref_bits(&tried[k], b.rows, b.cols), 1e-6);
            while (ef_bytes(l, b.rows, b.cols, coin) == 0) coin++;
            size_t bytes = ef_bytes(l, b.rows, b.cols, coin);
            CHECK_EQ(bytes, ceil(bits / (l->row->coin ? l->value : 1) / 8 - 1e-9));
            float *seen = gemm_block(b.d), *warm = b.warm;
            unsigned char *first = malloc(bytes);
            if (!first) abort();
            for (int fill = 0; fill < 2; fill++) { /* every bit is written, whatever was there */
                ef_tensor(b.x, b.rows, b.cols, s % 4, s + 20);
                memset(b.message, fill ? 0xff : 0, bytes);
                if (warm) memset(warm, 0, ef_warm(l, b.rows, b.cols) * sizeof *warm);
                ef_compress(b.message, b.x, b.x, b.rows, b.cols, l, 99, coin, warm, b.scratch);
                if (fill && memcmp(first, b.message, bytes) != 0) FAIL("%s", tried[k].text);
                memcpy(first, b.message, bytes);
            }
            memset(b.scratch, 0xff, ef_scratch(l, b.rows, b.cols) * sizeof *b.scratch);
            CHECK_EQ(ef_decode(seen, b.message, bytes, b.rows, b.cols, l, b.scratch), 0);
            if (memcmp(seen, b.x, b.d * sizeof *seen) != 0)
                FAIL("%s, %zu x %zu: sender and receiver differ", tried[k].text, b.rows, b.cols);
            free(seen), free(first);
            ef_free(&b);
        }
}

TEST(dropout_sends_nothing_or_all_with_its_probability_and_nothing_decodes_to_zeros) {
    EfLink l;
    CHECK_EQ(ef_parse(&l, "dropout:0.3", NULL, 0), 0);
    EfBlocks b = ef_blocks(&l, 6, 7, 1);
    int sent = 0;
    for (uint64_t coin = 0; coin < 2000; coin++) {
        size_t bytes = ef_bytes(&l, 6, 7, coin);
        test_fill(b.x, b.d, coin + 1);
        ef_compress(b.message, b.out, b.x, 6, 7, &l, 1, coin, NULL, b.scratch);
        CHECK(bytes == 0 || bytes == 4 * 42);
        CHECK(ef_energy(b.out, b.d) == (bytes ? ef_energy(b.x, b.d) : 0));
        sent += bytes != 0;
        test_fill(b.out, b.d, 3);
        if (bytes == 0) CHECK_EQ(ef_decode(b.out, b.message, 0, 6, 7, &l, b.scratch), 0);
        if (bytes == 0) CHECK(ef_energy(b.out, b.d) == 0);
    }
    CHECK_NEAR(sent / 2000.0, 0.3, 4 * sqrt(0.3 * 0.7 / 2000));
    ef_free(&b);
}

/* Decode a copy of exactly these bytes, so that a sanitizer sees what is read behind them: refused
 * or not, what comes out is finite, and nothing when it was refused. */
static int ef_decode_copy(EfBlocks *b, const EfTried *t, const unsigned char *bytes, size_t n) {
    unsigned char *copy = malloc(n + 1);
    if (!copy) abort();
    memcpy(copy + 1, bytes, n);
    for (size_t i = 0; i < b->d; i++) b->out[i] = 0;
    int status = ef_decode(b->out, copy + 1, n, b->rows, b->cols, &t->link, b->scratch);
    CHECK(sm_finite(b->out, b->d));
    if (status) CHECK(ef_energy(b->out, b->d) == 0);
    CHECK(status == 0 || status == -1);
    free(copy);
    return status;
}

/* A message of zeros and ones at chosen places: bit `at` of its plane set. */
static void ef_set(unsigned char *message, size_t at) {
    message[at / 8] |= (unsigned char)(1 << at % 8);
}

TEST(messages_of_another_length_indices_out_of_order_and_stray_bits_are_refused) {
    EfTried tried[64];
    size_t count = ef_tried(tried);
    for (size_t k = 0; k < count; k++)
        for (size_t s = 0; s < EF_SHAPES; s += 3) {
            EfBlocks b = ef_blocks(&tried[k].link, ef_shapes[s][0], ef_shapes[s][1], 0);
            unsigned char *bytes = calloc(b.room + 1, 1);
            int refused = 0;
            if (!bytes) abort();
            for (size_t n = 0; n <= b.room + 1; n++)
                if (n != b.room && !(n == 0 && tried[k].link.row->coin))
                    if (ef_decode_copy(&b, &tried[k], bytes, n) != -1)
                        FAIL("%s: %zu bytes instead of %zu", tried[k].text, n, b.room);
            for (uint64_t seed = 0; seed < 60; seed++) {
                for (size_t i = 0; i < b.room; i++)
                    bytes[i] = (unsigned char)(test_hash(seed << 20 | i) >> 30);
                refused += ef_decode_copy(&b, &tried[k], bytes, b.room) != 0;
            }
            if (b.d > 1000 && tried[k].link.row->values(&tried[k].link, b.rows, b.cols) > 400)
                CHECK(refused > 5); /* some value is not finite */
            memset(bytes, 0xff, b.room);
            CHECK_EQ(ef_decode_copy(&b, &tried[k], bytes, b.room), -1);
            free(bytes);
            ef_free(&b);
        }
    EfTried t = {.text = "topk:3"};
    unsigned char list[12 + 3] = {0}, map[4 * 5 + 2] = {0};
    float estimate[200] = {1, 2, 3}, before[200];
    CHECK_EQ(ef_parse(&t.link, "topk:1.5%", NULL, 0), 0); /* 3 of 200: 8 bits each */
    EfBlocks b = ef_blocks(&t.link, 10, 20, 0);
    CHECK_EQ(b.room, sizeof list);
    memcpy(list + 12, (unsigned char[]){0, 5, 199}, 3);
    CHECK_EQ(ef_decode_copy(&b, &t, list, sizeof list), 0);
    static const unsigned char wrong[][3] = {
        {0, 5, 200}, {0, 5, 5}, {5, 0, 199}, {255, 255, 255}, {0, 0, 0}};
    for (size_t i = 0; i < 5; i++) {
        memcpy(list + 12, wrong[i], 3);
        CHECK_EQ(ef_decode_copy(&b, &t, list, sizeof list), -1);
        memcpy(before, estimate, sizeof before);
        CHECK_EQ(ef_receive(estimate, list, sizeof list, 10, 20, &t.link, b.scratch), -1);
        CHECK_EQ(ef_aggregate(estimate, list, 0, sizeof list, 2, 10, 20, &t.link, b.scratch), -1);
        CHECK(!memcmp(before, estimate, sizeof before));
    }
    memcpy(list + 12, (unsigned char[]){0, 5, 199}, 3);
    list[3] = 0x7f, list[2] = 0x80; /* infinity */
    CHECK_EQ(ef_decode_copy(&b, &t, list, sizeof list), -1);
    ef_free(&b);

    CHECK_EQ(ef_parse(&t.link, "topk:0.5", NULL, 0), 0); /* 5 of 11: 11 bits */
    b = ef_blocks(&t.link, 1, 11, 0);
    CHECK_EQ(b.room, sizeof map);
    for (size_t i = 0; i < 4; i++) ef_set(map + 20, 3 * i);
    CHECK_EQ(ef_decode_copy(&b, &t, map, sizeof map), -1); /* 4 of 5 */
    ef_set(map + 20, 10);
    CHECK_EQ(ef_decode_copy(&b, &t, map, sizeof map), 0);
    ef_set(map + 20, 11);
    CHECK_EQ(ef_decode_copy(&b, &t, map, sizeof map), -1); /* behind the end */
    ef_free(&b);
}

/* ---- text and tables ---- */

TEST(malformed_compressors_are_refused_with_a_sentence_and_leave_the_link_alone) {
    static const char *const wrong[][2] = {{"", "there are identity, topk:F"},
                                           {"top", "not a compressor"},
                                           {"topkk:0.1", "not a"},
                                           {"Natural", "not a compressor"},
                                           {"topk", "0 < F <= 1"},
                                           {"topk:", "0 < F <= 1"},
                                           {"topk:0", "0 < F <= 1"},
                                           {"topk:-0.1", "0 < F <= 1"},
                                           {"topk:1.01", "topk takes"},
                                           {"topk:101%", "topk takes"},
                                           {"topk:nan", "topk takes"},
                                           {"topk:inf", "topk takes"},
                                           {"topk:0.1x", "topk takes"},
                                           {"topk: 0.1", "topk takes"},
                                           {"topk:0x1p-3", "topk takes"},
                                           {"topk:0.1%%", "topk takes"},
                                           {"topk:0.1+", "+natural"},
                                           {"topk:0.1+sign", "+natural"},
                                           {"topk:0.1+naturally", "+natural"},
                                           {"topk:0.1:stochastic", "+natural"},
                                           {"topk:1e999", "topk takes"},
                                           {"topk:1e-999", "topk takes"},
                                           {"topk:0.1+natural+natural", "+natural"},
                                           {"topk:0.1+natural:nearest", "+natural"},
                                           {"rankk:2", "rankk takes"},
                                           {"rankk:.", "rankk takes"},
                                           {"natural:0.5", "natural takes"},
                                           {"natural+natural", "natural takes"},
                                           {"natural:", "natural takes"},
                                           {"sign:1", "no argument"},
                                           {"sign+natural", "no argument"},
                                           {"identity:1", "no argument"},
                                           {"dropout:0", "probability"},
                                           {"dropout:1.5", "probability"},
                                           {"dropout:0.5+natural", "probability"},
                                           {"damping:0", "0 < G < 2"},
                                           {"damping:2", "0 < G < 2"},
                                           {"damping", "0 < G < 2"},
                                           {"coltopk:0.1 ", "coltopk takes"},
                                           {"svdtopk:1,5", "svdtopk takes"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        EfLink l = {NULL, 42, 43, 44};
        char error[300] = "", tight[8] = "1234567";
        if (ef_parse(&l, wrong[i][0], error, sizeof error) != -1 || !strstr(error, wrong[i][1]) ||
            !strstr(error, wrong[i][0]))
            FAIL("'%s': '%s'", wrong[i][0], error);
        CHECK(l.row == NULL && l.value == 42 && l.natural == 43 && l.stochastic == 44);
        CHECK_EQ(ef_parse(&l, wrong[i][0], tight, 5), -1);
        CHECK(tight[4] == 0 && tight[5] == '6');
    }
    EfLink l;
    CHECK_EQ(ef_parse(&l, "topk:12.5%+natural:stochastic", NULL, 0), 0);
    CHECK(l.value == 0.125 && l.natural && l.stochastic && !strcmp(l.row->name, "topk"));
    CHECK_EQ(ef_parse(&l, "damping:1.999", NULL, 0), 0);
    CHECK(l.value == 1.999 && !l.natural && !l.stochastic);
}

TEST(the_papers_cost_table_follows_from_its_accounting_on_the_shapes_of_gpt2) {
    static const struct {
        const char *text;
        double cost;
    } table[] = {{"identity", 1.0000},          {"natural", 0.5000},
                 {"rankk:20%", 0.2687},         {"rankk:15%", 0.2019},
                 {"rankk:15%+natural", 0.1010}, {"rankk:10%", 0.1335},
                 {"rankk:10%+natural", 0.0667}, {"rankk:5%", 0.0667},
                 {"topk:20%", 0.3625},          {"topk:15%", 0.2719},
                 {"topk:15%+natural", 0.1969},  {"topk:10%", 0.1812},
                 {"topk:10%+natural", 0.1312},  {"topk:5%", 0.0906}};
    static const struct {
        size_t copies, rows, cols;
    } gpt2[] = {{1, 50304, 768}, {48, 768, 768}, {12, 3072, 768}, {12, 768, 3072}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        EfLink l;
        double bits = 0, weights = 0;
        CHECK_EQ(ef_parse(&l, table[i].text, NULL, 0), 0);
        for (size_t k = 0; k < 4; k++) {
            bits += (double)gpt2[k].copies * ef_paper_bits(&l, gpt2[k].rows, gpt2[k].cols);
            weights += (double)(gpt2[k].copies * gpt2[k].rows * gpt2[k].cols);
        }
        CHECK_EQ(weights, 123568128);
        if (fabs(bits / (32 * weights) - table[i].cost) > 1e-4)
            FAIL("%s: %.5f, expected %.4f", table[i].text, bits / (32 * weights), table[i].cost);
    }
    EfLink l; /* the singular values weigh less than the table's digits show */
    CHECK_EQ(ef_parse(&l, "rankk:15%+natural", NULL, 0), 0);
    CHECK(ef_paper_bits(&l, 20, 30) == 16 * 3 * 51);
}

/* ------------------------------------------------------------------------------------------------
 * the headers in somebody else's hands */

/* Run a command line; returns its exit status, and its first output in `out`. */
__attribute__((format(printf, 3, 4))) static int sm_shell(char *out, size_t size,
                                                          const char *format, ...) {
    char command[1200];
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof command, format, list);
    va_end(list);
    FILE *f = popen(command, "r");
    if (!f) return -1;
    size_t n = fread(out, 1, size - 1, f);
    out[n] = 0;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void sm_write(const char *directory, const char *name, const char *text, size_t n) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "w");
    if (!f || fwrite(text, 1, n, f) != n) FAIL("cannot write %s", path);
    if (f) fclose(f);
}

static void sm_remove(const char *directory) {
    char out[16];
    CHECK_EQ(sm_shell(out, sizeof out, "rm -rf '%s'", directory), 0);
}

/* The example in a header, as a file whose main has the name of the header. noise.h, whose own
 * example stands in the file of all headers, goes into a second file too. */
static void sm_example(const char *directory, const char *name, const char *first) {
    static char text[20000], program[20000];
    char file[64];
    snprintf(file, sizeof file, "%s.h", name);
    FILE *f = fopen(file, "r");
    CHECK(f != NULL);
    if (!f) return;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    char *begin = strstr(text, first), *end = strstr(text, "\n   MEMORY");
    if (!begin || !end || begin > end) {
        FAIL("there is no program in %s", file);
        return;
    }
    int barriers = strstr(first, "pthread") != NULL; /* POSIX, and C only */
    int n = snprintf(program, sizeof program, "%s#define main %s_main\nint main(void);\n%.*s\n%s",
                     barriers ? "#define _GNU_SOURCE\n" : "", name, (int)(end - begin), begin,
                     barriers ? "#include \"noise.h\"\n" : "");
    snprintf(file, sizeof file, "%s.c", name);
    sm_write(directory, file, program, (size_t)n);
}

/* The examples, and a file that has all headers too, in one program as C11 and, without the two
 * examples that are C only, as C++17. */
TEST(headers_compile_as_c_and_as_cpp_in_files_that_link_and_the_programs_in_them_do_as_they_say) {
    static const struct {
        const char *variable, *fallback, *flags, *c_only;
    } compiler[] = {{"CC", "cc", "-x c -std=c11", "signmuon.c ef21muon.c"},
                    {"CXX", "c++", "-x c++ -std=c++17", ""}};
    static const char all[] =
        "#include \"noise.c\"\n#undef main\n"
        "#include \"signmuon.h\"\n#include \"ef21muon.h\"\n#include \"demuon.h\"\n"
        "int demuon_main(void);\nint signmuon_main(void);\nint ef21muon_main(void);\n"
        "int main(void) {\n"
        "    float g[6] = {3, 0, 0, 0, 2, 0}, o[6], s[300];\n"
        "    EfLink l;\n"
        "    if (sm_lmo_scratch(2, 3) > 300 || !sm_method(\"signmuon\")) return 1;\n"
        "    sm_polar(o, g, 2, 3, sm_newton_schulz(\"exact\"), s);\n"
        "    if (!(o[0] > 0.999f && o[4] > 0.999f && o[1] < 0.001f)) return 2;\n"
        "    if (ef_parse(&l, \"sign\", NULL, 0) || ef_bytes(&l, 3, 5, 0) != 6) return 3;\n"
        "    if (!noise_row(0)) return 4;\n"
        "#ifndef __cplusplus\n"
        "    if (signmuon_main() || ef21muon_main()) return 5;\n"
        "#endif\n"
        "    return demuon_main() || noise_main() ? 6 : 0;\n"
        "}\n";
    static char out[3000];
    char directory[] = "/tmp/test_signmuon_XXXXXX", here[4096], expect[200];
    CHECK(mkdtemp(directory) != NULL && getcwd(here, sizeof here) != NULL);
    sm_example(directory, "signmuon", "\n#include <pthread.h>");
    sm_example(directory, "ef21muon", "\n#include <stdio.h>");
    sm_example(directory, "demuon", "\n#include <stdio.h>");
    sm_example(directory, "noise", "     #include <stdio.h>");
    sm_write(directory, "all.c", all, sizeof all - 1);
    float noise[4] = {0};
    Noise law = noise_test("student:1.5,0.01");
    noise_add(noise, 4, &law, sm_key(1, 0, 0), 0);
    snprintf(expect, sizeof expect, ")\n%g\n%g\n%g\n%g\n", (double)noise[0], (double)noise[1],
             (double)noise[2], (double)noise[3]);
    for (size_t k = 0; k < 2; k++) {
        float vote = 0, target = 0, mean = 0, mean_target = 0, rho = 0, node = 0;
        const char *program =
            getenv(compiler[k].variable) ? getenv(compiler[k].variable) : compiler[k].fallback;
        if (k == 1 && sm_shell(out, sizeof out, "%s --version 2>&1", program)) {
            printf("    no C++ compiler named %s: not tried as C++\n", program);
            continue;
        }
        if (sm_shell(out, sizeof out,
                     "cd %s && %s %s -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror "
                     "-I'%s' -pthread -o all all.c demuon.c %s -lm 2>&1",
                     directory, program, compiler[k].flags, here, compiler[k].c_only) ||
            *out) {
            FAIL("%s: %s", program, out);
            continue;
        }
        CHECK_EQ(sm_shell(out, sizeof out, "%s/all", directory), 0);
        const char *at = out;
        if (k == 0) {
            CHECK_EQ(sscanf(out, "w[4] = %f (target %f)", &vote, &target), 2);
            CHECK_NEAR(target, 0.4, 1e-6);
            CHECK_NEAR(vote, target, 0.03);
            const char *second = strstr(out, "w[6]");
            CHECK(second && sscanf(second, "w[6] = %f (mean target %f)", &mean, &mean_target) == 2);
            CHECK_NEAR(mean_target, 0.2, 1e-6);
            CHECK_NEAR(mean, mean_target, 0.03);
            at = strstr(out, "rho");
        }
        CHECK(at && sscanf(at, "rho %f, x[0] = %f (mean 3.00, median 0)", &rho, &node) == 2);
        CHECK_NEAR(rho, 2.0 / 3, 1e-4);
        CHECK_NEAR(node, 3, 0.02);
        at = strstr(at ? at : out, ")\n");
        if (!at || strcmp(at, expect)) FAIL("%s: '%s', not '%s'", program, out, expect);
    }
    sm_remove(directory);
}

/* ------------------------------------------------------------------------------------------------
 * train_gpt, the program: run as a user runs it, in a directory of its own that each test removes.
 * The binary is ./train_gpt, or what the environment calls TRAIN_GPT. */
#include "safetensors.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A model and a run of some milliseconds per step. */
#define CLI_TINY                                                                                   \
    "--data text.txt --layers 1 --heads 2 --width 32 --context 16 --batch 12 --eval-every 0 "      \
    "--quiet --overwrite "

enum { CLI_HANGS = -1000, CLI_PATIENCE = 60 /* s before a run is called hung */ };

static char cli_program[4096], cli_folder[64], cli_line[8192];
static char cli_out[1 << 16], cli_err[1 << 16]; /* of the last run that ended */
static size_t cli_out_size;
static int cli_held = -1; /* read end of a stderr that waits for its reader */

/* ------------------------------------------------------------------------------------------------
 * files */

/* FOLDER/here/..., where the program runs; four may be held at once */
__attribute__((format(printf, 1, 2))) static const char *cli_path(const char *format, ...) {
    static char path[4][4096];
    static int turn;
    turn = (turn + 1) % 4;
    size_t n = (size_t)snprintf(path[turn], sizeof path[turn], "%s/here/", cli_folder);
    va_list list;
    va_start(list, format);
    vsnprintf(path[turn] + n, sizeof path[turn] - n, format, list);
    va_end(list);
    return path[turn];
}

static void cli_put(const char *name, const void *bytes, size_t n) {
    FILE *file = fopen(cli_path("%s", name), "wb");
    if (!file || fwrite(bytes, 1, n, file) != n || fclose(file)) FAIL("cannot write %s", name);
}

/* Reads a file into text (size bytes, zero-terminated); returns its length, or 0. */
static size_t cli_get(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "rb");
    size_t n = file ? fread(text, 1, size - 1, file) : 0;
    if (file) fclose(file);
    text[n] = 0;
    return n;
}

/* n bytes of pseudo-random words over an alphabet of `letters` strings */
static void cli_write_words(const char *name, size_t n, const char *const *alphabet,
                            size_t letters) {
    uint64_t s = 7;
    char *text = calloc(1, n + 64);
    size_t used = 0;
    while (used < n) {
        uint64_t word = test_hash(s++) % 150;
        for (uint64_t k = 0; k < 1 + test_hash(word) % 6; k++) {
            const char *letter = alphabet[test_hash(word * 16 + k + 1000) % letters];
            memcpy(text + used, letter, strlen(letter));
            used += strlen(letter);
        }
        text[used++] = test_hash(s++) % 10 ? ' ' : '\n';
    }
    cli_put(name, text, used);
    free(text);
}

static const char *const cli_alphabet[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "k", "l",
                                           "m", "n", "o", "p", "r", "s", "t", "u", "w", "y"};

static int cli_remove_one(const char *path, const struct stat *s, int type, struct FTW *where) {
    (void)s, (void)type, (void)where;
    return remove(path);
}

static void cli_remove(const char *path) {
    if (nftw(path, cli_remove_one, 16, FTW_DEPTH | FTW_PHYS)) FAIL("cannot remove %s", path);
}

/* FOLDER/here with text.txt (20 kB) and long.txt (120 kB), in TMPDIR, or on a memory disk, since every
 * checkpoint is synced, or in /tmp */
static void cli_begin(void) {
    const char *program = getenv("TRAIN_GPT"), *place = getenv("TMPDIR");
    if (!place) place = access("/dev/shm", W_OK | X_OK) ? "/tmp" : "/dev/shm";
    if (!realpath(program ? program : "./train_gpt", cli_program))
        FAIL("there is no %s: make train_gpt", program ? program : "./train_gpt");
    snprintf(cli_folder, sizeof cli_folder, "%.40s/test_train_gpt_XXXXXX", place);
    if (!mkdtemp(cli_folder) || mkdir(cli_path("%s", ""), 0777)) FAIL("cannot make %s", cli_folder);
    cli_write_words("text.txt", 20000, cli_alphabet, sizeof cli_alphabet / sizeof *cli_alphabet);
    cli_write_words("long.txt", 120000, cli_alphabet, sizeof cli_alphabet / sizeof *cli_alphabet);
}

static void cli_end(void) {
    cli_remove(cli_folder);
    *cli_folder = 0;
}

/* A hash of every name, kind, inode, size, time of change and byte below FOLDER/here. */
static uint64_t cli_seen;
static int cli_see(const char *path, const struct stat *s, int type, struct FTW *where) {
    static char bytes[1 << 20];
    const uint64_t facts[] = {(uint64_t)type,
                              s->st_ino,
                              (uint64_t)s->st_mtim.tv_sec,
                              (uint64_t)s->st_mtim.tv_nsec,
                              s->st_mode,
                              type == FTW_D ? 0 : (uint64_t)s->st_size};
    uint64_t h = 0;
    (void)where;
    for (const char *c = path; *c; c++) h = test_hash(h ^ (unsigned char)*c);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) h = test_hash(h ^ facts[i]);
    size_t n = type == FTW_F ? cli_get(path, bytes, sizeof bytes) : 0;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    cli_seen += h; /* in any order */
    return 0;
}
static uint64_t cli_snapshot(void) {
    cli_seen = 0;
    if (nftw(cli_path("%s", ""), cli_see, 16, FTW_PHYS)) FAIL("cannot walk %s", cli_folder);
    return cli_seen;
}

/* ------------------------------------------------------------------------------------------------
 * runs */

static double cli_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void cli_rest(void) { nanosleep(&(struct timespec){0, 1000000}, NULL); }

/* In the child: standard input from nowhere, output to files, or stderr to the held pipe. */
static void cli_redirect(int held) {
    char path[128];
    int in = open("/dev/null", O_RDONLY);
    snprintf(path, sizeof path, "%s/stdout", cli_folder);
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    snprintf(path, sizeof path, "%s/stderr", cli_folder);
    int err = held >= 0 ? held : open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(99);
    for (int fd = 3; fd < 256; fd++) close(fd);
}

/* Starts a command line: words between blanks, '...' keeps blanks, leading NAME=VALUE words are
 * environment. hold: stderr is a pipe that takes one write at a time, so that the run stands still in
 * its progress until cli_follow or cli_wait has read it: it is stopped at a step, not at a time. */
static pid_t cli_start_list(int hold, const char *format, va_list list) {
    static char words[8192];
    char *argv[128] = {cli_program}, *environment[8] = {NULL};
    int argc = 1, variables = 0, ends[2] = {-1, -1};
    vsnprintf(cli_line, sizeof cli_line, format, list);
    memcpy(words, cli_line, sizeof words);
    for (char *c = words; *c;) {
        while (*c == ' ') *c++ = 0;
        if (!*c) break;
        char *word = c, *end = c;
        for (int quoted = 0; *c && (quoted || *c != ' '); c++) {
            if (*c == '\'')
                quoted = !quoted;
            else
                *end++ = *c;
        }
        int more = *c == ' ';
        *end = 0;
        c += more;
        if (argc == 1 && *word >= 'A' && *word <= 'Z' && strchr(word, '='))
            environment[variables++] = word;
        else
            argv[argc++] = word;
    }
    if (hold && (pipe2(ends, O_CLOEXEC | O_DIRECT) || fcntl(ends[0], F_SETPIPE_SZ, 4096) < 0 ||
                 fcntl(ends[0], F_SETFL, O_NONBLOCK)))
        FAIL("cannot make a pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        signal(SIGINT, SIG_DFL);
        cli_redirect(ends[1]);
        for (int i = 0; i < variables; i++) putenv(environment[i]);
        if (chdir(cli_path("%s", ""))) _exit(99);
        execv(cli_program, argv);
        _exit(99);
    }
    if (pid < 0) FAIL("cannot fork: %s", strerror(errno));
    setpgid(pid, pid);
    if (hold) close(ends[1]);
    cli_held = ends[0];
    *cli_err = 0;
    return pid;
}

__attribute__((format(printf, 1, 2))) static pid_t cli_start(const char *format, ...) {
    va_list list;
    va_start(list, format);
    pid_t pid = cli_start_list(0, format, list);
    va_end(list);
    return pid;
}
__attribute__((format(printf, 1, 2))) static pid_t cli_start_held(const char *format, ...) {
    va_list list;
    va_start(list, format);
    pid_t pid = cli_start_list(1, format, list);
    va_end(list);
    return pid;
}

/* Takes one write out of the held stderr; returns 0 when there is none. */
static int cli_take(void) {
    size_t used = strlen(cli_err);
    ssize_t n = read(cli_held, cli_err + used, sizeof cli_err - 1 - used);
    cli_err[used + (size_t)(n > 0 ? n : 0)] = 0;
    return n > 0;
}

/* Lets a held run go on until its stderr holds `text`; it then waits within a write or two. */
static void cli_follow(const char *text) {
    double deadline = cli_clock() + CLI_PATIENCE;
    while (!strstr(cli_err, text)) {
        struct pollfd ready = {.fd = cli_held, .events = POLLIN};
        poll(&ready, 1, 1000);
        if ((!cli_take() && (ready.revents & POLLHUP)) || cli_clock() > deadline) {
            FAIL("'%s' never came: %s: %s", text, cli_line, cli_err);
            return;
        }
    }
}

static double cli_peak; /* resident bytes of the last run */

/* Waits for the end of a run; returns its exit status, -SIGNAL, or CLI_HANGS. Fills cli_out, cli_err.
 * deaf: a held stderr is not read while the run lives */
static int cli_wait_for(pid_t pid, double seconds, int deaf) {
    double deadline = cli_clock() + seconds;
    struct stat kind;
    int s = 0, hangs = 0;
    char path[128];
    struct rusage used = {0};
    while (wait4(pid, &s, WNOHANG, &used) == 0) {
        while (cli_held >= 0 && !deaf && cli_take()) continue;
        if (cli_clock() > deadline) {
            FAIL("still runs after %.0f s: %s", seconds, cli_line);
            hangs = 1;
            kill(-pid, SIGKILL);
            waitpid(pid, &s, 0);
            break;
        }
        cli_rest();
    }
    cli_peak = (double)used.ru_maxrss * 1024;
    snprintf(path, sizeof path, "%s/stdout", cli_folder);
    int regular = lstat(path, &kind) == 0 && S_ISREG(kind.st_mode);
    cli_out_size = cli_get(regular ? path : "/dev/null", cli_out, sizeof cli_out);
    snprintf(path, sizeof path, "%s/stderr", cli_folder);
    if (cli_held < 0)
        cli_get(path, cli_err, sizeof cli_err);
    else {
        while (cli_take()) continue;
        close(cli_held);
        cli_held = -1;
    }
    return hangs ? CLI_HANGS : WIFEXITED(s) ? WEXITSTATUS(s) : -WTERMSIG(s);
}
static int cli_wait(pid_t pid, double seconds) { return cli_wait_for(pid, seconds, 0); }

/* A whole run. */
__attribute__((format(printf, 1, 2))) static int cli(const char *format, ...) {
    va_list list;
    va_start(list, format);
    pid_t pid = cli_start_list(0, format, list);
    va_end(list);
    return cli_wait(pid, CLI_PATIENCE);
}

/* A run that must end well. */
#define CLI_OK(...)                                                                                \
    do {                                                                                           \
        int ok_status = cli(__VA_ARGS__);                                                          \
        if (ok_status) FAIL("status %d: %s: %s", ok_status, cli_line, cli_err);                    \
    } while (0)

/* A run that must end with this status and one sentence with `word` in it, and nothing on
 * stdout. */
static void cli_refused(int status, int expected, const char *word) {
    const char *newline = strchr(cli_err, '\n');
    if (status != expected)
        FAIL("status %d, not %d: %s: %s", status, expected, cli_line, cli_err);
    else if (cli_out_size)
        FAIL("something on stdout: %s: %s", cli_line, cli_out);
    else if (!newline || newline[1] || strncmp(cli_err, "train_gpt: ", 11) ||
             newline - cli_err < 20)
        FAIL("not one sentence: %s: %s", cli_line, cli_err);
    else if (!strstr(cli_err, word))
        FAIL("'%s' is not named: %s: %s", word, cli_line, cli_err);
}
#define CLI_REFUSED(expected, word, ...) cli_refused(cli(__VA_ARGS__), expected, word)

/* Waits until FOLDER/here/NAME exists and holds `text`, while pid runs. */
static void cli_await(pid_t pid, const char *name, const char *text) {
    static char bytes[1 << 16];
    double deadline = cli_clock() + CLI_PATIENCE;
    siginfo_t info;
    while (access(cli_path("%s", name), F_OK) ||
           (*text && (cli_get(cli_path("%s", name), bytes, sizeof bytes), !strstr(bytes, text)))) {
        info.si_pid = 0;
        int ended =
            waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
        if (ended || cli_clock() > deadline) {
            FAIL("%s never came: %s", name, cli_line);
            return;
        }
        cli_rest();
    }
}

typedef struct CliClosing {
    double val, best, seconds;
    long steps;
    unsigned long long bytes;
} CliClosing;

/* The closing line of a training run, which must be all there is on stdout. */
static CliClosing cli_closing(void) {
    CliClosing c = {0};
    int n = 0;
    if (sscanf(cli_out, "val_loss %lf best %lf steps %ld seconds %lf bytes_sent %llu%n", &c.val,
               &c.best, &c.steps, &c.seconds, &c.bytes, &n) != 5 ||
        strcmp(cli_out + n, "\n"))
        FAIL("not a closing line: %s: %s", cli_line, cli_out);
    return c;
}

/* A number from the metadata of FOLDER/here/NAME; NaN when there is none. */
static double cli_meta(const char *name, const char *key) {
    char error[512];
    StFile f;
    if (st_open(&f, cli_path("%s", name), error, sizeof error)) {
        FAIL("%s", error);
        return NAN;
    }
    const char *text = st_meta(&f, key);
    double value = text ? strtod(text, NULL) : NAN;
    st_close(&f);
    return value;
}
static long cli_step(const char *out) {
    char name[128];
    snprintf(name, sizeof name, "%s/last/model.safetensors", out);
    return (long)cli_meta(name, "step");
}

/* How many tensors of two files differ in name, shape or any bit; -1 when a file is not
 * readable. */
static int cli_differences(const char *a, const char *b, const char **first) {
    static char name[128];
    char error[512];
    StFile f, g;
    int different = 0;
    *first = "";
    if (st_open(&f, a, error, sizeof error)) return *first = strcpy(name, "unreadable"), -1;
    if (st_open(&g, b, error, sizeof error))
        return st_close(&f), *first = strcpy(name, "unreadable"), -1;
    if (f.n != g.n) different++;
    for (size_t i = 0; i < f.n && f.n == g.n; i++) {
        const StEntry *x = &f.entries[i], *y = &g.entries[i];
        size_t bytes = x->end - x->begin;
        if (strcmp(x->name, y->name) == 0 && strcmp(x->dtype, y->dtype) == 0 &&
            x->rank == y->rank &&
            memcmp(x->shape, y->shape, (size_t)x->rank * sizeof *x->shape) == 0 &&
            y->end - y->begin == bytes && memcmp(st_data(&f, x), st_data(&g, y), bytes) == 0)
            continue;
        if (different++ == 0) snprintf(name, sizeof name, "%s", x->name), *first = name;
    }
    st_close(&f);
    st_close(&g);
    return different;
}

/* Every tensor of OUT/last, of the model and of each worker, must be the same in two runs. */
static void cli_same(const char *a, const char *b, int workers) {
    const char *first;
    for (int r = -1; r < workers; r++) {
        char name[64] = "model.safetensors";
        if (r >= 0) snprintf(name, sizeof name, "worker-%d.safetensors", r);
        int n = cli_differences(cli_path("%s/last/%s", a, name), cli_path("%s/last/%s", b, name),
                                &first);
        if (n)
            FAIL("%d tensors of %s differ, first '%s', between %s and %s: %s", n, name, first, a, b,
                 cli_line);
    }
}

/* Copies line k (from 0) of a text; returns 0 past the end. */
static int cli_text_line(const char *text, int k, char *out, size_t size) {
    while (k-- > 0)
        if ((text = strchr(text, '\n')) == NULL)
            return 0;
        else
            text++;
    if (!*text) return 0;
    snprintf(out, size, "%.*s", (int)strcspn(text, "\n"), text);
    return 1;
}

/* ------------------------------------------------------------------------------------------------
 * the same bits */

/* What may change how a step is computed, with the number of workers. */
static const struct CliVariant {
    int workers;
    const char *line;
} cli_variants[] = {
    {3, "--workers 3 --aux sign"},
    {3, "--workers 3 --method signmuon --aux adamw --dropout 0.1 --nesterov off"},
    {4, "--workers 4 --aux sign --bias --untied"},
    {2,
     "--workers 2 --polar-after-vote --zeros abstain --ties abstain --warmup 5 --schedule cosine"},
    {3, "--workers 3 --method muonusign --aux same --dropout 0.1 --bias"},
    {2, "--workers 2 --method muonsign --aux sign --untied --layers 2"},
    {6, "--workers 6 --method lion --aux same --ties plus --clip 0.3"},
    {3, "--workers 3 --method adamw --schedule wsd --weight-decay 0.1 --coupled-decay"},
    {2, "--workers 2 --method muon --ns polar-express5 --dropout 0.2 --bias --untied"},
    {3, "--workers 3 --method sgd --aux sign --server-map frobenius --momentum 0.9"},
    {1, "--workers 1 --aux sign --worker-map row --dropout 0.1"},
    {3, "--workers 3 --aux sign --dtype bf16"},
    {3, "--workers 3 --method ef21-muon --up rankk:0.2+natural --down topk:0.3 --dropout 0.1"},
    {2, "--workers 2 --method ef21-muonsign --aux lmo --untied --bias"},
    {4, "--workers 4 --method ef21-muon --up dropout:0.5 --down natural:stochastic --aux sign"},
    {3, "--workers 3 --method ef21-signmuon --up coltopk:0.2+natural --norm nuclear"},
    {2, "--workers 2 --method scion-constrained --norm nuclear --radii 1,2,3,4"},
    {4, "--workers 4 --method demuon --topology one-peer --gossip-rounds 3,1"},
    {3, "--workers 3 --method gt-nsgdm --topology directed-ring --gradient-noise student:1.5,1e-4"},
    {3, "--workers 3 --method demuon --mode paper --shards dirichlet:0.3 --eval-nodes always"},
    {4, "--workers 4 --aux sign --adversaries 2 --attack replay"},
    {3, "--workers 3 --method ef21-muon --aux same --adversaries 1 --attack random"},
    {3, "--workers 3 --method demuon --adversaries 1 --attack replay"},
};
enum { CLI_VARIANTS = sizeof cli_variants / sizeof *cli_variants };

TEST(the_dry_run_tells_the_peak_memory_to_a_tenth) {
    static const char *const lines[] = {
        "--workers 1 --method adamw --layers 4 --width 128 --heads 4 --context 256 --batch 8",
        "--workers 3 --aux sign --layers 4 --width 128 --heads 4 --context 128 --batch 12",
        "--workers 2 --method muon --layers 3 --width 96 --context 512 --batch 4 --dtype bf16",
        "--workers 3 --method ef21-muonsign --layers 4 --width 128 --heads 4 --batch 12",
        "--workers 4 --method demuon --layers 4 --width 128 --heads 4 --batch 12"};
    char self[PATH_SIZE - 64] = "", command[PATH_SIZE];
    if (!getenv("TEST_ALONE") && readlink("/proc/self/exe", self, sizeof self - 1) > 0) {
        /* a child's peak begins with its parent's: only a small parent can measure */
        snprintf(command, sizeof command, "TEST_ALONE=1 '%s' the_dry_run_tells", self);
        CHECK_EQ(system(command) / 256, 0);
        return;
    }
    cli_begin();
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        double told = 0;
        CLI_OK(CLI_TINY "--dry-run %s", lines[i]);
        const char *all = strstr(cli_out, "memory in all, MB: ");
        CHECK(all && sscanf(all, "memory in all, MB: %lf", &told) == 1);
        CLI_OK(CLI_TINY "--steps 1 --out a --overwrite %s", lines[i]);
#ifndef __SANITIZE_ADDRESS__
        if (fabs(cli_peak * 1e-6 / told - 1) > 0.1)
            FAIL("told %.1f MB, took %.1f: %s", told, cli_peak * 1e-6, lines[i]);
#endif
    }
    cli_end();
}

TEST(another_seed_gives_another_model) {
    const char *first;
    cli_begin();
    CLI_OK(CLI_TINY "--steps 5 --aux sign --workers 3 --out a --seed 1");
    CLI_OK(CLI_TINY "--steps 5 --aux sign --workers 3 --out b --seed 2");
    CHECK(cli_differences(cli_path("a/last/model.safetensors"),
                          cli_path("b/last/model.safetensors"), &first) >= 4);
    for (int r = 0; r < 3; r++)
        CHECK(cli_differences(cli_path("a/last/worker-%d.safetensors", r),
                              cli_path("b/last/worker-%d.safetensors", r), &first) >= 4);
    CHECK(cli_differences(cli_path("a/last/worker-0.safetensors"),
                          cli_path("a/last/worker-1.safetensors"), &first) >= 4);
    cli_end();
}

/* 2 N steps, but killed in step N + 1 or N + 2, with the checkpoint of step N as the last. */
static void cli_kill_after(int n, const char *out, const char *line) {
    char next[32];
    snprintf(next, sizeof next, "step %d/%d", n + 1, 2 * n);
    pid_t pid = cli_start_held("--data text.txt --val-data short.txt --layers 1 --heads 2 --width "
                               "32 --context 16 --batch 12 "
                               "--overwrite --steps %d --save-every %d --eval-every %d --out %s %s",
                               2 * n, n, n + 1, out, line);
    cli_follow(next);
    kill(pid, SIGKILL);
    CHECK_EQ(cli_wait(pid, CLI_PATIENCE), -SIGKILL);
    CHECK_EQ(cli_step(out), n);
}

static int cli_varies(const char *method) {
    size_t length = strlen(method);
    for (size_t i = 0; i < CLI_VARIANTS; i++) {
        const char *named = strstr(cli_variants[i].line, "--method ");
        if (!named && strcmp(method, "signmuon") == 0) return 1;
        if (named && strcspn(named + 9, " ") == length && !strncmp(named + 9, method, length))
            return 1;
    }
    return 0;
}

TEST(a_run_gives_the_same_bits_whatever_back_end_threads_and_wire_and_killed_and_resumed) {
    char list[8192], row[256], method[64];
    int methods = 0;
    cli_begin();
    cli_write_words("short.txt", 100, cli_alphabet, 21);
    for (size_t i = 0; i < CLI_VARIANTS; i++) {
        static const char *const backend[2] = {"processes", "threads"};
        const struct CliVariant *v = &cli_variants[i];
        char line[512];
        const char *same = CLI_TINY "--val-data short.txt --steps 16";
        CLI_OK("%s --out a --threads 1 %s", same, v->line);
        CLI_OK("%s --out b --threads 2 %s --eval-every 6 --log-every 1 --save-every 5 "
               "--check-every 1",
               same, v->line);
        cli_same("a", "b", v->workers);
        CLI_OK("%s --out b --threads 3 %s --wire int8 --backend processes", same, v->line);
        cli_same("a", "b", v->workers);
        snprintf(line, sizeof line, "%s --backend %s --threads 1", v->line, backend[i % 2]);
        cli_kill_after(8, "c", line);
        CLI_OK("--resume --out c --quiet --backend %s --threads 2", backend[(i + 1) % 2]);
        CHECK_EQ(cli_closing().steps, 16);
        cli_same("a", "c", v->workers);
    }
    CLI_OK("--list methods");
    memcpy(list, cli_out, sizeof list);
    for (int k = 1; cli_text_line(list, k, row, sizeof row); k++) {
        if (sscanf(row, "%63s", method) != 1) continue;
        methods++;
        if (cli_varies(method)) continue;
        CLI_OK(CLI_TINY "--steps 12 --workers 4 --method %s --out a", method);
        CLI_OK(CLI_TINY
               "--steps 12 --workers 4 --method %s --out b --backend processes --threads 2",
               method);
        cli_same("a", "b", 4);
    }
    CHECK(methods >= 10);
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * bytes */

/* Training bytes that a worker has sent, by the state beside the model. */
static double cli_sent(const char *out, int rank) {
    char name[128];
    snprintf(name, sizeof name, "%s/last/worker-%d.safetensors", out, rank);
    return cli_meta(name, "sent_matrices") + cli_meta(name, "sent_auxiliary") +
           cli_meta(name, "sent_control");
}
/* The part of it that went to owners of shards. */
static double cli_sent_up(const char *out, int rank) {
    char name[128];
    snprintf(name, sizeof name, "%s/last/worker-%d.safetensors", out, rank);
    return cli_meta(name, "up_matrices") + cli_meta(name, "up_auxiliary");
}

TEST(what_a_worker_sends_is_the_promised_bits_and_what_a_dry_run_says) {
    static const struct {
        double bits;
        int even;
        const char *line;
    } rows[] = {
        {1.5, 1, "--aux sign"},
        {1.5, 1, "--method signum --aux sign --backend processes"},
        {12, 1, "--aux sign --wire int8"},
        {48, 1, "--method adamw"},
        {48, 1, "--method muon-avgpolar --aux adamw"},
        {48, 1, "--method muon --aux adamw --layers 4"},
        {48, 0,
         "--method muon --aux adamw"}, /* few matrices, each with one owner: the largest sends more */
        {0, 0, "--method muonusign --aux sign"},
        {0, 1, "--method signmuon --aux adamw"},
        {0, 0, "--method ef21-muon"},
        {0, 0, "--method ef21-muonsign --aux lmo"},
        {0, 0, "--method ef21-signmuon --up rankk:0.2+natural --down topk:0.3 --aux sign"},
        {128, 1, "--method demuon --aux lmo"}, /* two neighbours, two exchanges */
        {64, 1, "--method demuon --aux lmo --topology one-peer"},
        {128, 1, "--method demuon --aux lmo --topology one-peer --gossip-rounds 3,1"},
        {0, 1, "--method demuon"},                /* AdamW's moments travel too */
        {48, 0, "--method dsgd --topology star"}, /* six messages for four nodes */
        {128, 1, "--method gt-nsgdm --topology exponential --backend processes"},
    };
    enum { STEPS = 4, WORKERS = 4 };
    cli_begin();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *line = "--data text.txt --layers 2 --heads 2 --width 64 --context 16 --batch "
                           "12 --eval-every 0 --quiet "
                           "--overwrite --out a --workers 4 --steps 4";
        double parameters = 0, predicted = 0, sum = 0, largest = 0, uplink = 0, up = 0;
        CLI_OK("%s %s --dry-run", line, rows[i].line);
        char *text = strstr(cli_out, "vocabulary"), *share = strstr(cli_out, "\nuplink "),
             *sent = strstr(cli_out, "sent by a worker per step, on average: ");
        if (!text || sscanf(text, "vocabulary %*d: %lf parameters", &parameters) != 1 || !sent ||
            sscanf(sent, "sent by a worker per step, on average: %lf bytes", &predicted) != 1)
            FAIL("a dry run that says nothing: %s", cli_out);
        if (share) CHECK_EQ(sscanf(share, " uplink %lf bytes", &uplink), 1);
        CHECK((share != NULL) == (strstr(rows[i].line, "ef21") != NULL));
        CLI_OK("%s %s", line, rows[i].line);
        double closing = (double)cli_closing().bytes / STEPS;
        for (int r = 0; r < WORKERS; r++) {
            double worker = cli_sent("a", r) / STEPS;
            sum += worker, up += cli_sent_up("a", r) / STEPS;
            if (worker > largest) largest = worker;
        }
        if (!(fabs(closing - largest) <= 0.02 * largest))
            FAIL("%s: %.0f is not the largest sender's %.0f", rows[i].line, closing, largest);
        if (!(fabs(sum / WORKERS - predicted) <= 0.02 * predicted))
            FAIL("%s: workers sent %.0f bytes a step, the dry run says %.0f", rows[i].line,
                 sum / WORKERS, predicted);
        if (share && !(fabs(up / WORKERS - uplink) <= 0.01 * uplink))
            FAIL("%s: %.0f bytes a step went up, the dry run says %.0f", rows[i].line, up / WORKERS,
                 uplink);
        if (rows[i].even && !(fabs(closing - predicted) <= 0.02 * predicted))
            FAIL("%s: the largest sent %.0f bytes a step, the dry run says %.0f", rows[i].line,
                 closing, predicted);
        if (rows[i].bits > 0)
            CHECK_NEAR(8 * sum / WORKERS / parameters, rows[i].bits, 0.02 * rows[i].bits);
    }
    CLI_OK(CLI_TINY "--out a --workers 1 --steps 3");
    CHECK_EQ(cli_closing().bytes, 0);
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * wrong use: status 2, one sentence naming the flag, nothing on stdout, nothing touched */

/* Every flag of --help that takes a number or one of some words refuses these. */
static const char *const cli_nonsense[] = {"three", "3x", "-1",  "nan", "inf", "1e99",
                                           "0x10",  "",   "1,5", "1e",  "--",  "1 "};

static const Flag *cli_flag(const char *name) {
    for (size_t i = 0; i < FLAG_COUNT; i++)
        if (strcmp(flags[i].name, name) == 0) return &flags[i];
    FAIL("--help tells of --%s, which is no flag", name);
    return &flags[0];
}

/* A value that the table of flags refuses is tried here, and a process for what only looks at the
 * whole refuses, and for each flag's `first`. */
static void cli_flag_refuses(const Flag *f, const char *value, int first) {
    Options o = {0};
    char error[1024] = "", dashed[80];
    int n = snprintf(dashed, sizeof dashed, "--%s", f->name);
    int refused = flag_parse(&o, f, value, error, sizeof error);
    if (refused && (strncmp(error, dashed, (size_t)n) || error[n] != ' ' || strchr(error, '\n')))
        FAIL("--%s=%s: %s", f->name, value, error);
    if (!refused || first)
        CLI_REFUSED(2, dashed, "--data text.txt --%s=%s%s%s", f->name, *value == '1' ? "'" : "",
                    value, *value == '1' ? "'" : "");
}

TEST(every_flag_refuses_every_malformed_value) {
    enum { NONSENSE = sizeof cli_nonsense / sizeof *cli_nonsense };
    char help[1 << 14], row[512], name[64], value[64], dashed[80];
    int numbers = 0, switches = 0;
    cli_begin();
    CLI_OK("--help");
    memcpy(help, cli_out, sizeof help);
    uint64_t before = cli_snapshot();
    for (int k = 0; cli_text_line(help, k, row, sizeof row); k++) {
        if (strncmp(row, "  --", 4)) continue;
        int fields = sscanf(row, " --%63s %63s", name, value);
        int valued = fields == 2 && row[22] != ' ';
        const Flag *f = cli_flag(name);
        snprintf(dashed, sizeof dashed, "--%s", name);
        if (!valued) {
            cli_flag_refuses(f, "maybe", switches++ % 2);
            cli_flag_refuses(f, "", switches % 2);
            continue;
        }
        CLI_REFUSED(2, dashed, "--%s%s", name, k % 2 ? "" : " --quiet");
        if (strcmp(value, "PATH") == 0 || strcmp(value, "DIR") == 0 || strcmp(value, "TEXT") == 0)
            continue;
        numbers++;
        int none = strcmp(name, "link") == 0 || strcmp(name, "gradient-noise") == 0;
        for (int i = 0; i < NONSENSE; i++) {
            if (none && !*cli_nonsense[i]) continue; /* no link, no noise */
            if (strcmp(name, "gossip-rounds") == 0 && !strcmp(cli_nonsense[i], "1,5")) continue;
            cli_flag_refuses(f, cli_nonsense[i], i == numbers % NONSENSE);
        }
    }
    CHECK(numbers >= 40);
    CHECK(switches >= 8);
    CHECK(before == cli_snapshot());
    cli_end();
}

TEST(wrong_use_ends_with_status_2_and_a_sentence_that_names_the_flag) {
    static const struct {
        const char *word, *line;
    } rows[] = {
        {"'method'", "--metod sgd"},
        {"'workers'", "--worker 3"},
        {"'workers'", "--worker=3"},
        {"--nonsense", "--nonsense"},
        {"--nonsense", "--nonsense=4"},
        {"'signmuon'", "--method signmoun"},
        {"'muon'", "--method muonn"},
        {"--method", "--method zzzzzzzz"},
        {"--aux", "--aux both"},
        {"'cosine'", "--schedule cosin"},
        {"--backend", "--backend mpj"},
        {"--wire", "--wire fp8"},
        {"--norm", "--norm l7"},
        {"--list", "--list nonsense"},
        {"--from", "--from middle --eval"},
        {"--layers", "--layers 0"},
        {"--heads", "--heads 0"},
        {"--width", "--width 0"},
        {"--context", "--context 0"},
        {"--batch", "--batch 0"},
        {"--workers", "--workers 0"},
        {"--workers", "--workers 1025 --batch 1025"},
        {"--threads", "--threads 257"},
        {"--steps", "--steps 1.5"},
        {"--steps", "--steps 3 --steps -3"},
        {"--seed", "--seed 1e16"},
        {"--dropout", "--dropout 1"},
        {"--momentum", "--momentum 1"},
        {"--beta2", "--beta2 1"},
        {"--final-lr", "--final-lr 1.1"},
        {"--cooldown", "--cooldown 2"},
        {"--width", "--data text.txt --width 30 --heads 4"},
        {"--batch", "--data text.txt --batch 10 --workers 3"},
        {"--wire", "--data text.txt --workers 128 --batch 128 --wire int8"},
        {"--link", "--data text.txt --link fast"},
        {"--link", "--data text.txt --link 100mbit"},
        {"--link", "--data text.txt --link 100,5"},
        {"--link", "--data text.txt --link 0mbit,5ms"},
        {"--link", "--data text.txt --link=-1mbit,5ms"},
        {"--link", "--data text.txt --link 100mbit,5ms,"},
        {"--link", "--data text.txt --link nanmbit,5ms"},
        {"--link", "--data text.txt --link 1e308gbit,5ms"},
        {"--link", "--data text.txt --link 1e-320bit,5ms"},
        {"--bias", "--bias=maybe"},
        {"maybe", "--bias maybe"},
        {"stray", "stray"},
        {"stray", "--quiet stray"},
        {"-x", "-x"},
        {"-steps", "-steps 3"},
        {"--resume", "--resume --sample 10"},
        {"--eval", "--eval --sample 10"},
        {"--resume", "--resume --eval"},
        {"--overwrite", "--data text.txt --resume --overwrite --out a"},
        {"GEMM_ISA", "GEMM_ISA=nonsense --data text.txt --out b"},
        {"--warmup", "--data text.txt --warmup 30 --steps 20"},
        {"--norm", "--data text.txt --norm row --method sgd"},
        {"--polar-after-vote", "--data text.txt --polar-after-vote --method muon"},
        {"--method", "--data text.txt --server-map row --method adamw"},
        {"--up", "--data text.txt --up sign"},
        {"--down", "--data text.txt --method muon --down topk:0.1"},
        {"--up", "--data text.txt --method ef21-muon --up topk"},
        {"--up topk:1.5", "--data text.txt --method ef21-muon --up topk:1.5"},
        {"natural", "--data text.txt --method ef21-muon --up sign+natural"},
        {"--down zip", "--data text.txt --method ef21-muon --down zip"},
        {"--down", "--data text.txt --method ef21-muon --down="},
        {"--topology", "--data text.txt --topology ring"},
        {"--topology", "--data text.txt --method ef21-muon --topology complete"},
        {"--mixing", "--data text.txt --method muon --mixing uniform"},
        {"--gossip-rounds", "--data text.txt --method muon --gossip-rounds 2"},
        {"--eval-nodes", "--data text.txt --method scion --eval-nodes never"},
        {"--topology rign", "--data text.txt --method demuon --topology rign"},
        {"--topology", "--data text.txt --method demuon --topology="},
        {"power of two", "--data text.txt --method demuon --workers 3 --topology one-peer"},
        {"row 2", "--data text.txt --method demuon --workers 3 --topology file:row.txt"},
        {"column 0", "--data text.txt --method demuon --workers 3 --topology file:column.txt"},
        {"--workers 2", "--data text.txt --method demuon --workers 3 --topology file:two.txt"},
        {"nowhere.txt", "--data text.txt --method demuon --topology file:nowhere.txt"},
        {"--topology file:", "--data text.txt --method demuon --topology file:"},
        {"--mixing", "--data text.txt --method demuon --mixing thirds"},
        {"--topology star",
         "--data text.txt --method demuon --workers 4 --topology star --mixing uniform"},
        {"--gossip-rounds", "--data text.txt --method demuon --gossip-rounds 0"},
        {"--gossip-rounds", "--data text.txt --method demuon --gossip-rounds 3,0"},
        {"--gossip-rounds", "--data text.txt --method demuon --gossip-rounds 1001"},
        {"--gossip-rounds", "--data text.txt --method demuon --gossip-rounds 1,2,3"},
        {"--gossip-rounds", "--data text.txt --method demuon --gossip-rounds ' 1'"},
        {"--aux", "--data text.txt --method demuon --aux sign"},
        {"--aux", "--data text.txt --method adamw --aux lmo"},
        {"--server-map", "--data text.txt --method demuon --server-map spectral"},
        {"--worker-map", "--data text.txt --method gt-nsgdm --worker-map spectral"},
        {"--input-norm", "--data text.txt --input-norm row"},
        {"--output-norm", "--data text.txt --method muon --output-norm row"},
        {"--vector-norm", "--data text.txt --method demuon --vector-norm rms"},
        {"--radii", "--data text.txt --radii 1,2,3"},
        {"--radii", "--data text.txt --radii 1,2,3,4,5"},
        {"--radii", "--data text.txt --radii 1,2,3,-4"},
        {"--radii", "--data text.txt --radii 1,2,3,inf"},
        {"--radii", "--data text.txt --radii huge"},
        {"--momentum-start", "--data text.txt --momentum-start now"},
        {"--mode", "--data text.txt --mode paper --method muon"},
        {"--momentum", "--data text.txt --method gluon --momentum 0.9"},
        {"--weight-decay", "--data text.txt --method scion-constrained --weight-decay 0.1"},
        {"--mode", "--data text.txt --mode papr --method demuon"},
        {"--exact", "--data text.txt --exact"},
        {"--exact", "--exact --resume --out a"},
        {"--shards", "--data text.txt --shards junk"},
        {"--shards", "--data text.txt --shards dirichlet:0"},
        {"--shards", "--data text.txt --shards file:"},
        {"nowhere.txt", "--data text.txt --shards file:nowhere.txt"},
        {"--gradient-noise", "--data text.txt --gradient-noise junk"},
        {"--gradient-noise", "--data text.txt --gradient-noise gaussian"},
        {"--gradient-noise", "--data text.txt --gradient-noise student:1,1e-3"},
        {"--data", "--data="},
        {"--out", "--data text.txt --out="},
        {"--prompt", "--sample 5 --out a --prompt 'aXb'"},
        {"UTF-8", "--data \xff.txt"},
        {"--adversaries", "--workers 3 --adversaries 3"},
        {"--adversaries", "--workers 3 --adversaries -1"},
        {"--adversaries", "--attack flip"},
        {"'flip'", "--workers 3 --adversaries 1 --attack flop"},
        {"scale:-10", "--workers 3 --adversaries 1 --attack scale"},
        {"scale:-10", "--workers 3 --adversaries 1 --attack scale:1x"},
        {"scale:-10", "--workers 3 --adversaries 1 --attack scale:inf"},
        {"no argument", "--workers 3 --adversaries 1 --attack zero:1"},
        {"--expel", "--workers 3 --method muon --expel"},
        {"--expel", "--workers 3 --method demuon --expel"},
        {"--wire", "--workers 3 --expel --wire int8"},
        {"--zeros", "--workers 3 --expel --zeros abstain"},
        {"3 or more", "--workers 2 --expel"},
        {"--expel", "--workers 3 --expel-after 9"},
        {"--expel-after", "--workers 3 --expel --expel-after 0"},
    };
    static const char row[] = "0.5 0.5 0\n0.5 0.25 0.25\n0 0.25 0.7\n",
                      column[] = "0.5 0.5 0\n0.25 0.25 0.5\n0 0.5 0.5\n", two[] = ".5 .5\n.5 .5\n";
    cli_begin();
    cli_put("row.txt", row, strlen(row));
    cli_put("column.txt", column, strlen(column));
    cli_put("two.txt", two, strlen(two));
    CLI_OK(CLI_TINY "--out a --steps 2");
    uint64_t before = cli_snapshot();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CLI_REFUSED(2, rows[i].word, "%s", rows[i].line);
    char lengthy[5001];
    memset(lengthy, 'z', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = 0;
    CLI_REFUSED(2, "zzz", "--%s", lengthy);
    CLI_REFUSED(2, "--method", "--method %s", lengthy);
    CLI_REFUSED(2, "--steps", "--steps %s", lengthy);
    CHECK(before == cli_snapshot());
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * the outside world fails: status 1, one sentence */

/* Writes tokens in llm.c's format; the file ends `missing` bytes early. */
static void cli_write_shard(const char *name, uint32_t count, size_t missing) {
    uint32_t header[256] = {20240520, 1, count};
    char *bytes = calloc(1, sizeof header + 2 * (size_t)count);
    memcpy(bytes, header, sizeof header);
    for (size_t i = 0; i < count; i++) {
        uint64_t token = 100 + test_hash(i % 97) % 50;
        bytes[sizeof header + 2 * i] = (char)(token & 0xff);
        bytes[sizeof header + 2 * i + 1] = (char)(token >> 8);
    }
    cli_put(name, bytes, sizeof header + 2 * (size_t)count - missing);
    free(bytes);
}

TEST(unusable_data_ends_with_status_1_and_a_sentence_that_names_the_file) {
    cli_begin();
    cli_put("empty.txt", "", 0);
    cli_put("one.txt", "a", 1);
    cli_put("small.txt", "to be or not to be, that is the question", 40);
    cli_put("latin.txt", "caf\xe9 caf\xe9 caf\xe9", 14);
    cli_write_shard("cut.bin", 2000, 100);
    cli_write_shard("none.bin", 0, 0);
    cli_write_shard("half.bin", 2000, 2 * 2000 + 512);
    mkdir(cli_path("folder"), 0777);
    static const struct {
        const char *word, *line;
    } rows[] = {
        {"missing.txt", "--data missing.txt"},
        {"folder", "--data folder"},
        {"empty.txt", "--data empty.txt"},
        {"one.txt", "--data one.txt"},
        {"small.txt", "--data small.txt --context 64"},
        {"small.txt", "--data small.txt --context 8 --workers 12"},
        {"cut.bin", "--data cut.bin"},
        {"none.bin", "--data none.bin"},
        {"half.bin", "--data half.bin"},
        {"nothing-*.bin", "--data 'nothing-*.bin'"},
        {"text.txt/x", "--data text.txt/x"},
        {"missing.txt", "--data text.txt --val-data missing.txt"},
        {"empty.txt", "--data text.txt --val-data empty.txt"},
        {"latin.txt", "--data latin.txt --vocab chars --context 2"},
    };
    uint64_t before = cli_snapshot();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        CLI_REFUSED(1, rows[i].word, "--out a %s", rows[i].line);
    CLI_REFUSED(1, "missing.txt", "--dry-run --data missing.txt");
    CHECK(before == cli_snapshot());
    if (geteuid() != 0) {
        chmod(cli_path("one.txt"), 0);
        CLI_REFUSED(1, "one.txt", "--data one.txt --out a");
        mkdir(cli_path("locked"), 0555);
        CLI_REFUSED(1, "locked", CLI_TINY "--out locked");
        CLI_REFUSED(1, "locked", CLI_TINY "--out locked/a");
    }
    cli_end();
}

TEST(an_output_directory_that_cannot_be_or_holds_none_or_another_checkpoint_is_status_1) {
    cli_begin();
    uint64_t before = cli_snapshot();
    CLI_REFUSED(1, "--out", CLI_TINY "--out text.txt");
    CLI_REFUSED(1, "--out", CLI_TINY "--out text.txt/a/b");
    CLI_REFUSED(1, "resume", "--resume --out a");
    CLI_REFUSED(1, "--out", "--sample 5 --out a");
    CLI_REFUSED(1, "--out", "--eval --out a");
    CHECK(before == cli_snapshot());
    CLI_OK(CLI_TINY "--out a --steps 5");
    before = cli_snapshot();
    CLI_REFUSED(1, "--overwrite",
                "--data text.txt --layers 1 --heads 2 --width 32 --context 16 --out a --steps 5");
    CHECK(before == cli_snapshot());
    CLI_OK(CLI_TINY "--out a --steps 6 --overwrite");
    CHECK_EQ(cli_step("a"), 6);
    cli_end();
}

/* Flips one bit of FOLDER/here/NAME, or flips it back. */
static void cli_flip(const char *name, long at) {
    FILE *file = fopen(cli_path("%s", name), "r+b");
    if (!file) {
        FAIL("cannot open %s", name);
        return;
    }
    fseek(file, at, at < 0 ? SEEK_END : SEEK_SET);
    int c = fgetc(file);
    fseek(file, -1, SEEK_CUR);
    fputc(c ^ 4, file);
    fclose(file);
}

TEST(a_damaged_or_incomplete_checkpoint_is_refused_and_left_alone) {
    static const char *const backend[] = {"threads", "processes"};
    cli_begin();
    CLI_OK(CLI_TINY "--out a --steps 6 --workers 3"); /* one generation, nothing to fall back to */
    CLI_OK(CLI_TINY "--out b --steps 4 --workers 3 --aux sign");
    for (long at = -5; at < 2000; at += 401) {
        cli_flip("a/last/model.safetensors", at);
        uint64_t before = cli_snapshot();
        CLI_REFUSED(1, "model.safetensors", "--resume --out a --steps 9");
        CLI_REFUSED(1, "model.safetensors", "--eval --out a");
        CLI_REFUSED(1, "model.safetensors", "--sample 5 --out a");
        CHECK(before == cli_snapshot());
        cli_flip("a/last/model.safetensors", at);
    }
    for (int k = 0; k < 2; k++) { /* what only a worker notices */
        CLI_OK("--eval --out a");
        cli_flip("a/last/worker-1.safetensors", -100);
        CLI_REFUSED(1, "worker-1.safetensors", "--resume --out a --quiet --backend %s", backend[k]);
        cli_flip("a/last/worker-1.safetensors", -100);
        rename(cli_path("a/last/worker-2.safetensors"), cli_path("kept"));
        CLI_REFUSED(1, "worker-2.safetensors", "--resume --out a --quiet --backend %s", backend[k]);
        symlink(cli_path("a/last/worker-1.safetensors"), cli_path("a/last/worker-2.safetensors"));
        CLI_REFUSED(1, "worker-2.safetensors", "--resume --out a --quiet --backend %s", backend[k]);
        unlink(cli_path("a/last/worker-2.safetensors"));
        symlink(cli_path("b/last/worker-2.safetensors"), cli_path("a/last/worker-2.safetensors"));
        CLI_REFUSED(1, "worker-2.safetensors", "--resume --out a --quiet --backend %s", backend[k]);
        unlink(cli_path("a/last/worker-2.safetensors"));
        rename(cli_path("kept"), cli_path("a/last/worker-2.safetensors"));
    }
    CLI_OK("--resume --out a --steps 9 --quiet");
    CHECK_EQ(cli_step("a"), 9);
    for (int r = 0; r < 3; r++) unlink(cli_path("b/last/worker-%d.safetensors", r));
    for (int k = 0; k < 6; k++) /* when all workers fail, still one speaks */
        CLI_REFUSED(1, "b/last/worker-", "--resume --out b --steps 9 --quiet --backend %s",
                    backend[k % 2]);
    cli_end();
}

TEST(what_cannot_be_written_is_status_1_and_leaves_the_checkpoint_before_it) {
    static const char *const backend[] = {"threads", "processes"};
    cli_begin();
    for (int k = 0; k < 2; k++) {
        CLI_OK(CLI_TINY "--out good --steps 4 --workers 3");
        CLI_OK(CLI_TINY "--out a --steps 4 --workers 3");
        mkdir(cli_path("a/.last.1"), 0777);
        mkdir(cli_path("a/.last.1/worker-1.safetensors"), 0777); /* where its file belongs */
        CLI_REFUSED(1, "worker-1.safetensors", "--resume --out a --steps 8 --quiet --backend %s",
                    backend[k]);
        cli_same("a", "good", 3);
        rmdir(cli_path("a/.last.1/worker-1.safetensors"));
        cli_remove(cli_path("a/.last.1"));
        cli_put("a/.last.1", "", 0);
        CLI_REFUSED(1, ".last.1", "--resume --out a --steps 8 --quiet --backend %s", backend[k]);
        cli_same("a", "good", 3);
        unlink(cli_path("a/.last.1"));
        CLI_OK("--resume --out a --steps 8 --quiet");
        cli_remove(cli_path("a"));
    }
    static const char *const lines[] = {
        "--sample 20 --prompt a", "--eval",   "--dry-run", "--resume --quiet", "--help",
        "--list methods",         "--version"};
    if (access("/dev/full", W_OK)) {
        cli_end();
        return;
    }
    CLI_OK(CLI_TINY "--out a --steps 2");
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/stdout", cli_folder);
        unlink(path);
        if (symlink("/dev/full", path)) FAIL("cannot link %s", path);
        CLI_REFUSED(1, "cannot write", "--data text.txt --out a %s", lines[i]);
        unlink(path);
    }
    struct rlimit before, limit;
    CLI_OK(CLI_TINY "--out good --steps 4 --workers 3");
    CLI_OK(CLI_TINY "--out a --steps 4 --workers 3");
    getrlimit(RLIMIT_FSIZE, &before);
    limit = (struct rlimit){60000, before.rlim_max}; /* log and worker-1 have room, the model not */
    for (int k = 0; k < 2; k++) {
        setrlimit(RLIMIT_FSIZE, &limit);
        int status = cli("--resume --out a --steps 8 --quiet --backend %s", backend[k]);
        setrlimit(RLIMIT_FSIZE, &before);
        cli_refused(status, 1, "File too large");
        cli_same("a", "good", 3);
    }
    CLI_OK("--resume --out a --steps 8 --quiet");
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * divergence: status 3 */

TEST(a_diverging_run_names_a_tensor_at_its_last_step_too_and_leaves_the_checkpoint_before_it) {
    static const char *const backend[] = {"threads", "processes"};
    cli_begin();
    CLI_OK(CLI_TINY "--out good --steps 8 --workers 3 --method sgd");
    for (int k = 0; k < 2; k++) {
        CLI_OK(CLI_TINY "--out a --steps 8 --workers 3 --method sgd");
        CLI_REFUSED(3, "transformer.",
                    CLI_TINY "--out a --steps 20 --workers 3 --method sgd --lr 1e6 --backend %s",
                    backend[k]);
        cli_same("a", "good", 3);
        CLI_OK("--eval --out a");
    }
    /* saved at every step, and evaluated at every step: what stands there is still finite */
    CLI_REFUSED(3, "transformer.",
                CLI_TINY
                "--out b --steps 20 --method adamw --lr 1e6 --weight-decay 1e3 --schedule constant "
                "--save-every 1 --eval-every 1");
    char error[512];
    StFile f;
    if (st_open(&f, cli_path("b/last/model.safetensors"), error, sizeof error)) FAIL("%s", error);
    for (size_t i = 0; i < f.n; i++)
        for (size_t j = 0; j < f.entries[i].count; j++) {
            float x;
            memcpy(&x, (const char *)st_data(&f, &f.entries[i]) + 4 * j, 4);
            if (isfinite(x)) continue;
            FAIL("%s holds %g", f.entries[i].name, (double)x);
            break;
        }
    st_close(&f);
    for (int steps = 1; steps < 8; steps++) {
        int status =
            cli(CLI_TINY
                "--out a --steps %d --method adamw --lr 1e6 --weight-decay 1e3 --schedule constant",
                steps);
        if (status == 0)
            CHECK(isfinite(cli_closing().val));
        else
            cli_refused(status, 3, "transformer.");
    }
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * liars: who sends what cannot be used is named, who dissents is put out */

TEST(who_sends_nan_or_a_malformed_message_is_named_and_nothing_of_it_is_saved) {
    static const struct {
        const char *where, *line;
    } rows[] = {
        {"weight at step 1:", "--method sgd"},
        {"weight at step 1:", "--method signmuon --aux adamw --backend processes"},
        {"the report of its gradient's norm at step 1:", "--method signmuon --aux sign"},
        {"the report of its gradient's norm at step 1:", "--method ef21-muon --aux sign"},
        {"weight at step 1:", "--method ef21-muon --aux adamw"},
        {"weight at step 1:", "--method ef21-muonsign --aux same --backend processes"},
        {"weight at step 1:", "--method demuon --gossip-rounds 3"},
        {"weight at step 1:", "--method dsgd --topology star --backend processes"},
    };
    cli_begin();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int status = cli(CLI_TINY "--out a --steps %d --save-every 1 --eval-every 1 "
                                  "--workers 6 --adversaries 2 --attack nan %s",
                         i % 4 < 2 ? 1 : 5, rows[i].line);
        cli_refused(status, 3, rows[i].where);
        cli_refused(status, 3, "worker 4 sent NaN in ");
        CHECK(access(cli_path("a/last"), F_OK)); /* and best is of before the first step */
        CHECK_NEAR(cli_meta("a/best/model.safetensors", "step"), 0, 0);
    }
    static const char *const lines[] = {"--method signmuon --aux sign --width 30",
                                        "--method muonsign --backend processes --width 30",
                                        "--method signum --wire int8", "--method ef21-muon",
                                        "--method ef21-muon --aux sign --save-every 1"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        CLI_REFUSED(
            1, "worker 4 sent a malformed message in transformer.h.0.attn.c_attn.weight at step 1:",
            CLI_TINY "--out a --steps 3 --workers 6 --adversaries 2 --attack garble %s", lines[i]);
    CHECK(access(cli_path("a/last"), F_OK));
    cli_end();
}

/* A row of 40 is what honest workers never come near. */
TEST(honest_workers_are_never_long_against_the_others_and_flippers_are_out_at_exactly_step_k) {
    static const char *const lines[] = {
        "--workers 3 --aux sign --batch 12", "--workers 6 --batch 12",
        "--workers 7 --method signum --batch 14", "--workers 4 --method muonsign --batch 12"};
    cli_begin();
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        unsigned longest = 99;
        CLI_OK("--data text.txt --layers 1 --heads 2 --width 32 --context 16 --eval-every 0 "
               "--overwrite --out a --steps 100 --expel %s",
               lines[i]);
        const char *told = strstr(cli_err, "longest row of steps");
        CHECK(told && sscanf(told, "longest row of steps against the others: %u", &longest) == 1);
        if (longest >= 20) FAIL("a row of %u steps: %s", longest, lines[i]);
    }
    CLI_OK(
        "--data text.txt --layers 1 --heads 2 --width 64 --context 16 --eval-every 0 --overwrite "
        "--out b --batch 14 --workers 7 --adversaries 1 --expel --steps 60");
    CHECK(strstr(cli_err, "worker 6 was voted out in step 40; 6 go on from its start\n"));
    CHECK_EQ((int)cli_meta("b/last/model.safetensors", "workers"), 6);
    CHECK_EQ((int)cli_meta("b/last/model.safetensors", "adversaries"), 0);
    CLI_OK("--resume --quiet --out b --steps 62");
    cli_end();
}

TEST(an_expulsion_gives_the_same_bits_on_threads_and_processes_and_after_a_resume) {
    static const char *const backend[] = {"threads", "processes"};
    cli_begin();
    for (int k = 0; k < 2; k++) {
        CLI_OK(CLI_TINY "--out a%d --batch 14 --workers 7 --adversaries 3 --expel --expel-after 9 "
                        "--steps 30 --backend %s --method signum --aux same",
               k, backend[k]);
        for (int r = 4; r < 7; r++) {
            char line[64];
            snprintf(line, sizeof line, "worker %d was voted out in step ", r);
            const char *told = strstr(cli_err, line);
            long step = told ? strtol(told + strlen(line), NULL, 10) : 0;
            if (step < 9 || step > 13) FAIL("%s: worker %d left in step %ld", backend[k], r, step);
        }
        CHECK(strstr(cli_err, "; 4 go on from its start"));
        CHECK_EQ(cli_closing().steps, 30);
    }
    cli_same("a0", "a1", 4);
    CLI_OK(CLI_TINY "--out b --batch 14 --workers 7 --adversaries 3 --expel --expel-after 9 "
                    "--steps 30 --save-every 5 --method signum --aux same --keep 8");
    cli_same("a0", "b", 4);
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * deaths and signals */

/* State letter and parent of a process, from /proc; 0 when there is none. */
static char cli_state(pid_t pid, long *parent) {
    char path[64], text[512], letter = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    const char *end = cli_get(path, text, sizeof text) ? strrchr(text, ')') : NULL;
    return end && sscanf(end + 1, " %c %ld", &letter, parent) == 2 ? letter : 0;
}
static int cli_alive(pid_t pid) {
    long parent;
    char state = cli_state(pid, &parent);
    return state && state != 'Z' && state != 'X';
}

/* The children of a process in the order of their numbers; returns how many, at most `room`. */
static int cli_children(pid_t pid, pid_t *child, int room) {
    DIR *all = opendir("/proc");
    int n = 0;
    for (struct dirent *d; all && (d = readdir(all)) != NULL;) {
        long parent, number = strtol(d->d_name, NULL, 10);
        if (number <= 0 || !cli_state((pid_t)number, &parent) || parent != (long)pid || n == room)
            continue;
        int at = n++;
        for (; at > 0 && child[at - 1] > number; at--) child[at] = child[at - 1];
        child[at] = (pid_t)number;
    }
    if (all) closedir(all);
    return n;
}

/* Names in a directory, as a hash, without our own. */
static uint64_t cli_names(const char *path) {
    uint64_t sum = 0;
    DIR *all = opendir(path);
    for (struct dirent *d; all && (d = readdir(all)) != NULL;) {
        uint64_t h = 0;
        for (const char *c = d->d_name; *c; c++) h = test_hash(h ^ (unsigned char)*c);
        if (strncmp(d->d_name, "test_train_gpt_", 15)) sum += h; /* another run of these tests */
    }
    if (all) closedir(all);
    return sum;
}

/* All of them must be gone within a second of now. */
static void cli_gone(const pid_t *child, int n) {
    double deadline = cli_clock() + 1;
    for (int i = 0; i < n; i++) {
        while (cli_alive(child[i]) && cli_clock() < deadline) cli_rest();
        if (cli_alive(child[i])) FAIL("process %ld still lives: %s", (long)child[i], cli_line);
    }
}

static const char cli_endless[] = CLI_TINY "--backend processes --workers 3 --threads 1 --steps "
                                           "100000000 --log-every 0 --save-every 3 --out a";

enum { CLI_LOST_STEPS = 250 };

/* Starts four processes, loses one of them once the log has a row, waits for the end. Returns the step
 * that the survivors went back to; -1 when they did not. */
static long cli_lose(int victim, int how, const char *line) {
    if (access(cli_path("a"), F_OK) == 0) cli_remove(cli_path("a"));
    pid_t child[8],
        pid = cli_start("--data text.txt --layers 1 --heads 2 --width 32 --context 16 --batch 12 "
                        "--eval-every 0 --overwrite --backend processes --workers 4 --threads 1 "
                        "--schedule constant --warmup 0 --steps %d --log-every 1 --save-every 0 "
                        "--check-every 1 --on-death continue --timeout 1 --out a %s",
                        CLI_LOST_STEPS, line);
    cli_await(pid, "a/log.csv", "\n8,");
    if (cli_children(pid, child, 8) == 4) kill(child[victim], how);
    int status = cli_wait(pid, CLI_PATIENCE);
    const char *told = strstr(cli_err, " in step ");
    if (status || !told) FAIL("status %d: %s: %s", status, cli_line, cli_err);
    cli_gone(child, 4);
    return told ? strtol(told + 9, NULL, 10) - 1 : -1;
}

TEST(any_worker_may_die_and_survivors_go_on_as_if_the_run_had_been_resumed_without_it) {
    static const char *const line[] = {
        "--method muon --dropout 0.1",
        "--method ef21-muon --up rankk:0.2+natural --down topk:0.1",
        "--method demuon --topology exponential",
        "--method signmuon --aux sign --shards contiguous --polar-after-vote",
    };
    static char log[1 << 17];
    cli_begin();
    for (int k = 0; k < 4; k++) {
        long step = cli_lose(3, k == 0 ? SIGSTOP : SIGKILL, line[k]);
        CHECK(strstr(cli_err, k == 0 ? "kept the others waiting" : "signal 9"));
        CHECK_EQ(cli_closing().steps, CLI_LOST_STEPS);
        CHECK_EQ((long)cli_meta("a/last/model.safetensors", "workers"), 3);
        CLI_OK("--data text.txt --layers 1 --heads 2 --width 32 --context 16 --batch 12 "
               "--eval-every 0 --overwrite --workers 4 --schedule constant --warmup 0 --steps %ld "
               "--quiet --out b %s",
               step, line[k]);
        CLI_REFUSED(2, "--resume-workers", "--resume --workers 3 --batch 9 --steps 400 --out b");
        CLI_OK("--resume --workers 3 --batch 9 --resume-workers keep --steps %d --quiet --out b",
               CLI_LOST_STEPS);
        cli_same("a", "b", 3);
        cli_get(cli_path("a/log.csv"), log, sizeof log);
        for (int i = 0; i < CLI_LOST_STEPS; i++) { /* each once, with the workers that took it */
            char row[1024], size = i < step ? '4' : '3';
            if (!cli_text_line(log, i + 1, row, sizeof row) || strtol(row, NULL, 10) != i + 1 ||
                row[strlen(row) - 1] != size)
                FAIL("row %d of the log is %s, death in step %ld", i, row, step + 1);
        }
    }
    for (int victim = 0; victim < 2; victim++) { /* the first, and one between others */
        cli_lose(victim, SIGKILL, "--aux sign");
        CHECK_EQ(cli_closing().steps, CLI_LOST_STEPS);
        CLI_OK("--eval --out a");
        CLI_OK("--resume --out a --steps %d --quiet", CLI_LOST_STEPS + 2);
    }
    cli_end();
}

TEST(a_graph_that_falls_apart_ends_the_run_and_one_that_does_not_can_be_resumed) {
    static const char chain[] = "0.5 0.5 0 0\n0.5 0 0.5 0\n0 0.5 0 0.5\n0 0 0.5 0.5\n";
    cli_begin();
    FILE *f = fopen(cli_path("chain"), "w");
    if (f) fputs(chain, f), fclose(f);
    cli_lose(3, SIGKILL, "--method demuon --topology file:chain");
    CLI_OK("--resume --out a --steps %d --quiet", CLI_LOST_STEPS + 2);
    pid_t child[8],
        pid = cli_start(CLI_TINY "--backend processes --workers 4 --method demuon --topology "
                                 "file:chain --steps 100000000 --save-every 3 --on-death continue "
                                 "--out a");
    cli_await(pid, "a/last/worker-3.safetensors", "");
    if (cli_children(pid, child, 8) == 4) kill(child[1], SIGKILL);
    cli_refused(cli_wait(pid, 5), 1, "not connected");
    CLI_OK("--eval --out a");
    cli_end();
}

enum { CLI_MOMENTUM = 128 * 32 };

/* The momentum of a matrix out of worker r's file. */
static void cli_momentum(const char *out, int r, float *m) {
    char error[512] = "";
    StFile f;
    if (st_open(&f, cli_path("%s/last/worker-%d.safetensors", out, r), error, sizeof error) ||
        st_read_f32(&f, "momentum.transformer.h.0.mlp.c_fc.weight", m, CLI_MOMENTUM, error,
                    sizeof error))
        FAIL("%s", error);
    st_close(&f);
}

TEST(momenta_of_another_number_of_workers_are_kept_averaged_or_zeroed_as_asked) {
    static const char *const policy[] = {"keep", "mean", "zero"};
    static float before[4][CLI_MOMENTUM], mean[CLI_MOMENTUM], after[CLI_MOMENTUM];
    cli_begin();
    for (int k = 0; k < 6; k++) {
        int workers = k % 2 ? 6 : 2;
        CLI_OK(CLI_TINY "--workers 4 --steps 6 --out a");
        memset(mean, 0, sizeof mean);
        for (int r = 0; r < 4; r++) {
            cli_momentum("a", r, before[r]);
            for (int i = 0; i < CLI_MOMENTUM; i++) mean[i] += before[r][i] / 4;
        }
        CLI_OK("--resume --out a --workers %d --resume-workers %s --steps 7 --momentum 0.99999 "
               "--quiet",
               workers, policy[k / 2]);
        CHECK_EQ((int)cli_meta("a/last/model.safetensors", "workers"), workers);
        for (int r = 0; r < workers; r++) { /* one step adds 1e-5 of a gradient */
            const float *expect = k / 2 == 0 && r < 4 ? before[r] : mean;
            double apart = 0, length = 0;
            cli_momentum("a", r, after);
            for (int i = 0; i < CLI_MOMENTUM; i++) {
                double x = k / 2 == 2 ? 0 : (double)expect[i];
                apart += pow((double)after[i] - x, 2);
                length += pow((double)mean[i], 2);
            }
            if (sqrt(apart / length) > 1e-3)
                FAIL("%s, worker %d of %d: %g", policy[k / 2], r, workers, sqrt(apart / length));
        }
    }
    CLI_REFUSED(2, "--resume-workers", "--resume-workers keep " CLI_TINY "--out b");
    CLI_REFUSED(2, "--on-death", "--on-death continue " CLI_TINY "--out b");
    CLI_REFUSED(2, "--min-workers", "--min-workers 3 --workers 2 " CLI_TINY "--out b");
    cli_end();
}

TEST(when_a_worker_or_the_parent_is_killed_the_others_stop_and_the_checkpoint_loads) {
    uint64_t shared = cli_names("/dev/shm");
    cli_begin();
    for (int victim = 0; victim < 3; victim++) {
        pid_t child[8], pid = cli_start("%s", cli_endless);
        char word[64];
        cli_await(pid, "a/last/worker-2.safetensors", "");
        int n = cli_children(pid, child, 8);
        CHECK_EQ(n, 3);
        if (n == 3) kill(child[victim], SIGKILL);
        int status = cli_wait(pid, n == 3 ? 1 : 0);
        cli_gone(child, n);
        snprintf(word, sizeof word, "worker %d (process %ld)", victim, (long)child[victim]);
        cli_refused(status, 1, word);
        cli_refused(status, 1, "signal 9");
        CLI_OK("--eval --out a");
        CLI_OK("--resume --out a --quiet --steps %ld", cli_step("a") + 3);
        cli_remove(cli_path("a"));
    }
    pid_t child[8], pid = cli_start("%s", cli_endless); /* another signal, the same story */
    cli_await(pid, "a/last/worker-2.safetensors", "");
    if (cli_children(pid, child, 8) == 3) kill(child[1], SIGUSR1);
    cli_refused(cli_wait(pid, 1), 1, strsignal(SIGUSR1));
    cli_remove(cli_path("a"));
    pid = cli_start("%s", cli_endless);
    cli_await(pid, "a/last", "");
    int n = cli_children(pid, child, 8);
    CHECK_EQ(n, 3);
    kill(pid, SIGKILL);
    CHECK_EQ(cli_wait(pid, 1), -SIGKILL);
    cli_gone(child, n);
    CLI_OK("--eval --out a");
    cli_end();
    CHECK(shared == cli_names("/dev/shm"));
}

TEST(a_file_that_is_cut_short_ends_the_run_with_a_sentence) {
    static const char *const backend[] = {"threads", "processes"};
    cli_begin();
    for (int k = 0; k < 4; k++) {
        pid_t child[8], pid = cli_start(CLI_TINY "--workers 2 --steps 100000000 --log-every 0 "
                                                 "--save-every 3 --out a --data long.txt "
                                                 "--val-data text.txt --backend %s",
                                        backend[k % 2]);
        cli_await(pid, "a/last/worker-1.safetensors", "");
        pid_t reader = k % 2 && cli_children(pid, child, 8) == 2 ? child[1] : pid;
        if (k < 2) /* between two looks at its size: what the kernel then sends */
            kill(reader, SIGBUS);
        else if (truncate(cli_path("long.txt"), 50))
            FAIL("cannot cut long.txt");
        int status = cli_wait(pid, CLI_PATIENCE); /* a cut may fall between two looks as well */
        int named = k >= 2 && strstr(cli_err, "long.txt");
        cli_refused(status, 1, named ? "long.txt" : "cut short");
        if (k < 2) CLI_OK("--eval --out a");
        cli_remove(cli_path("a"));
        cli_write_words("long.txt", 120000, cli_alphabet, 21);
    }
    cli_end();
}

TEST(a_run_that_saves_again_and_again_keeps_no_file_open) {
    cli_begin();
    pid_t pid =
        cli_start(CLI_TINY "--workers 2 --steps 100000000 --log-every 0 --save-every 1 --out a");
    char path[64];
    int most = 0;
    cli_await(pid, "a/last", "");
    for (int k = 0; k < 50; k++) {
        int n = 0;
        snprintf(path, sizeof path, "/proc/%ld/fd", (long)pid);
        DIR *all = opendir(path);
        while (all && readdir(all)) n++;
        if (all) closedir(all);
        most = n > most ? n : most;
        cli_rest();
    }
    kill(pid, SIGTERM);
    CHECK_EQ(cli_wait(pid, CLI_PATIENCE), 143);
    CHECK(cli_step("a") >= 3);
    if (most > 16) FAIL("%d files are open", most);
    cli_end();
}

static const struct CliStop {
    int signal, group, status;
} cli_stops[] = {{SIGTERM, 0, 143}, {SIGINT, 1, 130}};

TEST(a_signal_in_the_middle_of_training_saves_and_resume_gives_the_same_bits) {
    static const char *const backend[] = {"threads", "processes"};
    cli_begin();
    cli_write_words("short.txt", 100, cli_alphabet, 21);
    for (int k = 0; k < 4; k++) {
        const struct CliStop *s = &cli_stops[k / 2];
        const char *line =
            k / 2 ? "--workers 2 --method muon" : "--workers 3 --aux sign --dropout 0.1";
        if (k % 2 == 0) CLI_OK(CLI_TINY "--val-data short.txt --steps 60 --out whole %s", line);
        pid_t pid =
            cli_start_held("--data text.txt --val-data short.txt --layers 1 --heads 2 --width 32 "
                           "--context 16 --overwrite "
                           "--steps 60 --save-every 0 --eval-every 20 --out a%d %s --backend %s",
                           k, line, backend[k % 2]);
        char out[16];
        snprintf(out, sizeof out, "a%d", k);
        cli_follow("step 20/60");
        kill(s->group ? -pid : pid, s->signal);
        for (int i = 0; i < 5; i++) cli_rest();
        CHECK_EQ(cli_wait(pid, CLI_PATIENCE), s->status);
        CHECK(strstr(cli_err, "--resume"));
        CHECK_EQ(cli_out_size, 0);
        long step = cli_step(out);
        if (step < 20 || step >= 60) FAIL("stopped at step %ld", step);
        CLI_OK("--resume --out a%d --quiet", k);
        CHECK_EQ(cli_closing().steps, 60);
        cli_same("whole", out, k / 2 ? 2 : 3);
    }
    cli_end();
}

/* Rows of FOLDER/here/OUT/log.csv: as many columns as the header, steps that increase, the last
 * one `last`. */
static int cli_log(const char *out, long last) {
    static const char head[] = "step,tokens,seconds,train_loss,val_loss,lr,";
    static char text[1 << 16];
    char row[1024];
    int columns = 1, rows = 0;
    long before = -1;
    cli_get(cli_path("%s/log.csv", out), text, sizeof text);
    if (strncmp(text, head, strlen(head))) FAIL("%s/log.csv begins otherwise: %.100s", out, text);
    for (const char *c = text; *c && *c != '\n'; c++) columns += *c == ',';
    for (int k = 1; cli_text_line(text, k, row, sizeof row); k++, rows++) {
        int here = 1;
        long step = strtol(row, NULL, 10);
        for (const char *c = row; *c; c++) here += *c == ',';
        if (here != columns) FAIL("%s/log.csv: %d columns, not %d: %s", out, here, columns, row);
        if (step <= before) FAIL("%s/log.csv: step %ld follows %ld", out, step, before);
        before = step;
    }
    if (before != last) FAIL("%s/log.csv ends with step %ld, not %ld", out, before, last);
    return rows;
}

/* The value of a column in the row of a step, NaN when it is empty or missing. */
static double cli_log_value(const char *out, long step, const char *column) {
    static char text[1 << 16];
    char row[1024], *end;
    cli_get(cli_path("%s/log.csv", out), text, sizeof text);
    char *place = strstr(text, column);
    int index = 0;
    for (const char *c = text; c < place; c++) index += *c == ',';
    for (int k = 1; cli_text_line(text, k, row, sizeof row); k++) {
        if (strtol(row, NULL, 10) != step) continue;
        char *c = row;
        for (int i = 0; i < index && c; i++)
            if ((c = strchr(c, ',')) != NULL) c++;
        double value = c ? strtod(c, &end) : NAN;
        return !c || end == c ? NAN : value;
    }
    return NAN;
}

TEST(a_signal_in_an_evaluation_saves_and_does_not_pass_for_an_end) {
    static const char *const backend[] = {"threads", "processes"};
    static const char line[] = "--data text.txt --val-data long.txt --layers 1 --heads 2 --width "
                               "32 --context 16 --quiet --overwrite "
                               "--steps 3 --eval-every 1 --log-every 1 --workers 3 --aux sign";
    cli_begin();
    CLI_OK("%s --out whole", line);
    double whole = cli_closing().val;
    CHECK_EQ(cli_log("whole", 3), 4);
    for (int k = 0; k < 2; k++) { /* the other pairs: in the middle of training */
        const struct CliStop *s = &cli_stops[k];
        int status = 0;
        char name[64];
        snprintf(name, sizeof name, "a%d/last/model.safetensors", k);
        for (int attempt = 0; attempt < 20;
             attempt++) { /* a signal may fall between two evaluations */
            pid_t pid = cli_start("%s --out a%d --backend %s", line, k, backend[k]);
            char logged[32];
            snprintf(logged, sizeof logged, "a%d/log.csv", k);
            cli_await(pid, logged,
                      "\n1,"); /* the evaluation of step 1 is done, that of step 2 near */
            for (int i = 0; i < 4; i++) cli_rest();
            kill(s->group ? -pid : pid, s->signal);
            status = cli_wait(pid, CLI_PATIENCE);
            if (status == s->status && cli_meta(name, "evaluated") < cli_meta(name, "step")) break;
            if (attempt < 19) cli_remove(cli_path("a%d", k));
        }
        CHECK_EQ(status, s->status);
        CHECK(cli_meta(name, "evaluated") < cli_meta(name, "step"));
        CLI_OK("--resume --out a%d --quiet", k);
        CHECK_NEAR(cli_closing().val, whole, 0);
        name[2] = 0;
        cli_same("whole", name, 3);
        CHECK_EQ(cli_log(name, 3), 4);
        for (long step = 0; step <= 3; step++) /* the log has no hole and no other values, either */
            CHECK_NEAR(cli_log_value(name, step, "val_loss"),
                       cli_log_value("whole", step, "val_loss"), 0);
    }
    static const char brief[] = "--data text.txt --val-data long.txt --layers 1 --heads 2 --width "
                                "32 --context 16 --quiet --overwrite "
                                "--steps 2 --eval-every 0 --workers 3";
    CLI_OK("%s --out whole", brief);
    whole = cli_closing().val;
    for (int k = 0; k < 2; k++) {
        pid_t pid = cli_start("%s --out a --backend %s", brief, backend[k]);
        cli_await(pid, "a/log.csv", "step");
        for (int i = 0; i < 6; i++) cli_rest();
        kill(pid, SIGTERM);
        CHECK_EQ(cli_wait(pid, CLI_PATIENCE), 143);
        CHECK_EQ(cli_out_size, 0);
        CLI_OK("--resume --out a --quiet");
        CHECK_EQ(cli_closing().steps, 2);
        CHECK_NEAR(cli_closing().val, whole, 0);
        cli_same("whole", "a", 3);
        cli_remove(cli_path("a"));
    }
    cli_end();
}

/* A terminal sends Ctrl-C to the parent and its workers alike, in any order: it is one signal. */
TEST(ctrl_c_to_all_processes_at_once_saves_and_a_second_signal_quits) {
    cli_begin();
    for (int k = 0; k < 6; k++) {
        pid_t child[8],
            pid = cli_start(CLI_TINY "--backend processes --workers 3 --threads 1 "
                                     "--steps 100000 --save-every 0 --log-every 10 --out a%d",
                            k);
        char name[32];
        snprintf(name, sizeof name, "a%d/log.csv", k);
        cli_await(pid, name, "\n10,");
        if (k % 2)
            kill(-pid, SIGINT);
        else if (cli_children(pid, child, 8) == 3) { /* a worker comes first */
            kill(child[k / 2], SIGINT);
            cli_rest();
            kill(pid, SIGINT);
        }
        CHECK_EQ(cli_wait(pid, CLI_PATIENCE), 130);
        if (access(cli_path("a%d/last/worker-2.safetensors", k), R_OK))
            FAIL("nothing was saved: %s", cli_line);
    }
    static const char *const backend[] = {"threads", "processes"};
    cli_write_words("short.txt", 100, cli_alphabet, 21);
    for (int k = 0; k < 4; k++) { /* stderr stays unread: an orderly end does not come to its end */
        const struct CliStop *s = &cli_stops[k / 2];
        pid_t child[8],
            pid = cli_start_held(
                "--data text.txt --val-data short.txt --layers 1 --heads 2 --width 32 --context 16 "
                "--overwrite --steps 200 --save-every 10 --eval-every 20 --workers 2 --out a%d "
                "--backend %s",
                k, backend[k % 2]);
        cli_follow("step 20/200");
        int n = cli_children(pid, child, 8);
        kill(pid, s->signal);
        for (int i = 0; i < 50; i++) cli_rest();
        kill(pid, s->signal);
        CHECK_EQ(cli_wait_for(pid, 5, 1), s->status);
        cli_gone(child, n);
        CLI_OK("--eval --out a%d", k);
    }
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * resuming, the log */

TEST(resume_takes_its_flags_from_the_checkpoint_and_refuses_another_model) {
    static const char *const fixed[] = {
        "--width 64", "--heads 4", "--layers 2", "--context 8", "--workers 4",  "--method muon",
        "--batch 24", "--seed 5",  "--bias",     "--untied",    "--vocab bytes"};
    cli_begin();
    CLI_OK(CLI_TINY "--steps 20 --out whole --workers 3 --aux sign --dropout 0.1 --lr 2e-3 "
                    "--schedule constant --bias");
    CLI_OK(CLI_TINY "--steps 8 --out a --workers 3 --aux sign --dropout 0.1 --lr 2e-3 --schedule "
                    "constant --bias");
    uint64_t before = cli_snapshot();
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        char word[32];
        snprintf(word, sizeof word, "%.*s", (int)strcspn(fixed[i], " "), fixed[i]);
        if (strcmp(word, "--bias")) CLI_REFUSED(2, word, "--resume --out a %s", fixed[i]);
    }
    CLI_REFUSED(2, "--bias", "--resume --out a --bias off");
    CHECK(before == cli_snapshot());
    CLI_OK(
        "--resume --out a --quiet --steps 14 --width 32 --method signmuon --workers=3"); /* equal values are welcome */
    CHECK_EQ(cli_closing().steps, 14);
    CLI_OK("--resume --out a --quiet --steps 20");
    CHECK_EQ(cli_closing().steps, 20);
    cli_same("whole", "a", 3);
    CLI_OK("--resume --out a --quiet"); /* nothing left to do, and nothing done */
    CHECK_EQ(cli_closing().steps, 20);
    cli_same("whole", "a", 3);
    cli_end();
}

TEST(the_log_has_one_row_per_step_even_after_a_resume) {
    cli_begin();
    CLI_OK(CLI_TINY
           "--steps 20 --log-every 4 --eval-every 10 --out whole --workers 3 --link 100mbit,5ms");
    CHECK_EQ(cli_log("whole", 20), 7); /* 0 4 8 10 12 16 20 */
    CHECK(isnan(cli_log_value("whole", 4, "val_loss")));
    CHECK(isfinite(cli_log_value("whole", 10, "val_loss")));
    double bytes = cli_log_value("whole", 20, "bytes_sent");
    double wire = cli_log_value("whole", 20, "wire_seconds");
    CHECK(bytes > 0 && cli_log_value("whole", 20, "bytes_received") > 0);
    CHECK(wire > bytes * 8 / 100e6 + 20 * 0.005);
    CHECK(cli_log_value("whole", 12, "wire_seconds") < wire);
    CLI_OK(CLI_TINY "--steps 20 --log-every 4 --eval-every 10 --out a --workers 3");
    CHECK(isnan(cli_log_value("a", 20, "wire_seconds")));
    cli_write_words("short.txt", 100, cli_alphabet, 21);
    cli_kill_after(30, "b", "--workers 3 --log-every 1"); /* later rows are written anew */
    CLI_OK("--resume --out b --quiet");
    CHECK_EQ(cli_log("b", 60), 61);
    CLI_OK("--resume --out b --quiet --steps 70 --eval-every 0 --log-every 0");
    CHECK_EQ(cli_log("b", 70), 62);
    CLI_OK(CLI_TINY "--steps 3 --out b"); /* a new run has a new log */
    CHECK_EQ(cli_log("b", 3), 1);
    CLI_OK(CLI_TINY "--steps 0 --eval-every 1 --out c");
    CHECK_EQ(cli_closing().steps, 0);
    CHECK_EQ(cli_log("c", 0), 1);
    cli_end();
}

TEST(half_a_row_that_a_killed_run_left_in_the_log_is_not_resumed) {
    static const char row[] = "0,0,0.000,,4.17,,,,0,0,,,0,0,,,,,,,3\n";
    char text[4000], got[4000];
    data_test_begin();
    Run *run = calloc(1, sizeof *run);
    Worker w = {.run = run, .step = 20};
    if (!run) abort();
    run->o.out = data_test_folder;
    run->o.resume = 1;
    for (int damage = 0; damage < 5; damage++) {
        int n = snprintf(text, sizeof text, "%s%s", log_header, row);
        if (damage == 1) snprintf(text + n, sizeof text - (size_t)n, "1"); /* of 100 */
        if (damage == 2)
            snprintf(text + n, sizeof text - (size_t)n, "10,921,0.1"); /* in a number */
        if (damage == 3) snprintf(text + n, sizeof text - (size_t)n, "100%s10,,\n", row + 1);
        if (damage == 4) /* longer than is read at once, and what is behind that looks like a row */
            snprintf(text + n, sizeof text - (size_t)n, "%01023d%s", 1, row);
        data_test_write("log.csv", text, strlen(text));
        open_log(&w, 1);
        fclose(w.log);
        FILE *f = fopen(data_test_path("log.csv"), "r");
        size_t length = f ? fread(got, 1, sizeof got - 1, f) : 0;
        if (f) fclose(f);
        got[length] = 0;
        text[n] = 0;
        if (strcmp(got, text)) FAIL("damage %d: %s", damage, got + n);
    }
    free(run);
    data_test_end();
}

/* ------------------------------------------------------------------------------------------------
 * generations */

/* The step of OUT/.last.SLOT, or -1 when it holds no model. */
static long cli_generation(const char *out, int slot) {
    char name[128];
    snprintf(name, sizeof name, "%s/.last.%d/model.safetensors", out, slot);
    return access(cli_path("%s", name), F_OK) ? -1 : (long)cli_meta(name, "step");
}

/* The slot that OUT/last points at. */
static int cli_slot(const char *out) {
    char target[64] = "";
    ssize_t n = readlink(cli_path("%s/last", out), target, sizeof target - 1);
    return n == 7 && strncmp(target, ".last.", 6) == 0 ? target[6] - '0' : -1;
}

/* A run that fell back: status 0, one sentence that names what is damaged and the step. */
static void cli_fell_back(int status, const char *file, const char *from, long step) {
    char end[128];
    snprintf(end, sizeof end, "; going on from %s, the save of step %ld\n", from, step);
    const char *newline = strchr(cli_err, '\n');
    if (status || strncmp(cli_err, "train_gpt: ", 11) || !newline || newline[1] ||
        !strstr(cli_err, file) || !strstr(cli_err, end))
        FAIL("status %d, not '%s' and '%s': %s: %s", status, file, end, cli_line, cli_err);
}

static void cli_cut(const char *name, long bytes) {
    if (truncate(cli_path("%s", name), bytes)) FAIL("cannot cut %s", name);
}

/* Ways to lose OUT/.last.SLOT for --resume, and what the sentence must name. */
static const char *cli_damage(const char *out, int slot, int way) {
    char model[128], worker[128], other[128];
    snprintf(model, sizeof model, "%s/.last.%d/model.safetensors", out, slot);
    snprintf(worker, sizeof worker, "%s/.last.%d/worker-2.safetensors", out, slot);
    snprintf(other, sizeof other, "%s/.last.%d/worker-2.safetensors", out, (slot + 1) % 2);
    switch (way) {
    case 0:
        return cli_flip(model, 700), "model.safetensors: ";
    case 1:
        return cli_flip(worker, -9), "worker-2.safetensors: checksum";
    case 2:
        return cli_cut(model, 1000), "model.safetensors: ";
    case 3:
        return cli_cut(worker, 0), "worker-2.safetensors: too short";
    case 4:
        return unlink(cli_path("%s", worker)), "worker-2.safetensors: cannot open: No such";
    case 5:
        return unlink(cli_path("%s", model)), "model.safetensors: cannot open: No such";
    case 6: /* of the generation before */
        unlink(cli_path("%s", worker));
        if (link(cli_path("%s", other), cli_path("%s", worker))) FAIL("cannot link %s", worker);
        return "worker-2.safetensors: belongs to another step";
    default:
        return NULL;
    }
}

TEST(when_the_last_save_is_damaged_the_one_before_goes_on_and_is_not_overwritten_first) {
    cli_begin();
    CLI_OK(CLI_TINY "--out whole --steps 12 --save-every 6 --workers 3 --log-every 1");
    CLI_OK(CLI_TINY "--out a --steps 12 --save-every 6 --workers 3 --log-every 1");
    for (int way = 0; way < 7; way++) {
        int slot = cli_slot("a");
        char from[32];
        snprintf(from, sizeof from, "a/.last.%d", 1 - slot);
        CHECK_EQ(cli_generation("a", slot), 12);
        CHECK_EQ(cli_generation("a", 1 - slot), 6);
        const char *word = cli_damage("a", slot, way);
        if (strstr(word, "model")) { /* reading does not need the workers' files */
            cli_fell_back(cli("--eval --out a"), word, from, 6);
            CHECK(strncmp(cli_out, "val_loss ", 9) == 0);
            cli_fell_back(cli("--sample 5 --out a"), word, from, 6);
        } else
            CLI_OK("--eval --out a");
        cli_fell_back(cli("--resume --out a --quiet --steps 12 --save-every 0"), word, from, 6);
        CHECK_EQ(cli_log("a", 12), 12);
        CHECK_EQ(cli_slot("a"), slot);
        CHECK_EQ(cli_generation("a", slot), 12);
        CHECK_EQ(cli_generation("a", 1 - slot), 6);
        cli_same("whole", "a", 3);
    }
    cli_end();
}

TEST(another_run_or_a_smaller_keep_leaves_no_save_that_could_be_mistaken_for_its_own) {
    cli_begin();
    CLI_OK(CLI_TINY "--out a --steps 10 --save-every 2 --keep 5");
    for (int slot = 0; slot < 5; slot++) CHECK_EQ(cli_generation("a", slot), 2 + 2 * slot);
    CLI_OK("--resume --out a --quiet --steps 11 --keep 3");
    CHECK_EQ(cli_slot("a"), 2);
    CHECK_EQ(cli_generation("a", 2), 11);
    for (int slot = 3; slot < 5; slot++) CHECK(access(cli_path("a/.last.%d", slot), F_OK));
    CLI_OK("--resume --out a --quiet --steps 12"); /* keeps 3 from now on */
    CHECK_EQ(cli_generation("a", 0), 12);
    CHECK_EQ(cli_generation("a", 1), 4);
    CLI_OK(CLI_TINY "--out a --steps 1 --seed 9 --overwrite");
    CHECK_EQ(cli_step("a"), 1);
    for (int slot = 0; slot < 3; slot++)
        CHECK_EQ(cli_generation("a", slot), slot == cli_slot("a") ? 1 : -1);
    cli_damage("a", cli_slot("a"), 0);
    CLI_REFUSED(1, "model.safetensors", "--eval --out a");
    /* nor a file of a server or a worker that it does not have */
    CLI_OK(CLI_TINY "--out b --steps 3 --save-every 2 --workers 3 --method ef21-muon --up topk:0.2 "
                    "--down topk:0.3");
    CLI_OK(CLI_TINY "--out b --steps 2 --save-every 1 --workers 2 --overwrite");
    CLI_OK("--resume --out b --quiet --steps 3");
    CHECK(!*cli_err);
    for (int slot = 0; slot < 2; slot++) {
        CHECK(access(cli_path("b/.last.%d/exact.safetensors", slot), F_OK));
        CHECK(access(cli_path("b/.last.%d/worker-2.safetensors", slot), F_OK));
    }
    cli_end();
}

TEST(the_newest_save_that_is_whole_goes_on_best_and_exact_too_and_when_none_is_nothing_changes) {
    cli_begin();
    CLI_OK(CLI_TINY "--out a --steps 9 --save-every 2 --keep 4 --workers 3");
    CHECK_EQ(cli_slot("a"), 0); /* 9 stands where 2 was, and 4, 6, 8 behind it */
    for (int slot = 0; slot < 4; slot++)
        CHECK_EQ(cli_generation("a", slot), slot ? 2 + 2 * slot : 9);
    cli_damage("a", 0, 0);
    cli_damage("a", 3, 1);
    cli_fell_back(cli("--eval --out a"), "model", "a/.last.3", 8);
    cli_fell_back(cli("--resume --out a --quiet --steps 7"), "a/last/model", "a/.last.2", 6);
    CHECK_EQ(cli_slot("a"), 3); /* behind the one it came from */
    CHECK_EQ(cli_generation("a", 3), 7);
    CHECK_EQ(cli_generation("a", 2), 6);
    for (int slot = 0; slot < 4; slot++) cli_damage("a", slot, slot % 2);
    cli_damage("a", 0, 2);
    cli_damage("a", 2, 4);
    uint64_t before = cli_snapshot();
    CLI_REFUSED(1, "no other save", "--resume --out a --quiet --steps 20");
    CHECK(before == cli_snapshot());
    rename(cli_path("a/.last.3"), cli_path("a/kept")); /* the link points nowhere */
    CLI_REFUSED(1, "a/last/model", "--resume --out a --quiet --steps 20");
    CLI_REFUSED(1, "--overwrite", "--data text.txt --layers 1 --heads 2 --width 32 --out a");
    char best[128];
    cli_remove(cli_path("a"));
    CLI_OK(CLI_TINY "--out a --steps 4 --save-every 2 --workers 2 --method ef21-muon --up topk:0.2 "
                    "--down topk:0.3 --eval-every 2");
    int slot = cli_slot("a");
    snprintf(best, sizeof best, "a/.last.%d/exact.safetensors", slot);
    cli_flip(best, -40);
    for (int k = 0; k < 2; k++)
        cli_fell_back(cli("--eval --out a %s", k ? "--exact" : ""), "exact.safetensors",
                      slot ? "a/.last.0" : "a/.last.1", 2);
    char target[64] = "";
    CHECK(readlink(cli_path("a/best"), target, sizeof target - 1) == 7);
    snprintf(best, sizeof best, "a/%s/model.safetensors", target);
    cli_flip(best, -40);
    cli_fell_back(cli("--eval --out a --from best"), "a/best/model",
                  target[6] == '1' ? "a/.best.0" : "a/.best.1", 2);
    cli_end();
}

TEST(a_run_killed_while_it_saves_loads_whenever_it_was) {
    cli_begin();
    CLI_OK(CLI_TINY "--out whole --steps 40 --workers 2 --log-every 0");
    for (int k = 0; k < 6; k++) {
        pid_t pid =
            cli_start(CLI_TINY "--out a --steps 40 --workers 2 --save-every 1 --log-every 0 "
                               "--backend %s",
                      k % 2 ? "processes" : "threads");
        cli_await(pid, "a/last", "");
        for (uint64_t rest = test_hash((uint64_t)k) % 8; rest; rest--) cli_rest();
        kill(pid, SIGKILL);
        cli_wait(pid, CLI_PATIENCE);
        CLI_OK("--resume --out a --quiet --save-every 0");
        if (*cli_err) FAIL("%s: %s", cli_line, cli_err);
        cli_same("whole", "a", 2);
        cli_remove(cli_path("a"));
    }
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * files that are not to be trusted */

/* Writes FOLDER/here/NAME anew, its checksum included, with another value for one key. */
static void cli_forge(const char *name, const char *key, const char *value) {
    static char path[4096];
    char error[512];
    StFile f;
    snprintf(path, sizeof path, "%s", cli_path("%s", name));
    if (st_open(&f, path, error, sizeof error)) {
        FAIL("%s", error);
        return;
    }
    StTensor *t = calloc(f.n, sizeof *t);
    StPair *m = calloc(f.n_meta, sizeof *m);
    size_t n = 0;
    for (size_t i = 0; i < f.n; i++) {
        const StEntry *e = &f.entries[i];
        t[i] = (StTensor){.name = e->name, .dtype = e->dtype, .rank = e->rank};
        t[i].data = st_data(&f, e);
        memcpy(t[i].shape, e->shape, sizeof e->shape);
    }
    for (size_t i = 0; i < f.n_meta; i++)
        if (strncmp(f.meta[i].key, "checksum", 8)) {
            m[n] = f.meta[i];
            if (strcmp(m[n].key, key) == 0) m[n].value = value;
            n++;
        }
    if (st_write(path, t, f.n, m, n, error, sizeof error)) FAIL("%s", error);
    st_close(&f);
    free(t), free(m);
}

TEST(a_forged_checkpoint_is_refused_before_anything_of_its_size_is_allocated) {
    static const struct {
        const char *file, *key, *value, *word, *call;
    } rows[] = {
        {"model", "layers", "1000", "h.1.", "--eval"},
        {"model", "layers", "1e9", "--layers", "--eval"},
        {"model", "layers", "-1", "--layers", "--eval"},
        {"model", "width", "65536", "another shape", "--sample 5"},
        {"model", "context", "1048576", "another shape", "--sample 5"},
        {"model", "heads", "999", "heads", "--eval"},
        {"model", "batch", "1000000000", "--batch", "--resume"},
        {"model", "workers", "99999", "--workers", "--resume"},
        {"model", "workers", "4", "worker-3", "--resume"},
        {"model", "vocabulary", "gpt2:65536", "another shape", "--sample 5"},
        {"model", "vocabulary", "bytes:0-ff", "another shape", "--sample 5"},
        {"model", "vocabulary", "chars:0-10fffff", "vocabulary", "--sample 5"},
        {"model", "vocabulary", "", "vocabulary", "--sample 5"},
        {"model", "step", "1e300", "step", "--resume"},
        {"model", "step", "nan", "step", "--eval"},
        {"model", "step", "-3", "step", "--resume"},
        {"model", "step", "2.5", "step", "--resume"},
        {"model", "evaluated", "1e300", "evaluated", "--resume"},
        {"model", "evaluated", "2.5", "evaluated", "--resume"},
        {"model", "lr", "1e999", "--lr", "--resume"},
        {"model", "method", "\x1b[31mred\xc2\x9b", "--method", "--resume"},
        {"worker-0", "step", "7", "another step", "--resume"},
        {"worker-0", "rank", "1", "another step or worker", "--resume"},
        {"worker-0", "rank", "1e12", "another step or worker", "--resume"},
        {"worker-0", "sent_matrices", "-1", "sent_matrices", "--resume"},
        {"worker-0", "up_control", "1e30", "up_control", "--resume"},
        {"worker-0", "seconds", "soon", "seconds", "--resume"},
    };
    static char whole[1 << 18];
    cli_begin();
    CLI_OK(CLI_TINY "--out a --steps 2 --workers 3");
    CLI_OK("--eval --out a");
    double honest = cli_peak;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char name[128];
        snprintf(name, sizeof name, "a/last/%s.safetensors", rows[i].file);
        size_t bytes = cli_get(cli_path("%s", name), whole, sizeof whole);
        CHECK(bytes > 0 && bytes < sizeof whole - 1);
        cli_forge(name, rows[i].key, rows[i].value);
        int status = cli("%s --out a --data text.txt --quiet", rows[i].call);
        cli_refused(status, status == 2 ? 2 : 1, rows[i].word);
        if (strchr(cli_err, 0x1b) || strstr(cli_err, "\x9b"))
            FAIL("a control sequence: %s", cli_line);
        if (cli_peak > honest + 64e6) FAIL("%.0f MB for: %s", cli_peak * 1e-6, cli_line);
        cli_put(name, whole, bytes);
    }
    CLI_OK("--resume --out a --quiet --steps 3");
    cli_remove(cli_path("a"));
    CLI_REFUSED(1, "GB", CLI_TINY "--out a --layers 1000 --width 65536");
    CLI_REFUSED(1, "GB",
                CLI_TINY "--out a --layers 1000 --batch 1000000 --context 1024 --width 512");
    CHECK(access(cli_path("a"), F_OK));
    cli_end();
}

TEST(what_is_no_regular_file_is_refused_and_never_waited_for) {
    static const char *const lines[] = {"--data pipe", "--val-data pipe", "--shards file:pipe",
                                        "--method demuon --workers 3 --topology file:pipe"};
    static char line[5000];
    cli_begin();
    if (mkfifo(cli_path("pipe"), 0666)) FAIL("cannot make a pipe");
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        for (int k = 0; k < 3; k++) {
            static const char *const place[] = {"pipe", "/dev/zero", "."};
            snprintf(line, sizeof line, "%s", lines[i]);
            strcpy(strstr(line, "pipe"), place[k]);
            int status = cli(CLI_TINY "--out a %s", line);
            cli_refused(status, status == 2 ? 2 : 1, place[k]);
        }
    memset(line, '1', sizeof line); /* a line without end */
    cli_put("line.txt", line, sizeof line);
    CLI_REFUSED(2, "line 1 is longer", CLI_TINY "--out a --shards file:line.txt");
    mkfifo(cli_path("text.txt.entropy"), 0666); /* an entropy that nobody writes */
    CLI_OK(CLI_TINY "--out a --steps 1");
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * text and numbers out */

/* Characters of UTF-8. */
static size_t cli_characters(const char *text, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

/* A run on a terminal of its own: all that reaches it into cli_out. Returns its exit status. */
__attribute__((format(printf, 1, 2))) static int cli_on_terminal(const char *format, ...) {
    char slave[128] = "";
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master) || ptsname_r(master, slave, 128)) {
        FAIL("there is no terminal to be had: %s", strerror(errno));
        return -1;
    }
    static char words[8192];
    char *argv[64] = {cli_program};
    int argc = 1, s = 0;
    va_list list;
    va_start(list, format);
    vsnprintf(cli_line, sizeof cli_line, format, list);
    va_end(list);
    memcpy(words, cli_line, sizeof words);
    for (char *c = strtok(words, " "); c; c = strtok(NULL, " ")) argv[argc++] = c;
    int hold = open(slave, O_RDWR | O_NOCTTY); /* so that what is written outlives the program */
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        int fd = open(slave, O_RDWR);
        if (dup2(fd, 0) < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0 || chdir(cli_path("%s", "")))
            _exit(99);
        execv(cli_program, argv);
        _exit(99);
    }
    cli_out_size = 0;
    fcntl(master, F_SETFL, O_NONBLOCK);
    for (int ended = 0; !ended;) {
        ended = waitpid(pid, &s, WNOHANG) == pid;
        ssize_t n;
        while ((n = read(master, cli_out + cli_out_size, sizeof cli_out - 1 - cli_out_size)) > 0)
            cli_out_size += (size_t)n;
        if (!ended) cli_rest();
    }
    cli_out[cli_out_size] = 0;
    close(hold);
    close(master);
    return WIFEXITED(s) ? WEXITSTATUS(s) : -WTERMSIG(s);
}

/* Is it text that moves no cursor? The terminal itself makes \r\n of \n. */
static void cli_harmless(const char *word) {
    int bad = !st_is_utf8(cli_out);
    for (size_t i = 0; i < cli_out_size; i++) {
        unsigned char c = (unsigned char)cli_out[i], before = i ? (unsigned char)cli_out[i - 1] : 0;
        bad |= (c < 32 && !strchr("\n\r\t", c)) || c == 0 || c == 127 ||
               (before == 0xc2 && c < 0xa0); /* C1 */
    }
    if (bad || !strstr(cli_out, word))
        FAIL("not harmless, or no '%s': %s: %s", word, cli_line, cli_out);
}

TEST(control_sequences_never_reach_a_terminal_and_files_have_every_byte) {
    static const char *const alphabet[] = {"\x1b[2J", "\x1b]0;x\a", "\xc2\x9b;31m", "\x7f",
                                           "\b",      "\xc3\xa9",   "\xe2\x82\xac", "a"},
                             raw[] = "\x1b\x7f\xc2\x9b", broken[] = "\xff\x1b\x9b\xe9";
    cli_begin();
    cli_write_words("chars.txt", 8000, alphabet, 8);
    for (int bytes = 0; bytes < 2; bytes++) {
        CLI_OK(CLI_TINY "--data chars.txt --steps 2 --vocab %s --out a", bytes ? "bytes" : "chars");
        const char *prompt = "\xe2\x82\xac\x1b[2J\x7f\xc2\x9b\xc3\xa9";
        CHECK_EQ(cli_on_terminal("--out a --sample 400 --temperature 3 --prompt %s", prompt), 0);
        cli_harmless("\xe2\x82\xac?[2J?\?\?\xc3\xa9");
        CLI_OK("--out a --sample 400 --temperature 3 --prompt '%s'", prompt);
        CHECK(strncmp(cli_out, prompt, strlen(prompt)) == 0 && strchr(cli_out + 20, 0x1b));
        cli_remove(cli_path("a"));
    }
    /* what a user typed, and what is wrong with it */
    CHECK_EQ(cli_on_terminal("--data %s.txt", raw), 1);
    cli_harmless("train_gpt: ?\?\?\?.txt");
    CHECK_EQ(cli_on_terminal("--%s", broken), 2);
    cli_harmless("--?\?\?\?");
    CHECK_EQ(cli_on_terminal("--method %s", broken), 2);
    cli_harmless("'?\?\?\?'");
    CHECK_EQ(cli_on_terminal("--eval --out x\xc3\xa9%s", broken), 1);
    cli_harmless("x\xc3\xa9?\?\?\?/last");
    CHECK_EQ(cli_on_terminal("--dry-run --data chars.txt --layers 1 --context 8 --vocab bytes"), 0);
    rename(cli_path("chars.txt"), cli_path("\xc2\x9b"
                                           "31m.txt"));
    CHECK_EQ(cli_on_terminal("--dry-run --data \xc2\x9b"
                             "31m.txt --layers 1 --context 8"),
             0);
    cli_harmless("data       ?\?31m.txt: ");
    cli_end();
}

TEST(a_sample_is_the_prompt_or_a_newline_and_so_many_characters_and_nothing_else) {
    static char kept[1 << 16];
    cli_begin();
    CLI_OK(CLI_TINY "--steps 60 --out a --workers 3 --bias --untied");
    static const struct {
        size_t prompt, n;
        const char *line;
    } rows[] = {
        {1, 1, "--sample 1"},
        {1, 300, "--sample 300"}, /* past the context of 16 */
        {5, 40, "--sample 40 --prompt 'ab cd'"},
        {40, 40, "--sample 40 --prompt 'ab cd ab cd ab cd ab cd ab cd ab cd ab c'"},
        {16, 16, "--sample 16 --prompt 'ab cd ab cd ab c'"},
        {1, 50, "--sample 50 --temperature 0"},
        {1, 50, "--sample 50 --temperature 100 --top-k 0"},
        {1, 50, "--sample 50 --temperature 1e-9 --top-k 1000000"},
        {0, 0, NULL},
    };
    for (size_t i = 0; rows[i].line; i++) {
        CLI_OK("--out a %s", rows[i].line);
        if (cli_out_size != rows[i].prompt + rows[i].n || *cli_err)
            FAIL("%zu characters, stderr '%s': %s", cli_out_size, cli_err, cli_line);
        if (rows[i].prompt > 1 &&
            strncmp(cli_out, "ab cd ab cd ab c", rows[i].prompt < 16 ? rows[i].prompt : 16))
            FAIL("does not begin with its prompt: %s: %s", cli_line, cli_out);
    }
    CLI_OK("--out a --sample 100 --seed 3");
    memcpy(kept, cli_out, sizeof kept);
    CLI_OK("--out a --sample 100 --seed 3 --threads 2 --backend processes --from best");
    CHECK(strcmp(kept, cli_out) == 0); /* best is last here */
    CLI_OK("--out a --sample 50 --seed 3");
    CHECK(strncmp(kept, cli_out, 51) == 0 && cli_out_size == 51);
    CLI_OK("--out a --sample 100 --seed 4");
    CHECK(strcmp(kept, cli_out) != 0);
    CLI_OK("--out a --sample 100 --seed 3 --temperature 0");
    memcpy(kept, cli_out, sizeof kept);
    CLI_OK("--out a --sample 100 --seed 4 --temperature 0");
    CHECK(strcmp(kept, cli_out) == 0);
    CLI_OK("--out a --sample 100 --seed 5 --top-k 1");
    CHECK(strcmp(kept, cli_out) == 0);
    uint64_t before = cli_snapshot();
    CLI_REFUSED(2, "--prompt", "--out a --sample 5 --prompt 'ab!'");
    CLI_REFUSED(2, "--prompt", "--out a --sample 5 --prompt '\xff'");
    CLI_OK("--out a --sample 5");
    CHECK(before == cli_snapshot());
    rename(cli_path("text.txt"), cli_path("moved.txt")); /* a sample does not need the data */
    CLI_OK("--out a --sample 5");
    CHECK_EQ(cli_out_size, 6);
    char words[2001] = "";
    for (size_t i = 0; i < 2000; i++) words[i] = "abc de"[test_hash(i) % 6];
    cli_put("line.txt", words, 2000);
    CLI_OK(CLI_TINY "--data line.txt --steps 2 --out a");
    CLI_OK("--out a --sample 20");
    CHECK_EQ(*cli_err, 0);
    CHECK(cli_out_size >= 20 && cli_out_size <= 21);
    cli_end();
}

TEST(eval_prints_the_loss_of_the_closing_line) {
    double val = 0;
    cli_begin();
    CLI_OK(CLI_TINY "--steps 30 --out a --workers 3 --dropout 0.1 --eval-every 10");
    CliClosing c = cli_closing();
    CHECK_EQ(c.steps, 30);
    CHECK(c.best <= c.val && c.seconds >= 0);
    CHECK_NEAR(cli_log_value("a", 30, "val_loss"), c.val, 6e-5);
    uint64_t before = cli_snapshot();
    static const char *const lines[] = {
        "", "--threads 2", "--data text.txt --workers 2 --backend processes", "--from last"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        CLI_OK("--eval --out a %s", lines[i]);
        CHECK_EQ(sscanf(cli_out, "val_loss %lf", &val), 1);
        CHECK_NEAR(val, c.val, 5.1e-5);
        CHECK_NEAR(val, cli_log_value("a", 30, "val_loss"), 0);
    }
    CLI_OK("--eval --out a --from best");
    CHECK_EQ(sscanf(cli_out, "val_loss %lf", &val), 1);
    CHECK_NEAR(val, c.best, 5.1e-5);
    CLI_OK("--eval --out a --data text.txt --workers 5"); /* an evaluation has no batch to divide */
    CHECK(before == cli_snapshot());
    cli_end();
}

/* Does a line of what was printed last begin with this name, alone or with arguments after a colon? */
static int cli_listed(const char *name) {
    char row[512];
    for (int k = 0; cli_text_line(cli_out, k, row, sizeof row); k++)
        if (strncmp(row, name, strlen(name)) == 0 && strchr(": ", row[strlen(name)]) &&
            strlen(row) > 20)
            return 1;
    return 0;
}

TEST(help_version_and_lists_go_to_stdout_with_a_word_on_everything) {
    static const char *const must[] = {"data",
                                       "out",
                                       "layers",
                                       "heads",
                                       "width",
                                       "context",
                                       "dropout",
                                       "batch",
                                       "steps",
                                       "method",
                                       "aux",
                                       "lr",
                                       "aux-lr",
                                       "schedule",
                                       "warmup",
                                       "cooldown",
                                       "momentum",
                                       "nesterov",
                                       "weight-decay",
                                       "ns",
                                       "polar-after-vote",
                                       "workers",
                                       "backend",
                                       "threads",
                                       "seed",
                                       "eval-every",
                                       "log-every",
                                       "save-every",
                                       "wire",
                                       "resume",
                                       "eval",
                                       "sample",
                                       "prompt",
                                       "temperature",
                                       "top-k",
                                       "link",
                                       "norm",
                                       "worker-map",
                                       "server-map",
                                       "coupled-decay",
                                       "check-every",
                                       "dry-run",
                                       "list",
                                       "help",
                                       "version",
                                       "bias",
                                       "untied",
                                       "shards",
                                       "mode",
                                       "up",
                                       "down",
                                       "topology",
                                       "mixing",
                                       "gossip-rounds",
                                       "eval-nodes",
                                       "input-norm",
                                       "output-norm",
                                       "vector-norm",
                                       "radii",
                                       "momentum-start",
                                       "exact",
                                       "gradient-noise"};
    static const char *const lists[] = {"methods",  "norms",     "gains",       "newton-schulz",
                                        "backends", "schedules", "compressors", "topologies",
                                        "radii",    "noises"};
    cli_begin();
    uint64_t before = cli_snapshot();
    CLI_OK("--help");
    CHECK_EQ(*cli_err, 0);
    for (size_t i = 0; i < sizeof must / sizeof *must; i++) {
        char row[32];
        snprintf(row, sizeof row, "\n  --%s ", must[i]);
        if (!strstr(cli_out, row)) FAIL("--help does not mention --%s", must[i]);
    }
    CHECK(strstr(cli_out, "signmuon") && strstr(cli_out, "processes") &&
          strstr(cli_out, "Exit status"));
    CLI_OK("-h");
    CLI_OK("--version");
    CHECK(strncmp(cli_out, "train_gpt ", 10) == 0 &&
          strchr(cli_out, '\n') == strrchr(cli_out, '\n'));
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        CLI_OK("--list %s", lists[i]);
        CHECK(strchr(cli_out, '\n') && !*cli_err);
    }
    CLI_OK("--list methods");
    static const char *const methods[] = {"sgd",       "adamw",   "signsgd",       "signum",
                                          "lion",      "muon",    "muon-avgpolar", "signmuon",
                                          "muonusign", "muonsign"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        char row[32];
        snprintf(row, sizeof row, "\n%s ", methods[i]);
        if (!strstr(cli_out, row)) FAIL("--list methods does not mention %s", methods[i]);
    }
    CHECK(before == cli_snapshot());
    CLI_OK("--list compressors");
    for (size_t i = 0; ef_compressor_row(i); i++) CHECK(cli_listed(ef_compressor_row(i)->name));
    CLI_OK("--list topologies");
    for (size_t i = 0; dm_topology_row(i); i++) CHECK(cli_listed(dm_topology_row(i)->name));
    CLI_OK("--list radii");
    for (size_t i = 0; sm_radii_row(i); i++) CHECK(cli_listed(sm_radii_row(i)->name));
    CLI_OK("--list noises");
    for (size_t i = 0; noise_row(i); i++) CHECK(cli_listed(noise_row(i)->name));
    CLI_OK("--list attacks");
    for (size_t i = 0; sm_attack_row(i); i++) CHECK(cli_listed(sm_attack_row(i)->name));
    CLI_OK("--list methods");
    for (size_t i = 0; sm_method_row(i); i++) CHECK(cli_listed(sm_method_row(i)->name));
    cli_end();
}

TEST(a_dry_run_tells_the_graph_of_a_gossip_the_uplink_of_error_feedback_and_who_lies) {
    static const struct {
        const char *line, *graph;
    } rows[] = {
        {"--workers 8",
         "graph      ring of 8 nodes, 2 neighbours to send to; spectral gap 0.195262; "
         "32 rounds of gossip shrink disagreement 1000x\n"},
        {"--workers 4 --topology star", "graph      star of 4 nodes, 1 to 3 neighbours to send to; "
                                        "spectral gap 0.250000; 25 rounds"},
        {"--workers 4 --topology one-peer",
         "one-peer of 4 nodes, 1 neighbours to send to; spectral "
         "gap 1.000000; 2 rounds"},
        {"--workers 1", "spectral gap 1.000000; 0 rounds"},
        {"--workers 1 --method ef21-muon", NULL}, /* who is alone sends nothing */
    };
    double bytes = 0, share = 0, paper = 0, parameters = 0;
    cli_begin();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CLI_OK(CLI_TINY "--dry-run --batch 8 --method demuon %s", rows[i].line);
        if (rows[i].graph && !strstr(cli_out, rows[i].graph))
            FAIL("no '%s': %s", rows[i].graph, cli_out);
        CHECK(!strstr(cli_out, "uplink") && !strstr(cli_out, "nan"));
    }
    CLI_OK(CLI_TINY "--dry-run --workers 3 --method ef21-muon --aux lmo --up topk:12.5%%+natural");
    CHECK(!strstr(cli_out, "graph"));
    const char *uplink = strstr(cli_out, "uplink ");
    CHECK(uplink && sscanf(uplink,
                           "uplink %lf bytes per step, %lf of fp32; as arXiv 2510.00643 counts "
                           "(26-bit indices, 16-bit Natural) %lf\n",
                           &bytes, &share, &paper) == 3);
    const char *vocabulary = strstr(cli_out, "vocabulary");
    CHECK(vocabulary && sscanf(vocabulary, "vocabulary %*d: %lf parameters", &parameters) == 1);
    /* 9 bits and one of the bitmap, which is shorter than a list of indices; the paper: 16 + 26; the
     * three LayerNorms go in fp32 */
    double vectors = 3 * 32 / parameters;
    CHECK_NEAR(share, (0.125 * 9 + 1) / 32 * (1 - vectors) + vectors, 6e-5);
    CHECK_NEAR(paper, 0.125 * (16 + 26) / 32 * (1 - vectors) + vectors, 6e-5);
    CHECK_NEAR(bytes, share * 4 * parameters * 2 / 3, 1e-3 * bytes);
    CLI_OK(CLI_TINY "--dry-run --workers 6 --adversaries 2 --attack scale:-3");
    CHECK(strstr(cli_out, "workers 4 to 5 lie, by --attack scale:-3\n") != NULL);
    CLI_OK(CLI_TINY "--dry-run --workers 6 --adversaries 1");
    CHECK(strstr(cli_out, "worker 5 lies, by --attack flip\n") != NULL);
    CLI_OK(CLI_TINY "--dry-run --workers 6");
    CHECK(strstr(cli_out, "lie") == NULL);
    cli_end();
}

TEST(a_dry_run_writes_nothing_but_its_page) {
    cli_begin();
    uint64_t before = cli_snapshot();
    CLI_OK(CLI_TINY "--dry-run --workers 3 --out a");
    CHECK(strstr(cli_out, "parameters") && strstr(cli_out, "transformer.wte.weight") &&
          strstr(cli_out, "memory"));
    CHECK_EQ(*cli_err, 0);
    CHECK(before == cli_snapshot());
    cli_end();
}

TEST(progress_in_a_pipe_is_plain_lines_and_quiet_is_quiet) {
    cli_begin();
    CLI_OK("--data text.txt --layers 1 --heads 2 --width 32 --context 16 --steps 10 --eval-every 5 "
           "--workers 3 --out a");
    CHECK(!strchr(cli_err, '\r') && !strchr(cli_err, '\033') && strstr(cli_err, "step 5/10"));
    CHECK(strstr(cli_err, "transformer.h.*.attn.c_attn.weight")); /* which rule every tensor got */
    cli_closing();
    CLI_OK(CLI_TINY "--steps 10 --out a");
    CHECK_EQ(*cli_err, 0);
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * error feedback and gossip: two models, many models */

static int cli_open(StFile *f, const char *path) {
    char error[512];
    int failed = st_open(f, path, error, sizeof error);
    if (failed) FAIL("%s", error);
    return !failed;
}

/* Distance between two files' tensors and length of the first's, over the tensors of a whose name begins
 * with `prefix`; b calls them by what follows. */
static double cli_distance(const char *a, const char *b, const char *prefix, double *length) {
    StFile f, g;
    double sum = 0;
    *length = 0;
    if (!cli_open(&f, a)) return NAN;
    if (!cli_open(&g, b)) return st_close(&f), NAN;
    for (size_t i = 0; i < f.n; i++) {
        const StEntry *x = &f.entries[i], *y;
        if (strncmp(x->name, prefix, strlen(prefix)) || !strcmp(x->name, "lm_head.weight"))
            continue; /* the embedding once more */
        if ((y = st_find(&g, x->name + strlen(prefix))) == NULL || y->count != x->count) {
            FAIL("%s has no %s", b, x->name + strlen(prefix));
            continue;
        }
        const float *p = st_data(&f, x), *q = st_data(&g, y);
        for (size_t k = 0; k < x->count; k++) {
            sum += pow((double)p[k] - (double)q[k], 2);
            *length += pow((double)p[k], 2);
        }
    }
    st_close(&f);
    st_close(&g);
    *length = sqrt(*length);
    return sqrt(sum);
}

/* The loss that --eval prints. */
static double cli_eval(const char *line) {
    double val = NAN;
    CLI_OK("--eval %s", line);
    CHECK_EQ(sscanf(cli_out, "val_loss %lf", &val), 1);
    return val;
}

TEST(a_compressed_reply_saves_the_exact_model_logs_both_losses_and_warns_when_they_part) {
    double length;
    cli_begin();
    CLI_OK(CLI_TINY "--method ef21-muonsign --workers 3 --steps 20 --eval-every 5 --out a");
    CHECK(cli_log_value("a", 20, "val_loss") == cli_eval("--out a"));
    CHECK(cli_log_value("a", 20, "exact_val_loss") == cli_eval("--out a --exact"));
    CHECK(cli_log_value("a", 20, "exact_val_loss") != cli_log_value("a", 20, "val_loss"));
    CHECK(isfinite(cli_eval("--out a --exact --from best --threads 2")));
    double gap = cli_log_value("a", 20, "model_gap");
    double apart = cli_distance(cli_path("a/last/exact.safetensors"),
                                cli_path("a/last/model.safetensors"), "", &length);
    CHECK(gap > 1e-4);
    CHECK_NEAR(gap, apart / length, 1e-5 * gap);
    CHECK(isnan(cli_log_value("a", 20, "consensus")) && isnan(cli_log_value("a", 10, "agreement")));
    CLI_OK("--sample 5 --exact --out a");
    CLI_REFUSED(2, "--exact", "--resume --exact --out a");
    CLI_REFUSED(1, "b/last/model.safetensors", "--eval --exact --out b");

    CLI_OK(CLI_TINY "--method ef21-muonusign --workers 3 --steps 20 --out a");
    CLI_OK(CLI_TINY "--method ef21-muonusign --workers 3 --steps 20 --out a"); /* both slots */
    CHECK(access(cli_path("a/last/exact.safetensors"), F_OK) != 0); /* of the run before */
    CHECK(isnan(cli_log_value("a", 20, "exact_val_loss")));
    CHECK(isnan(cli_log_value("a", 20, "model_gap")));
    CLI_REFUSED(1, "--exact", "--eval --exact --out a");
    CLI_REFUSED(1, "--exact", "--sample 5 --exact --out a");
    CLI_OK(CLI_TINY "--method ef21-muon --down damping:0.01 --workers 3 --steps 16 --eval-every 2 "
                    "--schedule constant --lr 0.3 --aux same --out a");
    const char *warning = strstr(cli_err, "warning: ");
    CHECK(warning && !strstr(warning + 1, "warning: "));
    CHECK(warning && strstr(warning, "--down damping:0.01") &&
          strstr(warning, "exact.safetensors"));
    double exact = NAN, val = NAN;
    long step = 0;
    CHECK(warning && sscanf(warning,
                            "warning: the server's exact model has loss %lf and the workers' model "
                            "%lf at step %ld:",
                            &exact, &val, &step) == 3);
    CHECK_NEAR(cli_log_value("a", step, "exact_val_loss"), exact, 6e-5);
    CHECK_NEAR(cli_log_value("a", step, "val_loss"), val, 6e-5);
    for (long k = 2; k <= step; k += 2) { /* the first time, and not before */
        double parted = cli_log_value("a", k, "exact_val_loss") - cli_log_value("a", k, "val_loss");
        CHECK((fabs(parted) > 0.05) == (k == step));
    }
    CLI_OK(CLI_TINY "--method ef21-muon --down natural --workers 3 --steps 16 --eval-every 2 "
                    "--out a");
    CHECK_EQ(*cli_err, 0);
    cli_end();
}

/* |mean of the nodes' tensors - model.safetensors|, largest entry; *consensus <- the distance of the
 * nodes from it */
static double cli_mean_differs(const char *out, int nodes, double *consensus) {
    StFile model, node[8];
    double worst = 0, square = 0;
    if (!cli_open(&model, cli_path("%s/last/model.safetensors", out))) return NAN;
    for (int j = 0; j < nodes; j++)
        if (!cli_open(&node[j], cli_path("%s/last/worker-%d.safetensors", out, j))) return NAN;
    for (size_t i = 0; i < model.n; i++) {
        const StEntry *x = &model.entries[i];
        const float *m = st_data(&model, x), *p[8];
        char name[128];
        int held = 0;
        snprintf(name, sizeof name, "node.%s", x->name);
        for (; held < nodes && st_find(&node[held], name); held++)
            p[held] = st_data(&node[held], st_find(&node[held], name));
        CHECK(held == nodes || strcmp(x->name, "lm_head.weight") == 0); /* which is tied */
        for (size_t k = 0; k < x->count && held == nodes; k++) {
            double mean = 0;
            for (int j = 0; j < nodes; j++) mean += (double)p[j][k] / nodes;
            for (int j = 0; j < nodes; j++) square += pow((double)p[j][k] - mean, 2);
            worst = fmax(worst, fabs(mean - (double)m[k]));
        }
    }
    for (int j = 0; j < nodes; j++) st_close(&node[j]);
    st_close(&model);
    *consensus = sqrt(square);
    return worst;
}

TEST(a_gossip_run_saves_every_node_and_their_mean_and_logs_how_far_apart_they_are) {
    static const char *const lines[] = {"--method demuon --eval-nodes always",
                                        "--method dsgd --topology star",
                                        "--method demuon --topology complete"};
    cli_begin();
    for (int k = 0; k < 3; k++) {
        double distance = NAN, node[3];
        static const char *const columns[] = {"node_val_min", "node_val_mean", "node_val_max"};
        CLI_OK(CLI_TINY "--workers 4 --steps 12 --eval-every 6 --log-every 4 --out a %s", lines[k]);
        CHECK_NEAR(cli_mean_differs("a", 4, &distance), 0, 1e-7);
        double val = cli_log_value("a", 12, "val_loss");
        CHECK(val == cli_eval("--out a"));
        CHECK_NEAR(cli_log_value("a", 12, "consensus"), distance, 1e-5 * distance + 1e-9);
        CHECK(isfinite(cli_log_value("a", 4, "consensus")));
        CHECK(isfinite(cli_log_value("a", 6, "node_val_min")) == (k == 0));
        for (int i = 0; i < 3; i++) node[i] = cli_log_value("a", 12, columns[i]);
        if (k < 2)
            CHECK(node[0] < node[1] && node[1] < node[2] && distance > 1e-3);
        else
            CHECK(distance < 1e-5 && node[0] == node[2] && fabs(node[1] - val) < 2e-6);
        CHECK_NEAR(node[1], val, 0.1);
        CHECK(isnan(cli_log_value("a", 12, "exact_val_loss")));
    }
    CLI_OK(CLI_TINY "--workers 4 --steps 2 --method demuon --eval-nodes never --out a");
    CHECK(isnan(cli_log_value("a", 2, "node_val_mean")));
    CHECK(isfinite(cli_log_value("a", 2, "consensus")));
    cli_end();
}

/* Writes a file again with zeros in the tensors whose names begin with `prefix`; returns how many. */
static int cli_zero(const char *path, const char *prefix) {
    char error[512];
    StFile f;
    StTensor t[256];
    int found = 0;
    size_t n = 0;
    if (!cli_open(&f, path)) return 0;
    float *zeros = calloc(1, f.size);
    for (; n < f.n && n < 256; n++) {
        const StEntry *e = &f.entries[n];
        int here = strncmp(e->name, prefix, strlen(prefix)) == 0;
        t[n] = (StTensor){.name = e->name, .dtype = e->dtype, .rank = e->rank};
        memcpy(t[n].shape, e->shape, sizeof e->shape);
        t[n].data = here ? zeros : st_data(&f, e);
        found += here;
    }
    StPair meta[64];
    size_t pairs = 0;
    for (size_t i = 0; i < f.n_meta && pairs < 64; i++) /* the format writes its own checksum */
        if (strncmp(f.meta[i].key, "checksum", 8)) meta[pairs++] = f.meta[i];
    if (st_write(path, t, n, meta, pairs, error, sizeof error)) FAIL("%s", error);
    free(zeros);
    st_close(&f);
    return found;
}

/* What no other file could make good: a resumed run is another one without it. */
TEST(resuming_without_the_tracker_the_estimates_or_the_exact_model_is_another_run) {
    static const struct {
        const char *method;
        const char *lost[4];
    } rows[] = {{"demuon", {"nothing", "tracker.", "estimate.", "node."}},
                {"ef21-muonsign", {"nothing", "estimate.", "ef21.model.", "ef21.aggregate."}}};
    const char *first;
    cli_begin();
    for (int row = 0; row < 2; row++) {
        char line[512];
        snprintf(line, sizeof line,
                 CLI_TINY "--workers 3 --method %s --schedule constant --save-every 0",
                 rows[row].method);
        CLI_OK("%s --steps 10 --out a", line);
        for (int k = 0; k < 4; k++) {
            int found = 0;
            CLI_OK("%s --steps 5 --out b", line);
            for (int j = 0; j < 3; j++)
                found += cli_zero(cli_path("b/last/worker-%d.safetensors", j), rows[row].lost[k]);
            CHECK(found ? k > 0 : k == 0);
            CLI_OK("--resume --steps 10 --quiet --out b");
            int differ = cli_differences(cli_path("a/last/model.safetensors"),
                                         cli_path("b/last/model.safetensors"), &first);
            if (k ? differ <= 0 : differ)
                FAIL("%s without its %s: %d tensors differ", rows[row].method, rows[row].lost[k],
                     differ);
        }
    }
    cli_end();
}

/* ------------------------------------------------------------------------------------------------
 * kinds of data */

TEST(any_bytes_any_characters_and_token_shards_can_be_trained_on) {
    static char bytes[20000];
    static const char *const letters[] = {"g", "r", "ö", "ß", "e", "ż", "ł", "日", "本", "😀", "Ω"};
    cli_begin();
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(test_hash(i % 997) % 256);
    for (size_t i = 0; i < 256; i++) bytes[i] = (char)i;
    cli_put("bytes.dat", bytes, sizeof bytes);
    CLI_OK(CLI_TINY "--data bytes.dat --steps 5 --out a --workers 2");
    CLI_OK("--out a --sample 50 --prompt 'a'");
    CHECK_EQ(cli_out_size, 51);
    CLI_OK("--eval --out a");
    CLI_OK("--resume --out a --steps 8 --quiet");
    CLI_OK(
        CLI_TINY
        "--data bytes.dat --steps 8 --schedule constant --out b --workers 2 --backend processes");

    cli_write_words("words.txt", 20000, letters, sizeof letters / sizeof *letters);
    CLI_OK(CLI_TINY "--data words.txt --steps 5 --out a --workers 2");
    CLI_OK("--out a --sample 50 --prompt 'größe 日本 😀'");
    CHECK_EQ(cli_characters(cli_out, cli_out_size), 10 + 50);
    CHECK(strncmp(cli_out, "größe 日本 😀", strlen("größe 日本 😀")) == 0);
    CLI_REFUSED(2, "--prompt", "--out a --sample 5 --prompt 'größé'");
    CLI_OK(CLI_TINY "--data words.txt --vocab bytes --steps 5 --out b");
    CLI_OK("--out b --sample 50 --prompt 'größe'");
    CHECK_EQ(cli_out_size, strlen("größe") + 50);

    cli_write_shard("shard_000.bin", 900, 0);
    cli_write_shard("shard_001.bin", 700, 0);
    CLI_OK("--data 'shard_*.bin' --layers 1 --heads 2 --width 16 --context 8 --batch 4 --workers 2 "
           "--steps 3 --quiet --aux sign --out c");
    double val = cli_closing().val, again = 0;
    CHECK(val > 0 && val < 12);
    CLI_OK("--eval --out c");
    CHECK_EQ(sscanf(cli_out, "val_loss %lf", &again), 1);
    CHECK_NEAR(val, again, 5.1e-5);
    CLI_OK("--sample 5 --out c");
    CHECK(cli_out_size > 0 && !*cli_err);
    cli_end();
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < test_count; i++) {
        if (argc > 1 && !strstr(test_cases[i].name, argv[1])) continue;
        test_failures_here = 0;
        test_cases[i].run();
        printf("%s %s\n", test_failures_here ? "FAIL" : "ok  ", test_cases[i].name);
        if (test_failures_here)
            failed++;
        else
            passed++;
    }
    if (!passed && !failed) printf("no test is named like '%s'\n", argc > 1 ? argv[1] : "");
    printf("%d passed, %d failed\n", passed, failed);
    return failed || !passed;
}
