/* mpi.c - the collectives of comm.h between MPI ranks, in pieces far shorter than the messages.

     mpicc -DCOMM_MPI -DCOMM_MPI_PIECE=5000 ... test/mpi.c && mpirun -n 3 ./mpi [HOW]

   HOW: without it, every byte is checked and rank 0 prints a line; the exit status is 1 when one is
   wrong. Else the launch ends out of order, and must neither hang nor lose its status:
     usage   all ranks exit with status 2 before the run; one says why
     odd     rank 1 alone does
     early   rank 1 exits with status 0 before the run
     die     rank 1 exits with status 3 in the run
     status  worker 0 returns 7, the others 0 */
#define TEAM_IMPLEMENTATION
#define COMM_IMPLEMENTATION
#include "../lib/comm.h"

static unsigned char byte_of(int from, size_t i) {
    return (unsigned char)((((size_t)from + 1) * 40503 + i) * 2654435761u >> 13);
}

/* Say why and exit, as a program's error function does. */
static void fail(int status) {
    if (!comm_may_speak()) comm_wait_for_end();
    fprintf(stderr, "mpi: %sstatus %d\n", comm_rank_prefix(), status);
    exit(status);
}

static void fill(unsigned char *data, size_t n, int from) {
    for (size_t i = 0; i < n; i++) data[i] = byte_of(from, i);
}

/* How many of n bytes are not worker `from`'s, from its byte `first` on? */
static size_t wrong(const unsigned char *data, size_t n, int from, size_t first) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += data[i] != byte_of(from, first + i);
    return count;
}

/* All-to-all, all-gather and broadcasts; shards are uneven, and some are empty. */
static size_t shards(Comm *c, size_t unit, unsigned char *message, unsigned char *inbox) {
    size_t cuts[65] = {0}, bad = 0;
    for (int j = 0; j < c->size; j++)
        cuts[j + 1] = cuts[j] + unit * (size_t)(j * 7 % 5) / 5 + (size_t)(j % 2);
    size_t total = cuts[c->size] += unit, first = cuts[c->rank], mine = cuts[c->rank + 1] - first;
    fill(message, total, c->rank);
    comm_alltoall(c, message, cuts, inbox, COMM_MATRICES);
    for (int j = 0; j < c->size; j++) bad += wrong(inbox + (size_t)j * mine, mine, j, first);
    memset(inbox, 0, total);
    memcpy(inbox + first, message + first, mine);
    comm_allgather(c, inbox, cuts, COMM_MATRICES);
    for (int j = 0; j < c->size; j++)
        bad += wrong(inbox + cuts[j], cuts[j + 1] - cuts[j], j, cuts[j]);
    for (int root = 0; root < c->size; root += 2) {
        memset(message, 0, total);
        if (c->rank == root) fill(message, total, root);
        comm_broadcast(c, message, total, root, COMM_OTHER);
        bad += wrong(message, total, root, 0);
    }
    return bad;
}

/* Graphs: a ring; one where 0 hears all; one where j hears 2j + 1 alone, without a way back. */
static int hears(int graph, int n, int j, int i) {
    if (graph == 0) return i == j || i == (j + 1) % n || j == (i + 1) % n;
    return graph == 1 ? j == 0 : i == (2 * j + 1) % n;
}

static size_t neighbours(Comm *c, size_t bytes, int graph, unsigned char *message,
                         unsigned char *inbox) {
    int sources[64], n = c->size;
    size_t count = 0, destinations = 0, bad = 0;
    for (int j = n - 1; j >= 0; j--) {
        if (hears(graph, n, c->rank, j)) sources[count++] = j;
        destinations += j != c->rank && hears(graph, n, j, c->rank);
    }
    fill(message, bytes, c->rank + graph);
    comm_neighbours(c, message, bytes, sources, count, destinations, inbox, COMM_MATRICES);
    for (size_t k = 0; k < count; k++)
        bad += wrong(inbox + k * bytes, bytes, sources[k] + graph, 0);
    return bad;
}

static int work(Comm *c, void *arg) {
    static const size_t units[] = {1, 1000, 30011};
    const char *how = arg;
    uint64_t bad = 0, all[64];
    size_t room = (size_t)c->size * (size_t)(c->size + 1) * 30012;
    unsigned char *message = malloc(room), *inbox = malloc(room);
    if (!message || !inbox) exit(1);
    if (strcmp(how, "die") == 0 && c->rank == 1) fail(3);
    if (strcmp(how, "status") == 0) return c->rank == 0 ? 7 : 0;
    for (size_t u = 0; u < 3; u++) {
        bad += shards(c, units[u], message, inbox);
        for (int k = 0; k < 30; k++) bad += neighbours(c, units[u], k % 3, message, inbox);
        comm_barrier(c);
    }
    free(message), free(inbox);
    comm_gather(c, &bad, sizeof bad, all, COMM_OTHER);
    for (int j = 0; j < c->size; j++) bad += j == c->rank ? 0 : all[j];
    if (c->rank == 0)
        printf("%d ranks: %s\n", c->size, bad ? "wrong bytes" : "every byte in its place");
    return bad != 0;
}

int main(int argc, char **argv) {
    int rank, ranks, sharing;
    char error[256] = "", *how = argc > 1 ? argv[1] : "";
    comm_init(&argc, &argv, &rank, &ranks, &sharing);
    if (strcmp(how, "usage") == 0 || (strcmp(how, "odd") == 0 && rank == 1)) fail(2);
    if (strcmp(how, "early") == 0 && rank == 1) return 0;
    CommOptions o = {.backend = "mpi", .workers = ranks, .threads = 1};
    int status = comm_run(&o, work, how, NULL, error, sizeof error);
    if (status >= 0) return status;
    fprintf(stderr, "mpi: %s%s\n", comm_rank_prefix(), error);
    return 1;
}
