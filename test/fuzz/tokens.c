/* tokens.c - any bytes as a shard of token ids. Every window of what opens holds tokens below V. */
#include "fuzz.h"
#include "dataloader.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { T = 5, WORKERS = 3 };
    DataSet d;
    char error[512];
    int32_t in[T], target[T];
    FuzzInput input = {data, size};
    const char *mode = fuzz_byte(&input) & 1 ? "gpt2:1000" : "auto";
    const char *path = fuzz_file(input.at, input.left);
    if (data_open(&d, path, mode, error, sizeof error)) {
        FUZZ_CHECK(fuzz_is_sentence(error, "") && !d.text.file);
        return 0;
    }
    FUZZ_CHECK(d.train_tokens + d.val_tokens == d.text.tokens && d.text.tokens <= size);
    if (data_check_context(&d, T, WORKERS, error, sizeof error) == 0) {
        uint64_t all = 0;
        for (size_t rank = 0; rank < WORKERS; rank++) {
            uint64_t windows = data_train_windows(&d, rank, WORKERS, T);
            all += data_shard_length(&d, rank, WORKERS, T);
            for (uint64_t k = 0; k < 2 * windows && k < 50; k++) {
                int code = data_train_window(&d, 1, rank, WORKERS, T, k, in, target);
                FUZZ_CHECK(code == 0 || code == DATA_CHANGED);
                for (int t = 0; !code && t < T; t++) {
                    FUZZ_CHECK((uint32_t)in[t] < d.vocab.size &&
                               (uint32_t)target[t] < d.vocab.size);
                    FUZZ_CHECK(t == 0 || in[t] == target[t - 1]);
                }
            }
        }
        FUZZ_CHECK(all == d.train_tokens);
        uint64_t counted = 0;
        for (uint64_t w = 0; w < data_val_windows(&d, T); w++) {
            int64_t real = data_val_window(&d, T, w, in, target);
            FUZZ_CHECK(real == DATA_CHANGED || (real >= 1 && real <= T));
            counted += real > 0 ? (uint64_t)real : 0;
        }
        FUZZ_CHECK(counted < d.val_tokens);
    }
    data_close(&d);
    return 0;
}
