/* cuda.c - lib/gpt_cuda.cu and lib/signmuon_cuda.cu against the CPU's model and optimizer. On a CPU
   (test/check.sh cuda) test/cuda_on_cpu.h runs the kernels, on a GPU (test/gpu.sh) nvcc's code does.
   Prints, for each kind of tensor, how far its gradient is from the CPU's. */
#define TESTING
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../train_gpt.c"
#pragma GCC diagnostic pop

#include "test.h"

/* The same model on a CPU and on a GPU, with equal parameters away from the small initial ones. */
typedef struct Pair {
    Gpt *cpu, *gpu;
    Team team;
    size_t P;
    int32_t in[1024], target[1024];
} Pair;

static void pair_open(Pair *p, GptConfig c, size_t batch, int bf16) {
    char error[512];
    if (team_start(&p->team, 1, 0)) abort();
    p->cpu = gpt_create(&c, batch, 1, &p->team);
    c.bf16 = bf16;
    p->gpu = gpt_create_cuda(&c, batch, 1, 0, error, sizeof error);
    if (!p->cpu || !p->gpu) fprintf(stderr, "%s\n", error), abort();
    p->P = p->cpu->parameters;
    gpt_init(p->cpu);
    for (size_t i = 0; i < p->P; i++) p->cpu->params[i] += (float)(0.1 * test_normal(7, i));
    memcpy(p->gpu->params, p->cpu->params, p->P * sizeof(float));
    gpt_send(p->gpu);
    for (size_t i = 0; i < 1024; i++) {
        p->in[i] = (int32_t)(test_hash(1, i) % (uint64_t)c.vocab);
        p->target[i] = (int32_t)(test_hash(2, i) % (uint64_t)c.vocab);
    }
    p->target[3] = p->target[20] = -1;
}

static void pair_close(Pair *p) {
    gpt_free(p->cpu);
    gpt_free(p->gpu);
    team_stop(&p->team);
}

/* |a - b| / |b| of two vectors */
static double distance(const float *a, const float *b, size_t n) {
    double apart = 0, length = 0;
    for (size_t i = 0; i < n; i++) {
        apart += pow((double)a[i] - (double)b[i], 2);
        length += pow((double)b[i], 2);
    }
    return sqrt(apart) / (sqrt(length) + 1e-150);
}

static const GptConfig odd = {
    .layers = 2, .heads = 3, .width = 33, .context = 70, .vocab = 37, .bias = 1, .seed = 9};
static const GptConfig wide = {
    .layers = 2, .heads = 3, .width = 72, .context = 70, .vocab = 37, .bias = 1, .seed = 9};
static const GptConfig half_warp = {
    .layers = 2, .heads = 2, .width = 64, .context = 70, .vocab = 37, .bias = 1, .seed = 9};
static const GptConfig usual = {
    .layers = 2, .heads = 1, .width = 64, .context = 80, .vocab = 65, .bias = 1, .seed = 9};
static const GptConfig plain = {
    .layers = 1, .heads = 2, .width = 128, .context = 80, .vocab = 65, .seed = 9};

/* Losses, and the gradient of every tensor; the table has one column for each model. */
static void check_gradients(const char *title, GptConfig c, size_t B, size_t T, int bf16,
                            double tolerance) {
    Pair p;
    pair_open(&p, c, B, bf16);
    double cpu = gpt_gradient(p.cpu, p.in, p.target, B, T, 5);
    double gpu = gpt_gradient(p.gpu, p.in, p.target, B, T, 5);
    CHECK_NEAR(gpu, cpu, tolerance);
    gpt_fetch_grads(p.gpu);
    printf("    %-28s loss %.1e ", title, fabs(gpu / cpu - 1));
    for (int k = 0; k < TENSOR_KINDS; k++) {
        double most = 0;
        for (int l = 0; p.cpu->of_kind[k] && l < (in_layers(k) ? c.layers : 1); l++) {
            const SmTensor *t = tensor_of(p.cpu, k, l);
            double d = distance(p.gpu->grads + t->offset, p.cpu->grads + t->offset, tensor_size(t));
            CHECK(d < tolerance, "%s %s: %.2g from the CPU's", title, t->name, d);
            most = fmax(most, d);
        }
        const char *name = tensor_rows[k].name, *dot = strstr(name, "%d.");
        if (p.cpu->of_kind[k]) printf(" %s %.1e", dot ? dot + 3 : name, most);
    }
    putchar('\n');
    pair_close(&p);
}

TEST(cuda_gradients_equal_the_cpu_fp32) {
    check_gradients("fp32, head 11", odd, 2, 70, 0, 3e-5);
    check_gradients("fp32, head 32", half_warp, 3, 61, 0, 3e-5);
    check_gradients("fp32, head 64, no biases", plain, 2, 80, 0, 3e-5);
}

TEST(cuda_gradients_near_the_cpu_bf16) {
    check_gradients("bf16, head 24", wide, 2, 70, 1, 0.03);
    check_gradients("bf16, head 32", half_warp, 3, 61, 1, 0.03);
    check_gradients("bf16, head 64", usual, 2, 80, 1, 0.03);
    check_gradients("bf16, head 64, no biases", plain, 3, 70, 1, 0.03);
}

TEST(cuda_dropout_has_the_masks_of_the_cpu) {
    GptConfig c = half_warp;
    c.dropout = 0.3;
    check_gradients("fp32, dropout 0.3", c, 2, 70, 0, 3e-5);
    check_gradients("bf16, dropout 0.3", c, 2, 70, 1, 0.03);
}

TEST(cuda_accumulates_passes) {
    GptConfig c = half_warp;
    c.passes = 3;
    check_gradients("fp32, three passes", c, 3, 70, 0, 3e-5);
    c.dropout = 0.2;
    check_gradients("bf16, three passes, dropout", c, 3, 70, 1, 0.03);
}

TEST(cuda_gradients_have_the_same_bits_again) {
    Pair p;
    pair_open(&p, half_warp, 3, 1);
    gpt_gradient(p.gpu, p.in, p.target, 3, 70, 5);
    gpt_fetch_grads(p.gpu);
    float *first = allocate(p.P * sizeof *first);
    memcpy(first, p.gpu->grads, p.P * sizeof *first);
    gpt_gradient(p.gpu, p.in, p.target, 3, 70, 5);
    gpt_fetch_grads(p.gpu);
    CHECK(memcmp(first, p.gpu->grads, p.P * sizeof *first) == 0);
    free(first);
    pair_close(&p);
}

TEST(cuda_losses_and_logits_equal_the_cpu) {
    enum { B = 3, T = 61 };
    Pair p;
    float a[B * T], b[B * T], logits[2][64];
    pair_open(&p, half_warp, B, 0);
    float *other = allocate(p.P * sizeof *other);
    for (size_t i = 0; i < p.P; i++) other[i] = p.cpu->params[i] * 0.9f;
    for (int k = 0; k < 3; k++) { /* foreign parameters, the same again, the model's own */
        gpt_losses(p.cpu, k < 2 ? other : p.cpu->params, p.in, p.target, B, T, k == 1, a);
        gpt_losses(p.gpu, k < 2 ? other : p.gpu->params, p.in, p.target, B, T, k == 1, b);
        CHECK(distance(b, a, B * T) < 1e-5, "case %d: %g", k, distance(b, a, B * T));
        CHECK(b[3] == 0 && b[20] == 0);
    }
    gpt_logits(p.cpu, p.cpu->params, p.in, 0, 17, logits[0]);
    gpt_logits(p.gpu, p.gpu->params, p.in, 0, 17, logits[1]);
    CHECK(distance(logits[1], logits[0], 37) < 1e-5);
    free(other);
    pair_close(&p);
}

/* ------------------------------------------------------------------------------------------------
 * the optimizer's stages */

typedef struct Steps {
    const char *method, *aux, *ns;
    int ns_bf16, polar_after_vote;
    double bound;        /* on the distance of parameters to the host's, 0: the same bits */
    double apart[8];     /* of each worker, after three steps */
    double agreement[2]; /* signs that votes confirmed */
} Steps;

/* A worker's three steps, on the device and on the host from the device's own gradients. */
static int take_steps(SmComm *comm, void *context) {
    Steps *s = context;
    Pair p;
    char error[512];
    const size_t B = 2, T = 20;
    const GptConfig c = {
        .layers = 1, .heads = 2, .width = 24, .context = 20, .vocab = 37, .bias = 1, .seed = 9};
    SmConfig config = sm_config(s->method);
    config.aux = s->aux;
    config.polar_after_vote = s->polar_after_vote;
    if (s->ns) config.ns = s->ns;
    pair_open(&p, c, B, 0);
    for (size_t i = 0; i < 1024; i++) /* other data for every worker */
        p.in[i] = (int32_t)(test_hash(3 + (uint64_t)sm_rank(comm), i) % 37);
    SmOptimizer *host =
        sm_create(&config, p.cpu->tensor, p.cpu->tensors, comm, error, sizeof error);
    SmOptimizer *device =
        sm_create(&config, p.gpu->tensor, p.gpu->tensors, comm, error, sizeof error);
    SmDevice *stages = gpt_cuda_stages(p.gpu->cuda, s->ns_bf16, error, sizeof error);
    if (!host || !device || !stages) return fprintf(stderr, "%s\n", error), 1;
    if (sm_attach(device, stages, error, sizeof error) != 1)
        return fprintf(stderr, "%s\n", error), 2;
    for (uint64_t step = 0; step < 3; step++) {
        gpt_gradient(p.gpu, p.in, p.target, B, T, 0);
        gpt_fetch_grads(p.gpu);
        if (sm_step(host, p.cpu->params, p.gpu->grads, step, 0.01, 0.02)) return 3;
        if (sm_step(device, gpt_cuda_params(p.gpu->cuda), gpt_cuda_grads(p.gpu->cuda), step, 0.01,
                    0.02))
            return fprintf(stderr, "%s\n", sm_device_error(device)), 4;
    }
    gpt_fetch(p.gpu);
    s->apart[sm_rank(comm)] = distance(p.gpu->params, p.cpu->params, p.P);
    if (sm_from_device(device)) return 5;
    if (sm_rank(comm) == 0)
        s->agreement[0] = sm_agreement(host).confirmed,
        s->agreement[1] = sm_agreement(device).confirmed;
    SmState a, b;
    for (size_t i = 0; sm_state(host, i, &a) && sm_state(device, i, &b); i++)
        if (memcmp(a.data, b.data, a.rows * a.cols * sizeof(float)))
            return fprintf(stderr, "%s of tensor %zu differs\n", a.kind, a.tensor), 6;
    sm_free(host);
    sm_free(device);
    pair_close(&p);
    return 0;
}

static void check_steps(Steps s, int workers) {
    char error[512] = "";
    int status = sm_run("threads", workers, 1, take_steps, &s, error, sizeof error);
    CHECK(status == 0, "%s, %d workers: status %d %s", s.method, workers, status, error);
    for (int r = 0; r < workers && status == 0; r++)
        CHECK(s.apart[r] <= s.bound, "%s --aux %s, worker %d of %d: parameters are %.2g apart",
              s.method, s.aux, r, workers, s.apart[r]);
    CHECK_NEAR(s.agreement[1], s.agreement[0], s.bound ? 0.02 * s.agreement[0] : 0);
}

TEST(cuda_steps_have_the_bits_of_the_cpu) {
    for (int workers = 1; workers <= 3; workers += 2) {
        check_steps((Steps){.method = "sgd", .aux = "same"}, workers);
        check_steps((Steps){.method = "signsgd", .aux = "same"}, workers);
        check_steps((Steps){.method = "signum", .aux = "sign"}, workers);
        check_steps((Steps){.method = "adamw", .aux = "same"}, workers);
    }
}

/* Signs of entries near zero may differ, and with lr 0.01 a differing sign shows. */
TEST(cuda_steps_with_polar_factors_near_the_cpu) {
    for (int workers = 1; workers <= 3; workers += 2) {
        check_steps((Steps){.method = "muon", .aux = "adamw", .bound = 1e-5}, workers);
        check_steps((Steps){.method = "muon-avgpolar", .aux = "sign", .bound = 1e-5}, workers);
        check_steps((Steps){.method = "signmuon", .aux = "adamw", .bound = 3e-3}, workers);
        check_steps(
            (Steps){.method = "signmuon", .aux = "sign", .bound = 0.01, .polar_after_vote = 1},
            workers);
        check_steps((Steps){.method = "muon", .aux = "adamw", .ns_bf16 = 1, .bound = 2e-2},
                    workers);
        check_steps((Steps){.method = "signmuon", .aux = "sign", .ns_bf16 = 1, .bound = 0.06},
                    workers);
        check_steps((Steps){.method = "muon", .aux = "sign", .ns = "polar-express8", .bound = 1e-4},
                    workers);
    }
}
