/* comm.c - tests of lib/team.h and lib/comm.h: bytes, counters, deaths, signals, limits. */
#include "collectives.h"
#include "test.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

static char comm_error[256]; /* of the last run */
static CommDeath comm_death;

static int run_workers(const char *backend, int workers, double timeout, CommWorker *worker,
                       void *arg) {
    CommOptions o = {.backend = backend, .workers = workers, .threads = 1, .timeout = timeout};
    *comm_error = 0;
    return comm_run(&o, worker, arg, &comm_death, comm_error, sizeof comm_error);
}

static const char *const comm_both[] = {"threads", "processes"};

static void sleep_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left)) continue;
}

/* Exit status of a forked process, or 128 + signal. */
static int wait_status(pid_t pid) {
    int how;
    while (waitpid(pid, &how, 0) < 0) continue;
    return WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
}

/* ------------------------------------------------------------------------------------------------
 * collectives */

typedef struct Delivery { /* shared by the workers */
    size_t unit;
    _Atomic size_t wrong;
} Delivery;

static int deliver(Comm *c, void *arg) {
    Delivery *d = arg;
    d->wrong += check_collectives(c, d->unit);
    return 0;
}

static void *deliver_on_this_stack(void *arg) {
    static const size_t units[] = {1, 10, 1000, COMM_OUTBOX / 3 + 1, 2 * COMM_OUTBOX + 101};
    Delivery *d = arg;
    for (int i = 0; i < 50; i++) { /* every back end, number of workers, unit */
        int workers = i / 2 % 5 + 1, u = i / 10;
        if (u > 2 && workers != (u == 3 ? 5 : 3)) continue;
        d->unit = units[u];
        CommOptions o = {.backend = comm_both[i & 1], .workers = workers, .threads = 1 + u % 2};
        int status = comm_run(&o, deliver, d, NULL, comm_error, sizeof comm_error);
        CHECK(status == 0, "%s", comm_error);
        CHECK(d->wrong == 0, "%s, %d workers, unit %zu", o.backend, workers, d->unit);
        d->wrong = 0;
    }
    CHECK(comm_cores() >= 1 && comm_memory_limit() > 1 << 20);
    return NULL;
}

TEST(collectives_deliver_every_byte_on_small_stacks) {
    Delivery *d = test_shared(sizeof *d);
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, 128 << 10) == 0);
    CHECK(pthread_create(&thread, &attributes, deliver_on_this_stack, d) == 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
}

/* ------------------------------------------------------------------------------------------------
 * how a run ends */

static int return_rank(Comm *c, void *arg) {
    (void)arg;
    comm_barrier(c);
    if (c->rank) sleep_ms(20); /* the others come last */
    return c->rank + 5;
}

static int exit_in_worker_1(Comm *c, void *arg) {
    if (c->rank == 1) exit(*(int *)arg);
    comm_barrier(c);
    return 0;
}

TEST(run_returns_status_or_refuses_with_sentence) {
    for (size_t b = 0; b < 2; b++) CHECK(run_workers(comm_both[b], 3, 0, return_rank, NULL) == 5);
    CHECK(run_workers("processes", 3, 0, exit_in_worker_1, &(int){7}) == 7);
    CHECK(run_workers("processes", 3, 0, exit_in_worker_1, &(int){0}) == 1);
    CHECK(comm_death.count == 0 && !*comm_error);
    CHECK(run_workers("pigeons", 2, 0, return_rank, NULL) == COMM_FAILED);
    CHECK(strstr(comm_error, "pigeons"));
    CHECK(run_workers("threads", 0, 0, return_rank, NULL) == COMM_FAILED && *comm_error);
    CHECK(run_workers("threads", COMM_MAX_WORKERS + 1, 0, return_rank, NULL) == COMM_FAILED);
    CHECK(comm_backend("pigeons") == NULL && comm_backend("processes") == comm_backend_row(1));
}

typedef struct Attempt { /* shared by the workers */
    int workers;
    int lost, by; /* worker `lost` dies by a signal, or hangs; the next one dies 0.5 s later */
    _Atomic int next_died;
} Attempt;

/* Ten rounds; the death is in the fourth. Each worker in turn comes 60 ms late. */
static int take_rounds(Comm *c, void *arg) {
    Attempt *a = arg;
    uint64_t mine = 1, all[8];
    for (int round = 0; round < 10; round++) {
        if (round == 3 && c->rank == a->lost && a->by) raise(a->by);
        while (round == 3 && c->rank == a->lost) pause();
        if (round == 3 && a->lost > 0 && c->rank == a->lost + 1 && a->by) {
            sleep_ms(500);
            a->next_died = 1;
            raise(SIGKILL);
        }
        if (round % c->size == c->rank) sleep_ms(60);
        comm_gather(c, &mine, sizeof mine, all, COMM_CONTROL);
    }
    return 4;
}

TEST(attempts_see_deaths_and_hangs_anew) {
    static const Attempt rows[] = {
        {.workers = 4, .lost = 1, .by = SIGKILL},
        {.workers = 4, .lost = 0, .by = SIGUSR2},
        {.workers = 4, .lost = 3}, /* hangs */
        {.workers = 2, .lost = 0},
        {.workers = 3, .lost = -1}, /* 600 ms in all: longer than the timeout, but in turns */
    };
    Attempt *a = test_shared(sizeof *a);
    char name[32];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        memcpy(a, &rows[i], sizeof *a);
        int status = run_workers("processes", a->workers, 0.4, take_rounds, a);
        CHECK(status == (a->lost < 0 ? 4 : COMM_DIED), "row %zu: %d", i, status);
        CHECK(comm_death.count == (a->lost >= 0) && comm_death.stop == 0, "row %zu", i);
        CHECK(a->next_died == 0); /* the first death has ended the attempt */
        if (a->lost < 0) continue;
        snprintf(name, sizeof name, "worker %d (process ", a->lost);
        CHECK(comm_death.rank[0] == a->lost && strstr(comm_error, name), "row %zu", i);
        snprintf(name, sizeof name, a->by ? "by signal %d (" : "waiting for 0.4 s", a->by);
        CHECK(strstr(comm_error, name) != NULL, "row %zu: %s", i, comm_error);
    }
}

typedef struct Pids { /* shared by the workers */
    _Atomic int pid[4];
    _Atomic int go;
} Pids;

static int wait_for_go(Comm *c, void *arg) {
    Pids *p = arg;
    p->pid[c->rank] = (int)getpid();
    while (c->rank == 1 && !p->go) sleep_ms(5);
    comm_barrier(c);
    return 6;
}

/* Worker 1 waits for longer than the timeout, but a parent stopped by Ctrl-Z kills nobody. Workers
 * whose parent is killed die with it. */
TEST(workers_outlive_stopped_but_not_killed_parent) {
#ifdef __linux__
    Pids *p = test_shared(sizeof *p);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* orphans become this process's children */
    for (int killed = 0; killed < 2; killed++) {
        memset(p, 0, sizeof *p);
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) _exit(run_workers("processes", 3, 0.8, wait_for_go, p) & 255);
        while (!p->pid[0] || !p->pid[1] || !p->pid[2]) sleep_ms(2);
        kill(pid, killed ? SIGKILL : SIGSTOP);
        sleep_ms(killed ? 200 : 1500);
        p->go = 1; /* too late for orphans */
        kill(pid, SIGCONT);
        CHECK(wait_status(pid) == (killed ? 128 + SIGKILL : 6));
        for (int r = 0; r < 3 && killed; r++) CHECK(wait_status(p->pid[r]) == 128 + SIGKILL);
    }
#endif
}

/* ------------------------------------------------------------------------------------------------
 * signals */

typedef struct Asked { /* shared by the workers */
    int first, second; /* signals that worker 0 sends to the process that called comm_run */
    int to_workers;    /* or that all workers send to themselves */
    long between;      /* ms */
    pid_t caller;
    int asks; /* wait until the signal has come: a busy machine takes its time */
} Asked;

static int write_to_nobody(void) {
    int ends[2];
    if (pipe(ends)) return 0;
    close(ends[0]);
    int refused = write(ends[1], "x", 1) < 0 && errno == EPIPE;
    close(ends[1]);
    return refused;
}

/* Returns the signal that every worker has seen, or 99. */
static int ask_to_stop(Comm *c, void *arg) {
    const Asked *a = arg;
    int all[4];
    pid_t whom = a->to_workers ? getpid() : a->caller;
    comm_barrier(c);
    if (a->to_workers || c->rank == 0) {
        kill(whom, a->first);
        sleep_ms(a->between);
        kill(whom, a->second);
        for (int i = 0; i < (a->asks ? 500 : 1) && !comm_stop_requested(c); i++) sleep_ms(10);
    }
    comm_barrier(c);
    int stop = comm_stop_requested(c);
    comm_gather(c, &stop, sizeof stop, all, COMM_CONTROL);
    for (int j = 0; j < c->size; j++)
        if (all[j] != stop) return 99;
    return write_to_nobody() ? stop : 98;
}

static volatile sig_atomic_t handled;
static void note_handled(int number) { handled = number; }

TEST(signals_ask_unless_ignored_and_handlers_return) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD};
    for (size_t k = 0; k < 20; k++) {
        int number = numbers[k % 5], ignored = k / 5 % 2, asks = !ignored && number != SIGCHLD;
        struct sigaction own = {.sa_handler = ignored ? SIG_IGN : note_handled}, before, after;
        Asked a = {.first = number, .second = number, .caller = getpid(), .asks = asks};
        sigaction(number, &own, &before);
        handled = 0;
        int status = run_workers(comm_both[k / 10], 3, 0, ask_to_stop, &a);
        CHECK(status == (asks ? number : 0), "signal %d: %d", number, status);
        CHECK(comm_death.stop == status && handled == 0);
        sigaction(number, &before, &after);
        CHECK(after.sa_handler == own.sa_handler, "signal %d", number);
        sigaction(SIGPIPE, NULL, &after);
        CHECK(after.sa_handler == SIG_DFL);
    }
}

TEST(later_urgent_signal_ends_the_program) {
    static const struct {
        const char *backend;
        int first, second, to_workers, status;
    } rows[] = {
        {.backend = "threads", .first = SIGINT, .second = SIGINT, .status = 130},
        {.backend = "processes", .first = SIGTERM, .second = SIGTERM, .status = 143},
        {.backend = "processes", .first = SIGHUP, .second = SIGINT, .status = 130},
        {.backend = "threads", .first = SIGINT, .second = SIGHUP, .status = SIGINT},
        {.backend = "processes", .first = SIGTERM, .second = SIGINT, .to_workers = 1, .status = 15},
    };
    enum { ROWS = sizeof rows / sizeof rows[0] };
    pid_t pid[ROWS];
    fflush(NULL);
    for (size_t i = 0; i < ROWS; i++) {
        if ((pid[i] = fork()) != 0) continue;
        Asked a = {rows[i].first, rows[i].second, rows[i].to_workers, 1200, getpid(), 1};
        _exit(run_workers(rows[i].backend, 2, 0, ask_to_stop, &a) & 255);
    }
    for (size_t i = 0; i < ROWS; i++) {
        int status = wait_status(pid[i]);
        CHECK(status == rows[i].status, "row %zu: %d", i, status);
    }
}

static int speak_once(Comm *c, void *arg) {
    _Atomic int *speakers = arg;
    comm_barrier(c);
    if (!comm_may_speak()) comm_wait_for_end();
    ++*speakers;
    sleep_ms(100);
    exit(3);
}

TEST(one_worker_speaks_for_all) {
    _Atomic int *speakers = test_shared(sizeof *speakers);
    for (size_t b = 0; b < 2; b++) {
        *speakers = 0;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) _exit(run_workers(comm_both[b], 4, 0, speak_once, (void *)speakers) & 255);
        CHECK(wait_status(pid) == 3 && *speakers == 1, "%s: %d", comm_both[b], *speakers);
    }
    CHECK(comm_may_speak() && comm_may_speak() && !*comm_rank_prefix());
}

/* ------------------------------------------------------------------------------------------------
 * the machine */

TEST(launcher_without_mpi_is_noticed) {
    int rank, ranks, sharing;
    comm_init(NULL, NULL, &rank, &ranks, &sharing);
    CHECK(rank == 0 && ranks == 1 && sharing == 1);
    setenv("PMI_SIZE", "4", 1);
    setenv("PMI_RANK", "3", 1);
    comm_init(NULL, NULL, &rank, &ranks, &sharing);
    CHECK(rank == 3 && ranks == 4);
}

typedef struct Groups {
    const char *groups; /* of /proc/self/cgroup */
    const char *files;  /* a line each: name under /sys/fs/cgroup, content */
    uint64_t cpu, memory;
} Groups;

static const Groups group_rows[] = {
    {.groups = "0::/a/b\n", /* a group above limits too */
     .files = "a/cpu.max 150000 100000\na/b/cpu.max max 100000\n"
              "a/memory.max 1000000\na/b/memory.max 2000000\n",
     .cpu = 1500,
     .memory = 1000000},
    {.groups = "0::/not/mounted/here\n", /* a container that reads its host's path */
     .files = "cpu.max 50000 100000\nmemory.max max\n",
     .cpu = 500,
     .memory = UINT64_MAX},
    {.groups = "5:pids:/x\n4:cpu,cpuacct:/x/y\n3:memory:/x\n1:name=systemd:/x\n0::/\n",
     .files = "cpu,cpuacct/x/y/cpu.cfs_quota_us -1\ncpu,cpuacct/x/cpu.cfs_quota_us 250000\n"
              "cpu,cpuacct/x/cpu.cfs_period_us 100000\nmemory/x/memory.limit_in_bytes 500000000\n",
     .cpu = 2500,
     .memory = 500000000},
    {.groups = "4:cpuacct,cpu:/x\n3:cpuset:/x\n",
     .files = "cpu/x/cpu.cfs_quota_us 300000\ncpu/x/cpu.cfs_period_us 100000\n"
              "cpuset/x/cpu.cfs_quota_us 100000\ncpuset/x/cpu.cfs_period_us 100000\n",
     .cpu = 3000,
     .memory = UINT64_MAX},
    {.groups = "nonsense\n0:\n0::/\n", .files = "", .cpu = UINT64_MAX, .memory = UINT64_MAX},
};

TEST(group_limits_are_read_from_both_versions) {
    for (size_t i = 0; i < sizeof group_rows / sizeof group_rows[0]; i++) {
        const Groups *g = &group_rows[i];
        const char *root = test_path("%zu", i);
        test_command("mkdir -p %s/proc/self && printf '%s' >%s/proc/self/cgroup\nprintf '%s' |"
                     "while read name text; do f=%s/sys/fs/cgroup/$name; mkdir -p ${f%%/*};"
                     "echo $text >$f; done",
                     root, g->groups, root, g->files, root);
        CHECK(comm_group_limit(root, "cpu") == g->cpu, "row %zu", i);
        CHECK(comm_group_limit(root, "memory") == g->memory, "row %zu", i);
    }
    CHECK(comm_group_limit(test_path("nowhere"), "cpu") == UINT64_MAX);
}

/* ------------------------------------------------------------------------------------------------
 * teams */

typedef struct Turns {
    Team team;
    int taken[8]; /* by thread; plain integers: the barriers order them */
    _Atomic int wrong;
} Turns;

static void take_turns(void *context, int ith, int nth) {
    Turns *t = context;
    for (int i = 0; i < 200; i++) {
        t->taken[ith]++;
        team_barrier(&t->team);
        for (int j = 0; j < nth; j++) t->wrong += t->taken[j] != t->taken[ith];
        team_barrier(&t->team);
    }
#if defined(__x86_64__) || defined(__aarch64__)
    volatile float small = 1e-37f;
    t->wrong += small * 0.01f != 0; /* a denormal */
#endif
}

TEST(team_runs_function_on_every_thread) {
    for (int threads = 1; threads <= 6; threads++) {
        Turns t = {.wrong = 0};
        CHECK(team_start(&t.team, threads, threads & 1 ? 0 : TEAM_SPIN) == 0);
        for (int run = 0; run < 3; run++) team_run(&t.team, take_turns, &t);
        team_stop(&t.team);
        CHECK(t.wrong == 0, "%d threads", threads);
        for (int j = 0; j < 8; j++) CHECK(t.taken[j] == (j < threads ? 600 : 0));
    }
}
