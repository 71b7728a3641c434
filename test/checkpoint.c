/* checkpoint.c - lib/checkpoint.h: nothing complete is lost, nothing is mixed, who may write. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

/* Every system call that changes files goes through a counter. At zero, the process ends before the
 * call (half-way through a write), or the call fails. */
static long countdown;
static int failure; /* errno of the failing call; 0: the process ends */
static int dirty;   /* something was written since the last fsync */

static int stop_here(void) {
    if (countdown == 0 || --countdown) return 0;
    if (!failure) _exit(77);
    errno = failure;
    return 1;
}

static int hook_open(const char *path, int flags, ...) {
    return flags & O_CREAT && stop_here() ? -1 : open(path, flags, 0666);
}
static ssize_t hook_write(int fd, const void *data, size_t n) {
    if (countdown == 1 && write(fd, data, n / 2) < 0) return -1;
    dirty = 1;
    return stop_here() ? -1 : write(fd, data, n);
}
static int hook_fsync(int fd) {
    dirty = 0;
    return stop_here() ? -1 : fsync(fd);
}
static int hook_rename(const char *from, const char *to) {
    CHECK(!dirty, "%s is renamed before it is synced", from);
    return stop_here() ? -1 : rename(from, to);
}

#define open hook_open
#define write hook_write
#define fsync hook_fsync
#define rename hook_rename
#define mkdir(path, mode) (stop_here() ? -1 : mkdir(path, mode))
#define rmdir(path) (stop_here() ? -1 : rmdir(path))
#define unlink(path) (stop_here() ? -1 : unlink(path))
#include "../lib/checkpoint.h"
#undef open
#undef write
#undef fsync
#undef rename
#undef mkdir
#undef rmdir
#undef unlink

enum { WORKERS = 2, X = 0xa1, Y = 0xb2 };
#define ERROR error, sizeof error

static char error[2048], note[2048];

static float value_of(uint64_t run, uint64_t step, int part) {
    return (float)(1000 * run + 10 * step) + (float)part;
}

/* One part: part 0 is "model", part r + 1 "worker-r". */
static int write_part(const char *run, const char *name, CheckpointStamp s, int part) {
    char text[32];
    float x[3] = {value_of(s.run, s.step, part), 2, 3};
    StTensor t = {.name = "x", .dtype = "F32", .shape = {3}, .rank = 1, .data = x};
    StPair pair = {.key = "color", .value = "red"};
    snprintf(text, sizeof text, part ? "worker-%d" : "model", part - 1);
    return checkpoint_write(run, name, text, &s, &t, 1, &pair, 1, ERROR);
}

static int save(const char *run, const char *name, uint64_t identity, uint64_t step) {
    int failed = checkpoint_begin(run, name, ERROR);
    CheckpointStamp s = {
        .run = identity, .step = step, .parts = strcmp(name, "best") ? WORKERS + 1 : 1};
    for (int part = s.parts; part-- > 0 && !failed;) failed = write_part(run, name, s, part);
    return failed ? failed : checkpoint_commit(run, name, 1, ERROR);
}

/* The step of the save that a reader finds, and that all of its parts hold; or a negative code. */
static long found(const char *run, const char *name, int whole) {
    Checkpoint c;
    StFile f;
    float x[3] = {0};
    int code = checkpoint_open(run, name, whole, &c, note, sizeof note, ERROR);
    if (code) {
        CHECK(*error && !c.model.map);
        return code;
    }
    CheckpointStamp s = c.stamp;
    long step = (long)s.step;
    st_read_f32(&c.model, "x", x, 3, ERROR);
    if (x[0] != value_of(s.run, s.step, 0)) step = -99;
    for (int r = 0; whole && r < s.parts - 1; r++) {
        char part[32];
        snprintf(part, sizeof part, "worker-%d", r);
        if (checkpoint_open_part(&c, part, &f, ERROR)) return -98;
        st_read_f32(&f, "x", x, 3, ERROR);
        if (x[0] != value_of(s.run, s.step, r + 1)) step = -97;
        st_close(&f);
    }
    checkpoint_close(&c);
    return step;
}

/* An empty run in a buffer of its own. */
static const char *new_run(void) {
    static char path[512];
    snprintf(path, sizeof path, "%s", test_path("run"));
    test_command("rm -rf '%s'; mkdir '%s'", path, path);
    return path;
}

/* Run a command in a folder. */
static int shell(const char *folder, const char *command) {
    return test_command("cd '%s' && { %s; }", folder, command)->status;
}

/* Set the limit of open files; returns what it was. */
static rlim_t limit_files(rlim_t value) {
    struct rlimit all;
    CHECK(getrlimit(RLIMIT_NOFILE, &all) == 0);
    rlim_t old = all.rlim_cur;
    all.rlim_cur = value;
    CHECK(setrlimit(RLIMIT_NOFILE, &all) == 0);
    return old;
}

/* Root may write anywhere: be another user, or again root. */
static void be_root(int root) {
    static int started_as_root = -1;
    if (started_as_root < 0) started_as_root = geteuid() == 0;
    if (started_as_root) CHECK(seteuid(root ? 0 : 65534) == 0);
}

static void flip(const char *path) {
    size_t n;
    char *bytes = test_read(path, &n);
    CHECK(bytes && n > 8, "%s", path);
    if (bytes) bytes[n - 5] ^= 4;
    if (bytes) test_write(path, bytes, n);
    free(bytes);
}

static int is_there(const char *run, const char *name) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", run, name);
    return access(path, F_OK) == 0;
}

TEST(checkpoint_round_trip_keeps_parts_and_pairs) {
    const char *run = new_run();
    Checkpoint c;
    StFile f;
    CHECK(!checkpoint_exists(run) && found(run, "last", 0) == -1);
    CHECK(strstr(error, "last/model.safetensors: cannot open: No such file"), "%s", error);
    CHECK(save(run, "best", X, 1) == 0, "%s", error);
    for (uint64_t step = 1; step <= 3; step++) CHECK(save(run, "last", X, step) == 0, "%s", error);
    CHECK(found(run, "last", 1) == 3 && !*note && found(run, "best", 1) == 1 && !*note);
    CHECK(found(test_path("run/previous"), "last", 1) == 2 && !*note, "a folder named directly");
    CHECK(checkpoint_open(run, "last", 1, &c, note, sizeof note, ERROR) == 0);
    CHECK(c.stamp.run == X && c.stamp.parts == WORKERS + 1 && c.model.verified);
    CHECK(strcmp(st_meta(&c.model, "color"), "red") == 0);
    CHECK(checkpoint_open_part(&c, "worker-7", &f, ERROR) == -1);
    CHECK(strstr(error, "worker-7.safetensors: cannot open"), "%s", error);
    checkpoint_close(&c);
    checkpoint_close(&c);
    CHECK(checkpoint_begin(run, "last", ERROR) == 0);
    CHECK(checkpoint_commit(run, "last", 1, ERROR) == -1, "no model was written");
    write_part(run, "last", (CheckpointStamp){.run = X, .step = 4, .parts = WORKERS + 1}, 0);
    CHECK(checkpoint_commit(run, "last", 1, ERROR) == -1, "one part of three");
    CHECK(strstr(error, "holds 1 of the 3 parts"), "%s", error);
    CHECK(found(run, "last", 1) == 3 && !*note);
    CHECK(save(run, "last", X, 5) == 0 && found(run, "last", 1) == 5);
    uint64_t a = checkpoint_new_identity(), b = checkpoint_new_identity();
    CHECK(a && b && a != b && a < UINT64_MAX);
}

/* In a child: saves of steps first .. first + 2, stopped at the n-th call. done <- the newest step
 * of "last" and "best" that was committed. Returns 0 when the child came to its end. */
static int save_in_child(const char *run, long first, long n, int code, volatile long *done) {
    pid_t pid = fork();
    if (pid == 0) {
        countdown = n;
        failure = code;
        for (long step = first; step < first + 3; step++) {
            if (save(run, "last", X, (uint64_t)step)) continue;
            done[0] = step;
            if (save(run, "best", X, (uint64_t)step) == 0) done[1] = step;
        }
        _exit(countdown ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status), "a signal ended the child");
    return WEXITSTATUS(status);
}

/* Three saves in a child. At its n-th call it ends, or the call fails; n grows, in the folder that
 * the child before left. After a child's end, a second one ends while it recovers. */
TEST(checkpoint_stop_at_any_call_loses_nothing) {
    volatile long *done = test_shared(2 * sizeof(long));
    for (int fails = 0; fails < 2; fails++) {
        const char *run = new_run();
        long n = 1, step[2] = {0}; /* of the save that a reader finds: "last", "best" */
        for (int stopped = 1; stopped; n++)
            for (int recovery = 0; recovery < 2 - fails; recovery++) {
                long call = recovery ? 1 + (long)(test_hash(1, (uint64_t)n) & 63) : n;
                long first = step[0] + 1;
                done[0] = step[0], done[1] = step[1];
                int code = save_in_child(run, first, call, fails ? n & 1 ? EIO : ENOSPC : 0, done);
                if (!recovery) stopped = code;
                for (int best = 0; best < 2; best++) {
                    step[best] = found(run, best ? "best" : "last", 1);
                    if (step[best] == -1 && done[best] == 0) step[best] = 0;
                    CHECK(step[best] >= done[best], "call %ld: step %ld, committed %ld", call,
                          step[best], done[best]);
                }
                CHECK(step[0] <= done[0] + 1, "call %ld: step %ld is not committed", call, step[0]);
                CHECK(!fails || done[0] > first, "call %ld: one failure stopped two saves", call);
            }
        CHECK(n > 100, "only %ld calls", n);
        CHECK(save(run, "last", X, 9000) == 0 && found(run, "last", 1) == 9000 && !*note);
        CHECK(!is_there(run, "last.new") && !is_there(run, "last.kept-1"));
    }
}

TEST(checkpoint_damaged_save_falls_back_with_note) {
    static const struct {
        const char *command; /* damages RUN/last, the save of step 12 */
        const char *word;
        int whole; /* of 1, the model is not damaged */
    } rows[] = {
        {"flip model", "model.safetensors: checksum", 0},
        {"flip worker-1", "worker-1.safetensors: checksum", 1},
        {"truncate -s -1 last/worker-0.safetensors", "worker-0", 1},
        {"truncate -s 0 last/model.safetensors", "too short", 0},
        {"rm last/worker-1.safetensors", "holds 2 of the 3 parts", 1},
        {"rm last/model.safetensors", "No such file", 0},
        {"rm -r last", "No such file", 0},
        {"cp previous/worker-0.safetensors last", "belongs to step 6 of run", 1},
        {"cp last/worker-0.safetensors last/worker-1.safetensors", "not a part of a save", 1},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *run = new_run(), *command = rows[i].command;
        CHECK(save(run, "last", X, 6) == 0 && save(run, "last", X, 12) == 0);
        if (strncmp(command, "flip ", 5) == 0)
            flip(test_path("run/last/%s.safetensors", command + 5));
        else
            CHECK(shell(run, command) == 0);
        CHECK(found(run, "last", 1) == 6, "%s: %s", command, error);
        CHECK(strstr(note, rows[i].word) && strstr(note, "run/previous, the save of step 6"),
              "%s: %s", command, note);
        CHECK(found(run, "last", 0) == (rows[i].whole ? 12 : 6), "%s", command);
        CHECK(checkpoint_exists(run));
        CHECK(save(run, "last", X, 13) == 0 && found(run, "last", 1) == 13 && !*note);
        CHECK(found(test_path("run/previous"), "last", 1) == 6, "the complete one stays");
        flip(test_path("run/last/model.safetensors"));
        flip(test_path("run/previous/model.safetensors"));
        CHECK(found(run, "last", 1) == -1 && strstr(error, "run/last/model"), "%s", error);
    }
}

TEST(checkpoint_parts_of_two_runs_are_refused) {
    const char *run = new_run();
    CheckpointStamp x = {.run = X, .step = 5, .parts = WORKERS + 1}, y = x, fewer = x;
    y.run = Y;
    fewer.parts = 2;
    CheckpointStamp strange[] = {y, fewer};
    CHECK(save(run, "last", X, 4) == 0);
    for (size_t i = 0; i < COUNT(strange); i++) {
        CHECK(checkpoint_begin(run, "last", ERROR) == 0);
        write_part(run, "last", x, 0);
        write_part(run, "last", x, 1);
        write_part(run, "last", strange[i], 2);
        CHECK(checkpoint_commit(run, "last", 1, ERROR) == -1);
        CHECK(strstr(error, "worker-1.safetensors: belongs to step 5 of run"), "%s", error);
        CHECK(found(run, "last", 1) == 4 && !*note);
    }
    /* `previous` of another run, put there by hand, does not stand in for `last` */
    CHECK(save(run, "last", X, 5) == 0);
    shell(run, "mv last kept; rm -r previous");
    CHECK(save(run, "last", Y, 3) == 0);
    shell(run, "mv last previous; mv kept last; rm last/worker-0.safetensors");
    CHECK(found(run, "last", 1) == -1 && strstr(error, "holds 2 of the 3 parts"), "%s", error);
}

TEST(checkpoint_forged_stamp_is_refused) {
    static const StPair rows[] = {{"checkpoint_run", "0000000000000000"},
                                  {"checkpoint_run", "-1"},
                                  {"checkpoint_run", "ffffffffffffffff"},
                                  {"checkpoint_step", "1e3"},
                                  {"checkpoint_step", "-3"},
                                  {"checkpoint_step", " 3"},
                                  {"checkpoint_step", "nan"},
                                  {"checkpoint_step", "9007199254740993"},
                                  {"checkpoint_parts", "0"},
                                  {"checkpoint_parts", "4294967297"},
                                  {"checkpoint_parts", ""},
                                  {"checkpoint_part", "worker-0"},
                                  {"other", "3"}};
    const char *run = new_run();
    for (size_t i = 0; i < COUNT(rows); i++) {
        StPair pairs[] = {{"checkpoint_part", "model"},
                          {"checkpoint_run", "00000000000000a1"},
                          {"checkpoint_step", "3"},
                          {"checkpoint_parts", "1"}};
        for (size_t k = 0; k < 4; k++)
            if (strcmp(pairs[k].key, rows[i].key) == 0) pairs[k] = rows[i];
        if (strcmp(rows[i].key, "other") == 0) pairs[2] = rows[i]; /* no step at all */
        st_write(test_path("run/model.safetensors"), NULL, 0, pairs, 4, ERROR);
        CHECK(found(run, "last", 0) == -1, "%s = %s", rows[i].key, rows[i].value);
    }
}

TEST(checkpoint_new_run_replaces_old_saves) {
    const char *run = new_run();
    CHECK(save(run, "last", X, 10) == 0 && save(run, "last", X, 20) == 0 &&
          !save(run, "best", X, 15));
    CHECK(save(run, "best", Y, 1) == 0 && found(run, "best", 1) == 1);
    CHECK(found(run, "last", 1) == 20, "the old run stays until the new one has saved");
    CHECK(found(test_path("run/previous"), "", 1) == 10);
    shell(run, "rm -r best; cp -r last best");
    CHECK(save(run, "last", Y, 2) == 0 && found(run, "last", 1) == 2 && !*note);
    CHECK(!is_there(run, "previous") && !is_there(run, "best"));
    flip(test_path("run/last/model.safetensors"));
    CHECK(found(run, "last", 1) == -1, "nothing of the old run stands in");
    CHECK(checkpoint_exists(run));
    /* without keep_previous only one save stays */
    CHECK(save(run, "last", Y, 3) == 0 && save(run, "last", Y, 4) == 0 &&
          is_there(run, "previous"));
    CHECK(checkpoint_begin(run, "last", ERROR) == 0);
    write_part(run, "last", (CheckpointStamp){.run = Y, .step = 5, .parts = 1}, 0);
    CHECK(checkpoint_commit(run, "last", 0, ERROR) == 0, "%s", error);
    CHECK(found(run, "last", 1) == 5 && !is_there(run, "previous"));
}

TEST(checkpoint_links_are_followed_and_replaced) {
    const char *run = new_run();
    CHECK(save(run, "last", X, 1) == 0 && save(run, "best", X, 1) == 0);
    test_command(
        "cd '%s'; mv last .last.1; ln -s .last.1 last; mv best .best.0; ln -s .best.0 best", run);
    CHECK(found(run, "last", 1) == 1 && found(run, "best", 1) == 1 && !*note);
    CHECK(shell(test_folder(), "cp -rL run run.copy") == 0);
    CHECK(found(test_path("run.copy"), "last", 1) == 1);
    for (int i = 0; i < 2; i++) {
        const char *one = i ? test_path("run.copy") : run;
        char path[512];
        int fd;
        snprintf(path, sizeof path, "%s", one);
        CHECK(checkpoint_lock(path, &fd, ERROR) == 0, "%s", error);
        CHECK(save(path, "last", X, 2) == 0 && save(path, "best", X, 2) == 0, "%s", error);
        CHECK(found(path, "last", 1) == 2 && found(path, "best", 1) == 2 && !*note);
        CHECK(save(path, "last", X, 3) == 0 && found(path, "last", 1) == 3);
        CHECK(shell(path, "test ! -L last -a ! -L best") == 0);
        checkpoint_unlock(fd);
    }
    CHECK(is_there(run, ".last.1/worker-1.safetensors"), "a link's target is not touched");
    shell(run, "rm -r last; ln -s nowhere last; ln -s last.new last.new");
    CHECK(found(run, "last", 1) == 2 && strstr(note, "run/previous"), "%s", note);
    CHECK(save(run, "last", X, 4) == 0 && found(run, "last", 1) == 4 && !*note, "%s", error);
}

TEST(checkpoint_exists_sees_every_save) {
    static const char *const names[] = {"last", "last.new", "previous", "best", "best.new"};
    char command[128];
    for (size_t i = 0; i < COUNT(names); i++) {
        const char *run = new_run();
        save(run, "last", X, 3);
        snprintf(command, sizeof command, "test %s = last || mv last %s", names[i], names[i]);
        CHECK(shell(run, command) == 0);
        CHECK(checkpoint_exists(run), "%s", names[i]);
        long step = found(run, i < 3 ? "last" : "best", 1);
        CHECK(step == 3 && (*note != 0) == (i != 0 && i != 3), "%s: %s", names[i], note);
        CHECK(save(run, "last", X, 4) == 0 && found(run, "last", 1) == 4 && !*note);
    }
}

TEST(checkpoint_foreign_files_are_kept) {
    const char *run = new_run();
    CHECK(save(run, "best", X, 1) == 0);
    test_write(test_path("run/best/notes.txt"), "mine", 4);
    CHECK(found(run, "best", 1) == 1 && save(run, "best", X, 2) == 0, "%s", error);
    CHECK(found(run, "best", 1) == 2 && is_there(run, "best.kept-1/notes.txt"));
    test_write(test_path("run/best/notes.txt"), "more", 4);
    CHECK(save(run, "best", X, 3) == 0 && is_there(run, "best.kept-2/notes.txt"), "%s", error);
    CHECK(!is_there(run, "best.kept-2/model.safetensors") && found(run, "best", 1) == 3);
}

TEST(checkpoint_unreadable_file_stops_without_change) {
    const char *run = new_run();
    CHECK(save(run, "last", X, 1) == 0 && save(run, "last", X, 2) == 0);
    int next = dup(0);
    close(next);
    rlim_t old = limit_files((rlim_t)next); /* no file can be opened */
    long step = found(run, "last", 1), begun = checkpoint_begin(run, "last", ERROR);
    limit_files(old);
    CHECK(step == -2 && begun == -2 && strstr(error, strerror(EMFILE)), "%ld: %s", step, error);
    shell(run, "mv last last.new"); /* complete: begin must not empty it */
    shell(test_folder(), "chmod 777 .; chmod 0 run/last.new/worker-1.safetensors");
    be_root(0);
    CHECK(found(run, "last", 1) == -2 && strstr(error, "worker-1"), "%s", error);
    CHECK(checkpoint_begin(run, "last", ERROR) == -2);
    be_root(1);
    CHECK(chmod(test_path("run/last.new/worker-1.safetensors"), 0644) == 0);
    CHECK(found(run, "last", 1) == 2 && strstr(note, "last.new"), "%s", error);
}

/* A child that locks the run, tells so, forks a child of its own, and waits for its end. */
static pid_t hold_lock(const char *run, int grandchild) {
    volatile long *ready = test_shared(2 * sizeof(long));
    pid_t pid = fork();
    if (pid == 0) {
        int fd;
        if (checkpoint_lock(run, &fd, ERROR)) _exit(1);
        if (grandchild && fork() == 0) {
            close(fd); /* releases nothing */
            _exit(0);
        }
        if (grandchild) wait(NULL);
        if (grandchild > 1 && fork() == 0) { /* a worker that outlives its parent for a moment */
            usleep(100000);
            _exit(0);
        }
        *ready = 1;
        for (;;) pause();
    }
    while (!*ready) usleep(1000);
    return pid;
}

TEST(checkpoint_lock_names_its_holder) {
    const char *run = new_run();
    int fd, second;
    char word[64];
    for (int way = 0; way < 3; way++) {
        pid_t pid = hold_lock(run, way);
        snprintf(word, sizeof word, "is in use by process %ld on ", (long)pid);
        CHECK(checkpoint_lock(run, &fd, ERROR) == -1 && fd == -1);
        CHECK(strstr(error, run) && strstr(error, word), "%s", error);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        CHECK(checkpoint_lock(run, &fd, ERROR) == 0, "way %d: %s", way, error);
        checkpoint_unlock(fd);
    }
    CHECK(checkpoint_lock(run, &fd, ERROR) == 0);
    CHECK(checkpoint_lock(run, &second, ERROR) == -1, "also from the same process");
    pid_t child = fork(); /* a child that is still there when its parent unlocks */
    if (child == 0) pause();
    checkpoint_unlock(fd);
    CHECK(checkpoint_lock(run, &fd, ERROR) == 0, "%s", error);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    checkpoint_unlock(fd);
    checkpoint_unlock(-1);
}

TEST(checkpoint_lock_finds_what_prevents_saving) {
    static const struct {
        const char *command; /* in the folder of the test */
        const char *run;
        const char *word;
    } rows[] = {
        {"touch file", "file", "file: cannot be made a folder: Not a directory"},
        {"touch file", "file/run", "cannot be made a folder: Not a directory"},
        {"mkdir -p r; touch r/last", "r", "r/last: is no ordinary folder"},
        {"mkdir -p r; touch r/best", "r", "r/best: is no ordinary folder"},
        {"mkdir -p r; mkfifo r/previous", "r", "r/previous: is no ordinary folder"},
        {"mkdir -p r/lock", "r", "r/lock: cannot be written"},
        {"mkdir -p r; chmod 555 r", "r", "r/lock: cannot be written: Permission denied"},
        {"mkdir -p r/last; chmod 555 r/last; chmod 777 r", "r", "r/last: cannot be replaced"},
    };
    int fd;
    CHECK(chmod(test_folder(), 0777) == 0);
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *command = rows[i].command;
        char run[512];
        shell(test_folder(), "chmod -R u+w r; rm -rf r file");
        CHECK(shell(test_folder(), command) == 0);
        be_root(strstr(command, "chmod") == NULL);
        snprintf(run, sizeof run, "%s", test_path("%s", rows[i].run));
        int code = checkpoint_lock(run, &fd, ERROR);
        CHECK(code == -2 && fd == -1 && strstr(error, rows[i].word), "%s: %s", command, error);
        be_root(1);
    }
    char *longest = calloc(1, 5000), *component = longest + 4200;
    for (int i = 0; i < 4199; i++) longest[i] = "/tmp/x"[i < 6 ? i : 4 + (i & 1)];
    memset(component, 'y', 300);
    const char *paths[] = {longest, component};
    for (int i = 0; i < 2; i++) {
        CHECK(checkpoint_lock(paths[i], &fd, ERROR) == -2);
        CHECK(strstr(error, strerror(ENAMETOOLONG)), "%s", error);
        CHECK(found(paths[i], "last", 1) == -2 && strstr(error, strerror(ENAMETOOLONG)), "%s",
              error);
        CHECK(checkpoint_begin(paths[i], "last", ERROR) == -2);
    }
    free(longest);
}
