/* bench/bench.c - what this machine can do, and how much of it kernels and whole steps get. MIT.

     make bench                  everything, in under three minutes; writes docs/BENCH.md, bench.csv
                                 and roofline.svg
     bench/bench FILTER          only the rows whose name contains FILTER; writes nothing

   The limits come first: FMA chains that never leave the registers, and memcpy at three sizes, each
   the best of SAMPLES. Every other figure is the median of SAMPLES runs that repeat one call for
   about SECONDS, so operands are as warm in cache as they fit. Like the tests it includes the
   program, to time the very functions that train; whole steps are timed through ./train_gpt. */
#include "measure.h"
#include "roofline.h"
#include <dlfcn.h>

enum { ONE, TWO, ALL, TEAMS }; /* of 1, of 2, and of as many threads as there are cores */
enum { SAMPLES = 9, ENTRIES = 1 << 20, ROOM = 4 * ENTRIES, BUFFERS = 5 };
enum { COPIES = 3, COPY_L3 = 1, PEAK_STEPS = 20000 };
#define SECONDS 0.004

typedef void Sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                   int lda, const float *b, int ldb, float beta, float *c, int ldc);

/* One line of the table, in columns of 1 and of more threads. */
typedef struct Row {
    char kernel[40], shape[48];
    const char *unit, *limit;               /* GFLOP/s or GB/s; the name of what bounds it */
    double flops, bytes;                    /* of a call; bytes: each that is touched, once */
    int team[2];                            /* of the columns: ONE, and TWO or ALL */
    double seconds[2], rate[2], ceiling[2]; /* NaN: not measured, not bounded */
    double reference;                       /* OpenBLAS, 1 thread */
} Row;

typedef struct Bench {
    Sgemm *blas;
    char cpu[512], blas_core[64], folder[FOLDER_SIZE]; /* folder: of runs of train_gpt, or "" */
    Team team[TEAMS];
    float *x[BUFFERS], *scratch[2];                     /* ROOM floats each; scratch by thread */
    double fma[TEAMS], dot[TEAMS], copy[COPIES][TEAMS]; /* limits, in GFLOP/s and GB/s */
    const char *filter;
    Row row[160];
    size_t rows;
} Bench;

/* What is timed. */
typedef struct Job Job;
struct Job {
    Bench *b;
    void (*call)(const Job *, int ith, int nth);
    int alone; /* every thread has a call of its own */
    const Gemm *g;
    GemmOperand left, right;
    size_t m, n, k, lda, ldb;
    int ta, tb, symmetric, blas;
    void (*move)(float *const *x, size_t n);
    Team *team;
    long calls;
    double best; /* seconds of the fastest sample */
};

/* ------------------------------------------------------------------------------------------------
 * one measurement */

static void repeat(void *context, int ith, int nth) {
    const Job *j = context;
    for (long i = 0; i < j->calls; i++) {
        j->call(j, ith, nth);
        if (!j->alone) team_barrier(j->team);
    }
}

/* Seconds of a call, the median of SAMPLES. */
static double measure(Job *j, int team) {
    double sample[SAMPLES], start;
    j->best = INFINITY;
    j->team = &j->b->team[team];
    for (j->calls = 1;; j->calls *= 2) {
        start = now();
        team_run(j->team, repeat, j);
        if (now() - start > SECONDS) break;
    }
    for (int i = 0; i < SAMPLES; i++) {
        start = now();
        team_run(j->team, repeat, j);
        sample[i] = (now() - start) / (double)j->calls;
        j->best = fmin(j->best, sample[i]);
    }
    return median(sample, SAMPLES);
}

/* Numbers in -1 .. 1; in buffer 3, for AdamW's v, in 0 .. 2. */
static void refill(Bench *b) {
    for (size_t i = 0; i < BUFFERS; i++)
        for (size_t k = 0; k < ROOM; k++)
            b->x[i][k] =
                (float)((int)(sm_hash(i, k) >> 40 & 0xffff) - (i == 3 ? 0 : 0x8000)) / 0x8000;
}

/* ------------------------------------------------------------------------------------------------
 * the table */

/* A new row; NULL when the filter does not want it. */
static Row *new_row(Bench *b, const char *kernel, const char *shape, const char *limit) {
    Row r = {.unit = "GFLOP/s", .limit = limit, .team = {ONE, TWO}, .reference = NAN};
    char name[128];
    snprintf(name, sizeof name, "%s %s", kernel, shape);
    if (b->filter && !strstr(name, b->filter)) return NULL;
    snprintf(r.kernel, sizeof r.kernel, "%s", kernel);
    snprintf(r.shape, sizeof r.shape, "%s", shape);
    for (int i = 0; i < 2; i++) r.seconds[i] = r.rate[i] = r.ceiling[i] = NAN;
    assert(b->rows < sizeof b->row / sizeof *b->row);
    b->row[b->rows] = r;
    return &b->row[b->rows++];
}

/* A value with so many decimals and a unit, or - */
static const char *number(char *out, double value, int decimals, const char *unit) {
    if (isnan(value))
        strcpy(out, "-");
    else
        snprintf(out, 32, "%.*f%s", decimals, value, unit);
    return out;
}

static void print_head(FILE *f) {
    fprintf(f, "| %-22s | %-30s | %10s | %7s | %4s | %10s | %7s | %4s | %-7s | %-6s | %8s |\n",
            "kernel", "shape", "1 thread", "rate", "%", "2 threads", "rate", "%", "unit", "limit",
            "OpenBLAS");
    fprintf(f, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: |\n");
}

static void print_row(FILE *f, const Row *r) {
    char t[32];
    fprintf(f, "| %-22s | %-30s |", r->kernel, r->shape);
    for (int i = 0; i < 2; i++) {
        double s = r->seconds[i];
        fprintf(f, " %10s |",
                s < 0.01 ? number(t, 1e6 * s, 1, " us") : number(t, 1e3 * s, 1, " ms"));
        fprintf(f, " %7s |", number(t, r->rate[i], 1, ""));
        fprintf(f, " %4s |", number(t, 100 * r->rate[i] / r->ceiling[i], 0, ""));
    }
    fprintf(f, " %-7s | %-6s | %8s |\n", r->unit, r->limit, number(t, r->reference, 1, ""));
    fflush(f);
}

/* Time a job in the row's columns, and print the row. */
static void time_row(Row *r, Job *j, int columns, const double *limit) {
    for (int i = 0; i < columns; i++) {
        int team = r->team[i], times = j->alone ? j->b->team[team].threads : 1;
        r->seconds[i] = measure(j, team);
        r->rate[i] = 1e-9 * times * (r->unit[1] == 'B' ? r->bytes : r->flops) / r->seconds[i];
        r->ceiling[i] = limit[team];
    }
    if (j->blas) {
        j->blas = 2;
        r->reference = 1e-9 * r->flops / measure(j, ONE);
    }
    print_row(stdout, r);
}

/* ------------------------------------------------------------------------------------------------
 * limits */

/* PEAK_STEPS of independent chains t = t x + y, in registers. */
#define DEFINE_PEAK(name, attribute, type, set1, fma, chains)                                      \
    attribute static void name(const Job *j, int ith, int nth) {                                   \
        type t[chains], x = set1(0.999f), y = set1(1e-3f);                                         \
        (void)j, (void)ith, (void)nth;                                                             \
        for (int i = 0; i < chains; i++) t[i] = set1((float)i);                                    \
        for (int s = 0; s < PEAK_STEPS; s++)                                                       \
            _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++) t[i] = fma(t[i], x, y);      \
        __asm__ volatile("" : : "r"(t) : "memory"); /* they are wanted */                          \
    }
#define FOUR(x) ((GemmFour){x, x, x, x})
#define FOUR_MUL_ADD(t, x, y) ((t) * (x) + (y))
DEFINE_PEAK(peak_portable, , GemmFour, FOUR, FOUR_MUL_ADD, 12)
#ifdef GEMM__X86
#define DOT(t, x, y) _mm512_dpbf16_ps(t, (__m512bh)(x), (__m512bh)(y))
#define TARGET(isa) __attribute__((target(isa)))
DEFINE_PEAK(peak_avx512, TARGET("avx512f"), __m512, _mm512_set1_ps, _mm512_fmadd_ps, 12)
DEFINE_PEAK(peak_avx2, TARGET("avx2,fma"), __m256, _mm256_set1_ps, _mm256_fmadd_ps, 12)
DEFINE_PEAK(peak_bf16, TARGET("avx512f,avx512bf16"), __m512, _mm512_set1_ps, DOT, 12)
#endif
#ifdef __ARM_NEON
#define NEON_FMA(t, x, y) vfmaq_f32(y, t, x)
DEFINE_PEAK(peak_neon, , float32x4_t, vdupq_n_f32, NEON_FMA, 24)
#endif

static const struct Peak {
    const char *isa; /* gemm.h's name; bf16 is for pairs */
    void (*call)(const Job *, int ith, int nth);
    double flops; /* of a step */
} peaks[] = {
#ifdef GEMM__X86
    {"avx512", peak_avx512, 2 * 16 * 12},
    {"avx2", peak_avx2, 2 * 8 * 12},
#endif
#ifdef __ARM_NEON
    {"neon", peak_neon, 2 * 4 * 24},
#endif
    {"portable", peak_portable, 2 * 4 * 12}};

static void copy_part(const Job *j, int ith, int nth) {
    size_t lo, hi;
    slice(j->m, ith, nth, &lo, &hi);
    memcpy((char *)j->b->x[0] + lo, (char *)j->b->x[1] + lo, hi - lo);
}

/* Rates of the fastest samples of every team. */
static void measure_limit(Bench *b, const char *name, const char *shape, Job job, double work,
                          double *limit, const char *unit) {
    Row *r = new_row(b, name, shape, "-");
    for (int i = 0; i < TEAMS; i++) {
        double best = INFINITY;
        for (int again = 0; again < 3; again++) measure(&job, i), best = fmin(best, job.best);
        limit[i] = 1e-9 * work * (job.alone ? b->team[i].threads : 1) / best;
        if (r && i < ALL) r->seconds[i] = best, r->rate[i] = limit[i];
    }
    if (!r) return;
    r->unit = unit;
    print_row(stdout, r);
}

static void measure_limits(Bench *b) {
    static const char *const size[] = {"256 KB (L2)", "8 MB (L3)", "512 MB (memory)"};
    const struct Peak *p = peaks;
    while (!gemm_select(p->isa, GEMM_F32)) p++;
    Job job = {.b = b, .call = p->call, .alone = 1};
    measure_limit(b, "FMA fp32", p->isa, job, p->flops * PEAK_STEPS, b->fma, "GFLOP/s");
    if (comm_cores() > 1 && b->fma[1] < 1.6 * b->fma[0])
        fprintf(stderr, "bench: two threads do the work of %.1f: is another program running?\n",
                b->fma[1] / b->fma[0]);
    memcpy(b->dot, b->fma, sizeof b->dot); /* where bf16 is rounded fp32 */
#ifdef GEMM__X86
    if (gemm_default(GEMM_BF16)->word == GEMM_PAIRS) {
        job.call = peak_bf16;
        measure_limit(b, "bf16 dot", "vdpbf16ps", job, 4. * 16 * 12 * PEAK_STEPS, b->dot,
                      "GFLOP/s");
    }
#endif
    float *x[2] = {b->x[0], b->x[1]};
    b->x[0] = floats(1 << 26), b->x[1] = floats(1 << 26);
    for (size_t i = 0; i < COPIES; i++) {
        job = (Job){.b = b, .call = copy_part, .m = (size_t)1 << (17 + 5 * i + (i == 2))};
        measure_limit(b, "memcpy", size[i], job, 2 * (double)job.m, b->copy[i], "GB/s");
    }
    free(b->x[0]), free(b->x[1]);
    b->x[0] = x[0], b->x[1] = x[1];
}

/* ------------------------------------------------------------------------------------------------
 * products */

/* Operands as in gemm_nn, gemm_nt, gemm_tn; B packed before; both packed, and both in bf16, with
 * contiguous lanes, as in a weight gradient; A A^T. */
typedef enum Form { NN, NT, TN, PACKED, GRADIENT, STORED, SYMMETRIC } Form;
static const char *const form_name[] = {"gemm_nn",         "gemm_nt",         "gemm_tn",  "packed",
                                        "packed gradient", "stored gradient", "symmetric"};

static const struct Product {
    const char *name;
    Form form; /* NN stands for NN, NT and TN */
    size_t m, n, k, ld;
    GemmDtype dtype;
} products[] = {
    {"attention", NN, 64, 64, 32, 384, GEMM_F32},
    {"attention", NN, 256, 256, 64, 1152, GEMM_F32},
    {"Newton-Schulz", NN, 128, 128, 128, 0, GEMM_F32},
    {"qkv", NN, 256, 384, 128, 0, GEMM_F32},
    {"mlp up", NN, 256, 512, 128, 0, GEMM_F32},
    {"mlp down", NN, 256, 128, 512, 0, GEMM_F32},
    {"gradient", NN, 512, 128, 256, 0, GEMM_F32},
    {"large", NN, 2048, 1536, 384, 0, GEMM_F32},
    {"large gradient", NN, 1536, 384, 2048, 0, GEMM_F32},
    {"decode in L2", NN, 1, 512, 128, 0, GEMM_F32},
    {"decode in L3", NN, 1, 1536, 384, 0, GEMM_F32},
    {"attention", PACKED, 64, 64, 32, 0, GEMM_F32},
    {"attention", PACKED, 64, 256, 64, 0, GEMM_F32},
    {"qkv", PACKED, 64, 384, 128, 0, GEMM_F32},
    {"proj", PACKED, 64, 128, 128, 0, GEMM_F32},
    {"fc", PACKED, 64, 512, 128, 0, GEMM_F32},
    {"out", PACKED, 64, 128, 512, 0, GEMM_F32},
    {"qkv", PACKED, 64, 1152, 384, 0, GEMM_F32},
    {"proj", PACKED, 64, 384, 384, 0, GEMM_F32},
    {"fc", PACKED, 64, 1536, 384, 0, GEMM_F32},
    {"out", PACKED, 64, 384, 1536, 0, GEMM_F32},
    {"fc", GRADIENT, 512, 128, 768, 0, GEMM_F32},
    {"fc", GRADIENT, 1536, 384, 2048, 0, GEMM_F32},
    {"Newton-Schulz", SYMMETRIC, 128, 128, 128, 0, GEMM_F32},
    {"Newton-Schulz", SYMMETRIC, 384, 384, 384, 0, GEMM_F32},
    {"fc bf16", PACKED, 64, 1536, 384, 0, GEMM_BF16},
    {"fc bf16", STORED, 1536, 384, 2048, 0, GEMM_BF16},
};

static void multiply(const Job *j, int ith, int nth) {
    float *c = j->b->x[2] + (j->alone ? (size_t)ith * (ROOM / 2) : 0);
    int i = j->alone ? 0 : ith, n = j->alone ? 1 : nth;
    if (j->blas == 2)
        j->b->blas(101, 111 + j->ta, 111 + j->tb, (int)j->m, (int)j->n, (int)j->k, 1, j->b->x[0],
                   (int)j->lda, j->b->x[1], (int)j->ldb, 0, c, (int)j->n);
    else if (j->symmetric)
        gemm_symmetric(j->g, c, j->n, j->left, j->right, j->m, j->k, j->b->scratch[ith]);
    else
        gemm_multiply(j->g, c, j->n, j->left, j->right, j->m, j->n, j->k, 0, j->b->scratch[ith], i,
                      n);
}

/* Operands of a product, in the buffers; 3 and 4 take what is packed. */
static Job job_of(Bench *b, const struct Product *p, Form form) {
    Job j = {
        .b = b, .call = multiply, .g = gemm_default(p->dtype), .m = p->m, .n = p->n, .k = p->k};
    size_t m = p->m, n = p->n, k = p->k;
    uint16_t *h[2] = {(uint16_t *)(void *)b->x[3], (uint16_t *)(void *)b->x[4]};
    j.alone = form == PACKED || form == SYMMETRIC; /* as in the model, and in Newton-Schulz */
    j.symmetric = form == SYMMETRIC;
    j.ta = form == TN || form == GRADIENT;
    j.tb = form == NT || form == PACKED || form == SYMMETRIC;
    j.lda = p->ld ? p->ld : j.ta ? m : k;
    j.ldb = p->ld ? p->ld : j.tb ? k : n;
    j.left = j.ta ? gemm_f32(b->x[0], 1, j.lda) : gemm_f32(b->x[0], j.lda, 1);
    j.right = j.tb ? gemm_f32(b->x[1], j.ldb, 1) : gemm_f32(b->x[1], 1, j.ldb);
    j.blas = b->blas && p->dtype == GEMM_F32 && form != SYMMETRIC;
    if (form == PACKED) {
        gemm_pack(j.g, b->x[3], j.right, n, k, 0, 1);
        j.right = gemm_packed(b->x[3], k);
    } else if (form == GRADIENT) {
        gemm_pack_depth(j.g, GEMM_A, b->x[4], k, j.left, m, 0, k);
        gemm_pack_depth(j.g, GEMM_B, b->x[3], k, j.right, n, 0, k);
        j.left = gemm_packed(b->x[4], k), j.right = gemm_packed(b->x[3], k);
    } else if (form == STORED) {
        for (size_t i = 0; i < k * (m > n ? m : n); i++)
            h[0][i] = h[1][i] = gemm_to_bf16(b->x[0][i]);
        j.left = gemm_bf16(h[0], 1, m), j.right = gemm_bf16(h[1], 1, n);
    } else if (form == SYMMETRIC)
        j.right = j.left;
    return j;
}

static void measure_product(Bench *b, const struct Product *p, Form form) {
    double m = (double)p->m, n = (double)p->n, k = (double)p->k;
    char shape[48];
    snprintf(shape, sizeof shape, "%zux%zux%zu %s", p->m, p->n, p->k, p->name);
    Row *r = new_row(b, form_name[form], shape, p->dtype == GEMM_F32 ? "FMA" : "bf16");
    if (!r) return;
    Job job = job_of(b, p, form);
    r->flops = (form == SYMMETRIC ? 1 : 2) * m * n * k;
    r->bytes = form == SYMMETRIC ? 4 * (m * k + m * m)
                                 : (form == STORED ? 2 : 4) * (m * k + k * n) + 4 * m * n;
    if (r->flops > r->bytes) {
        time_row(r, &job, 2, p->dtype == GEMM_F32 ? b->fma : b->dot);
        return;
    }
    int size = r->bytes > 1 << 20; /* few flop per byte: memory bounds it */
    double slope[TEAMS];
    for (int i = 0; i < TEAMS; i++) slope[i] = b->copy[size][i] * r->flops / r->bytes;
    r->limit = size ? "8 MB" : "256 KB";
    time_row(r, &job, 2, slope);
}

static void measure_products(Bench *b) {
    refill(b);
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        measure_product(b, &products[i], products[i].form);
        if (products[i].form != NN) continue;
        measure_product(b, &products[i], NT);
        measure_product(b, &products[i], TN);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Newton-Schulz */

static void polar(const Job *j, int ith, int nth) {
    (void)nth;
    sm_polar(j->b->x[2] + (size_t)ith * (ROOM / 2), j->b->x[0], j->m, j->n,
             sm_newton_schulz("jordan5"), j->b->scratch[ith]);
}

/* Every thread has its matrix, as in the optimizer. */
static void measure_polar(Bench *b) {
    static const size_t shapes[][2] = {{128, 128}, {128, 512}, {512, 128}, {384, 384}, {384, 1536}};
    refill(b);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        Job job = {.b = b, .call = polar, .alone = 1, .m = shapes[i][0], .n = shapes[i][1]};
        char shape[48];
        snprintf(shape, sizeof shape, "%zux%zu", job.m, job.n);
        Row *r = new_row(b, "sm_polar jordan5", shape, "FMA");
        if (!r) continue;
        polar_flops = 0;
        polar(&job, 0, 1);
        r->flops = polar_flops;
        r->bytes = 8 * (double)(job.m * job.n);
        time_row(r, &job, 2, b->fma);
    }
}

/* ------------------------------------------------------------------------------------------------
 * kernels that memory bounds: n entries, or ENTRIES in rows of n */

#define WORDS(voters) ((size_t)ENTRIES / (voters) & ~(size_t)7) /* 8 MB of ballots */
static uint64_t *bits_of(float *x) { return (uint64_t *)(void *)x; }

static void move_norm(float *const *x, size_t n) {
    for (size_t i = 0; i + n <= ENTRIES; i += n)
        layernorm_row(x[0] + i, x[4] + i / n, x[4] + ENTRIES + i / n, x[1] + i, x[2], NULL, n);
}
static void move_norm_backward(float *const *x, size_t n) {
    for (size_t i = 0; i + n <= ENTRIES; i += n)
        layernorm_row_backward(x[0] + i, x[4], NULL, x[1] + i, x[2] + i, 0.1f, 1.1f, x[3], n);
}
static void move_residual(float *const *x, size_t n) {
    Dropout none = {0, 0};
    residual_norm(x[0], x[1], x[4] + n, x[4] + ENTRIES, x[2], x[3], NULL, x[4], NULL, ENTRIES / n,
                  n, &none, 0, 0);
}
static void move_gelu(float *const *x, size_t n) { gelu_row(x[0], x[1], n); }
static void move_gelu_backward(float *const *x, size_t n) {
    gelu_row_backward(x[0], x[1], x[2], n);
}
static void move_softmax(float *const *x, size_t n) {
    for (size_t i = 0; i + n <= ENTRIES; i += n) softmax_cross_entropy_row(x[0] + i, n, 7, 1e-3f);
}
static void move_momentum(float *const *x, size_t n) { sm_momentum(x[0], x[1], x[2], n, 0.95f, 1); }
static void move_adamw(float *const *x, size_t n) {
    sm_adamw(x[0], x[1], x[3], x[2], n, 9, 1e-3, 0.9, 0.95, 1e-8, 0.999f);
}
static void move_step(float *const *x, size_t n) { sm_step_dense(x[0], x[1], n, 1e-3f, 0.999f); }
static void move_sign(float *const *x, size_t n) { sm_pack(bits_of(x[0]), x[1], n, SM_COIN, 3); }
static void move_unpack(float *const *x, size_t n) { sm_unpack(x[0], bits_of(x[1]), NULL, n); }
static void move_vote(float *const *x, size_t n) {
    const uint64_t *ballots[1024];
    assert(n > 0 && n <= 1024);
    for (size_t v = 0; v < n; v++) ballots[v] = bits_of(x[1]) + v * WORDS(n);
    sm_vote(bits_of(x[0]), NULL, ballots, NULL, n, WORDS(n), SM_COIN, 3, 0);
}
static void move_apply(float *const *x, size_t n) {
    sm_apply(x[0], bits_of(x[1]), NULL, n, 1e-3f, 0.999f);
}
static void move_pack(float *const *x, size_t n) {
    gemm_pack(gemm_default(GEMM_F32), x[0], gemm_f32(x[1], n, 1), ENTRIES / n, n, 0, 1);
}
static void move_pack_across(float *const *x, size_t n) {
    gemm_pack(gemm_default(GEMM_F32), x[0], gemm_f32(x[1], 1, n), n, ENTRIES / n, 0, 1);
}
static void move_pack_depth(float *const *x, size_t n) {
    const Gemm *g = gemm_default(GEMM_F32);
    for (size_t i = 0; i < ENTRIES / n; i += ROWS)
        gemm_pack_depth(g, GEMM_B, x[0], ENTRIES / n, gemm_f32(x[1] + i * n, 1, n), n, i, ROWS);
}

static const struct Mover {
    const char *name, *shape;
    void (*move)(float *const *x, size_t n);
    size_t n;
    double bytes, flops; /* of an entry; a byte read and written is one; so is each of + - * / > */
} movers[] = {
    {"layernorm_row", "rows of 384", move_norm, 384, 8, 7},
    {"layernorm_row_backward", "rows of 384", move_norm_backward, 384, 12, 17},
    {"residual_norm", "rows of 384", move_residual, 384, 16, 8},
    {"gelu_row", "1M", move_gelu, ENTRIES, 8, 30},
    {"gelu_row_backward", "1M", move_gelu_backward, ENTRIES, 12, 39},
    {"softmax_cross_entropy", "rows of 65", move_softmax, 65, 4, 26},
    {"softmax_cross_entropy", "rows of 50257", move_softmax, 50257, 4, 26},
    {"sm_momentum", "1M", move_momentum, ENTRIES, 12, 6},
    {"sm_adamw", "1M", move_adamw, ENTRIES, 16, 14},
    {"sm_step_dense", "1M", move_step, ENTRIES, 8, 3},
    {"sm_pack", "1M", move_sign, ENTRIES, 4.125, 0},
    {"sm_unpack", "1M", move_unpack, ENTRIES, 4.125, 0},
    {"sm_vote", "3 voters", move_vote, 3, 0, 0},
    {"sm_vote", "8 voters", move_vote, 8, 0, 0},
    {"sm_vote", "64 voters", move_vote, 64, 0, 0},
    {"sm_vote", "1024 voters", move_vote, 1024, 0, 0},
    {"sm_apply", "1M", move_apply, ENTRIES, 4.125, 2},
    {"gemm_pack", "1024x1024 depth contiguous", move_pack, 1024, 8, 0},
    {"gemm_pack", "1024x1024 lanes contiguous", move_pack_across, 1024, 8, 0},
    {"gemm_pack_depth", "2048x512 by 64", move_pack_depth, 512, 8, 0},
};

static void run_mover(const Job *j, int ith, int nth) {
    (void)ith, (void)nth;
    j->move(j->b->x, j->n);
}

static void measure_movers(Bench *b) {
    for (size_t i = 0; i < sizeof movers / sizeof *movers; i++) {
        const struct Mover *m = &movers[i];
        Row *r = new_row(b, m->name, m->shape, "8 MB");
        if (!r) continue;
        Job job = {.b = b, .call = run_mover, .move = m->move, .n = m->n};
        size_t entries = m->n < ENTRIES ? ENTRIES / m->n * m->n : ENTRIES;
        r->bytes =
            m->bytes > 0 ? m->bytes * (double)entries : (double)(8 * (m->n + 1) * WORDS(m->n));
        r->flops = m->flops * (double)entries;
        r->unit = "GB/s";
        refill(b);
        time_row(r, &job, 1, b->copy[COPY_L3]);
    }
}

/* Two workers exchange ballots of 8M weights as a vote does: every worker's shards to their owners,
 * then the verdicts to all. */
enum { BALLOT = 1 << 20, TIMES = 20 };

static int exchange(Comm *c, void *arg) {
    Bench *b = arg;
    const size_t cuts[] = {0, BALLOT / 2, BALLOT};
    char *message = (char *)b->x[c->rank], *inbox = (char *)b->x[2 + c->rank];
    double seconds[SAMPLES];
    assert(c->size == 2);
    for (int s = 0; s < SAMPLES; s++) {
        comm_barrier(c);
        double start = now();
        for (int i = 0; i < TIMES; i++) {
            comm_alltoall(c, message, cuts, inbox, COMM_OTHER);
            comm_allgather(c, message, cuts, COMM_OTHER);
        }
        seconds[s] = (now() - start) / TIMES;
    }
    if (c->rank == 0) b->row[b->rows - 1].seconds[1] = median(seconds, SAMPLES);
    return 0;
}

static void measure_exchange(Bench *b) {
    char error[256];
    Row *r = new_row(b, "exchange", "2 workers, 8M ballots", "8 MB");
    CommOptions o = {.backend = comm_backend("threads"), .workers = 2, .threads = 1};
    if (!r) return;
    refill(b);
    if (comm_run(&o, exchange, b, error, sizeof error)) return;
    r->unit =
        "GB/s"; /* read and written: each ballot goes in and out of an outbox, half a verdict too */
    r->bytes = 2 * 2 * 1.5 * BALLOT;
    r->rate[1] = 2e-9 * r->bytes / r->seconds[1];
    r->ceiling[1] = b->copy[COPY_L3][TWO];
    print_row(stdout, r);
}

/* ------------------------------------------------------------------------------------------------
 * whole steps, as ./train_gpt trains: differences of the seconds in log.csv */

static const struct Step {
    int layers, heads, width, context, batch, workers;
    const char *name, *flags;
    int every, samples; /* rows of the log are so many steps apart; so many differences */
} steps[] = {
    {4, 4, 128, 64, 12, 1, "adamw", "--method adamw", 5, 7},
    {6, 6, 384, 256, 8, 1, "adamw", "--method adamw", 1, 5},
    {12, 12, 768, 256, 2, 1, "adamw", "--method adamw", 1, 3},
    {6, 6, 384, 256, 8, 1, "adamw bf16", "--method adamw --dtype bf16", 1, 5},
    {4, 4, 128, 64, 12, 1, "signmuon", "--aux sign", 5, 7},
    {4, 4, 128, 64, 12, 3, "signmuon 3 workers", "--aux sign", 5, 7},
};

/* threads 0: the program's own choice. */
static double run_steps(Bench *b, const struct Step *s, int threads) {
    char text[512];
    snprintf(
        text, sizeof text,
        "--layers %d --heads %d --width %d --context %d --batch %d --workers %d --threads %d %s",
        s->layers, s->heads, s->width, s->context, s->batch, s->workers, threads, s->flags);
    return time_program(b->folder, text, s->every, s->samples);
}

static void measure_steps(Bench *b) {
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        const struct Step *s = &steps[i];
        double L = s->layers, C = s->width, T = s->context, N = 12 * L * C * C + VOCABULARY * C;
        int bf16 = strstr(s->flags, "bf16") != NULL;
        char shape[48];
        snprintf(shape, sizeof shape, "%d/%d/%d/%d %s", s->layers, s->width, s->context, s->batch,
                 s->name);
        Row *r = new_row(b, "step", shape, bf16 ? "bf16" : "FMA");
        if (!r) continue;
        r->flops = s->batch * T * (6 * N + 6 * L * C * T);
        if (s->workers > 1) r->team[1] = ALL;
        for (int c = s->workers > 1; c < 2; c++) {
            r->seconds[c] = run_steps(b, s, s->workers > 1 ? 0 : c + 1);
            r->rate[c] = 1e-9 * r->flops / r->seconds[c];
            r->ceiling[c] = (bf16 ? b->dot : b->fma)[r->team[c]];
        }
        print_row(stdout, r);
    }
}

static const Row *find_row(const Bench *b, const char *kernel, const char *shape) {
    for (size_t i = 0; i < b->rows; i++)
        if (!strcmp(b->row[i].kernel, kernel) && !strcmp(b->row[i].shape, shape)) return &b->row[i];
    return NULL;
}

/* What the matrices of a step of one worker cost: per layer q, k, v and proj, fc, out. */
static void measure_share(Bench *b) {
    const char *kernel = "sm_polar jordan5";
    const Row *square = find_row(b, kernel, "128x128"), *wide = find_row(b, kernel, "128x512"),
              *tall = find_row(b, kernel, "512x128"),
              *step = find_row(b, "step", "4/128/64/12 signmuon");
    if (!square || !wide || !tall || !step) return;
    Row *r = new_row(b, "sm_polar in a step", "4/128/64/12 signmuon", "-");
    if (!r) return;
    r->seconds[0] = 4 * (4 * square->seconds[0] + wide->seconds[0] + tall->seconds[0]);
    r->rate[0] = 100 * r->seconds[0] / step->seconds[0];
    r->unit = "% of it";
    print_row(stdout, r);
}

/* ------------------------------------------------------------------------------------------------
 * files */

// clang-format off
static const char explanation[] =
    "Written by `make bench`. A time is that of one call or step, the median of several, with\n"
    "operands as warm in cache as they fit. % is of the limit, the best of several in the same run:\n"
    "`FMA` is the row FMA fp32 and `bf16` the row bf16 dot (FMA fp32 where there is none), on as many\n"
    "threads; `8 MB` and `256 KB` are memcpy of so much. OpenBLAS runs on one thread.\n\n"
    "- GB/s count every byte that is touched once, whether it is read, written or both, because a\n"
    "  cache fetches its line once. memcpy touches source and destination.\n"
    "- `packed` products (64 tokens times a matrix packed before), `symmetric` ones and `sm_polar`\n"
    "  run once per thread, as in training; the other products are shared by the threads. A\n"
    "  symmetric product counts half.\n"
    "- A step is layers/width/context/batch and counts tokens (6 N + 6 L C T) flop: N is the entries\n"
    "  of all matrices with the head; of attention's 12 L C T the causal half counts. 3 workers take\n"
    "  the program's own number of threads; their limit is that of all cores.\n\n";
// clang-format on

static void write_table(FILE *f, const Bench *b) {
    fprintf(f, "%s; OpenBLAS: %s\n\n", b->cpu, b->blas_core);
    fprintf(f, "%s", explanation);
    print_head(f);
    for (size_t i = 0; i < b->rows; i++) print_row(f, &b->row[i]);
    fprintf(f, "\n![roofline](roofline.svg)\n");
}

static void write_csv(FILE *f, const Bench *b) {
    fprintf(f, "kernel,shape,threads,value,unit,limit,percent,seconds\n");
    for (size_t i = 0; i < b->rows; i++) {
        const Row *r = &b->row[i];
        for (int c = 0; c < 2; c++) {
            if (isnan(r->rate[c])) continue;
            fprintf(f, "%s,%s,%d,%.3f,%s,", r->kernel, r->shape, b->team[r->team[c]].threads,
                    r->rate[c], r->unit);
            if (isnan(r->ceiling[c]))
                fprintf(f, ",,%.4g\n", r->seconds[c]);
            else
                fprintf(f, "%.3f,%.1f,%.4g\n", r->ceiling[c], 100 * r->rate[c] / r->ceiling[c],
                        r->seconds[c]);
        }
        if (!isnan(r->reference))
            fprintf(f, "OpenBLAS %s,%s,1,%.3f,%s,%.3f,%.1f,%.4g\n", r->kernel, r->shape,
                    r->reference, r->unit, b->fma[0], 100 * r->reference / b->fma[0],
                    1e-9 * r->flops / r->reference);
    }
}

/* One thread's kernels with arithmetic; of products that differ in layout only, gemm_nn. */
static void write_roofline(FILE *f, const Bench *b) {
    static Roofline p;
    char title[600];
    snprintf(title, sizeof title, "Roofline of one thread: %s", b->cpu);
    p = (Roofline){.title = title,
                   .slope_name = {"memcpy 256 KB", "memcpy 8 MB", "memcpy 512 MB"},
                   .ceiling_name = {"FMA, 1 thread", "FMA, 2 threads"},
                   .slope = {b->copy[0][0], b->copy[1][0], b->copy[2][0]},
                   .ceiling = {b->fma[0], b->fma[1]}};
    for (const Row *r = b->row; r < b->row + b->rows && p.dots < ROOF_DOTS; r++) {
        int twin = strstr(r->kernel, "_nt") || strstr(r->kernel, "_tn");
        if (!(r->flops > 0 && r->bytes > 0) || twin) continue;
        RoofDot *d = &p.dot[p.dots++];
        snprintf(d->name, sizeof d->name, "%.40s, %.48s", r->kernel, r->shape);
        d->colour = r->unit[1] == 'B'            ? "#b5500b"
                    : strstr(r->kernel, "polar") ? "#7a3db8"
                                                 : "#1461b3";
        d->intensity = r->flops / r->bytes;
        d->rate = 1e-9 * r->flops / r->seconds[0];
    }
    roofline_write(f, &p);
}

static void write_file(const Bench *b, const char *path, void (*write)(FILE *, const Bench *)) {
    FILE *f = fopen(path, "w");
    if (f) write(f, b);
    if (!f || ferror(f) || fclose(f)) give_up("cannot write %s: %s", path, strerror(errno));
    printf("wrote %s\n", path);
}

/* ------------------------------------------------------------------------------------------------
 * main */

/* OpenBLAS on one thread, where it is installed. */
static void find_blas(Bench *b) {
    void (*set_threads)(int) = NULL;
    char *(*core)(void) = NULL;
    /* a release older than the CPU falls back to SSE; name the kernels that this CPU can run */
    if (gemm_select("avx2", GEMM_F32))
        setenv("OPENBLAS_CORETYPE", gemm_select("avx512", GEMM_F32) ? "SkylakeX" : "Haswell", 0);
    void *library = dlopen("libopenblas.so.0", RTLD_NOW);
    snprintf(b->blas_core, sizeof b->blas_core, "not found");
    if (!library) return;
    *(void **)&b->blas = dlsym(library, "cblas_sgemm");
    *(void **)&set_threads = dlsym(library, "openblas_set_num_threads");
    *(void **)&core = dlsym(library, "openblas_get_corename");
    if (set_threads) set_threads(1);
    if (b->blas) snprintf(b->blas_core, sizeof b->blas_core, "%s", core ? core() : "some kernels");
}

int main(int argc, char **argv) {
    static Bench bench;
    Bench *b = &bench;
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
        int help = argc == 2 && strcmp(argv[1], "--help") == 0;
        fprintf(help ? stdout : stderr,
                "usage: bench/bench [FILTER]\n"
                "Measures this machine's FMA peak and memory bandwidth, then every kernel, "
                "Newton-Schulz, the vote\n"
                "and whole steps (through ./train_gpt), in percent of those limits; writes "
                "docs/BENCH.md,\n"
                "docs/bench.csv and docs/roofline.svg. With FILTER only the rows whose name, "
                "kernel and shape,\n"
                "contains it, and no files. GEMM_ISA=avx2 and its like choose the products.\n");
        return help ? 0 : 2;
    }
    b->filter = argc == 2 ? argv[1] : NULL;
    if (!gemm_default(GEMM_F32)) give_up("no GEMM_ISA=%s here", getenv("GEMM_ISA"));
    if (!b->filter && access("docs", W_OK | X_OK))
        give_up("cannot write to docs/: %s; run it in the root of the repository", strerror(errno));
    if (!b->filter) need_program();
    comm_float_environment();
    for (int i = 0; i < TEAMS; i++) {
        int threads = i == ALL ? (int)min_size((size_t)comm_cores(), 256) : i + 1;
        if (team_start(&b->team[i], threads, 2000)) give_up("cannot start %d threads", threads);
    }
    for (int i = 0; i < 2; i++) b->scratch[i] = floats(ROOM);
    for (size_t i = 0; i < BUFFERS; i++) b->x[i] = floats(ROOM);
    find_blas(b);
    describe_cpu(b->cpu, sizeof b->cpu);
    printf("%s; OpenBLAS %s, 1 thread\n\n", b->cpu, b->blas_core);
    print_head(stdout);
    measure_limits(b);
    measure_products(b);
    measure_polar(b);
    measure_movers(b);
    measure_exchange(b);
    measure_steps(b);
    measure_share(b);
    remove_folder(b->folder);
    if (b->filter) return 0;
    printf("\n");
    write_file(b, "docs/BENCH.md", write_table);
    write_file(b, "docs/bench.csv", write_csv);
    write_file(b, "docs/roofline.svg", write_roofline);
    return 0;
}
