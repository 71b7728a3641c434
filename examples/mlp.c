/* mlp.c - three workers train a small network to tell two spirals apart; each sees its own points.
   usage: mlp [METHOD [BACKEND]]     cc mlp.c -lsignmuon -lm -pthread; C11 or C++17 */
#include <math.h>
#include <optimizer.h>
#include <stdio.h>
#include <string.h>

enum { POINTS = 300, IN = 3, HIDDEN = 24, STEPS = 1500, W1 = 0, W2 = HIDDEN * IN };
enum { W3 = W2 + HIDDEN * HIDDEN, SIZE = W3 + HIDDEN };

static const SmTensor tensors[] = {
    /* name, offset, rows, cols, blocks, role, decay: C++17 has no names here */
    {"w1", W1, HIDDEN, IN, 1, SM_INPUT, 1},
    {"w2", W2, HIDDEN, HIDDEN, 1, SM_HIDDEN, 1},
    {"w3", W3, 1, HIDDEN, 1, SM_OUTPUT, 1},
};

/* Point i: its place and 1, and which spiral it is on, +1 or -1. */
static float point(int i, float x[IN]) {
    float side = i % 2 ? 1.0f : -1.0f, t = 0.5f + 4.0f * (float)i / POINTS;
    x[0] = side * t * cosf(1.2f * t) / 4;
    x[1] = side * t * sinf(1.2f * t) / 4;
    x[2] = 1;
    return side;
}

/* g <- gradient of the mean of log(1 + exp(-side * output)) over points first, first + step, ...;
 * returns the share of points on the right side */
static float gradient(float *g, const float *w, int first, int step) {
    int points = (POINTS - first + step - 1) / step;
    float right = 0, count = (float)points;
    memset(g, 0, SIZE * sizeof *g);
    for (int p = first; p < POINTS; p += step) {
        float x[IN], a[HIDDEN], b[HIDDEN], da[HIDDEN] = {0}, side = point(p, x), out = 0;
        for (int i = 0; i < HIDDEN; i++) {
            const float *row = w + W1 + i * IN;
            a[i] = tanhf(row[0] * x[0] + row[1] * x[1] + row[2] * x[2]);
        }
        for (int i = 0; i < HIDDEN; i++) {
            float sum = 0;
            for (int k = 0; k < HIDDEN; k++) sum += w[W2 + i * HIDDEN + k] * a[k];
            b[i] = tanhf(sum);
            out += w[W3 + i] * b[i];
        }
        float dout = -side / (1 + expf(side * out)) / count;
        for (int i = 0; i < HIDDEN; i++) {
            float db = dout * w[W3 + i] * (1 - b[i] * b[i]);
            g[W3 + i] += dout * b[i];
            for (int k = 0; k < HIDDEN; k++) g[W2 + i * HIDDEN + k] += db * a[k];
            for (int k = 0; k < HIDDEN; k++) da[k] += db * w[W2 + i * HIDDEN + k];
        }
        for (int i = 0; i < HIDDEN; i++)
            for (int k = 0; k < IN; k++) g[W1 + i * IN + k] += da[i] * (1 - a[i] * a[i]) * x[k];
        right += side * out > 0;
    }
    return right / count;
}

static int worker(SmComm *comm, void *arg) {
    float w[SIZE], g[SIZE];
    char error[512];
    SmConfig config = sm_config((const char *)arg);
    SmOptimizer *o = sm_create(&config, tensors, 3, comm, error, sizeof error);
    if (!o && sm_rank(comm) == 0) fprintf(stderr, "mlp: %s\n", error);
    if (!o) return 1;
    for (int i = 0; i < SIZE; i++) w[i] = 0.8f * sinf(13.0f * (float)((i + 1) * (i % 7 + 1)));
    for (int k = 0; k < STEPS; k++) {
        double lr = 0.01 * (1 - (double)k / STEPS);
        gradient(g, w, sm_rank(comm), sm_size(comm));
        if (sm_step(o, w, g, (uint64_t)k, lr, lr)) return 1;
    }
    sm_free(o);
    if (sm_rank(comm) == 0)
        printf("right %.3f, bytes sent %.0f\n", (double)gradient(g, w, 0, 1),
               (double)sm_traffic(comm).sent);
    return 0;
}

int main(int argc, char **argv) {
    char error[512] = "", method[] = "signmuon";
    void *arg = argc > 1 ? argv[1] : method;
    int status = sm_run(argc > 2 ? argv[2] : "threads", 3, 1, worker, arg, error, sizeof error);
    if (*error) fprintf(stderr, "mlp: %s\n", error);
    return status != 0;
}
