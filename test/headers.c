/* headers.c - the headers and the library in other people's programs: they compile alone, as C11
   and as C++17, the programs in their first comments run, and what `make install` copies is
   complete.

   CC and EXTRA come from the environment, as make test sets them; CXX is the C++ compiler. */
#include "../optimizer.h"
#include "test.h"

/* The first PUBLIC ones are for every program; the others are the trainer's own and need POSIX. */
static const char *const headers[] = {
    "signmuon.h",        "ef21muon.h",  "demuon.h",         "optimizer.h",
    "options.h",         "run.h",       "record.h",         "dataloader.h",
    "lib/attack.h",      "lib/base.h",  "lib/checkpoint.h", "lib/comm.h",
    "lib/machine.h",     "lib/flags.h", "lib/gemm.h",       "lib/report.h",
    "lib/safetensors.h", "lib/team.h",  "lib/vector.h",
};
enum { PUBLIC = 4, HEADERS = sizeof headers / sizeof *headers };

#define WARNINGS "-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
#define C11 "-std=c11 " WARNINGS
#define CPP17 "-x c++ -std=c++17 " WARNINGS

static const char *variable(const char *name, const char *fallback) {
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

/* Does this program run here? Otherwise says what is not tested. */
static int available(const char *program) {
    int found = test_command("%s --version", program)->status == 0;
    if (!found) printf("    there is no %s here: not tested with it\n", program);
    return found;
}

/* Run a command that must say nothing, a compilation for example. */
static int is_silent(const TestResult *r, const char *what) {
    int silent = r->status == 0 && !*r->out && !*r->err;
    CHECK(silent, "%s: status %d\n%.1500s%.1500s", what, r->status, r->out, r->err);
    return silent;
}

static void write_text(const char *path, const char *text) { test_write(path, text, strlen(text)); }

/* Add a line to a program that includes a header. */
static void add_include(char *text, size_t size, const char *header) {
    size_t n = strlen(text);
    snprintf(text + n, size - n, "#include \"%s\"\n", header);
}

TEST(headers_compile_alone) {
    for (size_t i = 0; i < HEADERS; i++) {
        char twice[200] = "typedef int not_empty;\n";
        add_include(twice, sizeof twice, headers[i]);
        add_include(twice, sizeof twice, headers[i]);
        write_text(test_path("alone.c"), twice);
        is_silent(test_command("%s " C11 " %s -fsyntax-only -I. '%s'", variable("CC", "cc"),
                               i < PUBLIC ? "" : "-D_GNU_SOURCE", test_path("alone.c")),
                  headers[i]);
    }
}

/* All headers as C, the public ones as C++ too; some link with the optimizer only. */
TEST(headers_link_in_two_units) {
    const char *const compilers[] = {variable("CC", "cc"), variable("CXX", "c++")};
    for (size_t c = 0; c < 2; c++) {
        char all[1024] = "";
        if (c > 0 && !available(compilers[c])) continue;
        for (size_t i = 0; i < (c == 0 ? HEADERS : PUBLIC); i++)
            if (!strstr("options.h run.h record.h", headers[i]))
                add_include(all, sizeof all, headers[i]);
        write_text(test_path("first.c"), all);
        strcat(all, "int main(void) { return sm_words(65) == 2 && dm_topology_row(0) ? 0 : 1; }\n");
        write_text(test_path("second.c"), all);
        is_silent(
            test_command("cd '%s' && %s %s -I\"$OLDPWD\" -o both first.c second.c -lm -pthread "
                         "&& ./both",
                         test_folder(), compilers[c], c == 0 ? C11 " -D_GNU_SOURCE" : CPP17),
            compilers[c]);
    }
}

/* The program in a header's first comment, from the line `first` to the line that begins with
 * MEMORY, compiles as C11 without anything that it does not define itself. The number that it
 * prints behind `label` is near `value`, and its output holds `also`. */
TEST(programs_in_first_comments_print_their_targets) {
    static const struct {
        const char *header, *first, *label, *also;
        double value;
    } rows[] = {
        {"signmuon.h", "\n#define _DEFAULT_SOURCE", "w[4] = ", "(target 0.4", 0.4},
        {"ef21muon.h", "\n#include <stdio.h>", "w[6] = ", ", 7 bytes up", 0.2},
        {"demuon.h", "\n#include <stdio.h>", "x[0] = ", "rho 0.6667", 3},
        {"lib/gemm.h", "\n     #include \"gemm.h\"", ": ", ": 4 5 10 11\n", 4},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *text = test_read(rows[i].header, NULL);
        char *begin = text ? strstr(text, rows[i].first) : NULL;
        char *end = begin ? strstr(begin, "\n   MEMORY") : NULL;
        CHECK(end, "%s has no program in its first comment", rows[i].header);
        if (end) test_write(test_path("example.c"), begin, (size_t)(end - begin + 1));
        free(text);
        if (!end || !is_silent(test_command("%s " C11 " -I. -Ilib -o '%s' '%s' -lm -pthread",
                                            variable("CC", "cc"), test_path("example"),
                                            test_path("example.c")),
                               rows[i].header))
            continue;
        const TestResult *once = test_command("'%s'", test_path("example"));
        const char *found = strstr(once->out, rows[i].label);
        CHECK(once->status == 0 && found && strstr(once->out, rows[i].also), "%s", once->out);
        if (found) CHECK_NEAR(atof(found + strlen(rows[i].label)), rows[i].value, 0.02);
        if (i) continue;
        const TestResult *processes = test_command("'%s' processes", test_path("example"));
        CHECK(strcmp(once->out, processes->out) == 0, "%s", processes->out);
    }
}

/* The library as `make install` leaves it, in a folder with a blank in its name. */
static const char *install(void) {
    static char root[512];
    snprintf(root, sizeof root, "%s", test_path("in stalled"));
    const TestResult *r =
        test_command("MAKEFLAGS= make -s install CC='%s' EXTRA='%s' PREFIX=/usr DESTDIR='%s'",
                     variable("CC", "cc"), variable("EXTRA", ""), root);
    CHECK(r->status == 0, "make install: %s", r->err);
    return r->status == 0 ? root : NULL;
}

/* A library that was built with a sanitizer or for another libc serves programs like it only. */
static int is_special(void) {
    return strstr(variable("EXTRA", ""), "sanitize") || strstr(variable("CC", "cc"), "musl");
}

/* Compile examples/mlp.c against what is installed, and train with it on both back ends. */
static void run_mlp(const char *compiler, const char *root, const char *library, const char *method,
                    double bytes) {
    double right = 0, sent = 0;
    const TestResult *run[2] = {
        test_command("%s -O2 " WARNINGS
                     " -I'%s/usr/include' -o '%s' -L'%s/usr/lib' examples/mlp.c %s -lm -pthread",
                     compiler, root, test_path("mlp"), root, library)};
    if (!is_silent(run[0], compiler)) return;
    for (int i = 0; i < 2; i++)
        run[i] = test_command("LD_LIBRARY_PATH='%s/usr/lib' '%s' %s %s", root, test_path("mlp"),
                              method, i ? "processes" : "threads");
    int read = sscanf(run[0]->out, "right %lf, bytes sent %lf", &right, &sent);
    CHECK(read == 2 && right > 0.9, "%s: %s%s", method, run[0]->out, run[0]->err);
    if (bytes > 0) CHECK(sent == bytes, "%s: %.0f bytes sent, not %.0f", method, sent, bytes);
    CHECK(strcmp(run[0]->out, run[1]->out) == 0, "%s: %s%s", method, run[1]->out, run[1]->err);
}

TEST(installed_library_serves_c_and_cpp_programs) {
    const char *root = install(), *cxx = variable("CXX", "c++");
    char compiler[600];
    if (!root) return;
    snprintf(compiler, sizeof compiler, "%s %s -std=c11", variable("CC", "cc"),
             variable("EXTRA", ""));
    /* in each of 1500 steps worker 0 sends two others their three words of nine, then its own vote
     * on three words to both; of 96 floats of fp32 thirds likewise */
    run_mlp(compiler, root, "-lsignmuon", "signmuon", 1500 * (4 * 3 * 8 + 4 * 32 * 4));
    snprintf(compiler, sizeof compiler, "%s -x c++ -std=c++17", cxx);
    if (!is_special() && available(cxx))
        run_mlp(compiler, root, "-x none -l:libsignmuon.a", "ef21-muon", 0);
}

TEST(installed_files_are_told_by_pkg_config_and_uninstalled) {
    const char *root = install();
    if (!root) return;
    if (available("pkg-config")) {
        const TestResult *r = test_command("export PKG_CONFIG_PATH='%s/usr/lib/pkgconfig'; "
                                           "pkg-config --modversion signmuon && "
                                           "pkg-config --cflags --libs signmuon",
                                           root);
        CHECK(strncmp(r->out, SM_VERSION "\n", strlen(SM_VERSION) + 1) == 0, "%s%s", r->out,
              r->err);
        CHECK(strstr(r->out, "-lsignmuon -lm -pthread"), "%s", r->out);
    }
    const TestResult *r = test_command(
        "MAKEFLAGS= make -s uninstall PREFIX=/usr DESTDIR='%s' && find '%s' -type f -o -type l",
        root, root);
    CHECK(r->status == 0 && !*r->out && !*r->err, "%s%s", r->out, r->err);
}

static const char python_program[] =
    "from ctypes import *\n"
    "import sys\n"
    "lib = CDLL(sys.argv[1])\n"
    "lib.sm_method.restype = lib.sm_newton_schulz.restype = c_void_p\n"
    "lib.sm_lmo_scratch.restype = c_size_t\n"
    "def buffer(kind, *values): return (kind * len(values))(*values)\n"
    "# the polar factor of diag(3, -2) above a row of zeros is diag(1, -1) above zeros\n"
    "matrix = buffer(c_float, 3, 0, 0, -2, 0, 0)\n"
    "scratch = (c_float * lib.sm_lmo_scratch(c_size_t(3), c_size_t(2)))()\n"
    "series = c_void_p(lib.sm_newton_schulz(b'polar-express8'))\n"
    "lib.sm_polar(matrix, matrix, c_size_t(3), c_size_t(2), series, scratch)\n"
    "print([round(x) for x in matrix])\n"
    "# the signs of three workers, and their majority\n"
    "workers, zero = [(1, 2, -3, -4, 5), (1, -2, 3, -4, 5), (-1, -2, -3, 4, 5)], c_uint64(0)\n"
    "signs, vote = [c_uint64() for _ in workers], c_uint64()\n"
    "for s, x in zip(signs, workers):\n"
    "    lib.sm_pack(byref(s), buffer(c_float, *x), c_size_t(5), 0, zero)\n"
    "rows = buffer(c_void_p, *map(addressof, signs))\n"
    "lib.sm_vote(byref(vote), None, rows, None, c_size_t(3), c_size_t(1), 0, zero, c_size_t(0))\n"
    "print([vote.value >> i & 1 for i in range(5)])\n"
    "# the name is the first field of a method\n"
    "print(c_char_p.from_address(lib.sm_method(b'signmuon')).value, lib.sm_method(b'none'))\n";

TEST(installed_library_serves_python) {
    if (is_special() || !available("python3")) return;
    const char *root = install();
    if (!root) return;
    write_text(test_path("three.py"), python_program);
    const TestResult *r =
        test_command("python3 -B '%s' '%s/usr/lib/libsignmuon.so'", test_path("three.py"), root);
    CHECK(strcmp(r->out, "[1, 0, 0, -1, 0, 0]\n[1, 0, 0, 0, 1]\nb'signmuon' None\n") == 0, "%s%s",
          r->out, r->err);
}
