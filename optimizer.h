/* optimizer.h - Muon for many workers: SignMuon, EF21-Muon, DeMuon and their baselines, over
   threads, processes or MPI. C11 or C++17, MIT. Link with -lsignmuon -lm -pthread.

     config    SmConfig c = sm_config("signmuon"): a method's row, with everything else left to it
     workers   sm_run("threads", 3, 1, worker, arg, ...): every worker calls `worker` once
     step      sm_step: gradients in, parameters moved; what travels between workers is inside

   Three workers train one matrix (the whole program is examples/mlp.c):

     static int worker(SmComm *comm, void *arg) {
         SmConfig config = sm_config("ef21-muon");
         SmTensor tensor = {.name = "w", .rows = 8, .cols = 4, .blocks = 1, .role = SM_HIDDEN};
         char error[256];
         SmOptimizer *o = sm_create(&config, &tensor, 1, comm, error, sizeof error);
         if (!o) return fprintf(stderr, "%s\n", error), 1;
         for (uint64_t step = 0; step < 100; step++) {
             gradient(g, w, sm_rank(comm));
             if (sm_step(o, w, g, step, 0.01, 0.01)) return 1;
         }
         sm_free(o);
         return 0;
     }

   MEMORY    sm_create allocates, sm_step does not. params and grads are the caller's,
             tensors must outlive the optimizer
   THREADS   an SmOptimizer belongs to its worker; all workers call sm_step together, in the same
             order. Compute threads inside a worker are sm_run's; no result depends on their number
   ERRORS    a negative code or NULL, and one sentence in `error`
   NUMERICS  the same bits on threads, processes and MPI; votes are integers, means are summed in
             double in rank order. See signmuon.h for signs, ties and Newton-Schulz
*/
#ifndef OPTIMIZER_H
#define OPTIMIZER_H

#include <stddef.h>
#include <stdint.h>

#define SM_VERSION "0.2.0"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------
 * workers */

typedef struct Comm SmComm; /* one worker's link to the others */

/* What a worker runs; returns an exit status. */
typedef int SmWorker(SmComm *comm, void *arg);

/* Run `worker(comm, arg)` on so many workers and return worker 0's status.
 * backend   "threads", "processes" (forked), or "mpi" where the library was built with it
 * threads   compute threads of each worker, its own included, at least 1
 * error     a negative code, and a sentence: unknown back end, no memory, a worker was killed */
int sm_run(const char *backend, int workers, int threads, SmWorker *worker, void *arg, char *error,
           size_t size);

int sm_rank(const SmComm *comm); /* 0 .. sm_size - 1 */
int sm_size(const SmComm *comm);

/* all (sm_size * bytes) <- `bytes` bytes of every worker, in rank order; on every worker together.
 * For the caller's own numbers: losses, counts, a wish to stop. sm_traffic does not count them. */
void sm_gather(SmComm *comm, const void *mine, size_t bytes, void *all);

/* Payload bytes of this worker's steps since sm_run began: all that it sent and received; up: what
 * it sent to the workers that own the other shards; down: what it received from these. */
typedef struct SmTraffic {
    uint64_t sent, received, up, down;
} SmTraffic;
SmTraffic sm_traffic(const SmComm *comm);

/* ------------------------------------------------------------------------------------------------
 * tensors */

/* What a tensor is to the model. Hidden matrices take the method, all others the auxiliary rule. */
typedef enum SmRole { SM_VECTOR, SM_HIDDEN, SM_INPUT, SM_OUTPUT, SM_ROLES } SmRole;

/* One parameter tensor: `blocks` matrices of rows x cols, stacked by rows (a fused qkv has three).
 * A vector is one row. A block is what an LMO, a compressor and a gain see as a whole. */
typedef struct SmTensor {
    const char *name;
    size_t offset;             /* of its first entry in params and grads */
    size_t rows, cols, blocks; /* rows = fan_out, cols = fan_in */
    SmRole role;
    int decay; /* weight decay applies */
} SmTensor;

/* ------------------------------------------------------------------------------------------------
 * methods: a row of stages */

/* What a worker holds. SM_GLUON: momentum of weight 1 - (k+1)^-1/2 at step k (arXiv 2505.13416). */
typedef enum SmEstimate { SM_GRADIENT, SM_MOMENTUM, SM_LION, SM_GLUON } SmEstimate;

/* What travels, and how messages are merged: fp32, by the mean; one bit per weight, by majority
 * vote; a compressed residual, by error feedback (EF21); fp32 to the neighbours in a graph, by its
 * mixing matrix, of the parameters only or of a gradient tracker too. */
typedef enum SmCombine { SM_MEAN, SM_VOTE, SM_FEEDBACK, SM_GOSSIP, SM_TRACKING } SmCombine;

/* How the result of a mean or a vote comes back: fp32, or one bit per weight. */
typedef enum SmDownlink { SM_DENSE, SM_SIGN } SmDownlink;

/* How a direction D moves the weights: W <- (1 - lr wd) W - lr s D; AdamW; W <- (1 - lr) W - lr D,
 * which stays in the ball of its radius (Frank-Wolfe); SM_UNIT: the steps of all tensors together
 * have 2-norm lr. */
typedef enum SmUpdate { SM_STEP, SM_ADAMW, SM_FRANK_WOLFE, SM_UNIT } SmUpdate;

typedef struct SmMethod {
    const char *name;
    SmEstimate estimate;
    const char *worker_map; /* norm whose LMO a worker applies before sending, or NULL */
    SmCombine combine;
    const char *server_map; /* norm whose LMO is applied to the merged message, or NULL */
    SmDownlink downlink;
    SmUpdate update;
    const char *gain, *aux; /* defaults of SmConfig's fields of the same names */
    double lr;              /* peak step size for nanoGPT's CPU recipe */
    const char *schedule;   /* its course over the steps: a name that the caller knows */
    int warmup;             /* steps over which it rises, at most half of all */
    double momentum;        /* mu; Lion: beta2 */
    int nesterov;
    int first_gradient; /* M starts as the first gradient, not as zero (EF21) */
    double weight_decay;
    double clip, clip_power; /* a gradient is clipped to norm clip (k+1)^clip_power; 0: not */
    const char *up, *down;   /* compressors of error feedback, or NULL */
    const char *doc;
} SmMethod;

const SmMethod *sm_method_row(size_t i);     /* NULL past the end */
const SmMethod *sm_method(const char *name); /* NULL when unknown */
int sm_has_server(const SmMethod *method);   /* 0 for the methods that gossip */

/* ------------------------------------------------------------------------------------------------
 * configuration */

/* Everything that can be chosen. NULL, NaN and -1 leave a field to the method's row; sm_resolve
 * fills them in. Names are rows of tables: sm_norm_row, sm_gain_row, ... of signmuon.h,
 * ef_compressor_row, dm_topology_row. */
typedef struct SmConfig {
    const char *method; /* of the hidden matrices */
    /* of all other tensors: "adamw" (fp32 mean), "sign" (1-bit vote of momentum), "same" (the
     * method without its maps), "lmo" (the method, each role in its own norm, as Scion has it) */
    const char *aux;
    const char *worker_map, *server_map; /* replace the row's, "none" or a norm */
    const char *norm;                    /* replaces whichever LMO the row has */
    /* a worker's LMO before a vote in every so many steps, else it sends sign(M) (after LionMuon,
     * arXiv 2605.19811) */
    int polar_every;
    int polar_after_vote;     /* every worker steps along the polar factor of the vote */
    const char *gain;         /* factor on the step size by matrix shape */
    double radius[SM_ROLES];  /* factor on the step size by role */
    const char *ns;           /* Newton-Schulz polynomials */
    const char *ns_dtype;     /* "fp32", or "bf16": what its products round their operands to */
    const char *zeros, *ties; /* "coin", "plus" or "abstain" */
    double lr, aux_lr;        /* peak step sizes; sm_step is told the current ones */
    double momentum, beta1, beta2, epsilon, weight_decay, clip;
    int nesterov, first_gradient;
    int coupled_decay;     /* G + wd W instead of decoupled decay (arXiv 2605.16311) */
    const char *up, *down; /* compressors of EF21's links: "topk:0.15+natural", "sign", ... */
    const char *topology;  /* who gossips with whom: "ring" (the default), ..., "file:PATH" */
    int rounds[2];         /* of gossip per step: of the tracker, of the parameters */
    uint64_t seed;         /* keys every coin */
    int adversaries;       /* the last so many workers send what `attack` makes of their messages */
    const char *attack;    /* "flip", "random", "zero", "nan" or "scale:S" */
} SmConfig;

/* The configuration of a method: all else is left to its row; polar_every 1, rounds 1, seed 0, no
 * adversaries. */
SmConfig sm_config(const char *method);

enum { SM_BAD_CONFIG = -1, SM_NO_MEMORY = -2, SM_FAILED = -3, SM_BAD_MESSAGE = -4 };

/* Fill in what is left to the method's row and check that the fields go together for so many
 * workers.
 * error   SM_BAD_CONFIG and a sentence that names the field, or SM_FAILED for a graph's file that
 *         cannot be read */
int sm_resolve(SmConfig *config, int workers, char *error, size_t size);

/* ------------------------------------------------------------------------------------------------
 * the optimizer of one worker */

typedef struct SmOptimizer SmOptimizer;

/* An optimizer for `count` tensors, on every worker together; resolves the configuration itself.
 * error   NULL and a sentence */
SmOptimizer *sm_create(const SmConfig *config, const SmTensor *tensors, size_t count, SmComm *comm,
                       char *error, size_t size);
void sm_free(SmOptimizer *o);

/* One step on every worker together. grads are this worker's own; params move equally on all
 * workers of a method with a server.
 * step         counts from 0 and keys the coins; at 0, M and X get their first values
 * lr, aux_lr   this step's sizes, of the hidden matrices and of the others
 * error        SM_BAD_MESSAGE when this worker refused somebody's message (sm_fault tells whose):
 *              what the step made of it is void, and training cannot go on */
int sm_step(SmOptimizer *o, float *params, const float *grads, uint64_t step, double lr,
            double aux_lr);

/* A message that was refused in the last step. Of all workers' faults the one of the earliest
 * exchange is right: a worker that sends NaN later may only pass on what it received. */
enum { SM_NOT_FINITE = 1, SM_MALFORMED = 2 };
typedef struct SmFault {
    int32_t kind;     /* 0: none; SM_NOT_FINITE or SM_MALFORMED */
    int32_t exchange; /* counts the messages of a step */
    int32_t sender, tensor;
} SmFault;
SmFault sm_fault(const SmOptimizer *o);

/* Of the last vote on the hidden matrices, in this worker's shard: signs that came in from all
 * workers, and how many of them the vote confirmed. 0 of 0 for a method without a vote. */
typedef struct SmAgreement {
    double signs, confirmed;
} SmAgreement;
SmAgreement sm_agreement(const SmOptimizer *o);

/* The server's exact model X of error feedback with a compressed downlink, after `steps` steps,
 * into out; on every worker together. Returns 0, out untouched, when X is params. */
int sm_server_model(SmOptimizer *o, float *out, const float *params, uint64_t steps);

/* ------------------------------------------------------------------------------------------------
 * state, for checkpoints */

typedef struct SmState {
    const char *kind; /* "momentum", "adamw.m", "tracker", ... */
    size_t tensor;    /* its index */
    int block;        /* which block of it, or -1 for all */
    size_t rows, cols;
    float *data;
    int replicated; /* the same on every worker */
} SmState;

/* The i-th array of state that this worker holds; returns 0 past the end. */
int sm_state(const SmOptimizer *o, size_t i, SmState *state);

/* After state was loaded that another group of workers left, on every worker together: EF21's
 * server estimate becomes the mean of the workers' and its model params; a tracker becomes the last
 * momentum. Momenta are a worker's own and stay. */
void sm_regroup(SmOptimizer *o, const float *params);

/* ------------------------------------------------------------------------------------------------
 * an accelerator: a step's stages on a device, which holds the method's state. The host keeps the
 * exchanges between workers. lib/signmuon_cuda.cu has the stages for an NVIDIA GPU. */

/* One matrix, or one vector, as a device sees it. */
typedef struct SmDeviceBlock {
    size_t offset, element, word; /* in params and grads; in its group's dense and sign messages */
    size_t rows, cols;
    uint64_t stream; /* of its coins, whose key is signmuon.h's sm_key(seed, stream, step) */
    double gain;     /* factor on the step size */
    int decay, mine; /* weight decay applies; this worker applies the server's LMO to it */
} SmDeviceBlock;

/* Group 0 has the hidden matrices, group 1 all other tensors. */
typedef struct SmDeviceGroup {
    size_t count, elements, words; /* blocks; floats and words of its messages */
    int states, polar;             /* arrays of state; the stage `polar` will be called */
} SmDeviceGroup;

/* A step of a group, in numbers that are rounded as signmuon.h's. */
typedef struct SmDeviceStep {
    float *params; /* these two lie on the device */
    const float *grads;
    uint64_t seed, step;    /* key the coins */
    int coins;              /* a zero's sign is one, else + */
    int momentum, nesterov; /* M is kept, else U is the gradient; U looks ahead */
    float clip, mu, nu;     /* what clipping leaves of the gradient; mu and 1 - mu of momentum */
    double lr;              /* step size, before a block's gain */
    float keep;             /* 1 - lr * decay, where weight decay applies */
    float b1, n1, b2, n2, size, root, epsilon; /* of sm_adamw */
    double safety;                             /* of Newton-Schulz, as the triples */
    const double (*coefficient)[3];
    int ns_steps;
} SmDeviceStep;

/* A stage, on all blocks of group g. */
typedef struct SmDevice SmDevice;
typedef void SmDeviceStage(SmDevice *d, int g, const SmDeviceStep *step);

struct SmDevice {
    const char *error; /* of the first failure, after which stages do nothing; else empty */
    /* Arrays on the device, laid out as the messages: U, the direction; S, the sign words; of each
     * group momentum, or AdamW's m and v. `attach` allocates them. */
    float *direction, *state[2][2];
    uint64_t *signs;
    /* blocks: of group 0, then of group 1; valid during the call only */
    void (*attach)(SmDevice *d, const SmDeviceBlock *blocks, const SmDeviceGroup group[2]);
    void (*free)(SmDevice *d);
    /* bytes of an array to the host, or from there; waits for them */
    void (*copy)(SmDevice *d, void *to, const void *from, size_t bytes);
    /* the sum of squares of all gradients; waits for it */
    double (*squares)(SmDevice *d, const float *grads);
    SmDeviceStage *momentum;              /* M <- mu M + (1-mu) clip G, U <- M */
    SmDeviceStage *polar, *polar_of_mine; /* U <- polar(U) of group 0; of `mine` blocks only */
    SmDeviceStage *pack, *unpack;         /* S <- sign(U); U <- the +-1 of S */
    SmDeviceStage *apply, *step;          /* W <- keep W - lr gain S; the same with U */
    SmDeviceStage *adamw;                 /* AdamW's step with U as the gradient */
};

/* Let a device do the stages; every worker may have its own, or none. From then on sm_step's params
 * and grads are the device's.
 * returns  1: attached, with the state that there is, and sm_free frees the device; 0: it lacks a
 *          stage of the method; negative, and a sentence: it cannot be used. Then it stays the
 *          caller's, and all stages the host's. A device that fails later makes sm_step return
 *          SM_FAILED */
int sm_attach(SmOptimizer *o, SmDevice *d, char *error, size_t size);

/* Copy the state that sm_state tells: from the device, before it is read; to the device, after it
 * was written. Both do nothing without one.
 * error    SM_FAILED */
int sm_from_device(SmOptimizer *o);
int sm_to_device(SmOptimizer *o);

/* What the device failed at, or NULL. */
const char *sm_device_error(const SmOptimizer *o);

/* ------------------------------------------------------------------------------------------------
 * facts, for people */

/* What a resolved configuration does to a tensor. */
typedef struct SmFacts {
    const char *rule; /* name of the row that it follows */
    double gain;      /* factor on the step size */
    double step_rms;  /* RMS of a step's entries at learning rate 1; NaN: the gradient decides */
    /* bits per weight that a worker sends, by formula, the mean over workers: to the servers of its
     * shards, and as a server; gossip is all `up` */
    double up, down;
    double paper_up; /* `up` as arXiv 2510.00643 counts: 26-bit indices, 16-bit Natural */
} SmFacts;
SmFacts sm_facts(const SmConfig *resolved, const SmTensor *tensor, int workers);

/* Bytes that sm_create allocates for the worker that needs most. */
typedef struct SmBytes {
    size_t state, messages, scratch, total;
} SmBytes;
SmBytes sm_bytes(const SmConfig *resolved, const SmTensor *tensors, size_t count, int workers,
                 int threads);

#ifdef __cplusplus
}
#endif
#endif
