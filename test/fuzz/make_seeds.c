/* make_seeds.c - writes the inputs that fuzzing begins with: test/fuzz/seeds/TARGET/NAME. C11, MIT.

     make fuzz-seeds

   Each is a valid input of its target, or nearly one, made by the project's own writers. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#define TESTING
#pragma GCC diagnostic ignored "-Wunused-function"
#include "train_gpt.c"

typedef struct Seed {
    unsigned char bytes[4096];
    size_t n;
} Seed;

static void put(Seed *s, const void *bytes, size_t n) {
    if (n > sizeof s->bytes - s->n) die(EXIT_FAILED, "a seed is too long");
    memcpy(s->bytes + s->n, bytes, n);
    s->n += n;
}
static void put_text(Seed *s, const char *text) { put(s, text, strlen(text)); }
static void put_byte(Seed *s, unsigned byte) { put(s, &(unsigned char){(unsigned char)byte}, 1); }

static void save_seed(const Seed *s, const char *target, const char *name) {
    char path[PATH_SIZE];
    path_of(path, "test/fuzz/seeds/%s", target);
    if (mkdir(path, 0777) && errno != EEXIST) die(EXIT_FAILED, "%s: %s", path, strerror(errno));
    path_of(path, "test/fuzz/seeds/%s/%s", target, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(s->bytes, 1, s->n, f) != s->n || fclose(f))
        die(EXIT_FAILED, "%s: %s", path, strerror(errno));
}

/* A seed of leading bytes and a text behind them. */
static void save_text(const char *target, const char *name, const char *lead, size_t n,
                      const char *text) {
    Seed s = {.n = 0};
    put(&s, lead, n);
    put_text(&s, text);
    save_seed(&s, target, name);
}

/* A file whose header is `text`, its length off by so much, and so many bytes of tensors. */
static void seed_header(const char *name, const char *text, uint64_t off, size_t bytes) {
    Seed s = {.n = 0};
    uint64_t length = strlen(text) + off;
    put(&s, &length, 8);
    put_text(&s, text);
    while (bytes--) put_byte(&s, 7);
    save_seed(&s, "safetensors", name);
}

/* What is refused for one reason each. */
static void seed_wrong_headers(void) {
    static const char one[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}";
    seed_header("one", one, 0, 2);
    seed_header("short", one, 0, 1);
    seed_header("long", one, 0, 3);
    seed_header("cut", one, 3, 2);
    seed_header("huge", one, (uint64_t)1 << 63, 2);
    seed_header("hole", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 0, 3);
    seed_header("back", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]}}", 0, 2);
    seed_header("overlap",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                0, 2);
    seed_header("twice",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                0, 2);
    seed_header("overflow",
                "{\"a\":{\"dtype\":\"F64\",\"shape\":[4294967296,536870912],"
                "\"data_offsets\":[0,0]}}",
                0, 0);
    seed_header("product",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],"
                "\"data_offsets\":[0,0]}}",
                0, 0);
    seed_header("meta", "{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"}}", 0, 0);
    seed_header("pair", "{\"__metadata__\":{\"k\":\"\\ud83d\"}}", 0, 0);
    seed_header("open", "{\"__metadata__\":{\"k\":\"\\u12", 0, 0);
}

static void seed_safetensors(void) {
    static const float x[6] = {1, -2, 3, -4, 5, -6};
    static const char foreign[] = "{\"a\\u00e9\\ud83d\\ude00\":{\"dtype\":\"U8\",\"shape\":[],"
                                  "\"data_offsets\":[0,1]}, \"b\" : {\"shape\":[0,7],\"dtype\":"
                                  "\"F32\",\"data_offsets\":[1,1]}}  ";
    const StTensor t[] = {{"weight", "F32", {2, 3}, 2, x}, {"bits", "U8", {5}, 1, x}};
    const StPair meta[] = {{"step", "100"}, {"say \"\\", "line\nline"}};
    char error[256];
    StPart part[3];
    StError e = {"seed", error, sizeof error};
    Seed s = {.n = 0};
    uint64_t length = sizeof foreign - 1;
    if (st__compose(part, t, 2, meta, 2, &e)) die(EXIT_FAILED, "%s", error);
    for (int i = 0; i < 3; i++) put(&s, part[i].data, part[i].bytes);
    save_seed(&s, "safetensors", "ours");
    free((void *)(uintptr_t)part[0].data);
    s.n = 0;
    put(&s, &length, 8);
    put(&s, foreign, length);
    put_byte(&s, 7);
    save_seed(&s, "safetensors", "foreign");
}

static void seed_data(void) {
    uint32_t header[256] = {20240520, 1, 200};
    Seed s = {.n = 0};
    put_byte(&s, 0);
    put(&s, header, sizeof header);
    for (uint32_t i = 0; i < 200; i++) put(&s, &(uint16_t){(uint16_t)(i * i % 900)}, 2);
    save_seed(&s, "tokens", "small");
    s.bytes[0] = 1;
    save_seed(&s, "tokens", "given");
    save_text("text", "ascii", "\0", 1, "To be, or not to be: that is the question.\n");
    save_text("text", "wide", "\1", 1, "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\n");
    save_text("text", "bytes", "\2", 1, "\xff\xfe ascii\x80");
    save_text("text", "fixed", "\3", 1, "caf\xc3\xa9 \xe2\x82\xac\n");
    save_text("text", "cut", "\1", 1, "cut \xe2\x82");
    save_text("text", "surrogate", "\1", 1, "\xed\xa0\x80");
    save_text("vocabulary", "descending", "", 0, "chars:41,20\n");
    save_text("vocabulary", "beyond", "", 0, "chars:10fff0-110000\n");
    save_text("vocabulary", "byte", "", 0, "bytes:80-100\n");
    save_text("vocabulary", "chars", "", 0,
              "chars:a,20-7e,e9,20ac,1f600\ncaf\xc3\xa9 \xe2\x82\xac");
    save_text("vocabulary", "bytes", "", 0, "bytes:0-ff\nany \xff");
    save_text("vocabulary", "gpt2", "", 0, "gpt2:50257\n");
    save_text("shards", "file", "\3\5\1\0", 4,
              "file:\n0 0 90 # first\n1 90 180\n2 200 256\n0 7 9\n");
    save_text("shards", "beyond", "\1\1\1\0", 4, "file:\n0 200 257\n");
    save_text("shards", "worker", "\1\1\1\0", 4, "file:\n0 0 9\n1 0 9\n");
    save_text("shards", "dirichlet", "\3\4\3\0", 4, "dirichlet:0.3\n");
    save_text("shards", "contiguous", "\2\4\3\0", 4, "contiguous\n");
    save_text("shards", "iid", "\5\4\3\0", 4, "iid\n");
}

static void seed_graphs(void) {
    const DmTopology *row;
    for (size_t i = 0; (row = dm_topology_row(i)) != NULL; i++)
        if (row->takes) save_text("graph", row->name, "\10\0", 2, row->name);
    save_text("graph", "file", "\3\0", 2,
              "file:\n# directed\n.5 .5\t0\r\n0.25 2.5e-1 0.5\n25e-2 .25 .5");
    save_text("graph", "rounded", "\3\0", 2,
              "file:\n.333333 .333333 .333333\n.333333 .333333 .333333\n.333333 .333333 .333333\n");
}

/* Messages of two workers on one link. */
static void seed_message(const char *text, size_t rows, size_t cols) {
    EfLink l;
    unsigned char message[1024];
    char name[64];
    if (ef_parse(&l, text, NULL, 0)) die(EXIT_FAILED, "%s", text);
    float *x = floats(rows * cols), *warm = floats(ef_warm(&l, rows, cols));
    float *scratch = floats(ef_scratch(&l, rows, cols));
    Seed s = {.n = 0};
    put_byte(&s, (unsigned)rows - 1), put_byte(&s, (unsigned)cols - 1), put_byte(&s, 1);
    put_text(&s, text), put_text(&s, "\n");
    for (uint64_t worker = 0; worker < 2; worker++) {
        for (uint64_t i = 0; i < rows * cols; i++) x[i] = (float)noise__gaussian(worker + 1, i, 0);
        ef_compress(message, x, x, rows, cols, &l, worker, 0, warm, scratch);
        put(&s, message, ef_bytes(&l, rows, cols, 0));
    }
    snprintf(name, sizeof name, "%zux%zu_%s", rows, cols, text);
    save_seed(&s, "messages", name);
    free(x), free(warm), free(scratch);
}

/* Every row of the table, and every way for values and indices to travel. */
static void seed_messages(void) {
    static const char *const links[] = {
        "identity",         "topk:0.02",           "topk:0.5",
        "topk:0.5+natural", "rankk:0.2",           "rankk:20%+natural",
        "natural",          "natural:stochastic",  "sign",
        "dropout:0.9",      "damping:0.5",         "coltopk:0.1",
        "coltopk:0.5",      "coltopk:0.5+natural", "svdtopk:0.2+natural:stochastic"};
    for (size_t k = 0; k < sizeof links / sizeof *links; k++) {
        seed_message(links[k], 3, 5);
        seed_message(links[k], 10, 20);
    }
}

static void seed_votes(void) {
    static const unsigned char voters[] = {1, 2, 3, 8, 15, 64};
    for (unsigned i = 0; i < 6; i++) {
        Seed s = {.n = 0};
        char name[16];
        put(&s,
            (unsigned char[]){(unsigned char)(voters[i] - 1), (unsigned char)(5 * i),
                              (unsigned char)(37 * i), 3},
            4);
        for (uint64_t k = 0; k < 40; k++) put(&s, &(uint64_t){sm_hash(i, k)}, 8);
        snprintf(name, sizeof name, "%d", voters[i]);
        save_seed(&s, "votes", name);
    }
}

static void seed_flags(void) {
    Seed all = {.n = 0};
    for (size_t i = 0; i < FLAG_COUNT; i++) { /* the defaults, in several lines each */
        if (strchr(flags[i].fallback, '\n') || !*flags[i].fallback ||
            flags[i].choice == choice_list)
            continue;
        put_text(&all, "--"), put_text(&all, flags[i].name), put_text(&all, "=");
        put_text(&all, flags[i].fallback), put_text(&all, "\n");
    }
    save_seed(&all, "flags", "defaults");
    for (size_t i = 0; sm_method_row(i); i++)
        save_text("flags", sm_method_row(i)->name, "--method\n", 9, sm_method_row(i)->name);
    save_text("flags", "links", "", 0,
              "--method\nef21-muon\n--up\nrankk:0.2+natural\n--down=topk:10%\n--link\n1gbit,5us\n");
    save_text("flags", "digits", "", 0, "--lr=0.12345678901234567\n");
    save_text("flags", "most", "", 0, "--dropout=1\n");
    save_text("flags", "fast", "", 0, "--link\n1e308gbit,5ms\n");
    save_text("flags", "slow", "", 0, "--link=1e-320bit,5ms\n");
    save_text("flags", "graph", "", 0,
              "--method\ndemuon\n--workers=4\n--batch\n12\n--topology\ntorus\n--mixing=metropolis\n"
              "--gossip_rounds\n2,3\n--mode=paper\n--gradient-noise\nstudent:1.5,1e-3\n");
    save_text("flags", "balls", "", 0,
              "--method\nscion\n--aux\nlmo\n--radii\n1,50,1,3e3\n--input-norm\nsign\n--lr\n1e-2\n"
              "--nesterov=on\n--untied\noff\n--bias\n--polar_after_vote=off\n");
}

static void seed_checkpoints(void) {
    save_text("checkpoint", "sample", "\0", 1, "temperature=0.8\nvocabulary=chars:a,20,61\n");
    save_text("checkpoint", "resume", "\200", 1,
              "step=100\nevaluated=100\nval_loss=2.5\nmethod=ef21-muon\nup=topk:0.1\n");
    save_text("checkpoint", "shape", "\3", 1, "layers=2\nwidth=16\nheads=4\nuntied=on\n");
    save_text("checkpoint", "counts", "\200", 1, "step=1e300\nrank=-1\nevaluated=nan\n");
}

static void seed_log(void) {
    Seed s = {.n = 0};
    put_byte(&s, 100);
    put_text(&s, log_header);
    put_text(&s, "0,0,0.000,,4.17,,,,0,0,,,0,0,,,,,,\n");
    put_text(&s, "100,9216,1.250,2.5,2.6,0.001,0.003,1.5,10,20,0.75,,5,5,,,,,,\n");
    put_text(&s, "110,10137,1.31,2.4,,0.001,0.003,1.4,11,22,0.7,,5,5");
    save_seed(&s, "log", "killed");
}

int main(void) {
    if (mkdir("test/fuzz/seeds", 0777) && errno != EEXIST)
        die(EXIT_FAILED, "test/fuzz/seeds: %s; run it in the root of the sources", strerror(errno));
    seed_safetensors();
    seed_wrong_headers();
    seed_data();
    seed_graphs();
    seed_messages();
    seed_votes();
    seed_flags();
    seed_checkpoints();
    seed_log();
    return 0;
}
