/* flags.h - a table of flags <-> a struct: parse, suggest, help, text form. C11 + POSIX, MIT.

     typedef struct { long steps; double rate; const char *rule; } Options;
     static const Flag table[] = {
         {.group = "Run", .name = "steps", .kind = FLAG_WHOLE, .field = offsetof(Options, steps),
          .fallback = "100", .least = 1, .most = 1e9, .argument = "N", .help = "optimizer steps"},
         ...};

     flags_defaults(table, count, &options);
     if (flags_parse(table, count, &options, argc, argv, given, error, sizeof error)) ...

   One row makes the field, the parser, the range check, the help and the text form.
   Words     --name value or --name=value; - and _ are alike; the last of two values counts
   Numbers   decimal, with a decimal point in every locale; 1e3 is a whole number
   Memory    nothing is copied: text fields point into argv, or to the text that was set
   Errors    0, or -1 and a sentence that begins with the flag
   A flag whose .argument begins with '[' may stand without a value, which is "" then. */
#ifndef FLAGS_H
#define FLAGS_H

#include "report.h"

#include <ctype.h>
#include <strings.h>

typedef enum FlagKind {
    FLAG_SWITCH,     /* int 0 or 1; on when bare */
    FLAG_WHOLE,      /* long */
    FLAG_REAL,       /* double */
    FLAG_TEXT,       /* const char * */
    FLAG_CHOICE,     /* const char *, one of choice(i) */
    FLAG_AUTO_SWITCH /* int -1 (auto), 0 or 1; on when bare */
} FlagKind;

enum { FLAG_COMMON = 1 << 8, FLAGS_NEAR = 3, FLAGS_INDENT = 26 };

typedef struct Flag {
    const char *group, *name;
    FlagKind kind;
    size_t field;         /* offsetof */
    const char *fallback; /* the default as typed; "auto" leaves it to the program: NaN for
                             FLAG_REAL, -1 for FLAG_WHOLE, NULL for texts and choices */
    double least, most;   /* inclusive */
    const char *(*choice)(size_t i); /* NULL after the last */
    const char *argument;            /* "N", "PATH"; NULL for switches */
    const char *help;
    int keep; /* the caller's own mark; FLAG_COMMON puts the flag on the first page of help */
} Flag;

/* Levenshtein distance of two words of at most 63 letters; - and _ and both cases are alike */
static inline size_t flags__distance(const char *a, const char *b) {
    size_t row[64], n = strlen(b);
    if (n > 63 || strlen(a) > 63) return SIZE_MAX;
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        int letter = a[i] == '_' ? '-' : tolower((unsigned char)a[i]);
        size_t diagonal = row[0]++;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (letter != (b[j] == '_' ? '-' : tolower((unsigned char)b[j])));
            diagonal = row[j + 1];
            if (row[j] + 1 < best) best = row[j] + 1;
            if (diagonal + 1 < best) best = diagonal + 1;
            row[j + 1] = best;
        }
    }
    return row[n];
}

static inline size_t flags_find(const Flag *table, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (flags__distance(name, table[i].name) == 0) return i;
    return SIZE_MAX;
}

/* buffer <- "; did you mean a, b or c?": the choices, or without them the names of a table, at the
 * smallest distance; "" when none is near */
static inline void flags__suggest(const char *word, const Flag *table, size_t count,
                                  const char *(*choice)(size_t), char *buffer, size_t size) {
    const char *found[FLAGS_NEAR], *candidate;
    size_t n = 0, used = 0, length = strlen(word);
    for (size_t d = 0; n == 0 && d <= 3 && d <= 1 + length / 3; d++)
        for (size_t i = 0; n < FLAGS_NEAR; i++) {
            candidate = choice ? choice(i) : i < count ? table[i].name : NULL;
            if (!candidate) break;
            size_t distance = flags__distance(word, candidate);
            if (length >= 3 && distance > 1 && strcasestr(candidate, word)) distance = 1;
            if (distance == d) found[n++] = candidate;
        }
    *buffer = 0;
    for (size_t i = 0; i < n && used < size; i++) {
        const char *before = i == 0 ? "; did you mean " : i + 1 < n ? ", " : " or ";
        used += (size_t)snprintf(buffer + used, size - used, "%s%s%s%s", before, choice ? "" : "--",
                                 found[i], i + 1 < n ? "" : "?");
    }
}

/* buffer <- "a, b, c", as far as there is room; returns the length of all */
static inline size_t flags__list(const char *(*choice)(size_t), char *buffer, size_t size) {
    size_t used = 0;
    for (size_t i = 0; choice(i) && used < size; i++)
        used += (size_t)snprintf(buffer + used, size - used, "%s%s", i ? ", " : "", choice(i));
    return used;
}

/* ------------------------------------------------------------------------------------------------
 * one flag: text -> field -> text */

static inline int flags__is_switch(const Flag *f) {
    return f->kind == FLAG_SWITCH || f->kind == FLAG_AUTO_SWITCH;
}

static inline int flags__is_text(const Flag *f) {
    return f->kind == FLAG_TEXT || f->kind == FLAG_CHOICE;
}

/* Set the field from all of the text. Returns 0, or -1 and what the flag takes. */
static inline int flags_set(const Flag *f, void *options, const char *text, char *error,
                            size_t size) {
    void *field = (char *)options + f->field;
    int on = strcmp(text, "on") == 0, may_auto = strcmp(f->fallback, "auto") == 0, valid = 1;
    int is_auto = strcmp(text, "auto") == 0 && (may_auto || f->kind == FLAG_AUTO_SWITCH);
    if (flags__is_switch(f)) {
        valid = on || is_auto || strcmp(text, "off") == 0;
        if (valid) *(int *)field = is_auto ? -1 : on;
        if (!valid)
            snprintf(error, size, "--%s takes %son or off, not '%.60s'", f->name,
                     f->kind == FLAG_SWITCH ? "" : "auto, ", text);
    } else if (f->kind == FLAG_CHOICE && !is_auto) {
        char list[100], hint[256];
        size_t i = 0;
        while (f->choice(i) && flags__distance(text, f->choice(i))) i++;
        valid = f->choice(i) != NULL;
        if (valid) *(const char **)field = f->choice(i);
        flags__list(f->choice, list, sizeof list);
        flags__suggest(text, NULL, 0, f->choice, hint, sizeof hint);
        if (!valid && snprintf(error, size, "--%s takes one of %zu: %s; not '%s'", f->name, i, list,
                               text) > 100) /* always, when the list was cut off */
            snprintf(error, size, "--%s does not know '%.60s', none of its %zu values%s", f->name,
                     text, i, hint);
    } else if (flags__is_text(f)) {
        *(const char **)field = is_auto ? NULL : text;
    } else {
        char *end, least[32], most[32];
        int whole = f->kind == FLAG_WHOLE, digits = !text[strspn(text, "+-0123456789")];
        errno = 0;
        double value = report_value(text, &end);
        valid = is_auto || (end > text && !*end && !text[strspn(text, "0123456789.eE+-")] &&
                            !errno && value >= f->least && value <= f->most &&
                            (!whole || (value == floor(value) && fabs(value) < 0x1p63)));
        if (!valid)
            snprintf(error, size, "--%s takes a %s from %s to %s%s, not '%.60s'", f->name,
                     whole ? "whole number" : "number",
                     report_number(least, sizeof least, "%.15g", f->least),
                     report_number(most, sizeof most, "%.15g", f->most), may_auto ? " or auto" : "",
                     text);
        else if (whole) /* strtol is exact beyond 2^53 */
            *(long *)field = is_auto ? -1 : digits ? strtol(text, NULL, 10) : (long)value;
        else
            *(double *)field = is_auto ? NAN : value;
    }
    if (!valid) base_harmless(error);
    return valid ? 0 : -1;
}

/* The value as a user would type it, in buffer or elsewhere; reals with the fewest digits that read
 * back. */
static inline const char *flags_text(const Flag *f, const void *options, char *buffer,
                                     size_t size) {
    const void *field = (const char *)options + f->field;
    if (flags__is_text(f)) {
        const char *text = *(const char *const *)field;
        return text ? text : "auto";
    }
    if (flags__is_switch(f)) {
        int value = *(const int *)field;
        return value < 0 ? "auto" : value ? "on" : "off";
    }
    if (f->kind == FLAG_WHOLE) {
        long value = *(const long *)field;
        if (value == -1 && strcmp(f->fallback, "auto") == 0) return "auto";
        snprintf(buffer, size, "%ld", value);
        return buffer;
    }
    double value = *(const double *)field;
    if (isnan(value)) return "auto";
    for (int digits = 1; digits <= 17; digits++) {
        char format[16];
        snprintf(format, sizeof format, "%%.%dg", digits);
        report_number(buffer, size, format, value);
        if (report_value(buffer, NULL) == value) break;
    }
    return buffer;
}

/* Does a text say the same as the field? */
static inline int flags_equal(const Flag *f, const void *options, const char *text) {
    union {
        int i;
        long l;
        double d;
        const char *s;
    } other;
    Flag copy = *f;
    char a[64], b[64], error[256];
    copy.field = 0;
    const char *here = flags_text(f, options, a, sizeof a);
    return strcmp(here, text) == 0 || (!flags_set(&copy, &other, text, error, sizeof error) &&
                                       strcmp(here, flags_text(&copy, &other, b, sizeof b)) == 0);
}

/* ------------------------------------------------------------------------------------------------
 * all flags: defaults, a command line, help */

/* A default may be a text that is no choice, such as "". */
static inline void flags_defaults(const Flag *table, size_t count, void *options) {
    char error[256];
    for (const Flag *f = table; f < table + count; f++) {
        int is_auto = strcmp(f->fallback, "auto") == 0, failed = 0;
        if (flags__is_text(f))
            *(const char **)(void *)((char *)options + f->field) = is_auto ? NULL : f->fallback;
        else
            failed = flags_set(f, options, f->fallback, error, sizeof error);
        assert(!failed);
        (void)failed;
    }
}

/* Read a command line over the values that stand in options; given (count bytes) <- 1 for flags
 * that it names. Returns 0, or -1 and a sentence. */
static inline int flags_parse(const Flag *table, size_t count, void *options, int argc, char **argv,
                              unsigned char *given, char *error, size_t size) {
    const Flag *before = NULL;
    memset(given, 0, count);
    for (int a = 1; a < argc; a++) {
        char name[64], hint[256];
        const char *word = argv[a] ? argv[a] : "", *value = strchr(word, '=');
        snprintf(name, sizeof name, "%.*s", value ? (int)(value - word) : 64, word);
        int dashed = strncmp(name, "--", 2) == 0;
        size_t i = dashed ? flags_find(table, count, name + 2) : SIZE_MAX;
        if (i == SIZE_MAX) {
            int follows = before && *word != '-';
            flags__suggest(name + strspn(name, "-"), table, count, NULL, hint, sizeof hint);
            if (follows && before->kind == FLAG_TEXT)
                snprintf(hint, sizeof hint,
                         "; --%s takes one value: quote a pattern or blanks, --%s '...'",
                         before->name, before->name);
            else if (follows && flags__is_switch(before))
                snprintf(hint, sizeof hint, "; --%s takes on or off", before->name);
            else if (!*hint && !dashed)
                snprintf(hint, sizeof hint, ": flags begin with --");
            base_fail(error, size, -1, "'%.60s' is not a flag%s", value ? name : word, hint);
            base_harmless(error);
            return -1;
        }
        const Flag *f = before = &table[i];
        const char *next = a + 1 < argc ? argv[a + 1] : NULL;
        int takes = next && strncmp(next, "--", 2) != 0, is_switch = flags__is_switch(f);
        if (takes && is_switch)
            takes = !strcmp(next, "on") || !strcmp(next, "off") || !strcmp(next, "auto");
        if (value)
            value++;
        else if (takes)
            value = argv[++a];
        else if (is_switch)
            value = "on";
        else if (f->argument && *f->argument == '[')
            value = "";
        else
            return base_fail(error, size, -1, "--%s needs a value: --%s %s", f->name, f->name,
                             f->argument ? f->argument : "VALUE");
        if (flags_set(f, options, value, error, size)) return -1;
        given[i] = 1;
    }
    return 0;
}

/* Print one flag: name and argument, then help, choices and default under their own column. */
static inline void flags__help_row(FILE *out, const Flag *f, int columns) {
    char text[1024], list[256] = "";
    const char *argument = f->argument ? f->argument : "", *fallback = f->fallback;
    int indent = columns >= 2 * FLAGS_INDENT ? FLAGS_INDENT : 8;
    int used = fprintf(out, "  --%s%s%s", f->name, *argument ? " " : "", argument);
    if (used + 2 > indent) {
        fputc('\n', out);
        used = 0;
    }
    fprintf(out, "%*s", indent - used, "");
    size_t n = f->kind == FLAG_CHOICE ? flags__list(f->choice, list, sizeof list) : 0;
    int listed = n > 0 && n < sizeof list && (int)n + 2 <= columns - indent;
    if (flags__is_switch(f) && strcmp(fallback, "off") == 0) fallback = "";
    if (strcmp(fallback, "\n") == 0) fallback = "a newline";
    snprintf(text, sizeof text, "%s%s%s%s%s%s%s", f->help, listed ? " (" : "", listed ? list : "",
             listed ? ")" : "", *fallback ? " [" : "", fallback, *fallback ? "]" : "");
    report_wrap(out, text, indent, indent, columns);
    fputc('\n', out);
}

/* Print the help of a group (the beginning of its name is enough), of all groups ("all"), or the
 * first page (NULL or "": the flags marked FLAG_COMMON). The first page ends with the names of the
 * groups; so does the answer to a name that is no group. */
static inline void flags_help(FILE *f, const Flag *table, size_t count, const char *group,
                              int columns) {
    const char *heading = "", *last = "";
    char groups[512] = "Groups:";
    int first_page = !group || !*group, all = !first_page && strcasecmp(group, "all") == 0;
    size_t used = strlen(groups);
    for (const Flag *row = table; row < table + count; row++) {
        int wanted = first_page ? row->keep & FLAG_COMMON
                                : all || strncasecmp(group, row->group, strlen(group)) == 0;
        if (strcmp(last, row->group) != 0 && used < sizeof groups)
            used += (size_t)snprintf(groups + used, sizeof groups - used, " %.*s,",
                                     (int)strcspn(row->group, " "), row->group);
        last = row->group;
        if (!wanted) continue;
        if (strcmp(heading, last) != 0) fprintf(f, "%s%s\n", *heading ? "\n" : "", last);
        heading = last;
        flags__help_row(f, row, columns);
    }
    if (!first_page && *heading) return;
    strncat(groups, " all", sizeof groups - strlen(groups) - 1);
    if (*heading) fputc('\n', f);
    report_paragraph(f, groups, 0, columns);
}

#endif
