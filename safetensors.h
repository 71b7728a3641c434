/* safetensors.h - named tensors <-> file, atomically, verified. C11 + POSIX, MIT licence.

     file      u64 length | JSON header, padded with spaces | tensors, back to back, little-endian
     header    {"__metadata__":{"key":"text",...},
                "name":{"dtype":"F32","shape":[m,n],"data_offsets":[begin,end]},...}
     source    the safetensors format, github.com/huggingface/safetensors

   Every writer's file is read; every reader loads what is written here. A file written here also
   carries a checksum, so that one flipped bit anywhere in it, or one byte less, is noticed. All
   functions are static inline; -std=c11 needs -D_GNU_SOURCE or -D_POSIX_C_SOURCE=200809L besides.

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

   MEMORY   The caller owns what goes into st_write; what an StFile gives out lives until st_close.
            Reading maps the file; beyond that it allocates a few times the header's size.
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
            st_is_utf8   may this text be a name, a key or a value?
            st_sync      what was written through a descriptor survives a power cut
            st_sync_directory   and so do the names in a directory

   LIMITS   Little-endian hosts. At most ST_RANK dimensions, headers of ST_HEADER_MAX bytes. Names
            and metadata are UTF-8 without NUL; st_write refuses other text. A mapped file must not
            be cut short by others. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include <assert.h>
#include <ctype.h>
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
#define ST_HEADER_MAX 100000000
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
    StEntry *entries; /* in the order of their names; this block holds meta and text too */
    size_t n;
    StPair *meta; /* in the order of their keys */
    size_t n_meta;
    int verified; /* 1: the file carried a checksum, and it matched */
    const unsigned char *map, *data;
    size_t size; /* of the whole file, bytes */
    char *path;
    char *text; /* the header, its strings decoded in place */
} StFile;

typedef struct StError { /* where a failure is told */
    const char *path;
    char *text;
    size_t size;
} StError;

__attribute__((format(printf, 2, 3))) static inline int st__fail(const StError *e,
                                                                 const char *format, ...) {
    int n = snprintf(e->text, e->size, "%s: ", e->path);
    va_list list;
    va_start(list, format);
    if (n >= 0 && (size_t)n < e->size) vsnprintf(e->text + n, e->size - (size_t)n, format, list);
    va_end(list);
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
    uint64_t lane[4], bytes, block[4];
} StHash;

static inline StHash st__hash_start(void) { return (StHash){.lane = {1, 2, 3, 4}}; }

static inline void st__hash_add(StHash *h, const void *data, size_t n) {
    for (const unsigned char *p = data; n;) {
        size_t have = h->bytes % 32, take = n < 32 - have ? n : 32 - have;
        if (take == 32)
            memcpy(h->block, p, 32); /* a constant size takes no call */
        else
            memcpy((unsigned char *)h->block + have, p, take);
        h->bytes += take;
        p += take;
        n -= take;
        for (int i = 0; have + take == 32 && i < 4; i++) {
            uint64_t x = h->lane[i] + h->block[i] * 0x9fb21c651e98df25u;
            h->lane[i] = (x << 29 | x >> 35) * 0xd6e8feb86659fd93u;
        }
    }
}

static inline void st__hash_digits(StHash *h, char digits[17]) {
    static const unsigned char zeros[32];
    uint64_t x = h->bytes;
    st__hash_add(h, zeros, (size_t)(-x % 32)); /* fills the last block */
    for (int i = 0; i < 4; i++) {              /* splitmix64's finaliser */
        x ^= h->lane[i];
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        x ^= x >> 31;
    }
    snprintf(digits, 17, "%016llx", (unsigned long long)x);
}

/* ------------------------------------------------------------------------------------------------
 * JSON, as far as the format needs it: objects, strings, arrays of unsigned integers. A NUL ends
 * the text, and after an error nothing else is met. Strings are decoded in place, which works
 * because no escape is shorter than what it stands for. */

typedef struct StParser {
    char *start, *at, *end;
    int failed;
    const StError *error;
} StParser;

static inline void st__bad(StParser *p, const char *reason) {
    size_t byte = (size_t)(p->at - p->start);
    if (!p->failed) p->failed = st__fail(p->error, "byte %zu of the header: %s", byte, reason);
    p->at = p->end;
}

/* does c come next? then it is read */
static inline int st__accept(StParser *p, char c) {
    p->at += strspn(p->at, " \t\n\r");
    return *p->at == c ? p->at++, 1 : 0;
}

static inline void st__expect(StParser *p, char c) {
    char reason[] = "expected ' '";
    reason[10] = c;
    if (!st__accept(p, c)) st__bad(p, reason);
}

/* does an object or array go on after its first n elements? */
static inline int st__more(StParser *p, char close, size_t n) {
    if (st__accept(p, close)) return 0;
    if (n) st__expect(p, ',');
    return !p->failed;
}

/* the four digits of \uXXXX */
static inline unsigned st__hex4(StParser *p) {
    char digits[5] = "";
    for (int i = 0; i < 4 && isxdigit((unsigned char)*p->at); i++) digits[i] = *p->at++;
    if (!digits[3]) st__bad(p, "\\u needs four hexadecimal digits");
    return (unsigned)strtoul(digits, NULL, 16);
}

/* what follows a backslash; returns the place behind what was written */
static inline char *st__escape(StParser *p, char *to) {
    static const char names[] = "\"\\/bfnrtu", values[] = "\"\\/\b\f\n\r\t",
                      lead[] = "\0\xc0\xe0\xf0";
    const char *found = memchr(names, *p->at, 9);
    if (!found) return st__bad(p, "unknown escape in a string"), to;
    *to = values[found - names];
    if (*p->at++ != 'u') return to + 1;
    unsigned code = st__hex4(p), low = 0;
    if (!code) st__bad(p, "NUL in a string");
    if (code >= 0xd800 && code < 0xe000) { /* one character as two UTF-16 surrogates */
        if (code < 0xdc00 && !strncmp(p->at, "\\u", 2) && p->at + 2 < p->end)
            p->at += 2, low = st__hex4(p);
        if (low < 0xdc00 || low >= 0xe000) st__bad(p, "half a surrogate pair");
        code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff);
    }
    if (p->failed) return to;
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *to++ = (char)((unsigned char)lead[more] | code >> 6 * more);
    while (more--) *to++ = (char)(0x80 | (code >> 6 * more & 0x3f));
    return to;
}

/* Is this text UTF-8, and so fit to be a name, a key or a value? */
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

static inline const char *st__string(StParser *p) {
    st__expect(p, '"');
    char *start = p->at, *to = p->at;
    while (*p->at != '"' && !p->failed) {
        if ((unsigned char)*p->at < 0x20)
            st__bad(p,
                    p->at == p->end ? "a string does not end" : "a control character in a string");
        else if (*p->at == '\\')
            p->at++, to = st__escape(p, to);
        else
            *to++ = *p->at++;
    }
    if (p->failed) return start;
    p->at++;
    *to = 0;
    if (!st_is_utf8(start)) st__bad(p, "a string is not UTF-8");
    return start;
}

/* the key behind the first n of an object, its colon read too, or NULL */
static inline const char *st__key(StParser *p, size_t n) {
    if (!st__more(p, '}', n)) return NULL;
    const char *key = st__string(p);
    st__expect(p, ':');
    return p->failed ? NULL : key;
}

/* returns how many numbers there are */
static inline int st__array(StParser *p, size_t *values, int max) {
    int n = 0;
    st__expect(p, '[');
    for (; st__more(p, ']', (size_t)n); n++) {
        char *first = p->at += strspn(p->at, " \t\n\r");
        unsigned long long x = 0;
        errno = 0;
        if (n == max) return st__bad(p, "too many numbers in an array"), n;
        if (*first >= '0' && *first <= '9') x = strtoull(first, &p->at, 10);
        if (errno || x > SIZE_MAX) st__bad(p, "a number is too large");
        if (p->at == first || (*first == '0' && p->at > first + 1))
            st__bad(p, "expected an unsigned integer");
        values[n] = (size_t)x;
    }
    return n;
}

/* ------------------------------------------------------------------------------------------------
 * the header */

/* Element and byte count of a tensor. Returns NULL, or what is wrong with it. */
static inline const char *st__measure(const char *dtype, const size_t *shape, int rank,
                                      size_t *count, size_t *bytes) {
    static const char *const known[] = {"BOOL", "U8",  "I8",  "F8_E5M2", "F8_E4M3",
                                        "I16",  "U16", "F16", "BF16",    "I32",
                                        "U32",  "F32", "F64", "I64",     "U64"};
    static const size_t size[] = {1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8};
    size_t n = sizeof known / sizeof *known, i = 0;
    int overflow = 0;
    *count = 1;
    for (int d = 0; d < rank; d++) overflow |= __builtin_mul_overflow(*count, shape[d], count);
    while (i < n && strcmp(known[i], dtype)) i++;
    if (i == n) return "has an unknown dtype";
    overflow |= __builtin_mul_overflow(*count, size[i], bytes);
    return overflow ? "has a shape that overflows" : NULL;
}

static inline int st__parse_entry(StParser *p, StEntry *e) {
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    size_t offsets[2] = {0, 0}, bytes;
    int seen = 0, n = 0;
    st__expect(p, '{');
    for (const char *key; (key = st__key(p, (size_t)seen));) {
        int i = 0;
        while (i < 3 && strcmp(key, fields[i])) i++;
        if (i == 3 || seen & 1 << i)
            return st__fail(p->error, "tensor '%s' has %s key '%s'", e->name,
                            i < 3 ? "twice the" : "the unknown", key);
        seen |= 1 << i;
        if (i == 0) e->dtype = st__string(p);
        if (i == 1) e->rank = st__array(p, e->shape, ST_RANK);
        if (i == 2) n = st__array(p, offsets, 2);
    }
    if (p->failed) return -1;
    if (seen != 7 || n != 2)
        return st__fail(p->error, "tensor '%s' needs dtype, shape and two data_offsets", e->name);
    e->begin = offsets[0];
    e->end = offsets[1];
    const char *wrong = st__measure(e->dtype, e->shape, e->rank, &e->count, &bytes);
    if (wrong) return st__fail(p->error, "tensor '%s' %s", e->name, wrong);
    if (e->begin > e->end || e->end - e->begin != bytes)
        return st__fail(p->error, "tensor '%s' needs %zu bytes, its data_offsets are %zu and %zu",
                        e->name, bytes, e->begin, e->end);
    return 0;
}

static inline int st__by_offset(const void *a, const void *b) {
    const StEntry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* of StEntry or StPair, which both begin with a string */
static inline int st__by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Tensors fill the data section from end to end, and no name or key comes twice. */
static inline int st__check_layout(StFile *f, size_t data_size, const StError *error) {
    size_t end = 0;
    qsort(f->entries, f->n, sizeof *f->entries, st__by_offset);
    for (size_t i = 0; i < f->n; end = f->entries[i++].end)
        if (f->entries[i].begin != end)
            return st__fail(error, "tensor '%s' %s", f->entries[i].name,
                            f->entries[i].begin < end ? "overlaps another one"
                                                      : "leaves a hole before it");
    if (end != data_size)
        return st__fail(error, "the tensors take %zu bytes, the file has %zu", end, data_size);
    qsort(f->entries, f->n, sizeof *f->entries, st__by_name);
    for (size_t i = 1; i < f->n; i++)
        if (!st__by_name(f->entries + i - 1, f->entries + i))
            return st__fail(error, "two tensors are named '%s'", f->entries[i].name);
    qsort(f->meta, f->n_meta, sizeof *f->meta, st__by_name);
    for (size_t i = 1; i < f->n_meta; i++)
        if (!st__by_name(f->meta + i - 1, f->meta + i))
            return st__fail(error, "the metadata has '%s' twice", f->meta[i].key);
    return 0;
}

static inline int st__parse(StFile *f, const void *header, size_t n, size_t data_size,
                            const StError *error) {
    if (n > ST_HEADER_MAX) return st__fail(error, "the header of %zu bytes is too long", n);
    if (!n || *(const char *)header != '{') return st__fail(error, "there is no header");
    /* no entry is shorter than 32 bytes of text, no pair than 4: this many have room */
    size_t entries = n / 32 + 1, pairs = n / 4 + 1;
    f->entries = malloc(entries * sizeof *f->entries + pairs * sizeof *f->meta + n + 1);
    if (!f->entries) return st__fail(error, "out of memory");
    f->meta = (StPair *)(f->entries + entries);
    f->text = (char *)(f->meta + pairs);
    memcpy(f->text, header, n);
    f->text[n] = 0;
    StParser p = {f->text, f->text + 1, f->text + n, 0, error};
    int metas = 0;
    for (const char *key; (key = st__key(&p, f->n + (size_t)metas));) {
        if (strcmp(key, "__metadata__")) {
            f->entries[f->n] = (StEntry){.name = key};
            if (st__parse_entry(&p, &f->entries[f->n++])) return -1;
            continue;
        }
        if (metas++) return st__fail(error, "the header has two __metadata__");
        st__expect(&p, '{');
        while ((key = st__key(&p, f->n_meta))) f->meta[f->n_meta++] = (StPair){key, st__string(&p)};
    }
    if (!p.failed) p.at += strspn(p.at, " ");
    if (p.at != p.end) st__bad(&p, "something follows the end");
    return p.failed ? -1 : st__check_layout(f, data_size, error);
}

/* ------------------------------------------------------------------------------------------------
 * reading */

static inline void st_close(StFile *f) {
    if (f->map) munmap((void *)(uintptr_t)f->map, f->size);
    free(f->entries);
    free(f->path);
    *f = (StFile){0};
}

static inline const StEntry *st_find(const StFile *f, const char *name) {
    return f->n ? bsearch(&name, f->entries, f->n, sizeof *f->entries, st__by_name) : NULL;
}

static inline const void *st_data(const StFile *f, const StEntry *entry) {
    return f->data + entry->begin;
}

static inline const char *st_meta(const StFile *f, const char *key) {
    const StPair *found = NULL;
    if (f->n_meta) found = bsearch(&key, f->meta, f->n_meta, sizeof *f->meta, st__by_name);
    return found ? found->value : NULL;
}

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
        st__hash_digits(&hash, digits);
        f->verified = !strcmp(digits, stored);
    }
    return f->verified ? 0 : st__fail(error, "checksum does not match: the file is damaged");
}

static inline int st__load(StFile *f, int fd, const StError *error) {
    struct stat info;
    uint64_t length;
    if (fd < 0 || fstat(fd, &info)) return st__fail(error, "cannot open: %s", strerror(errno));
    if (!S_ISREG(info.st_mode)) return st__fail(error, "not a regular file");
    if (info.st_size < 8) return st__fail(error, "too short for a safetensors file");
    if ((uintmax_t)info.st_size > SIZE_MAX) return st__fail(error, "too large for this machine");
    f->size = (size_t)info.st_size;
    void *map = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return st__fail(error, "cannot map: %s", strerror(errno));
    f->map = map;
    memcpy(&length, f->map, 8);
    if (length > f->size - 8)
        return st__fail(error,
                        "not a safetensors file, or cut short: its header of %llu bytes "
                        "does not fit in it",
                        (unsigned long long)length);
    size_t n = (size_t)length;
    f->data = f->map + 8 + n;
    return st__parse(f, f->map + 8, n, f->size - 8 - n, error) || st__verify(f, error) ? -1 : 0;
}

/* open, again when a signal came between: on a network file system that happens */
static inline int st__descriptor(const char *path, int flags) {
    int fd;
    do {
        fd = open(path, flags | O_CLOEXEC, 0666);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

/* Opens a file for reading; every header that breaks a rule of the format is refused.
 * cost     with a checksum one pass over the file, without one only the header is touched
 * error    f is closed; errno is the system's reason, or 0 when the file is to blame */
static inline int st_open(StFile *f, const char *path, char *error, size_t error_size) {
    StError e = {path, error, error_size};
    errno = 0;
    *f = (StFile){.path = strdup(path)};
    if (!f->path) return st__fail(&e, "out of memory");
    int fd = st__descriptor(path, O_RDONLY | O_NONBLOCK), failed = st__load(f, fd, &e);
    if (fd >= 0) close(fd);
    if (failed) st_close(f);
    return failed;
}

/* Copies a tensor of exactly this dtype and element count; nothing is converted. */
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

typedef struct StPart { /* of the file: the header, or one tensor */
    const void *data;
    size_t bytes;
} StPart;

static inline void st__put_string(FILE *out, const char *before, const char *s) {
    fprintf(out, "%s\"", before);
    for (; *s; s++)
        if ((unsigned char)*s < 0x20)
            fprintf(out, "\\u%04x", (unsigned)*s);
        else
            fprintf(out, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
    fputc('"', out);
}

/* The n + 1 parts of the file, checksum included; part[0].data is to be freed, even after a
 * failure. The header is parsed before it is used, so that what could not be read is not written. */
static inline int st__compose(StPart *part, const StTensor *t, size_t n, const StPair *meta,
                              size_t n_meta, const StError *e) {
    static const char start[] = "{\"__metadata__\":{\"checksum\":\"";
    char *text = NULL, digits[17];
    size_t size = 0, end = 0, count;
    FILE *out = open_memstream(&text, &size);
    if (!out) return st__fail(e, "cannot write: out of memory");
    fprintf(out, "%8s%s" ST__DIGITS "\",\"checksum_kind\":\"" ST__KIND "\"", "", start);
    for (size_t i = 0; i < n_meta; i++) {
        st__put_string(out, ",", meta[i].key);
        st__put_string(out, ":", meta[i].value);
    }
    fputc('}', out);
    for (size_t i = 0; i < n; i++) {
        size_t begin = end, bytes = 0;
        assert(t[i].rank >= 0 && t[i].rank <= ST_RANK);
        st__measure(t[i].dtype, t[i].shape, t[i].rank, &count,
                    &bytes); /* the parser tells errors */
        end = begin + bytes;
        part[i + 1] = (StPart){t[i].data, bytes};
        st__put_string(out, ",", t[i].name);
        st__put_string(out, ":{\"dtype\":", t[i].dtype);
        fputs(",\"shape\":[", out);
        for (int d = 0; d < t[i].rank; d++) fprintf(out, "%s%zu", d ? "," : "", t[i].shape[d]);
        fprintf(out, "],\"data_offsets\":[%zu,%zu]}", begin, end);
    }
    fputc('}', out);
    fflush(out);
    fprintf(out, "%*s", (int)(-size % 64), ""); /* so that the tensors begin aligned */
    int lost = ferror(out);
    lost |= fclose(out);
    part[0] = (StPart){text, size};
    if (lost) return st__fail(e, "cannot write: out of memory");

    StFile parsed = {0};
    uint64_t length = size - 8;
    memcpy(text, &length, 8);
    int failed = st__parse(&parsed, text + 8, size - 8, end, e);
    st_close(&parsed);
    StHash hash = st__hash_start();
    for (size_t i = 0; i <= n && !failed; i++) st__hash_add(&hash, part[i].data, part[i].bytes);
    st__hash_digits(&hash, digits);
    memcpy(text + 8 + sizeof start - 1, digits, 16);
    return failed;
}

/* 0 or errno: what was written through fd is on the disk */
static inline int st_sync(int fd) {
    while (fsync(fd))
        if (errno != EINTR) return errno;
    return 0;
}

/* The same of the names in a directory. */
static inline int st_sync_directory(const char *path) {
    int fd = st__descriptor(path, O_RDONLY | O_DIRECTORY), why = fd < 0 ? errno : st_sync(fd);
    if (fd >= 0) close(fd);
    return why == EINVAL ? 0 : why; /* where a directory has nothing to sync */
}

/* 0 or errno; after a failure there is no file */
static inline int st__write_file(const char *path, const StPart *part, size_t parts) {
    unlink(path); /* what an interrupted run may have left */
    int fd = st__descriptor(path, O_WRONLY | O_CREAT | O_EXCL), why = 0;
    if (fd < 0) return errno;
    for (size_t i = 0; i < parts && !why; i++) {
        const char *p = part[i].data;
        for (size_t n = part[i].bytes; n && !why;) {
            ssize_t done = write(fd, p, n < (1u << 30) ? n : 1u << 30);
            if (done > 0)
                p += done, n -= (size_t)done;
            else if (done == 0 || errno != EINTR)
                why = done ? errno : ENOSPC;
        }
    }
    if (!why) why = st_sync(fd);
    if (close(fd) && errno != EINTR && !why) why = errno; /* an interrupted close has closed */
    if (why) unlink(path);
    return why;
}

/* Writes n tensors, in the order given, and n_meta pairs to `path`; equal input, equal bytes.
 * cost     two passes over the data: one for the checksum, one to write
 * keys     "checksum", "checksum_kind" and a tensor named "__metadata__" are the format's own
 * order    put a U8 tensor of odd size last, and every other one stays aligned in the file
 * error    `path` keeps its old content and path.tmp is gone; only when the directory could not be
 *          synced after the rename is the new file in place and yet -1 returned */
static inline int st_write(const char *path, const StTensor *t, size_t n, const StPair *meta,
                           size_t n_meta, char *error, size_t error_size) {
    StError e = {path, error, error_size};
    StPart *part = calloc(n + 1, sizeof *part);
    char *name = malloc(strlen(path) + sizeof ".tmp"); /* of the directory, then of the new file */
    const char *slash = strrchr(path, '/');
    int length = slash && slash != path ? (int)(slash - path) : 1, why, fd = -1;
    int failed = part && name ? st__compose(part, t, n, meta, n_meta, &e)
                              : st__fail(&e, "cannot write: out of memory");
    if (!failed) {
        sprintf(name, "%.*s", length, slash ? path : ".");
        fd = st__descriptor(name, O_RDONLY | O_DIRECTORY);
        sprintf(name, "%s.tmp", path);
        if (fd < 0)
            failed = st__fail(&e, "cannot open its directory: %s", strerror(errno));
        else if ((why = st__write_file(name, part, n + 1)))
            failed = st__fail(&e, "cannot write %s: %s", name, strerror(why));
        else if (rename(name, path)) {
            failed = st__fail(&e, "cannot rename %s: %s", name, strerror(errno));
            unlink(name);
        } else if ((why = st_sync(fd)) && why != EINVAL) /* a directory with nothing to sync */
            failed = st__fail(&e, "written, but its directory cannot be synced: %s", strerror(why));
    }
    if (fd >= 0) close(fd);
    if (part) free((void *)(uintptr_t)part[0].data);
    free(part);
    free(name);
    return failed;
}

#endif
