/* log.c - any bytes as the log.csv of a run that is resumed. What stays are whole rows, up to the
   step that is resumed from. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include "fuzz.h"
#define TESTING
#pragma clang diagnostic ignored "-Wunused-function"
#include "train_gpt.c"

static size_t commas(const char *line) {
    size_t n = 0;
    for (; *line; line++) n += *line == ',';
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Run run;
    static Worker w;
    static char folder[200], path[220], line[4096];
    if (!run.o.out) { /* run.sh removes it */
        const char *where = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%.150s/fuzz_log_XXXXXX", where ? where : "/tmp");
        run.o.out = mkdtemp(folder);
        if (!run.o.out) abort();
        snprintf(path, sizeof path, "%s/log.csv", folder);
    }
    FuzzInput input = {data, size};
    w.run = &run;
    w.step = (long)fuzz_byte(&input);
    run.o.resume = 1;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || (input.left && write(fd, input.at, input.left) < 0) || close(fd)) abort();
    open_log(&w);
    fclose(w.log);
    FILE *f = fopen(path, "r");
    if (!f) abort();
    FUZZ_CHECK(fgets(line, sizeof line, f) && strcmp(line, log_header) == 0);
    while (fgets(line, sizeof line, f)) {
        FUZZ_CHECK(strchr(line, '\n') && isdigit((unsigned char)line[0]));
        FUZZ_CHECK(strtol(line, NULL, 10) <= w.step && commas(line) == commas(log_header));
    }
    fclose(f);
    unlink(path);
    return 0;
}
