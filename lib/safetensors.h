/* safetensors.h - named tensors <-> one file, replaced atomically, verified. C11 + POSIX, MIT.

     file      u64 length | JSON header, padded with spaces | tensors, back to back, little-endian
     header    {"__metadata__":{"key":"text",...},
                "name":{"dtype":"F32","shape":[m,n],"data_offsets":[begin,end]},...}
     source    github.com/huggingface/safetensors

   Files of other writers are read, and other readers load what is written here. A file written here
   carries a checksum in its metadata, so that a flipped bit or a missing byte is noticed.

   API      st_write         file from tensors and metadata; after a failure the old file stands
            st_open          read a file, check its header, verify its checksum
            st_find          a tensor's entry, or NULL
            st_data          where its bytes are (perhaps unaligned)
            st_meta          a metadata value, or NULL
            st_read_f32      copy an F32 tensor of a known number of elements
            st_close         also for an StFile of zeros, or after a failed st_open
   MEMORY   The caller owns what goes into st_write. What an StFile gives out lives until st_close:
            the whole file, and a few times its header.
   THREADS  Any thread may read an open StFile. Two writers of one path must take turns.
   ERRORS   0, or -1 and a sentence that names the path and the reason.
   LIMITS   Little-endian hosts, ST_RANK dimensions, headers of ST_HEADER_MAX bytes. Text is UTF-8
            without NUL. Escaped UTF-16 surrogates are refused. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "base.h"

#include <assert.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h stores tensors as they lie in memory and needs a little-endian host"
#endif

enum { ST_HEADER_MAX = 100000000, ST_RANK = 4 };

typedef struct StTensor {
    const char *name, *dtype; /* "F32", "U64", "U8", ... as the format spells them */
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
    size_t count, begin, end; /* elements; bytes from the start of the tensors */
} StEntry;

typedef struct StFile {
    StEntry *entries; /* sorted by name; this allocation also holds meta and text */
    StPair *meta;     /* sorted by key */
    size_t n, n_meta;
    int verified;              /* 1: the file carries a checksum, and it matched */
    unsigned char *map;        /* the whole file */
    const unsigned char *data; /* its tensors */
    size_t size;               /* of the whole file, bytes */
    char *path, *text;         /* text: the header, its strings decoded in place */
    char *at, *end, *error;    /* while st_open runs: the parser's place; where a failure is told */
    size_t error_size;
    int failed;
} StFile;

/* Tell a failure, only the first one; errno becomes `code`: the system's reason, or 0 when the file
 * is to blame. */
__attribute__((format(printf, 3, 4))) static inline int st__fail(StFile *f, int code,
                                                                 const char *format, ...) {
    char reason[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    if (!f->failed)
        base_fail(f->error, f->error_size, -1, code ? "%s: %s: %s" : "%s: %s", f->path, reason,
                  strerror(code));
    if (!f->failed) base_harmless(f->error);
    errno = code;
    return f->failed = -1;
}

/* ------------------------------------------------------------------------------------------------
 * checksum "st64": four lanes of 8-byte words. Each step is a bijection of its lane and of its
 * word, and so is the final mixing. Damage inside one word is therefore always noticed, other
 * damage with probability 1 - 2^-64. It guards against accidents, not against forgery. */

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
            memcpy(h->block, p, 32); /* of a constant size, it is two moves */
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
    st__fail(f, 0, "byte %zu of the header: %s", (size_t)(f->at - f->text), reason);
    f->at = f->end;
}

/* Read the character c if it comes next, or fail where it must come. */
static inline int st__read(StFile *f, char c, int must) {
    char reason[] = "expected ' '";
    reason[10] = c;
    f->at += strspn(f->at, " \t\n\r");
    int found = *f->at == c && f->at < f->end;
    if (found) f->at++;
    if (!found && must) st__bad(f, reason);
    return found;
}

/* Does an object or array go on after its first n elements? */
static inline int st__more(StFile *f, char close, size_t n) {
    if (st__read(f, close, 0)) return 0;
    if (n) st__read(f, ',', 1);
    return !f->failed;
}

static inline const char *st__string(StFile *f) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    st__read(f, '"', 1);
    char *start = f->at, *to = f->at, *found, digits[5] = "";
    while (*f->at != '"' && !f->failed) {
        if (f->at == f->end) {
            st__bad(f, "a string does not end");
        } else if ((unsigned char)*f->at < 0x20) {
            st__bad(f, "a control character in a string");
        } else if (*f->at != '\\') {
            *to++ = *f->at++;
        } else if (f->at[1] && (found = strchr(names, f->at[1])) != NULL) {
            *to++ = values[found - names];
            f->at += 2;
        } else if (f->at[1] != 'u' || strspn(f->at + 2, "0123456789abcdefABCDEF") < 4) {
            st__bad(f, "unknown escape in a string");
        } else {
            unsigned code = (unsigned)strtoul(memcpy(digits, f->at + 2, 4), NULL, 16);
            if (!code) st__bad(f, "NUL in a string");
            if (code >> 11 == 27) st__bad(f, "an escaped UTF-16 surrogate is not supported");
            if (!f->failed) f->at += 6;
            if (code >= 0x800) *to++ = (char)(0xe0 | code >> 12);
            if (code >= 0x80) *to++ = (char)((code < 0x800 ? 0xc0 : 0x80) | (code >> 6 & 0x3f));
            *to++ = (char)(code >= 0x80 ? 0x80 | (code & 0x3f) : code);
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
    const char *key = st__more(f, '}', n) ? st__string(f) : NULL;
    if (key) st__read(f, ':', 1);
    return f->failed ? NULL : key;
}

/* Read an array of at most `max` numbers; returns how many there are. */
static inline int st__array(StFile *f, size_t *values, int max) {
    int n = 0;
    st__read(f, '[', 1);
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
    st__read(f, '{', 1);
    for (const char *key; (key = st__key(f, (size_t)seen));) {
        int i = 0;
        while (i < 3 && strcmp(key, fields[i])) i++;
        if (i == 3 || seen & 1 << i)
            return st__fail(f, 0, "tensor '%s' has %s key '%s'", e->name,
                            i < 3 ? "twice the" : "the unknown", key);
        seen |= 1 << i;
        if (i == 0) e->dtype = st__string(f);
        if (i == 1) e->rank = st__array(f, e->shape, ST_RANK);
        if (i == 2) n = st__array(f, offsets, 2);
    }
    if (f->failed) return -1;
    if (seen != 7 || n != 2)
        return st__fail(f, 0, "tensor '%s' needs dtype, shape and two data_offsets", e->name);
    e->begin = offsets[0];
    e->end = offsets[1];
    const char *wrong = st__measure(e->dtype, e->shape, e->rank, &e->count, &bytes);
    if (wrong) return st__fail(f, 0, "tensor '%s' %s", e->name, wrong);
    if (e->begin <= e->end && e->end - e->begin == bytes) return 0;
    return st__fail(f, 0, "tensor '%s' needs %zu bytes, its data_offsets are %zu and %zu", e->name,
                    bytes, e->begin, e->end);
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

/* A header (n bytes) -> entries and metadata. The tensors must fill the data_size bytes after it,
 * end to end, and no name or key may come twice. */
static inline int st__parse(StFile *f, const void *header, size_t n, size_t data_size) {
    /* an entry has at least 32 bytes of text, a pair at least 4 */
    size_t entries = n / 32 + 1, pairs = n / 4 + 1, metas = 0, end = 0;
    f->entries = malloc(entries * sizeof *f->entries + pairs * sizeof *f->meta + n + 1);
    if (!f->entries) return st__fail(f, ENOMEM, "cannot hold the header");
    f->meta = (StPair *)(f->entries + entries);
    f->text = memcpy(f->meta + pairs, header, n);
    f->text[n] = 0;
    f->at = f->text + 1;
    f->end = f->text + n;
    if (*f->text != '{') return st__fail(f, 0, "there is no header");
    for (const char *key; (key = st__key(f, f->n + metas));) {
        if (strcmp(key, "__metadata__")) {
            f->entries[f->n] = (StEntry){.name = key};
            if (st__parse_entry(f, &f->entries[f->n++])) return -1;
            continue;
        }
        if (metas++) return st__fail(f, 0, "the header has two __metadata__");
        st__read(f, '{', 1);
        while ((key = st__key(f, f->n_meta))) {
            f->meta[f->n_meta].key = key;
            f->meta[f->n_meta++].value = st__string(f);
        }
    }
    if (!f->failed) f->at += strspn(f->at, " ");
    if (f->at != f->end) st__bad(f, "something follows the end");
    if (f->failed) return -1;
    if (f->n) qsort(f->entries, f->n, sizeof *f->entries, st__by_offset);
    for (const StEntry *e = f->entries; e < f->entries + f->n; end = e++->end)
        if (e->begin != end)
            return st__fail(f, 0, "tensor '%s' %s", e->name,
                            e->begin < end ? "overlaps another one" : "leaves a hole before it");
    if (end != data_size)
        return st__fail(f, 0, "the tensors take %zu bytes, the file has %zu", end, data_size);
    const char *name = st__sort(f->entries, f->n, sizeof *f->entries);
    const char *key = st__sort(f->meta, f->n_meta, sizeof *f->meta);
    if (name) return st__fail(f, 0, "two tensors are named '%s'", name);
    return key ? st__fail(f, 0, "the metadata has '%s' twice", key) : 0;
}

/* ------------------------------------------------------------------------------------------------
 * reading */

static inline void st_close(StFile *f) {
    free(f->map);
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

/* Compare the checksum. The key "checksum_kind" beside it makes damage to either key noticed. */
static inline int st__verify(StFile *f) {
    const char *stored = st_meta(f, "checksum"), *kind = st_meta(f, "checksum_kind");
    char digits[17] = "";
    if (!stored && !kind) return 0;
    if (!stored || !kind || strcmp(kind, ST__KIND))
        return st__fail(f, 0, "the checksum is of an unknown kind, or the file is damaged");
    if (strlen(stored) == 16) {
        size_t first = 8 + (size_t)(stored - f->text); /* decoding did not move the digits */
        StHash hash = st__hash_start();
        st__hash_add(&hash, f->map, first);
        st__hash_add(&hash, ST__DIGITS, 16);
        st__hash_add(&hash, f->map + first + 16, f->size - first - 16);
        st__hash_digits(&hash, digits);
    }
    f->verified = strcmp(digits, stored) == 0 && *stored;
    return f->verified ? 0 : st__fail(f, 0, "checksum does not match: the file is damaged");
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

/* Read a file; every header that breaks a rule of the format is refused.
 * error    -1, f is closed, and errno is the system's reason, or 0 when the file is to blame */
static inline int st_open(StFile *f, const char *path, char *error, size_t size) {
    struct stat info = {0};
    size_t n = 0; /* bytes of the header */
    *f = (StFile){.path = strdup(path), .error = error, .error_size = size};
    if (!f->path) return base_fail(error, size, -1, "%s: out of memory", path);
    int fd = base_open(path, O_RDONLY);
    if (fd < 0 && (errno == ENODEV || errno == EISDIR || errno == ENXIO))
        st__fail(f, 0, "not a regular file");
    else if (fd < 0 || fstat(fd, &info))
        st__fail(f, errno, "cannot open");
    else if (info.st_size < 8)
        st__fail(f, 0, "too short for a safetensors file");
    else if (st__read_at(fd, &n, 8, 0))
        st__fail(f, errno, "cannot read");
    else if (n > (size_t)info.st_size - 8)
        st__fail(f, 0, "not a safetensors file, or cut short: its header does not fit in it");
    else if (n > ST_HEADER_MAX)
        st__fail(f, 0, "the header is too long");
    else if (!(f->map = base_allocate(f->size = (size_t)info.st_size)))
        st__fail(f, ENOMEM, "cannot be held in memory");
    else if (st__read_at(fd, f->map, f->size, 0))
        st__fail(f, errno, "cannot read");
    else if (!st__parse(f, f->map + 8, n, f->size - 8 - n) && !st__verify(f))
        f->data = f->map + 8 + n;
    int code = errno;
    if (fd >= 0) close(fd);
    if (!f->failed) return 0;
    st_close(f);
    errno = code;
    return -1;
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

/* Length and header (*size bytes, to be freed) of a file, or NULL. bytes[i] <- those of tensor i */
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
    int fd = base_open(path, O_WRONLY | O_CREAT | O_EXCL), failed = fd < 0;
    for (size_t i = 0; i <= n && !failed; i++) { /* the header, then the tensors */
        const void *data = i ? t[i - 1].data : text;
        size_t length = i ? bytes[i - 1] : size;
        failed = base_write(fd, data, length);
        st__hash_add(&hash, data, length);
    }
    st__hash_digits(&hash, digits);
    failed = failed || lseek(fd, 8 + sizeof ST__START - 1, SEEK_SET) < 0 ||
             base_write(fd, digits, 16) || base_sync(fd);
    int code = errno;
    if (fd >= 0 && close(fd) && errno != EINTR && !failed) return -1;
    errno = code;
    return failed ? -1 : 0;
}

/* Write n tensors, in the order given, and n_meta pairs to `path`; equal input, equal bytes. A file
 * that st_open would refuse is not written. Any other is path.tmp until it is synced.
 * keys     "checksum", "checksum_kind" and a tensor named "__metadata__" belong to the format
 * order    with a U8 tensor of odd size last, every tensor stays aligned in the file
 * error    -1; `path` keeps its content and path.tmp is gone. Only when its directory cannot be
 *          synced is the new file in place all the same. Wrong dtypes and shapes are asserted. */
static inline int st_write(const char *path, const StTensor *t, size_t n, const StPair *meta,
                           size_t n_meta, char *error, size_t size) {
    StFile check = {.path = strdup(path), .error = error, .error_size = size};
    size_t header = 0, all = 0, *bytes = calloc(n + 1, sizeof *bytes);
    char *name = malloc(strlen(path) + sizeof ".tmp"), *text = NULL, *slash;
    const char *wrong = "cannot write"; /* NULL: it is told */
    if (bytes && name && check.path) text = st__compose(&header, bytes, t, n, meta, n_meta);
    for (size_t i = 0; i < n && text; i++) all += bytes[i];
    if (text && st__parse(&check, text + 8, header - 8, all)) wrong = NULL;
    int failed = !text || !wrong;
    if (!failed) {
        sprintf(name, "%s.tmp", path);
        failed = st__write_file(name, text, header, t, bytes, n);
        if (!failed && (failed = rename(name, path)) != 0) wrong = "cannot replace";
        int code = errno;
        if (failed) unlink(name);
        errno = code;
    }
    if (!failed) {
        slash = strrchr(strcpy(name, path), '/');
        if (slash) slash[slash == name] = 0; /* its directory */
        failed = base_sync_directory(slash ? name : ".");
        wrong = "its directory cannot be synced";
    }
    if (failed && wrong) base_fail(error, size, -1, "%s: %s: %s", path, wrong, strerror(errno));
    st_close(&check);
    free(bytes);
    free(text);
    free(name);
    return failed ? -1 : 0;
}

#endif
