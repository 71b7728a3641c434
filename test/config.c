/* config.c - what sm_resolve makes of a configuration, and messages that break the protocol. */
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
    char error[1024], message[1024], inbox[4096];
    float w[66] = {0}, g[66];
    for (int i = 0; i < 66; i++) g[i] = (float)(i - 30) / 40;
    if (sm_rank(comm) > 0) {
        SmOptimizer *o = sm_create(c, &one, 1, comm, error, sizeof error);
        sm_step(o, w, g, 0, 0.1, 0.1);
        if (sm_fault(o).kind) found = sm_fault(o); /* one worker at most */
        sm_free(o);
        return 0;
    }
    /* set bits behind the end, signs of NaN, indices out of range; one block: worker 1 owns it */
    EfLink link;
    int vote = !c->up, owner = !vote || sm_method(c->method)->server_map != NULL;
    size_t bytes = 16, dense = 4 * 66;
    memset(message, 255, sizeof message);
    if (!vote) {
        if (ef_parse(&link, c->up, error, sizeof error)) return 1;
        bytes = ef_bytes(&link, 6, 11, 0);
        memset(message, 0, strcmp(c->up, "sign") == 0 ? 4 : bytes - 1);
    }
    comm_alltoall(comm, message, (size_t[]){0, 0, owner ? bytes : 8, bytes}, inbox, COMM_MATRICES);
    comm_allgather(comm, inbox, owner ? (size_t[]){0, 0, dense, dense} : (size_t[]){0, 0, 8, 16},
                   COMM_MATRICES);
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
        CHECK(found.kind == SM_MALFORMED && found.sender == 0, "%s %s: fault %d of worker %d",
              path[k].method, path[k].up, found.kind, found.sender);
    }
}

TEST(configurations_that_do_not_fit_are_refused) {
    SmConfig bad[32];
    const char *says[32];
    size_t n = 0;
    char error[512];
#define REFUSED(sentence, name, ...)                                                               \
    bad[n] = sm_config(name), bad[n].__VA_ARGS__, says[n++] = sentence
    REFUSED("method 'mun' is unknown", "mun", seed = 0);
    REFUSED("method", NULL, seed = 0);
    REFUSED("norm 'l7' is unknown", "muon", norm = "l7");
    REFUSED("norm row has nothing to replace", "signum", norm = "row");
    REFUSED("worker-map", "adamw", worker_map = "row");
    REFUSED("worker-map", "gt-nsgdm", worker_map = "row");
    REFUSED("server-map row", "demuon", server_map = "row");
    REFUSED("polar-after-vote", "muon", polar_after_vote = 1);
    REFUSED("polar-after-vote", "muonsign", polar_after_vote = 1);
    REFUSED("aux lmo", "sgd", aux = "lmo");
    REFUSED("aux sign", "demuon", aux = "sign");
    REFUSED("aux 'zebra'", "muon", aux = "zebra");
    REFUSED("up sign", "muon", up = "sign");
    REFUSED("down sign", "signmuon", down = "sign");
    REFUSED("up topk:7", "ef21-muon", up = "topk:7");
    REFUSED("topology", "muon", topology = "ring");
    REFUSED("topology and rounds", "muon", rounds[1] = 2);
    REFUSED("topology", "demuon", topology = "moebius");
    REFUSED("topology: cannot open /nowhere", "demuon", topology = "file:/nowhere/at/all");
    REFUSED("rounds", "demuon", rounds[0] = 0);
    REFUSED("momentum 0.9", "gluon", momentum = 0.9);
    REFUSED("weight-decay 0.1", "scion-constrained", weight_decay = 0.1);
    REFUSED("momentum 1", "muon", momentum = 1);
    REFUSED("lr -1", "muon", lr = -1);
    REFUSED("radius", "muon", radius[SM_INPUT] = INFINITY);
    REFUSED("adversaries 3", "muon", adversaries = 3);
    REFUSED("attack flip", "muon", attack = "flip");
    REFUSED("attack: 'shout'", "muon", adversaries = 1, bad[n].attack = "shout");
    REFUSED("gain 'pain'", "muon", gain = "pain");
    for (size_t i = 0; i < n; i++) {
        *error = 0;
        CHECK(sm_resolve(&bad[i], 3, error, sizeof error) == SM_BAD_CONFIG, "%s", says[i]);
        CHECK(strncmp(error, says[i], strlen(says[i])) == 0, "'%s' for '%s'", error, says[i]);
    }
    CHECK(sm_run("pigeons", 3, 1, malform, NULL, error, sizeof error) < 0 &&
          strstr(error, "pigeons"));
    CHECK(sm_run("threads", 0, 1, malform, NULL, error, sizeof error) < 0 &&
          strstr(error, "workers"));
}
