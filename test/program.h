/* program.h - what the tests of train_gpt share: a folder with a text, commands and their ends,
   saves that are compared. A command is a line of sh in the test's folder. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

/* A model whose step takes less than a millisecond. */
#define MODEL                                                                                      \
    "train_gpt --data text.txt --layers 1 --heads 2 --width 32 --context 16 --batch 6 "            \
    "--overwrite --threads 1 "
#define SMALL MODEL "--quiet --eval-every 0 "
/* Where a run may stop at any step, so that another run can go exactly as far. */
#define ENDLESS SMALL "--schedule constant --warmup 0 --steps 100000000 --log-every 1 "

enum { PATIENCE = 60 /* s, then a command hangs */ };

static const char *const backend[] = {"threads", "processes"};

/* How the last command ended. */
static struct {
    int status;  /* exit status, or 128 + signal */
    double peak; /* MB of memory, the test's own at least */
    size_t size; /* of out */
    char line[4096], out[1 << 16], err[1 << 16];
} ended;

static inline void rest(double seconds) {
    nanosleep(&(struct timespec){(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)}, NULL);
}

/* NAME <- a text in 23 characters, of a pattern that can be learned. */
static inline void write_text(const char *name, size_t size) {
    char *text = malloc(size);
    if (!text) exit(1);
    for (size_t i = 0; i < size; i++)
        text[i] = "abcdefghiklmnoprstuwy \n"[test_hash(i / 97 % 7, i % 97) % 23];
    test_write(test_path("%s", name), text, size);
    free(text);
}

/* Start a command in a process group of its own, its output into .out and .err. */
__attribute__((format(printf, 1, 2))) static inline pid_t start(const char *format, ...) {
    static const char *const stream[] = {"/dev/null", ".out", ".err"};
    char root[2048], path[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(ended.line, sizeof ended.line, format, arguments);
    va_end(arguments);
    snprintf(path, sizeof path, "%s:%s", getcwd(root, sizeof root) ? root : "", getenv("PATH"));
    const char *folder = test_folder();
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) exit(1); /* a kill of -1 would reach everybody */
    if (pid > 0) return setpgid(pid, pid), pid;
    setpgid(0, 0);
    signal(SIGINT, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    setenv("PATH", path, 1);
    if (chdir(folder)) _exit(99);
    for (int i = 0; i < 3; i++)
        if (dup2(open(stream[i], i ? O_RDWR | O_CREAT | O_TRUNC : O_RDONLY, 0666), i) < 0)
            _exit(99);
    for (int fd = 3; fd < 64; fd++) close(fd);
    execl("/bin/sh", "sh", "-c", ended.line, (char *)NULL);
    _exit(99);
}

static inline size_t read_output(const char *name, char *to, size_t room) {
    FILE *f = fopen(test_path("%s", name), "rb");
    size_t n = f ? fread(to, 1, room - 1, f) : 0;
    if (f) fclose(f);
    to[n] = 0;
    return n;
}

/* Wait for the end of a command; returns its status. */
static inline int finish(pid_t pid) {
    time_t begin = time(NULL);
    struct rusage used = {0};
    int how = 0;
    while (wait4(pid, &how, WNOHANG, &used) == 0) {
        rest(3e-4);
        if (time(NULL) < begin + PATIENCE) continue;
        CHECK(0, "still runs: %s", ended.line);
        kill(-pid, SIGKILL);
        begin += PATIENCE;
    }
    read_output(".err", ended.err, sizeof ended.err);
    ended.size = read_output(".out", ended.out, sizeof ended.out);
    ended.peak = (double)used.ru_maxrss * 1024e-6;
    return ended.status = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
}

#define run(...) finish(start(__VA_ARGS__))
#define OK(...) (run(__VA_ARGS__), check_ended(0, ""))
#define REFUSED(status, word, ...) (run(__VA_ARGS__), check_ended(status, word))

/* The last command ended with this status. A refusal writes nothing to stdout, and to stderr one
 * sentence with `word` in it. */
static inline void check_ended(int status, const char *word) {
    const char *newline = strchr(ended.err, '\n');
    int refused = !ended.size && newline && !newline[1] && !strncmp(ended.err, "train_gpt: ", 11);
    CHECK(ended.status == status, "%d, not %d: %s: %s", ended.status, status, ended.line,
          ended.err);
    CHECK(!status || refused, "no one sentence: %s: %s%s", ended.line, ended.err, ended.out);
    CHECK(strstr(ended.err, word), "no '%s': %s: %s", word, ended.line, ended.err);
}

/* A sum over names, times and bytes of everything in the folder. */
static inline uint64_t snapshot(void) {
    run("tar cf - --exclude=./.out --exclude=./.err . | cksum");
    return strtoull(ended.out, NULL, 10);
}

/* Wait until a file exists and holds a text, while the program runs. */
static inline void await(pid_t pid, const char *name, const char *text) {
    time_t begin = time(NULL);
    for (int found = 0; !found; rest(5e-4)) {
        siginfo_t info = {.si_pid = 0};
        char *now = test_read(test_path("%s", name), NULL);
        found = now && strstr(now, text);
        free(now);
        waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT);
        if (found || (info.si_pid != pid && time(NULL) < begin + PATIENCE)) continue;
        CHECK(0, "%s never held '%s': %s", name, text, ended.line);
        return;
    }
}

/* The number that follows a label in a text, or NaN. */
static inline double number_after(const char *text, const char *label) {
    const char *at = text ? strstr(text, label) : NULL;
    char *end = NULL;
    double value = at ? strtod(at + strlen(label), &end) : NAN;
    return at && end > at + strlen(label) ? value : NAN;
}

/* A number in the metadata of a file of a save, or NaN. */
static inline double meta(const char *file, const char *key) {
    char *bytes = test_read(test_path("%s.safetensors", file), NULL), label[64];
    snprintf(label, sizeof label, "\"%s\":\"", key);
    double value = bytes ? number_after(bytes + 8, label) : NAN;
    free(bytes);
    return value;
}
#define step_of(out) /* a kill between two renames leaves last.new alone */                        \
    ((long)meta(access(test_path(out "/last/model.safetensors"), F_OK) ? out "/last.new/model"     \
                                                                       : out "/last/model",        \
                "checkpoint_step"))

/* Are the tensors of two files, which lie behind their headers, the same bytes? */
static inline int equal_files(const char *a, const char *b) {
    size_t n = 0, m = 0;
    uint64_t x = 0, y = 0;
    char *p = test_read(test_path("%s.safetensors", a), &n);
    char *q = test_read(test_path("%s.safetensors", b), &m);
    if (n > 8 && m > 8) memcpy(&x, p, 8), memcpy(&y, q, 8);
    int sane = x && y && n >= x + 8 && n - x == m - y;
    int equal = sane && memcmp(p + 8 + x, q + 8 + y, n - x - 8) == 0;
    free(p), free(q);
    return equal;
}

/* Every tensor of A/last and B/last, of the model and of every worker, must be the same. */
static inline void check_same(const char *a, const char *b, int workers) {
    for (int r = -1; r < workers; r++) {
        char x[64], y[64];
        snprintf(x, sizeof x, r < 0 ? "%s/last/model" : "%s/last/worker-%d", a, r);
        snprintf(y, sizeof y, r < 0 ? "%s/last/model" : "%s/last/worker-%d", b, r);
        CHECK(equal_files(x, y), "%s and %s: %s", x, y, ended.line);
    }
}

/* The validation loss in the closing line, which is all that a training writes to stdout. */
static inline double closing_loss(void) {
    char again[256];
    double val = number_after(ended.out, "val_loss ");
    snprintf(again, sizeof again,
             "val_loss %.4f best %.4f steps %.0f seconds %.1f bytes_sent %.0f\n", val,
             number_after(ended.out, " best "), number_after(ended.out, " steps "),
             number_after(ended.out, " seconds "), number_after(ended.out, " bytes_sent "));
    CHECK(strcmp(again, ended.out) == 0, "%s: %s", ended.line, ended.out);
    return val;
}

/* OUT/log.csv at a step; NaN where the value is empty, or the row or column is missing. */
static inline double log_value(const char *out, long step, const char *column) {
    char *log = test_read(test_path("%s/log.csv", out), NULL), label[32], *end;
    char *row = log, *at = log ? strstr(log, column) : NULL;
    double value = NAN;
    int index = 0;
    for (const char *c = log; at && c < at; c++) index += *c == ',';
    snprintf(label, sizeof label, "\n%ld,", step);
    row = at ? strstr(log, label) : NULL;
    for (; row && index; index--) row = (row = strchr(row, ',')) ? row + 1 : NULL;
    if (row) value = strtod(row, &end), value = end == row ? NAN : value;
    free(log);
    return value;
}

/* Every test begins with this. */
static inline void setup(void) {
    write_text("text.txt", 20000);
    write_text("short.txt", 300);
}

#endif
