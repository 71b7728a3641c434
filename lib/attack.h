/* attack.h - what a Byzantine worker sends in place of its vector u. C11, MIT.

     flip      -u
     random    normal numbers of u's Euclidean norm
     zero      zeros
     nan       NaN in every entry
     scale:S   S u

   Nothing is allocated; every function may be called from any thread on distinct vectors.

     attack_row         the attacks, as a table; NULL past the end
     attack_parse attack_apply        an attack from its text; u <- what is sent instead
*/
#ifndef ATTACK_H
#define ATTACK_H

#include "base.h"

typedef struct Attack {
    const char *name, *doc; /* a name that ends with ':' wants a number behind it */
    double factor;          /* of u */
    int random;             /* u becomes normal numbers first */
} Attack;

static inline const Attack *attack_row(size_t i) {
    static const Attack table[] = {
        {.name = "flip", .factor = -1, .doc = "the negative"},
        {.name = "random", .factor = 1, .random = 1, .doc = "normal numbers of the same norm"},
        {.name = "zero", .factor = 0, .doc = "zeros"},
        {.name = "nan", .factor = NAN, .doc = "NaN in every entry"},
        {.name = "scale:", .doc = "scale:S sends S times as much"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

/* Read "flip", "scale:-3" and the like.
 * error    -1 and a sentence; the attack is as it was */
static inline int attack_parse(Attack *attack, const char *text, char *error, size_t size) {
    size_t length = strcspn(text, ":"), at = 0;
    const Attack *row;
    char names[200] = "", *end = NULL;
    length += text[length] == ':';
    for (size_t i = 0; (row = attack_row(i)) != NULL; i++) {
        if (strlen(row->name) == length && !memcmp(row->name, text, length)) break;
        at += (size_t)snprintf(names + at, sizeof names - at, " %s", row->name);
    }
    double number = row && text[length] ? strtod(text + length, &end) : 0;
    int wants = row && row->name[length - 1] == ':';
    int good = wants ? end && end > text + length && !*end && fabs(number) <= 1e9 : !text[length];
    if (!row || !good)
        return base_fail(error, size, -1, "'%.40s' is not an attack; it is %s%s", text,
                         row ? row->name : "one of", row ? "S, S from -1e9 to 1e9" : names);
    *attack = *row;
    if (wants) attack->factor = number;
    return 0;
}

/* Overwrite u (n) with what is sent instead; random numbers are a hash of the key. */
static inline void attack_apply(const Attack *attack, float *u, size_t n, uint64_t key) {
    double factor = attack->factor, honest = 0, drawn = 0;
    for (size_t i = 0; attack->random && i < n; i++) {
        honest += (double)u[i] * (double)u[i];
        u[i] = (float)base_normal(key, i);
        drawn += (double)u[i] * (double)u[i];
    }
    if (drawn > 0) factor *= sqrt(honest / drawn);
    for (size_t i = 0; i < n; i++) u[i] = factor == 0 ? 0 : (float)(factor * (double)u[i]);
}

#endif
