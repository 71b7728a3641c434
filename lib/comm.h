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

   MEMORY    comm_run maps memory that all workers share and unmaps it when it returns. Nothing has
             a name in the file system. Collectives allocate nothing
   THREADS   all workers call the same collectives in the same order, each from its first thread.
             comm->team has the compute threads of a worker. One comm_run at a time per process
   FAILURE   processes: a worker that is killed, or that keeps the others waiting for `timeout`
             seconds, ends the run within a second; the caller may start another one. A worker that
             calls exit ends the run with its status. Workers die with the process that called
             comm_run. threads: exit ends the process. mpi: see comm_mpi.h
   SIGNALS   during comm_run SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for an orderly end. Repeats
             within a second are the same request; SIGINT or SIGTERM after that ends the program
             at once. A signal that was ignored before stays ignored. SIGPIPE is ignored: writing
             fails with EPIPE instead. comm_run restores the caller's handlers
   ERRORS    a negative code and one sentence
   NUMERICS  every thread rounds to nearest and flushes denormals; the caller's thread keeps that.
             Data are only copied here
*/
#ifndef COMM_H
#define COMM_H

#include <stddef.h>
#include <stdint.h>

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

/* Run worker(comm, arg) on every worker; returns the status of worker 0.
 * death   filled in; may be NULL
 * error   COMM_DIED: worker processes died; the sentence names the first and its signal.
 *         COMM_FAILED: the workers could not be started; the sentence says why.
 *         Either way no worker is left. Else the status of a worker that called exit */
int comm_run(const CommOptions *options, CommWorker *worker, void *arg, CommDeath *death,
             char *error, size_t size);

typedef struct CommBackend {
    const char *name, *doc;
    /* private */
    int (*run)(struct CommShared *s, CommWorker *worker, void *arg, char *error, size_t size);
    const struct CommTransport *transport;
    size_t outbox; /* shared bytes that a worker's messages go through */
} CommBackend;

const CommBackend *comm_backend_row(size_t i);     /* NULL past the end */
const CommBackend *comm_backend(const char *name); /* NULL when unknown */

/* To be called first in main. Starts MPI in a build with it; else only finds out whether a launcher
 * started several processes (ranks > 1), which then do not know each other.
 * sharing   processes of this launch that share this process's cores, itself included */
void comm_init(int *argc, char ***argv, int *rank, int *ranks, int *sharing);

/* May this worker say why it ends the run? 1 for the first caller of all workers in a run, and for
 * everybody outside a run; 0 for the others, which call comm_wait_for_end instead of exit.
 * mpi: rank 0 may at once. Any other rank may if rank 0 has not ended the run 2 s later. */
int comm_may_speak(void);
__attribute__((noreturn)) void comm_wait_for_end(void);

/* "rank 3: " where a sentence must say which rank writes it, else "". */
const char *comm_rank_prefix(void);

/* ------------------------------------------------------------------------------------------------
 * the machine */

/* Cores that this process may use: its affinity mask and its control groups' quotas; at least 1. */
int comm_cores(void);

/* Bytes of memory that this process may use: physical memory and its control groups' limits. */
uint64_t comm_memory_limit(void);

/* The least limit of this process's control groups, version 1 or 2, on "cpu" (thousandths of a
 * core) or "memory" (bytes); UINT64_MAX where there is none.
 * root   prefix of /proc and /sys, "" but in tests */
uint64_t comm_group_limit(const char *root, const char *controller);

#endif

/* ------------------------------------------------------------------------------------------------
 * private from here */

#ifdef COMM_IMPLEMENTATION
#undef COMM_IMPLEMENTATION

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "base.h"

/* What carries bytes between workers. */
typedef struct CommTransport {
    void (*barrier)(Comm *c);
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

static char *comm__outbox(const Comm *c, int rank) {
    return c->shared->outboxes + (size_t)rank * COMM_OUTBOX;
}

static size_t comm__least(size_t a, size_t b) { return a < b ? a : b; }

static void comm__memory_alltoall(Comm *c, const char *message, const size_t *cuts, char *inbox) {
    size_t total = cuts[c->size], from = cuts[c->rank], to = cuts[c->rank + 1];
    if (c->size == 1) memcpy(inbox, message, total);
    for (size_t first = 0; first < total && c->size > 1; first += COMM_OUTBOX) {
        size_t last = comm__least(first + COMM_OUTBOX, total);
        size_t low = from > first ? from : first, high = comm__least(to, last);
        memcpy(comm__outbox(c, c->rank), message + first, last - first);
        comm__memory_barrier(c);
        for (int j = 0; j < c->size && low < high; j++)
            memcpy(inbox + (size_t)j * (to - from) + (low - from),
                   comm__outbox(c, j) + (low - first), high - low);
        comm__memory_barrier(c);
    }
}

static void comm__memory_allgather(Comm *c, char *message, const size_t *cuts) {
    size_t longest = 0;
    for (int j = 0; j < c->size; j++)
        if (cuts[j + 1] - cuts[j] > longest) longest = cuts[j + 1] - cuts[j];
    for (size_t done = 0; done < longest && c->size > 1; done += COMM_OUTBOX) {
        for (int reads = 0; reads < 2; reads++) { /* all write, then all read */
            for (int j = 0; j < c->size; j++) {
                size_t from = cuts[j] + done;
                if (from >= cuts[j + 1] || reads == (j == c->rank)) continue;
                size_t n = comm__least(cuts[j + 1] - from, COMM_OUTBOX);
                if (reads)
                    memcpy(message + from, comm__outbox(c, j), n);
                else if (j == c->rank)
                    memcpy(comm__outbox(c, j), message + from, n);
            }
            comm__memory_barrier(c);
        }
    }
}

static void comm__memory_neighbours(Comm *c, const char *message, size_t bytes, const int *sources,
                                    size_t count, size_t destinations, char *inbox) {
    (void)destinations;
    for (size_t first = 0; first < bytes && c->size > 1; first += COMM_OUTBOX) {
        size_t n = comm__least(bytes - first, COMM_OUTBOX);
        memcpy(comm__outbox(c, c->rank), message + first, n);
        comm__memory_barrier(c);
        for (size_t k = 0; k < count; k++)
            if (sources[k] != c->rank)
                memcpy(inbox + k * bytes + first, comm__outbox(c, sources[k]), n);
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
    c->shared->transport->alltoall(c, message, cuts, inbox);
    c->sent[kind] += total - mine;
    c->up[kind] += total - mine;
    c->received[kind] += (size_t)(c->size - 1) * mine;
    c->messages[kind] += (size_t)(c->size - 1);
}

void comm_allgather(Comm *c, void *message, const size_t *cuts, CommKind kind) {
    size_t total = cuts[c->size], mine = cuts[c->rank + 1] - cuts[c->rank];
    c->shared->transport->allgather(c, message, cuts);
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

/* A forked worker never ends by a signal that asks: terminals and launchers send it to the parent
 * and to every worker, and the parent decides. */
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
        struct sigaction action = {.sa_flags = SA_RESTART};
        int asks = comm__signals[i].handler == comm__note_signal;
        action.sa_handler = comm__signals[i].handler;
        sigaction(comm__signals[i].number, NULL, &before[i]);
        if (asks && before[i].sa_handler == SIG_IGN) continue;
        sigaction(comm__signals[i].number, &action, NULL);
    }
}

static void comm__restore_signals(const struct sigaction *before) {
    for (int i = 0; i < COMM__SIGNALS; i++) sigaction(comm__signals[i].number, &before[i], NULL);
}

/* ------------------------------------------------------------------------------------------------
 * one worker */

/* Returns 0 or an errno. */
static int comm__open(Comm *c, CommShared *s, int rank) {
    *c = (Comm){.rank = rank, .size = s->workers, .shared = s};
    c->cuts = calloc((size_t)s->workers + 1, sizeof *c->cuts);
    c->team = calloc(1, sizeof *c->team);
    int failed = c->cuts && c->team ? team_start(c->team, s->threads, s->spin) : ENOMEM;
    if (!failed) return 0;
    free(c->cuts);
    free(c->team);
    return failed;
}

static void comm__close(Comm *c) {
    team_stop(c->team);
    free(c->team);
    free(c->cuts);
}

static int comm__no_threads(const CommShared *s, int rank, int code, char *error, size_t size) {
    return base_fail(error, size, COMM_FAILED,
                     "worker %d cannot start its %d compute threads: %s; fewer may do", rank,
                     s->threads, strerror(code));
}

/* ------------------------------------------------------------------------------------------------
 * back end "threads": the workers are a team, and each has its own team of compute threads */

typedef struct CommCrew {
    Comm *comm; /* by rank */
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
    CommCrew crew = {.worker = worker, .arg = arg};
    Team team;
    int opened = 0, failed = 0;
    crew.comm = calloc((size_t)s->workers, sizeof *crew.comm);
    if (!crew.comm) return comm__no_threads(s, 0, ENOMEM, error, size);
    while (!failed && opened < s->workers) {
        failed = comm__open(&crew.comm[opened], s, opened);
        opened += !failed;
    }
    if (failed) crew.status = comm__no_threads(s, opened, failed, error, size);
    if (!failed && (failed = team_start(&team, s->workers, 0)) != 0)
        crew.status = base_fail(error, size, COMM_FAILED,
                                "cannot start %d workers as threads: %s; fewer may do", s->workers,
                                strerror(failed));
    if (!failed) {
        team_run(&team, comm__crew_member, &crew);
        team_stop(&team);
    }
    while (opened) comm__close(&crew.comm[--opened]);
    free(crew.comm);
    return crew.status;
}

/* ------------------------------------------------------------------------------------------------
 * back end "processes": the caller forks the workers and watches over them */

__attribute__((noreturn)) static void comm__child_main(CommShared *s, int rank, CommWorker *worker,
                                                       void *arg) {
    Comm c;
    int failed = comm__open(&c, s, rank);
    if (failed) {
        if (atomic_exchange(&s->failed, 1)) comm_wait_for_end();
        comm__no_threads(s, rank, failed, s->error, sizeof s->error);
        _exit(1);
    }
    int status = worker(&c, arg);
    comm__close(&c);
    s->member[rank].status = status;
    atomic_store(&s->member[rank].returned, 1);
    exit(status);
}

/* Returns how many workers were forked. Signals wait until a child knows that it is one. */
static int comm__fork_all(CommShared *s, CommWorker *worker, void *arg) {
    pid_t parent = getpid();
    sigset_t all, before;
    int started = 0;
    fflush(NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    for (; started < s->workers; started++) {
        pid_t pid = fork();
        if (pid < 0) break;
        if (pid > 0) {
            s->member[started].pid = pid;
            continue;
        }
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        if (getppid() != parent) _exit(1);
        comm__is_forked = 1;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        comm__child_main(s, started, worker, arg);
    }
    int code = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = code;
    return started;
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

/* A signal has ended worker r. The sentence names the first such worker. */
static void comm__note_death(CommShared *s, int r, int number, char *error, size_t size) {
    long pid = s->member[r].pid;
    s->death.rank[s->death.count++] = (int16_t)r;
    if (s->death.count > 1) return;
    if (s->member[r].hung)
        base_fail(error, size, 0,
                  "worker %d (process %ld) kept the others waiting for %g s and was killed", r, pid,
                  s->timeout);
    else
        base_fail(error, size, 0, "worker %d (process %ld) was killed by signal %d (%s)", r, pid,
                  number, strsignal(number));
}

/* Until all workers have returned or one has ended otherwise; returns what comm_run does. */
static int comm__watch(CommShared *s, char *error, size_t size) {
    double before = base_now();
    for (int left = s->workers, exited = 0;;) {
        for (int r = 0; r < s->workers; r++) {
            CommMember *m = &s->member[r];
            int how = 0;
            pid_t ended = m->pid ? waitpid(m->pid, &how, WNOHANG) : 0;
            if (ended == 0 || (ended < 0 && errno == EINTR)) continue;
            if (ended < 0) how = 0; /* the caller has waited for it elsewhere */
            if (WIFSIGNALED(how))
                comm__note_death(s, r, WTERMSIG(how), error, size);
            else if (!atomic_load(&m->returned))
                exited = WEXITSTATUS(how) ? WEXITSTATUS(how) : 1;
            m->pid = 0;
            left--;
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
    int started = comm__fork_all(s, worker, arg), status;
    if (started < s->workers)
        status = base_fail(error, size, COMM_FAILED, "cannot fork worker %d: %s; fewer may do",
                           started, strerror(errno));
    else
        status = comm__watch(s, error, size);
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
         .transport = &comm__memory,
         .outbox = COMM_OUTBOX},
        {.name = "processes",
         .doc = "workers are forked processes over shared memory",
         .run = comm__run_processes,
         .transport = &comm__memory,
         .outbox = COMM_OUTBOX},
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
    size_t bytes = head + (size_t)o->workers * backend->outbox;
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
    comm__restore_signals(before);
    comm__shared = NULL;
    s->death.stop = atomic_load(&s->stop);
    if (death) *death = s->death;
    munmap(s, bytes);
    return status;
}

/* ------------------------------------------------------------------------------------------------
 * limits of control groups: a group is a folder, and every group above it limits it too */

/* The number that a file begins with, -1 when there is none ("max"), and the one after it. */
static int64_t comm__read_number(const char *folder, const char *name, int64_t *second) {
    char path[BASE_PATH + 64];
    long long number[2] = {-1, -1};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    if (fscanf(f, "%lld %lld", &number[0], &number[1]) < 1) number[0] = -1;
    fclose(f);
    if (second) *second = number[1];
    return number[0];
}

/* Of one group, by the files of version 2, then of version 1. */
static uint64_t comm__folder_limit(const char *folder, const char *controller) {
    int64_t period = -1;
    if (strcmp(controller, "memory") == 0) {
        int64_t limit = comm__read_number(folder, "memory.max", NULL);
        if (limit < 0) limit = comm__read_number(folder, "memory.limit_in_bytes", NULL);
        return limit < 0 ? UINT64_MAX : (uint64_t)limit;
    }
    int64_t quota = comm__read_number(folder, "cpu.max", &period);
    if (quota < 0) {
        quota = comm__read_number(folder, "cpu.cfs_quota_us", NULL);
        period = comm__read_number(folder, "cpu.cfs_period_us", NULL);
    }
    return quota > 0 && period > 0 ? (uint64_t)(1000 * quota / period) : UINT64_MAX;
}

/* The least of the group at `path` and of all above it. */
static uint64_t comm__path_limit(const char *root, const char *mount, const char *path,
                                 const char *controller) {
    char folder[BASE_PATH];
    uint64_t least = UINT64_MAX;
    int top = snprintf(folder, sizeof folder, "%s/sys/fs/cgroup/%s", root, mount);
    int length = snprintf(folder, sizeof folder, "%s/sys/fs/cgroup/%s%s", root, mount, path);
    if (length >= BASE_PATH) return least;
    for (char *end = folder + length; end; end = strrchr(folder + top, '/')) {
        *end = 0;
        uint64_t limit = comm__folder_limit(folder, controller);
        if (limit < least) least = limit;
    }
    return least;
}

uint64_t comm_group_limit(const char *root, const char *controller) {
    char line[BASE_PATH];
    uint64_t least = UINT64_MAX;
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *f = fopen(line, "r");
    /* "0::/path" of version 2; "4:cpu,cpuacct:/path" of version 1, mounted by all names or one */
    while (f && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        const char *mounts[] = {++names, controller};
        int version = *names ? 1 : 2, ours = version == 2;
        for (const char *at = names; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
            ours |= strcspn(at, ",") == strlen(controller) &&
                    strncmp(at, controller, strlen(controller)) == 0;
        for (int i = 0; ours && i < 3 - version; i++) {
            uint64_t limit = comm__path_limit(root, mounts[i], path, controller);
            if (limit < least) least = limit;
        }
    }
    if (f) fclose(f);
    return least;
}

int comm_cores(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
    uint64_t quota = comm_group_limit("", "cpu") / 1000;
    if (quota < (uint64_t)cores) cores = (long)quota;
    return cores > 0 ? (int)cores : 1;
}

uint64_t comm_memory_limit(void) {
    uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE),
             group = comm_group_limit("", "memory");
    return group < all ? group : all;
}
#endif
