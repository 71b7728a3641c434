/* data.c - dataloader.h: what is read, how it is cut and ordered, what is refused. */
#include "test.h"

#include <math.h>
#include "../dataloader.h"

static char error[512];
#define ERROR error, sizeof error

static const char *text_file(const char *name, const void *text, size_t n) {
    const char *path = test_path("%s", name);
    test_write(path, text, n);
    return path;
}

/* A GPT-2 token file whose header promises `count`, and that holds `held`: first, first + 1, ... */
static const char *token_file(const char *name, uint32_t magic, uint32_t version, uint32_t count,
                              uint32_t held, uint32_t first) {
    static uint16_t file[512 + 60000];
    const uint32_t header[3] = {magic, version, count};
    memset(file, 0, 1024);
    memcpy(file, header, sizeof header);
    for (uint32_t i = 0; i < held; i++) file[512 + i] = (uint16_t)(first + i);
    return text_file(name, file, 1024 + 2 * (size_t)held);
}

/* must open */
static DataSet opened(const char *path, const char *vocab) {
    DataSet d;
    if (data_open(&d, path, vocab, ERROR)) {
        test_fail(__FILE__, __LINE__, "%s", error);
        exit(1);
    }
    return d;
}

/* n tokens 0, 1, 2, .. so that a token tells its position */
static DataSet counting(uint32_t n) {
    return opened(token_file("count.bin", 20240520, 1, n, n, 0), "auto");
}

/* opening must fail with this code and one sentence that names the path and has the words */
static void refused(const char *path, const char *vocab, int code, const char *words) {
    DataSet d;
    *error = 0;
    int got = data_open(&d, path, vocab, ERROR);
    if (!got) data_close(&d);
    if (got != code || !strstr(error, path) || !strstr(error, words) || strchr(error, '\n'))
        test_fail(__FILE__, __LINE__, "%s: code %d, not %d; '%s' without '%s'", path, got, code,
                  error, words);
}

static int32_t token_at(const DataSet *d, uint64_t at) {
    int32_t token = -1;
    CHECK(!data__read(&d->text, &d->vocab, at, 1, &token), "at %" PRIu64, at);
    return token;
}

TEST(data_split_is_ninety_to_ten_percent) {
    static const size_t lengths[] = {1, 2, 9, 10, 11, 19, 99, 101, 1115394};
    static const size_t train[] = {0, 1, 8, 9, 9, 17, 89, 90, 1003854};
    static char text[1115394];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i % 7);
    text[1003854] = '#';
    for (size_t i = 0; i < COUNT(train); i++) {
        DataSet d = opened(text_file("t.txt", text, lengths[i]), "auto");
        int32_t in[5], target[5];
        CHECK(d.train_tokens == train[i] && d.train_tokens + d.val_tokens == lengths[i]);
        if (lengths[i] == sizeof text) /* '#' sorts first and begins the validation split */
            CHECK(data_val_window(&d, 5, 0, in, target) == 5 && in[0] == 0);
        data_close(&d);
    }
}

/* splitmix64's finaliser and the header's formulas, transcribed; the data is counting */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t chain(uint64_t seed, uint64_t a, uint64_t b) { return mix(mix(mix(seed) ^ a) ^ b); }

static uint64_t walk(uint64_t key, uint64_t n, uint64_t i) {
    unsigned bits = 2;
    while (bits < 64 && n > (uint64_t)1 << bits) bits += 2;
    uint64_t low = ((uint64_t)1 << bits / 2) - 1;
    do {
        uint64_t l = i >> bits / 2, r = i & low;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t f = chain(key, round, r) & low, swap = r;
            r = l ^ f;
            l = swap;
        }
        i = l << bits / 2 | r;
    } while (i >= n);
    return i;
}

/* The windows of a worker in the order of the text: each worker's blocks are cut into windows whose
 * first offset is a hash modulo the room in the block. Returns their number. */
static uint64_t windows_of(const char *shards, uint64_t train, size_t rank, size_t N, size_t T,
                           uint64_t hash, uint64_t *begin) {
    uint64_t count = 0, block = T > 64 ? 16 * T : 1024, equal = train / N, more = train % N;
    for (uint64_t at = 0, number = 0, size; at < train; at += size, number++) {
        size = block < equal ? block : equal;
        if (strcmp(shards, "iid") || N == 1) size = equal + (number < more);
        if (at + size > train) size = train - at;
        uint64_t windows = size < 2 * T ? size > T : size / T - 1;
        uint64_t room = size - windows * T < T ? size - windows * T : T;
        for (uint64_t w = 0; w < windows && number % N == rank; w++)
            begin[count++] = at + hash % room + w * T;
    }
    return count;
}

TEST(data_windows_follow_the_formulas_for_every_row) {
    /* tokens, N, T; the last ones make shards of 10, 11, 18 and 19 tokens */
    static const size_t shape[][3] = {{20011, 1, 12}, {20011, 3, 12},   {50257, 7, 300},
                                      {700, 5, 33},   {34567, 2, 1000}, {12, 1, 9},
                                      {13, 1, 9},     {20, 1, 9},       {22, 1, 9}};
    static int32_t in[1000], target[1000];
    static uint64_t begin[8000];
    for (size_t c = 0; c < 2 * COUNT(shape); c++) {
        DataSet d = counting((uint32_t)shape[c / 2][0]);
        const size_t N = shape[c / 2][1], T = shape[c / 2][2];
        const char *name = data_shards_row(c % 2)->name;
        if (c % 2) CHECK(!data_set_shards(&d, name, N, T, ERROR), "%s", error);
        for (uint64_t i = 0; i < 40 * N; i++) {
            uint64_t seed = 5 + i / 30, rank = i % N, k = i % 3 ? i / N : i * 1000003;
            uint64_t windows = windows_of(name, d.train_tokens, rank, N, T, 0, begin);
            uint64_t epoch = k / windows, offset = chain(seed, epoch, UINT64_MAX);
            windows_of(name, d.train_tokens, rank, N, T, offset, begin);
            uint64_t at = begin[walk(chain(seed, epoch, rank), windows, k % windows)];
            CHECK(data_train_windows(&d, rank, N, T) == windows, "case %zu", c);
            CHECK(!data_train_window(&d, seed, rank, N, T, k, in, target), "case %zu", c);
            for (uint64_t t = 0; t < T; t++)
                CHECK((uint64_t)in[t] == at + t && (uint64_t)target[t] == at + t + 1, "%s case %zu",
                      name, c);
        }
        data_close(&d);
    }
    CHECK(!data_shards_row(2), "a new row needs its transcription in windows_of");
}

/* that no window comes twice in an epoch */
TEST(data_order_is_a_permutation) {
    for (uint64_t n = 1; n <= 600; n++) {
        unsigned char seen[600] = {0};
        for (uint64_t i = 0; i < n; i++) CHECK(!seen[data__permute(chain(3, n, 1), n, i)]++);
    }
}

TEST(data_validation_counts_every_prediction_once) {
    static const size_t contexts[] = {1, 7, 64, 998, 999, 1000, 333};
    int32_t in[1000], target[1000];
    for (size_t c = 0; c < 14; c++) {
        DataSet d = counting(10000);
        const size_t T = contexts[c / 2];
        int64_t next = 9000, total = 0;
        if (c % 2) {
            const char *path = token_file("val.bin", 20240520, 1, 1000, 1000, 400);
            CHECK(!data_open_val(&d, path, ERROR), "%s", error);
            next = 400;
        }
        CHECK(d.val_tokens == 1000, "case %zu", c);
        for (uint64_t w = 0; w < data_val_windows(&d, T); w++) {
            int64_t real = data_val_window(&d, T, w, in, target);
            CHECK(real >= 1 && real <= (int64_t)T, "case %zu", c);
            for (int64_t t = 0; t < (int64_t)T; t++) {
                CHECK(in[t] == (t < real ? next : 0), "case %zu", c);
                CHECK(target[t] == (t < real ? next + 1 : -1), "case %zu", c);
                next += t < real;
            }
            total += real;
        }
        CHECK(total == 999, "case %zu", c);
        data_close(&d);
    }
}

TEST(data_text_becomes_characters_by_code_point) {
    const char *text = "z\xc3\xa9\x61\xe2\x82\xac\xf0\x9f\x99\x82\x61\n";
    static const int32_t expect[7] = {2, 3, 1, 4, 5, 1, 0};
    static const char *const unknown[] = {"a\xc3\xa9q", "a\xff", "a\xe2\x82"};
    char out[DATA_DECODED], back[64] = "";
    uint16_t tokens[16];
    const char *path = text_file("u.txt", text, strlen(text));
    DataSet d = opened(path, "auto");
    CHECK(d.vocab.size == 6 && d.text.tokens == 7);
    CHECK(!strcmp(data_tokenisation(&d.vocab), "characters"));
    CHECK(data_encode(&d.vocab, text, tokens, 16) == 7);
    for (unsigned i = 0; i < 7; i++) {
        CHECK(token_at(&d, i) == expect[i] && tokens[i] == expect[i], "token %u", i);
        strncat(back, out, data_decode(&d.vocab, tokens[i], out));
    }
    CHECK(!strcmp(back, text) && data_decode(&d.vocab, 6, out) == 0);
    tokens[2] = 99;
    CHECK(data_encode(&d.vocab, text, tokens, 2) == 7 && tokens[2] == 99);
    for (size_t i = 0; i < 3; i++)
        CHECK(data_encode(&d.vocab, unknown[i], tokens, 16) == (i ? -2 : -4), "%zu", i);
    CHECK(data_encode(&d.vocab, "", tokens, 16) == 0);
    data_close(&d);
    d = opened(path, "bytes");
    CHECK(d.text.tokens == strlen(text) && !strcmp(data_tokenisation(&d.vocab), "bytes"));
    data_close(&d);
}

TEST(data_outside_utf8_is_bytes_or_refused) {
    /* overlong, surrogate, too large, cut off, stray */
    char invalid[] = "a\x80 a\xc0\x80 a\xc1\xbf a\xe0\x80\x80 a\xed\xa0\x80 a\xf4\x90\x80\x80 "
                     "a\xf0\x80\x80\x80 a\xf8\x88\x80\x80\x80 a\xe2\x82 a\xfe a\xc3";
    char all[1024], out[DATA_DECODED];
    for (int i = 0; i < 1024; i++) all[i] = (char)(unsigned char)(255 - i % 256);
    DataSet d = opened(text_file("all", all, sizeof all), "auto");
    CHECK(d.vocab.kind == DATA_BYTES && d.vocab.size == 256);
    for (unsigned i = 0; i < 1024; i++) {
        CHECK(token_at(&d, i) == 255 - (int)(i & 255), "byte %u", i);
        CHECK(data_decode(&d.vocab, 255 - (i & 255), out) == 1 && out[0] == all[i], "byte %u", i);
    }
    data_close(&d);
    for (char *text = strtok(invalid, " "); text; text = strtok(NULL, " ")) {
        const char *path = text_file("bad", text, strlen(text));
        refused(path, "chars", DATA_NEEDS_BYTES, "not UTF-8 at byte 1; mend the file, or read it");
        d = opened(path, "auto");
        CHECK(d.vocab.kind == DATA_BYTES, "%s", text);
        data_close(&d);
    }
    d = opened(text_file("nul", "a\0b\0", 4), "auto");
    CHECK(d.vocab.kind == DATA_CHARS && d.vocab.size == 3 && d.vocab.code[0] == 0);
    data_close(&d);
}

TEST(data_beyond_65535_characters_is_refused) {
    enum { MOST = 65536 };
    unsigned char *text = malloc(MOST * 4);
    for (uint32_t i = 0; text && i < MOST; i++) {
        uint32_t c = 0x20000 + i;
        text[4 * i] = (unsigned char)(0xf0 | c >> 18);
        for (int k = 1; k < 4; k++)
            text[4 * i + (unsigned)k] = (unsigned char)(0x80 | (c >> (18 - 6 * k) & 63));
    }
    refused(text_file("wide", (char *)text, MOST * 4), "auto", DATA_NEEDS_BYTES,
            "65536 distinct characters, at most 65535");
    DataSet d = opened(text_file("full", (char *)text, (MOST - 1) * 4), "auto");
    CHECK(d.vocab.size == 65535 && token_at(&d, 65534) == 65534);
    data_close(&d);
    free(text);
}

TEST(data_token_files_join_by_name) {
    static const uint32_t first[] = {1003, 0, 1000}, held[] = {23, 1000, 3};
    static const char *const names[] = {"x_9.bin", "x_00.bin", "x_10.bin"}; /* 10 sorts before 9 */
    char out[DATA_DECODED];
    uint16_t token;
    int32_t got[40];
    for (int i = 0; i < 3; i++) token_file(names[i], 20240520, 1, held[i], held[i], first[i]);
    DataSet d = opened(test_path("x_*.bin"), "auto");
    CHECK(d.text.files == 3 && d.text.tokens == 1026 && d.vocab.size == 50257);
    CHECK(!strcmp(data_tokenisation(&d.vocab), "GPT-2 tokens"));
    for (uint64_t at = 0; at + 40 <= 1026; at++) { /* windows cross the borders of files */
        CHECK(!data__read(&d.text, &d.vocab, at, 40, got));
        for (uint64_t i = 0; i < 40; i++) CHECK((uint64_t)got[i] == at + i, "at %" PRIu64, at);
    }
    CHECK(data_encode(&d.vocab, "hello", &token, 1) == -1);
    CHECK(data_encode(&d.vocab, "[15496][50256]", &token, 1) == 2 && token == 15496);
    CHECK(data_encode(&d.vocab, "[7][50257]", &token, 1) == -4);
    CHECK(data_encode(&d.vocab, "[7][-1]", &token, 1) == -4 && token == 7);
    CHECK(data_encode(&d.vocab, "[7]]", &token, 1) == -4);
    CHECK(data_encode(&d.vocab, "[7", &token, 1) == -1);
    CHECK(data_decode(&d.vocab, 50256, out) == 7 && !memcmp(out, "[50256]", 7));
    CHECK(data_decode(&d.vocab, 50257, out) == 0);
    data_close(&d);
    text_file("x_text", "hello", 5);
    CHECK(data_open(&d, test_path("x_*"), "auto", ERROR) == DATA_MALFORMED);
    CHECK(strstr(error, "x_text") && strstr(error, "do not mix"), "%s", error);
    /* a pattern that is a file's name is that file */
    text_file("x_[0].txt", "abc", 3);
    d = opened(test_path("x_[0].txt"), "auto");
    CHECK(d.text.tokens == 3);
    data_close(&d);
    /* a token beyond the vocabulary is refused at once, or far into the file when it is read */
    const char *path = token_file("big", 20240520, 1, 40, 40, 50240);
    CHECK(data_open(&d, path, "auto", ERROR) == DATA_UNKNOWN);
    CHECK(strstr(error, "token 50257 at place 17 is beyond"), "%s", error);
    d = opened(token_file("big", 20240520, 1, 40, 40, 0), "gpt2:40");
    int fd = open(path, O_WRONLY);
    CHECK(pwrite(fd, "\x28", 1, 1024 + 2 * 17) == 1 && !close(fd)); /* token 40 */
    CHECK(data__read(&d.text, &d.vocab, 0, 17, got) == 0);
    CHECK(data__read(&d.text, &d.vocab, 17, 1, got) == DATA_CHANGED);
    data_close(&d);
}

TEST(data_unusable_file_is_refused_by_name) {
    static const struct {
        const char *name;
        uint32_t magic, version, count, held;
        const char *words;
    } tokens[] = {
        {"magic.bin", 0, 1, 9, 9, "not a token file (magic 0, expected 20240520)"},
        {"version.bin", 20240520, 7, 9, 9, "version 7, expected 1"},
        {"cut.bin", 20240520, 1, 100, 37, "promises 100 tokens, the file has 37: it is trunc"},
        {"long.bin", 20240520, 1, 37, 100, "something was added"},
        {"none.bin", 20240520, 1, 0, 0, "promises 0 tokens"},
        {"minus.bin", 20240520, 1, UINT32_MAX, 3, "truncated"}};
    static const struct {
        const char *name, *text, *vocab; /* without text, no file is made */
        int code;
        const char *words;
    } texts[] = {
        {"short.bin", "ab", "auto", DATA_MALFORMED, "not a token file"},
        {"missing.txt", NULL, "auto", DATA_UNREADABLE, "No such file"},
        {"y_*.bin", NULL, "auto", DATA_UNREADABLE, "no file matches"},
        {".", NULL, "auto", DATA_UNREADABLE, "is a directory"},
        {"fifo", NULL, "auto", DATA_UNREADABLE, "not a regular file"},
        {"empty.txt", "", "auto", DATA_UNREADABLE, "file is empty; give a text"},
        {"late", "abc\n\xc3(", "chars", DATA_NEEDS_BYTES, "not UTF-8 at byte 4;"},
        {"late", "abc\n\xc3(", "chars:a,28,61-63", DATA_MALFORMED, "at byte 4; mend the file"},
        {"t.txt", "hello", "words", DATA_MALFORMED, "'words' is no vocabulary"},
        {"t.txt", "hello", "chars:61-", DATA_MALFORMED, "is no vocabulary"},
        {"t.txt", "hello", "chars:61-6b", DATA_UNKNOWN, "character U+6C at byte 2 is not in"},
        {"t.txt", "hello", "bytes:61-6b", DATA_UNKNOWN, "byte value 6C at byte 2 is not in"},
        {"t.txt", "hello", "gpt2:5", DATA_MALFORMED, "text file cannot have the vocabulary 'gpt2"},
        {"good.bin", NULL, "chars", DATA_MALFORMED, "token file cannot have the vocabulary"}};
    for (size_t i = 0; i < COUNT(tokens); i++)
        refused(token_file(tokens[i].name, tokens[i].magic, tokens[i].version, tokens[i].count,
                           tokens[i].held, 0),
                "auto", DATA_MALFORMED, tokens[i].words);
    const char *path = token_file("good.bin", 20240520, 1, 9, 9, 0);
    CHECK(mkfifo(test_path("fifo"), 0600) == 0); /* without a writer, to open it would wait */
    for (size_t i = 0; i < COUNT(texts); i++) {
        if (texts[i].text) text_file(texts[i].name, texts[i].text, strlen(texts[i].text));
        refused(test_path("%s", texts[i].name), texts[i].vocab, texts[i].code, texts[i].words);
    }
    refused("/dev/null", "auto", DATA_UNREADABLE, "not a regular file");
    CHECK(truncate(path, 500) == 0);
    refused(path, "auto", DATA_MALFORMED, "truncated");
    if (geteuid() && chmod(path, 0) == 0) /* root may read everything */
        refused(path, "auto", DATA_UNREADABLE, "Permission denied");
}

TEST(data_too_short_for_the_run_is_refused) {
    static const struct {
        size_t T, N;
        const char *words;
    } bad[] = {{9, 1, "9 tokens to train 1 worker, each needs at least context + 1 = 10"},
               {4, 2, "2 workers"},
               {0, 1, "must be at least 1"},
               {1, 0, "must be at least 1"},
               {8, 1, "ten.txt: too short: 1 tokens to validate on"}};
    static const char *const unknown[] = {"", "IID", "iid:", "ii", "iidx", "dirichlet:1", "blocks"};
    DataSet d = opened(text_file("ten.txt", "abcdefghij", 10), "auto");
    for (size_t i = 0; i < COUNT(bad); i++) {
        int code = data_check_context(&d, bad[i].T, bad[i].N, ERROR);
        CHECK(code == DATA_TOO_SMALL && strstr(error, bad[i].words), "%s", error);
        code = data_set_shards(&d, "contiguous", bad[i].N, bad[i].T, ERROR);
        CHECK(code == (i < 4 ? DATA_TOO_SMALL : 0), "%s", error);
    }
    for (size_t i = 0; i < COUNT(unknown); i++) {
        int code = data_set_shards(&d, unknown[i], 1, 4, ERROR);
        CHECK(code == DATA_MALFORMED && strstr(error, "it is iid or contiguous"), "%s", error);
        CHECK(d.shards == DATA_CONTIGUOUS, "an error leaves the shards as they were");
    }
    /* validation files: other characters, another format, then a good one */
    int code = data_open_val(&d, text_file("other.txt", "abcxyz", 6), ERROR);
    CHECK(code == DATA_UNKNOWN && strstr(error, "other.txt: character U+78 at byte 3"), "%s",
          error);
    code = data_open_val(&d, token_file("v.bin", 20240520, 1, 9, 9, 0), ERROR);
    CHECK(code == DATA_MALFORMED && strstr(error, "v.bin: is a token file"), "%s", error);
    CHECK(d.val_tokens == 1 && d.train_tokens == 9, "an error leaves the splits as they were");
    CHECK(!data_open_val(&d, text_file("good.txt", "abcba", 5), ERROR), "%s", error);
    CHECK(d.val_tokens == 5 && d.train_tokens == 10 && !data_check_context(&d, 8, 1, ERROR));
    data_close(&d);
}

TEST(data_file_that_changes_gives_a_code) {
    char text[20000];
    int32_t in[64], target[64];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + i % 3);
    const char *path = text_file("s.txt", text, sizeof text);
    DataSet d = opened(path, "auto"), tokens = counting(20000);
    CHECK(truncate(path, 10) == 0 && data_val_window(&d, 64, 0, in, target) == 64);
    for (int t = 0; t < 64; t++) CHECK(in[t] == t % 3, "a text is in memory: it stays as it was");
    data_close(&d);
    CHECK(!data_train_window(&tokens, 1, 0, 1, 64, 0, in, target));
    CHECK(truncate(tokens.text.file->path, 10) == 0);
    CHECK(data_train_window(&tokens, 1, 0, 1, 64, 0, in, target) == DATA_CHANGED);
    CHECK(data_val_window(&tokens, 64, 0, in, target) == DATA_CHANGED);
    CHECK(data_fingerprint(&tokens) != 0, "reads nothing beyond the end");
    data_close(&tokens);
    CHECK(strstr(data_strerror(DATA_CHANGED), "shrank") != NULL);
    for (int code = -9; code < 3; code++) CHECK(*data_strerror(code), "code %d", code);
}

TEST(data_beyond_two_gigabytes_is_read_right) {
    const uint32_t count = 1250000000; /* 2.5 GB each, sparse */
    if (sizeof(size_t) < 8) return;
    for (int k = 0; k < 2; k++) {
        const char *path = token_file(k ? "h1.bin" : "h0.bin", 20240520, 1, count, 0, 0);
        const unsigned char mark[2] = {0x39, (unsigned char)(0x30 + k)};
        int fd = open(path, O_WRONLY);
        CHECK(pwrite(fd, mark, 2, 1024 + 2 * (off_t)(count - 5)) == 2);
        CHECK(ftruncate(fd, 1024 + 2 * (off_t)count) == 0);
        close(fd);
    }
    DataSet d = opened(test_path("h?.bin"), "auto");
    int32_t in[8], target[8];
    CHECK(d.text.tokens == 2500000000 && d.train_tokens == 2250000000);
    CHECK(token_at(&d, count - 6) == 0 && token_at(&d, count - 5) == 0x3039, "byte 2^31 of a file");
    CHECK(token_at(&d, 2 * (uint64_t)count - 5) == 0x3139, "token 2^31");
    CHECK(data_val_window(&d, 8, data_val_windows(&d, 8) - 1, in, target) == 7);
    CHECK(in[3] == 0x3139 && target[2] == 0x3139);
    CHECK(!data_train_window(&d, 1, 6, 7, 8, 30000000000, in, target));
    data_close(&d);
}

TEST(data_fingerprint_tells_data_apart) {
    static char text[250000];
    static const size_t length[] = {250000, 249999, 1000, 250000, 250000, 250000, 250000, 250000},
                        changed[] = {0, 249999, 125000};
    uint64_t hash[9];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)('a' + test_hash(1, i) % 20);
    for (size_t i = 0; i < 8; i++) {
        for (size_t k = 0; i == 3 && k < sizeof text; k++) text[k]++; /* the same ids */
        if (i > 4) text[changed[i - 5]] ^= 1;
        DataSet d = opened(text_file("t.txt", text, length[i]), i == 4 ? "bytes" : "auto");
        hash[i] = data_fingerprint(&d);
        CHECK(data_fingerprint(&d) == hash[i], "the same data, the same number");
        CHECK(!data_open_val(&d, test_path("t.txt"), ERROR), "%s", error);
        hash[8] = data_fingerprint(&d);
        data_close(&d);
    }
    for (size_t i = 0; i < 9; i++)
        for (size_t j = 0; j < i; j++) CHECK(hash[i] != hash[j], "variants %zu and %zu", i, j);
    DataSet d = opened(text_file("copy.txt", text, sizeof text), "auto");
    CHECK(data_fingerprint(&d) == hash[7], "the name does not matter");
    data_close(&d);
}

TEST(data_vocabulary_survives_export_and_import) {
    static const char *const good[][2] = {
        {"hello\n", "chars:a,65,68,6c,6f"},
        {"\n !ABC", "chars:a,20-21,41-43"},
        {"z\xc3\xa9z\xe2\x82\xac\xf0\x9f\x99\x82", "chars:7a,e9,20ac,1f642"},
        {"\xff\x01\xfe", "bytes:1,fe-ff"}};
    char text[64], small[64];
    DataVocab v;
    for (size_t i = 0; i < 4; i++) {
        const char *path = text_file("v.txt", good[i][0], strlen(good[i][0]));
        DataSet d = opened(path, "auto");
        size_t n = data_vocab_export(&d.vocab, text, sizeof text);
        CHECK(n == strlen(good[i][1]) && !strcmp(text, good[i][1]), "%s", text);
        for (size_t room = 0; room <= n; room++) { /* as snprintf cuts off */
            memset(small, 'X', sizeof small);
            CHECK(data_vocab_export(&d.vocab, small, room) == n && small[room] == 'X', "%s", text);
            CHECK(!room || (!small[room - 1] && !memcmp(small, text, room - 1)), "%s", text);
        }
        CHECK(!data_vocab_import(&v, text, n), "%s", text);
        CHECK(v.kind == d.vocab.kind && v.size == d.vocab.size, "%s", text);
        CHECK(!memcmp(v.code, d.vocab.code, v.size * sizeof *v.code), "%s", text);
        CHECK(!memcmp(v.id, d.vocab.id, 0x110000 * sizeof *v.id), "%s", text);
        data_vocab_free(&v);
        data_close(&d);
        d = opened(path, text); /* as the vocabulary in use */
        data_close(&d);
    }
    CHECK(!data_vocab_import(&v, "gpt2:50257", 10));
    CHECK(data_vocab_export(&v, text, sizeof text) == 10 && !strcmp(text, "gpt2:50257"));
    data_vocab_free(&v);
}

TEST(data_malformed_vocabulary_is_refused) {
    static const char bad[] =
        "|:|chars|chars:|char:61|charss:61|chars:61,|chars:,61|chars:61-|chars:-61|chars:62-61|"
        "chars:61,61|chars:62,61|chars:61-63,62|chars:61-61|chars:110000|chars:0-10ffff|chars:d800|"
        "chars:d7ff-d801|bytes:100|bytes:ff-100|chars:61 |chars: 61|chars:+61|chars:0x61|chars:6A|"
        "chars:00000061|chars:ffffffffffffffff|gpt2:|gpt2:0|gpt2:65537|gpt2:9999999999|"
        "gpt2:4294967297|gpt2:12x|gpt2:-1|gpt3:5|chars:0-ffff|chars:0-d7ff,e000-11000";
    DataVocab v;
    for (const char *at = bad, *end; at < bad + sizeof bad; at = end + 1) {
        char text[40] = "";
        end = at + strcspn(at, "|");
        memcpy(text, at, (size_t)(end - at));
        CHECK(data_vocab_import(&v, text, strlen(text)) < 0, "'%s' was accepted", text);
    }
    CHECK(data_vocab_import(&v, "bytes:1\0x", 9) < 0, "a zero byte was accepted");
}

TEST(data_floor_is_the_number_beside_the_text) {
    static const char *const bad[] = {"", "\n", "-1\n", "0\n", "nan\n", "inf\n", "1 2\n", "x"};
    const char *path = text_file("t.txt", "hello", 5);
    CHECK(data_floor(path) == 0);
    text_file("t.txt.entropy", "0.5351925\n", 10);
    CHECK_NEAR(data_floor(path), 0.5351925, 1e-12);
    DataSet d = opened(path, "auto");
    CHECK_NEAR(d.floor, 0.5351925, 1e-12);
    data_close(&d);
    for (size_t i = 0; i < COUNT(bad); i++) {
        text_file("t.txt.entropy", bad[i], strlen(bad[i]));
        CHECK(data_floor(path) == 0, "'%s'", bad[i]);
    }
}
