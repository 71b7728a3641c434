/* vector.h - arithmetic that becomes vector code; arrays kept as fp32 or bf16. C11, MIT.

     mul_add, fast_exp, row_max    one value; the largest of a row
     Stored                        an array in memory: stored_place, _store, _load, _operand */
#ifndef VECTOR_H
#define VECTOR_H

#include <stdint.h>
#include <string.h>
#include "gemm.h"

/* a * b + c in one rounding where the CPU has the instruction */
static inline float mul_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* e^x to 2 ulp for x <= 88, 0 below -87: Cephes' expf in plain arithmetic, so that loops over it
 * become vector code. e^x = 2^n e^r with n = round(x / ln 2); adding 1.5 * 2^23 rounds. */
static inline float fast_exp(float x) {
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = mul_add(clamped, 1.44269504f, 12582912.0f), n = shifted - 12582912.0f;
    float r = mul_add(n, 2.12194440e-4f, mul_add(n, -0.693359375f, clamped));
    float p = mul_add(mul_add(1.9875691500e-4f, r, 1.3981999507e-3f), r, 8.3334519073e-3f);
    p = mul_add(mul_add(p, r, 4.1665795894e-2f), r, 1.6666665459e-1f);
    p = mul_add(mul_add(p, r, 5.0000001201e-1f), r * r, r) + 1.0f;
    union {
        float f;
        uint32_t u;
    } bits = {shifted}, power;
    power.u = (bits.u + 127u) << 23;
    return x < -87.0f ? 0.0f : p * power.f;
}

/* Largest of n >= 1 entries, in sixteen lanes: no compiler reorders a maximum by itself. */
static inline float row_max(const float *x, size_t n) {
    float lane[16];
    size_t i = 0;
    for (size_t j = 0; j < 16; j++) lane[j] = x[0];
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            lane[j] = lane[j + half] > lane[j] ? lane[j + half] : lane[j];
    return lane[0];
}

/* An array in memory, fp32 or bf16. fp32 is used where it lies, bf16 by way of scratch; `at` counts
 * values. x is NULL where nothing is kept. */
typedef struct Stored {
    void *x;
    int bf16;
} Stored;

/* Where to write values that stored_store then keeps. */
static inline float *stored_place(Stored s, size_t at, float *scratch) {
    return s.x && !s.bf16 ? (float *)s.x + at : scratch;
}

/* Keep x (rows, cols) in rows `ld` apart; nothing to do when it was written in place. */
static inline void stored_store(Stored s, size_t at, size_t ld, const float *x, size_t rows,
                                size_t cols) {
    if (!s.x || x == stored_place(s, at, NULL)) return;
    for (size_t r = 0; r < rows; r++, at += ld, x += cols) {
        uint16_t *restrict half = (uint16_t *)s.x + at;
        if (!s.bf16) memcpy((float *)s.x + at, x, cols * sizeof *x);
        for (size_t c = 0; s.bf16 && c < cols; c++) half[c] = gemm_to_bf16(x[c]);
    }
}

/* n values as fp32. */
static inline const float *stored_load(Stored s, size_t at, size_t n, float *scratch) {
    if (!s.bf16) return (const float *)s.x + at;
    const uint16_t *half = (const uint16_t *)s.x + at;
    for (size_t i = 0; i < n; i++) scratch[i] = gemm_from_bf16(half[i]);
    return scratch;
}

/* An operand of a product, see GemmOperand. */
static inline GemmOperand stored_operand(Stored s, size_t at, size_t lane, size_t depth) {
    return s.bf16 ? gemm_bf16((const uint16_t *)s.x + at, lane, depth)
                  : gemm_f32((const float *)s.x + at, lane, depth);
}

#endif
