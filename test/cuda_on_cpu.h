/* cuda_on_cpu.h - runs CUDA kernels on the CPU, from the source that nvcc compiles, in tests. MIT.

   lib/cuda.h includes it under -DCUDA_ON_CPU. It offers what that header and the kernels use of
   CUDA, and a plain cuBLASLt. Device memory is host memory; a stream finishes each call at once.

   ORDER      The blocks of a launch run in order. A thread runs until it waits for others; then a
              thread that may continue does so, or the next one starts. Thus a warp gets as far as
              it can before the next. CUDA_ORDER=reverse in the environment reverses the order of
              blocks and of threads.
   FINDS      a missing barrier: a thread reads what another one has not written yet. A missing
              copy_wait: only that call makes the copies. Uninitialised memory: it is NaN. Barriers
              and warp operations that some threads do not reach, deadlocks, misaligned addresses
              of copies, matrices and products, shared memory above the limit of the kernel. Overruns of
              device and shared memory, under -fsanitize=address.
   DOES NOT   find races that neither order shows, in particular inside a warp in lockstep; host
              code that reads device memory, or kernels that read the host's. It says nothing about
              time, registers, and the last bits of expf and the like.
   FAILURES   a message on stderr and abort()
   THREADS    each pthread of the host has an emulator of its own */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined __SANITIZE_ADDRESS__ || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDA_ON_CPU_ASAN(...) __VA_ARGS__
#define CUDA_ON_CPU_SWAPCONTEXT
#else
#define CUDA_ON_CPU_ASAN(...)
#endif
#if defined _FORTIFY_SOURCE && _FORTIFY_SOURCE > 0
#define CUDA_ON_CPU_SWAPCONTEXT
#endif
#define CUDA_ON_CPU_LINE int line = __builtin_LINE() /* of the caller */

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

template <typename T> struct alignas(2 * sizeof(T)) CudaTwo { T x, y; };
template <typename T> struct alignas(4 * sizeof(T)) CudaFour { T x, y, z, w; };
typedef CudaTwo<float> float2;
typedef CudaTwo<unsigned> uint2;
typedef CudaFour<float> float4;
typedef CudaFour<unsigned> uint4;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

namespace on_cpu {
template <typename To, typename From> inline To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline float reciprocal_root(float x) { return 1 / sqrtf(x); }
} // namespace on_cpu

inline unsigned __float_as_uint(float x) { return on_cpu::same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return on_cpu::same_bits<float>(x); }

/* One rounding each. They are calls, so that the compiler does not merge a product and a sum. */
#define CUDA_ON_CPU_ROUNDED __attribute__((noinline)) inline float
CUDA_ON_CPU_ROUNDED __fadd_rn(float x, float y) { return x + y; }
CUDA_ON_CPU_ROUNDED __fsub_rn(float x, float y) { return x - y; }
CUDA_ON_CPU_ROUNDED __fmul_rn(float x, float y) { return x * y; }
CUDA_ON_CPU_ROUNDED __fdiv_rn(float x, float y) { return x / y; }
CUDA_ON_CPU_ROUNDED __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
CUDA_ON_CPU_ROUNDED __fsqrt_rn(float x) { return sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
#define rsqrtf(x) on_cpu::reciprocal_root(x) /* newer C libraries declare a function rsqrtf */

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T> inline T min(T a, T b) { return a < b ? a : b; }
template <typename T> inline T max(T a, T b) { return a > b ? a : b; }

struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned u = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)}; /* ties to even */
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}

/* ------------------------------------------------------------------------------------------------
 * scheduling the threads of a block */

namespace on_cpu {
enum { LANES = 32, MOST_THREADS = 1024, MOST_COPIES = 1024 };
enum { PAGE = 4096, STACK = (256 << 10) + PAGE };          /* the lowest page is a guard */
enum { SHARED_USUAL = 48 << 10, SHARED_MOST = 227 << 10 }; /* bytes, of an H100 */

/* A stack on which threads run, one after another until one of them waits. */
struct Fiber {
    ucontext_t context;
    jmp_buf jump; /* where it was left */
    bool begun;
    const void *stack;
    size_t bytes;
    void *fake_stack; /* of ASan */
    Fiber *next_free;
};
struct Copy {
    void *to;
    const void *from;
    bool here;
    int group;
};
typedef void Serve(void **request); /* does an operation of a warp, for the requests of its lanes */
struct Thread {
    uint3 index;
    Fiber *fiber;
    bool returned;
    const char *waits_at; /* NULL when it runs or may continue */
    int line;             /* in the source, of what it waits at */
    Serve *serve;
    void *request;
    int copies, groups; /* copies under way, groups committed */
    Copy copy[MOST_COPIES];
};
struct Warp {
    int waiting, returned;
};
struct Machine {
    Fiber main, fiber[MOST_THREADS], *running, *before, *free;
    Thread thread[MOST_THREADS], *self;
    Warp warp[MOST_THREADS / LANES];
    Thread *ready[MOST_THREADS]; /* the last one continues first */
    int fibers, threads, started, returned, at_barrier, readies;
    bool reverse;
    char *shared;
    size_t shared_bytes;
    const char *kernel; /* its name during a launch */
    void (*call)(const void *);
    const void *arguments;
    alignas(PAGE) char stack[MOST_THREADS][STACK];
};
inline thread_local Machine *machine;

[[noreturn]] inline __attribute__((format(printf, 1, 2))) void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "cuda_on_cpu: ");
    vfprintf(stderr, format, list);
    va_end(list);
    int started = 0;
    if (machine && machine->kernel) {
        started = machine->threads;
        fprintf(stderr, "\n  kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", machine->kernel,
                blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    }
    for (int i = 0, j; i < started; i = j) {
        const Thread *t = &machine->thread[i];
        for (j = i + 1; j < started; j++)
            if (t[j - i].waits_at != t->waits_at || t[j - i].line != t->line) break;
        if (t->waits_at)
            fprintf(stderr, "\n  threads %d-%d wait at %s, line %d", i, j - 1, t->waits_at,
                    t->line);
    }
    fprintf(stderr, "\n");
    abort();
}

inline __attribute__((noinline)) void arrive() {
    CUDA_ON_CPU_ASAN(__sanitizer_finish_switch_fiber(
        machine->running->fake_stack, &machine->before->stack, &machine->before->bytes));
}

/* swapcontext calls the kernel each time, longjmp does not. But ASan and glibc's fortification
 * take a jump to another stack for an error. */
inline __attribute__((noinline)) void switch_to(Fiber *to) {
    Fiber *from = machine->running;
    if (to == from) return;
    machine->before = from, machine->running = to;
    CUDA_ON_CPU_ASAN(__sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes));
#ifdef CUDA_ON_CPU_SWAPCONTEXT
    swapcontext(&from->context, &to->context);
#else
    if (_setjmp(from->jump) == 0) {
        if (to->begun) _longjmp(to->jump, 1);
        to->begun = true;
        setcontext(&to->context);
    }
#endif
    arrive();
}

inline void fiber_main();
inline Fiber *new_fiber() {
    int i = machine->fibers++;
    Fiber *f = &machine->fiber[i];
    f->stack = machine->stack[i], f->bytes = STACK;
    mprotect(machine->stack[i], PAGE, PROT_NONE);
    getcontext(&f->context);
    f->context.uc_link = NULL;
    f->context.uc_stack.ss_sp = machine->stack[i];
    f->context.uc_stack.ss_size = STACK - (size_t)i % 61 * 64; /* tops in different cache sets */
    makecontext(&f->context, fiber_main, 0);
    f->context.uc_stack.ss_size = 0; /* or ASan's swapcontext forgets the variables on the stack */
    return f;
}

/* A thread that may continue, else a fiber that starts the next thread, else the launch. */
inline Fiber *next_fiber() {
    if (machine->readies) return machine->ready[--machine->readies]->fiber;
    if (machine->started == machine->threads) {
        if (machine->returned < machine->threads) fail("deadlock");
        return &machine->main;
    }
    Fiber *f = machine->free;
    if (f) machine->free = f->next_free;
    return f ? f : new_fiber();
}

inline __attribute__((noinline)) void wait_for_others() {
    Thread *self = machine->self;
    switch_to(next_fiber());
    machine->self = self;
    threadIdx = self->index;
}

/* Those of `count` threads that have not returned may continue. */
inline void release(Thread *first, int count) {
    for (int i = 0; i < count; i++) {
        Thread *t = first + (machine->reverse ? i : count - 1 - i);
        if (t->returned) continue;
        t->waits_at = NULL;
        machine->ready[machine->readies++] = t;
    }
}

inline void release_barrier() {
    int line = 0;
    for (int i = 0; i < machine->threads; i++) {
        const Thread *t = &machine->thread[i];
        if (t->returned) continue;
        if (line && t->line != line) fail("threads wait at different __syncthreads");
        line = t->line;
    }
    machine->at_barrier = 0;
    release(machine->thread, machine->threads);
}

/* An operation of a whole warp: the last lane to arrive serves all. */
inline void meet(const char *name, int line, unsigned mask, Serve *serve, void *request) {
    Thread *self = machine->self;
    Thread *first = self - (self - machine->thread) % LANES;
    Warp *w = &machine->warp[(first - machine->thread) / LANES];
    self->waits_at = name, self->line = line, self->serve = serve, self->request = request;
    if (mask != 0xffffffffu) fail("%s of a part of a warp", name);
    if (w->returned) fail("%s after a lane of the warp has returned", name);
    if (++w->waiting == LANES) {
        void *all[LANES];
        for (int i = 0; i < LANES; i++) {
            if (first[i].serve != serve || first[i].line != line)
                fail("the lanes of a warp wait at different operations");
            all[i] = first[i].request;
        }
        serve(all);
        w->waiting = 0;
        release(first, LANES);
    }
    wait_for_others();
}

inline void run_thread() {
    int i = machine->started++;
    if (machine->reverse) i = machine->threads - 1 - i;
    Thread *t = machine->self = &machine->thread[i];
    Warp *w = &machine->warp[i / LANES];
    t->fiber = machine->running;
    threadIdx = t->index;
    machine->call(machine->arguments);
    if (t->copies) fail("a thread returns without copy_wait for %d copies", t->copies);
    if (w->waiting) fail("a thread returns, but its warp waits for it");
    t->returned = true;
    w->returned++;
    machine->returned++;
    if (machine->at_barrier && machine->at_barrier + machine->returned == machine->threads)
        release_barrier();
}
inline void fiber_main() {
    arrive();
    for (;;) {
        run_thread();
        machine->running->next_free = machine->free;
        machine->free = machine->running;
        switch_to(next_fiber());
    }
}

/* ------------------------------------------------------------------------------------------------
 * launches */

inline pthread_key_t at_exit_of_pthread;
inline pthread_once_t once = PTHREAD_ONCE_INIT;
inline void free_machine(void *p) {
    CUDA_ON_CPU_ASAN(__asan_unpoison_memory_region(((Machine *)p)->stack, sizeof machine->stack));
    munmap(p, sizeof(Machine));
}
inline void new_machine() {
    /* zeros; pages that nobody touches cost nothing */
    void *p = mmap(NULL, sizeof(Machine), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no memory");
    machine = (Machine *)p;
    machine->running = &machine->main;
    machine->main.begun = true;
    const char *order = getenv("CUDA_ORDER");
    machine->reverse = order && strcmp(order, "reverse") == 0;
    pthread_once(&once, [] { pthread_key_create(&at_exit_of_pthread, free_machine); });
    pthread_setspecific(at_exit_of_pthread, p);
}

/* The shared memory that a kernel may have; cudaFuncSetAttribute changes it. */
struct Limit {
    const void *kernel;
    size_t bytes;
};
inline Limit limits[512];
inline pthread_mutex_t limits_lock = PTHREAD_MUTEX_INITIALIZER;
inline size_t *limit_of(const void *kernel) {
    pthread_mutex_lock(&limits_lock);
    Limit *l = limits;
    while (l < limits + 511 && l->kernel && l->kernel != kernel) l++;
    if (!l->kernel) *l = {kernel, SHARED_USUAL};
    pthread_mutex_unlock(&limits_lock);
    if (l->kernel != kernel) fail("too many kernels");
    return &l->bytes;
}

inline void run_block() {
    memset(machine->shared, 0xff, machine->shared_bytes);
    memset(machine->warp, 0, sizeof machine->warp);
    machine->started = machine->returned = 0;
    for (int i = 0; i < machine->threads; i++) {
        Thread *t = &machine->thread[i];
        t->returned = false;
        t->copies = t->groups = 0;
    }
    switch_to(next_fiber());
}

inline void run(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                void (*call)(const void *), const void *arguments) {
    size_t threads = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
    void *memory = NULL;
    if (!machine) new_machine();
    if (machine->kernel) fail("kernel %s launches %s", machine->kernel, name);
    if (!threads || threads > MOST_THREADS || threads % LANES)
        fail("%s: a block of %zu threads, not of whole warps up to 1024", name, threads);
    if (!blocks || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        fail("%s: a grid of (%u, %u, %u) blocks", name, grid.x, grid.y, grid.z);
    if (shared > *limit_of(kernel))
        fail("%s: %zu bytes of shared memory need cudaFuncSetAttribute", name, shared);
    if (posix_memalign(&memory, 128, shared)) fail("no memory");
    machine->kernel = name, machine->call = call, machine->arguments = arguments;
    machine->shared = (char *)memory, machine->shared_bytes = shared;
    machine->threads = (int)threads;
    blockDim = block, gridDim = grid;
    for (unsigned i = 0; i < threads; i++)
        machine->thread[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    for (size_t n = 0; n < blocks; n++) {
        size_t i = machine->reverse ? blocks - 1 - n : n;
        blockIdx = {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y),
                    (unsigned)(i / grid.x / grid.y)};
        run_block();
    }
    free(memory);
    machine->kernel = NULL;
}

template <typename... P> struct Launch {
    const char *name;
    void (*kernel)(P...);
    dim3 grid, block;
    size_t shared;
    void operator()(P... p) const {
        auto thread = [&] { kernel(p...); };
        auto call = [](const void *f) { (*(const decltype(thread) *)f)(); };
        run(name, (const void *)kernel, grid, block, shared, call, &thread);
    }
};
template <typename... P>
inline Launch<P...> launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block,
                           size_t shared, const void *) {
    return {name, kernel, grid, block, shared};
}

/* ------------------------------------------------------------------------------------------------
 * operations of warps and blocks */

template <typename T> struct Shuffle {
    T in, out;
    int source;
};
template <typename T> inline void serve_shuffle(void **request) {
    Shuffle<T> **lane = (Shuffle<T> **)request;
    for (int i = 0; i < LANES; i++) lane[i]->out = lane[lane[i]->source]->in;
}
template <typename T> inline T shuffle(const char *name, int line, unsigned mask, T x, int source) {
    Shuffle<T> request = {x, x, source};
    meet(name, line, mask, serve_shuffle<T>, &request);
    return request.out;
}
inline int lane() { return (int)(machine->self - machine->thread) % LANES; }

inline void serve_nothing(void **) {}
inline void serve_ballot(void **request) {
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= *(unsigned *)request[i] << i;
    for (int i = 0; i < LANES; i++) *(unsigned *)request[i] = bits;
}

struct Mma {
    float *d;
    const uint32_t *a, *b;
};
inline void serve_mma(void **request) {
    Mma **lane = (Mma **)request;
    float a[16][16], b[16][8];
    for (int i = 0; i < LANES; i++) {
        int g = i / 4, t = i % 4 * 2;
        for (int half = 0; half < 2; half++) {
            auto value = [=](uint32_t pair) { return __uint_as_float(pair >> 16 * half << 16); };
            for (int j = 0; j < 4; j++)
                a[g + j % 2 * 8][t + j / 2 * 8 + half] = value(lane[i]->a[j]);
            for (int j = 0; j < 2; j++) b[t + 8 * j + half][g] = value(lane[i]->b[j]);
        }
    }
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < 16; k++)
                lane[i]->d[j] += a[i / 4 + j / 2 * 8][k] * b[k][i % 4 * 2 + j % 2];
}

struct Rows {
    const void *row;
    uint32_t *r;
};
template <bool TRANSPOSED> inline void serve_rows(void **request) {
    Rows **lane = (Rows **)request;
    for (int i = 0; i < 4; i++) {
        uint16_t x[8][8];
        for (int j = 0; j < 8; j++) memcpy(x[j], lane[8 * i + j]->row, 16);
        for (int l = 0; l < LANES; l++) {
            int g = l / 4, t = l % 4 * 2;
            uint32_t low = TRANSPOSED ? x[t][g] : x[g][t];
            uint32_t high = TRANSPOSED ? x[t + 1][g] : x[g][t + 1];
            lane[l]->r[i] = low | high << 16;
        }
    }
}

/* 16 aligned bytes of the shared memory, or a failure */
inline void check_shared(const char *name, const void *p) {
    size_t at = (size_t)((uintptr_t)p - (uintptr_t)machine->shared);
    if (at % 16) fail("%s: address %p is not aligned", name, p);
    if (at >= machine->shared_bytes || machine->shared_bytes - at < 16)
        fail("%s: address %p is not in the shared memory", name, p);
}
inline void load_rows(const char *name, int line, Serve *serve, uint32_t *r, const void *row) {
    Rows request = {row, r};
    check_shared(name, row);
    meet(name, line, 0xffffffffu, serve, &request);
}
} // namespace on_cpu

inline void __syncthreads(CUDA_ON_CPU_LINE) {
    on_cpu::Machine *m = on_cpu::machine;
    m->self->waits_at = "__syncthreads", m->self->line = line;
    if (++m->at_barrier + m->returned == m->threads) on_cpu::release_barrier();
    on_cpu::wait_for_others();
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_LINE) {
    on_cpu::meet("__syncwarp", line, mask, on_cpu::serve_nothing, NULL);
}
template <typename T> inline T __shfl_sync(unsigned mask, T x, int from, CUDA_ON_CPU_LINE) {
    return on_cpu::shuffle("__shfl_sync", line, mask, x, from & 31);
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T x, int bits, CUDA_ON_CPU_LINE) {
    return on_cpu::shuffle("__shfl_xor_sync", line, mask, x, (on_cpu::lane() ^ bits) & 31);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T x, unsigned by, CUDA_ON_CPU_LINE) {
    int own = on_cpu::lane(), from = own + (int)by;
    return on_cpu::shuffle("__shfl_down_sync", line, mask, x, from < 32 ? from : own);
}
inline unsigned __ballot_sync(unsigned mask, int yes, CUDA_ON_CPU_LINE) {
    unsigned bits = yes != 0;
    on_cpu::meet("__ballot_sync", line, mask, on_cpu::serve_ballot, &bits);
    return bits;
}
inline int __any_sync(unsigned mask, int yes, CUDA_ON_CPU_LINE) {
    return __ballot_sync(mask, yes, line) != 0;
}

/* These are described in lib/cuda.h. */
inline float exp2_fast(float x) { return exp2f(x); }
inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], CUDA_ON_CPU_LINE) {
    on_cpu::Mma request = {d, a, b};
    on_cpu::meet("mma_bf16", line, 0xffffffffu, on_cpu::serve_mma, &request);
}
inline void load_matrices(uint32_t r[4], const void *row, CUDA_ON_CPU_LINE) {
    on_cpu::load_rows("load_matrices", line, on_cpu::serve_rows<false>, r, row);
}
inline void load_matrices_transposed(uint32_t r[4], const void *row, CUDA_ON_CPU_LINE) {
    on_cpu::load_rows("load_matrices_transposed", line, on_cpu::serve_rows<true>, r, row);
}

/* The copy may happen at any time from now on: until copy_wait makes it, `shared` holds NaN. */
inline void copy_async(void *shared, const void *global, bool here) {
    on_cpu::Thread *t = on_cpu::machine->self;
    on_cpu::check_shared("copy_async", shared);
    if ((uintptr_t)global % 16) on_cpu::fail("copy_async: source %p is not aligned", global);
    if (t->copies == on_cpu::MOST_COPIES) on_cpu::fail("too many copies under way");
    t->copy[t->copies++] = {shared, global, here, t->groups};
    memset(shared, 0xff, 16);
}
inline void copy_commit() { on_cpu::machine->self->groups++; }
template <int N> inline void copy_wait() {
    on_cpu::Thread *t = on_cpu::machine->self;
    int done = 0;
    for (; done < t->copies && t->copy[done].group < t->groups - N; done++) {
        const on_cpu::Copy *c = &t->copy[done];
        static const char zeros[16] = {};
        memcpy(c->to, c->here ? c->from : zeros, 16);
    }
    t->copies -= done;
    if (done) memmove(t->copy, t->copy + done, (size_t)t->copies * sizeof *t->copy);
}

/* ------------------------------------------------------------------------------------------------
 * runtime */

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDefault = 4 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
typedef struct cuda_on_cpu_stream *cudaStream_t;
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int multiProcessorCount, major, minor;
};

namespace on_cpu {
inline thread_local cudaError_t last_error;
inline cudaError_t result(cudaError_t e) { return e == cudaSuccess ? e : last_error = e; }
} // namespace on_cpu
inline cudaError_t cudaGetLastError() {
    cudaError_t e = on_cpu::last_error;
    on_cpu::last_error = cudaSuccess;
    return e;
}
inline const char *cudaGetErrorString(cudaError_t e) {
    const char *text[] = {"no error", "invalid argument", "out of memory"};
    return text[e];
}
inline cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    return on_cpu::result(device == 0 ? cudaSuccess : cudaErrorInvalidValue);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    *p = {"CPU", (size_t)8 << 30, on_cpu::SHARED_USUAL, on_cpu::SHARED_MOST, 4, 9, 0};
    return on_cpu::result(device == 0 ? cudaSuccess : cudaErrorInvalidValue);
}
inline cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    return *left = *total = (size_t)8 << 30, cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = NULL, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

template <typename T> inline cudaError_t cudaMalloc(T **p, size_t bytes) {
    void *memory = NULL;
    *p = NULL;
    if (posix_memalign(&memory, 256, bytes)) return on_cpu::result(cudaErrorMemoryAllocation);
    *p = (T *)memset(memory, 0xff, bytes);
    return cudaSuccess;
}
template <typename T> inline cudaError_t cudaMallocHost(T **p, size_t n) {
    return cudaMalloc(p, n);
}
inline cudaError_t cudaFree(void *p) { return free(p), cudaSuccess; }
inline cudaError_t cudaFreeHost(void *p) { return free(p), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind,
                                   cudaStream_t) {
    if (n) memcpy(to, from, n);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void *to, int byte, size_t n, cudaStream_t) {
    if (n) memset(to, byte, n);
    return cudaSuccess;
}
template <typename F> inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int n) {
    if (n < 0 || n > on_cpu::SHARED_MOST) return on_cpu::result(cudaErrorInvalidValue);
    *on_cpu::limit_of((const void *)kernel) = (size_t)n;
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------
 * cuBLASLt. Matrices lie column by column: D = alpha op(A) op(B) + beta C + a bias for each row. */

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
typedef cudaDataType cudaDataType_t;
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };

struct cuda_on_cpu_product {
    cublasOperation_t ta, tb;
    cublasLtEpilogue_t epilogue;
    cudaDataType bias_type;
    const void *bias;
};
struct cuda_on_cpu_layout {
    cudaDataType type;
    int32_t batch;
    int64_t rows, columns, ld, stride;
};
typedef struct cuda_on_cpu_blas *cublasLtHandle_t;
typedef cuda_on_cpu_product *cublasLtMatmulDesc_t;
typedef cuda_on_cpu_layout *cublasLtMatrixLayout_t;
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
};
struct cublasLtMatmulAlgo_t {
    uint32_t alignment[4]; /* bytes, that the algorithm expects of A B C D */
};
typedef cublasLtMatmulAlgo_t *cublasLtMatmulPreference_t;
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
};

/* An attribute is the field that it sets. */
#define CUBLASLT_MATMUL_DESC_TRANSA &cuda_on_cpu_product::ta
#define CUBLASLT_MATMUL_DESC_TRANSB &cuda_on_cpu_product::tb
#define CUBLASLT_MATMUL_DESC_EPILOGUE &cuda_on_cpu_product::epilogue
#define CUBLASLT_MATMUL_DESC_BIAS_POINTER &cuda_on_cpu_product::bias
#define CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE &cuda_on_cpu_product::bias_type
#define CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT &cuda_on_cpu_layout::batch
#define CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET &cuda_on_cpu_layout::stride
#define cublasLtMatmulDescSetAttribute on_cpu::set
#define cublasLtMatrixLayoutSetAttribute on_cpu::set
#define cublasLtMatmulPreferenceDestroy on_cpu::destroy
#define cublasLtMatmulDescDestroy on_cpu::destroy
#define cublasLtMatrixLayoutDestroy on_cpu::destroy
#define cublasLtCreate on_cpu::nothing
#define cublasLtDestroy on_cpu::nothing

namespace on_cpu {
template <typename T> inline cublasStatus_t create(T **p, const T &value) {
    *p = (T *)malloc(sizeof(T));
    if (!*p) fail("no memory");
    **p = value;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t destroy(void *p) { return free(p), CUBLAS_STATUS_SUCCESS; }
template <typename... Any> inline cublasStatus_t nothing(Any...) { return CUBLAS_STATUS_SUCCESS; }
template <typename T, typename F>
inline cublasStatus_t set(T *p, F T::*field, const void *value, size_t bytes) {
    if (bytes != sizeof(F)) fail("cuBLASLt: an attribute of %zu bytes", bytes);
    memcpy(&(p->*field), value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

inline float element(const void *x, cudaDataType type, int64_t i) {
    return type == CUDA_R_32F ? ((const float *)x)[i]
                              : __bfloat162float(((const __nv_bfloat16 *)x)[i]);
}

/* The n x k matrix whose (i, s) is x[at + i * step_i + s * step_s], as strips of W rows: the W
 * values of each s lie together. The last strip is filled with zeros. The caller frees it. */
template <int W>
inline float *pack(const void *x, cudaDataType type, int64_t at, int64_t n, int64_t k,
                   int64_t step_i, int64_t step_s) {
    void *strips = NULL;
    if (posix_memalign(&strips, 32, (size_t)((n + W - 1) / W * W * k) * 4)) fail("no memory");
    float *p = (float *)strips;
    for (int64_t first = 0; first < n; first += W)
        for (int64_t s = 0; s < k; s++)
            for (int64_t i = first; i < first + W; i++)
                *p++ = i < n ? element(x, type, at + i * step_i + s * step_s) : 0;
    return (float *)strips;
}

/* sum[j][i] = sum over s < k of a[8s + i] b[4s + j] */
typedef float Eight __attribute__((vector_size(32)));
inline void tile(Eight sum[4], const float *a, const float *b, int64_t k) {
    Eight s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (; k > 0; k--, a += 8, b += 4) {
        const Eight x = *(const Eight *)(const void *)a;
        s0 += x * b[0], s1 += x * b[1], s2 += x * b[2], s3 += x * b[3];
    }
    sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3;
}

/* Aborts when the sizes do not fit together; says whether cuBLASLt has the types. */
typedef cuda_on_cpu_layout Layout;
inline cublasStatus_t check(const cuda_on_cpu_product *p, const Layout *a, const Layout *b,
                            const Layout *c, const Layout *d) {
    int64_t m = p->ta ? a->columns : a->rows, k = p->ta ? a->rows : a->columns;
    int64_t n = p->tb ? b->rows : b->columns, k2 = p->tb ? b->columns : b->rows;
    bool fit = m > 0 && n > 0 && k > 0 && k == k2;
    fit = fit && d->rows == m && d->columns == n && c->rows == m && c->columns == n;
    fit = fit && a->ld >= a->rows && b->ld >= b->rows && c->ld >= m && d->ld >= m;
    fit = fit && a->batch == d->batch && b->batch == d->batch && c->batch == d->batch;
    if (!fit) fail("cuBLASLt: the matrices of a product do not fit together");
    bool known = a->type == b->type && c->type == d->type;
    known = known && (p->epilogue != CUBLASLT_EPILOGUE_BIAS || p->bias_type == d->type);
    known = known && (a->type == CUDA_R_16BF || d->type == CUDA_R_32F);
    return known ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
} // namespace on_cpu

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *p, cublasComputeType_t,
                                               cudaDataType) {
    return on_cpu::create(p, {CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, {}, NULL});
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                                 uint64_t rows, uint64_t columns, int64_t ld) {
    return on_cpu::create(l, {type, 1, (int64_t)rows, (int64_t)columns, ld, 0});
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return on_cpu::create(p, {{256, 256, 256, 256}});
}
inline cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                     cublasLtMatmulPreferenceAttributes_t what, const void *value,
                                     size_t bytes) {
    if (what != CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) memcpy(&p->alignment[what], value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a,
                               cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                               cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int,
                               cublasLtMatmulHeuristicResult_t *result, int *found) {
    cublasStatus_t s = on_cpu::check(p, a, b, c, d);
    result->algo = *preference;
    *found = s == CUBLAS_STATUS_SUCCESS;
    return s;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t p, const void *alpha,
                                     const void *A, cublasLtMatrixLayout_t a, const void *B,
                                     cublasLtMatrixLayout_t b, const void *beta, const void *C,
                                     cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                                     const cublasLtMatmulAlgo_t *algorithm, void *, size_t,
                                     cudaStream_t) {
    const float scale = *(const float *)alpha, keep = *(const float *)beta;
    const int64_t m = d->rows, n = d->columns, k = p->ta ? a->rows : a->columns;
    cublasStatus_t s = on_cpu::check(p, a, b, c, d);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    const void *pointer[4] = {A, B, keep != 0 ? C : NULL, D};
    for (int i = 0; i < 4; i++)
        if (algorithm && (uintptr_t)pointer[i] % algorithm->alignment[i])
            on_cpu::fail("cuBLASLt: matrix %c is not aligned as the algorithm expects", "ABCD"[i]);
    for (int q = 0; q < d->batch; q++) {
        float *pa =
            on_cpu::pack<8>(A, a->type, q * a->stride, m, k, p->ta ? a->ld : 1, p->ta ? 1 : a->ld);
        float *pb =
            on_cpu::pack<4>(B, b->type, q * b->stride, n, k, p->tb ? 1 : b->ld, p->tb ? b->ld : 1);
        for (int64_t strip = 0; strip < (n + 3) / 4 * ((m + 7) / 8); strip++) {
            const int64_t i0 = strip % ((m + 7) / 8) * 8, j0 = strip / ((m + 7) / 8) * 4;
            on_cpu::Eight sum[4];
            on_cpu::tile(sum, pa + i0 * k, pb + j0 * k, k);
            for (int64_t j = j0; j < n && j < j0 + 4; j++)
                for (int64_t i = i0; i < m && i < i0 + 8; i++) {
                    const int64_t at = q * d->stride + j * d->ld + i;
                    float x = scale * sum[j - j0][i - i0];
                    if (keep != 0)
                        x += keep * on_cpu::element(C, c->type, q * c->stride + j * c->ld + i);
                    if (p->epilogue == CUBLASLT_EPILOGUE_BIAS)
                        x += on_cpu::element(p->bias, p->bias_type, i);
                    if (d->type == CUDA_R_32F)
                        ((float *)D)[at] = x;
                    else
                        ((__nv_bfloat16 *)D)[at] = __float2bfloat16_rn(x);
                }
        }
        free(pa), free(pb);
    }
    return s;
}

#endif
