/* bench.c - what this machine can do, and how much of it kernels and whole steps reach. MIT.

     make bench             everything; writes docs/BENCH.md, docs/bench.csv, docs/roofline.svg
     bench/bench FILTER     only the rows whose name contains FILTER; writes nothing

   The limits come first: FMA chains that never leave the registers, and memcpy at three sizes, each
   the best of SAMPLES. Every other figure is the median of SAMPLES runs that repeat one call for
   about SECONDS, so operands are as warm in cache as they fit. It includes the program, to time the
   functions that train; whole steps are timed through ./train_gpt. */
#include "measure.h"

enum { ONE, TWO, ALL, TEAMS }; /* teams of 1, of 2, and of as many threads as there are cores */
enum { SAMPLES = 9, ENTRIES = 1 << 20, ROOM = 4 * ENTRIES, BUFFERS = 5, COPIED = 1 << 26 };
enum { PEAK_STEPS = 20000, MOST_WORKERS = 1024 };
#define SECONDS 0.004

/* What bounds a kernel. */
typedef enum Limit { FMA, DOT, L2, L3, MEMORY, LIMITS } Limit;
static const char *const limit_name[LIMITS] = {"FMA", "bf16", "256 KB", "8 MB", "512 MB"};

/* One line of the table, in columns of 1 and of more threads. */
typedef struct Row {
    char kernel[40], shape[48];
    const char *unit, *limit;               /* GFLOP/s or GB/s; the name of what bounds it */
    double flops, bytes;                    /* of a call; every byte that is touched, once */
    int team[2];                            /* of the columns: ONE, and TWO or ALL */
    double seconds[2], rate[2], ceiling[2]; /* NaN: not measured, not bounded */
} Row;

typedef struct Bench {
    char cpu[512], folder[FOLDER_SIZE]; /* folder: of runs of train_gpt, or "" */
    Team team[TEAMS];
    float *x[BUFFERS], *scratch[2]; /* ROOM floats each; scratch by thread */
    float *copied[2];               /* COPIED floats each */
    double limit[LIMITS][TEAMS];    /* GFLOP/s or GB/s */
    const char *filter;
    Row row[MOST_ROWS];
    size_t rows;
} Bench;

/* What is timed. */
typedef struct Kernel Kernel;
struct Kernel {
    const char *name, *shape;
    void (*call)(const Bench *b, const Kernel *k, int ith, int nth);
    size_t m, n, k;
    Limit limit;         /* FMA, DOT: arithmetic and two columns, else one column */
    double bytes, flops; /* of a call; 0: of a product */
    int alone;           /* every thread has a call of its own */
};

/* ------------------------------------------------------------------------------------------------
 * one measurement */

typedef struct Repeat {
    Bench *b;
    const Kernel *kernel;
    Team *team;
    long calls;
} Repeat;

static void repeat(void *context, int ith, int nth) {
    const Repeat *r = context;
    for (long i = 0; i < r->calls; i++) {
        r->kernel->call(r->b, r->kernel, ith, nth);
        if (!r->kernel->alone) team_barrier(r->team);
    }
}

/* Seconds of a call, the median of SAMPLES; *best <- the fastest. */
static double measure(Bench *b, const Kernel *kernel, int team, double *best) {
    double sample[SAMPLES], start;
    Repeat r = {b, kernel, &b->team[team], 1};
    for (;; r.calls *= 2) {
        start = base_now();
        team_run(r.team, repeat, &r);
        if (base_now() - start > SECONDS) break;
    }
    for (int i = 0; i < SAMPLES; i++) {
        start = base_now();
        team_run(r.team, repeat, &r);
        sample[i] = (base_now() - start) / (double)r.calls;
    }
    double middle = median(sample, SAMPLES);
    *best = *sample; /* the median sorts */
    return middle;
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

/* A new row; NULL when the filter leaves it out. */
static Row *new_row(Bench *b, const char *kernel, const char *shape, const char *limit) {
    Row r = {.unit = "GFLOP/s", .limit = limit, .team = {ONE, TWO}};
    char name[128];
    snprintf(name, sizeof name, "%s %s", kernel, shape);
    if (b->filter && !strstr(name, b->filter)) return NULL;
    snprintf(r.kernel, sizeof r.kernel, "%s", kernel);
    snprintf(r.shape, sizeof r.shape, "%s", shape);
    for (int i = 0; i < 2; i++) r.seconds[i] = r.rate[i] = r.ceiling[i] = NAN;
    assert(b->rows < MOST_ROWS);
    b->row[b->rows] = r;
    return &b->row[b->rows++];
}

/* A value with so many decimals and a unit, or - */
static const char *number(char *out, double value, int decimals, const char *unit) {
    snprintf(out, 32, "%.*f%s", decimals, value, unit);
    return isnan(value) ? "-" : out;
}

static void print_head(FILE *f) {
    fprintf(f, "| kernel | shape | 1 thread | rate | %% | 2 threads | rate | %% | unit | limit |\n"
               "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |\n");
}

static void print_row(FILE *f, const Row *r) {
    char t[32];
    fprintf(f, "| %-18s | %-28s |", r->kernel, r->shape);
    for (int i = 0; i < 2; i++) {
        double s = r->seconds[i];
        fprintf(f, " %10s |",
                s < 0.01 ? number(t, 1e6 * s, 1, " us") : number(t, 1e3 * s, 1, " ms"));
        fprintf(f, " %7s |", number(t, r->rate[i], 1, ""));
        fprintf(f, " %4s |", number(t, 100 * r->rate[i] / r->ceiling[i], 0, ""));
    }
    fprintf(f, " %-7s | %-6s |\n", r->unit, r->limit);
    fflush(f);
}

/* ------------------------------------------------------------------------------------------------
 * limits */

/* PEAK_STEPS of independent chains t = t x + y, in registers. */
#define DEFINE_PEAK(name, attribute, type, set1, fma, chains)                                      \
    attribute static void name(const Bench *b, const Kernel *kernel, int ith, int nth) {           \
        type t[chains], x = set1(0.999f), y = set1(1e-3f);                                         \
        (void)b, (void)kernel, (void)ith, (void)nth;                                               \
        for (int i = 0; i < chains; i++) t[i] = set1((float)i);                                    \
        for (int s = 0; s < PEAK_STEPS; s++)                                                       \
            _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++) t[i] = fma(t[i], x, y);      \
        __asm__ volatile("" : : "r"(t) : "memory"); /* keeps the results alive */                  \
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
#ifdef GEMM__AMX
TARGET("amx-tile,amx-bf16")
static void peak_amx(const Bench *b, const Kernel *kernel, int ith, int nth) {
    (void)b, (void)kernel, (void)ith, (void)nth;
    gemm__shape_amx(1);
    for (int s = 0; s < PEAK_STEPS; s++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
    }
    gemm__shape_amx(0);
}
#endif
#ifdef __ARM_NEON
#define NEON_FMA(t, x, y) vfmaq_f32(y, t, x)
DEFINE_PEAK(peak_neon, , float32x4_t, vdupq_n_f32, NEON_FMA, 24)
#endif

static const struct Peak {
    const char *isa; /* gemm.h's name */
    void (*call)(const Bench *, const Kernel *, int ith, int nth);
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

static void copy_part(const Bench *b, const Kernel *k, int ith, int nth) {
    size_t lo, hi;
    slice(k->m, ith, nth, &lo, &hi);
    memcpy((char *)b->copied[0] + lo, (char *)b->copied[1] + lo, hi - lo);
}

/* Rates of the fastest samples of every team. */
static void measure_limit(Bench *b, Limit limit, const Kernel *k, const char *unit) {
    Row *r = new_row(b, k->name, k->shape, "-");
    for (int i = 0; i < TEAMS; i++) {
        double best = INFINITY, sample;
        for (int again = 0; again < 3; again++)
            measure(b, k, i, &sample), best = fmin(best, sample);
        double work = k->alone ? k->flops * b->team[i].threads : k->bytes;
        b->limit[limit][i] = 1e-9 * work / best;
        if (r && i < ALL) r->seconds[i] = best, r->rate[i] = b->limit[limit][i];
    }
    if (!r) return;
    r->unit = unit;
    print_row(stdout, r);
}

static void measure_limits(Bench *b) {
    static const char *const size[] = {"256 KB (L2)", "8 MB (L3)", "512 MB (memory)"};
    const struct Peak *p = peaks;
    while (!gemm_select(p->isa, GEMM_F32)) p++;
    Kernel k = {.name = "FMA fp32", .shape = p->isa, .call = p->call, .alone = 1};
    k.flops = p->flops * PEAK_STEPS;
    measure_limit(b, FMA, &k, "GFLOP/s");
    if (comm_cores() > 1 && b->limit[FMA][TWO] < 1.6 * b->limit[FMA][ONE])
        fprintf(stderr, "bench: two threads do the work of %.1f: is another program running?\n",
                b->limit[FMA][TWO] / b->limit[FMA][ONE]);
    memcpy(b->limit[DOT], b->limit[FMA], sizeof b->limit[FMA]); /* where bf16 is rounded fp32 */
    GemmWord word = gemm_default(GEMM_BF16)->word;
#ifdef GEMM__AMX
    if (word == GEMM_TILES) {
        k = (Kernel){.name = "bf16 dot", .shape = "tdpbf16ps", .call = peak_amx, .alone = 1};
        k.flops = 2. * 16 * 16 * 32 * 4 * PEAK_STEPS;
        measure_limit(b, DOT, &k, "GFLOP/s");
    }
#endif
#ifdef GEMM__X86
    if (word == GEMM_PAIRS) {
        k = (Kernel){.name = "bf16 dot", .shape = "vdpbf16ps", .call = peak_bf16, .alone = 1};
        k.flops = 4. * 16 * 12 * PEAK_STEPS;
        measure_limit(b, DOT, &k, "GFLOP/s");
    }
#endif
    for (int i = 0; i < 2; i++) b->copied[i] = memset(room(COPIED), 1, COPIED * sizeof(float));
    for (int i = 0; i < 3; i++) {
        k = (Kernel){.name = "memcpy", .shape = size[i], .call = copy_part};
        k.m = (size_t)1 << (17 + 5 * i + (i == 2));
        k.bytes = 2 * (double)k.m;
        measure_limit(b, (Limit)(L2 + i), &k, "GB/s");
    }
    for (int i = 0; i < 2; i++) free(b->copied[i]);
}

/* ------------------------------------------------------------------------------------------------
 * kernels: on the buffers; products write x[2], those that run once per thread a half of it each */

static const Gemm *gemm_of(const Kernel *k) {
    return gemm_default(k->limit == DOT ? GEMM_BF16 : GEMM_F32);
}
static float *half(const Bench *b, int ith) { return b->x[2] + (size_t)ith * (ROOM / 2); }
static uint64_t *bits_of(float *x) { return (uint64_t *)(void *)x; }
#define KERNEL(name)                                                                               \
    static void name(const Bench *b, __attribute__((unused)) const Kernel *k,                      \
                     __attribute__((unused)) int ith, __attribute__((unused)) int nth)

KERNEL(run_nn) {
    gemm_nn(gemm_of(k), b->x[2], k->n, b->x[0], k->k, b->x[1], k->n, k->m, k->n, k->k, 0,
            b->scratch[ith], ith, nth);
}
KERNEL(run_nt) {
    gemm_nt(gemm_of(k), b->x[2], k->n, b->x[0], k->k, b->x[1], k->k, k->m, k->n, k->k, 0,
            b->scratch[ith], ith, nth);
}
/* The packed matrix has the values that refill left there: only the layout matters to time. */
KERNEL(run_packed) {
    gemm_multiply(gemm_of(k), half(b, ith), k->n, gemm_f32(b->x[0], k->k, 1),
                  gemm_packed(b->x[3], k->k), k->m, k->n, k->k, 0, b->scratch[ith], 0, 1);
}
KERNEL(run_gradient) {
    gemm_multiply(gemm_of(k), b->x[2], k->n, gemm_packed(b->x[4], k->k), gemm_packed(b->x[3], k->k),
                  k->m, k->n, k->k, 0, b->scratch[ith], ith, nth);
}
KERNEL(run_symmetric) {
    GemmOperand a = gemm_f32(b->x[0], k->k, 1);
    gemm_symmetric(gemm_of(k), half(b, ith), k->n, a, a, k->m, k->k, b->scratch[ith]);
}
KERNEL(run_polar) {
    SmNewtonSchulz ns = *sm_newton_schulz("jordan5");
    ns.bf16 = k->limit == DOT;
    sm_polar(half(b, ith), b->x[0], k->m, k->n, &ns, b->scratch[ith]);
}
KERNEL(run_gelu) { gelu_forward(b->x[0], b->x[1], ENTRIES); }
KERNEL(run_gelu_backward) { gelu_backward(b->x[0], b->x[1], b->x[2], ENTRIES); }
KERNEL(run_softmax) {
    for (size_t i = 0; i + k->n <= ENTRIES; i += k->n) cross_entropy(b->x[0] + i, k->n, 7, 1e-3f);
}
KERNEL(run_momentum) { sm_momentum(b->x[0], b->x[1], b->x[2], ENTRIES, 0.95f, 1); }
KERNEL(run_adamw) {
    sm_adamw(b->x[0], b->x[1], b->x[3], b->x[2], ENTRIES, 9, 1e-3, 0.9, 0.95, 1e-8, 0.999f);
}
KERNEL(run_step) { sm_step_dense(b->x[0], b->x[1], ENTRIES, 1e-3f, 0.999f); }
KERNEL(run_sign) { sm_pack(bits_of(b->x[0]), b->x[1], ENTRIES, SM_COIN, 3); }
KERNEL(run_unpack) { sm_unpack(b->x[0], bits_of(b->x[1]), NULL, ENTRIES); }
KERNEL(run_apply) { sm_apply(b->x[0], bits_of(b->x[1]), NULL, ENTRIES, 1e-3f, 0.999f); }
KERNEL(run_vote) { /* n workers, m words each */
    const uint64_t *signs[MOST_WORKERS];
    for (size_t v = 0; v < k->n; v++) signs[v] = bits_of(b->x[1]) + v * k->m;
    sm_vote(bits_of(b->x[0]), NULL, signs, NULL, k->n, k->m, SM_COIN, 3, 0);
}
KERNEL(run_pack) { gemm_pack(gemm_of(k), b->x[0], gemm_f32(b->x[1], 1024, 1), 1024, 1024, 0, 1); }

/* flops: each of + - * / > is one; bytes: one that is read and written is one */
#define TIMED(NAME, SHAPE, CALL, LIMIT, ...)                                                       \
    { .name = NAME, .shape = SHAPE, .call = CALL, .limit = LIMIT, __VA_ARGS__ }
// clang-format off
static const Kernel kernels[] = {
    TIMED("gemm_nn", "256x256x64", run_nn, FMA, .m = 256, .n = 256, .k = 64), /* attention */
    TIMED("gemm_nn", "128x128x128", run_nn, FMA, .m = 128, .n = 128, .k = 128), /* Newton-Schulz */
    TIMED("gemm_nt", "256x512x128", run_nt, FMA, .m = 256, .n = 512, .k = 128), /* MLP */
    TIMED("gemm_nt", "2048x1536x384", run_nt, FMA, .m = 2048, .n = 1536, .k = 384),
    TIMED("gemm_nt", "1x512x128", run_nt, L2, .m = 1, .n = 512, .k = 128), /* sampling */
    TIMED("gemm_nt", "1x1536x384", run_nt, L3, .m = 1, .n = 1536, .k = 384),
    TIMED("packed", "64x512x128", run_packed, FMA, .m = 64, .n = 512, .k = 128, .alone = 1),
    TIMED("packed", "64x1536x384", run_packed, FMA, .m = 64, .n = 1536, .k = 384, .alone = 1),
    TIMED("packed bf16", "64x1536x384", run_packed, DOT, .m = 64, .n = 1536, .k = 384, .alone = 1),
    TIMED("packed gradient", "1536x384x2048", run_gradient, FMA, .m = 1536, .n = 384, .k = 2048),
    TIMED("packed gradient bf16", "1536x384x2048", run_gradient, DOT,
          .m = 1536, .n = 384, .k = 2048),
    TIMED("symmetric", "384x384x384", run_symmetric, FMA, .m = 384, .n = 384, .k = 384, .alone = 1),
    TIMED("sm_polar jordan5", "128x128", run_polar, FMA, .m = 128, .n = 128, .alone = 1),
    TIMED("sm_polar jordan5", "128x512", run_polar, FMA, .m = 128, .n = 512, .alone = 1),
    TIMED("sm_polar jordan5", "384x1536", run_polar, FMA, .m = 384, .n = 1536, .alone = 1),
    TIMED("sm_polar jordan5 bf16", "384x1536", run_polar, DOT, .m = 384, .n = 1536, .alone = 1),
    TIMED("gelu_forward", "1M", run_gelu, L3, .bytes = 8. * ENTRIES, .flops = 30. * ENTRIES),
    TIMED("gelu_backward", "1M", run_gelu_backward, L3,
          .bytes = 12. * ENTRIES, .flops = 39. * ENTRIES),
    TIMED("cross_entropy", "rows of 65", run_softmax, L3, .n = 65,
          .bytes = 4. * 1048515, .flops = 26. * 1048515),
    TIMED("cross_entropy", "rows of 50257", run_softmax, L3, .n = 50257,
          .bytes = 4. * 1005140, .flops = 26. * 1005140),
    TIMED("sm_momentum", "1M", run_momentum, L3, .bytes = 12. * ENTRIES, .flops = 6. * ENTRIES),
    TIMED("sm_adamw", "1M", run_adamw, L3, .bytes = 16. * ENTRIES, .flops = 14. * ENTRIES),
    TIMED("sm_step_dense", "1M", run_step, L3, .bytes = 8. * ENTRIES, .flops = 3. * ENTRIES),
    TIMED("sm_pack", "1M", run_sign, L3, .bytes = 4.125 * ENTRIES),
    TIMED("sm_unpack", "1M", run_unpack, L3, .bytes = 4.125 * ENTRIES),
    /* n sign messages of m words, 8 MB in all */
    TIMED("sm_vote", "3 workers", run_vote, L3, .n = 3, .m = 349520, .bytes = 8. * 4 * 349520),
    TIMED("sm_vote", "64 workers", run_vote, L3, .n = 64, .m = 16384, .bytes = 8. * 65 * 16384),
    TIMED("sm_vote", "1024 workers", run_vote, L3, .n = 1024, .m = 1024, .bytes = 8. * 1025 * 1024),
    TIMED("sm_apply", "1M", run_apply, L3, .bytes = 4.125 * ENTRIES, .flops = 2. * ENTRIES),
    TIMED("gemm_pack", "1024x1024", run_pack, L3, .bytes = 8. * ENTRIES),
};
// clang-format on

static void measure_kernels(Bench *b) {
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        const Kernel *k = &kernels[i];
        double m = (double)k->m, n = (double)k->n, depth = (double)k->k, best;
        Row *r = new_row(b, k->name, k->shape, limit_name[k->limit]);
        if (!r) continue;
        refill(b);
        int product = k->k > 0, symmetric = k->call == run_symmetric;
        r->flops = product ? (symmetric ? 1 : 2) * m * n * depth : k->flops;
        r->bytes = product ? 4 * (m * depth + (symmetric ? 0 : n * depth) + m * n) : k->bytes;
        if (k->call == run_polar) {
            kernels_flops = 0;
            run_polar(b, k, 0, 1);
            r->flops = kernels_flops;
            r->bytes = 8 * m * n;
        }
        int arithmetic = k->limit <= DOT, timed = arithmetic || product ? 2 : 1;
        if (!arithmetic && !product) r->unit = "GB/s";
        for (int c = 0; c < timed; c++) {
            double times = k->alone ? b->team[r->team[c]].threads : 1;
            double of_bytes = product && !arithmetic ? r->flops / r->bytes : 1;
            r->seconds[c] = measure(b, k, r->team[c], &best);
            r->rate[c] = 1e-9 * times *
                         (*r->unit == 'G' && r->unit[1] == 'B' ? r->bytes : r->flops) /
                         r->seconds[c];
            r->ceiling[c] = b->limit[k->limit][r->team[c]] * of_bytes;
        }
        print_row(stdout, r);
    }
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

/* Seconds of a step of ours with so many threads (0: the program's own number). */
static double time_ours(Bench *b, const struct Step *s, int threads) {
    char text[512];
    snprintf(
        text, sizeof text,
        "--layers %d --heads %d --width %d --context %d --batch %d --workers %d --threads %d %s",
        s->layers, s->heads, s->width, s->context, s->batch, s->workers, threads, s->flags);
    return time_program(b->folder, text, s->every, s->samples);
}

/* The same of PyTorch; NAN where it is not installed. version <- its version */
static double time_pytorch(const struct Step *s, int threads, char version[16]) {
    char command[256];
    double seconds = NAN;
    snprintf(command, sizeof command,
             "python3 -B bench/pytorch.py %d %d %d %d %d %d %s %d %d 2>/dev/null", s->layers,
             s->heads, s->width, s->context, s->batch, VOCABULARY,
             strstr(s->flags, "bf16") ? "bf16" : "fp32", threads, s->every * s->samples);
    FILE *f = popen(command, "r"); // NOLINT(cert-env33-c)
    if (f && fscanf(f, "%15s %lf", version, &seconds) != 2) seconds = NAN;
    if (f) pclose(f);
    return seconds;
}

static void measure_step(Bench *b, const struct Step *s, int pytorch) {
    double L = s->layers, C = s->width, T = s->context, N = 12 * L * C * C + VOCABULARY * C;
    int bf16 = strstr(s->flags, "bf16") != NULL, many = s->workers > 1;
    char shape[48], version[16] = "";
    snprintf(shape, sizeof shape, "%d/%d/%d/%d %s", s->layers, s->width, s->context, s->batch,
             s->name);
    Row *r = new_row(b, pytorch ? "PyTorch step" : "step", shape, bf16 ? "bf16" : "FMA");
    if (!r) return;
    r->flops = s->batch * T * (6 * N + 6 * L * C * T);
    if (many) r->team[1] = ALL;
    for (int c = many; c < 2; c++) {
        r->seconds[c] =
            pytorch ? time_pytorch(s, c + 1, version) : time_ours(b, s, many ? 0 : c + 1);
        if (pytorch && isnan(r->seconds[c])) {
            b->rows--;
            return;
        }
        r->rate[c] = 1e-9 * r->flops / r->seconds[c];
        r->ceiling[c] = b->limit[bf16 ? DOT : FMA][r->team[c]];
    }
    if (pytorch) snprintf(r->kernel, sizeof r->kernel, "PyTorch %s", version);
    print_row(stdout, r);
}

static void measure_steps(Bench *b) {
    for (const struct Step *s = steps; s < steps + sizeof steps / sizeof *steps; s++) {
        measure_step(b, s, 0);
        if (strstr(s->name, "adamw")) measure_step(b, s, 1);
    }
}

/* ------------------------------------------------------------------------------------------------
 * files */

// clang-format off
static const char explanation[] =
    "Written by `make bench`. A time is that of one call or step, the median of several, with operands as\n"
    "warm in cache as they fit. % is of the limit, the best of several in the same run: `FMA` is the row FMA\n"
    "fp32 and `bf16` the row bf16 dot (FMA fp32 where there is none), on as many threads; `8 MB` and `256 KB`\n"
    "are memcpy of so much.\n\n"
    "- GB/s count every byte that is touched once, whether it is read, written or both, because a cache\n"
    "  fetches its line once. memcpy touches source and destination.\n"
    "- `packed` products (64 tokens times a matrix packed before), `symmetric` ones and `sm_polar` run once\n"
    "  per thread, as in training. The threads share the other products. A symmetric product counts half.\n"
    "- A step is layers/width/context/batch and counts tokens (6 N + 6 L C T) flop. N is the entries of all\n"
    "  matrices with the output layer; of attention's 12 L C T the causal half counts. 3 workers take the\n"
    "  program's own number of threads; their limit is that of all cores. PyTorch, where it is installed:\n"
    "  the same model, eager, with its own attention and fused AdamW (`bench/pytorch.py`).\n\n";
// clang-format on

/* Percent of the signs of polar(G), G uniform (m,n), that --ns-dtype bf16 turns round. */
static double turned_signs(Bench *b, size_t m, size_t n, const char *polynomials) {
    SmNewtonSchulz ns = *sm_newton_schulz(polynomials);
    size_t turned = 0;
    refill(b);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        ns.bf16 = bf16;
        sm_polar(b->x[1 + bf16], b->x[0], m, n, &ns, b->scratch[0]);
    }
    for (size_t i = 0; i < m * n; i++) turned += signbit(b->x[1][i]) != signbit(b->x[2][i]);
    return 100 * (double)turned / (double)(m * n);
}

static void write_signs(FILE *f, Bench *b) {
    static const size_t shape[][2] = {{128, 128}, {128, 512}, {384, 1536}, {768, 768}};
    fprintf(f, "\n| signs that `--ns-dtype bf16` turns round, of a random matrix |");
    for (size_t i = 0; i < 4; i++) fprintf(f, " %zux%zu |", shape[i][0], shape[i][1]);
    fprintf(f, "\n| --- | ---: | ---: | ---: | ---: |\n");
    for (int k = 0; k < 2; k++) {
        const char *ns = k ? "polar-express3" : "jordan5";
        fprintf(f, "| `--ns %s` |", ns);
        for (size_t i = 0; i < 4; i++)
            fprintf(f, " %.2f %% |", turned_signs(b, shape[i][0], shape[i][1], ns));
        fprintf(f, "\n");
    }
}

static void write_table(FILE *f, Bench *b) {
    fprintf(f, "# Kernels and steps in percent of this machine's limits\n\n%s\n\n%s", b->cpu,
            explanation);
    print_head(f);
    for (size_t i = 0; i < b->rows; i++) print_row(f, &b->row[i]);
    write_signs(f, b);
    fprintf(f, "\n![roofline](roofline.svg)\n");
}

static void write_csv(FILE *f, const Bench *b) {
    fprintf(f, "kernel,shape,threads,value,unit,limit,percent,seconds,flop_per_byte,gflops\n");
    for (const Row *r = b->row; r < b->row + b->rows; r++)
        for (int c = 0; c < 2; c++)
            if (!isnan(r->rate[c]))
                fprintf(f, "%s,%s,%d,%.3f,%s,%.3f,%.1f,%.4g,%.4g,%.4g\n", r->kernel, r->shape,
                        b->team[r->team[c]].threads, r->rate[c], r->unit, r->ceiling[c],
                        100 * r->rate[c] / r->ceiling[c], r->seconds[c], r->flops / r->bytes,
                        1e-9 * r->flops / r->seconds[c]);
}

int main(int argc, char **argv) {
    static Bench bench;
    Bench *b = &bench;
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
        fprintf(stderr, "usage: bench/bench [FILTER]\n");
        return 2;
    }
    b->filter = argc == 2 ? argv[1] : NULL;
    if (!gemm_default(GEMM_F32)) give_up("no GEMM_ISA=%s here", getenv("GEMM_ISA"));
    if (!b->filter) need_root();
    team_float_environment();
    for (int i = 0; i < TEAMS; i++) {
        int threads = i == ALL ? (int)min_size((size_t)comm_cores(), 256) : i + 1;
        if (team_start(&b->team[i], threads, TEAM_SPIN)) give_up("no %d threads", threads);
    }
    for (int i = 0; i < 2; i++) b->scratch[i] = room(ROOM);
    for (size_t i = 0; i < BUFFERS; i++) b->x[i] = room(ROOM);
    describe_cpu(b->cpu, sizeof b->cpu);
    printf("%s\n\n", b->cpu);
    print_head(stdout);
    measure_limits(b);
    measure_kernels(b);
    measure_steps(b);
    remove_folder(b->folder);
    if (b->filter) return 0;
    FILE *table = fopen("docs/BENCH.md", "w"), *csv = fopen("docs/bench.csv", "w");
    if (table) write_table(table, b);
    if (csv) write_csv(csv, b);
    close_file(table, "docs/BENCH.md");
    close_file(csv, "docs/bench.csv");
    if (system("gnuplot bench/roofline.gp")) // NOLINT(cert-env33-c)
        fprintf(stderr, "bench: without gnuplot docs/roofline.svg stays as it was\n");
    return 0;
}
