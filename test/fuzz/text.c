/* text.c - any bytes as a text, its characters or its bytes. What opens is what its tokens decode
   to, and its vocabulary survives export and import. */
#include "fuzz.h"
#include "dataloader.h"

/* the vocabulary of d, as text and back */
static void check_vocabulary(const DataSet *d) {
    DataVocab again;
    size_t length = data_vocab_export(&d->vocab, NULL, 0);
    char *text = malloc(length + 1);
    if (!text) abort();
    FUZZ_CHECK(data_vocab_export(&d->vocab, text, length + 1) == length);
    FUZZ_CHECK(data_vocab_import(&again, text, length) == 0);
    FUZZ_CHECK(again.size == d->vocab.size && again.kind == d->vocab.kind);
    FUZZ_CHECK(!memcmp(again.code, d->vocab.code, again.size * sizeof *again.code));
    data_vocab_free(&again);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const modes[] = {"auto", "chars", "bytes", "chars:9-a,20-7e,e9,20ac,1f600"};
    DataSet d;
    char error[512], out[DATA_DECODED];
    FuzzInput input = {data, size};
    const char *mode = modes[fuzz_byte(&input) % 4];
    const uint8_t *text = input.at;
    size_t at = 0;
    if (data_open(&d, fuzz_file(text, input.left), mode, error, sizeof error)) {
        FUZZ_CHECK(fuzz_is_sentence(error, "") && !d.text.file);
        return 0;
    }
    for (uint64_t i = 0; !d.text.shards && i < d.text.tokens; i++) {
        int32_t token;
        FUZZ_CHECK(data__read(&d.text, &d.vocab, i, 1, &token) == 0);
        size_t n = data_decode(&d.vocab, (unsigned)token, out);
        FUZZ_CHECK(n >= 1 && at + n <= input.left && !memcmp(out, text + at, n));
        at += n;
    }
    FUZZ_CHECK(d.text.shards || at == input.left);
    if (!d.text.shards) check_vocabulary(&d);
    data_close(&d);
    return 0;
}
