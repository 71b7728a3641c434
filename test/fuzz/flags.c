/* flags.c - any words as the command line of train_gpt, up to the first file it would open. What is
   accepted prints back to what reads as the same; what is refused is refused in one sentence. */
#include "program.h"

typedef struct Words {
    int count;
    char *word[128];
} Words;

/* Every flag as text, and that text read as the flag, is the flag. */
static void check_round_trip(const Options *o) {
    char text[64], again[64], error[1024];
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        const Flag *f = &flags[i];
        Options copy = *o;
        const char *said = flag_text(o, f, text, sizeof text);
        FUZZ_CHECK(said && flag_parse(&copy, f, said, error, sizeof error) == 0);
        FUZZ_CHECK(flag_agrees(&copy, f, said));
        FUZZ_CHECK(flag_agrees(o, f, flag_text(&copy, f, again, sizeof again)));
        double value = f->kind == FLAG_REAL ? *(double *)field_of(&copy, f) : NAN;
        FUZZ_CHECK(isnan(value) || (value >= f->min && value <= f->max));
    }
}

static void check_configuration(Options *o) {
    double per_byte = 0, per_message = 0;
    char error[1024];
    EfLink up, down;
    DmGraph graph;
    Noise noise;
    check_together(o);
    if (*o->link && parse_link(o->link, &per_byte, &per_message))
        FUZZ_CHECK(isfinite(per_byte) && per_byte > 0 && isfinite(per_message) && per_message >= 0);
    if (noise_parse(&noise, o->gradient_noise, error, sizeof error))
        FUZZ_CHECK(fuzz_is_sentence(error, o->gradient_noise));
    else
        FUZZ_CHECK(isfinite(noise.scale) && noise.scale >= 0 && isfinite(noise.nu));
    if (o->workers > 64 || strncmp(o->topology, "file:", 5) == 0) return; /* time; see graph.c */
    SmConfig c = resolve_method(o, &up, &down, &graph);
    FUZZ_CHECK(c.method && c.aux && c.gain && c.ns && isfinite(o->lr) && isfinite(o->aux_lr));
    FUZZ_CHECK(isfinite(c.momentum) && isfinite(c.decay) && isfinite(c.clip));
    for (int r = 0; r < SM_ROLES; r++) FUZZ_CHECK(isfinite(c.radius[r]) && c.radius[r] >= 0);
    check_round_trip(o);
}

static void begin(void *context) {
    static Options o;
    Words *words = context;
    int given[FLAG_COUNT];
    parse_flags(&o, words->count, words->word, given);
    check_round_trip(&o);
    check_configuration(&o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char text[127][512];
    Words words = {1, {(char *)(uintptr_t) "train_gpt"}};
    FuzzInput input = {data, size};
    fuzz_folder();
    while (input.left && words.count < 127) { /* a line is a word */
        char *word = text[words.count];
        fuzz_line(&input, word, sizeof text[0]);
        words.word[words.count++] = word;
    }
    fuzz_run(begin, &words);
    FUZZ_CHECK(fuzz_program.status == -1 || fuzz_program.status == EXIT_USAGE);
    return 0;
}
