/* comm.h - workers and what passes between them: threads or processes, the same bits. C11, MIT.

     all-to-all     worker i cuts its message in N shards and sends shard j to worker j
     all-gather     worker j sends its (reduced) shard to everybody
     neighbours     worker i takes the whole messages of those it names (gossip on a graph)
     a vote or a mean is: all-to-all, reduce the shard one owns in rank order, all-gather.
     Each worker then sends 2 (N-1)/N of the message, whatever N is, as in a ring all-reduce.

   A back end is a row of comm_backend_row: how workers start, how they end, and its transport: what
   carries bytes between them. Threads and processes go through outboxes in memory that all of them
   map, made before they start. With -DCOMM_MPI there is a third row, mpi: every rank is a machine,
   its workers are threads of it, and the first of them alone talks to the other ranks.

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
   MACHINES  workers machine * locals + 0 .. locals - 1 share a machine and may read each other's
             memory (comm_lend); majority is not associative, so a vote that is counted machine by
             machine passes counts on, not verdicts (comm_alltoall_across)
   MPI       all-to-all    point to point, without blocking: what is ready leaves while the rest is
                           computed (comm_alltoall_begin, _advance, _end), with one worker per rank
             all-gather    MPI_Allgatherv between ranks, memory inside them
             neighbours    MPI_Neighbor_alltoallv on a graph of the ranks, an edge for each worker
                           whose message another rank wants: it crosses once, whoever wants it there
             MPI's counts are int: longer messages go in pieces of COMM_MPI_PIECE bytes
   FAILURE   processes: the parent notices within 20 ms that a worker died, and after `timeout`
             seconds that one keeps the others waiting, which it then kills. It ends the others,
             and comm_run returns COMM_DIED with a sentence naming the worker and its signal. With
             `least` > 0 it lets at least so many survivors go on: whatever collective they are in
             or come to next, the same for all, does not return but jumps to comm->recover. There
             they call comm_regroup, after which ranks and size are those of the survivors.
             comm_leave does the same of a worker's own will, threads included.
             A waiting worker never spins for long: it sleeps in the kernel.
             mpi: a rank that leaves out of order takes the others with it by MPI_Abort and its
             own exit status; an MPI call that fails is named, with its rank.
   NUMERICS  every worker and every compute thread runs with the same rounding and with denormals
             flushed (the caller's thread keeps that setting); data are only copied here
*/
#ifndef COMM_H
#define COMM_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
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
#ifdef COMM_MPI
#include <limits.h>
#include <mpi.h>
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

/* A barrier for threads of any process that maps it. Once COMM_BROKEN is set in `generation`, nobody
 * passes any more: all of those who wait, and all who come, learn it at the same barrier. */
typedef struct CommBarrier {
    _Atomic uint32_t arrived, generation;
} CommBarrier;

#define COMM_BROKEN 0x80000000u

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
typedef struct CommTransport CommTransport;

typedef struct CommOptions {
    const CommBackend *backend;
    int workers, threads; /* compute threads per worker, its first thread included */
    int least;            /* survivors that may go on after a death; 0: a death ends the run */
    double timeout;       /* seconds a worker may keep the others waiting; 0: for ever */
    int machines;         /* that the workers are spread over evenly: MPI's ranks; threads: any
                             number, to count votes as if on so many; 0 is 1 */
    int hold;             /* comm_alltoall_advance sends nothing */
} CommOptions;

/* A worker that is no longer of the group. */
typedef struct CommGone {
    int16_t id; /* its rank at the start */
    int16_t signal;
    int8_t hung; /* it kept the others waiting and was killed for it */
    int8_t left; /* it took itself out */
} CommGone;

/* Where this process stands among those that were started together. */
typedef struct CommPlace {
    int machine, machines;
    int beside; /* processes on the same node that share its cores, itself included */
} CommPlace;

/* Lives in memory shared by all workers. */
typedef struct CommShared {
    _Atomic int spoken; /* a worker is telling why it ends the run */
    _Atomic int stop;   /* the signal that asked for an orderly end, or 0 */
    const CommBackend *backend;
    const CommTransport *transport;
    int workers, threads, spin, least, machines, hold;
    double timeout;
    char *outboxes;                              /* workers * COMM_OUTBOX bytes */
    _Atomic uint32_t epoch;                      /* workers that are gone */
    pthread_mutex_t leaving;                     /* of threads that leave */
    CommGone gone[COMM_MAX_WORKERS];             /* in order; written before epoch counts it */
    CommBarrier barrier[COMM_MAX_WORKERS + 1];   /* one for each epoch */
    _Atomic uint32_t arrivals[COMM_MAX_WORKERS]; /* at barriers, by id */
    _Atomic char state[COMM_MAX_WORKERS];        /* CommLife, by id */
    const void *lent[COMM_MAX_WORKERS];          /* by threads, between two barriers */
} CommShared;

/* How far a worker has come. */
typedef enum CommLife {
    COMM_STARTS,
    COMM_RECOVERS, /* has set comm->recover: it can go on without another */
    COMM_LEFT,     /* took itself out of the group */
    COMM_RETURNED  /* came to its end in order */
} CommLife;

/* One worker's end of the line. */
typedef struct Comm {
    int rank, size;       /* among those who are left */
    int id;               /* rank at the start */
    int machines, locals; /* size = machines * locals; this one is machine rank / locals */
    CommShared *shared;
    const CommTransport *transport;
    uint32_t epoch;                   /* that rank and size are of */
    int16_t member[COMM_MAX_WORKERS]; /* ids by rank */
    jmp_buf *recover;                 /* see FAILURE; NULL: wait for the end. comm_can_recover */
    Team *team;
    uint64_t sent[COMM_KINDS], received[COMM_KINDS]; /* payload bytes since the start */
    uint64_t messages[COMM_KINDS];             /* sent: size - 1 per collective, or destinations */
    uint64_t up[COMM_KINDS], down[COMM_KINDS]; /* sent to owners of shards, received from them */
} Comm;

typedef int (*CommWorker)(Comm *comm, void *arg);

/* An all-to-all under way, between the workers whose ranks leave the same rest over `stride`. */
typedef struct CommExchange {
    const char *message;
    char *inbox;
    const size_t *cuts; /* of the k-th such worker: bytes cuts[k] .. cuts[k+1] */
    int stride, count;  /* count workers take part */
    size_t longest;     /* message of any worker, in bytes */
    size_t posted;      /* bytes of the message that are on their way, up to worker `to` */
    int to;
} CommExchange;

/* What carries bytes between workers. Called by every worker, in the same order. */
struct CommTransport {
    void (*barrier)(Comm *c);
    void (*meet)(Comm *c); /* a barrier between the workers of a machine is enough */
    void (*begin)(Comm *c, CommExchange *x);
    void (*advance)(Comm *c, CommExchange *x, size_t ready);
    void (*end)(Comm *c, CommExchange *x);
    void (*allgather)(Comm *c, char *message, const size_t *cuts);
    void (*neighbours)(Comm *c, const char *message, size_t bytes, const int *sources, size_t count,
                       int key, char *inbox);
};

struct CommBackend {
    const char *name;
    int (*run)(CommShared *shared, CommWorker worker, void *arg, char *error, size_t size);
    void (*leave)(CommShared *shared, int id); /* NULL: the parent sees it */
    const CommTransport *transport;
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

/* Return 1 when n callers have arrived, or 0 when the barrier broke before, to all of them alike.
 * Looks `spin` times, then sleeps. */
static inline int comm__wait(CommBarrier *b, int n, int spin) {
    uint32_t before = atomic_load_explicit(&b->generation, memory_order_acquire), now = before;
    if (before & COMM_BROKEN) return 0;
    if (n == 1) return 1;
    uint32_t after = (before + 1) & ~COMM_BROKEN;
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)n) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        int passed = atomic_compare_exchange_strong(&b->generation, &before, after);
        comm__wake_all(&b->generation);
        return passed;
    }
    for (int i = 0; i < spin && now == before; i++) {
        now = atomic_load_explicit(&b->generation, memory_order_acquire);
#if defined(__x86_64__) || defined(__i386__)
        _mm_pause();
#endif
    }
    while (now == before) {
        comm__sleep_while(&b->generation, before);
        now = atomic_load_explicit(&b->generation, memory_order_acquire);
    }
    return (now & ~COMM_BROKEN) != before;
}

static inline void comm__break(CommBarrier *b) {
    atomic_fetch_or(&b->generation, COMM_BROKEN);
    comm__wake_all(&b->generation);
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
 * transport through memory: outboxes that all workers map */

/* A barrier broke: go where this worker recovers, or wait to be ended. */
__attribute__((noreturn)) static inline void comm__lost(const Comm *c) {
    if (c->recover) longjmp(*c->recover, 1);
    for (;;) pause();
}

static inline void comm__memory_barrier(Comm *c) {
    atomic_fetch_add_explicit(&c->shared->arrivals[c->id], 1, memory_order_relaxed);
    if (!comm__wait(&c->shared->barrier[c->epoch], c->size, c->shared->spin)) comm__lost(c);
}

/* By id, so that a worker that has not heard of a death yet writes into nobody else's. */
static inline char *comm__outbox(const Comm *c, int rank) {
    return c->shared->outboxes + (size_t)c->member[rank] * COMM_OUTBOX;
}

/* Copy the part of [from, to) that lies in [first, last) out of a box that holds [first, last). */
static inline void comm__take(char *out, const char *box, size_t from, size_t to, size_t first,
                              size_t last) {
    size_t a = from > first ? from : first, b = to < last ? to : last;
    if (a < b) memcpy(out + (a - from), box + (a - first), b - a);
}

static inline void comm__memory_begin(Comm *c, CommExchange *x) { (void)c, (void)x; }

static inline void comm__memory_advance(Comm *c, CommExchange *x, size_t ready) {
    (void)c, (void)x, (void)ready;
}

static inline void comm__memory_end(Comm *c, CommExchange *x) {
    int me = c->rank / x->stride, rest = c->rank % x->stride;
    size_t total = x->cuts[x->count], from = x->cuts[me], mine = x->cuts[me + 1] - from;
    if (c->size == 1) memcpy(x->inbox, x->message, total);
    for (size_t first = 0; first < x->longest && c->size > 1; first += COMM_OUTBOX) {
        size_t last = first + COMM_OUTBOX < total ? first + COMM_OUTBOX : total;
        if (first < last) memcpy(comm__outbox(c, c->rank), x->message + first, last - first);
        comm__memory_barrier(c);
        for (int k = 0; k < x->count; k++)
            comm__take(x->inbox + (size_t)k * mine, comm__outbox(c, k * x->stride + rest), from,
                       from + mine, first, last);
        comm__memory_barrier(c);
    }
}

static inline void comm__memory_allgather(Comm *c, char *message, const size_t *cuts) {
    size_t longest = 0;
    for (int j = 0; j < c->size; j++)
        if (cuts[j + 1] - cuts[j] > longest) longest = cuts[j + 1] - cuts[j];
    for (size_t done = 0; done < longest && c->size > 1; done += COMM_OUTBOX) {
        for (int pass = 0; pass < 2; pass++) { /* fill my outbox, then empty everybody's */
            for (int j = 0; j < c->size; j++) {
                size_t from = cuts[j] + done, left = cuts[j + 1] > from ? cuts[j + 1] - from : 0;
                size_t n = left < COMM_OUTBOX ? left : COMM_OUTBOX;
                if (pass == 0 && j == c->rank) memcpy(comm__outbox(c, j), message + from, n);
                if (pass == 1 && j != c->rank) memcpy(message + from, comm__outbox(c, j), n);
            }
            comm__memory_barrier(c);
        }
    }
}

static inline void comm__memory_neighbours(Comm *c, const char *message, size_t bytes,
                                           const int *sources, size_t count, int key, char *inbox) {
    (void)key;
    for (size_t first = 0; first < bytes && c->size > 1; first += COMM_OUTBOX) {
        size_t n = bytes - first < COMM_OUTBOX ? bytes - first : COMM_OUTBOX;
        memcpy(comm__outbox(c, c->rank), message + first, n);
        comm__memory_barrier(c);
        for (size_t k = 0; k < count; k++)
            if (sources[k] != c->rank)
                memcpy(inbox + k * bytes + first, comm__outbox(c, sources[k]), n);
        comm__memory_barrier(c);
    }
}

static const CommTransport comm__memory = {
    comm__memory_barrier, comm__memory_barrier,   comm__memory_begin,     comm__memory_advance,
    comm__memory_end,     comm__memory_allgather, comm__memory_neighbours};

/* ------------------------------------------------------------------------------------------------
 * collectives: counted here, carried by the back end's transport */

static inline void comm_barrier(Comm *c) { c->transport->barrier(c); }

/* Begin an all-to-all: bytes cuts[j] .. cuts[j+1] of message go to worker j. Message, cuts and
 * inbox stay the caller's until the end, and only comm_alltoall_advance is called before.
 * cuts     size + 1 ascending offsets, equal on all workers; cuts[0] = 0
 * inbox    receives shard `rank` of everybody, in rank order: size * (cuts[rank+1] - cuts[rank])
 *          bytes
 * sent     total - own shard bytes */
static inline void comm_alltoall_begin(Comm *c, CommExchange *x, const void *message,
                                       const size_t *cuts, void *inbox, CommKind kind) {
    size_t total = cuts[c->size], mine = cuts[c->rank + 1] - cuts[c->rank];
    *x = (CommExchange){.message = message,
                        .inbox = inbox,
                        .cuts = cuts,
                        .stride = 1,
                        .count = c->size,
                        .longest = total};
    c->sent[kind] += total - mine;
    c->up[kind] += total - mine;
    c->received[kind] += (size_t)(c->size - 1) * mine;
    c->messages[kind] += (size_t)(c->size - 1);
    c->transport->begin(c, x);
}

/* The first `ready` bytes of the message are final: send what can be sent, without waiting. */
static inline void comm_alltoall_advance(Comm *c, CommExchange *x, size_t ready) {
    if (!c->shared->hold) c->transport->advance(c, x, ready);
}

/* All of the message is final; returns when the inbox is full. */
static inline void comm_alltoall_end(Comm *c, CommExchange *x) { c->transport->end(c, x); }

static inline void comm_alltoall(Comm *c, const void *message, const size_t *cuts, void *inbox,
                                 CommKind kind) {
    CommExchange x;
    comm_alltoall_begin(c, &x, message, cuts, inbox, kind);
    comm_alltoall_end(c, &x);
}

/* An all-to-all between the workers that have the same place on their machines; `cuts` has
 * machines + 1 entries, equal on those workers.
 * longest  bytes of the longest message of all workers */
static inline void comm_alltoall_across(Comm *c, const void *message, const size_t *cuts,
                                        size_t longest, void *inbox, CommKind kind) {
    int me = c->rank / c->locals;
    size_t total = cuts[c->machines], mine = cuts[me + 1] - cuts[me];
    CommExchange x = {.message = message,
                      .inbox = inbox,
                      .cuts = cuts,
                      .stride = c->locals,
                      .count = c->machines,
                      .longest = longest};
    c->sent[kind] += total - mine;
    c->up[kind] += total - mine;
    c->received[kind] += (size_t)(c->machines - 1) * mine;
    c->messages[kind] += (size_t)(c->machines - 1);
    c->transport->begin(c, &x);
    c->transport->end(c, &x);
}

/* peers (locals pointers) <- what the workers of this machine lend each other to read; lent until
 * the reader has come to its next collective. Not between processes. */
static inline void comm_lend(Comm *c, const void *mine, const void **peers) {
    int first = c->rank / c->locals * c->locals;
    c->shared->lent[c->rank] = mine;
    c->transport->meet(c);
    for (int k = 0; k < c->locals; k++) peers[k] = c->shared->lent[first + k];
    c->transport->meet(c);
}

/* Fill message everywhere: worker j brings bytes cuts[j] .. cuts[j+1] and sends them to all
 * others. */
static inline void comm_allgather(Comm *c, void *message, const size_t *cuts, CommKind kind) {
    size_t total = cuts[c->size], mine = cuts[c->rank + 1] - cuts[c->rank];
    c->transport->allgather(c, message, cuts);
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
 * destinations   how many others take the caller's message, for its counters
 * key            >= 0, equal on all workers: under one key, a worker's sources never change */
static inline void comm_neighbours(Comm *c, const void *message, size_t bytes, const int *sources,
                                   size_t count, size_t destinations, int key, void *inbox,
                                   CommKind kind) {
    size_t others = 0;
    for (size_t k = 0; k < count; k++) {
        others += sources[k] != c->rank;
        if (sources[k] == c->rank) memcpy((char *)inbox + k * bytes, message, bytes);
    }
    c->transport->neighbours(c, message, bytes, sources, count, key, inbox);
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
 * a group that loses members */

/* From here on this worker goes on at `place` when another one is lost. */
static inline void comm_can_recover(Comm *c, jmp_buf *place) {
    c->recover = place;
    atomic_store(&c->shared->state[c->id], COMM_RECOVERS);
}

/* Take over the group as it is now: rank and size of this worker. Returns how many have gone since
 * the last call; shared->gone tells who, in order. */
static inline int comm_regroup(Comm *c) {
    const CommShared *s = c->shared;
    uint32_t epoch = atomic_load(&s->epoch), news = epoch - c->epoch;
    c->size = 0;
    for (int id = 0; id < s->workers; id++) {
        int here = 1;
        for (uint32_t k = 0; k < epoch; k++) here &= s->gone[k].id != id;
        if (!here) continue;
        if (id == c->id) c->rank = c->size;
        c->member[c->size++] = (int16_t)id;
    }
    c->epoch = epoch;
    if (news) c->machines = 1, c->locals = c->size; /* votes are counted as on one machine */
    return (int)news;
}

/* Take a worker out and break the barrier that the others wait at. One caller at a time. */
static inline void comm__remove(CommShared *s, CommGone who) {
    uint32_t epoch = atomic_load(&s->epoch);
    s->gone[epoch] = who;
    atomic_store(&s->epoch, epoch + 1);
    comm__break(&s->barrier[epoch]);
}

/* This worker is out of the group: it must return, and the others go to where they recover. */
static inline void comm_leave(Comm *c) {
    CommShared *s = c->shared;
    atomic_store(&s->state[c->id], COMM_LEFT);
    if (s->backend->leave) s->backend->leave(s, c->id);
}

/* The lowest id that is still of the group: its status is the run's. */
static inline int comm__first(const CommShared *s) {
    int id = 0;
    for (uint32_t k = 0; k < atomic_load(&s->epoch); k++)
        for (uint32_t j = 0; j < atomic_load(&s->epoch); j++) id += s->gone[j].id == id;
    return id;
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
    Comm c = {.rank = rank,
              .size = shared->workers,
              .id = rank,
              .machines = shared->machines,
              .locals = shared->workers / shared->machines,
              .shared = shared,
              .transport = shared->transport};
    for (int j = 0; j < c.size; j++) c.member[j] = (int16_t)j;
    c.team = calloc(1, sizeof *c.team);
    comm_float_environment();
    if (!c.team || team_start(c.team, shared->threads, shared->spin)) {
        if (!atomic_exchange(&shared->spoken, 1))
            fprintf(stderr,
                    "train_gpt: worker %d cannot start %d compute threads: lower --threads\n", rank,
                    shared->threads);
        exit(1); /* the others wait for this one: there is no going on */
    }
    int status = worker(&c, arg);
    team_stop(c.team);
    free(c.team);
    if (atomic_load(&shared->state[rank]) != COMM_LEFT)
        atomic_store(&shared->state[rank], COMM_RETURNED);
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

/* Workers first .. first + count - 1 are threads; the caller's thread is the first of them. */
static inline int comm__run_some(CommShared *shared, int first, int count, CommWorker worker,
                                 void *arg, char *error, size_t size) {
    struct comm__thread *t = calloc((size_t)count, sizeof *t);
    if (!t) return snprintf(error, size, "no memory for %d workers", count), COMM_FAILED;
    for (int k = 0; k < count; k++)
        t[k] = (struct comm__thread){
            .shared = shared, .rank = first + k, .worker = worker, .arg = arg};
    for (int k = 1; k < count; k++) {
        int failed = pthread_create(&t[k].id, NULL, comm__thread_main, &t[k]);
        if (failed) { /* the others wait for this one: the caller must end the process */
            snprintf(error, size, "cannot start worker %d as a thread: %s; lower --workers",
                     first + k, strerror(failed));
            if (k == 1) free(t); /* nobody else has it */
            return COMM_FAILED;
        }
    }
    comm__thread_main(&t[0]);
    for (int k = 1; k < count; k++) pthread_join(t[k].id, NULL);
    int status = t[comm__first(shared)].status;
    free(t);
    return status;
}

static inline int comm__run_threads(CommShared *shared, CommWorker worker, void *arg, char *error,
                                    size_t size) {
    return comm__run_some(shared, 0, shared->workers, worker, arg, error, size);
}

/* A thread that leaves says so itself. */
static inline void comm__leave_threads(CommShared *shared, int id) {
    pthread_mutex_lock(&shared->leaving);
    comm__remove(shared, (CommGone){.id = (int16_t)id, .left = 1});
    pthread_mutex_unlock(&shared->leaving);
}

/* What the parent knows of its workers. */
typedef struct CommWatch {
    CommShared *shared;
    pid_t pid[COMM_MAX_WORKERS]; /* 0: has ended */
    uint32_t arrivals[COMM_MAX_WORKERS];
    double waited[COMM_MAX_WORKERS]; /* seconds that the others have waited for it */
    int8_t hung[COMM_MAX_WORKERS];
    int started, alive, failed, status;
    char *error;
    size_t size;
} CommWatch;

/* May the others go on without worker r? */
static inline int comm__can_spare(const CommWatch *w, int r) {
    CommShared *s = w->shared;
    int left = 0;
    for (int j = 0; j < w->started; j++) {
        if (j == r || !w->pid[j]) continue;
        int state = atomic_load(&s->state[j]);
        if (state == COMM_STARTS || (state == COMM_RETURNED && r == comm__first(s))) return 0;
        left++;
    }
    return s->least > 0 && left >= s->least;
}

/* Worker r ended with wait status s, before its time unless it had returned. */
static inline void comm__judge(CommWatch *w, int r, pid_t pid, int s) {
    CommShared *shared = w->shared;
    int state = atomic_load(&shared->state[r]), by = WIFSIGNALED(s) ? WTERMSIG(s) : 0;
    CommGone gone = {(int16_t)r, (int16_t)by, w->hung[r], state == COMM_LEFT};
    w->pid[r] = 0;
    w->alive--;
    if (w->failed) return;
    if (state == COMM_RETURNED) {
        if (r == comm__first(shared)) w->status = WEXITSTATUS(s);
    } else if (state == COMM_LEFT || (by && comm__can_spare(w, r))) {
        comm__remove(shared, gone);
    } else if (!by) {
        w->status = w->failed = WEXITSTATUS(s) ? WEXITSTATUS(s) : 1;
    } else {
        w->status = w->failed = COMM_DIED;
        int n = w->hung[r]
                    ? snprintf(w->error, w->size,
                               "worker %d (process %ld) kept the others waiting for %g s and was "
                               "killed",
                               r, (long)pid, shared->timeout)
                    : snprintf(w->error, w->size,
                               "worker %d (process %ld) was killed by signal %d (%s)", r, (long)pid,
                               by, strsignal(by));
        const char *why = !shared->least ? "" : ", too few or not ready to go on without it,";
        if (n > 0 && (size_t)n < w->size)
            snprintf(w->error + n, w->size - (size_t)n, "; the other workers%s were stopped", why);
    }
}

/* Kill whoever has kept the others waiting for too long. Time in which the parent itself did not run,
 * as after Ctrl-Z, does not count. */
static inline void comm__find_hung(CommWatch *w, double passed) {
    CommShared *s = w->shared;
    uint32_t most = 0;
    for (int r = 0; r < w->started; r++) {
        uint32_t now = atomic_load(&s->arrivals[r]);
        if (w->pid[r] && now > most) most = now;
    }
    for (int r = 0; r < w->started; r++) {
        uint32_t now = atomic_load(&s->arrivals[r]);
        int waits = w->pid[r] && now < most && now == w->arrivals[r] &&
                    atomic_load(&s->state[r]) < COMM_LEFT;
        w->arrivals[r] = now;
        w->waited[r] = waits ? w->waited[r] + passed : 0;
        if (s->timeout <= 0 || w->waited[r] <= s->timeout || w->hung[r]) continue;
        w->hung[r] = 1;
        kill(w->pid[r], SIGKILL);
    }
}

/* Until all workers have ended. */
static inline void comm__watch(CommWatch *w) {
    struct timespec before, now;
    clock_gettime(CLOCK_MONOTONIC, &before);
    while (w->alive > 0) {
        int s;
        for (int r = 0; r < w->started && w->failed; r++)
            if (w->pid[r]) kill(w->pid[r], SIGKILL);
        pid_t ended = waitpid(-1, &s, w->failed ? 0 : WNOHANG);
        if (ended <= 0) { /* nobody, or a signal came in: its handler has told the workers */
            nanosleep(&(struct timespec){0, 5000000}, NULL);
            clock_gettime(CLOCK_MONOTONIC, &now);
            double passed = (double)(now.tv_sec - before.tv_sec) +
                            1e-9 * (double)(now.tv_nsec - before.tv_nsec);
            before = now;
            comm__find_hung(w, passed < 0.1 ? passed : 0.1);
            continue;
        }
        for (int r = 0; r < w->started; r++)
            if (w->pid[r] == ended) comm__judge(w, r, ended, s);
    }
}

/* Workers are forked; the caller's process only watches over them. */
static inline int comm__run_processes(CommShared *shared, CommWorker worker, void *arg, char *error,
                                      size_t size) {
    pid_t parent = getpid();
    CommWatch w = {.shared = shared, .error = error, .size = size};
    fflush(NULL);
    for (; w.started < shared->workers && !w.failed; w.started += !w.failed) {
        pid_t pid = fork();
        if (pid < 0) {
            snprintf(error, size, "cannot fork worker %d: %s; lower --workers", w.started,
                     strerror(errno));
            w.status = w.failed = COMM_FAILED;
        }
        w.pid[w.started] = pid;
        if (pid != 0) continue;
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
        if (getppid() != parent) _exit(1);
        if (comm__signalled) comm__catch(comm__note_signal_worker);
        exit(comm__work(shared, w.started, worker, arg));
    }
    w.alive = w.started;
    comm__watch(&w);
    return w.status;
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

/* ------------------------------------------------------------------------------------------------
 * several processes that were started together */

#ifdef COMM_MPI
#ifndef COMM_MPI_PIECE
#define COMM_MPI_PIECE ((size_t)1 << 30) /* longest message that MPI is given, in bytes */
#endif
enum {
    COMM__PIECES = 64,
    COMM__LEAST = 1 << 14
}; /* an all-to-all is sent in so many parts, or
    in fewer of so many bytes */

/* A graph of the ranks, with an edge for every worker's message that another rank wants. */
typedef struct CommGraph {
    int in, out;
    int *from, *to; /* the outbox of each edge that comes in, that goes out, in bytes */
    int *bytes;     /* of each edge, in one call */
    MPI_Comm ranks;
} CommGraph;

enum { COMM__STARTING, COMM__AGREED, COMM__RUNNING };

/* One per process, as MPI itself is. */
static struct CommMpi {
    int phase, status, rank, ranks, beside;
    MPI_Request *request; /* of the exchange under way */
    MPI_Status *ended;    /* theirs: gcc objects to MPI_STATUSES_IGNORE, an array of none */
    int requests, room;
    CommGraph *graph; /* by key */
    int graphs;
} comm__world;

/* A failed call of MPI ends the run. */
static inline void comm__mpi_check(int code, const char *call) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (code == MPI_SUCCESS) return;
    MPI_Error_string(code, text, &length);
    fprintf(stderr, "rank %d: %s failed: %s\n", comm__world.rank, call, text);
    MPI_Abort(MPI_COMM_WORLD, 1);
}
#define COMM__MPI(function, ...) comm__mpi_check(function(__VA_ARGS__), #function)

static inline void *comm__mpi_memory(void *old, size_t bytes) {
    void *p = realloc(old, bytes);
    if (!p) comm__mpi_check(MPI_ERR_NO_MEM, "realloc");
    return p;
}

/* What a rank tells the others before all begin to work, or instead of it. */
typedef struct CommWord {
    int64_t leaves, status;
    uint64_t text; /* a hash of what it has to say */
} CommWord;

/* Once per run and rank: returns the word of one that leaves, if any does.
 * alike, first   how many ranks say the same as this one, and the lowest of them */
static inline CommWord comm__mpi_agree(CommWord mine, int *alike, int *first) {
    CommWord all[COMM_MAX_WORKERS], left = {0};
    COMM__MPI(MPI_Allgather, &mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE,
              MPI_COMM_WORLD);
    comm__world.phase = COMM__AGREED;
    *alike = *first = 0;
    for (int r = comm__world.ranks - 1; r >= 0; r--) {
        if (all[r].leaves && (!left.leaves || all[r].status)) left = all[r];
        if (all[r].status != mine.status || all[r].text != mine.text) continue;
        *first = r;
        ++*alike;
    }
    return left;
}

/* The way out of every rank: together when all is in order, else all go down with this one. */
static inline void comm__mpi_exit(void) {
    int alike, first, gone = 0;
    MPI_Finalized(&gone);
    if (gone) return;
    if (comm__world.phase == COMM__STARTING) comm__mpi_agree((CommWord){1, 0, 0}, &alike, &first);
    if (comm__world.phase == COMM__RUNNING)
        MPI_Abort(MPI_COMM_WORLD, comm__world.status ? comm__world.status : 1);
    MPI_Finalize();
}

static inline int comm__mpi_leads(const Comm *c) { return c->rank % c->locals == 0; }

static inline void comm__mpi_meet(Comm *c) {
    comm__wait(&c->shared->barrier[0], c->locals, c->shared->spin);
}

static inline void comm__mpi_barrier(Comm *c) {
    comm__mpi_meet(c);
    if (comm__mpi_leads(c)) COMM__MPI(MPI_Barrier, MPI_COMM_WORLD);
    comm__mpi_meet(c);
}

static inline MPI_Request *comm__mpi_request(void) {
    struct CommMpi *m = &comm__world;
    if (m->requests == m->room) {
        m->room = m->room ? 2 * m->room : 256;
        m->request = comm__mpi_memory(m->request, (size_t)m->room * sizeof *m->request);
        m->ended = comm__mpi_memory(m->ended, (size_t)m->room * sizeof *m->ended);
    }
    return &m->request[m->requests++];
}

/* Where the part of an exchange ends that begins at byte `at`, before `last`: sender and receiver
 * cut the message alike. */
static inline size_t comm__mpi_part(const CommExchange *x, size_t at, size_t last) {
    size_t part = x->cuts[x->count] / COMM__PIECES + 1;
    if (part < COMM__LEAST) part = COMM__LEAST;
    if (part > COMM_MPI_PIECE) part = COMM_MPI_PIECE;
    at = (at / part + 1) * part;
    return at < last ? at : last;
}

/* Be ready for what worker `from` sends to worker `to`, whose exchange x is. */
static inline void comm__mpi_receive(CommExchange *x, int from, int to, int locals) {
    int me = to / x->stride, k = from / x->stride;
    size_t first = x->cuts[me], last = x->cuts[me + 1], next;
    if (from % x->stride != to % x->stride) return;
    for (size_t at = first; at < last; at = next) {
        next = comm__mpi_part(x, at, last);
        COMM__MPI(MPI_Irecv, x->inbox + (size_t)k * (last - first) + (at - first), (int)(next - at),
                  MPI_BYTE, from / locals, 0, MPI_COMM_WORLD, comm__mpi_request());
    }
}

/* Send what worker `from` has ready of its exchange. */
static inline void comm__mpi_send(CommExchange *x, int from, int locals, size_t ready) {
    for (;;) {
        while (x->to < x->count && x->cuts[x->to + 1] <= x->posted) x->to++;
        if (x->to == x->count) return;
        size_t next = comm__mpi_part(x, x->posted, x->cuts[x->to + 1]);
        int rank = (x->to * x->stride + from % x->stride) / locals;
        if (next > ready) return;
        if (rank != comm__world.rank)
            COMM__MPI(MPI_Isend, x->message + x->posted, (int)(next - x->posted), MPI_BYTE, rank, 0,
                      MPI_COMM_WORLD, comm__mpi_request());
        x->posted = next;
    }
}

static inline void comm__mpi_begin(Comm *c, CommExchange *x) {
    for (int j = 0; j < c->size && c->locals == 1; j++)
        if (j != c->rank) comm__mpi_receive(x, j, c->rank, 1);
}

static inline void comm__mpi_advance(Comm *c, CommExchange *x, size_t ready) {
    int done;
    if (c->locals > 1) return;
    comm__mpi_send(x, c->rank, 1, ready);
    COMM__MPI(MPI_Testall, comm__world.requests, comm__world.request, &done, comm__world.ended);
}

/* Between two ranks, messages are matched in order: by sender, then by receiver. */
static inline void comm__mpi_post(Comm *c) {
    int first = c->rank, last = first + c->locals;
    for (int from = 0; from < c->size && c->locals > 1; from++)
        for (int to = first; to < last && (from < first || from >= last); to++)
            comm__mpi_receive((CommExchange *)(uintptr_t)c->shared->lent[to], from, to, c->locals);
    for (int from = first; from < last; from++)
        comm__mpi_send((CommExchange *)(uintptr_t)c->shared->lent[from], from, c->locals, SIZE_MAX);
}

static inline void comm__mpi_end(Comm *c, CommExchange *x) {
    int me = c->rank / x->stride, first = c->rank / c->locals * c->locals;
    size_t at = x->cuts[me], mine = x->cuts[me + 1] - at;
    c->shared->lent[c->rank] = x;
    comm__mpi_meet(c);
    if (comm__mpi_leads(c)) comm__mpi_post(c);
    for (int j = first; j < first + c->locals; j++)
        if (j % x->stride == c->rank % x->stride)
            memcpy(x->inbox + (size_t)(j / x->stride) * mine,
                   ((const CommExchange *)c->shared->lent[j])->message + at, mine);
    if (comm__mpi_leads(c)) {
        COMM__MPI(MPI_Waitall, comm__world.requests, comm__world.request, comm__world.ended);
        comm__world.requests = 0;
    }
    comm__mpi_meet(c);
}

/* What the workers of each rank bring lies together: ranks gather, then workers copy. */
static inline void comm__mpi_ranks_gather(const Comm *c, char *message, const size_t *cuts) {
    int count[COMM_MAX_WORKERS], at[COMM_MAX_WORKERS];
    for (int r = 0; r < c->machines && cuts[c->size] <= COMM_MPI_PIECE; r++) {
        at[r] = (int)cuts[r * c->locals];
        count[r] = (int)(cuts[(r + 1) * c->locals] - cuts[r * c->locals]);
    }
    if (cuts[c->size] <= COMM_MPI_PIECE) {
        COMM__MPI(MPI_Allgatherv, MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, message, count, at, MPI_BYTE,
                  MPI_COMM_WORLD);
        return;
    }
    for (int r = 0; r < c->machines; r++) {
        size_t last = cuts[(r + 1) * c->locals], next;
        for (size_t from = cuts[r * c->locals]; from < last; from = next) {
            next = last - from > COMM_MPI_PIECE ? from + COMM_MPI_PIECE : last;
            COMM__MPI(MPI_Bcast, message + from, (int)(next - from), MPI_BYTE, r, MPI_COMM_WORLD);
        }
    }
}

static inline void comm__mpi_allgather(Comm *c, char *message, const size_t *cuts) {
    int first = c->rank / c->locals * c->locals;
    c->shared->lent[c->rank] = message;
    comm__mpi_meet(c);
    if (comm__mpi_leads(c)) {
        for (int j = first + 1; j < first + c->locals; j++)
            memcpy(message + cuts[j], (const char *)c->shared->lent[j] + cuts[j],
                   cuts[j + 1] - cuts[j]);
        comm__mpi_ranks_gather(c, message, cuts);
    }
    comm__mpi_meet(c);
    if (!comm__mpi_leads(c)) memcpy(message, c->shared->lent[first], cuts[c->size]);
    comm__mpi_meet(c);
}

/* Whose messages a worker takes. */
typedef struct CommWant {
    const int *sources;
    size_t count;
} CommWant;

/* wants (machines, size) <- 1 where a worker of that rank takes the message of that worker. */
static inline char *comm__mpi_wants(const Comm *c) {
    size_t size = (size_t)c->size;
    char *wants = comm__mpi_memory(NULL, (size_t)c->machines * size),
         *mine = comm__mpi_memory(NULL, size);
    memset(mine, 0, size);
    for (int j = c->rank; j < c->rank + c->locals; j++) {
        const CommWant *w = c->shared->lent[j];
        for (size_t k = 0; k < w->count; k++) mine[w->sources[k]] = 1;
    }
    COMM__MPI(MPI_Allgather, mine, c->size, MPI_BYTE, wants, c->size, MPI_BYTE, MPI_COMM_WORLD);
    free(mine);
    return wants;
}

/* The edges between this rank and the others, by worker: two ranks list those between them in the
 * same order. */
static inline void comm__mpi_make_graph(const Comm *c, CommGraph *g) {
    int rank_in[COMM_MAX_WORKERS], rank_out[COMM_MAX_WORKERS], me = c->rank / c->locals;
    size_t size = (size_t)c->size;
    char *wants = comm__mpi_wants(c);
    *g = (CommGraph){.from = comm__mpi_memory(NULL, 3 * size * sizeof(int))};
    g->to = g->from + size;
    g->bytes = g->to + size;
    for (int j = 0; j < c->size; j++) {
        if (j / c->locals == me || !wants[(size_t)me * size + (size_t)j]) continue;
        rank_in[g->in] = j / c->locals;
        g->from[g->in++] = j * COMM_OUTBOX;
    }
    for (int r = 0; r < c->machines; r++)
        for (int j = c->rank; j < c->rank + c->locals; j++) {
            if (r == me || !wants[(size_t)r * size + (size_t)j]) continue;
            rank_out[g->out] = r;
            g->to[g->out++] = j * COMM_OUTBOX;
        }
    for (int k = 0; k < c->size; k++) g->bytes[k] = COMM_OUTBOX; /* weights: hints */
    COMM__MPI(MPI_Dist_graph_create_adjacent, MPI_COMM_WORLD, g->in, rank_in, g->bytes, g->out,
              rank_out, g->bytes, MPI_INFO_NULL, 0, &g->ranks);
    COMM__MPI(MPI_Comm_set_errhandler, g->ranks, MPI_ERRORS_RETURN);
    free(wants);
}

/* The graph of that key, made at its first use; workers of this rank lend what they want. */
static inline CommGraph *comm__mpi_graph(const Comm *c, int key) {
    struct CommMpi *m = &comm__world;
    while (m->graphs <= key) {
        m->graph = comm__mpi_memory(m->graph, ((size_t)m->graphs + 1) * sizeof *m->graph);
        m->graph[m->graphs++] = (CommGraph){.from = NULL};
    }
    if (!m->graph[key].from) comm__mpi_make_graph(c, &m->graph[key]);
    return &m->graph[key];
}

/* As through memory, where every rank holds the outboxes of all workers; those that it wants are
 * brought up to date. */
static inline void comm__mpi_neighbours(Comm *c, const char *message, size_t bytes,
                                        const int *sources, size_t count, int key, char *inbox) {
    CommWant want = {sources, count};
    CommGraph *g = NULL;
    c->shared->lent[c->rank] = &want;
    comm__mpi_meet(c);
    if (comm__mpi_leads(c)) g = comm__mpi_graph(c, key);
    comm__mpi_meet(c);
    for (size_t first = 0; first < bytes; first += COMM_OUTBOX) {
        size_t n = bytes - first < COMM_OUTBOX ? bytes - first : COMM_OUTBOX;
        memcpy(comm__outbox(c, c->rank), message + first, n);
        comm__mpi_meet(c);
        for (int k = 0; g && k < c->size; k++) g->bytes[k] = (int)n;
        if (g)
            COMM__MPI(MPI_Neighbor_alltoallv, c->shared->outboxes, g->bytes, g->to, MPI_BYTE,
                      c->shared->outboxes, g->bytes, g->from, MPI_BYTE, g->ranks);
        comm__mpi_meet(c);
        for (size_t k = 0; k < count; k++)
            if (sources[k] != c->rank)
                memcpy(inbox + k * bytes + first, comm__outbox(c, sources[k]), n);
        comm__mpi_meet(c);
    }
}

static const CommTransport comm__mpi = {comm__mpi_barrier,   comm__mpi_meet, comm__mpi_begin,
                                        comm__mpi_advance,   comm__mpi_end,  comm__mpi_allgather,
                                        comm__mpi_neighbours};

static inline void comm__mpi_forget(void) {
    struct CommMpi *m = &comm__world;
    for (int k = 0; k < m->graphs; k++) {
        if (!m->graph[k].from) continue;
        COMM__MPI(MPI_Comm_free, &m->graph[k].ranks);
        free(m->graph[k].from);
    }
    free(m->graph), free(m->request), free(m->ended);
    m->graph = NULL, m->request = NULL, m->ended = NULL;
    m->graphs = m->room = 0;
}

/* Workers are threads of MPI's ranks; the caller's thread talks to the others. */
static inline int comm__run_mpi(CommShared *shared, CommWorker worker, void *arg, char *error,
                                size_t size) {
    struct CommMpi *m = &comm__world;
    int locals = shared->workers / shared->machines, alike, first;
    assert(shared->machines == m->ranks);
    CommWord left = {0};
    if (m->phase == COMM__STARTING) left = comm__mpi_agree(left, &alike, &first);
    if (left.leaves) exit(left.status ? (int)left.status : 1); /* another rank has said why */
    m->phase = COMM__RUNNING;
    shared->spin = locals * shared->threads * m->beside <= comm_cores() ? 2000 : 0;
    int status = comm__run_some(shared, m->rank * locals, locals, worker, arg, error, size);
    if (status == COMM_FAILED) return status;
    COMM__MPI(MPI_Barrier, MPI_COMM_WORLD);
    m->phase = COMM__AGREED;
    comm__mpi_forget();
    return status;
}

/* Processes of a node that may run on the same cores as this one. */
static inline int comm__mpi_beside(MPI_Comm node) {
    int size, beside = 0;
    COMM__MPI(MPI_Comm_size, node, &size);
#ifdef __linux__
    cpu_set_t mine, *all = comm__mpi_memory(NULL, (size_t)size * sizeof *all);
    memset(&mine, 0, sizeof mine);
    sched_getaffinity(0, sizeof mine, &mine);
    COMM__MPI(MPI_Allgather, &mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, node);
    for (int r = 0; r < size; r++) beside += CPU_EQUAL(&mine, &all[r]);
    free(all);
    return beside;
#else
    return size;
#endif
}

/* Join the other processes of this launch; to be called first thing in main. */
static inline CommPlace comm_init(int *argc, char ***argv) {
    struct CommMpi *m = &comm__world;
    CommPlace p = {0, 1, 1};
    MPI_Comm node;
    int provided;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) ||
        provided < MPI_THREAD_FUNNELED) {
        fprintf(stderr, "MPI does not start, or not beside threads\n");
        exit(1);
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    COMM__MPI(MPI_Comm_rank, MPI_COMM_WORLD, &m->rank);
    COMM__MPI(MPI_Comm_size, MPI_COMM_WORLD, &m->ranks);
    COMM__MPI(MPI_Comm_split_type, MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    p.beside = comm__mpi_beside(node);
    COMM__MPI(MPI_Comm_free, &node);
    p.machine = m->rank, p.machines = m->ranks, m->beside = p.beside;
    atexit(comm__mpi_exit);
    if (m->ranks <= COMM_MAX_WORKERS) return p;
    if (m->rank == 0)
        fprintf(stderr, "%d ranks are too many: %d is the most\n", m->ranks, COMM_MAX_WORKERS);
    m->phase = COMM__AGREED;
    exit(2);
}
#else
/* This process is alone; where a launcher has started it as one of several, without MPI they do not
 * know each other, and `machines` says how many there are. */
static inline CommPlace comm_init(int *argc, char ***argv) {
    static const char *const launcher[][2] = {{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                              {"PMI_SIZE", "PMI_RANK"}};
    CommPlace p = {0, 1, 1};
    (void)argc, (void)argv;
    for (size_t k = 0; k < 2; k++) {
        const char *size = getenv(launcher[k][0]), *rank = getenv(launcher[k][1]);
        if (size && atoi(size) > 1) p.machines = atoi(size), p.machine = rank ? atoi(rank) : 0;
    }
    return p;
}
#endif

/* Is it for this worker to say why the run ends with `status`? Not when another one has, or on
 * another rank will, with the same words. `who` (32 bytes) receives "" or the rank and a colon.
 * Ranks that wait for each other at the start are let go; an exit has to follow. */
static inline int comm_last_words(int status, const char *text, char *who) {
    *who = 0;
    if (comm__signalled && atomic_exchange(&comm__signalled->spoken, 1)) return 0;
#ifdef COMM_MPI
    struct CommMpi *m = &comm__world;
    CommWord mine = {1, status, 5381};
    int alike = 0, first = m->rank;
    for (const char *at = text; *at; at++) mine.text = mine.text * 33 + (unsigned char)*at;
    m->status = status;
    if (m->phase == COMM__STARTING) comm__mpi_agree(mine, &alike, &first);
    if (alike < m->ranks && m->ranks > 1) snprintf(who, 32, "rank %d: ", m->rank);
    /* what all ranks find, rank 0 says: give it the time to do so and to end the others, through
     * the signals that mpirun sends them */
    struct timespec left = {2, 500000000};
    while (m->phase == COMM__RUNNING && m->rank && nanosleep(&left, &left)) continue;
    return m->rank == first || m->phase == COMM__RUNNING;
#else
    (void)status, (void)text;
    return 1;
#endif
}

/* Rows of --backend. NULL past the end. */
static inline const CommBackend *comm_backend_row(size_t i) {
    static const CommBackend table[] = {
        {"threads", comm__run_threads, comm__leave_threads, &comm__memory,
         "workers are threads of this process"},
        {"processes", comm__run_processes, NULL, &comm__memory,
         "workers are forked processes over shared memory"},
#ifdef COMM_MPI
        {"mpi", comm__run_mpi, NULL, &comm__mpi, "workers are threads of MPI's ranks"},
#endif
    };
    return i < sizeof table / sizeof table[0] ? &table[i] : NULL;
}

static inline const CommBackend *comm_backend(const char *name) {
    const CommBackend *row;
    for (size_t i = 0; (row = comm_backend_row(i)) != NULL; i++)
        if (strcmp(row->name, name) == 0) return row;
    return NULL;
}

/* Run worker(comm, arg) once per worker and return its exit status (worker 0's, when all end well).
 * error    COMM_DIED or COMM_FAILED, and a sentence. SIGINT and SIGTERM are caught meanwhile. */
static inline int comm_run(const CommOptions *o, CommWorker worker, void *arg, char *error,
                           size_t size) {
    assert(o->workers >= 1 && o->workers <= COMM_MAX_WORKERS && o->threads >= 1);
    assert(o->machines <= 1 || o->workers % o->machines == 0);
    size_t head = (sizeof(CommShared) + 4095) / 4096 * 4096,
           bytes = head + (size_t)o->workers * COMM_OUTBOX;
    CommShared *shared =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        snprintf(error, size, "cannot map %zu bytes of shared memory: %s; lower --workers", bytes,
                 strerror(errno));
        return COMM_FAILED;
    }
    shared->workers = o->workers;
    shared->threads = o->threads;
    shared->least = o->least;
    shared->timeout = o->timeout;
    shared->backend = o->backend;
    shared->transport = o->backend->transport;
    shared->machines = o->machines > 1 ? o->machines : 1;
    shared->hold = o->hold;
    pthread_mutex_init(&shared->leaving, NULL);
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
