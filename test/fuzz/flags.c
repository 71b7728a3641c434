/* flags.c - any words as the command line of train_gpt, up to the first file it would open. What is
   accepted prints back to what reads as the same; what is refused is refused in one sentence. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include "fuzz.h"

/* The program ends its mistakes by exit, and keeps its memory for ever. */
static jmp_buf fuzz_end;
static int fuzz_status;
static FILE *fuzz_told;
static void *fuzz_held[8];
static size_t fuzz_holds;
__attribute__((noreturn)) static void fuzz_exit(int status) {
    fuzz_status = status;
    longjmp(fuzz_end, 1);
}
static void *fuzz_allocate(size_t align, size_t bytes) {
    if (fuzz_holds == 8) abort();
    return fuzz_held[fuzz_holds++] = aligned_alloc(align, bytes);
}
#define TESTING
#define exit fuzz_exit
#define aligned_alloc fuzz_allocate
#undef stderr
#define stderr fuzz_told
#pragma clang diagnostic ignored "-Wunused-function"
#include "train_gpt.c"

/* Every flag as text, and that text read as the flag, is the flag. */
static void check_round_trip(const Options *o) {
    char text[64], again[64], error[1024];
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        const Flag *f = &flags[i];
        Options copy = *o;
        const char *said = flag_text(o, f, text, sizeof text);
        FUZZ_CHECK(said && flag_parse(&copy, f, said, error, sizeof error) == 0);
        FUZZ_CHECK(flag_agrees(&copy, f, said) &&
                   flag_agrees(o, f, flag_text(&copy, f, again, 64)));
        if (f->kind == FLAG_REAL && !isnan(*(double *)field_of(&copy, f)))
            FUZZ_CHECK(*(double *)field_of(&copy, f) >= f->min &&
                       *(double *)field_of(&copy, f) <= f->max);
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char said[4096];
    char *argv[128] = {(char *)"train_gpt"};
    int argc = 1, given[FLAG_COUNT];
    Options o;
    FuzzInput input = {data, size};
    setenv("GEMM_ISA", "portable", 1); /* another is tried in a child process */
    while (input.left && argc < 127) { /* a line is a word */
        static char word[127][512];
        fuzz_line(&input, word[argc - 1], sizeof word[0]);
        argv[argc] = word[argc - 1];
        argc++;
    }
    memset(said, 0, sizeof said);
    fuzz_told = fmemopen(said, sizeof said, "w");
    fuzz_status = -1;
    fuzz_holds = 0;
    if (setjmp(fuzz_end) == 0) {
        parse_flags(&o, argc, argv, given);
        check_round_trip(&o);
        check_configuration(&o);
    }
    fclose(fuzz_told);
    size_t length = strlen(said);
    FUZZ_CHECK(fuzz_status == -1 ? !length : fuzz_status == EXIT_USAGE);
    for (size_t i = 0; i + 1 < length; i++) FUZZ_CHECK((unsigned char)said[i] >= 32);
    FUZZ_CHECK(!length || said[length - 1] == '\n');
    while (fuzz_holds) free(fuzz_held[--fuzz_holds]);
    return 0;
}
