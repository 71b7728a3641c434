/* collectives.h - every byte and every count of comm.h's collectives. For test/comm.c and test/mpi.c. */
#ifndef COLLECTIVES_H
#define COLLECTIVES_H

#include "../lib/comm.h"

static unsigned char byte_of(int from, size_t i) {
    return (unsigned char)((((size_t)from + 1) * 40503 + i) * 2654435761u >> 13);
}

static void fill_bytes(unsigned char *data, size_t n, int from) {
    for (size_t i = 0; i < n; i++) data[i] = byte_of(from, i);
}

/* How many of n bytes are not worker `from`'s, from its byte `first` on? */
static size_t wrong_bytes(const unsigned char *data, size_t n, int from, size_t first) {
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += data[i] != byte_of(from, first + i);
    return wrong;
}

/* Have the counters of a kind risen by these? Sets them to zero. */
static size_t wrong_counts(Comm *c, CommKind kind, size_t sent, size_t received, size_t messages) {
    size_t wrong = c->sent[kind] != sent;
    wrong += c->received[kind] != received;
    wrong += c->messages[kind] != messages;
    c->sent[kind] = c->received[kind] = c->messages[kind] = 0;
    return wrong;
}

/* Two collectives over uneven shards, the first one empty. A byte behind each buffer must stay. */
static size_t check_shards(Comm *c, size_t unit, unsigned char *message, unsigned char *inbox) {
    size_t cuts[65] = {0}, n = (size_t)c->size, rank = (size_t)c->rank, wrong = 0;
    for (size_t j = 0; j < n; j++) cuts[j + 1] = cuts[j] + unit * (j * 7 % 5) / 5 + j % 2;
    cuts[n] += unit;
    size_t total = cuts[n], mine = cuts[rank + 1] - cuts[rank], rest = total - mine;
    c->up[COMM_MATRICES] = c->down[COMM_MATRICES] = 0;
    fill_bytes(message, total, c->rank);
    message[total] = inbox[n * mine] = 42;
    comm_alltoall(c, message, cuts, inbox, COMM_MATRICES);
    for (size_t j = 0; j < n; j++) wrong += wrong_bytes(inbox + j * mine, mine, (int)j, cuts[rank]);
    memset(message, 0, cuts[rank]);
    memset(message + cuts[rank + 1], 0, total - cuts[rank + 1]);
    comm_allgather(c, message, cuts, COMM_MATRICES);
    for (size_t j = 0; j < n; j++)
        wrong += wrong_bytes(message + cuts[j], cuts[j + 1] - cuts[j], (int)j, cuts[j]);
    wrong += message[total] != 42 || inbox[n * mine] != 42;
    wrong += c->up[COMM_MATRICES] != rest || c->down[COMM_MATRICES] != rest;
    return wrong + wrong_counts(c, COMM_MATRICES, rest + (n - 1) * mine, rest + (n - 1) * mine,
                                2 * (n - 1));
}

/* A gather, and a broadcast of every worker. */
static size_t check_gather(Comm *c, size_t bytes, unsigned char *own, unsigned char *all) {
    size_t n = (size_t)c->size, wrong = 0;
    uint64_t before = c->sent[COMM_CONTROL];
    fill_bytes(own, bytes, c->rank);
    all[n * bytes] = 42;
    comm_gather(c, own, bytes, all, COMM_CONTROL);
    for (size_t j = 0; j < n; j++) wrong += wrong_bytes(all + j * bytes, bytes, (int)j, 0);
    for (int root = 0; root < c->size; root++) {
        memset(own, 0, bytes);
        if (c->rank == root) fill_bytes(own, bytes, root + 90);
        comm_broadcast(c, own, bytes, root, COMM_CONTROL);
        wrong += wrong_bytes(own, bytes, root + 90, 0);
    }
    return wrong + (all[n * bytes] != 42) + (c->sent[COMM_CONTROL] != before + 2 * (n - 1) * bytes);
}

/* Graphs: a ring; one where 0 hears all; one where j hears 2j + 1 alone, without a way back. */
static int hears(int graph, int n, int j, int i) {
    if (graph == 0) return i == j || i == (j + 1) % n || j == (i + 1) % n;
    return graph == 1 ? j == 0 || i == j - 1 : i == (2 * j + 1) % n;
}

/* Each worker hears its sources in falling order, itself included where the graph says so. */
static size_t check_neighbours(Comm *c, size_t bytes, int graph, unsigned char *own,
                               unsigned char *inbox) {
    int sources[64], n = c->size;
    size_t count = 0, listeners = 0, wrong = 0;
    for (int j = n - 1; j >= 0; j--) {
        if (hears(graph, n, c->rank, j)) sources[count++] = j;
        listeners += j != c->rank && hears(graph, n, j, c->rank);
    }
    fill_bytes(own, bytes, c->rank + graph);
    inbox[count * bytes] = 42;
    comm_neighbours(c, own, bytes, sources, count, listeners, inbox, COMM_AUXILIARY);
    for (size_t k = 0; k < count; k++)
        wrong += wrong_bytes(inbox + k * bytes, bytes, sources[k] + graph, 0);
    size_t others = count - (size_t)hears(graph, n, c->rank, c->rank);
    return wrong + (inbox[count * bytes] != 42) +
           wrong_counts(c, COMM_AUXILIARY, listeners * bytes, others * bytes, listeners);
}

/* What is wrong with all of them, with messages of about so many bytes? */
static size_t check_collectives(Comm *c, size_t unit) {
    size_t room = (size_t)c->size * (2 * unit + 3), wrong = 0;
    unsigned char *own = malloc(room), *inbox = malloc(room);
    if (!own || !inbox) exit(1);
    wrong += check_shards(c, unit, own, inbox);
    wrong += check_gather(c, 1, own, inbox);
    wrong += check_gather(c, unit + 2, own, inbox);
    for (int graph = 0; graph < 3; graph++) wrong += check_neighbours(c, unit, graph, own, inbox);
    comm_barrier(c);
    free(own), free(inbox);
    return wrong;
}

#endif
