/* base.h - what the files of lib/ share: error sentences, hashing, memory, files, text. POSIX, MIT.

     errors    base_fail writes one sentence and returns the code
     hashing   a value is a hash of a key and a counter: nothing to save, nothing out of step
     memory    base_allocate returns zeroed, aligned memory; an Arena splits one block into pieces
     files     calls are repeated when a signal interrupts them; only regular files are opened
     text      text from users and files is made harmless before a terminal sees it */
#ifndef BASE_H
#define BASE_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BASE_PATH = 4096, BASE_HUGE_PAGE = 1 << 21 };

/* Write a sentence into error (size bytes) and return the code. */
__attribute__((format(printf, 4, 5))) static inline int
base_fail(char *error, size_t size, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return code;
}

/* splitmix64's finaliser (Steele et al. 2014) of a key and a counter */
static inline uint64_t base_hash(uint64_t key, uint64_t index) {
    uint64_t x = key + 0x9e3779b97f4a7c15u * (index + 1);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* a number in [0, 1) with 53 random bits */
static inline double base_uniform(uint64_t key, uint64_t index) {
    return (double)(base_hash(key, index) >> 11) * 0x1p-53;
}

/* a normal number (Box and Muller 1958) */
static inline double base_normal(uint64_t key, uint64_t index) {
    double u = base_uniform(key, 2 * index), v = base_uniform(key, 2 * index + 1);
    return sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
}

/* seconds of a clock that only goes forward */
static inline double base_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------------------------------------
 * memory */

/* Bytes that base_allocate takes for so many: whole cache lines, or whole huge pages. */
static inline size_t base_allocated(size_t bytes) {
    size_t unit = bytes >= BASE_HUGE_PAGE ? BASE_HUGE_PAGE : 64;
    return bytes ? (bytes + unit - 1) / unit * unit : unit;
}

/* Zeroed memory, aligned to 64 bytes, or NULL; free returns it. Large blocks ask for huge pages,
 * or TLB misses dominate. */
static inline void *base_allocate(size_t bytes) {
    int huge = bytes >= BASE_HUGE_PAGE;
    size_t all = base_allocated(bytes);
    void *p = all < bytes ? NULL : aligned_alloc(huge ? BASE_HUGE_PAGE : 64, all);
    if (!p) return NULL;
#ifdef MADV_HUGEPAGE
    if (huge) madvise(p, all, MADV_HUGEPAGE);
#endif
    return memset(p, 0, all);
}

/* One block that is handed out in pieces; without a block, the arena only counts bytes. */
typedef struct Arena {
    char *block;
    size_t used;
} Arena;

/* The next piece, aligned to 64 bytes; NULL while the arena only measures. */
static inline void *arena_take(Arena *a, size_t bytes) {
    void *piece = a->block ? a->block + a->used : NULL;
    a->used += (bytes + 63) / 64 * 64;
    return piece;
}

/* ------------------------------------------------------------------------------------------------
 * files */

/* A descriptor of a regular file; never waits for a FIFO. Returns -1 with errno set (ENODEV: not a
 * regular file). */
static inline int base_open(const char *path, int flags) {
    struct stat s;
    int fd;
    do fd = open(path, flags | O_NONBLOCK | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) return -1;
    if (fstat(fd, &s) == 0 && S_ISREG(s.st_mode)) return fd;
    close(fd);
    errno = S_ISDIR(s.st_mode) ? EISDIR : ENODEV;
    return -1;
}

/* All bytes of data to a descriptor; returns 0, or -1 with errno set. */
static inline int base_write(int fd, const void *data, size_t n) {
    const char *at = data;
    while (n) {
        ssize_t done = write(fd, at, n < 1 << 30 ? n : 1 << 30);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        at += done;
        n -= (size_t)done;
    }
    return 0;
}

/* What was written survives a power cut; file systems that cannot promise it are not an error. */
static inline int base_sync(int fd) {
    while (fsync(fd))
        if (errno != EINTR) return errno == EINVAL || errno == ENOTSUP || errno == EROFS ? 0 : -1;
    return 0;
}

/* So do the names in a directory. */
static inline int base_sync_directory(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    int failed = base_sync(fd), code = errno;
    close(fd);
    errno = code;
    return failed;
}

/* ------------------------------------------------------------------------------------------------
 * text */

/* Bytes of the UTF-8 character that text (n bytes) begins with; 0 when it begins with none. */
static inline size_t base_character(const char *text, size_t n, uint32_t *code) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}; /* longer forms are not UTF-8 */
    const unsigned char *p = (const unsigned char *)text;
    if (!n || (*p >= 0x80 && *p < 0xc0) || *p > 0xf4) return 0;
    size_t length = *p < 0x80 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
    uint32_t c = length == 1 ? *p : *p & (0x7fu >> length);
    if (length > n) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (p[i] & 0x3f);
    }
    if (c < least[length] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *code = c;
    return length;
}

/* Is all of the text UTF-8? */
static inline int base_is_utf8(const char *text) {
    uint32_t code;
    size_t n = strlen(text), length = 1;
    for (size_t at = 0; at < n && length; at += length)
        length = base_character(text + at, n - at, &code);
    return length > 0;
}

/* Bytes of the first character if a terminal may have it: neither a control character nor one that
 * turns the direction of writing; else 0. */
static inline size_t base_printable(const char *text, size_t n) {
    uint32_t c = 0;
    size_t length = base_character(text, n, &c);
    int control = c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200e && c <= 0x200f) ||
                  (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
    return control ? 0 : length;
}

/* The text itself, with '?' in place of what a terminal must not have. */
static inline char *base_harmless(char *text) {
    for (size_t i = 0, n, size = strlen(text); i < size; i += n ? n : 1) {
        n = base_printable(text + i, size - i);
        if (!n) text[i] = '?';
    }
    return text;
}

#endif
