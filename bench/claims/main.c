/* main.c - what the papers claim, and what this program gets. MIT.

     make claims                     every claim; writes docs/CLAIMS.md, docs/claims.csv and figures
     bench/claims/claims FILTER      the claims whose id or text contains FILTER; writes nothing
     bench/claims/claims figures F   the data of the figures whose name contains F

   A claim is a row of a table at the end of sign.c, lmo.c or graph.c: who claims what, the tolerance,
   set before the run, and a function that computes our figure and judges it.
     reproduced      within the tolerance
     not reproduced  outside it: the paper's setting differs from ours in some way that matters
     refuted         a general statement, and here is a case in which it is false
   Exit status 1 only when a claim could not be run. */
#include "common.h"
#include "../../lib/team.h"
#include <sys/utsname.h>

enum { MOST_CLAIMS = 128 };

/* A claim with what was found. */
typedef struct Result {
    const Claim *claim;
    Answer answer;
    Verdict verdict;
} Result;

static const char *const verdicts[] = {"reproduced", "not reproduced", "refuted", "could not run"};

static void print_result(FILE *f, const Result *r) {
    const Claim *c = r->claim;
    fprintf(f, "| %s | %s | %s | %s | %s | %s | %s |\n", c->id, c->says, c->source, c->paper,
            c->tolerance, r->answer.ours, verdicts[r->verdict]);
}

/* One field of CSV, in quotes. */
static void print_field(FILE *f, const char *text, const char *end) {
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fprintf(f, "\"%s", end);
}

// clang-format off
static const char notes[] =
    "- *reproduced*: within the tolerance. *not reproduced*: outside it. *refuted*: a general statement, and\n"
    "  here is a case in which it is false.\n"
    "- S: the sign family. U: norms, compressors, error feedback. D: gossip. T: what training runs claimed, on\n"
    "  the quadratic.\n"
    "- The synthetic study of intsystems/SignMuon ran Newton-Schulz in bf16 on its own draws; this is fp32 on\n"
    "  draws 1, 2, 3, with the study's learning rates and momenta and no gain by shape. Its rate 2.15 of SGD is\n"
    "  one for a heavy ball, ours 2.15/(1 - mu). Edges (S20) are sought without momentum.\n"
    "- Settings that a source leaves open stand in the claim. These were chosen after a first look at the\n"
    "  figures: the conversion of SGD's rate (S18), the rates of S19 (ten times higher for steps of unit norm),\n"
    "  S20 without momentum, the shape of S24 (the source's; 64x64 had missed it), the dense baseline of S25\n"
    "  (sgd, whose shards are even), where the band of U1 begins, the inputs of U8, the window of T6.\n\n";
// clang-format on

static void write_documents(const Result *result, size_t count, double took) {
    int found[4] = {0};
    struct utsname u;
    uname(&u);
    for (size_t i = 0; i < count; i++) found[result[i].verdict]++;
    FILE *f = open_file("docs/CLAIMS.md"), *csv = open_file("docs/claims.csv");
    fprintf(f,
            "# What the papers claim, and what this program gets\n\nWritten by `make claims` in "
            "%.0f s on %ld cores (%s, %s). Every figure under \"ours\" is computed in\nthat run; "
            "tolerances stand in the source before it. %d claims reproduced, %d not reproduced,\n"
            "%d refuted, %d could not run.\n\n%s",
            took, sysconf(_SC_NPROCESSORS_ONLN), u.machine, gemm_default(GEMM_F32)->name,
            found[REPRODUCED], found[NOT_REPRODUCED], found[REFUTED], found[BROKEN], notes);
    fprintf(f, "| id | claim | source | paper | tolerance | ours | verdict |\n"
               "| --- | --- | --- | --- | --- | --- | --- |\n");
    fprintf(csv, "id,claim,source,paper,tolerance,ours,verdict\n");
    for (size_t i = 0; i < count; i++) {
        const Claim *c = result[i].claim;
        const char *field[] = {c->id,    c->says,      c->source,
                               c->paper, c->tolerance, result[i].answer.ours};
        print_result(f, &result[i]);
        for (size_t k = 0; k < 6; k++) print_field(csv, field[k], ",");
        print_field(csv, verdicts[result[i].verdict], "\n");
    }
    write_figure_list(f);
    close_file(f, "docs/CLAIMS.md");
    close_file(csv, "docs/claims.csv");
}

static int print_usage(FILE *f, int status) {
    fprintf(f, "usage: bench/claims/claims [FILTER | figures NAME]\n"
               "Computes what the papers claim and prints verdicts; writes docs/CLAIMS.md, "
               "docs/claims.csv and\nthe figures' data. FILTER: only the claims whose id or text "
               "contains it, and no files.\nfigures NAME: only the data of the figures whose name "
               "contains NAME.\n");
    return status;
}

int main(int argc, char **argv) {
    const Claim *(*const files[])(size_t *) = {sign_claims, lmo_claims, graph_claims};
    static Result result[MOST_CLAIMS];
    size_t results = 0, count;
    int broken = 0;
    double start = base_now();
    if (!gemm_default(GEMM_F32)) return print_usage(stderr, 2);
    if (argc == 3 && strcmp(argv[1], "figures") == 0) return write_figures(argv[2]);
    if (argc == 2 && strcmp(argv[1], "--help") == 0) return print_usage(stdout, 0);
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) return print_usage(stderr, 2);
    const char *filter = argc == 2 ? argv[1] : "";
    if (!*filter && access("docs", W_OK | X_OK)) {
        fprintf(stderr, "claims: cannot write to docs/: run it in the root of the repository\n");
        return 1;
    }
    team_float_environment();
    printf("| id | claim | source | paper | tolerance | ours | verdict |\n"
           "| --- | --- | --- | --- | --- | --- | --- |\n");
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        const Claim *claims = files[k](&count);
        for (size_t i = 0; i < count; i++) {
            const Claim *c = &claims[i];
            if (!strstr(c->id, filter) && !strstr(c->says, filter)) continue;
            assert(results < MOST_CLAIMS);
            Result *r = &result[results++];
            r->claim = c;
            r->verdict = c->check(&r->answer, c);
            if (r->answer.broken) r->verdict = BROKEN;
            broken |= r->answer.broken;
            print_result(stdout, r);
            fflush(stdout);
        }
    }
    if (!*filter) {
        broken |= write_figures("");
        write_documents(result, results, base_now() - start);
    }
    printf("%.0f seconds\n", base_now() - start);
    return broken;
}
