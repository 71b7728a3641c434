/* signmuon.c - the distributed optimizer: signmuon.h's mathematics over the workers of comm.h. MIT.

   Two functions are the algorithm boxes: step_by_vote (one bit per weight up, majority, a reply)
   and step_by_mean (fp32 up, mean in rank order, a reply). Which stages a step has is data: a row
   of the method table, one row for the hidden matrices and one for all other tensors. What a worker
   does between two exchanges is spread over its compute threads block by block, a block being one
   matrix (a fused qkv is three), so that no result depends on their number. */
#include "comm.h"
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
#include "signmuon.h"

/* ------------------------------------------------------------------------------------------------
 * state */

/* One matrix, or one vector: what an LMO and a gain see as a whole. */
typedef struct SmBlock {
    const SmTensor *tensor;
    size_t index; /* among all blocks of the model: keys its coins */
    size_t offset, rows, cols;
    size_t element, word;  /* where it begins in its group's dense and sign messages */
    size_t touched;        /* first word of its rows' touched bits, when sparse */
    float *first, *second; /* momentum or AdamW's m; AdamW's v */
    int thread;            /* the compute thread that works on it */
} SmBlock;

/* The tensors under one rule; they share one message. */
typedef struct SmGroup {
    const SmMethod *method;
    const SmNorm *worker_map, *server_map, *local_map;
    SmMessage reply;
    CommKind kind;
    SmBlock *blocks;
    size_t count, elements, votes, words; /* words past `votes` are touched bits */
    size_t *cut_element, *cut_word;       /* shard j is [cut[j], cut[j+1]) */
    double rate;
} SmGroup;

struct SmOptimizer {
    SmConfig config;
    Comm *comm;
    const SmTensor *tensors;
    size_t tensor_count;
    SmGroup group[2]; /* hidden matrices; all others */
    float *direction; /* dense message, or what a block's direction is made in */
    uint64_t *ballot, *present, *vote, *decided;
    char *inbox;
    int8_t *tally; /* wire int8: a ballot or a sum per weight */
    size_t *cut_byte;
    float *scratch; /* `scratch_floats` for each thread */
    size_t scratch_floats;
    double *confirmed; /* per thread: signs that the vote confirmed */
    double agreement;
    float *params; /* of the step under way */
    const float *grads;
    uint64_t step;
};

/* What a function that runs on every compute thread gets. */
typedef struct SmWork {
    SmOptimizer *o;
    SmGroup *g;
} SmWork;

static size_t block_size(const SmBlock *b) { return b->rows * b->cols; }
static float *thread_scratch(SmOptimizer *o, int ith) {
    return o->scratch + (size_t)ith * o->scratch_floats;
}

static void run(SmOptimizer *o, SmGroup *g, void (*function)(void *, int, int)) {
    SmWork work = {o, g};
    team_run(o->comm->team, function, &work);
}

/* ------------------------------------------------------------------------------------------------
 * stages of one block */

/* u <- what this worker holds of block b: gradient, momentum, or Lion's interpolation. */
static void estimate(SmOptimizer *o, const SmGroup *g, const SmBlock *b, float *u) {
    const SmConfig *c = &o->config;
    const float *grad = o->grads + b->offset, *w = o->params + b->offset;
    size_t n = block_size(b);
    if (c->coupled_decay && b->tensor->decay && !b->tensor->sparse) {
        for (size_t i = 0; i < n; i++) u[i] = grad[i] + (float)c->decay * w[i];
        grad = u;
    }
    float mu = (float)c->momentum;
    if (g->method->estimate == SM_MOMENTUM)
        sm_momentum(u, b->first, grad, n, mu, c->nesterov);
    else if (g->method->estimate == SM_LION)
        sm_lion(u, b->first, grad, n, (float)c->beta1, mu);
    else if (grad != u)
        memcpy(u, grad, n * sizeof *u);
}

/* u <- LMO(u) over the whole block; nothing when there is no map. */
static void apply_map(SmOptimizer *o, const SmNorm *map, const SmBlock *b, float *u, int ith) {
    if (map) map->lmo(u, u, b->rows, b->cols, o->config.ns, thread_scratch(o, ith));
}

/* The factor that decoupled decay leaves of a weight. */
static float keep_of(const SmOptimizer *o, const SmGroup *g, const SmBlock *b) {
    const SmConfig *c = &o->config;
    return b->tensor->decay && !c->coupled_decay ? (float)(1 - g->rate * c->decay) : 1.0f;
}

/* Directions of +-1 and directions of unit norm have gains of their own; other tensors have
 * none. */
static double gain_of(const SmConfig *c, const SmTensor *t, int sign) {
    return t->hidden ? c->gain->gain(t->rows, t->cols, sign) : 1;
}

/* Is what finally moves a block made of +-1: a vote, or the LMO of the sign norm? */
static int moves_by_sign(const SmGroup *g) {
    const SmNorm *last = g->local_map    ? g->local_map
                         : g->server_map ? g->server_map
                                         : g->worker_map;
    return (g->reply == SM_SIGN && !g->local_map) || last == sm_norm("sign");
}

/* Move block b along a dense direction u. */
static void move(SmOptimizer *o, SmGroup *g, SmBlock *b, const float *u) {
    const SmConfig *c = &o->config;
    float *w = o->params + b->offset, keep = keep_of(o, g, b);
    size_t n = block_size(b);
    if (g->method->update == SM_ADAMW) {
        sm_adamw(w, b->first, b->second, u, n, o->step + 1, g->rate, c->beta1, c->beta2, c->epsilon,
                 keep);
    } else {
        sm_step_dense(w, u, n, (float)(g->rate * gain_of(c, b->tensor, moves_by_sign(g))), keep);
    }
}

/* ------------------------------------------------------------------------------------------------
 * fp32 up, the mean, a dense reply: sgd, adamw, muon, muon-avgpolar */

/* D_j <- M_j, or LMO(M_j) */
static void make_direction(void *context, int ith, int nth) {
    SmWork *work = context;
    (void)nth;
    for (size_t i = 0; i < work->g->count; i++) {
        SmBlock *b = &work->g->blocks[i];
        if (b->thread != ith) continue;
        estimate(work->o, work->g, b, work->o->direction + b->element);
        apply_map(work->o, work->g->worker_map, b, work->o->direction + b->element, ith);
    }
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
}

/* The server's part, by the owner of each block: D <- LMO(D). */
static void map_shard(void *context, int ith, int nth) {
    SmWork *work = context;
    SmGroup *g = work->g;
    int rank = work->o->comm->rank;
    (void)nth;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        if (b->element < g->cut_element[rank] || b->element >= g->cut_element[rank + 1]) continue;
        if (b->thread == ith)
            apply_map(work->o, g->server_map, b, work->o->direction + b->element, ith);
    }
}

/* W <- W - lr s D */
static void move_dense(void *context, int ith, int nth) {
    SmWork *work = context;
    (void)nth;
    for (size_t i = 0; i < work->g->count; i++) {
        SmBlock *b = &work->g->blocks[i];
        if (b->thread == ith) move(work->o, work->g, b, work->o->direction + b->element);
    }
}

/* cuts in bytes, for an exchange of `width` bytes per unit */
static const size_t *in_bytes(SmOptimizer *o, const size_t *cuts, size_t width) {
    for (int j = 0; j <= o->comm->size; j++) o->cut_byte[j] = cuts[j] * width;
    return o->cut_byte;
}

/* All of it for one worker, which has nobody to wait for: each block goes through while in cache. */
static void step_alone(void *context, int ith, int nth) {
    SmWork *work = context;
    SmGroup *g = work->g;
    (void)nth;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        float *u = work->o->direction + b->element;
        if (b->thread != ith) continue;
        estimate(work->o, g, b, u);
        apply_map(work->o, g->worker_map, b, u, ith);
        apply_map(work->o, g->server_map, b, u, ith);
        move(work->o, g, b, u);
    }
}

// clang-format off
static void step_by_mean(SmOptimizer *o, SmGroup *g) {
    if (o->comm->size == 1) { run(o, g, step_alone); return; }
    run(o, g, make_direction);                       /* D_j = M_j, or LMO(M_j)            */
    comm_alltoall(o->comm, o->direction, in_bytes(o, g->cut_element, 4), o->inbox, g->kind);
    run(o, g, average_shard);                        /* D = mean D_j                      */
    if (g->server_map) run(o, g, map_shard);         /* D = LMO(D)                        */
    comm_allgather(o->comm, o->direction, in_bytes(o, g->cut_element, 4), g->kind);
    run(o, g, move_dense);                           /* W = (1 - lr wd) W - lr s D        */
}
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * one bit up, a majority vote, a reply: signsgd, signum, lion, signmuon, muonusign, muonsign */

/* S_j <- sign(LMO(M_j)), packed; coins for exact zeros have the rank in their key */
static void make_ballot(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    (void)nth;
    for (size_t i = 0; i < work->g->count; i++) {
        SmBlock *b = &work->g->blocks[i];
        if (b->thread != ith) continue;
        float *u = o->direction + b->element;
        size_t n = block_size(b);
        uint64_t stream = (uint64_t)b->index << 16 | ((uint64_t)o->comm->rank + 1);
        estimate(o, work->g, b, u);
        apply_map(o, work->g->worker_map, b, u, ith);
        sm_pack(o->ballot + b->word, u, n, o->config.zeros,
                sm_key(o->config.seed, stream, o->step));
        if (o->config.zeros == SM_ABSTAIN) sm_present(o->present + b->word, u, n);
        if (!b->tensor->sparse) continue;
        memset(o->ballot + b->touched, 0, sm_words(b->rows) * sizeof(uint64_t));
        for (size_t r = 0; r < b->rows; r++) {
            uint64_t here = sm_sum_squares(u + r * b->cols, b->cols) > 0;
            o->ballot[b->touched + r / 64] |= here << r % 64;
        }
    }
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
static void map_votes(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    SmGroup *g = work->g;
    int rank = o->comm->rank;
    (void)nth;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        if (b->word < g->cut_word[rank] || b->word >= g->cut_word[rank + 1] || b->thread != ith)
            continue;
        float *u = o->direction + b->element;
        sm_unpack(u, o->vote + b->word, o->decided + b->word, block_size(b));
        apply_map(o, g->server_map, b, u, ith);
        if (g->reply != SM_SIGN) continue;
        uint64_t key = sm_key(o->config.seed, (uint64_t)b->index << 16, o->step);
        sm_pack(o->vote + b->word, u, block_size(b), o->config.ties, key);
        if (o->config.ties == SM_ABSTAIN) sm_present(o->decided + b->word, u, block_size(b));
    }
}

/* W <- W - lr s V, or with a local map W <- W - lr s LMO(V), at no further communication */
static void move_by_vote(void *context, int ith, int nth) {
    SmWork *work = context;
    SmOptimizer *o = work->o;
    SmGroup *g = work->g;
    double confirmed = 0;
    (void)nth;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        if (b->thread != ith) continue;
        const uint64_t *vote = o->vote + b->word;
        const uint64_t *decided = o->config.ties == SM_ABSTAIN ? o->decided + b->word : NULL;
        float *w = o->params + b->offset, *u = o->direction + b->element;
        for (size_t k = 0; k < sm_words(block_size(b)); k++)
            confirmed += __builtin_popcountll(vote[k] ^ o->ballot[b->word + k]);
        if (g->local_map) {
            sm_unpack(u, vote, decided, block_size(b));
            apply_map(o, g->local_map, b, u, ith);
            move(o, g, b, u);
            continue;
        }
        float step = (float)(g->rate * gain_of(&o->config, b->tensor, 1)), keep = keep_of(o, g, b);
        if (!b->tensor->sparse) {
            sm_apply(w, vote, decided, block_size(b), step, keep);
            continue;
        }
        sm_unpack(u, vote, decided, block_size(b));
        for (size_t r = 0; r < b->rows; r++)
            if (o->vote[b->touched + r / 64] >> r % 64 & 1)
                sm_step_dense(w + r * b->cols, u + r * b->cols, b->cols, step, keep);
    }
    o->confirmed[ith] = confirmed;
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
    comm_alltoall(c, o->tally, in_bytes(o, g->cut_word, 64), o->inbox, g->kind);
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

/* The sharded vote: 2 (N-1)/N bits per weight sent, whatever N is. */
static void vote_by_shards(SmOptimizer *o, SmGroup *g) {
    size_t plane =
        (g->cut_word[o->comm->rank + 1] - g->cut_word[o->comm->rank]) * 8 * (size_t)o->comm->size;
    exchange_ballots(o, g, o->ballot, o->inbox);
    if (o->config.zeros == SM_ABSTAIN) exchange_ballots(o, g, o->present, o->inbox + plane);
    run(o, g, count_votes);
    if (!g->server_map) gather_vote(o, g); /* else the reply is not the vote */
}

static void count_agreement(SmOptimizer *o, const SmGroup *g) {
    double differ = 0;
    for (int t = 0; t < o->comm->team->threads; t++) differ += o->confirmed[t];
    if (g == &o->group[0]) o->agreement = 1 - differ / (double)g->elements;
}

// clang-format off
static void step_by_vote(SmOptimizer *o, SmGroup *g) {
    run(o, g, make_ballot);                          /* S_j = sign(LMO(M_j)), packed      */
    if (o->config.int8_wire) vote_by_sum(o, g);      /* V = majority(S_1 .. S_N)          */
    else vote_by_shards(o, g);
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

void sm_optimizer_step(SmOptimizer *o, float *params, const float *grads, uint64_t step, double lr,
                       double aux_lr) {
    o->params = params;
    o->grads = grads;
    o->step = step;
    o->group[0].rate = lr;
    o->group[1].rate = aux_lr;
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        if (g->count == 0) continue;
        if (g->method->message == SM_SIGN)
            step_by_vote(o, g);
        else
            step_by_mean(o, g);
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
    return t->hidden ? c->method : c->aux;
}

/* Cost of a block in arbitrary units: an LMO is worth many passes. */
static double block_cost(const SmGroup *g, const SmBlock *b) {
    double small = (double)(b->rows < b->cols ? b->rows : b->cols);
    return (double)block_size(b) * (g->worker_map || g->server_map || g->local_map ? 1 + small : 1);
}

/* Shards of equal size; of whole blocks, balanced by cost, where the owner applies a map to
 * each. */
static void cut_shards(SmGroup *g, int workers) {
    size_t n = (size_t)workers;
    assert(workers >= 1);
    if (!g->server_map) {
        for (size_t j = 0; j <= n; j++) {
            g->cut_element[j] = g->elements * j / n;
            g->cut_word[j] = g->words * j / n;
        }
        return;
    }
    double total = 0, before = 0;
    for (size_t i = 0; i < g->count; i++) total += block_cost(g, &g->blocks[i]);
    size_t owner = 0;
    for (size_t i = 0; i < g->count; i++) {
        SmBlock *b = &g->blocks[i];
        double middle = before + block_cost(g, b) / 2;
        while (owner + 1 < n && middle >= total * (double)(owner + 1) / (double)n) {
            owner++;
            g->cut_element[owner] = b->element;
            g->cut_word[owner] = b->word;
        }
        before += block_cost(g, b);
    }
    while (owner < n) {
        owner++;
        g->cut_element[owner] = g->elements;
        g->cut_word[owner] = g->words;
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
        load[least] += block_cost(g, &g->blocks[i]);
    }
}

/* Lay out the blocks of one group and their state. */
static void build_group(Carver *c, SmGroup *g, const SmTensor *tensors, size_t count, int hidden,
                        int workers, int threads) {
    size_t blocks = 0, index = 0, state[2] = {0, 0};
    for (size_t t = 0; t < count; t++) {
        if (tensors[t].hidden != hidden) continue;
        blocks += tensors[t].blocks;
        state[0] += tensors[t].blocks * tensors[t].rows * tensors[t].cols;
    }
    state[1] = g->method->update == SM_ADAMW ? state[0] : 0;
    if (g->method->estimate == SM_GRADIENT && g->method->update != SM_ADAMW) state[0] = 0;
    g->elements = g->votes = g->count = 0;
    g->blocks = carve(c, blocks * sizeof *g->blocks);
    g->cut_element = carve(c, ((size_t)workers + 1) * sizeof(size_t));
    g->cut_word = carve(c, ((size_t)workers + 1) * sizeof(size_t));
    float *first = carve(c, state[0] * sizeof(float)), *second = carve(c, state[1] * sizeof(float));
    size_t touched = 0;
    for (size_t t = 0; t < count; t++)
        for (size_t k = 0; k < tensors[t].blocks; k++, index++) {
            size_t n = tensors[t].rows * tensors[t].cols;
            if (tensors[t].hidden != hidden) continue;
            SmBlock b = {.tensor = &tensors[t],
                         .index = index,
                         .offset = tensors[t].offset + k * n,
                         .rows = tensors[t].rows,
                         .cols = tensors[t].cols,
                         .element = g->elements,
                         .word = g->votes,
                         .touched = touched};
            if (state[0] && first) b.first = first + g->elements;
            if (state[1] && second) b.second = second + g->elements;
            if (g->blocks) g->blocks[g->count] = b;
            g->count++;
            g->elements += n;
            g->votes += sm_words(n);
            if (tensors[t].sparse) touched += sm_words(b.rows);
        }
    g->words = g->votes + touched;
    if (!g->blocks) return;
    for (size_t i = 0; i < g->count; i++) g->blocks[i].touched += g->votes;
    cut_shards(g, workers);
    share_out(g, threads);
}

static SmBytes build(Carver *c, SmOptimizer *o, const SmTensor *tensors, size_t count, int workers,
                     int threads) {
    const SmConfig *config = &o->config;
    size_t elements = 0, words = 0, scratch = 0, n = (size_t)workers, state, messages;
    int maps = 0;
    for (int k = 0; k < 2; k++) {
        SmGroup *g = &o->group[k];
        int hidden = k == 0;
        *g = (SmGroup){.method = hidden ? config->method : config->aux,
                       .worker_map = hidden ? sm_norm(config->worker_map) : NULL,
                       .server_map = hidden ? sm_norm(config->server_map) : NULL,
                       .local_map = hidden ? sm_norm(config->local_map) : NULL,
                       .reply = hidden ? config->reply : config->aux->reply,
                       .kind = hidden ? COMM_MATRICES : COMM_AUXILIARY};
        build_group(c, g, tensors, count, hidden, workers, threads);
        maps |= g->worker_map || g->server_map || g->local_map;
        if (g->elements > elements) elements = g->elements;
        if (g->words > words && g->method->message == SM_SIGN) words = g->words;
    }
    for (size_t t = 0; t < count; t++) {
        size_t need = sm_lmo_scratch(tensors[t].rows, tensors[t].cols);
        if (tensors[t].hidden && maps && need > scratch) scratch = need;
    }
    size_t longest = elements + n, bytes = longest * sizeof(float);
    if (sm_norm(config->server_map)) bytes *= n; /* an owner may hold all blocks */
    size_t planes = config->zeros == SM_ABSTAIN ? 2 : 1, sign_bytes = planes * (words + n) * 8;
    if (config->int8_wire) sign_bytes = (words + n) * 64;
    if (sm_norm(config->server_map)) sign_bytes *= n;
    state = c->used;
    o->direction = carve(c, elements * sizeof(float));
    o->ballot = carve(c, words * 8);
    o->present = carve(c, planes == 2 ? words * 8 : 0);
    o->vote = carve(c, words * 8);
    o->decided = carve(c, words * 8);
    o->tally = carve(c, config->int8_wire ? words * 64 : 0);
    int dense = workers > 1 && (o->group[0].method->message == SM_DENSE ||
                                o->group[1].method->message == SM_DENSE);
    o->inbox = carve(c, dense && bytes > sign_bytes ? bytes : sign_bytes);
    o->cut_byte = carve(c, (n + 1) * sizeof(size_t));
    o->confirmed = carve(c, (size_t)threads * sizeof(double));
    messages = c->used - state;
    o->scratch_floats = (scratch + 15) / 16 * 16;
    o->scratch = carve(c, (size_t)threads * o->scratch_floats * sizeof(float));
    return (SmBytes){state, messages, c->used - state - messages, c->used};
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
    *o = (SmOptimizer){.config = *config,
                       .comm = comm,
                       .tensors = tensors,
                       .tensor_count = count,
                       .agreement = NAN};
    build(&c, o, tensors, count, comm->size, comm->team->threads);
    return o;
}

int sm_optimizer_state(const SmOptimizer *o, size_t i, SmState *state) {
    for (size_t t = 0; t < o->tensor_count; t++) {
        const SmGroup *g = &o->group[o->tensors[t].hidden ? 0 : 1];
        const SmBlock *b = g->blocks;
        while (b->tensor != &o->tensors[t]) b++;
        int adam = g->method->update == SM_ADAMW;
        float *data[2] = {b->first, b->second};
        for (int k = 0; k < 2; k++)
            if (data[k] && i-- == 0) {
                *state =
                    (SmState){adam ? (k ? "adamw.v" : "adamw.m") : "momentum", t, data[k], adam};
                return 1;
            }
    }
    return 0;
}

double sm_optimizer_agreement(const SmOptimizer *o) { return o->agreement; }

double sm_tensor_gain(const SmConfig *config, const SmTensor *tensor) {
    if (!tensor->hidden) return gain_of(config, tensor, 0);
    SmGroup g = {.reply = config->reply,
                 .worker_map = sm_norm(config->worker_map),
                 .server_map = sm_norm(config->server_map),
                 .local_map = sm_norm(config->local_map)};
    return gain_of(config, tensor, moves_by_sign(&g));
}

double sm_bits_per_weight(const SmConfig *config, const SmTensor *tensor, int workers) {
    double share = (double)(workers - 1) / workers;
    int server = tensor->hidden && sm_norm(config->server_map) != NULL;
    if (method_of(config, tensor)->message == SM_DENSE) return share * 64;
    double ballot = config->int8_wire ? 8 : config->zeros == SM_ABSTAIN ? 2 : 1;
    double vote = config->ties == SM_ABSTAIN ? 2 : 1;
    if (server && config->reply == SM_DENSE) vote = 32;
    if (!server && config->int8_wire) vote = 8; /* the sums */
    return share * (ballot + vote);
}
