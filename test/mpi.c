/* mpi.c - the collectives of comm.h between MPI's ranks, in pieces far shorter than the messages.

     mpicc -DCOMM_MPI -DCOMM_MPI_PIECE=5000 ... test/mpi.c && mpirun -n 3 ./mpi WORKERS

   With WORKERS workers on each rank. Prints a line on rank 0; the exit status is 1 when a byte was
   wrong. MIT licence. */
#include "comm.h"

enum { KEYS = 3 };

static unsigned char byte_of(int from, size_t i) {
    return (unsigned char)((((size_t)from + 1) * 40503 + i) * 2654435761u >> 13);
}

/* Shards that are uneven, and some of them empty. */
static size_t lay_out(size_t *cuts, int count, size_t unit) {
    cuts[0] = 0;
    for (int j = 0; j < count; j++)
        cuts[j + 1] = cuts[j] + unit * (size_t)(j * 7 % 5) / 5 + (size_t)(j % 2);
    return cuts[count] += unit;
}

/* The message becomes what it is bit by bit, as if it were computed: what has not been announced as
 * ready is still something else. */
static size_t all_to_all(Comm *c, size_t unit, size_t step) {
    size_t cuts[64], total = lay_out(cuts, c->size, unit), first = cuts[c->rank],
                     mine = cuts[c->rank + 1] - first, bad = 0;
    unsigned char *message = malloc(total + 1), *inbox = malloc((size_t)c->size * (mine + 1));
    CommExchange x;
    if (!message || !inbox) exit(1);
    memset(message, 0, total + 1);
    comm_alltoall_begin(c, &x, message, cuts, inbox, COMM_MATRICES);
    for (size_t ready = 0; ready < total; ready += step) {
        size_t next = ready + step < total ? ready + step : total;
        for (size_t i = ready; i < next; i++) message[i] = byte_of(c->rank, i);
        if (next < total) comm_alltoall_advance(c, &x, next);
    }
    comm_alltoall_end(c, &x);
    for (size_t i = 0; i < (size_t)c->size * mine; i++)
        bad += inbox[i] != byte_of((int)(i / mine), first + i % mine);
    free(message), free(inbox);
    return bad;
}

/* Between those who have the same place on their machines; each place has lengths of its own. */
static size_t across(Comm *c, size_t unit) {
    int place = c->rank % c->locals, me = c->rank / c->locals;
    size_t cuts[64], total = lay_out(cuts, c->machines, unit + (size_t)place),
                     longest = total + (size_t)c->locals, mine = cuts[me + 1] - cuts[me], bad = 0;
    unsigned char *message = malloc(total), *inbox = malloc((size_t)c->machines * mine + 1);
    if (!message || !inbox) exit(1);
    for (size_t i = 0; i < total; i++) message[i] = byte_of(c->rank, i);
    comm_alltoall_across(c, message, cuts, longest, inbox, COMM_MATRICES);
    for (size_t i = 0; i < (size_t)c->machines * mine; i++)
        bad += inbox[i] != byte_of((int)(i / mine) * c->locals + place, cuts[me] + i % mine);
    free(message), free(inbox);
    return bad;
}

static size_t all_gather(Comm *c, size_t unit) {
    size_t cuts[64], total = lay_out(cuts, c->size, unit), bad = 0;
    unsigned char *message = calloc(total, 1);
    if (!message) exit(1);
    for (size_t i = cuts[c->rank]; i < cuts[c->rank + 1]; i++) message[i] = byte_of(c->rank, i);
    comm_allgather(c, message, cuts, COMM_MATRICES);
    for (int j = 0; j < c->size; j++)
        for (size_t i = cuts[j]; i < cuts[j + 1]; i++) bad += message[i] != byte_of(j, i);
    for (int root = 0; root < c->size; root += 2) {
        for (size_t i = 0; i < total; i++) message[i] = c->rank == root ? byte_of(root, i) : 0;
        comm_broadcast(c, message, total, root, COMM_OTHER);
        for (size_t i = 0; i < total; i++) bad += message[i] != byte_of(root, i);
    }
    free(message);
    return bad;
}

/* Graphs that differ by key: a ring, one where 0 hears all in falling order, and one where j hears
 * 2 j + 1 alone, so that edges have no way back. */
static size_t neighbours(Comm *c, size_t bytes, int key) {
    int sources[64], n = c->size;
    size_t count = 0, bad = 0;
    for (int j = -1; j <= 1 && key == 0; j++) sources[count++] = (c->rank + j + n) % n;
    for (int j = n - 1; j >= 0 && key == 1 && c->rank == 0; j--) sources[count++] = j;
    if (key == 2) sources[count++] = (2 * c->rank + 1) % n;
    unsigned char *message = malloc(bytes + 1), *inbox = malloc(count * bytes + 1);
    if (!message || !inbox) exit(1);
    for (size_t i = 0; i < bytes; i++) message[i] = byte_of(c->rank + key, i);
    comm_neighbours(c, message, bytes, sources, count, 0, key, inbox, COMM_MATRICES);
    for (size_t i = 0; i < count * bytes; i++)
        bad += inbox[i] != byte_of(sources[i / bytes] + key, i % bytes);
    free(message), free(inbox);
    return bad;
}

static int work(Comm *c, void *arg) {
    static const size_t units[] = {1, 1000, 30011}, steps[] = {1, 70, 9000};
    uint64_t bad = 0, all[64];
    (void)arg;
    for (size_t u = 0; u < 3; u++) {
        bad += all_to_all(c, units[u], steps[u]);
        bad += across(c, units[u]) + all_gather(c, units[u]);
        for (int key = 0; key < 2 * KEYS; key++)
            bad += neighbours(c, key == KEYS ? COMM_OUTBOX + 5 : units[u], key % KEYS);
        comm_barrier(c);
    }
    comm_gather(c, &bad, sizeof bad, all, COMM_OTHER);
    for (int j = 0; j < c->size; j++) bad += j == c->rank ? 0 : all[j];
    if (c->rank == 0)
        printf("%d ranks of %d workers: %s\n", c->machines, c->locals,
               bad ? "wrong bytes" : "every byte in its place");
    return bad != 0;
}

int main(int argc, char **argv) {
    CommPlace place = comm_init(&argc, &argv);
    int workers = argc > 1 ? atoi(argv[1]) : 1;
    char error[256];
    CommOptions o = {.backend = comm_backend("mpi"),
                     .workers = workers * place.machines,
                     .threads = 1,
                     .machines = place.machines};
    return comm_run(&o, work, NULL, error, sizeof error);
}
