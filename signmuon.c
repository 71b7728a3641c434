/* signmuon.c - the distributed optimizer: the papers' algorithm boxes over many workers. C11, MIT.

   A box is the numbered algorithm of a paper, and the group of functions here that follows it:

     Muon by the mean     muon_step       sgd, adamw, muon, muon-avgpolar, scion, gluon
     SignMuon             signmuon_step   signsgd, signum, lion, signmuon       arXiv 2605.16311
     MuonUSign, MuonSign  muonsign_step   an LMO after the vote
     EF21-Muon            ef21_step       compressed residuals, both ways       arXiv 2510.00643
     DeMuon               demuon_step     gossip over a graph, no server        arXiv 2510.01377

   A method is a row of the table in methods.c: its box, and the stages of that box. The stages come
   first, then the boxes, the step, the construction, state and facts.

   GROUPS   the hidden matrices are one group of tensors, all other tensors a second one with a rule
            of its own. All tensors of a group travel in one message
   BLOCKS   a block is one matrix (a fused qkv is three). What a worker does between two exchanges
            runs block by block, each on one compute thread, through all lines of a box
   SERVER   there is no server process. A message is cut into one shard per worker, and worker j is
            the server of shard j: all-to-all, merge in rank order, all-gather. Where the server
            applies an LMO or keeps state, shards are whole blocks, and each block has an owner
   MATHS    signmuon.h has the arithmetic of one block, ef21muon.h the compressors, demuon.h the
            graphs, lib/comm.h the workers
*/
#define COMM_IMPLEMENTATION
#define TEAM_IMPLEMENTATION
#include "lib/comm.h"
#include "lib/attack.h"
#include "lib/base.h"
#include "lib/gemm.h"

/* signmuon.h multiplies with gemm.h; its scratch follows the caller's. */
static inline const Gemm *sm_gemm_row(void) {
    const Gemm *g = gemm_default(GEMM_F32);
    if (!g) g = gemm_select(NULL, GEMM_F32); /* an unknown GEMM_ISA is the program's to refuse */
    return g;
}
static inline void sm_gemm(char op, float *c, const float *a, const float *b, size_t m, size_t n,
                           size_t k, float *scratch) {
    if (op == 't')
        gemm_nt(sm_gemm_row(), c, n, a, k, b, k, m, n, k, 0, scratch, 0, 1);
    else
        gemm_nn(sm_gemm_row(), c, n, a, k, b, n, m, n, k, 0, scratch, 0, 1);
}
static inline void sm_gemm_symmetric(char op, float *c, const float *a, const float *b, size_t m,
                                     size_t k, float *scratch) {
    GemmOperand columns = op == 't' ? gemm_f32(b, k, 1) : gemm_f32(b, 1, m);
    gemm_symmetric(sm_gemm_row(), c, m, gemm_f32(a, k, 1), columns, m, k, scratch);
}
#define SIGNMUON_GEMM sm_gemm
#define SIGNMUON_GEMM_SCRATCH gemm_scratch()
#define SIGNMUON_SYMMETRIC sm_gemm_symmetric
#define SIGNMUON_API /* the library exports signmuon.h's functions */
#include "signmuon.h"
#include "demuon.h"
#include "ef21muon.h"
#include "optimizer.h"

/* ------------------------------------------------------------------------------------------------
 * types */

/* The arrays of state that a method may keep, in the order in which sm_state tells them. */
typedef enum StateKind {
    FIRST,       /* momentum M, or AdamW's m */
    SECOND,      /* AdamW's v */
    LAST_SENT,   /* EF21: G_j, what the server knows of M_j; tracking: the last M_j */
    TRACKER,     /* DeMuon: V */
    MODEL,       /* EF21: X, the exact model */
    AGGREGATE,   /* EF21: G, the mean of the G_j */
    UPLINK_WARM, /* where power iterations start: the uplink's, the downlink's, a norm's */
    DOWNLINK_WARM,
    NORM_STATE,
    STATES
} StateKind;

/* Kinds that are not `per_block` are one array over the group, which gossip can send. */
static const struct {
    const char *name;
    int per_block, at_owner; /* one array per block; kept by the block's owner only */
} state_table[STATES] = {
    [FIRST] = {.name = "momentum"},
    [SECOND] = {.name = "adamw.v"},
    [LAST_SENT] = {.name = "estimate"},
    [TRACKER] = {.name = "tracker"},
    [MODEL] = {.name = "ef21.model", .per_block = 1, .at_owner = 1},
    [AGGREGATE] = {.name = "ef21.aggregate", .per_block = 1, .at_owner = 1},
    [UPLINK_WARM] = {.name = "ef21.warm.up", .per_block = 1},
    [DOWNLINK_WARM] = {.name = "ef21.warm.down", .per_block = 1, .at_owner = 1},
    [NORM_STATE] = {.name = "norm.warm", .per_block = 1},
};

typedef struct SmGroup SmGroup;

/* One matrix, or one vector. */
typedef struct SmBlock {
    SmGroup *group;
    const SmTensor *tensor;
    size_t index; /* among all blocks of the model: keys its coins */
    size_t rows, cols, size;
    size_t offset;        /* in params and grads */
    size_t element, word; /* in its group's dense and sign messages */
    size_t up, down;      /* in this step's compressed messages, in bytes */
    int owner, thread;
    double gain;           /* factor on the step size: its role's radius, its shape's gain */
    size_t floats[STATES]; /* of each kind of state; 0: the method keeps none */
    float *state[STATES];  /* NULL: not kept on this worker */
    float *u;              /* the direction that a box works on: its part of the dense message */
    float *scratch;        /* its thread's */
} SmBlock;

/* The tensors under one rule. */
struct SmGroup {
    const SmMethod *method;
    /* norms whose LMO is applied by a worker, to the merged message, to the vote; or NULL. Tensors
     * that are not hidden matrices take the norm of their role there */
    const SmNorm *worker_map, *server_map, *vote_map;
    SmDownlink downlink;
    CommKind kind;
    SmBlock *blocks; /* of one table: the second group's follow the first's */
    size_t count, elements, words;
    size_t *cut_element, *cut_word; /* shard j is [cut[j], cut[j+1]) */
    size_t first, mine;             /* my shard: entries of the dense message, and */
    size_t first_word, my_words;    /* words of the sign message */
    float *vector[STATES];
    double lr;
};

struct SmOptimizer {
    SmConfig config;
    Comm *comm;
    const SmTensor *tensors;
    size_t tensor_count;
    int rank, size, threads;
    SmGroup group[2]; /* hidden matrices; all others */
    void *arena;      /* memory of all pointers after `mixing`, and of all state */

    const SmNewtonSchulz *ns; /* what the names in `config` stand for */
    SmZero zeros, ties;
    Attack attack;
    EfLink links[2], identity; /* up and down; of vectors */
    DmGraph graph;
    double *mixing; /* its matrices */

    float *direction;          /* the dense message: every block's u */
    uint64_t *signs, *nonzero; /* the sign message; zeros abstain: 1 where it counts */
    uint64_t *vote, *decided;  /* its result; ties abstain: where there is one */
    char *residuals, *shifts;  /* compressed messages, up and down */
    void *inbox;               /* everybody's parts of my shard */
    size_t *cut_byte, my_residuals_at,
        my_residuals_bytes;      /* of the message under way; my shard of residuals */
    const uint64_t **sign_parts; /* 2 N pointers into inbox for each thread */
    const float **float_parts;   /* pointers to what gossip mixes, for each thread */
    float *mixed;                /* what gossip is mixing */
    int *source;                 /* whose vectors, with which weights */
    double *weight;
    size_t sources, most_sources;
    float *scratch; /* scratch_floats for each thread */
    size_t scratch_floats;
    double *square; /* per tensor: squared norm of the gradient */

    float *params; /* of the step under way */
    const float *grads;
    uint64_t step;
    float clip_factor;   /* what clipping leaves of the gradient */
    double length;       /* |V| over all tensors, for steps of unit length */
    _Atomic int refused; /* a thread met a message that it cannot use */
    int exchange;        /* messages exchanged in this step */
    SmFault fault;
    double agreement;
    SmDevice *device; /* does the stages, and has the state; NULL: the host does */
};

/* ------------------------------------------------------------------------------------------------
 * threads */

typedef void BlockFunction(SmOptimizer *o, SmBlock *b);
typedef void SliceFunction(SmOptimizer *o, SmGroup *g, size_t from, size_t to, int thread);

typedef struct Work {
    SmOptimizer *o;
    SmGroup *g;
    BlockFunction *block;
    SliceFunction *slice;
    size_t n;
} Work;

static void run_work(void *context, int thread, int threads) {
    const Work *w = context;
    size_t n = (size_t)threads, k = (size_t)thread;
    if (w->slice) w->slice(w->o, w->g, w->n * k / n, w->n * (k + 1) / n, thread);
    for (size_t i = 0; w->block && i < w->g->count; i++)
        if (w->g->blocks[i].thread == thread) w->block(w->o, &w->g->blocks[i]);
}

/* function(o, b) for every block of the group, each on its own thread */
static void for_blocks(SmOptimizer *o, SmGroup *g, BlockFunction *function) {
    Work work = {.o = o, .g = g, .block = function};
    team_run(o->comm->team, run_work, &work);
}

/* function(o, g, from, to, thread) for the slices of 0 .. n-1, one on each thread */
static void for_slices(SmOptimizer *o, SmGroup *g, size_t n, SliceFunction *function) {
    Work work = {.o = o, .g = g, .slice = function, .n = n};
    team_run(o->comm->team, run_work, &work);
}

/* ------------------------------------------------------------------------------------------------
 * keys of random numbers: coins of a worker have its rank in the stream, shared coins have not */

enum { SIGNS, LINKS, ATTACKS }; /* what the numbers are for */

static uint64_t stream_of(const SmBlock *b, uint64_t purpose, int sender) {
    return purpose << 48 | (uint64_t)b->index << 16 | (uint64_t)sender;
}
static uint64_t block_key(const SmOptimizer *o, const SmBlock *b, uint64_t purpose, int sender) {
    return sm_key(o->config.seed, stream_of(b, purpose, sender), o->step);
}
static uint64_t shared_key(const SmOptimizer *o, const SmBlock *b, uint64_t purpose) {
    return block_key(o, b, purpose, 0);
}
static uint64_t worker_key(const SmOptimizer *o, const SmBlock *b, uint64_t purpose) {
    return block_key(o, b, purpose, o->rank + 1);
}
static uint64_t server_key(const SmOptimizer *o, const SmBlock *b) { /* rounding of the downlink */
    return block_key(o, b, LINKS, COMM_MAX_WORKERS + 1);
}

/* ------------------------------------------------------------------------------------------------
 * stages of one block, on its direction u */

/* M <- mu M + (1-mu) G and u <- M, or with Nesterov's look-ahead; Lion's two averages; or u <- G.
 * Before that the gradient is clipped, and coupled decay joins it: G + wd W. */
static void momentum(SmOptimizer *o, SmBlock *b) {
    const SmConfig *c = &o->config;
    const float *grad = o->grads + b->offset, *w = o->params + b->offset;
    SmEstimate estimate = b->group->method->estimate;
    float *u = b->u, *m = b->state[FIRST], mu = (float)c->momentum;
    if (o->clip_factor < 1) {
        for (size_t i = 0; i < b->size; i++) u[i] = o->clip_factor * grad[i];
        grad = u;
    }
    if (c->coupled_decay && b->tensor->decay) {
        for (size_t i = 0; i < b->size; i++) u[i] = grad[i] + (float)c->weight_decay * w[i];
        grad = u;
    }
    if (c->first_gradient && o->step == 0) mu = 0;
    if (estimate == SM_GLUON) mu = (float)(1 - 1 / sqrt((double)o->step + 1));
    if (estimate == SM_LION)
        sm_lion(u, m, grad, b->size, (float)c->beta1, mu);
    else if (estimate != SM_GRADIENT)
        sm_momentum(u, m, grad, b->size, mu, c->nesterov);
    else if (grad != u)
        memcpy(u, grad, b->size * sizeof *u);
}

/* The norm of a tensor whose group has `map`: that of hidden matrices, or Scion's of its role. */
static const SmNorm *norm_of(const SmTensor *t, const SmNorm *map) {
    if (!map || t->role == SM_HIDDEN) return map;
    return sm_norm(t->role == SM_VECTOR ? "rms" : t->role == SM_INPUT ? "sign" : "sign-output");
}

/* u <- LMO(u); nothing where the group has no map */
static void lmo(SmOptimizer *o, SmBlock *b, const SmNorm *map) {
    const SmNorm *norm = norm_of(b->tensor, map);
    if (norm) norm->lmo(b->u, b->u, b->rows, b->cols, o->ns, b->state[NORM_STATE], b->scratch);
}

/* x (size floats) <- what a Byzantine worker sends in its place; the last workers are Byzantine */
static void attack(SmOptimizer *o, SmBlock *b, float *x) {
    if (o->rank < o->size - o->config.adversaries) return;
    attack_apply(&o->attack, x, b->size, worker_key(o, b, ATTACKS));
}

/* S <- sign(u), one bit per weight; a zero becomes a coin of this worker's */
static void pack_signs(SmOptimizer *o, SmBlock *b) {
    sm_pack(o->signs + b->word, b->u, b->size, o->zeros, worker_key(o, b, SIGNS));
    if (o->zeros == SM_ABSTAIN) sm_present(o->nonzero + b->word, b->u, b->size);
}

/* Factor that decoupled weight decay leaves of a weight. */
static float decay_factor(const SmOptimizer *o, const SmBlock *b) {
    const SmConfig *c = &o->config;
    if (b->group->method->update == SM_FRANK_WOLFE) return (float)(1 - b->group->lr);
    int decays = b->tensor->decay && !c->coupled_decay;
    return decays ? (float)(1 - b->group->lr * c->weight_decay) : 1.0f;
}

static float step_size(const SmBlock *b) { return (float)(b->group->lr * b->gain); }

/* W <- (1 - lr wd) W - lr s u, or AdamW's step with u as the gradient */
static void step_along(SmOptimizer *o, SmBlock *b) {
    const SmConfig *c = &o->config;
    float *w = o->params + b->offset, keep = decay_factor(o, b);
    if (b->group->method->update == SM_ADAMW)
        sm_adamw(w, b->state[FIRST], b->state[SECOND], b->u, b->size, o->step + 1, b->group->lr,
                 c->beta1, c->beta2, c->epsilon, keep);
    else
        sm_step_dense(w, b->u, b->size, step_size(b), keep);
}

/* The result of the vote on block b: where it decided, or NULL for everywhere. */
static const uint64_t *decided_bits(const SmOptimizer *o, const SmBlock *b) {
    return o->ties == SM_ABSTAIN ? o->decided + b->word : NULL;
}

/* W <- (1 - lr wd) W - lr s V */
static void step_along_vote(SmOptimizer *o, SmBlock *b) {
    sm_apply(o->params + b->offset, o->vote + b->word, decided_bits(o, b), b->size, step_size(b),
             decay_factor(o, b));
}

/* W <- (1 - lr wd) W - lr s polar(V), at no further communication */
static void step_along_polar_of_vote(SmOptimizer *o, SmBlock *b) {
    sm_unpack(b->u, o->vote + b->word, decided_bits(o, b), b->size);
    lmo(o, b, b->group->vote_map);
    step_along(o, b);
}

/* ------------------------------------------------------------------------------------------------
 * messages that are refused. One check per kind of message: threads note that something is wrong,
 * and then it is looked up who sent it. */

enum { NOT_FINITE = 1, MALFORMED = 2 };

static void blame(SmOptimizer *o, int kind, int sender, const SmTensor *tensor) {
    if (o->fault.kind) return;
    o->fault = (SmFault){.kind = kind,
                         .exchange = o->exchange,
                         .sender = sender,
                         .tensor = (int32_t)(tensor - o->tensors)};
}

/* x (n floats), which begin at `element` of a group's dense message, must be finite. */
static void check_dense(SmOptimizer *o, const SmGroup *g, int sender, const float *x, size_t n,
                        size_t element) {
    const SmBlock *b = g->blocks;
    size_t i = 0;
    while (i < n && isfinite(x[i])) i++;
    if (i == n) return;
    while (b->element + b->size <= element + i) b++;
    blame(o, NOT_FINITE, sender, b->tensor);
}

/* The bits after the end of each block in my shard of the sign messages must be 0. */
static void check_signs(SmOptimizer *o, const SmGroup *g, int planes) {
    size_t from = g->first_word, mine = g->my_words;
    const uint64_t *in = o->inbox;
    for (size_t i = 0; i < g->count; i++) {
        const SmBlock *b = &g->blocks[i];
        size_t last = b->word + sm_words(b->size) - 1;
        if (b->size % 64 == 0 || last < from || last >= from + mine) continue;
        uint64_t padding = ~(uint64_t)0 << b->size % 64;
        for (int j = 0; j < planes * o->size; j++)
            if (in[(size_t)j * mine + last - from] & padding)
                blame(o, MALFORMED, j % o->size, b->tensor);
    }
}

/* The compressor of a tensor, its message's bytes in this step, and worker j's residual of b. */
static const EfLink *link_of(const SmOptimizer *o, const SmTensor *t, int down) {
    return t->role == SM_VECTOR ? &o->identity : &o->links[down];
}
static size_t message_bytes(const SmOptimizer *o, const SmBlock *b, int down) {
    return ef_bytes(link_of(o, b->tensor, down), b->rows, b->cols, shared_key(o, b, LINKS));
}
static const char *residual_of(const SmOptimizer *o, const SmBlock *b, int j) {
    return (char *)o->inbox + (size_t)j * o->my_residuals_bytes + (b->up - o->my_residuals_at);
}

/* Compressed messages must decode: the residuals of my blocks, or everybody's shifts. */
static void check_compressed(SmOptimizer *o, const SmGroup *g, int down) {
    for (size_t i = 0; o->refused && i < g->count; i++)
        for (int j = 0; j < o->size; j++) {
            const SmBlock *b = &g->blocks[i];
            if (b->owner != (down ? j : o->rank)) continue;
            int bad = ef_decode(b->u, down ? o->shifts + b->down : residual_of(o, b, j),
                                message_bytes(o, b, down), b->rows, b->cols,
                                link_of(o, b->tensor, down), b->scratch);
            if (bad) blame(o, bad == EF_NOT_FINITE ? NOT_FINITE : MALFORMED, j, b->tensor);
        }
    o->refused = 0;
    o->exchange++;
}

/* ------------------------------------------------------------------------------------------------
 * exchanges of a group's messages */

/* cuts in units of `width` bytes */
static const size_t *in_bytes(SmOptimizer *o, const size_t *cuts, size_t width) {
    for (int j = 0; j <= o->size; j++) o->cut_byte[j] = cuts[j] * width;
    return o->cut_byte;
}

static void average_slice(SmOptimizer *o, SmGroup *g, size_t from, size_t to, int thread) {
    const float *in = o->inbox;
    float *mean = o->direction + g->first;
    (void)thread;
    for (size_t i = from; i < to; i++) {
        double sum = 0;
        for (int j = 0; j < o->size; j++) sum += (double)in[(size_t)j * g->mine + i];
        mean[i] = (float)(sum / o->size);
    }
    if (!sm_finite(mean + from, to - from)) o->refused = 1; /* then a worker's part is not either */
}

/* u <- mean of the workers' u, on my shard: summed in rank order in double. If all workers send
 * the same, the mean is that, bit for bit */
static void mean_of_workers(SmOptimizer *o, SmGroup *g) {
    const float *in = o->inbox;
    comm_alltoall(o->comm, o->direction, in_bytes(o, g->cut_element, 4), o->inbox, g->kind);
    for_slices(o, g, g->mine, average_slice);
    if (o->refused) {
        for (int j = 0; j < o->size; j++)
            check_dense(o, g, j, in + (size_t)j * g->mine, g->mine, g->first);
        memset(o->direction + g->first, 0, g->mine * sizeof(float));
        o->refused = 0;
    }
    o->exchange++;
}

/* every shard of u to everybody */
static void share_directions(SmOptimizer *o, SmGroup *g) {
    comm_allgather(o->comm, o->direction, in_bytes(o, g->cut_element, 4), g->kind);
}

static void vote_slice(SmOptimizer *o, SmGroup *g, size_t from, size_t to, int thread) {
    size_t n = (size_t)o->size, first = g->first_word + from;
    const uint64_t *in = o->inbox;
    const uint64_t **parts = o->sign_parts + (size_t)thread * 2 * n;
    for (size_t j = 0; j < 2 * n; j++) parts[j] = in + j * g->my_words + from;
    sm_vote(o->vote + first, o->decided + first, parts, o->zeros == SM_ABSTAIN ? parts + n : NULL,
            n, to - from, o->ties,
            sm_key(o->config.seed, (uint64_t)(g - o->group + 1) << 56, o->step), first);
}

/* V <- majority(S_1 .. S_N), on my shard */
static void majority_vote(SmOptimizer *o, SmGroup *g) {
    size_t bytes = (size_t)o->size * g->my_words * 8;
    int planes = o->zeros == SM_ABSTAIN ? 2 : 1;
    in_bytes(o, g->cut_word, 8);
    comm_alltoall(o->comm, o->signs, o->cut_byte, o->inbox, g->kind);
    if (planes == 2)
        comm_alltoall(o->comm, o->nonzero, o->cut_byte, (char *)o->inbox + bytes, g->kind);
    check_signs(o, g, planes);
    o->exchange++;
    for_slices(o, g, g->my_words, vote_slice);
}

/* every shard of V to everybody */
static void share_vote(SmOptimizer *o, SmGroup *g) {
    comm_allgather(o->comm, o->vote, in_bytes(o, g->cut_word, 8), g->kind);
    if (o->ties == SM_ABSTAIN) comm_allgather(o->comm, o->decided, o->cut_byte, g->kind);
}

/* Where the blocks lie in this step's compressed message, whose sizes may depend on coins. */
static const size_t *lay_out_message(SmOptimizer *o, SmGroup *g, int down) {
    size_t at = 0;
    int owner = 0;
    o->cut_byte[0] = 0;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        while (owner < b->owner) o->cut_byte[++owner] = at;
        *(down ? &b->down : &b->up) = at;
        at += message_bytes(o, b, down);
    }
    while (owner < o->size) o->cut_byte[++owner] = at;
    if (!down) {
        o->my_residuals_at = o->cut_byte[o->rank];
        o->my_residuals_bytes = o->cut_byte[o->rank + 1] - o->my_residuals_at;
    }
    return o->cut_byte;
}

/* Gossip sends its vector in pieces: of an outbox, or of floats that let all sources fit 16 MB. */
enum { GOSSIP_FLOATS = 1 << 22, GOSSIP_LEAST = 1024 };
static size_t gossip_piece(size_t sources) {
    size_t n = GOSSIP_FLOATS / sources, most = COMM_OUTBOX / sizeof(float);
    return n > most ? most : n < GOSSIP_LEAST ? GOSSIP_LEAST : n;
}

static void mix_slice(SmOptimizer *o, SmGroup *g, size_t from, size_t to, int thread) {
    const float **parts = o->float_parts + (size_t)(thread + 1) * o->most_sources;
    float *out = o->mixed + from;
    (void)g;
    for (size_t k = 0; k < o->sources; k++) parts[k] = o->float_parts[k] + from;
    dm_mix(out, parts, o->weight, o->sources, to - from);
    if (!sm_finite(out, to - from)) o->refused = 1; /* then a source is not either */
}

/* x_i <- sum_j w_ij x_j over the group's elements, so many times. Graphs that change from round to
 * round count rounds from the start of the run. */
static void gossip(SmOptimizer *o, SmGroup *g, float *x, int rounds) {
    size_t piece = gossip_piece(o->most_sources);
    for (int k = 0; k < rounds; k++, o->exchange++) {
        uint64_t round = o->step * (uint64_t)rounds + (uint64_t)k;
        size_t destinations = dm_degree(&o->graph, round, o->rank, 1);
        o->sources = dm_sources(&o->graph, round, o->rank, o->source, o->weight);
        for (size_t at = 0; at < g->elements; at += piece) {
            size_t n = g->elements - at < piece ? g->elements - at : piece;
            o->mixed = x + at;
            comm_neighbours(o->comm, o->mixed, n * sizeof *x, o->source, o->sources, destinations,
                            o->inbox, g->kind);
            for (size_t j = 0; j < o->sources; j++)
                o->float_parts[j] = (const float *)o->inbox + j * n;
            for_slices(o, g, n, mix_slice);
            if (!o->refused) continue;
            for (size_t j = 0; j < o->sources; j++)
                check_dense(o, g, o->source[j], o->float_parts[j], n, at);
            memset(o->mixed, 0, n * sizeof *x);
            o->refused = 0;
        }
    }
}

// clang-format off
/* ------------------------------------------------------------------------------------------------
 * Muon by the mean of the workers' directions (Jordan et al. 2024; Scion, arXiv 2502.07529; Gluon,
 * arXiv 2505.13416): sgd, adamw, muon, muon-avgpolar, scion, gluon */

static void muon_worker(SmOptimizer *o, SmBlock *b) {
    momentum(o, b);                                 /* M <- mu M + (1-mu) G                    */
    lmo(o, b, b->group->worker_map);                /* D <- LMO(M)         muon-avgpolar       */
    attack(o, b, b->u);
}

static void muon_server(SmOptimizer *o, SmBlock *b) {
    if (b->owner != o->rank) return;
    lmo(o, b, b->group->server_map);                /* D <- LMO(D)         muon, scion, gluon  */
}

/* The whole of it for one worker: each block goes through while it is in cache. */
static void muon_alone(SmOptimizer *o, SmBlock *b) {
    muon_worker(o, b);
    muon_server(o, b);
    step_along(o, b);
}

static void muon_step(SmOptimizer *o, SmGroup *g) {
    if (o->size == 1) {
        for_blocks(o, g, muon_alone);
        return;
    }
    for_blocks(o, g, muon_worker);
    mean_of_workers(o, g);                          /* D <- mean of D_1 .. D_N                 */
    if (g->server_map) for_blocks(o, g, muon_server);
    share_directions(o, g);
    for_blocks(o, g, step_along);                   /* W <- (1 - lr wd) W - lr s D             */
}

/* ------------------------------------------------------------------------------------------------
 * SignMuon (arXiv 2605.16311, Algorithm 1), signSGD with majority vote (arXiv 1810.05291), signum,
 * Lion, and the sign of any LMO; polar-after-vote is SignMuon's local polar step. The row has the
 * LMO that a worker applies: signmuon the polar factor; signsgd, signum and lion none. Embeddings
 * and vectors come here with aux "sign" or "same"; with "adamw" they take muon_step, as a mean. */

static void signmuon_worker(SmOptimizer *o, SmBlock *b) {
    momentum(o, b);                                 /* M <- mu M + (1-mu) G                    */
    lmo(o, b, b->group->worker_map);                /* O <- polar(M)                           */
    attack(o, b, b->u);
    pack_signs(o, b);                               /* S <- sign(O)                            */
}

static void signmuon_step(SmOptimizer *o, SmGroup *g) {
    for_blocks(o, g, signmuon_worker);
    majority_vote(o, g);                            /* V <- majority(S_1 .. S_N)               */
    share_vote(o, g);
    if (!g->vote_map)
        for_blocks(o, g, step_along_vote);          /* W <- (1 - lr wd) W - lr s V             */
    else
        for_blocks(o, g, step_along_polar_of_vote); /* W <- (1 - lr wd) W - lr s polar(V)      */
}

/* ------------------------------------------------------------------------------------------------
 * MuonUSign and MuonSign: the signs of momenta are voted on, and the owner of a block applies the
 * LMO to the vote */

static void muonsign_server(SmOptimizer *o, SmBlock *b) {
    if (b->owner != o->rank) return;
    uint64_t *vote = o->vote + b->word;
    sm_unpack(b->u, vote, o->decided + b->word, b->size);
    lmo(o, b, b->group->server_map);                /* O <- polar(V)                           */
    if (b->group->downlink == SM_DENSE) return;
    sm_pack(vote, b->u, b->size, o->ties, shared_key(o, b, SIGNS)); /* V <- sign(O)            */
    if (o->ties == SM_ABSTAIN) sm_present(o->decided + b->word, b->u, b->size);
}

static void muonsign_step(SmOptimizer *o, SmGroup *g) {
    for_blocks(o, g, signmuon_worker);              /* S <- sign(M): the row has no worker map */
    majority_vote(o, g);                            /* V <- majority(S_1 .. S_N)               */
    for_blocks(o, g, muonsign_server);
    if (g->downlink == SM_DENSE) {                  /* MuonUSign                               */
        share_directions(o, g);
        for_blocks(o, g, step_along);               /* W <- (1 - lr wd) W - lr s O             */
    } else {                                        /* MuonSign                                */
        share_vote(o, g);
        for_blocks(o, g, step_along_vote);          /* W <- (1 - lr wd) W - lr s V             */
    }
}

/* ------------------------------------------------------------------------------------------------
 * EF21-Muon (arXiv 2510.00643, Algorithm 3), lines numbered as there. A step begins with W2,
 * since the gradients are the caller's, and ends with W1. Every block has an owner, which is its
 * server. The identity as a compressor sends its target itself; with it on the downlink, X is W. */

static void ef21_worker(SmOptimizer *o, SmBlock *b) {
    const EfLink *up = link_of(o, b->tensor, 0);
    float *g_j = b->state[LAST_SENT], *m_j = b->u;
    momentum(o, b);                                 /* W2  M_j <- mu M_j + (1-mu) G            */
    lmo(o, b, b->group->worker_map);                /*     ef21-signmuon: polar(M_j)           */
    attack(o, b, m_j);
    ef_send(o->residuals + b->up, g_j, m_j,         /* W3  R_j <- C(M_j - G_j)                 */
            b->rows, b->cols, up,                   /* W4  G_j <- G_j + R_j                    */
            worker_key(o, b, LINKS), shared_key(o, b, LINKS), b->state[UPLINK_WARM], b->scratch);
}

static void ef21_server(SmOptimizer *o, SmBlock *b) {
    if (b->owner != o->rank) return;
    const EfLink *up = link_of(o, b->tensor, 0), *down = link_of(o, b->tensor, 1);
    float *w = o->params + b->offset, *aggregate = b->state[AGGREGATE];
    float *x = b->state[MODEL] ? b->state[MODEL] : w;
    if (x != w && o->step == 0) memcpy(x, w, b->size * sizeof *x);
    if (ef_aggregate(aggregate, residual_of(o, b, 0), /* S4  G <- G + mean R_j                   */
                     o->my_residuals_bytes, message_bytes(o, b, 0), o->size, b->rows, b->cols, up,
                     b->scratch))
        o->refused = 1;
    memcpy(b->u, aggregate, b->size * sizeof *aggregate);
    lmo(o, b, b->group->server_map);                /*     O <- LMO(G)                         */
    sm_step_dense(x, b->u, b->size, step_size(b),   /* S1  X <- (1 - lr wd) X - lr s O         */
                  decay_factor(o, b));
    ef_send(o->shifts + b->down, w, x,              /* S2  S <- C(X - W)                       */
            b->rows, b->cols, down,                 /* S3  W <- W + S                          */
            server_key(o, b), shared_key(o, b, LINKS), b->state[DOWNLINK_WARM], b->scratch);
}

static void ef21_downlink(SmOptimizer *o, SmBlock *b) {
    if (b->owner == o->rank) return;
    if (ef_receive(o->params + b->offset,           /* W1  W <- W + S                          */
                   o->shifts + b->down, message_bytes(o, b, 1), b->rows, b->cols,
                   link_of(o, b->tensor, 1), b->scratch))
        o->refused = 1;
}

static void ef21_step(SmOptimizer *o, SmGroup *g) {
    const size_t *cuts = lay_out_message(o, g, 0);
    for_blocks(o, g, ef21_worker);
    comm_alltoall(o->comm, o->residuals, cuts, o->inbox, g->kind);
    cuts = lay_out_message(o, g, 1);
    for_blocks(o, g, ef21_server);
    check_compressed(o, g, 0);
    comm_allgather(o->comm, o->shifts, cuts, g->kind);
    for_blocks(o, g, ef21_downlink);
    check_compressed(o, g, 1);
}

/* ------------------------------------------------------------------------------------------------
 * DeMuon (arXiv 2510.01377, Algorithm 1) and its baselines: no server, every worker has a model of
 * its own. Methods without a tracker step along M. */

static void demuon_correct(SmOptimizer *o, SmBlock *b) {
    float *v = b->state[TRACKER], *m_last = b->state[LAST_SENT];
    momentum(o, b);                                 /* M <- mu M + (1-mu) G                    */
    dm_track(v, b->u, m_last, b->size);             /* U <- V + M - M_last, in V's place       */
    memcpy(m_last, b->u, b->size * sizeof *m_last);
    attack(o, b, v);
}

static void demuon_move(SmOptimizer *o, SmBlock *b) {
    float *v = b->state[TRACKER];
    if (v)
        memcpy(b->u, v, b->size * sizeof *v);
    else
        momentum(o, b);                             /* M <- mu M + (1-mu) G                    */
    if (b->group->method->update == SM_UNIT)
        sm_scale(b->u, b->size, o->length > 0 ? 1 / o->length : 0);
    lmo(o, b, b->group->worker_map);                /* O <- polar(V)                           */
    step_along(o, b);                               /* X <- (1 - lr wd) X - lr s O             */
    memcpy(b->u, o->params + b->offset, b->size * sizeof(float));
    if (!v) attack(o, b, b->u);                     /* with a tracker the attack was on V      */
}

static void demuon_take(SmOptimizer *o, SmBlock *b) {
    memcpy(o->params + b->offset, b->u, b->size * sizeof(float));
}

/* |V| over all tensors whose steps have unit length together */
static double tracker_length(const SmOptimizer *o) {
    double sum = 0;
    for (const SmGroup *g = o->group; g < o->group + 2; g++)
        for (size_t i = 0; i < g->count && g->method->update == SM_UNIT; i++)
            sum += sm_sum_squares(g->blocks[i].state[TRACKER], g->blocks[i].size);
    return sqrt(sum);
}

static void demuon_step(SmOptimizer *o) {
    const int *rounds = o->config.rounds;
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        if (!g->vector[TRACKER]) continue;
        for_blocks(o, g, demuon_correct);
        gossip(o, g, g->vector[TRACKER], rounds[0]); /* V_i <- sum_j w_ij U_j                  */
    }
    o->length = tracker_length(o);
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        for_blocks(o, g, demuon_move);
        gossip(o, g, o->direction, rounds[1]);      /* X_i <- sum_j w_ij X_j                   */
        for_blocks(o, g, demuon_take);
        if (g->method->update != SM_ADAMW) continue;
        gossip(o, g, g->vector[FIRST], rounds[1]);  /* AdamW's moments stay near one another   */
        gossip(o, g, g->vector[SECOND], rounds[1]);
    }
}
/* ------------------------------------------------------------------------------------------------
 * the boxes muon_step and signmuon_step with their stages on a device. Between the workers' stages
 * and the servers' messages pass through the host's arrays; one worker alone needs none. */

static void device_vote(SmOptimizer *o, SmGroup *g, const SmDeviceStep *x) {
    SmDevice *d = o->device;
    const size_t bytes = g->words * sizeof *o->vote;
    d->pack(d, g != o->group, x);                   /* S <- sign(O)                            */
    if (o->size == 1) return;                       /* V <- S                                  */
    d->copy(d, o->signs, d->signs, bytes);
    majority_vote(o, g);                            /* V <- majority(S_1 .. S_N)               */
    share_vote(o, g);
    d->copy(d, d->signs, o->vote, bytes);
}

static void device_mean(SmOptimizer *o, SmGroup *g, const SmDeviceStep *x) {
    SmDevice *d = o->device;
    const size_t bytes = g->elements * sizeof(float), mine = g->mine * sizeof(float);
    if (o->size > 1) {
        d->copy(d, o->direction, d->direction, bytes);
        mean_of_workers(o, g);                      /* D <- mean of D_1 .. D_N                 */
    }
    if (g->server_map) {
        if (o->size > 1) d->copy(d, d->direction + g->first, o->direction + g->first, mine);
        d->polar_of_mine(d, 0, x);                  /* D <- polar(D)                           */
        if (o->size > 1) d->copy(d, o->direction + g->first, d->direction + g->first, mine);
    }
    if (o->size == 1) return;
    share_directions(o, g);
    d->copy(d, d->direction, o->direction, bytes);
}

static void device_step(SmOptimizer *o, SmGroup *g) {
    SmDevice *d = o->device;
    const SmConfig *c = &o->config;
    const SmMethod *m = g->method;
    const int k = g != o->group;
    const double t = (double)o->step + 1;
    const float mu = c->first_gradient && o->step == 0 ? 0 : (float)c->momentum;
    const SmDeviceStep x = {
        .params = o->params, .grads = o->grads,
        .seed = c->seed, .step = o->step, .coins = o->zeros == SM_COIN,
        .momentum = m->estimate == SM_MOMENTUM, .nesterov = c->nesterov,
        .clip = o->clip_factor, .mu = mu, .nu = 1 - mu,
        .lr = g->lr, .keep = (float)(1 - g->lr * c->weight_decay),
        .b1 = (float)c->beta1, .n1 = (float)(1 - c->beta1),
        .b2 = (float)c->beta2, .n2 = (float)(1 - c->beta2), .epsilon = (float)c->epsilon,
        .size = (float)(g->lr / (1 - pow(c->beta1, t))),
        .root = (float)(1 / sqrt(1 - pow(c->beta2, t))),
        .safety = o->ns->safety, .coefficient = o->ns->coefficient, .ns_steps = o->ns->steps};
    d->momentum(d, k, &x);                          /* M <- mu M + (1-mu) G                    */
    if (g->worker_map) d->polar(d, k, &x);          /* D <- polar(M)                           */
    if (m->combine == SM_VOTE)
        device_vote(o, g, &x);
    else
        device_mean(o, g, &x);
    if (g->vote_map) {                              /* D <- polar(V)                           */
        d->unpack(d, k, &x);
        d->polar(d, k, &x);
    }
    if (m->combine == SM_VOTE && !g->vote_map)
        d->apply(d, k, &x);                         /* W <- (1 - lr wd) W - lr s V             */
    else if (m->update == SM_ADAMW)
        d->adamw(d, k, &x);
    else
        d->step(d, k, &x);                          /* W <- (1 - lr wd) W - lr s D             */
}
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * a step */

static void sum_squares_of_tensors(SmOptimizer *o, SmGroup *g, size_t from, size_t to, int thread) {
    (void)g, (void)thread;
    for (size_t t = from; t < to; t++) {
        const SmTensor *x = &o->tensors[t];
        o->square[t] = sm_sum_squares(o->grads + x->offset, x->blocks * x->rows * x->cols);
    }
}

/* What clipping leaves of this worker's gradient. */
static float clip_factor(SmOptimizer *o) {
    double power = o->group[0].method->clip_power, sum = 0;
    double clip = o->config.clip * pow((double)o->step + 1, power);
    if (o->config.clip <= 0) return 1;
    if (o->device) {
        sum = o->device->squares(o->device, o->grads);
    } else {
        for_slices(o, NULL, o->tensor_count, sum_squares_of_tensors);
        for (size_t t = 0; t < o->tensor_count; t++) sum += o->square[t];
    }
    return sum > clip * clip ? (float)(clip / sqrt(sum)) : 1;
}

/* Share of this worker's signs that the vote confirmed. */
static double agreement(const SmOptimizer *o, const SmGroup *g) {
    double differ = 0;
    if (o->device && o->size == 1) return 1; /* its signs are the vote */
    for (size_t k = 0; k < g->words; k++) differ += __builtin_popcountll(o->vote[k] ^ o->signs[k]);
    return 1 - differ / (double)g->elements;
}

int sm_step(SmOptimizer *o, float *params, const float *grads, uint64_t step, double lr,
            double aux_lr) {
    o->params = params;
    o->grads = grads;
    o->step = step;
    o->group[0].lr = lr;
    o->group[1].lr = aux_lr;
    o->fault = (SmFault){.kind = 0};
    o->exchange = 0;
    o->clip_factor = clip_factor(o);
    if (!sm_has_server(o->group[0].method)) demuon_step(o);
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        if (g->count == 0) continue;
        SmCombine combine = g->method->combine;
        int hidden = g == o->group;
        if (o->device)
            device_step(o, g);
        else if (combine == SM_MEAN && sm_has_server(o->group[0].method))
            muon_step(o, g);
        else if (combine == SM_VOTE && !g->server_map)
            signmuon_step(o, g);
        else if (combine == SM_VOTE)
            muonsign_step(o, g);
        else if (combine == SM_FEEDBACK)
            ef21_step(o, g);
        if (hidden && combine == SM_VOTE && g->downlink == SM_SIGN) o->agreement = agreement(o, g);
    }
    if (sm_device_error(o)) return SM_FAILED;
    return o->fault.kind ? SM_BAD_MESSAGE : 0;
}

/* ------------------------------------------------------------------------------------------------
 * construction: rows for names, then the table of blocks, then everything else in one arena */

static int same_name(const char *a, const char *b) { return a && b && strcmp(a, b) == 0; }

static SmZero zero_rule(const char *name) {
    return same_name(name, "plus") ? SM_PLUS : same_name(name, "abstain") ? SM_ABSTAIN : SM_COIN;
}

/* The mixing matrices of gossip; *mixing is the caller's to free, NULL where nothing gossips. */
static int build_graph(DmGraph *graph, double **mixing, const SmConfig *c, int workers, char *error,
                       size_t size) {
    *mixing = NULL;
    if (sm_has_server(sm_method(c->method))) return 0;
    *mixing = base_allocate(dm_graph_doubles(workers) * sizeof **mixing);
    if (!*mixing)
        return base_fail(error, size, SM_NO_MEMORY, "no memory for a graph of %d workers", workers);
    return dm_graph_build(graph, *mixing, c->topology, workers, error, size) ? SM_FAILED : 0;
}

/* The k-th group's stages: 0 hidden matrices, 1 all others. */
static SmGroup group_of(const SmConfig *c, int k) {
    const SmMethod *m = sm_method(c->method), *aux = m;
    if (same_name(c->aux, "adamw")) aux = sm_method("adamw");
    if (same_name(c->aux, "sign")) aux = sm_method("signum");
    int maps = k == 0 || same_name(c->aux, "lmo");
    SmGroup g = {.method = k == 0 ? m : aux,
                 .worker_map = maps ? sm_norm(c->worker_map) : NULL,
                 .server_map = maps ? sm_norm(c->server_map) : NULL,
                 .kind = k == 0 ? COMM_MATRICES : COMM_AUXILIARY};
    if (k == 0 && c->polar_after_vote) g.vote_map = sm_norm(c->norm ? c->norm : "spectral");
    g.downlink = g.method->combine == SM_VOTE && !g.server_map ? SM_SIGN : g.method->downlink;
    /* another server map than the row's has a downlink of its own kind: signs for signs */
    const char *own = m->server_map && c->norm ? c->norm : m->server_map;
    if (k == 0 && g.server_map && g.method->combine == SM_VOTE && !same_name(c->server_map, own))
        g.downlink = same_name(c->server_map, "sign") ? SM_SIGN : SM_DENSE;
    return g;
}

/* The LMO that what moves a block has gone through last, or NULL. */
static const SmNorm *last_map(const SmGroup *g) {
    return g->vote_map ? g->vote_map : g->server_map ? g->server_map : g->worker_map;
}

/* Factor on a tensor's step size: its role's radius, and for hidden matrices the gain of the shape.
 * All entries of a direction are +-1 after a vote, or after the LMO of the sign norm. */
static double gain_of(const SmConfig *c, const SmGroup *g, const SmTensor *t) {
    int signs = (g->downlink == SM_SIGN && !g->vote_map) || last_map(g) == sm_norm("sign");
    double gain = t->role == SM_HIDDEN ? sm_gain(c->gain)->gain(t->rows, t->cols, signs) : 1;
    return c->radius[t->role] * gain;
}

/* The next block of a group: where it lies, and how many floats of each kind of state it needs. */
static void add_block(SmOptimizer *o, SmGroup *g, const SmTensor *t, size_t which, size_t index) {
    size_t n = t->rows * t->cols;
    const EfLink *up = link_of(o, t, 0), *down = link_of(o, t, 1);
    const SmNorm *norm = norm_of(t, last_map(g));
    int feedback = g->method->combine == SM_FEEDBACK, tracking = g->method->combine == SM_TRACKING;
    int adamw = g->method->update == SM_ADAMW;
    g->blocks[g->count++] = (SmBlock){
        .group = g,
        .tensor = t,
        .index = index,
        .rows = t->rows,
        .cols = t->cols,
        .size = n,
        .offset = t->offset + which * n,
        .element = g->elements,
        .word = g->words,
        .gain = gain_of(&o->config, g, t),
        .floats = {[FIRST] = g->method->estimate != SM_GRADIENT || adamw ? n : 0,
                   [SECOND] = adamw ? n : 0,
                   [LAST_SENT] = feedback || tracking ? n : 0,
                   [TRACKER] = tracking ? n : 0,
                   [MODEL] = feedback && !down->row->replaces ? n : 0,
                   [AGGREGATE] = feedback ? n : 0,
                   [UPLINK_WARM] = feedback ? ef_warm(up, t->rows, t->cols) : 0,
                   [DOWNLINK_WARM] = feedback ? ef_warm(down, t->rows, t->cols) : 0,
                   [NORM_STATE] = norm && norm->state ? norm->state(t->rows, t->cols) : 0}};
    g->elements += n;
    g->words += sm_words(n);
}

/* Cost of a block in arbitrary units: an LMO is worth many passes. */
static double cost_of(const SmBlock *b) {
    double least = (double)(b->rows < b->cols ? b->rows : b->cols);
    return (double)b->size * (last_map(b->group) ? 1 + least : 1);
}

/* Every block to the thread with the least work so far; load has a place for every thread. */
static void share_among_threads(SmGroup *g, int threads, double *load) {
    for (int t = 0; t < threads; t++) load[t] = 0;
    for (size_t i = 0; i < g->count; i++) {
        int least = 0;
        for (int t = 1; t < threads; t++)
            if (load[t] < load[least]) least = t;
        g->blocks[i].thread = least;
        load[least] += cost_of(&g->blocks[i]);
    }
}

/* Every entry of the group's messages to a worker: equal shares, or, where the owner of a block is
 * its server, whole blocks, balanced by cost. */
static void share_among_workers(SmGroup *g, int workers) {
    int whole = g->server_map || g->method->combine == SM_FEEDBACK, owner = 0;
    double total = 0, cost = 0;
    for (size_t i = 0; i < g->count; i++) total += cost_of(&g->blocks[i]);
    for (size_t j = 0, n = (size_t)workers; j <= n; j++) {
        g->cut_element[j] = whole && j ? g->elements : g->elements * j / n;
        g->cut_word[j] = whole && j ? g->words : g->words * j / n;
    }
    for (size_t i = 0; whole && i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        double middle = cost + cost_of(b) / 2;
        while (owner + 1 < workers && middle >= total * (double)(owner + 1) / (double)workers) {
            owner++;
            g->cut_element[owner] = b->element;
            g->cut_word[owner] = b->word;
        }
        b->owner = owner;
        cost += cost_of(b);
    }
}

/* Bytes of an optimizer with its table of blocks, its cuts and a number per thread. */
static size_t table_bytes(size_t blocks, int workers, int threads) {
    size_t cuts = 4 * ((size_t)workers + 1);
    return sizeof(SmOptimizer) + blocks * sizeof(SmBlock) + cuts * sizeof(size_t) +
           (size_t)threads * sizeof(double);
}

/* The optimizer with rows in the place of names and its table of blocks; sm_free frees it. */
static SmOptimizer *lay_out(const SmConfig *resolved, const SmTensor *tensors, size_t count,
                            int workers, int threads, char *error, size_t size) {
    size_t blocks = 0, cuts = (size_t)workers + 1;
    for (size_t t = 0; t < count; t++) blocks += tensors[t].blocks;
    SmOptimizer *o = base_allocate(table_bytes(blocks, workers, threads));
    if (!o) {
        base_fail(error, size, 0, "no memory for a table of %zu blocks", blocks);
        return NULL;
    }
    const SmConfig *c = &o->config;
    o->config = *resolved;
    o->tensors = tensors;
    o->tensor_count = count;
    o->size = workers;
    o->threads = threads;
    o->agreement = NAN;
    o->ns = sm_newton_schulz(c->ns);
    o->zeros = zero_rule(c->zeros);
    o->ties = zero_rule(c->ties);
    int feedback = sm_method(c->method)->combine == SM_FEEDBACK;
    if (ef_parse(&o->identity, "identity", error, size) ||
        ef_parse(&o->links[0], feedback ? c->up : "identity", error, size) ||
        ef_parse(&o->links[1], feedback ? c->down : "identity", error, size) ||
        (c->adversaries && attack_parse(&o->attack, c->attack, error, size)) ||
        build_graph(&o->graph, &o->mixing, c, workers, error, size)) {
        sm_free(o);
        return NULL;
    }
    SmBlock *table = (SmBlock *)(void *)(o + 1);
    size_t *cut = (size_t *)(void *)(table + blocks);
    for (int k = 0; k < 2; k++) {
        SmGroup *g = &o->group[k];
        size_t index = 0;
        *g = group_of(c, k);
        g->blocks = table + (k ? o->group[0].count : 0);
        g->cut_element = cut + 2 * (size_t)k * cuts;
        g->cut_word = g->cut_element + cuts;
        for (size_t t = 0; t < count; t++)
            for (size_t i = 0; i < tensors[t].blocks; i++, index++)
                if ((tensors[t].role == SM_HIDDEN) == (k == 0))
                    add_block(o, g, &tensors[t], i, index);
        share_among_workers(g, workers);
        share_among_threads(g, threads, (double *)(void *)(cut + 4 * cuts));
    }
    return o;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* The arrays of state, which come from the arena zeroed. */
static void place_state(SmOptimizer *o, SmGroup *g, Arena *a) {
    for (StateKind s = FIRST; g->count && s < STATES; s++) {
        int per_block = state_table[s].per_block;
        if (!per_block && g->blocks->floats[s])
            g->vector[s] = arena_take(a, g->elements * sizeof(float));
        for (SmBlock *b = g->blocks; b < g->blocks + g->count; b++)
            if (per_block && b->floats[s] && (!state_table[s].at_owner || b->owner == o->rank))
                b->state[s] = arena_take(a, b->floats[s] * sizeof(float));
            else if (g->vector[s])
                b->state[s] = g->vector[s] + b->element;
    }
}

/* Messages that a node holds at once, its own included: of the busiest node, so that all agree. */
static size_t most_sources(const DmGraph *graph) {
    size_t most = 1;
    for (int r = 0; r < graph->period; r++)
        for (int j = 0; j < graph->nodes; j++)
            most = larger(most, dm_degree(graph, (uint64_t)r, j, 0) + 1);
    return most;
}

/* State, then messages and scratch, each large enough for either group, from the arena. */
static SmBytes place(SmOptimizer *o, Arena *a) {
    size_t n = (size_t)o->size, threads = (size_t)o->threads, planes = 1 + (o->zeros == SM_ABSTAIN);
    size_t words = 0, inbox = 0, most_up = 0, most_down = 0, scratch = 0;
    size_t elements = larger(o->group[0].elements, o->group[1].elements);
    int gossips = !sm_has_server(o->group[0].method);
    SmBytes bytes = {0};
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        SmCombine combine = g->method->combine;
        size_t up = 0, down = 0, my_shard = 0;
        g->first = g->cut_element[o->rank];
        g->mine = g->cut_element[o->rank + 1] - g->first;
        g->first_word = g->cut_word[o->rank];
        g->my_words = g->cut_word[o->rank + 1] - g->first_word;
        place_state(o, g, a);
        for (const SmBlock *b = g->blocks; b < g->blocks + g->count; b++) {
            const EfLink *links[2] = {link_of(o, b->tensor, 0), link_of(o, b->tensor, 1)};
            if (last_map(g)) scratch = larger(scratch, sm_lmo_scratch(b->rows, b->cols));
            if (combine != SM_FEEDBACK) continue;
            for (int k = 0; k < 2; k++)
                scratch = larger(scratch, ef_scratch(links[k], b->rows, b->cols));
            up += ef_most_bytes(links[0], b->rows, b->cols);
            down += ef_most_bytes(links[1], b->rows, b->cols);
            if (b->owner == o->rank) my_shard += ef_most_bytes(links[0], b->rows, b->cols);
        }
        if (combine == SM_MEAN && n > 1) my_shard = g->mine * sizeof(float);
        if (combine == SM_VOTE) my_shard = g->my_words * planes * 8;
        if (combine == SM_VOTE) words = larger(words, g->words);
        inbox = larger(inbox, n * my_shard);
        most_up = larger(most_up, up);
        most_down = larger(most_down, down);
    }
    bytes.state = a->used;
    if (gossips) {
        o->most_sources = most_sources(&o->graph);
        size_t piece = gossip_piece(o->most_sources);
        inbox = o->most_sources * (piece < elements ? piece : elements) * sizeof(float);
    }
    o->direction = arena_take(a, elements * sizeof(float));
    o->signs = arena_take(a, words * 8);
    o->nonzero = arena_take(a, planes == 2 ? words * 8 : 0);
    o->vote = arena_take(a, words * 8);
    o->decided = arena_take(a, words * 8);
    o->inbox = arena_take(a, inbox);
    o->residuals = arena_take(a, most_up);
    o->shifts = arena_take(a, most_down);
    o->cut_byte = arena_take(a, (n + 1) * sizeof(size_t));
    o->sign_parts = arena_take(a, threads * 2 * n * sizeof *o->sign_parts);
    o->float_parts = arena_take(a, (threads + 1) * o->most_sources * sizeof *o->float_parts);
    o->source = arena_take(a, gossips ? n * sizeof *o->source : 0);
    o->weight = arena_take(a, gossips ? n * sizeof *o->weight : 0);
    o->square = arena_take(a, o->tensor_count * sizeof *o->square);
    bytes.messages = a->used - bytes.state;
    o->scratch_floats = (scratch + 15) / 16 * 16;
    o->scratch = arena_take(a, threads * o->scratch_floats * sizeof(float));
    bytes.scratch = a->used - bytes.state - bytes.messages;
    bytes.total = a->used;
    for (size_t i = 0; a->block && i < o->group[0].count + o->group[1].count; i++) {
        SmBlock *b = &o->group[0].blocks[i];
        b->u = o->direction + b->element;
        b->scratch = o->scratch + (size_t)b->thread * o->scratch_floats;
    }
    return bytes;
}

SmOptimizer *sm_create(const SmConfig *config, const SmTensor *tensors, size_t count, SmComm *comm,
                       char *error, size_t size) {
    SmConfig resolved = *config;
    Arena arena = {0};
    if (sm_resolve(&resolved, comm->size, error, size)) return NULL;
    SmOptimizer *o =
        lay_out(&resolved, tensors, count, comm->size, comm->team->threads, error, size);
    if (!o) return NULL;
    o->comm = comm;
    o->rank = comm->rank;
    place(o, &arena); /* without a block the arena only measures */
    o->arena = arena.block = base_allocate(arena.used);
    if (!o->arena) {
        base_fail(error, size, 0, "no memory for %zu bytes of optimizer state", arena.used);
        sm_free(o);
        return NULL;
    }
    arena.used = 0;
    place(o, &arena);
    return o;
}

void sm_free(SmOptimizer *o) {
    if (!o) return;
    if (o->device) o->device->free(o->device);
    free(o->arena);
    free(o->mixing);
    free(o);
}

SmBytes sm_bytes(const SmConfig *resolved, const SmTensor *tensors, size_t count, int workers,
                 int threads) {
    char error[256];
    SmBytes most = {0};
    SmOptimizer *o = lay_out(resolved, tensors, count, workers, threads, error, sizeof error);
    if (!o) return most;
    size_t table =
        base_allocated(table_bytes(o->group[0].count + o->group[1].count, workers, threads));
    size_t mixing = o->mixing ? dm_graph_doubles(workers) * sizeof *o->mixing : 0;
    for (o->rank = 0; o->rank < workers; o->rank++) { /* owners of blocks differ */
        Arena arena = {0};
        SmBytes bytes = place(o, &arena);
        bytes.state += table;
        bytes.messages += mixing;
        bytes.total = bytes.state + bytes.messages + bytes.scratch;
        if (bytes.total > most.total) most = bytes;
    }
    sm_free(o);
    return most;
}

int sm_run(const char *backend, int workers, int threads, SmWorker *worker, void *arg, char *error,
           size_t size) {
    CommOptions options = {.backend = backend, .workers = workers, .threads = threads};
    if (workers < 1 || workers > COMM_MAX_WORKERS || threads < 1)
        return base_fail(error, size, SM_BAD_CONFIG,
                         "workers %d with %d threads: there must be 1 to %d workers with 1 thread "
                         "or more",
                         workers, threads, COMM_MAX_WORKERS);
    if (!backend || !comm_backend(backend))
        return base_fail(error, size, SM_BAD_CONFIG, "backend '%s' is unknown",
                         backend ? backend : "");
#ifdef COMM_MPI
    int started = 0, rank, ranks, sharing;
    MPI_Initialized(&started);
    if (!started && same_name(backend, "mpi")) comm_init(NULL, NULL, &rank, &ranks, &sharing);
#endif
    return comm_run(&options, worker, arg, NULL, error, size);
}

int sm_rank(const SmComm *comm) { return comm->rank; }
int sm_size(const SmComm *comm) { return comm->size; }

/* ------------------------------------------------------------------------------------------------
 * a device */

/* Can a device do all stages of the group? */
static int runs_on_device(const SmOptimizer *o, const SmGroup *g) {
    const SmMethod *m = g->method;
    const SmNorm *maps[] = {g->worker_map, g->server_map, g->vote_map};
    int votes = m->combine == SM_VOTE && !g->server_map;
    for (size_t i = 0; i < 3; i++)
        if (maps[i] && (maps[i] != sm_norm("spectral") || g != o->group)) return 0;
    return g->count == 0 || ((m->estimate == SM_GRADIENT || m->estimate == SM_MOMENTUM) &&
                             (m->combine == SM_MEAN || votes) &&
                             (m->update == SM_STEP || m->update == SM_ADAMW));
}

int sm_attach(SmOptimizer *o, SmDevice *d, char *error, size_t size) {
    const SmConfig *c = &o->config;
    SmDeviceGroup group[2];
    if (!sm_has_server(o->group[0].method) || c->adversaries || c->coupled_decay ||
        o->zeros == SM_ABSTAIN || o->ties == SM_ABSTAIN || !runs_on_device(o, &o->group[0]) ||
        !runs_on_device(o, &o->group[1]))
        return 0;
    size_t count = o->group[0].count + o->group[1].count;
    SmDeviceBlock *blocks = base_allocate(count * sizeof *blocks);
    if (!blocks)
        return base_fail(error, size, SM_NO_MEMORY, "no memory for a table of %zu blocks", count);
    for (size_t i = 0; i < count; i++) {
        const SmBlock *b = &o->group[0].blocks[i];
        blocks[i] = (SmDeviceBlock){.offset = b->offset,
                                    .element = b->element,
                                    .word = b->word,
                                    .rows = b->rows,
                                    .cols = b->cols,
                                    .stream = stream_of(b, SIGNS, o->rank + 1),
                                    .gain = b->gain,
                                    .decay = b->tensor->decay != 0,
                                    .mine = b->owner == o->rank};
    }
    for (int k = 0; k < 2; k++) {
        const SmGroup *g = &o->group[k];
        int states = (g->vector[FIRST] != NULL) + (g->vector[SECOND] != NULL);
        group[k] = (SmDeviceGroup){.count = g->count,
                                   .elements = g->elements,
                                   .words = g->words,
                                   .states = states,
                                   .polar = last_map(g) != NULL};
    }
    d->attach(d, blocks, group);
    free(blocks);
    o->device = d;
    if (!sm_to_device(o)) return 1;
    o->device = NULL;
    return base_fail(error, size, SM_FAILED, "%s", d->error);
}

/* All state, to the host or from there. */
static int copy_state(SmOptimizer *o, int to_host) {
    SmDevice *d = o->device;
    for (int k = 0; d && k < 2; k++)
        for (int i = FIRST; i <= SECOND; i++) {
            float *here = o->group[k].vector[i], *there = d->state[k][i];
            size_t bytes = o->group[k].elements * sizeof *here;
            if (here) d->copy(d, to_host ? here : there, to_host ? there : here, bytes);
        }
    return sm_device_error(o) ? SM_FAILED : 0;
}

int sm_from_device(SmOptimizer *o) { return copy_state(o, 1); }
int sm_to_device(SmOptimizer *o) { return copy_state(o, 0); }

const char *sm_device_error(const SmOptimizer *o) {
    return o->device && *o->device->error ? o->device->error : NULL;
}

/* ------------------------------------------------------------------------------------------------
 * results and state */

SmFault sm_fault(const SmOptimizer *o) { return o->fault; }

double sm_agreement(const SmOptimizer *o) { return o->agreement; }

int sm_state(const SmOptimizer *o, size_t i, SmState *state) {
    for (size_t t = 0; t < o->tensor_count; t++) {
        const SmTensor *tensor = &o->tensors[t];
        const SmGroup *g = &o->group[tensor->role == SM_HIDDEN ? 0 : 1];
        const SmBlock *b = g->blocks;
        int adamw = g->method->update == SM_ADAMW;
        while (b->tensor != tensor) b++;
        for (StateKind k = FIRST; k < STATES; k++) {
            int per_block = state_table[k].per_block;
            for (size_t j = 0; j < (per_block ? tensor->blocks : 1); j++) {
                size_t floats = b[j].floats[k], whole = floats == b->size;
                if (!b[j].state[k] || i-- > 0) continue;
                *state = (SmState){
                    .kind = adamw && k == FIRST ? "adamw.m" : state_table[k].name,
                    .tensor = t,
                    .block = per_block ? (int)j : -1,
                    .rows = (whole ? tensor->rows : 1) * (per_block ? 1 : tensor->blocks),
                    .cols = whole ? tensor->cols : floats,
                    .data = b[j].state[k],
                    .replicated = adamw && k <= SECOND && sm_has_server(o->group[0].method)};
                return 1;
            }
        }
    }
    return 0;
}

int sm_server_model(SmOptimizer *o, float *out, const float *params, uint64_t steps) {
    if (o->group[0].method->combine != SM_FEEDBACK || o->links[1].row->replaces) return 0;
    for (size_t i = 0; i < o->group[0].count + o->group[1].count; i++) {
        const SmBlock *b = &o->group[0].blocks[i];
        const float *x = steps && b->state[MODEL] ? b->state[MODEL] : params + b->offset;
        memmove(out + b->offset, x, b->size * sizeof *out);
        if (b->floats[MODEL])
            comm_broadcast(o->comm, out + b->offset, b->size * sizeof *out, b->owner, COMM_OTHER);
    }
    return 1;
}

void sm_regroup(SmOptimizer *o, const float *params) {
    size_t blocks = o->group[0].count + o->group[1].count;
    for (size_t i = 0; i < blocks; i++) {
        const SmBlock *b = &o->group[0].blocks[i];
        size_t bytes = b->size * sizeof(float);
        float *g = b->state[AGGREGATE];
        if (b->state[TRACKER]) memcpy(b->state[TRACKER], b->state[LAST_SENT], bytes);
        if (b->state[MODEL]) memcpy(b->state[MODEL], params + b->offset, bytes);
        for (int j = 0; b->floats[AGGREGATE] && j < o->size;
             j++) { /* G <- mean G_j, at its owner */
            if (j == o->rank) memcpy(b->u, b->state[LAST_SENT], bytes);
            comm_broadcast(o->comm, b->u, bytes, j, COMM_OTHER);
            for (size_t k = 0; g && k < b->size; k++)
                g[k] = (j ? g[k] : 0) + b->u[k] / (float)o->size;
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * facts */

/* fp32 to every neighbour, once for each round of the parameters, the tracker, AdamW's moments. */
static double gossip_bits(const SmConfig *c, const SmMethod *m, int workers) {
    char error[256];
    DmGraph graph = {0};
    double *mixing, edges = 0;
    if (build_graph(&graph, &mixing, c, workers, error, sizeof error)) return NAN;
    for (int r = 0; r < graph.period; r++)
        for (int j = 0; j < workers; j++) edges += (double)dm_degree(&graph, (uint64_t)r, j, 1);
    edges /= graph.period;
    free(mixing);
    int vectors = c->rounds[1] * (m->update == SM_ADAMW ? 3 : 1);
    if (m->combine == SM_TRACKING) vectors += c->rounds[0];
    return 32 * vectors * edges / workers;
}

/* Bits per weight of a compressed message, or by the paper's count. */
static double link_bits(const char *compressor, const SmTensor *t, int paper) {
    char error[256];
    EfLink link;
    const char *text = t->role == SM_VECTOR ? "identity" : compressor;
    if (ef_parse(&link, text, error, sizeof error)) return NAN;
    double bits = ceil(ef_bits(&link, t->rows, t->cols) / 8) * 8;
    if (paper) bits = ef_paper_bits(&link, t->rows, t->cols);
    return bits / (double)(t->rows * t->cols);
}

SmFacts sm_facts(const SmConfig *c, const SmTensor *tensor, int workers) {
    SmGroup g = group_of(c, tensor->role != SM_HIDDEN);
    const SmNorm *norm = norm_of(tensor, last_map(&g));
    SmFacts f = {.rule = g.method->name, .gain = gain_of(c, &g, tensor), .step_rms = NAN};
    if (g.downlink == SM_SIGN && !g.vote_map)
        f.step_rms = f.gain;
    else if (norm)
        f.step_rms = f.gain * norm->rms((double)tensor->rows, (double)tensor->cols);
    if (!sm_has_server(sm_method(c->method))) {
        f.up = f.paper_up = gossip_bits(c, g.method, workers);
        return f;
    }
    double up = 32, down = 32, paper_up = 32;
    if (g.method->combine == SM_FEEDBACK) {
        up = link_bits(c->up, tensor, 0);
        paper_up = link_bits(c->up, tensor, 1);
        down = link_bits(c->down, tensor, 0);
    } else if (g.method->combine == SM_VOTE) {
        up = paper_up = same_name(c->zeros, "abstain") ? 2 : 1;
        if (g.downlink == SM_SIGN) down = same_name(c->ties, "abstain") ? 2 : 1;
    }
    double others = (double)(workers - 1) / workers; /* a worker sends nothing to itself */
    f.up = up * others;
    f.down = down * others;
    f.paper_up = paper_up * others;
    return f;
}
