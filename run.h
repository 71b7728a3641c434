/* run.h - a run of train_gpt beside its arithmetic: what it was asked for, what it keeps in its
   folder, what it tells. MIT.

     die, must, allocate            end the program with one sentence
     Run, Worker                    a run as all workers know it; one worker's part of it
     save, load_model, load_state   parameters, optimizer and counters to OUT and back
     log_row, show_progress         a row of log.csv; the progress line
     cut_samples, keep_sample       OUT/samples.txt
     prepare_run, begin_training    options from the command line and a save, the text, the folder
     go_on_without                  the run of the workers that are left

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
    StFile init;       /* weights to begin with; without a path the parameters are random */
    int saved_workers; /* number of workers that wrote it */
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
    double norm;             /* of the last mean gradient */
    double server_val, gap;  /* EF21: loss of the server's model X; |X - W| / |X| */
    double consensus;        /* gossip: root of the sum of squared distances to the mean */
    double node_val[3];      /* gossip: least, mean, greatest loss of the nodes' own models */
    double seconds, started; /* of earlier calls of the run; clock at the begin of this one */
    double shown;            /* clock at the last progress line */
    double earlier[TRAFFIC]; /* payload of this worker in earlier calls of the run */
    double most[TRAFFIC];    /* of the worker that has most, as last gathered */
    double agreement;

    /* of train_gpt.c alone */
    struct Gpt *g;
    size_t B, T;           /* sequences of a step, tokens of a sequence */
    size_t pass;           /* sequences of a pass over the model */
    int32_t *in, *target;  /* (B, T) */
    float *losses;         /* (B, T) of an evaluation */
    double *window_loss;   /* one sum per validation window */
    double *tensor_square; /* squared norm of each tensor's gradient */
    size_t *cuts;          /* (workers + 1) byte offsets of the shards of a message */
    float *mean, *shards;  /* gossip: the mean model, and everybody's part of my shard */
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
 * tensors in files */

/* A tensor as a file holds it: vectors have one dimension. */
static inline StTensor as_stored(const SmTensor *t, const char *name, const float *params) {
    size_t rows = t->blocks * t->rows;
    StTensor s = {.name = name, .dtype = "F32", .rank = rows == 1 ? 1 : 2};
    s.shape[0] = rows == 1 ? t->cols : rows;
    s.shape[1] = rows == 1 ? 0 : t->cols;
    s.data = params ? params + t->offset : NULL;
    return s;
}

static inline void read_array(const StFile *f, const char *name, float *to, size_t count) {
    char error[BASE_PATH + 512];
    must(st_read_f32(f, name, to, count, error, sizeof error), error);
}

/* Refuse a file whose model is not that of the flags. */
static inline void check_shapes(const StFile *f, const SmTensor *tensor, size_t tensors) {
    for (size_t i = 0; i < tensors; i++) {
        StTensor want = as_stored(&tensor[i], tensor[i].name, NULL);
        const StEntry *have = st_find(f, want.name);
        if (!have) die(FAILED, "%s: there is no tensor '%s'", f->path, want.name);
        if (have->rank != want.rank || have->shape[0] != want.shape[0] ||
            have->shape[1] != want.shape[1])
            die(FAILED, "%s: '%s' is %zu x %zu, and the flags and the text ask for %zu x %zu",
                f->path, want.name, have->shape[0], have->rank < 2 ? 1 : have->shape[1],
                want.shape[0], want.rank < 2 ? 1 : want.shape[1]);
    }
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
    if (heads && !options_given(given, "heads")) o->heads = atol(heads);
    if (o->layers < 1 || o->width < 1 || o->context < 1 || o->heads < 1 || o->layers > 1000 ||
        o->width > 65536 || o->context > 1048576)
        die(FAILED, "%s: %ld layers, width %ld, context %ld: not a model for this program", f->path,
            o->layers, o->width, o->context);
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
    char error[BASE_PATH + 512];
    int left = 0, *survivor = allocate((size_t)o->workers * sizeof *survivor);
    for (int r = 0; r < o->workers; r++) {
        int lost = 0;
        for (int k = 0; k < death->count; k++) lost |= death->rank[k] == r;
        if (!lost) survivor[left++] = r;
    }
    if (left == 0) die(FAILED, "no worker is left");
    if (run->has_checkpoint) checkpoint_close(&run->checkpoint);
    run->has_checkpoint = checkpoint_exists(o->out);
    if (run->has_checkpoint) open_save(run, 1);
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
    if (o->resume || o->sample || o->eval) {
        open_save(run, o->resume);
        run->identity = run->checkpoint.stamp.run;
        int status = options_take(o, given, f, error, sizeof error);
        if (status) die(status, "%s", error);
    }
    if (*o->init && !o->resume) open_init(run, given);
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

/* ------------------------------------------------------------------------------------------------
 * saves: model.safetensors with nanoGPT's names, and worker-R.safetensors with what worker R alone
 * holds: momenta, error feedback, a node's own model, counters */

/* Text pairs of a part; texts live as long as the list. */
typedef struct Pairs {
    StPair pair[FLAGS + 16];
    char text[FLAGS + 16][64];
    size_t n;
} Pairs;

static inline void add_text(Pairs *p, const char *key, const char *value) {
    assert(p->n < FLAGS + 16);
    p->pair[p->n++] = (StPair){key, value};
}
static inline void add_number(Pairs *p, const char *key, double value) {
    snprintf(p->text[p->n], 64, "%.17g", value);
    add_text(p, key, p->text[p->n]);
}

/* The number that a file's metadata hold under a key. */
static inline double stored_number(const StFile *f, const char *key) {
    const char *text = st_meta(f, key);
    char *end = NULL;
    double value = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end)
        die(FAILED, "%s: its metadata hold no number for '%s': it was written by another program",
            f->path, key);
    return value;
}

/* An array of a worker's part. */
typedef struct Kept {
    char name[112];
    SmState state;
    int is_node; /* a tensor of a gossip node's own model; else state of the optimizer */
} Kept;

/* All of them, for writing and for reading; the caller frees the list. */
static inline Kept *list_state(const Worker *w, size_t *count) {
    size_t states = 0;
    const SmTensor *tensor = w->tensor;
    SmState s;
    while (sm_state(w->optimizer, states, &s)) states++;
    *count = states + (gossips(w) ? w->tensors : 0);
    Kept *list = allocate((*count + 1) * sizeof *list);
    for (size_t i = 0; i < *count; i++) {
        if (!sm_state(w->optimizer, i, &s)) {
            const SmTensor *t = &tensor[i - states];
            s = (SmState){.kind = "node", .tensor = i - states, .block = -1};
            s.rows = t->blocks * t->rows, s.cols = t->cols, s.data = w->params + t->offset;
        }
        list[i].state = s;
        list[i].is_node = i >= states;
        int n = snprintf(list[i].name, 112, "%s.%s", s.kind, tensor[s.tensor].name);
        if (s.block >= 0) snprintf(list[i].name + n, 112 - (size_t)n, ".%d", s.block);
    }
    return list;
}

/* This worker's payload since the run began. */
static inline void count_traffic(const Worker *w, double *out) {
    const Comm *c = w->c;
    memcpy(out, w->earlier, sizeof w->earlier);
    for (int k = COMM_MATRICES; k <= COMM_CONTROL; k++) {
        out[SENT] += (double)c->sent[k];
        out[RECEIVED] += (double)c->received[k];
        out[MESSAGES] += (double)c->messages[k];
        out[UP] += k == COMM_CONTROL ? 0 : (double)c->up[k];
        out[DOWN] += k == COMM_CONTROL ? 0 : (double)c->down[k];
    }
}

/* Write a part of a save. With params: "model", which also holds every flag and the vocabulary.
 * With NULL: what this worker alone holds; worker 0 adds what all share. */
static inline int write_part(const Worker *w, const float *params, const char *name,
                             const CheckpointStamp *stamp, char *error, size_t size) {
    const Run *run = w->run;
    size_t n = 0, arrays, count = w->tensors;
    const SmTensor *tensor = w->tensor;
    char part[32] = "model";
    double traffic[TRAFFIC];
    Kept *list = list_state(w, &arrays);
    StTensor *t = allocate((count + arrays + 1) * sizeof *t);
    Pairs *p = allocate(sizeof *p);
    if (params) {
        for (; n < count; n++) t[n] = as_stored(&tensor[n], tensor[n].name, params);
        t[n++] = as_stored(&tensor[0], "lm_head.weight", params); /* tied to the embedding */
        for (size_t i = 0; i < FLAGS; i++)
            if ((flags[i].keep & KEEPING) != PER_CALL)
                add_text(p, flags[i].name, flags_text(&flags[i], &run->o, p->text[p->n], 64));
        add_text(p, "format", "train_gpt " SM_VERSION);
        add_text(p, "vocabulary", run->vocab_text);
        snprintf(p->text[p->n], 64, "%016" PRIx64, data_fingerprint(&run->data));
        add_text(p, "data_fingerprint", p->text[p->n]);
        add_number(p, "train_loss", w->train);
        add_number(p, "grad_norm", w->norm);
        add_number(p, "val_loss", w->val);
        add_number(p, "best_val_loss", w->best);
        add_number(p, "evaluated", w->evaluated);
    } else {
        snprintf(part, sizeof part, "worker-%d", w->c->rank);
        for (size_t i = 0; i < arrays; i++) {
            const SmState *s = &list[i].state;
            if (s->replicated && w->c->rank) continue;
            t[n++] = list[i].is_node
                         ? as_stored(&tensor[s->tensor], list[i].name, w->params)
                         : (StTensor){list[i].name, "F32", {s->rows, s->cols}, 2, s->data};
        }
        add_number(p, "seconds", elapsed(w));
        count_traffic(w, traffic);
        for (int i = 0; i < TRAFFIC; i++) add_number(p, traffic_name[i], traffic[i]);
    }
    int failed = checkpoint_write(run->o.out, name, part, stamp, t, n, p->pair, p->n, error, size);
    free(list), free(t), free(p);
    return failed;
}

/* End the program where the optimizer's device has failed. */
static inline void device_must(const Worker *w, int failed) {
    must(failed, sm_device_error(w->optimizer));
}

/* All workers together: save the model under OUT/name. When that fails the program ends and the save
 * before it still stands. */
static inline void save(Worker *w, const float *model, const char *name, int with_state) {
    const char *out = w->run->o.out;
    char error[BASE_PATH + 512] = "";
    CheckpointStamp stamp = {
        .run = w->identity, .step = (uint64_t)w->step, .parts = with_state ? w->c->size + 1 : 1};
    if (with_state && w->on_device) device_must(w, sm_from_device(w->optimizer));
    int failed = w->c->rank == 0 && checkpoint_begin(out, name, error, sizeof error);
    if (!first_nonzero(w, failed)) {
        if (w->c->rank == 0) failed = write_part(w, model, name, &stamp, error, sizeof error);
        if (!failed && with_state) failed = write_part(w, NULL, name, &stamp, error, sizeof error);
        if (!first_nonzero(w, failed) && w->c->rank == 0)
            failed = checkpoint_commit(out, name, with_state, error, sizeof error);
    }
    if (!first_nonzero(w, failed)) return;
    if (*error) die(FAILED, "%s; the save before it is untouched: mend this, then --resume", error);
    comm_wait_for_end();
}

/* The parameters that the run begins with, from a file. One that is not a save of ours may hold an
 * output layer apart from the embedding. */
static inline void load_model(const Worker *w, const StFile *f) {
    for (size_t i = 0; i < w->tensors; i++) {
        const SmTensor *t = &w->tensor[i];
        size_t size = t->blocks * t->rows * t->cols;
        read_array(f, t->name, w->params + t->offset, size);
        if (!sm_finite(w->params + t->offset, size))
            die(FAILED, "%s: '%s' holds NaN or infinity", f->path, t->name);
    }
    const StEntry *wte = st_find(f, w->tensor[0].name), *head = st_find(f, "lm_head.weight");
    size_t bytes = wte->end - wte->begin;
    if (head &&
        (head->end - head->begin != bytes || memcmp(st_data(f, wte), st_data(f, head), bytes)))
        die(FAILED, "%s: lm_head.weight is not wte.weight: this model has them tied", f->path);
}

/* This worker's training state. Another number of workers than saved it goes on by
 * --resume-workers: each with its own momenta (new ones with the mean), all with the mean, or with
 * zero. */
static inline void load_state(Worker *w) {
    Run *run = w->run;
    const StFile *model = &run->checkpoint.model;
    const char *policy = run->o.resume_workers;
    char error[BASE_PATH + 512], name[32];
    int saved = run->saved_workers, resized = saved != w->c->size || run->origin;
    int rank = run->origin ? run->origin[w->c->rank] : w->c->rank; /* in the save */
    int own = !resized || (strcmp(policy, "keep") == 0 && rank < saved);
    size_t count;
    Kept *list = list_state(w, &count);
    float weight = own ? 1 : strcmp(policy, "zero") == 0 ? 0 : 1 / (float)saved;
    float *scratch = allocate(w->parameters * sizeof *scratch);
    for (int r = 0; r < saved; r++) {
        StFile part;
        int is_source = own ? r == rank : weight > 0;
        if (r > 0 && r != rank && !is_source) continue;
        snprintf(name, sizeof name, "worker-%d", r);
        must(checkpoint_open_part(&run->checkpoint, name, &part, error, sizeof error), error);
        for (size_t i = 0; i < count; i++) {
            const SmState *s = &list[i].state;
            size_t n = s->rows * s->cols;
            int moved = s->block >= 0 && resized; /* blocks change owners */
            if (s->replicated ? r == 0 : list[i].is_node && is_source && weight == 1) {
                read_array(&part, list[i].name, s->data, n);
            } else if (is_source && !moved && !s->replicated && !list[i].is_node) {
                read_array(&part, list[i].name, scratch, n);
                for (size_t k = 0; k < n; k++) s->data[k] += weight * scratch[k];
            }
        }
        if (r == 0) w->seconds = stored_number(&part, "seconds");
        for (int i = 0; i < TRAFFIC && r == rank; i++)
            w->earlier[i] = stored_number(&part, traffic_name[i]);
        st_close(&part);
    }
    free(list), free(scratch);
    if (resized) sm_regroup(w->optimizer, w->params);
    w->step = (long)run->checkpoint.stamp.step;
    w->train = stored_number(model, "train_loss");
    w->norm = stored_number(model, "grad_norm");
    if (run->other_data) return; /* its losses cannot be compared */
    w->evaluated = stored_number(model, "evaluated");
    w->val = stored_number(model, "val_loss");
    w->best = stored_number(model, "best_val_loss");
}

/* ------------------------------------------------------------------------------------------------
 * what a run tells */

/* The columns of log.csv: name, format, value in log_row. */
#define COLUMNS(COLUMN)                                                                            \
    COLUMN("step", "%.0f", (double)w->step)                                                        \
    COLUMN("tokens", "%.0f", (double)(w->step * o->batch * o->context))                            \
    COLUMN("seconds", "%.3f", elapsed(w))                                                          \
    COLUMN("train_loss", "%.6f", w->train)                                                         \
    COLUMN("val_loss", "%.6f", w->val + if_validated)                                              \
    COLUMN("lr", "%.6g", o->rule.lr *rate)                                                         \
    COLUMN("aux_lr", "%.6g", o->rule.aux_lr *rate)                                                 \
    COLUMN("grad_norm", "%.6g", w->norm)                                                           \
    COLUMN("bytes_sent", "%.0f", w->most[SENT])                                                    \
    COLUMN("bytes_received", "%.0f", w->most[RECEIVED])                                            \
    COLUMN("agreement", "%.5f", w->agreement)                                                      \
    COLUMN("wire_seconds", "%.4f", wire)                                                           \
    COLUMN("uplink_bytes", "%.0f", w->most[UP])                                                    \
    COLUMN("downlink_bytes", "%.0f", w->most[DOWN])                                                \
    COLUMN("server_val_loss", "%.6f", w->server_val + if_validated)                                \
    COLUMN("model_gap", "%.6g", w->gap + if_validated)                                             \
    COLUMN("consensus", "%.6g", w->consensus)                                                      \
    COLUMN("node_val_min", "%.6f", w->node_val[0] + if_validated)                                  \
    COLUMN("node_val_mean", "%.6f", w->node_val[1] + if_validated)                                 \
    COLUMN("node_val_max", "%.6f", w->node_val[2] + if_validated)                                  \
    COLUMN("workers", "%.0f", (double)w->c->size)
#define COLUMN_HEAD(title, number, value) {.name = title, .format = number},
#define COLUMN_VALUE(title, number, value) value,

static const ReportColumn columns[] = {COLUMNS(COLUMN_HEAD)};

/* A row of log.csv; NaN is a value that was not measured at this step. */
static inline void log_row(Worker *w, int validated) {
    const Options *o = &w->run->o;
    char error[BASE_PATH + 256];
    double rate = w->step > 0 ? schedule(o, w->step - 1) : NAN, if_validated = validated ? 0 : NAN;
    double per_byte, per_message, wire = NAN;
    if (*o->link && options_link(o->link, &per_byte, &per_message))
        wire = w->most[SENT] * per_byte + w->most[MESSAGES] * per_message;
    double values[] = {COLUMNS(COLUMN_VALUE)};
    must(report_row(&w->log, values, error, sizeof error), error);
}

/* Open OUT/samples.txt, or end the program; -1 when there is none and none is to be made. */
static inline int open_samples(const Worker *w, int mode, char *path, size_t size) {
    snprintf(path, size, "%s/samples.txt", w->run->o.out);
    int fd = base_open(path, mode);
    if (fd < 0 && (errno != ENOENT || mode & O_CREAT))
        die(FAILED, "%s: cannot be written: %s", path, strerror(errno));
    return fd;
}

/* Drop the samples of this step, which is sampled again, and of later ones. */
static inline void cut_samples(const Worker *w) {
    char path[2 * BASE_PATH], *line = NULL;
    int fd = open_samples(w, O_RDWR, path, sizeof path), later = 0;
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    size_t room = 0;
    off_t at = 0;
    long step;
    for (ssize_t n; f && !later && (n = getline(&line, &room, f)) > 0; at += later ? 0 : n)
        later = sscanf(line, "--- step %ld", &step) == 1 && step >= w->step;
    if (later && ftruncate(fd, at)) die(FAILED, "%s: cannot be cut: %s", path, strerror(errno));
    if (f) fclose(f);
    free(line);
}

/* Add a sample, and show it. */
static inline void keep_sample(const Worker *w, const char *text, size_t size) {
    char path[2 * BASE_PATH], head[64];
    int n = snprintf(head, sizeof head, "--- step %ld\n", w->step);
    int fd = open_samples(w, O_WRONLY | O_CREAT | O_APPEND, path, sizeof path);
    if (base_write(fd, head, (size_t)n) || base_write(fd, text, size) || close(fd))
        die(FAILED, "%s: cannot be written: %s", path, strerror(errno));
    if (w->run->o.quiet) return;
    report_note(stderr, "--- step %ld", w->step);
    report_text_put(&(ReportText){.terminal = isatty(2)}, stderr, text, size, 1);
}

/* The progress line; on a narrow terminal it loses its least important fields. */
static inline void show_progress(Worker *w, int ends) {
    const Options *o = &w->run->o;
    ReportField f[8];
    size_t n = 0;
    char time[32];
    w->shown = base_now();
    if (o->quiet || w->c->rank) return;
    double spent = w->shown - w->started;
    double rate = spent > 0 ? (double)(w->step - w->initial_step) / spent : 0;
#define FIELD(weight, ...) (f[n].importance = weight, snprintf(f[n++].text, 64, __VA_ARGS__))
    FIELD(9, "step %ld/%ld", w->step, o->steps);
    if (!isnan(w->train)) FIELD(8, "loss %.4f", w->train);
    if (!isnan(w->val)) FIELD(7, "val %.4f", w->val);
    if (w->run->data.floor > 0) FIELD(3, "(entropy %.4f)", w->run->data.floor);
    if (rate > 0) {
        FIELD(4, "%.0f tokens/s", rate * (double)(o->batch * o->context));
        if (w->c->size > 1 && w->step > 0)
            FIELD(2, "%.3f bits/parameter",
                  8 * w->most[SENT] / (double)w->step / (double)w->parameters);
        report_duration(time, sizeof time, (double)(o->steps - w->step) / rate);
        FIELD(6, "ETA %s", time);
    }
#undef FIELD
    report_progress(stderr, f, n, ends);
}

#endif
