/* reference.h - the oracle of the optimizer: every method's equation, transcribed in double. It
   knows the methods' names, sm_resolve's numbers, and signmuon.h's tables of gains and polynomials,
   which test/math.c proves; and nothing of signmuon.c's stages. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../optimizer.h"
#include "../signmuon.h"
#include "test.h"

enum { WORKERS = 5, STEPS = 20, SIZE = 800 };

/* A small model of all roles and shapes. Tensors lie apart, so that a write between them shows. */
enum { TENSORS = 7 };
#define MATRIX .role = SM_HIDDEN, .decay = 1
static const SmTensor tensors[TENSORS] = {
    {.name = "wte", .offset = 5, .rows = 30, .cols = 3, .blocks = 1, .role = SM_OUTPUT, .decay = 1},
    {.name = "wpe", .offset = 100, .rows = 8, .cols = 5, .blocks = 1, .role = SM_INPUT, .decay = 1},
    {.name = "qkv", .offset = 150, .rows = 6, .cols = 10, .blocks = 3, MATRIX},
    {.name = "norm", .offset = 340, .rows = 1, .cols = 10, .blocks = 1, .role = SM_VECTOR},
    {.name = "tall", .offset = 360, .rows = 14, .cols = 6, .blocks = 1, MATRIX},
    {.name = "wide", .offset = 450, .rows = 5, .cols = 12, .blocks = 1, MATRIX},
    {.name = "bias", .offset = 520, .rows = 1, .cols = 67, .blocks = 1, .role = SM_VECTOR}};

static size_t size_of(const SmTensor *t) { return t->rows * t->cols * t->blocks; }

/* ------------------------------------------------------------------------------------------------
 * the equations: one line per method, read from left to right for one block. Worker j holds u_j.
 *   clip=C,P        gradients are at most C (k+1)^P long
 *   gradient momentum lion gluon       u_j <- what the worker holds
 *   polar lmo       u_j <- LMO(u_j); outside the hidden matrices the norm of the tensor's role
 *   mean vote       u_j <- the mean, or the majority of the signs, of all u
 *   up=C            EF21: u_j <- G <- G + mean C(u - G_j)
 *   track           V <- mix(V + u - u of the last step); u <- V
 *   sign            u_j <- sign(u_j)
 *   step ball unit adamw               W moves along u_j (EF21: X does)
 *   down=C          W <- W + C(X - W)
 *   mix             W_i <- sum_j w_ij W_j, on a directed ring */

static const struct {
    const char *method, *equation;
} equations[] = {
    {"sgd", "clip=1,0 momentum mean step"},
    {"adamw", "gradient mean adamw"},
    {"signsgd", "gradient vote step"},
    {"signum", "momentum vote step"},
    {"lion", "lion vote step"},
    {"muon", "momentum mean polar step"},
    {"muon-avgpolar", "momentum polar mean step"},
    {"scion", "momentum mean lmo step"},
    {"scion-constrained", "momentum mean lmo ball"},
    {"gluon", "gluon mean lmo step"},
    {"signmuon", "momentum polar vote step"},
    {"muonusign", "momentum vote polar step"},
    {"muonsign", "momentum vote polar sign step"},
    {"ef21-muon", "momentum up=topk:0.15+natural polar step down=identity"},
    {"ef21-signmuon", "momentum polar up=sign step down=identity"},
    {"ef21-muonusign", "momentum up=sign polar step down=identity"},
    {"ef21-muonsign", "momentum up=sign polar step down=sign"},
    {"demuon", "momentum track polar step mix"},
    {"demuon-notrack", "momentum polar step mix"},
    {"dsgd", "gradient step mix"},
    {"dsgd-clip", "clip=0.1,0.4 gradient step mix"},
    {"gt-dsgd", "gradient track step mix"},
    {"gt-nsgdm", "momentum track unit mix"},
};

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }
static int begins(const char *a, const char *b) { return strncmp(a, b, strlen(b)) == 0; }

static const char *equation_of(const char *method) {
    for (size_t i = 0; i < sizeof equations / sizeof *equations; i++)
        if (is(equations[i].method, method)) return equations[i].equation;
    CHECK(0, "method %s has no equation here", method);
    return "";
}

/* ------------------------------------------------------------------------------------------------
 * their transcription in double */

typedef struct Reference {
    SmConfig config; /* resolved */
    int workers, step;
    double lr[2];
    /* how near a number came to where its sign or rounding would differ, by its block's RMS */
    double margin;
    double w[WORKERS][SIZE], x[WORKERS][SIZE], u[WORKERS][SIZE];
    double m[WORKERS][SIZE], v[WORKERS][SIZE], last[WORKERS][SIZE], tracker[WORKERS][SIZE];
    double estimate[WORKERS][SIZE], aggregate[SIZE];
    double length[WORKERS]; /* |V| over all tensors */
} Reference;

/* One block while its equation is read. */
typedef struct Place {
    const SmTensor *t;
    size_t at, n;
    int k; /* 0 hidden matrices, 1 others */
    int gossips, tracks, feedback, sign, lmo;
} Place;

static double rms_of(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum / (double)n);
}

static void near(Reference *r, double distance, double rms) {
    if (rms > 0) r->margin = fmin(r->margin, fabs(distance) / rms);
}

/* X <- (a + b A + c A^2) X, A = X X^T, on the normalised matrix */
static void ref_polar(double *x, size_t m, size_t n, const SmNewtonSchulz *ns) {
    double a[32 * 32], y[SIZE], z[SIZE], norm = rms_of(x, m * n) * sqrt((double)(m * n));
    for (size_t i = 0; i < m * n; i++) x[i] /= norm * ns->safety;
    for (int k = 0; k < ns->steps; k++) {
        const double *c = ns->coefficient[k];
        memset(a, 0, sizeof a);
        memset(y, 0, sizeof y);
        memset(z, 0, sizeof z);
        for (size_t i = 0; i < m * m; i++)
            for (size_t p = 0; p < n; p++) a[i] += x[i / m * n + p] * x[i % m * n + p];
        for (size_t i = 0; i < m * n; i++)
            for (size_t p = 0; p < m; p++) y[i] += a[i / n * m + p] * x[p * n + i % n];
        for (size_t i = 0; i < m * n; i++)
            for (size_t p = 0; p < m; p++) z[i] += a[i / n * m + p] * y[p * n + i % n];
        for (size_t i = 0; i < m * n; i++) x[i] = c[0] * x[i] + c[1] * y[i] + c[2] * z[i];
    }
}

/* x <- plus sign(x); `zero` is the sign of an exact zero */
static void ref_sign(Reference *r, double *x, size_t n, double plus, double zero) {
    double rms = rms_of(x, n);
    for (size_t i = 0; i < n; i++) {
        if (x[i] != 0) near(r, x[i], rms);
        x[i] = plus * (x[i] > 0 ? 1 : x[i] < 0 ? -1 : zero);
    }
}

/* Scion's norms by role (arXiv 2502.07529); `polar` is the spectral norm, `lmo` RMS -> RMS */
static void ref_lmo(Reference *r, const Place *p, double *x, int rms_to_rms) {
    size_t m = p->t->rows, n = p->t->cols;
    if (p->t->role == SM_VECTOR) {
        double rms = rms_of(x, p->n);
        for (size_t i = 0; i < p->n; i++) x[i] /= rms;
    } else if (p->t->role == SM_HIDDEN) {
        ref_polar(x, m, n, sm_newton_schulz(r->config.ns));
        for (size_t i = 0; i < p->n; i++) x[i] *= rms_to_rms ? sqrt((double)m / (double)n) : 1;
    } else {
        ref_sign(r, x, p->n, p->t->role == SM_INPUT ? 1 : 1 / (double)n, 0);
    }
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* x <- C(x), by the definitions of arXiv 2510.00643 */
static void ref_compress(Reference *r, double *x, const Place *p, const char *link) {
    double sorted[SIZE], mean = 0, rms = rms_of(x, p->n), share;
    if (strncmp(link, "identity", 8) == 0 || p->t->role == SM_VECTOR || rms == 0) return;
    for (size_t i = 0; i < p->n; i++) mean += (sorted[i] = fabs(x[i])) / (double)p->n;
    if (strncmp(link, "sign", 4) == 0) ref_sign(r, x, p->n, mean, 0);
    if (sscanf(link, "topk:%lf", &share) != 1) return;
    size_t keep = (size_t)(share * (double)p->n);
    qsort(sorted, p->n, sizeof *sorted, descending);
    near(r, sorted[keep - 1] - sorted[keep], rms);
    for (size_t i = 0; i < p->n; i++) {
        int e;
        double f = 2 * fabs(frexp(x[i], &e)); /* 1 <= f < 2 */
        if (fabs(x[i]) < sorted[keep - 1]) {
            x[i] = 0;
            continue;
        }
        near(r, (f - 1.5) * x[i] / f, rms);
        x[i] = copysign(ldexp(1, e - 1 + (f >= 1.5)), x[i]);
    }
}

static void ref_attack(const Reference *r, double *x, int j, size_t n) {
    const char *attack = r->config.attack;
    double scale = 0;
    if (j < r->workers - r->config.adversaries) return;
    if (is(attack, "flip")) scale = -1;
    if (strncmp(attack, "scale:", 6) == 0) scale = atof(attack + 6);
    for (size_t i = 0; i < n; i++) x[i] *= scale; /* "zero": 0 */
}

/* node i takes half of itself and half of the node before */
static void ref_mix(const Reference *r, double x[][SIZE], size_t at, size_t n) {
    for (size_t i = at; i < at + n; i++) {
        double old[WORKERS];
        for (int j = 0; j < r->workers; j++) old[j] = x[j][i];
        for (int j = 0; j < r->workers; j++)
            x[j][i] = (old[j] + old[(j + r->workers - 1) % r->workers]) / 2;
    }
}

/* u_j <- what worker j holds; its gradient stands in u_j */
static void ref_estimate(Reference *r, const Place *p, const char *word) {
    const SmConfig *c = &r->config;
    double mu = c->momentum;
    if (is(word, "gluon")) mu = 1 - pow(r->step + 1, -0.5);
    if (c->first_gradient && r->step == 0) mu = 0;
    for (int j = 0; j < r->workers; j++)
        for (size_t i = p->at; i < p->at + p->n; i++) {
            double *u = &r->u[j][i], *m = &r->m[j][i], g = *u, old = *m;
            if (c->coupled_decay && p->t->decay) g += c->weight_decay * r->w[j][i];
            *u = g;
            if (is(word, "gradient")) continue;
            *m = mu * old + (1 - mu) * g;
            *u = c->nesterov ? mu * *m + (1 - mu) * g : *m;
            if (is(word, "lion")) *u = c->beta1 * old + (1 - c->beta1) * g;
        }
}

static void ref_merge(Reference *r, const Place *p, const char *word) {
    int vote = is(word, "vote");
    for (int j = 0; j < r->workers; j++) {
        ref_attack(r, r->u[j] + p->at, j, p->n);
        if (vote) ref_sign(r, r->u[j] + p->at, p->n, 1, 1); /* zeros plus */
    }
    for (size_t i = p->at; i < p->at + p->n; i++) {
        double sum = 0;
        for (int j = 0; j < r->workers; j++) sum += r->u[j][i];
        for (int j = 0; j < r->workers; j++)
            r->u[j][i] = !vote ? sum / r->workers : sum > 0 ? 1 : -1; /* odd: no ties */
    }
}

static void ref_uplink(Reference *r, const Place *p, const char *link) {
    for (int j = 0; j < r->workers; j++) {
        double *u = r->u[j] + p->at, *g = r->estimate[j] + p->at;
        ref_attack(r, u, j, p->n);
        for (size_t i = 0; i < p->n; i++) u[i] -= g[i];
        ref_compress(r, u, p, link);
        for (size_t i = 0; i < p->n; i++) {
            g[i] += u[i];
            r->aggregate[p->at + i] += u[i] / r->workers;
        }
    }
    for (int j = 0; j < r->workers; j++)
        memcpy(r->u[j] + p->at, r->aggregate + p->at, p->n * sizeof(double));
}

static void ref_track(Reference *r, const Place *p) {
    for (int j = 0; j < r->workers; j++) {
        for (size_t i = p->at; i < p->at + p->n; i++)
            r->tracker[j][i] += r->u[j][i] - r->last[j][i];
        memcpy(r->last[j] + p->at, r->u[j] + p->at, p->n * sizeof(double));
        ref_attack(r, r->tracker[j] + p->at, j, p->n);
    }
    ref_mix(r, r->tracker, p->at, p->n);
    for (int j = 0; j < r->workers; j++) {
        memcpy(r->u[j] + p->at, r->tracker[j] + p->at, p->n * sizeof(double));
        for (size_t i = p->at; i < p->at + p->n; i++) r->length[j] += r->u[j][i] * r->u[j][i];
    }
}

static void ref_move(Reference *r, const Place *p, const char *word) {
    const SmConfig *c = &r->config;
    double lr = r->lr[p->k], decay = p->t->decay && !c->coupled_decay ? c->weight_decay : 0;
    double gain = c->radius[p->t->role];
    if (p->k == 0) gain *= sm_gain(c->gain)->gain(p->t->rows, p->t->cols, p->sign);
    if (is(word, "ball")) decay = 1;
    for (int j = 0; j < r->workers; j++)
        for (size_t i = p->at; i < p->at + p->n; i++) {
            double *w = p->feedback ? &r->x[j][i] : &r->w[j][i], u = r->u[j][i];
            double *m = &r->m[j][i], *v = &r->v[j][i];
            if (is(word, "unit")) u /= sqrt(r->length[j]);
            *w *= 1 - lr * decay;
            if (!is(word, "adamw")) {
                *w -= lr * gain * u;
                continue;
            }
            *m = c->beta1 * *m + (1 - c->beta1) * u;
            *v = c->beta2 * *v + (1 - c->beta2) * u * u;
            *w -= lr * *m / (1 - pow(c->beta1, r->step + 1)) /
                  (sqrt(*v / (1 - pow(c->beta2, r->step + 1))) + c->epsilon);
        }
}

/* One word of an equation. */
static void ref_word(Reference *r, Place *p, const char *word) {
    int polar = is(word, "polar"), map = polar || is(word, "lmo"), vote = is(word, "vote");
    if (map && r->step % r->config.polar_every) return;
    if (map) p->sign = 0;
    if (vote || is(word, "sign")) p->sign = 1;
    if (vote || (is(word, "mean") && !p->gossips)) { /* AdamW beside gossip is local */
        ref_merge(r, p, word);
    } else if (begins(word, "up=")) {
        ref_uplink(r, p, word + 3);
        p->feedback = 1;
    } else if (is(word, "track")) {
        ref_track(r, p);
        p->tracks = 1;
    } else if (is(word, "step") || is(word, "ball") || is(word, "unit") || is(word, "adamw")) {
        ref_move(r, p, word);
    } else if (is(word, "gradient") || is(word, "momentum") || is(word, "lion") ||
               is(word, "gluon")) {
        ref_estimate(r, p, word);
    } else {
        int known = map || is(word, "sign") || is(word, "mean") || is(word, "mix");
        CHECK(known || begins(word, "down=") || begins(word, "clip="), "'%s' is no word", word);
    }
    for (int j = 0; j < r->workers; j++) {
        double shift[SIZE], *u = r->u[j] + p->at, *w = r->w[j] + p->at, *x = r->x[j] + p->at;
        if (map && (p->k == 0 || p->lmo)) ref_lmo(r, p, u, !polar);
        if (is(word, "sign")) ref_sign(r, u, p->n, 1, 1);
        if (is(word, "mix") && !p->tracks) ref_attack(r, w, j, p->n);
        if (!begins(word, "down=")) continue;
        for (size_t i = 0; i < p->n; i++) shift[i] = x[i] - w[i];
        ref_compress(r, shift, p, word + 5);
        for (size_t i = 0; i < p->n; i++) w[i] += shift[i];
    }
    if (is(word, "mix")) ref_mix(r, r->w, p->at, p->n);
    if (is(word, "mix") && p->gossips == 1) { /* AdamW beside gossip mixes its moments too */
        ref_mix(r, r->m, p->at, p->n);
        ref_mix(r, r->v, p->at, p->n);
    }
}

/* The words of a block's equation up to "track" (phase 0), or those after it. */
static void ref_block(Reference *r, Place *p, const char *equation, int phase) {
    char words[256];
    int past = strstr(equation, "track") == NULL;
    snprintf(words, sizeof words, "%s%s", equation, p->gossips == 1 ? " mix" : "");
    for (char *save, *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        int mine = past == phase;
        past |= is(word, "track");
        p->tracks |= past && strstr(equation, "track");
        if (mine) ref_word(r, p, word);
    }
}

static const char *ref_equation(const SmConfig *c, int k) {
    if (k == 0 || is(c->aux, "same") || is(c->aux, "lmo")) return equation_of(c->method);
    return equation_of(is(c->aux, "sign") ? "signum" : "adamw");
}

/* One step of all workers on their gradients. */
static void ref_step(Reference *r, float g[][SIZE]) {
    const SmConfig *c = &r->config;
    int gossips = strstr(equation_of(c->method), "mix") != NULL;
    double clip = INFINITY, power = 0;
    const char *text = strstr(equation_of(c->method), "clip=");
    if (text) sscanf(text, "clip=%lf,%lf", &clip, &power);
    if (c->clip > 0) clip = c->clip;
    for (int j = 0; j < r->workers; j++) {
        double square = 0;
        for (int t = 0; t < TENSORS; t++)
            for (size_t i = 0; i < size_of(&tensors[t]); i++)
                square += pow((double)g[j][tensors[t].offset + i], 2);
        double left = fmin(1, clip * pow(r->step + 1, power) / sqrt(square));
        for (size_t i = 0; i < SIZE; i++) r->u[j][i] = left * (double)g[j][i];
        r->length[j] = 0;
    }
    for (int phase = 0; phase < 2; phase++)
        for (int t = 0; t < TENSORS; t++)
            for (size_t b = 0; b < tensors[t].blocks; b++) {
                Place p = {.t = &tensors[t],
                           .n = tensors[t].rows * tensors[t].cols,
                           .k = tensors[t].role != SM_HIDDEN,
                           .gossips = gossips,
                           .lmo = is(c->aux, "lmo")};
                p.at = tensors[t].offset + b * p.n;
                const char *equation = ref_equation(c, p.k);
                if (strstr(equation, "mix")) p.gossips = 2; /* it mixes of itself */
                ref_block(r, &p, equation, phase);
            }
    r->step++;
}

#endif
