/* bench/measure.h - what the benchmarks measure with: the program itself, whose kernels they time, a
   count of Newton-Schulz's flop, medians, this CPU's name, runs of ./train_gpt. MIT.

   Included first: it includes train_gpt.c as the tests do. */
#ifndef MEASURE_H
#define MEASURE_H
#include "comm.h"
#pragma GCC diagnostic push
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* gcc 12 loses sight of what is packed */
#endif
#include "gemm.h"
#include <math.h>

/* Newton-Schulz runs on gemm.h, as in signmuon.c, whose hooks a benchmark cannot see; these count
 * the flop that are really done, a symmetric product at half. */
static _Thread_local double polar_flops;

static void polar_gemm(char op, float *c, const float *a, const float *b, size_t m, size_t n,
                       size_t k, float *scratch) {
    polar_flops += 2.0 * (double)m * (double)n * (double)k;
    GemmOperand columns = op == 't' ? gemm_f32(b, k, 1) : gemm_f32(b, 1, n);
    gemm_multiply(gemm_default(GEMM_F32), c, n, gemm_f32(a, k, 1), columns, m, n, k, 0, scratch, 0,
                  1);
}
static void polar_symmetric(char op, float *c, const float *a, const float *b, size_t m, size_t k,
                            float *scratch) {
    polar_flops += (double)m * (double)m * (double)k;
    GemmOperand columns = op == 't' ? gemm_f32(b, k, 1) : gemm_f32(b, 1, m);
    gemm_symmetric(gemm_default(GEMM_F32), c, m, gemm_f32(a, k, 1), columns, m, k, scratch);
}
#define SIGNMUON_GEMM polar_gemm
#define SIGNMUON_GEMM_SCRATCH gemm_scratch()
#define SIGNMUON_SYMMETRIC polar_symmetric
#define TESTING
#pragma GCC diagnostic ignored "-Wunused-function"
#include "train_gpt.c" // NOLINT(bugprone-suspicious-include)
#pragma GCC diagnostic pop

enum { FOLDER_SIZE = 256, VOCABULARY = 65 /* of the text that runs are trained on */ };

__attribute__((format(printf, 1, 2))) __attribute__((noreturn)) static void
give_up(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments); // NOLINT(clang-analyzer-valist.Uninitialized)
    va_end(arguments);
    fprintf(stderr, "bench: %s\n", text);
    exit(1);
}

static int by_value(const void *x, const void *y) {
    return (*(const double *)x > *(const double *)y) - (*(const double *)x < *(const double *)y);
}

static double median(double *x, size_t n) {
    qsort(x, n, sizeof *x, by_value);
    return x[n / 2];
}

/* ------------------------------------------------------------------------------------------------
 * this CPU */

/* The number or words after `name :` in /proc/cpuinfo. */
static void cpu_field(char *out, size_t size, const char *name) {
    char line[512];
    FILE *f = fopen("/proc/cpuinfo", "r");
    *out = 0;
    while (f && !*out && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (!colon || strncmp(line, name, strlen(name)) || line[strlen(name)] > ' ') continue;
        snprintf(out, size, "%s", colon + 1 + (colon[1] == ' '));
        out[strcspn(out, "\n")] = 0;
    }
    if (f) fclose(f);
}

/* CPU, cores, caches, compiler, and the products that gemm.h has chosen. */
static void describe_cpu(char *out, size_t size) {
    char model[128], family[32], number_of[32], caches[64] = "";
    struct utsname u;
    const Gemm *g = gemm_default(GEMM_F32);
    uname(&u);
    cpu_field(model, sizeof model, "model name");
    cpu_field(family, sizeof family, "cpu family");
    cpu_field(number_of, sizeof number_of, "model");
#ifdef _SC_LEVEL3_CACHE_SIZE
    long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE) >> 10, l3 = sysconf(_SC_LEVEL3_CACHE_SIZE) >> 10;
    if (l2 > 0) snprintf(caches, sizeof caches, ", L2 %ld KB, L3 %ld KB", l2, l3);
#endif
    snprintf(out, size, "%s%s%s%s%s, %d cores%s; %s %s; products %s %zux%zu",
             *model ? model : u.machine, *family ? " family " : "", family,
             *number_of ? " model " : "", number_of, comm_cores(), caches,
#ifdef __clang__
             "compiled by",
#else
             "gcc",
#endif
             __VERSION__, g->name, g->mr, g->nr);
}

/* ------------------------------------------------------------------------------------------------
 * runs of ./train_gpt, in a temporary folder */

static void need_program(void) {
    if (access("train_gpt", X_OK))
        give_up("no ./train_gpt here, through which steps are timed: run make in the root first");
}

/* A folder with a text of VOCABULARY characters, made once. */
static void make_folder(char folder[FOLDER_SIZE]) {
    const char *tmp = getenv("TMPDIR");
    char path[FOLDER_SIZE + 16];
    if (*folder) return;
    snprintf(folder, FOLDER_SIZE, "%s/bench.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) give_up("cannot make the folder %s: %s", folder, strerror(errno));
    snprintf(path, sizeof path, "%.255s/text", folder);
    FILE *f = fopen(path, "w");
    for (size_t i = 0; f && i < 100000; i++) fputc('0' + (int)(sm_hash(1, i) % VOCABULARY), f);
    if (!f || fclose(f)) give_up("cannot write %s: %s", path, strerror(errno));
}

static void remove_folder(const char *folder) {
    static const char *const left[] = {
        "/text", "/out/.log.csv.tmp", "/out/command.txt", "/out/log.csv", "/out", ""};
    char path[FOLDER_SIZE + 32];
    for (size_t i = 0; *folder && i < sizeof left / sizeof *left; i++) {
        snprintf(path, sizeof path, "%.255s%s", folder, left[i]);
        remove(path);
    }
}

/* The field of a line of comma-separated values, counted from 0. */
static const char *csv_field(const char *line, int field) {
    while (line && field-- > 0) {
        line = strchr(line, ',');
        line = line ? line + 1 : NULL;
    }
    return line;
}

/* A column of the log as far as it is written; returns the number of whole rows. */
static int read_column(const char *folder, const char *name, double *value, int most) {
    char path[FOLDER_SIZE + 16], line[1024];
    size_t length = strlen(name);
    int rows = -1, column = 0; /* the header comes first */
    snprintf(path, sizeof path, "%.255s/out/log.csv", folder);
    FILE *f = fopen(path, "r");
    while (f && rows < most && fgets(line, sizeof line, f) && strchr(line, '\n')) {
        const char *field = csv_field(line, column);
        if (rows < 0)
            while (field && (strncmp(field, name, length) || !strchr(",\n", field[length])))
                field = csv_field(line, ++column);
        else if (field)
            value[rows] = strtod(field, NULL);
        rows++;
    }
    if (f) fclose(f);
    return rows;
}

/* Run ./train_gpt with these flags until its log has so many whole rows, `every` steps apart, and
 * kill it then, so that nothing is evaluated or saved. */
static void run_program(char folder[FOLDER_SIZE], const char *flags_given, int every, int rows) {
    char command[1024], log[FOLDER_SIZE + 16];
    double seconds[64] = {0};
    int status = 0;
    need_program();
    make_folder(folder);
    assert(rows <= 64);
    snprintf(log, sizeof log, "%.255s/out/log.csv", folder);
    remove(log);
    snprintf(command, sizeof command,
             "exec ./train_gpt --data '%s/text' --out '%s/out' --overwrite --quiet --steps 1000000 "
             "--log-every %d --eval-every 0 --save-every 0 --check-every 0 %s",
             folder, folder, every, flags_given);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0); /* Ctrl-C is for this program, whose end is the child's */
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    if (child < 0) give_up("cannot start ./train_gpt: %s", strerror(errno));
    while (read_column(folder, "seconds", seconds, rows) < rows) {
        if (waitpid(child, &status, WNOHANG) == child) {
            remove_folder(folder);
            give_up("a step cannot be timed, as this ended with status %d: %s",
                    WIFEXITED(status) ? WEXITSTATUS(status) : -1, command + strlen("exec "));
        }
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

/* Seconds of a step: the median over `samples` intervals, after the first row. */
static double time_program(char folder[FOLDER_SIZE], const char *flags_given, int every,
                           int samples) {
    double seconds[64] = {0};
    run_program(folder, flags_given, every, samples + 1);
    read_column(folder, "seconds", seconds, samples + 1);
    for (int i = 0; i < samples; i++) seconds[i] = (seconds[i + 1] - seconds[i]) / every;
    return median(seconds, (size_t)samples);
}
#endif
