/* measure.h - what bench.c and scale.c share: the program, whose kernels they time; medians; the
   name of this CPU; runs of ./train_gpt. MIT.

   Included first, in one unit of a program: it includes train_gpt.c, as the tests do. */
#ifndef MEASURE_H
#define MEASURE_H

#include "kernels.h"
#define TESTING
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../train_gpt.c" // NOLINT(bugprone-suspicious-include)
#pragma GCC diagnostic pop
#include <sys/utsname.h>

enum { FOLDER_SIZE = 256, VOCABULARY = 65 /* of the text that runs train on */, MOST_ROWS = 64 };

__attribute__((format(printf, 1, 2))) __attribute__((noreturn)) static void
give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "bench: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    exit(1);
}

static int by_value(const void *x, const void *y) {
    return (*(const double *)x > *(const double *)y) - (*(const double *)x < *(const double *)y);
}

static double median(double *x, size_t n) {
    qsort(x, n, sizeof *x, by_value);
    return x[n / 2];
}

static float *room(size_t n) {
    float *x = base_allocate(n * sizeof *x);
    if (!x) give_up("no memory for %zu numbers", n);
    return x;
}

/* Close f, or NULL, which was written; anything wrong ends the program. */
static void close_file(FILE *f, const char *path) {
    if (!f || ferror(f) || fclose(f)) give_up("cannot write %s: %s", path, strerror(errno));
    printf("wrote %s\n", path);
}

/* docs/ can be written, and ./train_gpt runs */
static void need_root(void) {
    if (access("docs", W_OK | X_OK) || access("train_gpt", X_OK))
        give_up("no docs/ to write to, or no ./train_gpt: run make in the root, then this");
}

/* CPU, cores, caches, compiler, and the products that gemm.h has chosen. */
static void describe_cpu(char *out, size_t size) {
    char line[512], model[256] = "";
    struct utsname u;
    const Gemm *g = gemm_default(GEMM_F32);
    FILE *f = fopen("/proc/cpuinfo", "r");
    uname(&u);
    while (f && !*model && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':'))
            snprintf(model, sizeof model, "%.*s", (int)strcspn(strchr(line, ':') + 2, "\n"),
                     strchr(line, ':') + 2);
    if (f) fclose(f);
    long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE) >> 10, l3 = sysconf(_SC_LEVEL3_CACHE_SIZE) >> 10;
    snprintf(out, size, "%s, %d cores, L2 %ld KB, L3 %ld KB; compiler %s; products %s %zux%zu",
             *model ? model : u.machine, comm_cores(), l2, l3, __VERSION__, g->name, g->mr, g->nr);
}

/* ------------------------------------------------------------------------------------------------
 * runs of ./train_gpt, in a temporary folder */

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
    char command[FOLDER_SIZE + 16];
    snprintf(command, sizeof command, "rm -rf '%.255s'", folder);
    if (*folder && system(command)) give_up("cannot remove %s", folder); // NOLINT(cert-env33-c)
}

/* A column of the log, at most so many rows. */
static void read_column(const char *folder, const char *name, double *value, int most) {
    char path[FOLDER_SIZE + 16], line[1024];
    int rows = -1, column = -1; /* the header comes first */
    snprintf(path, sizeof path, "%.255s/out/log.csv", folder);
    FILE *f = fopen(path, "r");
    for (; f && rows < most && fgets(line, sizeof line, f); rows++) {
        char *rest = line, *field;
        for (int k = 0; (field = strsep(&rest, ",\n")) != NULL; k++)
            if (rows < 0 && strcmp(field, name) == 0)
                column = k;
            else if (rows >= 0 && k == column)
                value[rows] = strtod(field, NULL);
    }
    if (f) fclose(f);
}

/* Run ./train_gpt until its log has so many rows after the first, `every` steps apart, and kill it,
 * so that nothing is evaluated or saved. Returns the median seconds of a step. The log is
 * read every 0.4 s only, as that takes time from the run. */
static double time_program(char folder[FOLDER_SIZE], const char *arguments, int every,
                           int samples) {
    char command[2048];
    double seconds[MOST_ROWS] = {0};
    make_folder(folder);
    assert(samples < MOST_ROWS);
    snprintf(command, sizeof command,
             "cd '%s' && rm -rf out; trap 'kill -9 $p 2>&-' EXIT; trap 'exit 1' INT TERM\n"
             "\"$OLDPWD\"/train_gpt --data text --out out --quiet --steps 1000000 --log-every %d "
             "--eval-every 0 --save-every 0 --check-every 0 %s & p=$!\n"
             "until [ $(cat out/log.csv 2>&1 | wc -l) -ge %d ]; do kill -0 $p 2>&- && sleep 0.4 "
             "|| exit 1; "
             "done",
             folder, every, arguments, samples + 3);
    if (system(command)) { // NOLINT(cert-env33-c)
        remove_folder(folder);
        give_up("a step cannot be timed with %s", arguments);
    }
    read_column(folder, "seconds", seconds, samples + 1);
    for (int i = 0; i < samples; i++) seconds[i] = (seconds[i + 1] - seconds[i]) / every;
    return median(seconds, (size_t)samples);
}
#endif
