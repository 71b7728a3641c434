/* gpt.c - the claim about the causal mask, apart from the others: it includes train_gpt.c. MIT. */
#include "common.h"
#define TESTING
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../../train_gpt.c" // NOLINT(bugprone-suspicious-include)

/* Changes each token but the first of a sequence of 16, one at a time: at how many of these 15
 * places the losses before the token change, and the loss at it; the mean loss of a new model. */
Verdict check_causality(Answer *a, const Claim *c) {
    enum { T = 16, V = 65 };
    const GptConfig config = {
        .layers = 2, .heads = 2, .width = 32, .context = T, .vocab = V, .seed = 1};
    static Team team;
    int32_t in[T], target[T];
    float before[T], after[T];
    double fresh = 0;
    int earlier = 0, own = 0;
    (void)c;
    Gpt *g = team_start(&team, 1, 0) ? NULL : gpt_create(&config, 1, 0, &team);
    if (!g) return a->broken = 1, BROKEN;
    gpt_init(g);
    for (int t = 0; t < T; t++) in[t] = t * 7 % V, target[t] = t * 11 % V;
    gpt_losses(g, g->params, in, target, 1, T, 0, before);
    for (int t = 0; t < T; t++) fresh += (double)before[t] / T;
    for (int t = 1; t < T; t++) {
        int32_t token = in[t];
        in[t] = (token + 1) % V;
        gpt_losses(g, g->params, in, target, 1, T, 1, after);
        in[t] = token;
        earlier += memcmp(before, after, (size_t)t * sizeof *before) != 0;
        own += memcmp(&before[t], &after[t], sizeof *before) != 0;
    }
    gpt_free(g);
    team_stop(&team);
    say(a,
        "a changed token changes earlier losses at %d and its own at %d of 15 places; "
        "fresh loss %.3f",
        earlier, own, fresh);
    return judge_general(earlier == 0 && own == 15 && fabs(fresh - log(V)) < 0.05);
}
