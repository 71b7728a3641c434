/* vocabulary.c - any text as a vocabulary, as a checkpoint's metadata may hold it, and any text as
   a prompt in it. What is accepted is exported as it was, if it was written as export does. */
#include "fuzz.h"
#include "dataloader.h"

static void check_round_trip(const DataVocab *v) {
    DataVocab again;
    size_t length = data_vocab_export(v, NULL, 0);
    char *out = malloc(length + 1);
    if (!out) abort();
    data_vocab_export(v, out, length + 1);
    FUZZ_CHECK(data_vocab_import(&again, out, length) == 0 && again.size == v->size);
    FUZZ_CHECK(!v->code || !memcmp(again.code, v->code, v->size * sizeof *v->code));
    data_vocab_free(&again);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char text[4096], prompt[256], bytes[DATA_DECODED];
    uint16_t token[256];
    DataVocab v;
    FuzzInput input = {data, size};
    size_t length = fuzz_line(&input, text, sizeof text), at = 0;
    fuzz_line(&input, prompt, sizeof prompt);
    int code = data_vocab_import(&v, text, length);
    FUZZ_CHECK(code <= 0 && code >= DATA_CHANGED);
    if (code) {
        FUZZ_CHECK(!v.code && !v.id);
        return 0;
    }
    FUZZ_CHECK(v.size >= 1 && v.size <= DATA_MAX_VOCAB + 1);
    FUZZ_CHECK(data_decode(&v, v.size, bytes) == 0);
    int64_t n = data_encode(&v, prompt, token, 256);
    FUZZ_CHECK(n >= -(int64_t)strlen(prompt) - 1 && n <= (int64_t)strlen(prompt));
    for (int64_t i = 0; i < n; i++) {
        size_t m = data_decode(&v, token[i], bytes);
        FUZZ_CHECK(token[i] < v.size && m && !memcmp(bytes, prompt + at, m));
        at += m;
    }
    check_round_trip(&v);
    data_vocab_free(&v);
    return 0;
}
