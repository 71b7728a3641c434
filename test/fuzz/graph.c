/* graph.c - any bytes as the matrix of --topology file:PATH, any text as a topology. What is
   accepted is doubly stochastic to 1e-6, finite, and mixes. */
#include <math.h>
#include "fuzz.h"
#include "demuon.h"

static void check_round(const double *w, int n) {
    for (int i = 0; i < n; i++) {
        double row = 0, column = 0;
        for (int j = 0; j < n; j++) {
            FUZZ_CHECK(isfinite(w[i * n + j]) && w[i * n + j] >= 0);
            row += w[i * n + j];
            column += w[j * n + i];
        }
        FUZZ_CHECK(fabs(row - 1) <= 1e-6 && fabs(column - 1) <= 1e-6);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { MOST = 16 };
    double storage[10 * MOST * MOST];
    char text[128], error[512];
    DmGraph g;
    FuzzInput input = {data, size};
    int nodes = (int)(fuzz_byte(&input) % (MOST + 1)), n = nodes;
    static const char *const mixing[] = {"auto", "metropolis", "uniform", "none"};
    const char *weights = mixing[fuzz_byte(&input) % 4];
    fuzz_line(&input, text, sizeof text);
    if (strncmp(text, "file:", 5) == 0)
        snprintf(text, sizeof text, "file:%s", fuzz_file(input.at, input.left));
    if (dm_graph_build(&g, storage, text, weights, nodes, error, sizeof error)) {
        FUZZ_CHECK(fuzz_is_sentence(error, text));
        return 0;
    }
    FUZZ_CHECK(g.nodes == nodes && (size_t)(g.period * n * n) <= dm_graph_doubles(nodes));
    for (int p = 0; p < g.period; p++) {
        check_round(g.weight + p * n * n, n);
        for (int i = 0; i < n; i++) {
            int source[MOST];
            double weight[MOST];
            size_t count = dm_sources(&g, (uint64_t)p, i, source, weight);
            FUZZ_CHECK(count >= 1 && count <= (size_t)n);
            for (size_t k = 0; k < count; k++) FUZZ_CHECK(weight[k] > 0);
        }
    }
    double rho = dm_graph_rho(&g), rounds = dm_rounds_to_shrink(&g, 1000);
    FUZZ_CHECK(rho >= 0 && rho <= 1 + 1e-6 && rounds >= 0);
    return 0;
}
