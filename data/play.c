/* play.c - writes the offline corpus: a play from a random grammar whose entropy is known. C11, MIT.

     cc -O2 -o play data/play.c -lm && ./play OUT [BYTES] [SEED]      default 1115394 bytes, seed 1

   Writes OUT and OUT.entropy: the nats per character below which no model can go.

   A Markov chain leads from turn to turn. A turn is a heading or a speaker's name, then a speech from
   a context-free grammar whose weights depend on the speaker's voice. Each alternative of a symbol
   begins with a word of its own (the grammar is LL(1), and no alternative is empty). So a text
   determines its derivation, and -ln P(text) is a sum over the choices made. With p_i the probability
   of alternative i of symbol A, and pi the stationary distribution of the chain,

     nats(A)  = sum_i p_i (-ln p_i + sum of nats(B)  over the symbols B of alternative i)
     chars(A) = sum_i p_i (length  + sum of chars(B) over the symbols B of alternative i)
     entropy  = sum_s pi_s (H(s -> .) + nats(turn, s)) / sum_s pi_s chars(turn, s)

   The generator and the solver read the same tables. The tables hold integers only, so a seed gives
   the same text on every machine. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------
 * tables. | separates alternatives, blanks separate words. {a,b,c,d} is the weight in each voice
 * (royal, soldier, lover, fool), {a} the weight in all; without either it is 1. <x> is a symbol, / a
 * new line. A word is written after a blank, unless it begins with ^ or is punctuation. */

enum { PLAY_VOICES = 4, PLAY_TURNS = 11 };

typedef struct PlayRule {
    const char *name, *alternatives;
} PlayRule;

static const PlayRule play_rules[] = {
    {"turn", "<sentence> <more>"},
    {"more", "{4,5,3,4}/ | {5,3,5,4}<sentence> <more>"},
    {"place", "<site> <hour> . / /"},
    {"site", "{5}A <spot> | {3}The <edge>"},
    {"spot", "wood near | hall beside | street behind | field before | chapel in"},
    {"edge", "gate of | walls above | shore below"},
    {"hour", "{3}the <ground> | {1}a quiet village"},
    {"ground", "castle | town by night | enemy camp"},

    {"sentence", "{8}<Clause> <end> | {2,1,3,2}<When> <clause> , / <Clause> <end> |"
                 "{2,2,2,5}<question> ? / | {4,6,1,2}<command> <end> | {1,2,3,2}^O <vocative> , "
                 "<clause> <end>"},
    {"When", "{3}^When | {2}^If | ^Though | ^Since | ^Before | ^Until"},
    {"end", "{12}. / | {2,5,4,2}! / | {4}; / <Clause> <end> | {5,2,5,4}, <joined> <end>"},
    {"joined", "{5}/ <And> <clause> | {2}for <clause> | {2}while <clause>"},
    {"And", "{5}^And | {3}^But | {2}^Yet | ^Nor | ^So"},
    {"question",
     "{2}^Why <does> | {2}^Who <finite1> | ^What <noun1> <finite1> | {2}^Where <is> | ^How <does>"},
    {"does", "does <subject1> <infinitive> | do <subject2> <infinitive>"},
    {"is", "is <subject1> | are <subject2>"},
    {"subject1", "{2}he | {2}she | the <adjectives1> | my <adjectives1>"},
    {"subject2", "{3}you | {2}they | {2}we | {2}I | these <adjectives2> | our <adjectives2>"},
    {"command",
     "{2}^Bring <object> | ^Give <receiver> <object> | {2}^Let <object> <infinitive> |"
     "^Go and <infinitive> | {2}^Speak no more of <object> | ^Hear <object> | ^Look to <object>"},
    {"receiver", "me | him | her | us | them"},
    {"vocative", "<adjective> <noun1> | <noun1>"},

    {"Clause",
     "{9}^The <the> | {3}^My <the> | {2}^This <one> | {2}^Every <one> | ^No <one> |"
     "{2}^These <many> | {2}^All <many> | {4,4,6,4}^I <finite2> | {5,3,1,2}^We <finite2> |"
     "{3}^You <finite2> | {2}^They <finite2> | {2}^He <finite1> | {2}^She <finite1>"},
    {"clause", "{9}the <the> | {3}my <the> | {2}this <one> | {2}every <one> | no <one> |"
               "{2}these <many> | {2}all <many> | {4,4,6,4}I <finite2> | {5,3,1,2}we <finite2> |"
               "{3}you <finite2> | {2}they <finite2> | {2}he <finite1> | {2}she <finite1>"},
    {"the", "{3}<adjective> <the> | {5}<noun1> <predicate1> | {3}<noun2> <predicate2>"},
    {"one", "{1}<adjective> <one> | {3}<noun1> <predicate1>"},
    {"many", "{1}<adjective> <many> | {3}<noun2> <predicate2>"},
    {"adjectives1", "{2}<adjective> <adjectives1> | {5}<noun1>"},
    {"adjectives2", "{2}<adjective> <adjectives2> | {5}<noun2>"},
    {"object", "{5}the <thing> | {2}my <thing> | {2}your <thing> | his <thing> | her <thing> |"
               "this <adjectives1> | these <adjectives2> | no <thing> | {2}<name>"},
    {"thing", "{2}<adjective> <thing> | {4}<noun1> | {2}<noun2>"},
    {"predicate1", "{6}<finite1> | {2}that <finite1> <finite1> | {1}of <object> <finite1>"},
    {"predicate2", "{6}<finite2> | {2}that <finite2> <finite2> | {1}of <object> <finite2>"},
    {"finite1", "{6}<verb1> | {2}is <state> | {2}has <participle> <object> | <modal> <infinitive> |"
                "does not <bare2>"},
    {"finite2",
     "{6}<verb2> | {2}are <state> | {2}have <participle> <object> | <modal> <infinitive> |"
     "do not <bare2>"},
    {"state", "{4}<adjective> | {2}not <adjective> | {2}<participle> by <object> | as <adjective> "
              "as <object>"},
    {"modal", "{3}will | {2}must | {2}shall | may | can | would"},

    {"noun1", "{6,1,1,1}<royal1> | {1,6,1,1}<war1> | {1,1,6,1}<love1> | {1,1,1,6}<folly1>"},
    {"noun2", "{6,1,1,1}<royal2> | {1,6,1,1}<war2> | {1,1,6,1}<love2> | {1,1,1,6}<folly2>"},
    {"royal1",
     "{9}king|{7}crown|{5}queen|{4}throne|{3}kingdom|{3}prince|law|oath|heir|council|duke|"
     "sceptre|realm|judge|treaty|empire|lord|herald"},
    {"war1",
     "{9}sword|{7}soldier|{5}army|{4}shield|{3}captain|{3}horse|spear|drum|trumpet|wound|enemy|"
     "fort|trench|flag|arrow|siege|axe|helmet"},
    {"love1",
     "{9}heart|{7}rose|{5}lady|{4}kiss|{3}moon|{3}sigh|lute|tear|letter|ring|dream|maid|youth|"
     "nightingale|blush|vow|garden|star"},
    {"folly1",
     "{9}fool|{7}ass|{5}goose|{4}jest|{3}cook|{3}pudding|nose|tailor|onion|bladder|bell|wig|"
     "cheese|turnip|flea|monkey|barrel|quack"},
    {"royal2", "{9}kings|{7}crowns|{5}queens|{4}thrones|{3}kingdoms|{3}princes|laws|oaths|heirs|"
               "councils|dukes|realms|judges|treaties|lords|heralds"},
    {"war2",
     "{9}swords|{7}soldiers|{5}armies|{4}shields|{3}captains|{3}horses|spears|drums|trumpets|"
     "wounds|enemies|flags|arrows|sieges|axes|helmets"},
    {"love2", "{9}hearts|{7}roses|{5}ladies|{4}kisses|{3}sighs|{3}tears|letters|rings|dreams|maids|"
              "vows|gardens|stars|lutes|eyes|lips"},
    {"folly2",
     "{9}fools|{7}asses|{5}geese|{4}jests|{3}cooks|{3}puddings|noses|tailors|onions|bells|"
     "wigs|cheeses|turnips|fleas|monkeys|barrels"},
    {"adjective", "{6,1,1,1}<royal> | {1,6,1,1}<war> | {1,1,6,1}<love> | {1,1,1,6}<folly>"},
    {"royal",
     "{9}noble|{7}royal|{5}golden|{4}mighty|{3}just|wise|ancient|solemn|gracious|lawful|proud|"
     "exiled|great|sovereign"},
    {"war",
     "{9}bloody|{7}brave|{5}iron|{4}fierce|{3}broken|valiant|grim|bold|savage|weary|swift|cruel|"
     "hard|unbeaten"},
    {"love",
     "{9}sweet|{7}gentle|{5}fair|{4}tender|{3}pale|silent|lovely|faithful|lonely|blushing|jealous|"
     "chaste|young|soft"},
    {"folly",
     "{9}merry|{7}drunken|{5}foolish|{4}fat|{3}lazy|bald|crooked|hungry|greasy|dizzy|wooden|"
     "quick|stuffed|ugly"},
    {"verb1", "<manner> <bare1> | {5}<bare1>"},
    {"verb2", "<manner> <bare2> | {5}<bare2>"},
    {"manner", "{3}never|{3}always|often|gladly|boldly|seldom|still"},
    {"bare1", "{8,2,3,3}commands <object>|{5,2,1,1}rules <object>|{2,8,1,1}strikes <object>|"
              "{1,5,1,1}guards <object>|{1,3,1,1}kills <object>|{3,3,1,1}fears "
              "<object>|{1,1,9,1}loves <object>|"
              "{1,1,5,1}praises <object>|{1,1,4,1}weeps|{1,1,3,2}sleeps|{1,1,1,8}mocks <object>|"
              "{1,1,1,5}steals <object>|{1,1,1,4}laughs|{1,1,1,3}kicks "
              "<object>|{2,2,3,1}dies|{2,3,1,1}waits"},
    {"bare2",
     "{8,2,3,3}command <object>|{5,2,1,1}rule <object>|{2,8,1,1}strike <object>|"
     "{1,5,1,1}guard <object>|{1,3,1,1}kill <object>|{3,3,1,1}fear <object>|{1,1,9,1}love <object>|"
     "{1,1,5,1}praise <object>|{1,1,4,1}weep|{1,1,3,2}sleep|{1,1,1,8}mock <object>|"
     "{1,1,1,5}steal <object>|{1,1,1,4}laugh|{1,1,1,3}kick <object>|{2,2,3,1}die|{2,3,1,1}wait"},
    {"infinitive", "{4}<bare2> | {1}be <adjective>"},
    {"participle",
     "{5,2,1,1}commanded|{4,1,1,1}crowned|{1,5,1,1}wounded|{1,4,1,1}beaten|{1,1,5,1}forgotten|"
     "{1,1,4,1}betrayed|{1,1,1,5}mocked|{1,1,1,4}robbed|seen|found"},
    {"name", "{6,1,1,2}Osric|{5,1,1,1}Maud|{1,6,1,1}Brand|{1,3,1,1}Hubert|{1,1,6,1}Rosalyn|"
             "{1,1,5,1}Valentin|{1,1,1,6}Juniper|{1,1,1,3}Zachary|York|Kent"},
};

typedef struct PlayTurn {
    const char *head, *symbol;
    int voice, next[PLAY_TURNS]; /* weights of who comes next, in this order */
} PlayTurn;

static const PlayTurn play_turns[PLAY_TURNS] = {
    {"SCENE.", "place", 0, {0, 4, 2, 2, 1, 1, 3, 2, 1, 1, 1}},
    {"DUKE OSRIC:\n", "turn", 0, {1, 0, 12, 6, 0, 0, 2, 1, 4, 0, 6}},
    {"QUEEN MAUD:\n", "turn", 0, {1, 14, 0, 2, 0, 0, 4, 1, 4, 0, 3}},
    {"CAPTAIN BRAND:\n", "turn", 1, {1, 4, 1, 0, 12, 4, 0, 0, 1, 0, 2}},
    {"FIRST SOLDIER:\n", "turn", 1, {1, 0, 0, 4, 0, 18, 0, 0, 1, 2, 0}},
    {"SECOND SOLDIER:\n", "turn", 1, {1, 0, 0, 6, 14, 0, 0, 0, 1, 2, 0}},
    {"ROSALYN:\n", "turn", 2, {1, 0, 2, 0, 0, 0, 0, 18, 3, 0, 0}},
    {"VALENTIN:\n", "turn", 2, {1, 1, 0, 1, 0, 0, 20, 0, 2, 0, 0}},
    {"JUNIPER:\n", "turn", 3, {1, 5, 2, 1, 0, 0, 2, 2, 0, 10, 1}},
    {"GRAVEDIGGER:\n", "turn", 3, {2, 0, 0, 0, 2, 2, 0, 0, 16, 0, 0}},
    {"HERALD:\n", "turn", 0, {1, 12, 4, 3, 0, 0, 0, 0, 1, 0, 0}},
};

/* ------------------------------------------------------------------------------------------------
 * the tables, compiled: a symbol is a range of alternatives, an alternative a range of parts */

enum {
    PLAY_SYMBOLS = sizeof play_rules / sizeof *play_rules,
    PLAY_ROOM = 2048,
    PLAY_BYTES = 16384
};

typedef struct PlayPart {
    int symbol; /* -1: the text */
    const char *text;
    size_t length;
} PlayPart;

typedef struct PlayAlternative {
    int first, count; /* parts */
    uint32_t weight[PLAY_VOICES];
} PlayAlternative;

typedef struct PlayGrammar {
    int first[PLAY_SYMBOLS], count[PLAY_SYMBOLS];                             /* alternatives */
    uint32_t total[PLAY_SYMBOLS][PLAY_VOICES];                                /* weights */
    double nats[PLAY_SYMBOLS][PLAY_VOICES], chars[PLAY_SYMBOLS][PLAY_VOICES]; /* expectations */
    double entropy; /* nats per character */
    PlayAlternative alternative[PLAY_ROOM];
    PlayPart part[PLAY_ROOM];
    char bytes[PLAY_BYTES];
    int alternatives, parts;
    size_t used;
} PlayGrammar;

static void play_die(const char *thing, const char *reason) {
    fprintf(stderr, "play: %s: %s\n", thing, reason);
    exit(1);
}

static int play_symbol(const char *name, size_t length) {
    for (int i = 0; i < PLAY_SYMBOLS; i++)
        if (strlen(play_rules[i].name) == length && !memcmp(play_rules[i].name, name, length))
            return i;
    play_die(name, "no such symbol in the grammar");
    return -1;
}

/* one word of the tables, or one <symbol> */
static void play_compile_word(PlayGrammar *g, const char *s, size_t n) {
    if (g->parts == PLAY_ROOM || g->used + n + 1 > PLAY_BYTES)
        play_die(s, "the grammar is too large");
    PlayPart *part = &g->part[g->parts++];
    *part = (PlayPart){.symbol = -1, .text = g->bytes + g->used};
    if (*s == '<') {
        part->symbol = play_symbol(s + 1, n - 2);
        return;
    }
    if (*s == '^')
        s++, n--;
    else if (!strchr(".,;:!?/", *s))
        g->bytes[g->used++] = ' ';
    for (size_t i = 0; i < n; i++) g->bytes[g->used++] = (char)(s[i] == '/' ? '\n' : s[i]);
    part->length = (size_t)(g->bytes + g->used - part->text);
}

static void play_compile_rule(PlayGrammar *g, int symbol) {
    const char *s = play_rules[symbol].alternatives;
    g->first[symbol] = g->alternatives;
    while (*s) {
        if (g->alternatives == PLAY_ROOM) play_die(s, "the grammar is too large");
        PlayAlternative *a = &g->alternative[g->alternatives++];
        s += strspn(s, " ");
        for (int v = 0; v < PLAY_VOICES; v++) a->weight[v] = 1;
        /* the last weight holds for all later voices */
        for (int v = 0; *s == (v ? ',' : '{'); v++) {
            char *end;
            uint32_t weight = (uint32_t)strtoul(s + 1, &end, 10);
            for (int w = v; w < PLAY_VOICES; w++) a->weight[w] = weight;
            s = end;
        }
        s += *s == '}';
        a->first = g->parts;
        for (; *(s += strspn(s, " ")) && *s != '|'; s += strcspn(s, " |"))
            play_compile_word(g, s, strcspn(s, " |"));
        a->count = g->parts - a->first;
        for (int v = 0; v < PLAY_VOICES; v++) g->total[symbol][v] += a->weight[v];
        s += *s == '|';
        s += strspn(s, " ");
    }
    g->count[symbol] = g->alternatives - g->first[symbol];
}

/* ------------------------------------------------------------------------------------------------
 * entropy */

/* -ln of the probability weight / total */
static double play_nats(uint32_t weight, uint32_t total) { return log((double)total / weight); }

/* one sweep of the two equations above for one symbol and voice; returns the relative change */
static double play_sweep(PlayGrammar *g, int symbol, int v) {
    double nats = 0, chars = 0, old = g->nats[symbol][v] + g->chars[symbol][v];
    for (int i = 0; i < g->count[symbol]; i++) {
        const PlayAlternative *a = &g->alternative[g->first[symbol] + i];
        if (!a->weight[v]) continue;
        double p = (double)a->weight[v] / g->total[symbol][v], n, c = 0;
        n = play_nats(a->weight[v], g->total[symbol][v]);
        for (const PlayPart *part = g->part + a->first; part < g->part + a->first + a->count;
             part++) {
            n += part->symbol < 0 ? 0 : g->nats[part->symbol][v];
            c += part->symbol < 0 ? (double)part->length : g->chars[part->symbol][v];
        }
        nats += p * n;
        chars += p * c;
    }
    g->nats[symbol][v] = nats;
    g->chars[symbol][v] = chars;
    return fabs(nats + chars - old) / (nats + chars + 1e-300);
}

static double play_chain_total(int turn) {
    double total = 0;
    for (int j = 0; j < PLAY_TURNS; j++) total += play_turns[turn].next[j];
    return total;
}

static void play_solve(PlayGrammar *g) {
    double change = 1, pi[PLAY_TURNS], nats = 0, chars = 0;
    for (int sweep = 0; change > 1e-15; sweep++) {
        if (sweep == 10000) play_die("grammar", "it expects speeches of infinite length");
        change = 0;
        for (int symbol = 0; symbol < PLAY_SYMBOLS; symbol++)
            for (int v = 0; v < PLAY_VOICES; v++) change = fmax(change, play_sweep(g, symbol, v));
    }
    for (int i = 0; i < PLAY_TURNS; i++) pi[i] = 1.0 / PLAY_TURNS;
    /* pi <- (pi + pi P) / 2, so that a periodic chain would settle too */
    for (int sweep = 0; sweep < 2000; sweep++) {
        double next[PLAY_TURNS] = {0};
        for (int i = 0; i < PLAY_TURNS; i++)
            for (int j = 0; j < PLAY_TURNS; j++)
                next[j] += pi[i] * play_turns[i].next[j] / play_chain_total(i);
        for (int j = 0; j < PLAY_TURNS; j++) pi[j] = (pi[j] + next[j]) / 2;
    }
    for (int i = 0; i < PLAY_TURNS; i++) {
        const PlayTurn *t = &play_turns[i];
        int symbol = play_symbol(t->symbol, strlen(t->symbol));
        double n = g->nats[symbol][t->voice], total = play_chain_total(i);
        for (int j = 0; j < PLAY_TURNS; j++)
            if (t->next[j]) n += t->next[j] / total * log(total / t->next[j]);
        nats += pi[i] * n;
        chars += pi[i] * ((double)strlen(t->head) + g->chars[symbol][t->voice]);
    }
    g->entropy = nats / chars;
}

static void play_init(PlayGrammar *g) {
    memset(g, 0, sizeof *g);
    for (int i = 0; i < PLAY_SYMBOLS; i++) play_compile_rule(g, i);
    play_solve(g);
}

/* ------------------------------------------------------------------------------------------------
 * generator */

typedef struct PlayText {
    char *bytes;
    size_t length, room;
    double nats; /* -ln P of all choices made */
    uint64_t seed, draws;
} PlayText;

/* 0..total-1: splitmix64 of (seed, number of the draw) */
static uint32_t play_draw(PlayText *t, uint32_t total) {
    uint64_t x = t->seed * 0xd1342543de82ef95u + ++t->draws * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x = x ^ (x >> 31);
    return (uint32_t)((x >> 32) * total >> 32);
}

static void play_append(PlayText *t, const char *s, size_t n) {
    if (!t->bytes || t->length + n > t->room) {
        t->room = 2 * (t->length + n);
        t->bytes = realloc(t->bytes, t->room);
        if (!t->bytes) play_die("text", "out of memory");
    }
    memcpy(t->bytes + t->length, s, n);
    t->length += n;
}

static void play_expand(const PlayGrammar *g, PlayText *t, int symbol, int voice) {
    uint32_t total = g->total[symbol][voice], draw = play_draw(t, total);
    const PlayAlternative *a = &g->alternative[g->first[symbol]];
    for (; draw >= a->weight[voice]; a++) draw -= a->weight[voice];
    t->nats += play_nats(a->weight[voice], total);
    for (const PlayPart *part = g->part + a->first; part < g->part + a->first + a->count; part++) {
        if (part->symbol < 0)
            play_append(t, part->text, part->length);
        else
            play_expand(g, t, part->symbol, voice);
    }
}

/* whole turns until there are at least so many bytes; free(t->bytes) */
static void play_write(const PlayGrammar *g, PlayText *t, size_t bytes, uint64_t seed) {
    *t = (PlayText){.seed = seed};
    for (int turn = 0; t->length < bytes;) {
        const PlayTurn *now = &play_turns[turn];
        play_append(t, now->head, strlen(now->head));
        play_expand(g, t, play_symbol(now->symbol, strlen(now->symbol)), now->voice);
        uint32_t total = (uint32_t)play_chain_total(turn);
        int draw = (int)play_draw(t, total);
        for (turn = 0; draw >= now->next[turn]; turn++) draw -= now->next[turn];
        if (t->length < bytes) t->nats += play_nats((uint32_t)now->next[turn], total);
    }
}

/* ------------------------------------------------------------------------------------------------
 * program */

#ifndef PLAY_NO_MAIN
static void play_save(const char *path, const char *suffix, const char *bytes, size_t n) {
    char name[4096], temporary[4096 + 8];
    if (snprintf(name, sizeof name, "%s%s", path, suffix) >= (int)sizeof name)
        play_die(path, "name too long");
    snprintf(temporary, sizeof temporary, "%s.tmp", name);
    FILE *f = fopen(temporary, "wb");
    if (!f) play_die(temporary, strerror(errno));
    int bad = fwrite(bytes, 1, n, f) != n;
    bad |= fclose(f) != 0;
    if (bad || rename(temporary, name)) {
        int why = errno;
        remove(temporary);
        play_die(name, strerror(why));
    }
}

static uint64_t play_number(const char *s, const char *what) {
    char *end;
    errno = 0;
    unsigned long long x = strtoull(s, &end, 10);
    if (errno || end == s || *end || *s < '0' || *s > '9') {
        fprintf(stderr, "play: %s '%s' is not a number\nusage: play OUT [BYTES] [SEED]\n", what, s);
        exit(2);
    }
    return x;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 4 || *argv[1] == '-') {
        fprintf(stderr, "usage: play OUT [BYTES] [SEED]\n");
        return 2;
    }
    uint64_t bytes = argc > 2 ? play_number(argv[2], "BYTES") : 1115394;
    uint64_t seed = argc > 3 ? play_number(argv[3], "SEED") : 1;
    static PlayGrammar g;
    PlayText t;
    char line[64];
    play_init(&g);
    play_write(&g, &t, bytes ? (size_t)bytes : 1, seed);
    int n = snprintf(line, sizeof line, "%.12f\n", g.entropy);
    play_save(argv[1], ".entropy", line, (size_t)n);
    play_save(argv[1], "", t.bytes, t.length);
    printf("%s: %zu characters whose exact entropy is %.6f nats per character; this very text has "
           "-ln P / character = %.6f\n",
           argv[1], t.length, g.entropy, t.nats / (double)t.length);
    free(t.bytes);
    return 0;
}
#endif
