/* dataloader.h - text or GPT-2 token files as batches, dealt to workers. C11 + POSIX, MIT licence.

     split     the first floor(0.9 n) tokens train, the others validate          (nanoGPT)
     shard     blocks of b tokens go round-robin to the N workers: position p of worker r is
               token ((p/b) N + r) b + p mod b; disjoint, nothing is left out
     order     windows of T tokens at o + T pi(i), o = hash(seed, epoch) mod T, where pi permutes
               the windows of an epoch: a Feistel network keyed by (seed, epoch, worker) that
               walks its cycle until it lands in range      (Luby and Rackoff 1988; Black and
               Rogaway 2002). A pure function: nothing to save, resuming means asking for k.
     validate  the whole split in consecutive windows; each of the n - 1 predictions counts once

   A WHOLE PROGRAM (all functions are static inline; _GNU_SOURCE does as well)

     #define _POSIX_C_SOURCE 200809L
     #include "dataloader.h"

     int main(int argc, char **argv) {
         enum { T = 64, WORKERS = 3, SEED = 1 };
         char error[512], out[DATA_DECODED];
         int32_t in[T], target[T];
         DataSet d;
         if (data_open(&d, argc > 1 ? argv[1] : "", "auto", error, sizeof error) ||
             data_check_context(&d, T, WORKERS, error, sizeof error)) {
             fprintf(stderr, "%s\n", error);
             return 1;
         }
         if (data_train_window(&d, SEED, 2, WORKERS, T, 0, in, target)) return 1;
         for (int t = 0; t < T; t++)
             fwrite(out, 1, data_decode(&d.vocab, (unsigned)in[t], out), stdout);
         data_close(&d);
         return 0;
     }

   MEMORY    Files are mapped read-only and may exceed 2 GB; only text with multi-byte characters
             is tokenised once, into 2 bytes per character. Nothing allocates after opening.
   THREADS   An open DataSet is never written: any number of threads or forked processes may read.
   ERRORS    A negative code; opening also writes one sentence, later codes have data_strerror.
             After a failed data_open there is nothing to close.

   API
     data_open(d, path, vocab, error, size)        a file, or a pattern of files sorted by name
     data_open_val(d, path, error, size)           validate on other files, train on all of d
     data_check_context(d, T, N, error, size)      are both splits large enough?
     data_close(d)
     data_shard_length(d, rank, N, T)              tokens of a worker
     data_train_windows(d, rank, N, T)             windows per epoch of a worker
     data_train_window(d, seed, rank, N, T, k, in, target)    a worker's k-th window of its life
     data_val_windows(d, T)
     data_val_window(d, T, w, in, target)          returns the real targets, the others are -1
     data_vocab_export(v, out, size)               "chars:a,20-21,41-5a", "bytes:0-ff", "gpt2:50257"
     data_vocab_import(v, text, length)            back, without the data
     data_vocab_free(v)
     data_encode(v, utf8, out, max)                a prompt
     data_decode(v, token, out)                    a token's bytes
     data_floor(path)                              exact entropy noted in PATH.entropy, or 0
     data_strerror(code)

   NUMBERS   Token ids count the characters present (or bytes) in ascending order from 0. Token
             files are llm.c's: int32 header[256] = {20240520, 1, count}, then uint16, all
             little-endian on every machine. Every hash is splitmix64's finaliser. A block b is
             1024 tokens or four windows, but a short text is dealt in N equal blocks. */
#ifndef DATALOADER_H
#define DATALOADER_H

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DATA_BLOCK 1024u      /* tokens dealt at a time */
#define DATA_DECODED 16       /* bytes that data_decode may write */
#define DATA_MAX_VOCAB 65535u /* so that token + 1 fits 16 bits */
#define DATA_GPT2_VOCAB 50257u

enum {
    DATA_UNREADABLE = -1, /* open, stat or map failed, or there is nothing to read */
    DATA_MALFORMED = -2,  /* not what its kind promises */
    DATA_UNKNOWN = -3,    /* a character or token outside the vocabulary */
    DATA_TOO_SMALL = -4,  /* too few tokens for context and workers */
    DATA_NO_MEMORY = -5,
    DATA_CHANGED = -6 /* a file shrank or was edited while open, or a token is not below V */
};

typedef enum DataKind { DATA_CHARS, DATA_BYTES, DATA_GPT2, DATA_KINDS } DataKind;

typedef struct DataVocab {
    DataKind kind;
    uint32_t size;  /* V */
    uint32_t *code; /* (V) token -> code point or byte, ascending; NULL for gpt2 */
    uint16_t *id;   /* (0x110000) code point or byte -> token + 1, 0 if absent; NULL for gpt2 */
} DataVocab;

typedef struct DataFile {
    const char *path;
    const unsigned char *map;
    int fd; /* kept open to notice a shrinking file */
    size_t bytes;
    uint64_t first, tokens; /* global position of the first token, how many */
} DataFile;

typedef struct DataText {
    char *path;   /* as the user gave it */
    glob_t names; /* what a pattern matched */
    DataFile *file;
    size_t files;
    int shards;      /* token files, else text */
    uint16_t *copy;  /* (tokens) text with multi-byte characters, else NULL */
    uint64_t tokens; /* of all files */
} DataText;

typedef struct DataSet {
    DataVocab vocab;
    DataText text;
    DataText val_text; /* empty without data_open_val */
    uint64_t train_tokens, val_tokens;
    double floor; /* exact entropy in nats per token if known, else 0 */
} DataSet;

/* ------------------------------------------------------------------------------------------------
 * errors and characters */

#define DATA__CODES 0x110000u
#define DATA__MAGIC 20240520u
#define DATA__HEADER 1024u
#define DATA__SCAN ((uint64_t)1 << 20)

typedef struct DataError {
    char *text;
    size_t size;
} DataError;

__attribute__((format(printf, 4, 5))) static inline int
data__fail(const DataError *e, int code, const char *path, const char *format, ...) {
    int n = snprintf(e->text, e->size, "%s: ", path);
    va_list list;
    va_start(list, format);
    if (n >= 0 && (size_t)n < e->size) vsnprintf(e->text + n, e->size - (size_t)n, format, list);
    va_end(list);
    return code;
}

static inline const char *data_strerror(int code) {
    static const char *const sentence[] = {
        "no error",
        "the data cannot be read",
        "the data is malformed",
        "the data holds something outside the vocabulary",
        "the data is too short",
        "out of memory",
        "a data file shrank or was edited while in use, or holds a token outside the vocabulary"};
    return code <= 0 && code >= DATA_CHANGED ? sentence[-code] : "unknown error";
}

/* the next character, or byte, of n left: its length, or 0 if it is not UTF-8 (overlong, surrogate,
 * cut) */
static inline size_t data__next(DataKind kind, const unsigned char *p, size_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    *code = p[0];
    if (kind != DATA_CHARS || p[0] < 0x80) return 1;
    size_t length = p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (length == 0 || length > n || p[0] > 0xf4) return 0;
    *code &= 0x7fu >> length;
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (p[i] & 0x3f);
    }
    return *code < least[length] || *code >= DATA__CODES || *code >> 11 == 0x1b ? 0 : length;
}

/* ------------------------------------------------------------------------------------------------
 * vocabulary */

static const char *const data__kind_name[DATA_KINDS] = {"chars", "bytes", "gpt2"};

static inline void data_vocab_free(DataVocab *v) {
    free(v->code);
    free(v->id);
    *v = (DataVocab){0};
}

/* every code marked nonzero in id becomes a token, in ascending order */
static inline int data__number(DataVocab *v) {
    v->size = 0;
    for (uint32_t c = 0; c < DATA__CODES; c++) v->size += v->id[c] != 0;
    if (v->size > DATA_MAX_VOCAB) return DATA_UNKNOWN;
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
    size_t n = (size_t)snprintf(out, size, "%s:", data__kind_name[v->kind]);
    if (v->kind == DATA_GPT2) return (size_t)snprintf(out, size, "gpt2:%" PRIu32, v->size);
    for (uint32_t i = 0, j; i < v->size; i = j) {
        for (j = i + 1; j < v->size && v->code[j] == v->code[j - 1] + 1;) j++;
        const char *format = j - i > 1 ? "%s%" PRIx32 "-%" PRIx32 : "%s%" PRIx32;
        n += (size_t)snprintf(n < size ? out + n : NULL, n < size ? size - n : 0, format,
                              i ? "," : "", v->code[i], v->code[j - 1]);
    }
    return n;
}

/* a number of at most 7 digits, so that nothing overflows; returns the place after it, or NULL */
static inline const char *data__parse(const char *s, const char *end, unsigned base, uint32_t *x) {
    static const char digits[] = "0123456789abcdef";
    const char *start = s, *digit;
    for (*x = 0; s < end && s - start < 7 && (digit = memchr(digits, *s, base)); s++)
        *x = *x * base + (uint32_t)(digit - digits);
    return s == start ? NULL : s;
}

/* ascending ranges "20-21,41" are marked in id */
static inline int data__import_codes(DataVocab *v, const char *s, const char *end) {
    uint32_t low, high, least = 0, limit = v->kind == DATA_BYTES ? 256 : DATA__CODES;
    for (;; s++) {
        if (!(s = data__parse(s, end, 16, &low))) return DATA_MALFORMED;
        high = low;
        if (s < end && *s == '-' && !(s = data__parse(s + 1, end, 16, &high)))
            return DATA_MALFORMED;
        if (low < least || high < low || high >= limit) return DATA_MALFORMED;
        if (v->kind == DATA_CHARS && low < 0xe000 && high >= 0xd800) return DATA_MALFORMED;
        for (uint32_t c = low; c <= high; c++) v->id[c] = 1;
        least = high + 1;
        if (s == end) return data__number(v);
        if (*s != ',') return DATA_MALFORMED;
    }
}

/* Reads exactly length bytes of text. Returns 0 or a code; after an error v needs no free. */
static inline int data_vocab_import(DataVocab *v, const char *text, size_t length) {
    const char *end = text + length, *colon = length ? memchr(text, ':', length) : NULL;
    size_t n = colon ? (size_t)(colon - text) : 0;
    int kind = 0, code = DATA_MALFORMED;
    *v = (DataVocab){0};
    while (kind < DATA_KINDS &&
           (strlen(data__kind_name[kind]) != n || memcmp(text, data__kind_name[kind], n)))
        kind++;
    if (kind == DATA_KINDS) return DATA_MALFORMED;
    v->kind = (DataKind)kind;
    if (kind == DATA_GPT2) {
        const char *after = data__parse(colon + 1, end, 10, &v->size);
        if (after == end && v->size >= 1 && v->size <= DATA_MAX_VOCAB + 1) code = 0;
    } else {
        v->id = calloc(DATA__CODES, sizeof *v->id);
        code = v->id ? data__import_codes(v, colon + 1, end) : DATA_NO_MEMORY;
    }
    if (code) data_vocab_free(v);
    return code;
}

/* Returns the number of tokens, of which the first max are written, or -(offset + 1) where offset
 * is that of the first byte not in the vocabulary. GPT-2's merges are not here, so that kind
 * DATA_GPT2 cannot encode: -1 for all but "". */
static inline int64_t data_encode(const DataVocab *v, const char *utf8, uint16_t *out, size_t max) {
    const unsigned char *p = (const unsigned char *)utf8;
    size_t length = strlen(utf8), count = 0;
    for (size_t i = 0, n; i < length; i += n, count++) {
        uint32_t code;
        n = data__next(v->kind, p + i, length - i, &code);
        if (v->kind == DATA_GPT2 || !n || !v->id[code]) return -(int64_t)i - 1;
        if (count < max) out[count] = (uint16_t)(v->id[code] - 1);
    }
    return (int64_t)count;
}

/* Writes and returns 1..4 bytes (no NUL), or e.g. "[123]" for kind DATA_GPT2; 0 if token >= V. */
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

/* maps a file. Returns 1 if it is a token file, 0 if it is text, or a code */
static inline int data__map(DataFile *f, const DataError *e) {
    struct stat s = {0};
    f->fd = open(f->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a FIFO would block */
    const char *wrong = f->fd < 0 || fstat(f->fd, &s) ? strerror(errno) : NULL;
    if (!wrong && S_ISDIR(s.st_mode))
        wrong = "is a directory; name a file, or a pattern such as '*.bin' in it";
    if (!wrong && !S_ISREG(s.st_mode)) wrong = "not a regular file";
    if (!wrong && !s.st_size)
        wrong = "file is empty; give a text of at least some thousand characters";
    if (!wrong && (uint64_t)s.st_size > SIZE_MAX) wrong = "too large to map";
    f->bytes = wrong ? 0 : (size_t)s.st_size;
    void *map = wrong ? NULL : mmap(NULL, f->bytes, PROT_READ, MAP_PRIVATE, f->fd, 0);
    if (map == MAP_FAILED) wrong = strerror(errno);
    if (wrong) return data__fail(e, DATA_UNREADABLE, f->path, "%s", wrong);
    f->map = map;

    uint32_t header[3] = {0}; /* magic, version, tokens */
    for (size_t i = 0; i < 12 && i < f->bytes; i++)
        header[i / 4] |= (uint32_t)f->map[i] << 8 * (i % 4);
    size_t n = strlen(f->path), held = f->bytes < DATA__HEADER ? 0 : f->bytes - DATA__HEADER;
    if (header[0] != DATA__MAGIC) {
        if (n < 4 || strcmp(f->path + n - 4, ".bin")) return 0;
        return data__fail(e, DATA_MALFORMED, f->path,
                          "not a token file (magic %" PRIu32 ", expected %u); give llm.c's GPT-2 "
                          "tokens, or a text under another name than .bin",
                          header[0], DATA__MAGIC);
    }
    if (header[1] != 1 && f->bytes >= DATA__HEADER)
        return data__fail(e, DATA_MALFORMED, f->path,
                          "token file of version %" PRIu32 ", expected 1; write it again",
                          header[1]);
    f->tokens = header[2];
    if (f->tokens && held == 2 * f->tokens) return 1;
    return data__fail(e, DATA_MALFORMED, f->path,
                      "header promises %" PRIu64 " tokens, the file holds %zu: %s", f->tokens,
                      held / 2,
                      f->bytes < DATA__HEADER || held < 2 * f->tokens ? "it is truncated"
                      : f->tokens                                     ? "something was added to it"
                                                                      : "there is nothing to read");
}

static inline int data__compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* a path that exists is taken literally, whatever characters it has */
static inline int data__load(DataText *t, const char *path, const DataError *e) {
    struct stat s;
    *t = (DataText){.path = strdup(path)};
    char **name = &t->path;
    size_t n = 1;
    if (t->path && stat(path, &s) && strpbrk(path, "*?[")) {
        if (glob(path, GLOB_NOSORT, NULL, &t->names))
            return data__fail(e, DATA_UNREADABLE, path, "no file matches this pattern");
        name = t->names.gl_pathv;
        n = t->names.gl_pathc;
        qsort(name, n, sizeof *name, data__compare);
    }
    t->file = calloc(n, sizeof *t->file);
    if (!t->path || !t->file) return data__fail(e, DATA_NO_MEMORY, path, "out of memory");
    for (size_t i = 0; i < n; i++) {
        DataFile *f = &t->file[t->files++];
        *f = (DataFile){.path = name[i], .fd = -1, .first = t->tokens};
        int shard = data__map(f, e);
        if (shard < 0) return shard;
        if (i && shard != t->shards)
            return data__fail(e, DATA_MALFORMED, f->path,
                              "text and token files do not mix; narrow the pattern");
        t->shards = shard;
        t->tokens += f->tokens;
    }
    return 0;
}

/* Counts the tokens and fills the copy if there is one; marks the characters in id, or if they are
 * fixed refuses others. Returns 1 if a character has several bytes, else 0, or a code. */
static inline int data__scan(DataText *t, const DataVocab *v, int fixed, const DataError *e) {
    uint64_t room = t->copy ? t->tokens : UINT64_MAX;
    int wide = 0;
    t->tokens = 0;
    for (size_t k = 0; k < t->files; k++) {
        DataFile *f = &t->file[k];
        f->first = t->tokens;
        for (size_t i = 0, n; i < f->bytes && t->tokens < room; i += n, t->tokens++) {
            uint32_t code;
            n = data__next(v->kind, f->map + i, f->bytes - i, &code);
            if (!n)
                return data__fail(e, DATA_MALFORMED, f->path,
                                  "not UTF-8 at byte %zu; mend it, or take bytes as vocabulary", i);
            if (fixed && !v->id[code])
                return data__fail(e, DATA_UNKNOWN, f->path,
                                  "%s%" PRIX32 " at byte %zu is not in the vocabulary in use",
                                  v->kind == DATA_CHARS ? "character U+" : "byte value ", code, i);
            if (!fixed) v->id[code] = 1;
            if (t->copy) t->copy[t->tokens] = (uint16_t)(v->id[code] - 1);
            wide |= n > 1;
        }
        f->tokens = t->tokens - f->first;
    }
    return wide;
}

/* finds or checks the vocabulary, then tokenises what cannot be read where it lies */
static inline int data__open_text(DataText *t, DataVocab *v, int fixed, int may_be_bytes,
                                  const DataError *e) {
    int wide, code = 0;
    if (!fixed) v->id = calloc(DATA__CODES, sizeof *v->id);
    if (!v->id) return data__fail(e, DATA_NO_MEMORY, t->path, "out of memory");
    while ((wide = data__scan(t, v, fixed, e)) == DATA_MALFORMED && may_be_bytes) {
        v->kind = DATA_BYTES;
        memset(v->id, 0, DATA__CODES * sizeof *v->id);
    }
    if (wide < 0) return wide;
    if (!fixed) code = data__number(v);
    if (code == DATA_UNKNOWN)
        return data__fail(e, code, t->path,
                          "%" PRIu32 " distinct characters, at most %u; take bytes as vocabulary",
                          v->size, DATA_MAX_VOCAB);
    if (wide && t->tokens <= SIZE_MAX / 2) t->copy = malloc((size_t)t->tokens * sizeof *t->copy);
    if (code || (wide && !t->copy)) return data__fail(e, DATA_NO_MEMORY, t->path, "out of memory");
    return wide && (code = data__scan(t, v, 1, e)) < 0 ? code : 0;
}

static inline uint32_t data__token(const DataFile *f, size_t i) {
    const unsigned char *p = f->map + DATA__HEADER + 2 * i;
    return p[0] | (uint32_t)p[1] << 8;
}

static inline int data__open_any(DataText *t, DataVocab *v, const char *mode, const DataError *e) {
    int fixed = strchr(mode, ':') != NULL, automatic = !strcmp(mode, "auto");
    int plain = automatic || !strcmp(mode, "chars") || !strcmp(mode, "bytes");
    if (fixed ? data_vocab_import(v, mode, strlen(mode)) : !plain)
        return data__fail(e, DATA_MALFORMED, t->path,
                          "'%.40s' is no vocabulary; it is auto, chars, bytes or an exported one",
                          mode);
    if (!automatic && t->shards != (v->kind == DATA_GPT2))
        return data__fail(e, DATA_MALFORMED, t->path,
                          "a %s file cannot have the vocabulary '%.40s'",
                          t->shards ? "token" : "text", mode);
    if (!t->shards) {
        if (!fixed) v->kind = strcmp(mode, "bytes") ? DATA_CHARS : DATA_BYTES;
        return data__open_text(t, v, fixed, automatic, e);
    }
    if (fixed) return 0;
    *v = (DataVocab){.kind = DATA_GPT2, .size = DATA_GPT2_VOCAB};
    for (size_t k = 0; k < t->files; k++)
        for (size_t i = 0; i < t->file[k].tokens && i < DATA__SCAN; i++)
            if (data__token(&t->file[k], i) >= v->size) v->size = data__token(&t->file[k], i) + 1;
    return 0;
}

static inline double data_floor(const char *path) {
    char name[4096], line[64] = "", *end = line;
    int n = snprintf(name, sizeof name, "%s.entropy", path);
    FILE *f = n < 0 || (size_t)n >= sizeof name ? NULL : fopen(name, "r");
    if (!f) return 0;
    double nats = fgets(line, sizeof line, f) ? strtod(line, &end) : 0;
    fclose(f);
    return end > line && !end[strspn(end, " \r\n")] && nats > 0 && isfinite(nats) ? nats : 0;
}

static inline void data_close(DataSet *d) {
    data_vocab_free(&d->vocab);
    data__free_text(&d->text);
    data__free_text(&d->val_text);
    *d = (DataSet){0};
}

/* vocab: "auto" (characters if all is UTF-8, else bytes), "chars", "bytes", or an exported one,
 * which the text must then use. Token files take "auto" or "gpt2:V"; auto is V = max(50257, largest
 * + 1) with the largest of the first 2^20 tokens of each file, since a full scan could take hours:
 * a larger token met later gives DATA_CHANGED. Cost: one pass over a text. */
static inline int data_open(DataSet *d, const char *path, const char *vocab, char *error,
                            size_t error_size) {
    DataError e = {error, error_size};
    *d = (DataSet){0};
    int code = data__load(&d->text, path, &e);
    if (!code) code = data__open_any(&d->text, &d->vocab, vocab, &e);
    uint64_t n = d->text.tokens;
    d->train_tokens = n / 10 * 9 + n % 10 * 9 / 10;
    d->val_tokens = n - d->train_tokens;
    d->floor = data_floor(path);
    if (code) data_close(d);
    return code;
}

/* The files must use d's vocabulary. The first text then trains whole. An error leaves d alone. */
static inline int data_open_val(DataSet *d, const char *path, char *error, size_t error_size) {
    static const char *const kind[] = {"text", "token"};
    DataError e = {error, error_size};
    DataText t;
    int code = data__load(&t, path, &e), shards = d->text.shards;
    if (!code && t.shards != shards)
        code = data__fail(&e, DATA_MALFORMED, path, "is a %s file, but %s is a %s file",
                          kind[t.shards], d->text.path, kind[shards]);
    if (!code && !shards) code = data__open_text(&t, &d->vocab, 1, 0, &e);
    if (!code) {
        d->train_tokens = d->text.tokens;
        d->val_tokens = t.tokens;
        d->floor = data_floor(path);
    }
    DataText gone = code ? t : d->val_text;
    if (!code) d->val_text = t;
    data__free_text(&gone);
    return code;
}

static inline int data_check_context(const DataSet *d, size_t T, size_t workers, char *error,
                                     size_t error_size) {
    DataError e = {error, error_size};
    const char *val = d->val_text.path ? d->val_text.path : d->text.path;
    if (T < 1 || workers < 1)
        return data__fail(&e, DATA_TOO_SMALL, d->text.path,
                          "context and workers must be at least 1");
    if (d->train_tokens / workers <= T)
        return data__fail(&e, DATA_TOO_SMALL, d->text.path,
                          "too short: %" PRIu64 " tokens to train %zu worker%s, each needs at "
                          "least context + 1 = %zu; give more text, a smaller context or fewer "
                          "workers",
                          d->train_tokens, workers, workers == 1 ? "" : "s", T + 1);
    if (d->val_tokens >= 2) return 0;
    return data__fail(&e, DATA_TOO_SMALL, val,
                      "too short: %" PRIu64 " tokens to validate on, at least 2 are needed; give "
                      "more text",
                      d->val_tokens);
}

/* ------------------------------------------------------------------------------------------------
 * windows */

/* tokens at .. at+n-1; the size is asked again each time, since a shrunken map would kill us */
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
            uint32_t token = t->shards ? data__token(f, i) : v->id[f->map[i]] - 1u;
            if (token >= v->size) return DATA_CHANGED; /* also if absent: 0 - 1 wraps beyond V */
            *out++ = (int32_t)token;
        }
        at += count;
        n -= count;
    }
    return 0;
}

/* splitmix64, keyed by chaining */
static inline uint64_t data__mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint64_t data__hash(uint64_t seed, uint64_t a, uint64_t b) {
    return data__mix(data__mix(data__mix(seed) ^ a) ^ b);
}

/* a keyed permutation of 0..n-1: six Feistel rounds on the next even number of bits, at most 4n */
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

static inline uint64_t data__block(const DataSet *d, size_t workers, size_t T) {
    uint64_t block = 4 * (uint64_t)T > DATA_BLOCK ? 4 * (uint64_t)T : DATA_BLOCK;
    uint64_t equal = d->train_tokens / workers;
    return equal && equal < block ? equal : block;
}

static inline uint64_t data_shard_length(const DataSet *d, size_t rank, size_t workers, size_t T) {
    uint64_t block = data__block(d, workers, T), full = d->train_tokens / block;
    uint64_t mine = full / workers + (rank < full % workers);
    return mine * block + (rank == full % workers ? d->train_tokens % block : 0);
}

static inline uint64_t data_train_windows(const DataSet *d, size_t rank, size_t workers, size_t T) {
    uint64_t length = data_shard_length(d, rank, workers, T);
    return length < 2 * (uint64_t)T ? length > T : (length - T) / T;
}

/* tokens at .. at+n-1 of a worker's shard */
static inline int data__read_shard(const DataSet *d, size_t rank, size_t workers, size_t T,
                                   uint64_t at, size_t n, int32_t *out) {
    uint64_t block = data__block(d, workers, T);
    for (size_t count; n; out += count, at += count, n -= count) {
        uint64_t inside = at % block, start = (at / block * workers + rank) * block;
        count = block - inside < n ? (size_t)(block - inside) : n;
        int code = data__read(&d->text, &d->vocab, start + inside, count, out);
        if (code) return code;
    }
    return 0;
}

/* in, target (T): target[t] follows in[t]. Window k % windows of epoch k / windows. Returns 0 or a
 * code. data_check_context must have passed. */
static inline int data_train_window(const DataSet *d, uint64_t seed, size_t rank, size_t workers,
                                    size_t T, uint64_t k, int32_t *in, int32_t *target) {
    uint64_t windows = data_train_windows(d, rank, workers, T);
    assert(rank < workers && windows > 0);
    uint64_t epoch = k / windows;
    uint64_t slack = data_shard_length(d, rank, workers, T) - windows * T; /* room for the offset */
    uint64_t offset = data__hash(seed, epoch, UINT64_MAX) % (slack < T ? slack : T);
    uint64_t place = data__permute(data__hash(seed, epoch, rank), windows, k % windows);
    uint64_t at = offset + place * T;
    int code = data__read_shard(d, rank, workers, T, at, T, in);
    return code ? code : data__read_shard(d, rank, workers, T, at + 1, T, target);
}

static inline uint64_t data_val_windows(const DataSet *d, size_t T) {
    return d->val_tokens < 2 ? 0 : (d->val_tokens - 2) / T + 1;
}

/* in, target (T), the end of the last window padded with in 0 and target -1. Returns the number of
 * real targets, 1..T, or a negative code. */
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
