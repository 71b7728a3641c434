/* bench/scale.c - seconds of a training step on 8 to 100,000 workers, from what this machine
   measures and the alpha-beta model of a link. MIT.

     make scale                    everything, in two minutes; writes docs/SCALE.md, docs/scale*.csv and,
                                   by gnuplot, docs/scale*.svg
     bench/scale --quick           the measured rates and the check against real runs; writes nothing
     --worker-tflops X             sustained TFLOP/s of the supposed faster worker (400)
     --worker-memory Y             and its memory bandwidth in GB/s (3000)

   A step is compute + wire, one after the other.
     compute = forward and backward + Newton-Schulz + passes over the weights, each at the rate that
               the program's own kernels reach here on matrices of that size
     wire    = rounds * latency + messages * overhead + bytes / rate
   rounds are exchanges that wait for one another; bytes are those of the busiest link. What --link of
   train_gpt computes, messages * latency + bytes / rate, has the messages wait too; both are
   written. */
#include "measure.h"
#include <netinet/in.h>
#include <sys/socket.h>

/* ------------------------------------------------------------------------------------------------
 * what is asked */

typedef struct Model {
    const char *name;
    GptShape shape;
    double batch;      /* tokens of a step in all; a worker takes whole sequences, at least one */
    int width, tokens; /* of the one layer that is timed in its place */
    int polar;         /* Newton-Schulz is timed on polar x polar */
} Model;

enum { SMALL, MODELS = 4 };
/* The model of `make train`; GPT-2's smallest; the 1.3B and 6.7B of GPT-3's table 2.1 (Brown et al.
 * 2020), whose batches of 0.5M, 1M and 2M tokens these are. */
static const Model models[MODELS] = {
    {"make train", {4, 4, 128, 64, VOCABULARY, 0, 0, 0, 1337, 0}, 768, 128, 256, 128},
    {"124M", {12, 12, 768, 1024, 50257, 0, 0, 0, 1337, 0}, 0.5e6, 768, 1024, 768},
    {"1.3B", {24, 16, 2048, 2048, 50257, 0, 0, 0, 1337, 0}, 1e6, 2048, 512, 2048},
    {"7B", {32, 32, 4096, 2048, 50257, 0, 0, 0, 1337, 0}, 2e6, 4096, 256, 2048},
};

typedef struct Link {
    const char *name, *flag; /* flag: for train_gpt --link */
    double rate, latency;    /* bytes/s of a machine each way; seconds */
} Link;

enum { LINKS = 3 };
static const Link links[LINKS] = {
    {"datacentre: 100 Gbit/s, 10 us", "100gbit,10us", 100e9 / 8, 10e-6},
    {"office: 1 Gbit/s, 0.5 ms", "1gbit,0.5ms", 1e9 / 8, 0.5e-3},
    {"home: 20 Mbit/s, 30 ms", "20mbit,30ms", 20e6 / 8, 30e-3},
};

static const double counts[] = {8, 64, 1024, 10000, 100000};
enum { COUNTS = sizeof counts / sizeof *counts, PER_MACHINE = 8, REPORT = sizeof(Report) };

/* Passes over weights, by what one weight costs; a VOTE's and a MEAN's unit is one worker's weight. */
typedef enum Touch {
    MOMENTUM,
    ADAMW,
    DENSE,
    PACK,
    VOTE,
    APPLY,
    MEAN,
    COMPRESS,
    DECODE,
    TOUCHES
} Touch;

/* What a worker can do. */
typedef struct Speed {
    double train[MODELS], polar[MODELS]; /* flop/s of all cores */
    double block[MODELS];                /* flop/s on one matrix, which one core works on */
    double touch[TOUCHES];               /* weights per second, all cores */
    double memory;                       /* bytes/s of memcpy, read and written */
    double overhead;                     /* seconds of sending and receiving a short message */
} Speed;

/* What the predictor wants to know of a model. */
typedef struct Size {
    Gpt g;                         /* layout only */
    double all, hidden, auxiliary; /* weights */
    double largest;                /* of the hidden matrices, in weights */
    double polar, largest_polar;   /* flop */
    double token;                  /* flop of a token, forward and backward */
    double compressed[2];          /* bytes of error feedback's messages, up and down */
} Size;

typedef struct Scale {
    char cpu[512], folder[FOLDER_SIZE];
    Team team;
    float *x[4];
    Speed here, faster;
    double tflops, gbytes; /* of the faster worker */
    Size size[MODELS];
    EfLink up, down;
} Scale;

/* One prediction. */
typedef struct Case {
    const Scale *s;
    const Size *size;
    const Speed *speed;
    int model;
    double n; /* workers */
} Case;

typedef struct Cost {
    double train, polar, update; /* seconds */
    double sent;                 /* payload bytes of a worker, on average */
    double busiest;              /* bytes through the busiest machine's link, one way */
    double messages, rounds;
} Cost;

/* ------------------------------------------------------------------------------------------------
 * methods: what a step costs */

/* All-to-all and all-gather of shards of equal size: `up` bytes of message, `down` of reply. */
static void exchange(Cost *c, double up, double down, double n) {
    c->sent += (up + down) * (n - 1) / n;
    c->busiest += (up + down) * (n - 1) / n;
    c->messages += 2 * (n - 1);
    c->rounds += 2;
}

/* The same with shards of whole matrices, whose owners serve them: the owner of the largest gets it
 * from everybody. */
static void exchange_matrices(Cost *c, const Size *z, double up, double down, double n) {
    double share = fmax(1 / n, z->largest / z->hidden);
    c->sent += (up + down) * (n - 1) / n;
    c->busiest += (up + down) * (n - 1) * share;
    c->messages += 2 * (n - 1);
    c->rounds += 2;
}

/* Every step ends with an all-gather of losses and news between n peers. */
static void report(Cost *c, double n) {
    c->busiest += REPORT * (n - 1);
    c->messages += n - 1;
    c->rounds += 1;
}

/* From equal shards to the owners of matrices and back, `width` bytes per weight. */
static void to_owners(Cost *c, const Case *k, double width) {
    double share = fmax(1 / k->n, k->size->largest / k->size->hidden);
    c->sent += 2 * width * k->size->hidden / k->n;
    c->busiest += 2 * width * k->size->hidden * share;
    c->messages += 2 * ceil(k->n * share);
    c->rounds += 2;
}

static double touch(const Case *k, Touch t, double weights) { return weights / k->speed->touch[t]; }

/* Newton-Schulz of every matrix by every worker; and by owners, one core to a matrix. */
static double polar_by_all(const Case *k) { return k->size->polar / k->speed->polar[k->model]; }
static double polar_by_owners(const Case *k) {
    return fmax(polar_by_all(k) / k->n, k->size->largest_polar / k->speed->block[k->model]);
}

/* The other tensors under AdamW, with the mean in fp32. */
static void auxiliary_adamw(Cost *c, const Case *k) {
    exchange(c, 4 * k->size->auxiliary, 4 * k->size->auxiliary, k->n);
    report(c, k->n);
    c->update += touch(k, ADAMW, k->size->auxiliary) + touch(k, MEAN, k->size->auxiliary);
}

static void cost_adamw(Cost *c, const Case *k) {
    exchange(c, 4 * k->size->hidden, 4 * k->size->hidden, k->n);
    c->update += touch(k, ADAMW, k->size->hidden) + touch(k, MEAN, k->size->hidden);
    auxiliary_adamw(c, k);
}

static void cost_muon(Cost *c, const Case *k) {
    double h = k->size->hidden;
    c->update += touch(k, MOMENTUM, h) + touch(k, MEAN, h) + touch(k, DENSE, h);
    auxiliary_adamw(c, k);
}
static void cost_muon_all(Cost *c, const Case *k) {
    exchange(c, 4 * k->size->hidden, 4 * k->size->hidden, k->n);
    c->polar += polar_by_all(k);
    cost_muon(c, k);
}
static void cost_muon_owners(Cost *c, const Case *k) {
    exchange_matrices(c, k->size, 4 * k->size->hidden, 4 * k->size->hidden, k->n);
    c->polar += polar_by_owners(k);
    cost_muon(c, k);
}
static void cost_muon_even(Cost *c, const Case *k) {
    exchange(c, 4 * k->size->hidden, 4 * k->size->hidden, k->n);
    to_owners(c, k, 4);
    c->polar += polar_by_owners(k);
    cost_muon(c, k);
}

static void cost_feedback(Cost *c, const Case *k) {
    double h = k->size->hidden, share = fmax(1 / k->n, k->size->largest / h);
    exchange_matrices(c, k->size, k->size->compressed[0], k->size->compressed[1], k->n);
    c->polar += polar_by_owners(k);
    c->update += touch(k, MOMENTUM, h) + touch(k, COMPRESS, h) + touch(k, DECODE, h);
    c->update += touch(k, DECODE, h * k->n * share) + touch(k, COMPRESS, h * share);
    auxiliary_adamw(c, k);
}

/* Every worker's passes for a vote over w weights, of which it counts w ballots whatever N is. */
static double vote_update(const Case *k, double w) {
    return touch(k, MOMENTUM, w) + touch(k, PACK, w) + touch(k, VOTE, w) + touch(k, APPLY, w);
}

static void cost_muonsign(Cost *c, const Case *k) {
    exchange_matrices(c, k->size, k->size->hidden / 8, k->size->hidden / 8, k->n);
    exchange(c, k->size->auxiliary / 8, k->size->auxiliary / 8, k->n);
    report(c, k->n);
    c->polar += polar_by_owners(k);
    c->update += vote_update(k, k->size->all);
}
static void cost_muonsign_even(Cost *c, const Case *k) {
    exchange(c, k->size->hidden / 8, k->size->hidden / 8, k->n);
    to_owners(c, k, 1. / 8);
    exchange(c, k->size->auxiliary / 8, k->size->auxiliary / 8, k->n);
    report(c, k->n);
    c->polar += polar_by_owners(k);
    c->update += vote_update(k, k->size->all);
}

static void cost_signmuon(Cost *c, const Case *k) {
    exchange(c, k->size->hidden / 8, k->size->hidden / 8, k->n);
    exchange(c, k->size->auxiliary / 8, k->size->auxiliary / 8, k->n);
    report(c, k->n);
    c->polar += polar_by_all(k);
    c->update += vote_update(k, k->size->all);
}

static double bits_of_count(double voters) { return ceil(log2(voters + 1)); }

/* Groups of about sqrt(N): ballots to the counters inside a group, counts to one of the sqrt(N) that
 * count the same shard, verdicts back the same way. */
static void cost_two_levels(Cost *c, const Case *k) {
    double g = floor(sqrt(k->n)), across = k->n / g, b = bits_of_count(g);
    for (int part = 0; part < 2; part++) {
        double ballot = (part ? k->size->auxiliary : k->size->hidden) / 8;
        exchange(c, ballot, ballot, g);
        exchange(c, b * ballot / g, ballot / g, across);
    }
    report(c, g);
    report(c, across);
    c->polar += polar_by_all(k);
    c->update += vote_update(k, k->size->all) + touch(k, VOTE, b * k->size->all / g);
}

/* PER_MACHINE workers behind one link: what leaves the machine, with a ballot from each. */
static void cost_machine_flat(Cost *c, const Case *k) {
    double m = PER_MACHINE;
    cost_signmuon(c, k);
    c->busiest = m * ((k->size->all / 4) * (k->n - m) / k->n + REPORT * (k->n - m));
    c->messages = 5 * (k->n - m);
}

/* The same with one message of counts per machine; inside it, memory is shared. */
static void cost_machine_counts(Cost *c, const Case *k) {
    double m = PER_MACHINE, machines = k->n / m, b = bits_of_count(m), w = k->size->all;
    for (int part = 0; part < 2; part++) {
        double ballot = (part ? k->size->auxiliary : k->size->hidden) / 8;
        exchange(c, b * ballot, ballot, machines);
    }
    report(c, machines);
    c->sent /= m;
    c->polar += polar_by_all(k);
    c->update += vote_update(k, w) + touch(k, VOTE, b * w / m);
}

typedef struct Row {
    const char *name, *method, *aux, *flags; /* flags: of train_gpt; NULL where it has none yet */
    void (*cost)(Cost *, const Case *);
    const char *doc;
} Row;

enum {
    MUON_ALL = 1,
    MUON_OWNERS,
    MUON_EVEN,
    EF21_MUON,
    MUONSIGN,
    MUONSIGN_EVEN,
    SIGNMUON,
    TWO_LEVELS,
    ROWS_SHOWN,
    MACHINE_FLAT = ROWS_SHOWN,
    MACHINE_COUNTS,
    ROWS_ALL
};
static const Row rows[ROWS_ALL] = {
    [0] = {"adamw", "adamw", "adamw", "--method adamw", cost_adamw,
           "mean of the gradients in fp32; the bytes of a ring all-reduce"},
    [MUON_ALL] = {"muon (all)", "muon", "adamw", NULL, cost_muon_all,
                  "mean in fp32; every worker orthogonalises every matrix"},
    [MUON_OWNERS] = {"muon (owners)", "muon", "adamw", "--method muon", cost_muon_owners,
                     "mean in fp32; shards are whole matrices, which their owners orthogonalise"},
    [MUON_EVEN] = {"muon (even)", "muon", "adamw", NULL, cost_muon_even,
                   "mean over equal shards, matrices put together at their owners, cut again"},
    [EF21_MUON] = {"ef21-muon", "ef21-muon", "adamw",
                   "--method ef21-muon --up topk:0.15+natural --down natural", cost_feedback,
                   "15 % of the residual in 9 bits each and a bit map up, 9 bits down; owners"},
    [MUONSIGN] = {"muonsign", "muonsign", "signum", "--method muonsign --aux sign", cost_muonsign,
                  "a vote of sign(M) by owners, who send back the sign of its polar factor"},
    [MUONSIGN_EVEN] = {"muonsign (even)", "muonsign", "signum", NULL, cost_muonsign_even,
                       "the vote over equal shards, then to owners and back"},
    [SIGNMUON] = {"signmuon", "signmuon", "signum", "--method signmuon --aux sign", cost_signmuon,
                  "a vote of sign(polar(M)), sharded over all workers"},
    [TWO_LEVELS] = {"signmuon (2 levels)", "signmuon", "signum", NULL, cost_two_levels,
                    "the same vote in groups of sqrt(N), counts between them"},
    [MACHINE_FLAT] = {"signmuon (8 per link)", "signmuon", "signum", NULL, cost_machine_flat,
                      "8 workers behind one link, a ballot from each"},
    [MACHINE_COUNTS] = {"signmuon (8 per link: counts)", "signmuon", "signum", NULL,
                        cost_machine_counts,
                        "the hierarchical vote: counts of 8 workers behind one link"},
};

/* Sequences that a worker takes. */
static double sequences(const Model *m, double n) {
    return fmax(1, floor(m->batch / (n * m->shape.context)));
}

static Cost cost_of(const Row *row, const Case *k) {
    Cost c = {0, 0, 0, 0, 0, 0, 0};
    const Model *m = &models[k->model];
    c.train = sequences(m, k->n) * m->shape.context * k->size->token / k->speed->train[k->model];
    row->cost(&c, k);
    return c;
}

static double compute_of(const Cost *c) { return c->train + c->polar + c->update; }
static double wire_of(const Cost *c, const Link *l, const Speed *s) {
    return c->rounds * l->latency + c->messages * s->overhead + c->busiest / l->rate;
}
/* As train_gpt --link: every message waits for the one before it. */
static double link_of_program(const Cost *c, const Link *l) {
    return c->messages * l->latency + c->busiest / l->rate;
}

/* ------------------------------------------------------------------------------------------------
 * sizes of a model */

static SmConfig config_of(const Scale *s, const Row *row) {
    SmConfig c = sm_config(sm_method(row->method), sm_method(row->aux));
    if (c.method->combine == SM_FEEDBACK) c.up = &s->up, c.down = &s->down;
    return c;
}

/* Flop of Newton-Schulz, counted on a smaller matrix of the same proportions: they grow with the
 * third power of its side. */
static double polar_count(const SmTensor *t) {
    double factor = 1;
    size_t m = t->rows, n = t->cols;
    while (m % 2 == 0 && n % 2 == 0 && m * n > 128 * 512) m /= 2, n /= 2, factor *= 8;
    float *x = floats(2 * m * n + sm_lmo_scratch(m, n));
    for (size_t i = 0; i < m * n; i++) x[i] = (float)(sm_hash(1, i) >> 40) - 0x800000;
    polar_flops = 0;
    sm_polar(x + m * n, x, m, n, sm_newton_schulz("jordan5"), x + 2 * m * n);
    free(x);
    return factor * polar_flops;
}

static Size size_of(const Scale *s, const Model *m) {
    Size z;
    memset(&z, 0, sizeof z);
    gpt_layout(&z.g, &m->shape);
    double L = m->shape.layers, C = m->shape.width, T = m->shape.context;
    for (size_t i = 0; i < z.g.tensors; i++) {
        const SmTensor *t = &z.g.tensor[i];
        double one = (double)(t->rows * t->cols), times = (double)t->blocks;
        if (t->role != SM_HIDDEN) {
            z.auxiliary += one * times;
            continue;
        }
        double flops = polar_count(t);
        z.hidden += one * times;
        z.largest = fmax(z.largest, one);
        z.polar += flops * times;
        z.largest_polar = fmax(z.largest_polar, flops);
        z.compressed[0] += times * ceil(ef_bits(&s->up, t->rows, t->cols) / 8);
        z.compressed[1] += times * ceil(ef_bits(&s->down, t->rows, t->cols) / 8);
    }
    z.all = z.hidden + z.auxiliary;
    z.token = 6 * (z.hidden + m->shape.vocab * C) + 6 * L * C * T;
    return z;
}

/* The predictor's bytes must be the library's, for every method and number of workers. */
static void check_bytes(const Scale *s) {
    for (int m = 0; m < MODELS; m++)
        for (size_t r = 0; r < ROWS_ALL; r++)
            for (int i = 0; i < COUNTS; i++) {
                Case k = {s, &s->size[m], &s->here, m, counts[i]};
                SmConfig config = config_of(s, &rows[r]);
                double bits = 0, sent = cost_of(&rows[r], &k).sent;
                if (!rows[r].flags) continue; /* a variant that the library does not have */
                for (size_t t = 0; t < k.size->g.tensors; t++)
                    bits += sm_bits_per_weight(&config, &k.size->g.tensor[t], (int)counts[i]) *
                            (double)tensor_size(&k.size->g.tensor[t]);
                if (fabs(bits / 8 - sent) > 1e-9 * sent)
                    give_up(
                        "%s of %s on %.0f workers sends %.0f bytes by this program's formula and "
                        "%.0f by sm_bits_per_weight",
                        models[m].name, rows[r].name, counts[i], sent, bits / 8);
            }
}

/* ------------------------------------------------------------------------------------------------
 * rates of this machine */

enum { WEIGHTS = 1 << 24, VOTERS = 64, BALLOT_WORDS = WEIGHTS / 2 / VOTERS };

typedef void OnThread(void *context, int ith, int nth);

/* Seconds of a call on all threads, the median of three lots of at least `least` seconds. */
static double seconds_of(Team *team, OnThread *f, void *context, double least) {
    double sample[3];
    long calls = 1;
    team_run(team, f, context);
    for (double spent = 0; spent < least; calls *= 2) {
        double start = now();
        for (long i = 0; i < calls; i++) team_run(team, f, context);
        spent = now() - start;
        if (spent >= least) break;
    }
    for (int s = 0; s < 3; s++) {
        double start = now();
        for (long i = 0; i < calls; i++) team_run(team, f, context);
        sample[s] = (now() - start) / (double)calls;
    }
    return median(sample, 3);
}

/* A thread's part of WEIGHTS weights, in words of 64. */
static size_t part_of(size_t *from, int ith, int nth) {
    size_t lo, hi;
    slice(WEIGHTS / 64, ith, nth, &lo, &hi);
    *from = lo * 64;
    return (hi - lo) * 64;
}
static uint64_t *bits_of(float *x) { return (uint64_t *)(void *)x; }

static void touch_momentum(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t at, n = part_of(&at, ith, nth);
    sm_momentum(x[0] + at, x[1] + at, x[2] + at, n, 0.95f, 1);
}
static void touch_adamw(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t at, n = part_of(&at, ith, nth);
    sm_adamw(x[0] + at, x[1] + at, x[3] + at, x[2] + at, n, 9, 1e-3, 0.9, 0.95, 1e-8, 1);
}
static void touch_dense(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t at, n = part_of(&at, ith, nth);
    sm_step_dense(x[0] + at, x[2] + at, n, 1e-3f, 1);
}
static void touch_pack(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t at, n = part_of(&at, ith, nth);
    sm_pack(bits_of(x[0]) + at / 64, x[2] + at, n, SM_COIN, 3);
}
/* VOTERS ballots that fill an array. */
static void touch_vote(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    const uint64_t *ballot[VOTERS];
    size_t lo, hi;
    slice(BALLOT_WORDS, ith, nth, &lo, &hi);
    for (size_t v = 0; v < VOTERS; v++) ballot[v] = bits_of(x[2]) + v * BALLOT_WORDS + lo;
    sm_vote(bits_of(x[0]) + lo, NULL, ballot, NULL, VOTERS, hi - lo, SM_COIN, 3, lo);
}
static void touch_apply(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t at, n = part_of(&at, ith, nth);
    sm_apply(x[0] + at, bits_of(x[2]) + at / 64, NULL, n, 1e-3f, 1);
}
/* Four workers' shards summed as the optimizer does, in double. */
static void touch_mean(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t lo, hi, mine = WEIGHTS / 4;
    slice(mine, ith, nth, &lo, &hi);
    for (size_t i = lo; i < hi; i++) {
        double sum = 0;
        for (size_t j = 0; j < 4; j++) sum += (double)x[2][j * mine + i];
        x[0][i] = (float)(sum / 4);
    }
}

/* Error feedback goes matrix by matrix, one thread to each: EF_ROWS x EF_COLS. */
enum { EF_ROWS = 768, EF_COLS = 768, EF_WEIGHTS = EF_ROWS * EF_COLS };
static void touch_compress(void *context, int ith, int nth) {
    Scale *s = context;
    size_t at = (size_t)ith * (WEIGHTS / (size_t)nth);
    ef_send(s->x[3] + at, s->x[1] + at, s->x[2] + at, EF_ROWS, EF_COLS, &s->up, 1, 2, NULL,
            s->x[0] + at);
}
static void touch_decode(void *context, int ith, int nth) {
    Scale *s = context;
    size_t at = (size_t)ith * (WEIGHTS / (size_t)nth);
    size_t bytes = ef_bytes(&s->up, EF_ROWS, EF_COLS, 2);
    if (ef_aggregate(s->x[1] + at, s->x[3] + at, 0, bytes, 4, EF_ROWS, EF_COLS, &s->up,
                     s->x[0] + at))
        give_up("a message of ef21muon.h does not decode");
}
static void copy_part(void *context, int ith, int nth) {
    float **x = ((Scale *)context)->x;
    size_t at, n = part_of(&at, ith, nth);
    memcpy(x[0] + at, x[1] + at, n * sizeof(float));
}

static const struct {
    const char *name, *unit;
    OnThread *function;
    double weights; /* of a call; 0: one matrix of error feedback per thread, times `messages` */
    double messages;
} touches[TOUCHES] = {
    [MOMENTUM] = {"momentum", "Gweights/s", touch_momentum, WEIGHTS, 1},
    [ADAMW] = {"AdamW", "Gweights/s", touch_adamw, WEIGHTS, 1},
    [DENSE] = {"dense step", "Gweights/s", touch_dense, WEIGHTS, 1},
    [PACK] = {"signs into bits", "Gweights/s", touch_pack, WEIGHTS, 1},
    [VOTE] = {"vote, ballots of 64 workers", "Gbit/s", touch_vote, 32. * WEIGHTS, 1},
    [APPLY] = {"step along a vote", "Gweights/s", touch_apply, WEIGHTS, 1},
    [MEAN] = {"mean of 4 workers in fp32", "Gweights/s", touch_mean, WEIGHTS, 1},
    [COMPRESS] = {"topk:0.15+natural of a residual", "Gweights/s", touch_compress, 0, 1},
    [DECODE] = {"its decoding and sum", "Gweights/s", touch_decode, 0, 4},
};

static void measure_touches(Scale *s) {
    double threads = s->team.threads;
    if (EF_WEIGHTS + ef_scratch(&s->up, EF_ROWS, EF_COLS) > WEIGHTS / (size_t)s->team.threads)
        give_up("error feedback cannot be timed on so many threads as %d", s->team.threads);
    for (int i = 0; i < TOUCHES; i++) {
        for (size_t a = 0; a < 4 && i != DECODE; a++)
            for (size_t w = 0; w < WEIGHTS; w++)
                s->x[a][w] = a == 3 ? 0.5f : (float)((int)(sm_hash(a, w) >> 40) - 0x800000);
        double one = seconds_of(&s->team, touches[i].function, s, 0.1);
        double weights = touches[i].weights > 0 ? touches[i].weights : EF_WEIGHTS * threads;
        s->here.touch[i] = weights * touches[i].messages / one;
    }
    s->here.memory = 2. * WEIGHTS * sizeof(float) / seconds_of(&s->team, copy_part, s, 0.1);
}

/* Every thread orthogonalises a matrix of its own, as in the optimizer. */
typedef struct Polar {
    size_t side;
    float *g, *out[256], *scratch[256];
} Polar;
static void polar_on_thread(void *context, int ith, int nth) {
    Polar *p = context;
    (void)nth;
    sm_polar(p->out[ith], p->g, p->side, p->side, sm_newton_schulz("jordan5"), p->scratch[ith]);
}

static double measure_polar(int side, Team *team) {
    Polar *p = allocate(sizeof *p);
    SmTensor t = {.rows = (size_t)side, .cols = (size_t)side};
    p->side = (size_t)side;
    p->g = floats(p->side * p->side);
    for (size_t i = 0; i < p->side * p->side; i++)
        p->g[i] = (float)(sm_hash(5, i) >> 40) - 0x800000;
    for (int i = 0; i < team->threads; i++) {
        p->out[i] = floats(p->side * p->side);
        p->scratch[i] = floats(sm_lmo_scratch(p->side, p->side));
    }
    double one = seconds_of(team, polar_on_thread, p, 0.05);
    for (int i = 0; i < team->threads; i++) free(p->out[i]), free(p->scratch[i]);
    free(p->g);
    free(p);
    return team->threads * polar_count(&t) / one;
}

/* Forward and backward of one layer of the model's width, with a vocabulary of VOCABULARY; of the
 * whole model when it is small. In flop/s. */
static double measure_train(Scale *s, const Model *m) {
    int small = m == &models[SMALL], times = small ? 20 : 1;
    size_t B = small ? 4 : 1, T = (size_t)(small ? m->shape.context : m->tokens);
    GptShape shape = m->shape;
    Gpt g;
    shape.vocab = VOCABULARY;
    shape.context = (int)T;
    if (!small) shape.layers = 1;
    gpt_layout(&g, &shape);
    g.params = floats(g.parameters);
    g.grads = floats(g.parameters);
    gpt_allocate(&g, B, 1, &s->team);
    gpt_init(&g);
    int32_t *tokens = allocate(B * T * sizeof *tokens);
    for (size_t i = 0; i < B * T; i++) tokens[i] = (int32_t)(sm_hash(6, i) % VOCABULARY);
    Pass pass = {.B = B, .T = T, .in = tokens, .target = tokens, .train = 1};
    double sample[3], C = shape.width, L = shape.layers;
    gpt_pass(&g, pass);
    for (int i = 0; i < 3; i++) {
        double start = now();
        for (int k = 0; k < times; k++) gpt_pass(&g, pass);
        sample[i] = (now() - start) / times;
    }
    gpt_free(&g);
    free(tokens);
    return (double)(B * T) * (6 * (12 * L * C * C + VOCABULARY * C) + 6 * L * C * (double)T) /
           median(sample, 3);
}

/* Seconds of the two system calls that a short message costs, over TCP inside this machine, with
 * nobody asleep. */
static double measure_overhead(void) {
    enum { TIMES = 20000, BYTES = 160 };
    struct sockaddr_in a;
    socklen_t size = sizeof a;
    char text[BYTES] = {0};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), out = socket(AF_INET, SOCK_STREAM, 0);
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int bad = listener < 0 || out < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) ||
              listen(listener, 1) || getsockname(listener, (struct sockaddr *)&a, &size) ||
              connect(out, (struct sockaddr *)&a, sizeof a);
    int in = bad ? -1 : accept(listener, NULL, NULL);
    if (in < 0) give_up("no TCP inside this machine: %s", strerror(errno));
    setsockopt(out, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof one);
    double start = now();
    for (int i = 0; i < TIMES; i++)
        if (send(out, text, BYTES, 0) != BYTES || recv(in, text, BYTES, MSG_WAITALL) != BYTES)
            give_up("TCP inside this machine fails: %s", strerror(errno));
    double seconds = (now() - start) / TIMES;
    close(in);
    close(out);
    close(listener);
    return seconds;
}

static void measure(Scale *s) {
    static Team alone;
    if (team_start(&alone, 1, 0)) give_up("no thread");
    for (size_t i = 0; i < 4; i++) s->x[i] = floats(WEIGHTS);
    measure_touches(s);
    for (size_t i = 0; i < 4; i++) free(s->x[i]);
    s->here.overhead = measure_overhead();
    for (int m = 0; m < MODELS; m++) {
        int known = m > 0 && models[m].polar == models[m - 1].polar;
        s->here.polar[m] = known ? s->here.polar[m - 1] : measure_polar(models[m].polar, &s->team);
        s->here.block[m] = known ? s->here.block[m - 1] : measure_polar(models[m].polar, &alone);
        s->here.train[m] = measure_train(s, &models[m]);
    }
    s->faster = s->here;
    for (int m = 0; m < MODELS; m++)
        s->faster.train[m] = s->faster.polar[m] = s->faster.block[m] = 1e12 * s->tflops;
    s->faster.memory = 1e9 * s->gbytes;
    for (int i = 0; i < TOUCHES; i++) s->faster.touch[i] *= s->faster.memory / s->here.memory;
}

/* ------------------------------------------------------------------------------------------------
 * the check: what the predictor says of runs on this machine */

typedef struct Check {
    double bytes[2], wire[2], seconds[2]; /* predicted, measured; of a step */
} Check;

enum { CHECK_WORKERS = 3, CHECK_EVERY = 5, CHECK_SAMPLES = 7, STATISTICS = 48 };
static const Link check_link = {"100 Mbit/s, 5 ms", "100mbit,5ms", 100e6 / 8, 5e-3};

/* One machine's speed as each of n workers has it. */
static Speed shared_by(const Speed *all, double n, double cores) {
    Speed s = *all;
    for (int m = 0; m < MODELS; m++) {
        s.train[m] /= n;
        s.polar[m] /= n;
        s.block[m] *= fmin(1, cores / n);
    }
    for (int i = 0; i < TOUCHES; i++) s.touch[i] /= n;
    return s;
}

/* Growth of a column of the log per step, after its first row. */
static double per_step(const char *folder, const char *column) {
    double value[CHECK_SAMPLES + 1] = {0};
    read_column(folder, column, value, CHECK_SAMPLES + 1);
    return (value[CHECK_SAMPLES] - value[0]) / (CHECK_SAMPLES * CHECK_EVERY);
}

static Check check_run(Scale *s, const Row *row) {
    char text[256];
    double n = CHECK_WORKERS;
    Speed speed = shared_by(&s->here, n, s->team.threads);
    Case k = {s, &s->size[SMALL], &speed, SMALL, n};
    Cost c = cost_of(row, &k);
    Check check;
    snprintf(text, sizeof text, "--workers %d --threads 2 --backend threads --link %s %s",
             CHECK_WORKERS, check_link.flag, row->flags);
    check.seconds[1] = time_program(s->folder, text, CHECK_EVERY, CHECK_SAMPLES);
    check.bytes[1] = per_step(s->folder, "bytes_sent");
    check.wire[1] = per_step(s->folder, "wire_seconds");
    /* a row of the log takes one more all-gather, of STATISTICS bytes */
    c.messages += (n - 1) / CHECK_EVERY;
    c.busiest += STATISTICS * (n - 1) / CHECK_EVERY;
    check.bytes[0] = c.sent + REPORT * (n - 1) + STATISTICS * (n - 1) / CHECK_EVERY;
    check.wire[0] = link_of_program(&c, &check_link);
    /* in shared memory a byte is copied into an outbox and out of it */
    check.seconds[0] = compute_of(&c) + 4 * n * c.sent / s->here.memory;
    return check;
}

static void write_check(FILE *f, Scale *s) {
    fprintf(f,
            "| method | bytes per step: predicted | counted | seconds of --link %s: predicted | "
            "logged | ms per step: predicted | measured | ratio |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
            check_link.flag);
    for (size_t r = 0; r < ROWS_ALL; r++) {
        if (!rows[r].flags) continue;
        Check c = check_run(s, &rows[r]);
        fprintf(f, "| %s | %.0f | %.0f | %.4f | %.4f | %.1f | %.1f | %.2f |\n", rows[r].name,
                c.bytes[0], c.bytes[1], c.wire[0], c.wire[1], 1e3 * c.seconds[0],
                1e3 * c.seconds[1], c.seconds[0] / c.seconds[1]);
        fflush(f);
    }
}

static void write_rates(FILE *f, const Scale *s) {
    fprintf(f, "| rate, all %d threads | | |\n| --- | ---: | --- |\n", s->team.threads);
    for (int m = 0; m < MODELS; m++)
        fprintf(f, "| forward and backward, %s, width %d | %.0f | GFLOP/s |\n",
                m == SMALL ? "the whole model" : "one layer", models[m].width,
                1e-9 * s->here.train[m]);
    for (int m = 0; m < MODELS; m++)
        if (m == 0 || models[m].polar != models[m - 1].polar)
            fprintf(f,
                    "| Newton-Schulz, %d x %d, a matrix per thread (one thread alone: %.0f) | %.0f "
                    "| GFLOP/s |\n",
                    models[m].polar, models[m].polar, 1e-9 * s->here.block[m],
                    1e-9 * s->here.polar[m]);
    for (int i = 0; i < TOUCHES; i++)
        fprintf(f, "| %s | %.2f | %s |\n", touches[i].name, 1e-9 * s->here.touch[i],
                touches[i].unit);
    fprintf(f, "| memcpy of 64 MB, read and written | %.1f | GB/s |\n", 1e-9 * s->here.memory);
    fprintf(f, "| TCP, send and receive of 160 bytes inside the machine | %.1f | us |\n",
            1e6 * s->here.overhead);
}

/* ------------------------------------------------------------------------------------------------
 * tables */

/* Seconds with three digits and a unit. */
static const char *time_text(char *out, double t) {
    double v = t < 1 ? 1e3 * t : t < 3600 ? t : t < 172800 ? t / 3600 : t / 86400;
    const char *unit = t < 1 ? "ms" : t < 3600 ? "s" : t < 172800 ? "h" : "days";
    snprintf(out, 32, "%.*f %s", v < 10 ? 2 : v < 100 ? 1 : 0, v, unit);
    return out;
}

static const char *bytes_text(char *out, double b) {
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    int u = 0;
    while (b >= 999.5 && u < 5) b /= 1000, u++;
    snprintf(out, 32, "%.*f %s", b < 10 && u ? 1 : 0, b, unit[u]);
    return out;
}

static const char *rate_text(char *out, double bits) {
    static const char *const unit[] = {"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"};
    int u = 0;
    while (bits >= 999.5 && u < 4) bits /= 1000, u++;
    if (isinf(bits))
        snprintf(out, 32, "any");
    else
        snprintf(out, 32, "%.*f %s", bits < 10 ? 1 : 0, bits, unit[u]);
    return out;
}

static const char *count_text(char *out, double n) {
    if (n >= 1e6)
        snprintf(out, 32, "%.0f,%03.0f,%03.0f", floor(n / 1e6), floor(fmod(n, 1e6) / 1000),
                 fmod(n, 1000));
    else if (n >= 1000)
        snprintf(out, 32, "%.0f,%03.0f", floor(n / 1000), fmod(n, 1000));
    else
        snprintf(out, 32, "%.0f", n);
    return out;
}

static void write_step_head(FILE *f, const char *first) {
    fprintf(f, "| %s |", first);
    for (size_t r = 0; r < ROWS_SHOWN; r++) fprintf(f, " %s |", rows[r].name);
    fprintf(f, "\n| --- |");
    for (size_t r = 0; r < ROWS_SHOWN; r++) fprintf(f, " ---: |");
    fprintf(f, "\n");
}

/* Seconds of a step of every method: a line per link and number of workers. */
static void write_steps(FILE *f, const Scale *s, int model, const Speed *speed) {
    char t[32];
    write_step_head(f, "link, workers");
    for (int l = 0; l < LINKS; l++)
        for (int i = 0; i < COUNTS; i++) {
            Case k = {s, &s->size[model], speed, model, counts[i]};
            fprintf(f, "| %.*s %s |", (int)strcspn(links[l].name, ":"), links[l].name,
                    count_text(t, counts[i]));
            for (size_t r = 0; r < ROWS_SHOWN; r++) {
                Cost c = cost_of(&rows[r], &k);
                fprintf(f, " %s |", time_text(t, compute_of(&c) + wire_of(&c, &links[l], speed)));
            }
            fprintf(f, "\n");
        }
    fprintf(f, "\n");
}

static void write_csv(FILE *f, Scale *s) {
    const Speed *speed[] = {&s->here, &s->faster};
    fprintf(f, "worker,model,link,workers,method,train_seconds,polar_seconds,update_seconds,"
               "wire_seconds,wire_seconds_in_sequence,step_seconds,bytes_sent,bytes_busiest,"
               "messages,rounds,tokens_per_worker\n");
    for (int w = 0; w < 2; w++)
        for (int m = 1; m < MODELS; m++)
            for (int l = 0; l < LINKS; l++)
                for (size_t r = 0; r < ROWS_ALL; r++)
                    for (int i = 0; i < COUNTS; i++) {
                        Case k = {s, &s->size[m], speed[w], m, counts[i]};
                        Cost c = cost_of(&rows[r], &k);
                        double wire = wire_of(&c, &links[l], speed[w]);
                        fprintf(f,
                                "%s,%s,%.*s,%.0f,%s,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.0f,%.0f,"
                                "%.0f,%.0f,%.0f\n",
                                w ? "faster" : "cpu", models[m].name,
                                (int)strcspn(links[l].name, ":"), links[l].name, k.n, rows[r].name,
                                c.train, c.polar, c.update, wire, link_of_program(&c, &links[l]),
                                compute_of(&c) + wire, c.sent, c.busiest, c.messages, c.rounds,
                                sequences(&models[m], k.n) * models[m].shape.context);
                    }
}

/* Seconds of a step on 64 workers over a link of any rate, at no latency. */
static void write_rate_csv(FILE *f, Scale *s) {
    const Speed *speed[] = {&s->here, &s->faster};
    fprintf(f, "worker,model,method,rate_bits,step_seconds\n");
    for (int w = 0; w < 2; w++)
        for (int m = 1; m < MODELS; m++)
            for (size_t r = 0; r < ROWS_SHOWN; r++)
                for (int i = 0; i <= 24; i++) {
                    Case k = {s, &s->size[m], speed[w], m, 64};
                    Cost c = cost_of(&rows[r], &k);
                    double rate = pow(10, 6 + i / 4.);
                    fprintf(f, "%s,%s,%s,%.6g,%.6g\n", w ? "faster" : "cpu", models[m].name,
                            rows[r].name, rate, compute_of(&c) + 8 * c.busiest / rate);
                }
}

static void write_models(FILE *f, const Scale *s) {
    char a[32];
    fprintf(
        f,
        "| model | layers | heads | width | context | vocabulary | weights | hidden matrices | "
        "tokens per step | GFLOP per token | Newton-Schulz of all matrices, TFLOP | tokens of as "
        "much work |\n| --- |");
    for (int i = 0; i < 11; i++) fprintf(f, " ---: |");
    fprintf(f, "\n");
    for (int m = 0; m < MODELS; m++) {
        const GptShape *p = &models[m].shape;
        const Size *z = &s->size[m];
        fprintf(f, "| %s | %d | %d | %d | %d | %d | %.4g M | %.0f %% | %s | %.3g | %.3g | %s |\n",
                models[m].name, p->layers, p->heads, p->width, p->context, p->vocab, 1e-6 * z->all,
                100 * z->hidden / z->all, count_text(a, models[m].batch), 1e-9 * z->token,
                1e-12 * z->polar, count_text(a + 16, round(z->polar / z->token)));
    }
    fprintf(f, "\n");
}

/* The rate of a link below which a step of signmuon is shorter than one of another row. */
static double crossover(const Scale *s, const Speed *speed, int model, const Row *other, double n) {
    Case k = {s, &s->size[model], speed, model, n};
    Cost a = cost_of(other, &k), b = cost_of(&rows[SIGNMUON], &k);
    double more = compute_of(&b) - compute_of(&a), less = a.busiest - b.busiest;
    return more <= 0 ? INFINITY : less / more;
}

static void write_crossovers(FILE *f, const Scale *s) {
    const Speed *speed[] = {&s->here, &s->faster};
    static const size_t other[] = {0, MUON_OWNERS, MUON_ALL};
    char t[32];
    fprintf(
        f,
        "| model | worker | below this rate signmuon beats adamw | muon (owners) | muon (all) |\n"
        "| --- | --- | ---: | ---: | ---: |\n");
    for (int m = 1; m < MODELS; m++)
        for (int w = 0; w < 2; w++) {
            fprintf(f, "| %s | %s |", models[m].name, w ? "faster" : "this CPU");
            for (int i = 0; i < 3; i++)
                fprintf(f, " %s |",
                        rate_text(t, 8 * crossover(s, speed[w], m, &rows[other[i]], 64)));
            fprintf(f, "\n");
        }
    fprintf(f, "\n");
}

/* Eight workers behind one link, with and without counts. */
static void write_machines(FILE *f, const Scale *s) {
    const Speed *speed[] = {&s->here, &s->faster};
    char t[32];
    fprintf(f, "| model, worker | bytes through a machine's link: ballots | counts |");
    for (int l = 0; l < LINKS; l++) {
        int n = (int)strcspn(links[l].name, ":");
        fprintf(f, " step, %.*s: ballots | counts |", n, links[l].name);
    }
    fprintf(f, "\n| --- | ---: | ---: |");
    for (int l = 0; l < LINKS; l++) fprintf(f, " ---: | ---: |");
    fprintf(f, "\n");
    for (int m = 1; m < MODELS; m++)
        for (int w = 0; w < 2; w++) {
            Case k = {s, &s->size[m], speed[w], m, 1024};
            Cost c[] = {cost_of(&rows[MACHINE_FLAT], &k), cost_of(&rows[MACHINE_COUNTS], &k)};
            fprintf(f, "| %s, %s |", models[m].name, w ? "faster" : "this CPU");
            for (int i = 0; i < 2; i++) fprintf(f, " %s |", bytes_text(t, c[i].busiest));
            for (int i = 0; i < 2 * LINKS; i++)
                fprintf(f, " %s |",
                        time_text(t, compute_of(&c[i % 2]) +
                                         wire_of(&c[i % 2], &links[i / 2], speed[w])));
            fprintf(f, "\n");
        }
    fprintf(f, "\n");
}

/* Flat and two-level vote where messages are many. */
static void write_messages(FILE *f, const Scale *s) {
    char a[32], b[32], c[32], d[32];
    fprintf(f,
            "| workers | vote | messages of a worker | bytes of a ballot's shard | bytes sent | ");
    for (int l = 0; l < LINKS; l++)
        fprintf(f, "%.*s: overlapped | one by one | ", (int)strcspn(links[l].name, ":"),
                links[l].name);
    fprintf(f, "\n| ---: | --- | ---: | ---: | ---: |");
    for (int l = 0; l < LINKS; l++) fprintf(f, " ---: | ---: |");
    fprintf(f, "\n");
    for (int i = 2; i < COUNTS; i++)
        for (size_t r = SIGNMUON; r < TWO_LEVELS + 1; r++) {
            Case k = {s, &s->size[1], &s->here, 1, counts[i]};
            Cost cost = cost_of(&rows[r], &k);
            double peers = r == SIGNMUON ? k.n : floor(sqrt(k.n));
            fprintf(f, "| %s | %s | %s | %s | %s |", count_text(a, k.n),
                    r == SIGNMUON ? "flat" : "2 levels", count_text(b, round(cost.messages)),
                    bytes_text(c, k.size->hidden / 8 / peers), bytes_text(d, cost.sent));
            for (int l = 0; l < LINKS; l++)
                fprintf(f, " %s | %s |", time_text(a, wire_of(&cost, &links[l], &s->here)),
                        time_text(b, link_of_program(&cost, &links[l])));
            fprintf(f, "\n");
        }
    fprintf(f, "\n");
}

static void write_memory(FILE *f, const Scale *s) {
    char t[32];
    static const int workers[] = {8, 1024, 100000};
    fprintf(
        f,
        "| model | method | parameters and gradients | packed matrices and activations | optimizer "
        "state | messages, 8 workers | 1,024 | 100,000 |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (int m = 1; m < MODELS; m++) {
        Gpt g = s->size[m].g;
        double model = (double)gpt_bytes(&g, 1, 1, s->team.threads);
        for (size_t r = 0; r < ROWS_ALL; r++) {
            if (!rows[r].flags) continue;
            SmConfig c = config_of(s, &rows[r]);
            fprintf(f, "| %s | %s | %s |", models[m].name, rows[r].name,
                    bytes_text(t, 8 * s->size[m].all));
            fprintf(f, " %s |", bytes_text(t, model));
            for (int i = 0; i < 3; i++) {
                SmBytes b =
                    sm_optimizer_bytes(&c, g.tensor, g.tensors, workers[i], s->team.threads);
                if (i == 0) fprintf(f, " %s |", bytes_text(t, (double)b.state));
                fprintf(f, " %s |", bytes_text(t, (double)b.messages));
            }
            fprintf(f, "\n");
        }
    }
    fprintf(f, "\n");
}

/* What a day buys, and how many days 20 tokens per weight take. */
static void write_days(FILE *f, const Scale *s) {
    const Speed *speed[] = {&s->here, &s->faster};
    static const size_t shown[] = {0, MUON_OWNERS, SIGNMUON};
    char t[32];
    fprintf(
        f,
        "| model | worker, link | steps of a day: adamw | muon (owners) | signmuon | days for 20 "
        "tokens per weight: adamw | muon (owners) | signmuon |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for (int m = 1; m < MODELS; m++)
        for (int w = 0; w < 2; w++)
            for (int l = 0; l < LINKS; l++) {
                Case k = {s, &s->size[m], speed[w], m, 64};
                double day[3], tokens = k.n * sequences(&models[m], k.n) * models[m].shape.context;
                fprintf(f, "| %s | %s, %.*s |", models[m].name, w ? "faster" : "this CPU",
                        (int)strcspn(links[l].name, ":"), links[l].name);
                for (int i = 0; i < 3; i++) {
                    Cost c = cost_of(&rows[shown[i]], &k);
                    day[i] = 86400 / (compute_of(&c) + wire_of(&c, &links[l], speed[w]));
                    fprintf(f, " %s |", count_text(t, floor(day[i])));
                }
                for (int i = 0; i < 3; i++) {
                    double days = 20 * k.size->all / (tokens * day[i]);
                    if (days < 100)
                        fprintf(f, " %.2g |", days);
                    else
                        fprintf(f, " %s |", count_text(t, round(days)));
                }
                fprintf(f, "\n");
            }
    fprintf(f, "\n");
}

/* ------------------------------------------------------------------------------------------------
 * the page */

static double step_at(const Scale *s, const Speed *speed, int model, size_t row, int link,
                      double n) {
    Case k = {s, &s->size[model], speed, model, n};
    Cost c = cost_of(&rows[row], &k);
    return compute_of(&c) + wire_of(&c, &links[link], speed);
}

// clang-format off
static const char method_of_page[] =
    "A step is computing and then the wire. Computing is forward and backward, Newton-Schulz, and the\n"
    "passes over the weights (momentum, signs, votes, the step), each at the rate measured below. The\n"
    "wire is `rounds x latency + messages x overhead + bytes / rate`: in a round every worker sends all\n"
    "its messages without waiting for answers, so that latencies pass side by side, and a message costs\n"
    "the two system calls measured below. `--link` of train_gpt is stricter, `messages x latency +\n"
    "bytes / rate`; where that matters both are given. Nothing is sent while something is computed.\n\n"
    "Measured, in the run that wrote this page: the rates of this CPU, and whole steps of `make train`\n"
    "to check the predictor. Assumed: that every worker is this CPU; that links are as named and carry\n"
    "their rate both ways at once, headers not counted; that everybody is equally fast and nobody dies.\n"
    "The *faster* worker is a supposition (`--worker-tflops`, `--worker-memory`): it sustains %.0f\n"
    "TFLOP/s in every product and %.0f GB/s in every pass over memory. No accelerator was measured.\n"
    "The batch of GPT-3's table 2.1 is shared by the workers in whole sequences, at least one to each;\n"
    "where there are more workers than sequences the batch grows with them. The program itself takes\n"
    "at most %d workers and one vote at most 65,535; beyond that this page is arithmetic. Its formula\n"
    "for bytes is compared with `sm_bits_per_weight` for every method that the program has, every\n"
    "model and every number of workers, and a difference ends the run.\n\n";
// clang-format on

static void write_advice(FILE *f, const Scale *s) {
    char a[32], b[32], c[32];
    const Size *big = &s->size[MODELS - 1], *least = &s->size[1];
    Case k = {s, big, &s->here, MODELS - 1, 1024}, far = {s, least, &s->here, 1, 100000};
    Cost sign = cost_of(&rows[SIGNMUON], &k), flat = cost_of(&rows[SIGNMUON], &far),
         levels = cost_of(&rows[TWO_LEVELS], &far), owners = cost_of(&rows[MUON_OWNERS], &far);
    fprintf(
        f,
        "- **Few workers in a datacentre (8 to 64).** Nothing breaks; the gradient is nearly all "
        "of "
        "a step, and fp32 is cheap. signmuon is then *slower* than muon with owners, because every "
        "worker orthogonalises its own momentum: %s against %s for 7B on 64 workers.\n",
        time_text(a, step_at(s, &s->here, 3, SIGNMUON, 0, 64)),
        time_text(b, step_at(s, &s->here, 3, MUON_OWNERS, 0, 64)));
    fprintf(
        f,
        "- **Newton-Schulz of signmuon** is the first thing to break as workers get fewer tokens "
        "each. It is as much work as the gradient of %s tokens (124M), %s (1.3B) or %s (7B), "
        "whatever the hardware, and cannot be shared out, since sign(polar(M_j)) is asked of every "
        "M_j. ",
        count_text(a, round(s->size[1].polar / s->size[1].token)),
        count_text(b, round(s->size[2].polar / s->size[2].token)),
        count_text(c, round(s->size[3].polar / s->size[3].token)));
    fprintf(
        f,
        "With one sequence of 2,048 tokens on 7B it takes %.1f times as long as the gradient. What "
        "helps: more tokens per worker and step; methods that orthogonalise after the exchange, "
        "where owners share the work (muon, and with one bit both ways muonsign).\n",
        sign.polar / sign.train);
    fprintf(
        f,
        "- **The bytes of fp32** break next, on slow links: a step of 7B takes adamw %s and "
        "signmuon "
        "%s on 1,024 home links with this CPU, %s and %s with the faster worker. The sharded vote "
        "sends 2 bits per weight whatever the number of workers, and its owner counts as many "
        "ballot bits as the model has weights, whatever that number is.\n",
        time_text(a, step_at(s, &s->here, 3, 0, 2, 1024)),
        time_text(b, step_at(s, &s->here, 3, SIGNMUON, 2, 1024)),
        time_text(c, step_at(s, &s->faster, 3, 0, 2, 1024)),
        time_text((char[32]){0}, step_at(s, &s->faster, 3, SIGNMUON, 2, 1024)));
    fprintf(
        f,
        "- **Owners of whole matrices** break when there are more workers than matrices (%.0f in "
        "124M): the owner of the largest receives it from everybody, %s per step on 100,000 "
        "workers under muon, and holds it all at once. This is how the program cuts muon, muonsign "
        "and the EF21 methods, so it is their limit. The columns *even* average or count over "
        "equal shards first and put a matrix together at its owner afterwards, which costs at most "
        "two more transfers of one matrix; the program does not do that yet. EF21's messages are "
        "compressed by matrix and would need trees of partial sums.\n",
        6. * models[1].shape.layers, bytes_text(a, owners.busiest / 2));
    fprintf(
        f,
        "- **Messages** break at 10,000 to 100,000 workers. A flat exchange is %s messages of %s "
        "each per worker and step: %s in a datacentre against %s of bytes, and %s at home if each "
        "waited for the last. Two levels of sqrt(N) cut them to %s for hardly more bytes, since "
        "between groups counts of a shard travel, one shard in sqrt(N) of the model. ",
        count_text(a, flat.messages), bytes_text(b, least->hidden / 8 / 1e5),
        time_text(c, flat.messages * s->here.overhead),
        time_text((char[32]){0}, flat.busiest / links[0].rate),
        time_text((char[32]){0}, link_of_program(&flat, &links[2])),
        count_text((char[32]){0}, round(levels.messages)));
    fprintf(
        f,
        "Counts travel and not verdicts, because a majority of majorities is not the majority.\n"
        "- **Several workers behind one link** divide it. The hierarchical vote sends one message "
        "of counts per machine, ceil(log2(L+1)) bits per weight up and one down, where L ballots "
        "and L verdicts went: 5 bits per weight for L = 8 instead of 16.\n");
    fprintf(
        f,
        "- **Memory** is the first limit for 7B on any ordinary machine: parameters, gradients, "
        "packed matrices, activations, momentum and messages are all held whole by every worker. "
        "What grows with the number of workers is only the inbox of owners. State per weight is 4 "
        "bytes for signmuon with `--aux sign`, 8 for adamw, 8 and more for ef21-muon.\n"
        "- **The batch** breaks before any of this at 100,000 workers: one sequence each are %s "
        "tokens per step for 7B, %.0f times the batch that it is trained with. The tables say what "
        "a "
        "step costs there, not what it is worth.\n\n",
        count_text(a, 1e5 * models[3].shape.context),
        1e5 * models[3].shape.context / models[3].batch);
}

static void write_page(FILE *f, Scale *s) {
    fprintf(f, "# From 8 to 100,000 workers, on paper\n\nWritten by `make scale` on: %s\n\n",
            s->cpu);
    fprintf(f, method_of_page, s->tflops, s->gbytes, COMM_MAX_WORKERS);
    fprintf(f, "## What breaks first, and what the design does about it\n\n");
    write_advice(f, s);
    fprintf(f, "## Measured here\n\n");
    write_rates(f, s);
    fprintf(f,
            "\nThe predictor against runs of this program: the model of `make train`, %d workers "
            "of two "
            "threads that share this machine through memory.\nBarriers, start-up of threads and "
            "caches are not in the model.\n\n",
            CHECK_WORKERS);
    write_check(f, s);
    fprintf(f, "\n## Models\n\n");
    write_models(f, s);
    fprintf(f, "Methods:\n\n");
    for (size_t r = 0; r < ROWS_ALL; r++)
        fprintf(f, "- `%s`: %s%s\n", rows[r].name, rows[r].doc,
                rows[r].flags         ? ""
                : r == MACHINE_COUNTS ? ""
                                      : " (arithmetic only)");
    fprintf(f, "\nLinks, assumed: %s; %s; %s up and down.\n\n## Time of a step\n\n", links[0].name,
            links[1].name, links[2].name);
    for (int w = 0; w < 2; w++) {
        const Speed *speed = w ? &s->faster : &s->here;
        for (int m = 1; m < MODELS; m++) {
            fprintf(f, "%s, %s:\n\n", models[m].name,
                    w ? "a worker of the supposed speed" : "every worker this CPU");
            write_steps(f, s, m, speed);
        }
        if (w == 0) fprintf(f, "![seconds of a step against workers](scale.svg)\n\n");
    }
    fprintf(f, "## Where one bit starts to pay\n\n64 workers; below this rate of every worker's "
               "link, each "
               "way, a step of signmuon is shorter. Steps are compared, not losses.\n\n");
    write_crossovers(f, s);
    fprintf(f, "![seconds of a step against rate](scale_rate.svg)\n\n## Eight workers behind one "
               "link\n\n1,024 workers on 128 machines, signmuon:\n\n");
    write_machines(f, s);
    fprintf(f, "## Messages of a flat and a two-level vote\n\n124M. Overlapped: as in the tables "
               "above; one "
               "by one: as `--link` counts.\n\n");
    write_messages(f, s);
    fprintf(
        f, "## Memory of a worker\n\nBy the program's own layout, one sequence at a time. Messages "
           "include directions and inboxes.\n\n");
    write_memory(f, s);
    fprintf(f, "## A day of training on 64 workers\n\n");
    write_days(f, s);
}

static void write_file(Scale *s, const char *path, void (*write)(FILE *, Scale *)) {
    FILE *f = fopen(path, "w");
    if (f) write(f, s);
    if (!f || ferror(f) || fclose(f)) give_up("cannot write %s: %s", path, strerror(errno));
    printf("wrote %s\n", path);
}

static double positive(const char *flag, const char *text) {
    char *end = NULL;
    double x = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end || !(x > 0) || !isfinite(x))
        give_up("%s takes a number above 0", flag);
    return x;
}

int main(int argc, char **argv) {
    static Scale scale = {.tflops = 400, .gbytes = 3000};
    Scale *s = &scale;
    char error[256];
    int quick = 0;
    for (int i = 1; i < argc; i++) {
        int help = !strcmp(argv[i], "--help");
        if (!strcmp(argv[i], "--quick")) {
            quick = 1;
        } else if (!strcmp(argv[i], "--worker-tflops")) {
            s->tflops = positive(argv[i], argv[i + 1]), i++;
        } else if (!strcmp(argv[i], "--worker-memory")) {
            s->gbytes = positive(argv[i], argv[i + 1]), i++;
        } else {
            fprintf(
                help ? stdout : stderr,
                "usage: bench/scale [--quick] [--worker-tflops X] [--worker-memory GB/s]\n"
                "Predicts steps of GPT-2 on 8 to 100,000 workers from rates measured here; writes\n"
                "docs/SCALE.md and docs/scale*.csv. --quick: prints the rates and the check "
                "only.\n");
            return help ? 0 : 2;
        }
    }
    if (!gemm_default(GEMM_F32)) give_up("no GEMM_ISA=%s here", getenv("GEMM_ISA"));
    if (!quick && access("docs", W_OK | X_OK))
        give_up("cannot write to docs/: %s; run it in the root of the repository", strerror(errno));
    need_program();
    comm_float_environment();
    if (ef_parse(&s->up, "topk:0.15+natural", error, sizeof error) ||
        ef_parse(&s->down, "natural", error, sizeof error))
        give_up("%s", error);
    int threads = (int)min_size((size_t)comm_cores(), 256);
    if (team_start(&s->team, threads, 2000)) give_up("cannot start %d threads", threads);
    describe_cpu(s->cpu, sizeof s->cpu);
    for (int m = 0; m < MODELS; m++) s->size[m] = size_of(s, &models[m]);
    check_bytes(s);
    measure(s);
    if (quick) {
        write_rates(stdout, s);
        printf("\n");
        write_check(stdout, s);
    } else {
        write_file(s, "docs/SCALE.md", write_page);
        write_file(s, "docs/scale.csv", write_csv);
        write_file(s, "docs/scale_rate.csv", write_rate_csv);
    }
    remove_folder(s->folder);
    return 0;
}
