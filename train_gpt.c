/* train_gpt.c - trains a GPT with many workers, samples from it, evaluates it. The program. MIT.

   GPT-2 as nanoGPT's model.py has it (learned positions, pre-LayerNorm, causal attention, GELU in
   its tanh form, MLP of 4 C, lm_head tied to the embedding), forward and backward by hand in fp32,
   trained by N workers. Each worker holds a shard of the data, a gradient, a momentum and a copy of
   the parameters; the optimizer of signmuon.c moves all copies together.

   In this order: tensors, kernels, attention, forward, backward, sampling; then evaluation,
   samples, the step, train, main. Options, text and messages are in run.h, saves and logs in
   record.h. */
#include <assert.h>
#include <math.h>
#include <signal.h>
#include "dataloader.h"   /* data_train_window data_val_window data_decode */
#include "lib/base.h"     /* base_allocate base_now */
#include "lib/comm.h"     /* comm_run comm_allgather comm_broadcast team_run team_barrier */
#include "lib/gemm.h"     /* gemm_multiply gemm_pack */
#include "lib/gpt_cuda.h" /* gpt_cuda_create gpt_cuda_pass gpt_cuda_stages */
#include "lib/report.h"   /* report_open_log report_text_put report_note */
#include "lib/vector.h"   /* fast_exp row_max Stored */
#include "optimizer.h"    /* sm_create sm_step sm_free */
#include "options.h"      /* Options flags schedule */
#include "record.h"       /* save load_model load_state log_row show_progress keep_sample */
#include "run.h"          /* Run Worker die must gather deployed_model agree_on prepare_run */
#include "signmuon.h"     /* sm_key sm_sum_squares sm_finite */

/* ------------------------------------------------------------------------------------------------
 * The model: GPT-2 as in nanoGPT's model.py.
 *
 *     x = wte[token] + wpe[position]                               (B, T, C) the residual stream
 *     each layer:  x += projection(attention(qkv(layernorm(x))))   tokens meet only in attention
 *                  x += out(gelu(fc(layernorm(x))))                the MLP
 *     logits = lm_head(layernorm(x))                               lm_head is wte again (tied)
 *
 * Shape letters: B sequences, T positions, C width, V vocabulary, L layers, NH heads, HS = C / NH,
 * n = B T tokens; d marks a gradient. Matrices are row-major.
 *
 * A tile is a group of 64 tokens. Each compute thread takes its own tiles through everything
 * between two attentions while they are in cache. No result depends on the number of threads: the
 * gradient of a vector is summed per tile, then over the tiles in their order; an entry of dW is
 * summed over all tokens by one thread, in a fixed order. */

typedef struct GptConfig {
    int layers, heads, width, context, vocab; /* L NH C T V */
    int bias;                                 /* linear maps and LayerNorms have biases */
    double dropout;
    uint64_t seed; /* of the initial parameters */
    int bf16;      /* products round their operands to bf16; stored activations are bf16 */
    int passes;    /* a gradient takes so many, each over as many sequences; 0 stands for 1 */
} GptConfig;

/* One row for each kind of parameter tensor. Kinds LN1W to OUTB exist once per layer; the bias of a
 * linear map or LayerNorm follows its weight. LayerNorms' weights start as ones, biases as zeros,
 * matrices as normal(0, 0.02), or normal(0, 0.02 / sqrt(2L)) if they feed the residual stream. */
enum { WTE, WPE, LN1W, LN1B, QKVW, QKVB, ATTW, ATTB, LN2W, LN2B, FCW, FCB, OUTW, OUTB, LNFW, LNFB };
enum { TENSOR_KINDS = LNFB + 1, TILE = 64 };

static const struct {
    const char *name;  /* nanoGPT's, behind "transformer."; %d is the layer */
    const char *shape; /* rows and columns of one block by their letters; a vector has one row */
    int blocks;        /* matrices, one below the other; 0 stands for 1 */
    SmRole role;       /* SM_VECTOR unless it says otherwise */
    int bias, residual;
} tensor_rows[TENSOR_KINDS] = {
    // clang-format off
    [WTE]  = {.name = "wte.weight", .shape = "VC", .role = SM_OUTPUT},
    [WPE]  = {.name = "wpe.weight", .shape = "TC", .role = SM_INPUT},
    [LN1W] = {.name = "h.%d.ln_1.weight", .shape = "1C"},
    [LN1B] = {.name = "h.%d.ln_1.bias", .shape = "1C", .bias = 1},
    [QKVW] = {.name = "h.%d.attn.c_attn.weight", .shape = "CC", .blocks = 3, .role = SM_HIDDEN},
    [QKVB] = {.name = "h.%d.attn.c_attn.bias", .shape = "1Q", .bias = 1},
    [ATTW] = {.name = "h.%d.attn.c_proj.weight", .shape = "CC", .role = SM_HIDDEN, .residual = 1},
    [ATTB] = {.name = "h.%d.attn.c_proj.bias", .shape = "1C", .bias = 1},
    [LN2W] = {.name = "h.%d.ln_2.weight", .shape = "1C"},
    [LN2B] = {.name = "h.%d.ln_2.bias", .shape = "1C", .bias = 1},
    [FCW]  = {.name = "h.%d.mlp.c_fc.weight", .shape = "FC", .role = SM_HIDDEN},
    [FCB]  = {.name = "h.%d.mlp.c_fc.bias", .shape = "1F", .bias = 1},
    [OUTW] = {.name = "h.%d.mlp.c_proj.weight", .shape = "CF", .role = SM_HIDDEN, .residual = 1},
    [OUTB] = {.name = "h.%d.mlp.c_proj.bias", .shape = "1C", .bias = 1},
    [LNFW] = {.name = "ln_f.weight", .shape = "1C"},
    [LNFB] = {.name = "ln_f.bias", .shape = "1C", .bias = 1},
    // clang-format on
};

/* ------------------------------------------------------------------------------------------------
 * arithmetic without a model */

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* The share [lo, hi) of n things that thread ith of nth takes. */
static void slice(size_t n, int ith, int nth, size_t *lo, size_t *hi) {
    *lo = n * (size_t)ith / (size_t)nth;
    *hi = n * ((size_t)ith + 1) / (size_t)nth;
}

/* ------------------------------------------------------------------------------------------------
 * what the model holds */

/* What the forward pass leaves of a layer for the backward pass, and the layer's packed weights. */
typedef struct GptLayer {
    float *in, *mid;        /* (n, C) the residual stream before attention, before the MLP */
    float *stats1, *stats2; /* (n, 2) of their LayerNorms: mean, 1/deviation */
    float *lse;             /* (B, NH, T) log of the sum of exponentials of a row of scores */
    Stored qkv;             /* (n, 3C) queries, keys, values; in each, head beside head */
    Stored att;             /* (n, C) what attention returns, head beside head */
    Stored fc;              /* (n, 4C) before GELU */
    float *forward[TENSOR_KINDS], *backward[TENSOR_KINDS]; /* W packed for x W^T and dout W */
} GptLayer;

typedef struct Gpt {
    GptConfig config;
    size_t C, V, NH, HS, capacity; /* C V NH HS as above; most sequences of a pass */
    const Gemm *gemm;
    Team *team;
    SmTensor *tensor;
    char (*names)[64];
    size_t tensors, parameters;
    const SmTensor *of_kind[TENSOR_KINDS]; /* in layer 0; NULL: there is none */
    float *params, *grads;
    GptCuda *cuda; /* a GPU that runs the passes and holds params and grads; NULL: this CPU */

    Arena arena;                                          /* holds all below */
    size_t activation_bytes, packed_bytes, scratch_bytes; /* the last of one thread */
    char *scratch;
    GptLayer *layer;              /* (L); layer 0 holds lm_head's packed weights */
    float *last, *statsf;         /* (n, C) (n, 2) the residual stream after the last layer */
    float *losses;                /* (n) in nats, 0 where the target is -1 */
    Stored dlogits;               /* (n, V) made with the losses, while the logits are in cache */
    float *dres;                  /* (n, C) gradient of the residual stream */
    Stored datt, dqkv;            /* (n, C) (n, 3C) */
    float *dout[TENSOR_KINDS];    /* (n, fan_out) of each linear map of the layer in work, packed */
    float *input[TENSOR_KINDS];   /* (n, fan_in) of the same; dW = dout^T input */
    float *partial[TENSOR_KINDS]; /* (tiles, cols) gradient of a vector, tile by tile */

    /* arguments of the pass under way, over rows [from, B T); from > 0 needs B = 1 */
    size_t B, T, from;
    const int32_t *in, *target; /* (B, T); a target of -1 does not count */
    float loss_scale;           /* of the mean over the targets that do, and over the passes */
    int training, add;          /* make gradients; add to those of the passes before */
    int weights_packed;
    uint64_t dropout_key;
    float *logits; /* NULL, or receives those after the last token, (V) */
} Gpt;

/* One compute thread of a pass: its share of the work, and its scratch. */
typedef struct Thread {
    Gpt *g;
    int ith, nth;
    size_t row, row_end;          /* its tokens, in whole tiles */
    size_t head, head_end;        /* its heads of all sequences, numbered b NH + h */
    float *gemm_scratch;          /* of gemm_multiply */
    float *norm, *dnorm, *branch; /* (TILE, C) a LayerNorm's output; a branch of the residual */
    float *wide[3];               /* (TILE, max(4C, V)) */
    float *p, *dp;                /* (TILE, T) attention probabilities, their gradient */
    float *keys, *values, *kv;    /* packed (HS, T), (HS, T) and, keys or values, (T, HS) */
    float *out;                   /* (3, T, HS) what a head makes: att, or dq, dk, dv */
} Thread;

static size_t tensor_size(const SmTensor *t) { return t->blocks * t->rows * t->cols; }
static size_t fan_out(const SmTensor *t) { return t->blocks * t->rows; }
static int in_layers(int kind) { return kind >= LN1W && kind <= OUTB; }
static int is_linear(int kind) { return tensor_rows[kind].role == SM_HIDDEN || kind == WTE; }

/* The tensor of that kind in layer l, and its parameters; NULL when the model has none. */
static const SmTensor *tensor_of(const Gpt *g, int kind, int l) {
    const SmTensor *t = g->of_kind[kind];
    size_t per_layer = (size_t)(g->of_kind[LNFW] - g->of_kind[LN1W]) / (size_t)g->config.layers;
    return t && in_layers(kind) ? t + (size_t)l * per_layer : t;
}
static float *param(const Gpt *g, int kind, int l) {
    const SmTensor *t = tensor_of(g, kind, l);
    return t ? g->params + t->offset : NULL;
}

/* ------------------------------------------------------------------------------------------------
 * memory */

/* The dimension that a letter of tensor_rows stands for; Q is 3 C, F is 4 C. */
static size_t dimension(const Gpt *g, char letter) {
    const size_t of[128] = {['1'] = 1,        ['C'] = g->C, ['Q'] = 3 * g->C,
                            ['F'] = 4 * g->C, ['V'] = g->V, ['T'] = (size_t)g->config.context};
    return of[letter & 127];
}

/* Append the tensors of kinds [from, to] in layer l. */
static void add_tensors(Gpt *g, int from, int to, int l) {
    for (int k = from; k <= to; k++) {
        if (tensor_rows[k].bias && !g->config.bias) continue;
        SmTensor *t = &g->tensor[g->tensors];
        char *name = g->names[g->tensors++];
        int length = snprintf(name, sizeof *g->names, "transformer.");
        snprintf(name + length, sizeof *g->names - (size_t)length, tensor_rows[k].name, l);
        *t = (SmTensor){.name = name,
                        .offset = g->parameters,
                        .rows = dimension(g, tensor_rows[k].shape[0]),
                        .cols = dimension(g, tensor_rows[k].shape[1]),
                        .blocks = tensor_rows[k].blocks ? (size_t)tensor_rows[k].blocks : 1,
                        .role = tensor_rows[k].role,
                        .decay = tensor_rows[k].role != SM_VECTOR};
        g->parameters += tensor_size(t);
        if (l == 0) g->of_kind[k] = t;
    }
}

/* Initial parameters, from the seed. */
static void gpt_init(Gpt *g) {
    int L = g->config.layers;
    for (int k = 0; k < TENSOR_KINDS; k++)
        for (int l = 0; g->of_kind[k] && l < (in_layers(k) ? L : 1); l++) {
            const SmTensor *t = tensor_of(g, k, l);
            double deviation = tensor_rows[k].residual ? 0.02 / sqrt(2.0 * L) : 0.02;
            uint64_t key = sm_key(g->config.seed, 0x696e6974u, (uint64_t)(t - g->tensor));
            float *w = g->params + t->offset, constant = tensor_rows[k].bias ? 0.0f : 1.0f;
            for (size_t i = 0; i < tensor_size(t); i++)
                w[i] = t->role == SM_VECTOR ? constant : (float)(deviation * base_normal(key, i));
        }
}

static float *floats(Arena *a, size_t n) { return arena_take(a, n * sizeof(float)); }
static Stored stored(const Gpt *g, Arena *a, size_t n) {
    size_t each = g->config.bf16 ? sizeof(uint16_t) : sizeof(float);
    return (Stored){arena_take(a, n * each), g->config.bf16};
}
static float *packed(const Gpt *g, Arena *a, GemmSide side, size_t lanes, size_t depth) {
    return floats(a, gemm_packed_floats(g->gemm, side, lanes, depth));
}

/* One thread's scratch from an arena; an empty arena only measures, here and below. */
static void take_scratch(const Gpt *g, Arena *a, Thread *t) {
    size_t T = (size_t)g->config.context, wide = 4 * g->C > g->V ? 4 * g->C : g->V;
    t->gemm_scratch = floats(a, gemm_scratch());
    for (int i = 0; i < 3; i++) t->wide[i] = floats(a, TILE * wide);
    t->norm = floats(a, TILE * g->C);
    t->dnorm = floats(a, TILE * g->C);
    t->branch = floats(a, TILE * g->C);
    t->p = floats(a, TILE * T);
    t->dp = floats(a, TILE * T);
    t->keys = packed(g, a, GEMM_B, T, g->HS);
    t->values = packed(g, a, GEMM_B, T, g->HS);
    t->kv = packed(g, a, GEMM_B, g->HS, T);
    t->out = floats(a, 3 * T * g->HS);
}

/* Everything, for B sequences: activations, packed weights, scratch. */
static void take_all(Gpt *g, Arena *a, size_t B, int train, int threads) {
    size_t n = B * (size_t)g->config.context, C = g->C, grad = train ? n : 0;
    for (int l = 0; l < g->config.layers; l++)
        g->layer[l] = (GptLayer){.in = floats(a, n * C),
                                 .mid = floats(a, n * C),
                                 .stats1 = floats(a, n * 2),
                                 .stats2 = floats(a, n * 2),
                                 .lse = floats(a, n * g->NH),
                                 .qkv = stored(g, a, n * 3 * C),
                                 .att = stored(g, a, n * C),
                                 .fc = stored(g, a, grad * 4 * C)};
    g->last = floats(a, n * C);
    g->statsf = floats(a, n * 2);
    g->losses = floats(a, n);
    g->dlogits = stored(g, a, grad * g->V);
    g->dres = floats(a, grad * C);
    g->datt = stored(g, a, grad * C);
    g->dqkv = stored(g, a, grad * 3 * C);
    for (int k = 0; k < TENSOR_KINDS && train; k++) {
        const SmTensor *t = g->of_kind[k];
        if (!t) continue;
        if (t->role == SM_VECTOR) g->partial[k] = floats(a, (n + TILE - 1) / TILE * t->cols);
        if (is_linear(k)) g->input[k] = packed(g, a, GEMM_B, t->cols, n);
        if (is_linear(k) && k != WTE) g->dout[k] = packed(g, a, GEMM_A, fan_out(t), n);
    }
    g->activation_bytes = a->used;
    for (int l = 0; l < g->config.layers; l++)
        for (int k = 0; k < TENSOR_KINDS; k++) {
            const SmTensor *t = tensor_of(g, k, l);
            if (!is_linear(k) || (k == WTE && l > 0)) continue;
            g->layer[l].forward[k] = packed(g, a, GEMM_B, fan_out(t), t->cols);
            if (train) g->layer[l].backward[k] = packed(g, a, GEMM_B, t->cols, fan_out(t));
        }
    g->packed_bytes = a->used - g->activation_bytes;
    Arena one = {0};
    take_scratch(g, &one, &(Thread){0});
    g->scratch_bytes = one.used;
    g->scratch = arena_take(a, (size_t)threads * one.used);
}

static void gpt_free(Gpt *g) {
    if (!g) return;
    if (g->cuda) gpt_cuda_free(g->cuda);
    void *all[] = {g->arena.block, g->layer, g->tensor, g->names, g->params, g->grads, g};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

/* A model for at most `batch` sequences, able to train or not. batch = 0 makes the table of tensors
 * only, and needs no team. The team must outlive the model. NULL: no memory. */
static Gpt *gpt_create(const GptConfig *c, size_t batch, int train, Team *team) {
    Gpt *g = base_allocate(sizeof *g);
    if (!g) return NULL;
    size_t L = (size_t)c->layers;
    g->config = *c;
    g->C = (size_t)c->width, g->V = (size_t)c->vocab, g->NH = (size_t)c->heads;
    g->HS = g->C / g->NH;
    g->gemm = gemm_default(c->bf16 ? GEMM_BF16 : GEMM_F32);
    g->tensor = base_allocate(L * TENSOR_KINDS * sizeof *g->tensor);
    g->names = base_allocate(L * TENSOR_KINDS * sizeof *g->names);
    g->layer = base_allocate(L * sizeof *g->layer);
    if (!g->gemm || !g->tensor || !g->names || !g->layer) goto failed;
    add_tensors(g, WTE, WPE, 0);
    for (int l = 0; l < c->layers; l++) add_tensors(g, LN1W, OUTB, l);
    add_tensors(g, LNFW, LNFB, 0);
    if (batch == 0) return g;

    Arena measure = {0};
    take_all(g, &measure, batch, train, team->threads);
    g->arena.block = base_allocate(measure.used);
    g->params = base_allocate(g->parameters * sizeof(float));
    if (train) g->grads = base_allocate(g->parameters * sizeof(float));
    if (!g->arena.block || !g->params || (train && !g->grads)) goto failed;
    take_all(g, &g->arena, batch, train, team->threads);
    g->capacity = batch;
    g->team = team;
    return g;
failed:
    gpt_free(g);
    return NULL;
}

/* Bytes of such a model's arena, and how many of them hold activations and packed weights; 0 when
 * there is no memory for the table of tensors. */
static size_t gpt_bytes(const GptConfig *c, size_t batch, int train, int threads,
                        size_t *activations, size_t *packed_weights) {
    Arena measure = {0};
    Gpt *g = gpt_create(c, 0, 0, NULL);
    if (!g) return 0;
    take_all(g, &measure, batch, train, threads);
    *activations = g->activation_bytes;
    *packed_weights = g->packed_bytes;
    gpt_free(g);
    return measure.used;
}

/* What lib/gpt_cuda.cu needs to know of a model. */
static GptCudaShape cuda_shape(const Gpt *g) {
    const GptConfig *c = &g->config;
    size_t layers = (size_t)c->layers;
    GptCudaShape shape = {.layers = c->layers,
                          .heads = c->heads,
                          .width = c->width,
                          .context = c->context,
                          .vocab = c->vocab,
                          .dropout = c->dropout,
                          .bf16 = c->bf16,
                          .parameters = g->parameters};
    shape.stride = (int64_t)((g->of_kind[LNFW]->offset - g->of_kind[LN1W]->offset) / layers);
    for (int k = 0; k < TENSOR_KINDS; k++)
        shape.offset[k] = g->of_kind[k] ? (int64_t)g->of_kind[k]->offset : -1;
    return shape;
}

/* The same model on a GPU, which holds params and grads: g->params is a copy, as gpt_fetch has left
 * it, g->grads only what gpt_fetch_grads fills. NULL and a sentence. */
static Gpt *gpt_create_cuda(const GptConfig *c, size_t batch, int train, int device, char *error,
                            size_t size) {
    Gpt *g = gpt_create(c, 0, 0, NULL);
    base_fail(error, size, 0, "%s", NO_MEMORY);
    if (!g) return NULL;
    GptCudaShape shape = cuda_shape(g);
    g->capacity = batch;
    g->params = base_allocate(g->parameters * sizeof(float));
    g->arena.block = base_allocate(batch * (size_t)c->context * sizeof(float));
    g->losses = (float *)(void *)g->arena.block;
    if (g->params && g->losses)
        g->cuda = gpt_cuda_create(&shape, batch, train, device, error, size);
    if (g->cuda) return g;
    gpt_free(g);
    return NULL;
}

/* g->params <- the parameters on the device; nothing to do on the CPU. */
static void gpt_fetch(Gpt *g) {
    char error[512];
    if (g->cuda) must(gpt_cuda_read(g->cuda, g->params, NULL, error, sizeof error), error);
}
static void gpt_fetch_grads(Gpt *g) {
    char error[512];
    if (!g->grads) g->grads = allocate(g->parameters * sizeof(float));
    must(gpt_cuda_read(g->cuda, NULL, g->grads, error, sizeof error), error);
}

/* The parameters on the device <- g->params. */
static void gpt_send(Gpt *g) {
    char error[512];
    if (g->cuda) must(gpt_cuda_write_params(g->cuda, g->params, error, sizeof error), error);
}

/* The table of tensors. */
static const SmTensor *gpt_tensors(const Gpt *g, size_t *count) {
    assert(g);
    *count = g->tensors;
    return g->tensor;
}

/* ------------------------------------------------------------------------------------------------
 * kernels; those that take a Thread work on its tile of tokens [at, at + rows) */

static size_t tile_rows(const Thread *t, size_t at) { return min_size(TILE, t->row_end - at); }

/* Where that tile leaves its part of the gradient of a vector; NULL without such a vector. */
static float *partial_of(const Gpt *g, int kind, size_t at) {
    return g->of_kind[kind] ? g->partial[kind] + at / TILE * g->of_kind[kind]->cols : NULL;
}

/* norm (rows, C) = (x - mean) / deviation * w + b, of rows [at, at + rows) of x (n, C); their mean
 * and 1 / deviation go to stats (n, 2) */
static void layernorm_forward(const Thread *t, float *stats, const float *x, int kind, int l,
                              size_t at) {
    size_t C = t->g->C, rows = tile_rows(t, at);
    const float *w = param(t->g, kind, l), *b = param(t->g, kind + 1, l);
    for (size_t r = 0; r < rows; r++) {
        const float *restrict in = x + (at + r) * C;
        float *restrict norm = t->norm + r * C, sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t c = 0; c < C; c++) sum += in[c];
        float mean = sum / (float)C;
#pragma omp simd reduction(+ : square)
        for (size_t c = 0; c < C; c++) square += (in[c] - mean) * (in[c] - mean);
        float scale = 1.0f / sqrtf(square / (float)C + 1e-5f);
        for (size_t c = 0; c < C; c++) norm[c] = (in[c] - mean) * scale * w[c];
        for (size_t c = 0; b && c < C; c++) norm[c] += b[c];
        stats[(at + r) * 2] = mean;
        stats[(at + r) * 2 + 1] = scale;
    }
}

/* dres (n, C) += gradient of x, from dnorm (rows, C); the gradients of w and b are summed over the
 * tile, and norm (rows, C) is made again */
static void layernorm_backward(const Thread *t, const float *stats, const float *x, int kind, int l,
                               size_t at) {
    const Gpt *g = t->g;
    size_t C = g->C, rows = tile_rows(t, at);
    const float *restrict w = param(g, kind, l), *restrict b = param(g, kind + 1, l);
    float *restrict dw = partial_of(g, kind, at), *restrict db = partial_of(g, kind + 1, at);
    for (size_t c = 0; c < C; c++) dw[c] = 0;
    for (size_t c = 0; db && c < C; c++) db[c] = 0;
    for (size_t r = 0; r < rows; r++) {
        const float *restrict in = x + (at + r) * C, *restrict d = t->dnorm + r * C;
        float *restrict dx = g->dres + (at + r) * C, *restrict norm = t->norm + r * C;
        float mean = stats[(at + r) * 2], scale = stats[(at + r) * 2 + 1], sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
        for (size_t c = 0; c < C; c++) {
            float dx_hat = d[c] * w[c];
            sum += dx_hat;
            dot += dx_hat * (in[c] - mean) * scale;
        }
        sum /= (float)C;
        dot /= (float)C;
        for (size_t c = 0; c < C; c++) {
            float x_hat = (in[c] - mean) * scale;
            dx[c] += scale * (d[c] * w[c] - sum - x_hat * dot);
            dw[c] += d[c] * x_hat;
            norm[c] = x_hat * w[c];
        }
        for (size_t c = 0; db && c < C; c++) db[c] += d[c];
        for (size_t c = 0; b && c < C; c++) norm[c] += b[c];
    }
}

/* c (m, n) = a (m, k) b (k, n), or += ; operands say how they lie in memory */
static void product(const Thread *t, float *c, GemmOperand a, GemmOperand b, size_t m, size_t n,
                    size_t k, int add) {
    gemm_multiply(t->g->gemm, c, n, a, b, m, n, k, add, t->gemm_scratch, 0, 1);
}

/* Pack all matrices, once per pass: copy them into the order in which gemm.h's inner loop reads
 * them. This thread's share of each. */
static void pack_weights(const Thread *t) {
    const Gpt *g = t->g;
    for (int l = 0; l < g->config.layers; l++)
        for (int kind = 0; kind < TENSOR_KINDS; kind++) {
            const GptLayer *a = &g->layer[l];
            if (!a->forward[kind]) continue;
            const float *w = param(g, kind, l);
            size_t n = fan_out(g->of_kind[kind]), k = g->of_kind[kind]->cols;
            gemm_pack(g->gemm, a->forward[kind], gemm_f32(w, k, 1), n, k, t->ith, t->nth);
            if (g->training)
                gemm_pack(g->gemm, a->backward[kind], gemm_f32(w, 1, k), k, n, t->ith, t->nth);
        }
}

/* out (rows, n) = x (rows, k) W (n, k)^T + b (n), that is
 *     for r < rows, for i < n:  out[r][i] = b[i] + sum over j < k of x[r][j] W[i][j]
 * gemm_naive in lib/gemm.h is these loops; the tests compare with it. */
static void linear_forward(const Thread *t, float *out, const float *x, int kind, int l,
                           size_t at) {
    const Gpt *g = t->g;
    size_t n = fan_out(g->of_kind[kind]), k = g->of_kind[kind]->cols, rows = tile_rows(t, at);
    const float *b = tensor_rows[kind + 1].bias ? param(g, kind + 1, l) : NULL;
    product(t, out, gemm_f32(x, k, 1), gemm_packed(g->layer[l].forward[kind], k), rows, n, k, 0);
    for (size_t r = 0; b && r < rows; r++)
        for (size_t i = 0; i < n; i++) out[r * n + i] += b[i];
}

/* dx (rows, k) = dout (rows, n) W (n, k), that is dx[r][j] = sum over i < n of dout[r][i] W[i][j].
 * dout is kept for dW, its column sums for db. */
static void linear_backward(const Thread *t, float *dx, const float *dout, int kind, int l,
                            size_t at) {
    const Gpt *g = t->g;
    size_t n = fan_out(g->of_kind[kind]), k = g->of_kind[kind]->cols, rows = tile_rows(t, at);
    float *restrict db = tensor_rows[kind + 1].bias ? partial_of(g, kind + 1, at) : NULL;
    for (size_t i = 0; db && i < n; i++) db[i] = 0;
    for (size_t r = 0; db && r < rows; r++)
        for (size_t i = 0; i < n; i++) db[i] += dout[r * n + i];
    if (g->dout[kind])
        gemm_pack_depth(g->gemm, GEMM_A, g->dout[kind], g->B * g->T, gemm_f32(dout, 1, n), n, at,
                        rows);
    product(t, dx, gemm_f32(dout, n, 1), gemm_packed(g->layer[l].backward[kind], n), rows, k, n, 0);
}

/* Keep a linear map's input x (rows, k) for dW, packed while it is in cache. */
static void keep_input(const Thread *t, const float *x, int kind, size_t at) {
    const Gpt *g = t->g;
    size_t k = g->of_kind[kind]->cols;
    gemm_pack_depth(g->gemm, GEMM_B, g->input[kind], g->B * g->T, gemm_f32(x, 1, k), k, at,
                    tile_rows(t, at));
}

/* dW (n, k) = dout (B T, n)^T input (B T, k), that is dW[i][j] = sum over all tokens r of
 * dout[r][i] input[r][j], both as the tiles have kept them; this thread's slice. Gradients are
 * written, or added to those of the passes before. */
static void weight_gradient(const Thread *t, int kind, int l) {
    const Gpt *g = t->g;
    const SmTensor *w = tensor_of(g, kind, l);
    size_t n = fan_out(w), k = w->cols, all = g->B * g->T;
    GemmOperand dout = g->dout[kind] ? gemm_packed(g->dout[kind], all)
                                     : stored_operand(g->dlogits, 0, 1, n); /* of lm_head */
    gemm_multiply(g->gemm, g->grads + w->offset, k, dout, gemm_packed(g->input[kind], all), n, k,
                  all, g->add, t->gemm_scratch, t->ith, t->nth);
}

/* The gradient of a vector: the sum of the tiles' parts, in their order; this thread's slice. */
static void vector_gradient(const Thread *t, int kind, int l) {
    const Gpt *g = t->g;
    const SmTensor *v = tensor_of(g, kind, l);
    if (!v) return;
    size_t lo, hi;
    float *d = g->grads + v->offset;
    slice(v->cols, t->ith, t->nth, &lo, &hi);
    for (size_t c = lo; c < hi && !g->add; c++) d[c] = 0;
    for (size_t at = 0; at < g->B * g->T; at += TILE)
        for (size_t c = lo; c < hi; c++) d[c] += partial_of(g, kind, at)[c];
}

/* Gradients of the parameters of layer l, of kinds [from, to]. */
static void gradients(const Thread *t, int l, int from, int to) {
    for (int k = from; k <= to; k++) (is_linear(k) ? weight_gradient : vector_gradient)(t, k, l);
}

/* GELU in its tanh form: 0.5 x (1 + tanh(u)) = x gate with gate = 1 / (1 + e^-2u) and
 * u = sqrt(2/pi) (x + 0.044715 x^3) */
static inline float gelu_gate(float x) {
    return 1.0f / (1.0f + fast_exp(-1.59576912f * x * mul_add(0.044715f * x, x, 1.0f)));
}

/* out (n) = GELU(x) */
static void gelu_forward(float *restrict out, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = x[i] * gelu_gate(x[i]);
}

/* d (n) = d GELU'(x); out (n) = GELU(x) again */
static void gelu_backward(float *restrict d, float *restrict out, const float *restrict x,
                          size_t n) {
    for (size_t i = 0; i < n; i++) {
        float gate = gelu_gate(x[i]);
        float slope = 1.59576912f * mul_add(3 * 0.044715f * x[i], x[i], 1.0f); /* of 2u */
        out[i] = x[i] * gate;
        d[i] *= mul_add(out[i] * (1.0f - gate), slope, gate);
    }
}

/* Where a layer has dropout; the embedding's stands before layer 0. */
enum { DROP_EMBEDDING = -1, DROP_ATTENTION = 0, DROP_PROJECTION = 1, DROP_MLP = 2 };

/* The key of a mask in this pass, 0 when nothing is dropped. */
static uint64_t mask_key(const Gpt *g, int l, int place) {
    if (!g->training || !(g->config.dropout > 0)) return 0;
    return sm_hash(g->dropout_key, (uint64_t)l * 3 + (uint64_t)(place + 1)) | 1;
}

/* x (n) = x mask / (1 - probability). The mask is a hash of the key and of an entry's number, which
 * counts from `number`: the backward pass calls it with the same ones. */
static void dropout(const Gpt *g, float *x, size_t n, uint64_t key, size_t number) {
    if (!key) return;
    uint64_t threshold = (uint64_t)(g->config.dropout * 0x1p64);
    float scale = (float)(1 / (1 - g->config.dropout));
    for (size_t i = 0; i < n; i++)
        x[i] = sm_hash(key, number + i) < threshold ? 0.0f : x[i] * scale;
}

/* out (n, C) = x + dropout(branch (rows, C)), in rows [at, at + rows) */
static void residual_forward(const Thread *t, float *out, const float *x, int l, int place,
                             size_t at) {
    size_t start = at * t->g->C, size = tile_rows(t, at) * t->g->C;
    dropout(t->g, t->branch, size, mask_key(t->g, l, place), start);
    for (size_t i = 0; i < size; i++) out[start + i] = x[start + i] + t->branch[i];
}

/* branch (rows, C) = dropout(dres), its gradient; dres (n, C) itself is the gradient of x */
static void residual_backward(const Thread *t, int l, int place, size_t at) {
    size_t start = at * t->g->C, size = tile_rows(t, at) * t->g->C;
    memcpy(t->branch, t->g->dres + start, size * sizeof(float));
    dropout(t->g, t->branch, size, mask_key(t->g, l, place), start);
}

/* Forward and backward in one, like llm.c's fused_classifier. Returns the cross-entropy in nats of
 * softmax(logits) with the target; logits (V) become their gradient (softmax - onehot) scale. */
static float cross_entropy(float *restrict logits, size_t V, int32_t target, float scale) {
    if (target < 0) {
        memset(logits, 0, V * sizeof *logits);
        return 0;
    }
    float largest = row_max(logits, V), sum = 0, at_target = logits[target];
#pragma omp simd reduction(+ : sum)
    for (size_t v = 0; v < V; v++) {
        logits[v] = fast_exp(logits[v] - largest);
        sum += logits[v];
    }
    float factor = scale / sum;
    for (size_t v = 0; v < V; v++) logits[v] *= factor;
    logits[target] -= scale;
    return logf(sum) + largest - at_target;
}

/* ------------------------------------------------------------------------------------------------
 * attention of one head of one sequence: a tile of queries at a time against the keys that it sees.
 * Their scores are made, used, and made again in the backward pass from the log of their sum, as in
 * FlashAttention (Dao et al. 2022): no (T, T) matrix is stored, and memory is linear in T. */

/* scores (rows, cols) = q k^T of queries [i0, i0 + rows) against keys [0, cols) become
 * probabilities in their place: softmax(scale scores) under the causal mask. lse (rows) is written,
 * or read where it is known. */
static void causal_softmax(float *scores, float *lse, int lse_known, float scale, size_t i0,
                           size_t rows, size_t cols) {
    for (size_t i = 0; i < rows; i++) {
        float *restrict p = scores + i * cols, sum = 0;
        /* Causal mask: query i0 + i sees keys 0 .. i0 + i. Later scores are -inf up to the end of a
         * vector of 16; the rest becomes 0 without an exponential. */
        size_t seen = i0 + i + 1, some = min_size((seen + 15) / 16 * 16, cols);
        for (size_t j = seen; j < some; j++) p[j] = -INFINITY;
        memset(p + some, 0, (cols - some) * sizeof *p);
        if (lse_known) {
            for (size_t j = 0; j < some; j++) p[j] = fast_exp(p[j] * scale - lse[i]);
            continue;
        }
        float largest = row_max(p, some);
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < some; j++) {
            p[j] = fast_exp((p[j] - largest) * scale);
            sum += p[j];
        }
        lse[i] = largest * scale + logf(sum);
        sum = 1.0f / sum;
        for (size_t j = 0; j < some; j++) p[j] *= sum;
    }
}

/* p (rows, cols): from probabilities to the gradient of the scores, given dp (rows, cols) */
static void softmax_backward(float *p, const float *dp, float scale, size_t rows, size_t cols) {
    for (size_t i = 0; i < rows; i++) {
        float *restrict pi = p + i * cols, dot = 0;
        const float *restrict dpi = dp + i * cols;
#pragma omp simd reduction(+ : dot)
        for (size_t j = 0; j < cols; j++) dot += pi[j] * dpi[j];
        for (size_t j = 0; j < cols; j++) pi[j] *= (dpi[j] - dot) * scale;
    }
}

/* Dropout of p (rows, cols) of a head's queries from i0 on. */
static void attention_dropout(const Gpt *g, float *p, int l, size_t head, size_t i0, size_t rows,
                              size_t cols) {
    uint64_t key = mask_key(g, l, DROP_ATTENTION);
    if (key) key = sm_hash(key, head) | 1;
    for (size_t i = 0; i < rows; i++) dropout(g, p + i * cols, cols, key, (i0 + i) * g->T);
}

/* att (T, HS) = dropout(softmax(causal mask(q k^T / sqrt(HS)))) v; queries before g->from are left
 * out */
static void attention_forward(const Thread *t, int l, size_t head) {
    const Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t C = g->C, HS = g->HS, T = g->T, b = head / g->NH, h = head % g->NH;
    size_t q = b * T * 3 * C + h * HS, k = q + C, v = k + C, out = b * T * C + h * HS;
    float scale = 1.0f / sqrtf((float)HS);
    gemm_pack(g->gemm, t->keys, stored_operand(a->qkv, k, 3 * C, 1), T, HS, 0, 1);
    gemm_pack(g->gemm, t->kv, stored_operand(a->qkv, v, 1, 3 * C), HS, T, 0, 1);
    for (size_t i0 = g->from; i0 < T; i0 += TILE) {
        size_t rows = min_size(TILE, T - i0), cols = i0 + rows; /* no query here sees later keys */
        GemmOperand queries = stored_operand(a->qkv, q + i0 * 3 * C, 3 * C, 1);
        GemmOperand p = gemm_f32(t->p, cols, 1);
        product(t, t->p, queries, gemm_packed(t->keys, HS), rows, cols, HS, 0); /* q k^T */
        causal_softmax(t->p, a->lse + head * T + i0, 0, scale, i0, rows, cols);
        attention_dropout(g, t->p, l, head, i0, rows, cols);
        product(t, t->out, p, gemm_packed(t->kv, T), rows, HS, cols, 0); /* p v */
        stored_store(a->att, out + i0 * C, C, t->out, rows, HS);
    }
}

/* dq, dk, dv (T, HS) from datt (T, HS). The last tile of queries sees all keys, so it comes first;
 * the others add to the dk and dv that it has written. */
static void attention_backward(const Thread *t, int l, size_t head) {
    const Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t C = g->C, HS = g->HS, T = g->T, b = head / g->NH, h = head % g->NH;
    size_t q = b * T * 3 * C + h * HS, k = q + C, v = k + C, out = b * T * C + h * HS;
    float *dq = t->out, *dk = dq + T * HS, *dv = dk + T * HS;
    float scale = 1.0f / sqrtf((float)HS);
    gemm_pack(g->gemm, t->keys, stored_operand(a->qkv, k, 3 * C, 1), T, HS, 0, 1);
    gemm_pack(g->gemm, t->values, stored_operand(a->qkv, v, 3 * C, 1), T, HS, 0, 1);
    gemm_pack(g->gemm, t->kv, stored_operand(a->qkv, k, 1, 3 * C), HS, T, 0, 1);
    for (size_t tile = (T + TILE - 1) / TILE; tile-- > 0;) {
        size_t i0 = tile * TILE, rows = min_size(TILE, T - i0), cols = i0 + rows;
        int add = cols < T;
        float *lse = a->lse + head * T + i0;
        GemmOperand queries = stored_operand(a->qkv, q + i0 * 3 * C, 3 * C, 1);
        GemmOperand queries_over_tokens = stored_operand(a->qkv, q + i0 * 3 * C, 1, 3 * C);
        GemmOperand dout = stored_operand(g->datt, out + i0 * C, C, 1);
        GemmOperand dout_over_tokens = stored_operand(g->datt, out + i0 * C, 1, C);
        GemmOperand p = gemm_f32(t->p, cols, 1), p_transposed = gemm_f32(t->p, 1, cols);
        product(t, t->p, queries, gemm_packed(t->keys, HS), rows, cols, HS, 0); /* q k^T again */
        causal_softmax(t->p, lse, 1, scale, i0, rows, cols);
        attention_dropout(g, t->p, l, head, i0, rows, cols);
        product(t, dv, p_transposed, dout_over_tokens, cols, HS, rows, add);    /* dv += p^T dout */
        product(t, t->dp, dout, gemm_packed(t->values, HS), rows, cols, HS, 0); /* dout v^T */
        attention_dropout(g, t->dp, l, head, i0, rows, cols);
        if (mask_key(g, l, DROP_ATTENTION)) { /* softmax_backward needs p before dropout */
            product(t, t->p, queries, gemm_packed(t->keys, HS), rows, cols, HS, 0);
            causal_softmax(t->p, lse, 1, scale, i0, rows, cols);
        }
        softmax_backward(t->p, t->dp, scale, rows, cols); /* p holds ds from here on */
        product(t, dq + i0 * HS, p, gemm_packed(t->kv, T), rows, HS, cols, 0);  /* ds k */
        product(t, dk, p_transposed, queries_over_tokens, cols, HS, rows, add); /* dk += ds^T q */
    }
    stored_store(g->dqkv, q, 3 * C, dq, T, HS);
    stored_store(g->dqkv, k, 3 * C, dk, T, HS);
    stored_store(g->dqkv, v, 3 * C, dv, T, HS);
}

/* ------------------------------------------------------------------------------------------------
 * the stages of a layer, each on the tile that begins at row `at` */

/* in (rows, C) of layer 0 = dropout(wte[token] + wpe[position]) */
static void embedding_forward(const Thread *t, size_t at) {
    const Gpt *g = t->g;
    size_t C = g->C, rows = tile_rows(t, at);
    float *in = g->layer[0].in + at * C;
    for (size_t r = 0; r < rows; r++) {
        const float *token = param(g, WTE, 0) + (size_t)g->in[at + r] * C;
        const float *position = param(g, WPE, 0) + (at + r) % g->T * C;
        for (size_t c = 0; c < C; c++) in[r * C + c] = token[c] + position[c];
    }
    dropout(g, in, rows * C, mask_key(g, 0, DROP_EMBEDDING), at * C);
}

/* dwte += dropout(dres) by token, on top of lm_head's gradient; dwpe = the same by position. This
 * thread's columns of all tokens. */
static void embedding_backward(const Thread *t) {
    const Gpt *g = t->g;
    size_t C = g->C, lo, hi;
    float *dwte = g->grads + g->of_kind[WTE]->offset, *dwpe = g->grads + g->of_kind[WPE]->offset;
    slice(C, t->ith, t->nth, &lo, &hi);
    for (size_t i = 0; i < (size_t)g->config.context && !g->add; i++)
        for (size_t c = lo; c < hi; c++) dwpe[i * C + c] = 0;
    for (size_t r = 0; r < g->B * g->T; r++) {
        float *restrict dx = g->dres + r * C, *token = dwte + (size_t)g->in[r] * C;
        dropout(g, dx + lo, hi - lo, mask_key(g, 0, DROP_EMBEDDING), r * C + lo);
        for (size_t c = lo; c < hi; c++) {
            token[c] += dx[c];
            dwpe[r % g->T * C + c] += dx[c];
        }
    }
}

/* qkv (rows, 3C) = layernorm(in) Wqkv^T + b */
static void qkv_forward(const Thread *t, int l, size_t at) {
    const GptLayer *a = &t->g->layer[l];
    size_t W = 3 * t->g->C;
    float *qkv = stored_place(a->qkv, at * W, t->wide[0]);
    layernorm_forward(t, a->stats1, a->in, LN1W, l, at);
    linear_forward(t, qkv, t->norm, QKVW, l, at);
    stored_store(a->qkv, at * W, W, qkv, tile_rows(t, at), W);
}

/* dres += what dqkv gives; dres is then the gradient of the layer's input */
static void qkv_backward(const Thread *t, int l, size_t at) {
    const GptLayer *a = &t->g->layer[l];
    size_t W = 3 * t->g->C;
    const float *dqkv = stored_load(t->g->dqkv, at * W, tile_rows(t, at) * W, t->wide[0]);
    linear_backward(t, t->dnorm, dqkv, QKVW, l, at);
    layernorm_backward(t, a->stats1, a->in, LN1W, l, at);
    keep_input(t, t->norm, QKVW, at);
}

/* mid (rows, C) = in + dropout(att Watt^T + b) */
static void projection_forward(const Thread *t, int l, size_t at) {
    const GptLayer *a = &t->g->layer[l];
    size_t C = t->g->C;
    const float *att = stored_load(a->att, at * C, tile_rows(t, at) * C, t->wide[0]);
    linear_forward(t, t->branch, att, ATTW, l, at);
    residual_forward(t, a->mid, a->in, l, DROP_PROJECTION, at);
}

/* datt from dres */
static void projection_backward(const Thread *t, int l, size_t at) {
    const Gpt *g = t->g;
    size_t C = g->C, rows = tile_rows(t, at);
    const float *att = stored_load(g->layer[l].att, at * C, rows * C, t->wide[0]);
    float *datt = stored_place(g->datt, at * C, t->wide[1]);
    residual_backward(t, l, DROP_PROJECTION, at);
    linear_backward(t, datt, t->branch, ATTW, l, at);
    stored_store(g->datt, at * C, C, datt, rows, C);
    keep_input(t, att, ATTW, at);
}

/* next layer's in (rows, C) = mid + dropout(gelu(layernorm(mid) Wfc^T + b) Wout^T + b) */
static void mlp_forward(const Thread *t, int l, size_t at) {
    const Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t W = 4 * g->C, rows = tile_rows(t, at);
    Stored kept = g->training ? a->fc : (Stored){0};
    float *fc = stored_place(kept, at * W, t->wide[0]), *gelu = t->wide[1];
    layernorm_forward(t, a->stats2, a->mid, LN2W, l, at);
    linear_forward(t, fc, t->norm, FCW, l, at);
    gelu_forward(gelu, fc, rows * W);
    stored_store(kept, at * W, W, fc, rows, W);
    linear_forward(t, t->branch, gelu, OUTW, l, at);
    residual_forward(t, l + 1 < g->config.layers ? a[1].in : g->last, a->mid, l, DROP_MLP, at);
}

/* dres += what it gives through the MLP; dres is then the gradient of mid */
static void mlp_backward(const Thread *t, int l, size_t at) {
    const GptLayer *a = &t->g->layer[l];
    size_t W = 4 * t->g->C, size = tile_rows(t, at) * W;
    const float *fc = stored_load(a->fc, at * W, size, t->wide[2]);
    float *dfc = t->wide[0], *gelu = t->wide[1];
    residual_backward(t, l, DROP_MLP, at);
    linear_backward(t, dfc, t->branch, OUTW, l, at);
    gelu_backward(dfc, gelu, fc, size);
    keep_input(t, gelu, OUTW, at);
    linear_backward(t, t->dnorm, dfc, FCW, l, at);
    layernorm_backward(t, a->stats2, a->mid, LN2W, l, at);
    keep_input(t, t->norm, FCW, at);
}

/* logits (rows, V) = layernorm(last) wte^T; losses (rows), and dlogits when training */
static void lm_head_forward(const Thread *t, size_t at) {
    const Gpt *g = t->g;
    size_t V = g->V, rows = tile_rows(t, at);
    Stored kept = g->training ? g->dlogits : (Stored){0};
    float *logits = stored_place(kept, at * V, t->wide[0]), scale = g->loss_scale;
    layernorm_forward(t, g->statsf, g->last, LNFW, 0, at);
    linear_forward(t, logits, t->norm, WTE, 0, at);
    if (g->logits && at + rows == g->T)
        memcpy(g->logits, logits + (rows - 1) * V, V * sizeof(float));
    for (size_t r = 0; g->target && r < rows; r++)
        g->losses[at + r] = cross_entropy(logits + r * V, V, g->target[at + r], scale);
    stored_store(kept, at * V, V, logits, rows, V);
}

/* dres (rows, C) from dlogits */
static void lm_head_backward(const Thread *t, size_t at) {
    const Gpt *g = t->g;
    size_t C = g->C, V = g->V, rows = tile_rows(t, at);
    const float *dlogits = stored_load(g->dlogits, at * V, rows * V, t->wide[0]);
    linear_backward(t, t->dnorm, dlogits, WTE, 0, at);
    memset(g->dres + at * C, 0, rows * C * sizeof(float));
    layernorm_backward(t, g->statsf, g->last, LNFW, 0, at);
    keep_input(t, t->norm, WTE, at);
}

/* ------------------------------------------------------------------------------------------------
 * the passes; all threads of the team run them together */

static void gpt_forward(const Thread *t) {
    int L = t->g->config.layers;
    for (size_t at = t->row; at < t->row_end; at += TILE) {
        embedding_forward(t, at);
        qkv_forward(t, 0, at);
    }
    team_barrier(t->g->team);
    for (int l = 0; l < L; l++) {
        for (size_t head = t->head; head < t->head_end; head++) attention_forward(t, l, head);
        team_barrier(t->g->team);
        for (size_t at = t->row; at < t->row_end; at += TILE) {
            projection_forward(t, l, at);
            mlp_forward(t, l, at);
            if (l + 1 < L)
                qkv_forward(t, l + 1, at);
            else
                lm_head_forward(t, at);
        }
        team_barrier(t->g->team);
    }
}

static void gpt_backward(const Thread *t) {
    int L = t->g->config.layers;
    for (size_t at = t->row; at < t->row_end; at += TILE) {
        lm_head_backward(t, at);
        mlp_backward(t, L - 1, at);
        projection_backward(t, L - 1, at);
    }
    team_barrier(t->g->team);
    gradients(t, 0, WTE, WTE);
    gradients(t, 0, LNFW, LNFB);
    for (int l = L - 1; l >= 0; l--) {
        gradients(t, l, ATTW, OUTB);
        for (size_t head = t->head; head < t->head_end; head++) attention_backward(t, l, head);
        team_barrier(t->g->team);
        for (size_t at = t->row; at < t->row_end; at += TILE) {
            qkv_backward(t, l, at);
            if (l > 0) mlp_backward(t, l - 1, at);
            if (l > 0) projection_backward(t, l - 1, at);
        }
        team_barrier(t->g->team);
        gradients(t, l, LN1W, QKVB);
    }
    embedding_backward(t);
}

static void run_thread(void *context, int ith, int nth) {
    Gpt *g = context;
    Thread t = {.g = g, .ith = ith, .nth = nth};
    Arena scratch = {.block = g->scratch + (size_t)ith * g->scratch_bytes};
    size_t n = g->B * g->T - g->from;
    take_scratch(g, &scratch, &t);
    slice((n + TILE - 1) / TILE, ith, nth, &t.row, &t.row_end);
    t.row = g->from + t.row * TILE;
    t.row_end = g->from + min_size(t.row_end * TILE, n);
    slice(g->B * g->NH, ith, nth, &t.head, &t.head_end);
    if (!g->weights_packed) pack_weights(&t);
    team_barrier(g->team);
    gpt_forward(&t);
    if (g->training) gpt_backward(&t);
}

/* The same pass on a GPU, over all rows: there it keeps no keys of earlier calls. */
static void run_cuda(Gpt *g, const float *params) {
    char error[512];
    GptCudaPass pass = {.in = g->in,
                        .target = g->target,
                        .B = g->B,
                        .T = g->T,
                        .loss_scale = g->loss_scale,
                        .training = g->training,
                        .add = g->add,
                        .params = params,
                        .same_params = g->weights_packed,
                        .dropout_key = g->dropout_key,
                        .losses = g->target ? g->losses : NULL,
                        .logits = g->logits};
    must(gpt_cuda_pass(g->cuda, &pass, error, sizeof error), error);
}

/* Run a pass over rows [from, B T) of in (B, T); target may be NULL. */
static void run_pass(Gpt *g, const float *params, const int32_t *in, const int32_t *target,
                     size_t B, size_t T, size_t from) {
    size_t counted = 0, passes = g->training && g->config.passes ? (size_t)g->config.passes : 1;
    float *own = g->params;
    assert(B <= g->capacity && T <= (size_t)g->config.context && from < B * T);
    g->in = in;
    g->target = target;
    g->B = B;
    g->T = T;
    g->from = from;
    for (size_t r = 0; target && r < B * T; r++) counted += target[r] >= 0;
    g->loss_scale = 1.0f / (float)(counted * passes);
    g->params = (float *)(uintptr_t)params; /* only read */
    if (g->cuda)
        run_cuda(g, params == own ? NULL : params);
    else
        team_run(g->team, run_thread, g);
    g->params = own;
}

/* grads = gradients of the mean loss of a batch in (B, T), target (B, T), where -1 does not count.
 * dropout_key is new in each step. Returns the sum of the losses in nats.
 * passes   where the configuration asks for several, each has as many sequences and targets */
static double gpt_gradient(Gpt *g, const int32_t *in, const int32_t *target, size_t B, size_t T,
                           uint64_t dropout_key) {
    size_t passes = g->config.passes ? (size_t)g->config.passes : 1, each = B / passes * T;
    double sum = 0;
    assert((g->grads || g->cuda) && B % passes == 0);
    g->training = 1;
    for (size_t k = 0; k < passes; k++) {
        g->weights_packed = g->add = k > 0;
        g->dropout_key = k ? sm_hash(dropout_key, k) : dropout_key;
        run_pass(g, g->params, in + k * each, target + k * each, B / passes, T, 0);
        for (size_t r = 0; r < each; r++) sum += (double)g->losses[r];
    }
    g->training = g->add = 0;
    return sum;
}

/* losses (B, T) in nats under `params`, without dropout; 0 where the target is -1. same_params:
 * they have not changed since the last call, so its packed weights serve again. */
static void gpt_losses(Gpt *g, const float *params, const int32_t *in, const int32_t *target,
                       size_t B, size_t T, int same_params, float *losses) {
    g->training = 0;
    g->weights_packed = same_params;
    run_pass(g, params, in, target, B, T, 0);
    memcpy(losses, g->losses, B * T * sizeof *losses);
}

/* ------------------------------------------------------------------------------------------------
 * sampling */

/* logits (V) after the last of `count` tokens: the forward pass over rows [from, count) of one
 * sequence. The rows before have left their keys and values in qkv; from = 0 begins anew. */
static void gpt_logits(Gpt *g, const float *params, const int32_t *tokens, size_t from,
                       size_t count, float *logits) {
    g->training = 0;
    g->weights_packed = from > 0;
    g->logits = logits;
    run_pass(g, params, tokens, NULL, 1, count, from);
    g->logits = NULL;
}

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* A token drawn by u in [0, 1) from softmax(logits / temperature) over the top_k likeliest, 0: over
 * all. Temperature 0 takes the likeliest. sorted (V) is scratch. */
static int32_t sample_token(const float *logits, float *sorted, size_t V, double temperature,
                            size_t top_k, double u) {
    size_t best = 0;
    for (size_t v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    if (temperature <= 0) return (int32_t)best;
    float least = -INFINITY;
    if (top_k > 0 && top_k < V) {
        memcpy(sorted, logits, V * sizeof *sorted);
        qsort(sorted, V, sizeof *sorted, descending);
        least = sorted[top_k - 1];
    }
    double sum = 0, seen = 0;
    for (size_t v = 0; v < V; v++)
        if (logits[v] >= least) sum += exp((double)(logits[v] - logits[best]) / temperature);
    for (size_t v = 0; v < V; v++) {
        if (!(logits[v] >= least)) continue;
        seen += exp((double)(logits[v] - logits[best]) / temperature);
        if (seen >= u * sum) return (int32_t)v;
    }
    return (int32_t)best;
}

/* ------------------------------------------------------------------------------------------------
 * evaluation: the whole validation split in consecutive windows, shared by the workers and summed
 * in the order of the windows, so that the result depends on nothing else */

/* How many windows are evaluated: all, or as many as --eval-tokens asks for, spread evenly. */
static size_t validation_windows(const Worker *w) {
    size_t all = (size_t)data_val_windows(&w->run->data, w->T);
    size_t some = (size_t)w->run->o.eval_tokens / w->T;
    return w->run->o.eval_tokens == 0 || some >= all ? all : some ? some : 1;
}

/* Mean loss of a model in nats per token; NaN when a signal cut it short.
 * alone   this worker evaluates all windows by itself */
static double evaluate(Worker *w, const float *params, int alone) {
    const DataSet *data = &w->run->data;
    size_t all = (size_t)data_val_windows(data, w->T), T = w->T, lo, hi;
    size_t windows = validation_windows(w);
    double targets = windows < all ? (double)(windows * T) : (double)(data->val_tokens - 1);
    divide(w, windows, sizeof(double), &lo, &hi);
    if (alone) lo = 0, hi = windows;
    for (size_t at = lo; at < hi; at += w->pass) {
        size_t B = min_size(w->pass, hi - at);
        int stopped = comm_stop_requested(w->c);
        for (size_t b = 0; b < B; b++) {
            int64_t failed = data_val_window(data, T, (at + b) * all / windows, w->in + b * T,
                                             w->target + b * T);
            if (failed < 0) die(FAILED, "%s: %s", w->run->o.data, data_strerror((int)failed));
        }
        if (!stopped) gpt_losses(w->g, params, w->in, w->target, B, T, at > lo, w->losses);
        for (size_t b = 0; b < B; b++) {
            w->window_loss[at + b] = stopped ? NAN : 0;
            for (size_t t = 0; t < T; t++) w->window_loss[at + b] += (double)w->losses[b * T + t];
        }
    }
    if (!alone) comm_allgather(w->c, w->window_loss, w->cuts, COMM_OTHER);
    double sum = 0;
    for (size_t i = 0; i < windows; i++) sum += w->window_loss[i];
    return sum / targets;
}

/* ------------------------------------------------------------------------------------------------
 * samples */

enum { SAMPLE_TOKENS = 300 }; /* of a sample while it trains */

/* Write the prompt, and `count` tokens that a model draws after it; `number` keys the draws. When
 * the context is full, its last half stays. A signal ends it early. */
static void write_text(Worker *w, const float *params, long count, uint64_t number, FILE *f,
                       int terminal) {
    const Run *run = w->run;
    const Options *o = &run->o;
    const DataVocab *vocab = o->sample ? &run->vocab : &run->data.vocab;
    size_t T = w->T, V = vocab->size, length = run->prompt_tokens, done = 0;
    int32_t *window = allocate((T + 1) * sizeof *window);
    float *logits = allocate(V * sizeof *logits), *sorted = allocate(V * sizeof *sorted);
    ReportText out = {.terminal = terminal};
    char text[DATA_DECODED];
    size_t known = min_size(length, T);
    for (size_t i = 0; i < length; i++)
        report_text_put(&out, f, text, data_decode(vocab, run->prompt[i], text), 0);
    for (size_t i = 0; i < known; i++) window[i] = run->prompt[length - known + i];
    for (long made = 0; made < count && !comm_stop_requested(w->c); made++) {
        if (known > T) {
            memmove(window, window + known - (T + 1) / 2, (T + 1) / 2 * sizeof *window);
            known = (T + 1) / 2;
            done = 0;
        }
        gpt_logits(w->g, params, window, done, known, logits);
        done = known;
        double u = base_uniform(sm_key((uint64_t)o->seed, 0x73616d70u, number), (uint64_t)made);
        window[known] = sample_token(logits, sorted, V, o->temperature, (size_t)o->top_k, u);
        size_t n = data_decode(vocab, (unsigned)window[known++], text);
        report_text_put(&out, f, text, n, 0);
    }
    report_text_put(&out, f, "\n", terminal ? 1 : 0, 1);
    free(window), free(logits), free(sorted);
}

/* --sample: text on stdout, and nothing else. */
static int write_sample(Worker *w) {
    write_text(w, w->params, w->run->o.sample, 0, stdout, isatty(1));
    finish_stdout();
    int stopped = comm_stop_requested(w->c);
    return stopped ? 128 + stopped : 0;
}

/* --sample-every: where a sample is due, worker 0 adds it to OUT/samples.txt and shows it. Returns
 * 0 when a signal cut it short: the resumed run makes it. */
static int add_sample(Worker *w) {
    const Options *o = &w->run->o;
    int due = w->step > 0 && (is_due(w->step, o->sample_every) || w->step >= o->steps), stopped = 0;
    char *text = NULL;
    size_t size = 0;
    if (!o->sample_every || !due) return 1;
    const float *model = deployed_model(w);
    if (w->c->rank == 0) {
        FILE *f = open_memstream(&text, &size);
        must(!f, NO_MEMORY);
        write_text(w, model, SAMPLE_TOKENS, (uint64_t)w->step, f, 0);
        fprintf(f, "\n");
        must(fclose(f), NO_MEMORY);
        stopped = comm_stop_requested(w->c);
        if (!stopped) keep_sample(w, text, size);
        free(text);
    }
    return !first_nonzero(w, stopped);
}

/* ------------------------------------------------------------------------------------------------
 * the step */

static void sum_squares(void *context, int ith, int nth) {
    Worker *w = context;
    const SmTensor *t = w->g->tensor;
    for (size_t i = (size_t)ith; i < w->g->tensors; i += (size_t)nth)
        w->tensor_square[i] = sm_sum_squares(w->g->grads + t[i].offset, tensor_size(&t[i]));
}

/* Index of the first tensor whose parameters are not finite, or the number of tensors. */
static size_t first_not_finite(const Gpt *g) {
    const SmTensor *t = g->tensor, *end = t + g->tensors;
    while (t < end && sm_finite(g->params + t->offset, tensor_size(t))) t++;
    return (size_t)(t - g->tensor);
}

/* This worker's gradient of this step, and its report. */
static StepReport compute_gradient(Worker *w) {
    const Options *o = &w->run->o;
    uint64_t rank = (uint64_t)w->c->rank, step = (uint64_t)w->step, seed = (uint64_t)o->seed;
    size_t count = w->g->tensors;
    char error[512];
    for (size_t b = 0; b < w->B; b++) {
        int failed = data_train_window(&w->run->data, seed, rank, (size_t)w->c->size, w->T,
                                       step * w->B + b, w->in + b * w->T, w->target + b * w->T);
        if (failed) die(FAILED, "%s: %s", o->data, data_strerror(failed));
    }
    StepReport r = {.bad = -1, .stop = comm_stop_requested(w->c), .fault = sm_fault(w->optimizer)};
    uint64_t dropout_key = sm_key(seed, 0x64726f70u + rank, step);
    r.loss = gpt_gradient(w->g, w->in, w->target, w->B, w->T, dropout_key) / (double)(w->B * w->T);
    if (w->g->cuda)
        must(gpt_cuda_squares(w->g->cuda, w->g->tensor, count, w->tensor_square, error,
                              sizeof error),
             error);
    else
        team_run(w->c->team, sum_squares, w);
    for (size_t i = 0; i < count; i++) r.square += w->tensor_square[i];
    double exploded = 10 * log((double)w->g->config.vocab) + 10; /* far beyond a uniform guess */
    if (!isfinite(r.square) || !isfinite(r.loss)) {
        gpt_fetch(w->g);
        size_t bad = first_not_finite(w->g); /* a bad parameter spoils all gradients */
        for (size_t i = 0; bad == count && i < count; i++)
            if (!isfinite(w->tensor_square[i])) bad = i;
        r.bad = bad < count ? (int64_t)bad : 0;
    } else if (r.loss > exploded) {
        r.bad = 0;
        for (size_t i = 1; i < count; i++)
            if (w->tensor_square[i] > w->tensor_square[r.bad]) r.bad = (int64_t)i;
    }
    return r;
}

/* Validate the deployed model, EF21's server model, and at the last step each gossip node's own;
 * keep the best. Returns 0 when a signal cut it short. */
static int validate(Worker *w) {
    double val = evaluate(w, deployed_model(w), 0), length;
    if (isnan(val) && first_nonzero(w, comm_stop_requested(w->c))) return 0;
    if (!isfinite(val)) die_of_divergence(w, first_not_finite(w->g) % w->g->tensors, val);
    w->val = val;
    if (w->server && sm_server_model(w->optimizer, w->server, w->g->params, (uint64_t)w->step)) {
        w->gap = sqrt(square_distance(w, w->server, w->g->params, &length) / length);
        w->server_val = evaluate(w, w->server, 0);
        if (isnan(w->server_val) && first_nonzero(w, comm_stop_requested(w->c))) return 0;
        if (w->c->rank == 0 && !(fabs(w->server_val - val) <= 0.05))
            report_note(stderr,
                        "warning: the server's model has loss %.4f and the workers' %.4f at step "
                        "%ld: --down %s lets them part",
                        w->server_val, val, w->step, w->run->o.rule.down);
    }
    if (gossips(w) && w->step >= w->run->o.steps) {
        double own = evaluate(w, w->g->params, 1);
        const double *all = gather(w, &own, sizeof own, COMM_OTHER);
        w->node_val[0] = w->node_val[2] = all[0];
        w->node_val[1] = 0;
        for (int j = 0; j < w->c->size; j++) {
            w->node_val[0] = fmin(w->node_val[0], all[j]);
            w->node_val[1] += all[j] / w->c->size;
            w->node_val[2] = fmax(w->node_val[2], all[j]);
        }
        if (isnan(w->node_val[1])) return 0;
    }
    w->evaluated = (double)w->step;
    if (isnan(w->best) || val < w->best) {
        w->best = val;
        save(w, deployed_model(w), "best", 0);
    }
    return 1;
}

/* The optimizer's step, on the host or the GPU that holds the parameters. A refused message shows
 * in the next report, and in train_step before anything is kept. */
static void optimize(Worker *w, double lr, double aux_lr) {
    Gpt *g = w->g;
    uint64_t step = (uint64_t)w->step;
    int code;
    if (w->on_device) {
        code = sm_step(w->optimizer, gpt_cuda_params(g->cuda), gpt_cuda_grads(g->cuda), step, lr,
                       aux_lr);
        device_must(w, code == SM_FAILED);
        return;
    }
    if (g->cuda) gpt_fetch_grads(g);
    sm_step(w->optimizer, g->params, g->grads, step, lr, aux_lr);
    gpt_send(g);
}

/* One step with its evaluation, log and save. Returns -1 to go on, else an exit status. */
static int train_step(Worker *w) {
    const Options *o = &w->run->o;
    StepReport report = agree_on(w, compute_gradient(w), COMM_CONTROL);
    double rate = schedule(o, w->step);
    optimize(w, o->rule.lr * rate, o->rule.aux_lr * rate);
    w->step++;
    w->train = report.loss;
    w->norm = sqrt(report.square);

    int last = w->step >= o->steps, stop = (int)report.stop;
    int validates = last || is_due(w->step, o->eval_every);
    int logs = validates || is_due(w->step, o->log_every);
    int saves = last || stop || is_due(w->step, o->save_every);
    int checks = !gossips(w) && (last || is_due(w->step, o->check_every));
    if (validates || saves)
        agree_on(w, (StepReport){.bad = -1, .fault = sm_fault(w->optimizer)}, COMM_OTHER);
    if (w->on_device && (validates || saves || checks)) gpt_fetch(w->g);
    if (checks) check_replicas(w);
    if (logs) gather_statistics(w);
    int complete = !validates || validate(w);
    if (logs && complete && w->c->rank == 0) { /* else the resumed run writes the row */
        log_row(w, validates);
        if (isatty(2) || validates || base_now() - w->shown > 10) show_progress(w, last);
    }
    int sampled = !complete || add_sample(w);
    if (!complete || !sampled) stop = first_nonzero(w, comm_stop_requested(w->c));
    if (saves || stop) save(w, deployed_model(w), "last", 1);
    if (!stop || (last && complete && sampled)) return -1;
    if (w->c->rank == 0)
        report_note(stderr,
                    "stopped by signal %d after step %ld; %s/last holds it, --resume goes on", stop,
                    w->step, o->out);
    return 128 + stop;
}

/* ------------------------------------------------------------------------------------------------
 * train */

/* From the step that the worker is at to the last; the closing line goes to stdout. */
static int train(Worker *w) {
    const Options *o = &w->run->o;
    char error[BASE_PATH + 256];
    int finished = w->step >= o->steps;
    w->initial_step = w->step;
    w->started = base_now();
    if (w->c->rank == 0) {
        if (finished && w->step > 0)
            report_note(stderr, "%s/last is at step %ld of %ld: there is nothing to train", o->out,
                        w->step, o->steps);
        cut_samples(w);
        must(report_open_log(&w->log, o->out, columns, sizeof columns / sizeof columns[0],
                             w->run->has_checkpoint ? (double)w->step : NAN, error, sizeof error),
             error);
    }
    gather_statistics(w);
    if (w->evaluated < (double)w->step && (finished || is_due(w->step, o->eval_every))) {
        if (!validate(w))
            return 128 + first_nonzero(w, comm_stop_requested(w->c)); /* nothing is lost */
        if (w->c->rank == 0) log_row(w, 1), show_progress(w, 0);
    }
    if (!add_sample(w)) return 128 + first_nonzero(w, comm_stop_requested(w->c));
    while (w->step < o->steps) {
        int status = train_step(w);
        if (status >= 0) return status;
    }
    if (w->c->rank) return 0;
    must(report_close_log(&w->log, error, sizeof error), error);
    if (!o->quiet && w->c->size > 1 && w->step > 0)
        report_note(stderr,
                    "sent per worker: %.3f bits per parameter and step (fp32 all-reduce: %.3f)",
                    8 * w->most[SENT] / (double)w->g->parameters / (double)w->step,
                    64.0 * (w->c->size - 1) / w->c->size);
    printf("val_loss %.4f best %.4f steps %ld seconds %.1f bytes_sent %.0f\n", w->val, w->best,
           w->step, elapsed(w), w->most[SENT]);
    return finish_stdout();
}

/* Let the optimizer step on the model's GPU when its method can; both start as they were loaded. */
static void use_device(Worker *w) {
    const Options *o = &w->run->o;
    char error[512];
    SmDevice *stages =
        gpt_cuda_stages(w->g->cuda, strcmp(o->rule.ns_dtype, "bf16") == 0, error, sizeof error);
    must(!stages, error);
    w->on_device = sm_attach(w->optimizer, stages, error, sizeof error);
    must(w->on_device < 0, error);
    if (!w->on_device) stages->free(stages);
    device_must(w, w->on_device && sm_to_device(w->optimizer));
    gpt_send(w->g);
    if (o->quiet || w->c->rank) return;
    report_note(stderr, "%s: %.2f GB of the model's arrays; method %s with --aux %s steps %s",
                gpt_cuda_name(w->g->cuda), (double)gpt_cuda_bytes(w->g->cuda) * 1e-9,
                o->rule.method, o->rule.aux, w->on_device ? "there too" : "on the CPU");
}

enum { EVALUATION_BATCH = 12 }; /* sequences of a pass of --eval */

/* The model that the options ask for. */
static GptConfig model_of(const Run *run) {
    const Options *o = &run->o;
    return (GptConfig){.layers = (int)o->layers,
                       .heads = (int)o->heads,
                       .width = (int)o->width,
                       .context = (int)o->context,
                       .vocab = (int)(o->sample ? run->vocab.size : run->data.vocab.size),
                       .bias = o->bias,
                       .dropout = o->dropout,
                       .seed = (uint64_t)o->seed,
                       .bf16 = strcmp(o->dtype, "bf16") == 0,
                       .passes = (int)o->accumulate};
}

/* A worker with its model, from the checkpoint or the seed, and what training needs beyond. */
static Worker *create_worker(Comm *c, Run *run) {
    const Options *o = &run->o;
    int training = !o->sample && !o->eval;
    size_t size = (size_t)c->size;
    char error[512];
    GptConfig config = model_of(run);
    Worker *w = allocate(sizeof *w);
    *w = (Worker){.run = run, .c = c, .evaluated = -1, .started = base_now()};
    w->train = w->val = w->best = w->norm = w->server_val = w->gap = w->consensus = w->agreement =
        NAN;
    w->node_val[0] = w->node_val[1] = w->node_val[2] = NAN;
    w->T = (size_t)o->context;
    w->B = training ? (size_t)(o->batch / o->workers) : o->eval ? EVALUATION_BATCH : 1;
    w->pass = training ? w->B / (size_t)o->accumulate : w->B;
    w->in = allocate(w->B * w->T * sizeof *w->in);
    w->target = allocate(w->B * w->T * sizeof *w->target);
    w->losses = allocate(w->B * w->T * sizeof *w->losses);
    w->cuts = allocate((size + 1) * sizeof *w->cuts);
    w->gathered = allocate(size * 64);
    int device = options_device(o, c->rank, gpt_cuda_devices ? gpt_cuda_devices() : 0);
    if (device < 0)
        w->g = gpt_create(&config, w->pass, training, c->team);
    else
        w->g = gpt_create_cuda(&config, w->pass, training, device, error, sizeof error);
    must(!w->g, device < 0 ? NO_MEMORY : error);
    const size_t P = w->parameters = w->g->parameters;
    w->params = w->g->params;
    w->tensor = gpt_tensors(w->g, &w->tensors);
    if (!o->sample)
        w->window_loss = allocate((size_t)data_val_windows(&run->data, w->T) * sizeof(double));
    if (c->rank == 0 && run->has_checkpoint)
        load_model(w, &run->checkpoint.model);
    else if (c->rank == 0 && *o->init)
        load_model(w, &run->init);
    else if (c->rank == 0)
        gpt_init(w->g);
    comm_broadcast(c, w->g->params, P * sizeof(float), 0, COMM_OTHER);
    w->identity = run->identity;
    comm_broadcast(c, &w->identity, sizeof w->identity, 0, COMM_OTHER);
    gpt_send(w->g);
    if (!training) return w;
    w->tensor_square = allocate(w->tensors * sizeof(double));
    w->optimizer = sm_create(&o->rule, w->tensor, w->tensors, c, error, sizeof error);
    must(!w->optimizer, error);
    if (gossips(w)) {
        w->mean = allocate(P * sizeof(float));
        w->shards = allocate((P + size) * sizeof(float));
    }
    if (options_has_server_model(o)) w->server = allocate(P * sizeof(float));
    if (run->has_checkpoint) load_state(w);
    if (w->g->cuda) use_device(w);
    return w;
}

/* The life of a worker: make the model, then train, evaluate or sample. */
static int work(Comm *c, void *arg) {
    Worker *w = create_worker(c, arg);
    const Options *o = &w->run->o;
    int status = 0;
    if (o->sample) {
        status = write_sample(w);
    } else if (o->eval) {
        w->val = evaluate(w, w->g->params, 0);
        int stopped = first_nonzero(w, isnan(w->val) ? comm_stop_requested(c) : 0);
        if (!stopped && c->rank == 0) printf("val_loss %.6f\n", w->val), finish_stdout();
        status = stopped ? 128 + stopped : 0;
    } else {
        status = train(w);
    }
    sm_free(w->optimizer);
    gpt_free(w->g);
    void *all[] = {
        w->in,   w->target, w->losses, w->cuts, w->gathered, w->window_loss, w->tensor_square,
        w->mean, w->shards, w->server, w};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    return status;
}

/* ------------------------------------------------------------------------------------------------
 * main: options, the save that a run goes on from, data, then the workers */
#ifndef TESTING

/* The model as a table of tensors. One that is not that of the save or of --init is refused. */
static Gpt *plan_model(const Run *run) {
    const Options *o = &run->o;
    GptConfig config = model_of(run);
    Gpt *g = gpt_create(&config, 0, 0, NULL);
    must(!g, NO_MEMORY);
    if (run->has_checkpoint) check_shapes(&run->checkpoint.model, g->tensor, g->tensors);
    if (run->init.path) check_shapes(&run->init, g->tensor, g->tensors);
    if (run->init.path) check_all_used(&run->init, g->tensor, g->tensors);
    check_memory(o, g->parameters);
    return g;
}

/* Train, evaluate or sample with all workers; restarts with the survivors where that is asked for.
 */
static int run_workers(Run *run) {
    static CommDeath death;
    Options *o = &run->o;
    char error[512];
    for (;;) {
        CommOptions options = {.backend = o->sample ? "threads" : o->backend,
                               .workers = o->sample ? 1 : (int)o->workers,
                               .threads = o->sample ? 1 : (int)o->threads,
                               .timeout = o->timeout};
        int status = comm_run(&options, work, run, &death, error, sizeof error);
        must(status == COMM_FAILED, error);
        if (status != COMM_DIED) return status;
        if (strcmp(o->on_death, "continue") != 0)
            die(FAILED, "%s; --resume goes on from %s/last if that was saved", error, o->out);
        report_note(stderr, "%s", error);
        if (death.stop) return 128 + death.stop;
        go_on_without(run, &death);
    }
}

int main(int argc, char **argv) {
    static Run run;
    Options *o = &run.o;
    unsigned char given[FLAGS];
    char error[BASE_PATH + 1024];
    int rank, ranks, sharing, lock = -1, spare;
    do
        spare = open("/dev/null",
                     O_RDONLY); /* in the place of closed streams, which no file may take */
    while (spare >= 0 && spare <= 2);
    if (spare > 2) close(spare);
    comm_init(&argc, &argv, &rank, &ranks, &sharing);
    if (rank > 0 && !comm_backend("mpi")) return sleep(1), USAGE; /* rank 0 refuses this launch */
    if (rank > 0 && !freopen("/dev/null", "w", stdout))           /* rank 0 speaks */
        die(FAILED, "/dev/null: %s", strerror(errno));
    team_float_environment();
    signal(SIGXFSZ, SIG_IGN); /* a write then fails, and the program can say which */
    signal(SIGPIPE, SIG_IGN); /* a lost reader of progress never ends a run */
    signal(SIGBUS, end_of_map);
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            if (options_help(stdout, argv[i + 1])) return finish_stdout();
            die(USAGE,
                "--help %s: there is Data, Model, Optimizer, Workers, Run, Text, Help or all",
                argv[i + 1]);
        }
    options_defaults(o);
    if (flags_parse(flags, FLAGS, o, argc, argv, given, error, sizeof error))
        die(USAGE, "%s", error);
    if (o->version) return printf("train_gpt %s (%s)\n", SM_VERSION, __VERSION__), finish_stdout();
    if (*o->list) return options_list(stdout, o->list), finish_stdout();

    prepare_run(&run, given, ranks, sharing);
    Gpt *plan = plan_model(&run);
    int training = !o->sample && !o->eval && !o->dry_run;
    if (training && rank == 0)
        begin_training(&run, plan->tensor, plan->tensors, plan->parameters, &lock);
    if (training && !o->resume) run.identity = checkpoint_new_identity();
    if (o->dry_run) {
        OptionsMemory memory = {0};
        size_t batch = (size_t)(o->batch / o->workers / o->accumulate);
        GptCudaShape shape = cuda_shape(plan);
        if (options_device(o, 0, 0) < 0)
            memory.arena = gpt_bytes(&plan->config, batch, 1, (int)o->threads, &memory.activations,
                                     &memory.packed);
        else
            memory.device = gpt_cuda_measure(&shape, batch, 1);
        options_dry_run(stdout, o, &run.data, plan->tensor, plan->tensors, memory);
    }
    gpt_free(plan);
    int status = o->dry_run ? finish_stdout() : run_workers(&run);
    checkpoint_unlock(lock);
    data_close(&run.data);
    data_vocab_free(&run.vocab);
    checkpoint_close(&run.checkpoint);
    st_close(&run.init);
    st_close(&run.resumed);
    free(run.vocab_text), free(run.origin), free(run.prompt);
    return status;
}
#endif
