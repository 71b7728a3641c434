/* gpt.c - see gpt.h. Apart from the other claims, as it includes the program itself. MIT. */
#define TESTING
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../../train_gpt.c" // NOLINT(bugprone-suspicious-include)
#include "gpt.h"

int gpt_causality(int *earlier, int *own, double *fresh) {
    enum { T = 16, V = 65 };
    const GptConfig config = {
        .layers = 2, .heads = 2, .width = 32, .context = T, .vocab = V, .seed = 1};
    static Team team;
    int32_t in[T], target[T];
    float before[T], after[T];
    if (team_start(&team, 1, 0)) return -1;
    Gpt *g = gpt_create(&config, 1, 0, &team);
    if (!g) return -1;
    gpt_init(g);
    for (int t = 0; t < T; t++) in[t] = t * 7 % V, target[t] = t * 11 % V;
    gpt_losses(g, g->params, in, target, 1, T, 0, before);
    *fresh = 0;
    for (int t = 0; t < T; t++) *fresh += (double)before[t] / T;
    *earlier = *own = 0;
    for (int t = 1; t < T; t++) {
        int32_t token = in[t];
        in[t] = (token + 1) % V;
        gpt_losses(g, g->params, in, target, 1, T, 1, after);
        in[t] = token;
        *earlier += memcmp(before, after, (size_t)t * sizeof *before) != 0;
        *own += memcmp(&before[t], &after[t], sizeof *before) != 0;
    }
    gpt_free(g);
    team_stop(&team);
    return 0;
}
