/* model.c - the GPT of train_gpt.c against PyTorch's numbers, against central differences of a
   transcription in double, and against itself. */
#define TESTING
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../train_gpt.c"
#pragma GCC diagnostic pop

#include "../lib/safetensors.h"
#include "test.h"

/* A model that can train, with its own team. */
typedef struct Model {
    Gpt *g;
    Team team;
    const SmTensor *tensors;
    size_t count, size;
    float *params, *grads;
} Model;

static void model_open(Model *m, GptConfig c, size_t batch, int threads) {
    if (team_start(&m->team, threads, 0)) abort();
    m->g = gpt_create(&c, batch, 1, &m->team);
    if (!m->g) abort();
    gpt_init(m->g);
    m->tensors = gpt_tensors(m->g, &m->count);
    m->size = m->g->parameters;
    m->params = m->g->params;
    m->grads = m->g->grads;
}

static void model_close(Model *m) {
    gpt_free(m->g);
    team_stop(&m->team);
}

static size_t entries(const SmTensor *t) { return t->blocks * t->rows * t->cols; }

static float *copy_of(const float *x, size_t n) {
    float *copy = malloc(n * sizeof *x);
    if (!copy) abort();
    return memcpy(copy, x, n * sizeof *x);
}

static void random_tokens(int32_t *tokens, size_t n, int vocab, uint64_t seed) {
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)(test_hash(seed, i) % (uint64_t)vocab);
}

/* Sequences of 70 tokens: tiles are cut short, and go across sequences. */
enum { B3 = 3, T70 = 70, V37 = 37 };
static const GptConfig small = {
    .layers = 2, .heads = 3, .width = 48, .context = T70, .vocab = V37, .bias = 1, .seed = 9};

static void random_batch(int32_t *in, int32_t *target, size_t n) {
    random_tokens(in, n, V37, 1);
    random_tokens(target, n, V37, 2);
}

/* Away from the small initial parameters, where attention is nearly uniform. */
static void disturb(Model *m, double size, uint64_t seed) {
    for (size_t i = 0; i < m->size; i++) m->params[i] += (float)(size * test_normal(seed, i));
}

static double norm_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* |a - b| / |b| of two vectors */
static double distance(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)a[i] - (double)b[i], 2);
    return sqrt(sum) / (norm_of(b, n) + 1e-150);
}

/* ------------------------------------------------------------------------------------------------
 * GPT-2 in double, as the formulas read: every layer over one whole sequence, tensors by name */

typedef struct Plain {
    GptConfig c;
    const Model *m;
    double *w;
} Plain;

/* Tensor "LAYER.PART" of layer l, or of no layer when l is -1; NULL when there is none. */
static const double *plain(const Plain *p, int l, const char *layer, const char *part) {
    char prefix[32] = "", full[128];
    if (l >= 0) snprintf(prefix, sizeof prefix, "h.%d.", l);
    snprintf(full, sizeof full, "transformer.%s%s.%s", prefix, layer, part);
    for (size_t i = 0; i < p->m->count; i++)
        if (!strcmp(p->m->tensors[i].name, full)) return p->w + p->m->tensors[i].offset;
    return NULL;
}

/* out (C) = LayerNorm(x) */
static void plain_norm(double *out, const double *x, const Plain *p, int l, const char *layer) {
    const double *w = plain(p, l, layer, "weight"), *b = plain(p, l, layer, "bias");
    double mean = 0, variance = 0;
    int C = p->c.width;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
    for (int c = 0; c < C; c++)
        out[c] = (x[c] - mean) / sqrt(variance + 1e-5) * w[c] + (b ? b[c] : 0);
}

/* out (n) = W x (k) + b */
static void plain_linear(double *out, const double *x, const Plain *p, int l, const char *layer,
                         size_t n, size_t k) {
    const double *w = plain(p, l, layer, "weight"), *b = plain(p, l, layer, "bias");
    for (size_t i = 0; i < n; i++) {
        out[i] = b ? b[i] : 0;
        for (size_t j = 0; j < k; j++) out[i] += w[i * k + j] * x[j];
    }
}

/* y (C) = attention of token t over qkv (T, 3C) */
static void plain_attention(double *y, const double *qkv, double *score, size_t t, size_t C,
                            size_t NH) {
    size_t HS = C / NH;
    for (size_t h = 0; h < C; h += HS) {
        double sum = 0;
        for (size_t s = 0; s <= t; s++) {
            score[s] = 0;
            for (size_t c = h; c < h + HS; c++)
                score[s] += qkv[t * 3 * C + c] * qkv[s * 3 * C + C + c];
            sum += score[s] = exp(score[s] / sqrt((double)HS));
        }
        for (size_t c = h; c < h + HS; c++) {
            y[c] = 0;
            for (size_t s = 0; s <= t; s++) y[c] += score[s] / sum * qkv[s * 3 * C + 2 * C + c];
        }
    }
}

/* The sum of the losses of one sequence. */
static double plain_loss(const Plain *p, const int32_t *in, const int32_t *target, size_t T) {
    size_t C = (size_t)p->c.width, V = (size_t)p->c.vocab, NH = (size_t)p->c.heads;
    double *x = calloc(T * C + T * 3 * C + 6 * C + T + V, sizeof *x), loss = 0;
    double *qkv = x + T * C, *h = qkv + T * 3 * C, *n = h + 4 * C, *y = n + C, *score = y + C;
    double *out = score + T;
    const double *wte = plain(p, -1, "wte", "weight"), *wpe = plain(p, -1, "wpe", "weight");
    for (size_t i = 0; i < T * C; i++) x[i] = wte[(size_t)in[i / C] * C + i % C] + wpe[i];
    for (int l = 0; l < p->c.layers; l++) {
        for (size_t t = 0; t < T; t++) {
            plain_norm(n, x + t * C, p, l, "ln_1");
            plain_linear(qkv + t * 3 * C, n, p, l, "attn.c_attn", 3 * C, C);
        }
        for (size_t t = 0; t < T; t++) {
            plain_attention(y, qkv, score, t, C, NH);
            plain_linear(n, y, p, l, "attn.c_proj", C, C);
            for (size_t c = 0; c < C; c++) x[t * C + c] += n[c];
            plain_norm(n, x + t * C, p, l, "ln_2");
            plain_linear(h, n, p, l, "mlp.c_fc", 4 * C, C);
            for (size_t c = 0; c < 4 * C; c++) {
                double u = sqrt(2 / acos(-1.0)) * (h[c] + 0.044715 * h[c] * h[c] * h[c]);
                h[c] *= 0.5 * (1 + tanh(u));
            }
            plain_linear(y, h, p, l, "mlp.c_proj", C, 4 * C);
            for (size_t c = 0; c < C; c++) x[t * C + c] += y[c];
        }
    }
    for (size_t t = 0; t < T; t++) {
        double sum = 0;
        plain_norm(n, x + t * C, p, -1, "ln_f");
        plain_linear(out, n, p, -1, "wte", V, C);
        for (size_t v = 0; v < V; v++) sum += exp(out[v]);
        if (target[t] >= 0) loss += log(sum) - out[target[t]];
    }
    free(x);
    return loss;
}

/* The mean loss of B sequences with entry `at` of the parameters moved by e. */
static double plain_mean(Plain *p, const int32_t *in, const int32_t *target, size_t B, size_t T,
                         size_t at, double e) {
    double sum = 0, real = 0, keep = p->w[at];
    p->w[at] += e;
    for (size_t b = 0; b < B; b++) sum += plain_loss(p, in + b * T, target + b * T, T);
    for (size_t i = 0; i < B * T; i++) real += target[i] >= 0;
    p->w[at] = keep;
    return sum / real;
}

/* A few entries of every gradient. */
static void check_central_differences(GptConfig c, size_t B, size_t T) {
    Model m;
    int32_t in[150], target[150];
    model_open(&m, c, B, 2);
    disturb(&m, 0.1, 7);
    random_tokens(in, B * T, c.vocab, 5);
    random_tokens(target, B * T, c.vocab, 6);
    target[3] = target[B * T - 1] = -1;
    Plain p = {.c = c, .m = &m, .w = calloc(m.size, sizeof *p.w)};
    for (size_t i = 0; i < m.size; i++) p.w[i] = (double)m.params[i];
    double loss = gpt_gradient(m.g, in, target, B, T, 0) / (double)(B * T - 2), e = 1e-5;
    CHECK_NEAR(loss, plain_mean(&p, in, target, B, T, 0, 0), 1e-5);
    for (size_t i = 0; i < m.count * 3; i++) {
        const SmTensor *t = &m.tensors[i / 3];
        size_t n = entries(t), at = t->offset + test_hash(i / 3, i % 3) % n;
        double scale = norm_of(m.grads + t->offset, n) / sqrt((double)n),
               have = (double)m.grads[at];
        double up = plain_mean(&p, in, target, B, T, at, e);
        double want = (up - plain_mean(&p, in, target, B, T, at, -e)) / (2 * e);
        CHECK(scale > 0 && fabs(have - want) <= 1e-5 * fabs(want) + 2e-5 * scale,
              "%s[%zu]: %g, central difference %g", t->name, at - t->offset, have, want);
    }
    free(p.w);
    model_close(&m);
}

TEST(model_gradients_equal_central_differences_in_double) {
    static const struct {
        GptConfig c;
        size_t B, T;
    } rows[] = {
        {{.layers = 2, .heads = 3, .width = 24, .context = 9, .vocab = 17, .seed = 1}, 2, 9},
        {{.layers = 1, .heads = 2, .width = 16, .context = 7, .vocab = 11, .bias = 1}, 3, 7},
        /* shorter than the context */
        {{.layers = 2, .heads = 1, .width = 12, .context = 20, .vocab = 13, .bias = 1}, 2, 11},
        /* several tiles in a sequence */
        {{.layers = 1, .heads = 2, .width = 12, .context = 150, .vocab = 7, .seed = 4}, 1, 150},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_central_differences(rows[i].c, rows[i].B, rows[i].T);
}

/* ------------------------------------------------------------------------------------------------
 * PyTorch's numbers: test/fixture.safetensors, which test/make_fixture.py writes */

static int fixture_int(const StFile *f, char model, const char *key) {
    char full[64];
    snprintf(full, sizeof full, "%c.%s", model, key);
    return st_meta(f, full) ? atoi(st_meta(f, full)) : -1;
}

static void fixture_read(const StFile *f, char model, const char *name, void *out, size_t bytes) {
    char full[128];
    snprintf(full, sizeof full, "%c.%s", model, name);
    const StEntry *e = st_find(f, full);
    if (e && e->end - e->begin == bytes)
        memcpy(out, st_data(f, e), bytes);
    else
        CHECK(0, "%s is not in the fixture", full);
}

static void check_pytorch(const StFile *f, char model) {
    GptConfig c = {.layers = fixture_int(f, model, "layers"),
                   .heads = fixture_int(f, model, "heads"),
                   .width = fixture_int(f, model, "width"),
                   .context = fixture_int(f, model, "context"),
                   .vocab = fixture_int(f, model, "vocab"),
                   .bias = fixture_int(f, model, "bias")};
    size_t B = (size_t)fixture_int(f, model, "batch"), T = (size_t)c.context, BT = B * T, real = 0;
    size_t V = (size_t)c.vocab;
    int32_t in[32], target[32];
    float logits[64], expected[32 * 64];
    double loss = 0;
    Model m;
    model_open(&m, c, B, 1);
    float *want = copy_of(m.params, m.size);
    fixture_read(f, model, "inputs", in, BT * sizeof *in);
    fixture_read(f, model, "targets", target, BT * sizeof *target);
    fixture_read(f, model, "loss", &loss, sizeof loss);
    fixture_read(f, model, "logits", expected, BT * V * sizeof *expected);
    for (size_t i = 0; i < m.count; i++) {
        const SmTensor *t = &m.tensors[i];
        char grad[128];
        snprintf(grad, sizeof grad, "grad.%s", t->name);
        fixture_read(f, model, t->name, m.params + t->offset, entries(t) * 4);
        fixture_read(f, model, grad, want + t->offset, entries(t) * 4);
    }
    for (size_t i = 0; i < BT; i++) {
        gpt_logits(m.g, m.params, in + i / T * T, 0, i % T + 1, logits);
        double d = distance(logits, expected + i * V, V);
        CHECK(d < 2e-6, "model %c, logits of token %zu: relative error %g", model, i, d);
    }
    for (size_t i = 0; i < BT; i++) real += target[i] >= 0;
    double sum = gpt_gradient(m.g, in, target, B, T, 0);
    CHECK_NEAR(sum / (double)real, loss, 1e-6);
    for (size_t i = 0; i < m.count; i++) {
        size_t at = m.tensors[i].offset;
        double d = distance(m.grads + at, want + at, entries(&m.tensors[i]));
        CHECK(d <= 1e-5, "model %c, gradient of %s: error %g", model, m.tensors[i].name, d);
    }
    free(want);
    model_close(&m);
}

TEST(model_logits_loss_gradients_equal_pytorch) {
    char error[512];
    StFile f;
    if (st_open(&f, "test/fixture.safetensors", error, sizeof error)) {
        CHECK(0, "%s", error);
        return;
    }
    check_pytorch(&f, 'a');
    check_pytorch(&f, 'b');
    st_close(&f);
}

/* ------------------------------------------------------------------------------------------------
 * the model against itself */

TEST(model_gradient_bits_independent_of_compute_threads) {
    static const int threads[] = {1, 2, 3, 5};
    int32_t in[B3 * T70], target[B3 * T70];
    random_batch(in, target, B3 * T70);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        float *first = NULL;
        for (size_t i = 0; i < 4; i++) {
            GptConfig c = small;
            Model m;
            c.dropout = 0.1;
            c.bf16 = bf16;
            model_open(&m, c, B3, threads[i]);
            gpt_gradient(m.g, in, target, B3, T70, 5);
            if (!first) first = copy_of(m.grads, m.size);
            CHECK(!memcmp(first, m.grads, m.size * sizeof(float)), "bf16 %d, %d threads", bf16,
                  threads[i]);
            model_close(&m);
        }
        free(first);
    }
}

/* Operands keep 8 bits of mantissa: products are off by a few 2^-9. */
TEST(model_bf16_gradients_near_fp32) {
    int32_t in[B3 * T70], target[B3 * T70];
    Model m[2];
    random_batch(in, target, B3 * T70);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        GptConfig c = small;
        c.bf16 = bf16;
        model_open(&m[bf16], c, B3, 1);
        CHECK_NEAR(gpt_gradient(m[bf16].g, in, target, B3, T70, 0) / (B3 * T70), log(V37), 0.1);
    }
    for (size_t i = 0; i < m[0].count; i++) {
        size_t at = m[0].tensors[i].offset;
        double d = distance(m[1].grads + at, m[0].grads + at, entries(&m[0].tensors[i]));
        CHECK(d > 1e-5 && d < 0.03, "%s: relative distance %g", m[0].tensors[i].name, d);
    }
    model_close(&m[0]);
    model_close(&m[1]);
}

TEST(model_losses_independent_of_other_sequences) {
    int32_t in[B3 * T70], target[B3 * T70];
    float alone[T70], all[B3 * T70], other[B3 * T70];
    double sum = 0;
    Model m;
    random_batch(in, target, B3 * T70);
    target[2 * T70 + 5] = -1;
    model_open(&m, small, B3, 2);
    gpt_losses(m.g, m.params, in + 2 * T70, target + 2 * T70, 1, T70, 0, alone);
    gpt_losses(m.g, m.params, in, target, B3, T70, 1, all);
    CHECK(!memcmp(alone, all + 2 * T70, sizeof alone));
    CHECK(alone[5] == 0 && alone[4] > 0);
    float *params = copy_of(m.params, m.size); /* and of the model's own parameters */
    for (size_t i = 0; i < m.size; i++) params[i] *= 1.5f;
    gpt_losses(m.g, params, in, target, B3, T70, 0, other);
    CHECK(m.g->params == m.params && memcmp(all, other, sizeof all));
    memcpy(m.params, params, m.size * sizeof *params);
    for (size_t i = 0; i < B3 * T70; i++) sum += (double)other[i];
    CHECK_NEAR(gpt_gradient(m.g, in, target, B3, T70, 0), sum, 1e-12);
    free(params);
    model_close(&m);
}

TEST(model_losses_depend_on_no_later_token) {
    int32_t in[T70], target[T70];
    float before[T70], after[T70];
    Model m;
    random_batch(in, target, T70);
    model_open(&m, small, 1, 1);
    disturb(&m, 0.1, 3);
    gpt_losses(m.g, m.params, in, target, 1, T70, 0, before);
    for (size_t t = 1; t < T70; t += 17) {
        in[t] = (in[t] + 1) % V37;
        gpt_losses(m.g, m.params, in, target, 1, T70, 1, after);
        CHECK(!memcmp(before, after, t * sizeof *before), "token %zu", t);
        for (size_t i = t; i < T70; i++) CHECK(before[i] != after[i], "token %zu, loss %zu", t, i);
        memcpy(before, after, sizeof before);
    }
    model_close(&m);
}

TEST(model_logits_row_by_row_equal_whole_pass) {
    static const size_t steps[] = {1, 3, 66}; /* rows of a call */
    int32_t in[T70], target[T70];
    float logits[V37], whole[V37], losses[T70];
    for (int bf16 = 0; bf16 < 2; bf16++) {
        GptConfig c = small;
        Model m;
        c.bf16 = bf16;
        model_open(&m, c, 1, 2);
        disturb(&m, 0.1, 3);
        random_batch(in, target, T70);
        gpt_losses(m.g, m.params, in, target, 1, T70, 0, losses);
        for (size_t s = 0; s < 3; s++)
            for (size_t from = 0, to; from < T70; from = to) {
                to = from + steps[s] < T70 ? from + steps[s] : T70;
                gpt_logits(m.g, m.params, in, from, to, logits);
                double sum = 0, tolerance = bf16 ? 0.02 : 1e-5;
                for (size_t v = 0; v < V37; v++) sum += exp((double)logits[v]);
                CHECK_NEAR(log(sum) - (double)logits[target[to - 1]], (double)losses[to - 1],
                           tolerance);
                if (to < T70) continue;
                gpt_logits(m.g, m.params, in, 0, to, whole);
                CHECK(distance(logits, whole, V37) < tolerance, "%zu rows, bf16 %d", steps[s],
                      bf16);
            }
        model_close(&m);
    }
}

TEST(dropout_masks_equal_in_both_directions) {
    enum { B = 2, N = 10000 };
    int32_t in[B * T70], target[B * T70];
    GptConfig c = small;
    Model m;
    c.dropout = 0.3;
    model_open(&m, c, B, 2);
    random_batch(in, target, B * T70);
    disturb(&m, 0.15, 3);
    gpt_gradient(m.g, in, target, B, T70, 77);
    float *keep = copy_of(m.params, m.size), *grads = copy_of(m.grads, m.size);
    for (size_t i = 0, at = 0; i < m.count; i++) /* the slope along each block's own gradient */
        for (size_t block = 0; block < m.tensors[i].blocks; block++) {
            size_t n = entries(&m.tensors[i]) / m.tensors[i].blocks;
            double norm = norm_of(grads + at, n), loss[2], step = 1e-3 / (norm + 0.05);
            for (int side = 0; side < 2; side++) {
                for (size_t j = at; j < at + n; j++)
                    m.params[j] = keep[j] + (side ? -1 : 1) * (float)(step / norm) * grads[j];
                loss[side] = gpt_gradient(m.g, in, target, B, T70, 77) / (B * T70);
            }
            memcpy(m.params + at, keep + at, n * sizeof *keep);
            double slope = (loss[0] - loss[1]) / (2 * step);
            CHECK(fabs(slope - norm) <= 0.01 * norm + 1e-4, "%s, block %zu: slope %g, gradient %g",
                  m.tensors[i].name, block, slope, norm);
            at += n;
        }
    CHECK(gpt_gradient(m.g, in, target, B, T70, 77) != gpt_gradient(m.g, in, target, B, T70, 78));
    float ones[N];
    double sum = 0, dropped = 0;
    for (size_t i = 0; i < N; i++) ones[i] = 1;
    dropout(m.g, ones, N, 12345, 0);
    for (size_t i = 0; i < N; i++) sum += (double)ones[i];
    for (size_t i = 0; i < N; i++) dropped += ones[i] == 0;
    CHECK_NEAR(dropped / N, 0.3, 0.02);
    CHECK_NEAR(sum / N, 1, 0.03);
    free(keep);
    free(grads);
    model_close(&m);
}

TEST(model_memory_linear_in_context_less_in_bf16) {
    size_t kept[2][3], packed_weights;
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int k = 0; k < 3; k++) {
            GptConfig c = {
                .layers = 12, .heads = 4, .width = 128, .context = 2048 << k, .vocab = 65};
            c.bf16 = bf16;
            size_t all = gpt_bytes(&c, 1, 1, 2, &kept[bf16][k], &packed_weights);
            CHECK(all > kept[bf16][k] + packed_weights && packed_weights > 0);
        }
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const size_t *k = kept[bf16];
        CHECK_NEAR((double)(k[2] - k[1]) / (double)(k[1] - k[0]), 2, 0.01);
    }
    CHECK((double)kept[1][0] < 0.75 * (double)kept[0][0]); /* the residual stream stays fp32 */
}

TEST(model_table_without_memory_initial_parameters_nanogpt) {
    GptConfig c = {.layers = 4, .heads = 4, .width = 128, .context = 64, .vocab = 65, .seed = 1337};
    size_t count;
    Gpt *table = gpt_create(&c, 0, 0, NULL);
    CHECK(table->parameters == 804096); /* nanoGPT's CPU recipe, positions included */
    CHECK(!table->params && !table->grads);
    const SmTensor *t = gpt_tensors(table, &count);
    CHECK(count == 2 + 4 * 6 + 1 && !strcmp(t[3].name, "transformer.h.0.attn.c_attn.weight"));
    CHECK(t[3].blocks == 3 && t[3].rows == 128 && t[3].role == SM_HIDDEN && t[3].decay);
    CHECK(t[0].role == SM_OUTPUT && t[1].role == SM_INPUT && t[2].role == SM_VECTOR && !t[2].decay);
    gpt_free(table);
    for (c.bias = 0; c.bias < 2; c.bias++) {
        Model m;
        model_open(&m, c, 1, 1);
        for (size_t i = 0; i < m.count; i++) {
            size_t n = entries(&m.tensors[i]);
            const char *name = m.tensors[i].name;
            double rms = norm_of(m.params + m.tensors[i].offset, n) / sqrt((double)n);
            double want = strstr(name, "bias")     ? 0
                          : strstr(name, "ln_")    ? 1
                          : strstr(name, "c_proj") ? 0.02 / sqrt(8)
                                                   : 0.02;
            CHECK(fabs(rms - want) <= 0.03 * want, "%s: %g", name, rms);
        }
        model_close(&m);
    }
}

/* ------------------------------------------------------------------------------------------------
 * kernels */

TEST(fast_exponential_and_gelu_are_accurate) {
    for (double x = -86; x < 88; x += 0.00917) {
        double relative = (double)fast_exp((float)x) / exp((double)(float)x) - 1;
        CHECK(fabs(relative) <= 3e-7, "exp(%g): relative error %g", x, relative);
    }
    for (double x = -12; x < 12; x += 0.00131) {
        double y = (double)(float)x, u = sqrt(2 / acos(-1.0)) * (y + 0.044715 * y * y * y);
        float in = (float)x, out;
        gelu_forward(&out, &in, 1);
        CHECK_NEAR((double)out, 0.5 * y * (1 + tanh(u)), 1e-6);
    }
    CHECK(fast_exp(-1000) == 0 && fast_exp(0) == 1 && isnan(fast_exp(NAN)));
}

TEST(samples_follow_temperature_and_top_k) {
    float logits[4] = {0, 1, 2, -1}, sorted[4];
    double count[4] = {0}, sum = 0;
    CHECK(sample_token(logits, sorted, 4, 0, 0, 0.9) == 2);
    CHECK(sample_token(logits, sorted, 4, 1, 1, 0.0001) == 2);
    for (int i = 0; i < 10000; i++)
        count[sample_token(logits, sorted, 4, 0.5, 0, (i + 0.5) / 10000)]++;
    for (int v = 0; v < 4; v++) sum += exp((double)logits[v] / 0.5);
    for (int v = 0; v < 4; v++)
        CHECK_NEAR(count[v] / 10000, exp((double)logits[v] / 0.5) / sum, 1e-3);
    memset(count, 0, sizeof count);
    for (int i = 0; i < 1000; i++) count[sample_token(logits, sorted, 4, 1, 2, (i + 0.5) / 1000)]++;
    CHECK(count[0] + count[3] == 0);
    CHECK_NEAR(count[1] / 1000, 1 / (1 + exp(1.0)), 2e-3);
}
