/* cuda_on_cpu.h - runs CUDA kernels on the CPU, from the source that nvcc compiles, in tests. MIT.

   lib/cuda.h includes it under -DCUDA_ON_CPU. It offers what that header and kernels use of CUDA,
   and a plain cuBLASLt. Device memory is host memory; each call has finished when it returns.

   ORDER      The blocks of a launch run in order. A thread runs until it waits for others. Then the
              first thread that may continue does so, or the next one begins: a warp gets as far as
              it can before the next. With CUDA_ORDER=reverse in the environment, the last block
              and the last thread come first.
   FINDS      a missing barrier: a thread reads what another one has not written yet. A missing
              copy_wait: only that call makes the copies. Uninitialised memory: it is NaN. Barriers
              and warp operations that some threads do not reach. Misaligned addresses of copies,
              matrices and products. Shared memory above the kernel's limit. Overruns of device and
              shared memory, under -fsanitize=address.
   DOES NOT   find races that neither order shows, in particular inside a warp in lockstep; host
              code that reads device memory, or kernels that read the host's. It says nothing about
              time, registers, and the last bits of expf and the like.
   FAILURES   a message on stderr and abort()
   THREADS    each pthread of the host has an emulator of its own */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <functional>
#include <map>
#include <math.h>
#include <memory>
#include <mutex>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <utility>
#include <vector>

/* NULL without ASan, which has to know when the stack changes */
#define CUDA_ON_CPU_WEAK extern "C" __attribute__((weak)) void
CUDA_ON_CPU_WEAK __sanitizer_start_switch_fiber(void **, const void *, size_t);
CUDA_ON_CPU_WEAK __sanitizer_finish_switch_fiber(void *, const void **, size_t *);

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define LAUNCH(kernel, grid, block, shared, stream, ...)                                           \
    on_cpu::launch(#kernel, kernel, grid, block, shared, stream)(__VA_ARGS__)
#define SHARED(name) char *const name = on_cpu::machine->shared

/* ------------------------------------------------------------------------------------------------
 * values */

struct uint3 {
    unsigned x, y, z;
};
struct dim3 : uint3 {
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : uint3{x_, y_, z_} {}
};
inline thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned u = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)}; /* ties to even */
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}

/* One rounding each. They are calls, so that the compiler does not merge a product and a sum. */
#define CUDA_ON_CPU_ROUNDED __attribute__((noinline)) inline float
CUDA_ON_CPU_ROUNDED __fadd_rn(float x, float y) { return x + y; }
CUDA_ON_CPU_ROUNDED __fsub_rn(float x, float y) { return x - y; }
CUDA_ON_CPU_ROUNDED __fmul_rn(float x, float y) { return x * y; }
CUDA_ON_CPU_ROUNDED __fdiv_rn(float x, float y) { return x / y; }
CUDA_ON_CPU_ROUNDED __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
CUDA_ON_CPU_ROUNDED __fsqrt_rn(float x) { return sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float exp2_fast(float x) { return exp2f(x); }
template <typename T> inline T min(T a, T b) { return a < b ? a : b; }
template <typename T> inline T max(T a, T b) { return a > b ? a : b; }

/* ------------------------------------------------------------------------------------------------
 * the threads of a block, each on a stack of its own */

namespace on_cpu {
enum { LANES = 32, MOST_THREADS = 1024, PAYLOAD = 64, STACK = 256 << 10 };
enum { SHARED_USUAL = 48 << 10, SHARED_MOST = 227 << 10 }; /* bytes, of an H100 */
const uint64_t CANARY = 0x9e3779b97f4a7c15u;               /* at the end of each stack */

struct Place { /* in the source */
    const char *operation;
    int line;
    bool operator!=(Place p) const { return line != p.line || strcmp(operation, p.operation); }
};
struct Copy {
    void *to;
    const void *from;
    int group;
};
struct Thread {
    uint3 index;
    bool begun, waits, returned;
    Place place; /* where it waits */
    int groups;  /* of copies, that it has committed */
    std::vector<Copy> copies;
    std::unique_ptr<uint64_t[]> memory;
    void *jump[5];     /* to where it stopped */
    const void *stack; /* this, its size and fake_stack are what ASan asks for */
    size_t bytes;
    void *fake_stack;
};

/* Threads that wait for each other: a warp, or a block. A warp's lanes bring payloads, which stay
 * during the next operation: some lanes reach it before others have read those of this one. */
struct Group {
    Thread *first;
    int size, waiting, returned, turn;
    Place place; /* where all have to wait */
    alignas(64) char payload[2][LANES * PAYLOAD];
};
struct Machine {
    Thread main, thread[MOST_THREADS]; /* main: the host's, which launches */
    Thread *self = &main, *before;     /* the one that runs, and the one that ran */
    Thread *ready[MOST_THREADS];       /* those that may begin or continue, the next one last */
    int readies;
    Group block, warp[MOST_THREADS / LANES];
    const char *kernel; /* its name during a launch */
    const std::function<void()> *run_kernel;
    char *shared;
    size_t shared_bytes;
};
inline thread_local Machine *machine;
inline const bool reverse = getenv("CUDA_ORDER") && !strcmp(getenv("CUDA_ORDER"), "reverse");

[[noreturn]] inline __attribute__((format(printf, 1, 2))) void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "cuda_on_cpu: ");
    vfprintf(stderr, format, list);
    va_end(list);
    const Machine *m = machine;
    if (m && m->kernel)
        fprintf(stderr, "\n  kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", m->kernel,
                blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    for (int i = 0; m && m->kernel && i < m->block.size; i++) {
        const Thread *t = &m->thread[i];
        if (t->waits && (i == 0 || !t[-1].waits || t[-1].place != t->place))
            fprintf(stderr, "\n  threads from %d on: waiting at %s, line %d", i, t->place.operation,
                    t->place.line);
    }
    fprintf(stderr, "\n");
    abort();
}

inline void arrive() {
    Machine *m = machine;
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(m->self->fake_stack, &m->before->stack, &m->before->bytes);
    threadIdx = m->self->index;
}
inline void thread_main();

/* swapcontext calls the operating system each time. ASan and glibc's fortification refuse a longjmp
 * to another stack. Hence the compiler's own jump, which may not stand in the same function as its
 * __builtin_setjmp. ASan must not see these functions: it would take what they leave on a stack for
 * variables, and forget variables at a jump. [[noreturn]] keeps the frame of switch_to: a tail call
 * would give it up. */
#define CUDA_ON_CPU_UNSEEN __attribute__((noinline, no_sanitize("address", "undefined")))
[[noreturn]] CUDA_ON_CPU_UNSEEN inline void jump_to(Thread *t) { __builtin_longjmp(t->jump, 1); }
[[noreturn]] CUDA_ON_CPU_UNSEEN inline void begin(Thread *t) {
    ucontext_t context = {};
    getcontext(&context);
    context.uc_stack.ss_sp = t->memory.get();
    context.uc_stack.ss_size = t->bytes;
    makecontext(&context, thread_main, 0);
    setcontext(&context);
    abort();
}
CUDA_ON_CPU_UNSEEN inline void switch_to(Thread *to) {
    Thread *from = machine->self;
    if (to == from) return;
    machine->before = from, machine->self = to;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes);
    if (__builtin_setjmp(from->jump) == 0) {
        from->begun = true;
        if (to->begun) jump_to(to);
        begin(to);
    }
    arrive();
}

/* Returns when this thread may continue: to the host when all threads have returned. */
inline void run_others() {
    Machine *m = machine;
    if (!m->readies && m->block.returned < m->block.size) fail("deadlock");
    switch_to(m->readies ? m->ready[--m->readies] : &m->main);
}

/* The threads of the group that have not returned may begin or continue, the first one next. */
inline void release(Group *g) {
    g->waiting = 0;
    g->turn ^= 1;
    for (int i = 0; i < g->size; i++) {
        Thread *t = g->first + (reverse ? i : g->size - 1 - i);
        t->waits = false;
        if (!t->returned) machine->ready[machine->readies++] = t;
    }
}

/* Waits until all threads of the group that have not returned are at this place. */
inline void meet(Group *g, Place place) {
    Thread *self = machine->self;
    self->waits = true, self->place = place;
    if (g->waiting++ == 0) g->place = place;
    if (place != g->place) fail("threads wait at different operations");
    if (g->waiting + g->returned == g->size) release(g);
    run_others();
}

inline Group *warp_of(const Thread *t) { return &machine->warp[(t - machine->thread) / LANES]; }
inline void thread_main() {
    Thread *self = machine->self;
    Group *warp = warp_of(self), *block = &machine->block;
    arrive();
    for (;; run_others()) { /* it returns when this thread begins in the next block */
        (*machine->run_kernel)();
        if (self->memory[0] != CANARY) fail("a thread needs more than %d bytes of stack", STACK);
        if (!self->copies.empty()) fail("a thread returns without copy_wait for its copies");
        if (warp->waiting) fail("a thread returns, but its warp waits for it");
        self->returned = true;
        warp->returned++, block->returned++;
        if (block->waiting && block->waiting + block->returned == block->size) release(block);
    }
}

/* ------------------------------------------------------------------------------------------------
 * launches */

/* The shared memory that a kernel may have; `set`, unless 0, becomes its new limit. */
inline size_t limit_of(const void *kernel, size_t set) {
    static std::mutex mutex;
    static std::map<const void *, size_t> limits;
    std::lock_guard<std::mutex> lock(mutex);
    size_t &limit = limits.emplace(kernel, SHARED_USUAL).first->second;
    if (set) limit = set;
    return limit;
}

inline uint3 index_of(size_t i, uint3 n) {
    return {(unsigned)(i % n.x), (unsigned)(i / n.x % n.y), (unsigned)(i / n.x / n.y)};
}

inline void prepare_thread(int i) {
    Thread *t = &machine->thread[i];
    Group *warp = warp_of(t);
    warp->first = t - i % LANES, warp->size = LANES, warp->returned = 0;
    t->index = index_of((size_t)i, blockDim);
    t->returned = false;
    t->groups = 0;
    if (t->memory) return;
    t->memory.reset(new uint64_t[STACK / sizeof CANARY]);
    t->memory[0] = CANARY;
    t->stack = t->memory.get();
    t->bytes = STACK - (size_t)i % 61 * 64; /* so that few tops share a set of the cache */
}

inline void run(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                const std::function<void()> &run_kernel) {
    static thread_local const std::unique_ptr<Machine> owner(machine = new Machine());
    Machine *m = machine;
    size_t threads = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
    void *memory = NULL;
    if (m->kernel) fail("kernel %s launches %s", m->kernel, name);
    if (!threads || threads > MOST_THREADS || threads % LANES)
        fail("%s: a block of %zu threads, not of whole warps up to 1024", name, threads);
    if (!blocks || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        fail("%s: a grid of (%u, %u, %u) blocks", name, grid.x, grid.y, grid.z);
    if (shared > limit_of(kernel, 0))
        fail("%s: %zu bytes of shared memory need cudaFuncSetAttribute", name, shared);
    if (posix_memalign(&memory, 128, shared)) fail("no memory");
    m->shared = (char *)memory, m->shared_bytes = shared;
    m->kernel = name, m->run_kernel = &run_kernel;
    m->block.first = m->thread, m->block.size = (int)threads;
    blockDim = block, gridDim = grid;
    for (size_t i = 0; i < blocks; i++) {
        blockIdx = index_of(reverse ? blocks - 1 - i : i, grid);
        memset(memory, 0xff, shared);
        for (int j = 0; j < m->block.size; j++) prepare_thread(j);
        m->block.returned = 0;
        release(&m->block);
        run_others();
    }
    m->kernel = NULL;
    free(memory);
}
template <typename... P>
auto launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void *) {
    return [=](P... p) {
        run(name, (const void *)kernel, grid, block, shared, [&] { kernel(p...); });
    };
}

/* ------------------------------------------------------------------------------------------------
 * operations of warps and blocks */

inline int lane() { return (int)(machine->self - machine->thread) % LANES; }

/* The lanes of a warp meet; [i] of the result is what lane i brings. */
template <typename T> const T *exchange(Place place, const T &mine, unsigned mask = ~0u) {
    static_assert(sizeof mine <= PAYLOAD, "the payload is too large");
    Group *warp = warp_of(machine->self);
    T *all = (T *)(void *)warp->payload[warp->turn];
    if (mask != ~0u) fail("%s of a part of a warp", place.operation);
    if (warp->returned) fail("%s after a lane of the warp has returned", place.operation);
    all[lane()] = mine;
    meet(warp, place);
    return all;
}

/* 16 aligned bytes of the shared memory, or a failure */
inline void check_shared(const char *operation, const void *p) {
    size_t at = (size_t)((uintptr_t)p - (uintptr_t)machine->shared);
    if (at % 16) fail("%s: address %p is not aligned", operation, p);
    if (at >= machine->shared_bytes / 16 * 16)
        fail("%s: address %p is not in the shared memory", operation, p);
}

struct Row {
    uint16_t x[8];
};
inline void load_rows(Place place, uint32_t r[4], const void *row, bool transposed) {
    check_shared(place.operation, row);
    const Row *rows = exchange(place, *(const Row *)row);
    const int g = lane() / 4, t = lane() % 4 * 2;
    for (int i = 0; i < 4; i++) {
        uint32_t low = transposed ? rows[8 * i + t].x[g] : rows[8 * i + g].x[t];
        uint32_t high = transposed ? rows[8 * i + t + 1].x[g] : rows[8 * i + g].x[t + 1];
        r[i] = low | high << 16;
    }
}
struct Operands {
    __nv_bfloat16 a[4][2], b[2][2];
};
} // namespace on_cpu

inline void __syncthreads(int line = __builtin_LINE()) {
    on_cpu::meet(&on_cpu::machine->block, {"__syncthreads", line});
}
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    on_cpu::exchange({"__syncwarp", line}, 0, mask);
}
template <typename T> T __shfl_sync(unsigned mask, T x, int from, int line = __builtin_LINE()) {
    return on_cpu::exchange({"__shfl_sync", line}, x, mask)[from & 31];
}
template <typename T> T __shfl_xor_sync(unsigned mask, T x, int bits, int line = __builtin_LINE()) {
    return on_cpu::exchange({"__shfl_xor_sync", line}, x, mask)[(on_cpu::lane() ^ bits) & 31];
}
template <typename T> T __shfl_down_sync(unsigned mask, T x, int by, int line = __builtin_LINE()) {
    int own = on_cpu::lane(), from = own + by;
    return on_cpu::exchange({"__shfl_down_sync", line}, x, mask)[from < 32 ? from : own];
}
inline unsigned __ballot_sync(unsigned mask, int yes, int line = __builtin_LINE()) {
    const int *all = on_cpu::exchange({"__ballot_sync", line}, yes, mask);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)(all[i] != 0) << i;
    return bits;
}

/* lib/cuda.h describes these. Lane 4g + t has D(g + i / 2 * 8, 2t + i % 2) in d[i]. */
inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2],
                     int line = __builtin_LINE()) {
    on_cpu::Operands own;
    memcpy(own.a, a, sizeof own.a);
    memcpy(own.b, b, sizeof own.b);
    const on_cpu::Operands *all = on_cpu::exchange({"mma_bf16", line}, own);
    const int g = on_cpu::lane() / 4, t = on_cpu::lane() % 4;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++)
            d[i] += __bfloat162float(all[4 * g + k % 8 / 2].a[i / 2 + k / 8 * 2][k % 2]) *
                    __bfloat162float(all[4 * (2 * t + i % 2) + k % 8 / 2].b[k / 8][k % 2]);
}
inline void load_matrices(uint32_t r[4], const void *row, int line = __builtin_LINE()) {
    on_cpu::load_rows({"load_matrices", line}, r, row, false);
}
inline void load_matrices_transposed(uint32_t r[4], const void *row, int line = __builtin_LINE()) {
    on_cpu::load_rows({"load_matrices_transposed", line}, r, row, true);
}

/* The copy may happen at any time from now on: until copy_wait makes it, `shared` holds NaN. */
inline void copy_async(void *shared, const void *global, bool here) {
    alignas(16) static const char zeros[16] = {};
    on_cpu::Thread *t = on_cpu::machine->self;
    on_cpu::check_shared("copy_async", shared);
    if ((uintptr_t)global % 16) on_cpu::fail("copy_async: source %p is not aligned", global);
    t->copies.push_back({shared, here ? global : zeros, t->groups});
    memset(shared, 0xff, 16);
}
inline void copy_commit() { on_cpu::machine->self->groups++; }
template <int N> void copy_wait() {
    on_cpu::Thread *t = on_cpu::machine->self;
    auto c = t->copies.begin();
    for (; c != t->copies.end() && c->group < t->groups - N; ++c) memcpy(c->to, c->from, 16);
    t->copies.erase(t->copies.begin(), c);
}

/* ------------------------------------------------------------------------------------------------
 * runtime */

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
typedef void *cudaStream_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int multiProcessorCount, major, minor;
};

inline thread_local cudaError_t cuda_on_cpu_error; /* the last one */
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu_error, cudaSuccess); }
inline const char *cudaGetErrorString(cudaError_t e) {
    static const char *const text[] = {"no error", "invalid argument", "out of memory"};
    return text[e];
}
inline cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cuda_on_cpu_error = cudaErrorInvalidValue;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    *p = {"CPU", (size_t)8 << 30, on_cpu::SHARED_MOST, 4, 9, 0};
    return cudaSetDevice(device);
}
inline cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = NULL, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
template <typename T> cudaError_t cudaMalloc(T **p, size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 256, bytes)) return cuda_on_cpu_error = cudaErrorMemoryAllocation;
    *p = (T *)memset(memory, 0xff, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *p) { return free(p), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind, void *) {
    if (n) memcpy(to, from, n);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void *to, int byte, size_t n, cudaStream_t) {
    if (n) memset(to, byte, n);
    return cudaSuccess;
}
template <typename F> cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int bytes) {
    if (bytes < 0 || bytes > on_cpu::SHARED_MOST) return cuda_on_cpu_error = cudaErrorInvalidValue;
    on_cpu::limit_of((const void *)kernel, (size_t)bytes);
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------
 * cuBLASLt. Matrices lie column by column: D = alpha op(A) op(B) + beta C + a bias for each row. */

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };

struct cublasLtMatmulDescOpaque_t {
    cublasOperation_t ta, tb;
    cublasLtEpilogue_t epilogue;
    cudaDataType_t bias_type;
    const void *bias;
};
struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType_t type;
    int64_t rows, columns, ld, stride;
    int32_t batch;
    float get(const void *x, int64_t q, int64_t i, int64_t j) const { /* (i, j) of matrix q */
        const int64_t at = q * stride + j * ld + i;
        if (type == CUDA_R_32F) return ((const float *)x)[at];
        return __bfloat162float(((const __nv_bfloat16 *)x)[at]);
    }
};
struct cublasLtMatmulAlgo_t {
    uint32_t a, b, c, d; /* bytes to which it expects the matrices to be aligned */
    size_t workspace;
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
};
typedef void *cublasLtHandle_t;
typedef cublasLtMatmulDescOpaque_t *cublasLtMatmulDesc_t;
typedef cublasLtMatrixLayoutOpaque_t *cublasLtMatrixLayout_t;
typedef cublasLtMatmulAlgo_t *cublasLtMatmulPreference_t;
typedef uint32_t cublasLtMatmulAlgo_t::*cublasLtMatmulPreferenceAttributes_t;

/* An attribute is the field that it sets. */
#define CUBLASLT_MATMUL_DESC_TRANSA &cublasLtMatmulDescOpaque_t::ta
#define CUBLASLT_MATMUL_DESC_TRANSB &cublasLtMatmulDescOpaque_t::tb
#define CUBLASLT_MATMUL_DESC_EPILOGUE &cublasLtMatmulDescOpaque_t::epilogue
#define CUBLASLT_MATMUL_DESC_BIAS_POINTER &cublasLtMatmulDescOpaque_t::bias
#define CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE &cublasLtMatmulDescOpaque_t::bias_type
#define CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT &cublasLtMatrixLayoutOpaque_t::batch
#define CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET &cublasLtMatrixLayoutOpaque_t::stride
#define CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &cublasLtMatmulAlgo_t::workspace
#define CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &cublasLtMatmulAlgo_t::a
#define CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES &cublasLtMatmulAlgo_t::b
#define CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES &cublasLtMatmulAlgo_t::c
#define CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES &cublasLtMatmulAlgo_t::d
#define cublasLtMatmulDescSetAttribute on_cpu::set
#define cublasLtMatrixLayoutSetAttribute on_cpu::set
#define cublasLtMatmulPreferenceSetAttribute on_cpu::set
#define cublasLtMatmulDescDestroy on_cpu::destroy
#define cublasLtMatrixLayoutDestroy on_cpu::destroy
#define cublasLtMatmulPreferenceDestroy on_cpu::destroy

namespace on_cpu {
template <typename S, typename T>
cublasStatus_t set(S *s, T S::*field, const void *value, size_t bytes) {
    if (bytes != sizeof(T)) fail("cuBLASLt: an attribute of %zu bytes", bytes);
    memcpy(&(s->*field), value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
template <typename S> cublasStatus_t destroy(S *s) { return delete s, CUBLAS_STATUS_SUCCESS; }

/* Aborts when the sizes do not fit together; says whether cuBLASLt has the types. */
inline cublasStatus_t check(cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a,
                            cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                            cublasLtMatrixLayout_t d) {
    const int64_t k = p->ta ? a->rows : a->columns;
    bool fit = d->rows > 0 && d->columns > 0 && k > 0 && k == (p->tb ? b->columns : b->rows);
    fit = fit && d->rows == (p->ta ? a->columns : a->rows) && d->rows == c->rows;
    fit = fit && d->columns == (p->tb ? b->rows : b->columns) && d->columns == c->columns;
    for (auto x : {a, b, c, d}) fit = fit && x->ld >= x->rows && x->batch == d->batch;
    if (!fit) fail("cuBLASLt: the matrices of a product do not fit together");
    bool known = a->type == b->type && c->type == d->type;
    known = known && (a->type == CUDA_R_16BF || d->type == CUDA_R_32F);
    known = known && (p->epilogue != CUBLASLT_EPILOGUE_BIAS || p->bias_type == d->type);
    return known ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* The columns of matrix q, or with `rows` its rows, one after another as floats. Zeros fill each up
 * to a multiple of eight values. */
inline std::vector<float> unpack(const void *x, cublasLtMatrixLayout_t l, int64_t q, bool rows) {
    const int64_t n = rows ? l->rows : l->columns, k = rows ? l->columns : l->rows;
    std::vector<float> all;
    for (int64_t i = 0; i < n; i++, all.resize((all.size() + 7) / 8 * 8))
        for (int64_t s = 0; s < k; s++)
            all.push_back(rows ? l->get(x, q, i, s) : l->get(x, q, s, i));
    return all;
}

/* Compilers make vectors of the sums. Sanitizers would find nothing: all memory is unpack's. */
CUDA_ON_CPU_UNSEEN inline float dot(const float *x, const float *y, int64_t k) {
    float sum[8] = {};
    for (int64_t s = 0; s < k; s += 8)
        for (int i = 0; i < 8; i++) sum[i] += x[s + i] * y[s + i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}
} // namespace on_cpu

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *p, cublasComputeType_t,
                                               cudaDataType_t) {
    return *p = new cublasLtMatmulDescOpaque_t(), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type,
                                                 uint64_t rows, uint64_t columns, int64_t ld) {
    *l = new cublasLtMatrixLayoutOpaque_t{type, (int64_t)rows, (int64_t)columns, ld, 0, 1};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return *p = new cublasLtMatmulAlgo_t{256, 256, 256, 256, 0}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a,
                               cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                               cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int,
                               cublasLtMatmulHeuristicResult_t *result, int *found) {
    cublasStatus_t status = on_cpu::check(p, a, b, c, d);
    result->algo = *preference;
    *found = status == CUBLAS_STATUS_SUCCESS;
    return status;
}
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t p, const void *alpha,
                                     const void *A, cublasLtMatrixLayout_t a, const void *B,
                                     cublasLtMatrixLayout_t b, const void *beta, const void *C,
                                     cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                                     const cublasLtMatmulAlgo_t *algorithm, void *, size_t,
                                     cudaStream_t) {
    const float scale = *(const float *)alpha, keep = *(const float *)beta;
    const size_t k = ((size_t)(p->ta ? a->rows : a->columns) + 7) / 8 * 8;
    cublasStatus_t status = on_cpu::check(p, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if ((uintptr_t)A % algorithm->a || (uintptr_t)B % algorithm->b ||
        (keep != 0 && (uintptr_t)C % algorithm->c) || (uintptr_t)D % algorithm->d)
        on_cpu::fail("cuBLASLt: a matrix is not aligned as the algorithm expects");
    for (int64_t q = 0; q < d->batch; q++) {
        const std::vector<float> left = on_cpu::unpack(A, a, q, !p->ta);
        const std::vector<float> right = on_cpu::unpack(B, b, q, p->tb);
        for (int64_t n = 0; n < d->rows * d->columns; n++) {
            const int64_t i = n % d->rows, j = n / d->rows, at = q * d->stride + j * d->ld + i;
            float x = scale * on_cpu::dot(&left[(size_t)i * k], &right[(size_t)j * k], (int64_t)k);
            if (keep != 0) x += keep * c->get(C, q, i, j);
            if (p->epilogue == CUBLASLT_EPILOGUE_BIAS) x += d->get(p->bias, 0, i, 0);
            if (d->type == CUDA_R_32F)
                ((float *)D)[at] = x;
            else
                ((__nv_bfloat16 *)D)[at] = __float2bfloat16_rn(x);
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

#endif
