/* train.c - claims about trained models, from docs/results/tune.csv, which bench/tune.sh writes. MIT. */
#include "common.h"

#define PATH "docs/results/tune.csv"
enum { LR, SEED, STEPS, LOSS, TO_175, TO_165, UP, DOWN, BYTES_165, COLUMNS }; /* behind the name */

/* Runs of a method over 2000 steps; "diverged" is infinite, "never" NaN. Returns how many. */
static size_t read_runs(double (*row)[COLUMNS], size_t most, const char *name) {
    char line[1024];
    size_t n = 0;
    FILE *f = fopen(PATH, "r");
    while (f && n < most && fgets(line, sizeof line, f)) {
        char *rest = line, *text, *end;
        size_t k = 0;
        if (strcmp(strsep(&rest, ","), name) != 0) continue;
        for (; k < COLUMNS && (text = strsep(&rest, ",")) != NULL; k++) {
            row[n][k] = strtod(text, &end);
            if (end == text) row[n][k] = strcmp(text, "diverged") == 0 ? INFINITY : NAN;
        }
        n += k == COLUMNS && row[n][STEPS] == 2000;
    }
    if (f) fclose(f);
    return n;
}

/* A tuned method: all seeds at the rate with the least mean loss, of the rates with enough seeds. */
typedef struct Tuned {
    double mean[COLUMNS], deviation; /* NaN where a seed never came so far; of the losses */
    double spread;                   /* of the tuning seed's losses within 5 times that rate */
} Tuned;

/* Returns 0, and says why, when rows are missing. */
static int tuned_method(Answer *a, Tuned *t, const char *name) {
    enum { MOST = 256, TUNING_SEED = 1337, RATES = 4, SEEDS = 3 };
    double row[MOST][COLUMNS], least = INFINITY, best = NAN, worst = 0, square = 0, seeds = 0;
    double low = INFINITY;
    size_t count = read_runs(row, MOST, name), rates = 0;
    *t = (Tuned){.deviation = 0};
    for (size_t i = 0; i < count; i++) {
        if (row[i][SEED] != TUNING_SEED) continue;
        double sum = 0, n = 0;
        for (size_t j = 0; j < count; j++)
            if (row[j][LR] == row[i][LR]) sum += row[j][LOSS], n++;
        rates++;
        least = fmin(least, row[i][LOSS]);
        if (n > SEEDS && sum / n < low) low = sum / n, best = row[i][LR];
    }
    for (size_t i = 0; i < count; i++) {
        if (row[i][SEED] == TUNING_SEED && fabs(log(row[i][LR] / best)) < log(5.01))
            worst = fmax(worst, row[i][LOSS]);
        if (row[i][LR] != best) continue;
        seeds++;
        square += row[i][LOSS] * row[i][LOSS];
        for (size_t k = 0; k < COLUMNS; k++) t->mean[k] += row[i][k];
    }
    if (rates < RATES || seeds < SEEDS) {
        say(a, PATH " has %zu of %d rates of %s, and %.0f of %d seeds at the best; ", rates, RATES,
            name, seeds, SEEDS);
        return 0;
    }
    for (size_t k = 0; k < COLUMNS; k++) t->mean[k] /= seeds;
    t->deviation = sqrt(fmax(0, square - seeds * t->mean[LOSS] * t->mean[LOSS]) / (seeds - 1));
    t->spread = worst - least;
    return 1;
}

/* All methods of a claim, "NAME NAME ..". Without their rows it could not run, which is no failure
 * of the program. */
static int tuned_methods(Answer *a, const Claim *c, Tuned *t) {
    char names[128], *rest = names, *name;
    int there = 1;
    if (access(PATH, R_OK)) return say(a, "there is no " PATH), 0;
    snprintf(names, sizeof names, "%s", c->method);
    while ((name = strsep(&rest, " ")) != NULL) there &= tuned_method(a, t++, name);
    return there;
}

/* ------------------------------------------------------------------------------------------------
 * checks */

/* The first loses less than the second, by more than both deviations of the seeds. */
CHECK(check_better) {
    Tuned t[2];
    if (!tuned_methods(a, c, t)) return BROKEN;
    say(a, "%.4f (deviation %.4f) against %.4f (%.4f)", t[0].mean[LOSS], t[0].deviation,
        t[1].mean[LOSS], t[1].deviation);
    return judge(t[1].mean[LOSS] - t[0].mean[LOSS] > t[0].deviation + t[1].deviation);
}

CHECK(check_order) {
    Tuned t[3];
    if (!tuned_methods(a, c, t)) return BROKEN;
    say(a, "%.4f, %.4f, %.4f", t[0].mean[LOSS], t[1].mean[LOSS], t[2].mean[LOSS]);
    return judge(t[0].mean[LOSS] < t[1].mean[LOSS] && t[1].mean[LOSS] < t[2].mean[LOSS]);
}

CHECK(check_width) {
    Tuned t[2];
    if (!tuned_methods(a, c, t)) return BROKEN;
    say(a, "%.3f against %.3f", t[0].spread, t[1].spread);
    return judge(t[0].spread < t[1].spread);
}

/* Steps to 1.65, or to 1.75 where the second does not come so far on every seed; where it does not
 * come to 1.75 either, all its steps, which are too few. */
CHECK(check_steps) {
    Tuned t[2];
    if (!tuned_methods(a, c, t)) return BROKEN;
    int to = isnan(t[1].mean[TO_165]) ? TO_175 : TO_165, all = isnan(t[1].mean[to]);
    double first = t[0].mean[to], second = t[1].mean[all ? STEPS : to];
    say(a, "%.0f steps to %s against %s%.0f: %.2f times", first, to == TO_165 ? "1.65" : "1.75",
        all ? "more than " : "", second, second / first);
    return judge(second / first > c->value);
}

/* Steps and bytes of the first to 1.65 against the second's. */
CHECK(check_feedback_bytes) {
    Tuned t[2];
    if (!tuned_methods(a, c, t)) return BROKEN;
    double steps = t[0].mean[TO_165] / t[1].mean[TO_165],
           up = t[1].mean[UP] / (t[0].mean[UP] * steps);
    say(a, "%.2f times the steps; %.1f times fewer bytes up, %.1f both ways", steps, up,
        t[1].mean[BYTES_165] / t[0].mean[BYTES_165]);
    return judge(steps < 1.5 && up >= 5);
}

/* ------------------------------------------------------------------------------------------------
 * the table */

#define FROM "; figures from " PATH
#define NOISE "more than both deviations of the seeds"
// clang-format off
static const Claim claims[] = {
    CLAIM("S22", "the sign after the polar factor trains better than before it, and before better than on both sides; losses" FROM, "intsystems/SignMuon, federated", "85.72 > 84.56 > 82.94 %", "order", .check = check_order, .method = "signmuon muonusign muonsign"),
    CLAIM("S22 signum", "SignMuon trains better than signSGD with momentum, all weights by one bit; losses" FROM, "intsystems/SignMuon, CIFAR-10", "94.60 > 93.37 %", NOISE, .check = check_better, .method = "signmuon+sign signum"),
    CLAIM("S23", "SignMuon is easier to tune: the spread of the loss within 5 times the best rate is narrower than signum's" FROM, "intsystems/SignMuon, CIFAR-10", "0.13 against 3.00 points", "narrower", .check = check_width, .method = "signmuon+sign signum"),
    CLAIM("S27 loss", "a step along the polar factor of the vote, tuned alike, lowers SignMuon's loss" FROM, "arXiv 2605.16311, optional", "no figure", NOISE, .check = check_better, .method = "signmuon+sign+after signmuon+sign"),
    CLAIM("T1", "Muon needs fewer steps than AdamW to the same loss" FROM, "modded-nanogpt, track 3", "3250 against 5625: 1.73 times", "1.1 times", .check = check_steps, .method = "muon adamw", .value = 1.1),
    CLAIM("T3", "EF21-Muon with Top 15 % + Natural up reaches Muon's 1.65 with less than 1.5 times the steps, so with at least 5 times fewer bytes up" FROM, "arXiv 2510.00643", "up to 7 times", "1.5; 5", .check = check_feedback_bytes, .method = "ef21-muon+top muon"),
};
// clang-format on

const Claim *train_claims(size_t *count) { return *count = sizeof claims / sizeof *claims, claims; }
