/* optimizer_types.h - the optimizer of one worker, as its two files see it. C11, MIT.

   Private: optimizer.c makes the optimizer, signmuon.c steps with it; no other file includes this
   one. Include it before signmuon.h, which multiplies with lib/gemm.h here.

     SmBlock       one matrix or vector: where it lies, its LMOs, compressors and state
     SmGroup       the tensors under one rule: the stages of its box, its shards
     SmOptimizer   two groups; the messages of a step; where the current step stands

   sm_create allocates every array; a step only fills them. */
#ifndef OPTIMIZER_TYPES_H
#define OPTIMIZER_TYPES_H

#ifdef SIGNMUON_H
#error "include optimizer_types.h before signmuon.h"
#endif
#include "lib/attack.h"
#include "lib/comm.h"
#include "lib/gemm.h"

/* The products of signmuon.h and ef21muon.h, by gemm.h; optimizer.c has them. */
#pragma GCC visibility push(hidden) /* not the library's to export */
void sm__gemm(char op, float *c, const float *a, const float *b, size_t m, size_t n, size_t k,
              float *scratch);
void sm__gemm_symmetric(char op, float *c, const float *a, const float *b, size_t m, size_t k,
                        float *scratch);
#pragma GCC visibility pop
#define SIGNMUON_GEMM sm__gemm
#define SIGNMUON_GEMM_SCRATCH gemm_scratch()
#define SIGNMUON_SYMMETRIC sm__gemm_symmetric
#include "signmuon.h"
#include "demuon.h"
#include "ef21muon.h"
#include "optimizer.h"

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
    const EfLink *link[2]; /* the compressors of its residual up and of its shift down */
    size_t floats[STATES]; /* of each kind of state; 0: the method keeps none */
    float *state[STATES];  /* NULL: not kept on this worker */
    float *u;              /* the direction that a box works on: its part of the dense message */
    float *scratch;        /* its thread's */
    /* norms of the LMOs: its group's, or those of its role where it is no hidden matrix; or NULL */
    const SmNorm *worker_map, *server_map, *vote_map;
} SmBlock;

/* The tensors under one rule. */
struct SmGroup {
    const SmMethod *method;
    /* norms whose LMO is applied by a worker, to the merged message, to the vote; or NULL */
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
    void *arena;      /* memory of the arrays from `direction` to `square`, and of all state */

    SmNewtonSchulz ns; /* what the names in `config` stand for */
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
    size_t *cut_byte;          /* shards of the message under way */
    /* my shard of the residuals */
    size_t my_residuals_at, my_residuals_bytes;
    const uint64_t **sign_parts; /* 2 N pointers into inbox for each thread */
    const float **float_parts;   /* where each source's piece begins: once, then for each thread */
    float *mixed;                /* points to what gossip is mixing */
    int *source;                 /* the sources of this round, with their weights */
    double *weight;
    size_t sources, most_sources;
    size_t piece;   /* floats that gossip sends at a time */
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
    SmAgreement agreement;
    SmDevice *device; /* does the stages, and has the state; NULL: the host does */
};

/* The stream of random numbers for a purpose, a block and a sender: a worker is rank + 1, the
 * server of a block COMM_MAX_WORKERS + 1, and numbers that all share have sender 0. Coins of tied
 * votes have a stream for each group, see vote_slice. */
enum { SIGNS, LINKS, ATTACKS };
static inline uint64_t sm__stream(const SmBlock *b, uint64_t purpose, int sender) {
    return purpose << 48 | (uint64_t)b->index << 16 | (uint64_t)sender;
}

#endif
