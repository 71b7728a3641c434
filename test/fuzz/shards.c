/* shards.c - any text as --shards, and any bytes as the file of file:PATH. After an acceptance
   every worker has more than T tokens, all of them inside the training split. */
#include "fuzz.h"
#include "dataloader.h"

static void check_shards(const DataSet *d, size_t workers, size_t T) {
    int32_t in[16], target[16];
    uint64_t all = 0;
    for (size_t rank = 0; rank < workers; rank++) {
        uint64_t length = data_shard_length(d, rank, workers, T), run;
        uint64_t windows = data_train_windows(d, rank, workers, T);
        FUZZ_CHECK(!d->shards.workers || length > T);
        for (uint64_t at = 0; at < length; at += run) {
            uint64_t first = data__locate(d, rank, workers, T, at, &run);
            run = run < length - at ? run : length - at; /* the last block of iid is cut */
            FUZZ_CHECK(run > 0 && first < d->train_tokens && run <= d->train_tokens - first);
            if (all++ > 10000) break;
        }
        for (uint64_t k = 0; length > T && k < 2 * windows && k < 20; k++) {
            FUZZ_CHECK(data_train_window(d, 7, rank, workers, T, k, in, target) == 0);
            for (size_t t = 0; t < T; t++) FUZZ_CHECK(in[t] == 1 && target[t] == 1);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint16_t token[1 << 16];
    DataSet d = {.train_tokens = 1};
    char text[256], error[512];
    FuzzInput input = {data, size};
    size_t workers = fuzz_byte(&input) % 8, T = fuzz_byte(&input) % 16;
    d.train_tokens = fuzz_byte(&input) << 8;
    d.train_tokens |= fuzz_byte(&input);
    for (size_t i = 0; i < sizeof token / sizeof *token; i++) token[i] = i < d.train_tokens;
    d.vocab.size = 2;
    d.text.tokens = d.train_tokens;
    d.text.copy = token;
    d.text.path = (char *)(uintptr_t) "fuzz";
    fuzz_line(&input, text, sizeof text);
    if (strncmp(text, "file:", 5) == 0)
        snprintf(text, sizeof text, "file:%s", fuzz_file(input.at, input.left));
    if (data_set_shards(&d, text, workers, T, 3, error, sizeof error))
        FUZZ_CHECK(fuzz_is_sentence(error, text) && !d.shards.worker);
    else
        check_shards(&d, workers, T);
    data__free_shards(&d.shards);
    return 0;
}
