/* graph.c - demuon.h against dense matrices and closed forms. */
#include "../demuon.h"

#include "svd.h"
#include "test.h"

enum { NODES = 33 };

static double storage[3 * NODES * NODES];
static char error[400];

static int build(DmGraph *g, const char *topology, int nodes) {
    *error = 0;
    if (nodes <= NODES) CHECK(dm_graph_doubles(nodes) <= sizeof storage / sizeof *storage);
    return dm_graph_build(g, storage, topology, nodes, error, sizeof error);
}

/* The topology is refused with a sentence that has all of "some|words". */
static void check_refused(const char *topology, int nodes, const char *words) {
    char list[200], *rest = list, *word;
    DmGraph g;
    CHECK(build(&g, topology, nodes) == -1, "(%s, %d nodes)", topology, nodes);
    CHECK(!strstr(error, "--") && !strchr(error, '\n'), "(%s)", error);
    snprintf(list, sizeof list, "%s", words);
    while ((word = strsep(&rest, "|")) != NULL)
        CHECK(strstr(error, word), "(no '%s' in: %s)", word, error);
}

/* ------------------------------------------------------------------------------------------------
 * the topologies once more, as edges that senders have */

static int near(int n, int i, int j) { return (i + 1) % n == j || (j + 1) % n == i; }
static int edge_cube(int n, int i, int j) {
    int bits = 0;
    for (int b = 1; b < n; b *= 2) bits += (i & b) != (j & b);
    return bits == 1;
}
static int edge_star(int n, int i, int j) { return n > 0 && (i == 0) != (j == 0); }
static int edge_complete(int n, int i, int j) { return n > 0 && i != j; }
static int edge_torus(int n, int i, int j) {
    int rows = 1;
    for (int d = 1; d * d <= n; d++) rows = n / d * d == n ? d : rows;
    int cols = n / rows, up = i / cols, left = i - up * cols, low = j / cols,
        right = j - low * cols;
    return (up == low && left != right && near(cols, left, right)) ||
           (left == right && up != low && near(rows, up, low));
}

/* rho and rounds to a thousandth for 4, 8, 16 and 32 nodes: Ying et al. 2021 and closed forms of
 * circulant graphs, hypercube, torus and star */
typedef struct Row {
    const char *name;
    int hops[7]; /* node i sends to i + hop */
    int (*edge)(int n, int i, int j);
    int slope, offset, powers_only;
    double rho[4], rounds[4];
} Row;

// clang-format off
static const Row rows[] = {
    {.name = "ring", .hops = {1, -1}, .slope = 1, .offset = 1,
     .rho = {0.333333, 0.804738, 0.949253, 0.987190}, .rounds = {7, 32, 133, 536}},
    {.name = "ring-lazy", .hops = {1, -1}, .slope = 2,
     .rho = {0.5, 0.853553, 0.961940, 0.990393}, .rounds = {10, 44, 179, 716}},
    {.name = "directed-ring", .hops = {1}, .slope = 1, .offset = 1,
     .rho = {0.707107, 0.923880, 0.980785, 0.995185}, .rounds = {20, 88, 357, 1432}},
    {.name = "exponential", .hops = {1, 2, 4, 8, 16, 32}, .slope = 1, .offset = 1,
     .rho = {0.333333, 0.5, 0.6, 0.666667}, .rounds = {7, 10, 14, 18}},
    {.name = "exponential-lazy", .hops = {1, 2, 4, 8, 16, 32}, .slope = 1, .offset = 2,
     .rho = {0.5, 0.6, 0.666667, 0.714286}, .rounds = {10, 14, 18, 21}},
    {.name = "one-peer", .hops = {1, 2, 4, 8, 16, 32}, .slope = 1, .offset = 1, .powers_only = 1,
     .rounds = {2, 3, 4, 5}},
    {.name = "hypercube", .edge = edge_cube, .slope = 1, .offset = 1, .powers_only = 1,
     .rho = {0.333333, 0.5, 0.6, 0.666667}, .rounds = {7, 10, 14, 18}},
    {.name = "torus", .edge = edge_torus, .slope = 1, .offset = 1,
     .rho = {0.333333, 0.5, 0.6, 0.882843}, .rounds = {7, 10, 14, 56}},
    {.name = "star", .edge = edge_star, .slope = 1, .offset = 1,
     .rho = {0.75, 0.875, 0.9375, 0.96875}, .rounds = {25, 52, 108, 218}},
    {.name = "complete", .edge = edge_complete, .slope = 1, .offset = 1,
     .rounds = {1, 1, 1, 1}},
};
// clang-format on
enum { ROWS = sizeof rows / sizeof *rows };

static int possible(const Row *row, int n) {
    int divisors = 0, power = 1;
    for (int d = 2; d < n; d++) divisors += n / d * d == n;
    while (power < n) power *= 2;
    if (row->powers_only) return power == n;
    return strcmp(row->name, "torus") != 0 || n <= 3 || divisors > 0;
}

static int is_one_peer(const Row *row) { return strcmp(row->name, "one-peer") == 0; }

/* w (n x n) <- one round of a row */
static void expect_weights(double *w, const Row *row, int n, int round) {
    int degree[NODES] = {0};
    memset(w, 0, (size_t)(n * n) * sizeof *w);
    for (int from = 0; from < n; from++) {
        for (int k = 0; row->hops[k]; k++)
            if (abs(row->hops[k]) < n && (!is_one_peer(row) || k == round))
                w[((from + row->hops[k] + n) % n) * n + from] = 1;
        for (int to = 0; row->edge && to < n; to++)
            if (row->edge(n, to, from)) w[to * n + from] = 1;
    }
    for (int i = 0; i < n * n; i++) degree[i / n] += w[i] != 0;
    for (int i = 0; i < n; i++) {
        double kept = 1;
        for (int j = 0; j < n; j++) {
            int d = degree[j] > degree[i] ? degree[j] : degree[i];
            if (w[i * n + j] != 0) w[i * n + j] = 1.0 / (row->slope * d + row->offset);
            kept -= w[i * n + j];
        }
        w[i * n + i] = kept;
    }
}

/* w (n x n) <- one round of a graph, from its lists */
static void dense(double *w, const DmGraph *g, uint64_t round) {
    int n = g->nodes, source[NODES];
    double weight[NODES];
    memset(w, 0, (size_t)(n * n) * sizeof *w);
    for (int i = 0; i < n; i++) {
        size_t count = dm_sources(g, round, i, source, weight);
        for (size_t k = 0; k < count; k++) {
            CHECK(weight[k] > 0 && (k == 0 || source[k] > source[k - 1]));
            w[i * n + source[k]] = weight[k];
        }
    }
}

TEST(topology_weights_follow_their_definition) {
    static double expect[NODES * NODES], w[NODES * NODES];
    for (size_t r = 0; dm_topology_row(r); r++) {
        const char *name = dm_topology_row(r)->name;
        CHECK(r < ROWS ? !strcmp(rows[r].name, name) : !strcmp(name, "file"), "(%s)", name);
        CHECK(strlen(dm_topology_row(r)->doc) > 10);
        for (int n = 1; r < ROWS && n <= NODES; n++) {
            DmGraph g;
            int period = 1, wrong = 0;
            if (!possible(&rows[r], n)) {
                check_refused(name, n, name);
                continue;
            }
            CHECK(build(&g, name, n) == 0, "(%s of %d: %s)", name, n, error);
            while (is_one_peer(&rows[r]) && 1 << period < n) period++;
            CHECK(g.nodes == n && g.period == period);
            for (int p = 0; p < 2 * period; p++) {
                uint64_t round = (uint64_t)p + (uint64_t)period * 1000000000000u;
                dense(w, &g, round);
                expect_weights(expect, &rows[r], n, p >= period ? p - period : p);
                for (int i = 0; i < n * n; i++) wrong += !(fabs(w[i] - expect[i]) <= 1e-14);
                for (int i = 0; i < n; i++) {
                    size_t out = 0, in = 0;
                    for (int j = 0; j < n; j++) {
                        out += j != i && expect[j * n + i] > 0;
                        in += j != i && expect[i * n + j] > 0;
                    }
                    wrong += dm_degree(&g, round, i, 1) != out || dm_degree(&g, round, i, 0) != in;
                }
            }
            CHECK(wrong == 0, "(%s of %d: %d)", name, n, wrong);
            CHECK(dm_graph_check(&g, error, sizeof error) == 0);
        }
    }
}

TEST(topology_that_cannot_be_is_refused) {
    check_refused("torus", 7, "torus|not prime|7");
    check_refused("one-peer", 12, "one-peer|power of two|12");
    check_refused("rin", 8, "'rin' is not|ring, ring-lazy|file:PATH");
    check_refused("file", 8, "'file' is not|file:PATH");
    check_refused("file:", 8, "file:PATH");
    check_refused("ring:x", 8, "ring:x");
    check_refused("", 8, "complete");
    check_refused("ring", 0, "1 to 1024 workers|0");
    check_refused("ring", 1025, "1 to 1024 workers|1025");
}

/* ------------------------------------------------------------------------------------------------
 * spectral gap */

/* Largest singular value of (product of a period) - J, to the power 1 / period. */
static double exact_rho(const DmGraph *g) {
    static double b[NODES * NODES], c[NODES * NODES], w[NODES * NODES];
    double sigma[NODES], largest = 0;
    int n = g->nodes;
    for (int i = 0; i < n * n; i++) b[i] = (i % (n + 1) == 0) - 1.0 / n;
    for (int p = 0; p < g->period; p++) {
        dense(w, g, (uint64_t)p);
        memset(c, 0, sizeof c);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n; k++)
                for (int j = 0; j < n; j++) c[i * n + j] += w[i * n + k] * b[k * n + j];
        memcpy(b, c, sizeof c);
    }
    svd(b, w, sigma, (size_t)n, (size_t)n);
    for (int i = 0; i < n; i++) largest = fmax(largest, sigma[i]);
    return largest < 1e-12 ? 0 : pow(largest, 1.0 / g->period);
}

TEST(rho_matches_closed_forms_and_jacobi) {
    DmGraph g;
    for (size_t r = 0; r < ROWS; r++) {
        for (int n = 1; n <= NODES; n += n < 12 ? 1 : 7) {
            if (!possible(&rows[r], n)) continue;
            CHECK(build(&g, rows[r].name, n) == 0);
            CHECK_NEAR(dm_graph_rho(&g), exact_rho(&g), 1e-6);
        }
        for (int k = 0; k < 4; k++) {
            CHECK(build(&g, rows[r].name, 4 << k) == 0);
            CHECK_NEAR(dm_graph_rho(&g), rows[r].rho[k], 1e-6);
            CHECK(dm_rounds_to_shrink(&g, 1000) == rows[r].rounds[k], "(%s)", rows[r].name);
            CHECK(dm_rounds_to_shrink(&g, 1) == 0);
        }
    }
    /* two rounds that do not commute */
    int first[] = {0, 2, 5, 7, 9, 10, 12}, source[] = {0, 1, 0, 1, 2, 1, 2, 0, 2, 1, 0, 2};
    double weight[] = {.7, .3, .3, .5, .2, .2, .8, .5, .5, 1, .5, .5}, scratch[6];
    g = (DmGraph){3, 2, first, source, weight, scratch};
    double rho = exact_rho(&g);
    CHECK(rho > 0.5 && rho < 0.9 && dm_graph_check(&g, error, sizeof error) == 0);
    CHECK_NEAR(dm_graph_rho(&g), rho, 1e-6);
    CHECK(dm_rounds_to_shrink(&g, 54) == 2 * ceil(log(54) / -log(rho * rho)));
    double *large = malloc(dm_graph_doubles(1024) * sizeof *large);
    if (!large) abort();
    CHECK(dm_graph_build(&g, large, "ring", 300, error, sizeof error) == 0);
    CHECK_NEAR(dm_graph_rho(&g), (1 + 2 * cos(acos(-1) / 150)) / 3, 1e-6);
    CHECK(dm_graph_build(&g, large, "one-peer", 1024, error, sizeof error) == 0);
    CHECK(dm_graph_rho(&g) == 0 && dm_rounds_to_shrink(&g, 1e6) == 10);
    free(large);
}

/* ------------------------------------------------------------------------------------------------
 * gossip */

TEST(mixing_equals_a_sum_in_double) {
    enum { MOST = 1000, SOURCES = 9 };
    static float block[SOURCES][MOST], out[MOST], expect[MOST];
    for (size_t n = 0; n < MOST; n = n < 20 ? n + 1 : n * 2 - 7)
        for (size_t count = 1; count <= SOURCES; count += 2)
            for (size_t over = 0; over <= count; over++) { /* source that is overwritten; or none */
                const float *in[SOURCES];
                double weight[SOURCES];
                for (size_t k = 0; k < SOURCES; k++) {
                    test_fill_normal(block[k], n + 1, n * 100 + count * 10 + k);
                    in[k] = block[k];
                    weight[k] = test_uniform(n, k);
                }
                for (size_t i = 0; i < n; i++) {
                    double sum = weight[0] * (double)in[0][i];
                    for (size_t k = 1; k < count; k++) sum += weight[k] * (double)in[k][i];
                    expect[i] = (float)sum;
                }
                float *to = over < count ? block[over] : out, past = to[n];
                dm_mix(to, in, weight, count, n);
                CHECK(memcmp(to, expect, n * sizeof *to) == 0 && to[n] == past);
            }
}

TEST(tracker_adds_what_is_new) {
    float v[] = {1, 1, 3}, old[] = {1, 0.5f, 7}, now[] = {0.1f, 0.3f, 8};
    dm_track(v, now, old, 2);
    CHECK(v[0] == 0.1f); /* a tracker that was the momentum is the new one, to the bit */
    CHECK(v[1] == 0.3f + 0.5f && v[2] == 3);
}

/* ------------------------------------------------------------------------------------------------
 * matrices from files */

/* "file:" and the path of a file with this text */
static const char *matrix(const char *text, size_t n) {
    static char name[600];
    test_write(test_path("matrix"), text, n);
    snprintf(name, sizeof name, "file:%s", test_path("matrix"));
    return name;
}

TEST(matrix_file_gives_its_weights) {
    static const char directed[] = "# node 0 listens to 1 and is heard by 1 and 2\n\n"
                                   ".5 .5\t0 # itself first\r\n"
                                   "  0.25 2.5e-1 0.5\n#\n25e-2 .25 .5"; /* no line end */
    static const double expect[] = {.5, .5, 0, .25, .25, .5, .25, .25, .5};
    static double w[NODES * NODES];
    DmGraph g;
    CHECK(build(&g, matrix(directed, strlen(directed)), 3) == 0, "(%s)", error);
    dense(w, &g, 5);
    CHECK(g.period == 1 && !memcmp(w, expect, sizeof expect));
    for (int i = 0; i < 3; i++) {
        CHECK(dm_degree(&g, 0, i, 0) == (i == 0 ? 1 : 2));
        CHECK(dm_degree(&g, 0, i, 1) == (i == 2 ? 1 : 2));
    }
    CHECK_NEAR(dm_graph_rho(&g), exact_rho(&g), 1e-6);
    CHECK(build(&g, matrix("1\n", 2), 1) == 0 && dm_graph_rho(&g) == 0);
    CHECK(build(&g, matrix("0.5000004 .5\n.5 .5\n", 19), 2) == 0);
}

TEST(file_without_a_mixing_matrix_is_refused) {
    static const struct {
        int nodes;
        const char *text, *words;
    } cases[] = {
        {2, ".5 .5\n.5 .4\n", "matrix: row 1|0.9"},
        {2, ".5 .5\n.6 .4\n", "column 0|1.1"},
        {2, "0.500002 .5\n.5 .5\n", "row 0|1.000002"},
        {2, "1.5 -.5\n-.5 1.5\n", "row 0, column 1|'-.5'"},
        {2, ".5 .5\n.5 nan\n", "row 1, column 1|'nan'"},
        {2, ".5 1e999\n.5 .5\n", "row 0, column 1|'1e999'"},
        {2, ".5 .5x\n.5 .5\n", "row 0, column 1|'.5x'"},
        {2, ".5,.5\n.5,.5\n", "row 0, column 0|'.5,.5'"},
        {2, ".5 .5\n\x1b[2J\n", "row 1, column 0|'?[2J'"},
        {2, "1 0\n0 1\n", "not connected|worker 0|worker 1"},
        {2, "1 0\n1e-7 1\n", "not connected|worker 1 ever reaches worker 0"},
        {3, ".5 .5 0 .5 .5 0 0 0 1", "not connected|worker 2"},
        {2, "0 1\n1 0\n", "after every 2 rounds"},
        {3, "0 1 0  0 0 1  1 0 0\n", "after every 3 rounds"},
        {3, ".5 .5\n.5 .5\n", "matrix holds 4 numbers|3 rows of 3"},
        {2, ".5 .5\n.5 .5\n.5 .5\n", "6 numbers|2 rows of 2"},
        {1, "", "0 numbers"},
    };
    static char text[200000];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_refused(matrix(cases[i].text, strlen(cases[i].text)), cases[i].nodes, cases[i].words);
    check_refused(matrix(text, 10), 1, "row 0, column 0");
    memset(text, '1', sizeof text);
    check_refused(matrix(text, sizeof text), 1, "row 0, column 0");
    check_refused("file:/nowhere/w.txt", 2, "/nowhere/w.txt|No such file");
    check_refused("file:.", 2, "cannot read .|directory");
}
