/* options.h - the command line of train_gpt: its flags, what they mean together, and the tables that
   --list and --dry-run print. MIT.

     flags       one row makes the field, the parser, the range check, the help line and the text that
                 a save keeps; lib/flags.h does all of it
     schedule    the learning rate's course over the steps; one row of schedules[] names each
     options_check, options_take     refuse what no single range can, take over a save's flags: 0, or
                                     an exit status and one sentence
     options_list, options_rules, options_dry_run     tables for people

   It knows the optimizer's interface and the names of tensors, but no model, no worker, no file. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <assert.h>
#include <inttypes.h>
#include <strings.h>
#include "dataloader.h"
#include "demuon.h"
#include "ef21muon.h"
#include "lib/attack.h"
#include "lib/base.h"
#include "lib/comm.h"
#include "lib/flags.h"
#include "lib/gemm.h"
#include "lib/gpt_cuda.h"
#include "lib/report.h"
#include "lib/safetensors.h"
#include "optimizer.h"
#include "signmuon.h"

enum { FAILED = 1, USAGE = 2, DIVERGED = 3 }; /* exit statuses */

/* ------------------------------------------------------------------------------------------------
 * options: one row makes the field, the parser, the range check, the help line and the metadata */

typedef struct Options {
    const char *data, *val_data, *vocab, *shards, *out, *init;
    long layers, heads, width, context;
    int bias;
    double dropout;
    const char *dtype, *device;
    SmConfig rule; /* the optimizer's own fields */
    const char *schedule;
    long warmup;
    double cooldown, final_lr;
    long workers, threads, adversaries, polar_every;
    const char *backend, *link, *on_death, *resume_workers;
    double timeout;
    long batch, accumulate, steps, seed, eval_every, log_every, save_every, check_every,
        sample_every, eval_tokens;
    int resume, overwrite, eval, dry_run, quiet, version;
    long sample, top_k;
    double temperature;
    const char *prompt, *list;
} Options;

/* What a checkpoint does with a flag, and where beside training the flag has an effect. */
enum {
    PER_CALL,    /* nothing */
    STORED,      /* keeps it; --resume takes it over unless the call names another value */
    FIXED,       /* keeps it; --resume refuses another value */
    SIZED,       /* the same, unless --resume-workers takes another number of workers */
    KEEPING = 3, /* mask of the four above */
    WITH_EVAL = 1 << 2,
    WITH_SAMPLE = 1 << 3,
    COMMON = FLAG_COMMON /* on the short page of --help */
};

#define CHOICES(name, ...)                                                                         \
    static const char *name(size_t i) {                                                            \
        static const char *const words[] = {__VA_ARGS__};                                          \
        return i < sizeof words / sizeof words[0] ? words[i] : NULL;                               \
    }
CHOICES(choice_vocab, "chars", "bytes")
CHOICES(choice_backend, "threads", "processes", "mpi") /* mpi: also a save's, without MPI here */
CHOICES(choice_dtype, "fp32", "bf16")
CHOICES(choice_aux, "adamw", "sign", "same", "lmo")
CHOICES(choice_zeros, "coin", "plus", "abstain")
CHOICES(choice_death, "stop", "continue")
CHOICES(choice_resume, "refuse", "keep", "mean", "zero")
CHOICES(choice_list, "methods", "norms", "gains", "newton-schulz", "compressors", "topologies",
        "attacks", "backends", "schedules", "shards")

#define NAMES(function, row)                                                                       \
    static const char *function(size_t i) { return row(i) ? row(i)->name : NULL; }
NAMES(choice_method, sm_method_row)
NAMES(choice_gain, sm_gain_row)
NAMES(choice_ns, sm_newton_schulz_row)
NAMES(choice_shards, data_shards_row)
static const char *choice_norm(size_t i) {
    return i == 0 ? "none" : sm_norm_row(i - 1) ? sm_norm_row(i - 1)->name : NULL;
}

/* Courses of the learning rate, see schedule() */
typedef struct Schedule {
    const char *name, *doc;
} Schedule;
static const Schedule schedules[] = {
    {.name = "linear", .doc = "a straight line down to --final-lr"},
    {.name = "cosine", .doc = "half a cosine down to --final-lr"},
    {.name = "constant", .doc = "the peak to the end"},
    {.name = "wsd",
     .doc = "warm-up, stable, decay: the peak, then a line over the last --cooldown"},
    {.name = "gluon", .doc = "(k+1)^-3/4 at step k (arXiv 2505.13416)"},
};
static inline const Schedule *schedule_row(size_t i) {
    return i < sizeof schedules / sizeof schedules[0] ? &schedules[i] : NULL;
}
NAMES(choice_schedule, schedule_row)

#define ROW(in, title, of, field_, value, low, high, words, takes, text, mark)                     \
    {                                                                                              \
        .group = in, .name = title, .kind = of, .field = offsetof(Options, field_),                \
        .fallback = value, .least = low, .most = high, .choice = words, .argument = takes,         \
        .help = text, .keep = mark                                                                 \
    }
#define SWITCH(group, name, field, text, mark)                                                     \
    ROW(group, name, FLAG_SWITCH, field, "off", 0, 1, NULL, NULL, text, mark)
#define WHOLE(group, name, field, value, low, high, text, mark)                                    \
    ROW(group, name, FLAG_WHOLE, field, value, low, high, NULL, "N", text, mark)
#define REAL(group, name, field, value, low, high, takes, text, mark)                              \
    ROW(group, name, FLAG_REAL, field, value, low, high, NULL, takes, text, mark)
#define TEXT(group, name, field, value, takes, text, mark)                                         \
    ROW(group, name, FLAG_TEXT, field, value, 0, 0, NULL, takes, text, mark)
#define CHOICE(group, name, field, value, words, text, mark)                                       \
    ROW(group, name, FLAG_CHOICE, field, value, 0, 0, words, "NAME", text, mark)

#define MANY 1e15 /* more steps than anybody takes */

// clang-format off
static const Flag flags[] = {
    TEXT("Data", "data", data, "data/tinyshakespeare.txt", "PATH", "a text, or token shards of llm.c (a quoted pattern for many)", STORED | COMMON | WITH_EVAL),
    TEXT("Data", "val-data", val_data, "", "PATH", "text or shards to validate on; without it the last 10 % of --data", STORED | WITH_EVAL),
    CHOICE("Data", "vocab", vocab, "auto", choice_vocab, "tokens of a text: its characters, or bytes; auto: characters if it is UTF-8", FIXED | WITH_EVAL),
    CHOICE("Data", "shards", shards, "iid", choice_shards, "which part of the text each worker trains on", FIXED),
    WHOLE("Model", "layers", layers, "4", 1, 1000, "transformer layers", FIXED | COMMON | WITH_EVAL | WITH_SAMPLE),
    WHOLE("Model", "heads", heads, "4", 1, 1000, "attention heads; they divide the width", FIXED | COMMON | WITH_EVAL | WITH_SAMPLE),
    WHOLE("Model", "width", width, "128", 1, 65536, "channels", FIXED | COMMON | WITH_EVAL | WITH_SAMPLE),
    WHOLE("Model", "context", context, "64", 1, 1048576, "tokens that the model sees at once", FIXED | COMMON | WITH_EVAL | WITH_SAMPLE),
    REAL("Model", "dropout", dropout, "0", 0, 0.99, "P", "probability that an activation is dropped", STORED),
    SWITCH("Model", "bias", bias, "biases in linear layers and LayerNorms", FIXED | WITH_EVAL | WITH_SAMPLE),
    CHOICE("Model", "dtype", dtype, "auto", choice_dtype, "of products and stored activations; sums, weights and optimizer stay fp32. auto: bf16 on a GPU, else fp32", STORED | WITH_EVAL | WITH_SAMPLE),
    CHOICE("Optimizer", "method", rule.method, "signmuon", choice_method, "rule of the hidden matrices (--list methods)", FIXED | COMMON),
    CHOICE("Optimizer", "aux", rule.aux, "auto", choice_aux, "rule of all other tensors: fp32 AdamW, a 1-bit vote, the method without its LMOs, or the method in Scion's norms", FIXED | COMMON),
    REAL("Optimizer", "lr", rule.lr, "auto", 0, 1e6, "RATE", "peak learning rate of the hidden matrices", STORED | COMMON),
    REAL("Optimizer", "aux-lr", rule.aux_lr, "auto", 0, 1e6, "RATE", "peak learning rate of the others", STORED | COMMON),
    CHOICE("Optimizer", "schedule", schedule, "auto", choice_schedule, "course of the learning rates (--list schedules)", STORED),
    WHOLE("Optimizer", "warmup", warmup, "auto", 0, MANY, "steps over which they rise", STORED),
    REAL("Optimizer", "cooldown", cooldown, "0.2", 0, 1, "FRACTION", "part of a wsd schedule in which they fall", STORED),
    REAL("Optimizer", "final-lr", final_lr, "0", 0, 1, "FRACTION", "of the peak, in the last step", STORED),
    REAL("Optimizer", "momentum", rule.momentum, "auto", 0, 0.99999, "MU", "weight of the old momentum (Lion: beta2)", STORED),
    ROW("Optimizer", "nesterov", FLAG_AUTO_SWITCH, rule.nesterov, "auto", 0, 1, NULL, "on|off", "look ahead along the gradient", STORED),
    REAL("Optimizer", "beta2", rule.beta2, "0.95", 0, 0.999999, "B", "of AdamW", STORED),
    REAL("Optimizer", "weight-decay", rule.weight_decay, "auto", 0, 1e3, "WD", "decoupled, of matrices and embeddings", STORED),
    REAL("Optimizer", "clip", rule.clip, "auto", 0, 1e9, "NORM", "longest gradient of a worker; 0 does not clip", STORED),
    CHOICE("Optimizer", "ns", rule.ns, "jordan5", choice_ns, "Newton-Schulz polynomials of the polar factor", STORED),
    CHOICE("Optimizer", "ns-dtype", rule.ns_dtype, "auto", choice_dtype, "that Newton-Schulz's products round their operands to. auto: bf16 on a GPU, else fp32", STORED),
    CHOICE("Optimizer", "gain", rule.gain, "auto", choice_gain, "factor on the learning rate by matrix shape (--list gains)", STORED),
    CHOICE("Optimizer", "norm", rule.norm, "auto", choice_norm, "its LMO replaces the method's (--list norms)", STORED),
    CHOICE("Optimizer", "worker-map", rule.worker_map, "auto", choice_norm, "norm whose LMO a worker applies before it sends", STORED),
    CHOICE("Optimizer", "server-map", rule.server_map, "auto", choice_norm, "norm whose LMO is applied to the vote or the mean", STORED),
    WHOLE("Optimizer", "polar-every", polar_every, "1", 1, 1e9, "a vote on sign(polar(M)) in every so many steps, on sign(M) in the others", STORED),
    SWITCH("Optimizer", "polar-after-vote", rule.polar_after_vote, "step along the polar factor of the vote, at no further bytes", STORED),
    CHOICE("Optimizer", "zeros", rule.zeros, "coin", choice_zeros, "sign of an exact zero; abstain costs a second bit", STORED),
    CHOICE("Optimizer", "ties", rule.ties, "coin", choice_zeros, "result of a tied vote; odd numbers of workers have none, unless zeros abstain", STORED),
    TEXT("Optimizer", "up", rule.up, "auto", "COMPRESSOR", "EF21: what workers send, e.g. topk:0.1+natural (--list compressors)", STORED),
    TEXT("Optimizer", "down", rule.down, "auto", "COMPRESSOR", "EF21: what the server sends", STORED),
    TEXT("Optimizer", "topology", rule.topology, "auto", "GRAPH", "gossip: ring, exponential, ... or file:PATH of a matrix (--list topologies)", STORED),
    WHOLE("Workers", "workers", workers, "1", 1, COMM_MAX_WORKERS, "how many; odd numbers cannot tie", SIZED | COMMON | WITH_EVAL),
    CHOICE("Workers", "backend", backend, "threads", choice_backend, "what a worker is; results do not depend on it", STORED | COMMON | WITH_EVAL),
    TEXT("Workers", "device", device, "auto", "WHERE", "cpu; gpu: worker R takes GPU R, counted round; or the number of one GPU for all. auto: gpu in train_gpt_cuda (make cuda)", PER_CALL | WITH_EVAL | WITH_SAMPLE),
    WHOLE("Workers", "threads", threads, "0", 0, 256, "compute threads per worker; 0: usable cores / workers. Results do not depend on them", PER_CALL | COMMON | WITH_EVAL),
    TEXT("Workers", "link", link, "", "RATE,DELAY", "estimate the time on such a wire, e.g. 100mbit,5ms (computed, not slept)", STORED),
    WHOLE("Workers", "check-every", check_every, "100", 0, MANY, "steps between comparisons of the workers' parameters by hash; 0 never", STORED),
    WHOLE("Workers", "adversaries", adversaries, "0", 0, COMM_MAX_WORKERS, "the last N workers are Byzantine", SIZED),
    TEXT("Workers", "attack", rule.attack, "auto", "HOW", "what they send: flip, random, zero, nan or scale:S", SIZED),
    CHOICE("Workers", "on-death", on_death, "stop", choice_death, "processes: a killed worker ends the run, or the others go on from the last save", STORED),
    REAL("Workers", "timeout", timeout, "300", 0, 1e9, "SECONDS", "processes: a worker that keeps the others waiting longer counts as dead; 0 never", STORED | WITH_EVAL),
    CHOICE("Workers", "resume-workers", resume_workers, "refuse", choice_resume, "--resume with another --workers: each keeps its momentum (new ones take the mean), all take the mean, or zero", PER_CALL),
    WHOLE("Run", "batch", batch, "12", 1, 1e9, "sequences per step over all workers", SIZED | COMMON),
    WHOLE("Run", "accumulate", accumulate, "1", 1, 1e9, "passes in which a worker computes its gradient: as many times less memory for activations", STORED),
    WHOLE("Run", "steps", steps, "2000", 0, MANY, "optimizer steps", STORED | COMMON),
    WHOLE("Run", "seed", seed, "1337", 0, 9e18, "everything random follows from it", FIXED | COMMON | WITH_SAMPLE),
    WHOLE("Run", "eval-every", eval_every, "250", 0, MANY, "steps between validations; 0 only at the end", STORED),
    WHOLE("Run", "eval-tokens", eval_tokens, "0", 0, MANY, "validate on so many tokens, spread over the split; 0: on all", STORED | WITH_EVAL),
    WHOLE("Run", "log-every", log_every, "10", 0, MANY, "steps between rows of log.csv; 0 only at validations", STORED),
    WHOLE("Run", "save-every", save_every, "500", 0, MANY, "steps between saves; 0 only at the end", STORED),
    TEXT("Run", "out", out, "out", "DIR", "folder of the run: its saves and log.csv; --eval and --sample also read DIR/best", PER_CALL | COMMON | WITH_EVAL | WITH_SAMPLE),
    TEXT("Run", "init", init, "", "PATH", "begin with the weights of a safetensors file with nanoGPT's names; its shapes are the model's", PER_CALL),
    SWITCH("Run", "resume", resume, "go on from the last save in --out, with its flags", PER_CALL | COMMON),
    SWITCH("Run", "overwrite", overwrite, "start anew in a folder that holds a run", PER_CALL | COMMON),
    SWITCH("Run", "dry-run", dry_run, "print model, rules, bytes and memory; train nothing", PER_CALL | COMMON),
    SWITCH("Run", "quiet", quiet, "no progress", PER_CALL | WITH_EVAL | WITH_SAMPLE),
    SWITCH("Text", "eval", eval, "print the validation loss of a save", PER_CALL | COMMON | WITH_EVAL),
    WHOLE("Text", "sample", sample, "0", 0, MANY, "write N tokens of text to stdout, and nothing else", PER_CALL | COMMON | WITH_SAMPLE),
    WHOLE("Text", "sample-every", sample_every, "0", 0, MANY, "steps between samples of 300 tokens while it trains, also in OUT/samples.txt; 0 none", STORED),
    TEXT("Text", "prompt", prompt, "\n", "TEXT", "how the sample begins; of GPT-2 tokens their numbers, [15496][995]", STORED | COMMON | WITH_SAMPLE),
    REAL("Text", "temperature", temperature, "0.8", 0, 1e6, "T", "0 takes the likeliest token", STORED | WITH_SAMPLE),
    WHOLE("Text", "top-k", top_k, "200", 0, 1e9, "sample among the K likeliest tokens; 0 among all", STORED | WITH_SAMPLE),
    CHOICE("Help", "list", list, "", choice_list, "explain the rows of a table", PER_CALL | COMMON),
    SWITCH("Help", "version", version, "version and compiler", PER_CALL),
};
// clang-format on
enum { FLAGS = sizeof flags / sizeof flags[0] };

/* Factor on the peak learning rates at a step, counted from 0. The last step takes --final-lr; 0 is
 * reached one step later. */
static inline double schedule(const Options *o, long step) {
    if (step < o->warmup) return (double)(step + 1) / (double)(o->warmup + 1);
    long span = o->steps - o->warmup - (o->final_lr > 0); /* a last step of 0 would be wasted */
    double done = span > 0 ? (double)(step - o->warmup) / (double)span : 0, left = 1 - done;
    if (strcmp(o->schedule, "constant") == 0) return 1;
    if (strcmp(o->schedule, "gluon") == 0) return pow((double)step + 1, -0.75);
    if (strcmp(o->schedule, "cosine") == 0) left = 0.5 * (1 + cos(3.141592653589793 * done));
    if (strcmp(o->schedule, "wsd") == 0) {
        if (left >= o->cooldown) return 1;
        left /= o->cooldown;
    }
    return o->final_lr + (1 - o->final_lr) * left;
}

/* ------------------------------------------------------------------------------------------------
 * what flags mean together */

/* Every flag at its default, and what no flag sets at the optimizer's. */
static inline void options_defaults(Options *o) {
    *o = (Options){.rule = sm_config("signmuon")};
    flags_defaults(flags, FLAGS, o);
}

static inline int options_given(const unsigned char *given, const char *name) {
    return given[flags_find(flags, FLAGS, name)];
}

/* --link "100mbit,5ms" as seconds per byte and per message; returns 0 when the text is malformed. */
static inline int options_link(const char *text, double *per_byte, double *per_message) {
    static const struct {
        const char *name;
        double factor;
    } unit[] = {{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1},
                {"ms", 1e-3},  {"us", 1e-6},  {"s", 1}};
    char rate_unit[8], delay_unit[8], rest;
    double rate = 0, delay = -1, bits = 0, seconds = 0;
    if (sscanf(text, "%lf%7[a-z],%lf%7[a-z]%c", &rate, rate_unit, &delay, delay_unit, &rest) != 4)
        return 0;
    for (size_t u = 0; u < 4; u++)
        if (strcmp(rate_unit, unit[u].name) == 0) bits = unit[u].factor;
    for (size_t u = 4; u < 7; u++)
        if (strcmp(delay_unit, unit[u].name) == 0) seconds = unit[u].factor;
    *per_byte = 8 / (rate * bits);
    *per_message = delay * seconds;
    return *per_byte > 0 && isfinite(*per_byte) && seconds > 0 && delay >= 0 && isfinite(delay);
}

/* The GPU that a worker's model is on, of so many; -1: the CPU. */
static inline int options_device(const Options *o, int rank, int devices) {
    if (strcmp(o->device, "cpu") == 0) return -1;
    return strcmp(o->device, "gpu") ? atoi(o->device) : devices ? rank % devices : 0;
}

#define REFUSE(...) return base_fail(error, size, USAGE, __VA_ARGS__)

/* --device and what depends on it. */
static inline int options_check_device(Options *o, char *error, size_t size) {
    if (!o->device) o->device = gpt_cuda_create ? "gpu" : "cpu";
    int is_number = *o->device && strspn(o->device, "0123456789") == strlen(o->device);
    if (strcmp(o->device, "cpu") && strcmp(o->device, "gpu") &&
        (!is_number || strlen(o->device) > 4))
        REFUSE("--device %s: take cpu, gpu or the number of a GPU", o->device);
    int on_cpu = strcmp(o->device, "cpu") == 0;
    if (!on_cpu && !gpt_cuda_create)
        REFUSE("--device %s: this program was built without CUDA: make cuda, then train_gpt_cuda",
               o->device);
    if (!o->rule.ns_dtype) o->rule.ns_dtype = on_cpu ? "fp32" : "bf16";
    if (!o->dtype) o->dtype = on_cpu || o->width % 8 ? "fp32" : "bf16";
    if (!on_cpu && o->width % 8 && strcmp(o->dtype, "bf16") == 0)
        REFUSE("--dtype bf16 on a GPU takes a --width that is a multiple of 8, not %ld", o->width);
    return 0;
}

/* Take over a save's flags, where the call does not name another value. A resumed run takes all of
 * them, an evaluation or a sample those of model and data. */
static inline int options_take(Options *o, const unsigned char *given, const StFile *f, char *error,
                               size_t size) {
    int resizes = strcmp(o->resume_workers, "refuse") != 0;
    char text[64], reason[512];
    for (size_t i = 0; i < FLAGS; i++) {
        const Flag *flag = &flags[i];
        const char *stored = st_meta(f, flag->name);
        int model = strcmp(flag->group, "Model") == 0 || strcmp(flag->group, "Data") == 0;
        if ((flag->keep & KEEPING) == PER_CALL || !(o->resume || model)) continue;
        if (!stored)
            return base_fail(error, size, FAILED,
                             "%s: has no --%s: it was written by another version", f->path,
                             flag->name);
        if (!given[i]) {
            if (flags_set(flag, o, stored, reason, sizeof reason))
                return base_fail(error, size, FAILED, "%s: %s", f->path, reason);
            continue;
        }
        int fixed =
            (flag->keep & KEEPING) == FIXED || ((flag->keep & KEEPING) == SIZED && !resizes);
        if (!fixed || flags_equal(flag, o, stored)) continue;
        if (strcmp(flag->name, "workers") == 0)
            REFUSE("--workers %ld: the save was left by %s workers; --resume-workers "
                   "keep, mean or zero says what happens to their momenta",
                   o->workers, stored);
        REFUSE("--%s %s differs from the save's %s, and a save cannot change it: leave "
               "the flag out, or train anew with another --out",
               flag->name, flags_text(flag, o, text, sizeof text), stored);
    }
    return 0;
}

/* Refuse flags that have no effect in this call. */
static inline int options_check_use(const Options *o, const unsigned char *given, char *error,
                                    size_t size) {
    int needs = o->sample ? WITH_SAMPLE : o->eval ? WITH_EVAL : 0;
    for (size_t i = 0; i < FLAGS; i++) {
        int draws = flags[i].keep & WITH_SAMPLE && strcmp(flags[i].group, "Text") == 0;
        if (!given[i] || strcmp(flags[i].name, "resume") == 0) continue;
        if (needs && !(flags[i].keep & needs))
            REFUSE("--%s has no effect beside --%s: leave it out", flags[i].name,
                   o->sample ? "sample" : "eval");
        if (!needs && draws && strcmp(flags[i].name, "sample") == 0)
            REFUSE(
                "--sample 0 asks for no text: name a number of tokens, or leave it out to train");
        if (!needs && draws && !o->sample_every)
            REFUSE("--%s has no effect in training: it goes with --sample or --sample-every",
                   flags[i].name);
    }
    if (*o->init && o->resume)
        REFUSE("--init begins a run and --resume goes on with one: take one");
    return 0;
}

/* Where the workers live: mpirun's ranks are workers, else threads or processes. */
static inline int options_place(Options *o, const unsigned char *given, int ranks, char *error,
                                size_t size) {
    int mpi = strcmp(o->backend, "mpi") == 0, chosen = options_given(given, "backend");
    if (ranks > 1 && !comm_backend("mpi"))
        REFUSE("started %d times over, but built without MPI: make mpi, then mpirun -n %d "
               "train_gpt_mpi",
               ranks, ranks);
    if (chosen && mpi && ranks == 1)
        REFUSE("--backend mpi takes several ranks: make mpi, then mpirun -n N train_gpt_mpi");
    if (chosen && !mpi && ranks > 1)
        REFUSE("--backend %s: mpirun has started %d ranks: take mpi", o->backend, ranks);
    if (ranks > 1 && options_given(given, "workers") && o->workers != ranks)
        REFUSE("--workers %ld: mpirun has started %d ranks, and each is a worker", o->workers,
               ranks);
    if (ranks > 1 && o->resume && o->workers != ranks && strcmp(o->resume_workers, "refuse") == 0)
        REFUSE("--workers %d: the save was left by %ld workers; --resume-workers keep, "
               "mean or zero says what happens to their momenta",
               ranks, o->workers);
    o->backend = ranks > 1 ? "mpi" : mpi ? "threads" : o->backend;
    if (ranks > 1) o->workers = ranks;
    return 0;
}

/* Refuse what no flag's own range can, and fill in what is left to the method.
 * ranks     processes that mpirun has started
 * sharing   of them, those that share the cores of this one */
static inline int options_check(Options *o, const unsigned char *given, int ranks, int sharing,
                                char *error, size_t size) {
    char reason[512];
    double byte, message;
    int training = !o->eval && !o->sample;
    if (options_check_use(o, given, error, size)) return USAGE;
    if (options_place(o, given, ranks, error, size)) return USAGE;
    if (options_check_device(o, error, size)) return USAGE;
    if (o->width % o->heads)
        REFUSE("--width %ld is not divisible by --heads %ld", o->width, o->heads);
    if (training && o->batch % o->workers)
        REFUSE(
            "--batch %ld is not divisible by --workers %ld: every worker takes as many sequences",
            o->batch, o->workers);
    if (training && o->batch / o->workers % o->accumulate)
        REFUSE("--accumulate %ld does not divide the %ld sequences of a worker", o->accumulate,
               o->batch / o->workers);
    if (strcmp(o->on_death, "continue") == 0 && strcmp(o->backend, "processes") != 0)
        REFUSE("--on-death continue is for workers that can die alone: take --backend processes");
    if (options_given(given, "resume-workers") && !o->resume)
        REFUSE("--resume-workers goes with --resume");
    if (o->resume && o->overwrite) REFUSE("--resume and --overwrite exclude each other");
    if (*o->link && !options_link(o->link, &byte, &message))
        REFUSE("--link takes a rate and a delay such as 100mbit,5ms, not '%s'", o->link);
    if (!*o->data) REFUSE("--data takes the path of a text or of token shards");
    if (!base_is_utf8(o->data) || !base_is_utf8(o->val_data))
        REFUSE("a path that is not UTF-8 cannot be kept in a save: rename it, or use a link");
    if (o->sample_every && !base_is_utf8(o->prompt))
        REFUSE("--prompt is not UTF-8, and a save cannot keep it");
    if (!gemm_default(GEMM_F32))
        REFUSE("GEMM_ISA=%s is unknown or not of this CPU: take amx, avx512bf16, avx512, avx2, "
               "neon or portable",
               getenv("GEMM_ISA"));
    o->rule.seed = (uint64_t)o->seed;
    o->rule.adversaries = (int)o->adversaries;
    o->rule.polar_every = (int)o->polar_every;
    int code = sm_resolve(&o->rule, (int)o->workers, reason, sizeof reason);
    if (code == SM_NO_MEMORY) return base_fail(error, size, FAILED, "%s", reason);
    if (code) return base_fail(error, size, code == SM_FAILED ? FAILED : USAGE, "--%s", reason);
    const SmMethod *m = sm_method(o->rule.method);
    if (!o->schedule) o->schedule = m->schedule;
    int wsd = strcmp(o->schedule, "wsd") == 0,
        falls = wsd || strcmp(o->schedule, "linear") == 0 || strcmp(o->schedule, "cosine") == 0;
    if (o->final_lr > 0 && !falls)
        REFUSE("--final-lr %g has no effect with --schedule %s: take 0", o->final_lr, o->schedule);
    if (options_given(given, "cooldown") && !wsd)
        REFUSE("--cooldown goes with --schedule wsd, not %s", o->schedule);
    if (o->warmup < 0) o->warmup = o->steps / 2 < m->warmup ? o->steps / 2 : m->warmup;
    if (o->steps < o->warmup)
        REFUSE("--warmup %ld is longer than --steps %ld", o->warmup, o->steps);
    long cores = comm_cores() / ((ranks > 1 ? 1 : o->workers) * sharing);
    if (o->threads == 0) o->threads = cores > 256 ? 256 : cores > 0 ? cores : 1;
    return 0;
}

#undef REFUSE

/* ------------------------------------------------------------------------------------------------
 * tables for people */

/* --help, --help GROUP or --help all; returns 0 when there is no such group. */
static inline int options_help(FILE *f, const char *group) {
    int known = !group || *group == '-' || strcmp(group, "all") == 0;
    for (size_t i = 0; i < FLAGS && !known; i++)
        known = strncasecmp(flags[i].group, group, strlen(group)) == 0;
    if (!known) return 0;
    if (group && *group == '-') group = NULL;
    fprintf(f, "train_gpt - a GPT in plain C, trained by workers that send one bit per weight\n\n"
               "  train_gpt --workers 3 --aux sign        the whole model at one bit per weight\n"
               "  train_gpt --method adamw --lr 3e-3      the same with AdamW\n"
               "  train_gpt --resume --steps 4000         go on from out/last, further\n"
               "  train_gpt --sample 300 --prompt ROMEO:  write text from out/last\n"
               "  train_gpt --list methods                explain the methods\n\n");
    flags_help(f, flags, FLAGS, group, report_columns(f));
    fprintf(f, "\nExit status: 0 done, 1 failed, 2 wrong use, 3 diverged, 128 + signal: stopped\n"
               "and saved.\n");
    if (!group) fprintf(f, "--help GROUP, or --help all: every flag.\n");
    return 1;
}

/* --list: the rows of a table, their names and what they are. */
static inline void options_list(FILE *f, const char *list) {
    const char *cells[6 * 64];
    char numbers[64][2][16];
    size_t rows = 0;
#define LIST(title, row)                                                                           \
    for (size_t i = 0; strcmp(list, title) == 0 && row(i); i++, rows++) {                          \
        cells[2 * rows] = row(i)->name;                                                            \
        cells[2 * rows + 1] = row(i)->doc;                                                         \
    }
    LIST("norms", sm_norm_row)
    LIST("gains", sm_gain_row)
    LIST("newton-schulz", sm_newton_schulz_row)
    LIST("compressors", ef_compressor_row)
    LIST("topologies", dm_topology_row)
    LIST("attacks", attack_row)
    LIST("backends", comm_backend_row)
    LIST("shards", data_shards_row)
    LIST("schedules", schedule_row)
#undef LIST
    int methods = strcmp(list, "methods") == 0;
    for (; methods && sm_method_row(rows); rows++) {
        const SmMethod *m = sm_method_row(rows);
        snprintf(numbers[rows][0], 16, "%g", m->lr);
        snprintf(numbers[rows][1], 16, m->momentum > 0 ? "%g%s" : "-", m->momentum,
                 m->nesterov ? " N" : "");
        const char *row[] = {m->name, numbers[rows][0], m->aux, numbers[rows][1], m->gain, m->doc};
        memcpy(cells + 6 * rows, row, sizeof row);
    }
    report_table(f, cells, rows, methods ? 6 : 2, report_columns(f));
    if (methods)
        fprintf(
            f, "  --lr, --aux, --momentum (N: with Nesterov's look-ahead), --gain, what it does\n");
}

/* One line per kind of tensor: its rule, learning rate, gain, and bits on the wire per weight. */
static inline void options_rules(FILE *f, const Options *o, const SmTensor *t, size_t count) {
    enum { WIDE = 7, MOST = 32 };
    static const char *const title[WIDE] = {"tensor", "shape", "rule", "rate",
                                            "gain",   "step",  "bits"};
    const char *cells[WIDE * (MOST + 1)];
    char text[MOST][WIDE][64];
    size_t rows = 0;
    memcpy(cells, title, sizeof title);
    for (size_t i = 0; i < count && rows < MOST; i++) {
        const SmTensor *x = &t[i];
        char(*cell)[64] = text[rows];
        int layer = -1, at = 0;
        sscanf(x->name, "transformer.h.%d.%n", &layer, &at);
        if (layer > 0) continue; /* as in layer 0 */
        SmFacts facts = sm_facts(&o->rule, x, (int)o->workers);
        double rate = x->role == SM_HIDDEN ? o->rule.lr : o->rule.aux_lr;
        const char *name = layer == 0 ? x->name + at : x->name + strlen("transformer.");
        snprintf(cell[0], 64, layer == 0 ? "%s (x%ld)" : "%s", name, o->layers);
        snprintf(cell[1], 64, x->blocks > 1 ? "%zux%zu (x%zu)" : "%zux%zu", x->rows, x->cols,
                 x->blocks);
        snprintf(cell[2], 64, "%s", facts.rule);
        snprintf(cell[3], 64, "%.3g", rate);
        snprintf(cell[4], 64, "%.3g", facts.gain);
        snprintf(cell[5], 64, isnan(facts.step_rms) ? "-" : "%.1e", rate * facts.step_rms);
        snprintf(cell[6], 64, "%.3g", facts.up + facts.down);
        rows++;
        for (size_t k = 0; k < WIDE; k++) cells[rows * WIDE + k] = cell[k];
    }
    report_table(f, cells, rows + 1, WIDE, report_columns(f));
    fprintf(f, "step: RMS of an entry at the peak rate; bits: sent per weight and step\n");
}

/* Tokenisation, vocabulary and counts of a text. */
static inline void options_data(FILE *f, const Options *o, const DataSet *d) {
    fprintf(f, "%u different %s: %" PRIu64 " to train on, %" PRIu64 " to validate on",
            d->vocab.size, data_tokenisation(&d->vocab), d->train_tokens, d->val_tokens);
    if (o->eval_tokens && (uint64_t)o->eval_tokens < d->val_tokens)
        fprintf(f, ", %ld of them used", o->eval_tokens);
    fputc('\n', f);
}

/* Does EF21's server keep a model that is not the workers'? */
static inline int options_has_server_model(const Options *o) {
    return sm_method(o->rule.method)->combine == SM_FEEDBACK &&
           strcmp(o->rule.down, "identity") != 0;
}

/* What of a worker's memory the model takes, in bytes. */
typedef struct OptionsMemory {
    size_t activations, packed, arena; /* arena holds both, and scratch */
    size_t device;                     /* on a GPU, which then has all these */
} OptionsMemory;

/* --dry-run: model, data, workers, rules, bytes and memory. */
static inline void options_dry_run(FILE *f, const Options *o, const DataSet *d, const SmTensor *t,
                                   size_t count, OptionsMemory memory) {
    int workers = (int)o->workers, gossip = !sm_has_server(sm_method(o->rule.method));
    double P = 0, up = 0, down = 0, paper = 0, mb = 1e-6,
           fp32 = 32.0 * (workers - 1) / workers; /* bits per weight, one way */
    char path[BASE_PATH];
    for (size_t i = 0; i < count; i++) {
        SmFacts facts = sm_facts(&o->rule, &t[i], workers);
        double n = (double)(t[i].blocks * t[i].rows * t[i].cols);
        P += n, up += n * facts.up, down += n * facts.down, paper += n * facts.paper_up;
    }
    snprintf(path, sizeof path, "%s", o->data);
    fprintf(f, "model      %ld layers, %ld heads, width %ld, context %ld: %.0f parameters\n",
            o->layers, o->heads, o->width, o->context, P);
    fprintf(f, "data       %s\n           ", base_harmless(path));
    options_data(f, o, d);
    fprintf(f, "workers    %d (%s) of %ld compute threads, %ld sequences each per step\n", workers,
            o->backend, o->threads, o->batch / workers);
    fprintf(f, "optimizer  %s, momentum %g%s, gain %s, --schedule %s, warm-up %ld\n",
            o->rule.method, o->rule.momentum, o->rule.nesterov ? " with look-ahead" : "",
            o->rule.gain, o->schedule, o->warmup);
    if (o->adversaries)
        fprintf(f, "           the last %ld send --attack %s\n", o->adversaries, o->rule.attack);
    double *storage = gossip ? base_allocate(dm_graph_doubles(workers) * sizeof *storage) : NULL;
    DmGraph graph;
    char error[512];
    if (storage &&
        dm_graph_build(&graph, storage, o->rule.topology, workers, error, sizeof error) == 0)
        fprintf(f,
                "graph      %s: spectral gap %.6f, %.0f rounds of gossip shrink disagreement 1000 "
                "times\n",
                o->rule.topology, 1 - dm_graph_rho(&graph), dm_rounds_to_shrink(&graph, 1000));
    free(storage);
    fputc('\n', f);
    options_rules(f, o, t, count);
    fprintf(f, "\nsent by a worker per step, on average: %.0f bytes\n", (up + down) / 8);
    fprintf(f, "  %.3f bits per parameter (fp32 all-reduce: %.3f)\n", (up + down) / P, 2 * fp32);
    if (sm_method(o->rule.method)->combine == SM_FEEDBACK && workers > 1)
        fprintf(f, "  uplink: %.4f of fp32; as arXiv 2510.00643 counts, %.4f\n", up / (fp32 * P),
                paper / (fp32 * P));
    SmBytes s = sm_bytes(&o->rule, t, count, workers, (int)o->threads);
    size_t floats = (size_t)P * sizeof(float), copies = 2;
    if (gossip) copies = 4; /* the mean model, and everybody's part of a shard of it */
    if (options_has_server_model(o)) copies = 3;
    size_t outbox = workers == 1 ? 0 : floats < COMM_OUTBOX ? floats : COMM_OUTBOX;
    size_t tokens = (size_t)(d->train_tokens + d->val_tokens), program = 2 << 20,
           worker = copies * base_allocated(floats) + base_allocated(memory.arena) +
                    base_allocated(s.total) + outbox;
    size_t save = base_allocated(floats) + base_allocated(s.state); /* read back, to verify it */
    if (memory.device)
        fprintf(f, "on a worker's GPU, MB: %.1f, and the optimizer's arrays if it steps there\n",
                mb * (double)memory.device);
    fprintf(f, "memory of a worker, MB: %.1f parameters and gradients, %.1f packed matrices,\n",
            mb * 2 * (double)floats, mb * (double)memory.packed);
    fprintf(f, "  %.1f activations, %.1f optimizer state, %.1f messages, %.1f scratch\n",
            mb * (double)memory.activations, mb * (double)s.state,
            mb * (double)(s.messages + outbox),
            mb * (double)(memory.arena - memory.activations - memory.packed + s.scratch));
    fprintf(f, "memory in all, MB: %.1f\n",
            mb * (double)(worker * (size_t)workers + program + 2 * tokens + save));
}

#endif
