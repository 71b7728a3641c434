/* gemm.h - matrix products of fp32 for one core or a team of threads. Header-only C11, MIT.

     nn   C(m,n) = A(m,k) B(k,n)        nt   C = A B^T, B is (n,k)        tn   C = A^T B, A is (k,m)
     or C += the same. Row-major with leading dimensions. No dependency beyond libc.

   METHOD    Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication": five
     loops around one micro-kernel that keeps an mr x nr tile of C in registers. One micro-kernel
     per instruction set, chosen at run time. Ragged edges are panels padded with zeros. An operand
     that already lies as the kernel reads it is not packed, which makes small products fast.

   USE    #include "gemm.h" wherever it is needed; everything is static. Compile with -O3; no -march
     is needed. A whole program:

     #include "gemm.h"
     #include <stdio.h>
     int main(void) {
         const Gemm *g = gemm_default();
         float *scratch = malloc(gemm_scratch() * sizeof *scratch);
         float a[2 * 3] = {1, 2, 3, 4, 5, 6};
         float b[3 * 2] = {1, 0, 0, 1, 1, 1};
         float c[2 * 2];
         if (!g || !scratch) return 1;
         gemm_nn(g, c, 2, a, 3, b, 2, 2, 2, 3, 0, scratch, 0, 1);
         printf("%s: %g %g %g %g\n", g->name, c[0], c[1], c[2], c[3]);
         free(scratch);
         return !(c[0] == 4 && c[1] == 5 && c[2] == 10 && c[3] == 11);
     }

   MEMORY    the caller's: one scratch block of gemm_scratch() floats per thread, any alignment.
   THREADS    the caller's: call with ith = 0..nth-1 from nth threads, then pass a barrier.
     Nothing is shared between the calls but read-only operands; there are no globals.

   API
     gemm_select(name)   the row "avx512", "avx2" or "portable"; NULL or "": the best one here
     gemm_default()      the row named by the environment's GEMM_ISA, the best one when it is unset
     gemm_scratch()      floats of scratch that one thread needs, for every shape and row
     gemm_nn, gemm_nt, gemm_tn(g, c, ldc, a, lda, b, ldb, m, n, k, accumulate, scratch, ith, nth)
     gemm_symmetric(g, c, ldc, a, lda, b, ldb, m, k, scratch)   C = A B^T, half of it mirrored
     gemm_naive(...)     the three-loop oracle, any strides, sums in double

   KNOBS    GEMM_KC, GEMM_MC, GEMM_NC, the block sizes, defined before the include.

   NUMERICS    an element of C is a sum over blocks of GEMM_KC consecutive k, added in order; within
     a block it is one chain of fused multiply-adds in order of k (in the portable row: of multiply
     and add, fused or not as the compiler pleases). So its bits depend on the table row, GEMM_KC,
     its own row of A and its own column of B, and not on nth, m, n, leading dimensions, or which
     of nn, nt, tn made it. NaN and Inf propagate, from within the operands only. */
#ifndef GEMM_H
#define GEMM_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#define GEMM__X86 1
#include <immintrin.h>
#endif

/* C is made in blocks of GEMM_MC x GEMM_NC from blocks of A, GEMM_MC x GEMM_KC, and of B, GEMM_KC
 * x GEMM_NC. A panel of B (48 KB at nr = 32) is read from L1 or L2, the blocks from L2; GEMM_MC is
 * small because each row of C costs an entry of the first-level TLB. */
#ifndef GEMM_KC
#define GEMM_KC 384
#endif
#ifndef GEMM_MC
#define GEMM_MC 64
#endif
#ifndef GEMM_NC
#define GEMM_NC 512
#endif

enum { GEMM_MR_MAX = 16, GEMM_NR_MAX = 32 }; /* no row has a larger tile */

/* C(mr,nr) = or += A(mr,k) B(k,nr), the whole tile
 * a    element (i,p) at a[i * a_row + p * a_col]
 * b    element (p,j) at b[p * b_row + j]
 * c    element (i,j) at c[i * ldc + j]
 */
typedef void GemmKernel(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                        size_t b_row, float *c, size_t ldc, int accumulate);

/* one instruction set; the rows are in gemm_select */
typedef struct Gemm {
    const char *name;
    int (*supported)(void); /* does this CPU have it? */
    size_t mr, nr;          /* shape of the micro-kernel's tile; at most GEMM_MR_MAX, GEMM_NR_MAX */
    GemmKernel *kernel;
} Gemm;

/* the row for an instruction set; cheap, but meant to be called once
 * name     "avx512", "avx2" or "portable"; NULL or "" for the best that this CPU supports
 * error    NULL when the name is unknown or this CPU does not support it
 */
static inline const Gemm *gemm_select(const char *name);

/* gemm_select of the environment variable GEMM_ISA; NULL as above, for the caller to report */
static inline const Gemm *gemm_default(void);

/* floats of scratch for one thread: a constant that serves every shape and every row */
static inline size_t gemm_scratch(void);

/* C(m,n) = A(m,k) B(k,n), or += when accumulate; row-major f32; lda >= k; ldb, ldc >= n
 * cost     2mnk flop, and copies of the panels that cannot be read in place
 * memory   scratch of gemm_scratch() floats (1 MB), one per concurrent caller
 * alias    C overlaps neither operand nor scratch; A and B may be the same
 * threads  caller runs ith = 0..nth-1, then a barrier; the slices of C are disjoint
 * edges    k = 0 gives zeros (or leaves C as it was); m = 0 or n = 0 does nothing
 * error    none at run time; leading dimensions are asserted
 */
static inline void gemm_nn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth);

/* C(m,n) = A(m,k) B(n,k)^T, or +=; lda, ldb >= k; ldc >= n; the rest as gemm_nn */
static inline void gemm_nt(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth);

/* C(m,n) = A(k,m)^T B(k,n), or +=; lda >= m; ldb, ldc >= n; the rest as gemm_nn */
static inline void gemm_tn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth);

/* C(m,m) = A(m,k) B(m,k)^T where the caller knows that C is symmetric, as when B is A: about half
 * the tiles are computed, the others mirrored; the same bits as gemm_nt on and above the diagonal;
 * lda, ldb >= k, ldc >= m, k > 0; one thread; the rest as gemm_nn */
static inline void gemm_symmetric(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                                  const float *b, size_t ldb, size_t m, size_t k, float *scratch);

/* the oracle: C(m,n) = A(m,k) B(k,n), or +=, summed in double and rounded once
 * A(i,p) at a[i * a_row + p * a_col], B(p,j) at b[p * b_row + j * b_col]; needs no scratch
 */
static inline void gemm_naive(float *c, size_t ldc, const float *a, size_t a_row, size_t a_col,
                              const float *b, size_t b_row, size_t b_col, size_t m, size_t n,
                              size_t k, int accumulate) {
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = accumulate ? (double)c[i * ldc + j] : 0;
            for (size_t p = 0; p < k; p++)
                sum += (double)a[i * a_row + p * a_col] * (double)b[p * b_row + j * b_col];
            c[i * ldc + j] = (float)sum;
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * private from here: micro-kernels, one per instruction set */

static inline int gemm__always(void) { return 1; }

/* 4 x 8 without intrinsics: the compiler maps four floats to SSE, NEON or whatever there is */
typedef float GemmFour __attribute__((vector_size(16)));

static inline void gemm__kernel_portable(size_t k, const float *a, size_t a_row, size_t a_col,
                                         const float *b, size_t b_row, float *c, size_t ldc,
                                         int accumulate) {
    GemmFour t[4][2] = {{{0}}}, row[2];
    for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {
        memcpy(row, b, sizeof row);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            t[i][0] += a[i * a_row] * row[0];
            t[i][1] += a[i * a_row] * row[1];
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++, c += ldc) {
        if (accumulate) {
            memcpy(row, c, sizeof row);
            t[i][0] += row[0];
            t[i][1] += row[1];
        }
        memcpy(c, t[i], sizeof t[i]);
    }
}

#ifdef GEMM__X86
static inline int gemm__has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static inline int gemm__has_avx512(void) { return __builtin_cpu_supports("avx512f"); }

/* 6 x 16: 12 of the 16 registers hold the tile, 2 a row of B, 1 an element of A */
__attribute__((target("avx2,fma"))) static inline void
gemm__kernel_avx2(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                  size_t b_row, float *c, size_t ldc, int accumulate) {
    __m256 t[6][2];
#pragma GCC unroll 8
    for (int i = 0; i < 6; i++) t[i][0] = t[i][1] = _mm256_setzero_ps();
    for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {
        __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 8
        for (size_t i = 0; i < 6; i++) {
            __m256 ai = _mm256_broadcast_ss(a + i * a_row);
            t[i][0] = _mm256_fmadd_ps(ai, b0, t[i][0]);
            t[i][1] = _mm256_fmadd_ps(ai, b1, t[i][1]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < 6; i++, c += ldc) {
        if (accumulate) {
            t[i][0] = _mm256_add_ps(_mm256_loadu_ps(c), t[i][0]);
            t[i][1] = _mm256_add_ps(_mm256_loadu_ps(c + 8), t[i][1]);
        }
        _mm256_storeu_ps(c, t[i][0]);
        _mm256_storeu_ps(c + 8, t[i][1]);
    }
}

/* 8 x 32: 16 chains hide the latency of two FMA ports; model widths are multiples of 8 and 32 */
__attribute__((target("avx512f"))) static inline void
gemm__kernel_avx512(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                    size_t b_row, float *c, size_t ldc, int accumulate) {
    __m512 t[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) t[i][0] = t[i][1] = _mm512_setzero_ps();
    for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {
        __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            __m512 ai = _mm512_set1_ps(a[i * a_row]);
            t[i][0] = _mm512_fmadd_ps(ai, b0, t[i][0]);
            t[i][1] = _mm512_fmadd_ps(ai, b1, t[i][1]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++, c += ldc) {
        if (accumulate) {
            t[i][0] = _mm512_add_ps(_mm512_loadu_ps(c), t[i][0]);
            t[i][1] = _mm512_add_ps(_mm512_loadu_ps(c + 16), t[i][1]);
        }
        _mm512_storeu_ps(c, t[i][0]);
        _mm512_storeu_ps(c + 16, t[i][1]);
    }
}
#endif

static inline const Gemm *gemm_select(const char *name) {
    /* best first */
    static const Gemm rows[] = {
#ifdef GEMM__X86
        {"avx512", gemm__has_avx512, 8, 32, gemm__kernel_avx512},
        {"avx2", gemm__has_avx2, 6, 16, gemm__kernel_avx2},
#endif
        {"portable", gemm__always, 4, 8, gemm__kernel_portable}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if ((!name || !*name || !strcmp(name, rows[i].name)) && rows[i].supported())
            return &rows[i];
    return NULL;
}

static inline const Gemm *gemm_default(void) { return gemm_select(getenv("GEMM_ISA")); }

/* ------------------------------------------------------------------------------------------------
 * private: packing */

static inline size_t gemm__min(size_t x, size_t y) { return x < y ? x : y; }
static inline size_t gemm__tiles(size_t x, size_t width) { return (x + width - 1) / width; }

enum {
    GEMM__STRIP = 16,         /* depth packed at a time: a cache line, where depth is contiguous */
    GEMM__GROUP = 64,         /* lanes packed at a time, where lanes are contiguous */
    GEMM__FEW_B = 8,          /* B is read in place by so few tiles, if its lanes are contiguous; */
    GEMM__FEW_A = 4,          /* A always if its depth is, else by so few tiles, */
    GEMM__TLB_REACH = 1 << 17 /* or where one k block of it spans no more floats (128 pages) */
};

/* An operand as the kernel sees it: lanes run along the tile (rows of A, columns of B), depth along
 * k. Element (l, p) is at x[l * lane + p * depth]; one of the two strides is 1. */
typedef struct GemmOperand {
    const float *x;
    size_t lane, depth;
} GemmOperand;

#ifdef __SSE2__
/* out(4,4) = x(4,4)^T; one line of each matrix every ldo or ldx floats */
static inline void gemm__transpose4(float *out, size_t ldo, const float *x, size_t ldx) {
    __m128 r0 = _mm_loadu_ps(x), r1 = _mm_loadu_ps(x + ldx);
    __m128 r2 = _mm_loadu_ps(x + 2 * ldx), r3 = _mm_loadu_ps(x + 3 * ldx);
    _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
    _mm_storeu_ps(out, r0);
    _mm_storeu_ps(out + ldo, r1);
    _mm_storeu_ps(out + 2 * ldo, r2);
    _mm_storeu_ps(out + 3 * ldo, r3);
}
#else
static inline void gemm__transpose4(float *out, size_t ldo, const float *x, size_t ldx) {
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 4; j++) out[j * ldo + i] = x[i * ldx + j];
}
#endif

/* out(k,width) = the first `lanes` lanes of x, then zeros; four floats at a time where it can be */
static inline void gemm__pack_strip(float *restrict out, size_t width, GemmOperand x, size_t lanes,
                                    size_t k) {
    const float *restrict in = x.x;
    size_t l4 = lanes / 4 * 4, k4 = x.lane == 1 ? k : k / 4 * 4;
    if (x.lane == 1) {
        for (size_t p = 0; p < k; p++)
            for (size_t l = 0; l < l4; l += 4)
                memcpy(out + p * width + l, in + p * x.depth + l, 4 * sizeof *out);
    } else {
        for (size_t l = 0; l < l4; l += 4)
            for (size_t p = 0; p < k4; p += 4)
                gemm__transpose4(out + p * width + l, width, in + l * x.lane + p, x.lane);
    }
    for (size_t l = 0; l < lanes; l++)
        for (size_t p = l < l4 ? k4 : 0; p < k; p++)
            out[p * width + l] = in[l * x.lane + p * x.depth];
    for (size_t l = lanes; l < width; l++)
        for (size_t p = 0; p < k; p++) out[p * width + l] = 0;
}

/* consecutive panels, each out(k,width), strip by strip across all of them */
static inline void gemm__pack(float *out, size_t width, GemmOperand x, size_t lanes, size_t k) {
    for (size_t p = 0; p < k; p += GEMM__STRIP) {
        for (size_t l = 0; l < lanes; l += width) {
            GemmOperand strip = {x.x + l * x.lane + p * x.depth, x.lane, x.depth};
            gemm__pack_strip(out + l * k + p * width, width, strip, gemm__min(width, lanes - l),
                             gemm__min(GEMM__STRIP, k - p));
        }
    }
}

/* lanes [0, lanes) of an operand, cut into panels of `width`, over one block of k */
typedef struct GemmBlock {
    GemmOperand x;
    size_t first, lanes, width, k; /* lane 0 is row or column `first` of C */
    int in_place;                  /* may full panels be read where they lie? */
    float *packed;                 /* the others; panel l at packed + l * k */
} GemmBlock;

/* the panel that begins at lane l, where the kernel can read it; when fresh, it is packed first,
 * with its neighbours if their lanes share cache lines */
static inline GemmOperand gemm__panel(const GemmBlock *s, size_t l, int fresh) {
    GemmOperand here = {s->x.x + l * s->x.lane, s->x.lane, s->x.depth};
    size_t rest = s->lanes - l;
    if (s->in_place && rest >= s->width) return here;
    float *packed = s->packed + l * s->k;
    size_t group = s->width;
    if (!s->in_place && s->x.lane == 1) group *= gemm__tiles(GEMM__GROUP, s->width);
    if (fresh && l % group == 0) gemm__pack(packed, s->width, here, gemm__min(group, rest), s->k);
    return (GemmOperand){packed, 1, s->width};
}

/* ------------------------------------------------------------------------------------------------
 * private: the five loops */

/* loops 4 and 5: one block of A times one block of B; a ragged tile is made aside and copied */
static inline void gemm__multiply_blocks(const Gemm *g, float *c, size_t ldc, const GemmBlock *sa,
                                         const GemmBlock *sb, int fresh, int accumulate,
                                         int upper) {
    float tile[GEMM_MR_MAX * GEMM_NR_MAX];
    for (size_t j = 0; j < sb->lanes; j += g->nr) {
        GemmOperand b = gemm__panel(sb, j, fresh);
        size_t cols = gemm__min(g->nr, sb->lanes - j);
        for (size_t i = 0; i < sa->lanes; i += g->mr) {
            GemmOperand a = gemm__panel(sa, i, j == 0);
            if (upper && sa->first + i >= sb->first + j + g->nr) continue; /* below the diagonal */
            size_t rows = gemm__min(g->mr, sa->lanes - i);
            float *out = c + i * ldc + j;
            if (rows == g->mr && cols == g->nr) {
                g->kernel(sa->k, a.x, a.lane, a.depth, b.x, b.depth, out, ldc, accumulate);
                continue;
            }
            g->kernel(sa->k, a.x, a.lane, a.depth, b.x, b.depth, tile, g->nr, 0);
            for (size_t r = 0; r < rows; r++, out += ldc)
                for (size_t s = 0; s < cols; s++)
                    out[s] = accumulate ? out[s] + tile[r * g->nr + s] : tile[r * g->nr + s];
        }
    }
}

#define GEMM__SCRATCH_A ((GEMM_MC + GEMM_MR_MAX) * GEMM_KC)
#define GEMM__SCRATCH_B ((GEMM_NC + GEMM_NR_MAX) * GEMM_KC)

static inline size_t gemm_scratch(void) {
    return GEMM__SCRATCH_A + GEMM__SCRATCH_B + 16; /* 16 to align by hand */
}

/* loops 1, 2 and 3: blocks of columns, of depth, of rows */
static inline void gemm__multiply(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                  size_t m, size_t n, size_t k, int accumulate, int upper,
                                  float *scratch) {
    const size_t mc = gemm__tiles(GEMM_MC, g->mr) * g->mr, nc = gemm__tiles(GEMM_NC, g->nr) * g->nr;
    scratch += (64 - (uintptr_t)scratch % 64) % 64 / sizeof *scratch;
    for (size_t j = 0; j < n; j += nc) {
        for (size_t p = 0; p < k; p += GEMM_KC) {
            size_t depth = gemm__min(GEMM_KC, k - p);
            GemmOperand bx = {b.x + j * b.lane + p * b.depth, b.lane, b.depth};
            GemmBlock sb = {bx,    j, gemm__min(nc, n - j),     g->nr,
                            depth, 0, scratch + GEMM__SCRATCH_A};
            sb.in_place = b.lane == 1 && m <= GEMM__FEW_B * g->mr;
            for (size_t i = 0; i < m; i += mc) {
                GemmOperand ax = {a.x + i * a.lane + p * a.depth, a.lane, a.depth};
                GemmBlock sa = {ax, i, gemm__min(mc, m - i), g->mr, depth, 0, scratch};
                sa.in_place =
                    a.depth == 1 || n <= GEMM__FEW_A * g->nr || depth * a.depth <= GEMM__TLB_REACH;
                gemm__multiply_blocks(g, c + i * ldc + j, ldc, &sa, &sb, i == 0,
                                      accumulate || p > 0, upper);
            }
        }
    }
}

/* the slice of C that is this thread's: whole tiles of rows or of columns, whichever leaves the
 * longest slice shorter; when equal, the longer side is cut, so that less is packed by everybody */
static inline void gemm__multiply_slice(const Gemm *g, float *c, size_t ldc, GemmOperand a,
                                        GemmOperand b, size_t m, size_t n, size_t k, int accumulate,
                                        float *scratch, int ith, int nth) {
    assert(nth > 0 && ith >= 0 && ith < nth);
    if (m == 0 || n == 0) return;
    size_t i = (size_t)ith, t = (size_t)nth;
    size_t mt = gemm__tiles(m, g->mr), nt = gemm__tiles(n, g->nr);
    size_t by_rows = gemm__tiles(mt, t) * nt, by_cols = gemm__tiles(nt, t) * mt;
    int rows = by_rows < by_cols || (by_rows == by_cols && m > n);
    size_t tiles = rows ? mt : nt, width = rows ? g->mr : g->nr, size = rows ? m : n;
    size_t begin = gemm__min(tiles * i / t * width, size);
    size_t end = gemm__min(tiles * (i + 1) / t * width, size);
    if (begin == end) return;
    if (rows)
        c += begin * ldc, m = end - begin;
    else
        c += begin, n = end - begin;
    if (k == 0) {
        for (size_t r = 0; r < m && !accumulate; r++) memset(c + r * ldc, 0, n * sizeof *c);
        return;
    }
    if (rows)
        a.x += begin * a.lane;
    else
        b.x += begin * b.lane;
    gemm__multiply(g, c, ldc, a, b, m, n, k, accumulate, 0, scratch);
}

static inline void gemm_nn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= k && ldb >= n && ldc >= n);
    GemmOperand ga = {a, lda, 1}, gb = {b, 1, ldb};
    gemm__multiply_slice(g, c, ldc, ga, gb, m, n, k, accumulate, scratch, ith, nth);
}

static inline void gemm_nt(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= k && ldb >= k && ldc >= n);
    GemmOperand ga = {a, lda, 1}, gb = {b, ldb, 1};
    gemm__multiply_slice(g, c, ldc, ga, gb, m, n, k, accumulate, scratch, ith, nth);
}

static inline void gemm_tn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= m && ldb >= n && ldc >= n);
    GemmOperand ga = {a, 1, lda}, gb = {b, 1, ldb};
    gemm__multiply_slice(g, c, ldc, ga, gb, m, n, k, accumulate, scratch, ith, nth);
}

static inline void gemm_symmetric(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                                  const float *b, size_t ldb, size_t m, size_t k, float *scratch) {
    assert(lda >= k && ldb >= k && ldc >= m && k > 0);
    GemmOperand ga = {a, lda, 1}, gb = {b, ldb, 1};
    gemm__multiply(g, c, ldc, ga, gb, m, m, k, 0, 1, scratch);
    for (size_t i = 0; i < m; i += 8)
        for (size_t j = 0; j <= i; j += 8)
            for (size_t r = i; r < gemm__min(i + 8, m); r++)
                for (size_t s = j; s < gemm__min(j + 8, r); s++) c[r * ldc + s] = c[s * ldc + r];
}

#endif /* GEMM_H */
