/* gemm.h - matrix products in fp32 or bf16 for one core or a team of threads. Header-only C11, MIT.

     C(m,n) = A(m,k) B(k,n)      or      C(m,n) += A(m,k) B(k,n)
     C is row-major fp32. A and B are fp32 or bf16, in either orientation, or packed beforehand.

   METHOD   Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication": five
     loops around a micro-kernel that keeps an mr x nr tile of C in registers. There is one
     micro-kernel per instruction set, chosen at run time. Ragged edges are padded with zeros.

   API
     gemm_select gemm_default       the row of an instruction set; of GEMM_ISA, or the best one here
     gemm_f32 gemm_bf16 gemm_packed operands, by how they lie in memory
     gemm_multiply gemm_symmetric gemm_nn gemm_nt       products
     gemm_pack gemm_pack_depth gemm_packed_floats       an operand as the kernel reads it
     gemm_naive                     the three loops that all of them mean

   USE   Everything is static inline. Compile with -O3; -march is not needed. A whole program:

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

   MEMORY    The caller brings gemm_scratch() floats per thread, of any alignment.
   THREADS   The caller runs ith = 0..nth-1 on nth threads and then passes a barrier. Nothing is
             shared between callers.

   NUMERICS  An element of C is a sum over blocks of GEMM_KC consecutive k, added in order. In a
     block it is one chain of fused multiply-adds in order of k (portable row: fused or not as the
     compiler decides). So its bits depend on the instruction set, its row of A and its column of B.
     They do not depend on nth, m, n, leading dimensions or the form of the operands.
       A bf16 row rounds both operands to bf16 and sums in fp32. Of each pair (2i, 2i+1) of k it
     adds the odd product first: this is the order of the instruction vdpbf16ps. All bf16 rows but
     amx give the same bits. amx has the order of tdpbf16ps: of 32 consecutive k the even products
     are one chain and the odd ones another; their sum is added to C, in order of k. Both
     instructions flush denormals to zero. */
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
#if defined(__linux__) && defined(__x86_64__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define GEMM__AMX 1
#include <cpuid.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

/* Blocks of A are GEMM_MC x GEMM_KC, blocks of B are GEMM_KC x GEMM_NC; both stay in L2. GEMM_MC is
 * small because each row of C takes an entry of the first-level TLB. GEMM_KC is a multiple of 32
 * for GEMM_TILES. No row of the table has a larger tile than GEMM_MR_MAX x GEMM_NR_MAX. */
enum { GEMM_KC = 384, GEMM_MC = 64, GEMM_NC = 512, GEMM_MR_MAX = 32, GEMM_NR_MAX = 32 };

typedef enum GemmDtype { GEMM_F32, GEMM_BF16 } GemmDtype;

/* What one 32-bit word of a panel holds: an fp32; an fp32 rounded to bf16, where each pair along k
 * is swapped; or two bf16 that are neighbours along k. GEMM_TILES are pairs, too: k is padded to
 * whole strips of GEMM__STRIP words, which lie side by side in panels of A. */
typedef enum GemmWord { GEMM_FLOATS, GEMM_ROUNDED, GEMM_PAIRS, GEMM_TILES } GemmWord;

/* C(mr,nr) = or += A(mr,k) B(k,nr), the whole tile; k counts words
 * a    element (i,p) at a[i * a_row + p * a_col]; GEMM_TILES: as panels of A lie
 * b    element (p,j) at b[p * b_row + j]
 * c    element (i,j) at c[i * ldc + j]
 */
typedef void GemmKernel(size_t k, const float *a, size_t a_row, size_t a_col, const float *b,
                        size_t b_row, float *c, size_t ldc, int accumulate);

/* an instruction set; gemm_select holds the rows */
typedef struct Gemm {
    const char *name;
    int (*supported)(void); /* 1 when CPUID says so */
    size_t mr, nr;          /* shape of the micro-kernel's tile */
    GemmKernel *kernel;
    GemmWord word;
    void (*shape)(int on); /* readies a thread's registers for the kernel, and gives them back */
} Gemm;

/* A has lanes along its rows, B along its columns: lanes run along the tile, depth along k. */
typedef enum GemmSide { GEMM_A, GEMM_B } GemmSide;
typedef enum GemmForm { GEMM_IS_F32, GEMM_IS_BF16, GEMM_IS_PACKED } GemmForm;

/* Element (l, p), of lane l at depth p, is at x[l * lane + p * depth]; one of both strides is 1. */
typedef struct GemmOperand {
    const void *x;
    size_t lane, depth; /* strides in elements; packed: depth is the k of packing */
    GemmForm form;
} GemmOperand;

static inline GemmOperand gemm_f32(const float *x, size_t lane, size_t depth) {
    return (GemmOperand){.x = x, .lane = lane, .depth = depth, .form = GEMM_IS_F32};
}
/* for the rows of GEMM_BF16 only */
static inline GemmOperand gemm_bf16(const uint16_t *x, size_t lane, size_t depth) {
    return (GemmOperand){.x = x, .lane = lane, .depth = depth, .form = GEMM_IS_BF16};
}
/* what gemm_pack made for the same row; k: the depth it was packed with, at least the product's */
static inline GemmOperand gemm_packed(const float *panels, size_t k) {
    return (GemmOperand){.x = panels, .depth = k, .form = GEMM_IS_PACKED};
}

/* bf16 is the upper half of fp32; rounded to nearest even, NaN stays NaN */
static inline uint16_t gemm_to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline float gemm_from_bf16(uint16_t x) {
    uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* ------------------------------------------------------------------------------------------------
 * the definition */

/* C(i,j) = [C(i,j) +] sum over p of A(i,p) B(p,j), summed in double and rounded once
 * a    A(i,p) at a[i * a_row + p * a_col]
 * b    B(p,j) at b[p * b_row + j * b_col]
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
 * packing: panels of `width` lanes, word p of lane l at panel[p * width + l]; in panels of A for
 * GEMM_TILES at panel[p / 16 * 16 * width + l * 16 + p % 16] */

enum {
    GEMM__STRIP = 16,      /* depth packed at a time: a cache line, where depth is contiguous */
    GEMM__LONG_STRIP = 64, /* the same where lanes are contiguous */
    GEMM__GROUP = 64       /* lanes packed at a time, where lanes are contiguous */
};

static inline size_t gemm__min(size_t x, size_t y) { return x < y ? x : y; }
static inline size_t gemm__tiles(size_t x, size_t width) { return (x + width - 1) / width; }

static inline size_t gemm__width(const Gemm *g, GemmSide side) {
    return side == GEMM_A ? g->mr : g->nr;
}

static inline size_t gemm__per_word(const Gemm *g) { return g->word >= GEMM_PAIRS ? 2 : 1; }

/* words that k elements of depth take: whole pairs for bf16, whole strips for tiles */
static inline size_t gemm__words(const Gemm *g, size_t k) {
    size_t whole = g->word == GEMM_FLOATS ? 1 : g->word == GEMM_TILES ? 2 * GEMM__STRIP : 2;
    return gemm__tiles(k, whole) * whole / gemm__per_word(g);
}

/* element (l, p) of an operand that is not packed */
static inline const void *gemm__at(GemmOperand x, size_t l, size_t p) {
    return (const char *)x.x + (l * x.lane + p * x.depth) * (x.form == GEMM_IS_BF16 ? 2 : 4);
}

typedef float GemmFour __attribute__((vector_size(16)));
typedef float GemmEight __attribute__((vector_size(32)));
typedef float GemmSixteen __attribute__((vector_size(64)));

/* out(8,8) = x(8,8)^T, in blocks of 4 x 4; one row of each matrix every ldo or ldx floats */
static inline void gemm__transpose8(float *out, size_t ldo, const float *x, size_t ldx) {
#pragma GCC unroll 4
    for (size_t block = 0; block < 4; block++) {
        const float *in = x + block / 2 * 4 * ldx + block % 2 * 4;
        float *to = out + block % 2 * 4 * ldo + block / 2 * 4;
        GemmFour r[4], s[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) memcpy(&r[i], in + i * ldx, sizeof r[i]);
        s[0] = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5); /* interleave rows, then pairs */
        s[1] = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
        s[2] = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
        s[3] = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
        r[0] = __builtin_shufflevector(s[0], s[2], 0, 1, 4, 5);
        r[1] = __builtin_shufflevector(s[0], s[2], 2, 3, 6, 7);
        r[2] = __builtin_shufflevector(s[1], s[3], 0, 1, 4, 5);
        r[3] = __builtin_shufflevector(s[1], s[3], 2, 3, 6, 7);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) memcpy(to + i * ldo, &r[i], sizeof r[i]);
    }
}

/* n words of panel from n consecutive ones; n is a constant where this is inlined */
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

/* bits (n) <- n consecutive elements as bf16; x = NULL stands for zeros */
static inline void gemm__bits(uint32_t *restrict bits, const void *x, size_t n, GemmForm form) {
    const float *restrict f = x;
    const uint16_t *restrict h = x;
    if (!x)
        memset(bits, 0, n * sizeof *bits);
    else if (form == GEMM_IS_BF16)
        for (size_t i = 0; i < n; i++) bits[i] = h[i];
    else
        for (size_t i = 0; i < n; i++) bits[i] = gemm_to_bf16(f[i]);
}

/* The same for the rows of GEMM_BF16: k words of depth, made of at most `left` elements and then
 * zeros. They are rounded into a small block first, whose contiguous side is that of x. Two
 * neighbours (even, odd) along the depth become one word, or two words, the odd one first. */
static inline void gemm__pack_strip_bf16(const Gemm *g, GemmSide side, float *restrict out,
                                         GemmOperand x, size_t lanes, size_t k, size_t left) {
    enum { S = GEMM__STRIP, N = GEMM_NR_MAX };
    uint32_t block[N * S], even[N], odd[N], row[2 * S];
    const int by_depth = x.lane == 1, one_word = g->word >= GEMM_PAIRS;
    const size_t step = one_word ? 1 : 2; /* words of a pair */
    const size_t elements = gemm__min(left, k * 2 / step);
    for (size_t p = 0; by_depth && p < k; p += step) { /* block(k, N) */
        size_t at = p * 2 / step;
        uint32_t *to = block + p * N;
        gemm__bits(even, at < left ? gemm__at(x, 0, at) : NULL, lanes, x.form);
        gemm__bits(odd, at + 1 < left ? gemm__at(x, 0, at + 1) : NULL, lanes, x.form);
        for (size_t l = 0; l < lanes; l++) to[l] = odd[l] << 16 | (one_word ? even[l] : 0);
        for (size_t l = 0; !one_word && l < lanes; l++) to[N + l] = even[l] << 16;
    }
    for (size_t l = 0; !by_depth && l < lanes; l++) { /* block(lanes, S) */
        uint32_t *to = block + l * S;
        gemm__bits(row, gemm__at(x, l, 0), elements, x.form);
        for (size_t p = elements; p < 2 * S; p++) row[p] = 0;
        for (size_t p = 0; one_word && p < k; p++) to[p] = row[2 * p + 1] << 16 | row[2 * p];
        for (size_t p = 0; !one_word && p < k; p += 2) {
            to[p] = row[p + 1] << 16;
            to[p + 1] = row[p] << 16;
        }
    }
    GemmOperand words = {.x = block, .lane = by_depth ? 1 : S, .depth = by_depth ? N : 1};
    if (g->word == GEMM_TILES && side == GEMM_A) { /* (lanes, S), lanes and depth change places */
        words = (GemmOperand){.x = block, .lane = words.depth, .depth = words.lane};
        gemm__pack_strip(out, S, words, k, lanes);
        memset(out + lanes * S, 0, (g->mr - lanes) * S * sizeof *out);
    } else
        gemm__pack_strip(out, gemm__width(g, side), words, lanes, k);
}

/* Consecutive panels, strip by strip across all of them: k words of depth, made of `left` elements;
 * the panel of lane l goes to out + l * pitch. */
static inline void gemm__pack(const Gemm *g, GemmSide side, float *out, size_t pitch, GemmOperand x,
                              size_t lanes, size_t k, size_t left) {
    size_t per_word = gemm__per_word(g), width = gemm__width(g, side);
    size_t strip = x.lane == 1 && g->word == GEMM_FLOATS ? GEMM__LONG_STRIP : GEMM__STRIP;
    for (size_t p = 0; p < k; p += strip) {
        for (size_t l = 0; l < lanes; l += width) {
            GemmOperand part = x;
            part.x = gemm__at(x, l, p * per_word);
            float *to = out + l * pitch + p * width;
            size_t some = gemm__min(width, lanes - l), deep = gemm__min(strip, k - p);
            if (g->word == GEMM_FLOATS)
                gemm__pack_strip(to, width, part, some, deep);
            else
                gemm__pack_strip_bf16(g, side, to, part, some, deep, left - p * per_word);
        }
    }
}

/* A block of A or B: some lanes, cut into panels of `width`, over one block of the depth. */
typedef struct GemmBlock {
    GemmOperand x; /* begins at the block's first element */
    GemmSide side;
    size_t lanes, k, left; /* words of depth; elements until the operand's end */
    int in_place;          /* full panels are read where they lie */
    float *panels;         /* the others are packed here, lane l at panels + l * pitch */
    size_t pitch;
} GemmBlock;

/* the block of an operand from lane l and word p on, cut off after `lanes` and GEMM_KC elements */
static inline GemmBlock gemm__block(const Gemm *g, GemmSide side, GemmOperand x, size_t l,
                                    size_t lanes, size_t p, size_t k, int in_place,
                                    float *scratch) {
    const size_t per_word = gemm__per_word(g);
    const size_t words = gemm__min(GEMM_KC / per_word, gemm__words(g, k) - p);
    GemmBlock block = {.x = x, .side = side, .lanes = lanes, .k = words};
    block.left = k - p * per_word;
    block.in_place = in_place;
    block.panels = scratch;
    block.pitch = words;
    if (x.form == GEMM_IS_PACKED) {
        block.pitch = gemm__words(g, x.depth);
        block.panels = (float *)(uintptr_t)x.x + l * block.pitch + p * gemm__width(g, side);
    } else
        block.x.x = gemm__at(x, l, p * per_word);
    return block;
}

/* The panel at lane l of a block, as the kernel reads it. It is packed when `fresh` and not read in
 * place. Where lanes are contiguous, panels that share cache lines are packed together. */
static inline GemmOperand gemm__panel(const Gemm *g, const GemmBlock *s, size_t l, int fresh) {
    float *panel = s->panels + l * s->pitch;
    size_t rest = s->lanes - l, width = gemm__width(g, s->side), group = width;
    GemmOperand packed = {.x = panel, .lane = 1, .depth = width}, here = s->x;
    if (s->x.form == GEMM_IS_PACKED) return packed;
    here.x = gemm__at(s->x, l, 0);
    if (s->in_place && rest >= width) return here;
    if (!s->in_place && s->x.lane == 1) group *= gemm__tiles(GEMM__GROUP, width);
    if (fresh && l % group == 0)
        gemm__pack(g, s->side, panel, s->pitch, here, gemm__min(group, rest), s->k, s->left);
    return packed;
}

/* floats that `lanes` lanes of A or B take when packed for this row */
static inline size_t gemm_packed_floats(const Gemm *g, GemmSide side, size_t lanes, size_t k) {
    size_t width = gemm__width(g, side);
    return gemm__tiles(lanes, width) * width * gemm__words(g, k);
}

/* out <- B(k,n) in panels, for gemm_packed and products of this row
 * threads  caller runs ith = 0..nth-1, then a barrier; each packs its share of the panels
 */
static inline void gemm_pack(const Gemm *g, float *out, GemmOperand b, size_t n, size_t k, int ith,
                             int nth) {
    size_t panels = gemm__tiles(n, g->nr), words = gemm__words(g, k);
    size_t lo = panels * (size_t)ith / (size_t)nth * g->nr;
    size_t hi = gemm__min(panels * ((size_t)ith + 1) / (size_t)nth * g->nr, n);
    if (lo >= hi) return;
    b.x = gemm__at(b, lo, 0);
    gemm__pack(g, GEMM_B, out + lo * words, words, b, hi - lo, words, k);
}

/* The elements [from, from + k) of the depth of an operand that is `all` deep, into their place in
 * out. x begins at `from`, a multiple of 32.
 * threads  different slices may be packed at the same time
 */
static inline void gemm_pack_depth(const Gemm *g, GemmSide side, float *out, size_t all,
                                   GemmOperand x, size_t lanes, size_t from, size_t k) {
    assert(from % (2 * GEMM__STRIP) == 0);
    out += from / gemm__per_word(g) * gemm__width(g, side);
    gemm__pack(g, side, out, gemm__words(g, all), x, lanes, gemm__words(g, k), k);
}

/* ------------------------------------------------------------------------------------------------
 * the five loops */

/* c(rows,cols) = or += a b by the kernel; the end of a ragged tile is cut off */
static inline void gemm__tile(const Gemm *g, float *c, size_t ldc, size_t rows, size_t cols,
                              size_t k, GemmOperand a, GemmOperand b, int accumulate) {
    float tile[GEMM_MR_MAX * GEMM_NR_MAX];
    if (rows == g->mr && cols == g->nr) {
        g->kernel(k, a.x, a.lane, a.depth, b.x, b.depth, c, ldc, accumulate);
        return;
    }
    for (size_t i = 0; accumulate && i < rows; i++)
        memcpy(tile + i * g->nr, c + i * ldc, cols * sizeof *c);
    g->kernel(k, a.x, a.lane, a.depth, b.x, b.depth, tile, g->nr, accumulate);
    for (size_t i = 0; i < rows; i++) memcpy(c + i * ldc, tile + i * g->nr, cols * sizeof *c);
}

enum {
    GEMM__FEW_B = 8, /* so few tiles of rows read B in place rather than pack it */
    GEMM__SCRATCH_A = (GEMM_MC + GEMM_MR_MAX) * GEMM_KC,
    GEMM__SCRATCH_B = (GEMM_NC + GEMM_NR_MAX) * GEMM_KC
};

/* C(m,n) = or += A B on one thread; `upper` leaves out the tiles below the diagonal */
static inline void gemm__five_loops(const Gemm *g, float *c, size_t ldc, GemmOperand a,
                                    GemmOperand b, size_t m, size_t n, size_t k, int accumulate,
                                    int upper, float *scratch) {
    const size_t mr = g->mr, nr = g->nr, words = gemm__words(g, k);
    const size_t mc = gemm__tiles(GEMM_MC, mr) * mr, nc = gemm__tiles(GEMM_NC, nr) * nr;
    const size_t kc = GEMM_KC / gemm__per_word(g); /* in words */
    const int plain = g->word == GEMM_FLOATS;
    const int a_in_place = plain && (a.depth == 1 || n <= nr); /* or is it read just once? */
    const int b_in_place = plain && b.lane == 1 && m <= GEMM__FEW_B * mr;
    float *scratch_a = scratch + (64 - (uintptr_t)scratch % 64) % 64 / sizeof *scratch;
    float *scratch_b = scratch_a + GEMM__SCRATCH_A;
    if (g->shape) g->shape(1);
    for (size_t jc = 0; jc < n; jc += nc) {         /* 1: blocks of columns of B and C */
        for (size_t pc = 0; pc < words; pc += kc) { /* 2: blocks of the depth */
            GemmBlock bb =
                gemm__block(g, GEMM_B, b, jc, gemm__min(nc, n - jc), pc, k, b_in_place, scratch_b);
            for (size_t ic = 0; ic < m; ic += mc) { /* 3: blocks of rows of A and C */
                GemmBlock ab = gemm__block(g, GEMM_A, a, ic, gemm__min(mc, m - ic), pc, k,
                                           a_in_place, scratch_a);
                for (size_t j = 0; j < bb.lanes; j += nr) { /* 4: panels of B */
                    GemmOperand bp = gemm__panel(g, &bb, j, ic == 0);
                    for (size_t i = 0; i < ab.lanes; i += mr) { /* 5: panels of A */
                        GemmOperand ap = gemm__panel(g, &ab, i, j == 0);
                        if (upper && ic + i >= jc + j + nr) continue;
                        gemm__tile(g, c + (ic + i) * ldc + jc + j, ldc, gemm__min(mr, ab.lanes - i),
                                   gemm__min(nr, bb.lanes - j), ab.k, ap, bp, accumulate || pc > 0);
                    }
                }
            }
        }
    }
    if (g->shape) g->shape(0);
}

/* floats of scratch for one thread: a constant that serves every shape and every row (1 MB) */
static inline size_t gemm_scratch(void) {
    return GEMM__SCRATCH_A + GEMM__SCRATCH_B + 16; /* 16 to align by hand */
}

/* C(m,n) = A(m,k) B(k,n), or += when accumulate; C row-major fp32, ldc >= n
 * cost     2mnk flop, and copies of the panels that cannot be read in place
 * scratch  gemm_scratch() floats, one block per concurrent caller
 * alias    C overlaps neither operand nor scratch; A and B may be the same
 * threads  caller runs ith = 0..nth-1, then a barrier; the slices of C are disjoint, and bits do
 *          not depend on nth
 * edges    k = 0 gives zeros, or leaves C as it was; m = 0 or n = 0 does nothing
 * error    none at run time; shapes are asserted
 */
static inline void gemm_multiply(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                 size_t m, size_t n, size_t k, int accumulate, float *scratch,
                                 int ith, int nth) {
    assert(nth > 0 && ith >= 0 && ith < nth && ldc >= n);
    assert(g->word != GEMM_FLOATS || (a.form != GEMM_IS_BF16 && b.form != GEMM_IS_BF16));
    if (m == 0 || n == 0) return;
    /* Slices are whole tiles of rows or of columns, whichever makes the longest slice shorter. When
     * equal, the longer side is cut, so that every thread packs less. */
    size_t i = (size_t)ith, t = (size_t)nth;
    size_t mt = gemm__tiles(m, g->mr), nt = gemm__tiles(n, g->nr);
    size_t by_rows = gemm__tiles(mt, t) * nt, by_cols = gemm__tiles(nt, t) * mt;
    int rows = by_rows < by_cols || (by_rows == by_cols && m > n);
    size_t tiles = rows ? mt : nt, width = rows ? g->mr : g->nr, size = rows ? m : n;
    size_t begin = gemm__min(tiles * i / t * width, size);
    size_t end = gemm__min(tiles * (i + 1) / t * width, size);
    if (begin == end) return;
    assert(c);
    c += rows ? begin * ldc : begin;
    *(rows ? &m : &n) = end - begin;
    if (k == 0) {
        for (size_t r = 0; r < m && !accumulate; r++) memset(c + r * ldc, 0, n * sizeof *c);
        return;
    }
    GemmOperand *cut = rows ? &a : &b;
    cut->x = cut->form == GEMM_IS_PACKED
                 ? (const float *)cut->x + begin * gemm__words(g, cut->depth)
                 : gemm__at(*cut, begin, 0);
    gemm__five_loops(g, c, ldc, a, b, m, n, k, accumulate, 0, scratch);
}

/* C(m,n) = A(m,k) B(k,n), or +=; row-major, lda >= k, ldb >= n; the rest as gemm_multiply */
static inline void gemm_nn(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= k && ldb >= n);
    gemm_multiply(g, c, ldc, gemm_f32(a, lda, 1), gemm_f32(b, 1, ldb), m, n, k, accumulate, scratch,
                  ith, nth);
}

/* C(m,n) = A(m,k) B(n,k)^T, or +=; row-major, lda, ldb >= k; the rest as gemm_multiply */
static inline void gemm_nt(const Gemm *g, float *c, size_t ldc, const float *a, size_t lda,
                           const float *b, size_t ldb, size_t m, size_t n, size_t k, int accumulate,
                           float *scratch, int ith, int nth) {
    assert(lda >= k && ldb >= k);
    gemm_multiply(g, c, ldc, gemm_f32(a, lda, 1), gemm_f32(b, ldb, 1), m, n, k, accumulate, scratch,
                  ith, nth);
}

/* C(m,m) = A(m,k) B(k,m) of which the caller knows that it is symmetric, as when B is A^T
 * cost     about half of gemm_multiply's: tiles below the diagonal are mirrored
 * bits     those of gemm_multiply, on and above the diagonal
 * threads  one; k > 0; the rest as gemm_multiply
 */
static inline void gemm_symmetric(const Gemm *g, float *c, size_t ldc, GemmOperand a, GemmOperand b,
                                  size_t m, size_t k, float *scratch) {
    assert(ldc >= m && k > 0);
    gemm__five_loops(g, c, ldc, a, b, m, m, k, 0, 1, scratch);
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

/* ------------------------------------------------------------------------------------------------
 * micro-kernels, one per instruction set */

/* All micro-kernels. ROWS x COLUMNS vectors of C stay in registers; one step of k loads a row of B
 * and adds to each row of C the product with one element of A. MULADD(t, x, row) is t + x row.
 * AHEAD is the distance in bytes at which B is prefetched: the CPU's own prefetch ends with a page.
 * C is prefetched for the end, where it is read and written. */
#define GEMM__KERNEL(title, attributes, Vector, ROWS, COLUMNS, MULADD, AHEAD)                      \
    attributes static inline void title(size_t k, const float *a, size_t a_row, size_t a_col,      \
                                        const float *b, size_t b_row, float *c, size_t ldc,        \
                                        int accumulate) {                                          \
        enum { WIDTH = sizeof(Vector) / sizeof(float) };                                           \
        typedef Vector Unaligned __attribute__((aligned(4), may_alias));                           \
        Vector t[ROWS][COLUMNS], row[COLUMNS];                                                     \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < ROWS; i++)                                  \
            _Pragma("GCC unroll 4") for (size_t j = 0; j < COLUMNS; j++) {                         \
            __builtin_prefetch(c + i * ldc + j * WIDTH, 1, 3);                                     \
            t[i][j] = (Vector){0};                                                                 \
        }                                                                                          \
        _Pragma("GCC unroll 4") for (size_t p = 0; p < k; p++, a += a_col, b += b_row) {           \
            _Pragma("GCC unroll 4") for (size_t j = 0; j < COLUMNS; j++) {                         \
                row[j] = *(const Unaligned *)(b + j * WIDTH);                                      \
                if (AHEAD) __builtin_prefetch((char *)((uintptr_t)(b + j * WIDTH) + AHEAD), 0, 2); \
            }                                                                                      \
            _Pragma("GCC unroll 8") for (size_t i = 0; i < ROWS; i++) {                            \
                const float x = a[i * a_row];                                                      \
                _Pragma("GCC unroll 4") for (size_t j = 0; j < COLUMNS; j++) t[i][j] =             \
                    MULADD(t[i][j], x, row[j]);                                                    \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < ROWS; i++, c += ldc) {                      \
            _Pragma("GCC unroll 4") for (size_t j = 0; j < COLUMNS; j++) {                         \
                Unaligned *out = (Unaligned *)(c + j * WIDTH);                                     \
                if (accumulate) t[i][j] = *out + t[i][j];                                          \
                *out = t[i][j];                                                                    \
            }                                                                                      \
        }                                                                                          \
    }

/* The compiler maps four floats to SSE, NEON or scalars. */
#define GEMM__MULADD(t, x, row) (t) + (x) * (row)
GEMM__KERNEL(gemm__kernel_portable, , GemmFour, 4, 2, GEMM__MULADD, 0)
static inline int gemm__has_portable(void) { return 1; }

#ifdef GEMM__X86
static inline int gemm__has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static inline int gemm__has_avx512(void) { return __builtin_cpu_supports("avx512f") != 0; }
static inline int gemm__has_avx512bf16(void) { return __builtin_cpu_supports("avx512bf16") != 0; }

/* 6 x 16: 12 of the 16 registers hold the tile, 2 a row of B, 1 an element of A */
#define GEMM__FMA8(t, x, row) _mm256_fmadd_ps(_mm256_set1_ps(x), row, t)
GEMM__KERNEL(gemm__kernel_avx2, __attribute__((target("avx2,fma"))), GemmEight, 6, 2, GEMM__FMA8, 0)

/* 8 x 32: 16 chains hide the latency of two FMA ports; model widths are multiples of 8 and 32 */
#define GEMM__FMA16(t, x, row) _mm512_fmadd_ps(_mm512_set1_ps(x), row, t)
GEMM__KERNEL(gemm__kernel_avx512, __attribute__((target("avx512f"))), GemmSixteen, 8, 2,
             GEMM__FMA16, 8192)

/* the same tile; a word is a pair of bf16, and vdpbf16ps adds both of its products */
#define GEMM__DOT16(t, x, row) _mm512_dpbf16_ps(t, (__m512bh)_mm512_set1_ps(x), (__m512bh)(row))
GEMM__KERNEL(gemm__kernel_avx512bf16, __attribute__((target("avx512f,avx512bf16"))), GemmSixteen, 8,
             2, GEMM__DOT16, 0)
#endif

#ifdef GEMM__AMX
/* Linux lends a process the tile registers on request: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA),
 * which plain C11 cannot spell. The answer is kept: a virtual machine takes long for a CPUID. */
static inline int gemm__has_amx(void) {
    enum { BF16 = 1 << 22, TILE = 1 << 24, ARCH_PRCTL = 158, REQUEST = 0x1023, XTILEDATA = 18 };
    static int kept; /* 1: no, 2: yes */
    unsigned a, b, c, d = 0;
    long result = ARCH_PRCTL;
    int answer = __atomic_load_n(&kept, __ATOMIC_RELAXED);
    if (answer) return answer == 2;
    if (gemm__has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & BF16 && d & TILE)
        __asm__ volatile("syscall"
                         : "+a"(result)
                         : "D"(REQUEST), "S"((long)XTILEDATA)
                         : "rcx", "r11", "memory");
    answer = result == 0 ? 2 : 1;
    __atomic_store_n(&kept, answer, __ATOMIC_RELAXED);
    return answer == 2;
}

/* ldtilecfg or tilerelease, once for a product: they are too slow for every tile of C. All eight
 * tiles are 16 rows of 64 bytes. */
__attribute__((target("amx-tile"))) static inline void gemm__shape_amx(int on) {
    static const struct {
        uint8_t palette, zeros[15];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {1, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    if (on)
        _tile_loadconfig(&shapes);
    else
        _tile_release();
}

/* 32 x 32: four tiles of C, two of A and two of B, a strip of each at a time; strides in bytes */
__attribute__((target("amx-tile,amx-bf16"))) static inline void
gemm__kernel_amx(size_t k, const float *a, size_t a_row, size_t a_col, const float *b, size_t b_row,
                 float *c, size_t ldc, int accumulate) {
    enum { S = GEMM__STRIP };
    (void)a_row;
    if (accumulate) {
        _tile_loadd(0, c, ldc * 4);
        _tile_loadd(1, c + S, ldc * 4);
        _tile_loadd(2, c + S * ldc, ldc * 4);
        _tile_loadd(3, c + S * ldc + S, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t p = 0; p < k; p += S, a += S * a_col, b += S * b_row) {
        _tile_loadd(6, b, b_row * 4);
        _tile_loadd(4, a, S * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + S * S, S * 4);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b + S, b_row * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + S, ldc * 4);
    _tile_stored(2, c + S * ldc, ldc * 4);
    _tile_stored(3, c + S * ldc + S, ldc * 4);
}
#endif

#ifdef __ARM_NEON
/* 6 x 16: 24 of the 32 registers hold the tile, 4 a row of B, 1 an element of A */
#define GEMM__FMA4(t, x, row) vfmaq_f32(t, vdupq_n_f32(x), row)
static inline int gemm__has_neon(void) { return 1; }
GEMM__KERNEL(gemm__kernel_neon, , GemmFour, 6, 4, GEMM__FMA4, 0)
#endif

/* ------------------------------------------------------------------------------------------------
 * the table of instruction sets */

/* an instruction set with its tile, and for fp32 and bf16 its kernel and what a word holds */
#define GEMM__CELL(isa, rows, columns, function, holds, registers)                                 \
    {                                                                                              \
        .name = #isa, .supported = gemm__has_##isa, .mr = rows, .nr = columns,                     \
        .kernel = gemm__kernel_##function, .word = holds, .shape = registers                       \
    }
#define GEMM__ROW(isa, rows, columns, f32, bf16, bf16_word)                                        \
    {                                                                                              \
        GEMM__CELL(isa, rows, columns, f32, GEMM_FLOATS, NULL),                                    \
            GEMM__CELL(isa, rows, columns, bf16, bf16_word, NULL)                                  \
    }

/* Is the row quicker than those below it? A Xeon has done one vdpbf16ps in the time of four FMAs,
 * which multiply twice as much. */
static inline int gemm__pays(const Gemm *g) {
#ifdef GEMM__X86
    if (__builtin_cpu_is("intel")) return g->word != GEMM_PAIRS;
#endif
    (void)g;
    return 1;
}

/* the row of an instruction set and the type that operands are rounded to; cheap, for start-up
 * name     "amx", "avx512bf16", "avx512", "avx2", "neon", "portable"; NULL or "": the best one here
 * error    NULL when the name is unknown or this CPU does not support it
 */
static inline const Gemm *gemm_select(const char *name, GemmDtype dtype) {
    static const Gemm rows[][2] = {
#ifdef GEMM__AMX
        {GEMM__CELL(amx, 8, 32, avx512, GEMM_FLOATS, NULL),
         GEMM__CELL(amx, 32, 32, amx, GEMM_TILES, gemm__shape_amx)},
#endif
#ifdef GEMM__X86
        GEMM__ROW(avx512bf16, 8, 32, avx512, avx512bf16, GEMM_PAIRS),
        GEMM__ROW(avx512, 8, 32, avx512, avx512, GEMM_ROUNDED),
        GEMM__ROW(avx2, 6, 16, avx2, avx2, GEMM_ROUNDED),
#endif
#ifdef __ARM_NEON
        GEMM__ROW(neon, 6, 16, neon, neon, GEMM_ROUNDED),
#endif
        GEMM__ROW(portable, 4, 8, portable, portable, GEMM_ROUNDED),
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const Gemm *g = &rows[i][dtype];
        if (g->supported() && (name && *name ? !strcmp(name, g->name) : gemm__pays(g))) return g;
    }
    return NULL;
}

/* gemm_select of the environment variable GEMM_ISA; NULL as above, for the caller to report */
static inline const Gemm *gemm_default(GemmDtype dtype) {
    return gemm_select(getenv("GEMM_ISA"), dtype);
}

#endif /* GEMM_H */
