/* config.c - what sm_config and sm_resolve make of a configuration, and messages from outside it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ef21muon.h"
#include "lib/comm.h"
#include "optimizer.h"
#include "test/test.h"

static const SmTensor hidden = {
    .name = "qkv", .rows = 6, .cols = 10, .blocks = 3, .role = SM_HIDDEN};

TEST(rows_of_ef21_bring_their_compressors) {
    for (size_t i = 0; sm_method_row(i); i++) {
        const SmMethod *m = sm_method_row(i);
        char error[512];
        SmConfig c = sm_config(m->name);
        CHECK(sm_resolve(&c, 3, error, sizeof error) == 0, "%s: %s", m->name, error);
        SmFacts f = sm_facts(&c, &hidden, 3);
        CHECK(m->combine != SM_FEEDBACK || f.up < 5, "%s sends %g bits", m->name, f.up);
        CHECK(sm_has_server(m) || strcmp(c.topology, "ring") == 0, "%s", m->name);
        SmConfig again = c;
        CHECK(sm_resolve(&again, 3, error, sizeof error) == 0 &&
                  strcmp(again.server_map, c.server_map) == 0,
              "%s resolved twice: %s", m->name, error);
        CHECK(sm_bytes(&c, &hidden, 1, 3, 2).total > 0);
    }
}

static SmFault found;

/* A worker that speaks the protocol of one 6 x 11 matrix, but with bits where none belong. */
static int malform(SmComm *comm, void *arg) {
    static const SmTensor one = {
        .name = "x", .rows = 6, .cols = 11, .blocks = 1, .role = SM_HIDDEN};
    const SmConfig *c = arg;
    char error[512], message[1024], inbox[4096];
    float w[66] = {0}, g[66];
    for (int i = 0; i < 66; i++) g[i] = (float)(i - 30) / 40;
    if (sm_rank(comm) > 0) {
        SmOptimizer *o = sm_create(c, &one, 1, comm, error, sizeof error);
        sm_step(o, w, g, 0, 0.1, 0.1);
        if (sm_fault(o).kind) found = sm_fault(o); /* one worker at most */
        sm_free(o);
        return 0;
    }
    EfLink link;
    int vote = sm_method(c->method)->combine == SM_VOTE;
    size_t bytes = 16, cuts[4] = {0, 0, 8, 16};
    memset(message, 255, sizeof message);
    if (!vote) {
        ef_parse(&link, c->up, error, sizeof error);
        bytes = ef_bytes(&link, 6, 11, 0);
        memset(message, 0, strcmp(c->up, "sign") == 0 ? 4 : bytes - 1);
        cuts[2] = cuts[3] = bytes; /* one block: the middle worker is its owner */
    } else if (sm_method(c->method)->server_map) {
        cuts[2] = 16;
    }
    comm_alltoall(comm, message, cuts, inbox, COMM_MATRICES);
    if (!vote) {
        ef_parse(&link, "identity", error, sizeof error);
        cuts[2] = cuts[3] = 4 * 66;
    } else if (sm_method(c->method)->server_map) {
        cuts[2] = cuts[3] = 4 * 66;
    }
    comm_allgather(comm, inbox, cuts, COMM_MATRICES);
    return 0;
}

TEST(who_sends_malformed_messages_is_named) {
    static const struct {
        const char *method, *up;
    } path[] = {{"signmuon", NULL},
                {"muonusign", NULL},
                {"ef21-muon", "sign"},
                {"ef21-muon", "topk:0.1"},
                {"ef21-muon", "topk:0.2+natural"}};
    for (size_t k = 0; k < sizeof path / sizeof *path; k++) {
        char error[512] = "";
        SmConfig c = sm_config(path[k].method);
        found = (SmFault){.kind = 0};
        c.up = path[k].up;
        CHECK(sm_resolve(&c, 3, error, sizeof error) == 0, "%s", error);
        CHECK(sm_run("threads", 3, 1, malform, &c, error, sizeof error) == 0, "%s", error);
        CHECK(found.kind == 2 && found.sender == 0, "%s %s: fault %d of worker %d", path[k].method,
              path[k].up, found.kind, found.sender);
    }
}

TEST(configurations_that_do_not_fit_are_refused) {
    SmConfig bad[32];
    const char *says[32];
    size_t n = 0;
    char error[512];
#define REFUSED(name, change, sentence)                                                            \
    bad[n] = sm_config(name), bad[n].change, says[n++] = sentence
    REFUSED("mun", seed = 0, "method 'mun' is unknown");
    REFUSED(NULL, seed = 0, "method");
    REFUSED("muon", norm = "l7", "norm 'l7' is unknown");
    REFUSED("signum", norm = "row", "norm row has nothing to replace");
    REFUSED("adamw", worker_map = "row", "worker-map");
    REFUSED("gt-nsgdm", worker_map = "row", "worker-map");
    REFUSED("demuon", server_map = "row", "server-map row");
    REFUSED("muon", polar_after_vote = 1, "polar-after-vote");
    REFUSED("muonsign", polar_after_vote = 1, "polar-after-vote");
    REFUSED("sgd", aux = "lmo", "aux lmo");
    REFUSED("demuon", aux = "sign", "aux sign");
    REFUSED("muon", aux = "zebra", "aux 'zebra'");
    REFUSED("muon", up = "sign", "up sign");
    REFUSED("signmuon", down = "sign", "down sign");
    REFUSED("ef21-muon", up = "topk:7", "up topk:7");
    REFUSED("muon", topology = "ring", "topology");
    REFUSED("muon", rounds[1] = 2, "topology and rounds");
    REFUSED("demuon", topology = "moebius", "topology");
    REFUSED("demuon", rounds[0] = 0, "rounds");
    REFUSED("gluon", momentum = 0.9, "momentum 0.9");
    REFUSED("scion-constrained", weight_decay = 0.1, "weight-decay 0.1");
    REFUSED("muon", momentum = 1, "momentum 1");
    REFUSED("muon", lr = -1, "lr -1");
    REFUSED("muon", radius[SM_INPUT] = INFINITY, "radius");
    REFUSED("muon", adversaries = 3, "adversaries 3");
    REFUSED("muon", attack = "flip", "attack flip");
    REFUSED("muon", gain = "pain", "gain 'pain'");
    for (size_t i = 0; i < n; i++) {
        *error = 0;
        CHECK(sm_resolve(&bad[i], 3, error, sizeof error) == SM_BAD_CONFIG, "%s", says[i]);
        CHECK(strncmp(error, says[i], strlen(says[i])) == 0, "'%s' for '%s'", error, says[i]);
    }
    SmConfig c = sm_config("demuon");
    c.topology = "file:/nowhere/at/all";
    CHECK(sm_resolve(&c, 3, error, sizeof error) < 0 && strstr(error, "/nowhere/at/all"));
    c = sm_config("muon");
    c.adversaries = 1;
    c.attack = "shout";
    CHECK(sm_resolve(&c, 3, error, sizeof error) == SM_BAD_CONFIG && strstr(error, "shout"));
    CHECK(sm_run("pigeons", 3, 1, malform, NULL, error, sizeof error) < 0 &&
          strstr(error, "pigeons"));
    CHECK(sm_run("threads", 0, 1, malform, NULL, error, sizeof error) < 0 &&
          strstr(error, "workers"));
}
