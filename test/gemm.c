/* gemm.c - lib/gemm.h: every product against the naive loop, and bits that must not depend on form. */
#include "test.h"

#include <math.h>
#include "../lib/gemm.h"

static const char *const isa_names[] = {"amx", "avx512bf16", "avx512", "avx2", "neon", "portable"};
enum { ISAS = sizeof isa_names / sizeof *isa_names };

/* how the operands lie: row-major or transposed */
static const struct Layout {
    const char *name;
    int a_transposed, b_transposed;
} layouts[] = {{.name = "nn", .a_transposed = 0, .b_transposed = 0},
               {.name = "nt", .a_transposed = 0, .b_transposed = 1},
               {.name = "tn", .a_transposed = 1, .b_transposed = 0}};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

/* Operands and results of one product, each in a block of exactly its size, so that a sanitizer
 * sees a step over the edge; leading dimensions are `pad` columns and more beyond the tight ones.
 */
typedef struct Case {
    const struct Layout *layout;
    size_t m, n, k, lda, ldb, ldc, na, nb;
    float *a, *b, *c, *start, *expect, *scratch;
} Case;

static float *floats(size_t n) {
    float *x = malloc((n ? n : 1) * sizeof *x);
    if (!x) abort();
    return x;
}

static Case case_of(const struct Layout *layout, size_t m, size_t n, size_t k, size_t pad,
                    uint64_t seed) {
    Case t = {.layout = layout, .m = m, .n = n, .k = k};
    t.lda = (layout->a_transposed ? m : k) + pad;
    t.ldb = (layout->b_transposed ? k : n) + pad * 2;
    t.ldc = n + pad * 3;
    t.na = (layout->a_transposed ? k : m) * t.lda;
    t.nb = (layout->b_transposed ? n : k) * t.ldb;
    t.a = floats(t.na);
    t.b = floats(t.nb);
    t.c = floats(m * t.ldc);
    t.start = floats(m * t.ldc);
    t.expect = floats(m * t.ldc);
    t.scratch = floats(gemm_scratch());
    test_fill_normal(t.a, t.na, 3 * seed);
    test_fill_normal(t.b, t.nb, 3 * seed + 1);
    test_fill_normal(t.start, m * t.ldc, 3 * seed + 2);
    memcpy(t.expect, t.start, m * t.ldc * sizeof *t.c);
    return t;
}

static void case_free(Case *t) {
    float *blocks[] = {t->a, t->b, t->c, t->start, t->expect, t->scratch};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

static GemmOperand operand_a(const Case *t) {
    return t->layout->a_transposed ? gemm_f32(t->a, 1, t->lda) : gemm_f32(t->a, t->lda, 1);
}
static GemmOperand operand_b(const Case *t) {
    return t->layout->b_transposed ? gemm_f32(t->b, t->ldb, 1) : gemm_f32(t->b, 1, t->ldb);
}

/* c = start, then the product in nth slices, the last one first; scratch begins as NaN */
static void run_operands(const Gemm *g, Case *t, GemmOperand a, GemmOperand b, int accumulate,
                         int nth) {
    memcpy(t->c, t->start, t->m * t->ldc * sizeof *t->c);
    for (int ith = nth - 1; ith >= 0; ith--) {
        memset(t->scratch, 0xff, gemm_scratch() * sizeof(float));
        gemm_multiply(g, t->c, t->ldc, a, b, t->m, t->n, t->k, accumulate, t->scratch, ith, nth);
    }
}

static void run(const Gemm *g, Case *t, int accumulate, int nth) {
    run_operands(g, t, operand_a(t), operand_b(t), accumulate, nth);
}

static int same_bits(const Case *t) {
    return !memcmp(t->c, t->expect, t->m * t->ldc * sizeof *t->c);
}

static void expect_naive(Case *t, int accumulate) {
    GemmOperand a = operand_a(t), b = operand_b(t);
    gemm_naive(t->expect, t->ldc, t->a, a.lane, a.depth, t->b, b.depth, b.lane, t->m, t->n, t->k,
               accumulate);
}

/* c against expect; what lies beyond the columns must be untouched */
static void compare(const Gemm *g, const Case *t, int accumulate) {
    /* each of k roundings is at most 2^-24 of a partial sum, whose size is about sqrt(k) */
    double tolerance = 0x1p-24 * 8 * (1 + sqrt((double)t->k)) * (1 + sqrt((double)t->k));
    for (size_t i = 0; i < t->m * t->ldc; i++) {
        double got = t->c[i], expect = t->expect[i];
        if (fabs(got - expect) <= (i % t->ldc < t->n ? tolerance : 0)) continue;
        test_fail(__FILE__, __LINE__, "%s %s %zux%zux%zu ldc %zu add %d: C[%zu] is %.9g, not %.9g",
                  g->name, t->layout->name, t->m, t->n, t->k, t->ldc, accumulate, i, got, expect);
        return;
    }
}

TEST(gemm_naive_is_the_sum_of_products) {
    const float a[2 * 3] = {1, 2, 3, 4, 5, 6}, b[3 * 2] = {7, 8, 9, 10, 11, 12};
    float c[2 * 2] = {1, 1, 1, 1};
    gemm_naive(c, 2, a, 3, 1, b, 2, 1, 2, 2, 3, 1);
    CHECK(c[0] == 59 && c[1] == 65 && c[2] == 140 && c[3] == 155);
}

/* The last rows of the table have an A or a B that is packed because its rows lie far apart, or is
 * read in place. */
TEST(gemm_agrees_with_naive_on_ragged_shapes) {
    static const size_t shapes[][4] = {
        {0, 5, 7, 0},        {5, 0, 7, 0},       {19, 45, 0, 1},   {1, 1, 1, 0},
        {1, 33, 19, 1},      {33, 1, 19, 2},     {2, 3, 5, 3},     {3, 7, 4, 4},
        {4, 8, 16, 5},       {5, 9, 17, 1},      {5, 15, 3, 2},    {6, 16, 33, 3},
        {7, 17, 15, 4},      {7, 31, 9, 5},      {8, 32, 24, 1},   {9, 33, 1, 2},
        {13, 47, 18, 3},     {63, 65, 31, 4},    {67, 129, 37, 5}, {70, 40, 383, 1},
        {12, 20, 385, 2},    {131, 37, 769, 3},  {9, 545, 40, 4},  {200, 515, 29, 5},
        {70, 131, 400, 290}, {150, 140, 400, 0}, {70, 300, 40, 0}, {37, 36, 400, 290}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes * LAYOUTS * 4; i++) {
        const size_t *s = shapes[i / 4 / LAYOUTS];
        int accumulate = i & 1;
        Case t = case_of(&layouts[i / 4 % LAYOUTS], s[0], s[1], s[2], i & 2 ? s[3] : 0, 100 + i);
        size_t size = t.m * t.ldc * sizeof *t.c;
        float *start = memcpy(floats(t.m * t.ldc), t.start, size);
        expect_naive(&t, accumulate);
        for (size_t isa = 0; isa < ISAS; isa++) {
            const Gemm *g = gemm_select(isa_names[isa], GEMM_F32);
            if (!g) continue;
            run(g, &t, accumulate, 1);
            compare(g, &t, accumulate);
            if (t.layout->a_transposed) continue;
            memcpy(t.start, start, size);
            for (int ith = 0; ith < 2; ith++)
                (t.layout->b_transposed ? gemm_nt : gemm_nn)(g, t.start, t.ldc, t.a, t.lda, t.b,
                                                             t.ldb, t.m, t.n, t.k, accumulate,
                                                             t.scratch, ith, 2);
            CHECK(!memcmp(t.start, t.c, size), "%s case %zu", g->name, i);
            memcpy(t.start, start, size);
        }
        free(start);
        case_free(&t);
    }
}

TEST(gemm_bits_do_not_depend_on_slices) {
    static const size_t shapes[][3] = {{67, 70, 400}, {1, 130, 50}, {19, 45, 0}, {23, 300, 391}};
    static const int slices[] = {2, 3, 5, 7, 64};
    for (size_t i = 0; i < 4 * LAYOUTS * ISAS * 2; i++) {
        const size_t *s = shapes[i % 4];
        const Gemm *g = gemm_select(isa_names[i / 4 / LAYOUTS % ISAS],
                                    i / 4 / LAYOUTS / ISAS ? GEMM_BF16 : GEMM_F32);
        if (!g) continue;
        Case t = case_of(&layouts[i / 4 % LAYOUTS], s[0], s[1], s[2], 2, 500 + i);
        run(g, &t, 1, 1);
        memcpy(t.expect, t.c, t.m * t.ldc * sizeof *t.c);
        for (size_t j = 0; j < sizeof slices / sizeof *slices; j++) {
            run(g, &t, 1, slices[j]);
            CHECK(same_bits(&t), "%s, case %zu, %d slices", g->name, i, slices[j]);
        }
        case_free(&t);
    }
}

/* C of the same values from all layouts, tight and padded, and each row as a product of its own: a
 * token decoded alone has the bits of the same token in a batch */
TEST(gemm_bits_do_not_depend_on_layout) {
    enum { M = 77, N = 141, K = 401 };
    for (size_t isa = 0; isa < ISAS; isa++) {
        const Gemm *g = gemm_select(isa_names[isa], GEMM_F32);
        if (!g) continue;
        Case first = case_of(&layouts[0], M, N, K, 0, 700);
        run(g, &first, 0, 1);
        for (size_t kind = 0; kind < 2 * LAYOUTS; kind++) {
            Case t = case_of(&layouts[kind / 2], M, N, K, kind % 2 * 7, 710);
            GemmOperand a = operand_a(&t), b = operand_b(&t);
            for (size_t p = 0; p < K; p++) {
                for (size_t i = 0; i < M; i++) t.a[i * a.lane + p * a.depth] = first.a[i * K + p];
                for (size_t j = 0; j < N; j++) t.b[j * b.lane + p * b.depth] = first.b[p * N + j];
            }
            run(g, &t, 0, 1);
            for (size_t i = 0; i < M; i++) {
                float row[N];
                const void *expect = first.c + i * N;
                CHECK(!memcmp(t.c + i * t.ldc, expect, sizeof row), "%s %s row %zu", g->name,
                      t.layout->name, i);
                if (i > 1 && i + 1 < M) continue;
                gemm_multiply(g, row, N, gemm_f32(t.a + i * a.lane, a.lane, a.depth), b, 1, N, K, 0,
                              t.scratch, 0, 1);
                CHECK(!memcmp(row, expect, sizeof row), "%s %s row %zu alone", g->name,
                      t.layout->name, i);
            }
            case_free(&t);
        }
        case_free(&first);
    }
}

TEST(gemm_symmetric_has_the_bits_of_full) {
    for (size_t isa = 0; isa < 2 * ISAS; isa++) {
        const Gemm *g = gemm_select(isa_names[isa / 2], isa % 2 ? GEMM_BF16 : GEMM_F32);
        for (size_t m = 1; g && m < 300; m += 1 + m / 3) {
            Case t = case_of(&layouts[1], m, m, 1 + test_hash(m, 0) % 500, 2, m);
            GemmOperand a = operand_a(&t);
            memcpy(t.expect, t.start, m * t.ldc * sizeof *t.c);
            memcpy(t.c, t.start, m * t.ldc * sizeof *t.c);
            gemm_multiply(g, t.expect, t.ldc, a, a, m, m, t.k, 0, t.scratch, 0, 1);
            gemm_symmetric(g, t.c, t.ldc, a, a, m, t.k, t.scratch);
            CHECK(same_bits(&t), "%s m %zu", g->name, m);
            case_free(&t);
        }
    }
}

TEST(bf16_rounds_to_nearest_even) {
    for (uint64_t i = 0; i < 20000; i++) {
        uint32_t bits = (uint32_t)test_hash(31, i);
        if (i % 4 == 0) bits = (bits & 0xffff0000) | 0x8000; /* ties */
        uint32_t low = bits & 0xffff0000, up = low + 0x10000;
        float x, r, below, above;
        memcpy(&x, &bits, 4);
        memcpy(&below, &low, 4);
        memcpy(&above, &up, 4);
        if (!isfinite(x) || fabsf(x) > 3e38f) continue;
        r = gemm_from_bf16(gemm_to_bf16(x));
        double down = fabs((double)x - (double)below), rise = fabs((double)above - (double)x);
        int even = (low >> 16 & 1) == 0;
        CHECK(r == (down < rise || (down == rise && even) ? below : above), "%a", (double)x);
    }
    CHECK(isnan(gemm_from_bf16(gemm_to_bf16(NAN))));
    CHECK(gemm_from_bf16(gemm_to_bf16(-INFINITY)) == -INFINITY);
}

/* The order of amx: of 32 consecutive k the even and the odd products in two chains, whose sum is
 * added to C; a and b hold what bf16 can. */
static void expect_strips(Case *t, int accumulate) {
    GemmOperand a = operand_a(t), b = operand_b(t);
    for (size_t i = 0; i < t->m * t->n; i++) {
        const float *row = t->a + i / t->n * a.lane, *col = t->b + i % t->n * b.lane;
        float *c = t->expect + i / t->n * t->ldc + i % t->n;
        if (!accumulate) *c = 0;
        for (size_t from = 0; from < t->k; from += 32) {
            float chain[2] = {0, 0};
            for (size_t p = from; p < t->k && p < from + 32; p++)
                chain[p % 2] = fmaf(row[p * a.depth], col[p * b.depth], chain[p % 2]);
            *c += chain[0] + chain[1];
        }
    }
}

/* odd k, several blocks of k, operands in fp32 and in bf16 memory; amx has an order of its own */
TEST(bf16_bits_are_the_same_on_every_isa) {
    static const size_t shapes[][3] = {
        {1, 1, 1}, {7, 33, 5}, {67, 70, 130}, {9, 40, 769}, {131, 37, 385}};
    for (size_t i = 0; i < 5 * LAYOUTS; i++) {
        const size_t *s = shapes[i / LAYOUTS];
        Case t = case_of(&layouts[i % LAYOUTS], s[0], s[1], s[2], 2, 950 + i);
        size_t bytes = t.m * t.ldc * sizeof *t.c;
        float *a = t.a, *b = t.b, *first = floats(t.m * t.ldc);
        uint16_t *half_a = malloc(t.na * 2), *half_b = malloc(t.nb * 2);
        t.a = floats(t.na);
        t.b = floats(t.nb);
        for (size_t j = 0; j < t.na; j++) t.a[j] = gemm_from_bf16(half_a[j] = gemm_to_bf16(a[j]));
        for (size_t j = 0; j < t.nb; j++) t.b[j] = gemm_from_bf16(half_b[j] = gemm_to_bf16(b[j]));
        float *strips = t.expect;
        expect_strips(&t, i & 1);
        t.expect = floats(t.m * t.ldc);
        memcpy(t.expect, t.start, bytes);
        expect_naive(&t, i & 1);
        free(t.a), free(t.b);
        t.a = a, t.b = b;
        GemmOperand ha = operand_a(&t), hb = operand_b(&t);
        ha = gemm_bf16(half_a, ha.lane, ha.depth);
        hb = gemm_bf16(half_b, hb.lane, hb.depth);
        for (size_t isa = ISAS; isa-- > 0;) { /* portable first */
            const Gemm *g = gemm_select(isa_names[isa], GEMM_BF16);
            if (!g) continue;
            run(g, &t, i & 1, 1);
            compare(g, &t, i & 1);
            if (isa == ISAS - 1) memcpy(first, t.c, bytes);
            if (g->word == GEMM_TILES) memcpy(first, strips, bytes);
            CHECK(!memcmp(first, t.c, bytes), "%s case %zu", g->name, i);
            run_operands(g, &t, ha, hb, i & 1, 1);
            CHECK(!memcmp(first, t.c, bytes), "%s case %zu, stored as bf16", g->name, i);
        }
        free(half_a);
        free(half_b);
        free(first);
        free(strips);
        case_free(&t);
    }
}

/* B packed by three threads; A and B packed in slices of the depth; used by three threads */
TEST(gemm_packed_has_the_bits_of_plain) {
    static const size_t shapes[][3] = {{5, 9, 17}, {67, 70, 130}, {64, 96, 769}, {131, 37, 385}};
    for (size_t i = 0; i < 4 * 2 * ISAS; i++) {
        const size_t *s = shapes[i % 4], m = s[0], n = s[1], k = s[2];
        const Gemm *g = gemm_select(isa_names[i / 8], i / 4 % 2 ? GEMM_BF16 : GEMM_F32);
        if (!g) continue;
        Case t = case_of(&layouts[2], m, n, k, 3, 1000 + i);
        const GemmOperand a = operand_a(&t), b = operand_b(&t);
        size_t size = gemm_packed_floats(g, GEMM_B, n, k);
        float *pa = floats(gemm_packed_floats(g, GEMM_A, m, k)), *pb = floats(size);
        float *slices = floats(size);
        run(g, &t, 0, 1);
        memcpy(t.expect, t.c, m * t.ldc * sizeof *t.c);
        for (int ith = 0; ith < 3; ith++) gemm_pack(g, pb, b, n, k, ith, 3);
        for (size_t from = 0; from < k; from += 64) {
            size_t part = k - from < 64 ? k - from : 64;
            gemm_pack_depth(g, GEMM_A, pa, k, gemm_f32(t.a + from * t.lda, 1, t.lda), m, from,
                            part);
            gemm_pack_depth(g, GEMM_B, slices, k, gemm_f32(t.b + from * t.ldb, 1, t.ldb), n, from,
                            part);
        }
        CHECK(!memcmp(pb, slices, size * sizeof *pb), "%s case %zu", g->name, i);
        for (int packed_a = 0; packed_a < 2; packed_a++) {
            run_operands(g, &t, packed_a ? gemm_packed(pa, k) : a, gemm_packed(pb, k), 0, 3);
            CHECK(same_bits(&t), "%s case %zu, A packed %d", g->name, i, packed_a);
        }
        /* the first columns and depths of a longer packed B */
        t.n = n / 2 + 1;
        t.k = k / 2 / 2 * 2 + 2;
        run_operands(g, &t, a, b, 0, 1);
        memcpy(t.expect, t.c, m * t.ldc * sizeof *t.c);
        run_operands(g, &t, a, gemm_packed(pb, k), 0, 1);
        CHECK(same_bits(&t), "%s case %zu, part of B", g->name, i);
        free(pa);
        free(pb);
        free(slices);
        case_free(&t);
    }
}

TEST(gemm_isa_is_chosen_by_name_or_environment) {
    const char *const unknown[] = {"avx1024", "AVX2", "avx", "avx2 "};
    const Gemm *best = gemm_select(NULL, GEMM_F32);
    for (size_t i = 0; i < 4; i++) CHECK(!gemm_select(unknown[i], GEMM_F32), "%s", unknown[i]);
    CHECK(best && best == gemm_select("", GEMM_F32));
    CHECK(gemm_select("portable", GEMM_F32) != NULL);
    for (size_t i = 0; i < 2 * ISAS; i++) {
        const Gemm *g = gemm_select(isa_names[i / 2], i % 2 ? GEMM_BF16 : GEMM_F32);
        if (!g) continue;
        CHECK(!strcmp(g->name, isa_names[i / 2]) && g->supported() == 1);
        CHECK(g->mr <= GEMM_MR_MAX && g->nr <= GEMM_NR_MAX);
        CHECK((g->word == GEMM_FLOATS) == !(i & 1));
    }
    setenv("GEMM_ISA", "portable", 1);
    CHECK(gemm_default(GEMM_F32) == gemm_select("portable", GEMM_F32));
    setenv("GEMM_ISA", "sse9", 1);
    CHECK(!gemm_default(GEMM_F32));
    unsetenv("GEMM_ISA");
    CHECK(gemm_default(GEMM_F32) == best);
}
