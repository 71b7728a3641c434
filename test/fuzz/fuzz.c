/* fuzz.c - any bytes to every reader of bytes that others wrote. clang's libFuzzer, C11, MIT.

   A row of `targets` is one fuzz target; the name under which this program is called chooses it. A
   target gives its input to one reader and checks what the reader promises; sanitizers watch the rest.
   test/fuzz/run.sh builds and runs them all, from the inputs in seeds/TARGET. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
/* Files are "mapped" into blocks of exactly their size, so that a read behind the end is seen. */
static void *fuzz_mmap(void *at, size_t size, int protection, int flags, int fd, off_t from) {
    char *copy = fd < 0 ? NULL : malloc(size);
    if (!copy) return mmap(at, size, protection, flags, fd, from);
    if (pread(fd, copy, size, from) != (ssize_t)size) abort();
    return copy;
}
#define mmap fuzz_mmap
#define munmap(at, size) ((void)(size), free(at))
#include "lib/checkpoint.h"
#include "lib/images.h"
#include "options.h"

/* A promise that is broken ends the run; libFuzzer keeps the input. */
#define PROMISE(condition)                                                                         \
    if (!(condition)) fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition), abort()

/* An input, read from the front; behind its end come zeros. */
typedef struct Input {
    const uint8_t *at;
    size_t left;
} Input;

static char folder[200], error[2 * BASE_PATH], note[BASE_PATH];

static unsigned take_byte(Input *in) { return in->left ? in->left--, *in->at++ : 0; }

/* The next bytes up to a newline, or all, as a string; returns its length. */
static size_t take_line(Input *in, char *text, size_t size) {
    size_t n = 0;
    for (unsigned c; in->left && (c = take_byte(in)) != '\n';)
        if (n + 1 < size) text[n++] = (char)c;
    text[n] = 0;
    return n;
}

/* The path of a file that holds the rest of an input. */
static const char *file_of(const char *name, Input in) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || (in.left && write(fd, in.at, in.left) < 0) || close(fd)) abort();
    return path;
}

/* What is refused has a reason. It holds no control character, unless a user may have typed it. */
static int refused(int code, int typed) {
    PROMISE(!code || *error);
    for (const char *c = error; code && !typed && *c; c++) PROMISE((unsigned char)*c >= 32);
    return code;
}

/* ------------------------------------------------------------------------------------------------
 * saves */

/* What opens lies inside the file, and what is written of it says the same. */
static void fuzz_safetensors(Input in) {
    static float floats[1 << 14];
    StTensor tensor[64];
    StPair meta[64];
    StFile f, again;
    size_t sum = 0, n = 0;
    if (refused(st_open(&f, file_of("input", in), error, sizeof error), 0)) return;
    for (size_t i = 0; i < f.n; i++) {
        const StEntry *e = &f.entries[i];
        int is_f32 = strcmp(e->dtype, "F32") == 0;
        size_t count = 1;
        for (int d = 0; d < e->rank; d++)
            PROMISE(!__builtin_mul_overflow(count, e->shape[d], &count));
        PROMISE(count == e->count && e->begin <= e->end && !count == (e->begin == e->end));
        PROMISE(st_find(&f, e->name) == e && base_is_utf8(e->name));
        if (!is_f32 || count <= 1 << 14)
            PROMISE(st_read_f32(&f, e->name, floats, count, error, sizeof error) == is_f32 - 1);
        sum += e->end - e->begin;
        if (i >= 64) continue;
        tensor[i] = (StTensor){.name = e->name, .dtype = e->dtype, .rank = e->rank};
        tensor[i].data = st_data(&f, e);
        memcpy(tensor[i].shape, e->shape, sizeof e->shape);
    }
    PROMISE(f.size == in.left && f.data + sum == f.map + f.size);
    for (size_t i = 0; i < f.n_meta && n < 64; i++)
        if (strncmp(f.meta[i].key, "checksum", 8)) meta[n++] = f.meta[i];
    if (f.n <= 64 && f.n_meta <= 64) {
        const char *path = file_of("again", (Input){0});
        PROMISE(st_write(path, tensor, f.n, meta, n, error, sizeof error) == 0);
        PROMISE(st_open(&again, path, error, sizeof error) == 0 && again.verified);
        PROMISE(again.n == f.n && again.n_meta == n + 2);
        for (size_t i = 0; i < f.n; i++) {
            const StEntry *a = &f.entries[i], *b = st_find(&again, a->name);
            PROMISE(b && a->count == b->count && a->end - a->begin == b->end - b->begin);
            PROMISE(!a->count || !memcmp(st_data(&f, a), st_data(&again, b), a->end - a->begin));
        }
        for (size_t i = 0; i < n; i++)
            PROMISE(strcmp(st_meta(&again, meta[i].key), meta[i].value) == 0);
        st_close(&again);
    }
    st_close(&f);
}

/* Every flag as text, and that text read as the flag, is the flag. */
static void check_round_trip(const Options *o) {
    char text[64];
    for (size_t i = 0; i < FLAGS; i++) {
        Options copy = *o;
        const char *value = flags_text(&flags[i], o, text, sizeof text);
        if (strcmp(value, "auto") == 0 || strcmp(value, flags[i].fallback) == 0) continue;
        PROMISE(flags_set(&flags[i], &copy, value, error, sizeof error) == 0);
        PROMISE(flags_equal(&flags[i], o, value) && flags_equal(&flags[i], &copy, value));
    }
}

/* Options that are accepted together are complete. */
static void check_options(Options *o, const unsigned char *given) {
    double byte = 1, message = 1;
    if (o->workers > 64 || (o->rule.topology && !strncmp(o->rule.topology, "file:", 5))) return;
    if (options_check(o, given, 1, 1, error, sizeof error)) return;
    PROMISE(o->rule.aux && o->rule.gain && o->schedule && o->warmup >= 0 && o->threads >= 1);
    PROMISE(isfinite(o->rule.lr + o->rule.aux_lr + o->rule.momentum + o->rule.clip));
    for (long k = 0; k < 3; k++) PROMISE(isfinite(schedule(o, k * (o->steps / 2))));
    PROMISE(!*o->link || options_link(o->link, &byte, &message));
    PROMISE(isfinite(byte + message) && byte > 0 && message >= 0);
    check_round_trip(o);
}

/* A line is a word. */
static void fuzz_flags(Input in) {
    static char text[127][512];
    char *word[128] = {text[0]};
    unsigned char given[FLAGS];
    Options o;
    int count = 1;
    for (; in.left && count < 127; count++) {
        word[count] = text[count];
        take_line(&in, word[count], sizeof text[0]);
    }
    options_defaults(&o);
    if (refused(flags_parse(flags, FLAGS, &o, count, word, given, error, sizeof error), 0)) return;
    check_round_trip(&o);
    check_options(&o, given);
}

/* One part of a save. Its checksum is right, whatever its metadata say. */
static void forge(const char *save, const char *part, StPair *pairs, size_t n) {
    static const float x[3] = {1, -2, 3};
    const StTensor t = {.name = "a", .dtype = "F32", .shape = {3}, .rank = 1, .data = x};
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, save);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s/%s.safetensors", folder, save, part);
    if (st_write(path, &t, 1, pairs, n, error, sizeof error)) unlink(path);
}

/* Lines KEY=VALUE replace the metadata of the newest model, or the input is its worker-0. */
static void fuzz_checkpoint(Input in) {
    static char line[32][512];
    StPair pair[FLAGS + 40] = {{"checkpoint_part", "model"},
                               {"checkpoint_run", "7b"},
                               {"checkpoint_step", "3"},
                               {"checkpoint_parts", "2"}};
    size_t n = 4, k;
    unsigned how = take_byte(&in);
    unsigned char given[FLAGS] = {0};
    Checkpoint c;
    Options o;
    forge("previous", "model", pair, n);
    pair[0].value = "worker-0";
    forge("previous", "worker-0", pair, n);
    forge("last", "worker-0", pair, n);
    if (how & 1) file_of("last/worker-0.safetensors", in);
    pair[0].value = "model";
    for (size_t i = 0; i < FLAGS; i++) pair[n++] = (StPair){flags[i].name, flags[i].fallback};
    for (size_t i = 0; in.left && i < 32; i++) {
        take_line(&in, line[i], sizeof line[i]);
        char *equal = strchr(line[i], '=');
        if (!equal) continue;
        *equal = 0;
        for (k = 0; k < n && strcmp(pair[k].key, line[i]); k++) continue;
        pair[k] = (StPair){line[i], equal + 1};
        n += k == n;
    }
    forge(how & 2 ? "last.new" : "last", "model", pair, n);
    options_defaults(&o);
    o.resume = how >> 7;
    int all = how >> 6 & 1;
    if (!refused(checkpoint_open(folder, "last", all, &c, note, BASE_PATH, error, BASE_PATH), 0)) {
        PROMISE(c.model.verified && c.stamp.run && c.stamp.step <= (uint64_t)1 << 53);
        if (!options_take(&o, given, &c.model, error, sizeof error)) check_options(&o, given);
    }
    checkpoint_close(&c);
    for (int i = 0; i < CHECKPOINT__NAMES; i++)
        checkpoint__remove(folder, checkpoint__names[i], error, sizeof error);
}

/* What stays of a log are whole rows, up to the step that a run goes on from. */
static void fuzz_log(Input in) {
    static const ReportColumn columns[] = {{"step", "%.0f"}, {"loss", "%.6f"}, {"rate", "%.6g"}};
    ReportLog log;
    char line[4096];
    double until = take_byte(&in);
    file_of("log.csv", in);
    PROMISE(report_open_log(&log, folder, columns, 3, until, error, sizeof error) == 0);
    FILE *f = fopen(log.path, "r");
    PROMISE(f && fgets(line, sizeof line, f) && !strcmp(line, "step,loss,rate\n"));
    while (fgets(line, sizeof line, f)) {
        char *second = strchr(line, ','), *third = second ? strchr(second + 1, ',') : NULL;
        PROMISE(strchr(line, '\n') && third && !strchr(third + 1, ','));
        PROMISE(strtod(line, NULL) <= until);
    }
    fclose(f);
    PROMISE(report_close_log(&log, error, sizeof error) == 0);
}

/* A vocabulary survives export and import. */
static void check_vocabulary(const DataVocab *v) {
    DataVocab again;
    size_t length = data_vocab_export(v, NULL, 0);
    char *text = malloc(length + 1);
    PROMISE(text && data_vocab_export(v, text, length + 1) == length);
    PROMISE(data_vocab_import(&again, text, length) == 0 && again.size == v->size);
    PROMISE(!v->code || !memcmp(again.code, v->code, v->size * sizeof *v->code));
    data_vocab_free(&again);
    free(text);
}

/* A text is what its tokens decode to, and every window of any data holds tokens below V. */
static void fuzz_text(Input in) {
    enum { T = 5, N = 3 };
    static const char *const modes[] = {"auto", "chars", "bytes", "chars:20-7e", "gpt2:1000"};
    DataSet d;
    char out[DATA_DECODED];
    int32_t x[T], y[T], token;
    const char *mode = modes[take_byte(&in) % 5];
    size_t at = 0;
    if (refused(data_open(&d, file_of("input", in), mode, error, sizeof error), 0)) return;
    for (uint64_t i = 0; !d.text.tokenised && i < d.text.tokens; i++) {
        PROMISE(data__read(&d.text, &d.vocab, i, 1, &token) == 0);
        size_t n = data_decode(&d.vocab, (unsigned)token, out);
        PROMISE(n >= 1 && at + n <= in.left && !memcmp(out, in.at + at, n));
        at += n;
    }
    PROMISE(d.text.tokenised || at == in.left);
    check_vocabulary(&d.vocab);
    if (!data_set_shards(&d, data_shards_row(at % 2)->name, N, T, error, sizeof error))
        for (uint64_t k = 0; k < 60; k++)
            if (data_train_window(&d, 1, k % N, N, T, k / N, x, y) == 0)
                for (int t = 0; t < T; t++)
                    PROMISE((uint32_t)x[t] < d.vocab.size && (uint32_t)y[t] < d.vocab.size);
    data_close(&d);
}

/* A line as a vocabulary, and a line as a prompt in it. */
static void fuzz_vocabulary(Input in) {
    char text[4096], prompt[256], bytes[DATA_DECODED];
    uint16_t token[256];
    DataVocab v;
    size_t length = take_line(&in, text, sizeof text), at = 0;
    take_line(&in, prompt, sizeof prompt);
    if (data_vocab_import(&v, text, length)) return;
    PROMISE(v.size >= 1 && v.size <= DATA_MAX_VOCAB + 1 && data_decode(&v, v.size, bytes) == 0);
    int64_t n = data_encode(&v, prompt, token, 256);
    PROMISE(n >= -(int64_t)strlen(prompt) - 1 && n <= (int64_t)strlen(prompt));
    for (int64_t i = 0; i < n; i++) {
        size_t m = data_decode(&v, token[i], bytes);
        PROMISE(token[i] < v.size && m && !memcmp(bytes, prompt + at, m));
        at += m;
    }
    check_vocabulary(&v);
    data_vocab_free(&v);
}

/* ------------------------------------------------------------------------------------------------
 * what workers are told and tell each other */

/* Any bytes as a mixing matrix: what is accepted is doubly stochastic. */
static void fuzz_graph(Input in) {
    enum { MOST = 16 };
    double storage[1024], weight[MOST], sum[2][MOST];
    char text[300];
    int source[MOST], n = (int)(take_byte(&in) % (MOST + 1));
    DmGraph g;
    take_line(&in, text, sizeof text);
    if (strncmp(text, "file:", 5) == 0)
        snprintf(text, sizeof text, "file:%s", file_of("input", in));
    if (refused(dm_graph_build(&g, storage, text, n, error, sizeof error), 1)) return;
    for (int p = 0; p < g.period; p++) {
        memset(sum, 0, sizeof sum);
        for (int i = 0; i < n; i++) {
            size_t count = dm_sources(&g, (uint64_t)p, i, source, weight);
            PROMISE(count >= 1 && count <= (size_t)n);
            for (size_t k = 0; k < count; k++) {
                PROMISE(weight[k] > 0 && source[k] >= 0 && source[k] < n);
                sum[0][i] += weight[k];
                sum[1][source[k]] += weight[k];
            }
        }
        for (int i = 0; i < 2 * n; i++) PROMISE(fabs(sum[i / n][i % n] - 1) <= 1.1e-6);
    }
    double rho = dm_graph_rho(&g);
    PROMISE(rho >= 0 && rho <= 1 + 1e-6 && dm_rounds_to_shrink(&g, 1000) >= 0);
}

/* A block of exactly so many floats, all of them NaN. */
static float *exactly(size_t floats) {
    void *p;
    if (posix_memalign(&p, 64, floats * sizeof(float) + !floats)) abort();
    return memset(p, 0xff, floats * sizeof(float));
}

/* Any bytes as messages of two workers: what is accepted is finite, what is refused changes nothing,
 * and compressing what was decoded gives it again where nothing is rounded anew. */
static void fuzz_messages(Input in) {
    char text[64];
    EfLink l;
    size_t rows = 1 + take_byte(&in) % 24, cols = 1 + take_byte(&in) % 40, d = rows * cols;
    unsigned how = take_byte(&in);
    take_line(&in, text, sizeof text);
    if (refused(ef_parse(&l, text, error, sizeof error), 1)) return;
    size_t most = ef_most_bytes(&l, rows, cols), bytes = most;
    if (how & 0x80) bytes = most + (how >> 4 & 7) - 4; /* a wrong length, mostly */
    if (bytes > most + 8) bytes = 0;
    float *estimate = exactly(d), *decoded = exactly(d), *again = exactly(d),
          *warm = exactly(ef_warm(&l, rows, cols)), *scratch = exactly(ef_scratch(&l, rows, cols));
    unsigned char *message = calloc(1, 2 * bytes + 1), *encoded = malloc(most);
    PROMISE(message && encoded);
    memcpy(message, in.at, in.left < 2 * bytes ? in.left : 2 * bytes);
    memset(warm, 0, ef_warm(&l, rows, cols) * sizeof *warm);

    int code = ef_decode(decoded, message, bytes, rows, cols, &l, scratch);
    PROMISE(code == EF_MALFORMED || bytes == most || (l.row->dropout && !bytes));
    PROMISE(code || sm_finite(decoded, d));
    if (!code && bytes && !l.stochastic && !strstr("damping rankk svdtopk dropout", l.row->name)) {
        ef_compress(encoded, again, decoded, rows, cols, &l, 1, 0, warm, scratch);
        for (size_t i = 0; i < d; i++) PROMISE(again[i] == decoded[i]);
    }
    for (size_t i = 0; i < d; i++) estimate[i] = 1;
    PROMISE(ef_receive(estimate, message, bytes, rows, cols, &l, scratch) == code);
    for (size_t i = 0; i < d; i++)
        PROMISE(estimate[i] == (code ? 1 : decoded[i] + (l.row->replaces ? 0.0f : 1.0f)));
    for (size_t i = 0; i < d; i++) estimate[i] = 2;
    int all = ef_aggregate(estimate, message, bytes, bytes, 2, rows, cols, &l, scratch);
    PROMISE(!code || all == code);
    for (size_t i = 0; i < d; i++) PROMISE(all ? estimate[i] == 2 : isfinite(estimate[i]));
    free(estimate), free(decoded), free(again), free(warm), free(scratch);
    free(message), free(encoded);
}

/* Two IDX files, or CIFAR-10's six: what is read is whole, and its labels are below `classes`. */
static void fuzz_images(Input in) {
    static const char *const name[] = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                                       "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};
    ImageSet set[2];
    char used[6][256];
    unsigned sum = 0, cifar = take_byte(&in) & 1, first = take_byte(&in);
    for (unsigned k = 0; k < (cifar ? 6 : 4); k++) {
        char batch[32];
        Input part = in;
        size_t cut = in.left < first ? in.left : first;
        snprintf(batch, sizeof batch, k < 5 ? "data_batch_%u.bin" : "test_batch.bin", k + 1);
        if (k % 2 == 0) part.left = cifar ? in.left : cut;
        if (k % 2 == 1 && !cifar) part.at += cut, part.left -= cut;
        snprintf(used[k], sizeof used[k], "%s", file_of(cifar ? batch : name[k], part));
    }
    if (!refused(images_open(&set[0], &set[1], folder, error, sizeof error), 0))
        for (int s = 0; s < 2; s++) {
            for (size_t i = 0; i < set[s].count * images_pixels(&set[s]); i++)
                sum += set[s].pixel[i];
            for (size_t i = 0; i < set[s].count; i++) PROMISE(set[s].label[i] < set[0].classes);
        }
    PROMISE(sum < UINT32_MAX);
    images_free(&set[0]), images_free(&set[1]);
    for (unsigned k = 0; k < (cifar ? 6 : 4); k++) unlink(used[k]);
}

static void fuzz_attack(Input in) {
    char text[128];
    float u[4] = {1, -2, 0, 7};
    Attack a;
    take_line(&in, text, sizeof text);
    if (refused(attack_parse(&a, text, error, sizeof error), 1)) return;
    attack_apply(&a, u, 4, 3);
    for (int i = 0; i < 4; i++) PROMISE(isnan(a.factor) || fabs((double)u[i]) <= 1e10);
}

typedef struct Target {
    const char *name;
    void (*run)(Input in);
} Target;
#define TARGET(name) ((Target){#name, fuzz_##name})
static const Target targets[] = {
    TARGET(safetensors), TARGET(checkpoint), TARGET(flags),    TARGET(log),    TARGET(text),
    TARGET(vocabulary),  TARGET(graph),      TARGET(messages), TARGET(attack), TARGET(images)};
static const Target *chosen; /* by the name of the program; without one, all names are printed */

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *slash = strrchr((*argv)[0], '/'), *where = getenv("TMPDIR");
    const Target *end = targets + sizeof targets / sizeof targets[0];
    for (const Target *t = targets; t < end; t++)
        if (slash && strcmp(t->name, slash + 1) == 0) chosen = t;
    for (const Target *t = targets; t < end && !chosen; t++) puts(t->name);
    if (!chosen) exit(0);
    snprintf(folder, sizeof folder, "%.150s/fuzz_XXXXXX", where ? where : "/tmp");
    return mkdtemp(folder) ? (void)argc, 0 : 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    return chosen->run((Input){data, size}), 0;
}
