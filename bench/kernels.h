/* kernels.h - signmuon.h with the matrix products of lib/gemm.h, as in optimizer.c, and a count of
   the floating-point operations of Newton-Schulz. MIT.

   Include it before anything that includes signmuon.h. Every unit has a count of its own. */
#ifndef KERNELS_H
#define KERNELS_H

#ifdef SIGNMUON_H
#error "include bench/kernels.h before signmuon.h"
#endif
#include "../lib/gemm.h"

/* Flop of the products below on this thread; a symmetric product counts half. */
static _Thread_local double kernels_flops;

static inline void kernels_gemm(char op, float *c, const float *a, const float *b, size_t m,
                                size_t n, size_t k, float *scratch) {
    const Gemm *g = gemm_default(GEMM_F32);
    kernels_flops += 2.0 * (double)m * (double)n * (double)k;
    if (op == 't')
        gemm_nt(g, c, n, a, k, b, k, m, n, k, 0, scratch, 0, 1);
    else
        gemm_nn(g, c, n, a, k, b, n, m, n, k, 0, scratch, 0, 1);
}
static inline void kernels_symmetric(char op, float *c, const float *a, const float *b, size_t m,
                                     size_t k, float *scratch) {
    GemmOperand columns = op == 't' ? gemm_f32(b, k, 1) : gemm_f32(b, 1, m);
    kernels_flops += (double)m * (double)m * (double)k;
    gemm_symmetric(gemm_default(GEMM_F32), c, m, gemm_f32(a, k, 1), columns, m, k, scratch);
}
#define SIGNMUON_GEMM kernels_gemm
#define SIGNMUON_GEMM_SCRATCH gemm_scratch()
#define SIGNMUON_SYMMETRIC kernels_symmetric
#include "../signmuon.h"

#endif
