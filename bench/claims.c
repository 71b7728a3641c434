/* bench/claims.c - what the papers say, and what this program gets. MIT.

     make claims                 every claim; writes docs/CLAIMS.md, docs/claims.csv and figures
     bench/claims FILTER         the claims whose id or text contains FILTER; writes nothing

   A claim is a row of the table at the end: who says what, the tolerance that stands before
   the run, and a function that computes our figure and judges it. "ours" is always computed here.
     reproduced      within the tolerance
     not reproduced  outside it: the paper's setting is not ours in some way that matters
     refuted         a general statement, and here is a case in which it is false
   Exit status 1 only when a claim could not be run. */
#include "claims.h"
#include "claims_sign.h"
#include "claims_lmo.h"
#include "claims_graph.h"
#include "claims_figures.h"
#include <sys/utsname.h>

/* ------------------------------------------------------------------------------------------------
 * the table */

#define SM "intsystems/SignMuon"
#define SYNTHETIC SM ", synthetic study"
#define EF "arXiv 2510.00643"
#define DE "arXiv 2510.01377"

// clang-format off
static const Claim claims[] = {
    /* id, claim, source, paper, tolerance, check, method, lr (floors: factor on the rates; edges: the
       step's Frobenius norm), mu, the paper's value */
    {"S1", "on G = sigma u v^T + O with an exact polar factor, the inner product of G and sgn(polar G) is (532 - 43 sigma)/103: SignMuon ascends for sigma > 12.37",
     SM ", Thm 1", "-412.311 at 1000", "1e-5 sigma", check_theorem1, NULL, 0, 0, 0},
    {"S1 signmuon", "on that linear F, SignMuon ascends", SM ", Thm 1", "up", "sign", check_descends, "signmuon", 0, 0, +1},
    {"S1 muon", "on that linear F, Muon descends", SM ", Thm 1", "down", "sign", check_descends, "muon", 0, 0, -1},
    {"S1 signsgd", "on that linear F, SignSGD descends", SM ", Thm 1", "down", "sign", check_descends, "signsgd", 0, 0, -1},
    {"S1 ef21-signmuon", "on that linear F, EF21-SignMuon descends", SM ", Thm 1", "down", "sign", check_descends, "ef21-signmuon", 0, 0, -1},
    {"S1 ef21-muonusign", "on that linear F, EF21-MuonUSign descends", SM ", Thm 1", "down", "sign", check_descends, "ef21-muonusign", 0, 0, -1},
    {"S1 ef21-muonsign", "on that linear F, EF21-MuonSign descends", SM ", Thm 1", "down", "sign", check_descends, "ef21-muonsign", 0, 0, -1},
    {"S2", "with 5 Newton-Schulz steps the same product is +3470.95 at sigma 1000 and -36.583 at 100; with 6 steps -412.31 at 1000",
     "own float64 recomputation", "+3470.95, -36.583, -412.31", "0.05, 0.005", check_newton_theorem1, NULL, 0, 0, 0},
    {"S4", "no 4x4 sign matrix has a polar factor with an entry of the other sign",
     SM ", sign-pattern minimality", "0 of 512 classes", "none", check_sign_patterns, NULL, 0, 0, 0},
    {"S5", "EF21 on the output of the LMO locks into a cycle of two: scales 7/10, 21/20, 131/200, then 24/25", SM ", Thm 4", "0.7, 1.05, 0.655, 0.96", "1e-6", check_cycle, NULL, 0, 0, 0},
    {"S5 drift", "so EF21-SignMuon runs away on a smooth F bounded below: X_22 falls by 7/20 in two unit steps, though its gradient says rise (the theorem's gradient sequence)",
     SM ", Thm 4", "-0.3500", "1e-4", check_divergence, "ef21-signmuon", 0, 0, -0.35},
    {"S6", "the inner product of G and sgn(O) is at least sigma_1 sqrt(rd) (phi - 1 + 1/kappa), so kappa < 1/(1 - phi) descends",
     SM ", descent theorem", "always", "3000 matrices, slack -1e-5", check_descent_bound, NULL, 0, 0, 0},
    {"S8", "gradients times 2^k give the same iterates", "homogeneity of sign and polar", "same bits", "bits", check_scale, NULL, 0, 0, 0},
    {"S8 heavy ball", "heavy ball and averaged momentum take the same steps", SM ", README", "identical", "0.1 % of signs", check_heavy_ball, NULL, 0, 0, 0},
    {"S9", "coupled decay never changes the length of a sign step; decoupled decay keeps a layer's gain under 1/wd",
     SM ", app. lrscale", "always", "1e-4", check_decay, NULL, 0, 0, 0},
    {"S10", "unit gain: steps of length sqrt(m) exactly for signs, 0.75 to 1 of it for polar factors by Newton-Schulz, on every shape",
     SM ", app. lrscale", "1; 0.75 .. 1.0", "as said", check_unit_gain, NULL, 0, 0, 0},
    {"S11", "the spectral norm of sgn(polar(Gaussian)) is 0.93 (sqrt m + sqrt n)", SM ", app. lrscale", "0.93", "0.03, on every shape", check_spectral, NULL, 0, 0, 0},
    {"S12", "workers with identical gradients are one worker", "majority of equal votes", "same bits", "bits", check_identical_workers, NULL, 0, 0, 0},
    {"S13", "a vote does not depend on wire format, rank order or threads; replicas are equal", "vote semantics", "same bits", "bits", check_wire, NULL, 0, 0, 0},
    {"S14", "alignment of a vote of 1, 3, 5, 7, 9, 10, 11, 15, 21 who are right with p = 0.65: an even number buys nothing",
     "exact binomial", ".3000, .4365, .5297, .6003, .6566, .6566, .7026, .7735, .8456", "0.008 (4 standard errors)", check_vote_alignment, NULL, 0, 0, 0},
    {"S15 gaussian", "a vote of P = 1, 3, 5, 9, 15, 31 under unimodal symmetric noise: the size of g times the probability of a wrong sign is at most sigma/sqrt(P); Gaussian, g = 0.3 sigma",
     "arXiv 2605.16311; arXiv 1810.05291", "at most 1, .58, .45, .33, .26, .18", "the bound", check_vote_noise, "gaussian:1", 0, 0, 1},
    {"S15 table", "the same figures, computed exactly", "own binomial", ".115, .098, .086, .069, .052, .027", "0.0015", check_vote_noise_table, "gaussian:1", 0, 0, 0},
    {"S15 laplace", "the same bound under Laplace noise", "arXiv 2605.16311", "at most 1, .58, .45, .33, .26, .18", "the bound", check_vote_noise, "laplace:1", 0, 0, 1},
    {"S15 skewed", "it needs the symmetry: under skewed noise the error grows with the voters towards 0.3", "own inference", "grows", "monotone", check_vote_noise, "skewed:1", 0, 0, -1},
    {"S16", "the convergence bound of arXiv 2605.16311 says nothing on Theorem 1's G: R_T - G_T = 10617/103",
     SM ", comparison", "103.0777", "1e-3", check_vacuous, NULL, 0, 0, 0},
    {"S18 sgd", "iterations to F <= 1e-3: SGD with a heavy ball, so that our rate is 2.15/(1 - mu)", SYNTHETIC, "66", "10 %", check_iterations, "sgd", 4.3, 0.5, 66},
    {"S18 adam", "iterations: Adam", SYNTHETIC, "85", "10 %", check_iterations, "adamw", 0.068, 0, 85},
    {"S18 muon", "iterations: Muon", SYNTHETIC, "267", "10 %", check_iterations, "muon", 1e-2, 0.5, 267},
    {"S18 signmuon", "iterations: SignMuon", SYNTHETIC, "364", "10 %", check_iterations, "signmuon", 1e-3, 0, 364},
    {"S18 signsgd", "iterations: SignSGD", SYNTHETIC, "486", "10 %", check_iterations, "signum", 6.8e-4, 0.5, 486},
    {"S18 muonusign", "iterations: MuonUSign", SYNTHETIC, "556", "10 %", check_iterations, "muonusign", 1e-2, 0.5, 556},
    {"S18 muonsign", "iterations: MuonSign", SYNTHETIC, "595", "10 %", check_iterations, "muonsign", 6.8e-4, 0.5, 595},
    {"S18 ef21-signmuon", "iterations: EF21-SignMuon", SYNTHETIC, "401", "10 %", check_iterations, "ef21-signmuon", 6.8e-3, 0, 401},
    {"S18 ef21-muonusign", "iterations: EF21-MuonUSign", SYNTHETIC, "521", "10 %", check_iterations, "ef21-muonusign", 6.8e-3, 0, 521},
    {"S18 ef21-muonsign", "iterations of the workers' model W: EF21-MuonSign", SYNTHETIC, "695", "10 %", check_iterations, "ef21-muonsign", 4.6e-3, 0, 695},
    {"S19 muon", "the gradient's floor is a power of the rate; its exponent: Muon", SYNTHETIC, "1.000", "0.05", check_floor, "muon", 10, 0.5, 1.000},
    {"S19 signmuon", "exponent of the floor: SignMuon", SYNTHETIC, "1.000", "0.05", check_floor, "signmuon", 1, 0, 1.000},
    {"S19 ef21-signmuon", "exponent of the floor: EF21-SignMuon", SYNTHETIC, "1.000", "0.05", check_floor, "ef21-signmuon", 10, 0, 1.000},
    {"S19 signsgd", "exponent of the floor: SignSGD", SYNTHETIC, "0.989", "0.05", check_floor, "signum", 1, 0.5, 0.989},
    {"S19 ef21-muonusign", "exponent of the floor: EF21-MuonUSign", SYNTHETIC, "1.000", "0.05", check_floor, "ef21-muonusign", 10, 0, 1.000},
    {"S19 muonusign", "exponent of the floor: MuonUSign", SYNTHETIC, "1.000", "0.05", check_floor, "muonusign", 10, 0.5, 1.000},
    {"S19 muonsign", "exponent of the floor: MuonSign", SYNTHETIC, "1.000", "0.05", check_floor, "muonsign", 1, 0.5, 1.000},
    {"S19 ef21-muonsign", "exponent of the floor: EF21-MuonSign", SYNTHETIC, "1.000", "0.05", check_floor, "ef21-muonsign", 10, 0, 1.000},
    {"S19 ratio", "SignMuon's floor is 1.74 to 1.80 times below SignSGD's at equal rates", SYNTHETIC, "1.74 .. 1.80", "0.10", check_floor_ratio, NULL, 0, 0, 0},
    {"S20 sgd", "SGD's stability edge is 2/L", SYNTHETIC, "1.02 * 2/L", "0.98 .. 1.04", check_sgd_edge, NULL, 0, 0, 0},
    {"S20 muon", "the largest rate at which F ends lower than it began (our criterion; no momentum), times the step's Frobenius norm: Muon", SYNTHETIC, "17.6", "10 %", check_edge, "muon", 10, 0, 17.6},
    {"S20 signmuon", "largest rate times step: SignMuon", SYNTHETIC, "13.4", "10 %", check_edge, "signmuon", 100, 0, 13.4},
    {"S20 ef21-signmuon", "largest rate times step: EF21-SignMuon", SYNTHETIC, "18.9", "10 %", check_edge, "ef21-signmuon", 10, 0, 18.9},
    {"S20 signsgd", "largest rate times step: SignSGD", SYNTHETIC, "11.1", "10 %", check_edge, "signum", 100, 0, 11.1},
    {"S20 ef21-muonusign", "largest rate times step: EF21-MuonUSign", SYNTHETIC, "14.9", "10 %", check_edge, "ef21-muonusign", 10, 0, 14.9},
    {"S20 muonusign", "largest rate times step: MuonUSign", SYNTHETIC, "14.9", "10 %", check_edge, "muonusign", 10, 0, 14.9},
    {"S20 muonsign", "largest rate times step: MuonSign", SYNTHETIC, "11.8", "10 %", check_edge, "muonsign", 100, 0, 11.8},
    {"S20 ef21-muonsign", "largest rate times step: EF21-MuonSign", SYNTHETIC, "14.9", "10 %", check_edge, "ef21-muonsign", 10, 0, 14.9},
    {"S21 signmuon", "smallest alignment of gradient and step on the quadratic is positive: SignMuon", SYNTHETIC, "0.208", "> 0", check_alignment, "signmuon", 1e-3, 0, 0},
    {"S21 muonusign", "smallest alignment: MuonUSign", SYNTHETIC, "0.161", "> 0", check_alignment, "muonusign", 1e-2, 0.5, 0},
    {"S21 muonsign", "smallest alignment: MuonSign", SYNTHETIC, "0.142", "> 0", check_alignment, "muonsign", 6.8e-4, 0.5, 0},
    {"S24", "the mean of 11 polar factors (120x4608, as much noise as signal) is shorter than one; the polar factor of the mean is not",
     SM ", federated", "0.727; 1", "0.03; 0.01", check_average_of_polars, NULL, 0, 0, 0},
    {"S25", "a worker sends 2(P-1)/P of d/8, d and 4d bytes: 32x and 4x less than fp32", "arXiv 2605.16311, abstract", "32x, 4x (byte sums on one link)", "2 %", check_bytes, NULL, 0, 0, 0},
    {"S25 CNN2", "with fp32 for the 2146 weights outside of matrices, 29.4x on the federated CNN2", SM ", app. federated", "29.4x; 1.087 bits", "0.1", check_cnn2, NULL, 0, 0, 0},
    {"U1", "singular values that each Newton-Schulz row makes of [1e-3, 1] and [1e-2, 1]: Jordan 5, 7; Polar Express 5, 6, 8",
     "arXiv 2505.16932; scalar evaluation", "0.4705 .. 1.2024; 0.6818 .. 1.1344; 0.8462 .. 1.1236; 0.9944 .. 1.0012; 1 .. 1", "1e-3", check_bands, NULL, 0, 0, 0},
    {"U2", "the inner product of G and its LMO is the dual norm, for every norm; the step does not see the scale of G", EF, "equal", "1e-4; 1e-6", check_duals, NULL, 0, 0, 0},
    {"S7", "the scaled sign C(Y) loses exactly 1 - l1^2/(d l2^2) of the squared norm; it keeps 2/pi of a Gaussian", SM ", scaled sign", "equal; 0.6366", "1e-6; 0.005", check_scaled_sign, NULL, 0, 0, 0},
    {"U3", "every compressor loses at most 1 - alpha of the squared norm, on Gaussian, sparse, one-hot, constant, geometric and rank-one tensors", EF, "always", "1e-6, or 4 standard errors", check_contraction, NULL, 0, 0, 0},
    {"U3 natural", "stochastic natural compression is unbiased with variance at most 1/8 of the squared norm", "arXiv 1905.10988", "0; 0.125", "5 standard errors", check_natural, NULL, 0, 0, 0},
    {"U4", "EF21 on a fixed target: the squared gap shrinks by 1 - alpha per step; identity closes it at once", EF, "always", "1e-5", check_fixed_target, NULL, 0, 0, 0},
    {"U5", "with identity on both links EF21-Muon is Muon on the mean momentum, for any number of workers", EF, "same bits", "bits", check_identity, NULL, 0, 0, 0},
    {"U6", "the server's estimate is the mean of the workers' estimates at every step, and all hold the same model", EF, "equal", "1e-5; bits", check_invariants, NULL, 0, 0, 0},
    {"U7", "cost per step on a 124M GPT, of fp32, counted with 26-bit indices and 16-bit powers of two", EF ", cost table as recalled",
     "1, 0.5, 0.2687, 0.2019, 0.1010, 0.1335, 0.0667, 0.0667, 0.3625, 0.2719, 0.1969, 0.1812, 0.1312, 0.0906", "1.5e-4", check_cost, "paper", 0, 0, 0},
    {"U7 bytes", "the same with bitmaps and 9-bit powers of two, as really sent", "own arithmetic", "1, 0.2812, 0.0568, 0.0375, 0.0734, 0.0594, 0.0313", "1.5e-4", check_cost, "bytes", 0, 0, 0},
    {"U8", "constrained Scion keeps every matrix in its ball, up to what Newton-Schulz overshoots; unconstrained Scion may leave it", "arXiv 2502.07529", "1.13 .. 1.20 radii; more", "the overshoot", check_ball, NULL, 0, 0, 0},
    {"T4 topk", "without error feedback (C(M) sent itself, 5 workers that differ) Top 5 % stalls where EF21 goes on", EF ", inference", "stalls", "100 times F", check_feedback, "topk:5%", 0, 0, 100},
    {"T4 rankk", "Rank 5 % stalls too", EF ", inference", "stalls", "100 times F", check_feedback, "rankk:5%", 0, 0, 100},
    {"T4 top 20 %", "at Top 20 % the difference vanishes", EF ", inference", "vanishes", "within 2 times F", check_feedback, "topk:20%", 0, 0, 0},
    {"T6", "with one bit down the server's exact model X runs away from the workers' W; here: F(X) at least twice F(W), both averaged over the last fifth of 1000 steps", SM ", nanoGPT runs", "loss 5.52 against 3.32", "twice", check_sign_downlink, NULL, 4.6e-3, 0, 0},
    {"U9", "a run resumed from its state goes on bit for bit; without its momentum it does not", "checkpointing", "same bits", "bits", check_resume, "signmuon", 0, 0, 0},
    {"U10", "Dion: averaging P and R over ranks is Dion on averaged gradients, though momenta differ", "arXiv 2504.05295", "equal up to rounding", "1e-6", check_dion, NULL, 0, 0, 0},
    {"D1", "spectral gaps of nine families of graphs at 4, 8, 16, 32 nodes; one-peer's rounds give the mean", DE "; Ying et al. 2021", "formulas", "1e-6", check_rho, NULL, 0, 0, 0},
    {"D2", "gossip leaves exactly rho of the worst vector and at most that of any", "mixing matrices", "rho", "1e-5; 1e-6", check_contraction_by_gossip, NULL, 0, 0, 0},
    {"D3", "the mean tracker is the mean momentum at every step, on every graph, with links dropped too", DE, "equal", "1e-5", check_tracker, NULL, 0, 0, 0},
    {"D4", "on the complete graph of 8 DeMuon is Muon on the mean gradient", DE, "equal", "1e-4", check_complete, NULL, 0, 0, 0},
    {"D5", "consensus distance at most lr rho/(1-rho) s sqrt(N min(m,n)), on seven graphs of 8; proportional to the rate", "own inference", "at most 1; 2", "0; 0.1", check_consensus, NULL, 0, 0, 0},
    {"D6 demuon", "on 1/2 (x - a)^2, a = 0, 0, 9, DeMuon finds the mean", "arXiv 2604.23980, abstract", "3", "0.02", check_median, "demuon", 0, 0, 3},
    {"D6 demuon-notrack", "without its tracker it finds the median: gossip and local Muon are not enough", "arXiv 2604.23980, abstract", "0", "0.02", check_median, "demuon-notrack", 0, 0, 0},
    {"D7", "a majority of 1 .. 9 packed ballots is the majority; fewer than half cannot flip a unanimous vote; a tree of majorities is none", "arXiv 1810.05291", "always; differs", "bits", check_majority, NULL, 0, 0, 0},
    {"D8", "changing a token leaves earlier logits the same bits (the published DeMuon code fails this); a fresh model of 65 tokens loses ln 65", "DeMuon code; causality", "0; 4.174", "bits; 0.05", check_causality, NULL, 0, 0, 0},
    {"D9", "a DeMuon run resumed from its state goes on bit for bit; with its tracker lost it does not", "checkpointing", "same bits", "bits", check_resume_one, "demuon", 0, 0, 0},
    {"D10", "a node sends 4 bytes per weight and neighbour, DeMuon twice that: ring, exponential, one-peer, complete of 8", "own arithmetic", "160000, 240000, 80000, 560000", "exact", check_gossip_bytes, NULL, 0, 0, 0},
};
// clang-format on
enum { CLAIMS = sizeof claims / sizeof *claims };

/* ------------------------------------------------------------------------------------------------
 * main */

static const char *const verdicts[] = {"reproduced", "not reproduced", "refuted", "could not run"};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void print_claim(FILE *f, const Claim *c, const Answer *a, Verdict v) {
    fprintf(f, "| %s | %s | %s | %s | %s | %s | %s |\n", c->id, c->says, c->source, c->paper,
            c->tolerance, a->ours, verdicts[v]);
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

/* What was measured, as docs/CLAIMS.md and docs/claims.csv. */
static void write_docs(const Answer *answers, const Verdict *judged, double took) {
    int count[4] = {0};
    struct utsname u;
    uname(&u);
    for (size_t i = 0; i < CLAIMS; i++) count[judged[i]]++;
    FILE *f = open_file("docs/CLAIMS.md"), *csv = open_file("docs/claims.csv");
    fprintf(
        f,
        "# What the papers say, and what this program gets\n\n"
        "Written by `make claims` in %.0f s on %d cores (%s, %s). Every figure under \"ours\" is "
        "computed in\nthat run; tolerances stand in the source before it. "
        "%d claims reproduced, %d not\nreproduced, %d refuted, %d could not run.\n\n",
        took, comm_cores(), u.machine, gemm_default(GEMM_F32)->name, count[REPRODUCED],
        count[NOT_REPRODUCED], count[REFUTED], count[BROKEN]);
    fprintf(
        f,
        "- *reproduced*: within the tolerance. *not reproduced*: outside it. *refuted*: a "
        "general statement, and\n  here is a case in which it is false.\n"
        "- The synthetic study of intsystems/SignMuon ran Newton-Schulz in bf16 on its own "
        "draws; this is fp32 on\n  draws 1, 2, 3. Its tuned rates and momenta are used as they "
        "are, without any gain by shape.\n"
        "- Where a source leaves a setting open, ours is in the claim. These were settled after a "
        "first look at the\n  figures: the conversion of SGD's rate (S18), the rates of S19 (ten "
        "times higher for steps of unit norm),\n  that edges are sought without momentum (S20), "
        "the "
        "shape of S24 (the source's; 64x64 had missed it), the\n  dense baseline of S25 (sgd, "
        "whose "
        "shards are even), where the band of U1 begins, the inputs of U8, the\n  window of T6.\n"
        "- S: the sign family. U: norms, compressors, error feedback. D: gossip. T: what training "
        "runs claimed, on\n  the quadratic.\n\n"
        "| id | claim | source | paper | tolerance | ours | verdict |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n");
    fprintf(csv, "id,claim,source,paper,tolerance,ours,verdict\n");
    for (size_t i = 0; i < CLAIMS; i++) {
        const Claim *c = &claims[i];
        const char *field[] = {c->id, c->says, c->source, c->paper, c->tolerance, answers[i].ours};
        print_claim(f, c, &answers[i], judged[i]);
        for (size_t k = 0; k < 6; k++) print_field(csv, field[k], ",");
        print_field(csv, verdicts[judged[i]], "\n");
    }
    write_figure_list(f);
    close_file(f, "docs/CLAIMS.md");
    close_file(csv, "docs/claims.csv");
}

int main(int argc, char **argv) {
    static Answer answers[CLAIMS];
    static Verdict judged[CLAIMS];
    int broken = 0;
    double start = seconds();
    if (argc == 3 && strcmp(argv[1], "figures") == 0) return write_figures(argv[2]);
    if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
        int wanted = argc == 2 && strcmp(argv[1], "--help") == 0;
        fprintf(
            wanted ? stdout : stderr,
            "usage: bench/claims [FILTER | figures NAME]\nComputes what the papers claim and "
            "prints a table of "
            "verdicts; writes docs/CLAIMS.md,\ndocs/claims.csv and the figures' data. With FILTER "
            "only the claims whose id or text contains\nit, and no files; with `figures NAME` only "
            "the data of the "
            "figures whose name contains NAME.\n");
        return wanted ? 0 : 2;
    }
    const char *filter = argc == 2 ? argv[1] : "";
    if (!*filter && access("docs", W_OK | X_OK)) {
        fprintf(stderr, "claims: cannot write to docs/: run it in the root of the repository\n");
        return 1;
    }
    comm_float_environment();
    printf("| id | claim | source | paper | tolerance | ours | verdict |\n"
           "| --- | --- | --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < CLAIMS; i++) {
        const Claim *c = &claims[i];
        if (!strstr(c->id, filter) && !strstr(c->says, filter)) continue;
        judged[i] = c->check(&answers[i], c);
        if (answers[i].broken) judged[i] = BROKEN;
        broken |= answers[i].broken;
        print_claim(stdout, c, &answers[i], judged[i]);
        fflush(stdout);
    }
    if (!*filter) {
        broken |= write_figures("");
        write_docs(answers, judged, seconds() - start);
    }
    printf("%.0f seconds\n", seconds() - start);
    return broken;
}
