/* cuda.h - what the two CUDA files stand on: device, memory, launches, warps, products. MIT.

   lib/gpt_cuda.cu (the model) and lib/signmuon_cuda.cu (the optimizer's stages) include it. nvcc
   compiles them for a GPU. With -DCUDA_ON_CPU a C++ compiler takes the same sources, and
   test/cuda_on_cpu.h runs them: the blocks of a launch in order, the threads of a block as fibers.

   Kernels keep to what both offer: LAUNCH, SHARED, shuffles and ballots of whole warps, and the
   wrappers below. Every reduction has a fixed order, and there are no atomics: the same input gives
   the same bits on the same kind of device. */
#ifndef CUDA_H
#define CUDA_H

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef CUDA_ON_CPU
#include "test/cuda_on_cpu.h"
#else
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* LAUNCH(kernel, grid, block, bytes of shared memory, stream, arguments...) */
#define LAUNCH(kernel, grid, block, shared, stream, ...)                                           \
    (kernel)<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)
/* `name` points to the shared memory of the launch */
#define SHARED(name) extern __shared__ __align__(128) char name[]

/* d (16 x 8) += a (16 x 16) b (16 x 8) by the 32 lanes of a warp, bf16 in, fp32 out. Lane 4g + t
 * holds, as PTX numbers them: a[0] = A(g, 2t..), a[1] = A(g+8, 2t..), a[2] = A(g, 2t+8..), a[3] =
 * A(g+8, 2t+8..); b[0] = B(2t.., g), b[1] = B(2t+8.., g); d[0..1] = D(g, 2t..), d[2..3] = D(g+8,
 * 2t..), where ".." is a pair of neighbours, the first in the low half. */
__device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* 2^x in one instruction; results below 2^-126 are 0 */
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Four 8 x 8 matrices of bf16 from shared memory: lane 8i + r names row r of matrix i (16 aligned
 * bytes). r[i] of lane 4g + t is matrix i's (g, 2t..), or with _transposed its (2t.., g). */
__device__ __forceinline__ void load_matrices(uint32_t r[4], const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* Begin to copy 16 aligned bytes into shared memory, or zeros where `here` is 0. Copies since the
 * last copy_commit are a group; copy_wait<N> waits until at most the N latest groups are under way,
 * for the copies of the calling thread: __syncthreads makes everybody's visible. */
__device__ __forceinline__ void copy_async(void *shared, const void *global, bool here) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = here ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif

typedef __nv_bfloat16 bf16;

/* ------------------------------------------------------------------------------------------------
 * values */

enum { WARP = 32 };
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float *out, float x) { *out = x; }
__device__ __forceinline__ void from_float(bf16 *out, float x) { *out = __float2bfloat16_rn(x); }

/* W neighbours, which one or two instructions load and store. */
template <typename S, int W> struct alignas(W * sizeof(S) > 16 ? 16 : W * sizeof(S)) Pack {
    S x[W];
};
template <int W, typename S> __device__ __forceinline__ void load(float *out, const S *from) {
    Pack<S, W> p = *(const Pack<S, W> *)(const void *)from;
    for (int i = 0; i < W; i++) out[i] = to_float(p.x[i]);
}
template <int W, typename S> __device__ __forceinline__ void store(S *to, const float *x) {
    Pack<S, W> p;
    for (int i = 0; i < W; i++) from_float(&p.x[i], x[i]);
    *(Pack<S, W> *)(void *)to = p;
}

/* Sum and maximum over the lanes of a warp; every lane gets the same bits. */
template <typename Type> __device__ __forceinline__ Type warp_sum(Type x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

/* signmuon.h's sm_hash */
__host__ __device__ __forceinline__ uint64_t hash64(uint64_t key, uint64_t index) {
    uint64_t x = key + 0x9e3779b97f4a7c15u * (index + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* ------------------------------------------------------------------------------------------------
 * a device */

/* A product that was planned: cuBLASLt's descriptors and the algorithm that it advised. */
struct CudaPlan {
    int64_t key[24];
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
};

/* One worker's share of a device. The first failure is kept in `error`, later calls do nothing. */
typedef struct Cuda {
    int device;
    cudaStream_t stream;
    cublasLtHandle_t blas;
    void *workspace; /* of cuBLASLt */
    CudaPlan plan[128];
    int plans;
    char error[256];
} Cuda;

/* Note a failure; returns true when there is one, now or before. */
static inline bool cuda_fail(Cuda *c, const char *format, ...) {
    if (*c->error) return true;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->error, sizeof c->error, format, arguments);
    va_end(arguments);
    return true;
}
static inline bool cuda_failed(Cuda *c, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return *c->error != 0;
    return cuda_fail(c, "device %d: %s: %s", c->device, what, cudaGetErrorString(e));
}

/* n values of type Type, zeroed; NULL after a failure. */
template <typename Type> static inline Type *cuda_allocate(Cuda *c, size_t n) {
    void *p = NULL;
    if (*c->error) return NULL;
    if (cudaMalloc(&p, n * sizeof(Type) + 16) != cudaSuccess) {
        cudaGetLastError();
        cuda_fail(
            c,
            "device %d: no memory for %.3g GB more: take a smaller model or context, or fewer "
            "sequences in a pass",
            c->device, (double)(n * sizeof(Type)) * 1e-9);
        return NULL;
    }
    cuda_failed(c, cudaMemsetAsync(p, 0, n * sizeof(Type) + 16, c->stream), "clearing memory");
    return (Type *)p;
}

/* Copy n values; `to` and `from` may lie on the device or not. Waits where one is the host's. */
template <typename Type>
static inline void cuda_copy(Cuda *c, Type *to, const Type *from, size_t n) {
    if (*c->error || n == 0) return;
    cuda_failed(c, cudaMemcpyAsync(to, from, n * sizeof(Type), cudaMemcpyDefault, c->stream),
                "a copy");
}

/* Wait for everything that was launched; true after a failure. */
static inline bool cuda_finish(Cuda *c) {
    return *c->error || cuda_failed(c, cudaStreamSynchronize(c->stream), "a kernel");
}

static inline void cuda_close(Cuda *c) {
    for (int i = 0; i < c->plans; i++) {
        cublasLtMatmulDescDestroy(c->plan[i].op);
        cublasLtMatrixLayoutDestroy(c->plan[i].a);
        cublasLtMatrixLayoutDestroy(c->plan[i].b);
        cublasLtMatrixLayoutDestroy(c->plan[i].c);
    }
    if (c->blas) cublasLtDestroy(c->blas);
    if (c->stream) cudaStreamDestroy(c->stream);
}

static inline unsigned blocks_for(size_t n, size_t each) {
    return (unsigned)((n + each - 1) / each);
}

/* ------------------------------------------------------------------------------------------------
 * products by cuBLASLt. It numbers columns first, so a row-major matrix is its transpose there. */

enum { CUDA_WORKSPACE = 32 << 20 };

/* An operand: rows `ld` apart, or with `transposed` the columns of the operand lie in those rows.
 * `stride` values from one matrix of a batch to the next. */
struct CudaOperand {
    const void *x;
    cudaDataType_t type;
    int64_t ld;
    bool transposed;
    int64_t stride;
};
static inline CudaOperand operand(const float *x, size_t ld, bool transposed, size_t stride = 0) {
    return {x, CUDA_R_32F, (int64_t)ld, transposed, (int64_t)stride};
}
static inline CudaOperand operand(const bf16 *x, size_t ld, bool transposed, size_t stride = 0) {
    return {x, CUDA_R_16BF, (int64_t)ld, transposed, (int64_t)stride};
}

static inline cublasStatus_t cuda_layout(cublasLtMatrixLayout_t *layout, const CudaOperand &o,
                                         size_t rows, size_t columns, int batch) {
    uint64_t high = o.transposed ? columns : rows, wide = o.transposed ? rows : columns;
    cublasStatus_t s = cublasLtMatrixLayoutCreate(layout, o.type, wide, high, o.ld);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                             sizeof batch);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &o.stride, sizeof o.stride);
    return s;
}

/* Bytes to which a pointer is aligned, at most 256. */
static inline uint32_t alignment(const void *x) {
    uint32_t low = (uint32_t)(uintptr_t)x | 256;
    return low & (0 - low);
}

/* The plan of a product, from the table or made now; NULL after a failure. */
static inline CudaPlan *cuda_plan(Cuda *c, const CudaOperand &d, const CudaOperand &a,
                                  const CudaOperand &b, const void *old, size_t m, size_t n,
                                  size_t k, int batch, bool bias) {
    const CudaOperand *o[3] = {&d, &a, &b};
    int64_t key[24] = {(int64_t)m, (int64_t)n, (int64_t)k, batch, bias, alignment(old)};
    for (int i = 0; i < 3; i++) {
        int64_t *to = key + 6 + 5 * i;
        to[0] = o[i]->type, to[1] = o[i]->ld, to[2] = o[i]->transposed, to[3] = o[i]->stride;
        to[4] = alignment(o[i]->x);
    }
    for (int i = 0; i < c->plans; i++)
        if (memcmp(c->plan[i].key, key, sizeof key) == 0) return &c->plan[i];
    const int most = (int)(sizeof c->plan / sizeof *c->plan);
    CudaPlan *p = &c->plan[c->plans < most ? c->plans++ : c->plans - 1];
    if (c->plans == most && p->op) { /* the last place is used again and again */
        cublasLtMatmulDescDestroy(p->op);
        cublasLtMatrixLayoutDestroy(p->a), cublasLtMatrixLayoutDestroy(p->b);
        cublasLtMatrixLayoutDestroy(p->c);
    }
    memset(p, 0, sizeof *p);
    /* column by column: d^T (n, m) = b^T a^T */
    cublasOperation_t ta = b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t tb = a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    size_t workspace = CUDA_WORKSPACE;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
#define TRY(call)                                                                                  \
    if (cublasStatus_t s = call)                                                                   \
    return cuda_fail(c, "device %d: cuBLASLt cannot multiply (%zu, %zu) by (%zu, %zu): status %d", \
                     c->device, m, k, k, n, (int)s),                                               \
           (CudaPlan *)NULL
    TRY(cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TRY(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta));
    TRY(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb));
    TRY(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                       sizeof epilogue));
    if (bias) {
        cudaDataType_t type = d.type;
        TRY(cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type,
                                           sizeof type));
    }
    TRY(cuda_layout(&p->a, b, k, n, batch));
    TRY(cuda_layout(&p->b, a, m, k, batch));
    TRY(cuda_layout(&p->c, d, m, n, batch));
    TRY(cublasLtMatmulPreferenceCreate(&preference));
    TRY(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, sizeof workspace));
    const cublasLtMatmulPreferenceAttributes_t aligned[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t bytes[4] = {alignment(b.x), alignment(a.x), alignment(old), alignment(d.x)};
    for (int i = 0; i < 4; i++)
        TRY(cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &bytes[i],
                                                 sizeof bytes[i]));
    TRY(cublasLtMatmulAlgoGetHeuristic(c->blas, p->op, p->a, p->b, p->c, p->c, preference, 1,
                                       &result, &found));
#undef TRY
    cublasLtMatmulPreferenceDestroy(preference);
    if (!found)
        return cuda_fail(c, "device %d: cuBLASLt has no algorithm for (%zu, %zu) by (%zu, %zu)",
                         c->device, m, k, k, n),
               (CudaPlan *)NULL;
    p->algorithm = result.algo;
    memcpy(p->key, key, sizeof key); /* only a whole plan is found again */
    return p;
}

/* d (m, n) = alpha a (m, k) b (k, n) + beta old (m, n) + bias (n), for `batch` of them.
 * old   as d lies; may be d itself, and is not read with beta = 0
 * bias  of d's type, or NULL */
static inline void cuda_multiply(Cuda *c, const CudaOperand &d, const CudaOperand &a,
                                 const CudaOperand &b, size_t m, size_t n, size_t k,
                                 float alpha = 1, float beta = 0, const void *old = NULL,
                                 int batch = 1, const void *bias = NULL) {
    if (*c->error) return;
    if (!old) old = d.x;
    CudaPlan *p = cuda_plan(c, d, a, b, old, m, n, k, batch, bias != NULL);
    if (!p) return;
    if (bias)
        cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                       sizeof bias);
    cublasStatus_t s =
        cublasLtMatmul(c->blas, p->op, &alpha, b.x, p->a, a.x, p->b, &beta, old, p->c, (void *)d.x,
                       p->c, &p->algorithm, c->workspace, CUDA_WORKSPACE, c->stream);
    if (s != CUBLAS_STATUS_SUCCESS)
        cuda_fail(c, "device %d: a product of (%zu, %zu) by (%zu, %zu) failed: status %d",
                  c->device, m, k, k, n, (int)s);
}

#endif
