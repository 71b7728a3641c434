/* demuon.h - graphs, mixing weights, spectral gap and the arithmetic of gossip with gradient
   tracking. C11 or C++17, libc only, MIT.

   DeMuon (arXiv 2510.01377), one step of node i, its matrix X_i, momentum M_i and tracker V_i:

     G_i  = the gradient of node i's own loss at X_i
     M_i <- mu M_i + (1-mu) G_i
     U_i  = V_i + (M_i - what M_i was)     dm_track: what is new joins the tracker
     V_i <- sum_j w_ij U_j                 dm_mix: the first exchange with the neighbours
     O_i  = polar(V_i)                     the tracker's, never the momentum's
     X_i <- sum_j w_ij (X_j - lr O_j)      dm_mix: the second exchange

   W = (w_ij) is doubly stochastic, so the mean of all V is the mean of all M after every step, and
   gossip leaves every mean where it is. On the complete graph this is Muon on the mean gradient.

   This file includes nothing of the project, allocates nothing, prints nothing and keeps no state:
   copy it and include it, in as many files as you like.

   Six nodes of a ring hold the losses |x - a_i|^2 / 2 in one number each, whose polar factor is
   its sign. With the tracker they agree on the mean of all a; with their own momentum in its
   place they would agree on the median:

#include <stdio.h>
#include "demuon.h"

enum { N = 6 };

static void gossip(float *out, const float *in, const DmGraph *g, uint64_t round) {
    for (int i = 0; i < N; i++) {
        int source[N];
        double weight[N];
        const float *from[N];
        size_t count = dm_sources(g, round, i, source, weight);
        for (size_t k = 0; k < count; k++) from[k] = &in[source[k]];
        dm_mix(&out[i], from, weight, count, 1);
    }
}

int main(void) {
    static const float a[N] = {0, 0, 0, 0, 9, 9};
    static double storage[N * N];                   // dm_graph_doubles(6)
    float x[N] = {0}, m[N] = {0}, v[N] = {0}, u[N];
    char error[300];
    DmGraph g;
    if (dm_graph_build(&g, storage, "ring", "auto", N, error, sizeof error)) return puts(error), 1;
    for (uint64_t step = 0; step < 4000; step++) {
        float lr = 0.02f * (1 - (float)step / 4000);
        for (int i = 0; i < N; i++) {
            float now = 0.8f * m[i] + 0.2f * (x[i] - a[i]);
            dm_track(&v[i], &now, &m[i], 1);        // U, in V's place
            m[i] = now;
        }
        gossip(u, v, &g, step);                     // V, in U's place
        for (int i = 0; i < N; i++) v[i] = u[i], x[i] -= lr * (float)((v[i] > 0) - (v[i] < 0));
        gossip(u, x, &g, step);
        for (int i = 0; i < N; i++) x[i] = u[i];
    }
    printf("rho %.4f, x[0] = %.2f (mean 3.00, median 0)\n", dm_graph_rho(&g), (double)x[0]);
    return 0;
}

   MEMORY    The caller brings the matrices: dm_graph_doubles(nodes) doubles. A DmGraph points into
             them. The stack holds up to 70 KB while a graph is built, checked or measured.
   THREADS   Every function may be called from any thread on distinct outputs.

   API
     dm_topology_row                    the topologies, as a table
     dm_graph_doubles dm_graph_build    a topology's weights, or a file's, for so many nodes
     dm_graph_check                     is it doubly stochastic and connected?
     dm_graph_rho dm_rounds_to_shrink   how fast it averages
     dm_sources dm_degree               who takes what of whom in a round
     dm_mix dm_track                    lines 3, 4 and 6

   NUMERICS
     mix       sums run over the sources in the order given, in double, and are rounded once
     sums      a row or column may be off 1 by 1e-6, as 0.333333 three times is; the rest of such a
               file's rounding is then scaled away, so that means do not drift
     rho       good to 1e-7; a product over one period that leaves less than 1e-12 is the mean
*/
#ifndef DEMUON_H
#define DEMUON_H

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------
 * declarations */

enum {
    DM_MAX_NODES = 1024,
    DM_MAX_PERIOD = 10,     /* its logarithm: the rounds of one-peer */
    DM_MAX_FILE = 64 << 20, /* bytes: 1024 x 1024 numbers of 63 characters */
    DM_BLOCK = 256,         /* doubles that dm_mix sums before it writes */
    DM_LANCZOS = 2 * DM_MAX_NODES + 64
};

/* Degree that divides an edge: the larger of its two ends', or that of the node which takes. */
typedef enum DmWeights { DM_METROPOLIS, DM_UNIFORM } DmWeights;

/* A node takes 1 / (slope * degree + offset) of each neighbour and keeps the rest; degrees do not
 * count the node itself. (Metropolis-Hastings and uniform weights have slope = offset = 1.) */
typedef struct DmTopology {
    const char *name;
    int (*takes)(int nodes, int round, int i, int j); /* does i take of j? NULL: the file says */
    const char *(*wants)(int nodes); /* what instead of this number, or NULL; NULL: any */
    int slope, offset;
    int directed;
    int one_peer;      /* a period has a round for each hop of the exponential graph, not one */
    DmWeights weights; /* default */
    const char *doc;
} DmTopology;

/* Mixing weights of the rounds 0 .. period - 1, which then repeat. */
typedef struct DmGraph {
    int nodes, period;
    const double *weight; /* period matrices of nodes x nodes; row i is what node i takes */
} DmGraph;

/* Where a sentence goes. */
typedef struct DmError {
    char *text;
    size_t size;
} DmError;

__attribute__((format(printf, 2, 3))) static inline int dm__fail(const DmError *e,
                                                                 const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(e->text, e->size, format, list);
    va_end(list);
    return -1;
}

/* ------------------------------------------------------------------------------------------------
 * topologies. Edges of directed ones go from i to i + hop: node i takes of i - hop. */

/* ceil(log2(nodes)): hops of the exponential graph. */
static inline int dm__log2(int nodes) {
    int tau = 0;
    while (1 << tau < nodes) tau++;
    return tau;
}

static inline int dm__is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

/* Rows of the torus: the largest divisor that is not above the square root. */
static inline int dm__torus_rows(int nodes) {
    int rows = 1;
    for (int a = 2; a * a <= nodes; a++)
        if (nodes % a == 0) rows = a;
    return rows;
}

/* Does node i take of node j, which is `hop` before it, in a round? */
#define DM__EDGES(name, condition)                                                                 \
    static inline int name(int nodes, int round, int i, int j) {                                   \
        int hop = (i - j + nodes) % nodes;                                                         \
        return (void)round, (void)hop, condition;                                                  \
    }

DM__EDGES(dm__ring, hop == 1 || hop == nodes - 1)
DM__EDGES(dm__directed_ring, hop == 1)
DM__EDGES(dm__exponential, dm__is_power_of_two(hop))
DM__EDGES(dm__one_peer, hop == 1 << round)
DM__EDGES(dm__hypercube, dm__is_power_of_two(i ^ j))
DM__EDGES(dm__star, i == 0 || j == 0)
DM__EDGES(dm__complete, 1)

static inline int dm__torus(int nodes, int round, int i, int j) {
    int rows = dm__torus_rows(nodes), cols = nodes / rows;
    if (i / cols == j / cols) return dm__ring(cols, round, i % cols, j % cols);
    return i % cols == j % cols && dm__ring(rows, round, i / cols, j / cols);
}

static inline const char *dm__power_of_two(int nodes) {
    return dm__is_power_of_two(nodes) ? NULL : "a power of two";
}

static inline const char *dm__grid(int nodes) {
    return nodes <= 3 || dm__torus_rows(nodes) > 1 ? NULL : "a number that is not prime";
}

/* Rows of --topology. NULL past the end. */
static inline const DmTopology *dm_topology_row(size_t i) {
    static const DmTopology table[] = {
        {"ring", dm__ring, NULL, 1, 1, 0, 0, DM_METROPOLIS, "both neighbours: thirds"},
        {"ring-lazy", dm__ring, NULL, 2, 0, 0, 0, DM_METROPOLIS,
         "both neighbours, 1/4 each; 1/2 stays"},
        {"directed-ring", dm__directed_ring, NULL, 1, 1, 1, 0, DM_UNIFORM,
         "half from the node before"},
        {"exponential", dm__exponential, NULL, 1, 1, 1, 0, DM_UNIFORM,
         "nodes 1, 2, 4, ... before, directed (Ying et al. 2021)"},
        {"exponential-lazy", dm__exponential, NULL, 1, 2, 1, 0, DM_UNIFORM,
         "the same with the weights of DeMuon's code: twice as much stays"},
        {"one-peer", dm__one_peer, dm__power_of_two, 1, 1, 1, 1, DM_UNIFORM,
         "one hop of exponential per round; exact after log2 N rounds; powers of two"},
        {"hypercube", dm__hypercube, dm__power_of_two, 1, 1, 0, 0, DM_METROPOLIS,
         "ranks that differ in one bit; powers of two"},
        {"torus", dm__torus, dm__grid, 1, 1, 0, 0, DM_METROPOLIS,
         "a grid, as square as it can be, that wraps around"},
        {"star", dm__star, NULL, 1, 1, 0, 0, DM_METROPOLIS, "everybody and worker 0"},
        {"complete", dm__complete, NULL, 1, 1, 0, 0, DM_METROPOLIS,
         "everybody and everybody: the mean in one round"},
        {"file", NULL, NULL, 1, 1, 1, 0, DM_UNIFORM,
         "file:PATH, a line of N weights per worker; # comments"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* The row that a --topology names, and in *path what follows "file:"; NULL: there is none. */
static inline const DmTopology *dm__find(const char *text, const char **path) {
    const DmTopology *row;
    size_t n;
    for (size_t i = 0; (row = dm_topology_row(i)) != NULL; i++) {
        for (n = 0; text[n] && text[n] == row->name[n];) n++;
        *path = text + n + 1;
        if (!row->name[n] && (row->takes ? !text[n] : text[n] == ':' && text[n + 1])) return row;
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------
 * is it a mixing matrix, over and over? */

static inline const double *dm__round(const DmGraph *g, uint64_t round) {
    size_t n = (size_t)g->nodes;
    return g->weight + (size_t)(round % (uint64_t)g->period) * n * n;
}

static inline int dm__gcd(int a, int b) { return b ? dm__gcd(b, a % b) : a; }

/* Follow what node 0 says in round 0 (or, backward, what it hears) through states (round, node).
 * level    steps to each state, or -1; period * nodes
 * returns  the greatest common divisor of the lengths of all cycles through states reached */
static inline int dm__reach(const DmGraph *g, int backward, int16_t *level) {
    int16_t queue[DM_MAX_NODES * DM_MAX_PERIOD];
    int n = g->nodes, tail = 1, cycles = 0;
    for (int i = 0; i < n * g->period; i++) level[i] = -1;
    level[0] = queue[0] = 0;
    for (int head = 0; head < tail; head++) {
        int from = queue[head], round = from / n, i = from % n;
        int next = (round + (backward ? g->period - 1 : 1)) % g->period;
        const double *w = dm__round(g, (uint64_t)(backward ? next : round));
        for (int j = 0; j < n; j++) {
            int to = next * n + j;
            if (w[backward ? i * n + j : j * n + i] == 0) continue;
            if (level[to] < 0) {
                level[to] = (int16_t)(level[from] + 1);
                queue[tail++] = (int16_t)to;
            }
            cycles = dm__gcd(cycles, abs(level[from] + 1 - level[to]));
        }
    }
    return cycles;
}

static inline int dm__check_connected(const DmGraph *g, const DmError *e) {
    int16_t level[DM_MAX_NODES * DM_MAX_PERIOD];
    for (int backward = 0; backward < 2; backward++) {
        int cycles = dm__reach(g, backward, level);
        for (int i = 0; i < g->nodes; i++) {
            if (level[i] >= 0) continue;
            return dm__fail(e,
                            "the graph is not connected: nothing of worker %d ever comes to worker "
                            "%d; add an edge",
                            backward ? i : 0, backward ? 0 : i);
        }
        if (cycles == g->period) continue;
        return dm__fail(e,
                        "messages are back where they were after %d rounds and never mix; let a "
                        "worker keep some weight on itself",
                        cycles);
    }
    return 0;
}

/* Is every round doubly stochastic to 1e-6, and does what any node says come to all, over and over?
 * cost     period * nodes^2
 * returns  0, or -1 and a sentence naming the row or column that is off; they count from 0, as
 *          ranks do */
static inline int dm_graph_check(const DmGraph *g, char *error, size_t size) {
    DmError e = {error, size};
    size_t n = (size_t)g->nodes;
    assert(g->nodes >= 1 && g->nodes <= DM_MAX_NODES);
    assert(g->period >= 1 && g->period <= DM_MAX_PERIOD);
    for (size_t p = 0; p < (size_t)g->period; p++) {
        const double *w = g->weight + p * n * n;
        for (size_t i = 0; i < n * n; i++) {
            if (isfinite(w[i]) && w[i] >= 0) continue;
            return dm__fail(&e,
                            "the weight in row %zu, column %zu (counted from 0) is %g; weights are "
                            "finite and not negative",
                            i / n, i % n, w[i]);
        }
        for (size_t line = 0; line < 2 * n; line++) {
            const double *first = line < n ? w + line * n : w + (line - n);
            double sum = 0;
            for (size_t k = 0; k < n; k++) sum += first[line < n ? k : k * n];
            if (fabs(sum - 1) <= 1e-6 * (1 + 1e-9)) continue; /* 0.333333 three times is welcome */
            return dm__fail(&e,
                            "%s %zu (counted from 0) sums to %.9g instead of 1; every row and "
                            "column must sum to 1 within 1e-6",
                            line < n ? "row" : "column", line % n, sum);
        }
    }
    return dm__check_connected(g, &e);
}

/* ------------------------------------------------------------------------------------------------
 * matrices from files */

enum { DM__LINE = 0, DM__END = -1, DM__LONG = -2, DM__BIG = -3 };

/* The next word of this line. Returns its length, or DM__LINE, DM__END, DM__LONG, DM__BIG. */
static inline int dm__word(FILE *f, size_t *bytes, char *word, int size) {
    int length = 0, comment = 0;
    for (;;) {
        int c = getc(f), blank = c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
        if (++*bytes > DM_MAX_FILE) return DM__BIG;
        if (c == '#') comment = 1;
        if (c == EOF || c == '\n' || comment || blank) {
            word[length] = 0;
            if (length) {
                if (c != EOF) ungetc(c, f); /* the line's end is told next time */
                return length;
            }
            if (c == EOF) return DM__END;
            if (c == '\n') return DM__LINE;
            continue;
        }
        if (length == size - 1) return DM__LONG;
        word[length++] = (char)c;
    }
}

/* A word as a weight. Returns 0, or -1 when it is none; the word is then fit to be printed. */
static inline int dm__number(double *x, char *word, int length) {
    char *end;
    *x = strtod(word, &end);
    if (end == word + length && isfinite(*x) && *x >= 0) return 0;
    for (int i = 0; i < length; i++)
        if (word[i] < 33 || word[i] > 126) word[i] = '?';
    return -1;
}

/* Rows of numbers, and what is wrong with their count. */
typedef struct DmFile {
    int rows, cols;       /* cols: of the row being read */
    int ragged, odd, has; /* rows that differ from row 0; the first that has not N numbers */
    int first;            /* numbers in row 0 */
} DmFile;

static inline void dm__end_row(DmFile *m, int nodes) {
    if (m->cols == 0) return; /* blank, or a comment */
    if (m->rows == 0) m->first = m->cols;
    if (m->cols != m->first) m->ragged++;
    if (m->cols != nodes && m->odd < 0) m->odd = m->rows, m->has = m->cols;
    m->rows++;
    m->cols = 0;
}

static inline int dm__shape(const DmFile *m, const char *path, int nodes, const DmError *e) {
    if (m->rows == nodes && m->odd < 0) return 0;
    if (m->rows > 0 && m->rows == m->first && !m->ragged)
        return dm__fail(e,
                        "%s holds a matrix of %d x %d, but --workers is %d; take --workers %d or "
                        "another file",
                        path, m->rows, m->rows, nodes, m->rows);
    if (m->rows != nodes)
        return dm__fail(e, "%s holds %d rows; --workers %d wants %d rows of %d numbers", path,
                        m->rows, nodes, nodes, nodes);
    return dm__fail(e, "%s: row %d (counted from 0) holds %d numbers; --workers %d wants %d", path,
                    m->odd, m->has, nodes, nodes);
}

/* w (nodes x nodes) <- the file's rows. */
static inline int dm__parse(double *w, FILE *f, const char *path, int nodes, const DmError *e) {
    DmFile m = {0, 0, 0, -1, 0, 0};
    char word[64];
    size_t bytes = 0;
    for (;;) {
        double x;
        int length = dm__word(f, &bytes, word, (int)sizeof word);
        if (length == DM__LINE || length == DM__END) dm__end_row(&m, nodes);
        if (length == DM__LINE) continue;
        if (length == DM__END) break;
        if (length == DM__BIG)
            return dm__fail(e, "%s is longer than %d bytes: not a matrix of weights", path,
                            (int)DM_MAX_FILE);
        if (length == DM__LONG || dm__number(&x, word, length))
            return dm__fail(e,
                            "%s, row %d, column %d (counted from 0): %s%s%s; weights are numbers "
                            "from 0 to 1 with blanks between",
                            path, m.rows, m.cols, length < 0 ? "a word of more than 63 bytes" : "'",
                            length < 0 ? "" : word, length < 0 ? "" : "' is no weight");
        if (m.rows < nodes && m.cols < nodes) w[m.rows * nodes + m.cols] = x;
        m.cols++;
    }
    if (ferror(f))
        return dm__fail(e, "cannot read %s: %s; give the path of a text file", path,
                        strerror(errno));
    return dm__shape(&m, path, nodes, e);
}

static inline int dm__read(double *w, const char *path, int nodes, const DmError *e) {
    FILE *f = fopen(path, "r");
    if (!f)
        return dm__fail(e, "cannot open %s: %s; --topology file:PATH reads a matrix of weights",
                        path, strerror(errno));
    int failed = dm__parse(w, f, path, nodes, e);
    fclose(f);
    return failed;
}

/* Divide rows and columns by their sums in turn (Sinkhorn 1967), so that no mean drifts because its
 * weights were rounded to six decimals. */
static inline void dm__balance(double *w, size_t n) {
    for (int pass = 0; pass < 16; pass++) /* columns last: means hang on them */
        for (size_t line = 0; line < n; line++) {
            double sum = 0, *first = pass & 1 ? w + line : w + line * n;
            size_t step = pass & 1 ? n : 1;
            for (size_t k = 0; k < n; k++) sum += first[k * step];
            for (size_t k = 0; k < n; k++) first[k * step] /= sum;
        }
}

/* ------------------------------------------------------------------------------------------------
 * building */

/* Doubles that dm_graph_build wants for any topology of so many nodes. */
static inline size_t dm_graph_doubles(int nodes) {
    int rounds = dm__is_power_of_two(nodes) && nodes > 2 ? dm__log2(nodes) : 1;
    return (size_t)rounds * (size_t)nodes * (size_t)nodes;
}

/* w (nodes x nodes) <- one round of a topology. */
static inline void dm__weigh(double *w, const DmTopology *row, DmWeights weights, int nodes,
                             int round) {
    int degree[DM_MAX_NODES];
    for (int i = 0; i < nodes; i++) {
        degree[i] = 0;
        for (int j = 0; j < nodes; j++) degree[i] += i != j && row->takes(nodes, round, i, j);
    }
    for (int i = 0; i < nodes; i++) {
        double taken = 0;
        for (int j = 0; j < nodes; j++) {
            int larger = weights == DM_METROPOLIS && degree[j] > degree[i];
            int divisor = row->slope * degree[larger ? j : i] + row->offset;
            int edge = i != j && row->takes(nodes, round, i, j);
            w[i * nodes + j] = edge ? 1.0 / divisor : 0;
            taken += w[i * nodes + j];
        }
        w[i * nodes + i] = 1 - taken;
    }
}

/* Which weights a --mixing means for a topology; -1 and a sentence when it means none. */
static inline int dm__choose(DmWeights *choice, const DmTopology *row, const char *weights,
                             const DmError *e) {
    static const char *const name[] = {"metropolis", "uniform"}; /* by DmWeights */
    *choice = row->weights;
    if (strcmp(weights, "auto") == 0) return 0;
    for (int i = 0; i < 2; i++) {
        if (strcmp(weights, name[i]) != 0) continue;
        *choice = (DmWeights)i;
        if (row->takes && (i == DM_UNIFORM || !row->directed)) return 0;
        return dm__fail(e, "%s weights do not go with --topology %s, which %s; take auto", weights,
                        row->name,
                        row->takes ? "is directed: their sums would not be 1" : "brings its own");
    }
    return dm__fail(e, "--mixing '%.40s' is unknown; it may be auto, metropolis or uniform",
                    weights);
}

static inline int dm__unknown(const char *text, const DmError *e) {
    const DmTopology *row;
    int n = snprintf(e->text, e->size, "--topology %.40s is unknown; it may be", text);
    for (size_t i = 0; (row = dm_topology_row(i)) != NULL && n > 0 && (size_t)n < e->size; i++)
        n += snprintf(e->text + n, e->size - (size_t)n, "%s %s%s", i ? "," : "", row->name,
                      row->takes ? "" : ":PATH");
    return -1;
}

/* A graph from what a user wrote.
 * storage  dm_graph_doubles(nodes) doubles, to live as long as the graph
 * text     a row's name, or "file:PATH"
 * weights  "auto" (the row's own), "metropolis" (1 / (1 + larger degree of the edge's two ends)) or
 *          "uniform" (1 / (1 + own degree)); lazy rows stay as lazy
 * returns  0, or -1 and a sentence */
static inline int dm_graph_build(DmGraph *g, double *storage, const char *text, const char *weights,
                                 int nodes, char *error, size_t size) {
    DmError e = {error, size};
    const char *path, *wanted;
    char reason[200];
    DmWeights choice;
    const DmTopology *row = dm__find(text, &path);
    if (!row) return dm__unknown(text, &e);
    if (nodes < 1 || nodes > DM_MAX_NODES)
        return dm__fail(&e, "a graph of %d workers cannot be; take 1 to %d", nodes,
                        (int)DM_MAX_NODES);
    if (dm__choose(&choice, row, weights, &e)) return -1;
    if (row->wants && (wanted = row->wants(nodes)) != NULL)
        return dm__fail(&e,
                        "--topology %s wants %s, and --workers is %d; take other --workers or "
                        "another topology",
                        text, wanted, nodes);
    g->nodes = nodes;
    g->period = row->one_peer && nodes > 2 ? dm__log2(nodes) : 1;
    g->weight = storage;
    if (!row->takes && dm__read(storage, path, nodes, &e)) return -1;
    for (int p = 0; row->takes && p < g->period; p++)
        dm__weigh(storage + (size_t)p * (size_t)nodes * (size_t)nodes, row, choice, nodes, p);
    if (dm_graph_check(g, reason, sizeof reason))
        return dm__fail(&e, "%s%s: %s%s", row->takes ? "--topology " : "", row->takes ? text : path,
                        reason, row->takes && choice == DM_UNIFORM ? "; take --mixing auto" : "");
    if (!row->takes) dm__balance(storage, (size_t)nodes);
    return 0;
}

/* What is left of a graph when only nodes kept[0] < kept[1] < ... of it remain: an edge wherever a
 * round had one in either direction, Metropolis weights, one round.
 * storage  nodes * nodes doubles, to live as long as g
 * returns  0, or -1 and a sentence when no path joins those nodes */
static inline int dm_graph_survivors(DmGraph *g, double *storage, const DmGraph *of,
                                     const int *kept, int nodes, char *error, size_t size) {
    int degree[DM_MAX_NODES];
    size_t n = (size_t)nodes, all = (size_t)of->nodes;
    memset(storage, 0, n * n * sizeof *storage);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t p = 0; p < (size_t)of->period && i != j; p++) {
                size_t a = (size_t)kept[i], b = (size_t)kept[j];
                const double *w = of->weight + p * all * all;
                if (w[a * all + b] > 0 || w[b * all + a] > 0) storage[i * n + j] = 1;
            }
    for (size_t i = 0; i < n; i++) {
        degree[i] = 0;
        for (size_t j = 0; j < n; j++) degree[i] += storage[i * n + j] > 0;
    }
    for (size_t i = 0; i < n; i++) {
        double taken = 0;
        for (size_t j = 0; j < n; j++) {
            int larger = degree[i] > degree[j] ? degree[i] : degree[j];
            if (storage[i * n + j] > 0) storage[i * n + j] = 1.0 / (1 + larger);
            taken += storage[i * n + j];
        }
        storage[i * n + i] = 1 - taken;
    }
    g->nodes = nodes;
    g->period = 1;
    g->weight = storage;
    return dm_graph_check(g, error, size);
}

/* The weights of a graph of one round as a file that "file:PATH" reads. Returns 0, or -1 and a
 * sentence. */
static inline int dm_graph_write(const DmGraph *g, const char *path, char *error, size_t size) {
    DmError e = {error, size};
    assert(g->period == 1);
    FILE *f = fopen(path, "w");
    for (int i = 0; f && i < g->nodes * g->nodes; i++)
        fprintf(f, "%.17g%c", g->weight[i], (i + 1) % g->nodes ? ' ' : '\n');
    if (!f || fflush(f) || ferror(f)) {
        dm__fail(&e, "%s: cannot be written: %s", path, strerror(errno));
        if (f) fclose(f);
        return -1;
    }
    if (fclose(f)) return dm__fail(&e, "%s: cannot be written: %s", path, strerror(errno));
    return 0;
}

/* ------------------------------------------------------------------------------------------------
 * spectral gap */

/* Dot product in eight lanes added in order. */
static inline double dm__dot(const double *a, const double *b, size_t n) {
    double lane[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++) lane[j] += a[i + j] * b[i + j];
    for (size_t j = 0; i < n; i++, j++) lane[j] += a[i] * b[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* Subtract the mean; return the length of what is left. */
static inline double dm__centre(double *x, size_t n) {
    double mean = 0;
    for (size_t i = 0; i < n; i++) mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++) x[i] -= mean;
    return sqrt(dm__dot(x, x, n));
}

/* y = B^T B x, B the product of the rounds of a period, round 0 applied first; y is not x. */
static inline void dm__gram(const DmGraph *g, double *y, const double *x) {
    double from[DM_MAX_NODES];
    size_t n = (size_t)g->nodes;
    memcpy(y, x, n * sizeof *y);
    for (int p = 0; p < g->period; p++) {
        const double *w = dm__round(g, (uint64_t)p);
        memcpy(from, y, n * sizeof *y);
        for (size_t i = 0; i < n; i++) y[i] = dm__dot(w + i * n, from, n);
    }
    for (int p = g->period - 1; p >= 0; p--) {
        const double *w = dm__round(g, (uint64_t)p);
        memcpy(from, y, n * sizeof *y);
        memset(y, 0, n * sizeof *y);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) y[j] += from[i] * w[i * n + j];
    }
}

/* Largest eigenvalue of the symmetric tridiagonal matrix with diagonal a[0..k) and off-diagonals
 * b[1..k), between `low` and Gershgorin's bound: it lies below x when all pivots of T - x are
 * negative. */
static inline double dm__tridiagonal_top(const double *a, const double *b, int k, double low) {
    double high = low;
    for (int i = 0; i < k; i++) {
        double bound = a[i] + (i ? b[i] : 0) + (i + 1 < k ? b[i + 1] : 0);
        if (bound > high) high = bound;
    }
    for (int halving = 0; halving < 64; halving++) {
        double x = low + (high - low) / 2, pivot = a[0] - x;
        int i = 1;
        for (; i < k && pivot < 0; i++) pivot = a[i] - x - b[i] * b[i] / pivot;
        if (pivot < 0)
            high = x;
        else
            low = x;
    }
    return high;
}

/* Second largest singular value of the product over one period, to the power 1 / period: what
 * disagreement shrinks by per round at least. 0 when a period gives the exact mean; 1 - rho is the
 * spectral gap.
 * cost     2 period nodes^2 multiply-adds per iteration, at most 2 nodes + 32 iterations: a third of
 *          a second for a ring of 1024
 * source   Lanczos on B^T B, orthogonal to the vector of ones. Without reorthogonalisation its
 *          largest value still converges (Paige 1980). */
static inline double dm_graph_rho(const DmGraph *g) {
    double q[DM_MAX_NODES], last[DM_MAX_NODES], v[DM_MAX_NODES], a[DM_LANCZOS], b[DM_LANCZOS];
    size_t n = (size_t)g->nodes;
    int k = 0, limit = 2 * g->nodes + 32;
    double top = 0;
    uint64_t bits = 1;
    assert(g->nodes >= 1 && g->nodes <= DM_MAX_NODES);
    if (n == 1) return 0;
    for (size_t i = 0; i < n; i++) { /* a start that no symmetry favours (Knuth's MMIX) */
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        v[i] = (double)(bits >> 11) * 0x1p-53;
        q[i] = 0;
    }
    a[0] = 0;
    b[0] = dm__centre(v, n);
    while (k < limit && b[k] > 1e-26) { /* b[k] = 0: all that the start contains has been seen */
        for (size_t i = 0; i < n; i++) last[i] = q[i], q[i] = v[i] / b[k];
        dm__gram(g, v, q);
        a[k] = dm__dot(v, q, n);
        for (size_t i = 0; i < n; i++) v[i] -= a[k] * q[i] + (k ? b[k] : 0) * last[i];
        b[++k] = dm__centre(v, n);
        if (k % 32) continue;
        double before = top;
        top = dm__tridiagonal_top(a, b, k, 0);
        if (top - before <= 1e-13 * top) break;
    }
    top = dm__tridiagonal_top(a, b, k, 0);
    return top < 1e-24 ? 0 : pow(top, 0.5 / g->period);
}

/* Rounds of gossip after which disagreement is smaller by `factor`, whole periods; HUGE_VAL when
 * rho is 1. Where rho is 0 one period does it, whatever the factor. */
static inline double dm_rounds_to_shrink(const DmGraph *g, double factor) {
    double rho = dm_graph_rho(g);
    if (factor <= 1 || g->nodes == 1) return 0;
    if (rho > 1 - 1e-12) return HUGE_VAL;
    double periods = rho > 0 ? ceil(log(factor) / -log(rho) / g->period - 1e-9) : 1;
    return g->period * (periods > 1 ? periods : 1);
}

/* ------------------------------------------------------------------------------------------------
 * gossip */

/* Whom `node` takes of in a round, in ascending rank, itself among them, and how much.
 * source, weight    room for all nodes; returns their count */
static inline size_t dm_sources(const DmGraph *g, uint64_t round, int node, int *source,
                                double *weight) {
    size_t n = (size_t)g->nodes, count = 0;
    const double *w = dm__round(g, round) + (size_t)node * n;
    for (size_t j = 0; j < n; j++) {
        if (w[j] == 0) continue;
        source[count] = (int)j;
        weight[count++] = w[j];
    }
    return count;
}

/* Neighbours, the node itself not counted: those it sends to, or those it receives from. */
static inline size_t dm_degree(const DmGraph *g, uint64_t round, int node, int outgoing) {
    const double *w = dm__round(g, round);
    size_t count = 0;
    for (int j = 0; j < g->nodes; j++)
        count += j != node && w[outgoing ? j * g->nodes + node : node * g->nodes + j] != 0;
    return count;
}

/* out[i] = sum_k weight[k] in[k][i], in order, in double, rounded once; n elements.
 * out may be one of in; otherwise they do not overlap. count >= 1. */
static inline void dm_mix(float *out, const float *const *in, const double *weight, size_t count,
                          size_t n) {
    double sum[DM_BLOCK];
    assert(count >= 1);
    for (size_t first = 0; first < n; first += DM_BLOCK) {
        size_t m = n - first < (size_t)DM_BLOCK ? n - first : (size_t)DM_BLOCK;
        for (size_t i = 0; i < m; i++) sum[i] = weight[0] * (double)in[0][first + i];
        for (size_t k = 1; k < count; k++)
            for (size_t i = 0; i < m; i++) sum[i] += weight[k] * (double)in[k][first + i];
        for (size_t i = 0; i < m; i++) out[first + i] = (float)sum[i];
    }
}

/* u <- m_new + (u - m_old): a tracker that is the momentum, as where all nodes agree or there is but
 * one, stays the momentum bit for bit. */
static inline void dm_track(float *u, const float *m_new, const float *m_old, size_t n) {
    for (size_t i = 0; i < n; i++) u[i] = m_new[i] + (u[i] - m_old[i]);
}

#ifdef __cplusplus
}
#endif
#endif
