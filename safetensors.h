/* safetensors.h - named tensors <-> file, atomically, verified. C11 + POSIX, MIT licence.

     file      u64 length | JSON header, padded with spaces | tensors, back to back, little-endian
     header    {"__metadata__":{"key":"text",...},
                "name":{"dtype":"F32","shape":[m,n],"data_offsets":[begin,end]},...}
     source    the safetensors format, github.com/huggingface/safetensors

   Every writer's file is read; every reader loads what is written here. A file written here also
   carries a checksum, so that one flipped bit anywhere in it, or one byte less, is noticed.

   Include it where it is needed: all functions are static inline, and libc is enough. With -std=c11
   its POSIX calls need -D_GNU_SOURCE or -D_POSIX_C_SOURCE=200809L.

     #include "safetensors.h"

     int main(void) {
         float weight[2][3] = {{1, 2, 3}, {4, 5, 6}}, back[6];
         StTensor tensors[] = {{"weight", "F32", {2, 3}, 2, weight}};
         StPair meta[] = {{"step", "100"}};
         char error[256];
         StFile file;
         if (st_write("model.safetensors", tensors, 1, meta, 1, error, sizeof error) ||
             st_open(&file, "model.safetensors", error, sizeof error)) {
             fprintf(stderr, "%s\n", error);
             return 1;
         }
         int failed = st_read_f32(&file, "weight", back, 6, error, sizeof error);
         if (failed) fprintf(stderr, "%s\n", error);
         else printf("step %s, last weight %g\n", st_meta(&file, "step"), (double)back[5]);
         st_close(&file);
         return failed != 0;
     }

   MEMORY   The caller owns what goes into st_write. Everything that an StFile gives out lives until
            st_close. Reading maps the file; beyond that it allocates a few times the header's size.
   THREADS  Any thread may read an open StFile. Two writers of one path must take turns.
   ERRORS   0, or -1 and one sentence in `error` that names the path and the reason.

   API      st_write     file from tensors and metadata; on failure the old file is still there
            st_open      map, validate, verify
            st_find      one tensor's entry, or NULL
            st_data      where its bytes are; tensors are packed, so they may be unaligned
            st_meta      one metadata value, or NULL
            st_read      copy a tensor out, checking dtype and element count
            st_read_f32  the same for F32
            st_close     unmap and free; harmless on an StFile of zeros or after a failed st_open

   KNOBS    ST_HEADER_MAX, the longest header that is read or written, in bytes.

   LIMITS   Little-endian hosts. At most ST_RANK dimensions. Names and metadata are UTF-8 without
            NUL; st_write refuses other text. A mapped file must not be cut short by others. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h stores tensors as they lie in memory and needs a little-endian host"
#endif
#ifndef ST_HEADER_MAX
#define ST_HEADER_MAX 100000000
#endif
#define ST_RANK 4

typedef struct StTensor {
    const char *name;
    const char *dtype; /* "F32", "U64", "U8", ... as the format spells them */
    size_t shape[ST_RANK];
    int rank;
    const void *data;
} StTensor;

typedef struct StPair {
    const char *key, *value;
} StPair;

typedef struct StEntry {
    const char *name, *dtype;
    size_t shape[ST_RANK];
    int rank;
    size_t count;      /* elements */
    size_t begin, end; /* bytes from the start of the data section */
} StEntry;

typedef struct StFile {
    StEntry *entries; /* in the order of their names */
    size_t n;
    StPair *meta; /* in the order of their keys */
    size_t n_meta;
    int verified; /* 1: the file carried a checksum, and it matched */
    const unsigned char *map, *data;
    size_t size; /* of the whole file, bytes */
    char *path;
    char *text; /* the header, its strings decoded in place */
} StFile;

/* Writes n tensors, in the order given, and n_meta pairs to `path`; equal input, equal bytes.
 * cost     two passes over the data: one for the checksum, one to write
 * keys     "checksum", "checksum_kind" and a tensor named "__metadata__" are the format's own
 * order    put a U8 tensor of odd size last, and every other one stays aligned in the file
 * error    `path` keeps its old content and path.tmp is gone; only when the directory could not be
 *          synced after the rename is the new file in place and yet -1 returned */
static inline int st_write(const char *path, const StTensor *t, size_t n, const StPair *meta,
                           size_t n_meta, char *error, size_t error_size);

/* Opens a file for reading; every header that breaks a rule of the format is refused.
 * cost     with a checksum one pass over the file, without one only the header is touched
 * error    f is closed */
static inline int st_open(StFile *f, const char *path, char *error, size_t error_size);
static inline void st_close(StFile *f);

static inline const StEntry *st_find(const StFile *f, const char *name);
static inline const void *st_data(const StFile *f, const StEntry *entry);
static inline const char *st_meta(const StFile *f, const char *key);

/* Copies a tensor of exactly this dtype and element count; nothing is converted. */
static inline int st_read(const StFile *f, const char *name, const char *dtype, void *out,
                          size_t count, char *error, size_t error_size);
static inline int st_read_f32(const StFile *f, const char *name, float *out, size_t count,
                              char *error, size_t error_size);

/* ------------------------------------------------------------------------------------------------
 * private from here: where a failure is told */

typedef struct StError {
    const char *path;
    char *text;
    size_t size;
} StError;

__attribute__((format(printf, 2, 3))) static inline int st__fail(const StError *e,
                                                                 const char *format, ...) {
    int n = snprintf(e->text, e->size, "%s: ", e->path);
    size_t used = n < 0 ? 0 : (size_t)n;
    if (used < e->size) {
        va_list list;
        va_start(list, format);
        vsnprintf(e->text + used, e->size - used, format, list);
        va_end(list);
    }
    /* a damaged name must not send control sequences to a terminal */
    for (size_t i = 0; i < e->size && e->text[i]; i++)
        if ((unsigned char)e->text[i] < 0x20 || e->text[i] == 0x7f) e->text[i] = '?';
    return -1;
}

/* ------------------------------------------------------------------------------------------------
 * checksum "st64": four lanes of 8-byte words. Each step is a bijection of its lane and of its
 * word, and so is the final mixing; therefore damage inside one word is always noticed, and other
 * damage goes unseen with probability 2^-64. It guards against accidents, not against forgers. */

#define ST__KIND "st64"
#define ST__DIGITS "0000000000000000" /* stands for the checksum while it is computed */

typedef struct StHash {
    uint64_t lane[4], bytes;
    unsigned char block[32];
} StHash;

static inline void st__hash_block(uint64_t *lane, const unsigned char *p) {
    for (int i = 0; i < 4; i++) {
        uint64_t word;
        memcpy(&word, p + 8 * i, 8);
        uint64_t x = lane[i] + word * 0x9fb21c651e98df25u;
        lane[i] = (x << 29 | x >> 35) * 0xd6e8feb86659fd93u;
    }
}

static inline StHash st__hash_start(void) { return (StHash){.lane = {1, 2, 3, 4}}; }

static inline void st__hash_add(StHash *h, const void *data, size_t n) {
    if (!n) return;
    const unsigned char *p = data;
    size_t have = h->bytes % 32;
    h->bytes += n;
    if (have) {
        size_t take = n < 32 - have ? n : 32 - have;
        memcpy(h->block + have, p, take);
        p += take;
        n -= take;
        if (have + take < 32) return;
        st__hash_block(h->lane, h->block);
    }
    uint64_t lane[4]; /* a local copy stays in registers */
    memcpy(lane, h->lane, sizeof lane);
    for (; n >= 32; p += 32, n -= 32) st__hash_block(lane, p);
    memcpy(h->lane, lane, sizeof lane);
    memcpy(h->block, p, n);
}

static inline void st__hash_digits(StHash *h, char digits[17]) {
    size_t have = h->bytes % 32;
    if (have) {
        memset(h->block + have, 0, 32 - have);
        st__hash_block(h->lane, h->block);
    }
    uint64_t x = h->bytes;
    for (int i = 0; i < 4; i++) { /* splitmix64's finaliser */
        x ^= h->lane[i];
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        x ^= x >> 31;
    }
    snprintf(digits, 17, "%016llx", (unsigned long long)x);
}

/* ------------------------------------------------------------------------------------------------
 * JSON, as far as the format needs it: objects, strings, arrays of unsigned integers. Strings are
 * decoded in place, which works because no escape is shorter than what it stands for. */

typedef struct StParser {
    char *start, *at, *end;
    const StError *error;
} StParser;

static inline int st__bad(const StParser *p, const char *reason) {
    return st__fail(p->error, "byte %zu of the header: %s", (size_t)(p->at - p->start), reason);
}

static inline void st__skip_space(StParser *p) {
    while (p->at < p->end && *p->at && strchr(" \t\n\r", *p->at)) p->at++;
}

static inline int st__expect(StParser *p, char c) {
    st__skip_space(p);
    char reason[] = "expected ' '";
    reason[10] = c;
    if (p->at == p->end || *p->at != c) return st__bad(p, reason);
    p->at++;
    return 0;
}

/* 1: another element follows, 0: the closing bracket has been read, -1: neither */
static inline int st__more(StParser *p, char close, int first) {
    st__skip_space(p);
    if (p->at < p->end && *p->at == close) {
        p->at++;
        return 0;
    }
    return first || !st__expect(p, ',') ? 1 : -1;
}

static inline int st__hex4(StParser *p, unsigned *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF", *found = NULL;
        if (p->at < p->end && *p->at) found = strchr(digits, *p->at);
        if (!found) return st__bad(p, "\\u needs four hexadecimal digits");
        *code = *code << 4 | ((unsigned)(found - digits) & 15);
    }
    return 0;
}

/* after a backslash */
static inline int st__escape(StParser *p, char **to) {
    const char *names = "\"\\/bfnrt", *values = "\"\\/\b\f\n\r\t";
    const char *found = p->at < p->end && *p->at ? strchr(names, *p->at) : NULL;
    unsigned code, low;
    if (found) {
        p->at++;
        *(*to)++ = values[found - names];
        return 0;
    }
    if (p->at == p->end || *p->at != 'u') return st__bad(p, "unknown escape in a string");
    p->at++;
    if (st__hex4(p, &code)) return -1;
    if (!code) return st__bad(p, "NUL in a string");
    if (code >= 0xd800 && code < 0xe000) { /* one character as two UTF-16 surrogates */
        int pair = code < 0xdc00 && p->end - p->at > 2 && p->at[0] == '\\' && p->at[1] == 'u';
        if (!pair) return st__bad(p, "half a surrogate pair");
        p->at += 2;
        if (st__hex4(p, &low)) return -1;
        if (low < 0xdc00 || low >= 0xe000) return st__bad(p, "half a surrogate pair");
        code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff);
    }
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const unsigned lead[] = {0, 0xc0, 0xe0, 0xf0};
    *(*to)++ = (char)(lead[more] | code >> 6 * more);
    while (more--) *(*to)++ = (char)(0x80 | (code >> 6 * more & 0x3f));
    return 0;
}

static inline int st_is_utf8(const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        int more = *s < 0x80 ? 0 : *s < 0xc2 ? -1 : *s < 0xe0 ? 1 : *s < 0xf0 ? 2 : 3;
        if (more < 0 || *s > 0xf4) return 0;
        if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xf0 && s[1] < 0x90)) return 0; /* overlong */
        if ((*s == 0xed && s[1] > 0x9f) || (*s == 0xf4 && s[1] > 0x8f)) return 0; /* no character */
        for (s++; more; more--, s++)
            if ((*s & 0xc0) != 0x80) return 0;
    }
    return 1;
}

static inline int st__string(StParser *p, const char **out) {
    if (st__expect(p, '"')) return -1;
    char *from = p->at, *to = p->at;
    while (p->at < p->end && *p->at != '"') {
        if ((unsigned char)*p->at < 0x20) return st__bad(p, "a control character in a string");
        char c = *p->at++;
        if (c != '\\')
            *to++ = c;
        else if (st__escape(p, &to))
            return -1;
    }
    if (p->at == p->end) return st__bad(p, "a string does not end");
    p->at++;
    *to = 0;
    *out = from;
    return st_is_utf8(from) ? 0 : st__bad(p, "a string is not UTF-8");
}

static inline int st__key(StParser *p, const char **out) {
    return st__string(p, out) || st__expect(p, ':') ? -1 : 0;
}

static inline int st__array(StParser *p, size_t *values, int max, int *count) {
    int more;
    if (st__expect(p, '[')) return -1;
    for (*count = 0; (more = st__more(p, ']', !*count)) > 0; ++*count) {
        st__skip_space(p);
        if (*count == max) return st__bad(p, "too many numbers in an array");
        char *first = p->at;
        size_t x = 0;
        for (; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++) {
            size_t digit = (size_t)(*p->at - '0');
            if (x > (SIZE_MAX - digit) / 10) return st__bad(p, "a number is too large");
            x = x * 10 + digit;
        }
        if (p->at == first || (*first == '0' && p->at > first + 1))
            return st__bad(p, "expected an unsigned integer");
        values[*count] = x;
    }
    return more;
}

/* ------------------------------------------------------------------------------------------------
 * the header */

/* Element and byte count of a tensor: NULL, or what is wrong with it; *dtype becomes static. */
static inline const char *st__measure(const char **dtype, const size_t *shape, int rank,
                                      size_t *count, size_t *bytes) {
    static const struct {
        const char *name;
        size_t size;
    } known[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                 {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                 {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
    size_t n = sizeof known / sizeof *known, i = 0;
    while (i < n && strcmp(known[i].name, *dtype)) i++;
    if (i == n) return "has an unknown dtype";
    *dtype = known[i].name;
    *count = 1;
    for (int d = 0; d < rank; d++)
        if (__builtin_mul_overflow(*count, shape[d], count)) return "has a shape that overflows";
    if (__builtin_mul_overflow(*count, known[i].size, bytes)) return "has a shape that overflows";
    return NULL;
}

/* Room for element n of an array that doubles whenever n reaches a power of two. */
static inline void *st__grow(const StParser *p, void *array, size_t n, size_t size) {
    if (n & (n - 1)) return array;
    void *grown = realloc(array, (n ? 2 * n : 1) * size);
    if (!grown) st__fail(p->error, "out of memory");
    return grown;
}

static inline int st__parse_entry(StParser *p, StEntry *e) {
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    size_t offsets[2] = {0, 0}, bytes;
    int seen = 0, n = 0, more;
    if (st__expect(p, '{')) return -1;
    while ((more = st__more(p, '}', !seen)) > 0) {
        const char *key;
        if (st__key(p, &key)) return -1;
        int field = !strcmp(key, "dtype")          ? DTYPE
                    : !strcmp(key, "shape")        ? SHAPE
                    : !strcmp(key, "data_offsets") ? OFFSETS
                                                   : 0;
        if (!field || seen & field)
            return st__fail(p->error, "tensor '%s' has %s key '%s'", e->name,
                            field ? "twice the" : "the unknown", key);
        seen |= field;
        if (field == DTYPE && st__string(p, &e->dtype)) return -1;
        if (field == SHAPE && st__array(p, e->shape, ST_RANK, &e->rank)) return -1;
        if (field == OFFSETS && st__array(p, offsets, 2, &n)) return -1;
    }
    if (more < 0) return -1;
    if (seen != (DTYPE | SHAPE | OFFSETS) || n != 2)
        return st__fail(p->error, "tensor '%s' needs dtype, shape and two data_offsets", e->name);
    e->begin = offsets[0];
    e->end = offsets[1];
    const char *wrong = st__measure(&e->dtype, e->shape, e->rank, &e->count, &bytes);
    if (wrong) return st__fail(p->error, "tensor '%s' %s", e->name, wrong);
    if (e->begin > e->end || e->end - e->begin != bytes)
        return st__fail(p->error, "tensor '%s' needs %zu bytes, its data_offsets are %zu and %zu",
                        e->name, bytes, e->begin, e->end);
    return 0;
}

static inline int st__parse_meta(StParser *p, StFile *f) {
    int more;
    if (st__expect(p, '{')) return -1;
    while ((more = st__more(p, '}', !f->n_meta)) > 0) {
        StPair *grown = st__grow(p, f->meta, f->n_meta, sizeof *f->meta), pair;
        if (!grown) return -1;
        f->meta = grown;
        if (st__key(p, &pair.key) || st__string(p, &pair.value)) return -1;
        f->meta[f->n_meta++] = pair;
    }
    return more;
}

static inline int st__by_offset(const void *a, const void *b) {
    const StEntry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}
static inline int st__by_name(const void *a, const void *b) {
    return strcmp(((const StEntry *)a)->name, ((const StEntry *)b)->name);
}
static inline int st__by_key(const void *a, const void *b) {
    return strcmp(((const StPair *)a)->key, ((const StPair *)b)->key);
}

/* Tensors fill the data section from end to end, and no name or key comes twice. */
static inline int st__check_layout(StFile *f, size_t data_size, const StError *error) {
    size_t end = 0;
    if (f->n) qsort(f->entries, f->n, sizeof *f->entries, st__by_offset);
    for (size_t i = 0; i < f->n; end = f->entries[i++].end)
        if (f->entries[i].begin != end)
            return st__fail(error, "tensor '%s' %s", f->entries[i].name,
                            f->entries[i].begin < end ? "overlaps another one"
                                                      : "leaves a hole before it");
    if (end != data_size)
        return st__fail(error, "the tensors take %zu bytes, the file has %zu", end, data_size);
    if (f->n) qsort(f->entries, f->n, sizeof *f->entries, st__by_name);
    for (size_t i = 1; i < f->n; i++)
        if (!st__by_name(f->entries + i - 1, f->entries + i))
            return st__fail(error, "two tensors are named '%s'", f->entries[i].name);
    if (f->n_meta) qsort(f->meta, f->n_meta, sizeof *f->meta, st__by_key);
    for (size_t i = 1; i < f->n_meta; i++)
        if (!st__by_key(f->meta + i - 1, f->meta + i))
            return st__fail(error, "the metadata has '%s' twice", f->meta[i].key);
    return 0;
}

static inline int st__parse(StFile *f, const void *header, size_t n, size_t data_size,
                            const StError *error) {
    if (n > ST_HEADER_MAX) return st__fail(error, "the header of %zu bytes is too long", n);
    if (!n || *(const char *)header != '{') return st__fail(error, "there is no header");
    f->text = malloc(n);
    if (!f->text) return st__fail(error, "out of memory");
    memcpy(f->text, header, n);
    StParser p = {f->text, f->text + 1, f->text + n, error};
    int more, first = 1, metas = 0;
    for (; (more = st__more(&p, '}', first)) > 0; first = 0) {
        StEntry entry = {0};
        if (st__key(&p, &entry.name)) return -1;
        if (!strcmp(entry.name, "__metadata__")) {
            if (metas++) return st__fail(error, "the header has two __metadata__");
            if (st__parse_meta(&p, f)) return -1;
            continue;
        }
        StEntry *grown = st__grow(&p, f->entries, f->n, sizeof entry);
        if (!grown) return -1;
        f->entries = grown;
        if (st__parse_entry(&p, &entry)) return -1;
        f->entries[f->n++] = entry;
    }
    if (more < 0) return -1;
    for (; p.at < p.end; p.at++)
        if (*p.at != ' ') return st__bad(&p, "something follows the end");
    return st__check_layout(f, data_size, error);
}

/* ------------------------------------------------------------------------------------------------
 * reading */

/* The key "checksum_kind" accompanies "checksum" so that damage to either key is noticed too. */
static inline int st__verify(StFile *f, const StError *error) {
    const char *stored = st_meta(f, "checksum"), *kind = st_meta(f, "checksum_kind");
    char digits[17];
    if (!stored && !kind) return 0;
    if (!stored || !kind || strcmp(kind, ST__KIND))
        return st__fail(error, "the checksum is of an unknown kind, or the file is damaged");
    /* decoding in place left the value where it is in the file */
    const unsigned char *at = f->map + 8 + (stored - f->text);
    StHash hash = st__hash_start();
    if (strlen(stored) == 16 && !memcmp(at, stored, 16)) {
        st__hash_add(&hash, f->map, (size_t)(at - f->map));
        st__hash_add(&hash, ST__DIGITS, 16);
        st__hash_add(&hash, at + 16, f->size - (size_t)(at + 16 - f->map));
    }
    st__hash_digits(&hash, digits);
    if (strcmp(digits, stored))
        return st__fail(error, "checksum does not match: the file is damaged");
    f->verified = 1;
    return 0;
}

static inline int st__map(StFile *f, int fd, const StError *error) {
    struct stat info;
    if (fd < 0 || fstat(fd, &info)) return st__fail(error, "cannot open: %s", strerror(errno));
    if (!S_ISREG(info.st_mode)) return st__fail(error, "not a regular file");
    if (info.st_size < 8) return st__fail(error, "too short for a safetensors file");
    if ((uintmax_t)info.st_size > SIZE_MAX) return st__fail(error, "too large for this machine");
    f->size = (size_t)info.st_size;
    void *map = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return st__fail(error, "cannot map: %s", strerror(errno));
    f->map = map;
    return 0;
}

static inline int st_open(StFile *f, const char *path, char *error, size_t error_size) {
    StError e = {path, error, error_size};
    uint64_t length = 0;
    memset(f, 0, sizeof *f);
    f->path = strdup(path);
    if (!f->path) return st__fail(&e, "out of memory");
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), failed = st__map(f, fd, &e);
    if (fd >= 0) close(fd);
    if (!failed) {
        memcpy(&length, f->map, 8);
        if (length > f->size - 8)
            failed = st__fail(&e,
                              "not a safetensors file, or cut short: its header of %llu bytes "
                              "does not fit in it",
                              (unsigned long long)length);
    }
    if (!failed) {
        f->data = f->map + 8 + length;
        size_t data_size = f->size - 8 - (size_t)length;
        failed = st__parse(f, f->map + 8, (size_t)length, data_size, &e) || st__verify(f, &e);
    }
    if (failed) st_close(f);
    return failed ? -1 : 0;
}

static inline void st_close(StFile *f) {
    if (f->map) munmap((void *)(uintptr_t)f->map, f->size);
    free(f->entries);
    free(f->meta);
    free(f->text);
    free(f->path);
    memset(f, 0, sizeof *f);
}

static inline const StEntry *st_find(const StFile *f, const char *name) {
    StEntry key = {.name = name};
    return f->n ? bsearch(&key, f->entries, f->n, sizeof key, st__by_name) : NULL;
}

static inline const void *st_data(const StFile *f, const StEntry *entry) {
    return f->data + entry->begin;
}

static inline const char *st_meta(const StFile *f, const char *key) {
    StPair pair = {key, NULL}, *found = NULL;
    if (f->n_meta) found = bsearch(&pair, f->meta, f->n_meta, sizeof pair, st__by_key);
    return found ? found->value : NULL;
}

static inline int st_read(const StFile *f, const char *name, const char *dtype, void *out,
                          size_t count, char *error, size_t error_size) {
    StError e = {f->path, error, error_size};
    const StEntry *entry = st_find(f, name);
    if (!entry) return st__fail(&e, "there is no tensor '%s'", name);
    if (strcmp(entry->dtype, dtype))
        return st__fail(&e, "tensor '%s' is %s, expected %s", name, entry->dtype, dtype);
    if (entry->count != count)
        return st__fail(&e, "tensor '%s' has %zu elements, expected %zu", name, entry->count,
                        count);
    if (count) memcpy(out, st_data(f, entry), entry->end - entry->begin);
    return 0;
}

static inline int st_read_f32(const StFile *f, const char *name, float *out, size_t count,
                              char *error, size_t error_size) {
    return st_read(f, name, "F32", out, count, error, error_size);
}

/* ------------------------------------------------------------------------------------------------
 * writing */

typedef struct StText {
    char *at;
    size_t n, capacity;
    int failed;
} StText;

static inline void st__put(StText *t, const char *bytes, size_t n) {
    while (!t->failed && t->capacity - t->n < n) {
        size_t capacity = t->capacity ? 2 * t->capacity : 4096;
        char *grown = realloc(t->at, capacity);
        if (!grown)
            t->failed = 1;
        else
            t->at = grown, t->capacity = capacity;
    }
    if (t->failed) return;
    memcpy(t->at + t->n, bytes, n);
    t->n += n;
}

static inline void st__put_text(StText *t, const char *text) { st__put(t, text, strlen(text)); }

static inline void st__put_string(StText *t, const char *s) {
    st__put(t, "\"", 1);
    for (; *s; s++) {
        char escaped[8] = {'\\', *s, 0};
        if ((unsigned char)*s < 0x20) snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)*s);
        if (*s == '"' || *s == '\\' || (unsigned char)*s < 0x20)
            st__put_text(t, escaped);
        else
            st__put(t, s, 1);
    }
    st__put(t, "\"", 1);
}

static inline void st__put_entry(StText *text, const StTensor *t, size_t begin, size_t end) {
    char number[64];
    st__put_text(text, ",");
    st__put_string(text, t->name);
    st__put_text(text, ":{\"dtype\":");
    st__put_string(text, t->dtype);
    st__put_text(text, ",\"shape\":[");
    for (int d = 0; d < t->rank; d++) {
        snprintf(number, sizeof number, "%s%zu", d ? "," : "", t->shape[d]);
        st__put_text(text, number);
    }
    snprintf(number, sizeof number, "],\"data_offsets\":[%zu,%zu]}", begin, end);
    st__put_text(text, number);
}

/* Everything before the data section, checksum included. The header is parsed before it is used,
 * so that no file is written that could not be read. */
static inline int st__build_header(StText *text, const StTensor *t, size_t n, const StPair *meta,
                                   size_t n_meta, const StError *e) {
    size_t end = 0, count, bytes;
    st__put(text, ST__DIGITS, 8); /* the length comes here */
    st__put_text(text, "{\"__metadata__\":{\"checksum\":\"");
    size_t digits = text->n;
    st__put_text(text, ST__DIGITS "\",\"checksum_kind\":\"" ST__KIND "\"");
    for (size_t i = 0; i < n_meta; i++) {
        st__put_text(text, ",");
        st__put_string(text, meta[i].key);
        st__put_text(text, ":");
        st__put_string(text, meta[i].value);
    }
    st__put_text(text, "}");
    for (size_t i = 0; i < n; i++) {
        const char *dtype = t[i].dtype;
        assert(t[i].rank >= 0 && t[i].rank <= ST_RANK);
        const char *wrong = st__measure(&dtype, t[i].shape, t[i].rank, &count, &bytes);
        if (!wrong && __builtin_add_overflow(end, bytes, &end)) wrong = "is too large";
        if (wrong) return st__fail(e, "cannot write: tensor '%s' %s", t[i].name, wrong);
        st__put_entry(text, t + i, end - bytes, end);
    }
    st__put_text(text, "}");
    while (!text->failed && text->n % 64) st__put_text(text, " ");
    if (text->failed) return st__fail(e, "cannot write: out of memory");
    uint64_t length = text->n - 8;
    memcpy(text->at, &length, 8);

    StFile parsed = {0};
    int failed = st__parse(&parsed, text->at + 8, (size_t)length, end, e);
    StHash hash = st__hash_start();
    st__hash_add(&hash, text->at, text->n);
    for (size_t i = 0; i < n && !failed; i++) {
        const StEntry *entry = st_find(&parsed, t[i].name);
        st__hash_add(&hash, t[i].data, entry->end - entry->begin);
    }
    char value[17];
    st__hash_digits(&hash, value);
    memcpy(text->at + digits, value, 16);
    st_close(&parsed);
    return failed;
}

static inline int st__write_all(int fd, const void *data, size_t n) {
    for (const char *p = data; n;) {
        ssize_t done = write(fd, p, n < (1u << 30) ? n : 1u << 30);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            if (!done) errno = ENOSPC;
            return -1;
        }
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

static inline int st__write_file(const char *path, const StText *header, const StTensor *t,
                                 size_t n) {
    unlink(path); /* what an interrupted run may have left */
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return -1;
    int failed = st__write_all(fd, header->at, header->n);
    for (size_t i = 0; i < n && !failed; i++) {
        const char *dtype = t[i].dtype;
        size_t count, bytes;
        if (!st__measure(&dtype, t[i].shape, t[i].rank, &count, &bytes))
            failed = st__write_all(fd, t[i].data, bytes);
    }
    if (!failed) failed = fsync(fd);
    int why = errno;
    if (close(fd) && !failed) failed = -1, why = errno;
    if (failed) unlink(path);
    errno = why;
    return failed;
}

/* The new file takes the old one's place, and the directory is made to remember it. */
static inline int st__replace(const char *path, char *temporary, const StText *header,
                              const StTensor *t, size_t n, const StError *e) {
    const char *slash = strrchr(path, '/');
    char *directory =
        !slash ? strdup(".") : strndup(path, slash == path ? 1 : (size_t)(slash - path));
    int fd = directory ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1, failed = 0;
    if (fd < 0) failed = st__fail(e, "cannot open its directory: %s", strerror(errno));
    free(directory);
    if (!failed && st__write_file(temporary, header, t, n))
        failed = st__fail(e, "cannot write %s: %s", temporary, strerror(errno));
    if (!failed && rename(temporary, path)) {
        failed = st__fail(e, "cannot rename %s: %s", temporary, strerror(errno));
        unlink(temporary);
    }
    /* some file systems have nothing to sync in a directory and say EINVAL */
    if (!failed && fsync(fd) && errno != EINVAL)
        failed = st__fail(e, "written, but its directory cannot be synced: %s", strerror(errno));
    if (fd >= 0) close(fd);
    return failed;
}

static inline int st_write(const char *path, const StTensor *t, size_t n, const StPair *meta,
                           size_t n_meta, char *error, size_t error_size) {
    StError e = {path, error, error_size};
    StText header = {0};
    int failed = st__build_header(&header, t, n, meta, n_meta, &e);
    char *temporary = malloc(strlen(path) + sizeof ".tmp");
    if (!failed && !temporary) failed = st__fail(&e, "cannot write: out of memory");
    if (!failed) {
        strcpy(temporary, path);
        strcat(temporary, ".tmp");
        failed = st__replace(path, temporary, &header, t, n, &e);
    }
    free(temporary);
    free(header.at);
    return failed;
}

#endif
