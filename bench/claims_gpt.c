/* bench/claims_gpt.c - what bench/claims asks of the model, apart from the rest because it includes
   the program. MIT. */
#define TESTING
#pragma GCC diagnostic ignored "-Wunused-function"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* gcc 12 loses sight of what is packed */
#endif
#include "train_gpt.c" // NOLINT(bugprone-suspicious-include)
#include "bench/claims_gpt.h"

static int differ(const void *x, const void *y, size_t bytes) { return memcmp(x, y, bytes) != 0; }

void gpt_causality(int *later, int *earlier, double *loss) {
    enum { T = 16, V = 65 };
    Team *team = allocate(sizeof *team);
    Gpt g;
    int32_t in[T], target[T];
    float *logits = floats(T * V), *changed = floats(T * V);
    GptShape shape = {.layers = 2, .heads = 2, .width = 32, .context = T, .vocab = V, .seed = 1};
    gpt_layout(&g, &shape);
    *later = *earlier = -1;
    if (team_start(team, 1, 0)) return;
    g.params = floats(g.parameters);
    gpt_allocate(&g, 1, 0, team);
    gpt_init(&g);
    for (int t = 0; t < T; t++) in[t] = t * 7 % V, target[t] = t * 11 % V;
    gpt_pass(&g, (Pass){.B = 1, .T = T, .in = in, .logits = logits});
    *loss = gpt_pass(&g, (Pass){.B = 1, .T = T, .in = in, .target = target}) / T;
    *later = *earlier = 0;
    for (int t = 1; t < T; t++) {
        int32_t old = in[t];
        in[t] = (old + 1) % V;
        gpt_pass(&g, (Pass){.B = 1, .T = T, .in = in, .logits = changed});
        in[t] = old;
        *earlier += differ(logits, changed, (size_t)t * V * sizeof *logits);
        *later += differ(logits + t * V, changed + t * V, V * sizeof *logits);
    }
    gpt_free(&g);
    free(logits);
    free(changed);
    team_stop(team);
    free(team);
}
