/* comm.h - workers and what passes between them: threads, processes or MPI. C11, MIT.

     all-to-all   worker i cuts its message into N shards and sends shard j to worker j
     all-gather   worker j sends its shard to all others
     neighbours   worker i receives the whole messages of the workers it names (gossip on a graph)

   A majority vote or a mean is an all-to-all, a reduction of the own shard in rank order, and an
   all-gather. Each worker then sends 2 (N-1)/N of the message, as in a ring all-reduce.
   All back ends deliver the same bits.

     static int hello(Comm *c, void *arg) {      // runs once per worker; returns an exit status
         double mine = c->rank, all[3];
         comm_gather(c, &mine, sizeof mine, all, COMM_CONTROL);
         return 0;
     }
     CommOptions o = {.backend = "processes", .workers = 3, .threads = 1};
     int status = comm_run(&o, hello, NULL, NULL, error, sizeof error);

   One file of a program defines COMM_IMPLEMENTATION and TEAM_IMPLEMENTATION before it includes this
   header. With -DCOMM_MPI there is a third back end, in comm_mpi.h.

   MEMORY    comm_run maps memory that all workers share, without a name in the file system.
             Collectives allocate nothing and only copy
   THREADS   all workers call the same collectives in the same order, each from its first thread.
             comm->team has a worker's compute threads. One comm_run at a time per process
   FAILURE   processes: a worker that is killed, or that keeps the others waiting for `timeout`
             seconds, ends the run within a second; the caller may start another one. A worker that
             calls exit ends the run with its status. Workers die with the process that called
             comm_run. threads: exit ends the process. mpi: see comm_mpi.h
   SIGNALS   during comm_run SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for an orderly end. SIGINT or
             SIGTERM more than a second later ends the program at once. A signal that was ignored
             stays ignored. SIGPIPE is ignored. comm_run restores the caller's handlers
   ERRORS    a negative code and one sentence
*/
#ifndef COMM_H
#define COMM_H

#include <stddef.h>
#include <stdint.h>

#include "machine.h" /* comm_cores and comm_memory_limit: what the machine has for the workers */
#include "team.h"

enum {
    COMM_MAX_WORKERS = 1024,
    COMM_OUTBOX = 1 << 20 /* shared bytes per worker; longer messages go in several parts */
};

/* What a payload byte was for. COMM_OTHER is start-up, evaluation and saving. */
typedef enum CommKind {
    COMM_MATRICES,
    COMM_AUXILIARY,
    COMM_CONTROL,
    COMM_OTHER,
    COMM_KINDS
} CommKind;

/* A worker's link to the others. */
typedef struct Comm {
    int rank, size;
    Team *team;                                      /* its compute threads, this one included */
    uint64_t sent[COMM_KINDS], received[COMM_KINDS]; /* payload bytes */
    uint64_t messages[COMM_KINDS];             /* sent: size - 1 per collective, or destinations */
    uint64_t up[COMM_KINDS], down[COMM_KINDS]; /* sent to owners of shards, received from them */
    /* private */
    struct CommShared *shared;
    size_t *cuts; /* size + 1 entries of scratch */
} Comm;

/* What a worker runs; returns an exit status, 0 to 255. */
typedef int CommWorker(Comm *c, void *arg);

/* ------------------------------------------------------------------------------------------------
 * collectives */

void comm_barrier(Comm *c);

/* Bytes cuts[j] .. cuts[j+1] of message go to worker j.
 * cuts    size + 1 ascending offsets, equal on all workers; cuts[0] = 0
 * inbox   shard `rank` of every worker, in rank order: size * (cuts[rank+1] - cuts[rank]) bytes
 * cost    sends cuts[size] minus the own shard */
void comm_alltoall(Comm *c, const void *message, const size_t *cuts, void *inbox, CommKind kind);

/* Complete message on every worker: worker j brings bytes cuts[j] .. cuts[j+1].
 * cost    sends (size - 1) times the own shard */
void comm_allgather(Comm *c, void *message, const size_t *cuts, CommKind kind);

/* all (size * bytes) <- `bytes` bytes of every worker, in rank order. */
void comm_gather(Comm *c, const void *mine, size_t bytes, void *all, CommKind kind);

/* message (bytes) <- root's. */
void comm_broadcast(Comm *c, void *message, size_t bytes, int root, CommKind kind);

/* inbox (count * bytes) <- the messages of `sources`, in that order.
 * message        `bytes` bytes, as many on every worker; not in inbox
 * sources        distinct ranks; the caller's own message is copied, which is no traffic
 * destinations   how many other workers name the caller as a source */
void comm_neighbours(Comm *c, const void *message, size_t bytes, const int *sources, size_t count,
                     size_t destinations, void *inbox, CommKind kind);

/* The signal that asked for an orderly end, or 0. Workers may see it at different times: agree
 * on the step to stop at by a collective. */
int comm_stop_requested(const Comm *c);

/* ------------------------------------------------------------------------------------------------
 * running workers */

enum { COMM_DIED = -1, COMM_FAILED = -2 };

typedef struct CommOptions {
    const char *backend;  /* name of a row of comm_backend_row */
    int workers, threads; /* compute threads per worker, its first thread included */
    double timeout; /* seconds that a worker process may keep the others waiting; 0: no limit */
} CommOptions;

/* Workers lost in a run. 2 KB: keep it off small stacks. */
typedef struct CommDeath {
    int count; /* those that died by a signal or hung, not those that were stopped because of it */
    int stop;  /* the signal that asked for an orderly end of that run, or 0 */
    int16_t rank[COMM_MAX_WORKERS];
} CommDeath;

/* Run worker(comm, arg) on every worker. Returns the status of worker 0, or of one that called
 * exit; COMM_DIED when worker processes died; COMM_FAILED when the workers cannot be started.
 * death   filled in; may be NULL
 * error   for the two errors: why, in a sentence. No worker is left then */
int comm_run(const CommOptions *options, CommWorker *worker, void *arg, CommDeath *death,
             char *error, size_t size);

typedef struct CommBackend {
    const char *name, *doc;
    /* private */
    int (*run)(struct CommShared *s, CommWorker *worker, void *arg, char *error, size_t size);
    const struct CommTransport *transport;
} CommBackend;

const CommBackend *comm_backend_row(size_t i);     /* NULL past the end */
const CommBackend *comm_backend(const char *name); /* NULL when unknown */

/* To be called first in main. Starts MPI in a build with it; else only finds out whether a launcher
 * started several processes (ranks > 1), which then do not know each other.
 * sharing   processes of this launch that share this process's cores, itself included */
void comm_init(int *argc, char ***argv, int *rank, int *ranks, int *sharing);

/* May this worker say why it ends the run? 1 for the first caller of all workers in a run, and for
 * everybody outside a run; 0 for the others, which call comm_wait_for_end instead of exit.
 * mpi: rank 0 may at once. Any other rank may if rank 0 has not ended the run 5 s later. */
int comm_may_speak(void);
__attribute__((noreturn)) void comm_wait_for_end(void);

/* "rank 3: " where a sentence must say which rank writes it, else "". */
const char *comm_rank_prefix(void);

#endif

/* ------------------------------------------------------------------------------------------------
 * private from here */

#ifdef COMM_IMPLEMENTATION
#undef COMM_IMPLEMENTATION

#include <signal.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* What carries bytes between workers. */
typedef struct CommTransport {
    void (*barrier)(Comm *c); /* the others are not called for a single worker */
    void (*alltoall)(Comm *c, const char *message, const size_t *cuts, char *inbox);
    void (*allgather)(Comm *c, char *message, const size_t *cuts);
    void (*neighbours)(Comm *c, const char *message, size_t bytes, const int *sources, size_t count,
                       size_t destinations, char *inbox);
} CommTransport;

/* What a worker shows of itself, and what the process that watches over it knows. */
typedef struct CommMember {
    _Alignas(64) _Atomic uint64_t arrivals; /* at barriers */
    _Atomic int returned;                   /* its function did, with this status */
    int status;
    pid_t pid;     /* 0: not forked, or ended */
    int hung;      /* was killed for keeping the others waiting */
    uint64_t seen; /* arrivals at the last look */
    double late;   /* seconds since then in which others waited for it */
} CommMember;

/* One run; lives in memory that all workers map. */
typedef struct CommShared {
    const CommTransport *transport;
    int workers, threads, spin;
    double timeout;
    char *outboxes; /* workers * COMM_OUTBOX bytes */
    TeamBarrier barrier;
    _Atomic int spoken; /* a worker is saying why it ends the run */
    _Atomic int stop;   /* the signal that asked for an orderly end */
    _Atomic int failed; /* a worker could not start, for the reason in error */
    char error[256];
    CommDeath death;
    CommMember member[]; /* by rank */
} CommShared;

/* Where signal handlers find the run under way. */
static CommShared *comm__shared;

/* ------------------------------------------------------------------------------------------------
 * transport through memory: a worker writes to its outbox, the others read from it */

static void comm__memory_barrier(Comm *c) {
    CommShared *s = c->shared;
    atomic_fetch_add_explicit(&s->member[c->rank].arrivals, 1, memory_order_relaxed);
    team_wait(&s->barrier, c->size, s->spin);
}

static size_t comm__least(size_t a, size_t b) { return a < b ? a : b; }

/* Show the others the part of this worker's message that begins at byte `first`. */
static void comm__show(Comm *c, const char *message, size_t bytes, size_t first) {
    char *outbox = c->shared->outboxes + (size_t)c->rank * COMM_OUTBOX;
    if (first < bytes) memcpy(outbox, message + first, comm__least(bytes - first, COMM_OUTBOX));
    comm__memory_barrier(c);
}

/* out <- bytes from .. to of worker j's message, as far as it shows them now. */
static void comm__look(const Comm *c, int j, size_t first, size_t from, size_t to, char *out) {
    const char *outbox = c->shared->outboxes + (size_t)j * COMM_OUTBOX;
    size_t low = from > first ? from : first, high = comm__least(to, first + COMM_OUTBOX);
    if (j != c->rank && low < high) memcpy(out + (low - from), outbox + (low - first), high - low);
}

static void comm__memory_alltoall(Comm *c, const char *message, const size_t *cuts, char *inbox) {
    size_t total = cuts[c->size], from = cuts[c->rank], to = cuts[c->rank + 1];
    for (size_t first = 0; first < total; first += COMM_OUTBOX) {
        comm__show(c, message, total, first);
        for (int j = 0; j < c->size; j++)
            comm__look(c, j, first, from, to, inbox + (size_t)j * (to - from));
        comm__memory_barrier(c);
    }
}

static void comm__memory_allgather(Comm *c, char *message, const size_t *cuts) {
    size_t longest = 0;
    for (int j = 0; j < c->size; j++)
        if (cuts[j + 1] - cuts[j] > longest) longest = cuts[j + 1] - cuts[j];
    for (size_t first = 0; first < longest; first += COMM_OUTBOX) {
        comm__show(c, message + cuts[c->rank], cuts[c->rank + 1] - cuts[c->rank], first);
        for (int j = 0; j < c->size; j++)
            comm__look(c, j, first, 0, cuts[j + 1] - cuts[j], message + cuts[j]);
        comm__memory_barrier(c);
    }
}

static void comm__memory_neighbours(Comm *c, const char *message, size_t bytes, const int *sources,
                                    size_t count, size_t destinations, char *inbox) {
    (void)destinations;
    for (size_t first = 0; first < bytes; first += COMM_OUTBOX) {
        comm__show(c, message, bytes, first);
        for (size_t k = 0; k < count; k++)
            comm__look(c, sources[k], first, 0, bytes, inbox + k * bytes);
        comm__memory_barrier(c);
    }
}

static const CommTransport comm__memory = {.barrier = comm__memory_barrier,
                                           .alltoall = comm__memory_alltoall,
                                           .allgather = comm__memory_allgather,
                                           .neighbours = comm__memory_neighbours};

/* ------------------------------------------------------------------------------------------------
 * collectives: counted here, carried by the back end's transport */

void comm_barrier(Comm *c) { c->shared->transport->barrier(c); }

void comm_alltoall(Comm *c, const void *message, const size_t *cuts, void *inbox, CommKind kind) {
    size_t total = cuts[c->size], mine = cuts[c->rank + 1] - cuts[c->rank];
    memcpy((char *)inbox + (size_t)c->rank * mine, (const char *)message + cuts[c->rank], mine);
    if (c->size > 1) c->shared->transport->alltoall(c, message, cuts, inbox);
    c->sent[kind] += total - mine;
    c->up[kind] += total - mine;
    c->received[kind] += (size_t)(c->size - 1) * mine;
    c->messages[kind] += (size_t)(c->size - 1);
}

void comm_allgather(Comm *c, void *message, const size_t *cuts, CommKind kind) {
    size_t total = cuts[c->size], mine = cuts[c->rank + 1] - cuts[c->rank];
    if (c->size > 1) c->shared->transport->allgather(c, message, cuts);
    c->sent[kind] += (size_t)(c->size - 1) * mine;
    c->received[kind] += total - mine;
    c->down[kind] += total - mine;
    c->messages[kind] += (size_t)(c->size - 1);
}

void comm_gather(Comm *c, const void *mine, size_t bytes, void *all, CommKind kind) {
    for (int j = 0; j <= c->size; j++) c->cuts[j] = (size_t)j * bytes;
    memcpy((char *)all + c->cuts[c->rank], mine, bytes);
    comm_allgather(c, all, c->cuts, kind);
}

void comm_broadcast(Comm *c, void *message, size_t bytes, int root, CommKind kind) {
    for (int j = 0; j <= c->size; j++) c->cuts[j] = j <= root ? 0 : bytes;
    comm_allgather(c, message, c->cuts, kind);
}

void comm_neighbours(Comm *c, const void *message, size_t bytes, const int *sources, size_t count,
                     size_t destinations, void *inbox, CommKind kind) {
    size_t others = 0;
    for (size_t k = 0; k < count; k++) {
        others += sources[k] != c->rank;
        if (sources[k] == c->rank) memcpy((char *)inbox + k * bytes, message, bytes);
    }
    if (c->size > 1)
        c->shared->transport->neighbours(c, message, bytes, sources, count, destinations, inbox);
    c->sent[kind] += destinations * bytes;
    c->received[kind] += others * bytes;
    c->messages[kind] += destinations;
}

int comm_stop_requested(const Comm *c) {
    return atomic_load_explicit(&c->shared->stop, memory_order_relaxed);
}

/* ------------------------------------------------------------------------------------------------
 * signals */

/* Terminals and launchers signal the parent and every worker. Only the parent ends by that. */
static int comm__is_forked;
static _Atomic int64_t comm__asked; /* when this process was first asked to stop, in ms, or 0 */

static void comm__note_signal(int number) {
    int code = errno, none = 0;
    int64_t first = 0, now = (int64_t)(1e3 * base_now()) + 1;
    int again = !atomic_compare_exchange_strong(&comm__asked, &first, now);
    int urgent = number == SIGINT || number == SIGTERM;
    if (again && urgent && !comm__is_forked && now - first > 1000) _exit(128 + number);
    atomic_compare_exchange_strong(&comm__shared->stop, &none, number);
    errno = code;
}

static const struct {
    int number;
    void (*handler)(int);
} comm__signals[] = {
    {.number = SIGINT, .handler = comm__note_signal},
    {.number = SIGTERM, .handler = comm__note_signal},
    {.number = SIGHUP, .handler = comm__note_signal},
    {.number = SIGUSR1, .handler = comm__note_signal}, /* a batch system's warning */
    {.number = SIGPIPE, .handler = SIG_IGN},           /* a lost reader of the output ends no run */
    {.number = SIGCHLD, .handler = SIG_DFL}, /* where it is ignored, waitpid finds nobody */
};
enum { COMM__SIGNALS = sizeof comm__signals / sizeof comm__signals[0] };

static void comm__catch_signals(struct sigaction *before) {
    atomic_store(&comm__asked, 0);
    for (int i = 0; i < COMM__SIGNALS; i++) {
        struct sigaction action = {.sa_flags = SA_RESTART, .sa_handler = comm__signals[i].handler};
        sigaction(comm__signals[i].number, NULL, &before[i]);
        if (action.sa_handler == comm__note_signal && before[i].sa_handler == SIG_IGN) continue;
        sigaction(comm__signals[i].number, &action, NULL);
    }
}

/* ------------------------------------------------------------------------------------------------
 * one worker */

static void comm__close(Comm *c) {
    team_stop(c->team);
    free(c->team);
    free(c->cuts);
}

/* Returns 0 or COMM_FAILED. */
static int comm__open(Comm *c, CommShared *s, int rank, char *error, size_t size) {
    *c = (Comm){.rank = rank, .size = s->workers, .shared = s};
    c->cuts = calloc((size_t)s->workers + 1, sizeof *c->cuts);
    c->team = calloc(1, sizeof *c->team);
    int failed = c->cuts && c->team ? team_start(c->team, s->threads, s->spin) : ENOMEM;
    if (!failed) return 0;
    free(c->cuts);
    free(c->team);
    base_fail(error, size, 0, "worker %d cannot start its %d compute threads: %s; fewer may do",
              rank, s->threads, strerror(failed));
    return COMM_FAILED;
}

/* ------------------------------------------------------------------------------------------------
 * back end "threads": the workers are a team, and each has its own team of compute threads */

typedef struct CommCrew {
    Comm comm[COMM_MAX_WORKERS]; /* by rank */
    CommWorker *worker;
    void *arg;
    int status; /* of worker 0 */
} CommCrew;

static void comm__crew_member(void *context, int ith, int nth) {
    CommCrew *crew = context;
    (void)nth;
    int status = crew->worker(&crew->comm[ith], crew->arg);
    if (ith == 0) crew->status = status;
}

static int comm__run_threads(CommShared *s, CommWorker *worker, void *arg, char *error,
                             size_t size) {
    Team team;
    int opened = 0, status = 0, code;
    CommCrew *crew = calloc(1, sizeof *crew);
    if (!crew) return base_fail(error, size, COMM_FAILED, "no memory is left for the workers");
    crew->worker = worker;
    crew->arg = arg;
    while (opened < s->workers && !status) {
        status = comm__open(&crew->comm[opened], s, opened, error, size);
        opened += !status;
    }
    if (!status && (code = team_start(&team, s->workers, 0)) != 0)
        status = base_fail(error, size, COMM_FAILED,
                           "cannot start %d workers as threads: %s; fewer may do", s->workers,
                           strerror(code));
    if (!status) {
        team_run(&team, comm__crew_member, crew);
        team_stop(&team);
        status = crew->status;
    }
    while (opened) comm__close(&crew->comm[--opened]);
    free(crew);
    return status;
}

/* ------------------------------------------------------------------------------------------------
 * back end "processes": the caller forks the workers and watches over them */

__attribute__((noreturn)) static void comm__child_main(CommShared *s, int rank, CommWorker *worker,
                                                       void *arg) {
    Comm c;
    char error[sizeof s->error];
    if (comm__open(&c, s, rank, error, sizeof error)) {
        if (atomic_exchange(&s->failed, 1)) comm_wait_for_end();
        memcpy(s->error, error, sizeof error);
        _exit(1);
    }
    int status = worker(&c, arg);
    comm__close(&c);
    s->member[rank].status = status;
    atomic_store(&s->member[rank].returned, 1);
    exit(status);
}

/* Kill the workers that others have waited for too long; `passed` seconds after the last call. */
static void comm__kill_hung(CommShared *s, double passed) {
    uint64_t most = 0;
    for (int r = 0; r < s->workers; r++) {
        uint64_t now = atomic_load(&s->member[r].arrivals);
        if (now > most) most = now;
    }
    for (int r = 0; r < s->workers; r++) {
        CommMember *m = &s->member[r];
        uint64_t now = atomic_load(&m->arrivals);
        int late = m->pid && !atomic_load(&m->returned) && now < most && now == m->seen;
        m->seen = now;
        m->late = late ? m->late + passed : 0;
        if (s->timeout <= 0 || m->late <= s->timeout || m->hung) continue;
        m->hung = 1;
        kill(m->pid, SIGKILL);
    }
}

/* Until all workers have returned or one has ended otherwise; returns what comm_run does. */
static int comm__watch(CommShared *s, char *error, size_t size) {
    double before = base_now();
    for (int left = s->workers, exited = 0;;) {
        for (int r = 0; r < s->workers; r++) {
            CommMember *m = &s->member[r];
            int how = 0;
            pid_t pid = m->pid, ended = pid ? waitpid(pid, &how, WNOHANG) : 0;
            if (ended == 0 || (ended < 0 && errno == EINTR)) continue;
            if (ended < 0) how = 0; /* the caller has waited for it elsewhere */
            m->pid = 0;
            left--;
            if (!WIFSIGNALED(how)) {
                if (!atomic_load(&m->returned)) exited = WEXITSTATUS(how) ? WEXITSTATUS(how) : 1;
                continue;
            }
            s->death.rank[s->death.count++] = (int16_t)r;
            if (s->death.count > 1) continue; /* the sentence names the first */
            if (m->hung)
                base_fail(error, size, 0,
                          "worker %d (process %ld) kept the others waiting for %g s and was killed",
                          r, (long)pid, s->timeout);
            else
                base_fail(error, size, 0, "worker %d (process %ld) was killed by signal %d (%s)", r,
                          (long)pid, WTERMSIG(how), strsignal(WTERMSIG(how)));
        }
        if (exited && atomic_load(&s->failed))
            return base_fail(error, size, COMM_FAILED, "%s", s->error);
        if (exited) return exited;
        if (s->death.count) return COMM_DIED;
        if (!left) return s->member[0].status;
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        double now = base_now(), passed = now - before;
        before = now;
        comm__kill_hung(s, passed < 0.1 ? passed : 0.1); /* Ctrl-Z stops this process too */
    }
}

static int comm__run_processes(CommShared *s, CommWorker *worker, void *arg, char *error,
                               size_t size) {
    pid_t parent = getpid(), pid = 0;
    sigset_t all, before;
    int started = 0, status = 0;
    fflush(NULL);
    sigfillset(&all); /* signals wait until a child knows that it is one */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    while (started < s->workers && (pid = fork()) > 0) s->member[started++].pid = pid;
    if (started < s->workers && pid == 0) {
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        if (getppid() != parent) _exit(1);
        comm__is_forked = 1;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        comm__child_main(s, started, worker, arg);
    }
    if (started < s->workers)
        status = base_fail(error, size, COMM_FAILED, "cannot fork worker %d: %s; fewer may do",
                           started, strerror(errno));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!status) status = comm__watch(s, error, size);
    for (int r = 0; r < started; r++)
        if (s->member[r].pid) kill(s->member[r].pid, SIGKILL);
    for (int r = 0; r < started; r++)
        while (s->member[r].pid && waitpid(s->member[r].pid, NULL, 0) < 0 && errno == EINTR)
            continue;
    return status;
}

/* ------------------------------------------------------------------------------------------------
 * several processes that were started together */

#ifdef COMM_MPI
#include "comm_mpi.h"
#else
void comm_init(int *argc, char ***argv, int *rank, int *ranks, int *sharing) {
    static const char *const launcher[][2] = {{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                              {"PMI_SIZE", "PMI_RANK"}};
    (void)argc, (void)argv;
    *rank = 0, *ranks = 1, *sharing = 1;
    for (size_t k = 0; k < 2; k++) {
        const char *all = getenv(launcher[k][0]), *mine = getenv(launcher[k][1]);
        if (!all || atoi(all) < 2) continue;
        *ranks = atoi(all);
        *rank = mine ? atoi(mine) : 0;
    }
}
const char *comm_rank_prefix(void) { return ""; }
static void comm__let_rank_0_speak(void) {}
#endif

int comm_may_speak(void) {
    if (comm__shared && atomic_exchange(&comm__shared->spoken, 1)) return 0;
    comm__let_rank_0_speak();
    return 1;
}

void comm_wait_for_end(void) {
    for (;;) pause();
}

/* ------------------------------------------------------------------------------------------------
 * runs */

const CommBackend *comm_backend_row(size_t i) {
    static const CommBackend table[] = {
        {.name = "threads",
         .doc = "workers are threads of this process",
         .run = comm__run_threads,
         .transport = &comm__memory},
        {.name = "processes",
         .doc = "workers are forked processes over shared memory",
         .run = comm__run_processes,
         .transport = &comm__memory},
#ifdef COMM_MPI
        {.name = "mpi",
         .doc = "workers are the ranks of an MPI launch",
         .run = comm__run_mpi,
         .transport = &comm__mpi},
#endif
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

const CommBackend *comm_backend(const char *name) {
    const CommBackend *row;
    for (size_t i = 0; (row = comm_backend_row(i)) != NULL; i++)
        if (strcmp(row->name, name) == 0) return row;
    return NULL;
}

int comm_run(const CommOptions *o, CommWorker *worker, void *arg, CommDeath *death, char *error,
             size_t size) {
    const CommBackend *backend = comm_backend(o->backend);
    if (death) death->count = death->stop = 0;
    if (!backend)
        return base_fail(error, size, COMM_FAILED, "there is no back end '%s'", o->backend);
    if (o->workers < 1 || o->workers > COMM_MAX_WORKERS || o->threads < 1)
        return base_fail(error, size, COMM_FAILED,
                         "%d workers of %d threads: workers are 1 to %d, threads at least 1",
                         o->workers, o->threads, COMM_MAX_WORKERS);
    if (comm__shared) return base_fail(error, size, COMM_FAILED, "a run is under way already");

    size_t head = sizeof(CommShared) + (size_t)o->workers * sizeof(CommMember);
    head = (head + 4095) / 4096 * 4096;
    size_t outbox = backend->transport == &comm__memory ? COMM_OUTBOX : 0;
    size_t bytes = head + (size_t)o->workers * outbox;
    CommShared *s = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED)
        return base_fail(error, size, COMM_FAILED,
                         "cannot map %zu bytes of shared memory: %s; fewer workers may do", bytes,
                         strerror(errno));
    s->transport = backend->transport;
    s->workers = o->workers;
    s->threads = o->threads;
    s->timeout = o->timeout;
    s->outboxes = (char *)s + head;
    /* never burn a core that others need */
    s->spin = o->workers <= comm_cores() / o->threads ? TEAM_SPIN : 0;

    struct sigaction before[COMM__SIGNALS];
    comm__shared = s;
    comm__catch_signals(before);
    int status = backend->run(s, worker, arg, error, size);
    for (int i = 0; i < COMM__SIGNALS; i++) sigaction(comm__signals[i].number, &before[i], NULL);
    comm__shared = NULL;
    s->death.stop = atomic_load(&s->stop);
    if (death) *death = s->death;
    munmap(s, bytes);
    return status;
}
#endif
