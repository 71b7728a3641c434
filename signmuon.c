/* signmuon.c - a step of the distributed optimizer: the papers' algorithm boxes. C11, MIT.

   A box is an algorithm of the papers, and the group of functions here that follows it:

     Muon by the mean     muon_step       sgd, adamw, muon, muon-avgpolar, scion, gluon
     SignMuon             signmuon_step   signsgd, signum, lion, signmuon       arXiv 2605.16311
     MuonUSign, MuonSign  muonsign_step   an LMO after the vote                 arXiv 2607.29674
     EF21-Muon            ef21_step       compressed residuals, both ways       arXiv 2510.00643
     DeMuon               demuon_step     gossip over a graph, no server        arXiv 2510.01377

   A method is a row of the table in methods.c: its box, and the stages of that box. The types are
   in optimizer_types.h. Read this file from sm_step upwards; for SignMuon: momentum, lmo,
   pack_signs, majority_vote, vote_slice, share_vote, step_along_vote.

   GROUPS   the hidden matrices are one group of tensors, all other tensors a second one with a rule
            of its own. All tensors of a group travel in one message
   BLOCKS   a block is one matrix (a fused qkv is three). What a worker does between two exchanges
            runs block by block, each on one compute thread, through all lines of a box
   SERVER   there is no server process. A message is cut into one shard per worker, and worker j is
            the server of shard j: all-to-all, merge in rank order, all-gather. Shards are equal.
            Where a server applies an LMO or keeps EF21's state, shards are whole blocks, and each
            block has an owner. Every worker keeps AdamW's moments
   MATHS    signmuon.h has the arithmetic of one block, ef21muon.h the compressors, demuon.h the
            graphs, lib/comm.h the workers
   STATE    optimizer.c makes the optimizer, cuts its messages and allocates its arrays. Nothing
            here allocates, or knows a method or a norm by name
*/
#include "optimizer_types.h"

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

static uint64_t block_key(const SmOptimizer *o, const SmBlock *b, uint64_t purpose, int sender) {
    return sm_key(o->config.seed, sm__stream(b, purpose, sender), o->step);
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

/* u <- LMO(u) in a norm; unchanged without one */
static void lmo(SmOptimizer *o, SmBlock *b, const SmNorm *norm) {
    if (norm) norm->lmo(b->u, b->u, b->rows, b->cols, &o->ns, b->state[NORM_STATE], b->scratch);
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

/* Factor on a weight: 1 - lr wd of decoupled weight decay, 1 - lr of Frank-Wolfe's step. */
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
    lmo(o, b, b->vote_map);
    step_along(o, b);
}

/* ------------------------------------------------------------------------------------------------
 * messages that are refused: one check per kind of message. A fault makes the step void. */

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
    blame(o, SM_NOT_FINITE, sender, b->tensor);
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
                blame(o, SM_MALFORMED, j % o->size, b->tensor);
    }
}

/* The bytes of b's compressed message in this step, and worker j's residual of b. */
static size_t message_bytes(const SmOptimizer *o, const SmBlock *b, int down) {
    return ef_bytes(b->link[down], b->rows, b->cols, shared_key(o, b, LINKS));
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
            int bad =
                ef_decode(b->u, down ? o->shifts + b->down : residual_of(o, b, j),
                          message_bytes(o, b, down), b->rows, b->cols, b->link[down], b->scratch);
            if (bad) blame(o, bad == EF_NOT_FINITE ? SM_NOT_FINITE : SM_MALFORMED, j, b->tensor);
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

/* How many signs came in for my shard, and how many of them the vote confirmed. Bits after the end
 * of a block are 0, and so is their vote: they are counted, and taken off again. */
static SmAgreement count_agreement(const SmOptimizer *o, const SmGroup *g) {
    size_t n = (size_t)o->size, words = g->my_words, last = g->first_word + words;
    const uint64_t *in = o->inbox, *vote = o->vote + g->first_word;
    const uint64_t *decided = o->decided + g->first_word;
    const int abstain = o->zeros == SM_ABSTAIN;
    uint64_t signs = 0, confirmed = 0;
    for (size_t i = 0; i < n * words; i++) {
        uint64_t counts = abstain ? in[n * words + i] : ~(uint64_t)0,
                 same = ~(in[i] ^ vote[i % words]);
        if (o->ties == SM_ABSTAIN) same &= decided[i % words];
        signs += (uint64_t)__builtin_popcountll(counts);
        confirmed += (uint64_t)__builtin_popcountll(counts & same);
    }
    for (const SmBlock *b = g->blocks; b < g->blocks + g->count && !abstain; b++) {
        size_t end = b->word + sm_words(b->size), padding = n * (64 * sm_words(b->size) - b->size);
        if (end > g->first_word && end <= last) signs -= padding, confirmed -= padding;
    }
    return (SmAgreement){.signs = (double)signs, .confirmed = (double)confirmed};
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
    if (g == o->group) o->agreement = count_agreement(o, g);
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
    for (int k = 0; k < rounds; k++, o->exchange++) {
        uint64_t round = o->step * (uint64_t)rounds + (uint64_t)k;
        size_t destinations = dm_degree(&o->graph, round, o->rank, 1);
        o->sources = dm_sources(&o->graph, round, o->rank, o->source, o->weight);
        for (size_t at = 0; at < g->elements; at += o->piece) {
            size_t n = g->elements - at < o->piece ? g->elements - at : o->piece;
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
    lmo(o, b, b->worker_map);                       /* D <- LMO(M)         muon-avgpolar       */
    attack(o, b, b->u);
}

static void muon_server(SmOptimizer *o, SmBlock *b) {
    if (b->owner != o->rank) return;
    lmo(o, b, b->server_map);                       /* D <- LMO(D)         muon, scion, gluon  */
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

/* Does a worker apply its LMO before this step's vote? In every step, unless asked otherwise. */
static int lmo_is_due(const SmOptimizer *o) {
    return o->step % (uint64_t)o->config.polar_every == 0;
}

static void signmuon_worker(SmOptimizer *o, SmBlock *b) {
    momentum(o, b);                                 /* M <- mu M + (1-mu) G                    */
    if (lmo_is_due(o)) lmo(o, b, b->worker_map);    /* O <- polar(M)                           */
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
    lmo(o, b, b->server_map);                       /* O <- polar(V)                           */
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
 * EF21-Muon (arXiv 2510.00643, Algorithm 3). S marks a server's lines, W a worker's. A step begins
 * with W2, since the gradients are the caller's, and ends with W1. Every block has an owner, which
 * is its server. The identity as a compressor sends its target itself; with it on the downlink, X
 * is W. */

static void ef21_worker(SmOptimizer *o, SmBlock *b) {
    float *g_j = b->state[LAST_SENT], *m_j = b->u;
    momentum(o, b);                                 /* W2  M_j <- mu M_j + (1-mu) G            */
    lmo(o, b, b->worker_map);                       /*     ef21-signmuon: polar(M_j)           */
    attack(o, b, m_j);
    ef_send(o->residuals + b->up, g_j, m_j,         /* W3  R_j <- C(M_j - G_j)                 */
            b->rows, b->cols, b->link[0],           /* W4  G_j <- G_j + R_j                    */
            worker_key(o, b, LINKS), shared_key(o, b, LINKS), b->state[UPLINK_WARM], b->scratch);
}

static void ef21_server(SmOptimizer *o, SmBlock *b) {
    if (b->owner != o->rank) return;
    float *w = o->params + b->offset, *aggregate = b->state[AGGREGATE];
    float *x = b->state[MODEL] ? b->state[MODEL] : w;
    if (x != w && o->step == 0) memcpy(x, w, b->size * sizeof *x);
    if (ef_aggregate(aggregate, residual_of(o, b, 0), /* S4  G <- G + mean R_j                   */
                     o->my_residuals_bytes, message_bytes(o, b, 0), o->size, b->rows, b->cols,
                     b->link[0], b->scratch))
        o->refused = 1;
    memcpy(b->u, aggregate, b->size * sizeof *aggregate);
    lmo(o, b, b->server_map);                       /*     O <- LMO(G)                         */
    sm_step_dense(x, b->u, b->size, step_size(b),   /* S1  X <- (1 - lr wd) X - lr s O         */
                  decay_factor(o, b));
    ef_send(o->shifts + b->down, w, x,              /* S2  S <- C(X - W)                       */
            b->rows, b->cols, b->link[1],           /* S3  W <- W + S                          */
            server_key(o, b), shared_key(o, b, LINKS), b->state[DOWNLINK_WARM], b->scratch);
}

static void ef21_downlink(SmOptimizer *o, SmBlock *b) {
    if (b->owner == o->rank) return;
    if (ef_receive(o->params + b->offset,           /* W1  W <- W + S                          */
                   o->shifts + b->down, message_bytes(o, b, 1), b->rows, b->cols,
                   b->link[1], b->scratch))
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
 * its own. Methods without a tracker step along M, or G. Mixing AdamW's moments is ours. */

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
    lmo(o, b, b->worker_map);                       /* O <- polar(V)                           */
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
    if (o->size == 1 && g == o->group)              /* V <- S                                  */
        o->agreement = (SmAgreement){(double)g->elements, (double)g->elements};
    if (o->size == 1) return;
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
    const SmNewtonSchulz *ns = &o->ns;
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
        .safety = ns->safety, .coefficient = ns->coefficient, .ns_steps = ns->steps};
    d->momentum(d, k, &x);                          /* M <- mu M + (1-mu) G                    */
    if (g->worker_map && lmo_is_due(o))
        d->polar(d, k, &x);                         /* D <- polar(M)                           */
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
    int gossips = !sm_has_server(o->group[0].method);
    if (gossips) demuon_step(o); /* both groups, whose steps may have unit length together */
    for (SmGroup *g = o->group; g < o->group + 2 && !gossips; g++) {
        if (g->count == 0) continue;
        SmCombine combine = g->method->combine;
        if (o->device)
            device_step(o, g);
        else if (combine == SM_MEAN)
            muon_step(o, g);
        else if (combine == SM_VOTE && !g->server_map)
            signmuon_step(o, g);
        else if (combine == SM_VOTE)
            muonsign_step(o, g);
        else if (combine == SM_FEEDBACK)
            ef21_step(o, g);
    }
    if (sm_device_error(o)) return SM_FAILED;
    return o->fault.kind ? SM_BAD_MESSAGE : 0;
}
