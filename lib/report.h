/* report.h - what a run prints: log.csv, the progress line, tables that fit the terminal. C11, MIT.

     log       report_open_log, report_row, report_close_log: FOLDER/log.csv, one line per row
     terminal  report_columns, report_progress, report_note: lines for somebody who watches
     layout    report_table, report_paragraph, report_wrap: text within a width
     text      report_duration, report_number, report_value, report_text_put

   Errors: the log answers 0, or -1 and a sentence. Progress and notes never fail: a reader that has
   left costs the line and nothing else, and SIGPIPE is held back while they write.
   Numbers have a decimal point in every locale. A width counts characters, one column each.
   Threads: one thread at a time per stream. ReportLog and ReportText belong to the caller; nothing
   else is kept between calls. */
#ifndef REPORT_H
#define REPORT_H

#include "base.h"

#include <assert.h>
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
    if (!(seconds >= 0 && seconds < 1e12)) {
        snprintf(text, size, "-");
        return;
    }
    long long s = (long long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, size, "%lld:%02lld", s / 60, s % 60);
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

/* Is this line a whole row? A killed run or a power cut leaves half rows and zero bytes. */
static inline int report__is_row(const char *line, size_t n, size_t columns) {
    size_t commas = 0;
    for (size_t i = 0; i < n; i++) commas += line[i] == ',';
    return line[n - 1] == '\n' && commas + 1 == columns &&
           strspn(line, "0123456789+-.,einf") == n - 1;
}

/* Copy the rows up to keep_until, if the old log has the same first line; 0, or -1 and errno. */
static inline int report__keep_rows(ReportLog *log, FILE *old, const char *header, double until) {
    char *line = NULL, *end;
    size_t room = 0;
    ssize_t n = getline(&line, &room, old);
    int same = n > 0 && strcmp(line, header) == 0;
    while (same && (n = getline(&line, &room, old)) > 0) {
        if (!report__is_row(line, (size_t)n, log->count)) continue;
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

/* Append a row of count values; a log that is not open takes it and does nothing. */
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

/* Write a text in one call. Failures are ignored; a SIGPIPE of this call's is taken back. */
static inline void report__send(FILE *f, const char *text) {
    const struct timespec at_once = {0};
    sigset_t pipe_signal, pending, before;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    sigpending(&pending);
    fflush(f);
    base_write(fileno(f), text, strlen(text));
    if (!sigismember(&pending, SIGPIPE)) sigtimedwait(&pipe_signal, NULL, &at_once);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Can a line be rewritten in place? */
static inline int report__rewrites(FILE *f) {
    const char *term = getenv("TERM");
    return isatty(fileno(f)) && term && strcmp(term, "dumb") != 0;
}

/* importance: the least is dropped first; fields without text are left out */
typedef struct ReportField {
    char text[64];
    int importance;
} ReportField;

/* One line of fields, two blanks apart, narrower than the terminal: the least important fields are
 * dropped until it fits. A terminal's line is rewritten by the next call unless it `ends`. */
static inline void report_progress(FILE *f, const ReportField *fields, size_t count, int ends) {
    char line[REPORT_FIELDS * 66 + 1], all[sizeof line + 8];
    int dropped[REPORT_FIELDS] = {0}, columns = report_columns(f), rewrites = report__rewrites(f);
    size_t used, least, shown;
    assert(count <= REPORT_FIELDS);
    do {
        used = shown = 0;
        least = count;
        line[0] = 0;
        for (size_t i = 0; i < count; i++) {
            if (dropped[i] || !*fields[i].text) continue;
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%s", used ? "  " : "",
                                     fields[i].text);
            if (least == count || fields[i].importance <= fields[least].importance) least = i;
            shown++;
        }
        if (shown > 1) dropped[least] = 1;
    } while (shown > 1 && report__width(line, used) >= columns);
    while (used && report__width(line, used) >= columns) used--; /* one field too wide */
    line[used] = 0;
    snprintf(all, sizeof all, "%s%s%s", rewrites ? "\r\033[K" : "", base_harmless(line),
             ends || !rewrites ? "\n" : "");
    report__send(f, all);
}

/* One sentence on a line of its own, in place of a progress line that stands there. */
__attribute__((format(printf, 2, 3))) static inline void report_note(FILE *f, const char *format,
                                                                     ...) {
    char text[2 * BASE_PATH], all[sizeof text + 8];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(all, sizeof all, "%s%s\n", report__rewrites(f) ? "\r\033[K" : "", base_harmless(text));
    report__send(f, all);
}

/* ------------------------------------------------------------------------------------------------
 * text within a width */

/* Print the words of a text from column `at`; lines begin at column `indent`. A word is never
 * broken; a newline in the text ends a line. */
static inline void report_wrap(FILE *f, const char *text, int at, int indent, int width) {
    int begins = 1, breaks = 0;
    for (const char *word = text; *word;) {
        size_t n = strcspn(word, " \n");
        int w = report__width(word, n);
        if (n && !breaks && !begins && at + 1 + w > width) breaks = 1;
        if (n && breaks) {
            for (; breaks; breaks--) fputc('\n', f);
            fprintf(f, "%*s", indent, "");
            at = indent;
            begins = 1;
        }
        if (n) {
            fprintf(f, "%s%.*s", begins ? "" : " ", (int)n, word);
            at += w + !begins;
            begins = 0;
        }
        breaks += word[n] == '\n';
        word += n + (word[n] != 0);
    }
}

static inline void report_paragraph(FILE *f, const char *text, int indent, int width) {
    fprintf(f, "%*s", indent, "");
    report_wrap(f, text, indent, indent, width);
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
            const char *cell = cells[r * columns + c];
            int w = report__width(cell, strlen(cell));
            widest = w > widest ? w : widest;
        }
        int least = c + 1 == columns && widest > REPORT_NARROW ? REPORT_NARROW : widest;
        below[c] = c > 0 && at + least > width;
        start[c] = below[c] ? 4 : at;
        at = start[c] + widest + 2;
    }
    for (size_t r = 0; r < rows; r++) {
        const char *const *row = cells + r * columns;
        size_t filled = columns;
        int used = 0;
        while (filled && !*row[filled - 1]) filled--;
        for (size_t c = 0; c < filled; c++) {
            if (below[c]) fputc('\n', f);
            if (below[c]) used = 0;
            if (!*row[c]) continue;
            fprintf(f, "%*s", start[c] - used, "");
            if (c + 1 == columns) report_wrap(f, row[c], start[c], start[c], width);
            if (c + 1 < columns) fputs(row[c], f);
            used = start[c] + report__width(row[c], strlen(row[c]));
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
    char bytes[32];
} ReportText;

/* Write n bytes, of which characters may come in pieces; `last` ends the text. A terminal never
 * receives control characters other than newline and tab: they become '?'. */
static inline void report_text_put(ReportText *t, FILE *f, const char *text, size_t n, int last) {
    if (!t->terminal) fwrite(text, 1, n, f);
    for (size_t i = 0; t->terminal && i < n + !!last; i++) {
        if (i < n) t->bytes[t->held++] = text[i];
        while (t->held) {
            unsigned char c = (unsigned char)t->bytes[0];
            size_t whole = c < 0xc2 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 1;
            size_t length = base_printable(t->bytes, t->held);
            if (!length && t->held < whole && i < n) break;
            if (!length && c != '\n' && c != '\t') t->bytes[0] = '?';
            if (!length) length = 1;
            fwrite(t->bytes, 1, length, f);
            t->held -= length;
            memmove(t->bytes, t->bytes + length, t->held);
        }
    }
}

#endif
