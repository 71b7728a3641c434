/* comm.h - workers and what passes between them: threads or processes, the same bits. C11, MIT.

     all-to-all     worker i cuts its message in N shards and sends shard j to worker j
     all-gather     worker j sends its (reduced) shard to everybody
     neighbours     worker i takes the whole messages of those it names (gossip on a graph)
     a vote or a mean is: all-to-all, reduce the shard one owns in rank order, all-gather.
     Each worker then sends 2 (N-1)/N of the message, whatever N is, as in a ring all-reduce.

   A back end is a row of comm_backend_row: how workers start, how they end. What passes between
   them goes through outboxes in memory that all of them map, made before they start.

     static int hello(Comm *c, void *arg) {      // runs once per worker; returns an exit status
         double mine = c->rank, all[8];
         comm_gather(c, &mine, sizeof mine, all, COMM_CONTROL);
         return 0;
     }
     CommOptions o = {.backend = comm_backend("processes"), .workers = 3, .threads = 1};
     int status = comm_run(&o, hello, NULL, error, sizeof error);

   MEMORY    the shared region is made by comm_run and gone when it returns; nothing has a name in
             the file system, so nothing can be left behind
   THREADS   collectives are called by a worker's first thread, by all workers in the same order;
             team_run spreads a function over the compute threads of one worker
   FAILURE   processes: when a worker dies, the parent ends the others and comm_run returns
             COMM_DIED with a sentence naming it and its signal. A waiting worker never spins for
             long: it sleeps in the kernel.
   NUMERICS  every worker and every compute thread runs with the same rounding and with denormals
             flushed (the caller's thread keeps that setting); data are only copied here
*/
#ifndef COMM_H
#define COMM_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

enum {
    COMM_MAX_WORKERS = 1024,
    COMM_OUTBOX = 1 << 20 /* bytes per worker; longer messages go in turns */
};

/* What a payload byte was for. COMM_OTHER is start-up, evaluation and saving. */
typedef enum CommKind {
    COMM_MATRICES,
    COMM_AUXILIARY,
    COMM_CONTROL,
    COMM_OTHER,
    COMM_KINDS
} CommKind;

enum { COMM_DIED = -1, COMM_FAILED = -2 }; /* a worker was killed; workers could not be started */

/* A barrier for threads of any process that maps it. */
typedef struct CommBarrier {
    _Atomic uint32_t arrived, generation;
} CommBarrier;

/* The compute threads of one worker. */
typedef struct Team {
    int threads, spin;
    void (*function)(void *context, int ith, int nth); /* NULL ends the helpers */
    void *context;
    CommBarrier start, finish, inside;
    pthread_t helper[256];
    struct TeamHelper {
        struct Team *team;
        int ith;
    } helpers[256];
} Team;

typedef struct CommBackend CommBackend;

typedef struct CommOptions {
    const CommBackend *backend;
    int workers, threads; /* compute threads per worker, its first thread included */
} CommOptions;

/* Lives in memory shared by all workers. */
typedef struct CommShared {
    CommBarrier barrier;
    _Atomic int spoken; /* a worker is telling why it ends the run */
    _Atomic int stop;   /* the signal that asked for an orderly end, or 0 */
    int workers, threads, spin;
    char *outboxes;                          /* workers * COMM_OUTBOX bytes */
    _Atomic char returned[COMM_MAX_WORKERS]; /* 1: that worker came to its end in order */
} CommShared;

/* One worker's end of the line. */
typedef struct Comm {
    int rank, size;
    CommShared *shared;
    Team *team;
    uint64_t sent[COMM_KINDS], received[COMM_KINDS]; /* payload bytes since the start */
    uint64_t messages[COMM_KINDS];             /* sent: size - 1 per collective, or destinations */
    uint64_t up[COMM_KINDS], down[COMM_KINDS]; /* sent to owners of shards, received from them */
} Comm;

typedef int (*CommWorker)(Comm *comm, void *arg);

struct CommBackend {
    const char *name;
    int (*run)(CommShared *shared, CommWorker worker, void *arg, char *error, size_t size);
    const char *doc;
};

/* ------------------------------------------------------------------------------------------------
 * barriers that sleep */

/* Round to nearest, flush denormals: the same on every thread, whoever started it. */
static inline void comm_float_environment(void) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_setcsr((_mm_getcsr() | 0x8040u) & ~0x6000u);
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    fpcr = (fpcr | (1u << 24)) & ~(uint64_t)(3u << 22);
    __asm__ volatile("msr fpcr, %0" ::"r"(fpcr));
#endif
}

static inline void comm__sleep_while(_Atomic uint32_t *word, uint32_t value) {
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
#else
    if (atomic_load(word) == value) nanosleep(&(struct timespec){0, 50000}, NULL);
#endif
}

static inline void comm__wake_all(_Atomic uint32_t *word) {
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
#else
    (void)word;
#endif
}

/* Return when n callers have arrived. Looks `spin` times, then sleeps. */
static inline void comm__wait(CommBarrier *b, int n, int spin) {
    uint32_t generation = atomic_load_explicit(&b->generation, memory_order_acquire);
    if (n == 1) return;
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)n) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&b->generation, 1, memory_order_release);
        comm__wake_all(&b->generation);
        return;
    }
    for (int i = 0; i < spin; i++) {
        if (atomic_load_explicit(&b->generation, memory_order_acquire) != generation) return;
#if defined(__x86_64__) || defined(__i386__)
        _mm_pause();
#endif
    }
    while (atomic_load_explicit(&b->generation, memory_order_acquire) == generation)
        comm__sleep_while(&b->generation, generation);
}

/* ------------------------------------------------------------------------------------------------
 * the compute threads of one worker */

/* Barrier of the threads inside a function run by team_run. */
static inline void team_barrier(Team *t) { comm__wait(&t->inside, t->threads, t->spin); }

static inline void *team__help(void *arg) {
    struct TeamHelper *me = arg;
    Team *t = me->team;
    comm_float_environment();
    for (;;) {
        comm__wait(&t->start, t->threads, t->spin);
        if (!t->function) return NULL;
        t->function(t->context, me->ith, t->threads);
        comm__wait(&t->finish, t->threads, t->spin);
    }
}

/* Run function(context, ith, nth) on every thread of the team; returns when all are done. */
static inline void team_run(Team *t, void (*function)(void *context, int ith, int nth),
                            void *context) {
    t->function = function;
    t->context = context;
    comm__wait(&t->start, t->threads, t->spin);
    function(context, 0, t->threads);
    comm__wait(&t->finish, t->threads, t->spin);
}

/* Start the helpers; returns 0, or an errno. */
static inline int team_start(Team *t, int threads, int spin) {
    assert(threads >= 1 && threads <= 256);
    memset(t, 0, sizeof *t);
    t->threads = threads;
    t->spin = spin;
    for (int i = 1; i < threads; i++) {
        t->helpers[i] = (struct TeamHelper){t, i};
        int failed = pthread_create(&t->helper[i], NULL, team__help, &t->helpers[i]);
        if (failed) return failed;
    }
    return 0;
}

static inline void team_stop(Team *t) {
    t->function = NULL;
    comm__wait(&t->start, t->threads, t->spin);
    for (int i = 1; i < t->threads; i++) pthread_join(t->helper[i], NULL);
}

/* ------------------------------------------------------------------------------------------------
 * collectives */

static inline void comm_barrier(Comm *c) {
    comm__wait(&c->shared->barrier, c->size, c->shared->spin);
}

static inline char *comm__outbox(const Comm *c, int rank) {
    return c->shared->outboxes + (size_t)rank * COMM_OUTBOX;
}

/* Copy the part of [from, to) that lies in [first, last) out of a box that holds [first, last). */
static inline void comm__take(char *out, const char *box, size_t from, size_t to, size_t first,
                              size_t last) {
    size_t a = from > first ? from : first, b = to < last ? to : last;
    if (a < b) memcpy(out + (a - from), box + (a - first), b - a);
}

/* Send bytes cuts[j] .. cuts[j+1] of message to worker j.
 * cuts     size + 1 ascending offsets, equal on all workers; cuts[0] = 0
 * inbox    receives shard `rank` of everybody, in rank order: size * (cuts[rank+1] - cuts[rank])
 *          bytes
 * sent     total - own shard bytes */
static inline void comm_alltoall(Comm *c, const void *message, const size_t *cuts, void *inbox,
                                 CommKind kind) {
    size_t total = cuts[c->size], from = cuts[c->rank], mine = cuts[c->rank + 1] - from;
    if (c->size == 1) memcpy(inbox, message, total);
    for (size_t first = 0; first < total && c->size > 1; first += COMM_OUTBOX) {
        size_t last = first + COMM_OUTBOX < total ? first + COMM_OUTBOX : total;
        memcpy(comm__outbox(c, c->rank), (const char *)message + first, last - first);
        comm_barrier(c);
        for (int j = 0; j < c->size; j++)
            comm__take((char *)inbox + (size_t)j * mine, comm__outbox(c, j), from, from + mine,
                       first, last);
        comm_barrier(c);
    }
    c->sent[kind] += total - mine;
    c->up[kind] += total - mine;
    c->received[kind] += (size_t)(c->size - 1) * mine;
    c->messages[kind] += (size_t)(c->size - 1);
}

/* Fill message everywhere: worker j brings bytes cuts[j] .. cuts[j+1] and sends them to all
 * others. */
static inline void comm_allgather(Comm *c, void *message, const size_t *cuts, CommKind kind) {
    size_t total = cuts[c->size], mine = cuts[c->rank + 1] - cuts[c->rank], longest = 0;
    for (int j = 0; j < c->size; j++)
        if (cuts[j + 1] - cuts[j] > longest) longest = cuts[j + 1] - cuts[j];
    for (size_t done = 0; done < longest && c->size > 1; done += COMM_OUTBOX) {
        for (int pass = 0; pass < 2; pass++) { /* fill my outbox, then empty everybody's */
            for (int j = 0; j < c->size; j++) {
                size_t from = cuts[j] + done, left = cuts[j + 1] > from ? cuts[j + 1] - from : 0;
                size_t n = left < COMM_OUTBOX ? left : COMM_OUTBOX;
                if (pass == 0 && j == c->rank)
                    memcpy(comm__outbox(c, j), (char *)message + from, n);
                if (pass == 1 && j != c->rank)
                    memcpy((char *)message + from, comm__outbox(c, j), n);
            }
            comm_barrier(c);
        }
    }
    c->sent[kind] += (size_t)(c->size - 1) * mine;
    c->received[kind] += total - mine;
    c->down[kind] += total - mine;
    c->messages[kind] += (size_t)(c->size - 1);
}

/* all (size * bytes) <- everybody's `bytes` bytes, in rank order. */
static inline void comm_gather(Comm *c, const void *mine, size_t bytes, void *all, CommKind kind) {
    size_t cuts[COMM_MAX_WORKERS + 1] = {0};
    for (int j = 0; j <= c->size; j++) cuts[j] = (size_t)j * bytes;
    memcpy((char *)all + cuts[c->rank], mine, bytes);
    comm_allgather(c, all, cuts, kind);
}

/* message (bytes) <- root's. Sent counts what root hands out. */
static inline void comm_broadcast(Comm *c, void *message, size_t bytes, int root, CommKind kind) {
    size_t cuts[COMM_MAX_WORKERS + 1] = {0};
    for (int j = 0; j <= c->size; j++) cuts[j] = j <= root ? 0 : bytes;
    comm_allgather(c, message, cuts, kind);
}

/* inbox (count * bytes) <- the messages of `sources`, in the order given.
 * message        `bytes` bytes, as many from every worker; not in inbox
 * sources        may name the caller: its own message is copied, which is no traffic
 * destinations   how many others take the caller's message, for its counters */
static inline void comm_neighbours(Comm *c, const void *message, size_t bytes, const int *sources,
                                   size_t count, size_t destinations, void *inbox, CommKind kind) {
    size_t others = 0;
    for (size_t k = 0; k < count; k++) {
        others += sources[k] != c->rank;
        if (sources[k] == c->rank) memcpy((char *)inbox + k * bytes, message, bytes);
    }
    for (size_t first = 0; first < bytes && c->size > 1; first += COMM_OUTBOX) {
        size_t n = bytes - first < COMM_OUTBOX ? bytes - first : COMM_OUTBOX;
        memcpy(comm__outbox(c, c->rank), (const char *)message + first, n);
        comm_barrier(c);
        for (size_t k = 0; k < count; k++)
            if (sources[k] != c->rank)
                memcpy((char *)inbox + k * bytes + first, comm__outbox(c, sources[k]), n);
        comm_barrier(c);
    }
    c->sent[kind] += destinations * bytes;
    c->received[kind] += others * bytes;
    c->messages[kind] += destinations;
}

/* The signal that asked for an orderly end, or 0. May differ between workers for a moment:
 * decide together. */
static inline int comm_stop_requested(const Comm *c) {
    return atomic_load_explicit(&c->shared->stop, memory_order_relaxed);
}

/* ------------------------------------------------------------------------------------------------
 * signals: the first asks for an orderly end, the second ends at once */

/* The one writable global: where a signal handler leaves its note. */
static CommShared *comm__signalled;

/* A worker process may have noted the same Ctrl-C before: only this process's own signals count. */
static inline void comm__note_signal(int signal_number) {
    static volatile sig_atomic_t mine;
    int none = 0;
    if (!comm__signalled || mine++) _exit(128 + signal_number);
    atomic_compare_exchange_strong(&comm__signalled->stop, &none, signal_number);
}

/* In a worker process: never end at once, since a terminal sends Ctrl-C to parent and workers
 * alike. */
static inline void comm__note_signal_worker(int signal_number) {
    int none = 0;
    atomic_compare_exchange_strong(&comm__signalled->stop, &none, signal_number);
}

static inline void comm__catch(void (*handler)(int)) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ------------------------------------------------------------------------------------------------
 * back ends */

/* The life of one worker, from its own thread or process. */
static inline int comm__work(CommShared *shared, int rank, CommWorker worker, void *arg) {
    Comm c = {.rank = rank, .size = shared->workers, .shared = shared};
    c.team = calloc(1, sizeof *c.team);
    comm_float_environment();
    if (!c.team || team_start(c.team, shared->threads, shared->spin)) {
        if (!atomic_exchange(&shared->spoken, 1))
            fprintf(stderr, "train_gpt: worker %d cannot start %d compute threads: lower --threads\n",
                    rank, shared->threads);
        exit(1); /* the others wait for this one: there is no going on */
    }
    int status = worker(&c, arg);
    team_stop(c.team);
    free(c.team);
    atomic_store(&shared->returned[rank], 1);
    return status;
}

struct comm__thread {
    CommShared *shared;
    int rank, status;
    CommWorker worker;
    void *arg;
    pthread_t id;
};

static inline void *comm__thread_main(void *arg) {
    struct comm__thread *t = arg;
    t->status = comm__work(t->shared, t->rank, t->worker, t->arg);
    return NULL;
}

/* Workers are threads; the caller's thread is worker 0. */
static inline int comm__run_threads(CommShared *shared, CommWorker worker, void *arg, char *error,
                                    size_t size) {
    struct comm__thread *t = calloc((size_t)shared->workers, sizeof *t);
    if (!t) return snprintf(error, size, "no memory for %d workers", shared->workers), COMM_FAILED;
    for (int r = 0; r < shared->workers; r++)
        t[r] = (struct comm__thread){.shared = shared, .rank = r, .worker = worker, .arg = arg};
    for (int r = 1; r < shared->workers; r++) {
        int failed = pthread_create(&t[r].id, NULL, comm__thread_main, &t[r]);
        if (failed) { /* the others wait for this one: the caller must end the process */
            snprintf(error, size, "cannot start worker %d as a thread: %s; lower --workers", r,
                     strerror(failed));
            if (r == 1) free(t); /* nobody else has it */
            return COMM_FAILED;
        }
    }
    comm__thread_main(&t[0]);
    for (int r = 1; r < shared->workers; r++) pthread_join(t[r].id, NULL);
    int status = t[0].status;
    free(t);
    return status;
}

/* Worker r ended before its time with wait status s: describe a death by signal, else pass its
 * exit status on. */
static inline int comm__judge(int r, pid_t pid, int s, char *error, size_t size) {
    if (!WIFSIGNALED(s)) return WEXITSTATUS(s) ? WEXITSTATUS(s) : 1;
    snprintf(error, size,
             "worker %d (process %ld) was killed by signal %d (%s); the other workers were stopped",
             r, (long)pid, WTERMSIG(s), strsignal(WTERMSIG(s)));
    return COMM_DIED;
}

/* Workers are forked; the caller's process only watches over them. */
static inline int comm__run_processes(CommShared *shared, CommWorker worker, void *arg, char *error,
                                      size_t size) {
    pid_t pid[COMM_MAX_WORKERS], parent = getpid();
    int started = 0, status = 0;
    fflush(NULL);
    for (; started < shared->workers; started++) {
        pid[started] = fork();
        if (pid[started] < 0) {
            snprintf(error, size, "cannot fork worker %d: %s; lower --workers", started,
                     strerror(errno));
            status = COMM_FAILED;
            break;
        }
        if (pid[started] > 0) continue;
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        if (getppid() != parent) _exit(1);
        if (comm__signalled) comm__catch(comm__note_signal_worker);
        exit(comm__work(shared, started, worker, arg));
    }
    int failed = status;
    for (int alive = started; alive > 0;) {
        for (int r = 0; r < started && failed; r++)
            if (pid[r] > 0) kill(pid[r], SIGKILL);
        int s;
        pid_t ended = waitpid(-1, &s, 0);
        if (ended < 0) continue; /* a signal came in; its handler has told the workers */
        for (int r = 0; r < started; r++) {
            if (pid[r] != ended) continue;
            pid[r] = 0;
            alive--;
            if (!atomic_load(&shared->returned[r])) {
                if (!failed) status = failed = comm__judge(r, ended, s, error, size);
            } else if (r == 0 && !failed)
                status = WEXITSTATUS(s);
        }
    }
    return status;
}

/* Rows of --backend. NULL past the end. */
static inline const CommBackend *comm_backend_row(size_t i) {
    static const CommBackend table[] = {
        {"threads", comm__run_threads, "workers are threads of this process"},
        {"processes", comm__run_processes, "workers are forked processes over shared memory"},
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

static inline const CommBackend *comm_backend(const char *name) {
    const CommBackend *row;
    for (size_t i = 0; (row = comm_backend_row(i)) != NULL; i++)
        if (strcmp(row->name, name) == 0) return row;
    return NULL;
}

/* Cores that this process may really use: affinity mask, then the cgroup's quota, at least 1. */
static inline int comm_cores(void) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        if (fscanf(f, "%ld %ld", &quota, &period) != 2) quota = 0;
        fclose(f);
    }
    if (quota > 0 && period > 0 && quota / period < cores) cores = quota / period;
#endif
    return cores > 0 ? (int)cores : 1;
}

/* Run worker(comm, arg) once per worker and return its exit status (worker 0's, when all end well).
 * error    COMM_DIED or COMM_FAILED, and a sentence. SIGINT and SIGTERM are caught meanwhile. */
static inline int comm_run(const CommOptions *o, CommWorker worker, void *arg, char *error,
                           size_t size) {
    assert(o->workers >= 1 && o->workers <= COMM_MAX_WORKERS && o->threads >= 1);
    size_t head = 4096, bytes = head + (size_t)o->workers * COMM_OUTBOX;
    CommShared *shared =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        snprintf(error, size, "cannot map %zu bytes of shared memory: %s; lower --workers", bytes,
                 strerror(errno));
        return COMM_FAILED;
    }
    shared->workers = o->workers;
    shared->threads = o->threads;
    shared->spin =
        o->workers * o->threads <= comm_cores() ? 2000 : 0; /* never burn a core others need */
    shared->outboxes = (char *)shared + head;
    comm__signalled = shared;
    comm__catch(comm__note_signal);
    int status = o->backend->run(shared, worker, arg, error, size);
    comm__catch(SIG_DFL);
    comm__signalled = NULL;
    if (status != COMM_FAILED) munmap(shared, bytes);
    return status;
}
#endif
