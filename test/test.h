/* test.h - a small test framework: TEST registers itself, CHECK counts failures. One binary, many
 * files; every test in a process of its own. */
#ifndef TEST_H
#define TEST_H
#pragma GCC system_header /* CHECK takes a format or none, which -Wpedantic calls an error */

#ifdef __clang__
#pragma clang diagnostic ignored "-Wgnu-zero-variadic-macro-arguments"
#endif

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

typedef struct Test {
    const char *name;
    void (*run)(void);
    struct Test *next;
    int pid; /* of its process; 0 before it begins, -1 after its end */
    int status;
    FILE *out; /* what it prints */
    double began, seconds;
} Test;

void test_register(Test *test);
/* Note a failure of the running test; prints file, line, what was checked and the text. */
__attribute__((format(printf, 4, 5))) void test_note(const char *file, int line, const char *what,
                                                     const char *format, ...);
#define test_fail(file, line, ...) test_note(file, line, "", __VA_ARGS__)

#define TEST(title)                                                                                \
    static void title(void);                                                                       \
    __attribute__((constructor)) static void title##_registers(void) {                             \
        static Test test = {.name = #title, .run = title};                                         \
        test_register(&test);                                                                      \
    }                                                                                              \
    static void title(void)

/* CHECK(condition) or CHECK(condition, "seed %d", seed): goes on after a failure. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) test_note(__FILE__, __LINE__, #condition, "" __VA_ARGS__);               \
    } while (0)

/* |a - b| <= tolerance * max(1, |b|) */
#define CHECK_NEAR(a, b, tolerance) test_near(__FILE__, __LINE__, #a, a, b, tolerance)
void test_near(const char *file, int line, const char *what, double a, double b, double tolerance);

/* Deterministic numbers for tests. */
uint64_t test_hash(uint64_t key, uint64_t index);
double test_uniform(uint64_t key, uint64_t index);       /* in [0, 1) */
double test_normal(uint64_t key, uint64_t index);        /* mean 0, deviation 1 */
void test_fill_normal(float *x, size_t n, uint64_t key); /* x (n) <- normal numbers */

void *test_shared(size_t size); /* zeros, in memory that forked processes share */

/* A folder of the running test's own, empty at its start and removed after it. */
const char *test_folder(void);
/* "folder/format..." in one of eight rotating buffers. */
__attribute__((format(printf, 1, 2))) const char *test_path(const char *format, ...);
void test_write(const char *path, const void *data, size_t size); /* a file with these bytes */
char *test_read(const char *path,
                size_t *size); /* its bytes and a NUL; NULL when it cannot be read */

/* A command run by sh in the repository's root. */
typedef struct TestResult {
    int status;      /* exit status, or 128 + signal */
    char out[65536]; /* stdout and stderr, cut off at the end */
    char err[65536];
} TestResult;
/* Runs the command; the result is valid until the second next call. */
__attribute__((format(printf, 1, 2))) const TestResult *test_command(const char *format, ...);

#endif
