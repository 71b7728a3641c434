/* team.h - the compute threads of one worker, and the barrier they meet at. C11 + pthreads, MIT.

     Team team;
     team_start(&team, 4, TEAM_SPIN);       // three helpers; the caller is thread 0. 0 or an errno
     team_run(&team, function, context);    // function(context, ith, nth) on all four, to its end
     team_barrier(&team);                   // inside `function`: returns when all four are here
     team_stop(&team);                      // ends the helpers

   One file of a program defines TEAM_IMPLEMENTATION before it includes this header.

   MEMORY    team_start allocates, team_stop frees; the Team is the caller's and stays in place
   THREADS   one thread starts, runs and stops a team
   WAITING   a thread looks at a barrier `spin` times and then sleeps in the kernel. Spin only where
             every thread has a core of its own
   ERRORS    a team_start that fails leaves no thread behind
   NUMERICS  every thread of a team rounds to nearest and flushes denormals, the caller's included
*/
#ifndef TEAM_H
#define TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum {
    TEAM_SPIN = 2000,
    TEAM_STACK = 1 << 20 /* bytes per thread: the default is 128 KB under musl */
};

/* A barrier for the threads of all processes that map it. Starts as zeros. */
typedef struct TeamBarrier {
    _Atomic uint32_t arrived, round;
} TeamBarrier;

typedef struct Team {
    int threads;
    /* private */
    int spin;
    void (*function)(void *context, int ith, int nth); /* NULL ends the helpers */
    void *context;
    TeamBarrier start, finish, inside;
    struct TeamHelper *helper;
} Team;

int team_start(Team *t, int threads, int spin);
void team_run(Team *t, void (*function)(void *context, int ith, int nth), void *context);
void team_barrier(Team *t);
void team_stop(Team *t);

/* Return when n threads, of any process, are here. */
void team_wait(TeamBarrier *b, int n, int spin);

/* Round to nearest and flush denormals on this thread, whatever its parent did. */
void team_float_environment(void);

#endif

/* ------------------------------------------------------------------------------------------------
 * private from here */

#ifdef TEAM_IMPLEMENTATION
#undef TEAM_IMPLEMENTATION

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

void team_float_environment(void) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_setcsr((_mm_getcsr() | 0x8040u) & ~0x6000u);
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    fpcr = (fpcr | (1u << 24)) & ~(uint64_t)(3u << 22);
    __asm__ volatile("msr fpcr, %0" ::"r"(fpcr));
#endif
}

/* futex(2), shared between processes. <linux/futex.h> is a package of its own under musl. */
enum { TEAM__FUTEX_WAIT = 0, TEAM__FUTEX_WAKE = 1 };

void team_wait(TeamBarrier *b, int n, int spin) {
    if (n == 1) return;
    uint32_t before = atomic_load_explicit(&b->round, memory_order_acquire), now = before;
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)n) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->round, before + 1, memory_order_release);
#ifdef __linux__
        syscall(SYS_futex, &b->round, TEAM__FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
#endif
        return;
    }
    for (int looks = 0; now == before; looks++) {
        if (looks < spin) {
#if defined(__x86_64__) || defined(__i386__)
            _mm_pause();
#endif
        } else {
#ifdef __linux__
            syscall(SYS_futex, &b->round, TEAM__FUTEX_WAIT, before, NULL, NULL, 0);
#else
            nanosleep(&(struct timespec){0, 50000}, NULL);
#endif
        }
        now = atomic_load_explicit(&b->round, memory_order_acquire);
    }
}

struct TeamHelper {
    Team *team;
    int ith;
    pthread_t thread;
};

static void *team__help(void *arg) {
    struct TeamHelper *me = arg;
    Team *t = me->team;
    team_float_environment();
    for (;;) {
        team_wait(&t->start, t->threads, t->spin);
        if (!t->function) return NULL;
        t->function(t->context, me->ith, t->threads);
        team_wait(&t->finish, t->threads, t->spin);
    }
}

int team_start(Team *t, int threads, int spin) {
    pthread_attr_t attributes;
    *t = (Team){.threads = threads, .spin = spin};
    team_float_environment();
    if (threads == 1) return 0;
    t->helper = calloc((size_t)threads, sizeof *t->helper);
    if (!t->helper) return ENOMEM;
    pthread_attr_init(&attributes);
    int started = 0, failed = pthread_attr_setstacksize(&attributes, TEAM_STACK);
    while (started < threads - 1 && !failed) {
        struct TeamHelper *h = &t->helper[started + 1];
        *h = (struct TeamHelper){.team = t, .ith = started + 1};
        failed = pthread_create(&h->thread, &attributes, team__help, h);
        started += !failed;
    }
    pthread_attr_destroy(&attributes);
    if (!failed) return 0;
    /* once all helpers that did start are at the barrier, a smaller team can be stopped */
    while (atomic_load(&t->start.arrived) < (uint32_t)started) sched_yield();
    t->threads = started + 1;
    team_stop(t);
    return failed;
}

void team_run(Team *t, void (*function)(void *context, int ith, int nth), void *context) {
    t->function = function;
    t->context = context;
    team_wait(&t->start, t->threads, t->spin);
    function(context, 0, t->threads);
    team_wait(&t->finish, t->threads, t->spin);
}

void team_barrier(Team *t) { team_wait(&t->inside, t->threads, t->spin); }

void team_stop(Team *t) {
    t->function = NULL;
    team_wait(&t->start, t->threads, t->spin);
    for (int i = 1; i < t->threads; i++) pthread_join(t->helper[i].thread, NULL);
    free(t->helper);
    t->helper = NULL;
}
#endif
