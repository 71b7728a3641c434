/* flags.c - tests of lib/flags.h: every kind of flag, every malformed value, sentences, help. */
#include "../lib/flags.h"
#include "test.h"

#include <limits.h>

typedef struct Values {
    int bare, nesterov;
    long steps, warmup, offset, seed;
    double rate, decay;
    const char *data, *prompt, *rule, *dtype, *list, *page;
} Values;

static const char *choice_rule(size_t i) {
    static const char *const words[13] = {"signmuon",  "muon",     "adamw",     "sgd",
                                          "lion",      "signum",   "signsgd",   "ef21-muon",
                                          "ef21-topk", "gt-nsgdm", "gt-signum", "demuon"};
    return words[i];
}
static const char *choice_dtype(size_t i) {
    static const char *const words[] = {"fp32", "bf16", NULL};
    return words[i];
}

#define AT(name) offsetof(Values, name)
#define LONG_HELP                                                                                  \
    "a help text that is much longer than one line of eighty columns, so that it has to go on "    \
    "below, with arXiv:2510.00643 and one-word-of-thirty-characters in it"
static const Flag table[] = {
    {"Data", "data", FLAG_TEXT, AT(data), "a.txt", 0, 0, NULL, "PATH", LONG_HELP, FLAG_COMMON},
    {"Data", "prompt", FLAG_TEXT, AT(prompt), "\n", 0, 0, NULL, "TEXT", "how it begins", 0},
    {"Optimizer of it", "rule", FLAG_CHOICE, AT(rule), "signmuon", 0, 0, choice_rule, "NAME",
     LONG_HELP, FLAG_COMMON},
    {"Optimizer of it", "rate", FLAG_REAL, AT(rate), "auto", 0, 1e6, NULL, "RATE", "peak", 0},
    {"Optimizer of it", "weight-decay", FLAG_REAL, AT(decay), "0.1", 0, 1e3, NULL, "WD", LONG_HELP,
     0},
    {"Optimizer of it", "nesterov", FLAG_AUTO_SWITCH, AT(nesterov), "auto", 0, 0, NULL, "on|off",
     "look ahead", 0},
    {"Run", "steps", FLAG_WHOLE, AT(steps), "2000", 0, 1e15, NULL, "N", "optimizer steps",
     FLAG_COMMON},
    {"Run", "warmup", FLAG_WHOLE, AT(warmup), "auto", 0, 1e15, NULL, "STEPS", "linear rise", 0},
    {"Run", "offset", FLAG_WHOLE, AT(offset), "-1", -5, 5, NULL, "N", "may be negative", 0},
    {"Run", "seed", FLAG_WHOLE, AT(seed), "1", 0, 1e19, NULL, "N", "of all that is random", 0},
    {"Run", "dtype", FLAG_CHOICE, AT(dtype), "fp32", 0, 0, choice_dtype, "TYPE", "of products", 0},
    {"Run", "polar-after-vote", FLAG_SWITCH, AT(bare), "off", 0, 0, NULL, NULL, LONG_HELP, 0},
    {"Help", "list", FLAG_CHOICE, AT(list), "", 0, 0, choice_dtype, "WHAT", "explain", 0},
    {"Help", "page", FLAG_TEXT, AT(page), "", 0, 0, NULL, "[GROUP]", "this page", 0},
};
enum { FLAGS = COUNT(table) };

static unsigned char given[FLAGS];
static char error[512];

static const Flag *flag(const char *name) {
    size_t i = flags_find(table, FLAGS, name);
    CHECK(i < FLAGS, "%s", name);
    return &table[i < FLAGS ? i : 0];
}

/* The defaults, and over them a command line of words between bars. */
static int parse(Values *v, const char *line) {
    static char words[4][512];
    static unsigned next;
    char *argv[24] = {(char *)"program"}, *text = words[next++ % 4];
    int argc = 1;
    memset(v, 0, sizeof *v);
    flags_defaults(table, FLAGS, v);
    snprintf(text, sizeof *words, "%s", line);
    for (char *word = strtok(text, "|"); word; word = strtok(NULL, "|")) argv[argc++] = word;
    *error = 0;
    return flags_parse(table, FLAGS, v, argc, argv, given, error, sizeof error);
}

TEST(flags_default_is_what_the_table_says) {
    Values v;
    char text[64];
    CHECK(parse(&v, "") == 0);
    CHECK(v.steps == 2000 && v.warmup == -1 && v.nesterov == -1 && !v.bare && isnan(v.rate));
    CHECK(v.offset == -1 && v.decay == 0.1 && !strcmp(v.rule, "signmuon") && !*v.list);
    for (size_t i = 0; i < FLAGS; i++) {
        const char *printed = flags_text(&table[i], &v, text, sizeof text);
        CHECK(!given[i] && !strcmp(printed, table[i].fallback), "%s: %s", table[i].name, printed);
    }
}

TEST(flags_take_dashes_underscores_and_equals_signs) {
    static const char *const rows[][2] = {
        {"--steps|3|--weight-decay|0.25|--polar-after-vote", "--steps=3|--weight_decay=2.5e-1|"
                                                             "--polar_after_vote=on"},
        {"--steps|+1200", "--steps|7|--steps=12e2"},
        {"--offset|-5|--nesterov", "--offset=-5|--nesterov|on"},
        {"--rate|auto|--warmup|auto|--nesterov|auto", ""},
        {"--polar-after-vote|off|--Steps|2e3", "--rule|SignMuon"},
        {"--rule|ef21_muon|--dtype=bf16", "--dtype|bf16|--rule=ef21-muon"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Values a, b;
        char x[64], y[64];
        CHECK(parse(&a, rows[i][0]) == 0, "%s: %s", rows[i][0], error);
        CHECK(parse(&b, rows[i][1]) == 0, "%s: %s", rows[i][1], error);
        for (size_t k = 0; k < FLAGS; k++)
            CHECK(!strcmp(flags_text(&table[k], &a, x, 64), flags_text(&table[k], &b, y, 64)),
                  "%s: %s, %s", rows[i][0], x, y);
    }
    Values v;
    CHECK(parse(&v, "--data=a=b|--prompt=--x|--page") == 0);
    CHECK(!strcmp(v.data, "a=b") && !strcmp(v.prompt, "--x") && !*v.page);
    CHECK(given[0] && given[1] && !given[2] && given[FLAGS - 1]);
    CHECK(parse(&v, "--page|run|--steps|5") == 0 && !strcmp(v.page, "run") && v.steps == 5);
}

TEST(flags_refuse_every_malformed_value) {
    static const char *const nonsense[] = {
        "",     "x",   "1x",    "x1",  " 1",     "1 ",    "1,5",   "0x10",    "nan",      "-nan",
        "inf",  "1e",  "1e999", "--1", "1e-999", "1.2.3", "1\n",   "maybe",   "ON",       "true",
        "AUTO", "on ", "-",     "+",   "١",      "-1e9",  "1e300", "\x1b[2J", "infinity", "fp 32",
    };
    for (size_t i = 0; i < FLAGS; i++)
        for (size_t k = 0; k < COUNT(nonsense); k++) {
            const Flag *f = &table[i];
            char name[80];
            Values v, before;
            if (f->kind == FLAG_TEXT) continue;
            parse(&v, "");
            before = v;
            int n = snprintf(name, sizeof name, "--%s ", f->name);
            CHECK(flags_set(f, &v, nonsense[k], error, sizeof error) < 0, "%s%s", name,
                  nonsense[k]);
            CHECK(memcmp(&v, &before, sizeof v) == 0, "%s%s", name, nonsense[k]);
            CHECK(!strncmp(error, name, (size_t)n) && !strpbrk(error, "\n\x1b"), "%s", error);
        }
    static const char *const lines[] = {
        "--steps=1.5",         "--steps=auto", "--steps=-1",
        "--steps=1e16",        "--warmup=-1",  "--seed=9223372036854775808",
        "--offset=6",          "--offset=-6",  "--rate=-0.1",
        "--rate=1000000.5",    "--dtype=auto", "--polar-after-vote=auto",
        "--weight-decay=auto", "--rule=muo",   "--polar-after-vote=1",
    };
    for (size_t i = 0; i < COUNT(lines); i++) {
        Values v;
        CHECK(parse(&v, lines[i]) < 0, "%s", lines[i]);
    }
}

TEST(flags_print_fewest_digits_that_read_back) {
    static const double numbers[] = {0.1,    3e-4,      1.0 / 3, 1e6,   123456.789, 0,
                                     999999, 0.3 + 0.6, 1e-300,  5e-11, 2.5,        100};
    Values v, w;
    char text[64], shorter[64];
    parse(&v, "");
    for (size_t i = 0; i < 1000 + COUNT(numbers); i++) {
        double any = test_uniform(7, i) * pow(10, (double)(i % 20) - 14);
        double x = i < 1000 ? any : numbers[i - 1000];
        v.rate = x;
        const char *printed = flags_text(flag("rate"), &v, text, sizeof text);
        CHECK(flags_set(flag("rate"), &w, printed, error, sizeof error) == 0 && w.rate == x, "%s",
              printed);
        int digits = 0;
        for (const char *c = printed; *c && *c != 'e'; c++) digits += isdigit(*c) != 0;
        for (int d = 1; d < digits && d < 17; d++) {
            snprintf(shorter, sizeof shorter, "%.*g", d, x);
            CHECK(strtod(shorter, NULL) != x || strlen(shorter) >= strlen(printed), "%s", printed);
        }
    }
    for (long n = LONG_MAX - 1023; n > 0; n = n / 3 - 1) {
        v.seed = n;
        const char *printed = flags_text(flag("seed"), &v, text, sizeof text);
        CHECK(flags_set(flag("seed"), &w, printed, error, sizeof error) == 0 && w.seed == n);
    }
}

TEST(flags_equal_compares_values_and_not_spellings) {
    static const char *const rows[][11] = {
        /* differ */ {"steps=2001", "steps=", "rate=0.1", "weight-decay=0.1000001", "rule=muon",
                      "rule=no rule", "data=A.txt", "nesterov=off"},
        /* equal */
        {"steps=2e3", "steps=2000", "rate=auto", "weight-decay=1e-1", "rule=SIGNMUON", "data=a.txt",
         "nesterov=auto", "polar-after-vote=off", "list="},
    };
    Values v;
    parse(&v, "");
    for (int equal = 0; equal < 2; equal++)
        for (const char *const *row = rows[equal]; *row; row++) {
            char name[32] = "";
            snprintf(name, sizeof name, "%.*s", (int)strcspn(*row, "="), *row);
            CHECK(flags_equal(flag(name), &v, strchr(*row, '=') + 1) == equal, "%s", *row);
        }
}

#define UNKNOWN(word) "--rule does not know '" word "', none of its 12 values"
#define SIXTY "word-that-is-too-long-for-any-table-and-is-cut-off-at-60-cha"

TEST(flags_wrong_words_get_a_sentence_with_help) {
    static const char *const rows[][2] = {
        {"--setps|3", "'--setps' is not a flag; did you mean --steps?"},
        {"--step=3", "'--step' is not a flag; did you mean --steps?"},
        {"--decay|1", "'--decay' is not a flag; did you mean --weight-decay?"},
        {"--nonsense", "'--nonsense' is not a flag"},
        {"steps", "'steps' is not a flag; did you mean --steps?"},
        {"-steps=4", "'-steps' is not a flag; did you mean --steps?"},
        {"qqqqqq", "'qqqqqq' is not a flag: flags begin with --"},
        {"--steps|3|4", "'4' is not a flag: flags begin with --"},
        {"--data|sh_0.bin|sh_1.bin", "'sh_1.bin' is not a flag; --data takes one value: quote a "
                                     "pattern or blanks, --data '...'"},
        {"--polar-after-vote|true", "'true' is not a flag; --polar-after-vote takes on or off"},
        {"--steps", "--steps needs a value: --steps N"},
        {"--steps|many", "--steps takes a whole number from 0 to 1e+15, not 'many'"},
        {"--rate|-1", "--rate takes a number from 0 to 1000000 or auto, not '-1'"},
        {"--nesterov=no", "--nesterov takes auto, on or off, not 'no'"},
        {"--dtype|fp16", "--dtype takes one of 2: fp32, bf16; not 'fp16'"},
        {"--rule|sigmuon", UNKNOWN("sigmuon") "; did you mean signmuon?"},
        {"--rule|zzzzzz", UNKNOWN("zzzzzz")},
        {"--rule|ADAM", UNKNOWN("ADAM") "; did you mean adamw?"},
        {"--rule|ef21", UNKNOWN("ef21") "; did you mean ef21-muon or ef21-topk?"},
        {"--rule|uon", UNKNOWN("uon") "; did you mean signmuon, muon or ef21-muon?"},
        {"--rule|gt-sgnum", UNKNOWN("gt-sgnum") "; did you mean gt-signum?"},
        {"--rule=", UNKNOWN("")},
        {"--rule|" SIXTY "racters", UNKNOWN(SIXTY)},
        {"\x1b[2J\xff", "'?[2J?' is not a flag: flags begin with --"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        Values v;
        CHECK(parse(&v, rows[i][0]) < 0, "%s", rows[i][0]);
        CHECK(strcmp(error, rows[i][1]) == 0, "%s", error);
    }
}

/* The help as text. */
static char *help_of(const char *group, int columns) {
    static char text[1 << 15];
    FILE *f = fmemopen(text, sizeof text, "w");
    flags_help(f, table, FLAGS, group, columns);
    fclose(f);
    return text;
}

/* The words of a text, one blank apart; the text is cut up. */
static char *words_of(char *to, char *text) {
    char *at = to;
    for (char *word = strtok(text, " \n"); word; word = strtok(NULL, " \n"))
        at += sprintf(at, "%s ", word);
    return to;
}

TEST(flags_help_fits_columns_and_breaks_no_word) {
    static char wide[1 << 15], words[1 << 15];
    words_of(wide, help_of("all", 5000));
    CHECK(strstr(wide, "--rule NAME a help text") && strstr(wide, "demuon) [signmuon]"));
    CHECK(strstr(wide, "--dtype TYPE of products (fp32, bf16) [fp32]"));
    CHECK(strstr(wide, "--prompt TEXT how it begins [a newline]"));
    CHECK(strstr(wide, "--polar-after-vote a help") && !strstr(wide, "[off]"));
    for (int columns = 50; columns < 130; columns += columns == 80 ? 1 : 10) {
        char *text = help_of("all", columns);
        CHECK(strstr(text, "signsgd") == NULL || columns > 120, "choices do not fit");
        for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
            size_t blanks = strspn(line, " ");
            CHECK(end - line <= columns, "%d columns: %.*s", columns, (int)(end - line), line);
            CHECK(end == line || end[-1] != ' ', "%.*s", (int)(end - line), line);
            CHECK(blanks == 0 || line[blanks] == '-' || blanks == (columns < 52 ? 8 : 26));
        }
        words_of(words, text);
        static const char *const whole[] = {LONG_HELP, "--polar-after-vote", "optimizer steps"};
        for (size_t i = 0; i < COUNT(whole); i++)
            CHECK(strstr(words, whole[i]), "%d columns: %s", columns, whole[i]);
    }
}

TEST(flags_help_prints_common_flags_or_one_group) {
#define GROUPS "Groups: Data, Optimizer, Run, Help, all\n"
    static const char *const rows[][3] = {
        /* group, what its help has, what it has not */
        {NULL, "--data PATH", "--prompt"}, {"", "--data PATH", "--prompt"},
        {NULL, GROUPS, "\nHelp\n"},        {"optim", "Optimizer of it\n  --rule", "--data"},
        {"RUN", "--warmup", "Groups"},     {"all", "--page [GROUP]", "Groups"},
        {"models", GROUPS, "--"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *text = help_of(rows[i][0], 80);
        CHECK(strstr(text, rows[i][1]) && !strstr(text, rows[i][2]), "%s", text);
    }
}

TEST(numbers_keep_points_in_a_german_locale) {
    static const ReportColumn columns[] = {{"step", "%.0f"}, {"loss", "%.3f"}};
    const char *folder = test_folder();
    const TestResult *made = test_command("localedef -i de_DE -f UTF-8 %s/de_DE.UTF-8", folder);
    setenv("LOCPATH", folder, 1);
    Values v;
    ReportLog log;
    char text[64], *written = NULL;
    if (made->status || !setlocale(LC_ALL, "de_DE.UTF-8") ||
        strcmp(localeconv()->decimal_point, ",")) {
        printf("    skipped: no locale with commas can be made here\n");
    } else {
        CHECK(parse(&v, "--rate|1.5|--weight-decay|2.5e-1") == 0 && v.rate == 1.5, "%s", error);
        CHECK(strcmp(flags_text(flag("weight-decay"), &v, text, sizeof text), "0.25") == 0);
        CHECK(parse(&v, "--rate|1,5") < 0);
        for (double step = 1; step < 3; step++) { /* the second opening reads the first row */
            double row[] = {step, 0.25};
            CHECK(!report_open_log(&log, folder, columns, 2, 1, error, sizeof error));
            CHECK(!report_row(&log, row, error, sizeof error));
            CHECK(!report_close_log(&log, error, sizeof error));
        }
        written = test_read(test_path("log.csv"), NULL);
        CHECK(strcmp(written, "step,loss\n1,0.250\n2,0.250\n") == 0, "%s", written);
        free(written);
    }
}
