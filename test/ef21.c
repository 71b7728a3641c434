/* ef21.c - ef21muon.h: every compressor over ragged shapes and awkward matrices, messages, error
 * feedback. */
#include "../ef21muon.h"

#include "test.h"

// clang-format off
/* What is tried of each row. */
static const char *const texts[] = {
    "identity",    "topk:0.15",         "topk:1%",      "topk:1",    "topk:10%+natural",
    "damping:0.7", "rankk:0.15",        "rankk:1",      "sign",      "topk:0.3+natural:stochastic",
    "dropout:0.4", "rankk:15%+natural", "coltopk:0.15", "dropout:1", "rankk:0.3+natural:stochastic",
    "coltopk:2%",  "natural",           "coltopk:0.3+natural",       "natural:stochastic"};
// clang-format on
enum { TEXTS = sizeof texts / sizeof *texts };

static const size_t shapes[][2] = {{1, 1},   {1, 7},    {9, 1},   {1, 64},  {65, 1},
                                   {3, 5},   {6, 4},    {13, 29}, {31, 9},  {17, 64},
                                   {70, 33}, {33, 130}, {64, 2},  {5, 300}, {129, 20}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static EfLink link_of(const char *text) {
    EfLink l;
    char error[400];
    if (!ef_parse(&l, text, error, sizeof error)) return l;
    printf("%s\n", error);
    abort();
}

static int is_random(const EfLink *l) { return l->stochastic || l->row->dropout; }

/* A link and a shape with blocks of exactly the sizes that the header asks for, so that a sanitizer
 * sees a step over the edge. Scratch begins as NaN, the message at an odd address. */
typedef struct Blocks {
    EfLink link;
    size_t rows, cols, d, room;
    float *x, *out, *warm, *scratch;
    unsigned char *block, *message;
} Blocks;

static Blocks blocks(const char *text, size_t rows, size_t cols) {
    Blocks b = {.link = link_of(text), .rows = rows, .cols = cols, .d = rows * cols};
    size_t floats = ef_scratch(&b.link, rows, cols), warm = ef_warm(&b.link, rows, cols);
    b.room = ef_most_bytes(&b.link, rows, cols);
    b.x = calloc(b.d, sizeof *b.x);
    b.out = calloc(b.d, sizeof *b.out);
    b.warm = warm ? calloc(warm, sizeof *b.warm) : NULL;
    b.scratch = aligned_alloc(64, (floats * sizeof *b.scratch + 63) / 64 * 64);
    b.block = malloc(b.room + 1);
    if (!b.x || !b.out || !b.scratch || !b.block || (warm && !b.warm)) abort();
    memset(b.scratch, 0xff, floats * sizeof *b.scratch);
    b.message = b.block + 1;
    return b;
}

static void release(Blocks *b) {
    free(b->x), free(b->out), free(b->warm), free(b->scratch), free(b->block);
}

static void compress(Blocks *b, uint64_t key, uint64_t coin) {
    ef_compress(b->message, b->out, b->x, b->rows, b->cols, &b->link, key, coin, b->warm,
                b->scratch);
}

/* as if no message was sent before */
static void forget(Blocks *b) {
    if (b->warm) memset(b->warm, 0, ef_warm(&b->link, b->rows, b->cols) * sizeof *b->warm);
}

/* Entry i of the k-th vector of an orthonormal basis: the discrete cosine transform. */
static double cosine(size_t n, size_t i, size_t k) {
    double angle = 3.14159265358979 * (2 * (double)i + 1) * (double)(k % n) / (2 * (double)n);
    return sqrt((k % n ? 2 : 1) / (double)n) * cos(angle);
}

/* x (m x n) <- sum of sigma_k u_k v_k^T over r; sigma_k = 4 ratio^k */
static void known_svd(float *x, size_t m, size_t n, size_t r, double ratio, size_t key) {
    for (size_t i = 0; i < m * n; i++) {
        double sum = 0;
        for (size_t k = 0; k < r; k++)
            sum += 4 * pow(ratio, (double)k) * cosine(m, i / n, k + key) *
                   cosine(n, i % n, 2 * key + k);
        x[i] = (float)sum;
    }
}

static const char *const kinds[] = {
    "normal", "sparse",     "one-hot", "constant",   "zero", "just below 1.5", "1.5",
    "4/3",    "orthogonal", "rank 1",  "all scales", "tiny", "equal columns"};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* A matrix of a kind that is bad for some compressor. */
static void fill(float *x, size_t rows, size_t cols, size_t kind, uint64_t key) {
    size_t d = rows * cols;
    test_fill_normal(x, d, key);
    if (kind == 8) known_svd(x, rows, cols, rows < cols ? rows : cols, 1, key);
    for (size_t i = 0; i < d; i++) {
        size_t row = i / cols, col = i % cols;
        float sign = x[i] < 0 ? -1.0f : 1.0f;
        if (kind == 1 && test_uniform(key, i) < 0.95) x[i] = 0;
        if (kind == 2) x[i] = i == (key * 7 + 3) % d ? -2.7f : 0;
        if (kind == 3) x[i] = -0.3f;
        if (kind == 4) x[i] = 0;
        if (kind == 5) x[i] = sign * 1.4999999f * (i % 3 ? 1.0f : 8.0f);
        if (kind == 6) x[i] = sign * 1.5f * (i % 5 ? 1.0f : 0.25f);
        if (kind == 7) x[i] = sign * (4.0f / 3.0f);
        if (kind == 9) x[i] = (float)(sin(1.0 + (double)row) * cos(2.0 + (double)(col * col)));
        if (kind == 10) x[i] *= (float)pow(10, 30 * test_uniform(key, i) - 15);
        if (kind == 11) x[i] *= 1e-25f;
        if (kind == 12) x[i] = x[row * cols];
    }
}

static double distance(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = (double)a[i] - (b ? (double)b[i] : 0);
        sum += difference * difference;
    }
    return sum;
}
static double energy(const float *x, size_t n) { return distance(x, NULL, n); }

/* ------------------------------------------------------------------------------------------------
 * contraction */

/* One warm start passes through all kinds in turn, so it mostly comes from another matrix. */
TEST(compressors_contract_as_guaranteed) {
    for (size_t i = 0; ef_compressor_row(i); i++) {
        size_t k = 0;
        while (k < TEXTS && link_of(texts[k]).row != ef_compressor_row(i)) k++;
        CHECK(k < TEXTS, "(%s is not tried)", ef_compressor_row(i)->name);
    }
    for (size_t k = 0; k < TEXTS; k++)
        for (size_t s = 0; s < SHAPES; s++) {
            Blocks b = blocks(texts[k], shapes[s][0], shapes[s][1]);
            double alpha = ef_contraction(&b.link, b.rows, b.cols);
            CHECK(alpha > 0 && alpha <= 1);
            for (size_t step = 0; step < 2 * KINDS && !is_random(&b.link); step++) {
                size_t kind = step * 5 % KINDS;
                fill(b.x, b.rows, b.cols, kind, step + 1);
                compress(&b, sm_key(1, 2, step), 0);
                double all = energy(b.x, b.d), error = distance(b.out, b.x, b.d);
                CHECK(error <= (1 - alpha + 2e-6) * all, "(%s, %zu x %zu, %s: %.7f of %.7f)",
                      texts[k], b.rows, b.cols, kinds[kind], error / all, 1 - alpha);
            }
            release(&b);
        }
}

TEST(random_compressors_contract_in_expectation) {
    enum { DRAWS = 400 };
    for (size_t k = 0; k < TEXTS; k++)
        for (size_t kind = 0; kind < KINDS; kind++) {
            Blocks b = blocks(texts[k], 11, 6);
            double sum = 0, squares = 0, alpha = ef_contraction(&b.link, b.rows, b.cols);
            fill(b.x, b.rows, b.cols, kind, 5);
            double all = energy(b.x, b.d);
            for (uint64_t draw = 0; draw < DRAWS && is_random(&b.link); draw++) {
                forget(&b);
                compress(&b, sm_key(2, 3, draw), test_hash(7, draw));
                double error = distance(b.out, b.x, b.d) / (all > 0 ? all : 1);
                sum += error, squares += error * error;
            }
            double mean = sum / DRAWS;
            double spread = sqrt(fmax(squares / DRAWS - mean * mean, 0) / DRAWS);
            CHECK(mean <= 1 - alpha + 4 * spread + 2e-6, "(%s, %s: %.4f +- %.4f of %.4f)", texts[k],
                  kinds[kind], mean, spread, 1 - alpha);
            release(&b);
        }
}

TEST(natural_rounds_to_the_nearest_power) {
    // clang-format off
    static const float known[][2] = { /* x, C(x) */
        {1.5f, 2}, {0x1.7ffffep0f, 1}, {-1.5f, -2}, {1, 1}, {0x1.fffffep0f, 2}, {0, 0}, {-0.0f, 0},
        {-0.74f, -0.5f}, {0x1p-126f, 0x1p-126f}, {0x1.8p-126f, 0x1p-125f}, {0x1p-127f, 0},
        {0x1p-149f, 0}, {3e38f, 0x1p127f}, {-3.4e38f, -0x1p127f}, {0x1.fffffcp-127f, 0}};
    // clang-format on
    enum { KNOWN = sizeof known / sizeof *known };
    Blocks b = blocks("natural", 200, 3);
    test_fill_normal(b.x, b.d, 77);
    for (size_t i = 0; i < KNOWN; i++) b.x[i] = known[i][0];
    compress(&b, 0, 0);
    for (size_t i = 0; i < b.d; i++) {
        int e;
        double m = 2 * frexp(fabs((double)b.x[i]), &e), power = ldexp(m >= 1.5 ? 2 : 1, e - 1);
        double expect = i < KNOWN ? (double)known[i][1] : copysign(power, (double)b.x[i]);
        CHECK((double)b.out[i] == expect, "(%a became %a)", (double)b.x[i], (double)b.out[i]);
    }
    release(&b);
}

TEST(natural_stochastic_is_unbiased) {
    enum { SIZE = 40, DRAWS = 4000 };
    Blocks b = blocks("natural:stochastic", 5, 8);
    for (size_t kind = 0; kind < 8; kind += 7) { /* normal, and 4/3, where the variance is 1/8 */
        double sum[SIZE] = {0}, squares = 0;
        fill(b.x, 5, 8, kind, 9);
        for (uint64_t draw = 0; draw < DRAWS; draw++) {
            compress(&b, sm_key(4, 5, draw), 0);
            for (size_t i = 0; i < SIZE; i++) sum[i] += (double)b.out[i] / DRAWS;
            squares += distance(b.out, b.x, SIZE) / DRAWS;
        }
        for (size_t i = 0; i < SIZE; i++) {
            int e;
            double x = fabs((double)b.x[i]), low = (frexp(x, &e), ldexp(0.5, e));
            CHECK_NEAR(sum[i], (double)b.x[i], 4 * sqrt((x - low) * (2 * low - x) / DRAWS));
        }
        double share = squares / energy(b.x, SIZE);
        CHECK(share <= 0.125 * (kind ? 1.01 : 1) && share >= (kind ? 0.124 : 0.05));
    }
    release(&b);
}

/* ------------------------------------------------------------------------------------------------
 * what is kept */

static const float *sorted;
static int by_magnitude(const void *a, const void *b) {
    size_t i = *(const size_t *)a, j = *(const size_t *)b;
    float x = fabsf(sorted[i]), y = fabsf(sorted[j]);
    return x != y ? (x < y) - (x > y) : (i > j) - (i < j);
}

/* topk by magnitude and coltopk by 2-norm; of equal ones, the lower index. */
TEST(topk_keeps_what_a_sort_puts_first) {
    static const size_t sizes[] = {1, 2, 63, 64, 65, 130, 1000, 4099};
    static float norm[4099];
    static size_t order[4099];
    for (size_t test = 0; test < 8 * 5 * 6 * 2; test++) {
        size_t n = sizes[test % 8], kind = test / 8 % 5, keep = 1 + (n - 1) * (test / 40 % 6) / 5;
        size_t high = test < 240 ? 1 : 3, wrong = 0;
        char text[60];
        snprintf(text, sizeof text, "%s:%.17g", high > 1 ? "coltopk" : "topk",
                 (double)keep / (double)n);
        Blocks b = blocks(text, high, n);
        test_fill_normal(b.x, b.d, 40 + test);
        for (size_t i = 0; i < b.d; i++) {
            if (kind == 1) b.x[i] = roundf(b.x[i] * 2) / 2; /* ties and zeros */
            if (kind == 2) b.x[i] = b.x[i] < 0 ? -7 : 7;
            if (kind == 3) b.x[i] *= 1e-40f;                           /* subnormal */
            if (kind == 4) b.x[i] = 1 + roundf(b.x[i] * 4) * 0x1p-23f; /* last bits */
        }
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t i = 0; i < high; i++) sum += pow((double)b.x[i * n + j], 2);
            norm[j] = high > 1 ? (float)sqrt(sum) : b.x[j];
            order[j] = j;
        }
        sorted = norm;
        qsort(order, n, sizeof *order, by_magnitude);
        compress(&b, 0, 0);
        for (size_t i = 0; i < b.d; i++) {
            size_t at = i / n * n + order[i % n];
            wrong += b.out[at] != (i % n < keep ? b.x[at] : 0);
        }
        CHECK(wrong == 0, "(%s of %zu, kind %zu: %zu differ)", text, n, kind, wrong);
        release(&b);
    }
}

/* Error of rankk after `steps` steps on one matrix, as a share of what a truncated SVD discards. */
static double rank_error(const char *text, size_t m, size_t n, size_t rank, int steps) {
    Blocks b = blocks(text, m, n);
    known_svd(b.x, m, n, rank, 0.7, 5);
    for (int step = 0; step < steps; step++) compress(&b, sm_key(7, 8, 0), 0);
    double error = distance(b.out, b.x, b.d), discarded = 0;
    for (int k = 3; k < 12; k++) discarded += pow(4 * pow(0.7, k), 2);
    release(&b);
    return error / discarded;
}

TEST(rankk_converges_to_the_truncated_svd) {
    for (size_t m = 12; m <= 40; m += 28) {
        CHECK(rank_error("rankk:0.25", m, 52 - m, 12, 1) > 1.001);
        CHECK_NEAR(rank_error("rankk:0.25", m, 52 - m, 12, 30), 1, 1e-3);
        CHECK(rank_error("rankk:1", m, 52 - m, 12, 1) < 1e-9);
        CHECK(rank_error("rankk:0.25", m, 52 - m, 3, 1) < 1e-6); /* all of a matrix of rank 3 */
    }
}

/* ------------------------------------------------------------------------------------------------
 * error feedback */

TEST(feedback_shrinks_the_gap_by_alpha) {
    static const size_t tried[] = {0, 8, 3, 12}; /* normal, orthogonal, constant, equal columns */
    for (size_t k = 0; k < TEXTS; k++)
        for (size_t c = 0; c < 8; c++) {
            Blocks b = blocks(texts[k], c & 1 ? 26 : 14, c & 1 ? 11 : 37);
            double alpha = ef_contraction(&b.link, b.rows, b.cols);
            fill(b.x, b.rows, b.cols, tried[c / 2], 3 + c);
            double all = energy(b.x, b.d), gap = all;
            for (uint64_t step = 0; step < 40 && !is_random(&b.link); step++) {
                ef_send(b.message, b.out, b.x, b.rows, b.cols, &b.link, sm_key(3, c, step), 0,
                        b.warm, b.scratch);
                double next = distance(b.out, b.x, b.d);
                double rounding = 2e-6 * gap + 2e-7 * sqrt(gap * all) + 1e-12 * all;
                CHECK(next <= (1 - alpha) * gap + rounding, "(%s, %s, step %d: %.3g to %.3g)",
                      texts[k], kinds[tried[c / 2]], (int)step, gap, next);
                gap = next;
                CHECK(!b.link.row->replaces || gap == 0);
            }
            release(&b);
        }
}

TEST(aggregate_is_the_mean_in_rank_order) {
    static const float messages[3][2] = {{1e30f, 1}, {-1e30f, 2}, {1, 4}};
    float g[2] = {7, 7}; /* (1e30 - 1e30) + 1 is 1 in this order only */
    Blocks b = blocks("damping:1", 1, 2);
    CHECK(ef_aggregate(g, messages, sizeof *messages, 8, 3, 1, 2, &b.link, b.scratch) == 0);
    CHECK(g[0] == 7 + 1 / 3.0f && g[1] == 7 + 7 / 3.0f);
    release(&b);
}

/* ------------------------------------------------------------------------------------------------
 * messages */

/* The bits of a message, written down a second time. */
static double formula_bits(const EfLink *l, double m, double n) {
    double d = m * n, f = l->value, word = l->natural ? 9 : 32;
    const char *name = l->row->name;
    double top = fmax(1, floor(f * d + 1e-9)), column = fmax(1, floor(f * n + 1e-9));
    double rank = fmax(1, floor(f * fmin(m, n) + 1e-9));
    if (!strcmp(name, "identity") || !strcmp(name, "damping")) return 32 * d;
    if (!strcmp(name, "natural")) return 9 * d;
    if (!strcmp(name, "sign")) return 32 + d;
    if (!strcmp(name, "dropout")) return f * 32 * d;
    if (!strcmp(name, "topk")) return word * top + fmin(d, top * ceil(log2(d)));
    if (!strcmp(name, "coltopk")) return word * column * m + fmin(n, column * ceil(log2(n)));
    if (!strcmp(name, "rankk")) return word * rank * (m + n);
    return NAN;
}

TEST(message_has_formula_bits_and_decodes_equally) {
    for (size_t k = 0; k < TEXTS; k++)
        for (size_t s = 0; s < SHAPES; s++) {
            Blocks b = blocks(texts[k], shapes[s][0], shapes[s][1]);
            double bits = ef_bits(&b.link, b.rows, b.cols);
            uint64_t coin = 0;
            CHECK_NEAR(bits, formula_bits(&b.link, (double)b.rows, (double)b.cols), 1e-9);
            while (ef_bytes(&b.link, b.rows, b.cols, coin) == 0) coin++;
            size_t bytes = ef_bytes(&b.link, b.rows, b.cols, coin);
            CHECK((double)bytes ==
                  ceil(bits / (b.link.row->dropout ? b.link.value : 1) / 8 - 1e-9));
            unsigned char *first = malloc(bytes);
            if (!first) abort();
            for (int ones = 0; ones < 2; ones++) { /* every bit is written, whatever was there */
                fill(b.x, b.rows, b.cols, s % 4, s + 20);
                memset(b.message, ones ? 0xff : 0, bytes);
                forget(&b);
                ef_compress(b.message, b.x, b.x, b.rows, b.cols, &b.link, 99, coin, b.warm,
                            b.scratch);
                CHECK(!ones || !memcmp(first, b.message, bytes), "(%s)", texts[k]);
                memcpy(first, b.message, bytes);
            }
            memset(b.scratch, 0xff, ef_scratch(&b.link, b.rows, b.cols) * sizeof *b.scratch);
            CHECK(!ef_decode(b.out, b.message, bytes, b.rows, b.cols, &b.link, b.scratch));
            CHECK(!memcmp(b.out, b.x, b.d * sizeof *b.out), "(%s, %zu x %zu)", texts[k], b.rows,
                  b.cols);
            free(first);
            release(&b);
        }
}

TEST(dropout_sends_all_or_nothing) {
    Blocks b = blocks("dropout:0.3", 6, 7);
    int sent = 0;
    for (uint64_t coin = 0; coin < 2000; coin++) {
        size_t bytes = ef_bytes(&b.link, 6, 7, coin);
        test_fill_normal(b.x, b.d, coin + 1);
        compress(&b, 1, coin);
        CHECK(bytes == 0 || bytes == 4 * 42);
        CHECK(energy(b.out, b.d) == (bytes ? energy(b.x, b.d) : 0));
        sent += bytes != 0;
    }
    CHECK_NEAR(sent / 2000.0, 0.3, 4 * sqrt(0.3 * 0.7 / 2000));
    release(&b);
}

/* Decode a copy of exactly these bytes, so that a sanitizer sees what is read behind them; whatever
 * the answer, the output is finite, and zero when the message was refused. */
static int decode_copy(Blocks *b, const void *bytes, size_t n) {
    unsigned char *copy = malloc(n + 1);
    if (!copy) abort();
    memcpy(copy + 1, bytes, n);
    memset(b->out, 0, b->d * sizeof *b->out);
    int status = ef_decode(b->out, copy + 1, n, b->rows, b->cols, &b->link, b->scratch);
    CHECK(sm_finite(b->out, b->d));
    CHECK(!status || energy(b->out, b->d) == 0);
    CHECK(status == 0 || status == EF_MALFORMED || status == EF_NOT_FINITE);
    free(copy);
    return status;
}

TEST(random_and_cut_messages_are_refused) {
    for (size_t k = 0; k < TEXTS; k++)
        for (size_t s = 0; s < SHAPES; s += 3) {
            Blocks b = blocks(texts[k], shapes[s][0], shapes[s][1]);
            unsigned char *bytes = calloc(b.room + 1, 1);
            int refused = 0;
            if (!bytes) abort();
            for (size_t n = 0; n <= b.room + 1; n += n < 20 || n + 20 > b.room ? 1 : 7)
                if (n != b.room && !(n == 0 && b.link.row->dropout))
                    CHECK(decode_copy(&b, bytes, n) == EF_MALFORMED, "(%s: %zu)", texts[k], n);
            for (uint64_t seed = 0; seed < 60; seed++) {
                for (size_t i = 0; i < b.room; i++) bytes[i] = (unsigned char)test_hash(seed, i);
                refused += decode_copy(&b, bytes, b.room) != 0;
            }
            CHECK(refused > (b.d > 1000 && b.link.row->scatter != ef__scatter_sign ? 5 : -1));
            memset(bytes, 0xff, b.room);
            CHECK(decode_copy(&b, bytes, b.room) == EF_NOT_FINITE);
            free(bytes);
            release(&b);
        }
}

TEST(forged_indices_and_stray_bits_are_refused) {
    static const unsigned char good[] = {0, 5, 199},
                               wrong[][3] = {
                                   {0, 5, 200}, {0, 5, 5}, {5, 0, 199}, {255, 255, 255}, {0, 0, 0}};
    unsigned char list[12 + 3] = {0}, map[4 * 5 + 2] = {0};
    float estimate[200] = {1, 2, 3}, before[200];
    Blocks b = blocks("topk:1.5%", 10, 20); /* 3 of 200: 8 bits each */
    CHECK(b.room == sizeof list);
    memcpy(list + 12, good, 3);
    CHECK(decode_copy(&b, list, sizeof list) == 0);
    for (size_t i = 0; i < 5; i++) {
        memcpy(list + 12, wrong[i], 3);
        memcpy(before, estimate, sizeof before);
        CHECK(decode_copy(&b, list, sizeof list) == EF_MALFORMED);
        CHECK(ef_receive(estimate, list, sizeof list, 10, 20, &b.link, b.scratch) == EF_MALFORMED);
        CHECK(ef_aggregate(estimate, list, 0, sizeof list, 2, 10, 20, &b.link, b.scratch) != 0);
        CHECK(!memcmp(before, estimate, sizeof before));
    }
    memcpy(list + 12, good, 3);
    list[3] = 0x7f, list[2] = 0x80; /* infinity */
    CHECK(decode_copy(&b, list, sizeof list) == EF_NOT_FINITE);
    release(&b);
    b = blocks("topk:0.5", 1, 11); /* 5 of 11: 11 bits */
    CHECK(b.room == sizeof map);
    map[20] = 1 | 1 << 3 | 1 << 6, map[21] = 1 << 1;
    CHECK(decode_copy(&b, map, sizeof map) == EF_MALFORMED); /* 4 of 5 */
    map[21] |= 1 << 2;
    CHECK(decode_copy(&b, map, sizeof map) == 0);
    map[21] |= 1 << 3;
    CHECK(decode_copy(&b, map, sizeof map) == EF_MALFORMED); /* behind the end */
    release(&b);
}

/* ------------------------------------------------------------------------------------------------
 * text and tables */

TEST(malformed_compressor_texts_are_refused) {
    char wrong[] =
        "|top|topkk:0.1|Natural|topk|topk:|topk:0|topk:-0.1|topk:1.01|topk:101%|topk:nan|"
        "topk:inf|topk:0.1x|topk: 0.1|topk:0x1p-3|topk:0.1%%|topk:0.1+|topk:0.1+sign|"
        "topk:0.1+naturally|topk:0.1:stochastic|topk:1e999|topk:1e-999|rankk:2|rankk:.|"
        "topk:0.1+natural+natural|topk:0.1+natural:nearest|natural:0.5|natural+natural|"
        "natural:|sign:1|sign+natural|identity:1|dropout:0|dropout:1.5|damping:0|damping|"
        "dropout:0.5+natural|coltopk:0.1 ";
    char *rest = wrong, *text;
    EfLink l;
    while ((text = strsep(&rest, "|")) != NULL) {
        char error[400] = "", tight[8] = "1234567";
        volatile size_t room = 5; /* so that no compiler foresees the truncation */
        l = (EfLink){NULL, 42, 43, 44};
        CHECK(ef_parse(&l, text, error, sizeof error) == -1, "('%s')", text);
        CHECK(strstr(error, text) && strstr(error, "identity, topk:F[+natural"));
        CHECK(l.row == NULL && l.value == 42 && l.natural == 43 && l.stochastic == 44);
        CHECK(ef_parse(&l, text, tight, room) == -1 && tight[4] == 0 && tight[5] == '6');
    }
    l = link_of("topk:12.5%+natural:stochastic");
    CHECK(l.value == 0.125 && l.natural && l.stochastic && !strcmp(l.row->name, "topk"));
}
