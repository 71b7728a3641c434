/* safetensors.c - proofs of lib/safetensors.h: round trips, damage, malformed headers, failing writes. */
#include "../lib/safetensors.h"
#include "test.h"

#include <signal.h>
#include <sys/resource.h>

static char error[1024];

/* Does the file fail to open, with a sentence that begins with its path and holds `reason`? */
static int refused(const char *path, const char *reason) {
    StFile f;
    *error = 0;
    if (!st_open(&f, path, error, sizeof error)) {
        st_close(&f);
        return 0;
    }
    return !f.map && !f.entries && strstr(error, path) == error && strstr(error, reason);
}

static int opened(StFile *f, const char *path) {
    int failed = st_open(f, path, error, sizeof error);
    CHECK(!failed, "%s", error);
    return !failed;
}

static const float weight[6] = {1, -2, 3.5f, 0, 1e-30f, -0.0f};
static const uint64_t seed[1] = {0xfedcba9876543210u};
static const StTensor tensors[] = {
    {.name = "layer.weight", .dtype = "F32", .shape = {3, 2}, .rank = 2, .data = weight},
    {.name = "empty", .dtype = "U32", .shape = {4, 0}, .rank = 2},
    {.name = "seed", .dtype = "U64", .data = seed},
    {.name = "text", .dtype = "U8", .shape = {5}, .rank = 1, .data = "hello"},
};
static const StPair meta[] = {{.key = "step", .value = "12"}, {.key = "heads", .value = "3"}};

static int write_sample(const char *path) {
    return st_write(path, tensors, 4, meta, 2, error, sizeof error);
}

/* A file of one header, announced as `length` bytes, and `data` zeros. */
static void craft(const char *path, uint64_t length, const char *json, size_t n, size_t data) {
    char *bytes = calloc(1, 8 + n + data);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, json, n);
    test_write(path, bytes, 8 + n + data);
    free(bytes);
}

TEST(safetensors_round_trip_keeps_tensors_and_metadata) {
    const char *path = test_path("x.safetensors");
    StFile f;
    float back[6] = {0};
    CHECK(write_sample(path) == 0, "%s", error);
    if (!opened(&f, path)) return;
    CHECK(f.n == 4 && f.verified && ((f.data - f.map) & 63) == 0);
    CHECK(st_read_f32(&f, "layer.weight", back, 6, error, sizeof error) == 0);
    CHECK(memcmp(back, weight, sizeof back) == 0);
    const StEntry *e = st_find(&f, "layer.weight");
    CHECK(e && e->rank == 2 && e->shape[0] == 3 && e->shape[1] == 2 && e->begin == 0);
    e = st_find(&f, "seed");
    CHECK(e && e->rank == 0 && e->count == 1 && memcmp(st_data(&f, e), seed, 8) == 0);
    e = st_find(&f, "text");
    CHECK(e && strcmp(e->dtype, "U8") == 0 && memcmp(st_data(&f, e), "hello", 5) == 0);
    e = st_find(&f, "empty");
    CHECK(e && e->count == 0 && e->begin == e->end);
    CHECK(!st_find(&f, "layer.weigh") && !st_find(&f, ""));
    CHECK(st_meta(&f, "step") && strcmp(st_meta(&f, "step"), "12") == 0 && !st_meta(&f, "stop"));
    static const struct {
        const char *name;
        size_t count;
        const char *reason;
    } rows[] = {{"weight", 6, "there is no tensor 'weight'"},
                {"seed", 1, "'seed' is U64, expected F32"},
                {"layer.weight", 7, "has 6 elements, expected 7"}};
    for (size_t i = 0; i < COUNT(rows); i++) {
        float out[7] = {7, 7, 7, 7, 7, 7, 7};
        CHECK(st_read_f32(&f, rows[i].name, out, rows[i].count, error, sizeof error) < 0);
        CHECK(strstr(error, rows[i].reason) && strstr(error, path) == error, "%s", error);
        for (int k = 0; k < 7; k++) CHECK(out[k] == 7);
    }
    st_close(&f);
    st_close(&f);
    CHECK(st_write(path, NULL, 0, NULL, 0, error, sizeof error) == 0);
    CHECK(st_open(&f, path, error, sizeof error) == 0 && f.n == 0 && f.verified);
    CHECK(!st_find(&f, "x"));
    st_close(&f);
}

TEST(safetensors_file_has_frozen_bytes) {
    const char *path = test_path("x.safetensors"), *again = test_path("y.safetensors");
    size_t n, m;
    CHECK(write_sample(path) == 0 && write_sample(again) == 0 && write_sample(path) == 0);
    char *a = test_read(path, &n), *b = test_read(again, &m);
    CHECK(n == m && memcmp(a, b, n) == 0);
    /* as the first version of this format wrote it */
    const char *start = "{\"__metadata__\":{\"checksum\":\"98b1dfc72925310f\",\"checksum_kind\":"
                        "\"st64\",\"step\":\"12\",\"heads\":\"3\"},\"layer.weight\":{";
    CHECK(memcmp(a + 8, start, strlen(start)) == 0, "%.100s", a + 8);
    free(a);
    free(b);
}

TEST(safetensors_file_is_read_by_python) {
    const char *path = test_path("x.safetensors");
    StTensor odd = {.name = "a\"b\n\xc3\xbc", .dtype = "F32", .shape = {2, 3}, .rank = 2};
    StPair pair = {.key = "k\\", .value = "v\t\x01"};
    odd.data = weight;
    CHECK(st_write(path, &odd, 1, &pair, 1, error, sizeof error) == 0);
    const TestResult *r = test_command(
        "command -v python3 >/dev/null || exit 0; python3 - '%s' <<'END'\n"
        "import json, struct, sys\n"
        "b = open(sys.argv[1], 'rb').read()\n"
        "n = struct.unpack('<Q', b[:8])[0]\n"
        "h = json.loads(b[8:8 + n])\n"
        "assert h.pop('__metadata__')['k\\\\'] == 'v\\t\\x01'\n"
        "(name, t), = h.items()\n"
        "assert name == 'a\"b\\n\\u00fc' and t['dtype'] == 'F32' and t['shape'] == [2, 3]\n"
        "assert t['data_offsets'] == [0, 24] and len(b) == 8 + n + 24 and (8 + n) %% 8 == 0\n"
        "assert struct.unpack('<6f', b[8 + n:])[:4] == (1, -2, 3.5, 0)\n"
        "try: from safetensors.numpy import load_file\n"
        "except ImportError: sys.exit(0)\n"
        "assert load_file(sys.argv[1])[name].tolist()[0] == [1, -2, 3.5]\n"
        "END",
        path);
    CHECK(r->status == 0, "%s", r->err);
}

TEST(safetensors_damage_anywhere_is_noticed) {
    const char *path = test_path("x.safetensors");
    size_t n;
    CHECK(write_sample(path) == 0);
    char *bytes = test_read(path, &n);
    int fd = open(path, O_WRONLY);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        char damaged = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        CHECK(pwrite(fd, &damaged, 1, (off_t)(bit / 8)) == 1);
        CHECK(refused(path, ": "), "bit %zu of byte %zu", bit % 8, bit / 8);
        CHECK(pwrite(fd, bytes + bit / 8, 1, (off_t)(bit / 8)) == 1);
    }
    close(fd);
    CHECK(!refused(path, ""), "all bits are back");
    bytes[n - 1] ^= 32;
    test_write(path, bytes, n);
    CHECK(refused(path, "checksum does not match: the file is damaged"));
    bytes[n - 1] ^= 32;
    test_write(path, bytes, n);
    for (size_t length = n; length-- > 0;) {
        CHECK(truncate(path, (off_t)length) == 0);
        CHECK(refused(path, ": "), "cut to %zu of %zu bytes", length, n);
    }
    test_write(path, bytes, n);
    for (size_t extra = 1; extra <= 65; extra++) {
        CHECK(truncate(path, (off_t)(n + extra)) == 0);
        CHECK(refused(path, ": the tensors take"), "%zu bytes too many", extra);
    }
    free(bytes);
}

TEST(safetensors_damage_in_large_file_is_noticed) {
    const char *path = test_path("x.safetensors");
    size_t n = 300001; /* more than one piece of the verifying pass, and no multiple of a word */
    char *bytes = calloc(n, 1);
    StTensor t = {.name = "t", .dtype = "U8", .shape = {n}, .rank = 1, .data = bytes};
    for (size_t i = 0; i < n; i++) bytes[i] = (char)test_hash(3, i);
    CHECK(st_write(path, &t, 1, NULL, 0, error, sizeof error) == 0);
    CHECK(!refused(path, ""));
    int fd = open(path, O_RDWR);
    for (size_t i = 0; i < 40; i++) {
        off_t at = (off_t)(i < 3 ? ((size_t)1 << 18) - 1 + i : 256 + test_hash(4, i) % n);
        char byte, damaged;
        CHECK(pread(fd, &byte, 1, at) == 1);
        damaged = (char)(byte ^ 1 << i % 8);
        CHECK(pwrite(fd, &damaged, 1, at) == 1);
        CHECK(refused(path, "does not match"), "byte %ld", (long)at);
        CHECK(pwrite(fd, &byte, 1, at) == 1);
    }
    close(fd);
    free(bytes);
}

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define U8(shape, offsets)                                                                         \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define META(pairs) "{\"__metadata__\":{" pairs "}}"
#define UNSIGNED "an unsigned integer"
#define NEEDS "'a' needs dtype, shape and two data_offsets"

static const struct {
    const char *json;
    size_t data;
    const char *reason; /* NULL: a good header */
} headers[] = {
    {"{" A "}", 8, NULL},
    {"{" A "}   ", 8, NULL},
    {"{ \"__metadata__\" : { } ,\n\t" A "\r}", 8, NULL},
    {"{}", 0, NULL},
    {"{\"s\":{\"data_offsets\":[0,2],\"dtype\":\"BF16\",\"shape\":[]}}", 2, NULL},
    {"{\"b\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[8,16]}," A "}", 16, NULL},
    {"", 0, "there is no header"},
    {" {}", 0, "there is no header"},
    {"[]", 0, "there is no header"},
    {"{", 0, "expected '\"'"},
    {"{" A, 8, "expected ','"},
    {"{" A ",}", 8, "expected '\"'"},
    {"{" A "}}", 8, "something follows"},
    {"{" A "}\n", 8, "something follows"},
    {"{" A "} x", 8, "something follows"},
    {"{" A "," A "}", 8, "tensor 'a' overlaps"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1, "two tensors are named 'a'"},
    {"{" A "}", 9, "the tensors take 8 bytes, the file has 9"},
    {"{" A "}", 7, "the tensors take 8 bytes, the file has 7"},
    {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "overlaps"},
    {"{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9,13]}}", 13, "a hole"},
    {U8("[8]", "[1,9]"), 9, "a hole"},
    {U8("[9]", "[0,8]"), 8, "needs 9 bytes"},
    {U8("[8]", "[8,0]"), 8, "needs 8 bytes"},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, NEEDS},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, NEEDS},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, NEEDS},
    {"{\"a\":{}}", 8, NEEDS},
    {U8("[8]", "[0]"), 8, NEEDS},
    {U8("[8]", "[0,8,8]"), 8, "too many numbers"},
    {U8("[1,1,1,1,8]", "[0,8]"), 8, "too many numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 8, "'a' has twice the key 'dtype'"},
    {"{\"a\":{\"dtype\":\"F32\",\"color\":\"red\"}}", 8, "'a' has the unknown key 'color'"},
    {"{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
    {"{\"a\":{\"dtype\":\"F32:4 \",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
    {"{\"a\":{\"dtype\":\"\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
    {"{\"a\":{\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "expected '\"'"},
    {U8("[4294967296,4294967296]", "[0,0]"), 0, "a shape that overflows"},
    {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
     "a shape that overflows"},
    {U8("[18446744073709551616]", "[0,0]"), 0, "a number is too large"},
    {U8("[8]", "[18446744073709551608,18446744073709551615]"), 8, "needs 8 bytes"},
    {U8("[8]", "[18446744073709551607,18446744073709551615]"), 8, "a hole"},
    {U8("[-2]", "[0,8]"), 8, UNSIGNED},
    {U8("[8.0]", "[0,8]"), 8, "expected ','"},
    {U8("[8e0]", "[0,8]"), 8, "expected ','"},
    {U8("[08]", "[0,8]"), 8, UNSIGNED},
    {U8("[8,]", "[0,8]"), 8, UNSIGNED},
    {U8("[[8]]", "[0,8]"), 8, UNSIGNED},
    {U8("null", "[0,8]"), 8, "expected '['"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[", 8, UNSIGNED},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 8, "expected '{'"},
    {"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{", 8, "the unknown key 'a'"},
    {"{\"a\"}", 0, "expected ':'"},
    {"{\"a", 0, "a string does not end"},
    {"{\"a\\", 0, "unknown escape"},
    {"{\"a\\x\":{}}", 0, "unknown escape"},
    {"{\"\\u12", 0, "unknown escape"},
    {"{\"\\u12g4\":{}}", 0, "unknown escape"},
    {"{\"\\u 123\":{}}", 0, "unknown escape"},
    {"{\"\\u0000\":{}}", 0, "NUL in a string"},
    {"{\"\\ud83d\\ude00\":{}}", 0, "surrogate"},
    {"{\"\\ude00\":{}}", 0, "surrogate"},
    {"{\"a\nb\":{}}", 0, "a control character"},
    {"{\"\xff\":{}}", 0, "not UTF-8"},
    {"{\"\xc0\xaf\":{}}", 0, "not UTF-8"},
    {"{\"\xe2\x82\":{}}", 0, "not UTF-8"},
    {"{\"\xed\xa0\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xf0\x80\x80\x80\":{}}", 0, "not UTF-8"},
    {"{\"\xf4\x90\x80\x80\":{}}", 0, "not UTF-8"},
    {META("\"k\":1"), 0, "expected '\"'"},
    {META("\"k\":\"1\",\"k\":\"2\""), 0, "the metadata has 'k' twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "two __metadata__"},
    {META("\"checksum\":\"0123456789abcdef\""), 0, "of an unknown kind"},
    {META("\"checksum_kind\":\"st64\""), 0, "of an unknown kind"},
    {META("\"checksum\":\"\",\"checksum_kind\":\"st64\""), 0, "does not match"},
    {META("\"checksum_kind\":\"st64\",\"checksum\":\"\""), 0, "does not match"},
    {META("\"checksum\":\"0123456789abcdef\",\"checksum_kind\":\"st64\""), 0, "does not match"},
};

TEST(safetensors_malformed_header_is_refused) {
    const char *path = test_path("x.safetensors"), *good = "{" A "}";
    for (size_t i = 0; i < COUNT(headers); i++) {
        const char *json = headers[i].json, *reason = headers[i].reason;
        craft(path, strlen(json), json, strlen(json), headers[i].data);
        CHECK(refused(path, reason ? reason : "") == (reason != NULL), "row %zu, %s, says: %s", i,
              json, error);
    }
    const uint64_t lengths[] = {65,         1000,       1ull << 31,    1ull << 32,
                                1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        craft(path, lengths[i], good, strlen(good), 8);
        CHECK(refused(path, "does not fit") && errno == 0);
    }
    for (size_t n = 0; n < 8; n++) {
        test_write(path, "\0\0\0\0\0\0\0", n);
        CHECK(refused(path, "too short"));
    }
    craft(path, ST_HEADER_MAX + 1, good, strlen(good), 8);
    CHECK(truncate(path, 8 + ST_HEADER_MAX + 1) == 0); /* sparse */
    CHECK(refused(path, "is too long"));
    unlink(path);
    CHECK(refused(path, "No such file") && errno == ENOENT);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(refused(path, "not a regular file") && errno == 0);
    CHECK(refused(test_folder(), "not a regular file") && errno == 0);
    CHECK(refused("/dev/null", "not a regular file") && errno == 0);
}

TEST(safetensors_foreign_file_is_read_unverified) {
    const char *path = test_path("x.safetensors");
    const char *json = "{\"__metadata__\":{\"format\":\"pt\"},"
                       "\"\\u0061\\/\\\"\\\\\\b\\f\\n\\r\\t\\u00e9\\u20AC\":"
                       "{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}";
    StFile f;
    craft(path, strlen(json), json, strlen(json), 3);
    if (!opened(&f, path)) return;
    CHECK(!f.verified && st_find(&f, "a/\"\\\b\f\n\r\t\xc3\xa9\xe2\x82\xac"));
    CHECK(st_meta(&f, "format") && strcmp(st_meta(&f, "format"), "pt") == 0);
    st_close(&f);
}

TEST(safetensors_odd_names_survive_round_trip) {
    const char *path = test_path("x.safetensors");
    const char *odd =
        "\"quoted\\\" \t\n\r\b\f\x01\x1f / \x7f gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80 {}";
    StTensor t[] = {{.name = odd, .dtype = "U8", .shape = {2}, .rank = 1, .data = "xy"},
                    {.name = "", .dtype = "U8", .shape = {1}, .rank = 1, .data = "z"}};
    StPair pairs[] = {
        {.key = odd, .value = odd}, {.key = "", .value = ""}, {.key = "a", .value = "\\u0041"}};
    StFile f;
    CHECK(st_write(path, t, 2, pairs, 3, error, sizeof error) == 0);
    if (!opened(&f, path)) return;
    CHECK(f.verified && st_find(&f, odd) && st_find(&f, ""));
    for (size_t i = 0; i < COUNT(pairs); i++) {
        const char *value = st_meta(&f, pairs[i].key);
        CHECK(value && strcmp(value, pairs[i].value) == 0);
    }
    st_close(&f);
}

/* st_write must fail for this reason, and leave the old file and nothing else. */
static void write_fails(const char *path, const StTensor *t, size_t n, const StPair *pairs,
                        size_t n_pairs, const char *reason) {
    char temporary[600];
    size_t before, after;
    char *a = test_read(path, &before);
    *error = 0;
    CHECK(st_write(path, t, n, pairs, n_pairs, error, sizeof error) == -1);
    CHECK(strstr(error, path) == error && strstr(error, reason), "'%s', not '%s'", error, reason);
    char *b = test_read(path, &after);
    CHECK(before == after && (!a || !before || memcmp(a, b, before) == 0));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    CHECK(access(temporary, F_OK) != 0);
    free(a);
    free(b);
}

TEST(safetensors_unreadable_file_is_not_written) {
    const char *path = test_path("x.safetensors");
    StTensor twice[] = {{.name = "a", .dtype = "U8", .shape = {2}, .rank = 1, .data = "xy"},
                        {.name = "a", .dtype = "U8", .shape = {1}, .rank = 1, .data = "z"}};
    StTensor reserved = twice[0], latin1 = twice[0];
    StPair own = {.key = "checksum", .value = "1"}, bad = {.key = "path", .value = "caf\xe9"};
    reserved.name = "__metadata__";
    latin1.name = "\xe9";
    CHECK(write_sample(path) == 0);
    write_fails(path, twice, 2, NULL, 0, "two tensors are named 'a'");
    write_fails(path, &reserved, 1, NULL, 0, "two __metadata__");
    write_fails(path, &latin1, 1, NULL, 0, "not UTF-8");
    write_fails(path, NULL, 0, &own, 1, "the metadata has 'checksum' twice");
    write_fails(path, NULL, 0, &bad, 1, "not UTF-8");
}

TEST(safetensors_failed_write_leaves_old_file) {
    const char *path = test_path("x.safetensors"), *sub = test_path("sub.safetensors");
    write_fails("/nonexistent/x.safetensors", tensors, 4, NULL, 0, "No such file");
    CHECK(mkdir(sub, 0755) == 0);
    write_fails(sub, tensors, 4, NULL, 0, "cannot replace");

    CHECK(write_sample(path) == 0);
    uid_t user = geteuid(); /* root may write anywhere */
    if (!chmod(test_folder(), 0555) && (user || !seteuid(65534))) {
        write_fails(path, tensors, 2, NULL, 0, "Permission denied");
        if (!user) CHECK(seteuid(0) == 0);
    }
    CHECK(chmod(test_folder(), 0755) == 0);

    size_t size;
    struct rlimit old, limit;
    free(test_read(path, &size));
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    limit = old;
    for (limit.rlim_cur = 0; limit.rlim_cur < size; limit.rlim_cur += 83) {
        setrlimit(RLIMIT_FSIZE, &limit); /* a short write, then EFBIG */
        write_fails(path, tensors, 4, meta, 2, "File too large");
        setrlimit(RLIMIT_FSIZE, &old);
    }
    signal(SIGXFSZ, handler);

    const char *temporary = test_path("x.safetensors.tmp"); /* left by an interrupted run */
    test_write(temporary, "half a file", 11);
    CHECK(write_sample(path) == 0 && access(temporary, F_OK) != 0 && !refused(path, ""));
}

TEST(safetensors_checksum_ignores_piece_sizes) {
    unsigned char bytes[300];
    char whole[17], parts[17];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)test_hash(7, i);
    for (size_t n = 0; n < sizeof bytes; n++) {
        StHash a = st__hash_start(), b = st__hash_start();
        st__hash_add(&a, bytes, n);
        for (size_t i = 0, piece; i < n; i += piece) {
            piece = 1 + test_hash(n, i) % 70;
            if (piece > n - i) piece = n - i;
            st__hash_add(&b, bytes + i, piece);
        }
        st__hash_digits(&a, whole);
        st__hash_digits(&b, parts);
        CHECK(strcmp(whole, parts) == 0, "%zu bytes: %s and %s", n, whole, parts);
    }
}
