/* play.c - data/play.c: its text has the probability and the entropy that it claims. The oracle is
 * an LL(1) parser of its own, which shares the compiled tables and no code. */
#include "test.h"

#include <inttypes.h>
#define PLAY_NO_MAIN
#include "../data/play.c"

static PlayGrammar grammar;

static const PlayGrammar *compiled(void) {
    play_init(&grammar);
    return &grammar;
}

/* length of the word, with its blank, or of the single character at s; 0: no token of the text */
static size_t token_length(const char *s, const char *end) {
    const char *p = s;
    if (p < end && *p == ' ') p++;
    if (p == end) return 0;
    int letter = (*p | 32) >= 'a' && (*p | 32) <= 'z';
    if (!letter) return p == s ? 1 : 0; /* a blank before punctuation */
    while (p < end && (*p | 32) >= 'a' && (*p | 32) <= 'z') p++;
    return (size_t)(p - s);
}

/* in how many ways can the alternative begin with the token? */
static int begins(const PlayGrammar *g, const PlayAlternative *a, const char *token, size_t n,
                  int depth) {
    const PlayPart *part = g->part + a->first;
    if (depth > 50) return 99; /* left recursion */
    if (part->symbol < 0) return part->length == n && !memcmp(part->text, token, n);
    int ways = 0;
    for (int i = 0; i < g->count[part->symbol]; i++)
        ways += begins(g, &g->alternative[g->first[part->symbol] + i], token, n, depth + 1);
    return ways;
}

/* The place after the text of a symbol, or NULL; subtracts ln P of its choices from nats. */
static const char *parse(const PlayGrammar *g, int symbol, int voice, const char *s,
                         const char *end, double *nats) {
    size_t n = s ? token_length(s, end) : 0;
    const PlayAlternative *chosen = NULL;
    double total = 0;
    if (!n) return NULL;
    for (int i = 0; i < g->count[symbol]; i++) {
        const PlayAlternative *a = &g->alternative[g->first[symbol] + i];
        total += a->weight[voice];
        if (!begins(g, a, s, n, 0)) continue;
        CHECK(!chosen, "<%s> has two ways to '%.*s'", play_rules[symbol].name, (int)n, s);
        chosen = a;
    }
    if (!chosen || !chosen->weight[voice]) return NULL;
    *nats -= log(chosen->weight[voice] / total);
    for (int i = 0; s && i < chosen->count; i++) {
        const PlayPart *part = &g->part[chosen->first + i];
        if (part->symbol >= 0)
            s = parse(g, part->symbol, voice, s, end, nats);
        else if (token_length(s, end) == part->length && !memcmp(s, part->text, part->length))
            s += part->length;
        else
            s = NULL;
    }
    return s;
}

TEST(play_parsed_text_has_the_claimed_probability) {
    const PlayGrammar *g = compiled();
    PlayText t;
    play_write(g, &t, 300000, 17);
    const char *s = t.bytes, *end = t.bytes + t.length;
    double nats = 0;
    for (int before = -1, now; s && s < end; before = now) {
        for (now = 0; now < PLAY_TURNS; now++) {
            size_t n = strlen(play_turns[now].head);
            if ((size_t)(end - s) > n && !memcmp(s, play_turns[now].head, n)) break;
        }
        if (now == PLAY_TURNS) break;
        double total = 0;
        for (int j = 0; before >= 0 && j < PLAY_TURNS; j++) total += play_turns[before].next[j];
        if (before >= 0) nats -= log(play_turns[before].next[now] / total);
        s += strlen(play_turns[now].head);
        int symbol = play_symbol(play_turns[now].symbol, strlen(play_turns[now].symbol));
        s = parse(g, symbol, play_turns[now].voice, s, end, &nats);
    }
    CHECK(s == end, "the text is not of the grammar");
    CHECK_NEAR(nats, t.nats, 1e-9);
    free(t.bytes);
}

TEST(play_entropy_agrees_with_the_text) {
    enum { TEXTS = 24 };
    const PlayGrammar *g = compiled();
    double rate[TEXTS], mean = 0, variance = 0;
    for (int k = 0; k < TEXTS; k++) {
        PlayText t;
        play_write(g, &t, 1000000, (uint64_t)k + 100);
        rate[k] = t.nats / (double)t.length;
        mean += rate[k] / TEXTS;
        free(t.bytes);
    }
    for (int k = 0; k < TEXTS; k++) variance += (rate[k] - mean) * (rate[k] - mean) / (TEXTS - 1);
    double standard_error = sqrt(variance / TEXTS);
    CHECK_NEAR(mean, g->entropy, 4 * standard_error);
    CHECK(standard_error < 1e-3 * mean, "sharp enough to notice a wrong weight");
    CHECK(g->entropy > 0.5 && g->entropy < 1, "%g", g->entropy);
    for (int symbol = 0; symbol < PLAY_SYMBOLS; symbol++) /* another sweep changes nothing */
        for (int v = 0; v < PLAY_VOICES; v++) CHECK(play_sweep(&grammar, symbol, v) < 1e-14);
}

/* The tables hold integers only, so the text is the same on every machine. */
TEST(play_text_depends_on_the_seed_only) {
    const PlayGrammar *g = compiled();
    PlayText a, b;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    play_write(g, &a, 200000, 1);
    play_write(g, &b, 200000, 2);
    for (size_t i = 0; i < a.length; i++) hash = (hash ^ (uint64_t)a.bytes[i]) * 1099511628211u;
    CHECK(hash == 0x8744fcc055d99ef2u, "the text of seed 1 has hash 0x%016" PRIx64, hash);
    CHECK(memcmp(a.bytes, b.bytes, 100000) != 0);
    free(a.bytes);
    free(b.bytes);
}
