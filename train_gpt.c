/* train_gpt.c - trains a GPT by majority vote, samples from it, evaluates it. The program. MIT.

   GPT-2 as in nanoGPT's model.py (learned positions, pre-LayerNorm, causal attention, GELU in its
   tanh form, MLP of 4 C, head tied to the embedding), forward and backward by hand in fp32, trained
   by N workers that each hold a shard of the data, a gradient, a momentum and a copy of the
   parameters, and move together by the exchange of signmuon.c.

   Read on in this order: flags, model, kernels, forward and backward, sampling, evaluation,
   checkpoints, training. Shape letters: B sequences, T positions, C width, V vocabulary, L layers,
   NH heads, HS = C/NH. */
#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include "comm.h"
#include "dataloader.h"
#include "demuon.h"
#include "ef21muon.h"
#include "gemm.h"
#include "noise.h"
#include "safetensors.h"
#include "signmuon.h"

#define GPT_VERSION "0.1.0"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_DIVERGED = 3 };
enum { PATH_SIZE = 4096 };

/* Another worker has said why the run ends, and ends it. */
__attribute__((noreturn)) static void await_the_end(void) {
    for (;;) pause();
}

/* What a user typed, or a file says, never controls the terminal: text without its control
 * characters and broken UTF-8. */
static char *harmless(char *text) {
    for (size_t i = 0, n, size = strlen(text); i < size; i += n ? n : 1)
        if (!(n = data_printable(text + i, size - i))) text[i] = '?';
    return text;
}

/* One sentence on stderr, behind `who` says it. */
static void tell_text(const char *who, const char *text) {
    fprintf(stderr, "%strain_gpt: %s%s\n", isatty(2) && comm__signalled ? "\r\033[K" : "", who,
            text);
}

__attribute__((format(printf, 1, 2))) static void tell(const char *format, ...) {
    char text[2 * PATH_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    tell_text("", harmless(text));
}

/* A user's mistake, or the outside world's: one sentence, then the end. */
__attribute__((format(printf, 2, 3))) __attribute__((noreturn)) static void
die(int status, const char *format, ...) {
    char text[2 * PATH_SIZE], who[32];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    harmless(text);
    if (comm_last_words(status, text, who))
        tell_text(who, text);
    else if (comm__signalled)
        await_the_end();
    exit(status);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

enum { HUGE_PAGE = 1 << 21, PROGRAM_BYTES = 2 << 20 /* code, libc, stacks */ };

/* What allocate takes for so many bytes. */
static size_t allocated(size_t bytes) {
    size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    return bytes ? (bytes + page - 1) / page * page : page;
}

/* Memory that comes zeroed and aligned, once, at the start; in huge pages where that is possible. */
static void *allocate(size_t bytes) {
    size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    bytes = allocated(bytes);
    void *p = aligned_alloc(page, bytes);
    if (!p)
        die(EXIT_FAILED, "no memory for %zu bytes: take a smaller model, batch or context", bytes);
#ifdef MADV_HUGEPAGE
    if (page == HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE); /* or the TLB misses dominate */
#endif
    return memset(p, 0, bytes);
}
static float *floats(size_t n) { return allocate(n * sizeof(float)); }

/* ------------------------------------------------------------------------------------------------
 * flags: one row makes the field, the parser, the range check, the help line, and the metadata */

typedef struct Options {
    const char *data, *val_data, *vocab, *out;
    long layers, heads, width, context;
    int bias, untied;
    double dropout;
    const char *method, *mode, *aux, *ns, *norm, *worker_map, *server_map, *gain, *zeros, *ties;
    const char *input_norm, *output_norm, *vector_norm, *radii, *momentum_start;
    double lr, aux_lr, momentum, beta1, beta2, epsilon, weight_decay, clip;
    int nesterov, coupled_decay, polar_after_vote;
    const char *up, *down, *topology, *mixing, *gossip_rounds, *shards, *gradient_noise;
    const char *schedule;
    long warmup;
    double cooldown, final_lr;
    long workers, threads;
    const char *backend, *wire, *link, *on_death, *resume_workers;
    long check_every, min_workers;
    double timeout;
    long adversaries, expel_after;
    const char *attack;
    int expel;
    int overlap;
    const char *dtype;
    long batch, steps, seed, eval_every, log_every, save_every, keep;
    const char *eval_nodes;
    int resume, overwrite, eval, exact, dry_run, quiet, help, version;
    const char *list, *from, *prompt;
    long sample, top_k;
    double temperature;
} Options;

typedef enum FlagKind { FLAG_SWITCH, FLAG_WHOLE, FLAG_REAL, FLAG_TEXT, FLAG_CHOICE } FlagKind;

/* What a checkpoint does with a flag. */
typedef enum FlagKeep {
    KEEP_NOT,  /* belongs to one call */
    KEEP,      /* stored; --resume takes it over unless the call names another value */
    KEEP_FIXED /* stored; --resume refuses another value */
} FlagKeep;

typedef struct Flag {
    const char *group, *name;
    FlagKind kind;
    size_t field;
    FlagKeep keep;
    const char *fallback; /* the default, as a user would type it; "auto" is the method's own */
    double min, max;      /* inclusive; of a FLAG_REAL with open = 1, min is excluded */
    const char *(*choice)(size_t i);
    const char *value, *help;
} Flag;

static const char *choice_method(size_t i) {
    return sm_method_row(i) ? sm_method_row(i)->name : NULL;
}
static const char *choice_ns(size_t i) {
    return sm_newton_schulz_row(i) ? sm_newton_schulz_row(i)->name : NULL;
}
static const char *choice_backend(size_t i) {
    size_t rows = 0;
    while (comm_backend_row(rows)) rows++;
    return i < rows                            ? comm_backend_row(i)->name
           : i == rows && !comm_backend("mpi") ? "mpi" /* known, if not built */
                                               : NULL;
}
static const char *choice_norm(size_t i) {
    if (i < 2) return i ? "none" : "auto";
    return sm_norm_row(i - 2) ? sm_norm_row(i - 2)->name : NULL;
}
static const char *choice_attack(size_t i) {
    return sm_attack_row(i) ? sm_attack_row(i)->name : NULL;
}
static const char *choice_gain(size_t i) {
    if (i == 0) return "auto";
    return sm_gain_row(i - 1) ? sm_gain_row(i - 1)->name : NULL;
}
#define CHOICES(name, ...)                                                                         \
    static const char *name(size_t i) {                                                            \
        static const char *const words[] = {__VA_ARGS__};                                          \
        return i < sizeof words / sizeof words[0] ? words[i] : NULL;                               \
    }
CHOICES(choice_aux, "auto", "adamw", "sign", "same", "lmo")
CHOICES(choice_mode, "practical", "paper")
CHOICES(choice_start, "auto", "zero", "gradient")
CHOICES(choice_when, "auto", "never", "end", "always")
CHOICES(choice_mixing, "auto", "metropolis", "uniform")
CHOICES(choice_zero, "coin", "plus", "abstain")
CHOICES(choice_wire, "sharded", "int8")
CHOICES(choice_death, "stop", "continue")
CHOICES(choice_resume_workers, "refuse", "keep", "mean", "zero")
CHOICES(choice_dtype, "fp32", "bf16")
CHOICES(choice_schedule, "auto", "linear", "cosine", "constant", "wsd", "gluon")
CHOICES(choice_vocab, "auto", "chars", "bytes")
CHOICES(choice_from, "last", "best")
CHOICES(choice_nesterov, "auto", "on", "off")
CHOICES(choice_list, "methods", "norms", "radii", "gains", "newton-schulz", "compressors",
        "topologies", "noises", "attacks", "backends", "schedules")

#define MODEL "Model (nanoGPT's CPU recipe by default)"
#define RULE "Optimizer"
#define WORK "Workers"
#define RUN "Run"
#define TEXT "Text"
#define AT(field) offsetof(Options, field)
#define HUGE_COUNT 1e15

// clang-format off
static const Flag flags[] = {
    {"Data", "data", FLAG_TEXT, AT(data), KEEP, "data/tinyshakespeare.txt", 0, 0, NULL, "PATH",
     "text file, or llm.c token shards (a quoted pattern takes many)"},
    {"Data", "val-data", FLAG_TEXT, AT(val_data), KEEP, "", 0, 0, NULL, "PATH",
     "validation text or shards; without it the last 10 % of --data"},
    {"Data", "vocab", FLAG_CHOICE, AT(vocab), KEEP_FIXED, "auto", 0, 0, choice_vocab, "KIND",
     "unit of a text: characters if it is UTF-8, else bytes"},
    {"Data", "shards", FLAG_TEXT, AT(shards), KEEP_FIXED, "iid", 0, 0, NULL, "KIND",
     "who trains on what: iid, contiguous, dirichlet:A or file:PATH"},
    {MODEL, "layers", FLAG_WHOLE, AT(layers), KEEP_FIXED, "4", 1, 1000, NULL, "N",
     "transformer blocks"},
    {MODEL, "heads", FLAG_WHOLE, AT(heads), KEEP_FIXED, "4", 1, 1000, NULL, "N",
     "attention heads; divide the width"},
    {MODEL, "width", FLAG_WHOLE, AT(width), KEEP_FIXED, "128", 1, 65536, NULL, "N",
     "channels"},
    {MODEL, "context", FLAG_WHOLE, AT(context), KEEP_FIXED, "64", 1, 1048576, NULL, "N",
     "tokens the model sees at once"},
    {MODEL, "dropout", FLAG_REAL, AT(dropout), KEEP, "0", 0, 0.99, NULL, "P",
     "probability of dropping an activation"},
    {MODEL, "bias", FLAG_SWITCH, AT(bias), KEEP_FIXED, "off", 0, 0, NULL, NULL,
     "biases in linear layers and LayerNorms"},
    {MODEL, "untied", FLAG_SWITCH, AT(untied), KEEP_FIXED, "off", 0, 0, NULL, NULL,
     "a head of its own, not the embedding"},
    {RULE, "method", FLAG_CHOICE, AT(method), KEEP_FIXED, "signmuon", 0, 0, choice_method, "NAME",
     "rule of the hidden matrices; --list methods explains"},
    {RULE, "mode", FLAG_CHOICE, AT(mode), KEEP, "practical", 0, 0, choice_mode, "MODE",
     "demuon as practised, or as its paper has it: --aux lmo --gain none --momentum 0.8"},
    {RULE, "aux", FLAG_CHOICE, AT(aux), KEEP_FIXED, "auto", 0, 0, choice_aux, "RULE",
     "rule of all other tensors: adamw (fp32), sign (1 bit), same (--method without its maps), lmo "
     "(--method with a norm by role)"},
    {RULE, "lr", FLAG_REAL, AT(lr), KEEP, "auto", 0, 1e6, NULL, "RATE",
     "peak rate of the hidden matrices"},
    {RULE, "aux-lr", FLAG_REAL, AT(aux_lr), KEEP, "auto", 0, 1e6, NULL, "RATE",
     "peak rate of the others: adamw 3e-3, sign 1e-3, same as --lr"},
    {RULE, "schedule", FLAG_CHOICE, AT(schedule), KEEP, "auto", 0, 0, choice_schedule, "NAME",
     "shape of the rate over the steps"},
    {RULE, "warmup", FLAG_WHOLE, AT(warmup), KEEP, "auto", 0, HUGE_COUNT, NULL, "STEPS",
     "linear rise before it; 100 or none"},
    {RULE, "cooldown", FLAG_REAL, AT(cooldown), KEEP, "0.2", 0, 1, NULL, "FRACTION",
     "part of a wsd schedule spent falling"},
    {RULE, "final-lr", FLAG_REAL, AT(final_lr), KEEP, "0", 0, 1, NULL, "FRACTION",
     "of the peak, at the last step"},
    {RULE, "momentum", FLAG_REAL, AT(momentum), KEEP, "auto", 0, 0.99999, NULL, "MU",
     "weight of the old momentum (Lion: beta2)"},
    {RULE, "momentum-start", FLAG_CHOICE, AT(momentum_start), KEEP, "auto", 0, 0, choice_start,
     "HOW", "momentum begins as zero, or as the first gradient (EF21)"},
    {RULE, "nesterov", FLAG_CHOICE, AT(nesterov), KEEP, "auto", 0, 0, choice_nesterov, "on|off",
     "look ahead along the gradient"},
    {RULE, "beta1", FLAG_REAL, AT(beta1), KEEP, "0.9", 0, 0.99999, NULL, "B",
     "AdamW and Lion"},
    {RULE, "beta2", FLAG_REAL, AT(beta2), KEEP, "0.95", 0, 0.999999, NULL, "B",
     "AdamW"},
    {RULE, "epsilon", FLAG_REAL, AT(epsilon), KEEP, "1e-8", 0, 1, NULL, "E",
     "AdamW"},
    {RULE, "weight-decay", FLAG_REAL, AT(weight_decay), KEEP, "auto", 0, 1e3, NULL, "WD",
     "of matrices and embeddings, decoupled"},
    {RULE, "coupled-decay", FLAG_SWITCH, AT(coupled_decay), KEEP, "off", 0, 0, NULL, NULL,
     "add WD * W to the gradient instead (arXiv 2605.16311)"},
    {RULE, "clip", FLAG_REAL, AT(clip), KEEP, "auto", 0, 1e9, NULL, "NORM",
     "longest gradient of a worker; 0 does not clip"},
    {RULE, "ns", FLAG_CHOICE, AT(ns), KEEP, "jordan5", 0, 0, choice_ns, "NAME",
     "Newton-Schulz polynomials of the polar factor"},
    {RULE, "gain", FLAG_CHOICE, AT(gain), KEEP, "auto", 0, 0, choice_gain, "NAME",
     "factor on the rate by matrix shape; --list gains"},
    {RULE, "norm", FLAG_CHOICE, AT(norm), KEEP, "auto", 0, 0, choice_norm, "NAME",
     "whose LMO stands wherever the method has the spectral one"},
    {RULE, "input-norm", FLAG_CHOICE, AT(input_norm), KEEP, "auto", 0, 0, choice_norm, "NAME",
     "of embeddings, with --aux lmo: sign"},
    {RULE, "output-norm", FLAG_CHOICE, AT(output_norm), KEEP, "auto", 0, 0, choice_norm, "NAME",
     "of the head or the tied embedding, with --aux lmo: sign-output"},
    {RULE, "vector-norm", FLAG_CHOICE, AT(vector_norm), KEEP, "auto", 0, 0, choice_norm, "NAME",
     "of gains and biases, with --aux lmo: rms"},
    {RULE, "radii", FLAG_TEXT, AT(radii), KEEP, "auto", 0, 0, NULL, "NAME",
     "factors on the rates by role, or four numbers: vectors,hidden,input,output; --list radii"},
    {RULE, "worker-map", FLAG_CHOICE, AT(worker_map), KEEP, "auto", 0, 0, choice_norm, "NORM",
     "LMO applied before sending"},
    {RULE, "server-map", FLAG_CHOICE, AT(server_map), KEEP, "auto", 0, 0, choice_norm, "NORM",
     "LMO applied to the vote or mean, by its owner"},
    {RULE, "polar-after-vote", FLAG_SWITCH, AT(polar_after_vote), KEEP, "off", 0, 0, NULL, NULL,
     "every worker steps along the polar factor of the vote"},
    {RULE, "zeros", FLAG_CHOICE, AT(zeros), KEEP, "coin", 0, 0, choice_zero, "RULE",
     "sign of an exact zero; abstain costs a second bit"},
    {RULE, "ties", FLAG_CHOICE, AT(ties), KEEP, "coin", 0, 0, choice_zero, "RULE",
     "a tied vote; none with an odd number of workers"},
    {WORK, "workers", FLAG_WHOLE, AT(workers), KEEP_FIXED, "1", 1, COMM_MAX_WORKERS, NULL, "N",
     "of the vote, on each rank of an mpirun; odd numbers cannot tie"},
    {WORK, "backend", FLAG_CHOICE, AT(backend), KEEP, "threads", 0, 0, choice_backend, "NAME",
     "what a worker is, mpi under mpirun; results do not depend on it"},
    {WORK, "threads", FLAG_WHOLE, AT(threads), KEEP_NOT, "0", 0, 256, NULL, "N",
     "compute threads per worker; 0: usable cores / workers. Results do not depend on it"},
    {WORK, "wire", FLAG_CHOICE, AT(wire), KEEP, "sharded", 0, 0, choice_wire, "KIND",
     "votes as bits in shards, or as a sum of int8; same result"},
    {WORK, "overlap", FLAG_SWITCH, AT(overlap), KEEP_NOT, "on", 0, 0, NULL, NULL,
     "mpi, a worker per rank: send what is ready while the rest is computed; on unless off"},
    {WORK, "up", FLAG_TEXT, AT(up), KEEP, "auto", 0, 0, NULL, "COMPRESSOR",
     "ef21: of what workers send, e.g. topk:0.1+natural; --list compressors"},
    {WORK, "down", FLAG_TEXT, AT(down), KEEP, "auto", 0, 0, NULL, "COMPRESSOR",
     "ef21: of what the server sends"},
    {WORK, "topology", FLAG_TEXT, AT(topology), KEEP, "auto", 0, 0, NULL, "GRAPH",
     "gossip: ring, exponential, ..., or file:PATH of a matrix; --list topologies"},
    {WORK, "mixing", FLAG_CHOICE, AT(mixing), KEEP, "auto", 0, 0, choice_mixing, "WEIGHTS",
     "gossip: weights of the graph's edges"},
    {WORK, "gossip-rounds", FLAG_TEXT, AT(gossip_rounds), KEEP, "1", 0, 0, NULL, "N[,M]",
     "gossip: rounds per step, of the tracker and of the parameters"},
    {WORK, "link", FLAG_TEXT, AT(link), KEEP, "", 0, 0, NULL, "RATE,DELAY",
     "estimate wire time, e.g. 100mbit,5ms (computed, not slept)"},
    {WORK, "adversaries", FLAG_WHOLE, AT(adversaries), KEEP_FIXED, "0", 0, COMM_MAX_WORKERS - 1,
     NULL, "F", "the last F workers lie: they send other directions than theirs"},
    {WORK, "attack", FLAG_TEXT, AT(attack), KEEP_FIXED, "auto", 0, 0, NULL, "HOW",
     "what they send: flip, random, zero, nan, replay, scale:S or garble; --list attacks"},
    {WORK, "expel", FLAG_SWITCH, AT(expel), KEEP_FIXED, "off", 0, 0, NULL, NULL,
     "count each worker's votes against the majority of the others; put out who goes on so"},
    {WORK, "expel-after", FLAG_WHOLE, AT(expel_after), KEEP, "40", 1, 1e6, NULL, "STEPS",
     "in a row on which the others outvote it in more than half of all entries, beyond chance"},
    {WORK, "check-every", FLAG_WHOLE, AT(check_every), KEEP, "100", 0, HUGE_COUNT, NULL, "STEPS",
     "compare the workers' parameters by hash; 0 never"},
    {WORK, "on-death", FLAG_CHOICE, AT(on_death), KEEP, "stop", 0, 0, choice_death, "WHAT",
     "processes: a killed worker ends the run, or the others redo that step and go on without it"},
    {WORK, "min-workers", FLAG_WHOLE, AT(min_workers), KEEP, "1", 1, COMM_MAX_WORKERS, NULL, "N",
     "fewest that --on-death continue goes on with"},
    {WORK, "timeout", FLAG_REAL, AT(timeout), KEEP, "300", 0, 1e9, NULL, "SECONDS",
     "processes: a worker that keeps the others waiting for longer counts as dead; 0 never"},
    {WORK, "resume-workers", FLAG_CHOICE, AT(resume_workers), KEEP_NOT, "refuse", 0, 0,
     choice_resume_workers, "POLICY",
     "--resume with other --workers: each keeps its momentum (new ones: the mean), all take the "
     "mean, or zero"},
    {RUN, "batch", FLAG_WHOLE, AT(batch), KEEP_FIXED, "12", 1, 1e6, NULL, "N",
     "sequences per step over all workers"},
    {RUN, "gradient-noise", FLAG_TEXT, AT(gradient_noise), KEEP, "", 0, 0, NULL, "KIND",
     "added to every gradient, e.g. student:1.5,1e-3; --list noises"},
    {RUN, "dtype", FLAG_CHOICE, AT(dtype), KEEP_FIXED, "fp32", 0, 0, choice_dtype, "TYPE",
     "of products and stored activations; sums, weights and optimizer stay fp32"},
    {RUN, "steps", FLAG_WHOLE, AT(steps), KEEP, "2000", 0, HUGE_COUNT, NULL, "N",
     "optimizer steps"},
    {RUN, "seed", FLAG_WHOLE, AT(seed), KEEP_FIXED, "1337", 0, 9e15, NULL, "N",
     "everything random follows from it"},
    {RUN, "eval-every", FLAG_WHOLE, AT(eval_every), KEEP, "250", 0, HUGE_COUNT, NULL, "STEPS",
     "validate on the whole split; 0 only at the end"},
    {RUN, "eval-nodes", FLAG_CHOICE, AT(eval_nodes), KEEP, "auto", 0, 0, choice_when, "WHEN",
     "gossip: when every node's own model is validated too; auto: at the end"},
    {RUN, "log-every", FLAG_WHOLE, AT(log_every), KEEP, "10", 0, HUGE_COUNT, NULL, "STEPS",
     "a row of log.csv; 0 only at evaluations"},
    {RUN, "save-every", FLAG_WHOLE, AT(save_every), KEEP, "500", 0, HUGE_COUNT, NULL, "STEPS",
     "write OUT/last; 0 only at the end"},
    {RUN, "keep", FLAG_WHOLE, AT(keep), KEEP, "2", 2, 1000, NULL, "K",
     "saves that stay: OUT/last is a link to the newest of OUT/.last.0 .. .last.K-1, used in turn; "
     "when that is damaged, --resume, --eval and --sample take the newest whole one and say so"},
    {RUN, "out", FLAG_TEXT, AT(out), KEEP_NOT, "out", 0, 0, NULL, "DIR",
     "checkpoints and log"},
    {RUN, "resume", FLAG_SWITCH, AT(resume), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "continue from OUT/last, with its flags"},
    {RUN, "overwrite", FLAG_SWITCH, AT(overwrite), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "start anew in an OUT that holds a checkpoint"},
    {RUN, "dry-run", FLAG_SWITCH, AT(dry_run), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "print model, rules, bytes, memory; train nothing"},
    {RUN, "quiet", FLAG_SWITCH, AT(quiet), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "no progress"},
    {TEXT, "sample", FLAG_WHOLE, AT(sample), KEEP_NOT, "0", 0, 1e12, NULL, "N",
     "write N tokens of text to stdout, and nothing else"},
    {TEXT, "prompt", FLAG_TEXT, AT(prompt), KEEP_NOT, "\n", 0, 0, NULL, "TEXT",
     "how the sample begins"},
    {TEXT, "temperature", FLAG_REAL, AT(temperature), KEEP_NOT, "0.8", 0, 100, NULL, "T",
     "0 takes the likeliest token"},
    {TEXT, "top-k", FLAG_WHOLE, AT(top_k), KEEP_NOT, "200", 0, 1e9, NULL, "K",
     "sample among the K likeliest; 0 among all"},
    {TEXT, "eval", FLAG_SWITCH, AT(eval), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "print the validation loss of a checkpoint"},
    {TEXT, "from", FLAG_CHOICE, AT(from), KEEP_NOT, "last", 0, 0, choice_from, "WHICH",
     "checkpoint that --sample and --eval read"},
    {TEXT, "exact", FLAG_SWITCH, AT(exact), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "read the server's exact model of an ef21 run with --down, not the workers'"},
    {"Help", "list", FLAG_CHOICE, AT(list), KEEP_NOT, "", 0, 0, choice_list, "WHAT",
     "explain methods, norms, compressors, topologies, ..."},
    {"Help", "help", FLAG_SWITCH, AT(help), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "this page"},
    {"Help", "version", FLAG_SWITCH, AT(version), KEEP_NOT, "off", 0, 0, NULL, NULL,
     "version and compiler"},
};
// clang-format on
enum { FLAG_COUNT = sizeof flags / sizeof flags[0] };

static void *field_of(Options *o, const Flag *f) { return (char *)o + f->field; }

/* Levenshtein distance of two short words, - and _ alike. */
static size_t word_distance(const char *a, const char *b) {
    size_t row[64], n = min_size(strlen(b), 63);
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            int same = a[i] == b[j] || (a[i] == '_' && b[j] == '-');
            size_t best = diagonal + !same;
            diagonal = row[j + 1];
            best = min_size(best, min_size(row[j] + 1, diagonal + 1));
            row[j + 1] = best;
        }
    }
    return row[n];
}

static const char *flag_name(size_t i) { return i < FLAG_COUNT ? flags[i].name : NULL; }

/* "; did you mean 'x' or 'y'?" or "" into out, from the words nearest to a wrong one. */
static const char *suggest(const char *word, const char *(*choice)(size_t), char *out,
                           size_t size) {
    const char *best = NULL, *second = NULL;
    size_t d_best = 4, d_second = 4;
    for (size_t i = 0; choice(i); i++) {
        size_t d = strlen(word) > 60 ? 99 : word_distance(word, choice(i));
        if (strlen(word) >= 4 && strncmp(word, choice(i), strlen(word)) == 0) d = 1;
        if (d < d_best)
            second = best, d_second = d_best, best = choice(i), d_best = d;
        else if (d < d_second)
            second = choice(i), d_second = d;
    }
    out[0] = 0;
    if (best && second && d_second == d_best)
        snprintf(out, size, "; did you mean '%s' or '%s'?", best, second);
    else if (best)
        snprintf(out, size, "; did you mean '%s'?", best);
    return out;
}

/* "a, b or c" into out */
static const char *enumerate(const char *(*choice)(size_t), char *out, size_t size) {
    size_t used = 0;
    for (size_t i = 0; choice(i) && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s",
                                 i == 0          ? ""
                                 : choice(i + 1) ? ", "
                                                 : " or ",
                                 choice(i));
    return out;
}

/* Set the field of f from text. Returns 0, or -1 and a sentence in error. */
static int flag_parse(Options *o, const Flag *f, const char *text, char *error, size_t size) {
    char words[512], hint[128], *end = NULL;
    if (f->kind == FLAG_TEXT) {
        *(const char **)field_of(o, f) = text;
        return 0;
    }
    if (f->kind == FLAG_SWITCH) {
        int on = strcmp(text, "on") == 0, off = strcmp(text, "off") == 0;
        if (on || off) return *(int *)field_of(o, f) = on, 0;
        return snprintf(error, size, "--%s takes on or off, not '%s'", f->name, text), -1;
    }
    if (f->kind == FLAG_CHOICE) {
        if (!*text && !*f->fallback && text == f->fallback)
            return *(const char **)field_of(o, f) = text, 0;
        for (size_t i = 0; f->choice(i); i++)
            if (word_distance(text, f->choice(i)) == 0) {
                if (f->field == AT(nesterov))
                    *(int *)field_of(o, f) = i == 0 ? -1 : i == 1;
                else
                    *(const char **)field_of(o, f) = f->choice(i);
                return 0;
            }
        return snprintf(error, size, "--%s does not know '%s'%s (it takes %s)", f->name, text,
                        suggest(text, f->choice, hint, sizeof hint),
                        enumerate(f->choice, words, sizeof words)),
               -1;
    }
    if (strcmp(text, "auto") == 0 && strcmp(f->fallback, "auto") == 0) { /* the method decides */
        if (f->kind == FLAG_REAL)
            *(double *)field_of(o, f) = NAN;
        else
            *(long *)field_of(o, f) = -1;
        return 0;
    }
    errno = 0;
    double value = strtod(text, &end);
    int whole = f->kind == FLAG_WHOLE;
    int wrong = end == text || *end || !isfinite(value) || strpbrk(text, "xXpPnN ") ||
                value < f->min || value > f->max;
    if (wrong || (whole && value != floor(value)))
        return snprintf(error, size, "--%s takes a %s from %.15g to %.15g, not '%s'", f->name,
                        whole ? "whole number" : "number", f->min, f->max, text),
               -1;
    if (whole)
        *(long *)field_of(o, f) = (long)value;
    else
        *(double *)field_of(o, f) = value;
    return 0;
}

/* The value of f as a user would type it. */
static const char *flag_text(const Options *options, const Flag *f, char *out, size_t size) {
    Options *o = (Options *)(uintptr_t)options;
    if (f->field == AT(nesterov))
        return *(int *)field_of(o, f) < 0 ? "auto" : *(int *)field_of(o, f) ? "on" : "off";
    if (f->kind == FLAG_SWITCH) return *(int *)field_of(o, f) ? "on" : "off";
    if (f->kind == FLAG_TEXT || f->kind == FLAG_CHOICE) return *(const char **)field_of(o, f);
    if (f->kind == FLAG_WHOLE && *(long *)field_of(o, f) < 0) return "auto";
    if (f->kind == FLAG_WHOLE)
        snprintf(out, size, "%ld", *(long *)field_of(o, f));
    else if (isnan(*(double *)field_of(o, f)))
        return "auto";
    else
        snprintf(out, size, "%.17g", *(double *)field_of(o, f));
    for (int digits = 1; f->kind == FLAG_REAL && digits < 17;
         digits++) { /* the shortest that reads back */
        snprintf(out, size, "%.*g", digits, *(double *)field_of(o, f));
        if (strtod(out, NULL) == *(double *)field_of(o, f)) break;
    }
    return out;
}

/* Read argv over the defaults; given[i] counts how often flag i was named. Ends the program on
 * misuse. */
static void parse_flags(Options *o, int argc, char **argv, int *given) {
    char error[1024], hint[128], name[64];
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        given[i] = 0;
        if (flag_parse(o, &flags[i], flags[i].fallback, error, sizeof error))
            die(EXIT_FAILED, "%s", error);
    }
    for (int a = 1; a < argc; a++) {
        const char *word = argv[a], *value = strchr(word, '=');
        if (strcmp(word, "-h") == 0) word = "--help";
        if (strncmp(word, "--", 2) != 0)
            die(EXIT_USAGE, "'%s' is not a flag: flags begin with --; --help lists them", word);
        size_t length = value ? (size_t)(value - word) - 2 : strlen(word) - 2;
        snprintf(name, sizeof name, "%.*s", (int)min_size(length, 63), word + 2);
        const Flag *f = NULL;
        for (size_t i = 0; i < FLAG_COUNT && !f; i++)
            if (length < 64 && word_distance(name, flags[i].name) == 0) f = &flags[i];
        if (!f)
            die(EXIT_USAGE, "there is no flag --%s%s", name,
                suggest(name, flag_name, hint, sizeof hint));
        given[f - flags]++;
        if (value)
            value++;
        else if (f->kind == FLAG_SWITCH) {
            int next =
                a + 1 < argc && (strcmp(argv[a + 1], "on") == 0 || strcmp(argv[a + 1], "off") == 0);
            value = next ? argv[++a] : "on";
        } else if (a + 1 < argc && strncmp(argv[a + 1], "--", 2) != 0)
            value = argv[++a];
        else
            die(EXIT_USAGE, "--%s wants a value: --%s %s", f->name, f->name, f->value);
        if (flag_parse(o, f, value, error, sizeof error)) die(EXIT_USAGE, "%s", error);
    }
}

/* Does a metadata value say the same as the option? */
static int flag_agrees(const Options *o, const Flag *f, const char *stored) {
    char text[64];
    return strcmp(flag_text(o, f, text, sizeof text), stored) == 0;
}

static void print_help(void) {
    char words[512];
    const char *group = "";
    printf(
        "train_gpt - a GPT in plain C, trained by workers that send one bit per weight\n\n"
        "  train_gpt --workers 3 --aux sign          train; the whole model travels at one bit "
        "per weight\n"
        "  train_gpt --method adamw --lr 3e-3        the same with AdamW\n"
        "  train_gpt --resume --steps 4000           go on from out/last, further\n"
        "  train_gpt --sample 300 --prompt 'ROMEO:'  write text from out/last\n"
        "  train_gpt --list methods                  explain the rules\n"
        "  mpirun -n 4 train_gpt_mpi --aux sign      four workers (make mpi); all ranks must see "
        "--out\n\n"
        "--name value or --name=value; - and _ are alike; switches take on or off and mean on "
        "when bare.\n");
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        const Flag *f = &flags[i];
        if (strcmp(group, f->group) != 0) printf("\n%s\n", group = f->group);
        const char *fallback = strcmp(f->fallback, "\n") == 0 ? "a newline" : f->fallback;
        if (strcmp(fallback, "auto") == 0 && f->kind != FLAG_CHOICE) fallback = "by method";
        printf("  --%-17s %-11s %s", f->name, f->value ? f->value : "", f->help);
        printf(f->kind != FLAG_SWITCH && *fallback ? " [%s]\n" : "\n", fallback);
        if (f->kind == FLAG_CHOICE && f->choice != choice_list && f->choice != choice_nesterov)
            printf("  %32s%s\n", "", enumerate(f->choice, words, sizeof words));
    }
    printf("\nExit status: 0 done, 1 failed, 2 wrong use, 3 diverged, 130 or 143 interrupted after "
           "saving.\n"
           "An odd number of workers cannot tie. NO_COLOR and "
           "GEMM_ISA=portable|avx2|avx512|avx512bf16|neon are "
           "respected.\n");
}

static void print_list(const char *what) {
    if (strcmp(what, "methods") == 0) {
        printf("%-17s %-9s %-8s %-9s %-8s %-6s %-7s %-6s %s\n", "method", "worker", "sends",
               "server", "reply", "gain", "lr", "aux", "direction");
        for (size_t i = 0; sm_method_row(i); i++) {
            const SmMethod *m = sm_method_row(i);
            static const char *const sends[] = {"fp32", "1 bit", "residual", "gossip", "2 gossip"};
            const char *reply = sm_gossips(m)               ? "none"
                                : m->combine == SM_FEEDBACK ? "shift"
                                : m->reply == SM_SIGN       ? "1 bit"
                                                            : "fp32";
            printf("%-17s %-9s %-8s %-9s %-8s %-6s %-7g %-6s %s\n", m->name, m->worker_map,
                   sends[m->combine], m->server_map, reply, m->gain, m->lr, m->aux, m->doc);
        }
    }
    for (size_t i = 0; strcmp(what, "norms") == 0 && sm_norm_row(i); i++)
        printf("%-16s %s\n", sm_norm_row(i)->name, sm_norm_row(i)->doc);
    for (size_t i = 0; strcmp(what, "radii") == 0 && sm_radii_row(i); i++)
        printf("%-16s %s\n", sm_radii_row(i)->name, sm_radii_row(i)->doc);
    for (size_t i = 0; strcmp(what, "compressors") == 0 && ef_compressor_row(i); i++) {
        const EfCompressor *row = ef_compressor_row(i);
        printf("%s%s%-*s %s\n", row->name, row->argument ? ":" : "",
               15 - (int)strlen(row->name) + (row->argument ? 0 : 1),
               row->argument ? row->argument : "", row->doc);
    }
    for (size_t i = 0; strcmp(what, "topologies") == 0 && dm_topology_row(i); i++)
        printf("%-16s %s\n", dm_topology_row(i)->name, dm_topology_row(i)->doc);
    for (size_t i = 0; strcmp(what, "noises") == 0 && noise_row(i); i++)
        printf("%s:%-*s %s\n", noise_row(i)->name, 15 - (int)strlen(noise_row(i)->name),
               noise_row(i)->arguments, noise_row(i)->doc);
    for (size_t i = 0; strcmp(what, "attacks") == 0 && sm_attack_row(i); i++) {
        const SmAttack *row = sm_attack_row(i);
        printf("%s%s%-*s %s\n", row->name, row->argument ? ":" : "",
               15 - (int)strlen(row->name) + (row->argument ? 0 : 1),
               row->argument ? row->argument : "", row->doc);
    }
    for (size_t i = 0; strcmp(what, "gains") == 0 && sm_gain_row(i); i++)
        printf("%-16s %s\n", sm_gain_row(i)->name, sm_gain_row(i)->doc);
    for (size_t i = 0; strcmp(what, "newton-schulz") == 0 && sm_newton_schulz_row(i); i++)
        printf("%-16s %s\n", sm_newton_schulz_row(i)->name, sm_newton_schulz_row(i)->doc);
    for (size_t i = 0; strcmp(what, "backends") == 0 && comm_backend_row(i); i++)
        printf("%-16s %s\n", comm_backend_row(i)->name, comm_backend_row(i)->doc);
    if (strcmp(what, "schedules") == 0)
        printf("linear           falls from the peak to final-lr * peak\n"
               "cosine           the same along half a cosine\n"
               "constant         stays at the peak\n"
               "wsd              stays, then falls linearly over the last `cooldown` of the steps\n"
               "gluon            (k+1)^-3/4 of the peak at step k (arXiv 2505.13416)\n");
}

/* The row or the flag: what a text says when it is not "auto". */
static const char *unless_auto(const char *text, const char *otherwise) {
    return strcmp(text, "auto") == 0 ? otherwise : text;
}

/* What --aux says: the other tensors' method, and their norms by role. */
static void resolve_aux(Options *o, SmConfig *c) {
    const SmMethod *m = c->method;
    const char *role[SM_ROLES] = {o->vector_norm, "auto", o->input_norm, o->output_norm};
    int paper = strcmp(o->mode, "paper") == 0, lmo;
    o->aux = unless_auto(o->aux, paper ? "lmo" : m->aux);
    lmo = strcmp(o->aux, "lmo") == 0;
    if (lmo && !sm_norm(c->worker_map) && !sm_norm(c->server_map))
        die(EXIT_USAGE, "--aux lmo: --method %s applies no LMO; take --aux same", o->method);
    if (sm_gossips(m) && strcmp(o->aux, "sign") == 0)
        die(EXIT_USAGE,
            "--aux sign is a vote of all workers, and --method %s has no server: take "
            "--aux adamw, same or lmo",
            o->method);
    c->aux = lmo || strcmp(o->aux, "same") == 0
                 ? m
                 : sm_method(strcmp(o->aux, "sign") == 0 ? "signum" : "adamw");
    for (int r = 0; r < SM_ROLES; r++) {
        if (!lmo && strcmp(role[r], "auto") != 0)
            die(EXIT_USAGE, "--input-norm, --output-norm and --vector-norm go with --aux lmo");
        const char *norm = !paper           ? sm_scion_norm((SmRole)r)
                           : r == SM_VECTOR ? "frobenius"
                                            : "spectral";
        c->role_norm[r] = lmo && r != SM_HIDDEN ? unless_auto(role[r], norm) : "none";
    }
}

/* --radii: a preset's name, or four numbers. */
static void resolve_radii(Options *o, SmConfig *c) {
    o->radii = unless_auto(o->radii, strcmp(c->method->aux, "lmo") == 0 ? "char" : "unit");
    for (size_t i = 0; sm_radii_row(i); i++)
        if (strcmp(o->radii, sm_radii_row(i)->name) == 0) {
            memcpy(c->radius, sm_radii_row(i)->radius, sizeof c->radius);
            return;
        }
    const char *text = o->radii;
    for (int r = 0; r < SM_ROLES; r++) {
        char *end;
        c->radius[r] = strtod(text, &end);
        if (end == text || !(c->radius[r] >= 0) || !isfinite(c->radius[r]) ||
            *end != (r + 1 < SM_ROLES ? ',' : 0))
            die(EXIT_USAGE,
                "--radii takes a name (--list radii) or four numbers vectors,hidden,input,output, "
                "not '%s'",
                o->radii);
        text = end + 1;
    }
}

/* The flags of error feedback. */
static void resolve_links(Options *o, SmConfig *c, EfLink *up, EfLink *down) {
    char error[512];
    if (c->method->combine != SM_FEEDBACK) {
        if (strcmp(o->up, "auto") != 0 || strcmp(o->down, "auto") != 0)
            die(EXIT_USAGE,
                "--up and --down compress with error feedback: take an ef21 method, not "
                "--method %s",
                o->method);
        return;
    }
    o->up = unless_auto(o->up, c->method->up);
    o->down = unless_auto(o->down, c->method->down);
    if (ef_parse(up, o->up, error, sizeof error)) die(EXIT_USAGE, "--up %s: %s", o->up, error);
    if (ef_parse(down, o->down, error, sizeof error))
        die(EXIT_USAGE, "--down %s: %s", o->down, error);
    c->up = up;
    c->down = down;
}

/* The flags of gossip; the weights live as long as the program. */
static void resolve_graph(Options *o, SmConfig *c, DmGraph *graph) {
    char error[512], *end;
    int nodes = (int)o->workers;
    long first = strtol(o->gossip_rounds, &end, 10), second = first;
    if (*end == ',') second = strtol(end + 1, &end, 10);
    if (*end || !isdigit((unsigned char)o->gossip_rounds[0]) || first < 1 || second < 1 ||
        first > 1000 || second > 1000)
        die(EXIT_USAGE,
            "--gossip-rounds takes one whole number from 1 to 1000, or two with a comma "
            "between, not '%s'",
            o->gossip_rounds);
    if (!sm_gossips(c->method)) {
        if (strcmp(o->topology, "auto") != 0 || strcmp(o->mixing, "auto") != 0 ||
            strcmp(o->eval_nodes, "auto") != 0 || strcmp(o->gossip_rounds, "1") != 0)
            die(EXIT_USAGE,
                "--topology, --mixing, --gossip-rounds and --eval-nodes are for workers without a "
                "server: take demuon or one of its baselines, not --method %s",
                o->method);
        return;
    }
    o->eval_nodes = unless_auto(o->eval_nodes, "end");
    o->topology = unless_auto(o->topology, "ring");
    double *weights = allocate(dm_graph_doubles(nodes) * sizeof *weights);
    graph->weight = weights;
    struct stat s;
    if (strncmp(o->topology, "file:", 5) == 0 && stat(o->topology + 5, &s) == 0 &&
        !S_ISREG(s.st_mode)) /* a FIFO would block */
        die(EXIT_USAGE, "--topology %s: not a regular file", o->topology);
    if (dm_graph_build(graph, weights, o->topology, o->mixing, nodes, error, sizeof error))
        die(strncmp(error, "cannot ", 7) == 0 && errno != ENOENT ? EXIT_FAILED : EXIT_USAGE, "%s",
            error);
    c->graph = graph;
    c->rounds[0] = (int)first;
    c->rounds[1] = (int)second;
}

/* Numbers that were left to the method. */
static void resolve_numbers(Options *o, SmConfig *c) {
    const SmMethod *m = c->method;
    int paper = strcmp(o->mode, "paper") == 0;
    o->gain = unless_auto(o->gain, o->polar_after_vote ? "rms" : paper ? "none" : m->gain);
    o->schedule = unless_auto(o->schedule, m->schedule);
    if (isnan(o->lr)) o->lr = o->polar_after_vote ? 5e-3 : paper ? 0.01 : m->lr;
    if (isnan(o->aux_lr))
        o->aux_lr = strcmp(o->aux, "adamw") == 0  ? 3e-3
                    : strcmp(o->aux, "sign") == 0 ? 1e-3
                                                  : o->lr;
    if (isnan(o->momentum))
        o->momentum = paper ? 0.8 : m->momentum > 0 || strcmp(o->aux, "sign") ? m->momentum : 0.95;
    if (isnan(o->weight_decay)) o->weight_decay = m->decay;
    if (m->estimate == SM_GLUON && o->momentum > 0)
        die(EXIT_USAGE, "--momentum %g: at step k that of --method %s is 1-(k+1)^-1/2; take scion",
            o->momentum, o->method);
    if (m->update == SM_FRANK_WOLFE && o->weight_decay > 0)
        die(EXIT_USAGE, "--weight-decay %g: --method %s shrinks by its rate alone; take scion",
            o->weight_decay, o->method);
    if (isnan(o->clip)) o->clip = m->clip;
    if (o->nesterov < 0) o->nesterov = m->nesterov;
    if (o->warmup < 0) o->warmup = o->steps / 2 < m->warmup ? o->steps / 2 : m->warmup;
    o->momentum_start = unless_auto(o->momentum_start, m->first_gradient ? "gradient" : "zero");
    c->gain = sm_gain(o->gain);
    c->momentum = o->momentum;
    c->decay = o->weight_decay;
    c->clip = o->clip;
    c->nesterov = o->nesterov;
    c->first_gradient = strcmp(o->momentum_start, "gradient") == 0;
    c->beta1 = o->beta1;
    c->beta2 = o->beta2;
    c->epsilon = o->epsilon;
    c->coupled_decay = o->coupled_decay;
    c->ns = sm_newton_schulz(o->ns);
    c->seed = (uint64_t)o->seed;
    c->int8_wire = strcmp(o->wire, "int8") == 0;
    for (size_t i = 0; choice_zero(i); i++) {
        if (strcmp(o->zeros, choice_zero(i)) == 0) c->zeros = (SmZero)i;
        if (strcmp(o->ties, choice_zero(i)) == 0) c->ties = (SmZero)i;
    }
}

/* The maps of the hidden matrices. */
static void resolve_maps(Options *o, SmConfig *c) {
    const SmMethod *m = c->method;
    int replace = strcmp(o->norm, "auto") != 0;
    if (replace && !sm_norm(c->worker_map) && !sm_norm(c->server_map) && !o->polar_after_vote)
        die(EXIT_USAGE,
            "--norm %s has nothing to replace: --method %s applies no LMO; use --worker-map or "
            "--server-map",
            o->norm, o->method);
    if (replace && sm_norm(c->worker_map)) c->worker_map = o->norm;
    if (replace && sm_norm(c->server_map)) c->server_map = o->norm;
    c->worker_map = unless_auto(o->worker_map, c->worker_map);
    if (strcmp(o->server_map, "auto") != 0) {
        if (sm_gossips(m) && sm_norm(o->server_map))
            die(EXIT_USAGE, "--server-map %s: --method %s has no server; use --worker-map",
                o->server_map, o->method);
        c->server_map = o->server_map;
        int signs = !sm_norm(c->server_map) || strcmp(c->server_map, "sign") == 0;
        c->reply = m->combine == SM_VOTE && signs ? SM_SIGN : SM_DENSE;
    }
    if ((m->update == SM_ADAMW || m->update == SM_UNIT) &&
        (sm_norm(c->worker_map) || sm_norm(c->server_map)))
        die(EXIT_USAGE,
            "--worker-map and --server-map do not go with --method %s, which scales its step "
            "itself",
            o->method);
    if (o->polar_after_vote && (m->combine != SM_VOTE || sm_norm(c->server_map)))
        die(EXIT_USAGE,
            "--polar-after-vote needs a method whose reply is the vote itself: signsgd, signum, "
            "lion or signmuon, not %s",
            o->method);
    if (o->polar_after_vote) c->local_map = replace ? o->norm : "spectral";
}

/* --attack as a row and its number. */
static void resolve_attack(Options *o, SmConfig *c) {
    char hint[128], *end = NULL;
    size_t length = strcspn(o->attack, ":");
    const SmAttack *row;
    for (size_t i = 0; (row = sm_attack_row(i)) != NULL; i++)
        if (strlen(row->name) == length && strncmp(row->name, o->attack, length) == 0) break;
    if (!row)
        die(EXIT_USAGE, "--attack does not know '%s'%s (--list attacks)", o->attack,
            suggest(o->attack, choice_attack, hint, sizeof hint));
    const char *argument = o->attack[length] ? o->attack + length + 1 : NULL;
    if (row->argument && argument) c->attack_scale = strtod(argument, &end);
    int number = end && end > argument && !*end && fabs(c->attack_scale) <= 1e9;
    if (row->argument ? !number : argument != NULL)
        die(EXIT_USAGE, "--attack %s: '%s' takes %s", o->attack, row->name,
            row->argument ? "a colon and a number from -1e9 to 1e9, as in scale:-10"
                          : "no argument");
    c->attack = row;
}

/* Who lies, and how; whether anybody counts dissent. */
static void resolve_liars(Options *o, SmConfig *c) {
    if (o->adversaries >= o->workers && o->adversaries > 0)
        die(EXIT_USAGE,
            "--adversaries %ld: of --workers %ld at least one must be honest; take fewer liars",
            o->adversaries, o->workers);
    if (o->adversaries == 0 && strcmp(o->attack, "auto") != 0)
        die(EXIT_USAGE, "--attack %s: nobody lies; say how many with --adversaries", o->attack);
    o->attack = unless_auto(o->attack, o->adversaries ? "flip" : "auto");
    if (o->adversaries) resolve_attack(o, c);
    c->adversaries = (int)o->adversaries;
    if (!o->expel && o->expel_after != 40)
        die(EXIT_USAGE, "--expel-after %ld goes with --expel", o->expel_after);
    if (!o->expel) return;
    if (c->method->combine != SM_VOTE)
        die(EXIT_USAGE,
            "--expel counts votes against the majority: take signsgd, signum, lion, signmuon, "
            "muonusign or muonsign, not --method %s",
            o->method);
    if (c->int8_wire)
        die(EXIT_USAGE, "--expel compares ballots of bits: take --wire sharded, not int8");
    if (c->zeros == SM_ABSTAIN)
        die(EXIT_USAGE, "--expel counts votes for and against: take --zeros coin or plus");
    if (o->workers < 3)
        die(EXIT_USAGE, "--expel: %ld workers have no majority against one; take 3 or more",
            o->workers);
    c->expel = (int)o->expel_after;
}

/* The optimizer's configuration that the flags and the method's row say. Ends the program on
 * misuse. */
static SmConfig resolve_method(Options *o, EfLink *up, EfLink *down, DmGraph *graph) {
    const SmMethod *m = sm_method(o->method);
    SmConfig c = sm_config(m, m);
    if (strcmp(o->mode, "paper") == 0 && strncmp(m->name, "demuon", 6) != 0)
        die(EXIT_USAGE, "--mode paper is for demuon; --method %s has one mode", o->method);
    if (o->wire && strcmp(o->wire, "int8") == 0 && o->workers > 127)
        die(EXIT_USAGE,
            "--wire int8 counts to 127: take --wire sharded, or --workers 127 or fewer, not %ld",
            o->workers);
    resolve_maps(o, &c);
    resolve_aux(o, &c);
    resolve_radii(o, &c);
    resolve_links(o, &c, up, down);
    resolve_graph(o, &c, graph);
    resolve_numbers(o, &c);
    resolve_liars(o, &c);
    return c;
}

/* --link "100mbit,5ms" as seconds per byte and seconds per message; 0 when the text is
 * malformed. */
static int parse_link(const char *text, double *per_byte, double *per_message) {
    static const struct {
        const char *name;
        double factor;
    } unit[] = {{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1},
                {"ms", 1e-3},  {"us", 1e-6},  {"s", 1}};
    char *end;
    double value[2], factor[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
        value[k] = strtod(text, &end);
        if (end == text || !isfinite(value[k]) || value[k] < 0) return 0;
        for (size_t u = k ? 4 : 0; u < (k ? 7u : 4u) && factor[k] == 0; u++)
            if (strncmp(end, unit[u].name, strlen(unit[u].name)) == 0) {
                factor[k] = unit[u].factor;
                end += strlen(unit[u].name);
            }
        if (factor[k] == 0 || *end != (k ? 0 : ',')) return 0;
        text = end + 1;
    }
    if (value[0] <= 0) return 0;
    *per_byte = 8 / (value[0] * factor[0]);
    *per_message = value[1] * factor[1];
    return *per_byte > 0 && isfinite(*per_byte); /* a double has neither 1e308gbit nor 1e-320bit */
}

/* Does this CPU execute a row that it does not announce, as under a hypervisor that hides it? Tried
 * in a child. */
static int executes(const Gemm *g) {
    int status = 0;
    pid_t child = g->supported() == 1 ? fork() : 0;
    if (child == 0 && g->supported() == 1) {
        float words[GEMM_NR_MAX] = {0}, tile[GEMM_MR_MAX * GEMM_NR_MAX];
        signal(SIGILL, SIG_DFL);
        g->kernel(1, words, 1, 1, words, 1, tile, g->nr, 0);
        _exit(0);
    }
    if (child > 0) waitpid(child, &status, 0);
    return status == 0;
}

/* What no single range can say. */
static void check_together(const Options *o) {
    double byte, message;
    if (o->width % o->heads)
        die(EXIT_USAGE, "--width %ld is not divisible by --heads %ld", o->width, o->heads);
    if (o->batch % o->workers && !o->eval && !o->sample)
        die(EXIT_USAGE,
            "--batch %ld is not divisible by --workers %ld: every worker takes as many sequences",
            o->batch, o->workers);
    if (o->min_workers > o->workers)
        die(EXIT_USAGE, "--min-workers %ld is more than --workers %ld", o->min_workers, o->workers);
    if (strcmp(o->on_death, "continue") == 0 && strcmp(o->backend, "processes") != 0)
        die(EXIT_USAGE,
            "--on-death continue is for workers that can die alone: take --backend processes, not "
            "%s",
            o->backend);
    if (strcmp(o->resume_workers, "refuse") != 0 && !o->resume)
        die(EXIT_USAGE, "--resume-workers goes with --resume");
    if (*o->link && !parse_link(o->link, &byte, &message))
        die(EXIT_USAGE, "--link takes a rate and a delay such as 100mbit,5ms, not '%s'", o->link);
    if (!*o->data) die(EXIT_USAGE, "--data wants the path of a text file or of token shards");
    if (!*o->out) die(EXIT_USAGE, "--out wants the name of a directory");
    if (o->resume && o->overwrite) die(EXIT_USAGE, "--resume and --overwrite exclude each other");
    if (o->steps < o->warmup)
        die(EXIT_USAGE, "--warmup %ld is longer than --steps %ld", o->warmup, o->steps);
    const char *isa = getenv("GEMM_ISA");
    const Gemm *gemm = gemm_default(strcmp(o->dtype, "bf16") ? GEMM_F32 : GEMM_BF16);
    if (!gemm || !executes(gemm))
        die(EXIT_USAGE,
            "GEMM_ISA=%s is unknown or not of this CPU: take avx512bf16, avx512, avx2, neon or "
            "portable, as the CPU allows",
            isa ? isa : "");
}

/* ------------------------------------------------------------------------------------------------
 * the model's tensors: one row each, nanoGPT's names */

enum {
    WTE,
    WPE,
    LN1W,
    LN1B,
    QKVW,
    QKVB,
    ATTW,
    ATTB,
    LN2W,
    LN2B,
    FCW,
    FCB,
    OUTW,
    OUTB,
    LNFW,
    LNFB,
    HEAD,
    TENSOR_KINDS
};

typedef struct TensorRow {
    const char *name; /* %d is the layer */
    char rows, cols;  /* V, T, C or 1 */
    int rows_times, cols_times, blocks;
    char when; /* always, with biases, when untied */
    char init; /* n: normal(0, 0.02), r: the same / sqrt(2L), 1: ones, 0: zeros */
    SmRole role;
    int sparse;
} TensorRow;

// clang-format off
static const TensorRow tensor_rows[TENSOR_KINDS] = {
    [WTE] = {"transformer.wte.weight", 'V', 'C', 1, 1, 1, 'a', 'n', SM_OUTPUT, 1},
    [WPE] = {"transformer.wpe.weight", 'T', 'C', 1, 1, 1, 'a', 'n', SM_INPUT, 0},
    [LN1W] = {"transformer.h.%d.ln_1.weight", '1', 'C', 1, 1, 1, 'a', '1', SM_VECTOR, 0},
    [LN1B] = {"transformer.h.%d.ln_1.bias", '1', 'C', 1, 1, 1, 'b', '0', SM_VECTOR, 0},
    [QKVW] = {"transformer.h.%d.attn.c_attn.weight", 'C', 'C', 1, 1, 3, 'a', 'n', SM_HIDDEN, 0},
    [QKVB] = {"transformer.h.%d.attn.c_attn.bias", '1', 'C', 1, 3, 1, 'b', '0', SM_VECTOR, 0},
    [ATTW] = {"transformer.h.%d.attn.c_proj.weight", 'C', 'C', 1, 1, 1, 'a', 'r', SM_HIDDEN, 0},
    [ATTB] = {"transformer.h.%d.attn.c_proj.bias", '1', 'C', 1, 1, 1, 'b', '0', SM_VECTOR, 0},
    [LN2W] = {"transformer.h.%d.ln_2.weight", '1', 'C', 1, 1, 1, 'a', '1', SM_VECTOR, 0},
    [LN2B] = {"transformer.h.%d.ln_2.bias", '1', 'C', 1, 1, 1, 'b', '0', SM_VECTOR, 0},
    [FCW] = {"transformer.h.%d.mlp.c_fc.weight", 'C', 'C', 4, 1, 1, 'a', 'n', SM_HIDDEN, 0},
    [FCB] = {"transformer.h.%d.mlp.c_fc.bias", '1', 'C', 1, 4, 1, 'b', '0', SM_VECTOR, 0},
    [OUTW] = {"transformer.h.%d.mlp.c_proj.weight", 'C', 'C', 1, 4, 1, 'a', 'r', SM_HIDDEN, 0},
    [OUTB] = {"transformer.h.%d.mlp.c_proj.bias", '1', 'C', 1, 1, 1, 'b', '0', SM_VECTOR, 0},
    [LNFW] = {"transformer.ln_f.weight", '1', 'C', 1, 1, 1, 'a', '1', SM_VECTOR, 0},
    [LNFB] = {"transformer.ln_f.bias", '1', 'C', 1, 1, 1, 'b', '0', SM_VECTOR, 0},
    [HEAD] = {"lm_head.weight", 'V', 'C', 1, 1, 1, 'u', 'n', SM_OUTPUT, 0},
};
// clang-format on

typedef struct GptShape {
    int layers, heads, width, context, vocab; /* L NH C T V */
    int bias, untied;
    double dropout;
    uint64_t seed;
    int bf16;
} GptShape;

enum {
    ROWS = 64
}; /* tokens that a thread takes through a chain of kernels while they are in cache */

/* A stored activation: fp32 in f, or bf16 in h under --dtype bf16; the other is NULL. */
typedef struct Store {
    float *f;
    uint16_t *h;
} Store;

/* An operand of a weight gradient, summed over tokens: fp32 as the product reads it, or bf16 by rows. */
typedef struct Saved {
    float *panels;
    uint16_t *h;
    GemmSide side; /* A: gradients of outputs; B: inputs */
} Saved;

/* Activations of B * T rows, kept for the backward pass. */
typedef struct GptLayer {
    float *in, *mid; /* (BT, C) residual stream before attention, and before the MLP */
    float *mean1, *scale1, *mean2, *scale2; /* (BT) of the LayerNorms: mean and 1/deviation */
    float *lse;         /* (B, NH, T) log of the sum of exponentials of a row of scores */
    Store qkv, att, fc; /* (BT, 3C) (BT, C) heads side by side (BT, 4C) */
    Saved ln1, ln2;     /* (BT, C) (BT, C) */
} GptLayer;

/* One worker's model. */
typedef struct Gpt {
    GptShape s;
    SmTensor *tensor;
    size_t tensors, parameters;
    size_t *place; /* (L, TENSOR_KINDS) index of a tensor, or SIZE_MAX */
    char (*names)[64];
    float *params, *grads;
    char *arena; /* holds all of the following, `used` bytes; B sequences fit */
    size_t used, B;
    size_t activations, packed; /* bytes of it; the rest is scratch */
    GptLayer *layer;
    float *last, *meanf, *scalef; /* (BT, C) (BT) (BT) */
    float *losses;                /* (BT) nats, 0 where the target is -1 */
    float *dres;                  /* (BT, C) gradient of the residual stream */
    Store datt, dqkv;             /* (BT, C) (BT, 3C) */
    Saved att_saved, gelu, lnf;   /* (BT, C) (BT, 4C) (BT, C) inputs of the matrices */
    Saved dlogits, dmlp, dfc, dproj, dqkv_saved; /* (BT, V) (BT, C) (BT, 4C) (BT, C) (BT, 3C) */
    float *partial;              /* (blocks, PARTIAL_COLUMNS * C) sums over a block's rows */
    float **forward, **backward; /* per tensor: a matrix packed for x W^T and for dout W, or NULL */
    float *cache;                /* (L, 2, T, C) keys and values of a sample */
    float *scratch;              /* thread_floats for each compute thread */
    size_t thread_floats;
    const Gemm *gemm;
    Team *team;
} Gpt;

static size_t dimension(const GptShape *s, char letter) {
    return letter == 'V'   ? (size_t)s->vocab
           : letter == 'T' ? (size_t)s->context
           : letter == 'C' ? (size_t)s->width
                           : 1;
}

/* The tensor of that kind in layer l, in params or in grads; NULL when the model has none. */
static float *tensor_in(const Gpt *g, float *base, int kind, int l) {
    size_t i = g->place[(size_t)l * TENSOR_KINDS + (size_t)kind];
    return i == SIZE_MAX ? NULL : base + g->tensor[i].offset;
}
static float *param(const Gpt *g, int kind, int l) { return tensor_in(g, g->params, kind, l); }
static float *grad(const Gpt *g, int kind, int l) { return tensor_in(g, g->grads, kind, l); }

static size_t tensor_size(const SmTensor *t) { return t->blocks * t->rows * t->cols; }

/* Lay the tensors out: embeddings, layer by layer, final norm, head. */
static void gpt_layout(Gpt *g, const GptShape *shape) {
    memset(g, 0, sizeof *g);
    g->s = *shape;
    size_t L = (size_t)shape->layers, most = L * TENSOR_KINDS;
    g->tensor = allocate(most * sizeof *g->tensor);
    g->names = allocate(most * sizeof *g->names);
    g->place = allocate(most * sizeof *g->place);
    memset(g->place, 0xff, most * sizeof *g->place);
    g->layer = allocate(L * sizeof *g->layer);
    g->forward = allocate(most * sizeof *g->forward);
    g->backward = allocate(most * sizeof *g->backward);
    for (int part = 0; part < 3; part++)
        for (size_t l = 0; l < (part == 1 ? L : 1); l++)
            for (int k = 0; k < TENSOR_KINDS; k++) {
                const TensorRow *row = &tensor_rows[k];
                int belongs = k <= WPE ? 0 : k < LNFW ? 1 : 2;
                if (belongs != part || (row->when == 'b' && !shape->bias) ||
                    (row->when == 'u' && !shape->untied))
                    continue;
                size_t i = g->tensors++;
                if (part == 1)
                    snprintf(g->names[i], sizeof g->names[i], row->name, (int)l);
                else
                    snprintf(g->names[i], sizeof g->names[i], "%s", row->name);
                g->tensor[i] =
                    (SmTensor){.name = g->names[i],
                               .offset = g->parameters,
                               .rows = dimension(shape, row->rows) * (size_t)row->rows_times,
                               .cols = dimension(shape, row->cols) * (size_t)row->cols_times,
                               .blocks = (size_t)row->blocks,
                               .role = k == WTE && shape->untied ? SM_INPUT : row->role,
                               .decay = row->rows != '1',
                               .sparse = row->sparse && shape->untied};
                g->place[l * TENSOR_KINDS + (size_t)k] = i;
                g->parameters += tensor_size(&g->tensor[i]);
            }
}

/* Initial parameters from the seed: normal(0, 0.02), residual projections scaled by 1/sqrt(2L). */
static void gpt_init(Gpt *g) {
    for (int l = 0; l < g->s.layers; l++)
        for (int k = 0; k < TENSOR_KINDS; k++) {
            size_t i = g->place[(size_t)l * TENSOR_KINDS + (size_t)k];
            if (i == SIZE_MAX) continue;
            float *w = g->params + g->tensor[i].offset;
            char init = tensor_rows[k].init;
            double std = init == 'r' ? 0.02 / sqrt(2.0 * g->s.layers) : 0.02;
            uint64_t key = sm_key(g->s.seed, 0x696e6974u, i);
            for (size_t j = 0; j < tensor_size(&g->tensor[i]); j++) {
                double u = (double)(sm_hash(key, 2 * j) >> 11) * 0x1p-53,
                       v = (double)(sm_hash(key, 2 * j + 1) >> 11) * 0x1p-53;
                double normal = sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
                w[j] = init == '1' ? 1.0f : init == '0' ? 0.0f : (float)(std * normal);
            }
        }
}

/* The next `bytes` of the arena, or only their count while there is none yet. */
static void *carve(Gpt *g, size_t bytes) {
    char *here = g->arena ? g->arena + g->used : NULL;
    g->used += (bytes + 63) / 64 * 64;
    return here;
}
static float *carve_floats(Gpt *g, size_t n) { return carve(g, n * sizeof(float)); }
static Store carve_store(Gpt *g, size_t n) {
    return g->s.bf16 ? (Store){NULL, carve(g, n * sizeof(uint16_t))}
                     : (Store){carve_floats(g, n), NULL};
}

static Saved carve_saved(Gpt *g, GemmSide side, size_t rows, size_t cols) {
    if (g->s.bf16) return (Saved){NULL, carve(g, rows * cols * sizeof(uint16_t)), side};
    return (Saved){carve_floats(g, gemm_packed_floats(g->gemm, side, cols, rows)), NULL, side};
}

/* Sums over the rows of a block, in multiples of C: where each begins. */
enum {
    PARTIAL_LN1W,
    PARTIAL_LN1B,
    PARTIAL_QKVB,
    PARTIAL_LN2W = PARTIAL_QKVB + 3,
    PARTIAL_LN2B,
    PARTIAL_FCB,
    PARTIAL_OUTB = PARTIAL_FCB + 4,
    PARTIAL_ATTB,
    PARTIAL_LNFW,
    PARTIAL_LNFB,
    PARTIAL_COLUMNS
};

/* One thread's scratch, in floats: for products, for blocks of rows, for a head of attention. */
static size_t scratch_wide(const GptShape *s) { /* a block of rows of anything */
    size_t C = (size_t)s->width, V = (size_t)s->vocab;
    return ROWS * (4 * C > V ? 4 * C : V);
}
static size_t scratch_head(const Gemm *gemm, const GptShape *s) {
    size_t T = (size_t)s->context, HS = (size_t)(s->width / s->heads);
    return 2 * ROWS * T + 2 * gemm_packed_floats(gemm, GEMM_B, T, HS) +
           gemm_packed_floats(gemm, GEMM_B, HS, T) + (3 * T + ROWS) * HS;
}
static size_t scratch_floats(const Gemm *gemm, const GptShape *s) {
    size_t n =
        gemm_scratch() + 3 * scratch_wide(s) + 2 * ROWS * (size_t)s->width + scratch_head(gemm, s);
    return (n + 63) / 16 * 16;
}

/* Place activations for B sequences, packed matrices and scratch in the arena. */
static void gpt_carve(Gpt *g, size_t B, int train, int threads) {
    size_t n = B * (size_t)g->s.context, C = (size_t)g->s.width, V = (size_t)g->s.vocab;
    g->used = 0;
    for (GptLayer *a = g->layer; a < g->layer + g->s.layers; a++)
        *a = (GptLayer){.in = carve_floats(g, n * C),
                        .mid = carve_floats(g, n * C),
                        .mean1 = carve_floats(g, n),
                        .scale1 = carve_floats(g, n),
                        .mean2 = carve_floats(g, n),
                        .scale2 = carve_floats(g, n),
                        .lse = carve_floats(g, n * (size_t)g->s.heads),
                        .qkv = carve_store(g, n * 3 * C),
                        .att = carve_store(g, n * C),
                        .fc = carve_store(g, n * 4 * C),
                        .ln1 = train ? carve_saved(g, GEMM_B, n, C) : (Saved){0},
                        .ln2 = train ? carve_saved(g, GEMM_B, n, C) : (Saved){0}};
    g->last = carve_floats(g, n * C);
    g->meanf = carve_floats(g, n);
    g->scalef = carve_floats(g, n);
    g->losses = carve_floats(g, n);
    if (train) {
        g->dres = carve_floats(g, n * C);
        g->datt = carve_store(g, n * C);
        g->dqkv = carve_store(g, n * 3 * C);
        g->att_saved = carve_saved(g, GEMM_B, n, C);
        g->gelu = carve_saved(g, GEMM_B, n, 4 * C);
        g->lnf = carve_saved(g, GEMM_B, n, C);
        g->dlogits = carve_saved(g, GEMM_A, n, V);
        g->dmlp = carve_saved(g, GEMM_A, n, C);
        g->dfc = carve_saved(g, GEMM_A, n, 4 * C);
        g->dproj = carve_saved(g, GEMM_A, n, C);
        g->dqkv_saved = carve_saved(g, GEMM_A, n, 3 * C);
        g->partial = carve_floats(g, (n + ROWS - 1) / ROWS * PARTIAL_COLUMNS * C);
    }
    g->activations = g->used;
    for (size_t i = 0; i < g->tensors; i++) {
        const SmTensor *t = &g->tensor[i];
        size_t out = t->blocks * t->rows, in = t->cols;
        int head = i == g->place[g->s.untied ? HEAD : WTE];
        g->forward[i] = g->backward[i] = NULL;
        if (t->role != SM_HIDDEN && !head) continue;
        g->forward[i] = carve_floats(g, gemm_packed_floats(g->gemm, GEMM_B, out, in));
        if (train) g->backward[i] = carve_floats(g, gemm_packed_floats(g->gemm, GEMM_B, in, out));
    }
    g->packed = g->used - g->activations;
    g->thread_floats = scratch_floats(g->gemm, &g->s);
    g->scratch = carve_floats(g, (size_t)threads * g->thread_floats);
}

/* Bytes that gpt_allocate takes. */
static size_t gpt_bytes(Gpt *g, size_t B, int train, int threads) {
    g->gemm = gemm_default(g->s.bf16 ? GEMM_BF16 : GEMM_F32);
    g->arena = NULL;
    gpt_carve(g, B, train, threads);
    return g->used;
}

/* Allocate activations for B sequences; train adds the backward pass's. */
static void gpt_allocate(Gpt *g, size_t B, int train, Team *team) {
    g->arena = allocate(gpt_bytes(g, B, train, team->threads));
    gpt_carve(g, B, train, team->threads);
    g->B = B;
    g->team = team;
}

/* Give back everything. */
static void gpt_free(Gpt *g) {
    void *all[] = {g->arena, g->layer, g->forward, g->backward, g->tensor,
                   g->names, g->place, g->params,  g->grads,    g->cache};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    memset(g, 0, sizeof *g);
}

/* ------------------------------------------------------------------------------------------------
 * kernels: each thread takes its slice of rows or columns; no result depends on their number */

static void slice(size_t n, int ith, int nth, size_t *lo, size_t *hi) {
    *lo = n * (size_t)ith / (size_t)nth;
    *hi = n * ((size_t)ith + 1) / (size_t)nth;
}

/* a * b + c in one rounding where the CPU has the instruction */
static inline float mul_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* e^x to 2 ulp for x <= 88, 0 below -87; plain arithmetic, so that loops over it become vector
 * code. */
static inline float fast_exp(float x) {
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted =
        mul_add(clamped, 1.44269504f, 12582912.0f); /* 1.5 * 2^23: the fraction falls off */
    float n = shifted - 12582912.0f;
    float r = mul_add(n, 2.12194440e-4f, mul_add(n, -0.693359375f, clamped));
    float p = 1.9875691500e-4f;
    p = mul_add(p, r, 1.3981999507e-3f);
    p = mul_add(p, r, 8.3334519073e-3f);
    p = mul_add(p, r, 4.1665795894e-2f);
    p = mul_add(p, r, 1.6666665459e-1f);
    p = mul_add(p, r, 5.0000001201e-1f);
    p = mul_add(p, r * r, r) + 1.0f;
    union {
        float f;
        uint32_t u;
    } bits = {shifted}, scale;
    scale.u = (bits.u + 127u) << 23;
    return x < -87.0f ? 0.0f : p * scale.f;
}

enum { DROP_EMBEDDING = -1, DROP_ATTENTION = 0, DROP_PROJECTION = 1, DROP_MLP = 2 };

/* Key of a dropout mask: of one step, layer and place; 0 when nothing drops. */
typedef struct Dropout {
    double p;
    uint64_t key; /* of this worker and step */
} Dropout;

static uint64_t drop_key(const Dropout *d, int layer, int place) {
    return d->p > 0 ? sm_hash(d->key, (uint64_t)layer * 3 + (uint64_t)(place + 1)) | 1 : 0;
}

/* x <- x * mask / (1-p), entries numbered from `first`; the same call serves the backward pass. */
static void drop(float *x, size_t n, const Dropout *d, uint64_t key, size_t first) {
    if (!key) return;
    uint64_t threshold = (uint64_t)(d->p * 0x1p64);
    float keep = (float)(1 / (1 - d->p));
    for (size_t i = 0; i < n; i++) x[i] = sm_hash(key, first + i) < threshold ? 0.0f : x[i] * keep;
}

/* out (C) = (in - mean) * scale * w + b; mean and scale = 1/deviation are kept. eps 1e-5 as
 * nanoGPT. */
static void layernorm_row(float *restrict out, float *mean, float *scale, const float *restrict in,
                          const float *restrict w, const float *restrict b, size_t C) {
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t c = 0; c < C; c++) sum += in[c];
    float m = sum / (float)C;
#pragma omp simd reduction(+ : square)
    for (size_t c = 0; c < C; c++) square += (in[c] - m) * (in[c] - m);
    float s = 1.0f / sqrtf(square / (float)C + 1e-5f);
    for (size_t c = 0; c < C; c++) out[c] = (in[c] - m) * s * w[c];
    for (size_t c = 0; b && c < C; c++) out[c] += b[c];
    *mean = m;
    *scale = s;
}

/* dres, dw, db (C) += gradients through a LayerNorm: of its input, its weight and its bias (may be NULL);
 * dout (C) is the gradient of its output. */
static void layernorm_row_backward(float *restrict dres, float *restrict dw, float *restrict db,
                                   const float *restrict dout, const float *restrict in, float m,
                                   float s, const float *restrict w, size_t C) {
    float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (size_t c = 0; c < C; c++) {
        float d = dout[c] * w[c];
        sum += d;
        dot += d * (in[c] - m) * s;
    }
    sum /= (float)C;
    dot /= (float)C;
    for (size_t c = 0; c < C; c++) {
        float x = (in[c] - m) * s;
        dres[c] += s * (dout[c] * w[c] - sum - x * dot);
        dw[c] += dout[c] * x;
    }
    for (size_t c = 0; db && c < C; c++) db[c] += dout[c];
}

/* One pass: out = in + drop(step + bias), norm = LayerNorm(out); the entries of the first row are
 * numbered from `first` for the dropout. All (rows, C). */
static void residual_norm(float *out, float *norm, float *mean, float *scale, const float *in,
                          float *step, const float *bias, const float *w, const float *b,
                          size_t rows, size_t C, const Dropout *d, uint64_t key, size_t first) {
    for (size_t r = 0; r < rows; r++) {
        float *restrict s = step + r * C, *o = out + r * C;
        for (size_t c = 0; bias && c < C; c++) s[c] += bias[c];
        drop(s, C, d, key, first + r * C);
        for (size_t c = 0; c < C; c++) o[c] = in[r * C + c] + s[c];
        layernorm_row(norm + r * C, &mean[r], &scale[r], o, w, b, C);
    }
}

/* x (rows, n) += bias (n), which may be NULL */
static void add_bias(float *x, const float *bias, size_t rows, size_t n) {
    for (size_t r = 0; bias && r < rows; r++)
        for (size_t c = 0; c < n; c++) x[r * n + c] += bias[c];
}

/* sum (n) = column sums of x (rows, n) */
static void column_sums(float *restrict sum, const float *restrict x, size_t rows, size_t n) {
    for (size_t c = 0; c < n; c++) sum[c] = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < n; c++) sum[c] += x[r * n + c];
}

/* GELU's tanh form: 0.5 x (1 + tanh(u)) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3) */
static inline float gelu_gate(float x) {
    return 1.0f / (1.0f + fast_exp(-1.59576912f * x * mul_add(0.044715f * x, x, 1.0f)));
}

/* gelu (n) = GELU(fc) */
static void gelu_row(float *restrict gelu, const float *restrict fc, size_t n) {
    for (size_t c = 0; c < n; c++) gelu[c] = fc[c] * gelu_gate(fc[c]);
}

/* dfc (n) *= GELU'(fc); gelu = GELU(fc) again */
static void gelu_row_backward(float *restrict dfc, float *restrict gelu, const float *restrict fc,
                              size_t n) {
    for (size_t c = 0; c < n; c++) {
        float x = fc[c], gate = gelu_gate(x);
        gelu[c] = x * gate;
        float slope = 1.59576912f * mul_add(3 * 0.044715f * x, x, 1.0f); /* of 2u */
        dfc[c] *= mul_add(gelu[c] * (1.0f - gate), slope, gate);
    }
}

/* Largest of n >= 1 entries, in sixteen lanes (no compiler reorders a maximum by itself). */
static float row_max(const float *x, size_t n) {
    float lane[16];
    size_t i = 0;
    for (size_t j = 0; j < 16; j++) lane[j] = x[0];
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    for (; i < n; i++) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            lane[j] = lane[j + half] > lane[j] ? lane[j + half] : lane[j];
    return lane[0];
}

/* Cross-entropy of one row of logits, which become their own gradient times `scale`. Returns
 * nats. */
static float softmax_cross_entropy_row(float *restrict logits, size_t V, int32_t target,
                                       float scale) {
    if (target < 0) {
        memset(logits, 0, V * sizeof *logits);
        return 0;
    }
    float largest = row_max(logits, V), sum = 0, at_target = logits[target];
#pragma omp simd reduction(+ : sum)
    for (size_t v = 0; v < V; v++) {
        logits[v] = fast_exp(logits[v] - largest);
        sum += logits[v];
    }
    float factor = scale / sum;
    for (size_t v = 0; v < V; v++) logits[v] *= factor;
    logits[target] -= scale;
    return logf(sum) + largest - at_target;
}

/* ------------------------------------------------------------------------------------------------
 * stores: activations that the backward pass reads again, in fp32 or in bf16 */

/* A matrix of floats, rows `ld` apart. */
typedef struct View {
    float *x;
    size_t ld;
} View;

/* Where to write a matrix of `cols` columns at `at` of a store, whose rows are `ld` apart: the place
 * itself, or scratch that store_close converts. */
static View store_open(Store s, size_t at, size_t ld, size_t cols, float *scratch) {
    return s.f ? (View){s.f + at, ld} : (View){scratch, cols};
}
static void store_close(Store s, size_t at, size_t ld, View v, size_t rows, size_t cols) {
    for (size_t r = 0; s.h && r < rows; r++)
        for (size_t c = 0; c < cols; c++) s.h[at + r * ld + c] = gemm_to_bf16(v.x[r * v.ld + c]);
}

/* n stored values as floats: the place itself, or scratch. */
static const float *store_read(Store s, size_t at, size_t n, float *scratch) {
    if (s.f) return s.f + at;
    for (size_t i = 0; i < n; i++) scratch[i] = gemm_from_bf16(s.h[at + i]);
    return scratch;
}

static GemmOperand store_operand(Store s, size_t at, size_t lane, size_t depth) {
    return s.f ? gemm_f32(s.f + at, lane, depth) : gemm_bf16(s.h + at, lane, depth);
}

/* Keep x (rows, cols), rows [at, at + rows) of `all`, for a weight gradient. */
static void save_rows(const Gpt *g, Saved s, const float *x, size_t at, size_t rows, size_t cols,
                      size_t all) {
    if (s.panels)
        gemm_pack_depth(g->gemm, s.side, s.panels, all, gemm_f32(x, 1, cols), cols, at, rows);
    for (size_t i = 0; s.h && i < rows * cols; i++) s.h[at * cols + i] = gemm_to_bf16(x[i]);
}
static GemmOperand saved_operand(Saved s, size_t cols, size_t all) {
    return s.panels ? gemm_packed(s.panels, all) : gemm_bf16(s.h, 1, cols);
}

/* ------------------------------------------------------------------------------------------------
 * a pass over B x T tokens, run by all compute threads of the worker together. Every thread takes
 * its own blocks of ROWS tokens through everything between two attentions; a barrier stands only
 * before and after attention, where tokens meet. */

/* One pass over a batch. */
typedef struct Pass {
    Gpt *g;
    size_t B, T;
    const int32_t *in, *target; /* (B, T); a target of -1 does not count */
    size_t real;                /* how many count */
    float *logits;              /* NULL, or receives (B, T, V); with targets, their gradient */
    Dropout d;
    int train;  /* logits become gradients, and the backward pass follows */
    int packed; /* the matrices have not changed since the last pass */
} Pass;

/* One compute thread of it. */
typedef struct Thread {
    Gpt *g;
    const Pass *p;
    int ith, nth;
    float *gemm, *wide[3], *thin[2], *head; /* scratch */
} Thread;

static Thread thread_of(Gpt *g, const Pass *p, int ith, int nth) {
    float *s = g->scratch + (size_t)ith * g->thread_floats, *wide = s + gemm_scratch();
    size_t w = scratch_wide(&g->s), C = (size_t)g->s.width;
    float *thin = wide + 3 * w;
    size_t c = ROWS * C;
    return (Thread){g,           p, ith, nth, s, {wide, wide + w, wide + 2 * w}, {thin, thin + c},
                    thin + 2 * c};
}

static void sync_threads(const Thread *t) { team_barrier(t->g->team); }

/* Run f on this thread's blocks of rows. */
static void each_block(const Thread *t, int l,
                       void (*f)(const Thread *t, int l, size_t at, size_t rows)) {
    size_t n = t->p->B * t->p->T, lo, hi;
    slice((n + ROWS - 1) / ROWS, t->ith, t->nth, &lo, &hi);
    for (size_t b = lo; b < hi; b++) f(t, l, b * ROWS, min_size(ROWS, n - b * ROWS));
}

/* ------------------------------------------------------------------------------------------------
 * products with the weights, which are packed once per pass */

static size_t tensor_at(const Gpt *g, int kind, int l) {
    return g->place[(size_t)l * TENSOR_KINDS + (size_t)kind];
}
static int head_kind(const Gpt *g) { return g->s.untied ? HEAD : WTE; }

static void pack_weights(const Thread *t) {
    const Gpt *g = t->g;
    for (size_t i = 0; i < g->tensors; i++) {
        if (!g->forward[i]) continue;
        size_t out = g->tensor[i].blocks * g->tensor[i].rows, in = g->tensor[i].cols;
        const float *w = g->params + g->tensor[i].offset;
        gemm_pack(g->gemm, g->forward[i], gemm_f32(w, in, 1), out, in, t->ith, t->nth);
        if (t->p->train)
            gemm_pack(g->gemm, g->backward[i], gemm_f32(w, 1, in), in, out, t->ith, t->nth);
    }
}

/* out (rows, n) = x (rows, k) W (n, k)^T */
static void linear(const Thread *t, float *out, GemmOperand x, int kind, int l, size_t rows) {
    const Gpt *g = t->g;
    size_t i = tensor_at(g, kind, l), n = g->tensor[i].blocks * g->tensor[i].rows,
           k = g->tensor[i].cols;
    gemm_multiply(g->gemm, out, n, x, gemm_packed(g->forward[i], k), rows, n, k, 0, t->gemm, 0, 1);
}

/* dx (rows, k) = dout (rows, n) W (n, k) */
static void linear_backward(const Thread *t, float *dx, GemmOperand dout, int kind, int l,
                            size_t rows) {
    const Gpt *g = t->g;
    size_t i = tensor_at(g, kind, l), n = g->tensor[i].blocks * g->tensor[i].rows,
           k = g->tensor[i].cols;
    gemm_multiply(g->gemm, dx, k, dout, gemm_packed(g->backward[i], n), rows, k, n, 0, t->gemm, 0,
                  1);
}

/* dW (n, k) = dout^T x over all rows: this thread's slice of it */
static void weight_gradient(const Thread *t, Saved dout, Saved x, int kind, int l) {
    const Gpt *g = t->g;
    size_t i = tensor_at(g, kind, l), n = g->tensor[i].blocks * g->tensor[i].rows,
           k = g->tensor[i].cols;
    size_t all = t->p->B * t->p->T;
    gemm_multiply(g->gemm, grad(g, kind, l), k, saved_operand(dout, n, all),
                  saved_operand(x, k, all), n, k, all, 0, t->gemm, t->ith, t->nth);
}

/* The gradient of a vector from its sums per block, in block order: this thread's slice of it. */
static void add_partials(const Thread *t, int kind, int l, int column, size_t width) {
    const Gpt *g = t->g;
    size_t C = (size_t)g->s.width, n = t->p->B * t->p->T, lo, hi;
    float *d = grad(g, kind, l);
    slice(width * C, t->ith, t->nth, &lo, &hi);
    for (size_t c = lo; d && c < hi; c++) d[c] = 0;
    for (size_t b = 0; d && b * ROWS < n; b++)
        for (size_t c = lo; c < hi; c++)
            d[c] += g->partial[(b * PARTIAL_COLUMNS + (size_t)column) * C + c];
}
static float *partial_of(const Gpt *g, size_t at, int column) {
    return g->partial + (at / ROWS * PARTIAL_COLUMNS + (size_t)column) * (size_t)g->s.width;
}

/* ------------------------------------------------------------------------------------------------
 * attention of one head, ROWS queries at a time against the keys they may see: memory is linear in
 * T, and the upper triangle is hardly computed */

/* What every block of queries needs to know. */
typedef struct Head {
    const Thread *t;
    const GptLayer *a;
    float *lse;     /* (T) */
    size_t at, out; /* of its first row in qkv, and in att */
    size_t T, HS, C;
    uint64_t key;                        /* of the dropout of this sequence and head */
    float *p, *dp;                       /* (ROWS, T) scratch */
    float *keys, *values, *rows, *grads; /* packed (HS, T), packed, packed (T, HS), (T, 3HS) */
} Head;

static Head head_of(const Thread *t, int l, size_t bh) {
    const Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t C = (size_t)g->s.width, NH = (size_t)g->s.heads, HS = C / NH, T = t->p->T;
    size_t all = (size_t)g->s.context, b = bh / NH, h = bh % NH;
    uint64_t key = drop_key(&t->p->d, l, DROP_ATTENTION);
    float *dp = t->head + ROWS * all, *keys = dp + ROWS * all,
          *values = keys + gemm_packed_floats(g->gemm, GEMM_B, all, HS),
          *rows = values + gemm_packed_floats(g->gemm, GEMM_B, all, HS),
          *grads = rows + gemm_packed_floats(g->gemm, GEMM_B, HS, all);
    return (Head){t,
                  a,
                  a->lse + bh * T,
                  b * T * 3 * C + h * HS,
                  b * T * C + h * HS,
                  T,
                  HS,
                  C,
                  key ? sm_hash(key, bh) | 1 : 0,
                  t->head,
                  dp,
                  keys,
                  values,
                  rows,
                  grads};
}

/* q, k or v (0, 1, 2) from row i on, as rows of A or columns of B, and as rows of B. */
static GemmOperand head_part(const Head *h, size_t part, size_t i) {
    return store_operand(h->a->qkv, h->at + i * 3 * h->C + part * h->C, 3 * h->C, 1);
}
static GemmOperand head_rows(const Head *h, size_t part, size_t i) {
    return store_operand(h->a->qkv, h->at + i * 3 * h->C + part * h->C, 1, 3 * h->C);
}

/* p (rows, cols) = probabilities of queries [i0, i0 + rows) over keys [0, cols), before dropout.
 * With `known`, lse is read; otherwise it is computed. */
static void attention_scores(const Head *h, size_t i0, size_t rows, size_t cols, int known) {
    float scale = 1.0f / sqrtf((float)h->HS);
    gemm_multiply(h->t->g->gemm, h->p, cols, head_part(h, 0, i0), gemm_packed(h->keys, h->HS), rows,
                  cols, h->HS, 0, h->t->gemm, 0, 1);
    for (size_t i = 0; i < rows;
         i++) { /* to a multiple of 16 keys, of which those behind i count 0 */
        float *restrict p = h->p + i * cols, sum = 0;
        size_t n = i0 + i + 1, m = min_size((n + 15) / 16 * 16, cols);
        for (size_t j = n; j < m; j++) p[j] = -INFINITY;
        memset(p + m, 0, (cols - m) * sizeof *p);
        if (known) {
            float lse = h->lse[i0 + i];
            for (size_t j = 0; j < m; j++) p[j] = fast_exp(p[j] * scale - lse);
            continue;
        }
        float largest = row_max(p, m);
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < m; j++) {
            p[j] = fast_exp((p[j] - largest) * scale);
            sum += p[j];
        }
        h->lse[i0 + i] = largest * scale + logf(sum);
        sum = 1.0f / sum;
        for (size_t j = 0; j < m; j++) p[j] *= sum;
    }
}

static void drop_scores(const Head *h, float *p, size_t i0, size_t rows, size_t cols) {
    for (size_t i = 0; i < rows; i++)
        drop(p + i * cols, cols, &h->t->p->d, h->key, (i0 + i) * h->T);
}

static void attention_forward(const Head *h) {
    const Gemm *G = h->t->g->gemm;
    gemm_pack(G, h->keys, head_part(h, 1, 0), h->T, h->HS, 0, 1);
    gemm_pack(G, h->rows, head_rows(h, 2, 0), h->HS, h->T, 0, 1);
    for (size_t i0 = 0; i0 < h->T; i0 += ROWS) {
        size_t rows = min_size(ROWS, h->T - i0), cols = i0 + rows, at = h->out + i0 * h->C;
        View out = store_open(h->a->att, at, h->C, h->HS, h->grads);
        attention_scores(h, i0, rows, cols, 0);
        drop_scores(h, h->p, i0, rows, cols);
        gemm_multiply(G, out.x, out.ld, gemm_f32(h->p, cols, 1), gemm_packed(h->rows, h->T), rows,
                      h->HS, cols, 0, h->t->gemm, 0, 1);
        store_close(h->a->att, at, h->C, out, rows, h->HS);
    }
}

/* dqkv of this head from datt. The last block of queries sees all keys, so it goes first and the
 * others add to what it wrote. */
static void attention_backward(const Head *h) {
    const Gpt *g = h->t->g;
    size_t C = h->C, HS = h->HS, T = h->T, blocks = (T + ROWS - 1) / ROWS;
    float scale = 1.0f / sqrtf((float)HS);
    View d = store_open(g->dqkv, h->at, 3 * C, 3 * HS, h->grads);
    size_t part = d.ld / 3; /* from dq to dk, from dk to dv */
    float *dk = d.x + part, *dv = d.x + 2 * part;
    gemm_pack(g->gemm, h->keys, head_part(h, 1, 0), T, HS, 0, 1);
    gemm_pack(g->gemm, h->values, head_part(h, 2, 0), T, HS, 0, 1);
    gemm_pack(g->gemm, h->rows, head_rows(h, 1, 0), HS, T, 0, 1);
    for (size_t block = blocks; block-- > 0;) {
        size_t i0 = block * ROWS, rows = min_size(ROWS, T - i0), cols = i0 + rows;
        int add = block + 1 < blocks;
        GemmOperand p = gemm_f32(h->p, 1, cols),
                    dout_rows = store_operand(g->datt, h->out + i0 * C, C, 1);
        GemmOperand dout = store_operand(g->datt, h->out + i0 * C, 1, C);
        attention_scores(h, i0, rows, cols, 1);
        gemm_multiply(g->gemm, h->dp, cols, dout_rows, gemm_packed(h->values, HS), rows, cols, HS,
                      0, h->t->gemm, 0, 1);
        drop_scores(h, h->p, i0, rows, cols); /* dv wants the dropped probabilities */
        gemm_multiply(g->gemm, dv, d.ld, p, dout, cols, HS, rows, add, h->t->gemm, 0, 1);
        drop_scores(h, h->dp, i0, rows, cols);
        if (h->key) attention_scores(h, i0, rows, cols, 1); /* ds wants the kept ones */
        for (size_t i = 0; i < rows; i++) {
            float *restrict pi = h->p + i * cols, *restrict dp = h->dp + i * cols, dot = 0;
#pragma omp simd reduction(+ : dot)
            for (size_t j = 0; j < cols; j++) dot += pi[j] * dp[j];
            for (size_t j = 0; j < cols; j++) pi[j] *= (dp[j] - dot) * scale;
        }
        gemm_multiply(g->gemm, d.x + i0 * d.ld, d.ld, gemm_f32(h->p, cols, 1),
                      gemm_packed(h->rows, T), rows, HS, cols, 0, h->t->gemm, 0, 1);
        gemm_multiply(g->gemm, dk, d.ld, p, head_rows(h, 0, i0), cols, HS, rows, add, h->t->gemm, 0,
                      1);
    }
    for (size_t k = 0; k < 3; k++)
        store_close(g->dqkv, h->at + k * C, 3 * C, (View){d.x + k * part, d.ld}, T, HS);
}

/* Every thread takes its share of all heads. */
static void each_head(const Thread *t, int l, void (*f)(const Head *h)) {
    size_t lo, hi;
    slice(t->p->B * (size_t)t->g->s.heads, t->ith, t->nth, &lo, &hi);
    for (size_t bh = lo; bh < hi; bh++) {
        Head h = head_of(t, l, bh);
        f(&h);
    }
}

/* ------------------------------------------------------------------------------------------------
 * backward, block by block. Every gradient is written, not added to: a step has one pass. */

/* dres += gradient through a LayerNorm of `in`; sums for its weight and bias, which stand at `column`. */
static void norm_backward(const Thread *t, const float *dout, const float *in, const float *mean,
                          const float *scale, const float *w, int column, size_t at, size_t rows) {
    size_t C = (size_t)t->g->s.width;
    float *dw = partial_of(t->g, at, column), *db = t->g->s.bias ? dw + C : NULL;
    memset(dw, 0, 2 * C * sizeof *dw);
    for (size_t r = 0; r < rows; r++)
        layernorm_row_backward(t->g->dres + (at + r) * C, dw, db, dout + r * C, in + (at + r) * C,
                               mean[at + r], scale[at + r], w, C);
}

static void save_block(const Thread *t, Saved s, const float *x, size_t at, size_t rows,
                       size_t cols) {
    if (t->p->train) save_rows(t->g, s, x, at, rows, cols, t->p->B * t->p->T);
}

/* What of dres enters a branch, x: a copy, with the branch's dropout; sums for the last bias. */
static void enter_branch(const Thread *t, Saved s, float *x, uint64_t key, int column, size_t at,
                         size_t rows) {
    size_t C = (size_t)t->g->s.width;
    memcpy(x, t->g->dres + at * C, rows * C * sizeof *x);
    drop(x, rows * C, &t->p->d, key, at * C);
    if (t->g->s.bias) column_sums(partial_of(t->g, at, column), x, rows, C);
    save_block(t, s, x, at, rows, C);
}

/* From the end of layer l to its attention: dres passes the MLP, datt is made. */
static void mlp_backward(const Thread *t, int l, size_t at, size_t rows) {
    Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t C = (size_t)g->s.width, W = 4 * C;
    float *dout = t->thin[0], *dln = t->thin[1], *dfc = t->wide[0], *gelu = t->wide[1];
    enter_branch(t, g->dmlp, dout, drop_key(&t->p->d, l, DROP_MLP), PARTIAL_OUTB, at, rows);
    linear_backward(t, dfc, gemm_f32(dout, C, 1), OUTW, l, rows);
    gelu_row_backward(dfc, gelu, store_read(a->fc, at * W, rows * W, t->wide[2]), rows * W);
    if (g->s.bias) column_sums(partial_of(g, at, PARTIAL_FCB), dfc, rows, W);
    save_block(t, g->dfc, dfc, at, rows, W);
    save_block(t, g->gelu, gelu, at, rows, W);
    linear_backward(t, dln, gemm_f32(dfc, W, 1), FCW, l, rows);
    norm_backward(t, dln, a->mid, a->mean2, a->scale2, param(g, LN2W, l), PARTIAL_LN2W, at, rows);
    enter_branch(t, g->dproj, dout, drop_key(&t->p->d, l, DROP_PROJECTION), PARTIAL_ATTB, at, rows);
    save_block(t, g->att_saved, store_read(a->att, at * C, rows * C, t->thin[1]), at, rows, C);
    View datt = store_open(g->datt, at * C, C, C, t->thin[1]);
    linear_backward(t, datt.x, gemm_f32(dout, C, 1), ATTW, l, rows);
    store_close(g->datt, at * C, C, datt, rows, C);
}

/* From the attention of layer l to its beginning, and on to the attention below. */
static void qkv_backward(const Thread *t, int l, size_t at, size_t rows) {
    Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t C = (size_t)g->s.width, W = 3 * C;
    const float *dqkv = store_read(g->dqkv, at * W, rows * W, t->wide[0]);
    if (g->s.bias) column_sums(partial_of(g, at, PARTIAL_QKVB), dqkv, rows, W);
    save_block(t, g->dqkv_saved, dqkv, at, rows, W);
    linear_backward(t, t->thin[1], gemm_f32(dqkv, W, 1), QKVW, l, rows);
    norm_backward(t, t->thin[1], a->in, a->mean1, a->scale1, param(g, LN1W, l), PARTIAL_LN1W, at,
                  rows);
    if (l > 0)
        mlp_backward(t, l - 1, at, rows);
    else
        drop(g->dres + at * C, rows * C, &t->p->d, drop_key(&t->p->d, 0, DROP_EMBEDDING), at * C);
}

/* From the loss to the end of the last layer. */
static void head_backward(const Thread *t, const float *dlogits, size_t at, size_t rows) {
    Gpt *g = t->g;
    size_t C = (size_t)g->s.width, V = (size_t)g->s.vocab;
    save_block(t, g->dlogits, dlogits, at, rows, V);
    linear_backward(t, t->thin[1], gemm_f32(dlogits, V, 1), head_kind(g), 0, rows);
    memset(g->dres + at * C, 0, rows * C * sizeof(float));
    norm_backward(t, t->thin[1], g->last, g->meanf, g->scalef, param(g, LNFW, 0), PARTIAL_LNFW, at,
                  rows);
}

/* Gradients of the embeddings; the head's has been written to a tied one. This thread's columns. */
static void embedding_gradient(const Thread *t) {
    Gpt *g = t->g;
    const Pass *p = t->p;
    size_t C = (size_t)g->s.width, lo, hi;
    float *dwte = grad(g, WTE, 0), *dwpe = grad(g, WPE, 0);
    slice(C, t->ith, t->nth, &lo, &hi);
    for (size_t v = 0; g->s.untied && v < (size_t)g->s.vocab; v++)
        memset(dwte + v * C + lo, 0, (hi - lo) * sizeof(float));
    for (size_t i = 0; i < (size_t)g->s.context; i++)
        memset(dwpe + i * C + lo, 0, (hi - lo) * sizeof(float));
    for (size_t r = 0; r < p->B * p->T; r++)
        for (size_t c = lo; c < hi; c++) {
            dwte[(size_t)p->in[r] * C + c] += g->dres[r * C + c];
            dwpe[r % p->T * C + c] += g->dres[r * C + c];
        }
}

/* Gradients that layer l's attention and what is below it have left. */
static void attention_gradients(const Thread *t, int l) {
    weight_gradient(t, t->g->dqkv_saved, t->g->layer[l].ln1, QKVW, l);
    add_partials(t, QKVB, l, PARTIAL_QKVB, 3);
    add_partials(t, LN1W, l, PARTIAL_LN1W, 1);
    add_partials(t, LN1B, l, PARTIAL_LN1B, 1);
}

/* Those that its MLP and projection have left. */
static void mlp_gradients(const Thread *t, int l) {
    const Gpt *g = t->g;
    weight_gradient(t, g->dmlp, g->gelu, OUTW, l);
    weight_gradient(t, g->dfc, g->layer[l].ln2, FCW, l);
    weight_gradient(t, g->dproj, g->att_saved, ATTW, l);
    add_partials(t, OUTB, l, PARTIAL_OUTB, 1);
    add_partials(t, FCB, l, PARTIAL_FCB, 4);
    add_partials(t, LN2W, l, PARTIAL_LN2W, 1);
    add_partials(t, LN2B, l, PARTIAL_LN2B, 1);
    add_partials(t, ATTB, l, PARTIAL_ATTB, 1);
}

/* After forward, which ends with mlp_backward of the last layer. */
static void backward(const Thread *t) {
    Gpt *g = t->g;
    weight_gradient(t, g->dlogits, g->lnf, head_kind(g), 0);
    add_partials(t, LNFW, 0, PARTIAL_LNFW, 1);
    add_partials(t, LNFB, 0, PARTIAL_LNFB, 1);
    for (int l = g->s.layers - 1; l >= 0; l--) {
        if (l + 1 < g->s.layers) attention_gradients(t, l + 1);
        mlp_gradients(t, l);
        each_head(t, l, attention_backward);
        sync_threads(t);
        each_block(t, l, qkv_backward);
        sync_threads(t);
    }
    attention_gradients(t, 0);
    embedding_gradient(t);
}

/* ------------------------------------------------------------------------------------------------
 * forward, block by block */

/* qkv of layer l from its LayerNorm */
static void qkv_forward(const Thread *t, const float *ln, int l, size_t at, size_t rows) {
    const Gpt *g = t->g;
    const GptLayer *a = &g->layer[l];
    size_t C = (size_t)g->s.width, W = 3 * C;
    View qkv = store_open(a->qkv, at * W, W, W, t->wide[0]);
    save_block(t, a->ln1, ln, at, rows, C);
    linear(t, qkv.x, gemm_f32(ln, C, 1), QKVW, l, rows);
    add_bias(qkv.x, param(g, QKVB, l), rows, W);
    store_close(a->qkv, at * W, W, qkv, rows, W);
}

/* From the tokens to the first attention. */
static void embed(const Thread *t, int l, size_t at, size_t rows) {
    Gpt *g = t->g;
    const Pass *p = t->p;
    GptLayer *a = &g->layer[l];
    size_t C = (size_t)g->s.width;
    const float *wte = param(g, WTE, 0), *wpe = param(g, WPE, 0);
    for (size_t r = at; r < at + rows; r++) {
        float *in = a->in + r * C;
        for (size_t c = 0; c < C; c++)
            in[c] = wte[(size_t)p->in[r] * C + c] + wpe[r % p->T * C + c];
        drop(in, C, &p->d, drop_key(&p->d, 0, DROP_EMBEDDING), r * C);
        layernorm_row(t->thin[1] + (r - at) * C, &a->mean1[r], &a->scale1[r], in, param(g, LN1W, 0),
                      param(g, LN1B, 0), C);
    }
    qkv_forward(t, t->thin[1], l, at, rows);
}

/* Logits, the loss, and the logits' gradient in their place. */
static void head_forward(const Thread *t, const float *ln, size_t at, size_t rows) {
    Gpt *g = t->g;
    const Pass *p = t->p;
    size_t C = (size_t)g->s.width, V = (size_t)g->s.vocab;
    float *logits = p->logits ? p->logits + at * V : t->wide[0];
    linear(t, logits, gemm_f32(ln, C, 1), head_kind(g), 0, rows);
    for (size_t r = 0; p->target && r < rows; r++)
        g->losses[at + r] =
            softmax_cross_entropy_row(logits + r * V, V, p->target[at + r], 1.0f / (float)p->real);
    if (!p->train) return;
    save_block(t, g->lnf, ln, at, rows, C);
    head_backward(t, logits, at, rows);
}

/* From the attention of layer l to the next one, or to the loss; then, when training, back to the
 * attention of the last layer. */
static void mlp_forward(const Thread *t, int l, size_t at, size_t rows) {
    Gpt *g = t->g;
    const Pass *p = t->p;
    GptLayer *a = &g->layer[l], *next = a + 1;
    int top = l + 1 == g->s.layers, n = top ? 0 : l + 1; /* the next norm's layer */
    size_t C = (size_t)g->s.width, W = 4 * C;
    float *step = t->thin[0], *ln = t->thin[1], *gelu = t->wide[1];
    linear(t, step, store_operand(a->att, at * C, C, 1), ATTW, l, rows);
    residual_norm(a->mid + at * C, ln, a->mean2 + at, a->scale2 + at, a->in + at * C, step,
                  param(g, ATTB, l), param(g, LN2W, l), param(g, LN2B, l), rows, C, &p->d,
                  drop_key(&p->d, l, DROP_PROJECTION), at * C);
    save_block(t, a->ln2, ln, at, rows, C);
    View fc = p->train ? store_open(a->fc, at * W, W, W, t->wide[0]) : (View){t->wide[0], W};
    linear(t, fc.x, gemm_f32(ln, C, 1), FCW, l, rows);
    add_bias(fc.x, param(g, FCB, l), rows, W);
    gelu_row(gelu, fc.x, rows * W);
    if (p->train) store_close(a->fc, at * W, W, fc, rows, W);
    linear(t, step, gemm_f32(gelu, W, 1), OUTW, l, rows);
    residual_norm((top ? g->last : next->in) + at * C, ln, (top ? g->meanf : next->mean1) + at,
                  (top ? g->scalef : next->scale1) + at, a->mid + at * C, step, param(g, OUTB, l),
                  param(g, top ? LNFW : LN1W, n), param(g, top ? LNFB : LN1B, n), rows, C, &p->d,
                  drop_key(&p->d, l, DROP_MLP), at * C);
    if (!top) {
        qkv_forward(t, ln, l + 1, at, rows);
        return;
    }
    head_forward(t, ln, at, rows);
    if (p->train) mlp_backward(t, l, at, rows);
}

static void forward(const Thread *t) {
    if (!t->p->packed) {
        pack_weights(t);
        sync_threads(t);
    }
    each_block(t, 0, embed);
    sync_threads(t);
    for (int l = 0; l < t->g->s.layers; l++) {
        each_head(t, l, attention_forward);
        sync_threads(t);
        each_block(t, l, mlp_forward);
        sync_threads(t);
    }
}

static void pass_on_thread(void *context, int ith, int nth) {
    const Pass *p = context;
    Thread t = thread_of(p->g, p, ith, nth);
    forward(&t);
    if (p->train) backward(&t);
}

/* Loss of a batch, its gradients when training; returns the sum of the losses of real targets in
 * nats. */
static double gpt_pass(Gpt *g, Pass p) {
    double sum = 0;
    p.g = g;
    assert(p.B <= g->B && p.T <= (size_t)g->s.context);
    for (size_t r = 0; p.target && r < p.B * p.T; r++) p.real += p.target[r] >= 0;
    team_run(g->team, pass_on_thread, &p);
    for (size_t r = 0; p.target && r < p.B * p.T; r++) sum += (double)g->losses[r];
    return sum;
}

/* ------------------------------------------------------------------------------------------------
 * sampling, one token at a time over cached keys and values */

/* Make ready for gpt_next: pack the matrices, empty the cache. */
static void gpt_begin_sample(Gpt *g) {
    Pass p = {.g = g};
    Thread t = thread_of(g, &p, 0, 1);
    pack_weights(&t);
    free(g->cache);
    g->cache = floats((size_t)g->s.layers * 2 * (size_t)g->s.context * (size_t)g->s.width);
}

/* att (C) = attention of the last of n tokens; qkv is its own, keys and values are (n, C). */
static void attend_last(const Gpt *g, float *att, const float *qkv, const float *keys,
                        const float *values, size_t n, float *scores) {
    size_t C = (size_t)g->s.width, HS = C / (size_t)g->s.heads;
    for (size_t h = 0; h < C; h += HS) {
        float sum = 0;
        for (size_t j = 0; j < n; j++) {
            float dot = 0;
            for (size_t c = h; c < h + HS; c++) dot += qkv[c] * keys[j * C + c];
            scores[j] = dot / sqrtf((float)HS);
        }
        float largest = row_max(scores, n);
        for (size_t j = 0; j < n; j++) sum += scores[j] = fast_exp(scores[j] - largest);
        for (size_t c = h; c < h + HS; c++) att[c] = 0;
        for (size_t j = 0; j < n; j++)
            for (size_t c = h; c < h + HS; c++) att[c] += scores[j] / sum * values[j * C + c];
    }
}

/* Logits (V) after `token` at position `at`, whose keys and values join the cache. One thread. */
static void gpt_next(Gpt *g, int32_t token, size_t at, float *logits) {
    size_t C = (size_t)g->s.width, T = (size_t)g->s.context;
    Thread t = thread_of(g, NULL, 0, 1);
    float *x = g->last, *ln = t.thin[0], *step = t.thin[1], *wide = t.wide[0], *gelu = t.wide[1],
          mean, scale;
    GemmOperand in = gemm_f32(ln, C, 1);
    Dropout none = {0};
    for (size_t c = 0; c < C; c++)
        x[c] = param(g, WTE, 0)[(size_t)token * C + c] + param(g, WPE, 0)[at * C + c];
    layernorm_row(ln, &mean, &scale, x, param(g, LN1W, 0), param(g, LN1B, 0), C);
    for (int l = 0; l < g->s.layers; l++) {
        float *keys = g->cache + (size_t)l * 2 * T * C, *values = keys + T * C;
        int top = l + 1 == g->s.layers, n = top ? 0 : l + 1;
        linear(&t, wide, in, QKVW, l, 1);
        add_bias(wide, param(g, QKVB, l), 1, 3 * C);
        memcpy(keys + at * C, wide + C, C * sizeof(float));
        memcpy(values + at * C, wide + 2 * C, C * sizeof(float));
        attend_last(g, ln, wide, keys, values, at + 1, t.head);
        linear(&t, step, in, ATTW, l, 1);
        residual_norm(x, ln, &mean, &scale, x, step, param(g, ATTB, l), param(g, LN2W, l),
                      param(g, LN2B, l), 1, C, &none, 0, 0);
        linear(&t, wide, in, FCW, l, 1);
        add_bias(wide, param(g, FCB, l), 1, 4 * C);
        gelu_row(gelu, wide, 4 * C);
        linear(&t, step, gemm_f32(gelu, 4 * C, 1), OUTW, l, 1);
        residual_norm(x, ln, &mean, &scale, x, step, param(g, OUTB, l),
                      param(g, top ? LNFW : LN1W, n), param(g, top ? LNFB : LN1B, n), 1, C, &none,
                      0, 0);
    }
    linear(&t, logits, in, head_kind(g), 0, 1);
}

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* A token from softmax(logits / temperature) over the top_k likeliest; u in [0,1); sorted is (V)
 * scratch. */
static int32_t sample_token(const float *logits, float *sorted, size_t V, double temperature,
                            size_t top_k, double u) {
    size_t best = 0;
    for (size_t v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    if (temperature <= 0) return (int32_t)best;
    float least = -INFINITY;
    if (top_k > 0 && top_k < V) {
        memcpy(sorted, logits, V * sizeof *sorted);
        qsort(sorted, V, sizeof *sorted, descending);
        least = sorted[top_k - 1];
    }
    double sum = 0, seen = 0;
    for (size_t v = 0; v < V; v++)
        if (logits[v] >= least) sum += exp((double)(logits[v] - logits[best]) / temperature);
    for (size_t v = 0; v < V; v++) {
        if (!(logits[v] >= least)) continue;
        seen += exp((double)(logits[v] - logits[best]) / temperature);
        if (seen >= u * sum) return (int32_t)v;
    }
    return (int32_t)best;
}

/* Text on its way to stdout: bytes as they are, except that a terminal never receives control
 * sequences from them. */
typedef struct Printer {
    int terminal;
    size_t n;
    char held[DATA_DECODED + 4]; /* of a character whose other bytes are tokens still to come */
} Printer;

static void print_text(Printer *p, const char *text, size_t n, int last) {
    if (!p->terminal) fwrite(text, 1, n, stdout);
    if (!p->terminal) return;
    memcpy(p->held + p->n, text, n);
    p->n += n;
    while (p->n) {
        unsigned char c = (unsigned char)p->held[0];
        size_t length = data_printable(p->held, p->n);
        size_t whole = c < 0xc2 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 1;
        if (!length && p->n < whole && !last) return;
        if (!length) p->held[0] = c == '\n' || c == '\t' ? (char)c : '?';
        if (!length) length = 1;
        fwrite(p->held, 1, length, stdout);
        p->n -= length;
        memmove(p->held, p->held + length, p->n);
    }
}

static void put_token(Printer *p, const DataVocab *vocab, int32_t token) {
    char text[DATA_DECODED];
    print_text(p, text, data_decode(vocab, (unsigned)token, text), 0);
}

/* Write o->sample tokens after the prompt. When the context is full, go on from its last half. */
static int write_sample(Gpt *g, const DataVocab *vocab, const Options *o, const Comm *c) {
    size_t T = (size_t)g->s.context, V = (size_t)g->s.vocab, room = strlen(o->prompt) + 1, at = 0;
    uint16_t *prompt = allocate(room * sizeof *prompt);
    int32_t *window = allocate((T + 1) * sizeof *window);
    float *logits = floats(V), *sorted = floats(V);
    Printer printer = {.terminal = isatty(1)};
    int64_t length = data_encode(vocab, o->prompt, prompt, room);
    if (vocab->kind == DATA_GPT2 && length < 0) length = 1, prompt[0] = V > 50256 ? 50256 : 0;
    if (length < 0 && strcmp(o->prompt, "\n") == 0)
        length = 0; /* the default, in a text of one line */
    if (length < 0)
        die(EXIT_USAGE, "--prompt has at byte %lld a character that the model has never seen",
            (long long)-length);
    if (length == 0) length = 1, prompt[0] = 0;
    size_t start = (size_t)length > T ? (size_t)length - T : 0, known = (size_t)length - start;
    for (size_t i = 0; i < (size_t)length; i++) put_token(&printer, vocab, prompt[i]);
    for (size_t i = 0; i < known; i++) window[i] = prompt[start + i];
    gpt_begin_sample(g);
    for (long made = 0; made < o->sample && !comm_stop_requested(c); made++) {
        if (known > T) {
            memmove(window, window + known - (T + 1) / 2, (T + 1) / 2 * sizeof *window);
            known = (T + 1) / 2;
            at = 0;
        }
        for (; at < known; at++) gpt_next(g, window[at], at, logits);
        double u =
            (double)(sm_hash(sm_key((uint64_t)o->seed, 0x73616d70u, 0), (uint64_t)made) >> 11) *
            0x1p-53;
        int32_t token = sample_token(logits, sorted, V, o->temperature, (size_t)o->top_k, u);
        put_token(&printer, vocab, token);
        window[known++] = token;
    }
    print_text(&printer, "\n", printer.terminal ? 1 : 0, 1);
    free(prompt), free(window), free(logits), free(sorted);
    if (fflush(stdout) || ferror(stdout))
        die(EXIT_FAILED, "cannot write the sample: %s", strerror(errno));
    int stopped = comm_stop_requested(c);
    return stopped ? 128 + stopped : EXIT_OK;
}

/* ------------------------------------------------------------------------------------------------
 * a run, as all workers know it, and one worker */

typedef struct Run {
    Options o;
    SmConfig config;
    EfLink up, down; /* what config points to, with --method ef21-... */
    DmGraph graph;   /* and with methods that gossip */
    Noise noise;     /* of --gradient-noise; none without */
    GptShape shape;
    DataSet data;    /* empty for a sample */
    DataVocab vocab; /* of a checkpoint, for a sample */
    char *vocab_text;
    StFile
        checkpoint; /* what a resumed run, a sample or an evaluation begins with; zeros otherwise */
    char folder[PATH_SIZE];       /* where that checkpoint lies */
    int saved_workers;            /* that wrote it */
    char topology[PATH_SIZE];     /* of the survivors' graph, when it is a file */
    CommPlace place;              /* among the ranks of an mpirun */
    int slot;                     /* the N of that folder .last.N, or -1 */
    double per_byte, per_message; /* of --link; 0 without */
} Run;

/* Does a server keep a model that is not the workers'? */
static int has_exact(const Run *run) { return run->config.down && !run->down.row->replaces; }

enum { SPARK = 60 }; /* columns of the sparkline */

/* What a worker goes on from when another one dies: its model and state at the start of a step. */
typedef struct Snapshot {
    float *memory, *params;
    SmState *array; /* of the optimizer; data lie in memory */
    size_t arrays;
    int workers;
    int16_t member[COMM_MAX_WORKERS];
    long step, evaluated;
    double val, best;
} Snapshot;

typedef struct Worker {
    Run *run;
    Run *own;                      /* what run points to once the group has changed */
    double *mixing;                /* its graph's weights */
    int node_id[COMM_MAX_WORKERS]; /* of the graph's nodes: ranks at the start */
    int first_liar;                /* its rank at the start */
    void *arena;                   /* the optimizer's */
    Snapshot snapshot;
    Comm *c;
    Gpt g;
    SmOptimizer *optimizer;
    int32_t *in, *target;    /* (B, T) */
    double *window_loss;     /* one sum per validation window */
    double *tensor_square;   /* squared norm of each tensor's gradient */
    long step, evaluated;    /* steps done; the last step that was evaluated, -1 for none */
    double val, best, train; /* nats per token; val and best are NaN before the first evaluation */
    double seconds, started; /* spent by earlier runs; when this one began */
    double shown;            /* when progress was last told */
    long first;              /* step at which this one began */
    uint64_t sent, received,
        messages;      /* training payload of the largest sender, as last gathered */
    uint64_t up, down; /* the part of it that went to owners of shards, and came from them */
    double agreement;
    float *mean, *gathered; /* gossip: the mean model, and the shards it is made of */
    float *exact;           /* ef21 with --down: the server's model */
    double exact_val, gap;  /* its loss, |X - W| / |X| */
    double consensus;       /* gossip: root of the sum of squared distances to the mean */
    double node_val[3];     /* least, mean and greatest loss over the nodes */
    int warned;             /* X and W parted, and the user was told */
    int saved[2];           /* has this run replaced OUT/best, OUT/last? */
    FILE *log;
    double curve[SPARK], counted[SPARK]; /* sums of training losses over the run, how many */
} Worker;

static double elapsed(const Worker *w) { return w->seconds + now() - w->started; }

static uint64_t training_bytes(const uint64_t *count) {
    return count[COMM_MATRICES] + count[COMM_AUXILIARY] + count[COMM_CONTROL];
}

/* Index of the first tensor whose parameters are not finite, or `tensors`. */
static size_t first_not_finite(const Gpt *g) {
    size_t i = 0;
    while (i < g->tensors && sm_finite(g->params + g->tensor[i].offset, tensor_size(&g->tensor[i])))
        i++;
    return i;
}

__attribute__((noreturn)) static void die_diverged(const Worker *w, size_t tensor, double loss) {
    die(EXIT_DIVERGED, "training diverged at step %ld: %s (loss %g); lower --lr or --aux-lr",
        w->step, w->g.tensor[tensor].name, loss);
}

/* Factor on the peak rate at a step (counted from 0). */
static double schedule(const Options *o, long step) {
    if (step < o->warmup) return (double)(step + 1) / (double)(o->warmup + 1);
    double span = (double)(o->steps - o->warmup),
           x = span > 0 ? (double)(step - o->warmup) / span : 0, low = o->final_lr;
    if (strcmp(o->schedule, "gluon") == 0) return pow((double)step + 1, -0.75);
    if (strcmp(o->schedule, "constant") == 0) return 1;
    if (strcmp(o->schedule, "cosine") == 0)
        return low + (1 - low) * 0.5 * (1 + cos(3.141592653589793 * x));
    if (strcmp(o->schedule, "wsd") == 0)
        x = x < 1 - o->cooldown ? 0 : (x - (1 - o->cooldown)) / o->cooldown;
    return low + (1 - low) * (1 - x);
}

/* ------------------------------------------------------------------------------------------------
 * evaluation: the whole split in consecutive windows, shared out, summed in window order */

/* Losses of windows first .. last - 1 under params into window_loss; -1 when a signal cuts it
 * short. */
static void evaluate_windows(Worker *w, float *params, size_t first, size_t last) {
    const DataSet *data = &w->run->data;
    size_t T = (size_t)w->g.s.context;
    float *own = w->g.params;
    w->g.params = params;
    for (size_t at = first; at < last; at += w->g.B) {
        size_t B = min_size(w->g.B, last - at);
        if (comm_stop_requested(w->c)) {
            for (size_t i = at; i < last; i++) w->window_loss[i] = -1;
            break;
        }
        for (size_t b = 0; b < B; b++) {
            int64_t real = data_val_window(data, T, at + b, w->in + b * T, w->target + b * T);
            if (real < 0) die(EXIT_FAILED, "%s: %s", w->run->o.data, data_strerror((int)real));
        }
        gpt_pass(&w->g,
                 (Pass){.B = B, .T = T, .in = w->in, .target = w->target, .packed = at > first});
        for (size_t b = 0; b < B; b++) {
            w->window_loss[at + b] = 0;
            for (size_t t = 0; t < T; t++) w->window_loss[at + b] += (double)w->g.losses[b * T + t];
        }
    }
    w->g.params = own;
}

/* Mean loss of a model into *loss; returns 0 when a signal cut it short. All workers share the work
 * on one model, or each evaluates its own alone. */
static int evaluate(Worker *w, float *params, int alone, double *loss) {
    size_t windows = (size_t)data_val_windows(&w->run->data, (size_t)w->g.s.context),
           cuts[COMM_MAX_WORKERS + 1];
    size_t size = (size_t)w->c->size, rank = (size_t)w->c->rank;
    assert(size >= 1 && rank < size);
    for (size_t j = 0; j <= size; j++) cuts[j] = windows * j / size;
    evaluate_windows(w, params, alone ? 0 : cuts[rank], alone ? windows : cuts[rank + 1]);
    for (size_t j = 0; j <= size; j++) cuts[j] *= sizeof(double);
    if (!alone) comm_allgather(w->c, w->window_loss, cuts, COMM_OTHER);
    double sum = 0;
    for (size_t i = 0; i < windows; i++) {
        if (w->window_loss[i] < 0) return 0;
        sum += w->window_loss[i];
    }
    *loss = sum / (double)(w->run->data.val_tokens - 1);
    return 1;
}

/* ------------------------------------------------------------------------------------------------
 * models that are not a worker's own: the mean of nodes that gossip, the server's exact one */

static int gossips(const Worker *w) { return sm_gossips(w->run->config.method); }

/* The model that a run is judged by: W, or the mean over nodes, made by all of them together. */
static float *deployed(Worker *w) {
    size_t P = w->g.parameters, cuts[COMM_MAX_WORKERS + 1], size = (size_t)w->c->size;
    assert(size > 0);
    if (!w->mean) return w->g.params;
    for (size_t j = 0; j <= size; j++) cuts[j] = P * j / size * sizeof(float);
    size_t first = cuts[w->c->rank] / sizeof(float),
           mine = cuts[w->c->rank + 1] / sizeof(float) - first;
    comm_alltoall(w->c, w->g.params, cuts, w->gathered, COMM_OTHER);
    for (size_t i = 0; i < mine; i++) {
        double sum = 0;
        for (size_t j = 0; j < size; j++) sum += (double)w->gathered[j * mine + i];
        w->mean[first + i] = (float)(sum / (double)size);
    }
    comm_allgather(w->c, w->mean, cuts, COMM_OTHER);
    return w->mean;
}

/* Distance of the nodes from their mean: sqrt(sum_i |X_i - mean|^2). */
static double consensus_distance(Worker *w) {
    const float *mean = deployed(w);
    double sum = 0, all[COMM_MAX_WORKERS];
    for (size_t i = 0; i < w->g.parameters; i++) {
        double d = (double)w->g.params[i] - (double)mean[i];
        sum += d * d;
    }
    comm_gather(w->c, &sum, sizeof sum, all, COMM_OTHER);
    sum = 0;
    for (int j = 0; j < w->c->size; j++) sum += all[j];
    return sqrt(sum);
}

/* The server's exact model X into w->exact, and |X - W| / |X|; 0 when X is W. */
static int exact_model(Worker *w) {
    if (!w->exact || !sm_optimizer_exact(w->optimizer, w->exact, w->g.params, (uint64_t)w->step))
        return 0;
    double apart = 0, length = 0;
    for (size_t i = 0; i < w->g.parameters; i++) {
        double x = (double)w->exact[i], d = x - (double)w->g.params[i];
        apart += d * d, length += x * x;
    }
    w->gap = sqrt(apart / length);
    return 1;
}

/* Least, mean and greatest loss over the nodes' own models; returns 0 when a signal cut it short. */
static int evaluate_nodes(Worker *w) {
    double mine = -1, all[COMM_MAX_WORKERS];
    if (!evaluate(w, w->g.params, 1, &mine)) mine = -1;
    comm_gather(w->c, &mine, sizeof mine, all, COMM_OTHER);
    w->node_val[0] = w->node_val[2] = all[0];
    w->node_val[1] = 0;
    for (int j = 0; j < w->c->size; j++) {
        w->node_val[0] = fmin(w->node_val[0], all[j]);
        w->node_val[1] += all[j] / w->c->size;
        w->node_val[2] = fmax(w->node_val[2], all[j]);
    }
    return w->node_val[0] >= 0;
}

/* ------------------------------------------------------------------------------------------------
 * checkpoints. OUT/last is a link to one of the folders OUT/.last.0 .. .last.K-1, and OUT/best to one
 * of two: the generations. A save empties the oldest, fills it, and swaps the link by rename, all of
 * it synced in that order: a complete checkpoint stands there at every instant. A generation is whole
 * when every file in it has its checksum and all are of one step. */

__attribute__((format(printf, 2, 3))) static void path_of(char *out, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(out, PATH_SIZE, format, arguments);
    va_end(arguments);
    if (n < 0 || n >= PATH_SIZE)
        die(EXIT_FAILED, "a path is longer than %d bytes: take a shorter --out", PATH_SIZE - 1);
}

/* A growing list of metadata; texts live as long as the list. */
typedef struct Meta {
    StPair pair[FLAG_COUNT + 24];
    char text[FLAG_COUNT + 24][64];
    size_t n;
} Meta;

static void meta_add(Meta *m, const char *key, const char *value) {
    assert(m->n < FLAG_COUNT + 24);
    m->pair[m->n++] = (StPair){key, value};
}
static void meta_whole(Meta *m, const char *key, uint64_t value) {
    snprintf(m->text[m->n], 64, "%" PRIu64, value);
    meta_add(m, key, m->text[m->n]);
}
static void meta_real(Meta *m, const char *key, double value) {
    snprintf(m->text[m->n], 64, "%.17g", value);
    meta_add(m, key, m->text[m->n]);
}

static StTensor as_stored(const SmTensor *t, const char *name, const float *data) {
    size_t rows = t->blocks * t->rows;
    int vector = rows == 1;
    return (StTensor){
        name, "F32", {vector ? t->cols : rows, vector ? 0 : t->cols}, vector ? 1 : 2, data};
}

/* folder/name.safetensors: parameters under nanoGPT's names, every flag, the vocabulary. */
static int write_model(const Worker *w, const float *params, const char *folder, const char *file,
                       char *error, size_t size) {
    const Gpt *g = &w->g;
    StTensor *t = allocate((g->tensors + 1) * sizeof *t);
    Meta *m = allocate(sizeof *m);
    char path[PATH_SIZE];
    size_t n = 0;
    for (; n < g->tensors; n++)
        t[n] = as_stored(&g->tensor[n], g->tensor[n].name, params + g->tensor[n].offset);
    const SmTensor *tied = &g->tensor[g->place[WTE]];
    if (!g->s.untied) t[n++] = as_stored(tied, tensor_rows[HEAD].name, params + tied->offset);
    for (size_t i = 0; i < FLAG_COUNT; i++)
        if (flags[i].keep != KEEP_NOT) {
            meta_add(m, flags[i].name, flag_text(&w->run->o, &flags[i], m->text[m->n], 64));
        }
    meta_add(m, "format", "train_gpt " GPT_VERSION);
    meta_add(m, "vocabulary", w->run->vocab_text);
    meta_whole(m, "step", (uint64_t)w->step);
    meta_real(m, "val_loss", params == w->exact ? w->exact_val : w->val);
    meta_real(m, "best_val_loss", w->best);
    meta_real(m, "evaluated", (double)w->evaluated);
    path_of(path, "%s/%s.safetensors", folder, file);
    int failed = st_write(path, t, n, m->pair, m->n, error, size);
    free(t), free(m);
    return failed;
}

enum { COUNTERS = 15 };

/* The i-th payload counter of training that a checkpoint keeps, and its key. */
static uint64_t *counter(Comm *c, size_t i, char *key, size_t size) {
    static const char *const what[] = {"sent", "received", "messages", "up", "down"};
    static const char *const kind[] = {"matrices", "auxiliary", "control"}; /* as CommKind */
    uint64_t *count[] = {c->sent, c->received, c->messages, c->up, c->down};
    snprintf(key, size, "%s_%s", what[i % 5], kind[i / 5]);
    return &count[i % 5][i / 5];
}

/* The name of an array of state in a file. */
static void state_name(const Worker *w, const SmState *s, char *name, size_t size) {
    int n = snprintf(name, size, "%s.%s", s->kind, w->g.tensor[s->tensor].name);
    if (s->block >= 0) snprintf(name + n, size - (size_t)n, ".%d", s->block);
}

/* folder/worker-R.safetensors: what this worker alone holds, a node's model included; worker 0 adds
 * what all share. */
static int write_state(const Worker *w, const char *folder, char *error, size_t size) {
    size_t n = 0, room = w->g.tensors;
    SmState s;
    while (sm_optimizer_state(w->optimizer, n, &s)) n++;
    room += n;
    n = 0;
    StTensor *t = allocate(room * sizeof *t);
    char(*name)[96] = allocate(room * sizeof *name), path[PATH_SIZE];
    Meta *m = allocate(sizeof *m);
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &s); i++) {
        if (s.replicated && w->c->rank) continue;
        state_name(w, &s, name[n], sizeof name[n]);
        t[n] = (StTensor){name[n], "F32", {s.rows, s.cols}, 2, s.data};
        n++;
    }
    for (size_t i = 0; gossips(w) && i < w->g.tensors; i++, n++) {
        snprintf(name[n], sizeof name[n], "node.%s", w->g.tensor[i].name);
        t[n] = as_stored(&w->g.tensor[i], name[n], w->g.params + w->g.tensor[i].offset);
    }
    meta_whole(m, "step", (uint64_t)w->step);
    meta_whole(m, "rank", (uint64_t)w->c->rank);
    meta_real(m, "seconds", elapsed(w));
    char key[COUNTERS][32];
    for (size_t i = 0; i < COUNTERS; i++) {
        uint64_t value = *counter(w->c, i, key[i], sizeof key[i]);
        meta_whole(m, key[i], value);
    }
    path_of(path, "%s/worker-%d.safetensors", folder, w->c->rank);
    int failed = st_write(path, t, n, m->pair, m->n, error, size);
    free(t), free(name), free(m);
    return failed;
}

/* The number N of a folder called .NAME.N, or -1. */
static int slot_number(const char *folder, const char *name) {
    size_t n = strlen(name);
    char *end;
    if (*folder != '.' || strncmp(folder + 1, name, n) != 0 || folder[n + 1] != '.') return -1;
    if (!isdigit((unsigned char)folder[n + 2])) return -1;
    long slot = strtol(folder + n + 2, &end, 10);
    return *end || slot > 9999 ? -1 : (int)slot;
}

/* The number of the folder that OUT/name points at; -1 when it points nowhere, -2 and a sentence
 * when that cannot be told. */
static int linked_slot(const char *out, const char *name, char *error, size_t size) {
    char path[PATH_SIZE], target[64];
    path_of(path, "%s/%s", out, name);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0 && errno == ENOENT) return -1;
    if (n < 0)
        return snprintf(error, size, "%s: is not a link that can be read: %s", path,
                        strerror(errno)),
               -2;
    target[n] = 0;
    return slot_number(target, name);
}

/* Remove what OUT/.name.SLOT holds, its model first: without that it is no generation. */
static int clear_slot(const char *folder, char *error, size_t size) {
    char path[PATH_SIZE];
    path_of(path, "%s/model.safetensors", folder);
    int failed = unlink(path) && errno != ENOENT;
    DIR *all = failed ? NULL : opendir(folder);
    if (!all && !failed && errno == ENOENT) return 0;
    if (!all && !failed) path_of(path, "%s", folder), failed = 1;
    while (!failed) {
        errno = 0;
        const struct dirent *d = readdir(all);
        if (!d && !errno) break;
        path_of(path, "%s/%s", folder, d ? d->d_name : "");
        failed = !d || (strstr(d->d_name, ".safetensors") && unlink(path) && errno != ENOENT);
    }
    if (failed) snprintf(error, size, "%s: cannot be removed: %s", path, strerror(errno));
    if (all) closedir(all);
    return failed ? -1 : 0;
}

static int is_last(const char *name) { return strcmp(name, "last") == 0; }

/* Worker 0: an empty folder to save OUT/name in, the one after the newest. A run that came from an
 * older generation than the link's goes on behind that, so that it cannot overwrite it. Returns its
 * number, or -1 and a sentence. */
static int prepare_slot(const Worker *w, const char *name, char *error, size_t size) {
    const Options *o = &w->run->o;
    char folder[PATH_SIZE];
    int resumed = is_last(name) && o->resume && !w->saved[1];
    int newest =
        resumed && w->run->slot >= 0 ? w->run->slot : linked_slot(o->out, name, error, size);
    if (newest < -1) return -1;
    int slot = (newest + 1) % (is_last(name) ? (int)o->keep : 2);
    path_of(folder, "%s/.%s.%d", o->out, name, slot);
    if (clear_slot(folder, error, size)) return -1;
    if (mkdir(folder, 0777) == 0 || errno == EEXIST) return slot;
    return snprintf(error, size, "%s: cannot be made: %s", folder, strerror(errno)), -1;
}

/* Point OUT/name at OUT/.name.SLOT, atomically and durably. */
static int publish(const char *out, const char *name, int slot, char *error, size_t size) {
    char link[PATH_SIZE], temporary[PATH_SIZE], target[64];
    path_of(link, "%s/%s", out, name);
    path_of(temporary, "%s/.%s.link", out, name);
    snprintf(target, sizeof target, ".%s.%d", name, slot);
    errno = st_sync_directory(out); /* the folder must be there before a link says so */
    int failed = errno != 0 || (unlink(temporary) && errno != ENOENT) ||
                 symlink(target, temporary) || rename(temporary, link);
    if (!failed) failed = (errno = st_sync_directory(out)) != 0;
    if (failed) snprintf(error, size, "%s: cannot be replaced: %s", link, strerror(errno));
    return failed ? -1 : 0;
}

/* Remove generations of the run before, which --overwrite has ended, and those beyond --keep. They
 * are harmless where they cannot be removed, once their models are gone. */
static int forget_others(const Worker *w, const char *name, int slot, char *error, size_t size) {
    const Options *o = &w->run->o;
    int anew = !o->resume && !w->saved[is_last(name)], failed = 0;
    DIR *all = opendir(o->out);
    if (!all) return snprintf(error, size, "%s: cannot be listed: %s", o->out, strerror(errno)), -1;
    while (!failed) {
        errno = 0;
        const struct dirent *d = readdir(all);
        if (!d && errno)
            failed = snprintf(error, size, "%s: cannot be read: %s", o->out, strerror(errno));
        if (!d) break;
        int other = slot_number(d->d_name, name);
        char folder[PATH_SIZE];
        if (other < 0 || other == slot || (!anew && other < (is_last(name) ? (int)o->keep : 2)))
            continue;
        path_of(folder, "%s/%s", o->out, d->d_name);
        failed = clear_slot(folder, error, size);
        rmdir(folder);
    }
    closedir(all);
    return failed;
}

/* All workers together: write OUT/name. Ends the program when it cannot; the old one then still
 * stands. */
static void save(Worker *w, const char *name, int with_state) {
    const Options *o = &w->run->o;
    char folder[PATH_SIZE], error[PATH_SIZE + 512] = "";
    int32_t slot = 0, failed = 0, all[COMM_MAX_WORKERS];
    size_t bad = first_not_finite(&w->g);
    if (bad < w->g.tensors) die_diverged(w, bad, w->train);
    if (w->c->rank == 0) slot = prepare_slot(w, name, error, sizeof error);
    comm_broadcast(w->c, &slot, sizeof slot, 0, COMM_OTHER);
    failed = slot < 0;
    path_of(folder, "%s/.%s.%d", o->out, name, slot);
    const float *model = deployed(w);
    int exact = exact_model(w);
    if (!failed && w->c->rank == 0)
        failed = write_model(w, model, folder, "model", error, sizeof error) ||
                 (exact && write_model(w, w->exact, folder, "exact", error, sizeof error));
    if (!failed && with_state) failed = write_state(w, folder, error, sizeof error) != 0;
    comm_gather(w->c, &failed, sizeof failed, all, COMM_OTHER);
    for (int j = 0; j < w->c->size; j++) failed |= all[j];
    if (!failed && w->c->rank == 0)
        failed = publish(o->out, name, slot, error, sizeof error) ||
                 forget_others(w, name, slot, error, sizeof error);
    comm_broadcast(w->c, &failed, sizeof failed, 0, COMM_OTHER);
    if (failed && *error)
        die(EXIT_FAILED, "%s; the checkpoint before it is untouched: mend this, then --resume",
            error);
    if (failed) await_the_end();
    w->saved[is_last(name)] = 1;
}

/* A number that the checkpoint's metadata must hold. */
static double meta_number(const StFile *f, const char *key) {
    const char *text = st_meta(f, key);
    char *end = NULL;
    double value = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end)
        die(EXIT_FAILED,
            "%s: the metadata say no number for '%s': this is not a checkpoint of train_gpt",
            f->path, key);
    return value;
}

/* A whole number of them, from `least` to 2^53. */
static int64_t meta_integer(const StFile *f, const char *key, int64_t least) {
    double value = meta_number(f, key);
    if (value >= (double)least && value <= 0x1p53 && value == floor(value)) return (int64_t)value;
    die(EXIT_FAILED, "%s: '%s' is %g, which no checkpoint of train_gpt says", f->path, key, value);
}

/* What the flags of a checkpoint promise must be in it, before they decide how much is allocated. */
static void check_shapes(const Gpt *g, const StFile *f) {
    for (size_t i = 0; i < g->tensors; i++) {
        const SmTensor *t = &g->tensor[i];
        StTensor want = as_stored(t, t->name, NULL);
        const StEntry *have = st_find(f, t->name);
        if (!have) die(EXIT_FAILED, "%s: there is no tensor '%s'", f->path, t->name);
        if (have->rank != want.rank || have->shape[0] != want.shape[0] ||
            (want.rank == 2 && have->shape[1] != want.shape[1]))
            die(EXIT_FAILED, "%s: '%s' has another shape than the flags stored beside it say",
                f->path, t->name);
    }
}

/* Fill the tensors of the model from a checkpoint. */
static void read_model(Gpt *g, const StFile *f) {
    char error[PATH_SIZE + 512];
    for (size_t i = 0; i < g->tensors; i++) {
        const SmTensor *t = &g->tensor[i];
        if (st_read_f32(f, t->name, g->params + t->offset, tensor_size(t), error, sizeof error))
            die(EXIT_FAILED, "%s", error);
        if (!sm_finite(g->params + t->offset, tensor_size(t)))
            die(EXIT_FAILED, "%s: '%s' holds NaN or infinity", f->path, t->name);
    }
}

/* Open the file that worker r left in a checkpoint. */
static void open_state(const Worker *w, StFile *f, int r) {
    char path[PATH_SIZE], error[PATH_SIZE + 512];
    path_of(path, "%s/worker-%d.safetensors", w->run->folder, r);
    if (st_open(f, path, error, sizeof error)) die(EXIT_FAILED, "%s", error);
    if (meta_integer(f, "step", 0) != w->step || meta_integer(f, "rank", 0) != r)
        die(EXIT_FAILED, "%s: belongs to another step or worker than model.safetensors beside it",
            path);
}

static void read_array(const StFile *f, const char *name, float *out, size_t n) {
    char error[PATH_SIZE + 512];
    if (st_read_f32(f, name, out, n, error, sizeof error)) die(EXIT_FAILED, "%s", error);
}

/* This worker's arrays out of its file. */
static void read_own(Worker *w, const StFile *f) {
    char name[96];
    SmState s;
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &s); i++) {
        state_name(w, &s, name, sizeof name);
        if (!s.replicated) read_array(f, name, s.data, s.rows * s.cols);
    }
}

/* The model of a node that gossips. */
static void read_node(Worker *w, const StFile *f) {
    char name[96];
    for (size_t i = 0; gossips(w) && i < w->g.tensors; i++) {
        const SmTensor *t = &w->g.tensor[i];
        snprintf(name, sizeof name, "node.%s", t->name);
        read_array(f, name, w->g.params + t->offset, tensor_size(t));
    }
}

/* Add `part` of the momenta in one file. */
static void add_momenta(Worker *w, const StFile *f, float part) {
    char name[96];
    SmState s;
    float *momentum = floats(w->g.parameters);
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &s); i++) {
        if (s.replicated || s.block >= 0) continue;
        state_name(w, &s, name, sizeof name);
        read_array(f, name, momentum, s.rows * s.cols);
        for (size_t k = 0; k < s.rows * s.cols; k++) s.data[k] += part * momentum[k];
    }
    free(momentum);
}

/* --resume-workers: the momenta of a group that another number of workers left. A node's model that
 * nobody left is the mean of the nodes', which model.safetensors holds. */
static void read_resized(Worker *w) {
    const Run *run = w->run;
    const char *policy = run->o.resume_workers;
    int saved = run->saved_workers, keeps = strcmp(policy, "keep") == 0 && w->c->rank < saved;
    StFile f = {0};
    for (int r = 0; r < saved && strcmp(policy, "zero") != 0; r++) {
        if (keeps && r != w->c->rank) continue;
        open_state(w, &f, r);
        add_momenta(w, &f, keeps ? 1 : 1 / (float)saved);
        if (keeps) read_node(w, &f);
        st_close(&f);
    }
    if (w->c->rank == 0)
        fprintf(stderr, "%d workers go on where %d stopped, with their momenta %s\n", w->c->size,
                saved,
                strcmp(policy, "zero") == 0   ? "at zero"
                : strcmp(policy, "mean") == 0 ? "at the mean of those"
                : w->c->size > saved          ? "kept, the new ones' at the mean of those"
                                              : "kept, those of the last workers dropped");
}

/* This worker's part of the training state; what all share comes from worker 0's file. */
static void read_state(Worker *w) {
    StFile mine = {0}, shared = {0};
    char name[96];
    SmState s;
    int resized = w->run->saved_workers != w->c->size || strcmp(w->run->o.resume_workers, "refuse");
    w->step = meta_integer(&w->run->checkpoint, "step", 0);
    open_state(w, &shared, 0);
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &s); i++) {
        state_name(w, &s, name, sizeof name);
        if (s.replicated && !(resized && strcmp(s.kind, "dissent") == 0))
            read_array(&shared, name, s.data, s.rows * s.cols);
    }
    if (resized) read_resized(w);
    if (w->c->rank < w->run->saved_workers) {
        open_state(w, &mine, w->c->rank);
        if (!resized) read_own(w, &mine), read_node(w, &mine);
        for (size_t i = 0; i < COUNTERS; i++) {
            uint64_t *count = counter(w->c, i, name, sizeof name);
            *count = (uint64_t)meta_integer(&mine, name, 0);
        }
        st_close(&mine);
    }
    if (resized) sm_optimizer_regroup(w->optimizer, w->g.params);
    w->evaluated = meta_integer(&w->run->checkpoint, "evaluated", -1);
    w->val = meta_number(&w->run->checkpoint, "val_loss");
    w->best = meta_number(&w->run->checkpoint, "best_val_loss");
    w->seconds = meta_number(&shared, "seconds");
    st_close(&shared);
}

/* ------------------------------------------------------------------------------------------------
 * what a run tells: rules of the tensors, log, progress */

/* One line per kind of tensor: how many, shape, rule, rate, bits on the wire. */
static void print_rules(FILE *f, const Run *run, const Gpt *g) {
    const Options *o = &run->o;
    fprintf(f, "%-36s %4s %-14s %-17s %-9s %-8s %-9s %s\n", "tensor", "copies", "shape", "rule",
            "rate", "gain", "step RMS", "bits/weight");
    for (int k = 0; k < TENSOR_KINDS; k++) {
        if (g->place[k] == SIZE_MAX) continue;
        const SmTensor *t = &g->tensor[g->place[k]];
        char name[64], shape[64];
        snprintf(name, sizeof name, "%s", tensor_rows[k].name);
        char *percent = strstr(name, "%d");
        if (percent) memmove(percent + 1, percent + 2, strlen(percent + 2) + 1), *percent = '*';
        snprintf(shape, sizeof shape, t->blocks > 1 ? "%zux(%zux%zu)" : "%.0zu%zux%zu",
                 t->blocks > 1 ? t->blocks : 0, t->rows, t->cols);
        int hidden = t->role == SM_HIDDEN;
        double rate = hidden ? o->lr : o->aux_lr, rms = rate * sm_tensor_rms(&run->config, t);
        char step[32] = "-"; /* where it depends on the gradient */
        if (!isnan(rms)) snprintf(step, sizeof step, "%.2e", rms);
        fprintf(f, "%-36s %6d %-14s %-17s %-9.3g %-8.3g %-9s %.3g\n", name,
                percent ? g->s.layers : 1, shape, hidden ? o->method : run->config.aux->name, rate,
                sm_tensor_gain(&run->config, t), step,
                sm_bits_per_weight(&run->config, t, (int)o->workers));
    }
    if (o->adversaries == 1) fprintf(f, "worker %ld lies", o->workers - 1);
    if (o->adversaries > 1)
        fprintf(f, "workers %ld to %ld lie", o->workers - o->adversaries, o->workers - 1);
    if (o->adversaries) fprintf(f, ", by --attack %s\n", o->attack);
}

/* Payload bytes that one worker sends in a step, by formula. */
static double formula_bytes(const Run *run, const Gpt *g) {
    double bits = 0;
    for (size_t i = 0; i < g->tensors; i++)
        bits += sm_bits_per_weight(&run->config, &g->tensor[i], (int)run->o.workers) *
                (double)tensor_size(&g->tensor[i]);
    return bits / 8;
}

/* What training takes, worker by worker and in all. */
static void print_memory(const Run *run, Gpt *g, size_t B) {
    const Options *o = &run->o;
    int workers = (int)o->workers, threads = (int)o->threads;
    size_t P = g->parameters * sizeof(float), model = gpt_bytes(g, B, 1, threads);
    SmBytes s = sm_optimizer_bytes(&run->config, g->tensor, g->tensors, workers, threads);
    size_t scratch = model - g->activations - g->packed + s.scratch;
    size_t outbox = workers == 1 ? 0 : min_size(COMM_OUTBOX, P);
    int more = sm_gossips(run->config.method) ? 2 : has_exact(run);
    size_t worker =
               (2 + (size_t)more) * allocated(P) + allocated(model) + allocated(s.total) + outbox,
           tokens = (size_t)(run->data.train_tokens + run->data.val_tokens), mb = 1000000,
           data = tokens * (run->data.vocab.kind == DATA_GPT2 ? 2 : 1); /* mapped */
    double d = 1.0 / (double)mb;
    printf("memory of a worker, MB: %.1f parameters and gradients, %.1f packed matrices, %.1f "
           "optimizer state, %.1f activations, %.1f messages, %.1f scratch\n",
           2 * (double)P * d, (double)g->packed * d, (double)s.state * d,
           (double)g->activations * d, (double)(s.messages + outbox) * d, (double)scratch * d);
    printf("memory in all, MB: %.1f (%d %s, in whole pages, and %.1f of data and program)\n",
           (double)(worker * (size_t)workers + data + PROGRAM_BYTES) * d, workers,
           workers == 1 ? "worker" : "workers", (double)(data + PROGRAM_BYTES) * d);
}

/* Who gossips with whom, and how fast they agree. */
static void print_graph(const Run *run) {
    const DmGraph *graph = &run->graph;
    char name[PATH_SIZE];
    if (!run->config.graph) return;
    path_of(name, "%s", run->o.topology);
    size_t least = SIZE_MAX, most = 0;
    for (int r = 0; r < graph->period; r++)
        for (int j = 0; j < graph->nodes; j++) {
            size_t degree = dm_degree(graph, (uint64_t)r, j, 1);
            least = degree < least ? degree : least;
            most = degree > most ? degree : most;
        }
    printf("\ngraph      %s of %d nodes, %zu", harmless(name), graph->nodes, least);
    if (most > least) printf(" to %zu", most);
    double rho = dm_graph_rho(graph), rounds = dm_rounds_to_shrink(graph, 1000);
    printf(" neighbours to send to; spectral gap %.6f; %.0f rounds of gossip shrink disagreement "
           "1000x\n",
           1 - rho, rounds);
}

/* What goes up of error feedback's messages, beside what the paper would count. */
static void print_uplink(const Run *run, const Gpt *g) {
    double bits = 0, paper = 0, dense = 0;
    if (run->config.method->combine != SM_FEEDBACK || run->o.workers == 1) return;
    for (size_t i = 0; i < g->tensors; i++) {
        const SmTensor *t = &g->tensor[i];
        double size = (double)tensor_size(t);
        bits += size * sm_uplink_bits(&run->config, t, (int)run->o.workers, 0);
        paper += size * sm_uplink_bits(&run->config, t, (int)run->o.workers, 1);
        dense += size * 32 * (double)(run->o.workers - 1) / (double)run->o.workers;
    }
    printf("\nuplink     %.0f bytes per step, %.4f of fp32; as arXiv 2510.00643 counts (26-bit "
           "indices, 16-bit Natural) %.4f\n",
           bits / 8, bits / dense, paper / dense);
}

static void print_dry_run(const Run *run) {
    const Options *o = &run->o;
    Gpt g;
    char data[PATH_SIZE];
    path_of(data, "%s", o->data);
    gpt_layout(&g, &run->shape);
    size_t B = (size_t)(o->batch / o->workers);
    double bytes = formula_bytes(run, &g), P = (double)g.parameters,
           share = 64.0 * (double)(o->workers - 1) / (double)o->workers;
    printf(
        "model      %ld layers, %ld heads, width %ld, context %ld, vocabulary %d: %zu parameters\n",
        o->layers, o->heads, o->width, o->context, run->shape.vocab, g.parameters);
    printf("data       %s: %" PRIu64 " tokens to train on, %" PRIu64 " to validate on\n",
           harmless(data), run->data.train_tokens, run->data.val_tokens);
    printf("workers    %ld %s of %ld compute threads, %zu sequences each per step\n\n", o->workers,
           o->backend, o->threads, B);
    print_rules(stdout, run, &g);
    print_graph(run);
    print_uplink(run, &g);
    printf("\nsent by a worker per step, on average: %.0f bytes, %.3f bits per parameter (fp32 "
           "all-reduce: "
           "%.3f)\n",
           bytes, 8 * bytes / P, share);
    print_memory(run, &g, B);
    gpt_free(&g);
}

static void print_value(FILE *f, const char *format, double value) {
    fputc(',', f);
    if (!isnan(value)) fprintf(f, format, value);
}

/* A row of log.csv; a NaN is a value that was not measured at this step. */
static void log_row(Worker *w, double train, double val, double norm) {
    const Options *o = &w->run->o;
    if (!w->log) return;
    double rate = w->step > 0 ? schedule(o, w->step - 1) : NAN;
    double wire = (double)w->sent * w->run->per_byte + (double)w->messages * w->run->per_message;
    fprintf(w->log, "%ld,%ld,%.3f", w->step, w->step * o->batch * o->context, elapsed(w));
    print_value(w->log, "%.6f", train);
    print_value(w->log, "%.6f", val);
    print_value(w->log, "%.6g", o->lr * rate);
    print_value(w->log, "%.6g", o->aux_lr * rate);
    print_value(w->log, "%.6g", norm);
    fprintf(w->log, ",%" PRIu64 ",%" PRIu64, w->sent, w->received);
    print_value(w->log, "%.5f", w->agreement);
    print_value(w->log, "%.4f", *o->link ? wire : NAN);
    fprintf(w->log, ",%" PRIu64 ",%" PRIu64, w->up, w->down);
    int validated = !isnan(val);
    print_value(w->log, "%.6f", validated ? w->exact_val : NAN);
    print_value(w->log, "%.6g", validated ? w->gap : NAN);
    print_value(w->log, "%.6g", w->consensus);
    for (int i = 0; i < 3; i++) print_value(w->log, "%.6f", validated ? w->node_val[i] : NAN);
    fprintf(w->log, ",%d\n", w->c->size);
    if (fflush(w->log) || ferror(w->log))
        die(EXIT_FAILED, "%s/log.csv: cannot be written: %s", o->out, strerror(errno));
}

static const char log_header[] = "step,tokens,seconds,train_loss,val_loss,lr,aux_lr,grad_norm,"
                                 "bytes_sent,bytes_received,agreement,wire_seconds,uplink_bytes,"
                                 "downlink_bytes,exact_val_loss,model_gap,consensus,node_val_min,"
                                 "node_val_mean,node_val_max,workers\n";

/* Is this line a whole row, of a step up to this one? A killed run may have left half a row, whose
 * number is half a number. */
static int is_row_until(const char *line, long step) {
    size_t columns = 0, expected = 0;
    char *end;
    for (const char *c = line; *c; c++) columns += *c == ',';
    for (const char *c = log_header; *c; c++) expected += *c == ',';
    return isdigit((unsigned char)*line) && strtol(line, &end, 10) <= step && *end == ',' &&
           columns == expected;
}

/* Open OUT/log.csv: anew, or without the rows after the step that is resumed from. */
static void open_log(Worker *w, int goes_on) {
    char path[PATH_SIZE], temporary[PATH_SIZE], line[1024];
    path_of(path, "%s/log.csv", w->run->o.out);
    path_of(temporary, "%s/.log.csv.tmp", w->run->o.out);
    FILE *old = goes_on ? fopen(path, "r") : NULL;
    int lost = goes_on && !old && errno != ENOENT;
    if (lost) die(EXIT_FAILED, "%s: cannot be read: %s", path, strerror(errno));
    w->log = fopen(temporary, "w");
    if (!w->log) die(EXIT_FAILED, "%s: cannot be written: %s", temporary, strerror(errno));
    fputs(log_header, w->log);
    for (int ends, begins = 1; old && fgets(line, sizeof line, old); begins = ends) {
        ends = strchr(line, '\n') != NULL;
        if (begins && ends && is_row_until(line, w->step)) fputs(line, w->log);
    }
    if (old && ferror(old)) die(EXIT_FAILED, "%s: cannot be read: %s", path, strerror(errno));
    if (old) fclose(old);
    if (fflush(w->log) || ferror(w->log) || st_sync(fileno(w->log)) || rename(temporary, path))
        die(EXIT_FAILED, "%s: cannot be written: %s", path, strerror(errno));
}

/* OUT/command.txt: a command line that repeats the run, and what ran it. */
static void write_command(const Run *run) {
    char path[PATH_SIZE], temporary[PATH_SIZE], text[64];
    struct utsname u = {0};
    path_of(path, "%s/command.txt", run->o.out);
    path_of(temporary, "%s/.command.txt.tmp", run->o.out);
    FILE *f = fopen(temporary, "w");
    if (!f) die(EXIT_FAILED, "%s: cannot be written: %s", path, strerror(errno));
    fprintf(f, "train_gpt");
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        if (flags[i].keep == KEEP_NOT) continue;
        fprintf(f, " --%s='", flags[i].name);
        for (const char *c = flag_text(&run->o, &flags[i], text, sizeof text); *c; c++)
            fprintf(f, *c == '\'' ? "'\\%c'" : "%c", *c); /* a quote in the shell's way */
        fputc('\'', f);
    }
    uname(&u);
    fprintf(f, "\n# train_gpt %s, %s, %s %s, products %s, %d usable cores\n", GPT_VERSION,
            __VERSION__, u.sysname, u.machine, gemm_default(GEMM_F32)->name, comm_cores());
    int lost = ferror(f);
    if (fclose(f) || lost || rename(temporary, path))
        die(EXIT_FAILED, "%s: cannot be written: %s", path, strerror(errno));
}

static void print_time(FILE *f, double seconds) {
    long s = (long)(seconds + 0.5);
    if (s >= 3600)
        fprintf(f, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        fprintf(f, "%ld:%02ld", s / 60, s % 60);
}

/* One line on stderr, rewritten on a terminal. */
static void progress(Worker *w, int line_ends) {
    const Options *o = &w->run->o;
    w->shown = now();
    if (o->quiet || w->c->rank) return;
    int terminal = isatty(2);
    double spent = now() - w->started, rate = spent > 0 ? (double)(w->step - w->first) / spent : 0;
    if (terminal) fprintf(stderr, "\r\033[K");
    fprintf(stderr, "step %ld/%ld", w->step, o->steps);
    if (!isnan(w->train)) fprintf(stderr, "  loss %.4f", w->train);
    if (!isnan(w->val)) fprintf(stderr, "  val %.4f", w->val);
    if (w->run->data.floor > 0) fprintf(stderr, " (entropy %.4f)", w->run->data.floor);
    if (rate > 0) {
        fprintf(stderr, "  %.0f tokens/s  %.3f bits/parameter  ETA ",
                rate * (double)(o->batch * o->context),
                w->step > 0 ? 8 * (double)w->sent / (double)w->step / (double)w->g.parameters : 0);
        print_time(stderr, (double)(o->steps - w->step) / rate);
    }
    if (!terminal || line_ends) fputc('\n', stderr);
    fflush(stderr);
}

/* The training losses as one line of blocks, on a terminal. */
static void sparkline(const Worker *w) {
    static const char *const block[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    int colour = !(no_color && *no_color) && term && strcmp(term, "dumb") != 0;
    double low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < SPARK; i++) {
        if (w->counted[i] == 0) continue;
        low = fmin(low, w->curve[i] / w->counted[i]);
        high = fmax(high, w->curve[i] / w->counted[i]);
    }
    if (w->run->o.quiet || !isatty(2) || !(low < high)) return;
    fprintf(stderr, "loss %.2f %s", high, colour ? "\033[36m" : "");
    for (size_t i = 0; i < SPARK; i++)
        if (w->counted[i] > 0)
            fputs(block[(int)(7.99 * (w->curve[i] / w->counted[i] - low) / (high - low))], stderr);
    fprintf(stderr, "%s %.2f\n", colour ? "\033[0m" : "", low);
}

/* ------------------------------------------------------------------------------------------------
 * a group that loses workers: the others go back to the start of the step and take it again */

static void copy_arrays(void *context, int ith, int nth) {
    Worker *w = context;
    Snapshot *s = &w->snapshot;
    size_t lo, hi;
    SmState now_held;
    slice(w->g.parameters, ith, nth, &lo, &hi);
    memcpy(s->params + lo, w->g.params + lo, (hi - lo) * sizeof(float));
    for (size_t i = 0; i < s->arrays && sm_optimizer_state(w->optimizer, i, &now_held); i++) {
        slice(s->array[i].rows * s->array[i].cols, ith, nth, &lo, &hi);
        memcpy(s->array[i].data + lo, now_held.data + lo, (hi - lo) * sizeof(float));
    }
}

static void forget_snapshot(Snapshot *s) {
    free(s->memory), free(s->array);
    *s = (Snapshot){0};
}

/* Room for the optimizer's arrays as they are now. */
static void make_snapshot(Worker *w) {
    Snapshot *s = &w->snapshot;
    SmState state;
    size_t total = w->g.parameters, at = total;
    for (s->arrays = 0; sm_optimizer_state(w->optimizer, s->arrays, &state); s->arrays++)
        total += state.rows * state.cols;
    s->params = s->memory = floats(total);
    s->array = allocate((s->arrays + 1) * sizeof *s->array);
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &s->array[i]); i++) {
        s->array[i].data = s->memory + at;
        at += s->array[i].rows * s->array[i].cols;
    }
}

static void take_snapshot(Worker *w) {
    Snapshot *s = &w->snapshot;
    if (!s->memory) make_snapshot(w);
    team_run(w->c->team, copy_arrays, w);
    s->step = w->step, s->evaluated = w->evaluated;
    s->val = w->val, s->best = w->best;
    s->workers = w->c->size;
    memcpy(s->member, w->c->member, sizeof s->member);
}

/* A row for each worker of before -> a row for each of those who are left. */
static void keep_rows(const Worker *w, float *out, const float *in, size_t cols) {
    const Snapshot *s = &w->snapshot;
    for (int k = 0, r = 0; k < s->workers && r < w->c->size; k++)
        if (s->member[k] == w->c->member[r])
            memcpy(out + cols * (size_t)r++, in + cols * (size_t)k, cols * sizeof *out);
}

/* Model and state as they were, but for what belongs to a block: owners have changed. */
static void return_to_snapshot(Worker *w) {
    const Snapshot *s = &w->snapshot;
    SmState state;
    memcpy(w->g.params, s->params, w->g.parameters * sizeof(float));
    for (size_t i = 0; sm_optimizer_state(w->optimizer, i, &state); i++)
        for (size_t j = 0; j < s->arrays && state.block < 0; j++) {
            const SmState *kept = &s->array[j];
            if (kept->block >= 0 || kept->tensor != state.tensor || strcmp(kept->kind, state.kind))
                continue;
            if (strcmp(state.kind, "dissent") == 0)
                keep_rows(w, state.data, kept->data, state.cols);
            else
                memcpy(state.data, kept->data, state.rows * state.cols * sizeof(float));
        }
    w->step = s->step, w->evaluated = s->evaluated;
    w->val = s->val, w->best = s->best;
}

/* Which nodes of the graph, by their place in it, are still there. */
static int nodes_left(const Worker *w, int *kept) {
    int n = 0, k = 0;
    for (; k < w->run->graph.nodes && n < w->c->size; k++)
        if (w->node_id[k] == w->c->member[n]) kept[n++] = k;
    return n;
}

/* The same topology over those who are left; where it does not exist for so many, what is left of its
 * edges, kept in a file so that a checkpoint can name it. */
static void close_graph(Worker *w, Run *own) {
    char error[512], path[PATH_SIZE];
    int kept[COMM_MAX_WORKERS], nodes = w->c->size;
    double *mixing = allocate(dm_graph_doubles(nodes) * sizeof *mixing +
                              (size_t)nodes * (size_t)nodes * sizeof *mixing);
    DmGraph graph = {nodes, 1, mixing};
    if (strncmp(own->o.topology, "file:", 5) == 0 ||
        dm_graph_build(&graph, mixing, own->o.topology, own->o.mixing, nodes, error,
                       sizeof error)) {
        int left = nodes_left(w, kept);
        assert(left == nodes), (void)left;
        if (dm_graph_survivors(&graph, mixing, &w->run->graph, kept, nodes, error, sizeof error))
            die(EXIT_FAILED,
                "without the lost worker the nodes cannot go on: %s; --resume with %d "
                "--workers and --resume-workers keep goes on from %s/last on another --topology",
                error, nodes, own->o.out);
        path_of(path, "%s/topology.txt", own->o.out);
        if (w->c->rank == 0 && dm_graph_write(&graph, path, error, sizeof error))
            die(EXIT_FAILED, "%s", error);
        comm_barrier(w->c);
        path_of(own->topology, "file:%s", path);
        own->o.topology = own->topology;
        own->o.mixing = "auto";
        if (dm_graph_build(&graph, mixing, own->o.topology, "auto", nodes, error, sizeof error))
            die(EXIT_FAILED, "%s", error);
    }
    free(w->mixing);
    w->mixing = mixing;
    own->graph = graph;
    own->config.graph = &own->graph;
    for (int r = 0; r < nodes; r++) w->node_id[r] = w->c->member[r];
}

/* The run as it is for those who are left: their number, shards, graph. */
static void shrink_run(Worker *w) {
    char error[PATH_SIZE + 512];
    Run *own = w->own;
    if (!own) {
        own = allocate(sizeof *own);
        *own = *w->run;
        own->data.shards = (DataShards){0}; /* the others' until they have their own */
        if (own->config.up) own->config.up = &own->up;
        if (own->config.down) own->config.down = &own->down;
    }
    own->o.workers = w->c->size;
    own->o.batch = (long)w->g.B * w->c->size;
    if (own->o.min_workers > own->o.workers) own->o.min_workers = own->o.workers;
    own->config.adversaries = 0;
    for (int j = 0; j < w->c->size; j++)
        own->config.adversaries += w->c->member[j] >= w->first_liar;
    own->o.adversaries = own->config.adversaries;
    if (!own->o.adversaries) own->o.attack = "auto", own->config.attack = NULL;
    if (w->c->size < 3) own->o.expel = own->config.expel = 0; /* no majority against one */
    if (data_set_shards(&own->data, own->o.shards, (size_t)w->c->size, (size_t)own->o.context,
                        (uint64_t)own->o.seed, error, sizeof error))
        die(EXIT_FAILED, "the data cannot be shared out anew among %d workers: --%s", w->c->size,
            error);
    if (gossips(w)) close_graph(w, own);
    w->run = w->own = own;
}

/* Who is gone, in words. */
static void tell_loss(const Worker *w, int news) {
    const CommShared *shared = w->c->shared;
    for (uint32_t k = w->c->epoch - (uint32_t)news; k < w->c->epoch; k++) {
        const CommGone *gone = &shared->gone[k];
        fprintf(stderr, "%sworker %d ", isatty(2) ? "\r\033[K" : "", gone->id);
        if (gone->left)
            fprintf(stderr, "was voted out");
        else if (gone->hung)
            fprintf(stderr, "kept the others waiting for %g s and was killed", shared->timeout);
        else
            fprintf(stderr, "was killed by signal %d (%s)", gone->signal, strsignal(gone->signal));
        fprintf(stderr, " in step %ld; %d go on from its start\n", w->step + 1, w->c->size);
    }
}

/* A collective broke because a worker is gone. Should another go while this runs, it starts over. */
static void go_on_without(Worker *w) {
    Comm *c = w->c;
    int news = comm_regroup(c);
    shrink_run(w);
    free(w->arena);
    w->arena = allocate(
        sm_optimizer_bytes(&w->run->config, w->g.tensor, w->g.tensors, c->size, c->team->threads)
            .total);
    w->optimizer = sm_optimizer_init(w->arena, &w->run->config, w->g.tensor, w->g.tensors, c);
    return_to_snapshot(w);
    sm_optimizer_regroup(w->optimizer, w->g.params);
    if (c->rank == 0) {
        tell_loss(w, news);
        if (w->log) fclose(w->log);
        open_log(w, 1);
    }
    comm_barrier(c);
    forget_snapshot(&w->snapshot);
}

/* ------------------------------------------------------------------------------------------------
 * training */

/* What workers tell each other about a step before they take it. */
typedef struct Report {
    double loss, square;   /* nats per token, squared norm of the gradient */
    int64_t bad;           /* index of the first tensor that is not finite; -1 when all are */
    int64_t stop;          /* signal that asked for an end, or 0 */
    SmComplaint complaint; /* of the step before */
} Report;

static void squares_on_thread(void *context, int ith, int nth) {
    Worker *w = context;
    for (size_t i = (size_t)ith; i < w->g.tensors; i += (size_t)nth)
        w->tensor_square[i] =
            sm_sum_squares(w->g.grads + w->g.tensor[i].offset, tensor_size(&w->g.tensor[i]));
}

/* Is this worker one that would send NaN, in a run whose tensors all travel as bits or exponents? */
static int reports_nan(const Worker *w) {
    const SmConfig *c = &w->run->config;
    return c->adversaries && c->attack->reports && c->aux->combine == SM_VOTE &&
           w->c->rank >= w->c->size - c->adversaries;
}

/* This worker's gradient of this step into g.grads, and its report. */
static Report make_gradient(Worker *w) {
    const Options *o = &w->run->o;
    Gpt *g = &w->g;
    size_t B = (size_t)(o->batch / o->workers), T = (size_t)o->context, rank = (size_t)w->c->rank;
    for (size_t b = 0; b < B; b++) {
        uint64_t k = (uint64_t)w->step * B + b;
        int failed = data_train_window(&w->run->data, (uint64_t)o->seed, rank, (size_t)o->workers,
                                       T, k, w->in + b * T, w->target + b * T);
        if (failed) die(EXIT_FAILED, "%s: %s", o->data, data_strerror(failed));
    }
    Dropout d = {o->dropout,
                 sm_key((uint64_t)o->seed, 0x64726f70u + (uint64_t)rank, (uint64_t)w->step)};
    Report r = {.bad = -1,
                .stop = comm_stop_requested(w->c),
                .complaint = sm_optimizer_complaint(w->optimizer)};
    r.loss =
        gpt_pass(g, (Pass){.B = B, .T = T, .in = w->in, .target = w->target, .d = d, .train = 1}) /
        (double)(B * T);
    if (w->run->noise.row)
        noise_add(g->grads, g->parameters, &w->run->noise,
                  sm_key((uint64_t)o->seed, 0x6e6f697365u + (uint64_t)rank, (uint64_t)w->step), 0);
    team_run(g->team, squares_on_thread, w);
    for (size_t i = 0; i < g->tensors; i++) r.square += w->tensor_square[i];
    if (!isfinite(r.square) || !isfinite(r.loss)) {
        size_t bad = first_not_finite(g); /* before the gradients that it spoils */
        for (size_t i = 0; bad == g->tensors && i < g->tensors; i++)
            if (!isfinite(w->tensor_square[i])) bad = i;
        r.bad = bad < g->tensors ? (int64_t)bad : 0;
    } else if (r.loss > 10 * log((double)g->s.vocab) + 10) { /* far worse than a uniform guess */
        double largest = -1;
        for (size_t i = 0; i < g->tensors; i++)
            if (w->tensor_square[i] > largest) largest = w->tensor_square[i], r.bad = (int64_t)i;
    }
    if (reports_nan(w)) r.square = NAN;
    return r;
}

/* The end of a run in which a worker has sent what cannot be used. */
__attribute__((noreturn)) static void die_accusing(const Worker *w, int sender, const char *what,
                                                   const char *where, long step) {
    die(strcmp(what, "NaN") == 0 ? EXIT_DIVERGED : EXIT_FAILED,
        "worker %d sent %s in %s at step %ld: its memory, its processor or its owner is at fault, "
        "or --lr is too high; replace it and go on from the last checkpoint of %s with --resume",
        sender, what, where, step, w->run->o.out);
}

/* Ends the run if a worker's message was refused at step w->step; complaints: everybody's. */
static void judge(const Worker *w, const SmComplaint *complaints) {
    const SmComplaint *first = NULL;
    for (int j = 0; j < w->c->size; j++) {
        const SmComplaint *c = &complaints[j];
        if (c->fault == SM_SOUND) continue;
        if (!first || c->exchange < first->exchange ||
            (c->exchange == first->exchange && c->sender < first->sender))
            first = c;
    }
    if (first)
        die_accusing(w, first->sender, first->fault == SM_NAN ? "NaN" : "a malformed message",
                     w->g.tensor[first->tensor].name, w->step);
}

/* Before anything is evaluated or saved that a refused message has been part of. */
static void judge_now(Worker *w) {
    SmComplaint mine = sm_optimizer_complaint(w->optimizer), all[COMM_MAX_WORKERS];
    comm_gather(w->c, &mine, sizeof mine, all, COMM_OTHER);
    judge(w, all);
}

/* Can this group go on without one of its own? */
static int can_expel(const Worker *w) { return w->run->config.expel && w->c->recover; }

/* Put out who has been against the majority for too long; all workers agree on who that is. The others
 * go back to the start of this step. Returns 1 to a worker that is put out. */
static int expel_dissenters(Worker *w) {
    uint32_t most;
    int found = -1;
    for (int j = 0; w->run->config.expel && j < w->c->size; j++)
        if (sm_optimizer_dissent(w->optimizer, j, &most) >= (uint32_t)w->run->config.expel)
            found = j == w->c->rank || found < 0 ? j : found;
    if (found < 0) return 0;
    if (!can_expel(w))
        die(EXIT_FAILED,
            "worker %d has voted against the majority of the others for %ld steps in a row, up to "
            "step %ld, and MPI's ranks cannot go on without it; start others from the last "
            "checkpoint of %s with --resume",
            found, w->run->o.expel_after, w->step, w->run->o.out);
    if (found != w->c->rank) comm_barrier(w->c); /* which breaks */
    if (w->log) fclose(w->log), w->log = NULL;
    comm_leave(w->c);
    return 1;
}

/* The longest row of steps of dissent, and whose. */
static uint32_t longest_dissent(const Worker *w, int *rank) {
    uint32_t longest = 0, most;
    *rank = 0;
    for (int j = 0; j < w->c->size; j++) {
        sm_optimizer_dissent(w->optimizer, j, &most);
        if (most > longest) longest = most, *rank = j;
    }
    return longest;
}

/* Compare the replicas; a difference ends the run and names the worker in the minority. */
static void check_replicas(Worker *w) {
    uint64_t hash = 0, all[COMM_MAX_WORKERS];
    for (size_t i = 0; i < w->g.parameters; i++) {
        uint32_t bits;
        memcpy(&bits, &w->g.params[i], sizeof bits);
        hash = (hash ^ bits) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    comm_gather(w->c, &hash, sizeof hash, all, COMM_CONTROL);
    int odd = -1, fewest = w->c->size;
    for (int j = 0; j < w->c->size; j++) {
        int equal = 0;
        for (int k = 0; k < w->c->size; k++) equal += all[j] == all[k];
        if (equal < fewest) fewest = equal, odd = j;
    }
    if (odd < 0) return;
    if (w->c->rank == 0)
        die(EXIT_FAILED,
            "the parameters of worker %d differ from the others' after step %ld: its memory or its "
            "processor is at fault; go on from the last checkpoint with --resume",
            odd, w->step);
    await_the_end();
}

/* Losses of the server's exact model and of the nodes' own; returns 0 when a signal cut it short. */
static int evaluate_others(Worker *w) {
    int last = w->step >= w->run->o.steps;
    w->exact_val = w->node_val[0] = w->node_val[1] = w->node_val[2] = NAN;
    if (exact_model(w)) {
        if (!evaluate(w, w->exact, 0, &w->exact_val)) return 0;
        int parted = fabs(w->exact_val - w->val) > 0.05 || !isfinite(w->exact_val);
        if (parted && !w->warned && w->c->rank == 0)
            fprintf(
                stderr,
                "%swarning: the server's exact model has loss %.4f and the workers' model "
                "%.4f at step %ld: --down %s lets them part; model.safetensors is the workers', "
                "exact.safetensors the server's\n",
                isatty(2) ? "\r\033[K" : "", w->exact_val, w->val, w->step, w->run->o.down);
        w->warned |= parted;
    }
    int now_too = strcmp(w->run->o.eval_nodes, "always") == 0 ||
                  (last && strcmp(w->run->o.eval_nodes, "end") == 0);
    return !gossips(w) || !now_too || evaluate_nodes(w);
}

/* Validate now, keep the best; returns 0 when a signal cut it short. */
static int evaluate_now(Worker *w) {
    double val;
    if (!evaluate(w, deployed(w), 0, &val)) return 0;
    if (!isfinite(val)) die_diverged(w, first_not_finite(&w->g) % w->g.tensors, val);
    w->val = val;
    if (!evaluate_others(w)) return 0;
    w->evaluated = w->step;
    if (isnan(w->best) || val < w->best) {
        w->best = val;
        save(w, "best", 0);
    }
    return 1;
}

/* Counters and agreement, from all workers. */
static void gather_statistics(Worker *w) {
    struct {
        uint64_t sent, received, messages, up, down;
        double agreement;
    } mine, all[COMM_MAX_WORKERS];
    mine.sent = training_bytes(w->c->sent);
    mine.received = training_bytes(w->c->received);
    mine.messages = training_bytes(w->c->messages);
    mine.up = w->c->up[COMM_MATRICES] + w->c->up[COMM_AUXILIARY];
    mine.down = w->c->down[COMM_MATRICES] + w->c->down[COMM_AUXILIARY];
    mine.agreement = sm_optimizer_agreement(w->optimizer);
    comm_gather(w->c, &mine, sizeof mine, all, COMM_CONTROL);
    w->sent = w->received = w->messages = w->up = w->down = 0;
    w->agreement = 0;
    for (int j = 0; j < w->c->size; j++) {
        w->sent = all[j].sent > w->sent ? all[j].sent : w->sent;
        w->received = all[j].received > w->received ? all[j].received : w->received;
        w->messages = all[j].messages > w->messages ? all[j].messages : w->messages;
        w->up = all[j].up > w->up ? all[j].up : w->up;
        w->down = all[j].down > w->down ? all[j].down : w->down;
        w->agreement += all[j].agreement / w->c->size;
    }
    w->consensus = gossips(w) ? consensus_distance(w) : NAN;
}

/* The signal that asked any worker for an end, as all learn it here; 0 for none. */
static int signal_of_all(const Worker *w) {
    int32_t mine = comm_stop_requested(w->c), all[COMM_MAX_WORKERS], stop = 0;
    comm_gather(w->c, &mine, sizeof mine, all, COMM_OTHER);
    for (int j = 0; j < w->c->size; j++) stop = all[j] ? all[j] : stop;
    return stop;
}

static int due(long step, long every) { return every > 0 && step % every == 0; }

/* One step, with its evaluation, log and checkpoint. Returns -1 to go on, else an exit status. */
static int train_step(Worker *w) {
    const Options *o = &w->run->o;
    Report mine = make_gradient(w), all[COMM_MAX_WORKERS];
    comm_gather(w->c, &mine, sizeof mine, all, COMM_CONTROL);
    double loss = 0, square = 0;
    int stop = 0;
    SmComplaint complaints[COMM_MAX_WORKERS];
    for (int j = 0; j < w->c->size; j++) complaints[j] = all[j].complaint;
    judge(w, complaints);
    for (int j = 0; j < w->c->size; j++) {
        if (all[j].bad < 0 && !isfinite(all[j].square))
            die_accusing(w, j, "NaN", "the report of its gradient's norm", w->step + 1);
        loss += all[j].loss / w->c->size;
        square += all[j].square / w->c->size;
        if (all[j].stop) stop = (int)all[j].stop;
        if (all[j].bad < 0) continue;
        die_diverged(w, (size_t)all[j].bad, all[j].loss);
    }
    double rate = schedule(o, w->step);
    sm_optimizer_step(w->optimizer, w->g.params, w->g.grads, (uint64_t)w->step, o->lr * rate,
                      o->aux_lr * rate);
    w->step++;
    w->train = loss;
    int last = w->step >= o->steps, validate = due(w->step, o->eval_every) || last,
        saves = stop || last || due(w->step, o->save_every);
    if (validate || saves) judge_now(w);
    if (expel_dissenters(w)) return EXIT_OK;
    if (!gossips(w) && (due(w->step, o->check_every) || last)) check_replicas(w);
    int logged = due(w->step, o->log_every) || validate;
    if (logged) gather_statistics(w);
    int complete = !validate || evaluate_now(w);
    if (logged && complete && w->c->rank == 0) { /* else resuming will write the row */
        log_row(w, loss, validate ? w->val : NAN, sqrt(square));
        size_t column = (size_t)((double)(w->step - 1) / (double)o->steps * SPARK);
        w->curve[column] += loss;
        w->counted[column]++;
        if (isatty(2) || validate || now() - w->shown > 10) progress(w, last);
    }
    if (!complete) stop = signal_of_all(w); /* all workers know, and one of them why */
    if (stop || saves) save(w, "last", 1);
    if (stop && (!last || !complete)) {
        char out[PATH_SIZE];
        path_of(out, "%s", o->out);
        if (w->c->rank == 0)
            fprintf(stderr,
                    "%sstopped by signal %d after step %ld; %s/last holds it, --resume goes on\n",
                    isatty(2) ? "\n" : "", stop, w->step, harmless(out));
        return 128 + stop;
    }
    return -1;
}

/* The last words of a training run. */
static void conclude(Worker *w) {
    if (w->c->rank) return;
    if (w->log && fclose(w->log))
        die(EXIT_FAILED, "%s/log.csv: cannot be written: %s", w->run->o.out, strerror(errno));
    sparkline(w);
    double P = (double)w->g.parameters, steps = w->step > 0 ? (double)w->step : 1;
    int rank;
    if (w->run->config.expel && !w->run->o.quiet) {
        uint32_t longest = longest_dissent(w, &rank);
        fprintf(stderr,
                "longest row of steps against the others: %u, of worker %d; %ld would expel it\n",
                longest, rank, w->run->o.expel_after);
    }
    if (!w->run->o.quiet && w->c->size > 1)
        fprintf(stderr,
                "sent per worker: %.3f bits per parameter and step (fp32 all-reduce: %.3f)\n",
                8 * (double)w->sent / P / steps, 64.0 * (w->c->size - 1) / w->c->size);
    printf("val_loss %.4f best %.4f steps %ld seconds %.1f bytes_sent %" PRIu64 "\n", w->val,
           w->best, w->step, elapsed(w), w->sent);
    if (fflush(stdout) || ferror(stdout))
        die(EXIT_FAILED, "cannot write the result: %s", strerror(errno));
}

static int train(Worker *w) {
    const Options *o = &w->run->o;
    w->first = w->step;
    w->started = now();
    if (w->c->rank == 0) open_log(w, o->resume), write_command(w->run);
    gather_statistics(w);
    if (w->evaluated < w->step && (due(w->step, o->eval_every) || w->step >= o->steps)) {
        if (!evaluate_now(w)) return 128 + signal_of_all(w); /* nothing has been trained */
        if (w->c->rank == 0) log_row(w, NAN, w->val, NAN), progress(w, 0);
    }
    jmp_buf lost;
    if (strcmp(o->on_death, "continue") == 0 || (w->run->config.expel && w->c->machines == 1)) {
        take_snapshot(w);
        if (setjmp(lost)) go_on_without(w);
        comm_can_recover(w->c, &lost);
    }
    while (w->step < w->run->o.steps) {
        if (w->c->recover) take_snapshot(w);
        int status = train_step(w);
        if (status >= 0) return status;
    }
    conclude(w);
    return EXIT_OK;
}

/* Ranks on several machines must write into one folder: does everybody see a file that rank 0 has
 * just made there? */
static void check_shared_out(Worker *w) {
    char name[64] = "", path[PATH_SIZE];
    int32_t blind, all[COMM_MAX_WORKERS];
    if (w->c->rank == 0) {
        snprintf(name, sizeof name, ".ranks-%ld-%.0f", (long)getpid(), now() * 1e6);
        path_of(path, "%s/%s", w->run->o.out, name);
        FILE *f = fopen(path, "w");
        if (!f || fclose(f)) die(EXIT_FAILED, "%s: cannot be written: %s", path, strerror(errno));
    }
    comm_broadcast(w->c, name, sizeof name, 0, COMM_OTHER);
    path_of(path, "%s/%s", w->run->o.out, name);
    blind = access(path, F_OK) != 0;
    comm_gather(w->c, &blind, sizeof blind, all, COMM_OTHER);
    if (w->c->rank == 0) unlink(path);
    for (int j = 0; j < w->c->size; j++)
        if (all[j])
            die(EXIT_FAILED,
                "--out %s: rank %d does not see what rank 0 writes there: name a folder on a file "
                "system that all ranks share",
                w->run->o.out, j / w->c->locals);
}

/* The life of a worker: build the model, then train, evaluate or sample. */
static int work(Comm *c, void *arg) {
    Run *run = arg;
    const Options *o = &run->o;
    Worker *w = allocate(sizeof *w);
    int training = !o->sample && !o->eval;
    size_t B = training  ? (size_t)(o->batch / o->workers)
               : o->eval ? 12
                         : 1,
           T = (size_t)o->context;
    *w = (Worker){.run = run,
                  .c = c,
                  .evaluated = -1,
                  .val = NAN,
                  .best = NAN,
                  .train = NAN,
                  .exact_val = NAN,
                  .gap = NAN,
                  .consensus = NAN,
                  .node_val = {NAN, NAN, NAN},
                  .started = now()};
    for (int j = 0; j < c->size; j++) w->node_id[j] = j;
    w->first_liar = (int)(o->workers - o->adversaries);
    gpt_layout(&w->g, &run->shape);
    w->g.params = floats(w->g.parameters);
    gpt_allocate(&w->g, B, training, c->team);
    w->in = allocate(B * T * sizeof *w->in);
    w->target = allocate(B * T * sizeof *w->target);
    if (c->rank == 0 && run->checkpoint.map)
        read_model(&w->g, &run->checkpoint);
    else if (c->rank == 0)
        gpt_init(&w->g);
    comm_broadcast(c, w->g.params, w->g.parameters * sizeof(float), 0, COMM_OTHER);
    if (!o->sample)
        w->window_loss = allocate((size_t)data_val_windows(&run->data, T) * sizeof(double));
    int status = EXIT_OK;
    if (training) {
        w->g.grads = floats(w->g.parameters);
        w->tensor_square = allocate(w->g.tensors * sizeof(double));
        w->arena = allocate(
            sm_optimizer_bytes(&run->config, w->g.tensor, w->g.tensors, c->size, c->team->threads)
                .total);
        w->optimizer = sm_optimizer_init(w->arena, &run->config, w->g.tensor, w->g.tensors, c);
        if (gossips(w)) {
            w->mean = floats(w->g.parameters);
            w->gathered = floats(w->g.parameters + (size_t)c->size);
        }
        if (has_exact(run)) w->exact = floats(w->g.parameters);
        if (c->machines > 1) check_shared_out(w);
        if (o->resume) read_state(w);
        status = train(w);
    } else if (o->sample) {
        status = write_sample(&w->g, &run->vocab, o, c);
    } else {
        if (evaluate(w, w->g.params, 0, &w->val)) {
            if (c->rank == 0) printf("val_loss %.6f\n", w->val);
            if (fflush(stdout) || ferror(stdout))
                die(EXIT_FAILED, "cannot write the result: %s", strerror(errno));
        } else
            status = 128 + signal_of_all(w);
    }
    gpt_free(&w->g);
    free(w->in), free(w->target), free(w->window_loss), free(w->tensor_square), free(w->arena);
    free(w->mean), free(w->gathered), free(w->exact), free(w->mixing);
    forget_snapshot(&w->snapshot);
    if (w->own) data__free_shards(&w->own->data.shards);
    free(w->own), free(w);
    return status;
}

/* ------------------------------------------------------------------------------------------------
 * main */
#ifndef TESTING

/* Make a directory and its parents. */
static void make_directory(const char *path) {
    char part[PATH_SIZE];
    path_of(part, "%s", path);
    for (char *slash = part + 1;; slash++) {
        if (*slash != '/' && *slash) continue;
        char keep = *slash;
        *slash = 0;
        struct stat s;
        if (mkdir(part, 0777) && (errno != EEXIST || stat(part, &s) || !S_ISDIR(s.st_mode)))
            die(EXIT_FAILED, "--out %s: cannot make the directory %s: %s", path, part,
                strerror(errno == EEXIST ? ENOTDIR : errno));
        *slash = keep;
        if (!keep) break;
    }
    if (access(path, W_OK | X_OK))
        die(EXIT_FAILED, "--out %s: cannot be written to: %s", path, strerror(errno));
}

/* May a resumed run change a flag that is otherwise fixed, because the group is another one? */
static int may_resize(const Options *o, const Flag *f) {
    static const size_t field[] = {AT(workers), AT(batch), AT(adversaries), AT(attack)};
    int of_group = 0;
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) of_group |= f->field == field[i];
    if (strcmp(o->resume_workers, "refuse") != 0) return of_group;
    if (f->field == AT(workers))
        die(EXIT_USAGE,
            "--workers %ld: the checkpoint was left by another number of them; --resume-workers "
            "keep, mean or zero says what happens to their momenta",
            o->workers);
    return 0;
}

/* The step and, of a worker's file, the rank that a file of a checkpoint says it belongs to; -1
 * where it does not. */
static double stored_number(const StFile *f, const char *key) {
    const char *text = st_meta(f, key);
    char *end = NULL;
    double value = text ? strtod(text, &end) : -1;
    return text && end != text && !*end && value >= 0 && value <= HUGE_COUNT ? value : -1;
}

/* One file of a generation: is it whole, and of this step (-1: of any) and rank (-1: of none)?
 * Returns 0 and leaves it open, -1 and a sentence, or -2 when the file is not to blame. */
static int open_part(StFile *f, const char *folder, const char *name, double step, int rank,
                     char *error, size_t size) {
    char path[PATH_SIZE];
    path_of(path, "%s/%s.safetensors", folder, name);
    if (st_open(f, path, error, size))
        return errno && errno != ENOENT && errno != ENOTDIR && errno != ERANGE ? -2 : -1;
    const char *wrong = NULL;
    if (!f->verified)
        wrong = "carries no checksum: it was not written by train_gpt";
    else if (stored_number(f, "step") < 0)
        wrong = "tells no step: it was not written by train_gpt";
    else if ((step >= 0 && stored_number(f, "step") != step) ||
             (rank >= 0 && stored_number(f, "rank") != rank))
        wrong = "belongs to another step or worker than model.safetensors beside it";
    if (!wrong) return 0;
    st_close(f);
    return snprintf(error, size, "%s: %s", path, wrong), -1;
}

/* Open the model of the generation in `folder` as the run's checkpoint, when all that this call
 * will read of it is whole. Returns as open_part. */
static int open_generation(Run *run, const char *folder, char *error, size_t size) {
    StFile model, other;
    char path[PATH_SIZE], name[32];
    int failed = open_part(&model, folder, "model", -1, -1, error, size);
    if (failed) return failed;
    double step = stored_number(&model, "step"), workers = stored_number(&model, "workers");
    path_of(path, "%s/exact.safetensors", folder);
    int parts = run->o.resume && workers <= COMM_MAX_WORKERS ? (int)workers : 0;
    int there = access(path, F_OK) == 0;
    if (!there && errno != ENOENT) {
        snprintf(error, size, "%s: cannot be looked at: %s", path, strerror(errno));
        failed = -2;
    } else if (there || run->o.exact) {
        failed = open_part(&other, folder, "exact", step, -1, error, size);
        if (!failed) st_close(&other);
    }
    for (int r = 0; r < parts && !failed; r++) {
        snprintf(name, sizeof name, "worker-%d", r);
        failed = open_part(&other, folder, name, step, r, error, size);
        if (!failed) st_close(&other);
    }
    if (run->o.exact && !failed) { /* from here on this is the model */
        st_close(&model);
        failed = open_part(&model, folder, "exact", step, -1, error, size);
    } else if (failed)
        st_close(&model);
    if (failed) return failed;
    run->checkpoint = model;
    path_of(run->folder, "%s", folder);
    return 0;
}

/* The newest generation of OUT/name below a step that is whole; returns 0 once it is open. */
static int open_older(Run *run, const char *name, int except) {
    enum { MOST = 1000 };
    const char *out = run->o.out;
    char folder[PATH_SIZE], error[PATH_SIZE + 512];
    int slots[MOST], n = 0;
    double steps[MOST];
    DIR *all = opendir(out);
    if (!all) die(EXIT_FAILED, "%s: cannot be listed: %s", out, strerror(errno));
    for (const struct dirent *d; n < MOST && (d = readdir(all)) != NULL;) {
        StFile f;
        slots[n] = slot_number(d->d_name, name);
        if (slots[n] < 0 || slots[n] == except) continue;
        path_of(folder, "%s/%s", out, d->d_name);
        if (open_part(&f, folder, "model", -1, -1, error, sizeof error)) continue;
        steps[n++] = stored_number(&f, "step");
        st_close(&f);
    }
    closedir(all);
    for (int tried = 0; tried < n; tried++) {
        int newest = 0;
        for (int i = 1; i < n; i++)
            if (steps[i] > steps[newest]) newest = i;
        path_of(folder, "%s/.%s.%d", out, name, slots[newest]);
        run->slot = slots[newest];
        if (!open_generation(run, folder, error, sizeof error)) return 0;
        steps[newest] = -1;
    }
    return -1;
}

/* Open OUT/last or OUT/best; when it is damaged, the newest generation before it that is whole. */
static void find_checkpoint(Run *run) {
    const Options *o = &run->o;
    const char *name = o->resume ? "last" : o->from;
    char folder[PATH_SIZE], path[PATH_SIZE], error[PATH_SIZE + 512];
    struct stat s;
    path_of(folder, "%s/%s", o->out, name);
    path_of(path, "%s/model.safetensors", folder);
    if (lstat(folder, &s))
        die(EXIT_FAILED, "%s: %s; %s", path, strerror(errno),
            o->resume ? "there is nothing to resume: train first, or name the run with --out"
                      : "there is no checkpoint to read: train first, or name the run with --out");
    if (o->exact && access(path, F_OK) == 0) {
        path_of(path, "%s/exact.safetensors", folder);
        if (access(path, F_OK))
            die(EXIT_FAILED,
                "%s: %s; only an ef21 run with a compressed --down has a server whose model is not "
                "the workers': leave --exact out",
                path, strerror(errno));
    }
    run->slot = linked_slot(o->out, name, error, sizeof error);
    int failed = open_generation(run, folder, error, sizeof error);
    if (!failed) return;
    if (failed < -1)
        die(EXIT_FAILED,
            "%s; nothing was touched: mend this, or remove that file to go on from the "
            "save before it",
            error);
    if (open_older(run, name, run->slot))
        die(EXIT_FAILED, "%s; no other save in %s is whole: train anew with --overwrite", error,
            o->out);
    tell("%s; going on from %s, the save of step %.0f", error, run->folder,
         stored_number(&run->checkpoint, "step"));
}

/* Open a checkpoint and take over its flags, where the command line does not name another value. */
static void open_checkpoint(Run *run, const int *given) {
    Options *o = &run->o;
    char error[PATH_SIZE + 512], text[64];
    find_checkpoint(run);
    const char *path = run->checkpoint.path;
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        const Flag *f = &flags[i];
        const char *stored = st_meta(&run->checkpoint, f->name);
        int matters = o->resume || strcmp(f->group, MODEL) == 0 || strcmp(f->group, "Data") == 0;
        if (f->keep == KEEP_NOT || !matters) continue;
        if (strcmp(f->name, "workers") == 0 && stored)
            run->saved_workers = (int)stored_number(&run->checkpoint, "workers");
        if (!stored)
            die(EXIT_FAILED, "%s: says nothing of --%s: it was written by another version", path,
                f->name);
        if (!given[i]) {
            if (flag_parse(o, f, stored, error, sizeof error))
                die(EXIT_FAILED, "%s: %s", path, error);
        } else if (f->keep == KEEP_FIXED && !flag_agrees(o, f, stored) && !may_resize(o, f))
            die(EXIT_USAGE,
                "--%s %s differs from the checkpoint's %s, and a checkpoint cannot change it: "
                "leave the flag out, or train anew with another --out",
                f->name, flag_text(o, f, text, sizeof text), stored);
    }
}

static void open_data(Run *run) {
    Options *o = &run->o;
    char error[PATH_SIZE + 512];
    const char *stored = run->checkpoint.map ? st_meta(&run->checkpoint, "vocabulary") : NULL;
    if (data_open(&run->data, o->data, stored ? stored : o->vocab, error, sizeof error))
        die(EXIT_FAILED, "%s", error);
    assert(o->data && o->val_data); /* texts are never NULL */
    if (*o->val_data && data_open_val(&run->data, o->val_data, error, sizeof error))
        die(EXIT_FAILED, "%s", error);
    int code = o->eval
                   ? 0
                   : data_set_shards(&run->data, o->shards, (size_t)o->workers, (size_t)o->context,
                                     (uint64_t)o->seed, error, sizeof error);
    if (code)
        die(code == DATA_NO_MEMORY || (code == DATA_UNREADABLE && errno != ENOENT) ? EXIT_FAILED
                                                                                   : EXIT_USAGE,
            "--%s%s", strncmp(error, "shards", 6) ? "shards: " : "", error);
    if (data_check_context(&run->data, (size_t)o->context, (size_t)o->workers, error, sizeof error))
        die(EXIT_FAILED, "%s", error);
    size_t length = data_vocab_export(&run->data.vocab, NULL, 0);
    run->vocab_text = allocate(length + 1);
    data_vocab_export(&run->data.vocab, run->vocab_text, length + 1);
}

/* Shape of the model from the flags and the vocabulary. */
static void set_shape(Run *run, unsigned vocab) {
    const Options *o = &run->o;
    run->shape = (GptShape){.layers = (int)o->layers,
                            .heads = (int)o->heads,
                            .width = (int)o->width,
                            .context = (int)o->context,
                            .vocab = (int)vocab,
                            .bias = o->bias,
                            .untied = o->untied,
                            .bf16 = strcmp(o->dtype, "bf16") == 0,
                            .dropout = o->dropout,
                            .seed = (uint64_t)o->seed};
}

/* A model that is the checkpoint's, and that can fit this machine at all: parameters, gradients and
 * momenta of every worker, and one activation of each channel and block. */
static void check_size(const Run *run) {
    const Options *o = &run->o;
    int training = !o->sample && !o->eval;
    double copies = o->sample ? 1 : (double)o->workers * (training ? 3 : 1);
    double tokens = training ? (double)o->batch * (double)o->context : 0;
    double channels = (double)o->width * (double)o->layers;
    double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    Gpt g;
    gpt_layout(&g, &run->shape);
    double least = sizeof(float) * (copies * (double)g.parameters + tokens * channels);
    if (run->checkpoint.map) check_shapes(&g, &run->checkpoint);
    gpt_free(&g);
    if (have > 0 && least > have && !o->dry_run)
        die(EXIT_FAILED,
            "this run takes at least %.3g GB and this machine has %.3g: take a smaller model, "
            "batch "
            "or context, or fewer workers",
            least * 1e-9, have * 1e-9);
}

/* A run directory that nothing gets lost in. */
static void prepare_out(const Run *run) {
    const Options *o = &run->o;
    char path[PATH_SIZE];
    struct stat s;
    path_of(path, "%s/last", o->out);
    int there = lstat(path, &s) == 0;
    if (!there && errno != ENOENT && errno != ENOTDIR)
        die(EXIT_FAILED, "%s: cannot be looked at: %s", path, strerror(errno));
    if (!o->resume && !o->overwrite && there)
        die(EXIT_FAILED,
            "%s holds a checkpoint: --resume goes on from it, --overwrite starts anew, --out DIR "
            "leaves it alone",
            path);
    make_directory(o->out);
}

/* A mapped file ended before its last page: it was cut short by somebody else. */
static void end_of_map(int signal_number) {
    static const char text[] =
        "train_gpt: a file (--data or a checkpoint) was cut short while it was being read, or its "
        "disk fails: restore it, then --resume\n";
    if (comm__signalled && atomic_exchange(&comm__signalled->spoken, 1)) await_the_end();
    ssize_t told = write(2, text, sizeof text - 1);
    _exit(told < 0 ? 128 + signal_number : EXIT_FAILED);
}

/* The end of a call whose result is on stdout. */
static int told(void) {
    if (fflush(stdout) || ferror(stdout))
        die(EXIT_FAILED, "cannot write the result: %s", strerror(errno));
    return EXIT_OK;
}

/* Several processes that do not know each other would all train the same into one folder. */
static void refuse_strangers(CommPlace place) {
    if (place.machines == 1 || comm_backend("mpi")) return;
    if (place.machine > 0) exit(EXIT_USAGE);
    die(EXIT_USAGE,
        "started %d times over, but built without MPI: make mpi, then mpirun -n %d train_gpt_mpi",
        place.machines, place.machines);
}

/* --workers counts those of one rank; from here on, those of all ranks. */
static void count_workers(Options *o, int ranks) {
    if (o->workers * ranks > COMM_MAX_WORKERS)
        die(EXIT_USAGE, "--workers %ld on each of %d ranks: %d in all is the most", o->workers,
            ranks, COMM_MAX_WORKERS);
    o->workers *= ranks;
}

static int was_given(const int *given, size_t field) {
    size_t i = 0;
    while (flags[i].field != field) i++;
    return given[i];
}

/* Under mpirun workers live on its ranks, else here, whatever a checkpoint says. */
static void place_workers(Options *o, const int *given, CommPlace place) {
    int chosen = was_given(given, AT(backend)), mpi = strcmp(o->backend, "mpi") == 0;
    if (chosen && mpi && !comm_backend("mpi"))
        die(EXIT_USAGE,
            "--backend mpi: built without MPI: make mpi, then mpirun -n %ld "
            "train_gpt_mpi",
            o->workers);
    if (chosen && !mpi && place.machines > 1)
        die(EXIT_USAGE, "--backend %s: %d ranks were started, which takes mpi", o->backend,
            place.machines);
    if (place.machines > 1)
        o->backend = "mpi";
    else if (!chosen && mpi)
        o->backend = "threads";
    if (o->workers % place.machines && !o->sample)
        die(EXIT_USAGE, "%ld workers cannot be spread evenly over %d ranks: start another number",
            o->workers, place.machines);
    long beside = o->workers / place.machines * place.beside;
    if (o->threads == 0) o->threads = comm_cores() / beside > 0 ? comm_cores() / beside : 1;
    if (o->threads > 256) o->threads = 256;
}

int main(int argc, char **argv) {
    static Run run;
    Options *o = &run.o;
    int given[FLAG_COUNT];
    char error[1024];
    run.place = comm_init(&argc, &argv);
    if (run.place.machine > 0 && !freopen("/dev/null", "w", stdout)) /* rank 0 speaks */
        die(EXIT_FAILED, "/dev/null: %s", strerror(errno));
    comm_float_environment();
    signal(SIGXFSZ, SIG_IGN); /* writing then fails, and what failed can be told */
    signal(SIGBUS, end_of_map);
    parse_flags(o, argc, argv, given);
    if (o->help) return print_help(), told();
    if (o->version) return printf("train_gpt %s (%s)\n", GPT_VERSION, __VERSION__), told();
    if (*o->list) return print_list(o->list), told();
    refuse_strangers(run.place);
    count_workers(o, run.place.machines);
    if ((o->resume != 0) + (o->sample != 0) + (o->eval != 0) > 1)
        die(EXIT_USAGE, "--resume, --sample and --eval are three different calls: name one");
    if (o->exact && !o->sample && !o->eval) die(EXIT_USAGE, "--exact goes with --sample or --eval");
    if (o->resume || o->sample || o->eval) open_checkpoint(&run, given);
    place_workers(o, given, run.place);
    check_together(o);
    run.config = resolve_method(o, &run.up, &run.down, &run.graph);
    run.config.machines = run.place.machines;
    if (noise_parse(&run.noise, o->gradient_noise, error, sizeof error))
        die(EXIT_USAGE, "--gradient-noise: %s", error);
    parse_link(o->link, &run.per_byte, &run.per_message);
    for (const char *text = o->data; text; text = text == o->data ? o->val_data : NULL)
        if (!st_is_utf8(text))
            die(EXIT_USAGE, "a path that is not UTF-8 cannot be noted in a checkpoint: rename it, "
                            "or use a link");
    if (o->sample) {
        const char *vocabulary = st_meta(&run.checkpoint, "vocabulary");
        if (!vocabulary || data_vocab_import(&run.vocab, vocabulary, strlen(vocabulary)))
            die(EXIT_FAILED, "%s: its vocabulary cannot be read: it was not written by train_gpt",
                run.checkpoint.path);
        set_shape(&run, run.vocab.size);
    } else {
        open_data(&run);
        set_shape(&run, run.data.vocab.size);
    }
    check_size(&run);
    if (o->dry_run) return print_dry_run(&run), told();
    if (!o->sample && !o->eval) {
        prepare_out(&run);
        if (!o->quiet && run.place.machine == 0) {
            Gpt g;
            gpt_layout(&g, &run.shape);
            fprintf(stderr,
                    "%zu parameters, vocabulary %d, %" PRIu64 " tokens to train on, %" PRIu64
                    " to validate on; %ld %s x %ld compute threads, %s\n",
                    g.parameters, run.shape.vocab, run.data.train_tokens, run.data.val_tokens,
                    o->workers, o->backend, o->threads, gemm_default(GEMM_F32)->name);
            print_rules(stderr, &run, &g);
            gpt_free(&g);
        }
    }
    int goes_on = strcmp(o->on_death, "continue") == 0 && !o->sample && !o->eval;
    CommOptions options = {.backend = comm_backend(o->sample ? "threads" : o->backend),
                           .workers = o->sample ? 1 : (int)o->workers,
                           .threads = o->sample ? 1 : (int)o->threads,
                           .least = goes_on ? (int)o->min_workers : 0,
                           .timeout = o->timeout,
                           .machines = o->sample ? 1 : run.place.machines,
                           .hold = !o->overlap};
    int status = comm_run(&options, work, &run, error, sizeof error);
    if (status == COMM_DIED)
        die(EXIT_FAILED, "%s; --resume goes on from %s/last if that was saved", error, o->out);
    if (status == COMM_FAILED) die(EXIT_FAILED, "%s", error);
    data_close(&run.data);
    data_vocab_free(&run.vocab);
    st_close(&run.checkpoint);
    free(run.vocab_text);
    return status;
}
#endif
