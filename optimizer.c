/* optimizer.c - the distributed optimizer around its step: made, attached, asked, saved. C11, MIT.

   It decides by `combine` which arrays, shards and owners a box needs. The boxes themselves are in
   signmuon.c.

     rows for names   a group's stages, from the method's row and the configuration
     blocks           their table, who owns each, and which thread works on it
     arena            sm_create, sm_free, sm_bytes: state, messages and scratch, in one allocation
     workers          sm_run, sm_rank, sm_size, sm_gather, sm_traffic
     a device         sm_attach, and copies of its state
     results, state   sm_fault, sm_agreement, sm_server_model; sm_state for checkpoints, sm_regroup
                      after one was loaded
     facts            sm_facts: gains, steps and bits of a tensor by formula

   It compiles what the program has once: lib/comm.h's workers, lib/team.h's threads, and signmuon.h
   with the products of lib/gemm.h. The library exports signmuon.h's functions from here. */
#define COMM_IMPLEMENTATION
#define TEAM_IMPLEMENTATION
#define SIGNMUON_API /* external linkage */
#include "optimizer_types.h"
#include "lib/base.h"

/* ------------------------------------------------------------------------------------------------
 * products; their scratch follows the caller's */

/* The instruction set for an op of SIGNMUON_GEMM. */
static const Gemm *gemm_of(char op) {
    const GemmDtype dtype = op == 'N' || op == 'T' ? GEMM_BF16 : GEMM_F32;
    const Gemm *g = gemm_default(dtype);
    return g ? g : gemm_select(NULL, dtype); /* an unknown GEMM_ISA is the program's to refuse */
}

void sm__gemm(char op, float *c, const float *a, const float *b, size_t m, size_t n, size_t k,
              float *scratch) {
    if (op == 't' || op == 'T')
        gemm_nt(gemm_of(op), c, n, a, k, b, k, m, n, k, 0, scratch, 0, 1);
    else
        gemm_nn(gemm_of(op), c, n, a, k, b, n, m, n, k, 0, scratch, 0, 1);
}

void sm__gemm_symmetric(char op, float *c, const float *a, const float *b, size_t m, size_t k,
                        float *scratch) {
    GemmOperand columns = op == 't' || op == 'T' ? gemm_f32(b, k, 1) : gemm_f32(b, 1, m);
    gemm_symmetric(gemm_of(op), c, m, gemm_f32(a, k, 1), columns, m, k, scratch);
}

/* ------------------------------------------------------------------------------------------------
 * rows for names */

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

/* The norm of a tensor whose group has `map`: that of hidden matrices, or Scion's of its role. */
static const SmNorm *norm_of(const SmTensor *t, const SmNorm *map) {
    if (!map || t->role == SM_HIDDEN) return map;
    return sm_norm(t->role == SM_VECTOR ? "rms" : t->role == SM_INPUT ? "sign" : "sign-output");
}

/* Factor on a tensor's step size: its role's radius, and for hidden matrices the gain of the shape.
 * All entries of a direction are +-1 after a vote, or after the LMO of the sign norm. */
static double gain_of(const SmConfig *c, const SmGroup *g, const SmTensor *t) {
    int signs = (g->downlink == SM_SIGN && !g->vote_map) || last_map(g) == sm_norm("sign");
    double gain = t->role == SM_HIDDEN ? sm_gain(c->gain)->gain(t->rows, t->cols, signs) : 1;
    return c->radius[t->role] * gain;
}

/* ------------------------------------------------------------------------------------------------
 * the table of blocks, and their owners */

/* The next block of a group: where it lies, and how many floats of each kind of state it needs. */
static void add_block(SmOptimizer *o, SmGroup *g, const SmTensor *t, size_t which, size_t index) {
    size_t n = t->rows * t->cols;
    int vector = t->role == SM_VECTOR;
    const EfLink *up = vector ? &o->identity : &o->links[0];
    const EfLink *down = vector ? &o->identity : &o->links[1];
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
        .worker_map = norm_of(t, g->worker_map),
        .server_map = norm_of(t, g->server_map),
        .vote_map = norm_of(t, g->vote_map),
        .link = {up, down},
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
    o->ns = *sm_newton_schulz(c->ns);
    o->ns.bf16 = same_name(c->ns_dtype, "bf16");
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

/* ------------------------------------------------------------------------------------------------
 * the arena */

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

/* Gossip sends its vector in pieces: of an outbox, or of floats that let all sources fit 16 MB. */
enum { GOSSIP_FLOATS = 1 << 22, GOSSIP_LEAST = 1024 };
static size_t gossip_piece(size_t sources) {
    size_t n = GOSSIP_FLOATS / sources, most = COMM_OUTBOX / sizeof(float);
    return n > most ? most : n < GOSSIP_LEAST ? GOSSIP_LEAST : n;
}

/* What messages and scratch take: the most of both groups, which take turns. */
typedef struct Sizes {
    size_t elements, words;          /* of the dense and of the sign message */
    size_t inbox, residuals, shifts; /* bytes */
    size_t scratch;                  /* floats of a thread */
} Sizes;

static void add_sizes(Sizes *most, const SmOptimizer *o, const SmGroup *g) {
    size_t n = (size_t)o->size, up = 0, down = 0, my_shard = 0;
    SmCombine combine = g->method->combine;
    for (const SmBlock *b = g->blocks; b < g->blocks + g->count; b++) {
        if (last_map(g)) most->scratch = larger(most->scratch, sm_lmo_scratch(b->rows, b->cols));
        if (combine != SM_FEEDBACK) continue;
        for (int k = 0; k < 2; k++)
            most->scratch = larger(most->scratch, ef_scratch(b->link[k], b->rows, b->cols));
        up += ef_most_bytes(b->link[0], b->rows, b->cols);
        down += ef_most_bytes(b->link[1], b->rows, b->cols);
        if (b->owner == o->rank) my_shard += ef_most_bytes(b->link[0], b->rows, b->cols);
    }
    if (combine == SM_MEAN && n > 1) my_shard = g->mine * sizeof(float);
    if (combine == SM_VOTE) my_shard = g->my_words * (o->zeros == SM_ABSTAIN ? 2 : 1) * 8;
    if (combine == SM_VOTE) most->words = larger(most->words, g->words);
    most->elements = larger(most->elements, g->elements);
    most->inbox = larger(most->inbox, n * my_shard);
    most->residuals = larger(most->residuals, up);
    most->shifts = larger(most->shifts, down);
}

/* My shards and all arrays: state, then messages, then scratch, from the arena. */
static SmBytes place(SmOptimizer *o, Arena *a) {
    size_t n = (size_t)o->size, threads = (size_t)o->threads;
    int gossips = !sm_has_server(o->group[0].method);
    Sizes most = {0};
    SmBytes bytes = {0};
    for (SmGroup *g = o->group; g < o->group + 2; g++) {
        g->first = g->cut_element[o->rank];
        g->mine = g->cut_element[o->rank + 1] - g->first;
        g->first_word = g->cut_word[o->rank];
        g->my_words = g->cut_word[o->rank + 1] - g->first_word;
        place_state(o, g, a);
        add_sizes(&most, o, g);
    }
    bytes.state = a->used;
    if (gossips) {
        o->most_sources = most_sources(&o->graph);
        o->piece = gossip_piece(o->most_sources);
        size_t piece = o->piece < most.elements ? o->piece : most.elements;
        most.inbox = o->most_sources * piece * sizeof(float);
    }
    o->direction = arena_take(a, most.elements * sizeof(float));
    o->signs = arena_take(a, most.words * 8);
    o->nonzero = arena_take(a, o->zeros == SM_ABSTAIN ? most.words * 8 : 0);
    o->vote = arena_take(a, most.words * 8);
    o->decided = arena_take(a, most.words * 8);
    o->inbox = arena_take(a, most.inbox);
    o->residuals = arena_take(a, most.residuals);
    o->shifts = arena_take(a, most.shifts);
    o->cut_byte = arena_take(a, (n + 1) * sizeof(size_t));
    o->sign_parts = arena_take(a, threads * 2 * n * sizeof *o->sign_parts);
    o->float_parts = arena_take(a, (threads + 1) * o->most_sources * sizeof *o->float_parts);
    o->source = arena_take(a, gossips ? n * sizeof *o->source : 0);
    o->weight = arena_take(a, gossips ? n * sizeof *o->weight : 0);
    o->square = arena_take(a, o->tensor_count * sizeof *o->square);
    bytes.messages = a->used - bytes.state;
    o->scratch_floats = (most.scratch + 15) / 16 * 16;
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

/* ------------------------------------------------------------------------------------------------
 * workers */

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

void sm_gather(SmComm *comm, const void *mine, size_t bytes, void *all) {
    comm_gather(comm, mine, bytes, all, COMM_OTHER);
}

SmTraffic sm_traffic(const SmComm *comm) {
    SmTraffic t = {0};
    for (int k = COMM_MATRICES; k <= COMM_AUXILIARY; k++) {
        t.sent += comm->sent[k], t.received += comm->received[k];
        t.up += comm->up[k], t.down += comm->down[k];
    }
    return t;
}

/* ------------------------------------------------------------------------------------------------
 * a device */

/* Can a device do all stages of the group? */
static int runs_on_device(const SmOptimizer *o, const SmGroup *g) {
    const SmMethod *m = g->method;
    const SmNorm *maps[] = {g->worker_map, g->server_map, g->vote_map};
    int votes = m->combine == SM_VOTE && !g->server_map;
    for (size_t i = 0; i < 3; i++)
        if (maps[i] && (maps[i] != sm_norm("spectral") || g != o->group)) return 0;
    return g->count == 0 ||
           ((m->estimate == SM_GRADIENT || m->estimate == SM_MOMENTUM) &&
            (m->combine == SM_MEAN || votes) && (m->update == SM_STEP || m->update == SM_ADAMW));
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
                                    .stream = sm__stream(b, SIGNS, o->rank + 1),
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

SmAgreement sm_agreement(const SmOptimizer *o) { return o->agreement; }

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
