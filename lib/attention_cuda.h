/* attention_cuda.h - causal attention on a GPU, forward and backward, memory linear in T. MIT.

   lib/gpt_cuda.cu includes it after lib/cuda.h. What train_gpt.c's attention_forward and
   attention_backward do, in two ways:
   - tiles  bf16 with heads of 32, 64 or 128, by tensor cores (FlashAttention-2, Dao 2023): a block
            owns 64 rows of a head, a warp 16 of them. Scores stay in registers, since the
            accumulators of one product are the left operand of the next one.
   - rows   any other type or size of head: a warp owns one row, its lanes take the others.
   The owners of queries compute dq, the owners of keys dk and dv, and both recompute the scores:
   no two blocks add to the same gradient, so the bits do not depend on the order of blocks.

   Head number b NH + h has its rows in qkv (B T, 3C) at b T 3C + h HS, keys C behind the queries,
   values C behind the keys. Arrays begin at multiples of 16 bytes. */
#ifndef ATTENTION_CUDA_H
#define ATTENTION_CUDA_H

enum { ATT_TILE = 64, ATT_WARPS = 4, ATT_THREADS = ATT_WARPS * WARP };

/* What all kernels get. Rows of q, k, v and gradients are 3C apart, rows of att and datt C. */
struct Attention {
    int B, T, NH, HS;
    int tiles;           /* of 64 rows in a head; 0: by rows */
    float scale;         /* of the scores, 1 / sqrt(HS) */
    uint64_t key, limit; /* key = 0: no dropout; else an entry is dropped if its hash < limit, */
    float keep;          /* or multiplied by keep */
};

/* Where a head begins in an array (B T, `wide` C) */
__device__ __forceinline__ size_t head_at(const Attention &a, size_t head, int wide) {
    return (head / a.NH * a.T * a.NH * wide + head % a.NH) * a.HS;
}

__device__ __forceinline__ bool drops(const Attention &a, size_t head, int i, int j) {
    return hash64(hash64(a.key, head) | 1, (uint64_t)i * a.T + j) < a.limit;
}

/* ------------------------------------------------------------------------------------------------
 * tiles: 64 rows of a head in shared memory, HS + 8 values apart, so that the 8 rows which an
 * ldmatrix reads at once lie in different banks. Lane 4g + t of a warp holds of a 16 x 8 piece
 * (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1). Exponentials are powers of 2. */

#define LOG2E 1.4426950408889634f

/* Begin to copy rows [at, at + 64) of a head, `stride` values apart; rows from T on become 0. */
template <int HS>
__device__ __forceinline__ void fetch_tile(bf16 *tile, const bf16 *x, int stride, int at, int T) {
    const int packs = HS / 8, rows = ATT_THREADS / packs; /* that the block copies at once */
    int row = threadIdx.x / packs, column = threadIdx.x % packs * 8;
    x += (size_t)at * stride + (row * stride + column);
    tile += row * (HS + 8) + column;
    for (int i = 0; i < ATT_TILE; i += rows)
        copy_async(tile + i * (HS + 8), x + i * stride, at + row + i < T);
    copy_commit();
}

/* a <- 16 rows of a tile as the left operand of a product */
template <int HS> __device__ __forceinline__ void load_left(uint32_t a[HS / 16][4], const bf16 *x) {
    int lane = threadIdx.x % WARP;
    x += lane % 16 * (HS + 8) + lane / 16 * 8;
    for (int k = 0; k < HS / 16; k++) load_matrices(a[k], x + 16 * k);
}

/* s (16, N) = a (16, HS) x^T for N rows x of a tile */
template <int HS, int N>
__device__ __forceinline__ void tile_scores(float s[N / 8][4], const uint32_t a[HS / 16][4],
                                            const bf16 *x) {
    int lane = threadIdx.x % WARP;
    x += (lane / 16 * 8 + lane % 8) * (HS + 8) + lane / 8 % 2 * 8;
    for (int e = 0; e < N / 2; e++) s[e / 4][e % 4] = 0;
    for (int k = 0; k < HS / 16; k++)
        for (int j = 0; j < N / 16; j++) {
            uint32_t b[4];
            load_matrices(b, x + 16 * j * (HS + 8) + 16 * k);
            mma_bf16(s[2 * j], a[k], b);
            mma_bf16(s[2 * j + 1], a[k], b + 2);
        }
}

/* d (16, HS) += p (16, N) x for N rows x of a tile, p rounded to bf16 */
template <int HS, int N>
__device__ __forceinline__ void tile_add(float d[HS / 8][4], const float p[N / 8][4],
                                         const bf16 *x) {
    int lane = threadIdx.x % WARP;
    x += lane % 16 * (HS + 8) + lane / 16 * 8;
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[4];
        for (int i = 0; i < 4; i++) {
            const float *pair = p[2 * k + i / 2] + i % 2 * 2;
            __nv_bfloat162 rounded = __floats2bfloat162_rn(pair[0], pair[1]);
            memcpy(&a[i], &rounded, sizeof a[i]);
        }
        for (int j = 0; j < HS / 16; j++) {
            uint32_t b[4];
            load_matrices_transposed(b, x + 16 * k * (HS + 8) + 16 * j);
            mma_bf16(d[2 * j], a, b);
            mma_bf16(d[2 * j + 1], a, b + 2);
        }
    }
}

/* Store d (16, HS), its rows times factor0 (the upper 8) or factor1, below row T of a head. */
template <int HS>
__device__ __forceinline__ void store_rows(bf16 *x, size_t stride, const float d[HS / 8][4],
                                           int row, int T, float factor0, float factor1) {
    for (int e = 0; e < 4 && row < T; e += 2, row += 8)
        for (int j = 0; j < HS / 8; j++) {
            float factor = e ? factor1 : factor0;
            float pair[2] = {d[j][e] * factor, d[j][e + 1] * factor};
            store<2>(x + row * stride + 8 * j + threadIdx.x % 4 * 2, pair);
        }
}

/* A block owns 64 queries and goes through the keys that they see, 64 at a time; the next tile of
 * keys and values is copied meanwhile. The last queries have the most work, so they come first. */
template <int HS, bool DROPOUT>
__global__ void __launch_bounds__(ATT_THREADS, DROPOUT ? 2 : 3)
    forward_tiles(bf16 *att, float *lse, const bf16 *qkv, Attention a) {
    SHARED(shared);
    const int size = ATT_TILE * (HS + 8), T = a.T, thread = threadIdx.x;
    int i0 = (a.tiles - 1 - (int)(blockIdx.x % a.tiles)) * ATT_TILE;
    int i = i0 + thread / WARP * 16 + thread % WARP / 4, column = thread % 4 * 2;
    size_t head = blockIdx.x / a.tiles, C = (size_t)a.NH * HS;
    const bf16 *q = qkv + head_at(a, head, 3), *k = q + C, *v = k + C;
    bf16 *now = (bf16 *)(void *)shared, *next = now + 2 * size; /* keys and values of a tile */
    uint32_t queries[HS / 16][4];
    float o[HS / 8][4] = {}, scale = a.scale * LOG2E;
    /* of the scores of the lane's two rows so far; each of a row's lanes has a part of the sum */
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    fetch_tile<HS>(next, q, 3 * C, i0, T);
    fetch_tile<HS>(now, k, 3 * C, 0, T);
    fetch_tile<HS>(now + size, v, 3 * C, 0, T);
    copy_wait<0>();
    __syncthreads();
    load_left<HS>(queries, next + thread / WARP * 16 * (HS + 8));
    for (int j0 = 0; j0 <= i0; j0 += ATT_TILE) {
        float p[ATT_TILE / 8][4];
        copy_wait<0>();
        __syncthreads(); /* everybody's copies are here, and nobody reads `next` any more */
        if (j0 < i0) {
            fetch_tile<HS>(next, k, 3 * C, j0 + ATT_TILE, T);
            fetch_tile<HS>(next + size, v, 3 * C, j0 + ATT_TILE, T);
        }
        tile_scores<HS, ATT_TILE>(p, queries, now);
        if (j0 == i0) /* causal mask */
            for (int e = 0; e < ATT_TILE / 2; e++)
                if (j0 + e / 4 * 8 + column + e % 2 > i + e / 2 % 2 * 8)
                    p[e / 4][e % 4] = -INFINITY;
        for (int r = 0; r < 2; r++) { /* p = exp(scale (score - largest)) */
            float top = largest[r];
            for (int j = 0; j < ATT_TILE / 8; j++)
                top = fmaxf(top, fmaxf(p[j][2 * r], p[j][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            float offset = top * scale, decay = exp2_fast(largest[r] * scale - offset);
            largest[r] = top;
            sum[r] *= decay;
            for (int j = 0; j < HS / 4; j++) o[j / 2][2 * r + j % 2] *= decay;
            for (int j = 0; j < ATT_TILE / 4; j++) {
                float *x = &p[j / 2][2 * r + j % 2];
                *x = exp2_fast(*x * scale - offset);
                sum[r] += *x;
            }
        }
        for (int e = 0; DROPOUT && e < ATT_TILE / 2; e++)
            if (drops(a, head, i + e / 2 % 2 * 8, j0 + e / 4 * 8 + column + e % 2))
                p[e / 4][e % 4] = 0;
        tile_add<HS, ATT_TILE>(o, p, now + size);
        bf16 *done = now;
        now = next, next = done;
    }
    for (int r = 0, row = i; r < 2; r++, row += 8) {
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 1);
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 2);
        if (column == 0 && row < T) lse[head * T + row] = largest[r] * a.scale + logf(sum[r]);
    }
    store_rows<HS>(att + head_at(a, head, 1), C, o, i, T, a.keep / sum[0], a.keep / sum[1]);
}

/* With KEYS a block owns 64 keys and visits the queries that see them: dk and dv. Else it owns 64
 * queries and visits the keys that they see: dq. Its own rows are the left operands, so with KEYS
 * scores and their gradient are transposed. N columns of a tile at a time limit the registers. */
template <int HS, bool DROPOUT, bool KEYS>
__global__ void __launch_bounds__(ATT_THREADS, 4 - HS / 64)
    backward_tiles(bf16 *dqkv, const float *delta, const bf16 *datt, const float *lse,
                   const bf16 *qkv, Attention a) {
    SHARED(shared);
    const int size = ATT_TILE * (HS + 8), N = HS > 64 ? 16 : 32, T = a.T, thread = threadIdx.x;
    int tile = blockIdx.x % a.tiles, own = (KEYS ? tile : a.tiles - 1 - tile) * ATT_TILE;
    int at = KEYS ? own : 0, end = KEYS ? T : own + 1;
    int piece = thread / WARP * 16, row = own + piece + thread % WARP / 4, column = thread % 4 * 2;
    size_t head = blockIdx.x / a.tiles, C = (size_t)a.NH * HS;
    const bf16 *q = qkv + head_at(a, head, 3), *k = q + C, *v = k + C;
    const bf16 *dout = datt + head_at(a, head, 1), *right = KEYS ? q : k, *dright = KEYS ? dout : v;
    int left_stride = KEYS ? 3 * C : C, right_stride = KEYS ? C : 3 * C;
    bf16 *buffers = (bf16 *)(void *)shared;                 /* tiles of right and dright, twice */
    float *queries = (float *)(void *)(buffers + 4 * size); /* lse and delta of a tile, twice */
    uint32_t left[HS / 16][4], dleft[HS / 16][4];           /* k and v, or q and datt */
    float d[HS / 8][4] = {}, dv[HS / 8][4] = {};            /* dk or dq; dv */
    /* a thread copies lse in bits or delta of a query; 0 from T on, where q and datt are 0 too */
    auto value_of = [&](int tile) {
        int i = tile + thread % ATT_TILE;
        return i >= T ? 0 : thread < ATT_TILE ? lse[head * T + i] * LOG2E : delta[head * T + i];
    };

    fetch_tile<HS>(buffers + 2 * size, KEYS ? k : q, 3 * C, own, T);
    fetch_tile<HS>(buffers + 3 * size, KEYS ? v : dout, left_stride, own, T);
    fetch_tile<HS>(buffers, right, 3 * C, at, T);
    fetch_tile<HS>(buffers + size, dright, right_stride, at, T);
    queries[thread] = value_of(own);
    copy_wait<0>();
    __syncthreads();
    load_left<HS>(left, buffers + 2 * size + piece * (HS + 8));
    load_left<HS>(dleft, buffers + 3 * size + piece * (HS + 8));
    for (int turn = 0; at < end; at += ATT_TILE, turn ^= 1) {
        bf16 *now = buffers + turn * 2 * size, *next = buffers + (1 - turn) * 2 * size;
        float value = KEYS ? value_of(at + ATT_TILE) : 0;
        copy_wait<0>();
        __syncthreads(); /* everybody's copies are here, and nobody reads `next` any more */
        if (at + ATT_TILE < end) {
            fetch_tile<HS>(next, right, 3 * C, at + ATT_TILE, T);
            fetch_tile<HS>(next + size, dright, right_stride, at + ATT_TILE, T);
        }
        for (int n = 0; n < ATT_TILE; n += N) {
            const bf16 *x = now + n * (HS + 8), *dx = x + size;
            float p[N / 8][4], dp[N / 8][4];
            tile_scores<HS, N>(p, left, x);
            tile_scores<HS, N>(dp, dleft, dx);
            for (int e = 0; at == own && e < N / 2; e++) { /* causal mask */
                int r = row + e / 2 % 2 * 8, c = at + n + e / 4 * 8 + column + e % 2;
                if (KEYS ? r > c : c > r) p[e / 4][e % 4] = -INFINITY;
            }
            /* p = probabilities after dropout, still without `keep`; dp = gradient of the scores */
            for (int e = 0; e < N / 2; e++) {
                int r = row + e / 2 % 2 * 8, c = at + n + e / 4 * 8 + column + e % 2;
                int i = KEYS ? c : r, j = KEYS ? r : c;
                const float *of = queries + (KEYS ? turn * ATT_THREADS + i - at : i - own);
                bool drop = DROPOUT && drops(a, head, i, j);
                float whole = exp2_fast(p[e / 4][e % 4] * (a.scale * LOG2E) - of[0]);
                float dwhole = dp[e / 4][e % 4] * (DROPOUT ? a.keep : 1);
                p[e / 4][e % 4] = drop ? 0 : whole;
                dp[e / 4][e % 4] = whole * ((drop ? 0 : dwhole) - of[ATT_TILE]);
            }
            if (KEYS) tile_add<HS, N>(dv, p, dx);
            tile_add<HS, N>(d, dp, x);
        }
        if (KEYS) queries[(1 - turn) * ATT_THREADS + thread] = value;
    }
    bf16 *out = dqkv + head_at(a, head, 3) + (KEYS ? C : 0);
    store_rows<HS>(out, 3 * C, d, row, T, a.scale, a.scale);
    if (KEYS) store_rows<HS>(out + C, 3 * C, dv, row, T, a.keep, a.keep);
}

/* ------------------------------------------------------------------------------------------------
 * rows: a warp owns one row of a head, its 32 lanes take as many of the other rows at a time. The
 * sums of the warp's row lie in shared memory; each lane has its own columns of them. */

/* x (n) . y (n), or the part of lane `lane` of `lanes`; 16 bytes at a time where rows allow it */
template <typename S>
__device__ __forceinline__ float dot(const S *x, const S *y, int n, int lane = 0, int lanes = 1) {
    const int W = 16 / sizeof(S);
    float sum = 0, a[W], b[W];
    if (n % W == 0)
        for (int d = lane * W; d < n; d += lanes * W) {
            load<W>(a, x + d);
            load<W>(b, y + d);
            for (int i = 0; i < W; i++) sum += a[i] * b[i];
        }
    else
        for (int d = lane; d < n; d += lanes) sum += to_float(x[d]) * to_float(y[d]);
    return sum;
}

/* delta (B, NH, T) = datt . att of each row of each head, which is the mean of the gradient of the
 * row's probabilities, weighted with them. Eight lanes take a row of a head, as they lie in att. */
template <typename S>
__global__ void attention_delta(float *delta, const S *datt, const S *att, Attention a) {
    unsigned number = blockIdx.x * (ATT_THREADS / 8) + threadIdx.x / 8, lane = threadIdx.x % 8;
    unsigned row = number / a.NH, b = row / a.T;
    size_t at = (size_t)number * a.HS;
    float sum = b < (unsigned)a.B ? dot(datt + at, att + at, a.HS, lane, 8) : 0;
    for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (b < (unsigned)a.B && lane == 0)
        delta[((size_t)b * a.NH + number % a.NH) * a.T + row % a.T] = sum;
}

/* A warp owns a query: att and lse, or dq; or a key: dk and dv. */
enum AttentionPart { ATT, DQ, DKV };
template <typename S, AttentionPart PART>
__global__ void __launch_bounds__(ATT_THREADS)
    attention_rows(S *out, float *new_lse, const float *delta, const S *datt, const float *lse,
                   const S *qkv, Attention a) {
    SHARED(shared);
    const int KEYS = PART == DKV, wide = PART == ATT ? 1 : 3; /* out is (B T, wide C) */
    size_t number = (size_t)blockIdx.x * ATT_WARPS + threadIdx.x / WARP, head = number / a.T;
    if (head >= (size_t)a.B * a.NH) return;
    int own = number % a.T, end = KEYS ? a.T : own + 1, HS = a.HS, lane = threadIdx.x % WARP;
    size_t C = (size_t)a.NH * HS, first = head * a.T;
    const S *q = qkv + head_at(a, head, 3), *k = q + C, *dout = datt + head_at(a, head, 1);
    /* sums over the other rows of ds times k or q, and of p times v or datt */
    float *of_ds = (float *)(void *)shared + threadIdx.x / WARP * 2 * HS, *of_p = of_ds + HS;
    float largest = -INFINITY, sum = 0; /* of the scores, and of exp(score - largest) */
    for (int d = lane; d < HS; d += WARP) of_ds[d] = of_p[d] = 0;
    for (int at = KEYS ? own : 0; at < end; at += WARP) {
        int other = at + lane, i = KEYS ? other : own, j = KEYS ? own : other;
        bool here = other < end, drop = a.key && drops(a, head, i, j);
        const S *qi = q + i * 3 * C, *kj = k + j * 3 * C;
        float score = here ? dot(qi, kj, HS) * a.scale : -INFINITY, p = 0, ds = 0;
        if (PART == ATT) {
            float top = fmaxf(largest, warp_max(score)), decay = expf(largest - top);
            p = expf(score - top);
            largest = top;
            sum = sum * decay + warp_sum(p);
            for (int d = lane; d < HS; d += WARP) of_p[d] *= decay;
        } else if (here) {
            float dp = drop ? 0 : dot(dout + i * C, kj + C, HS) * a.keep;
            p = expf(score - lse[first + i]);
            ds = p * (dp - delta[first + i]) * a.scale;
            p *= a.keep;
        }
        if (drop) p = 0;
        for (int n = 0; n < WARP && at + n < end; n++) {
            float pn = __shfl_sync(ALL_LANES, p, n), dsn = __shfl_sync(ALL_LANES, ds, n);
            const S *x = (KEYS ? q : k) + (at + n) * 3 * C, *y = KEYS ? dout + (at + n) * C : x + C;
            for (int d = lane; d < HS; d += WARP) {
                if (PART != ATT) of_ds[d] += dsn * to_float(x[d]);
                if (PART != DQ) of_p[d] += pn * to_float(y[d]);
            }
        }
    }
    if (PART == ATT && lane == 0) new_lse[number] = largest + logf(sum);
    out += head_at(a, head, wide) + (own * wide + KEYS) * C;
    for (int d = lane; d < HS; d += WARP) {
        from_float(out + d, PART == ATT ? of_p[d] * (a.keep / sum) : of_ds[d]);
        if (KEYS) from_float(out + C + d, of_p[d]);
    }
}

template <typename S>
static Attention attention_of(size_t B, size_t T, size_t NH, size_t HS, uint64_t key,
                              double dropout) {
    bool fits = sizeof(S) == sizeof(bf16) && (HS == 32 || HS == 64 || HS == 128);
    int tiles = fits ? (int)blocks_for(T, ATT_TILE) : 0;
    float scale = 1 / sqrtf((float)HS), keep = key ? (float)(1 / (1 - dropout)) : 1;
    uint64_t limit = (uint64_t)(dropout * 0x1p64);
    return {(int)B, (int)T, (int)NH, (int)HS, tiles, scale, key, limit, keep};
}

/* A kernel over tiles, or over rows with two rows of sums for each warp. */
template <typename Kernel, typename... Arguments>
static void attention_launch(Cuda *c, const Attention &a, Kernel kernel, Arguments... arguments) {
    size_t heads = (size_t)a.B * a.NH, row = (a.HS + 8) * sizeof(bf16) + sizeof(float);
    size_t blocks = a.tiles ? heads * a.tiles : blocks_for(heads * a.T, ATT_WARPS);
    size_t bytes = a.tiles ? 4 * ATT_TILE * row : 2 * ATT_WARPS * a.HS * sizeof(float);
    const cudaFuncAttribute shared = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cuda_failed(c, cudaFuncSetAttribute(kernel, shared, (int)bytes), "attention")) return;
    LAUNCH(kernel, (unsigned)blocks, ATT_THREADS, bytes, c->stream, arguments..., a);
    cuda_failed(c, cudaGetLastError(), "launching attention");
}

/* The instance of a kernel over tiles for heads of HS */
#define BY_HS(name, ...)                                                                           \
    (HS == 32 ? name<32, __VA_ARGS__> : HS == 64 ? name<64, __VA_ARGS__> : name<128, __VA_ARGS__>)

/* att (B T, C) = dropout(softmax(causal mask(q k^T / sqrt(HS)))) v of each head; lse (B, NH, T) =
 * log of the sum of exp of a query's scores. `key` is that of the layer's masks, 0: no dropout.
 * 2 B NH T^2 HS flop. */
template <typename S>
void attention_forward_cuda(Cuda *c, S *att, float *lse, const S *qkv, size_t B, size_t T,
                            size_t NH, size_t HS, uint64_t key, double dropout) {
    const Attention a = attention_of<S>(B, T, NH, HS, key, dropout);
    auto tiles = key ? BY_HS(forward_tiles, true) : BY_HS(forward_tiles, false);
    if (a.tiles)
        attention_launch(c, a, tiles, (bf16 *)att, lse, (const bf16 *)qkv);
    else
        attention_launch(c, a, attention_rows<S, ATT>, att, lse, lse, att, lse, qkv);
}

/* dqkv (B T, 3C) from datt (B T, C), and what the forward pass read and returned. delta (B, NH, T)
 * is scratch. 7 B NH T^2 HS flop. */
template <typename S>
void attention_backward_cuda(Cuda *c, S *dqkv, float *delta, const S *datt, const S *att,
                             const float *lse, const S *qkv, size_t B, size_t T, size_t NH,
                             size_t HS, uint64_t key, double dropout) {
    const Attention a = attention_of<S>(B, T, NH, HS, key, dropout);
    auto dkv = key ? BY_HS(backward_tiles, true, true) : BY_HS(backward_tiles, false, true);
    auto dq = key ? BY_HS(backward_tiles, true, false) : BY_HS(backward_tiles, false, false);
    if (*c->error) return;
    LAUNCH(attention_delta<S>, blocks_for(B * T * NH, ATT_THREADS / 8), ATT_THREADS, 0, c->stream,
           delta, datt, att, a);
    for (int keys = 0; keys < 2; keys++)
        if (a.tiles)
            attention_launch(c, a, keys ? dkv : dq, (bf16 *)dqkv, delta, (const bf16 *)datt, lse,
                             (const bf16 *)qkv);
        else
            attention_launch(c, a, keys ? attention_rows<S, DKV> : attention_rows<S, DQ>, dqkv,
                             delta, delta, datt, lse, qkv);
}

#endif
