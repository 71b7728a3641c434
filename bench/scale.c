/* scale.c - seconds of a training step on 8 to 100,000 workers, from rates measured here and the
   alpha-beta model of a link. MIT.

     make scale     two minutes; writes docs/SCALE.md, docs/scale.csv and docs/scale.svg

   A step computes, then sends; method_of_page below tells how both are predicted. */
#include "measure.h"

typedef struct Model {
    const char *name;
    GptConfig config;
    double batch;  /* tokens of a step in all; a worker takes whole sequences, at least one */
    size_t tokens; /* of the layer that is timed in its place */
    size_t polar;  /* Newton-Schulz is timed on polar x polar */
} Model;

/* The model of `make train`, for the check; GPT-2's smallest; the 1.3B and 6.7B of GPT-3's
 * table 2.1 (Brown et al. 2020), whose batches of 0.5M, 1M and 2M tokens these are. */
// clang-format off
#define GPT(L, NH, C, T, V) {.layers = L, .heads = NH, .width = C, .context = T, .vocab = V, .seed = 1}
enum { SMALL, MODELS = 4 };
static const Model models[MODELS] = {
    {"make train", GPT(4, 4, 128, 64, VOCABULARY), 768, 256, 128},
    {"124M", GPT(12, 12, 768, 1024, 50257), 0.5e6, 1024, 768},
    {"1.3B", GPT(24, 16, 2048, 2048, 50257), 1e6, 512, 2048},
    {"7B", GPT(32, 32, 4096, 2048, 50257), 2e6, 256, 2048},
};

typedef struct Link {
    const char *name;
    double rate, latency; /* bytes/s each way; seconds */
} Link;
enum { LINKS = 3 };
static const Link links[LINKS] = {
    {"datacentre", 100e9 / 8, 10e-6}, {"office", 1e9 / 8, 0.5e-3}, {"home", 20e6 / 8, 30e-3}};
// clang-format on
static const int counts[] = {8, 64, 1024, 10000, 100000};
enum { COUNTS = sizeof counts / sizeof *counts };
#define OVERHEAD 5e-6 /* seconds of the system calls of a message */

/* What a worker can do: flop/s of all cores, bytes/s of memcpy read and written. */
typedef struct Speed {
    double train[MODELS], polar[MODELS], memory, cores;
} Speed;

/* What the predictor needs to know of a model. */
typedef struct Size {
    double hidden, auxiliary;    /* weights */
    double largest;              /* of the hidden matrices, in weights */
    double polar, largest_polar; /* flop */
    double token;                /* flop of a token, forward and backward */
    double up, down;             /* bytes of error feedback's messages */
} Size;

typedef struct Scale {
    char cpu[512], folder[FOLDER_SIZE];
    Team team;
    Speed here;
    Size size[MODELS];
} Scale;

typedef struct Cost {
    double train, polar, update; /* seconds */
    double sent;                 /* payload bytes of a worker, on average */
    double busiest;              /* bytes through the busiest link, one way */
    double messages, rounds;
} Cost;

/* ------------------------------------------------------------------------------------------------
 * methods: what a step costs */

/* Bytes that a pass over the weights moves per weight; a mean's are one worker's. Compression and
 * decoding are not bound by memory, but take as long as so many bytes. */
#define MOMENTUM 16
#define ADAMW (32 + MEAN)
#define DENSE 12
#define MEAN 4
#define VOTE (MOMENTUM + 4 + 8 + 1. / 8) /* packing, applying, counting */
#define COMPRESS 80
#define DECODE 20

enum { ADAMW_ROW, MUON_ROW, EF21_ROW, MUONSIGN_ROW, SIGNMUON_ROW, ROWS };
enum { NOBODY, OWNERS, EVERYBODY }; /* who orthogonalises a matrix */
// clang-format off
static const struct {
    const char *name, *flags; /* flags of train_gpt */
    double bits;              /* per weight of a message, each way; 0: error feedback's */
    double auxiliary;         /* the same for weights outside of matrices: AdamW's mean or a vote */
    int polar;                /* owners have whole matrices as shards */
    double pass;              /* bytes per weight of matrices */
    const char *doc;
} rows[ROWS] = {
    {"adamw", "--method adamw", 32, 32, NOBODY, ADAMW, "mean of the gradients in fp32"},
    {"muon", "--method muon", 32, 32, OWNERS, MOMENTUM + MEAN + DENSE, "mean in fp32; shards are whole matrices, which their owners orthogonalise"},
    {"ef21-muon", "--method ef21-muon --down natural", 0, 32, OWNERS, MOMENTUM, "15 % of the residual in 9 bits each and a bitmap up, 9 bits down; owners"},
    {"muonsign", "--method muonsign --aux sign", 1, 1, OWNERS, VOTE, "a vote of sign(M) by owners, who send back the sign of its polar factor"},
    {"signmuon", "--method signmuon --aux sign", 1, 1, EVERYBODY, VOTE, "a vote of sign(polar(M)), in equal shards"},
};
// clang-format on

static double sequences(const Model *m, double n) {
    return fmax(1, floor(m->batch / (n * m->config.context)));
}

/* Matrices and the other weights travel by an all-to-all of messages and an all-gather of results;
 * an all-gather of reports ends the step. */
static Cost cost_of(const Scale *s, const Speed *speed, size_t row, int model, double n) {
    const Model *m = &models[model];
    const Size *z = &s->size[model];
    double pass = rows[row].pass, share = 1 / n; /* that the busiest server has */
    double both = 2 * z->hidden * rows[row].bits / 8,
           other = 2 * z->auxiliary * rows[row].auxiliary / 8;
    if (rows[row].polar == OWNERS) share = fmax(share, z->largest / z->hidden);
    if (rows[row].bits == 0) {
        both = z->up + z->down;
        pass += COMPRESS * (1 + share) + DECODE * (1 + n * share);
    }
    Cost c = {.train = sequences(m, n) * m->config.context * z->token / speed->train[model],
              .sent = (both + other) * (n - 1) / n,
              .busiest = (both * share + other / n + sizeof(StepReport)) * (n - 1),
              .messages = 5 * (n - 1),
              .rounds = 5};
    c.update = pass * z->hidden + (rows[row].auxiliary < 32 ? VOTE : ADAMW) * z->auxiliary;
    c.update /= speed->memory;
    if (rows[row].polar == EVERYBODY) c.polar = z->polar / speed->polar[model];
    if (rows[row].polar == OWNERS) /* one core to a matrix */
        c.polar = fmax(z->polar / n, z->largest_polar * speed->cores) / speed->polar[model];
    return c;
}

static double compute_of(const Cost *c) { return c->train + c->polar + c->update; }
static double wire_of(const Cost *c, const Link *l) {
    return c->rounds * l->latency + c->messages * OVERHEAD + c->busiest / l->rate;
}

/* ------------------------------------------------------------------------------------------------
 * sizes of a model */

/* Flop of Newton-Schulz, counted on a smaller matrix of the same proportions: they grow with the
 * third power of its side. */
static double polar_count(size_t m, size_t n) {
    double factor = 1;
    while (m % 2 == 0 && n % 2 == 0 && m * n > 128 * 512) m /= 2, n /= 2, factor *= 8;
    float *x = room(2 * m * n + sm_lmo_scratch(m, n));
    for (size_t i = 0; i < m * n; i++) x[i] = (float)(sm_hash(1, i) >> 40) - 0x800000;
    kernels_flops = 0;
    sm_polar(x + m * n, x, m, n, sm_newton_schulz("jordan5"), x + 2 * m * n);
    free(x);
    return factor * kernels_flops;
}

static Size size_of(const Model *m) {
    EfLink up, down;
    char error[512];
    if (ef_parse(&up, "topk:0.15+natural", error, sizeof error) ||
        ef_parse(&down, "natural", error, sizeof error))
        give_up("%s", error);
    Size z = {.hidden = 0};
    double L = m->config.layers, C = m->config.width, T = m->config.context;
    size_t count;
    const SmTensor *t = gpt_tensors(gpt_create(&m->config, 0, 0, NULL), &count);
    for (; count-- > 0; t++) {
        double one = (double)(t->rows * t->cols), times = (double)t->blocks;
        if (t->role != SM_HIDDEN) {
            z.auxiliary += one * times;
            continue;
        }
        double flops = polar_count(t->rows, t->cols);
        z.hidden += one * times;
        z.largest = fmax(z.largest, one);
        z.polar += flops * times;
        z.largest_polar = fmax(z.largest_polar, flops);
        z.up += times * ceil(ef_bits(&up, t->rows, t->cols) / 8);
        z.down += times * ceil(ef_bits(&down, t->rows, t->cols) / 8);
    }
    z.token = 6 * (z.hidden + m->config.vocab * C) + 6 * L * C * T;
    return z;
}

/* ------------------------------------------------------------------------------------------------
 * rates of this machine */

/* Seconds of a call on all threads, the median of three lots of at least `least` seconds. */
static double seconds_of(Team *team, void (*f)(void *, int, int), void *context, double least) {
    double sample[3], start;
    long calls = 1;
    team_run(team, f, context);
    for (int s = 0; s < 3;) {
        start = base_now();
        for (long i = 0; i < calls; i++) team_run(team, f, context);
        sample[s] = (base_now() - start) / (double)calls;
        if (base_now() - start < least)
            calls *= 2;
        else
            s++;
    }
    return median(sample, 3);
}

enum { COPIED = 1 << 23 };
static void copy_on_thread(void *context, int ith, int nth) {
    float *x = context;
    size_t lo, hi;
    slice(COPIED, ith, nth, &lo, &hi);
    memcpy(x + lo, x + COPIED + lo, (hi - lo) * sizeof *x);
}

/* Every thread orthogonalises a matrix of its own, as in the optimizer. */
typedef struct Polar {
    size_t side, stride;
    float *memory; /* by thread: G, result and scratch */
} Polar;
static void polar_on_thread(void *context, int ith, int nth) {
    const Polar *p = context;
    float *g = p->memory + (size_t)ith * p->stride, *out = g + p->side * p->side;
    (void)nth;
    sm_polar(out, g, p->side, p->side, sm_newton_schulz("jordan5"), out + p->side * p->side);
}
static double measure_polar(size_t side, Team *team) {
    Polar p = {side, (2 * side * side + sm_lmo_scratch(side, side) + 15) / 16 * 16, NULL};
    size_t all = (size_t)team->threads * p.stride;
    p.memory = room(all);
    for (size_t i = 0; i < all; i++) p.memory[i] = (float)(sm_hash(5, i) >> 40) - 0x800000;
    double one = seconds_of(team, polar_on_thread, &p, 0.05);
    free(p.memory);
    return team->threads * polar_count(side, side) / one;
}

/* flop/s of forward and backward: of the small model, or of one layer of the model's width. */
static double measure_train(Scale *s, const Model *m) {
    int small = m == &models[SMALL], times = small ? 20 : 1;
    GptConfig c = m->config;
    size_t B = small ? 4 : 1, T = small ? (size_t)c.context : m->tokens;
    c.vocab = VOCABULARY, c.context = (int)T;
    if (!small) c.layers = 1;
    Gpt *g = gpt_create(&c, B, 1, &s->team);
    int32_t *tokens = base_allocate(B * T * sizeof *tokens);
    if (!g || !tokens) give_up("no memory to time the model %s", m->name);
    gpt_init(g);
    for (size_t i = 0; i < B * T; i++) tokens[i] = (int32_t)(sm_hash(6, i) % VOCABULARY);
    double sample[3], C = c.width, L = c.layers;
    gpt_gradient(g, tokens, tokens, B, T, 1);
    for (int i = 0; i < 3; i++) {
        double start = base_now();
        for (int k = 0; k < times; k++) gpt_gradient(g, tokens, tokens, B, T, 1);
        sample[i] = (base_now() - start) / times;
    }
    gpt_free(g);
    free(tokens);
    return (double)(B * T) * (6 * (12 * L * C * C + VOCABULARY * C) + 6 * L * C * (double)T) /
           median(sample, 3);
}

static void measure(Scale *s) {
    float *x = room(2 * COPIED);
    memset(x, 1, 8 * COPIED);
    s->here.cores = s->team.threads;
    s->here.memory = 8. * COPIED / seconds_of(&s->team, copy_on_thread, x, 0.1);
    free(x);
    for (int m = 0; m < MODELS; m++) {
        s->here.polar[m] = measure_polar(models[m].polar, &s->team);
        s->here.train[m] = measure_train(s, &models[m]);
    }
}

/* ------------------------------------------------------------------------------------------------
 * tables */

static void write_rates(FILE *f, const Scale *s) {
    fprintf(f, "| model | gradient, GFLOP/s | Newton-Schulz, GFLOP/s |\n| --- | ---: | ---: |\n");
    for (int m = 0; m < MODELS; m++)
        fprintf(f, "| %s | %.0f | %.0f (%zu x %zu) |\n", models[m].name, 1e-9 * s->here.train[m],
                1e-9 * s->here.polar[m], models[m].polar, models[m].polar);
    fprintf(f,
            "\nThese are rates of all %d threads, of one layer where the model is large. memcpy: "
            "%.1f GB/s, "
            "read and written.\n\n",
            s->team.threads, 1e-9 * s->here.memory);
}

/* The predictor against runs on this machine: bytes and seconds. */
static void write_check(FILE *f, Scale *s) {
    enum { N = 3, EVERY = 5, SAMPLES = 7, STATISTICS = 48 /* bytes */ };
    fprintf(f,
            "| method | bytes per step: predicted | counted | ms per step: predicted | measured |\n"
            "| --- | ---: | ---: | ---: | ---: |\n");
    Speed shared = s->here; /* one machine, as each of N workers has it */
    shared.train[SMALL] /= N, shared.polar[SMALL] /= N, shared.memory /= N, shared.cores /= N;
    for (size_t r = 0; r < ROWS; r++) {
        Cost c = cost_of(s, &shared, r, SMALL, N);
        char text[256];
        double bytes[SAMPLES + 1] = {0};
        snprintf(text, sizeof text, "--workers %d --threads 2 %s", N, rows[r].flags);
        double seconds = time_program(s->folder, text, EVERY, SAMPLES);
        read_column(s->folder, "bytes_sent", bytes, SAMPLES + 1);
        /* a report every step and, for a row of the log, statistics; in shared memory a byte is
         * copied into an outbox and out of it */
        fprintf(f, "| %s | %.0f | %.0f | %.1f | %.1f |\n", rows[r].name,
                c.sent + (N - 1.) * (sizeof(StepReport) + STATISTICS / (double)EVERY),
                (bytes[SAMPLES] - bytes[0]) / (SAMPLES * EVERY),
                1e3 * (compute_of(&c) + 4 * N * c.sent / s->here.memory), 1e3 * seconds);
        fflush(f);
    }
    fprintf(f, "\n");
}

static double step_of(const Scale *s, int model, size_t row, int link, int n) {
    Cost c = cost_of(s, &s->here, row, model, n);
    return compute_of(&c) + wire_of(&c, &links[link]);
}

static void write_steps(FILE *f, const Scale *s) {
    fprintf(f, "| model, link, workers |");
    for (size_t r = 0; r < ROWS; r++) fprintf(f, " %s |", rows[r].name);
    fprintf(f, "\n| --- | ---: | ---: | ---: | ---: | ---: |\n");
    for (int m = 1; m < MODELS; m++)
        for (int l = 0; l < LINKS; l++)
            for (int i = 0; i < COUNTS; i++) {
                if (i == 0 || counts[i] == 10000) continue;
                fprintf(f, "| %s, %s, %d |", models[m].name, links[l].name, counts[i]);
                for (size_t r = 0; r < ROWS; r++) {
                    double t = step_of(s, m, r, l, counts[i]);
                    fprintf(f, t < 100 ? " %.3g |" : " %.0f |", t);
                }
                fprintf(f, "\n");
            }
}

static void write_csv(FILE *f, Scale *s) {
    fprintf(f, "model,link,workers,method,train_seconds,polar_seconds,update_seconds,wire_seconds,"
               "step_seconds,bytes_sent,bytes_busiest,messages,rounds\n");
    for (int i = 0; i < (MODELS - 1) * LINKS * ROWS * COUNTS; i++) {
        int n = counts[i % COUNTS], r = i / COUNTS % ROWS, l = i / COUNTS / ROWS % LINKS;
        int m = 1 + i / COUNTS / ROWS / LINKS;
        Cost c = cost_of(s, &s->here, (size_t)r, m, n);
        double wire = wire_of(&c, &links[l]);
        fprintf(f, "%s,%s,%d,%s,%.5g,%.5g,%.5g,%.5g,%.5g,%.0f,%.0f,%.0f,%.0f\n", models[m].name,
                links[l].name, n, rows[r].name, c.train, c.polar, c.update, wire,
                compute_of(&c) + wire, c.sent, c.busiest, c.messages, c.rounds);
    }
}

/* ------------------------------------------------------------------------------------------------
 * the page */

// clang-format off
static const char method_of_page[] =
    "A step computes, then sends. Computing is the gradient, Newton-Schulz, and the passes over the weights, at\n"
    "the rates measured below. Sending takes `rounds x latency + messages x overhead + bytes / rate` of the busiest\n"
    "link: in a round every worker sends all its messages without waiting for answers. `--link` of train_gpt is\n"
    "stricter, `messages x latency + bytes / rate`.\n\n"
    "Measured in the run that wrote this page: the rates of this CPU, and whole steps of `make train` to check the\n"
    "predictor. Assumed: every worker is this CPU; links are a datacentre's (100 Gbit/s, 10 us), an office's (1\n"
    "Gbit/s, 0.5 ms) or a home's (20 Mbit/s up and down, 30 ms) and carry their rate both ways; no headers, no\n"
    "stragglers; a message costs 5 us of system calls; passes over weights run at memcpy's rate. The batch (0.5M, 1M,\n"
    "2M tokens) is shared in whole sequences, at least one to each worker, so that it grows where workers outnumber\n"
    "sequences. The program itself takes at most %d workers. `docs/scale.csv` has every prediction.\n\n";
static const char findings[] =
    "## What limits a step first\n\n"
    "- **Few workers in a datacentre.** The gradient is nearly all of a step. signmuon is slower than muon, because\n"
    "  every worker orthogonalises its own momentum: %.2f h against %.2f h for 7B on 64 workers.\n"
    "- **Newton-Schulz of signmuon.** It is as much work as the gradient of %.0f tokens (124M), %.0f (1.3B) or %.0f\n"
    "  (7B), and cannot be shared out. It limits a step where workers get few tokens each. Methods that orthogonalise\n"
    "  after the exchange share it among owners: muon, and with one bit both ways muonsign.\n"
    "- **Bytes of fp32** on slow links. A step of 7B on 1,024 home links takes adamw %.2f h and signmuon %.2f h. The sharded\n"
    "  vote sends 2 bits per weight and counts as many sign bits as the model has weights, on any number of workers.\n"
    "- **Owners of whole matrices** where workers outnumber matrices (72 in 124M): the owner of the largest receives it\n"
    "  from everybody. This limits muon, muonsign and the EF21 methods.\n"
    "- **Messages** beyond 10,000 workers: %.0f per worker and step on 100,000 workers. Groups of sqrt(N) workers that send\n"
    "  counts to one another would need about 2,000. They must send counts, because a majority of majorities is not the\n"
    "  majority.\n\n";
// clang-format on

static void write_page(FILE *f, Scale *s) {
    const Size *z = s->size;
    fprintf(f, "# Steps on 8 to 100,000 workers, predicted\n\nWritten by `make scale` on: %s\n\n",
            s->cpu);
    fprintf(f, method_of_page, COMM_MAX_WORKERS);
    fprintf(f, findings, step_of(s, 3, SIGNMUON_ROW, 0, 64) / 3600,
            step_of(s, 3, MUON_ROW, 0, 64) / 3600, z[1].polar / z[1].token, z[2].polar / z[2].token,
            z[3].polar / z[3].token, step_of(s, 3, ADAMW_ROW, 2, 1024) / 3600,
            step_of(s, 3, SIGNMUON_ROW, 2, 1024) / 3600,
            cost_of(s, &s->here, SIGNMUON_ROW, 1, 100000).messages);
    fprintf(f, "## Measured here\n\n");
    write_rates(f, s);
    fprintf(
        f, "The predictor against runs of the program: the model of `make train`, 3 workers of two "
           "threads that share this\nmachine through memory. Barriers, start-up of threads and "
           "caches are not in the prediction.\n\n");
    write_check(f, s);
    fprintf(f, "## Seconds of a step, every worker this CPU\n\n");
    for (size_t r = 0; r < ROWS; r++) fprintf(f, "- `%s`: %s\n", rows[r].name, rows[r].doc);
    fprintf(f, "\n");
    write_steps(f, s);
    fprintf(f, "\n![seconds of a step against workers](scale.svg)\n");
}

int main(void) {
    static Scale scale;
    Scale *s = &scale;
    int threads = (int)min_size((size_t)comm_cores(), 256);
    if (!gemm_default(GEMM_F32)) give_up("no GEMM_ISA=%s here", getenv("GEMM_ISA"));
    need_root();
    team_float_environment();
    if (team_start(&s->team, threads, TEAM_SPIN)) give_up("cannot start %d threads", threads);
    describe_cpu(s->cpu, sizeof s->cpu);
    for (int m = 0; m < MODELS; m++) s->size[m] = size_of(&models[m]);
    measure(s);
    FILE *page = fopen("docs/SCALE.md", "w"), *csv = fopen("docs/scale.csv", "w");
    if (page) write_page(page, s);
    if (csv) write_csv(csv, s);
    close_file(page, "docs/SCALE.md");
    close_file(csv, "docs/scale.csv");
    remove_folder(s->folder);
    return 0;
}
