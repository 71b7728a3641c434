/* gpt_cuda.cu - the model's forward and backward pass on an NVIDIA GPU. MIT.

   The same model, equations and dropout masks as in train_gpt.c; read it first. What differs:

     tokens     all n = B T at once, a kernel or a product for each line of the CPU's stages
     values     S = bf16 or float: operands of products and what they leave. The residual stream,
                its gradient, statistics, losses and all gradients of parameters are fp32
     logits     of a chunk of tokens at a time; the chunk becomes dlogits in its place and is used
                up before the next one, so no (n, V) array exists
     sums       over tokens in a fixed order, without atomics

   A warp takes a row of C values, W neighbours per lane: W = 8 where C allows it, else 1. bf16
   takes a C that is a multiple of 8, so that every tensor begins at 16 aligned bytes. */
#include "lib/cuda.h"
#include "lib/attention_cuda.h"
#include "lib/gpt_cuda.h"
#include <stdlib.h>

enum { WTE, WPE, LN1W, LN1B, QKVW, QKVB, ATTW, ATTB, LN2W, LN2B, FCW, FCB, OUTW, OUTB, LNFW, LNFB };
enum { DROP_EMBEDDING = -1, DROP_ATTENTION = 0, DROP_PROJECTION = 1, DROP_MLP = 2 };
enum {
    THREADS = 256,          /* of most blocks */
    CHUNK_VALUES = 1 << 28, /* most logits at once: 0.5 GB in bf16 */
    SUM_ROWS = 512,         /* rows that a block adds up */
    NORM_ROWS = 64,         /* rows of a block of layernorm_backward */
    NORM_SHARED = 96 << 10
};

/* ------------------------------------------------------------------------------------------------
 * kernels */

/* A dropout mask: entry `index` is dropped when its hash lies below the threshold. key 0: none. */
struct Mask {
    uint64_t key, threshold;
    float scale;
};
__device__ __forceinline__ float masked(const Mask &mask, float x, size_t index) {
    if (!mask.key) return x;
    return hash64(mask.key, index) < mask.threshold ? 0.0f : x * mask.scale;
}

__global__ void to_bf16(bf16 *out, const float *x, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    float v[4];
    if (i + 4 <= n) {
        load<4>(v, x + i);
        store<4>(out + i, v);
    } else {
        for (; i < n; i++) from_float(out + i, x[i]);
    }
}

/* Row of this warp, and the first column of this lane. */
__device__ __forceinline__ size_t warp_row() {
    return (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
}
template <int W> __device__ __forceinline__ size_t lane_column() {
    return (size_t)(threadIdx.x % WARP) * W;
}

/* out (n, C) = dropout(wte[token] + wpe[position]) */
template <typename S, int W>
__global__ void embedding_forward(float *out, const int32_t *in, const float *wte, const float *wpe,
                                  size_t n, size_t T, size_t C, Mask mask) {
    size_t r = warp_row();
    if (r >= n) return;
    const float *token = wte + (size_t)in[r] * C, *position = wpe + r % T * C;
    for (size_t c = lane_column<W>(); c < C; c += WARP * W) {
        float x[W], p[W];
        load<W>(x, token + c);
        load<W>(p, position + c);
        for (int k = 0; k < W; k++) x[k] = masked(mask, x[k] + p[k], r * C + c + k);
        store<W>(out + r * C + c, x);
    }
}

/* dwte[token[i]] (C) += dropout(dres) of its rows, rows[start[i]] .. rows[start[i+1] - 1] */
__global__ void token_backward(float *dwte, const float *dres, const int32_t *token,
                               const int32_t *start, const int32_t *rows, size_t C, Mask mask) {
    size_t i = blockIdx.x, c = (size_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = 0;
#pragma unroll 8 /* loads of several rows at once: a frequent token has thousands */
    for (int32_t k = start[i]; k < start[i + 1]; k++) {
        size_t at = (size_t)rows[k] * C + c;
        sum += masked(mask, dres[at], at);
    }
    dwte[(size_t)token[i] * C + c] += sum;
}

/* dwpe[t] (C) = or += the sum of dropout(dres) at position t of all sequences */
__global__ void position_backward(float *dwpe, const float *dres, size_t B, size_t T, size_t C,
                                  Mask mask, int add) {
    size_t t = blockIdx.x, c = (size_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = add ? dwpe[t * C + c] : 0.0f;
    for (size_t b = 0; t < T && b < B; b++) {
        size_t at = (b * T + t) * C + c;
        sum += masked(mask, dres[at], at);
    }
    dwpe[t * C + c] = sum;
}

/* out (n, C) = x + dropout(branch), or x where branch is NULL; norm (n, C) = its LayerNorm;
 * stats (n, 2) = mean, 1/deviation */
template <typename S, int W>
__global__ void layernorm_forward(float *out, S *norm, float *stats, const float *x,
                                  const S *branch, const float *w, const float *b, size_t n,
                                  size_t C, Mask mask) {
    size_t r = warp_row(), first = lane_column<W>();
    if (r >= n) return;
    const float *in = x + r * C;
    float sum = 0, square = 0, v[W], y[W];
    for (size_t c = first; c < C; c += WARP * W) {
        load<W>(v, in + c);
        if (branch) {
            load<W>(y, branch + r * C + c);
            for (int k = 0; k < W; k++) v[k] += masked(mask, y[k], r * C + c + k);
            store<W>(out + r * C + c, v);
        }
        for (int k = 0; k < W; k++) sum += v[k];
    }
    if (branch) in = out + r * C; /* a lane reads what it has written itself */
    float mean = warp_sum(sum) / (float)C;
    for (size_t c = first; c < C; c += WARP * W) {
        load<W>(v, in + c);
        for (int k = 0; k < W; k++) square += (v[k] - mean) * (v[k] - mean);
    }
    float scale = 1.0f / sqrtf(warp_sum(square) / (float)C + 1e-5f);
    for (size_t c = first; c < C; c += WARP * W) {
        load<W>(v, in + c);
        load<W>(y, w + c);
        for (int k = 0; k < W; k++) v[k] = (v[k] - mean) * scale * y[k] + (b ? b[c + k] : 0.0f);
        store<W>(norm + r * C + c, v);
    }
    if (first) return;
    stats[r * 2] = mean;
    stats[r * 2 + 1] = scale;
}

/* dres (n, C) = or += gradient of x; branch (n, C) = dropout(dres), the gradient of the branch that
 * was added to x's source, unless NULL; partial (blocks, 2C) = sums over NORM_ROWS rows of the
 * gradients of w and b. A warp adds up its rows in shared memory, each lane its own columns. */
template <typename S, int W>
__global__ void layernorm_backward(float *dres, S *branch, float *partial, const S *dnorm,
                                   const float *x, const float *stats, const float *w, size_t n,
                                   size_t C, int add, Mask mask) {
    SHARED(memory);
    size_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, first = lane_column<W>();
    size_t begin = (size_t)blockIdx.x * NORM_ROWS,
           end = begin + NORM_ROWS < n ? begin + NORM_ROWS : n;
    float *all = (float *)(void *)memory, *dw = all + warp * 2 * C, *db = dw + C;
    for (size_t c = first; c < C; c += WARP * W)
        for (int k = 0; k < W; k++) dw[c + k] = db[c + k] = 0;
    for (size_t r = begin + warp; r < end; r += warps) {
        float mean = stats[r * 2], scale = stats[r * 2 + 1], sum = 0, dot = 0;
        float d[W], v[W], y[W], dx[W];
        for (size_t c = first; c < C; c += WARP * W) {
            load<W>(d, dnorm + r * C + c);
            load<W>(v, x + r * C + c);
            load<W>(y, w + c);
            load<W>(dx, dw + c); /* whole packs: single floats of all lanes share few banks */
            for (int k = 0; k < W; k++) {
                float x_hat = (v[k] - mean) * scale;
                sum += d[k] * y[k];
                dot += d[k] * y[k] * x_hat;
                dx[k] += d[k] * x_hat;
            }
            store<W>(dw + c, dx);
            load<W>(dx, db + c);
            for (int k = 0; k < W; k++) dx[k] += d[k];
            store<W>(db + c, dx);
        }
        sum = warp_sum(sum) / (float)C;
        dot = warp_sum(dot) / (float)C;
        for (size_t c = first; c < C; c += WARP * W) {
            load<W>(d, dnorm + r * C + c);
            load<W>(v, x + r * C + c);
            load<W>(y, w + c);
            if (add) load<W>(dx, dres + r * C + c);
            for (int k = 0; k < W; k++)
                dx[k] = (add ? dx[k] : 0.0f) +
                        scale * (d[k] * y[k] - sum - (v[k] - mean) * scale * dot);
            store<W>(dres + r * C + c, dx);
            if (!branch) continue;
            for (int k = 0; k < W; k++) dx[k] = masked(mask, dx[k], r * C + c + k);
            store<W>(branch + r * C + c, dx);
        }
    }
    __syncthreads();
    for (size_t c = threadIdx.x; c < 2 * C; c += blockDim.x) {
        float sum = 0;
        for (size_t k = 0; k < warps; k++) sum += all[k * 2 * C + c];
        partial[blockIdx.x * 2 * C + c] = sum;
    }
}

/* out (chunks, cols) = or += sums over `each` rows of x (rows, ld): a block for 32 columns of a
 * chunk. Eight warps take every eighth row, and their sums are added in order. */
template <typename S>
__global__ void sum_rows(float *out, const S *x, size_t rows, size_t cols, size_t ld, size_t each,
                         int add) {
    SHARED(memory);
    float *part = (float *)(void *)memory;
    size_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP,
           c = (size_t)blockIdx.x * WARP + lane;
    size_t begin = (size_t)blockIdx.y * each, end = begin + each < rows ? begin + each : rows;
    float sum = 0;
    for (size_t r = begin + warp; c < cols && r < end; r += THREADS / WARP)
        sum += to_float(x[r * ld + c]);
    part[threadIdx.x] = sum;
    __syncthreads();
    if (warp || c >= cols) return;
    for (size_t k = 1; k < THREADS / WARP; k++) sum += part[k * WARP + lane];
    float *to = out + (size_t)blockIdx.y * cols + c;
    *to = add ? *to + sum : sum;
}

/* GELU in its tanh form, x gate with gate = 1 / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3) */
__device__ __forceinline__ float gelu_gate(float x) {
    return 1.0f / (1.0f + __expf(-1.59576912f * x * (0.044715f * x * x + 1.0f)));
}

/* out (n) = GELU(x) */
template <typename S, int W> __global__ void gelu_forward(S *out, const S *x, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    float v[W];
    if (i >= n) return;
    load<W>(v, x + i);
    for (int k = 0; k < W; k++) v[k] *= gelu_gate(v[k]);
    store<W>(out + i, v);
}

/* d (n) = d GELU'(x) */
template <typename S, int W> __global__ void gelu_backward(S *d, const S *x, size_t n) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
    float v[W], g[W];
    if (i >= n) return;
    load<W>(v, x + i);
    load<W>(g, d + i);
    for (int k = 0; k < W; k++) {
        float gate = gelu_gate(v[k]), slope = 1.59576912f * (3 * 0.044715f * v[k] * v[k] + 1.0f);
        g[k] *= gate + v[k] * gate * (1.0f - gate) * slope;
    }
    store<W>(d + i, g);
}

/* Cross-entropy of a row of logits (V, in rows ld apart) with its target, in nats, and with `write`
 * its gradient (softmax - onehot) scale in the place of the logits, 0 in the columns after V. Each
 * thread keeps a maximum and a sum below it; they are merged in order. A block takes a row. */
template <typename S>
__global__ void cross_entropy(S *logits, float *losses, const int32_t *target, size_t V, size_t ld,
                              float scale, int write) {
    enum { W = 16 / sizeof(S) };
    SHARED(memory);
    float *largest = (float *)(void *)memory, *sums = largest + blockDim.x / WARP;
    S *row = logits + (size_t)blockIdx.x * ld;
    int32_t right = target[blockIdx.x]; /* -1 is no column, nor as a size_t */
    float v[W], most = -INFINITY, sum = 0, at_target = right >= 0 ? to_float(row[right]) : 0.0f;
    for (size_t c = threadIdx.x * W; c < V; c += blockDim.x * W) {
        float old = most;
        load<W>(v, row + c);
        for (int k = 0; c + W > V && k < W; k++) v[k] = c + k < V ? v[k] : -INFINITY;
        for (int k = 0; k < W; k++) most = fmaxf(most, v[k]);
        if (most > old) sum *= __expf(old - most);
        for (int k = 0; k < W; k++) sum += __expf(v[k] - most);
    }
    float all = warp_max(most);
    sum = warp_sum(most == all ? sum : sum * __expf(most - all));
    if (threadIdx.x % WARP == 0) {
        largest[threadIdx.x / WARP] = all;
        sums[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    most = largest[0];
    for (unsigned k = 1; k < blockDim.x / WARP; k++) most = fmaxf(most, largest[k]);
    sum = 0;
    for (unsigned k = 0; k < blockDim.x / WARP; k++)
        sum += largest[k] == most ? sums[k] : sums[k] * __expf(largest[k] - most);
    if (threadIdx.x == 0) losses[blockIdx.x] = right >= 0 ? logf(sum) + most - at_target : 0.0f;
    if (!write) return;
    float factor = right >= 0 ? scale / sum : 0.0f;
    for (size_t c = threadIdx.x * W; c < ld; c += blockDim.x * W) {
        load<W>(v, row + c);
        for (int k = 0; k < W; k++) v[k] = factor > 0 ? __expf(v[k] - most) * factor : 0.0f;
        for (int k = 0; c + W > V && k < W; k++) v[k] = c + k < V ? v[k] : 0.0f;
        for (int k = 0; k < W; k++) v[k] -= c + k == (size_t)right ? scale : 0.0f;
        store<W>(row + c, v);
    }
}

/* ------------------------------------------------------------------------------------------------
 * what the model holds on the device */

template <typename S> struct Layer {
    float *in, *mid, *stats1, *stats2, *lse;  /* as in train_gpt.c's GptLayer */
    S *norm1, *qkv, *att, *norm2, *fc, *gelu; /* (n, C) (n, 3C) (n, C) (n, C) (n, 4C) (n, 4C) */
};

template <typename S> struct Arrays {
    Layer<S> *layer;
    float *last, *statsf;
    S *normf;  /* (n, C) ln_f's output */
    S *branch; /* (n, C) what a layer's two branches return, or its gradient */
    S *logits; /* (chunk, padded V) */
    S *dnorm, *datt, *dqkv, *dfc;
    S *weights; /* the parameters as S: params itself, or a copy in bf16 */
};

struct GptCuda {
    Cuda c;
    GptCudaShape shape;
    char name[256];
    size_t capacity, C, V, NH, HS, padded, chunk; /* tokens of a pass; logits' columns, rows */
    size_t bytes;
    int train, measures; /* measures: counts the bytes only */
    float *params, *grads;
    float *foreign; /* parameters of a pass that are not the model's own */
    float *current; /* those of the pass under way, or the last one */
    int32_t *in, *target, *token, *start, *rows;
    int32_t *host; /* (V + 1 + 3 capacity) scratch of sort_tokens */
    float *losses, *dres, *delta, *partial;
    Arrays<float> full;
    Arrays<bf16> half;
};

template <typename S> static Arrays<S> *arrays(GptCuda *m);
template <> Arrays<float> *arrays(GptCuda *m) { return &m->full; }
template <> Arrays<bf16> *arrays(GptCuda *m) { return &m->half; }

template <typename Type> static Type *take(GptCuda *m, size_t n) {
    m->bytes += n * sizeof(Type);
    return m->measures ? NULL : cuda_allocate<Type>(&m->c, n);
}

/* Where a tensor begins in params and grads; the same place in the copy in bf16. */
static size_t at(const GptCuda *m, int kind, int l) {
    int in_layers = kind >= LN1W && kind <= OUTB;
    return (size_t)(m->shape.offset[kind] + (in_layers ? l * m->shape.stride : 0));
}
static bool has(const GptCuda *m, int kind) { return m->shape.offset[kind] >= 0; }
static const float *param(const GptCuda *m, int kind, int l) {
    return has(m, kind) ? m->current + at(m, kind, l) : NULL;
}

/* Without training one layer's arrays serve all layers. */
template <typename S> static void take_arrays(GptCuda *m) {
    size_t n = m->capacity, C = m->C;
    Arrays<S> *a = arrays<S>(m);
    a->layer = (Layer<S> *)calloc((size_t)m->shape.layers, sizeof *a->layer);
    if (!a->layer) cuda_fail(&m->c, "no memory for a table of %d layers", m->shape.layers);
    for (int l = 0; a->layer && l < m->shape.layers; l++) {
        Layer<S> *y = &a->layer[l];
        *y = a->layer[0];
        if (l > 0 && !m->train) continue;
        y->in = take<float>(m, n * C), y->mid = take<float>(m, n * C);
        y->stats1 = take<float>(m, 2 * n), y->stats2 = take<float>(m, 2 * n);
        y->lse = take<float>(m, n * m->NH);
        y->norm1 = take<S>(m, n * C), y->norm2 = take<S>(m, n * C);
        y->qkv = take<S>(m, n * 3 * C), y->att = take<S>(m, n * C);
        y->fc = take<S>(m, n * 4 * C), y->gelu = take<S>(m, n * 4 * C);
    }
    a->last = take<float>(m, n * C), a->statsf = take<float>(m, 2 * n);
    a->normf = take<S>(m, n * C), a->branch = take<S>(m, n * C);
    a->logits = take<S>(m, m->chunk * m->padded);
    if (!m->train) return;
    a->dnorm = take<S>(m, n * C), a->datt = take<S>(m, n * C);
    a->dqkv = take<S>(m, n * 3 * C), a->dfc = take<S>(m, n * 4 * C);
}

/* ------------------------------------------------------------------------------------------------
 * stages; `n` tokens */

/* LAUNCH of a kernel whose lanes take W = 8 neighbours where `wide` is a multiple of 8, else 1 */
#define LAUNCH_WIDE(kernel, wide, grid8, grid1, shared, ...)                                       \
    do {                                                                                           \
        if ((wide) % 8 == 0)                                                                       \
            LAUNCH((kernel<S, 8>), grid8, THREADS, shared, m->c.stream, __VA_ARGS__);              \
        else                                                                                       \
            LAUNCH((kernel<S, 1>), grid1, THREADS, shared, m->c.stream, __VA_ARGS__);              \
    } while (0)
#define LAUNCH_ROWS(kernel, n, ...)                                                                \
    LAUNCH_WIDE(kernel, m->C, blocks_for(n, THREADS / WARP), blocks_for(n, THREADS / WARP), 0,     \
                __VA_ARGS__)
#define LAUNCH_VALUES(kernel, n, ...)                                                              \
    LAUNCH_WIDE(kernel, n, blocks_for(n, 8 * THREADS), blocks_for(n, THREADS), 0, __VA_ARGS__)

/* The mask of a place in this pass; its key is 0 when nothing is dropped. */
static Mask mask_of(const GptCuda *m, const GptCudaPass *p, int l, int place) {
    double dropout = m->shape.dropout;
    Mask mask = {0, 0, 1.0f};
    if (!p->training || !(dropout > 0)) return mask;
    mask.key = hash64(p->dropout_key, (uint64_t)(l * 3 + place + 1)) | 1;
    mask.threshold = (uint64_t)(dropout * 0x1p64);
    mask.scale = (float)(1 / (1 - dropout));
    return mask;
}

/* out (n, fan_out) = x (n, fan_in) W^T + b */
template <typename S>
static void linear_forward(GptCuda *m, S *out, const S *x, int kind, int l, size_t n,
                           size_t fan_out, size_t fan_in) {
    const S *w = arrays<S>(m)->weights;
    const S *b = has(m, kind + 1) ? w + at(m, kind + 1, l) : NULL;
    cuda_multiply(&m->c, operand(out, fan_out, false), operand(x, fan_in, false),
                  operand(w + at(m, kind, l), fan_in, true), n, fan_out, fan_in, 1, 0, NULL, 1, b);
}

/* dx (n, fan_in) = dout (n, fan_out) W; dW = or += dout^T x, db likewise dout's column sums */
template <typename S>
static void linear_backward(GptCuda *m, S *dx, const S *dout, const S *x, int kind, int l, size_t n,
                            size_t fan_out, size_t fan_in, int add) {
    const S *w = arrays<S>(m)->weights;
    cuda_multiply(&m->c, operand(dx, fan_in, false), operand(dout, fan_out, false),
                  operand(w + at(m, kind, l), fan_in, false), n, fan_in, fan_out);
    cuda_multiply(&m->c, operand(m->grads + at(m, kind, l), fan_in, false),
                  operand(dout, fan_out, true), operand(x, fan_in, false), fan_out, fan_in, n, 1,
                  (float)add);
    if (!has(m, kind + 1)) return;
    unsigned chunks = blocks_for(n, SUM_ROWS), wide = blocks_for(fan_out, WARP);
    size_t shared = THREADS * sizeof(float);
    LAUNCH(sum_rows<S>, dim3(wide, chunks), THREADS, shared, m->c.stream, m->partial, dout, n,
           fan_out, fan_out, (size_t)SUM_ROWS, 0);
    LAUNCH(sum_rows<float>, dim3(wide, 1), THREADS, shared, m->c.stream,
           m->grads + at(m, kind + 1, l), m->partial, (size_t)chunks, fan_out, fan_out,
           (size_t)chunks, add);
}

/* dres and branch as layernorm_backward has them, and the gradients of w and b */
template <typename S>
static void norm_backward(GptCuda *m, S *branch, const float *x, const float *stats, int kind,
                          int l, size_t n, int add_to_dres, int add, Mask mask) {
    Arrays<S> *a = arrays<S>(m);
    size_t C = m->C, warps = NORM_SHARED / (2 * C * sizeof(float));
    warps = warps > 8 ? 8 : warps < 1 ? 1 : warps;
    unsigned blocks = blocks_for(n, NORM_ROWS);
    size_t shared = warps * 2 * C * sizeof(float);
    auto kernel = C % 8 == 0 ? layernorm_backward<S, 8> : layernorm_backward<S, 1>;
    cudaError_t e =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (cuda_failed(&m->c, e, "the width is too large for a LayerNorm")) return;
    LAUNCH(kernel, blocks, (unsigned)warps * WARP, shared, m->c.stream, m->dres, branch, m->partial,
           a->dnorm, x, stats, param(m, kind, l), n, C, add_to_dres, mask);
    for (int k = 0; k < 2; k++)
        if (has(m, kind + k))
            LAUNCH(sum_rows<float>, dim3(blocks_for(C, WARP), 1), THREADS, THREADS * sizeof(float),
                   m->c.stream, m->grads + at(m, kind + k, l), m->partial + (size_t)k * C,
                   (size_t)blocks, C, 2 * C, (size_t)blocks, add);
}

/* Losses of n tokens; when training also dnorm and the output layer's part of dwte. */
template <typename S> static void lm_head(GptCuda *m, const GptCudaPass *p, size_t n) {
    Arrays<S> *a = arrays<S>(m);
    const S *wte = a->weights + at(m, WTE, 0);
    size_t C = m->C, V = m->V, ld = m->padded;
    for (size_t r = 0; r < n && p->target; r += m->chunk) {
        size_t rows = n - r < m->chunk ? n - r : m->chunk;
        /* Products have padded columns, which cuBLASLt multiplies faster. Logits after V are made
         * with whatever follows wte, their gradients are 0, and the rows after dwte, to which those
         * are added, are written later in this pass, or are 0. */
        cuda_multiply(&m->c, operand(a->logits, ld, false), operand(a->normf + r * C, C, false),
                      operand(wte, C, true), rows, ld, C);
        unsigned threads = V > 8192 ? 512 : V > 1024 ? 256 : 64;
        LAUNCH(cross_entropy<S>, (unsigned)rows, threads, threads / WARP * 2 * sizeof(float),
               m->c.stream, a->logits, m->losses + r, m->target + r, V, ld, p->loss_scale,
               p->training);
        if (!p->training) continue;
        cuda_multiply(&m->c, operand(a->dnorm + r * C, C, false), operand(a->logits, ld, false),
                      operand(wte, C, false), rows, C, ld);
        cuda_multiply(&m->c, operand(m->grads + at(m, WTE, 0), C, false),
                      operand(a->logits, ld, true), operand(a->normf + r * C, C, false), ld, C,
                      rows, 1, p->add || r > 0 ? 1.0f : 0.0f);
    }
}

/* ------------------------------------------------------------------------------------------------
 * the passes */

template <typename S> static void forward(GptCuda *m, const GptCudaPass *p) {
    size_t n = p->B * p->T, C = m->C;
    Arrays<S> *a = arrays<S>(m);
    const float *x = a->layer[0].in;
    LAUNCH_ROWS(embedding_forward, n, a->layer[0].in, m->in, param(m, WTE, 0), param(m, WPE, 0), n,
                p->T, C, mask_of(m, p, 0, DROP_EMBEDDING));
    for (int l = 0; l < m->shape.layers; l++) {
        Layer<S> *y = &a->layer[l];
        LAUNCH_ROWS(layernorm_forward, n, y->in, y->norm1, y->stats1, x, l ? a->branch : (S *)NULL,
                    param(m, LN1W, l), param(m, LN1B, l), n, C, mask_of(m, p, l - 1, DROP_MLP));
        linear_forward(m, y->qkv, y->norm1, QKVW, l, n, 3 * C, C);
        attention_forward_cuda(&m->c, y->att, y->lse, y->qkv, p->B, p->T, m->NH, m->HS,
                               mask_of(m, p, l, DROP_ATTENTION).key, m->shape.dropout);
        linear_forward(m, a->branch, y->att, ATTW, l, n, C, C);
        LAUNCH_ROWS(layernorm_forward, n, y->mid, y->norm2, y->stats2, y->in, a->branch,
                    param(m, LN2W, l), param(m, LN2B, l), n, C, mask_of(m, p, l, DROP_PROJECTION));
        linear_forward(m, y->fc, y->norm2, FCW, l, n, 4 * C, C);
        LAUNCH_VALUES(gelu_forward, n * 4 * C, y->gelu, y->fc, n * 4 * C);
        linear_forward(m, a->branch, y->gelu, OUTW, l, n, C, 4 * C);
        x = y->mid;
    }
    LAUNCH_ROWS(layernorm_forward, n, a->last, a->normf, a->statsf, x, a->branch, param(m, LNFW, 0),
                param(m, LNFB, 0), n, C, mask_of(m, p, m->shape.layers - 1, DROP_MLP));
    lm_head<S>(m, p, n);
}

template <typename S> static void backward(GptCuda *m, const GptCudaPass *p, size_t tokens) {
    size_t n = p->B * p->T, C = m->C;
    int L = m->shape.layers, add = p->add;
    Arrays<S> *a = arrays<S>(m);
    norm_backward(m, a->branch, a->last, a->statsf, LNFW, 0, n, 0, add,
                  mask_of(m, p, L - 1, DROP_MLP));
    for (int l = L - 1; l >= 0; l--) {
        Layer<S> *y = &a->layer[l];
        linear_backward(m, a->dfc, a->branch, y->gelu, OUTW, l, n, C, 4 * C, add);
        LAUNCH_VALUES(gelu_backward, n * 4 * C, a->dfc, y->fc, n * 4 * C);
        linear_backward(m, a->dnorm, a->dfc, y->norm2, FCW, l, n, 4 * C, C, add);
        norm_backward(m, a->branch, y->mid, y->stats2, LN2W, l, n, 1, add,
                      mask_of(m, p, l, DROP_PROJECTION));
        linear_backward(m, a->datt, a->branch, y->att, ATTW, l, n, C, C, add);
        attention_backward_cuda(&m->c, a->dqkv, m->delta, a->datt, y->att, y->lse, y->qkv, p->B,
                                p->T, m->NH, m->HS, mask_of(m, p, l, DROP_ATTENTION).key,
                                m->shape.dropout);
        linear_backward(m, a->dnorm, a->dqkv, y->norm1, QKVW, l, n, 3 * C, C, add);
        norm_backward(m, l ? a->branch : (S *)NULL, y->in, y->stats1, LN1W, l, n, 1, add,
                      mask_of(m, p, l - 1, DROP_MLP));
    }
    Mask mask = mask_of(m, p, 0, DROP_EMBEDDING);
    unsigned wide = blocks_for(C, THREADS);
    LAUNCH(token_backward, dim3((unsigned)tokens, wide), THREADS, 0, m->c.stream,
           m->grads + at(m, WTE, 0), m->dres, m->token, m->start, m->rows, C, mask);
    LAUNCH(position_backward, dim3((unsigned)m->shape.context, wide), THREADS, 0, m->c.stream,
           m->grads + at(m, WPE, 0), m->dres, p->B, p->T, C, mask, add);
}

/* The rows of a pass by token, for token_backward: a counting sort on the host, while the device is
 * busy with the forward pass. Returns the number of distinct tokens. */
static size_t sort_tokens(GptCuda *m, const int32_t *in, size_t n) {
    int32_t *seen = m->host, *token = seen + m->V + 1, *start = token + m->capacity,
            *rows = start + m->capacity + 1;
    size_t distinct = 0;
    int32_t sum = 0;
    memset(seen, 0, m->V * sizeof *seen);
    for (size_t r = 0; r < n; r++) seen[in[r]]++;
    for (size_t v = 0; v < m->V; v++) {
        if (!seen[v]) continue;
        int32_t count = seen[v];
        token[distinct] = (int32_t)v;
        start[distinct++] = seen[v] = sum;
        sum += count;
    }
    start[distinct] = sum;
    for (size_t r = 0; r < n; r++) rows[seen[in[r]]++] = (int32_t)r;
    cuda_copy(&m->c, m->token, token, distinct);
    cuda_copy(&m->c, m->start, start, distinct + 1);
    cuda_copy(&m->c, m->rows, rows, n);
    return distinct;
}

/* The parameters of a pass, and their copy as S. */
static void prepare_weights(GptCuda *m, const GptCudaPass *p) {
    size_t P = m->shape.parameters;
    if (p->same_params) return;
    m->current = m->params;
    if (p->params) {
        if (!m->foreign) m->foreign = take<float>(m, P + 64 * m->C);
        cuda_copy(&m->c, m->foreign, p->params, P);
        m->current = m->foreign;
    }
    m->full.weights = m->current;
    if (m->shape.bf16 && !*m->c.error)
        LAUNCH(to_bf16, blocks_for(P, 4 * THREADS), THREADS, 0, m->c.stream, m->half.weights,
               m->current, P);
}

template <typename S> static void run(GptCuda *m, const GptCudaPass *p) {
    size_t n = p->B * p->T, V = m->V;
    cuda_copy(&m->c, m->in, p->in, n);
    if (p->target) cuda_copy(&m->c, m->target, p->target, n);
    prepare_weights(m, p);
    if (*m->c.error) return;
    forward<S>(m, p);
    if (p->training) {
        size_t tokens = sort_tokens(m, p->in, n);
        if (!*m->c.error) backward<S>(m, p, tokens);
    }
    if (p->logits) { /* of the last token only, by the way of fp32 in `partial` */
        Arrays<S> *a = arrays<S>(m);
        cuda_multiply(&m->c, operand(a->logits, m->padded, false),
                      operand(a->normf + (n - 1) * m->C, m->C, false),
                      operand(a->weights + at(m, WTE, 0), m->C, true), 1, m->padded, m->C);
        if (!*m->c.error)
            LAUNCH(sum_rows<S>, dim3(blocks_for(V, WARP), 1), THREADS, THREADS * sizeof(float),
                   m->c.stream, m->partial, a->logits, (size_t)1, V, V, (size_t)1, 0);
        cuda_copy(&m->c, p->logits, m->partial, V);
    }
    cuda_failed(&m->c, cudaGetLastError(), "a launch");
    if (p->losses) cuda_copy(&m->c, p->losses, m->losses, n);
    if (p->losses || p->logits) cuda_finish(&m->c);
}

/* ------------------------------------------------------------------------------------------------
 * what C sees; see gpt_cuda.h */

static int result(GptCuda *m, char *error, size_t size) {
    if (*m->c.error) snprintf(error, size, "%s", m->c.error);
    return *m->c.error ? -1 : 0;
}

static void open_device(GptCuda *m, int device) {
    cudaDeviceProp about;
    int devices = 0;
    cudaError_t e = cudaGetDeviceCount(&devices);
    if (e != cudaSuccess || device >= devices) {
        cuda_fail(&m->c, "GPU %d cannot be used: %s; there are %d, counted from 0", device,
                  e == cudaSuccess ? "it is not there" : cudaGetErrorString(e), devices);
        return;
    }
    m->c.device = device;
    if (cuda_failed(&m->c, cudaSetDevice(m->c.device), "opening it") ||
        cuda_failed(&m->c, cudaGetDeviceProperties(&about, m->c.device),
                    "asking for its properties") ||
        cuda_failed(&m->c, cudaStreamCreate(&m->c.stream), "making a stream"))
        return;
    snprintf(m->name, sizeof m->name, "%s", about.name);
    if (about.major < 8)
        cuda_fail(&m->c, "device %d: %s has compute capability %d.%d, 8.0 is the least",
                  m->c.device, m->name, about.major, about.minor);
    if (cublasLtCreate(&m->c.blas) != CUBLAS_STATUS_SUCCESS)
        cuda_fail(&m->c, "device %d: cuBLASLt cannot be started", m->c.device);
}

extern "C" int gpt_cuda_devices(void) {
    int devices = 0;
    return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

/* A model with its sizes, without arrays; NULL: no memory. */
static GptCuda *new_model(const GptCudaShape *shape, size_t batch, int train) {
    GptCuda *m = (GptCuda *)calloc(1, sizeof *m);
    if (!m) return NULL;
    m->shape = *shape;
    m->train = train;
    m->C = (size_t)shape->width, m->V = (size_t)shape->vocab, m->NH = (size_t)shape->heads;
    m->HS = m->C / m->NH;
    m->capacity = batch * (size_t)shape->context;
    m->padded = (m->V + 63) / 64 * 64;
    size_t chunks = (m->capacity * m->padded + CHUNK_VALUES - 1) / CHUNK_VALUES;
    m->chunk = ((m->capacity + chunks - 1) / chunks + 255) / 256 * 256;
    return m;
}

static void take_all(GptCuda *m) {
    size_t n = m->capacity, C = m->C, P = m->shape.parameters;
    /* 64 rows more than there are, for the padded columns of the logits; see lm_head */
    m->params = take<float>(m, P + 64 * C);
    m->full.weights = m->params;
    if (m->shape.bf16) m->half.weights = take<bf16>(m, P + 64 * C);
    if (m->shape.bf16)
        take_arrays<bf16>(m);
    else
        take_arrays<float>(m);
    m->in = take<int32_t>(m, n), m->target = take<int32_t>(m, n);
    m->losses = take<float>(m, n);
    size_t sums = (n / SUM_ROWS + 1) * 4 * C, norms = (n / NORM_ROWS + 1) * 2 * C;
    size_t partial = sums > norms ? sums : norms;
    m->partial = take<float>(m, partial > m->padded ? partial : m->padded);
    m->c.workspace = take<char>(m, CUDA_WORKSPACE);
    if (!m->train) return;
    m->grads = take<float>(m, P + 64 * C);
    m->dres = take<float>(m, n * C), m->delta = take<float>(m, n * m->NH);
    m->token = take<int32_t>(m, n), m->start = take<int32_t>(m, n + 1);
    m->rows = take<int32_t>(m, n);
}

extern "C" size_t gpt_cuda_measure(const GptCudaShape *shape, size_t batch, int train) {
    GptCuda *m = new_model(shape, batch, train);
    if (!m) return 0;
    m->measures = 1;
    take_all(m);
    size_t bytes = m->bytes;
    free(m->full.layer), free(m->half.layer), free(m);
    return bytes;
}

extern "C" GptCuda *gpt_cuda_create(const GptCudaShape *shape, size_t batch, int train, int device,
                                    char *error, size_t size) {
    GptCuda *m = new_model(shape, batch, train);
    if (!m) return snprintf(error, size, "no memory"), (GptCuda *)NULL;
    open_device(m, device);
    if (shape->bf16 && m->C % 8) cuda_fail(&m->c, "in bf16 the width must be a multiple of 8");
    if (train) m->host = (int32_t *)malloc((m->V + 2 + 3 * m->capacity) * sizeof *m->host);
    if (train && !m->host) cuda_fail(&m->c, "no memory for %zu tokens", m->capacity);
    take_all(m);
    if (!cuda_finish(&m->c)) return m;
    snprintf(error, size, "%s", m->c.error);
    gpt_cuda_free(m);
    return NULL;
}

template <typename S> static void free_arrays(GptCuda *m, Arrays<S> *a) {
    for (int l = 0; a->layer && l < (m->train ? m->shape.layers : 1); l++) {
        Layer<S> *y = &a->layer[l];
        void *all[] = {y->in,  y->mid, y->stats1, y->stats2, y->lse, y->norm1,
                       y->qkv, y->att, y->norm2,  y->fc,     y->gelu};
        for (void *x : all) cudaFree(x);
    }
    void *all[] = {a->last,  a->statsf, a->normf, a->branch, a->logits,
                   a->dnorm, a->datt,   a->dqkv,  a->dfc};
    for (void *x : all) cudaFree(x);
    free(a->layer);
}

extern "C" void gpt_cuda_free(GptCuda *m) {
    if (!m) return;
    free_arrays(m, &m->full);
    free_arrays(m, &m->half);
    void *all[] = {m->params, m->grads, m->foreign, m->half.weights, m->in,
                   m->target, m->token, m->start,   m->rows,         m->losses,
                   m->dres,   m->delta, m->partial, m->c.workspace};
    for (void *x : all) cudaFree(x);
    cuda_close(&m->c);
    free(m->host);
    free(m);
}

extern "C" Cuda *gpt_cuda_context(GptCuda *m) { return &m->c; }
extern "C" const char *gpt_cuda_name(const GptCuda *m) { return m->name; }
extern "C" size_t gpt_cuda_bytes(const GptCuda *m) { return m->bytes; }
extern "C" float *gpt_cuda_params(GptCuda *m) { return m->params; }
extern "C" const float *gpt_cuda_grads(GptCuda *m) { return m->grads; }

extern "C" int gpt_cuda_write_params(GptCuda *m, const float *params, char *error, size_t size) {
    cuda_copy(&m->c, m->params, params, m->shape.parameters);
    cuda_finish(&m->c);
    return result(m, error, size);
}

extern "C" int gpt_cuda_read(GptCuda *m, float *params, float *grads, char *error, size_t size) {
    if (params) cuda_copy(&m->c, params, m->params, m->shape.parameters);
    if (grads) cuda_copy(&m->c, grads, m->grads, m->shape.parameters);
    cuda_finish(&m->c);
    return result(m, error, size);
}

extern "C" int gpt_cuda_pass(GptCuda *m, const GptCudaPass *p, char *error, size_t size) {
    if (m->shape.bf16)
        run<bf16>(m, p);
    else
        run<float>(m, p);
    return result(m, error, size);
}
