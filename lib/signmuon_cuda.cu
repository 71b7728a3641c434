/* signmuon_cuda.cu - the stages of an optimizer's step on an NVIDIA GPU. MIT.

   The equations are signmuon.h's, entry by entry in its order of operations and with each operation
   rounded as there, so that signs, votes and steps have the host's bits. Sums and Newton-Schulz
   have an order of their own.

     arrays   U, the direction, and S, the signs, each large enough for either group; momentum, or
              AdamW's two moments, of each group. All lie as on the host
     tiles    matrices and vectors, the blocks, are cut into tiles of at most TILE entries. Each has
              a thread block: small blocks cost little, and a large one fills the device
     polar    matrices of equal shape go through Newton-Schulz together, as strided batches */
#include "lib/cuda.h"
#include "lib/gpt_cuda.h"
#include <algorithm>
#include <stdlib.h>
#include <tuple>

extern "C" Cuda *gpt_cuda_context(GptCuda *m); /* lib/gpt_cuda.cu */

enum { STAGE_THREADS = 256, STAGE_WARPS = STAGE_THREADS / WARP, TILE = 1 << 14 };
static const size_t POLAR_BYTES = (size_t)1 << 30; /* most memory of Newton-Schulz */

/* ------------------------------------------------------------------------------------------------
 * tables of blocks */

struct Block : SmDeviceBlock {
    uint32_t tile; /* the first one of its tiles, counted from the start of the table */
    double square; /* the sum that stage SQUARES leaves */
};

/* A table or a part of one, here and on the device. The block after the last one has a tile too. */
struct Table {
    Block *host, *block;
    double *partial; /* of the whole table: the sum of squares of each warp of each tile */
    uint32_t count;
};

static Table part(const Table &t, size_t first, size_t count) {
    return {t.host + first, t.block + first, t.partial, (uint32_t)count};
}

/* Empty blocks on the host, which the caller frees. */
static Table new_table(Cuda *c, size_t count) {
    Table t = {(Block *)calloc(count + 1, sizeof(Block)), NULL, NULL, (uint32_t)count};
    if (t.host) return t;
    cuda_fail(c, "no memory for a table of %zu blocks", count);
    return {};
}

/* Number the tiles and copy the table to the device: to the workspace, or to memory of its own. */
static void place_table(Cuda *c, Table *t, void *workspace) {
    if (*c->error) return;
    for (Block *b = t->host; b < t->host + t->count; b++)
        b[1].tile = b[0].tile + blocks_for(b->rows * b->cols, TILE);
    const size_t sums = (size_t)t->host[t->count].tile * STAGE_WARPS;
    const size_t bytes = sums * sizeof *t->partial + (t->count + 1) * sizeof *t->block;
    if (workspace && bytes > CUDA_WORKSPACE)
        cuda_fail(c, "the sums of %u tensors do not fit in %d bytes", t->count, CUDA_WORKSPACE);
    t->partial = (double *)(workspace ? workspace : cuda_allocate<char>(c, bytes));
    t->block = (Block *)(t->partial + sums);
    cuda_copy(c, t->block, (const Block *)t->host, t->count + 1);
}

/* ------------------------------------------------------------------------------------------------
 * stages of every entry of the blocks of a table */

enum Stage { SQUARES, MOMENTUM, TO_X, FROM_X, PACK, UNPACK, APPLY, STEP, ADAMW };

struct Arguments : SmDeviceStep {
    float *u, *m, *v;
    uint32_t *s; /* S in halves of words, the low one first */
    CudaOperand x;
};

template <Stage stage>
__global__ void __launch_bounds__(STAGE_THREADS) over_entries(Table t, Arguments a) {
    const uint32_t tile = t.block->tile + blockIdx.x;
    uint32_t low = 0, high = t.count; /* the tile is in block low .. high - 1 */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        *(t.block[middle].tile <= tile ? &low : &high) = middle;
    }
    const Block b = t.block[low];
    const size_t size = b.rows * b.cols, from = (size_t)(tile - b.tile) * TILE;
    const uint32_t n = (uint32_t)min(size - from, (size_t)TILE);
    const uint32_t end = stage == PACK ? (n + 63) / 64 * 64 : n; /* it writes whole words */
    const float step = (float)(a.lr * b.gain), keep = b.decay ? a.keep : 1;
    const double norm = stage == TO_X ? a.safety * sqrt(b.square) : 0;
    const double factor = norm > 0 ? 1 / norm : 0;
    const uint64_t key = hash64(hash64(hash64(0x5349474e4d554f4eu, a.seed), b.stream), a.step);
    const bool half = a.x.type == CUDA_R_16BF, padded = a.x.ld != (int64_t)b.cols;
    double sum = 0;
#pragma unroll 4 /* with more, they take more than 32 registers */
    for (uint32_t k = threadIdx.x; k < end; k += STAGE_THREADS) {
        const size_t i = from + k;
        const size_t p = b.offset + i, e = b.element + i, w = 2 * b.word + i / WARP;
        const size_t x = low * a.x.stride + (padded ? i / b.cols * a.x.ld + i % b.cols : i);
        float d = 0;
        if (stage == SQUARES) { /* of G, or without it of U */
            d = a.grads ? a.grads[p] : a.u[e];
            sum += (double)d * (double)d;
        }
        if (stage == MOMENTUM) { /* M <- mu M + (1-mu) clip G, U <- M or looks ahead: sm_momentum */
            d = a.clip < 1 ? __fmul_rn(a.clip, a.grads[p]) : a.grads[p];
            if (a.momentum) {
                const float own = __fmul_rn(a.nu, d);
                a.m[e] = d = __fadd_rn(__fmul_rn(a.mu, a.m[e]), own);
                if (a.nesterov) d = __fadd_rn(__fmul_rn(a.mu, d), own);
            }
            a.u[e] = d;
        }
        if (stage == TO_X) { /* X <- U / (safety |U|_F), zero gives zero: sm_polar */
            d = norm > 0 ? (float)((double)a.u[e] * factor) : 0.0f;
            half ? from_float((bf16 *)a.x.x + x, d) : from_float((float *)a.x.x + x, d);
        }
        if (stage == FROM_X) /* U <- X */
            a.u[e] = half ? to_float(((const bf16 *)a.x.x)[x]) : ((const float *)a.x.x)[x];
        if (stage == PACK) { /* S <- sign(U), bits past the end of a block are 0: sm_pack */
            d = k < n ? a.u[e] : -1.0f;
            const uint32_t plus = __ballot_sync(ALL_LANES, d > 0);
            const uint32_t zero = __ballot_sync(ALL_LANES, d == 0);
            const uint64_t coins = a.coins ? hash64(key, i / 64) >> (i & WARP) : ALL_LANES;
            if (i % WARP == 0) a.s[w] = plus | (zero & (uint32_t)coins);
        }
        const bool plus = (stage == UNPACK || stage == APPLY) && (a.s[w] >> i % WARP & 1);
        if (stage == UNPACK) a.u[e] = plus ? 1.0f : -1.0f; /* U <- S: sm_unpack */
        if (stage == APPLY) d = plus ? step : -step;       /* W <- keep W - lr gain S: sm_apply */
        if (stage == STEP) d = __fmul_rn(step, a.u[e]);    /* the same with U: sm_step_dense */
        if (stage == ADAMW) {                              /* sm_adamw, whose gradient is U */
            const float g = a.u[e], m = __fadd_rn(__fmul_rn(a.b1, a.m[e]), __fmul_rn(a.n1, g));
            const float v = __fadd_rn(__fmul_rn(a.b2, a.v[e]), __fmul_rn(__fmul_rn(a.n2, g), g));
            a.m[e] = m;
            a.v[e] = v;
            d = __fadd_rn(__fmul_rn(__fsqrt_rn(v), a.root), a.epsilon);
            d = __fdiv_rn(__fmul_rn(a.size, m), d);
        }
        if (stage >= APPLY) a.params[p] = __fsub_rn(__fmul_rn(keep, a.params[p]), d);
    }
    if (stage != SQUARES) return;
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) t.partial[(size_t)tile * STAGE_WARPS + threadIdx.x / WARP] = sum;
}

/* The sum of squares of a block, by a warp. */
__global__ void add_partial(Table t) {
    Block *b = t.block + blockIdx.x;
    double sum = 0;
    for (size_t i = b[0].tile * STAGE_WARPS + threadIdx.x; i < b[1].tile * STAGE_WARPS; i += WARP)
        sum += t.partial[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) b->square = sum;
}

template <Stage stage> static void run(Cuda *c, const Table &t, const Arguments &a) {
    if (*c->error) return;
    const uint32_t tiles = t.host[t.count].tile - t.host->tile;
    LAUNCH((over_entries<stage>), tiles, STAGE_THREADS, 0, c->stream, t, a);
    if (stage == SQUARES) LAUNCH(add_partial, t.count, WARP, 0, c->stream, t);
    cuda_failed(c, cudaGetLastError(), "a stage of the step");
}

/* The sum of squares of the gradients; those of each block are left in the host's table. */
static double sum_gradients(Cuda *c, const Table &t, const float *grads) {
    Arguments a = {};
    double sum = 0;
    a.grads = grads;
    run<SQUARES>(c, t, a);
    cuda_copy(c, t.host, (const Block *)t.block, t.count);
    cuda_finish(c);
    for (uint32_t i = 0; i < t.count; i++) sum += t.host[i].square;
    return sum;
}

/* ------------------------------------------------------------------------------------------------
 * the table of stages; see SmDevice */

struct Stages {
    SmDevice device; /* first, so that a pointer to it is one to the stages */
    Cuda *c;
    Table table, group[2]; /* of all blocks; its two parts */
    char *x;               /* memory of Newton-Schulz, and the type of its values */
    cudaDataType_t type;
    size_t width;
};

static Arguments arguments(const SmDevice *d, int g, const SmDeviceStep *step) {
    return {*step, d->direction, d->state[g][0], d->state[g][1], (uint32_t *)d->signs, {}};
}

template <Stage stage> static void run_stage(SmDevice *d, int g, const SmDeviceStep *step) {
    const Stages *s = (const Stages *)d;
    run<stage>(s->c, s->group[g], arguments(d, g, step));
}

/* Matrices of Newton-Schulz: rows begin at whole 16 bytes, and matrices at whole 256. */
static int64_t round_up(size_t n, size_t to) { return (int64_t)((n + to - 1) / to * to); }
static int64_t values(size_t rows, size_t cols) { return round_up(rows * round_up(cols, 8), 128); }
static size_t polar_bytes(const Stages *s, const SmDeviceBlock &b) {
    const size_t side = std::min(b.rows, b.cols);
    return 2 * s->width * (values(b.rows, b.cols) + values(side, side));
}

/* The blocks from `first` on that go through Newton-Schulz together: of one shape, with `mine` of
 * one owner. */
static Table next_batch(const Stages *s, size_t first, bool mine) {
    const Block *b = s->group[0].host + first;
    const size_t left = s->group[0].count - first, most = POLAR_BYTES / polar_bytes(s, *b);
    size_t n = 1;
    while (n < std::min(left, most) && b[n].rows == b->rows && b[n].cols == b->cols &&
           (!mine || b[n].mine == b->mine))
        n++;
    return part(s->group[0], first, n);
}

/* U <- polar(U) of a batch. Tall matrices are not transposed: X^T X takes the place of X X^T, and
 * X B that of B X. */
static void polar_batch(const Stages *s, const Table &t, Arguments a) {
    Cuda *c = s->c;
    const size_t rows = t.host->rows, cols = t.host->cols;
    const size_t side = std::min(rows, cols), most = std::max(rows, cols);
    const bool tall = rows > cols;
    const int n = (int)t.count;
    char *at = s->x;
    auto matrices = [&](size_t high, size_t wide) {
        char *first = at;
        at += t.count * values(high, wide) * s->width;
        return CudaOperand{first, s->type, round_up(wide, 8), false, values(high, wide)};
    };
    CudaOperand X = matrices(rows, cols), Y = matrices(rows, cols);
    const CudaOperand A = matrices(side, side), B = matrices(side, side);
    a.x = X;
    run<TO_X>(c, t, a);
    for (int i = 0; i < a.ns_steps; i++) {
        const double *k = a.coefficient[i];
        CudaOperand T = X;
        T.transposed = true;
        /* A <- X X^T, B <- k1 A + k2 A A, X <- k0 X + B X */
        cuda_multiply(c, A, tall ? T : X, tall ? X : T, side, side, most, 1, 0, NULL, n);
        cuda_multiply(c, B, A, A, side, side, side, k[2], k[1], A.x, n);
        cuda_multiply(c, Y, tall ? X : B, tall ? B : X, rows, cols, side, 1, k[0], X.x, n);
        std::swap(X, Y);
    }
    a.x = X;
    run<FROM_X>(c, t, a);
}

template <bool mine> static void polar(SmDevice *d, int g, const SmDeviceStep *step) {
    const Stages *s = (const Stages *)d;
    Arguments a = arguments(d, g, step);
    a.grads = NULL;
    run<SQUARES>(s->c, s->group[0], a);
    for (size_t i = 0; i < s->group[0].count;) {
        const Table t = next_batch(s, i, mine);
        if (!mine || t.host->mine) polar_batch(s, t, a);
        i += t.count;
    }
}

static double squares(SmDevice *d, const float *grads) {
    return sum_gradients(((Stages *)d)->c, ((Stages *)d)->table, grads);
}

static void copy(SmDevice *d, void *to, const void *from, size_t bytes) {
    Cuda *c = ((Stages *)d)->c;
    cuda_copy(c, (char *)to, (const char *)from, bytes);
    cuda_finish(c);
}

static void attach(SmDevice *d, const SmDeviceBlock *blocks, const SmDeviceGroup group[2]) {
    Stages *s = (Stages *)d;
    Cuda *c = s->c;
    const size_t hidden = group[0].count, others = group[1].count;
    Table &t = s->table = new_table(c, hidden + others);
    if (!t.host) return;
    for (size_t i = 0; i < t.count; i++) (SmDeviceBlock &)t.host[i] = blocks[i];
    std::sort(t.host, t.host + hidden, [](const Block &x, const Block &y) {
        return std::make_tuple(x.rows, x.cols, y.mine, x.offset) <
               std::make_tuple(y.rows, y.cols, x.mine, y.offset);
    });
    place_table(c, &t, NULL);
    s->group[0] = part(t, 0, hidden);
    s->group[1] = part(t, hidden, others);
    for (int g = 0; g < 2; g++)
        for (int k = 0; k < group[g].states; k++)
            d->state[g][k] = cuda_allocate<float>(c, group[g].elements);
    d->direction = cuda_allocate<float>(c, std::max(group[0].elements, group[1].elements));
    d->signs = cuda_allocate<uint64_t>(c, std::max(group[0].words, group[1].words));
    size_t most = 0;
    for (size_t i = 0; group[0].polar && i < hidden; i += next_batch(s, i, false).count)
        most = std::max(most, next_batch(s, i, false).count * polar_bytes(s, t.host[i]));
    s->x = cuda_allocate<char>(c, most);
}

static void free_stages(SmDevice *d) {
    Stages *s = (Stages *)d;
    void *all[] = {s->table.partial, d->direction,   d->signs,       d->state[0][0],
                   d->state[0][1],   d->state[1][0], d->state[1][1], s->x};
    for (void *x : all) cudaFree(x);
    free(s->table.host);
    free(s);
}

extern "C" SmDevice *gpt_cuda_stages(GptCuda *m, int ns_bf16, char *error, size_t size) {
    Stages *s = (Stages *)calloc(1, sizeof *s);
    if (!s) return snprintf(error, size, "no memory for the stages of a step"), (SmDevice *)NULL;
    SmDevice *d = &s->device;
    s->c = gpt_cuda_context(m);
    s->type = ns_bf16 ? CUDA_R_16BF : CUDA_R_32F;
    s->width = ns_bf16 ? sizeof(bf16) : sizeof(float);
    d->error = s->c->error;
    d->attach = attach, d->free = free_stages, d->copy = copy, d->squares = squares;
    d->momentum = run_stage<MOMENTUM>, d->polar = polar<false>, d->polar_of_mine = polar<true>;
    d->pack = run_stage<PACK>, d->unpack = run_stage<UNPACK>, d->apply = run_stage<APPLY>;
    d->step = run_stage<STEP>, d->adamw = run_stage<ADAMW>;
    return d;
}

/* The table lies in the workspace of the products, which nobody uses meanwhile. */
extern "C" int gpt_cuda_squares(GptCuda *m, const SmTensor *tensors, size_t count, double *square,
                                char *error, size_t size) {
    Cuda *c = gpt_cuda_context(m);
    Table t = new_table(c, count);
    for (uint32_t i = 0; i < t.count; i++) {
        t.host[i].offset = tensors[i].offset;
        t.host[i].rows = tensors[i].rows * tensors[i].blocks;
        t.host[i].cols = tensors[i].cols;
    }
    place_table(c, &t, c->workspace);
    sum_gradients(c, t, gpt_cuda_grads(m));
    for (uint32_t i = 0; i < t.count; i++) square[i] = t.host[i].square;
    free(t.host);
    if (*c->error) snprintf(error, size, "%s", c->error);
    return *c->error ? -1 : 0;
}
