/* checkpoint.c - any metadata beside the tensors of a tiny model, as a checkpoint whose checksum is
   right: forged, not damaged. It is taken over as far as --sample and --resume take it, or refused
   in one sentence; neither computes with numbers beyond their types nor takes memory without end.

   An input is one byte, then lines KEY=VALUE that replace the defaults. */
#include "program.h"

enum { MOST = FLAG_COUNT + 32 };

typedef struct Forged {
    StPair pair[MOST];
    size_t n;
} Forged;

static void set(Forged *m, const char *key, const char *value) {
    size_t i = 0;
    while (i < m->n && strcmp(m->pair[i].key, key)) i++;
    if (i == MOST) return;
    m->pair[i] = (StPair){key, value};
    if (i == m->n) m->n++;
}

/* What train_gpt writes beside one layer of width 8. */
static void set_defaults(Forged *m) {
    static const char *const small[][2] = {{"layers", "1"},         {"heads", "2"},
                                           {"width", "8"},          {"context", "4"},
                                           {"step", "3"},           {"rank", "0"},
                                           {"seconds", "1.5"},      {"vocabulary", "chars:61-63"},
                                           {"evaluated", "-1"},     {"val_loss", "nan"},
                                           {"best_val_loss", "nan"}};
    for (size_t i = 0; i < FLAG_COUNT; i++)
        if (flags[i].keep != KEEP_NOT) set(m, flags[i].name, flags[i].fallback);
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) set(m, small[i][0], small[i][1]);
}

/* The file, with the tensors of that model but for one. Returns 0 if metadata can be so. */
static int write_file(const Forged *m, unsigned missing) {
    static const GptShape shape = {.layers = 1, .heads = 2, .width = 8, .context = 4, .vocab = 3};
    char path[256], error[1024];
    StTensor t[32];
    Gpt g;
    size_t n = 0;
    gpt_layout(&g, &shape);
    float *x = floats(g.parameters);
    for (size_t i = 0; i < g.tensors; i++)
        if (i + 1 != missing)
            t[n++] = as_stored(&g.tensor[i], g.tensor[i].name, x + g.tensor[i].offset);
    snprintf(path, sizeof path, "%s/last", fuzz_folder());
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/last/model.safetensors", fuzz_folder());
    return st_write(path, t, n, m->pair, m->n, error, sizeof error);
}

/* As main does. */
static void take_over(void *context) {
    static char *argv[] = {(char *)(uintptr_t) "train_gpt", NULL};
    Run *run = context;
    int given[FLAG_COUNT], resume = run->o.resume;
    Gpt g;
    parse_flags(&run->o, 1, argv, given);
    run->o.out = fuzz_folder();
    run->o.resume = resume;
    run->o.sample = !resume;
    open_checkpoint(run, given);
    check_together(&run->o);
    if (run->o.workers <= 64 && strncmp(run->o.topology, "file:", 5))
        run->config = resolve_method(&run->o, &run->up, &run->down, &run->graph);
    const char *vocabulary = st_meta(&run->checkpoint, "vocabulary");
    if (!vocabulary || data_vocab_import(&run->vocab, vocabulary, strlen(vocabulary))) return;
    set_shape(run, run->vocab.size);
    meta_integer(&run->checkpoint, "step", 0);
    meta_integer(&run->checkpoint, "evaluated", -1);
    meta_integer(&run->checkpoint, "rank", 0);
    meta_number(&run->checkpoint, "val_loss");
    gpt_layout(&g, &run->shape);
    g.params = floats(g.parameters);
    read_model(&g, &run->checkpoint);
    FUZZ_CHECK(sm_finite(g.params, g.parameters));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Run run;
    static char line[MOST][1024];
    Forged m = {.n = 0};
    FuzzInput input = {data, size};
    unsigned how = fuzz_byte(&input);
    set_defaults(&m);
    for (size_t i = 0; input.left && i < MOST; i++) {
        fuzz_line(&input, line[i], sizeof line[i]);
        char *equal = strchr(line[i], '=');
        if (!equal) continue;
        *equal = 0;
        set(&m, line[i], equal + 1);
    }
    int written = write_file(&m, how % 64) == 0;
    while (fuzz_program.holds) free(fuzz_program.held[--fuzz_program.holds]);
    if (!written) return 0;
    memset(&run, 0, sizeof run);
    run.o.resume = how >> 7;
    fuzz_run(take_over, &run);
    st_close(&run.checkpoint);
    data_vocab_free(&run.vocab);
    return 0;
}
