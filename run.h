/* run.h - a run of train_gpt and its workers: what was asked for, and what all find out together.
   MIT.

     die, must, allocate            end the program with one sentence
     Run, Worker                    a run as all workers know it; one worker's part of it
     gather, first_nonzero          small values of all workers
     deployed_model                 the model that the run is judged by
     agree_on, check_replicas       end a run that has diverged, or whose models have parted
     prepare_run, begin_training    options from the command line and a save, the text, the folder
     go_on_without                  the run of the workers that are left
     check_memory, end_of_map       no memory for the run; a mapped file was cut short

   It knows the options, the text, files and the optimizer's interface, and a model as a table of
   tensors. Whatever cannot go on ends the program here: nothing returns an error. */
#ifndef RUN_H
#define RUN_H

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include "dataloader.h"
#include "lib/base.h"
#include "lib/checkpoint.h"
#include "lib/comm.h"
#include "lib/report.h"
#include "optimizer.h"
#include "options.h"
#include "signmuon.h"

/* Print one sentence and exit. When several workers fail, only the first one prints. */
__attribute__((format(printf, 2, 3))) __attribute__((noreturn)) static inline void
die(int status, const char *format, ...) {
    char text[2 * BASE_PATH];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!comm_may_speak()) comm_wait_for_end();
    report_note(stderr, "train_gpt: %s%s", comm_rank_prefix(), text);
    exit(status);
}

/* End the program where a call has failed with a sentence. */
static inline void must(int failed, const char *error) {
    if (failed) die(FAILED, "%s", error);
}

static const char NO_MEMORY[] =
    "no memory: take a smaller model, batch or context, or fewer workers";

static inline void *allocate(size_t bytes) {
    void *p = base_allocate(bytes);
    must(!p, NO_MEMORY);
    return p;
}

/* Flush stdout; exits when the result could not be written. */
static inline int finish_stdout(void) {
    if (fflush(stdout) || ferror(stdout))
        die(FAILED, "the result cannot be written: %s", strerror(errno));
    return 0;
}

/* ------------------------------------------------------------------------------------------------
 * a run and its workers */

typedef struct Run {
    Options o;
    DataSet data;     /* empty for a sample */
    DataVocab vocab;  /* of a checkpoint, for a sample */
    uint16_t *prompt; /* where samples begin */
    size_t prompt_tokens;
    char *vocab_text;      /* as a checkpoint keeps it */
    Checkpoint checkpoint; /* what training, a sample or an evaluation begins with */
    int has_checkpoint;
    StFile resumed;    /* after a death: what --resume named, as options point into its metadata */
    StFile init;       /* weights to begin with; without a path the parameters are random */
    int saved_workers; /* that wrote the checkpoint */
    int *origin;       /* (workers) rank in the save whose state each worker loads; NULL: its own */
    uint64_t identity; /* of the run, in every part of its saves */
    int other_data;    /* resumed on another text: losses cannot be compared */
} Run;

/* Payload of training steps. UP: bytes sent to owners of shards; DOWN: bytes that come from them.
 */
enum { SENT, RECEIVED, MESSAGES, UP, DOWN, TRAFFIC };
static const char *const traffic_name[TRAFFIC] = {"sent", "received", "messages", "up", "down"};

typedef struct Worker {
    Run *run;
    uint64_t identity; /* of the run: worker 0's */
    Comm *c;
    SmOptimizer *optimizer;
    int on_device;          /* its stages run on the model's GPU */
    const SmTensor *tensor; /* of the model; params has them one after the other */
    size_t tensors, parameters;
    float *params;
    void *gathered;          /* (workers) of whatever is gathered */
    ReportLog log;           /* worker 0's */
    long step, initial_step; /* steps done; the same where this call began */
    double evaluated;        /* step last validated, -1 for none */
    double train, val, best; /* nats per token; NaN where there is none yet */
    double norm;             /* root mean square of the workers' gradient norms in the last step */
    double server_val, gap;  /* EF21: loss of the server's model X; |X - W| / |X| */
    double consensus;        /* gossip: root of the sum of squared distances to the mean */
    double node_val[3];      /* gossip: least, mean, greatest loss of the nodes' own models */
    double seconds, started; /* of earlier calls of the run; clock at the begin of this one */
    double shown;            /* clock at the last progress line */
    double earlier[TRAFFIC]; /* payload of this worker in earlier calls of the run */
    double most[TRAFFIC];    /* of the worker that has most, as last gathered */
    double agreement;        /* share of all signs that the last vote confirmed */

    size_t *cuts;         /* (workers + 1) byte offsets of the shards of a message */
    float *mean, *shards; /* gossip: the mean model, and everybody's part of my shard */

    /* of train_gpt.c alone */
    struct Gpt *g;
    size_t B, T;           /* sequences of a step, tokens of a sequence */
    size_t pass;           /* sequences of a pass over the model */
    int32_t *in, *target;  /* (B, T) */
    float *losses;         /* (B, T) of an evaluation */
    double *window_loss;   /* one sum per validation window */
    double *tensor_square; /* squared norm of each tensor's gradient */
    float *server;         /* EF21 with a compressed downlink: the server's model */
} Worker;

/* Everybody's copy of `bytes` bytes, in rank order; valid until the next call. */
static inline void *gather(Worker *w, const void *mine, size_t bytes, CommKind kind) {
    assert(bytes <= 64);
    comm_gather(w->c, mine, bytes, w->gathered, kind);
    return w->gathered;
}

/* The first value that is not 0 among the workers' values, or 0. */
static inline int first_nonzero(Worker *w, int32_t mine) {
    const int32_t *all = gather(w, &mine, sizeof mine, COMM_OTHER);
    for (int j = 0; j < w->c->size; j++)
        if (all[j]) return all[j];
    return 0;
}

static inline int gossips(const Worker *w) {
    return !sm_has_server(sm_method(w->run->o.rule.method));
}
static inline double elapsed(const Worker *w) { return w->seconds + base_now() - w->started; }
static inline int is_due(long step, long every) { return every > 0 && step % every == 0; }

/* ------------------------------------------------------------------------------------------------
 * what the workers find out together: the mean of their models, their reports on a step, whether
 * they still agree */

/* Divide n values of `bytes` bytes among the workers by w->cuts; this worker's are [*lo, *hi). */
static inline void divide(Worker *w, size_t n, size_t bytes, size_t *lo, size_t *hi) {
    const size_t size = (size_t)w->c->size;
    assert(size > 0);
    for (size_t j = 0; j <= size; j++) w->cuts[j] = n * j / size * bytes;
    *lo = w->cuts[w->c->rank] / bytes, *hi = w->cuts[w->c->rank + 1] / bytes;
}

/* |x - y|^2 and |x|^2 over all parameters */
static inline double square_distance(const Worker *w, const float *x, const float *y,
                                     double *length) {
    double apart = 0, square = 0;
    for (size_t i = 0; i < w->parameters; i++) {
        double d = (double)x[i] - (double)y[i];
        apart += d * d;
        square += (double)x[i] * (double)x[i];
    }
    *length = square;
    return apart;
}

/* The model that a run is judged by: W, or the mean over the nodes of a graph. */
static inline const float *deployed_model(Worker *w) {
    size_t lo, hi;
    if (!gossips(w)) return w->params;
    divide(w, w->parameters, sizeof(float), &lo, &hi);
    comm_alltoall(w->c, w->params, w->cuts, w->shards, COMM_OTHER);
    for (size_t i = lo; i < hi; i++) {
        double sum = 0;
        for (size_t j = 0; j < (size_t)w->c->size; j++)
            sum += (double)w->shards[j * (hi - lo) + i - lo];
        w->mean[i] = (float)(sum / w->c->size);
    }
    comm_allgather(w->c, w->mean, w->cuts, COMM_OTHER);
    return w->mean;
}

/* What workers tell each other about a step before they take it. */
typedef struct StepReport {
    double loss, square; /* nats per token, squared norm of the gradient */
    int64_t bad;   /* first tensor that is not finite, or where the loss has exploded the tensor
                            with the largest gradient; else -1 */
    int64_t stop;  /* signal that asked for an end, or 0 */
    SmFault fault; /* of the step before */
} StepReport;

__attribute__((noreturn)) static inline void die_of_divergence(const Worker *w, size_t tensor,
                                                               double loss) {
    die(DIVERGED, "training diverged at step %ld: %s (loss %g); lower --lr or --aux-lr", w->step,
        w->tensor[tensor].name, loss);
}

/* Everybody's report as one: mean loss and squared norm. Ends a run that has diverged, or in which
 * a message was refused. */
static inline StepReport agree_on(Worker *w, StepReport mine, CommKind kind) {
    const StepReport *all = gather(w, &mine, sizeof mine, kind);
    StepReport mean = {.bad = -1};
    SmFault earliest = {0};
    for (int j = 0; j < w->c->size; j++) {
        SmFault f = all[j].fault;
        if (f.kind && (!earliest.kind || f.exchange < earliest.exchange ||
                       (f.exchange == earliest.exchange && f.sender < earliest.sender)))
            earliest = f;
        mean.loss += all[j].loss / w->c->size;
        mean.square += all[j].square / w->c->size;
        if (all[j].stop) mean.stop = all[j].stop;
    }
    if (earliest.kind)
        die(earliest.kind == SM_NOT_FINITE ? DIVERGED : FAILED,
            "worker %d sent %s in %s at step %ld: its memory or processor is at fault, or --lr is "
            "too high; go on from the last save in %s with --resume",
            earliest.sender, earliest.kind == SM_NOT_FINITE ? "NaN" : "a malformed message",
            w->tensor[earliest.tensor].name, w->step, w->run->o.out);
    for (int j = 0; j < w->c->size; j++)
        if (all[j].bad >= 0) die_of_divergence(w, (size_t)all[j].bad, all[j].loss);
    return mean;
}

/* Compare the workers' parameters by hash; a difference ends the run and names the odd worker. */
static inline void check_replicas(Worker *w) {
    uint64_t hash = 0;
    for (size_t i = 0; i < w->parameters; i++) {
        uint32_t bits;
        memcpy(&bits, &w->params[i], sizeof bits);
        hash = (hash ^ bits) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    const uint64_t *all = gather(w, &hash, sizeof hash, COMM_CONTROL);
    int odd = -1, fewest = w->c->size; /* the worker whose parameters are rarest */
    char whose[64] = "the two workers' parameters differ";
    for (int j = 0; j < w->c->size; j++) {
        int equal = 0;
        for (int k = 0; k < w->c->size; k++) equal += all[j] == all[k];
        if (equal < fewest) fewest = equal, odd = j;
    }
    if (odd < 0) return;
    if (w->c->size > 2)
        snprintf(whose, sizeof whose, "the parameters of worker %d differ from the others'", odd);
    die(FAILED,
        "%s after step %ld: a memory or processor is at fault; go on from the last save with "
        "--resume",
        whose, w->step);
}

/* ------------------------------------------------------------------------------------------------
 * before the workers, and between two attempts */

/* Open OUT/last, or OUT itself, when it is a save. */
static inline void open_save(Run *run, int resume) {
    char error[BASE_PATH + 512], note[BASE_PATH + 512];
    must(checkpoint_open(run->o.out, "last", resume, &run->checkpoint, note, sizeof note, error,
                         sizeof error),
         error);
    if (*note) report_note(stderr, "%s", note);
    run->has_checkpoint = 1;
    run->saved_workers = run->checkpoint.stamp.parts - 1;
}

/* Open the text. A resumed run refuses another one than it was trained on, unless the call names
 * it. */
static inline void open_data(Run *run, const unsigned char *given) {
    Options *o = &run->o;
    DataSet *data = &run->data;
    char error[BASE_PATH + 512], now[32];
    const StFile *f = run->has_checkpoint ? &run->checkpoint.model : NULL;
    const char *then = f && o->resume ? st_meta(f, "data_fingerprint") : NULL,
               *vocabulary = f ? st_meta(f, "vocabulary") : NULL;
    int named = options_given(given, "data");
    size_t N = (size_t)o->workers, T = (size_t)o->context;
    if (*o->init && !o->vocab) vocabulary = st_meta(&run->init, "vocabulary");
    if (!vocabulary) vocabulary = o->vocab ? o->vocab : "auto";
    int code = data_open(data, o->data, vocabulary, error, sizeof error);
    if (code)
        die(FAILED, "%s%s", error,
            code == DATA_NEEDS_BYTES           ? ": --vocab bytes"
            : named || code != DATA_UNREADABLE ? ""
            : f ? "; the run was trained on it: --data says where it is now"
                : "; 'make train' fetches this text, --data names another one");
    const StEntry *wte = *o->init ? st_find(&run->init, "transformer.wte.weight") : NULL;
    if (wte && data->vocab.kind == DATA_GPT2 && wte->shape[0] > data->vocab.size &&
        wte->shape[0] <= DATA_MAX_VOCAB)
        data->vocab.size = (uint32_t)wte->shape[0]; /* nanoGPT pads its vocabulary to 50304 */
    must((*o->val_data && data_open_val(data, o->val_data, error, sizeof error)) ||
             data_set_shards(data, o->shards, N, T, error, sizeof error) ||
             data_check_context(data, T, N, error, sizeof error),
         error);
    size_t length = data_vocab_export(&data->vocab, NULL, 0) + 1;
    run->vocab_text = allocate(length);
    data_vocab_export(&data->vocab, run->vocab_text, length);
    snprintf(now, sizeof now, "%016" PRIx64, data_fingerprint(data));
    run->other_data = then && strcmp(then, now) != 0;
    if (run->other_data && !named)
        die(FAILED,
            "%s is not the text that %s was trained on: restore it, or name it with --data to go "
            "on with it",
            o->data, o->out);
}

/* Open the weights of --init. Their shapes are the model's, unless the call names others. */
static inline void open_init(Run *run, const unsigned char *given) {
    Options *o = &run->o;
    const StFile *f = &run->init;
    char error[BASE_PATH + 512], name[64];
    must(st_open(&run->init, o->init, error, sizeof error), error);
    const StEntry *wte = st_find(f, "transformer.wte.weight"),
                  *wpe = st_find(f, "transformer.wpe.weight");
    if (!wte || !wpe || wte->rank != 2 || wpe->rank != 2)
        die(FAILED, "%s: has no transformer.wte.weight and wpe.weight: names must be nanoGPT's",
            f->path);
    long layers = 0;
    do snprintf(name, sizeof name, "transformer.h.%ld.ln_1.weight", layers);
    while (st_find(f, name) && ++layers);
    const struct {
        const char *flag;
        long *field, found;
    } shape[] = {{"layers", &o->layers, layers},
                 {"width", &o->width, (long)wte->shape[1]},
                 {"context", &o->context, (long)wpe->shape[0]}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        if (options_given(given, shape[i].flag) && *shape[i].field != shape[i].found)
            die(USAGE, "--%s %ld: the model of %s has %ld: leave the flag out", shape[i].flag,
                *shape[i].field, f->path, shape[i].found);
        *shape[i].field = shape[i].found;
    }
    if (!options_given(given, "bias")) o->bias = st_find(f, "transformer.ln_f.bias") != NULL;
    const char *heads = st_meta(f, "heads");
    if (!heads && !options_given(given, "heads"))
        die(USAGE, "%s does not say how many heads its model has: --heads N does", f->path);
    if (!options_given(given, "heads")) o->heads = atol(heads);
    if (o->layers < 1 || o->width < 1 || o->context < 1 || o->heads < 1 || o->layers > 1000 ||
        o->width > 65536 || o->context > 1048576)
        die(FAILED,
            "%s: %ld layers, %ld heads, width %ld, context %ld: not a model for this program",
            f->path, o->layers, o->heads, o->width, o->context);
}

/* The prompt of samples as tokens. */
static inline void encode_prompt(Run *run, const DataVocab *vocab) {
    const char *prompt = run->o.prompt;
    size_t room = strlen(prompt) + 1;
    run->prompt = allocate(room * sizeof *run->prompt);
    int64_t n = data_encode(vocab, prompt, run->prompt, room);
    if (n < 0 && strcmp(prompt, "\n") == 0) n = 0; /* a text of one line, or GPT-2's tokens */
    if (n < 0 && vocab->kind == DATA_GPT2)
        die(USAGE, "--prompt takes numbers of GPT-2 tokens such as [15496][995]: see byte %lld",
            (long long)-n);
    if (n < 0)
        die(USAGE, "--prompt has at byte %lld a character that the model has never seen",
            (long long)-n);
    if (n == 0) run->prompt[n++] = vocab->kind == DATA_GPT2 && vocab->size > 50256 ? 50256 : 0;
    run->prompt_tokens = (size_t)n;
}

/* Some workers have died. The others go on from the last save, each with its own state and as many
 * sequences per step as before. */
static inline void go_on_without(Run *run, const CommDeath *death) {
    Options *o = &run->o;
    char error[BASE_PATH + 512], note[BASE_PATH + 512], last[2 * BASE_PATH];
    int left = 0, *survivor = allocate((size_t)o->workers * sizeof *survivor);
    for (int r = 0; r < o->workers; r++) {
        int lost = 0;
        for (int k = 0; k < death->count; k++) lost |= death->rank[k] == r;
        if (!lost) survivor[left++] = r;
    }
    if (left == 0) die(FAILED, "no worker is left");
    int resumed = run->has_checkpoint;
    if (resumed && !run->resumed.path) {
        run->resumed = run->checkpoint.model;
        free(run->resumed.map); /* the tensors; metadata stay */
        run->resumed.map = NULL;
    } else if (resumed) {
        checkpoint_close(&run->checkpoint);
    }
    snprintf(last, sizeof last, "%s/last/model.safetensors", o->out);
    int code = checkpoint_open(o->out, "last", 1, &run->checkpoint, note, sizeof note, error,
                               sizeof error);
    if (code && (code != -1 || resumed || access(last, F_OK) == 0)) die(FAILED, "%s", error);
    run->has_checkpoint = !code && run->checkpoint.stamp.run == run->identity;
    if (!code && !run->has_checkpoint) checkpoint_close(&run->checkpoint); /* of an older run */
    if (run->has_checkpoint) run->saved_workers = run->checkpoint.stamp.parts - 1;
    if (run->has_checkpoint && *note) report_note(stderr, "%s", note);
    /* a save by more workers is the one that this attempt began with, not one of its own */
    if (run->has_checkpoint && run->origin && run->saved_workers > o->workers)
        for (int k = 0; k < left; k++) survivor[k] = run->origin[survivor[k]];
    free(run->origin);
    run->origin = survivor;
    o->resume_workers = "keep";
    o->batch = o->batch / o->workers * left;
    o->workers = left;
    if (o->adversaries >= left) o->adversaries = o->rule.adversaries = left - 1;
    if (o->adversaries == 0) o->rule.attack = NULL;
    must(data_set_shards(&run->data, o->shards, (size_t)left, (size_t)o->context, error,
                         sizeof error),
         error);
    report_note(stderr, "%d workers go on from %s", left,
                run->has_checkpoint ? run->checkpoint.folder : "the start");
}

/* Options from the command line and a save, then the text and vocabulary that they name. */
static inline void prepare_run(Run *run, const unsigned char *given, int ranks, int sharing) {
    Options *o = &run->o;
    const StFile *f = &run->checkpoint.model;
    char error[BASE_PATH + 1024];
    if ((o->resume != 0) + (o->sample != 0) + (o->eval != 0) > 1)
        die(USAGE, "--resume, --sample and --eval are three different calls: name one");
    if (!*o->out) die(USAGE, "--out takes the name of a folder");
    if (options_given(given, "init") && !*o->init)
        die(USAGE, "--init takes the path of a safetensors file");
    if (o->resume || o->sample || o->eval) {
        open_save(run, o->resume);
        run->identity = run->checkpoint.stamp.run;
        int status = options_take(o, given, f, error, sizeof error);
        if (status) die(status, "%s", error);
    }
    if (*o->init && !o->resume && !o->eval && !o->sample) open_init(run, given);
    int status = options_check(o, given, ranks, sharing, error, sizeof error);
    if (status) die(status, "%s", error);
    const char *vocabulary = o->sample ? st_meta(f, "vocabulary") : NULL;
    if (!o->sample)
        open_data(run, given);
    else if (!vocabulary || data_vocab_import(&run->vocab, vocabulary, strlen(vocabulary)))
        die(FAILED, "%s: its vocabulary cannot be read", f->path);
    if (o->sample || o->sample_every)
        encode_prompt(run, o->sample ? &run->vocab : &run->data.vocab);
}

/* Refuse a run that exceeds this machine's memory, before models and workers are allocated. */
static inline void check_memory(const Options *o, size_t parameters) {
    double copies = o->sample ? 1 : (double)o->workers * (o->eval ? 1 : 3),
           on_cpu = !o->sample && !o->eval && options_device(o, 0, 0) < 0,
           tokens = on_cpu * (double)o->batch / (double)o->accumulate * (double)o->context,
           least = 4 * (copies * (double)parameters + tokens * (double)(o->width * o->layers)),
           have = (double)comm_memory_limit();
    if (have > 0 && least > have && !o->dry_run)
        die(FAILED,
            "this run takes at least %.3g GB, and %.3g may be used: take a smaller model, batch or "
            "context, or fewer workers",
            least * 1e-9, have * 1e-9);
}

/* Lock the folder of a training run and say what begins. */
static inline void begin_training(const Run *run, const SmTensor *tensor, size_t tensors,
                                  size_t parameters, int *lock) {
    const Options *o = &run->o;
    char error[BASE_PATH + 512], note[BASE_PATH + 512], save[2 * BASE_PATH];
    snprintf(save, sizeof save, "%s/model.safetensors", o->out);
    if (access(save, F_OK) == 0)
        die(FAILED, "%s is a save of a run: --out takes the folder of the run, which holds it",
            o->out);
    must(checkpoint_lock(o->out, lock, error, sizeof error), error);
    if (o->resume) { /* until now another program may have held the lock, and saved */
        Checkpoint now;
        const CheckpointStamp *then = &run->checkpoint.stamp;
        must(checkpoint_open(o->out, "last", 1, &now, note, sizeof note, error, sizeof error),
             error);
        if (now.stamp.step != then->step || now.stamp.run != then->run)
            die(FAILED, "another program has saved in %s just now: start again", o->out);
        checkpoint_close(&now);
    }
    if (!o->resume && !o->overwrite && checkpoint_exists(o->out))
        die(FAILED,
            "%s holds a run: --resume goes on from it, --overwrite starts anew, --out DIR leaves "
            "it alone",
            o->out);
    if (o->quiet) return;
    fprintf(stderr, "%zu parameters\n", parameters);
    options_data(stderr, o, &run->data);
    fprintf(stderr, "%ld workers (%s) of %ld compute threads, products by %s\n", o->workers,
            o->backend, o->threads,
            options_device(o, 0, 0) < 0 ? gemm_default(GEMM_F32)->name : "cuBLASLt");
    options_rules(stderr, o, tensor, tensors);
}

/* A mapped file was cut short by another program, or its disk fails. */
static inline void end_of_map(int number) {
    static const char text[] =
        "train_gpt: a file that is being read (--data or a save) was cut short, or its disk fails: "
        "restore it, then --resume\n";
    if (!comm_may_speak()) comm_wait_for_end();
    ssize_t written = write(2, text, sizeof text - 1);
    _exit(written < 0 ? 128 + number : FAILED);
}

#endif
