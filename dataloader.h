/* dataloader.h - text or GPT-2 token files as batches, dealt to workers. C11 + POSIX, MIT licence.

     split     the first floor(0.9 n) tokens train, the others validate          (nanoGPT)
     shard     what one of the N workers reads of the training split, put end to end:
       iid          blocks of b tokens in turn: position p of worker r is token
                    ((p/b) N + r) b + p mod b; disjoint, nothing is left out
       contiguous   N consecutive stretches, equal to within one token; likewise
       dirichlet:A  10 N consecutive segments stand for classes; of each, worker r gets a part
                    p_r, p ~ Dirichlet(A, .., A): small A gives a segment to nearly one worker,
                    large A is nearly iid; likewise    (Yurochkin et al. 2019, arXiv 1905.12022;
                    drawn again while a worker has too little: Li et al. 2021, arXiv 2102.02079)
       file:PATH    lines `worker first last`: token positions, last exclusive; # begins a comment.
                    Ranges may overlap, repeat and leave tokens out: that is the user's choice
     order     windows of T tokens of a shard at o + T pi(i), o = hash(seed, epoch) mod T, where pi
               permutes the windows of an epoch: a Feistel network keyed by (seed, epoch, worker)
               that walks its cycle until it lands in range   (Luby and Rackoff 1988; Black and
               Rogaway 2002). A pure function: nothing to save, resuming means asking for k.
               A window may cross the border between two blocks, parts or ranges of a shard.
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
             data_set_shards(&d, "dirichlet:0.3", WORKERS, T, SEED, error, sizeof error) ||
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
             is tokenised once, into 2 bytes per character. Shards other than iid are lists of
             ranges, 32 bytes each, at most 10 N^2 of them or the lines of a file. Nothing
             allocates after opening and data_set_shards.
   THREADS   An open DataSet is never written: any number of threads or forked processes may read.
   ERRORS    A negative code; functions that take `error` also write one sentence, later codes
             have data_strerror. After a failed data_open there is nothing to close.

   API
     data_open(d, path, vocab, error, size)        a file, or a pattern of files sorted by name
     data_open_val(d, path, error, size)           validate on other files, train on all of d
     data_set_shards(d, text, N, T, seed, error, size)     "iid", "contiguous", ...; else iid
     data_check_context(d, T, N, error, size)      are both splits and every shard large enough?
     data_close(d)
     data_shards_row(i)                            the kinds of shards; NULL past the end
     data_shard_length(d, rank, N, T)              tokens of a worker: workers may differ in them
     data_train_windows(d, rank, N, T)             windows per epoch of a worker
     data_train_window(d, seed, rank, N, T, k, in, target)    a worker's k-th window of its life
     data_val_windows(d, T)
     data_val_window(d, T, w, in, target)          returns the real targets, the others are -1
     data_vocab_export(v, out, size)               "chars:a,20-21,41-5a", "bytes:0-ff", "gpt2:50257"
     data_vocab_import(v, text, length)            back, without the data
     data_vocab_free(v)
     data_encode(v, utf8, out, max)                a prompt
     data_decode(v, token, out)                    a token's bytes
     data_printable(text, n)                       may a terminal have its first character?
     data_floor(path)                              exact entropy noted in PATH.entropy, or 0
     data_strerror(code)

   NUMBERS   Token ids count the characters present (or bytes) in ascending order from 0. Token
             files are llm.c's: int32 header[256] = {20240520, 1, count}, then uint16, all
             little-endian on every machine. Every hash is splitmix64's finaliser. A block b is
             1024 tokens or four windows, but a short text is dealt in N equal blocks. Dirichlet
             borders come through libm's log, cos and exp: C libraries that round these
             differently may place borders differently. */
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

typedef struct DataRange {
    size_t worker;
    uint64_t first, length; /* tokens of the training split */
    uint64_t at;            /* where they begin in the worker's shard */
} DataRange;

typedef struct DataShard {
    size_t begin, count; /* its ranges */
    uint64_t length;     /* tokens */
} DataShard;

typedef struct DataShards {
    size_t workers;    /* 0: iid, which needs no list */
    DataShard *worker; /* (workers) */
    DataRange *range;  /* (ranges) by worker, then by at */
    size_t ranges, room;
} DataShards;

typedef struct DataSet {
    DataVocab vocab;
    DataText text;
    DataText val_text; /* empty without data_open_val */
    uint64_t train_tokens, val_tokens;
    DataShards shards;
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

/* The length of the printable character that n > 0 bytes begin with, or 0 if they begin with none: a
 * control character, C1 included, or what is not UTF-8. */
static inline size_t data_printable(const char *text, size_t n) {
    uint32_t code;
    size_t length = data__next(DATA_CHARS, (const unsigned char *)text, n, &code);
    return code < 32 || (code >= 127 && code < 160) ? 0 : length;
}

/* ------------------------------------------------------------------------------------------------
 * vocabulary */

static const char *const data__kind_name[DATA_KINDS] = {"chars", "bytes", "gpt2"};

static inline void data_vocab_free(DataVocab *v) {
    free(v->code);
    free(v->id);
    *v = (DataVocab){0};
}

/* the first code from c on that is marked nonzero, or DATA__CODES; most of Unicode is in no text */
static inline uint32_t data__marked(const uint16_t *id, uint32_t c) {
    static const uint16_t none[512];
    while (c < DATA__CODES && !id[c])
        c += c % 512 == 0 && !memcmp(id + c, none, sizeof none) ? 512 : 1;
    return c;
}

/* every code marked nonzero in id becomes a token, in ascending order */
static inline int data__number(DataVocab *v) {
    v->size = 0;
    for (uint32_t c = 0; (c = data__marked(v->id, c)) < DATA__CODES; c++) v->size++;
    if (v->size > DATA_MAX_VOCAB) return DATA_UNKNOWN;
    v->code = malloc((v->size + 1) * sizeof *v->code);
    if (!v->code) return DATA_NO_MEMORY;
    for (uint32_t c = 0, token = 0; (c = data__marked(v->id, c)) < DATA__CODES; c++) {
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

/* open, again when a signal came between; a FIFO does not block */
static inline int data__descriptor(const char *path) {
    int fd;
    do {
        fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* maps a file. Returns 1 if it is a token file, 0 if it is text, or a code */
static inline int data__map(DataFile *f, const DataError *e) {
    struct stat s = {0};
    f->fd = data__descriptor(f->path);
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
    assert(t->tokens > 0 || !wide);
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

/* A regular file, or NULL and errno, 0 if it is of another kind: a device may have no end. */
static inline FILE *data__fopen(const char *path) {
    struct stat s;
    int fd = data__descriptor(path), known = fd >= 0 && fstat(fd, &s) == 0;
    FILE *f = known && S_ISREG(s.st_mode) ? fdopen(fd, "r") : NULL;
    int why = f || !known || S_ISREG(s.st_mode) ? errno : S_ISDIR(s.st_mode) ? EISDIR : 0;
    if (!f && fd >= 0) close(fd);
    errno = why;
    return f;
}

static inline double data_floor(const char *path) {
    char name[4096], line[64] = "", *end = line;
    int n = snprintf(name, sizeof name, "%s.entropy", path);
    FILE *f = n < 0 || (size_t)n >= sizeof name ? NULL : data__fopen(name);
    if (!f) return 0;
    double nats = fgets(line, sizeof line, f) ? strtod(line, &end) : 0;
    fclose(f);
    return end > line && !end[strspn(end, " \r\n")] && nats > 0 && isfinite(nats) ? nats : 0;
}

static inline void data__free_shards(DataShards *s) {
    free(s->worker);
    free(s->range);
    *s = (DataShards){0};
}

static inline void data_close(DataSet *d) {
    data__free_shards(&d->shards);
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

/* The files must use d's vocabulary. The first text then trains whole, so that this comes before
 * data_set_shards. An error leaves d alone. */
static inline int data_open_val(DataSet *d, const char *path, char *error, size_t error_size) {
    static const char *const kind[] = {"text", "token"};
    DataError e = {error, error_size};
    DataText t;
    assert(!d->shards.workers);
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

/* ------------------------------------------------------------------------------------------------
 * order at random */

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

/* ------------------------------------------------------------------------------------------------
 * shards */

static inline uint64_t data__block(const DataSet *d, size_t workers, size_t T) {
    uint64_t block = 4 * (uint64_t)T > DATA_BLOCK ? 4 * (uint64_t)T : DATA_BLOCK;
    uint64_t equal = d->train_tokens / workers;
    return equal && equal < block ? equal : block;
}

static inline uint64_t data_shard_length(const DataSet *d, size_t rank, size_t workers, size_t T) {
    assert(rank < workers && (!d->shards.workers || d->shards.workers == workers));
    if (d->shards.workers) return d->shards.worker[rank].length;
    uint64_t block = data__block(d, workers, T), full = d->train_tokens / block;
    uint64_t mine = full / workers + (rank < full % workers);
    return mine * block + (rank == full % workers ? d->train_tokens % block : 0);
}

/* where token `at` of a worker's shard lies in the training split, and how many follow it there,
 * itself included, before the shard goes on elsewhere */
static inline uint64_t data__locate(const DataSet *d, size_t rank, size_t workers, size_t T,
                                    uint64_t at, uint64_t *run) {
    if (!d->shards.workers) {
        uint64_t block = data__block(d, workers, T);
        *run = block - at % block;
        return (at / block * workers + rank) * block + at % block;
    }
    const DataShard *s = &d->shards.worker[rank];
    const DataRange *r = &d->shards.range[s->begin];
    assert(at < s->length);
    for (size_t n = s->count, half; n > 1; n -= half) { /* the last range with r->at <= at */
        half = n / 2;
        if (r[half].at <= at) r += half;
    }
    *run = r->at + r->length - at;
    return r->first + (at - r->at);
}

/* the next range of a worker */
static inline int data__deal(DataShards *s, size_t worker, uint64_t first, uint64_t length) {
    if (!length) return 0;
    if (s->ranges == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        DataRange *more = realloc(s->range, room * sizeof *more);
        if (!more) return DATA_NO_MEMORY;
        s->range = more;
        s->room = room;
    }
    DataShard *w = &s->worker[worker];
    s->range[s->ranges++] = (DataRange){worker, first, length, w->length};
    w->length += length;
    w->count++;
    return 0;
}

static inline int data__compare_ranges(const void *a, const void *b) {
    const DataRange *x = a, *y = b;
    if (x->worker != y->worker) return x->worker < y->worker ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* the first worker with at most T tokens, or the number of workers */
static inline size_t data__short_worker(const DataShards *s, size_t T) {
    size_t j = 0;
    while (j < s->workers && s->worker[j].length > T) j++;
    return j;
}

/* the beginning of the i-th of n parts, equal to within one token */
static inline uint64_t data__part(uint64_t tokens, uint64_t n, uint64_t i) {
    return tokens / n * i + (i < tokens % n ? i : tokens % n);
}

static inline int data__deal_contiguous(DataShards *s, const DataSet *d, const char *argument,
                                        size_t T, uint64_t seed, const DataError *e) {
    (void)argument, (void)T, (void)seed, (void)e;
    int code = 0;
    for (size_t j = 0; !code && j < s->workers; j++) {
        uint64_t first = data__part(d->train_tokens, s->workers, j);
        code = data__deal(s, j, first, data__part(d->train_tokens, s->workers, j + 1) - first);
    }
    return code;
}

/* in (0, 1) */
static inline double data__uniform(uint64_t hash) { return ((double)(hash >> 11) + 0.5) * 0x1p-53; }

/* Logarithm of a Gamma(a) draw, which itself underflows for small a: Gamma(a + 1) U^(1/a), the
 * former by rejection. Marsaglia and Tsang 2000. */
static inline double data__log_gamma(double a, uint64_t key) {
    double d = a + 2.0 / 3, c = 1 / sqrt(9 * d), power = log(data__uniform(data__hash(key, 0, 0)));
    for (uint64_t i = 1;; i++) {
        double radius = sqrt(-2 * log(data__uniform(data__hash(key, i, 0))));
        double x = radius * cos(6.283185307179586 * data__uniform(data__hash(key, i, 1)));
        double v = (1 + c * x) * (1 + c * x) * (1 + c * x);
        double u = data__uniform(data__hash(key, i, 2));
        if (v > 0 && log(u) < x * x / 2 + d - d * v + d * log(v)) return log(d * v) + power / a;
    }
}

/* One segment by one Dirichlet draw. Its parts lie in an order of their own, so that no worker
 * always has the beginnings. share (workers) is scratch. */
static inline int data__deal_segment(DataShards *s, double a, uint64_t first, uint64_t length,
                                     uint64_t key, double *share) {
    double most = -INFINITY, total = 0, before = 0;
    for (size_t j = 0; j < s->workers; j++) {
        share[j] = data__log_gamma(a, data__hash(key, j, 0));
        if (share[j] > most) most = share[j];
    }
    for (size_t j = 0; j < s->workers; j++) total += share[j] = exp(share[j] - most);
    for (uint64_t i = 0, begin = 0; i < s->workers; i++) {
        size_t j = (size_t)data__permute(key, s->workers, i);
        before += share[j];
        uint64_t end = (uint64_t)(before / total * (double)length);
        if (end > length || i + 1 == s->workers) end = length;
        if (data__deal(s, j, first + begin, end - begin)) return DATA_NO_MEMORY;
        begin = end;
    }
    return 0;
}

#define DATA__SEGMENTS 10 /* per worker */
#define DATA__DRAWS 100

static inline int data__deal_dirichlet(DataShards *s, const DataSet *d, const char *argument,
                                       size_t T, uint64_t seed, const DataError *e) {
    char *end = NULL;
    double a = strspn(argument, ".0123456789") ? strtod(argument, &end) : -1;
    if (!(a >= 1e-6 && a <= 1e6) || *end)
        return data__fail(e, DATA_MALFORMED, "dirichlet",
                          "'%.40s' is no number from 1e-6 to 1e6; small ones give a segment to "
                          "nearly one worker, large ones are nearly iid",
                          argument);
    double *share = malloc(s->workers * sizeof *share);
    int code = share ? 0 : DATA_NO_MEMORY;
    uint64_t segments = DATA__SEGMENTS * (uint64_t)s->workers, draw = 0;
    do {
        uint64_t key = data__hash(seed, UINT64_MAX, draw); /* no epoch has this number */
        memset(s->worker, 0, s->workers * sizeof *s->worker);
        s->ranges = 0;
        for (uint64_t c = 0; !code && c < segments; c++) {
            uint64_t first = data__part(d->train_tokens, segments, c);
            uint64_t length = data__part(d->train_tokens, segments, c + 1) - first;
            code = data__deal_segment(s, a, first, length, data__hash(key, c, 0), share);
        }
    } while (!code && data__short_worker(s, T) < s->workers && ++draw < DATA__DRAWS);
    free(share);
    if (code || draw < DATA__DRAWS) return code;
    return data__fail(e, DATA_TOO_SMALL, d->text.path,
                      "each of %d draws of dirichlet:%s leaves a worker less than context + 1 = "
                      "%zu tokens; give more text, a larger number or fewer workers",
                      DATA__DRAWS, argument, T + 1);
}

/* decimal digits that fit 64 bits; returns the place after them, or NULL */
static inline char *data__whole(char *s, uint64_t *x) {
    char *end;
    s += strspn(s, " \t\r\n");
    errno = 0;
    *x = strtoull(s, &end, 10);
    return *s >= '0' && *s <= '9' && !errno ? end : NULL;
}

/* line of n bytes: `worker first last`, or nothing */
static inline int data__deal_line(DataShards *s, const DataSet *d, const char *path, size_t number,
                                  char *line, size_t n, const DataError *e) {
    uint64_t worker, first, last;
    int whole = strlen(line) == n; /* else it holds a zero byte */
    line[strcspn(line, "#")] = 0;
    if (whole && !line[strspn(line, " \t\r\n")]) return 0;
    char *rest = whole ? data__whole(line, &worker) : NULL;
    if (rest) rest = data__whole(rest, &first);
    if (rest) rest = data__whole(rest, &last);
    if (!rest || rest[strspn(rest, " \t\r\n")])
        return data__fail(e, DATA_MALFORMED, path,
                          "line %zu is not `worker first last`, three whole numbers", number);
    if (worker >= s->workers)
        return data__fail(e, DATA_MALFORMED, path,
                          "line %zu names worker %" PRIu64 ", but the %zu workers count from 0",
                          number, worker, s->workers);
    if (first >= last)
        return data__fail(e, DATA_MALFORMED, path,
                          "line %zu is empty: first %" PRIu64 " is not below last %" PRIu64, number,
                          first, last);
    if (last > d->train_tokens)
        return data__fail(e, DATA_MALFORMED, path,
                          "line %zu ends at %" PRIu64 ", beyond the %" PRIu64
                          " tokens of the training split",
                          number, last, d->train_tokens);
    return data__deal(s, (size_t)worker, first, last - first);
}

/* The next line, without its end; returns its length, -1 at the end of the file, -2 if it does not
 * fit. */
static inline int data__line(FILE *f, char *line, int size) {
    int n = 0, c = getc(f);
    if (c == EOF) return -1;
    for (; c != EOF && c != '\n'; c = getc(f)) {
        if (n + 1 == size) return -2;
        line[n++] = (char)c;
    }
    line[n] = 0;
    return ferror(f) ? -1 : n;
}

static inline int data__deal_file(DataShards *s, const DataSet *d, const char *path, size_t T,
                                  uint64_t seed, const DataError *e) {
    (void)seed;
    FILE *f = data__fopen(path);
    if (!f)
        return data__fail(e, DATA_UNREADABLE, path, "%s",
                          errno ? strerror(errno) : "not a regular file");
    char line[1024];
    size_t number = 0;
    int code = 0;
    for (int n; !code && (n = data__line(f, line, sizeof line)) != -1;) {
        number++;
        code = n < 0 ? data__fail(e, DATA_MALFORMED, path, "line %zu is longer than %zu bytes",
                                  number, sizeof line - 1)
                     : data__deal_line(s, d, path, number, line, (size_t)n, e);
    }
    if (!code && ferror(f)) code = data__fail(e, DATA_UNREADABLE, path, "%s", strerror(errno));
    fclose(f);
    size_t lacking = code ? s->workers : data__short_worker(s, T);
    if (lacking == s->workers) return code;
    return data__fail(e, DATA_TOO_SMALL, path,
                      "line %zu is the last and worker %zu has %" PRIu64
                      " tokens, but each needs at least context + 1 = %zu",
                      number, lacking, s->worker[lacking].length, T + 1);
}

/* A way to cut the training split. `deal` gives every worker more than T tokens; NULL: no list. It
 * says what is wrong, but not that there is no memory. */
typedef struct DataShardKind {
    const char *name, *argument; /* what follows name and a colon, "" for neither */
    int equal;                   /* shares out what there is, so that N (T + 1) tokens are needed */
    int (*deal)(DataShards *s, const DataSet *d, const char *argument, size_t T, uint64_t seed,
                const DataError *e);
    const char *doc;
} DataShardKind;

static inline const DataShardKind *data_shards_row(size_t i) {
    static const DataShardKind table[] = {
        {"iid", "", 0, NULL, "blocks in turn"},
        {"contiguous", "", 1, data__deal_contiguous, "one stretch of text per worker"},
        {"dirichlet", "A", 1, data__deal_dirichlet,
         "segments shared out by Dirichlet(A) draws: small A is heterogeneous, large A nearly iid"},
        {"file", "PATH", 0, data__deal_file, "lines `worker first last` of token positions"},
    };
    return i < sizeof table / sizeof *table ? &table[i] : NULL;
}

/* is there enough for workers, in case that they share it equally? */
static inline int data__check_sizes(const DataSet *d, size_t T, size_t workers, int equal,
                                    const DataError *e) {
    if (T < 1 || workers < 1)
        return data__fail(e, DATA_TOO_SMALL, d->text.path,
                          "context and workers must be at least 1");
    if (!equal || d->train_tokens / workers > T) return 0;
    return data__fail(e, DATA_TOO_SMALL, d->text.path,
                      "too short: %" PRIu64 " tokens to train %zu worker%s, each needs at "
                      "least context + 1 = %zu; give more text, a smaller context or fewer "
                      "workers",
                      d->train_tokens, workers, workers == 1 ? "" : "s", T + 1);
}

/* text: a row's name, then a colon and its argument. The same seed gives the same shards. Comes
 * after data_open_val and before data_check_context; another call replaces the shards, an error
 * leaves them. From now on d serves this number of workers only, unless text is "iid". */
static inline int data_set_shards(DataSet *d, const char *text, size_t workers, size_t T,
                                  uint64_t seed, char *error, size_t error_size) {
    DataError e = {error, error_size};
    DataShards s = {0};
    const DataShardKind *row;
    size_t n = strcspn(text, ":");
    for (size_t i = 0; (row = data_shards_row(i)) != NULL; i++)
        if (strlen(row->name) == n && !memcmp(row->name, text, n)) break;
    if (!row || (*row->argument ? !text[n] || !text[n + 1] : text[n]))
        return data__fail(&e, DATA_MALFORMED, "shards",
                          "'%.40s' is none of iid, contiguous, dirichlet:A and file:PATH", text);
    int code = data__check_sizes(d, T, workers, row->equal, &e);
    if (!code && row->deal) {
        const char *argument = text[n] ? text + n + 1 : "";
        s.worker = calloc(workers, sizeof *s.worker);
        s.workers = workers;
        code = s.worker ? row->deal(&s, d, argument, T, seed, &e) : DATA_NO_MEMORY;
        if (code == DATA_NO_MEMORY) data__fail(&e, code, d->text.path, "out of memory");
    }
    if (!code && s.workers) {
        assert(s.range); /* no worker was left without tokens */
        qsort(s.range, s.ranges, sizeof *s.range, data__compare_ranges);
        for (size_t j = 1; j < workers; j++)
            s.worker[j].begin = s.worker[j - 1].begin + s.worker[j - 1].count;
    }
    DataShards gone = code ? s : d->shards;
    if (!code) d->shards = s;
    data__free_shards(&gone);
    return code;
}

static inline int data_check_context(const DataSet *d, size_t T, size_t workers, char *error,
                                     size_t error_size) {
    DataError e = {error, error_size};
    const char *val = d->val_text.path ? d->val_text.path : d->text.path;
    assert(!d->shards.workers || d->shards.workers == workers);
    int code = data__check_sizes(d, T, workers, !d->shards.workers, &e);
    if (code) return code;
    size_t lacking = data__short_worker(&d->shards, T);
    if (lacking < d->shards.workers)
        return data__fail(&e, DATA_TOO_SMALL, d->text.path,
                          "worker %zu has %" PRIu64 " tokens to train on, each needs at least "
                          "context + 1 = %zu; give more text or a smaller context",
                          lacking, d->shards.worker[lacking].length, T + 1);
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

static inline uint64_t data_train_windows(const DataSet *d, size_t rank, size_t workers, size_t T) {
    uint64_t length = data_shard_length(d, rank, workers, T);
    return length < 2 * (uint64_t)T ? length > T : (length - T) / T;
}

/* tokens at .. at+n-1 of a worker's shard */
static inline int data__read_shard(const DataSet *d, size_t rank, size_t workers, size_t T,
                                   uint64_t at, size_t n, int32_t *out) {
    for (size_t count; n; out += count, at += count, n -= count) {
        uint64_t run, start = data__locate(d, rank, workers, T, at, &run);
        count = run < n ? (size_t)run : n;
        int code = data__read(&d->text, &d->vocab, start, count, out);
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
