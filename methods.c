/* methods.c - the table of methods, and the configuration: names, defaults, refusals. C11, MIT.

   A method is a row: which of signmuon.c's boxes it takes, and with which stages. sm_config leaves
   everything else to the row; sm_resolve fills it in, and refuses what does not go together. Its
   sentence begins with the field's name. Adding a method: docs/ADDING.md. */
#include "demuon.h"
#include "ef21muon.h"
#include "lib/attack.h"
#include "lib/base.h"
#include "lib/comm.h"
#include "optimizer.h"
#include "signmuon.h"

/* ------------------------------------------------------------------------------------------------
 * the method table: one row per method, stages left out are SM_GRADIENT, no map, SM_MEAN, SM_DENSE,
 * SM_STEP. The box follows from `combine`, and from the server map after a vote. A new method of
 * known stages is one row here and one equation in the tests; see docs/ADDING.md for stages. */

// clang-format off
static const SmMethod methods[] = {
    {.name = "sgd", .doc = "mean of the gradients, with momentum",
     .estimate = SM_MOMENTUM, .momentum = 0.9, .clip = 1,
     .gain = "none", .aux = "same", .lr = 3.0, .schedule = "linear", .warmup = 100},
    {.name = "adamw", .doc = "mean of the gradients, AdamW",
     .update = SM_ADAMW, .weight_decay = 0.1,
     .gain = "none", .aux = "same", .lr = 4e-3, .schedule = "linear", .warmup = 100},
    {.name = "signsgd", .doc = "vote of sign(G)",
     .combine = SM_VOTE, .downlink = SM_SIGN,
     .gain = "none", .aux = "same", .lr = 1e-3, .schedule = "linear", .warmup = 100},
    {.name = "signum", .doc = "vote of sign(M)",
     .estimate = SM_MOMENTUM, .momentum = 0.95,
     .combine = SM_VOTE, .downlink = SM_SIGN,
     .gain = "none", .aux = "same", .lr = 5e-4, .schedule = "linear"},
    {.name = "lion", .doc = "vote of Lion's sign(beta1 M + (1-beta1) G)",
     .estimate = SM_LION, .momentum = 0.99,
     .combine = SM_VOTE, .downlink = SM_SIGN, .weight_decay = 0.1,
     .gain = "none", .aux = "same", .lr = 6e-4, .schedule = "linear"},
    {.name = "muon", .doc = "polar(mean M)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .nesterov = 1, .server_map = "spectral",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "muon-avgpolar", .doc = "mean of polar(M)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .nesterov = 1, .worker_map = "spectral",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "scion", .doc = "LMO(mean M) of every tensor in the norm of its role",
     .estimate = SM_MOMENTUM, .momentum = 0.9, .server_map = "rms-rms",
     .gain = "none", .aux = "lmo", .lr = 5e-3, .schedule = "linear"},
    {.name = "scion-constrained", .doc = "the same inside balls: W <- (1-lr) W - lr LMO(mean M)",
     .estimate = SM_MOMENTUM, .momentum = 0.9, .server_map = "rms-rms", .update = SM_FRANK_WOLFE,
     .gain = "none", .aux = "lmo", .lr = 5e-3, .schedule = "linear"},
    {.name = "gluon", .doc = "LMO(mean M), momentum 1-(k+1)^-1/2, step (k+1)^-3/4",
     .estimate = SM_GLUON, .server_map = "rms-rms",
     .gain = "none", .aux = "lmo", .lr = 0.1, .schedule = "gluon"},
    {.name = "signmuon", .doc = "vote of sign(polar(M))",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .worker_map = "spectral",
     .combine = SM_VOTE, .downlink = SM_SIGN,
     .gain = "none", .aux = "adamw", .lr = 1e-3, .schedule = "linear"},
    {.name = "muonusign", .doc = "polar(vote of sign(M))",
     .estimate = SM_MOMENTUM, .momentum = 0.95,
     .combine = SM_VOTE, .server_map = "spectral",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "muonsign", .doc = "sign(polar(vote of sign(M)))",
     .estimate = SM_MOMENTUM, .momentum = 0.95,
     .combine = SM_VOTE, .server_map = "spectral", .downlink = SM_SIGN,
     .gain = "none", .aux = "adamw", .lr = 1e-3, .schedule = "linear"},
    {.name = "ef21-muon", .doc = "polar(G), G += mean C(M - G_j)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .first_gradient = 1,
     .combine = SM_FEEDBACK, .server_map = "spectral",
     .up = "topk:0.15+natural", .down = "identity",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "ef21-signmuon", .doc = "G, G += mean C(polar(M) - G_j)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .first_gradient = 1, .worker_map = "spectral",
     .combine = SM_FEEDBACK, .up = "sign", .down = "identity",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "ef21-muonusign", .doc = "polar(G), G += mean C(M - G_j)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .first_gradient = 1,
     .combine = SM_FEEDBACK, .server_map = "spectral", .up = "sign", .down = "identity",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "ef21-muonsign", .doc = "polar(G), and W += C(X - W)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .first_gradient = 1,
     .combine = SM_FEEDBACK, .server_map = "spectral", .up = "sign", .down = "sign",
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "demuon", .doc = "gossip of X - lr polar(V), V tracks mean M",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .worker_map = "spectral", .combine = SM_TRACKING,
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "demuon-notrack", .doc = "gossip of X - lr polar(M)",
     .estimate = SM_MOMENTUM, .momentum = 0.95, .worker_map = "spectral", .combine = SM_GOSSIP,
     .gain = "rms", .aux = "adamw", .lr = 5e-3, .schedule = "linear"},
    {.name = "dsgd", .doc = "gossip of X - lr G",
     .combine = SM_GOSSIP,
     .gain = "none", .aux = "same", .lr = 0.5, .schedule = "linear", .warmup = 100},
    {.name = "dsgd-clip", .doc = "the same, G clipped at 0.1 (k+1)^0.4",
     .combine = SM_GOSSIP, .clip = 0.1, .clip_power = 0.4,
     .gain = "none", .aux = "same", .lr = 1, .schedule = "linear", .warmup = 100},
    {.name = "gt-dsgd", .doc = "gossip of X - lr V, V tracks mean G",
     .combine = SM_TRACKING,
     .gain = "none", .aux = "same", .lr = 0.3, .schedule = "linear", .warmup = 100},
    {.name = "gt-nsgdm", .doc = "gossip of X - lr V/|V|, V tracks mean M",
     .estimate = SM_MOMENTUM, .momentum = 0.8, .combine = SM_TRACKING, .update = SM_UNIT,
     .gain = "none", .aux = "same", .lr = 0.2, .schedule = "linear"},
};
// clang-format on

const SmMethod *sm_method_row(size_t i) {
    return i < sizeof methods / sizeof *methods ? &methods[i] : NULL;
}

const SmMethod *sm_method(const char *name) {
    for (size_t i = 0; name && sm_method_row(i); i++)
        if (strcmp(name, methods[i].name) == 0) return &methods[i];
    return NULL;
}

int sm_has_server(const SmMethod *m) {
    return m->combine != SM_GOSSIP && m->combine != SM_TRACKING;
}

/* ------------------------------------------------------------------------------------------------
 * configuration */

#define REFUSE(...) return base_fail(error, size, SM_BAD_CONFIG, __VA_ARGS__)

static int same_name(const char *a, const char *b) { return strcmp(a, b) == 0; }
static int is_map(const char *name) { return name && !same_name(name, "none"); }
static const char *text_or(const char *text, const char *otherwise) {
    return text ? text : otherwise;
}

SmConfig sm_config(const char *method) {
    SmConfig c = {
        .method = method, .nesterov = -1, .first_gradient = -1, .polar_every = 1, .rounds = {1, 1}};
    c.lr = c.aux_lr = c.momentum = c.beta1 = c.beta2 = c.epsilon = c.weight_decay = c.clip = NAN;
    for (int r = 0; r < SM_ROLES; r++) c.radius[r] = NAN;
    return c;
}

enum { METHODS, AUX_RULES, MAPS, NORMS, GAINS, POLYNOMIALS, DTYPES, ZEROS };

/* The i-th name that a field of this kind takes; NULL past the end. */
static const char *name_of(int kind, size_t i) {
    static const char *const aux[] = {"adamw", "sign", "same", "lmo"};
    static const char *const dtypes[] = {"fp32", "bf16"};
    static const char *const zeros[] = {"coin", "plus", "abstain"};
    if (kind == MAPS) return i == 0 ? "none" : name_of(NORMS, i - 1);
    if (kind == METHODS) return sm_method_row(i) ? sm_method_row(i)->name : NULL;
    if (kind == NORMS) return sm_norm_row(i) ? sm_norm_row(i)->name : NULL;
    if (kind == GAINS) return sm_gain_row(i) ? sm_gain_row(i)->name : NULL;
    if (kind == POLYNOMIALS) return sm_newton_schulz_row(i) ? sm_newton_schulz_row(i)->name : NULL;
    if (kind == AUX_RULES) return i < 4 ? aux[i] : NULL;
    if (kind == DTYPES) return i < 2 ? dtypes[i] : NULL;
    return i < 3 ? zeros[i] : NULL;
}

/* Every text must be NULL, or a name of its table. */
static int check_names(const SmConfig *c, char *error, size_t size) {
    const struct {
        const char *field, *value;
        int kind;
    } table[] = {
        {.field = "method", .value = c->method, .kind = METHODS},
        {.field = "aux", .value = c->aux, .kind = AUX_RULES},
        {.field = "norm", .value = c->norm, .kind = NORMS},
        {.field = "worker-map", .value = c->worker_map, .kind = MAPS},
        {.field = "server-map", .value = c->server_map, .kind = MAPS},
        {.field = "gain", .value = c->gain, .kind = GAINS},
        {.field = "ns", .value = c->ns, .kind = POLYNOMIALS},
        {.field = "ns-dtype", .value = c->ns_dtype, .kind = DTYPES},
        {.field = "zeros", .value = c->zeros, .kind = ZEROS},
        {.field = "ties", .value = c->ties, .kind = ZEROS},
    };
    if (!c->method) REFUSE("method: none is named");
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        const char *name, *value = table[k].value;
        int known = value == NULL;
        for (size_t i = 0; !known && (name = name_of(table[k].kind, i)); i++)
            known = same_name(name, value);
        if (known) continue;
        base_fail(error, size, 0, "%s '%s' is unknown; there are:", table[k].field, value);
        for (size_t i = 0; (name = name_of(table[k].kind, i)); i++) {
            size_t used = size ? strlen(error) : 0;
            base_fail(error + used, size - used, 0, " %s", name);
        }
        return SM_BAD_CONFIG;
    }
    return 0;
}

/* The LMOs of the hidden matrices, and the rule of the other tensors. */
static int resolve_maps(SmConfig *c, const SmMethod *m, char *error, size_t size) {
    int worker = is_map(m->worker_map), server = is_map(m->server_map);
    if (c->norm && !worker && !server && !c->polar_after_vote)
        REFUSE("norm %s has nothing to replace: method %s applies no LMO; take worker-map or "
               "server-map",
               c->norm, m->name);
    c->worker_map = text_or(c->worker_map, worker ? text_or(c->norm, m->worker_map) : "none");
    c->server_map = text_or(c->server_map, server ? text_or(c->norm, m->server_map) : "none");
    int maps = is_map(c->worker_map) || is_map(c->server_map);
    if (is_map(c->server_map) && !sm_has_server(m))
        REFUSE("server-map %s: method %s has no server; take worker-map", c->server_map, m->name);
    if ((m->update == SM_ADAMW || m->update == SM_UNIT) && maps)
        REFUSE("worker-map and server-map do not go with method %s, which scales its step itself",
               m->name);
    if (c->polar_after_vote && (m->combine != SM_VOTE || is_map(c->server_map)))
        REFUSE("polar-after-vote needs a method whose downlink is the vote itself: signsgd, "
               "signum, lion or signmuon, not %s",
               m->name);
    if (c->polar_every < 1) REFUSE("polar-every %d: must be at least 1", c->polar_every);
    if (c->polar_every > 1 && (m->combine != SM_VOTE || !is_map(c->worker_map)))
        REFUSE("polar-every %d: method %s has no LMO before a vote; take signmuon", c->polar_every,
               m->name);
    const char *vote_map = c->polar_after_vote ? text_or(c->norm, "spectral") : "none";
    const SmNorm *norms[] = {sm_norm(c->worker_map), sm_norm(c->server_map), sm_norm(vote_map)};
    int with_state = 0;
    for (size_t i = 0; i < 3; i++) with_state += norms[i] && norms[i]->state;
    if (with_state > 1)
        REFUSE("norm %s: its power iteration keeps one state per block, which two maps of a method "
               "cannot share; name another norm for one of them",
               text_or(c->norm, c->worker_map));
    c->aux = text_or(c->aux, m->aux);
    if (same_name(c->aux, "lmo") && !maps)
        REFUSE("aux lmo: method %s applies no LMO; take aux same", m->name);
    if (same_name(c->aux, "sign") && !sm_has_server(m))
        REFUSE("aux sign is a vote of all workers, and method %s has no server; take aux adamw, "
               "same or lmo",
               m->name);
    return 0;
}

/* What is not given is the row's; then every number must lie in its range. */
static int resolve_numbers(SmConfig *c, const SmMethod *m, char *error, size_t size) {
    const double scion[SM_ROLES] = {1, 3, 1, 10}, most = 1e9; /* shallow nanoGPT on characters */
    const int sign = same_name(c->aux, "sign"), lmo = same_name(m->aux, "lmo");
    c->gain = text_or(c->gain, c->polar_after_vote ? "rms" : m->gain);
    c->ns = text_or(c->ns, "jordan5");
    c->ns_dtype = text_or(c->ns_dtype, "fp32");
    c->zeros = text_or(c->zeros, "coin");
    c->ties = text_or(c->ties, "coin");
    if (c->nesterov < 0) c->nesterov = m->nesterov;
    if (c->first_gradient < 0) c->first_gradient = m->first_gradient;
    if (isnan(c->lr)) c->lr = c->polar_after_vote ? 5e-3 : m->lr;
    double aux_lr = sign ? 1e-3 : same_name(c->aux, "adamw") ? 3e-3 : c->lr;
    double momentum = m->momentum > 0 || !sign ? m->momentum : 0.95;
    const struct {
        const char *field;
        double *value, otherwise, most;
    } table[] = {
        {.field = "lr", .value = &c->lr, .most = most},
        {.field = "aux-lr", .value = &c->aux_lr, .otherwise = aux_lr, .most = most},
        {.field = "momentum", .value = &c->momentum, .otherwise = momentum, .most = 1 - 1e-9},
        {.field = "epsilon", .value = &c->epsilon, .otherwise = 1e-8, .most = most},
        {.field = "beta1", .value = &c->beta1, .otherwise = 0.9, .most = 1 - 1e-9},
        {.field = "beta2", .value = &c->beta2, .otherwise = 0.95, .most = 1 - 1e-9},
        {.field = "clip", .value = &c->clip, .otherwise = m->clip, .most = most},
        {.field = "weight-decay",
         .value = &c->weight_decay,
         .otherwise = m->weight_decay,
         .most = most},
    };
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        double *x = table[k].value;
        if (isnan(*x)) *x = table[k].otherwise;
        if (!(*x >= 0 && *x <= table[k].most))
            REFUSE("%s %g: must be from 0 to %.10g", table[k].field, *x, table[k].most);
    }
    for (int r = 0; r < SM_ROLES; r++) {
        if (isnan(c->radius[r])) c->radius[r] = lmo ? scion[r] : 1;
        if (!(c->radius[r] >= 0 && c->radius[r] <= most))
            REFUSE("radius %g: must be from 0 to %.10g", c->radius[r], most);
    }
    for (int k = 0; k < 2; k++)
        if (c->rounds[k] < 1 || c->rounds[k] > 1000)
            REFUSE("rounds %d: must be from 1 to 1000", c->rounds[k]);
    if (m->estimate == SM_GLUON && c->momentum > 0 && !sign)
        REFUSE("momentum %g: at step k that of method %s is 1-(k+1)^-1/2; take scion", c->momentum,
               m->name);
    if (m->update == SM_FRANK_WOLFE && c->weight_decay > 0)
        REFUSE("weight-decay %g: method %s shrinks weights by its step size alone; take scion",
               c->weight_decay, m->name);
    return 0;
}

/* The compressors of error feedback. */
static int resolve_links(SmConfig *c, const SmMethod *m, char *error, size_t size) {
    char why[256];
    EfLink link;
    if (m->combine != SM_FEEDBACK) {
        if (c->up || c->down)
            REFUSE("%s %s: method %s has no error feedback; take an ef21 method",
                   c->up ? "up" : "down", c->up ? c->up : c->down, m->name);
        return 0;
    }
    c->up = text_or(c->up, m->up);
    c->down = text_or(c->down, m->down);
    if (ef_parse(&link, c->up, why, sizeof why)) REFUSE("up %s: %s", c->up, why);
    if (ef_parse(&link, c->down, why, sizeof why)) REFUSE("down %s: %s", c->down, why);
    return 0;
}

/* Who gossips with whom. */
static int resolve_graph(SmConfig *c, const SmMethod *m, int workers, char *error, size_t size) {
    char why[512] = "";
    DmGraph graph;
    if (sm_has_server(m) && (c->topology || c->rounds[0] != 1 || c->rounds[1] != 1))
        REFUSE("topology and rounds are for workers without a server: take demuon or one of "
               "its baselines, not method %s",
               m->name);
    if (sm_has_server(m)) return 0;
    c->topology = text_or(c->topology, "ring");
    struct stat file;
    if (strncmp(c->topology, "file:", 5) == 0 && stat(c->topology + 5, &file) == 0 &&
        !S_ISREG(file.st_mode)) /* a FIFO would be waited for */
        REFUSE("topology %s: not a regular file", c->topology);
    double *mixing = base_allocate(dm_graph_doubles(workers) * sizeof *mixing);
    if (!mixing)
        return base_fail(error, size, SM_NO_MEMORY, "no memory for a graph of %d workers", workers);
    int bad = dm_graph_build(&graph, mixing, c->topology, workers, why, sizeof why);
    int unreadable = bad && strncmp(why, "cannot ", 7) == 0 && errno != ENOENT;
    free(mixing);
    if (!bad) return 0;
    return base_fail(error, size, unreadable ? SM_FAILED : SM_BAD_CONFIG, "topology: %s", why);
}

int sm_resolve(SmConfig *config, int workers, char *error, size_t size) {
    SmConfig c = *config;
    char why[256];
    Attack attack;
    int bad = check_names(&c, error, size);
    if (bad) return bad;
    const SmMethod *m = sm_method(c.method);
    if (workers < 1 || workers > COMM_MAX_WORKERS)
        REFUSE("workers %d: must be from 1 to %d", workers, COMM_MAX_WORKERS);
    bad = resolve_maps(&c, m, error, size);
    if (!bad) bad = resolve_numbers(&c, m, error, size);
    if (!bad) bad = resolve_links(&c, m, error, size);
    if (!bad) bad = resolve_graph(&c, m, workers, error, size);
    if (bad) return bad;
    if (c.adversaries < 0 || (c.adversaries > 0 && c.adversaries >= workers))
        REFUSE("adversaries %d: of %d workers at least one must be honest", c.adversaries, workers);
    if (c.adversaries == 0 && c.attack)
        REFUSE("attack %s: no worker is an adversary; say how many with adversaries", c.attack);
    if (c.adversaries) c.attack = text_or(c.attack, "flip");
    if (c.adversaries && attack_parse(&attack, c.attack, why, sizeof why))
        REFUSE("attack: %s", why);
    *config = c;
    return 0;
}
