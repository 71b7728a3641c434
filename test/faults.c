/* faults.c - makes the n-th call of train_gpt to the outside world fail. For test/faults.sh.

   Linked in with -Wl,--wrap=NAME for each row below, so that every call in train_gpt's own sources
   passes here first. Calls are counted over all threads and processes of a run.

     FAULT_N=n        the n-th call that can fail in this way does; without it none
     FAULT_KIND=      error   the call fails, with one of the two reasons of its row in turn
                      eintr   a signal came before anything was done: the call must be repeated
                      short   write takes half of what it was given
     FAULT_LOG=PATH   gets a line "n NAME ADDRESS": the call that failed
     FAULT_TRACE=PATH gets such a line for every call that could have failed */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Fault {
    _Atomic long calls; /* in memory that forked workers share */
    long n;
    char kind; /* 'e' of error, 'i' of eintr, 's' of short, 0 for none */
    int log, trace;
} Fault;

static Fault *fault_state;

void *__real_mmap(void *, size_t, int, int, int, off_t);
int __real_open(const char *, int, ...);
ssize_t __real_write(int, const void *, size_t);

/* before main, while there is one thread */
__attribute__((constructor)) static void fault_start(void) {
    const char *n = getenv("FAULT_N"), *kind = getenv("FAULT_KIND"), *log = getenv("FAULT_LOG"),
               *trace = getenv("FAULT_TRACE");
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    if (!kind) return;
    Fault *f =
        __real_mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (f == MAP_FAILED) abort();
    f->n = n ? strtol(n, NULL, 10) : 0;
    f->kind = strcmp(kind, "eintr") == 0 ? 'i' : *kind;
    f->log = log ? __real_open(log, flags, 0666) : -1;
    f->trace = trace ? __real_open(trace, flags, 0666) : -1;
    fault_state = f;
}

/* Is it this call's turn? Counts it. */
static int fault_due(char kind, const char *name, const void *site) {
    Fault *f = fault_state;
    char line[96];
    if (!f || f->kind != kind) return 0;
    long call = atomic_fetch_add(&f->calls, 1) + 1;
    int due = call == f->n, to = due ? f->log : f->trace, n, before = errno;
    n = snprintf(line, sizeof line, "%ld %s %p\n", call, name, site);
    if (to >= 0 && __real_write(to, line, (size_t)n) != n) abort();
    errno = before;
    return due;
}

/* The reason for failing, or 0: first and second take turns. */
static int fault_error(const char *name, const void *site, int first, int second) {
    if (!fault_due('e', name, site)) return 0;
    return errno = fault_state->n % 2 ? first : second;
}

static int fault_interrupted(const char *name, const void *site) {
    if (!fault_due('i', name, site)) return 0;
    return errno = EINTR;
}

#define SITE __builtin_return_address(0)

/* name(parameters) returns `failure` and sets errno */
#define FAIL(type, name, parameters, arguments, failure, first, second)                            \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        return fault_error(#name, SITE, first, second) ? (failure) : __real_##name arguments;      \
    }

/* the same, and signals may interrupt it */
#define FAIL_OR_INTERRUPT(type, name, parameters, arguments, failure, first, second)               \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        int failed = fault_interrupted(#name, SITE) || fault_error(#name, SITE, first, second);    \
        return failed ? (failure) : __real_##name arguments;                                       \
    }

/* closes, and then says that something was lost */
#define FAIL_LATE(type, name, parameters, arguments, failure, first, second)                       \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        type result = __real_##name arguments;                                                     \
        return fault_error(#name, SITE, first, second) ? (failure) : result;                       \
    }

/* writes nothing and leaves the stream's error mark, as libc does; a lost message is no fault */
#define FAIL_STREAM(type, name, parameters, arguments, stream, failure)                            \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        if ((stream) == stderr || !fault_error(#name, SITE, ENOSPC, EIO))                          \
            return __real_##name arguments;                                                        \
        return fault_mark(stream), (failure);                                                      \
    }

/* reads nothing and leaves the stream's error mark */
#define FAIL_READER(type, name, parameters, arguments, stream, failure)                            \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        if (!fault_error(#name, SITE, EIO, EIO)) return __real_##name arguments;                   \
        return fault_mark(stream), (failure);                                                      \
    }

/* glibc's and musl's own mark; there is no portable way to set it */
static void fault_mark(FILE *stream) {
#ifdef __GLIBC__
    if (stream) stream->_flags |= 0x20;
#else
    (void)stream;
#endif
}

// clang-format off
FAIL(void *, malloc, (size_t n), (n), NULL, ENOMEM, ENOMEM)
FAIL(void *, calloc, (size_t n, size_t m), (n, m), NULL, ENOMEM, ENOMEM)
FAIL(void *, realloc, (void *p, size_t n), (p, n), NULL, ENOMEM, ENOMEM)
FAIL(void *, aligned_alloc, (size_t a, size_t n), (a, n), NULL, ENOMEM, ENOMEM)
FAIL(char *, strdup, (const char *s), (s), NULL, ENOMEM, ENOMEM)
FAIL(void *, mmap, (void *p, size_t n, int a, int b, int fd, off_t at), (p, n, a, b, fd, at), MAP_FAILED, ENOMEM, ENODEV)
FAIL(int, madvise, (void *p, size_t n, int a), (p, n, a), -1, EINVAL, ENOMEM)

FAIL(pid_t, fork, (void), (), -1, EAGAIN, ENOMEM)
FAIL(int, pthread_create, (pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *p), (t, a, f, p), errno, EAGAIN, ENOMEM)

FAIL(FILE *, fopen, (const char *path, const char *mode), (path, mode), NULL, EMFILE, EACCES)
FAIL(FILE *, fdopen, (int fd, const char *mode), (fd, mode), NULL, ENOMEM, EMFILE)
FAIL(FILE *, open_memstream, (char **text, size_t *size), (text, size), NULL, ENOMEM, ENOMEM)
FAIL(DIR *, opendir, (const char *path), (path), NULL, EMFILE, EACCES)
FAIL(struct dirent *, readdir, (DIR *d), (d), NULL, EIO, EIO)
FAIL(int, glob, (const char *p, int flags, int (*f)(const char *, int), glob_t *g), (p, flags, f, g), GLOB_NOSPACE, ENOMEM, ENOMEM)
FAIL(int, mkdir, (const char *path, mode_t mode), (path, mode), -1, ENOSPC, EROFS)
FAIL(int, rmdir, (const char *path), (path), -1, EIO, EROFS)
FAIL(int, rename, (const char *from, const char *to), (from, to), -1, ENOSPC, EIO)
FAIL(int, symlink, (const char *to, const char *path), (to, path), -1, ENOSPC, EROFS)
FAIL(ssize_t, readlink, (const char *path, char *to, size_t n), (path, to, n), -1, EIO, EACCES)
FAIL(int, unlink, (const char *path), (path), -1, EIO, EROFS)
FAIL(int, stat, (const char *path, struct stat *s), (path, s), -1, EIO, EACCES)
FAIL(int, lstat, (const char *path, struct stat *s), (path, s), -1, EIO, EACCES)
FAIL(int, fstat, (int fd, struct stat *s), (fd, s), -1, EIO, ENOMEM)
FAIL(int, access, (const char *path, int mode), (path, mode), -1, EIO, EACCES)
FAIL_LATE(int, fclose, (FILE *f), (f), EOF, ENOSPC, EIO)

FAIL_OR_INTERRUPT(int, fsync, (int fd), (fd), -1, EIO, ENOSPC)

FAIL_STREAM(int, fflush, (FILE *f), (f), f, EOF)
FAIL_STREAM(int, fputs, (const char *s, FILE *f), (s, f), f, EOF)
FAIL_STREAM(int, fputc, (int c, FILE *f), (c, f), f, EOF)
FAIL_STREAM(int, putc, (int c, FILE *f), (c, f), f, EOF)
FAIL_STREAM(int, putchar, (int c), (c), stdout, EOF)
FAIL_STREAM(int, puts, (const char *s), (s), stdout, EOF)
FAIL_STREAM(size_t, fwrite, (const void *p, size_t m, size_t n, FILE *f), (p, m, n, f), f, 0)
FAIL_READER(char *, fgets, (char *s, int n, FILE *f), (s, n, f), f, NULL)
FAIL_READER(int, getc, (FILE *f), (f), f, EOF)
// clang-format on

/* ------------------------------------------------------------------------------------------------
 * rows that need words of their own */

int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
    va_end(list);
    int failed = fault_interrupted("open", SITE) ||
                 fault_error("open", SITE, EMFILE, flags & O_CREAT ? EROFS : EIO);
    return failed ? -1 : __real_open(path, flags, mode);
}

ssize_t __wrap_write(int fd, const void *bytes, size_t n);
ssize_t __wrap_write(int fd, const void *bytes, size_t n) {
    if (fault_interrupted("write", SITE) || fault_error("write", SITE, ENOSPC, EIO)) return -1;
    if (n > 1 && fault_due('s', "write", SITE)) n /= 2;
    return __real_write(fd, bytes, n);
}

/* what is closed stays closed, even when a signal interrupts */
int __real_close(int);
int __wrap_close(int fd);
int __wrap_close(int fd) {
    int result = __real_close(fd);
    return fault_interrupted("close", SITE) || fault_error("close", SITE, EIO, ENOSPC) ? -1
                                                                                       : result;
}

pid_t __real_waitpid(pid_t, int *, int);
pid_t __wrap_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options) {
    return fault_interrupted("waitpid", SITE) ? -1 : __real_waitpid(pid, status, options);
}

int __wrap_printf(const char *format, ...);
int __wrap_printf(const char *format, ...) {
    if (fault_error("printf", SITE, ENOSPC, EIO)) return fault_mark(stdout), -1;
    va_list list;
    va_start(list, format);
    int n = vprintf(format, list);
    va_end(list);
    return n;
}

int __wrap_fprintf(FILE *f, const char *format, ...);
int __wrap_fprintf(FILE *f, const char *format, ...) {
    if (f != stderr && fault_error("fprintf", SITE, ENOSPC, EIO)) return fault_mark(f), -1;
    va_list list;
    va_start(list, format);
    int n = vfprintf(f, format, list);
    va_end(list);
    return n;
}
