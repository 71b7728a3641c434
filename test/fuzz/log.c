/* log.c - any bytes as the log.csv of a run that is resumed. What stays are whole rows, up to the
   step that is resumed from. */
#include "program.h"

static size_t commas(const char *line) {
    size_t n = 0;
    for (; *line; line++) n += *line == ',';
    return n;
}

static void open_it(void *worker) { open_log(worker, 1); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Run run;
    static Worker w;
    char path[256], line[4096];
    FuzzInput input = {data, size};
    w.step = (long)fuzz_byte(&input);
    w.run = &run;
    run.o.out = fuzz_folder();
    run.o.resume = 1;
    snprintf(path, sizeof path, "%s/log.csv", run.o.out);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || (input.left && write(fd, input.at, input.left) < 0) || close(fd)) abort();
    fuzz_run(open_it, &w);
    FUZZ_CHECK(fuzz_program.status == -1);
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
