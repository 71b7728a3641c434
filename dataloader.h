/* dataloader.h - text or GPT-2 token files -> windows of tokens for every worker. C11 + POSIX, MIT.

     split     the first floor(0.9 n) tokens train, the others validate          (nanoGPT)
     shard     what worker r of N reads of the training split:
       iid          blocks of b tokens, dealt in turn: token p of the shard is token
                    ((p/b) N + r) b + p mod b of the split
       contiguous   N stretches, equal to within one token
     order     in epoch e the windows of T tokens begin at o + T pi(i) of the shard, where
               o = hash(seed, e) mod T and pi permutes the windows: a Feistel network keyed by
               (seed, e, r), applied until the result is in range  (Luby and Rackoff 1988; Black
               and Rogaway 2002). The order is a pure function: there is nothing to save, and a
               resumed run asks for window k. A window may contain the joint of two blocks.
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

   MEMORY    Files are mapped read-only and may exceed 2 GB. Only text with multi-byte characters
             is copied: 2 bytes per character. Nothing allocates after opening.
   THREADS   An open DataSet is never written: any number of threads or processes may read it.
   ERRORS    A negative code. Functions that take `error` also write one sentence; for the others
             there is data_strerror. After a failed data_open there is nothing to close. A file
             that shrinks gives DATA_CHANGED; if it shrinks during a read, the kernel sends SIGBUS.

   API
     data_open(d, path, vocab, error, size)         a file, or a pattern of files sorted by name
     data_open_val(d, path, error, size)            validate on other files, train on all of d
     data_set_shards(d, name, N, T, error, size)    a row of data_shards_row(i); else "iid"
     data_check_context(d, T, N, error, size)       are both splits and every shard long enough?
     data_close(d)
     data_train_windows(d, rank, N, T)              windows per epoch of a worker
     data_train_window(d, seed, rank, N, T, k, in, target)    a worker's k-th window
     data_val_windows(d, T)
     data_val_window(d, T, w, in, target)           returns the real targets, the others are -1
     data_fingerprint(d)                            a hash that tells whether data is the same
     data_floor(path)                               exact entropy noted in PATH.entropy, or 0
     data_vocab_export(v, out, size)                "chars:a,20-21,41-5a", "bytes:0-ff", "gpt2:50257"
     data_vocab_import(v, text, length)             back, without the data
     data_vocab_free(v)
     data_tokenisation(v)                           "characters", "bytes" or "GPT-2 tokens"
     data_encode(v, utf8, out, max), data_decode(v, token, out)
     data_strerror(code)

   NUMBERS   Tokens number the characters (or bytes) that occur, in ascending order from 0. Token
             files are llm.c's: int32 header[256] = {20240520, 1, count}, then uint16, all
             little-endian. A block b is max(1024, 4 T) tokens, but at most 1/N of the split. */
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

enum {
    DATA_UNREADABLE = -1, /* open, stat or map failed, or there is nothing to read */
    DATA_MALFORMED = -2,  /* not in the format that it should have */
    DATA_UNKNOWN = -3,    /* a character or token outside the vocabulary */
    DATA_TOO_SMALL = -4,  /* too few tokens for context and workers */
    DATA_NO_MEMORY = -5,
    DATA_CHANGED = -6,    /* a file shrank or was edited while open, or a token is not below V */
    DATA_NEEDS_BYTES = -7 /* not a text of characters; data_open with "bytes" reads it */
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
    const unsigned char *map;
    int fd; /* stays open to notice that the file shrinks */
    size_t bytes;
    uint64_t first, tokens; /* position of its first token among all files; their number */
} DataFile;

typedef struct DataText {
    char *path;   /* as the user typed it */
    glob_t names; /* what a pattern matched */
    DataFile *file;
    size_t files;
    int tokenised;   /* token files, not text */
    uint16_t *copy;  /* (tokens) the tokens of text with multi-byte characters, else NULL */
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

#define DATA__CODES 0x110000u
#define DATA__MAGIC 20240520u
#define DATA__HEADER 1024u
#define DATA__SCAN ((uint64_t)1 << 20)

static inline const char *data_strerror(int code) {
    static const char *const sentence[] = {
        [0] = "no error",
        [-DATA_UNREADABLE] = "the data cannot be read",
        [-DATA_MALFORMED] = "the data is malformed",
        [-DATA_UNKNOWN] = "the data contains something outside the vocabulary",
        [-DATA_TOO_SMALL] = "the data is too short",
        [-DATA_NO_MEMORY] = "out of memory",
        [-DATA_CHANGED] = "a data file shrank or changed while in use, or has a token above V",
        [-DATA_NEEDS_BYTES] = "the data can only be read as bytes"};
    return code <= 0 && code >= DATA_NEEDS_BYTES ? sentence[-code] : "unknown error";
}

/* ------------------------------------------------------------------------------------------------
 * vocabulary */

enum { DATA__TOKENISATIONS = 3 };
/* the name in an exported vocabulary, and the word for people */
static const struct {
    const char *name, *word;
} data__tokenisation[DATA__TOKENISATIONS] = {
    [DATA_CHARS] = {.name = "chars", .word = "characters"},
    [DATA_BYTES] = {.name = "bytes", .word = "bytes"},
    [DATA_GPT2] = {.name = "gpt2", .word = "GPT-2 tokens"},
};

static inline const char *data_tokenisation(const DataVocab *v) {
    return data__tokenisation[v->kind].word;
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

static inline uint32_t data__codes(const DataVocab *v) {
    return v->kind == DATA_CHARS ? DATA__CODES : 256;
}

/* every code marked in id becomes a token, in ascending order */
static inline int data__number(DataVocab *v) {
    const uint32_t codes = data__codes(v);
    v->size = 0;
    for (uint32_t c = 0; c < codes; c++) v->size += v->id[c] != 0;
    if (v->size > DATA_MAX_VOCAB) return DATA_NEEDS_BYTES;
    v->code = malloc((v->size + 1) * sizeof *v->code);
    if (!v->code) return DATA_NO_MEMORY;
    for (uint32_t c = 0, token = 0; c < codes; c++) {
        if (!v->id[c]) continue;
        v->code[token] = c;
        v->id[c] = (uint16_t)++token;
    }
    return 0;
}

/* Printable ASCII. Returns the length without the final NUL; it fits if that is < size. */
static inline size_t data_vocab_export(const DataVocab *v, char *out, size_t size) {
    const char *name = data__tokenisation[v->kind].name;
    if (v->kind == DATA_GPT2) return (size_t)snprintf(out, size, "%s:%" PRIu32, name, v->size);
    size_t n = (size_t)snprintf(out, size, "%s:", name);
    for (uint32_t i = 0, j; i < v->size; i = j) {
        for (j = i + 1; j < v->size && v->code[j] == v->code[j - 1] + 1;) j++;
        const char *format = j - i > 1 ? "%s%" PRIx32 "-%" PRIx32 : "%s%" PRIx32;
        n += (size_t)snprintf(n < size ? out + n : NULL, n < size ? size - n : 0, format,
                              i ? "," : "", v->code[i], v->code[j - 1]);
    }
    return n;
}

/* marks the codes of ranges "20-21,41" in id */
static inline int data__import_codes(DataVocab *v, const char *s) {
    for (char *end;; s = end + 1) {
        unsigned long low = strtoul(s, &end, 16), high = low;
        if (*end == '-') high = strtoul(end + 1, &end, 16);
        if (low > high || high >= data__codes(v)) return DATA_MALFORMED;
        if (low < 0xe000 && high >= 0xd800) return DATA_MALFORMED; /* surrogates */
        for (unsigned long c = low; c <= high; c++) v->id[c] = 1;
        if (*end != ',') return data__number(v);
    }
}

/* The vocabulary of a string of `length` bytes. Returns 0 or a code; after an error v needs no free. */
static inline int data_vocab_import(DataVocab *v, const char *text, size_t length) {
    const char *colon = strchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : 0;
    int i = 0, code = DATA_NO_MEMORY;
    *v = (DataVocab){0};
    while (i < DATA__TOKENISATIONS &&
           (strlen(data__tokenisation[i].name) != n || memcmp(data__tokenisation[i].name, text, n)))
        i++;
    if (i == DATA__TOKENISATIONS) return DATA_MALFORMED;
    v->kind = (DataTokenisation)i;
    char *again = malloc(length + 1);
    if (again && v->kind == DATA_GPT2) {
        v->size = (uint32_t)strtoul(colon + 1, NULL, 10);
        code = v->size >= 1 && v->size <= DATA_MAX_VOCAB + 1 ? 0 : DATA_MALFORMED;
    } else if (again && (v->id = calloc(DATA__CODES, sizeof *v->id)) != NULL)
        code = data__import_codes(v, colon + 1);
    /* strtoul is lenient: right is only what is exported as it was imported */
    if (!code && (data_vocab_export(v, again, length + 1) != length || strcmp(text, again)))
        code = DATA_MALFORMED;
    if (code) data_vocab_free(v);
    free(again);
    return code;
}

/* Returns the number of tokens, of which the first max are written, or -(offset + 1) with the offset
 * of the first byte outside the vocabulary. GPT-2's merges are not here: with DATA_GPT2 the result is
 * -1 for every text but "". */
static inline int64_t data_encode(const DataVocab *v, const char *utf8, uint16_t *out, size_t max) {
    const unsigned char *p = (const unsigned char *)utf8;
    size_t length = strlen(utf8), count = 0;
    for (size_t i = 0, n; i < length; i += n, count++) {
        uint32_t code;
        n = data__next(v, p + i, length - i, &code);
        if (v->kind == DATA_GPT2 || !n || !v->id[code]) return -(int64_t)i - 1;
        if (count < max) out[count] = (uint16_t)(v->id[code] - 1);
    }
    return (int64_t)count;
}

/* Writes 1..4 bytes (no NUL) and returns their number; for DATA_GPT2 writes e.g. "[123]"; 0 if
 * token >= V. */
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

static inline void data__free_text(DataText *t) {
    for (size_t i = 0; i < t->files; i++) {
        DataFile *f = &t->file[i];
        if (f->map) munmap((void *)(uintptr_t)f->map, f->bytes);
        if (f->fd >= 0) close(f->fd);
    }
    globfree(&t->names);
    free(t->file);
    free(t->path);
    free(t->copy);
    *t = (DataText){0};
}

/* Maps a file. Returns 1 if it is a token file, 0 if it is text, or a code. */
static inline int data__map(DataFile *f, char *error, size_t size) {
    struct stat s = {0};
    f->fd = base_open(f->path, O_RDONLY);
    const char *wrong = NULL;
    if (f->fd < 0 || fstat(f->fd, &s))
        wrong = errno == EISDIR ? "is a directory; name a file, or a pattern such as '*.bin' in it"
                : errno == ENODEV ? "not a regular file"
                                  : strerror(errno);
    else if (!s.st_size)
        wrong = "file is empty; give a text of at least some thousand characters";
    else if ((uint64_t)s.st_size > SIZE_MAX)
        wrong = "too large to map";
    f->bytes = wrong ? 0 : (size_t)s.st_size;
    void *map = wrong ? NULL : mmap(NULL, f->bytes, PROT_READ, MAP_PRIVATE, f->fd, 0);
    if (map == MAP_FAILED) wrong = strerror(errno);
    if (wrong) return base_fail(error, size, DATA_UNREADABLE, "%s: %s", f->path, wrong);
    f->map = map;

    uint32_t header[3] = {0}; /* magic, version, tokens */
    for (size_t i = 0; i < 12 && i < f->bytes; i++)
        header[i / 4] |= (uint32_t)f->map[i] << 8 * (i % 4);
    size_t n = strlen(f->path), whole = f->bytes >= DATA__HEADER;
    if (header[0] != DATA__MAGIC) {
        if (n < 4 || strcmp(f->path + n - 4, ".bin")) return 0;
        return base_fail(error, size, DATA_MALFORMED,
                         "%s: not a token file (magic %u, expected %u); give llm.c's GPT-2 tokens, "
                         "or a text under another name than .bin",
                         f->path, header[0], DATA__MAGIC);
    }
    if (whole && header[1] != 1)
        return base_fail(error, size, DATA_MALFORMED,
                         "%s: token file of version %u, expected 1; write it again", f->path,
                         header[1]);
    f->tokens = header[2];
    uint64_t held = whole ? f->bytes - DATA__HEADER : 0;
    if (f->tokens && held == 2 * f->tokens) return 1;
    return base_fail(error, size, DATA_MALFORMED,
                     "%s: the header promises %" PRIu64 " tokens, the file has %" PRIu64 ": %s",
                     f->path, f->tokens, held / 2,
                     !whole || held < 2 * f->tokens ? "it is truncated"
                     : f->tokens                    ? "something was added to it"
                                                    : "there is nothing to read");
}

static inline int data__compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Maps all files of a path; one that exists is taken literally, whatever characters it has. */
static inline int data__load(DataText *t, const char *path, char *error, size_t size) {
    struct stat s;
    *t = (DataText){.path = strdup(path)};
    char **name = &t->path;
    size_t n = 1;
    if (t->path && stat(path, &s) && strpbrk(path, "*?[")) {
        if (glob(path, GLOB_NOSORT, NULL, &t->names))
            return base_fail(error, size, DATA_UNREADABLE, "%s: no file matches this pattern",
                             path);
        name = t->names.gl_pathv;
        n = t->names.gl_pathc;
        qsort(name, n, sizeof *name, data__compare);
    }
    t->file = calloc(n, sizeof *t->file);
    if (!t->path || !t->file)
        return base_fail(error, size, DATA_NO_MEMORY, "%s: out of memory", path);
    for (size_t i = 0; i < n; i++) {
        DataFile *f = &t->file[t->files++];
        *f = (DataFile){.path = name[i], .fd = -1, .first = t->tokens};
        int tokenised = data__map(f, error, size);
        if (tokenised < 0) return tokenised;
        if (i && tokenised != t->tokenised)
            return base_fail(error, size, DATA_MALFORMED,
                             "%s: text and token files do not mix; narrow the pattern", f->path);
        t->tokenised = tokenised;
        t->tokens += f->tokens;
    }
    return 0;
}

/* Counts the tokens of a text, and fills the copy if there is one. Marks the characters in id, or
 * with a fixed vocabulary refuses others. Returns 1 if a character has several bytes, 0, or a code. */
static inline int data__scan(DataText *t, const DataVocab *v, int fixed, char *error, size_t size) {
    uint64_t room = t->copy ? t->tokens : UINT64_MAX; /* the file may change between two scans */
    int wide = 0;
    t->tokens = 0;
    for (size_t k = 0; k < t->files; k++) {
        DataFile *f = &t->file[k];
        f->first = t->tokens;
        for (size_t i = 0, n; i < f->bytes && t->tokens < room; i += n, t->tokens++) {
            uint32_t code;
            n = data__next(v, f->map + i, f->bytes - i, &code);
            if (!n)
                return base_fail(error, size, fixed ? DATA_MALFORMED : DATA_NEEDS_BYTES,
                                 "%s: not UTF-8 at byte %zu; mend the file%s", f->path, i,
                                 fixed ? "" : ", or read it as bytes");
            if (fixed && !v->id[code])
                return base_fail(error, size, DATA_UNKNOWN,
                                 "%s: %s%" PRIX32 " at byte %zu is not in the vocabulary in use",
                                 f->path, v->kind == DATA_CHARS ? "character U+" : "byte value ",
                                 code, i);
            if (!fixed) v->id[code] = 1;
            if (t->copy) t->copy[t->tokens] = (uint16_t)(v->id[code] - 1);
            wide |= n > 1;
        }
        f->tokens = t->tokens - f->first;
    }
    return wide;
}

/* Finds or checks the vocabulary of a text, and copies the tokens of multi-byte characters. */
static inline int data__open_text(DataText *t, DataVocab *v, int fixed, int may_be_bytes,
                                  char *error, size_t size) {
    if (!fixed) v->id = calloc(DATA__CODES, sizeof *v->id);
    if (!v->id) return base_fail(error, size, DATA_NO_MEMORY, "%s: out of memory", t->path);
    int wide = data__scan(t, v, fixed, error, size);
    if (wide == DATA_NEEDS_BYTES && may_be_bytes) {
        v->kind = DATA_BYTES;
        memset(v->id, 0, DATA__CODES * sizeof *v->id);
        wide = data__scan(t, v, fixed, error, size);
    }
    if (wide < 0) return wide;
    int code = fixed ? 0 : data__number(v);
    if (code == DATA_NEEDS_BYTES)
        return base_fail(error, size, code,
                         "%s: %u distinct characters, at most %u are possible; read it as bytes",
                         t->path, v->size, DATA_MAX_VOCAB);
    if (wide && t->tokens <= SIZE_MAX / 2) t->copy = malloc((size_t)t->tokens * sizeof *t->copy);
    if (code || (wide && !t->copy))
        return base_fail(error, size, DATA_NO_MEMORY, "%s: out of memory", t->path);
    if (wide) code = data__scan(t, v, 1, error, size);
    return code < 0 ? code : 0;
}

static inline uint32_t data__token(const DataFile *f, size_t i) {
    const unsigned char *p = f->map + DATA__HEADER + 2 * i;
    return p[0] | (uint32_t)p[1] << 8;
}

/* The vocabulary that the words of data_open ask for. */
static inline int data__open_vocab(DataText *t, DataVocab *v, const char *words, char *error,
                                   size_t size) {
    int fixed = strchr(words, ':') != NULL, automatic = !strcmp(words, "auto");
    int plain = automatic || !strcmp(words, "chars") || !strcmp(words, "bytes");
    if (fixed ? data_vocab_import(v, words, strlen(words)) : !plain)
        return base_fail(
            error, size, DATA_MALFORMED,
            "%s: '%.40s' is no vocabulary; it is auto, chars, bytes or an exported one", t->path,
            words);
    if (!automatic && t->tokenised != (v->kind == DATA_GPT2))
        return base_fail(error, size, DATA_MALFORMED,
                         "%s: a %s file cannot have the vocabulary '%.40s'", t->path,
                         t->tokenised ? "token" : "text", words);
    if (!t->tokenised) {
        if (!strcmp(words, "bytes")) v->kind = DATA_BYTES;
        return data__open_text(t, v, fixed, automatic, error, size);
    }
    if (fixed) return 0;
    *v = (DataVocab){.kind = DATA_GPT2, .size = DATA_GPT2_VOCAB};
    for (size_t k = 0; k < t->files; k++)
        for (size_t i = 0; i < t->file[k].tokens && i < DATA__SCAN; i++)
            if (data__token(&t->file[k], i) >= v->size) v->size = data__token(&t->file[k], i) + 1;
    return 0;
}

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

static inline void data_close(DataSet *d) {
    data_vocab_free(&d->vocab);
    data__free_text(&d->text);
    data__free_text(&d->val_text);
    *d = (DataSet){0};
}

/* Opens text or token files.
 * path   a file, or a pattern of files, which are joined in order of name
 * vocab  "auto" (characters if all is UTF-8, else bytes), "chars", "bytes", or an exported one, which
 *        the text must then use. Token files take "auto" or "gpt2:V"; auto is V = max(50257, largest
 *        + 1) with the largest of the first 2^20 tokens of each file, since a full scan could take
 *        hours: a larger token met later gives DATA_CHANGED.
 * cost   one pass over a text
 * error  DATA_NEEDS_BYTES when "auto" or "chars" fails and "bytes" would do
 */
static inline int data_open(DataSet *d, const char *path, const char *vocab, char *error,
                            size_t size) {
    *d = (DataSet){0};
    int code = data__load(&d->text, path, error, size);
    if (!code) code = data__open_vocab(&d->text, &d->vocab, vocab, error, size);
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
    DataText t;
    int code = data__load(&t, path, error, size);
    if (!code && t.tokenised != d->text.tokenised)
        code = base_fail(error, size, DATA_MALFORMED, "%s: is a %s file, but %s is a %s file", path,
                         kind[t.tokenised], d->text.path, kind[d->text.tokenised]);
    if (!code && !t.tokenised) code = data__open_text(&t, &d->vocab, 1, 0, error, size);
    if (code) {
        data__free_text(&t);
        return code;
    }
    data__free_text(&d->val_text);
    d->val_text = t;
    d->train_tokens = d->text.tokens;
    d->val_tokens = t.tokens;
    d->floor = data_floor(path);
    return 0;
}

/* tokens at .. at+n-1; asks for the size each time, since a read beyond a file's end is fatal */
static inline int data__read(const DataText *t, const DataVocab *v, uint64_t at, size_t n,
                             int32_t *out) {
    assert(at <= t->tokens && n <= t->tokens - at);
    for (size_t i = 0; t->copy && i < n; i++) out[i] = t->copy[at + i];
    if (t->copy) return 0;
    for (const DataFile *f = t->file; n; f++) {
        struct stat s;
        if (at >= f->first + f->tokens) continue;
        size_t skip = (size_t)(at - f->first);
        size_t count = f->tokens - skip < n ? (size_t)f->tokens - skip : n;
        if (fstat(f->fd, &s) || (uint64_t)s.st_size < f->bytes) return DATA_CHANGED;
        for (size_t i = skip; i < skip + count; i++) {
            uint32_t token = t->tokenised ? data__token(f, i) : v->id[f->map[i]] - 1u;
            if (token >= v->size) return DATA_CHANGED; /* an absent character is 0 - 1 > V */
            *out++ = (int32_t)token;
        }
        at += count;
        n -= count;
    }
    return 0;
}

/* A hash of the tokenisation, the number of tokens and 64 tokens at each of 4096 places, both ends
 * included: all of a text below 262,144 tokens. The same data gives the same number on every machine;
 * shortened or replaced data gives another. What cannot be read any more counts as token -1. */
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

/* tokens of a block of an iid shard */
static inline uint64_t data__block(const DataSet *d, size_t N, size_t T) {
    uint64_t equal = d->train_tokens / N;
    uint64_t block = 4 * (uint64_t)T > DATA_BLOCK ? 4 * (uint64_t)T : DATA_BLOCK;
    return equal && equal < block ? equal : block;
}

/* where the i-th of N stretches begins */
static inline uint64_t data__stretch(const DataSet *d, size_t N, size_t i) {
    uint64_t rest = d->train_tokens % N;
    return d->train_tokens / N * i + (i < rest ? i : rest);
}

/* tokens of a worker's shard; shards are disjoint and leave nothing out */
static inline uint64_t data__shard_length(const DataSet *d, size_t rank, size_t N, size_t T) {
    if (d->shards == DATA_CONTIGUOUS)
        return data__stretch(d, N, rank + 1) - data__stretch(d, N, rank);
    uint64_t block = data__block(d, N, T), full = d->train_tokens / block, turn = full % N;
    uint64_t mine = full / N + (rank < turn);
    return mine * block + (rank == turn ? d->train_tokens % block : 0);
}

/* position in the split of token `at` of a shard; *run: tokens from there to the next joint */
static inline uint64_t data__locate(const DataSet *d, size_t rank, size_t N, size_t T, uint64_t at,
                                    uint64_t *run) {
    if (d->shards == DATA_CONTIGUOUS) {
        *run = data__shard_length(d, rank, N, T) - at;
        return data__stretch(d, N, rank) + at;
    }
    uint64_t block = data__block(d, N, T);
    *run = block - at % block;
    return (at / block * N + rank) * block + at % block;
}

/* Has every one of N workers more than T tokens to train on? */
static inline int data__check_train(const DataSet *d, size_t T, size_t N, char *error,
                                    size_t size) {
    if (T < 1 || N < 1)
        return base_fail(error, size, DATA_TOO_SMALL, "%s: context and workers must be at least 1",
                         d->text.path);
    if (d->train_tokens / N > T) return 0; /* the shortest shard is at least so long */
    return base_fail(error, size, DATA_TOO_SMALL,
                     "%s: too short: %" PRIu64 " tokens to train %zu worker%s, each needs at least "
                     "context + 1 = %zu; give more text, a smaller context or fewer workers",
                     d->text.path, d->train_tokens, N, N == 1 ? "" : "s", T + 1);
}

/* Cuts the training split for N workers. An error leaves the shards as they were. */
static inline int data_set_shards(DataSet *d, const char *name, size_t N, size_t T, char *error,
                                  size_t size) {
    size_t i = 0;
    while (data_shards_row(i) && strcmp(data_shards_row(i)->name, name)) i++;
    if (!data_shards_row(i))
        return base_fail(error, size, DATA_MALFORMED,
                         "'%.40s' is no way to cut the text; it is iid or contiguous", name);
    int code = data__check_train(d, T, N, error, size);
    if (!code) d->shards = (DataShards)i;
    return code;
}

/* Are both splits and the shards of N workers long enough for windows of T tokens? */
static inline int data_check_context(const DataSet *d, size_t T, size_t N, char *error,
                                     size_t size) {
    int code = data__check_train(d, T, N, error, size);
    if (code || d->val_tokens >= 2) return code;
    return base_fail(error, size, DATA_TOO_SMALL,
                     "%s: too short: %" PRIu64
                     " tokens to validate on, at least 2 are needed; give "
                     "more text",
                     d->val_text.path ? d->val_text.path : d->text.path, d->val_tokens);
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
    uint64_t length = data__shard_length(d, rank, N, T);
    return length < 2 * (uint64_t)T ? length > T : (length - T) / T;
}

/* tokens at .. at+n-1 of a worker's shard */
static inline int data__read_shard(const DataSet *d, size_t rank, size_t N, size_t T, uint64_t at,
                                   size_t n, int32_t *out) {
    for (size_t count; n; out += count, at += count, n -= count) {
        uint64_t run, start = data__locate(d, rank, N, T, at, &run);
        count = run < n ? (size_t)run : n;
        int code = data__read(&d->text, &d->vocab, start, count, out);
        if (code) return code;
    }
    return 0;
}

/* in, target (T): target[t] follows in[t]; window k % windows of epoch k / windows of worker `rank`
 * of N. data_check_context must have passed. Returns 0 or a code. */
static inline int data_train_window(const DataSet *d, uint64_t seed, size_t rank, size_t N,
                                    size_t T, uint64_t k, int32_t *in, int32_t *target) {
    uint64_t windows = data_train_windows(d, rank, N, T);
    assert(rank < N && windows > 0);
    uint64_t epoch = k / windows;
    uint64_t room = data__shard_length(d, rank, N, T) - windows * T;
    uint64_t offset = data__hash(seed, epoch, UINT64_MAX) % (room < T ? room : T);
    uint64_t place = data__permute(data__hash(seed, epoch, rank), windows, k % windows);
    uint64_t at = offset + place * T;
    int code = data__read_shard(d, rank, N, T, at, T, in);
    if (!code) code = data__read_shard(d, rank, N, T, at + T, 1, target + T - 1);
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
