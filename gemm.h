/* gemm.h - matrix products in fp32 or bf16, for one core or a team of threads. Header-only C11, MIT.

     nn   C(m,n) = A(m,k) B(k,n)        nt   C = A B^T, B is (n,k)        tn   C = A^T B, A is (k,m)
     or C += the same. Row-major with leading dimensions. No dependency beyond libc. C is fp32; A and
     B are fp32 or bf16 in memory, or were packed before, once for many products.

   METHOD    Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication": five
     loops around one micro-kernel that keeps an mr x nr tile of C in registers. One micro-kernel
     per instruction set, chosen at run time. Ragged edges are panels padded with zeros. An operand
     that already lies as the kernel reads it is not packed, which makes small products fast.

   USE    #include "gemm.h" wherever it is needed; everything is static. Compile with -O3; no -march
     is needed. A whole program:

     #include "gemm.h"
     #include <stdio.h>
     int main(void) {
         const Gemm *g = gemm_default(GEMM_F32);
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
     gemm_select(name, dtype)  the row of an instruction set; NULL or "": the best one here
     gemm_default(dtype)       the row named by the environment's GEMM_ISA, the best when it is unset
     gemm_scratch()            floats of scratch that one thread needs, for every shape and row
     gemm_nn, gemm_nt, gemm_tn(g, c, ldc, a, lda, b, ldb, m, n, k, accumulate, scratch, ith, nth)
     gemm_multiply(...)        the same of two operands that say how they lie in memory:
     gemm_f32, gemm_bf16, gemm_packed(x, ...)   operands
     gemm_packed_floats(g, side, lanes, k)      floats that A or B takes as the kernel reads it
     gemm_pack(g, out, b, n, k, ith, nth)       B so
     gemm_pack_depth(g, side, out, all, x, lanes, from, k)   a slice of the depth of A or B
     gemm_symmetric(g, c, ldc, a, b, m, k, scratch)   C = A B, symmetric: half of it mirrored
     gemm_to_bf16, gemm_from_bf16               rounding to nearest even, and back
     gemm_naive(...)           the three-loop oracle, any strides, sums in double

   KNOBS    GEMM_KC, GEMM_MC, GEMM_NC, the block sizes, defined before the include.

   NUMERICS    an element of C is a sum over blocks of GEMM_KC consecutive k, added in order; within
     a block it is one chain of fused multiply-adds in order of k (in the portable row: of multiply
     and add, fused or not as the compiler pleases). So its bits depend on the table row, GEMM_KC,
     its own row of A and its own column of B, and not on nth, m, n, leading dimensions, or which
     of nn, nt, tn made it. NaN and Inf propagate, from within the operands only.
       A bf16 row rounds both operands to bf16 (to nearest even) and sums in fp32, in each pair
     (2i, 2i+1) of k first the odd product and then the even one, which is the order of the
     instruction vdpbf16ps. A product of two bf16 is exact in fp32, so a row without that
     instruction gives its bits from fp32 FMAs; only denormals can differ, which vdpbf16ps flushes. */
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
#ifdef __ARM_NEON
#include <arm_neon.h>
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

_Static_assert(GEMM_KC % 2 == 0, "bf16 is summed in pairs: GEMM_KC is even");

enum { GEMM_MR_MAX = 16, GEMM_NR_MAX = 32 }; /* no row has a larger tile */

/* C(mr,nr) = or += A(mr,k) B(k,nr), the whole tile
 * a    element (i,p) at a[i * a_row + p * a_col]
 * b    element (p,j) at b[p * b_row + j]
 * c    element (i,j) at c[i * ldc + j]
 */
typedef void GemmKernel(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                        size_t b_row, float *c, size_t ldc, int accumulate);

/* What one 32-bit word of a panel is: an fp32, an fp32 rounded to bf16 (each pair along k swapped),
 * or two bf16 that are neighbours along k. */
typedef enum GemmWord { GEMM_FLOATS, GEMM_ROUNDED, GEMM_PAIRS } GemmWord;
typedef enum GemmDtype { GEMM_F32, GEMM_BF16 } GemmDtype;

/* one instruction set; the rows are in gemm_select */
typedef struct Gemm {
    const char *name;
    int (*supported)(void); /* 2: this CPU has it; 1: it may, though it does not say so; 0: no */
    size_t mr, nr;          /* shape of the micro-kernel's tile; at most GEMM_MR_MAX, GEMM_NR_MAX */
    GemmKernel *kernel;
    GemmWord word;
} Gemm;

/* the row for an instruction set and the type that operands are rounded to; cheap, but meant to be
 * called once
 * name     "avx512bf16", "avx512", "avx2", "neon" or "portable"; NULL or "" for the best that this
 *          CPU says it has. A hypervisor may hide AVX512_BF16: the name is believed on any AVX-512.
 * error    NULL when the name is unknown or this CPU does not support it
 */
static inline const Gemm *gemm_select(const char *name, GemmDtype dtype);

/* gemm_select of the environment variable GEMM_ISA; NULL as above, for the caller to report */
static inline const Gemm *gemm_default(GemmDtype dtype);

/* An operand: lanes run along the tile (rows of A, columns of B), depth along k. Element (l, p) is at
 * x[l * lane + p * depth], counted in elements; one of the two strides is 1. */
typedef enum GemmForm { GEMM_IS_F32, GEMM_IS_BF16, GEMM_IS_PACKED } GemmForm;
typedef struct GemmOperand {
    const void *x;
    size_t lane, depth;
    GemmForm form;
} GemmOperand;

/* Which operand: the two are cut into panels of different width. */
typedef enum GemmSide { GEMM_A, GEMM_B } GemmSide;

static inline GemmOperand gemm_f32(const float *x, size_t lane, size_t depth) {
    return (GemmOperand){x, lane, depth, GEMM_IS_F32};
}
static inline GemmOperand gemm_bf16(const uint16_t *x, size_t lane, size_t depth) {
    return (GemmOperand){x, lane, depth, GEMM_IS_BF16};
}
/* k is the depth it was packed with, at least the product's */
static inline GemmOperand gemm_packed(const float *panels, size_t k) {
    return (GemmOperand){panels, 0, k, GEMM_IS_PACKED};
}

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

/* C(m,n) = A(m,k) B(k,n), or +=, of operands in any form. The bits are those of the same operands in
 * fp32 memory; the rest as gemm_nn. */
static inline void gemm_multiply(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                 size_t m, size_t n, size_t k, int accumulate, float *scratch,
                                 int ith, int nth);

/* Packed for this row: floats that `lanes` lanes of A or B take, `width` of them side by side. */
static inline size_t gemm_packed_floats(const Gemm *g, GemmSide side, size_t lanes, size_t k);

/* out <- B(k,n) in panels, for gemm_packed and products of this row; the thread's share of them, so
 * a barrier follows */
static inline void gemm_pack(const Gemm *g, float *out, GemmOperand b, size_t n, size_t k, int ith,
                             int nth);

/* The elements [from, from + k) of the depth of an operand that is `all` deep, into its place in
 * out; x begins at `from`, which is even. Different slices may be packed at the same time. */
static inline void gemm_pack_depth(const Gemm *g, GemmSide side, float *out, size_t all,
                                   GemmOperand x, size_t lanes, size_t from, size_t k);

/* bf16 is the upper half of fp32; rounded to nearest even, NaN stay NaN */
static inline uint32_t gemm__rounded(float x) {
    uint32_t u, nan;
    memcpy(&u, &x, sizeof u);
    nan = (u & 0x7fffffff) > 0x7f800000;
    return nan ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
static inline uint16_t gemm_to_bf16(float x) { return (uint16_t)gemm__rounded(x); }
static inline float gemm_from_bf16(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* C(m,m) = A(m,k) B(k,m) where the caller knows that C is symmetric, as when B is A^T: about half the
 * tiles are computed, the others mirrored; the bits of gemm_multiply on and above the diagonal; k > 0;
 * one thread, an fp32 row; the rest as gemm_nn */
static inline void gemm_symmetric(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                  size_t m, size_t k, float *scratch);

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

static inline int gemm__always(void) { return 2; }

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
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2 : 0;
}

static inline int gemm__has_avx512(void) { return __builtin_cpu_supports("avx512f") ? 2 : 0; }

static inline int gemm__has_bf16(void) {
    return __builtin_cpu_supports("avx512bf16") ? 2 : __builtin_cpu_supports("avx512bw") ? 1 : 0;
}

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

enum { GEMM__AHEAD = 8192 }; /* bytes between B and its prefetch: the CPU's own end with a page */

/* c(8,32) = or += t */
__attribute__((target("avx512f"), always_inline)) static inline void
gemm__store_avx512(__m512 t[8][2], float *c, size_t ldc, int accumulate) {
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

/* 8 x 32: 16 chains hide the latency of two FMA ports; model widths are multiples of 8 and 32 */
__attribute__((target("avx512f"))) static inline void
gemm__kernel_avx512(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                    size_t b_row, float *c, size_t ldc, int accumulate) {
    __m512 t[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) t[i][0] = t[i][1] = _mm512_setzero_ps();
    for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {
        __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
        _mm_prefetch((const char *)((uintptr_t)b + GEMM__AHEAD), _MM_HINT_T1);
        _mm_prefetch((const char *)((uintptr_t)b + GEMM__AHEAD + 64), _MM_HINT_T1);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            __m512 ai = _mm512_set1_ps(a[i * a_row]);
            t[i][0] = _mm512_fmadd_ps(ai, b0, t[i][0]);
            t[i][1] = _mm512_fmadd_ps(ai, b1, t[i][1]);
        }
    }
    gemm__store_avx512(t, c, ldc, accumulate);
}

/* the same tile; a word is a pair of bf16, and vdpbf16ps adds both of its products */
__attribute__((target("avx512f,avx512bf16"))) static inline void
gemm__kernel_avx512bf16(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                        size_t b_row, float *c, size_t ldc, int accumulate) {
    __m512 t[8][2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) t[i][0] = t[i][1] = _mm512_setzero_ps();
    for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {
        __m512bh b0 = (__m512bh)_mm512_loadu_ps(b), b1 = (__m512bh)_mm512_loadu_ps(b + 16);
#pragma GCC unroll 8
        for (size_t i = 0; i < 8; i++) {
            __m512bh ai = (__m512bh)_mm512_set1_ps(a[i * a_row]);
            t[i][0] = _mm512_dpbf16_ps(t[i][0], ai, b0);
            t[i][1] = _mm512_dpbf16_ps(t[i][1], ai, b1);
        }
    }
    gemm__store_avx512(t, c, ldc, accumulate);
}
#endif

#ifdef __ARM_NEON
/* 6 x 16: 24 of the 32 registers hold the tile, 4 a row of B, 1 an element of A */
static inline void gemm__kernel_neon(size_t k, const float *a, size_t a_row, size_t a_col,
                                     const float *b, size_t b_row, float *c, size_t ldc,
                                     int accumulate) {
    float32x4_t t[6][4];
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++) t[i / 4][i % 4] = vdupq_n_f32(0);
    for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {
        float32x4_t row[4] = {vld1q_f32(b), vld1q_f32(b + 4), vld1q_f32(b + 8), vld1q_f32(b + 12)};
#pragma GCC unroll 6
        for (size_t i = 0; i < 6; i++) {
            float32x4_t ai = vld1q_dup_f32(a + i * a_row);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) t[i][j] = vfmaq_f32(t[i][j], ai, row[j]);
        }
    }
#pragma GCC unroll 6
    for (size_t i = 0; i < 6; i++, c += ldc) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            if (accumulate) t[i][j] = vaddq_f32(vld1q_f32(c + 4 * j), t[i][j]);
            vst1q_f32(c + 4 * j, t[i][j]);
        }
    }
}
#endif

static inline const Gemm *gemm_select(const char *name, GemmDtype dtype) {
    /* best first; for fp32 and for bf16 */
    static const Gemm rows[][2] = {
#ifdef GEMM__X86
        {{"avx512bf16", gemm__has_bf16, 8, 32, gemm__kernel_avx512, GEMM_FLOATS},
         {"avx512bf16", gemm__has_bf16, 8, 32, gemm__kernel_avx512bf16, GEMM_PAIRS}},
        {{"avx512", gemm__has_avx512, 8, 32, gemm__kernel_avx512, GEMM_FLOATS},
         {"avx512", gemm__has_avx512, 8, 32, gemm__kernel_avx512, GEMM_ROUNDED}},
        {{"avx2", gemm__has_avx2, 6, 16, gemm__kernel_avx2, GEMM_FLOATS},
         {"avx2", gemm__has_avx2, 6, 16, gemm__kernel_avx2, GEMM_ROUNDED}},
#endif
#ifdef __ARM_NEON
        {{"neon", gemm__always, 6, 16, gemm__kernel_neon, GEMM_FLOATS},
         {"neon", gemm__always, 6, 16, gemm__kernel_neon, GEMM_ROUNDED}},
#endif
        {{"portable", gemm__always, 4, 8, gemm__kernel_portable, GEMM_FLOATS},
         {"portable", gemm__always, 4, 8, gemm__kernel_portable, GEMM_ROUNDED}}};
    int named = name && *name;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const Gemm *g = &rows[i][dtype];
        if (named ? !strcmp(name, g->name) && g->supported() : g->supported() == 2) return g;
    }
    return NULL;
}

static inline const Gemm *gemm_default(GemmDtype dtype) {
    return gemm_select(getenv("GEMM_ISA"), dtype);
}

/* ------------------------------------------------------------------------------------------------
 * private: packing */

static inline size_t gemm__min(size_t x, size_t y) { return x < y ? x : y; }
static inline size_t gemm__tiles(size_t x, size_t width) { return (x + width - 1) / width; }

enum {
    GEMM__STRIP = 16,      /* depth packed at a time: a cache line, where depth is contiguous; */
    GEMM__LONG_STRIP = 64, /* more, where lanes are */
    GEMM__GROUP = 64,      /* lanes packed at a time, where lanes are contiguous */
    GEMM__FEW_B = 8        /* B is read in place by so few tiles, if its lanes are contiguous */
};

/* element (l, p) of an operand that is not packed */
static inline const void *gemm__at(GemmOperand x, size_t l, size_t p) {
    return (const char *)x.x + (l * x.lane + p * x.depth) * (x.form == GEMM_IS_BF16 ? 2 : 4);
}

/* words that k elements of depth take */
static inline size_t gemm__words(const Gemm *g, size_t k) {
    return g->word == GEMM_FLOATS ? k : g->word == GEMM_PAIRS ? (k + 1) / 2 : (k + 1) / 2 * 2;
}

typedef float GemmEight __attribute__((vector_size(32)));

/* out(8,8) = x(8,8)^T; one line of each matrix every ldo or ldx floats */
static inline void gemm__transpose8(float *out, size_t ldo, const float *x, size_t ldx) {
    GemmEight r[8], s[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) memcpy(&r[i], x + i * ldx, sizeof r[i]);
#pragma GCC unroll 4
    for (size_t i = 0; i < 8; i += 2) { /* interleave rows, then pairs of rows, then their halves */
        s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        size_t from = i / 2 * 4 + i % 2;
        r[2 * i] = __builtin_shufflevector(s[from], s[from + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        r[2 * i + 1] = __builtin_shufflevector(s[from], s[from + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        s[i] = __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        s[i + 4] = __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) memcpy(out + i * ldo, &s[i], sizeof s[i]);
}

/* n words of panel from n consecutive ones; n is known when this is inlined */
static inline void gemm__copy(float *restrict out, size_t width, const float *restrict in,
                              size_t depth, size_t n, size_t k) {
    for (size_t p = 0; p < k; p++) memcpy(out + p * width, in + p * depth, n * sizeof *out);
}

/* out(k,width) = the first `lanes` lanes of x, then zeros; x is fp32 */
__attribute__((noinline)) static void gemm__pack_strip(float *restrict out, size_t width,
                                                       GemmOperand x, size_t lanes, size_t k) {
    const float *restrict in = x.x;
    size_t l8 = lanes / 8 * 8, k8 = k / 8 * 8;
    if (x.lane == 1) {
        if (lanes == 32)
            gemm__copy(out, width, in, x.depth, 32, k);
        else if (lanes == 16)
            gemm__copy(out, width, in, x.depth, 16, k);
        else if (lanes == 8)
            gemm__copy(out, width, in, x.depth, 8, k);
        else
            for (size_t l = 0; l < lanes; l++)
                for (size_t p = 0; p < k; p++) out[p * width + l] = in[p * x.depth + l];
    } else {
        for (size_t l = 0; l < l8; l += 8)
            for (size_t p = 0; p < k8; p += 8)
                gemm__transpose8(out + p * width + l, width, in + l * x.lane + p, x.lane);
        for (size_t l = 0; l < lanes; l++)
            for (size_t p = l < l8 ? k8 : 0; p < k; p++) out[p * width + l] = in[l * x.lane + p];
    }
    for (size_t l = lanes; l < width; l++)
        for (size_t p = 0; p < k; p++) out[p * width + l] = 0;
}

/* bits (n) <- n consecutive elements as bf16; nothing when x is NULL stands for zeros */
static inline void gemm__bits(uint32_t *restrict bits, const void *x, size_t n, GemmForm form) {
    const float *restrict f = x;
    const uint16_t *restrict h = x;
    if (!x)
        memset(bits, 0, n * sizeof *bits);
    else if (form == GEMM_IS_BF16)
        for (size_t i = 0; i < n; i++) bits[i] = h[i];
    else
        for (size_t i = 0; i < n; i++) bits[i] = gemm__rounded(f[i]);
}

/* The same for bf16: k words of depth from `left` elements, rounded into a small block first. A word is
 * two neighbours along the depth, or they are two words, the odd one first. */
static inline void gemm__pack_strip_bf16(GemmWord word, float *restrict out, size_t width,
                                         GemmOperand x, size_t lanes, size_t k, size_t left) {
    enum { S = GEMM__STRIP, N = GEMM_NR_MAX };
    uint32_t block[N * S], even[N], odd[N], row[2 * S + 1];
    int along = x.lane == 1;
    size_t step = word == GEMM_PAIRS ? 1 : 2, elements = gemm__min(left, k * 2 / step);
    for (size_t p = 0; along && p < k; p += step) { /* block(k, N) */
        size_t at = p * 2 / step;
        uint32_t *to = block + p * N;
        gemm__bits(even, gemm__at(x, 0, at), lanes, x.form);
        gemm__bits(odd, at + 1 < left ? gemm__at(x, 0, at + 1) : NULL, lanes, x.form);
        for (size_t l = 0; l < lanes; l++) to[l] = odd[l] << 16 | (step == 1 ? even[l] : 0);
        for (size_t l = 0; step == 2 && l < lanes; l++) to[N + l] = even[l] << 16;
    }
    for (size_t l = 0; !along && l < lanes; l++) { /* block(lanes, S) */
        uint32_t *to = block + l * S;
        gemm__bits(row, gemm__at(x, l, 0), elements, x.form);
        row[elements] = 0;
        if (step == 1)
            for (size_t p = 0; p < k; p++) to[p] = row[2 * p + 1] << 16 | row[2 * p];
        else
            for (size_t p = 0; p < k; p += 2) {
                to[p] = row[p + 1] << 16;
                to[p + 1] = row[p] << 16;
            }
    }
    GemmOperand words = {block, along ? 1 : S, along ? N : 1, GEMM_IS_F32};
    gemm__pack_strip(out, width, words, lanes, k);
}

/* consecutive panels of `width` lanes, strip by strip across all of them: words [0, k) of depth, from
 * `left` elements; panel l at out + l * pitch */
static inline void gemm__pack(const Gemm *g, float *out, size_t width, size_t pitch, GemmOperand x,
                              size_t lanes, size_t k, size_t left) {
    size_t per_word = g->word == GEMM_PAIRS ? 2 : 1;
    size_t strip = x.lane == 1 && g->word == GEMM_FLOATS ? GEMM__LONG_STRIP : GEMM__STRIP;
    for (size_t p = 0; p < k; p += strip) {
        for (size_t l = 0; l < lanes; l += width) {
            GemmOperand part = {gemm__at(x, l, p * per_word), x.lane, x.depth, x.form};
            float *to = out + l * pitch + p * width;
            size_t some = gemm__min(width, lanes - l), deep = gemm__min(strip, k - p);
            if (g->word == GEMM_FLOATS)
                gemm__pack_strip(to, width, part, some, deep);
            else
                gemm__pack_strip_bf16(g->word, to, width, part, some, deep, left - p * per_word);
        }
    }
}

static inline size_t gemm__width(const Gemm *g, GemmSide side) {
    return side == GEMM_A ? g->mr : g->nr;
}

static inline size_t gemm_packed_floats(const Gemm *g, GemmSide side, size_t lanes, size_t k) {
    size_t width = gemm__width(g, side);
    return gemm__tiles(lanes, width) * width * gemm__words(g, k);
}

static inline void gemm_pack(const Gemm *g, float *out, GemmOperand b, size_t n, size_t k, int ith,
                             int nth) {
    size_t panels = gemm__tiles(n, g->nr), words = gemm__words(g, k);
    size_t lo = panels * (size_t)ith / (size_t)nth * g->nr;
    size_t hi = gemm__min(panels * ((size_t)ith + 1) / (size_t)nth * g->nr, n);
    GemmOperand here = {gemm__at(b, lo, 0), b.lane, b.depth, b.form};
    if (lo < hi) gemm__pack(g, out + lo * words, g->nr, words, here, hi - lo, words, k);
}

static inline void gemm_pack_depth(const Gemm *g, GemmSide side, float *out, size_t all,
                                   GemmOperand x, size_t lanes, size_t from, size_t k) {
    size_t width = gemm__width(g, side), word = g->word == GEMM_PAIRS ? from / 2 : from;
    assert(from % 2 == 0);
    gemm__pack(g, out + word * width, width, gemm__words(g, all), x, lanes, gemm__words(g, k), k);
}

/* lanes [0, lanes) of an operand, cut into panels of `width`, over one block of k */
typedef struct GemmBlock {
    GemmOperand x;
    size_t first, lanes, width; /* lane 0 is row or column `first` of C */
    size_t k, left;             /* words of depth, made from so many elements */
    int in_place;               /* may full panels be read where they lie? */
    float *panels;              /* the others; panel l at panels + l * pitch */
    size_t pitch;
} GemmBlock;

/* A panel as the kernel takes it. */
typedef struct GemmPanel {
    const float *x;
    size_t lane, depth;
} GemmPanel;

/* the panel that begins at lane l, where the kernel can read it; when fresh, it is packed first,
 * with its neighbours if their lanes share cache lines */
static inline GemmPanel gemm__panel(const Gemm *g, const GemmBlock *s, size_t l, int fresh) {
    float *panel = s->panels + l * s->pitch;
    if (s->x.form == GEMM_IS_PACKED) return (GemmPanel){panel, 1, s->width};
    GemmOperand here = {gemm__at(s->x, l, 0), s->x.lane, s->x.depth, s->x.form};
    size_t rest = s->lanes - l, group = s->width;
    if (s->in_place && rest >= s->width) return (GemmPanel){here.x, here.lane, here.depth};
    if (!s->in_place && s->x.lane == 1) group *= gemm__tiles(GEMM__GROUP, s->width);
    if (fresh && l % group == 0)
        gemm__pack(g, panel, s->width, s->pitch, here, gemm__min(group, rest), s->k, s->left);
    return (GemmPanel){panel, 1, s->width};
}

/* ------------------------------------------------------------------------------------------------
 * private: the five loops */

/* loops 4 and 5: one block of A times one block of B; a ragged tile is made aside and copied */
static inline void gemm__multiply_blocks(const Gemm *g, float *c, size_t ldc, const GemmBlock *sa,
                                         const GemmBlock *sb, int fresh, int accumulate,
                                         int upper) {
    float tile[GEMM_MR_MAX * GEMM_NR_MAX];
    for (size_t j = 0; j < sb->lanes; j += g->nr) {
        GemmPanel b = gemm__panel(g, sb, j, fresh);
        size_t cols = gemm__min(g->nr, sb->lanes - j);
        for (size_t i = 0; i < sa->lanes; i += g->mr) {
            GemmPanel a = gemm__panel(g, sa, i, j == 0);
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

/* words of depth in a block: GEMM_KC elements in any form, so that they are summed alike */
static inline size_t gemm__deep(const Gemm *g) {
    return g->word == GEMM_PAIRS ? GEMM_KC / 2 : GEMM_KC;
}

/* lanes from l and words of depth from p of an operand, ready to be cut into panels; `all` words and
 * elements are the whole depth's */
static inline GemmBlock gemm__block(const Gemm *g, GemmOperand x, size_t l, size_t lanes,
                                    size_t width, size_t p, size_t all, size_t elements,
                                    float *scratch) {
    size_t k = gemm__min(gemm__deep(g), all - p), done = g->word == GEMM_PAIRS ? 2 * p : p;
    GemmBlock s = {x, l, lanes, width, k, elements - done, 0, scratch, k};
    if (x.form == GEMM_IS_PACKED) {
        s.pitch = gemm__words(g, x.depth);
        s.panels = (float *)(uintptr_t)x.x + l * s.pitch + p * width;
    } else
        s.x.x = gemm__at(x, l, done);
    return s;
}

/* loops 1, 2 and 3: blocks of columns, of depth, of rows */
static inline void gemm__multiply(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                  size_t m, size_t n, size_t k, int accumulate, int upper,
                                  float *scratch) {
    const size_t mc = gemm__tiles(GEMM_MC, g->mr) * g->mr, nc = gemm__tiles(GEMM_NC, g->nr) * g->nr;
    const size_t words = gemm__words(g, k);
    const int plain = g->word == GEMM_FLOATS;
    scratch += (64 - (uintptr_t)scratch % 64) % 64 / sizeof *scratch;
    for (size_t j = 0; j < n; j += nc) {
        for (size_t p = 0; p < words; p += gemm__deep(g)) {
            GemmBlock sb = gemm__block(g, b, j, gemm__min(nc, n - j), g->nr, p, words, k,
                                       scratch + GEMM__SCRATCH_A);
            sb.in_place = plain && b.lane == 1 && m <= GEMM__FEW_B * g->mr;
            for (size_t i = 0; i < m; i += mc) {
                GemmBlock sa =
                    gemm__block(g, a, i, gemm__min(mc, m - i), g->mr, p, words, k, scratch);
                sa.in_place = plain && (a.depth == 1 || n <= g->nr); /* or is it read just once? */
                gemm__multiply_blocks(g, c + i * ldc + j, ldc, &sa, &sb, i == 0,
                                      accumulate || p > 0, upper);
            }
        }
    }
}

/* the slice of C that is this thread's: whole tiles of rows or of columns, whichever leaves the
 * longest slice shorter; when equal, the longer side is cut, so that less is packed by everybody */
static inline void gemm_multiply(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                 size_t m, size_t n, size_t k, int accumulate, float *scratch,
                                 int ith, int nth) {
    assert(nth > 0 && ith >= 0 && ith < nth && ldc >= n);
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
    GemmOperand *cut = rows ? &a : &b;
    cut->x = cut->form == GEMM_IS_PACKED
                 ? (const float *)cut->x + begin * gemm__words(g, cut->depth)
                 : gemm__at(*cut, begin, 0);
    gemm__multiply(g, c, ldc, a, b, m, n, k, accumulate, 0, scratch);
}

static inline void gemm_nn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= k && ldb >= n && ldc >= n);
    gemm_multiply(g, c, ldc, gemm_f32(a, lda, 1), gemm_f32(b, 1, ldb), m, n, k, accumulate, scratch,
                  ith, nth);
}

static inline void gemm_nt(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= k && ldb >= k && ldc >= n);
    gemm_multiply(g, c, ldc, gemm_f32(a, lda, 1), gemm_f32(b, ldb, 1), m, n, k, accumulate, scratch,
                  ith, nth);
}

static inline void gemm_tn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= m && ldb >= n && ldc >= n);
    gemm_multiply(g, c, ldc, gemm_f32(a, 1, lda), gemm_f32(b, 1, ldb), m, n, k, accumulate, scratch,
                  ith, nth);
}

static inline void gemm_symmetric(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                  size_t m, size_t k, float *scratch) {
    assert(ldc >= m && k > 0);
    gemm__multiply(g, c, ldc, a, b, m, m, k, 0, 1, scratch);
    for (size_t i = 0; i < m; i += 8) {
        size_t end = i + 8 <= m ? i + 8 : m, whole = end == i + 8 ? m - m % 8 : i;
        for (size_t j = i + 8; j < whole; j += 8)
            gemm__transpose8(c + j * ldc + i, ldc, c + i * ldc + j, ldc);
        for (size_t r = i; r < end; r++) { /* on the diagonal, and in ragged columns */
            for (size_t j = r + 1; j < end; j++) c[j * ldc + r] = c[r * ldc + j];
            for (size_t j = whole > end ? whole : end; j < m; j++) c[j * ldc + r] = c[r * ldc + j];
        }
    }
}

#endif /* GEMM_H */
