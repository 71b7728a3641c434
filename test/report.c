/* report.c - tests of lib/report.h: log.csv, progress on a terminal and in a pipe, tables, text. */
#include "../lib/report.h"
#include "test.h"

#include <sys/wait.h>

static char error[512];

TEST(report_durations_are_minutes_or_hours) {
    static const struct {
        double seconds;
        const char *text;
    } rows[] = {{0, "0:00"},         {83.4, "1:23"},    {59.6, "1:00"},        {3599.4, "59:59"},
                {3599.6, "1:00:00"}, {3723, "1:02:03"}, {360000, "100:00:00"}, {-1, "-"},
                {INFINITY, "-"},     {NAN, "-"}};
    char text[32];
    for (size_t i = 0; i < COUNT(rows); i++) {
        report_duration(text, sizeof text, rows[i].seconds);
        CHECK(strcmp(text, rows[i].text) == 0, "%g: %s", rows[i].seconds, text);
    }
}

/* ------------------------------------------------------------------------------------------------
 * log.csv */

static const ReportColumn columns[] = {{"step", "%.0f"}, {"loss", "%.4f"}, {"rate", "%.3g"}};

/* Does log.csv hold this text? */
static int log_is(const char *expected) {
    char *text = test_read(test_path("log.csv"), NULL);
    int same = text && strcmp(text, expected) == 0;
    if (!same) printf("    log.csv holds: %s\n", text ? text : "nothing");
    free(text);
    return same;
}

TEST(report_log_appends_rows_and_leaves_nan_empty) {
    ReportLog log = {0};
    double rows[][3] = {{0, 4.17, NAN}, {10, NAN, 1e-4}, {1e15, INFINITY, 0}};
    CHECK(report_row(&log, rows[0], error, sizeof error) == 0, "a closed log takes rows");
    CHECK(!report_open_log(&log, test_folder(), columns, 3, NAN, error, sizeof error), "%s", error);
    CHECK(log_is("step,loss,rate\n"), "the first line stands at once");
    for (int i = 0; i < 3; i++) CHECK(!report_row(&log, rows[i], error, sizeof error), "%s", error);
    CHECK(log_is("step,loss,rate\n0,4.1700,\n10,,0.0001\n1000000000000000,inf,0\n"),
          "every row is written at once");
    CHECK(!report_close_log(&log, error, sizeof error) && !log.file, "%s", error);
}

TEST(report_log_keeps_whole_rows_of_same_columns) {
    static const struct {
        const char *before;
        size_t size;
        double until;
        const char *after;
    } rows[] = {
#define FILE_OF(text) text, sizeof text - 1
        {FILE_OF("step,loss,rate\n0,1,\n5,2,\n10,,3\n15,1,1\n"), 10, "0,1,\n5,2,\n10,,3\n"},
        {FILE_OF("step,loss,rate\n0,1,\n5,2,\n10,,3\n15,1,1\n"), NAN, ""},
        {FILE_OF("step,loss,rate\n0,1,2\n1,2,x"), 10, "0,1,2\n"},
        {FILE_OF("step,loss,rate\n0,1,2\n1,2,3,4\n2,1\n,,\nx,1,2\n3,-1e-05,inf\n"), 10,
         "0,1,2\n3,-1e-05,inf\n"},
        {FILE_OF("step,loss,rate\n0,1,2\n\0\0\0\0,,\n4,\0,5\n\n5,6,7\n"), 10, "0,1,2\n5,6,7\n"},
        {FILE_OF("step,loss\n0,1\n1,2\n"), 10, ""},
        {FILE_OF("step,rate,loss\n0,1,2\n"), 10, ""},
        {FILE_OF("step,loss,rate\r\n0,1,2\r\n"), 10, ""},
        {FILE_OF(""), 10, ""},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        ReportLog log;
        char expected[256];
        double row[] = {99, 1, 1};
        snprintf(expected, sizeof expected, "step,loss,rate\n%s99,1.0000,1\n", rows[i].after);
        test_write(test_path("log.csv"), rows[i].before, rows[i].size);
        CHECK(!report_open_log(&log, test_folder(), columns, 3, rows[i].until, error, sizeof error),
              "row %zu: %s", i, error);
        CHECK(!report_row(&log, row, error, sizeof error), "%s", error);
        CHECK(!report_close_log(&log, error, sizeof error), "%s", error);
        CHECK(log_is(expected), "row %zu", i);
    }
}

TEST(report_log_refuses_what_is_no_file) {
    ReportLog log;
    double row[] = {1, 2, 3};
    const char *path = test_path("log.csv"), *temporary = test_path(".log.csv.tmp");
    for (int kind = 0; kind < 5; kind++) {
        const char *folder = kind == 3 ? "/dev/null" : kind == 4 ? "no such folder" : test_folder();
        double until = kind % 2 ? NAN : 5;
        int in_the_way = kind == 0   ? mkfifo(path, 0666)
                         : kind <= 2 ? mkdir(kind == 1 ? path : temporary, 0777)
                                     : 0;
        CHECK(!in_the_way && report_open_log(&log, folder, columns, 3, until, error, 512) < 0);
        CHECK(strstr(error, "log.csv: cannot be ") && !log.file, "%s", error);
        remove(path);
        remove(temporary);
    }
    CHECK(mkfifo(temporary, 0666) == 0 &&
          !report_open_log(&log, test_folder(), columns, 3, 0, error, 512));
    if (log.file) fclose(log.file);
    log.file = fopen("/dev/full", "w");
    CHECK(report_row(&log, row, error, sizeof error) < 0, "the disk is full");
    CHECK(strstr(error, "log.csv: cannot be written: No space left"), "%s", error);
    report_close_log(&log, error, sizeof error);
    CHECK(!log.file, "closed all the same");
}

/* ------------------------------------------------------------------------------------------------
 * the terminal */

/* A pseudo-terminal of so many columns: its far end in *master. */
static FILE *open_terminal(int *master, int width) {
    struct winsize window = {.ws_row = 24, .ws_col = (unsigned short)width};
    *master = posix_openpt(O_RDWR | O_NOCTTY);
    if (*master < 0 || grantpt(*master) || unlockpt(*master)) return NULL;
    ioctl(*master, TIOCSWINSZ, &window);
    int fd = open(ptsname(*master), O_RDWR | O_NOCTTY);
    return fd < 0 ? NULL : fdopen(fd, "w");
}

/* What has arrived at the far end of a terminal or pipe. */
static const char *received(int fd) {
    static char text[8192];
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    return text;
}

static const ReportField fields[] = {
    {"step 1000/2000", 9}, {"loss\a1.8812", 8},     {"", 7},
    {"val 1.9911", 7},     {"12345 tokens/s", 3},   {"0.981 bits/parameter", 2},
    {"ETA 1:02:03", 5},    {"(entropy 1.4321)", 1},
};
enum { FIELDS = COUNT(fields) };
#define FOUR "step 1000/2000  loss?1.8812  val 1.9911"

TEST(report_progress_fits_terminal_and_follows_it) {
    static const struct {
        int width;
        const char *line;
    } rows[] = {
        {120, FOUR "  12345 tokens/s  0.981 bits/parameter  ETA 1:02:03  (entropy 1.4321)"},
        {109, FOUR "  12345 tokens/s  0.981 bits/parameter  ETA 1:02:03  (entropy 1.4321)"},
        {108, FOUR "  12345 tokens/s  0.981 bits/parameter  ETA 1:02:03"},
        {80, FOUR "  12345 tokens/s  ETA 1:02:03"},
        {68, FOUR "  ETA 1:02:03"},
        {15, "step 1000/2000"},
        {10, "step 1000"},
    };
    char expected[256];
    int master;
    FILE *f = open_terminal(&master, 120);
    CHECK(f != NULL, "a pseudo-terminal");
    for (size_t i = 0; f && i < COUNT(rows); i++) {
        struct winsize window = {.ws_col = (unsigned short)rows[i].width};
        ioctl(master, TIOCSWINSZ, &window);
        CHECK(report_columns(f) == rows[i].width, "%d", rows[i].width);
        for (int kind = 0; kind < 3; kind++) { /* rewritten, ended, on a terminal without escapes */
            setenv("TERM", kind == 2 ? "dumb" : "xterm", 1);
            report_progress(f, fields, FIELDS, kind == 1);
            snprintf(expected, sizeof expected, "%s%s%s", kind < 2 ? "\r\033[K" : "", rows[i].line,
                     kind ? "\r\n" : "");
            const char *seen = received(master);
            CHECK(strcmp(seen, expected) == 0, "%d columns: %s", rows[i].width, seen);
        }
    }
    setenv("TERM", "xterm", 1);
    if (f) report_note(f, "saved %s", "a\033[2Jb\n\xc3\xa4");
    const char *seen = f ? received(master) : "";
    CHECK(strcmp(seen, "\r\033[Ksaved a?[2Jb?\xc3\xa4\r\n") == 0, "%s", seen);
    if (f) fclose(f);
    close(master);
}

TEST(report_progress_in_pipe_is_plain_lines) {
    int ends[2];
    CHECK(pipe(ends) == 0, "pipe");
    FILE *f = fdopen(ends[1], "w");
    setenv("COLUMNS", "200", 1);
    CHECK(report_columns(f) == 80, "COLUMNS is a terminal's");
    unsetenv("COLUMNS");
    report_progress(f, fields, FIELDS, 0);
    report_note(f, "%s", "a note");
    const char *seen = received(ends[0]);
    CHECK(strcmp(seen, FOUR "  12345 tokens/s  ETA 1:02:03\na note\n") == 0, "%s", seen);
    fclose(f);
    close(ends[0]);
}

/* ------------------------------------------------------------------------------------------------
 * layout and text */

/* Does a table of 3 x 3 cells print as this text? */
static void check_table(const char *const *cells, int width, const char *expected) {
    char text[4096];
    FILE *f = fmemopen(text, sizeof text, "w");
    report_table(f, cells, 3, 3, width);
    fclose(f);
    CHECK(strcmp(text, expected) == 0, "%d columns:\n%s", width, text);
}

TEST(report_table_fits_width_and_breaks_no_word) {
    static const char *const cells[] = {
        "name",  "lr",   "direction", /**/
        "muon",  "0.02", "orthogonal factor of the momentum by five Newton-Schulz polynomials",
        "adamw", "3e-3", ""};
    static const char *const numbers[] = {"tensor", "shape", "rate", "wte", "65x128",
                                          "",       "",      "",     ""};
    check_table(cells, 100,
                "name   lr    direction\n"
                "muon   0.02  orthogonal factor of the momentum by five Newton-Schulz polynomials\n"
                "adamw  3e-3\n");
    check_table(cells, 37,
                "name   lr    direction\n"
                "muon   0.02  orthogonal factor of the\n"
                "             momentum by five\n"
                "             Newton-Schulz\n"
                "             polynomials\n"
                "adamw  3e-3\n");
    check_table(cells, 36,
                "name   lr\n"
                "    direction\n"
                "muon   0.02\n"
                "    orthogonal factor of the\n"
                "    momentum by five Newton-Schulz\n"
                "    polynomials\n"
                "adamw  3e-3\n");
    check_table(numbers, 16, "tensor  shape\n    rate\nwte     65x128\n\n");
}

TEST(report_paragraph_keeps_indent_and_newlines) {
    char text[256];
    FILE *f = fmemopen(text, sizeof text, "w");
    report_paragraph(f, "one two  three \xc3\xa4\xc3\xb6\xc3\xbc four\n\nfive", 2, 11);
    report_paragraph(f, "", 0, 11);
    fclose(f);
    CHECK(!strcmp(text, "  one two\n  three \xc3\xa4\xc3\xb6\xc3\xbc\n  four\n\n  five\n\n"));
}

TEST(report_text_joins_pieces_and_stops_control_characters) {
    static const char *const rows[][2] = {
        {"plain\ttext\n", "plain\ttext\n"},
        {"\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80", "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"a\033[2Jb\rc\x7f", "a?[2Jb?c?"},
        {"\xc2\x9b\x31m", "??1m"},     /* a control sequence's one-character form */
        {"\342\200\256abc", "???abc"}, /* turns the direction of writing */
        {"\xe2\x82", "??"},            /* ends within a character */
        {"\360\237a\xff\xc0\x80", "??a???"},
        {"\xe2\xc3\xa4", "?\xc3\xa4"},
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        for (size_t piece = 1; piece < 14; piece++)
            for (int terminal = 0; terminal < 2; terminal++) {
                ReportText state = {.terminal = terminal};
                size_t size = strlen(rows[i][0]);
                char text[64] = "";
                FILE *f = fmemopen(text, sizeof text, "w");
                for (size_t at = 0; at < size; at += piece)
                    report_text_put(&state, f, rows[i][0] + at,
                                    size - at < piece ? size - at : piece, 0);
                report_text_put(&state, f, "", 0, 1);
                fclose(f);
                CHECK(strcmp(text, rows[i][terminal]) == 0, "row %zu in pieces of %zu: %s", i,
                      piece, text);
            }
}
