/* fuzz.h - what the fuzz targets share. C11, clang's libFuzzer, MIT licence.

   A target is a file of this folder: LLVMFuzzerTestOneInput takes arbitrary bytes to one reader of
   the project and checks with FUZZ_CHECK what the reader promises; the sanitizers watch the rest.
   `make fuzz` builds and runs all of them, from the inputs in seeds/TARGET (make_seeds.c). */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A promise that is broken ends the run; libFuzzer keeps the input. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            static const char fuzz_said[] = __FILE__ ": not so: " #condition "\n";                 \
            if (write(2, fuzz_said, sizeof fuzz_said - 1)) abort();                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* An input, eaten from the front; behind its end come zeros. */
typedef struct FuzzInput {
    const uint8_t *at;
    size_t left;
} FuzzInput;

static inline unsigned fuzz_byte(FuzzInput *in) { return in->left ? in->left--, *in->at++ : 0; }

/* The path of a file with these bytes: always the same file, in memory. */
static inline const char *fuzz_file(const void *data, size_t size) {
    static char path[40];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size) abort();
    return path;
}

/* A file is "mapped" into a block of exactly its size, so that a read behind its end is seen. */
static inline void *fuzz_mmap(void *at, size_t size, int protection, int flags, int fd,
                              off_t from) {
    char *copy = fd < 0 ? NULL : malloc(size);
    if (!copy) return mmap(at, size, protection, flags, fd, from);
    if (pread(fd, copy, size, from) != (ssize_t)size) abort();
    return copy;
}
static inline int fuzz_munmap(void *at, size_t size) { return (void)size, free(at), 0; }
#define mmap fuzz_mmap
#define munmap fuzz_munmap

/* The input's next bytes up to a newline, or all, as a string in text; returns its length. */
static inline size_t fuzz_line(FuzzInput *in, char *text, size_t size) {
    size_t n = 0;
    for (unsigned c; in->left && (c = fuzz_byte(in)) != '\n';)
        if (n + 1 < size) text[n++] = (char)c;
    text[n] = 0;
    return n;
}

/* A sentence for the user: one line that holds no control character, unless the user typed it. */
static inline int fuzz_is_sentence(const char *text, const char *typed) {
    for (const char *c = typed; *c; c++)
        if ((unsigned char)*c < 32) return *text != 0;
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c < 32) return 0;
    return *text != 0;
}

#endif
