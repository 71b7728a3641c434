/* test.c - the runner of test.h. usage: test_signmuon [FILTER...] runs the tests whose names contain a FILTER. */
#include "test.h"

#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static Test *first_test;
static int failures; /* of the running test */
static char folder[256];

void test_register(Test *test) {
    Test **at = &first_test;
    while (*at && strcmp((*at)->name, test->name) < 0) at = &(*at)->next;
    test->next = *at;
    *at = test;
}

void test_note(const char *file, int line, const char *what, const char *format, ...) {
    va_list arguments;
    if (failures++ >= 5) return; /* a loop that fails tells it five times */
    printf("    %s:%d: %s ", file, line, what);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
}

void test_near(const char *file, int line, const char *what, double a, double b, double tolerance) {
    double scale = fabs(b) > 1 ? fabs(b) : 1;
    if (!(fabs(a - b) <= tolerance * scale))
        test_note(file, line, what, "is %.9g, expected %.9g +- %.2g", a, b, tolerance * scale);
}

uint64_t test_hash(uint64_t key, uint64_t index) {
    uint64_t x = (key + 1) * 0x9e3779b97f4a7c15u + index * 0xd1342543de82ef95u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
}

double test_uniform(uint64_t key, uint64_t index) {
    return (double)(test_hash(key, index) >> 11) * 0x1p-53;
}

double test_normal(uint64_t key, uint64_t index) {
    double u = test_uniform(key, 2 * index), v = test_uniform(key, 2 * index + 1);
    return sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
}

void test_fill_normal(float *x, size_t n, uint64_t key) {
    for (size_t i = 0; i < n; i++) x[i] = (float)test_normal(key, i);
}

void *test_shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static int remove_entry(const char *path, const struct stat *s, int kind, struct FTW *f) {
    (void)s, (void)kind, (void)f;
    return remove(path);
}

static void remove_folder(void) {
    if (*folder) nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    *folder = 0;
}

const char *test_folder(void) {
    if (*folder) return folder;
    const char *base = getenv("TMPDIR");
    if (!base) base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/signmuon-test-XXXXXX", base);
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(1);
    }
    return folder;
}

const char *test_path(const char *format, ...) {
    static char buffer[8][512];
    static unsigned next;
    char *path = buffer[next++ % 8];
    int n = snprintf(path, 512, "%s/", test_folder());
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path + n, 512 - (size_t)n, format, arguments);
    va_end(arguments);
    return path;
}

void test_write(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) {
        perror(path);
        exit(1);
    }
}

char *test_read(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    char *data = NULL;
    size_t n = 0, room = 0, got = 1;
    while (f && got) {
        if (n + 1 >= room) data = realloc(data, room = 2 * room + 4096);
        if (!data) exit(1);
        got = fread(data + n, 1, room - n - 1, f);
        n += got;
    }
    if (f) fclose(f);
    if (data) data[n] = 0;
    if (size) *size = n;
    return data;
}

static void read_stream(const char *path, char *to, size_t size) {
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(to, 1, size - 1, f) : 0;
    to[n] = 0;
    if (f) fclose(f);
}

const TestResult *test_command(const char *format, ...) {
    static TestResult result[2];
    static unsigned next;
    static char command[16384];
    TestResult *r = &result[next++ % 2];
    char out[512], err[512];
    va_list arguments;
    snprintf(out, sizeof out, "%s/.stdout", test_folder());
    snprintf(err, sizeof err, "%s/.stderr", folder);
    int n = snprintf(command, sizeof command, "exec >'%s' 2>'%s' </dev/null\n", out, err);
    va_start(arguments, format);
    vsnprintf(command + n, sizeof command - (size_t)n, format, arguments);
    va_end(arguments);
    fflush(NULL);
    int status = system(command);
    r->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    read_stream(out, r->out, sizeof r->out);
    read_stream(err, r->err, sizeof r->err);
    return r;
}

static int wanted(const char *name, int argc, char **argv) {
    int found = argc < 2;
    for (int i = 1; i < argc; i++) found |= strstr(name, argv[i]) != NULL;
    return found;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Start a test in a process of its own. */
static void begin(Test *t) {
    fflush(NULL);
    t->began = now();
    t->out = tmpfile();
    t->pid = t->out ? fork() : -1;
    if (t->pid < 0) perror(t->name), exit(1);
    if (t->pid > 0) return;
    dup2(fileno(t->out), STDOUT_FILENO);
    setvbuf(stdout, NULL, _IOLBF, 0);
    t->run();
    remove_folder();
    exit(failures != 0); /* or what a sanitizer makes of it */
}

/* Wait for the end of any test. */
static void finish(void) {
    for (int status, pid;;) {
        if ((pid = wait(&status)) < 0) continue;
        for (Test *t = first_test; t; t = t->next) {
            if (t->pid != pid) continue;
            t->seconds = now() - t->began;
            t->status = status;
            t->pid = -1;
            return;
        }
    }
}

static void report(Test *t) {
    char text[4096];
    rewind(t->out);
    while (fgets(text, sizeof text, t->out)) fputs(text, stdout);
    fclose(t->out);
    if (WIFSIGNALED(t->status)) printf("    ended by signal %d\n", WTERMSIG(t->status));
    printf("%s %6.2f s  %s\n", t->status ? "FAIL" : "ok  ", t->seconds, t->name);
    fflush(stdout);
}

/* TOGETHER tests run at a time. They are reported in the order of their names. */
int main(int argc, char **argv) {
    enum { TOGETHER = 2 };
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    int count[2] = {0}, running = 0;
    for (size_t i = 0; i < COUNT(signals); i++)
        signal(signals[i], SIG_DFL); /* a script's background jobs begin with some ignored */
    for (Test **at = &first_test; *at;)
        if (wanted((*at)->name, argc, argv))
            at = &(*at)->next;
        else
            *at = (*at)->next;
    Test *next = first_test;
    for (Test *t = first_test; t; t = t->next) {
        for (; t->pid >= 0; running--) {
            for (; next && running < TOGETHER; next = next->next, running++) begin(next);
            finish();
        }
        report(t);
        count[t->status != 0]++;
    }
    printf("%d passed, %d failed\n", count[0], count[1]);
    return count[1] != 0;
}
