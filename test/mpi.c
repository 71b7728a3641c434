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
#include "collectives.h"

/* Say why and exit, as a program's error function does. */
static void fail(int status) {
    if (!comm_may_speak()) comm_wait_for_end();
    fprintf(stderr, "mpi: %sstatus %d\n", comm_rank_prefix(), status);
    exit(status);
}

static int work(Comm *c, void *arg) {
    static const size_t units[] = {1, 1000, 30011};
    const char *how = arg;
    uint64_t bad = 0, all[64];
    if (strcmp(how, "die") == 0 && c->rank == 1) fail(3);
    if (strcmp(how, "status") == 0) return c->rank == 0 ? 7 : 0;
    for (int k = 0; k < 30; k++) bad += check_collectives(c, units[k % 3]);
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
