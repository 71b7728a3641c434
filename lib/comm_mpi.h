/* comm_mpi.h - the back end "mpi" of comm.h: every rank of an MPI launch is one worker. C11, MIT.

     all-to-all   MPI_Isend and MPI_Irecv between all pairs
     all-gather   MPI_Allgatherv
     neighbours   a rank sends each of its sources an empty request, which returns its data

   Included by the implementation part of comm.h where COMM_MPI is defined, and by nothing else.

   MEMORY    MPI's counts are int: longer messages go in pieces of COMM_MPI_PIECE bytes
   THREADS   only the first thread of a rank calls MPI (MPI_THREAD_FUNNELED)
   FAILURE   a rank that exits during a run, or with a status other than 0 before it, takes the
             others with it by MPI_Abort and that status. A failed MPI call is named, with its rank.
             A rank that is killed is noticed by mpirun, which ends the others
*/
#ifndef COMM_MPI_H
#define COMM_MPI_H

#include <mpi.h>

#ifndef COMM_MPI_PIECE
#define COMM_MPI_PIECE ((size_t)1 << 30) /* longest message that MPI is given, in bytes */
#endif

/* One per process, as MPI itself is. */
static struct CommWorld {
    enum { COMM__BEFORE, COMM__RUNNING, COMM__AFTER } phase;
    pid_t process; /* that started MPI: forked workers of other back ends leave it alone */
    int rank, ranks, sharing;
    char prefix[24];
    MPI_Request *request; /* of the exchange under way */
    MPI_Status *ended;    /* theirs: gcc objects to MPI_STATUSES_IGNORE, an array of none */
    int requests, room;
    int *count, *first; /* of MPI_Allgatherv, by rank */
    unsigned rounds;    /* of comm__mpi_neighbours */
    int failed;         /* this rank has said why it ends the run */
} comm__world;

static void comm__mpi_check(int code, const char *call) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (code == MPI_SUCCESS) return;
    MPI_Error_string(code, text, &length);
    fprintf(stderr, "rank %d: %s failed: %s\n", comm__world.rank, call, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
}
#define COMM__MPI(function, ...) comm__mpi_check(function(__VA_ARGS__), #function)

static void *comm__mpi_memory(void *old, size_t count, size_t size) {
    void *p = realloc(old, count * size);
    if (!p) comm__mpi_check(MPI_ERR_NO_MEM, "realloc");
    return p;
}

/* ------------------------------------------------------------------------------------------------
 * transport */

static MPI_Request *comm__mpi_request(void) {
    struct CommWorld *w = &comm__world;
    if (w->requests == w->room) {
        w->room = w->room ? 2 * w->room : 256;
        w->request = comm__mpi_memory(w->request, (size_t)w->room, sizeof *w->request);
        w->ended = comm__mpi_memory(w->ended, (size_t)w->room, sizeof *w->ended);
    }
    return &w->request[w->requests++];
}

enum { COMM__DATA_TAG = 0, COMM__ROUNDS = 16384 /* tags are at least 15 bits */ };

/* Begin to send to `rank`, or without `from` to receive. Both cut a message into pieces, which
 * arrive in order. */
static void comm__mpi_begin(const char *from, char *to, size_t bytes, int rank) {
    for (size_t at = 0; at < bytes; at += COMM_MPI_PIECE) {
        int n = (int)comm__least(bytes - at, COMM_MPI_PIECE);
        MPI_Request *request = comm__mpi_request();
        if (from)
            COMM__MPI(MPI_Isend, from + at, n, MPI_BYTE, rank, COMM__DATA_TAG, MPI_COMM_WORLD,
                      request);
        else
            COMM__MPI(MPI_Irecv, to + at, n, MPI_BYTE, rank, COMM__DATA_TAG, MPI_COMM_WORLD,
                      request);
    }
}

static void comm__mpi_finish(void) {
    COMM__MPI(MPI_Waitall, comm__world.requests, comm__world.request, comm__world.ended);
    comm__world.requests = 0;
}

static void comm__mpi_barrier(Comm *c) {
    (void)c;
    COMM__MPI(MPI_Barrier, MPI_COMM_WORLD);
}

static void comm__mpi_alltoall(Comm *c, const char *message, const size_t *cuts, char *inbox) {
    size_t mine = cuts[c->rank + 1] - cuts[c->rank];
    for (int j = 0; j < c->size; j++)
        if (j != c->rank) comm__mpi_begin(NULL, inbox + (size_t)j * mine, mine, j);
    for (int i = 1; i < c->size; i++) { /* each rank begins at another one */
        int j = (c->rank + i) % c->size;
        comm__mpi_begin(message + cuts[j], NULL, cuts[j + 1] - cuts[j], j);
    }
    comm__mpi_finish();
}

static void comm__mpi_allgather(Comm *c, char *message, const size_t *cuts) {
    struct CommWorld *w = &comm__world;
    if (cuts[c->size] <= COMM_MPI_PIECE) {
        for (int j = 0; j < c->size; j++) {
            w->first[j] = (int)cuts[j];
            w->count[j] = (int)(cuts[j + 1] - cuts[j]);
        }
        COMM__MPI(MPI_Allgatherv, MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, message, w->count, w->first,
                  MPI_BYTE, MPI_COMM_WORLD);
        return;
    }
    for (int j = 0; j < c->size; j++)
        for (size_t at = cuts[j]; at < cuts[j + 1]; at += COMM_MPI_PIECE)
            COMM__MPI(MPI_Bcast, message + at, (int)comm__least(cuts[j + 1] - at, COMM_MPI_PIECE),
                      MPI_BYTE, j, MPI_COMM_WORLD);
}

/* A rank may come to the next round while this one still waits for requests of its own: the tag of
 * a request counts rounds. */
static void comm__mpi_neighbours(Comm *c, const char *message, size_t bytes, const int *sources,
                                 size_t count, size_t destinations, char *inbox) {
    int tag = 1 + (int)(comm__world.rounds++ % COMM__ROUNDS);
    for (size_t k = 0; k < count; k++) {
        if (sources[k] == c->rank) continue;
        comm__mpi_begin(NULL, inbox + k * bytes, bytes, sources[k]);
        COMM__MPI(MPI_Isend, message, 0, MPI_BYTE, sources[k], tag, MPI_COMM_WORLD,
                  comm__mpi_request());
    }
    for (size_t k = 0; k < destinations; k++) {
        MPI_Status asks;
        char nothing;
        COMM__MPI(MPI_Recv, &nothing, 0, MPI_BYTE, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &asks);
        comm__mpi_begin(message, NULL, bytes, asks.MPI_SOURCE);
    }
    comm__mpi_finish();
}

static const CommTransport comm__mpi = {.barrier = comm__mpi_barrier,
                                        .alltoall = comm__mpi_alltoall,
                                        .allgather = comm__mpi_allgather,
                                        .neighbours = comm__mpi_neighbours};

/* ------------------------------------------------------------------------------------------------
 * beginning and end */

/* Every rank calls this once: when it begins its run, or when it leaves in order without one. Does
 * every rank begin? */
static int comm__mpi_all_begin(int begins) {
    int all = 0;
    COMM__MPI(MPI_Allreduce, &begins, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    comm__world.phase = COMM__AFTER;
    return all;
}

static int comm__run_mpi(CommShared *s, CommWorker *worker, void *arg, char *error, size_t size) {
    struct CommWorld *w = &comm__world;
    Comm c;
    if (s->workers != w->ranks)
        return base_fail(error, size, COMM_FAILED,
                         "%d workers cannot run on %d MPI ranks: a rank is one worker", s->workers,
                         w->ranks);
    if (w->phase == COMM__BEFORE && !comm__mpi_all_begin(1))
        return base_fail(error, size, COMM_FAILED, "another rank has left before the run");
    w->phase = COMM__RUNNING;
    s->spin = s->threads <= comm_cores() / w->sharing ? TEAM_SPIN : 0;
    if (comm__open(&c, s, w->rank, error, size)) return COMM_FAILED;
    int status = worker(&c, arg);
    comm__close(&c);
    COMM__MPI(MPI_Bcast, &status, 1, MPI_INT, 0, MPI_COMM_WORLD);
    COMM__MPI(MPI_Barrier, MPI_COMM_WORLD);
    w->phase = COMM__AFTER;
    return status;
}

/* At the exit of every rank: all together when this is in order, else all go down with this one. */
static void comm__mpi_leave(int status) {
    struct CommWorld *w = &comm__world;
    int finalized = 0;
    if (getpid() != w->process) return;
    MPI_Finalized(&finalized);
    if (finalized) return;
    if (w->phase == COMM__BEFORE && status == 0) comm__mpi_all_begin(0);
    if (w->phase != COMM__AFTER && w->ranks > 1) {
        nanosleep(&(struct timespec){0, 300000000},
                  NULL); /* MPICH may drop what was just written */
        MPI_Abort(MPI_COMM_WORLD, status ? status : 1);
    }
    MPI_Finalize();
}

#ifdef __GLIBC__
static void comm__mpi_on_exit(int status, void *unused) {
    (void)unused;
    comm__mpi_leave(status);
}
#else /* the status is not known: who may speak has failed */
static void comm__mpi_on_exit(void) { comm__mpi_leave(comm__world.failed); }
#endif

void comm_init(int *argc, char ***argv, int *rank, int *ranks, int *sharing) {
    struct CommWorld *w = &comm__world;
    int provided = 0, size;
    MPI_Comm node;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) ||
        provided < MPI_THREAD_FUNNELED) {
        fprintf(stderr, "MPI does not start, or not beside threads\n");
        exit(1);
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    COMM__MPI(MPI_Comm_rank, MPI_COMM_WORLD, &w->rank);
    COMM__MPI(MPI_Comm_size, MPI_COMM_WORLD, &w->ranks);
    w->process = getpid();
    /* the processes of this node that may run on the same cores as this one */
    COMM__MPI(MPI_Comm_split_type, MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    COMM__MPI(MPI_Comm_size, node, &size);
#ifdef __linux__
    cpu_set_t mine, *all = comm__mpi_memory(NULL, (size_t)size, sizeof *all);
    memset(&mine, 0, sizeof mine);
    sched_getaffinity(0, sizeof mine, &mine);
    COMM__MPI(MPI_Allgather, &mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, node);
    for (int r = 0; r < size; r++) w->sharing += CPU_EQUAL(&mine, &all[r]);
    free(all);
#else
    w->sharing = size;
#endif
    COMM__MPI(MPI_Comm_free, &node);
    w->count = comm__mpi_memory(NULL, (size_t)w->ranks, sizeof *w->count);
    w->first = comm__mpi_memory(NULL, (size_t)w->ranks, sizeof *w->first);
    snprintf(w->prefix, sizeof w->prefix, "rank %d: ", w->rank);
#ifdef __GLIBC__
    on_exit(comm__mpi_on_exit, NULL);
#else
    atexit(comm__mpi_on_exit);
#endif
    *rank = w->rank, *ranks = w->ranks, *sharing = w->sharing;
}

/* Rank 0 speaks for all before a run, where ranks that fail do so alike. */
const char *comm_rank_prefix(void) {
    const struct CommWorld *w = &comm__world;
    return w->ranks > 1 && (w->rank > 0 || w->phase == COMM__RUNNING) ? w->prefix : "";
}

/* What all ranks find at once, rank 0 says: give it time to do so and to end the others. */
static void comm__let_rank_0_speak(void) {
    struct timespec left = {.tv_sec = 5};
    comm__world.failed = 1;
    while (comm__world.rank > 0 && nanosleep(&left, &left)) continue;
}

#endif
