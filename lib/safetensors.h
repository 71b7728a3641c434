/* safetensors.h - named tensors <-> one file, replaced atomically, verified. C11 + POSIX, MIT.

     file      u64 length | JSON header, padded with spaces | tensors, back to back, little-endian
     header    {"__metadata__":{"key":"text",...},
                "name":{"dtype":"F32","shape":[m,n],"data_offsets":[begin,end]},...}
     source    github.com/huggingface/safetensors

   Files of other writers are read, and other readers load what is written here. A file written here
   carries a checksum in its metadata, so that a flipped bit or a missing byte is noticed.

   API      st_write         file from tensors and metadata; after a failure the old file stands
            st_open          read the header, check it, verify the checksum, map the tensors
            st_find          a tensor's entry, or NULL
            st_data          where its bytes are (perhaps unaligned)
            st_meta          a metadata value, or NULL
            st_read_f32      copy an F32 tensor of a known number of elements
            st_close         also for an StFile of zeros, or after a failed st_open
   MEMORY   The caller owns what goes into st_write. What an StFile gives out lives until st_close.
            Beyond the map of the file, reading allocates a few times the header's size.
   THREADS  Any thread may read an open StFile. Two writers of one path must take turns.
   ERRORS   0, or -1 and a sentence that names the path and the reason.
   LIMITS   Little-endian hosts, ST_RANK dimensions, headers of ST_HEADER_MAX bytes. Text is UTF-8
            without NUL. Escaped UTF-16 surrogates are refused. Nobody may cut a mapped file short. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "base.h"

#include <assert.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h stores tensors as they lie in memory and needs a little-endian host"
#endif

enum { ST_HEADER_MAX = 100000000, ST_RANK = 4 };

typedef struct StTensor {
    const char *name;
    const char *dtype; /* "F32", "U64", "U8", ... as the format spells them */
    size_t shape[ST_RANK];
    int rank;
    const void *data;
} StTensor;

typedef struct StPair {
    const char *key;
    const char *value;
} StPair;

typedef struct StEntry {
    const char *name;
    const char *dtype;
    size_t shape[ST_RANK];
    int rank;
    size_t count; /* elements */
    size_t begin; /* bytes from the start of the tensors */
    size_t end;
} StEntry;

typedef struct StFile {
    StEntry *entries; /* sorted by name; this allocation also holds meta and text */
    size_t n;
    StPair *meta; /* sorted by key */
    size_t n_meta;
    int verified;              /* 1: the file carries a checksum, and it matched */
    const unsigned char *map;  /* the whole file */
    const unsigned char *data; /* its tensors */
    size_t size;               /* of the whole file, bytes */
    char *path;
    char *text;  /* the header, its strings decoded in place */
    char *at;    /* private while st_open runs: the parser's place in the text */
    char *end;   /* its end */
    char *error; /* where the first failure is told */
    size_t error_size;
    int failed;
} StFile;

/* Tell a failure of which the file is the cause: errno becomes 0. Only the first one is told. */
__attribute__((format(printf, 2, 3))) static inline int st__fail(StFile *f, const char *format,
                                                                 ...) {
    char reason[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    if (!f->failed) base_fail(f->error, f->error_size, -1, "%s: %s", f->path, reason);
    if (!f->failed) base_harmless(f->error);
    errno = 0;
    return f->failed = -1;
}

/* Tell a failure of which errno is the cause. */
static inline int st__fail_system(StFile *f, const char *what) {
    int code = errno;
    st__fail(f, "%s: %s", what, strerror(code));
    errno = code;
    return -1;
}

/* ------------------------------------------------------------------------------------------------
 * checksum "st64": four lanes of 8-byte words. Each step is a bijection of its lane and of its
 * word, and so is the final mixing. Damage inside one word is therefore always noticed, other damage
 * with probability 1 - 2^-64. It guards against accidents, not against forgery. */

#define ST__KIND "st64"
#define ST__DIGITS "0000000000000000" /* stands for the checksum while it is computed */

typedef struct StHash {
    uint64_t lane[4];
    uint64_t bytes;
    uint64_t block[4];
} StHash;

static inline StHash st__hash_start(void) { return (StHash){.lane = {1, 2, 3, 4}}; }

static inline void st__hash_add(StHash *h, const void *data, size_t n) {
    for (const unsigned char *p = data; n;) {
        size_t have = h->bytes % 32, take = n < 32 - have ? n : 32 - have;
        if (take == 32)
            memcpy(h->block, p, 32); /* of a constant size, this is two moves */
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
 * JSON, as far as the format needs it: objects, strings, arrays of unsigned integers. The text ends
 * with a NUL. After an error the parser stands at the end and meets nothing else. Strings are
 * decoded in place: no escape is shorter than what it stands for. */

static inline void st__bad(StFile *f, const char *reason) {
    st__fail(f, "byte %zu of the header: %s", (size_t)(f->at - f->text), reason);
    f->at = f->end;
}

/* Read the character c, if it comes next. */
static inline int st__accept(StFile *f, char c) {
    f->at += strspn(f->at, " \t\n\r");
    if (*f->at != c) return 0;
    f->at++;
    return 1;
}

static inline void st__expect(StFile *f, char c) {
    char reason[] = "expected ' '";
    reason[10] = c;
    if (!st__accept(f, c)) st__bad(f, reason);
}

/* Does an object or array go on after its first n elements? */
static inline int st__more(StFile *f, char close, size_t n) {
    if (st__accept(f, close)) return 0;
    if (n) st__expect(f, ',');
    return !f->failed;
}

/* Decode what follows a backslash; returns the place behind the decoded bytes. */
static inline char *st__escape(StFile *f, char *to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *found = *f->at ? strchr(names, *f->at) : NULL;
    if (found) {
        *to = values[found - names];
        f->at++;
        return to + 1;
    }
    char digits[5] = "";
    if (*f->at != 'u' || strspn(f->at + 1, "0123456789abcdefABCDEF") < 4)
        return st__bad(f, "unknown escape in a string"), to;
    memcpy(digits, f->at + 1, 4);
    unsigned code = (unsigned)strtoul(digits, NULL, 16);
    if (!code) return st__bad(f, "NUL in a string"), to;
    if (code >> 11 == 27) return st__bad(f, "an escaped UTF-16 surrogate is not supported"), to;
    f->at += 5;
    if (code >= 0x800) *to++ = (char)(0xe0 | code >> 12);
    if (code >= 0x80) *to++ = (char)(code >= 0x800 ? 0x80 | (code >> 6 & 0x3f) : 0xc0 | code >> 6);
    *to++ = (char)(code >= 0x80 ? 0x80 | (code & 0x3f) : code);
    return to;
}

static inline const char *st__string(StFile *f) {
    st__expect(f, '"');
    char *start = f->at, *to = f->at;
    while (*f->at != '"' && !f->failed) {
        if (f->at == f->end) {
            st__bad(f, "a string does not end");
        } else if ((unsigned char)*f->at < 0x20) {
            st__bad(f, "a control character in a string");
        } else if (*f->at == '\\') {
            f->at++;
            to = st__escape(f, to);
        } else {
            *to++ = *f->at++;
        }
    }
    if (f->failed) return start;
    f->at++;
    *to = 0;
    if (!base_is_utf8(start)) st__bad(f, "a string is not UTF-8");
    return start;
}

/* The key after the first n of an object, its colon read too, or NULL. */
static inline const char *st__key(StFile *f, size_t n) {
    if (!st__more(f, '}', n)) return NULL;
    const char *key = st__string(f);
    st__expect(f, ':');
    return f->failed ? NULL : key;
}

/* Read an array of at most `max` numbers; returns how many there are. */
static inline int st__array(StFile *f, size_t *values, int max) {
    int n = 0;
    st__expect(f, '[');
    for (; st__more(f, ']', (size_t)n); n++) {
        char *first = f->at += strspn(f->at, " \t\n\r");
        unsigned long long x = 0;
        errno = 0;
        if (n == max) return st__bad(f, "too many numbers in an array"), n;
        if (*first >= '0' && *first <= '9') x = strtoull(first, &f->at, 10);
        if (errno || x > SIZE_MAX) st__bad(f, "a number is too large");
        if (f->at == first || (*first == '0' && f->at > first + 1))
            st__bad(f, "expected an unsigned integer");
        values[n] = (size_t)x;
    }
    return n;
}

/* ------------------------------------------------------------------------------------------------
 * the header */

/* Number of elements and bytes of a tensor. Returns NULL, or what is wrong with it. */
static inline const char *st__measure(const char *dtype, const size_t *shape, int rank,
                                      size_t *count, size_t *bytes) {
    static const char known[] = "BOOL:1 U8:1 I8:1 F8_E5M2:1 F8_E4M3:1 I16:2 U16:2 F16:2 BF16:2 "
                                "I32:4 U32:4 F32:4 F64:8 I64:8 U64:8 ";
    size_t n = strlen(dtype);
    const char *row = known;
    while (*row && (strncmp(row, dtype, n) || row[n] != ':')) row = strchr(row, ' ') + 1;
    if (!*row) return "has an unknown dtype";
    int overflow = 0;
    *count = 1;
    for (int d = 0; d < rank; d++) overflow |= __builtin_mul_overflow(*count, shape[d], count);
    overflow |= __builtin_mul_overflow(*count, (size_t)(row[n + 1] - '0'), bytes);
    return overflow ? "has a shape that overflows" : NULL;
}

static inline int st__parse_entry(StFile *f, StEntry *e) {
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    size_t offsets[2] = {0, 0}, bytes;
    int seen = 0, n = 0;
    st__expect(f, '{');
    for (const char *key; (key = st__key(f, (size_t)seen));) {
        int i = 0;
        while (i < 3 && strcmp(key, fields[i])) i++;
        if (i == 3 || seen & 1 << i)
            return st__fail(f, "tensor '%s' has %s key '%s'", e->name,
                            i < 3 ? "twice the" : "the unknown", key);
        seen |= 1 << i;
        if (i == 0) e->dtype = st__string(f);
        if (i == 1) e->rank = st__array(f, e->shape, ST_RANK);
        if (i == 2) n = st__array(f, offsets, 2);
    }
    if (f->failed) return -1;
    if (seen != 7 || n != 2)
        return st__fail(f, "tensor '%s' needs dtype, shape and two data_offsets", e->name);
    e->begin = offsets[0];
    e->end = offsets[1];
    const char *wrong = st__measure(e->dtype, e->shape, e->rank, &e->count, &bytes);
    if (wrong) return st__fail(f, "tensor '%s' %s", e->name, wrong);
    if (e->begin > e->end || e->end - e->begin != bytes)
        return st__fail(f, "tensor '%s' needs %zu bytes, its data_offsets are %zu and %zu", e->name,
                        bytes, e->begin, e->end);
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

/* Sort entries or pairs by their strings. Returns a string that comes twice, or NULL. */
static inline const char *st__sort(void *rows, size_t n, size_t size) {
    if (n) qsort(rows, n, size, st__by_name);
    for (char *row = rows; n > 1; n--, row += size)
        if (!st__by_name(row, row + size)) return *(const char **)(void *)row;
    return NULL;
}

/* The header f->text (n bytes) -> entries and metadata. The tensors must fill the data_size bytes
 * after it from end to end, and no name or key may come twice. */
static inline int st__parse(StFile *f, size_t n, size_t data_size) {
    size_t metas = 0, end = 0;
    f->at = f->text + 1;
    f->end = f->text + n;
    if (*f->text != '{') return st__fail(f, "there is no header");
    for (const char *key; (key = st__key(f, f->n + metas));) {
        if (strcmp(key, "__metadata__")) {
            f->entries[f->n] = (StEntry){.name = key};
            if (st__parse_entry(f, &f->entries[f->n++])) return -1;
            continue;
        }
        if (metas++) return st__fail(f, "the header has two __metadata__");
        st__expect(f, '{');
        while ((key = st__key(f, f->n_meta))) {
            f->meta[f->n_meta].key = key;
            f->meta[f->n_meta++].value = st__string(f);
        }
    }
    if (!f->failed) f->at += strspn(f->at, " ");
    if (f->at != f->end) st__bad(f, "something follows the end");
    if (f->failed) return -1;
    if (f->n) qsort(f->entries, f->n, sizeof *f->entries, st__by_offset);
    for (size_t i = 0; i < f->n; end = f->entries[i++].end)
        if (f->entries[i].begin != end)
            return st__fail(f, "tensor '%s' %s", f->entries[i].name,
                            f->entries[i].begin < end ? "overlaps another one"
                                                      : "leaves a hole before it");
    if (end != data_size)
        return st__fail(f, "the tensors take %zu bytes, the file has %zu", end, data_size);
    const char *twice = st__sort(f->entries, f->n, sizeof *f->entries);
    if (twice) return st__fail(f, "two tensors are named '%s'", twice);
    twice = st__sort(f->meta, f->n_meta, sizeof *f->meta);
    return twice ? st__fail(f, "the metadata has '%s' twice", twice) : 0;
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

/* n bytes from an offset; -1 with errno set (0: the file ends before) */
static inline int st__read_at(int fd, void *out, size_t n, size_t offset) {
    for (char *to = out; n;) {
        ssize_t done = pread(fd, to, n, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done == 0) errno = 0;
        if (done <= 0) return -1;
        to += done;
        offset += (size_t)done;
        n -= (size_t)done;
    }
    return 0;
}

/* Compare the checksum. The file is read, not mapped: a bad disk then gives EIO instead of SIGBUS.
 * The key "checksum_kind" beside "checksum" makes damage to either key noticed. */
static inline int st__verify(StFile *f, int fd) {
    enum { PIECE = 1 << 18 };
    const char *stored = st_meta(f, "checksum"), *kind = st_meta(f, "checksum_kind");
    if (!stored && !kind) return 0;
    if (!stored || !kind || strcmp(kind, ST__KIND))
        return st__fail(f, "the checksum is of an unknown kind, or the file is damaged");
    char digits[17], *piece = malloc(PIECE);
    if (!piece) return st__fail_system(f, "cannot verify");
    size_t first = 8 + (size_t)(stored - f->text); /* decoding in place did not move the digits */
    StHash hash = st__hash_start();
    int failed = 0;
    for (size_t at = 0, n; at < f->size && !failed; at += n) {
        n = f->size - at < PIECE ? f->size - at : PIECE;
        failed = st__read_at(fd, piece, n, at);
        for (size_t i = first; i < first + 16; i++)
            if (i >= at && i < at + n) piece[i - at] = '0';
        if (!failed) st__hash_add(&hash, piece, n);
    }
    free(piece);
    if (failed) return st__fail_system(f, "cannot read");
    st__hash_digits(&hash, digits);
    f->verified = strcmp(digits, stored) == 0;
    return f->verified ? 0 : st__fail(f, "checksum does not match: the file is damaged");
}

static inline int st__load(StFile *f, int fd, int verify) {
    struct stat info;
    uint64_t length;
    if (fd < 0 && (errno == ENODEV || errno == EISDIR || errno == ENXIO))
        return st__fail(f, "not a regular file");
    if (fd < 0 || fstat(fd, &info)) return st__fail_system(f, "cannot open");
    if (info.st_size < 8) return st__fail(f, "too short for a safetensors file");
    f->size = (size_t)info.st_size;
    if (st__read_at(fd, &length, 8, 0)) return st__fail_system(f, "cannot read");
    if (length > f->size - 8)
        return st__fail(f, "not a safetensors file, or cut short: its header does not fit in it");
    if (length > ST_HEADER_MAX) return st__fail(f, "the header is too long");

    /* an entry has at least 32 bytes of text, a pair at least 4 */
    size_t n = (size_t)length, entries = n / 32 + 1, pairs = n / 4 + 1;
    f->entries = malloc(entries * sizeof *f->entries + pairs * sizeof *f->meta + n + 1);
    if (!f->entries) return st__fail_system(f, "cannot hold the header");
    f->meta = (StPair *)(f->entries + entries);
    f->text = (char *)(f->meta + pairs);
    f->text[n] = 0;
    if (st__read_at(fd, f->text, n, 8)) return st__fail_system(f, "cannot read");
    if (st__parse(f, n, f->size - 8 - n) || (verify && st__verify(f, fd))) return -1;
    void *map = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return st__fail_system(f, "cannot map");
    f->map = map;
    f->data = f->map + 8 + n;
    return 0;
}

static inline int st__open(StFile *f, const char *path, int verify, char *error, size_t size) {
    *f = (StFile){.path = strdup(path), .error = error, .error_size = size};
    if (!f->path) return base_fail(error, size, -1, "%s: out of memory", path);
    int fd = base_open(path, O_RDONLY), failed = st__load(f, fd, verify), code = errno;
    if (fd >= 0) close(fd);
    if (failed) st_close(f);
    errno = code;
    return failed;
}

/* Open a file for reading; every header that breaks a rule of the format is refused.
 * cost     one pass over a file that carries a checksum; of another only the header is read
 * error    -1, f is closed, and errno is the system's reason, or 0 when the file is to blame */
static inline int st_open(StFile *f, const char *path, char *error, size_t size) {
    return st__open(f, path, 1, error, size);
}

/* Copy an F32 tensor of exactly this number of elements; nothing is converted. */
static inline int st_read_f32(const StFile *f, const char *name, float *out, size_t count,
                              char *error, size_t size) {
    const StEntry *e = st_find(f, name);
    if (!e) return base_fail(error, size, -1, "%s: there is no tensor '%s'", f->path, name);
    if (strcmp(e->dtype, "F32"))
        return base_fail(error, size, -1, "%s: tensor '%s' is %s, expected F32", f->path, name,
                         e->dtype);
    if (e->count != count)
        return base_fail(error, size, -1, "%s: tensor '%s' has %zu elements, expected %zu", f->path,
                         name, e->count, count);
    if (count) memcpy(out, st_data(f, e), e->end - e->begin);
    return 0;
}

/* ------------------------------------------------------------------------------------------------
 * writing */

static inline void st__put_string(FILE *out, const char *before, const char *s) {
    fprintf(out, "%s\"", before);
    for (; *s; s++)
        if ((unsigned char)*s < 0x20)
            fprintf(out, "\\u%04x", (unsigned)*s);
        else
            fprintf(out, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
    fputc('"', out);
}

#define ST__START "{\"__metadata__\":{\"checksum\":\""

/* Length and header of the file (*size bytes, to be freed), or NULL. bytes[i] <- those of tensor i */
static inline char *st__compose(size_t *size, size_t *bytes, const StTensor *t, size_t n,
                                const StPair *meta, size_t n_meta) {
    char *text = NULL;
    size_t end = 0, count;
    FILE *out = open_memstream(&text, size);
    if (!out) return NULL;
    fprintf(out, "%8s" ST__START ST__DIGITS "\",\"checksum_kind\":\"" ST__KIND "\"", "");
    for (size_t i = 0; i < n_meta; i++) {
        st__put_string(out, ",", meta[i].key);
        st__put_string(out, ":", meta[i].value);
    }
    fputc('}', out);
    for (size_t i = 0; i < n; end += bytes[i++]) {
        assert(t[i].rank >= 0 && t[i].rank <= ST_RANK);
        const char *wrong = st__measure(t[i].dtype, t[i].shape, t[i].rank, &count, &bytes[i]);
        assert(!wrong);
        (void)wrong;
        st__put_string(out, ",", t[i].name);
        fprintf(out, ":{\"dtype\":\"%s\",\"shape\":[", t[i].dtype);
        for (int d = 0; d < t[i].rank; d++) fprintf(out, "%s%zu", d ? "," : "", t[i].shape[d]);
        fprintf(out, "],\"data_offsets\":[%zu,%zu]}", end, end + bytes[i]);
    }
    fputc('}', out);
    fflush(out);
    fprintf(out, "%*s", (int)(-*size % 64), ""); /* the tensors begin aligned */
    int lost = ferror(out) | fclose(out);
    uint64_t length = *size - 8;
    if (!lost) return memcpy(text, &length, 8);
    free(text);
    return NULL;
}

/* Write a file, with its checksum, and sync it; -1 with errno set. */
static inline int st__write_file(const char *path, const char *text, size_t size, const StTensor *t,
                                 const size_t *bytes, size_t n) {
    char digits[17];
    StHash hash = st__hash_start();
    unlink(path); /* an interrupted run may have left one */
    int fd = base_open(path, O_WRONLY | O_CREAT | O_EXCL);
    if (fd < 0) return -1;
    int failed = base_write(fd, text, size);
    st__hash_add(&hash, text, size);
    for (size_t i = 0; i < n && !failed; i++) {
        failed = base_write(fd, t[i].data, bytes[i]);
        st__hash_add(&hash, t[i].data, bytes[i]);
    }
    st__hash_digits(&hash, digits);
    failed = failed || lseek(fd, 8 + sizeof ST__START - 1, SEEK_SET) < 0 ||
             base_write(fd, digits, 16) || base_sync(fd);
    int code = errno;
    if (close(fd) && errno != EINTR && !failed) return -1;
    errno = code;
    return failed ? -1 : 0;
}

/* Write n tensors, in the order given, and n_meta pairs to `path`; equal input, equal bytes. The
 * file is written as path.tmp, its header is read back, and it is renamed.
 * keys     "checksum", "checksum_kind" and a tensor named "__metadata__" belong to the format
 * order    with a U8 tensor of odd size last, every tensor stays aligned in the file
 * error    -1; `path` keeps its content and path.tmp is gone. Only when its directory cannot be
 *          synced is the new file in place all the same. Wrong dtypes and shapes are asserted. */
static inline int st_write(const char *path, const StTensor *t, size_t n, const StPair *meta,
                           size_t n_meta, char *error, size_t size) {
    StFile check;
    size_t length = strlen(path), header = 0, *bytes = calloc(n + 1, sizeof *bytes);
    char *temporary = malloc(length + sizeof ".tmp"), *text = NULL;
    if (bytes && temporary) text = st__compose(&header, bytes, t, n, meta, n_meta);
    int failed = !text;
    if (text) {
        sprintf(temporary, "%s.tmp", path);
        failed = st__write_file(temporary, text, header, t, bytes, n);
    }
    if (failed) base_fail(error, size, -1, "%s: cannot write: %s", path, strerror(errno));
    if (!failed && !(failed = st__open(&check, temporary, 0, error, size))) {
        st_close(&check);
        failed = rename(temporary, path);
        if (failed) base_fail(error, size, -1, "%s: cannot replace: %s", path, strerror(errno));
    }
    if (failed && text) unlink(temporary);
    if (!failed) {
        const char *slash = strrchr(path, '/');
        sprintf(temporary, "%.*s", slash && slash > path ? (int)(slash - path) : 1,
                slash ? path : ".");
        failed = base_sync_directory(temporary);
        if (failed)
            base_fail(error, size, -1, "%s: its directory cannot be synced: %s", path,
                      strerror(errno));
    }
    free(bytes);
    free(text);
    free(temporary);
    return failed ? -1 : 0;
}

#endif
