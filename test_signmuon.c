/* test_signmuon.c - the proofs of the optimizer: every method against its equations in double, on
   every back end, byte for byte. The runner is test/test.c; test/reference.h has the equations. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "demuon.h"
#include "ef21muon.h"
#include "lib/comm.h"
#include "optimizer.h"
#include "signmuon.h"
#include "test/reference.h"
#include "test/test.h"

/* ------------------------------------------------------------------------------------------------
 * runs of the optimizer */

typedef struct Case {
    SmConfig config;
    const char *backend;
    int workers, threads, steps;
    double lr, aux_lr;
    uint64_t seed;
    const SmTensor *tensors;
    size_t count;
    void (*gradient)(float *g, const float *w, const struct Case *c, int worker, int step);
    /* by all workers after each step */
    void (*inspect)(const struct Case *c, SmOptimizer *o, SmComm *comm, const float *params,
                    int step);
} Case;

/* What the workers leave behind, in memory that processes share. */
typedef struct Result {
    float path[WORKERS][STEPS][SIZE]; /* parameters after each step */
    uint64_t sent[WORKERS][2];
    SmFault fault; /* of the earliest exchange in the first step that has one */
    int fault_step;
} Result;

static Result *result; /* of the last run */

static void noisy(float *g, const float *w, const Case *c, int worker, int step) {
    (void)w;
    for (size_t i = 0; i < SIZE; i++)
        g[i] = (float)(test_uniform(c->seed, i) - 0.5 +
                       1.7 * (test_uniform(c->seed + 100 * (uint64_t)(worker + 1),
                                           i + SIZE * (size_t)step) -
                              0.5));
}
static void shared(float *g, const float *w, const Case *c, int worker, int step) {
    (void)worker;
    noisy(g, w, c, 0, step);
}
static void none(float *g, const float *w, const Case *c, int worker, int step) {
    (void)w, (void)c, (void)worker, (void)step;
    memset(g, 0, SIZE * sizeof *g);
}

static void start(float *w, uint64_t seed) {
    for (size_t i = 0; i < SIZE; i++) w[i] = (float)(0.6 * test_uniform(1000 + seed, i) - 0.3);
}

/* A case of a method with numbers that no row has. */
static Case case_of(const char *method, const char *aux, int workers) {
    Case c = {.config = sm_config(method),
              .backend = "threads",
              .workers = workers,
              .threads = 1,
              .steps = 6,
              .lr = 0.02,
              .aux_lr = 0.03,
              .seed = 3,
              .tensors = tensors,
              .count = TENSORS,
              .gradient = noisy};
    c.config.aux = aux;
    c.config.seed = 7;
    if (!sm_has_server(sm_method(method))) c.config.topology = "directed-ring";
    return c;
}

static int work(SmComm *comm, void *arg) {
    const Case *c = arg;
    char error[512] = "";
    static _Thread_local float g[SIZE], w[SIZE];
    int rank = sm_rank(comm), bad = 0;
    SmOptimizer *o = sm_create(&c->config, c->tensors, c->count, comm, error, sizeof error);
    if (!o) {
        fprintf(stderr, "%s: %s\n", c->config.method, error);
        return 1;
    }
    start(w, c->seed);
    for (int step = 0; step < c->steps; step++) {
        SmFault mine, fault[WORKERS];
        c->gradient(g, w, c, rank, step);
        bad = sm_step(o, w, g, (uint64_t)step, c->lr, c->aux_lr);
        memcpy(result->path[rank][step % STEPS], w, sizeof w);
        if (c->inspect) c->inspect(c, o, comm, w, step);
        mine = sm_fault(o);
        if ((bad == 0) != (mine.kind == 0)) return 2;
        comm_gather(comm, &mine, sizeof mine, fault, COMM_OTHER);
        for (int j = 0; j < c->workers && rank == 0 && result->fault_step < 0; j++)
            if (fault[j].kind &&
                (!result->fault.kind || fault[j].exchange < result->fault.exchange))
                result->fault = fault[j];
        if (rank == 0 && result->fault.kind && result->fault_step < 0) result->fault_step = step;
    }
    for (int kind = 0; kind < 2; kind++) result->sent[rank][kind] = comm->sent[kind];
    sm_free(o);
    return 0;
}

/* Run a case. A method with a server must leave the same model on all workers, and nothing outside
 * the tensors may be written. */
static void run(const Case *c) {
    char error[512] = "";
    if (!result) result = test_shared(sizeof *result);
    memset(result, 0, sizeof *result);
    result->fault_step = -1;
    int status =
        sm_run(c->backend, c->workers, c->threads, work, (void *)(uintptr_t)c, error, sizeof error);
    CHECK(status == 0, "%s, aux %s: status %d %s", c->config.method, c->config.aux, status, error);
    for (int j = 1; j < c->workers && sm_has_server(sm_method(c->config.method)); j++)
        CHECK(memcmp(result->path[0], result->path[j], sizeof result->path[0]) == 0 ||
                  result->fault.kind,
              "%s, aux %s: worker %d has another model", c->config.method, c->config.aux, j);
    if (c->tensors != tensors || status) return;
    float w[SIZE];
    start(w, c->seed);
    for (int t = 0; t < TENSORS; t++)
        memcpy(w + tensors[t].offset, result->path[0][0] + tensors[t].offset,
               size_of(&tensors[t]) * sizeof *w);
    CHECK(memcmp(w, result->path[0][0], sizeof w) == 0, "%s, aux %s writes outside of tensors",
          c->config.method, c->config.aux);
}

static const char *const rules[] = {"adamw", "sign", "same", "lmo"};

/* Does the rule go with the method? */
static int allowed(const char *method, const char *aux, int workers) {
    char error[512];
    SmConfig c = sm_config(method);
    c.aux = aux;
    return sm_resolve(&c, workers, error, sizeof error) == 0;
}

/* Loop over the methods' rows and the rules that go with them. */
#define FOR_METHODS(m, aux)                                                                        \
    for (size_t m##_i = 0, a = 0; sm_method_row(m##_i); a = (a + 1) % 4, m##_i += a == 0)          \
        for (const SmMethod *m = sm_method_row(m##_i); m; m = NULL)                                \
            for (const char *aux = rules[a]; aux && allowed(m->name, aux, 3); aux = NULL)

/* The path in double of a case; returns how near a number came to a doubtful sign. */
static double reference(const Case *c, Reference *r, float path[WORKERS][STEPS][SIZE]) {
    static float g[WORKERS][SIZE], w[SIZE];
    char error[512];
    memset(r, 0, sizeof *r);
    r->config = c->config;
    CHECK(sm_resolve(&r->config, c->workers, error, sizeof error) == 0, "%s", error);
    r->workers = c->workers;
    r->lr[0] = c->lr;
    r->lr[1] = c->aux_lr;
    r->margin = INFINITY;
    start(w, c->seed);
    for (int j = 0; j < c->workers; j++)
        for (size_t i = 0; i < SIZE; i++) r->w[j][i] = r->x[j][i] = (double)w[i];
    for (int step = 0; step < c->steps && r->margin > 3e-5; step++) {
        for (int j = 0; j < c->workers; j++) c->gradient(g[j], w, c, j, step);
        ref_step(r, g);
        for (int j = 0; j < c->workers; j++)
            for (size_t i = 0; i < SIZE; i++) path[j][step][i] = (float)r->w[j][i];
    }
    return r->margin;
}

/* Does this case send signs of sums of signs, which may be exactly zero but for rounding? */
static int is_doubtful(const Case *c) {
    const char *equation = equation_of(c->config.method);
    int signs = strstr(equation, "polar up=") || strstr(equation, "topk");
    return signs && is(c->config.aux, "lmo");
}

/* The sign of a number that is nearly zero is in doubt; so data are drawn, in double, until no sign
 * in the whole run is. Then fp32 has to agree everywhere, at every step. */
static void compare_with_equations(Case *c) {
    static float path[WORKERS][STEPS][SIZE];
    static Reference r;
    if (is_doubtful(c)) return;
    for (c->seed = 1; c->seed < 300 && !(reference(c, &r, path) > 3e-5); c->seed++) continue;
    CHECK(c->seed < 300, "%s: no data without doubtful signs", c->config.method);
    run(c);
    for (int step = 0; step < c->steps; step++)
        for (int j = 0; j < c->workers; j++)
            for (size_t i = 0; i < SIZE; i++) {
                double is = (double)result->path[j][step][i], want = (double)path[j][step][i];
                if (fabs(is - want) <= 6e-6) continue;
                CHECK(0,
                      "%s, aux %s, %d workers, gain %s, ns %s, nesterov %d, coupled %d: "
                      "weight %zu after step %d of worker %d is %.7g, expected %.7g",
                      c->config.method, c->config.aux, c->workers, c->config.gain, c->config.ns,
                      c->config.nesterov, c->config.coupled_decay, i, step, j, is, want);
                return;
            }
}

TEST(every_method_follows_its_equation_in_double) {
    size_t gains = 0, ns = 0, turn = 0;
    while (sm_gain_row(gains)) gains++;
    while (sm_newton_schulz_row(ns)) ns++;
    FOR_METHODS(m, aux) {
        for (int workers = 1; workers <= 3; workers += 2, turn++) {
            Case c = case_of(m->name, aux, workers);
            c.steps = STEPS;
            c.config.gain = sm_gain_row(turn % gains)->name;
            c.config.ns = sm_newton_schulz_row(turn / 2 % ns)->name;
            c.config.nesterov = turn / 3 % 2;
            c.config.coupled_decay = turn / 2 % 2;
            if (m->estimate != SM_GLUON) c.config.momentum = 0.9;
            c.config.beta1 = 0.85;
            c.config.beta2 = 0.97;
            if (m->update != SM_FRANK_WOLFE) c.config.weight_decay = 0.3;
            if (m->combine == SM_VOTE && m->worker_map) c.config.polar_every = 1 + (int)(turn % 3);
            memcpy(c.config.radius, (double[]){0.7, 1.3, 0.9, 2.1}, sizeof c.config.radius);
            compare_with_equations(&c);
        }
    }
}

TEST(every_attack_follows_its_definition) {
    static const char *const attacks[] = {"flip", "zero", "scale:-0.6"};
    size_t turn = 0;
    FOR_METHODS(m, aux) {
        Case c = case_of(m->name, aux, 3);
        c.config.adversaries = 1 + turn % 2;
        c.config.attack = attacks[turn++ % 3];
        c.config.zeros = "plus"; /* of attack zero */
        c.steps = 8;
        if (strstr(c.config.attack, "zero") && m->combine == SM_VOTE) c.config.attack = "flip";
        if (strstr(c.config.attack, "zero") && is(aux, "sign")) c.config.attack = "flip";
        compare_with_equations(&c);
    }
}

/* ------------------------------------------------------------------------------------------------
 * what must not change a bit */

static float kept[WORKERS][STEPS][SIZE];

/* Run a case and keep its path, or compare with the one that was kept. */
static void keep(const Case *c) {
    run(c);
    memcpy(kept, result->path, sizeof kept);
}
static int equals_kept(const Case *c, int workers) {
    run(c);
    return memcmp(kept, result->path, (size_t)workers * sizeof *kept) == 0;
}

TEST(identical_workers_equal_one_worker) {
    FOR_METHODS(m, aux) {
        Case c = case_of(m->name, aux, 1);
        c.gradient = shared;
        if (is_doubtful(&c)) continue; /* coins of exact zeros differ by rank */
        if (m->combine == SM_GOSSIP || m->combine == SM_TRACKING) c.config.topology = "complete";
        keep(&c);
        for (c.workers = 2; c.workers <= 5 && sm_has_server(m); c.workers++)
            CHECK(equals_kept(&c, 1), "%s, aux %s, %d workers", m->name, aux, c.workers);
        c.workers = 2; /* means of two equal numbers are exact */
        CHECK(equals_kept(&c, 1), "%s, aux %s on a graph", m->name, aux);
    }
}

TEST(backends_and_threads_change_no_bit) {
    size_t turn = 0;
    FOR_METHODS(m, aux) {
        Case c = case_of(m->name, aux, 4);
        const char *zeros[] = {"coin", "plus", "abstain"};
        c.config.zeros = zeros[turn % 3];
        c.config.ties = zeros[turn++ / 3 % 3];
        keep(&c);
        c.threads = 3;
        CHECK(equals_kept(&c, 4), "%s, aux %s, 3 threads", m->name, aux);
        c.backend = "processes";
        CHECK(equals_kept(&c, 4), "%s, aux %s, processes", m->name, aux);
    }
}

/* ------------------------------------------------------------------------------------------------
 * bytes */

TEST(every_worker_sends_the_bytes_of_the_formula) {
    static const SmTensor whole[] = {
        /* multiples of 64: sign messages have no padding */
        {.name = "a", .rows = 16, .cols = 8, .blocks = 2, .role = SM_HIDDEN},
        {.name = "b", .offset = 256, .rows = 1, .cols = 64, .blocks = 1, .role = SM_VECTOR},
        {.name = "c", .offset = 320, .rows = 32, .cols = 6, .blocks = 1, .role = SM_OUTPUT},
        {.name = "d", .offset = 512, .rows = 8, .cols = 8, .blocks = 1, .role = SM_HIDDEN}};
    char error[512];
    FOR_METHODS(m, aux)
    for (int option = 0; option < 6; option++) {
        Case c = case_of(m->name, aux, 1 + option % 5);
        c.tensors = whole;
        c.count = 4;
        if (option == 1) c.config.zeros = "abstain";
        if (option == 2) c.config.ties = "abstain";
        if (option == 3 && m->combine == SM_VOTE) c.config.server_map = "row";
        if (option == 4 && m->combine == SM_FEEDBACK)
            c.config.up = "rankk:0.3", c.config.down = "natural";
        if (option == 5 && !sm_has_server(m)) c.config.rounds[0] = 2, c.config.rounds[1] = 3;
        if (option == 5 && m->combine == SM_VOTE && !m->server_map) c.config.polar_after_vote = 1;
        SmConfig resolved = c.config;
        CHECK(sm_resolve(&resolved, c.workers, error, sizeof error) == 0, "%s", error);
        run(&c);
        for (int kind = 0; kind < 2; kind++) {
            double formula = 0, sent = 0;
            for (int t = 0; t < 4; t++) {
                SmFacts f = sm_facts(&resolved, &whole[t], c.workers);
                double n = (double)size_of(&whole[t]);
                if ((whole[t].role != SM_HIDDEN) == kind) formula += n * (f.up + f.down) / 8;
            }
            for (int j = 0; j < c.workers; j++) sent += (double)result->sent[j][kind];
            CHECK(fabs(sent - formula * c.steps * c.workers) < 1e-6 * sent + 1e-9,
                  "%s, aux %s, option %d: %g bytes, by formula %g", m->name, aux, option, sent,
                  formula * c.steps * c.workers);
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * votes */

TEST(zero_gradients_toss_coins_of_each_worker) {
    static const char *const rule[] = {"coin", "plus", "abstain"};
    /* of 4 workers: shares of votes for +, and of those that decide nothing; by zeros, ties */
    static const double plus[3][3] = {{0.5, 11. / 16, 5. / 16}, {1, 1, 1}, {0.5, 1, 0}};
    static const double still[3][3] = {{0, 0, 6. / 16}, {0, 0, 0}, {0, 0, 1}};
    for (int zeros = 0; zeros < 3; zeros++)
        for (int ties = 0; ties < 3; ties++) {
            Case c = case_of("signsgd", "sign", 4);
            c.gradient = none;
            c.config.zeros = rule[zeros];
            c.config.ties = rule[ties];
            c.lr = c.aux_lr = 1;
            c.steps = 1;
            run(&c);
            float before[SIZE];
            double moved[3] = {0};
            start(before, c.seed);
            for (int t = 0; t < TENSORS; t++)
                for (size_t i = 0, at = tensors[t].offset; i < size_of(&tensors[t]); i++) {
                    double step = (double)before[at + i] - (double)result->path[0][0][at + i];
                    moved[step > 0.5 ? 2 : step < -0.5 ? 0 : 1]++;
                }
            double all = moved[0] + moved[1] + moved[2];
            CHECK_NEAR(moved[2] / all, plus[zeros][ties], 0.08);
            CHECK_NEAR(moved[1] / all, still[zeros][ties], 0.08);
        }
}

static void opposed(float *g, const float *w, const Case *c, int worker, int step) {
    noisy(g, w, c, 0, step);
    for (size_t i = 0; i < SIZE && worker; i++) g[i] = -g[i];
}

TEST(tied_votes_toss_coins_of_the_seed) {
    Case c = case_of("signsgd", "same", 2);
    float before[SIZE];
    size_t word = 0;
    c.gradient = opposed;
    c.steps = 1;
    c.lr = 1;
    start(before, c.seed);
    run(&c);
    for (const SmTensor *t = tensors; t < tensors + TENSORS; t++)
        for (size_t b = 0, n = t->rows * t->cols; b < t->blocks && t->role == SM_HIDDEN; b++) {
            for (size_t i = 0, at = t->offset + b * n; i < n; i++) {
                uint64_t coin = sm_hash(sm_key(7, (uint64_t)1 << 56, 0), word + i / 64);
                int plus = result->path[0][0][at + i] < before[at + i];
                CHECK(plus == (int)(coin >> i % 64 & 1), "%s, entry %zu", t->name, i);
            }
            word += sm_words(n);
        }
}

TEST(polar_after_vote_is_polar_of_vote) {
    static float scratch[1 << 16], v[64], o[64];
    Case c = case_of("signmuon", "sign", 3);
    float before[SIZE];
    c.steps = 1;
    c.config.gain = "none";
    start(before, c.seed);
    keep(&c);
    uint64_t sent = result->sent[0][0];
    c.config.polar_after_vote = 1;
    CHECK(!equals_kept(&c, 1) && result->sent[0][0] == sent);
    const SmTensor *t = &tensors[5];
    size_t n = t->rows * t->cols;
    for (size_t i = 0; i < n; i++)
        v[i] = before[t->offset + i] > kept[0][0][t->offset + i] ? 1 : -1;
    CHECK(sm_lmo_scratch(t->rows, t->cols) < sizeof scratch / sizeof *scratch);
    sm_polar(o, v, t->rows, t->cols, sm_newton_schulz("jordan5"), scratch);
    for (size_t i = 0; i < n; i++)
        CHECK_NEAR((double)result->path[0][0][t->offset + i],
                   (double)before[t->offset + i] - c.lr * (double)o[i], 1e-5);
}

/* Gradients with zeros here and there. */
static void sparse(float *g, const float *w, const Case *c, int worker, int step) {
    noisy(g, w, c, worker, step);
    for (size_t i = 0; i < SIZE; i++)
        if (test_hash((uint64_t)(10 * step + worker), i) % 3 == 0) g[i] = 0;
}

/* Count the signs of the gradients one by one; a tie is + here. */
static void check_agreement(const Case *c, SmOptimizer *o, SmComm *comm, const float *params,
                            int step) {
    static _Thread_local float g[WORKERS][SIZE];
    SmAgreement mine = sm_agreement(o), all[WORKERS], sum = {0}, naive = {0};
    for (int j = 0; j < c->workers; j++) c->gradient(g[j], params, c, j, step);
    for (size_t t = 0; t < c->count; t++)
        for (size_t i = 0; i < size_of(&tensors[t]) && tensors[t].role == SM_HIDDEN; i++) {
            int plus = 0, minus = 0;
            for (int j = 0; j < c->workers; j++) {
                plus += g[j][tensors[t].offset + i] > 0;
                minus += g[j][tensors[t].offset + i] < 0;
            }
            naive.signs += plus + minus;
            naive.confirmed += plus >= minus ? plus : minus;
        }
    comm_gather(comm, &mine, sizeof mine, all, COMM_OTHER);
    for (int j = 0; j < c->workers; j++) {
        sum.signs += all[j].signs;
        sum.confirmed += all[j].confirmed;
    }
    CHECK(sum.signs == naive.signs && sum.confirmed == naive.confirmed,
          "%s, %d workers, step %d: %g of %g, not %g of %g", c->config.method, c->workers, step,
          sum.confirmed, sum.signs, naive.confirmed, naive.signs);
}

TEST(agreement_counts_signs_that_votes_confirm) {
    static const char *const method[] = {"signsgd", "signum", "muonsign", "muonusign"};
    for (int k = 0; k < 4 * 5 * 2; k++) {
        Case c = case_of(method[k % 4], "sign", 1 + k / 4 % 5);
        c.config.momentum = 0;
        c.config.ties = "plus";
        c.gradient = k >= 20 ? sparse : noisy;
        if (k >= 20) c.config.zeros = "abstain";
        c.inspect = check_agreement;
        run(&c);
    }
}

/* ------------------------------------------------------------------------------------------------
 * error feedback and gossip */

/* The i-th state of a kind and tensor; NULL when this worker has none. */
static const float *state_of(const SmOptimizer *o, const char *kind, size_t tensor, int block) {
    SmState s;
    for (size_t i = 0; sm_state(o, i, &s); i++)
        if (strcmp(s.kind, kind) == 0 && s.tensor == tensor && s.block == block) return s.data;
    return NULL;
}

/* The owner's G is the mean of the workers' G_j, and G_j and X are what S1 to W4 make of them. */
static void check_feedback(const Case *c, SmOptimizer *o, SmComm *comm, const float *params,
                           int step) {
    static _Thread_local float mine[SIZE], all[WORKERS * SIZE], model[SIZE];
    int kept_apart = sm_server_model(o, model, params, (uint64_t)step + 1);
    for (size_t t = 0; t < c->count; t++)
        for (int b = 0; b < (int)tensors[t].blocks && tensors[t].role == SM_HIDDEN; b++) {
            size_t n = tensors[t].rows * tensors[t].cols, at = tensors[t].offset + (size_t)b * n;
            const float *g = state_of(o, "ef21.aggregate", t, b),
                        *x = state_of(o, "ef21.model", t, b);
            memcpy(mine, state_of(o, "estimate", t, -1) + (size_t)b * n, n * sizeof *mine);
            comm_gather(comm, mine, n * sizeof *mine, all, COMM_OTHER);
            for (size_t i = 0; g && i < n; i++) {
                double mean = 0;
                for (size_t j = 0; j < (size_t)c->workers; j++)
                    mean += (double)all[j * n + i] / c->workers;
                CHECK_NEAR((double)g[i], mean, 1e-6);
                CHECK(!x || (kept_apart && x[i] == model[at + i]), "X of %s", tensors[t].name);
            }
        }
}

TEST(the_servers_estimate_is_the_mean_of_estimates) {
    static const char *const links[][2] = {{NULL, NULL},
                                           {"rankk:0.4+natural", "topk:0.3"},
                                           {"dropout:0.5", "coltopk:0.3"},
                                           {"damping:0.7", "natural:stochastic"},
                                           {"identity", "rankk:0.2"}};
    for (size_t i = 0; sm_method_row(i); i++)
        for (size_t k = 0; k < COUNT(links); k++) {
            Case c = case_of(sm_method_row(i)->name, "adamw", 4);
            if (sm_method_row(i)->combine != SM_FEEDBACK) continue;
            if (k) c.config.up = links[k][0], c.config.down = links[k][1];
            c.inspect = check_feedback;
            c.steps = 12;
            run(&c);
        }
}

TEST(identity_links_give_bits_of_uncompressed_methods) {
    static const char *const pairs[][2] = {{"muon", "adamw"}, {"scion", "lmo"}, {"gluon", "lmo"}};
    for (size_t k = 0; k < 3; k++) {
        Case c = case_of(pairs[k][0], pairs[k][1], 3), e = case_of("ef21-muon", pairs[k][1], 3);
        for (int r = 0; r < SM_ROLES; r++) c.config.radius[r] = e.config.radius[r] = 1;
        e.config.up = e.config.down = "identity";
        e.config.nesterov = c.config.nesterov = 0;
        e.config.first_gradient = 0;
        e.config.norm = k ? "rms-rms" : "spectral";
        e.config.gain = c.config.gain = "none";
        if (k < 2) e.config.momentum = c.config.momentum = 0.9;
        if (k == 2) c.steps = e.steps = 1, e.config.momentum = 0; /* Gluon's first weight is 0 */
        keep(&c);
        CHECK(equals_kept(&e, 3), "ef21 as %s", pairs[k][0]);
    }
}

/* The mean of V over the nodes is the mean of M. */
static void check_trackers(const Case *c, SmOptimizer *o, SmComm *comm, const float *params,
                           int step) {
    static _Thread_local float both[2 * SIZE], all[2 * WORKERS * SIZE];
    (void)params, (void)step;
    for (size_t t = 0; t < c->count; t++) {
        size_t n = size_of(&tensors[t]);
        const float *v = state_of(o, "tracker", t, -1), *m = state_of(o, "estimate", t, -1);
        if (!v) continue;
        memcpy(both, v, n * sizeof *v);
        memcpy(both + n, m, n * sizeof *m);
        comm_gather(comm, both, 2 * n * sizeof *both, all, COMM_OTHER);
        for (size_t i = 0; i < n; i++) {
            double differ = 0;
            for (size_t j = 0; j < (size_t)c->workers; j++)
                differ += (double)all[2 * n * j + i] - (double)all[2 * n * j + n + i];
            CHECK_NEAR(differ / c->workers, 0, 1e-6);
        }
    }
}

TEST(mean_of_trackers_is_mean_of_momenta) {
    static const char *const graphs[] = {"ring", "directed-ring", "exponential", "star",
                                         "one-peer"};
    for (size_t k = 0; k < 5; k++) {
        Case c = case_of("demuon", "same", 4);
        c.config.topology = graphs[k];
        c.inspect = check_trackers;
        c.steps = STEPS;
        run(&c);
    }
}

/* ------------------------------------------------------------------------------------------------
 * faults */

TEST(who_sends_nan_is_named_on_every_path) {
    FOR_METHODS(m, aux) {
        Case c = case_of(m->name, aux, 5);
        int packed = m->combine == SM_VOTE, aux_packed = packed; /* a sign of NaN is a sign */
        if (is(aux, "sign")) aux_packed = 1;
        if (is(aux, "adamw")) aux_packed = 0;
        if (m->up && strstr(m->up, "natural")) packed = 1; /* and a power of two is one */
        c.config.adversaries = 2;
        c.config.attack = "nan";
        c.steps = 1;
        run(&c);
        const SmFault *f = &result->fault;
        CHECK((f->kind != 0) == !(packed && aux_packed), "%s, aux %s", m->name, aux);
        if (!f->kind) continue;
        CHECK(f->kind == SM_NOT_FINITE && f->sender >= 3 && f->tensor >= 0 && f->tensor < TENSORS,
              "%s, aux %s: fault %d of worker %d", m->name, aux, f->kind, f->sender);
        for (size_t i = 0; i < SIZE; i++)
            CHECK(isfinite(result->path[0][0][i]), "%s, aux %s", m->name, aux);
    }
}
