/* demuon.h - graphs, mixing weights, spectral gap, and the arithmetic of gossip with gradient
   tracking. C11 or C++17, libc only, MIT.

   DeMuon (arXiv 2510.01377), one step of node i with its weights X_i, momentum M_i and tracker V_i:

     M_i <- mu M_i + (1-mu) G_i(X_i)          its own gradient
     V_i <- sum_j w_ij (V_j + M_j - M_j')     M': the last step's. dm_track, then dm_mix
     X_i <- sum_j w_ij (X_j - lr polar(V_j))  dm_mix

   W = (w_ij) is doubly stochastic. Mixing keeps the mean over nodes, so mean V = mean M at every
   step, and every V_i tracks the mean momentum. On the complete graph this is Muon on the mean.

   Six nodes of a ring hold the losses |x - a_i|^2 / 2 of one number, whose polar factor is its
   sign. With the tracker they agree on the mean of all a; with momentum in its place they would
   agree on the median:

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
    static double storage[100];                     // at least dm_graph_doubles(6)
    float x[N] = {0}, m[N] = {0}, v[N] = {0}, u[N];
    char error[300];
    DmGraph g;
    if (dm_graph_build(&g, storage, "ring", N, error, sizeof error)) return puts(error), 1;
    for (uint64_t step = 0; step < 4000; step++) {
        float lr = 0.02f * (1 - (float)step / 4000);
        for (int i = 0; i < N; i++) {
            float now = 0.8f * m[i] + 0.2f * (x[i] - a[i]);
            dm_track(&v[i], &now, &m[i], 1);
            m[i] = now;
        }
        gossip(u, v, &g, step);
        for (int i = 0; i < N; i++) v[i] = u[i], x[i] -= lr * (float)((v[i] > 0) - (v[i] < 0));
        gossip(u, x, &g, step);
        for (int i = 0; i < N; i++) x[i] = u[i];
    }
    printf("rho %.4f, x[0] = %.2f (mean 3.00, median 0)\n", dm_graph_rho(&g), (double)x[0]);
    return 0;
}

   MEMORY    dm_graph_build writes into dm_graph_doubles(nodes) doubles that the caller brings and
             keeps as long as the graph. Nothing is allocated; the stack holds under 4 KB.
   THREADS   Any thread on distinct outputs. dm_graph_check and dm_graph_rho use scratch inside the
             graph's storage: one thread at a time.

   API
     dm_topology_row                    the topologies, as a table
     dm_graph_doubles dm_graph_build    a topology's weights, or a file's, for so many nodes
     dm_graph_check                     is it doubly stochastic and does it mix?
     dm_graph_rho dm_rounds_to_shrink   how fast it averages
     dm_sources dm_degree               from whom a node receives in a round
     dm_mix dm_track                    the lines above

   NUMERICS
     mix       sums run over the sources in the order given, in double, and are rounded once
     sums      rows and columns must sum to 1 within 1e-6. What a column of a file lacks makes the
               mean over nodes drift by as much per round: write weights with all digits
     rho       good to 1e-6; where a period leaves less than 1e-12 of any difference, rho is 0
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

enum { DM_MAX_NODES = 1024 };

/* Mixing weights of the rounds 0 .. period - 1, which then repeat, as lists of what is not zero. */
typedef struct DmGraph {
    int nodes, period;
    int *first;      /* entries of node i in round p: first[p nodes + i] up to the next */
    int *source;     /* from whom it receives, ascending, itself among them */
    double *weight;  /* how much */
    double *scratch; /* 2 nodes */
} DmGraph;

/* A node takes 1 / (slope * degree + offset) of each neighbour and keeps the rest. The degree is
 * the larger one of the two ends' and does not count the node itself. With slope = offset = 1
 * these are Metropolis-Hastings weights. */
typedef struct DmTopology {
    const char *name;
    int (*takes)(int nodes, int round, int i, int j); /* does i take of j? NULL: the file says */
    const char *(*wants)(int nodes); /* what number of nodes it wants instead, or NULL */
    int slope, offset;
    int one_peer; /* a round for each hop of the exponential graph */
    const char *doc;
} DmTopology;

__attribute__((format(printf, 3, 4))) static inline int dm__fail(char *error, size_t size,
                                                                 const char *format, ...) {
    va_list list;
    va_start(list, format);
    int length = vsnprintf(error, size, format, list);
    va_end(list);
    return length < 0 ? length : -1; /* a sentence may be cut off */
}

/* ------------------------------------------------------------------------------------------------
 * topologies: does node i take of node j in this round? */

static inline int dm__is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

/* ceil(log2(nodes)): hops of the exponential graph. */
static inline int dm__log2(int nodes) {
    int tau = 0;
    while (1 << tau < nodes) tau++;
    return tau;
}

/* Rows of the torus: the largest divisor that is not above the square root. */
static inline int dm__torus_rows(int nodes) {
    int rows = 1;
    for (int a = 2; a * a <= nodes; a++)
        if (nodes % a == 0) rows = a;
    return rows;
}

/* hop: how many nodes before i stands j */
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

/* Topologies. NULL past the end. */
static inline const DmTopology *dm_topology_row(size_t i) {
    // clang-format off
    static const DmTopology table[] = {
        /* name, takes, wants, slope, offset, one_peer, doc */
        {"ring", dm__ring, NULL, 1, 1, 0, "both neighbours: thirds"},
        {"ring-lazy", dm__ring, NULL, 2, 0, 0, "both neighbours, 1/4 each; 1/2 stays"},
        {"directed-ring", dm__directed_ring, NULL, 1, 1, 0, "half from the node before"},
        {"exponential", dm__exponential, NULL, 1, 1, 0,
         "nodes 1, 2, 4, ... before, directed (Ying et al. 2021)"},
        {"exponential-lazy", dm__exponential, NULL, 1, 2, 0,
         "the same with the weights of DeMuon's code: twice as much stays"},
        {"one-peer", dm__one_peer, dm__power_of_two, 1, 1, 1,
         "one hop of exponential per round; exact after log2 N rounds; powers of two"},
        {"hypercube", dm__hypercube, dm__power_of_two, 1, 1, 0,
         "nodes whose numbers differ in one bit; powers of two"},
        {"torus", dm__torus, dm__grid, 1, 1, 0,
         "a grid, as square as it can be, that wraps around"},
        {"star", dm__star, NULL, 1, 1, 0, "node 0 and each other node"},
        {"complete", dm__complete, NULL, 1, 1, 0, "all nodes: the mean in one round"},
        {"file", NULL, NULL, 0, 0, 0, "file:PATH, N rows of N weights; # comments"},
    };
    // clang-format on
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* ------------------------------------------------------------------------------------------------
 * is it a mixing matrix? */

/* Steps from node 0 to each node along edges of any round (backward: against them); -1 where there
 * is no path. Returns the first such node, or 0. */
static inline int dm__reach(const DmGraph *g, int backward, int *steps) {
    int n = g->nodes, changed = 1;
    for (int i = 0; i < n; i++) steps[i] = i ? -1 : 0;
    while (changed) {
        changed = 0;
        for (int at = 0, row = 0; row < n * g->period; row++)
            for (; at < g->first[row + 1]; at++) {
                int to = backward ? g->source[at] : row % n;
                int from = backward ? row % n : g->source[at];
                if (steps[from] < 0 || steps[to] >= 0) continue;
                steps[to] = steps[from] + 1;
                changed = 1;
            }
    }
    for (int i = 0; i < n; i++)
        if (steps[i] < 0) return i;
    return 0;
}

static inline int dm__gcd(int a, int b) { return b ? dm__gcd(b, a % b) : abs(a); }

/* Is every round doubly stochastic within 1e-6, does what any node says reach all others, and is
 * there no common divisor of the lengths of all cycles, which would keep messages from mixing?
 * error    -1 and a sentence that names the row, column or nodes; all count from 0 */
static inline int dm_graph_check(const DmGraph *g, char *error, size_t size) {
    int n = g->nodes, *steps = (int *)(void *)g->scratch, cycle = 0;
    double *sum = g->scratch; /* of n rows, then of n columns */
    for (int row = 0, at = 0; row < n * g->period;) {
        for (int i = 0; i < 2 * n; i++) sum[i] = 0;
        for (int i = 0; i < n; i++, row++)
            for (; at < g->first[row + 1]; at++) {
                sum[i] += g->weight[at];
                sum[n + g->source[at]] += g->weight[at];
            }
        for (int i = 0; i < 2 * n; i++) {
            if (fabs(sum[i] - 1) <= 1e-6 * (1 + 1e-9)) continue;
            return dm__fail(error, size,
                            "%s %d sums to %.9g instead of 1; every row and column of a mixing "
                            "matrix must sum to 1 within 1e-6",
                            i < n ? "row" : "column", i % n, sum[i]);
        }
    }
    for (int backward = 1; backward >= 0; backward--) {
        int lost = dm__reach(g, backward, steps);
        if (!lost) continue;
        return dm__fail(error, size,
                        "the graph is not connected: nothing of worker %d ever reaches worker %d",
                        backward ? lost : 0, backward ? 0 : lost);
    }
    for (int at = 0, row = 0; row < n * g->period; row++)
        for (; at < g->first[row + 1]; at++)
            cycle = dm__gcd(cycle, steps[g->source[at]] + 1 - steps[row % n]);
    if (cycle == 1) return 0;
    return dm__fail(error, size,
                    "messages return after every %d rounds and never mix; some worker must keep "
                    "weight on itself",
                    cycle);
}

/* ------------------------------------------------------------------------------------------------
 * building */

/* Doubles that dm_graph_build needs for any topology: weights, sources, first entries, scratch. All
 * rounds of one-peer together have fewer entries than a complete graph. */
static inline size_t dm_graph_doubles(int nodes) {
    size_t n = (size_t)nodes, ints = n * n + (size_t)(dm__log2(nodes) + 1) * n + 1;
    return n * n + (ints + 1) / 2 + 2 * n;
}

/* Append the weights of one round of a topology. */
static inline void dm__weigh(DmGraph *g, const DmTopology *row, int round) {
    int n = g->nodes, at = g->first[round * n];
    double *degree = g->scratch;
    for (int i = 0; i < n; i++) {
        degree[i] = 0;
        for (int j = 0; j < n; j++) degree[i] += i != j && row->takes(n, round, i, j);
    }
    for (int i = 0; i < n; i++) {
        double taken = 0;
        int self = at;
        for (int j = 0; j < n; j++) {
            if (j != i && !row->takes(n, round, i, j)) continue;
            if (j == i) self = at;
            g->weight[at] = 1 / (row->slope * fmax(degree[i], degree[j]) + row->offset);
            taken += j == i ? 0 : g->weight[at];
            g->source[at++] = j;
        }
        g->weight[self] = 1 - taken;
        g->first[round * n + i + 1] = at;
    }
}

/* Read the weights from a file: numbers row by row, and comments from # to the end of a line. */
static inline int dm__read(DmGraph *g, const char *path, char *error, size_t size) {
    size_t n = (size_t)g->nodes, length = 0, count = 0;
    int at = 0, comment = 0, bad = 0;
    char word[64], *end;
    FILE *f = fopen(path, "r");
    if (!f) return dm__fail(error, size, "cannot open %s: %s", path, strerror(errno));
    for (int c = 0; c != EOF && !bad;) {
        c = getc(f);
        comment = c == '#' || (comment && c != '\n');
        int blank = c == EOF || comment || strchr(" \t\r\n\f\v", c ? c : 'x');
        if (!blank && length < sizeof word - 1) word[length++] = (char)c;
        if (length == 0 || (!blank && length < sizeof word - 1)) continue;
        word[length] = 0;
        double weight = strtod(word, &end);
        if (!blank || end != word + length || !isfinite(weight) || weight < 0) {
            for (size_t i = 0; i < length; i++)
                if (word[i] < 33 || word[i] > 126) word[i] = '?';
            bad = dm__fail(error, size, "%s: '%s' in row %zu, column %zu is not a weight", path,
                           word, count / n, count % n);
        }
        length = 0;
        if (count < n * n && weight > 0) {
            g->source[at] = (int)(count % n);
            g->weight[at++] = weight;
        }
        if (++count <= n * n && count % n == 0) g->first[count / n] = at;
    }
    if (!bad && ferror(f)) bad = dm__fail(error, size, "cannot read %s: %s", path, strerror(errno));
    fclose(f);
    if (bad || count == n * n) return bad;
    return dm__fail(error, size,
                    "%s holds %zu numbers; a mixing matrix of %d workers has %d rows of %d", path,
                    count, g->nodes, g->nodes, g->nodes);
}

/* Build a graph.
 * storage   dm_graph_doubles(nodes) doubles, kept as long as the graph
 * topology  a row's name, or "file:PATH"
 * error     -1 and a sentence */
static inline int dm_graph_build(DmGraph *g, double *storage, const char *topology, int nodes,
                                 char *error, size_t size) {
    const DmTopology *row;
    const char *path = strncmp(topology, "file:", 5) ? NULL : topology + 5;
    for (size_t i = 0; (row = dm_topology_row(i)) != NULL; i++)
        if (row->takes ? !strcmp(topology, row->name) : path && *path) break;
    if (!row) {
        int at = snprintf(error, size, "'%.40s' is not a topology; there are", topology);
        for (size_t i = 0; (row = dm_topology_row(i)) != NULL && (size_t)at < size; i++)
            at += snprintf(error + at, size - (size_t)at, "%s %s%s", i ? "," : "", row->name,
                           row->takes ? "" : ":PATH");
        return -1;
    }
    if (nodes < 1 || nodes > DM_MAX_NODES)
        return dm__fail(error, size, "a graph has 1 to %d workers, not %d", (int)DM_MAX_NODES,
                        nodes);
    if (row->wants && row->wants(nodes))
        return dm__fail(error, size, "the topology %s wants %s as number of workers, not %d",
                        row->name, row->wants(nodes), nodes);
    size_t n = (size_t)nodes;
    g->nodes = nodes;
    g->period = row->one_peer && nodes > 2 ? dm__log2(nodes) : 1;
    g->weight = storage;
    g->source = (int *)(void *)(storage + n * n);
    g->first = g->source + n * n;
    g->scratch = storage + dm_graph_doubles(nodes) - 2 * n;
    g->first[0] = 0;
    if (path && dm__read(g, path, error, size)) return -1;
    for (int round = 0; !path && round < g->period; round++) dm__weigh(g, row, round);
    char reason[200];
    if (!dm_graph_check(g, reason, sizeof reason)) return 0;
    return dm__fail(error, size, "%s: %s", path ? path : topology, reason);
}

/* ------------------------------------------------------------------------------------------------
 * spectral gap */

/* y <- W x in one round, or W^T x */
static inline void dm__apply(const DmGraph *g, int round, int transposed, double *y,
                             const double *x) {
    int n = g->nodes, at = g->first[round * n];
    for (int i = 0; i < n; i++) y[i] = 0;
    for (int i = 0; i < n; i++)
        for (; at < g->first[round * n + i + 1]; at++) {
            int j = g->source[at];
            y[transposed ? j : i] += g->weight[at] * x[transposed ? i : j];
        }
}

/* Second largest singular value of the product B over one period, to the power 1 / period: what
 * disagreement shrinks by per round at least. 0 when a period gives the exact mean; 1 - rho is the
 * spectral gap.
 * source   power iteration on B^T B, orthogonal to the vector of ones. |Bx|^2 rises to the largest
 *          eigenvalue; a rise of less than 1e-12 is one that misses it by less than 1e-6
 * cost     2 multiply-adds per edge, round and iteration; 0.5 s for a ring of 1024, 0.3 ms for 64
 */
static inline double dm_graph_rho(const DmGraph *g) {
    int n = g->nodes;
    double *x = g->scratch, *y = x + n, *swap, top = 0, last = -1;
    uint64_t bits = 1;
    if (n == 1) return 0;
    for (int i = 0; i < n; i++) { /* a start that no symmetry favours (Knuth's MMIX) */
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        x[i] = (double)(bits >> 11) * 0x1p-53;
    }
    for (int k = 0; k < 1000000 && top - last > 1e-12 * top; k++) {
        last = top;
        top = 0;
        double mean = 0, squares = 0; /* x <- x less its mean, of length 1 */
        for (int i = 0; i < n; i++) mean += x[i] / n;
        for (int i = 0; i < n; i++) x[i] -= mean, squares += x[i] * x[i];
        for (int i = 0; i < n; i++) x[i] /= sqrt(squares);
        for (int p = 0; p < g->period; p++, swap = x, x = y, y = swap) dm__apply(g, p, 0, y, x);
        for (int i = 0; i < n; i++) top += x[i] * x[i];
        if (top < 1e-24) return 0;
        for (int p = g->period; p-- > 0; swap = x, x = y, y = swap) dm__apply(g, p, 1, y, x);
    }
    return pow(top, 0.5 / g->period);
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

/* From whom `node` receives in a round, in ascending order, itself among them, and how much.
 * source, weight    room for all nodes; returns their count */
static inline size_t dm_sources(const DmGraph *g, uint64_t round, int node, int *source,
                                double *weight) {
    int row = (int)(round % (uint64_t)g->period) * g->nodes + node, first = g->first[row];
    size_t count = (size_t)(g->first[row + 1] - first);
    memcpy(source, g->source + first, count * sizeof *source);
    memcpy(weight, g->weight + first, count * sizeof *weight);
    return count;
}

/* Neighbours, the node itself not counted: those it sends to, or those it receives from. */
static inline size_t dm_degree(const DmGraph *g, uint64_t round, int node, int outgoing) {
    int n = g->nodes, row = (int)(round % (uint64_t)g->period) * n, at = g->first[row];
    size_t count = 0;
    for (int i = 0; i < n; i++)
        for (; at < g->first[row + i + 1]; at++)
            count += i != g->source[at] && (outgoing ? g->source[at] : i) == node;
    return count;
}

/* out[i] = sum_k weight[k] in[k][i], in order, in double, rounded once; n elements.
 * alias    out may be one of in; otherwise they do not overlap. count >= 1 */
static inline void dm_mix(float *out, const float *const *in, const double *weight, size_t count,
                          size_t n) {
    enum { TILE = 256 };
    double sum[TILE];
    assert(count >= 1 && in[0]);
    for (size_t first = 0; first < n; first += TILE) {
        size_t m = n - first < (size_t)TILE ? n - first : (size_t)TILE;
        for (size_t i = 0; i < m; i++) sum[i] = weight[0] * (double)in[0][first + i];
        for (size_t k = 1; k < count; k++)
            for (size_t i = 0; i < m; i++) sum[i] += weight[k] * (double)in[k][first + i];
        for (size_t i = 0; i < m; i++) out[first + i] = (float)sum[i];
    }
}

/* v <- m_new + (v - m_old), in this order: a tracker that equals the momentum, as where all nodes
 * agree or there is one, stays equal bit for bit. */
static inline void dm_track(float *v, const float *m_new, const float *m_old, size_t n) {
    for (size_t i = 0; i < n; i++) v[i] = m_new[i] + (v[i] - m_old[i]);
}

#ifdef __cplusplus
}
#endif
#endif
