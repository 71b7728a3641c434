/* bench/gemm.c - how fast gemm.h is on this machine, beside the FMA peak and OpenBLAS.

     cc -std=c11 -D_GNU_SOURCE -O3 -I. bench/gemm.c -o bench_gemm -ldl -lpthread -lm
     GEMM_ISA=avx2 ./bench_gemm [FILTER]      shapes whose name contains FILTER

   A figure is the median of SAMPLES runs, each repeating one product on the same operands for
   about SECONDS. Operands are therefore warm in cache, as far as they fit. MIT licence. */
#include "gemm.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

enum { SAMPLES = 7, MAX_THREADS = 2 };
#define SECONDS 0.004

typedef struct Shape {
    const char *name;
    size_t m, n, k, ld; /* ld: leading dimension of all three; 0: tight */
} Shape;

static const Shape shapes[] = {
    {"attention 64", 64, 64, 32, 384},      {"attention 256", 256, 256, 64, 1152},
    {"Newton-Schulz", 128, 128, 128, 0},    {"qkv", 256, 384, 128, 0},
    {"mlp up", 256, 512, 128, 0},           {"mlp down", 256, 128, 512, 0},
    {"weight gradient", 512, 128, 256, 0},  {"large", 2048, 1536, 384, 0},
    {"large gradient", 1536, 384, 2048, 0}, {"decode, in L2", 1, 512, 128, 0},
    {"decode, in L3", 1, 1536, 384, 0},
};

typedef void Product(const Gemm *, float *, size_t, const float *, size_t, const float *, size_t,
                     size_t, size_t, size_t, int, float *, int, int);
typedef void Sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                   int lda, const float *b, int ldb, float beta, float *c, int ldc);

static const struct Kind {
    const char *name;
    Product *product;
    int ta, tb;
} kinds[] = {{"nn", gemm_nn, 0, 0}, {"nt", gemm_nt, 0, 1}, {"tn", gemm_tn, 1, 0}};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *x, const void *y) {
    return (*(const double *)x > *(const double *)y) - (*(const double *)x < *(const double *)y);
}

/* ------------------------------------------------------------------------------------------------
 * the FMA peak of one thread: independent chains that never leave the registers */

enum { CHAINS = 12, PEAK_STEPS = 2000000 };

#define DEFINE_PEAK(name, isa, type, set1, fma, lanes)                                             \
    __attribute__((target(isa))) static double name(float *sink) {                                 \
        type t[CHAINS], x = set1(0.999f), y = set1(1e-3f);                                         \
        for (int i = 0; i < CHAINS; i++) t[i] = set1((float)i);                                    \
        for (int s = 0; s < PEAK_STEPS; s++)                                                       \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) t[i] = fma(t[i], x, y);      \
        for (int i = 0; i < CHAINS; i++) memcpy(sink + i, &t[i], sizeof *sink);                    \
        return 2.0 * lanes * CHAINS * PEAK_STEPS;                                                  \
    }
#ifdef GEMM__X86
DEFINE_PEAK(peak_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, 16)
DEFINE_PEAK(peak_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, 8)
#endif

/* GFLOP/s, the best of SAMPLES; NaN where no vector FMA is known */
static double fma_peak(void) {
    double best = NAN, (*peak)(float *) = NULL;
    float sink[CHAINS];
#ifdef GEMM__X86
    peak = gemm_select("avx512", GEMM_F32) ? peak_avx512 : gemm_select("avx2", GEMM_F32) ? peak_avx2 : NULL;
#endif
    for (int i = 0; peak && i < SAMPLES; i++) {
        double start = now(), flops = peak(sink);
        best = fmax(best, 1e-9 * flops / (now() - start));
    }
    return best;
}

/* ------------------------------------------------------------------------------------------------
 * one measurement */

typedef struct Bench {
    const Gemm *g;
    const Shape *shape;
    const struct Kind *kind;
    Sgemm *blas; /* if set, measured in place of gemm.h */
    float *a, *b, *c, *scratch[MAX_THREADS];
    size_t lda, ldb, ldc;
    int ith, nth;
    long calls;
    atomic_long *arrived; /* at the barrier that follows every product */
} Bench;

static void barrier(const Bench *s, long round) {
    atomic_fetch_add(s->arrived, 1);
    for (long spins = 0; atomic_load(s->arrived) < round * s->nth; spins++)
        if (spins > 20000) sched_yield();
}

static void *work(void *arg) {
    const Bench *s = arg;
    const Shape *h = s->shape;
    if (s->nth > 1) barrier(s, 1);
    for (long i = 0; i < s->calls; i++) {
        if (s->blas)
            s->blas(101, 111 + s->kind->ta, 111 + s->kind->tb, (int)h->m, (int)h->n, (int)h->k, 1,
                    s->a, (int)s->lda, s->b, (int)s->ldb, 0, s->c, (int)s->ldc);
        else
            s->kind->product(s->g, s->c, s->ldc, s->a, s->lda, s->b, s->ldb, h->m, h->n, h->k, 0,
                             s->scratch[s->ith], s->ith, s->nth);
        if (s->nth > 1) barrier(s, i + 2);
    }
    return NULL;
}

static double seconds_for(const Bench *s, long calls) {
    Bench worker[MAX_THREADS];
    pthread_t thread[MAX_THREADS];
    atomic_long arrived = 0;
    double start = now();
    assert(s->nth >= 1 && s->nth <= MAX_THREADS);
    for (int i = s->nth - 1; i >= 0; i--) {
        worker[i] = *s;
        worker[i].ith = i;
        worker[i].calls = calls;
        worker[i].arrived = &arrived;
        if (i > 0 && pthread_create(&thread[i], NULL, work, &worker[i])) abort();
    }
    work(&worker[0]);
    for (int i = 1; i < s->nth; i++) pthread_join(thread[i], NULL);
    return now() - start;
}

/* GFLOP/s, the median of SAMPLES */
static double measure(Bench *s, int nth, Sgemm *blas) {
    double rate[SAMPLES];
    const Shape *h = s->shape;
    long calls = 1;
    s->nth = nth;
    s->blas = blas;
    while (calls < 1 << 20 && seconds_for(s, calls) < SECONDS) calls *= 2;
    for (int i = 0; i < SAMPLES; i++)
        rate[i] = 2e-9 * (double)(h->m * h->n * h->k) * (double)calls / seconds_for(s, calls);
    qsort(rate, SAMPLES, sizeof *rate, by_value);
    return rate[SAMPLES / 2];
}

int main(int argc, char **argv) {
    Bench s = {.g = gemm_default(GEMM_F32)};
    if (!s.g) return fprintf(stderr, "bench/gemm: no GEMM_ISA=%s here\n", getenv("GEMM_ISA")), 2;
    void (*set_threads)(int) = NULL;
    char *(*core)(void) = NULL;
    Sgemm *blas = NULL;
    /* a release older than the CPU falls back to SSE; name the kernels that this CPU can run */
    if (gemm_select("avx2", GEMM_F32))
        setenv("OPENBLAS_CORETYPE", gemm_select("avx512", GEMM_F32) ? "SkylakeX" : "Haswell", 0);
    void *library = dlopen("libopenblas.so.0", RTLD_NOW);
    if (library) {
        *(void **)&blas = dlsym(library, "cblas_sgemm");
        *(void **)&set_threads = dlsym(library, "openblas_set_num_threads");
        *(void **)&core = dlsym(library, "openblas_get_corename");
        if (set_threads) set_threads(1);
    }
    const size_t room = 2048 * 2048;
    float **blocks[] = {&s.a, &s.b, &s.c, &s.scratch[0], &s.scratch[1]};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        if (!(*blocks[i] = malloc((i < 3 ? room : gemm_scratch()) * sizeof(float)))) abort();
    for (size_t i = 0; i < room; i++) s.a[i] = (float)(i % 17) - 8, s.b[i] = (float)(i % 13) - 6;
    double peak = fma_peak();
    printf("gemm.h %s %zux%zu; FMA peak of one thread %.1f GFLOP/s; OpenBLAS %s, 1 thread\n",
           s.g->name, s.g->mr, s.g->nr, peak, core ? core() : "not found");
    printf("GFLOP/s; the same product is repeated, so operands are warm in cache\n\n");
    printf("%-18s %5s %5s %5s %5s %4s %10s %7s %10s %10s\n", "shape", "m", "n", "k", "ld", "kind",
           "1 thread", "% peak", "2 threads", "OpenBLAS");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const Shape *h = s.shape = &shapes[i];
        if (argc > 1 && !strstr(h->name, argv[1])) continue;
        for (size_t j = 0; j < sizeof kinds / sizeof *kinds; j++) {
            s.kind = &kinds[j];
            s.lda = h->ld ? h->ld : s.kind->ta ? h->m : h->k;
            s.ldb = h->ld ? h->ld : s.kind->tb ? h->k : h->n;
            s.ldc = h->ld ? h->ld : h->n;
            double one = measure(&s, 1, NULL), two = measure(&s, 2, NULL);
            double reference = blas ? measure(&s, 1, blas) : NAN;
            printf("%-18s %5zu %5zu %5zu %5zu %4s %10.1f %7.0f %10.1f %10.1f\n", h->name, h->m,
                   h->n, h->k, s.ldc, s.kind->name, one, 100 * one / peak, two, reference);
        }
    }
    return 0;
}
