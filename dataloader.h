/* dataloader.h - text or GPT-2 token files -> windows of tokens for every worker. C11 + POSIX, MIT.

     split     the first floor(0.9 n) tokens train, the others validate          (nanoGPT)
     shard     what worker r of N reads of the training split:
       iid          blocks of b tokens, dealt in turn: its i-th block is block i N + r of the
                    split; b = min(max(1024, 16 T), split / N). One worker has one block
       contiguous   N stretches, equal to within one token; a shard is one block
     order     the windows of T tokens of a block begin at o, o + T, ..., so that none crosses its
               end; in epoch e, o = hash(seed, e) mod T, and pi permutes all windows of the
               shard: a Feistel network keyed by
               (seed, e, r), applied until the result is in range  (Luby and Rackoff 1988; Black
               and Rogaway 2002). Nothing has to be saved: a resumed run asks for window k.
     validate  the whole split in consecutive windows; each of the n - 1 predictions counts once

   USE   (all functions are static inline; _POSIX_C_SOURCE 200809L or _GNU_SOURCE)

     char error[512];
     int32_t in[T], target[T];
     DataSet d;
     if (data_open(&d, path, "auto", error, sizeof error) ||
         data_check_context(&d, T, WORKERS, error, sizeof error))
         return puts(error), 1;
     if (data_train_window(&d, SEED, rank, WORKERS, T, k, in, target)) return 1;
     data_close(&d);

   MEMORY    Text becomes 2 bytes per character. Token files are mapped and may exceed 2 GB; one
             that shrinks gives DATA_CHANGED, or SIGBUS during a read. Opening alone allocates.
   THREADS   An open DataSet is never written: any number of threads or processes may read it.
   ERRORS    A negative code, and a sentence in `error` or from data_strerror. After a failed
             data_open there is nothing to close.
   API
     data_open data_open_val data_close         text or token files; others to validate on
     data_set_shards data_shards_row            how the text is cut for N workers; else "iid"
     data_check_context                         are both splits and every shard long enough?
     data_train_windows data_train_window       windows per epoch of a worker; its k-th window
     data_val_windows data_val_window           windows of the validation split
     data_fingerprint data_floor                a hash of the data; entropy noted in PATH.entropy
     data_vocab_export _import _free            "chars:a,20-21,41-5a", "bytes:0-ff", "gpt2:50257"
     data_encode data_decode data_tokenisation  text <-> tokens; "characters", "bytes", ...

   TOKENS    number the characters (or bytes) that occur, in ascending order from 0. Token files are
             llm.c's, little-endian: int32 header[256] = {20240520, 1, count}, then uint16. */
#ifndef DATALOADER_H
#define DATALOADER_H

#include <assert.h>
#include <glob.h>
#include <inttypes.h>
#include "lib/base.h"

#define DATA_BLOCK 1024u      /* tokens of a block of an iid shard, at least */
#define DATA_DECODED 16       /* bytes that data_decode may write */
#define DATA_MAX_VOCAB 65535u /* so that token + 1 fits 16 bits */
#define DATA_GPT2_VOCAB 50257u
#define DATA__CODES 0x110000u
#define DATA__MAGIC 20240520u
#define DATA__HEADER 1024u

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tokens of files are used as they lie");

enum {
    DATA_UNREADABLE = -1,
    DATA_MALFORMED = -2,
    DATA_UNKNOWN = -3,
    DATA_TOO_SMALL = -4,
    DATA_NO_MEMORY = -5,
    DATA_CHANGED = -6,
    DATA_NEEDS_BYTES = -7
};

typedef enum DataTokenisation { DATA_CHARS, DATA_BYTES, DATA_GPT2 } DataTokenisation;

typedef struct DataVocab {
    DataTokenisation kind;
    uint32_t size;  /* V */
    uint32_t *code; /* (V) token -> code point or byte, ascending; NULL for GPT-2 */
    uint16_t *id;   /* (0x110000) code point or byte -> token + 1, or 0; NULL for GPT-2 */
} DataVocab;

typedef struct DataFile {
    const char *path;
    int fd; /* stays open to notice that the file shrinks */
    size_t bytes;
    const unsigned char *map;
    const uint16_t *token; /* (tokens) in the map; of a text, NULL */
    uint64_t first, tokens;
} DataFile;

typedef struct DataText {
    char *path;   /* as the user typed it */
    glob_t names; /* what a pattern matched */
    DataFile *file;
    size_t files;
    int tokenised;   /* token files, not text */
    uint16_t *copy;  /* (tokens) of a text, else NULL */
    uint64_t tokens; /* of all files */
} DataText;

typedef enum DataShards { DATA_IID, DATA_CONTIGUOUS } DataShards;

typedef struct DataSet {
    DataVocab vocab;
    DataText text, val_text; /* val_text is empty without data_open_val */
    uint64_t train_tokens, val_tokens;
    DataShards shards;
    double floor; /* exact entropy in nats per token if known, else 0 */
} DataSet;

static inline const char *data_strerror(int code) {
    static const char *const sentence[] = {
        [0] = "no error",
        [-DATA_UNREADABLE] = "the data cannot be read",
        [-DATA_MALFORMED] = "the data is malformed",
        [-DATA_UNKNOWN] = "the data contains something outside the vocabulary",
        [-DATA_TOO_SMALL] = "the data is too short",
        [-DATA_NO_MEMORY] = "out of memory",
        [-DATA_CHANGED] = "a token file shrank while in use, or has a token above V",
        [-DATA_NEEDS_BYTES] = "the data can only be read as bytes"};
    return code <= 0 && code >= DATA_NEEDS_BYTES ? sentence[-code] : "unknown error";
}

/* ------------------------------------------------------------------------------------------------
 * vocabulary */

static inline const char *data_tokenisation(const DataVocab *v) {
    return v->kind == DATA_CHARS ? "characters" : v->kind == DATA_BYTES ? "bytes" : "GPT-2 tokens";
}

static inline void data_vocab_free(DataVocab *v) {
    free(v->code);
    free(v->id);
    *v = (DataVocab){0};
}

/* length of the next character, or byte, of n > 0 bytes; 0 if it is not UTF-8 */
static inline size_t data__next(const DataVocab *v, const unsigned char *p, size_t n,
                                uint32_t *code) {
    *code = *p;
    return v->kind == DATA_CHARS ? base_character((const char *)p, n, code) : 1;
}

/* every code marked in id becomes a token, in ascending order */
static inline int data__number(DataVocab *v) {
    v->size = 0;
    for (uint32_t c = 0; c < DATA__CODES; c++) v->size += v->id[c] != 0;
    if (v->size > DATA_MAX_VOCAB) return DATA_NEEDS_BYTES;
    v->code = malloc((v->size + 1) * sizeof *v->code);
    if (!v->code) return DATA_NO_MEMORY;
    for (uint32_t c = 0, token = 0; c < DATA__CODES; c++) {
        if (!v->id[c]) continue;
        v->code[token] = c;
        v->id[c] = (uint16_t)++token;
    }
    return 0;
}

/* Printable ASCII. Returns the length without the final NUL; it fits if that is < size. */
static inline size_t data_vocab_export(const DataVocab *v, char *out, size_t size) {
    if (v->kind == DATA_GPT2) return (size_t)snprintf(out, size, "gpt2:%" PRIu32, v->size);
    size_t n = (size_t)snprintf(out, size, v->kind == DATA_CHARS ? "chars:" : "bytes:");
    for (uint32_t i = 0, j; i < v->size; i = j) {
        for (j = i + 1; j < v->size && v->code[j] == v->code[j - 1] + 1;) j++;
        const char *format = j - i > 1 ? "%s%" PRIx32 "-%" PRIx32 : "%s%" PRIx32;
        n += (size_t)snprintf(n < size ? out + n : NULL, n < size ? size - n : 0, format,
                              i ? "," : "", v->code[i], v->code[j - 1]);
    }
    return n;
}

/* The vocabulary of a string of `length` bytes. Returns 0 or a code; an error leaves none to free.
 * Parsing is lenient: afterwards, only what is exported just as it was imported is right. */
static inline int data_vocab_import(DataVocab *v, const char *text, size_t length) {
    const char *s = strchr(text, ':');
    char *again = malloc(length + 1), *end;
    int code = s ? 0 : DATA_MALFORMED;
    *v = (DataVocab){.kind = *text == 'c' ? DATA_CHARS : *text == 'b' ? DATA_BYTES : DATA_GPT2};
    if (v->kind != DATA_GPT2) v->id = calloc(DATA__CODES, sizeof *v->id);
    if (!again || (v->kind != DATA_GPT2 && !v->id)) code = DATA_NO_MEMORY;
    if (!code && !v->id) v->size = (uint32_t)strtoul(s + 1, NULL, 10);
    if (!code && !v->id && v->size - 1 > DATA_MAX_VOCAB) code = DATA_MALFORMED;
    for (int more = v->id != NULL; more && !code; s = end, more = *s == ',') { /* "20-21,41" */
        unsigned long low = strtoul(s + 1, &end, 16), high = low;
        if (*end == '-') high = strtoul(end + 1, &end, 16);
        if (low > high || high >= (v->kind == DATA_CHARS ? DATA__CODES : 256) ||
            (low < 0xe000 && high >= 0xd800)) /* surrogates */
            code = DATA_MALFORMED;
        for (unsigned long c = low; c <= high && !code; c++) v->id[c] = 1;
    }
    if (!code && v->id) code = data__number(v);
    if (!code && (data_vocab_export(v, again, length + 1) != length || strcmp(text, again)))
        code = DATA_MALFORMED;
    if (code) data_vocab_free(v);
    free(again);
    return code;
}

/* Returns the number of tokens, of which the first max are written, or -(offset + 1) of the first
 * byte outside the vocabulary. GPT-2's merges are not here: its tokens are given as "[15496][995]",
 * as data_decode writes them. */
static inline int64_t data_encode(const DataVocab *v, const char *utf8, uint16_t *out, size_t max) {
    size_t length = strlen(utf8), count = 0;
    for (size_t i = 0, n; i < length; i += n, count++) {
        uint32_t code = 0, token = 0; /* token + 1; 0: there is none */
        if (v->kind == DATA_GPT2) {
            int read = 0;
            if (sscanf(utf8 + i, "[%5" SCNu32 "]%n", &code, &read) == 1 && read && code < v->size)
                token = code + 1;
            n = (size_t)read;
        } else {
            n = data__next(v, (const unsigned char *)utf8 + i, length - i, &code);
            if (n) token = v->id[code];
        }
        if (!token) return -(int64_t)i - 1;
        if (count < max) out[count] = (uint16_t)(token - 1);
    }
    return (int64_t)count;
}

/* Writes 1..4 bytes (no NUL), of DATA_GPT2 "[123]", and returns their number; 0 if token >= V. */
static inline size_t data_decode(const DataVocab *v, unsigned token, char out[DATA_DECODED]) {
    if (token >= v->size) return 0;
    if (v->kind == DATA_GPT2) return (size_t)snprintf(out, DATA_DECODED, "[%u]", token);
    uint32_t c = v->code[token];
    size_t n = v->kind == DATA_BYTES || c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(n > 1 ? (0xf00u >> n & 0xff) | c : c);
    return n;
}

/* ------------------------------------------------------------------------------------------------
 * files */

static inline void data_close(DataSet *d) {
    for (int k = 0; k < 2; k++) {
        DataText *t = k ? &d->val_text : &d->text;
        for (size_t i = 0; i < t->files; i++) {
            if (t->file[i].map) munmap((void *)(uintptr_t)t->file[i].map, t->file[i].bytes);
            if (t->file[i].fd >= 0) close(t->file[i].fd);
        }
        globfree(&t->names);
        free(t->file);
        free(t->path);
        free(t->copy);
    }
    data_vocab_free(&d->vocab);
    *d = (DataSet){0};
}

/* Map a file of text or of tokens. */
static inline int data__map(DataFile *f, char *error, size_t size) {
    struct stat s = {0};
    f->fd = base_open(f->path, O_RDONLY);
    int failed = f->fd < 0 || fstat(f->fd, &s);
    const char *wrong = failed ? strerror(errno) : NULL;
    if (failed && (errno == ENODEV || strcmp(f->path, "-") == 0))
        wrong = "not a regular file; write the text to a file, and name that";
    if (failed && errno == EISDIR)
        wrong = "is a directory; name a file, or a pattern such as '*.bin' in it";
    if (!failed && !s.st_size)
        wrong = "file is empty; give a text of at least some thousand characters";
    f->bytes = wrong ? 0 : (size_t)s.st_size;
    void *map = wrong ? NULL : mmap(NULL, f->bytes, PROT_READ, MAP_PRIVATE, f->fd, 0);
    if (map == MAP_FAILED) wrong = strerror(errno);
    if (wrong) return base_fail(error, size, DATA_UNREADABLE, "%s: %s", f->path, wrong);
    f->map = map;

    uint32_t header[3] = {0}; /* magic, version, tokens */
    memcpy(header, f->map, f->bytes < sizeof header ? f->bytes : sizeof header);
    const char *dot = strrchr(f->path, '.');
    uint64_t held = f->bytes < DATA__HEADER ? 0 : f->bytes - DATA__HEADER;
    if (header[0] != DATA__MAGIC && (!dot || strcmp(dot, ".bin"))) return 0;
    if (header[0] != DATA__MAGIC)
        return base_fail(error, size, DATA_MALFORMED,
                         "%s: not a token file (magic %u, expected %u); give llm.c's GPT-2 tokens, "
                         "or a text under another name than .bin",
                         f->path, header[0], DATA__MAGIC);
    if (f->bytes >= DATA__HEADER && header[1] != 1)
        return base_fail(error, size, DATA_MALFORMED,
                         "%s: token file of version %u, expected 1; write it again", f->path,
                         header[1]);
    f->tokens = header[2];
    f->token = (const uint16_t *)(const void *)(f->map + DATA__HEADER);
    if (f->tokens && held == 2 * f->tokens) return 0;
    return base_fail(error, size, DATA_MALFORMED,
                     "%s: the header promises %" PRIu64 " tokens, the file has %" PRIu64 ": %s",
                     f->path, f->tokens, held / 2,
                     held < 2 * f->tokens || f->bytes < DATA__HEADER ? "it is truncated"
                     : f->tokens                                     ? "something was added to it"
                                                                     : "there is nothing to read");
}

/* Map all files of a path; one that exists is taken literally, whatever characters it has. */
static inline int data__load(DataText *t, const char *path, char *error, size_t size) {
    struct stat s;
    *t = (DataText){.path = strdup(path)};
    int many = t->path && stat(path, &s) && strpbrk(path, "*?[");
    if (many && glob(path, 0, NULL, &t->names))
        return base_fail(error, size, DATA_UNREADABLE, "%s: no file matches this pattern", path);
    char **name = many ? t->names.gl_pathv : &t->path;
    size_t n = many ? t->names.gl_pathc : 1;
    t->file = calloc(n, sizeof *t->file);
    if (!t->path || !t->file)
        return base_fail(error, size, DATA_NO_MEMORY, "%s: out of memory", path);
    for (size_t i = 0; i < n; i++) {
        DataFile *f = &t->file[t->files++];
        *f = (DataFile){.path = name[i], .first = t->tokens};
        int code = data__map(f, error, size);
        if (code) return code;
        t->tokenised = f->token != NULL;
        if (t->tokenised != (t->file->token != NULL))
            return base_fail(error, size, DATA_MALFORMED,
                             "%s: text and token files do not mix; narrow the pattern", f->path);
        t->tokens += f->tokens;
    }
    return 0;
}

/* Mark the characters of a text in v->id; or, when v is complete, look up their tokens. */
static inline int data__scan(DataText *t, const DataVocab *v, int complete, char *error,
                             size_t size) {
    t->tokens = 0;
    for (const DataFile *f = t->file; f < t->file + t->files; f++)
        for (size_t i = 0, n; i < f->bytes; i += n) {
            uint32_t code;
            n = data__next(v, f->map + i, f->bytes - i, &code);
            if (!n)
                return base_fail(error, size, complete ? DATA_MALFORMED : DATA_NEEDS_BYTES,
                                 "%s: not UTF-8 at byte %zu; mend the file%s", f->path, i,
                                 complete ? "" : ", or read it as bytes");
            if (complete && !v->id[code])
                return base_fail(error, size, DATA_UNKNOWN,
                                 "%s: %s%" PRIX32 " at byte %zu is not in the vocabulary in use",
                                 f->path, v->kind == DATA_CHARS ? "character U+" : "byte value ",
                                 code, i);
            if (!complete) v->id[code] = 1;
            t->copy[t->tokens++] = (uint16_t)(v->id[code] - 1);
        }
    return 0;
}

/* Find the vocabulary that `words` of data_open ask for, or keep to v where they are NULL; and the
 * tokens of a text in it. */
static inline int data__tokenise(DataText *t, DataVocab *v, const char *words, char *error,
                                 size_t size) {
    int given = !words, fixed = given || strchr(words, ':'), code = 0;
    int automatic = !given && !strcmp(words, "auto"), bytes = !given && !strcmp(words, "bytes");
    size_t all = 0;
    if (!given && (fixed ? data_vocab_import(v, words, strlen(words)) != 0
                         : !automatic && !bytes && strcmp(words, "chars")))
        return base_fail(
            error, size, DATA_MALFORMED,
            "%s: '%.40s' is no vocabulary; it is auto, chars, bytes or an exported one", t->path,
            words);
    if (!given && !automatic && t->tokenised != (v->kind == DATA_GPT2))
        return base_fail(error, size, DATA_MALFORMED,
                         "%s: a %s file cannot have the vocabulary '%.40s'", t->path,
                         t->tokenised ? "token" : "text", words);
    if (t->tokenised && !fixed) *v = (DataVocab){.kind = DATA_GPT2, .size = DATA_GPT2_VOCAB};
    for (const DataFile *f = t->file; f < t->file + t->files; all += f->bytes, f++)
        for (size_t i = 0; t->tokenised && i < f->tokens && i < 1 << 20; i++)
            if (f->token[i] >= v->size)
                return base_fail(error, size, DATA_UNKNOWN,
                                 "%s: token %u at place %zu is beyond the vocabulary of %" PRIu32,
                                 f->path, f->token[i], i, v->size);
    if (t->tokenised) return 0;

    if (bytes) v->kind = DATA_BYTES;
    if (!fixed) v->id = calloc(DATA__CODES, sizeof *v->id);
    t->copy = all <= SIZE_MAX / 2 ? malloc((all + 1) * sizeof *t->copy) : NULL;
    if (!v->id || !t->copy)
        return base_fail(error, size, DATA_NO_MEMORY, "%s: out of memory", t->path);
    if (!fixed) code = data__scan(t, v, 0, error, size);
    if (code == DATA_NEEDS_BYTES && automatic) {
        v->kind = DATA_BYTES;
        memset(v->id, 0, DATA__CODES * sizeof *v->id);
        code = data__scan(t, v, 0, error, size);
    }
    if (code) return code;
    if (!fixed) code = data__number(v);
    if (code == DATA_NEEDS_BYTES)
        return base_fail(error, size, code,
                         "%s: %u distinct characters, at most %u are possible; read it as bytes",
                         t->path, v->size, DATA_MAX_VOCAB);
    if (code) return base_fail(error, size, code, "%s: out of memory", t->path);
    return data__scan(t, v, 1, error, size);
}

/* The exact entropy noted in PATH.entropy, in nats per token, or 0. */
static inline double data_floor(const char *path) {
    char name[BASE_PATH], line[64] = "", *end = line;
    int n = snprintf(name, sizeof name, "%s.entropy", path);
    int fd = n < 0 || (size_t)n >= sizeof name ? -1 : base_open(name, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t got = read(fd, line, sizeof line - 1);
    close(fd);
    line[strcspn(line, "\n")] = 0;
    double nats = got > 0 ? strtod(line, &end) : 0;
    return end > line && !end[strspn(end, " \r")] && nats > 0 && isfinite(nats) ? nats : 0;
}

/* Opens text or token files.
 * path   a file, or a pattern of files, which are joined in order of name
 * vocab  "auto" (characters if all is UTF-8, else bytes), "chars", "bytes", or an exported one, to
 *        which the text must keep. Token files take "auto", which is "gpt2:50257", or "gpt2:V".
 *        The first 2^20 tokens of each file are checked, since all could take hours: one beyond V
 *        that is met later gives DATA_CHANGED.
 * cost   one pass over a text
 * error  DATA_NEEDS_BYTES when "auto" or "chars" fails and "bytes" would do */
static inline int data_open(DataSet *d, const char *path, const char *vocab, char *error,
                            size_t size) {
    *d = (DataSet){0};
    int code = data__load(&d->text, path, error, size);
    if (!code) code = data__tokenise(&d->text, &d->vocab, vocab, error, size);
    uint64_t n = d->text.tokens;
    d->train_tokens = n / 10 * 9 + n % 10 * 9 / 10;
    d->val_tokens = n - d->train_tokens;
    d->floor = data_floor(path);
    if (code) data_close(d);
    return code;
}

/* Validates on other files, which must use d's vocabulary; the first text then trains whole. An
 * error leaves d as it was. */
static inline int data_open_val(DataSet *d, const char *path, char *error, size_t size) {
    static const char *const kind[] = {"text", "token"};
    DataSet other = {0};
    DataText *t = &other.val_text, old = d->val_text;
    int code = data__load(t, path, error, size);
    if (!code && t->tokenised != d->text.tokenised)
        code = base_fail(error, size, DATA_MALFORMED, "%s: is a %s file, but %s is a %s file", path,
                         kind[t->tokenised], d->text.path, kind[d->text.tokenised]);
    if (!code) code = data__tokenise(t, &d->vocab, NULL, error, size);
    if (!code) {
        d->val_text = *t;
        d->train_tokens = d->text.tokens;
        d->val_tokens = t->tokens;
        d->floor = data_floor(path);
        *t = old;
    }
    data_close(&other);
    return code;
}

/* tokens at .. at+n-1; asks for the size each time, since a read beyond a file's end is fatal */
static inline int data__read(const DataText *t, const DataVocab *v, uint64_t at, size_t n,
                             int32_t *out) {
    assert(at <= t->tokens && n <= t->tokens - at);
    for (size_t i = 0; t->copy && i < n; i++) out[i] = t->copy[at + i];
    for (const DataFile *f = t->file; !t->copy && n; f++) {
        struct stat s;
        if (at >= f->first + f->tokens) continue;
        if (fstat(f->fd, &s) || (uint64_t)s.st_size < f->bytes) return DATA_CHANGED;
        for (; n && at < f->first + f->tokens; at++, n--) {
            *out = f->token[at - f->first];
            if ((uint32_t)*out++ >= v->size) return DATA_CHANGED;
        }
    }
    return 0;
}

/* A hash of the tokenisation, the number of tokens and 64 tokens at each of 4096 places, both ends
 * included; the same on every machine. What cannot be read any more counts as token -1. */
static inline uint64_t data_fingerprint(const DataSet *d) {
    enum { PLACES = 4096, RUN = 64 };
    const DataText *text[2] = {&d->text, &d->val_text};
    uint64_t hash = base_hash(d->vocab.kind, d->train_tokens);
    for (size_t k = 0; k < 2 * PLACES; k++) {
        const DataText *t = text[k / PLACES];
        size_t run = t->tokens < RUN ? (size_t)t->tokens : RUN;
        int32_t token[RUN];
        uint64_t at = (t->tokens - run) * (k % PLACES) / (PLACES - 1);
        int lost = run && data__read(t, &d->vocab, at, run, token);
        hash = base_hash(hash, t->tokens);
        for (size_t i = 0; i < run; i++) {
            uint32_t id = lost ? UINT32_MAX : (uint32_t)token[i];
            hash = base_hash(hash, lost || !d->vocab.code ? id : d->vocab.code[id]);
        }
    }
    return hash;
}

/* ------------------------------------------------------------------------------------------------
 * shards */

/* The ways to cut the training split into shards, by DataShards; NULL past the end. */
typedef struct DataShardsRow {
    const char *name, *doc;
} DataShardsRow;
static inline const DataShardsRow *data_shards_row(size_t i) {
    static const DataShardsRow rows[] = {
        [DATA_IID] = {.name = "iid", .doc = "blocks of text dealt to the workers in turn"},
        [DATA_CONTIGUOUS] = {.name = "contiguous", .doc = "one stretch of text per worker"},
    };
    return i < sizeof rows / sizeof *rows ? &rows[i] : NULL;
}

/* The shard of a worker: blocks that begin `stride` tokens apart, the last one perhaps shorter. */
typedef struct DataShard {
    uint64_t length, first, block, stride;
} DataShard;

/* Windows of T tokens in n consecutive ones, with room for offsets of up to T - 1 and the last
 * target. */
static inline uint64_t data__windows(uint64_t n, uint64_t T) {
    return n < 2 * T ? n > T : (n - T) / T;
}

/* Shards are disjoint and leave nothing out. */
static inline DataShard data__shard(const DataSet *d, size_t rank, size_t N, size_t T) {
    uint64_t n = d->train_tokens, equal = n / N, rest = n % N, r = rank;
    uint64_t block = 16 * (uint64_t)T > DATA_BLOCK ? 16 * (uint64_t)T : DATA_BLOCK;
    if (d->shards == DATA_CONTIGUOUS || N == 1) { /* the first workers have one token more */
        uint64_t length = equal + (r < rest), first = equal * r + (r < rest ? r : rest);
        return (DataShard){.length = length, .first = first, .block = length};
    }
    if (equal && equal < block) block = equal;
    uint64_t full = n / block, turn = full % N;
    uint64_t length = (full / N + (r < turn)) * block + (r == turn ? n % block : 0);
    return (DataShard){.length = length, .first = r * block, .block = block, .stride = N * block};
}

/* Are both splits and the shards of N workers long enough for windows of T tokens? */
static inline int data_check_context(const DataSet *d, size_t T, size_t N, char *error,
                                     size_t size) {
    const char *path = d->text.path, *val = d->val_text.path ? d->val_text.path : path;
    if (T < 1 || N < 1)
        return base_fail(error, size, DATA_TOO_SMALL, "%s: context and workers must be at least 1",
                         path);
    if (d->train_tokens / N <= T) /* the shortest shard may have no more */
        return base_fail(
            error, size, DATA_TOO_SMALL,
            "%s: too short: %" PRIu64 " tokens to train %zu worker%s, each needs at "
            "least context + 1 = %zu; give more text, a smaller context or fewer workers",
            path, d->train_tokens, N, N == 1 ? "" : "s", T + 1);
    if (d->val_tokens >= 2) return 0;
    return base_fail(error, size, DATA_TOO_SMALL,
                     "%s: too short: %" PRIu64
                     " tokens to validate on, at least 2 are needed; give "
                     "more text",
                     val, d->val_tokens);
}

/* Cuts the training split for N workers. An error leaves the shards as they were. */
static inline int data_set_shards(DataSet *d, const char *name, size_t N, size_t T, char *error,
                                  size_t size) {
    DataSet train = *d;
    train.val_tokens = 2; /* any number that is no error */
    for (size_t i = 0; data_shards_row(i); i++) {
        if (strcmp(data_shards_row(i)->name, name)) continue;
        int code = data_check_context(&train, T, N, error, size);
        if (!code) d->shards = (DataShards)i;
        return code;
    }
    return base_fail(error, size, DATA_MALFORMED,
                     "'%.40s' is no way to cut the text; it is iid or contiguous", name);
}

/* ------------------------------------------------------------------------------------------------
 * windows */

static inline uint64_t data__hash(uint64_t seed, uint64_t a, uint64_t b) {
    return base_hash(base_hash(base_hash(seed, 0) ^ a, 0) ^ b, 0);
}

/* a keyed permutation of 0..n-1: six Feistel rounds on the next even number of bits, at most 4 n */
static inline uint64_t data__permute(uint64_t key, uint64_t n, uint64_t i) {
    unsigned half = 1;
    while (half < 32 && (n - 1) >> (2 * half)) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (data__hash(key, round, right) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

static inline uint64_t data_train_windows(const DataSet *d, size_t rank, size_t N, size_t T) {
    const DataShard s = data__shard(d, rank, N, T);
    return s.length / s.block * data__windows(s.block, T) + data__windows(s.length % s.block, T);
}

/* in, target (T): target[t] follows in[t]; window k % windows of epoch k / windows of worker `rank`
 * of N. data_check_context must have passed. Returns 0 or a code. */
static inline int data_train_window(const DataSet *d, uint64_t seed, size_t rank, size_t N,
                                    size_t T, uint64_t k, int32_t *in, int32_t *target) {
    const DataShard s = data__shard(d, rank, N, T);
    uint64_t windows = data_train_windows(d, rank, N, T), each = data__windows(s.block, T);
    assert(rank < N && windows > 0 && each > 0);
    uint64_t epoch = k / windows;
    uint64_t i = data__permute(data__hash(seed, epoch, rank), windows, k % windows);
    uint64_t block = i / each, begin = block * s.block, left = s.length - begin;
    uint64_t size = left < s.block ? left : s.block, room = size - data__windows(size, T) * T;
    uint64_t offset = data__hash(seed, epoch, UINT64_MAX) % (room < T ? room : T);
    uint64_t at = s.first + block * s.stride + offset + i % each * T;
    int code = data__read(&d->text, &d->vocab, at, T, in);
    if (!code) code = data__read(&d->text, &d->vocab, at + T, 1, target + T - 1);
    memcpy(target, in + 1, (T - 1) * sizeof *in);
    return code;
}

static inline uint64_t data_val_windows(const DataSet *d, size_t T) {
    return d->val_tokens < 2 ? 0 : (d->val_tokens - 2) / T + 1;
}

/* in, target (T); the end of the last window is padded with in 0 and target -1. Returns the number
 * of real targets, 1..T, or a negative code. */
static inline int64_t data_val_window(const DataSet *d, size_t T, uint64_t w, int32_t *in,
                                      int32_t *target) {
    assert(w < data_val_windows(d, T));
    const DataText *t = d->val_text.tokens ? &d->val_text : &d->text;
    uint64_t at = (d->val_text.tokens ? 0 : d->train_tokens) + w * T;
    uint64_t left = d->val_tokens - 1 - w * T;
    size_t count = left < T ? (size_t)left : T;
    int code = data__read(t, &d->vocab, at, count, in);
    if (!code) code = data__read(t, &d->vocab, at + 1, count, target);
    for (size_t i = count; i < T; i++) {
        in[i] = 0;
        target[i] = -1;
    }
    return code ? code : (int64_t)count;
}

#endif
