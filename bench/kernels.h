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

void sm__gemm(char op, float *c, const float *a, const float *b, size_t m, size_t n, size_t k,
              float *scratch); /* optimizer.c's */
void sm__gemm_symmetric(char op, float *c, const float *a, const float *b, size_t m, size_t k,
                        float *scratch);

static inline void kernels_gemm(char op, float *c, const float *a, const float *b, size_t m,
                                size_t n, size_t k, float *scratch) {
    kernels_flops += 2.0 * (double)m * (double)n * (double)k;
    sm__gemm(op, c, a, b, m, n, k, scratch);
}
static inline void kernels_symmetric(char op, float *c, const float *a, const float *b, size_t m,
                                     size_t k, float *scratch) {
    kernels_flops += (double)m * (double)m * (double)k;
    sm__gemm_symmetric(op, c, a, b, m, k, scratch);
}
#define SIGNMUON_GEMM kernels_gemm
#define SIGNMUON_GEMM_SCRATCH gemm_scratch()
#define SIGNMUON_SYMMETRIC kernels_symmetric
#include "../signmuon.h"

#endif
