/* signmuon.c - the distributed optimizer: signmuon.h's mathematics over the workers of comm.h. MIT.

   Four functions are the algorithm boxes: step_by_mean (fp32 up, mean in rank order, a reply),
   step_by_vote (SignMuon: one bit per weight up, majority, a reply), step_by_feedback (EF21-Muon:
   compressed residuals up, compressed model shift down) and step_by_gossip (DeMuon: no server).
   Which stages a step has is data: a row of the method table, one row for the hidden matrices and
   one for all other tensors. What a worker does between two exchanges is spread over its compute
   threads block by block, a block being one matrix (a fused qkv is three), so that no result
   depends on their number. Blocks lie in a message in the order in which threads work on them, so
   that its first part can be under way while the rest is made (run_sending). */
#include "comm.h"
#include "demuon.h"
#include "gemm.h"

/* signmuon.h's products run on gemm.h; its scratch follows the caller's. */
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
#include "ef21muon.h"
#include "noise.h"
#include "signmuon.h"

/* ------------------------------------------------------------------------------------------------
 * state */

/* The arrays of state, in the order of state_rows. */
typedef enum State {
    FIRST,     /* momentum, or AdamW's m */
    SECOND,    /* AdamW's v */
    ESTIMATE,  /* EF21: G_j, what the server knows of this worker; tracking: the last M_j */
    TRACKER,   /* DeMuon: V */
    REPLAY,    /* a liar's: what it would have sent the step before */
    MODEL,     /* EF21: X, the exact model, at the block's owner */
    AGGREGATE, /* EF21: G, the mean of the G_j, at the block's owner */
    WARM_UP,   /* where power iterations begin: the uplink's, the downlink's, a norm's */
    WARM_DOWN,
    WARM_NORM,
    STATES
} State;

static const struct {
    const char *name;
    int by_block; /* one array per block, else one per tensor */
} state_rows[STATES] = {{"momentum", 0},       {"adamw.v", 0},      {"estimate", 0},
                        {"tracker", 0},        {"replay", 0},       {"ef21.model", 1},
                        {"ef21.aggregate", 1}, {"ef21.warm.up", 1}, {"ef21.warm.down", 1},
                        {"norm.warm", 1}};

/* One matrix, or one vector: what an LMO, a compressor and a gain see as a whole. */
typedef struct SmBlock {
    const SmTensor *tensor;
    size_t index; /* among all blocks of the model: keys its coins */
    size_t offset, rows, cols;
    size_t element, word; /* where it begins in its group's dense and sign messages */
    size_t up, down;      /* and in the compressed ones of this step */
    size_t touched;       /* first word of its rows' touched bits, when sparse */
    float *state[STATES];
    size_t held[STATES]; /* floats of each; 0 where the method keeps none */
    int owner, thread;   /* the worker that serves it, the compute thread that works on it */
} SmBlock;

/* The tensors under one rule; they share one message. */
typedef struct SmGroup {
    const SmMethod *method;
    const SmNorm *worker_map, *server_map, *local_map;
    SmReply reply;
    CommKind kind;
    SmBlock *blocks;
    float *vector[MODEL];                 /* the state that is one array over the group */
    size_t count, elements, votes, words; /* words past `votes` are touched bits */
    size_t largest_share;                 /* of elements, over the workers */
    size_t *cut_element, *cut_word;       /* shard j is [cut[j], cut[j+1]) */
    double rate;
} SmGroup;

/* The message of a group that leaves while it is made. */
typedef struct SmSending {
    CommExchange exchange;
    size_t field, width; /* of SmBlock: where a block begins, in units of so many bytes */
    int open;
} SmSending;

struct SmOptimizer {
    SmConfig config;
    Comm *comm;
    const SmTensor *tensors;
    size_t tensor_count;
    SmGroup group[2];          /* hidden matrices; all others */
    EfLink identity, links[2]; /* vectors' link; up and down */
    float *direction;          /* dense message, or what a block's direction is made in */
    uint64_t *ballot, *present, *vote, *decided;
    char *inbox, *residuals, *shifts;      /* the last two: compressed messages, up and down */
    uint64_t *counts;                      /* of the ballots of this machine */
    size_t *cut_machine;                   /* what of them each machine's owner gets, in bytes */
    const void *lent[2][COMM_MAX_WORKERS]; /* ballots of this machine, and who is present */
    SmSending sending;
    _Atomic size_t *done;                    /* per thread: its blocks before this one are ready */
    int8_t *tally;                           /* wire int8: a ballot or a sum per weight */
    size_t *cut_byte, share_at, share_bytes; /* my shard of everybody's residuals */
    float *scratch;                          /* `scratch_floats` for each thread */
    size_t scratch_floats;
    double *differ; /* per thread: signs that the vote did not confirm */
    double *square; /* per tensor: squared norm of the gradient */
    int *odd;       /* per thread: it met a message that it cannot use */
    SmComplaint complaint;
    int exchange;      /* messages exchanged in this step */
    uint64_t *entries; /* bits of the hidden matrices' ballots that are no padding */
    uint64_t *dissent; /* per owner of a shard: entries against the others and entries, by worker */
    float *dissenters; /* per worker: steps of dissent in a row, and the most so far */
    double agreement, length;
    float *params; /* of the step under way */
    const float *grads;
    float shrink; /* what clipping leaves of the gradient */
    uint64_t step;
    float *mixed; /* what gossip mixes: a piece of a vector, and where everybody's pieces lie */
    const float *pieces[COMM_MAX_WORKERS];
    double weight[COMM_MAX_WORKERS];
    size_t sources, most_sources, piece;
};

/* What runs on every compute thread gets; `block` is called for each block that is the thread's. */
typedef struct SmWork {
    SmOptimizer *o;
    SmGroup *g;
    void (*block)(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith);
} SmWork;

static size_t block_size(const SmBlock *b) { return b->rows * b->cols; }
static float *thread_scratch(SmOptimizer *o, int ith) {
    return o->scratch + (size_t)ith * o->scratch_floats;
}

/* Call function(work, ith, nth) once on every thread. */
static void run_slices(SmOptimizer *o, SmGroup *g, void (*function)(void *, int, int)) {
    SmWork work = {o, g, NULL};
    team_run(o->comm->team, function, &work);
}

/* Blocks before the first that a thread has not done are ready: let them go. */
static void send_ready(SmOptimizer *o, const SmGroup *g, int nth) {
    size_t first = g->count;
    for (int t = 0; t < nth; t++) {
        size_t done = atomic_load_explicit(&o->done[t], memory_order_acquire);
        first = done < first ? done : first;
    }
    if (first == g->count) return; /* the end is near */
    const char *b = (const char *)&g->blocks[first];
    size_t at = *(const size_t *)(const void *)(b + o->sending.field);
    comm_alltoall_advance(o->comm, &o->sending.exchange, at * o->sending.width);
}

static void each_block(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    SmGroup *g = work->g;
    for (size_t i = 0; i < g->count; i++) {
        if (g->blocks[i].thread != ith) continue;
        work->block(o, g, &g->blocks[i], ith);
        atomic_store_explicit(&o->done[ith], i + 1, memory_order_release);
        if (ith == 0 && o->sending.open) send_ready(o, g, nth);
    }
    atomic_store_explicit(&o->done[ith], g->count, memory_order_release);
}

/* Call function for every block of the group, each on the thread that works on it. */
static void run(SmOptimizer *o, SmGroup *g,
                void (*function)(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith)) {
    SmWork work = {o, g, function};
    for (int t = 0; t < o->comm->team->threads; t++) atomic_store(&o->done[t], 0);
    team_run(o->comm->team, each_block, &work);
}

/* The same, and the all-to-all of the message that the blocks make, in cuts of bytes: what is ready
 * leaves while the next blocks are worked on.
 * field, width   which field of a block says where it begins, in units of so many bytes */
static void run_sending(SmOptimizer *o, SmGroup *g,
                        void (*function)(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith),
                        const void *message, const size_t *cuts, size_t field, size_t width) {
    o->sending = (SmSending){.field = field, .width = width, .open = 1};
    comm_alltoall_begin(o->comm, &o->sending.exchange, message, cuts, o->inbox, g->kind);
    run(o, g, function);
    o->sending.open = 0;
    comm_alltoall_end(o->comm, &o->sending.exchange);
}

/* ------------------------------------------------------------------------------------------------
 * stages of one block */

/* Weight of the old momentum at this step. */
static float momentum_of(const SmOptimizer *o, const SmGroup *g) {
    if (g->method->estimate == SM_GLUON) return (float)(1 - 1 / sqrt((double)o->step + 1));
    return o->config.first_gradient && o->step == 0 ? 0 : (float)o->config.momentum;
}

/* u <- what this worker holds of block b: gradient, momentum, or Lion's interpolation. */
static void estimate(SmOptimizer *o, const SmGroup *g, const SmBlock *b, float *u) {
    const SmConfig *c = &o->config;
    const float *grad = o->grads + b->offset, *w = o->params + b->offset;
    size_t n = block_size(b);
    if (o->shrink < 1) {
        for (size_t i = 0; i < n; i++) u[i] = o->shrink * grad[i];
        grad = u;
    }
    if (c->coupled_decay && b->tensor->decay && !b->tensor->sparse) {
        for (size_t i = 0; i < n; i++) u[i] = grad[i] + (float)c->decay * w[i];
        grad = u;
    }
    float mu = momentum_of(o, g);
    if (g->method->estimate == SM_MOMENTUM || g->method->estimate == SM_GLUON)
        sm_momentum(u, b->state[FIRST], grad, n, mu, c->nesterov);
    else if (g->method->estimate == SM_LION)
        sm_lion(u, b->state[FIRST], grad, n, (float)c->beta1, mu);
    else if (grad != u)
        memcpy(u, grad, n * sizeof *u);
}

/* The norm of a block at a stage where its group has `map`: hidden matrices take the map itself,
 * others the norm of their role. */
static const SmNorm *norm_of(const SmConfig *c, const SmTensor *t, const SmNorm *map) {
    return !map || t->role == SM_HIDDEN ? map : sm_norm(c->role_norm[t->role]);
}

/* u <- LMO(u) over the whole block; nothing when there is no map. */
static void apply_map(SmOptimizer *o, const SmNorm *map, const SmBlock *b, float *u, int ith) {
    const SmNorm *norm = norm_of(&o->config, b->tensor, map);
    if (norm)
        norm->lmo(u, u, b->rows, b->cols, o->config.ns, b->state[WARM_NORM],
                  thread_scratch(o, ith));
}

/* The factor that decoupled decay leaves of a weight. */
static float keep_of(const SmOptimizer *o, const SmGroup *g, const SmBlock *b) {
    const SmConfig *c = &o->config;
    if (g->method->update == SM_FRANK_WOLFE) return (float)(1 - g->rate);
    return b->tensor->decay && !c->coupled_decay ? (float)(1 - g->rate * c->decay) : 1.0f;
}

/* Directions of +-1 and directions of unit norm have gains of their own; tensors that are not
 * hidden matrices have none. */
static double gain_of(const SmConfig *c, const SmTensor *t, int sign) {
    return c->radius[t->role] * (t->role == SM_HIDDEN ? c->gain->gain(t->rows, t->cols, sign) : 1);
}

/* The map that what finally moves a block has gone through last, or NULL. */
static const SmNorm *last_map(const SmGroup *g) {
    return g->local_map ? g->local_map : g->server_map ? g->server_map : g->worker_map;
}

/* Is what finally moves a block made of +-1: a vote, or the LMO of the sign norm? */
static int moves_by_sign(const SmGroup *g) {
    return (g->reply == SM_SIGN && !g->local_map) || last_map(g) == sm_norm("sign");
}

/* Move block b along a dense direction u. */
static void move(SmOptimizer *o, SmGroup *g, SmBlock *b, const float *u) {
    const SmConfig *c = &o->config;
    float *w = o->params + b->offset, keep = keep_of(o, g, b);
    size_t n = block_size(b);
    if (g->method->update == SM_ADAMW) {
        sm_adamw(w, b->state[FIRST], b->state[SECOND], u, n, o->step + 1, g->rate, c->beta1,
                 c->beta2, c->epsilon, keep);
    } else {
        sm_step_dense(w, u, n, (float)(g->rate * gain_of(c, b->tensor, moves_by_sign(g))), keep);
    }
}

/* ------------------------------------------------------------------------------------------------
 * lies: the last workers of a run may send other things than what they hold */

static void lie_flip(float *u, float *last, size_t n, double scale, uint64_t key) {
    (void)last, (void)scale, (void)key;
    for (size_t i = 0; i < n; i++) u[i] = -u[i];
}

static void lie_random(float *u, float *last, size_t n, double scale, uint64_t key) {
    const Noise normal = {.row = noise_row(0), .scale = 1};
    double length = sqrt(sm_sum_squares(u, n));
    (void)last, (void)scale;
    memset(u, 0, n * sizeof *u);
    noise_add(u, n, &normal, key, 0);
    sm__scale(u, n, length / sqrt(sm_sum_squares(u, n)));
}

static void lie_zero(float *u, float *last, size_t n, double scale, uint64_t key) {
    (void)last, (void)scale, (void)key;
    memset(u, 0, n * sizeof *u);
}

static void lie_nan(float *u, float *last, size_t n, double scale, uint64_t key) {
    (void)last, (void)scale, (void)key;
    for (size_t i = 0; i < n; i++) u[i] = NAN;
}

static void lie_replay(float *u, float *last, size_t n, double scale, uint64_t key) {
    (void)scale, (void)key;
    for (size_t i = 0; i < n; i++) {
        float was = last[i];
        last[i] = u[i];
        u[i] = was;
    }
}

static void lie_scale(float *u, float *last, size_t n, double scale, uint64_t key) {
    (void)last, (void)key;
    for (size_t i = 0; i < n; i++) u[i] *= (float)scale;
}

const SmAttack *sm_attack_row(size_t i) {
    static const SmAttack table[] = {
        {"flip", NULL, lie_flip, 0, 0, 0, "the negative"},
        {"random", NULL, lie_random, 0, 0, 0, "normal numbers of the same Frobenius norm"},
        {"zero", NULL, lie_zero, 0, 0, 0, "zeros"},
        {"nan", NULL, lie_nan, 0, 0, 1, "NaN in every entry"},
        {"replay", NULL, lie_replay, 1, 0, 0, "what it would have sent the step before"},
        {"scale", "S", lie_scale, 0, 0, 0, "S times as much"},
        {"garble", NULL, NULL, 0, 1, 0,
         "packed messages with every bit set that is no value: padding, positions; int8: 127 "
         "votes"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

static int lies(const SmOptimizer *o) {
    return o->comm->rank >= o->comm->size - o->config.adversaries;
}

/* u <- what this worker says in its place: u itself, unless it lies. */
static void may_lie(SmOptimizer *o, const SmBlock *b, float *u) {
    const SmAttack *attack = o->config.attack;
    float *last = b->state[REPLAY];
    uint64_t stream = (uint64_t)2 << 48 | (uint64_t)b->index << 16 | ((uint64_t)o->comm->rank + 1);
    if (!lies(o) || !attack->lie) return;
    if (last && o->step == 0) memcpy(last, u, block_size(b) * sizeof *u);
    attack->lie(u, last, block_size(b), o->config.attack_scale,
                sm_key(o->config.seed, stream, o->step));
}

static int garbles(const SmOptimizer *o) { return lies(o) && o->config.attack->garbles; }

/* ------------------------------------------------------------------------------------------------
 * messages that are refused: the threads only note that something is wrong; who sent it is looked up
 * then */

static void complain(SmOptimizer *o, SmFault fault, int sender, const SmTensor *tensor) {
    if (o->complaint.fault != SM_SOUND) return;
    o->complaint =
        (SmComplaint){(int32_t)fault, o->exchange, sender, (int32_t)(tensor - o->tensors)};
}

/* Has a thread met something odd since this was last asked? */
static int met_odd(SmOptimizer *o) {
    int odd = 0;
    for (int t = 0; t < o->comm->team->threads; t++) odd |= o->odd[t], o->odd[t] = 0;
    return odd;
}

/* Complain about the first entry of x (n) that is not finite, if any; x begins at an element of the
 * group's dense message. */
static void refuse_nan(SmOptimizer *o, const SmGroup *g, int sender, const float *x, size_t n,
                       size_t element) {
    const SmBlock *b = g->blocks;
    size_t i = 0;
    while (i < n && isfinite(x[i])) i++;
    if (i == n) return;
    while (b->element + block_size(b) <= element + i) b++;
    complain(o, SM_NAN, sender, b->tensor);
}

/* ------------------------------------------------------------------------------------------------
 * fp32 up, the mean, a dense reply: sgd, adamw, muon, muon-avgpolar, scion, gluon */

/* D_j <- M_j, or LMO(M_j) */
static void make_direction(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    estimate(o, g, b, o->direction + b->element);
    apply_map(o, g->worker_map, b, o->direction + b->element, ith);
    may_lie(o, b, o->direction + b->element);
}

/* D <- mean of the workers' D_j on my shard: summed in rank order in double, so that equal summands
 * give back themselves exactly. */
static void average_shard(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    int size = o->comm->size, rank = o->comm->rank;
    size_t first = work->g->cut_element[rank], mine = work->g->cut_element[rank + 1] - first;
    size_t lo = mine * (size_t)ith / (size_t)nth, hi = mine * ((size_t)ith + 1) / (size_t)nth;
    const float *in = (const float *)(void *)o->inbox;
    for (size_t i = lo; i < hi; i++) {
        double sum = 0;
        for (int j = 0; j < size; j++) sum += (double)in[(size_t)j * mine + i];
        o->direction[first + i] = (float)(sum / size);
    }
    if (!sm_finite(o->direction + first + lo, hi - lo)) o->odd[ith] = 1; /* so is a summand */
}

/* A part that is not finite is refused, and with it the mean. */
static void refuse_parts(SmOptimizer *o, SmGroup *g) {
    int rank = o->comm->rank;
    size_t first = g->cut_element[rank], mine = g->cut_element[rank + 1] - first;
    if (met_odd(o)) {
        const float *in = (const float *)(void *)o->inbox;
        for (int j = 0; j < o->comm->size; j++)
            refuse_nan(o, g, j, in + (size_t)j * mine, mine, first);
        memset(o->direction + first, 0, mine * sizeof(float));
    }
    o->exchange++;
}

/* The server's part, by the owner of each block: D <- LMO(D). */
static void map_shard(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    if (b->owner == o->comm->rank) apply_map(o, g->server_map, b, o->direction + b->element, ith);
}

/* W <- W - lr s D */
static void move_dense(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    (void)ith;
    move(o, g, b, o->direction + b->element);
}

/* cuts in bytes, for an exchange of `width` bytes per unit */
static const size_t *in_bytes(SmOptimizer *o, const size_t *cuts, size_t width) {
    for (int j = 0; j <= o->comm->size; j++) o->cut_byte[j] = cuts[j] * width;
    return o->cut_byte;
}

/* All of it for one worker, which has nobody to wait for: each block goes through while in cache. */
static void step_alone(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    float *u = o->direction + b->element;
    estimate(o, g, b, u);
    apply_map(o, g->worker_map, b, u, ith);
    apply_map(o, g->server_map, b, u, ith);
    move(o, g, b, u);
}

// clang-format off
static void step_by_mean(SmOptimizer *o, SmGroup *g) {
    if (o->comm->size == 1) { run(o, g, step_alone); return; }
    run_sending(o, g, make_direction, o->direction,  /* D_j = M_j, or LMO(M_j)            */
                in_bytes(o, g->cut_element, 4), offsetof(SmBlock, element), 4);
    run_slices(o, g, average_shard);                 /* D = mean D_j                      */
    refuse_parts(o, g);
    if (g->server_map) run(o, g, map_shard);         /* D = LMO(D)                        */
    comm_allgather(o->comm, o->direction, in_bytes(o, g->cut_element, 4), g->kind);
    run(o, g, move_dense);                           /* W = (1 - lr wd) W - lr s D        */
}
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * one bit up, a majority vote, a reply: signsgd, signum, lion, signmuon, muonusign, muonsign */

/* The bits of a last word that lie behind the end. */
static uint64_t behind(size_t bits) { return bits % 64 ? ~(uint64_t)0 << bits % 64 : 0; }

static void garble_ballot(SmOptimizer *o, const SmBlock *b) {
    size_t n = block_size(b);
    o->ballot[b->word + sm_words(n) - 1] |= behind(n);
    if (o->config.zeros == SM_ABSTAIN) o->present[b->word + sm_words(n) - 1] |= behind(n);
    if (b->tensor->sparse) o->ballot[b->touched + sm_words(b->rows) - 1] |= behind(b->rows);
}

/* S_j <- sign(LMO(M_j)), packed; coins for exact zeros have the rank in their key */
static void make_ballot(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    float *u = o->direction + b->element;
    size_t n = block_size(b);
    uint64_t stream = (uint64_t)b->index << 16 | ((uint64_t)o->comm->rank + 1);
    estimate(o, g, b, u);
    apply_map(o, g->worker_map, b, u, ith);
    may_lie(o, b, u);
    sm_pack(o->ballot + b->word, u, n, o->config.zeros, sm_key(o->config.seed, stream, o->step));
    if (o->config.zeros == SM_ABSTAIN) sm_present(o->present + b->word, u, n);
    if (b->tensor->sparse) memset(o->ballot + b->touched, 0, sm_words(b->rows) * sizeof(uint64_t));
    for (size_t r = 0; b->tensor->sparse && r < b->rows; r++) {
        uint64_t here = sm_sum_squares(u + r * b->cols, b->cols) > 0;
        o->ballot[b->touched + r / 64] |= here << r % 64;
    }
    if (garbles(o) && !o->config.int8_wire) garble_ballot(o, b);
}

/* Does worker j's ballot say something in word w of my shard behind the end of what it is about? */
static int speaks_behind(const SmOptimizer *o, const SmGroup *g, int j, size_t w, size_t bits) {
    size_t from = g->cut_word[o->comm->rank], mine = g->cut_word[o->comm->rank + 1] - from;
    size_t at = (size_t)j * mine + w - from, plane = (size_t)o->comm->size * mine;
    const uint64_t *in = (const uint64_t *)(void *)o->inbox;
    int abstain = o->config.zeros == SM_ABSTAIN && w < g->votes;
    return ((in[at] | (abstain ? in[plane + at] : 0)) & behind(bits)) != 0;
}

/* A ballot whose padding is not 0 is malformed. */
static void refuse_ballots(SmOptimizer *o, const SmGroup *g) {
    size_t from = g->cut_word[o->comm->rank], to = g->cut_word[o->comm->rank + 1];
    for (size_t i = 0; i < g->count; i++) {
        const SmBlock *b = &g->blocks[i];
        const size_t bits[2] = {block_size(b), b->tensor->sparse ? b->rows : 0},
                     first[2] = {b->word, b->touched};
        for (int k = 0; k < 2; k++) {
            size_t last = first[k] + sm_words(bits[k]) - 1;
            if (bits[k] % 64 == 0 || last < from || last >= to) continue;
            for (int j = 0; j < o->comm->size; j++)
                if (speaks_behind(o, g, j, last, bits[k])) complain(o, SM_MALFORMED, j, b->tensor);
        }
    }
    o->exchange++;
}

/* So is one of int8 that stuffs the box: more than one vote for an entry. */
static void refuse_stuffing(SmOptimizer *o, const SmGroup *g) {
    size_t from = g->cut_word[o->comm->rank] * 64,
           mine = g->cut_word[o->comm->rank + 1] * 64 - from;
    for (int j = 0; j < o->comm->size; j++) {
        const int8_t *in = (const int8_t *)o->inbox + (size_t)j * mine;
        int wrong = 0;
        for (size_t i = 0; i < mine; i++) wrong |= (uint8_t)(in[i] + 1) > 2;
        for (size_t i = 0, k = 0; wrong && i < mine; i++) {
            while (k + 1 < g->count && g->blocks[k + 1].word * 64 <= from + i) k++;
            if (in[i] >= -1 && in[i] <= 1) continue;
            complain(o, SM_MALFORMED, j, g->blocks[k].tensor);
            break;
        }
    }
    o->exchange++;
}

/* --expel: on how many entries of my shard each worker is against the others, to everybody; then who
 * has dissented once more. Padding, which all leave 0, does not count. */
static void count_dissent(SmOptimizer *o, const SmGroup *g) {
    size_t size = (size_t)o->comm->size, rank = (size_t)o->comm->rank, from = g->cut_word[rank];
    size_t mine = g->cut_word[rank + 1] - from,
           last = from + mine < g->votes ? from + mine : g->votes;
    const uint64_t *in = (const uint64_t *)(void *)o->inbox, *ballots[COMM_MAX_WORKERS];
    uint64_t *against = o->dissent + rank * 2 * size;
    for (size_t j = 0; j < size; j++) ballots[j] = in + j * mine;
    sm_count_dissent(against, against + size, o->vote + from, ballots, size,
                     last > from ? last - from : 0, o->entries + from);
    for (size_t j = 0; j <= size; j++) o->cut_byte[j] = j * 2 * size * sizeof *against;
    comm_allgather(o->comm, o->dissent, o->cut_byte, COMM_CONTROL);
    for (size_t j = 0; j < size; j++) {
        uint64_t all[2] = {0};
        for (size_t k = 0; k < 2 * size; k++) all[k % 2] += o->dissent[k * size + j];
        float *steps = &o->dissenters[2 * j], *most = steps + 1;
        *steps = (float)sm_dissent((uint32_t)*steps, all[0], all[1]);
        *most = *steps > *most ? *steps : *most;
    }
}

/* Are ballots counted machine by machine, and counts sent? */
static int counts_by_machine(const SmOptimizer *o) {
    return o->config.machines > 1 && o->comm->locals > 1 && !o->config.int8_wire;
}

/* All S_j; where they travel as they are, those that are ready leave at once. */
static void make_ballots(SmOptimizer *o, SmGroup *g) {
    if (counts_by_machine(o) || o->config.int8_wire)
        run(o, g, make_ballot);
    else
        run_sending(o, g, make_ballot, o->ballot, in_bytes(o, g->cut_word, 8),
                    offsetof(SmBlock, word), 8);
}

/* One exchange of a bit plane: everybody's bits of my shard into `inbox`. */
static void exchange_ballots(SmOptimizer *o, SmGroup *g, const uint64_t *plane, char *inbox) {
    comm_alltoall(o->comm, plane, in_bytes(o, g->cut_word, 8), inbox, g->kind);
}

static uint64_t tie_key(const SmOptimizer *o, const SmGroup *g) {
    return sm_key(o->config.seed, (uint64_t)(g - o->group + 1) << 56, o->step);
}

/* V <- majority(S_1 .. S_N) on my shard; touched bits are merged by OR. */
static void count_votes(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    SmGroup *g = work->g;
    size_t size = (size_t)o->comm->size, from = g->cut_word[o->comm->rank],
           to = g->cut_word[o->comm->rank + 1];
    size_t mine = to - from, last = to < g->votes ? to : g->votes,
           votes = last > from ? last - from : 0;
    size_t lo = votes * (size_t)ith / (size_t)nth, hi = votes * ((size_t)ith + 1) / (size_t)nth;
    const uint64_t *in = (const uint64_t *)(void *)o->inbox, *ballots[COMM_MAX_WORKERS],
                   *presents[COMM_MAX_WORKERS];
    int abstain = o->config.zeros == SM_ABSTAIN;
    for (size_t j = 0; j < size; j++) {
        ballots[j] = in + j * mine + lo;
        presents[j] = in + (size + j) * mine + lo;
    }
    sm_vote(o->vote + from + lo, o->decided + from + lo, ballots, abstain ? presents : NULL, size,
            hi - lo, o->config.ties, tie_key(o, g), from + lo);
    if (ith != 0) return;
    for (size_t w = votes; w < mine; w++) {
        o->vote[from + w] = 0;
        for (size_t j = 0; j < size; j++) o->vote[from + w] |= in[j * mine + w];
    }
}

/* The server's part, by the owner of each block: D <- LMO(V), and its signs when the reply is
 * one bit. */
static void map_votes(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    if (b->owner != o->comm->rank) return;
    float *u = o->direction + b->element;
    sm_unpack(u, o->vote + b->word, o->decided + b->word, block_size(b));
    apply_map(o, g->server_map, b, u, ith);
    if (g->reply != SM_SIGN) return;
    uint64_t key = sm_key(o->config.seed, (uint64_t)b->index << 16, o->step);
    sm_pack(o->vote + b->word, u, block_size(b), o->config.ties, key);
    if (o->config.ties == SM_ABSTAIN) sm_present(o->decided + b->word, u, block_size(b));
}

/* W <- W - lr s V, or with a local map W <- W - lr s LMO(V), at no further communication */
static void move_by_vote(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    const uint64_t *vote = o->vote + b->word;
    const uint64_t *decided = o->config.ties == SM_ABSTAIN ? o->decided + b->word : NULL;
    float *w = o->params + b->offset, *u = o->direction + b->element;
    for (size_t k = 0; k < sm_words(block_size(b)); k++)
        o->differ[ith] += __builtin_popcountll(vote[k] ^ o->ballot[b->word + k]);
    if (g->local_map) {
        sm_unpack(u, vote, decided, block_size(b));
        apply_map(o, g->local_map, b, u, ith);
        move(o, g, b, u);
        return;
    }
    float step = (float)(g->rate * gain_of(&o->config, b->tensor, 1)), keep = keep_of(o, g, b);
    if (!b->tensor->sparse) {
        sm_apply(w, vote, decided, block_size(b), step, keep);
        return;
    }
    sm_unpack(u, vote, decided, block_size(b));
    for (size_t r = 0; r < b->rows; r++)
        if (o->vote[b->touched + r / 64] >> r % 64 & 1)
            sm_step_dense(w + r * b->cols, u + r * b->cols, b->cols, step, keep);
}

/* Words [from, to) of the vote from the sums of the ballots. */
static void decide_by_sum(SmOptimizer *o, const SmGroup *g, size_t from, size_t to) {
    for (size_t w = from; w < to; w++) {
        uint64_t more = 0, same = 0, any = 0, fill = sm__fill(o->config.ties, tie_key(o, g), w);
        for (size_t i = 0; i < 64; i++) {
            int sum = o->tally[w * 64 + i];
            more |= (uint64_t)(sum > 0) << i;
            same |= (uint64_t)(sum == 0) << i;
            any |= (uint64_t)(sum > -o->comm->size) << i;
        }
        int abstain = o->config.ties == SM_ABSTAIN;
        o->vote[w] = w >= g->votes ? any : abstain ? more : more | (same & fill);
        o->decided[w] = abstain ? ~same : ~(uint64_t)0;
    }
}

/* --wire int8, the paper's integer sum: ballots travel as int8, sums come back, everybody decides;
 * where the owner goes on with a map, it decides alone. */
static void vote_by_sum(SmOptimizer *o, SmGroup *g) {
    Comm *c = o->comm;
    size_t first = g->cut_word[c->rank], last = g->cut_word[c->rank + 1];
    size_t from = first * 64, mine = last * 64 - from;
    int abstain = o->config.zeros == SM_ABSTAIN;
    for (size_t i = 0; i < g->words * 64; i++) {
        int here = !abstain || i >= g->votes * 64 || (o->present[i / 64] >> i % 64 & 1);
        o->tally[i] = (int8_t)(here ? ((o->ballot[i / 64] >> i % 64 & 1) ? 1 : -1) : 0);
    }
    for (size_t i = 0; garbles(o) && i < g->words * 64; i++)
        o->tally[i] = (int8_t)(127 * o->tally[i]);
    comm_alltoall(c, o->tally, in_bytes(o, g->cut_word, 64), o->inbox, g->kind);
    refuse_stuffing(o, g);
    for (size_t i = 0; i < mine; i++) {
        int sum = 0;
        for (int j = 0; j < c->size; j++) sum += ((const int8_t *)o->inbox)[(size_t)j * mine + i];
        o->tally[from + i] = (int8_t)sum;
    }
    if (g->server_map) {
        decide_by_sum(o, g, first, last);
    } else {
        comm_allgather(c, o->tally, in_bytes(o, g->cut_word, 64), g->kind);
        decide_by_sum(o, g, 0, g->words);
    }
}

/* The verdicts of all shards to everybody. */
static void gather_vote(SmOptimizer *o, SmGroup *g) {
    comm_allgather(o->comm, o->vote, in_bytes(o, g->cut_word, 8), g->kind);
    if (o->config.ties == SM_ABSTAIN) comm_allgather(o->comm, o->decided, o->cut_byte, g->kind);
}

/* The sharded vote: 2 (N-1)/N bits per weight sent, whatever N is. The ballots have arrived. */
static void vote_by_shards(SmOptimizer *o, SmGroup *g) {
    size_t plane =
        (g->cut_word[o->comm->rank + 1] - g->cut_word[o->comm->rank]) * 8 * (size_t)o->comm->size;
    if (o->config.zeros == SM_ABSTAIN) exchange_ballots(o, g, o->present, o->inbox + plane);
    refuse_ballots(o, g);
    run_slices(o, g, count_votes);
    if (o->config.expel && g == o->group) count_dissent(o, g);
    if (!g->server_map) gather_vote(o, g); /* else the reply is not the vote */
}

/* Counts <- the ballots of this machine on the shards of those who have my place on any machine:
 * for each shard, planes of its length. */
static void count_machine(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    const Comm *c = o->comm;
    size_t locals = (size_t)c->locals;
    const uint64_t *bits[COMM_MAX_WORKERS];
    for (int m = 0; m < c->machines; m++) {
        const size_t *cut = work->g->cut_word + m * c->locals + c->rank % c->locals;
        size_t words = cut[1] - cut[0], lo = words * (size_t)ith / (size_t)nth,
               hi = words * ((size_t)ith + 1) / (size_t)nth;
        uint64_t *counts = o->counts + o->cut_machine[m] / 8 + lo;
        for (int absent = 0; absent <= (o->config.zeros == SM_ABSTAIN); absent++) {
            for (size_t k = 0; k < locals; k++)
                bits[k] = (const uint64_t *)o->lent[absent][k] + cut[0] + lo;
            sm_count(counts, words, bits, absent, locals, hi - lo);
            counts += sm_planes(locals) * words;
        }
    }
}

/* V <- majority(S_1 .. S_N) on my shard from the counts of all machines; touched bits are merged
 * by OR. */
static void add_machines(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    SmGroup *g = work->g;
    size_t locals = (size_t)o->comm->locals, machines = (size_t)o->comm->machines,
           from = g->cut_word[o->comm->rank], to = g->cut_word[o->comm->rank + 1], mine = to - from,
           last = to < g->votes ? to : g->votes, votes = last > from ? last - from : 0,
           planes = sm_planes(locals);
    size_t lo = votes * (size_t)ith / (size_t)nth, hi = votes * ((size_t)ith + 1) / (size_t)nth;
    int abstain = o->config.zeros == SM_ABSTAIN;
    const uint64_t *in = (const uint64_t *)(void *)o->inbox, *plus[COMM_MAX_WORKERS],
                   *absent[COMM_MAX_WORKERS];
    for (size_t m = 0; m < machines; m++) {
        plus[m] = in + m * mine * planes * (abstain ? 2 : 1) + lo;
        absent[m] = plus[m] + mine * planes;
    }
    sm_vote_counts(o->vote + from + lo, o->decided + from + lo, plus, abstain ? absent : NULL, mine,
                   machines, locals, hi - lo, o->config.ties, tie_key(o, g), from + lo);
    if (ith != 0) return;
    for (size_t w = votes; w < mine; w++) {
        o->vote[from + w] = 0;
        for (size_t m = 0; m < machines; m++)
            for (size_t p = 0; p < planes; p++) o->vote[from + w] |= plus[m][p * mine + w];
    }
}

/* The hierarchical vote: between machines, log2(L+1)/L as much as ballots of their L workers. */
static void vote_by_machines(SmOptimizer *o, SmGroup *g) {
    Comm *c = o->comm;
    int abstain = o->config.zeros == SM_ABSTAIN;
    size_t planes = sm_planes((size_t)c->locals) * (abstain ? 2 : 1), longest = 0;
    for (int place = 0; place < c->locals; place++) {
        size_t at = 0;
        for (int m = 0; m < c->machines; m++) {
            const size_t *cut = g->cut_word + m * c->locals + place;
            if (place == c->rank % c->locals) o->cut_machine[m] = at;
            at += (cut[1] - cut[0]) * planes * 8;
        }
        if (place == c->rank % c->locals) o->cut_machine[c->machines] = at;
        longest = at > longest ? at : longest;
    }
    comm_lend(c, o->ballot, o->lent[0]);
    if (abstain) comm_lend(c, o->present, o->lent[1]);
    run_slices(o, g, count_machine);
    comm_alltoall_across(c, o->counts, o->cut_machine, longest, o->inbox, g->kind);
    run_slices(o, g, add_machines);
    if (!g->server_map) gather_vote(o, g);
}

/* V <- majority(S_1 .. S_N), known to all unless its owners go on with a map */
static void take_vote(SmOptimizer *o, SmGroup *g) {
    if (o->config.int8_wire)
        vote_by_sum(o, g);
    else if (counts_by_machine(o))
        vote_by_machines(o, g);
    else
        vote_by_shards(o, g);
}

static void count_agreement(SmOptimizer *o, const SmGroup *g) {
    double differ = 0;
    for (int t = 0; t < o->comm->team->threads; t++) differ += o->differ[t], o->differ[t] = 0;
    if (g == &o->group[0]) o->agreement = 1 - differ / (double)g->elements;
}

// clang-format off
static void step_by_vote(SmOptimizer *o, SmGroup *g) {
    make_ballots(o, g);                              /* S_j = sign(LMO(M_j)), packed      */
    take_vote(o, g);                                 /* V = majority(S_1 .. S_N)          */
    if (g->server_map) {
        run(o, g, map_votes);                        /* D = LMO(V), or V = sign(LMO(V))   */
        if (g->reply == SM_DENSE) {
            comm_allgather(o->comm, o->direction, in_bytes(o, g->cut_element, 4), g->kind);
            run(o, g, move_dense);                   /* W = (1 - lr wd) W - lr s D        */
            return;
        }
        gather_vote(o, g);
    }
    run(o, g, move_by_vote);                         /* W = (1 - lr wd) W - lr s V        */
    count_agreement(o, g);
}
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * EF21-Muon (arXiv 2510.00643): compressed residuals up, compressed model shift down; every block
 * has an owner that plays the server for it */

static const EfLink *link_of(const SmOptimizer *o, const SmBlock *b, int down) {
    return b->tensor->role == SM_VECTOR ? &o->identity : &o->links[down];
}

/* Key of what is random in a message of block b: of a worker, of the server (COMM_MAX_WORKERS), or with
 * rank < 0 of what all must agree on. */
static uint64_t link_key(const SmOptimizer *o, const SmBlock *b, int rank) {
    uint64_t stream = (uint64_t)1 << 48 | (uint64_t)b->index << 16 | (uint64_t)(rank + 1);
    return sm_key(o->config.seed, stream, o->step);
}

static size_t link_bytes(const SmOptimizer *o, const SmBlock *b, int down) {
    return ef_bytes(link_of(o, b, down), b->rows, b->cols, link_key(o, b, -1));
}

/* Lay out this step's compressed messages: the bytes of each owner's shard into cut_byte. */
static const size_t *lay_out(SmOptimizer *o, SmGroup *g, int down) {
    size_t at = 0;
    int owner = 0;
    o->cut_byte[0] = 0;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        while (owner < b->owner) o->cut_byte[++owner] = at;
        *(down ? &b->down : &b->up) = at;
        at += link_bytes(o, b, down);
    }
    while (owner < o->comm->size) o->cut_byte[++owner] = at;
    if (!down) {
        o->share_at = o->cut_byte[o->comm->rank];
        o->share_bytes = o->cut_byte[o->comm->rank + 1] - o->share_at;
    }
    return o->cut_byte;
}

static void garble_residual(SmOptimizer *o, const SmBlock *b) {
    const EfLink *link = link_of(o, b, 0);
    size_t values = link->row->values(link, b->rows, b->cols) * (link->natural ? 1 : 4),
           bytes = link_bytes(o, b, 0);
    if (bytes > values) memset(o->residuals + b->up + values, 255, bytes - values);
}

/* R_j <- C(D_j - G_j) and G_j += R_j, with D_j = M_j or LMO(M_j) */
static void make_residual(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    float *u = o->direction + b->element;
    estimate(o, g, b, u);
    apply_map(o, g->worker_map, b, u, ith);
    may_lie(o, b, u);
    ef_send(o->residuals + b->up, b->state[ESTIMATE], u, b->rows, b->cols, link_of(o, b, 0),
            link_key(o, b, o->comm->rank), link_key(o, b, -1), b->state[WARM_UP],
            thread_scratch(o, ith));
    if (garbles(o)) garble_residual(o, b);
}

/* A message that does not decode: does it hold a number that is none, or no message at all? */
static SmFault fault_of(const char *message, const EfLink *link, const SmBlock *b) {
    size_t values = link->row->values(link, b->rows, b->cols);
    for (size_t i = 0; i < values; i++) {
        float x = (unsigned char)message[i] == 255 ? INFINITY : 0; /* natural: an exponent */
        if (!link->natural) memcpy(&x, message + i * sizeof x, sizeof x);
        if (!isfinite(x)) return SM_NAN;
    }
    return SM_MALFORMED;
}

/* Complain about a block's message if it does not decode. */
static void refuse_message(SmOptimizer *o, const SmBlock *b, int down, int sender,
                           const char *message) {
    const EfLink *link = link_of(o, b, down);
    float *out = o->scratch, *rest = out + (block_size(b) + 15) / 16 * 16;
    if (ef_decode(out, message, link_bytes(o, b, down), b->rows, b->cols, link, rest))
        complain(o, fault_of(message, link, b), sender, b->tensor);
}

/* Whose residual of a block of mine did not decode? */
static void refuse_residuals(SmOptimizer *o, const SmGroup *g) {
    int odd = met_odd(o);
    for (size_t i = 0; odd && i < g->count; i++)
        for (int j = 0; j < o->comm->size && g->blocks[i].owner == o->comm->rank; j++)
            refuse_message(o, &g->blocks[i], 0, j,
                           o->inbox + (size_t)j * o->share_bytes + (g->blocks[i].up - o->share_at));
    o->exchange++;
}

/* Which owner's shift did not decode? */
static void refuse_shifts(SmOptimizer *o, const SmGroup *g) {
    int odd = met_odd(o);
    for (size_t i = 0; odd && i < g->count; i++)
        refuse_message(o, &g->blocks[i], 1, g->blocks[i].owner, o->shifts + g->blocks[i].down);
    o->exchange++;
}

/* The server's part of my blocks: G += mean R_j, X <- (1 - lr wd) X - lr s LMO(G), S <- C(X - W),
 * W += S. With an exact reply X is W itself. */
static void serve(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    if (b->owner != o->comm->rank) return;
    float *u = o->direction + b->element, *w = o->params + b->offset, *x = b->state[MODEL];
    size_t n = block_size(b);
    if (x && o->step == 0) memcpy(x, w, n * sizeof *x);
    if (!x) x = w;
    if (ef_aggregate(b->state[AGGREGATE], o->inbox + (b->up - o->share_at), o->share_bytes,
                     link_bytes(o, b, 0), o->comm->size, b->rows, b->cols, link_of(o, b, 0),
                     thread_scratch(o, ith)))
        o->odd[ith] = 1;
    memcpy(u, b->state[AGGREGATE], n * sizeof *u);
    apply_map(o, g->server_map, b, u, ith);
    sm_step_dense(x, u, n, (float)(g->rate * gain_of(&o->config, b->tensor, moves_by_sign(g))),
                  keep_of(o, g, b));
    ef_send(o->shifts + b->down, w, x, b->rows, b->cols, link_of(o, b, 1),
            link_key(o, b, COMM_MAX_WORKERS), link_key(o, b, -1), b->state[WARM_DOWN],
            thread_scratch(o, ith));
}

/* W += S, for the blocks that others serve */
static void move_by_shift(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    (void)g;
    if (b->owner == o->comm->rank) return;
    if (ef_receive(o->params + b->offset, o->shifts + b->down, link_bytes(o, b, 1), b->rows,
                   b->cols, link_of(o, b, 1), thread_scratch(o, ith)))
        o->odd[ith] = 1;
}

// clang-format off
static void step_by_feedback(SmOptimizer *o, SmGroup *g) {
    const size_t *up = lay_out(o, g, 0);
    run_sending(o, g, make_residual, o->residuals,   /* R_j = C(M_j - G_j), G_j += R_j    */
                up, offsetof(SmBlock, up), 1);
    const size_t *down = lay_out(o, g, 1);
    run(o, g, serve);                                /* G += mean R_j, X -= lr s LMO(G),  */
    refuse_residuals(o, g);
    comm_allgather(o->comm, o->shifts, down, g->kind); /*                  S = C(X - W)   */
    run(o, g, move_by_shift);                        /* W += S                            */
    refuse_shifts(o, g);
}
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * DeMuon (arXiv 2510.01377) and its baselines: no server, gossip over a graph */

/* A thread's part of a piece: x_i <- sum_j w_ij x_j. */
static void mix_piece(void *context, int ith, int nth) {
    SmOptimizer *o = ((SmWork *)context)->o;
    const float *in[COMM_MAX_WORKERS];
    size_t lo = o->piece * (size_t)ith / (size_t)nth,
           hi = o->piece * ((size_t)ith + 1) / (size_t)nth;
    for (size_t k = 0; k < o->sources; k++) in[k] = o->pieces[k] + lo;
    dm_mix(o->mixed + lo, in, o->weight, o->sources, hi - lo);
    if (!sm_finite(o->mixed + lo, hi - lo)) o->odd[ith] = 1; /* so is something in a source */
}

enum { GOSSIP_FLOATS = 1 << 22, GOSSIP_LEAST = 1024 };

/* Messages that a node holds at once, its own included: of the busiest node, so that all agree. */
static size_t most_sources(const DmGraph *graph) {
    size_t most = 1;
    for (int r = 0; r < graph->period; r++)
        for (int j = 0; j < graph->nodes; j++) {
            size_t n = dm_degree(graph, (uint64_t)r, j, 0) + 1;
            most = n > most ? n : most;
        }
    return most;
}

/* Floats that travel at a time: an outbox full, or as many as everybody's fit 16 MB. */
static size_t gossip_piece(size_t sources) {
    size_t n = GOSSIP_FLOATS / sources, full = COMM_OUTBOX / sizeof(float);
    return n > full ? full : n < GOSSIP_LEAST ? GOSSIP_LEAST : n;
}

/* A neighbour's message that is not finite is refused, and with it the mixture. */
static void refuse_sources(SmOptimizer *o, const SmGroup *g, const int *source, size_t element) {
    if (!met_odd(o)) return;
    for (size_t k = 0; k < o->sources; k++)
        refuse_nan(o, g, source[k], o->pieces[k], o->piece, element);
    memset(o->mixed, 0, o->piece * sizeof(float));
}

/* x (n) <- W^rounds x: everybody's x mixed by the graph's weights. One-peer graphs count rounds from
 * the start of the run. */
static void gossip(SmOptimizer *o, SmGroup *g, float *x, size_t n, int rounds) {
    int source[COMM_MAX_WORKERS];
    size_t piece = gossip_piece(o->most_sources);
    for (int k = 0; k < rounds; k++) {
        uint64_t round = o->step * (uint64_t)rounds + (uint64_t)k;
        size_t sources = dm_sources(o->config.graph, round, o->comm->rank, source, o->weight);
        size_t out = dm_degree(o->config.graph, round, o->comm->rank, 1);
        int key = (int)(round % (uint64_t)o->config.graph->period);
        o->sources = sources;
        for (size_t at = 0; at < n; at += piece) {
            o->mixed = x + at;
            o->piece = n - at < piece ? n - at : piece;
            comm_neighbours(o->comm, o->mixed, o->piece * sizeof *x, source, sources, out, key,
                            o->inbox, g->kind);
            for (size_t j = 0; j < sources; j++)
                o->pieces[j] = (const float *)(void *)o->inbox + j * o->piece;
            run_slices(o, g, mix_piece);
            refuse_sources(o, g, source, at);
        }
        o->exchange++;
    }
}

/* U_i <- V_i + M_i - M_i's last */
static void correct_tracker(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    (void)ith;
    float *u = o->direction + b->element, *last = b->state[ESTIMATE];
    estimate(o, g, b, u);
    dm_track(b->state[TRACKER], u, last, block_size(b));
    memcpy(last, u, block_size(b) * sizeof *u);
    may_lie(o, b, b->state[TRACKER]);
}

/* Y <- (1 - lr wd) X - lr s LMO(V), V being M where nothing is tracked; AdamW takes this worker's own
 * gradient; u <- Y */
static void step_locally(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    float *u = o->direction + b->element, *v = b->state[TRACKER];
    size_t n = block_size(b);
    if (v)
        memcpy(u, v, n * sizeof *u);
    else
        estimate(o, g, b, u);
    if (g->method->update == SM_UNIT) sm__scale(u, n, o->length > 0 ? 1 / o->length : 0);
    apply_map(o, g->worker_map, b, u, ith);
    move(o, g, b, u);
    memcpy(u, o->params + b->offset, n * sizeof *u);
    if (!v) may_lie(o, b, u); /* who tracks has said it with the tracker */
}

/* X <- what gossip made of Y */
static void take_mixed(SmOptimizer *o, SmGroup *g, SmBlock *b, int ith) {
    (void)g, (void)ith;
    memcpy(o->params + b->offset, o->direction + b->element, block_size(b) * sizeof(float));
}

/* |V| over all tensors, for steps of unit length. */
static double tracker_length(const SmOptimizer *o) {
    double sum = 0;
    for (const SmGroup *g = o->group; g < o->group + 2; g++)
        for (size_t i = 0; i < g->count && g->method->update == SM_UNIT; i++)
            sum += sm_sum_squares(g->blocks[i].state[TRACKER], block_size(&g->blocks[i]));
    return sqrt(sum);
}

// clang-format off
static void step_by_gossip(SmOptimizer *o) {
    SmGroup *end = o->group + 2;
    for (SmGroup *g = o->group; g < end; g++) {
        if (!g->vector[TRACKER]) continue;
        run(o, g, correct_tracker);                  /* U_i = V_i + M_i - M_i's last      */
        gossip(o, g, g->vector[TRACKER], g->elements, o->config.rounds[0]); /* V = W U    */
    }
    o->length = tracker_length(o);
    for (SmGroup *g = o->group; g < end; g++) {
        run(o, g, step_locally);                     /* Y_i = (1-lr wd) X_i - lr s LMO(V) */
        gossip(o, g, o->direction, g->elements, o->config.rounds[1]);       /* X = W Y    */
        run(o, g, take_mixed);
        if (g->method->update != SM_ADAMW) continue; /* AdamW's moments stay near too     */
        gossip(o, g, g->vector[FIRST], g->elements, o->config.rounds[1]);
        gossip(o, g, g->vector[SECOND], g->elements, o->config.rounds[1]);
    }
}
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * a step */

static void squares_of_tensors(void *context, int ith, int nth) {
    SmOptimizer *o = ((SmWork *)context)->o;
    for (size_t t = (size_t)ith; t < o->tensor_count; t += (size_t)nth) {
        const SmTensor *x = &o->tensors[t];
        o->square[t] = sm_sum_squares(o->grads + x->offset, x->blocks * x->rows * x->cols);
    }
}

/* What clipping leaves of this worker's gradient. */
static float shrink_of(SmOptimizer *o) {
    double sum = 0, clip = o->config.clip * pow((double)o->step + 1, o->config.clip_power);
    if (o->config.clip <= 0) return 1;
    run_slices(o, NULL, squares_of_tensors);
    for (size_t t = 0; t < o->tensor_count; t++) sum += o->square[t];
    return sum > clip * clip ? (float)(clip / sqrt(sum)) : 1;
}

void sm_optimizer_step(SmOptimizer *o, float *params, const float *grads, uint64_t step, double lr,
                       double aux_lr) {
    o->params = params;
    o->grads = grads;
    o->step = step;
    o->complaint = (SmComplaint){SM_SOUND, 0, 0, 0};
    o->exchange = 0;
    o->shrink = shrink_of(o);
    o->group[0].rate = lr;
    o->group[1].rate = aux_lr;
    if (sm_gossips(o->config.method)) {
        step_by_gossip(o);
        return;
    }
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        if (g->count == 0) continue;
        if (g->method->combine == SM_VOTE)
            step_by_vote(o, g);
        else if (g->method->combine == SM_FEEDBACK)
            step_by_feedback(o, g);
        else
            step_by_mean(o, g);
    }
}

int sm_optimizer_exact(SmOptimizer *o, float *out, const float *params, uint64_t steps) {
    int found = 0;
    for (SmGroup *g = o->group; g < o->group + 2; g++)
        found |= g->method->combine == SM_FEEDBACK && !o->links[1].row->replaces;
    if (!found) return 0;
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        for (size_t i = 0; i < g->count; i++) {
            const SmBlock *b = &g->blocks[i];
            const float *x = steps && b->state[MODEL] ? b->state[MODEL] : params + b->offset;
            memcpy(o->direction + b->element, x, block_size(b) * sizeof *x);
        }
        comm_allgather(o->comm, o->direction, in_bytes(o, g->cut_element, 4), COMM_OTHER);
        for (size_t i = 0; i < g->count; i++) {
            const SmBlock *b = &g->blocks[i];
            memcpy(out + b->offset, o->direction + b->element, block_size(b) * sizeof *out);
        }
    }
    return 1;
}

void sm_optimizer_regroup(SmOptimizer *o, const float *params) {
    Comm *c = o->comm;
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        if (g->vector[TRACKER])
            memcpy(g->vector[TRACKER], g->vector[ESTIMATE], g->elements * sizeof(float));
        for (int j = 0; j < c->size && g->method->combine == SM_FEEDBACK; j++) {
            if (j == c->rank)
                memcpy(o->direction, g->vector[ESTIMATE], g->elements * sizeof(float));
            comm_broadcast(c, o->direction, g->elements * sizeof(float), j, COMM_OTHER);
            for (size_t i = 0; i < g->count; i++) {
                const SmBlock *b = &g->blocks[i];
                float *mean = b->state[AGGREGATE];
                for (size_t k = 0; mean && k < block_size(b); k++)
                    mean[k] = (j ? mean[k] : 0) + o->direction[b->element + k] / (float)c->size;
            }
        }
        for (size_t i = 0; i < g->count; i++) {
            const SmBlock *b = &g->blocks[i];
            if (b->state[MODEL])
                memcpy(b->state[MODEL], params + b->offset, block_size(b) * sizeof(float));
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * construction: everything is cut out of one arena; a NULL arena only measures */

typedef struct Carver {
    char *base;
    size_t used;
} Carver;

static void *carve(Carver *c, size_t bytes) {
    void *here = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return here;
}

static const SmMethod *method_of(const SmConfig *c, const SmTensor *t) {
    return t->role == SM_HIDDEN ? c->method : c->aux;
}

static int has_map(const SmGroup *g) { return g->worker_map || g->server_map || g->local_map; }

/* Do shards consist of whole blocks, because the owner of a block serves it? */
static int serves_blocks(const SmGroup *g) {
    return g->server_map || g->method->combine == SM_FEEDBACK;
}

/* Cost of a block in arbitrary units: an LMO is worth many passes. */
static double block_cost(const SmGroup *g, const SmTensor *t) {
    double small = (double)(t->rows < t->cols ? t->rows : t->cols);
    return (double)(t->rows * t->cols) * (has_map(g) ? 1 + small : 1);
}

/* Which entries of a group are whose: one worker's shard ends, the next one's begins. */
typedef struct Shards {
    size_t elements, words, begin; /* of all blocks so far; where the present shard began */
    double cost, total;
    int owner, workers;
} Shards;

static void end_shard(SmGroup *g, Shards *s) {
    size_t share = s->elements - s->begin;
    if (share > g->largest_share) g->largest_share = share;
    s->begin = s->elements;
    s->owner++;
    if (!g->cut_element) return;
    g->cut_element[s->owner] = s->elements;
    g->cut_word[s->owner] = s->words;
}

/* Shards of whole blocks, balanced by cost: does this block still belong to the present one? */
static void place_block(SmGroup *g, Shards *s, const SmTensor *t) {
    double cost = block_cost(g, t), middle = s->cost + cost / 2;
    while (s->owner + 1 < s->workers &&
           middle >= s->total * (double)(s->owner + 1) / (double)s->workers)
        end_shard(g, s);
    s->cost += cost;
}

/* Shards of equal size, which may cut a block. */
static void cut_evenly(SmGroup *g, int workers) {
    size_t n = (size_t)workers;
    assert(workers >= 1);
    g->largest_share = g->elements / n + 1;
    for (size_t j = 0; g->cut_element && j <= n; j++) {
        g->cut_element[j] = g->elements * j / n;
        g->cut_word[j] = g->words * j / n;
    }
}

/* Give every block to the thread with the least work so far. */
static void share_out(SmGroup *g, int threads) {
    double load[256] = {0};
    for (size_t i = 0; i < g->count; i++) {
        int least = 0;
        for (int t = 1; t < threads; t++)
            if (load[t] < load[least]) least = t;
        g->blocks[i].thread = least;
        load[least] += block_cost(g, g->blocks[i].tensor);
    }
}

/* Floats of state `k` that a method keeps of one block of a tensor, at its owner. */
static size_t state_size(const SmOptimizer *o, const SmGroup *g, const SmBlock *b, State k) {
    const SmMethod *m = g->method;
    size_t n = block_size(b);
    const SmNorm *norm = norm_of(&o->config, b->tensor, last_map(g));
    int feedback = m->combine == SM_FEEDBACK, adamw = m->update == SM_ADAMW,
        tracking = m->combine == SM_TRACKING;
    switch (k) {
    case FIRST:
        return m->estimate != SM_GRADIENT || adamw ? n : 0;
    case SECOND:
        return adamw ? n : 0;
    case ESTIMATE:
        return feedback || tracking ? n : 0;
    case TRACKER:
        return tracking ? n : 0;
    case REPLAY:
        return o->config.adversaries && o->config.attack->remembers ? n : 0;
    case MODEL:
        return feedback && !link_of(o, b, 1)->row->replaces ? n : 0;
    case AGGREGATE:
        return feedback ? n : 0;
    case WARM_UP:
        return feedback ? ef_warm(link_of(o, b, 0), b->rows, b->cols) : 0;
    case WARM_DOWN:
        return feedback ? ef_warm(link_of(o, b, 1), b->rows, b->cols) : 0;
    case WARM_NORM:
        return norm && norm->warms ? b->cols : 0;
    default:
        return 0;
    }
}

/* Is a state kept by the owner of a block only? */
static int at_owner(State k) { return k == MODEL || k == AGGREGATE || k == WARM_DOWN; }

/* The k-th block of a tensor, as the group lays it out next. */
static SmBlock block_at(const SmGroup *g, const SmTensor *t, size_t k, size_t index,
                        size_t touched) {
    return (SmBlock){.tensor = t,
                     .index = index,
                     .offset = t->offset + k * t->rows * t->cols,
                     .rows = t->rows,
                     .cols = t->cols,
                     .element = g->elements,
                     .word = g->votes,
                     .touched = touched};
}

/* What a group takes besides its blocks, found while they are laid out. */
typedef struct Room {
    size_t vector[MODEL], everybody, owner, served; /* floats; of each array over the group, of
        blocks' own state on all workers, at the present owner, and at the owner with most */
    size_t up, down, up_shard, largest_up; /* bytes of compressed messages, and of a shard */
} Room;

static void end_served(Room *r) {
    if (r->owner > r->served) r->served = r->owner;
    if (r->up_shard > r->largest_up) r->largest_up = r->up_shard;
    r->owner = r->up_shard = 0;
}

static void count_room(SmOptimizer *o, const SmGroup *g, const SmBlock *b, Room *r) {
    for (State k = FIRST; k < STATES; k++) {
        size_t n = state_size(o, g, b, k);
        if (k < MODEL)
            r->vector[k] += n;
        else
            *(at_owner(k) ? &r->owner : &r->everybody) += (n + 15) / 16 * 16;
    }
    if (g->method->combine != SM_FEEDBACK) return;
    size_t up = ef_most_bytes(link_of(o, b, 0), b->rows, b->cols);
    r->up += up;
    r->up_shard += up;
    r->down += ef_most_bytes(link_of(o, b, 1), b->rows, b->cols);
}

/* Give every block its pieces of the state. */
static void hand_out(SmOptimizer *o, SmGroup *g, float *everybody, float *served) {
    int rank = o->comm->rank;
    for (size_t i = 0; i < g->count; i++)
        for (State k = FIRST; k < STATES; k++) {
            SmBlock *b = &g->blocks[i];
            size_t n = state_size(o, g, b, k);
            float **pool = at_owner(k) ? &served : &everybody;
            if (n == 0 || (at_owner(k) && b->owner != rank) || (k == REPLAY && !lies(o))) continue;
            b->held[k] = n;
            b->state[k] = k < MODEL ? g->vector[k] + b->element : *pool;
            if (k >= MODEL) *pool += (n + 15) / 16 * 16;
        }
}

/* Lay out the blocks of one group and their state. */
static Room build_group(Carver *c, SmOptimizer *o, SmGroup *g, const SmTensor *tensors,
                        size_t count, int hidden, int workers, int threads) {
    size_t blocks = 0, index = 0, touched = 0;
    Shards s = {.workers = workers};
    Room r = {{0}, 0, 0, 0, 0, 0, 0, 0};
    for (size_t t = 0; t < count; t++) {
        if ((tensors[t].role == SM_HIDDEN) != hidden) continue;
        blocks += tensors[t].blocks;
        s.total += (double)tensors[t].blocks * block_cost(g, &tensors[t]);
    }
    g->blocks = carve(c, blocks * sizeof *g->blocks);
    g->cut_element = carve(c, ((size_t)workers + 1) * sizeof(size_t));
    g->cut_word = carve(c, ((size_t)workers + 1) * sizeof(size_t));
    for (size_t t = 0; t < count; t++)
        for (size_t k = 0; k < tensors[t].blocks; k++, index++) {
            if ((tensors[t].role == SM_HIDDEN) != hidden) continue;
            SmBlock b = block_at(g, &tensors[t], k, index, touched);
            int before = s.owner;
            s.elements = g->elements, s.words = g->votes;
            if (serves_blocks(g)) place_block(g, &s, &tensors[t]);
            if (s.owner != before) end_served(&r);
            b.owner = s.owner;
            count_room(o, g, &b, &r);
            if (g->blocks) g->blocks[g->count] = b;
            g->count++;
            g->elements += block_size(&b);
            g->votes += sm_words(block_size(&b));
            if (tensors[t].sparse) touched += sm_words(b.rows);
        }
    g->words = g->votes + touched;
    s.elements = g->elements, s.words = g->words;
    while (s.owner < workers) end_shard(g, &s);
    end_served(&r);
    if (!serves_blocks(g)) cut_evenly(g, workers);
    for (State k = FIRST; k < MODEL; k++)
        if (r.vector[k]) g->vector[k] = carve(c, r.vector[k] * sizeof(float));
    float *everybody = carve(c, r.everybody * sizeof(float)),
          *served = carve(c, r.served * sizeof(float));
    if (!g->blocks) return r;
    for (size_t i = 0; i < g->count; i++) g->blocks[i].touched += g->votes;
    hand_out(o, g, everybody, served);
    share_out(g, threads);
    return r;
}

/* Floats of scratch that the largest block of a group wants. */
static size_t scratch_of(const SmOptimizer *o, const SmGroup *g, const SmTensor *t) {
    SmBlock b = {.tensor = t, .rows = t->rows, .cols = t->cols};
    size_t most = has_map(g) ? sm_lmo_scratch(t->rows, t->cols) : 0;
    for (int down = 0; down < 2 && g->method->combine == SM_FEEDBACK; down++) {
        size_t need = ef_scratch(link_of(o, &b, down), t->rows, t->cols);
        if (need > most) most = need;
    }
    return most;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* The stages of the k-th group: 0 hidden matrices, 1 all others. */
static SmGroup group_of(const SmConfig *c, int k) {
    int hidden = k == 0, same = hidden;
    for (int role = 0; role < SM_ROLES && c->aux == c->method; role++)
        same |= sm_norm(c->role_norm[role]) != NULL;
    return (SmGroup){.method = hidden ? c->method : c->aux,
                     .worker_map = same ? sm_norm(c->worker_map) : NULL,
                     .server_map = same ? sm_norm(c->server_map) : NULL,
                     .local_map = hidden ? sm_norm(c->local_map) : NULL,
                     .reply = hidden ? c->reply : c->aux->reply,
                     .kind = hidden ? COMM_MATRICES : COMM_AUXILIARY};
}

/* A link whose functions are this file's: the caller's were compiled with other products. */
static EfLink own_link(const EfLink *link) {
    EfLink own = *link;
    const EfCompressor *row;
    for (size_t i = 0; (row = ef_compressor_row(i)) != NULL; i++)
        if (sm__equal(row->name, link->row->name)) own.row = row;
    return own;
}

static SmBytes build(Carver *c, SmOptimizer *o, const SmTensor *tensors, size_t count, int workers,
                     int threads) {
    const SmConfig *config = &o->config;
    size_t elements = 0, words = 0, scratch = 0, n = (size_t)workers, inbox = 0, up = 0, down = 0;
    size_t planes = config->zeros == SM_ABSTAIN ? 2 : 1, state, messages;
    char error[256];
    int bad = ef_parse(&o->identity, "identity", error, sizeof error);
    assert(!bad), (void)bad;
    o->links[0] = config->up ? own_link(config->up) : o->identity;
    o->links[1] = config->down ? own_link(config->down) : o->identity;
    for (int k = 0; k < 2; k++) {
        SmGroup *g = &o->group[k];
        *g = group_of(config, k);
        Room r = build_group(c, o, g, tensors, count, k == 0, workers, threads);
        elements = larger(elements, g->elements);
        if (g->method->combine == SM_VOTE) {
            size_t bytes = planes * (g->words + n) * (config->int8_wire ? 64 : 8);
            words = larger(words, g->words);
            inbox = larger(inbox, g->server_map ? n * bytes : bytes);
        } else if (g->method->combine == SM_MEAN && workers > 1) {
            inbox = larger(inbox, n * g->largest_share * sizeof(float));
        }
        inbox = larger(inbox, n * r.largest_up);
        up = larger(up, r.up);
        down = larger(down, r.down);
        for (size_t t = 0; t < count; t++)
            if ((tensors[t].role == SM_HIDDEN) == (k == 0))
                scratch = larger(scratch, scratch_of(o, g, &tensors[t]));
    }
    if (sm_gossips(config->method)) {
        o->most_sources = most_sources(config->graph);
        size_t piece = gossip_piece(o->most_sources);
        inbox = o->most_sources * (piece < elements ? piece : elements) * sizeof(float);
    }
    state = c->used;
    o->direction = carve(c, elements * sizeof(float));
    o->ballot = carve(c, words * 8);
    o->present = carve(c, planes == 2 ? words * 8 : 0);
    o->vote = carve(c, words * 8);
    o->decided = carve(c, words * 8);
    o->tally = carve(c, config->int8_wire ? words * 64 : 0);
    o->inbox = carve(c, inbox);
    int counted = config->machines > 1 && workers > config->machines && !config->int8_wire;
    size_t each = counted ? sm_planes(n / (size_t)config->machines) * planes : 0;
    o->counts = carve(c, each * (words + n) * 8);
    o->cut_machine = carve(c, (n + 1) * sizeof(size_t));
    o->residuals = carve(c, up);
    o->shifts = carve(c, down);
    o->cut_byte = carve(c, (n + 1) * sizeof(size_t));
    o->differ = carve(c, (size_t)threads * sizeof(double));
    o->done = carve(c, (size_t)threads * sizeof *o->done);
    o->square = carve(c, count * sizeof(double));
    o->odd = carve(c, (size_t)threads * sizeof(int));
    o->entries = carve(c, config->expel ? o->group[0].words * 8 : 0);
    o->dissent = carve(c, config->expel ? 2 * n * n * sizeof(uint64_t) : 0);
    o->dissenters = carve(c, config->expel ? 2 * n * sizeof(float) : 0);
    messages = c->used - state;
    o->scratch_floats = (scratch + 15) / 16 * 16;
    o->scratch = carve(c, (size_t)threads * o->scratch_floats * sizeof(float));
    return (SmBytes){state, messages, c->used - state - messages, c->used};
}

SmConfig sm_config(const SmMethod *method, const SmMethod *aux) {
    int lmo = aux == method && sm__equal(method->aux, "lmo");
    return (SmConfig){.method = method,
                      .aux = aux,
                      .worker_map = method->worker_map,
                      .server_map = method->server_map,
                      .local_map = "none",
                      .role_norm = {lmo ? sm_scion_norm(SM_VECTOR) : "none", "none",
                                    lmo ? sm_scion_norm(SM_INPUT) : "none",
                                    lmo ? sm_scion_norm(SM_OUTPUT) : "none"},
                      .radius = {1, 1, 1, 1},
                      .reply = method->reply,
                      .gain = sm_gain(method->gain),
                      .ns = sm_newton_schulz("jordan5"),
                      .momentum = method->momentum,
                      .beta1 = 0.9,
                      .beta2 = 0.95,
                      .epsilon = 1e-8,
                      .decay = method->decay,
                      .clip = method->clip,
                      .clip_power = method->clip_power,
                      .nesterov = method->nesterov,
                      .first_gradient = method->first_gradient,
                      .rounds = {1, 1}};
}

SmBytes sm_optimizer_bytes(const SmConfig *config, const SmTensor *tensors, size_t count,
                           int workers, int threads) {
    Carver c = {NULL, 0};
    SmOptimizer o = {.config = *config};
    carve(&c, sizeof o);
    return build(&c, &o, tensors, count, workers, threads);
}

SmOptimizer *sm_optimizer_init(void *arena, const SmConfig *config, const SmTensor *tensors,
                               size_t count, struct Comm *comm) {
    Carver c = {arena, 0};
    SmOptimizer *o = carve(&c, sizeof *o);
    assert(!config->int8_wire || comm->size <= 127);
    assert(config->machines <= 1 || config->machines == comm->machines);
    assert(!sm_gossips(config->method) || (config->graph && config->aux->combine != SM_VOTE));
    assert(!config->expel || (config->method->combine == SM_VOTE && !config->int8_wire &&
                              config->zeros != SM_ABSTAIN));
    assert(!config->adversaries || config->attack);
    *o = (SmOptimizer){.config = *config,
                       .comm = comm,
                       .tensors = tensors,
                       .tensor_count = count,
                       .agreement = NAN};
    build(&c, o, tensors, count, comm->size, comm->team->threads);
    const SmGroup *g = &o->group[0];
    for (size_t i = 0; config->expel && i < g->count; i++) {
        const SmBlock *b = &g->blocks[i];
        size_t words = sm_words(block_size(b));
        memset(o->entries + b->word, 255, words * 8);
        o->entries[b->word + words - 1] &= ~behind(block_size(b));
    }
    return o;
}

int sm_optimizer_state(const SmOptimizer *o, size_t i, SmState *state) {
    for (size_t t = 0; t < o->tensor_count; t++) {
        const SmTensor *tensor = &o->tensors[t];
        const SmGroup *g = &o->group[tensor->role == SM_HIDDEN ? 0 : 1];
        const SmBlock *b = g->blocks;
        while (b->tensor != tensor) b++;
        int adam = g->method->update == SM_ADAMW;
        for (State k = FIRST; k < STATES; k++)
            for (size_t j = 0; j < (state_rows[k].by_block ? tensor->blocks : 1); j++) {
                if (!b[j].held[k] || i-- > 0) continue;
                size_t cols = b[j].held[k] == block_size(b) ? tensor->cols : b[j].held[k],
                       copies = state_rows[k].by_block ? 1 : tensor->blocks;
                *state =
                    (SmState){.kind = adam && k == FIRST ? "adamw.m" : state_rows[k].name,
                              .tensor = t,
                              .block = state_rows[k].by_block ? (int)j : -1,
                              .rows = copies * b[j].held[k] / cols,
                              .cols = cols,
                              .data = b[j].state[k],
                              .replicated = adam && k <= SECOND && !sm_gossips(o->config.method)};
                return 1;
            }
    }
    if (i > 0 || !o->config.expel) return 0;
    *state = (SmState){.kind = "dissent",
                       .block = -1,
                       .rows = (size_t)o->comm->size,
                       .cols = 2,
                       .data = o->dissenters,
                       .replicated = 1};
    return 1;
}

SmComplaint sm_optimizer_complaint(const SmOptimizer *o) { return o->complaint; }

uint32_t sm_optimizer_dissent(const SmOptimizer *o, int rank, uint32_t *most) {
    *most = o->config.expel ? (uint32_t)o->dissenters[2 * rank + 1] : 0;
    return o->config.expel ? (uint32_t)o->dissenters[2 * rank] : 0;
}

double sm_optimizer_agreement(const SmOptimizer *o) { return o->agreement; }

double sm_tensor_gain(const SmConfig *config, const SmTensor *tensor) {
    SmGroup g = group_of(config, tensor->role != SM_HIDDEN);
    return gain_of(config, tensor, moves_by_sign(&g));
}

double sm_tensor_rms(const SmConfig *config, const SmTensor *tensor) {
    SmGroup g = group_of(config, tensor->role != SM_HIDDEN);
    const SmNorm *norm = norm_of(config, tensor, last_map(&g));
    double gain = sm_tensor_gain(config, tensor);
    if (g.reply == SM_SIGN && !g.local_map) return gain;
    return norm ? gain * norm->rms((double)tensor->rows, (double)tensor->cols) : NAN;
}

/* Bits per weight of error feedback's messages. */
static double link_bits(const SmConfig *c, const SmTensor *t, int down, int paper) {
    EfLink identity;
    char error[256];
    if (ef_parse(&identity, "identity", error, sizeof error)) return NAN;
    const EfLink *link = t->role == SM_VECTOR ? &identity : down ? c->down : c->up;
    if (!link) link = &identity;
    double bits = (paper ? ef_paper_bits : ef_bits)(link, t->rows, t->cols);
    return (paper ? bits : ceil(bits / 8) * 8) / (double)(t->rows * t->cols);
}

/* Bits per weight of a tensor that go up to the owners of its shards, or come back from them. */
static double leg_bits(const SmConfig *c, const SmTensor *t, int down, int paper) {
    const SmMethod *m = method_of(c, t);
    int server = t->role == SM_HIDDEN && sm_norm(c->server_map) != NULL;
    if (m->combine == SM_FEEDBACK) return link_bits(c, t, down, paper);
    if (m->combine != SM_VOTE) return 32;
    if (!down) return c->int8_wire ? 8 : c->zeros == SM_ABSTAIN ? 2 : 1;
    if (server && c->reply == SM_DENSE) return 32;
    if (!server && c->int8_wire) return 8; /* the sums */
    return c->ties == SM_ABSTAIN ? 2 : 1;
}

/* fp32 to every neighbour, once for each round of the parameters, the tracker, AdamW's moments. */
static double gossip_bits(const SmConfig *c, const SmTensor *t, int workers) {
    const SmMethod *m = method_of(c, t);
    double edges = 0;
    for (int r = 0; r < c->graph->period; r++)
        for (int j = 0; j < workers; j++) edges += (double)dm_degree(c->graph, (uint64_t)r, j, 1);
    int vectors = c->rounds[1] * (m->update == SM_ADAMW ? 3 : 1) +
                  (m->combine == SM_TRACKING ? c->rounds[0] : 0);
    return 32 * vectors * edges / (double)workers / (double)c->graph->period;
}

double sm_uplink_bits(const SmConfig *config, const SmTensor *tensor, int workers, int paper) {
    double share = (double)(workers - 1) / workers;
    if (sm_gossips(config->method)) return gossip_bits(config, tensor, workers);
    return share * leg_bits(config, tensor, 0, paper);
}

double sm_bits_per_weight(const SmConfig *config, const SmTensor *tensor, int workers) {
    double share = (double)(workers - 1) / workers;
    if (sm_gossips(config->method)) return gossip_bits(config, tensor, workers);
    return share * (leg_bits(config, tensor, 0, 0) + leg_bits(config, tensor, 1, 0));
}
