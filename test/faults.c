/* faults.c - makes the n-th call of a program to the outside world fail. For test/faults.sh.

   Linked in with -Wl,--wrap=NAME for every name below, so that the calls in the program's own
   sources come here first. Calls are counted over all threads and processes of a run.

     FAULT_KIND=      error   the call fails, for one of the two reasons of its row in turn
                      eintr   a signal interrupts it before anything is done: it must be repeated
                      short   write, read and pread take half of what was asked for
     FAULT_N=n        the n-th call that can fail in this way does
     FAULT_LOG=PATH   gets a line "n NAME ADDRESS" of it; with n = 0, of every call that could fail
 */
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
    char kind; /* 'e' of error, 'i' of eintr, 's' of short */
    int log;
} Fault;

static Fault *fault_state; /* NULL: no call fails */
void *__real_mmap(void *, size_t, int, int, int, off_t);
int __real_open(const char *, int, mode_t);
ssize_t __real_write(int, const void *, size_t);

/* before main, while there is one thread */
__attribute__((constructor)) static void fault_start(void) {
    const char *n = getenv("FAULT_N"), *kind = getenv("FAULT_KIND"), *log = getenv("FAULT_LOG");
    if (!n || !kind || !log) return;
    Fault *f =
        __real_mmap(NULL, sizeof *f, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (f == MAP_FAILED) abort();
    f->n = strtol(n, NULL, 10);
    f->kind = strcmp(kind, "eintr") == 0 ? 'i' : *kind;
    f->log = __real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    fault_state = f;
}

/* Count a call that can fail in this way; is it the one that has to? */
static int fault_due(char kind, const char *name, const void *site) {
    Fault *f = fault_state;
    char line[96];
    if (!f || f->kind != kind) return 0;
    long call = atomic_fetch_add(&f->calls, 1) + 1;
    if (f->n && call != f->n) return 0;
    int before = errno, n = snprintf(line, sizeof line, "%ld %s %p\n", call, name, site);
    if (__real_write(f->log, line, (size_t)n) != n) abort();
    errno = before;
    return f->n != 0;
}

/* Does the call fail? Sets errno: the first and the second reason take turns. */
static int fault(const char *name, const void *site, int interruptible, int first, int second) {
    int code = 0;
    if (interruptible && fault_due('i', name, site)) code = EINTR;
    if (!code && first && fault_due('e', name, site)) code = fault_state->n % 2 ? first : second;
    if (code) errno = code;
    return code;
}

/* How much of n bytes a call of kind `short` is let to take. */
static size_t fault_half(const char *name, const void *site, size_t n) {
    return n > 1 && fault_due('s', name, site) ? n / 2 : n;
}

/* glibc's own error mark; there is no portable way to set it */
static void fault_mark(FILE *stream) {
#ifdef __GLIBC__
    if (stream) stream->_flags |= 0x20;
#else
    (void)stream;
#endif
}

#define SITE __builtin_return_address(0)

/* A wrapped call that returns `failure` when `happens`, after `then`. */
#define WRAP(type, name, parameters, arguments, happens, then, failure)                            \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        if (!(happens)) return __real_##name arguments;                                            \
        then;                                                                                      \
        return failure;                                                                            \
    }

/* a call that fails before it has done anything */
#define FAIL(type, name, parameters, arguments, failure, first, second)                            \
    WRAP(type, name, parameters, arguments, fault(#name, SITE, 0, first, second), (void)0, failure)
/* the same, and a signal can interrupt it */
#define FAIL_EINTR(type, name, parameters, arguments, failure, first, second)                      \
    WRAP(type, name, parameters, arguments, fault(#name, SITE, 1, first, second), (void)0, failure)
/* a call that is carried out, and then says that something was lost */
#define FAIL_LATE(type, name, parameters, arguments, failure, first, second)                       \
    WRAP(type, name, parameters, arguments, fault(#name, SITE, first == EINTR, EIO, second),       \
         int code = errno;                                                                         \
         __real_##name arguments; errno = code, failure)
/* a call that leaves the stream's error mark, as libc does; a lost message is no fault */
#define FAIL_STREAM(type, name, parameters, arguments, stream, failure)                            \
    WRAP(type, name, parameters, arguments,                                                        \
         (stream) != stderr && fault(#name, SITE, 0, EIO, ENOSPC), fault_mark(stream), failure)

// clang-format off
FAIL(void *, malloc, (size_t n), (n), NULL, ENOMEM, ENOMEM)
FAIL(void *, calloc, (size_t n, size_t m), (n, m), NULL, ENOMEM, ENOMEM)
FAIL(void *, aligned_alloc, (size_t a, size_t n), (a, n), NULL, ENOMEM, ENOMEM)
FAIL(char *, strdup, (const char *s), (s), NULL, ENOMEM, ENOMEM)
FAIL(void *, mmap, (void *p, size_t n, int a, int b, int fd, off_t at), (p, n, a, b, fd, at), MAP_FAILED, ENOMEM, ENODEV)
FAIL(int, madvise, (void *p, size_t n, int a), (p, n, a), -1, EINVAL, ENOMEM)

FAIL(pid_t, fork, (void), (), -1, EAGAIN, ENOMEM)
FAIL(int, pthread_create, (pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *p), (t, a, f, p), errno, EAGAIN, ENOMEM)
FAIL_EINTR(pid_t, waitpid, (pid_t p, int *status, int how), (p, status, how), -1, 0, 0)

FAIL(FILE *, fopen, (const char *path, const char *mode), (path, mode), NULL, EMFILE, EACCES)
FAIL(FILE *, fdopen, (int fd, const char *mode), (fd, mode), NULL, ENOMEM, EMFILE)
FAIL(FILE *, open_memstream, (char **text, size_t *size), (text, size), NULL, ENOMEM, ENOMEM)
FAIL(DIR *, opendir, (const char *path), (path), NULL, EMFILE, EACCES)
FAIL(struct dirent *, readdir, (DIR *d), (d), NULL, EIO, EIO)
FAIL(int, glob, (const char *p, int flags, int (*f)(const char *, int), glob_t *g), (p, flags, f, g), GLOB_NOSPACE, ENOMEM, ENOMEM)
FAIL(int, mkdir, (const char *path, mode_t mode), (path, mode), -1, ENOSPC, EROFS)
FAIL(int, rmdir, (const char *path), (path), -1, EIO, EROFS)
FAIL(int, rename, (const char *from, const char *to), (from, to), -1, ENOSPC, EIO)
FAIL(int, unlink, (const char *path), (path), -1, EIO, EROFS)
FAIL(int, stat, (const char *path, struct stat *s), (path, s), -1, EIO, EACCES)
FAIL(int, lstat, (const char *path, struct stat *s), (path, s), -1, EIO, EACCES)
FAIL(int, fstat, (int fd, struct stat *s), (fd, s), -1, EIO, ENOMEM)
FAIL(int, access, (const char *path, int mode), (path, mode), -1, EIO, EACCES)
FAIL(int, faccessat, (int fd, const char *path, int mode, int how), (fd, path, mode, how), -1, EIO, EACCES)
FAIL(int, ftruncate, (int fd, off_t n), (fd, n), -1, EIO, EROFS)
FAIL(off_t, lseek, (int fd, off_t at, int whence), (fd, at, whence), -1, EIO, EINVAL)
FAIL(int, getentropy, (void *to, size_t n), (to, n), -1, ENOSYS, EIO)
FAIL_EINTR(int, flock, (int fd, int how), (fd, how), -1, ENOLCK, EINVAL)
FAIL_EINTR(int, fsync, (int fd), (fd), -1, EIO, ENOSPC)
/* callers that create nothing pass no mode, and then none is looked at */
WRAP(int, open, (const char *path, int flags, mode_t mode), (path, flags, mode), fault("open", SITE, 1, EMFILE, flags & O_CREAT ? EROFS : EIO), (void)0, -1)
WRAP(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, fault_half("write", SITE, n)), fd != 2 && fault("write", SITE, 1, ENOSPC, EIO), (void)0, -1)
FAIL_EINTR(ssize_t, pread, (int fd, void *p, size_t n, off_t at), (fd, p, fault_half("pread", SITE, n), at), -1, EIO, ESTALE)
FAIL(ssize_t, read, (int fd, void *p, size_t n), (fd, p, n), -1, EIO, ESTALE)
FAIL_LATE(int, close, (int fd), (fd), -1, EINTR, ENOSPC)
FAIL_LATE(int, fclose, (FILE *f), (f), EOF, EIO, ENOSPC)

FAIL_STREAM(int, fflush, (FILE *f), (f), f, EOF)
FAIL_STREAM(int, fputs, (const char *s, FILE *f), (s, f), f, EOF)
FAIL_STREAM(int, fputc, (int c, FILE *f), (c, f), f, EOF)
FAIL_STREAM(int, putchar, (int c), (c), stdout, EOF)
FAIL_STREAM(int, puts, (const char *s), (s), stdout, EOF)
FAIL_STREAM(size_t, fwrite, (const void *p, size_t m, size_t n, FILE *f), (p, m, n, f), f, 0)
FAIL_STREAM(char *, fgets, (char *s, int n, FILE *f), (s, n, f), f, NULL)
FAIL_STREAM(ssize_t, __getdelim, (char **s, size_t *n, int c, FILE *f), (s, n, c, f), f, -1)
FAIL_STREAM(int, getc, (FILE *f), (f), f, EOF)
// clang-format on

int __wrap_printf(const char *format, ...) {
    if (fault("printf", SITE, 0, ENOSPC, EIO)) return fault_mark(stdout), -1;
    va_list list;
    va_start(list, format);
    int n = vprintf(format, list);
    va_end(list);
    return n;
}

int __wrap_fprintf(FILE *f, const char *format, ...) {
    if (f != stderr && fault("fprintf", SITE, 0, ENOSPC, EIO)) return fault_mark(f), -1;
    va_list list;
    va_start(list, format);
    int n = vfprintf(f, format, list);
    va_end(list);
    return n;
}
