/* report.h - what a run prints: log.csv, the progress line, tables that fit the terminal. C11, MIT.

     log       report_open_log, report_row, report_close_log: FOLDER/log.csv, one line per row
     terminal  report_columns, report_progress, report_note: lines for somebody who watches
     layout    report_table, report_paragraph, report_wrap: text within a width
     text      report_duration, report_number, report_value, report_text_put

   ERRORS   The log answers 0, or -1 and a sentence. Progress and notes never fail: when the reader
            has left, only the line is lost, and SIGPIPE is blocked while they write.
   NUMBERS  have a decimal point in every locale. A width counts characters, one column each.
   THREADS  One thread at a time per stream. ReportLog and ReportText belong to the caller. */
#ifndef REPORT_H
#define REPORT_H

#include "base.h"

#include <assert.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <sys/ioctl.h>

enum { REPORT_FIELDS = 32, REPORT_CELLS = 32, REPORT_NARROW = 24 };

/* ------------------------------------------------------------------------------------------------
 * numbers and durations */

/* text <- a number by a format of one double, in the C locale */
static inline char *report_number(char *text, size_t size, const char *format, double value) {
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0), before = uselocale(c);
    snprintf(text, size, format, value);
    uselocale(before);
    if (c) freelocale(c);
    return text;
}

/* strtod in the C locale */
static inline double report_value(const char *text, char **end) {
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0), before = uselocale(c);
    double value = strtod(text, end);
    uselocale(before);
    if (c) freelocale(c);
    return value;
}

/* text <- 1:23 or 1:02:03; "-" for what is no duration */
static inline void report_duration(char *text, size_t size, double seconds) {
    long long s = seconds >= 0 && seconds < 1e12 ? (long long)(seconds + 0.5) : -1;
    if (s < 0)
        snprintf(text, size, "-");
    else if (s < 3600)
        snprintf(text, size, "%lld:%02lld", s / 60, s % 60);
    else
        snprintf(text, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
}

/* ------------------------------------------------------------------------------------------------
 * log.csv */

/* format: of one double; a NaN was not measured and is printed as an empty value */
typedef struct ReportColumn {
    const char *name, *format;
} ReportColumn;

typedef struct ReportLog {
    FILE *file;
    const ReportColumn *columns;
    size_t count;
    char path[BASE_PATH];
} ReportLog;

/* Copy the rows up to `until`, if the old log has the same header. A killed run or a power cut
 * leaves partial rows and zero bytes: these are dropped. Returns 0, or -1 with errno set. */
static inline int report__keep_rows(ReportLog *log, FILE *old, const char *header, double until) {
    char *line = NULL, *end;
    size_t room = 0;
    ssize_t n = getline(&line, &room, old);
    int same = n > 0 && strcmp(line, header) == 0;
    while (same && (n = getline(&line, &room, old)) > 0) {
        size_t fields = 1, values = strspn(line, "0123456789+-.,einf");
        for (size_t i = 0; i < values; i++) fields += line[i] == ',';
        if (strcmp(line + values, "\n") != 0 || fields != log->count) continue;
        double first = report_value(line, &end);
        if (end > line && first <= until) fwrite(line, 1, (size_t)n, log->file);
    }
    free(line);
    return ferror(old) ? -1 : 0;
}

/* Open FOLDER/log.csv for appending. Rows of an existing log whose first column is at most
 * keep_until stay; NaN starts anew. The new file takes the place of the old one when it is whole.
 * columns must outlive the log. */
static inline int report_open_log(ReportLog *log, const char *folder, const ReportColumn *columns,
                                  size_t count, double keep_until, char *error, size_t size) {
    char temporary[BASE_PATH], header[BASE_PATH];
    size_t used = 0;
    *log = (ReportLog){.columns = columns, .count = count};
    snprintf(log->path, sizeof log->path, "%.*s/log.csv", BASE_PATH - 16, folder);
    snprintf(temporary, sizeof temporary, "%.*s/.log.csv.tmp", BASE_PATH - 16, folder);
    for (size_t i = 0; i < count && used < sizeof header; i++)
        used += (size_t)snprintf(header + used, sizeof header - used, "%s%s", columns[i].name,
                                 i + 1 < count ? "," : "\n");
    assert(count && used < sizeof header);

    int in = base_open(log->path, O_RDONLY);
    if (in < 0 && errno != ENOENT)
        return base_fail(error, size, -1, "%s: cannot be read: %s", log->path,
                         errno == ENODEV ? "it is not a regular file" : strerror(errno));
    unlink(temporary);
    int out = base_open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_APPEND);
    FILE *old = in < 0 ? NULL : fdopen(in, "r");
    log->file = out < 0 ? NULL : fdopen(out, "a");
    int failed = !log->file || (in >= 0 && !old);
    if (!failed) fputs(header, log->file);
    if (!failed && old && !isnan(keep_until))
        failed = report__keep_rows(log, old, header, keep_until);
    failed = failed || fflush(log->file) || base_sync(out) || rename(temporary, log->path);
    int code = errno;
    if (old) fclose(old);
    if (!failed) return 0;
    if (log->file) fclose(log->file);
    log->file = NULL;
    unlink(temporary);
    return base_fail(error, size, -1, "%s: cannot be written: %s", log->path, strerror(code));
}

/* Append a row of count values; a log that is not open ignores it. */
static inline int report_row(ReportLog *log, const double *values, char *error, size_t size) {
    char text[128];
    if (!log->file) return 0;
    for (size_t i = 0; i < log->count; i++) {
        *text = 0;
        if (!isnan(values[i])) report_number(text, sizeof text, log->columns[i].format, values[i]);
        fprintf(log->file, "%s%s", text, i + 1 < log->count ? "," : "\n");
    }
    if (!fflush(log->file) && !ferror(log->file)) return 0;
    return base_fail(error, size, -1, "%s: cannot be written: %s", log->path, strerror(errno));
}

static inline int report_close_log(ReportLog *log, char *error, size_t size) {
    if (!log->file) return 0;
    int failed = fflush(log->file) || base_sync(fileno(log->file)), code = errno;
    if (fclose(log->file) && !failed) failed = 1, code = errno;
    log->file = NULL;
    if (!failed) return 0;
    return base_fail(error, size, -1, "%s: cannot be written: %s", log->path, strerror(code));
}

/* ------------------------------------------------------------------------------------------------
 * the terminal */

/* Columns of the terminal behind f as it is now; 80 where there is none. */
static inline int report_columns(FILE *f) {
    struct winsize window = {0};
    if (!isatty(fileno(f))) return 80;
    if (ioctl(fileno(f), TIOCGWINSZ, &window) == 0 && window.ws_col) return window.ws_col;
    const char *columns = getenv("COLUMNS");
    int n = columns ? atoi(columns) : 0;
    return n > 0 && n < 10000 ? n : 80;
}

/* Columns that n bytes of UTF-8 take. */
static inline int report__width(const char *text, size_t n) {
    int width = 0;
    for (size_t i = 0; i < n; i++) width += (text[i] & 0xc0) != 0x80;
    return width;
}

/* Write a line in one call, in place of a progress line on a terminal. Failures are ignored, and a
 * SIGPIPE of this call is discarded. */
static inline void report__send(FILE *f, char *line, int ends) {
    const struct timespec at_once = {0};
    const char *term = getenv("TERM");
    int rewrites = isatty(fileno(f)) && term && strcmp(term, "dumb") != 0;
    char all[2 * BASE_PATH + 8];
    sigset_t pipe_signal, pending, before;
    int n = snprintf(all, sizeof all, "%s%s%s", rewrites ? "\r\033[K" : "", base_harmless(line),
                     ends || !rewrites ? "\n" : "");
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    sigpending(&pending);
    fflush(f);
    base_write(fileno(f), all, (size_t)n);
    if (!sigismember(&pending, SIGPIPE)) sigtimedwait(&pipe_signal, NULL, &at_once);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* importance: the least is dropped first; fields without text are left out */
typedef struct ReportField {
    char text[64];
    int importance;
} ReportField;

/* One line of fields, two blanks apart, narrower than the terminal: the least important fields are
 * dropped until it fits. A terminal's line is rewritten by the next call unless it `ends`. */
static inline void report_progress(FILE *f, const ReportField *fields, size_t count, int ends) {
    char line[REPORT_FIELDS * 66 + 1];
    int dropped[REPORT_FIELDS] = {0}, columns = report_columns(f);
    size_t used, least, shown;
    assert(count <= REPORT_FIELDS);
    do {
        used = least = shown = 0;
        line[0] = 0;
        for (size_t i = 0; i < count; i++) {
            if (dropped[i] || !*fields[i].text) continue;
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%s", used ? "  " : "",
                                     fields[i].text);
            if (!shown++ || fields[i].importance <= fields[least].importance) least = i;
        }
        if (shown > 1) dropped[least] = 1;
    } while (shown > 1 && report__width(line, used) >= columns);
    while (used && report__width(line, used) >= columns) used--; /* one field too wide */
    line[used] = 0;
    report__send(f, line, ends);
}

/* One sentence on a line of its own, in place of a progress line that stands there. */
__attribute__((format(printf, 2, 3))) static inline void report_note(FILE *f, const char *format,
                                                                     ...) {
    char text[2 * BASE_PATH];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    report__send(f, text, 1);
}

/* ------------------------------------------------------------------------------------------------
 * text within a width */

/* Print the words of a text from column `at`; later lines begin at column `indent`. A word is never
 * broken; a newline in the text ends a line. */
static inline void report_wrap(FILE *f, const char *text, int at, int indent, int width) {
    int words = 0; /* of this line */
    for (size_t n; *text; text += n + (text[n] != 0)) {
        n = strcspn(text, " \n");
        int w = report__width(text, n);
        if (n && words && at + 1 + w > width) {
            fputc('\n', f);
            at = words = 0;
        }
        if (n) {
            int blanks = words ? 1 : at ? 0 : indent;
            fprintf(f, "%*s%.*s", blanks, "", (int)n, text);
            at += blanks + w;
            words++;
        }
        if (text[n] == '\n') {
            fputc('\n', f);
            at = words = 0;
        }
    }
}

static inline void report_paragraph(FILE *f, const char *text, int indent, int width) {
    report_wrap(f, text, 0, indent, width);
    fputc('\n', f);
}

/* Print cells (rows, columns) as left-aligned columns two blanks apart. A column that does not fit
 * goes on in a line of its own, indented; only the last column is wrapped, under itself. */
static inline void report_table(FILE *f, const char *const *cells, size_t rows, size_t columns,
                                int width) {
    int start[REPORT_CELLS], below[REPORT_CELLS], at = 0;
    assert(columns && columns <= REPORT_CELLS);
    for (size_t c = 0; c < columns; c++) {
        int widest = 0;
        for (size_t r = 0; r < rows; r++) {
            int w = report__width(cells[r * columns + c], strlen(cells[r * columns + c]));
            widest = w > widest ? w : widest;
        }
        int least = c + 1 == columns && widest > REPORT_NARROW ? REPORT_NARROW : widest;
        below[c] = c > 0 && at + least > width;
        start[c] = below[c] ? 4 : at;
        at = start[c] + widest + 2;
    }
    for (const char *const *row = cells; row < cells + rows * columns; row += columns) {
        size_t filled = columns;
        while (filled && !*row[filled - 1]) filled--;
        at = 0;
        for (size_t c = 0; c < filled; c++) {
            if (below[c]) fputc('\n', f);
            if (below[c]) at = 0;
            if (!*row[c]) continue;
            fprintf(f, "%*s", start[c] - at, "");
            report_wrap(f, row[c], start[c], start[c], c + 1 < columns ? INT_MAX : width);
            at = start[c] + report__width(row[c], strlen(row[c]));
        }
        fputc('\n', f);
    }
}

/* ------------------------------------------------------------------------------------------------
 * text of a model on its way to the reader */

/* terminal: the reader is one. held: bytes of a character that is not whole yet. */
typedef struct ReportText {
    int terminal;
    size_t held;
    char bytes[8];
} ReportText;

/* Write n bytes; characters may come in pieces, and `last` ends the text. A terminal never receives
 * control characters other than newline and tab: they become '?'. */
static inline void report_text_put(ReportText *t, FILE *f, const char *text, size_t n, int last) {
    if (!t->terminal) fwrite(text, 1, n, f);
    for (size_t i = 0; t->terminal && i < n + !!last; i++) {
        if (i < n) t->bytes[t->held++] = text[i];
        while (t->held) {
            unsigned char c = (unsigned char)t->bytes[0];
            size_t length = base_printable(t->bytes, t->held);
            if (!length && c >= 0xc2 && t->held < 4 && i < n) break; /* may become a character */
            if (!length && c != '\n' && c != '\t') t->bytes[0] = '?';
            if (!length) length = 1;
            fwrite(t->bytes, 1, length, f);
            t->held -= length;
            memmove(t->bytes, t->bytes + length, t->held);
        }
    }
}

#endif
