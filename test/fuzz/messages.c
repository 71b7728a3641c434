/* messages.c - any text as a link of error feedback, any bytes as messages of it. What is accepted
   decodes to finite numbers, what is refused changes nothing, and for compressors that round
   nothing anew, compressing what was decoded gives that message again. */
#include "fuzz.h"
#include "ef21muon.h"

typedef struct Blocks {
    float *estimate, *decoded, *again, *warm, *scratch;
    unsigned char *message, *encoded; /* exactly as long as they should be */
} Blocks;

/* scratch ends where the block does, so that a step beyond it is seen */
static float *exactly(size_t floats) {
    void *p;
    if (posix_memalign(&p, 64, floats * sizeof(float) + !floats)) abort();
    return memset(p, 0xff, floats * sizeof(float));
}

/* Does a round of compression leave alone what it made itself? */
static int is_stable(const EfLink *l) {
    const char *name = l->row->name;
    return strcmp(name, "damping") && strcmp(name, "rankk") && strcmp(name, "svdtopk") &&
           !l->stochastic;
}

/* Values of a message that are not zero. */
static size_t values_sent(const unsigned char *message, size_t rows, size_t cols, const EfLink *l) {
    size_t n = l->row->values(l, rows, cols), count = 0;
    for (size_t i = 0; i < n; i++) {
        float value = message[i]; /* an exponent */
        if (!l->natural) memcpy(&value, message + 4 * i, 4);
        count += value != 0;
    }
    return count;
}

/* All that was sent has a place of its own, and where no value is zero there is one message only
 * for what was decoded. */
static void check_stable(const Blocks *b, size_t bytes, size_t rows, size_t cols, const EfLink *l) {
    size_t d = rows * cols, nonzero = 0, sent = values_sent(b->message, rows, cols, l);
    uint64_t coin = 0;
    while (!ef__sent(l, coin)) /* dropout drops nothing of interest */
        if (++coin == 100) return;
    ef_compress(b->encoded, b->again, b->decoded, rows, cols, l, 1, coin, b->warm, b->scratch);
    for (size_t i = 0; i < d; i++) {
        FUZZ_CHECK(b->again[i] == b->decoded[i]);
        nonzero += b->decoded[i] != 0;
    }
    int sign = strcmp(l->row->name, "sign") == 0;
    FUZZ_CHECK(sign ? nonzero == 0 || nonzero == d : nonzero == sent);
    if (sign ? nonzero == d : sent == l->row->values(l, rows, cols))
        FUZZ_CHECK(memcmp(b->encoded, b->message, bytes) == 0);
}

static void check_messages(const Blocks *b, size_t bytes, int workers, size_t rows, size_t cols,
                           const EfLink *l) {
    size_t d = rows * cols;
    int first = ef_decode(b->decoded, b->message, bytes, rows, cols, l, b->scratch);
    FUZZ_CHECK(first == 0 || first == -1);
    if (bytes == ef_most_bytes(l, rows, cols) || (l->row->coin && bytes == 0))
        FUZZ_CHECK(first == 0 || !l->row->coin || bytes);
    else
        FUZZ_CHECK(first == -1);
    if (first == 0) FUZZ_CHECK(sm_finite(b->decoded, d));
    if (first == 0 && bytes && is_stable(l)) check_stable(b, bytes, rows, cols, l);
    for (size_t i = 0; i < d; i++) b->estimate[i] = 1;
    int second = ef_receive(b->estimate, b->message, bytes, rows, cols, l, b->scratch);
    FUZZ_CHECK(second == first && sm_finite(b->estimate, d));
    for (size_t i = 0; i < d; i++)
        if (first)
            FUZZ_CHECK(b->estimate[i] == 1);
        else
            FUZZ_CHECK(b->estimate[i] == b->decoded[i] + (l->row->replaces ? 0 : 1));
    for (size_t i = 0; i < d; i++) b->estimate[i] = 2;
    int all =
        ef_aggregate(b->estimate, b->message, bytes, bytes, workers, rows, cols, l, b->scratch);
    FUZZ_CHECK((all == 0 || all == -1) && (first == 0 || all == -1));
    FUZZ_CHECK(sm_finite(b->estimate, d));
    for (size_t i = 0; all && i < d; i++) FUZZ_CHECK(b->estimate[i] == 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char text[64], error[512];
    EfLink l;
    FuzzInput input = {data, size};
    size_t rows = 1 + fuzz_byte(&input) % 24, cols = 1 + fuzz_byte(&input) % 40, d = rows * cols;
    unsigned how = fuzz_byte(&input);
    int workers = 1 + (int)(how % 4);
    fuzz_line(&input, text, sizeof text);
    if (ef_parse(&l, text, error, sizeof error)) {
        FUZZ_CHECK(fuzz_is_sentence(error, text));
        return 0;
    }
    size_t most = ef_most_bytes(&l, rows, cols), bytes = most;
    if (how & 0x80) bytes = most + (how >> 4 & 7) - 4; /* a wrong length, mostly */
    if (how & 0x40 && input.left / (size_t)workers < most) bytes = input.left / (size_t)workers;
    if (bytes > most + 8) bytes = 0;
    size_t length = bytes * (size_t)workers;
    Blocks b = {exactly(d),
                exactly(d),
                exactly(d),
                exactly(ef_warm(&l, rows, cols)),
                exactly(ef_scratch(&l, rows, cols)),
                malloc(length + !length),
                malloc(most)};
    if (!b.message || !b.encoded) abort();
    memset(b.message, 0, length);
    if (input.left) memcpy(b.message, input.at, input.left < length ? input.left : length);
    if (b.warm) memset(b.warm, 0, ef_warm(&l, rows, cols) * sizeof *b.warm);
    check_messages(&b, bytes, workers, rows, cols, &l);
    free(b.estimate), free(b.decoded), free(b.again), free(b.warm), free(b.scratch);
    free(b.message), free(b.encoded);
    return 0;
}
